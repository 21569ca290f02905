#![allow(clippy::unwrap_used)]

use super::*;
use crate::{
    domain::{Confirms, Epoch},
    postgres::Sender,
};

fn plan(names: &[&str], count: u32) -> SyncPlan {
    let names = names.iter().map(|name| name.parse().unwrap()).collect();
    let rule = Some(SyncRule { id: 3, epoch: Epoch(7), names, count });
    let generation = Generation(1);
    let live = Live::of(rule.as_ref(), generation, Confirms::Flush);
    let deadline = Duration::from_secs(1);
    SyncPlan { life: 1, id: 3, rule, live, generation, watch: Some(Duration::from_millis(200)), deadline }
}

/// A server that shows the names of `plan`, with senders `NAME PRIORITY FLUSHED REPLY`.
fn sight(plan: &SyncPlan, flushed: u64, senders: &[&str]) -> SyncSight {
    let sender = |line: &&str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        Sender {
            name: format!("{}_g1e7", words[0]),
            priority: words[1].parse().unwrap(),
            flush_lsn: Lsn(words[2].parse().unwrap()),
            streams: true,
            in_slot: true,
            reply: words[3].to_owned(),
        }
    };
    SyncSight {
        names: plan.live.names.clone(),
        flushed: Lsn(flushed),
        checkpointer_listens: true,
        senders: senders.iter().map(sender).collect(),
    }
}

/// In effect after each of these looks?
fn settles(none_weaker: bool, plan: &SyncPlan, looks: &[SyncSight]) -> Vec<bool> {
    let mut settling = Settling { none_weaker, ..Settling::default() };
    let see = |look: &SyncSight| {
        settling.look(plan, look);
        settling.effective
    };
    looks.iter().map(see).collect()
}

#[test]
fn other_names_are_in_effect_when_every_sender_goes_by_them_and_enough_have_what_was_flushed_then() {
    let plan = plan(&["c"], 1);
    let looks = [
        SyncSight { names: "older".to_owned(), ..sight(&plan, 100, &["b 0 100 x", "c 1 100 x"]) },
        sight(&plan, 100, &["b 1 100 x", "c 1 100 x"]),
        // What is flushed here was read before the senders were.
        sight(&plan, 105, &["b 0 105 x", "c 1 105 x"]),
        sight(&plan, 110, &["b 0 110 x", "c 1 105 x"]),
        sight(&plan, 120, &["b 0 120 x", "c 1 109 x"]),
        sight(&plan, 120, &["b 0 120 x", "c 1 110 x"]),
    ];
    assert_eq!(settles(true, &plan, &looks), [false, false, false, false, false, true]);
}

#[test]
fn another_count_is_in_effect_after_each_sender_has_gone_round_and_the_checkpointer_has_listened() {
    let plan = plan(&["b", "c"], 2);
    let look = |b: &str, c: &str| sight(&plan, 100, &[&format!("b 1 100 {b}"), &format!("c 1 100 {c}")]);
    let deaf = |look: SyncSight| SyncSight { checkpointer_listens: false, ..look };
    let looks = [look("1", "1"), look("2", "2"), look("3", "2"), look("3", "3"), look("3", "3"), look("3", "3")];
    assert_eq!(settles(false, &plan, &looks), [false, false, false, false, false, true]);
    let same = || look("3", "3");
    let busy = [look("1", "1"), look("2", "2"), deaf(same()), same(), same(), same(), same()];
    assert_eq!(settles(false, &plan, &busy), [false, false, false, false, false, false, true]);
    assert_eq!(settles(true, &plan, &[same(), same(), same()]), [false, false, true]);
}

#[test]
fn a_rule_of_two_needs_two_who_have_it() {
    let plan = plan(&["b", "c"], 2);
    let one = sight(&plan, 100, &["b 1 100 x"]);
    assert_eq!(settles(true, &plan, &[one.clone(), one.clone(), one]), [false, false, false]);
    let twice = sight(&plan, 100, &["b 1 100 x", "b 1 100 y"]);
    assert_eq!(settles(true, &plan, &[twice.clone(), twice.clone(), twice]), [false, false, false], "it came again");
    let mut slotless = sight(&plan, 100, &["b 1 100 x", "c 1 100 x"]);
    slotless.senders[1].in_slot = false;
    let looks = [slotless.clone(), slotless.clone(), slotless];
    assert_eq!(settles(true, &plan, &looks), [false, false, false], "it may be there twice");
    let mut catching_up = sight(&plan, 100, &["b 1 100 x", "c 1 100 x"]);
    catching_up.senders[1].streams = false;
    let looks = [catching_up.clone(), catching_up.clone(), catching_up];
    assert_eq!(settles(true, &plan, &looks), [false, false, false]);
}

#[test]
fn to_wait_for_nobody_is_in_effect_at_once() {
    let plan = plan(&[], 0);
    assert_eq!(settles(false, &plan, &[sight(&plan, 100, &["b 0 90 x"])]), [true]);
}

#[tokio::test(start_paused = true)]
async fn silence_is_told_from_where_it_is_unusual() {
    let plan = plan(&["b", "c"], 1);
    let mut ears = Ears::default();
    let begin = Instant::now();
    let mut hear = |ms: u64, senders: &[&str]| {
        let told = ears.look(&plan, &sight(&plan, 100, senders), begin + Duration::from_millis(ms));
        told.into_iter().map(|(m, ms)| format!("{m}:{ms}")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(hear(0, &["b 1 90 x"]), "b:0 c:0", "c may be about to come");
    assert_eq!(hear(1_000, &["b 1 90 x", "d 0 90 x"]), "b:0 c:0 d:0");
    assert_eq!(hear(1_350, &["b 1 91 x", "d 0 90 x"]), "b:0 c:1300 d:0");
    assert_eq!(hear(2_300, &["b 1 91 x", "d 0 90 y"]), "b:0 c:2300 d:0");
    assert_eq!(hear(2_560, &["c 1 80 x"]), "b:1200 c:0", "d is gone, and nobody waits for it");
}

#[test]
fn names_that_nobody_wrote_here_are_told_from_those_before_which_count_until_the_new_ones_are_seen() {
    let mut before = Some("old".to_owned());
    assert!(!are_somebody_elses("old", "new", &mut before), "the reload is not through yet");
    assert!(are_somebody_elses("", "new", &mut before), "ALTER SYSTEM");
    assert!(!are_somebody_elses("new", "new", &mut before));
    assert!(are_somebody_elses("old", "new", &mut before), "nobody goes back by himself");
}
