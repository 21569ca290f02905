//! The table `[bootstrap]`: what the first member makes its data directory from, and what is in it besides.

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    check::path,
    error::Wrong,
    raw::{RawBootstrap, RawDatabase, RawRole},
};
use crate::domain::Lsn;

/// What the first data directory of a cluster is made from. Read once, by the agent of the first member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitialContent {
    /// Where the data comes from.
    pub source: ContentSource,
    /// What is adopted is stopped first, and started by Matriarch; otherwise it goes on running.
    pub restart: bool,
    /// How it is taken to the state that the cluster begins with.
    pub recovery: Recovery,
    /// Further arguments of initdb: encoding and locale.
    pub initdb_options: Vec<String>,
    /// Roles that are made, or changed if they are there, before anybody can connect.
    pub roles: Vec<InitialRole>,
    /// Databases that are made if they aren't there.
    pub databases: Vec<InitialDatabase>,
    /// Run at the end, before anybody else can connect.
    pub after: Option<HookCommand>,
    /// For the copy, the recovery and the command that fills the directory, each.
    pub deadline: Duration,
    /// For the command at the end.
    pub after_deadline: Duration,
}

impl Default for InitialContent {
    /// What a file without the table gives.
    fn default() -> Self {
        Self {
            source: ContentSource::Initdb,
            restart: true,
            recovery: Recovery::default(),
            initdb_options: Vec::new(),
            roles: Vec::new(),
            databases: Vec::new(),
            after: None,
            deadline: Duration::from_secs(DEADLINE_S),
            after_deadline: Duration::from_secs(AFTER_DEADLINE_S),
        }
    }
}

impl InitialContent {
    /// Nothing but what initdb makes, and the roles that Matriarch needs itself.
    pub fn is_plain(&self) -> bool {
        self.source == ContentSource::Initdb
            && self.roles.is_empty()
            && self.databases.is_empty()
            && self.after.is_none()
    }
}

/// Where the first data comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ContentSource {
    /// An empty database.
    #[default]
    Initdb,
    /// A program that fills a directory.
    Command(HookCommand),
    /// A base backup: a directory as pg_basebackup makes it in either format, or a tar file.
    Backup(PathBuf),
    /// What is in the data directory already, of a PostgreSQL that was there before Matriarch.
    Adopt,
}

/// A program of the operator's, with its arguments. In these `{data_dir}` is filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookCommand(pub Vec<String>);

impl HookCommand {
    /// The program and its arguments, with the directory filled in.
    pub fn filled(&self, data_dir: &Path) -> Vec<String> {
        let dir = data_dir.to_string_lossy();
        self.0.iter().map(|argument| argument.replace("{data_dir}", &dir)).collect()
    }
}

/// How a copy is recovered before it becomes the cluster's first primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// PostgreSQL's `restore_command`, for this recovery only.
    pub restore_command: Option<String>,
    /// Where it ends.
    pub target: RecoveryTarget,
    /// Whether the transaction at the target is part of it: `recovery_target_inclusive`.
    pub inclusive: bool,
    /// `recovery_target_timeline`: `latest`, `current` or a number.
    pub timeline: String,
}

impl Default for Recovery {
    fn default() -> Self {
        Self { restore_command: None, target: RecoveryTarget::EndOfWal, inclusive: true, timeline: "latest".to_owned() }
    }
}

impl Recovery {
    /// WAL comes from somewhere else than the copy, or ends before its end.
    pub fn is_asked_for(&self) -> bool {
        self.restore_command.is_some() || self.target != RecoveryTarget::EndOfWal
    }
}

/// Where a recovery ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum RecoveryTarget {
    /// Where WAL ends.
    #[default]
    EndOfWal,
    /// As soon as it is consistent.
    Immediate,
    /// At a time, as PostgreSQL reads it.
    Time(String),
    /// At a position.
    Lsn(Lsn),
    /// At a point that `pg_create_restore_point` named.
    Name(String),
    /// At the end of a transaction.
    Xid(u64),
}

impl RecoveryTarget {
    /// PostgreSQL's setting for it, and its value.
    pub fn setting(&self) -> Option<(&'static str, String)> {
        Some(match self {
            Self::EndOfWal => return None,
            Self::Immediate => ("recovery_target", "immediate".to_owned()),
            Self::Time(time) => ("recovery_target_time", time.clone()),
            Self::Lsn(lsn) => ("recovery_target_lsn", lsn.to_string()),
            Self::Name(name) => ("recovery_target_name", name.clone()),
            Self::Xid(xid) => ("recovery_target_xid", xid.to_string()),
        })
    }
}

