//! A restart in place loses no acknowledged commit, and goes on with bytes that are its own alone (DESIGN §3
//! "In-place restart"; what was flushed survives a crash).

use matriarch::domain::Epoch;

use crate::{chronicle::Chronicle, postgres::wal::Content};

/// A server came up as primary in place. `forked`: others have more of its branch than it has.
pub fn opened(told: &mut Chronicle, i: usize, epoch: Option<Epoch>, wal: Content, forked: bool) {
    let acked = told.acked_on(wal.branch);
    if epoch.is_some() && (forked || acked > wal.end) {
        let what =
            || format!("{i} in epoch {epoch:?} at {wal:?}, acknowledged up to {acked}, others have more: {forked}");
        told.broke("restart_keeps_what_was_acknowledged", what);
    }
}
