//! The rules that lead a host to its role, in order; the first match wins.

use super::rejoin::{Rejoin, rejoin};
use crate::{
    domain::{
        CLONES_TRIED, CopyCause, EndCause, Epoch, Format, MemberId, PostgresState, STARTS_TRIED, SyncMode, TimelineId,
        WalPosition,
        observation::{AgentView, REWINDS_TRIED},
    },
    state::{
        ClusterState, GrantPhase, Lock, Member, Operation, OperationKind, OperationPhase, Reign, RuleId, TimelineRecord,
    },
};

/// All a host needs to know to find its next action.
#[derive(Debug, Clone, Copy)]
pub struct Host<'a> {
    /// The committed state as this host has applied it.
    pub state: &'a ClusterState,
    /// Which member this is.
    pub me: &'a MemberId,
    /// What its agent says.
    pub agent: &'a AgentView,
    /// The leader says that the primary accepts writes and has checkpointed on its timeline.
    pub primary_ready: bool,
    /// The leader says that this host may replace data that is of no use by a copy now.
    pub may_copy: bool,
    /// The standby that the leader says to copy; `None`: the primary is copied.
    pub copy_from: Option<&'a MemberId>,
}

/// Whom a standby follows, or a rewind or clone copies from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// Which member.
    pub member: MemberId,
    /// `host:port` of its PostgreSQL.
    pub postgres: String,
}

/// How PostgreSQL is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Sessions end, a shutdown checkpoint is written, standbys get all WAL.
    Fast,
    /// At once, without a checkpoint.
    Immediate,
}

/// What a host does to itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Create the first data directory of the cluster.
    Initdb,
    /// Start as a standby, or point a running one at another upstream.
    StartStandby {
        /// Whom to follow; `None`: read-only, following nobody.
        upstream: Option<Upstream>,
    },
    /// Take the lease and become primary.
    Promote {
        /// The timeline the grant reserved.
        timeline: TimelineId,
        /// The WAL end the grant was decided on.
        floor: WalPosition,
    },
    /// Start a primary again under the lease it still holds.
    RestartInPlace {
        /// The timeline of its grant.
        timeline: TimelineId,
    },
    /// Stop PostgreSQL.
    Stop {
        /// How.
        mode: StopMode,
        /// Go on renewing the lease, because the stop may be rolled back.
        keep_lease: bool,
    },
    /// Undo WAL the primary never had.
    Rewind {
        /// The primary.
        source: Upstream,
    },
    /// Copy everything anew.
    Clone {
        /// The primary.
        source: Upstream,
    },
    /// Copy everything anew, for an operator wants it.
    Reinit {
        /// The operation.
        operation: u64,
        /// The primary, or whom else to copy.
        source: Upstream,
        /// The operator named it.
        named: bool,
    },
    /// Give up a copy that is under way.
    EndClone,
    /// Flush now, so that a stop is short.
    Checkpoint {
        /// The operation it is for.
        operation: u64,
    },
}

/// The next action of a host, the rule that asked for it, and the epoch it is ordered in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Next {
    /// The rule.
    pub because: RuleId,
    /// The epoch of the order.
    pub epoch: Epoch,
    /// What to do.
    pub action: Action,
}

