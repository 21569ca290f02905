//! A cluster that is looked at, by any manager, also while one of them doesn't answer.

use std::{
    process::{Command, Output},
    time::{Duration, Instant},
};

use matriarch::{
    demo::rig::{Rig, Role},
    rpc::v1::StatusReply,
};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::stage::{self, EXE, HEAL, Promise, SOON, others, until};

/// What is promised is 50 ms, and 1.5 s with a dead host; this machine runs other tests meanwhile, in a debug build.
const QUICK: Duration = Duration::from_millis(400);
const WITH_ONE_DEAD: Duration = Duration::from_millis(2_500);

/// Asks these managers, in this order.
fn ask(words: &[&str], managers: &[String]) -> (Output, Duration) {
    let mut command = Command::new(EXE);
    command.args(words);
    for manager in managers {
        command.args(["--manager", manager]);
    }
    let began = Instant::now();
    let output = command.output().unwrap();
    (output, began.elapsed())
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn json(words: &[&str], managers: &[String]) -> Value {
    let (output, _) = ask(&[words, &["--json"]].concat(), managers);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{words:?}: {error}\n{}", told(&output)))
}

/// Goes on whatever happens.
struct Stopped<'a>(&'a Rig, i32);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        let _ = self.0.signal(self.1, Signal::SIGCONT);
    }
}

pub fn any_manager_is_looked_through_and_a_dead_one_costs_a_moment(rig: &Rig, before: &StatusReply) -> Promise {
    let began = Instant::now();
    let at = |member: &str| before.members.iter().find(|m| m.member == member).unwrap().manager.clone();
    let managers: Vec<String> = rig.members().iter().map(|m| at(m)).collect();
    for manager in &managers {
        every_command_works(std::slice::from_ref(manager));
    }
    what_is_seen(before, &managers);

    // The leader is the worst one to lose: everybody else asks it.
    let (leader, rest) = (at(&before.leader), others(rig, &[&before.leader]));
    let asked: Vec<String> = std::iter::once(leader.clone()).chain(rest.iter().map(|m| at(m))).collect();
    let stopped = Stopped(rig, rig.pid(&before.leader, Role::Manager).unwrap());
    rig.signal(stopped.1, Signal::SIGSTOP).unwrap();
    let looks: Vec<Duration> = (0..4)
        .map(|_| {
            let (status, took) = ask(&["status"], &asked);
            assert!(matches!(status.status.code(), Some(0 | 4)), "{}", told(&status));
            took
        })
        .collect();
    let slowest = looks.into_iter().max().unwrap();
    stage::say(format!("status with the Raft leader frozen and asked first: {} ms at most", slowest.as_millis()));
    assert!(slowest < WITH_ONE_DEAD, "{slowest:?}");
    until("one more host can't be lost", SOON, || ask(&["check", "quorum"], &asked).0.status.code() == Some(1));
    let (matrix, took) = ask(&["matrix"], &asked);
    assert_eq!(matrix.status.code(), Some(4), "{}", told(&matrix));
    let fault = format!("the manager of {} is not reached from here", before.leader);
    assert!(told(&matrix).contains(&fault), "{}", told(&matrix));
    assert!(told(&matrix).contains(&format!("{} does not reach {}", rest[0], before.leader)), "{}", told(&matrix));
    assert!(took < WITH_ONE_DEAD * 2, "{took:?}");
    drop(stopped);
    rig.healthy(HEAL).unwrap();
    until("everybody is reached again", SOON, || ask(&["matrix"], &managers).0.status.code() == Some(0));
    Promise::no_failed_write(began)
}

/// What looks, and what changes something: by a manager that leads and by those that don't.
fn every_command_works(manager: &[String]) {
    let looks: &[&[&str]] = &[
        &["status"],
        &["topology"],
        &["matrix"],
        &["explain"],
        &["history"],
        &["events"],
        &["profile"],
        &["rto"],
        &["config", "show"],
        &["member", "list"],
        &["check", "quorum"],
        &["check", "lease"],
    ];
    for words in looks {
        let worked = || ask(words, manager).0.status.code() == Some(0);
        until(&format!("{words:?} by {manager:?}"), SOON, worked);
    }
    for words in [&["pause", "--reason", "looking"][..], &["resume"], &["acknowledge"]] {
        let (output, _) = ask(words, manager);
        assert_eq!(output.status.code(), Some(0), "{words:?}: {}", told(&output));
    }
}

fn what_is_seen(before: &StatusReply, managers: &[String]) {
    let mut times: Vec<Duration> = managers
        .iter()
        .flat_map(|manager| (0..5).map(|_| ask(&["status"], std::slice::from_ref(manager)).1).collect::<Vec<_>>())
        .collect();
    times.sort();
    let half = times[times.len() / 2];
    stage::say(format!("status: {} ms at best, half of them within {} ms", times[0].as_millis(), half.as_millis()));
    assert!(half < QUICK, "{times:?}");
    let tree = json(&["topology"], managers);
    let depths = tree["members"].as_array().unwrap().iter().map(|m| m["depth"].as_u64().unwrap());
    assert_eq!(depths.collect::<Vec<_>>(), [0, 1, 1], "{tree}");
    assert_eq!(tree["members"][0]["member"], before.primary.as_str());
    let matrix = json(&["matrix"], managers);
    assert_eq!(matrix["faults"], serde_json::json!([]), "{matrix}");
    for host in matrix["hosts"].as_array().unwrap() {
        let reached = host["reaches"].as_object().unwrap();
        assert_eq!(reached.len(), managers.len() - 1, "{matrix}");
        assert!(reached.values().all(|to| to["rtt_us"].as_u64().is_some_and(|us| us < 1_000_000)), "{matrix}");
        assert!(host["agent_ms"].as_u64().is_some_and(|ms| ms < 5_000), "{matrix}");
    }
}
