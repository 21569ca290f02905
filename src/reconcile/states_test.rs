//! Every state that the log can come to, every word an agent can say, and what the rules make of
//! them: that they only order what [`EDGES`] has a way for, that each goal can be reached, and
//! that nobody is left where nothing goes on without a reason that is named here.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use super::*;
use crate::{
    domain::{
        CLONES_TRIED, CopyCause, Epoch, Lsn, NeedsCopy, STARTS_TRIED, TimelineHistory, TimelineId, WalPosition,
        observation::{AgentView, REWINDS_TRIED, Work},
    },
    policy::{PROPOSALS, testing},
    reconcile::{Host, RULES, role::first_match},
    state::{Applied, Command, HibernateChange, Kind, RuleId},
};

const ALL_STATES: [PostgresState; 10] =
    [NoData, Stopped, Starting, Standby, Promoting, Primary, Stopping, Crashed, Busy, Failed];

// ---- what the log can come to --------------------------------------------------------------------------------

/// A committed state and the member it is looked at for.
struct Committed {
    state: ClusterState,
    me: MemberId,
}

/// Proposals that ask nothing of any member's PostgreSQL, or, of one that goes on running, what any grant asks.
const ASIDE: [&str; 14] = [
    "begin-next",
    "close-operation",
    "grant-running",
    "settle-sync",
    "keep-out",
    "acknowledge",
    "settle-timings",
    "adopt-timeline",
    "note-format",
    "settle-group",
    "add-learner",
    "join-voters",
    "drop-node",
    "lead-elsewhere",
];

/// All that matters to a member: two states that are alike in it ask the same of it.
fn shape(state: &ClusterState, me: &MemberId) -> String {
    let who = |member: &MemberId| if member == me { "me" } else { "another" };
    let lock = match &state.lock {
        Lock::Free => "free".to_owned(),
        Lock::Granted { member, phase, .. } => format!("granted to {}, {phase:?}", who(member)),
        Lock::Released(_) => "released".to_owned(),
        Lock::Fenced { .. } => "fenced".to_owned(),
    };
    let operation = state.operation.as_ref().map(|o| (o.kind, o.from.as_ref().map(who), who(&o.to), o.phase));
    let initdb = state.system_identifier.is_none() && state.initializer.as_ref() == Some(me);
    let paused = state.paused.is_some();
    let (founded, system) = (state.identity.is_some(), state.system_identifier.is_some());
    let put_aside = (state.maintenance.contains_key(me), state.put_down(me).map(|s| s.force), state.asleep().is_some());
    // Asked of standbys only.
    let confirmed = !state.sync.rules.is_empty() && state.holder().is_none_or(|(_, holder)| holder != me);
    // Asked of whoever follows, and the same whatever else is asked.
    let follows = is_plain(state) && state.holder().is_some_and(|(_, holder)| holder != me);
    let (cascaded, archive) = (follows && state.source_of(me).is_some(), follows && streams_from_nobody(state, me));
    format!("{founded} {initdb} {system} {lock} {operation:?} {paused} {put_aside:?} {confirmed} {cascaded} {archive}")
}

/// A primary that is open, and nothing that operators have asked for.
fn is_plain(state: &ClusterState) -> bool {
    let open = matches!(state.lock, Lock::Granted { phase: GrantPhase::Open, .. });
    open && state.operation.is_none()
        && state.paused.is_none()
        && state.maintenance.is_empty()
        && state.hibernation.is_none()
}

fn streams_from_nobody(state: &ClusterState, me: &MemberId) -> bool {
    state.settings.of_member(me).nostream
}

/// Everything that the commands of the policy's rules and of operators lead to, from nothing on, a
/// state for each shape. Of what a rule asks of hosts nothing is asked here, so there are more than
/// there can be.
fn committed() -> Vec<Committed> {
    let mut all = Vec::new();
    for me in [testing::id("a"), testing::id("b")] {
        let mut found = BTreeMap::from([(shape(&ClusterState::default(), &me), ClusterState::default())]);
        let mut open = vec![ClusterState::default()];
        while let Some(state) = open.pop() {
            for kind in proposals(&state) {
                let mut next = state.clone();
                let request_id = state.operations.to_string();
                let command = Command { request_id, expected: state.epoch, because: RuleId(1), kind, evidence: None };
                if next.apply(&command) == Applied::Changed && !found.contains_key(&shape(&next, &me)) {
                    found.insert(shape(&next, &me), next.clone());
                    open.push(next);
                }
            }
        }
        all.extend(found.into_values().map(|state| Committed { state, me: me.clone() }));
    }
    let mut seen = BTreeSet::new();
    all.retain(|c| seen.insert(shape(&c.state, &c.me)));
    all
}

