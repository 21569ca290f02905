//! What was lost with a primary, as its own agent tells.

use super::{
    tests::{agent, at, facts, now, order, source},
    *,
};
use crate::agent::order::Action;

fn lost(fork: u64, end: u64) -> LostWal {
    LostWal { fork: at(2, fork), end: at(2, end), transactions: Some(3), saved: false }
}

#[test]
fn what_is_counted_first_counts_and_eight_are_kept() {
    let (mut core, _) = agent(Durable::default(), Found::Nothing, Some(Disk::NoData));
    assert_eq!(core.step(Event::Lost(lost(100, 500)), now(1)), [Effect::Persist]);
    // After a rewind that was cut off a copy finds less than there was.
    assert_eq!(core.step(Event::Lost(lost(100, 300)), now(2)), []);
    assert_eq!(core.lost(), [lost(100, 500)]);
    for n in 1..=8 {
        core.step(Event::Lost(lost(n, 500)), now(3));
    }
    assert_eq!((core.lost().len(), core.lost()[0]), (8, lost(1, 500)));
}

#[test]
fn a_former_primary_that_follows_without_a_rewind_has_lost_nothing() {
    let (mut core, _) = agent(Durable::default(), Found::Nothing, Some(facts(false)));
    core.step(Event::WalEndRead { life: 1, end: at(2, 500), history: TimelineHistory::default() }, now(1));
    assert_eq!(core.lost(), [], "nobody knows yet");
    core.step(order(3, Action::StartStandby(Some(source()))), now(2));
    assert_eq!(core.lost(), [LostWal { fork: at(2, 500), end: at(2, 500), transactions: Some(0), saved: false }]);
    assert_eq!(core.durable().lost, [], "a version that knows of no losses can read the file");
}
