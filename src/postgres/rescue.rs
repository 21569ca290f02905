//! WAL files as bytes: what a crashed primary's successor lacks is read on the one host and put into place on the other.
//!
//! A standby that receives nothing replays what it finds in `pg_wal`, and all of it before it ends a promotion (manual, 27.2.2
//! "Standby Server Operation"). What is put there is what its WAL receiver would have written: the same bytes of the
//! same timeline, without a gap.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use super::{error::PostgresError, files, instance::Instance, waldump::segment_name};
use crate::domain::{Lsn, TimelineId, WalPosition};

/// So much WAL before a position says whose it is: records name the one before them, and carry checksums.
const BEFORE: u64 = 1 << 20;

/// One segment's part of a range of WAL.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    /// The number of the segment, counted from the beginning of WAL.
    number: u64,
    /// Where in its file it begins.
    offset: u64,
    /// In bytes.
    length: usize,
}

/// The part of `length` bytes at `from` that lies in the segment of `from`.
fn first_part(segment: u64, from: Lsn, length: usize) -> Part {
    let offset = from.0 % segment;
    let room = usize::try_from(segment - offset).unwrap_or(usize::MAX);
    Part { number: from.0 / segment, offset, length: length.min(room) }
}

impl Instance {
    /// WAL from `from` on: so many bytes, or those up to the end of that segment file if they are fewer. Segments have
    /// `segment` bytes.
    ///
    /// # Errors
    /// The file is not there or can't be read.
    pub fn read_wal(&self, segment: u64, at: WalPosition, length: usize) -> Result<Vec<u8>, PostgresError> {
        let (timeline, from) = (at.timeline, at.lsn);
        let part = first_part(segment, from, length);
        let path = self.pg_wal().join(segment_name(segment, timeline, part.number));
        let file = File::open(&path).map_err(PostgresError::file("opening", &path))?;
        let mut bytes = vec![0; part.length];
        file.read_exact_at(&mut bytes, part.offset).map_err(PostgresError::file("reading", &path))?;
        Ok(bytes)
    }

    /// The last WAL before `at`: up to a MiB of the segment file that it ends or lies in.
    ///
    /// # Errors
    /// The file is not there or can't be read, or there is no WAL before that position.
    pub fn wal_before(&self, segment: u64, at: WalPosition) -> Result<Vec<u8>, PostgresError> {
        let begin = at.lsn.0.saturating_sub(1) / segment * segment;
        let begin = Lsn(begin.max(at.lsn.0.saturating_sub(BEFORE)));
        let length = usize::try_from(at.lsn.bytes_past(begin)).unwrap_or(usize::MAX);
        self.read_wal(segment, WalPosition { lsn: begin, ..at }, length)
    }

    /// Puts WAL into place. PostgreSQL is a standby that receives nothing. It lasts after [`Instance::sync_wal`] only.
    ///
    /// # Errors
    /// A file can't be written. What was there before `at` is untouched then.
    pub fn put_wal(&self, segment: u64, at: WalPosition, wal: &[u8]) -> Result<(), PostgresError> {
        let (mut from, mut left) = (at.lsn, wal);
        while !left.is_empty() {
            let part = first_part(segment, from, left.len());
            let (now, later) = left.split_at(part.length);
            let file = self.segment_file(segment, at.timeline, part.number)?;
            let path = &file.1;
            file.0.write_all_at(now, part.offset).map_err(PostgresError::file("writing", path))?;
            (from, left) = (Lsn(from.0 + part.length as u64), later);
        }
        Ok(())
    }

    /// Waits until the disk has the WAL from `from` up to `to`.
    ///
    /// # Errors
    /// It can't be said that it has.
    pub fn sync_wal(&self, segment: u64, from: WalPosition, to: Lsn) -> Result<(), PostgresError> {
        for number in from.lsn.0 / segment..to.0.div_ceil(segment) {
            let path = self.pg_wal().join(segment_name(segment, from.timeline, number));
            let synced = File::open(&path).and_then(|file| file.sync_data());
            synced.map_err(PostgresError::file("syncing", &path))?;
        }
        Ok(())
    }

    /// The file of a segment, made at its full size when it is not there: PostgreSQL takes a shorter one for a broken one.
    fn segment_file(&self, segment: u64, timeline: TimelineId, number: u64) -> Result<(File, PathBuf), PostgresError> {
        let path = self.pg_wal().join(segment_name(segment, timeline, number));
        let open = || OpenOptions::new().write(true).open(&path);
        let file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make_segment_file(segment, &path)?;
                open()
            }
            opened => opened,
        };
        Ok((file.map_err(PostgresError::file("opening", &path))?, path))
    }

    fn make_segment_file(&self, segment: u64, path: &Path) -> Result<(), PostgresError> {
        // PostgreSQL removes what is left under such a name.
        let draft = self.pg_wal().join("xlogtemp.rescue");
        let make = || {
            let file = File::create(&draft)?;
            let length = i64::try_from(segment).map_err(io::Error::other)?;
            nix::fcntl::posix_fallocate(&file, 0, length)?;
            file.sync_all()?;
            // What is there by now stays.
            fs::hard_link(&draft, path)
        };
        let made = make().map_err(PostgresError::file("making", path));
        let removed = files::remove(&draft);
        made?;
        removed.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wal_is_cut_where_segment_files_end() {
        const SEGMENT: u64 = 16 << 20;
        let part = |from, length| first_part(SEGMENT, Lsn(from), length);
        assert_eq!(part(SEGMENT + 8, 100), Part { number: 1, offset: 8, length: 100 });
        assert_eq!(part(2 * SEGMENT - 8, 100), Part { number: 1, offset: SEGMENT - 8, length: 8 });
        assert_eq!(part(2 * SEGMENT, 100), Part { number: 2, offset: 0, length: 100 });
    }
}
