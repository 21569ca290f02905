//! A disk that keeps apart what was written and what was synced. A sync takes virtual time; when the power
//! goes, what was not synced is lost from some point on.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use matriarch::{
    raft::{LogBackend, Meta, SlowDisk, SnapshotStore, TypeConfig},
    rpc::v1,
};
use openraft::alias::{SnapshotMetaOf, SnapshotOf};
use prost::Message as _;

use crate::dice::Dice;

type Snapshot = SnapshotOf<TypeConfig, Bytes>;

/// Before the message of every record: its version and checksum.
const FRAME: usize = 5;
/// What a lying disk says it has synced is really on it so much later.
const LIE: Duration = Duration::from_secs(2);

/// Whether a sync does what it says. All but `None` are bugs that are put in on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lie {
    #[default]
    None,
    /// It returns at once, and what it was asked for is on the disk two seconds later.
    Sync,
    /// It does that for votes only.
    Vote,
    /// It makes safe what the sync before was asked for: as if a write were acknowledged before its sync.
    OneLate,
}

#[derive(Debug, Clone)]
enum Write {
    Append(Vec<(u64, Vec<u8>)>),
    Truncate(u64),
    Purge(u64),
    Put(Meta, Vec<u8>),
}

/// What is in a log.
#[derive(Debug, Clone, Default)]
pub struct Content {
    pub log: BTreeMap<u64, Vec<u8>>,
    meta: Vec<(Meta, Vec<u8>)>,
}

impl Content {
    fn take(&mut self, write: Write) {
        match write {
            Write::Append(records) => self.log.extend(records),
            Write::Truncate(from) => drop(self.log.split_off(&from)),
            Write::Purge(upto) => self.log = self.log.split_off(&(upto + 1)),
            Write::Put(meta, value) => {
                self.meta.retain(|(m, _)| *m != meta);
                self.meta.push((meta, value));
            }
        }
    }

    fn get(&self, meta: Meta) -> Option<Vec<u8>> {
        self.meta.iter().find(|(m, _)| *m == meta).map(|(_, value)| value.clone())
    }

    /// The vote that stands here.
    pub fn vote(&self) -> Option<v1::Vote> {
        self.get(Meta::Vote).map(|bytes| v1::Vote::decode(&bytes[FRAME..]).unwrap())
    }

    /// Up to where the log was given up for a snapshot, plus one.
    pub fn begins_at(&self) -> u64 {
        self.get(Meta::Purged).map_or(0, |bytes| v1::LogId::decode(&bytes[FRAME..]).unwrap().index + 1)
    }
}

/// An entry from its record.
pub fn entry(record: &[u8]) -> v1::Entry {
    v1::Entry::decode(&record[FRAME..]).unwrap()
}

#[derive(Default)]
struct Platter {
    /// What a reader sees.
    now: Content,
    /// What the disk says is safe.
    claimed: Content,
    /// What is safe.
    durable: Content,
    /// Written and not claimed yet.
    unclaimed: VecDeque<Write>,
    /// Claimed and not safe yet, with the time since when; an honest disk never has any.
    cached: VecDeque<(Duration, Write)>,
    snapshot: Option<Snapshot>,
    /// Votes that were claimed to be safe, and so may have been told to others.
    told: Vec<v1::Vote>,
    /// Counts the times the power went: a sync of an earlier life does nothing.
    life: u64,
    lie: Lie,
    /// Until when every sync hangs.
    hangs_until: Duration,
    /// So many writes waited when the last sync began.
    asked: usize,
    lost: u64,
}

/// One host's disk. It outlives the processes that use it.
#[derive(Clone)]
pub struct Disk(Arc<(Mutex<Platter>, Mutex<Dice>)>);

fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

impl Disk {
    pub fn new(lie: Lie, dice: Dice) -> Self {
        Self(Arc::new((Mutex::new(Platter { lie, ..Platter::default() }), Mutex::new(dice))))
    }

    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.0.lock().unwrap()
    }

    /// How long one sync takes, in virtual time.
    fn lag(&self) -> Duration {
        let micros = self.0.1.lock().unwrap().lag(300, 3_000, 40, 80_000);
        Duration::from_micros(micros).max(self.platter().hangs_until.saturating_sub(now()))
    }

    /// The power goes: what was not synced is lost from some write on.
    pub fn power_off(&self) {
        let mut platter = self.platter();
        let mut writes: Vec<Write> = std::mem::take(&mut platter.cached).into_iter().map(|(_, write)| write).collect();
        writes.extend(std::mem::take(&mut platter.unclaimed));
        let kept = self.0.1.lock().unwrap().below(writes.len() + 1);
        platter.lost += (writes.len() - kept) as u64;
        for write in writes.into_iter().take(kept) {
            platter.durable.take(write);
        }
        platter.now = platter.durable.clone();
        platter.claimed = platter.durable.clone();
        platter.hangs_until = Duration::ZERO;
        platter.asked = 0;
        platter.life += 1;
    }

    /// Another disk is put in, empty.
    pub fn replace(&self) {
        let mut platter = self.platter();
        *platter = Platter { life: platter.life + 1, lie: platter.lie, lost: platter.lost, ..Platter::default() };
    }

    /// No sync ends before then.
    pub fn hang_until(&self, until: Duration) {
        self.platter().hangs_until = until;
    }

    /// Writes that were lost when the power went.
    pub fn lost(&self) -> u64 {
        self.platter().lost
    }

    /// Votes claimed to be safe since the last call, in their order.
    pub fn told(&self) -> Vec<v1::Vote> {
        std::mem::take(&mut self.platter().told)
    }

    /// Looks at what a reader sees.
    pub fn with_now<T>(&self, look: impl FnOnce(&Content) -> T) -> T {
        look(&self.platter().now)
    }

    /// Looks at what the disk says is safe.
    pub fn with_claimed<T>(&self, look: impl FnOnce(&Content) -> T) -> T {
        look(&self.platter().claimed)
    }

    fn write(&self, write: Write) {
        let mut platter = self.platter();
        platter.now.take(write.clone());
        platter.unclaimed.push_back(write);
    }

    fn claim(&self, life: u64, count: usize) {
        let mut platter = self.platter();
        if platter.life == life {
            platter.claim(count);
        }
    }
}

