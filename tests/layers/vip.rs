//! The virtual address on one host: when it is there and for how long, and what of the
//! host's own is left alone. Several hosts: [`crate::vip_hosts`].

use std::{
    hint,
    net::IpAddr,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use matriarch::{
    config::{LayerMode, LayersConfig, VipConfig},
    domain::{Epoch, Profile, Timings, moment::TwoClocks, observation::READER_LAYER},
    guard::sys::two_clocks,
    layers::{Layers, LayersOptions, Left, Serving},
    rpc::v1::{self, PostgresState as State, order::Action},
};
use nix::{ifaddrs::getifaddrs, sys::signal::Signal};

use crate::{
    Privilege, figure,
    host::{Cluster, bin_dir, layer, ruleset, signal},
    in_namespace, ip,
    neighbour::Asker,
    vip_silence::ask_until_after,
};

pub const V4: &str = "10.77.0.100";
pub const V6: &str = "fd77::100";
pub const LAYER: &str = "virtual address";
const PATIENCE: Duration = Duration::from_secs(10);

pub fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub fn in_time(after: Duration) -> TwoClocks {
    two_clocks().plus(after)
}

pub fn options(address: &str, interface: &str, mode: LayerMode) -> LayersOptions {
    let vip = VipConfig { mode, address: address.parse().unwrap(), prefix: 24, interface: interface.into() };
    let config = LayersConfig {
        kernel_lease: LayerMode::Off,
        client_reset: LayerMode::Off,
        vip: Some(Box::new(vip)),
        ..LayersConfig::default()
    };
    LayersOptions {
        cluster: "main".into(),
        me: "n1".parse().unwrap(),
        config,
        port: 5432,
        listen_addresses: "*".into(),
        runtime_dir: PathBuf::from("/nonexistent"),
        timings: Timings::of(Profile::Normal),
    }
}

fn open(address: &str) -> Layers {
    Layers::open(options(address, "eth0", LayerMode::Automatic)).unwrap()
}

pub fn word(layers: &Layers) -> String {
    layers.views().into_iter().find(|l| l.name == LAYER).unwrap().state
}

/// What the lease of the address in the kernel says.
pub fn lease_word(layers: &Layers) -> String {
    layers.views().into_iter().find(|l| l.name == "address lease").unwrap().state
}

/// Whether this network namespace has the address.
pub fn is_here(address: &str) -> bool {
    let wanted: IpAddr = address.parse().unwrap();
    getifaddrs().unwrap().filter_map(|found| found.address).any(|found| {
        let v4 = found.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| found.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip()))) == Some(wanted)
    })
}

