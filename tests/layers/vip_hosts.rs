//! Two hosts and a client on one bridge: the virtual address moves, the client's own
//! neighbour table learns it, and it is never on both. Each host is a process of its
//! own in a network namespace of its own, so that it can be killed and stopped.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use matriarch::{
    config::LayerMode,
    domain::{Epoch, moment::TwoClocks},
    layers::{Layers, Left, Serving},
};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::Signal,
    unistd::Uid,
};

use crate::{
    Namespace, Privilege, as_postgres, figure,
    host::signal,
    ip,
    vip::{V4, V6, in_time, is_here, keep_for_long, ms, options, word},
    vip_guard::Guarded,
};

/// `host NAME ADDRESS`, `client ADDRESS` or `late ADDRESS`: what this process is.
const ROLE: &str = "MATRIARCH_TEST_VIP_ROLE";
pub const PORT: u16 = 5432;
const PATIENCE: Duration = Duration::from_secs(10);
/// As with profile `normal`.
pub const HOLD: Duration = Duration::from_millis(2_500);
const RENEW: Duration = Duration::from_millis(300);
/// What another member waits for after the last renewal.
const GRANT: Duration = Duration::from_millis(3_200);

/// Only what the other tests start does anything here.
#[test]
fn one_host_or_client() {
    let Ok(role) = std::env::var(ROLE) else { return };
    match role.split(' ').collect::<Vec<_>>()[..] {
        ["host", name, address] => be_host(name, address),
        ["client", address] => be_client(address),
        ["late", address] => {
            keep_for_long(address, 24);
            obey(|words| panic!("{words:?}"));
        }
        _ => panic!("no such role: {role}"),
    }
}

/// Answers connections with its name, and obeys.
fn be_host(name: &str, address: &str) {
    let any = if address.contains(':') { "[::]" } else { "0.0.0.0" };
    let listener = TcpListener::bind(format!("{any}:{PORT}")).unwrap();
    let me = name.to_owned();
    thread::spawn(move || listener.incoming().for_each(|client| drop(client.unwrap().write_all(me.as_bytes()))));
    let layers = Layers::open(options(address, "eth0", LayerMode::Required)).unwrap();
    let renewing = Arc::new(AtomicBool::new(false));
    let mut guarded = None;
    obey(|words| match words {
        ["guard"] => guarded = Some(Guarded::spawn([Some(address.parse().unwrap()), None])),
        ["bye"] => guarded.take().unwrap().bye(),
        ["lead", epoch] => {
            let epoch = Epoch(epoch.parse().unwrap());
            let guard = guarded.as_ref().map(|guarded| guarded.handle.clone());
            let arm = move |at| guard.as_ref().is_none_or(|guard| guard.arm(epoch, at));
            assert!(arm(in_time(HOLD)));
            layers.arm(epoch, in_time(HOLD)).unwrap();
            renewing.store(true, Ordering::SeqCst);
            let (layers, renewing) = (layers.clone(), renewing.clone());
            layers.serve(Serving::Open);
            thread::spawn(move || {
                let mut last = Instant::now();
                // A lease that is over is not renewed.
                while renewing.load(Ordering::SeqCst) && last.elapsed() < HOLD {
                    last = Instant::now();
                    // The deadline counts from the sending.
                    let deadline = in_time(HOLD);
                    thread::sleep(ms(1));
                    if !arm(deadline) {
                        // As with a lease: a guard that has fenced is renewed no more.
                        return;
                    }
                    assert!(layers.moved(epoch, deadline));
                    thread::sleep(RENEW);
                }
            });
        }
        ["hold", epoch, boot, raw] => {
            let of = |nanos: &str| Duration::from_nanos(nanos.parse().unwrap());
            layers.arm(Epoch(epoch.parse().unwrap()), TwoClocks { boot: of(boot), raw: of(raw) }).unwrap();
            layers.serve(Serving::Open);
        }
        ["release"] => {
            renewing.store(false, Ordering::SeqCst);
            layers.serve(Serving::Keep);
            layers.lead_nobody();
            layers.stand_down(Left::Nothing);
        }
        ["is", wanted] => drop(until(wanted, || word(&layers) == *wanted)),
        _ => panic!("{words:?}"),
    });
}

