//! The text of `postgresql.conf`, `pg_hba.conf` and the password file. Pure.

use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr, time::Duration};

pub use super::slot_lines::SyncedSlots;
pub(super) use super::slot_lines::{budget_in, budget_lines, synced_lines};
use crate::domain::{
    Epoch, Generation, MemberId, Timings,
    sync::{slot_name, standby_name},
};

/// A synchronous standby that nobody is: with it in the data directory's
/// configuration a primary that was started or promoted by hand acknowledges nothing.
pub const PLACEHOLDER: &str = "matriarch_placeholder";

/// Whom a standby follows, a rewind or a clone reads from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Upstream {
    /// Which member.
    pub member: MemberId,
    /// Name or address of its host.
    pub host: String,
    /// Its PostgreSQL port.
    pub port: u16,
}

/// What the configuration in the data directory makes of the instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigRole {
    /// A standby; without upstream it is severed: it follows nobody.
    Standby {
        /// Whom it follows.
        upstream: Option<Upstream>,
        /// Under which epoch.
        epoch: Epoch,
        /// In which life of the cluster.
        generation: Generation,
    },
    /// The configuration that lies under a running primary: it follows nobody, reads no archive and
    /// stays on its timeline.
    DormantPrimary,
}

/// Everything the configuration files are made of.
#[derive(Debug, Clone)]
pub(super) struct Settings<'a> {
    pub(super) listen_addresses: &'a str,
    pub(super) port: u16,
    pub(super) socket_dir: &'a str,
    pub(super) superuser: &'a str,
    pub(super) replication_user: &'a str,
    pub(super) passfile: &'a str,
    /// Whose PostgreSQL this is.
    pub(super) member: &'a MemberId,
    pub(super) member_hosts: Vec<&'a str>,
    /// Where those are that were moved since the file was written.
    pub(super) moved_hosts: &'a [String],
    pub(super) hba: &'a [String],
    pub(super) parameters: &'a BTreeMap<String, String>,
    pub(super) silence: Silence,
    /// A standby that follows nobody takes what it gets from the archive alone.
    pub(super) archive_alone: bool,
    /// How old a commit is when a standby replays it.
    pub(super) delay: Duration,
    /// `None`: what the user's parameters say counts.
    pub(super) archive: Option<Archive>,
}

/// What PostgreSQL is to call for the archive; `None`: nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Archive {
    /// For each file that it has written.
    pub(super) put: Option<String>,
    /// For each that it needs.
    pub(super) get: Option<String>,
    /// `archive_library` archives: the other two keys are the user's.
    pub(super) library: bool,
}

/// Those of [`Archive`].
const ARCHIVE: [&str; 3] = ["archive_mode", "archive_command", "restore_command"];

impl Archive {
    /// A server that was started with `archive_mode` keeps every file until one command takes it: with none to be run that is
    /// one that takes everything.
    fn settings(&self, follows: bool) -> Vec<(&'static str, &str)> {
        let mode = if self.put.is_some() { "on" } else { "off" };
        let get = self.get.as_deref().filter(|_| follows).unwrap_or_default();
        let [mode_key, put_key, get_key] = ARCHIVE;
        let all = [(mode_key, mode), (put_key, self.put.as_deref().unwrap_or("true")), (get_key, get)];
        all.into_iter().filter(|(key, _)| self.owns(key)).collect()
    }

    pub(super) fn owns(&self, key: &str) -> bool {
        let [_, _, get_key] = ARCHIVE;
        if self.library {
            key.eq_ignore_ascii_case(get_key)
        } else {
            ARCHIVE.iter().any(|own| key.eq_ignore_ascii_case(own))
        }
    }
}

/// How soon PostgreSQL gives up a peer that says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Silence {
    /// The other end of a replication connection: `wal_sender_timeout`, `wal_receiver_timeout` (manual, 20.6).
    pub replication: Duration,
    /// Any other end whose host doesn't answer: the kernel's probes of an idle connection (manual, 20.3.2) come to this
    /// time, in whole seconds; a standby's own connection has `tcp_user_timeout` as well. A server has none, for that
    /// would end every session whose client takes its time to read (tcp(7)).
    pub tcp: Duration,
}

