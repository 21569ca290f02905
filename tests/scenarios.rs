//! Runs scenarios/*.txt: decisions told in the language of the trade.
//!
//! A script is a list of lines; after `----` stands what they print, up to an empty line.
//! `UPDATE_EXPECT=1 cargo test --test scenarios` writes what is printed now into the
//! scripts; review it as a diff. Positions are `TIMELINE:LSN` with the LSN in hex.
//!
//! | line | what it does |
//! | --- | --- |
//! | `new a b c` | three members, nothing founded |
//! | `cluster a b c` | founded; a open in epoch 1 on timeline 2 since 1:100, b and c stream from it, all at 2:1000 |
//! | `report b standby 2:5000 upstream=a …` | what b's agent says, now and until told otherwise |
//! | `renew a b` · `lapse b c` · `restarted b` | the promises of these voters: running, run out, run out after a restart |
//! | `told b 2:5000` | b's voter has heard of a's WAL up to there |
//! | `seal b c` | durable seals of these voters for the fenced epoch, with what their agents say |
//! | `notice a 2:6000 clean` | a's word that its process tree of the last epoch is empty |
//! | `lose a` · `mute a` · `back a` | nothing is heard of a; only its manager is; all of it again |
//! | `advance 9s` | time passes; who is not lost reports again |
//! | `leader` | another manager leads: it has heard nothing, its clocks start over |
//! | `leads b` | the manager of b is that leader |
//! | `disk b 30ms` | a sync of b's Raft log takes so long |
//! | `switchover b` · `failover b [--allow-data-loss]` | an operator asks |
//! | `timings fast` | an operator asks for other timings |
//! | `formats 2 a b` | the managers of these hosts can apply commands up to that format; the first until told otherwise |
//! | `set 3 crash_budget=5` | an operator asks for another setting, having seen version 3 of them |
//! | `schedule restart b 60s` · `rolling restart` · `cancel 1` | an operator asks |
//! | `pause` · `resume` · `maintenance on b` · `restart b` | an operator asks |
//! | `stop b` · `start b` · `stop --all` · `start --all` | PostgreSQL is stopped by command, or goes on |
//! | `clock b 12000` | the holder has told b's voter that its clocks are off by so many millionths |
//! | `decide` · `apply` · `settle` | ask the policy; commit what it wants; both until nothing changes |
//! | `keep` · `replay` | put the decided command aside; commit it now |
//! | `act b` | the next action of b's host |
//! | `state` | lock, operation, lineage |
//! | `add d` · `remove c` · `replace b` | who belongs to it; b's manager has no log and gets a new node |
//! | `copied 4` · `change` | node 4 has the whole log; the change of the Raft group that was decided is made |
//! | `group` | the voters, by name and node |

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, time::Duration};

use matriarch::{
    domain::{
        ArchiveView, ClusterId, CopyCause, EndCause, Epoch, Format, GroupNode, GroupStep, Level, Lsn, MemberId, Moment,
        NeedsCopy, NodeId, Observation, PendingSetting, PostgresState, Profile, Promise, RoomView, SyncRule,
        TimelineHistory, TimelineId, TimelineSwitch, Timings, TimingsId, Volume, WalPosition,
        membership::GroupView,
        observation::{
            AgentView, FailsafeView, FenceView, HeardOfPrimary, LayerView, LeaseReach, LeaseView, Notice, OrderResult,
            READER_LAYER, RedoView, StandbyProgress, SyncView, Work,
        },
        postgres_settings,
    },
    policy::{self, Founding, Plan, Seal, Since, Situation},
    reconcile::{Action, Host, StopMode, next_action},
    state::{
        AgendaChange, Applied, ClusterState, Command, HibernateChange, Kind, Lock, Member, OperationKind,
        OperationPhase, PrimaryTurn, Reader, RuleId,
    },
};

/// What a host says when asked.
struct Voice {
    agent: Option<AgentView>,
    promise: Promise,
    manager_heard: bool,
    agent_heard: bool,
    format: Format,
    disk: Option<Duration>,
}

impl Default for Voice {
    fn default() -> Self {
        let (agent, promise) = (None, Promise::default());
        Self { agent, promise, manager_heard: true, agent_heard: true, format: Format::FIRST, disk: None }
    }
}

#[derive(Default)]
struct World {
    state: ClusterState,
    now: Moment,
    voices: BTreeMap<MemberId, Voice>,
    seen: BTreeMap<MemberId, Observation>,
    notices: BTreeMap<MemberId, Notice>,
    seals: BTreeMap<MemberId, Seal>,
    group: GroupView,
    since: Since,
    lock_seen: Option<Lock>,
    reader_seen: Reader,
    operation_seen: Option<(u64, OperationPhase)>,
    founding: Option<Founding>,
    decided: Option<Command>,
    kept: Option<Command>,
    out: String,
}

/// Of the leader's clock, which is the wall clock here.
fn millis(now: Moment) -> u64 {
    u64::try_from(now.0.as_millis()).unwrap()
}

fn id(name: &str) -> MemberId {
    name.parse().unwrap()
}

fn position(text: &str) -> WalPosition {
    let (timeline, lsn) = text.split_once(':').unwrap_or_else(|| panic!("`{text}` is not TIMELINE:LSN"));
    let lsn = u64::from_str_radix(lsn, 16).unwrap_or_else(|_| panic!("`{lsn}` is no LSN in hex"));
    WalPosition { timeline: TimelineId(timeline.parse().unwrap()), lsn: Lsn(lsn) }
}

fn postgres_state(word: &str) -> PostgresState {
    match word {
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
        other => panic!("`{other}` is no state of PostgreSQL"),
    }
}

