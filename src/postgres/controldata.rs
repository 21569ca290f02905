//! Reads the output of `pg_controldata` (`LC_ALL=C`). Pure.

use std::collections::HashMap;

use crate::domain::{Lsn, TimelineId, WalPosition};

/// "Database cluster state" of `pg_control`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DbState {
    /// Just after initdb.
    StartingUp,
    /// A primary that was shut down cleanly.
    ShutDown,
    /// A standby that was shut down cleanly.
    ShutDownInRecovery,
    /// A primary whose shutdown was cut off.
    ShuttingDown,
    /// A primary whose crash recovery was cut off or runs.
    InCrashRecovery,
    /// A standby that runs or crashed, or a copy that never started.
    InArchiveRecovery,
    /// A primary that runs or crashed.
    InProduction,
}

impl DbState {
    /// `pg_control` says that this was a primary when it last ran.
    pub fn was_primary(self) -> bool {
        !matches!(self, DbState::ShutDownInRecovery | DbState::InArchiveRecovery)
    }

    /// It was shut down cleanly.
    pub fn is_clean(self) -> bool {
        matches!(self, DbState::ShutDown | DbState::ShutDownInRecovery)
    }

    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "starting up" => DbState::StartingUp,
            "shut down" => DbState::ShutDown,
            "shut down in recovery" => DbState::ShutDownInRecovery,
            "shutting down" => DbState::ShuttingDown,
            "in crash recovery" => DbState::InCrashRecovery,
            "in archive recovery" => DbState::InArchiveRecovery,
            "in production" => DbState::InProduction,
            _ => return None,
        })
    }
}

