//! L2: nothing that befalls a minority of the managers, no loss of one datagram in ten, and no freeze of one
//! process shorter than T_hold − 2·renew takes the lease from a primary (reliability notes §1.11; DESIGN §3).

use crate::world::World;

/// In a run whose faults may not matter: the first grant is the only one.
pub fn check(world: &World) -> Result<(), String> {
    let grants = world.sky.told.grants.len();
    let fences = world.sky.told.cover.fences_at_deadline + world.sky.told.cover.fences_by_order;
    match (grants, fences) {
        (1, 0) => Ok(()),
        _ => Err(format!("no_false_failover: {grants} grants and {fences} fences where nothing called for one")),
    }
}
