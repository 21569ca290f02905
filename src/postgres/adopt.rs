//! Takes over the data directory of a PostgreSQL that was there before Matriarch, and has been stopped: it becomes the first
//! data directory of the cluster as it lies. What speaks against that, and what would change, is judged by [`judge`], which
//! `matriarch preflight` asks too.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    command::Progress,
    conf,
    content::{InitdbError, Said},
    controldata::{ControlData, DbState},
    error::PostgresError,
    files::{self, OperationLock},
    initdb::waiting,
    instance::{DataState, Instance},
    managers::managers,
    private::private_dir,
    take_in::judge_standby,
};
use crate::config::ContentSource;

/// What was found out about a data directory and its surroundings.
#[derive(Debug, Clone, Default)]
pub struct AdoptionFacts {
    /// `pg_control`, or why it can't be read.
    pub control: Option<ControlData>,
    /// Why there is no usable data directory.
    pub unusable: Option<String>,
    /// The process that runs in it.
    pub running: Option<i32>,
    /// It may go on running.
    pub goes_on: bool,
    /// Of `standby.signal`, `recovery.signal` and `backup_label` those that are there.
    pub signals: Vec<&'static str>,
    /// Programs that manage a PostgreSQL of this host now, with their process.
    pub managers: Vec<(String, u32)>,
    /// Replication slots, and which of them are logical.
    pub slots: Vec<(String, bool)>,
    /// Its own configuration, as far as it lies in the directory; the last of two that set the same.
    pub settings: BTreeMap<String, String>,
    /// Lines of its `pg_hba.conf` that count.
    pub hba: Vec<String>,
    /// It has tablespaces.
    pub tablespaces: bool,
    /// The history file of its timeline, which is not there.
    pub no_history: Option<PathBuf>,
}

/// What speaks against an adoption, and what it brings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Adoption {
    /// It is refused for each of these.
    pub refused: Vec<String>,
    /// What people should know before.
    pub warnings: Vec<String>,
    /// What is changed.
    pub changes: Vec<String>,
    /// It is not stopped for it.
    pub goes_on: bool,
    /// It is taken in as a standby, after the primary.
    pub standby: bool,
}

/// Judges by what was found. `ours` are the settings and lines of the configuration file of Matriarch.
pub fn judge(facts: &AdoptionFacts, ours: (&BTreeMap<String, String>, &[String]), superuser: &str) -> Adoption {
    let mut adoption = Adoption::default();
    refusals(facts, ours.0, &mut adoption.refused);
    warnings(facts, &mut adoption.warnings);
    changes(facts, ours, superuser, &mut adoption.changes);
    adoption
}

fn refusals(facts: &AdoptionFacts, parameters: &BTreeMap<String, String>, refused: &mut Vec<String>) {
    refused.extend(facts.unusable.clone());
    for (manager, pid) in &facts.managers {
        refused.push(format!(
            "{manager} runs as process {pid} and would start or change PostgreSQL again: stop it for good on every host first"
        ));
    }
    if let Some(pid) = facts.running.filter(|_| !facts.goes_on) {
        refused.push(format!(
            "PostgreSQL runs in it as process {pid}: stop it cleanly (pg_ctl stop -m fast) and keep whatever starts it from \
             doing so; it is started once, under a guard, as soon as the cluster is founded"
        ));
    }
    for file in &facts.signals {
        refused.push(match *file {
            "backup_label" => {
                "it has a backup_label: it is a copy that was not recovered; use bootstrap.method = backup".to_owned()
            }
            file => format!(
                "it has {file}: it is somebody's standby or was not recovered to its end; adopt its primary, or promote it first"
            ),
        });
    }
    let Some(control) = &facts.control else { return };
    refusal_of_slots(facts, parameters, refused);
    match control.state {
        DbState::ShutDown => {}
        // It was stopped by the words above first.
        DbState::InProduction | DbState::ShuttingDown if facts.running.is_some() => {}
        DbState::ShutDownInRecovery | DbState::InArchiveRecovery => {
            refused.push("it was a standby when it ended: adopt its primary, or promote it first".to_owned());
        }
        DbState::StartingUp | DbState::ShuttingDown | DbState::InCrashRecovery | DbState::InProduction => {
            refused
                .push("it did not end cleanly: start it with its own configuration once more, and stop it".to_owned());
        }
    }
    refused.extend(facts.no_history.iter().map(|file| {
        format!(
            "{} is missing, so nobody knows where its timeline comes from: put it back from its archive",
            file.display()
        )
    }));
}

