//! The promises, one file each. Every check is a named function that looks at the simulation after the
//! event that could break it; what is broken ends the run.
//!
//! Numbers are those of the reliability notes, §1.11. Not here, because what they speak of is not built:
//!
//! | | promise | not yet applicable, because |
//! | --- | --- | --- |
//! | I8 | `k + r > \|N ∪ V\|` at every step of a sync-set change | there is no V: a promotion hears enough of every rule in the list (`tests/model/sync`) |
//! | I16 | an agent that acknowledged failsafe blocks promotions for T_grant | not modelled here: `tests/failsafe_sim.rs` and the model check of failsafe |
//! | I17 | a lower generation never influences a higher | not modelled here: `lease::wire`, `agent::core` `admit`, and the cluster step of `recover` |
//! | I20 | the sync names in force are never weaker than the committed set allows | what follows from it is looked at in [`confirmed_commits_are_kept`], and the placeholder in [`by_hand_acknowledges_nothing`] |

pub mod apply_is_deterministic;
pub mod by_hand_acknowledges_nothing;
pub mod confirmed_commits_are_kept;
pub mod copies_need_a_source;
pub mod deadline_from_a_send_time;
pub mod ended_epochs_stay_ended;
pub mod epochs_are_unique;
pub mod everyone_rejoins;
pub mod fenced_means_empty;
pub mod grants_follow_the_end;
pub mod grants_go_to_the_most_advanced;
pub mod heals;
pub mod hibernated_stays_down;
pub mod no_false_failover;
pub mod nobody_follows_other_bytes;
pub mod one_leader_a_term;
pub mod one_system;
pub mod one_work_per_directory;
pub mod one_writer;
pub mod open_after_promotion;
pub mod restart_keeps_what_was_acknowledged;
pub mod restart_never_shortens_a_promise;
pub mod sealed_epochs_are_not_acked;
pub mod stale_orders_are_refused;
pub mod starts_with_the_signal_file;
pub mod switchover_loses_nothing;
pub mod the_outvoted_acknowledge_nothing_new;
pub mod timelines_are_unique;
pub mod writable_under_a_lease;

use crate::{chronicle::Moment, world::World};

/// After every event that may have changed who can write.
pub fn after_a_change_of_writers(world: &mut World) {
    one_writer::check(world);
    by_hand_acknowledges_nothing::check(world);
    hibernated_stays_down::check(world);
}

/// After every event: what was committed in it and concerns all hosts.
pub fn after_an_event(world: &mut World) {
    nobody_follows_other_bytes::check(world);
    for moment in std::mem::take(&mut world.sky.told.moments) {
        match moment {
            Moment::Granted { epoch } => grants_follow_the_end::check(world, epoch),
            Moment::Stopped { from } => switchover_loses_nothing::stopped(world, &from),
            Moment::Hibernated { primary, received } => hibernated_stays_down::stopped(world, &primary, received),
            Moment::SwitchedOver { to } => switchover_loses_nothing::check(world, &to),
        }
    }
}
