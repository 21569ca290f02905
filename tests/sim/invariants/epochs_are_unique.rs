//! I2: epochs only go up, each is granted once, to one member, and after a fence of its own (reliability
//! notes §1.11; first half of I6).

use matriarch::domain::{Epoch, MemberId};

use crate::chronicle::Chronicle;

pub fn granted(told: &mut Chronicle, epoch: Epoch, member: &MemberId) {
    if !std::mem::take(&mut told.fenced) {
        told.broke("epochs_are_unique", || format!("epoch {epoch} granted without a fence of its own"));
    }
    let last = told.grants.keys().next_back().copied().unwrap_or_default();
    if last >= epoch {
        told.broke("epochs_are_unique", || format!("epoch {epoch} granted to {member} after epoch {last}"));
    }
}
