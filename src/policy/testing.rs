//! Situations in one line, for tests of the pure rooms.
//!
//! A lock: `free`, `granted NAME promoting|promoted|open TIMELINE`, `released NAME`,
//! `fenced`; after `;` an operation: `switchover TO PHASE`, `failover TO`, `hibernate WHO PHASE`, `wake WHO`.
//! An agent: `STATE [TIMELINE:LSN] [key=value …]`.

use std::{collections::BTreeMap, time::Duration};

use super::{Seal, Since, Situation};
use crate::{
    domain::{
        ArchiveView, ClusterId, CopyCause, Epoch, Generation, GroupNode, KeptWal, Lsn, MemberId, Moment, NeedsCopy,
        NodeId, Observation, PendingSetting, PostgresState, Profile, Promise, TimelineHistory, TimelineId,
        TimelineSwitch, Timings, WalPosition,
        membership::GroupView,
        observation::AgentView,
        observation::FailsafeView,
        observation::FenceView,
        observation::HeardOfPrimary,
        observation::LayerView,
        observation::LeaseReach,
        observation::LeaseView,
        observation::OrderResult,
        observation::READER_LAYER,
        observation::StandbyProgress,
        observation::SyncView,
        observation::Work,
        postgres_settings::{HELD_UP, LACKING},
    },
    state::{
        ClusterState, GrantPhase, Identity, Lock, Member, Operation, OperationKind, OperationPhase, Release, RuleId,
        TimelineRecord,
    },
};

/// A member id, from a text that is one.
pub fn id(name: &str) -> MemberId {
    name.parse().expect("a member id")
}

/// `TIMELINE:LSN`, both decimal.
pub fn position(text: &str) -> WalPosition {
    let (timeline, lsn) = text.split_once(':').expect("TIMELINE:LSN");
    WalPosition { timeline: TimelineId(timeline.parse().expect("timeline")), lsn: Lsn(lsn.parse().expect("lsn")) }
}

/// Three members a, b, c, system identifier 7; timeline 2 began at 1:100.
pub fn state(spec: &str) -> ClusterState {
    let members = ["a", "b", "c"].iter().zip(1..).map(|(name, n)| {
        let member = Member {
            node: NodeId(n),
            manager: format!("{name}:7400"),
            postgres: format!("{name}:5432"),
            agent: format!("{name}:7401"),
            learner: false,
        };
        (id(name), member)
    });
    let record = |timeline: u32, epoch: u64, switch: Option<&str>| TimelineRecord {
        timeline: TimelineId(timeline),
        epoch: Epoch(epoch),
        switch: switch.map(position),
        first_record: None,
    };
    let mut state = ClusterState {
        identity: Some(Identity {
            cluster_id: ClusterId("test".into()),
            generation: Generation(1),
            name: "test".into(),
        }),
        members: members.collect(),
        initializer: Some(id("a")),
        system_identifier: Some(7),
        lineage: vec![record(1, 0, None)],
        ..ClusterState::default()
    };
    let (lock, operation) = spec.split_once(';').unwrap_or((spec, ""));
    let words: Vec<&str> = lock.split_whitespace().collect();
    match words.as_slice() {
        ["free"] => {}
        ["granted", who, phase, timeline] => {
            let timeline: u32 = timeline.parse().expect("timeline");
            let phase = match *phase {
                "promoting" => GrantPhase::Promoting,
                "promoted" => GrantPhase::Promoted,
                _ => GrantPhase::Open,
            };
            let done = phase != GrantPhase::Promoting;
            state.epoch = Epoch(1);
            state.lineage.push(record(timeline, 1, done.then_some("1:100")));
            state.lock = Lock::Granted {
                epoch: Epoch(1),
                member: id(who),
                phase,
                timeline: TimelineId(timeline),
                switch_lsn: Lsn(if done { 100 } else { 0 }),
                floor: position("1:50"),
            };
        }
        ["released", who] => {
            state.epoch = Epoch(1);
            state.lineage.push(record(2, 1, Some("1:100")));
            state.lock = Lock::Released(release(who));
        }
        ["fenced"] => {
            state.epoch = Epoch(2);
            state.lineage.push(record(2, 1, Some("1:100")));
            state.lock = Lock::Fenced { epoch: Epoch(2), previous: Some((Epoch(1), id("a"))), released: None };
        }
        other => panic!("no lock: {other:?}"),
    }
    state.operation = parse_operation(operation, state.holder().map(|(_, m)| m.clone()));
    state
}

fn release(who: &str) -> Release {
    Release {
        epoch: Epoch(1),
        member: id(who),
        end: position("2:90"),
        clean: false,
        cause: crate::domain::EndCause::Unknown,
    }
}

