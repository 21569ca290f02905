//! Whether the WAL of this stopped member is the primary's, byte by byte. Timelines and positions alone don't say it: a copy of a
//! data directory that was written to for a while has other records at the same positions of the same timeline.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path};

use sha2::{Digest as _, Sha256};

use super::{conf::Upstream, error::PostgresError, files, instance::Instance, segments::Segment, session::SqlError};
use crate::domain::{Lsn, TimelineHistory};

/// So much is read by one call: the primary holds it in memory.
const PIECE: u64 = 16 << 20;
/// So many pieces are asked for by one question, which may take some seconds.
const AT_ONCE: usize = 4;
/// Beside what has to be compared so much of what is older is, in bytes. A gigabyte takes some seconds.
const OLDER: u64 = 1 << 30;

/// A part of a segment file that two members should have alike.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    /// Where it begins.
    start: Lsn,
    /// The file of this member …
    ours: String,
    /// … and of the primary, which may have the same bytes in the file of a later timeline.
    theirs: String,
    /// Where it begins in either.
    offset: u64,
    bytes: u64,
}

/// What a comparison came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compared {
    /// The same bytes.
    Same,
    /// Somewhere from this position on the bytes are others.
    Differs {
        /// Where the piece begins.
        from: Lsn,
    },
    /// The primary has no more of it.
    Removed {
        /// Where the piece begins.
        from: Lsn,
    },
}

/// What is compared, and by which histories its files are named.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stretch<'a> {
    pub(super) ours: &'a TimelineHistory,
    pub(super) theirs: &'a TimelineHistory,
    /// All from here on has to be alike, and to be there.
    pub(super) from: Lsn,
    /// Where this member's WAL ends.
    pub(super) end: Lsn,
    /// Of a segment, in bytes.
    pub(super) segment: u64,
}

impl Stretch<'_> {
    /// The newest first, down to `down_to`.
    fn pieces(&self, down_to: Lsn) -> Vec<Piece> {
        let (mut pieces, mut end) = (Vec::new(), self.end.0);
        while end > down_to.0 {
            let number = (end - 1) / self.segment;
            let begins = number * self.segment;
            // Pieces begin at multiples of their size, but for the first.
            let start = ((end - 1) / PIECE * PIECE).max(begins).max(down_to.0);
            let file = |history| Segment::on(history, number, self.segment).name();
            let (ours, theirs) = (file(self.ours), file(self.theirs));
            pieces.push(Piece { start: Lsn(start), ours, theirs, offset: start - begins, bytes: end - start });
            end = start;
        }
        pieces
    }

    /// What is older is compared in whole segments.
    fn oldest(&self) -> Lsn {
        Lsn(self.from.0.saturating_sub(OLDER).next_multiple_of(self.segment).min(self.from.0))
    }
}

impl Instance {
    /// Compares WAL with that of `primary`, from its end back. What is older than it has to be is compared as far as both have it.
    ///
    /// # Errors
    /// The primary doesn't answer, or is none any more. This member's own WAL can't be read.
    pub(super) async fn same_wal(&self, primary: &Upstream, stretch: Stretch<'_>) -> Result<Compared, SameWalError> {
        let (pieces, must) = (stretch.pieces(stretch.oldest()), stretch.from);
        for pieces in pieces.chunks(AT_ONCE) {
            let theirs = self.ask_source(primary, ASKING, &question(pieces)).await?;
            if theirs.len() != pieces.len() {
                let problem = "it is no primary any more".to_owned();
                return Err(SqlError::Unexpected { doing: ASKING, problem }.into());
            }
            let ours = self.digests(pieces.to_vec()).await?;
            for (piece, (ours, theirs)) in pieces.iter().zip(ours.into_iter().zip(theirs)) {
                // The piece has something that has to be compared.
                let needed = piece.start.0 + piece.bytes > must.0;
                match ours {
                    Some(_) if theirs.is_empty() && needed => return Ok(Compared::Removed { from: piece.start }),
                    Some(ours) if !theirs.is_empty() && ours != theirs => {
                        return Ok(Compared::Differs { from: piece.start });
                    }
                    Some(_) if !theirs.is_empty() => {}
                    None if needed => return Err(SameWalError::Missing { file: piece.ours.clone() }),
                    // Further back there is nothing to compare.
                    Some(_) | None => return Ok(Compared::Same),
                }
            }
        }
        Ok(Compared::Same)
    }

