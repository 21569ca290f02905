//! Clients that never stop trying: on each member's unix socket and TCP port,
//! and through every router, all the time, also where writes are refused.
//!
//! A row says who took it (member, life of its postmaster, timeline) and when,
//! by a clock that all hosts share: the box's uptime, read by the server. The
//! client reads the same clock when it has the acknowledgement.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use matriarch::demo::rig::{Contact, Rig};
use nix::time::{ClockId, clock_gettime};
use tokio::{
    runtime::Runtime,
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_postgres::{Client as Session, Config, NoTls, Statement, error::SqlState};

use crate::{
    appends::{self, Appender, Appending},
    history::Txn,
};

/// Microseconds since boot, suspend included. No step of the wall clock moves it.
pub type Micros = u64;

/// Now.
pub fn now() -> Micros {
    let at = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap());
    at.as_micros() as Micros
}

/// Pause after an acknowledgement.
const PACE: Duration = Duration::from_millis(12);
/// Pause after "read-only": a standby is asked less often.
const REFUSED_PACE: Duration = Duration::from_millis(60);
/// Pause after any other error.
const BACKOFF: Duration = Duration::from_millis(40);
/// A transaction stays open this long between its row and its commit.
const OPEN: Duration = Duration::from_millis(120);
/// Longer than a router holds a connection.
pub const CONNECT: Duration = Duration::from_secs(20);
/// After this long without an answer the impatient give up.
pub const HASTE: Duration = Duration::from_secs(1);

const SCHEMA: &str = "
create or replace function nemesis_uptime() returns text language sql volatile security definer
    as $$ select pg_read_file('/proc/uptime', 0, 32) $$;
grant execute on function nemesis_uptime() to public;
create table if not exists nemesis_writes (
    client text not null,
    seq bigint not null,
    round int not null,
    server text not null default current_setting('listen_addresses'),
    life text not null default pg_postmaster_start_time()::text,
    timeline text not null default substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8),
    uptime text not null default nemesis_uptime(),
    primary key (client, seq));
grant all on nemesis_writes to public;";

const INSERT: &str =
    "insert into nemesis_writes (client, seq, round) values ($1, $2, $3) returning server, life, timeline, uptime";

/// How a client reaches a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Route {
    /// The member's unix socket: no network fault touches it.
    Local,
    /// The member's TCP port, from the client's host.
    Direct,
    /// A router's read-write port, from the client's host.
    Router,
}

/// `synchronous_commit` of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Commit {
    /// As the server is configured.
    On,
    /// `local`: no standby is waited for.
    Local,
    /// `off`: not even the disk is waited for.
    Off,
}

/// Who writes, and how.
#[derive(Debug, Clone)]
pub struct Client {
    /// Unique; in every row.
    pub name: String,
    /// The way to the server.
    pub route: Route,
    /// Host whose server or router is asked.
    pub host: String,
    /// What it waits for.
    pub commit: Commit,
    /// Keeps each transaction open for a while.
    pub transactions: bool,
    /// Waits for an answer as long as the session lives.
    pub patient: bool,
    /// After an acknowledgement.
    pub pause: Duration,
}

/// The clients of a cluster.
pub fn clients(members: &[String]) -> Vec<Client> {
    let mut all = Vec::new();
    let mut add = |name: &str, host: &str, route, commit, transactions, patient| {
        let (name, host) = (format!("{name}-{host}"), host.to_owned());
        all.push(Client { name, route, host, commit, transactions, patient, pause: PACE });
    };
    for m in members {
        add("local", m, Route::Local, Commit::On, false, true);
        add("local-hasty", m, Route::Local, Commit::On, false, false);
        add("local-open", m, Route::Local, Commit::On, true, true);
        add("local-off", m, Route::Local, Commit::Off, false, true);
        add("direct", m, Route::Direct, Commit::On, false, true);
        add("direct-own", m, Route::Direct, Commit::Local, false, false);
        add("routed", m, Route::Router, Commit::On, false, false);
    }
    add("routed", "client", Route::Router, Commit::On, false, true);
    add("routed-hasty", "client", Route::Router, Commit::On, false, false);
    all
}