impl From<&Timings> for Silence {
    fn from(timings: &Timings) -> Silence {
        Silence { replication: timings.replication, tcp: timings.tcp }
    }
}

impl Silence {
    /// Unanswered probes of an idle connection.
    const PROBES: u64 = 3;

    /// Seconds until the first probe, and between two.
    fn probes(&self) -> (u64, u64) {
        let whole = self.tcp.as_secs().max(1);
        let interval = (whole / 5).max(1);
        (whole.saturating_sub(interval * Self::PROBES).max(1), interval)
    }
}

/// Settings that Matriarch writes itself.
const OWNED: &[&str] = &[
    "cluster_name",
    "config_file",
    "data_directory",
    "external_pid_file",
    "full_page_writes",
    "hba_file",
    "hot_standby",
    "ident_file",
    "include",
    "include_dir",
    "include_if_exists",
    "listen_addresses",
    "log_destination",
    "logging_collector",
    "max_replication_slots",
    "max_wal_senders",
    "password_encryption",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_min_apply_delay",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "restart_after_crash",
    "superuser_reserved_connections",
    "synchronous_standby_names",
    "unix_socket_directories",
    "wal_level",
    "wal_log_hints",
    "wal_receiver_status_interval",
    "wal_receiver_timeout",
    "wal_retrieve_retry_interval",
    "wal_sender_timeout",
];

/// True for a setting that a user's configuration may not contain.
pub fn owned_key(key: &str) -> bool {
    OWNED.contains(&key.trim().to_ascii_lowercase().as_str())
}

/// True for a text that can be the name of a setting (`shared_buffers`, `pg_stat_statements.max`).
pub fn is_setting_name(key: &str) -> bool {
    let mut chars = key.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
}

/// A value of `postgresql.conf` in quotes.
pub(super) fn quote(value: &str) -> String {
    let mut quoted = String::with_capacity(value.len() + 2);
    quoted.push('\'');
    for c in value.chars() {
        match c {
            '\'' => quoted.push_str("''"),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            c => quoted.push(c),
        }
    }
    quoted.push('\'');
    quoted
}

/// A libpq connection string.
pub(super) fn conninfo(pairs: &[(&str, &str)]) -> String {
    let one = |(key, value): &(&str, &str)| format!("{key}='{}'", value.replace('\\', "\\\\").replace('\'', "\\'"));
    Vec::from_iter(pairs.iter().map(one)).join(" ")
}

/// How a standby, a rewind and a clone reach another member, under this name.
pub(super) fn replication_conninfo(
    settings: &Settings<'_>,
    upstream: &Upstream,
    name: &str,
    dbname: Option<&str>,
) -> String {
    let port = upstream.port.to_string();
    let (idle, interval) = settings.silence.probes();
    let [idle, interval, count] = [idle, interval, Silence::PROBES].map(|n| n.to_string());
    let unacknowledged = settings.silence.tcp.as_millis().to_string();
    let mut pairs = vec![
        ("host", upstream.host.as_str()),
        ("port", port.as_str()),
        ("user", settings.replication_user),
        ("passfile", settings.passfile),
        ("application_name", name),
        ("connect_timeout", "3"),
        ("keepalives", "1"),
        ("keepalives_idle", &idle),
        ("keepalives_interval", &interval),
        ("keepalives_count", &count),
        ("tcp_user_timeout", &unacknowledged),
    ];
    if let Some(dbname) = dbname {
        pairs.push(("dbname", dbname));
    }
    conninfo(&pairs)
}

/// How our `postgresql.conf` begins.
pub(super) const WRITTEN_BY_US: &str = "# Written by matriarch";

