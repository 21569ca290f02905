//! I6: when an epoch is granted, nobody can write in an earlier one any more (reliability notes §1.11;
//! DESIGN §3 "In all other cases no grant precedes the end of the promises"). That a fence was committed
//! before is in [`super::epochs_are_unique`]; an epoch that standbys outvoted is the exception.

use matriarch::domain::Epoch;

use super::one_writer::{is_excused, writer};
use crate::world::World;

pub fn check(world: &mut World, granted: Epoch) {
    for i in 0..world.hosts.len() {
        let Some(epoch) = writer(world, i).filter(|e| *e < granted) else { continue };
        if world.sky.told.outvoted.has(epoch) {
            world.sky.told.cover.count("grants beside an outvoted primary");
        } else if is_excused(world, i) {
            world.sky.told.cover.known_exposures += 1;
        } else {
            let what = || format!("epoch {granted} is granted while {i} acknowledges in epoch {epoch}");
            world.sky.told.broke("grants_follow_the_end", what);
        }
    }
}
