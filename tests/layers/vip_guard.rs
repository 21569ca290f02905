//! The guard takes virtual addresses away when it fences. The agent is the test, which is gone by then; lifetimes are
//! so long that the kernel takes no part in it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use matriarch::{
    domain::Epoch,
    guard::sys::two_clocks,
    guard::{self, Addresses, GroupUse, GuardHandle, GuardedCommand, Postmaster, PostmasterSignal, SpawnOptions},
    layers::Serving,
};

use crate::{
    Privilege, figure, in_namespace, ip,
    vip::{V4, V6, in_time, interface, is_here, ms, open_both, until},
};

const BINARY: &str = env!("CARGO_BIN_EXE_matriarch");
const STANDBYS: [&str; 2] = ["10.77.0.101", "fd77::101"];

/// A guard of a program that only waits. It ends with what it guards, sixty seconds after its deadline at the latest.
pub struct Guarded {
    dir: tempfile::TempDir,
    pub handle: GuardHandle,
}

impl Guarded {
    pub fn spawn(addresses: Addresses) -> Guarded {
        Guarded::spawn_with(BINARY.into(), addresses)
    }

    fn spawn_with(exe: PathBuf, addresses: Addresses) -> Guarded {
        let dir = tempfile::tempdir().unwrap();
        let command = GuardedCommand {
            program: PathBuf::from("/bin/sleep"),
            args: vec!["600".into()],
            env: Vec::new(),
            log_file: dir.path().join("log"),
        };
        let handle = guard::spawn(&SpawnOptions {
            exe,
            runtime_dir: dir.path().to_owned(),
            command,
            epoch_hint: Epoch(1),
            group: GroupUse::Off,
        });
        let handle = handle.unwrap();
        handle.name_addresses(addresses).unwrap();
        Guarded { dir, handle }
    }

    pub fn bye(self) {
        let _ = self.handle.fence();
        until("the tree is empty", || self.postmaster().is_clear());
        self.handle.bye().unwrap();
    }

    fn postmaster(&self) -> Postmaster {
        self.handle.state().borrow().postmaster
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }
}