/// Keeps every processor busy until it is dropped. An idle one may run the kernel's look at lifetimes a second late and more
/// (docs/layers.md), and that is not what is asked here.
struct Awake {
    ended: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Awake {
    fn start() -> Awake {
        let ended = Arc::new(AtomicBool::new(false));
        let spin = |ended: Arc<AtomicBool>| {
            move || {
                while !ended.load(Ordering::Relaxed) {
                    hint::spin_loop();
                }
            }
        };
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let threads = (0..processors).map(|_| thread::spawn(spin(Arc::clone(&ended)))).collect();
        Awake { ended, threads }
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

pub fn until(what: &str, mut check: impl FnMut() -> bool) {
    let began = Instant::now();
    while !check() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        thread::sleep(ms(1));
    }
}

/// As somebody who flushes the ruleset.
fn remove_rules(address: &str) {
    assert!(ruleset().contains(address));
    let nft = Command::new("/usr/sbin/nft").args(["flush", "ruleset"]).status().unwrap();
    assert!(nft.success() && !ruleset().contains("matriarch"));
}

/// An interface with a neighbour that nobody is.
pub fn interface() {
    ip(&["link", "add", "eth0", "type", "veth", "peer", "name", "eth1"]);
    ip(&["link", "set", "eth0", "up"]);
    ip(&["link", "set", "eth1", "up"]);
}

/// Both addresses on one interface; the one for standbys with `prefix` 24, too.
pub fn open_both(address: &str, standbys: &str) -> Layers {
    let mut options = options(address, "eth0", LayerMode::Automatic);
    let reader = VipConfig { address: standbys.parse().unwrap(), ..options.config.vip.as_deref().unwrap().clone() };
    options.config.vip_standby = Some(Box::new(reader));
    Layers::open(options).unwrap()
}

fn reader_word(layers: &Layers) -> String {
    layers.views().into_iter().find(|l| l.name == READER_LAYER).unwrap().state
}

#[test]
fn the_one_for_standbys_is_here_while_it_is_lent_and_takes_no_notice_of_the_other() {
    let name = "vip::the_one_for_standbys_is_here_while_it_is_lent_and_takes_no_notice_of_the_other";
    in_namespace(name, Privilege::NetRaw, || {
        interface();
        // Else the kernel would take the second of the network away with the first.
        ip(&["addr", "add", "10.77.0.1/24", "dev", "eth0"]);
        assert!(open(V4).views().iter().all(|layer| layer.name != READER_LAYER), "nobody asked for it");
        for (address, standbys) in [(V4, "10.77.0.101"), (V6, "fd77::101"), (V4, "fd77::101")] {
            let layers = open_both(address, standbys);
            assert_eq!((word(&layers).as_str(), reader_word(&layers).as_str()), ("ready", "ready"));
            layers.lend_reader(Some((4, in_time(ms(2_500)))));
            thread::sleep(ms(100));
            assert!(!is_here(standbys), "PostgreSQL is not open yet");
            layers.serve_reader(Serving::Open);
            until("it is here", || is_here(standbys) && reader_word(&layers) == "active");
            assert!(!is_here(address));
            // The fallback: both on one host.
            layers.arm(Epoch(1), in_time(ms(2_500))).unwrap();
            layers.serve(Serving::Open);
            until("both are here", || is_here(address) && is_here(standbys));
            let began = Instant::now();
            while began.elapsed() < ms(1_500) {
                layers.lend_reader(Some((4, in_time(ms(2_500)))));
                assert!(layers.moved(Epoch(1), in_time(ms(2_500))));
                thread::sleep(ms(300));
                assert!(is_here(address) && is_here(standbys));
            }
            layers.serve_reader(Serving::Shut);
            until("PostgreSQL is down, so it goes at once", || !is_here(standbys));
            assert!(is_here(address));
            layers.serve_reader(Serving::Open);
            until("it is open again", || is_here(standbys));
            layers.lead_nobody();
            assert!(!is_here(address) && is_here(standbys));
            layers.lend_reader(None);
            until("it is lent to somebody else", || !is_here(standbys) && reader_word(&layers) == "ready");
            // What comes late is of no use, and of an earlier lend not heeded.
            layers.lend_reader(Some((5, in_time(ms(0)))));
            thread::sleep(ms(100));
            assert!(!is_here(standbys));
            layers.lend_reader(Some((4, in_time(ms(5_000)))));
            thread::sleep(ms(100));
            assert!(!is_here(standbys));
            // Without confirmations it lapses, and says so.
            let lent = Instant::now();
            layers.lend_reader(Some((5, in_time(ms(2_500)))));
            until("it is here", || is_here(standbys));
            until("it has lapsed", || !is_here(standbys));
            assert!(lent.elapsed() < ms(2_500), "after {:?}", lent.elapsed());
            // With a short lease, and all killed: a write of the one must not keep the kernel from looking at the other.
            layers.arm(Epoch(2), in_time(ms(1_300))).unwrap();
            layers.serve(Serving::Open);
            layers.lend_reader(Some((6, in_time(ms(2_500)))));
            until("both are here again", || {
                assert!(layers.moved(Epoch(2), in_time(ms(1_300))));
                thread::sleep(ms(20));
                is_here(address) && is_here(standbys)
            });
            let awake = Awake::start();
            let (renewed, deadline) = (Instant::now(), in_time(ms(1_300)));
            assert!(layers.moved(Epoch(2), deadline));
            thread::sleep(ms(850));
            layers.lend_reader(Some((6, in_time(ms(2_500)))));
            thread::sleep(ms(50));
            drop(layers);
            until("it is gone", || !is_here(address));
            assert!(renewed.elapsed() < ms(1_300), "after {:?}", renewed.elapsed());
            drop(awake);
            until("the other is gone", || !is_here(standbys));
        }
    });
}

#[test]
fn it_is_here_while_the_lease_is_held_and_postgresql_is_open() {
    in_namespace("vip::it_is_here_while_the_lease_is_held_and_postgresql_is_open", Privilege::NetRaw, || {
        interface();
        for address in [V4, V6] {
            let layers = open(address);
            assert_eq!(word(&layers), "ready");
            layers.arm(Epoch(1), in_time(ms(2_500))).unwrap();
            assert!(!is_here(address), "PostgreSQL is not open yet");
            layers.serve(Serving::Open);
            until("it is here", || is_here(address));
            until("it says so", || word(&layers) == "active");
            // Renewals as with profile `normal`; without them the kernel would have ended it twice by now.
            let began = Instant::now();
            while began.elapsed() < ms(4_000) {
                assert!(layers.moved(Epoch(1), in_time(ms(2_500))));
                thread::sleep(ms(300));
                assert!(is_here(address), "{:?} after it was put up", began.elapsed());
            }
            assert_eq!(lease_word(&layers), "active");
            remove_rules(address);
            assert!(layers.moved(Epoch(1), in_time(ms(2_500))));
            until("whoever took its rules away, the next renewal brings them back", || ruleset().contains(address));
            ip(&["addr", "del", &format!("{address}/24"), "dev", "eth0"]);
            assert!(layers.moved(Epoch(1), in_time(ms(2_500))));
            until("whoever took it away, the next renewal brings it back", || is_here(address));
            // A stop under the lease ends sessions through it.
            layers.serve(Serving::Keep);
            assert!(layers.moved(Epoch(1), in_time(ms(2_500))));
            thread::sleep(ms(200));
            assert!(is_here(address));
            layers.lead_nobody();
            assert!(!is_here(address), "the lock may be given back now");
            // A renewal that is late brings nothing back.
            assert!(layers.moved(Epoch(1), in_time(ms(2_500))));
            layers.serve(Serving::Open);
            layers.stand_down(Left::Nothing);
            until("the order is carried out", || word(&layers) == "ready" && lease_word(&layers) == "ready");
            assert!(!is_here(address) && !ruleset().contains("matriarch"));
        }
    });
}

#[test]
fn without_renewals_it_stays_almost_as_long_as_the_lease_and_no_longer() {
    in_namespace("vip::without_renewals_it_stays_almost_as_long_as_the_lease_and_no_longer", Privilege::NetRaw, || {
        interface();
        let mut early = Vec::new();
        for hold in [1_300, 2_500, 2_500, 3_900] {
            let layers = open(V4);
            let deadline = in_time(ms(hold));
            layers.arm(Epoch(1), deadline).unwrap();
            layers.serve(Serving::Open);
            until("it is here", || is_here(V4));
            until("it is gone", || !is_here(V4));
            let left = deadline.holder_remaining(two_clocks());
            assert!(!left.is_zero(), "it outlived a lease of {hold} ms");
            assert!(left < ms(600), "gone {left:?} before a lease of {hold} ms");
            early.push(left.as_secs_f64() * 1e3);
            thread::sleep(left + ms(100));
            assert!(!is_here(V4));
        }
        figure("virtual address gone before the lease, nothing renewed, agent runs", "ms", early);
    });
}

#[test]
fn what_the_host_has_of_its_own_is_left_alone() {
    in_namespace("vip::what_the_host_has_of_its_own_is_left_alone", Privilege::NetRaw, || {
        interface();
        let layers = open(V4);
        let own = ["addr", "add", "10.77.0.100/24", "dev", "eth0"];
        ip(&own);
        let problem = "this host has 10.77.0.100 from elsewhere; it has to be nobody's own";
        let required = Layers::open(options(V4, "eth0", LayerMode::Required)).unwrap_err();
        assert_eq!(required.to_string(), format!("the virtual address is required and {problem}"));
        layers.arm(Epoch(1), in_time(ms(60_000))).unwrap();
        assert_eq!(word(&layers), format!("failed: {problem}"));
        layers.serve(Serving::Open);
        thread::sleep(ms(300));
        assert!(!ruleset().contains("matriarch"), "it is not silenced");
        layers.stand_down(Left::Nothing);
        until("the order is carried out", || word(&layers) == "ready");
        assert!(is_here(V4));
        // One that ends by itself may be a DHCP client's.
        ip(&["addr", "change", "10.77.0.100/24", "dev", "eth0", "valid_lft", "600", "preferred_lft", "600"]);
        layers.stand_down(Left::Nothing);
        layers.arm(Epoch(2), in_time(ms(60_000))).unwrap();
        assert!(is_here(V4));
        layers.serve(Serving::Open);
        ip(&["addr", "del", "10.77.0.100/24", "dev", "eth0"]);
        until("it is put up as soon as it is free", || word(&layers) == "active" && is_here(V4));
    });
}

#[test]
fn an_interface_that_is_not_there_is_named_and_awaited() {
    in_namespace("vip::an_interface_that_is_not_there_is_named_and_awaited", Privilege::NetRaw, || {
        let problem = "there is no interface eth0";
        let required = Layers::open(options(V4, "eth0", LayerMode::Required)).unwrap_err();
        assert_eq!(required.to_string(), format!("the virtual address is required and {problem}"));
        let layers = open(V4);
        assert_eq!(word(&layers), format!("unavailable: {problem}"));
        layers.arm(Epoch(1), in_time(ms(60_000))).unwrap();
        layers.serve(Serving::Open);
        until("it is missed", || word(&layers) == format!("failed: {problem}"));
        interface();
        until("it is put up", || word(&layers) == "active" && is_here(V4));
    });
}

#[test]
fn a_required_address_that_can_not_be_put_up_stops_the_renewing() {
    in_namespace("vip::a_required_address_that_can_not_be_put_up_stops_the_renewing", Privilege::NetRaw, || {
        interface();
        let layers = Layers::open(options(V4, "eth0", LayerMode::Required)).unwrap();
        layers.arm(Epoch(1), in_time(ms(60_000))).unwrap();
        layers.serve(Serving::Open);
        until("it is here", || is_here(V4));
        assert!(layers.moved(Epoch(1), in_time(ms(60_000))));
        ip(&["link", "del", "eth0"]);
        until("renewing stops", || !layers.moved(Epoch(1), in_time(ms(60_000))));
        layers.stand_down(Left::Nothing);
        until("the order is carried out", || word(&layers) == "ready");
        let refused = layers.arm(Epoch(2), in_time(ms(60_000))).unwrap_err();
        assert_eq!(refused, "the virtual address is required and there is no interface eth0");
    });
}

#[test]
fn what_a_killed_agent_left_goes_on_or_is_removed() {
    in_namespace("vip::what_a_killed_agent_left_goes_on_or_is_removed", Privilege::NetRaw, || {
        interface();
        for address in [V4, V6] {
            // A lease so long that the kernel would keep the address for 18 s.
            let leave_one = |layers: Layers| {
                layers.arm(Epoch(1), in_time(ms(20_000))).unwrap();
                layers.serve(Serving::Open);
                until("it is here", || word(&layers) == "active" && is_here(address));
                // As a kill: the thread ends and takes nothing away.
                drop(layers);
            };
            leave_one(open(address));
            let next = open(address);
            assert!(is_here(address) && ruleset().contains(address), "its lease may be held");
            next.resume(Epoch(1), in_time(ms(20_000)));
            until("it is taken over", || word(&next) == "active");
            assert!(is_here(address));
            drop(next);
            // And on an interface that is no longer the configured one.
            let next = Layers::open(options(address, "eth1", LayerMode::Automatic)).unwrap();
            next.stand_down(Left::Nothing);
            until("it is removed", || !is_here(address) && !ruleset().contains("matriarch"));
            leave_one(open(address));
            let off = Layers::open(options(address, "eth0", LayerMode::Off)).unwrap();
            assert_eq!((word(&off).as_str(), is_here(address)), ("off", false));
            assert!(!ruleset().contains("matriarch"));
            // Not configured any more: what it is called is not known, and its lifetime ends it; the rules go.
            leave_one(open(address));
            let mut without = options(address, "eth0", LayerMode::Automatic);
            without.config.vip = None;
            assert_eq!(word(&Layers::open(without).unwrap()), "off");
            assert!(is_here(address) && !ruleset().contains("matriarch"));
            ip(&["addr", "del", &format!("{address}/24"), "dev", "eth0"]);
        }
    });
}

#[test]
fn without_the_privilege_it_says_what_it_needs() {
    in_namespace("vip::without_the_privilege_it_says_what_it_needs", Privilege::None, || {
        assert_eq!(word(&open(V4)), "unavailable: needs CAP_NET_ADMIN and CAP_NET_RAW");
        let required = Layers::open(options(V6, "eth0", LayerMode::Required)).unwrap_err();
        let problem = "the virtual address is required and needs CAP_NET_ADMIN and CAP_NET_RAW";
        assert_eq!(required.to_string(), problem);
    });
}

#[test]
fn without_raw_sockets_nobody_could_be_told() {
    in_namespace("vip::without_raw_sockets_nobody_could_be_told", Privilege::NetAdmin, || {
        interface();
        assert_eq!(word(&open(V4)), "unavailable: needs CAP_NET_RAW");
        assert_eq!(word(&open(V6)), "unavailable: needs CAP_NET_RAW");
    });
}

/// With a real agent and PostgreSQL.
#[test]
fn a_standby_never_has_it_and_a_primary_only_until_it_gives_the_lock_back() {
    const TEST: &str = "vip::a_standby_never_has_it_and_a_primary_only_until_it_gives_the_lock_back";
    if bin_dir().is_none() {
        eprintln!("{TEST}: passed over, no PostgreSQL in /usr/lib/postgresql");
        return;
    }
    in_namespace(TEST, Privilege::NetRaw, || tokio::runtime::Runtime::new().unwrap().block_on(primary_and_standby()));
}

async fn primary_and_standby() {
    interface();
    let cluster = Cluster::new();
    let layers = format!("vip = \"required\"\nvip_address = \"{V4}\"\nvip_interface = \"eth0\"");
    let mut host = cluster.host(0, &layers).await;
    host.become_primary(1, 2).await;
    let led = Instant::now();
    until("it is here", || is_here(V4));
    figure("virtual address here after PostgreSQL is seen open", "ms", vec![led.elapsed().as_secs_f64() * 1e3]);
    host.until("the layer is active", |s| layer(s, LAYER) == "active").await;
    // A restart of the agent: the next one takes it over, or puts it up again when it sees that PostgreSQL is open.
    host.kill_agent();
    host.start_agent().await;
    host.until("it is primary again", |s| s.state() == State::Primary && layer(s, LAYER) == "active").await;
    assert!(is_here(V4));
    // A switchover begins with this.
    host.execute(1, fast_stop()).await.unwrap();
    host.until("it is stopped", |s| s.state() == State::Stopped).await;
    assert!(!is_here(V4));
    // Primary again, and both agent and guard are stopped: the kernel ends it with the lease.
    host.become_primary(2, 3).await;
    until("it is here", || is_here(V4));
    let (agent, guard) = (host.agent_pid(), host.guard_pid());
    signal(agent, Signal::SIGSTOP);
    signal(guard, Signal::SIGSTOP);
    let last = cluster.last_renewal();
    until("it is gone", || !is_here(V4));
    let after = last.elapsed();
    assert!(after < crate::host::timings().hold, "{after:?} after the last renewal");
    figure("agent and guard stopped: last renewal to no virtual address", "ms", vec![after.as_secs_f64() * 1e3]);
    signal(guard, Signal::SIGCONT);
    signal(agent, Signal::SIGCONT);
    until("the lease went on in time, and so does it", || is_here(V4));
    // And once more, between two renewals and on a kernel that would keep it for a minute.
    let went_on = Instant::now();
    until("a renewal is over, and told on", || {
        cluster.last_renewal() > went_on + ms(300) && cluster.last_renewal().elapsed() > ms(50)
    });
    signal(agent, Signal::SIGSTOP);
    signal(guard, Signal::SIGSTOP);
    let times = ["valid_lft", "60", "preferred_lft", "60", "label", "eth0:vip"];
    ip(&[["addr", "change", "10.77.0.100/24", "dev", "eth0"].as_slice(), &times].concat());
    let deadline = two_clocks().plus(crate::host::timings().hold - cluster.last_renewal().elapsed());
    let asker = Asker::new("eth1", V4.parse().unwrap(), "10.77.0.3".parse().unwrap());
    let early = ask_until_after(deadline, &asker);
    assert!(is_here(V4), "it is still there, and nobody hears of it");
    figure(
        "agent and guard stopped: last answer to a question about the address, before the deadline",
        "ms",
        vec![early],
    );
    signal(guard, Signal::SIGCONT);
    signal(agent, Signal::SIGCONT);
    until("it is taken away, and its rules after it", || !is_here(V4) && !ruleset().contains("matriarch"));
    host.until("it is stopped", |s| s.state() == State::Stopped && s.wal_end_known).await;
    host.follow(2, None).await;
    host.until("it is a standby", |s| s.state() == State::Standby && layer(s, LAYER) == "ready").await;
    assert!(!is_here(V4));
    // Primary again, only the agent is stopped, and the kernel is later than it may be: the guard knows the address.
    host.promote(3, 4).await;
    until("it is here", || is_here(V4));
    signal(agent, Signal::SIGSTOP);
    let last = cluster.last_renewal();
    keep_for_long(V4, 32);
    until("it is gone", || !is_here(V4));
    let after = last.elapsed();
    let hold = crate::host::timings().hold;
    assert!((hold - ms(100)..hold + ms(500)).contains(&after), "{after:?} after the last renewal");
    figure(
        "agent stopped, kernel 15 s late: last renewal to no virtual address",
        "ms",
        vec![after.as_secs_f64() * 1e3],
    );
    signal(agent, Signal::SIGCONT);
    host.until("it is fenced", |s| s.state() == State::Stopped && layer(s, LAYER) == "ready").await;
    assert!(!is_here(V4));
}

/// Leaves an address that is here a lifetime of 18 s, and thereby makes the kernel as late as a lifetime of one may be on an idle machine
/// (docs/layers.md), only more.
pub fn keep_for_long(address: &str, prefix: u8) {
    let mut options = options(address, "eth0", LayerMode::Automatic);
    options.config.vip.as_mut().unwrap().prefix = prefix;
    let layers = Layers::open(options).unwrap();
    layers.resume(Epoch(1), in_time(ms(20_000)));
    until("it is written", || word(&layers) == "active");
    assert!(is_here(address));
}

fn fast_stop() -> Action {
    Action::Stop(v1::Stop { mode: v1::StopMode::Fast.into(), keep_lease: false })
}