/// A rule: number, condition in words, function.
pub struct Rule {
    /// Its number, in logs and orders.
    pub id: u32,
    /// When it matches.
    pub name: &'static str,
    decide: fn(&Host<'_>) -> Option<Action>,
}

/// Orders have numbers from here on; one that carries an operation out has the number of that, below.
pub const FIRST_ORDER: u64 = 1 << 40;

/// What nobody is spared, whatever is at work on a host.
const STEP_DOWN: u32 = 540;
/// What a member that is put aside is still asked for.
const PUT_DOWN: u32 = 543;
/// The one rule for a host with work under way.
const END_CLONE: u32 = 545;

/// The rules in order. The first that matches wins.
pub const RULES: &[Rule] = &[
    Rule { id: 510, name: "the initializer of a founded cluster has no data: initdb", decide: initdb },
    Rule { id: 520, name: "switchover, restart or hibernation: the primary flushes early", decide: checkpoint },
    Rule {
        id: 525,
        name: "switchover, restart or hibernation: the primary stops and keeps its lease",
        decide: stop_for_switchover,
    },
    Rule { id: 527, name: "restart: the standby stops", decide: stop_for_restart },
    Rule { id: 530, name: "granted here: promote the standby", decide: promote },
    Rule { id: 535, name: "granted here, lease held, PostgreSQL gone: restart in place", decide: restart },
    Rule { id: STEP_DOWN, name: "the lock moved on: stop what was primary, give the lease up", decide: step_down },
    Rule {
        id: PUT_DOWN,
        name: "stopped by command, or with the whole cluster: the standby stops, and stays so",
        decide: put_down,
    },
    Rule {
        id: END_CLONE,
        name: "in maintenance, stopped, or wanted by nobody any more: a copy that is under way is given up",
        decide: end_clone,
    },
    Rule {
        id: 550,
        name: "no data, data of no use, a rejoin by copy is due, or an operator wants one: clone",
        decide: clone,
    },
    Rule { id: 560, name: "diverged from the primary: rewind", decide: rewind },
    Rule { id: 562, name: "a standby that crashed has diverged: start it, to be stopped cleanly", decide: recover },
    Rule { id: 565, name: "an epoch with rules of commits is over: its standbys give it up", decide: sever },
    Rule { id: 568, name: "a standby that streams from nobody: it follows by its archive", decide: read_archive },
    Rule { id: 570, name: "a standby follows the primary, or the standby it is to stream from", decide: follow },
    Rule { id: 580, name: "nobody to follow: start read-only and wait", decide: start_alone },
];

/// The next action of a host, `None` when it is where it should be or has work under way.
pub fn next_action(host: &Host<'_>) -> Option<Next> {
    first_match(RULES, host)
}

/// The first of `rules` that matches. The rules are given, so that a test can leave one out.
pub(super) fn first_match<'r>(rules: impl IntoIterator<Item = &'r Rule>, host: &Host<'_>) -> Option<Next> {
    let agent = host.agent;
    // What can't be used as it is needs an operator, unless the reason is known to lie in it.
    let failed = agent.state == PostgresState::Failed && agent.cure.needs_copy.is_none() && my_reinit(host).is_none();
    let busy = agent.work.is_some() || agent.state == PostgresState::Busy || failed;
    let put_aside = host.state.maintenance.contains_key(host.me) || host.state.asleep().is_some();
    if host.state.identity.is_none() || !same_system(host) || is_left_alone(host) {
        return None;
    }
    let counts =
        |rule: &&Rule| if busy { rule.id == END_CLONE } else { !put_aside || [STEP_DOWN, PUT_DOWN].contains(&rule.id) };
    rules.into_iter().filter(counts).find_map(|rule| {
        let action = (rule.decide)(host)?;
        Some(Next { because: RuleId(rule.id), epoch: host.state.epoch, action })
    })
}

/// Somebody stopped it while the cluster is paused, and may be at work on it. What the log asks of it in a pause an
/// operator has asked for: a restart, a grant, or that it gives its lease up.
fn is_left_alone(host: &Host<'_>) -> bool {
    let stopped = host.agent.stopped_by_hand && host.agent.state == PostgresState::Stopped;
    let asked = match my_grant(host) {
        Some((_, phase, ..)) => phase == GrantPhase::Promoting,
        None => host.agent.lease.epoch > Epoch(0),
    };
    host.state.paused.is_some() && stopped && !asked && my_restart(host).is_none()
}

/// Data of another cluster is never touched.
fn same_system(host: &Host<'_>) -> bool {
    match (host.agent.system_identifier, host.state.system_identifier) {
        (Some(here), Some(cluster)) => here == cluster,
        (None, _) | (_, None) => true,
    }
}

