//! I21: no two promotions create a timeline of the same number, and each takes the one its grant reserved
//! (reliability notes §1.11, fact F20, row 91 of the fault matrix).

use matriarch::domain::{Epoch, TimelineId};

use crate::chronicle::Chronicle;

/// A promotion under a grant has come about.
pub fn promoted(told: &mut Chronicle, i: usize, epoch: Epoch, timeline: TimelineId) {
    let reserved = told.grants.get(&epoch).map(|(_, t)| *t);
    if reserved != Some(timeline) {
        let what = || format!("{i} took {timeline} in epoch {epoch}, reserved was {reserved:?}");
        told.broke("timelines_are_unique", what);
    }
    if let Some(other) = told.promotions.insert(timeline, (i, epoch)) {
        told.broke("timelines_are_unique", || format!("{timeline} by {other:?} and by {i} in epoch {epoch}"));
    }
}
