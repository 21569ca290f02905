//! PostgreSQL reads its configuration anew because an operator wants it: what is wrong with its files, and what waits for a
//! restart (`pg_file_settings`, `pg_hba_file_rules`, `pg_settings`; manual, 54.8, 54.10, 54.25).

use std::time::Duration;

use tokio_postgres::SimpleQueryRow;

use super::session::{Session, SqlError};

/// So long the reload may take to arrive.
const DEADLINE: Duration = Duration::from_secs(5);

/// A setting that takes effect with a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Its name.
    pub name: String,
    /// As the server runs with it.
    pub now: String,
    /// As its files have it; `None`: they don't name it any more.
    pub written: Option<String>,
}

/// Where a file is wrong. What can only not be applied now, for it needs a restart, has the same words as a value that can't be:
/// of the settings that need one it is taken for the former.
const ERRORS: &str = "SELECT format('%s line %s: %s', f.sourcefile, f.sourceline, \
    CASE WHEN f.error = 'setting could not be applied' THEN f.name || ' can''t be that' ELSE f.error END) \
    FROM pg_file_settings f LEFT JOIN pg_settings s ON lower(s.name) = lower(f.name) WHERE f.error IS NOT NULL AND \
    NOT (f.error = 'setting could not be applied' AND s.context IS NOT DISTINCT FROM 'postmaster') \
    UNION ALL SELECT format('pg_hba.conf line %s: %s', line_number, coalesce(error, 'the log says why')) FROM pg_hba_file_rules \
    WHERE auth_method IS NULL \
    LIMIT 3";

/// `recovery_target…` of a member that was restored is no concern of anybody's.
const PENDING: &str = "SELECT s.name, current_setting(s.name), f.setting FROM pg_settings s LEFT JOIN LATERAL \
    (SELECT setting FROM pg_file_settings f WHERE lower(f.name) = lower(s.name) ORDER BY seqno DESC LIMIT 1) f ON true \
    WHERE s.pending_restart AND s.name NOT LIKE 'recovery_target%' ORDER BY 1";

impl Session {
    /// What is wrong with the configuration files as they are now, for people.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn configuration_errors(&self) -> Result<Vec<String>, SqlError> {
        let rows = self.query("looking for errors in the configuration", ERRORS, DEADLINE).await?;
        Ok(rows.iter().filter_map(|row| row.get(0).map(str::to_owned)).collect())
    }

    /// Makes the server read its files, waits until it has, and says what waits for a restart.
    ///
    /// # Errors
    /// See [`SqlError`]; after 5 s it has not read them.
    pub async fn reload_and_look(&self) -> Result<Vec<Pending>, SqlError> {
        let doing = "waiting until the configuration is read";
        let rows = self.query(doing, "SELECT pg_conf_load_time()", DEADLINE).await?;
        let before = rows.first().and_then(|row| row.get(0)).unwrap_or("-infinity").to_owned();
        self.reload().await?;
        // It is what the server itself has just written.
        self.until(doing, &format!("SELECT pg_conf_load_time() > '{before}'"), DEADLINE).await?;
        let rows = self.query("looking for settings that wait for a restart", PENDING, DEADLINE).await?;
        let text = |row: &SimpleQueryRow, at| row.get(at).map(str::to_owned);
        let pending = |row| Pending {
            name: text(row, 0).unwrap_or_default(),
            now: text(row, 1).unwrap_or_default(),
            written: text(row, 2),
        };
        Ok(rows.iter().map(pending).collect())
    }
}