impl Platter {
    /// The life the sync is of, and how many of the writes that wait it makes safe.
    fn begin_sync(&mut self) -> (u64, usize) {
        let waiting = self.unclaimed.len();
        if self.lie != Lie::OneLate {
            return (self.life, waiting);
        }
        let before = self.asked;
        self.asked = waiting - before;
        (self.life, before)
    }

    /// The first `count` of the writes that wait are said to be safe.
    fn claim(&mut self, count: usize) {
        for write in self.unclaimed.drain(..count).collect::<Vec<_>>() {
            self.claimed.take(write.clone());
            let is_vote = matches!(write, Write::Put(Meta::Vote, _));
            if is_vote {
                self.told.extend(self.claimed.vote());
            }
            let lies = self.lie == Lie::Sync || (self.lie == Lie::Vote && is_vote);
            if lies || !self.cached.is_empty() && self.lie == Lie::Sync {
                self.cached.push_back((now(), write));
            } else {
                self.durable.take(write);
            }
        }
        while self.cached.front().is_some_and(|(since, _)| now() >= *since + LIE) {
            if let Some((_, write)) = self.cached.pop_front() {
                self.durable.take(write);
            }
        }
    }
}

impl LogBackend for Disk {
    fn append(&self, records: Vec<(u64, Vec<u8>)>) -> io::Result<()> {
        self.write(Write::Append(records));
        Ok(())
    }

    fn truncate(&self, from: u64) -> io::Result<()> {
        self.write(Write::Truncate(from));
        Ok(())
    }

    fn purge(&self, upto: u64) -> io::Result<()> {
        self.write(Write::Purge(upto));
        Ok(())
    }

    fn read(&self, range: Range<u64>) -> io::Result<Vec<(u64, Vec<u8>)>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        Ok(self.platter().now.log.range(range).map(|(index, record)| (*index, record.clone())).collect())
    }

    fn last(&self) -> io::Result<Option<(u64, Vec<u8>)>> {
        Ok(self.platter().now.log.last_key_value().map(|(index, record)| (*index, record.clone())))
    }

    fn put(&self, meta: Meta, value: Vec<u8>) -> io::Result<()> {
        self.write(Write::Put(meta, value));
        Ok(())
    }

    fn get(&self, meta: Meta) -> io::Result<Option<Vec<u8>>> {
        Ok(self.platter().now.get(meta))
    }

    /// At once: only the opening of a log syncs in this way.
    fn sync(&self) -> io::Result<()> {
        let mut platter = self.platter();
        let count = platter.unclaimed.len();
        platter.claim(count);
        Ok(())
    }
}

impl SlowDisk for Disk {
    fn sync_slowly(&self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async {
            let (life, count) = self.platter().begin_sync();
            let lag = if self.platter().lie == Lie::Sync { Duration::ZERO } else { self.lag() };
            tokio::time::sleep(lag).await;
            // What came while the sync ran waits for the next.
            self.claim(life, count);
            Ok(())
        })
    }
}

impl SnapshotStore for Disk {
    fn save(self: Arc<Self>, meta: SnapshotMetaOf<TypeConfig>, state: Bytes) -> BoxFuture<'static, io::Result<()>> {
        Box::pin(async move {
            let life = self.platter().life;
            tokio::time::sleep(self.lag() * 4).await;
            let mut platter = self.platter();
            let covered = platter.snapshot.as_ref().is_some_and(|s| s.meta.last_log_id >= meta.last_log_id);
            if !covered && platter.life == life {
                platter.snapshot = Some(Snapshot { meta, snapshot: state });
            }
            Ok(())
        })
    }

    fn load(self: Arc<Self>) -> BoxFuture<'static, io::Result<Option<Snapshot>>> {
        Box::pin(async move { Ok(self.platter().snapshot.clone()) })
    }
}
