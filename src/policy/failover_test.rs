//! One case a test: a lock, promises or seals, and what the rule says.

use super::*;
use crate::{
    domain::{GroupNode, NodeId, Promise},
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
    let released =
        Release { epoch: Epoch(1), member: id("a"), end: position("2:90"), clean: true, cause: EndCause::Unknown };
    let choice = |operation: &str| {
        let mut bench = Bench::new(&format!("fenced; {operation}")).seal("b", "standby 2:80").seal("c", "standby 2:80");
        bench.state.lock =
            Lock::Fenced { epoch: Epoch(2), previous: Some((Epoch(1), id("a"))), released: Some(released.clone()) };
        grant(&bench.situation())
    };
    assert!(matches!(choice("switchover b transfer"), Some(Verdict::Hold(Hold::NoSuccessor { .. }))));
    assert!(matches!(choice("failover b"), Some(Verdict::Propose(Kind::Grant { .. }))));
}

/// Epoch 2 begins; a, b and c vote, a is gone.
fn fenced() -> Bench {
    let mut bench = Bench::new("fenced").seal("b", "standby 2:80").seal("c", "standby 2:80");
    bench.state.lock = Lock::Fenced { epoch: Epoch(2), previous: Some((Epoch(1), id("a"))), released: None };
    bench.state.epoch = Epoch(2);
    for voter in ["b", "c"] {
        bench.seals.get_mut(&id(voter)).unwrap().promise.sealed = Epoch(2);
    }
    bench
}

/// How many voters count as sealed, and how many of them as free, when that isn't enough.
fn missing(bench: &Bench) -> Option<(usize, usize)> {
    match grant(&bench.situation()) {
        Some(Verdict::Hold(Hold::TooFewSeals { sealed, free, .. })) => Some((sealed, free)),
        _ => None,
    }
}

#[test]
fn seals_of_another_membership_do_not_count_for_a_grant() {
    assert!(matches!(grant(&fenced().situation()), Some(Verdict::Propose(Kind::Grant { .. }))));
    for voter in ["b", "c"] {
        for other in [0, 7] {
            let mut bench = fenced();
            bench.seals.get_mut(&id(voter)).unwrap().promise.membership = other;
            assert_eq!(missing(&bench), Some((1, 1)), "{voter} sealed under {other}");
        }
    }
    // The leader's own membership is the newest in its log, also before that is committed.
    let mut bench = fenced();
    bench.group.group.id += 1;
    assert_eq!(missing(&bench), Some((0, 0)));
}

#[test]
fn no_grant_precedes_the_end_of_the_promises_unless_the_holder_released() {
    let bound = |released: Option<Release>| {
        let mut bench = fenced();
        bench.seals.get_mut(&id("c")).unwrap().promise.lapsed = false;
        bench.state.lock = Lock::Fenced { epoch: Epoch(2), previous: Some((Epoch(1), id("a"))), released };
        bench
    };
    assert_eq!(missing(&bound(None)), Some((2, 1)));
    let released =
        Release { epoch: Epoch(1), member: id("a"), end: position("2:80"), clean: true, cause: EndCause::Unknown };
    let mut released = bound(Some(released));
    assert!(matches!(grant(&released.situation()), Some(Verdict::Propose(Kind::Grant { .. }))));
    // The durable seals of a majority are needed all the same.
    released.seals.get_mut(&id("c")).unwrap().promise.sealed = Epoch(1);
    assert_eq!(missing(&released), Some((1, 1)));
}

#[test]
fn a_grant_under_a_joint_membership_needs_the_seals_of_both_halves() {
    let mut bench = fenced();
    bench.group.group.voters.push([NodeId(3), NodeId(4), NodeId(5)].into());
    for (node, member) in [(4, "d"), (5, "e")] {
        let of = GroupNode { member: id(member), address: format!("{member}:7400") };
        bench.group.group.nodes.insert(NodeId(node), of);
    }
    assert!(missing(&bench).is_some(), "c alone is no majority of c, d, e");
    let bench = bench.seal("d", "standby 2:80");
    assert!(missing(&bench).is_none());
}

#[test]
fn an_agent_that_says_nothing_and_renews_is_slow_and_one_that_is_dead_is_not() {
    let hold = |left_ms: u64| {
        let renewed = Promise { remaining_ms: left_ms, ..promise(1, false, true) };
        let mut bench =
            Bench::new("granted a open 2").promise("b", renewed).promise("c", renewed).says("a", "primary 2:200");
        bench.seen.get_mut(&id("a")).unwrap().agent_at = Moment::from_millis(55_000);
        match lease_ran_out(&bench.situation()) {
            Some(Verdict::Hold(hold)) => hold,
            other => panic!("{other:?}"),
        }
    };
    let slow = Hold::AgentSlow { member: id("a"), epoch: Epoch(1), silent: Duration::from_secs(5) };
    assert_eq!(hold(3_000), slow, "renewed 200 ms ago, 5 s after its last word");
    assert!(matches!(hold(0), Hold::AgentSlow { .. }), "with `normal` a promise of 3.2 s is younger than that word");
    let mut bench = Bench::new("granted a open 2").promise("b", promise(1, false, true)).says("a", "primary 2:200");
    bench.seen.get_mut(&id("a")).unwrap().agent_at = Moment::from_millis(55_000);
    let one = lease_ran_out(&bench.situation());
    assert!(matches!(one, Some(Verdict::Hold(Hold::LeaseHeld { .. }))), "one voter is no majority: {one:?}");
    let mut died = Bench::new("granted a open 2").says("a", "primary 2:200");
    for voter in ["b", "c"] {
        died = died.promise(voter, Promise { remaining_ms: 100, ..promise(1, false, true) });
    }
    died.seen.get_mut(&id("a")).unwrap().agent_at = Moment::from_millis(56_000);
    let dead = lease_ran_out(&died.situation());
    assert!(matches!(dead, Some(Verdict::Hold(Hold::LeaseHeld { .. }))), "renewed just after its last word: {dead:?}");
}

#[test]
fn a_target_that_can_not_become_primary_is_found_out_when_a_grant_is_due_and_not_before() {
    let unfit = |operation: &str, b: &str, change: &dyn Fn(&mut Bench)| {
        let mut bench = Bench::new(&format!("fenced; {operation}")).seal("b", b).seal("c", "standby 2:80");
        change(&mut bench);
        target_is_unfit(&bench.situation()).map(|why| why.to_string())
    };
    let none = |_: &mut Bench| ();
    for operation in ["failover b", "switchover b transfer"] {
        assert_eq!(unfit(operation, "standby 2:70", &none), None, "bytes are the operator's to choose");
        let disk = unfit(operation, "standby 2:80 storage", &none);
        assert_eq!(disk.as_deref(), Some("its disk stands still"));
        assert_eq!(unfit(operation, "failed", &none).as_deref(), Some("PostgreSQL is failed"), "it needs an operator");
    }
    for (passes, b) in [
        ("a promise of failsafe", "standby 2:80 promised=900"),
        ("a start", "starting"),
        ("until its WAL's end is read", "stopped unknown"),
    ] {
        assert_eq!(unfit("failover b", b, &none), None, "{passes}");
    }
    let running = |bench: &mut Bench| bench.seals.get_mut(&id("c")).unwrap().promise.lapsed = false;
    assert_eq!(unfit("failover b", "standby 2:80 storage", &running), None, "nobody could be granted yet");
    assert_eq!(unfit("switchover b stop", "standby 2:80 storage", &none), None, "rule 260 rolls that back");
}