impl fmt::Display for RecoveryTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EndOfWal => f.write_str("the end of WAL"),
            Self::Immediate => f.write_str("the first consistent state"),
            Self::Time(time) => write!(f, "time {time}"),
            Self::Lsn(lsn) => write!(f, "position {lsn}"),
            Self::Name(name) => write!(f, "restore point {name}"),
            Self::Xid(xid) => write!(f, "transaction {xid}"),
        }
    }
}

/// A role of the first data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitialRole {
    /// Its name.
    pub name: String,
    /// Where its password is; `None`: it has none from here.
    pub password: Option<PasswordSource>,
    /// Its attributes in PostgreSQL's words, checked: LOGIN, CREATEDB, …
    pub attributes: Vec<String>,
    /// Roles it becomes a member of.
    pub member_of: Vec<String>,
}

/// Where a password is read from, and never from anywhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PasswordSource {
    /// A file with one line that only the agent's user can read.
    File(PathBuf),
    /// A variable of the agent's environment.
    Environment(String),
}

/// A database of the first data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitialDatabase {
    /// Its name.
    pub name: String,
    /// Its owner.
    pub owner: Option<String>,
    /// The database it is a copy of.
    pub template: Option<String>,
    /// Its encoding, which needs `template0`.
    pub encoding: Option<String>,
    /// Its locale, which needs `template0`.
    pub locale: Option<String>,
    /// Extensions that are made in it.
    pub extensions: Vec<String>,
}

const DEADLINE_S: u64 = 24 * 3600;
const AFTER_DEADLINE_S: u64 = 3600;

/// What a role may be given, in PostgreSQL's words (manual, CREATE ROLE).
const ATTRIBUTES: &[&str] = &[
    "login",
    "nologin",
    "superuser",
    "nosuperuser",
    "createdb",
    "nocreatedb",
    "createrole",
    "nocreaterole",
    "replication",
    "noreplication",
    "inherit",
    "noinherit",
    "bypassrls",
    "nobypassrls",
];

/// What initdb may be told; the rest is Matriarch's, or would be no property of the data.
const INITDB_OPTIONS: &[&str] = &[
    "--encoding",
    "--locale",
    "--lc-collate",
    "--lc-ctype",
    "--lc-messages",
    "--lc-monetary",
    "--lc-numeric",
    "--lc-time",
    "--locale-provider",
    "--icu-locale",
    "--icu-rules",
    "--builtin-locale",
    "--text-search-config",
    "--wal-segsize",
    "--no-locale",
];

/// The two roles Matriarch makes itself.
pub(super) struct OwnRoles<'a> {
    pub superuser: &'a str,
    pub replication: &'a str,
}

pub(super) fn check(raw: Option<RawBootstrap>, own: &OwnRoles<'_>) -> Result<InitialContent, Wrong> {
    let raw = raw.unwrap_or_default();
    let source = source(&raw)?;
    let recovery = recovery(&raw, &source)?;
    let restart = raw.restart.unwrap_or(true);
    if raw.restart.is_some() && source != ContentSource::Adopt {
        let problem = "given, but nothing is adopted";
        return Err(Wrong::new("bootstrap.restart", problem, "remove it, or set bootstrap.method to adopt"));
    }
    let initdb_options = initdb_options(raw.initdb_options.unwrap_or_default(), &source)?;
    let roles = roles(raw.roles.unwrap_or_default(), own)?;
    let databases = databases(raw.databases.unwrap_or_default())?;
    let after = raw.post_command.map(|command| hook("bootstrap.post_command", command)).transpose()?;
    let deadline = seconds("bootstrap.deadline_s", raw.deadline_s, DEADLINE_S)?;
    let after_deadline = seconds("bootstrap.post_deadline_s", raw.post_deadline_s, AFTER_DEADLINE_S)?;
    Ok(InitialContent { source, restart, recovery, initdb_options, roles, databases, after, deadline, after_deadline })
}

fn seconds(key: &str, value: Option<u64>, default: u64) -> Result<Duration, Wrong> {
    let seconds = value.unwrap_or(default);
    if !(1..=30 * 24 * 3600).contains(&seconds) {
        let problem = format!("{seconds} s is out of range");
        return Err(Wrong::new(key, problem, "use 1 to 2592000 (thirty days)"));
    }
    Ok(Duration::from_secs(seconds))
}

