//! I20, what there is of it: a server started or promoted by hand acknowledges nothing, for its
//! configuration waits for a standby that nobody is; sessions with `synchronous_commit` local or off are
//! fenced within one probe (DESIGN §3 "Never primary from memory").

use crate::{
    clock::{SECOND, Time, micros},
    world::{Proc, World},
};

/// From the first moment it is writable to its end, on a host whose agent and guard run all the time: a
/// second between two probes, or a look for strangers, and the kill.
fn limit(world: &World) -> Time {
    2 * SECOND + micros(world.sky.timings.kill) * 2
}

pub fn check(world: &mut World) {
    let now = world.sky.now;
    for i in 0..world.hosts.len() {
        let host = &world.hosts[i];
        let by_hand = host.postgres.as_ref().filter(|p| p.writable() && p.epoch.is_none());
        if by_hand.is_some_and(|p| p.live) {
            world.sky.told.broke("by_hand_acknowledges_nothing", || format!("{i} acknowledges without any grant"));
            return;
        }
        match (by_hand.is_some(), world.sky.told.by_hand_since.get(&i).copied()) {
            (true, None) => drop(world.sky.told.by_hand_since.insert(i, now)),
            (false, Some(since)) => {
                world.sky.told.by_hand_since.remove(&i);
                ended(world, i, since);
            }
            (true, Some(_)) | (false, None) => {}
        }
    }
}

/// It was writable from `since` until now.
fn ended(world: &mut World, i: usize, since: Time) {
    let (now, host) = (world.sky.now, &world.hosts[i]);
    let calm =
        [Proc::Agent, Proc::Guard, Proc::Postgres].iter().all(|p| host.disturbed[*p as usize] + 3 * SECOND < since);
    // Without an agent nobody looks (docs/guarantees.md): neither before it was started nor while it is frozen.
    let looks = host.acts(Proc::Agent) && host.agent.as_ref().is_some_and(|a| !a.is_held_up());
    if host.power && calm && looks && now > since + limit(world) {
        let ms = (now - since) / 1_000;
        world.sky.told.broke("by_hand_acknowledges_nothing", || format!("{i} was writable by hand for {ms} ms"));
    }
}
