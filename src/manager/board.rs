//! What this manager knows of every host. In memory only: a new leader builds
//! its own from the reports that reach it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::watch;

use super::copies::Copying;
use crate::{
    config::Config,
    domain::{
        ClusterId, Epoch, Format, GroupNode, MemberId, Moment, Observation, Promise, Timings,
        membership::GroupView,
        observation::{AgentView, Notice},
    },
    guard::sys::two_clocks,
    policy::{Founding, Plan, Seal, Since, Situation, reader, restart_order},
    state::{ClusterState, Lock, Member, Operation, OperationPhase, Reader},
};

/// The board of one manager. Cheap to clone.
#[derive(Clone)]
pub struct Board {
    inner: Arc<Mutex<Facts>>,
    changed: Arc<watch::Sender<u64>>,
    start: Duration,
}

/// The facts on the board: what each method does depends on its arguments alone, so that a
/// simulation keeps the same board.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The last heard of each host.
    pub seen: BTreeMap<MemberId, Observation>,
    /// The last word of each agent about the end of an epoch.
    pub notices: BTreeMap<MemberId, Notice>,
    /// Seals collected for `sealing`.
    pub seals: BTreeMap<MemberId, Seal>,
    /// The epoch the seals are for.
    pub sealing: Epoch,
    /// The Raft group as this manager's log and, while it leads, the others' answers show it.
    pub group: GroupView,
    /// The last plan of this manager as leader.
    pub plan: Plan,
    /// When things began.
    pub since: Since,
    /// The leader said that the primary of this epoch can be copied from.
    pub primary_ready: Option<Epoch>,
    /// What the leader said of copies.
    pub copying: Copying,
    /// Standbys as the leader sees them: streaming, lag in bytes.
    pub standbys: BTreeMap<MemberId, (bool, u64)>,
    founding: Founding,
    lock_seen: Option<Lock>,
    reader_seen: Option<Reader>,
    operation_seen: Seen,
    rolling_seen: SeenRolling,
    may_found: bool,
}

/// What the deadline of a rolling restart between two steps is counted from. Restarts that rule 438 begins again and again are
/// not, for it would have no end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct SeenRolling {
    rolling: Option<u64>,
    operation: Option<u64>,
    epoch: Epoch,
    paused: bool,
}

impl SeenRolling {
    fn of(state: &ClusterState) -> Self {
        let counts = |o: &&Operation| o.because.0 != restart_order::RULE;
        Self {
            rolling: state.agenda.rolling.as_ref().map(|r| r.id),
            operation: state.operation.as_ref().filter(counts).map(|o| o.id),
            epoch: state.epoch,
            paused: state.paused.is_some(),
        }
    }
}

/// What a deadline of an operation, or of what follows one, is counted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Seen {
    operation: Option<(u64, OperationPhase)>,
    rolling: Option<u64>,
    paused: bool,
}

