//! What the rules' knowledge looks like from outside: the state that others
//! see, and read access for the status and the loop.

use std::time::Duration;

use super::{Core, Disk, FailoverWait, LeasePhase, LeaseSight, Now, Sight, Task, Tree};
use crate::{
    agent::store::{Durable, Phase},
    domain::{
        KeptWal, MemberId, Moment, PostgresState, ReaderFallback, RoomView, SlotsYield, TimelineHistory, TimelineId,
        WalPosition,
        observation::{HeardOfPrimary, OrderResult, Work},
    },
    layers::Serving,
};

/// Standbys that were cut off by a restart are back within a few of their retries, or stay away for longer.
const COME_BACK: Duration = Duration::from_secs(5);

/// See [`Core::is_out_of_reach`].
const OUT_OF_REACH: &str = "the data directory has to replay WAL past the end of a timeline of its own history, so \
     PostgreSQL refuses to start; it is copied anew from the primary";

impl Core {
    /// Time left of the lease this host's tenure rests on.
    pub(super) fn lease_left(&self, now: Now) -> Duration {
        let ours = self.durable.tenure.is_some_and(|t| t.epoch == self.lease.epoch);
        if ours && self.lease.phase == LeasePhase::Held {
            self.lease.deadline.holder_remaining(now.clocks)
        } else {
            Duration::ZERO
        }
    }

    /// What PostgreSQL does, as others see it.
    pub fn state(&self) -> PostgresState {
        let task = self.work.as_ref().map(|w| &w.task);
        if matches!(task, Some(Task::Initdb | Task::Rewind(_) | Task::TakeIn(_) | Task::Clone(_))) {
            return PostgresState::Busy;
        }
        match self.tree {
            Tree::Running { .. } => self.running_state(task),
            Tree::Ending if matches!(task, Some(Task::Start(_) | Task::Restart { .. })) => PostgresState::Starting,
            Tree::Ending => PostgresState::Stopping,
            Tree::Empty => self.stopped_state(task),
        }
    }

    fn running_state(&self, task: Option<&Task>) -> PostgresState {
        if matches!(task, Some(Task::Stop { .. })) || self.fencing_since.is_some() {
            return PostgresState::Stopping;
        }
        if matches!(task, Some(Task::Promote(_))) {
            return PostgresState::Promoting;
        }
        if matches!(task, Some(Task::Restart { .. })) {
            return PostgresState::Starting;
        }
        let phase = self.durable.tenure.map(|t| t.phase);
        match &self.sight {
            None => PostgresState::Starting,
            Some(sight) if sight.in_recovery && phase == Some(Phase::Granted) => PostgresState::Promoting,
            // The probe that saw it in recovery is older than the promotion.
            Some(_) if phase == Some(Phase::Primary) => PostgresState::Primary,
            Some(sight) if sight.in_recovery => PostgresState::Standby,
            Some(_) if phase.is_none() && self.is_unleased() => PostgresState::Unleased,
            Some(_) => PostgresState::Promoting,
        }
    }

    fn stopped_state(&self, task: Option<&Task>) -> PostgresState {
        if matches!(task, Some(Task::Start(_) | Task::Restart { .. })) {
            return PostgresState::Starting;
        }
        // In a pause it matters whether it crashed or was stopped: that is being read.
        let unread = self.paused.is_some() && self.left && self.disk.is_none();
        if self.durable.tenure.is_some_and(|t| t.phase == Phase::Crashed) && !unread {
            return PostgresState::Crashed;
        }
        match &self.disk {
            _ if matches!(task, Some(Task::Stop { .. })) => PostgresState::Stopping,
            None => PostgresState::Stopping,
            Some(Disk::NoData) => PostgresState::NoData,
            Some(Disk::Present(_)) => PostgresState::Stopped,
            Some(Disk::Damaged(_) | Disk::Unusable(_)) => PostgresState::Failed,
        }
    }
}

/// Read access for the status and the shell.
impl Core {
    /// What survives a restart.
    pub fn durable(&self) -> &Durable {
        &self.durable
    }

