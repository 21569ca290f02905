//! What a process can't start with: one line with file and key, an exit code
//! other than 0, and nothing changed on the disk.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    net::{TcpListener, UdpSocket},
    os::unix::fs::symlink,
    process::Command,
    time::Duration,
};

use expect_test::{Expect, expect};
use support::{Ended, Site, as_user, bin_dir, os_user, script, until};

/// Long enough for the slowest machine; a refusal takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// The one line that says why, with this site's own paths and ports replaced.
fn line(site: &Site, ended: &Ended) -> String {
    let mut lines = ended.stderr.lines().filter(|l| l.starts_with("matriarch: "));
    let line = lines.next().unwrap_or_else(|| panic!("no line says why: {ended:?}"));
    assert_eq!(lines.next(), None, "{ended:?}");
    assert!(!ended.stderr.contains("panicked"), "{ended:?}");
    line.replace(site.path("").to_str().unwrap(), "SITE/")
        .replace(bin_dir().to_str().unwrap(), "BIN")
        .replace(&site.manager_port.to_string(), "MANAGER_PORT")
        .replace(&site.read_write_port.to_string(), "RW_PORT")
}

/// Starts `process` with what the site has now: it must refuse, and leave no trace.
fn check(site: &Site, process: &str, expected: Expect) {
    let before = site.listing();
    let ended = site.start(&[process]).ended(PATIENCE);
    let code = ended.code.unwrap_or(-1);
    expected.assert_eq(&format!("{process}: exit {code}\n{}\n", line(site, &ended)));
    support::assert_same(&before, &site.listing());
}

