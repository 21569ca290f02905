//! What operators asked for beside the one operation under way: what is scheduled, a rolling restart with its steps, and
//! what the last operations came to. Times are milliseconds since 1970 by a leader's wall clock; 0 where nobody noted one.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
};

use super::{
    cluster::{ClusterState, Operation, OperationKind, OperationPhase},
    command::{Command, Kind},
};
use crate::domain::{Format, MemberId, when};

/// So many operations that are over are remembered.
pub const ENDED_KEPT: usize = 32;
/// So many may be scheduled.
pub const SCHEDULED_MAX: usize = 16;

/// All of it. Empty while a host knows nothing of it ([`Format::OPERATE`]).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Agenda {
    /// What is to begin later, by its number.
    pub scheduled: BTreeMap<u64, Scheduled>,
    /// The rolling restart under way.
    pub rolling: Option<Rolling>,
    /// How the operation under way came to where it is.
    pub course: Course,
    /// What is over, oldest first.
    pub ended: VecDeque<Ended>,
}

/// Who asked for something, and when.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// The same one heard again means what it began.
    pub id: String,
    /// As they call themselves; empty when they don't.
    pub by: String,
    /// When it was committed.
    pub at_ms: u64,
}

/// An operation that is to begin later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheduled {
    /// A switchover or a restart.
    pub kind: OperationKind,
    /// Only if this member is primary then.
    pub from: Option<MemberId>,
    /// Who shall be primary (`None`: the best standby then), or is restarted.
    pub to: Option<MemberId>,
    /// When.
    pub at_ms: u64,
    /// Who asked.
    pub asked: Request,
}

/// What becomes of the primary in a rolling restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrimaryTurn {
    /// The best standby takes over, and the former primary is restarted by that.
    Switchover,
    /// It is restarted under its lease, and stays primary.
    InPlace,
    /// It is left as it is.
    Left,
}

/// A restart of one member after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rolling {
    /// Its number.
    pub id: u64,
    /// Who is to be restarted.
    pub members: BTreeSet<MemberId>,
    /// Who has been, in that order.
    pub done: Vec<MemberId>,
    /// How the primary is.
    pub primary: PrimaryTurn,
    /// Who asked.
    pub asked: Request,
    /// It ends with the step under way; by whose word.
    pub cancelled: Option<String>,
}

/// How the operation under way came to where it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Course {
    /// It began.
    pub began_ms: u64,
    /// The scheduled or rolling one that it belongs to; 0: none.
    pub of: u64,
    /// The phases it came into, and when.
    pub phases: Vec<(OperationPhase, u64)>,
    /// It is rolled back because somebody said so, who.
    pub cancelled: Option<String>,
}

/// What kind of work a number stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// One operation, or a scheduled one.
    One(OperationKind),
    /// A rolling restart.
    Rolling,
}

/// How something ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It did what was asked.
    Succeeded,
    /// It didn't, or not all of it.
    Failed,
    /// Somebody took it back.
    Cancelled,
    /// Its time went by.
    Missed,
    /// Its time came, and it goes on under another number.
    Begun,
}

impl Outcome {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Missed => "missed",
            Self::Begun => "begun",
        }
    }
}

/// What is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its number.
    pub id: u64,
    /// What it was.
    pub work: Work,
    /// The primary when it began, or who had to be.
    pub from: Option<MemberId>,
    /// Who was to be primary, or restarted; `None`: nobody was named, or more than one.
    pub to: Option<MemberId>,
    /// Who asked; the time is that of its begin, or for which it was scheduled.
    pub asked: Request,
    /// What it belonged to; 0: nothing.
    pub of: u64,
    /// The phases it went through, and when it came into each.
    pub phases: Vec<(OperationPhase, u64)>,
    /// When it ended.
    pub ended_ms: u64,
    /// How.
    pub outcome: Outcome,
    /// Why, or a remark.
    pub reason: String,
}

