//! The book of what happened: for the promises, for the counters, and for whoever reads a failure.

use std::{
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};

use matriarch::{
    domain::{Epoch, MemberId, TimelineId},
    state::{Applied, ClusterState, Command, Kind, OperationKind, OperationPhase},
};

use crate::{
    clock::Time,
    invariants::{
        apply_is_deterministic, confirmed_commits_are_kept, epochs_are_unique, hibernated_stays_down,
        one_leader_a_term, open_after_promotion, restart_keeps_what_was_acknowledged,
        the_outvoted_acknowledge_nothing_new, timelines_are_unique,
    },
    postgres::wal::{BranchId, Content},
    raft::Entry,
};

/// So many lines of a run are kept for a failure; `WORLD_LINES` keeps more.
const LINES: usize = 400;

/// How often what happened; a batch in which something never did has tested too little.
#[derive(Debug, Clone, Default)]
pub struct Cover {
    counts: BTreeMap<&'static str, u64>,
    pub fences_at_deadline: u64,
    pub fences_by_order: u64,
    pub nacks: u64,
    pub seals: u64,
    pub restarts_in_place: u64,
    pub hangs: u64,
    pub starts_by_hand: u64,
    pub promotions_by_hand: u64,
    pub trees_killed_by_the_agent: u64,
    pub trees_killed_by_the_sentry: u64,
    /// Two could acknowledge, one of them on a host where nothing could enforce a deadline: documented.
    pub known_exposures: u64,
    pub elections: u64,
    pub lost_commits: u64,
    pub acknowledged: u64,
}

impl Cover {
    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub fn task(&mut self, kind: &str, succeeded: bool) {
        let what = match (kind, succeeded) {
            ("rewind", true) => "rewinds",
            ("rewind", false) => "rewinds failed",
            ("clone", true) => "clones",
            ("clone", false) => "clones failed",
            ("promote", false) => "promotions failed",
            ("restart", false) => "restarts in place failed",
            _ => return,
        };
        self.count(what);
    }

    /// Every counter by name.
    pub fn all(&self) -> BTreeMap<&'static str, u64> {
        let mut all = self.counts.clone();
        all.extend([
            ("fences at deadline", self.fences_at_deadline),
            ("fences by order", self.fences_by_order),
            ("nacks", self.nacks),
            ("seals", self.seals),
            ("restarts in place", self.restarts_in_place),
            ("hangs", self.hangs),
            ("starts by hand", self.starts_by_hand),
            ("promotions by hand", self.promotions_by_hand),
            ("trees killed by the agent", self.trees_killed_by_the_agent),
            ("trees killed by the sentry", self.trees_killed_by_the_sentry),
            ("known exposures", self.known_exposures),
            ("elections", self.elections),
            ("lost commits", self.lost_commits),
            ("acknowledged", self.acknowledged),
        ]);
        all
    }

    pub fn add(&mut self, other: &Cover) {
        for (what, n) in other.all() {
            *self.counts.entry(what).or_default() += n;
        }
    }

    /// Of a sum made by [`Cover::add`].
    pub fn total(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or(0)
    }

    pub fn totals(&self) -> &BTreeMap<&'static str, u64> {
        &self.counts
    }
}

/// A committed command that calls for a look at all hosts.
#[derive(Debug, Clone)]
pub enum Moment {
    Granted {
        epoch: Epoch,
    },
    Stopped {
        from: MemberId,
    },
    SwitchedOver {
        to: MemberId,
    },
    /// The cluster is stopped, and who was primary has given the lock up; false: whatever the standbys have.
    Hibernated {
        primary: MemberId,
        received: bool,
    },
}