fn initdb(host: &Host<'_>) -> Option<Action> {
    let mine = host.state.initializer.as_ref() == Some(host.me) && host.state.system_identifier.is_none();
    let given_up = host.agent.cure.needs_operator.is_some();
    (mine && host.agent.state == PostgresState::NoData && !given_up).then_some(Action::Initdb)
}

/// The grant, when this host has it and has not ended it.
fn my_grant(host: &Host<'_>) -> Option<(Epoch, GrantPhase, TimelineId, WalPosition)> {
    match &host.state.lock {
        Lock::Granted { epoch, member, phase, timeline, floor, .. } if member == host.me => {
            (host.agent.ended_epoch < *epoch).then_some((*epoch, *phase, *timeline, *floor))
        }
        Lock::Granted { .. } | Lock::Free | Lock::Released(_) | Lock::Fenced { .. } => None,
    }
}

/// The switchover away from this host, or the hibernation in which it is the primary, and its phase.
fn my_switchover(host: &Host<'_>) -> Option<(u64, OperationPhase)> {
    let operation = host.state.operation.as_ref()?;
    let kind = matches!(operation.kind, OperationKind::Switchover | OperationKind::Hibernate);
    let mine = kind && operation.from.as_ref() == Some(host.me);
    mine.then_some((operation.id, operation.phase))
}

/// The restart of this host, and its phase.
fn my_restart(host: &Host<'_>) -> Option<(u64, OperationPhase)> {
    let operation = host.state.operation.as_ref()?;
    let mine = operation.kind == OperationKind::Restart && operation.to == *host.me;
    mine.then_some((operation.id, operation.phase))
}

/// The copy of this host's data that an operator wants, unless it is made already, or failed.
fn my_reinit<'a>(host: &Host<'a>) -> Option<&'a Operation> {
    let operation = host.state.operation.as_ref()?;
    let mine = operation.kind == OperationKind::Reinit && operation.to == *host.me;
    let due = mine && operation.phase == OperationPhase::Copy;
    let failed = host.agent.last_order.as_ref().is_some_and(|o| o.order == operation.id && o.error.is_some());
    let open = host.agent.copied_for.is_some_and(|order| order != operation.id) && !failed;
    (due && open).then_some(operation)
}

/// It is being stopped for a restart, and stays down until that is seen.
fn stops_for_restart(host: &Host<'_>) -> bool {
    my_restart(host).is_some_and(|(_, phase)| phase == OperationPhase::Stop)
}

fn checkpoint(host: &Host<'_>) -> Option<Action> {
    my_grant(host)?;
    let (operation, phase) = my_switchover(host).or_else(|| my_restart(host))?;
    let due = phase == OperationPhase::Checkpoint && host.agent.checkpoints_done < operation;
    (due && host.agent.state == PostgresState::Primary).then_some(Action::Checkpoint { operation })
}

fn stop_for_switchover(host: &Host<'_>) -> Option<Action> {
    my_grant(host)?;
    let (_, phase) = my_switchover(host).or_else(|| my_restart(host))?;
    let due = phase == OperationPhase::Stop && host.agent.state == PostgresState::Primary;
    due.then_some(Action::Stop { mode: StopMode::Fast, keep_lease: true })
}

fn stop_for_restart(host: &Host<'_>) -> Option<Action> {
    let confirms = is_waited_for(host);
    let standby = host.agent.state == PostgresState::Standby;
    let due = stops_for_restart(host) && my_grant(host).is_none() && standby && !confirms;
    due.then_some(Action::Stop { mode: StopMode::Fast, keep_lease: false })
}

/// Who confirms commits is taken out of the rule before it stops, so that none waits for it. Where nobody can be put in its
/// place they wait until it is back, as the mode says.
fn is_waited_for(host: &Host<'_>) -> bool {
    let named = host.state.sync.rules.iter().any(|rule| rule.names.contains(host.me));
    named && !host.state.is_indispensable(host.me)
}

