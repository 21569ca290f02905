//! How much a failover would lose. Pure.
//!
//! WAL positions go on along a history, so what a member lacks of another's WAL is the difference of the two, also
//! when the one is on an earlier timeline.

use std::fmt;

use super::Situation;
use crate::{
    domain::{Epoch, MemberId, PostgresState, TimelineId, WalPosition},
    state::Lock,
};

/// WAL that a small transaction writes at least: one row of a table without an index and its commit record were 104 bytes
/// (PostgreSQL 15, 1000 of them), with a primary key 195, an update 115, after a checkpoint a tenth more. Only one that writes
/// no row takes less (40). So no more transactions of one row or more can be in as many bytes.
const TRANSACTION_BYTES: u64 = 100;

/// Of WAL, as PostgreSQL is built by default.
const PAGE_BYTES: u64 = 8192;

/// Longer than nearly every record: those with whole pages of data have a few of them.
const RECORD_BYTES: u64 = 1 << 20;

/// What would be lost to the cluster if this member were primary next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// Bytes of WAL that the last primary had and this one doesn't; `None`: nobody knows.
    pub bytes: Option<u64>,
    /// Whose WAL it was.
    pub last: Option<MemberId>,
}

impl Loss {
    /// Nothing is lost, as far as anybody can know.
    pub fn is_none(&self) -> bool {
        self.last.is_none() || self.bytes == Some(0)
    }

    /// How many transactions that may be at most, if each wrote a row. An estimate.
    pub fn transactions(&self) -> Option<u64> {
        self.bytes.map(|bytes| bytes.div_ceil(TRANSACTION_BYTES))
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.last.as_ref().map_or("the last primary", MemberId::as_str);
        match (self.bytes, self.transactions()) {
            (Some(0), _) => write!(f, "it has all WAL that {last} is known to have had"),
            (Some(bytes), Some(transactions)) => write!(
                f,
                "it lacks {bytes} bytes of the WAL of {last} as of the last reports (by estimate up to {transactions} \
                 transactions; one that writes a row takes {TRANSACTION_BYTES} bytes at least)"
            ),
            _ => write!(f, "nobody knows how much of the WAL of {last} it lacks"),
        }
    }
}

/// What would be lost if `to`, whose WAL ends at `end`, were primary next.
pub fn of(s: &Situation<'_>, end: WalPosition) -> Loss {
    let last = last_holder(s).map(|(_, member)| member.clone());
    Loss { bytes: known_end(s).map(|known| known.lsn.bytes_past(end.lsn)), last }
}

fn last_holder<'a>(s: &Situation<'a>) -> Option<(Epoch, &'a MemberId)> {
    match &s.state.lock {
        Lock::Granted { epoch, member, .. } => Some((*epoch, member)),
        Lock::Released(release) => Some((release.epoch, &release.member)),
        Lock::Fenced { previous, .. } => previous.as_ref().map(|(epoch, member)| (*epoch, member)),
        Lock::Free => None,
    }
}

/// Where the WAL of the last primary ended, at least: by what it told the voters with its renewals, by what it told the
/// standbys that streamed from it, by its own word at the end, by its agent, and of a cluster that wakes by the log. `None`:
/// nobody who knows has answered.
pub fn known_end(s: &Situation<'_>) -> Option<WalPosition> {
    let (_, holder) = last_holder(s)?;
    let released = match &s.state.lock {
        Lock::Released(release) | Lock::Fenced { released: Some(release), .. } => Some(release.end),
        Lock::Free | Lock::Granted { .. } | Lock::Fenced { .. } => None,
    };
    // What a voter remembers of an earlier timeline may be WAL that was left behind with it.
    let timeline = s.state.newest_complete_timeline();
    let own = s.seals.get(holder).and_then(|seal| seal.agent.as_ref()).or_else(|| s.agent(holder));
    let own = own.filter(|a| a.wal_end_known || a.state == PostgresState::Primary);
    let own = own.map(|a| a.wal_end).filter(|end| end.timeline == timeline);
    // Whoever was told may be gone, and its host too: where it ended was committed before the cluster was stopped.
    let slept = s.state.waking().and_then(|h| h.end).filter(|end| end.timeline == timeline);
    told(s, timeline).into_iter().chain(released).chain(own).chain(slept).max()
}

/// How far the primary of `timeline` told voters and standbys that its WAL is flushed. `None`: nobody who was told has
/// answered.
fn told(s: &Situation<'_>, timeline: TimelineId) -> Option<WalPosition> {
    let promises = s.seals.values().map(|seal| &seal.promise).chain(s.seen.values().map(|seen| &seen.promise));
    let agents = s.seals.values().filter_map(|seal| seal.agent.as_ref());
    let agents = agents.chain(s.state.members.keys().filter_map(|m| s.agent(m)));
    let ends = promises.map(|promise| promise.highest).chain(agents.map(|agent| agent.heard.end));
    ends.filter(|end| end.timeline == timeline).max()
}

/// The primary of `epoch`, whose WAL ends at `end` now, still has what it told others: its data directory is the one it had,
/// and no older copy, as far as that can be seen. A copy that is younger than the last word that anybody heard can't be told
/// from the original.
///
/// What is flushed can end inside a record, but then at the end of a page (`XLogBackgroundFlush` of PostgreSQL), and after
/// a crash WAL ends before that record.
pub fn has_what_it_told(s: &Situation<'_>, epoch: Epoch, end: WalPosition) -> bool {
    // A generation that was begun by command reserves one more. One that went on running began none: it was on one that is older.
    let record = s.state.lineage.iter().rfind(|record| record.epoch == epoch);
    let reign = s.state.reigns.iter().rfind(|reign| reign.epoch == epoch);
    let Some(timeline) = record.map(|record| record.timeline).or_else(|| reign.map(|reign| reign.timeline)) else {
        return true;
    };
    let word = match &s.state.lock {
        Lock::Fenced { released: Some(release), .. } if release.epoch == epoch => Some(release.end),
        Lock::Free | Lock::Granted { .. } | Lock::Released(_) | Lock::Fenced { .. } => None,
    };
    let word = word.filter(|end| end.timeline == timeline);
    match told(s, timeline).max(word) {
        Some(known) if end.timeline == known.timeline && known.lsn.0 % PAGE_BYTES == 0 => {
            end.lsn.0 + RECORD_BYTES >= known.lsn.0
        }
        Some(known) => end >= known,
        // One that never came to be primary told nobody anything.
        None => record.is_none_or(|record| record.switch.is_none()) || end.timeline >= timeline,
    }
}