/// Commands that some rule may propose, or an operator ask for.
fn proposals(state: &ClusterState) -> Vec<Kind> {
    let names: BTreeSet<&str> = PROPOSALS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
    let asked = names.into_iter().filter(|name| !ASIDE.contains(name));
    asked
        .chain(["pause", "resume", "maintenance", "stop-member", "hibernate", "wake", "nostream"])
        .flat_map(|name| commands(name, state))
        .collect()
}

fn commands(name: &str, state: &ClusterState) -> Vec<Kind> {
    let members = ["a", "b", "c"].map(testing::id);
    let holder = state.holder().map(|(_, member)| member.clone());
    let of_holder = |make: fn(MemberId) -> Kind| holder.clone().map(make).into_iter().collect();
    let end = WalPosition { timeline: TimelineId(1), lsn: Lsn(100) };
    match name {
        "genesis" => vec![genesis()],
        "cascade" if is_plain(state) => {
            let [.., source] = &members;
            let lead = |member: &MemberId| Kind::Cascade {
                member: member.clone(),
                source: Some(source.clone()),
                falls: 0,
                reason: String::new(),
            };
            members.iter().map(lead).collect()
        }
        "nostream" if is_plain(state) => vec![Kind::SetSettings {
            version: state.settings.version,
            changes: members.iter().map(|member| (format!("{member}.nostream"), Some("true".to_owned()))).collect(),
            by: String::new(),
            beside: None,
        }],
        "record-system" if state.identity.is_some() => vec![Kind::RecordSystem { system_identifier: 7, history: None }],
        "fence-epoch" if state.system_identifier.is_some() => vec![Kind::fence(String::new())],
        "grant-primary" => {
            successors(state, &members).map(|member| Kind::Grant { member, floor: end, sync: None }).collect()
        }
        "promotion-complete" => match &state.lock {
            Lock::Granted { member, timeline, .. } => vec![Kind::PromotionComplete {
                member: member.clone(),
                timeline: *timeline,
                switch: end,
                first_record: None,
            }],
            Lock::Free | Lock::Released(_) | Lock::Fenced { .. } => vec![],
        },
        "primary-open" => of_holder(|member| Kind::Open { member }),
        "release-primary" => of_holder(|member| Kind::Release {
            member,
            end: WalPosition::default(),
            clean: true,
            cause: crate::domain::EndCause::Unknown,
        }),
        "set-sync" if state.sync.rules.is_empty() => {
            let others = members.iter().filter(|m| Some(*m) != holder.as_ref()).cloned().collect();
            vec![Kind::SetSync { after: state.sync.id, rule: Some((others, 1)) }]
        }
        "set-sync" => vec![Kind::SetSync { after: state.sync.id, rule: None }],
        "pause" => vec![Kind::Pause { reason: String::new(), by: String::new() }],
        "maintenance" => members.iter().flat_map(|member| [true, false].map(|on| maintenance(member, on))).collect(),
        "stop-member" => {
            let (reason, by) = (String::new(), String::new());
            let change = |member: &MemberId, on, force| {
                let (member, reason, by) = (member.clone(), reason.clone(), by.clone());
                Kind::Maintenance { member, on, reason, by, stop: Some(force) }
            };
            let all = |member| [change(member, true, false), change(member, true, true), change(member, false, false)];
            members.iter().flat_map(all).collect()
        }
        "hibernate" => of_holder(|from| {
            let (reason, by) = (String::new(), String::new());
            Kind::Hibernate(HibernateChange::Begin { from, reason, by, force: false })
        }),
        "hibernated" => operation(state, |id| vec![Kind::Hibernate(HibernateChange::Down { id, end })]),
        "wake" => vec![Kind::Hibernate(HibernateChange::Wake { by: String::new() })],
        "resume" => vec![Kind::Resume { by: String::new() }],
        "begin-operation" => members.iter().flat_map(|to| beginnings(holder.as_ref(), to)).collect(),
        "advance-operation" => operation(state, |id| {
            use OperationPhase::{HoldWrites, RollBack, Start, Stop, Transfer};
            let restart = state.operation.as_ref().is_some_and(|o| o.kind == OperationKind::Restart);
            // Rule 264 transfers nothing.
            let last = if restart { Start } else { Transfer };
            // It goes there by another command.
            let last = if state.hibernation.is_some() { Stop } else { last };
            [HoldWrites, Stop, last, RollBack].map(|phase| Kind::AdvanceOperation { id, phase }).to_vec()
        }),
        "end-operation" => {
            operation(state, |id| vec![Kind::EndOperation { id, succeeded: true, reason: String::new() }])
        }
        "record-system" | "fence-epoch" | "cascade" | "nostream" | "lend" | "end-lend" => vec![],
        other => panic!("a rule proposes {other}: make such a command here, or say that it asks nothing of hosts"),
    }
}

