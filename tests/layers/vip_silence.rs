//! Nothing of ours runs any more on the host that has the virtual address, and the kernel, whose look at lifetimes may come
//! seconds late, has not taken it away: with the end of the lease the host is silent about it all the same.

use std::{
    fs::File,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    process::Command,
    thread,
    time::Instant,
};

use matriarch::{
    config::LayerMode,
    domain::{Epoch, moment::TwoClocks},
    guard::sys::two_clocks,
    layers::{Layers, Left, Serving},
};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::Signal,
    unistd::Uid,
};

use crate::{
    Namespace, Privilege, figure,
    host::ruleset,
    in_namespace, ip,
    neighbour::Asker,
    primary::runs,
    vip::{V4, V6, in_time, interface, lease_word, ms, options, until},
    vip_hosts::{Actor, HOLD, Lan, PORT},
};

#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Stopped,
    Killed,
}

/// Does something in a network namespace.
fn within<T: Send>(namespace: &Namespace, body: impl FnOnce() -> T + Send) -> T {
    let file = File::open(format!("/run/netns/{}", namespace.0)).unwrap();
    let enter = || {
        setns(file, CloneFlags::CLONE_NEWNET).unwrap();
        body()
    };
    thread::scope(|scope| scope.spawn(enter).join().unwrap())
}

