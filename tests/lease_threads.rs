//! The lease's threads on loopback: real sockets, real clocks, real fsyncs.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use matriarch::{
    domain::{
        ClusterId, CommittedTimings, Epoch, Generation, Lsn, MemberId, Profile, Promise, TimelineId, Timings,
        TimingsId, TimingsInUse, WalPosition, moment::TwoClocks, observation::Notice,
    },
    lease::{
        AcceptorHandle, AcceptorOptions, AcceptorThread, HolderHandle, HolderOptions, HolderThread, HolderView,
        Membership, Phase, Refusal, Secret, clock::two_clocks,
    },
};
use tokio::sync::watch;

const NAMES: [&str; 3] = ["n1", "n2", "n3"];
const LONG: Duration = Duration::from_secs(10);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A tenth of a profile, with room for a loaded machine.
fn timings() -> Timings {
    let base = Timings::of(Profile::Normal);
    let quick = Timings { renew: ms(60), rpc: ms(60), hold: ms(600), kill: ms(100), grant: ms(800), ..base };
    quick.check().unwrap();
    quick
}

fn member(name: &str) -> MemberId {
    name.parse().unwrap()
}

fn secret() -> Secret {
    Secret::new(*b"a secret of thirty-two bytes ...")
}

fn identity() -> (ClusterId, Generation) {
    (ClusterId("01J-cluster".to_owned()), Generation(1))
}

struct Voters {
    dirs: Vec<tempfile::TempDir>,
    handles: Vec<AcceptorHandle>,
}

impl Voters {
    /// Three that know who they are and have applied everything up to epoch 7.
    fn start() -> Self {
        let dirs: Vec<_> = NAMES.iter().map(|_| tempfile::tempdir().unwrap()).collect();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let handles: Vec<_> = NAMES.iter().zip(&dirs).map(|(name, dir)| acceptor(name, any, dir.path())).collect();
        for handle in &handles {
            introduce(handle);
            until(&mut handle.promise(), |p| p.sealed == Epoch(7));
        }
        Self { dirs, handles }
    }

    fn peers(&self) -> Vec<(MemberId, String)> {
        NAMES.iter().zip(&self.handles).map(|(name, h)| (member(name), h.local_addr().to_string())).collect()
    }
}

fn acceptor(name: &str, listen: SocketAddr, state_dir: &Path) -> AcceptorHandle {
    let state_dir = state_dir.to_owned();
    let options = AcceptorOptions { listen, me: member(name), timings: timings(), secret: secret(), state_dir };
    AcceptorThread::spawn(options).unwrap()
}

fn introduce(acceptor: &AcceptorHandle) {
    let (cluster, generation) = identity();
    acceptor.set_identity(cluster, generation);
    acceptor.set_membership(Membership::simple(3, NAMES.map(member)));
    acceptor.set_applied(Epoch(7));
}

type Deadlines = Arc<Mutex<Vec<(Epoch, TwoClocks)>>>;

fn holder(peers: Vec<(MemberId, String)>, secret: Secret) -> (HolderHandle, Deadlines) {
    let deadlines = Deadlines::default();
    let log = deadlines.clone();
    let sink = Box::new(move |epoch, deadline| {
        log.lock().unwrap().push((epoch, deadline));
        true
    });
    let handle =
        HolderThread::spawn(HolderOptions { me: member("n1"), peers, timings: timings(), secret, sink }).unwrap();
    let (cluster, generation) = identity();
    handle.set_identity(cluster, generation);
    (handle, deadlines)
}

/// Waits until the watched value is as wanted; says what it was otherwise.
fn until<T: Clone + std::fmt::Debug>(watched: &mut watch::Receiver<T>, wanted: impl FnMut(&T) -> bool) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let got = runtime
        .block_on(async { tokio::time::timeout(LONG, watched.wait_for(wanted)).await.map(|r| r.unwrap().clone()) });
    got.unwrap_or_else(|_| panic!("still {:?}", *watched.borrow()))
}

fn phase(holder: &HolderHandle, wanted: Phase) -> HolderView {
    until(&mut holder.view(), |view| view.phase == wanted)
}

fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let start = Instant::now();
    while !check() {
        assert!(start.elapsed() < LONG, "never: {what}");
        thread::sleep(ms(2));
    }
}

#[test]
fn a_lease_is_acquired_within_100_ms_and_renewed() {
    let voters = Voters::start();
    let attempt = || {
        let (holder, deadlines) = holder(voters.peers(), secret());
        holder.set_wal(WalPosition { timeline: TimelineId(2), lsn: Lsn(500) });
        let start = Instant::now();
        holder.hold(Epoch(7), TimelineId(1));
        let view = phase(&holder, Phase::Held);
        (start.elapsed(), holder, deadlines, view)
    };
    // The machine may be busy with other tests: one quick attempt of a few shows what it takes.
    let attempts: Vec<_> = (0..5).map(|_| attempt()).collect();
    let (took, holder, deadlines, view) = attempts.into_iter().min_by_key(|(took, ..)| *took).unwrap();
    assert!(took < ms(100), "{took:?}");
    assert_eq!((view.epoch, view.membership), (Epoch(7), Some(3)));
    let left = view.deadline.unwrap().holder_remaining(two_clocks());
    assert!(left > ms(300) && left <= timings().hold, "{left:?}");

    let first = view.deadline.unwrap();
    let later = until(&mut holder.view(), |view| view.deadline.unwrap().boot > first.boot + ms(300));
    assert_eq!(later.phase, Phase::Held);
    let published = deadlines.lock().unwrap().clone();
    assert!(published.len() >= 3 && published.iter().all(|(epoch, _)| *epoch == Epoch(7)));
    assert!(published.is_sorted_by(|(_, a), (_, b)| a.boot < b.boot && a.raw < b.raw));

    let promise = until(&mut voters.handles[1].promise(), |p| p.renewed);
    assert_eq!((promise.epoch, promise.lapsed, promise.highest.lsn), (Epoch(7), false, Lsn(500)));
    assert!(voters.handles[1].promise_now().remaining_ms > 300);
}

#[test]
fn a_seal_makes_the_next_renewal_supersede_the_holder() {
    let voters = Voters::start();
    let (holder, _) = holder(voters.peers(), secret());
    holder.hold(Epoch(7), TimelineId(1));
    phase(&holder, Phase::Held);
    let promise = voters.handles[2].seal(Epoch(8)).unwrap();
    assert_eq!((promise.sealed, promise.epoch, promise.lapsed), (Epoch(8), Epoch(7), false));
    let start = Instant::now();
    phase(&holder, Phase::Superseded { sealed: Epoch(8) });
    assert!(start.elapsed() < timings().hold, "one Nack is enough: {:?}", start.elapsed());
    assert!(std::fs::read_to_string(voters.dirs[2].path().join("sealed")).unwrap().contains(" 8 "));
}

#[test]
fn a_promise_that_lapses_is_told_at_once() {
    let voters = Voters::start();
    let (holder, _) = holder(voters.peers(), secret());
    holder.hold(Epoch(7), TimelineId(1));
    phase(&holder, Phase::Held);
    let mut promise = voters.handles[0].promise();
    until(&mut promise, |p| p.renewed);
    holder.stop();
    let left = ms(voters.handles[0].promise_now().remaining_ms);
    let start = Instant::now();
    let lapsed: Promise = until(&mut promise, |p| p.lapsed);
    assert_eq!((lapsed.remaining_ms, lapsed.epoch, lapsed.renewed), (0, Epoch(7), true));
    let took = start.elapsed();
    assert!(took + ms(20) >= left && took < left + ms(150), "{took:?} for {left:?}");
}