/// `wal:LEVEL` or `data:LEVEL` of two volumes, the other one fine; LEVEL: fine, low, short, spent.
fn room(text: &str) -> RoomView {
    let (volume, level) = text.split_once(':').unwrap();
    let fine = Volume { free: 500 << 20, size: 1_000 << 20, reserve: 64 << 20, ..Volume::default() };
    let full = match level {
        "fine" => fine,
        "low" => Volume { free: 90 << 20, level: Level::Low, ..fine },
        "short" => Volume { free: 9 << 20, level: Level::Short, ..fine },
        "spent" => Volume { free: 70 << 20, level: Level::Low, reserve: 0, spent: true, ..fine },
        other => panic!("`{other}` is no level"),
    };
    match volume {
        "wal" => RoomView { data: fine, wal: Some(full), written: 0 },
        "data" => RoomView { data: full, wal: Some(fine), written: 0 },
        other => panic!("`{other}` is no volume"),
    }
}

fn duration(text: &str) -> Duration {
    match text.strip_suffix("ms") {
        Some(ms) => Duration::from_millis(ms.parse().unwrap()),
        None => Duration::from_secs(text.strip_suffix('s').unwrap().parse().unwrap()),
    }
}

impl World {
    fn say(&mut self, line: &str) {
        writeln!(self.out, "{line}").unwrap();
    }