fn promote(host: &Host<'_>) -> Option<Action> {
    let (_, phase, timeline, floor) = my_grant(host)?;
    if phase != GrantPhase::Promoting {
        return None;
    }
    match host.agent.state {
        PostgresState::Standby | PostgresState::Unleased => Some(Action::Promote { timeline, floor }),
        PostgresState::Stopped if !host.agent.lease.held => Some(Action::StartStandby { upstream: None }),
        PostgresState::Stopped
        | PostgresState::NoData
        | PostgresState::Starting
        | PostgresState::Promoting
        | PostgresState::Primary
        | PostgresState::Stopping
        | PostgresState::Crashed
        | PostgresState::Busy
        | PostgresState::Failed => None,
    }
}

fn restart(host: &Host<'_>) -> Option<Action> {
    let (epoch, _, timeline, _) = my_grant(host)?;
    let lease = host.agent.lease;
    if !lease.held || lease.epoch != epoch {
        return None;
    }
    let phase = my_switchover(host).or_else(|| my_restart(host)).map(|(_, phase)| phase);
    let transferred = phase == Some(OperationPhase::Transfer);
    let rolled_back = !transferred && phase != Some(OperationPhase::Stop);
    match host.agent.state {
        PostgresState::Crashed if !transferred => Some(Action::RestartInPlace { timeline }),
        // A stopped primary that kept its lease stays so only while a switchover or a restart wants it.
        PostgresState::Stopped if rolled_back => Some(Action::RestartInPlace { timeline }),
        PostgresState::Stopped
        | PostgresState::NoData
        | PostgresState::Starting
        | PostgresState::Standby
        | PostgresState::Promoting
        | PostgresState::Primary
        | PostgresState::Stopping
        | PostgresState::Crashed
        | PostgresState::Busy
        | PostgresState::Failed
        | PostgresState::Unleased => None,
    }
}

fn step_down(host: &Host<'_>) -> Option<Action> {
    let transferred = my_switchover(host).is_some_and(|(_, phase)| phase == OperationPhase::Transfer);
    if my_grant(host).is_some() && !transferred && host.state.asleep().is_none() {
        return None;
    }
    let holds_lease = host.agent.lease.epoch > Epoch(0);
    let state = host.agent.state;
    let writes = matches!(state, PostgresState::Primary | PostgresState::Crashed);
    let keeps = state == PostgresState::Stopped && holds_lease;
    (writes || keeps).then_some(Action::Stop { mode: StopMode::Immediate, keep_lease: false })
}

fn put_down(host: &Host<'_>) -> Option<Action> {
    let stopped = host.state.put_down(host.me)?;
    let runs = matches!(host.agent.state, PostgresState::Standby | PostgresState::Starting);
    // Without a primary nobody changes who confirms, and stopped its word counts as that of one that was left.
    let waits = is_waited_for(host) && !stopped.force && host.state.holder().is_some();
    (runs && !waits).then_some(Action::Stop { mode: StopMode::Fast, keep_lease: false })
}

/// The primary to follow: promoted, and not this host.
fn primary<'a>(host: &Host<'a>) -> Option<(Primary<'a>, TimelineId)> {
    match &host.state.lock {
        Lock::Granted { member, phase, timeline, .. } if member != host.me && *phase != GrantPhase::Promoting => {
            let postgres = &host.state.members.get(member)?.postgres;
            Some((Primary { member, postgres }, *timeline))
        }
        Lock::Granted { .. } | Lock::Free | Lock::Released(_) | Lock::Fenced { .. } => None,
    }
}

/// Who it is and where.
#[derive(Clone, Copy)]
struct Primary<'a> {
    member: &'a MemberId,
    postgres: &'a str,
}

impl From<Primary<'_>> for Upstream {
    fn from(Primary { member, postgres }: Primary<'_>) -> Self {
        Self { member: member.clone(), postgres: postgres.to_owned() }
    }
}

