//! The promises, one function each, looked at after every step.

use matriarch::{
    domain::{Epoch, MemberId},
    state::{Applied, Kind},
};

use crate::toy::{Chronicle, Toy};

/// A broken promise, by its name.
pub type Broken = Vec<String>;

/// Every promise.
pub fn check(toy: &Toy) -> Broken {
    let mut broken = Broken::new();
    one_writer_for_each_epoch(toy, &mut broken);
    timelines_are_unique(&toy.told, &mut broken);
    no_grant_before_the_lease_ends(&toy.told, &mut broken);
    switchover_loses_nothing(&toy.told, &mut broken);
    broken
}

/// At most one member accepts writes, in any one epoch and at any one moment.
fn one_writer_for_each_epoch(toy: &Toy, broken: &mut Broken) {
    let writers: Vec<(Epoch, &MemberId)> = toy.hosts.iter().filter_map(|h| Some((h.writes(toy.now)?, &h.me))).collect();
    if writers.len() > 1 {
        broken.push(format!("one_writer_for_each_epoch: {writers:?}"));
    }
}

/// No two promotions ever create a timeline of the same number.
fn timelines_are_unique(told: &Chronicle, broken: &mut Broken) {
    for (timeline, promotions) in told.promotions.iter().filter(|(_, p)| p.len() > 1) {
        broken.push(format!("timelines_are_unique: {timeline} by {promotions:?}"));
    }
}

/// Nobody is granted while another member's lease still lets it write.
fn no_grant_before_the_lease_ends(told: &Chronicle, broken: &mut Broken) {
    broken.extend(told.early_grants.iter().map(|g| format!("no_grant_before_the_lease_ends: {g}")));
}

/// The successor of a switchover has all the old primary wrote.
fn switchover_loses_nothing(told: &Chronicle, broken: &mut Broken) {
    broken.extend(told.lossy_switchovers.iter().map(|l| format!("switchover_loses_nothing: {l}")));
}

/// Over the whole log: each grant follows a fence of its own, and epochs only go up.
pub fn no_grant_without_fence(told: &Chronicle, broken: &mut Broken) {
    let mut fenced = false;
    let mut last = Epoch(0);
    for (command, _) in told.log.iter().filter(|(_, applied)| *applied == Applied::Changed) {
        if command.expected < last {
            broken.push(format!("epoch_never_goes_back: {command} after epoch {last}"));
        }
        last = command.expected;
        match command.kind {
            Kind::Fence { .. } => fenced = true,
            Kind::Grant { .. } if !fenced => broken.push(format!("no_grant_without_fence: {command}")),
            Kind::Grant { .. } => fenced = false,
            _ => {}
        }
    }
}
