//! What people and scripts see of the command line: help, tables, errors, exit codes.

#![allow(clippy::unwrap_used)]

#[path = "cli/terminal.rs"]
mod terminal;
#[path = "cli/tree.rs"]
mod tree;
#[path = "cli/views.rs"]
mod views;

use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use expect_test::{Expect, expect};
use matriarch::{
    cli::render::{self, Check, Outcome, Style},
    domain::{
        MemberSettings, Profile, Settings, Timings,
        rto::{Latencies, Spread, figures, patroni::Class},
    },
    rpc::v1::{
        self, AcknowledgeReply, AcknowledgeRequest, ChangeMemberReply, ChangeMemberRequest, CheckMemberReply,
        CheckMemberRequest, CommittedTimings, Event, EventsRequest, ExplainReply, ExplainRequest, FailoverLossReply,
        FailoverRequest, Fence, HistoryReply, HistoryRequest, Incident, Lag, Layer, MaintenanceReply,
        MaintenanceRequest, MemberChange, MemberStatus, Obstacle, OperationReply, OperationStatus, ParametersReply,
        ParametersRequest, PauseReply, PauseRequest, ProfileReply, ProfileRequest, RaftSnapshotOf, RaftSnapshotReply,
        RaftSnapshotRequest, RaftStatusReply, RaftStatusRequest, ReachReply, ReachRequest, ReachedManager,
        RecoverReply, RecoverRequest, Reign, ReinitRequest, ReloadReply, ReloadRequest, Reloaded, RestartRequest,
        SetSettingsReply, SetSettingsRequest, Setting, SettingsHistoryReply, SettingsOutcome, SettingsReply,
        SettingsRequest, StartRequest, StatusReply, StatusRequest, StopReply, StopRequest, SwitchoverRequest,
        TimingsInUse, TransferLeaderReply, TransferLeaderRequest,
        admin_server::{Admin, AdminServer},
        event::{self, What},
    },
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

// ---- running the binary --------------------------------------------------------------------------------------

fn matriarch(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_matriarch"))
        .args(args)
        .env_clear()
        .env("MATRIARCH_CONFIG", "/nonexistent/matriarch.toml")
        .output()
        .expect("the binary was built for this test")
}

/// Exit code, stdout and stderr of one call, as text.
fn check(args: &[&str], expected: Expect) {
    let output = matriarch(args);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = output.status.code().unwrap_or(-1);
    expected.assert_eq(&format!("exit {code}\n{}{}", text(&output.stdout), text(&output.stderr)));
}

#[test]
fn a_configuration_of_patroni_is_imported_and_nothing_is_written_over() {
    check(
        &["import", "--help"],
        expect![[r#"
            exit 0
            Turn a configuration of Patroni into Matriarch's, and say what becomes of each key; asks nobody

            Usage: matriarch import [OPTIONS] <FILE>...

            Arguments:
              <FILE>...  patroni.yml of each host, or one that counts for all (with --members)

            Options:
                  --dynamic <FILE>                The dynamic configuration, as `patronictl show-config` prints
                                                  it; -: standard input [default: bootstrap.dcs of the first
                                                  file]
                  --members <NAME=HOST[:PORT],…>  Names and hosts of the members [default: name and
                                                  postgresql.connect_address of each file]
                  --primary <NAME>                The member that is primary now; it becomes the first [default:
                                                  the first given]
                  --member <NAME>                 Only the file of this member
                  --output <DIR>                  A directory for the files, the commands and the report; -:
                                                  print them [default: -]
                  --json                          Print JSON
              -h, --help                          Print help

            Passwords are written into files of mode 0600 below --output, and never printed.

            Exit codes:
              0  done; status: every member is healthy and the primary is open
              1  failed or refused; the reason was printed
              2  wrong usage or configuration; nothing was changed
              3  no manager could be reached
              4  status: the cluster answers and is degraded; matrix: somebody is not reached

            Examples:
              matriarch import pg1.yml pg2.yml pg3.yml --primary pg2 --output ./matriarch  # of three hosts
              patronictl show-config | matriarch import pg1.yml pg2.yml pg3.yml --dynamic - --json
        "#]],
    );
    let dir = tempfile::tempdir().unwrap();
    let (file, out) = (dir.path().join("p.yml"), dir.path().join("out"));
    let text = "scope: shop\nname: pg1\nfrobnicate: 1\npostgresql:\n  listen: 0.0.0.0:5432\n  bin_dir: /usr/lib/postgresql/15/bin\n  \
                authentication: {superuser: {username: postgres, password: hidden}}\n";
    std::fs::write(&file, text).unwrap();
    let members = "pg2=10.0.0.2,pg1=10.0.0.1,pg3=10.0.0.3";
    let import = |more: &[&str]| {
        let output = matriarch(&[&["import", file.to_str().unwrap(), "--members", members], more].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, _, told) = import(&["--output", out.to_str().unwrap()]);
    assert_eq!((code, told.as_str()), (Some(0), ""));
    let mode = |name: &str| std::fs::metadata(out.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("pg1/superuser.pass"), mode("pg3/secret"), mode("pg2/matriarch.toml")), (0o600, 0o600, 0o644));
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    assert_eq!((read("pg2/superuser.pass").as_str(), read("pg1/secret") == read("pg3/secret")), ("hidden\n", true));
    assert!(read("report.txt").contains("is not known\n  frobnicate\n"));
    let (code, _, told) = import(&["--output", out.to_str().unwrap()]);
    assert!(code == Some(1) && told.contains("nothing is written over"), "{told}");
    let (code, printed, told) = import(&["--member", "pg3"]);
    assert!(code == Some(0) && printed.contains("id = \"pg3\"") && told.contains("frobnicate"), "{printed}{told}");
    let (code, json, _) = import(&["--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, json["files"].as_array().unwrap().len()), (Some(0), 3));
    let (code, _, told) = import(&["--primary", "pg9"]);
    assert!(code == Some(2) && told.contains("--primary pg9"), "{told}");
    let (code, _, told) = import(&["--dynamic", "/nonexistent"]);
    assert!(code == Some(2) && told.contains("/nonexistent: can't be read"), "{told}");
}

#[test]
fn help_fits_on_a_screen_and_lists_the_exit_codes() {
    check(
        &["--help"],
        expect![[r#"
            exit 0
            PostgreSQL high availability without an external store

            Usage: matriarch <COMMAND>

            Commands:
              manager          Run the manager of this host: it decides together with the others
              agent            Run the agent of this host: it controls PostgreSQL and holds the lease
              router           Run a router: it leads clients to the primary
              status           Show members, primary, lag, and why something is not healthy
              topology         Show who follows whom, as a tree
              top              Show members, lag, WAL rate, operations and events on the whole screen; q ends it
              check            Check one thing for monitoring or a script; exits 0, 1, 2 or 3 as monitoring
                               plugins do
              matrix           Show who reaches whom: managers, agents, PostgreSQL, Raft, the lease
              support-bundle   Pack what whoever helps needs to know into one file, without secrets
              completion       Print the completion of commands and flags for a shell
              man              Print the man page, or write that of each command into a directory
              switchover       Make a standby the primary with the old primary's help; nothing is lost
              failover         Make a standby the primary without the old primary's help
              pause            Stop all decisions of the cluster, for work on it; the lease and what it protects
                               go on
              resume           Let a paused cluster decide again
              acknowledge      Let a cluster fail over again that has stopped to, after too many crashes in a
                               row
              maintenance      Leave a member alone, so that it is chosen for nothing, or do so no more
              restart          Stop and start PostgreSQL of a member; that of the primary stays primary
              stop             Stop PostgreSQL of a standby, or of the whole cluster, until it is started by
                               command
              start            Start PostgreSQL of what was stopped by command
              reinit           Copy the data of a standby anew; what it has is kept until the copy is complete
              reload           Write PostgreSQL's configuration anew and have it read, and say what waits for a
                               restart
              rolling-restart  Restart one member after the other, each when the one before is well again
              operations       Show operations, or take one back: scheduled, under way, over
              profile          Show the timings, or put those of another profile in force
              rto              Say how long writes stop, for each way to fail, by the timings in force
              explain          Say what the cluster considered, what holds it up, and what can be done
              history          Show who was primary from when to when and why it ended, and the last decisions
              events           Show decisions as they are made, with what holds the cluster up
              rules            Print the numbered rules by which the cluster decides and each host acts
              dsn              Print connection strings for applications, driver by driver; asks nobody
              raft             Work with the managers' Raft group
              member           Show, add, remove or replace members
              recover          Begin a new generation with what this host has, when a majority of the hosts is
                               gone for good
              preflight        Check whether this host is fit to run what its configuration asks for
              config           Check the configuration file; show or change the settings of the cluster
              import           Turn a configuration of Patroni into Matriarch's, and say what becomes of each
                               key; asks nobody
              demo             Run a whole cluster in a temporary directory and break it

            Options:
              -h, --help     Print help
              -V, --version  Print version

            Exit codes:
              0  done; status: every member is healthy and the primary is open
              1  failed or refused; the reason was printed
              2  wrong usage or configuration; nothing was changed
              3  no manager could be reached
              4  status: the cluster answers and is degraded; matrix: somebody is not reached

            Examples:
              matriarch status                               # members, primary, lag, and what is not healthy
              matriarch switchover --candidate n2
              matriarch config set parameters.work_mem=64MB  # on every host
              matriarch config set --help
        "#]],
    );
}

#[test]
fn help_of_switchover() {
    check(
        &["switchover", "--help"],
        expect![[r#"
            exit 0
            Make a standby the primary with the old primary's help; nothing is lost

            Usage: matriarch switchover [OPTIONS]

            Options:
                  --manager <HOST:PORT>  A manager to ask; may be given several times [default: those of the
                                         configuration file]
                  --cluster <NAME>       One of the clusters in $MATRIARCH_CLI_CONFIG, else
                                         ~/.config/matriarch/cli.toml
                  --config <FILE>        Configuration file [default: $MATRIARCH_CONFIG, else
                                         /etc/matriarch/matriarch.toml]
                  --candidate <MEMBER>   Who becomes primary [default: the best standby]
                  --scheduled <TIME>     Begin then and not at once: a time with its offset to UTC, e.g.
                                         2026-12-01T03:00:00+01:00, or `now`
                  --dry-run              Check all that a real one would, say what it would do, and change
                                         nothing
              -y, --yes                  Don't ask for confirmation
                  --no-wait              Don't wait until it is done (waiting is the default)
                  --wait                 Wait until it is done
                  --json                 Print JSON when it is done, and nothing before
                  --timeout <SECONDS>    How long to wait, in seconds; the operation itself goes on [default:
                                         180; a reinit and a rolling restart: until it is over]
                  --output <FORMAT>      Print it as table, json, yaml or tsv [default: table]
              -h, --help                 Print help

            Exit codes:
              0  done; status: every member is healthy and the primary is open
              1  failed or refused; the reason was printed
              2  wrong usage or configuration; nothing was changed
              3  no manager could be reached
              4  status: the cluster answers and is degraded; matrix: somebody is not reached

            Examples:
              matriarch switchover            # to the best standby, after a question
              matriarch switchover --candidate n2 --yes
              matriarch switchover --dry-run  # what it would do, and how long writes may wait
              matriarch switchover --scheduled 2030-12-01T03:00:00+01:00
        "#]],
    );
}

/// Offline: there is no configuration file here. The names of the rules stand in docs/rules.md.
#[test]
fn rules_are_printed_with_what_they_lead_to() {
    let output = matriarch(&["rules"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    let some =
        |line: &&str| ["RULE", " 230", " 410", " 480", " 520", " 550"].iter().any(|start| line.starts_with(start));
    let shown: Vec<String> = text.lines().filter(some).map(|line| format!("{line}\n")).collect();
    expect![[r#"
        RULE  WHEN, AND THEN WHAT                                                                     PROPOSES
         230  switchover: the primary has flushed, hold new writes                                    advance-operation, end-operation
         410  the old epoch is sealed and over: grant to the successor                                grant-primary, grant-running
         480  a node in the Raft group is nobody's: drop it                                           drop-node
        RULE  WHEN, AND THEN WHAT                                                                          ORDERS
         520  switchover, restart or hibernation: the primary flushes early                                checkpoint
         550  no data, data of no use, a rejoin by copy is due, or an operator wants one: clone            clone
    "#]]
    .assert_eq(&shown.concat());
    let rows = text.lines().filter(|line| line.trim_start().starts_with(|c: char| c.is_ascii_digit())).count();
    assert_eq!(rows, matriarch::policy::RULES.len() + matriarch::reconcile::RULES.len());
}

#[test]
fn rules_as_json_and_as_a_drawing() {
    let output = matriarch(&["rules", "--json"]);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let row =
        |table: &str, rule: u32| told[table].as_array().unwrap().iter().find(|r| r["rule"] == rule).unwrap().clone();
    assert_eq!(row("policy", 410)["then"], serde_json::json!(["grant-primary", "grant-running"]));
    assert_eq!(row("reconcile", 530)["then"], serde_json::json!(["start", "promote"]));
    let change = serde_json::json!({"from": "Standby", "to": "Promoting", "order": "promote", "rules": [530]});
    assert!(told["states"].as_array().unwrap().contains(&change), "{told}");
    let drawing = String::from_utf8(matriarch(&["rules", "--mermaid"]).stdout).unwrap();
    assert!(drawing.starts_with("stateDiagram-v2\n"), "{drawing}");
    assert!(drawing.contains("\n    Standby --> Promoting : promote (530)\n"), "{drawing}");
    assert_eq!(matriarch(&["rules", "--mermaid", "--json"]).status.code(), Some(2));
}

#[test]
fn wrong_usage_is_exit_code_2() {
    check(
        &["statsu"],
        expect![[r#"
            exit 2
            error: unrecognized subcommand 'statsu'

              tip: some similar subcommands exist: 'start', 'status'

            Usage: matriarch <COMMAND>

            For more information, try '--help'.
        "#]],
    );
    check(
        &["failover", "--yes"],
        expect![[r#"
        exit 2
        error: the following required arguments were not provided:
          --candidate <MEMBER>

        Usage: matriarch failover --candidate <MEMBER> --yes

        For more information, try '--help'.
    "#]],
    );
    check(
        &["status", "--manager", "10.0.0.1"],
        expect![[r#"
        exit 2
        matriarch: --manager 10.0.0.1: not HOST:PORT; write e.g. 10.0.0.1:7400 or [fd00::1]:7400
    "#]],
    );
    check(
        &["status"],
        expect![[r#"
            exit 2
            matriarch: no manager to ask: /nonexistent/matriarch.toml doesn't exist; use --manager HOST:PORT, --cluster NAME or --config FILE
        "#]],
    );
    check(
        &["router", "--config", "/nonexistent.toml"],
        expect![[r#"
        exit 2
        matriarch: /nonexistent.toml: can't be read (No such file or directory (os error 2)); create it (docs/install.md), or name another with --config
    "#]],
    );
    check(
        &["manager", "--log-level", "x=loud"],
        expect![[r#"
        exit 2
        matriarch: `x=loud` is no log level (error parsing level filter: expected one of "off", "error", "warn", "info", "debug", "trace", or a number 0-5); write e.g. info or info,matriarch::raft=debug
    "#]],
    );
    check(
        &["config", "check"],
        expect![[r#"
        exit 2
        matriarch: /nonexistent/matriarch.toml: can't be read (No such file or directory (os error 2)); create it (docs/install.md), or name another with --config
    "#]],
    );
}

#[test]
fn nobody_reached_names_each_manager_and_why() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let output = matriarch(&["status", "--manager", &address, "--manager", "no-such-host.invalid:1"]);
    assert_eq!(output.status.code(), Some(3));
    let told = String::from_utf8(output.stderr).unwrap();
    let first = format!("matriarch: no manager could be reached ({address}: Connection refused (os error 111); ");
    assert!(told.starts_with(&first), "{told}");
    assert!(told.contains("no-such-host.invalid:1: "), "{told}");
}

#[test]
fn the_agent_refuses_root() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can be refused");
        return;
    }
    let output = matriarch(&["agent", "--config", "/nonexistent.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("matriarch: the agent refuses to run as root"));
}

#[test]
fn the_example_file_passes_config_check_but_for_its_secrets() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/matriarch.toml.example");
    let output = matriarch(&["config", "check", "--config", example.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains(": cluster.secret_file: /etc/matriarch/secret can't be read"), "{told}");
    assert_eq!(told.lines().count(), 1);
}

// ---- tables --------------------------------------------------------------------------------------------------

fn member(name: &str, role: &str, lsn: &str) -> MemberStatus {
    MemberStatus {
        member: name.to_owned(),
        role: role.to_owned(),
        state: "running".to_owned(),
        timeline: 3,
        lsn: lsn.to_owned(),
        lag_bytes: 0,
        lag_known: true,
        epoch: 4,
        raft_role: "follower".to_owned(),
        postgres: format!("{name}:5432"),
        manager: format!("{name}:7400"),
        guard: "guarding".to_owned(),
        healthy: true,
        server_version: 150_004,
        ..MemberStatus::default()
    }
}

fn fence(method: &str, kill_micros: u64, [memory, priority, oom]: [&str; 3]) -> Fence {
    let text = str::to_owned;
    Fence { method: text(method), kill_micros, memory: text(memory), priority: text(priority), oom: text(oom) }
}

fn healthy() -> StatusReply {
    let mut members = vec![
        member("n1", "primary", "0/50001A8"),
        member("n2", "standby", "0/50001A8"),
        member("n3", "standby", "0/5000060"),
    ];
    members[0].lease_remaining_ms = 2_310;
    members[1].raft_role = "leader".to_owned();
    for member in &mut members[1..] {
        (member.flushed, member.replayed) = (Some(Lag { bytes: 0, ms: Some(0) }), Some(Lag { bytes: 0, ms: Some(0) }));
    }
    members[2].lag_bytes = 328;
    members[2].replayed = Some(Lag { bytes: 328, ms: Some(1_300) });
    members[0].fence = Some(fence("cgroup.kill", 8_486, ["locked", "real-time", "-1000"]));
    let needs = ["unavailable: needs CAP_IPC_LOCK", "nice -20", "unavailable: needs CAP_SYS_RESOURCE"];
    members[1].fence = Some(fence("walk of /proc, cgroup.kill unavailable: needs cgroup v2", 0, needs));
    StatusReply {
        cluster: "main".to_owned(),
        cluster_id: "0199c0de".to_owned(),
        generation: 1,
        epoch: 4,
        primary: "n1".to_owned(),
        lock: "open".to_owned(),
        profile: "normal".to_owned(),
        members,
        warnings: vec!["cluster.insecure is on: traffic between the hosts is not encrypted".to_owned()],
        leader: "n2".to_owned(),
        answered_by: "n1".to_owned(),
        timeline: 3,
        system_identifier: 7_400_000_000_000_000_001,
        ..StatusReply::default()
    }
}

fn degraded() -> StatusReply {
    let mut reply = healthy();
    reply.lock = "fenced".to_owned();
    reply.primary = String::new();
    reply.epoch = 5;
    reply.members[0] = MemberStatus {
        member: "n1".to_owned(),
        role: "none".to_owned(),
        state: "silent".to_owned(),
        raft_role: "unknown".to_owned(),
        postgres: "n1:5432".to_owned(),
        problems: vec!["no report for 4.2 s".to_owned()],
        ..MemberStatus::default()
    };
    reply.members[2].healthy = false;
    reply.members[2].state = "cloning".to_owned();
    reply.members[2].lag_known = false;
    reply.members[2].progress = "12 of 40 MiB from n2".to_owned();
    reply.holds = vec!["promises of n1, n3 end in 1.2 s".to_owned()];
    reply.operation = Some(operation(7, "stop"));
    reply.last_operation = Some(OperationStatus { finished: true, reason: "n2 lags".to_owned(), ..operation(6, "") });
    reply
}

fn operation(id: u64, phase: &str) -> OperationStatus {
    OperationStatus {
        id,
        kind: "switchover".to_owned(),
        from: "n1".to_owned(),
        to: "n2".to_owned(),
        phase: phase.to_owned(),
        ..OperationStatus::default()
    }
}

#[test]
fn status_of_a_healthy_cluster() {
    assert!(render::is_healthy(&healthy()));
    expect![[r#"
        Cluster main: healthy
          primary n1 (lock open)  epoch 4  timeline 3  profile normal
          Raft leader n2  answered by n1  id 0199c0de  generation 1

        MEMBER  ROLE     STATE    TL  LSN        FLUSH LAG   REPLAY LAG  EPOCH  RAFT      LEASE  GUARD     POSTGRES
        n1      primary  running   3  0/50001A8          -            -      4  follower  2.3 s  guarding  n1:5432
        n2      standby  running   3  0/50001A8          0            0      4  leader        -  guarding  n2:5432
        n3      standby  running   3  0/5000060          0  328 B 1.3 s      4  follower      -  guarding  n3:5432

        Fence n1: cgroup.kill (8.4 ms for 100 processes); guard: memory locked, priority real-time, OOM score -1000
        Fence n2: walk of /proc, cgroup.kill unavailable: needs cgroup v2; guard: memory unavailable: needs CAP_IPC_LOCK, priority nice -20, OOM score unavailable: needs CAP_SYS_RESOURCE

        Warning: cluster.insecure is on: traffic between the hosts is not encrypted
    "#]]
    .assert_eq(&render::status(&healthy(), Style::Plain));
}

#[test]
fn status_says_what_is_wrong_and_what_is_going_on() {
    assert!(!render::is_healthy(&degraded()));
    expect![[r#"
        Cluster main: no open primary
          primary none (lock fenced)  epoch 5  timeline 3  profile normal
          Raft leader n2  answered by n1  id 0199c0de  generation 1

        MEMBER  ROLE     STATE    TL  LSN        FLUSH LAG  REPLAY LAG  EPOCH  RAFT      LEASE  GUARD     POSTGRES
        n1      none     silent    -  -                  ?           ?      -  unknown       -  -         n1:5432
        n2      standby  running   3  0/50001A8          0           0      4  leader        -  guarding  n2:5432
        n3      standby  cloning   3  0/5000060          ?           ?      4  follower      -  guarding  n3:5432

        n1: no report for 4.2 s
        n3: 12 of 40 MiB from n2

        Fence n2: walk of /proc, cgroup.kill unavailable: needs cgroup v2; guard: memory unavailable: needs CAP_IPC_LOCK, priority nice -20, OOM score unavailable: needs CAP_SYS_RESOURCE

        Running: switchover 7 from n1 to n2, phase stop

        Last operation: switchover 6 from n1 to n2 failed: n2 lags

        Hold: promises of n1, n3 end in 1.2 s

        Warning: cluster.insecure is on: traffic between the hosts is not encrypted
    "#]]
    .assert_eq(&render::status(&degraded(), Style::Plain));
}

#[test]
fn colours_change_nothing_but_colours() {
    let coloured = render::status(&degraded(), Style::Colour);
    assert!(coloured.contains("\x1b[31mn1\x1b[0m"));
    let mut plain = coloured;
    for code in ["\x1b[0m", "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[33m"] {
        plain = plain.replace(code, "");
    }
    let trimmed: String = plain.lines().map(|l| format!("{}\n", l.trim_end())).collect();
    assert_eq!(trimmed, render::status(&degraded(), Style::Plain));
}

#[test]
fn status_says_what_each_layer_does() {
    let layer = |name: &str, state: &str| Layer { name: name.to_owned(), state: state.to_owned() };
    let mut reply = healthy();
    reply.members[0].layers = vec![layer("kernel lease", "active"), layer("watchdog", "off")];
    reply.members[1].layers = vec![layer("kernel lease", "unavailable: needs CAP_NET_ADMIN")];
    reply.reader = "n2".to_owned();
    reply.layers = vec![layer("stonith", "ready; last: STONITH of n3, which held epoch 3, succeeded: after 12 ms")];
    let text = render::status(&reply, Style::Plain);
    let (_, layers) = text.split_once("Layers\n").unwrap();
    expect![[r#"
          n1: kernel lease active, watchdog off
          n2: kernel lease unavailable: needs CAP_NET_ADMIN
          cluster: stonith ready; last: STONITH of n3, which held epoch 3, succeeded: after 12 ms
          address for standbys: lent to n2

        Warning: cluster.insecure is on: traffic between the hosts is not encrypted
    "#]]
    .assert_eq(layers);
    let json: serde_json::Value = serde_json::from_str(&render::status_json(&reply)).unwrap();
    assert_eq!(json["members"][0]["layers"]["kernel lease"], "active");
    assert_eq!(json["reader"], "n2");
    assert_eq!(json["layers"]["stonith"], reply.layers[0].state.as_str());
}

#[test]
fn status_before_the_cluster_is_founded() {
    let reply = StatusReply { answered_by: "n1".to_owned(), ..StatusReply::default() };
    expect![[r#"
        Cluster (unnamed): no open primary
          primary none (lock unknown)  epoch 0  timeline 0  profile ?
          Raft leader unknown  answered by n1  id (not founded yet)  generation 0

        MEMBER  ROLE  STATE  TL  LSN  FLUSH LAG  REPLAY LAG  EPOCH  RAFT  LEASE  GUARD  POSTGRES
    "#]]
    .assert_eq(&render::status(&reply, Style::Plain));
}

#[test]
fn json_says_null_for_what_is_not_known() {
    let mut reply = degraded();
    reply.members.truncate(1);
    expect![[r#"
        {
          "cluster": "main",
          "cluster_id": "0199c0de",
          "generation": 1,
          "system_identifier": "7400000000000000001",
          "healthy": false,
          "primary": null,
          "lock": "fenced",
          "epoch": 5,
          "timeline": 3,
          "profile": "normal",
          "failsafe": null,
          "commits": null,
          "raft_leader": "n2",
          "reader": null,
          "answered_by": "n1",
          "members": [
            {
              "member": "n1",
              "role": "none",
              "state": "silent",
              "healthy": false,
              "problems": [
                "no report for 4.2 s"
              ],
              "progress": null,
              "upstream": null,
              "note": null,
              "timeline": null,
              "lsn": null,
              "lag_bytes": null,
              "lag": null,
              "epoch": 0,
              "raft_role": "unknown",
              "lease_remaining_ms": null,
              "guard": null,
              "fence": null,
              "postgres": "n1:5432",
              "manager": "",
              "server_version": null,
              "layers": {},
              "room": null,
              "archive": null
            }
          ],
          "banners": [],
          "holds": [
            "promises of n1, n3 end in 1.2 s"
          ],
          "warnings": [
            "cluster.insecure is on: traffic between the hosts is not encrypted"
          ],
          "operation": {
            "id": 7,
            "kind": "switchover",
            "from": "n1",
            "to": "n2",
            "phase": "stop",
            "finished": false,
            "succeeded": false,
            "reason": null
          },
          "last_operation": {
            "id": 6,
            "kind": "switchover",
            "from": "n1",
            "to": "n2",
            "phase": "",
            "finished": true,
            "succeeded": false,
            "reason": "n2 lags"
          },
          "layers": {}
        }
    "#]]
    .assert_eq(&render::status_json(&reply));
}

#[test]
fn explain_lists_holds_first() {
    let reply = ExplainReply {
        banners: vec![],
        considered: vec!["rule 210 failover: primary n1 is silent for 4.2 s".to_owned()],
        holds: vec!["promises of n1, n3 end in 1.2 s".to_owned()],
        next: Vec::new(),
        answered_by: "n2".to_owned(),
        incidents: vec!["epoch 4: n1 fenced".to_owned()],
    };
    expect![[r#"
        What holds it up:
          - promises of n1, n3 end in 1.2 s
        What was considered:
          - rule 210 failover: primary n1 is silent for 4.2 s
        What you can do:
          nothing needs to be done
        What happened lately:
          - epoch 4: n1 fenced
        (answered by n2)
    "#]]
    .assert_eq(&render::explain(&reply));
}

#[test]
fn preflight_table() {
    let check = |name: &str, outcome, detail: &str| Check { name: name.to_owned(), outcome, detail: detail.to_owned() };
    let checks = [
        check("user", Outcome::Ok, "postgres"),
        check("fsync manager.state_dir", Outcome::Warn, "p50 12.00 ms, max 30.00 ms"),
        check("port postgresql", Outcome::Fail, "10.0.0.1:5432 is in use"),
    ];
    expect![[r#"
        RESULT  CHECK                    FOUND
        ok      user                     postgres
        WARN    fsync manager.state_dir  p50 12.00 ms, max 30.00 ms
        FAIL    port postgresql          10.0.0.1:5432 is in use

        This host is not fit: 1 failed, 1 warned, 1 passed.
    "#]]
    .assert_eq(&render::preflight(&checks, Style::Plain));
}

// ---- operations against a made-up manager --------------------------------------------------------------------

/// Accepts operation 7, shows two phases, then the outcome.
#[derive(Clone)]
struct Manager {
    looks: Arc<AtomicU32>,
    outcome: Result<(), &'static str>,
    refusal: Option<&'static str>,
}

impl Manager {
    fn operation(&self) -> Response<OperationReply> {
        let (from, to) = ("n1".to_owned(), "n2".to_owned());
        let reason = self.refusal.unwrap_or_default().to_owned();
        Response::new(OperationReply {
            id: 7,
            from,
            to,
            accepted: self.refusal.is_none(),
            reason,
            undecided: false,
            past: false,
            taken: false,
        })
    }
}

fn founded() -> Incident {
    Incident { revision: 3, epoch: 0, what: "founded".into(), rule: 10, evidence: None }
}

#[tonic::async_trait]
impl Admin for Manager {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        // Every manager passes on what the leader says.
        let mut reply = StatusReply { answered_by: healthy().leader, ..healthy() };
        match self.looks.fetch_add(1, Ordering::Relaxed) {
            0 => {}
            1 => reply.operation = Some(operation(7, "checkpoint")),
            2 => reply.operation = Some(operation(7, "stop")),
            _ => {
                let reason = self.outcome.err().unwrap_or_default().to_owned();
                let succeeded = self.outcome.is_ok();
                reply.last_operation = Some(OperationStatus { finished: true, succeeded, reason, ..operation(7, "") });
            }
        }
        Ok(Response::new(reply))
    }

    async fn history(&self, _: Request<HistoryRequest>) -> Result<Response<HistoryReply>, Status> {
        let reign = Reign { epoch: 1, member: "n1".into(), timeline: 2, opened_ms: Some(1), ..Reign::default() };
        let (reigns, incidents) = (vec![reign], vec![founded()]);
        Ok(Response::new(HistoryReply { reigns, incidents, answered_by: "n1".into(), revision: 4, losses: Vec::new() }))
    }

    type EventsStream = tokio_stream::Iter<std::vec::IntoIter<Result<Event, Status>>>;

    async fn events(&self, request: Request<EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        let missed = request.into_inner().after.map(|after| What::Missed(event::Missed { after, before: 3 }));
        let told = missed.into_iter().chain([What::Decision(founded())]);
        let events: Vec<_> = told.map(|what| Ok(Event { what: Some(what) })).collect();
        Ok(Response::new(tokio_stream::iter(events)))
    }

    async fn acknowledge(&self, _: Request<AcknowledgeRequest>) -> Result<Response<AcknowledgeReply>, Status> {
        let reason = self.refusal.unwrap_or_default().to_owned();
        Ok(Response::new(AcknowledgeReply { done: self.refusal.is_none(), failovers: 3, reason }))
    }

    async fn failover_loss(&self, _: Request<FailoverRequest>) -> Result<Response<FailoverLossReply>, Status> {
        let says = "it lacks 2048 bytes".to_owned();
        Ok(Response::new(FailoverLossReply { bytes: Some(2048), transactions: Some(2), says, reason: String::new() }))
    }

    async fn profile(&self, request: Request<ProfileRequest>) -> Result<Response<ProfileReply>, Status> {
        let request = request.into_inner();
        let set = |id, values| CommittedTimings { id, profile: "fast".to_owned(), values };
        let values = matriarch::rpc::briefing::values(&Timings::of(Profile::Fast));
        Ok(Response::new(ProfileReply {
            accepted: self.refusal.is_none(),
            reason: self.refusal.unwrap_or_default().to_owned(),
            in_use: Some(TimingsInUse {
                oldest: 0,
                committed: if request.profile.is_empty() { vec![] } else { vec![set(1, values)] },
            }),
            file_profile: "normal".to_owned(),
            file_values: request.overrides,
            answered_by: "n1".to_owned(),
        }))
    }

    async fn settings(&self, _: Request<SettingsRequest>) -> Result<Response<SettingsReply>, Status> {
        Ok(Response::new(settings(4, &[])))
    }

    async fn settings_history(&self, _: Request<SettingsRequest>) -> Result<Response<SettingsHistoryReply>, Status> {
        Ok(Response::new(SettingsHistoryReply { version: 4, ..SettingsHistoryReply::default() }))
    }

    async fn postgres_settings(&self, _: Request<ParametersRequest>) -> Result<Response<ParametersReply>, Status> {
        Err(Status::unavailable("no agent here"))
    }

    /// Of version 4, and keys and values are whatever they like, but for `colour`.
    async fn set_settings(&self, request: Request<SetSettingsRequest>) -> Result<Response<SetSettingsReply>, Status> {
        let request = request.into_inner();
        assert!(!request.request_id.is_empty());
        let (outcome, reason) = match self.refusal {
            Some(refusal) => (SettingsOutcome::Refused, refusal.to_owned()),
            None if request.version != 4 => {
                let reason = format!("the settings are of version 4 now, not of {}", request.version);
                (SettingsOutcome::Stale, reason)
            }
            None if request.set.contains_key("colour") => {
                (SettingsOutcome::Impossible, "`colour` is no setting, there is crash_budget".to_owned())
            }
            None => (SettingsOutcome::InForce, String::new()),
        };
        let set: Vec<(&str, &str)> = request.set.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let settings = Some(settings(5, &set));
        Ok(Response::new(SetSettingsReply { outcome: outcome.into(), reason, settings, warnings: Vec::new() }))
    }

    async fn explain(&self, _: Request<ExplainRequest>) -> Result<Response<ExplainReply>, Status> {
        Err(Status::unavailable("no leader"))
    }

    async fn switchover(&self, request: Request<SwitchoverRequest>) -> Result<Response<OperationReply>, Status> {
        let request = request.into_inner();
        let to = request.to.unwrap();
        assert_eq!((to.cluster_id.as_str(), to.generation, to.sender.as_str()), ("0199c0de", 1, "admin"));
        assert!(!request.request_id.is_empty());
        Ok(self.operation())
    }

    async fn failover(&self, request: Request<FailoverRequest>) -> Result<Response<OperationReply>, Status> {
        match request.into_inner().candidate.as_str() {
            "n9" => Err(Status::invalid_argument("n9 is no member")),
            _ => Ok(self.operation()),
        }
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderReply>, Status> {
        let (leader, member) = ("n1".to_owned(), request.into_inner().member);
        let done = member == "n2";
        let reason = if done { String::new() } else { format!("it is no voter: {member}") };
        Ok(Response::new(TransferLeaderReply { done, leader, reason }))
    }

    async fn pause(&self, request: Request<PauseRequest>) -> Result<Response<PauseReply>, Status> {
        let request = request.into_inner();
        assert!(!request.request_id.is_empty());
        let done = !request.on || request.reason == "new kernel";
        let reason = if done { String::new() } else { "n3 runs a version that knows format 1".to_owned() };
        Ok(Response::new(PauseReply { done, reason, paused: request.on && done }))
    }

    async fn stop(&self, request: Request<StopRequest>) -> Result<Response<StopReply>, Status> {
        let asked = request.into_inner();
        let refused = asked.member == "n1";
        let warnings = if asked.dry_run { vec!["nobody can take over".to_owned()] } else { Vec::new() };
        let reason = if refused { "n1 is the primary".to_owned() } else { String::new() };
        let id = if asked.member.is_empty() && !asked.dry_run { 7 } else { 0 };
        Ok(Response::new(StopReply { done: !refused, reason, warnings, already: false, id, to: "n1".to_owned() }))
    }

    async fn start(&self, _: Request<StartRequest>) -> Result<Response<StopReply>, Status> {
        Ok(Response::new(StopReply { done: true, already: true, ..StopReply::default() }))
    }

    async fn maintenance(&self, request: Request<MaintenanceRequest>) -> Result<Response<MaintenanceReply>, Status> {
        let request = request.into_inner();
        let done = !request.on || request.member != "n1";
        let refusal = "n1 is the primary: `matriarch switchover` moves it first";
        let reason = if done { String::new() } else { refusal.to_owned() };
        Ok(Response::new(MaintenanceReply { done, reason }))
    }

    async fn reinit(&self, request: Request<ReinitRequest>) -> Result<Response<OperationReply>, Status> {
        let request = request.into_inner();
        let OperationReply { id, accepted, reason, .. } = self.operation().into_inner();
        let (from, to) = (request.from, request.member);
        Ok(Response::new(OperationReply { id, from, to, accepted, reason, undecided: false, ..Default::default() }))
    }

    async fn reload(&self, request: Request<ReloadRequest>) -> Result<Response<ReloadReply>, Status> {
        let told = |member: String| Reloaded {
            done: member == "n1",
            reason: "it is down".to_owned(),
            member,
            pending: vec![],
        };
        let members = request.into_inner().members.into_iter().map(told).collect();
        Ok(Response::new(ReloadReply { members }))
    }

    async fn restart(&self, request: Request<RestartRequest>) -> Result<Response<OperationReply>, Status> {
        let request = request.into_inner();
        let OperationReply { id, accepted, reason, .. } = self.operation().into_inner();
        let (from, to) = ("n1".to_owned(), request.member);
        Ok(Response::new(OperationReply {
            id,
            from,
            to,
            accepted,
            reason,
            undecided: false,
            past: false,
            taken: false,
        }))
    }

    async fn change_member(
        &self,
        request: Request<ChangeMemberRequest>,
    ) -> Result<Response<ChangeMemberReply>, Status> {
        let request = request.into_inner();
        let replaces = matches!(request.change(), MemberChange::Replace | MemberChange::DryReplace);
        let done = replaces && request.member == "n2";
        let reason = if done { String::new() } else { format!("{} is no member", request.member) };
        Ok(Response::new(ChangeMemberReply { done, reason, ..ChangeMemberReply::default() }))
    }

    async fn raft_status(&self, _: Request<RaftStatusRequest>) -> Result<Response<RaftStatusReply>, Status> {
        Ok(Response::new(RaftStatusReply { answered_by: "n1".into(), leader: "n1".into(), ..Default::default() }))
    }

    async fn raft_snapshot(
        &self,
        request: Request<RaftSnapshotRequest>,
    ) -> Result<Response<RaftSnapshotReply>, Status> {
        let member = request.into_inner().member;
        let problem = if member == "n7" { "it is no node of the Raft group".to_owned() } else { String::new() };
        Ok(Response::new(RaftSnapshotReply { nodes: vec![RaftSnapshotOf { member, problem, ..Default::default() }] }))
    }

    async fn check_member(&self, request: Request<CheckMemberRequest>) -> Result<Response<CheckMemberReply>, Status> {
        let may_go = request.into_inner().member == "n2";
        let obstacle = Obstacle {
            kind: "primary".into(),
            says: "n1 is primary".into(),
            advice: "make another member primary first: `matriarch switchover`".into(),
        };
        let obstacles = if may_go { Vec::new() } else { vec![obstacle] };
        let notes = vec!["n2 leads the managers".to_owned()];
        Ok(Response::new(CheckMemberReply { may_go, obstacles, notes, answered_by: "n1".into() }))
    }

    async fn reach(&self, _: Request<ReachRequest>) -> Result<Response<ReachReply>, Status> {
        let other = |member: &str| ReachedManager { member: member.into(), rtt_us: Some(900), ..Default::default() };
        let managers = vec![other("n1"), other("n3")];
        let (agent_ms, raft_ms, lease_ms) = (Some(200), Some(10), Some(300));
        let (answered_by, leader) = ("n2".to_owned(), "n2".to_owned());
        Ok(Response::new(ReachReply {
            answered_by,
            leader,
            managers,
            agent_ms,
            raft_ms,
            lease_ms,
            ..Default::default()
        }))
    }

    async fn operations(&self, _: Request<v1::OperationsRequest>) -> Result<Response<v1::OperationsReply>, Status> {
        let state = if self.outcome.is_ok() { "succeeded" } else { "failed" }.to_owned();
        let reason = self.outcome.err().unwrap_or("restarted: n2, n3, n1; left: nobody").to_owned();
        let one = v1::OperationRecord { id: 9, kind: "rolling-restart".into(), state, reason, ..Default::default() };
        Ok(Response::new(v1::OperationsReply { operations: vec![one], answered_by: "n1".into() }))
    }

    async fn cancel_operation(
        &self,
        request: Request<v1::CancelOperationRequest>,
    ) -> Result<Response<v1::CancelOperationReply>, Status> {
        let done = request.into_inner().id == 9;
        let (reason, says) = ("there is no such operation".to_owned(), "it does not begin".to_owned());
        Ok(Response::new(v1::CancelOperationReply { done, reason, says }))
    }

    async fn schedule_operation(
        &self,
        request: Request<v1::ScheduleOperationRequest>,
    ) -> Result<Response<OperationReply>, Status> {
        let request = request.into_inner();
        assert!(!request.request_id.is_empty());
        let accepted = request.at_ms == 1_895_878_000_000;
        let reason = "it is over".to_owned();
        Ok(Response::new(OperationReply { id: 9, accepted, reason, ..Default::default() }))
    }

    async fn plan_operation(
        &self,
        request: Request<v1::PlanOperationRequest>,
    ) -> Result<Response<v1::PlanOperationReply>, Status> {
        let request = request.into_inner();
        let (from, to, says) = ("n1".to_owned(), request.member, vec!["n2 lacks 10 bytes".to_owned()]);
        let (possible, reason) = (to != "n9", "n9 is no member".to_owned());
        let (lag_bytes, at_most_ms) = (Some(10), 75_000);
        Ok(Response::new(v1::PlanOperationReply { possible, reason, from, to, says, lag_bytes, at_most_ms }))
    }

    async fn rolling_restart(
        &self,
        request: Request<v1::RollingRestartRequest>,
    ) -> Result<Response<OperationReply>, Status> {
        let request = request.into_inner();
        assert!(request.pending && !request.standbys && !request.in_place);
        Ok(Response::new(OperationReply { id: 9, accepted: true, ..Default::default() }))
    }

    async fn recover(&self, request: Request<RecoverRequest>) -> Result<Response<RecoverReply>, Status> {
        let request = request.into_inner();
        let (cluster, member) = ("main".to_owned(), "n2".to_owned());
        let mut reply = RecoverReply { cluster, member, ..RecoverReply::default() };
        match (request.confirm.as_str(), request.force) {
            (_, false) => reply.reason = "n1 is the Raft leader".to_owned(),
            ("", true) => reply.says = vec!["generation 2 begins on n2 alone".to_owned()],
            ("main", true) => reply.done = true,
            (other, true) => panic!("`{other}` was sent"),
        }
        Ok(Response::new(reply))
    }
}

/// Serves a made-up manager for the length of `body`, which gets its address.
fn with_manager(outcome: Result<(), &'static str>, refusal: Option<&'static str>, body: impl FnOnce(SocketAddr)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let manager = Manager { looks: Arc::default(), outcome, refusal };
    let server = tonic::transport::Server::builder().add_service(AdminServer::new(manager));
    runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    body(address);
}

fn lines(output: &Output) -> Vec<String> {
    // Times vary; everything else is fixed.
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    text.lines().map(|l| l.chars().map(|c| if c.is_ascii_digit() { '#' } else { c }).collect()).collect()
}

#[test]
fn the_raft_leader_is_moved_or_the_reason_is_given() {
    with_manager(Ok(()), None, |address| {
        let transfer = |member: &str| matriarch(&["raft", "transfer", member, "--manager", &address.to_string()]);
        let moved = transfer("n2");
        assert_eq!((lines(&moved), moved.status.code()), (vec!["n# leads Raft; before: n#".to_owned()], Some(0)));
        let refused = transfer("n7");
        let expected = vec!["matriarch: the Raft leader was not moved to n#: it is no voter: n#".to_owned()];
        assert_eq!((lines(&refused), refused.status.code()), (expected, Some(1)));
    });
}

#[test]
fn a_pause_says_how_it_ends_and_a_refusal_why() {
    with_manager(Ok(()), None, |address| {
        let address = address.to_string();
        let call = |words: &[&str]| matriarch(&[words, &["--manager", &address]].concat());
        let paused = call(&["pause", "--reason", "new kernel"]);
        let expected = ["the cluster is paused; `matriarch resume` lets it decide again"];
        assert_eq!((lines(&paused).as_slice(), paused.status.code()), (&expected.map(str::to_owned)[..], Some(0)));
        let refused = call(&["pause"]);
        let expected = ["matriarch: pause refused: n# runs a version that knows format #"];
        assert_eq!((lines(&refused).as_slice(), refused.status.code()), (&expected.map(str::to_owned)[..], Some(1)));
        let late = call(&["pause", "--reason", "new kernel", "--wait", "--timeout", "0"]);
        assert_eq!(late.status.code(), Some(1));
        assert!(lines(&late)[0].contains("not told: n#, n#, n#"), "{:?}", lines(&late));
        let resumed = call(&["resume", "--json"]);
        let told: serde_json::Value = serde_json::from_slice(&resumed.stdout).unwrap();
        assert_eq!(told, serde_json::json!({"paused": false, "everywhere": null}));
        assert_eq!(matriarch(&["pause", "--manager", "127.0.0.1:1"]).status.code(), Some(3));
    });
}

#[test]
fn a_member_is_left_alone_unless_it_is_the_primary() {
    with_manager(Ok(()), None, |address| {
        let address = address.to_string();
        let call = |words: &[&str]| matriarch(&[&["maintenance"], words, &["--manager", &address]].concat());
        let done = call(&["on", "n2", "--reason", "new disk"]);
        assert_eq!(done.status.code(), Some(0));
        assert!(
            lines(&done)[0].contains("`matriarch maintenance off n#` lets it take part again"),
            "{:?}",
            lines(&done)
        );
        let refused = call(&["on", "n1"]);
        let expected =
            ["matriarch: maintenance on n# refused: n# is the primary: `matriarch switchover` moves it first"];
        assert_eq!((lines(&refused).as_slice(), refused.status.code()), (&expected.map(str::to_owned)[..], Some(1)));
        let off = call(&["off", "n2", "--json"]);
        let told: serde_json::Value = serde_json::from_slice(&off.stdout).unwrap();
        assert_eq!(told, serde_json::json!({"member": "n2", "maintenance": false}));
    });
}

#[test]
fn a_restart_is_watched_to_its_end_and_told_to_programs() {
    with_manager(Ok(()), None, |address| {
        let address = address.to_string();
        let output = matriarch(&["restart", "n2", "--yes", "--manager", &address]);
        let said = lines(&output);
        assert_eq!(said[0], "restart # of n# accepted");
        assert!(said.last().unwrap().starts_with("restart # done: n# runs again ("), "{said:?}");
        assert_eq!(output.status.code(), Some(0));
    });
    with_manager(Err("n2 did not stop in time"), None, |address| {
        let output = matriarch(&["restart", "n2", "--yes", "--json", "--manager", &address.to_string()]);
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let expected = (&"n2".into(), &false.into(), &"n2 did not stop in time".into());
        assert_eq!((&told["to"], &told["succeeded"], &told["reason"]), expected, "{told}");
        assert_eq!(output.status.code(), Some(1));
    });
}

#[test]
fn operations_are_scheduled_rehearsed_listed_and_taken_back() {
    with_manager(Ok(()), None, |address| {
        let run = |words: &[&str]| {
            let output = matriarch(&[words, &["--manager", &address.to_string()]].concat());
            let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            (output.status.code().unwrap(), text)
        };
        let (code, text) = run(&["switchover", "--dry-run", "--candidate", "n2"]);
        assert!(code == 0 && text.starts_with("switchover from n1 to n2 would begin; nothing was changed\n"), "{text}");
        assert!(text.contains("  - n2 lacks 10 bytes\n  - writes wait 75 s at most"), "{text}");
        let (code, text) = run(&["restart", "n9", "--dry-run", "--json"]);
        let told: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((code, &told["possible"], &told["reason"]), (1, &false.into(), &"n9 is no member".into()));
        assert_eq!(run(&["failover", "--candidate", "n2", "--dry-run"]).0, 0);

        let (code, text) = run(&["switchover", "--scheduled", "2030-01-29 01:46:40 +01", "--yes"]);
        assert!(code == 0 && text.contains("scheduled for 2030-01-29T00:46:40Z as operation 9"), "{text}");
        let (code, text) = run(&["restart", "n2", "--scheduled", "2020-01-28T16:46:40Z", "--yes"]);
        assert!(code == 1 && text.contains("restart refused: it is over"), "{text}");
        for (time, why) in [("2030-01-28T16:46:40", "it says no offset to UTC"), ("soon", "it is no time")] {
            let (code, text) = run(&["switchover", "--scheduled", time, "--yes"]);
            assert!(code == 2 && text.contains(why) && text.contains("write e.g."), "{text}");
        }
        assert_eq!(run(&["switchover", "--scheduled", "now", "--dry-run"]).0, 2, "one or the other");

        assert_eq!(run(&["operations", "cancel", "9"]), (0, "cancelled: it does not begin\n".to_owned()));
        assert!(run(&["operations", "cancel", "8"]).1.contains("operation 8 is not cancelled: there is no such"));
        let (code, text) = run(&["operations", "cancel", "8", "--json"]);
        let told: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((code, &told["cancelled"]), (1, &false.into()), "{told}");
        let (code, text) = run(&["restart", "n2", "--scheduled", "2020-01-28T16:46:40Z", "--yes", "--json"]);
        let told: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((code, &told["state"], &told["reason"]), (1, &"refused".into(), &"it is over".into()), "{told}");
        assert!(run(&["operations", "list"]).1.contains("9   rolling-restart"));
        assert_eq!(run(&["operations", "show", "8"]).0, 1);
        let (code, text) = run(&["operations", "show", "9", "--json"]);
        assert!(code == 0 && text.contains("\"state\": \"succeeded\""), "{text}");
        let (code, text) = run(&["rolling-restart", "--pending", "--yes"]);
        assert!(code == 0 && text.ends_with("rolling restart 9 done: restarted: n2, n3, n1; left: nobody\n"), "{text}");
    });
    with_manager(Err("n3 does not answer"), None, |address| {
        let failed = matriarch(&["rolling-restart", "--pending", "--yes", "--json", "--manager", &address.to_string()]);
        let told: serde_json::Value = serde_json::from_slice(&failed.stdout).unwrap();
        assert_eq!((failed.status.code(), &told["reason"]), (Some(1), &"n3 does not answer".into()));
    });
}

#[test]
fn a_member_is_replaced_or_the_reason_is_given() {
    with_manager(Ok(()), None, |address| {
        let member = |what: &str, name: &str| matriarch(&["member", what, name, "--manager", &address.to_string()]);
        let done = member("replace", "n2");
        assert_eq!(done.status.code(), Some(0));
        assert!(lines(&done)[0].contains("never votes again"), "{:?}", lines(&done));
        let dry = matriarch(&["member", "replace", "n2", "--dry-run", "--manager", &address.to_string()]);
        assert_eq!(lines(&dry), ["nothing stands against it; nothing was changed"]);
        let refused = member("remove", "n7");
        let expected = vec!["matriarch: refused: n# is no member".to_owned()];
        assert_eq!((lines(&refused), refused.status.code()), (expected, Some(1)));
    });
}

#[test]
fn scripts_learn_by_the_exit_code_whether_a_host_may_be_taken_down() {
    with_manager(Ok(()), None, |address| {
        let address = address.to_string();
        let check =
            |name: &str, more: &[&str]| matriarch(&[&["member", "check", name, "--manager", &address], more].concat());
        let may = check("n2", &[]);
        assert_eq!(may.status.code(), Some(0));
        assert_eq!(lines(&may), ["n# may be taken down now", "note: n# leads the managers"]);
        let must_not = check("n1", &[]);
        assert_eq!(must_not.status.code(), Some(1));
        assert!(lines(&must_not)[1].starts_with("- primary: n# is primary; make another"), "{:?}", lines(&must_not));
        let told: serde_json::Value = serde_json::from_slice(&check("n1", &["--json"]).stdout).unwrap();
        assert_eq!((&told["may_go"], &told["reasons"][0]["kind"]), (&false.into(), &"primary".into()), "{told}");
        let snapshot = matriarch(&["raft", "snapshot", "--member", "n7", "--manager", &address]);
        assert_eq!(snapshot.status.code(), Some(1));
    });
    // Whether nobody answers, or the answer is no, is not the same to a script.
    assert_eq!(matriarch(&["member", "check", "n2", "--manager", "127.0.0.1:1"]).status.code(), Some(3));
}

#[test]
fn a_recovery_changes_nothing_before_the_name_of_the_cluster_is_typed() {
    with_manager(Ok(()), None, |address| {
        let address = address.to_string();
        let recover = |more: &[&str]| matriarch(&[&["recover", "--manager", &address], more].concat());
        let needless = recover(&[]);
        let expected = vec!["matriarch: nothing is recovered: n# is the Raft leader".to_owned()];
        assert_eq!((lines(&needless), needless.status.code()), (expected, Some(1)));
        for typed in [vec!["--force"], vec!["--force", "--confirm", "mian"]] {
            let refused = recover(&typed);
            assert_eq!(refused.status.code(), Some(1));
            let said = lines(&refused);
            assert_eq!(said[0], "- generation # begins on n# alone", "what would happen is said first");
            assert!(said.iter().any(|l| l.contains("nothing was changed")), "{said:?}");
        }
        let done = recover(&["--force", "--confirm", "main"]);
        assert_eq!(done.status.code(), Some(0), "{:?}", lines(&done));
    });
}

#[test]
fn a_switchover_is_watched_to_its_end() {
    with_manager(Ok(()), None, |address| {
        // The first manager is gone; the second one answers.
        let output = matriarch(&["switchover", "--yes", "--manager", "127.0.0.1:1", "--manager", &address.to_string()]);
        let expected = [
            "switchover # from n# to n# accepted",
            "    #.# s  checkpoint",
            "    #.# s  stop",
            "switchover # done: n# is primary (#.# s)",
        ];
        assert_eq!(lines(&output), expected);
        assert_eq!(output.status.code(), Some(0));
    });
}

#[test]
fn a_failed_and_a_refused_operation_are_exit_code_1_with_the_reason() {
    with_manager(Err("n2 lags"), None, |address| {
        let output = matriarch(&["failover", "--candidate", "n2", "--yes", "--manager", &address.to_string()]);
        assert_eq!(lines(&output).last().unwrap(), "matriarch: failover # failed: n# lags");
        assert_eq!(output.status.code(), Some(1));
    });
    with_manager(Ok(()), None, |address| {
        let manager = address.to_string();
        let accept = ["failover", "--candidate", "n2", "--yes", "--allow-data-loss", "--manager", &manager];
        let output = matriarch(&accept);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            said.contains("to n2: it lacks 2048 bytes. What n2 lacks is lost"),
            "a script's log has it: {output:?}"
        );
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    });
    with_manager(Ok(()), Some("n2 is not healthy"), |address| {
        let address = address.to_string();
        let output = matriarch(&["switchover", "--yes", "--manager", &address]);
        assert_eq!(lines(&output), ["matriarch: switchover refused: n# is not healthy"]);
        assert_eq!(output.status.code(), Some(1));
        let output = matriarch(&["failover", "--candidate", "n9", "--yes", "--manager", &address]);
        assert!(lines(&output)[0].ends_with("refused: n# is no member"), "{output:?}");
        assert_eq!(output.status.code(), Some(1));
        let output = matriarch(&["explain", "--manager", &address]);
        assert!(lines(&output)[0].ends_with("unavailable (no leader))"), "{output:?}");
        assert_eq!(output.status.code(), Some(3));
        let output = matriarch(&["switchover", "--manager", &address]);
        assert_eq!(output.status.code(), Some(2), "no terminal to ask: {output:?}");
    });
}

#[test]
fn failovers_are_acknowledged() {
    with_manager(Ok(()), None, |address| {
        let output = matriarch(&["acknowledge", "--manager", &address.to_string()]);
        assert_eq!(
            lines(&output),
            ["failovers after crashes count no more, there were #; the next crash may be failed over again"]
        );
        let output = matriarch(&["acknowledge", "--json", "--manager", &address.to_string()]);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "{\n  \"acknowledged\": 3\n}\n");
    });
    with_manager(Ok(()), Some("no Raft leader answers"), |address| {
        let output = matriarch(&["acknowledge", "--manager", &address.to_string()]);
        assert_eq!(lines(&output), ["matriarch: acknowledge refused: no Raft leader answers"]);
        assert_eq!(output.status.code(), Some(1));
    });
}

#[test]
fn history_events_and_what_a_decision_went_by() {
    with_manager(Ok(()), None, |address| {
        let address = address.to_string();
        let says = |words: &[&str]| {
            let output = matriarch(&[words, &["--manager", &address]].concat());
            let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            (text, output.status.code())
        };
        let (text, code) = says(&["history"]);
        assert!(text.contains("epoch 1  n1  timeline 2  open 1970-01-01T00:00:00.001Z: is primary"), "{text}");
        assert_eq!(code, Some(0));
        assert_eq!(says(&["events"]), ("revision 3 epoch 0 rule 10: founded\n".to_owned(), Some(0)));
        let (text, code) = says(&["events", "--after", "1", "--json"]);
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!((&lines[0]["event"], &lines[0]["before"]), (&"missed".into(), &3.into()));
        assert_eq!((&lines[1]["decision"]["what"], code), (&"founded".into(), Some(0)));
        let (text, code) = says(&["explain", "--incident", "3"]);
        assert!(text.starts_with("revision 3") && text.contains("was not recorded"), "{text}");
        assert_eq!(code, Some(0));
        let kept = "matriarch: no decision of revision 9 is kept; 1 are, from revision 3 to 3: `matriarch history`\n";
        assert_eq!(says(&["explain", "--incident", "9"]), (kept.to_owned(), Some(1)));
    });
    let output = matriarch(&["events", "--follow", "--manager", "127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(3), "nobody was ever there: {output:?}");
}

#[test]
fn a_profile_is_shown_and_changed() {
    with_manager(Ok(()), None, |address| {
        let manager = address.to_string();
        let shown = matriarch(&["profile", "--manager", &manager]);
        assert_eq!(shown.status.code(), Some(0), "{shown:?}");
        assert_eq!(lines(&shown)[0], "profile normal, from the files of the hosts (shown: that of n#)");
        let changed = matriarch(&["profile", "fast", "--yes", "--manager", &manager, "--set", "promote_ms=20000"]);
        assert_eq!(changed.status.code(), Some(0), "{changed:?}");
        assert_eq!(lines(&changed)[0], "profile fast, committed as timings #");
        let unasked = matriarch(&["profile", "fast", "--manager", &manager]);
        assert_eq!(unasked.status.code(), Some(2), "nobody was asked: {unasked:?}");
        assert_eq!(matriarch(&["profile", "fast", "--yes", "--set", "promote_ms"]).status.code(), Some(2));
        let misspelt = matriarch(&["profile", "medium", "--yes", "--manager", &manager]);
        assert_eq!(misspelt.status.code(), Some(2), "{misspelt:?}");
    });
    with_manager(Ok(()), Some("grant_ms: no"), |address| {
        let refused = matriarch(&["profile", "fast", "--yes", "--manager", &address.to_string()]);
        assert_eq!(refused.status.code(), Some(1));
        assert_eq!(String::from_utf8_lossy(&refused.stderr), "matriarch: profile fast refused: grant_ms: no\n");
    });
}

/// Two keys and one of a newer version.
fn settings(version: u64, set: &[(&str, &str)]) -> SettingsReply {
    let one = |key: &str, default: &str, help: &str| {
        let value = set.iter().find(|(k, _)| *k == key).map(|(_, value)| (*value).to_owned());
        Setting {
            key: key.to_owned(),
            is_set: value.is_some(),
            value: value.unwrap_or_else(|| default.to_owned()),
            default: default.to_owned(),
            help: help.to_owned(),
            problem: String::new(),
        }
    };
    let newer = Setting {
        key: "a_newer_one".to_owned(),
        value: "x".to_owned(),
        is_set: true,
        problem: "this version does not know it".to_owned(),
        ..Setting::default()
    };
    let settings =
        vec![newer, one("crash_budget", "3", "so many crashes"), one("on_primary_crash", "auto", "what then")];
    SettingsReply { version, settings, answered_by: "n1".to_owned() }
}

#[test]
fn settings_are_shown() {
    with_manager(Ok(()), None, |address| {
        let manager = address.to_string();
        check(
            &["config", "show", "--manager", &manager],
            expect![[r#"
            exit 0
            settings of version 4 (answered by n1)

              a_newer_one = x  (set; this version does not know it)

              crash_budget = 3  (default)
                  so many crashes

              on_primary_crash = auto  (default)
                  what then
        "#]],
        );
        check(
            &["config", "show", "--json", "--manager", &manager],
            expect![[r#"
            exit 0
            {
              "version": 4,
              "settings": {
                "a_newer_one": {
                  "value": "x",
                  "default": null,
                  "set": true,
                  "help": null,
                  "problem": "this version does not know it"
                },
                "crash_budget": {
                  "value": "3",
                  "default": "3",
                  "set": false,
                  "help": "so many crashes",
                  "problem": null
                },
                "on_primary_crash": {
                  "value": "auto",
                  "default": "auto",
                  "set": false,
                  "help": "what then",
                  "problem": null
                }
              },
              "answered_by": "n1"
            }
        "#]],
        );
    });
}

#[test]
fn settings_are_changed_or_the_reason_is_given() {
    with_manager(Ok(()), None, |address| {
        let manager = address.to_string();
        let set = |args: &[&str], expected: Expect| {
            check(&[&["config", "set", "--manager", &manager], args].concat(), expected)
        };
        set(
            &["crash_budget=5", "--unset", "on_primary_crash"],
            expect![[r#"
                exit 0
                settings of version 5 now, of 4 before
                  crash_budget = 5 (was default)
            "#]],
        );
        set(
            &["crash_budget=5", "--if-version", "3"],
            expect![[r#"
                exit 1
                matriarch: config set: the settings are of version 4 now, not of 3; nothing was changed; look at them (`matriarch config show`) and set again
            "#]],
        );
        set(
            &["crash_budget=5", "colour=red"],
            expect![[r#"
                exit 2
                matriarch: config set: `colour` is no setting, there is crash_budget; nothing was changed
            "#]],
        );
        set(
            &["n1.priority=5", "--member", "n1"],
            expect![[r#"
                exit 2
                matriarch: n1.priority says for whom it is, and so does --member
            "#]],
        );
        set(
            &["crash_budget=5", "--unset", "crash_budget"],
            expect![[r#"
            exit 2
            matriarch: crash_budget is given a value and unset
        "#]],
        );
        set(
            &["crash_budget=5", "crash_budget=6"],
            expect![[r#"
            exit 2
            matriarch: crash_budget is given twice
        "#]],
        );
        set(
            &["crash_budget="],
            expect![[r#"
            exit 2
            matriarch: crash_budget=: write KEY=VALUE, e.g. crash_budget=5; `--unset KEY` brings a default back
        "#]],
        );
        set(
            &[],
            expect![[r#"
            exit 2
            error: the following required arguments were not provided:
              <KEY=VALUE>...

            Usage: matriarch config set --manager <HOST:PORT> <KEY=VALUE>...

            For more information, try '--help'.
        "#]],
        );
    });
    with_manager(Ok(()), Some("n3 runs a version that knows format 1"), |address| {
        check(
            &["config", "set", "crash_budget=5", "--manager", &address.to_string()],
            expect![[r#"
                exit 1
                matriarch: config set: n3 runs a version that knows format 1; nothing was changed
            "#]],
        );
    });
}

#[test]
fn help_of_config_set() {
    check(
        &["config", "set", "--help"],
        expect![[r#"
            exit 0
            Change settings of the cluster, all that are given or none; no host is restarted

            Usage: matriarch config set [OPTIONS] [KEY=VALUE]...

            Arguments:
              [KEY=VALUE]...  A key and its new value, e.g. crash_budget=5, parameters.work_mem=64MB or
                              hba=@FILE; `matriarch config show` lists the keys

            Options:
                  --manager <HOST:PORT>  A manager to ask; may be given several times [default: those of the
                                         configuration file]
                  --cluster <NAME>       One of the clusters in $MATRIARCH_CLI_CONFIG, else
                                         ~/.config/matriarch/cli.toml
                  --config <FILE>        Configuration file [default: $MATRIARCH_CONFIG, else
                                         /etc/matriarch/matriarch.toml]
                  --member <MEMBER>      Of this member only: priority, failover, site, replicatefrom, nostream,
                                         recovery_min_apply_delay, parameters.NAME
                  --unset <KEY>          Bring the default of a key back; may be given several times
                  --if-version <N>       Change nothing unless the settings are of this version [default: the
                                         one they have when asked]
                  --dry-run              Say whether it could be changed, and change nothing
                  --force                Also when PostgreSQL can't be asked whether it could take the values
                  --json                 Print JSON
                  --output <FORMAT>      Print it as table, json, yaml or tsv [default: table]
              -h, --help                 Print help

            Exit codes:
              0  done; status: every member is healthy and the primary is open
              1  failed or refused; the reason was printed
              2  wrong usage or configuration; nothing was changed
              3  no manager could be reached
              4  status: the cluster answers and is degraded; matrix: somebody is not reached

            Examples:
              matriarch config set crash_budget=5 on_primary_crash=restart
              matriarch config set parameters.work_mem=64MB --dry-run  # could it be changed?
              matriarch config set priority=0 --member n2
              matriarch config set hba=@pg_hba.conf                    # the lines of this file
              matriarch config set --unset crash_budget                # its default again
        "#]],
    );
}

#[test]
fn rto_asks_for_the_timings_in_force() {
    with_manager(Ok(()), None, |address| {
        let manager = address.to_string();
        let shown = matriarch(&["rto", "--manager", &manager]);
        assert_eq!(shown.status.code(), Some(0), "{shown:?}");
        assert_eq!(lines(&shown)[0], "profile normal, from the files of the hosts (that of n#)");
        let of_profile = matriarch(&["rto", "--profile", "normal"]);
        let table = |output: &Output| lines(output).split_off(1);
        assert_eq!(table(&shown), table(&of_profile));
        let json = matriarch(&["rto", "--json", "--manager", &manager]);
        let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
        assert_eq!((&json["profile"], &json["paths"][0]["path"]), (&"normal".into(), &"host-loss".into()));
    });
}

#[test]
fn rto_of_a_file_counts_its_overrides_and_asks_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.toml");
    let member = |id| format!("[[cluster.members]]\nid = \"n{id}\"\nhost = \"10.0.0.{id}\"\n");
    let timings = "[cluster.timings]\ngrant_ms = 2650\n";
    let cluster = format!("[cluster]\nname = \"demo\"\ninsecure = true\nprofile = \"fast\"\n{timings}");
    std::fs::write(&file, format!("{cluster}{}{}{}", member(1), member(2), member(3))).unwrap();
    let file = file.to_str().unwrap();
    let host_loss = |args: &[&str]| {
        let output = matriarch(&[&["rto", "--json"], args].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        json["paths"][0]["times"]["average_ms"].as_f64().unwrap()
    };
    let (plain, longer) = (host_loss(&["--profile", "fast"]), host_loss(&["--offline", "--config", file]));
    assert!((longer - plain - 1_000.0).abs() < 1.0, "{plain} and {longer}");
    assert!((host_loss(&["--profile", "fast", "--set", "grant_ms=2650"]) - longer).abs() < 1e-6);
}

#[test]
fn rto_without_a_source_or_with_a_wrong_one_is_exit_code_2() {
    for args in [
        &["rto"][..],
        &["rto", "--offline"],
        &["rto", "--offline", "--profile", "fast"],
        &["rto", "--set", "grant_ms=2000"],
        &["rto", "--profile", "wide"],
        &["rto", "--profile", "fast", "--manager", "10.0.0.1:7400"],
        &["rto", "--profile", "fast", "--set", "grant_ms=1300"],
    ] {
        let output = matriarch(args);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{args:?}: {output:?}");
    }
    let nobody = matriarch(&["rto", "--manager", "127.0.0.1:1"]);
    assert_eq!(nobody.status.code(), Some(3), "{nobody:?}");
}

#[test]
fn status_exits_0_when_healthy() {
    with_manager(Ok(()), None, |address| {
        let output = matriarch(&["status", "--json", "--manager", &address.to_string()]);
        assert_eq!(output.status.code(), Some(0));
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&json["healthy"], &json["members"][2]["lag_bytes"]), (&true.into(), &328.into()));
    });
}

// ---- connection strings --------------------------------------------------------------------------------------

fn cluster_of(members: &[(&str, &str, u16)]) -> tempfile::NamedTempFile {
    let member = |(id, host, port): &(&str, &str, u16)| {
        format!("[[cluster.members]]\nid = \"{id}\"\nhost = \"{host}\"\npostgres_port = {port}\n")
    };
    let members: String = members.iter().map(member).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("[cluster]\nname = \"main\"\ninsecure = true\n{members}")).unwrap();
    file
}

fn three_hosts() -> tempfile::NamedTempFile {
    cluster_of(&[("n1", "10.0.0.1", 5432), ("n2", "fd00::2", 5433), ("n3", "db3.example", 5432)])
}

#[test]
fn help_of_dsn() {
    check(
        &["dsn", "--help"],
        expect![[r#"
            exit 0
            Print connection strings for applications, driver by driver; asks nobody

            Usage: matriarch dsn [OPTIONS]

            Options:
                  --driver <NAME>       Whose: libpq-uri, libpq, jdbc, node, go, dotnet, sqlalchemy, asyncpg,
                                        rust; of one only the string is printed [default: all]
                  --for <ACCESS>        What for: read-write (the primary) or read-only (a standby, or the
                                        primary where there is none) [default: read-write]
                  --database <NAME>     Database to connect to [default: postgres]
                  --user <NAME>         Role to connect as [default: none is named, and the driver has its own]
                  --router <HOST:PORT>  Through a router, by its port for this access; may be given several
                                        times [default: to the members]
                  --json                Print JSON, with what the strings can't say
                  --config <FILE>       Configuration file [default: $MATRIARCH_CONFIG, else
                                        /etc/matriarch/matriarch.toml]
                  --output <FORMAT>     Print it as table, json, yaml or tsv [default: table]
              -h, --help                Print help

            Exit codes:
              0  done; status: every member is healthy and the primary is open
              1  failed or refused; the reason was printed
              2  wrong usage or configuration; nothing was changed
              3  no manager could be reached
              4  status: the cluster answers and is degraded; matrix: somebody is not reached

            Examples:
              matriarch dsn --database app --user app
              matriarch dsn --driver jdbc --for read-only --router r1:6433
        "#]],
    );
}

#[test]
fn dsn_of_one_driver_is_the_string_and_nothing_else() {
    let file = three_hosts();
    let config = ["--config", file.path().to_str().unwrap()];
    let dsn = |args: &[&str], expected: Expect| check(&[&["dsn"], args, &config].concat(), expected);
    dsn(
        &["--driver", "libpq-uri"],
        expect![[r#"
        exit 0
        postgresql://10.0.0.1:5432,[fd00::2]:5433,db3.example:5432/postgres?target_session_attrs=read-write&connect_timeout=3&keepalives_idle=5&keepalives_interval=2&keepalives_count=3&tcp_user_timeout=10000
    "#]],
    );
    dsn(
        &["--driver", "go", "--user", "app", "--database", "my shop"],
        expect![[r#"
        exit 0
        host=10.0.0.1,fd00::2,db3.example port=5432,5433,5432 user=app dbname='my shop' target_session_attrs=read-write connect_timeout=3
    "#]],
    );
    dsn(
        &["--driver", "jdbc", "--for", "read-only", "--router", "[fd00::9]:6433"],
        expect![[r#"
        exit 0
        jdbc:postgresql://[fd00::9]:6433/postgres?connectTimeout=3&sslResponseTimeout=23000&loginTimeout=26&tcpKeepAlive=true
    "#]],
    );
    dsn(
        &["--driver", "node"],
        expect![[r#"
            exit 2
            matriarch: --driver node: pg takes one host and doesn't look whether it is the primary: name a router with --router HOST:PORT. pg-native takes libpq's string, postgres.js asyncpg's with primary for read-write
        "#]],
    );
}

#[test]
fn dsn_says_what_is_wrong_with_its_arguments() {
    let file = three_hosts();
    let config = ["--config", file.path().to_str().unwrap()];
    let dsn = |args: &[&str], expected: Expect| check(&[&["dsn"], args, &config].concat(), expected);
    dsn(
        &["--router", "0.0.0.0:6432"],
        expect![[r#"
        exit 2
        matriarch: --router 0.0.0.0:6432: not HOST:PORT that clients can connect to; write e.g. 10.0.0.1:6432 or [fd00::1]:6432
    "#]],
    );
    dsn(
        &["--user", ""],
        expect![[r#"
        exit 2
        matriarch: --user: empty; leave it out for the default
    "#]],
    );
    dsn(
        &["--driver", "odbc"],
        expect![[r#"
        exit 2
        error: invalid value 'odbc' for '--driver <NAME>': all or one of libpq-uri, libpq, jdbc, node, go, dotnet, sqlalchemy, asyncpg, rust

        For more information, try '--help'.
    "#]],
    );
    dsn(
        &["--for", "writing"],
        expect![[r#"
        exit 2
        error: invalid value 'writing' for '--for <ACCESS>': read-write or read-only

        For more information, try '--help'.
    "#]],
    );
    check(
        &["dsn"],
        expect![[r#"
        exit 2
        matriarch: /nonexistent/matriarch.toml: can't be read (No such file or directory (os error 2)); create it (docs/install.md), or name another with --config
    "#]],
    );
}

#[test]
fn dsn_as_json_says_through_what_and_why_there_is_none() {
    let file = three_hosts();
    let dsn = |args: &[&str]| -> serde_json::Value {
        let output = matriarch(&[&["dsn", "--json", "--config", file.path().to_str().unwrap()], args].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let told = dsn(&["--driver", "node"]);
    assert_eq!(told["hosts"], serde_json::json!(["10.0.0.1:5432", "[fd00::2]:5433", "db3.example:5432"]));
    assert_eq!((&told["through"], &told["for"]), (&"members".into(), &"read-write".into()));
    assert!(told["strings"][0]["string"].is_null());
    assert!(told["strings"][0]["reason"].as_str().unwrap().contains("--router"));
    let told = dsn(&["--router", "r1:6432", "--router", "r2:6432"]);
    assert_eq!((&told["through"], &told["hosts"]), (&"router".into(), &serde_json::json!(["r1:6432", "r2:6432"])));
    assert!(told["strings"].as_array().unwrap().iter().all(|one| one["string"].is_string()), "{told}");
}

/// What is wrong with a string psql says before it connects.
#[test]
fn psql_takes_the_strings_of_libpq() {
    if Command::new("psql").arg("--version").output().is_err() {
        eprintln!("skipped: no psql is installed");
        return;
    }
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let file = cluster_of(&[("n1", "127.0.0.1", port), ("n2", "127.0.0.2", port), ("n3", "127.0.0.3", port)]);
    let odd = "a b/c?d#e%f'g\"h\\i;j=k@l:m+n,ö";
    for driver in ["libpq-uri", "libpq"] {
        for access in ["read-write", "read-only"] {
            let args = ["dsn", "--driver", driver, "--for", access, "--user", odd, "--database", odd];
            let output = matriarch(&[&args[..], &["--config", file.path().to_str().unwrap()]].concat());
            let string = String::from_utf8(output.stdout).unwrap();
            let psql = Command::new("psql").args(["-X", "-c", "select", string.trim_end()]).output().unwrap();
            let told = String::from_utf8(psql.stderr).unwrap();
            for host in ["127.0.0.1", "127.0.0.2", "127.0.0.3"] {
                let refused = format!("connection to server at \"{host}\", port {port} failed: Connection refused");
                assert!(told.contains(&refused), "{string}{told}");
            }
        }
    }
}

// ---- files that go with the command line ---------------------------------------------------------------------

fn repository(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// `page` with `text` between its markers called `name`.
fn between(page: &str, name: &str, text: &str) -> String {
    let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->"));
    let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("no `{begin}`"));
    let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("no `{end}`"));
    format!("{before}{begin}{text}{end}{after}")
}

/// The tables of docs/rto.md are what the command prints, and its times of the machine those it computes with.
#[test]
fn the_page_of_rto_is_what_the_command_says() {
    let page = repository("docs/rto.md");
    let mut written = page.clone();
    for profile in ["fast", "normal", "slow", "safe"] {
        let output = matriarch(&["rto", "--profile", profile]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        written = between(&written, profile, &format!("```text\n{text}```\n"));
    }
    let ms = |d: std::time::Duration| d.as_secs_f64() * 1_000.0;
    let part = |(name, spread, source): (&str, Spread, &str)| {
        let [best, average, worst] = [spread.best, spread.average, spread.worst].map(ms);
        format!("| {name} | {best} / {average} / {worst} | {source} |\n")
    };
    let parts: String = Latencies::QUIET_MACHINE.parts().into_iter().map(part).collect();
    written = between(&written, "machine", &format!("| part | ms | from |\n| --- | --- | --- |\n{parts}"));
    let rows = figures(Profile::Fast, &Timings::of(Profile::Fast), &Settings::default(), &Latencies::QUIET_MACHINE);
    let class = |class: Class| {
        let paths: Vec<String> =
            rows.iter().filter(|f| f.classes.contains(&class)).map(|f| format!("`{}`", f.path)).collect();
        format!("| {} {class} | {} | {} |\n", class.number(), class.detection(), paths.join(", "))
    };
    let classes: String = Class::ALL.into_iter().map(class).collect();
    let head = "| class | its path there | ours |\n| --- | --- | --- |\n";
    written = between(&written, "classes", &format!("{head}{classes}"));
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/rto.md"), &written).unwrap();
    } else {
        assert!(written == page, "docs/rto.md is out of date: UPDATE_EXPECT=1 cargo test --test cli writes it");
    }
}

/// The example of docs/clients.md is what the command prints.
#[test]
fn the_page_of_clients_is_what_the_command_says() {
    let page = repository("docs/clients.md");
    let mut written = page.clone();
    for (name, more) in [("members", &[][..]), ("router", &["--router", "127.0.0.1:6432", "--driver", "jdbc"][..])] {
        let args = ["dsn", "--user", "app", "--database", "shop", "--config", "deploy/matriarch.toml.example"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_matriarch"));
        let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).args(args).args(more).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        written = between(&written, name, &format!("```text\n{}```\n", String::from_utf8(output.stdout).unwrap()));
    }
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/clients.md"), &written).unwrap();
    } else {
        assert!(written == page, "docs/clients.md is out of date: UPDATE_EXPECT=1 cargo test --test cli writes it");
    }
}

/// The blocks of docs/install.md by label, as a script takes them out.
fn install_blocks(wanted: impl Fn(&str) -> bool) -> String {
    let text = repository("docs/install.md");
    let mut script = String::new();
    // In a block: whether it is wanted.
    let mut block = None;
    for line in text.lines() {
        match (line.strip_prefix("```"), block) {
            (Some(label), None) => block = Some(label.strip_prefix("sh ").is_some_and(&wanted)),
            (Some(_), Some(_)) => block = None,
            (None, Some(true)) => script.push_str(&format!("{line}\n")),
            (None, _) => {}
        }
    }
    script
}

/// The table of docs/settings.md: key, default, effect.
#[test]
fn the_page_of_settings_has_every_key_as_it_is_compiled() {
    let (defaults, of_member) = (Settings::default().values(), MemberSettings::default().values());
    let row = |key: &str, default: &str, help: &str| match default {
        "" => format!("| `{key}` |  | {help} |\n"),
        default => format!("| `{key}` | `{default}` | {help} |\n"),
    };
    let cluster = Settings::KEYS.iter().map(|(key, help)| row(key, &defaults[key], help));
    let member = MemberSettings::KEYS.iter().map(|(key, help)| row(key, &of_member[key], help));
    let compiled: String = cluster.chain(member).collect();
    let page = repository("docs/settings.md");
    // A table of two columns is of something else.
    let of_settings = |l: &&str| l.starts_with("| `") && l.matches(" | ").count() == 2;
    let written: String = page.lines().filter(of_settings).map(|l| format!("{l}\n")).collect();
    assert_eq!(written, compiled, "docs/settings.md is out of date");
}

#[test]
fn the_commands_of_the_install_page_are_valid_shell() {
    for wanted in ["all-hosts", "one-host"] {
        let script = install_blocks(|label| label.split(' ').next() == Some(wanted));
        assert!(script.lines().count() > 10, "{wanted}: {script}");
        let status = Command::new("bash").args(["-n", "-c", &script]).status().unwrap();
        assert!(status.success(), "{wanted}");
    }
}

#[test]
fn the_configuration_of_the_install_page_is_good() {
    let script = install_blocks(|label| label == "all-hosts");
    let (_, after) = script.split_once("<<TOML\n").unwrap();
    let (toml, _) = after.split_once("TOML\n").unwrap();
    for (member, address) in [("n1", "10.0.0.1"), ("n3", "10.0.0.3")] {
        let text = [("$N1", "10.0.0.1"), ("$N2", "10.0.0.2"), ("$N3", "10.0.0.3"), ("$MEMBER", member)]
            .into_iter()
            .chain([("$ADDRESS", address), ("$BIN_DIR", "/usr/lib/postgresql/15/bin"), ("$CLIENTS", "10.0.0.0/24")])
            .fold(toml.to_owned(), |text, (name, value)| text.replace(name, value));
        let config = matriarch::config::Config::parse(Path::new("matriarch.toml"), &text).unwrap();
        assert_eq!(config.member.unwrap().id.as_str(), member);
    }
}

#[test]
fn every_unit_starts_a_command_that_exists() {
    for process in ["manager", "agent", "router"] {
        let unit = repository(&format!("deploy/systemd/matriarch-{process}.service"));
        let start = unit.lines().find_map(|l| l.strip_prefix("ExecStart=/usr/local/bin/matriarch ")).unwrap();
        assert_eq!(start, format!("{process} --config /etc/matriarch/matriarch.toml"));
        let slice = unit.lines().find_map(|l| l.strip_prefix("Slice=")).unwrap();
        repository(&format!("deploy/systemd/{slice}"));
    }
    let agent = repository("deploy/systemd/matriarch-agent.service");
    for needed in ["User=postgres", "KillMode=process", "Delegate=yes", "RuntimeDirectoryPreserve=yes"] {
        assert!(agent.lines().any(|l| l == needed), "{needed}");
    }
}

#[test]
fn a_witness_and_a_learner_are_that_in_the_file_and_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.toml");
    let member = |id: &str, port: u16, more: &str| {
        format!("[[cluster.members]]\nid = \"{id}\"\nhost = \"127.0.0.1\"\nmanager_port = {port}\n{more}\n")
    };
    let members = member("n1", 1, "postgres_port = 5433") + &member("n2", 2, "postgres_port = 5434");
    let others = member("w1", 3, "witness = true") + &member("n8", 4, "postgres_port = 5435\nlearner = true");
    let text = format!("[cluster]\nname = \"x\"\n{members}{others}");
    std::fs::write(&file, text + "[member]\nid = \"w1\"\n").unwrap();
    let with = |words: &[&str]| matriarch(&[words, &["--config", file.to_str().unwrap()]].concat());
    let said = |output: &Output| lines(output).join("\n") + &String::from_utf8_lossy(&output.stderr);

    let wrong = with(&["member", "add", "n2", "--witness"]);
    assert_eq!(wrong.status.code(), Some(2), "{}", said(&wrong));
    assert!(said(&wrong).contains("`n2` of cluster.members is no witness: add `witness = true`"), "{}", said(&wrong));
    // As far as the managers, of which none is there.
    assert_eq!(with(&["member", "add", "w1", "--witness"]).status.code(), Some(3));
    let wrong = with(&["member", "add", "n2", "--learner"]);
    assert_eq!(wrong.status.code(), Some(2), "{}", said(&wrong));
    assert!(said(&wrong).contains("`n2` of cluster.members is no learner: add `learner = true`"), "{}", said(&wrong));
    assert_eq!(with(&["member", "add", "n8", "--learner"]).status.code(), Some(3));
    assert_eq!(with(&["member", "add", "n8", "--learner", "--witness"]).status.code(), Some(2));
    let dsn = String::from_utf8(with(&["dsn", "--database", "app"]).stdout).unwrap();
    assert!(dsn.contains("port=5433,5434,5435 "), "clients have nothing to do with it: {dsn}");
}
