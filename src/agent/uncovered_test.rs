#![allow(clippy::unwrap_used)]

use super::*;
use crate::{
    domain::{Epoch, Generation, SyncRule},
    postgres::{LevelFound, Live, OverrideFound},
};

fn plan(names: &[&str], confirms: Confirms) -> SyncPlan {
    let names = names.iter().map(|name| name.parse().unwrap()).collect();
    let rule = SyncRule { id: 3, epoch: Epoch(7), names, count: 1 };
    let live = Live::of(Some(&rule), Generation(1), confirms);
    let (watch, deadline) = (Some(Duration::from_millis(200)), Duration::from_secs(1));
    SyncPlan { life: 1, id: 3, rule: Some(rule), live, generation: Generation(1), watch, deadline }
}

fn nobody_waits() -> SyncPlan {
    SyncPlan { rule: None, live: Live::default(), ..plan(&[], Confirms::Flush) }
}

fn homes() -> Homes {
    [("n2", "10.0.0.2"), ("n3", "10.0.0.3")].map(|(m, a)| (m.parse().unwrap(), vec![a.parse().unwrap()])).into()
}

/// `NAME ADDRESS ROLE BEGAN`; address `-`: the socket.
fn senders(lines: &[&str]) -> Vec<SenderFound> {
    let one = |line: &&str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        SenderFound {
            name: words[0].to_owned(),
            address: Some(words[1].to_owned()).filter(|a| a != "-"),
            role: Some(words[2].to_owned()),
            pid: 1,
            began: words[3].parse().unwrap(),
        }
    };
    lines.iter().map(one).collect()
}

fn strangers(lines: &[&str]) -> (Vec<String>, u32) {
    let (imitators, others) = foreign(&senders(lines), &plan(&["n2", "n3"], Confirms::Flush), &homes(), "repl");
    (imitators.iter().map(ToString::to_string).collect(), others)
}

#[test]
fn a_member_confirms_from_its_address_with_its_role_and_over_one_connection() {
    assert_eq!(strangers(&["n2_g1e7 10.0.0.2 repl 1", "n3_g1e7 ::ffff:10.0.0.3 repl 2"]), (vec![], 0));
    let (words, others) = strangers(&["n2_g1e7 10.0.0.9 repl 1"]);
    assert_eq!(words, ["commits are confirmed by n2_g1e7 from 10.0.0.9: n2 is at 10.0.0.2"]);
    assert_eq!(others, 0);
    assert!(strangers(&["n2_g1e7 10.0.0.2 postgres 1"]).0[0].ends_with("as role postgres, members do as repl"));
    assert!(strangers(&["n2_g1e7 - repl 1"]).0[0].contains("from the host's own socket"));
    assert_eq!(strangers(&["N2_G1E7 10.0.0.9 repl 1"]).0.len(), 1, "PostgreSQL compares names so");
    let (words, _) = strangers(&["n2_g1e7 10.0.0.2 repl 1", "n2_g1e7 10.0.0.2 repl 5"]);
    assert_eq!(words, ["commits are confirmed by n2_g1e7 from 10.0.0.2: the member has another connection since then"]);
}

#[test]
fn who_confirms_nothing_is_counted_when_it_is_no_member() {
    let (words, others) = strangers(&[
        "pg_receivewal 10.0.0.9 repl 1",
        // A standby that is to confirm nothing yet, or no more.
        "n2_g1e6 10.0.0.2 repl 2",
        "n2_g1e6 10.0.0.8 repl 3",
    ]);
    assert_eq!((words, others), (vec![], 2));
    // Whose host's name can't be looked up is not judged by it.
    let plan = plan(&["n2"], Confirms::Flush);
    let unknown = Homes::from([("n2".parse().unwrap(), vec![])]);
    assert_eq!(foreign(&senders(&["n2_g1e7 10.0.0.9 repl 1"]), &plan, &unknown, "repl"), (vec![], 0));
}

#[test]
fn levels_are_told_and_overrides_undone_where_somebody_confirms() {
    let level = |role: &str, level: &str| LevelFound {
        role: Some(role.to_owned()),
        level: level.to_owned(),
        sessions: 2,
        ..LevelFound::default()
    };
    let of = |name: &str, value: &str| OverrideFound { name: name.to_owned(), value: value.to_owned() };
    let found = Findings {
        levels: vec![level("app", "OFF"), level("batch", "on")],
        senders: Vec::new(),
        overrides: vec![of(LEVEL, "local"), of(NAMES, "")],
    };
    let judged = |plan: &SyncPlan| judge(&found, plan, &homes(), "repl");
    let flush = judged(&plan(&["n2"], Confirms::Flush));
    assert_eq!(flush.levels.iter().map(ToString::to_string).collect::<Vec<_>>(), ["role app (off)"]);
    assert_eq!(to_undo(&flush).collect::<Vec<_>>(), [NAMES, LEVEL]);
    assert_eq!(judged(&plan(&["n2"], Confirms::Apply)).levels.len(), 2, "on is less than remote_apply");
    let nobody = judged(&nobody_waits());
    assert!(nobody.levels.is_empty());
    assert_eq!(to_undo(&nobody).collect::<Vec<_>>(), [NAMES], "the level is the user's own there");
}
