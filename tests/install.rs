//! Follows docs/install.md step by step on three hosts: each a network namespace
//! with an /etc, a /var/lib and a /run of its own. Every block of the page is
//! run, but for those that install packages, build, copy by ssh, or need systemd.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use support::{MATRIARCH, assert_same, bin_dir, listing, until};

const MEMBERS: [&str; 3] = ["n1", "n2", "n3"];
/// One block of the page; the longest wait is for two clones, on a busy machine.
const BLOCK: Duration = Duration::from_secs(60);

fn address(member: &str) -> String {
    format!("10.214.0.{}", &member[1..])
}

// ---- the page ------------------------------------------------------------------------------------------------

/// The labelled blocks of the page, in its order.
fn blocks() -> Vec<(String, String)> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/install.md")).unwrap();
    let mut blocks: Vec<(String, String)> = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        match line.strip_prefix("```") {
            Some(_) if inside => inside = false,
            Some(label) => {
                inside = true;
                blocks.push((label.to_owned(), String::new()));
            }
            None if inside => {
                let (_, text) = blocks.last_mut().unwrap();
                text.push_str(line);
                text.push('\n');
            }
            None => {}
        }
    }
    blocks
}

// ---- hosts ---------------------------------------------------------------------------------------------------

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// The namespaces of this test. Dropping it kills what runs in them and removes them.
struct Network {
    prefix: String,
}

impl Network {
    const NAME: &str = "mti";

    fn create() -> Network {
        // What a killed test left behind.
        for name in namespaces() {
            let owner = name.strip_prefix(Self::NAME).and_then(|rest| rest.split_once('-')?.0.parse::<u32>().ok());
            if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                remove(&name);
            }
        }
        let network = Network { prefix: format!("{}{}", Self::NAME, std::process::id()) };
        let switch = network.namespace("sw");
        run("ip", &["netns", "add", &switch]);
        run("ip", &["-n", &switch, "link", "add", "br0", "type", "bridge"]);
        run("ip", &["-n", &switch, "link", "set", "br0", "up"]);
        for member in MEMBERS {
            let inside = network.namespace(member);
            run("ip", &["netns", "add", &inside]);
            let cable =
                ["-n", &switch, "link", "add", member, "type", "veth", "peer", "name", "eth0", "netns", &inside];
            run("ip", &cable);
            run("ip", &["-n", &switch, "link", "set", member, "master", "br0", "up"]);
            run("ip", &["-n", &inside, "address", "add", &format!("{}/24", address(member)), "dev", "eth0"]);
            run("ip", &["-n", &inside, "link", "set", "lo", "up"]);
            run("ip", &["-n", &inside, "link", "set", "eth0", "up"]);
        }
        network
    }

    fn namespace(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in namespaces().into_iter().filter(|n| n.starts_with(&format!("{}-", self.prefix))) {
            remove(&name);
        }
    }
}

fn namespaces() -> Vec<String> {
    fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .collect()
}

