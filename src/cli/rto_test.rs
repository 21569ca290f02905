use expect_test::expect;

use super::*;
use crate::rpc::v1::{CommittedTimings, Setting, TimingsInUse};

fn of(profile: Profile) -> (Basis, Vec<Figure>) {
    let basis = of_profile(&profile.to_string(), &[]).unwrap();
    let rows = figures(profile, &basis.timings, &basis.settings, &Latencies::QUIET_MACHINE);
    (basis, rows)
}

fn reply(oldest: u64, committed: &[(u64, Profile)]) -> ProfileReply {
    let values = |profile| briefing::values(&Timings::of(profile));
    let committed = committed.iter().map(|(id, profile)| CommittedTimings {
        id: *id,
        profile: profile.to_string(),
        values: values(*profile),
    });
    ProfileReply {
        accepted: true,
        in_use: Some(TimingsInUse { oldest, committed: committed.collect() }),
        file_profile: "normal".into(),
        file_values: values(Profile::Normal),
        answered_by: "n1".into(),
        ..ProfileReply::default()
    }
}

fn none() -> SettingsReply {
    SettingsReply::default()
}

#[test]
fn settings_in_force_count_and_those_of_a_newer_version_are_passed_by() {
    let one = |key: &str, value: &str| Setting { key: key.into(), value: value.into(), ..Setting::default() };
    let settings = vec![one("crash_budget", "7"), one("a_newer_one", "x"), one("crash_window_ms", "soon")];
    let basis = in_force(reply(0, &[]), &SettingsReply { settings, ..none() }).unwrap();
    assert_eq!(basis.settings, Settings { crash_budget: 7, ..Settings::default() });
}

#[test]
fn every_line_fits_on_a_screen() {
    for profile in [Profile::Fast, Profile::Normal, Profile::Slow, Profile::Safe] {
        let (basis, rows) = of(profile);
        let all = format!("{}{}", text(&basis, &rows, Style::Plain), phases(&rows, Style::Plain));
        for line in all.lines() {
            assert!(line.chars().count() <= 120, "{} characters: {line}", line.chars().count());
        }
    }
}

#[test]
fn committed_timings_count_but_for_those_raft_started_with() {
    let basis = in_force(reply(1, &[(1, Profile::Fast)]), &none()).unwrap();
    assert_eq!((basis.profile, basis.source.as_str(), basis.warning), (Profile::Fast, "committed as timings 1", ""));
    assert_eq!(basis.timings, Timings::of(Profile::Fast).with_raft_of(&Timings::of(Profile::Normal)));
    let unsettled = in_force(reply(0, &[(1, Profile::Fast)]), &none()).unwrap();
    assert!(unsettled.warning.contains("older timings"), "{}", unsettled.warning);
}

#[test]
fn without_committed_timings_it_is_the_file_of_the_host_that_answered() {
    let basis = in_force(reply(0, &[]), &none()).unwrap();
    assert_eq!((basis.profile, basis.warning), (Profile::Normal, ""));
    assert_eq!(basis.source, "from the files of the hosts (that of n1)");
    assert_eq!(basis.timings, Timings::of(Profile::Normal));
}

