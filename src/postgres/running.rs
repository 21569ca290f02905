//! A PostgreSQL that is taken over while it runs: whether it can be, which [`judge`] says, and what it is told.
//!
//! It keeps its own configuration until it is started again. What can't be done without is added by a reload: lines of
//! `pg_hba.conf` for the members, and that it doesn't restart by itself after a crash.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::unistd::{AccessFlags, access};

use super::{
    adopt::Adoption,
    conf,
    content::InitdbError,
    error::PostgresError,
    files,
    instance::Instance,
    session::{Session, SqlError},
};
use crate::config::ContentSource;

/// For statements that a healthy server answers at once.
const SHORT: Duration = Duration::from_secs(5);
/// Between two looks whether a reload has come to effect.
const POLL: Duration = Duration::from_millis(20);
/// Beside one connection for each standby: a copy takes two.
const SENDERS_FOR_A_COPY: u64 = 2;
/// A copy has a slot of its own.
const SLOTS_FOR_A_COPY: u64 = 1;

/// What a running server says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunningFacts {
    /// `pg_settings`: value and source, of those that are looked at.
    pub settings: BTreeMap<String, (String, String)>,
    /// It is a standby.
    pub in_recovery: bool,
    /// The role of `postgresql.superuser` is one.
    pub superuser: bool,
    /// Replication slots that are there.
    pub slots: u64,
    /// Connections that stream from it.
    pub senders: u64,
    /// Lines of its `pg_hba.conf` that it can't read: then it reads none of what is added.
    pub bad_hba: u64,
    /// Why its `pg_hba.conf` can't be replaced.
    pub fixed_hba: Option<String>,
    /// The user whose process it is.
    pub uid: u32,
}

/// What Matriarch wants of it.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// How many members the cluster has.
    pub members: u64,
    /// Where the others look for this one.
    pub host: &'a str,
    /// `postgresql.port`.
    pub port: u16,
    /// `postgresql.socket_dir`.
    pub socket_dir: &'a Path,
    /// `postgresql.superuser`.
    pub superuser: &'a str,
    /// `server_version_num` of `bin_dir`.
    pub version: u32,
    /// This agent's.
    pub uid: u32,
}

/// Adds what speaks against taking it over while it runs, and what that brings. Each refusal names its setting.
pub fn judge(facts: &RunningFacts, wanted: &Wanted<'_>, adoption: &mut Adoption) {
    let refused = &mut adoption.refused;
    needs_restart(facts, wanted, refused);
    if facts.in_recovery {
        refused.push("it is a standby: take its primary over, or promote it first".to_owned());
    }
    if !facts.superuser {
        refused.push(format!("postgresql.superuser: {} is no superuser of it", wanted.superuser));
    }
    if facts.uid != wanted.uid {
        let (theirs, ours) = (facts.uid, wanted.uid);
        refused.push(format!("it runs as user {theirs}, the agent as {ours}: the agent could not end it"));
    }
    if facts.bad_hba > 0 {
        let lines = facts.bad_hba;
        refused.push(format!(
            "pg_hba.conf has {lines} lines that PostgreSQL can't read (pg_hba_file_rules): correct them"
        ));
    }
    refused.extend(facts.fixed_hba.iter().map(|why| format!("hba_file: lines for the members can't be added: {why}")));
    let of = |name: &str| facts.settings.get(name).map_or("", |(value, _)| value.as_str());
    if of("allow_alter_system") == "off" {
        refused
            .push("allow_alter_system = off: restart_after_crash could not be set; set it to on and reload".to_owned());
    }
    if of("full_page_writes") == "off" {
        refused.push("full_page_writes = off: set it to on and reload".to_owned());
    }
    let names = of("synchronous_standby_names");
    if !names.is_empty() {
        adoption.warnings.push(format!(
            "synchronous_standby_names = '{names}' stays in force until it is started again; no standby of the cluster has such a name"
        ));
    }
    adoption.warnings.push(
        "replication_mode other than async, the budget of slots, archiving and [postgresql.parameters] count from its next start: \
         `matriarch restart`, a switchover or a failover"
            .to_owned(),
    );
    adoption.changes.push(
        "it goes on running: lines for the members are put before those of its pg_hba.conf, restart_after_crash is set to off \
         (ALTER SYSTEM), and with its first lease standby.signal is put into its directory"
            .to_owned(),
    );
}