#[test]
fn a_restarted_acceptor_remembers_its_seal_and_promises_anew() {
    let mut voters = Voters::start();
    voters.handles[0].seal(Epoch(9)).unwrap();
    let address = voters.handles[0].local_addr();
    until(&mut voters.handles[0].promise(), |p| p.lapsed);
    voters.handles[0].stop();
    assert!(voters.handles[0].seal(Epoch(10)).is_err(), "the thread has ended");

    let start = Instant::now();
    voters.handles[0] = acceptor("n1", address, voters.dirs[0].path());
    let promise = voters.handles[0].promise_now();
    assert_eq!((promise.sealed, promise.lapsed, promise.renewed), (Epoch(9), false, false));
    until(&mut voters.handles[0].promise(), |p| p.lapsed);
    assert!(start.elapsed() >= timings().grant, "{:?}", start.elapsed());

    introduce(&voters.handles[0]); // applied only up to 7, and yet:
    let (holder, _) = holder(voters.peers(), secret());
    holder.hold(Epoch(8), TimelineId(1));
    phase(&holder, Phase::Superseded { sealed: Epoch(9) });
}

#[test]
fn one_dead_acceptor_of_three_is_not_even_noticed() {
    let voters = Voters::start();
    let (holder, deadlines) = holder(voters.peers(), secret());
    holder.hold(Epoch(7), TimelineId(1));
    phase(&holder, Phase::Held);
    voters.handles[1].stop();
    let end = Instant::now() + timings().hold * 2;
    let mut view = holder.view();
    let before = deadlines.lock().unwrap().len();
    until(&mut view, |v| {
        assert_eq!(v.phase, Phase::Held);
        Instant::now() > end
    });
    assert!(deadlines.lock().unwrap().len() > before + 10);
}

#[test]
fn with_two_of_three_dead_the_lease_expires_at_t_hold() {
    let voters = Voters::start();
    let (holder, deadlines) = holder(voters.peers(), secret());
    holder.hold(Epoch(7), TimelineId(1));
    phase(&holder, Phase::Held);
    voters.handles[1].stop();
    voters.handles[2].stop();
    phase(&holder, Phase::Probing);
    let view = phase(&holder, Phase::Expired);
    let (now, deadline) = (two_clocks(), deadlines.lock().unwrap().last().unwrap().1);
    assert_eq!(view.deadline, Some(deadline));
    assert!(now.boot >= deadline.boot || now.raw >= deadline.raw, "not before the deadline");
    assert!(now.boot < deadline.boot + ms(150), "and told at once");
    holder.hold(Epoch(7), TimelineId(1));
    holder.hold(Epoch(6), TimelineId(1));
    thread::sleep(timings().renew * 2);
    assert_eq!(holder.view().borrow().phase, Phase::Expired);
}

#[test]
fn datagrams_of_another_secret_or_cluster_are_passed_over_and_counted() {
    let voters = Voters::start();
    let (stranger, _) = holder(voters.peers(), Secret::new("another secret of enough bytes .."));
    stranger.hold(Epoch(7), TimelineId(1));
    let (neighbour, _) = holder(voters.peers(), secret());
    neighbour.set_identity(ClusterId("other".to_owned()), Generation(1));
    neighbour.hold(Epoch(7), TimelineId(1));
    let (ghost, _) = holder(voters.peers(), secret());
    ghost.set_identity(identity().0, Generation(2));
    ghost.hold(Epoch(7), TimelineId(1));
    let noise = UdpSocket::bind("127.0.0.1:0").unwrap();
    noise.send_to(&[7; 3_000], voters.handles[0].local_addr()).unwrap();
    let counters = voters.handles[0].counters();
    for refusal in [Refusal::BadTag, Refusal::OtherCluster, Refusal::OtherGeneration, Refusal::TooLong] {
        eventually(refusal.name(), || counters.get(refusal) > 0);
    }
    for holder in [stranger, neighbour, ghost] {
        assert_ne!(holder.view().borrow().phase, Phase::Held);
    }
    assert!(!voters.handles[0].promise_now().renewed);
}

