//! The successor of a switchover has everything the old primary wrote (DESIGN §4; docs/failure-modes.md).

use matriarch::domain::MemberId;

use crate::world::World;

/// The transfer is committed: the old primary is stopped, and this is all it wrote.
pub fn stopped(world: &mut World, from: &MemberId) {
    let i = world.sky.index(from);
    world.sky.told.stopped = world.hosts[i].disks.place.data.as_ref().map(|d| d.wal);
}

/// The switchover is recorded as a success.
pub fn check(world: &mut World, to: &MemberId) {
    let i = world.sky.index(to);
    let new = world.hosts[i].disks.place.data.as_ref().map(|d| d.wal);
    let (Some(old), Some(new)) = (world.sky.told.stopped.take(), new) else { return };
    if !world.sky.branches.is_prefix(old, new) {
        world
            .sky
            .told
            .broke("switchover_loses_nothing", || format!("the old primary ended at {old:?}, the new is at {new:?}"));
    }
}
