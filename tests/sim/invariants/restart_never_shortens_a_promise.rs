//! I19: a restart of a manager never shortens what its acceptor promised (reliability notes §1.11).

use crate::world::World;

/// A manager dies: until when was it bound?
pub fn dies(world: &mut World, i: usize) {
    let now = world.sky.now;
    let host = &world.hosts[i];
    let Some(manager) = &host.manager else { return };
    let until = host.clock.both_reach(manager.acceptor.until(), now);
    world.sky.told.bound_until.insert(i, until);
}

/// It is back: it must be bound as long at least.
pub fn restarted(world: &mut World, i: usize) {
    let now = world.sky.now;
    let host = &world.hosts[i];
    let (Some(manager), Some(before)) = (&host.manager, world.sky.told.bound_until.get(&i).copied()) else { return };
    let until = host.clock.both_reach(manager.acceptor.until(), now);
    // A microsecond for each rounding.
    if until + 4 < before {
        let what = || format!("{i} was bound until {before}, after its restart until {until}");
        world.sky.told.broke("restart_never_shortens_a_promise", what);
    }
}
