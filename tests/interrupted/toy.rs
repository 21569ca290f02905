//! A toy cluster for the pure rooms: hosts with a PostgreSQL made of two numbers,
//! a lease acked by acceptors, a log that is a vector. Only what decisions see is modelled.

use std::collections::{BTreeMap, BTreeSet};

use matriarch::{
    domain::{
        ClusterId, Epoch, Format, GroupNode, Lsn, MemberId, Moment, NodeId, Observation, PostgresState, Profile,
        Promise, TimelineHistory, TimelineId, TimelineSwitch, Timings, WalPosition,
        membership::GroupView,
        observation::{AgentView, FenceView, LeaseReach, LeaseView, Notice, OrderResult, StandbyProgress},
    },
    policy::{self, Founding, Seal, Since, Situation},
    reconcile::{
        Action, Host, next_action,
        rejoin::{Rejoin, rejoin},
    },
    state::{Applied, ClusterState, Command, Kind, Lock, Member, OperationKind, OperationPhase},
};

/// One step of virtual time.
pub const TICK_MS: u64 = 100;
const RENEW_TICKS: u64 = 3;

/// splitmix64: small, and the same on every machine for ever.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % sides
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.roll(n) == 0
    }
}

/// Work that an agent carries out, and when it ends.
#[derive(Debug, Clone)]
struct Task {
    action: Action,
    until: u64,
    deadline: u64,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    epoch: Epoch,
    /// 0 until a majority acked once.
    deadline: u64,
}

/// One host: a manager with its acceptor, an agent, a PostgreSQL.
pub struct ToyHost {
    pub me: MemberId,
    pub power: bool,
    pub manager: bool,
    pub agent: bool,
    /// Cut off from every other host.
    pub cut: bool,
    pub state: ClusterState,
    applied: usize,
    pub view: AgentView,
    /// The epoch this agent is, or was when it lost power, the holder of. Durable.
    tenure: Option<Epoch>,
    lease: Option<Lease>,
    task: Option<Task>,
    sealed: Epoch,
    promised_until: u64,
    promised_epoch: Epoch,
    renewed: bool,
    heard: BTreeMap<MemberId, Notice>,
}

impl ToyHost {
    pub fn holds(&self, now: u64) -> Option<Epoch> {
        self.lease.filter(|l| now < l.deadline).map(|l| l.epoch)
    }

    pub fn writes(&self, now: u64) -> Option<Epoch> {
        let primary = self.power && self.view.state == PostgresState::Primary;
        self.holds(now).filter(|_| primary)
    }

    fn promise(&self, now: u64) -> Promise {
        Promise {
            sealed: self.sealed,
            epoch: self.promised_epoch,
            lapsed: now >= self.promised_until,
            remaining_ms: self.promised_until.saturating_sub(now),
            highest: WalPosition::default(),
            renewed: self.renewed,
            ..Promise::default()
        }
    }

    /// The tree is dead; the epoch is over for ever on this host.
    fn end_tenure(&mut self, state: PostgresState, clean: bool) {
        self.view.state = state;
        self.view.clean_shutdown = clean;
        self.view.upstream = None;
        self.view.streaming = false;
        self.lease = None;
        self.task = None;
        if let Some(epoch) = self.tenure.take() {
            self.view.ended_epoch = self.view.ended_epoch.max(epoch);
            self.view.fenced_epoch = self.view.fenced_epoch.max(epoch);
        }
    }
}

/// What happened, for the invariants.
#[derive(Default)]
pub struct Chronicle {
    /// Timeline → (epoch, member, parent position) of the promotions that created it.
    pub promotions: BTreeMap<TimelineId, BTreeSet<(Epoch, MemberId, WalPosition)>>,
    /// Every committed command in order, with its effect.
    pub log: Vec<(Command, Applied)>,
    /// Grants during which somebody else could still write.
    pub early_grants: Vec<String>,
    /// Switchovers that succeeded on a successor without all the old primary's WAL.
    pub lossy_switchovers: Vec<String>,
}