pub(super) fn refusal_of_slots(
    facts: &AdoptionFacts,
    parameters: &BTreeMap<String, String>,
    refused: &mut Vec<String>,
) {
    let logical = facts.slots.iter().filter(|(_, logical)| *logical).map(|(name, _)| name.as_str());
    let logical = Vec::from_iter(logical);
    let decodes = parameters.iter().any(|(key, value)| key.eq_ignore_ascii_case("wal_level") && value == "logical");
    if !logical.is_empty() && !decodes {
        refused.push(format!(
            "it has logical slots ({}), and with wal_level = replica PostgreSQL doesn't start: set wal_level = \"logical\" in \
             [postgresql.parameters], or drop them first",
            logical.join(", ")
        ));
    }
}

fn warnings(facts: &AdoptionFacts, warnings: &mut Vec<String>) {
    let Some(control) = &facts.control else { return };
    if !control.checksums {
        warnings.push(
            "it has no checksums: damage on a disk is not found out. Rewinds work all the same, for wal_log_hints is on from \
             the first start; pg_checksums --enable while it is stopped makes them"
                .to_owned(),
        );
    }
    let physical = Vec::from_iter(facts.slots.iter().filter(|(_, logical)| !logical).map(|(name, _)| name.as_str()));
    if !physical.is_empty() {
        let names = physical.join(", ");
        warnings.push(format!("it has slots of its own ({names}), which stay and keep WAL for whoever had them"));
    }
    if facts.tablespaces {
        warnings.push("it has tablespaces: their places have to be there and empty on every other host".to_owned());
    }
}

fn changes(
    facts: &AdoptionFacts,
    (parameters, hba): (&BTreeMap<String, String>, &[String]),
    superuser: &str,
    changes: &mut Vec<String>,
) {
    if facts.control.is_none() {
        return;
    }
    changes.push(format!(
        "the roles of [postgresql] are made or given the passwords of their files; {superuser} is a superuser"
    ));
    changes_of_files(facts, (parameters, hba), changes);
}

pub(super) fn changes_of_files(
    facts: &AdoptionFacts,
    (parameters, hba): (&BTreeMap<String, String>, &[String]),
    changes: &mut Vec<String>,
) {
    changes.push(
        "postgresql.conf and pg_hba.conf are written by Matriarch from now on; those in the directory are kept beside them as \
         NAME.before-matriarch"
            .to_owned(),
    );
    let says = |key: &str| parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value);
    let differs = |(key, value): &(&String, &String)| !conf::owned_key(key) && says(key) != Some(*value);
    let gone = Vec::from_iter(facts.settings.iter().filter(differs).map(|(key, value)| match says(key) {
        Some(ours) => format!("{key} = {value} (here {ours})"),
        None => format!("{key} = {value}"),
    }));
    if !gone.is_empty() {
        changes.push(format!(
            "settings of its postgresql.conf that [postgresql.parameters] doesn't have so, and that hold no more: {}",
            gone.join(", ")
        ));
    }
    let lines = Vec::from_iter(facts.hba.iter().filter(|line| !hba.contains(line)).map(String::as_str));
    if !lines.is_empty() {
        changes.push(format!("lines of its pg_hba.conf that postgresql.hba doesn't have: {}", lines.join("; ")));
    }
}

impl Instance {
    /// There is data that the cluster is to begin with, and that was not taken over yet. To others there is no data here.
    pub fn is_to_be_adopted(&self) -> bool {
        self.config().bootstrap.source == ContentSource::Adopt
            && !self.is_configured_by_us()
            && !self.adopted_mark().exists()
            && self.data_dir().join("PG_VERSION").exists()
    }

    /// Looks at the data directory that is to be adopted. Changes nothing.
    ///
    /// # Errors
    /// It can't be read.
    pub fn adoption(&self) -> Result<Adoption, PostgresError> {
        let facts = self.adoption_facts()?;
        let cfg = self.config();
        if !self.founds() {
            return Ok(judge_standby(&facts, (&cfg.parameters, &cfg.hba)));
        }
        let mut adoption = judge(&facts, (&cfg.parameters, &cfg.hba), &cfg.superuser);
        let Some(pid) = facts.running else { return Ok(adoption) };
        if facts.goes_on {
            self.judge_running(pid, &mut adoption)?;
            adoption.goes_on = true;
            if !adoption.refused.is_empty() {
                adoption.refused.push(format!(
                    "so it can't be taken over while it runs, as process {pid}: correct that, or stop it cleanly, and it is taken \
                     over with one restart"
                ));
            }
            return Ok(adoption);
        }
        let mut without = Adoption::default();
        self.judge_running(pid, &mut without)?;
        adoption.warnings.push(match without.refused.is_empty() {
            true => "it could go on running: bootstrap.restart = false takes it over without a restart".to_owned(),
            false => format!("it could not go on running (bootstrap.restart = false): {}", without.refused.join("; ")),
        });
        Ok(adoption)
    }

