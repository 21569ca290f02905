//! Clients of the read-write ports whose transactions read some lists and append to others: what they were told
//! is the history that [`crate::history`] judges.
//!
//! Only the primary is read, through the routers: standbys may lag. The sessions are *serializable*, because then every
//! cycle of transactions is wrong, those with a read that missed a write included; repeatable read would allow
//! some of these, and would say less about a primary that shows what another one has replaced. They are
//! `synchronous_commit = on`, as the server has it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_postgres::{Client as Session, Config, SimpleQueryMessage, Statement, error::SqlState};

use crate::{
    dice::Dice,
    history::{End, Op, Txn},
    workload::{CONNECT, HASTE, Life, Order, Shared, chain, connect, now, wait_while_resting},
};

/// Lists that are in use at a time.
const KEYS: i64 = 8;
/// So many values go to these; then the next ones are used. Lists that grow for ever are slow to read.
const VALUES: i64 = KEYS * 40;
/// Pause after a transaction that committed, or that a concurrent one was in the way of.
const PACE: Duration = Duration::from_millis(20);
/// Pause after any other end.
const BACKOFF: Duration = Duration::from_millis(40);

/// Made beside the table of the single rows.
pub const SCHEMA: &str = "
create table if not exists nemesis_lists (key bigint primary key, list bigint[] not null);
grant all on nemesis_lists to public;";

/// A lookup must not be a sequential scan: that would make every transaction meet every other one.
const SESSION: &str = "set synchronous_commit = on; set enable_seqscan = off";
const BEGIN: &str = "begin isolation level serializable; select current_setting('listen_addresses'), \
                     pg_postmaster_start_time()::text, substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)";
const READ: &str = "select list from nemesis_lists where key = $1";
const APPEND: &str = "insert into nemesis_lists as l (key, list) values ($1, array[$2::bigint])
    on conflict (key) do update set list = l.list || excluded.list returning list";

/// Who it is.
#[derive(Debug, Clone)]
pub struct Appending {
    /// Host whose router is asked.
    pub host: String,
    /// Waits for an answer as long as the session lives.
    pub patient: bool,
}

/// Three at the client's own router, of whom one is in a hurry, and one at that of each member.
pub fn clients(members: &[String]) -> Vec<Appending> {
    let own = [true, true, false].map(|patient| Appending { host: "client".to_owned(), patient });
    let theirs = members.iter().map(|host| Appending { host: host.clone(), patient: false });
    own.into_iter().chain(theirs).collect()
}

/// A running one.
pub struct Appender {
    /// Number among them.
    pub index: usize,
    /// How many there are.
    pub count: usize,
    /// Who it is.
    pub client: Appending,
    /// The way there.
    pub config: Config,
    /// What all clients share.
    pub shared: Arc<Shared>,
}

struct Open {
    session: Session,
    read: Statement,
    append: Statement,
}

/// How far a transaction got.
#[derive(Default)]
struct Tried {
    ops: Vec<Op>,
    life: Option<Arc<Life>>,
    /// The commit may have been sent.
    committing: bool,
}

impl Tried {
    /// Nobody answers any more: without a commit the end of the session is a roll-back.
    fn end(&self) -> End {
        if self.committing { End::Unknown } else { End::Failed }
    }
}

impl Appender {
    /// Works until the orders end.
    pub async fn run(self, mut orders: watch::Receiver<Order>) {
        let mut open = None;
        let mut process = self.index;
        // What is drawn decides nothing about the faults, so it needs no seed of the run.
        let mut dice = Dice::new(self.index as u64);
        loop {
            match wait_while_resting(&self.shared, &mut orders, &mut open).await {
                Some(true) => {}
                Some(false) => continue,
                None => return,
            }
            let mut tried = Tried { ops: self.plan(&mut dice), ..Tried::default() };
            // Some are rolled back, so that there is something that must not be seen.
            let keep = dice.below(12) > 0;
            let invoked = now();
            let end = tokio::select! {
                end = self.attempt(&mut open, &mut tried, keep) => Some(end),
                _ = orders.wait_for(|o| *o == Order::Drop) => None,
            };
            let end = end.unwrap_or_else(|| {
                open = None;
                tried.end()
            });
            self.shared.push_txn(|ended| Txn { process, invoked, ended, ops: tried.ops, end, life: tried.life });
            if end == End::Unknown {
                process += self.count;
            }
            sleep(if open.is_some() { PACE } else { BACKOFF }).await;
        }
    }

