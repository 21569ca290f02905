//! The WAL archive: which commands PostgreSQL is given, what they may do at a moment, and how archiving goes.
//!
//! PostgreSQL gets one line for each that calls this program again ([`super::wal_run`]). What it is to run, and whether it may,
//! stands in a file of the runtime directory that comes and goes with the role: so a standby that leaves its primary takes nothing
//! from the archive from that moment on, and a command that hangs is ended, whatever PostgreSQL makes of its configuration.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    conf,
    error::PostgresError,
    files,
    instance::Instance,
    session::{Session, SqlError},
    wal_run::WalCall,
};
use crate::domain::{
    Lsn, Settings, TimelineHistory, TimelineId, TimelineSwitch,
    archive::{STANDBY_ASKS, timeline_of},
};

/// In the runtime directory: what may be run to archive a file …
pub(super) const PUT: &str = "archive.json";
/// … and to get one.
pub(super) const GET: &str = "restore.json";
/// How a file of the archive is called while it is compared with the one here.
pub(super) const CHECK: &str = ".matriarch-check";
/// What the last of them came to.
pub(super) const PUT_NOTE: &str = "archive.note.json";
/// The same of what was got.
pub(super) const GET_NOTE: &str = "restore.note.json";

/// What is set of the archive, with the program that PostgreSQL calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveRules {
    /// The program with the subcommand `wal`.
    pub program: PathBuf,
    /// As set; empty: pgBackRest's, or that of the host's file.
    pub archive_command: String,
    /// The same.
    pub restore_command: String,
    /// So long either may take for a file …
    pub limit: Duration,
    /// … and so long where a standby asks.
    pub standby_limit: Duration,
    /// pgBackRest, where it is used.
    pub pgbackrest: Option<Stanza>,
    /// What a standby may take; `None`: nothing yet.
    pub lineage: Option<TimelineHistory>,
}

impl ArchiveRules {
    /// As operators have set it.
    pub fn of(settings: &Settings, program: PathBuf, lineage: Option<TimelineHistory>) -> Self {
        Self {
            program,
            archive_command: settings.archive_command.clone(),
            restore_command: settings.restore_command.clone(),
            limit: settings.archive_command_limit,
            standby_limit: settings.archive_command_limit.min(STANDBY_ASKS),
            pgbackrest: Stanza::of(settings),
            lineage,
        }
    }
}

/// Where pgBackRest keeps the backups of this cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stanza {
    /// Its name.
    pub name: String,
    /// Its configuration file; empty: its default.
    pub config: String,
}

impl Stanza {
    /// As operators have set it; `None`: it isn't used.
    pub fn of(settings: &Settings) -> Option<Self> {
        let (name, config) = (settings.pgbackrest_stanza.clone(), settings.pgbackrest_config.clone());
        (!name.is_empty()).then_some(Self { name, config })
    }

    /// Options of every command.
    pub(super) fn options(&self) -> Vec<String> {
        let mut options = vec![format!("--stanza={}", self.name)];
        if !self.config.is_empty() {
            options.push(format!("--config={}", self.config));
        }
        options
    }

    /// Those of a command that works in a data directory.
    pub(super) fn options_in(&self, data_dir: &Path) -> Vec<String> {
        [self.options(), vec![format!("--pg1-path={}", data_dir.display())]].concat()
    }

    /// A command for the shell in which PostgreSQL's placeholders stand.
    fn command(&self, data_dir: &Path, what: &str) -> String {
        let words = self.options_in(data_dir).into_iter().map(|word| shell_quote(&word.replace('%', "%%")));
        format!("pgbackrest {} {what}", Vec::from_iter(words).join(" "))
    }
}

/// One word for the shell.
pub(super) fn shell_quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// What may be run, as it stands in the runtime directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Permit {
    pub(super) command: String,
    pub(super) limit_ms: u64,
    /// What would get such a file back, where there is that.
    pub(super) check: Option<String>,
    /// Where segments lie that other members have lent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) lent: Option<PathBuf>,
    /// The timelines that may be taken, each but the last with its end; `None`: all of every one.
    pub(super) lineage: Option<(u32, Vec<(u32, u64)>)>,
}

impl Permit {
    /// `lineage`: what a standby may take; `None`: everything.
    fn new(command: String, rules: &ArchiveRules, lineage: Option<&TimelineHistory>) -> Self {
        let told = |history: &TimelineHistory| {
            (history.timeline.0, history.switches.iter().map(|s| (s.timeline.0, s.end.0)).collect())
        };
        let limit = lineage.map_or(rules.limit, |_| rules.standby_limit);
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        Self { command, limit_ms, check: None, lent: None, lineage: lineage.map(told) }
    }

