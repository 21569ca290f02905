//! What is set of the archive and of copies, and what is seen of them.

use std::collections::BTreeMap;

use super::{Core, Effect, Now, Task};
use crate::{
    agent::archive::ArchiveSeen,
    domain::{ArchiveView, CloneMethod, Epoch, MemberId, PostgresState, TimelineHistory},
    postgres::{ArchiveRules, CopyPlan, Stanza},
};

/// The cluster's history, as the manager told it last.
#[derive(Debug, Clone, Default)]
pub(super) struct Lineage {
    epoch: Epoch,
    history: Option<TimelineHistory>,
    /// Where managers of members listen that may still have WAL of it.
    managers: BTreeMap<MemberId, String>,
}

impl Lineage {
    /// Up to the timeline that the primary writes, as far as it was told.
    pub(super) fn history(&self) -> Option<&TimelineHistory> {
        self.history.as_ref()
    }

    /// Whoever doesn't know them says nothing of them.
    pub(super) fn take_managers(&mut self, told: BTreeMap<MemberId, String>) {
        if !told.is_empty() {
            self.managers = told;
        }
    }

    /// True when it is another one. Within an epoch a timeline is told before it is known where it began.
    fn take(&mut self, epoch: Epoch, told: Option<TimelineHistory>) -> bool {
        let Some(told) = told else { return false };
        let length = |history: &TimelineHistory| (history.timeline, history.switches.len());
        let newer = epoch > self.epoch
            || (epoch == self.epoch && self.history.as_ref().is_none_or(|known| length(known) < length(&told)));
        if !newer {
            return false;
        }
        self.epoch = epoch;
        self.history.replace(told.clone()) != Some(told)
    }
}

impl Core {
    pub(super) fn take_lineage(
        &mut self,
        (epoch, told): (Epoch, Option<TimelineHistory>),
        other_settings: bool,
        out: &mut Vec<Effect>,
    ) {
        let other = self.lineage.take(epoch, told);
        if other_settings {
            self.cure.look_in_archive(self.archiving.restores().then_some(self.settings.archive_wait));
        }
        if other || other_settings {
            out.push(Effect::Archive);
        }
    }

    /// Another generation counts its epochs and timelines anew. What was permitted goes with the first word of it.
    pub(super) fn forget_lineage(&mut self) {
        self.lineage = Lineage::default();
    }

    pub(super) fn on_archive(&mut self, seen: ArchiveSeen, now: Now) {
        self.archiving.see(seen, now.moment);
        self.cure.look_in_archive(self.archiving.restores().then_some(self.settings.archive_wait));
    }

    /// The other members, with `host:port` of their managers: they may have WAL that was removed here.
    pub fn others(&self) -> impl Iterator<Item = (&MemberId, &str)> {
        let others = self.lineage.managers.iter().filter(|(member, _)| **member != self.me);
        others.map(|(member, manager)| (member, manager.as_str()))
    }

    /// What PostgreSQL is given of the archive.
    pub fn archive_rules(&self, program: std::path::PathBuf) -> ArchiveRules {
        ArchiveRules::of(&self.settings, program, self.lineage.history.clone())
    }

    /// How archiving goes.
    pub fn archive(&self, now: Now) -> ArchiveView {
        let writes = self.state() == PostgresState::Primary;
        let view = self.archiving.view(&self.settings, self.room().as_ref(), writes, now.moment);
        let left = self.cure.seeks(now.moment);
        ArchiveView { seeks_ms: left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)), ..view }
    }

    /// How a copy is to be made now: not again in the way that gave one of no use.
    pub fn copy_plan(&self) -> CopyPlan {
        CopyPlan {
            methods: self.copy_methods(),
            how: self.how_to_copy(),
            pgbackrest: Stanza::of(&self.settings),
            command: self.settings.clone_command.clone(),
            command_limit: self.settings.clone_command_limit,
            lineage: self.lineage.history.clone(),
            not_taken_in: self.content.is_not_taken_in(),
        }
    }

    fn copy_methods(&self) -> Vec<CloneMethod> {
        let asked = self.work.as_ref().and_then(|work| match &work.task {
            Task::Clone(source) => source.named,
            _ => None,
        });
        match asked {
            Some(true) => vec![CloneMethod::Basebackup],
            // What was of no use before may not be now: an operator asks.
            Some(false) => self.settings.clone_methods.0.clone(),
            None => self.settings.clone_methods.after(self.cure.copied_in_vain()),
        }
    }

    pub(super) fn on_copied(&mut self, method: CloneMethod) {
        let methods = &self.settings.clone_methods.0;
        self.cure.copied_by(method, methods.last().is_some_and(|last| *last != method));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Lsn, TimelineId, TimelineSwitch};

    fn history(timeline: u32, switches: u32) -> Option<TimelineHistory> {
        let switch = |n| TimelineSwitch { timeline: TimelineId(n), end: Lsn(u64::from(n) << 24) };
        let switches = (1..=switches).map(switch).collect();
        Some(TimelineHistory { timeline: TimelineId(timeline), switches, ..TimelineHistory::default() })
    }

    #[test]
    fn an_older_word_of_the_history_changes_nothing() {
        let mut lineage = Lineage::default();
        assert!(!lineage.take(Epoch(4), None), "nobody is promoted");
        assert!(lineage.take(Epoch(4), history(3, 0)));
        assert!(lineage.take(Epoch(4), history(3, 2)), "its beginning is known now");
        assert!(!lineage.take(Epoch(4), history(3, 0)), "said before that");
        assert!(!lineage.take(Epoch(3), history(2, 1)));
        assert!(lineage.take(Epoch(5), history(4, 3)));
    }
}
