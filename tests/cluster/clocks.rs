//! A host whose clocks run fast. The lease stands on clocks that agree but for ρ;
//! one that doesn't is found out by comparison, and never gets the lease.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use matriarch::{
    demo::rig::{Ground, ROUTED},
    rpc::v1::StatusReply,
};

use crate::stage::{self, HEAL, SOON, others, until};

/// More than the bound of profile `normal`, 2 %, and far more than the half of it that is allowed.
const PARTS_IN_A_THOUSAND: i64 = 30;

fn fast_clock() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("matriarch-clock-").tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/fastclock.c");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"]).arg(dir.path().join("fastclock.so")).arg(source);
    assert!(cc.status().unwrap().success());
    dir
}

fn problems(status: Option<&StatusReply>, member: &str) -> String {
    let found = status.and_then(|s| s.members.iter().find(|m| m.member == member));
    found.map(|m| m.problems.join(" ")).unwrap_or_default()
}

#[test]
fn a_member_whose_clocks_run_fast_is_named_and_never_promoted() {
    let _alone = stage::alone();
    let tools = fast_clock();
    let library = tools.path().join("fastclock.so").display().to_string();
    let env = vec![("LD_PRELOAD".to_owned(), library), ("FAST_CLOCK".to_owned(), "{host}/clock".to_owned())];
    let rig = stage::raise_as(Ground { env, ..Ground::default() }, str::to_owned, &[]);
    let before = rig.healthy(HEAL).unwrap();
    let standbys = others(&rig, &[&before.primary]);
    let (fast, sound) = (&standbys[0], &standbys[1]);
    assert!(!problems(Some(&before), fast).contains("clocks"));

    // The file is read when a process starts: manager, agent and with it the guard.
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).unwrap();
    let since = now.tv_sec() * 1_000_000_000 + now.tv_nsec();
    let file = [PARTS_IN_A_THOUSAND.to_ne_bytes(), since.to_ne_bytes()].concat();
    fs::write(rig.dir(fast).unwrap().join("clock"), file).unwrap();
    fs::set_permissions(rig.dir(fast).unwrap().join("clock"), fs::Permissions::from_mode(0o644)).unwrap();
    rig.kill_host(fast).unwrap();
    rig.boot_host(fast).unwrap();
    until("the member with the fast clocks is named", HEAL, || {
        problems(rig.status().as_ref(), fast).contains("clocks")
    });
    let seen = rig.status().unwrap();
    assert_eq!((&seen.primary, seen.epoch), (&before.primary, before.epoch), "{seen:?}");
    assert!(!problems(Some(&seen), sound).contains("clocks"), "{seen:?}");
    let planned = rig.switchover(fast).unwrap();
    assert!(!planned.accepted && planned.reason.contains("clock"), "{planned:?}");

    // It has the smaller name, which decides among equals, and is passed over.
    let server = rig.server().unwrap();
    let fault = rig.kill_host(&before.primary).unwrap();
    rig.wait_for_write(ROUTED, fault, Some(&server), SOON).unwrap();
    let after = rig.status().unwrap();
    assert_eq!(&after.primary, sound, "{after:?}");
    stage::say(format!("{fast} is named and passed over: {}", problems(Some(&seen), fast)));
}
