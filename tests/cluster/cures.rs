//! Standbys whose data is of no use any more come back by themselves, one after the other.

use std::{fs, time::Instant};

use matriarch::{
    demo::rig::{Rig, Role},
    rpc::v1::StatusReply,
};
use nix::sys::signal::Signal;

use crate::stage::{HEAL, Promise, Step, others, tasks_done, until};

pub const STEPS: &[Step] =
    &[("damaged_standbys_are_copied_anew_one_after_the_other", damaged_standbys_are_copied_anew_one_after_the_other)];

/// When the last copy of a host began and ended, in milliseconds of the day, by its agent's log.
fn last_copy(rig: &Rig, host: &str) -> (f64, f64) {
    let text = fs::read_to_string(rig.log(host, Role::Agent).unwrap()).unwrap();
    let mut lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let copy = lines.rfind(|l| l["message"] == "task done" && l["task"] == "clone").unwrap();
    // `2026-11-27T18:36:14.275502Z`
    let time = copy["timestamp"].as_str().unwrap().split(['T', 'Z']).nth(1).unwrap().to_owned();
    let parts: Vec<f64> = time.split(':').map(|part| part.parse().unwrap()).collect();
    let ended = ((parts[0] * 60.0 + parts[1]) * 60.0 + parts[2]) * 1e3;
    (ended - copy["elapsed_ms"].to_string().trim_matches('"').parse::<f64>().unwrap(), ended)
}

fn damaged_standbys_are_copied_anew_one_after_the_other(rig: &Rig, before: &StatusReply) -> Promise {
    let began = Instant::now();
    let standbys = others(rig, &[&before.primary]);
    let copies: Vec<usize> = standbys.iter().map(|host| tasks_done(rig, host, "clone")).collect();
    for (host, file) in standbys.iter().zip(["pg_replslot", "global/pg_filenode.map"]) {
        let path = rig.data_dir(host).unwrap().join(file);
        if path.is_dir() {
            fs::remove_dir_all(&path).unwrap()
        } else {
            fs::remove_file(&path).unwrap()
        }
        rig.signal(rig.postmaster(host).unwrap(), Signal::SIGKILL).unwrap();
    }
    until("both are copied anew", HEAL, || {
        standbys.iter().zip(&copies).all(|(host, before)| tasks_done(rig, host, "clone") == before + 1)
    });
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&before.primary, before.epoch));
    let mut times: Vec<(f64, f64)> = standbys.iter().map(|host| last_copy(rig, host)).collect();
    times.sort_by(|a, b| a.0.total_cmp(&b.0));
    assert!(times[0].1 <= times[1].0, "two copies at one time: {times:?}");
    for host in &standbys {
        let kept = format!("{}.kept", rig.data_dir(host).unwrap().display());
        let names = || fs::read_dir(&kept).into_iter().flatten().map(|entry| entry.unwrap().file_name());
        let damaged = || names().any(|name| name.to_str().is_some_and(|name| name.starts_with("damaged-")));
        until("what was damaged is kept", HEAL, damaged);
    }
    Promise::no_failed_write(began)
}
