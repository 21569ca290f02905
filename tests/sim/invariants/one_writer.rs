//! I1: at any moment at most one member can acknowledge a commit (reliability notes §1.11; DESIGN §3). One that was outvoted by
//! its standbys may be writable beside the next: what it acknowledges is looked at in
//! [`super::the_outvoted_acknowledge_nothing_new`].

use matriarch::domain::Epoch;

use crate::{
    clock::{Time, micros},
    world::{Proc, World},
};

/// The epoch under which sessions of this host can be acknowledged now, when they can.
pub fn writer(world: &World, i: usize) -> Option<Epoch> {
    let host = &world.hosts[i];
    let postgres = host.postgres.as_ref().filter(|p| p.writable() && p.live)?;
    (!host.is_frozen(Proc::Postgres)).then(|| postgres.epoch.unwrap_or_default())
}

/// Agent and guard of this host were both dead or frozen a moment ago: the documented hole that only a
/// kernel lease or a watchdog covers. After its end they get T_kill to act.
pub fn is_excused(world: &World, i: usize) -> bool {
    let host = &world.hosts[i];
    let grace: Time = micros(world.sky.timings.kill);
    host.unwatched.is_some() || (host.watched_again > 0 && world.sky.now <= host.watched_again + grace)
}

pub fn check(world: &mut World) {
    let mut writers: Vec<(Epoch, usize)> =
        (0..world.hosts.len()).filter_map(|i| Some((writer(world, i)?, i))).collect();
    if writers.len() < 2 {
        return;
    }
    writers.sort_unstable();
    // All but the newest must be gone.
    writers.pop();
    for (epoch, i) in writers {
        if world.sky.told.outvoted.has(epoch) {
            world.sky.told.cover.count("moments with an outvoted primary");
        } else if is_excused(world, i) {
            world.sky.told.cover.known_exposures += 1;
        } else {
            world
                .sky
                .told
                .broke("one_writer", || format!("{i} still acknowledges in epoch {epoch}, and a newer one does"));
        }
    }
}
