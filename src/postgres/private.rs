//! A PostgreSQL of our own, for the time in which the first data directory of a cluster is made: it recovers what was
//! restored, and takes the roles, the databases and the operator's command.
//!
//! Nobody else reaches it: it listens on a socket in a directory of the agent's user alone, and its directory is put in place
//! only when it has ended. It inherits the operation lock, so while one lives that an agent has left, no other begins;
//! [`end_leftover`] ends it.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::process::{Child, Command};

use super::{
    command::{Changes, change_env},
    error::PostgresError,
    files,
    instance::Instance,
    session::{Session, SqlError},
};

const POLL: Duration = Duration::from_millis(50);
/// A shutdown writes a checkpoint.
const STOP: Duration = Duration::from_secs(600);
const SIGQUIT_ENDS: Duration = Duration::from_secs(10);

/// The private server was no use.
#[derive(Debug, thiserror::Error)]
pub enum PrivateError {
    /// It ended before it let anybody in.
    #[error("PostgreSQL ended ({status}): {said} (its log is {})", log.display())]
    Ended {
        /// How.
        status: ExitStatus,
        /// Its last words.
        said: String,
        /// Where the rest stands.
        log: PathBuf,
    },
    /// It took too long.
    #[error("{doing} took longer than {} s; {at} (the log is {})", after.as_secs(), log.display())]
    Late {
        /// What it was at.
        doing: &'static str,
        /// The deadline.
        after: Duration,
        /// Where it was.
        at: String,
        /// Where the rest stands.
        log: PathBuf,
    },
    /// It could not be started, or waited for.
    #[error("{doing}")]
    Process {
        /// What was tried.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It did not take a connection.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// A file of it.
    #[error(transparent)]
    File(#[from] PostgresError),
}

/// What it is started with beside its directory.
pub(super) struct Settings {
    /// The text of its configuration file. `restore_command` may have secrets in it, so it stands here.
    pub(super) conf: String,
    /// Settings that go before those of `postgresql.auto.conf`; every user of the host sees them.
    pub(super) args: Vec<String>,
    pub(super) env: Changes,
}

/// One that runs. Dropping it ends it at once.
pub(super) struct PrivateServer {
    child: Child,
    /// Where its socket and its configuration are.
    dir: PathBuf,
    log: PathBuf,
    reader: Reader,
    ended: bool,
}

/// A directory that this user alone can enter; what is in it already goes.
pub(super) fn private_dir(dir: &Path) -> Result<(), PostgresError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(PostgresError::File { doing: "removing", path: dir.to_owned(), source: error });
        }
        Ok(()) | Err(_) => {}
    }
    fs::create_dir_all(dir).map_err(PostgresError::file("creating", dir))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(PostgresError::file("closing", dir))
}

impl PrivateServer {
    /// Starts it in `data`, with its files in `dir` and `lock` held.
    pub(super) fn start(
        instance: &Instance,
        (data, dir): (&Path, &Path),
        settings: Settings,
        lock: File,
    ) -> Result<PrivateServer, PrivateError> {
        private_dir(dir)?;
        files::replace(&dir.join("postgresql.conf"), &settings.conf)?;
        files::replace(&dir.join("pg_hba.conf"), "local all all trust\n")?;
        let log = instance.content_log();
        let out = append(&log)?;
        let reader = Reader::at_end(&log)?;
        let mut command = Command::new(instance.config().bin_dir.join("postgres"));
        command.arg("-D").arg(data);
        let files = [
            ("config_file", dir.join("postgresql.conf")),
            ("hba_file", dir.join("pg_hba.conf")),
            ("unix_socket_directories", dir.to_owned()),
        ];
        for (name, file) in files {
            let mut setting = OsString::from(format!("{name}="));
            setting.push(file);
            command.arg("-c").arg(setting);
        }
        for setting in &settings.args {
            command.arg("-c").arg(setting);
        }
        command.stdin(Stdio::from(lock)).stdout(Stdio::null()).stderr(Stdio::from(out)).process_group(0);
        change_env(&mut command, settings.env);
        command.env("LC_ALL", "C").env("TZ", "UTC");
        let child = command.spawn().map_err(|source| PrivateError::Process { doing: "starting PostgreSQL", source })?;
        Ok(PrivateServer { child, dir: dir.to_owned(), log, reader, ended: false })
    }

