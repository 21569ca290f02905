//! What is asked of a member, and by which ways it gets there. Data and a drawing.
//!
//! [`goal`] reads what the committed state asks of a member. [`EDGES`] are all changes of its
//! [`PostgresState`]: those that an order of [`RULES`](super::RULES) leads to, those that the agent
//! waits for, and those that happen to it. Nothing is decided by any of this. The tests hold it
//! against the rules and against the agent; `matriarch rules` and docs/states.md print it.

use std::fmt::{self, Write as _};

use super::role::Action;
use crate::{
    domain::{
        MemberId,
        PostgresState::{
            self, Busy, Crashed, Failed, NoData, Primary, Promoting, Standby, Starting, Stopped, Stopping,
        },
    },
    state::{ClusterState, GrantPhase, Lock, OperationKind, OperationPhase},
};

/// What the committed state asks of a member. What the member can do about it is up to its
/// agent and its data, which the log knows nothing of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Goal {
    /// Nothing: no cluster is founded, or the data directory of another member comes first.
    Nothing,
    /// Create the first data directory of the cluster.
    Found,
    /// Become primary of the epoch that was granted to it.
    Promote,
    /// Stay primary.
    Primary,
    /// Stop for a switchover or a restart, and keep the lease: it may have to go on.
    StopKeepingLease,
    /// Give the lease up: the switchover away from it is beyond the point of no return.
    StepDown,
    /// Be a standby of the primary.
    Follow,
    /// Be no primary; who will be one is not open yet, and so cannot be followed.
    AwaitPrimary,
    /// Be read-only and ready to be chosen: nobody holds the lock.
    WaitAlone,
    /// Stop, to be started again.
    Stop,
    /// Be as it is, but for being primary: an operator has put it aside.
    Rest,
}

impl Goal {
    /// All of them.
    pub const ALL: [Goal; 11] = [
        Goal::Nothing,
        Goal::Found,
        Goal::Promote,
        Goal::Primary,
        Goal::StopKeepingLease,
        Goal::StepDown,
        Goal::Follow,
        Goal::AwaitPrimary,
        Goal::WaitAlone,
        Goal::Stop,
        Goal::Rest,
    ];

    /// The states in which a member has done what is asked. One that follows has to follow the
    /// right one, too, with no WAL of its own.
    pub fn met_in(self) -> &'static [PostgresState] {
        match self {
            Goal::Nothing | Goal::AwaitPrimary | Goal::Rest => &[NoData, Stopped, Standby],
            Goal::Found => &[Stopped, Standby],
            Goal::Promote | Goal::Primary => &[Primary],
            Goal::StopKeepingLease | Goal::Stop => &[Stopped],
            Goal::StepDown | Goal::Follow | Goal::WaitAlone => &[Standby],
        }
    }

    /// When it is asked, in words.
    pub fn asked_when(self) -> &'static str {
        match self {
            Goal::Nothing => "no cluster is founded, or another member's data directory comes first",
            Goal::Found => "it is to run initdb, and no system identifier is recorded",
            Goal::Promote => "the lock is granted to it, promoting",
            Goal::Primary => "the lock is granted to it, promoted or open",
            Goal::StopKeepingLease => {
                "a switchover away from it, its restart as primary, or a hibernation is to stop it"
            }
            Goal::Stop => {
                "a restart of it, which is no primary, is to stop it, or it is stopped by command, itself or with the whole cluster"
            }
            Goal::Rest => "it is in maintenance, and the lock is not its own",
            Goal::StepDown => "a switchover away from it is transferred, the lock is still its own",
            Goal::Follow => "the lock is granted to another member, promoted or open",
            Goal::AwaitPrimary => "the lock is granted to another member, promoting",
            Goal::WaitAlone => "nobody holds the lock: free, released or fenced",
        }
    }
}

/// What `state` asks of `me`.
pub fn goal(state: &ClusterState, me: &MemberId) -> Goal {
    if state.identity.is_none() {
        return Goal::Nothing;
    }
    if state.system_identifier.is_none() {
        return if state.initializer.as_ref() == Some(me) { Goal::Found } else { Goal::Nothing };
    }
    if state.asleep().is_some() && state.put_down(me).is_some() {
        return Goal::Stop;
    }
    let holds = state.holder().is_some_and(|(_, holder)| holder == me);
    if let Some(asked) = state.maintenance.get(me).filter(|_| !holds) {
        return if asked.stopped.is_some() { Goal::Stop } else { Goal::Rest };
    }
    let restart = state.operation.as_ref().filter(|o| o.kind == OperationKind::Restart && o.to == *me);
    if !holds && restart.is_some_and(|o| o.phase == OperationPhase::Stop) {
        return Goal::Stop;
    }
    match &state.lock {
        Lock::Free | Lock::Released(_) | Lock::Fenced { .. } => Goal::WaitAlone,
        Lock::Granted { member, phase, .. } if member == me => match leaving(state, me) {
            Some(OperationPhase::Stop) => Goal::StopKeepingLease,
            Some(OperationPhase::Transfer) => Goal::StepDown,
            Some(
                OperationPhase::Checkpoint
                | OperationPhase::HoldWrites
                | OperationPhase::RollBack
                | OperationPhase::Start
                | OperationPhase::Copy
                | OperationPhase::Stream,
            )
            | None => {
                if *phase == GrantPhase::Promoting {
                    Goal::Promote
                } else {
                    Goal::Primary
                }
            }
        },
        Lock::Granted { phase: GrantPhase::Promoting, .. } => Goal::AwaitPrimary,
        Lock::Granted { .. } => Goal::Follow,
    }
}

