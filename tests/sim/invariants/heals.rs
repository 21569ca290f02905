//! L1: once the faults have stopped, with a majority of hosts up and one that can be primary, there is
//! exactly one open primary within the sum of what may have to be waited for (reliability notes §1.11).

use matriarch::{
    domain::Timings,
    policy::Hold,
    state::{GrantPhase, Lock},
};

use crate::{
    clock::{SECOND, Time, micros},
    world::World,
};

/// Longest sensible wait: an election; a promise that was just given; a promotion that is given up; the
/// promises again; another promotion; and for a primary that was just ordered to be restarted its patience.
pub fn limit(t: &Timings) -> Time {
    let elect = micros(t.election_max) * 4;
    elect + micros(t.grant) * 3 + micros(t.silent) * 3 + micros(t.promote) * 2 + micros(t.primary_start) + 30 * SECOND
}

/// The one open primary, when there is one and it really accepts writes.
pub fn open_primary(world: &World) -> Option<usize> {
    let state = world.sky.told.state()?;
    let Lock::Granted { member, phase: GrantPhase::Open, epoch, .. } = &state.lock else { return None };
    let i = world.sky.index(member);
    let postgres = world.hosts[i].postgres.as_ref()?;
    let writes =
        postgres.writable() && postgres.live && postgres.epoch == Some(*epoch) && postgres.accepts_connections();
    let others = (0..world.hosts.len()).filter(|o| *o != i);
    let alone = others.into_iter().all(|o| world.hosts[o].postgres.as_ref().is_none_or(|p| !p.writable()));
    (writes && alone && state.operation.is_none()).then_some(i)
}

/// The last primary has the only data on the cluster's history, and its manager lost its directory: nobody can be promoted
/// until somebody takes that manager in.
pub fn waits_for_a_lost_manager(world: &World) -> bool {
    let Some(state) = world.sky.told.state() else { return false };
    let Lock::Fenced { previous: Some((_, last)), .. } = &state.lock else { return false };
    let behind = |hold: &Hold| hold.to_string().matches("is not on the cluster's history").count();
    let leader = world.hosts.iter().filter_map(|h| h.manager.as_ref()).find(|m| m.leads());
    let all_others = leader.is_some_and(|m| m.holds.iter().any(|hold| behind(hold) == world.hosts.len() - 1));
    world.hosts[world.sky.index(last)].disks.manager_lost && all_others
}