    /// Waits until it lets us in, which is when its recovery has ended. `on_line` hears its log.
    pub(super) async fn open(
        &mut self,
        instance: &Instance,
        deadline: Duration,
        mut on_line: impl FnMut(&str) + Send,
    ) -> Result<(), PrivateError> {
        let until = tokio::time::Instant::now() + deadline;
        loop {
            for line in self.reader.lines() {
                on_line(&line);
            }
            if let Some(status) = self.status()? {
                self.ended = true;
                self.reader.lines().iter().for_each(|line| on_line(line));
                return Err(PrivateError::Ended { status, said: self.reader.last_words(), log: self.log.clone() });
            }
            match instance.connect_private(&self.dir, "postgres").await {
                Ok(_) => return Ok(()),
                // Whatever else it says, it has come to where it lets people in: roles and databases may be others.
                Err(error @ SqlError::Database { .. }) if !error.is_not_yet() => return Ok(()),
                Err(_) => {}
            }
            if tokio::time::Instant::now() >= until {
                let at = self.reader.last.clone();
                let log = self.log.clone();
                return Err(PrivateError::Late { doing: "the recovery", after: deadline, at, log });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn status(&mut self) -> Result<Option<ExitStatus>, PrivateError> {
        self.child.try_wait().map_err(|source| PrivateError::Process { doing: "waiting for PostgreSQL", source })
    }

    /// A session as the superuser.
    pub(super) async fn connect(&self, instance: &Instance, database: &str) -> Result<Session, PrivateError> {
        Ok(instance.connect_private(&self.dir, database).await?)
    }

    /// Where its socket is.
    pub(super) fn socket_dir(&self) -> &Path {
        &self.dir
    }

    /// Ends it with a shutdown checkpoint.
    pub(super) async fn stop(mut self) -> Result<(), PrivateError> {
        self.signal(Signal::SIGINT);
        let ended = tokio::time::timeout(STOP, self.child.wait()).await;
        let (log, doing) = (self.log.clone(), "the shutdown");
        let status = match ended {
            Ok(Ok(status)) => status,
            Ok(Err(source)) => return Err(PrivateError::Process { doing: "waiting for PostgreSQL", source }),
            Err(_) => return Err(PrivateError::Late { doing, after: STOP, at: self.reader.last.clone(), log }),
        };
        self.ended = true;
        let _ = fs::remove_dir_all(&self.dir);
        match status.success() {
            true => Ok(()),
            false => {
                self.reader.lines();
                Err(PrivateError::Ended { status, said: self.reader.last_words(), log })
            }
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id().and_then(|id| i32::try_from(id).ok()) {
            // It may have ended in this moment.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for PrivateServer {
    fn drop(&mut self) {
        if !self.ended {
            // The immediate shutdown ends its children too, which a SIGKILL would leave to themselves.
            self.signal(Signal::SIGQUIT);
        }
    }
}

/// Ends what an agent that was killed has left at work in `data`. Its directory goes anyhow.
pub(super) async fn end_leftover(data: &Path) -> Result<(), PrivateError> {
    let text = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let pid = text.lines().next().and_then(|line| line.trim().trim_start_matches('-').parse::<i32>().ok());
    let Some(pid) = pid.filter(|pid| works_in(*pid, data)) else { return Ok(()) };
    tracing::warn!(pid, "the private PostgreSQL of an earlier try is ended");
    for (signal, patience) in [(Signal::SIGQUIT, SIGQUIT_ENDS), (Signal::SIGKILL, SIGQUIT_ENDS)] {
        let _ = kill(Pid::from_raw(pid), signal);
        let until = tokio::time::Instant::now() + patience;
        while tokio::time::Instant::now() < until {
            if !works_in(pid, data) {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    }
    let source = io::Error::other(format!("process {pid} does not end"));
    Err(PrivateError::Process { doing: "ending what an earlier agent has left", source })
}

/// By device and inode, as for the data directory itself.
fn works_in(pid: i32, data: &Path) -> bool {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let (Ok(here), Ok(there)) = (fs::metadata(data), fs::metadata(proc.join("cwd"))) else { return false };
    let zombie = fs::read_to_string(proc.join("stat")).is_ok_and(|stat| stat.contains(") Z "));
    pid > 1 && (here.dev(), here.ino()) == (there.dev(), there.ino()) && !zombie
}

/// Opens a log of the initial content for its owner alone.
pub(super) fn append(log: &Path) -> Result<File, PostgresError> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600).open(log).map_err(PostgresError::file("opening", log))
}

/// Follows a log from where it ends now.
struct Reader {
    file: File,
    /// A line of which the end is not there yet.
    rest: String,
    /// The last whole line.
    last: String,
    /// The last one that says why it ended.
    cry: Option<String>,
}

impl Reader {
    fn at_end(log: &Path) -> Result<Reader, PostgresError> {
        let open = || -> io::Result<File> {
            let mut file = File::open(log)?;
            file.seek(SeekFrom::End(0))?;
            Ok(file)
        };
        let file = open().map_err(PostgresError::file("reading", log))?;
        Ok(Reader { file, rest: String::new(), last: String::new(), cry: None })
    }

    /// What was written since the last time.
    fn lines(&mut self) -> Vec<String> {
        let mut bytes = Vec::new();
        // What can't be read now is read the next time.
        let _ = self.file.read_to_end(&mut bytes);
        self.rest.push_str(&String::from_utf8_lossy(&bytes));
        let mut lines = Vec::new();
        while let Some(end) = self.rest.find('\n') {
            let line: String = self.rest.drain(..=end).collect();
            lines.push(line.trim_end().to_owned());
        }
        for line in &lines {
            line.clone_into(&mut self.last);
            let cry = ["FATAL:  ", "PANIC:  "].iter().find_map(|cry| line.find(cry)).map(|at| line[at..].to_owned());
            // Whoever is turned away meanwhile is not why.
            if let Some(cry) = cry.filter(|cry| !cry.contains("the database system is")) {
                self.cry = Some(cry);
            }
        }
        lines
    }

    fn last_words(&self) -> String {
        self.cry.clone().unwrap_or_else(|| self.last.clone())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn the_log_is_followed_line_by_line_and_says_why_it_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = append(&path).unwrap();
        log.write_all(b"t [1] FATAL:  of another life\n").unwrap();
        let mut reader = Reader::at_end(&path).unwrap();
        log.write_all(b"t [2] LOG:  restored log file \"00").unwrap();
        assert!(reader.lines().is_empty());
        log.write_all(b"1\" from archive\nt [3] FATAL:  the database system is starting up\n").unwrap();
        assert_eq!(reader.lines()[0], "t [2] LOG:  restored log file \"001\" from archive");
        assert_eq!(reader.last_words(), "t [3] FATAL:  the database system is starting up");
        let why = "FATAL:  recovery ended before configured recovery target was reached";
        log.write_all(format!("t [2] {why}\nt [1] LOG:  shutting down\n").as_bytes()).unwrap();
        reader.lines();
        assert_eq!(reader.last_words(), why);
    }

    #[test]
    fn a_private_directory_is_empty_and_closed() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("initial");
        fs::create_dir(&place).unwrap();
        fs::write(place.join("old"), "").unwrap();
        private_dir(&place).unwrap();
        assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
        assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