/// How far the switchover away from `me`, the restart of it as primary, or its hibernation is.
fn leaving(state: &ClusterState, me: &MemberId) -> Option<OperationPhase> {
    let operation = state.operation.as_ref()?;
    let kind = matches!(operation.kind, OperationKind::Switchover | OperationKind::Hibernate);
    let switchover = kind && operation.from.as_ref() == Some(me);
    let restart = operation.kind == OperationKind::Restart && operation.to == *me;
    (switchover || restart).then_some(operation.phase)
}

/// An [`Action`] without its particulars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ActionKind {
    /// See [`Action::Initdb`].
    Initdb,
    /// See [`Action::StartStandby`].
    Start,
    /// See [`Action::Promote`].
    Promote,
    /// See [`Action::RestartInPlace`].
    Restart,
    /// See [`Action::Stop`].
    Stop,
    /// See [`Action::Rewind`].
    Rewind,
    /// See [`Action::Clone`].
    Clone,
    /// See [`Action::Checkpoint`].
    Checkpoint,
    /// See [`Action::EndClone`].
    EndClone,
}

impl From<&Action> for ActionKind {
    fn from(action: &Action) -> Self {
        match action {
            Action::Initdb => Self::Initdb,
            Action::StartStandby { .. } => Self::Start,
            Action::Promote { .. } => Self::Promote,
            Action::RestartInPlace { .. } => Self::Restart,
            Action::Stop { .. } => Self::Stop,
            Action::Rewind { .. } => Self::Rewind,
            Action::Clone { .. } | Action::Reinit { .. } => Self::Clone,
            Action::Checkpoint { .. } => Self::Checkpoint,
            Action::EndClone => Self::EndClone,
        }
    }
}

/// As orders are called in the status and in logs.
impl fmt::Display for ActionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Initdb => "initdb",
            Self::Start => "start",
            Self::Promote => "promote",
            Self::Restart => "restart",
            Self::Stop => "stop",
            Self::Rewind => "rewind",
            Self::Clone => "clone",
            Self::Checkpoint => "checkpoint",
            Self::EndClone => "end clone",
        })
    }
}

/// What ends a wait whose end does not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// A limit: the name of a timing, or how long.
    Limit(&'static str),
    /// Nothing does.
    Endless,
}

