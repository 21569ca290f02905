//! The configuration file as written: every key optional, unknown keys refused.
//! Nothing outside this room sees these types.

use std::{collections::BTreeMap, fmt, ops::Range};

use serde::Deserialize;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConfig {
    pub cluster: Option<RawCluster>,
    pub member: Option<RawMember>,
    pub manager: Option<RawManager>,
    pub agent: Option<RawAgent>,
    pub postgresql: Option<RawPostgresql>,
    pub bootstrap: Option<RawBootstrap>,
    pub router: Option<RawRouter>,
    pub rest: Option<RawRest>,
    pub layers: Option<RawLayers>,
    pub hooks: Option<RawHooks>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHooks {
    pub run: Option<Vec<RawHook>>,
    pub patroni: Option<RawPatroniHooks>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHook {
    pub on: Option<Vec<String>>,
    pub command: Option<Vec<String>>,
    pub blocking: Option<bool>,
    pub deadline_ms: Option<u64>,
    pub retries: Option<u32>,
    pub required: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPatroniHooks {
    pub on_start: Option<String>,
    pub on_stop: Option<String>,
    pub on_restart: Option<String>,
    pub on_reload: Option<String>,
    pub on_role_change: Option<String>,
    pub pre_promote: Option<String>,
    pub before_stop: Option<String>,
    pub deadline_ms: Option<u64>,
    pub retries: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLayers {
    pub kernel_lease: Option<String>,
    pub watchdog: Option<String>,
    pub watchdog_device: Option<String>,
    pub watchdog_timeout_s: Option<u32>,
    pub client_reset: Option<String>,
    pub stonith_command: Option<Vec<String>>,
    pub stonith_deadline_ms: Option<u64>,
    pub vip: Option<String>,
    pub vip_address: Option<String>,
    pub vip_interface: Option<String>,
    pub vip_standby: Option<String>,
    pub vip_standby_address: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCluster {
    pub name: Option<String>,
    pub profile: Option<String>,
    pub insecure: Option<bool>,
    pub secret_file: Option<String>,
    pub failsafe: Option<bool>,
    pub timings: Option<RawTimings>,
    pub members: Option<Vec<RawClusterMember>>,
}

/// Overrides of the profile's timings, in milliseconds.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTimings {
    pub heartbeat_ms: Option<u64>,
    pub election_min_ms: Option<u64>,
    pub election_max_ms: Option<u64>,
    pub renew_ms: Option<u64>,
    pub rpc_ms: Option<u64>,
    pub hold_ms: Option<u64>,
    pub kill_ms: Option<u64>,
    pub drift_permille: Option<u32>,
    pub grant_ms: Option<u64>,
    pub probe_ms: Option<u64>,
    pub report_ms: Option<u64>,
    pub silent_ms: Option<u64>,
    pub primary_start_ms: Option<u64>,
    pub promote_ms: Option<u64>,
    pub stop_ms: Option<u64>,
    pub collect_ms: Option<u64>,
    pub router_stale_ms: Option<u64>,
    pub router_hold_ms: Option<u64>,
    pub replication_ms: Option<u64>,
    pub tcp_ms: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawClusterMember {
    pub id: Option<String>,
    pub host: Option<String>,
    pub manager_port: Option<u16>,
    pub agent_port: Option<u16>,
    pub postgres_port: Option<u16>,
    pub witness: Option<bool>,
    pub learner: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMember {
    pub id: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawManager {
    pub listen: Option<String>,
    pub state_dir: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAgent {
    pub listen: Option<String>,
    pub failsafe_listen: Option<String>,
    pub state_dir: Option<String>,
    pub runtime_dir: Option<String>,
    pub cgroup: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPostgresql {
    pub bin_dir: Option<String>,
    pub data_dir: Option<String>,
    pub listen_addresses: Option<String>,
    pub socket_dir: Option<String>,
    pub superuser: Option<String>,
    pub superuser_password_file: Option<String>,
    pub replication_user: Option<String>,
    pub replication_password_file: Option<String>,
    pub hba: Option<Vec<String>>,
    pub parameters: Option<BTreeMap<String, toml::Value>>,
}

/// What the first data directory is made from.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBootstrap {
    pub method: Option<String>,
    pub restart: Option<bool>,
    pub command: Option<Vec<String>>,
    pub backup: Option<String>,
    pub initdb_options: Option<Vec<String>>,
    pub restore_command: Option<String>,
    pub target_time: Option<String>,
    pub target_lsn: Option<String>,
    pub target_name: Option<String>,
    pub target_xid: Option<u64>,
    pub target_immediate: Option<bool>,
    pub target_inclusive: Option<bool>,
    pub target_timeline: Option<String>,
    pub deadline_s: Option<u64>,
    pub post_command: Option<Vec<String>>,
    pub post_deadline_s: Option<u64>,
    pub roles: Option<Vec<RawRole>>,
    pub databases: Option<Vec<RawDatabase>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRole {
    pub name: Option<String>,
    pub password_file: Option<String>,
    pub password_env: Option<String>,
    pub attributes: Option<Vec<String>>,
    pub member_of: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDatabase {
    pub name: Option<String>,
    pub owner: Option<String>,
    pub template: Option<String>,
    pub encoding: Option<String>,
    pub locale: Option<String>,
    pub extensions: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRouter {
    pub read_write: Option<String>,
    pub read_only: Option<String>,
    pub sync_only: Option<String>,
    pub metrics: Option<String>,
    pub read_only_max_lag: Option<u64>,
    pub read_only_from_primary: Option<bool>,
    pub read_only_weights: Option<BTreeMap<String, u32>>,
    pub drain_ms: Option<u64>,
    pub proxy_protocol: Option<bool>,
    pub max_sessions: Option<usize>,
    pub threads: Option<usize>,
    pub connect_ahead: Option<bool>,
    pub tls_certificate_file: Option<String>,
    pub tls_key_file: Option<String>,
    pub tls_required: Option<bool>,
    pub postgresql_ca_file: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRest {
    pub listen: Option<String>,
    pub username: Option<String>,
    pub password_file: Option<String>,
    pub allowlist: Option<Vec<String>>,
    pub tls_certificate_file: Option<String>,
    pub tls_key_file: Option<String>,
}

/// Why a text is no configuration: the key it happened at, where known, and
/// what to do, in the parts of a one-line message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ParseProblem {
    pub key: String,
    pub problem: String,
    pub advice: String,
}

/// Reads the text of a configuration file.
pub(super) fn parse(text: &str) -> Result<RawConfig, ParseProblem> {
    toml::from_str(text).map_err(|error| explain(text, error.message(), error.span()))
}

fn explain(text: &str, message: &str, span: Option<Range<usize>>) -> ParseProblem {
    let start = span.as_ref().map_or(0, |s| s.start).min(text.len());
    let place = Place::of(text, start);
    let message = message.lines().next().unwrap_or("not TOML").to_owned();
    if let Some((unknown, known)) = unknown_field(&message) {
        let known: Vec<&str> = known.collect();
        let advice = match closest(unknown, &known) {
            Some(key) => format!("did you mean `{key}`?"),
            None if known.is_empty() => "remove it".to_owned(),
            None => format!("known here: {}", known.join(", ")),
        };
        let key = place.with(unknown);
        return ParseProblem { key, problem: format!("unknown key in line {}", place.line), advice };
    }
    let key = match &place.key {
        Some(key) => place.with(key),
        None => format!("line {}", place.line),
    };
    let problem = match place.key {
        Some(_) => format!("{message} (line {})", place.line),
        None => message,
    };
    ParseProblem { key, problem, advice: "correct the line; deploy/matriarch.toml.example has every key".to_owned() }
}

/// `unknown field `x`, expected one of `a`, `b`` in serde's words.
fn unknown_field(message: &str) -> Option<(&str, impl Iterator<Item = &str>)> {
    let rest = message.strip_prefix("unknown field `")?;
    let (unknown, rest) = rest.split_once('`')?;
    Some((unknown, rest.split('`').skip(1).step_by(2)))
}

/// A place in the text: its line, the table it stands in, and the key of that line.
struct Place {
    line: usize,
    table: String,
    key: Option<String>,
}

impl Place {
    fn of(text: &str, at: usize) -> Place {
        let before = text.get(..at).unwrap_or("");
        let line = before.matches('\n').count() + 1;
        let mut table = String::new();
        let mut key = None;
        for current in text.lines().take(line) {
            let current = current.trim();
            key = None;
            if let Some(header) = current.strip_prefix('[') {
                let name = header.trim_start_matches('[').split(']').next().unwrap_or("");
                name.trim().clone_into(&mut table);
            } else if let Some((name, _)) = current.split_once('=') {
                let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
                key = Some(name.trim().to_owned()).filter(|n| !n.is_empty() && n.chars().all(bare));
            }
        }
        Place { line, table, key }
    }

    fn with(&self, key: &str) -> String {
        // An unknown table is reported at its own header, where the table is the key.
        let table = self.table.strip_suffix(key).map_or(self.table.as_str(), |t| t.trim_end_matches('.'));
        let table = if self.key.is_some() { self.table.as_str() } else { table };
        if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") }
    }
}

/// The known key that `typed` was most likely meant to be.
pub(super) fn closest<'a>(typed: &str, known: &[&'a str]) -> Option<&'a str> {
    let far = typed.len().div_ceil(3).max(2);
    known.iter().map(|k| (distance(typed, k), *k)).filter(|(d, _)| *d <= far).min().map(|(_, k)| k)
}

/// Edit distance (Levenshtein) of two short texts.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

impl fmt::Display for ParseProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.key, self.problem, self.advice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_key_is_named_with_its_table_its_line_and_a_suggestion() {
        assert_eq!(
            problem("[cluster]\nname = \"a\"\nprofil = \"fast\"\n"),
            "cluster.profil: unknown key in line 3; did you mean `profile`?"
        );
        assert_eq!(problem("[managr]\n"), "managr: unknown key in line 1; did you mean `manager`?");
        assert_eq!(
            problem("[router]\nzzzzzz = 1\n"),
            "router.zzzzzz: unknown key in line 2; known here: read_write, read_only, sync_only, \
             metrics, read_only_max_lag, read_only_from_primary, read_only_weights, drain_ms, proxy_protocol, max_sessions, \
             threads, connect_ahead, tls_certificate_file, tls_key_file, tls_required, postgresql_ca_file"
        );
    }

    #[test]
    fn a_wrong_type_names_the_key() {
        let text = "[[cluster.members]]\nid = \"n1\"\nmanager_port = \"x\"\n";
        let found = problem(text);
        assert!(found.starts_with("cluster.members.manager_port: invalid type: string \"x\""), "{found}");
        let found = problem("[cluster]\nname = \n");
        assert!(found.contains("line 2"), "{found}");
    }

    #[test]
    fn the_distance_counts_edits() {
        assert_eq!(distance("listen", "listne"), 2);
        assert_eq!(closest("statedir", &["listen", "state_dir"]), Some("state_dir"));
        assert_eq!(closest("qqqqqqqq", &["listen"]), None);
    }
}