/// What only another start would change.
fn needs_restart(facts: &RunningFacts, wanted: &Wanted<'_>, refused: &mut Vec<String>) {
    let found = |name: &str| facts.settings.get(name).map_or("", |(value, _)| value.as_str());
    let mut wants = |name: &str, wish: String| {
        refused.push(format!("{name} = {}: {wish}; that needs a restart", found(name)));
    };
    if !matches!(found("wal_level"), "replica" | "logical") {
        wants("wal_level", "it has to be replica or logical".to_owned());
    }
    let others = wanted.members.saturating_sub(1);
    let least = others + SENDERS_FOR_A_COPY + facts.senders;
    if found("max_wal_senders").parse::<u64>().is_ok_and(|most| most < least) {
        wants(
            "max_wal_senders",
            format!("{least} are needed, for {others} standbys, a copy and those that are connected"),
        );
    }
    let least = others + SLOTS_FOR_A_COPY + facts.slots;
    if found("max_replication_slots").parse::<u64>().is_ok_and(|most| most < least) {
        wants(
            "max_replication_slots",
            format!("{least} are needed, for {others} standbys, a copy and those that are there"),
        );
    }
    if found("data_checksums") != "on" && found("wal_log_hints") != "on" {
        wants("wal_log_hints", "without it and without checksums it could not be rewound after a failover".to_owned());
    }
    if !listens(found("listen_addresses"), wanted.host) {
        wants("listen_addresses", format!("the other members look for it at {}", wanted.host));
    }
    if found("port") != wanted.port.to_string() {
        wants("port", format!("postgresql.port is {}", wanted.port));
    }
    let socket_dir = wanted.socket_dir.to_string_lossy();
    if !found("unix_socket_directories").split(',').any(|dir| dir.trim().trim_matches('"') == socket_dir) {
        wants("unix_socket_directories", format!("postgresql.socket_dir is {socket_dir}"));
    }
    if facts.settings.get("restart_after_crash").is_some_and(|(value, by)| value == "on" && by == "command line") {
        wants("restart_after_crash", "it is given on the command line and can't be set to off".to_owned());
    }
    if found("server_version_num").parse::<u32>().is_ok_and(|ours| ours / 10_000 != wanted.version / 10_000) {
        wants("server_version", format!("postgresql.bin_dir is of {}", wanted.version / 10_000));
    }
}

/// Whether a server that listens there is to be reached at `host`. A name is left to who resolves it.
fn listens(addresses: &str, host: &str) -> bool {
    let local = |address: &str| matches!(address, "localhost" | "127.0.0.1" | "::1");
    let reached = |address: &str| match address {
        "*" | "0.0.0.0" | "::" => true,
        address if local(address) => local(host) || host.starts_with("127."),
        address => address == host || host.parse::<std::net::IpAddr>().is_err(),
    };
    addresses.split(',').map(str::trim).filter(|address| !address.is_empty()).any(reached)
}

/// Begins the lines that are added to a `pg_hba.conf`.
const ADDED: &str = "# Added by matriarch when it took this PostgreSQL over; gone with its next start under matriarch.";
const ADDED_END: &str = "# End of what matriarch added.";

/// `pg_hba.conf` with the lines for the members before its own; `None`: they are there.
fn with_members(text: &str, role: &str, addresses: &BTreeSet<String>) -> Option<String> {
    let lines = addresses.iter().flat_map(|address| {
        ["replication", "postgres"].map(|database| format!("host {database} {role} {address} scram-sha-256\n"))
    });
    let block = format!("{ADDED}\n{}{ADDED_END}\n", lines.collect::<String>());
    let rest = match text.strip_prefix(ADDED).and_then(|rest| rest.split_once(&format!("{ADDED_END}\n"))) {
        Some((_, rest)) => rest,
        None => text,
    };
    let new = format!("{block}{rest}");
    (new != text).then_some(new)
}

impl Instance {
    /// The configuration says that what is adopted is not to be restarted.
    pub fn takes_over_what_runs(&self) -> bool {
        let content = &self.config().bootstrap;
        self.founds() && content.source == ContentSource::Adopt && !content.restart
    }

    /// What is to be adopted runs, and is to go on running.
    pub fn is_to_go_on_running(&self) -> bool {
        self.takes_over_what_runs() && self.is_to_be_adopted() && self.running_pid().is_some()
    }

