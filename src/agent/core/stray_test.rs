//! What promotions by hand, frozen guards and orders that come late make of a member. Found by the simulation.

use super::{
    tests::{SYSTEM, agent, at, facts, now, order, refusal, sight, source, standby},
    *,
};
use crate::{
    agent::order::{Action, Order},
    domain::{TimelineId, observation::REWINDS_TRIED},
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
