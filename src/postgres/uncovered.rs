//! Who is not covered by the rule of commits, as far as PostgreSQL shows it: `pg_db_role_setting` (manual, 53.15),
//! `pg_stat_replication`, `pg_file_settings` (54.8).

use std::time::Duration;

use serde::Deserialize;

use super::{
    instance::Instance,
    session::{Session, SqlError},
};

/// What `ALTER SYSTEM` sets of these is undone. Both are the agent's on a primary; the second where a rule is in force.
pub const NAMES: &str = "synchronous_standby_names";
/// See [`NAMES`].
pub const LEVEL: &str = "synchronous_commit";

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct Findings {
    /// Every `synchronous_commit` of a role, a database or both.
    pub levels: Vec<LevelFound>,
    /// Every WAL sender.
    pub senders: Vec<SenderFound>,
    /// What `postgresql.auto.conf` says of [`NAMES`] and [`LEVEL`].
    pub overrides: Vec<OverrideFound>,
}

/// One `ALTER ROLE … SET` or `ALTER DATABASE … SET`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct LevelFound {
    /// `None`: everybody.
    pub role: Option<String>,
    /// `None`: all.
    pub database: Option<String>,
    /// As it was written.
    pub level: String,
    /// Sessions of theirs.
    pub sessions: u32,
}

/// A WAL sender.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct SenderFound {
    /// Its name.
    pub name: String,
    /// Where its client is; `None`: it came over the socket.
    pub address: Option<String>,
    /// As whom it logged in; `None`: the role is gone.
    pub role: Option<String>,
    /// Its process.
    pub pid: u32,
    /// When it began, in microseconds of the server's clock. Only the order of two means something.
    pub began: i64,
}

/// One `ALTER SYSTEM SET`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct OverrideFound {
    /// The setting.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// As JSON, for the names may have anything in them. `pg_file_settings` reads the files, and so says what is in force or will
/// be with the next reload.
const QUERY: &str = "\
SELECT json_build_object(
  'levels', (SELECT coalesce(json_agg(json_build_object('role', r.rolname, 'database', d.datname,
      'level', substr(c, strpos(c, '=') + 1),
      'sessions', (SELECT count(*) FROM pg_stat_activity a WHERE a.backend_type = 'client backend'
        AND (s.setrole = 0 OR a.usesysid = s.setrole) AND (s.setdatabase = 0 OR a.datid = s.setdatabase)))
      ORDER BY r.rolname, d.datname), '[]')
    FROM pg_db_role_setting s CROSS JOIN unnest(s.setconfig) c
      LEFT JOIN pg_roles r ON r.oid = s.setrole LEFT JOIN pg_database d ON d.oid = s.setdatabase
    WHERE lower(c) LIKE 'synchronous\\_commit=%'),
  'senders', (SELECT coalesce(json_agg(json_build_object('name', coalesce(application_name, ''),
      'address', host(client_addr), 'role', usename, 'pid', pid,
      'began', (extract(epoch FROM backend_start) * 1000000)::bigint) ORDER BY pid), '[]')
    FROM pg_stat_replication),
  'overrides', (SELECT coalesce(json_agg(json_build_object('name', lower(name), 'value', coalesce(setting, ''))
      ORDER BY name), '[]')
    FROM pg_file_settings WHERE sourcefile LIKE '%/postgresql.auto.conf'
      AND lower(name) IN ('synchronous_standby_names', 'synchronous_commit'))
)::text";

impl Session {
    /// Who is not covered by the rule of commits.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn uncovered(&self, deadline: Duration) -> Result<Findings, SqlError> {
        let doing = "looking for commits that wait for nobody";
        let rows = self.query(doing, QUERY, deadline).await?;
        let text = rows.first().and_then(|row| row.get(0)).unwrap_or_default();
        serde_json::from_str(text).map_err(|e| SqlError::Unexpected { doing, problem: e.to_string() })
    }

    /// Takes what `ALTER SYSTEM` has set of this name back, and makes the server read its files. It goes from that value to
    /// the one of the live configuration in one step: it is read in the same pass, and so is never without either.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn undo_override(&self, name: &'static str, deadline: Duration) -> Result<(), SqlError> {
        let doing = "undoing what ALTER SYSTEM has set";
        // A statement of its own: it can't run in a transaction, which two in one message would be.
        self.query(doing, &format!("ALTER SYSTEM RESET {name}"), deadline).await?;
        self.reload().await
    }
}

impl Instance {
    /// The role that standbys of members log in as.
    pub fn replication_user(&self) -> &str {
        &self.config().replication_user
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_answers_is_read_whatever_the_names_have_in_them() {
        let text = r#"{"levels" : [{"role" : "a\tb", "database" : null, "level" : "OFF", "sessions" : 3}],
            "senders" : [{"name" : "n2_g1e7", "address" : null, "role" : "postgres", "pid" : 7, "began" : 12}],
            "overrides" : []}"#;
        let found: Findings = serde_json::from_str(text).unwrap();
        assert_eq!((found.levels[0].role.as_deref(), found.levels[0].sessions), (Some("a\tb"), 3));
        assert_eq!((found.senders[0].address.as_deref(), found.senders[0].pid), (None, 7));
    }
}
