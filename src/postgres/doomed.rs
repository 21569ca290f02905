//! WAL senders that a checkpoint waits for, and that do not end.
//!
//! A checkpoint that finds a slot past `max_slot_wal_keep_size` ends the slot's sender and waits until it is gone
//! (`slot.c`, `InvalidatePossiblyObsoleteSlot`). The sender wants to say so to its client, and when that one doesn't read any
//! more it waits in this last write, and the checkpoint with it: no WAL is removed, and the disk fills up. A
//! second SIGTERM is what ends such a write (`postgres.c`, `ProcessClientWriteInterrupt`). `wal_sender_timeout` is not looked
//! at any more by then.

use std::{collections::BTreeSet, time::Duration};

use super::session::{Session, SqlError};

/// While somebody uses it such a slot is `unreserved`, whatever has been removed already. A receiver that only lags is no
/// business of ours: it may catch up before a checkpoint comes.
fn query(again: &BTreeSet<u32>) -> String {
    let again = Vec::from_iter(again.iter().map(u32::to_string)).join(",");
    format!(
        "SELECT active_pid::text, CASE WHEN active_pid = ANY ('{{{again}}}'::int[]) THEN pg_terminate_backend(active_pid) END \
         FROM pg_replication_slots WHERE active_pid IS NOT NULL AND wal_status IN ('unreserved', 'lost') \
         AND EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'checkpointer' AND wait_event = 'ReplicationSlotDrop')"
    )
}

impl Session {
    /// The processes that use slots past their limit while a checkpoint waits for such a one. Those among them that are in
    /// `again` are told to end.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn end_doomed_senders(
        &self,
        again: &BTreeSet<u32>,
        deadline: Duration,
    ) -> Result<BTreeSet<u32>, SqlError> {
        let rows = self.query("looking for WAL senders that hang", &query(again), deadline).await?;
        Ok(rows.iter().filter_map(|row| row.get(0)?.parse().ok()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_are_ended_that_were_seen_before() {
        assert!(query(&BTreeSet::new()).contains("ANY ('{}'::int[])"));
        assert!(query(&BTreeSet::from([7, 12])).contains("ANY ('{7,12}'::int[])"));
    }
}
