//! Standbys that stream from a standby, and one that shows the past.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use matriarch::{
    demo::rig::Rig,
    rpc::v1::{MemberStatus, StatusReply},
};

use crate::stage::{EXE, HEAL, Promise, SOON, Step, others, say, until};

pub const STEPS: &[Step] = &[
    ("a_standby_leaves_a_source_that_dies_and_goes_back", a_standby_leaves_a_source_that_dies_and_goes_back),
    (
        "the_source_of_a_standby_becomes_primary_and_is_one_no_more",
        the_source_of_a_standby_becomes_primary_and_is_one_no_more,
    ),
    ("who_streams_from_a_standby_confirms_nothing", who_streams_from_a_standby_confirms_nothing),
    ("a_delayed_standby_is_no_successor", a_delayed_standby_is_no_successor),
];

/// From the death of the source on: the time after which PostgreSQL gives a silent connection up, and as much again.
const FALLS_BACK: Duration = Duration::from_secs(20);

fn set(rig: &Rig, words: &[&str]) {
    let config = rig.config(&rig.members()[0]).unwrap();
    let mut command = Command::new(EXE);
    command.args(["config", "set"]).args(words).arg("--config").arg::<&Path>(&config);
    assert!(command.status().unwrap().success(), "{command:?}");
}

fn member(rig: &Rig, host: &str) -> Option<MemberStatus> {
    rig.status()?.members.into_iter().find(|m| m.member == host)
}

fn follows(rig: &Rig, host: &str, source: &str) {
    until(&format!("{host} streams from {source}"), HEAL, || {
        member(rig, host).is_some_and(|m| m.upstream == source && m.state == "streaming" && m.healthy)
    });
}

/// The two standbys; the second is set to stream from the first, and does.
fn cascade(rig: &Rig, before: &StatusReply) -> (String, String) {
    let standbys = others(rig, &[&before.primary]);
    let (source, guest) = (standbys[0].clone(), standbys[1].clone());
    set(rig, &[&format!("replicatefrom={source}"), "--member", &guest]);
    follows(rig, &guest, &source);
    let seen = rig.query(&source, "select application_name from pg_stat_replication").unwrap().concat();
    assert!(seen.starts_with(&format!("{guest}_g")), "{seen}");
    (source, guest)
}

fn undo(rig: &Rig, guest: &str) {
    set(rig, &["--unset", "replicatefrom", "--member", guest]);
    until("it streams from the primary", SOON, || {
        rig.status().is_some_and(|s| s.members.iter().any(|m| m.member == guest && m.upstream == s.primary))
    });
}

fn a_standby_leaves_a_source_that_dies_and_goes_back(rig: &Rig, before: &StatusReply) -> Promise {
    let began = Instant::now();
    let (source, guest) = cascade(rig, before);
    let postmaster = rig.postmaster(&guest).unwrap();
    let died = rig.kill_host(&source).unwrap();
    until("it streams from the primary", FALLS_BACK, || {
        member(rig, &guest).is_some_and(|m| m.upstream == before.primary && m.state == "streaming")
    });
    say(format!("from the death of its source to the primary: {:.1} s", died.elapsed().as_secs_f64()));
    rig.boot_host(&source).unwrap();
    follows(rig, &guest, &source);
    say(format!("… and back: {:.1} s", died.elapsed().as_secs_f64()));
    assert_eq!(rig.postmaster(&guest).unwrap(), postmaster, "PostgreSQL was not restarted");
    undo(rig, &guest);
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&before.primary, before.epoch));
    Promise::no_failed_write(began)
}

fn the_source_of_a_standby_becomes_primary_and_is_one_no_more(rig: &Rig, before: &StatusReply) -> Promise {
    let began = Instant::now();
    let (source, guest) = cascade(rig, before);
    let postmaster = rig.postmaster(&guest).unwrap();
    for to in [&source, &before.primary] {
        let begun = rig.switchover(to).unwrap();
        assert!(rig.finished(begun.id, SOON).unwrap().succeeded, "{to}");
        until("everybody follows", HEAL, || {
            rig.status().is_some_and(|s| s.primary == *to && s.members.iter().all(|m| m.healthy))
        });
        follows(rig, &guest, &source);
    }
    assert_eq!(rig.postmaster(&guest).unwrap(), postmaster, "PostgreSQL was not restarted");
    undo(rig, &guest);
    Promise::no_loss(began)
}

fn who_streams_from_a_standby_confirms_nothing(rig: &Rig, before: &StatusReply) -> Promise {
    let began = Instant::now();
    set(rig, &["replication_mode=quorum", "sync_strict=true"]);
    let confirms = |names: &[&str]| {
        let wanted: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        until("they confirm", HEAL, || {
            rig.status().and_then(|s| s.commits).is_some_and(|c| c.in_effect && c.names == wanted && c.rules.len() == 1)
        });
    };
    let standbys = others(rig, &[&before.primary]);
    confirms(&[&standbys[0], &standbys[1]]);
    let (source, guest) = cascade(rig, before);
    confirms(&[&source]);
    // The only one that confirms takes over, and the other, which has what it had, confirms nothing by that.
    rig.kill_host(&before.primary).unwrap();
    until("its source is primary", SOON, || rig.status().is_some_and(|s| s.lock == "open" && s.primary == source));
    rig.boot_host(&before.primary).unwrap();
    set(rig, &["replication_mode=async", "sync_strict=false"]);
    undo(rig, &guest);
    Promise::no_loss(began)
}

fn a_delayed_standby_is_no_successor(rig: &Rig, before: &StatusReply) -> Promise {
    let standbys = others(rig, &[&before.primary]);
    let (heir, late) = (standbys[0].clone(), standbys[1].clone());
    // The higher priority would win.
    set(rig, &["recovery_min_apply_delay=3000", "priority=200", "--member", &late]);
    until("it says so", SOON, || member(rig, &late).is_some_and(|m| m.note.contains("replays what is 3.0 s old")));
    let count = |host: &str| rig.query(host, "select count(*) from late").ok().map(|rows| rows.concat());
    rig.query(&before.primary, "create table late ()").unwrap();
    let (written, others) = (Instant::now(), || count(&heir).is_some());
    until("the other standby shows it", SOON, others);
    until("the late one shows it, too", SOON, || count(&late).is_some());
    assert!(written.elapsed() > Duration::from_millis(2_500), "{:?}", written.elapsed());
    let healthy = rig.healthy(HEAL).unwrap();
    assert!(healthy.members.iter().all(|m| m.healthy), "{:?}", healthy.members);
    let fault = rig.kill_host(&before.primary).unwrap();
    until("the other standby is primary", SOON, || {
        rig.status().is_some_and(|s| s.lock == "open" && s.primary == heir && s.epoch > before.epoch)
    });
    rig.boot_host(&before.primary).unwrap();
    set(rig, &["--unset", "recovery_min_apply_delay", "--unset", "priority", "--member", &late]);
    rig.healthy(HEAL).unwrap();
    Promise::asynchronous(fault, fault - Duration::from_secs(1))
}
