//! Timeline history files in `pg_wal`: reading them, and the stubs that make the next timeline unique.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{error::PostgresError, files, instance::Instance};
use crate::domain::{TimelineHistory, TimelineId};

/// The first line of a stub. PostgreSQL passes over it: a stub has no ancestors.
const STUB: &str = "# matriarch stub";

impl Instance {
    /// The ancestry of `timeline`, from its file in `pg_wal`. The first timeline has none.
    ///
    /// # Errors
    /// The file is missing, damaged, or a stub.
    pub fn history(&self, timeline: TimelineId) -> Result<TimelineHistory, PostgresError> {
        if timeline.0 <= 1 {
            return Ok(TimelineHistory::root(timeline));
        }
        let path = self.pg_wal().join(timeline.history_file());
        let text = fs::read_to_string(&path).map_err(PostgresError::file("reading", &path))?;
        if is_stub(&text) {
            return Err(PostgresError::History { path, problem: "it is a stub".to_owned() });
        }
        TimelineHistory::parse(timeline, &text)
            .map_err(|error| PostgresError::History { path, problem: error.to_string() })
    }

    /// Gives every timeline below `below` a history file: those that `own` descends from their true one, the
    /// others a stub. A file that is there stays. Last step before the promotion of a standby on `own`, which
    /// thereby takes timeline `below`.
    ///
    /// They stay while it is primary, for a standby asks its primary for the history files of all numbers between
    /// its timeline and the primary's before it streams anything, and never gives up asking. A number can be
    /// without a file because its promotion never came about, or because this member was cloned later.
    ///
    /// # Errors
    /// The history of `own` can't be read, or a file can't be written.
    pub fn place_stubs(&self, own: TimelineId, below: TimelineId) -> Result<(), PostgresError> {
        let history = self.history(own)?;
        for timeline in (2..below.0).map(TimelineId).filter(|t| *t != own) {
            let text = true_history(&history, timeline).unwrap_or_else(|| format!("{STUB}\n"));
            files::ensure(&self.pg_wal().join(timeline.history_file()), &text)?;
        }
        Ok(())
    }

    /// A history file of that number lies in `pg_wal`, be it a stub.
    ///
    /// # Errors
    /// It can't be looked for.
    pub fn has_history_file(&self, timeline: TimelineId) -> Result<bool, PostgresError> {
        let path = self.pg_wal().join(timeline.history_file());
        path.try_exists().map_err(PostgresError::file("looking for", &path))
    }

    /// Removes every stub, and nothing but stubs.
    ///
    /// # Errors
    /// A file can't be read or removed.
    pub fn remove_stubs(&self) -> Result<(), PostgresError> {
        for (timeline, text) in self.history_files()? {
            if is_stub(&text) {
                files::remove(&self.pg_wal().join(timeline.history_file()))?;
            }
        }
        Ok(())
    }

    /// Recovery looks for its newest timeline number by number, and stops at the first that has no history file. A standby that went
    /// over such a gap and ended before its next restartpoint would not come to WAL that it has: it would tell an end that lies
    /// before what it has confirmed, and read on from there into WAL that the cluster has given up. So each number below that of
    /// its newest WAL gets a file.
    ///
    /// # Errors
    /// `pg_control` or a history can't be read, or a file can't be written.
    pub(super) fn bridge_gaps(&self) -> Result<(), PostgresError> {
        let from = self.control_data()?.timeline;
        let (dir, mut with_wal) = (self.pg_wal(), Vec::new());
        for entry in fs::read_dir(&dir).map_err(PostgresError::file("reading", &dir))? {
            let name = entry.map_err(PostgresError::file("reading", &dir))?.file_name();
            let segment = name.to_str().filter(|name| !name.ends_with(".history"));
            with_wal.extend(segment.and_then(wal_file_timeline));
        }
        let newest = self.descendants(from)?.into_iter().map(|h| h.timeline).rfind(|t| with_wal.contains(t));
        newest.map_or(Ok(()), |own| self.place_stubs(own, own))
    }

