//! What the rule of commits does not cover on a primary, as far as PostgreSQL shows it, and WAL that was lost with one.
//!
//! A session's own `SET synchronous_commit`, and what a client puts into its connection (`PGOPTIONS`), nobody else can see.

use std::{collections::BTreeSet, fmt};

use super::{Confirms, Lsn, WalPosition};

/// What a primary's commits wait for less than they are to, or are confirmed by that is no member.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Uncovered {
    /// Roles and databases whose sessions begin with less than is set.
    pub levels: Vec<OwnLevel>,
    /// Connections that confirm commits under the name of a member, and are not that member.
    pub imitators: Vec<Imitator>,
    /// Other WAL senders that are no members: backups, `pg_receivewal`, standbys of others. They confirm nothing.
    pub others: u32,
    /// `ALTER SYSTEM` of what the agent writes, which wins over it until it is undone.
    pub overrides: Vec<Override>,
}

/// `ALTER ROLE … SET synchronous_commit`, or the like (`pg_db_role_setting`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct OwnLevel {
    /// Whose sessions; empty: everybody's.
    pub role: String,
    /// In which database; empty: in all.
    pub database: String,
    /// `off`, `local`, `remote_write`, or `on` where `remote_apply` is set.
    pub level: String,
    /// Sessions of theirs that are connected, whatever they have set since.
    pub sessions: u32,
}

/// Somebody who confirms commits as a member.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Imitator {
    /// The name it came with.
    pub name: String,
    /// Where from; empty: over the host's own socket.
    pub address: String,
    /// How it is known.
    pub why: String,
}

/// A setting of the agent that somebody has overridden.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Override {
    /// `synchronous_standby_names` or `synchronous_commit`.
    pub name: String,
    /// What it was set to.
    pub value: String,
}

impl Uncovered {
    /// A line for each, without what changes all the time.
    pub fn words(&self) -> BTreeSet<String> {
        let levels = self.levels.iter().map(|level| format!("commits are not waited for: {level}"));
        let imitators = self.imitators.iter().map(ToString::to_string);
        let overrides = self.overrides.iter().map(ToString::to_string);
        levels.chain(imitators).chain(overrides).collect()
    }
}

impl fmt::Display for OwnLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.role.as_str(), self.database.as_str()) {
            ("", "") => f.write_str("every role")?,
            (role, "") => write!(f, "role {role}")?,
            ("", database) => write!(f, "database {database}")?,
            (role, database) => write!(f, "role {role} in database {database}")?,
        }
        write!(f, " ({})", self.level)
    }
}

impl fmt::Display for Imitator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = if self.address.is_empty() { "the host's own socket" } else { &self.address };
        write!(f, "commits are confirmed by {} from {from}: {}", self.name, self.why)
    }
}

impl fmt::Display for Override {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ALTER SYSTEM has set {} = '{}', which is the cluster's to set: it is undone, and until then the rule of \
             commits is not in effect",
            self.name, self.value
        )
    }
}

/// How much a commit waits for; the more the later (PostgreSQL manual, 20.5.1 `synchronous_commit`). `None`: no such value.
fn rank(level: &str) -> Option<u32> {
    Some(match level.to_ascii_lowercase().as_str() {
        "off" | "false" | "no" | "0" => 0,
        "local" => 1,
        "remote_write" => 2,
        "on" | "true" | "yes" | "1" => 3,
        "remote_apply" => 4,
        _ => return None,
    })
}

/// A session at `level` waits for less than is set. What is no level is told as well.
pub fn is_less(level: &str, set: Confirms) -> bool {
    rank(level) < rank(&set.to_string())
}

/// WAL that a former primary had and the cluster's history has not, counted before it was undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct LostWal {
    /// Where the cluster's history left its own: the timeline it was primary on.
    pub fork: WalPosition,
    /// Where its WAL ended.
    pub end: WalPosition,
    /// Transactions that were committed after that; `None`: they could not be counted, or not in time.
    pub transactions: Option<u64>,
    /// Its WAL was copied to [`diverged_name`] in `<data_dir>.kept` of its host.
    pub saved: bool,
}

