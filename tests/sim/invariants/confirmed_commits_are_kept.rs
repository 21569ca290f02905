//! I7: a commit that was acknowledged while confirmed commits were promised is on the winner of every later epoch, and so is
//! what clients saw of a primary that was restarted after a crash (reliability notes §1.11; docs/replication.md).
//!
//! Promised is what the newest rule covers, from when the primary's agent says that it is in effect, or from the grant on that
//! begins with a rule; nothing more once the list of rules is empty.

use std::collections::{BTreeMap, BTreeSet};

use matriarch::{
    domain::{Epoch, SyncMode, observation::SyncView},
    state::{ClusterState, Command, Kind, Lock},
};

use crate::{
    chronicle::Chronicle,
    clock::Time,
    postgres::wal::{BranchId, Content},
    world::Sky,
};

/// What was acknowledged, by branch, and in which epoch last.
type Acked = BTreeMap<BranchId, (u64, Epoch)>;

/// The book of it.
#[derive(Debug, Default)]
pub struct Promises {
    /// Epochs whose commits are.
    epochs: BTreeSet<Epoch>,
    acked: Acked,
    /// Acknowledged before that was in effect.
    early: Acked,
    /// What each promotion began with.
    winners: Vec<(Epoch, Content)>,
    /// When a commit was acknowledged last.
    pub last_ack: Time,
}

fn note(acked: &mut Acked, content: Content, epoch: Epoch) {
    let known = acked.entry(content.branch).or_insert((content.end, epoch));
    *known = (known.0.max(content.end), known.1.min(epoch));
}

/// A client was told, or saw it.
pub fn acknowledged(sky: &mut Sky, epoch: Option<Epoch>, content: Content) {
    let now = sky.now;
    let Some(epoch) = epoch.filter(|_| sky.sync) else { return };
    let promises = &mut sky.told.promises;
    promises.last_ack = now;
    if !promises.epochs.contains(&epoch) {
        return note(&mut promises.early, content, epoch);
    }
    note(&mut promises.acked, content, epoch);
    sky.told.cover.count("promised commits");
    let later = sky.told.promises.winners.iter().filter(|(e, _)| *e > epoch);
    let lost = later.cloned().find(|(_, winner)| !sky.branches.is_prefix(content, *winner));
    if let Some((later, winner)) = lost {
        let what = || format!("{content:?} is acknowledged in epoch {epoch}, epoch {later} began with {winner:?}");
        sky.told.broke("confirmed_commits_are_kept", what);
    }
}

/// A promotion has come about.
pub fn promoted(sky: &mut Sky, epoch: Option<Epoch>, content: Content) {
    let Some(epoch) = epoch.filter(|_| sky.sync) else { return };
    sky.told.promises.winners.push((epoch, content));
    for (branch, (end, of)) in sky.told.promises.acked.clone() {
        if of < epoch && !sky.branches.is_prefix(Content { branch, end }, content) {
            let what = || {
                format!(
                    "branch {branch} up to {end}, acknowledged in epoch {of}, epoch {epoch} begins with {content:?}"
                )
            };
            return sky.told.broke("confirmed_commits_are_kept", what);
        }
    }
    if !sky.told.promises.acked.is_empty() {
        sky.told.cover.count("promotions that keep commits");
    }
}

/// The primary of the present epoch goes by the newest rule, and says that it is in effect.
pub fn seen(told: &mut Chronicle, epoch: Epoch, view: &SyncView) {
    let present = told.state().is_some_and(|s| s.sync.in_force(epoch).is_some() && s.sync.id == view.applied);
    if view.effective && present && told.promises.epochs.insert(epoch) {
        // What another primary acknowledged before is not covered by this one's rule.
        let early = std::mem::take(&mut told.promises.early).into_iter().filter(|(_, (_, of))| *of == epoch);
        for (branch, (end, of)) in early {
            note(&mut told.promises.acked, Content { branch, end }, of);
        }
    }
}

/// A command was applied, for the first time.
pub fn committed(told: &mut Chronicle, command: &Command, state: &ClusterState) {
    let promises = &mut told.promises;
    match &command.kind {
        Kind::Grant { .. } => {
            let accepts_loss = state.operation.as_ref().is_some_and(|o| o.accepts_loss);
            if state.sync.rules.len() < 2 || accepts_loss {
                *promises = Promises { last_ack: promises.last_ack, ..Promises::default() };
            }
            if let Lock::Granted { epoch, .. } = state.lock
                && !state.sync.rules.is_empty()
            {
                promises.epochs.insert(epoch);
            }
        }
        Kind::SetSync { .. } => {
            if state.sync.rules.is_empty() {
                *promises = Promises { last_ack: promises.last_ack, ..Promises::default() };
            } else if state.sync.rules.last().is_some_and(|r| r.is_alone()) {
                told.cover.count("goes on alone");
            }
        }
        _ => {}
    }
}

/// Why commits don't flow, or rules don't settle, though everybody is back.
pub fn stuck(sky: &Sky, back: usize) -> Option<String> {
    let state = sky.told.state().filter(|_| sky.sync)?;
    let settings = state.settings.settings();
    let enough = !settings.sync_strict || back >= settings.sync_count as usize;
    if enough && state.kept_out {
        return Some("clients are kept out".to_owned());
    }
    if enough && state.sync.rules.len() > 1 {
        return Some(format!("rules don't settle: {:?}", state.sync.rules));
    }
    if enough && settings.replication_mode != SyncMode::Async && state.sync.rules.is_empty() {
        return Some("commits are to be confirmed, and there is no rule".to_owned());
    }
    let flows = sky.now < sky.told.promises.last_ack + 2 * crate::clock::SECOND;
    (enough && !flows).then(|| format!("no commit is acknowledged: {:?}", state.sync.rules))
}
