//! `failover_wait = promise`: a primary whose epoch ended by the word of its standbys may write on beside the next one until its
//! lease ends. From the grant on it acknowledges nothing but what the next one has: a confirmation may have been under way
//! (DESIGN §3, (d); docs/replication.md "Failover before the end of the lease"). Whether commits were promised to be safe
//! when it began does not matter: of two primaries only one goes on.

use std::collections::{BTreeMap, BTreeSet};

use matriarch::{
    domain::{Epoch, FailoverWait},
    state::{ClusterState, Kind, Lock},
};

use crate::{chronicle::Chronicle, postgres::wal::Content, world::Sky};

/// The book of it.
#[derive(Debug, Default)]
pub struct Outvoted {
    /// Epochs that ended so, or could have.
    epochs: BTreeSet<Epoch>,
    /// Also of those whose rules don't bind: the bug that is put back.
    pub unbound: bool,
    /// An operator has accepted the loss of what these acknowledge, or nothing is promised any more.
    given_up: BTreeSet<Epoch>,
    /// What each promotion began with.
    winners: BTreeMap<Epoch, Content>,
    /// Acknowledged after the grant of the next epoch and before its promotion.
    late: Vec<(Epoch, Content)>,
}

impl Outvoted {
    /// Its primary may still run.
    pub fn has(&self, epoch: Epoch) -> bool {
        self.epochs.contains(&epoch)
    }

    fn give_up(&mut self) {
        self.late.clear();
        self.given_up = self.epochs.clone();
    }
}

/// A command was applied, for the first time; `before` is the state that it changed.
pub fn committed(told: &mut Chronicle, kind: &Kind, before: &ClusterState, after: &ClusterState) {
    match kind {
        Kind::Grant { .. } => {
            let Lock::Fenced { previous: Some((epoch, _)), released: None, .. } = &before.lock else { return };
            let settings = before.settings.settings();
            let asked = settings.failover_wait == FailoverWait::Promise && settings.waits_always();
            // One that may acknowledge alone is waited for.
            let binds = before.sync.binding || told.outvoted.unbound;
            if asked && binds && !before.sync.rules.is_empty() && !before.sync.rules.iter().any(|rule| rule.is_alone())
            {
                told.outvoted.epochs.insert(*epoch);
            }
            if after.operation.as_ref().is_some_and(|o| o.accepts_loss) {
                told.outvoted.give_up();
            }
        }
        Kind::SetSync { .. } if after.sync.rules.is_empty() => told.outvoted.give_up(),
        _ => {}
    }
}

/// A client was told, or saw it.
pub fn acknowledged(sky: &mut Sky, epoch: Epoch, content: Content) {
    let Outvoted { epochs, given_up, winners, late, .. } = &mut sky.told.outvoted;
    if !epochs.contains(&epoch) || given_up.contains(&epoch) {
        return;
    }
    let next = winners.range(Epoch(epoch.0 + 1)..).next().map(|(later, winner)| (*later, *winner));
    match next {
        None => late.push((epoch, content)),
        Some((later, winner)) => is_there(sky, (epoch, content), (later, winner)),
    }
    sky.told.cover.count("confirmed to an outvoted primary");
}

/// A promotion has come about.
pub fn promoted(sky: &mut Sky, epoch: Epoch, content: Content) {
    sky.told.outvoted.winners.insert(epoch, content);
    for late in std::mem::take(&mut sky.told.outvoted.late) {
        is_there(sky, late, (epoch, content));
    }
}

fn is_there(sky: &mut Sky, (epoch, content): (Epoch, Content), (later, winner): (Epoch, Content)) {
    if !sky.branches.is_prefix(content, winner) {
        let what = || {
            format!(
                "{content:?} is acknowledged in epoch {epoch}, which was outvoted; epoch {later} began with {winner:?}"
            )
        };
        sky.told.broke("the_outvoted_acknowledge_nothing_new", what);
    }
}
