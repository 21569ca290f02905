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

    /// Places a stub for every timeline above `own` and below `below`, so that the promotion of a standby on
    /// `own` takes timeline `below`. A history file that is there stays. Last step before a promotion.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn place_stubs(&self, own: TimelineId, below: TimelineId) -> Result<(), PostgresError> {
        for timeline in own.0 + 1..below.0 {
            files::ensure(&self.pg_wal().join(TimelineId(timeline).history_file()), &format!("{STUB}\n"))?;
        }
        Ok(())
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

fn is_stub(text: &str) -> bool {
    text.trim_end() == STUB
}

fn history_timeline(path: &Path) -> Option<TimelineId> {
    let hex = path.file_name()?.to_str()?.strip_suffix(".history")?;
    (hex.len() == 8).then(|| u32::from_str_radix(hex, 16).ok().map(TimelineId))?
}
