//! Keeps what a former primary alone had before it is undone: its WAL from where the histories part, and the data directory
//! that a clone replaces. All of it lies in `<data_dir>.kept`, one directory for each time, and PostgreSQL never looks there.

use std::{
    fs::{self, File},
    io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{
    error::PostgresError,
    files,
    instance::{DataState, Instance},
    waldump::segment_name,
};
use crate::domain::{KeepDiverged, TimelineId, WalPosition, diverged_name};

/// In a directory whose WAL parted from the cluster's: the name under which it is kept.
pub(super) const MARK: &str = "matriarch.diverged";
const REPORT: &str = "report.txt";
/// In an entry: how many there had been when it was made.
const NUMBER: &str = "number";
/// What is being removed has a name that begins so.
const GONE: &str = ".gone-";

/// What became of WAL that only this member had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Saved {
    /// It is there; so many bytes of files.
    Files {
        /// Of all of them.
        bytes: u64,
    },
    /// It would take more than half of what is free on the volume.
    NoRoom {
        /// What it would take.
        bytes: u64,
        /// What an ordinary user can still write there.
        free: u64,
    },
}

/// WAL from where it left the cluster's history to its end.
#[derive(Debug, Clone, Copy)]
pub struct Tail {
    /// The last position that was shared.
    pub fork: WalPosition,
    /// Its end.
    pub end: WalPosition,
}

impl Instance {
    fn all_kept(&self) -> PathBuf {
        self.beside(".kept")
    }

    /// Where `tail`, and the directory that it was in, are kept.
    pub fn kept(&self, tail: Tail) -> PathBuf {
        self.all_kept().join(diverged_name(tail.fork, tail.end))
    }

    /// Copies the WAL files of `tail`, the histories of its timelines and `pg_control` into a directory of their own, with
    /// `report` beside them. What is there already stays. The server is stopped.
    ///
    /// # Errors
    /// A file can't be read or written; nothing is there under that name then.
    pub async fn save_tail(&self, tail: Tail, report: String) -> Result<Saved, PostgresError> {
        let instance = self.clone();
        files::blocking(move || instance.save_tail_blocking(tail, &report)).await
    }

    fn save_tail_blocking(&self, tail: Tail, report: &str) -> Result<Saved, PostgresError> {
        let _saving = self.saving();
        let place = self.kept(tail);
        // It may be there for the data directory alone.
        if place.join(REPORT).exists() {
            return Ok(Saved::Files { bytes: bytes_in(&place)? });
        }
        // One that was cut off takes room.
        let new = self.all_kept().join(".new");
        remove_blocking(&new)?;
        let found = self.files_of(tail)?;
        let bytes = found.iter().map(|(_, bytes)| bytes).sum();
        let space = self.space().map_err(PostgresError::file("asking for the room of", self.data_dir()))?;
        if space.data.free / 2 < bytes {
            return Ok(Saved::NoRoom { bytes, free: space.data.free });
        }
        let made = self.fill_entry(&new, &found, report);
        if made.is_err() {
            // What fills the volume helps nobody.
            let _ = remove_blocking(&new);
        }
        made?;
        let data = place.join("data");
        if data.exists() {
            fs::rename(&data, new.join("data")).map_err(PostgresError::file("putting aside", &data))?;
            remove_blocking(&place)?;
        }
        fs::rename(&new, &place).map_err(PostgresError::file("putting in place", &place))?;
        files::sync_parent(&place)?;
        files::sync_parent(&self.all_kept())?;
        Ok(Saved::Files { bytes })
    }

    fn fill_entry(&self, new: &Path, found: &[(PathBuf, u64)], report: &str) -> Result<(), PostgresError> {
        fs::create_dir_all(new).map_err(PostgresError::file("creating", new))?;
        for (file, _) in found {
            copy_into(file, new)?;
        }
        self.number(new)?;
        files::replace(&new.join(REPORT), report)?;
        files::sync(new)
    }

    /// Says that this entry is younger than all that are there. Times of files would not do: clocks are set back, and whoever removes
    /// something from a directory makes it look young.
    fn number(&self, place: &Path) -> Result<(), PostgresError> {
        let newest = self.kept_by_age()?.iter().map(|entry| number_of(entry)).max().unwrap_or(0);
        files::replace(&place.join(NUMBER), &format!("{}\n", newest + 1))
    }

