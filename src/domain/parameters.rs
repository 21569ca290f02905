//! Which settings of PostgreSQL an operator may make, in a host's file and for all hosts, and which are Matriarch's.

use super::archive::{SECRET_WORDS, names_a_secret};

/// Settings that Matriarch makes itself, with the reason a user sees.
pub const OWNED: &[(&str, &str)] = &[
    ("allow_alter_system", "Matriarch's own file has to be the one that counts"),
    ("archive_cleanup_command", "it could remove WAL that a standby still needs"),
    ("cluster_name", "it names the member in replication"),
    ("config_file", "Matriarch starts PostgreSQL with its own"),
    ("data_directory", "set postgresql.data_dir"),
    ("data_sync_retry", "a failed fsync must never be retried"),
    ("external_pid_file", "Matriarch follows the postmaster itself"),
    ("fsync", "without it a crash loses acknowledged commits"),
    ("full_page_writes", "without it a torn page is lost, and pg_rewind needs it"),
    ("hba_file", "set postgresql.hba"),
    ("hot_standby", "every standby answers reads and probes"),
    ("ident_file", "set postgresql.hba"),
    ("idle_replication_slot_timeout", "members' slots have a limit of their own, slot_wal_max"),
    ("ignore_checksum_failure", "what is damaged would be served and copied"),
    ("ignore_invalid_pages", "what is damaged would be served and copied"),
    ("ignore_system_indexes", "it is for repairs by hand"),
    ("listen_addresses", "set postgresql.listen_addresses"),
    ("log_destination", "PostgreSQL's log goes through its guard"),
    ("logging_collector", "PostgreSQL's log goes through its guard"),
    ("max_replication_slots", "it has to fit the member list"),
    ("max_wal_senders", "it has to fit the member list"),
    ("password_encryption", "it is always scram-sha-256"),
    ("port", "set postgres_port in the member list"),
    ("primary_conninfo", "it follows the committed primary"),
    ("primary_slot_name", "it follows the committed primary"),
    ("promote_trigger_file", "only a committed grant promotes"),
    ("recovery_end_command", "it would be a part of each promotion"),
    ("recovery_min_apply_delay", "`matriarch config set recovery_min_apply_delay=… --member …`"),
    ("restart_after_crash", "a crashed primary is restarted only while its lease holds"),
    ("standard_conforming_strings", "the agent's own statements depend on it"),
    ("superuser_reserved_connections", "the agent's own connections are among them"),
    ("synchronous_standby_names", "it is the live catch against starts by hand"),
    ("trigger_file", "only a committed grant promotes"),
    ("unix_socket_directories", "set postgresql.socket_dir"),
    ("unix_socket_group", "the agent has to reach the socket"),
    ("unix_socket_permissions", "the agent has to reach the socket"),
    ("wal_log_hints", "pg_rewind needs it"),
    ("wal_receiver_status_interval", "it goes with the cluster's timings"),
    ("wal_receiver_timeout", "it goes with the cluster's timings"),
    ("wal_retrieve_retry_interval", "it goes with the cluster's timings"),
    ("wal_sender_timeout", "it goes with the cluster's timings"),
    ("zero_damaged_pages", "what is damaged would be overwritten"),
];

/// What is wrong with a setting, and what to do about it.
pub type Wrong = (String, String);

fn wrong(problem: impl Into<String>, advice: impl Into<String>) -> Wrong {
    (problem.into(), advice.into())
}

/// Why no configuration may make this setting, whatever its value.
pub fn forbidden(name: &str) -> Option<Wrong> {
    let lower = name.to_ascii_lowercase();
    let well_formed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
    if name.is_empty() || !name.chars().all(well_formed) || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Some(wrong("not the name of a PostgreSQL setting", "use letters, digits, `_` and `.`"));
    }
    if let Some((_, reason)) = OWNED.iter().find(|(owned, _)| *owned == lower) {
        return Some(wrong("this setting belongs to Matriarch", format!("remove it ({reason})")));
    }
    (lower.starts_with("recovery_target") || lower.starts_with("include")).then(|| {
        let advice = "remove it (Matriarch writes recovery settings and includes itself)";
        wrong("this setting belongs to Matriarch", advice)
    })
}

/// Counts of which a standby needs as many as its primary has.
const COUNTS: [&str; 4] =
    ["max_connections", "max_locks_per_transaction", "max_prepared_transactions", "max_worker_processes"];