    pub(super) fn history(&self) -> Option<TimelineHistory> {
        let (timeline, switches) = self.lineage.as_ref()?;
        let switch = |(timeline, end): &(u32, u64)| TimelineSwitch { timeline: TimelineId(*timeline), end: Lsn(*end) };
        let switches = switches.iter().map(switch).collect();
        Some(TimelineHistory { timeline: TimelineId(*timeline), switches, ..TimelineHistory::default() })
    }
}

/// What a command came to last.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WalNote {
    /// Files it worked for since the note was begun.
    pub files: u64,
    /// The last of them.
    pub last: String,
    /// What it said when it failed; empty: the last try worked.
    pub said: String,
}

/// What `pg_stat_archiver` says (manual, 28.2.12).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Archiver {
    /// PostgreSQL runs with `archive_mode`.
    pub on: bool,
    /// Files that were archived, and the last of them.
    pub archived: (u64, String),
    /// Tries that failed, and the file of the last.
    pub failed: (u64, String),
    /// The last of all tries failed.
    pub fails: bool,
}

impl Session {
    /// How archiving goes.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn archiver(&self, deadline: Duration) -> Result<Archiver, SqlError> {
        let sql = "SELECT current_setting('archive_mode') <> 'off', archived_count, coalesce(last_archived_wal, ''), failed_count, \
                   coalesce(last_failed_wal, ''), coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false) \
                   FROM pg_stat_archiver";
        let rows = self.query("asking how archiving goes", sql, deadline).await?;
        let text = |column: usize| rows.first().and_then(|row| row.get(column)).unwrap_or_default().to_owned();
        let number = |column| text(column).parse().unwrap_or_default();
        let (archived, failed) = ((number(1), text(2)), (number(3), text(4)));
        Ok(Archiver { on: text(0) == "t", archived, failed, fails: text(5) == "t" })
    }
}

impl Instance {
    /// From the next change of the configuration on these rules are in it; see [`Instance::refresh_archive`].
    /// True when they are others than before.
    pub fn set_archive(&self, rules: ArchiveRules) -> bool {
        let before = self.archive_lock().replace(rules.clone());
        before != Some(rules)
    }

    /// What PostgreSQL is told of the archive; `None`: nobody has said, and the host's file counts alone.
    pub(super) fn archive_lines(&self) -> Option<conf::Archive> {
        let rules = self.archive_lock().clone()?;
        // What archives by a library does so by itself; what a standby takes is held to the history all the same.
        let library = self.parameter("archive_library").is_some_and(|library| !library.is_empty());
        let line = |verb: &str, placeholders: &str| {
            let word = |path: &Path| shell_quote(&path.to_string_lossy().replace('%', "%%"));
            format!("{} wal {verb} {} {placeholders}", word(&rules.program), word(self.runtime_dir()))
        };
        // pgBackRest makes no backup while archive_command doesn't name it.
        let put = self.put_command(&rules).filter(|_| !library).map(|command| {
            let mark = if command.contains("pgbackrest") { " # pgbackrest" } else { "" };
            line("put", "'%f' '%p'") + mark
        });
        let get =
            self.get_command(&rules).or_else(|| self.lends().then(String::new)).map(|_| line("get", "'%f' '%p' '%r'"));
        Some(conf::Archive { put, get, library })
    }

    /// It is to archive what it writes, as a primary.
    pub fn wants_archiving(&self) -> bool {
        self.archive_lines().is_some_and(|lines| lines.put.is_some())
    }

    /// A standby can take WAL from an archive; what members have lent it is none.
    pub fn has_archive(&self) -> bool {
        self.archive_lock().as_ref().is_some_and(|rules| self.get_command(rules).is_some())
    }

    /// A standby has where to take WAL from: an archive, or what members have lent it.
    pub(super) fn has_restore_command(&self) -> bool {
        self.archive_lines().is_some_and(|lines| lines.get.is_some())
    }

    fn put_command(&self, rules: &ArchiveRules) -> Option<String> {
        let push = || rules.pgbackrest.as_ref().map(|stanza| stanza.command(self.data_dir(), "archive-push '%p'"));
        self.command_of(&rules.archive_command, push, "archive_command")
    }

    fn get_command(&self, rules: &ArchiveRules) -> Option<String> {
        let get = || rules.pgbackrest.as_ref().map(|stanza| stanza.command(self.data_dir(), "archive-get '%f' '%p'"));
        self.command_of(&rules.restore_command, get, "restore_command")
    }

    /// That of all hosts, or pgBackRest's, or that of the host's file.
    fn command_of(&self, set: &str, pgbackrest: impl FnOnce() -> Option<String>, key: &str) -> Option<String> {
        let set = Some(set.to_owned()).filter(|command| !command.is_empty());
        let own = || self.parameter(key).filter(|command| !command.is_empty());
        set.or_else(pgbackrest).or_else(own)
    }

