//! What a manager tells its agent of the committed state.

use std::collections::BTreeMap;

use super::{Epoch, MemberId, SettingsDocument, SyncWord, TimelineHistory, TimingsInUse};

/// Who belongs to the cluster, as committed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemberList {
    /// Rises with each change of the list; 0 before there is one.
    pub version: u64,
    /// Every member, and `host:port` of its agent for datagrams; empty when it has none.
    pub agents: BTreeMap<MemberId, String>,
}

/// Whether the cluster is paused, and what else keeps it from failing over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PauseWord {
    /// Rises with each change of it; 0 before the first.
    pub version: u64,
    /// It is.
    pub on: bool,
    /// A primary that crashes is restarted in place, however often: too many failovers followed crashes.
    pub stays: bool,
}

/// What an agent needs to know of the state its manager has applied. Everything
/// in it only ever goes up, so that an old one changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Briefing {
    /// The highest epoch ever named.
    pub epoch: Epoch,
    /// The members.
    pub members: MemberList,
    /// Which timings a lease may be held under.
    pub timings: TimingsInUse,
    /// What an operator has set.
    pub settings: SettingsDocument,
    /// Whether the cluster is paused.
    pub pause: PauseWord,
    /// By which rule commits are acknowledged.
    pub sync: SyncWord,
    /// The history of the primary's timeline; `None` while nobody is promoted. A standby takes from an archive what is on it.
    pub lineage: Option<TimelineHistory>,
    /// Where the manager of each of these members listens, `host:port`; empty: nobody said.
    pub managers: BTreeMap<MemberId, String>,
    /// Those of them that were moved by command: for these the hosts' files count no more.
    pub moved: BTreeMap<MemberId, String>,
}