fn source(raw: &RawBootstrap) -> Result<ContentSource, Wrong> {
    let needless = |key: &str, given: bool, method: &str| match given {
        true => {
            let key = format!("bootstrap.{key}");
            Err(Wrong::new(key, format!("given, but bootstrap.method is {method}"), "remove it, or change the method"))
        }
        false => Ok(()),
    };
    let method = raw.method.as_deref().unwrap_or("initdb");
    if method != "command" {
        needless("command", raw.command.is_some(), method)?;
    }
    if method != "backup" {
        needless("backup", raw.backup.is_some(), method)?;
    }
    let missing = |key: &str, advice: &str| Wrong::new(format!("bootstrap.{key}"), "missing", advice.to_owned());
    match method {
        "initdb" => Ok(ContentSource::Initdb),
        "command" => {
            let command =
                raw.command.clone().ok_or_else(|| missing("command", "name the program that fills {data_dir}"))?;
            let filled = command.iter().any(|argument| argument.contains("{data_dir}"));
            let command = hook("bootstrap.command", command)?;
            if !filled {
                let problem = "no argument has {data_dir} in it";
                return Err(Wrong::new("bootstrap.command", problem, "tell the program which directory to fill"));
            }
            Ok(ContentSource::Command(command))
        }
        "backup" => {
            let backup = raw.backup.clone().ok_or_else(|| missing("backup", "name the directory or the tar file"))?;
            Ok(ContentSource::Backup(path("bootstrap.backup", Some(backup), "")?))
        }
        "adopt" => {
            let more = [
                ("roles", raw.roles.is_some()),
                ("databases", raw.databases.is_some()),
                ("post_command", raw.post_command.is_some()),
            ];
            more.iter().try_for_each(|(key, given)| needless(key, *given, method))?;
            Ok(ContentSource::Adopt)
        }
        other => {
            let problem = format!("`{other}` is no method");
            Err(Wrong::new("bootstrap.method", problem, "use initdb, command, backup or adopt"))
        }
    }
}

fn recovery(raw: &RawBootstrap, source: &ContentSource) -> Result<Recovery, Wrong> {
    let targets = [
        ("target_time", raw.target_time.is_some()),
        ("target_lsn", raw.target_lsn.is_some()),
        ("target_name", raw.target_name.is_some()),
        ("target_xid", raw.target_xid.is_some()),
        ("target_immediate", raw.target_immediate == Some(true)),
    ];
    let mut given = targets.iter().filter(|(_, given)| *given).map(|(key, _)| *key);
    let first = given.next();
    if let (Some(one), Some(two)) = (first, given.next()) {
        let problem = format!("{one} is given as well, and a recovery has one target");
        return Err(Wrong::new(format!("bootstrap.{two}"), problem, "remove one of them"));
    }
    let others = [
        ("restore_command", raw.restore_command.is_some()),
        ("target_timeline", raw.target_timeline.is_some()),
        ("target_inclusive", raw.target_inclusive.is_some()),
    ];
    let any = first.or_else(|| others.iter().find(|(_, given)| *given).map(|(key, _)| *key));
    if let (Some(key), ContentSource::Initdb | ContentSource::Adopt) = (any, source) {
        let problem = "given, but the method makes nothing that could be recovered";
        return Err(Wrong::new(format!("bootstrap.{key}"), problem, "set bootstrap.method to backup or command"));
    }
    if let (Some(_), None) =
        (raw.target_inclusive, first.filter(|key| !matches!(*key, "target_name" | "target_immediate")))
    {
        let problem = "it goes with target_time, target_lsn or target_xid";
        return Err(Wrong::new("bootstrap.target_inclusive", problem, "add one of them, or remove it"));
    }
    Ok(Recovery {
        restore_command: raw.restore_command.clone().map(|c| one_line("bootstrap.restore_command", c)).transpose()?,
        target: target(raw)?,
        inclusive: raw.target_inclusive.unwrap_or(true),
        timeline: timeline(raw.target_timeline.clone())?,
    })
}