    /// The lease.
    pub fn lease(&self) -> &LeaseSight {
        &self.lease
    }

    /// The last probe of the running postmaster.
    pub fn sight(&self) -> Option<&Sight> {
        self.sight.as_ref()
    }

    /// The timeline on which a task to follow was decided, and off which it must not have gone meanwhile; `None`: it may.
    pub fn decided_on(&self) -> Option<TimelineId> {
        self.sight.as_ref().filter(|_| !self.follows_on).map(|sight| sight.wal_end.timeline)
    }

    /// What lies in the data directory of a stopped instance.
    pub fn disk(&self) -> Option<&Disk> {
        self.disk.as_ref()
    }

    /// The process tree.
    pub fn tree(&self) -> Tree {
        self.tree
    }

    /// Which postmaster the news are of.
    pub fn life(&self) -> u64 {
        self.life
    }

    /// Where WAL ends, and whether that is proven.
    pub fn wal_end(&self) -> (WalPosition, bool) {
        (self.wal_end, self.wal_end_known)
    }

    /// Ancestry of the timeline of the end of WAL.
    pub fn history(&self) -> &TimelineHistory {
        &self.history
    }

    /// The running task as shown.
    pub fn work(&self) -> Option<&Work> {
        self.work.as_ref().map(|w| &w.shown)
    }

    /// How the last order ended.
    pub fn last_order(&self) -> Option<&OrderResult> {
        self.last_order.as_ref()
    }

    /// The last Checkpoint order that was carried out.
    pub fn checkpoints_done(&self) -> u64 {
        self.checkpoints_done
    }

    /// PostgreSQL refuses every start from this directory ("requested timeline does not contain minimum recovery
    /// point"): it has to reach a point past the end that its own history knows of that timeline. A rewind leaves that
    /// whose source was promoted on the way and had not made its first checkpoint. Only another copy helps.
    pub fn is_out_of_reach(&self) -> bool {
        let Some(Disk::Present(facts)) = &self.disk else { return false };
        let past_the_end = |point: WalPosition| self.history.end_of(point.timeline).is_some_and(|end| point.lsn > end);
        self.tree == Tree::Empty && self.wal_end_known && facts.required.is_some_and(past_the_end)
    }

    /// Why it isn't healthy.
    pub fn problem(&self) -> Option<String> {
        match &self.disk {
            Some(Disk::Damaged(why) | Disk::Unusable(why)) => Some(why.clone()),
            Some(Disk::Present(_)) if self.is_out_of_reach() => Some(OUT_OF_REACH.to_owned()),
            _ => {
                let named = || self.stuck.said().map(str::to_owned).or_else(|| self.problem.clone());
                self.storage_problem().or_else(named)
            }
        }
    }

    /// Something of a primary may run here, or is about to: what protects beyond the guard has to stand.
    pub fn needs_layers(&self) -> bool {
        let task = self.work.as_ref().map(|w| &w.task);
        let begins = matches!(task, Some(Task::Promote(_) | Task::Restart { .. }));
        let unproven = self.durable.ended > self.durable.fenced;
        let fencing = self.fencing_since.is_some();
        begins || (self.tree != Tree::Empty && (self.durable.tenure.is_some() || fencing || unproven))
    }

    /// Whether clients are to be led here: to a primary that is open. One that is being stopped under its lease keeps
    /// them, so that it can end their sessions itself. One that did not wait for the end of the last lease waits here: until
    /// then somebody else may lead them to itself.
    pub fn serving(&self, now: Now) -> Serving {
        let stops = matches!(self.work.as_ref().map(|w| &w.task), Some(Task::Stop { .. }));
        let primary = self.durable.tenure.is_some_and(|t| t.phase == Phase::Primary);
        match self.state() {
            PostgresState::Primary if self.another_may_lead(now) => Serving::Shut,
            PostgresState::Primary => Serving::Open,
            _ if stops && primary && self.tree != Tree::Empty && self.fencing_since.is_none() => Serving::Keep,
            _ => Serving::Shut,
        }
    }

