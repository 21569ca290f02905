//! A disk that finishes no write. It is a file system of its own, in a mount namespace that ends with the test; only root
//! can have one.

use matriarch::{
    demo::rig::{self, Disks, Ground, MULTI_HOST, ROUTED, Rig},
    rpc::v1::StatusReply,
};

use crate::stage::{self, HEAL, Promise, SOON, Step, until};

const STEPS: &[Step] = &[
    ("a_disk_that_stands_still_is_failed_over_and_comes_back", a_disk_that_stands_still_is_failed_over_and_comes_back),
    ("a_standby_with_such_a_disk_is_no_successor", a_standby_with_such_a_disk_is_no_successor),
];

pub fn play() {
    match rig::own_mounts() {
        Ok(()) => stage::play_as(Ground { disks: Some(Disks::Image), ..Ground::default() }, str::to_owned, STEPS),
        Err(why) => stage::say(format!("skipped: {why:#}")),
    }
}

/// Goes on whatever happens.
struct Frozen<'a>(&'a Rig, &'a str);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.0.thaw(self.1);
    }
}

fn problems(rig: &Rig, host: &str) -> String {
    let members = rig.status().map(|s| s.members).unwrap_or_default();
    members.into_iter().find(|m| m.member == host).map(|m| m.problems.join("; ")).unwrap_or_default()
}

/// What hangs on it can't be killed, and acknowledges nothing when the disk goes on.
fn a_disk_that_stands_still_is_failed_over_and_comes_back(rig: &Rig, before: &StatusReply) -> Promise {
    let (old, server) = (before.primary.as_str(), rig.server().unwrap());
    let fault = rig.freeze(old).unwrap();
    let frozen = Frozen(rig, old);
    for writer in [ROUTED, MULTI_HOST] {
        let resumed = rig.wait_for_write(writer, fault, Some(&server), SOON).unwrap();
        stage::say(format!("writes of the {writer} writer go on {resumed:?} after the disk stood still"));
    }
    until("the disk is named", SOON, || problems(rig, old).contains("has not finished a write"));
    let there = rig.status().unwrap();
    assert_eq!((there.primary != old, there.epoch), (true, before.epoch + 1));
    drop(frozen);
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&there.primary, there.epoch), "to and fro");
    Promise::asynchronous(fault, fault).ended(server)
}

/// Clients notice nothing, and nobody is made primary there.
fn a_standby_with_such_a_disk_is_no_successor(rig: &Rig, before: &StatusReply) -> Promise {
    let standby = rig.members().into_iter().find(|m| *m != before.primary).unwrap();
    let fault = rig.freeze(&standby).unwrap();
    let frozen = Frozen(rig, &standby);
    until("the disk is named", SOON, || problems(rig, &standby).contains("has not finished a write"));
    let asked = rig.switchover(&standby).unwrap();
    let why = asked.reason.contains("has not finished a write") || asked.reason.contains("does not stream");
    assert!(!asked.accepted && why, "nothing is granted to {standby}: {asked:?}");
    let status = rig.status().unwrap();
    assert_eq!((&status.primary, status.epoch), (&before.primary, before.epoch), "nobody else notices");
    drop(frozen);
    rig.healthy(HEAL).unwrap();
    Promise::no_failed_write(fault)
}