    fn run(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["new", members @ ..] => self.found_nothing(members),
            ["cluster", members @ ..] => self.found(members),
            ["report", member, spec @ ..] => self.report(&id(member), spec),
            ["renew", members @ ..] => {
                self.promise(members, |epoch| Promise { epoch, renewed: true, ..Promise::default() })
            }
            ["lapse", members @ ..] => {
                self.promise(members, |epoch| Promise { epoch, renewed: true, lapsed: true, ..Promise::default() });
            }
            ["quiet", members @ ..] => {
                self.promise(members, |epoch| Promise { epoch, renewed: true, quiet: true, ..Promise::default() });
            }
            ["restarted", members @ ..] => self.promise(members, |_| Promise { lapsed: true, ..Promise::default() }),
            ["told", member, end] => {
                self.voices.get_mut(&id(member)).unwrap().promise.highest = position(end);
                self.hear_all();
            }
            ["seal", members @ ..] => members.iter().for_each(|m| self.seal(&id(m))),
            ["notice", member, end, how @ ..] => self.notice(&id(member), end, how),
            ["lose", member] => self.hear(&id(member), false, false),
            ["mute", member] => self.hear(&id(member), true, false),
            ["back", member] => self.hear(&id(member), true, true),
            ["advance", time] => self.advance(duration(time)),
            ["leader"] => self.lead(),
            ["switchover", to] => self.ask(OperationKind::Switchover, to, false),
            ["failover", to] => self.ask(OperationKind::Failover, to, false),
            ["failover", to, "--allow-data-loss"] => self.ask(OperationKind::Failover, to, true),
            ["timings", profile] => self.change_timings(profile.parse().unwrap()),
            ["formats", format, members @ ..] => self.formats(Format(format.parse().unwrap()), members),
            ["disk", member, time] => self.disk(&id(member), duration(time)),
            ["leads", member] => self.group.leader = self.state.members.get(&id(member)).map(|m| m.node),
            ["set", version, assignment] => self.change_settings(version.parse().unwrap(), assignment),
            ["pause"] => self.pause(true),
            ["resume"] => self.pause(false),
            [verb @ ("stop" | "start"), what] => self.halt(verb, what),
            ["maintenance", on, member] => self.maintain(&id(member), *on == "on"),
            ["schedule", what, to, time] => self.schedule(what, &id(to), duration(time)),
            ["rolling", "restart"] => self.roll(),
            ["cancel", number] => self.cancel(number.parse().unwrap()),
            ["restart", to] => self.ask(OperationKind::Restart, to, false),
            ["reinit", to] => self.reinit(&id(to), None),
            ["reinit", to, "--from", from] => self.reinit(&id(to), Some(&id(from))),
            ["clock", member, ppm] => self.clock(&id(member), ppm.parse().unwrap()),
            ["decide"] => self.decide(),
            ["apply"] => {
                let command = self.decided.clone().expect("something was decided");
                self.commit(&command);
            }
            ["settle"] => self.settle(),
            ["change"] => {
                let step = self.plan().step.expect("a change of the group was decided").1;
                self.change(&step);
            }
            ["replace", member] => self.replace(&id(member)),
            ["add", member] => self.member(Kind::AddMember {
                member: id(member),
                manager: format!("{member}:7400"),
                postgres: format!("{member}:5432"),
            }),
            ["remove", member] => self.member(Kind::RemoveMember { member: id(member) }),
            ["copied", node] => {
                let commit = self.group.commit;
                self.group.held.insert(NodeId(node.parse().unwrap()), commit);
            }
            ["group"] => self.tell_group(),
            ["keep"] => self.kept = self.decided.take(),
            ["replay"] => {
                let command = self.kept.clone().expect("something was kept");
                self.commit(&command);
            }
            ["act", members @ ..] => members.iter().for_each(|m| self.act(&id(m))),
            ["state"] => self.tell_state(),
            other => panic!("no such line: {other:?}"),
        }
    }

    // ------------------------------------------------------------ beginnings

    fn found_nothing(&mut self, names: &[&str]) {
        let member = |(n, name): (u64, &&str)| {
            let m = Member {
                node: NodeId(n),
                manager: format!("{name}:7400"),
                postgres: format!("{name}:5432"),
                agent: format!("{name}:7401"),
            };
            (id(name), m)
        };
        let members: Vec<(MemberId, Member)> = (1..).zip(names).map(member).collect();
        let node =
            |(id, m): &(MemberId, Member)| (m.node, GroupNode { member: id.clone(), address: m.manager.clone() });
        self.group = GroupView::settled(0, members.iter().map(node));
        self.founding = Some(Founding {
            cluster_id: ClusterId("scenario".into()),
            name: "scenario".into(),
            members,
            initializer: id(names[0]),
        });
        for name in names {
            let voice = Voice::default();
            self.voices.insert(id(name), voice);
            self.report(&id(name), &["nodata"]);
        }
    }

    fn found(&mut self, names: &[&str]) {
        self.found_nothing(names);
        let founding = self.founding.clone().unwrap();
        let first = id(names[0]);
        let genesis = Kind::Genesis {
            cluster_id: founding.cluster_id,
            generation: matriarch::domain::Generation(1),
            name: founding.name,
            members: founding.members,
            initializer: first.clone(),
        };
        let switch = position("1:100");
        for kind in [
            genesis,
            Kind::RecordSystem { system_identifier: 7, history: None },
            Kind::fence("the cluster is founded".into()),
            Kind::Grant { member: first.clone(), floor: switch, sync: None },
            Kind::PromotionComplete { member: first.clone(), timeline: TimelineId(2), switch, first_record: None },
            Kind::Open { member: first.clone() },
        ] {
            let expected = self.state.epoch;
            let command = Command { request_id: String::new(), expected, because: RuleId(0), kind, evidence: None };
            assert_eq!(self.state.apply(&command), Applied::Changed);
        }
        self.advance(Duration::from_secs(60));
        self.report(&first, &["primary", "2:1000", "lease=1"]);
        for name in &names[1..] {
            let upstream = format!("upstream={first}");
            self.report(&id(name), &["standby", "2:1000", &upstream]);
        }
        self.keep_time();
    }

    // ------------------------------------------------------------ who belongs to it

    fn member(&mut self, kind: Kind) {
        if let Kind::AddMember { member, .. } = &kind {
            let voice = Voice::default();
            self.voices.insert(member.clone(), voice);
        }
        let expected = self.state.epoch;
        self.commit(&Command { request_id: "operator".into(), expected, because: RuleId(1), kind, evidence: None });
    }

    /// Its manager asks for a node, as one does that has no log.
    fn replace(&mut self, member: &MemberId) {
        let (old, node) = (self.state.members[member].node, self.state.next_node());
        self.member(Kind::ReplaceNode { member: member.clone(), old, node, reason: "its log is gone".into() });
        self.group.commit += 1;
        let commit = self.group.commit;
        self.group.held.values_mut().for_each(|held| *held = commit);
    }

    /// What openraft does with a step, and each acceptor with a new membership.
    fn change(&mut self, step: &GroupStep) {
        let group = &mut self.group.group;
        match step {
            GroupStep::AddLearner { node, of } => drop(group.nodes.insert(*node, of.clone())),
            GroupStep::Join { voters } => group.voters.push(voters.clone()),
            GroupStep::Settle => {
                let old = group.voters.remove(0);
                let stays = group.voters[0].clone();
                group.nodes.retain(|node, _| stays.contains(node) || !old.contains(node));
            }
            GroupStep::Drop { node } => drop(group.nodes.remove(node)),
        }
        group.id += 1;
        let membership = group.id;
        for voice in self.voices.values_mut() {
            voice.promise = Promise { membership, lapsed: false, ..voice.promise };
        }
        self.hear_all();
    }

    fn tell_group(&mut self) {
        let group = self.group.group.clone();
        let names = |half: &std::collections::BTreeSet<NodeId>| {
            let names: Vec<String> = half.iter().map(|n| format!("{} ({n})", group.name_of(*n))).collect();
            names.join(", ")
        };
        let halves: Vec<String> = group.voters.iter().map(names).collect();
        self.say(&format!("membership {}: {}", group.id, halves.join(" and ")));
    }

    // ------------------------------------------------------------ what is heard

    fn report(&mut self, member: &MemberId, spec: &[&str]) {
        let view = self.view(member, spec);
        let membership = self.group.group.id;
        if view.lease.held {
            let epoch = view.lease.epoch;
            for voice in self.voices.values_mut().filter(|v| v.manager_heard) {
                voice.promise = Promise { epoch, renewed: true, membership, ..Promise::default() };
            }
        }
        self.voices.get_mut(member).expect("a member").agent = Some(view);
        self.hear_all();
    }

    fn view(&self, member: &MemberId, spec: &[&str]) -> AgentView {
        let state = postgres_state(spec[0]);
        let mut view = AgentView {
            member: member.clone(),
            session: 1,
            state,
            server_version: 150_000,
            system_identifier: (state != PostgresState::NoData).then_some(7),
            wal_end: WalPosition::default(),
            wal_end_known: true,
            replay_lsn: Lsn(0),
            streaming: false,
            streaming_ms: 60_000,
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
            ended_by: EndCause::Unknown,
            paused: false,
            stopped_by_hand: false,
            fence: FenceView::default(),
            layers: Vec::new(),
            clock: Default::default(),
            failsafe: FailsafeView { members: 1, ..FailsafeView::default() },
            room: None,
            kept_wal: Default::default(),
            redo: None,
            sync: SyncView::default(),
            severed: false,
            follows_epoch: Epoch(0),
            uncovered: Default::default(),
            lost: Vec::new(),
            cure: Default::default(),
            archive: Default::default(),
            server: Default::default(),
            configuration: Default::default(),
        };
        if state == PostgresState::Primary {
            let sent_to = |m: &MemberId| StandbyProgress {
                member: m.clone(),
                state: "streaming".to_owned(),
                flush_lsn: Lsn(0),
                lag_bytes: 0,
            };
            view.standbys = self.voices.keys().filter(|m| *m != member).map(sent_to).collect();
        }
        spec[1..].iter().for_each(|word| self.apply_word(&mut view, word));
        view
    }

    fn apply_word(&self, view: &mut AgentView, word: &str) {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        let number = || value.parse::<u64>().unwrap_or_else(|_| panic!("`{word}` wants a number"));
        match key {
            "ended" => (view.ended_epoch, view.fenced_epoch) = (Epoch(number()), Epoch(number())),
            "fenced" => view.fenced_epoch = Epoch(number()),
            "timings" => view.lease.timings = TimingsId(number()),
            "clock-off" => view.clock.own_off = true,
            "promised" => view.failsafe.promise_left_ms = number(),
            "lease" => view.lease = LeaseView { epoch: Epoch(number()), held: true, remaining_ms: 1_000, ..view.lease },
            "gated" => view.sync.gate_closed = true,
            "lacking" => {
                let why = postgres_settings::LACKING.to_owned();
                let (name, running, configured) = ("max_connections".into(), "100".into(), value.into());
                view.configuration.pending.push(PendingSetting { name, running, configured, why });
            }
            "severed" => (view.severed, view.accepted_epoch) = (true, Epoch(number())),
            "follows" => view.follows_epoch = Epoch(number()),
            "applied" => view.sync.applied = number(),
            "effective" => (view.sync.applied, view.sync.effective) = (number(), true),
            "hears" => view.sync.unheard_ms = value.split(',').map(|m| (id(m), 0)).collect(),
            "unheard" => drop(view.sync.unheard_ms.insert(id(value), 60_000)),
            "counted" => view.reach.counted = number(),
            "answering" => view.reach.answering = value.split(',').map(id).collect(),
            "upstream" => (view.upstream, view.streaming) = (Some(id(value)), true),
            // `for=2600` or, without the stream, `for=-2600`: so many milliseconds it has been so.
            "for" => {
                view.streaming = !value.starts_with('-');
                view.streaming_ms = value.trim_start_matches('-').parse().unwrap();
            }
            // All is replayed, and the address for standbys could be put up.
            "reader" => {
                view.replay_lsn = view.wal_end.lsn;
                view.layers = vec![LayerView { name: READER_LAYER.to_owned(), state: "ready".to_owned() }];
            }
            "delayed" => (view.streaming, view.waits_on_purpose) = (false, true),
            "useless" => {
                let cause = match value {
                    "wal-gone" => CopyCause::WalGone,
                    "ends-early" => CopyCause::EndsEarly,
                    "unreadable" => CopyCause::Unreadable,
                    other => panic!("no cause of a copy: {other}"),
                };
                view.cure.needs_copy = Some(NeedsCopy { cause, why: "it said so".to_owned() });
            }
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
            "failed-starts" => view.cure.failed_starts = number(),
            "accepted" => view.accepted_epoch = Epoch(number()),
            "rewinds" => view.rewind_failures = number(),
            "clones" => view.clone_failures = number(),
            "system" => view.system_identifier = Some(number()),
            "checkpointed" => view.checkpoints_done = number(),
            "copied" => view.copied_for = Some(number()),
            "half-rewound" => view.rewind_unfinished = true,
            "clean" => view.clean_shutdown = true,
            "crashed-standby" => view.crashed_standby = true,
            "alone" => view.standbys.clear(),
            "complete-ago" => view.heard.complete_ago_ms = Some(number()),
            "heard" => view.heard.end = position(value),
            "by-hand" => view.stopped_by_hand = true,
            "unknown" => view.wal_end_known = false,
            "ended-by" => view.ended_by = EndCause::ALL.into_iter().find(|c| c.name() == value).unwrap(),
            "storage" => view.storage = Some(value.replace('-', " ")),
            "cloning" => {
                let order = value.parse().unwrap_or(0);
                view.work = Some(Work { order, kind: "clone".to_owned(), ..Work::default() });
            }
            "never-streamed" => view.never_streamed = true,
            "unsteady" => view.unsteady = true,
            "crashed" => view.crashed_lately = true,
            "room" => view.room = Some(room(value)),
            "slots-give-way" => view.kept_wal.gives_way = true,
            "stands" => view.redo = Some(RedoView { stands: true, ..RedoView::default() }),
            "given-up" => view.cure.needs_operator = Some("it failed three times".to_owned()),
            "failed" => {
                let kind = value.to_owned();
                view.last_order = Some(OrderResult { order: 1, kind, error: Some("it failed".into()) });
            }
            // The timeline branched off here, whatever the log says of it.
            "from" => {
                let fork = position(value);
                let mut history = self.state.history_of(fork.timeline);
                history.switches.push(TimelineSwitch { timeline: fork.timeline, end: fork.lsn });
                view.history = TimelineHistory { timeline: view.wal_end.timeline, ..history };
            }
            _ => {
                view.wal_end = position(word);
                view.history = self.state.history_of(view.wal_end.timeline);
            }
        }
    }

    fn promise(&mut self, members: &[&str], make: impl Fn(Epoch) -> Promise) {
        let epoch = match &self.state.lock {
            Lock::Granted { epoch, .. } => *epoch,
            Lock::Fenced { previous, .. } => previous.as_ref().map_or(Epoch(0), |(epoch, _)| *epoch),
            Lock::Released(release) => release.epoch,
            Lock::Free => Epoch(0),
        };
        let membership = self.group.group.id;
        for member in members {
            self.voices.get_mut(&id(member)).unwrap().promise = Promise { membership, ..make(epoch) };
        }
        self.hear_all();
    }

    fn clock(&mut self, member: &MemberId, ppm: i64) {
        self.voices.get_mut(member).unwrap().promise.clock_off_ppm = ppm;
        self.hear_all();
    }

    fn formats(&mut self, format: Format, members: &[&str]) {
        for member in members {
            self.voices.get_mut(&id(member)).unwrap().format = format;
        }
        self.hear_all();
    }

    fn disk(&mut self, member: &MemberId, sync: Duration) {
        self.voices.get_mut(member).unwrap().disk = Some(sync);
        self.hear_all();
    }

    fn change_settings(&mut self, version: u64, assignment: &str) {
        let (key, value) = assignment.split_once('=').unwrap();
        let changes = [(key.to_owned(), Some(value.to_owned()))].into();
        let admitted = self.look(|s| policy::settings::admit(s, version, &changes, ""));
        self.ask_for(admitted.map_err(|why| why.to_string()));
    }

    fn maintain(&mut self, member: &MemberId, on: bool) {
        let admitted = self.look(|s| policy::pause::admit_maintenance(s, member, on, "new disk", "kim"));
        self.ask_for(admitted);
    }

    fn halt(&mut self, verb: &str, what: &str) {
        let words = policy::halt::Words { reason: "new rack", by: "kim", force: false };
        let admitted = self.look(|s| match (verb, what) {
            ("stop", "--all") => policy::hibernate::admit(s, words),
            ("stop", member) => policy::halt::admit_stop(s, &id(member), words),
            (_, "--all") => policy::hibernate::admit_wake(s, "kim"),
            (_, member) => policy::halt::admit_start(s, &id(member), "kim"),
        });
        self.ask_for(admitted);
    }

    fn schedule(&mut self, what: &str, to: &MemberId, later: Duration) {
        let kind = if what == "restart" { OperationKind::Restart } else { OperationKind::Switchover };
        let at_ms = millis(self.now + later);
        let admitted = self.look(|s| policy::agenda::admit(s, kind, (None, Some(to)), at_ms, "kim"));
        self.ask_for(admitted.map(Some).map_err(|why| format!("{why:?}")));
    }

    fn roll(&mut self) {
        let wanted = policy::rolling::Wanted { pending: false, primary: PrimaryTurn::InPlace };
        let admitted = self.look(|s| policy::rolling::admit(s, wanted, "kim"));
        self.ask_for(admitted.map(Some));
    }

    fn cancel(&mut self, number: u64) {
        let admitted = self.look(|s| policy::agenda::admit_cancel(s, number, "kim"));
        if let Ok((_, says)) = &admitted {
            self.say(says);
        }
        self.ask_for(admitted.map(|(kind, _)| Some(kind)));
    }

    fn pause(&mut self, on: bool) {
        let admitted = self.look(|s| policy::pause::admit(s, on, "new kernel", "kim"));
        self.ask_for(admitted);
    }

    /// As the leader does it for an operator: asked of the policy, committed, applied.
    fn change_timings(&mut self, profile: Profile) {
        let file = Timings::of(Profile::Normal);
        let admitted = self.look(|s| {
            let overrides = &BTreeMap::new();
            let asked = policy::timings::Asked { profile, overrides, reset: false, instead_of: None };
            policy::timings::admit(s, (Profile::Normal, &file), asked)
        });
        self.ask_for(admitted);
    }

    fn ask_for(&mut self, admitted: Result<Option<Kind>, String>) {
        match admitted {
            Err(why) => self.say(&format!("refused: {why}")),
            Ok(None) => self.say("in force already"),
            Ok(Some(kind)) => {
                let command = Command {
                    request_id: format!("operator {}", self.state.operations),
                    expected: self.state.epoch,
                    because: RuleId(2),
                    kind,
                    evidence: None,
                };
                self.commit(&command);
            }
        }
    }

    fn hear(&mut self, member: &MemberId, manager_heard: bool, agent_heard: bool) {
        let voice = self.voices.get_mut(member).unwrap();
        (voice.manager_heard, voice.agent_heard) = (manager_heard, agent_heard);
        self.hear_all();
    }

    /// Who is not lost reports, and answers again what it was asked before.
    fn hear_all(&mut self) {
        let now = self.now;
        for (member, voice) in self.voices.iter().filter(|(_, v)| v.manager_heard) {
            let entry = self.seen.entry(member.clone()).or_default();
            entry.at = now;
            (entry.promise, entry.format, entry.disk) = (voice.promise, voice.format, voice.disk);
            let agent = voice.agent.clone().filter(|_| voice.agent_heard);
            if agent.is_some() {
                entry.agent_at = now;
                entry.agent.clone_from(&agent);
            }
            if let Some(seal) = self.seals.get_mut(member) {
                seal.promise = Promise { sealed: seal.promise.sealed, ..voice.promise };
                seal.agent = agent;
            }
        }
    }

    fn seal(&mut self, member: &MemberId) {
        let voice = &self.voices[member];
        let promise = Promise { sealed: self.state.epoch, ..voice.promise };
        let agent = voice.agent.clone().filter(|_| voice.agent_heard);
        self.seals.insert(member.clone(), Seal { promise, at: self.now, told_at: self.now, agent });
    }

    fn notice(&mut self, member: &MemberId, end: &str, how: &[&str]) {
        let cause = |c: &&EndCause| how.contains(&c.name());
        let epoch = match &self.state.lock {
            Lock::Fenced { previous: Some((last, _)), .. } => *last,
            _ => self.state.epoch,
        };
        let notice = Notice {
            member: member.clone(),
            epoch,
            fenced: true,
            end: position(end),
            clean: how.contains(&"clean"),
            cause: EndCause::ALL.iter().find(cause).copied().unwrap_or_default(),
        };
        self.notices.insert(member.clone(), notice);
    }

    fn advance(&mut self, time: Duration) {
        self.now = self.now + time;
        self.hear_all();
    }

    fn lead(&mut self) {
        self.seen.clear();
        self.seals.clear();
        self.notices.clear();
        self.lock_seen = None;
        self.operation_seen = None;
        self.since.start = self.now;
        self.since.lead = self.now;
    }

    // ------------------------------------------------------------ decisions

    fn keep_time(&mut self) {
        if self.lock_seen.as_ref() != Some(&self.state.lock) {
            self.lock_seen = Some(self.state.lock.clone());
            self.since.lock = self.now;
            self.seals.retain(|_, seal| seal.promise.sealed == self.state.epoch);
        }
        let operation = self.state.operation.as_ref().map(|o| (o.id, o.phase));
        if self.operation_seen != operation {
            self.operation_seen = operation;
            (self.since.operation, self.since.rolling) = (self.now, self.now);
        }
        self.since.hear_of_work(&self.state, &self.seen);
        let newest = self.state.timings.newest();
        let holder = self.state.holder().and_then(|(_, holder)| self.seen.get(holder)?.agent.as_ref());
        let counts_by_it = holder.is_some_and(|a| a.lease.held && a.lease.timings == newest);
        self.since.timings = match self.since.timings.filter(|(id, _)| *id == newest && counts_by_it) {
            None if counts_by_it => Some((newest, self.now)),
            known => known,
        };
        if self.reader_seen != self.state.reader {
            self.reader_seen = self.state.reader.clone();
            (self.since.reader, self.since.reader_unfit) = (self.now, None);
        }
    }

    fn look<T>(&mut self, look: impl FnOnce(&Situation<'_>) -> T) -> T {
        self.keep_time();
        let timings = self.state.timings.in_force().map_or(Timings::of(Profile::Normal), |c| c.timings);
        let mut situation = Situation {
            state: &self.state,
            seen: &self.seen,
            notices: &self.notices,
            seals: &self.seals,
            group: &self.group,
            founding: self.founding.as_ref(),
            timings: &timings,
            since: self.since,
            now: self.now,
            wall_ms: millis(self.now),
        };
        let since = policy::reader::is_unfit(&situation).then(|| self.since.reader_unfit.unwrap_or(self.now));
        (self.since.reader_unfit, situation.since.reader_unfit) = (since, since);
        look(&situation)
    }

    fn plan(&mut self) -> Plan {
        let request = format!("request {}", self.state.revision);
        let plan = self.look(|s| policy::decide(s, &request));
        if let Some(command) = &plan.command {
            let (rule, name) = (command.because, command.kind.name());
            assert!(policy::proposals::may_propose(rule, &command.kind), "{rule} proposes {name}: policy/proposals.rs");
        }
        if let Some((rule, step)) = &plan.step {
            assert!(policy::proposals::may_change(*rule, step), "{rule} asks for {step:?}: policy/proposals.rs");
        }
        if let Some((rule, _)) = &plan.lead {
            assert_eq!(policy::proposals::of(rule.0), ["lead-elsewhere"], "policy/proposals.rs");
        }
        self.decided.clone_from(&plan.command);
        plan
    }

    fn decide(&mut self) {
        let plan = self.plan();
        if let Some(command) = &plan.command {
            self.say(&describe(command));
        } else if let Some((rule, step)) = &plan.step {
            self.say(&format!("change: {step} ({rule})"));
        } else if let Some((rule, to)) = &plan.lead {
            self.say(&format!("lead: {to} ({rule})"));
        } else if plan.holds.is_empty() {
            self.say("nothing to do");
        }
        for hold in plan.holds {
            self.say(&format!("hold: {hold}"));
        }
    }

    fn commit(&mut self, command: &Command) {
        match self.state.apply(command) {
            Applied::Changed => {}
            Applied::Stale { current, why } => {
                self.say(&format!("stale: {}: {why}, epoch {current} now", command.kind.name()));
            }
            Applied::Nothing => self.say("nothing"),
        }
        self.keep_time();
    }

    fn settle(&mut self) {
        for _ in 0..20 {
            let plan = self.plan();
            let Some(command) = plan.command else { return self.decide() };
            self.say(&describe(&command));
            self.commit(&command);
        }
        panic!("the policy does not come to rest");
    }

    fn ask(&mut self, kind: OperationKind, to: &str, allow_loss: bool) {
        let admit = |s: &Situation<'_>| policy::switchover::admit(s, kind, Some(&id(to)), allow_loss);
        // As the manager that is asked does.
        let first = self.look(|s| admit(s).ok().and_then(|begins| policy::reinit::gives_way(s, &begins)));
        if let Some(first) = first {
            self.begin(Ok(first));
        }
        let admitted = self.look(admit);
        self.begin(admitted);
    }

    fn reinit(&mut self, member: &MemberId, from: Option<&MemberId>) {
        let asked = policy::reinit::Asked { member, from, force: false };
        let admitted = self.look(|s| policy::reinit::admit(s, asked));
        self.begin(admitted);
    }

    fn begin(&mut self, admitted: Result<Kind, String>) {
        match admitted {
            Err(why) => self.say(&format!("refused: {why}")),
            Ok(kind) => {
                let expected = self.state.epoch;
                self.commit(&Command {
                    request_id: format!("operator {}", self.state.operations),
                    expected,
                    because: RuleId(0),
                    kind,
                    evidence: None,
                });
            }
        }
    }

    fn act(&mut self, member: &MemberId) {
        let agent = self.voices[member].agent.as_ref().unwrap();
        let primary_ready = self.state.holder().is_some_and(|(_, holder)| {
            self.voices[holder].agent.as_ref().is_some_and(|a| a.state == PostgresState::Primary)
        });
        let host = Host { state: &self.state, me: member, agent, primary_ready, may_copy: true, copy_from: None };
        let line = next_action(&host).map_or_else(
            || format!("{member}: nothing"),
            |next| format!("{member}: {} ({} in epoch {})", action(&next.action), next.because, next.epoch),
        );
        self.say(&line);
    }

    fn tell_state(&mut self) {
        let lock = match &self.state.lock {
            Lock::Free => "free".to_owned(),
            Lock::Granted { epoch, member, phase, timeline, .. } => {
                format!("granted to {member} in epoch {epoch}, {phase:?} on timeline {timeline}")
            }
            Lock::Released(r) => format!("released by {} at the end of epoch {}", r.member, r.epoch),
            Lock::Fenced { epoch, .. } => format!("fenced, epoch {epoch} begins"),
        };
        self.say(&format!("lock: {lock}"));
        if let Some(o) = self.state.operation.clone() {
            self.say(&format!("operation {}: {:?} to {} in {:?}", o.id, o.kind, o.to, o.phase));
        }
        if let Some(f) = self.state.last_operation.clone() {
            self.say(&format!("last operation {}: {}", f.operation.id, f.reason));
        }
        let timeline = |r: &matriarch::state::TimelineRecord| match r.switch {
            Some(switch) => format!("{} from {switch}", r.timeline),
            None => r.timeline.to_string(),
        };
        let lineage: Vec<String> = self.state.lineage.iter().map(timeline).collect();
        self.say(&format!("timelines: {}", lineage.join(", ")));
    }
}