fn genesis() -> Kind {
    let founded = testing::state("free");
    let identity = founded.identity.expect("a founded cluster");
    Kind::Genesis {
        cluster_id: identity.cluster_id,
        generation: identity.generation,
        name: identity.name,
        members: founded.members.into_iter().collect(),
        initializer: testing::id("a"),
    }
}

/// Beyond the point of no return the target alone is granted (rule 410).
fn successors<'a>(state: &'a ClusterState, members: &'a [MemberId]) -> impl Iterator<Item = MemberId> + 'a {
    let forced = state.operation.as_ref().filter(|o| o.phase == OperationPhase::Transfer).map(|o| &o.to);
    members.iter().filter(move |member| forced.is_none_or(|to| to == *member)).cloned()
}

fn beginnings(holder: Option<&MemberId>, to: &MemberId) -> Vec<Kind> {
    let begin = |kind| Kind::BeginOperation { kind, from: holder.cloned(), to: to.clone(), accepts_loss: false };
    [OperationKind::Switchover, OperationKind::Failover, OperationKind::Restart].map(begin).to_vec()
}

fn maintenance(member: &MemberId, on: bool) -> Kind {
    Kind::Maintenance { member: member.clone(), on, reason: String::new(), by: String::new(), stop: None }
}

fn operation(state: &ClusterState, make: impl Fn(u64) -> Vec<Kind>) -> Vec<Kind> {
    state.operation.as_ref().map(|o| make(o.id)).unwrap_or_default()
}

