//! An epoch that a host said to have ended is never sought, held or renewed there again, also after a restart of
//! its agent (DESIGN §3 "Ended epochs": others rely on its end).

use matriarch::{
    domain::Epoch,
    lease::message::{Body, Letter},
};

use crate::chronicle::Chronicle;

/// The word that its process tree is empty leaves the host.
pub fn ended(told: &mut Chronicle, i: usize, epoch: Epoch) {
    let known = told.ended.entry(i).or_default();
    *known = epoch.max(*known);
}

/// A holder's letter is about to leave.
pub fn looked_at(told: &mut Chronicle, i: usize, letter: &Letter) {
    let ended = told.ended.get(&i).copied().unwrap_or_default();
    if matches!(letter.body, Body::Renew { .. }) && letter.epoch <= ended {
        let epoch = letter.epoch;
        told.broke("ended_epochs_stay_ended", || format!("{i} renews epoch {epoch}, epoch {ended} ended there"));
    }
}