    pub(super) fn adoption_facts(&self) -> Result<AdoptionFacts, PostgresError> {
        let dir = self.data_dir();
        let (control, unusable) = match self.data_state()? {
            DataState::Present(control) => (Some(control), None),
            DataState::Missing | DataState::Empty => {
                (None, Some(format!("there is nothing in {} to adopt", dir.display())))
            }
            DataState::Incomplete(why) | DataState::Foreign(why) => (None, Some(why)),
        };
        let signals = ["standby.signal", "recovery.signal", "backup_label"];
        let mut settings = BTreeMap::new();
        for file in ["postgresql.conf", "postgresql.auto.conf"] {
            settings.extend(settings_of(&fs::read_to_string(dir.join(file)).unwrap_or_default()));
        }
        let hba = fs::read_to_string(dir.join("pg_hba.conf")).unwrap_or_default();
        let history = control
            .as_ref()
            .map(|control| (control.timeline, dir.join("pg_wal").join(control.timeline.history_file())));
        let missing = history.filter(|(timeline, file)| timeline.0 > 1 && !file.exists());
        Ok(AdoptionFacts {
            control,
            unusable,
            running: self.running_pid(),
            goes_on: !self.config().bootstrap.restart,
            signals: signals.into_iter().filter(|file| dir.join(file).exists()).collect(),
            managers: managers(Path::new("/proc")),
            slots: slots(&dir.join("pg_replslot")),
            settings,
            hba: hba.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).map(words).collect(),
            tablespaces: fs::read_dir(dir.join("pg_tblspc")).is_ok_and(|mut entries| entries.next().is_some()),
            no_history: missing.map(|(_, file)| file),
        })
    }

    /// Takes it over where it lies. Until the last step, which writes our configuration, it is as its owner left it but for the
    /// two roles, and can be started with its own configuration; what is cut off is done again from the start.
    pub(super) async fn adopt(&self, _lock: &OperationLock, said: Said<'_>) -> Result<u64, InitdbError> {
        said.progress(Progress::phase("looking at what is adopted"));
        let instance = self.clone();
        let adoption = files::blocking(move || instance.adoption()).await?;
        if !adoption.refused.is_empty() {
            return Err(InitdbError::NotAdopted { why: adoption.refused.join("; ") });
        }
        for told in adoption.warnings.iter().chain(&adoption.changes) {
            tracing::warn!("adoption: {told}");
        }
        said.progress(Progress::phase("roles"));
        if self.is_to_go_on_running() {
            self.keep_foreign_configuration()?;
            self.prepare_running().await?;
            return Ok(self.control_data()?.system_identifier);
        }
        let (dir, private) = (self.data_dir(), self.private_dir());
        private_dir(&private)?;
        // Its own may lie elsewhere, or name what only its old place has.
        files::replace(&private.join("postgresql.conf"), &self.private_conf(dir, &[])?)?;
        self.make_own_roles(dir, Some(&private.join("postgresql.conf"))).await?;
        let _ = fs::remove_dir_all(&private);
        self.keep_foreign_configuration()?;
        // First, for what is ours is gone on with, and what has the signal and isn't would pass for somebody's standby.
        self.write_config(&waiting())?;
        self.set_standby_signal(true)?;
        Ok(self.control_data()?.system_identifier)
    }
}

impl Instance {
    pub(super) fn keep_foreign_configuration(&self) -> Result<(), PostgresError> {
        ["postgresql.conf", "pg_hba.conf"].iter().try_for_each(|name| keep_copy(&self.data_dir().join(name)))
    }
}