// ---- what an agent can say -----------------------------------------------------------------------------------

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lease {
    None,
    Held,
    OfAnEarlierEpoch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wal {
    /// All of it is the primary's, too.
    Shared,
    Diverged,
    /// No history in common.
    Foreign,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spent {
    Nothing,
    Rewinds,
    Clones,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Upstream {
    Nobody,
    Primary,
    Another,
}

/// All that the rules read of a host.
#[derive(Debug, Clone, Copy)]
struct View {
    postgres: PostgresState,
    lease: Lease,
    /// The present epoch has ended here.
    ended: bool,
    end_known: bool,
    half_rewound: bool,
    wal: Wal,
    /// A standby that did not end cleanly.
    crashed: bool,
    /// Its data leads nowhere: its agent says so, or, of a standby that crashed, its starts have failed.
    useless: bool,
    may_copy: bool,
    /// Its work is a copy.
    copying: bool,
    spent: Spent,
    upstream: Upstream,
    primary_ready: bool,
    checkpointed: bool,
    by_hand: bool,
    other_system: bool,
    /// It has given up what the last epoch needed of it, or follows under its name of the present one.
    word: bool,
}

const PLAIN: View = View {
    postgres: Stopped,
    lease: Lease::None,
    ended: false,
    end_known: true,
    half_rewound: false,
    wal: Wal::Shared,
    crashed: false,
    useless: false,
    may_copy: true,
    copying: false,
    spent: Spent::Nothing,
    upstream: Upstream::Nobody,
    primary_ready: false,
    checkpointed: false,
    by_hand: false,
    other_system: false,
    word: false,
};

impl View {
    /// What an agent does say: nothing of a directory while PostgreSQL runs, of a lease only where it may have one.
    fn can_be(&self) -> bool {
        let tenure = matches!(self.postgres, Stopped | Starting | Promoting | Primary | Stopping | Crashed);
        let stopped = self.postgres == Stopped;
        let data = matches!(self.postgres, Stopped | Standby) || self.useless;
        let in_line = matches!(self.postgres, Stopped | Standby | Starting | Failed);
        (tenure || self.lease == Lease::None)
            && !(self.ended && self.lease == Lease::Held)
            && (stopped || (self.end_known && !self.half_rewound))
            && (self.may_copy || self.useless)
            && (!self.copying || self.postgres == Busy)
            // What was tried before matters to none of the rest of it.
            && (!self.useless || self.spent != Spent::Rewinds)
            && (!self.useless || (in_line && self.lease == Lease::None && !self.ended && !self.half_rewound))
            && (matches!(self.postgres, Stopped | Standby) || self.wal == Wal::Shared)
            // It matters to nobody else.
            && (!self.crashed || (stopped && self.wal == Wal::Diverged && self.lease == Lease::None))
            && (data || self.postgres == NoData || (self.spent == Spent::Nothing && !self.primary_ready))
            && (self.postgres == Standby || self.upstream == Upstream::Nobody)
            && (self.postgres == Primary || !self.checkpointed)
            && (self.postgres == Standby || !self.word)
            && (stopped || !self.by_hand)
            && (self.postgres != NoData || !self.other_system)
    }

    fn agent(&self, state: &ClusterState, me: &MemberId) -> AgentView {
        let mut agent = testing::agent(me.as_str(), "stopped 1:50");
        agent.state = self.postgres;
        agent.system_identifier = (self.postgres != NoData).then_some(if self.other_system { 8 } else { 7 });
        agent.lease.held = self.lease != Lease::None;
        agent.lease.epoch = match self.lease {
            Lease::None => Epoch(0),
            Lease::Held => state.epoch,
            Lease::OfAnEarlierEpoch => Epoch(state.epoch.0.saturating_sub(1).max(1)),
        };
        agent.ended_epoch = if self.ended { state.epoch } else { Epoch(0) };
        agent.wal_end_known = self.end_known;
        agent.rewind_unfinished = self.half_rewound;
        agent.crashed_standby = self.crashed;
        agent.work = self.copying.then(|| Work { kind: "clone".to_owned(), ..Work::default() });
        match (self.useless, self.crashed) {
            (false, _) => {}
            (true, true) => agent.cure.failed_starts = STARTS_TRIED,
            (true, false) => {
                agent.cure.needs_copy = Some(NeedsCopy { cause: CopyCause::EndsEarly, why: String::new() });
            }
        }
        match self.wal {
            Wal::Shared => {}
            // Every timeline of these states begins at 1:100.
            Wal::Diverged => agent.wal_end.lsn = Lsn(150),
            Wal::Foreign => agent.history = TimelineHistory::root(TimelineId(99)),
        }
        match self.spent {
            Spent::Nothing => {}
            Spent::Rewinds => agent.rewind_failures = REWINDS_TRIED,
            Spent::Clones => agent.clone_failures = CLONES_TRIED,
        }
        let upstream = state.upstream_of(me).or_else(|| state.holder().map(|(_, member)| member)).cloned();
        agent.upstream = match self.upstream {
            Upstream::Nobody => None,
            Upstream::Primary => upstream,
            Upstream::Another => Some(testing::id("nobody")),
        };
        agent.severed = self.word;
        agent.accepted_epoch = if self.word { state.epoch } else { Epoch(0) };
        agent.follows_epoch = if self.word { state.epoch } else { Epoch(0) };
        agent.stopped_by_hand = self.by_hand;
        agent.checkpoints_done = if self.checkpointed { state.operations } else { 0 };
        agent
    }
}

/// Every combination that an agent can say.
fn views() -> Vec<View> {
    let mut all = vec![PLAIN];
    vary(&mut all, ALL_STATES, |view, value| view.postgres = value);
    vary(&mut all, [Lease::None, Lease::Held, Lease::OfAnEarlierEpoch], |view, value| view.lease = value);
    vary(&mut all, [false, true], |view, value| view.ended = value);
    vary(&mut all, [true, false], |view, value| view.end_known = value);
    vary(&mut all, [false, true], |view, value| view.half_rewound = value);
    vary(&mut all, [Wal::Shared, Wal::Diverged, Wal::Foreign], |view, value| view.wal = value);
    vary(&mut all, [false, true], |view, value| view.crashed = value);
    vary(&mut all, [false, true], |view, value| view.useless = value);
    vary(&mut all, [true, false], |view, value| view.may_copy = value);
    vary(&mut all, [false, true], |view, value| view.copying = value);
    vary(&mut all, [Spent::Nothing, Spent::Rewinds, Spent::Clones], |view, value| view.spent = value);
    vary(&mut all, [Upstream::Nobody, Upstream::Primary, Upstream::Another], |view, value| view.upstream = value);
    vary(&mut all, [false, true], |view, value| view.primary_ready = value);
    vary(&mut all, [false, true], |view, value| view.checkpointed = value);
    vary(&mut all, [false, true], |view, value| view.by_hand = value);
    vary(&mut all, [false, true], |view, value| view.word = value);
    // Nothing else is asked about the data of another cluster.
    let others = ALL_STATES.map(|postgres| View { postgres, other_system: true, ..PLAIN });
    all.extend(others.into_iter().filter(View::can_be));
    all
}

fn vary<T: Copy>(views: &mut Vec<View>, values: impl IntoIterator<Item = T>, set: fn(&mut View, T)) {
    let values: Vec<T> = values.into_iter().collect();
    let varied = views.iter().flat_map(|view| {
        values.iter().map(|value| {
            let mut view = *view;
            set(&mut view, *value);
            view
        })
    });
    // Early, or there would be too many in between. `PLAIN` can be with each state and every flag after it.
    *views = varied.filter(View::can_be).collect();
}

// ---- where a host is left as it is ---------------------------------------------------------------------------

/// One host under one committed state.
struct Case<'a> {
    goal: Goal,
    view: View,
    committed: &'a Committed,
}

impl Case<'_> {
    fn is_met(&self) -> bool {
        let archive = streams_from_nobody(&self.committed.state, &self.committed.me);
        let led = if archive { self.view.word } else { self.view.upstream == Upstream::Primary };
        let follows = led && self.view.wal == Wal::Shared;
        let confirmed = !self.committed.state.sync.rules.is_empty();
        let fenced = matches!(self.committed.state.lock, Lock::Fenced { .. });
        let given_up = !confirmed || !fenced || self.view.word || self.view.postgres != Standby;
        let named = !confirmed || self.view.word;
        self.goal.met_in().contains(&self.view.postgres)
            && match self.goal {
                Goal::Follow => follows && named,
                Goal::WaitAlone => given_up,
                _ => true,
            }
    }

    fn granted(&self) -> bool {
        self.committed.state.holder().is_some_and(|(_, holder)| *holder == self.committed.me)
    }

    fn copies(&self) -> bool {
        let view = self.view;
        let rewinds = view.half_rewound || view.wal == Wal::Diverged;
        self.goal == Goal::Follow && (view.useless || rewinds || view.wal == Wal::Foreign || view.postgres == NoData)
    }
}

/// Where PostgreSQL may stay; in every other state something has to go on.
const AT_REST: [PostgresState; 4] = [NoData, Stopped, Standby, Primary];

/// A reason to order nothing though the goal is not met, and when it is one.
type Rest = (&'static str, fn(&Case<'_>) -> bool);