#[test]
fn what_is_wrong_with_the_file_is_told_with_its_key() {
    let site = Site::new();
    site.write(&site.edited(&[("profile = ", "profil = ")]));
    for process in ["manager", "agent", "router"] {
        let ended = site.start(&[process]).ended(PATIENCE);
        assert_eq!(ended.code, Some(2));
        let line = line(&site, &ended);
        assert!(line.starts_with("matriarch: SITE/matriarch.toml: cluster.profil: "), "{line}");
    }
    site.write(&site.edited(&[("# cluster goes on here", "[cluster.timings]\nhold_ms = 100000")]));
    check(
        &site,
        "agent",
        expect![[r#"
        agent: exit 2
        matriarch: SITE/matriarch.toml: cluster.timings.grant_ms: T_grant >= (1+rho) * (T_hold/(1-rho) + T_kill) does not hold (1.650 s against 102.323 s); change this key or the others in the inequality, or use a profile unchanged
    "#]],
    );
    site.write(&site.edited(&[("host = \"127.0.0.3\"", "host = \"db3.invalid\"")]));
    let ended = site.start(&["router"]).ended(PATIENCE);
    let told = line(&site, &ended);
    let start = "matriarch: SITE/matriarch.toml: cluster.members[2].host: host `db3.invalid` doesn't resolve (";
    assert!(told.starts_with(start) && told.ends_with("; use an address, or add the name to /etc/hosts"), "{told}");
    site.write(&site.edited(&[("listen = \"127.0.0.1:", "listen = \"0.0.0.0:")]));
    check(
        &site,
        "manager",
        expect![[r#"
        manager: exit 2
        matriarch: SITE/matriarch.toml: manager.listen: 0.0.0.0:MANAGER_PORT can be reached from other hosts, and nothing is encrypted yet; set cluster.insecure = true on a network you trust, or listen on 127.0.0.1
    "#]],
    );
}

#[test]
fn an_address_of_another_host_is_refused() {
    let site = Site::new();
    let edits = [("listen = \"127.0.0.1:", "listen = \"192.0.2.1:"), ("# cluster goes on here", "insecure = true")];
    site.write(&site.edited(&edits));
    check(
        &site,
        "manager",
        expect![[r#"
        manager: exit 2
        matriarch: SITE/matriarch.toml: manager.listen: can't listen on 192.0.2.1:MANAGER_PORT TCP (Cannot assign requested address (os error 99)); this host doesn't have that address; correct it, or member.id
    "#]],
    );
}

#[test]
fn a_port_in_use_is_refused() {
    let site = Site::new();
    let manager = ("127.0.0.1", site.manager_port);
    let taken = TcpListener::bind(manager).unwrap();
    check(
        &site,
        "manager",
        expect![[r#"
        manager: exit 2
        matriarch: SITE/matriarch.toml: manager.listen: can't listen on 127.0.0.1:MANAGER_PORT TCP (Address already in use (os error 98)); stop what uses it (`ss -lnptu` shows it), or choose another
    "#]],
    );
    drop(taken);
    let taken = UdpSocket::bind(manager).unwrap();
    check(
        &site,
        "manager",
        expect![[r#"
        manager: exit 2
        matriarch: SITE/matriarch.toml: manager.listen: can't listen on 127.0.0.1:MANAGER_PORT UDP (Address already in use (os error 98)); stop what uses it (`ss -lnptu` shows it), or choose another
    "#]],
    );
    drop(taken);
    let taken = TcpListener::bind(("127.0.0.1", site.read_write_port)).unwrap();
    check(
        &site,
        "router",
        expect![[r#"
        router: exit 2
        matriarch: SITE/matriarch.toml: router.read_write: can't listen on 127.0.0.1:RW_PORT (Address already in use (os error 98)); stop what uses it (`ss -lnptu` shows it), or choose another
    "#]],
    );
    // The router's port again, this time for the agent.
    let socket = format!("unix:{}", site.path("run/agent.sock").display());
    let address = format!("tcp:127.0.0.1:{}", site.read_write_port);
    let without_router = site.edited(&[(&socket, &address)]).split("[router]").next().unwrap().to_owned();
    site.write(&without_router);
    check(
        &site,
        "agent",
        expect![[r#"
        agent: exit 2
        matriarch: SITE/matriarch.toml: agent.listen: can't listen on 127.0.0.1:RW_PORT TCP (Address already in use (os error 98)); stop what uses it (`ss -lnptu` shows it), or choose another
    "#]],
    );
    drop(taken);
}

/// The programs of PostgreSQL, but for those that `without` names.
fn programs(site: &Site, without: &str) {
    let dir = site.path("bin");
    fs::create_dir(&dir).unwrap();
    for program in fs::read_dir(bin_dir()).unwrap().map(|e| e.unwrap()) {
        if program.file_name() != without {
            symlink(program.path(), dir.join(program.file_name())).unwrap();
        }
    }
    site.write(&site.edited(&[(bin_dir().to_str().unwrap(), dir.to_str().unwrap())]));
}

#[test]
fn a_missing_program_of_postgresql_is_refused() {
    let site = Site::new();
    programs(&site, "pg_rewind");
    check(
        &site,
        "agent",
        expect![[r#"
        agent: exit 2
        matriarch: SITE/matriarch.toml: postgresql.bin_dir: SITE/bin/pg_rewind can't be run: ENOENT: No such file or directory; name the directory with the programs of PostgreSQL 14 to 18
    "#]],
    );
}

#[test]
fn a_postgresql_that_is_too_old_is_refused() {
    let site = Site::new();
    programs(&site, "postgres");
    script(&site.path("bin/postgres"), "#!/bin/sh\necho 'postgres (PostgreSQL) 12.22'\n");
    check(
        &site,
        "agent",
        expect![[r#"
        agent: exit 2
        matriarch: SITE/matriarch.toml: postgresql.bin_dir: SITE/bin/postgres is of PostgreSQL 12.22, and PostgreSQL 14 to 18 are supported; name the directory with the programs of PostgreSQL 14 to 18
    "#]],
    );
}

/// It would be refused if it came back as the same voter; it waits for a new node instead.
#[test]
fn a_manager_that_lost_its_log_waits_to_be_taken_in() {
    let site = Site::new();
    fs::create_dir(site.path("state/manager")).unwrap();
    let identity = "cluster_id = \"0199c0de\"\ngeneration = 1\nmember = \"n1\"\nnode = 1\n";
    fs::write(site.path("state/manager/identity.toml"), identity).unwrap();
    for name in ["state/manager", "state/manager/identity.toml"] {
        site.give(name);
    }
    let manager = site.start(&["manager"]);
    until("the manager says that it has no log", PATIENCE, || {
        let said = manager.stderr();
        (said.contains("no log it may vote with") && said.contains("waiting to be taken in")).then_some(())
    });
    assert!(manager.stderr().contains("held the log of node 1"), "{}", manager.stderr());
    assert!(!site.path("state/manager/raft").exists(), "no log of node 1 is begun anew");
}

#[test]
fn a_second_agent_on_one_data_directory_is_refused() {
    let site = Site::new();
    let first = site.start(&["agent"]);
    let socket = site.path("run/agent.sock");
    until("the first agent's socket", PATIENCE, || {
        (socket.exists() && first.stderr().contains("agent started")).then_some(())
    });
    check(
        &site,
        "agent",
        expect![[r#"
        agent: exit 2
        matriarch: SITE/matriarch.toml: agent.state_dir: another agent works with SITE/state/agent/agent.lock (it holds the lock); stop the other agent, or give each its own directory
    "#]],
    );
    // With directories of its own, but for the data.
    site.write(&site.edited(&[("/state/agent", "/state/other"), ("/run", "/state/run")]));
    check(
        &site,
        "agent",
        expect![[r#"
        agent: exit 2
        matriarch: SITE/matriarch.toml: postgresql.data_dir: another agent works with SITE/db/pgdata.matriarch-lock (it holds the lock); stop the other agent, or give each its own data directory
    "#]],
    );
}

#[test]
fn a_full_disk_is_refused() {
    let Some(user) = os_user() else {
        eprintln!("skipped: only root can mount a small disk");
        return;
    };
    let site = Site::new();
    // The disk lives and dies with the shell's own mount namespace.
    let shell = r#"
        mount -t tmpfs -o "size=32m,mode=0700,uid=$2" small "$1/$3" || exit 99
        before=$(find "$1" -printf '%p %m %s %T@\n')
        setpriv --reuid="$2" --regid="$2" --init-groups "$4" "$5" --config "$1/matriarch.toml"
        code=$?
        [ "$before" = "$(find "$1" -printf '%p %m %s %T@\n')" ] || exit 98
        exit $code
    "#;
    let run = |dir: &str, process: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", shell, "sh"]).arg(site.path(""));
        command.args([&user.uid.to_string(), dir, support::MATRIARCH, process]);
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let ended = Ended { code: output.status.code(), stderr: stderr.replace("//", "/") };
        format!("exit {}\n{}\n", ended.code.unwrap_or(-1), line(&site, &ended))
    };
    expect![[r#"
        exit 2
        matriarch: SITE/matriarch.toml: manager.state_dir: the disk of SITE/state/manager is full: 32 MiB free; free at least 64 MiB
    "#]].assert_eq(&run("state", "manager"));
    expect![[r#"
        exit 2
        matriarch: SITE/matriarch.toml: postgresql.data_dir: the disk of SITE/db/pgdata is full: 32 MiB free; free at least 64 MiB
    "#]].assert_eq(&run("db", "agent"));
}

/// A database of somebody else lies where ours should be: the cluster isn't
/// founded over it, and `explain` says why.
#[test]
fn a_foreign_data_directory_is_named_and_left_alone() {
    let site = Site::new();
    let data = site.path("db/pgdata");
    let mut initdb = Command::new(bin_dir().join("initdb"));
    initdb.args(["--no-sync", "-A", "scram-sha-256", "-D"]).arg(&data).arg("--pwfile").arg(site.path("secret"));
    let made = as_user(&mut initdb).current_dir("/").output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let control = Command::new(bin_dir().join("pg_controldata")).arg(&data).env("LC_ALL", "C").output().unwrap();
    let control = String::from_utf8(control.stdout).unwrap();
    let system = control.lines().find_map(|l| l.strip_prefix("Database system identifier:")).unwrap().trim();
    let before = support::listing(&data);

    let _agent = site.start(&["agent"]);
    let _manager = site.start(&["manager"]);
    let named = format!("n1: its data directory is not empty: it holds a database with system identifier {system}");
    let asked = |command: &str| {
        let out = Command::new(support::MATRIARCH).args([command, "--config"]).arg(site.file()).output().unwrap();
        String::from_utf8(out.stdout).unwrap()
    };
    let said = until("an explanation", PATIENCE, || Some(asked("explain")).filter(|said| said.contains(&named)));
    assert!(said.contains("n2 (127.0.0.2:7400) does not answer"), "{said}");
    assert!(said.contains("the cluster is not founded"), "{said}");
    assert!(asked("status").contains(&format!("Hold: not founded yet: {named}")), "{}", asked("status"));
    support::assert_same(&before, &support::listing(&data));
}