    /// Their sizes with them.
    ///
    /// # Errors
    /// The WAL is not there without a gap, or can't be read.
    fn files_of(&self, tail: Tail) -> Result<Vec<(PathBuf, u64)>, PostgresError> {
        let segment = self.control_data()?.wal_segment_bytes;
        let segments = tail.fork.lsn.0 / segment..=tail.end.lsn.0.saturating_sub(1) / segment;
        let timelines = tail.fork.timeline..=tail.end.timeline;
        let wal = self.pg_wal();
        let mut found = Vec::new();
        for entry in fs::read_dir(&wal).map_err(PostgresError::file("reading", &wal))? {
            let entry = entry.map_err(PostgresError::file("reading", &wal))?;
            let name = entry.file_name();
            if name.to_str().is_some_and(|name| belongs(name, segment, &timelines, &segments)) {
                found.push(entry.path());
            }
        }
        let there = |number: u64| {
            let suffix = &segment_name(segment, TimelineId(0), number)[8..];
            found.iter().any(|path: &PathBuf| name_of(path).get(8..24) == Some(suffix))
        };
        if let Some(gap) = segments.clone().find(|number| !there(*number)) {
            let problem = format!("segment {gap} of what only this member had is not there any more");
            return Err(PostgresError::WalEnd { data_dir: self.data_dir().to_owned(), problem });
        }
        found.push(self.data_dir().join("global/pg_control"));
        let sized = found.into_iter().map(|path| {
            let bytes = fs::metadata(&path).map_err(PostgresError::file("reading", &path))?.len();
            Ok((path, bytes))
        });
        sized.collect()
    }

    /// What is in the data directory parted from the cluster's history: when a clone replaces it, it is kept by that name.
    ///
    /// # Errors
    /// The mark can't be written.
    pub fn mark_diverged(&self, tail: Tail) -> Result<(), PostgresError> {
        files::replace(&self.data_dir().join(MARK), &diverged_name(tail.fork, tail.end))
    }

    /// What is in the data directory has no position to be named by: it is damaged, or has nothing in common with the cluster's
    /// history. When a clone replaces it, it is kept under `what` and when that was, in seconds since 1970. Nothing there: no mark.
    ///
    /// # Errors
    /// The mark can't be written.
    pub fn mark_as(&self, what: &str) -> Result<(), PostgresError> {
        let mark = self.data_dir().join(MARK);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // A try that failed has marked it already.
        if mark.exists() || matches!(self.data_state()?, DataState::Missing | DataState::Empty) {
            return Ok(());
        }
        files::replace(&mark, &format!("{what}-{}", now.as_secs()))
    }

    /// Puts a replaced directory that had parted from the cluster's history where it is kept. True when there was one.
    ///
    /// # Errors
    /// It can't be renamed.
    pub(super) fn keep_old(&self) -> Result<bool, PostgresError> {
        let old = self.beside(".old");
        let Ok(name) = fs::read_to_string(old.join(MARK)) else { return Ok(false) };
        let name = name.trim();
        // It is a file that others could write to: nothing but a name leads out of it.
        if name.is_empty() || name.starts_with('.') || name.contains('/') {
            return Ok(false);
        }
        let place = self.all_kept().join(name);
        fs::create_dir_all(&place).map_err(PostgresError::file("creating", &place))?;
        let data = place.join("data");
        if data.exists() {
            return Ok(false);
        }
        if number_of(&place) == 0 {
            self.number(&place)?;
        }
        fs::rename(&old, &data).map_err(PostgresError::file("putting aside", &old))?;
        files::sync(&place)?;
        files::sync_parent(&place)?;
        files::sync_parent(&self.all_kept())?;
        files::sync_parent(&old)?;
        Ok(true)
    }

    /// Removes what is kept beyond what `keep` says, the oldest first. Returns the names of what went.
    ///
    /// # Errors
    /// Something can't be removed.
    pub async fn prune_kept(&self, keep: KeepDiverged) -> Result<Vec<String>, PostgresError> {
        let instance = self.clone();
        files::blocking(move || instance.prune_blocking(keep)).await
    }

    fn prune_blocking(&self, keep: KeepDiverged) -> Result<Vec<String>, PostgresError> {
        self.remove_gone()?;
        let mut entries = self.kept_by_age()?;
        let stay = match keep {
            KeepDiverged::None => 0,
            KeepDiverged::Last => 1,
            KeepDiverged::All => entries.len(),
        };
        entries.truncate(entries.len().saturating_sub(stay));
        for place in &entries {
            self.give_up(place)?;
        }
        self.remove_gone()?;
        Ok(entries.iter().map(|place| name_of(place)).collect())
    }

    /// Removes the data directories that are kept, for their room; the WAL that was saved stays. True when there was one.
    ///
    /// # Errors
    /// One can't be removed.
    pub fn release_kept_data(&self) -> Result<bool, PostgresError> {
        let directories = self.kept_by_age()?.into_iter().map(|place| place.join("data"));
        let directories: Vec<PathBuf> = directories.filter(|data| data.exists()).collect();
        directories.iter().try_for_each(|data| self.give_up(data))?;
        Ok(!directories.is_empty())
    }

