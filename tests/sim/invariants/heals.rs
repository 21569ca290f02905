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

/// The founder's manager lost its directory before there was any data. The real group takes it in again (rule 460), the
/// modelled one never changes.
fn founder_is_lost(world: &World) -> bool {
    let Some(state) = world.sky.told.state().filter(|s| s.system_identifier.is_none()) else { return false };
    state.initializer.as_ref().is_some_and(|m| world.hosts[world.sky.index(m)].disks.manager_lost)
}

/// Nobody can be promoted before an operator does something: everybody's WAL, data or clocks are unfit, or their manager
/// lost its directory and waits to be taken in. Such a run is counted, and L1 asks nothing of it.
pub fn waits_for_an_operator(world: &World) -> bool {
    if founder_is_lost(world) {
        return true;
    }
    let unfit = [
        "is not on the cluster's history",
        "a rewind was cut off",
        "it has no data",
        "its clocks ",
        "has not streamed yet",
        "it has failover = false",
        "it has priority = 0",
        "site_failover = same",
        "maximum_lag_on_failover is",
        "may have been acknowledged",
    ];
    let count = |hold: &Hold| unfit.iter().map(|why| hold.to_string().matches(why).count()).sum::<usize>();
    let lost = world.hosts.iter().filter(|h| h.disks.manager_lost).count();
    let waits = |hold: &Hold| match hold {
        Hold::NoSuccessor { .. } => count(hold) + lost >= world.sky.with_postgres().count(),
        Hold::LagUnknown { .. } | Hold::Unconfirmed { .. } => true,
        _ => false,
    };
    let leader = world.hosts.iter().filter_map(|h| h.manager.as_ref()).find(|m| m.leads());
    leader.is_some_and(|m| m.holds.iter().any(waits))
}