/// The first that holds is the reason.
const RESTS: [Rest; 12] = [
    ("the cluster is not founded here: nothing is touched", |c| c.committed.state.identity.is_none()),
    ("its data is of another cluster: an operator has to look", |c| c.view.other_system),
    ("somebody stopped it while the cluster is paused: `matriarch restart`, or `matriarch resume`", |c| {
        c.view.by_hand && c.committed.state.paused.is_some()
    }),
    ("it has no data, and there is no primary to copy it from", |c| {
        c.view.postgres == NoData && c.goal != Goal::Follow
    }),
    ("the end of its WAL is being read", |c| !c.view.end_known && !c.view.half_rewound),
    ("the primary is not ready to be copied from", |c| c.copies() && !c.view.primary_ready),
    ("five copies have failed: one more every ten minutes", |c| c.copies() && c.view.spent == Spent::Clones),
    ("its data is of no use, and others are copied first (`max_concurrent_clones`)", |c| {
        c.copies() && c.view.useless && !c.view.may_copy
    }),
    ("a rewind was cut off, and there is no primary to go on with", |c| c.view.half_rewound),
    ("it confirms commits until the rule without it is in effect (rules 432, 430)", |c| {
        let confirms = c.committed.state.sync.rules.iter().any(|rule| rule.names.contains(&c.committed.me));
        c.goal == Goal::Stop && c.view.postgres == Standby && confirms
    }),
    ("the epoch it was granted has ended here: rule 110 or 330 ends it for all", |c| c.granted() && c.view.ended),
    ("it was granted what it can't be any more: the lease runs out (rule 330)", |c| {
        c.granted() && c.view.lease != Lease::Held
    }),
];