fn describe(command: &Command) -> String {
    let what = match &command.kind {
        Kind::Genesis { name, members, initializer, .. } => {
            format!("found {name} with {} members, {initializer} runs initdb", members.len())
        }
        Kind::RecordSystem { system_identifier, history: None } => {
            format!("record system identifier {system_identifier}")
        }
        Kind::RecordSystem { system_identifier, history: Some(history) } => {
            format!("record system identifier {system_identifier}, which begins on timeline {}", history.timeline)
        }
        Kind::Fence { reason, .. } => format!("end epoch {}: {reason}", command.expected),
        Kind::GrantRunning { member, floor } => format!("grant to {member}, which goes on running, at {floor}"),
        Kind::Grant { member, floor, sync: None } => format!("grant to {member} at {floor}"),
        Kind::Grant { member, floor, sync: Some(start) } => {
            let names = |of: &[MemberId]| Vec::from_iter(of.iter().map(MemberId::as_str)).join(", ");
            let (holders, confirm) = (names(&start.holders), names(&start.names));
            format!(
                "grant to {member} at {floor}; {holders} have every commit; the first are confirmed by {} of {confirm}",
                start.count
            )
        }
        Kind::PromotionComplete { member, timeline, switch, .. } => {
            format!("{member} is promoted on timeline {timeline} from {switch}")
        }
        Kind::AdoptTimeline { member, timeline, switch, .. } => {
            format!("timeline {timeline} of {member}, which left ours at {switch}, is the cluster's")
        }
        Kind::Open { member } => format!("open {member}"),
        Kind::Release { member, end, clean, .. } => {
            format!("{member} releases at {end}{}", if *clean { ", cleanly" } else { "" })
        }
        Kind::BeginOperation { kind, to, .. } => format!("begin {kind:?} to {to}"),
        Kind::AdvanceOperation { id, phase } => format!("operation {id} goes on to {phase:?}"),
        Kind::EndOperation { id, succeeded: true, reason } => format!("operation {id} succeeded: {reason}"),
        Kind::EndOperation { id, succeeded: false, reason } => format!("operation {id} failed: {reason}"),
        Kind::RecordStonith { member, how, .. } => format!("stonith of {member}: {how}"),
        Kind::SetTimings { profile, .. } => format!("timings of profile {profile}"),
        Kind::SettleTimings { id } => format!("nothing older than timings {id} is in use"),
        Kind::ReplaceNode { member, node, .. } => format!("{member} takes part as node {node}"),
        Kind::AddMember { member, .. } => format!("add {member}"),
        Kind::MoveMember { member, manager, .. } => format!("{member} is at {manager}"),
        Kind::RemoveMember { member } => format!("remove {member}"),
        Kind::SetSettings { changes, .. } => format!("settings: {changes:?}"),
        Kind::Pause { .. } => "pause".to_owned(),
        Kind::Resume { .. } => "resume".to_owned(),
        Kind::Acknowledge { .. } => "failovers after crashes count no more".to_owned(),
        Kind::Maintenance { member, on, stop: Some(_), .. } => format!("stop of {member}: {on}"),
        Kind::Maintenance { member, on, .. } => format!("maintenance of {member}: {on}"),
        Kind::SetSync { rule: Some((names, count)), .. } => {
            let rule = SyncRule { id: 0, epoch: Epoch(0), names: names.clone(), count: *count };
            format!("commits are confirmed by {}", rule.words())
        }
        Kind::SetSync { rule: None, .. } => "commits are confirmed by nobody, nothing is promised".to_owned(),
        Kind::KeepOut { on } => format!("clients are kept out: {on}"),
        Kind::Cascade { member, source, falls, reason } => {
            let source = source.as_ref().map_or("the primary", MemberId::as_str);
            format!("{member} follows {source} after {falls} falls: {reason}")
        }
        Kind::Lend { member, id, life } => {
            format!("{member} has the address for standbys by lend {id}, confirmed for {life:?} each time")
        }
        Kind::EndLend { id, reason } => format!("lend {id} of the address for standbys ends: {reason}"),
        Kind::SettleSync { id } => format!("rule of commits {id} is in effect, older ones go"),
        Kind::Agenda(AgendaChange::Begin { of, kind, to, .. }) => format!("begin {kind:?} to {to} for operation {of}"),
        Kind::Agenda(AgendaChange::Close { id, outcome, reason }) => {
            format!("operation {id} {}: {reason}", outcome.word())
        }
        Kind::Hibernate(HibernateChange::Down { id, end }) => format!("operation {id} goes down with WAL up to {end}"),
        Kind::Hibernate(change) => change.name().to_owned(),
        Kind::Agenda(change) => change.name().to_owned(),
        Kind::NoteFormat { format } => format!("every member can apply format {format}"),
    };
    format!("propose: {what} ({})", command.because)
}