    /// Half of something that is being removed must not pass for something that is kept.
    fn give_up(&self, path: &Path) -> Result<(), PostgresError> {
        let kept = self.all_kept();
        let gone = (0_u64..).map(|n| kept.join(format!("{GONE}{n}"))).find(|place| !place.exists());
        let Some(gone) = gone else { return Ok(()) };
        fs::rename(path, &gone).map_err(PostgresError::file("putting aside", path))?;
        files::sync_parent(path)?;
        files::sync_parent(&gone)
    }

    /// Removes what was given up, which may take minutes.
    ///
    /// # Errors
    /// Something can't be removed.
    pub fn remove_gone(&self) -> Result<(), PostgresError> {
        let entries = fs::read_dir(self.all_kept()).into_iter().flatten().flatten();
        for gone in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(GONE)) {
            let gone = gone.path();
            // Either a directory of data, or an entry that has one.
            self.remove_data_blocking(&gone.join("data"))?;
            self.remove_data_blocking(&gone)?;
        }
        Ok(())
    }

    /// What is kept, the oldest first.
    fn kept_by_age(&self) -> Result<Vec<PathBuf>, PostgresError> {
        let kept = self.all_kept();
        let entries = match fs::read_dir(&kept) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(PostgresError::file("reading", &kept)(error)),
        };
        let mut found: Vec<(u64, SystemTime, PathBuf)> = entries
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .filter(|path| path.is_dir() && !name_of(path).starts_with('.'))
            // Those of a version that gave no numbers are older than all others.
            .map(|path| {
                (
                    number_of(&path),
                    fs::metadata(&path).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH),
                    path,
                )
            })
            .collect();
        found.sort();
        Ok(found.into_iter().map(|(_, _, path)| path).collect())
    }
}

/// A segment of one of these timelines, whole or the last part of one, or what tells where one of them began.
fn belongs(name: &str, segment: u64, timelines: &RangeInclusive<TimelineId>, segments: &RangeInclusive<u64>) -> bool {
    let hex = |range: std::ops::Range<usize>| name.get(range).and_then(|digits| u32::from_str_radix(digits, 16).ok());
    let Some(timeline) = hex(0..8).map(TimelineId) else { return false };
    if name.get(8..) == Some(".history") {
        return timelines.contains(&timeline) && timeline != *timelines.start();
    }
    let (Some(high), Some(low)) = (hex(8..16), hex(16..24)) else { return false };
    let number = u64::from(high) * (0x1_0000_0000 / segment) + u64::from(low);
    let whole = matches!(name.get(24..), Some("" | ".partial"));
    whole && timelines.contains(&timeline) && segments.contains(&number)
}

fn copy_into(file: &Path, dir: &Path) -> Result<(), PostgresError> {
    let Some(name) = file.file_name() else { return Ok(()) };
    let copy = dir.join(name);
    fs::copy(file, &copy).map_err(PostgresError::file("copying", file))?;
    File::open(&copy).and_then(|f| f.sync_all()).map_err(PostgresError::file("syncing", &copy))
}

fn bytes_in(dir: &Path) -> Result<u64, PostgresError> {
    let entries = fs::read_dir(dir).map_err(PostgresError::file("reading", dir))?;
    let saved =
        entries.filter_map(Result::ok).filter(|entry| entry.file_name() != REPORT && entry.file_name() != NUMBER);
    let files = saved.filter_map(|entry| entry.metadata().ok()).filter(|meta| meta.is_file());
    Ok(files.map(|meta| meta.len()).sum())
}

fn remove_blocking(path: &Path) -> Result<(), PostgresError> {
    match fs::remove_dir_all(path) {
        Ok(()) => files::sync_parent(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(PostgresError::file("removing", path)(error)),
    }
}

/// 0: it has none.
fn number_of(entry: &Path) -> u64 {
    fs::read_to_string(entry.join(NUMBER)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn segments_from_the_fork_to_the_end_belong_to_a_tail_and_so_do_later_histories() {
        let own = |name: &str| belongs(name, 16 << 20, &(TimelineId(2)..=TimelineId(5)), &(3..=257));
        for name in [
            "000000020000000000000003",
            "000000050000000100000001",
            "000000030000000000000004.partial",
            "00000003.history",
        ] {
            assert!(own(name), "{name}");
        }
        for name in [
            "000000020000000000000002",
            "000000020000000100000002",
            "000000010000000000000003",
            "000000060000000000000003",
            "00000002.history",
            "000000020000000000000003.00000028.backup",
            "archive_status",
            "pgsql_tmp.matriarch-reserve",
            "",
        ] {
            assert!(!own(name), "{name}");
        }
    }
}
