//! Clients that write one row after the other, as fast as their pace allows,
//! and remember of each write when it began, when it ended and how.
//!
//! Every attempt has an identity of its own (writer, sequence number) and is
//! never repeated, so that an acknowledged row can be looked for afterwards.
//! The row says which server took it: a server in one life, from the start of
//! its postmaster on, is primary at most once.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::{task::JoinHandle, time::timeout};
use tokio_postgres::{
    Client, Config, NoTls,
    error::SqlState,
    types::{ToSql, Type},
};

use super::layout::{DATABASE, Layout, SUPERUSER, WORKLOAD_USER};

/// A write is begun at most this often by one writer.
const PACE: Duration = Duration::from_millis(5);
/// The direct probes are slower: they share the server with the writers.
const PROBE_PACE: Duration = Duration::from_millis(40);
/// Pause after an error, before connecting again.
const BACKOFF: Duration = Duration::from_millis(10);
/// A write that takes longer is given up.
const DEADLINE: Duration = Duration::from_secs(1);
/// The router holds a new connection until there is a primary.
const ROUTED_CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// A server in the multi-host string that doesn't answer within this is passed over.
const CONNECT_DEADLINE: Duration = Duration::from_secs(1);
/// A server that goes on to the next segment does so within this.
const SWITCH: Duration = Duration::from_millis(500);

const INSERT: &str = "insert into demo_writes (writer, seq) values ($1, $2) returning server";
const TABLE: &str = "create table if not exists demo_writes (
    writer text not null,
    seq bigint not null,
    server text not null default current_setting('listen_addresses') || ':' || current_setting('port') || ' since '
        || pg_postmaster_start_time(),
    primary key (writer, seq))";

/// The writer whose connection goes through the client host's router.
pub const ROUTED: &str = "routed";
/// The writer that knows all servers and looks for the one that accepts writes.
pub const MULTI_HOST: &str = "multi-host";
const PROBE: &str = "probe";

/// How a write ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Committed, by this server in this life.
    Acked(Arc<str>),
    /// Certainly not committed.
    Failed(String),
    /// The connection or the patience ended after the write had been sent.
    Unknown(String),
}

/// One write, begun and ended.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Name of the writer.
    pub writer: Arc<str>,
    /// Counts the writer's attempts.
    pub seq: i64,
    /// Before anything was sent, a new connection included.
    pub begun: Instant,
    /// When the outcome was known.
    pub ended: Instant,
    /// The outcome.
    pub outcome: Outcome,
}

impl Attempt {
    /// Who acknowledged the write.
    pub fn server(&self) -> Option<&str> {
        if let Outcome::Acked(server) = &self.outcome { Some(server) } else { None }
    }

    /// The write was acknowledged.
    pub fn is_acked(&self) -> bool {
        self.server().is_some()
    }

    /// It was made by a direct probe, which counts only for who accepts writes.
    pub fn is_probe(&self) -> bool {
        self.writer.starts_with(PROBE)
    }
}

/// All attempts so far, in the order of their ends. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Journal(Arc<Mutex<Vec<Attempt>>>);

impl Journal {
    fn lock(&self) -> MutexGuard<'_, Vec<Attempt>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Attempts that had not ended before `since`.
    pub(crate) fn since(&self, since: Instant) -> Vec<Attempt> {
        let all = self.lock();
        let first = all.partition_point(|a| a.ended < since);
        all[first..].to_vec()
    }

    /// Forgets what ended before `before`: a live view may run for days.
    pub(crate) fn forget(&self, before: Instant) {
        let mut all = self.lock();
        let first = all.partition_point(|a| a.ended < before);
        all.drain(..first);
    }

    fn push(&self, writer: &Arc<str>, seq: i64, begun: Instant, outcome: Outcome) {
        // The end is taken under the lock, so that the list is sorted by it.
        let mut all = self.lock();
        all.push(Attempt { writer: writer.clone(), seq, begun, ended: Instant::now(), outcome });
    }
}