/// What `pg_control` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlData {
    /// Drawn by initdb; the same on all copies.
    pub system_identifier: u64,
    /// What it did last.
    pub state: DbState,
    /// Where the last checkpoint (or restartpoint) record begins.
    pub checkpoint: Lsn,
    /// Where recovery from it begins.
    pub redo: Lsn,
    /// Its timeline.
    pub timeline: TimelineId,
    /// A standby is consistent from here on; zero on a primary.
    pub min_recovery_end: Lsn,
    /// The timeline of `min_recovery_end`; zero on a primary.
    pub min_recovery_timeline: TimelineId,
    /// A base backup that has not reached its end.
    pub backup_unfinished: bool,
    /// `wal_log_hints` is on.
    pub wal_log_hints: bool,
    /// Pages have checksums.
    pub checksums: bool,
    /// Bytes of one WAL segment.
    pub wal_segment_bytes: u64,
    /// Bytes of one WAL page.
    pub wal_page_bytes: u64,
    /// A standby with less than this refuses to start, or to replay.
    pub floors: [(&'static str, u64); 5],
}

impl ControlData {
    /// Up to where a start has to replay; `None` on a primary.
    pub fn required(&self) -> Option<WalPosition> {
        let point = WalPosition { timeline: self.min_recovery_timeline, lsn: self.min_recovery_end };
        (point.lsn > Lsn(0) && point.timeline > TimelineId(0)).then_some(point)
    }

    /// It has gone on to a later timeline since its last checkpoint. pg_rewind before version 16 doesn't see that: it
    /// looks for the fork on the timeline of the checkpoint, and may take one that lies past the real one.
    pub fn outran_its_checkpoint(&self) -> bool {
        self.min_recovery_timeline > self.timeline
    }

    /// Reads the output of `pg_controldata`.
    ///
    /// # Errors
    /// The line that is missing or odd.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lines: HashMap<&str, &str> =
            text.lines().filter_map(|l| l.split_once(':')).map(|(key, value)| (key.trim(), value.trim())).collect();
        let get = |key: &str| lines.get(key).copied().ok_or_else(|| format!("no line `{key}`"));
        let odd = |key: &str| format!("odd value in line `{key}`: {}", lines.get(key).unwrap_or(&""));
        let number = |key: &str| get(key)?.parse::<u64>().map_err(|_| odd(key));
        let lsn = |key: &str| get(key)?.parse::<Lsn>().map_err(|_| odd(key));
        let timeline = |key: &str| get(key)?.parse().map(TimelineId).map_err(|_| odd(key));
        let state = "Database cluster state";
        Ok(Self {
            system_identifier: number("Database system identifier")?,
            state: DbState::parse(get(state)?).ok_or_else(|| odd(state))?,
            checkpoint: lsn("Latest checkpoint location")?,
            redo: lsn("Latest checkpoint's REDO location")?,
            timeline: timeline("Latest checkpoint's TimeLineID")?,
            min_recovery_end: lsn("Minimum recovery ending location")?,
            min_recovery_timeline: timeline("Min recovery ending loc's timeline")?,
            backup_unfinished: lsn("Backup start location")? != Lsn(0)
                || get("End-of-backup record required")? == "yes",
            wal_log_hints: get("wal_log_hints setting")? == "on",
            checksums: number("Data page checksum version")? != 0,
            wal_segment_bytes: number("Bytes per WAL segment")?,
            wal_page_bytes: number("WAL block size")?,
            floors: [
                ("max_connections", number("max_connections setting")?),
                ("max_worker_processes", number("max_worker_processes setting")?),
                ("max_wal_senders", number("max_wal_senders setting")?),
                ("max_prepared_transactions", number("max_prepared_xacts setting")?),
                ("max_locks_per_transaction", number("max_locks_per_xact setting")?),
            ],
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const STOPPED_STANDBY: &str = "\
pg_control version number:            1300
Catalog version number:               202209061
Database system identifier:           7575345127113385123
Database cluster state:               shut down in recovery
pg_control last modified:             Sun Nov 22 14:00:00 2026
Latest checkpoint location:           0/3000098
Latest checkpoint's REDO location:    0/3000060
Latest checkpoint's REDO WAL file:    000000020000000000000003
Latest checkpoint's TimeLineID:       2
Latest checkpoint's PrevTimeLineID:   2
Latest checkpoint's full_page_writes: on
Minimum recovery ending location:     16/B374D848
Min recovery ending loc's timeline:   3
Backup start location:                0/0
Backup end location:                  0/0
End-of-backup record required:        no
wal_level setting:                    replica
wal_log_hints setting:                on
max_connections setting:              100
max_worker_processes setting:         8
max_wal_senders setting:              10
max_prepared_xacts setting:           0
max_locks_per_xact setting:           64
WAL block size:                       8192
Bytes per WAL segment:                16777216
Data page checksum version:           1
";

    #[test]
    fn lines_that_later_versions_add_change_nothing() {
        let since_18 = format!("{STOPPED_STANDBY}Default char data signedness:         signed\n");
        assert_eq!(ControlData::parse(&since_18), ControlData::parse(STOPPED_STANDBY));
        assert!(ControlData::parse(&since_18).is_ok());
    }

    #[test]
    fn a_stopped_standby_is_read() {
        let data = ControlData::parse(STOPPED_STANDBY).unwrap();
        assert_eq!(data.system_identifier, 7_575_345_127_113_385_123);
        assert_eq!(data.state, DbState::ShutDownInRecovery);
        assert!(data.state.is_clean() && !data.state.was_primary());
        assert_eq!((data.checkpoint, data.redo), (Lsn(0x300_0098), Lsn(0x300_0060)));
        assert_eq!((data.timeline, data.min_recovery_timeline), (TimelineId(2), TimelineId(3)));
        assert_eq!(data.min_recovery_end, Lsn(0x16_B374_D848));
        let required = WalPosition { timeline: TimelineId(3), lsn: Lsn(0x16_B374_D848) };
        assert!(data.outran_its_checkpoint() && data.required() == Some(required));
        let checkpointed = ControlData { timeline: TimelineId(3), ..data.clone() };
        assert!(!checkpointed.outran_its_checkpoint());
        let primary = ControlData { min_recovery_timeline: TimelineId(0), min_recovery_end: Lsn(0), ..data.clone() };
        assert!(!primary.outran_its_checkpoint() && primary.required().is_none());
        assert!(data.checksums && data.wal_log_hints && !data.backup_unfinished);
        assert_eq!((data.wal_segment_bytes, data.wal_page_bytes), (16 << 20, 8192));
        assert_eq!(data.floors[0], ("max_connections", 100));
    }

    #[test]
    fn a_missing_or_odd_line_is_named() {
        assert!(ControlData::parse("").unwrap_err().contains("Database system identifier"));
        let odd = STOPPED_STANDBY.replace("shut down in recovery", "heruntergefahren");
        assert_eq!(
            ControlData::parse(&odd).unwrap_err(),
            "odd value in line `Database cluster state`: heruntergefahren"
        );
    }

    #[test]
    fn a_crashed_primary_was_a_primary() {
        let crashed = STOPPED_STANDBY.replace("shut down in recovery", "in production");
        let state = ControlData::parse(&crashed).unwrap().state;
        assert!(state.was_primary() && !state.is_clean());
    }
}