fn parse_operation(spec: &str, from: Option<MemberId>) -> Option<Operation> {
    let words: Vec<&str> = spec.split_whitespace().collect();
    let (kind, to, phase) = match words.as_slice() {
        [] => return None,
        ["failover", to] => (OperationKind::Failover, to, OperationPhase::Transfer),
        ["wake", to] => (OperationKind::Wake, to, OperationPhase::Start),
        [kind @ ("switchover" | "hibernate"), to, phase] => {
            let phase = match *phase {
                "checkpoint" => OperationPhase::Checkpoint,
                "hold" => OperationPhase::HoldWrites,
                "stop" => OperationPhase::Stop,
                "transfer" => OperationPhase::Transfer,
                "rollback" => OperationPhase::RollBack,
                other => panic!("no phase: {other}"),
            };
            let switchover = *kind == "switchover";
            (if switchover { OperationKind::Switchover } else { OperationKind::Hibernate }, to, phase)
        }
        ["reinit", to, "copy"] => (OperationKind::Reinit, to, OperationPhase::Copy),
        ["reinit", to, "stream"] => (OperationKind::Reinit, to, OperationPhase::Stream),
        other => panic!("no operation: {other:?}"),
    };
    Some(Operation {
        id: 1,
        kind,
        from,
        to: id(to),
        phase,
        request_id: "r".to_owned(),
        because: RuleId(0),
        accepts_loss: false,
    })
}

/// In epoch 1 `member` was taken over as it ran: it began no timeline.
pub fn went_on_running(state: &mut ClusterState, member: &str) {
    state.lineage.retain(|record| record.epoch == Epoch(0));
    state.reigns.push_back(crate::state::Reign {
        epoch: Epoch(1),
        member: id(member),
        timeline: TimelineId(1),
        granted_ms: 1,
        opened_ms: Some(2),
        ended_ms: None,
        cause: crate::domain::EndCause::Unknown,
        reason: String::new(),
        end: None,
    });
}

/// What the agent of `member` says.
pub fn agent(member: &str, spec: &str) -> AgentView {
    let mut words = spec.split_whitespace();
    let state = match words.next().expect("a state") {
        "nodata" => PostgresState::NoData,
        "stopped" => PostgresState::Stopped,
        "starting" => PostgresState::Starting,
        "standby" => PostgresState::Standby,
        "promoting" => PostgresState::Promoting,
        "primary" => PostgresState::Primary,
        "stopping" => PostgresState::Stopping,
        "crashed" => PostgresState::Crashed,
        "busy" => PostgresState::Busy,
        "failed" => PostgresState::Failed,
        "unleased" => PostgresState::Unleased,
        other => panic!("no state: {other}"),
    };
    let mut view = AgentView {
        member: id(member),
        session: 1,
        state,
        server_version: 150_000,
        system_identifier: (state != PostgresState::NoData).then_some(7),
        wal_end: WalPosition::default(),
        wal_end_known: true,
        replay_lsn: Lsn(0),
        streaming: false,
        streaming_ms: 0,
        waits_on_purpose: false,
        upstream: None,
        heard: HeardOfPrimary::default(),
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
        ended_by: crate::domain::EndCause::Unknown,
        paused: false,
        stopped_by_hand: false,
        fence: FenceView::default(),
        layers: Vec::new(),
        clock: Default::default(),
        failsafe: FailsafeView { members: 1, ..FailsafeView::default() },
        room: None,
        kept_wal: KeptWal::default(),
        redo: None,
        server: Default::default(),
        configuration: Default::default(),
        sync: SyncView::default(),
        severed: false,
        follows_epoch: Epoch(0),
        uncovered: Default::default(),
        lost: Vec::new(),
        cure: Default::default(),
        archive: Default::default(),
    };
    if state == PostgresState::Primary {
        view.standbys = ["a", "b", "c", "d", "e"].into_iter().filter(|m| *m != member).map(sent_to).collect();
    }
    for word in words {
        apply_word(&mut view, word);
    }
    view
}

fn sent_to(member: &str) -> StandbyProgress {
    StandbyProgress { member: id(member), state: "streaming".to_owned(), flush_lsn: Lsn(0), lag_bytes: 0 }
}

