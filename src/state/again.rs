//! A request that is heard again means what it began, and one that is another under the same id is not taken for it.

use super::{
    agenda::{Agenda, PrimaryTurn, Work},
    cluster::{ClusterState, Operation, OperationKind, OperationPhase},
    command::RuleId,
};
use crate::domain::MemberId;

impl ClusterState {
    /// The operation that this request began, under way or over, while it is remembered. What was scheduled, or takes many steps,
    /// is none.
    pub fn begun_by(&self, request_id: &str) -> Option<Operation> {
        self.operation_of(request_id).cloned().or_else(|| self.agenda.over_of(request_id))
    }
}

impl Agenda {
    /// See [`ClusterState::begun_by`]; of one that is over it is not remembered what was accepted with it.
    fn over_of(&self, request_id: &str) -> Option<Operation> {
        let ended = self.ended.iter().rev().find(|e| e.asked.id == request_id && !e.phases.is_empty())?;
        let Work::One(kind) = ended.work else { return None };
        Some(Operation {
            id: ended.id,
            kind,
            from: ended.from.clone(),
            to: ended.to.clone()?,
            phase: ended.phases.last().map_or(OperationPhase::Checkpoint, |(phase, _)| *phase),
            request_id: request_id.to_owned(),
            because: RuleId(1),
            accepts_loss: false,
        })
    }

    /// Under this number just that is, or was, scheduled for that time.
    pub fn was_scheduled(
        &self,
        id: u64,
        kind: OperationKind,
        (from, to): (Option<&MemberId>, Option<&MemberId>),
        at_ms: u64,
    ) -> bool {
        let waits = self.scheduled.get(&id).map(|s| (Work::One(s.kind), s.from.as_ref(), s.to.as_ref(), s.at_ms));
        let over = self.ended_of(id).filter(|e| e.phases.is_empty());
        let over = over.map(|e| (e.work, e.from.as_ref(), e.to.as_ref(), e.asked.at_ms));
        waits.or(over) == Some((Work::One(kind), from, to, at_ms))
    }

    /// Under this number a rolling restart is under way that treats the primary so, or one is over.
    pub fn was_rolling(&self, id: u64, primary: PrimaryTurn) -> bool {
        let goes_on = self.rolling.as_ref().is_some_and(|r| r.id == id && r.primary == primary);
        goes_on || self.ended_of(id).is_some_and(|e| e.work == Work::Rolling)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::Format,
        policy::testing::{id, state},
        state::{AgendaChange, Applied, Command, Kind},
    };

    fn run(state: &mut ClusterState, request_id: &str, kind: Kind) {
        let (request_id, expected) = (request_id.to_owned(), state.epoch);
        let command = Command { request_id, expected, because: RuleId(1), kind, evidence: None };
        assert_eq!(state.apply(&command), Applied::Changed);
    }

    fn restart(state: &mut ClusterState, request_id: &str) {
        let (kind, from, to) = (OperationKind::Restart, Some(id("a")), id("b"));
        run(state, request_id, Kind::BeginOperation { kind, from, to, accepts_loss: false });
    }

    fn end(state: &mut ClusterState) {
        let id = state.operation.as_ref().unwrap().id;
        run(state, "", Kind::EndOperation { id, succeeded: true, reason: "it runs".into() });
    }

    #[test]
    fn an_operation_is_known_by_its_request_while_it_is_remembered() {
        let mut state = state("granted a open 2");
        state.format = Format::OPERATE;
        restart(&mut state, "first");
        assert_eq!(state.begun_by("first").map(|o| (o.id, o.phase)), Some((1, OperationPhase::Stop)));
        end(&mut state);
        restart(&mut state, "second");
        let first = state.begun_by("first").unwrap();
        assert_eq!((first.id, first.kind, first.from, first.to), (1, OperationKind::Restart, Some(id("a")), id("b")));
        assert_eq!((state.begun_by("second").map(|o| o.id), state.begun_by("third")), (Some(2), None));
    }

    #[test]
    fn what_was_scheduled_is_told_apart_from_what_was_begun_and_from_another_time() {
        let mut state = state("granted a open 2");
        state.format = Format::OPERATE;
        let (kind, to, by) = (OperationKind::Restart, Some(id("b")), String::new());
        run(&mut state, "s", Kind::Agenda(AgendaChange::Schedule { kind, from: None, to, at_ms: 9, by }));
        let is = |state: &ClusterState, kind, to: &str, at_ms| {
            state.agenda.was_scheduled(1, kind, (None, Some(&id(to))), at_ms)
        };
        for cancelled in [false, true] {
            assert!(is(&state, kind, "b", 9), "{cancelled}");
            assert!(!is(&state, kind, "b", 10) && !is(&state, kind, "c", 9));
            assert!(!is(&state, OperationKind::Switchover, "b", 9));
            assert_eq!(state.begun_by("s"), None);
            if !cancelled {
                run(&mut state, "c", Kind::Agenda(AgendaChange::Cancel { id: 1, phase: None, by: "kim".into() }));
            }
        }
        let (members, primary, by) = ([id("b")].into(), PrimaryTurn::Left, String::new());
        run(&mut state, "r", Kind::Agenda(AgendaChange::Roll { members, primary, by }));
        assert!(state.agenda.was_rolling(2, PrimaryTurn::Left) && !state.agenda.was_rolling(2, PrimaryTurn::InPlace));
        assert!(!state.agenda.was_rolling(1, PrimaryTurn::Left) && state.begun_by("r").is_none());
    }
}