/// What the agent waits for without a limit: faults that are known. The list only gets shorter.
const NO_LIMIT: [(PostgresState, &str); 2] =
    [(Starting, "it answers, read-only"), (Stopping, "its processes end or are killed, the directory is read")];

// ---- the check -----------------------------------------------------------------------------------------------

/// What the rules order: under which goal, in which state, and by which rule.
type Given = BTreeSet<(Goal, usize, ActionKind, u32)>;

/// Cases that are alike for the check.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kindred {
    goal: Goal,
    state: usize,
    is_met: bool,
    /// The first of [`RESTS`] that holds.
    rest: Option<&'static str>,
    /// What each rule that matches orders, in the order of the rules.
    orders: Vec<(u32, ActionKind)>,
}

fn index(state: PostgresState) -> usize {
    ALL_STATES.iter().position(|s| *s == state).expect("all states are listed")
}

/// Every case there is, each kind of them once, with one of it in words.
static CASES: LazyLock<BTreeMap<Kindred, String>> = LazyLock::new(|| {
    let (mut cases, views) = (BTreeMap::new(), views());
    for committed in &committed() {
        let goal = goal(&committed.state, &committed.me);
        for view in &views {
            let case = Case { goal, view: *view, committed };
            let kindred = Kindred {
                goal,
                state: index(view.postgres),
                is_met: case.is_met(),
                rest: RESTS.iter().find(|(_, holds)| holds(&case)).map(|(why, _)| *why),
                orders: orders(&case),
            };
            cases.entry(kindred).or_insert_with(|| format!("{view:?}, {:?}", committed.state.lock));
        }
    }
    cases
});

fn orders(case: &Case<'_>) -> Vec<(u32, ActionKind)> {
    let Committed { state, me } = case.committed;
    let agent = case.view.agent(state, me);
    let host = Host {
        state,
        me,
        agent: &agent,
        primary_ready: case.view.primary_ready,
        may_copy: case.view.may_copy,
        copy_from: None,
    };
    let (mut orders, mut rules) = (Vec::new(), RULES);
    while let Some(next) = first_match(rules, &host) {
        orders.push((next.because.0, ActionKind::from(&next.action)));
        rules = &rules[1 + rules.iter().position(|rule| rule.id == next.because.0).expect("one of them")..];
    }
    orders
}

/// All that is wrong with `edges` under the rules but `without`, in words.
fn problems(without: u32, edges: &[Edge]) -> Vec<String> {
    let mut wrong = Vec::new();
    let (mut goals, mut given, mut rests) = (BTreeSet::new(), Given::new(), BTreeSet::new());
    for (case, example) in CASES.iter() {
        goals.insert(case.goal);
        let goes_on = edges.iter().any(|e| index(e.from) == case.state && matches!(e.cause, Cause::Awaited(..)));
        match (case.orders.iter().find(|(rule, _)| *rule != without), case.rest) {
            (Some((rule, kind)), _) => drop(given.insert((case.goal, case.state, *kind, *rule))),
            (None, _) if case.is_met || goes_on => {}
            (None, Some(why)) if AT_REST.contains(&ALL_STATES[case.state]) => drop(rests.insert(why)),
            (None, _) => wrong.push(format!("{:?} is asked and nothing goes on: {example}", case.goal)),
        }
    }
    let unasked = Goal::ALL.iter().filter(|goal| !goals.contains(goal));
    wrong.extend(unasked.map(|goal| format!("nothing that is committed asks for {goal:?}")));
    let unused = RESTS.iter().filter(|(why, _)| !rests.contains(why));
    wrong.extend(unused.map(|(why, _)| format!("no reason to rest: {why}")));
    wrong.extend(orders_without_an_edge(&given, edges));
    wrong.extend(edges_without_an_order(&given, edges));
    wrong.extend(goals_out_of_reach(&given, edges));
    wrong.extend(waits_without_a_limit(edges));
    wrong
}

