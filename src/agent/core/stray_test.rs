//! What promotions by hand, frozen guards and orders that come late make of a member. Found by the simulation.

use super::{
    tests::{SYSTEM, agent, at, facts, gone, now, order, primary, refusal, sight, source, standby},
    *,
};
use crate::{
    agent::order::{Action, Order, Source},
    domain::{Lsn, TimelineId, TimelineSwitch, observation::REWINDS_TRIED},
};

/// Found by the simulation: the guard was silent, the order to follow failed, and the server went over later all the same.
#[test]
fn what_it_follows_is_not_taken_from_an_order_that_failed() {
    let mut core = standby();
    let follow = || order(3, Action::StartStandby(Some(source())));
    core.step(follow(), now(20));
    core.step(Event::Done(TaskEnd::Succeeded), now(30));
    assert_eq!(core.upstream(), Some(&source().member));
    core.step(follow(), now(40));
    core.step(Event::Done(TaskEnd::Failed { error: "the guard did not answer".into(), harmless: false }), now(50));
    assert_eq!(core.upstream(), None);
}

/// Found by the simulation: half rewound to one primary it was rewound to the next, which had begun a timeline of a number
/// that this directory had from a promotion by hand.
#[test]
fn what_was_half_rewound_in_an_earlier_epoch_is_not_rewound_again() {
    let half = Disk::Present(DiskFacts { system_identifier: SYSTEM, rewind_unfinished: true, ..DiskFacts::default() });
    let durable = || Durable { accepted: Epoch(3), ..Durable::default() };
    let rewind = |epoch| order(epoch, Action::Rewind(source()));
    let (mut core, _) = agent(durable(), Found::Nothing, Some(half.clone()));
    assert!(core.step(rewind(3), now(10)).contains(&Effect::Reply(Ok(()))));
    let (mut core, _) = agent(durable(), Found::Nothing, Some(half));
    assert!(refusal(&core.step(rewind(4), now(10))).reason.contains("clone"));
    assert_eq!(core.durable().rewind_failures, REWINDS_TRIED);
    assert!(core.step(order(4, Action::Clone(source())), now(20)).contains(&Effect::Reply(Ok(()))));
}

/// As above, and the agent dies before the rewind fails.
#[test]
fn a_rewind_that_a_newer_epoch_overtakes_is_the_last_one() {
    let (mut core, _) = agent(Durable { accepted: Epoch(3), ..Durable::default() }, Found::Nothing, Some(facts(true)));
    core.step(order(3, Action::Rewind(source())), now(10));
    core.step(order(4, Action::Rewind(source())), now(20));
    assert_eq!(core.durable().rewind_failures, REWINDS_TRIED);
    core.step(Event::Done(TaskEnd::Succeeded), now(30));
    assert_eq!(core.durable().rewind_failures, 0);
}

/// Found by the simulation: the server it followed was promoted by hand, and took the number of the new primary's timeline.
#[test]
fn an_order_to_follow_that_was_decided_on_another_timeline_is_refused() {
    let mut core = standby();
    let follow = |own| {
        let Event::Order(order) = order(3, Action::StartStandby(Some(source()))) else { panic!("an order") };
        Event::Order(Order { own_timeline: Some(TimelineId(own)), ..order })
    };
    core.step(sight(true, at(2, 200)), now(20));
    assert!(refusal(&core.step(follow(1), now(30))).reason.contains("its WAL is on timeline 2"));
    assert!(core.step(follow(2), now(40)).contains(&Effect::Reply(Ok(()))));
}

/// It had received more from the old primary than the new one had, after the manager had heard where its WAL ends.
#[test]
fn what_has_wal_past_the_fork_is_not_started_to_follow() {
    let follow = |fork| order(3, Action::StartStandby(Some(Source { fork: Some(at(1, fork)), ..source() })));
    let stopped = || {
        let (mut core, _) =
            agent(Durable { accepted: Epoch(3), ..Durable::default() }, Found::Nothing, Some(facts(false)));
        let history = TimelineHistory { timeline: TimelineId(1), ..Default::default() };
        core.step(Event::WalEndRead { life: core.life(), end: at(1, 200), history }, now(10));
        core
    };
    let refused = stopped().step(follow(199), now(20));
    assert!(refusal(&refused).reason.contains("parts from it at"), "{refused:?}");
    assert!(stopped().step(follow(200), now(20)).contains(&Effect::Reply(Ok(()))));
}

