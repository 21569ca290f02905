//! An address that others put on the primary's host, by a health check: vip-manager, and keepalived by the shipped example.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use matriarch::{
    demo::rig::{Contact, Rig},
    rpc::v1::StatusReply,
};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::{
    clients::program,
    drivers::{installed, switched},
    stage::{Promise, SOON, others, until},
};

const VIRTUAL: &str = "10.213.0.100";

/// On one host; ends with what it started.
struct Process(Child);

impl Process {
    /// Runs in the host's network, and says what it does to a file beside the host's logs.
    fn start(rig: &Rig, host: &str, mut command: Command, name: &str) -> Self {
        let log = fs::File::create(rig.dir(host).unwrap().join(format!("{name}.log"))).unwrap();
        command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Self(command.spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        let _ = killpg(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), signal);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGCONT);
        // So that it takes its address away.
        self.signal(Signal::SIGTERM);
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(5) && self.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            thread::sleep(Duration::from_millis(50));
        }
        self.signal(Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

fn inside(rig: &Rig, host: &str, program: &Path) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &rig.netns(host).unwrap().unwrap()]).arg(program);
    command
}

/// On whose hosts the address is.
fn holders(rig: &Rig) -> Vec<String> {
    let has = |host: &String| {
        let namespace = rig.netns(host).unwrap().unwrap();
        let shown = Command::new("ip").args(["-n", &namespace, "-o", "address"]).output().unwrap();
        String::from_utf8_lossy(&shown.stdout).contains(&format!("{VIRTUAL}/"))
    };
    rig.members().into_iter().filter(has).collect()
}

/// The first of them that knows Patroni's REST; Debian 12's does not.
fn vip_manager() -> Option<PathBuf> {
    let fetched = installed().join("vip-manager/usr/bin/vip-manager");
    let all = [Some(fetched).filter(|file| file.exists()), program("vip-manager")];
    all.into_iter().flatten().find(|file| {
        let help = Command::new(file).arg("--help").output().unwrap();
        [help.stdout, help.stderr].iter().any(|text| String::from_utf8_lossy(text).contains("consul, patroni"))
    })
}

pub fn vip_manager_by_the_health_check(rig: &Rig, before: &StatusReply) -> Promise {
    let began = Instant::now();
    let Some(program) = vip_manager().filter(|_| rig.switch().is_some()) else {
        println!("no vip-manager that knows Patroni's REST, or no network for each host: passed over");
        return Promise::no_loss(began);
    };
    let start = |host: &String| {
        let Contact { address, rest_port, .. } = rig.contact(host).unwrap();
        let mut command = inside(rig, host, &program);
        command.args(["--dcs-type", "patroni", "--dcs-endpoints", &format!("http://{address}:{rest_port}")]);
        command.args(["--trigger-key", "/primary", "--trigger-value", "200", "--interval", "250"]);
        command.args(["--ip", VIRTUAL, "--netmask", "24", "--interface", "eth0"]);
        Process::start(rig, host, command, "vip-manager")
    };
    follows(rig, before, "vip-manager", &rig.members().iter().map(start).collect::<Vec<_>>())
}

/// The shipped file with the places of this host.
pub fn keepalived_by_the_shipped_example(rig: &Rig, before: &StatusReply) -> Promise {
    let Some(program) = program("keepalived").filter(|_| rig.switch().is_some() && program("curl").is_some()) else {
        println!("keepalived or curl is not installed, or there is no network for each host: passed over");
        return Promise::no_loss(Instant::now());
    };
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/keepalived/keepalived.conf");
    let shipped = fs::read_to_string(shipped).unwrap();
    let start = |host: &String| {
        let own = rig.contact(host).unwrap();
        let peers: Vec<String> = others(rig, &[host]).iter().map(|peer| rig.contact(peer).unwrap().address).collect();
        let text = shipped
            .replace("10.0.0.100", VIRTUAL)
            .replace("10.0.0.1:8008", &format!("{}:{}", own.address, own.rest_port))
            .replace("unicast_src_ip 10.0.0.1\n", &format!("unicast_src_ip {}\n", own.address))
            .replace("        10.0.0.2\n        10.0.0.3\n", &format!("        {}\n", peers.join("\n        ")));
        assert!(!text.lines().any(|line| !line.starts_with('#') && line.contains("10.0.0.")), "{text}");
        let dir = rig.dir(host).unwrap();
        let file = dir.join("keepalived.conf");
        fs::write(&file, text).unwrap();
        let mut command = inside(rig, host, &program);
        command.args(["--dont-fork", "--log-console", "--vrrp", "--use-file"]).arg(&file);
        command.arg("--pid").arg(dir.join("keepalived.pid")).arg("--vrrp_pid").arg(dir.join("vrrp.pid"));
        Process::start(rig, host, command, "keepalived")
    };
    follows(rig, before, "keepalived", &rig.members().iter().map(start).collect::<Vec<_>>())
}

/// The address is where the primary is, before and after a switchover; and whoever stands still keeps it.
fn follows(rig: &Rig, before: &StatusReply, name: &str, processes: &[Process]) -> Promise {
    let old = before.primary.clone();
    until("the address is on the primary's host", SOON, || holders(rig) == [old.as_str()]);
    let [to, _] = others(rig, &[&old]).try_into().expect("three members");
    let began = Instant::now();
    switched(rig, &to);
    until("the address has followed", SOON, || holders(rig) == [to.as_str()]);
    println!("{name}: the address has followed a switchover within {:?}", began.elapsed());

    let stopped = rig.members().iter().position(|host| *host == to).unwrap();
    processes[stopped].signal(Signal::SIGSTOP);
    switched(rig, &old);
    // Nothing of the lease ends it: that is why Matriarch has an address of its own.
    until("two hosts have the address", SOON, || holders(rig).len() == 2);
    processes[stopped].signal(Signal::SIGCONT);
    until("one of them lets it go again", SOON, || holders(rig) == [old.as_str()]);
    Promise::no_loss(began)
}
