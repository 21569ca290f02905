//! I10, as far as there is a gate: a primary is opened for clients only after its promotion is recorded,
//! and it is writable then (reliability notes §1.11). The rest of the gate belongs to the sync modes.

use matriarch::{
    domain::{Epoch, MemberId},
    state::{Command, Kind},
};

use crate::chronicle::Chronicle;

pub fn committed(told: &mut Chronicle, command: &Command) {
    match &command.kind {
        Kind::PromotionComplete { .. } => told.completed = Some(command.expected),
        Kind::Open { member } => opened(told, command.expected, member),
        _ => {}
    }
}

fn opened(told: &mut Chronicle, epoch: Epoch, member: &MemberId) {
    let recorded = told.completed == Some(epoch);
    let ours = told.grants.get(&epoch).is_some_and(|(m, _)| m == member);
    let promoted = told.promotions.values().any(|(_, e)| *e == epoch);
    if !recorded || !ours || !promoted {
        let what =
            || format!("{member} opened in epoch {epoch}: recorded {recorded}, granted {ours}, promoted {promoted}");
        told.broke("open_after_promotion", what);
    }
}