fn action(action: &Action) -> String {
    match action {
        Action::Initdb => "initdb".to_owned(),
        Action::StartStandby { upstream: Some(upstream) } => format!("follow {}", upstream.member),
        Action::StartStandby { upstream: None } => "start read-only, following nobody".to_owned(),
        Action::Promote { timeline, floor } => format!("promote to timeline {timeline}, not below {floor}"),
        Action::RestartInPlace { timeline } => format!("restart in place on timeline {timeline}"),
        Action::Stop { mode: StopMode::Fast, keep_lease } => format!("stop fast, keep the lease: {keep_lease}"),
        Action::Stop { mode: StopMode::Immediate, keep_lease } => format!("stop at once, keep the lease: {keep_lease}"),
        Action::Rewind { source } => format!("rewind from {}", source.member),
        Action::EndClone => "give the copy up".to_owned(),
        Action::Clone { source } => format!("clone from {}", source.member),
        Action::Reinit { operation, source, .. } => format!("clone from {} for operation {operation}", source.member),
        Action::Checkpoint { operation } => format!("checkpoint for operation {operation}"),
    }
}

/// The script with what it prints now in place of what it printed before.
fn play(script: &str) -> String {
    let mut world = World::default();
    let mut played = String::new();
    let mut lines = script.lines();
    while let Some(line) = lines.next() {
        writeln!(played, "{line}").unwrap();
        if line == "----" {
            played.push_str(&std::mem::take(&mut world.out));
            // What was expected before, up to the empty line after it.
            if lines.by_ref().any(str::is_empty) {
                played.push('\n');
            }
        } else if !line.is_empty() && !line.starts_with('#') {
            world.run(line);
        }
    }
    assert!(world.out.is_empty(), "printed and nowhere expected:\n{}", world.out);
    played
}

