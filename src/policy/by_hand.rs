//! What to do when all WAL that is left goes on from a promotion by hand.

use super::{Hold, Situation, Verdict, candidates, failover, pause, report::Unfit, sync};
use crate::{
    domain::{Lsn, MemberId, PostgresState, TimelineId, WalPosition, observation::AgentView},
    state::{Kind, Release},
};

/// A timeline nobody granted, as one member has it.
struct Foreign<'a> {
    member: &'a MemberId,
    timeline: TimelineId,
    switch: WalPosition,
    end: WalPosition,
    first_record: Option<u32>,
    copy: bool,
}

impl Foreign<'_> {
    /// Whose timeline is taken: a server's that has streamed, the one with the most of ours, and one whose first record
    /// is known, for by that everybody else who has the timeline is known, too.
    fn rank(&self) -> (bool, Lsn, bool, WalPosition) {
        (!self.copy, self.switch.lsn, self.first_record.is_some(), self.end)
    }
}

/// Rule 407. Somebody started and promoted the primary by hand, and the standbys followed: the right to be
/// primary is settled by seals as ever, yet everybody's WAL goes on past the cluster's last timeline on one that is
/// not the cluster's, and nobody has a copy that could be taken back to. The member with the most WAL of the cluster's
/// own last timeline is what any other failover would choose; its timeline becomes part of the history.
///
/// Where commits are confirmed, those who have given the last primary up have to say that nothing is missing there.
///
/// Nothing in a pause, when anybody can be promoted without it, when an operator named the successor, when a member's answer is
/// still to come, or when the number is one the cluster has used or reserved: equal numbers are not equal WAL.
pub fn adopt_timeline(s: &Situation<'_>) -> Option<Verdict> {
    let highest = s.state.highest_timeline();
    if !s.seals.values().filter_map(|seal| seal.agent.as_ref()).any(|a| a.history.timeline > highest) {
        return None; // nearly always, and for less than what follows
    }
    let Ok(ground) = failover::ready_to_grant(s)? else { return None };
    if ground.forced.is_some() || pause::holds(s, String::new).is_some() {
        return None;
    }
    let why = match candidates::successor(s, ground.released, None) {
        Err(Hold::NoSuccessor { why }) => why,
        // Nobody's word counts whose WAL is not the cluster's.
        Err(Hold::Unconfirmed { .. }) => candidates::nobody(s, ground.released)?,
        Ok(_) | Err(_) => return None,
    };
    if !why.iter().all(|(_, unfit)| is_final(unfit)) {
        return None;
    }
    let diverged = why.iter().filter(|(_, unfit)| matches!(unfit, Unfit::Diverged { .. }));
    let foreign = diverged.filter_map(|(m, _)| foreign(s, m, s.seals.get(m)?.agent.as_ref()?));
    let best = foreign.max_by(|a, b| a.rank().cmp(&b.rank()).then(b.member.cmp(a.member)))?;
    let (member, timeline, switch) = (best.member.clone(), best.timeline, best.switch);
    if !has_everything(s, ground.released, switch) {
        return None;
    }
    Some(Verdict::Propose(Kind::AdoptTimeline { member, timeline, switch, first_record: best.first_record }))
}

/// Every commit that was promised to be safe is in the WAL of the cluster's own up to `switch`, as those say who have left
/// the last primary: of what they have only that part counts.
fn has_everything(s: &Situation<'_>, released: Option<&Release>, switch: WalPosition) -> bool {
    let lineage = s.state.history_of(s.state.newest_complete_timeline());
    let own_part = |member: &MemberId| {
        let agent = s.seals.get(member)?.agent.as_ref()?;
        agent.history.fork_from(&lineage).map(|fork| fork.min(agent.wal_end))
    };
    let promised = sync::promised(s);
    // Whoever was primary last may have been put back from a backup meanwhile: its word counts when there is no other.
    if let Ok(needed) = sync::by_rules(s, &promised, own_part) {
        return needed <= switch;
    }
    let everything = sync::everything_by(s, released, &promised, own_part);
    everything.is_ok_and(|needed| needed.is_none_or(|needed| needed <= switch))
}