/// What happened.
#[derive(Default)]
pub struct Chronicle {
    tracing: bool,
    kept: usize,
    lines: VecDeque<String>,
    /// Broken promises, by their names.
    pub broken: Vec<String>,
    pub cover: Cover,
    /// The term of each entry and the state after it, as the first to apply it had it.
    pub states: Vec<(u64, Rc<ClusterState>)>,
    /// To whom each epoch was granted, and the timeline reserved for it.
    pub grants: BTreeMap<Epoch, (MemberId, TimelineId)>,
    /// An epoch was fenced and is not granted yet.
    pub fenced: bool,
    /// The last epoch whose promotion is recorded.
    pub completed: Option<Epoch>,
    /// Who created each timeline under a grant.
    pub promotions: BTreeMap<TimelineId, (usize, Epoch)>,
    /// Who led each term.
    pub leaders: BTreeMap<u64, usize>,
    /// By host: the highest epoch it said to have sealed durably.
    pub sealed: BTreeMap<usize, Epoch>,
    /// By host: the highest epoch it said to have ended.
    pub ended: BTreeMap<usize, Epoch>,
    /// By host: until when its acceptor was bound when its manager died.
    pub bound_until: BTreeMap<usize, Time>,
    /// By host: since when a server is writable there without any grant.
    pub by_hand_since: BTreeMap<usize, Time>,
    /// By branch: up to where commits were acknowledged.
    acked: BTreeMap<BranchId, u64>,
    /// Who streamed from, or was rewound to, other bytes than its numbers promised.
    pub other_bytes: Vec<String>,
    /// To be looked at once the event is over.
    pub moments: Vec<Moment>,
    /// Of confirmed commits.
    pub promises: confirmed_commits_are_kept::Promises,
    /// Epochs that ended before their lease did.
    pub outvoted: the_outvoted_acknowledge_nothing_new::Outvoted,
    /// A cluster that was stopped, until somebody is open again.
    pub sleep: Option<hibernated_stays_down::Sleep>,
    /// The old primary's WAL when a switchover had stopped it.
    pub stopped: Option<Content>,
}

impl Chronicle {
    pub fn new(tracing: bool) -> Self {
        let kept = crate::number("WORLD_LINES").map_or(LINES, |n| n as usize);
        Self { tracing, kept, ..Self::default() }
    }

    pub fn trace(&mut self, now: Time, line: impl FnOnce() -> String) {
        if self.tracing {
            if self.lines.len() == self.kept {
                self.lines.pop_front();
            }
            self.lines.push_back(format!("{:>12.6}  {}", now as f64 / 1e6, line()));
        }
    }

    pub fn lines(&self) -> String {
        self.lines.iter().map(|l| format!("{l}\n")).collect()
    }

    /// A promise is broken: the run ends.
    pub fn broke(&mut self, promise: &str, what: impl FnOnce() -> String) {
        self.broken.push(format!("{promise}: {}", what()));
    }

    pub fn elected(&mut self, i: usize, term: u64) {
        one_leader_a_term::elected(self, i, term);
    }

    /// An entry was applied on a host.
    pub fn applied(&mut self, now: Time, i: usize, index: u64, entry: &Entry, state: &Rc<ClusterState>, how: &Applied) {
        let first = apply_is_deterministic::applied(self, i, index, entry, state);
        if let Some(command) = entry.command.as_ref().filter(|_| first) {
            self.trace(now, || format!("{i}: applied {index}: {command} -> {how:?}"));
            if *how == Applied::Changed {
                let rules = || state.sync.rules.iter().map(|r| format!("{} of epoch {}: {}", r.id, r.epoch, r.words()));
                if matches!(command.kind, Kind::SetSync { .. } | Kind::SettleSync { .. } | Kind::Grant { .. }) {
                    self.trace(now, || format!("rules: {:?}", Vec::from_iter(rules())));
                }
                self.committed(command, state);
            }
        }
    }

    /// The newest state anybody applied.
    pub fn state(&self) -> Option<&Rc<ClusterState>> {
        self.states.last().map(|(_, state)| state)
    }