    /// Removes the segments and history files of every timeline that is not `own` or an ancestor of it. pg_rewind
    /// leaves those it read on the way: names of a timeline that is given up, which somebody may be granted anew.
    ///
    /// # Errors
    /// The history of `own` can't be read, or a file can't be removed.
    pub(super) fn remove_foreign_wal(&self, own: TimelineId) -> Result<(), PostgresError> {
        let (dir, history) = (self.pg_wal(), self.history(own)?);
        for entry in fs::read_dir(&dir).map_err(PostgresError::file("reading", &dir))? {
            let entry = entry.map_err(PostgresError::file("reading", &dir))?;
            let timeline = entry.file_name().to_str().and_then(wal_file_timeline);
            if timeline.is_some_and(|t| !history.contains(t)) {
                files::remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// The histories of all timelines above `timeline` that descend from it, oldest first.
    pub(super) fn descendants(&self, timeline: TimelineId) -> Result<Vec<TimelineHistory>, PostgresError> {
        let parse = |(id, text): (TimelineId, String)| TimelineHistory::parse(id, &text).ok();
        let mut found: Vec<_> = self.history_files()?.into_iter().filter_map(parse).collect();
        found.retain(|history| history.timeline > timeline && history.contains(timeline));
        found.sort_by_key(|history| history.timeline);
        Ok(found)
    }

    fn history_files(&self) -> Result<Vec<(TimelineId, String)>, PostgresError> {
        let dir = self.pg_wal();
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(PostgresError::File { doing: "reading", path: dir, source }),
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(PostgresError::file("reading", &dir))?.path();
            if let Some(timeline) = history_timeline(&path) {
                let text = fs::read_to_string(&path).map_err(PostgresError::file("reading", &path))?;
                found.push((timeline, text));
            }
        }
        Ok(found)
    }

    pub(super) fn pg_wal(&self) -> PathBuf {
        self.data_dir().join("pg_wal")
    }
}

/// The text of the history file of an ancestor, `None` when `timeline` is none.
fn true_history(history: &TimelineHistory, timeline: TimelineId) -> Option<String> {
    let until = history.switches.iter().position(|s| s.timeline == timeline)?;
    let lines = history.switches.iter().take(until);
    Some(lines.map(|s| format!("{}\t{}\tcopied by matriarch\n", s.timeline, s.end)).collect())
}

fn is_stub(text: &str) -> bool {
    text.trim_end() == STUB
}

/// The timeline of a segment, of one cut off (`.partial`), or of a history file.
fn wal_file_timeline(name: &str) -> Option<TimelineId> {
    let (stem, suffix) = name.split_once('.').map_or((name, None), |(stem, suffix)| (stem, Some(suffix)));
    let is_wal = match suffix {
        None | Some("partial") => stem.len() == 24,
        Some("history") => stem.len() == 8,
        Some(_) => false,
    };
    let digits = stem.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    (is_wal && digits).then(|| u32::from_str_radix(&stem[..8], 16).ok().map(TimelineId))?
}

fn history_timeline(path: &Path) -> Option<TimelineId> {
    let hex = path.file_name()?.to_str()?.strip_suffix(".history")?;
    (hex.len() == 8).then(|| u32::from_str_radix(hex, 16).ok().map(TimelineId))?
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn wal_files_are_told_from_others_by_their_names() {
        assert_eq!(wal_file_timeline("0000001F000000000000000A"), Some(TimelineId(31)));
        assert_eq!(wal_file_timeline("0000001F000000000000000A.partial"), Some(TimelineId(31)));
        assert_eq!(wal_file_timeline("0000001F.history"), Some(TimelineId(31)));
        for other in ["archive_status", "0000001F", "0000001F000000000000000A.00000028.backup", "xlogtemp.123"] {
            assert_eq!(wal_file_timeline(other), None, "{other}");
        }
    }

    #[test]
    fn an_ancestors_history_is_the_beginning_of_its_descendants() {
        let text = "1\t0/3000000\tno recovery target specified\n2\t0/5000148\tx\n4\t0/6000000\tx\n";
        let own = TimelineHistory::parse(TimelineId(5), text).unwrap();
        let four = true_history(&own, TimelineId(4)).unwrap();
        assert_eq!(four, "1\t0/3000000\tcopied by matriarch\n2\t0/5000148\tcopied by matriarch\n");
        let parsed = TimelineHistory::parse(TimelineId(4), &four).unwrap();
        assert_eq!(parsed.switches, own.switches[..2]);
        assert_eq!(true_history(&own, TimelineId(3)), None);
        assert_eq!(true_history(&own, TimelineId(5)), None);
    }
}
