//! SQL to the local server over its unix socket, as the superuser; every call has a deadline.

use std::{error::Error as _, io, path::Path, time::Duration};

use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage, SimpleQueryRow, config::Host, error::SqlState};

use super::{error::PostgresError, files, instance::Instance, probe::waits_at_the_end};
use crate::domain::Lsn;

/// For calls that a healthy server answers at once.
const SHORT: Duration = Duration::from_secs(5);
/// A client asks for something so soon after it was let in, or means to wait.
const NEW: Duration = Duration::from_millis(100);
/// And its process is no older than this when it is let in: a router's connection that was opened ahead of its client
/// (`routing::spares`) is 100 ms old at most.
const WAITED: Duration = Duration::from_millis(150);
/// It is told to follow nobody, and nothing is received.
const SEVERED: &str = "SELECT current_setting('primary_conninfo') = '' AND NOT EXISTS \
                       (SELECT FROM pg_stat_activity WHERE backend_type = 'walreceiver')";

/// A call to the local server didn't succeed.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// Nobody listens on the socket.
    #[error("{doing}: nobody listens")]
    Refused {
        /// What was tried.
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No answer in time; the server may still be working on it.
    #[error("{doing}: no answer within {} ms", after.as_millis())]
    Timeout {
        /// What was tried.
        doing: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// The server answered with an error: it is alive.
    #[error("{doing}: {message} (SQLSTATE {sqlstate})")]
    Database {
        /// What was tried.
        doing: &'static str,
        /// Five characters.
        sqlstate: String,
        /// The server's words.
        message: String,
    },
    /// The connection broke in the middle.
    #[error("{doing}: the connection broke")]
    Broken {
        /// What was tried.
        doing: &'static str,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
    /// The server's answer, or what was needed to ask, isn't as expected.
    #[error("{doing}: {problem}")]
    Unexpected {
        /// What was tried.
        doing: &'static str,
        /// What is odd.
        problem: String,
    },
}

impl SqlError {
    pub(super) fn from_driver(doing: &'static str, error: tokio_postgres::Error) -> Self {
        if let Some(db) = error.as_db_error() {
            let (sqlstate, message) = (db.code().code().to_owned(), db.message().to_owned());
            return SqlError::Database { doing, sqlstate, message };
        }
        let kind = error.source().and_then(|e| e.downcast_ref::<io::Error>()).map(io::Error::kind);
        match kind {
            Some(kind @ (io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)) => {
                SqlError::Refused { doing, source: kind.into() }
            }
            // The backlog of the socket is full: somebody listens and doesn't accept.
            Some(io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                SqlError::Timeout { doing, after: Duration::ZERO }
            }
            _ => SqlError::Broken { doing, source: error },
        }
    }

    /// The server says that it can't take connections now: it starts or shuts down.
    pub fn is_not_yet(&self) -> bool {
        matches!(self, SqlError::Database { sqlstate, .. } if sqlstate == SqlState::CANNOT_CONNECT_NOW.code())
    }
}

/// How far replay has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replay {
    /// Up to here.
    pub replayed: Lsn,
    /// What was received by streaming in this life of the server; zero: nothing.
    pub received: Lsn,
    /// All local WAL was read, more is waited for.
    pub waits: bool,
    /// It is paused or delayed, which a promotion ends.
    pub held: bool,
}

impl Replay {
    /// There is nothing left that a promotion would have to wait for.
    pub fn is_through(&self) -> bool {
        self.held || (self.received > Lsn(0) && self.replayed >= self.received)
    }
}

/// One connection to the local server. Dropping it closes it.
pub struct Session {
    client: Client,
    connection: JoinHandle<()>,
    /// The startup process was seen waiting at the end of local WAL in this life of the server. It stays
    /// true: from then on receive and replay positions cover all WAL there is.
    pub(super) reached_wal_end: bool,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Instance {
    /// Connects to the local server.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn connect(&self) -> Result<Session, SqlError> {
        self.connect_within(SHORT).await
    }

    /// Connects to the local server within `deadline`.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn connect_within(&self, deadline: Duration) -> Result<Session, SqlError> {
        let instance = self.clone();
        let password = files::reading(move || instance.superuser_password());
        connect_as(self.local(), "connecting to the local server", password, deadline).await
    }

    /// The superuser on the socket.
    pub(super) fn local(&self) -> Config {
        let cfg = self.config();
        let mut target = Config::new();
        target.host_path(&cfg.socket_dir).port(cfg.port).user(&cfg.superuser);
        target
    }

    /// Connects to a server of our own that nobody else reaches, whose socket is in `socket_dir`.
    pub(super) async fn connect_private(&self, socket_dir: &Path, database: &str) -> Result<Session, SqlError> {
        let doing = "connecting to the server of the initial content";
        let mut target = Config::new();
        target.host_path(socket_dir).port(self.config().port).user(&self.config().superuser).dbname(database);
        target.application_name("matriarch").options("-c search_path=pg_catalog");
        let connected = tokio::time::timeout(SHORT, open(target, doing)).await;
        connected.unwrap_or(Err(SqlError::Timeout { doing, after: SHORT }))
    }
}

