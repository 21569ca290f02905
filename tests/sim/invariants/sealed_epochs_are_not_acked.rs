//! I4: an acceptor never acks an epoch below one it has sealed, also after a restart (reliability notes
//! §1.11).

use matriarch::{
    domain::Epoch,
    lease::message::{Body, Letter},
};

use crate::chronicle::Chronicle;

/// A voter answered that it has sealed this epoch durably.
pub fn sealed(told: &mut Chronicle, i: usize, epoch: Epoch) {
    told.cover.seals += 1;
    let known = told.sealed.entry(i).or_default();
    *known = epoch.max(*known);
}

/// A voter's answer is about to leave.
pub fn looked_at(told: &mut Chronicle, i: usize, letter: &Letter) {
    let sealed = told.sealed.get(&i).copied().unwrap_or_default();
    if matches!(letter.body, Body::Ack { .. }) && letter.epoch < sealed {
        let epoch = letter.epoch;
        told.broke("sealed_epochs_are_not_acked", || format!("{i} acks epoch {epoch} and has sealed epoch {sealed}"));
    }
}