/// Where `edges` lead from `state` by orders that are `given` and by what the agent waits for.
fn reached(
    edges: &[Edge],
    from: PostgresState,
    given: impl Fn(PostgresState, ActionKind) -> bool,
) -> Vec<PostgresState> {
    let mut reached = vec![from];
    let mut next = 0;
    while let Some(state) = reached.get(next).copied() {
        next += 1;
        for edge in edges.iter().filter(|e| e.from == state) {
            let goes = match edge.cause {
                Cause::Order(kind, _) => given(state, kind),
                Cause::Awaited(..) => true,
                Cause::Event(_) => false,
            };
            if goes && !reached.contains(&edge.to) {
                reached.push(edge.to);
            }
        }
    }
    reached
}

fn orders_without_an_edge(given: &Given, edges: &[Edge]) -> Vec<String> {
    let leads = |state: usize, kind: ActionKind, rule: u32| {
        edges.iter().any(|e| {
            index(e.from) == state && matches!(e.cause, Cause::Order(k, rules) if k == kind && rules.contains(&rule))
        })
    };
    let missing = given.iter().filter(|(_, state, kind, rule)| !leads(*state, *kind, *rule));
    missing
        .map(|(_, state, kind, rule)| {
            format!("rule {rule} orders {kind} of one that is {:?}: where to?", ALL_STATES[*state])
        })
        .collect()
}

fn edges_without_an_order(given: &Given, edges: &[Edge]) -> Vec<String> {
    let mut wrong = Vec::new();
    for edge in edges {
        let Cause::Order(kind, rules) = edge.cause else { continue };
        for rule in rules {
            let is_given = given.iter().any(|(_, s, k, r)| (*s, *k, *r) == (index(edge.from), kind, *rule));
            if !is_given {
                wrong.push(format!("rule {rule} never orders {kind} of one that is {:?}", edge.from));
            }
        }
    }
    wrong
}

/// From every state each goal can be reached; and one that is ordered about under a goal gets there by what is
/// ordered under that very goal.
fn goals_out_of_reach(given: &Given, edges: &[Edge]) -> Vec<String> {
    let mut wrong = Vec::new();
    for goal in Goal::ALL {
        let ordered = |state: PostgresState, kind: ActionKind| {
            given.iter().any(|(g, s, k, _)| (*g, *s, *k) == (goal, index(state), kind))
        };
        for state in ALL_STATES {
            let met = |reached: Vec<PostgresState>| reached.iter().any(|s| goal.met_in().contains(s));
            if !met(reached(edges, state, |_, _| true)) {
                wrong.push(format!("no way leads from {state:?} to {goal:?}"));
            }
            let is_ordered = given.iter().any(|(g, s, ..)| (*g, *s) == (goal, index(state)));
            if is_ordered && !met(reached(edges, state, ordered)) {
                wrong.push(format!("what is ordered of one that is {state:?} does not lead to {goal:?}"));
            }
        }
    }
    wrong
}

fn waits_without_a_limit(edges: &[Edge]) -> Vec<String> {
    let endless = |edge: &&Edge| matches!(edge.cause, Cause::Awaited(_, Patience::Endless));
    let found = edges.iter().filter(endless).map(|edge| match edge.cause {
        Cause::Awaited(what, _) => (edge.from, what),
        Cause::Order(..) | Cause::Event(_) => (edge.from, ""),
    });
    let found: Vec<(PostgresState, &str)> = found.collect();
    let new = found.iter().filter(|wait| !NO_LIMIT.contains(wait));
    let old = NO_LIMIT.iter().filter(|wait| !found.contains(wait));
    new.map(|(state, what)| format!("{state:?} waits without a limit: {what}"))
        .chain(old.map(|(state, what)| format!("{state:?} has a limit now, take it off the list: {what}")))
        .collect()
}

