//! Where the WAL of a stopped instance ends, read record by record (checksums included) from its last checkpoint.

use std::time::Duration;

use super::{controldata::ControlData, error::PostgresError, instance::Instance};
use crate::domain::{Lsn, TimelineId, WalPosition};

/// pg_waldump reads about a gigabyte in ten seconds, and there is at most `max_wal_size` and a bit after a checkpoint.
const DEADLINE: Duration = Duration::from_secs(600);

/// So long what is lost is counted: nobody is to wait for the figure.
const COUNTED: Duration = Duration::from_secs(15);

impl Instance {
    /// Where the WAL of this stopped instance ends: after its last valid record, on the newest timeline it has.
    ///
    /// # Errors
    /// The instance runs, or the WAL after its last checkpoint is missing.
    pub async fn wal_end_on_disk(&self) -> Result<WalPosition, PostgresError> {
        self.demand_stopped()?;
        self.wal_end_in_files().await
    }

    /// The same of a standby that runs and receives nothing.
    ///
    /// # Errors
    /// The WAL after its last restartpoint is missing.
    pub async fn wal_end_in_files(&self) -> Result<WalPosition, PostgresError> {
        let control = self.control_data()?;
        let (timeline, start) = (control.timeline, control.checkpoint);
        match self.last_record_end(&control, timeline, start).await? {
            Found::End(lsn) => self.with_descendants(&control, (timeline, start), lsn).await,
            Found::Nothing { words } => {
                // A rewind takes `pg_control` last, and its checkpoint may be in a segment that came after the copy.
                // PostgreSQL goes by the label then, and so does this.
                if let Some(label) = self.backup_start()
                    && let Found::End(lsn) = self.last_record_end(&control, label.timeline, label.lsn).await?
                {
                    return self.with_descendants(&control, (label.timeline, label.lsn), lsn).await;
                }
                let problem =
                    format!("no valid WAL record at the last checkpoint, {start} on timeline {timeline}: {words}");
                Err(PostgresError::WalEnd { data_dir: self.data_dir().to_owned(), problem })
            }
        }
    }

    /// How many transactions were committed after `from`, on its timeline, up to `end`. Takes a few seconds at most.
    ///
    /// # Errors
    /// The instance runs, the WAL in between is not there as a whole, or it is too much to be read in that time.
    pub async fn commits_between(&self, from: WalPosition, end: Lsn) -> Result<u64, PostgresError> {
        self.demand_stopped()?;
        let segment = self.control_data()?.wal_segment_bytes;
        let files = self.files_from(segment, from.timeline, from.lsn).filter(|files| files.end >= end);
        let missing = || PostgresError::WalEnd {
            data_dir: self.data_dir().to_owned(),
            problem: format!("not all WAL from {from} to {end} is there"),
        };
        let files = files.ok_or_else(missing)?;
        let helper = self.helper("pg_waldump", COUNTED).arg("-p").arg(self.pg_wal());
        let helper = helper.arg("-t").arg(from.timeline.to_string()).arg("-s").arg(from.lsn.to_string());
        // It demands that the end lies in the last file it is given.
        let last = segment_name(segment, from.timeline, end.0.saturating_sub(1) / segment);
        let helper = helper.arg("-e").arg(end.to_string()).arg(files.first).arg(last);
        let (mut commits, mut records) = (0, 0_u64);
        helper
            .run(|line| {
                commits += u64::from(is_commit(line));
                records += u64::from(line.starts_with("rmgr: "));
            })
            .await?;
        if records == 0 { Err(missing()) } else { Ok(commits) }
    }

    /// The checkpoint that recovery starts from, by `backup_label`; `None`: there is none, or it is not understood.
    fn backup_start(&self) -> Option<WalPosition> {
        checkpoint_of(&std::fs::read_to_string(self.data_dir().join("backup_label")).ok()?)
    }