/// Nothing is decided by it but when the time of something scheduled has come.
pub fn wall_clock_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Facts {
    /// Nothing heard yet; `founding` is what a cluster not yet founded is founded with.
    pub fn new(founding: Founding) -> Self {
        let node =
            |(id, m): &(MemberId, Member)| (m.node, GroupNode { member: id.clone(), address: m.manager.clone() });
        Self {
            // Until the log has been looked at: the first entry, with the members that found the cluster.
            group: GroupView::settled(1, founding.members.iter().map(node)),
            seen: BTreeMap::new(),
            notices: BTreeMap::new(),
            seals: BTreeMap::new(),
            sealing: Epoch(0),
            plan: Plan::default(),
            since: Since::default(),
            primary_ready: None,
            copying: Copying::default(),
            standbys: BTreeMap::new(),
            founding,
            lock_seen: None,
            reader_seen: None,
            operation_seen: Seen::default(),
            rolling_seen: SeenRolling::default(),
            may_found: false,
        }
    }

    /// The Raft group is there: if no cluster is founded yet, this manager may found it when it leads.
    pub fn allow_founding(&mut self) {
        self.may_found = true;
    }

    /// What was heard of a host; `None` for the agent keeps its last word.
    pub fn observe(&mut self, member: &MemberId, agent: Option<(AgentView, Duration)>, promise: Promise, at: Moment) {
        let entry = self.seen.entry(member.clone()).or_default();
        entry.at = at;
        entry.promise = promise;
        if let Some((view, age)) = agent {
            let said = Moment(at.0.saturating_sub(age));
            // A late report must not put an older word over a newer one.
            let older = entry.agent.is_some() && said < entry.agent_at;
            if !older {
                entry.agent_at = said;
                entry.agent = Some(view);
            }
        }
    }

    /// What the manager of a host that was just heard of can apply.
    pub fn knows(&mut self, member: &MemberId, format: Format) {
        self.seen.entry(member.clone()).or_default().format = format;
    }

    /// What a sync of the Raft log takes on a host.
    pub fn disk(&mut self, member: &MemberId, disk: Option<Duration>) {
        self.seen.entry(member.clone()).or_default().disk = disk;
    }

    /// An agent's word about the end of an epoch. A later epoch, or the word that
    /// the tree is empty, outranks what stands there.
    pub fn notice(&mut self, notice: Notice) {
        let rank = |n: &Notice| (n.epoch, n.fenced);
        let newer = self.notices.get(&notice.member).is_none_or(|old| rank(&notice) > rank(old));
        if newer {
            self.notices.insert(notice.member.clone(), notice);
        }
    }

    /// Starts the leader's clocks over: this manager has just begun to lead. Whoever heard of it before it did itself may
    /// have reported already, and does so again after `report` only.
    pub fn lead(&mut self, me: &MemberId, now: Moment, report: Duration) {
        self.since.lead = now;
        self.since.lock = now;
        (self.since.operation, self.since.rolling) = (now, now);
        self.since.timings = None;
        (self.since.reader, self.since.reader_unfit) = (now, None);
        self.lock_seen = None;
        self.reader_seen = None;
        (self.operation_seen, self.rolling_seen) = (Seen::default(), SeenRolling::default());
        self.seals.clear();
        // What others said in an earlier term of this leader may be long over.
        self.seen.retain(|member, seen| member == me || now.since(seen.at) <= report);
    }

    /// Notes when the lock and the operation came into their present phase.
    pub fn keep_time(&mut self, state: &ClusterState, now: Moment) {
        if self.lock_seen.as_ref() != Some(&state.lock) {
            self.lock_seen = Some(state.lock.clone());
            self.since.lock = now;
        }
        if self.reader_seen.as_ref() != Some(&state.reader) {
            self.reader_seen = Some(state.reader.clone());
            (self.since.reader, self.since.reader_unfit) = (now, None);
        }
        let operation = Seen {
            operation: state.operation.as_ref().map(|o| (o.id, o.phase)),
            rolling: state.agenda.rolling.as_ref().map(|r| r.id),
            paused: state.paused.is_some(),
        };
        if self.operation_seen != operation {
            self.operation_seen = operation;
            self.since.operation = now;
        }
        let rolling = SeenRolling::of(state);
        if self.rolling_seen != rolling {
            self.rolling_seen = rolling;
            self.since.rolling = now;
        }
        self.since.hear_of_work(state, &self.seen);
        let newest = state.timings.newest();
        let holder = state.holder().and_then(|(_, holder)| self.seen.get(holder)?.agent.as_ref());
        let counts_by_it = holder.is_some_and(|a| a.lease.held && a.lease.timings == newest);
        self.since.timings = match self.since.timings.filter(|(id, _)| *id == newest && counts_by_it) {
            None if counts_by_it => Some((newest, now)),
            known => known,
        };
        if self.sealing != state.epoch {
            self.sealing = state.epoch;
            self.seals.clear();
        }
    }

    /// Notes since when whoever has the address for standbys does not do well.
    pub fn mind_reader(&mut self, state: &ClusterState, timings: &Timings, now: Moment) {
        let unfit = reader::is_unfit(&self.situation(state, timings, now));
        self.since.reader_unfit = unfit.then(|| self.since.reader_unfit.unwrap_or(now));
    }

    /// One voter's answer to the fenced `epoch`, unless the epoch has changed meanwhile.
    pub fn seal(
        &mut self,
        member: &MemberId,
        epoch: Epoch,
        (promise, agent): (Promise, Option<AgentView>),
        now: Moment,
    ) {
        if self.sealing == epoch {
            // The wait for more WAL counts from the first answer, not from its repetitions.
            let at = self.seals.get(member).map_or(now, |first| first.at);
            self.seals.insert(member.clone(), Seal { promise, at, told_at: now, agent });
        }
    }

    /// The voter has been silent too long. Its seal is durable and counts on; what its
    /// agent said is no longer a promise that it is there.
    pub fn seal_silent(&mut self, member: &MemberId, epoch: Epoch) {
        let current = self.sealing == epoch;
        if let Some(seal) = self.seals.get_mut(member).filter(|_| current) {
            seal.agent = None;
        }
    }

    /// The leader's last word about the primary and the standbys.
    pub fn take_word(&mut self, primary_ready: Option<Epoch>, standbys: BTreeMap<MemberId, (bool, u64)>) {
        self.primary_ready = primary_ready;
        self.standbys = standbys;
    }

    /// The whole situation.
    pub fn situation<'a>(&'a self, state: &'a ClusterState, timings: &'a Timings, now: Moment) -> Situation<'a> {
        Situation {
            state,
            seen: &self.seen,
            notices: &self.notices,
            seals: &self.seals,
            group: &self.group,
            founding: self.may_found.then_some(&self.founding),
            timings,
            since: self.since,
            now,
            wall_ms: 0,
        }
    }
}