/// What is changed of the agenda.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgendaChange {
    /// An operation is to begin later.
    Schedule {
        /// A switchover or a restart.
        kind: OperationKind,
        /// Only if this member is primary then.
        from: Option<MemberId>,
        /// See [`Scheduled::to`].
        to: Option<MemberId>,
        /// When.
        at_ms: u64,
        /// Who asks, as they call themselves.
        by: String,
    },
    /// What was scheduled begins, or the next step of a rolling restart.
    Begin {
        /// The number of what it belongs to.
        of: u64,
        /// What.
        kind: OperationKind,
        /// The primary.
        from: Option<MemberId>,
        /// Who shall be primary, or is restarted.
        to: MemberId,
    },
    /// A rolling restart begins.
    Roll {
        /// Who is to be restarted.
        members: BTreeSet<MemberId>,
        /// How the primary is.
        primary: PrimaryTurn,
        /// Who asks, as they call themselves.
        by: String,
    },
    /// An operator takes something back.
    Cancel {
        /// Its number.
        id: u64,
        /// The phase it was in when that was decided; of another one nothing is taken back.
        phase: Option<OperationPhase>,
        /// Who asks, as they call themselves.
        by: String,
    },
    /// Something scheduled, or a rolling restart, is over.
    Close {
        /// Its number.
        id: u64,
        /// How.
        outcome: Outcome,
        /// Why, or a remark.
        reason: String,
    },
}

impl AgendaChange {
    /// Its name, for logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Schedule { .. } => "schedule",
            Self::Begin { .. } => "begin-next",
            Self::Roll { .. } => "begin-rolling",
            Self::Cancel { .. } => "cancel-operation",
            Self::Close { .. } => "close-operation",
        }
    }
}

/// `switchover`, `failover`, `restart`, `reinit`, `hibernate`, `wake`.
pub fn kind_word(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::Switchover => "switchover",
        OperationKind::Failover => "failover",
        OperationKind::Restart => "restart",
        OperationKind::Reinit => "reinit",
        OperationKind::Hibernate => "hibernate",
        OperationKind::Wake => "wake",
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One(kind) => kind_word(*kind),
            Self::Rolling => "rolling-restart",
        })
    }
}

/// `switchover from n1 to n2`, `restart of n2`.
impl fmt::Display for Scheduled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(kind_word(self.kind))?;
        if let Some(from) = &self.from {
            write!(f, " from {from}")?;
        }
        match (&self.to, self.kind) {
            (None, _) => f.write_str(" to the best standby"),
            (Some(_), OperationKind::Hibernate | OperationKind::Wake) => Ok(()),
            (Some(to), OperationKind::Restart | OperationKind::Reinit) => write!(f, " of {to}"),
            (Some(to), OperationKind::Switchover | OperationKind::Failover) => write!(f, " to {to}"),
        }
    }
}

impl Rolling {
    /// Who has not been restarted yet, and is a member still.
    pub fn left<'a>(&'a self, state: &'a ClusterState) -> impl Iterator<Item = &'a MemberId> {
        self.members.iter().filter(|m| !self.done.contains(m) && state.members.contains_key(*m))
    }
}

/// ` by kim`, or nothing when nobody said who.
fn by_whom(by: &str) -> String {
    if by.is_empty() { String::new() } else { format!(" by {by}") }
}

impl Agenda {
    fn close(&mut self, ended: Ended) {
        self.ended.push_back(ended);
        while self.ended.len() > ENDED_KEPT {
            self.ended.pop_front();
        }
    }

    /// The number that this request has got.
    pub fn number_of(&self, request_id: &str) -> Option<u64> {
        let scheduled = self.scheduled.iter().map(|(id, s)| (*id, &s.asked));
        let rolling = self.rolling.iter().map(|r| (r.id, &r.asked));
        let ended = self.ended.iter().rev().map(|e| (e.id, &e.asked));
        scheduled.chain(rolling).chain(ended).find(|(_, asked)| asked.id == request_id).map(|(id, _)| id)
    }

    /// How the one of this number ended, while that is remembered.
    pub fn ended_of(&self, id: u64) -> Option<&Ended> {
        self.ended.iter().rev().find(|e| e.id == id)
    }

    /// A new generation begins: nothing goes on by itself.
    pub(super) fn recovered(&mut self, operation: Option<&Operation>) {
        let reason = "the cluster was recovered";
        if let Some(operation) = operation {
            self.record(operation, (Outcome::Failed, reason), 0);
        }
        if let Some(rolling) = self.rolling.take() {
            self.close(rolling.ended(Outcome::Failed, reason.to_owned(), 0));
        }
        for (id, scheduled) in std::mem::take(&mut self.scheduled) {
            self.close(scheduled.ended(id, (Outcome::Missed, reason.to_owned()), 0));
        }
    }