    /// The end on the newest timeline that goes on from records on `timeline` after `start`, which end at `lsn`.
    async fn with_descendants(
        &self,
        control: &ControlData,
        (mut timeline, start): (TimelineId, Lsn),
        mut lsn: Lsn,
    ) -> Result<WalPosition, PostgresError> {
        // A switch after the checkpoint: the records of the new timeline are in files of its own.
        for history in self.descendants(timeline)? {
            let Some(switch) = history.end_of(timeline).filter(|end| history.contains(timeline) && *end >= start)
            else {
                continue;
            };
            let newest = history.switches.last().map_or(switch, |s| s.end.max(switch));
            if let Found::End(end) = self.last_record_end(control, history.timeline, newest).await? {
                (timeline, lsn) = (history.timeline, end);
            }
        }
        Ok(WalPosition { timeline, lsn })
    }

    /// The end of the last valid record of `timeline` after `start`, which is the end of one; `None`: there is none.
    ///
    /// # Errors
    /// pg_waldump can't be run, or takes longer than `deadline`.
    pub async fn records_end(
        &self,
        timeline: TimelineId,
        start: Lsn,
        deadline: Duration,
    ) -> Result<Option<Lsn>, PostgresError> {
        let control = self.control_data()?;
        let found = tokio::time::timeout(deadline, self.last_record_end(&control, timeline, start)).await;
        match found {
            Ok(Ok(Found::End(end))) => Ok(Some(end)),
            Ok(Ok(Found::Nothing { .. })) => Ok(None),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(PostgresError::WalEnd {
                data_dir: self.data_dir().to_owned(),
                problem: format!("the WAL after {start} was not read in {} ms", deadline.as_millis()),
            }),
        }
    }

    /// The end of the last valid record of `timeline` at or after `start`.
    async fn last_record_end(
        &self,
        control: &ControlData,
        timeline: TimelineId,
        start: Lsn,
    ) -> Result<Found, PostgresError> {
        let end = |record: Record| Found::End(record.end(control.wal_page_bytes, control.wal_segment_bytes));
        // To read WAL takes a sixth of what it takes to read and print it.
        let (_, quiet) = self.dump(control, (timeline, start), &["--quiet"]).await?;
        if let Some(at) = last_read(&quiet) {
            let (line, _) = self.dump(control, (timeline, at), &["--limit=1"]).await?;
            if let Some(record) = Record::parse(&line).filter(|record| record.lsn == at) {
                return Ok(end(record));
            }
        }
        let (line, words) = self.dump(control, (timeline, start), &[]).await?;
        Ok(Record::parse(&line).map_or(Found::Nothing { words }, end))
    }

    /// The last record that pg_waldump prints, and what it says at its end, which may be an error: the next record isn't there.
    async fn dump(
        &self,
        control: &ControlData,
        (timeline, start): (TimelineId, Lsn),
        options: &[&str],
    ) -> Result<(String, String), PostgresError> {
        let mut last = String::new();
        let helper = self.helper("pg_waldump", DEADLINE).args(options.iter().copied()).arg("-p").arg(self.pg_wal());
        let mut helper = helper.arg("-t").arg(timeline.to_string()).arg("-s").arg(start.to_string());
        if let Some(files) = self.files_from(control.wal_segment_bytes, timeline, start) {
            // Without a file's name pg_waldump learns the segment size from the first file of the directory, which
            // may be one that was made ahead and is all zeros: it gives up then, whatever the other files hold.
            helper = helper.arg("-e").arg(files.end.to_string()).arg(files.first).arg(files.last);
        }
        let finished = helper
            .run_any(|line| {
                if line.starts_with("rmgr: ") {
                    last.clear();
                    last.push_str(line);
                }
            })
            .await?;
        Ok((last, finished.tail))
    }