/// How this host gets back in line, when there is a primary and its own WAL end is known.
fn way_back<'a>(host: &Host<'a>) -> Option<(Primary<'a>, Rejoin)> {
    let (upstream, timeline) = primary(host)?;
    let agent = host.agent;
    if agent.state == PostgresState::NoData {
        return Some((upstream, Rejoin::Reclone));
    }
    if is_of_no_use(host, upstream) {
        return Some((upstream, Rejoin::Reclone));
    }
    let lineage = host.state.history_of(timeline);
    let known = |at: WalPosition| host.state.is_known_wal(&agent.member, at, &agent.history);
    // What it would keep of a timeline begun by hand may be another's.
    let forks_off_unknown = |way| matches!(way, Rejoin::Rewind { fork } if !known(fork));
    // What a rewind that was cut off left behind has no end that could be read.
    let way = if agent.rewind_unfinished {
        let another = || agent.history.is_mistaken_for(&lineage) || !known(agent.wal_end);
        let foreign = || another() || forks_off_unknown(rejoin(&agent.history, agent.wal_end, &lineage));
        if agent.wal_end_known && foreign() { Rejoin::Reclone } else { Rejoin::Rewind { fork: agent.wal_end } }
    } else if agent.state == PostgresState::Stopped && !agent.wal_end_known {
        return None;
    } else if !known(agent.wal_end) {
        Rejoin::Reclone
    } else {
        let way = rejoin(&agent.history, agent.wal_end, &lineage);
        if forks_off_unknown(way) { Rejoin::Reclone } else { way }
    };
    let spent = agent.rewind_failures >= REWINDS_TRIED || cannot_recover(agent);
    Some((upstream, if spent && matches!(way, Rejoin::Rewind { .. }) { Rejoin::Reclone } else { way }))
}

/// Its agent found its data to be of no use for following this primary.
fn is_of_no_use(host: &Host<'_>, primary: Primary<'_>) -> bool {
    let agent = host.agent;
    // What one server has removed another may still have: the primary is asked first.
    let of_this = match &agent.upstream {
        Some(upstream) => upstream == primary.member,
        None => agent.accepted_epoch == host.state.epoch,
    };
    agent.cure.needs_copy.as_ref().is_some_and(|need| need.cause != CopyCause::WalGone || of_this)
}

/// A standby that crashed has to be started before it can be rewound, and doesn't start.
fn cannot_recover(agent: &AgentView) -> bool {
    is_crashed_standby(agent) && agent.cure.failed_starts >= STARTS_TRIED
}

/// The last position that a member's WAL shares with the primary's; `None`: there is none, or no primary.
pub fn shared(state: &ClusterState, member: &AgentView) -> Option<WalPosition> {
    let Lock::Granted { timeline, .. } = state.lock else { return None };
    member.history.fork_from(&state.history_of(timeline))
}

/// The last primary, when it released its epoch because PostgreSQL ended there: its host may have WAL that nobody else has. The
/// primary that is to follow asks it, and does without where it doesn't answer.
pub fn left_by_a_crash(state: &ClusterState) -> Option<(&Reign, &Member)> {
    let (now, me) = state.holder()?;
    let was_promoted = |reign: &&Reign| {
        let record = state.lineage.iter().find(|record| record.epoch == reign.epoch);
        // One that was taken over while it ran has begun no timeline: its own is from before the cluster.
        let older = |r: &&TimelineRecord| r.timeline == reign.timeline && r.epoch == Epoch(0);
        let went_on = || reign.opened_ms.is_some() && state.lineage.iter().any(|record| older(&record));
        let promoted = record.map_or_else(went_on, |record| record.switch.is_some());
        reign.epoch < now && promoted
    };
    let last = state.reigns.iter().rev().find(was_promoted)?;
    // It may have failed because of that WAL.
    let since = state.reigns.iter().rev().take_while(|reign| reign.epoch > last.epoch);
    if since.clone().any(|reign| matches!(reign.cause, EndCause::PromotionFailed | EndCause::PromotionLate)) {
        return None;
    }
    let member = state.members.get(&last.member)?;
    // Only its own word, given when nothing of PostgreSQL was left, says where its WAL ends.
    (last.member != *me && last.cause.leaves_wal() && last.end.is_some()).then_some((last, member))
}

