//! What a monitoring plugin that was made for Patroni says of a cluster: check_patroni as it is found elsewhere.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use matriarch::{demo::rig::Rig, rpc::v1::StatusReply};

use crate::{
    drivers::installed,
    pauses::{pause, resume},
    rest::told,
    stage::{HEAL, Promise, SOON, others, seen_down, until},
};

/// The codes of Nagios.
const OK: i32 = 0;
const WARNING: i32 = 1;
const CRITICAL: i32 = 2;
const UNKNOWN: i32 = 3;

/// Code and text of one check, which asks these hosts in this order.
fn check(rig: &Rig, hosts: &[&str], words: &[&str]) -> (i32, String) {
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-B", "-m", "check_patroni"]).env("PYTHONPATH", installed().join("python"));
    for host in hosts {
        let at = rig.contact(host).unwrap();
        command.arg("--endpoints").arg(format!("http://{}:{}", at.address, at.rest_port));
    }
    let output = command.args(words).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), said)
}

/// Each of these checks, the code that it ends with, and something that it says.
fn says(rig: &Rig, hosts: &[&str], checks: &[(&str, i32, &str)]) {
    for (words, code, part) in checks {
        let words: Vec<&str> = words.split(' ').collect();
        let (ended, said) = check(rig, hosts, &words);
        println!("check_patroni {} of {hosts:?}: {ended} {}", words.join(" "), said.trim_end());
        assert!(
            ended == *code && said.contains(part),
            "{words:?} of {hosts:?}: {ended}, {said}; expected {code}, {part}"
        );
    }
}

const COUNT: &str = "cluster_node_count --warning 3: --critical 2: --healthy-warning 3: --healthy-critical 2:";

pub fn every_check_of_check_patroni(rig: &Rig, before: &StatusReply) -> Promise {
    let began = Instant::now();
    if !installed().join("python/check_patroni").is_dir() || !Path::new("/usr/bin/python3").exists() {
        println!("check_patroni is not installed: passed over");
        return Promise::no_loss(began);
    }
    let primary = before.primary.as_str();
    let standbys = others(rig, &[primary]);
    let [one, two] = [standbys[0].as_str(), standbys[1].as_str()];
    until("every manager tells of all members", SOON, || {
        [primary, one, two].iter().all(|host| check(rig, &[host], &COUNT.split(' ').collect::<Vec<_>>()).0 == OK)
    });
    of_a_healthy_cluster(rig, primary, one, two);
    of_one_member(rig, primary, one, before.timeline);
    of_a_change_of_settings(rig, primary, one, two);

    pause(rig);
    says(rig, &[one], &[("cluster_is_in_maintenance", CRITICAL, "is_in_maintenance is 1")]);
    resume(rig);
    says(rig, &[one], &[("cluster_is_in_maintenance", OK, "is_in_maintenance is 0")]);

    let fault = rig.kill_host(two).unwrap();
    seen_down(rig, two);
    says(
        rig,
        &[two, primary, one],
        &[
            (COUNT, WARNING, "healthy_members=2"),
            ("cluster_has_replica --warning 2: --critical 1:", WARNING, "healthy_replica=1"),
            ("cluster_has_leader", OK, "has_leader=1"),
        ],
    );
    says(rig, &[two], &[("node_is_alive", UNKNOWN, "Connection failed for all provided endpoints")]);
    rig.boot_host(two).unwrap();
    rig.healthy(HEAL).unwrap();
    says(rig, &[primary], &[("cluster_has_replica --warning 2: --critical 1:", OK, "healthy_replica=2")]);
    Promise::no_loss(fault)
}

fn of_a_healthy_cluster(rig: &Rig, primary: &str, one: &str, two: &str) {
    for hosts in [[primary, one, two], [two, one, primary]] {
        says(
            rig,
            &hosts,
            &[
                (COUNT, OK, "healthy_members=3"),
                ("cluster_has_leader", OK, "The cluster has a running leader."),
                ("cluster_has_replica --warning 2: --critical 1: --max-lag 16MB", OK, "healthy_replica=2"),
                ("cluster_has_replica --sync-warning 1:", WARNING, "sync_replica=0"),
                ("cluster_has_scheduled_action", OK, "has_scheduled_actions is 0"),
                ("cluster_is_in_maintenance", OK, "is_in_maintenance is 0"),
            ],
        );
    }
}

fn of_one_member(rig: &Rig, primary: &str, standby: &str, timeline: u32) {
    let same = format!("node_tl_has_changed --timeline {timeline}");
    let older = format!("node_tl_has_changed --timeline {}", timeline - 1);
    let of_both = [
        ("node_is_alive", OK, "This node is alive"),
        ("node_is_pending_restart", OK, "doesn't have the pending restart flag"),
        ("node_patroni_version --patroni-version 4.1.4", OK, "Patroni's version is 4.1.4."),
        ("node_patroni_version --patroni-version 3.3.2", CRITICAL, "is not 3.3.2"),
        (same.as_str(), OK, "The timeline is still"),
        (older.as_str(), CRITICAL, "The expected timeline was"),
        ("node_is_leader --is-standby-leader", CRITICAL, "not a standby leader"),
    ];
    says(rig, &[primary], &of_both);
    says(rig, &[standby], &of_both);
    says(
        rig,
        &[primary],
        &[
            ("node_is_primary", OK, "This node is the primary"),
            ("node_is_leader", OK, "This node is a leader node."),
            ("node_is_replica", CRITICAL, "not a running replica"),
        ],
    );
    says(
        rig,
        &[standby],
        &[
            ("node_is_primary", CRITICAL, "not the primary"),
            ("node_is_leader", CRITICAL, "not a leader node"),
            ("node_is_replica --max-lag 16MB", OK, "the lag is under 16MB"),
            ("node_is_replica --is-async", OK, "asynchronous replica"),
            ("node_is_replica --is-sync", CRITICAL, "not a running synchronous replica"),
        ],
    );
}

/// The plugin remembers a hash of the document: it is the same on each host.
fn of_a_change_of_settings(rig: &Rig, primary: &str, one: &str, two: &str) {
    let state = rig.dir(primary).unwrap().join("check_patroni.state");
    let file = state.display();
    let (save, compare) = (
        format!("cluster_config_has_changed --state-file {file} --save"),
        format!("cluster_config_has_changed --state-file {file}"),
    );
    says(rig, &[primary], &[(&save, CRITICAL, "has changed")]);
    let unchanged = [(compare.as_str(), OK, "has not changed")];
    [primary, one, two].iter().for_each(|host| says(rig, &[host], &unchanged));
    let set = |body| {
        let login = format!("ops:{}", rig.superuser_password());
        let (status, why) = told(rig, one, ("PATCH", "/config"), Some(&login), body);
        assert_eq!(status, 200, "{why}");
    };
    set(r#"{"settings":{"crash_budget":7}}"#);
    until("the change is everywhere", SOON, || {
        [primary, one, two]
            .iter()
            .all(|host| check(rig, &[host], &compare.split(' ').collect::<Vec<_>>()).0 == CRITICAL)
    });
    says(rig, &[two], &[(&save, CRITICAL, "has changed"), (&compare, OK, "has not changed")]);
    set(r#"{"settings":{"crash_budget":null}}"#);
}
