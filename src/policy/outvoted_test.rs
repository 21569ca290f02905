#![allow(clippy::unwrap_used)]

use super::*;
use crate::{
    domain::{Epoch, Format, Moment, Promise},
    policy::{
        failover,
        testing::{Bench, id},
    },
};

/// a is open by rule `count` of `of`; b and c stream, and have heard nothing of it for half of its lease.
fn quiet(of: &str, count: u32) -> Bench {
    let quiet = Promise { epoch: Epoch(1), renewed: true, quiet: true, remaining_ms: 1_500, ..Promise::default() };
    let bench = Bench::new("granted a open 2")
        .says("a", "primary 2:200 lease=1 effective=1")
        .says("b", "standby 2:200 upstream=a follows=1")
        .says("c", "standby 2:200 upstream=a follows=1")
        .promise("b", quiet)
        .promise("c", quiet);
    let mut bench = set(bench, of, count);
    bench.seen.get_mut(&id("a")).unwrap().at = Moment::from_millis(58_000);
    bench
}

fn set(mut bench: Bench, of: &str, count: u32) -> Bench {
    let wanted = [("failover_wait", "promise"), ("replication_mode", "quorum"), ("sync_strict", "true")];
    let wanted = wanted.map(|(key, value)| (key.to_owned(), value.to_owned()));
    bench.state.settings.values.extend(wanted);
    bench.state.format = Format::SYNC;
    bench.state.sync.add(Epoch(1), of.split_whitespace().map(id).collect(), count).unwrap();
    bench.state.sync.binding = true;
    bench
}

fn ends(bench: &Bench) -> bool {
    matches!(by_standbys(&bench.situation()), Some(Verdict::Propose(Kind::Fence { .. })))
}

#[test]
fn a_holder_that_nobody_hears_is_outvoted_before_its_lease_ends() {
    let bench = quiet("b c", 1);
    let Some(Verdict::Propose(Kind::Fence { reason, .. })) = by_standbys(&bench.situation()) else { panic!() };
    assert_eq!(reason, "2 voters have heard nothing of a for half of its lease; b, c can outvote it");
    assert!(!matches!(failover::lease_ran_out(&bench.situation()), Some(Verdict::Propose(_))), "its lease runs");
}

#[test]
fn it_is_not_where_it_may_still_acknowledge_or_nobody_asked_for_it() {
    let mut by_default = quiet("b c", 1);
    by_default.state.settings.values.remove("failover_wait");
    assert!(!ends(&by_default));
    let mut lax = quiet("b c", 1);
    lax.state.settings.values.remove("sync_strict");
    assert!(!ends(&lax));
    let mut asynchronous = quiet("b c", 1);
    asynchronous.state.sync.rules.clear();
    assert!(!ends(&asynchronous), "nothing waits yet");
    let mut begun = quiet("b c", 1);
    begun.state.sync.binding = false;
    assert!(!ends(&begun), "nobody knows yet that it waits");
    let mut strays = quiet("b c", 1);
    strays.seen.get_mut(&id("a")).and_then(|o| o.agent.as_mut()).unwrap().sync.effective = false;
    assert!(!ends(&strays), "it said that it goes by other rules");
    let mut nobody = quiet("b c", 1);
    nobody.state.settings.values.extend(["b.failover", "c.failover"].map(|key| (key.to_owned(), "false".to_owned())));
    assert!(!ends(&nobody), "nobody could follow it by itself");
    assert!(!ends(&quiet("", 0)), "it acknowledges alone");
    assert!(!ends(&quiet("b c", 1).says("c", "starting 2:200")), "b alone may lack what c has");
    assert!(ends(&quiet("b c", 2).says("c", "starting 2:200")), "b has all");
    assert!(!ends(&quiet("b c", 1).says("c", "standby 2:200 storage")));
    let mut paused = quiet("b c", 1);
    paused.state.paused = Some(crate::state::Asked::default());
    assert!(!ends(&paused));
}

#[test]
fn it_is_not_while_anybody_hears_it() {
    let heard = Promise { epoch: Epoch(1), renewed: true, remaining_ms: 3_000, ..Promise::default() };
    assert!(!ends(&quiet("b c", 1).promise("c", heard)), "one voter is no majority");
    let mut reports = quiet("b c", 1);
    reports.seen.get_mut(&id("a")).unwrap().at = Moment::from_millis(59_000);
    assert!(matches!(by_standbys(&reports.situation()), Some(Verdict::Hold(Hold::LeaseHeld { .. }))));
    let mut old = quiet("b c", 1);
    old.seen.get_mut(&id("c")).unwrap().at = Moment::from_millis(58_000);
    assert!(!ends(&old), "what c said is too old");
    let other = Promise { epoch: Epoch(0), renewed: false, quiet: true, lapsed: true, ..Promise::default() };
    assert!(!ends(&quiet("b c", 1).promise("c", other)), "restarted: it has heard nothing of anybody");
}

/// Epoch 2 begins; b and c have sealed, and their promises to a run on.
fn fenced(b: &str, c: &str) -> Bench {
    let mut bench = set(Bench::new("fenced"), "b c", 1);
    bench.state.lock = Lock::Fenced { epoch: Epoch(2), previous: Some((Epoch(1), id("a"))), released: None };
    bench.state.epoch = Epoch(2);
    let mut bench = bench.seal("b", b).seal("c", c);
    for voter in ["b", "c"] {
        let seal = bench.seals.get_mut(&id(voter)).unwrap();
        (seal.promise.lapsed, seal.promise.epoch, seal.promise.renewed) = (false, Epoch(1), true);
    }
    bench
}

#[test]
fn once_enough_standbys_have_left_it_nobody_waits_for_its_lease() {
    let grant = |bench: &Bench| match failover::grant(&bench.situation()) {
        Some(Verdict::Propose(Kind::Grant { member, .. })) => Ok(member),
        Some(Verdict::Hold(hold)) => Err(hold),
        other => panic!("{other:?}"),
    };
    let left = fenced("standby 2:150 severed=2", "standby 2:160 severed=2");
    assert_eq!(grant(&left), Ok(id("c")), "c has the most");
    let waits = |bench: &Bench| matches!(grant(bench), Err(Hold::TooFewSeals { free: 0, .. }));
    assert!(waits(&fenced("standby 2:150 severed=2", "standby 2:160")), "c may confirm a commit yet");
    assert!(waits(&fenced("standby 2:150 severed=2", "standby 2:160 severed=1")));
    let mut by_default = fenced("standby 2:150 severed=2", "standby 2:160 severed=2");
    by_default.state.settings.values.remove("failover_wait");
    assert!(waits(&by_default));
    let mut unsealed = fenced("standby 2:150 severed=2", "standby 2:160 severed=2");
    unsealed.seals.get_mut(&id("c")).unwrap().promise.sealed = Epoch(1);
    assert!(matches!(grant(&unsealed), Err(Hold::TooFewSeals { .. })), "its renewals have to be refused by a majority");
}