/// The text of `postgresql.conf`.
pub(super) fn postgresql_conf(settings: &Settings<'_>, role: &ConfigRole) -> String {
    let mut text = format!("{WRITTEN_BY_US} with each change of role; edits are lost.\n");
    let mut set = |key: &str, value: &str| {
        // Writing to a String can't fail.
        let _ = writeln!(text, "{key} = {}", quote(value));
    };
    let senders = senders(settings).to_string();
    // The user may override these two. They count for whoever starts PostgreSQL by hand; the file that the agent starts it
    // with has the budget of slots behind them.
    set("wal_keep_size", WAL_KEPT);
    set("max_slot_wal_keep_size", parameter(settings, "wal_keep_size").unwrap_or(WAL_KEPT));
    let dormant = *role == ConfigRole::DormantPrimary;
    for (key, value) in settings.parameters {
        // A primary that restarts in place must find nothing but its own WAL.
        let ours = settings.archive.as_ref().is_some_and(|archive| archive.owns(key));
        let archive = ours || (dormant && key.eq_ignore_ascii_case("restore_command"));
        if is_setting_name(key) && !owned_key(key) && !archive {
            set(key, value);
        }
    }
    let primary_conninfo = primary_conninfo(settings, role);
    let (slot, timeline) = match role {
        ConfigRole::Standby { upstream: Some(_), .. } => (slot_name(settings.member), "latest"),
        ConfigRole::Standby { upstream: None, .. } => (String::new(), "latest"),
        ConfigRole::DormantPrimary => (String::new(), "current"),
    };
    let port = settings.port.to_string();
    for (key, value) in [
        ("listen_addresses", settings.listen_addresses),
        ("port", &port),
        ("unix_socket_directories", settings.socket_dir),
        ("superuser_reserved_connections", "5"),
        ("password_encryption", "scram-sha-256"),
        ("log_destination", "stderr"),
        ("logging_collector", "off"),
        ("wal_level", parameter(settings, "wal_level").unwrap_or("replica")),
        ("wal_log_hints", "on"),
        ("full_page_writes", "on"),
        ("hot_standby", "on"),
        ("max_wal_senders", &senders),
        ("max_replication_slots", &senders),
        ("restart_after_crash", "off"),
        ("synchronous_standby_names", PLACEHOLDER),
        ("wal_receiver_status_interval", "1s"),
        ("wal_retrieve_retry_interval", "500ms"),
        ("recovery_target_timeline", timeline),
        ("primary_conninfo", &primary_conninfo),
        // One connection at a time confirms under that name.
        ("primary_slot_name", &slot),
    ] {
        set(key, value);
    }
    let follows = match role {
        ConfigRole::Standby { upstream, .. } => upstream.is_some() || settings.archive_alone,
        ConfigRole::DormantPrimary => false,
    };
    for (key, value) in settings.archive.iter().flat_map(|archive| archive.settings(follows)) {
        set(key, value);
    }
    if let ConfigRole::Standby { epoch, generation, .. } = role {
        // Not where a primary is made: its promotion replays what there is.
        text.push_str(&delay_line(settings.delay));
        let _ = writeln!(text, "# generation {generation} epoch {epoch}");
    }
    text
}

/// Whom it follows, and under which name; empty: nobody.
pub(super) fn primary_conninfo(settings: &Settings<'_>, role: &ConfigRole) -> String {
    match role {
        ConfigRole::Standby { upstream: Some(upstream), epoch, generation } => {
            let name = standby_name(settings.member, *generation, *epoch);
            // The worker that copies logical slots connects to a database; before version 17 this is ignored.
            replication_conninfo(settings, upstream, &name, Some("postgres"))
        }
        ConfigRole::Standby { upstream: None, .. } | ConfigRole::DormantPrimary => String::new(),
    }
}

/// Whatever its role has made of `postgresql.conf` since: a standby is started with this, a primary that is restarted in place
/// has no `standby.signal` and doesn't look, and PostgreSQL warns at each reload of a value that only a start can change.
const TIMELINE: &str = "recovery_target_timeline = 'latest'\n";

/// The text of the file the postmaster is started with. A user may set the probes of clients' connections otherwise, not
/// the limits of replication. `budget`: the lines of the budget of slots.
pub(super) fn runtime_conf(silence: Silence, budget: &str, main: &str, live: &str) -> String {
    let (idle, interval) = silence.probes();
    let (main, live) = (quote(main), quote(live));
    let replication = silence.replication.as_millis();
    format!(
        "# Written by matriarch; the postmaster is started with this file.\n\
         tcp_keepalives_idle = {idle}\ntcp_keepalives_interval = {interval}\ntcp_keepalives_count = {probes}\n\
         include {main}\n\
         {budget}\
         {TIMELINE}\
         wal_sender_timeout = {replication}\nwal_receiver_timeout = {replication}\n\
         include_if_exists {live}\n",
        probes = Silence::PROBES
    )
}