    /// Whether clients that only read are to be led here, where this host may have their address: to a standby that is open, or to a
    /// primary where nobody else is fit. One that is being stopped keeps them, as above.
    pub fn serving_readers(&self, now: Now) -> Serving {
        let in_place = self.settings.vip_standby_fallback == ReaderFallback::Primary;
        match self.state() {
            PostgresState::Standby => Serving::Open,
            PostgresState::Primary if in_place => self.serving(now),
            PostgresState::Stopping if self.tree != Tree::Empty && self.fencing_since.is_none() => Serving::Keep,
            _ => Serving::Shut,
        }
    }

    fn another_may_lead(&self, now: Now) -> bool {
        let hold = self.limits.hold + self.limits.hold / 100;
        self.settings.failover_wait == FailoverWait::Promise && now.moment.since(self.granted) < hold
    }

    /// How many trees of processes were killed since the agent began.
    pub fn killed(&self) -> u64 {
        self.killed
    }

    /// A fence is under way.
    pub fn is_fencing(&self) -> bool {
        self.fencing_since.is_some()
    }

    /// Whom this standby was told to follow; after a restart of the agent whom its WAL receiver follows.
    pub fn upstream(&self) -> Option<&MemberId> {
        let sight = self.sight.as_ref().filter(|s| s.in_recovery)?;
        self.follows.as_ref().or(sight.upstream.as_ref())
    }

    /// Another member is to be preferred as primary, for this one crashed out of the lock not long ago.
    pub fn is_unsteady(&self, now: Now) -> bool {
        self.crashes.unsteady(self.settings.crash_window, now.moment)
    }

    /// PostgreSQL crashed here less than `failover_calm` ago.
    pub fn has_crashed_lately(&self, now: Now) -> bool {
        self.crashes.lately(self.settings.failover_calm, now.moment)
    }

    /// What is known of the primary's WAL here, and how old this copy of it is.
    pub fn heard_of_primary(&self, now: Now) -> HeardOfPrimary {
        let end = self.freshness.latest().unwrap_or_default();
        let complete = self.freshness.complete_at(self.wal_end.lsn).filter(|_| self.wal_end_known);
        let replayed = self.sight.as_ref().filter(|s| s.in_recovery).map(|s| s.replay_lsn);
        let replayed = replayed.and_then(|lsn| self.freshness.complete_at(lsn));
        // A host that was suspended has missed that time too.
        let ago = |at| u64::try_from(Moment(now.clocks.boot).since(at).as_millis()).unwrap_or(u64::MAX);
        HeardOfPrimary { end, complete_ago_ms: complete.map(ago), replayed_ago_ms: replayed.map(ago) }
    }

    /// How much room there is, by the settings in force; `None` until that was looked at.
    pub fn room(&self) -> Option<RoomView> {
        self.room.view(&self.settings)
    }

    /// What keeps WAL from being removed.
    pub fn kept_wal(&self, now: Now) -> KeptWal {
        self.room.kept_wal(now.moment)
    }

    /// Whose slots are given up, for there is too little room for WAL.
    pub fn gives_up_slots(&self) -> Option<SlotsYield> {
        self.room.gives_up(&self.settings)
    }

    /// How often to probe: news are awaited while something starts or stops, and while the standbys of a primary that was
    /// restarted come back.
    pub fn probe_interval(&self, now: Now) -> Option<Duration> {
        let Tree::Running { .. } = self.tree else { return None };
        let left = |sight: &Sight| {
            let lately = self.followed.is_some_and(|at| now.moment.since(at) < COME_BACK);
            !sight.in_recovery && lately && sight.standbys.iter().all(|s| s.state != "streaming")
        };
        let settled = self.work.is_none() && self.sight.as_ref().is_some_and(|sight| !left(sight));
        Some(if settled { Duration::from_secs(1) } else { Duration::from_millis(100) })
    }
}