/// Connects when told to and says who answered.
fn be_client(address: &str) {
    let to = SocketAddr::new(address.parse().unwrap(), PORT);
    let answers = |wanted: &str| {
        let Ok(mut stream) = TcpStream::connect_timeout(&to, ms(50)) else { return false };
        let mut answer = String::new();
        stream.set_read_timeout(Some(ms(500))).unwrap();
        stream.read_to_string(&mut answer).is_ok_and(|_| answer == wanted)
    };
    obey(|words| {
        let ["ask", wanted] = words else { panic!("{words:?}") };
        until(wanted, || answers(wanted));
    });
}

fn obey(mut order: impl FnMut(&[&str])) {
    println!("@");
    for line in std::io::stdin().lines() {
        order(&line.unwrap().split(' ').collect::<Vec<_>>());
        println!("@");
    }
}

fn until(what: &str, mut check: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !check() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        thread::sleep(ms(1));
    }
    began.elapsed()
}

/// A process in a namespace. Killed when dropped.
pub struct Actor {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Actor {
    pub fn start(namespace: &Namespace, role: &str) -> Actor {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &namespace.0]).args(as_postgres(Privilege::NetRaw));
        command.arg(std::env::current_exe().unwrap());
        command.args(["--exact", "vip_hosts::one_host_or_client", "--nocapture"]).env(ROLE, role).current_dir("/");
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (orders, answers) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let mut actor = Actor { process, orders, answers: BufReader::new(answers) };
        actor.wait();
        actor
    }

    pub fn order(&mut self, text: &str) {
        writeln!(self.orders, "{text}").unwrap();
        self.wait();
    }

    fn wait(&mut self) {
        let mut line = String::new();
        // The test harness writes lines of its own.
        while !line.trim_end().ends_with('@') {
            line.clear();
            assert_ne!(self.answers.read_line(&mut line).unwrap(), 0, "it has ended");
        }
    }

    pub fn signal(&self, which: Signal) {
        // ip, setpriv and the test replace each other by exec.
        signal(self.process.id(), which);
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Looks all the time whether a namespace has the address.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<(Instant, Instant, bool)>>,
}

impl Watch {
    fn start(namespace: &Namespace, address: &'static str) -> Watch {
        let file = File::open(format!("/run/netns/{}", namespace.0)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            let mut seen = Vec::new();
            while !stopped.load(Ordering::SeqCst) {
                let before = Instant::now();
                let here = is_here(address);
                seen.push((before, Instant::now(), here));
                thread::sleep(Duration::from_micros(500));
            }
            seen
        });
        Watch { stop, thread }
    }

    /// From when to when it was seen, for certain, each time.
    fn times(self) -> Vec<(Instant, Instant)> {
        self.stop.store(true, Ordering::SeqCst);
        let mut times: Vec<(Instant, Instant)> = Vec::new();
        let mut was = false;
        for (before, after, here) in self.thread.join().unwrap() {
            match times.last_mut() {
                Some(last) if here && was => last.1 = before,
                _ if here => times.push((after, after)),
                _ => {}
            }
            was = here;
        }
        times
    }
}

/// The bridge and what hangs on it.
pub struct Lan {
    _bridge: Namespace,
    pub a: Namespace,
    pub b: Namespace,
    pub client: Namespace,
}

fn mac(number: u8) -> String {
    format!("02:00:00:00:77:{number:02x}")
}

impl Lan {
    pub fn build() -> Lan {
        let bridge = Namespace::create();
        ip(&["-n", &bridge.0, "link", "add", "br0", "type", "bridge", "forward_delay", "0"]);
        ip(&["-n", &bridge.0, "link", "set", "br0", "up"]);
        let attach = |number: u8| {
            let host = Namespace::create();
            let port = format!("p{number}");
            let peer = ["peer", "name", "eth0", "address", &mac(number), "netns", &host.0];
            ip(&[["-n", &bridge.0, "link", "add", &port, "type", "veth"].as_slice(), &peer].concat());
            ip(&["-n", &bridge.0, "link", "set", &port, "master", "br0", "up"]);
            ip(&["-n", &host.0, "addr", "add", &format!("10.77.0.{number}/24"), "dev", "eth0"]);
            ip(&["-n", &host.0, "addr", "add", &format!("fd77::{number}/64"), "dev", "eth0", "nodad"]);
            ip(&["-n", &host.0, "link", "set", "eth0", "up"]);
            host
        };
        Lan { a: attach(1), b: attach(2), client: attach(3), _bridge: bridge }
    }