    /// Lets a primary archive. It does while the live configuration is there, which comes with the grant and goes with a fence.
    pub(super) fn write_put_permit(&self) -> Result<(), PostgresError> {
        let rules = self.archive_lock().clone();
        let command = rules.as_ref().and_then(|rules| Some((rules, self.put_command(rules)?)));
        let permit = command.map(|(rules, command)| {
            let check = self.get_command(rules);
            Permit { check, ..Permit::new(command, rules, None) }
        });
        self.write_permit(PUT, permit.as_ref())
    }

    /// Lets a standby take what is of the cluster's history, or, with `all`, whoever is about to rewind this directory everything.
    pub(super) fn write_get_permit(&self, all: bool) -> Result<(), PostgresError> {
        let rules = self.archive_lock().clone();
        let may = rules.as_ref().filter(|rules| all || rules.lineage.is_some());
        let lent = self.lent_to_standby();
        let command = |rules| self.get_command(rules).or_else(|| lent.is_some().then(String::new));
        let command = may.and_then(|rules| Some((rules, command(rules)?)));
        let permit = command.map(|(rules, command)| {
            let permit = Permit::new(command, rules, rules.lineage.as_ref().filter(|_| !all));
            Permit { lent: lent.clone(), ..permit }
        });
        self.write_permit(GET, permit.as_ref())
    }

    /// For a rewind: whatever the directory's role was, its `restore_command` is there, and gets everything.
    pub(super) fn let_restore(&self) -> Result<(), PostgresError> {
        let _alone = self.config_alone();
        let main = self.data_dir().join("postgresql.conf");
        let text = fs::read_to_string(&main).map_err(PostgresError::file("reading", &main))?;
        if let Some(mut lines) = self.archive_lines() {
            self.write_get_permit(true)?;
            // pg_rewind doesn't know which file a restart needs.
            lines.get = lines.get.map(|line| line.replace(" '%r'", ""));
            files::replace(&main, &conf::other_archive(&text, &lines, true))?;
        }
        Ok(())
    }

    /// Nothing is taken from the archive from now on; a command that is at it is ended.
    ///
    /// # Errors
    /// The file can't be removed.
    pub(super) fn forbid_restores(&self) -> Result<(), PostgresError> {
        self.write_permit(GET, None)
    }

    fn write_permit(&self, name: &str, permit: Option<&Permit>) -> Result<(), PostgresError> {
        let path = self.runtime_dir().join(name);
        match permit.map(serde_json::to_string) {
            Some(Ok(text)) => files::replace(&path, &text),
            // A text, a number and a list can always be written.
            Some(Err(_)) | None => files::remove(&path).map(|_| ()),
        }
    }

