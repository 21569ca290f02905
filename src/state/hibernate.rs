//! The whole cluster is stopped because an operator wants it, until it is woken: the primary ended cleanly, its WAL is on
//! the standbys, nobody is primary, nothing is started.

use super::{
    agenda::at_of,
    cluster::{ClusterState, OperationKind, OperationPhase},
    command::Command,
    pause::{Asked, Stopped},
};
use crate::domain::{MemberId, WalPosition};

/// How the cluster was stopped, and what it needs to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hibernation {
    /// Who asked for it, and why.
    pub asked: Asked,
    /// When, by the leader's wall clock in milliseconds since 1970; 0: nobody looked.
    pub at_ms: u64,
    /// Who was primary, and is again when the cluster wakes, if it can be.
    pub primary: MemberId,
    /// Where its WAL ended cleanly: nobody without all of that becomes primary. `None`: it is not stopped yet.
    pub end: Option<WalPosition>,
    /// It is to go on: members are started, and the lock is granted.
    pub waking: bool,
}

/// What is changed of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HibernateChange {
    /// An operator wants the cluster stopped.
    Begin {
        /// The primary.
        from: MemberId,
        /// Why; may be empty.
        reason: String,
        /// Who asks, as they call themselves; empty when they don't.
        by: String,
        /// Though no standby has all its WAL.
        force: bool,
    },
    /// The primary is stopped cleanly and its WAL is where it is to be: it gives the lock up, and everybody stops.
    Down {
        /// The operation.
        id: u64,
        /// Where its WAL ends.
        end: WalPosition,
    },
    /// An operator wants it to go on.
    Wake {
        /// Who asks, as they call themselves; empty when they don't.
        by: String,
    },
}

impl HibernateChange {
    /// Its name, for logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Begin { .. } => "hibernate",
            Self::Down { .. } => "hibernated",
            Self::Wake { .. } => "wake",
        }
    }
}

impl ClusterState {
    /// The cluster is stopped, and is to stay so.
    pub fn asleep(&self) -> Option<&Hibernation> {
        self.hibernation.as_ref().filter(|h| h.end.is_some() && !h.waking)
    }

    /// It was stopped, and nobody is open as primary again: how.
    pub fn waking(&self) -> Option<&Hibernation> {
        self.hibernation.as_ref().filter(|h| h.waking)
    }

    /// PostgreSQL of this member is stopped by command, itself or with the whole cluster. One in maintenance is left alone.
    pub fn put_down(&self, member: &MemberId) -> Option<Stopped> {
        match (self.maintenance.get(member), self.asleep()) {
            (Some(asked), _) => asked.stopped,
            (None, asleep) => asleep.map(|h| Stopped { at_ms: h.at_ms, force: true }),
        }
    }

    pub(super) fn hibernate(&mut self, command: &Command, change: &HibernateChange) -> Result<Option<String>, String> {
        let at = at_of(command);
        let asked = (command.request_id.as_str(), command.because);
        match change {
            HibernateChange::Begin { from, reason, by, force } => {
                if self.hibernation.is_some() {
                    return Err("the cluster is hibernated already".to_owned());
                }
                if let Some(rolling) = &self.agenda.rolling {
                    return Err(format!("rolling restart {} is under way", rolling.id));
                }
                self.begin(OperationKind::Hibernate, Some(from), from, (asked.0, asked.1, *force))?;
                let asked = Asked { reason: reason.clone(), by: by.clone(), stopped: None };
                let what = format!("hibernation {} begins{asked}: the whole cluster is stopped", self.operations);
                let (primary, end, waking) = (from.clone(), None, false);
                self.hibernation = Some(Hibernation { asked, at_ms: at, primary, end, waking });
                self.set_out(0, at);
                Ok(Some(what))
            }
            HibernateChange::Down { id, end } => self.go_down(*id, *end, at),
            HibernateChange::Wake { by } => {
                let primary = self.asleep().ok_or("the cluster is not hibernated")?.primary.clone();
                self.begin(OperationKind::Wake, None, &primary, (asked.0, asked.1, false))?;
                self.hibernation.iter_mut().for_each(|h| h.waking = true);
                self.set_out(0, at);
                let asked = Asked { by: by.clone(), ..Asked::default() };
                Ok(Some(format!("the cluster wakes{asked}; {primary} was primary, and is to be it again")))
            }
        }
    }