    /// The segment files that hold `start` and follow without a gap; `None` when not even the first is there. When
    /// WAL ends just where they end, as after every base backup, pg_waldump would wait five seconds for the next.
    fn files_from(&self, segment: u64, timeline: TimelineId, start: Lsn) -> Option<Files> {
        let first = start.0 / segment;
        let name = |number| segment_name(segment, timeline, number);
        let count = (first..).take_while(|number| self.pg_wal().join(name(*number)).exists()).count() as u64;
        let last = first + count.checked_sub(1)?;
        Some(Files { first: name(first), last: name(last), end: Lsn((last + 1) * segment) })
    }
}

/// The file of the segment with that number, counted from the beginning of WAL.
pub(super) fn segment_name(segment: u64, timeline: TimelineId, number: u64) -> String {
    let per_id = (1 << 32) / segment;
    format!("{:08X}{:08X}{:08X}", timeline.0, number / per_id, number % per_id)
}

/// Segment files without a gap.
#[derive(Debug)]
struct Files {
    first: String,
    last: String,
    /// Where the last one ends.
    end: Lsn,
}

/// What pg_waldump found.
#[derive(Debug)]
enum Found {
    /// The end of the last record.
    End(Lsn),
    /// No record; its last words say why.
    Nothing { words: String },
}

/// One line of pg_waldump, as far as it is needed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) lsn: Lsn,
    pub(super) bytes: u64,
    /// The rest of its segment is void.
    pub(super) switches_segment: bool,
}

impl Record {
    fn parse(line: &str) -> Option<Self> {
        let lengths = line.split("len (rec/tot):").nth(1)?.split(',').next()?;
        let bytes = lengths.split('/').nth(1)?.trim().parse().ok()?;
        let lsn = line.split(", lsn: ").nth(1)?.split(',').next()?.parse().ok()?;
        let switches_segment = line.starts_with("rmgr: XLOG ") && line.contains(" desc: SWITCH");
        Some(Self { lsn, bytes, switches_segment })
    }

    /// The position after it, as PostgreSQL counts it: aligned to 8 bytes, with the headers of the pages it crosses.
    pub(super) fn end(&self, page: u64, segment: u64) -> Lsn {
        let (mut at, mut left) = (self.lsn.0, self.bytes);
        loop {
            let room = page - at % page;
            if left <= room {
                at += left.next_multiple_of(8);
                break;
            }
            left -= room;
            at += room;
            at += if at.is_multiple_of(segment) { 40 } else { 24 };
        }
        Lsn(if self.switches_segment { at.next_multiple_of(segment) } else { at })
    }
}

/// The record that pg_waldump had read last when it found no valid one after it.
fn last_read(words: &str) -> Option<Lsn> {
    let rest = words.split("error in WAL record at ").nth(1)?;
    rest.split(": ").next()?.trim().parse().ok().filter(|at| *at != Lsn(0))
}

/// A line of pg_waldump for a commit, prepared or not.
fn is_commit(line: &str) -> bool {
    let desc = || line.split_once(" desc: ").map_or("", |(_, desc)| desc);
    line.starts_with("rmgr: Transaction ") && (desc().starts_with("COMMIT ") || desc().starts_with("COMMIT_PREPARED "))
}