#[test]
fn a_fenced_notice_reaches_every_manager_once() {
    let voters = Voters::start();
    let mut boxes: Vec<_> = voters.handles.iter().map(|h| h.notices().unwrap()).collect();
    assert!(voters.handles[0].notices().is_none());
    let (holder, _) = holder(voters.peers(), secret());
    holder.hold(Epoch(7), TimelineId(1));
    phase(&holder, Phase::Held);
    let end = WalPosition { timeline: TimelineId(2), lsn: Lsn(800) };
    let notice = Notice {
        member: member("n1"),
        epoch: Epoch(7),
        fenced: true,
        end,
        clean: true,
        cause: matriarch::domain::EndCause::Unknown,
    };
    holder.send_notice(notice.clone());
    phase(&holder, Phase::Idle);
    for inbox in &mut boxes {
        assert_eq!(inbox.blocking_recv(), Some(notice.clone()));
    }
    thread::sleep(timings().renew * 6);
    assert!(boxes.iter_mut().all(|inbox| inbox.try_recv().is_err()));
}

#[test]
fn a_stalled_guard_stops_the_renewals_and_an_answer_resumes_them() {
    let voters = Voters::start();
    let (holder, _) = holder(voters.peers(), secret());
    let (answers, asked) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
    let (a, b) = (answers.clone(), asked.clone());
    holder.set_sink(Box::new(move |_, _| {
        b.store(true, Ordering::SeqCst);
        a.load(Ordering::SeqCst)
    }));
    holder.hold(Epoch(7), TimelineId(1));
    phase(&holder, Phase::Held);
    answers.store(false, Ordering::SeqCst);
    let stalled = until(&mut holder.view(), |v| v.stalled);
    asked.store(false, Ordering::SeqCst);
    eventually("asked again", || asked.load(Ordering::SeqCst));
    assert_eq!(holder.view().borrow().deadline, stalled.deadline, "no renewal meanwhile");
    answers.store(true, Ordering::SeqCst);
    let resumed = until(&mut holder.view(), |v| v.deadline != stalled.deadline);
    assert_eq!((resumed.phase, resumed.stalled), (Phase::Held, false));
}

/// Passes on every third datagram of a holder, and all that comes back.
fn lossy(target: SocketAddr) -> SocketAddr {
    let (near, far) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    far.connect(target).unwrap();
    let address = near.local_addr().unwrap();
    let sender = Arc::new(Mutex::new(None));
    let (back, known) = (near.try_clone().unwrap(), sender.clone());
    let answers = far.try_clone().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 2_000];
        for count in 0_u64.. {
            let Ok((length, from)) = near.recv_from(&mut buffer) else { return };
            *known.lock().unwrap() = Some(from);
            if count % 3 == 2 {
                let _ = far.send(&buffer[..length]);
            }
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 2_000];
        while let Ok(length) = answers.recv(&mut buffer) {
            if let Some(to) = *sender.lock().unwrap() {
                let _ = back.send_to(&buffer[..length], to);
            }
        }
    });
    address
}

#[test]
fn two_of_three_datagrams_lost_to_every_manager_are_not_even_noticed() {
    let voters = Voters::start();
    let peers = voters.peers().into_iter().map(|(id, at)| (id, lossy(at.parse().unwrap()).to_string())).collect();
    let (holder, deadlines) = holder(peers, secret());
    holder.hold(Epoch(7), TimelineId(1));
    phase(&holder, Phase::Held);
    let end = Instant::now() + timings().hold * 5;
    until(&mut holder.view(), |v| {
        assert_eq!(v.phase, Phase::Held, "no lost datagram holds back the next");
        Instant::now() > end
    });
    assert!(deadlines.lock().unwrap().len() > 10);
}

#[test]
fn a_lease_moves_to_other_timings_while_it_is_held() {
    let voters = Voters::start();
    let (holder, _) = holder(voters.peers(), secret());
    holder.hold(Epoch(7), TimelineId(1));
    phase(&holder, Phase::Held);
    let longer = Timings { hold: ms(1_200), grant: ms(1_500), ..timings() };
    longer.check().unwrap();
    let committed = CommittedTimings { id: TimingsId(1), profile: Profile::Normal, timings: longer };
    holder.set_timings(committed.id, longer);
    let counters = voters.handles[2].counters();
    eventually("asked, and not applied yet", || counters.get(Refusal::OtherTimings) > 1);
    assert_eq!(holder.view().borrow().timings, TimingsId::FILES);
    for voter in &voters.handles[..2] {
        voter.set_timings(TimingsInUse { oldest: TimingsId::FILES, committed: vec![committed] });
    }
    let view = until(&mut holder.view(), |v| v.timings == TimingsId(1));
    assert_eq!(view.phase, Phase::Held);
    let left = until(&mut holder.view(), |v| v.deadline.unwrap().holder_remaining(two_clocks()) > ms(700));
    assert_eq!(left.timings, TimingsId(1));
    eventually("the longer promise is on disk", || {
        std::fs::read_to_string(voters.dirs[0].path().join("sealed")).unwrap().contains(" 1500 ")
    });
    // Settled: a voter that was not told does not matter, and the file's timings are out of use.
    for voter in &voters.handles[..2] {
        voter.set_timings(TimingsInUse { oldest: TimingsId(1), committed: vec![committed] });
    }
    thread::sleep(timings().hold * 2);
    assert_eq!(holder.view().borrow().phase, Phase::Held);
}