/// A copy that an earlier try has made is the true one.
fn keep_copy(file: &Path) -> Result<(), PostgresError> {
    let kept: PathBuf = files::beside(file, ".before-matriarch");
    match fs::read_to_string(file) {
        Ok(_) if kept.exists() => Ok(()),
        Ok(text) => files::replace(&kept, &text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(PostgresError::File { doing: "reading", path: file.to_owned(), source }),
    }
}

fn words(line: &str) -> String {
    Vec::from_iter(line.split_whitespace()).join(" ")
}

/// `key = value` of a `postgresql.conf`, in lower case and without quotes; what it includes is not looked at.
fn settings_of(text: &str) -> BTreeMap<String, String> {
    let setting = |line: &str| {
        let line = line.trim();
        let end = line.find(|c: char| c.is_whitespace() || c == '=')?;
        let (key, rest) = line.split_at(end);
        let value = rest.trim_start().trim_start_matches('=').trim_start();
        let value = match value.strip_prefix('\'') {
            Some(quoted) => quoted.split('\'').next().unwrap_or_default(),
            None => value.split(|c: char| c.is_whitespace() || c == '#').next().unwrap_or_default(),
        };
        conf::is_setting_name(key).then(|| (key.to_ascii_lowercase(), value.to_owned()))
    };
    text.lines().filter_map(setting).collect()
}

/// Slots by their directories. Whether one is logical says its state file: it has a database (`ReplicationSlotOnDisk` of
/// PostgreSQL's slot.c: 16 bytes of header, 64 of name, then the database).
fn slots(dir: &Path) -> Vec<(String, bool)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let slot = |entry: fs::DirEntry| {
        let state = fs::read(entry.path().join("state")).ok()?;
        let database = state.get(80..84)?;
        Some((entry.file_name().to_string_lossy().into_owned(), database != [0; 4]))
    };
    let mut found = Vec::from_iter(entries.filter_map(slot));
    found.sort();
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::domain::{Lsn, TimelineId};

    fn stopped(state: DbState) -> AdoptionFacts {
        let control = ControlData {
            system_identifier: 7,
            state,
            checkpoint: Lsn(1),
            redo: Lsn(1),
            timeline: TimelineId(1),
            min_recovery_end: Lsn(0),
            min_recovery_timeline: TimelineId(0),
            backup_unfinished: false,
            wal_log_hints: false,
            checksums: true,
            wal_segment_bytes: 16 << 20,
            wal_page_bytes: 8192,
            floors: [("max_connections", 100); 5],
        };
        AdoptionFacts { control: Some(control), ..AdoptionFacts::default() }
    }

    fn refused(facts: &AdoptionFacts) -> String {
        judge(facts, (&BTreeMap::new(), &[]), "postgres").refused.join(" | ")
    }

    #[test]
    fn a_primary_that_was_stopped_cleanly_is_adopted_and_nothing_else() {
        assert_eq!(refused(&stopped(DbState::ShutDown)), "");
        for (state, word) in [
            (DbState::InProduction, "did not end cleanly"),
            (DbState::InCrashRecovery, "did not end cleanly"),
            (DbState::ShutDownInRecovery, "it was a standby"),
            (DbState::InArchiveRecovery, "it was a standby"),
        ] {
            assert!(refused(&stopped(state)).contains(word), "{state:?}");
        }
        let with = |change: fn(&mut AdoptionFacts)| {
            let mut facts = stopped(DbState::ShutDown);
            change(&mut facts);
            refused(&facts)
        };
        assert!(with(|f| f.running = Some(9)).contains("runs in it as process 9"));
        assert!(with(|f| f.signals = vec!["standby.signal"]).contains("somebody's standby"));
        assert!(with(|f| f.signals = vec!["backup_label"]).contains("bootstrap.method = backup"));
        assert!(with(|f| f.managers = vec![("patroni".into(), 8)]).contains("patroni runs as process 8"));
        assert!(with(|f| f.slots = vec![("cdc".into(), true)]).contains("logical slots (cdc)"));
        assert!(
            with(|f| f.no_history = Some("/d/pg_wal/00000003.history".into())).contains("00000003.history is missing")
        );
        assert_eq!(with(|f| f.slots = vec![("old".into(), false)]), "");
        assert!(with(|f| (f.control, f.unusable) = (None, Some("of PostgreSQL 14".into()))).contains("14"));
        let mut runs = stopped(DbState::InProduction);
        runs.running = Some(9);
        assert!(!refused(&runs).contains("cleanly:"), "it is asked for once: {}", refused(&runs));
    }

    #[test]
    fn what_changes_and_what_to_mind_is_told() {
        let mut facts = stopped(DbState::ShutDown);
        facts.control.as_mut().unwrap().checksums = false;
        facts.slots = vec![("old".into(), false)];
        facts.settings = settings_of(
            "port = 5433\n# work_mem = 1MB\nwork_mem=8MB # mine\nMax_Connections = '200'\nshared_buffers 64MB\nfoo\n",
        );
        facts.hba = vec!["host all all 10.0.0.0/8 md5".into(), "local all all peer".into()];
        let parameters = BTreeMap::from([("work_mem".into(), "8MB".into()), ("max_connections".into(), "100".into())]);
        let told = judge(&facts, (&parameters, &["local all all peer".into()]), "postgres");
        assert_eq!(told.refused, Vec::<String>::new());
        let (warnings, changes) = (told.warnings.join("\n"), told.changes.join("\n"));
        assert!(warnings.contains("no checksums") && warnings.contains("(old)"), "{warnings}");
        let settings = "hold no more: max_connections = 200 (here 100), shared_buffers = 64MB";
        assert!(changes.contains(settings), "{changes}");
        assert!(changes.ends_with("doesn't have: host all all 10.0.0.0/8 md5"), "{changes}");
    }
}