/// Waiting for this member would not make it fit.
fn is_final(unfit: &Unfit) -> bool {
    match unfit {
        Unfit::NotSealed
        | Unfit::AgentSilent
        | Unfit::OtherSystem { .. }
        | Unfit::HalfRewound
        | Unfit::Diverged { .. }
        // It streams from a primary only, and there is none.
        | Unfit::NeverStreamed
        | Unfit::State(PostgresState::NoData | PostgresState::Failed) => true,
        Unfit::State(_)
        | Unfit::WalEndUnknown
        | Unfit::ClockOff { .. }
        | Unfit::SlowFence { .. }
        // A disk that stands still may go on.
        | Unfit::Storage { .. }
        | Unfit::Promised { .. }
        | Unfit::NotAsked { .. }
        | Unfit::FailedBefore { .. }
        | Unfit::NoStream
        | Unfit::Delayed { .. }
        | Unfit::NoFailover { .. }
        | Unfit::OtherSite { .. }
        | Unfit::TooFar { .. }
        | Unfit::TooOld { .. }
        | Unfit::AgeUnknown { .. }
        // All WAL there is may be there.
        | Unfit::Maintenance(_)
        | Unfit::NoRoom { .. }
        | Unfit::NoTarget { .. }
        // Whoever has them may be heard of yet.
        | Unfit::LacksCommits { .. }
        | Unfit::Behind { .. } => false,
    }
}

