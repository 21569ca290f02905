//! Failovers after crashes, one after the other: a query that kills each new primary must not walk through the cluster.

use super::{
    RuleId,
    cluster::{ClusterState, Lock},
};
use crate::domain::{EndCause, Epoch, Format, MemberId};

/// From then on an epoch's end counts by its holder's word however it is ended, and when the word comes late.
pub const ENDS: Format = Format::SYNC;

/// The rules that move a primary for want of room.
const MOVES: [RuleId; 2] = [RuleId(270), RuleId(272)];

impl ClusterState {
    /// So many failovers followed crashes, or moves want of room, since the last time a primary lasted or an operator acknowledged them that the
    /// next crash is answered by a restart in place, however often. A lost host or lease is failed over all the same.
    pub fn stays_put(&self) -> bool {
        let limit = self.settings.settings().failover_limit;
        limit > 0 && self.crash_failovers >= limit
    }

    /// The holder's own word why its epoch ended.
    pub(super) fn count_crash(&mut self, cause: EndCause) {
        if cause.is_postgresqls() {
            self.crash_failovers = self.crash_failovers.saturating_add(1);
        }
    }

    /// Others have ended the epoch; `cause` is what its holder's agent had said of it by then. What older versions make of
    /// it, nothing, counts until all hosts have a newer one.
    pub(super) fn ended_by_others(&mut self, holder: &MemberId, epoch: Epoch, cause: EndCause) {
        if self.format < ENDS {
            return;
        }
        match cause {
            EndCause::Unknown => drop(self.unexplained.insert(holder.clone(), epoch)),
            cause => self.count_crash(cause),
        }
    }

    /// The holder's own word comes after others have ended its epoch: it counts unless it has.
    pub(super) fn explained(&mut self, holder: &MemberId, epoch: Epoch, cause: EndCause) {
        let open = self.unexplained.remove(holder) == Some(epoch);
        if open || self.format < ENDS {
            self.count_crash(cause);
        }
    }

    /// A primary that has moved for want of room, again and again: with too little on every host it would never rest. What
    /// older versions make of the command counts until all hosts have a newer one.
    pub(super) fn count_move(&mut self, because: RuleId) {
        if self.format >= Format::MOVES && MOVES.contains(&because) {
            self.crash_failovers = self.crash_failovers.saturating_add(1);
        }
    }