impl Board {
    /// An empty board.
    pub fn new(config: &Config) -> Self {
        let members: Vec<(MemberId, Member)> = config
            .cluster
            .members
            .iter()
            .map(|m| {
                let (manager, postgres, agent) = (m.manager(), m.postgres(), m.agent());
                (m.id.clone(), Member { node: m.node, manager, postgres, agent })
            })
            .collect();
        let initializer = config.cluster.members.iter().find(|m| !m.witness).map(|m| m.id.clone());
        let founding = Founding {
            cluster_id: ClusterId(uuid::Uuid::new_v4().to_string()),
            name: config.cluster.name.clone(),
            initializer: initializer.unwrap_or_else(|| members[0].0.clone()),
            members,
        };
        let inner = Arc::new(Mutex::new(Facts::new(founding)));
        Self { inner, changed: Arc::new(watch::channel(0).0), start: two_clocks().boot }
    }

    /// Now, on this process's clock.
    pub fn now(&self) -> Moment {
        Moment(two_clocks().boot.saturating_sub(self.start))
    }

    /// Ticks with every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Facts> {
        // A poisoned board is still the newest one there is.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the facts and wakes whoever waits for a change.
    pub fn update<T>(&self, change: impl FnOnce(&mut Facts) -> T) -> T {
        let out = change(&mut self.lock());
        self.changed.send_modify(|n| *n += 1);
        out
    }

    /// Puts up the leader's last plan; it wakes nobody.
    pub fn keep_plan(&self, plan: Plan) {
        self.lock().plan = plan;
    }

    /// Puts up the Raft group; it wakes nobody, for who asks has just looked.
    pub fn keep_group(&self, group: GroupView) {
        self.lock().group = group;
    }

    /// Reads the facts.
    pub fn read<T>(&self, look: impl FnOnce(&Facts) -> T) -> T {
        look(&self.lock())
    }

    /// See [`Facts::allow_founding`].
    pub fn allow_founding(&self) {
        self.update(Facts::allow_founding);
    }

    /// Puts up what was heard of a host, and what its manager can apply.
    pub fn observe(
        &self,
        member: &MemberId,
        agent: Option<(AgentView, Duration)>,
        promise: Promise,
        (format, disk): (Format, Option<Duration>),
    ) {
        let at = self.now();
        self.update(|f| {
            f.observe(member, agent, promise, at);
            f.knows(member, format);
            f.disk(member, disk);
        });
    }

    /// Puts up an agent's word about the end of an epoch.
    pub fn notice(&self, notice: Notice) {
        self.update(|f| f.notice(notice));
    }

    /// See [`Facts::lead`].
    pub fn lead(&self, me: &MemberId, report: Duration) {
        let now = self.now();
        self.update(|f| f.lead(me, now, report));
    }

    /// This manager did not get rid of the leadership: as if it had just got it.
    pub fn stays_leader(&self) {
        let now = self.now();
        self.update(|f| f.since.lead = now);
    }

    /// See [`Facts::keep_time`] and [`Facts::mind_reader`]. Only the leader's loop calls it, with states that never go back.
    pub fn keep_time(&self, state: &ClusterState, timings: &Timings) {
        let now = self.now();
        let mut facts = self.lock();
        facts.keep_time(state, now);
        facts.mind_reader(state, timings, now);
    }

    /// Looks at the whole situation.
    pub fn situation<T>(&self, state: &ClusterState, timings: &Timings, look: impl FnOnce(&Situation<'_>) -> T) -> T {
        let now = self.now();
        let facts = self.lock();
        look(&Situation { wall_ms: wall_clock_ms(), ..facts.situation(state, timings, now) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        policy::testing,
        state::{OperationKind, PrimaryTurn, Request, Rolling, RuleId},
    };

    #[test]
    fn restarts_of_one_that_replays_nothing_give_a_rolling_restart_no_more_time() {
        let mut state = testing::state("granted a open 2");
        let (members, primary, done) = ([testing::id("b")].into(), PrimaryTurn::Left, Vec::new());
        let asked = Request::default();
        state.agenda.rolling = Some(Rolling { id: 4, members, done, primary, asked, cancelled: None });
        let founding = Founding {
            cluster_id: ClusterId("x".into()),
            name: "x".into(),
            initializer: testing::id("a"),
            members: vec![],
        };
        let mut facts = Facts::new(founding);
        let at = Moment::from_millis;
        facts.keep_time(&state, at(1_000));
        let operation = |id, because| {
            let kind = OperationKind::Restart;
            let of = testing::state("granted a open 2; reinit c copy").operation.unwrap();
            Some(Operation { id, kind, because: RuleId(because), ..of })
        };
        state.operation = operation(5, restart_order::RULE);
        facts.keep_time(&state, at(2_000));
        state.operation = None;
        facts.keep_time(&state, at(3_000));
        assert_eq!((facts.since.rolling, facts.since.operation), (at(1_000), at(3_000)));
        state.operation = operation(6, 436);
        facts.keep_time(&state, at(4_000));
        assert_eq!(facts.since.rolling, at(4_000), "its own step");
        state.operation = None;
        facts.keep_time(&state, at(5_000));
        state.epoch = Epoch(2);
        facts.keep_time(&state, at(6_000));
        assert_eq!(facts.since.rolling, at(6_000), "a failover");
    }
}