/// Processes in a namespace.
fn processes(namespace: &str) -> Vec<i32> {
    let output = Command::new("ip").args(["netns", "pids", namespace]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Kills everything in a namespace, then removes it. One round is not enough: a process may fork meanwhile.
fn remove(namespace: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let pids = processes(namespace);
        if pids.is_empty() || Instant::now() > deadline {
            break;
        }
        kill_all(&pids);
        thread::sleep(Duration::from_millis(20));
    }
    // In a Drop nothing can be done about a failure; the next run tries again.
    let _ = Command::new("ip").args(["netns", "del", namespace]).status();
}

fn kill_all(pids: &[i32]) {
    for pid in pids {
        // One that is gone already is as wanted.
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
}

/// One host: a root shell that stays open, as the page wants it.
struct Host {
    member: &'static str,
    namespace: String,
    dir: PathBuf,
    shell: Child,
    blocks: usize,
}

impl Host {
    fn boot(member: &'static str, network: &Network, base: &Path) -> Host {
        let dir = base.join(member);
        for name in ["blocks", "var-lib", "run", "bin"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        let namespace = network.namespace(member);
        let log = File::create(dir.join("shell.log")).unwrap();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &namespace, "unshare", "--mount", "--propagation", "private"]);
        command.args(["bash", "--noprofile", "--norc"]).env_clear().current_dir("/");
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("LANG", "C.UTF-8");
        command.env("MEMBER", member).env("ADDRESS", address(member)).env("CLIENTS", "10.214.0.0/24");
        for other in MEMBERS {
            command.env(other.to_uppercase(), address(other));
        }
        command.stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log);
        let shell = command.spawn().unwrap();
        let mut host = Host { member, namespace, dir, shell, blocks: 0 };
        // Step 2 of the page leaves no cluster of the distribution.
        host.begin(&format!(
            "cp -a /etc {dir}/etc
             rm -rf {dir}/etc/matriarch {dir}/etc/postgresql
             : > {dir}/bin/matriarch
             mount --bind {MATRIARCH} {dir}/bin/matriarch
             mount --rbind {dir}/bin /usr/local/bin
             mount --bind {dir}/etc /etc
             mount --bind {dir}/var-lib /var/lib
             mount --bind {dir}/run /run",
            dir = host.dir.display()
        ));
        host.finish("what a host has");
        host
    }

    /// Lets the shell run a text, and goes on.
    fn begin(&mut self, text: &str) {
        self.blocks += 1;
        let script = self.dir.join(format!("blocks/{}.sh", self.blocks));
        fs::write(&script, text).unwrap();
        let line = format!("set -e; . {0} < /dev/null; set +e; : > {0}.done\n", script.display());
        self.shell.stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
    }

    /// Waits until the shell has run it without an error.
    fn finish(&mut self, what: &str) {
        let done = self.dir.join(format!("blocks/{}.sh.done", self.blocks));
        let deadline = Instant::now() + BLOCK;
        while !done.exists() {
            let ended = self.shell.try_wait().unwrap();
            if ended.is_some() || Instant::now() > deadline {
                let failed = if ended.is_some() { "failed" } else { "takes too long" };
                panic!("{}: block `{what}` {failed}\n{}", self.member, self.logs());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn logs(&self) -> String {
        let mut text = fs::read_to_string(self.dir.join("shell.log")).unwrap();
        for member in MEMBERS {
            for process in ["agent", "manager", "router"] {
                let log = self.dir.with_file_name(member).join(format!("run/matriarch/{process}.log"));
                let log = fs::read_to_string(log).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let last = lines[lines.len().saturating_sub(40)..].join("\n");
                text.push_str(&format!("---- {process} of {member}\n{last}\n"));
            }
        }
        text
    }

    /// Runs a command on this host beside its shell.
    fn inside(&self, command: &str) -> std::process::Output {
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--target", &self.shell.id().to_string(), "--net", "--mount", "bash", "-c", command]);
        nsenter.stdin(Stdio::null()).output().unwrap()
    }

    /// What it prints, whatever its exit code.
    fn ask(&self, command: &str) -> String {
        String::from_utf8(self.inside(command).stdout).unwrap()
    }

    /// Kills agent, guard and PostgreSQL, and waits until they are gone.
    fn kill_postgres_and_agent(&self) {
        until("the end of the agent and its PostgreSQL", Duration::from_secs(10), || {
            let pids: Vec<i32> = processes(&self.namespace).into_iter().filter(|pid| is_of_agent(*pid)).collect();
            kill_all(&pids);
            pids.is_empty().then_some(())
        });
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

fn is_of_agent(pid: i32) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    line.starts_with("matriarch agent") || line.contains(" guard ") || line.contains("postgres")
}

/// Asks until the answer is as wanted; shows the last one otherwise.
fn until_said(host: &Host, command: &str, what: &str, wanted: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + BLOCK;
    loop {
        let said = host.ask(command);
        if wanted(&said) {
            return said;
        }
        assert!(Instant::now() < deadline, "not within {BLOCK:?}: {what}; `{command}` says\n{said}\n{}", host.logs());
        thread::sleep(Duration::from_millis(200));
    }
}

/// Waits until `status --json` on this host says that all is well.
fn healthy(host: &Host) -> serde_json::Value {
    let parsed = |said: &str| serde_json::from_str::<serde_json::Value>(said).unwrap_or_default();
    let wanted = |said: &str| parsed(said)["healthy"] == true;
    parsed(&until_said(host, "matriarch status --json", "a healthy cluster", wanted))
}

// ---- the test ------------------------------------------------------------------------------------------------

#[test]
fn the_install_page_leads_to_a_healthy_cluster() {
    if !geteuid().is_root() {
        eprintln!("skipped: network namespaces need root");
        return;
    }
    let base = tempfile::tempdir().unwrap();
    fs::set_permissions(base.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    // Dropped before the directory, and after the shells, whatever happens.
    let network = Network::create();
    let mut hosts = MEMBERS.map(|member| Host::boot(member, &network, base.path()));

    let mut seen = BTreeSet::new();
    let began = Instant::now();
    for (label, text) in blocks() {
        match label.as_str() {
            "sh all-hosts" | "sh all-hosts no-systemd" => {
                hosts.iter_mut().for_each(|h| h.begin(&text));
                hosts.iter_mut().for_each(|h| h.finish(&label));
            }
            "sh one-host" => {
                hosts[0].begin(&text);
                hosts[0].finish(&text);
            }
            "sh one-host copy" => copy_secrets(base.path()),
            "sh all-hosts packages" | "sh all-hosts build" | "sh all-hosts systemd" => {}
            other => panic!("the page has a block that this test doesn't know: {other}"),
        }
        eprintln!("{:6.1} s  {label}: {}", began.elapsed().as_secs_f64(), text.lines().next().unwrap_or_default());
        seen.insert(label);
    }
    assert_eq!(seen.len(), 7, "{seen:?}");

    let status = healthy(&hosts[2]);
    assert_eq!(
        (&status["primary"], &status["lock"], &status["cluster"]),
        (&"n1".into(), &"open".into(), &"main".into())
    );
    assert_eq!(status["members"].as_array().unwrap().len(), 3);
    assert_eq!(status["members"][2]["lag_bytes"], 0, "{status}");
    let said = fs::read_to_string(base.path().join("n1/shell.log")).unwrap();
    for wanted in ["Cluster main: healthy", "INSERT 0 1", " t", " matriarch", "n2 is primary", "n1 is primary"] {
        assert!(said.lines().any(|l| l.contains(wanted)), "no `{wanted}` in\n{said}");
    }

    a_foreign_database_is_left_alone(&mut hosts);
    eprintln!("{:6.1} s  done", began.elapsed().as_secs_f64());
}

/// Stands in for the page's scp.
fn copy_secrets(base: &Path) {
    for to in ["n2", "n3"] {
        for name in ["secret", "superuser.pass", "replication.pass"] {
            let place = |host: &str| base.join(host).join("etc/matriarch").join(name);
            let (from, to) = (place("n1"), place(to));
            run("cp", &["-p", from.to_str().unwrap(), to.to_str().unwrap()]);
        }
    }
}

/// The data directory of n3 is exchanged for one of another system identifier.
fn a_foreign_database_is_left_alone(hosts: &mut [Host]) {
    const AGENT: &str = "as_postgres matriarch agent >> /run/matriarch/agent.log 2>&1 &";
    let (first, rest) = hosts.split_first_mut().unwrap();
    let n3 = &mut rest[1];
    let data = n3.dir.join("var-lib/matriarch/pgdata");
    let mine = data.with_extension("mine");
    n3.kill_postgres_and_agent();
    fs::rename(&data, &mine).unwrap();
    n3.begin(&format!(
        "as_postgres {}/initdb --no-sync -A scram-sha-256 --pwfile /etc/matriarch/superuser.pass \
         -D /var/lib/matriarch/pgdata\n",
        bin_dir().display()
    ));
    n3.finish("initdb");
    let before = listing(&data);
    n3.begin(AGENT);
    n3.finish("agent");

    let named = |status: &str| {
        status
            .lines()
            .any(|l| l.starts_with("n3: ") && l.contains("its data belongs to another cluster: system identifier "))
    };
    until_said(first, "matriarch status", "the foreign database named", named);
    assert_eq!(first.inside("matriarch status").status.code(), Some(4));
    let explained = first.ask("matriarch explain");
    assert!(explained.contains("the data directory of n3 has system identifier "), "{explained}");
    assert_same(&before, &listing(&data));

    n3.kill_postgres_and_agent();
    fs::remove_dir_all(&data).unwrap();
    fs::rename(&mine, &data).unwrap();
    n3.begin(AGENT);
    n3.finish("agent");
    healthy(first);
}