    /// Where the client sends packets for the address.
    fn neighbour(&self, address: &str) -> String {
        let output = Command::new("ip").args(["-n", &self.client.0, "neigh", "show", "to", address]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_whitespace().skip_while(|word| *word != "lladdr").nth(1).unwrap_or_default().to_owned()
    }
}

/// How the first host loses the lock.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Released,
    Killed,
    Stopped,
    /// Stopped, while its guard runs and the kernel is seconds late.
    Guarded,
}

fn moves(address: &'static str, end: End) {
    if !Uid::effective().is_root() {
        eprintln!("passed over, network namespaces need root");
        return;
    }
    let lan = Lan::build();
    let mut a = Actor::start(&lan.a, &format!("host a {address}"));
    let mut b = Actor::start(&lan.b, &format!("host b {address}"));
    let mut client = Actor::start(&lan.client, &format!("client {address}"));
    let watches = [Watch::start(&lan.a, address), Watch::start(&lan.b, address)];
    if end == End::Guarded {
        a.order("guard");
    }
    a.order("lead 1");
    a.order("is active");
    client.order("ask a");
    assert_eq!(lan.neighbour(address), mac(1));
    // As long as the announcements take, and some renewals.
    thread::sleep(ms(2_500));
    let ended = Instant::now();
    match end {
        End::Released => a.order("release"),
        End::Killed => a.signal(Signal::SIGKILL),
        End::Stopped => a.signal(Signal::SIGSTOP),
        End::Guarded => {
            a.signal(Signal::SIGSTOP);
            drop(Actor::start(&lan.a, &format!("late {address}")));
        }
    }
    if end != End::Released {
        // The promises of the voters end, counted from the last renewal.
        thread::sleep((GRANT - RENEW).saturating_sub(ended.elapsed()));
    }
    assert_eq!(lan.neighbour(address), mac(1), "it has no reason yet to doubt it");
    b.order("lead 2");
    b.order("is active");
    let learnt = until("the client's table has the new host", || lan.neighbour(address) == mac(2));
    client.order("ask b");
    if matches!(end, End::Stopped | End::Guarded) {
        // Whoever goes on finds its lease over.
        a.signal(Signal::SIGCONT);
        a.order("is ready");
        client.order("ask b");
    }
    if end == End::Guarded {
        a.order("bye");
    }
    let [on_a, on_b] = watches.map(Watch::times);
    assert_eq!((on_a.len(), on_b.len()), (1, 1), "each had it once");
    assert!(on_a[0].1 < on_b[0].0, "it was on both for {:?}", on_a[0].1 - on_b[0].0);
    let gone = on_a[0].1.saturating_duration_since(ended);
    let expected = if end == End::Guarded { HOLD - RENEW - ms(50)..HOLD + ms(400) } else { ms(0)..HOLD };
    assert!(expected.contains(&gone), "gone {gone:?} after the end, {expected:?} expected");
    assert!(learnt < ms(500), "the client learnt it {learnt:?} after it was put up");
    let label = if address == V4 { "IPv4" } else { "IPv6" };
    figure(&format!("{label}, {end:?}: address gone after"), "ms", vec![gone.as_secs_f64() * 1e3]);
    figure(&format!("{label}, {end:?}: neighbour table changed after"), "ms", vec![learnt.as_secs_f64() * 1e3]);
}

#[test]
fn the_address_moves_and_the_client_follows_at_once() {
    moves(V4, End::Released);
    moves(V6, End::Released);
}

#[test]
fn whoever_is_killed_has_lost_the_address_before_anybody_else_gets_it() {
    moves(V4, End::Killed);
    moves(V6, End::Killed);
}

#[test]
fn whoever_is_stopped_has_lost_the_address_before_anybody_else_gets_it() {
    moves(V4, End::Stopped);
    moves(V6, End::Stopped);
}

/// The kernel alone would keep it for 18 s, and the address would be on both.
#[test]
fn where_the_kernel_is_late_the_guard_of_a_stopped_agent_takes_the_address_away() {
    moves(V4, End::Guarded);
    moves(V6, End::Guarded);
}
