//! The router against managers and servers that do as they are told.
#![allow(clippy::unwrap_used)]

mod ahead;
mod carried;
mod drained;
mod fakes;
mod figures;
mod heir;
mod hostile;
mod idle;
mod measure;
#[path = "../support/ports.rs"]
mod ports;
mod real;
mod tls;
mod unconfirmed;

use std::time::Duration;

use fakes::{Backend, Client, GSS_REQUEST, Manager, Mode, Options, SSL_REQUEST, Told, router, standby, state};
use tokio::time::{Instant, sleep};

fn ready(name: &str) -> Told {
    Told::Ready(name.into())
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[tokio::test]
async fn a_session_goes_to_the_primary_and_ends_with_the_client() {
    let a = Backend::start("a").await;
    let manager = Manager::start(state(1, 1, true, Some(&a)));
    let r = router(&[&manager], Options::default()).await;
    let (mut client, server) = Client::session(r.read_write).await;
    assert_eq!(server, "a");
    assert!(client.works().await);
    assert_eq!(r.handle.status().sessions_read_write, 1);
    drop(client);
    r.until("the session has ended", |s| s.sessions_read_write == 0).await;
}

#[tokio::test]
async fn a_new_connection_is_held_until_the_primary_is_open() {
    let a = Backend::start("a").await;
    let manager = Manager::start(state(1, 1, false, Some(&a)));
    let r = router(&[&manager], Options::default()).await;
    let mut early = Client::open(r.read_write).await;
    let mut encrypting = Client::connect(r.read_write).await;
    encrypting.send(&SSL_REQUEST).await;
    r.until_held(2).await;
    r.until_epoch(1).await;
    assert_eq!(a.attempts(), 0, "a closed primary is not even tried");
    manager.say(state(1, 2, true, Some(&a)));
    assert_eq!(early.told().await, ready("a"));
    assert_eq!(encrypting.byte().await, b'N');
    encrypting.start().await;
    assert_eq!(encrypting.told().await, ready("a"));
}

#[tokio::test]
async fn a_hold_in_vain_ends_with_an_error_that_names_the_epoch() {
    let a = Backend::start("a").await;
    let manager = Manager::start(state(7, 1, false, Some(&a)));
    let r = router(&[&manager], Options { hold: ms(300), ..Options::default() }).await;
    let mut client = Client::open(r.read_write).await;
    let (code, message) = ("57P03".to_owned(), "the cluster has no open primary (epoch 7): held 0.3 s".to_owned());
    assert_eq!(client.told().await, Told::Refused(code.clone(), message.clone()));
    client.ended().await;
    let mut encrypting = Client::connect(r.read_write).await;
    encrypting.send(&SSL_REQUEST).await;
    assert_eq!(encrypting.byte().await, b'N');
    encrypting.start().await;
    assert_eq!(encrypting.told().await, Told::Refused(code, message));
    assert_eq!(r.handle.status().held, 0);
}

#[tokio::test]
async fn who_is_held_when_the_cluster_is_stopped_by_command_is_refused_at_once_and_held_again_when_it_wakes() {
    let a = Backend::start("a").await;
    let manager = Manager::start(state(7, 1, false, Some(&a)));
    let r = router(&[&manager], Options { hold: ms(60_000), ..Options::default() }).await;
    let (mut writer, mut reader) = (Client::open(r.read_write).await, Client::open(r.read_only).await);
    let mut encrypting = Client::connect(r.read_write).await;
    encrypting.send(&SSL_REQUEST).await;
    r.until_held(3).await;
    let hibernated = "the cluster is hibernated by kim: move";
    manager.say(matriarch::rpc::v1::RoutingState { hibernated: hibernated.into(), ..state(8, 2, false, None) });
    assert_eq!(encrypting.byte().await, b'N');
    encrypting.start().await;
    let refused = Told::Refused("57P03".into(), format!("{hibernated}: `matriarch start --all` wakes it"));
    for client in [&mut writer, &mut reader, &mut encrypting, &mut Client::open(r.read_write).await] {
        assert_eq!(client.told().await, refused);
        client.ended().await;
    }
    manager.say(state(8, 3, false, None));
    r.until("it wakes", |s| s.version.is_some_and(|v| v.revision == 3)).await;
    let mut early = Client::open(r.read_write).await;
    r.until_held(1).await;
    manager.say(state(8, 4, true, Some(&a)));
    assert_eq!(early.told().await, ready("a"));
}

#[tokio::test]
async fn a_change_of_epoch_cuts_and_the_next_connection_goes_to_the_new_primary() {
    let (a, b) = (Backend::start("a").await, Backend::start("b").await);
    let manager = Manager::start(state(1, 1, true, Some(&a)));
    let r = router(&[&manager], Options::default()).await;
    let (mut first, _) = Client::session(r.read_write).await;
    let (mut second, _) = Client::session(r.read_write).await;
    // A restart in place, or the hold of a switchover: same epoch, closed. Sessions stay.
    manager.say(state(1, 2, false, Some(&a)));
    r.until("closed", |s| !s.open && s.version.is_some()).await;
    assert!(first.works().await);
    let start = Instant::now();
    manager.say(state(2, 3, false, Some(&b)));
    first.ended().await;
    second.ended().await;
    assert!(start.elapsed() < ms(300), "cut after {:?}", start.elapsed());
    assert_eq!(r.handle.status().cut_total, 2);
    let mut held = Client::open(r.read_write).await;
    r.until_held(1).await;
    manager.say(state(2, 4, true, Some(&b)));
    assert_eq!(held.told().await, ready("b"));
}

#[tokio::test]
async fn the_same_member_under_a_new_epoch_gets_new_sessions_only() {
    let a = Backend::start("a").await;
    let manager = Manager::start(state(1, 1, true, Some(&a)));
    let r = router(&[&manager], Options::default()).await;
    let (mut client, _) = Client::session(r.read_write).await;
    manager.say(state(2, 2, true, Some(&a)));
    client.ended().await;
    Client::session(r.read_write).await;
}

#[tokio::test]
async fn a_manager_that_lags_behind_is_not_believed() {
    let (a, b) = (Backend::start("a").await, Backend::start("b").await);
    let ahead = Manager::start(state(2, 5, true, Some(&b)));
    let behind = Manager::start(state(1, 3, true, Some(&a)));
    let mut r = router(&[&behind, &ahead], Options::default()).await;
    r.until_epoch(2).await;
    let (mut client, server) = Client::session(r.read_write).await;
    assert_eq!(server, "b");
    behind.say(state(1, 4, true, Some(&a)));
    sleep(ms(200)).await; // Time for the older state to do harm.
    assert!(client.works().await);
    assert_eq!(Client::session(r.read_write).await.1, "b");
    r.shutdown.send(true).unwrap();
    (&mut r.task).await.unwrap();
    client.ended().await;
}

#[tokio::test]
async fn an_attempt_under_way_moves_on_with_the_epoch() {
    let (a, b) = (Backend::start("a").await, Backend::start("b").await);
    a.set(Mode::Silent);
    let manager = Manager::start(state(1, 1, true, Some(&a)));
    let r = router(&[&manager], Options::default()).await;
    let mut client = Client::open(r.read_write).await;
    let start = Instant::now();
    while a.attempts() == 0 && start.elapsed() < fakes::SOON {
        sleep(ms(5)).await;
    }
    manager.say(state(2, 2, true, Some(&b)));
    assert_eq!(client.told().await, ready("b"));
}

#[tokio::test]
async fn the_death_of_a_manager_is_survived_and_its_return_noticed() {
    let (a, b) = (Backend::start("a").await, Backend::start("b").await);
    let mut manager = Manager::start(state(1, 1, true, Some(&a)));
    let r = router(&[&manager], Options::default()).await;
    let (mut client, _) = Client::session(r.read_write).await;
    manager.kill();
    r.until("no manager", |s| s.managers_followed == 0).await;
    assert!(client.works().await);
    assert_eq!(Client::session(r.read_write).await.1, "a", "new sessions too, on the last confirmed state");
    manager.say(state(2, 2, true, Some(&b)));
    manager.revive();
    client.ended().await;
    assert_eq!(Client::session(r.read_write).await.1, "b");
}

#[tokio::test]
async fn the_other_managers_take_over_when_one_dies_or_freezes() {
    let (a, b) = (Backend::start("a").await, Backend::start("b").await);
    let first = state(1, 1, true, Some(&a));
    let [mut dead, frozen, alive] = [(); 3].map(|()| Manager::start(first.clone()));
    let r = router(&[&dead, &frozen, &alive], Options { stale: ms(900), ..Options::default() }).await;
    r.until("all followed", |s| s.managers_followed == 3).await;
    dead.kill();
    frozen.say(state(999, 0, false, None));
    sleep(ms(1_500)).await; // Longer than the state counts unconfirmed.
    assert!(!r.handle.status().stale);
    alive.say(state(2, 2, true, Some(&b)));
    r.until_epoch(2).await;
    assert_eq!(Client::session(r.read_write).await.1, "b");
}

#[tokio::test]
async fn a_stale_state_fails_closed_and_opens_again() {
    let (a, b) = (Backend::start("a").await, Backend::start("b").await);
    let mut first = state(1, 1, true, Some(&a));
    first.standbys = vec![standby(&b, 0)];
    let mut manager = Manager::start(first);
    let r = router(&[&manager], Options { stale: ms(500), hold: ms(300), ..Options::default() }).await;
    let (mut writer, _) = Client::session(r.read_write).await;
    let (mut reader, server) = Client::session(r.read_only).await;
    assert_eq!(server, "b");
    manager.kill();
    let start = Instant::now();
    writer.ended().await;
    reader.ended().await;
    assert!((ms(400)..ms(2_000)).contains(&start.elapsed()), "cut after {:?}", start.elapsed());
    assert!(r.handle.status().stale);
    for port in [r.read_write, r.read_only] {
        let Told::Refused(code, message) = Client::open(port).await.told().await else { panic!("no refusal") };
        assert_eq!(code, "57P03");
        assert!(message.starts_with("the state known to this router is stale"), "{message}");
    }
    manager.revive();
    r.until("fresh again", |s| !s.stale).await;
    assert_eq!(Client::session(r.read_write).await.1, "a");
}

#[tokio::test]
async fn a_manager_without_contact_does_not_keep_the_state_fresh() {
    let a = Backend::start("a").await;
    let manager = Manager::start(state(1, 1, true, Some(&a)));
    let r = router(&[&manager], Options { stale: ms(500), ..Options::default() }).await;
    let (mut client, _) = Client::session(r.read_write).await;
    let mut alone = state(1, 1, true, Some(&a));
    alone.confirmed_age_ms = 600;
    manager.say(alone);
    client.ended().await;
    assert!(r.handle.status().stale);
}

#[tokio::test]
async fn a_server_that_starts_up_is_retried_and_the_client_sees_nothing() {
    for mode in [Mode::Starting, Mode::Closing] {
        let a = Backend::start("a").await;
        a.set(mode);
        let manager = Manager::start(state(1, 1, true, Some(&a)));
        let r = router(&[&manager], Options::default()).await;
        let mut plain = Client::open(r.read_write).await;
        let mut asking = Client::connect(r.read_write).await;
        asking.send(&GSS_REQUEST).await;
        assert_eq!(asking.byte().await, b'N');
        asking.send(&SSL_REQUEST).await;
        assert_eq!(asking.byte().await, b'N');
        asking.start().await;
        r.until("several attempts", |_| a.attempts() > 6).await;
        a.set(Mode::Open);
        assert_eq!(plain.told().await, ready("a"));
        assert_eq!(asking.told().await, ready("a"));
        assert!(asking.works().await);
    }
}

#[tokio::test]
async fn refused_connections_are_retried_and_so_is_the_request_to_encrypt() {
    let mut a = Backend::start("a").await;
    a.stop().await;
    let manager = Manager::start(state(1, 1, true, Some(&a)));
    let r = router(&[&manager], Options::default()).await;
    let mut plain = Client::open(r.read_write).await;
    let mut asking = Client::connect(r.read_write).await;
    asking.send(&SSL_REQUEST).await;
    r.until_held(2).await;
    sleep(ms(150)).await;
    a.listen().await;
    assert_eq!(plain.told().await, ready("a"));
    assert_eq!(asking.byte().await, b'N');
    // A restart between the answer and the startup packet.
    a.stop().await;
    asking.start().await;
    r.until_held(1).await;
    a.listen().await;
    assert_eq!(asking.told().await, ready("a"));
}

#[tokio::test]
async fn an_error_of_the_server_other_than_not_yet_goes_to_the_client() {
    let a = Backend::start("a").await;
    a.set(Mode::Full);
    let manager = Manager::start(state(1, 1, true, Some(&a)));
    let r = router(&[&manager], Options::default()).await;
    let told = Client::open(r.read_write).await.told().await;
    assert_eq!(told, Told::Refused("53300".into(), "sorry, too many clients already".into()));
    assert_eq!(a.attempts(), 1);
}

#[tokio::test]
async fn encryption_is_passed_through() {
    let a = Backend::start("a").await;
    *a.encrypts.lock().unwrap() = b'S';
    let manager = Manager::start(state(1, 1, true, Some(&a)));
    let r = router(&[&manager], Options::default()).await;
    let mut client = Client::connect(r.read_write).await;
    client.send(&SSL_REQUEST).await;
    assert_eq!(client.byte().await, b'S');
    assert!(client.works().await, "what looks like no packet is carried all the same");
}

#[tokio::test]
async fn a_request_to_cancel_reaches_the_server_of_the_session() {
    let (a, b) = (Backend::start("a").await, Backend::start("b").await);
    let mut first = state(1, 1, true, Some(&a));
    first.standbys = vec![standby(&b, 0)];
    let manager = Manager::start(first);
    let r = router(&[&manager], Options { max_sessions: 2, ..Options::default() }).await;
    let _writer = Client::session(r.read_write).await;
    let _reader = Client::session(r.read_only).await;
    let cancel = [0, 0, 0, 16, 4, 210, 22, 46, 0, 0, 0, 1, 0, 0, 0, 2];
    for (port, server, other) in [(r.read_write, &a, &b), (r.read_only, &b, &a)] {
        let before = other.cancels.lock().unwrap().len();
        let mut client = Client::connect(port).await;
        client.send(&cancel).await;
        client.ended().await;
        assert_eq!(*server.cancels.lock().unwrap(), [cancel.to_vec()], "also when there is no room for a session");
        assert_eq!(other.cancels.lock().unwrap().len(), before);
    }
}

#[tokio::test]
async fn one_session_too_many_is_told_so() {
    let a = Backend::start("a").await;
    let manager = Manager::start(state(1, 1, true, Some(&a)));
    let r = router(&[&manager], Options { max_sessions: 2, ..Options::default() }).await;
    let (first, _) = Client::session(r.read_write).await;
    let _second = Client::session(r.read_only).await;
    let mut third = Client::connect(r.read_write).await;
    third.send(&SSL_REQUEST).await;
    assert_eq!(third.byte().await, b'N');
    third.start().await;
    assert!(matches!(third.told().await, Told::Refused(code, _) if code == "53300"));
    drop((first, third));
    r.until("room again", |s| s.sessions_read_write == 0).await;
    Client::session(r.read_write).await;
}

#[tokio::test]
async fn readers_are_spread_over_near_standbys_and_pass_by_a_broken_one() {
    let (a, mut b, c, d) =
        (Backend::start("a").await, Backend::start("b").await, Backend::start("c").await, Backend::start("d").await);
    let mut first = state(1, 1, true, Some(&a));
    first.standbys = vec![standby(&b, 0), standby(&c, 1_000), standby(&d, 1 << 30)];
    let manager = Manager::start(first);
    let r = router(&[&manager], Options::default()).await;
    let mut seen = Vec::new();
    for _ in 0..6 {
        seen.push(Client::session(r.read_only).await.1);
    }
    assert_eq!(seen.iter().filter(|s| *s == "b").count(), 3, "{seen:?}");
    assert_eq!(seen.iter().filter(|s| *s == "c").count(), 3, "{seen:?}");
    b.stop().await;
    c.set(Mode::Starting);
    assert_eq!(Client::session(r.read_only).await.1, "d");
    d.set(Mode::Starting);
    assert_eq!(Client::session(r.read_only).await.1, "a");
    manager.say(state(1, 2, true, Some(&a)));
    r.until("no standbys", |s| s.version.is_some_and(|v| v.revision == 2)).await;
    assert_eq!(Client::session(r.read_only).await.1, "a");
}

#[tokio::test]
async fn a_reader_on_a_standby_outlives_the_failover_and_one_on_the_primary_does_not() {
    let (a, b) = (Backend::start("a").await, Backend::start("b").await);
    let manager = Manager::start(state(1, 1, true, Some(&a)));
    let r = router(&[&manager], Options::default()).await;
    let (mut on_primary, _) = Client::session(r.read_only).await;
    let mut next = state(1, 2, true, Some(&a));
    next.standbys = vec![standby(&b, 0)];
    manager.say(next);
    r.until("a standby", |s| s.version.is_some_and(|v| v.revision == 2)).await;
    let (mut on_standby, server) = Client::session(r.read_only).await;
    assert_eq!(server, "b");
    manager.say(state(2, 3, true, Some(&b)));
    on_primary.ended().await;
    assert!(on_standby.works().await);
}

#[tokio::test]
async fn garbage_is_closed_and_disturbs_nobody() {
    let a = Backend::start("a").await;
    let manager = Manager::start(state(1, 1, true, Some(&a)));
    let r = router(&[&manager], Options::default()).await;
    let oversized = [&10_001u32.to_be_bytes()[..], &[0; 8]].concat();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 12], &[0, 0, 0, 8, 9, 9, 9, 9], &oversized] {
        let mut client = Client::connect(r.read_write).await;
        client.send(garbage).await;
        client.ended().await;
    }
    assert_eq!(a.attempts(), 0);
    let _idle = Client::connect(r.read_write).await;
    Client::session(r.read_write).await;
}

