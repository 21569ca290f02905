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
    let released = Release { epoch: Epoch(1), member: id("a"), end: position("2:90"), clean: true };
    let choice = |operation: &str| {
        let mut bench = Bench::new(&format!("fenced; {operation}")).seal("b", "standby 2:80").seal("c", "standby 2:80");
        bench.state.lock =
            Lock::Fenced { epoch: Epoch(2), previous: Some((Epoch(1), id("a"))), released: Some(released.clone()) };
        grant(&bench.situation())
    };
    assert!(matches!(choice("switchover b transfer"), Some(Verdict::Hold(Hold::NoSuccessor { .. }))));
    assert!(matches!(choice("failover b"), Some(Verdict::Propose(Kind::Grant { .. }))));
}

#[test]
fn a_member_that_the_last_holder_may_not_have_asked_is_granted_only_when_failsafe_can_not_go_on() {
    let bench = |failsafe: bool| {
        let mut bench = Bench::new("fenced").seal("b", "standby 2:80").seal("c", "standby 2:90");
        bench.state.lock = Lock::Fenced { epoch: Epoch(2), previous: Some((Epoch(1), id("a"))), released: None };
        bench.state.roster.since = [("a", 1), ("b", 1), ("c", 2)].map(|(m, since)| (id(m), since)).into();
        (bench.state.roster.version, bench.state.roster.at_grant) = (2, 1);
        let agents = bench.seals.values_mut().filter_map(|seal| seal.agent.as_mut());
        agents.for_each(|agent| agent.failsafe.enabled = failsafe);
        bench
    };
    let chosen = |bench: &Bench| match grant(&bench.situation()) {
        Some(Verdict::Propose(Kind::Grant { member, .. })) => Some(member.to_string()),
        _ => None,
    };
    let fit = |bench: &Bench| fitness(&bench.situation(), &id("c"), None, false).map(|_| ());
    assert_eq!(fit(&bench(true)).unwrap_err(), Unfit::NotAsked { since: 2, known: 1 });
    assert_eq!(chosen(&bench(false)).as_deref(), Some("c"), "b would have had to agree, and does not take part");

    // The holder has named the newer list in a renewal.
    let mut named = bench(true);
    let promise = &mut named.seals.get_mut(&id("b")).unwrap().promise;
    (promise.epoch, promise.members) = (Epoch(1), 2);
    assert_eq!(chosen(&named).as_deref(), Some("c"));

    // b was restarted without failsafe, and may have agreed before.
    let mut before = bench(false);
    let agents = before.seals.values_mut().filter_map(|seal| seal.agent.as_mut());
    agents.for_each(|agent| agent.failsafe.promise_left_ms = 900);
    before.seals.get_mut(&id("c")).unwrap().agent.as_mut().unwrap().failsafe.promise_left_ms = 0;
    assert!(matches!(fit(&before), Err(Unfit::NotAsked { .. })), "{:?}", fit(&before));
}
