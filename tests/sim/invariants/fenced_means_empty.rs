//! `Fenced` is told only after the process tree is empty, and after the end of the epoch is on disk (DESIGN
//! §3 "Ended epochs"): the leader then grants without waiting for the promises.

use matriarch::domain::observation::Notice;

use crate::world::World;

/// A notice is about to leave.
pub fn looked_at(world: &mut World, i: usize, notice: &Notice) {
    let host = &world.hosts[i];
    let runs = host.postgres.as_ref().filter(|p| p.epoch == Some(notice.epoch) && p.writable());
    if notice.fenced && runs.is_some() {
        let epoch = notice.epoch;
        world.sky.told.broke("fenced_means_empty", || format!("{i} says epoch {epoch} is fenced, and its server runs"));
    }
    if notice.fenced && host.disks.agent.ended < notice.epoch {
        let (epoch, ended) = (notice.epoch, host.disks.agent.ended);
        world.sky.told.broke("fenced_means_empty", || format!("{i} says epoch {epoch} is fenced, on disk is {ended}"));
    }
}
