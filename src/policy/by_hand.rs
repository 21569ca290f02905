//! What to do when all WAL that is left goes on from a promotion by hand, or from one that nobody reported.

use std::cmp::Ordering;

use super::{Situation, Verdict, failover, report::Unfit};
use crate::{
    domain::{MemberId, PostgresState, TimelineId, WalPosition, observation::AgentView},
    state::{Kind, Lock},
};

/// A timeline nobody granted, as one member has it.
struct Foreign<'a> {
    member: &'a MemberId,
    timeline: TimelineId,
    switch: WalPosition,
    end: WalPosition,
}

/// Rule 407. Somebody started and promoted the primary by hand, and the standbys followed: the right to be
/// primary is settled by seals as ever, yet everybody's WAL goes on past the cluster's last timeline on one that is
/// not the cluster's, and nobody has a copy that could be taken back to. The member with the most WAL of the cluster's
/// own last timeline is what any other failover would choose; its timeline becomes part of the history.
///
/// The same when a grant was taken and its promotion came to pass, the host was gone before anybody heard of it, and a
/// standby had followed already. Then the number is the one that was reserved for that grant, and it is taken before
/// anybody who has no more of the last timeline: what was acknowledged since is there only.
///
/// Nothing when anybody else can be promoted, when an operator named the successor, when an answer that counts is
/// still to come, or when the number is any other that the cluster has used or reserved: equal numbers are not equal WAL.
pub fn adopt_timeline(s: &Situation<'_>) -> Option<Verdict> {
    let Ok(ground) = failover::ready_to_grant(s)? else { return None };
    if ground.forced.is_some() {
        return None;
    }
    let (fit, unfit) = failover::fit_and_unfit(s, ground.released);
    let diverged = unfit.iter().filter(|(_, why)| matches!(why, Unfit::Diverged { .. }));
    let foreign = diverged.filter_map(|(m, _)| foreign(s, m, s.seals.get(*m)?.agent.as_ref()?));
    let unheard = s.state.unheard_timeline().filter(|_| holder_can_not_say(s, &unfit));
    let best = match fit.into_iter().max() {
        Some(end) => foreign.filter(|f| Some(f.timeline) == unheard && f.switch >= end).max_by(Foreign::order)?,
        None if unfit.iter().all(|(_, why)| is_final(why)) => foreign.max_by(Foreign::order)?,
        None => return None,
    };
    let (member, timeline, switch) = (best.member.clone(), best.timeline, best.switch);
    Some(Verdict::Propose(Kind::AdoptTimeline { member, timeline, switch }))
}

impl Foreign<'_> {
    /// By what it has of ours, then of its own; the smaller name wins.
    fn order(a: &Self, b: &Self) -> Ordering {
        (a.switch.lsn, a.end, b.member).cmp(&(b.switch.lsn, b.end, a.member))
    }
}

/// The last holder will say neither that it was promoted nor that it was not.
fn holder_can_not_say(s: &Situation<'_>, unfit: &[(&MemberId, Unfit)]) -> bool {
    let Lock::Fenced { previous: Some((_, holder)), .. } = &s.state.lock else { return false };
    unfit.iter().any(|(member, why)| *member == holder && is_final(why))
}

/// Waiting for this member would not make it fit.
fn is_final(unfit: &Unfit) -> bool {
    match unfit {
        Unfit::NotSealed
        | Unfit::AgentSilent
        | Unfit::OtherSystem { .. }
        | Unfit::HalfRewound
        | Unfit::Diverged { .. }
        | Unfit::State(PostgresState::NoData | PostgresState::Failed) => true,
        Unfit::State(_)
        | Unfit::WalEndUnknown
        | Unfit::ClockOff { .. }
        | Unfit::SlowFence { .. }
        | Unfit::Promised { .. }
        | Unfit::NotAsked { .. }
        | Unfit::FailedBefore { .. }
        | Unfit::Behind { .. } => false,
    }
}