/// Both are here for 18 s, and nobody renews that.
fn put_up(address: &str, standbys: &str) {
    let layers = open_both(address, standbys);
    assert_eq!(layers.addresses(), [address, standbys].map(|a| Some(a.parse().unwrap())));
    layers.arm(Epoch(2), in_time(ms(20_000))).unwrap();
    layers.serve(Serving::Open);
    layers.lend_reader(Some((1, in_time(ms(20_000)))));
    layers.serve_reader(Serving::Open);
    until("both are here", || {
        // The one for standbys is written with a renewal of the other.
        assert!(layers.moved(Epoch(2), in_time(ms(20_000))));
        is_here(address) && is_here(standbys)
    });
    // As a kill.
    drop(layers);
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fence {
    Deadline,
    /// The deadline of a guard that was replaced by a newer program.
    Replaced,
    Order,
    /// PostgreSQL had ended before, and nobody came.
    Ended,
}

#[test]
fn with_a_fence_both_addresses_go_and_not_before() {
    in_namespace("vip_guard::with_a_fence_both_addresses_go_and_not_before", Privilege::NetRaw, || {
        interface();
        ip(&["addr", "add", "10.77.0.1/24", "dev", "eth0"]);
        let mut late = Vec::new();
        for fence in [Fence::Deadline, Fence::Replaced, Fence::Order, Fence::Ended] {
            for (address, standbys) in [V4, V6].into_iter().zip(STANDBYS) {
                put_up(address, standbys);
                late.push(fenced(fence, address, standbys).as_secs_f64() * 1e3);
            }
        }
        assert!(is_here("10.77.0.1"));
        figure("guard's fence to no virtual address", "ms", late);
    });
}

/// So long after the fence both were gone.
fn fenced(fence: Fence, address: &str, standbys: &str) -> Duration {
    let guarded = Guarded::spawn([address, standbys].map(|a| Some(a.parse().unwrap())));
    if fence == Fence::Replaced {
        let newer = guarded.dir.path().join("newer");
        fs::copy(BINARY, &newer).unwrap();
        guarded.handle.upgrade(&newer).unwrap();
    }
    let (mut began, deadline) = (Instant::now() + ms(700), in_time(ms(700)));
    assert!(guarded.handle.arm(Epoch(2), deadline));
    match fence {
        Fence::Deadline | Fence::Replaced => {}
        Fence::Order => {
            thread::sleep(ms(100));
            assert!(is_here(address) && is_here(standbys));
            began = Instant::now();
            guarded.handle.fence().unwrap();
        }
        Fence::Ended => {
            // An orderly end is the agent's matter, as long as it may still come.
            guarded.handle.signal(PostmasterSignal::Fast).unwrap();
            until("it has ended", || guarded.postmaster().is_clear());
        }
    }
    if fence != Fence::Order {
        thread::sleep(began.saturating_duration_since(Instant::now()).saturating_sub(ms(50)));
        let (here, now) = (is_here(address) && is_here(standbys), two_clocks());
        assert!(here || deadline.holder_remaining(now).is_zero(), "{fence:?}: gone before the deadline");
    }
    until("both are gone", || !is_here(address) && !is_here(standbys));
    let after = began.elapsed();
    assert!(after < ms(500), "{fence:?}: {after:?}");
    until("the log says so", || {
        let log = guarded.log();
        [address, standbys].iter().all(|a| log.contains(&format!("the virtual address {a} was taken away")))
    });
    guarded.bye();
    after
}

#[test]
fn what_is_not_marked_stays_and_so_does_what_is_named_no_more() {
    let name = "vip_guard::what_is_not_marked_stays_and_so_does_what_is_named_no_more";
    in_namespace(name, Privilege::NetRaw, || {
        interface();
        // Else the kernel would take the second of the network away with the first.
        ip(&["addr", "add", "10.77.0.1/24", "dev", "eth0"]);
        put_up(V4, STANDBYS[0]);
        // The host's own, by somebody's mistake.
        ip(&["addr", "add", "10.77.0.7/24", "dev", "eth1"]);
        let own = Some("10.77.0.7".parse().unwrap());
        let guarded = Guarded::spawn([Some(STANDBYS[0].parse().unwrap()), None]);
        guarded.handle.name_addresses([own, Some(V4.parse().unwrap())]).unwrap();
        // What every other message of an agent says of them: nothing.
        guarded.handle.refresh().unwrap();
        guarded.handle.fence().unwrap();
        until("what it was told last is gone", || !is_here(V4));
        thread::sleep(ms(100));
        assert!(is_here("10.77.0.7") && is_here(STANDBYS[0]));
        guarded.bye();
    });
}

#[test]
fn a_guard_without_the_privilege_says_so_once_and_fences() {
    let name = "vip_guard::a_guard_without_the_privilege_says_so_once_and_fences";
    in_namespace(name, Privilege::NetRaw, || {
        interface();
        put_up(V4, STANDBYS[0]);
        let dir = tempfile::tempdir().unwrap();
        let exe = dir.path().join("unprivileged");
        fs::write(&exe, format!("#!/bin/sh\nexec setpriv --ambient-caps=-all --inh-caps=-all {BINARY} \"$@\"\n"))
            .unwrap();
        fs::set_permissions(&exe, fs::Permissions::from_mode(0o700)).unwrap();
        let guarded = Guarded::spawn_with(exe, [Some(V4.parse().unwrap()), None]);
        guarded.handle.fence().unwrap();
        until("fenced", || guarded.postmaster().is_clear());
        until("it says so", || guarded.log().contains("take the virtual address"));
        thread::sleep(ms(200));
        assert_eq!(guarded.log().matches("take the virtual address").count(), 1, "{}", guarded.log());
        assert!(guarded.log().contains("take the virtual address 10.77.0.100 away: Operation not permitted"));
        assert!(is_here(V4));
        guarded.bye();
    });
}
