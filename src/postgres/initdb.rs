//! Makes the first data directory of a cluster.

use std::{fs, path::Path, time::Duration};

use super::{
    command::{OnProgress, Progress},
    conf::{ConfigRole, sql_identifier, sql_literal},
    error::PostgresError,
    files::{self, OperationLock},
    instance::{DataState, Instance},
};
use crate::domain::{Epoch, Generation};

const DEADLINE: Duration = Duration::from_secs(300);

/// initdb was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum InitdbError {
    /// The data directory is not empty.
    #[error("initdb never runs over anything, and {data_dir} is there: {state}")]
    NotEmpty {
        /// The data directory.
        data_dir: String,
        /// What is in it.
        state: String,
    },
    /// A step failed.
    #[error(transparent)]
    Step(#[from] PostgresError),
}

impl Instance {
    /// Makes a new data directory with checksums, hint-bit WAL, the superuser and the replication role; returns
    /// its system identifier. All is done in `<data_dir>.initdb-tmp`, and renamed when it is complete. The result
    /// is started as a standby that follows nobody, and then promoted.
    ///
    /// # Errors
    /// The data directory holds anything at all, or a step failed; then nothing is left in its place.
    pub async fn initdb(&self, on_progress: OnProgress<'_>) -> Result<u64, InitdbError> {
        let lock = OperationLock::take(self.data_dir())?;
        match self.data_state()? {
            DataState::Missing | DataState::Empty => {}
            other => {
                let data_dir = self.data_dir().display().to_string();
                return Err(InitdbError::NotEmpty { data_dir, state: format!("{other:?}") });
            }
        }
        let new = self.beside(".initdb-tmp");
        files::remove_tree(&new).await?;
        on_progress(Progress::phase("initdb"));
        let cfg = self.config();
        let mut pwfile = std::ffi::OsString::from("--pwfile=");
        pwfile.push(&cfg.superuser_password_file);
        self.superuser_password()?;
        let helper = self.helper("initdb", DEADLINE).holding(lock.share()?).arg("-D").arg(&new).arg(pwfile);
        let helper = helper.arg(format!("--username={}", cfg.superuser)).args([
            "--data-checksums",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        ]);
        helper.run(|_| ()).await.map_err(PostgresError::from)?;
        // Before the first run: what it writes into pg_control (max_connections, …) is what a standby then demands.
        let role = ConfigRole::Standby { upstream: None, epoch: Epoch(0), generation: Generation(0) };
        self.write_config_to(&new, &role)?;
        on_progress(Progress::phase("roles"));
        self.create_replication_role(&new).await?;
        files::ensure(&new.join("standby.signal"), "")?;
        on_progress(Progress::phase("sync"));
        let sync = self.helper("initdb", DEADLINE).holding(lock.share()?).arg("--sync-only").arg("-D").arg(&new);
        sync.run(|_| ()).await.map_err(PostgresError::from)?;
        let system_identifier = self.control_data_of(&new)?.system_identifier;
        fs::rename(&new, self.data_dir()).map_err(PostgresError::file("putting in place", self.data_dir()))?;
        files::sync_parent(self.data_dir())?;
        Ok(system_identifier)
    }

    /// Through `postgres --single`, as there is no server yet. The statements go in by stdin: an argument would
    /// show the password to every user of the host.
    async fn create_replication_role(&self, dir: &Path) -> Result<(), PostgresError> {
        let role = sql_identifier(&self.config().replication_user);
        let password = sql_literal(&self.replication_password()?);
        // pg_rewind reads the source with these four (PostgreSQL manual, pg_rewind, "Notes").
        let functions = [
            "pg_ls_dir(text, boolean, boolean)",
            "pg_stat_file(text, boolean)",
            "pg_read_binary_file(text)",
            "pg_read_binary_file(text, bigint, bigint, boolean)",
        ];
        let mut sql = format!("CREATE ROLE {role} LOGIN REPLICATION PASSWORD {password};\n");
        for function in functions {
            sql.push_str(&format!("GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {role};\n"));
        }
        let mut helper = self.helper("postgres", DEADLINE).arg("--single").arg("-D").arg(dir).input(sql);
        // A failed statement must fail the program, and must not print itself with the password in it.
        for setting in [
            "exit_on_error=on",
            "log_min_error_statement=panic",
            "password_encryption=scram-sha-256",
            "standard_conforming_strings=on",
            "synchronous_standby_names=",
        ] {
            helper = helper.arg("-c").arg(setting);
        }
        helper.arg("postgres").run(|_| ()).await?;
        Ok(())
    }
}