    /// Gives the running server what was set of the archive; it takes effect with a reload, but for whether it archives at all.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn refresh_archive(&self) -> Result<(), PostgresError> {
        let _alone = self.config_alone();
        let main = self.data_dir().join("postgresql.conf");
        let Ok(text) = fs::read_to_string(&main) else { return Ok(()) };
        let Some(lines) = self.archive_lines().filter(|_| text.starts_with(conf::WRITTEN_BY_US)) else { return Ok(()) };
        let standby = text.contains("\nrecovery_min_apply_delay = ");
        let follows = conf::follows_somebody(&text) || (standby && self.settings_of(self.me()).nostream);
        if follows {
            self.write_get_permit(false)?
        } else {
            self.forbid_restores()?
        }
        self.write_put_permit()?;
        files::replace(&main, &conf::other_archive(&text, &lines, follows))
    }

    /// Removes what a command was to get from the archive to compare with, when it was killed with whoever called it.
    ///
    /// # Errors
    /// The directory can't be read, or a file not be removed.
    pub fn remove_checks(&self) -> Result<(), PostgresError> {
        let dir = self.pg_wal();
        if !dir.exists() {
            return Ok(());
        }
        for entry in fs::read_dir(&dir).map_err(PostgresError::file("reading", &dir))? {
            let path = entry.map_err(PostgresError::file("reading", &dir))?.path();
            if path.to_str().is_some_and(|path| path.ends_with(CHECK)) {
                files::remove(&path)?;
            }
        }
        Ok(())
    }

    /// Files that wait to be archived, and their bytes.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn archive_backlog(&self) -> std::io::Result<(u64, u64)> {
        let wal = self.pg_wal();
        let (mut waiting, mut bytes) = (0, 0);
        for entry in fs::read_dir(wal.join("archive_status"))? {
            let name = entry?.file_name();
            let Some(file) = name.to_str().and_then(|name| name.strip_suffix(".ready")) else { continue };
            waiting += 1;
            bytes += fs::metadata(wal.join(file)).map_or(0, |file| file.len());
        }
        Ok((waiting, bytes))
    }

    /// A standby counts what it has streamed as archived; if its primary was lost before it had archived that, nobody has. Called
    /// after a promotion: what is missing in the archive is marked to be archived, from the newest file back to the first that is
    /// there. Returns how many files that are.
    ///
    /// # Errors
    /// A file can't be read or renamed.
    pub async fn mend_archive(&self) -> Result<u64, PostgresError> {
        let rules = self.archive_lock().clone();
        let commands = rules.as_ref().and_then(|rules| self.put_command(rules).and_then(|_| self.get_command(rules)));
        let Some((rules, get)) = rules.as_ref().zip(commands) else { return Ok(0) };
        let status = self.pg_wal().join("archive_status");
        let (mut segments, histories) = self.counted_as_archived(&status)?;
        segments.sort_unstable_by(|a, b| b.cmp(a));
        let mut missing = Vec::new();
        for (file, is_segment) in histories.iter().map(|f| (f, false)).chain(segments.iter().map(|f| (f, true))) {
            let (runtime_dir, path) = (self.runtime_dir().to_owned(), self.pg_wal().join(file));
            let call = WalCall { runtime_dir, file: file.clone(), path, oldest: String::new() };
            let asked = std::time::Instant::now();
            match call.in_archive(&get, rules.limit).await {
                // An archive that doesn't answer has not said that it lacks anything.
                None if asked.elapsed() >= rules.limit => return Ok(0),
                None => missing.push(file),
                Some(_) if is_segment => break,
                Some(_) => {}
            }
        }
        // The oldest first, as PostgreSQL archives them.
        missing.sort_unstable();
        for file in &missing {
            let (done, ready) = (status.join(format!("{file}.done")), status.join(format!("{file}.ready")));
            fs::rename(&done, &ready).map_err(PostgresError::file("marking", &done))?;
        }
        Ok(missing.len() as u64)
    }

    /// Segments and histories that are there and marked as archived.
    fn counted_as_archived(&self, status: &Path) -> Result<(Vec<String>, Vec<String>), PostgresError> {
        let (mut segments, mut histories) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(status).map_err(PostgresError::file("reading", status))? {
            let name = entry.map_err(PostgresError::file("reading", status))?.file_name();
            let Some(file) = name.to_str().and_then(|name| name.strip_suffix(".done")) else { continue };
            // A stub of ours is no history, and is marked by nobody.
            if timeline_of(file).is_none() || !self.pg_wal().join(file).exists() {
                continue;
            }
            match file.len() {
                24 => segments.push(file.to_owned()),
                _ if file.ends_with(".history") => histories.push(file.to_owned()),
                _ => {}
            }
        }
        Ok((segments, histories))
    }

    /// What the last archive and restore commands came to.
    pub fn wal_notes(&self) -> (WalNote, WalNote) {
        let read = |name: &str| {
            let text = fs::read_to_string(self.runtime_dir().join(name)).unwrap_or_default();
            serde_json::from_str(&text).unwrap_or_default()
        };
        (read(PUT_NOTE), read(GET_NOTE))
    }

    /// What the host's file, or the settings, say of a setting of PostgreSQL.
    fn parameter(&self, key: &str) -> Option<String> {
        self.parameters(self.side()).remove(key)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_command_of_pgbackrest_is_for_the_shell_and_for_postgresql() {
        let stanza = Stanza { name: "main".into(), config: "/etc/pgb.conf".into() };
        assert_eq!(
            stanza.command(Path::new("/a b/100%"), "archive-push '%p'"),
            "pgbackrest '--stanza=main' '--config=/etc/pgb.conf' '--pg1-path=/a b/100%%' archive-push '%p'"
        );
        assert_eq!(shell_quote("it's"), "'it'\\''s'");
    }

    #[test]
    fn a_permit_is_read_as_it_was_written() {
        let switches = vec![TimelineSwitch { timeline: TimelineId(1), end: Lsn(77) }];
        let lineage = TimelineHistory { timeline: TimelineId(3), switches, ..TimelineHistory::default() };
        let settings = Settings { restore_command: "cp /a/%f %p".into(), ..Settings::default() };
        let rules = ArchiveRules::of(&settings, "/m".into(), Some(lineage.clone()));
        let permit = Permit::new(rules.restore_command.clone(), &rules, Some(&lineage));
        let again: Permit = serde_json::from_str(&serde_json::to_string(&permit).unwrap()).unwrap();
        assert_eq!((again.history(), again.command.as_str()), (Some(lineage), "cp /a/%f %p"));
        let rewind = Permit::new(String::new(), &rules, None);
        assert_eq!(rewind.history(), None, "a rewind takes everything");
        assert_eq!((permit.limit_ms, rewind.limit_ms), (15_000, 300_000), "PostgreSQL asks before it streams");
    }
}