/// The first timeline of this member past the cluster's last one.
fn foreign<'a>(s: &Situation<'_>, member: &'a MemberId, agent: &AgentView) -> Option<Foreign<'a>> {
    let lineage = s.state.history_of(s.state.newest_complete_timeline());
    let switch = agent.history.fork_from(&lineage).filter(|fork| fork.timeline == lineage.timeline)?;
    let mut later = agent.history.switches.iter().skip_while(|step| step.timeline != lineage.timeline).skip(1);
    let timeline = later.next().map_or(agent.history.timeline, |step| step.timeline);
    let free = timeline > s.state.highest_timeline() && agent.history.end_of(lineage.timeline) == Some(switch.lsn);
    let first_record = agent.history.first_records.get(&timeline).copied();
    let copy = agent.never_streamed;
    // A copy is no candidate before it has streamed: without the first record nobody could be promoted.
    let of_use = free && (!copy || first_record.is_some());
    of_use.then_some(Foreign { member, timeline, switch, end: agent.wal_end, first_record, copy })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{TimelineHistory, TimelineSwitch},
        policy::testing::{Bench, position},
    };

    /// All voters sealed epoch 2; the cluster's last timeline is 2, begun at 1:100.
    fn fenced() -> Bench {
        Bench::new("fenced")
    }

    fn seal(bench: Bench, member: &str, words: &str, switches: &[(u32, u64)], timeline: u32) -> Bench {
        let mut bench = bench.seal(member, words);
        let switch = |(timeline, end): &(u32, u64)| TimelineSwitch { timeline: TimelineId(*timeline), end: Lsn(*end) };
        let history = TimelineHistory {
            timeline: TimelineId(timeline),
            switches: switches.iter().map(switch).collect(),
            ..Default::default()
        };
        let id = member.parse::<MemberId>().unwrap();
        let agent = bench.seals.get_mut(&id).and_then(|seal| seal.agent.as_mut()).unwrap();
        agent.history = history;
        bench
    }

    #[test]
    fn the_timeline_of_the_member_with_the_most_of_ours_is_adopted() {
        let ours = &[(1, 100), (2, 500)];
        let less = &[(1, 100), (2, 400)];
        let bench = seal(fenced(), "a", "standby 7:900", less, 7);
        let bench = seal(bench, "b", "standby 3:600", ours, 3);
        let bench = seal(bench, "c", "standby 3:700", ours, 3);
        let Some(Verdict::Propose(Kind::AdoptTimeline { member, timeline, switch, .. })) =
            adopt_timeline(&bench.situation())
        else {
            panic!("{:?}", adopt_timeline(&bench.situation()))
        };
        assert_eq!((member.as_str(), timeline, switch), ("c", TimelineId(3), position("2:500")));
    }

    #[test]
    fn nothing_is_adopted_while_anybody_can_be_promoted_or_may_yet_answer() {
        let ours = &[(1, 100), (2, 500)];
        let foreign = || seal(seal(fenced(), "b", "standby 3:600", ours, 3), "c", "standby 3:700", ours, 3);
        assert!(adopt_timeline(&foreign().situation()).is_some());
        assert!(adopt_timeline(&foreign().seal("a", "standby 2:450").situation()).is_none());
        assert!(adopt_timeline(&foreign().seal("a", "starting 2:450").situation()).is_none());
    }

    /// b and c were both promoted by hand from 2:500: equal histories, other WAL.
    #[test]
    fn whoever_else_has_wal_under_an_adopted_number_is_no_candidate() {
        let ours = &[(1, 100), (2, 500)];
        let mut bench = seal(seal(fenced(), "b", "standby 3:600", ours, 3), "c", "standby 3:700", ours, 3);
        bench.state.lineage.push(crate::state::TimelineRecord {
            timeline: TimelineId(3),
            epoch: crate::domain::Epoch(0),
            switch: Some(position("2:500")),
            first_record: None,
        });
        bench.state.by_hand.insert(TimelineId(3), "b".parse().unwrap());
        let Some(Verdict::Propose(Kind::Grant { member, .. })) = failover::grant(&bench.situation()) else {
            panic!("{:?}", failover::grant(&bench.situation()))
        };
        assert_eq!(member.as_str(), "b", "c has more, and it may be anything");
    }

    #[test]
    fn the_first_record_tells_who_else_has_the_adopted_timeline() {
        let ours = &[(1, 100), (2, 500)];
        let mut bench = seal(seal(fenced(), "b", "standby 3:600", ours, 3), "c", "standby 3:700", ours, 3);
        bench.state.lineage.push(crate::state::TimelineRecord {
            timeline: TimelineId(3),
            epoch: crate::domain::Epoch(0),
            switch: Some(position("2:500")),
            first_record: Some(5),
        });
        bench.state.by_hand.insert(TimelineId(3), "b".parse().unwrap());
        let granted = |bench: &Bench| match failover::grant(&bench.situation()) {
            Some(Verdict::Propose(Kind::Grant { member, .. })) => member.to_string(),
            other => panic!("{other:?}"),
        };
        first_record(&mut bench, "c", 5);
        assert_eq!(granted(&bench), "c", "it has the same bytes, and more of them");
        first_record(&mut bench, "c", 6);
        assert_eq!(granted(&bench), "b", "it was begun by another promotion");
    }

    fn first_record(bench: &mut Bench, member: &str, crc: u32) {
        let id = member.parse::<MemberId>().unwrap();
        let agent = bench.seals.get_mut(&id).and_then(|seal| seal.agent.as_mut()).unwrap();
        agent.history.first_records = [(TimelineId(3), crc)].into();
    }

    #[test]
    fn a_copy_that_has_not_streamed_is_not_adopted_from() {
        let ours = &[(1, 100), (2, 500)];
        let bench = seal(seal(fenced(), "b", "standby 3:600", ours, 3), "c", "standby 3:700", ours, 3);
        let copy = |mut bench: Bench, member: &str| {
            let id = member.parse::<MemberId>().unwrap();
            bench.seals.get_mut(&id).and_then(|seal| seal.agent.as_mut()).unwrap().never_streamed = true;
            bench
        };
        let bench = copy(bench, "c");
        let Some(Verdict::Propose(Kind::AdoptTimeline { member, .. })) = adopt_timeline(&bench.situation()) else {
            panic!("{:?}", adopt_timeline(&bench.situation()))
        };
        assert_eq!(member.as_str(), "b", "c has more, and could never be promoted");
        let mut copies = copy(bench, "b");
        assert!(adopt_timeline(&copies.situation()).is_none(), "the server they were copied from may come");
        first_record(&mut copies, "b", 5);
        assert!(adopt_timeline(&copies.situation()).is_some(), "all who have the timeline are known by it");
    }

    #[test]
    fn a_copy_of_ours_that_has_not_streamed_does_not_hold_it_up() {
        let ours = &[(1, 100), (2, 500)];
        let bench = seal(seal(fenced(), "a", "standby 3:900", ours, 3), "b", "standby 3:600", ours, 3);
        let mut bench = bench.seal("c", "standby 2:400");
        let id = "c".parse::<MemberId>().unwrap();
        bench.seals.get_mut(&id).and_then(|seal| seal.agent.as_mut()).unwrap().never_streamed = true;
        assert!(adopt_timeline(&bench.situation()).is_some(), "c waits for a primary that nobody can become");
    }

    #[test]
    fn a_timeline_whose_first_record_is_known_is_taken_before_more_wal() {
        let ours = &[(1, 100), (2, 500)];
        let mut bench = seal(seal(fenced(), "b", "standby 3:600", ours, 3), "c", "standby 3:700", ours, 3);
        first_record(&mut bench, "b", 5);
        let Some(Verdict::Propose(Kind::AdoptTimeline { member, first_record, .. })) =
            adopt_timeline(&bench.situation())
        else {
            panic!("{:?}", adopt_timeline(&bench.situation()))
        };
        assert_eq!((member.as_str(), first_record), ("b", Some(5)));
    }

    #[test]
    fn a_number_of_ours_and_a_branch_of_an_older_timeline_are_not_adopted() {
        let mut bench = seal(fenced(), "b", "standby 3:600", &[(1, 100), (2, 500)], 3);
        bench.state.lineage.push(crate::state::TimelineRecord {
            timeline: TimelineId(3),
            epoch: crate::domain::Epoch(2),
            switch: None,
            first_record: None,
        });
        let bench = bench.seal("c", "failed");
        assert!(adopt_timeline(&bench.situation()).is_none(), "its number is reserved");
        let bench = seal(fenced(), "b", "standby 3:600", &[(1, 80)], 3).seal("c", "failed");
        assert!(adopt_timeline(&bench.situation()).is_none(), "it lacks all of timeline 2");
    }

    /// a was started and promoted by hand at 2:600 and followed; commits of its epoch had been confirmed by one of b and c.
    fn confirmed(b: &str, c: &str) -> Bench {
        let ours = &[(1, 100), (2, 600)];
        let bench = seal(seal(fenced(), "b", b, ours, 3), "c", c, ours, 3);
        let mut bench = bench;
        bench.state.sync.add(crate::domain::Epoch(1), ["b", "c"].map(|m| m.parse().unwrap()).into(), 1).unwrap();
        bench
    }

    #[test]
    fn where_commits_are_confirmed_those_who_left_the_primary_say_that_nothing_is_missing() {
        let epoch = fenced().state.epoch.0;
        let left = format!("standby 3:600 severed={epoch}");
        let bench = confirmed(&left, &left);
        assert!(matches!(candidates::successor(&bench.situation(), None, None), Err(Hold::Unconfirmed { .. })));
        assert!(matches!(adopt_timeline(&bench.situation()), Some(Verdict::Propose(Kind::AdoptTimeline { .. }))));
        let unheard = confirmed(&left, "standby 3:600");
        assert!(adopt_timeline(&unheard.situation()).is_none(), "c may have what b lacks");
        let mut behind = confirmed(&left, &left);
        behind = seal(behind, "b", &format!("standby 3:700 severed={epoch}"), &[(1, 100), (2, 650)], 3);
        behind = seal(behind, "c", &left, &[(1, 100), (2, 650)], 3);
        let adopted = adopt_timeline(&behind.situation());
        assert!(
            matches!(adopted, Some(Verdict::Propose(Kind::AdoptTimeline { switch, .. })) if switch.lsn == Lsn(650))
        );
    }
}
