//! c is to stream from b; a is primary.

use super::*;
use crate::policy::testing::{Bench, id};

const PRIMARY: &str = "primary 2:90000000 lease=1";
const FROM_A: &str = "standby 2:90000000 upstream=a for=60000";
const FROM_B: &str = "standby 2:90000000 upstream=b for=60000";

fn bench(b: &str, c: &str) -> Bench {
    let mut bench = Bench::new("granted a open 2");
    bench.state.settings.values.insert("c.replicatefrom".to_owned(), "b".to_owned());
    bench.says("a", PRIMARY).says("b", b).says("c", c)
}

/// c follows b, which it has left so often.
fn linked(b: &str, c: &str, falls: u32) -> Bench {
    let mut bench = bench(b, c);
    bench.state.cascade.insert(id("c"), Link { source: Some(id("b")), falls });
    bench
}

fn told(verdict: Option<Verdict>) -> String {
    match verdict {
        None => "nothing".to_owned(),
        Some(Verdict::Propose(Kind::Cascade { member, source, falls, reason })) => {
            let source = source.map_or_else(|| "the primary".to_owned(), |source| source.to_string());
            format!("{member} to {source}, {falls} falls: {reason}")
        }
        Some(Verdict::Hold(hold)) => hold.to_string(),
        Some(other) => panic!("{other:?}"),
    }
}

fn joins(b: &str, c: &str) -> String {
    told(join(&bench(b, c).situation()))
}

fn left(b: &str, c: &str) -> String {
    told(leave(&linked(b, c, 1).situation()))
}

#[test]
fn a_source_is_followed_when_it_has_streamed_for_a_while() {
    assert_eq!(joins(FROM_A, FROM_A), "c to b, 0 falls: it is set to, and that does well");
    let not_yet = "c streams from the primary and not from b: ";
    for (b, c, why) in [
        (
            "standby 2:90000000 upstream=a for=9000",
            FROM_A,
            "b has streamed for 9 s without a break, and is to for 10 s",
        ),
        (
            FROM_A,
            "standby 2:90000000 upstream=a for=9000",
            "c has streamed for 9 s without a break, and is to for 10 s",
        ),
        ("standby 1:90 upstream=a for=60000", FROM_A, "b does not stream the primary's WAL"),
        ("standby 2:90000000 upstream=e for=60000", FROM_A, "b does not stream the primary's WAL"),
        ("standby 2:90000000 upstream=a for=60000 system=8", FROM_A, "b does not stream the primary's WAL"),
        ("stopped 2:90000000", FROM_A, "b does not stream the primary's WAL"),
        ("standby 2:9000000 upstream=a for=60000", FROM_A, "b is 81000000 bytes behind, more than 67108864"),
        ("standby 2:90000000 upstream=a for=60000 storage", FROM_A, "b has other work, or its disk doesn't work"),
        (FROM_A, "standby 2:90000000 delayed", "c does not stream the primary's WAL"),
    ] {
        assert_eq!(joins(b, c), format!("{not_yet}{why}"), "{b}, {c}");
    }
}

#[test]
fn who_confirms_commits_does_so_until_it_need_not() {
    let mut bench = bench(FROM_A, FROM_A);
    bench.state.sync.add(crate::domain::Epoch(1), vec![id("c")], 1).unwrap();
    assert_eq!(told(join(&bench.situation())), "c streams from the primary and not from b: c still confirms commits");
    assert!(!bench.state.may_confirm(&id("c")), "so the next rule is without it");
}

#[test]
fn nobody_moves_in_a_pause_or_beside_an_operation_but_away_from_what_fails() {
    let mut paused = bench(FROM_A, FROM_A);
    paused.state.paused = Some(Default::default());
    assert!(told(join(&paused.situation())).starts_with("the cluster is paused"));
    let mut busy = Bench::new("granted a open 2; switchover b checkpoint").says("a", PRIMARY);
    busy.state.settings.values.insert("c.replicatefrom".to_owned(), "b".to_owned());
    assert_eq!(join(&busy.says("b", FROM_A).says("c", FROM_A).situation()), None);
    let mut paused = linked("nodata", "standby 2:90000000 upstream=b for=-100", 0);
    paused.state.paused = Some(Default::default());
    assert_eq!(told(leave(&paused.situation())), "c to the primary, 1 falls: PostgreSQL of b is without data");
}

