//! I12: PostgreSQL is started with `standby.signal` present; the one exception is a restart in place, with
//! its intent on disk and under a lease that is held (reliability notes §1.11; DESIGN §3).

use crate::world::World;

/// An agent is about to start a server. `in_place`: with a deadline from the first moment.
pub fn looked_at(world: &mut World, i: usize, in_place: bool) {
    let host = &world.hosts[i];
    let Some(data) = &host.disks.place.data else { return };
    let intent = host.disks.agent.restart_intent;
    let tenure = host.disks.agent.tenure;
    let allowed = in_place && intent.is_some() && tenure.map(|t| t.epoch) == intent;
    if !data.standby_signal && !allowed {
        let what = || format!("{i} starts without the file: in place {in_place}, intent {intent:?}, tenure {tenure:?}");
        world.sky.told.broke("starts_with_the_signal_file", what);
    }
}