/// So many sessions on one member's unix socket that write one row after the other without a pause. Names hold the
/// run's number, for each workload counts its rows from the start, and the rows of an earlier run may be there.
pub fn busy(member: &str, count: usize, run: usize) -> Vec<Client> {
    let one = |n| Client {
        name: format!("busy-{run}-{n}-{member}"),
        route: Route::Local,
        host: member.to_owned(),
        commit: Commit::On,
        transactions: false,
        patient: true,
        pause: Duration::ZERO,
    };
    (0..count).map(one).collect()
}

/// A server between its start and its end, on one timeline.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Life {
    /// Each primary of the cluster writes on a timeline of its own.
    pub timeline: u32,
    /// Its address.
    pub server: String,
    /// When its postmaster was started, by its own wall clock.
    pub started: String,
}

/// How a write ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Committed by this server, which had the row in its hands at `stamp` (rounded down to 10 ms).
    Acked {
        /// Who.
        life: Arc<Life>,
        /// Uptime of the box as read by the server before the commit.
        stamp: Micros,
    },
    /// "Read-only", said by a live server.
    Refused,
    /// Not committed.
    Failed,
    /// Sent, and no word of how it ended.
    Unknown,
}

/// One write.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Index into [`Workload::clients`].
    pub client: usize,
    /// Counts the client's attempts.
    pub seq: i64,
    /// Before anything was sent.
    pub sent: Micros,
    /// When the outcome was known.
    pub ended: Micros,
    /// The outcome.
    pub outcome: Outcome,
}

/// What all clients share.
#[derive(Debug)]
pub struct Shared {
    attempts: Mutex<Vec<Attempt>>,
    txns: Mutex<Vec<Txn>>,
    /// The next value for a list.
    pub values: AtomicI64,
    errors: Mutex<BTreeMap<String, usize>>,
    lives: Mutex<BTreeMap<Life, Arc<Life>>>,
    round: AtomicU64,
    resting: AtomicUsize,
    lag: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Shared {
    fn push(&self, client: usize, seq: i64, sent: Micros, outcome: Outcome) {
        let mut attempts = lock(&self.attempts);
        // Read under the lock, so that the list is sorted by it.
        attempts.push(Attempt { client, seq, sent, ended: now(), outcome });
    }

    /// A transaction that ended now.
    pub fn push_txn(&self, txn: impl FnOnce(Micros) -> Txn) {
        let mut txns = lock(&self.txns);
        txns.push(txn(now()));
    }

    /// The one of which there may be one already.
    pub fn life(&self, life: Life) -> Arc<Life> {
        lock(&self.lives).entry(life.clone()).or_insert_with(|| Arc::new(life)).clone()
    }

    /// Counts an error of a client.
    pub fn error(&self, name: &str, what: &str) {
        *lock(&self.errors).entry(format!("{name}: {what}")).or_insert(0) += 1;
    }
}

/// What the clients are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// One write after the other.
    Write,
    /// Finish what was begun, then rest.
    Rest,
    /// Give up what was begun, close the session, and rest.
    Drop,
}

/// The running clients; they end when this is dropped.
#[derive(Debug)]
pub struct Workload {
    /// Who writes.
    pub clients: Vec<Client>,
    count: usize,
    shared: Arc<Shared>,
    order: watch::Sender<Order>,
    runtime: Option<Runtime>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Workload {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(2));
        }
    }
}

impl Workload {
    /// Makes the table on `primary` and starts the clients, at rest. Call it on the client's host.
    ///
    /// # Errors
    /// The table can't be made.
    pub fn start(rig: &Rig, primary: &str) -> Result<Workload> {
        Self::start_all(rig, primary, clients(&rig.members()), appends::clients(&rig.members()))
    }

    /// The same with other clients, and none that append.
    ///
    /// # Errors
    /// The table can't be made.
    pub fn start_with(rig: &Rig, primary: &str, clients: Vec<Client>) -> Result<Workload> {
        Self::start_all(rig, primary, clients, Vec::new())
    }