    /// `None`: there is no such file.
    async fn digests(&self, pieces: Vec<Piece>) -> Result<Vec<Option<String>>, PostgresError> {
        let wal = self.pg_wal();
        files::reading(move || {
            let digest = |piece: &Piece| {
                let path = wal.join(&piece.ours);
                match digest(&path, piece.offset, piece.bytes) {
                    Ok(digest) => Ok(Some(digest)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(PostgresError::file("reading", &path)(error)),
                }
            };
            pieces.iter().map(digest).collect()
        })
        .await
    }
}

const ASKING: &str = "asking the primary for what is in its WAL";

/// No comparison.
#[derive(Debug, thiserror::Error)]
pub(super) enum SameWalError {
    #[error(transparent)]
    Primary(#[from] SqlError),
    #[error(transparent)]
    Step(#[from] PostgresError),
    /// Of what has to be compared.
    #[error("{file} is missing in its pg_wal")]
    Missing {
        /// Its name.
        file: String,
    },
}

/// An empty text: there is no such file. No row: it is a standby. The names are of hex digits.
fn question(pieces: &[Piece]) -> String {
    let row = |piece: &Piece| format!("('pg_wal/{}', {}::bigint, {}::bigint)", piece.theirs, piece.offset, piece.bytes);
    let rows = Vec::from_iter(pieces.iter().map(row)).join(", ");
    format!(
        "SELECT coalesce(pg_catalog.encode(pg_catalog.sha256(pg_catalog.pg_read_binary_file(file, at, bytes, true)), 'hex'), '') \
         FROM (VALUES {rows}) AS piece(file, at, bytes) WHERE NOT pg_catalog.pg_is_in_recovery()"
    )
}

fn digest(path: &Path, offset: u64, bytes: u64) -> io::Result<String> {
    let file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let (mut at, end) = (offset, offset + bytes);
    while at < end {
        let wanted = usize::try_from(end - at).map_or(buffer.len(), |left| left.min(buffer.len()));
        match file.read_at(&mut buffer[..wanted], at)? {
            0 => break,
            read => {
                hash.update(&buffer[..read]);
                at += read as u64;
            }
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::domain::{TimelineId, TimelineSwitch};

    const MIB: u64 = 1 << 20;

    fn history(timeline: u32, switches: &[(u32, u64)]) -> TimelineHistory {
        let switch = |(timeline, end): &(u32, u64)| TimelineSwitch { timeline: TimelineId(*timeline), end: Lsn(*end) };
        let switches = switches.iter().map(switch).collect();
        TimelineHistory { timeline: TimelineId(timeline), switches, ..TimelineHistory::default() }
    }

    #[test]
    fn all_up_to_the_last_byte_is_compared_in_the_files_that_each_of_both_has() {
        // Timeline 1 ended in segment 3, of 16 MiB each; this member has not gone on.
        let (ours, theirs) = (history(1, &[]), history(2, &[(1, 3 * 16 * MIB + 500)]));
        let (from, end) = (Lsn(2 * 16 * MIB + 40), Lsn(3 * 16 * MIB + 500));
        let stretch = Stretch { ours: &ours, theirs: &theirs, from, end, segment: 16 * MIB };
        let pieces = stretch.pieces(from);
        let short = pieces.iter().map(|p| (p.ours.as_str(), p.theirs.as_str(), p.offset, p.bytes));
        assert_eq!(
            Vec::from_iter(short),
            [
                ("000000010000000000000003", "000000020000000000000003", 0, 500),
                ("000000010000000000000002", "000000010000000000000002", 40, 16 * MIB - 40),
            ]
        );
        assert_eq!(stretch.oldest(), Lsn(0));
        // One that ended with a segment has nothing in the next.
        let whole = Stretch { end: Lsn(3 * 16 * MIB), ..stretch };
        assert_eq!(whole.pieces(from).len(), 1);
    }

    #[test]
    fn no_piece_is_longer_than_a_primary_can_give_and_none_is_left_out() {
        let history = history(1, &[]);
        for (segment, from, end) in [(64 * MIB, 3 * MIB, 130 * MIB + 7), (MIB, MIB + 5, 9 * MIB), (16 * MIB, 1, 2)] {
            let stretch = Stretch { ours: &history, theirs: &history, from: Lsn(from), end: Lsn(end), segment };
            let mut until = end;
            for piece in stretch.pieces(Lsn(from)) {
                assert!(piece.bytes <= PIECE && piece.offset + piece.bytes <= segment, "{piece:?}");
                assert_eq!(piece.start.0 + piece.bytes, until, "{piece:?}");
                assert_eq!(piece.start.0 % segment, piece.offset, "{piece:?}");
                until = piece.start.0;
            }
            assert_eq!(until, from);
        }
        let far = Stretch { ours: &history, theirs: &history, from: Lsn(1 << 40), end: Lsn(1 << 41), segment: MIB };
        assert_eq!(far.oldest(), Lsn((1 << 40) - OLDER));
    }

    #[test]
    fn one_other_byte_is_another_digest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("segment");
        let mut bytes = vec![7; 200_000];
        std::fs::write(&path, &bytes).unwrap();
        let whole = digest(&path, 100, 150_000).unwrap();
        assert_eq!(whole.len(), 64);
        bytes[99] = 8;
        bytes[150_100] = 8;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(digest(&path, 100, 150_000).unwrap(), whole, "outside");
        bytes[150_099] = 8;
        std::fs::write(&path, &bytes).unwrap();
        assert_ne!(digest(&path, 100, 150_000).unwrap(), whole);
        assert_ne!(digest(&path, 100, 250_000).unwrap(), whole, "a shorter file has other bytes");
    }
}