    fn go_down(&mut self, id: u64, end: WalPosition, at: u64) -> Result<Option<String>, String> {
        let stopping = self.operation.as_ref().filter(|o| o.id == id && o.kind == OperationKind::Hibernate);
        if stopping.is_none_or(|o| o.phase != OperationPhase::Stop) {
            return Err(format!("hibernation {id} is not stopping the primary"));
        }
        if self.hibernation.is_none() {
            return Err("nobody wants it".to_owned());
        }
        self.advance(id, OperationPhase::Transfer)?;
        self.agenda.course.phases.push((OperationPhase::Transfer, at));
        let Some(hibernation) = &mut self.hibernation else { return Err("nobody wants it".to_owned()) };
        hibernation.end = Some(end);
        let primary = &hibernation.primary;
        Ok(Some(format!("{primary} is stopped cleanly, its WAL ends at {end}: the cluster is hibernated")))
    }

    /// What `matriarch start --all` began can be taken back, and the cluster is stopped as it was.
    ///
    /// # Errors
    /// Why not: it doesn't wake, or somebody was granted the lock since and may have written.
    pub fn may_sleep_on(&self) -> Result<(), &'static str> {
        let end = self.waking().ok_or("the cluster does not wake")?.end.unwrap_or_default();
        // Each grant reserves a later timeline, also one that came to nothing.
        match self.holder().is_none() && self.highest_timeline() == end.timeline {
            true => Ok(()),
            false => Err("can't be taken back: somebody was granted the lock, and may have written since; \
                          `matriarch stop --all` stops the cluster when a primary is open"),
        }
    }

    pub(super) fn sleep_on(&mut self) -> Result<(), String> {
        self.may_sleep_on()?;
        self.hibernation.iter_mut().for_each(|h| h.waking = false);
        Ok(())
    }

    /// An operation is over: one that stopped nothing for good leaves nothing behind.
    pub(super) fn give_up_hibernation(&mut self) {
        self.hibernation.take_if(|h| h.end.is_none());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{Format, Lsn, TimelineId},
        policy::testing::{id, position, state},
        state::{Applied, Kind, RuleId},
    };

    fn run(state: &mut ClusterState, request_id: &str, kind: Kind) -> Applied {
        let (request_id, expected) = (request_id.to_owned(), state.epoch);
        state.apply(&Command { request_id, expected, because: RuleId(1), kind, evidence: None })
    }

    fn change(change: HibernateChange) -> Kind {
        Kind::Hibernate(change)
    }

    fn begin(state: &mut ClusterState) -> Applied {
        let (from, reason, by) = (id("a"), "move".to_owned(), "kim".to_owned());
        run(state, "stop", change(HibernateChange::Begin { from, reason, by, force: false }))
    }

    fn stopping() -> ClusterState {
        let mut state = state("granted a open 2");
        assert_eq!(begin(&mut state), Applied::Changed);
        run(&mut state, "x", Kind::AdvanceOperation { id: 1, phase: OperationPhase::Stop });
        state
    }

    fn down(id: u64) -> Kind {
        change(HibernateChange::Down { id, end: position("2:90") })
    }

    fn is_stale(applied: &Applied) -> bool {
        matches!(applied, Applied::Stale { .. })
    }

    #[test]
    fn a_hibernation_goes_step_by_step_and_wakes_once() {
        let mut state = stopping();
        assert!(is_stale(&begin(&mut state)), "once");
        assert!(
            state.asleep().is_none() && state.open_primary().is_none(),
            "writes are held, nothing is stopped for good"
        );
        assert!(is_stale(&run(&mut state, "x", down(7))), "another operation");
        assert_eq!(run(&mut state, "x", down(1)), Applied::Changed);
        assert_eq!(state.asleep().map(|h| (h.primary.clone(), h.end)), Some((id("a"), Some(position("2:90")))));
        assert!(is_stale(&run(&mut state, "x", down(1))), "it is in its last phase");
        let wake = || change(HibernateChange::Wake { by: "kim".into() });
        assert!(is_stale(&run(&mut state, "wake", wake())), "it is being stopped still");
        let end = position("2:90");
        let cause = crate::domain::EndCause::Ordered;
        run(&mut state, "x", Kind::Release { member: id("a"), end, clean: true, cause });
        run(&mut state, "x", Kind::fence("released".into()));
        run(&mut state, "x", Kind::EndOperation { id: 1, succeeded: true, reason: "down".into() });
        assert!(state.asleep().is_some(), "it stays so");
        assert!(is_stale(&run(&mut state, "x", Kind::RemoveMember { member: id("a") })), "it is to be primary again");
        let grant = Kind::Grant { member: id("b"), floor: end, sync: None };
        assert!(is_stale(&run(&mut state, "x", grant)), "nobody is granted anything meanwhile");
        assert_eq!(run(&mut state, "wake", wake()), Applied::Changed);
        assert!(state.asleep().is_none() && state.waking().is_some());
        assert!(is_stale(&run(&mut state, "again", wake())), "once");
        let cancel = |id| {
            let (phase, by) = (Some(OperationPhase::Start), "kim".to_owned());
            Kind::Agenda(crate::state::AgendaChange::Cancel { id, phase, by })
        };
        assert_eq!(run(&mut state, "c", cancel(2)), Applied::Changed);
        assert!(state.asleep().is_some() && state.operation.is_none(), "as it was");
        assert_eq!(state.agenda.ended_of(2).map(|e| e.outcome), Some(crate::state::Outcome::Cancelled));
        assert_eq!(run(&mut state, "second", wake()), Applied::Changed);
        run(&mut state, "x", Kind::Grant { member: id("a"), floor: end, sync: None });
        assert!(state.waking().is_some(), "should it not come to be primary, the next one needs all its WAL, too");
        assert!(is_stale(&run(&mut state, "c", cancel(3))), "it may write from now on");
        assert!(state.may_sleep_on().unwrap_err().contains("somebody was granted the lock"));
        let (timeline, switch) = (TimelineId(3), WalPosition { timeline: TimelineId(2), lsn: Lsn(90) });
        run(&mut state, "x", Kind::PromotionComplete { member: id("a"), timeline, switch, first_record: None });
        run(&mut state, "x", Kind::Open { member: id("a") });
        assert_eq!(state.hibernation, None);
        assert_eq!(state.format, Format::OPERATE);
    }

    #[test]
    fn one_that_ends_before_the_lock_is_given_up_leaves_nothing_behind() {
        let mut state = stopping();
        let cancel = |id| {
            let (phase, by) = (Some(OperationPhase::Stop), "kim".to_owned());
            Kind::Agenda(crate::state::AgendaChange::Cancel { id, phase, by })
        };
        assert_eq!(run(&mut state, "c", cancel(1)), Applied::Changed);
        assert_eq!(state.operation.as_ref().map(|o| o.phase), Some(OperationPhase::RollBack));
        assert!(is_stale(&run(&mut state, "x", down(1))), "it is rolled back");
        run(&mut state, "x", Kind::EndOperation { id: 1, succeeded: false, reason: "rolled back".into() });
        assert_eq!(state.hibernation, None);
        assert!(state.open_primary().is_some());
    }

    #[test]
    fn everybody_is_put_down_but_whom_operators_have_for_themselves() {
        let mut state = stopping();
        state.maintenance.insert(id("b"), Asked::default());
        assert_eq!(state.put_down(&id("c")), None);
        run(&mut state, "x", down(1));
        assert!(state.put_down(&id("c")).is_some() && state.put_down(&id("b")).is_none());
        let stopped = Some(Stopped { at_ms: 5, force: false });
        state.maintenance.insert(id("b"), Asked { stopped, ..Asked::default() });
        assert_eq!(state.put_down(&id("b")), stopped);
    }
}