/// The text of `postgresql.conf` with other limits in a standby's connection to the primary; `None`: they are the same, or
/// it has none.
pub(super) fn other_conninfo(text: &str, silence: Silence) -> Option<String> {
    let line =
        text.lines().find(|line| line.starts_with("primary_conninfo = ") && line.contains("tcp_user_timeout="))?;
    let (idle, interval) = silence.probes();
    let mut new = line.to_owned();
    for (key, value) in [
        ("keepalives_idle", u128::from(idle)),
        ("keepalives_interval", u128::from(interval)),
        ("tcp_user_timeout", silence.tcp.as_millis()),
    ] {
        new = with_value(&new, key, value)?;
    }
    (new != line).then(|| text.replacen(line, &new, 1))
}

/// How a standby is told to be behind.
fn delay_line(delay: Duration) -> String {
    format!("recovery_min_apply_delay = '{}'\n", delay.as_millis())
}

/// The text of `postgresql.conf` with another delay; `None`: it is the same, or there is none, for it is no standby's.
pub(super) fn other_delay(text: &str, delay: Duration) -> Option<String> {
    let Some(line) = text.lines().find(|line| line.starts_with("recovery_min_apply_delay = ")) else {
        // A standby's that was written by a version without it.
        let standby = text.lines().any(|line| line.starts_with("# generation ")) && !delay.is_zero();
        return standby.then(|| format!("{text}{}", delay_line(delay)));
    };
    let (line, new) = (format!("{line}\n"), delay_line(delay));
    (line != new).then(|| text.replacen(&line, &new, 1))
}

/// A text of `postgresql.conf` makes a standby of the server that follows somebody.
pub(super) fn follows_somebody(text: &str) -> bool {
    text.lines().any(|line| line.starts_with("primary_conninfo = ") && line != "primary_conninfo = ''")
}

/// The text of `postgresql.conf` with this of the archive.
pub(super) fn other_archive(text: &str, archive: &Archive, follows: bool) -> String {
    let ours = |line: &&str| line.split_once(" = ").is_some_and(|(found, _)| archive.owns(found));
    let mut kept = text.lines().filter(|line| !ours(line));
    let mut out: String = kept.by_ref().take(1).map(|line| format!("{line}\n")).collect();
    for (key, value) in archive.settings(follows) {
        let _ = writeln!(out, "{key} = {}", quote(value));
    }
    kept.for_each(|line| out.extend([line, "\n"]));
    out
}

/// A quoted connection string with another number under `key`.
fn with_value(line: &str, key: &str, value: u128) -> Option<String> {
    let opening = format!(" {key}=''");
    let start = line.find(&opening)? + opening.len();
    let length = line[start..].find('\'')?;
    Some(format!("{}{value}{}", &line[..start], &line[start + length..]))
}

/// What `wal_keep_size` is where the user says nothing.
const WAL_KEPT: &str = "512MB";
/// The same in MiB.
pub(super) const WAL_KEPT_MIB: u64 = 512;

/// What the user has set.
fn parameter<'a>(settings: &Settings<'a>, name: &str) -> Option<&'a str> {
    let mut given = settings.parameters.iter();
    given.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

fn senders(settings: &Settings<'_>) -> u64 {
    (settings.member_hosts.len() as u64 * 2 + 4).max(10)
}

/// The settings of `floors` (what `pg_control` says the primary had) that are configured lower. A standby must
/// be started with at least these, or it ends with "insufficient parameter settings".
pub(super) fn raised_to(settings: &Settings<'_>, floors: &[(&'static str, u64)]) -> Vec<(&'static str, u64)> {
    floors.iter().copied().filter(|&(name, floor)| count_of(settings, name) < floor).collect()
}

/// What one of the settings is configured to of which a standby needs as much as its primary has.
pub(super) fn count_of(settings: &Settings<'_>, name: &str) -> u64 {
    let given = parameter(settings, name);
    given.and_then(|value| value.trim().parse::<u64>().ok()).unwrap_or_else(|| match name {
        "max_connections" => 100,
        "max_worker_processes" => 8,
        "max_wal_senders" => senders(settings),
        "max_locks_per_transaction" => 64,
        _ => 0,
    })
}