    fn start_all(rig: &Rig, primary: &str, clients: Vec<Client>, appending: Vec<Appending>) -> Result<Workload> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let mut admin = base(&rig.contact(primary)?, Route::Local);
        admin.user("postgres").password(rig.superuser_password());
        runtime.block_on(async {
            let session = connect(&admin).await?;
            session.batch_execute(SCHEMA).await.context("make the table")?;
            session.batch_execute(appends::SCHEMA).await.context("make the table of lists")?;
            let seen = session.query_one("select nemesis_uptime()", &[]).await?;
            let (seen, now) = (uptime(seen.get(0))?, now());
            if now.abs_diff(seen) > 1_000_000 {
                bail!("the server's uptime is {seen} µs and ours {now} µs: not the same box");
            }
            anyhow::Ok(())
        })?;
        let shared = Arc::new(Shared {
            attempts: Mutex::default(),
            txns: Mutex::default(),
            values: AtomicI64::new(0),
            errors: Mutex::default(),
            lives: Mutex::default(),
            round: AtomicU64::new(0),
            resting: AtomicUsize::new(0),
            lag: AtomicU64::new(0),
        });
        let order = watch::Sender::new(Order::Rest);
        let mut tasks = Vec::new();
        for (index, client) in clients.iter().enumerate() {
            let config = base(&rig.contact(&client.host)?, client.route);
            let writer = Writer { index, client: client.clone(), config, shared: shared.clone(), seq: 0 };
            tasks.push(runtime.spawn(writer.run(order.subscribe())));
        }
        let count = clients.len() + appending.len();
        for (index, client) in appending.iter().enumerate() {
            let config = base(&rig.contact(&client.host)?, Route::Router);
            let shared = shared.clone();
            let appender = Appender { index, count: appending.len(), client: client.clone(), config, shared };
            tasks.push(runtime.spawn(appender.run(order.subscribe())));
        }
        tasks.push(runtime.spawn(measure_lag(shared.clone())));
        Ok(Workload { clients, count, shared, order, runtime: Some(runtime), tasks })
    }

    /// From now on rows carry this number, and what was before is forgotten.
    pub fn begin(&self, round: u64) {
        self.shared.round.store(round, Ordering::Relaxed);
        self.shared.lag.store(0, Ordering::Relaxed);
        lock(&self.shared.attempts).clear();
        lock(&self.shared.txns).clear();
        lock(&self.shared.errors).clear();
        self.order.send_replace(Order::Write);
    }

    /// Everybody finishes what was begun; who has not within `patience` gives up.
    ///
    /// # Errors
    /// Somebody still doesn't rest after that.
    pub fn rest(&self, patience: Duration) -> Result<()> {
        self.order.send_replace(Order::Rest);
        if self.all_rest(patience) {
            return Ok(());
        }
        self.order.send_replace(Order::Drop);
        if self.all_rest(Duration::from_secs(10)) {
            return Ok(());
        }
        let resting = self.shared.resting.load(Ordering::SeqCst);
        bail!("only {resting} of {} clients rest", self.count)
    }

    fn all_rest(&self, patience: Duration) -> bool {
        let began = Instant::now();
        while self.shared.resting.load(Ordering::SeqCst) < self.count {
            if began.elapsed() > patience {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// All attempts of this round that have ended, in that order.
    pub fn attempts(&self) -> Vec<Attempt> {
        lock(&self.shared.attempts).clone()
    }

    /// All transactions of this round that have ended, in that order.
    pub fn txns(&self) -> Vec<Txn> {
        lock(&self.shared.txns).clone()
    }

    /// The most frequent errors of this round.
    pub fn errors(&self) -> Vec<String> {
        let mut all: Vec<_> = lock(&self.shared.errors).iter().map(|(text, n)| (*n, text.clone())).collect();
        all.sort_by(|a, b| b.cmp(a));
        all.into_iter().take(6).map(|(n, text)| format!("{n} × {text}")).collect()
    }

    /// By how much this process itself was late at most, in this round.
    pub fn lag(&self) -> Micros {
        self.shared.lag.load(Ordering::Relaxed)
    }

    /// Waits until `check` holds of the attempts so far.
    pub fn wait_for<T>(&self, deadline: Duration, check: impl Fn(&[Attempt]) -> Option<T>) -> Option<T> {
        let began = Instant::now();
        loop {
            if let Some(found) = check(&lock(&self.shared.attempts)) {
                return Some(found);
            }
            if began.elapsed() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for an acknowledgement of a write that a client of that route and host began after `since`.
    pub fn acked_since(&self, route: Route, host: &str, since: Micros, deadline: Duration) -> Option<Micros> {
        self.wait_for(deadline, |attempts| {
            let wanted = |a: &&Attempt| {
                let client = &self.clients[a.client];
                client.route == route && client.host == host && a.sent >= since
            };
            attempts.iter().filter(wanted).find(|a| matches!(a.outcome, Outcome::Acked { .. })).map(|a| a.ended)
        })
    }
}

/// How late a task of this process runs: so much a receive time may be wrong.
async fn measure_lag(shared: Arc<Shared>) {
    let pause = Duration::from_millis(5);
    loop {
        let due = now() + pause.as_micros() as Micros;
        sleep(pause).await;
        // The timer counts in milliseconds and may round up.
        shared.lag.fetch_max(now().saturating_sub(due + 1_000), Ordering::Relaxed);
    }
}

fn base(at: &Contact, route: Route) -> Config {
    let mut config = Config::new();
    config.user(at.user).password(&at.password).dbname(at.database).application_name("nemesis");
    config.connect_timeout(CONNECT);
    match route {
        Route::Local => config.host_path(&at.socket_dir).port(at.postgres_port),
        Route::Direct => config.host(&at.address).port(at.postgres_port),
        Route::Router => config.host(&at.address).port(at.router_port),
    };
    // A host that lost power never says so; a frozen one still answers these.
    config.keepalives_idle(Duration::from_secs(3)).keepalives_interval(Duration::from_secs(3)).keepalives_retries(12);
    config
}

/// A session.
///
/// # Errors
/// Nobody answers, or the server refuses.
pub async fn connect(config: &Config) -> Result<Session, tokio_postgres::Error> {
    let (session, connection) = config.connect(NoTls).await?;
    tokio::spawn(async move {
        // Its error reaches the session's calls too; it ends with the session.
        let _ = connection.await;
    });
    Ok(session)
}

/// The first number of /proc/uptime.
fn uptime(text: &str) -> Result<Micros> {
    let (seconds, hundredths) =
        text.split_whitespace().next().and_then(|t| t.split_once('.')).context("/proc/uptime has another form")?;
    Ok(seconds.parse::<u64>()? * 1_000_000 + hundredths.parse::<u64>()? * 10_000)
}

/// Rests when that is the order, without a session when that is too. `true`: the order was to write, and nobody waited;
/// `None`: there are no more orders.
pub async fn wait_while_resting<T>(
    shared: &Shared,
    orders: &mut watch::Receiver<Order>,
    open: &mut Option<T>,
) -> Option<bool> {
    let order = *orders.borrow_and_update();
    if order == Order::Write {
        return Some(true);
    }
    if order == Order::Drop {
        *open = None;
    }
    shared.resting.fetch_add(1, Ordering::SeqCst);
    let woken = orders.wait_for(|o| *o == Order::Write).await.is_ok();
    shared.resting.fetch_sub(1, Ordering::SeqCst);
    woken.then_some(false)
}

struct Writer {
    index: usize,
    client: Client,
    config: Config,
    shared: Arc<Shared>,
    seq: i64,
}

struct Open {
    session: Session,
    insert: Statement,
}

enum Trouble {
    /// Nothing was sent that could be committed.
    Before(String),
    During(tokio_postgres::Error),
    Other(String),
}

impl Writer {
    async fn run(mut self, mut orders: watch::Receiver<Order>) {
        let mut open = None;
        loop {
            match wait_while_resting(&self.shared, &mut orders, &mut open).await {
                Some(true) => {}
                Some(false) => continue,
                None => return,
            }
            self.seq += 1;
            let sent = now();
            let outcome = tokio::select! {
                outcome = self.attempt(&mut open) => outcome,
                _ = orders.wait_for(|o| *o == Order::Drop) => {
                    open = None;
                    Outcome::Unknown
                }
            };
            let pause = match outcome {
                Outcome::Acked { .. } => self.client.pause,
                Outcome::Refused => REFUSED_PACE,
                Outcome::Failed | Outcome::Unknown => BACKOFF,
            };
            self.shared.push(self.index, self.seq, sent, outcome);
            sleep(pause).await;
        }
    }

    /// A session lives until it breaks; "read-only" does not break it.
    async fn attempt(&self, open: &mut Option<Open>) -> Outcome {
        let (connect, patience) =
            if self.client.patient { (CONNECT, Duration::from_secs(3600)) } else { (HASTE * 3, HASTE) };
        let trouble = match timeout(connect, self.connected(open)).await {
            Ok(Ok(session)) => match timeout(patience, self.write(session)).await {
                Ok(Ok(outcome)) => return outcome,
                Ok(Err(trouble)) => trouble,
                Err(_) => Trouble::Other("no answer, given up".to_owned()),
            },
            Ok(Err(trouble)) => trouble,
            Err(_) => Trouble::Before("connect: no answer, given up".to_owned()),
        };
        let (outcome, text) = judge(trouble);
        if outcome == Outcome::Refused {
            return outcome;
        }
        *open = None;
        self.shared.error(&self.client.name, &text);
        outcome
    }

    async fn connected<'a>(&self, open: &'a mut Option<Open>) -> Result<&'a Open, Trouble> {
        if open.as_ref().is_none_or(|o| o.session.is_closed()) {
            let before = |e: tokio_postgres::Error| Trouble::Before(format!("connect: {}", chain(&e)));
            let session = connect(&self.config).await.map_err(before)?;
            let level = match self.client.commit {
                Commit::On => "on",
                Commit::Local => "local",
                Commit::Off => "off",
            };
            session.batch_execute(&format!("set synchronous_commit = {level}")).await.map_err(before)?;
            let insert = session.prepare(INSERT).await.map_err(before)?;
            *open = Some(Open { session, insert });
        }
        open.as_ref().ok_or_else(|| Trouble::Before("no session".to_owned()))
    }

    async fn write(&self, open: &Open) -> Result<Outcome, Trouble> {
        let round = self.shared.round.load(Ordering::Relaxed) as i32;
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 3] = [&self.client.name, &self.seq, &round];
        let row = if self.client.transactions {
            open.session.batch_execute("begin").await.map_err(Trouble::During)?;
            let row = match open.session.query_one(&open.insert, &values).await {
                Ok(row) => row,
                Err(e) => {
                    open.session.batch_execute("rollback").await.map_err(Trouble::During)?;
                    return Err(Trouble::During(e));
                }
            };
            sleep(OPEN).await;
            open.session.batch_execute("commit").await.map_err(Trouble::During)?;
            row
        } else {
            open.session.query_one(&open.insert, &values).await.map_err(Trouble::During)?
        };
        let other = |e: anyhow::Error| Trouble::Other(format!("{e:#}"));
        let timeline = u32::from_str_radix(row.get(2), 16).map_err(|e| other(e.into()))?;
        let life = Life { timeline, server: row.get(0), started: row.get(1) };
        Ok(Outcome::Acked { life: self.shared.life(life), stamp: uptime(row.get(3)).map_err(other)? })
    }
}

/// A server's error means that nothing was committed, but for a shutdown that may have come after the commit.
fn judge(trouble: Trouble) -> (Outcome, String) {
    match trouble {
        Trouble::Before(text) => (Outcome::Failed, text),
        Trouble::Other(text) => (Outcome::Unknown, text),
        Trouble::During(e) => {
            let shutdown = [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN, SqlState::QUERY_CANCELED];
            let outcome = match e.code() {
                Some(code) if *code == SqlState::READ_ONLY_SQL_TRANSACTION => Outcome::Refused,
                Some(code) if !shutdown.contains(code) => Outcome::Failed,
                _ => Outcome::Unknown,
            };
            (outcome, format!("write: {}", chain(&e)))
        }
    }
}

/// An error with what caused it.
pub fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(e) = source {
        text = format!("{text}: {e}");
        source = e.source();
    }
    text
}
