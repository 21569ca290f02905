//! Commits that standbys confirm: who does, what happens when one is lost or comes back, and that nothing that was
//! acknowledged is lost with a primary.

use std::{
    path::Path,
    process::{Child, Command},
    thread,
    time::Instant,
};

use matriarch::{
    demo::rig::{ROUTED, Rig, Role},
    rpc::v1::{Commits, StatusReply},
};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    history::asks,
    pauses::run,
    stage::{self, EXE, HEAL, Promise, SOON, Step, others, until},
};

const STEPS: &[Step] = &[
    ("whoever_streams_confirms_as_soon_as_that_is_set", whoever_streams_confirms_as_soon_as_that_is_set),
    ("a_primary_that_is_lost_takes_no_commit_along", a_primary_that_is_lost_takes_no_commit_along),
    ("a_primary_nobody_hears_is_outvoted_before_its_lease_ends", a_primary_nobody_hears_is_outvoted),
    ("a_standby_that_is_lost_is_waited_for_no_longer", a_standby_that_is_lost_is_waited_for_no_longer),
    (
        "the_last_that_confirms_is_waited_for_when_that_is_strict",
        the_last_that_confirms_is_waited_for_when_that_is_strict,
    ),
    (
        "a_standby_that_confirms_is_restarted_unless_another_is_to_come_back_first",
        a_standby_that_confirms_is_restarted_unless_another_is_to_come_back_first,
    ),
    ("a_primary_that_crashed_lets_nobody_in_before_what_it_has_is_confirmed", a_primary_that_crashed),
    (
        "a_primary_that_crashed_is_failed_over_at_once_where_standbys_have_every_commit",
        a_primary_that_crashed_is_failed_over_at_once,
    ),
    ("commits_that_nobody_waits_for_are_named", commits_that_nobody_waits_for_are_named),
    ("without_a_rule_nobody_is_waited_for", without_a_rule_nobody_is_waited_for),
];

pub fn play() {
    stage::play(STEPS);
}

