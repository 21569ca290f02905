//! What happened, for people: what the leader went by when it decided, and who was primary from when to when. Nobody
//! decides by any of it, but that a new primary asks the last one for WAL; and times are a leader's wall clock, which may be wrong.

use super::{
    cluster::{ClusterState, Lock},
    command::{Command, Kind},
    flaps::ENDS,
};
use crate::domain::{EndCause, Epoch, MemberId, TimelineId, WalPosition};

/// So many primaries are remembered.
pub const REIGNS_KEPT: usize = 100;

/// What the leader that proposed a command went by.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Evidence {
    /// Its wall clock, in milliseconds since 1970.
    pub at_ms: u64,
    /// Who led.
    pub leader: String,
    /// What it knew of each member, a line for each.
    pub seen: Vec<String>,
    /// What had held the cluster up since the last command, and for how long.
    pub held: Vec<Lasted>,
    /// How long the lock, and an operation under way, had been in the phase they were in.
    pub phases: Vec<Lasted>,
}

/// Something that lasted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lasted {
    /// What it was.
    pub what: String,
    /// In milliseconds.
    pub ms: u64,
}

/// One time of one primary. Times are milliseconds since 1970; 0 where nobody noted one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reign {
    /// Its epoch.
    pub epoch: Epoch,
    /// Who was primary, or was to be.
    pub member: MemberId,
    /// The timeline reserved for it.
    pub timeline: TimelineId,
    /// The lock was granted.
    pub granted_ms: u64,
    /// It was open for clients; `None` when it never was.
    pub opened_ms: Option<u64>,
    /// The epoch was ended or released; `None` while it lasts.
    pub ended_ms: Option<u64>,
    /// Why, by its own word.
    pub cause: EndCause,
    /// Why, by those who ended the epoch.
    pub reason: String,
    /// Where its WAL ends, by its own word.
    pub end: Option<WalPosition>,
}

impl ClusterState {
    /// Keeps the history up with a command that has just changed this state.
    pub(super) fn chronicle(&mut self, command: &Command) {
        let at = command.evidence.as_ref().map_or(0, |evidence| evidence.at_ms);
        self.follow_operation(command);
        match &command.kind {
            Kind::Grant { member, .. } | Kind::GrantRunning { member, .. } => self.begin_reign(member, at),
            Kind::Open { .. } => {
                if let Some(reign) = self.reigns.back_mut() {
                    reign.opened_ms = Some(at);
                }
            }
            Kind::Release { member, end, cause, .. } => {
                if let Some(reign) = self.reigns.iter_mut().rev().find(|r| r.member == *member) {
                    reign.ended_ms.get_or_insert(at);
                    (reign.cause, reign.end) = (*cause, Some(*end));
                }
            }
            Kind::Fence { reason, cause } => {
                if let Some(reign) = self.reigns.back_mut() {
                    // Its own word about it has come already, or comes later.
                    if *cause != EndCause::Unknown && self.format >= ENDS {
                        reign.cause = *cause;
                    }
                    reign.ended_ms.get_or_insert(at);
                    if reign.reason.is_empty() {
                        reign.reason.clone_from(reason);
                    }
                }
            }
            _ => {}
        }
    }

    /// A new generation begins, and nobody notes when.
    pub(super) fn end_reigns(&mut self) {
        if let Some(reign) = self.reigns.back_mut().filter(|r| r.ended_ms.is_none()) {
            (reign.ended_ms, reign.reason) = (Some(0), "the cluster was recovered without it".to_owned());
        }
    }

    fn begin_reign(&mut self, member: &MemberId, at: u64) {
        let Lock::Granted { epoch, timeline, .. } = self.lock else { return };
        self.reigns.push_back(Reign {
            epoch,
            member: member.clone(),
            timeline,
            granted_ms: at,
            opened_ms: None,
            ended_ms: None,
            cause: EndCause::Unknown,
            reason: String::new(),
            end: None,
        });
        while self.reigns.len() > REIGNS_KEPT {
            self.reigns.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        domain::{Lsn, NodeId},
        state::{Applied, Member, RuleId},
    };

    fn id(name: &str) -> MemberId {
        name.parse().unwrap()
    }

    fn at(lsn: u64) -> WalPosition {
        WalPosition { timeline: TimelineId(1), lsn: Lsn(lsn) }
    }

    fn run(state: &mut ClusterState, at_ms: u64, kind: Kind) {
        let evidence = Some(Arc::new(Evidence { at_ms, ..Evidence::default() }));
        let command = Command { request_id: "r".into(), expected: state.epoch, because: RuleId(1), kind, evidence };
        assert_eq!(state.apply(&command), Applied::Changed, "{command}");
    }

    fn founded() -> ClusterState {
        let member = |n: u64| Member {
            node: NodeId(n),
            manager: String::new(),
            postgres: "h:1".into(),
            agent: String::new(),
            learner: false,
        };
        ClusterState { members: [(id("a"), member(1)), (id("b"), member(2))].into(), ..ClusterState::default() }
    }

    fn reign(state: &mut ClusterState, member: &str, ms: u64) {
        run(state, ms, Kind::fence(format!("the one before {member} is lost")));
        run(state, ms + 1, Kind::Grant { member: id(member), floor: at(5), sync: None });
        let Lock::Granted { timeline, .. } = state.lock else { panic!() };
        let promoted = Kind::PromotionComplete { member: id(member), timeline, switch: at(6), first_record: None };
        run(state, ms + 2, promoted);
        run(state, ms + 3, Kind::Open { member: id(member) });
    }

    #[test]
    fn who_was_primary_from_when_to_when_and_why_it_ended() {
        let mut state = founded();
        reign(&mut state, "a", 100);
        reign(&mut state, "b", 200);
        run(&mut state, 300, Kind::Release { member: id("b"), end: at(9), clean: false, cause: EndCause::Hung });
        run(&mut state, 301, Kind::fence("b released it".into()));
        let [a, b] = state.reigns.make_contiguous() else { panic!() };
        assert_eq!((a.opened_ms, a.ended_ms, a.cause), (Some(103), Some(200), EndCause::Unknown));
        assert_eq!((a.reason.as_str(), a.end), ("the one before b is lost", None));
        assert_eq!((b.granted_ms, b.opened_ms, b.ended_ms), (201, Some(203), Some(300)), "its own word came first");
        assert_eq!((b.cause, b.end, b.reason.as_str()), (EndCause::Hung, Some(at(9)), "b released it"));
        assert_eq!(state.incidents.back().unwrap().evidence.as_ref().unwrap().at_ms, 301);
    }

    #[test]
    fn one_that_never_opened_is_told_as_that_and_old_ones_are_forgotten() {
        let mut state = founded();
        run(&mut state, 1, Kind::fence(String::new()));
        run(&mut state, 2, Kind::Grant { member: id("a"), floor: at(5), sync: None });
        run(&mut state, 3, Kind::fence("late".into()));
        // Its word comes after the epoch was ended.
        run(
            &mut state,
            4,
            Kind::Release { member: id("a"), end: at(5), clean: false, cause: EndCause::PromotionFailed },
        );
        let first = state.reigns.front().unwrap().clone();
        assert_eq!((first.opened_ms, first.ended_ms, first.cause), (None, Some(3), EndCause::PromotionFailed));
        for n in 1..=REIGNS_KEPT as u64 {
            run(&mut state, 0, Kind::Grant { member: id("b"), floor: at(5), sync: None });
            run(&mut state, 0, Kind::fence(n.to_string()));
        }
        assert_eq!(state.reigns.len(), REIGNS_KEPT);
        assert!(!state.reigns.contains(&first));
    }
}
