//! Makes the first data directory of a cluster: by initdb, by a program of the operator's, or from a backup that is
//! recovered to a point in time; then what the configuration wants in it, and the operator's last command.
//!
//! All is done in `<data_dir>.initdb-tmp`, which is put in place when it is complete: what is cut off leaves a directory
//! that the next try removes. Another way of filling it (a backup tool that is known by name, say) is one more
//! [`ContentSource`] and one more arm in [`Instance::fill`].

use std::{
    ffi::OsString,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Mutex,
};

use super::{
    backup::{self, BackupError},
    command::{Changes, Helper, HelperError, OnProgress, Progress},
    conf,
    controldata::DbState,
    error::PostgresError,
    files::{self, OperationLock},
    inhabitants::Verifiers,
    initdb::{DEADLINE, waiting},
    instance::{DataState, Instance},
    private::{self, PrivateError, PrivateServer, Settings},
};
use crate::config::{ContentSource, HookCommand, PasswordSource, RecoveryTarget};

/// The first data directory was not made. Nothing is left in its place.
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
    /// The data directory can't be taken over. It is as it was.
    #[error("it is not adopted: {why}")]
    NotAdopted {
        /// Each reason.
        why: String,
    },
    /// A password of a role can't be used.
    #[error("the password of role {role}: {problem}")]
    Password {
        /// Whose.
        role: String,
        /// Why not.
        problem: String,
    },
    /// The backup can't be used.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The operator's command failed.
    #[error("{key} failed")]
    Hook {
        /// Which.
        key: &'static str,
        /// Its words.
        #[source]
        source: HelperError,
    },
    /// What was filled in is no data directory that could be used.
    #[error("{what} left {problem}")]
    Filled {
        /// By what.
        what: &'static str,
        /// What is there.
        problem: String,
    },
    /// The recovery failed.
    #[error("the recovery to {target} failed")]
    Recovery {
        /// Where it was to end.
        target: RecoveryTarget,
        /// Why it didn't.
        #[source]
        source: PrivateError,
    },
    /// The private server failed otherwise.
    #[error(transparent)]
    Server(PrivateError),
    /// A role, a database or an extension could not be made.
    #[error("making {what}")]
    Inhabitant {
        /// Which.
        what: String,
        /// Why not.
        #[source]
        source: super::session::SqlError,
    },
    /// A step failed.
    #[error(transparent)]
    Step(#[from] PostgresError),
}

/// Who hears how far it is, and where what the programs say is kept.
#[derive(Clone, Copy)]
pub(super) struct Said<'a> {
    on_progress: OnProgress<'a>,
    log: &'a Mutex<fs::File>,
}

impl Said<'_> {
    pub(super) fn progress(&self, progress: Progress) {
        (self.on_progress)(progress);
    }

    /// A log that can't be written holds nothing up.
    pub(super) fn line(&self, line: &str) {
        let mut log = self.log.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _ = writeln!(log, "{line}");
    }
}

impl Instance {
    /// Makes the first data directory of a cluster by what the configuration says; returns its system identifier. The
    /// result is started as a standby that follows nobody, and then promoted.
    ///
    /// # Errors
    /// The data directory holds anything at all, or a step failed; then nothing is left in its place.
    pub async fn initdb(&self, on_progress: OnProgress<'_>) -> Result<u64, InitdbError> {
        let new = self.beside(".initdb-tmp");
        private::end_leftover(&new).await?;
        let lock = OperationLock::take(self.data_dir())?;
        let log = Mutex::new(private::append(&self.content_log())?);
        let said = Said { on_progress, log: &log };
        if self.config().bootstrap.source == ContentSource::Adopt {
            return self.adopt(&lock, said).await;
        }
        match self.data_state()? {
            DataState::Missing | DataState::Empty => {}
            other => {
                let data_dir = self.data_dir().display().to_string();
                return Err(InitdbError::NotEmpty { data_dir, state: format!("{other:?}") });
            }
        }
        // What can't be read is said before hours of work.
        let verifiers = self.verifiers()?;
        files::remove_tree(&new).await?;
        let made = self.fill_and_complete(&new, &lock, &verifiers, said).await;
        if let Err(error) = made {
            // Best effort: the next try begins with this.
            let _ = private::end_leftover(&new).await;
            let _ = files::remove_tree(&new).await;
            let _ = files::remove_tree(&self.private_dir()).await;
            return Err(error);
        }
        files::ensure(&new.join("standby.signal"), "")?;
        said.progress(Progress::phase("sync"));
        let sync = self.helper("initdb", DEADLINE).holding(lock.share()?).arg("--sync-only").arg("-D").arg(&new);
        sync.run(|_| ()).await.map_err(PostgresError::from)?;
        let system_identifier = self.control_data_of(&new)?.system_identifier;
        fs::rename(&new, self.data_dir()).map_err(PostgresError::file("putting in place", self.data_dir()))?;
        files::sync_parent(self.data_dir())?;
        Ok(system_identifier)
    }

