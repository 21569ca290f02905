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

#[test]
fn without_an_open_primary_no_standby_may_go() {
    for lock in ["granted a promoting 2", "fenced"] {
        let mut closed = bench();
        closed.state.lock = Bench::new(lock).state.lock;
        assert!(kinds(&of_host(&closed.situation(), &id("b"))).contains(&"no_primary"), "{lock}");
    }
    let mut free = bench();
    free.state.lock = Lock::Free;
    free.seen.remove(&id("b"));
    assert!(kinds(&of_host(&free.situation(), &id("b"))).contains(&"no_primary"));
    assert!(
        !kinds(&of_move(&free.situation(), &id("b"), "x:1")).contains(&"no_primary"),
        "it may be what is waited for"
    );
}

#[test]
fn without_the_word_of_the_primary_no_standby_may_go() {
    let mut silent = bench();
    silent.seen.remove(&id("a"));
    assert!(kinds(&of_host(&silent.situation(), &id("b"))).contains(&"unheard"));
    let lapsed = bench().says("a", "primary 2:200 unheard=b unheard=c answering=a,b,c");
    assert_eq!(kinds(&of_host(&lapsed.situation(), &id("b"))), ["unheard"]);
}

#[test]
fn a_move_to_where_it_is_not_can_be_undone_when_nothing_else_is_left() {
    // c is gone; b is not where the log says, so that nobody confirms the lease.
    let mut lost = bench().says("a", "primary 2:200 unheard=b");
    lost.seen.remove(&id("c"));
    lost.state.lock = Lock::Free;
    let node = lost.state.members[&id("b")].node;
    let home = lost.group.group.nodes[&node].address.clone();
    let kinds_to = |lost: &Bench, to: &str| kinds(&of_move(&lost.situation(), &id("b"), to));
    assert_eq!(kinds_to(&lost, &home), ["quorum", "no_primary"], "it was never moved");
    lost.state.moved.insert(id("b"), "wrong:7400".into());
    assert_eq!(kinds_to(&lost, &home), [""; 0]);
    assert_eq!(kinds_to(&lost, "elsewhere:7400"), ["quorum", "no_primary"]);
    let mut held = bench().says("a", "primary 2:200 lease=1 unheard=b answering=a,b");
    held.seen.remove(&id("c"));
    held.state.moved.insert(id("b"), "there:7400".into());
    assert_eq!(kinds_to(&held, &home), ["quorum"], "renewals reach it where it was moved to");
}