/// The whole toy.
pub struct Toy {
    pub dice: Dice,
    pub now: u64,
    pub hosts: Vec<ToyHost>,
    pub leader: Option<usize>,
    pub state: ClusterState,
    pub told: Chronicle,
    /// The leader is replaced right after this many more commands.
    pub replace_after: Option<usize>,
    /// Faults in the small: slow hosts, proposals of unknown fate, failing orders.
    pub rough: bool,
    seen: BTreeMap<MemberId, Observation>,
    seals: BTreeMap<MemberId, Seal>,
    since: Since,
    lock_seen: Option<Lock>,
    operation_seen: Option<(u64, OperationPhase)>,
    /// What every manager can apply.
    pub format: Format,
    in_flight: Vec<(u64, Command)>,
    founding: Founding,
    group: GroupView,
    timings: Timings,
    before_stop: Option<WalPosition>,
}

fn blank(me: &MemberId) -> AgentView {
    AgentView {
        member: me.clone(),
        session: 1,
        state: PostgresState::NoData,
        server_version: 150_000,
        system_identifier: None,
        wal_end: WalPosition::default(),
        wal_end_known: false,
        replay_lsn: Lsn(0),
        streaming: false,
        streaming_ms: 60_000,
        waits_on_purpose: false,
        upstream: None,
        heard: Default::default(),
        history: TimelineHistory::default(),
        lease: LeaseView::default(),
        reach: LeaseReach::default(),
        accepted_epoch: Epoch(0),
        ended_epoch: Epoch(0),
        fenced_epoch: Epoch(0),
        was_primary: false,
        clean_shutdown: false,
        crashed_standby: false,
        work: None,
        last_order: None,
        standbys: Vec::new(),
        checkpoint_timeline: TimelineId(1),
        checkpoints_done: 0,
        copied_for: Some(0),
        guard: "guarding".into(),
        problem: None,
        rewind_unfinished: false,
        rewind_failures: 0,
        clone_failures: 0,
        unsteady: false,
        crashed_lately: false,
        gives_wal: false,
        failed_hook: None,
        storage: None,
        never_streamed: false,
        ended_by: matriarch::domain::EndCause::Unknown,
        paused: false,
        stopped_by_hand: false,
        room: None,
        kept_wal: matriarch::domain::KeptWal::default(),
        redo: None,
        fence: FenceView::default(),
        layers: Vec::new(),
        clock: Default::default(),
        failsafe: Default::default(),
        sync: Default::default(),
        severed: false,
        follows_epoch: Epoch(0),
        uncovered: Default::default(),
        lost: Vec::new(),
        cure: Default::default(),
        archive: Default::default(),
        server: Default::default(),
        configuration: Default::default(),
    }
}

impl Toy {
    pub fn new(seed: u64) -> Self {
        let names = ["a", "b", "c"].map(|n| n.parse::<MemberId>().unwrap());
        let members: Vec<(MemberId, Member)> = (1..)
            .zip(&names)
            .map(|(n, id)| {
                let member = Member {
                    node: NodeId(n),
                    manager: format!("{id}:7400"),
                    postgres: format!("{id}:5432"),
                    agent: format!("{id}:7401"),
                    learner: false,
                };
                (id.clone(), member)
            })
            .collect();
        let host = |me: &MemberId| ToyHost {
            me: me.clone(),
            power: true,
            manager: true,
            agent: true,
            cut: false,
            state: ClusterState::default(),
            applied: 0,
            view: blank(me),
            tenure: None,
            lease: None,
            task: None,
            sealed: Epoch(0),
            promised_until: 0,
            promised_epoch: Epoch(0),
            renewed: false,
            heard: BTreeMap::new(),
        };
        Self {
            dice: Dice(seed),
            now: 0,
            hosts: names.iter().map(host).collect(),
            leader: None,
            state: ClusterState::default(),
            told: Chronicle::default(),
            replace_after: None,
            rough: false,
            seen: BTreeMap::new(),
            seals: BTreeMap::new(),
            since: Since::default(),
            lock_seen: None,
            operation_seen: None,
            format: Format::FIRST,
            in_flight: Vec::new(),
            group: GroupView::settled(
                0,
                members.iter().map(|(id, m)| (m.node, GroupNode { member: id.clone(), address: m.manager.clone() })),
            ),
            founding: Founding {
                cluster_id: ClusterId("toy".into()),
                name: "toy".into(),
                members,
                initializer: names[0].clone(),
            },
            timings: Timings::of(Profile::Normal),
            before_stop: None,
        }
    }