fn apply_word(view: &mut AgentView, word: &str) {
    let (key, value) = word.split_once('=').unwrap_or((word, ""));
    let number = || value.parse::<u64>().expect("a number");
    match key {
        "alone" => view.standbys.clear(),
        "complete-ago" => view.heard.complete_ago_ms = Some(number()),
        "heard" => view.heard.end = position(value),
        "ended" => view.ended_epoch = Epoch(number()),
        "fenced" => view.fenced_epoch = Epoch(number()),
        "lease" => {
            view.lease = LeaseView { epoch: Epoch(number()), held: true, remaining_ms: 1000, ..LeaseView::default() }
        }
        "upstream" => {
            view.upstream = Some(id(value));
            view.streaming = true;
        }
        // It has streamed for so long, or hasn't, with a `-` before.
        "for" => {
            view.streaming = !value.starts_with('-');
            view.streaming_ms = value.trim_start_matches('-').parse().expect("milliseconds");
        }
        "delayed" => (view.streaming, view.waits_on_purpose) = (false, true),
        // The epoch it has promised: it follows nobody of an earlier one any more.
        "severed" => (view.severed, view.accepted_epoch) = (true, Epoch(number())),
        "follows" => view.follows_epoch = Epoch(number()),
        "applied" => view.sync = SyncView { applied: number(), ..view.sync.clone() },
        "effective" => view.sync = SyncView { applied: number(), effective: true, ..view.sync.clone() },
        // `unheard=b:1500`, or `unheard=b` for just heard.
        "unheard" => {
            let (member, ms) = value.split_once(':').unwrap_or((value, "0"));
            view.sync.unheard_ms.insert(id(member), ms.parse().expect("milliseconds"));
        }
        "gone" => view.standbys.retain(|p| p.member != id(value)),
        "behind" => {
            let (member, bytes) = value.split_once(':').expect("behind=MEMBER:BYTES");
            let lag = bytes.parse().expect("bytes");
            view.standbys.iter_mut().filter(|p| p.member == id(member)).for_each(|p| p.lag_bytes = lag);
        }
        "replayed" => view.replay_lsn = Lsn(number()),
        // `waits=max_connections:100:200`, and `:held` or `:lacking` behind it; `counts=max_connections:100`.
        "waits" => {
            let parts: Vec<&str> = value.split(':').collect();
            let [name, running, configured, why @ ..] = parts.as_slice() else { panic!("waits=NAME:IS:WILL") };
            let why = match why {
                [] => "needs a restart",
                ["held"] => HELD_UP,
                ["lacking"] => LACKING,
                other => panic!("no reason: {other:?}"),
            };
            let [name, running, configured, why] = [*name, *running, *configured, why].map(str::to_owned);
            view.configuration.counts.insert(name.clone(), running.parse().expect("a number"));
            view.configuration.pending.push(PendingSetting { name, running, configured, why });
            view.server.pending_restart = view.configuration.needs_restart();
        }
        "counts" => {
            let (name, many) = value.split_once(':').expect("counts=NAME:NUMBER");
            view.configuration.counts.insert(name.to_owned(), many.parse().expect("a number"));
        }
        // The layer of the address for standbys, and what it says.
        "reader" => view.layers.push(LayerView {
            name: READER_LAYER.to_owned(),
            state: if value.is_empty() { "ready" } else { value }.to_owned(),
        }),
        "storage" => view.storage = Some("its disk stands still".to_owned()),
        "counted" => view.reach.counted = number(),
        "answering" => view.reach.answering = value.split(',').map(id).collect(),
        "rewinds" => view.rewind_failures = number(),
        "clones" => view.clone_failures = number(),
        // `useless=wal-gone`, `useless=ends-early`, `useless=unreadable`.
        "useless" => {
            let cause = match value {
                "wal-gone" => CopyCause::WalGone,
                "ends-early" => CopyCause::EndsEarly,
                "unreadable" => CopyCause::Unreadable,
                other => panic!("no cause of a copy: {other}"),
            };
            view.cure.needs_copy = Some(NeedsCopy { cause, why: "it said so".to_owned() });
        }
        "cloning" => {
            view.work = Some(Work { order: 1, kind: "clone".to_owned(), phase: String::new(), ..Work::default() });
        }
        // `archive=failing`, `archive=behind`, `archive=fine`.
        "archive" => {
            let (failing, much) = (value == "failing", value == "behind");
            let failing_ms = failing.then_some(30_000);
            let (waiting, waiting_bytes) = (40, 640 << 20);
            let last_failed = "000000020000000000000009".to_owned();
            view.archive = ArchiveView {
                on: true,
                failing_ms,
                much,
                waiting,
                waiting_bytes,
                last_failed,
                ..ArchiveView::default()
            };
        }
        "given-up" => view.cure.needs_operator = Some("it failed three times".to_owned()),
        "failed-starts" => view.cure.failed_starts = number(),
        "accepted" => view.accepted_epoch = Epoch(number()),
        "system" => view.system_identifier = Some(number()),
        "half-rewound" => view.rewind_unfinished = true,
        "clean" => view.clean_shutdown = true,
        "crashed-standby" => view.crashed_standby = true,
        "unknown" => view.wal_end_known = false,
        "clock-off" => view.clock.own_off = true,
        "promised" => view.failsafe.promise_left_ms = number(),
        "checkpointed" => view.checkpoints_done = number(),
        "copied" => view.copied_for = Some(number()),
        "failed" => {
            view.last_order = Some(OrderResult { order: 1, kind: value.to_owned(), error: Some("it failed".into()) });
        }
        _ => {
            view.wal_end = position(word);
            view.history = TimelineHistory::root(view.wal_end.timeline);
            if view.wal_end.timeline > TimelineId(1) {
                view.history.switches = vec![TimelineSwitch { timeline: TimelineId(1), end: Lsn(100) }];
            }
        }
    }
}