/// Of every session of the agent's.
const OPTIONS: &str = "-c synchronous_commit=local -c search_path=pg_catalog -c statement_timeout=0 -c lock_timeout=0 \
                       -c idle_session_timeout=0 -c idle_in_transaction_session_timeout=0 \
                       -c default_transaction_read_only=off -c local_preload_libraries= -c standard_conforming_strings=on";

/// Connects within `deadline`, in which the password is read as well.
pub(super) async fn connect_as(
    mut target: Config,
    doing: &'static str,
    password: impl Future<Output = Result<String, PostgresError>>,
    deadline: Duration,
) -> Result<Session, SqlError> {
    if target.get_dbname().is_none() {
        target.dbname("postgres");
    }
    // A missing synchronous standby must not hold up the agent's own sessions. And a superuser's session must not call
    // what others may have put into a schema on its path (CVE-2018-1058).
    // Nor may settings that are meant for clients end it, or keep it from connecting at all; the libraries of each session
    // are a superuser's to leave away, and only superusers come by the socket.
    let superuser = target.get_hosts().iter().all(|host| matches!(host, Host::Unix(_)));
    let libraries = if superuser { " -c session_preload_libraries=" } else { "" };
    target.application_name("matriarch").options(format!("{OPTIONS}{libraries}"));
    let connect = async {
        target.password(password.await.map_err(|e| SqlError::Unexpected { doing, problem: e.to_string() })?);
        open(target, doing).await
    };
    match tokio::time::timeout(deadline, connect).await {
        Ok(result) => result,
        Err(_) => Err(SqlError::Timeout { doing, after: deadline }),
    }
}

async fn open(target: Config, doing: &'static str) -> Result<Session, SqlError> {
    let connected = target.connect(NoTls).await;
    let (client, connection) = connected.map_err(|error| SqlError::from_driver(doing, error))?;
    let connection = tokio::spawn(async move {
        // Its error reaches the caller through the client.
        let _ = connection.await;
    });
    Ok(Session { client, connection, reached_wal_end: false })
}