    /// They count no more.
    pub(super) fn acknowledge(&mut self, by: &str) -> Result<Option<String>, String> {
        let (count, open) = (self.crash_failovers, matches!(self.lock, Lock::Granted { .. }));
        if count == 0 {
            return Err("there is no failover to acknowledge".to_owned());
        }
        self.crash_failovers = 0;
        self.unexplained.clear();
        let lasted = if open { ", the primary has lasted" } else { "" };
        Ok(Some(match by {
            "" => format!("failovers after crashes count no more, there were {count}{lasted}"),
            by => format!("failovers after crashes, {count} in a row, are acknowledged by {by}"),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{Lsn, NodeId, PauseWord, TimelineId, WalPosition},
        state::{Applied, Command, Kind, Member, OperationKind},
    };

    fn id(name: &str) -> MemberId {
        name.parse().unwrap()
    }

    fn run(state: &mut ClusterState, kind: Kind) -> Applied {
        let expected = state.epoch;
        state.apply(&Command { request_id: "r".into(), expected, because: RuleId(1), kind, evidence: None })
    }

    fn reign_ends(state: &mut ClusterState, cause: EndCause) {
        let at = WalPosition { timeline: TimelineId(1), lsn: Lsn(1) };
        for kind in [
            Kind::fence(String::new()),
            Kind::Grant { member: id("a"), floor: at, sync: None },
            Kind::Release { member: id("a"), end: at, clean: false, cause },
        ] {
            assert_eq!(run(state, kind), Applied::Changed);
        }
    }

    fn somebody() -> Member {
        let (manager, agent) = (String::new(), String::new());
        Member { node: NodeId(1), manager, postgres: "h:1".into(), agent, learner: false }
    }

    #[test]
    fn moves_for_want_of_room_count_like_failovers_after_crashes() {
        let member = somebody();
        let members = [(id("a"), member.clone()), (id("b"), member)].into();
        let mut state = ClusterState { members, epoch: Epoch(1), ..Default::default() };
        let at = WalPosition { timeline: TimelineId(1), lsn: Lsn(1) };
        run(&mut state, Kind::fence(String::new()));
        run(&mut state, Kind::Grant { member: id("a"), floor: at, sync: None });
        for (rule, format, succeeded, counted) in [
            (270, Format::SETTINGS, true, 0),
            (270, Format::MOVES, false, 0),
            (270, Format::MOVES, true, 1),
            (272, Format::MOVES, true, 2),
            (0, Format::MOVES, true, 2),
        ] {
            state.format = format;
            let kind = Kind::BeginOperation {
                kind: OperationKind::Switchover,
                from: Some(id("a")),
                to: id("b"),
                accepts_loss: false,
            };
            let request_id = format!("r{}", state.operations);
            let begin = Command { request_id, expected: state.epoch, because: RuleId(rule), kind, evidence: None };
            assert_eq!(state.apply(&begin), Applied::Changed);
            let id = state.operations;
            run(&mut state, Kind::EndOperation { id, succeeded, reason: "it is over".into() });
            assert_eq!(state.crash_failovers, counted, "rule {rule}, {succeeded}");
        }
    }

    #[test]
    fn crashes_of_postgresql_count_and_nothing_else_does() {
        let member = somebody();
        let mut state = ClusterState { members: [(id("a"), member)].into(), epoch: Epoch(1), ..Default::default() };
        for cause in [EndCause::Lease, EndCause::Ordered, EndCause::PromotionFailed, EndCause::Unknown] {
            reign_ends(&mut state, cause);
        }
        assert_eq!((state.crash_failovers, state.pause_word()), (0, PauseWord::default()));
        reign_ends(&mut state, EndCause::Crash);
        reign_ends(&mut state, EndCause::Hung);
        assert!(!state.stays_put());
        reign_ends(&mut state, EndCause::NoSpace);
        assert_eq!((state.crash_failovers, state.stays_put()), (3, true));
        // The agents learn it with the word of a pause, which only ever goes up.
        assert_eq!(state.pause_word(), PauseWord { version: 1, on: false, stays: true });

        assert_eq!(run(&mut state, Kind::Acknowledge { by: "kim".into() }), Applied::Changed);
        assert_eq!((state.crash_failovers, state.stays_put()), (0, false));
        assert_eq!(
            state.incidents.back().unwrap().what,
            "failovers after crashes, 3 in a row, are acknowledged by kim"
        );
        assert_eq!(state.pause_word(), PauseWord { version: 2, on: false, stays: false });
        assert!(matches!(run(&mut state, Kind::Acknowledge { by: String::new() }), Applied::Stale { .. }));
    }

    /// Two members, a primary of epoch 2, in a state of that format.
    fn granted(format: Format) -> ClusterState {
        let member = somebody();
        let members = [(id("a"), member.clone()), (id("b"), member)].into();
        let mut state = ClusterState { members, epoch: Epoch(1), format, ..Default::default() };
        run(&mut state, Kind::fence(String::new()));
        grant(&mut state, "a");
        state
    }

    fn grant(state: &mut ClusterState, member: &str) {
        let floor = WalPosition { timeline: TimelineId(1), lsn: Lsn(1) };
        assert_eq!(run(state, Kind::Grant { member: id(member), floor, sync: None }), Applied::Changed);
    }

    fn says(state: &mut ClusterState, member: &str, cause: EndCause) -> Applied {
        let end = WalPosition { timeline: TimelineId(1), lsn: Lsn(1) };
        run(state, Kind::Release { member: id(member), end, clean: false, cause })
    }

    fn ended(state: &mut ClusterState, cause: EndCause) {
        assert_eq!(run(state, Kind::Fence { reason: "no promise is left".into(), cause }), Applied::Changed);
    }

    #[test]
    fn an_end_that_others_made_counts_by_the_word_of_the_agent_and_once() {
        let mut known = granted(ENDS);
        ended(&mut known, EndCause::Storage);
        assert_eq!((known.crash_failovers, known.reigns[0].cause), (1, EndCause::Storage));
        assert_eq!(
            says(&mut known, "a", EndCause::Storage),
            Applied::Changed,
            "nobody waits for its promises any more"
        );
        assert_eq!(known.crash_failovers, 1);
        assert!(known.unexplained.is_empty());

        let mut silent = granted(ENDS);
        ended(&mut silent, EndCause::Unknown);
        assert_eq!(silent.crash_failovers, 0);
        says(&mut silent, "a", EndCause::Storage);
        assert_eq!((silent.crash_failovers, silent.unexplained.len()), (1, 0));

        let mut lost = granted(ENDS);
        ended(&mut lost, EndCause::Lease);
        assert_eq!((lost.crash_failovers, lost.unexplained.len()), (0, 0), "it has said why, and that is no crash");
    }

    #[test]
    fn a_word_that_comes_after_the_next_grant_counts_once_and_takes_nothing_away() {
        let mut state = granted(ENDS);
        ended(&mut state, EndCause::Unknown);
        grant(&mut state, "b");
        let lock = state.lock.clone();
        assert_eq!(says(&mut state, "a", EndCause::Hung), Applied::Changed);
        assert_eq!((state.crash_failovers, &state.lock), (1, &lock));
        let causes: Vec<EndCause> = state.reigns.iter().map(|reign| reign.cause).collect();
        assert_eq!(causes, [EndCause::Hung, EndCause::Unknown]);
        assert_eq!(state.incidents.back().unwrap().what, "a says why its epoch 2 ended: PostgreSQL let nobody in");
        assert!(matches!(says(&mut state, "a", EndCause::Hung), Applied::Stale { .. }), "once is enough");
    }

    #[test]
    fn whose_word_is_of_no_use_any_more_is_forgotten() {
        for forget in [
            |state: &mut ClusterState| grant(state, "a"),
            |state: &mut ClusterState| assert_eq!(run(state, Kind::RemoveMember { member: id("a") }), Applied::Changed),
            |state: &mut ClusterState| {
                state.crash_failovers = 1;
                run(state, Kind::Acknowledge { by: "kim".into() });
            },
        ] {
            let mut state = granted(ENDS);
            ended(&mut state, EndCause::Unknown);
            assert_eq!(state.unexplained, [(id("a"), Epoch(2))].into());
            forget(&mut state);
            assert!(state.unexplained.is_empty());
        }
    }

    /// The same entries lead to the same state as under the version before, until every host has told that it has this one.
    #[test]
    fn until_every_host_counts_it_an_end_that_others_made_counts_for_nobody() {
        let mut state = granted(Format::MOVES);
        // No leader proposes that; one that did would change nothing by it.
        ended(&mut state, EndCause::Storage);
        assert_eq!((state.crash_failovers, state.unexplained.len(), state.format), (0, 0, Format::MOVES));
        says(&mut state, "a", EndCause::Storage);
        assert_eq!(state.crash_failovers, 1, "as ever");
        grant(&mut state, "b");
        ended(&mut state, EndCause::Unknown);
        grant(&mut state, "a");
        assert!(matches!(says(&mut state, "b", EndCause::Crash), Applied::Stale { .. }));
        assert_eq!(state.crash_failovers, 1);
    }

    #[test]
    fn without_a_limit_nothing_stays_put() {
        let mut state = ClusterState { crash_failovers: 99, ..Default::default() };
        assert!(state.stays_put());
        state.settings.values.insert("failover_limit".into(), "0".into());
        assert!(!state.stays_put());
    }
}
