//! L3: every other member becomes a streaming standby of the primary, with the same bytes, or says that it
//! needs an operator (reliability notes §1.11).

use matriarch::domain::{CLONES_TRIED, PostgresState};

use super::heals::open_primary;
use crate::world::World;

/// It can't come back by itself, and says so; or it was cloned in vain too often; or its manager's directory was lost, and it waits to be
/// replaced.
pub fn needs_an_operator(world: &World, i: usize) -> bool {
    let host = &world.hosts[i];
    let says = host.agent.as_ref().is_some_and(|a| a.core.state() == PostgresState::Failed);
    let tried = host.agent.as_ref().is_some_and(|a| a.core.durable().clone_failures >= CLONES_TRIED);
    says || tried || host.disks.manager_lost
}

/// It streams from the primary, or from somebody who does.
fn follows(world: &World, i: usize, primary: usize) -> bool {
    let sender = |i: usize| Some(world.hosts[i].postgres.as_ref()?.receiver.as_ref()?.sender);
    let mut above = std::iter::successors(sender(i), |i| sender(*i)).take(world.hosts.len());
    above.any(|sender| sender == primary)
}

/// The hosts that are not back in line, `None` when there is no primary to follow.
pub fn missing(world: &World) -> Option<Vec<usize>> {
    let primary = open_primary(world)?;
    let theirs = world.hosts[primary].disks.place.data.as_ref()?.wal;
    let back = |i: usize| {
        let host = &world.hosts[i];
        let (Some(postgres), Some(data)) = (&host.postgres, &host.disks.place.data) else { return false };
        follows(world, i, primary) && postgres.open && world.sky.branches.is_prefix(data.wal, theirs) && !data.corrupt
    };
    let others = world.sky.with_postgres().filter(|i| *i != primary);
    Some(others.filter(|i| !needs_an_operator(world, *i) && !back(*i)).collect())
}