/// Why a state changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// An order, and the rules that give it in this state.
    Order(ActionKind, &'static [u32]),
    /// What the agent waits for, and for how long.
    Awaited(&'static str, Patience),
    /// It happens, whatever was asked.
    Event(&'static str),
}

/// A change of what an agent says of its PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edge {
    /// From this state.
    pub from: PostgresState,
    /// To this one.
    pub to: PostgresState,
    /// By this.
    pub cause: Cause,
}

const fn order(from: PostgresState, kind: ActionKind, rules: &'static [u32], to: PostgresState) -> Edge {
    Edge { from, to, cause: Cause::Order(kind, rules) }
}

const fn awaited(from: PostgresState, to: PostgresState, what: &'static str, limit: &'static str) -> Edge {
    Edge { from, to, cause: Cause::Awaited(what, Patience::Limit(limit)) }
}

const fn endless(from: PostgresState, to: PostgresState, what: &'static str) -> Edge {
    Edge { from, to, cause: Cause::Awaited(what, Patience::Endless) }
}

const fn event(from: PostgresState, to: PostgresState, what: &'static str) -> Edge {
    Edge { from, to, cause: Cause::Event(what) }
}

/// Every change of state there is while one agent lives. A new agent begins in [`BEGINNINGS`].
pub const EDGES: &[Edge] = &[
    order(NoData, ActionKind::Initdb, &[510], Busy),
    order(NoData, ActionKind::Clone, &[550], Busy),
    order(Stopped, ActionKind::Start, &[530, 562, 568, 570, 580], Starting),
    order(Stopped, ActionKind::Restart, &[535], Starting),
    // It gives up the lease; there is nothing else to stop.
    order(Stopped, ActionKind::Stop, &[540], Stopped),
    order(Stopped, ActionKind::Clone, &[550], Busy),
    order(Stopped, ActionKind::Rewind, &[560], Busy),
    order(Standby, ActionKind::Stop, &[527, 543], Stopping),
    order(Starting, ActionKind::Stop, &[543], Stopping),
    order(Standby, ActionKind::Promote, &[530], Promoting),
    order(Standby, ActionKind::Clone, &[550], Busy),
    order(Standby, ActionKind::Rewind, &[560], Busy),
    // What is of no use gets nowhere by waiting.
    order(Starting, ActionKind::Clone, &[550], Busy),
    order(Failed, ActionKind::Clone, &[550], Busy),
    // Another upstream, without a restart.
    order(Standby, ActionKind::Start, &[565, 568, 570], Standby),
    order(Primary, ActionKind::Checkpoint, &[520], Primary),
    order(Primary, ActionKind::Stop, &[525, 540], Stopping),
    order(Crashed, ActionKind::Restart, &[535], Starting),
    order(Crashed, ActionKind::Stop, &[540], Stopped),
    // In maintenance or stopped; the work's end is the next edge.
    order(Busy, ActionKind::EndClone, &[545], Busy),
    awaited(Busy, Stopping, "the work ends, the directory is read", "initdb 5 min, rewind 12 h, clone 24 h"),
    endless(Starting, Standby, "it answers, read-only"),
    awaited(Starting, Primary, "it accepts writes again, under its lease", "primary_start"),
    awaited(Promoting, Primary, "it has left recovery on its timeline", "2 × grant, then 2 × promote"),
    endless(Stopping, Stopped, "its processes end or are killed, the directory is read"),
    awaited(Crashed, Stopped, "no order came in time, its epoch ends", "primary_start"),
    awaited(Failed, Stopped, "the directory is read again and is good", "30 s"),
    event(Busy, Standby, "the work was given up before it was stopped"),
    event(Busy, Starting, "the work was given up before it was stopped, and it does not answer"),
    event(Crashed, Stopping, "its epoch ends while the directory is being read"),
    event(Crashed, NoData, "its epoch ends, the directory is gone"),
    event(Crashed, Failed, "its epoch ends, the directory can't be used as it is"),
    event(Starting, Stopping, "it ended, was fenced, or its guard died"),
    event(Starting, Crashed, "the restart failed, the lease is still held"),
    event(Starting, Stopped, "the restart failed, the lease is lost"),
    event(Starting, Failed, "the restart failed, the lease is lost, the directory can't be used as it is"),
    event(Starting, Promoting, "a new agent finds it granted"),
    event(Standby, Stopping, "it ended, hung, was promoted by hand, or its guard died"),
    event(Promoting, Standby, "no lease was to be had, the grant is given back"),
    event(Promoting, Stopping, "it failed, or the lease is lost"),
    event(Primary, Crashed, "it ended, the lease is still held"),
    event(Primary, Stopping, "the lease is lost, it hangs, or its guard died"),
    event(Stopping, Starting, "fenced during a restart in place, whose work has not ended yet"),
    event(Stopping, Crashed, "it hung or did not stop cleanly, the lease is still held"),
    event(Stopping, Standby, "a standby could not be stopped, it goes on"),
    event(Stopping, NoData, "the directory is gone"),
    event(Stopping, Failed, "the directory can't be used as it is"),
    event(Failed, NoData, "the directory is gone"),
];

/// The states in which an agent finds its PostgreSQL when it starts.
pub const BEGINNINGS: [PostgresState; 4] = [NoData, Stopped, Starting, Failed];

/// What a rule of reconcile orders, in the order of [`ActionKind`].
pub fn orders_of(rule: u32) -> Vec<ActionKind> {
    let ordered = |edge: &Edge| match edge.cause {
        Cause::Order(kind, rules) if rules.contains(&rule) => Some(kind),
        Cause::Order(..) | Cause::Awaited(..) | Cause::Event(_) => None,
    };
    let mut kinds: Vec<ActionKind> = EDGES.iter().filter_map(ordered).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

/// `promote (530)`, or what is awaited and for how long, or what happens.
impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Order(kind, rules) => {
                let rules: Vec<String> = rules.iter().map(ToString::to_string).collect();
                write!(f, "{kind} ({})", rules.join(", "))
            }
            Self::Awaited(what, Patience::Limit(limit)) => write!(f, "{what} [{limit}]"),
            Self::Awaited(what, Patience::Endless) => write!(f, "{what} [no limit]"),
            Self::Event(what) => f.write_str(what),
        }
    }
}

/// A member's states as a Mermaid diagram: one arrow from state to state, one line of its label
/// a cause. Orders carry the numbers of their rules; limits stand in brackets.
pub fn mermaid() -> String {
    let mut out = String::from("stateDiagram-v2\n");
    for state in BEGINNINGS {
        let _ = writeln!(out, "    [*] --> {state:?}");
    }
    let mut drawn = Vec::new();
    for Edge { from, to, .. } in EDGES {
        if drawn.contains(&(from, to)) {
            continue;
        }
        drawn.push((from, to));
        let between = EDGES.iter().filter(|e| e.from == *from && e.to == *to);
        let causes: Vec<String> = between.map(|e| e.cause.to_string()).collect();
        let _ = writeln!(out, "    {from:?} --> {to:?} : {}", causes.join("<br/>"));
    }
    out
}

#[cfg(test)]
#[path = "states_test.rs"]
mod tests;
