//! Series: random faults on clusters whose commits standbys confirm, one for each mode and size. Half of the faults are
//! those that are made for them ([`confirmers::catalogue`]).

use std::env;

use crate::{
    checker::Excuse,
    confirmers::{self, Mode},
    faults,
    history::{self, Terms},
    hosts::Wanted,
    report::{self, Series},
    runs::{self, Player, alone, log, members, number, one_of, say, seed},
};

/// `FAULTS=n`, or as many as the series has. `MODE` and `MEMBERS` say which series are played.
fn play(mode: &str, on: usize, count: u64) {
    let only = env::var("MODE").unwrap_or_default();
    if !(only.is_empty() || only == mode) || members().is_some_and(|n| n != on) {
        say(format!("passed over: MODE or MEMBERS is another than {mode} on {on}"));
        return;
    }
    let Some(_alone) = alone() else { return };
    let mut mode: Mode = mode.parse().expect("it is one of four");
    // Of five, two confirm: then writes go on when the primary is lost with one of them.
    mode.count = number("SYNC_COUNT").map_or(if on < 5 { 1 } else { 2 }, |n| n as usize);
    let wanted = Wanted {
        members: on,
        settings: [mode.settings(), runs::wanted(false, true).settings].concat(),
        ..runs::wanted(false, true)
    };
    let (usual, special) = (faults::catalogue(), confirmers::catalogue());
    let count = env::var("FAULTS").ok().and_then(|f| f.parse().ok()).unwrap_or(count);
    let chosen = env::var("FAULTS").is_ok_and(|f| f.parse::<u64>().is_err() && !f.is_empty());
    let selected = chosen.then(|| runs::selected([usual.clone(), special.clone()].concat()));
    let name = format!("{mode}-{on}");
    let mut player = Player::of(&name, seed(), wanted.clone());
    say(format!("series {name}: {count} faults, {}", wanted.settings.join(" ")));
    player.random(count, |dice, ground| match &selected {
        Some(faults) => one_of(faults, dice, ground),
        None if dice.below(2) == 0 => one_of(&special, dice, ground),
        None => one_of(&usual, dice, ground),
    });
    let whole = Series::of(&name, player.seed, &wanted.settings, &player.records, player.broken());
    report::append(&log(), &whole).unwrap();
    say(serde_json::to_string(&whole).unwrap());
    player.conclude();
}

macro_rules! series {
    ($($name:ident: $mode:literal on $members:literal, $count:literal;)*) => {
        $(#[test]
        #[ignore = "hours: make proof"]
        fn $name() {
            play($mode, $members, $count);
        })*
    };
}

series! {
    sync_on_3: "sync" on 3, 200;
    sync_strict_on_3: "sync-strict" on 3, 200;
    quorum_on_3: "quorum" on 3, 200;
    quorum_strict_on_3: "quorum-strict" on 3, 200;
    sync_on_5: "sync" on 5, 50;
    sync_strict_on_5: "sync-strict" on 5, 50;
    quorum_on_5: "quorum" on 5, 50;
    quorum_strict_on_5: "quorum-strict" on 5, 50;
}

/// Judges a history that was kept: `HISTORY=FILE`. Nothing is pardoned.
#[test]
#[ignore = "for a file: HISTORY="]
fn a_kept_history() {
    let Some(file) = env::var_os("HISTORY") else { return };
    let (txns, last) = history::read(file.as_ref()).unwrap();
    let found = history::check(&txns, &last, &Terms { excuse: Excuse::None, in_hole: &|_, _| false });
    for one in &found {
        say(format!("{:?}: {}", one.anomaly, one.text));
    }
    assert!(found.is_empty(), "{} findings in {} transactions", found.len(), txns.len());
}