    fn record(&mut self, operation: &Operation, (outcome, reason): (Outcome, &str), at: u64) {
        let course = std::mem::take(&mut self.course);
        let asked = Request { id: operation.request_id.clone(), by: String::new(), at_ms: course.began_ms };
        let outcome = if course.cancelled.is_some() { Outcome::Cancelled } else { outcome };
        self.close(Ended {
            id: operation.id,
            work: Work::One(operation.kind),
            from: operation.from.clone(),
            to: Some(operation.to.clone()),
            asked,
            of: course.of,
            phases: course.phases,
            ended_ms: at,
            outcome,
            reason: reason.to_owned(),
        });
        self.step_over(operation, course.of, (outcome, reason), at);
    }

    /// What the end of one of its steps makes of a rolling restart.
    fn step_over(&mut self, step: &Operation, of: u64, (outcome, reason): (Outcome, &str), at: u64) {
        let Some(mut rolling) = self.rolling.take_if(|r| r.id == of) else { return };
        let close = match (outcome, &rolling.cancelled) {
            (Outcome::Succeeded, cancelled) => {
                let restarted =
                    if step.kind == OperationKind::Switchover { step.from.as_ref() } else { Some(&step.to) };
                rolling.done.extend(restarted.cloned());
                let by = cancelled.as_ref().map(|by| format!("cancelled{}", by_whom(by)));
                by.map(|reason| (Outcome::Cancelled, reason))
            }
            (outcome, _) => {
                let what = kind_word(step.kind);
                Some((outcome, format!("its {what} {} of {} {}: {reason}", step.id, subject(step), outcome.word())))
            }
        };
        match close {
            None => self.rolling = Some(rolling),
            Some((outcome, reason)) => {
                let reason = format!("{reason}; {}", rolling.told());
                self.close(rolling.ended(outcome, reason, at));
            }
        }
    }
}

/// Who is restarted by it.
fn subject(step: &Operation) -> &MemberId {
    match step.kind {
        OperationKind::Switchover => step.from.as_ref().unwrap_or(&step.to),
        OperationKind::Failover
        | OperationKind::Restart
        | OperationKind::Reinit
        | OperationKind::Hibernate
        | OperationKind::Wake => &step.to,
    }
}

impl Scheduled {
    fn ended(self, id: u64, (outcome, reason): (Outcome, String), at: u64) -> Ended {
        let Self { kind, from, to, at_ms, asked } = self;
        let (work, asked) = (Work::One(kind), Request { at_ms, ..asked });
        Ended { id, work, from, to, asked, of: 0, phases: Vec::new(), ended_ms: at, outcome, reason }
    }
}

impl Rolling {
    fn ended(self, outcome: Outcome, reason: String, at: u64) -> Ended {
        let (work, asked) = (Work::Rolling, self.asked);
        let (from, to, phases) = (None, None, Vec::new());
        Ended { id: self.id, work, from, to, asked, of: 0, phases, ended_ms: at, outcome, reason }
    }

    /// `restarted: n2, n3; left: n1`.
    pub fn told(&self) -> String {
        let names = |members: &[&MemberId]| match members {
            [] => "nobody".to_owned(),
            members => members.iter().map(|m| m.as_str()).collect::<Vec<_>>().join(", "),
        };
        let left: Vec<&MemberId> = self.members.iter().filter(|m| !self.done.contains(m)).collect();
        format!("restarted: {}; left: {}", names(&self.done.iter().collect::<Vec<_>>()), names(&left))
    }
}

/// When it was decided, by the leader's wall clock.
pub(super) fn at_of(command: &Command) -> u64 {
    command.evidence.as_ref().map_or(0, |evidence| evidence.at_ms)
}

impl ClusterState {
    /// Follows the operation under way through a command that has just changed this state.
    pub(super) fn follow_operation(&mut self, command: &Command) {
        // Older hosts keep nothing of it, and all are to have the same.
        if self.format < Format::OPERATE {
            return;
        }
        let at = at_of(command);
        match &command.kind {
            Kind::BeginOperation { .. } => self.set_out(0, at),
            Kind::AdvanceOperation { phase, .. } => self.agenda.course.phases.push((*phase, at)),
            Kind::EndOperation { succeeded, reason, .. } => {
                let outcome = if *succeeded { Outcome::Succeeded } else { Outcome::Failed };
                self.note_end((outcome, reason), at);
            }
            _ => {}
        }
    }