impl Session {
    /// True when the server or the network has closed the connection.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Runs `sql` and returns its rows as text. After a time-out the statement is cancelled.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn query(
        &self,
        doing: &'static str,
        sql: &str,
        deadline: Duration,
    ) -> Result<Vec<SimpleQueryRow>, SqlError> {
        match tokio::time::timeout(deadline, self.client.simple_query(sql)).await {
            Ok(Ok(messages)) => Ok(messages
                .into_iter()
                .filter_map(|message| match message {
                    SimpleQueryMessage::Row(row) => Some(row),
                    _ => None,
                })
                .collect()),
            Ok(Err(error)) => Err(SqlError::from_driver(doing, error)),
            Err(_) => {
                let cancel = self.client.cancel_token();
                tokio::spawn(tokio::time::timeout(SHORT, async move { cancel.cancel_query(NoTls).await }));
                Err(SqlError::Timeout { doing, after: deadline })
            }
        }
    }

    /// The server is in recovery.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn is_standby(&self) -> Result<bool, SqlError> {
        let rows = self.query("asking whether it is a standby", "SELECT pg_is_in_recovery()", SHORT).await?;
        Ok(rows.first().and_then(|row| row.get(0)) == Some("t"))
    }

    /// Asks for the promotion and returns at once; see [`Session::await_primary`].
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn promote(&self) -> Result<(), SqlError> {
        let doing = "asking for the promotion";
        let rows = self.query(doing, "SELECT pg_promote(false)", SHORT).await?;
        match rows.first().and_then(|row| row.get(0)) {
            Some("t") => Ok(()),
            _ => Err(SqlError::Unexpected { doing, problem: "the server refused".to_owned() }),
        }
    }

    /// Waits until the server accepts writes.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn await_primary(&self, deadline: Duration) -> Result<(), SqlError> {
        self.until("waiting for the promotion", "SELECT NOT pg_is_in_recovery()", deadline).await
    }

    /// Waits until no WAL receiver runs: after a severing reload nothing is received any more.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn await_severed(&self, deadline: Duration) -> Result<(), SqlError> {
        self.until("waiting for the WAL receiver to end", SEVERED, deadline).await
    }

    /// It follows nobody, and no WAL receiver runs.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn is_severed(&self) -> Result<bool, SqlError> {
        let rows = self.query("looking for a WAL receiver", SEVERED, SHORT).await?;
        Ok(rows.first().and_then(|row| row.get(0)) == Some("t"))
    }

    /// With which connection string WAL is being received; `None`: none is.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn receives_from(&self) -> Result<Option<String>, SqlError> {
        let sql = "SELECT current_setting('primary_conninfo') FROM pg_stat_wal_receiver WHERE status = 'streaming'";
        let rows = self.query("looking at the WAL receiver", sql, SHORT).await?;
        Ok(rows.first().and_then(|row| row.get(0)).map(str::to_owned))
    }

    /// Ends the WAL receiver, if one runs. The startup process ends it after a reload as well, but only when it wants more WAL:
    /// not while replay is behind or paused. It begins no other one before it has read the configuration.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn end_receiver(&self) -> Result<(), SqlError> {
        let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walreceiver'";
        let rows = self.query("looking for the WAL receiver", sql, SHORT).await?;
        let pids = rows.iter().filter_map(|row| row.get(0)?.parse::<i32>().ok());
        for pid in pids.filter(|pid| *pid > 1) {
            // One that is gone meanwhile is what was wanted.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        }
        Ok(())
    }

    /// How far replay has come on a standby.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn replay(&self, deadline: Duration) -> Result<Replay, SqlError> {
        let sql = "SELECT coalesce(pg_last_wal_replay_lsn(), '0/0'), coalesce(pg_last_wal_receive_lsn(), '0/0'), \
                   (SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup' LIMIT 1)";
        let rows = self.query("looking at replay", sql, deadline.min(SHORT)).await?;
        let row = rows.first();
        let lsn = |column| row.and_then(|r| r.get(column)).and_then(|t| t.parse().ok()).unwrap_or_default();
        let event = row.and_then(|r| r.get(2)).unwrap_or_default();
        Ok(Replay {
            replayed: lsn(0),
            received: lsn(1),
            waits: waits_at_the_end(event),
            // The promotion ends either of them.
            held: matches!(event, "RecoveryPause" | "RecoveryApplyDelay"),
        })
    }

    /// Waits until no client is in a transaction that had begun when this was called. Those of clients that begin one after the
    /// other without end are not waited for. Who had only just been let in, and the backends `new`, may ask for something
    /// within 100 ms, and have an end to that.
    ///
    /// # Errors
    /// See [`SqlError`]; after `deadline` some are under way still.
    pub async fn await_transactions(&self, new: &[u32], deadline: Duration) -> Result<(), SqlError> {
        let doing = "waiting for transactions to end";
        let rows = self.query(doing, "SELECT clock_timestamp()", deadline.min(SHORT)).await?;
        let since = rows.first().and_then(|row| row.get(0)).unwrap_or_default();
        let new = Vec::from_iter(new.iter().map(u32::to_string)).join(",");
        let (ms, born_ms) = (NEW.as_millis(), (WAITED + NEW).as_millis());
        // It is what the server itself has just written.
        let sql = format!(
            "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'client backend' \
             AND pid <> pg_backend_pid() AND application_name <> 'matriarch' AND (xact_start <= '{since}' OR \
             (pid = ANY ('{{{new}}}') OR backend_start BETWEEN timestamptz '{since}' - interval '{born_ms} ms' AND '{since}') AND \
             (xact_start IS NOT NULL OR query = '' AND clock_timestamp() < timestamptz '{since}' + interval '{ms} ms')))"
        );
        self.until(doing, &sql, deadline).await
    }

    pub(super) async fn until(&self, doing: &'static str, sql: &str, deadline: Duration) -> Result<(), SqlError> {
        let poll = async {
            loop {
                let rows = self.query(doing, sql, SHORT).await?;
                if rows.first().and_then(|row| row.get(0)) == Some("t") {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(15)).await;
            }
        };
        tokio::time::timeout(deadline, poll).await.unwrap_or(Err(SqlError::Timeout { doing, after: deadline }))
    }

    /// Makes a checkpoint; on a standby a restartpoint.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn checkpoint(&self, deadline: Duration) -> Result<(), SqlError> {
        self.query("making a checkpoint", "CHECKPOINT", deadline).await.map(|_| ())
    }

    /// Makes the server read its configuration files again.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn reload(&self) -> Result<(), SqlError> {
        self.query("reloading the configuration", "SELECT pg_reload_conf()", SHORT).await.map(|_| ())
    }

    /// Writes a commit record and waits until it is flushed to this host's disk; no table is touched.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn probe_write(&self, deadline: Duration) -> Result<(), SqlError> {
        let sql = "SELECT pg_logical_emit_message(true, 'matriarch', '')";
        self.query("writing a probe", sql, deadline).await.map(|_| ())
    }
}