/// The manager had not heard yet that the first was carried out, and made the second on what it knew.
#[test]
fn an_order_to_follow_that_comes_twice_is_carried_out_once() {
    let mut core = standby();
    let follow = |epoch| {
        let Event::Order(order) = order(epoch, Action::StartStandby(Some(source()))) else { panic!("an order") };
        Event::Order(Order { own_timeline: Some(TimelineId(1)), ..order })
    };
    let streams = |timeline| {
        let sight = Sight { in_recovery: true, streaming: true, wal_end: at(timeline, 200), ..Sight::default() };
        Event::Probed { life: 1, result: Ok(Box::new(sight)) }
    };
    core.step(streams(1), now(20));
    assert!(core.step(follow(3), now(30)).iter().any(|e| matches!(e, Effect::Begin(_))));
    core.step(Event::Done(TaskEnd::Succeeded), now(40));
    core.step(streams(2), now(50));
    assert_eq!(core.step(follow(3), now(60)), [Effect::Reply(Ok(()))], "it has gone over already");
    assert_eq!(core.last_order().map(|o| o.error.clone()), Some(None));
    let refused = core.step(follow(4), now(70));
    assert!(
        refusal(&refused).reason.contains("its WAL is on timeline 2"),
        "another epoch is another order: {refused:?}"
    );
}

/// Found by the simulation: it went on streaming under a guard that was frozen, and its upstream was granted the number of
/// the timeline that it had from a promotion by hand.
#[test]
fn what_is_to_be_cloned_and_can_not_be_stopped_is_fenced() {
    let failed = || Event::Done(TaskEnd::Failed { error: "the guard did not answer".into(), harmless: false });
    let mut core = standby();
    core.step(order(3, Action::Clone(source())), now(20));
    assert!(core.step(failed(), now(30)).contains(&Effect::Fence));
    // One that a newer epoch overtook may be needed as it is.
    let mut core = standby();
    core.step(order(3, Action::Clone(source())), now(20));
    core.step(order(4, Action::Checkpoint), now(25));
    assert!(!core.step(failed(), now(30)).contains(&Effect::Fence));
}

#[test]
fn a_restart_in_place_is_for_the_timeline_and_the_system_of_its_grant() {
    let in_place = |timeline: u32, system: u64| {
        let mut crashed = primary();
        crashed.step(gone(false), now(100));
        let restart = order(4, Action::RestartInPlace { timeline: TimelineId(timeline) });
        let Event::Order(order) = restart else { unreachable!() };
        crashed.step(Event::Order(Order { system_identifier: Some(system), ..order }), now(110))
    };
    assert_eq!(refusal(&in_place(3, SYSTEM)).reason, "its grant is for timeline 2, not 3");
    assert!(refusal(&in_place(2, 5)).reason.contains("is of system 77, the cluster's is 5"));
    assert_eq!(*in_place(2, SYSTEM).last().unwrap(), Effect::Reply(Ok(())));
}

/// What it was when the lease was held, the switch at which it was promoted, and nothing else.
#[test]
fn the_history_after_a_promotion_is_compared_with_the_lineage_of_the_grant() {
    let history = |timeline: u32, switches: &[(u32, u64)]| TimelineHistory {
        timeline: TimelineId(timeline),
        switches: switches.iter().map(|&(t, end)| TimelineSwitch { timeline: TimelineId(t), end: Lsn(end) }).collect(),
        ..TimelineHistory::default()
    };
    let before = Sight {
        in_recovery: true,
        history: history(4, &[(1, 30), (2, 80)]),
        wal_end: at(4, 100),
        replay_lsn: Lsn(95),
        ..Sight::default()
    };
    let tenure = Tenure { epoch: Epoch(9), timeline: TimelineId(7), floor: at(4, 90), phase: Phase::Granted };
    let grown = |switches: &[(u32, u64)]| grows_from(&history(7, switches), &before, &tenure);
    assert!(grown(&[(1, 30), (2, 80), (4, 100)]));
    assert!(grown(&[(1, 30), (2, 80), (4, 95)]), "the last record it had was torn");
    assert!(!grown(&[(1, 30), (2, 80), (4, 94)]), "less than it had replayed");
    assert!(!grown(&[(1, 30), (2, 80), (4, 100), (6, 110)]), "another promotion in between");
    assert!(!grown(&[(1, 30), (2, 80), (5, 100)]), "from a timeline it was not on");
    assert!(!grown(&[(1, 30), (2, 81), (4, 100)]) && !grown(&[(1, 30), (4, 100)]), "its own past became another");
    assert!(!grown(&[]), "a stub was taken for its history");
    // Promoted by an agent that is no more: the floor of the grant must be in it.
    let promoted = Sight { in_recovery: false, history: history(7, &[]), wal_end: at(7, 120), ..before.clone() };
    assert!(grows_from(&history(7, &[(1, 30), (2, 80), (4, 90)]), &promoted, &tenure));
    assert!(!grows_from(&history(7, &[(1, 30), (2, 80), (4, 89)]), &promoted, &tenure));
    assert!(!grows_from(&history(7, &[(1, 30), (2, 80)]), &promoted, &tenure));
}