    pub(super) fn set_out(&mut self, of: u64, at: u64) {
        let phases = self.operation.iter().map(|o| (o.phase, at)).collect();
        self.agenda.course = Course { began_ms: at, of, phases, cancelled: None };
    }

    fn note_end(&mut self, end: (Outcome, &str), at: u64) {
        if let Some(last) = &self.last_operation {
            self.agenda.record(&last.operation, end, at);
        }
    }

    pub(super) fn change_agenda(&mut self, command: &Command, change: &AgendaChange) -> Result<Option<String>, String> {
        let (request_id, at) = (command.request_id.as_str(), at_of(command));
        let request = |by: &str| Request { id: request_id.to_owned(), by: by.to_owned(), at_ms: at };
        match change {
            AgendaChange::Schedule { kind, from, to, at_ms, by } => {
                let (kind, from, to) = (*kind, from.clone(), to.clone());
                self.schedule(Scheduled { kind, from, to, at_ms: *at_ms, asked: request(by) })
            }
            AgendaChange::Roll { members, primary, by } => self.roll(members, *primary, request(by)),
            AgendaChange::Begin { of, kind, from, to } => self.begin_next(*of, at, |state| {
                state.begin(*kind, from.as_ref(), to, (request_id, command.because, false))
            }),
            AgendaChange::Cancel { id, phase, by } => self.cancel(*id, *phase, by, at),
            AgendaChange::Close { id, outcome, reason } => self.close_of(*id, *outcome, reason, at),
        }
    }

    /// The number that this request has got, while that is remembered.
    pub fn number_of(&self, request_id: &str) -> Option<u64> {
        self.operation_of(request_id).map(|o| o.id).or_else(|| self.agenda.number_of(request_id))
    }

    fn is_new(&self, request_id: &str) -> Result<(), String> {
        self.number_of(request_id).map_or(Ok(()), |id| Err(format!("this request is operation {id}")))
    }

    fn schedule(&mut self, scheduled: Scheduled) -> Result<Option<String>, String> {
        self.is_new(&scheduled.asked.id)?;
        if self.agenda.scheduled.len() >= SCHEDULED_MAX {
            return Err(format!("{SCHEDULED_MAX} operations are scheduled already"));
        }
        let same =
            |s: &Scheduled| s.kind == scheduled.kind && (s.to == scheduled.to || s.kind != OperationKind::Restart);
        if let Some((id, other)) = self.agenda.scheduled.iter().find(|(_, s)| same(s)) {
            return Err(format!("operation {id}, a {other}, is scheduled already"));
        }
        self.operations += 1;
        let (id, by) = (self.operations, by_whom(&scheduled.asked.by));
        let what = format!("operation {id}, a {scheduled}, is scheduled for {}{by}", when::utc(scheduled.at_ms));
        self.agenda.scheduled.insert(id, scheduled);
        Ok(Some(what))
    }

    fn roll(
        &mut self,
        members: &BTreeSet<MemberId>,
        primary: PrimaryTurn,
        asked: Request,
    ) -> Result<Option<String>, String> {
        self.is_new(&asked.id)?;
        if let Some(rolling) = &self.agenda.rolling {
            return Err(format!("rolling restart {} is under way", rolling.id));
        }
        if let Some(running) = &self.operation {
            return Err(format!("operation {} is under way", running.id));
        }
        self.operations += 1;
        let (id, members) = (self.operations, members.clone());
        let names = members.iter().map(|m| m.as_str()).collect::<Vec<_>>().join(", ");
        let what = format!("rolling restart {id} of {names} begins{}", by_whom(&asked.by));
        self.agenda.rolling = Some(Rolling { id, members, done: Vec::new(), primary, asked, cancelled: None });
        Ok(Some(what))
    }

