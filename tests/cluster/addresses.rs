//! An address that others put on the primary's host, by a health check: vip-manager, and keepalived by the shipped example. And
//! Matriarch's own for standbys.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use matriarch::{
    demo::rig::{Contact, Rig, Role},
    rpc::v1::StatusReply,
};
use nix::{
    ifaddrs::getifaddrs,
    sched::{CloneFlags, setns},
    sys::signal::{Signal, killpg},
    unistd::{Pid, geteuid},
};

use crate::{
    clients::program,
    drivers::{installed, switched},
    stage::{Promise, SOON, others, until},
};

const VIRTUAL: &str = "10.213.0.100";
const STANDBYS: [u8; 4] = [10, 213, 0, 101];

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
    holders_of(rig, VIRTUAL)
}

fn holders_of(rig: &Rig, address: &str) -> Vec<String> {
    let has = |host: &String| {
        let namespace = rig.netns(host).unwrap().unwrap();
        let shown = Command::new("ip").args(["-n", &namespace, "-o", "address"]).output().unwrap();
        String::from_utf8_lossy(&shown.stdout).contains(&format!("{address}/"))
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

/// Where hosts have networks of their own: the address for standbys, on which PostgreSQL listens; nothing else of the layers.
pub fn with_one_for_standbys(text: &str) -> String {
    if !geteuid().is_root() {
        return text.to_owned();
    }
    let listens = |line: &str| match line.starts_with("listen_addresses") {
        true => "listen_addresses = \"0.0.0.0\"\n".to_owned(),
        false => format!("{line}\n"),
    };
    let [a, b, c, d] = STANDBYS;
    let layers = format!(
        "\n[layers]\nkernel_lease = \"off\"\nclient_reset = \"off\"\nvip_interface = \"eth0\"\n\
         vip_standby_address = \"{a}.{b}.{c}.{d}/24\"\n"
    );
    text.lines().map(listens).collect::<String>() + &layers
}

/// Looks all the time whether a host has the address for standbys.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<(Instant, Instant)>>,
}

impl Watch {
    fn start(rig: &Rig, host: &str) -> Watch {
        let namespace = fs::File::open(Path::new("/run/netns").join(rig.netns(host).unwrap().unwrap())).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            let mut times: Vec<(Instant, Instant)> = Vec::new();
            let mut was = false;
            while !stopped.load(Ordering::SeqCst) {
                let before = Instant::now();
                let here = is_here();
                match times.last_mut() {
                    Some(last) if here && was => last.1 = before,
                    _ if here => times.push((Instant::now(), before)),
                    _ => {}
                }
                was = here;
                thread::sleep(Duration::from_millis(1));
            }
            times
        });
        Watch { stop, thread }
    }

    /// From when to when it was there, for certain.
    fn times(self) -> Vec<(Instant, Instant)> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

fn is_here() -> bool {
    let mut all = getifaddrs().unwrap().filter_map(|found| found.address?.as_sockaddr_in().map(|a| a.ip()));
    all.any(|ip| ip.octets() == STANDBYS)
}

/// Whoever has it, by the log; when the others see that it is on that host alone.
fn settles(rig: &Rig, but: &[&str]) -> String {
    let address = STANDBYS.map(|part| part.to_string()).join(".");
    let mut reader = String::new();
    until("another standby has the address for standbys", SOON, || {
        let status = rig.status().unwrap_or_default();
        reader.clone_from(&status.reader);
        let fit = !reader.is_empty() && reader != status.primary && !but.contains(&reader.as_str());
        fit && holders_of(rig, &address) == [reader.as_str()]
    });
    let port = rig.contact(&reader).unwrap().postgres_port;
    let to = SocketAddr::from((STANDBYS, port));
    until("a client is let in there", SOON, || TcpStream::connect_timeout(&to, Duration::from_millis(200)).is_ok());
    reader
}

/// Its host is lost, then stands still with everything that Matriarch runs there, then is cut off: each time the address goes, and
/// then comes to the other standby.
pub fn a_standby_has_the_address_for_standbys_and_never_two_hosts(rig: &Rig, before: &StatusReply) -> Promise {
    let began = Instant::now();
    let Some(switch) = rig.switch() else {
        println!("there is no network for each host: passed over");
        return Promise::no_loss(began);
    };
    let mut watches: Vec<Watch> = rig.members().iter().map(|host| Watch::start(rig, host)).collect();
    let first = settles(rig, &[]);
    let moved = |what: &str, from: &str| {
        let began = Instant::now();
        let to = settles(rig, &[from]);
        println!("{what}: the address for standbys was on {to} after {:?}", began.elapsed());
        assert_ne!(to, before.primary);
        to
    };
    rig.kill_host(&first).unwrap();
    let second = moved("host lost", &first);
    rig.boot_host(&first).unwrap();
    // Its network was made anew.
    watches.push(Watch::start(rig, &first));
    let well = || rig.healthy(SOON).unwrap();
    well();

    // Whoever confirms stands still, too.
    rig.transfer_leader(&second);
    let frozen: Vec<i32> = [Role::Manager, Role::Agent].iter().filter_map(|role| rig.pid(&second, *role)).collect();
    assert_eq!(frozen.len(), 2);
    let signal_all = |signal| frozen.iter().for_each(|pid| assert!(rig.signal(*pid, signal).is_ok()));
    signal_all(Signal::SIGSTOP);
    let third = moved("manager and agent stopped", &second);
    signal_all(Signal::SIGCONT);
    well();

    let cable = |state: &str| {
        let done = Command::new("ip").args(["-n", &switch, "link", "set", &third, state]).status().unwrap();
        assert!(done.success());
    };
    cable("down");
    let fourth = moved("cut off", &third);
    cable("up");
    well();
    assert_eq!(settles(rig, &[]), fourth, "whoever comes back gets nothing back");

    let all: Vec<(Instant, Instant)> = watches.into_iter().flat_map(Watch::times).collect();
    assert!(all.len() >= 4, "{all:?}");
    for (n, one) in all.iter().enumerate() {
        let both = all.iter().skip(n + 1).find(|other| one.0 < other.1 && other.0 < one.1);
        assert!(both.is_none(), "it was on two hosts: {one:?} and {both:?}");
    }
    Promise::no_loss(began)
}
