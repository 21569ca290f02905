//! I3: a member is writable only with the epoch of its grant, under a lease that is held, with an armed
//! guard (reliability notes §1.11; DESIGN §3 "Never primary from memory").

use super::one_writer::is_excused;
use crate::{
    clock::micros,
    world::{Proc, World},
};

/// A server has just become writable.
pub fn opened(world: &mut World, i: usize) {
    let Some(postgres) = &world.hosts[i].postgres else { return };
    let Some(epoch) = postgres.epoch.filter(|_| postgres.live) else { return };
    let granted = world.sky.told.grants.get(&epoch).is_some_and(|(m, _)| *m == world.sky.names[i]);
    if !granted {
        world
            .sky
            .told
            .broke("writable_under_a_lease", || format!("{i} is writable in epoch {epoch}, not granted to it"));
    }
    let accepted = world.hosts[i].disks.agent.accepted;
    if accepted < epoch {
        let what = || format!("{i} is writable in epoch {epoch}, on its disk is epoch {accepted}");
        world.sky.told.broke("writable_under_a_lease", what);
    }
    acknowledged(world, i);
}

/// A commit was acknowledged: the guard's deadline has not passed by more than T_kill. What was sent to a guard that is
/// or was frozen it doesn't know yet; then the deadline is the one that the agent's own watch has.
pub fn acknowledged(world: &mut World, i: usize) {
    let now = world.sky.now;
    let host = &world.hosts[i];
    let Some(postgres) = host.postgres.as_ref().filter(|p| p.live && p.writable()) else { return };
    let epoch = postgres.epoch.unwrap_or_default();
    let guard = host.guard.as_ref().filter(|g| postgres.guard == Some(g.life));
    let known = guard.filter(|g| g.deadline.epoch() == epoch).and_then(|g| g.deadline.at());
    let sent = guard.filter(|_| host.acts(Proc::Agent)).and_then(|g| {
        let sentry = host.agent.as_ref()?.sentry.as_ref()?;
        sentry.deadline_of(g.life, epoch)
    });
    let deadline = sent.or(known);
    let before = host.clock.read(now.saturating_sub(micros(world.sky.timings.kill)));
    let in_time = deadline.is_some_and(|at| !at.holder_remaining(before).is_zero());
    if !in_time && !is_excused(world, i) {
        let what = || format!("{i} acknowledges in epoch {epoch}, its guard's deadline is {deadline:?}");
        world.sky.told.broke("writable_under_a_lease", what);
    }
}