fn target(raw: &RawBootstrap) -> Result<RecoveryTarget, Wrong> {
    if let Some(time) = raw.target_time.clone() {
        return Ok(RecoveryTarget::Time(target_time(one_line("bootstrap.target_time", time)?)?));
    }
    if let Some(lsn) = &raw.target_lsn {
        let advice = "write it as PostgreSQL does, e.g. 0/3000060";
        let lsn: Lsn = lsn
            .parse()
            .map_err(|_| Wrong::new("bootstrap.target_lsn", format!("`{lsn}` is no position of WAL"), advice))?;
        return Ok(RecoveryTarget::Lsn(lsn));
    }
    if let Some(name) = raw.target_name.clone() {
        let name = one_line("bootstrap.target_name", name)?;
        // MAXFNAMELEN of PostgreSQL, less the zero at the end.
        if name.len() > 63 {
            return Err(Wrong::new("bootstrap.target_name", "longer than 63 bytes", "name a point that exists"));
        }
        return Ok(RecoveryTarget::Name(name));
    }
    if let Some(xid) = raw.target_xid {
        return Ok(RecoveryTarget::Xid(xid));
    }
    Ok(if raw.target_immediate == Some(true) { RecoveryTarget::Immediate } else { RecoveryTarget::EndOfWal })
}

/// A time without a zone would be read in whatever zone the server is in; PostgreSQL itself reads the rest.
fn target_time(time: String) -> Result<String, Wrong> {
    let zoned = |clock: &str| clock.contains(|c: char| matches!(c, '+' | '-') || c.is_ascii_alphabetic());
    if !time.split_once(':').is_some_and(|(_, clock)| zoned(clock)) {
        let problem = format!("`{time}` has no time of day or no time zone");
        return Err(Wrong::new("bootstrap.target_time", problem, "write it in full, e.g. 2026-11-27 02:00:00+00"));
    }
    Ok(time)
}

fn timeline(text: Option<String>) -> Result<String, Wrong> {
    let text = text.unwrap_or_else(|| "latest".to_owned());
    let number = text.parse::<u32>().is_ok_and(|n| n > 0);
    if number || matches!(text.as_str(), "latest" | "current") {
        return Ok(text);
    }
    let problem = format!("`{text}` is no timeline");
    Err(Wrong::new("bootstrap.target_timeline", problem, "use latest, current or a number in quotes"))
}

fn hook(key: &str, command: Vec<String>) -> Result<HookCommand, Wrong> {
    match command.first() {
        Some(program) if program.starts_with('/') => {}
        Some(program) => {
            let problem = format!("`{program}` is no path from the root");
            return Err(Wrong::new(key, problem, "write the program's whole path, then its arguments, one by one"));
        }
        None => return Err(Wrong::new(key, "empty", "name a program, or remove the key")),
    }
    if command.iter().any(|argument| argument.contains('\0')) {
        return Err(Wrong::new(key, "an argument has a zero byte in it", "remove it"));
    }
    Ok(HookCommand(command))
}

fn one_line(key: &str, text: String) -> Result<String, Wrong> {
    if text.trim().is_empty() || text.chars().any(char::is_control) {
        return Err(Wrong::new(key, "empty, or not one line", "write it on one line"));
    }
    Ok(text)
}

fn initdb_options(options: Vec<String>, source: &ContentSource) -> Result<Vec<String>, Wrong> {
    let key = "bootstrap.initdb_options";
    if !options.is_empty() && *source != ContentSource::Initdb {
        return Err(Wrong::new(key, "given, but initdb is not run", "remove it, or set bootstrap.method to initdb"));
    }
    for option in &options {
        let name = option.split('=').next().unwrap_or_default();
        if !INITDB_OPTIONS.contains(&name) || option.chars().any(char::is_control) {
            let problem = format!("`{option}` is not among the options that may be given");
            return Err(Wrong::new(key, problem, format!("use --option=value of {}", INITDB_OPTIONS.join(", "))));
        }
    }
    Ok(options)
}

fn given_name(key: &str, value: Option<String>) -> Result<String, Wrong> {
    let name = value.ok_or_else(|| Wrong::new(key, "missing", "add it"))?;
    // NAMEDATALEN of PostgreSQL, less the zero at the end.
    if name.is_empty() || name.len() > 63 || name.chars().any(char::is_control) {
        return Err(Wrong::new(key, format!("`{name}` can't be a name"), "use 1 to 63 bytes"));
    }
    Ok(name)
}