#[test]
fn managers_named_by_host_name_are_found() {
    let voters = Voters::start();
    let by_name = |(id, address): (MemberId, String)| (id, address.replace("127.0.0.1", "localhost"));
    let peers = voters.peers().into_iter().map(by_name).collect();
    let (holder, _) = holder(peers, secret());
    holder.hold(Epoch(7), TimelineId(1));
    phase(&holder, Phase::Held);
}

#[test]
fn nothing_is_acked_while_the_seal_cannot_be_made_durable() {
    let voters = Voters::start();
    for dir in &voters.dirs[..2] {
        // A directory in the way of the temporary file fails for every user.
        std::fs::create_dir(dir.path().join("sealed.new")).unwrap();
    }
    assert!(voters.handles[0].seal(Epoch(8)).is_err());
    let (holder, _) = holder(voters.peers(), secret());
    holder.hold(Epoch(9), TimelineId(1));
    let counters = voters.handles[0].counters();
    eventually("refused", || counters.get(Refusal::NotDurable) > 2);
    assert_ne!(holder.view().borrow().phase, Phase::Held);
    assert_eq!(voters.handles[0].promise_now().sealed, Epoch(7));
    std::fs::remove_dir(voters.dirs[0].path().join("sealed.new")).unwrap();
    phase(&holder, Phase::Held);
}

#[test]
fn a_seal_may_be_awaited() {
    let voters = Voters::start();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let promise = runtime.block_on(voters.handles[0].seal_async(Epoch(8))).unwrap();
    assert_eq!(promise.sealed, Epoch(8));
}

/// Measured, not asserted: `cargo test --test lease_threads -- --ignored --nocapture cost`.
#[test]
#[ignore = "a measurement of 20 seconds"]
fn cost_of_a_held_lease_at_the_normal_profile() {
    let voters = Voters::start();
    let options = HolderOptions {
        me: member("n1"),
        peers: voters.peers(),
        timings: Timings::of(Profile::Normal),
        secret: secret(),
        sink: Box::new(|_, _| true),
    };
    let holder = HolderThread::spawn(options).unwrap();
    holder.set_identity(identity().0, identity().1);
    holder.hold(Epoch(7), TimelineId(1));
    phase(&holder, Phase::Held);
    let (before, start) = (cpu_by_thread(), Instant::now());
    thread::sleep(ms(20_000));
    let wall = start.elapsed().as_secs_f64();
    for (key, (name, used)) in cpu_by_thread() {
        let earlier = before.get(&key).map_or(Duration::ZERO, |(_, used)| *used);
        println!("{name}: {:.3} % of a core", (used - earlier).as_secs_f64() / wall * 100.0);
    }
}

/// Time on a CPU of each of our threads, by its id.
fn cpu_by_thread() -> BTreeMap<PathBuf, (String, Duration)> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|entry| entry.unwrap().path());
    let read = |task: PathBuf| {
        let name = std::fs::read_to_string(task.join("comm")).unwrap().trim().to_owned();
        let stat = std::fs::read_to_string(task.join("schedstat")).unwrap();
        let used = Duration::from_nanos(stat.split_whitespace().next().unwrap().parse().unwrap());
        name.starts_with("lease-").then_some((task, (name, used)))
    };
    tasks.filter_map(read).collect()
}
