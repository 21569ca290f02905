//! I14: whatever runs has the cluster's system identifier (reliability notes §1.11).

use crate::world::World;

/// A server has just become writable.
pub fn opened(world: &mut World, i: usize) {
    let cluster = world.sky.told.state().and_then(|s| s.system_identifier);
    let here = world.hosts[i].disks.place.data.as_ref().map(|d| d.system);
    if cluster.is_some() && here != cluster {
        world.sky.told.broke("one_system", || format!("{i} writes in system {here:?}, the cluster's is {cluster:?}"));
    }
}
