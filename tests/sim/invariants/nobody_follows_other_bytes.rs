//! I9 and I21 on disk: no standby streams from a server whose WAL is not the continuation of its own, and no
//! rewind keeps bytes that its source never had (reliability notes, facts F16 and F20). PostgreSQL compares
//! numbers only, so this must never come to pass.

use crate::world::World;

pub fn check(world: &mut World) {
    if let Some(what) = world.sky.told.other_bytes.pop() {
        world.sky.told.broke("nobody_follows_other_bytes", || what);
    }
}