#[test]
fn every_script_prints_what_it_says() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    let mut wrong = String::new();
    let mut scripts: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    scripts.sort();
    assert!(scripts.len() >= 20, "only {} scripts in {}", scripts.len(), dir.display());
    for path in scripts {
        let script = fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let played = std::panic::catch_unwind(|| play(&script)).unwrap_or_else(|_| panic!("{name} can't be played"));
        assert!(script.lines().count() <= 100, "{name}: a script fits on a screen or two; split it");
        if played != script && update {
            fs::write(&path, &played).unwrap();
        } else if played != script {
            for (expected, got) in script.lines().zip(played.lines()).filter(|(e, g)| e != g).take(6) {
                writeln!(wrong, "{name}\n  expected {expected}\n  got      {got}").unwrap();
            }
            writeln!(wrong, "{name}: {} lines expected, {} got", script.lines().count(), played.lines().count())
                .unwrap();
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}\nUPDATE_EXPECT=1 cargo test --test scenarios writes it into the scripts");
}

/// The two tables in docs/rules.md are the rules as they are compiled.
#[test]
fn the_page_of_rules_is_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/rules.md");
    let page = fs::read_to_string(&path).unwrap();
    let table = |rules: Vec<(u32, &str)>| {
        let rows = rules.iter().map(|(id, name)| format!("| {id} | {name} |\n"));
        format!("| rule | when, and then what |\n| ---: | --- |\n{}", rows.collect::<String>())
    };
    let decided = table(policy::RULES.iter().map(|r| (r.id, r.name)).collect());
    let acted = table(matriarch::reconcile::RULES.iter().map(|r| (r.id, r.name)).collect());
    let written = between(&between(&page, "policy", &decided), "reconcile", &acted);
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&path, &written).unwrap();
    } else {
        assert!(written == page, "docs/rules.md is out of date: UPDATE_EXPECT=1 cargo test --test scenarios writes it");
    }
}

/// `page` with `text` between its markers called `name`.
fn between(page: &str, name: &str, text: &str) -> String {
    let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->"));
    let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("no `{begin}`"));
    let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("no `{end}`"));
    format!("{before}{begin}{text}{end}{after}")
}

#[test]
fn numbers_of_rules_are_in_order_and_each_rule_fires_in_some_script() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let scripts = fs::read_dir(&dir).unwrap().map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap());
    let all: String = scripts.collect();
    let ids: Vec<u32> =
        policy::RULES.iter().map(|r| r.id).chain(matriarch::reconcile::RULES.iter().map(|r| r.id)).collect();
    assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
    let silent: Vec<&u32> = ids
        .iter()
        .filter(|id| !all.contains(&format!("(rule {id})")) && !all.contains(&format!("(rule {id} ")))
        .collect();
    assert_eq!(silent, Vec::<&u32>::new(), "no script shows these rules");
}