/// Why a setting can't have this value in any configuration.
pub fn impossible(name: &str, value: &str) -> Option<Wrong> {
    let lower = name.to_ascii_lowercase();
    if lower == "archive_mode" && value.eq_ignore_ascii_case("always") {
        let problem = "a standby that archives as well would bring WAL into the archive that is no primary's";
        return Some(wrong(problem, "write on: the primary archives"));
    }
    if lower == "wal_level" && !["replica", "logical"].contains(&value) {
        return Some(wrong("standbys need `replica`, logical slots `logical`", "write one of them or nothing"));
    }
    // PostgreSQL reads more than that, and what a standby needs at least is compared with these.
    if COUNTS.contains(&lower.as_str()) && !(value.starts_with(|c: char| ('1'..='9').contains(&c)) || value == "0") {
        return Some(wrong("not a plain number", "write decimal digits, without a leading zero"));
    }
    if COUNTS.contains(&lower.as_str()) && !value.bytes().all(|b| b.is_ascii_digit()) {
        return Some(wrong("not a plain number", "write decimal digits only"));
    }
    if value.chars().any(char::is_control) {
        return Some(wrong("the value has a control character or spans lines", "write it on one line"));
    }
    None
}

/// Settings that have a key of their own in the settings of the cluster, where a parameter would be overruled by it.
const HAVE_KEYS: [(&str, &str); 4] = [
    ("archive_command", "set the key archive_command"),
    ("archive_mode", "it follows from the key archive_command"),
    ("restore_command", "set the key restore_command"),
    ("synchronous_commit", "set the keys replication_mode and synchronous_commit"),
];

/// So long a value may be.
const VALUE_MAX: usize = 1000;

/// What a value must not hold: it stands in the log of the cluster, where everybody who may see settings can read it.
const SECRETS: [&str; 5] = ["password=", "passwd=", "pwd=", "secret=", "://"];

/// What to do with a secret instead.
const SECRET_ADVICE: &str = "the settings are in the log of the cluster and shown to everybody; write it into a file that only \
                             PostgreSQL's user reads, on each host, and name that file, or a program that reads it";

/// The name is that of an extension's or application's secret. Names without a dot are PostgreSQL's own, and none of those
/// that can be set here has one.
fn is_secret(name: &str, value: &str) -> bool {
    let names_it = ["_command", "_file"].iter().any(|end| name.ends_with(end));
    let speaks =
        ["passphrase", "credential", "private_key"].iter().chain(&SECRET_WORDS).any(|word| name.contains(word));
    // A switch, or the least length of a password.
    let number = value.len() <= 3 && value.bytes().all(|b| b.is_ascii_digit());
    let switch = ["on", "off", "true", "false", "yes", "no"].iter().any(|word| value.eq_ignore_ascii_case(word));
    name.contains('.') && speaks && !names_it && !number && !switch
}

/// A command that prints what stands in it has the secret in it.
fn prints_a_passphrase(name: &str, value: &str) -> bool {
    let mut words = value.split_whitespace().map(|word| word.trim_matches(['\'', '"']));
    let program = words.next().and_then(|first| first.rsplit('/').next()).unwrap_or_default();
    name.ends_with("passphrase_command") && matches!(program, "echo" | "printf") && words.next().is_some()
}

/// Why a setting can't be made for all hosts, beyond what is wrong in a file as well; in words.
pub fn refused(name: &str, value: Option<&str>) -> Option<String> {
    let say = |(problem, advice): Wrong| Some(format!("{problem}; {advice}"));
    if let Some(wrong) = forbidden(name) {
        return say(wrong);
    }
    let lower = name.to_ascii_lowercase();
    if let Some((_, instead)) = HAVE_KEYS.iter().find(|(key, _)| *key == lower) {
        return Some(format!("it is a setting of the cluster: {instead}"));
    }
    let value = value?;
    if let Some(wrong) = impossible(name, value) {
        return say(wrong);
    }
    if value.chars().count() > VALUE_MAX {
        return Some(format!("the value is longer than {VALUE_MAX} characters"));
    }
    let squeezed: String = value.to_ascii_lowercase().split_whitespace().collect();
    let secret = SECRETS.iter().any(|mark| squeezed.contains(mark) && (*mark != "://" || squeezed.contains('@')));
    if is_secret(&lower, value) {
        return Some(format!("its name says that it is a secret, and {SECRET_ADVICE}"));
    }
    let held = secret || names_a_secret(value) || prints_a_passphrase(&lower, value);
    held.then(|| format!("the value looks as if it held a password, and {SECRET_ADVICE}"))
}