    /// Asks the running server, on a thread of its own, for whoever asks may have no runtime or be one's only thread.
    pub(super) fn running_facts(&self) -> Result<RunningFacts, String> {
        let instance = self.clone();
        let ask = move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
            runtime
                .block_on(async {
                    let session = instance.connect().await?;
                    instance.ask_running(&session).await
                })
                .map_err(|error: SqlError| with_cause(&error))
        };
        let asked = thread::Builder::new().name("adoption".to_owned()).spawn(ask).map_err(|error| error.to_string())?;
        asked.join().unwrap_or_else(|_| Err("the question broke off".to_owned()))
    }

    /// Judges a server that runs as process `pid`.
    pub(super) fn judge_running(&self, pid: i32, adoption: &mut Adoption) -> Result<(), PostgresError> {
        let cfg = self.config();
        let mut facts = match self.running_facts() {
            Ok(facts) => facts,
            Err(why) => {
                adoption.refused.push(format!(
                    "it can't be asked as {} at port {} of {}: {why}",
                    cfg.superuser,
                    cfg.port,
                    cfg.socket_dir.display()
                ));
                return Ok(());
            }
        };
        facts.uid = uid_of(pid);
        let me = self.members().iter().find(|member| member.id == *self.me());
        let wanted = Wanted {
            members: self.members().len() as u64,
            host: me.map_or("", |member| member.host.as_str()),
            port: cfg.port,
            socket_dir: &cfg.socket_dir,
            superuser: &cfg.superuser,
            version: self.version()?,
            uid: nix::unistd::geteuid().as_raw(),
        };
        judge(&facts, &wanted, adoption);
        if self.needs_cgroup() {
            let why = "agent.cgroup = \"required\": it stays in the cgroup of whoever has started it; set it to \"auto\" until it was restarted";
            adoption.refused.push(why.to_owned());
        }
        Ok(())
    }

    async fn ask_running(&self, session: &Session) -> Result<RunningFacts, SqlError> {
        let doing = "asking what is to be taken over";
        let settings = session.query(doing, SETTINGS, SHORT).await?;
        let text = |row: &tokio_postgres::SimpleQueryRow, column: usize| row.get(column).unwrap_or_default().to_owned();
        let settings = settings.iter().map(|row| (text(row, 0), (text(row, 1), text(row, 2)))).collect();
        let rows = session.query(doing, FACTS, SHORT).await?;
        let row = rows.first().ok_or_else(|| SqlError::Unexpected { doing, problem: "no row".to_owned() })?;
        let number = |column| text(row, column).parse().unwrap_or_default();
        let hba = PathBuf::from(text(row, 5));
        Ok(RunningFacts {
            settings,
            in_recovery: text(row, 0) == "t",
            superuser: text(row, 1) == "t",
            slots: number(2),
            senders: number(3),
            bad_hba: number(4),
            fixed_hba: unwritable(&hba),
            uid: 0,
        })
    }

    /// Makes the two roles and lets the members in. It may be done again at any time, and changes nothing then.
    pub(super) async fn prepare_running(&self) -> Result<(), InitdbError> {
        let of = |what: &str| {
            let what = what.to_owned();
            move |source| InitdbError::Inhabitant { what, source }
        };
        let session = self.connect().await.map_err(of("a connection to what is taken over"))?;
        // No statement with a verifier in it is written anywhere.
        let quiet = "SET log_statement = none; SET log_min_error_statement = panic; SET log_min_duration_statement = -1; \
                     SET log_min_duration_sample = -1; SET log_transaction_sample_rate = 0; \
                     SET pg_stat_statements.track_utility = off; SET standard_conforming_strings = on";
        session.query("keeping it out of the log", quiet, SHORT).await.map_err(of("the roles of [postgresql]"))?;
        for statement in self.own_roles_sql()?.lines() {
            session.query("making a role", statement, SHORT).await.map_err(of("the roles of [postgresql]"))?;
        }
        self.let_members_in(&session).await.map_err(of("lines of pg_hba.conf"))
    }

    async fn let_members_in(&self, session: &Session) -> Result<(), SqlError> {
        let doing = "letting the members in";
        let odd = |problem: String| SqlError::Unexpected { doing, problem };
        let rows = session.query(doing, "SELECT current_setting('hba_file')", SHORT).await?;
        let path = PathBuf::from(rows.first().and_then(|row| row.get(0)).unwrap_or_default());
        let old = fs::read_to_string(&path).map_err(|error| odd(format!("{}: {error}", path.display())))?;
        let (role, addresses) = self.hba_of_members();
        let Some(new) = with_members(&old, &role, &addresses) else { return session.reload().await };
        let kept = files::beside(&path, ".before-matriarch");
        let write = |path: &Path, text: &str| files::replace(path, text).map_err(|error| odd(with_cause(&error)));
        if !kept.exists() {
            write(&kept, &old)?;
        }
        write(&path, &new)?;
        let bad = "SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL";
        let rows = session.query(doing, bad, SHORT).await?;
        if rows.first().and_then(|row| row.get(0)) != Some("0") {
            write(&path, &old)?;
            return Err(odd(format!("PostgreSQL could not read {} with them", path.display())));
        }
        session.reload().await
    }

    /// From now on it is Matriarch's, whatever becomes of its configuration.
    ///
    /// # Errors
    /// The mark can't be written.
    pub fn mark_adopted(&self, adopted: bool) -> Result<(), PostgresError> {
        if adopted { files::ensure(self.adopted_mark(), "") } else { files::remove(self.adopted_mark()).map(drop) }
    }

    /// It is Matriarch's, and still has the configuration that it came with.
    pub fn is_taken_over(&self) -> bool {
        self.adopted_mark().exists() && !self.is_configured_by_us() && self.data_dir().join("PG_VERSION").exists()
    }

    /// After a crash it is started again by nobody but Matriarch: not by itself, as a standby, where the lease is another's.
    ///
    /// # Errors
    /// It can't be told.
    pub async fn keep_down_after_crash(&self, session: &Session) -> Result<(), InitdbError> {
        let what = || "restart_after_crash = off".to_owned();
        let of = |source| InitdbError::Inhabitant { what: what(), source };
        let doing = "setting restart_after_crash";
        session.query(doing, "ALTER SYSTEM SET restart_after_crash = off", SHORT).await.map_err(of)?;
        session.reload().await.map_err(of)?;
        let until = tokio::time::Instant::now() + SHORT;
        loop {
            let rows = session.query(doing, "SHOW restart_after_crash", SHORT).await.map_err(of)?;
            if rows.first().and_then(|row| row.get(0)) == Some("off") {
                return Ok(());
            }
            if tokio::time::Instant::now() >= until {
                return Err(of(SqlError::Timeout { doing, after: SHORT }));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Whoever starts it by hand from now on gets a standby.
    ///
    /// # Errors
    /// The mark or the signal file can't be written.
    pub fn bind_running(&self) -> Result<(), PostgresError> {
        self.mark_adopted(true)?;
        self.set_standby_signal(true)
    }

    /// What came with a configuration of its own has ended: from now on it has Matriarch's, as a standby that follows nobody.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn end_adoption(&self) -> Result<(), PostgresError> {
        if !self.is_taken_over() || self.running_pid().is_some() {
            return Ok(());
        }
        self.keep_foreign_configuration()?;
        self.write_config(&super::initdb::waiting())?;
        self.set_standby_signal(true)
    }

    fn hba_of_members(&self) -> (String, BTreeSet<String>) {
        let addresses = self.members().iter().map(|member| conf::hba_address(&member.host)).collect();
        (conf::hba_quote(&self.config().replication_user), addresses)
    }
}

/// What is looked at, with where it was set.
const SETTINGS: &str = "SELECT name, setting, source FROM pg_settings WHERE name IN ('wal_level', 'max_wal_senders', \
    'max_replication_slots', 'data_checksums', 'wal_log_hints', 'listen_addresses', 'port', 'unix_socket_directories', \
    'restart_after_crash', 'server_version_num', 'allow_alter_system', 'full_page_writes', 'synchronous_standby_names')";

const FACTS: &str = "SELECT pg_is_in_recovery(), (SELECT rolsuper FROM pg_roles WHERE rolname = current_user), \
    (SELECT count(*) FROM pg_replication_slots), (SELECT count(*) FROM pg_stat_replication), \
    (SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL), current_setting('hba_file')";

/// It is replaced by a rename, so its directory counts.
fn unwritable(file: &Path) -> Option<String> {
    let dir = file.parent().unwrap_or(file);
    let asked = [(file, AccessFlags::R_OK), (dir, AccessFlags::W_OK)];
    asked.into_iter().find_map(|(path, how)| {
        let error = access(path, how).err()?;
        Some(format!("{}: {error}", path.display()))
    })
}

fn uid_of(pid: i32) -> u32 {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(format!("/proc/{pid}")).map_or(u32::MAX, |found| found.uid())
}

fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn wanted() -> Wanted<'static> {
        Wanted {
            members: 3,
            host: "10.0.0.1",
            port: 5432,
            socket_dir: Path::new("/run/postgresql"),
            superuser: "postgres",
            version: 150_018,
            uid: 26,
        }
    }

    fn fits() -> RunningFacts {
        let settings = [
            ("wal_level", "replica"),
            ("max_wal_senders", "10"),
            ("max_replication_slots", "10"),
            ("data_checksums", "off"),
            ("wal_log_hints", "on"),
            ("listen_addresses", "*"),
            ("port", "5432"),
            ("unix_socket_directories", "/tmp, /run/postgresql"),
            ("restart_after_crash", "on"),
            ("server_version_num", "150010"),
            ("full_page_writes", "on"),
            ("synchronous_standby_names", ""),
        ];
        let of = |(name, value): (&str, &str)| (name.to_owned(), (value.to_owned(), "configuration file".to_owned()));
        RunningFacts {
            settings: settings.into_iter().map(of).collect(),
            superuser: true,
            uid: 26,
            ..RunningFacts::default()
        }
    }

    fn refused(change: impl Fn(&mut RunningFacts)) -> String {
        let mut facts = fits();
        change(&mut facts);
        let mut adoption = Adoption::default();
        judge(&facts, &wanted(), &mut adoption);
        adoption.refused.join("\n")
    }

    #[test]
    fn each_setting_that_needs_a_restart_is_named() {
        assert_eq!(refused(|_| ()), "");
        let set = |name: &'static str, value: &'static str| {
            move |facts: &mut RunningFacts| {
                facts.settings.insert(name.to_owned(), (value.to_owned(), "command line".to_owned()));
            }
        };
        let wrong = [
            ("wal_level", "minimal"),
            ("max_wal_senders", "3"),
            ("max_replication_slots", "2"),
            ("wal_log_hints", "off"),
            ("listen_addresses", "localhost"),
            ("listen_addresses", ""),
            ("listen_addresses", "10.0.0.2"),
            ("port", "5433"),
            ("unix_socket_directories", "/tmp"),
            ("restart_after_crash", "on"),
            ("server_version_num", "140010"),
        ];
        for (name, value) in wrong {
            let told = refused(set(name, value));
            let name = name.trim_end_matches("_num");
            assert!(told.starts_with(&format!("{name} = ")) && told.ends_with("needs a restart"), "{name}: {told}");
            assert_eq!(told.lines().count(), 1, "{told}");
        }
        assert_eq!(refused(set("listen_addresses", "localhost, 10.0.0.1")), "");
        assert_eq!(refused(set("max_wal_senders", "4")), "");
        let more = |facts: &mut RunningFacts| {
            set("max_wal_senders", "4")(facts);
            set("max_replication_slots", "3")(facts);
            (facts.senders, facts.slots) = (1, 1);
        };
        let told = refused(more);
        assert!(told.contains("5 are needed") && told.contains("4 are needed"), "{told}");
    }

    #[test]
    fn what_is_no_setting_is_refused_as_well() {
        assert!(refused(|f| f.in_recovery = true).contains("it is a standby"));
        assert!(refused(|f| f.superuser = false).contains("postgres is no superuser"));
        assert!(refused(|f| f.uid = 0).contains("as user 0, the agent as 26"));
        assert!(refused(|f| f.bad_hba = 2).contains("2 lines"));
        assert!(refused(|f| f.fixed_hba = Some("/etc: EACCES".into())).contains("hba_file"));
        let off = |name: &'static str| {
            refused(move |f| drop(f.settings.insert(name.to_owned(), ("off".to_owned(), "default".to_owned()))))
        };
        assert!(off("allow_alter_system").contains("allow_alter_system = off"));
        assert!(off("full_page_writes").contains("full_page_writes = off"));
    }

    #[test]
    fn lines_for_the_members_come_first_and_once() {
        let addresses = BTreeSet::from(["10.0.0.1/32".to_owned(), "h2".to_owned()]);
        let own = "local all all peer\nhost all all all reject\n";
        let text = with_members(own, "\"repl\"", &addresses).unwrap();
        assert!(text.starts_with(ADDED) && text.ends_with(own), "{text}");
        assert_eq!(text.matches("scram-sha-256").count(), 4);
        assert_eq!(with_members(&text, "\"repl\"", &addresses), None);
        let other = with_members(&text, "\"repl\"", &BTreeSet::from(["h3".to_owned()])).unwrap();
        assert!(other.ends_with(own) && other.matches("scram-sha-256").count() == 2, "{other}");
    }
}
