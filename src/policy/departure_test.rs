#![allow(clippy::unwrap_used)]

use super::*;
use crate::{
    domain::{Epoch, Format},
    policy::testing::{Bench, id},
};

/// a is open; b and c stream to it and answer.
fn bench() -> Bench {
    Bench::new("granted a open 2")
        .says("a", "primary 2:200 lease=1 unheard=b unheard=c answering=a,b,c")
        .says("b", "standby 2:200 upstream=a follows=1")
        .says("c", "standby 2:200 upstream=a follows=1")
}

fn set(bench: &mut Bench, rule: &str, settings: &[(&str, &str)]) {
    bench.state.format = Format::SYNC;
    let values = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    bench.state.settings.values.extend(values);
    let names: Vec<MemberId> = rule.split_whitespace().map(id).collect();
    bench.state.sync.add(Epoch(1), names, 1).unwrap();
}

fn kinds(obstacles: &[Obstacle]) -> Vec<&'static str> {
    obstacles.iter().map(Obstacle::kind).collect()
}

#[test]
fn a_standby_of_a_healthy_cluster_may_go_and_its_primary_may_not() {
    let bench = bench();
    assert_eq!(of_host(&bench.situation(), &id("b")), []);
    assert_eq!(notes(&bench.situation(), &id("b")), Vec::<String>::new());
    assert_eq!(kinds(&of_host(&bench.situation(), &id("a"))), ["primary"]);
    assert_eq!(kinds(&of_host(&bench.situation(), &id("x"))), ["unknown"]);
}

#[test]
fn with_one_host_away_no_other_may_go_except_the_one_that_is_away() {
    let mut away = bench().says("a", "primary 2:200 lease=1 unheard=b answering=a,b");
    away.seen.remove(&id("c"));
    let said = of_host(&away.situation(), &id("b"));
    assert_eq!(kinds(&said), ["quorum"]);
    assert_eq!(
        said[0].to_string(),
        "without b 1 voters answer and 2 are needed: nothing could be decided, and the primary's lease would end; c does \
         not answer"
    );
    assert!(said[0].advice().contains("the manager of c"));
    assert_eq!(of_host(&away.situation(), &id("c")), [], "it is down already");
    assert_eq!(kinds(&of_node(&away.situation(), &id("b"))), ["quorum"], "its new node does not vote at once");
    assert_eq!(of_node(&away.situation(), &id("c")), []);
    assert!(notes(&away.situation(), &id("b"))[0].contains("nobody can take over"));
}

#[test]
fn whoever_answers_no_renewal_counts_for_no_quorum() {
    let cut_off = bench().says("a", "primary 2:200 lease=1 unheard=b unheard=c answering=a,b");
    assert_eq!(kinds(&of_host(&cut_off.situation(), &id("b"))), ["quorum"]);
}

#[test]
fn a_removal_is_counted_among_those_that_are_left() {
    let mut away = bench().says("a", "primary 2:200 lease=1 unheard=b answering=a,b");
    away.seen.remove(&id("c"));
    assert_eq!(of_removal(&away.situation(), &id("c")), []);
    // One of the two that are left is the other half of their majority.
    assert_eq!(kinds(&of_removal(&away.situation(), &id("b"))), ["quorum"]);
    assert_eq!(of_removal(&bench().situation(), &id("b")), []);
}

#[test]
fn the_last_standby_that_confirms_may_not_go() {
    let quorum = [("replication_mode", "quorum")];
    let strict = [("replication_mode", "quorum"), ("sync_strict", "true")];
    let mut both = bench();
    set(&mut both, "b c", &strict);
    assert_eq!(of_host(&both.situation(), &id("b")), [], "the other one confirms");
    for (settings, words) in [(&strict[..], "commits would wait"), (&quorum[..], "on the primary alone")] {
        // c is there and confirms nothing: its PostgreSQL is down.
        let mut alone = bench().says("c", "stopped");
        alone = alone.says("a", "primary 2:200 lease=1 unheard=b gone=c answering=a,b,c");
        set(&mut alone, "b", settings);
        let said = of_host(&alone.situation(), &id("b"));
        assert_eq!(kinds(&said), ["sync"]);
        assert!(said[0].to_string().contains(words), "{}", said[0]);
        assert_eq!(kinds(&of_removal(&alone.situation(), &id("b"))), ["sync"]);
        assert_eq!(of_node(&alone.situation(), &id("b")), [], "its PostgreSQL goes on");
        assert_eq!(of_host(&alone.situation(), &id("c")), [], "it confirms nothing");
    }
}

#[test]
fn the_target_of_an_operation_stays_until_that_is_finished() {
    let mut moving = bench();
    moving.state.operation = Bench::new("granted a open 2; switchover b hold").state.operation;
    assert_eq!(kinds(&of_host(&moving.situation(), &id("b"))), ["operation"]);
    assert_eq!(of_host(&moving.situation(), &id("c")), []);
}

#[test]
fn who_leads_the_managers_may_go_and_that_is_said() {
    let led = bench().led_by("b");
    assert_eq!(of_host(&led.situation(), &id("b")), []);
    assert!(notes(&led.situation(), &id("b"))[0].contains("leads the managers"));
}