    fn moment(&self) -> Moment {
        Moment::from_millis(self.now)
    }

    fn reach(&self, i: usize, j: usize) -> bool {
        let (a, b) = (&self.hosts[i], &self.hosts[j]);
        a.power && b.power && (i == j || !(a.cut || b.cut))
    }

    fn voters_with(&self, i: usize) -> Vec<usize> {
        (0..self.hosts.len()).filter(|&j| self.hosts[j].manager && self.reach(i, j)).collect()
    }

    fn has_majority(&self, i: usize) -> bool {
        self.hosts[i].manager && self.voters_with(i).len() > self.hosts.len() / 2
    }

    pub fn index(&self, member: &MemberId) -> usize {
        self.hosts.iter().position(|h| h.me == *member).unwrap()
    }

    pub fn holder(&self) -> Option<usize> {
        self.state.holder().map(|(_, m)| self.index(m))
    }

    /// One step of everything.
    pub fn tick(&mut self) {
        self.now += TICK_MS;
        self.elect();
        self.renew_leases();
        for i in 0..self.hosts.len() {
            self.run_agent(i);
        }
        self.stream();
        self.report();
        self.seal();
        self.lead();
        self.follow_the_log();
    }

    // ------------------------------------------------------------ Raft, in a few lines

    fn elect(&mut self) {
        if self.leader.is_some_and(|l| self.has_majority(l)) {
            return;
        }
        let able: Vec<usize> = (0..self.hosts.len()).filter(|&i| self.has_majority(i)).collect();
        self.leader = None;
        if !able.is_empty() && (!self.rough || self.dice.one_in(5)) {
            let next = able[self.dice.roll(able.len() as u64) as usize];
            self.begin_to_lead(next);
        }
    }

    /// Another manager leads: its board is empty and its clocks start over.
    pub fn replace_leader(&mut self) {
        let able: Vec<usize> =
            (0..self.hosts.len()).filter(|&i| Some(i) != self.leader && self.has_majority(i)).collect();
        if !able.is_empty() {
            let next = able[self.dice.roll(able.len() as u64) as usize];
            self.begin_to_lead(next);
        }
    }

    fn begin_to_lead(&mut self, next: usize) {
        let now = self.moment();
        self.leader = Some(next);
        self.seen.clear();
        self.seals.clear();
        self.lock_seen = None;
        self.operation_seen = None;
        self.since = Since { start: now, lead: now, lock: now, operation: now, reader: now, ..Since::default() };
    }

    fn follow_the_log(&mut self) {
        for i in 0..self.hosts.len() {
            let late = self.rough && self.dice.one_in(3);
            if late || !self.has_majority(i) {
                continue;
            }
            let host = &mut self.hosts[i];
            for (command, _) in &self.told.log[host.applied..] {
                let before = host.state.epoch;
                host.state.apply(command);
                assert!(host.state.epoch >= before, "epoch_never_goes_back: {before} to {}", host.state.epoch);
            }
            host.applied = self.told.log.len();
            host.sealed = host.sealed.max(host.state.epoch);
        }
    }

    // ------------------------------------------------------------ deciding

    fn keep_time(&mut self) {
        let now = self.moment();
        if self.lock_seen.as_ref() != Some(&self.state.lock) {
            self.lock_seen = Some(self.state.lock.clone());
            self.since.lock = now;
            self.seals.clear();
        }
        let operation = self.state.operation.as_ref().map(|o| (o.id, o.phase));
        if self.operation_seen != operation {
            self.operation_seen = operation;
            self.since.operation = now;
        }
    }

