//! A cluster that was stopped by command stays so until it is woken: nobody is granted anything, and nobody can acknowledge. The
//! WAL of its clean end is with a standby too (unless operators accepted that it is not), and whoever is promoted when it wakes
//! has all of it (docs/operations.md). Nor is anybody granted who has no PostgreSQL, or whose PostgreSQL operators have stopped.

use matriarch::{
    domain::{Epoch, MemberId},
    state::{ClusterState, Command, HibernateChange, Kind, Lock},
};

use super::{
    everyone_rejoins::needs_an_operator,
    one_writer::{is_excused, writer},
};
use crate::{chronicle::Chronicle, chronicle::Moment, postgres::wal::Content, world::Sky, world::World};

/// What is known of a stopped cluster without asking its state.
#[derive(Debug, Default)]
pub struct Sleep {
    awake: bool,
    /// The clean end; `None`: operators have accepted its loss.
    wal: Option<Content>,
}

/// A command was applied, for the first time.
pub fn committed(told: &mut Chronicle, command: &Command, state: &ClusterState) {
    match &command.kind {
        Kind::Hibernate(HibernateChange::Down { .. }) => {
            told.sleep = Some(Sleep::default());
            if let Some(operation) = &state.operation {
                let (primary, received) = (operation.to.clone(), !operation.accepts_loss);
                told.moments.push(Moment::Hibernated { primary, received });
            }
        }
        Kind::Hibernate(HibernateChange::Wake { .. }) => told.sleep.iter_mut().for_each(|s| s.awake = true),
        Kind::Grant { member, .. } => granted(told, member, state),
        Kind::Open { .. } => told.sleep = None,
        _ => {}
    }
}

fn granted(told: &mut Chronicle, member: &MemberId, state: &ClusterState) {
    if told.sleep.as_ref().is_some_and(|s| !s.awake) {
        told.broke("hibernated_stays_down", || format!("{member} is granted the lock of a cluster that is stopped"));
    }
    if state.is_witness(member) || state.maintenance.contains_key(member) {
        told.broke("hibernated_stays_down", || {
            format!("{member} is granted, and has no PostgreSQL, or may not start it")
        });
    }
    if state.operation.as_ref().is_some_and(|o| o.accepts_loss) {
        told.sleep.iter_mut().for_each(|s| s.wal = None);
    }
}

/// The primary has given the lock up, and this is all that it wrote.
pub fn stopped(world: &mut World, primary: &MemberId, received: bool) {
    let i = world.sky.index(primary);
    let wal_of = |i: usize| Some(world.hosts[i].disks.place.data.as_ref()?.wal);
    let Some(wal) = wal_of(i) else { return };
    let mut others = world.sky.with_postgres().filter(|j| *j != i).filter_map(wal_of);
    let there = others.any(|theirs| world.sky.branches.is_prefix(wal, theirs));
    let told = &mut world.sky.told;
    told.sleep.iter_mut().for_each(|s| s.wal = Some(wal));
    told.cover.count(if received { "clusters stopped" } else { "clusters stopped by force" });
    if received && !there {
        told.broke("hibernated_stays_down", || {
            format!("{primary} is stopped at {wal:?}, and no standby has all of it")
        });
    }
}

/// A promotion has come about.
pub fn promoted(sky: &mut Sky, epoch: Option<Epoch>, began: Content) {
    let Some(wal) = sky.told.sleep.as_ref().and_then(|s| s.wal).filter(|_| epoch.is_some()) else { return };
    if !sky.branches.is_prefix(wal, began) {
        let what = || format!("the cluster was stopped at {wal:?}, epoch {epoch:?} begins with {began:?}");
        sky.told.broke("hibernated_stays_down", what);
    }
}

/// Whoever can acknowledge has changed. Until the lock is given up a manager that was restarted, and has not read all of its
/// log yet, may have the primary restarted in place once more.
pub fn check(world: &mut World) {
    let given_up = world.sky.told.state().is_some_and(|s| !matches!(s.lock, Lock::Granted { .. }));
    if !given_up || world.sky.told.sleep.as_ref().is_none_or(|s| s.awake) {
        return;
    }
    for i in 0..world.hosts.len() {
        if writer(world, i).is_some_and(|epoch| epoch > Epoch(0)) && !is_excused(world, i) {
            let what = || format!("{i} can acknowledge in a cluster that is stopped");
            return world.sky.told.broke("hibernated_stays_down", what);
        }
    }
}

/// The hosts on which PostgreSQL runs though it was stopped by command, by all that was committed.
pub fn still_up(world: &World) -> Vec<usize> {
    let Some(state) = world.sky.told.state() else { return Vec::new() };
    let held = matches!(state.lock, Lock::Granted { .. });
    // One that commits wait for stops when they don't any more.
    let is_meant = |i: &usize| state.put_down(&world.sky.names[*i]).is_some_and(|s| s.force || !held);
    let runs = |i: &usize| world.hosts[*i].postgres.is_some() && !needs_an_operator(world, *i);
    world.sky.with_postgres().filter(is_meant).filter(runs).collect()
}
