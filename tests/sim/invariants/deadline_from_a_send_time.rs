//! I5: a deadline is T_hold after a moment at which this holder sent a renewal, never later (reliability
//! notes §1.11; DESIGN §3 "Quorum lease").

use std::{collections::VecDeque, time::Duration};

use matriarch::domain::moment::TwoClocks;

use crate::chronicle::Chronicle;

pub fn looked_at(
    told: &mut Chronicle,
    sent: &VecDeque<TwoClocks>,
    deadline: TwoClocks,
    now: TwoClocks,
    hold: Duration,
) {
    let from_now = now.plus(hold);
    let from_a_send = sent.iter().any(|at| at.plus(hold) == deadline);
    if deadline.boot > from_now.boot || deadline.raw > from_now.raw || !from_a_send {
        told.broke("deadline_from_a_send_time", || format!("{deadline:?} is of no renewal sent; now {now:?}"));
    }
}
