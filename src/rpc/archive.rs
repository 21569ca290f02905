//! How archiving goes, and the lineage that a standby's restores are held to, to and from the domain.

use super::v1;
use crate::domain::{ArchiveView, Lsn, TimelineHistory, TimelineId, TimelineSwitch};

/// To the wire; absent where there is nothing to say.
pub fn view(view: &ArchiveView) -> Option<v1::Archive> {
    let ArchiveView { on, failing_ms, failed, waiting, waiting_bytes, much, wants_restart, restored, seeks_ms, .. } =
        *view;
    (*view != ArchiveView::default()).then(|| v1::Archive {
        on,
        failing_ms,
        failed,
        last_failed: view.last_failed.clone(),
        last_archived: view.last_archived.clone(),
        said: view.said.clone(),
        waiting,
        waiting_bytes,
        much,
        wants_restart,
        restored,
        last_restored: view.last_restored.clone(),
        seeks_ms,
    })
}

/// From the wire.
pub fn view_of(raw: Option<v1::Archive>) -> ArchiveView {
    let raw = raw.unwrap_or_default();
    ArchiveView {
        on: raw.on,
        failing_ms: raw.failing_ms,
        failed: raw.failed,
        last_failed: raw.last_failed,
        last_archived: raw.last_archived,
        said: raw.said,
        waiting: raw.waiting,
        waiting_bytes: raw.waiting_bytes,
        much: raw.much,
        wants_restart: raw.wants_restart,
        restored: raw.restored,
        last_restored: raw.last_restored,
        seeks_ms: raw.seeks_ms,
    }
}

/// To the wire. Which records begin a timeline is not told: files in an archive are known by their numbers.
pub fn lineage(history: &TimelineHistory) -> v1::Lineage {
    let switch = |s: &TimelineSwitch| v1::TimelineSwitch { timeline: s.timeline.0, end: s.end.0 };
    v1::Lineage { timeline: history.timeline.0, switches: history.switches.iter().map(switch).collect() }
}

/// From the wire.
pub fn lineage_of(raw: v1::Lineage) -> TimelineHistory {
    let switch = |s: v1::TimelineSwitch| TimelineSwitch { timeline: TimelineId(s.timeline), end: Lsn(s.end) };
    let switches = raw.switches.into_iter().map(switch).collect();
    TimelineHistory { timeline: TimelineId(raw.timeline), switches, ..TimelineHistory::default() }
}