fn roles(raw: Vec<RawRole>, own: &OwnRoles<'_>) -> Result<Vec<InitialRole>, Wrong> {
    let mut seen = BTreeSet::new();
    let mut roles = Vec::new();
    for (index, role) in raw.into_iter().enumerate() {
        let key = |field: &str| format!("bootstrap.roles[{index}].{field}");
        let name = given_name(&key("name"), role.name)?;
        if name == own.superuser || name == own.replication {
            let problem = format!("`{name}` is made by Matriarch itself");
            return Err(Wrong::new(key("name"), problem, "remove it; its password is in [postgresql]"));
        }
        if name.starts_with("pg_") {
            let problem = format!("`{name}`: names with pg_ are PostgreSQL's own");
            return Err(Wrong::new(key("name"), problem, "name it otherwise"));
        }
        if !seen.insert(name.clone()) {
            return Err(Wrong::new(key("name"), format!("`{name}` is given twice"), "give each role once"));
        }
        let password = match (role.password_file, role.password_env) {
            (Some(file), None) => Some(PasswordSource::File(path(&key("password_file"), Some(file), "")?)),
            (None, Some(variable)) => Some(PasswordSource::Environment(environment(&key("password_env"), variable)?)),
            (None, None) => None,
            (Some(_), Some(_)) => {
                let problem = "password_file is given as well";
                return Err(Wrong::new(key("password_env"), problem, "remove one of them"));
            }
        };
        let attributes = role.attributes.unwrap_or_else(|| vec!["login".to_owned()]);
        for attribute in &attributes {
            if !ATTRIBUTES.contains(&attribute.to_ascii_lowercase().as_str()) {
                let problem = format!("`{attribute}` is no attribute of a role");
                return Err(Wrong::new(key("attributes"), problem, format!("use {}", ATTRIBUTES.join(", "))));
            }
        }
        let attributes = attributes.iter().map(|attribute| attribute.to_ascii_uppercase()).collect();
        let member_of = role.member_of.unwrap_or_default();
        for group in &member_of {
            given_name(&key("member_of"), Some(group.clone()))?;
        }
        roles.push(InitialRole { name, password, attributes, member_of });
    }
    Ok(roles)
}

fn environment(key: &str, variable: String) -> Result<String, Wrong> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if variable.is_empty() || variable.starts_with(|c: char| c.is_ascii_digit()) || !variable.chars().all(fits) {
        let problem = format!("`{variable}` is no name of a variable");
        return Err(Wrong::new(key, problem, "use letters, digits and `_`"));
    }
    Ok(variable)
}