    /// One to four steps, the keys in order: nobody waits for one who waits for it.
    fn plan(&self, dice: &mut Dice) -> Vec<Op> {
        let mut steps: Vec<Op> = Vec::new();
        let group = self.shared.values.load(Ordering::Relaxed) / VALUES;
        let mut keys: Vec<i64> = (0..=dice.below(4))
            .map(|_| {
                let back = if dice.below(10) == 0 { dice.below(3) as i64 } else { 0 };
                (group - back).max(0) * KEYS + dice.below(KEYS as u64) as i64
            })
            .collect();
        keys.sort_unstable();
        for key in keys {
            // The lists that were in use before are read only.
            if dice.below(5) < 2 || key / KEYS < group {
                steps.push(Op::Read(key, None));
            } else {
                let value = self.shared.values.fetch_add(1, Ordering::Relaxed);
                steps.extend([Op::Append(key, value), Op::Read(key, None)]);
            }
        }
        steps
    }

    async fn attempt(&self, open: &mut Option<Open>, tried: &mut Tried, keep: bool) -> End {
        let (connect, patience) =
            if self.client.patient { (CONNECT, Duration::from_secs(3600)) } else { (HASTE * 3, HASTE) };
        let (end, text) = match timeout(connect, self.connected(open)).await {
            Ok(Ok(session)) => match timeout(patience, transact(session, tried, keep, &self.shared)).await {
                Ok(Ok(end)) => return end,
                Ok(Err(e)) if is_in_the_way(&e) => {
                    // The session is in a transaction that failed.
                    if session.session.batch_execute("rollback").await.is_err() {
                        *open = None;
                    }
                    return End::Failed;
                }
                Ok(Err(e)) => (judge(&e, tried), chain(&e)),
                Err(_) => (tried.end(), "no answer, given up".to_owned()),
            },
            Ok(Err(e)) => (End::Failed, format!("connect: {}", chain(&e))),
            Err(_) => (End::Failed, "connect: no answer, given up".to_owned()),
        };
        *open = None;
        self.shared.error(&format!("append-{}", self.client.host), &text);
        end
    }

    async fn connected<'a>(&self, open: &'a mut Option<Open>) -> Result<&'a Open, tokio_postgres::Error> {
        if open.as_ref().is_none_or(|o| o.session.is_closed()) {
            let session = connect(&self.config).await?;
            session.batch_execute(SESSION).await?;
            let (read, append) = (session.prepare(READ).await?, session.prepare(APPEND).await?);
            *open = Some(Open { session, read, append });
        }
        Ok(open.as_ref().expect("it is open, or was just opened"))
    }
}

async fn transact(open: &Open, tried: &mut Tried, keep: bool, shared: &Shared) -> Result<End, tokio_postgres::Error> {
    let answers = open.session.simple_query(BEGIN).await?;
    tried.life = answers.iter().find_map(|m| match m {
        SimpleQueryMessage::Row(row) => Some(shared.life(Life {
            timeline: u32::from_str_radix(row.get(2)?, 16).ok()?,
            server: row.get(0)?.to_owned(),
            started: row.get(1)?.to_owned(),
        })),
        _ => None,
    });
    let mut told = None;
    for op in &mut tried.ops {
        match op {
            Op::Append(key, value) => {
                told = Some(open.session.query_one(&open.append, &[&*key, &*value]).await?.get(0));
            }
            Op::Read(_, list) if told.is_some() => *list = told.take(),
            Op::Read(key, list) => {
                let row = open.session.query_opt(&open.read, &[&*key]).await?;
                *list = Some(row.map(|r| r.get(0)).unwrap_or_default());
            }
        }
    }
    if !keep {
        open.session.batch_execute("rollback").await?;
        return Ok(End::Failed);
    }
    tried.committing = true;
    open.session.batch_execute("commit").await?;
    Ok(End::Ok)
}

/// Another transaction was: "could not serialize access", or a deadlock. Certainly not committed.
fn is_in_the_way(e: &tokio_postgres::Error) -> bool {
    e.code().is_some_and(|c| [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED].contains(c))
}

/// An error after the commit was sent means that nothing was committed, but for those that can come after it.
fn judge(e: &tokio_postgres::Error, tried: &Tried) -> End {
    let late = [
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
        SqlState::QUERY_CANCELED,
        SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN,
    ];
    match e.code() {
        _ if !tried.committing => End::Failed,
        // Class 08: the connection; a router says 08007 when nobody knows.
        Some(code) if !late.contains(code) && !code.code().starts_with("08") => End::Failed,
        Some(_) | None => End::Unknown,
    }
}