    async fn fill_and_complete(
        &self,
        new: &Path,
        lock: &OperationLock,
        verifiers: &Verifiers,
        said: Said<'_>,
    ) -> Result<(), InitdbError> {
        let content = &self.config().bootstrap;
        self.fill(new, lock, said).await?;
        let inhabited = !content.roles.is_empty() || !content.databases.is_empty();
        if !inhabited && content.after.is_none() {
            return Ok(());
        }
        let mut server = self.private_server(new, lock, &[])?;
        server.open(self, DEADLINE, |_| ()).await?;
        if inhabited {
            said.progress(Progress::phase("roles and databases"));
            self.make_inhabitants(&server, verifiers).await?;
        }
        if let Some(command) = &content.after {
            said.progress(Progress::phase("bootstrap.post_command"));
            let mut env = self.hook_env(new);
            let socket = server.socket_dir().as_os_str().to_owned();
            let port = self.config().port.to_string();
            for (name, value) in [
                ("PGHOST", socket),
                ("PGPORT", port.into()),
                ("PGUSER", self.config().superuser.clone().into()),
                ("PGDATABASE", "postgres".into()),
            ] {
                env.push((name.into(), Some(value)));
            }
            let helper = hook(command, new, content.after_deadline, lock)?.own_env(env);
            run_hook("bootstrap.post_command", helper, said).await?;
        }
        server.stop().await?;
        Ok(())
    }

    /// Puts the data into `new`: a directory that was shut down cleanly, with our configuration and our two roles.
    async fn fill(&self, new: &Path, lock: &OperationLock, said: Said<'_>) -> Result<(), InitdbError> {
        let content = &self.config().bootstrap;
        let what = match &content.source {
            ContentSource::Initdb => return Ok(self.initdb_into(new, lock, said).await?),
            // It lies in its place already.
            ContentSource::Adopt => return Ok(()),
            ContentSource::Command(command) => {
                said.progress(Progress::phase("bootstrap.command"));
                make_dir(new)?;
                let helper = hook(command, new, content.deadline, lock)?.own_env(self.hook_env(new));
                run_hook("bootstrap.command", helper, said).await?;
                "bootstrap.command"
            }
            ContentSource::Backup(from) => {
                said.progress(Progress::phase("copying the backup"));
                make_dir(new)?;
                backup::unpack(from, new, content.deadline, || lock.share(), said).await?;
                if new.join("backup_manifest").exists() {
                    said.progress(Progress::phase("verifying the backup"));
                    // WAL may come from the archive, so what lies in the backup is not asked to be all.
                    let verify = self.helper("pg_verifybackup", content.deadline).holding(lock.share()?);
                    let verify = verify.args(["--quiet", "--exit-on-error", "--no-parse-wal"]).arg(new);
                    verify.run(|line| said.line(line)).await.map_err(PostgresError::from)?;
                }
                "the backup"
            }
        };
        self.check_filled(new, what)?;
        self.recover(new, lock, said).await?;
        keep_configuration(new)?;
        self.write_config_to(new, &waiting())?;
        said.progress(Progress::phase("roles"));
        self.make_own_roles(new, None).await?;
        Ok(())
    }

