//! Which settings of PostgreSQL a configuration may make, and which are Matriarch's.

use super::error::Wrong;

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
    ("recovery_min_apply_delay", "`matriarch config set recovery_min_apply_delay=… --member …`"),
    ("restart_after_crash", "a crashed primary is restarted only while its lease holds"),
    ("superuser_reserved_connections", "the agent's own connections are among them"),
    ("synchronous_standby_names", "it is the live catch against starts by hand"),
    ("trigger_file", "only a committed grant promotes"),
    ("unix_socket_directories", "set postgresql.socket_dir"),
    ("wal_log_hints", "pg_rewind needs it"),
    ("wal_receiver_status_interval", "it goes with the cluster's timings"),
    ("wal_receiver_timeout", "it goes with the cluster's timings"),
    ("wal_retrieve_retry_interval", "it goes with the cluster's timings"),
    ("wal_sender_timeout", "it goes with the cluster's timings"),
];

/// Checks one entry of `postgresql.parameters`, and gives its value as text for `postgresql.conf`.
pub(super) fn check(name: &str, value: &toml::Value) -> Result<String, Wrong> {
    let key = || format!("postgresql.parameters.{name}");
    let lower = name.to_ascii_lowercase();
    let well_formed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
    if name.is_empty() || !name.chars().all(well_formed) || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(Wrong::new(key(), "not the name of a PostgreSQL setting", "use letters, digits, `_` and `.`"));
    }
    if let Some((_, reason)) = OWNED.iter().find(|(owned, _)| *owned == lower) {
        return Err(Wrong::new(key(), "this setting belongs to Matriarch", format!("remove it ({reason})")));
    }
    if lower.starts_with("recovery_target") || lower.starts_with("include") {
        let advice = "remove it (Matriarch writes recovery settings and includes itself)";
        return Err(Wrong::new(key(), "this setting belongs to Matriarch", advice));
    }
    let text = match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        toml::Value::Boolean(true) => "on".to_owned(),
        toml::Value::Boolean(false) => "off".to_owned(),
        toml::Value::Datetime(_) | toml::Value::Array(_) | toml::Value::Table(_) => {
            let problem = format!("a value of type {} can't be a PostgreSQL setting", value.type_str());
            return Err(Wrong::new(key(), problem, "write text, a number or a boolean; lists as one text"));
        }
    };
    if lower == "archive_mode" && text.eq_ignore_ascii_case("always") {
        let problem = "a standby that archives as well would bring WAL into the archive that is no primary's";
        return Err(Wrong::new(key(), problem, "write on: the primary archives"));
    }
    if lower == "wal_level" && !["replica", "logical"].contains(&text.as_str()) {
        return Err(Wrong::new(
            key(),
            "standbys need `replica`, logical slots `logical`",
            "write one of them or nothing",
        ));
    }
    if text.chars().any(char::is_control) {
        return Err(Wrong::new(key(), "the value has a control character or spans lines", "write it on one line"));
    }
    Ok(text)
}