/// No rule has this number.
const NONE: u32 = 0;

/// One test, for all three look at every case there is, which takes a while to list.
#[test]
fn what_is_asked_of_a_member_can_be_reached_and_left_and_no_edge_or_rule_is_for_nothing() {
    let wrong = problems(NONE, EDGES);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (left_out, edge) in EDGES.iter().enumerate() {
        let fewer: Vec<Edge> = (0..EDGES.len()).filter(|i| *i != left_out).map(|i| EDGES[i]).collect();
        // What happens by itself no rule relies on: the walk of the agent's tests notices those.
        let relied_on = !matches!(edge.cause, Cause::Event(_));
        assert!(!relied_on || !problems(NONE, &fewer).is_empty(), "nobody misses {edge:?}");
    }
    for rule in RULES {
        assert!(!problems(rule.id, EDGES).is_empty(), "nobody misses rule {}", rule.id);
    }
}

#[test]
fn a_goal_is_read_from_lock_and_switchover() {
    let table = [
        ("free", "a", Goal::WaitAlone),
        ("fenced", "a", Goal::WaitAlone),
        ("released b", "a", Goal::WaitAlone),
        ("granted a promoting 2", "a", Goal::Promote),
        ("granted a promoting 2", "b", Goal::AwaitPrimary),
        ("granted a promoted 2", "a", Goal::Primary),
        ("granted a open 2", "b", Goal::Follow),
        ("granted a open 2; switchover b hold", "a", Goal::Primary),
        ("granted a open 2; switchover b stop", "a", Goal::StopKeepingLease),
        ("granted a open 2; switchover b stop", "b", Goal::Follow),
        ("granted a open 2; switchover b transfer", "a", Goal::StepDown),
        ("granted a open 2; switchover b rollback", "a", Goal::Primary),
        ("granted a open 2; hibernate a stop", "a", Goal::StopKeepingLease),
        ("granted a open 2; hibernate a stop", "b", Goal::Follow),
        ("granted a open 2; failover b", "a", Goal::Primary),
    ];
    for (lock, me, expected) in table {
        assert_eq!(goal(&testing::state(lock), &testing::id(me)), expected, "lock {lock}, {me}");
    }
    let mut unfounded = testing::state("free");
    unfounded.system_identifier = None;
    assert_eq!(goal(&unfounded, &testing::id("a")), Goal::Found);
    assert_eq!(goal(&unfounded, &testing::id("b")), Goal::Nothing);
    assert_eq!(goal(&ClusterState::default(), &testing::id("a")), Goal::Nothing);
}

// ---- the page ------------------------------------------------------------------------------------------------

/// The parts of docs/states.md between markers are what is compiled.
#[test]
fn the_page_of_states_is_the_code() {
    let page = include_str!("../../docs/states.md").to_owned();
    let goal = |goal: &Goal| {
        let met: Vec<String> = goal.met_in().iter().map(|state| format!("{state:?}")).collect();
        format!("| {goal:?} | {} | {} |\n", goal.asked_when(), met.join(", "))
    };
    let goals: String = Goal::ALL.iter().map(goal).collect();
    let rests: String = RESTS.iter().zip(1..).map(|((why, _), n)| format!("{n}. {why}\n")).collect();
    let endless: String = NO_LIMIT.iter().map(|(state, what)| format!("- {state:?}: {what}\n")).collect();
    let parts = [
        ("goals", format!("| goal | asked when | done in |\n| --- | --- | --- |\n{goals}")),
        ("drawing", format!("```mermaid\n{}```\n", mermaid())),
        ("rests", rests),
        ("endless", endless),
    ];
    let written = parts.iter().fold(page.clone(), |page, (name, text)| between(&page, name, text));
    assert!(written == page, "docs/states.md is out of date; it has to read:\n{written}");
}

/// `page` with `text` between its markers called `name`.
fn between(page: &str, name: &str, text: &str) -> String {
    let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->"));
    let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("no `{begin}`"));
    let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("no `{end}`"));
    format!("{before}{begin}{text}{end}{after}")
}