/// The first timeline of this member past the cluster's last one.
fn foreign<'a>(s: &Situation<'_>, member: &'a MemberId, agent: &AgentView) -> Option<Foreign<'a>> {
    let lineage = s.state.history_of(s.state.newest_complete_timeline());
    let switch = agent.history.fork_from(&lineage).filter(|fork| fork.timeline == lineage.timeline)?;
    let mut later = agent.history.switches.iter().skip_while(|step| step.timeline != lineage.timeline).skip(1);
    let timeline = later.next().map_or(agent.history.timeline, |step| step.timeline);
    let free = timeline > s.state.highest_timeline() || s.state.unheard_timeline() == Some(timeline);
    let from_here = agent.history.end_of(lineage.timeline) == Some(switch.lsn);
    (free && from_here).then_some(Foreign { member, timeline, switch, end: agent.wal_end })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{Lsn, TimelineHistory, TimelineSwitch},
        policy::testing::{Bench, position},
    };

    /// All voters sealed epoch 2; the cluster's last timeline is 2, begun at 1:100.
    fn fenced() -> Bench {
        Bench::new("fenced")
    }

    fn seal(bench: Bench, member: &str, words: &str, switches: &[(u32, u64)], timeline: u32) -> Bench {
        let mut bench = bench.seal(member, words);
        let switch = |(timeline, end): &(u32, u64)| TimelineSwitch { timeline: TimelineId(*timeline), end: Lsn(*end) };
        let history =
            TimelineHistory { timeline: TimelineId(timeline), switches: switches.iter().map(switch).collect() };
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
        let Some(Verdict::Propose(Kind::AdoptTimeline { member, timeline, switch })) =
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
        });
        bench.state.by_hand.insert(TimelineId(3), "b".parse().unwrap());
        let Some(Verdict::Propose(Kind::Grant { member, .. })) = failover::grant(&bench.situation()) else {
            panic!("{:?}", failover::grant(&bench.situation()))
        };
        assert_eq!(member.as_str(), "b", "c has more, and it may be anything");
    }

    /// Epoch 1 was granted to a, which began timeline 3, was followed by b, and is gone before anybody heard of it.
    #[test]
    fn a_promotion_that_nobody_reported_is_adopted_from_the_standby_that_followed_it() {
        let unheard = |epoch: u64| {
            let mut bench = seal(fenced(), "b", "standby 3:600", &[(1, 100), (2, 500)], 3).seal("c", "failed");
            bench.state.lineage.push(crate::state::TimelineRecord {
                timeline: TimelineId(3),
                epoch: crate::domain::Epoch(epoch),
                switch: None,
            });
            bench
        };
        let Lock::Fenced { previous: Some((last, holder)), .. } = unheard(9).state.lock else { panic!("the lock") };
        assert_eq!(holder.as_str(), "a");
        let Some(Verdict::Propose(Kind::AdoptTimeline { member, timeline, switch })) =
            adopt_timeline(&unheard(last.0).situation())
        else {
            panic!("{:?}", adopt_timeline(&unheard(last.0).situation()))
        };
        assert_eq!((member.as_str(), timeline, switch), ("b", TimelineId(3), position("2:500")));
        let older = unheard(last.0 + 1);
        assert!(adopt_timeline(&older.situation()).is_none(), "reserved for another grant");
        let back = unheard(last.0).seal("a", "starting 2:500");
        assert!(adopt_timeline(&back.situation()).is_none(), "it may still say so itself");

        // A standby that did not follow has less, or no more, of the last timeline.
        let less = unheard(last.0).seal("c", "standby 2:500");
        assert!(matches!(adopt_timeline(&less.situation()), Some(Verdict::Propose(Kind::AdoptTimeline { .. }))));
        let more = unheard(last.0).seal("c", "standby 2:600");
        assert!(adopt_timeline(&more.situation()).is_none(), "what it has more was acknowledged by the last primary");
    }

    #[test]
    fn a_number_of_ours_and_a_branch_of_an_older_timeline_are_not_adopted() {
        let mut bench = seal(fenced(), "b", "standby 3:600", &[(1, 100), (2, 500)], 3);
        bench.state.lineage.push(crate::state::TimelineRecord {
            timeline: TimelineId(3),
            epoch: crate::domain::Epoch(2),
            switch: None,
        });
        let bench = bench.seal("c", "failed");
        assert!(adopt_timeline(&bench.situation()).is_none(), "its number is reserved");
        let bench = seal(fenced(), "b", "standby 3:600", &[(1, 80)], 3).seal("c", "failed");
        assert!(adopt_timeline(&bench.situation()).is_none(), "it lacks all of timeline 2");
    }
}
