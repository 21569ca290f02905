//! Kernel lease and client reset, with a server of the test in place of PostgreSQL.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use matriarch::{
    config::{LayerMode, LayersConfig},
    domain::{Epoch, Profile, Timings, moment::TwoClocks},
    guard::sys::two_clocks,
    layers::{
        Layers, LayersOptions, Left,
        kernel_lease::{KernelLease, Written},
        sockets::Sockets,
    },
};

use crate::{Privilege, figure, in_namespace};

const PORT: u16 = 5432;
const PATIENCE: Duration = Duration::from_secs(10);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn in_time(after: Duration) -> TwoClocks {
    two_clocks().plus(after)
}

fn options(config: LayersConfig) -> LayersOptions {
    LayersOptions {
        cluster: "main".into(),
        me: "n1".parse().unwrap(),
        config,
        port: PORT,
        listen_addresses: "127.0.0.1".into(),
        runtime_dir: PathBuf::from("/nonexistent"),
        timings: Timings::of(Profile::Fast),
    }
}

fn layers(kernel_lease: LayerMode, client_reset: LayerMode) -> Layers {
    Layers::open(options(LayersConfig { kernel_lease, client_reset, ..LayersConfig::default() })).unwrap()
}

fn automatic() -> Layers {
    layers(LayerMode::Automatic, LayerMode::Automatic)
}

fn lease_alone() -> KernelLease {
    KernelLease::open("main", "n1", PORT, vec!["127.0.0.1".parse().unwrap()]).unwrap()
}

fn word(layers: &Layers, name: &str) -> String {
    layers.views().into_iter().find(|l| l.name == name).unwrap().state
}

fn until(what: &str, mut check: impl FnMut() -> bool) {
    let began = Instant::now();
    while !check() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        thread::sleep(ms(2));
    }
}

/// Both ends of a connection to a server at that address.
fn connected(address: &str) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(address).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    server.set_nodelay(true).unwrap();
    (server, client)
}