/// Settings that a standby needs at least as much of as its primary has, or its replay stops (manual, 26.4.1).
pub const AT_LEAST_THE_PRIMARYS: [&str; 5] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];

/// Whose PostgreSQL has to be restarted first for such a setting to take effect; `None`: any, or it isn't known.
pub fn restart_order(name: &str, running: &str, configured: &str) -> Option<&'static str> {
    let numbers = (running.parse::<u64>().ok()?, configured.parse::<u64>().ok()?);
    AT_LEAST_THE_PRIMARYS.contains(&name).then_some(())?;
    match numbers.0.cmp(&numbers.1) {
        std::cmp::Ordering::Less => Some("standbys first"),
        std::cmp::Ordering::Greater => Some("the primary first"),
        std::cmp::Ordering::Equal => None,
    }
}

/// What was probably meant; `None`: nothing there is like it.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let far = |other: &str| strsim::damerau_levenshtein(name, other);
    let best = known.map(|other| (far(other), other)).min()?;
    // One letter in three may be wrong.
    (best.0 <= (name.chars().count() / 3).max(1)).then_some(best.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_matriarchs_or_has_a_key_of_its_own_is_refused_with_the_reason() {
        let why = |name: &str, value: &str| refused(name, Some(value)).unwrap_or_default();
        assert_eq!(why("work_mem", "64MB"), "");
        assert_eq!(why("auto_explain.log_min_duration", "1s"), "");
        assert_eq!(
            why("Fsync", "off"),
            "this setting belongs to Matriarch; remove it (without it a crash loses acknowledged commits)"
        );
        assert!(why("recovery_target_time", "x").contains("belongs to Matriarch"));
        assert_eq!(why("archive_command", "cp"), "it is a setting of the cluster: set the key archive_command");
        assert!(why("wal_level", "minimal").contains("standbys need `replica`"));
        assert!(why("1x", "y").contains("not the name"));
        assert!(why("work_mem", &"1".repeat(1001)).contains("longer than 1000"));
    }

    #[test]
    fn secrets_stay_out_of_the_log() {
        for value in ["host=h password = x", "postgres://u:p@h/d", "PASSWD=1"] {
            assert!(refused("ext.conninfo", Some(value)).is_some_and(|why| why.contains("password")), "{value}");
        }
        assert_eq!(refused("ssl_passphrase_command", Some("/etc/pg/passphrase.sh %p")), None);
        assert_eq!(refused("ext.url", Some("https://example.com")), None);
        for (name, value) in [
            ("app.settings.jwt_secret", "hunter2"),
            ("App.Api_Token", "hunter2"),
            ("app.api_key", "hunter2"),
            ("app.password", "1234"),
            ("ssl_passphrase_command", "echo hunter2"),
            ("ssl_passphrase_command", "/bin/printf '%s' hunter2"),
            ("app.how_command", "fetch --token hunter2"),
            ("app.how", "curl -u a:hunter2 https://a/"),
        ] {
            let why = refused(name, Some(value)).unwrap_or_default();
            assert!(
                why.contains("write it into a file that only PostgreSQL's user reads, on each host"),
                "{name}: {why}"
            );
            assert!(!why.contains("hunter2"), "{why}");
            assert_eq!(refused(name, None), None, "it can be taken back");
        }
        for (name, value) in [
            ("app.token_file", "/etc/pg/token"),
            ("vault.token_command", "/usr/bin/fetch %p"),
            ("passwordcheck.min_password_length", "12"),
            ("credcheck.password_valid", "on"),
            ("app.token", ""),
            ("ssl_passphrase_command_supports_reload", "on"),
            ("md5_password_warnings", "off"),
            ("shared_preload_libraries", "passwordcheck,auto_explain"),
        ] {
            assert_eq!(refused(name, Some(value)), None, "{name}");
        }
    }

    #[test]
    fn more_goes_to_the_standbys_first_and_less_to_the_primary() {
        assert_eq!(restart_order("max_connections", "100", "200"), Some("standbys first"));
        assert_eq!(restart_order("max_connections", "200", "100"), Some("the primary first"));
        assert_eq!(restart_order("shared_buffers", "16384", "32768"), None);
    }

    #[test]
    fn what_is_misspelt_is_found() {
        let known = ["work_mem", "maintenance_work_mem", "max_connections"];
        assert_eq!(nearest("wrok_mem", known.into_iter()), Some("work_mem"));
        assert_eq!(nearest("max_conections", known.into_iter()), Some("max_connections"));
        assert_eq!(nearest("colour", known.into_iter()), None);
    }
}