/// The directory in which is kept what went from `fork` to `end` without the cluster.
pub fn diverged_name(fork: WalPosition, end: WalPosition) -> String {
    format!("t{}-{:X}-t{}-{:X}", fork.timeline, fork.lsn.0, end.timeline, end.lsn.0)
}

impl LostWal {
    /// What was lost, in bytes of WAL.
    pub fn bytes(&self) -> u64 {
        self.end.lsn.bytes_past(self.fork.lsn)
    }

    /// What is known without counting: `end` by its own word, `switch` where the next one began.
    pub fn by_word(end: WalPosition, switch: Lsn) -> LostWal {
        let fork = WalPosition { timeline: end.timeline, lsn: switch.min(end.lsn) };
        LostWal { fork, end, transactions: (end.lsn <= switch).then_some(0), saved: false }
    }
}

impl fmt::Display for LostWal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bytes, fork, end) = (self.bytes(), self.fork, self.end.lsn);
        match (bytes, self.transactions) {
            (0, _) => return f.write_str("nothing"),
            (_, Some(1)) => write!(f, "{bytes} bytes of WAL, 1 committed transaction")?,
            (_, Some(n)) => write!(f, "{bytes} bytes of WAL, {n} committed transactions")?,
            (_, None) => write!(f, "{bytes} bytes of WAL, its transactions were not counted")?,
        }
        write!(f, " (from {fork} to {end}")?;
        if self.saved {
            write!(f, "; its host saved it in DATA_DIR.kept/{}", diverged_name(self.fork, self.end))?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::domain::TimelineId;

    #[test]
    fn what_waits_for_less_than_is_set_is_told_by_whatever_spelling() {
        for less in ["off", "OFF", "false", "0", "no", "local", "remote_write", "nonsense"] {
            assert!(is_less(less, Confirms::Flush), "{less}");
        }
        for enough in ["on", "true", "1", "remote_apply"] {
            assert!(!is_less(enough, Confirms::Flush), "{enough}");
        }
        assert!(is_less("on", Confirms::Apply) && !is_less("remote_apply", Confirms::Apply));
    }

    #[test]
    fn roles_and_databases_have_names_and_their_sessions_make_no_news() {
        let level = |role: &str, database: &str, level: &str, sessions| OwnLevel {
            role: role.into(),
            database: database.into(),
            level: level.into(),
            sessions,
        };
        let seen = |sessions| Uncovered {
            levels: vec![level("app", "", "off", sessions), level("", "x", "local", 0), level("a", "x", "off", 1)],
            ..Uncovered::default()
        };
        let words: Vec<String> = seen(1).levels.iter().map(ToString::to_string).collect();
        assert_eq!(words, ["role app (off)", "database x (local)", "role a in database x (off)"]);
        assert_eq!(level("", "", "off", 0).to_string(), "every role (off)");
        assert_eq!(seen(1).words(), seen(7).words());
    }

    #[test]
    fn a_loss_is_told_in_bytes_and_transactions_as_far_as_they_are_known() {
        let at = |lsn| WalPosition { timeline: TimelineId(2), lsn: Lsn(lsn) };
        let lost = LostWal { fork: at(0x300), end: at(0x400), transactions: Some(2), saved: false };
        assert_eq!(lost.to_string(), "256 bytes of WAL, 2 committed transactions (from 2:0/300 to 0/400)");
        let saved = LostWal { saved: true, ..lost }.to_string();
        assert!(saved.ends_with("; its host saved it in DATA_DIR.kept/t2-300-t2-400)"), "{saved}");
        let uncounted = LostWal { transactions: None, ..lost }.to_string();
        assert!(uncounted.starts_with("256 bytes of WAL, its transactions were not counted"), "{uncounted}");
        assert_eq!(LostWal::by_word(at(0x300), Lsn(0x300)).to_string(), "nothing");
        assert_eq!(LostWal::by_word(at(0x300), Lsn(0x500)).to_string(), "nothing", "the next one had more");
        assert_eq!(LostWal::by_word(at(0x310), Lsn(0x300)).bytes(), 16);
    }
}