    fn committed(&mut self, command: &Command, state: &ClusterState) {
        self.cover.count(command.kind.name());
        open_after_promotion::committed(self, command);
        hibernated_stays_down::committed(self, command, state);
        confirmed_commits_are_kept::committed(self, command, state);
        if let Some((_, before)) = self.states.iter().rev().nth(1).cloned() {
            the_outvoted_acknowledge_nothing_new::committed(self, &command.kind, &before, state);
        }
        match &command.kind {
            Kind::Fence { .. } => self.fenced = true,
            Kind::Grant { member, .. } => self.granted(command.expected, member, state),
            Kind::AdvanceOperation { phase: OperationPhase::Transfer, .. } => {
                if let Some(from) = state.operation.as_ref().and_then(|o| o.from.clone()) {
                    self.moments.push(Moment::Stopped { from });
                }
            }
            Kind::EndOperation { succeeded, .. } => self.operation_ended(*succeeded, state),
            _ => {}
        }
    }

    fn granted(&mut self, epoch: Epoch, member: &MemberId, state: &ClusterState) {
        epochs_are_unique::granted(self, epoch, member);
        let previous = self.grants.values().next_back().map(|(m, _)| m.clone());
        let timeline = state.highest_timeline();
        self.grants.insert(epoch, (member.clone(), timeline));
        self.moments.push(Moment::Granted { epoch });
        match (&state.operation, previous) {
            (_, None) => {}
            (Some(_), _) => self.cover.count("changes by command"),
            (None, Some(p)) if p == *member => self.cover.count("granted again"),
            (None, Some(_)) => self.cover.count("failovers"),
        }
    }

    fn operation_ended(&mut self, succeeded: bool, state: &ClusterState) {
        let Some(ended) = state.last_operation.as_ref().map(|f| f.operation.clone()) else { return };
        let what = match (ended.kind, succeeded) {
            (OperationKind::Switchover, true) => "switchovers",
            (OperationKind::Switchover, false) => "switchovers failed",
            (OperationKind::Restart, true) => "restarts",
            (OperationKind::Restart, false) => "restarts failed",
            (OperationKind::Reinit, true) => "copies by command",
            (OperationKind::Reinit, false) => "copies by command failed",
            (OperationKind::Hibernate, true) => "hibernations",
            (OperationKind::Hibernate, false) => "hibernations failed",
            (OperationKind::Wake, true) => "awakenings",
            (OperationKind::Wake, false) => "awakenings failed",
            (OperationKind::Failover, true) => "failovers by command",
            (OperationKind::Failover, false) => "failovers by command failed",
        };
        self.cover.count(what);
        if succeeded && ended.kind == OperationKind::Switchover {
            self.moments.push(Moment::SwitchedOver { to: ended.to });
        }
    }

    pub fn acked(&mut self, content: Content, live: bool) {
        if live {
            self.cover.acknowledged += 1;
            let known = self.acked.entry(content.branch).or_default();
            *known = content.end.max(*known);
        }
    }

    pub fn acked_on(&self, branch: BranchId) -> u64 {
        self.acked.get(&branch).copied().unwrap_or(0)
    }

    /// A standby has left recovery.
    pub fn promoted(
        &mut self,
        now: Time,
        i: usize,
        epoch: Option<Epoch>,
        timeline: TimelineId,
        parent: (BranchId, u64),
    ) {
        self.trace(now, || format!("{i}: promoted to timeline {timeline} under {epoch:?} from {parent:?}"));
        if self.acked_on(parent.0) > parent.1 {
            self.cover.lost_commits += 1;
        }
        let Some(epoch) = epoch else { return };
        self.cover.count("promotions");
        timelines_are_unique::promoted(self, i, epoch, timeline);
    }

    /// A server came up as primary without a promotion.
    pub fn opened_in_place(&mut self, now: Time, i: usize, epoch: Option<Epoch>, wal: Content, forked: bool) {
        self.trace(now, || format!("{i}: primary again at {wal:?} under {epoch:?}, forked {forked}"));
        restart_keeps_what_was_acknowledged::opened(self, i, epoch, wal, forked);
    }
}