    fn check_filled(&self, new: &Path, what: &'static str) -> Result<(), InitdbError> {
        let filled = |problem: String| InitdbError::Filled { what, problem };
        match self.data_state_of(new)? {
            DataState::Present(_) => {}
            DataState::Missing | DataState::Empty => return Err(filled("nothing in the directory".to_owned())),
            DataState::Incomplete(why) | DataState::Foreign(why) => {
                return Err(filled(format!("no data directory: {why}")));
            }
        }
        let pid = new.join("postmaster.pid");
        if pid.exists() {
            return Err(filled(format!(
                "{}: it is the copy of a directory in use, or a server runs in it",
                pid.display()
            )));
        }
        fs::set_permissions(new, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .map_err(PostgresError::file("closing", new))?;
        Ok(())
    }

    /// Takes a copy to where the configuration says, or to the end of the WAL it has. What was shut down cleanly, and is to be
    /// recovered no further, is left as it is.
    async fn recover(&self, new: &Path, lock: &OperationLock, said: Said<'_>) -> Result<(), InitdbError> {
        let (recovery, deadline) = (&self.config().bootstrap.recovery, self.config().bootstrap.deadline);
        let (recovery_signal, standby_signal) = (new.join("recovery.signal"), new.join("standby.signal"));
        // It would wait for ever for WAL that nobody sends.
        files::remove(&standby_signal)?;
        let by_the_tool = recovery_signal.exists();
        let clean = self.control_data_of(new)?.state == DbState::ShutDown && !new.join("backup_label").exists();
        if clean && !recovery.is_asked_for() && !by_the_tool {
            strip_recovery(new)?;
            return Ok(());
        }
        let mut more = Vec::new();
        if recovery.is_asked_for() {
            strip_recovery(new)?;
            // Without one all WAL has to be in the copy: PostgreSQL wants a command that says that it finds nothing.
            let command = recovery.restore_command.clone().unwrap_or_else(|| "false".to_owned());
            more.push(("restore_command", command));
            more.push(("recovery_target_timeline", recovery.timeline.clone()));
            more.push(("recovery_target_inclusive", if recovery.inclusive { "on" } else { "off" }.to_owned()));
            more.extend(recovery.target.setting());
            files::ensure(&recovery_signal, "")?;
        }
        said.progress(Progress::phase(format!("recovery to {}", recovery.target)));
        let failed = |source| match source {
            PrivateError::File(error) => InitdbError::Step(error),
            source => InitdbError::Recovery { target: recovery.target.clone(), source },
        };
        let mut server = self.private_server(new, lock, &more)?;
        let on_line = |line: &str| {
            if let Some(segment) = restored(line) {
                said.progress(Progress::phase(format!("recovery to {}, at {segment}", recovery.target)));
            }
        };
        server.open(self, deadline, on_line).await.map_err(failed)?;
        server.stop().await.map_err(failed)?;
        // Otherwise every start of this cluster would read an archive that goes on without it.
        strip_recovery(new)?;
        files::remove(&recovery_signal)?;
        self.check_recovered(new)
    }

    /// The cluster begins with this: what it can't read of it now nobody could tell it later.
    fn check_recovered(&self, new: &Path) -> Result<(), InitdbError> {
        let control = self.control_data_of(new)?;
        let history = new.join("pg_wal").join(control.timeline.history_file());
        let problem = if control.state != DbState::ShutDown {
            format!("a directory that was not shut down cleanly ({:?})", control.state)
        } else if control.timeline.0 > 1 && !history.exists() {
            format!("timeline {} without its history ({})", control.timeline, history.display())
        } else {
            return Ok(());
        };
        Err(InitdbError::Filled { what: "the recovery", problem })
    }

    fn private_server(
        &self,
        new: &Path,
        lock: &OperationLock,
        more: &[(&str, String)],
    ) -> Result<PrivateServer, InitdbError> {
        let settings = Settings {
            conf: self.private_conf(new, more)?,
            // Before those of postgresql.auto.conf, which may be of another cluster.
            args: [
                "listen_addresses=",
                "ssl=off",
                "archive_mode=off",
                "hot_standby=off",
                "synchronous_standby_names=",
                "primary_conninfo=",
                "primary_slot_name=",
                "recovery_target_action=promote",
                "restart_after_crash=off",
                "log_destination=stderr",
                "logging_collector=off",
                "lc_messages=C",
                // No statement with a verifier in it is written anywhere.
                "log_statement=none",
                "log_min_error_statement=panic",
                "log_min_duration_statement=-1",
                "log_min_duration_sample=-1",
                "log_transaction_sample_rate=0",
            ]
            .map(str::to_owned)
            .to_vec(),
            env: self.hook_env(new),
        };
        Ok(PrivateServer::start(self, (new, &self.private_dir()), settings, lock.share()?)?)
    }

    /// What a program of the operator's finds in its environment beside what the agent has: no password of a role.
    fn hook_env(&self, new: &Path) -> Changes {
        let cfg = self.config();
        let passwords = cfg.bootstrap.roles.iter().filter_map(|role| match &role.password {
            Some(PasswordSource::Environment(variable)) => Some((OsString::from(variable), None)),
            Some(PasswordSource::File(_)) | None => None,
        });
        let told =
            [("MATRIARCH_DATA_DIR", new.as_os_str().to_owned()), ("MATRIARCH_BIN_DIR", cfg.bin_dir.clone().into())];
        passwords.chain(told.map(|(name, value)| (name.into(), Some(value)))).collect()
    }
}

fn make_dir(dir: &Path) -> Result<(), PostgresError> {
    private::private_dir(dir)
}

fn hook(
    command: &HookCommand,
    dir: &Path,
    deadline: std::time::Duration,
    lock: &OperationLock,
) -> Result<Helper, PostgresError> {
    let filled = command.filled(dir);
    let (program, args) = filled.split_first().map_or(("", &[][..]), |(program, args)| (program.as_str(), args));
    Ok(Helper::new(Path::new("/"), program, deadline).args(args).holding(lock.share()?))
}

async fn run_hook(key: &'static str, helper: Helper, said: Said<'_>) -> Result<(), InitdbError> {
    let ran = helper.run(|line| said.line(line)).await;
    ran.map(drop).map_err(|source| InitdbError::Hook { key, source })
}

/// The segment of WAL that a line of PostgreSQL's log says was fetched.
fn restored(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("restored log file \"")?;
    rest.split_once('"').map(|(segment, _)| segment)
}

fn strip_recovery(dir: &Path) -> Result<(), PostgresError> {
    let auto_conf = dir.join("postgresql.auto.conf");
    match fs::read_to_string(&auto_conf).ok().and_then(|text| conf::without_recovery(&text)) {
        Some(kept) => files::replace(&auto_conf, &kept),
        None => Ok(()),
    }
}

/// What somebody had configured is for people to read from now on.
fn keep_configuration(dir: &Path) -> Result<(), PostgresError> {
    for name in ["postgresql.conf", "pg_hba.conf"] {
        let file = dir.join(name);
        let ours = fs::read_to_string(&file).map_or(true, |text| text.starts_with(conf::WRITTEN_BY_US));
        if !ours {
            let kept: PathBuf = files::beside(&file, ".before-matriarch");
            fs::rename(&file, &kept).map_err(PostgresError::file("putting aside", &file))?;
        }
    }
    files::sync(dir)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_log_says_how_far_a_recovery_is() {
        let line = "2026-11-27 [1] LOG:  restored log file \"00000001000000000000000A\" from archive";
        assert_eq!(restored(line), Some("00000001000000000000000A"));
        assert_eq!(restored("LOG:  redo starts at 0/2000028"), None);
    }

    #[test]
    fn what_told_the_recovery_where_to_end_goes_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("postgresql.auto.conf");
        let text = "work_mem = '8MB'\nrestore_command = 'pgbackrest x'\nrecovery_target_time='2026'\nRecovery_Target_Action = 'x'\n";
        fs::write(&file, text).unwrap();
        strip_recovery(dir.path()).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "work_mem = '8MB'\n");
    }

    #[test]
    fn a_configuration_of_somebody_else_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("postgresql.conf"), "port = 5432\n").unwrap();
        fs::write(dir.path().join("pg_hba.conf"), format!("{} x\n", conf::WRITTEN_BY_US)).unwrap();
        keep_configuration(dir.path()).unwrap();
        assert!(dir.path().join("postgresql.conf.before-matriarch").exists());
        assert!(dir.path().join("pg_hba.conf").exists());
    }
}