fn at_rest(state: PostgresState) -> bool {
    matches!(state, PostgresState::NoData | PostgresState::Stopped | PostgresState::Standby)
}

fn clone(host: &Host<'_>) -> Option<Action> {
    if let Some(operation) = my_reinit(host) {
        return reinit(host, operation);
    }
    let (source, way) = way_back(host)?;
    let agent = host.agent;
    let cures = is_of_no_use(host, source) || cannot_recover(agent);
    let due = way == Rejoin::Reclone && host.primary_ready && agent.clone_failures < CLONES_TRIED;
    // What gets nowhere is not waited for.
    let idle =
        at_rest(agent.state) || (cures && matches!(agent.state, PostgresState::Starting | PostgresState::Failed));
    (due && idle && (host.may_copy || !cures)).then(|| Action::Clone { source: copied(host, source) })
}

/// Whatever its own WAL is like, and however often copies have failed. What is followed meanwhile goes on until it begins.
fn reinit(host: &Host<'_>, operation: &Operation) -> Option<Action> {
    let (primary, _) = primary(host)?;
    let named = operation.from.as_ref().and_then(|from| host.state.members.get_key_value(from));
    let source = match named {
        Some((member, m)) => Primary { member, postgres: &m.postgres }.into(),
        None => copied(host, primary),
    };
    let waits = is_waited_for(host) && !operation.accepts_loss;
    let idle = at_rest(host.agent.state) || matches!(host.agent.state, PostgresState::Starting | PostgresState::Failed);
    let due = idle && host.primary_ready && !waits && source.member != *host.me;
    due.then(|| Action::Reinit { operation: operation.id, source, named: named.is_some() })
}

/// Whoever wants a copy to end, or not to begin now, puts its member in maintenance, or stops it. One that an operator wanted
/// ends with its operation, also when that was given up while nobody reached this host.
fn end_clone(host: &Host<'_>) -> Option<Action> {
    let work = host.agent.work.as_ref().filter(|work| work.kind == "clone")?;
    let put_aside = host.state.maintenance.contains_key(host.me) || host.state.put_down(host.me).is_some();
    let asked = (1..FIRST_ORDER).contains(&work.order);
    let wanted = host.state.operation.as_ref().is_some_and(|operation| operation.id == work.order);
    (put_aside || (asked && !wanted)).then_some(Action::EndClone)
}

/// A standby that is copied spares the primary the work. After a copy that failed it is the primary.
fn copied(host: &Host<'_>, primary: Primary<'_>) -> Upstream {
    let standby = host.copy_from.filter(|member| *member != host.me && host.agent.clone_failures == 0);
    let found = standby.and_then(|member| host.state.members.get_key_value(member));
    found.map_or(primary, |(member, m)| Primary { member, postgres: &m.postgres }).into()
}

fn rewind(host: &Host<'_>) -> Option<Action> {
    let (source, way) = way_back(host)?;
    let due = matches!(way, Rejoin::Rewind { .. }) && host.primary_ready && !is_crashed_standby(host.agent);
    (due && at_rest(host.agent.state)).then(|| Action::Rewind { source: source.into() })
}

/// The clean-up recovery before a rewind makes a primary of it; a standby has to reach its end of recovery as a standby, following
/// nobody, and is stopped then.
fn recover(host: &Host<'_>) -> Option<Action> {
    let (_, way) = way_back(host)?;
    let due = matches!(way, Rejoin::Rewind { .. }) && host.primary_ready && is_crashed_standby(host.agent);
    (due && !stops_for_restart(host)).then_some(Action::StartStandby { upstream: None })
}

fn is_crashed_standby(agent: &AgentView) -> bool {
    agent.state == PostgresState::Stopped && agent.crashed_standby && !agent.rewind_unfinished
}