#[test]
fn an_override_is_checked_like_one_of_the_file() {
    let set = |word: &str| of_profile("fast", &[word.to_owned()]).map(|b| b.timings.grant);
    assert_eq!(set("grant_ms=2000"), Ok(Duration::from_secs(2)));
    expect![[r#"
        [
            Err(
                "--set: grant_ms: T_grant >= (1+rho) * (T_hold/(1-rho) + T_kill) does not hold (1.300 s against 1.629 s)",
            ),
            Err(
                "--set grant=5: `grant` is no timing",
            ),
            Err(
                "--set grant_ms: write KEY=NUMBER, e.g. promote_ms=20000",
            ),
        ]
    "#]]
    .assert_debug_eq(&[set("grant_ms=1300"), set("grant=5"), set("grant_ms")]);
    assert!(of_profile("wide", &[]).is_err());
}

/// Programs read this: a name that is there stays.
#[test]
fn json_has_stable_names() {
    let (basis, rows) = of(Profile::Fast);
    let value: serde_json::Value = serde_json::from_str(&json(&basis, &rows)).unwrap();
    let keys = |v: &serde_json::Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    let path = |name: &str| value["paths"].as_array().unwrap().iter().find(|p| p["path"] == name).unwrap().clone();
    let paths: Vec<String> = rows.iter().map(|f| f.path.to_owned()).collect();
    let shown = format!(
        "{}\n{}\n{}\n{}\n{}\n",
        keys(&value),
        keys(&value["paths"][0]),
        keys(&value["paths"][0]["phases"][0]),
        keys(&value["classes"][0]),
        paths.join(" ")
    );
    expect![[r#"
        classes machine network paths pigsty_parameters profile round_trip settings source warning
        classes domain effect name network note path patroni phases scope statistics times
        average_ms best_ms formula phase worst_ms
        class detection name paths
        host-loss host-loss-leader host-frozen cut-off cut-off-leader cut-receive cut-receive-leader postgres-crash postgres-crash-failover crash-loop restart-fails restart-hangs crash-without-manager connections-refused postmaster-hangs postgres-hangs disk-hangs disk-stalls wal-volume-full data-volume-full data-lost agent-restarts agent-loss agent-hangs agent-livelock guard-loss guard-hangs manager-loss standby-loss promotion-fails promotion-hangs successor-lost successor-lost-early quorum-loss switchover failover-command cold-start
    "#]].assert_eq(&shown);
    expect![[r#"
        {
          "classes": [],
          "domain": "process",
          "effect": "outage",
          "name": "guard dies",
          "network": "same rack",
          "note": "its PostgreSQL is killed, not restarted in place",
          "path": "guard-loss",
          "patroni": null,
          "phases": [
            {
              "average_ms": 60.0,
              "best_ms": 10.0,
              "formula": "the whole process tree, verified; at most T_kill",
              "phase": "kill",
              "worst_ms": 300.0
            },
            {
              "average_ms": 7.75,
              "best_ms": 3.8,
              "formula": "the end made durable, a notice to the voters, one commit",
              "phase": "release",
              "worst_ms": 27.5
            },
            {
              "average_ms": 2.5,
              "best_ms": 1.7,
              "formula": "one commit ends the epoch",
              "phase": "end",
              "worst_ms": 7.0
            },
            {
              "average_ms": 10.5,
              "best_ms": 3.2,
              "formula": "a majority seals it durably and says where its WAL ends",
              "phase": "seal",
              "worst_ms": 51.0
            },
            {
              "average_ms": 0.0,
              "best_ms": 0.0,
              "formula": "up to collect for a member that was heard of just now",
              "phase": "collect",
              "worst_ms": 100.0
            },
            {
              "average_ms": 2.5,
              "best_ms": 1.7,
              "formula": "one commit grants to the successor",
              "phase": "grant",
              "worst_ms": 7.0
            },
            {
              "average_ms": 190.75,
              "best_ms": 120.3,
              "formula": "order, lease, end of the WAL receiver, promotion",
              "phase": "promote",
              "worst_ms": 401.5
            },
            {
              "average_ms": 5.25,
              "best_ms": 3.5,
              "formula": "two commits: on its timeline, open",
              "phase": "open",
              "worst_ms": 14.5
            },
            {
              "average_ms": 30.25,
              "best_ms": 10.1,
              "formula": "a router hears of it and connects",
              "phase": "route",
              "worst_ms": 75.5
            }
          ],
          "scope": "from the fault to the first acknowledged write that began after it, on a new connection to the read-write port of a router on a host without the fault",
          "statistics": "the median of each phase",
          "times": {
            "average_ms": 309.5,
            "best_ms": 154.3,
            "worst_ms": 984.0
          }
        }
    "#]].assert_eq(&render::json(&path("guard-loss")));
    expect![[r#"
        {
          "classes": [
            3
          ],
          "domain": "postgres",
          "effect": "outage",
          "name": "the postmaster hangs",
          "network": "same rack",
          "note": "killed, then like a crash; old sessions go on until then",
          "path": "postmaster-hangs",
          "patroni": {
            "detection": "active",
            "notices": false,
            "times": null
          },
          "phases": [
            {
              "average_ms": 3500.0,
              "best_ms": 3000.0,
              "formula": "a new connection gets no word for probe, begun every probe / 3",
              "phase": "detection",
              "worst_ms": 4000.0
            },
            {
              "average_ms": 60.0,
              "best_ms": 10.0,
              "formula": "the whole process tree, verified; at most T_kill",
              "phase": "kill",
              "worst_ms": 300.0
            },
            {
              "average_ms": 70.0,
              "best_ms": 40.0,
              "formula": "what the crash left is read, the manager orders the restart",
              "phase": "survey",
              "worst_ms": 150.0
            },
            {
              "average_ms": 100.0,
              "best_ms": 60.0,
              "formula": "the postmaster under the lease it still holds",
              "phase": "start",
              "worst_ms": 250.0
            },
            {
              "average_ms": 150.0,
              "best_ms": 5.0,
              "formula": "WAL since the last checkpoint, at light load",
              "phase": "replay",
              "worst_ms": 500.0
            },
            {
              "average_ms": 30.25,
              "best_ms": 10.1,
              "formula": "a router hears of it and connects",
              "phase": "route",
              "worst_ms": 75.5
            }
          ],
          "scope": "from the fault to the first acknowledged write that began after it, on a new connection to the read-write port of a router on a host without the fault",
          "statistics": "average over faults at any moment between two renewals and two heartbeats, each as likely; the fixed parts by their median",
          "times": {
            "average_ms": 3910.25,
            "best_ms": 3125.1,
            "worst_ms": 5275.5
          }
        }
    "#]].assert_eq(&render::json(&path("postmaster-hangs")));
}
