//! Crashes of PostgreSQL that are failed over: its host gives the successor what nobody else has, so nothing that was flushed is lost.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use matriarch::{
    demo::rig::{self, ROUTED, Rig, Role},
    rpc::v1::StatusReply,
};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    dice::Dice,
    figures::{Load, keep, spread},
    hosts::{Hosts, Wanted, exe},
    rounds,
    runs::{alone, log, number, say, seed, wanted},
};

const HEAL: Duration = Duration::from_secs(120);
/// Until writes go on, at most; the figures say how long it takes.
const SOON: Duration = Duration::from_secs(30);

fn history(rig: &Rig) -> Value {
    let config = rig.config("n1").unwrap();
    let output = Command::new(exe()).args(["history", "--json", "--config"]).arg(config).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What was lost with the primary of `before`, once it is back and has said so.
fn lost_with(rig: &Rig, before: &StatusReply) -> u64 {
    let until = Instant::now() + HEAL;
    loop {
        let history = history(rig);
        let reign = history["reigns"].as_array().unwrap().iter().find(|reign| reign["epoch"] == before.epoch).unwrap();
        let lost = &reign["lost"];
        if lost["exact"] == true {
            return lost["bytes"].as_u64().unwrap();
        }
        assert!(Instant::now() < until, "{history:#}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// The postmaster of the primary is killed `RUNS` times (50) while pgbench writes, asynchronously, with
/// `on_primary_crash = failover`. Whatever was flushed there is in the next primary.
#[test]
#[ignore = "half an hour: make proof"]
fn crashes_that_are_failed_over_lose_no_flushed_commit() {
    let Some(_alone) = alone() else { return };
    let (mut wanted, seed) = (Wanted { writers: true, ..wanted(false, true) }, seed());
    wanted.settings.extend(["on_primary_crash=failover", "failover_limit=0"].map(str::to_owned));
    let mut dice = Dice::new(seed);
    let runs = number("RUNS").map_or(50, |n| n as usize);
    let hosts = Hosts::raise(&wanted).unwrap();
    hosts.set(&wanted.settings).unwrap();
    let rig = &hosts.rig;
    let (mut took, mut back) = (Vec::new(), Vec::new());
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    for run in 0..runs {
        let before = rig.healthy(HEAL).unwrap();
        let began = Instant::now();
        let mut load = Load::start(&hosts, &before.primary, 600).unwrap();
        thread::sleep(Duration::from_millis(3_000 + dice.below(2_000)));
        assert!(load.runs(), "pgbench ended");
        let server = rig.server().unwrap();
        let fault = rig.signal(rig.postmaster(&before.primary).unwrap(), Signal::SIGKILL).unwrap();
        let gap = rig.wait_for_write(ROUTED, fault, Some(&server), SOON).unwrap();
        drop(load);
        let after = rig.healthy(HEAL).unwrap();
        assert!(after.epoch > before.epoch && after.primary != before.primary, "run {run}: it was not failed over");
        let healed = fault.elapsed();
        let lost = lost_with(rig, &before);
        let writes = rig.writes(began);
        let gone = rig.lost(&after.primary, &writes).unwrap();
        assert!(gone.is_empty(), "run {run}: {} acknowledged writes are lost: {:?}", gone.len(), gone.first());
        assert_eq!(rig::two_writers(&writes), Duration::ZERO, "run {run}: two servers acknowledged writes at once");
        say(format!(
            "run {run}: writes after {:.0} ms, all well after {:.0} ms, {lost} bytes lost",
            ms(gap),
            ms(healed)
        ));
        assert_eq!(lost, 0, "run {run}: {} had flushed more", before.primary);
        took.push(ms(gap));
        back.push(ms(healed));
    }
    let values = serde_json::json!({
        "runs": runs, "rto_ms": spread(took), "all_well_ms": spread(back), "bytes_lost": 0,
    });
    keep("crashes that are failed over, ms (min, median, max)", &wanted, seed, 0.0, values);
}

/// What happens to a former primary while it rejoins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disturbance {
    None,
    /// Its agent is killed, and started again after a moment.
    Agent,
    /// The whole host is.
    Host,
    /// Its data directory is gone when it comes back, and its agent is killed while it is copied anew.
    DataGone,
}

impl Disturbance {
    fn choose(dice: &mut Dice) -> Disturbance {
        let all = [Disturbance::None, Disturbance::Agent, Disturbance::Host, Disturbance::DataGone];
        let only = std::env::var("ONLY").ok();
        if let Some(only) = all.into_iter().find(|what| only.as_deref() == Some(&format!("{what:?}"))) {
            return only;
        }
        match dice.below(10) {
            0..4 => Disturbance::None,
            4..6 => Disturbance::Agent,
            6..8 => Disturbance::Host,
            _ => Disturbance::DataGone,
        }
    }
}

fn tasks_done(rig: &Rig, host: &str, kind: &str) -> usize {
    let text = fs::read_to_string(rig.log(host, Role::Agent).unwrap()).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|l| l["message"] == "task done" && l["task"] == kind).count()
}

/// A complete data directory of that host, under whatever name it is at the moment.
fn has_data(rig: &Rig, host: &str) -> bool {
    let data = rig.data_dir(host).unwrap();
    let beside = |suffix: &str| data.with_file_name(format!("{}{suffix}", data.file_name().unwrap().display()));
    let kept = fs::read_dir(beside(".kept")).into_iter().flatten().flatten().map(|entry| entry.path().join("data"));
    let places = [data.clone(), beside(".old"), beside(".new")].into_iter().chain(kept);
    // A rename between two looks would hide it.
    let places: Vec<PathBuf> = places.map(|dir| dir.join("global/pg_control")).collect();
    (0..10).any(|_| places.iter().any(|control| control.exists()))
}

/// Until it is a standby that is well.
fn streams_again(rig: &Rig, host: &str, had_data: bool) {
    let until = Instant::now() + HEAL;
    loop {
        assert!(!had_data || has_data(rig, host), "{host} has no data directory any more");
        let status = rig.status();
        let member = status.as_ref().and_then(|s| s.members.iter().find(|m| m.member == host));
        if member.is_some_and(|m| m.role == "standby" && m.healthy) {
            return;
        }
        if Instant::now() >= until {
            let listing =
                Command::new("ls").args(["-la", "--time-style=full-iso"]).arg(rig.data_dir(host).unwrap()).output();
            let listing = String::from_utf8_lossy(&listing.unwrap().stdout).into_owned();
            rounds::keep_logs_of(rig, &log().with_file_name("rejoins-failed"));
            panic!("{host} is no standby again: {member:#?}\n{listing}");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// A primary with WAL that nobody else has is lost under load, `RUNS` times (100), comes back, and is disturbed while it rejoins (`ONLY`: in this way only). It is a
/// standby again each time, and no directory goes before there is a newer one.
#[test]
#[ignore = "an hour: make proof"]
fn former_primaries_stream_again_whatever_is_killed_meanwhile() {
    let Some(_alone) = alone() else { return };
    let (wanted, seed) = (Wanted { writers: true, ..wanted(false, true) }, seed());
    let mut dice = Dice::new(seed);
    let runs = number("RUNS").map_or(100, |n| n as usize);
    let hosts = Hosts::raise(&wanted).unwrap();
    if !wanted.settings.is_empty() {
        hosts.set(&wanted.settings).unwrap();
    }
    let rig = &hosts.rig;
    let (mut by_rewind, mut disturbed, mut rewinds, mut clones, mut not_needed) = (Vec::new(), Vec::new(), 0, 0, 0);
    for run in 0..runs {
        let before = rig.healthy(HEAL).unwrap();
        let began = Instant::now();
        let old = &before.primary;
        let what = Disturbance::choose(&mut dice);
        let done = (tasks_done(rig, old, "rewind"), tasks_done(rig, old, "clone"));
        let load = Load::start(&hosts, old, 600).unwrap();
        thread::sleep(Duration::from_millis(1_000));
        for pid in rig.backends(old, "walsender").unwrap() {
            rig.signal(pid, Signal::SIGSTOP).unwrap();
        }
        thread::sleep(Duration::from_millis(200 + dice.below(600)));
        let server = rig.server().unwrap();
        let fault = rig.kill_host(old).unwrap();
        let gap = rig.wait_for_write(ROUTED, fault, Some(&server), SOON).unwrap();
        drop(load);
        let had_data = what != Disturbance::DataGone;
        if !had_data {
            fs::remove_dir_all(rig.data_dir(old).unwrap()).unwrap();
        }
        let mut back = Instant::now();
        rig.boot_host(old).unwrap();
        if what != Disturbance::None {
            thread::sleep(Duration::from_millis(500 + dice.below(2_500)));
        }
        match what {
            Disturbance::None => {}
            Disturbance::Agent | Disturbance::DataGone => back = rig.kill_process(old, Role::Agent).unwrap(),
            Disturbance::Host => {
                rig.kill_host(old).unwrap();
                back = Instant::now();
                rig.boot_host(old).unwrap();
            }
        }
        streams_again(rig, old, had_data);
        let took = back.elapsed().as_secs_f64() * 1e3;
        let writes = rig.writes(began);
        assert_eq!(rig::two_writers(&writes), Duration::ZERO, "run {run}: two servers acknowledged writes at once");
        let rewound = tasks_done(rig, old, "rewind") - done.0;
        let cloned = tasks_done(rig, old, "clone") - done.1;
        let gap = gap.as_secs_f64() * 1e3;
        say(format!(
            "run {run}: {what:?}, writes after {gap:.0} ms, streams {took:.0} ms after it came back, {rewound} rewinds, {cloned} copies"
        ));
        rewinds += rewound;
        clones += cloned;
        not_needed += usize::from(rewound + cloned == 0);
        match what {
            Disturbance::None if rewound > 0 && cloned == 0 => by_rewind.push(took),
            _ => disturbed.push(took),
        }
    }
    if std::env::var_os("KEEP_LOGS").is_some() {
        rounds::keep_logs(&hosts, &log().with_file_name("rejoins"));
    }
    let figures = |list: Vec<f64>| (!list.is_empty()).then(|| spread(list));
    let values = serde_json::json!({
        "runs": runs, "undisturbed_by_rewind": by_rewind.len(), "streams_after_ms": figures(by_rewind),
        "others_ms": figures(disturbed), "rewinds": rewinds, "copies": clones, "neither": not_needed,
    });
    keep("former primaries stream again, ms (min, median, max)", &wanted, seed, 0.0, values);
}