    fn situation<'a>(&'a self, notices: &'a BTreeMap<MemberId, Notice>) -> Situation<'a> {
        Situation {
            state: &self.state,
            seen: &self.seen,
            notices,
            seals: &self.seals,
            group: &self.group,
            founding: Some(&self.founding),
            timings: &self.timings,
            since: self.since,
            now: self.moment(),
            wall_ms: 0,
        }
    }

    /// Why nothing more is done, for messages.
    pub fn holds(&self) -> Vec<String> {
        let none = BTreeMap::new();
        policy::decide(&self.situation(&none), "x").holds.iter().map(ToString::to_string).collect()
    }

    fn lead(&mut self) {
        let due: Vec<Command> = {
            let now = self.now;
            let (due, later) = std::mem::take(&mut self.in_flight).into_iter().partition(|(at, _)| *at <= now);
            self.in_flight = later;
            let due: Vec<(u64, Command)> = due;
            due.into_iter().map(|(_, c)| c).collect()
        };
        for command in due {
            self.commit(command);
        }
        for _ in 0..20 {
            let Some(leader) = self.leader else { return };
            self.keep_time();
            let notices = self.hosts[leader].heard.clone();
            let request = format!("r{}", self.told.log.len());
            let Some(command) = policy::decide(&self.situation(&notices), &request).command else { return };
            if self.rough && self.dice.one_in(8) {
                // Its fate is unknown for a while, to whoever leads then.
                self.in_flight.push((self.now + self.dice.roll(3_000), command));
                return;
            }
            self.commit(command);
        }
        panic!("the leader does not come to rest: {:?}", self.state.lock);
    }

