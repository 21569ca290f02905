//! A start that PostgreSQL refused because of its configuration: what its log says of it, and what follows.

use super::hands::{self, TURNED_AWAY};
use crate::{
    postgres::{AfterRefusal, Instance},
    telemetry::events,
};

/// What ends a start for what PostgreSQL is configured with. English: it runs with `LC_ALL=C`.
const CONFIGURATION: &[&str] = &[
    "contains errors", // a configuration file
    "unrecognized configuration parameter",
    "invalid value for parameter",
    "invalid list syntax in parameter",
    "could not load pg_hba.conf",
    // Libraries that are preloaded, and what they say of themselves.
    "could not access file",
    "could not load library",
    "incompatible library",
    "must be loaded via shared_preload_libraries",
    // TLS.
    "could not load server certificate file",
    "could not load private key file",
    "could not access private key file",
    "private key file ",
    "could not load root certificate file",
    "could not load SSL certificate revocation list",
    "could not set the cipher list",
    "could not set SSL protocol version range",
    "could not set minimum SSL protocol version",
    "could not set maximum SSL protocol version",
    "ECDH: unrecognized curve name",
    // Memory that is asked for at the start: `shared_buffers`, `huge_pages`, `max_connections`.
    "could not map anonymous shared memory",
    "could not create shared memory segment",
    "could not create semaphores",
    "not enough shared memory",
    // Settings that exclude each other.
    "must be less than max_connections",
    "WAL archival cannot be enabled when",
    "WAL streaming",
    "must be at least twice",
    "not supported by this build",
];
/// What every start says, and nothing of why it ended.
const USUAL: [&str; 6] = [
    "starting PostgreSQL",
    "listening on ",
    "database system is",
    "redirecting log output",
    "ending log output",
    // That of a primary, which a standby doesn't have.
    "skipping missing configuration file",
];
/// So many complaints are told before the last one.
const BEFORE: usize = 2;

/// Why PostgreSQL did not start, by its own words, when that is its configuration: the log of this start alone.
fn why(log: &str) -> Option<String> {
    // Whoever was let in shows that it could start.
    if log.contains("database system is ready to accept") {
        return None;
    }
    let says = |line: &str, cry: &str| line.find(cry).map(|from| line[from + 1..].trim_end().to_owned());
    let turned_away = |line: &str| TURNED_AWAY.iter().any(|words| line.contains(words));
    let lines: Vec<&str> = log.lines().collect();
    let last = lines.iter().rposition(|line| line.contains(" FATAL: ") && !turned_away(line))?;
    let end = says(lines[last], " FATAL: ")?;
    if !CONFIGURATION.iter().any(|words| end.contains(words)) {
        return None;
    }
    // What is wrong in a file stands in front of it.
    let complaints = lines[..last].iter().filter_map(|line| says(line, " LOG: "));
    let mut told: Vec<String> = complaints.filter(|line| !USUAL.iter().any(|words| line.contains(words))).collect();
    told.drain(..told.len().saturating_sub(BEFORE));
    told.push(end);
    Some(told.join("; "))
}

/// Nothing of PostgreSQL runs any more. When its configuration kept it from starting, the next start has another.
pub fn see_end(instance: &Instance) {
    let Some(from) = instance.start_under_way() else { return };
    let Some(why) = hands::log_since(instance.log_file(), from).and_then(|log| why(&log)) else { return };
    let told = match instance.start_refused(&why) {
        Some(AfterRefusal::FallsBack { from, to: 0 }) => {
            format!(
                "PostgreSQL does not start with the settings of version {from}: the next start has its host's file alone"
            )
        }
        Some(AfterRefusal::FallsBack { from, to }) => {
            format!(
                "PostgreSQL does not start with the settings of version {from}: the next start has those of version {to}"
            )
        }
        Some(AfterRefusal::TriedBoth) => {
            "PostgreSQL does not start with the settings with which it last did: the committed ones are tried next"
                .to_owned()
        }
        Some(AfterRefusal::NothingElse) => {
            "PostgreSQL does not start, and the settings are those with which it last did".to_owned()
        }
        None => return,
    };
    let at_work = instance.clone();
    // The disk may stand still, and the agent has to go on.
    drop(tokio::task::spawn_blocking(move || at_work.keep_started()));
    tracing::error!(event = events::CONFIGURATION_REFUSED, error = why, "{told}");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As PostgreSQL 15 says it.
    #[test]
    fn what_the_configuration_has_refused_is_told_in_postgresqls_words() {
        let told = |log: &str| why(log).unwrap_or_default();
        let hba = "2026-11-28 18:00:00.000 GMT [7] LOG:  starting PostgreSQL 15.18\n\
                   2026-11-28 18:00:00.001 GMT [7] LOG:  listening on IPv4 address \"127.0.0.1\", port 5432\n\
                   2026-11-28 18:00:00.002 GMT [7] LOG:  authentication method \"ldap\" requires argument \"ldapbasedn\", \"ldapprefix\", or \"ldapsuffix\" to be set\n\
                   2026-11-28 18:00:00.002 GMT [7] CONTEXT:  line 9 of configuration file \"/d/pg_hba.conf\"\n\
                   2026-11-28 18:00:00.003 GMT [7] FATAL:  could not load pg_hba.conf\n\
                   2026-11-28 18:00:00.004 GMT [7] LOG:  database system is shut down\n";
        assert_eq!(
            told(hba),
            "LOG:  authentication method \"ldap\" requires argument \"ldapbasedn\", \"ldapprefix\", or \"ldapsuffix\" to be set; \
             FATAL:  could not load pg_hba.conf"
        );
        for words in [
            "configuration file \"/d/postgresql.conf\" contains errors",
            "could not load server certificate file \"server.crt\": No such file or directory",
            "private key file \"server.key\" has group or world access",
            "could not access file \"timescaledb\": No such file or directory",
            "could not map anonymous shared memory: Cannot allocate memory",
            "WAL archival cannot be enabled when wal_level is \"minimal\"",
        ] {
            let log = format!(
                "t [7] LOG:  skipping missing configuration file \"live.conf\"\nt [7] FATAL:  {words}\nt [7] LOG:  database system is shut down\n"
            );
            assert_eq!(told(&log), format!("FATAL:  {words}"));
        }
    }

    #[test]
    fn other_ends_are_none_of_the_configurations() {
        for log in [
            "",
            "t [7] LOG:  starting PostgreSQL 15.18\n",
            "t [7] FATAL:  could not create any TCP/IP sockets\n",
            "t [7] FATAL:  lock file \"postmaster.pid\" already exists\n",
            "t [7] PANIC:  could not locate a valid checkpoint record\n",
            "t [8] FATAL:  the database system is starting up\n",
            // It started, and fell over later.
            "t [7] LOG:  database system is ready to accept read-only connections\nt [8] FATAL:  could not access file \"x\": No such file\n",
            // It was a session's.
            "t [9] FATAL:  role \"x\" does not exist\n",
        ] {
            assert_eq!(why(log), None, "{log}");
        }
    }
}