/// All members vote, under membership 1.
pub fn group(state: &ClusterState) -> GroupView {
    let node = |(id, m): (&MemberId, &Member)| (m.node, GroupNode { member: id.clone(), address: m.manager.clone() });
    GroupView::settled(1, state.members.iter().map(node))
}

/// A situation to be built up line by line; a minute after the leader began, with everything as old as that.
#[derive(Debug)]
pub struct Bench {
    /// The committed state.
    pub state: ClusterState,
    /// What was heard of each host.
    pub seen: BTreeMap<MemberId, Observation>,
    /// Seals of the fenced epoch.
    pub seals: BTreeMap<MemberId, Seal>,
    /// The Raft group; all members vote unless a test changes it.
    pub group: GroupView,
    /// By the wall clock of the leader's host.
    pub wall_ms: u64,
    timings: Timings,
    since: Since,
    now: Moment,
}

impl Bench {
    /// Nothing heard of anybody.
    pub fn new(lock: &str) -> Self {
        let state = state(lock);
        Self {
            group: group(&state),
            state,
            seen: BTreeMap::new(),
            seals: BTreeMap::new(),
            timings: Timings::of(Profile::Normal),
            since: Since::default(),
            now: Moment::from_millis(60_000),
            wall_ms: 0,
        }
    }

    /// The lock came into its present phase just now.
    pub fn at_lock_change(mut self) -> Self {
        self.since.lock = self.now;
        self
    }

    /// The operation under way came into its present phase just now.
    pub fn operation_began_now(mut self) -> Self {
        (self.since.operation, self.since.rolling) = (self.now, self.now);
        self
    }

    /// It is this late on the leader's clock.
    pub fn now_is(&mut self, ms: u64) {
        self.now = Moment::from_millis(ms);
    }

    /// `member` says just now what it said before.
    pub fn hears_again(mut self, member: &str) -> Self {
        let now = self.now;
        if let Some(seen) = self.seen.get_mut(&id(member)) {
            (seen.at, seen.agent_at) = (now, now);
        }
        self
    }

    /// The manager of `member` leads.
    pub fn led_by(mut self, member: &str) -> Self {
        self.group.leader = self.state.members.get(&id(member)).map(|m| m.node);
        self
    }

    /// The leader has just begun to lead.
    pub fn leads_since_now(mut self) -> Self {
        self.since.lead = self.now;
        self
    }

    /// One more member, a learner by `node`.
    pub fn add_learner(&mut self, name: &str, node: u64) {
        let (manager, postgres, agent) = (format!("{name}:7400"), format!("{name}:5432"), format!("{name}:7401"));
        self.state.members.insert(id(name), Member { node: NodeId(node), manager, postgres, agent, learner: true });
    }

    /// What the disk of `member` takes for a sync.
    pub fn disk(mut self, member: &str, sync: Duration) -> Self {
        self.seen.entry(id(member)).or_default().disk = Some(sync);
        self
    }

    /// What the agent of `member` says just now.
    pub fn says(mut self, member: &str, spec: &str) -> Self {
        let now = self.now;
        let seen = self.seen.entry(id(member)).or_default();
        (seen.at, seen.agent_at, seen.agent) = (now, now, Some(agent(member, spec)));
        self
    }

    /// The voter of `member` reports just now.
    pub fn promise(mut self, member: &str, promise: Promise) -> Self {
        self.seen.entry(id(member)).or_default().promise = promise;
        self.seen.entry(id(member)).or_default().at = self.now;
        self
    }

    /// Whoever decides has only just begun.
    pub fn begins_now(mut self) -> Self {
        self.since.start = self.now;
        self
    }

    /// `member` has sealed the epoch with no promise left, and its agent says `spec`.
    pub fn seal(mut self, member: &str, spec: &str) -> Self {
        let membership = self.group.group.id;
        let promise = Promise { sealed: self.state.epoch, lapsed: true, membership, ..Promise::default() };
        let seal = Seal { promise, at: Moment::default(), told_at: self.now, agent: Some(agent(member, spec)) };
        self.seals.insert(id(member), seal);
        self
    }

    /// The situation.
    pub fn situation(&self) -> Situation<'_> {
        Situation {
            state: &self.state,
            seen: &self.seen,
            notices: const { &BTreeMap::new() },
            seals: &self.seals,
            group: &self.group,
            founding: None,
            timings: &self.timings,
            since: self.since,
            now: self.now,
            wall_ms: self.wall_ms,
        }
    }
}