fn output(namespace: &Namespace, program: &[&str]) -> String {
    let mut command = Command::new("ip");
    let output = command.args(["netns", "exec", &namespace.0]).args(program).output().unwrap();
    assert!(output.status.success(), "{program:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn left(deadline: TwoClocks) -> f64 {
    deadline.holder_remaining(two_clocks()).as_secs_f64() * 1e3
}

/// Asks all the time until after the deadline; how long before it was the last question that was answered, in ms.
pub fn ask_until_after(deadline: TwoClocks, asker: &Asker) -> f64 {
    let (mut last, over) = (f64::NAN, Instant::now() + deadline.holder_remaining(two_clocks()) + ms(300));
    while Instant::now() < over {
        let before = left(deadline);
        if asker.is_answered(ms(1)) {
            assert!(before > 0.0, "answered after the lease");
            last = before;
        }
    }
    last
}

/// As by a kernel that doesn't look at lifetimes for a minute.
fn keep(namespace: &Namespace, address: &str) {
    let given = format!("{address}/24");
    let times = ["valid_lft", "60", "preferred_lft", if address == V6 { "0" } else { "60" }];
    let mut all = vec!["-n", &namespace.0, "addr", "change", &given, "dev", "eth0"];
    all.extend(times);
    if address == V4 {
        all.extend(["label", "eth0:vip"]);
    } else {
        all.push("nodad");
    }
    ip(&all);
}

fn falls_silent(address: &'static str, end: End) -> f64 {
    let lan = Lan::build();
    let mut a = Actor::start(&lan.a, &format!("host a {address}"));
    let deadline = in_time(HOLD);
    a.order(&format!("hold 1 {} {}", deadline.boot.as_nanos(), deadline.raw.as_nanos()));
    a.order("is active");
    match end {
        End::Stopped => a.signal(Signal::SIGSTOP),
        End::Killed => a.signal(Signal::SIGKILL),
    }
    keep(&lan.a, address);
    let (target, from): (IpAddr, &str) =
        (address.parse().unwrap(), if address == V4 { "10.77.0.3" } else { "fd77::3" });
    let before = within(&lan.client, || {
        let asker = Asker::new("eth0", target, from.parse().unwrap());
        let connects = || TcpStream::connect_timeout(&SocketAddr::new(target, PORT), ms(200)).map_err(|e| e.kind());
        assert!(asker.is_answered(ms(200)), "the lease is held");
        if end == End::Stopped {
            connects().expect("the kernel accepts for a process that is stopped");
            return ask_until_after(deadline, &asker);
        }
        until("nobody listens", || connects().is_err_and(|kind| kind == ErrorKind::ConnectionRefused));
        // Nobody wakes an idle processor: one question, right after the end.
        thread::sleep(deadline.holder_remaining(two_clocks()));
        assert!(!asker.is_answered(ms(100)), "answered after the lease");
        0.0
    });
    let shown = output(&lan.a, &["ip", "addr", "show", "dev", "eth0"]);
    assert!(shown.contains(&format!("{address}/24")), "it is still there: {shown}");
    // Who has its hardware address gets no further either.
    let kind = within(&lan.client, || TcpStream::connect_timeout(&SocketAddr::new(target, PORT), ms(200)));
    assert_eq!(kind.unwrap_err().kind(), ErrorKind::TimedOut);
    // The host's own question by ARP would be heard like an answer.
    if address == V4 {
        let arrived = within(&lan.client, || {
            Command::new("ip").args(["neigh", "flush", "dev", "eth0"]).status().unwrap();
            let _ = Command::new("ip")
                .args(["netns", "exec", &lan.a.0, "ping", "-c1", "-W1", "-I", V4, "10.77.0.77"])
                .output();
            Command::new("ip").args(["neigh", "show", "to", V4]).output().unwrap().stdout
        });
        assert!(!String::from_utf8(arrived).unwrap().contains("lladdr"));
    }
    // Whoever goes on, or comes next, clears it up.
    if end == End::Stopped {
        a.signal(Signal::SIGCONT);
    } else {
        a = Actor::start(&lan.a, &format!("host a {address}"));
        a.order("release");
    }
    a.order("is ready");
    until("the rules are gone", || !output(&lan.a, &["/usr/sbin/nft", "list", "ruleset"]).contains("matriarch"));
    assert!(!output(&lan.a, &["ip", "addr", "show", "dev", "eth0"]).contains(&format!("{address}/24")));
    before
}

fn all_fall_silent(end: End) {
    if !Uid::effective().is_root() {
        eprintln!("passed over, network namespaces need root");
        return;
    }
    for address in [V4, V6] {
        let early: Vec<f64> = (0..runs().div_ceil(2)).map(|_| falls_silent(address, end)).collect();
        if end == End::Stopped {
            let label = if address == V4 { "IPv4" } else { "IPv6" };
            figure(
                &format!("{label}, {end:?}: last question about the address that was answered, before the deadline"),
                "ms",
                early,
            );
        }
    }
}

#[test]
fn a_stopped_host_that_still_has_the_address_is_silent_with_the_end_of_the_lease() {
    all_fall_silent(End::Stopped);
}

#[test]
fn a_killed_agents_host_that_still_has_the_address_is_silent_with_the_end_of_the_lease() {
    all_fall_silent(End::Killed);
}

/// Who waits for an answer of the dead is told.
#[test]
fn the_reset_of_a_session_by_the_address_passes_after_the_lease() {
    if !Uid::effective().is_root() {
        eprintln!("passed over, network namespaces need root");
        return;
    }
    let lan = Lan::build();
    let mut a = Actor::start(&lan.a, &format!("host a {V4}"));
    let deadline = in_time(HOLD);
    a.order(&format!("hold 1 {} {}", deadline.boot.as_nanos(), deadline.raw.as_nanos()));
    a.order("is active");
    a.signal(Signal::SIGSTOP);
    keep(&lan.a, V4);
    within(&lan.client, || {
        let target: IpAddr = V4.parse().unwrap();
        let asker = Asker::new("eth0", target, "10.77.0.3".parse().unwrap());
        let mut session = TcpStream::connect_timeout(&SocketAddr::new(target, PORT), ms(200)).unwrap();
        session.write_all(b"question").unwrap();
        ask_until_after(deadline, &asker);
        session.set_read_timeout(Some(ms(2_000))).unwrap();
        a.signal(Signal::SIGKILL);
        assert_eq!(session.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
}

/// As `nft` shows it, without the time that is left.
fn shown() -> String {
    let lines = ruleset();
    let lines = lines.lines().map(str::trim).map(|line| line.split(" timeout ").next().unwrap());
    lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_rules_name_the_address_and_nothing_else() {
    in_namespace("vip_silence::the_rules_name_the_address_and_nothing_else", Privilege::NetRaw, || {
        interface();
        for (address, expected) in [(V4, RULES_V4), (V6, RULES_V6)] {
            let layers = Layers::open(options(address, "eth0", LayerMode::Automatic)).unwrap();
            assert_eq!((lease_word(&layers).as_str(), shown().as_str()), ("ready", ""));
            layers.arm(Epoch(1), in_time(HOLD)).unwrap();
            layers.serve(Serving::Open);
            until("it stands", || lease_word(&layers) == "active");
            assert_eq!(shown(), expected.trim());
            layers.stand_down(Left::Nothing);
            until("it is gone", || lease_word(&layers) == "ready" && shown().is_empty());
        }
    });
}

const RULES_V4: &str = r"
table arp matriarch.main.n1.vip {
set lease {
type ipv4_addr
flags timeout
elements = { 10.77.0.100
}
chain output {
type filter hook output priority filter; policy accept;
arp htype 1 arp ptype ip arp hlen 6 arp plen 4 arp saddr ip 10.77.0.100 arp saddr ip != @lease drop
}
}
table inet matriarch.main.n1.vip {
set lease {
type ipv4_addr
flags timeout
elements = { 10.77.0.100
}
chain output {
type filter hook output priority raw; policy accept;
tcp flags & rst == rst accept
ip saddr 10.77.0.100 ip saddr != @lease drop
}
chain input {
type filter hook input priority raw; policy accept;
ip daddr 10.77.0.100 ip daddr != @lease drop
}
}
";
const RULES_V6: &str = r"
table inet matriarch.main.n1.vip {
set lease {
type ipv6_addr
flags timeout
elements = { fd77::100
}
chain output {
type filter hook output priority raw; policy accept;
tcp flags & rst == rst accept
ip6 saddr fd77::100 ip6 saddr != @lease drop
icmpv6 type nd-neighbor-advert @th,64,128 0xfd770000000000000000000000000100 @th,64,128 != @lease drop
}
chain input {
type filter hook input priority raw; policy accept;
ip6 daddr fd77::100 ip6 daddr != @lease drop
}
}
";