#[tokio::test]
async fn a_client_that_says_nothing_is_closed_in_time() {
    let a = Backend::start("a").await;
    let manager = Manager::start(state(1, 1, true, Some(&a)));
    let r = router(&[&manager], Options::default()).await;
    let start = Instant::now();
    let mut slow = Client::connect(r.read_write).await;
    slow.send(&[0, 0]).await;
    let read = tokio::time::timeout(Duration::from_secs(13), tokio::io::AsyncReadExt::read_u8(&mut slow.0)).await;
    assert!(read.unwrap().is_err());
    assert!(start.elapsed() > ms(9_500));
}

#[tokio::test]
async fn a_client_that_leaves_while_it_is_held_gives_its_place_back() {
    let a = Backend::start("a").await;
    let manager = Manager::start(state(1, 1, false, Some(&a)));
    let r = router(&[&manager], Options::default()).await;
    let client = Client::open(r.read_write).await;
    r.until_held(1).await;
    drop(client);
    r.until_held(0).await;
}

#[tokio::test]
async fn a_session_the_server_ends_takes_no_place_when_the_client_does_not_notice() {
    let mut a = Backend::start("a").await;
    let manager = Manager::start(state(1, 1, true, Some(&a)));
    let r = router(&[&manager], Options::default()).await;
    let _sleeping = Client::session(r.read_write).await;
    a.stop().await;
    r.until("the session has ended", |s| s.sessions_read_write == 0).await;
}