/// Of a `backup_label` (manual, 26.3): the checkpoint, on the timeline of the file it names.
fn checkpoint_of(label: &str) -> Option<WalPosition> {
    let value = |key: &str| label.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let lsn = value("CHECKPOINT LOCATION:")?.parse().ok()?;
    let file = value("START WAL LOCATION:")?.split("(file ").nth(1)?;
    let timeline = TimelineId(u32::from_str_radix(file.get(..8)?, 16).ok()?);
    Some(WalPosition { timeline, lsn })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_label_names_the_checkpoint_that_recovery_starts_from() {
        let label = "START WAL LOCATION: 0/5651380 (file 0000000A0000000000000005)\nCHECKPOINT LOCATION: 0/5653A38\n\
                     BACKUP METHOD: pg_rewind\nBACKUP FROM: standby\nSTART TIME: 2026-01-01 00:00:00 UTC\n";
        assert_eq!(checkpoint_of(label), Some(WalPosition { timeline: TimelineId(10), lsn: Lsn(0x565_3A38) }));
        assert_eq!(checkpoint_of("CHECKPOINT LOCATION: 0/5653A38\n"), None);
    }

    #[test]
    fn the_last_record_is_named_where_the_next_is_none() {
        let words = "pg_waldump: error: error in WAL record at 0/122A4020: invalid record length at 0/122A4048: wanted 24, got 0";
        assert_eq!(last_read(words), Some(Lsn(0x122A_4020)));
        let since_16 = "pg_waldump: error: error in WAL record at 0/16EF1A0: invalid record length at 0/16EF1C8: expected at least 24, got 0";
        assert_eq!(last_read(since_16), Some(Lsn(0x16E_F1A0)));
        let none = "pg_waldump: error: could not find a valid record after 0/122A4048";
        assert_eq!(last_read(none), None);
        assert_eq!(last_read(""), None);
    }

    const PAGE: u64 = 8192;
    const SEGMENT: u64 = 16 << 20;

    fn record(lsn: u64, bytes: u64) -> Record {
        Record { lsn: Lsn(lsn), bytes, switches_segment: false }
    }

    #[test]
    fn a_segment_has_a_name_of_three_parts() {
        assert_eq!(segment_name(16 << 20, TimelineId(2), 5), "000000020000000000000005");
        assert_eq!(segment_name(16 << 20, TimelineId(0x1F), 256), "0000001F0000000100000000");
        assert_eq!(segment_name(1 << 30, TimelineId(1), 7), "000000010000000100000003");
    }

    #[test]
    fn a_line_of_pg_waldump_is_read() {
        let line = "rmgr: XLOG        len (rec/tot):     24/    24, tx:          0, lsn: 0/03000060, prev 0/03000028, desc: SWITCH ";
        let seen = Record::parse(line).unwrap();
        assert_eq!(seen, Record { lsn: Lsn(0x300_0060), bytes: 24, switches_segment: true });
        assert_eq!(seen.end(PAGE, SEGMENT), Lsn(0x400_0000));
        assert_eq!(Record::parse(""), None);
    }

    #[test]
    fn commits_are_told_from_other_ends_of_transactions() {
        let line = |rmgr: &str, desc: &str| {
            format!(
                "rmgr: {rmgr} len (rec/tot):     34/    34, tx:        735, lsn: 0/03000060, prev 0/03000028, desc: {desc}"
            )
        };
        assert!(is_commit(&line("Transaction", "COMMIT 2026-11-27 01:00:00.000000 UTC")));
        assert!(is_commit(&line("Transaction", "COMMIT_PREPARED 735: 2026-11-27 01:00:00.000000 UTC")));
        for (rmgr, desc) in [("Transaction", "ABORT 2026"), ("Transaction", "PREPARE gid x"), ("Heap", "COMMIT x")] {
            assert!(!is_commit(&line(rmgr, desc)), "{desc}");
        }
    }

    #[test]
    fn a_record_ends_aligned_and_past_the_headers_of_the_pages_it_crosses() {
        assert_eq!(record(0x300_0028, 114).end(PAGE, SEGMENT), Lsn(0x300_0028 + 120));
        assert_eq!(record(0x300_2000 - 8, 8).end(PAGE, SEGMENT), Lsn(0x300_2000));
        assert_eq!(record(0x300_2000 - 8, 30).end(PAGE, SEGMENT), Lsn(0x300_2000 + 24 + 24));
        assert_eq!(record(0x400_0000 - 16, 30).end(PAGE, SEGMENT), Lsn(0x400_0000 + 40 + 16));
        let long = record(0x300_2000 - 8, 8 + (PAGE - 24) + 1).end(PAGE, SEGMENT);
        assert_eq!(long, Lsn(0x300_4000 + 24 + 8));
    }
}
