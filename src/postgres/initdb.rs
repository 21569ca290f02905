//! An empty database, and the two roles that Matriarch itself needs in any.

use std::{path::Path, time::Duration};

use postgres_protocol::password::scram_sha_256;

use super::{
    command::Progress,
    conf::{ConfigRole, sql_identifier, sql_literal},
    content::Said,
    error::PostgresError,
    files::OperationLock,
    instance::Instance,
};
use crate::domain::{Epoch, Generation};

pub(super) const DEADLINE: Duration = Duration::from_secs(300);

impl Instance {
    /// Makes a new data directory in `new`, with checksums, hint-bit WAL, the superuser and the replication role.
    pub(super) async fn initdb_into(
        &self,
        new: &Path,
        lock: &OperationLock,
        said: Said<'_>,
    ) -> Result<(), PostgresError> {
        said.progress(Progress::phase("initdb"));
        let cfg = self.config();
        let mut pwfile = std::ffi::OsString::from("--pwfile=");
        pwfile.push(&cfg.superuser_password_file);
        self.superuser_password()?;
        let helper = self.helper("initdb", DEADLINE).holding(lock.share()?).arg("-D").arg(new).arg(pwfile);
        let helper = helper.arg(format!("--username={}", cfg.superuser)).args([
            "--data-checksums",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        ]);
        // Of two that say the same the last counts.
        let helper = helper.args(&cfg.bootstrap.initdb_options);
        helper.run(|line| said.line(line)).await?;
        // Before the first run: what it writes into pg_control (max_connections, …) is what a standby then demands.
        self.write_config_to(new, &waiting())?;
        said.progress(Progress::phase("roles"));
        self.make_own_roles(new, None).await
    }

    /// Makes the superuser and the replication role what the configuration says of them, in a directory in which no server runs.
    ///
    /// Through `postgres --single`, which needs no role that is there already. The statements go in by stdin: an argument would
    /// show the verifiers of the passwords to every user of the host. `config_file`: not that of the directory.
    pub(super) async fn make_own_roles(&self, dir: &Path, config_file: Option<&Path>) -> Result<(), PostgresError> {
        let sql = self.own_roles_sql()?;
        let mut helper = self.helper("postgres", DEADLINE).arg("--single").arg("-D").arg(dir).input(sql);
        if let Some(file) = config_file {
            let mut setting = std::ffi::OsString::from("config_file=");
            setting.push(file);
            helper = helper.arg("-c").arg(setting);
        }
        // A failed statement must fail the program, and no statement may be printed.
        for setting in [
            "exit_on_error=on",
            "log_min_error_statement=panic",
            "log_statement=none",
            "log_min_duration_statement=-1",
            "password_encryption=scram-sha-256",
            "standard_conforming_strings=on",
            "synchronous_standby_names=",
        ] {
            helper = helper.arg("-c").arg(setting);
        }
        helper.arg("postgres").run(|_| ()).await?;
        Ok(())
    }

    /// The statements for the two roles, one a line. They have the verifiers of the passwords in them.
    pub(super) fn own_roles_sql(&self) -> Result<String, PostgresError> {
        let cfg = self.config();
        let mut sql = own_role(&cfg.superuser, "SUPERUSER", &self.superuser_password()?);
        sql.push_str(&own_role(&cfg.replication_user, "REPLICATION", &self.replication_password()?));
        let role = sql_identifier(&cfg.replication_user);
        // pg_rewind reads the source with these four (PostgreSQL manual, pg_rewind, "Notes").
        let functions = [
            "pg_ls_dir(text, boolean, boolean)",
            "pg_stat_file(text, boolean)",
            "pg_read_binary_file(text)",
            "pg_read_binary_file(text, bigint, bigint, boolean)",
        ];
        for function in functions {
            sql.push_str(&format!("GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {role};\n"));
        }
        Ok(sql)
    }
}

/// A new directory is a standby that follows nobody until somebody is granted.
pub(super) fn waiting() -> ConfigRole {
    ConfigRole::Standby { upstream: None, epoch: Epoch(0), generation: Generation(0) }
}

/// Of what is restored the role may be there, with another password. One line each: so ends a statement in that mode.
fn own_role(name: &str, attribute: &str, password: &str) -> String {
    let (identifier, literal) = (sql_identifier(name), sql_literal(name));
    let verifier = sql_literal(&scram_sha_256(password.as_bytes()));
    format!(
        "DO $matriarch$ BEGIN IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {literal}) THEN \
         CREATE ROLE {identifier}; END IF; END $matriarch$;\n\
         ALTER ROLE {identifier} LOGIN {attribute} CONNECTION LIMIT -1 PASSWORD {verifier} VALID UNTIL 'infinity';\n"
    )
}