#[test]
fn a_source_that_fails_is_left_and_one_that_only_its_manager_lost_is_not() {
    assert_eq!(left(FROM_A, FROM_B), "nothing");
    assert_eq!(left("standby 2:90000000 upstream=a for=-9000", FROM_B), "nothing", "it may be over in a moment");
    let unstreamed = "standby 2:90000000 upstream=b for=-2600";
    for (b, c, why) in [
        (FROM_A, unstreamed, "it has not streamed from b for 2.6 s"),
        ("stopped 2:90000000", unstreamed, "it has not streamed from b for 2.6 s"),
        ("failed", "standby 2:90000000 upstream=b for=-10", "PostgreSQL of b is failed"),
        ("standby 2:90000000 upstream=a for=-10000", FROM_B, "b itself has not streamed for 10 s"),
    ] {
        assert_eq!(left(b, c), format!("c to the primary, 2 falls: {why}"), "{b}, {c}");
    }
    assert_eq!(left("stopped 2:90000000", "standby 2:90000000 upstream=b for=-2000"), "nothing", "it may be restarted");
    assert_eq!(left("starting", "starting"), "nothing");
}

#[test]
fn a_source_that_falls_far_behind_is_left() {
    let (near, far) = (PRIMARY, "primary 2:400000000 lease=1");
    let left = |primary: &str| told(leave(&linked(FROM_A, FROM_B, 0).says("a", primary).situation()));
    assert_eq!(left(near), "nothing");
    assert_eq!(left("primary 2:300000000 lease=1"), "nothing", "a burst");
    assert_eq!(left(far), "c to the primary, 1 falls: b is 310000000 bytes behind, more than 268435456");
    let starts = told(leave(&linked("starting", FROM_B, 0).says("a", far).situation()));
    assert_eq!(starts, "nothing", "its end is not known");
}

#[test]
fn a_silent_source_is_left_by_whoever_hears_nothing_of_it_either() {
    let silent = |c: &str, ms: u64| {
        let mut bench = linked(FROM_A, c, 0);
        let at = crate::domain::Moment::from_millis(60_000 - ms);
        let seen = bench.seen.get_mut(&id("b")).unwrap();
        (seen.at, seen.agent_at) = (at, at);
        told(leave(&bench.situation()))
    };
    let unstreamed = "standby 2:90000000 upstream=b for=-10";
    assert_eq!(silent(FROM_B, 5_000), "nothing", "its manager is being restarted");
    assert_eq!(silent(unstreamed, 5_000), "c to the primary, 1 falls: b has said nothing for 5 s");
    assert_eq!(silent(FROM_B, 20_000), "c to the primary, 1 falls: b has said nothing for 20 s");
    assert_eq!(told(leave(&linked(FROM_A, unstreamed, 0).leads_since_now().situation())), "nothing", "a new leader");
}

#[test]
fn replay_that_waits_on_purpose_is_no_failure() {
    assert_eq!(left(FROM_A, "standby 2:90000000 upstream=b delayed"), "nothing");
    assert_eq!(left("standby 2:90000000 upstream=a delayed", FROM_B), "nothing");
}

#[test]
fn without_a_primary_that_does_well_nobody_moves() {
    let mut bench = linked("nodata", "standby 2:90000000 upstream=b for=-99000", 0).says("a", "crashed 2:90000000");
    assert_eq!(leave(&bench.situation()), None);
    bench.state.cascade.clear();
    assert_eq!(join(&bench.says("b", FROM_A).says("c", FROM_A).situation()), None);
}

#[test]
fn what_is_set_otherwise_is_no_failure() {
    let mut bench = linked(FROM_A, FROM_B, 3);
    bench.state.settings.values.clear();
    assert_eq!(told(leave(&bench.situation())), "c to the primary, 0 falls: it is set to");
}

#[test]
fn the_more_often_a_source_failed_the_later_it_is_followed_again() {
    let after = |falls, seconds: u64| {
        let mut bench = bench(&format!("standby 2:90000000 upstream=a for={}", seconds * 1_000), FROM_A);
        bench.state.cascade.insert(id("c"), Link { source: None, falls });
        matches!(join(&bench.situation()), Some(Verdict::Propose(_)))
    };
    assert_eq!([after(1, 19), after(1, 20)], [false, true]);
    assert_eq!([after(9, 639), after(9, 640)], [false, true]);
    let steady =
        |ms: u64| told(calm(&linked(FROM_A, &format!("standby 2:90000000 upstream=b for={ms}"), 2).situation()));
    assert_eq!(steady(899_999), "nothing");
    assert_eq!(steady(900_000), "c to b, 0 falls: it has followed it for long");
}

#[test]
fn a_chain_is_as_good_as_its_weakest_link() {
    let chain = |b: &str, c: &str| {
        let mut bench = linked(b, c, 0);
        let spare = bench.state.members[&id("c")].clone();
        bench.state.members.insert(id("d"), spare);
        bench.state.settings.values.insert("d.replicatefrom".to_owned(), "c".to_owned());
        told(join(&bench.says("d", FROM_A).situation()))
    };
    assert_eq!(chain(FROM_A, FROM_B), "d to c, 0 falls: it is set to, and that does well");
    let weak = "standby 2:90000000 upstream=a for=-100";
    assert_eq!(chain(weak, FROM_B), "d streams from the primary and not from c: b does not stream the primary's WAL");
}