/// One byte from server to client, within a moment.
fn passes(server: &mut TcpStream, client: &mut TcpStream) -> bool {
    client.set_read_timeout(Some(ms(150))).unwrap();
    server.write_all(b"x").unwrap();
    let got = client.read(&mut [0; 1]);
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    match got {
        Ok(n) => n == 1,
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn answers_pass_until_the_deadline_and_not_after_it() {
    in_namespace("gate::answers_pass_until_the_deadline_and_not_after_it", Privilege::NetAdmin, || {
        let layers = automatic();
        assert_eq!(word(&layers, "kernel lease"), "ready");
        let mut late = Vec::new();
        for round in 0..5_u64 {
            let (mut server, mut client) = connected("127.0.0.1:5432");
            let deadline = in_time(ms(400));
            layers.arm(Epoch(round), deadline).unwrap();
            assert_eq!(word(&layers, "kernel lease"), "active");
            // One that moves the deadline once; then user space has stopped, as far as the kernel can tell.
            let deadline = in_time(ms(700));
            assert!(layers.moved(Epoch(round), deadline));
            // Each answer says when it was written, which is not after it was sent.
            let writer = thread::spawn(move || {
                let end = Instant::now() + ms(1_000);
                while Instant::now() < end {
                    server.write_all(&two_clocks().boot.as_secs_f64().to_be_bytes()).unwrap();
                    thread::sleep(ms(1));
                }
                server
            });
            client.set_read_timeout(Some(ms(600))).unwrap();
            let (mut answer, mut last) = ([0; 8], 0.0);
            while client.read_exact(&mut answer).is_ok() {
                last = f64::from_be_bytes(answer);
            }
            let server = writer.join().unwrap();
            let early = deadline.boot.as_secs_f64() - last;
            late.push(-early * 1e3);
            assert!(early >= 0.0, "an answer written {:.1} ms after the deadline arrived", -early * 1e3);
            assert!(early < 0.250, "the last answer came {:.1} ms before the deadline already", early * 1e3);
            drop((server, client));
            layers.stand_down(Left::Nothing);
            until("the table is gone", || word(&layers, "kernel lease") == "ready");
        }
        figure("last answer after the deadline, kernel lease alone", "ms", late);
    });
}

#[test]
fn whoever_is_stopped_on_the_way_to_the_kernel_opens_nothing() {
    in_namespace("gate::whoever_is_stopped_on_the_way_to_the_kernel_opens_nothing", Privilege::NetAdmin, || {
        let (mut server, mut client) = connected("127.0.0.1:5432");
        let mut lease = lease_alone();
        let deadline = in_time(ms(60_000));
        assert_eq!(lease.install(deadline, two_clocks), Ok(Written::Restored));
        assert!(passes(&mut server, &mut client));
        // Between the look at the clock and the kernel's answer a minute passes, each time.
        let mut looks = 0;
        let stopped = || {
            looks += 1;
            two_clocks().plus(ms(60_000) * (looks - 1))
        };
        assert_eq!(lease.refresh(in_time(ms(50_000)), stopped), Ok(Written::Closed));
        assert!(!passes(&mut server, &mut client), "the kernel was left with a time that had passed");
        // Only a little: the next try is in time.
        let mut looks = 0;
        let slow = || {
            looks += 1;
            two_clocks().plus(if looks == 2 { ms(20) } else { ms(0) })
        };
        assert_eq!(lease.refresh(deadline, slow), Ok(Written::Reopened));
        // One whose deadline has passed.
        assert_eq!(lease.refresh(two_clocks(), two_clocks), Ok(Written::Closed));
        lease.remove().unwrap();
    });
}

#[test]
fn a_ruleset_that_somebody_flushed_is_put_back_with_the_next_renewal() {
    in_namespace(
        "gate::a_ruleset_that_somebody_flushed_is_put_back_with_the_next_renewal",
        Privilege::NetAdmin,
        || {
            let (mut server, mut client) = connected("127.0.0.1:5432");
            let layers = automatic();
            layers.arm(Epoch(1), in_time(ms(60_000))).unwrap();
            let mut somebody = lease_alone();
            somebody.remove().unwrap();
            assert!(!somebody.is_present().unwrap());
            assert!(layers.moved(Epoch(1), in_time(ms(60_000))));
            until("it is back", || somebody.is_present().unwrap());
            assert!(passes(&mut server, &mut client), "and open");
            assert!(layers.moved(Epoch(1), in_time(ms(100))));
            until("it lapses", || !passes(&mut server, &mut client));
            // A deadline of an epoch that is over opens nothing.
            assert!(layers.moved(Epoch(0), in_time(ms(60_000))));
            thread::sleep(ms(50));
            assert!(!passes(&mut server, &mut client));
            layers.stand_down(Left::Standby);
            until("it is gone", || !somebody.is_present().unwrap());
        },
    );
}

#[test]
fn other_servers_of_the_host_are_left_alone() {
    in_namespace("gate::other_servers_of_the_host_are_left_alone", Privilege::NetAdmin, || {
        let (mut mine, mut my_client) = connected("127.0.0.1:5432");
        let (mut port, mut port_client) = connected("127.0.0.1:5433");
        let (mut address, mut address_client) = connected("127.0.0.2:5432");
        let layers = automatic();
        layers.arm(Epoch(1), in_time(ms(50))).unwrap();
        until("it lapses", || !passes(&mut mine, &mut my_client));
        assert!(passes(&mut port, &mut port_client), "another port");
        assert!(passes(&mut address, &mut address_client), "another address");
        // A client on this host of a server elsewhere with the same port: its packets come from no port of ours.
        assert!(TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], 5432)), ms(200)).is_err());
        let _elsewhere = TcpListener::bind("127.0.0.3:5432").unwrap();
        assert!(TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 3], 5432)), ms(500)).is_ok());
        layers.stand_down(Left::Nothing);
        until("it is gone", || word(&layers, "kernel lease") == "ready");
        assert!(passes(&mut port, &mut port_client) && passes(&mut address, &mut address_client), "not reset either");
    });
}

#[test]
fn every_address_is_guarded_when_the_server_listens_everywhere() {
    in_namespace("gate::every_address_is_guarded_when_the_server_listens_everywhere", Privilege::NetAdmin, || {
        let (mut four, mut four_client) = connected("0.0.0.0:5432");
        let (mut six, mut six_client) = connected("[::1]:5432");
        let config = LayersConfig::default();
        let layers = Layers::open(LayersOptions { listen_addresses: "*".into(), ..options(config) }).unwrap();
        layers.arm(Epoch(1), in_time(ms(300))).unwrap();
        assert!(passes(&mut four, &mut four_client) && passes(&mut six, &mut six_client));
        until("it lapses", || !passes(&mut four, &mut four_client));
        assert!(!passes(&mut six, &mut six_client));
        layers.stand_down(Left::Standby);
    });
}