/// Whom it streams from: the primary, or the standby that the log says, whose WAL is the primary's.
fn streams_from<'a>(host: &Host<'a>, primary: Primary<'a>) -> Primary<'a> {
    let source = host.state.source_of(host.me).and_then(|source| host.state.members.get_key_value(source));
    source.map_or(primary, |(member, m)| Primary { member, postgres: &m.postgres })
}

/// One that streams from nobody gets its WAL, and the primary's timelines, from an archive.
fn read_archive(host: &Host<'_>) -> Option<Action> {
    let (_, way) = way_back(host)?;
    let due = match host.agent.state {
        PostgresState::Stopped => true,
        PostgresState::Standby => !host.agent.severed,
        PostgresState::NoData
        | PostgresState::Starting
        | PostgresState::Promoting
        | PostgresState::Primary
        | PostgresState::Stopping
        | PostgresState::Crashed
        | PostgresState::Busy
        | PostgresState::Failed
        | PostgresState::Unleased => false,
    };
    let alone = due && way == Rejoin::Follow && reads_archive(host) && !stops_for_restart(host);
    alone.then_some(Action::StartStandby { upstream: None })
}

fn reads_archive(host: &Host<'_>) -> bool {
    host.state.settings.of_member(host.me).nostream
}

fn follow(host: &Host<'_>) -> Option<Action> {
    let (primary, way) = way_back(host)?;
    if way != Rejoin::Follow || stops_for_restart(host) || reads_archive(host) {
        return None;
    }
    let upstream = streams_from(host, primary);
    let follows = host.agent.upstream.as_ref() == Some(upstream.member);
    let due = match host.agent.state {
        PostgresState::Stopped => true,
        PostgresState::Standby => !follows || has_another_name(host),
        PostgresState::NoData
        | PostgresState::Starting
        | PostgresState::Promoting
        | PostgresState::Primary
        | PostgresState::Stopping
        | PostgresState::Crashed
        | PostgresState::Busy
        | PostgresState::Failed
        | PostgresState::Unleased => false,
    };
    due.then(|| Action::StartStandby { upstream: Some(upstream.into()) })
}

/// Commits are confirmed under the name of the epoch: one that follows the right primary under another name confirms none.
fn has_another_name(host: &Host<'_>) -> bool {
    let granted = host.state.holder().map(|(epoch, _)| epoch);
    let state = host.state;
    // Before the first rule, too: a strict mode makes none before somebody can confirm.
    let asked = state.format >= Format::SYNC && state.settings.settings().replication_mode != SyncMode::Async;
    (asked || !state.sync.rules.is_empty()) && granted.is_some_and(|epoch| host.agent.follows_epoch != epoch)
}

/// Where commits were confirmed a promotion needs the word of standbys, and each word is worth something only when nothing
/// can be confirmed after it: whoever gives it has left the old primary for good.
fn sever(host: &Host<'_>) -> Option<Action> {
    let over = matches!(host.state.lock, Lock::Fenced { .. }) && !host.state.sync.rules.is_empty();
    let agent = host.agent;
    let done = agent.severed && agent.accepted_epoch >= host.state.epoch;
    let due = over && agent.state == PostgresState::Standby && !done;
    due.then_some(Action::StartStandby { upstream: None })
}

/// A stopped member that may be needed as the next primary waits read-only, and
/// so does the primary that lost its lease while nobody can be granted; a
/// half-rewound directory is never started.
fn start_alone(host: &Host<'_>) -> Option<Action> {
    let agent = host.agent;
    let ready = agent.state == PostgresState::Stopped && agent.wal_end_known && !agent.rewind_unfinished;
    let undecided = match &host.state.lock {
        Lock::Free => host.state.system_identifier.is_some(),
        Lock::Fenced { .. } | Lock::Released(_) => true,
        Lock::Granted { epoch, member, .. } => member == host.me && agent.ended_epoch >= *epoch,
    };
    (ready && undecided && !stops_for_restart(host)).then_some(Action::StartStandby { upstream: None })
}

#[cfg(test)]
#[path = "role_test.rs"]
mod tests;
