//! I13: what a data directory holds is given up only for a copy of a complete one (reliability notes §1.11
//! and §3). Looked at when a rewind or a clone begins: its source has complete data of the same system, and
//! is, or was, granted a later epoch than this host.

use matriarch::agent::core::Task;

use crate::world::World;

pub fn looked_at(world: &mut World, i: usize, task: &Task) {
    let (Task::Rewind(source) | Task::Clone(source)) = task else { return };
    let from = world.sky.index(&source.member);
    let last = |name| world.sky.told.grants.iter().rev().find(|(_, (m, _))| m == name).map(|(e, _)| *e);
    let (theirs, ours) = (last(&world.sky.names[from]), last(&world.sky.names[i]));
    let complete = |host: usize| {
        let place = &world.hosts[host].disks.place;
        place.data.as_ref().filter(|_| !place.rewinding).map(|d| d.system)
    };
    let newer = theirs.is_some() && theirs > ours;
    let same = complete(i).is_none() || complete(from).is_none() || complete(i) == complete(from);
    if from == i || !newer || !same {
        let what = || format!("{i} gives its data up for {from}: granted {ours:?} and {theirs:?}, same system {same}");
        world.sky.told.broke("copies_need_a_source", what);
    }
}
