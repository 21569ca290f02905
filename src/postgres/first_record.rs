//! The first WAL record of a timeline, which tells it from any other of the same number.
//!
//! A promotion begins its timeline with a record that holds the time (`xl_end_of_recovery`, or a checkpoint), so its
//! CRC differs from that of any other promotion, also of one that began at the same position. Layout of pages and
//! records: PostgreSQL's `xlog_internal.h` and `xlogrecord.h`, the same since 9.5.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use super::{error::PostgresError, instance::Instance, waldump::Record};
use crate::domain::{Lsn, TimelineHistory, TimelineId, WalPosition};

/// Of `XLogLongPageHeaderData`, at the beginning of each segment.
const LONG_HEADER: usize = 40;
/// Of `XLogPageHeaderData`, at the beginning of every other page.
const SHORT_HEADER: u64 = 24;
/// Of `XLogRecord`.
const RECORD_HEADER: usize = 24;
/// No record that begins a timeline is longer.
const LONGEST: u64 = 1 << 16;

impl Instance {
    /// The ancestry of the timeline of `end`, where WAL ends, with the first records that are still there.
    ///
    /// # Errors
    /// The history file is missing, damaged, or a stub. A record that can't be read is left out.
    pub fn lineage(&self, end: WalPosition) -> Result<TimelineHistory, PostgresError> {
        let mut history = self.history(end.timeline)?;
        if history.switches.is_empty() {
            return Ok(history);
        }
        let files = self.first_segments()?;
        let began = history.switches.iter().map(|s| s.end);
        let timelines = history.switches.iter().skip(1).map(|s| (s.timeline, s.end));
        let spans = timelines.chain([(end.timeline, end.lsn)]).zip(began);
        let read = |((timeline, until), began)| {
            let (_, file) = files.iter().find(|(of, _)| *of == timeline)?;
            Some((timeline, first_record(file, began, until)?))
        };
        history.first_records = spans.filter_map(read).collect();
        Ok(history)
    }

    /// The first segment there is of each timeline.
    fn first_segments(&self) -> Result<Vec<(TimelineId, PathBuf)>, PostgresError> {
        let dir = self.pg_wal();
        let entries = fs::read_dir(&dir).map_err(PostgresError::file("reading", &dir))?;
        let name = |entry: std::io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
        let mut names: Vec<String> = entries.filter_map(name).filter(|n| is_segment(n)).collect();
        names.sort_unstable();
        names.dedup_by(|later, first| later[..8] == first[..8]);
        let timeline = |name: &str| u32::from_str_radix(&name[..8], 16).ok().map(TimelineId);
        Ok(names.iter().filter_map(|n| Some((timeline(n)?, dir.join(n)))).collect())
    }
}

fn is_segment(name: &str) -> bool {
    name.len() == 24 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The CRC of the record that begins at `begin` in this segment, when all of it is before `until`.
fn first_record(segment: &Path, begin: Lsn, until: Lsn) -> Option<u32> {
    let file = File::open(segment).ok()?;
    let mut header = [0; LONG_HEADER];
    file.read_exact_at(&mut header, 0).ok()?;
    let number =
        |from: usize, bytes: usize| header[from..from + bytes].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
    let (start, size, page) = (number(8, 8), number(32, 4), number(36, 4));
    if !page.is_power_of_two() || page < LONG_HEADER as u64 * 2 || !size.is_multiple_of(page) || size == 0 {
        return None;
    }
    let mut at = begin.0.checked_sub(start).filter(|at| *at < size)?;
    let mut record = [0; RECORD_HEADER];
    let (mut have, mut first) = (0, None);
    while have < RECORD_HEADER {
        if at.is_multiple_of(page) {
            at += if at == 0 { LONG_HEADER as u64 } else { SHORT_HEADER };
        }
        first.get_or_insert(at);
        let room = usize::try_from(page - at % page).ok()?.min(RECORD_HEADER - have);
        // A header that goes on in the next segment is so rare that the record counts as not known.
        file.read_exact_at(&mut record[have..have + room], at).ok()?;
        (at, have) = (at + room as u64, have + room);
    }
    let word = |from: usize| u32::from_le_bytes([record[from], record[from + 1], record[from + 2], record[from + 3]]);
    let bytes = u64::from(word(0));
    if !(RECORD_HEADER as u64..=LONGEST).contains(&bytes) {
        return None;
    }
    let begins = Record { lsn: Lsn(start + first?), bytes, switches_segment: false };
    (begins.end(page, size) <= until).then(|| word(20))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PAGE: u64 = 8192;
    const SEGMENT: u64 = 1 << 20;
    const START: u64 = 0x300_0000;

    /// A segment with a record of `bytes` bytes at `at`.
    fn segment(dir: &Path, at: u64, bytes: u32, crc: u32) -> PathBuf {
        let path = dir.join("000000020000000000000003");
        let file = File::create(&path).unwrap();
        file.set_len(SEGMENT).unwrap();
        file.write_all_at(&START.to_le_bytes(), 8).unwrap();
        file.write_all_at(&(SEGMENT as u32).to_le_bytes(), 32).unwrap();
        file.write_all_at(&(PAGE as u32).to_le_bytes(), 36).unwrap();
        let mut record = [0; RECORD_HEADER];
        record[..4].copy_from_slice(&bytes.to_le_bytes());
        record[20..].copy_from_slice(&crc.to_le_bytes());
        let mut to = at;
        for byte in record {
            if to.is_multiple_of(PAGE) {
                to += if to == 0 { LONG_HEADER as u64 } else { SHORT_HEADER };
            }
            file.write_all_at(&[byte], to).unwrap();
            to += 1;
        }
        path
    }

    #[test]
    fn the_crc_of_the_record_at_the_beginning_is_read_wherever_it_lies() {
        let dir = tempfile::tempdir().unwrap();
        let whole = Lsn(u64::MAX);
        for at in [0, 0x28, PAGE, 3 * PAGE - 8, PAGE - 16, 5 * PAGE + 24] {
            let file = segment(dir.path(), at, 50, 0xABCD);
            assert_eq!(first_record(&file, Lsn(START + at), whole), Some(0xABCD), "{at}");
        }
    }

    #[test]
    fn what_is_not_there_yet_or_not_a_record_is_not_known() {
        let dir = tempfile::tempdir().unwrap();
        let file = segment(dir.path(), 0x1000, 50, 9);
        let begin = Lsn(START + 0x1000);
        assert_eq!(first_record(&file, begin, Lsn(begin.0 + 55)), None, "its end may be missing");
        assert_eq!(first_record(&file, begin, Lsn(begin.0 + 56)), Some(9));
        assert_eq!(first_record(&file, Lsn(START + 0x2000), Lsn(u64::MAX)), None, "zeros");
        assert_eq!(first_record(&file, Lsn(START - 8), Lsn(u64::MAX)), None, "in an earlier segment");
        assert_eq!(first_record(&file, Lsn(START + SEGMENT), Lsn(u64::MAX)), None, "in a later one");
        assert_eq!(first_record(&dir.path().join("none"), begin, Lsn(u64::MAX)), None);
    }
}