/// The running writers; they end when this is dropped.
#[derive(Debug)]
pub(crate) struct Workload {
    /// What they did.
    pub(crate) journal: Journal,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Workload {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Workload {
    /// Nobody writes.
    pub(crate) fn none() -> Workload {
        Workload { journal: Journal::default(), tasks: Vec::new() }
    }

    /// Starts the two writers and one direct probe for each member.
    pub(crate) fn start(layout: &Layout) -> Result<Workload> {
        let journal = Journal::default();
        let mut tasks = Vec::new();
        let writers = [
            (ROUTED, routed(layout), ROUTED_CONNECT_DEADLINE),
            (MULTI_HOST, multi_host(layout)?, CONNECT_DEADLINE * layout.with_postgres().count() as u32),
        ];
        for (name, config, connect) in writers {
            let writer = Writer { name: name.into(), config, connect, seq: 0, journal: journal.clone() };
            tasks.push(tokio::spawn(writer.run()));
        }
        for member in layout.with_postgres() {
            let name = format!("{PROBE}-{}", member.name).into();
            let config = local(layout, member.runtime_dir(), member.postgres_port);
            let writer = Writer { name, config, connect: CONNECT_DEADLINE, seq: 0, journal: journal.clone() };
            tasks.push(tokio::spawn(writer.run_probe()));
        }
        Ok(Workload { journal, tasks })
    }
}

fn base(user: &str, password: &str) -> Config {
    let mut config = Config::new();
    config.user(user).password(password).connect_timeout(ROUTED_CONNECT_DEADLINE).tcp_user_timeout(DEADLINE);
    config.application_name("matriarch demo").keepalives(false);
    config
}

fn routed(layout: &Layout) -> Config {
    let mut config = base(WORKLOAD_USER, &layout.workload_password);
    config.dbname(DATABASE).host(&layout.client.address).port(layout.client.read_write_port);
    config
}

/// What an application would write that knows no router.
fn multi_host(layout: &Layout) -> Result<Config> {
    let list = |of: fn(&super::layout::Host) -> String| layout.with_postgres().map(of).collect::<Vec<_>>().join(",");
    let text = format!(
        "host={} port={} user={WORKLOAD_USER} password={} dbname={DATABASE} connect_timeout=1 \
         target_session_attrs=read-write application_name=matriarch_demo",
        list(|h| h.address.clone()),
        list(|h| h.postgres_port.to_string()),
        layout.workload_password,
    );
    let mut config: Config = text.parse().context("read the multi-host string")?;
    // Not in the string: libpq counts it in milliseconds, tokio-postgres in seconds.
    config.tcp_user_timeout(DEADLINE);
    Ok(config)
}

/// Over the unix socket, which no cut link hides.
fn local(layout: &Layout, socket_dir: PathBuf, port: u16) -> Config {
    let mut config = base(WORKLOAD_USER, &layout.workload_password);
    config.dbname(DATABASE).host_path(socket_dir).port(port);
    config
}

/// A session that closes when dropped.
pub(crate) struct Session {
    pub(crate) client: Client,
    driver: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn connect(config: &Config) -> Result<Session, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    let driver = tokio::spawn(async move {
        // Its error reaches the client's calls too.
        let _ = connection.await;
    });
    Ok(Session { client, driver })
}

/// A session on that member itself, in the workload's database.
pub(crate) async fn connect_member(layout: &Layout, member: &str) -> Result<Session> {
    let host = layout.member(member)?;
    let config = local(layout, host.runtime_dir(), host.postgres_port);
    let session = timeout(Duration::from_secs(5), connect(&config)).await;
    session
        .map_err(anyhow::Error::from)
        .and_then(|r| Ok(r?))
        .with_context(|| format!("connect to PostgreSQL of {member}"))
}

/// Creates role, database and table on the primary.
pub(crate) async fn prepare(layout: &Layout, primary: &str) -> Result<()> {
    let host = layout.member(primary)?;
    let mut admin = base(SUPERUSER, &layout.superuser_password);
    admin.dbname("postgres").host_path(host.runtime_dir()).port(host.postgres_port);
    let admin = connect(&admin).await.with_context(|| format!("connect to {primary} as {SUPERUSER}"))?;
    let role = format!("create role {WORKLOAD_USER} login password '{}'", layout.workload_password);
    for sql in [role, format!("create database {DATABASE} owner {WORKLOAD_USER}")] {
        match admin.client.batch_execute(&sql).await {
            Err(e) if e.code() == Some(&SqlState::DUPLICATE_OBJECT) => {}
            Err(e) if e.code() == Some(&SqlState::DUPLICATE_DATABASE) => {}
            other => other.context("create the workload's role and database")?,
        }
    }
    let session = connect_member(layout, primary).await?;
    session.client.batch_execute(TABLE).await.context("create the workload's table")
}

/// Goes on to the next segment of WAL. It waits for nobody who doesn't answer.
pub(crate) async fn switch_wal(layout: &Layout, host: &str) -> Result<()> {
    let host = layout.member(host)?;
    let mut admin = base(SUPERUSER, &layout.superuser_password);
    admin.dbname("postgres").host_path(host.runtime_dir()).port(host.postgres_port);
    let switch = async {
        let admin = connect(&admin).await?;
        admin.client.batch_execute("select pg_switch_wal()").await.context("switch to another segment")
    };
    timeout(SWITCH, switch).await.context("switch to another segment")?
}

struct Writer {
    name: Arc<str>,
    config: Config,
    connect: Duration,
    seq: i64,
    journal: Journal,
}

impl Writer {
    async fn run(mut self) {
        let mut session = None;
        loop {
            let begun = Instant::now();
            self.seq += 1;
            let outcome = self.attempt(&mut session).await;
            let failed = !matches!(outcome, Outcome::Acked(_));
            self.journal.push(&self.name, self.seq, begun, outcome);
            if failed {
                session = None;
                tokio::time::sleep(BACKOFF).await;
            } else {
                tokio::time::sleep_until((begun + PACE).into()).await;
            }
        }
    }

    /// Writes wherever it can and remembers only what was acknowledged.
    async fn run_probe(mut self) {
        let mut session = None;
        loop {
            let begun = Instant::now();
            if self.accepts_writes(&mut session).await {
                self.seq += 1;
                let outcome = self.attempt(&mut session).await;
                match outcome {
                    Outcome::Acked(_) => self.journal.push(&self.name, self.seq, begun, outcome),
                    Outcome::Failed(_) | Outcome::Unknown(_) => session = None,
                }
            }
            tokio::time::sleep_until((begun + PROBE_PACE).into()).await;
        }
    }

    async fn accepts_writes(&self, session: &mut Option<Session>) -> bool {
        let asked = async {
            if session.is_none() {
                *session = Some(connect(&self.config).await.ok()?);
            }
            let client = &session.as_ref()?.client;
            let rows = client.query_typed("select pg_is_in_recovery()", &[]).await.ok()?;
            rows.first()?.try_get::<_, bool>(0).ok()
        };
        let in_recovery = timeout(DEADLINE, asked).await.ok().flatten();
        if in_recovery.is_none() {
            *session = None;
        }
        in_recovery == Some(false)
    }

    async fn attempt(&self, session: &mut Option<Session>) -> Outcome {
        if session.is_none() {
            match timeout(self.connect, connect(&self.config)).await {
                Ok(Ok(new)) => *session = Some(new),
                Ok(Err(e)) => return Outcome::Failed(format!("connect: {}", chain(&e))),
                Err(_) => return Outcome::Failed("connect: given up".to_owned()),
            }
        }
        let Some(session) = session.as_ref() else { return Outcome::Failed("no session".to_owned()) };
        let name = &*self.name;
        let values: [(&(dyn ToSql + Sync), Type); 2] = [(&name, Type::TEXT), (&self.seq, Type::INT8)];
        match timeout(DEADLINE, session.client.query_typed(INSERT, &values)).await {
            Ok(Ok(rows)) => {
                let server = rows.first().and_then(|r| r.try_get::<_, &str>(0).ok()).unwrap_or_default();
                Outcome::Acked(server.into())
            }
            Ok(Err(e)) => classify(&e),
            Err(_) => Outcome::Unknown("write: given up".to_owned()),
        }
    }
}

/// An error of the server means that nothing was committed, but for a shutdown
/// that may have come after the commit.
fn classify(e: &tokio_postgres::Error) -> Outcome {
    let text = format!("write: {}", chain(e));
    let by_shutdown = [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN, SqlState::QUERY_CANCELED];
    match e.code() {
        Some(code) if !by_shutdown.contains(code) => Outcome::Failed(text),
        _ => Outcome::Unknown(text),
    }
}

fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(e) = source {
        text = format!("{text}: {e}");
        source = e.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::CommandExt as _, path::Path, process::Command};

    use super::*;
    use crate::demo::{checker, processes::OsUser};

    /// A plain PostgreSQL where the demo expects one member's, stopped when dropped.
    struct Plain {
        layout: Layout,
        _dir: tempfile::TempDir,
    }

    impl Plain {
        fn start() -> Option<Plain> {
            let dir = tempfile::tempdir().unwrap();
            let mut layout = Layout::plan(dir.path(), 1, None).unwrap();
            layout.user = nix::unistd::geteuid().is_root().then(|| OsUser::find("postgres").unwrap());
            layout.bin_dir = crate::demo::cluster::find_postgresql().ok()?;
            // There is no router here; its port is the server's.
            layout.client.read_write_port = layout.members[0].postgres_port;
            layout.write().unwrap();
            let plain = Plain { layout, _dir: dir };
            let data = plain.data();
            plain.run("initdb", &["-D", &data, "-U", SUPERUSER, "-A", "scram-sha-256", "--no-sync", "--pwfile"]);
            plain.control("start");
            Some(plain)
        }

        fn data(&self) -> String {
            self.layout.members[0].data_dir().display().to_string()
        }

        fn run(&self, program: &str, args: &[&str]) {
            let host = &self.layout.members[0];
            let mut command = Command::new(self.layout.bin_dir.join(program));
            command.args(args).current_dir(&host.dir);
            if program == "initdb" {
                command.arg(host.dir.join("superuser.pass"));
            }
            if let Some(user) = &self.layout.user {
                command.uid(user.uid).gid(user.gid);
            }
            let out = command.output().unwrap();
            assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
        }

        fn control(&self, what: &str) {
            let host = &self.layout.members[0];
            let socket = host.runtime_dir().display().to_string();
            let options = format!("-p {} -k {socket} -c listen_addresses=127.0.0.1 -c fsync=off", host.postgres_port);
            let log = host.log("postgres").display().to_string();
            self.run("pg_ctl", &["-D", &self.data(), "-w", "-m", "immediate", "-l", &log, "-o", &options, what]);
        }
    }

    impl Drop for Plain {
        fn drop(&mut self) {
            if Path::new(&self.data()).join("postmaster.pid").exists() {
                self.control("stop");
            }
        }
    }

    async fn until_acked(journal: &Journal, writers: &[&str], since: Instant) {
        for writer in writers {
            while checker::recovery(&journal.since(since), writer, since, None).is_none() {
                assert!(since.elapsed() < Duration::from_secs(30), "{writer} does not write: {journal:?}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// All writers write, survive a crash of the server, and nothing acknowledged is missed;
    /// the two lives of the server don't overlap; a row deleted behind their backs is missed.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn writers_outlive_a_crash_and_the_check_finds_a_lost_row() {
        let Some(plain) = Plain::start() else {
            eprintln!("skipped: no PostgreSQL here");
            return;
        };
        let layout = &plain.layout;
        prepare(layout, "n1").await.unwrap();
        prepare(layout, "n1").await.unwrap();
        let began = Instant::now();
        let workload = Workload::start(layout).unwrap();
        let all = [ROUTED, MULTI_HOST, "probe-n1"];
        until_acked(&workload.journal, &all, began).await;

        let crash = Instant::now();
        tokio::task::block_in_place(|| plain.control("restart"));
        until_acked(&workload.journal, &all, Instant::now()).await;

        let attempts = workload.journal.since(began);
        let servers: std::collections::BTreeSet<_> = attempts
            .iter()
            .filter_map(|a| if let Outcome::Acked(server) = &a.outcome { Some(server.clone()) } else { None })
            .collect();
        assert_eq!(servers.len(), 2, "one server in two lives: {servers:?}");
        assert_eq!(checker::two_writers(&attempts), Duration::ZERO);
        assert!(checker::longest_gap(&attempts, ROUTED, crash, Instant::now()).unwrap() > Duration::from_millis(20));
        assert!(!checker::first_errors(&attempts, crash).is_empty());
        assert_eq!(checker::lost(layout, "n1", &attempts).await.unwrap(), 0);

        let session = connect_member(layout, "n1").await.unwrap();
        session.client.batch_execute("delete from demo_writes where writer = 'routed' and seq = 1").await.unwrap();
        assert_eq!(checker::lost(layout, "n1", &attempts).await.unwrap(), 1);
    }
}
