//! Commands that look, against a made-up manager: forms of output, several clusters, dead and frozen hosts.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    process::{Command, Output},
    time::{Duration, Instant},
};

use super::{matriarch, with_manager};

pub(super) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Runs with a file of clusters.
pub(super) fn with_clusters(file: &str, args: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("cli.toml");
    fs::write(&at, file).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_matriarch"));
    command.args(args).env_clear().env("MATRIARCH_CONFIG", "/nonexistent/matriarch.toml");
    command.env("MATRIARCH_CLI_CONFIG", at).output().unwrap()
}

/// An address that takes connections and never says a word, as that of a frozen manager.
pub(super) fn frozen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// An address that swallows connections, as that of a host without power: those that wait to be taken are as many as may.
fn swallowing() -> (Vec<socket2::Socket>, SocketAddr) {
    use socket2::{Domain, Socket, Type};
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let waiting = (0..4).map(|_| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        // It is in progress, for ever.
        let _ = socket.connect(&address);
        socket
    });
    let sockets = std::iter::once(listener).chain(waiting).collect();
    (sockets, address.as_socket().unwrap())
}

#[test]
fn the_same_document_as_json_yaml_and_a_table_with_tabs() {
    with_manager(Ok(()), None, |address| {
        let address = address.to_string();
        let status = |form: &[&str]| text(&matriarch(&[&["status", "--manager", &address], form].concat()));
        let json: serde_json::Value = serde_json::from_str(&status(&["--output", "json"])).unwrap();
        assert_eq!(json["members"][0]["member"], "n1");
        let yaml = status(&["--output", "yaml"]);
        assert!(yaml.contains("\ncluster: main\n") || yaml.starts_with("cluster: main\n"), "{yaml}");
        assert!(yaml.contains("member: n3"), "{yaml}");
        let tsv = status(&["--output", "tsv"]);
        let rows: Vec<Vec<&str>> = tsv.lines().map(|line| line.split('\t').collect()).collect();
        let column = rows[0].iter().position(|head| *head == "member").unwrap();
        let members: Vec<&str> = rows[1..].iter().map(|row| row[column]).collect();
        assert_eq!(members, ["n1", "n2", "n3"]);
        assert!(rows.iter().all(|row| row.len() == rows[0].len()), "{tsv}");
        assert!(status(&["--output", "table"]).starts_with("Cluster main: healthy"));
        let events = text(&matriarch(&["events", "--manager", &address, "--output", "yaml"]));
        assert!(events.starts_with("---\n"), "{events}");
        let paused = text(&matriarch(&["resume", "--manager", &address, "--output", "tsv"]));
        assert!(paused.lines().any(|line| line == "paused\tfalse"), "{paused}");
    });
}

#[test]
fn clusters_have_names_and_all_of_them_one_line_each() {
    with_manager(Ok(()), None, |address| {
        let file = format!(
            "default = \"east\"\n[clusters.east]\nmanagers = [\"{address}\"]\n[clusters.west]\nmanagers = [\"127.0.0.1:1\"]\n"
        );
        let east = with_clusters(&file, &["status", "--cluster", "east"]);
        assert_eq!(east.status.code(), Some(0), "{}", text(&east));
        assert_eq!(with_clusters(&file, &["status"]).status.code(), Some(0), "the default");
        let west = with_clusters(&file, &["status", "--cluster", "west"]);
        assert_eq!(west.status.code(), Some(3));
        let all = with_clusters(&file, &["status", "--all"]);
        assert_eq!(all.status.code(), Some(3), "the worst");
        let shown = text(&all);
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[1].starts_with("east     healthy      n1"), "{shown}");
        assert!(lines[2].starts_with("west     not reached"), "{shown}");
        let none = with_clusters(&file, &["status", "--cluster", "north"]);
        assert_eq!(none.status.code(), Some(2));
        assert!(text(&none).contains("no cluster `north`; there is east, west"), "{}", text(&none));
        let both = with_clusters(&file, &["status", "--cluster", "east", "--manager", "127.0.0.1:1"]);
        assert_eq!(both.status.code(), Some(2));
        let recover = with_clusters(&file, &["recover", "--cluster", "east"]);
        assert!(text(&recover).contains("name the one to recover on"), "{}", text(&recover));
    });
    let wrong = with_clusters("[clusters.a]\nmanagers = [\"x\"]\n", &["status", "--all"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong).contains("x: not HOST:PORT"), "{}", text(&wrong));
}

/// The dead one stands first in the configuration. Of an address that swallows connections nothing comes back either.
#[test]
fn a_dead_or_frozen_host_costs_a_moment() {
    let (_listener, silent) = frozen();
    let (_sockets, dead) = swallowing();
    for first in [silent.to_string(), dead.to_string(), "127.0.0.1:1".to_owned()] {
        with_manager(Ok(()), None, |address| {
            let address = address.to_string();
            let ask = |command: &[&str]| {
                let began = Instant::now();
                let managers = ["--manager", &first, "--manager", &address];
                let output = matriarch(&[command, &managers[..]].concat());
                (output, began.elapsed())
            };
            let (status, took) = ask(&["status"]);
            assert_eq!(status.status.code(), Some(0), "{first}: {}", text(&status));
            assert!(took < Duration::from_millis(1_500), "{first}: {took:?}");
            let looks: [&[&str]; 6] = [
                &["history"],
                &["raft", "status"],
                &["config", "history"],
                &["member", "check", "n2"],
                &["profile"],
                &["events"],
            ];
            for command in looks {
                let (said, took) = ask(command);
                assert_eq!(said.status.code(), Some(0), "{command:?} {first}: {}", text(&said));
                assert!(took < Duration::from_millis(1_500), "{command:?} {first}: {took:?}");
            }
        });
    }
}