    fn begin_next(
        &mut self,
        of: u64,
        at: u64,
        begin: impl FnOnce(&mut Self) -> Result<Option<String>, String>,
    ) -> Result<Option<String>, String> {
        let is_rolling = self.agenda.rolling.as_ref().is_some_and(|r| r.id == of && r.cancelled.is_none());
        if !is_rolling && !self.agenda.scheduled.contains_key(&of) {
            return Err(format!("operation {of} is over"));
        }
        let what = begin(self)?;
        self.set_out(of, at);
        if let Some(scheduled) = self.agenda.scheduled.remove(&of) {
            let reason = format!("begun as operation {}", self.operations);
            self.agenda.close(scheduled.ended(of, (Outcome::Begun, reason), at));
        }
        Ok(what.map(|what| format!("{what}, as operation {of} asks for")))
    }

    fn cancel(&mut self, id: u64, phase: Option<OperationPhase>, by: &str, at: u64) -> Result<Option<String>, String> {
        let why = format!("cancelled{}", by_whom(by));
        if let Some(scheduled) = self.agenda.scheduled.remove(&id) {
            let what =
                format!("operation {id}, a {scheduled}, was scheduled for {} and is {why}", when::utc(scheduled.at_ms));
            self.agenda.close(scheduled.ended(id, (Outcome::Cancelled, why), at));
            return Ok(Some(what));
        }
        if self.agenda.rolling.as_ref().is_some_and(|r| r.id == id) {
            return self.cancel_rolling(by, &why, at);
        }
        let now = self.operation.as_ref().filter(|o| o.id == id).map(|o| (o.phase, o.kind));
        match now.ok_or_else(|| format!("operation {id} is over"))? {
            (now, _) if Some(now) != phase => Err(format!("operation {id} is in {now:?}")),
            (OperationPhase::Start, OperationKind::Wake) => {
                self.sleep_on()?;
                self.cancel_now(id, by, &why, at)
            }
            (OperationPhase::Checkpoint | OperationPhase::HoldWrites | OperationPhase::Copy, _) => {
                self.cancel_now(id, by, &why, at)
            }
            (OperationPhase::Stop, _) => {
                self.advance(id, OperationPhase::RollBack)?;
                self.agenda.course.phases.push((OperationPhase::RollBack, at));
                self.agenda.course.cancelled = Some(by.to_owned());
                Ok(Some(format!("operation {id} is rolled back, {why}")))
            }
            (
                now @ (OperationPhase::Transfer
                | OperationPhase::RollBack
                | OperationPhase::Start
                | OperationPhase::Stream),
                _,
            ) => Err(format!("operation {id} is in {now:?}")),
        }
    }

    fn cancel_now(&mut self, id: u64, by: &str, why: &str, at: u64) -> Result<Option<String>, String> {
        self.agenda.course.cancelled = Some(by.to_owned());
        let what = self.end(id, false, why)?;
        self.note_end((Outcome::Cancelled, why), at);
        Ok(what)
    }

    /// With the step under way, if there is one.
    fn cancel_rolling(&mut self, by: &str, why: &str, at: u64) -> Result<Option<String>, String> {
        let Some(mut rolling) = self.agenda.rolling.take() else { return Err("it is over".to_owned()) };
        let id = rolling.id;
        if self.operation.is_some() && self.agenda.course.of == id {
            let again = rolling.cancelled.replace(by.to_owned()).is_some();
            self.agenda.rolling = Some(rolling);
            return match again {
                true => Err(format!("rolling restart {id} is cancelled already, and ends with its step")),
                false => Ok(Some(format!("rolling restart {id} ends with the step under way, {why}"))),
            };
        }
        let reason = format!("{why}; {}", rolling.told());
        self.agenda.close(rolling.ended(Outcome::Cancelled, reason, at));
        Ok(Some(format!("rolling restart {id} is {why}")))
    }

    fn close_of(&mut self, id: u64, outcome: Outcome, reason: &str, at: u64) -> Result<Option<String>, String> {
        let what = format!("operation {id} {}: {reason}", outcome.word());
        if let Some(scheduled) = self.agenda.scheduled.remove(&id) {
            self.agenda.close(scheduled.ended(id, (outcome, reason.to_owned()), at));
            return Ok(Some(what));
        }
        if self.operation.is_some() && self.agenda.course.of == id {
            return Err(format!("a step of operation {id} is under way"));
        }
        let rolling = self.agenda.rolling.take_if(|r| r.id == id).ok_or_else(|| format!("operation {id} is over"))?;
        self.agenda.close(rolling.ended(outcome, reason.to_owned(), at));
        Ok(Some(what))
    }
}

#[cfg(test)]
#[path = "agenda_test.rs"]
mod tests;