fn set(rig: &Rig, settings: &[&str]) {
    let config = rig.config(&rig.members()[0]).unwrap();
    let mut command = Command::new(EXE);
    command.args(["config", "set"]).args(settings).arg("--config").arg::<&Path>(&config);
    // All settings, as it prints them, are too long for a report of what failed.
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn commits(rig: &Rig) -> Option<Commits> {
    rig.status()?.commits
}

/// These confirm, so many of them, and that is in effect.
fn confirmed_by(rig: &Rig, names: &[String], count: u32) {
    let mut names = names.to_vec();
    names.sort();
    until(&format!("{count} of {names:?} confirm commits"), HEAL, || {
        commits(rig).is_some_and(|c| c.in_effect && c.rules.len() == 1 && c.names == names && c.count == count)
    });
}

/// The mode is on before each step but the first; a step that was played alone has it set.
fn quorum(rig: &Rig, before: &StatusReply) {
    if before.commits.as_ref().is_none_or(|c| c.mode != "quorum") {
        set(rig, &["protection=max-availability"]);
    }
    confirmed_by(rig, &others(rig, &[&before.primary]), 1);
}

fn whoever_streams_confirms_as_soon_as_that_is_set(rig: &Rig, before: &StatusReply) -> Promise {
    let since = Instant::now();
    quorum(rig, before);
    let names = rig.query(&before.primary, "show synchronous_standby_names").unwrap().concat();
    let expected =
        others(rig, &[&before.primary]).iter().map(|m| format!("\"{m}_g1e{}\"", before.epoch)).collect::<Vec<_>>();
    assert_eq!(names, format!("ANY 1 ({})", expected.join(", ")));
    Promise::no_failed_write(since)
}

fn a_primary_that_is_lost_takes_no_commit_along(rig: &Rig, before: &StatusReply) -> Promise {
    quorum(rig, before);
    let server = rig.server().unwrap();
    let fault = rig.kill_host(&before.primary).unwrap();
    // One on its way from the lost primary is none of its successor.
    rig.wait_for_write(ROUTED, fault, Some(&server), SOON).unwrap();
    let primary = rig.status().unwrap().primary;
    confirmed_by(rig, &others(rig, &[&before.primary, &primary]), 1);
    rig.boot_host(&before.primary).unwrap();
    rig.healthy(HEAL).unwrap();
    confirmed_by(rig, &others(rig, &[&primary]), 1);
    Promise::no_loss(fault)
}

/// Its host is lost. That its lease had not ended is what the log says: nobody reported it.
fn a_primary_nobody_hears_is_outvoted(rig: &Rig, before: &StatusReply) -> Promise {
    quorum(rig, before);
    set(rig, &["protection=max-protection", "failover_wait=promise"]);
    confirmed_by(rig, &others(rig, &[&before.primary]), 1);
    let server = rig.server().unwrap();
    let fault = rig.kill_host(&before.primary).unwrap();
    rig.wait_for_write(ROUTED, fault, Some(&server), SOON).unwrap();
    let in_time = fault.elapsed() < stage::grant();
    let told = asks(rig, &["history"]).to_string();
    assert!(told.contains("can outvote it") || !in_time, "before a lease could have ended: {told}");
    rig.boot_host(&before.primary).unwrap();
    rig.healthy(HEAL).unwrap();
    set(rig, &["protection=max-availability", "failover_wait=lease"]);
    let primary = rig.status().unwrap().primary;
    confirmed_by(rig, &others(rig, &[&primary]), 1);
    Promise::no_loss(fault).ended(server)
}

/// PostgreSQL there is killed, and nobody starts it again: its agent is down. The manager votes on.
fn kill_for_good(rig: &Rig, host: &str) -> Instant {
    let pid = rig.postmaster(host).unwrap();
    rig.take_down(host, Role::Agent).unwrap();
    rig.signal(pid, Signal::SIGKILL).unwrap()
}

/// First one of two, then the last: then the primary goes on alone, and nobody else may follow it.
fn a_standby_that_is_lost_is_waited_for_no_longer(rig: &Rig, before: &StatusReply) -> Promise {
    quorum(rig, before);
    let standbys = others(rig, &[&before.primary]);
    rig.kill_host(&standbys[0]).unwrap();
    confirmed_by(rig, &standbys[1..], 1);
    let fault = kill_for_good(rig, &standbys[1]);
    rig.wait_for_write(ROUTED, fault, None, SOON).unwrap();
    until("nobody confirms", SOON, || commits(rig).is_some_and(|c| c.count == 0 && c.in_effect));
    until("the status says what that means", SOON, || {
        let holds = rig.status().map(|s| s.holds).unwrap_or_default();
        holds.iter().any(|h| h.contains("nobody else becomes primary by itself"))
    });
    rig.boot_host(&standbys[0]).unwrap();
    rig.start_process(&standbys[1], Role::Agent).unwrap();
    rig.healthy(HEAL).unwrap();
    confirmed_by(rig, &standbys, 1);
    Promise::no_loss(fault)
}

fn the_last_that_confirms_is_waited_for_when_that_is_strict(rig: &Rig, before: &StatusReply) -> Promise {
    quorum(rig, before);
    set(rig, &["protection=max-protection"]);
    let standbys = others(rig, &[&before.primary]);
    for standby in &standbys {
        kill_for_good(rig, standby);
    }
    until("commits wait", HEAL, || {
        rig.status().is_some_and(|s| s.holds.iter().any(|h| h.starts_with("commits wait: 0 of 1 standbys")))
    });
    let alone = Instant::now();
    thread::sleep(stage::grant());
    let acked = rig.writes(alone).into_iter().filter(|w| w.is_acked()).count();
    assert_eq!(acked, 0, "nobody confirmed these");
    let back = Instant::now();
    for standby in &standbys {
        rig.start_process(standby, Role::Agent).unwrap();
    }
    rig.wait_for_write(ROUTED, back, None, HEAL).unwrap();
    rig.healthy(HEAL).unwrap();
    set(rig, &["protection=max-availability"]);
    confirmed_by(rig, &standbys, 1);
    Promise::no_loss(back)
}

/// Where every standby has to confirm, commits wait for the restart of one.
fn a_standby_that_confirms_is_restarted_unless_another_is_to_come_back_first(
    rig: &Rig,
    before: &StatusReply,
) -> Promise {
    quorum(rig, before);
    let standbys = others(rig, &[&before.primary]);
    set(rig, &["sync_strict=true", "sync_count=2"]);
    confirmed_by(rig, &standbys, 2);
    let postmaster = rig.postmaster(&standbys[0]).unwrap();
    run(rig, &["restart", &standbys[0], "--yes", "--timeout", "60"]).unwrap();
    let restarted = Instant::now();
    assert_ne!(rig.postmaster(&standbys[0]).unwrap(), postmaster);
    confirmed_by(rig, &standbys, 2);
    rig.wait_for_write(ROUTED, restarted, None, HEAL).unwrap();

    set(rig, &["sync_count=1"]);
    kill_for_good(rig, &standbys[1]);
    confirmed_by(rig, &standbys[..1], 1);
    let postmaster = rig.postmaster(&standbys[0]).unwrap();
    let refused = run(rig, &["restart", &standbys[0], "--yes"]).unwrap_err();
    assert!(refused.contains(&format!("too far behind ({})", standbys[1])), "{refused}");
    assert_eq!(rig.postmaster(&standbys[0]).unwrap(), postmaster);
    rig.start_process(&standbys[1], Role::Agent).unwrap();
    rig.healthy(HEAL).unwrap();
    set(rig, &["protection=max-availability"]);
    confirmed_by(rig, &standbys, 1);
    Promise::no_loss(restarted)
}

fn a_primary_that_crashed(rig: &Rig, before: &StatusReply) -> Promise {
    quorum(rig, before);
    set(rig, &["on_primary_crash=restart"]);
    let server = rig.server().unwrap();
    let pid = rig.postmaster(&before.primary).unwrap();
    let fault = rig.signal(pid, Signal::SIGKILL).unwrap();
    rig.wait_for_write(ROUTED, fault, None, SOON).unwrap();
    rig.healthy(HEAL).unwrap();
    set(rig, &["--unset", "on_primary_crash"]);
    let log = std::fs::read_to_string(rig.log(&before.primary, Role::Agent).unwrap()).unwrap();
    let opened = "what this primary has after its crash is confirmed, clients are let in";
    let after = rig.status().unwrap();
    if after.epoch == before.epoch {
        assert!(log.contains(opened), "nobody was kept out");
    }
    Promise::no_loss(fault).ended(server)
}

/// Where standbys have every commit there is nothing to restart it for.
fn a_primary_that_crashed_is_failed_over_at_once(rig: &Rig, before: &StatusReply) -> Promise {
    quorum(rig, before);
    set(rig, &["failover_limit=0"]);
    let server = rig.server().unwrap();
    let pid = rig.postmaster(&before.primary).unwrap();
    let fault = rig.signal(pid, Signal::SIGKILL).unwrap();
    rig.wait_for_write(ROUTED, fault, Some(&server), SOON).unwrap();
    let after = rig.healthy(HEAL).unwrap();
    assert_ne!(after.primary, before.primary);
    let log = std::fs::read_to_string(rig.log(&before.primary, Role::Agent).unwrap()).unwrap();
    assert!(log.contains("standbys have every acknowledged commit"), "why it was not restarted in place");
    set(rig, &["--unset", "failover_limit"]);
    confirmed_by(rig, &others(rig, &[&after.primary]), 1);
    Promise::no_loss(fault).ended(server)
}

/// A role with a level of its own, `ALTER SYSTEM`, and somebody who confirms under a standby's name.
fn commits_that_nobody_waits_for_are_named(rig: &Rig, before: &StatusReply) -> Promise {
    quorum(rig, before);
    let since = Instant::now();
    let primary = &before.primary;
    let run = |sql: &str| as_superuser(rig, primary, sql);
    let uncovered = || commits(rig).and_then(|c| c.uncovered).unwrap_or_default();
    run("create role hasty login");
    run("alter role hasty set synchronous_commit = off");
    until("the role is named", SOON, || uncovered().levels.iter().any(|l| (&*l.role, &*l.level) == ("hasty", "off")));
    let explained = asks(rig, &["explain"]);
    let next = explained["next"].as_array().unwrap().iter().filter_map(Value::as_str);
    assert!(next.clone().any(|n| n.contains("`ALTER ROLE \"hasty\" RESET synchronous_commit`")), "{explained:#}");
    run("drop role hasty");
    until("it is named no more", SOON, || uncovered().levels.is_empty());

    let names = run("show synchronous_standby_names");
    run("alter system set synchronous_standby_names = 'nobody_is_this'");
    run("alter system set synchronous_commit = 'local'");
    let overridden = Instant::now();
    run("select pg_reload_conf()");
    let mut seen = Vec::new();
    until("it is undone", SOON, || {
        seen.extend(uncovered().overrides);
        run("select 1 from pg_file_settings where setting in ('nobody_is_this', 'local')").is_empty()
    });
    until("the rule is in effect", SOON, || {
        run("show synchronous_standby_names") == names && commits(rig).is_some_and(|c| c.in_effect)
    });
    let log = std::fs::read_to_string(rig.log(primary, Role::Agent).unwrap()).unwrap();
    assert_eq!(log.matches("what ALTER SYSTEM had set is undone").count(), 2, "seen in the status: {seen:?}");

    let standby = &others(rig, &[primary])[0];
    // By its address and role it could be the standby, here where all hosts are one.
    let mut imitator = receive_as(rig, primary, &format!("{standby}_g1e{}", before.epoch));
    until("it is named", SOON, || uncovered().imitators.iter().any(|i| i.why.contains("another connection")));
    let warnings = rig.status().unwrap().warnings;
    assert!(warnings.iter().any(|w| w.starts_with("commits are confirmed by ")), "{warnings:?}");
    imitator.0.kill().unwrap();
    until("it is named no more", SOON, || uncovered().imitators.is_empty());
    rig.wait_for_write(ROUTED, overridden, None, SOON).unwrap();
    // What waited for nobody_is_this may have been given up by its client.
    Promise::no_loss(since)
}

/// What `psql` prints, trimmed.
fn as_superuser(rig: &Rig, member: &str, sql: &str) -> String {
    let at = rig.contact(member).unwrap();
    let mut psql = Command::new(rig.bin_dir().join("psql"));
    psql.arg("-h").arg(at.socket_dir).args(["-p", &at.postgres_port.to_string(), "-U", "postgres", "-XAtqc", sql]);
    let output = psql.arg("postgres").env("PGPASSWORD", rig.superuser_password()).output().unwrap();
    assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Somebody's `pg_receivewal`, which is ended with this.
struct Receiver(Child, #[expect(dead_code)] tempfile::TempDir);

impl Drop for Receiver {
    fn drop(&mut self) {
        // One that has ended is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn receive_as(rig: &Rig, primary: &str, name: &str) -> Receiver {
    let dir = tempfile::tempdir().unwrap();
    let port = rig.query(primary, "show port").unwrap().concat();
    let password = std::fs::read_to_string(rig.dir(primary).unwrap().join("replication.pass")).unwrap();
    let mut command = Command::new(rig.bin_dir().join("pg_receivewal"));
    let target = format!("host=127.0.0.1 port={port} user=matriarch_repl application_name={name}");
    command.args(["--synchronous", "--no-loop", "-d", &target, "-D"]).arg(dir.path());
    command.env("PGPASSWORD", password.trim()).stderr(std::process::Stdio::null());
    Receiver(command.spawn().unwrap(), dir)
}

fn without_a_rule_nobody_is_waited_for(rig: &Rig, before: &StatusReply) -> Promise {
    quorum(rig, before);
    let since = Instant::now();
    set(rig, &["protection=max-performance"]);
    until("nothing is promised", SOON, || commits(rig).is_some_and(|c| c.rules.is_empty()));
    until("PostgreSQL waits for nobody", SOON, || {
        rig.query(&before.primary, "show synchronous_standby_names").is_ok_and(|names| names.concat().is_empty())
    });
    Promise::no_failed_write(since)
}