/// What changes something is asked of one manager only, also when another is slow to connect to.
#[test]
fn a_change_goes_around_a_host_that_is_gone() {
    let (_sockets, dead) = swallowing();
    with_manager(Ok(()), None, |address| {
        let (address, dead, began) = (address.to_string(), dead.to_string(), Instant::now());
        let transfer = ["raft", "transfer", "n2", "--manager", &dead, "--manager", &address];
        let output = matriarch(&transfer);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        assert!(began.elapsed() < Duration::from_millis(1_500), "{:?}", began.elapsed());
    });
}

#[test]
fn check_exits_as_monitoring_plugins_do() {
    with_manager(Ok(()), None, |address| {
        let address = address.to_string();
        let check = |args: &[&str]| matriarch(&[&["check"], args, &["--manager", &address]].concat());
        let role = check(&["role", "--member", "n1", "--role", "primary"]);
        assert_eq!((text(&role).as_str(), role.status.code()), ("ROLE OK - n1 is primary, running\n", Some(0)));
        let role = check(&["role", "--member", "n1", "--role", "standby"]);
        assert_eq!(role.status.code(), Some(2));
        let lag = check(&["lag", "--warning", "100", "--critical", "1MB"]);
        assert_eq!(lag.status.code(), Some(1), "{}", text(&lag));
        assert!(text(&lag).starts_with("LAG WARNING - n3 has not replayed 328 B | "), "{}", text(&lag));
        let json: serde_json::Value = serde_json::from_str(&text(&check(&["lease", "--json"]))).unwrap();
        assert_eq!((&json["level"], &json["checks"][0]["check"]), (&"OK".into(), &"lease".into()));
        for wrong in [&["lag", "--warning", "much"][..], &["quorum", "--critical", "1"], &["lag", "--member", "n9"]]
            .into_iter()
            .chain([
                &["quorum", "--member", "n2"][..],
                &["lag", "--member", "n1"],
                &["disk", "--member", "n2", "--role", "primary"],
            ])
        {
            let output = check(wrong);
            assert_eq!(output.status.code(), Some(2), "{wrong:?}");
            assert!(text(&output).starts_with("matriarch: check: "), "{}", text(&output));
        }
    });
    let nobody = matriarch(&["check", "--manager", "127.0.0.1:1"]);
    assert_eq!(nobody.status.code(), Some(3));
    assert!(text(&nobody).starts_with("MATRIARCH UNKNOWN - no manager could be reached"), "{}", text(&nobody));
}

#[test]
fn topology_and_matrix_are_drawn() {
    with_manager(Ok(()), None, |address| {
        let address = address.to_string();
        let tree = text(&matriarch(&["topology", "--manager", &address]));
        assert!(tree.starts_with("main: healthy, epoch 4, timeline 3\n├─ n1  primary running"), "{tree}");
        // The managers of the made-up cluster are at names that there are not.
        let matrix = matriarch(&["matrix", "--manager", &address]);
        assert_eq!(matrix.status.code(), Some(4), "{}", text(&matrix));
        assert!(text(&matrix).contains("the manager of n3 is not reached from here: "), "{}", text(&matrix));
    });
}

#[test]
fn a_bundle_has_what_the_managers_say_and_only_its_owner_may_read_it() {
    with_manager(Ok(()), None, |address| {
        let dir = tempfile::tempdir().unwrap();
        let (file, log, address) = (dir.path().join("b.tar.gz"), dir.path().join("m.log"), address.to_string());
        fs::write(&log, "PGPASSWORD=planted psql\n").unwrap();
        let (named, logged) = (file.to_str().unwrap(), log.to_str().unwrap());
        let args = ["support-bundle", "--manager", &address, "--file", named, "--log", logged, "--lines", "10"];
        let output = matriarch(&args);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(fs::File::open(&file).unwrap()));
        let mut names = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            names.push(entry.path().unwrap().display().to_string());
            let mut text = String::new();
            std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
            assert!(!text.contains("planted"), "{names:?}");
        }
        for part in
            ["cluster/status.json", "cluster/events.jsonl", "cluster/matrix.json", "host/proc-meminfo", "about.txt"]
        {
            assert!(names.iter().any(|name| name.ends_with(part)), "{part} in {names:?}");
        }
        let again = matriarch(&args);
        assert_eq!(again.status.code(), Some(1), "it is not written over");
    });
}

#[test]
fn completion_knows_every_command_and_shells_take_it() {
    for shell in ["bash", "zsh", "fish"] {
        let output = matriarch(&["completion", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output).contains("support-bundle"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("matriarch.bash");
    fs::write(&file, matriarch(&["completion", "bash"]).stdout).unwrap();
    let script = format!(
        ". {}; COMP_WORDS=(matriarch top); COMP_CWORD=1; _matriarch matriarch top matriarch; echo \"${{COMPREPLY[*]}}\"",
        file.display()
    );
    let shell = Command::new("bash").args(["--norc", "-c", &script]).output().unwrap();
    assert!(shell.status.success(), "{}", text(&shell));
    assert_eq!(text(&shell).trim(), "topology top");
    let pages = dir.path().join("man1");
    let man = matriarch(&["man", "--dir", pages.to_str().unwrap()]);
    assert_eq!(man.status.code(), Some(0), "{}", text(&man));
    assert!(pages.join("matriarch-config-set.1").exists());
}

#[test]
fn top_wants_a_terminal() {
    let output = matriarch(&["top", "--manager", "127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("`matriarch status` prints the same"), "{}", text(&output));
}