fn databases(raw: Vec<RawDatabase>) -> Result<Vec<InitialDatabase>, Wrong> {
    let mut seen = BTreeSet::new();
    let mut databases = Vec::new();
    for (index, database) in raw.into_iter().enumerate() {
        let key = |field: &str| format!("bootstrap.databases[{index}].{field}");
        let name = given_name(&key("name"), database.name)?;
        if !seen.insert(name.clone()) {
            return Err(Wrong::new(key("name"), format!("`{name}` is given twice"), "give each database once"));
        }
        let optional = |field: &str, value: Option<String>| value.map(|v| given_name(&key(field), Some(v))).transpose();
        let extensions = database.extensions.unwrap_or_default();
        for extension in &extensions {
            given_name(&key("extensions"), Some(extension.clone()))?;
        }
        databases.push(InitialDatabase {
            owner: optional("owner", database.owner)?,
            template: optional("template", database.template)?,
            encoding: optional("encoding", database.encoding)?,
            locale: optional("locale", database.locale)?,
            extensions,
            name,
        });
    }
    Ok(databases)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const OWN: OwnRoles<'_> = OwnRoles { superuser: "postgres", replication: "repl" };

    fn checked(text: &str) -> Result<InitialContent, String> {
        let raw: RawBootstrap = toml::from_str(text).unwrap();
        check(Some(raw), &OWN).map_err(|wrong| wrong.in_file(Path::new("m.toml")).to_string())
    }

    #[test]
    fn without_the_table_it_is_an_empty_database() {
        let content = check(None, &OWN).unwrap();
        assert!(content.is_plain() && !content.recovery.is_asked_for());
        assert!(checked("method = \"initdb\"\ninitdb_options = [\"--locale=de_DE.UTF-8\"]\n").unwrap().is_plain());
    }

    #[test]
    fn a_recovery_has_one_target_and_something_to_recover() {
        let backup = "method = \"backup\"\nbackup = \"/b\"\n";
        let target = |text: &str| checked(&format!("{backup}{text}")).map(|content| content.recovery.target);
        assert_eq!(target(""), Ok(RecoveryTarget::EndOfWal));
        assert_eq!(target("target_lsn = \"0/3000060\""), Ok(RecoveryTarget::Lsn(Lsn(0x300_0060))));
        assert_eq!(target("target_xid = 7\ntarget_inclusive = false"), Ok(RecoveryTarget::Xid(7)));
        assert_eq!(target("target_name = \"before\""), Ok(RecoveryTarget::Name("before".into())));
        let time = "2026-11-27 02:00:00+00";
        assert_eq!(target(&format!("target_time = \"{time}\"")), Ok(RecoveryTarget::Time(time.into())));
        assert!(target("target_time = \"2026-11-27 02:00:00-05\"").is_ok());
        assert!(target("target_time = \"2026-11-27 02:00:00 Europe/Berlin\"").is_ok());
        let refused = |text: &str| target(text).unwrap_err();
        assert!(refused("target_time = \"2026-11-27 02:00:00\"").contains("time zone"));
        assert!(refused("target_xid = 7\ntarget_lsn = \"0/1\"").contains("one target"));
        assert!(refused("target_name = \"x\"\ntarget_inclusive = true").contains("target_inclusive"));
        assert!(refused("target_timeline = \"newest\"").contains("no timeline"));
        assert!(refused("target_lsn = \"x\"").contains("no position"));
        assert!(checked("target_xid = 7").unwrap_err().contains("set bootstrap.method to backup or command"));
    }

    #[test]
    fn what_belongs_to_another_method_is_refused() {
        assert!(checked("command = [\"/x\"]").unwrap_err().contains("bootstrap.command: given, but bootstrap.method"));
        assert!(checked("method = \"command\"\ncommand = [\"/x\"]").unwrap_err().contains("{data_dir}"));
        assert!(checked("method = \"command\"\ncommand = [\"x\", \"{data_dir}\"]").unwrap_err().contains("no path"));
        assert!(checked("method = \"backup\"").unwrap_err().contains("bootstrap.backup: missing"));
        assert!(checked("method = \"backup\"\nbackup = \"b\"").unwrap_err().contains("relative"));
        assert!(checked("method = \"clone\"").unwrap_err().contains("use initdb, command, backup or adopt"));
        assert!(checked("method = \"adopt\"\n[[roles]]\nname = \"a\"").unwrap_err().contains("bootstrap.roles: given"));
        assert_eq!(checked("method = \"adopt\"").unwrap().source, ContentSource::Adopt);
        assert!(checked("method = \"adopt\"").unwrap().restart);
        assert!(!checked("method = \"adopt\"\nrestart = false").unwrap().restart);
        assert!(checked("restart = false").unwrap_err().contains("bootstrap.restart: given, but nothing is adopted"));
        let options = "method = \"backup\"\nbackup = \"/b\"\ninitdb_options = [\"--no-locale\"]";
        assert!(checked(options).unwrap_err().contains("initdb is not run"));
        assert!(checked("initdb_options = [\"--auth=trust\"]").unwrap_err().contains("may be given"));
        let command = checked("method = \"command\"\ncommand = [\"/x\", \"--to={data_dir}\"]").unwrap().source;
        let ContentSource::Command(command) = command else { panic!("{command:?}") };
        assert_eq!(command.filled(Path::new("/d")), ["/x", "--to=/d"]);
    }

    #[test]
    fn roles_have_their_passwords_elsewhere() {
        let role = |text: &str| checked(&format!("[[roles]]\nname = \"app\"\n{text}"));
        let one = role("password_env = \"APP_PASSWORD\"\nattributes = [\"createdb\"]").unwrap().roles.remove(0);
        assert_eq!(one.password, Some(PasswordSource::Environment("APP_PASSWORD".into())));
        assert_eq!(one.attributes, ["CREATEDB"]);
        assert_eq!(role("").unwrap().roles[0].attributes, ["LOGIN"]);
        assert!(role("password_env = \"A\"\npassword_file = \"/a\"").unwrap_err().contains("as well"));
        assert!(role("password_env = \"A=b\"").unwrap_err().contains("no name of a variable"));
        assert!(role("attributes = [\"PASSWORD 'x'\"]").unwrap_err().contains("no attribute"));
        assert!(role("[[roles]]\nname = \"app\"").unwrap_err().contains("twice"));
        assert!(checked("[[roles]]\nname = \"repl\"").unwrap_err().contains("made by Matriarch"));
        assert!(
            checked("[[databases]]\nowner = \"app\"").unwrap_err().contains("bootstrap.databases[0].name: missing")
        );
        assert!(toml::from_str::<RawBootstrap>("[[roles]]\nname = \"a\"\npassword = \"x\"").is_err());
    }
}