/// The text of the file with which the first data directory of a cluster is recovered and completed.
pub(super) fn private_conf<'a>(settings: &Settings<'_>, more: impl Iterator<Item = (&'a str, String)>) -> String {
    let role = ConfigRole::Standby { upstream: None, epoch: Epoch(0), generation: Generation(0) };
    let mut text = postgresql_conf(settings, &role);
    for (name, value) in more {
        // Writing to a String can't fail.
        let _ = writeln!(text, "{name} = {}", quote(&value));
    }
    text
}

/// Settings by which a backup tool, or an earlier life of what is restored, tells a recovery where to read and when to end.
pub(super) fn is_of_recovery(key: &str) -> bool {
    let key = key.trim().to_ascii_lowercase();
    let commands = ["restore_command", "archive_cleanup_command", "recovery_end_command"];
    key.starts_with("recovery_target") || commands.contains(&key.as_str())
}

/// `postgresql.auto.conf` without those; `None` when it has none.
pub(super) fn without_recovery(auto_conf: &str) -> Option<String> {
    without(auto_conf, is_of_recovery)
}

/// How a `pg_hba.conf` that lets no client in says so.
pub(super) const CLOSED: &str = "# Closed by matriarch: what this primary has after its crash is not confirmed yet.";

/// The text of `pg_hba.conf`: the agent on the socket, the members' replication role, then the user's lines, or with
/// `closed` that nobody else comes in.
pub(super) fn pg_hba(settings: &Settings<'_>, closed: bool) -> String {
    let mut text = String::from("# Written by matriarch; further lines come from its configuration file.\n");
    let _ = writeln!(text, "local all {} scram-sha-256", hba_quote(settings.superuser));
    let moved = settings.moved_hosts.iter().map(String::as_str);
    let mut addresses = Vec::from_iter(settings.member_hosts.iter().copied().chain(moved).map(hba_address));
    addresses.sort();
    addresses.dedup();
    for address in addresses {
        for database in ["replication", "postgres"] {
            let user = hba_quote(settings.replication_user);
            let _ = writeln!(text, "host {database} {user} {address} scram-sha-256");
        }
    }
    if closed {
        let _ = writeln!(text, "{CLOSED}\nlocal all all reject\nhost all all all reject");
        return text;
    }
    for line in settings.hba {
        let _ = writeln!(text, "{line}");
    }
    text
}

pub(super) fn hba_quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub(super) fn hba_address(host: &str) -> String {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => format!("{ip}/32"),
        Ok(IpAddr::V6(ip)) => format!("{ip}/128"),
        Err(_) => host.to_owned(),
    }
}

/// The text of libpq's password file: the replication role on each of `hosts`.
pub(super) fn passfile<'a>(hosts: impl Iterator<Item = (&'a str, u16)>, user: &str, password: &str) -> String {
    let escape = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
    let line = |(host, port): (&str, u16)| format!("{}:{port}:*:{}:{}\n", escape(host), escape(user), escape(password));
    hosts.map(line).collect()
}

/// `postgresql.auto.conf` is read last and would win; `None` when it holds no setting of ours.
pub(super) fn without_owned(auto_conf: &str) -> Option<String> {
    without(auto_conf, owned_key)
}

fn without(auto_conf: &str, unwanted: fn(&str) -> bool) -> Option<String> {
    let foreign = |line: &&str| {
        let key = line.trim_start().split(|c: char| c.is_whitespace() || c == '=').next().unwrap_or_default();
        !unwanted(key) && !ARCHIVE.iter().any(|own| key.eq_ignore_ascii_case(own))
    };
    let kept = Vec::from_iter(auto_conf.lines().filter(foreign));
    if kept.len() == auto_conf.lines().count() {
        return None;
    }
    Some(kept.iter().map(|line| format!("{line}\n")).collect())
}

/// A literal of SQL (`standard_conforming_strings` on).
pub(super) fn sql_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A quoted identifier of SQL.
pub(super) fn sql_identifier(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "conf_test.rs"]
mod tests;