/// Many clients wait out a restart: few of them knock at a time, and all get in soon after.
#[tokio::test]
async fn many_held_clients_knock_seldom_and_are_let_in_soon() {
    let a = Backend::start("a").await;
    a.set(Mode::Starting);
    let manager = Manager::start(state(1, 1, true, Some(&a)));
    let r = router(&[&manager], Options { max_sessions: 1_000, ..Options::default() }).await;
    let mut clients = Vec::new();
    for _ in 0..300 {
        clients.push(Client::open(r.read_write).await);
    }
    r.until_held(300).await;
    let before = a.attempts();
    sleep(ms(1_000)).await;
    let knocks = a.attempts() - before;
    assert!((10..=400).contains(&knocks), "{knocks} attempts in a second");
    a.set(Mode::Open);
    let start = Instant::now();
    for client in &mut clients {
        assert_eq!(client.told().await, ready("a"));
    }
    assert!(start.elapsed() < Duration::from_secs(3), "all in after {:?}", start.elapsed());
}

#[tokio::test]
async fn behind_a_load_balancer_each_connection_says_where_it_comes_from() {
    let a = Backend::start("a").await;
    let manager = Manager::start(state(1, 1, true, Some(&a)));
    let r = router(&[&manager], Options { proxied: true, ..Options::default() }).await;
    let header = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &[192, 0, 2, 7, 10, 0, 0, 1, 1, 2, 3, 4]].concat();
    let mut client = Client::connect(r.read_write).await;
    // In pieces, and the session's packet right behind it.
    client.send(&header[..7]).await;
    client.send(&header[7..]).await;
    client.start().await;
    assert_eq!(client.told().await, ready("a"));
    assert!(client.works().await);
    let mut without = Client::open(r.read_write).await;
    without.ended().await;
    assert_eq!(a.attempts(), 1);
}