/// Measured: without the reset the kernel sends it as soon as the table is gone.
#[test]
fn an_answer_written_after_the_lease_never_arrives() {
    in_namespace("gate::an_answer_written_after_the_lease_never_arrives", Privilege::NetAdmin, || {
        let layers = automatic();
        let mut took = Vec::new();
        for _ in 0..5 {
            let (mut server, mut client) = connected("127.0.0.1:5432");
            layers.arm(Epoch(1), in_time(ms(100))).unwrap();
            thread::sleep(ms(150));
            server.write_all(b"COMMIT").unwrap();
            // Long after T_kill the server is found to be dead.
            thread::sleep(Timings::of(Profile::Fast).kill);
            drop(server);
            let ended = Instant::now();
            layers.stand_down(Left::Nothing);
            let got = client.read(&mut [0; 64]);
            took.push(ended.elapsed().as_secs_f64() * 1e3);
            assert_eq!(got.unwrap_err().kind(), ErrorKind::ConnectionReset, "the answer, or silence");
            until("the table is gone", || word(&layers, "kernel lease") == "ready");
        }
        figure("client sees the reset after the tree is found empty", "ms", took);
    });
}

#[test]
fn without_the_reset_the_table_stays_until_no_connection_holds_an_answer() {
    let name = "gate::without_the_reset_the_table_stays_until_no_connection_holds_an_answer";
    in_namespace(name, Privilege::NetAdmin, || {
        let layers = layers(LayerMode::Automatic, LayerMode::Off);
        assert_eq!(word(&layers, "client reset"), "off");
        let (mut server, mut client) = connected("127.0.0.1:5432");
        layers.arm(Epoch(1), in_time(ms(50))).unwrap();
        thread::sleep(ms(100));
        server.write_all(b"COMMIT").unwrap();
        thread::sleep(Timings::of(Profile::Fast).kill);
        drop(server);
        layers.stand_down(Left::Nothing);
        until("it says so", || word(&layers, "kernel lease").starts_with("clearing: 1 connection"));
        // PostgreSQL is started again as a standby; that changes nothing.
        layers.stand_down(Left::Standby);
        let refused = layers.arm(Epoch(2), in_time(ms(60_000))).unwrap_err();
        assert_eq!(refused, "connections of the fenced server still hold answers that were never sent");
        // Longer than the kernel waits to send it again.
        client.set_read_timeout(Some(ms(1_500))).unwrap();
        let silence = client.read(&mut [0; 64]).unwrap_err().kind();
        assert!(matches!(silence, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{silence:?}");
        // The client gives up: its reset ends what is left.
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        until("the table is gone", || word(&layers, "kernel lease") == "ready");
        layers.arm(Epoch(2), in_time(ms(60_000))).unwrap();
        layers.stand_down(Left::Nothing);
    });
}

#[test]
fn clients_of_a_fenced_server_see_a_reset_without_a_kernel_lease_too() {
    let name = "gate::clients_of_a_fenced_server_see_a_reset_without_a_kernel_lease_too";
    in_namespace(name, Privilege::NetAdmin, || {
        let layers = layers(LayerMode::Off, LayerMode::Automatic);
        assert_eq!((word(&layers, "kernel lease"), word(&layers, "client reset")), ("off".into(), "ready".into()));
        let (mut server, mut client) = connected("127.0.0.1:5432");
        layers.arm(Epoch(1), in_time(ms(50))).unwrap();
        // More than the client's window: what is left would be sent for minutes.
        server.set_nonblocking(true).unwrap();
        while server.write(&[0; 65_536]).is_ok() {}
        drop(server);
        let mut sockets = Sockets::open(PORT, Vec::new()).unwrap();
        assert_eq!(sockets.with_unsent(), Ok(1));
        layers.stand_down(Left::Nothing);
        until("it is ended", || sockets.with_unsent() == Ok(0));
        let mut buffer = vec![0; 1 << 20];
        let end = loop {
            match client.read(&mut buffer) {
                Ok(0) => panic!("it was all delivered"),
                Ok(_) => {}
                Err(error) => break error.kind(),
            }
        };
        assert_eq!(end, ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_standby_that_was_not_promoted_goes_on_serving() {
    in_namespace("gate::a_standby_that_was_not_promoted_goes_on_serving", Privilege::NetAdmin, || {
        let (mut server, mut client) = connected("127.0.0.1:5432");
        let layers = automatic();
        layers.arm(Epoch(1), in_time(ms(50))).unwrap();
        thread::sleep(ms(100));
        layers.stand_down(Left::Standby);
        until("the table is gone", || word(&layers, "kernel lease") == "ready");
        until("reads go on", || passes(&mut server, &mut client));
    });
}

#[test]
fn what_a_killed_agent_left_is_taken_over_or_removed() {
    in_namespace("gate::what_a_killed_agent_left_is_taken_over_or_removed", Privilege::NetAdmin, || {
        let (mut server, mut client) = connected("127.0.0.1:5432");
        let first = automatic();
        first.arm(Epoch(1), in_time(ms(60_000))).unwrap();
        drop(first);
        let mut somebody = lease_alone();
        assert!(somebody.is_present().unwrap(), "what protects goes on");
        let second = automatic();
        second.resume(Epoch(1), in_time(ms(60_000)));
        until("it is active", || word(&second, "kernel lease") == "active");
        assert!(passes(&mut server, &mut client));
        drop((second, server));
        // The next finds nothing running.
        let third = automatic();
        third.stand_down(Left::Nothing);
        until("it is removed", || !somebody.is_present().unwrap());
        // And one that is switched off removes it at its start.
        let fourth = automatic();
        fourth.arm(Epoch(2), in_time(ms(10))).unwrap();
        drop(fourth);
        let _off = layers(LayerMode::Off, LayerMode::Off);
        assert!(!somebody.is_present().unwrap());
    });
}

#[test]
fn without_the_privilege_it_says_what_it_needs() {
    in_namespace("gate::without_the_privilege_it_says_what_it_needs", Privilege::None, || {
        let layers = automatic();
        assert_eq!(word(&layers, "kernel lease"), "unavailable: needs CAP_NET_ADMIN");
        assert_eq!(word(&layers, "client reset"), "unavailable: needs CAP_NET_ADMIN");
        assert_eq!(word(&layers, "watchdog"), "off");
        // The rest works.
        layers.arm(Epoch(1), in_time(ms(50))).unwrap();
        assert!(layers.moved(Epoch(1), in_time(ms(50))));
        layers.stand_down(Left::Nothing);
        let required = LayersConfig { kernel_lease: LayerMode::Required, ..LayersConfig::default() };
        let refused = Layers::open(options(required)).unwrap_err();
        assert_eq!(refused.to_string(), "the kernel lease is required and needs CAP_NET_ADMIN");
    });
}

#[test]
fn a_refresh_is_cheap() {
    in_namespace("gate::a_refresh_is_cheap", Privilege::NetAdmin, || {
        let mut lease = lease_alone();
        lease.install(in_time(ms(60_000)), two_clocks).unwrap();
        let mut took = Vec::new();
        for n in 0..2_000_u64 {
            let (deadline, began) = (in_time(ms(60_000 + n)), Instant::now());
            assert_eq!(lease.refresh(deadline, two_clocks), Ok(Written::Refreshed));
            took.push(began.elapsed().as_secs_f64() * 1e6);
        }
        lease.remove().unwrap();
        took.sort_by(f64::total_cmp);
        eprintln!("figure: 99th percentile of a refresh: {:.0} µs", took[took.len() * 99 / 100]);
        let median = took[took.len() / 2];
        figure("one refresh of the kernel lease", "µs", took);
        assert!(median < 5_000.0, "{median} µs");
        // What it costs the thread that renews.
        let layers = automatic();
        layers.arm(Epoch(1), in_time(ms(60_000))).unwrap();
        let mut took = Vec::new();
        for _ in 0..2_000 {
            let (deadline, began) = (in_time(ms(60_000)), Instant::now());
            assert!(layers.moved(Epoch(1), deadline));
            took.push(began.elapsed().as_secs_f64() * 1e6);
        }
        figure("handing a deadline to the layers, on the holder's thread", "µs", took);
        layers.stand_down(Left::Nothing);
        until("it is removed", || !lease.is_present().unwrap());
    });
}
