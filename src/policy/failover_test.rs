//! One case a test: a lock, promises or seals, and what the rule says.

use super::*;
use crate::{
    domain::Promise,
    policy::testing::{Bench, id, position},
};

fn promise(epoch: u64, lapsed: bool, renewed: bool) -> Promise {
    Promise { epoch: Epoch(epoch), lapsed, renewed, ..Promise::default() }
}

#[test]
fn a_voter_restarted_after_the_primary_was_lost_still_counts() {
    let restarted = promise(0, true, false);
    let bench = Bench::new("granted a open 2").promise("b", restarted).promise("c", restarted);
    assert!(matches!(lease_ran_out(&bench.situation()), Some(Verdict::Propose(Kind::Fence { .. }))));
}

#[test]
fn a_grant_whose_lease_was_never_seen_is_left_alone_until_it_is_overdue() {
    let never = promise(0, true, false);
    let mut bench = Bench::new("granted a promoting 2").promise("b", never).promise("c", never);
    assert!(matches!(lease_ran_out(&bench.situation()), Some(Verdict::Propose(_))), "a minute is overdue");
    bench = bench.at_lock_change();
    assert!(matches!(lease_ran_out(&bench.situation()), Some(Verdict::Hold(_))));
}

#[test]
fn a_switchover_never_loses_what_the_old_primary_wrote_but_a_failover_by_command_may() {
    let released = Release {
        epoch: Epoch(1),
        member: id("a"),
        end: position("2:90"),
        clean: true,
        cause: crate::domain::EndCause::Unknown,
    };
    let choice = |operation: &str| {
        let mut bench = Bench::new(&format!("fenced; {operation}")).seal("b", "standby 2:80").seal("c", "standby 2:80");
        bench.state.lock =
            Lock::Fenced { epoch: Epoch(2), previous: Some((Epoch(1), id("a"))), released: Some(released.clone()) };
        grant(&bench.situation())
    };
    assert!(matches!(choice("switchover b transfer"), Some(Verdict::Hold(Hold::NoSuccessor { .. }))));
    assert!(matches!(choice("failover b"), Some(Verdict::Propose(Kind::Grant { .. }))));
}