    fn commit(&mut self, command: Command) {
        let before = self.state.clone();
        let applied = self.state.apply(&command);
        if applied == Applied::Changed {
            self.check_grant(&command.kind, &before);
        }
        self.told.log.push((command, applied));
        if let Some(left) = self.replace_after.as_mut() {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.replace_after = None;
                self.replace_leader();
            }
        }
    }

    fn check_grant(&mut self, kind: &Kind, before: &ClusterState) {
        let Kind::Grant { member, floor, .. } = kind else { return };
        for host in self.hosts.iter().filter(|h| h.me != *member && h.power) {
            if let Some(epoch) = host.holds(self.now) {
                self.told.early_grants.push(format!("{member} granted while {} holds epoch {epoch}", host.me));
            }
        }
        let planned = before
            .operation
            .as_ref()
            .filter(|o| o.kind == OperationKind::Switchover && o.phase == OperationPhase::Transfer && o.to == *member);
        if let (Some(_), Some(end)) = (planned, self.before_stop)
            && *floor < end
        {
            self.told.lossy_switchovers.push(format!("{member} granted at {floor}, the old primary ended at {end}"));
        }
    }

    /// An operator asks; `Err` is the refusal.
    pub fn ask(&mut self, kind: OperationKind, to: &str) -> Result<(), String> {
        let to = to.parse().unwrap();
        let none = BTreeMap::new();
        let kind = policy::switchover::admit(&self.situation(&none), kind, Some(&to), true)?;
        let expected = self.state.epoch;
        self.commit(Command {
            request_id: format!("operator {}", self.state.operations),
            expected,
            because: Default::default(),
            kind,
            evidence: None,
        });
        Ok(())
    }

    fn report(&mut self) {
        let Some(leader) = self.leader else { return };
        for i in 0..self.hosts.len() {
            let late = self.rough && self.dice.one_in(4);
            if late || !self.hosts[i].manager || !self.reach(leader, i) {
                continue;
            }
            let (now, moment) = (self.now, self.moment());
            self.hosts[i].view.standbys = self.sent_to(i);
            let host = &self.hosts[i];
            let entry = self.seen.entry(host.me.clone()).or_default();
            entry.at = moment;
            entry.format = self.format;
            entry.promise = host.promise(now);
            if host.agent {
                entry.agent = Some(host.view.clone());
                entry.agent_at = moment;
            }
        }
    }

    /// What `pg_stat_replication` says on `i`.
    fn sent_to(&self, i: usize) -> Vec<StandbyProgress> {
        let follows = |j: &usize| {
            let view = &self.hosts[*j].view;
            self.hosts[*j].power && view.streaming && view.upstream.as_ref() == Some(&self.hosts[i].me)
        };
        let standbys = (0..self.hosts.len()).filter(|j| *j != i && self.reach(i, *j)).filter(follows);
        let progress = |j: usize| StandbyProgress {
            member: self.hosts[j].me.clone(),
            state: "streaming".to_owned(),
            flush_lsn: self.hosts[j].view.wal_end.lsn,
            lag_bytes: 0,
        };
        standbys.map(progress).collect()
    }

    fn seal(&mut self) {
        let (Some(leader), Lock::Fenced { epoch, .. }) = (self.leader, &self.state.lock) else { return };
        let epoch = *epoch;
        for i in self.voters_with(leader) {
            let (now, at) = (self.now, self.moment());
            let host = &mut self.hosts[i];
            host.sealed = host.sealed.max(epoch);
            let agent = host.agent.then(|| host.view.clone());
            let seal = Seal { promise: host.promise(now), at, told_at: at, agent };
            let first = self.seals.get(&host.me).map_or(at, |s| s.at);
            self.seals.insert(host.me.clone(), Seal { at: first, ..seal });
        }
    }

    // ------------------------------------------------------------ lease and guard

    fn renew_leases(&mut self) {
        for i in 0..self.hosts.len() {
            let Some(lease) = self.hosts[i].lease.filter(|_| self.hosts[i].power) else { continue };
            if lease.deadline != 0 && self.now >= lease.deadline {
                self.fence(i);
                continue;
            }
            if !self.hosts[i].agent || !(self.now / TICK_MS).is_multiple_of(RENEW_TICKS) {
                continue;
            }
            let (mut acks, mut refused) = (0, false);
            for j in self.voters_with(i) {
                let acceptor = &mut self.hosts[j];
                if acceptor.sealed > lease.epoch {
                    refused = true;
                    continue;
                }
                acceptor.sealed = lease.epoch;
                acceptor.promised_epoch = lease.epoch;
                acceptor.renewed = true;
                acceptor.promised_until = self.now + self.timings.grant.as_millis() as u64;
                acks += 1;
            }
            if refused {
                self.fence(i);
            } else if acks > self.hosts.len() / 2 {
                let deadline = self.now + self.timings.hold.as_millis() as u64;
                self.hosts[i].lease = Some(Lease { deadline, ..lease });
            }
        }
    }

    /// The guard kills the tree; the agent, if it lives, says so to every manager it reaches.
    fn fence(&mut self, i: usize) {
        let state = match self.hosts[i].view.state {
            PostgresState::Standby => PostgresState::Standby,
            _ => PostgresState::Stopped,
        };
        self.end_epoch(i, state, false);
    }

    fn end_epoch(&mut self, i: usize, state: PostgresState, clean: bool) {
        let Some(epoch) = self.hosts[i].tenure else { return };
        self.hosts[i].end_tenure(state, clean);
        let view = &self.hosts[i].view;
        let notice = Notice {
            member: view.member.clone(),
            epoch,
            fenced: true,
            end: view.wal_end,
            clean,
            cause: matriarch::domain::EndCause::Unknown,
        };
        if self.hosts[i].agent {
            for j in self.voters_with(i) {
                if !self.rough || !self.dice.one_in(3) {
                    self.hosts[j].heard.insert(notice.member.clone(), notice.clone());
                }
            }
        }
    }

    // ------------------------------------------------------------ agent and PostgreSQL

    fn primary_ready(&self) -> bool {
        self.holder().is_some_and(|h| self.hosts[h].power && self.hosts[h].view.state == PostgresState::Primary)
    }

    fn run_agent(&mut self, i: usize) {
        if !self.hosts[i].power || !self.hosts[i].agent {
            return;
        }
        let now = self.now;
        let host = &mut self.hosts[i];
        let held = host.holds(now).is_some();
        let remaining_ms = host.lease.map_or(0, |l| l.deadline.saturating_sub(now));
        host.view.lease =
            LeaseView { epoch: host.lease.map_or(Epoch(0), |l| l.epoch), held, remaining_ms, ..LeaseView::default() };
        if let Some(task) = host.task.clone() {
            if now >= task.until {
                self.finish(i, &task);
            }
            return;
        }
        if host.writes(now).is_some() {
            let written = self.dice.roll(60);
            self.hosts[i].view.wal_end.lsn.0 += written;
        }
        if !self.hosts[i].manager {
            return;
        }
        let ready = self.primary_ready();
        let host = &self.hosts[i];
        let next = next_action(&Host {
            state: &host.state,
            me: &host.me,
            agent: &host.view,
            primary_ready: ready,
            may_copy: true,
            copy_from: None,
        });
        let Some(next) = next.filter(|n| n.epoch >= host.view.accepted_epoch) else { return };
        self.begin(i, next.epoch, next.action);
    }

    fn begin(&mut self, i: usize, epoch: Epoch, action: Action) {
        let long = if self.rough { self.dice.roll(10) * TICK_MS } else { TICK_MS };
        let now = self.now;
        let limit = match action {
            Action::RestartInPlace { .. } => self.timings.primary_start,
            _ => self.timings.promote,
        };
        let deadline = now + limit.as_millis() as u64;
        let host = &mut self.hosts[i];
        host.view.accepted_epoch = epoch;
        let state = match &action {
            Action::Initdb | Action::Rewind { .. } | Action::Clone { .. } | Action::Reinit { .. } => {
                if matches!(action, Action::Rewind { .. }) {
                    host.view.rewind_unfinished = true;
                    host.view.wal_end_known = false;
                }
                host.view.upstream = None;
                host.view.streaming = false;
                PostgresState::Busy
            }
            Action::StartStandby { upstream } => {
                host.view.upstream = upstream.as_ref().map(|u| u.member.clone());
                PostgresState::Starting
            }
            Action::Promote { floor, .. } => {
                if host.view.ended_epoch >= epoch || host.view.wal_end < *floor {
                    return;
                }
                if host.lease.is_none() {
                    host.tenure = Some(epoch);
                    host.lease = Some(Lease { epoch, deadline: 0 });
                }
                PostgresState::Standby
            }
            Action::RestartInPlace { .. } => PostgresState::Starting,
            Action::Stop { keep_lease: true, .. } => PostgresState::Stopping,
            Action::Stop { keep_lease: false, .. } if host.view.state == PostgresState::Standby => {
                (host.view.upstream, host.view.streaming) = (None, false);
                PostgresState::Stopping
            }
            Action::Stop { keep_lease: false, .. } => {
                let clean = host.view.clean_shutdown && host.view.state == PostgresState::Stopped;
                self.end_epoch(i, PostgresState::Stopped, clean);
                return;
            }
            Action::EndClone => return,
            Action::Checkpoint { operation } => {
                host.view.checkpoints_done = *operation;
                return;
            }
        };
        host.view.state = state;
        host.task = Some(Task { action, until: now + long, deadline });
    }

    fn finish(&mut self, i: usize, task: &Task) {
        let fails = self.rough && self.dice.one_in(12);
        let (now, holds) = (self.now, self.hosts[i].holds(self.now));
        match &task.action {
            Action::Initdb => {
                self.settle(i, PostgresState::Stopped, Some((at(1, 0x100), TimelineHistory::root(TimelineId(1)))))
            }
            Action::StartStandby { .. } => self.settle(i, PostgresState::Standby, None),
            Action::Promote { timeline, .. } => match holds {
                _ if fails || now > task.deadline => self.give_up(i, "promote"),
                None => {}
                Some(epoch) => self.leave_recovery(i, epoch, *timeline),
            },
            Action::RestartInPlace { .. } => match holds {
                Some(_) if !fails && now <= task.deadline => self.settle(i, PostgresState::Primary, None),
                Some(_) | None => self.give_up(i, "restart"),
            },
            Action::Stop { keep_lease: false, .. } => self.settle(i, PostgresState::Stopped, None),
            Action::Stop { .. } => self.stopped_cleanly(i),
            Action::Rewind { source } => self.copied(i, &source.member, fails, true),
            Action::Clone { source } => self.copied(i, &source.member, fails, false),
            Action::Reinit { operation, source, .. } => {
                self.copied(i, &source.member, fails, false);
                let done = self.hosts[i].view.state == PostgresState::Stopped;
                self.hosts[i].view.copied_for = Some(if done { *operation } else { 0 });
                let error = (!done).then(|| "it failed".to_owned());
                self.hosts[i].view.last_order =
                    Some(OrderResult { order: *operation, kind: "clone".to_owned(), error });
            }
            Action::Checkpoint { .. } | Action::EndClone => {}
        }
    }

    fn settle(&mut self, i: usize, state: PostgresState, data: Option<(WalPosition, TimelineHistory)>) {
        let host = &mut self.hosts[i];
        host.task = None;
        host.view.state = state;
        host.view.clean_shutdown = false;
        if let Some((end, history)) = data {
            host.view.system_identifier = Some(7);
            host.view.wal_end = end;
            host.view.wal_end_known = true;
            host.view.history = history;
        }
    }

    fn leave_recovery(&mut self, i: usize, epoch: Epoch, timeline: TimelineId) {
        let host = &self.hosts[i];
        let from = host.view.wal_end;
        let mut history = host.view.history.clone();
        history.switches.push(TimelineSwitch { timeline: from.timeline, end: from.lsn });
        history.timeline = timeline;
        self.told.promotions.entry(timeline).or_default().insert((epoch, host.me.clone(), from));
        let end = WalPosition { timeline, lsn: Lsn(from.lsn.0 + 0x10) };
        self.settle(i, PostgresState::Primary, Some((end, history)));
        self.hosts[i].view.checkpoint_timeline = timeline;
        self.hosts[i].view.upstream = None;
        if self.rough && self.dice.one_in(6) {
            // The worst moment: it has promoted, and nobody was told.
            self.power_off(i);
        }
    }

    /// An order failed for good: the agent ends its epoch by itself.
    fn give_up(&mut self, i: usize, kind: &str) {
        let order = self.now;
        self.hosts[i].view.last_order =
            Some(OrderResult { order, kind: kind.to_owned(), error: Some("it failed".to_owned()) });
        self.fence(i);
    }

    fn stopped_cleanly(&mut self, i: usize) {
        self.hosts[i].task = None;
        let end = &mut self.hosts[i].view.wal_end;
        end.lsn.0 += 0x70;
        let end = *end;
        self.before_stop = Some(end);
        for j in 0..self.hosts.len() {
            let served =
                self.hosts[j].view.streaming && self.reach(i, j) && self.hosts[j].view.wal_end.timeline == end.timeline;
            let from_here = self.hosts[j].view.upstream.as_ref() == Some(&self.hosts[i].me);
            if served && from_here && (!self.rough || !self.dice.one_in(6)) {
                self.hosts[j].view.wal_end = end;
            }
        }
        self.hosts[i].view.state = PostgresState::Stopped;
        self.hosts[i].view.clean_shutdown = true;
    }

    fn copied(&mut self, i: usize, source: &MemberId, fails: bool, rewind: bool) {
        let from = self.index(source);
        let served = self.reach(i, from) && self.hosts[from].view.state == PostgresState::Primary;
        if fails || !served {
            let view = &mut self.hosts[i].view;
            if rewind {
                view.rewind_failures += 1;
                view.state = PostgresState::Stopped;
            } else {
                view.state = PostgresState::NoData;
                view.system_identifier = None;
            }
            self.hosts[i].task = None;
            return;
        }
        let copy = (self.hosts[from].view.wal_end, self.hosts[from].view.history.clone());
        self.settle(i, PostgresState::Stopped, Some(copy));
        self.hosts[i].view.rewind_unfinished = false;
        self.hosts[i].view.rewind_failures = 0;
    }

    fn stream(&mut self) {
        for i in 0..self.hosts.len() {
            if !self.hosts[i].power || self.hosts[i].view.state != PostgresState::Standby {
                continue;
            }
            let Some(up) = self.hosts[i].view.upstream.clone().map(|u| self.index(&u)) else { continue };
            let serves = matches!(self.hosts[up].view.state, PostgresState::Primary | PostgresState::Stopping);
            let (ours, theirs) = (&self.hosts[i].view, &self.hosts[up].view);
            let joins = rejoin(&ours.history, ours.wal_end, &theirs.history) == Rejoin::Follow;
            let streaming = self.reach(i, up) && serves && joins;
            self.hosts[i].view.streaming = streaming;
            if !streaming || (self.rough && self.dice.one_in(3)) {
                continue;
            }
            let behind = if self.rough { self.dice.roll(80) } else { 0 };
            let (end, history) = (self.hosts[up].view.wal_end, self.hosts[up].view.history.clone());
            let began = history.switches.last().map_or(Lsn(0), |s| s.end);
            let own = self.hosts[i].view.wal_end;
            let least = if own.timeline == end.timeline { own.lsn } else { began };
            let lsn = Lsn(end.lsn.0.saturating_sub(behind)).max(least);
            self.hosts[i].view.wal_end = WalPosition { timeline: end.timeline, lsn };
            self.hosts[i].view.history = history;
        }
    }

    // ------------------------------------------------------------ faults

    pub fn power_off(&mut self, i: usize) {
        self.hosts[i].power = false;
    }

    pub fn power_on(&mut self, i: usize) {
        let quarantine = self.now + self.timings.grant.as_millis() as u64;
        let host = &mut self.hosts[i];
        host.power = true;
        let was = host.view.state;
        let copying = matches!(host.task.as_ref().map(|t| &t.action), Some(Action::Clone { .. } | Action::Initdb));
        host.end_tenure(PostgresState::Stopped, false);
        if copying || was == PostgresState::NoData {
            host.view.state = PostgresState::NoData;
            host.view.system_identifier = None;
        }
        host.view.session += 1;
        host.view.checkpoints_done = 0;
        host.view.lease = LeaseView::default();
        host.heard.clear();
        host.promised_until = quarantine;
        host.promised_epoch = Epoch(0);
        host.renewed = false;
    }

    pub fn restart_manager(&mut self, i: usize, up: bool) {
        let quarantine = self.now + self.timings.grant.as_millis() as u64;
        let host = &mut self.hosts[i];
        host.manager = up;
        host.heard.clear();
        host.promised_until = quarantine;
        host.promised_epoch = Epoch(0);
        host.renewed = false;
    }

    pub fn kill_postgres(&mut self, i: usize) {
        let host = &mut self.hosts[i];
        match host.view.state {
            PostgresState::Primary => host.view.state = PostgresState::Crashed,
            PostgresState::Standby if host.lease.is_none() => host.view.state = PostgresState::Stopped,
            _ => {}
        }
        host.view.streaming = false;
    }

    /// A primary is open, every other member streams from it, and nothing is under way.
    pub fn is_healthy(&self) -> bool {
        let Some((epoch, primary)) = self.state.open_primary() else { return false };
        self.state.operation.is_none()
            && self.hosts.iter().all(|h| {
                let follows = h.view.state == PostgresState::Standby
                    && h.view.streaming
                    && h.view.upstream.as_ref() == Some(primary);
                if h.me == *primary { h.writes(self.now) == Some(epoch) } else { follows }
            })
    }
}

fn at(timeline: u32, lsn: u64) -> WalPosition {
    WalPosition { timeline: TimelineId(timeline), lsn: Lsn(lsn) }
}
