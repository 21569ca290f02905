//! openraft's log storage over a [`LogBackend`], with one thread that makes
//! writes durable: it takes everything that waits, syncs once, and only then
//! acknowledges all of it (group commit). In a simulation a task does the same in virtual time.

use std::{
    fmt::Debug,
    fs::{self, File, TryLockError},
    io,
    ops::{Bound, RangeBounds},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use openraft::{
    LogState, OptionalSend, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use super::{
    backend::{LogBackend, Meta, OpenError, SledBackend, SlowDisk, io_at},
    convert::{entry_in, entry_out, log_id_in, log_id_out, vote_in, vote_out},
    group::membership_id,
    mark::{self, Mark, Marker},
    record,
    types::{Entry, LogId, TypeConfig, Vote},
};
use crate::{
    domain::{MemberId, NodeId},
    rpc::v1,
};

/// So many writes share one sync at most.
const GROUP_MAX: usize = 1024;

enum Waiter {
    Append(IOFlushed<TypeConfig>),
    Call(oneshot::Sender<io::Result<()>>),
}

impl Waiter {
    fn done(self, result: io::Result<()>) {
        match self {
            Self::Append(callback) => callback.io_completed(result),
            // The caller may have been cancelled; the write stands all the same.
            Self::Call(caller) => drop(caller.send(result)),
        }
    }
}

/// How long the disk takes. Shared with whoever wants to know.
#[derive(Debug)]
pub struct SyncGauge {
    origin: Instant,
    /// Microseconds from `origin` to the start of the running sync, plus one; 0 when none runs.
    running_since: AtomicU64,
    last_micros: AtomicU64,
    syncs: AtomicU64,
    recent: Mutex<Recent>,
}

/// Syncs of late.
#[derive(Debug, Default)]
struct Recent {
    /// When the last one ended, from the gauge's origin.
    ended: Duration,
    /// How many of them followed each other without a pause of [`FORGOTTEN`].
    count: u32,
    /// Their mean, the latest ones for the most part.
    mean: Duration,
}

impl Recent {
    fn note(&mut self, took: Duration, now: Duration) {
        if now.saturating_sub(self.ended) > FORGOTTEN {
            *self = Self::default();
        }
        self.mean = if self.count == 0 { took } else { (self.mean * (SHARE - 1) + took) / SHARE };
        (self.ended, self.count) = (now, self.count.saturating_add(1));
    }

    fn typical(&self, now: Duration) -> Option<Duration> {
        (self.count >= SHARE && now.saturating_sub(self.ended) <= FORGOTTEN).then_some(self.mean)
    }
}

/// A sync says nothing of the disk any more after this.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// One sync moves the mean by one part in so many; fewer syncs make none.
const SHARE: u32 = 8;

impl SyncGauge {
    pub(super) fn new() -> Self {
        let zero = || AtomicU64::new(0);
        let recent = Mutex::default();
        Self { origin: Instant::now(), running_since: zero(), last_micros: zero(), syncs: zero(), recent }
    }

    /// A sync begins.
    fn begin(&self) -> Duration {
        let start = self.origin.elapsed();
        self.running_since.store(micros(start) + 1, Ordering::Relaxed);
        start
    }

    /// The sync that began at `start` has ended.
    fn end(&self, start: Duration) {
        self.running_since.store(0, Ordering::Relaxed);
        let now = self.origin.elapsed();
        let took = now.saturating_sub(start);
        self.last_micros.store(micros(took), Ordering::Relaxed);
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.recent().note(took, now);
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file beside the log was synced, for there was nothing to sync in the log.
    pub(super) fn probed(&self, took: Duration) {
        let now = self.origin.elapsed();
        self.recent().note(took, now);
    }

    /// What a sync takes: the mean of those of late; `None` when there were fewer than eight.
    pub fn typical(&self) -> Option<Duration> {
        let now = self.origin.elapsed();
        self.recent().typical(now)
    }

    /// How long the sync that runs now has been running; `None` when none runs.
    pub fn running(&self) -> Option<Duration> {
        let since = self.running_since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.origin.elapsed().saturating_sub(Duration::from_micros(since)))
    }

    /// How long the last sync took.
    pub fn last(&self) -> Duration {
        Duration::from_micros(self.last_micros.load(Ordering::Relaxed))
    }

    /// How many syncs there were.
    pub fn count(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// A write that waits for its sync, and how far the log has come with it.
type Waiting = (Waiter, Mark);

/// The writer's side of the log. There is one.
pub struct LogStore {
    backend: Arc<dyn LogBackend>,
    queue: mpsc::UnboundedSender<Waiting>,
    /// With everything that was written, durable or not.
    now: Mark,
    /// The same, for others to read.
    here: Arc<Mutex<Mark>>,
    /// With everything that is durable.
    durable: Arc<Mutex<Mark>>,
    /// The id of the newest membership in the log, 0 for none.
    membership: Arc<AtomicU64>,
    gauge: Arc<SyncGauge>,
    failed: watch::Receiver<Option<String>>,
}

/// Reads the log. As many as wanted. The log closes with its [`LogStore`],
/// whatever readers the library still has somewhere.
#[derive(Clone)]
pub struct LogReader {
    backend: Weak<dyn LogBackend>,
}

impl LogReader {
    fn backend(&self) -> io::Result<Arc<dyn LogBackend>> {
        self.backend.upgrade().ok_or_else(|| io::Error::other("the Raft log is closed"))
    }
}

impl LogStore {
    /// Opens the log under `dir`: takes the directory's lock, opens sled,
    /// checks every record, and that it is this node's.
    ///
    /// # Errors
    /// [`OpenError`] if any of it fails. Nothing is repaired but sled's own snapshots.
    pub fn open(dir: &Path, node: NodeId, member: &MemberId) -> Result<Self, OpenError> {
        fs::create_dir_all(dir).map_err(io_at("create", dir))?;
        let lock = lock(dir)?;
        let log_dir = dir.join("log");
        let backend = SledBackend::open(&log_dir, lock)?;
        check_identity(&backend, dir, node, member)?;
        check_log(&backend, &log_dir)?;
        if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
            super::backend::sync_dir(parent).map_err(io_at("sync", parent))?;
        }
        super::backend::sync_dir(dir).map_err(io_at("sync", dir))?;
        check_mark(&backend, dir, node)?;
        // What was read may be in the page cache only, and the mark must never be ahead of the disk.
        backend.sync().map_err(io_at("sync", dir))?;
        let marker = Marker::start(dir.to_owned()).map_err(io_at("start the marker of", dir))?;
        let store = Self::with_marker(Arc::new(backend), node, Some(marker));
        store.map_err(io_at("start the sync thread of", dir))
    }

    /// A store over any backend, with its own sync thread and without a mark.
    ///
    /// # Errors
    /// If the backend can't be read, or the thread can't be started.
    pub fn over(backend: Arc<dyn LogBackend>) -> io::Result<Self> {
        Self::with_marker(backend, NodeId(0), None)
    }

    /// A store over the disk of a simulation, whose syncs run as a task of the present runtime. What the disk
    /// holds is checked as in [`LogStore::open`]; no mark is kept.
    ///
    /// # Errors
    /// [`OpenError`] if what the disk holds is damaged or another node's.
    pub fn simulated(disk: Arc<impl SlowDisk>, node: NodeId, member: &MemberId) -> Result<Self, OpenError> {
        let name = Path::new("simulated");
        check_identity(disk.as_ref(), name, node, member)?;
        check_log(disk.as_ref(), name)?;
        let (store, mut waiting, mut syncs) = Self::assembled(disk.clone(), node, None).map_err(io_at("read", name))?;
        tokio::spawn(async move {
            while let Some(first) = waiting.recv().await {
                let group = gather(first, &mut waiting);
                if syncs.broken.is_none() {
                    let start = syncs.gauge.begin();
                    let synced = disk.sync_slowly().await;
                    syncs.gauge.end(start);
                    syncs.note(synced);
                }
                syncs.answer(group);
            }
        });
        Ok(store)
    }

    fn with_marker(backend: Arc<dyn LogBackend>, node: NodeId, marker: Option<Marker>) -> io::Result<Self> {
        let (store, waiting, syncs) = Self::assembled(Arc::clone(&backend), node, marker)?;
        thread::Builder::new()
            .name("raft-sync".to_owned())
            .spawn(move || sync_loop(backend.as_ref(), waiting, syncs))?;
        Ok(store)
    }

    /// A store, and what whoever makes its writes durable needs.
    fn assembled(
        backend: Arc<dyn LogBackend>,
        node: NodeId,
        marker: Option<Marker>,
    ) -> io::Result<(Self, mpsc::UnboundedReceiver<Waiting>, Syncs)> {
        let (queue, waiting) = mpsc::unbounded_channel();
        let now = mark_of(backend.as_ref(), node)?;
        if let Some(marker) = &marker {
            marker.put(now);
        }
        let membership = Arc::new(AtomicU64::new(newest_membership(backend.as_ref())?));
        let (failure, failed) = watch::channel(None);
        let gauge = Arc::new(SyncGauge::new());
        let (here, durable) = (Arc::new(Mutex::new(now)), Arc::new(Mutex::new(now)));
        let syncs = Syncs { gauge: Arc::clone(&gauge), failure, marker, durable: Arc::clone(&durable), broken: None };
        Ok((Self { backend, queue, now, here, durable, membership, gauge, failed }, waiting, syncs))
    }

    /// How far the log has come, durable or not.
    pub(super) fn here(&self) -> Arc<Mutex<Mark>> {
        Arc::clone(&self.here)
    }

    /// How far it has come with what is durable.
    pub(super) fn synced(&self) -> Arc<Mutex<Mark>> {
        Arc::clone(&self.durable)
    }

    /// The id of the newest membership in the log, 0 when the log has none (then a snapshot has it).
    /// It changes before the write that changes it is acknowledged to anybody.
    pub fn membership(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.membership)
    }

    /// How the disk does.
    pub fn gauge(&self) -> Arc<SyncGauge> {
        Arc::clone(&self.gauge)
    }

    /// Says why once a write could not be made durable. Nothing is written after that.
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.failed.clone()
    }

    fn enqueue(&self, waiter: Waiter) -> io::Result<()> {
        *self.here.lock().unwrap_or_else(PoisonError::into_inner) = self.now;
        self.queue.send((waiter, self.now)).map_err(|_| io::Error::other("the sync thread has ended"))
    }

    async fn durable(&self) -> io::Result<()> {
        let (caller, done) = oneshot::channel();
        self.enqueue(Waiter::Call(caller))?;
        done.await.map_err(|_| io::Error::other("the sync thread has ended"))?
    }

    fn purged(&self) -> io::Result<Option<LogId>> {
        get_log_id(self.backend.as_ref(), Meta::Purged)
    }
}

/// What the syncs came to.
struct Syncs {
    gauge: Arc<SyncGauge>,
    failure: watch::Sender<Option<String>>,
    marker: Option<Marker>,
    durable: Arc<Mutex<Mark>>,
    /// Why nothing is synced any more.
    broken: Option<String>,
}

impl Syncs {
    fn note(&mut self, synced: io::Result<()>) {
        if let Err(e) = synced {
            // The kernel may have dropped the dirty pages with the error: a
            // second sync that succeeds would prove nothing.
            tracing::error!(error = %e, "a Raft write could not be made durable; this process has to end");
            self.broken = Some(e.to_string());
            self.failure.send_replace(self.broken.clone());
        }
    }

    fn answer(&self, group: Vec<Waiting>) {
        if let (Some((_, mark)), None) = (group.last(), &self.broken) {
            *self.durable.lock().unwrap_or_else(PoisonError::into_inner) = *mark;
            if let Some(marker) = &self.marker {
                marker.put(*mark);
            }
        }
        for (waiter, _) in group {
            waiter.done(self.broken.as_ref().map_or(Ok(()), |why| Err(io::Error::other(why.clone()))));
        }
    }
}

/// What waits now and shares one sync.
fn gather(first: Waiting, waiting: &mut mpsc::UnboundedReceiver<Waiting>) -> Vec<Waiting> {
    let rest = std::iter::from_fn(|| waiting.try_recv().ok());
    std::iter::once(first).chain(rest).take(GROUP_MAX).collect()
}

fn sync_loop(backend: &dyn LogBackend, mut waiting: mpsc::UnboundedReceiver<Waiting>, mut syncs: Syncs) {
    while let Some(first) = waiting.blocking_recv() {
        let group = gather(first, &mut waiting);
        if syncs.broken.is_none() {
            let start = syncs.gauge.begin();
            let synced = backend.sync();
            syncs.gauge.end(start);
            syncs.note(synced);
        }
        syncs.answer(group);
    }
}

/// Takes the directory's lock; another manager, or another life of this one, may have it.
pub(super) fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(io_at("create", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(OpenError::Io { doing: "lock", path, source }),
    }
}

/// The directory names its node from its first opening on, so that a copied or
/// swapped directory is never another voter's memory.
fn check_identity(backend: &dyn LogBackend, dir: &Path, node: NodeId, member: &MemberId) -> Result<(), OpenError> {
    let damaged = |why: String| OpenError::Damaged { path: dir.to_owned(), why };
    let stored = backend.get(Meta::Identity).map_err(io_at("read", dir))?;
    let Some(bytes) = stored else {
        let has_log = backend.last().map_err(io_at("read", dir))?.is_some();
        if has_log {
            return Err(damaged("it has entries but no owner".to_owned()));
        }
        let owner = v1::NodeInfo { id: node.0, member: member.to_string(), address: String::new() };
        backend.put(Meta::Identity, record::seal(&owner)).map_err(io_at("write", dir))?;
        return backend.sync().map_err(io_at("sync", dir));
    };
    let owner: v1::NodeInfo = record::open(&bytes).map_err(|e| damaged(e.to_string()))?;
    if owner.id == node.0 && owner.member == member.as_str() {
        return Ok(());
    }
    Err(OpenError::Foreign {
        path: dir.to_owned(),
        node: NodeId(owner.id),
        member: owner.member,
        expected: format!("{node} ({member})"),
    })
}

/// Reads every record once: no hole, no flipped bit, and a vote if there are entries.
fn check_log(backend: &dyn LogBackend, dir: &Path) -> Result<(), OpenError> {
    let damaged = |why: String| OpenError::Damaged { path: dir.to_owned(), why };
    let purged = get_log_id(backend, Meta::Purged).map_err(|e| damaged(e.to_string()))?;
    get_log_id(backend, Meta::Committed).map_err(|e| damaged(e.to_string()))?;
    let vote = get_vote(backend).map_err(|e| damaged(e.to_string()))?;
    let first = match &purged {
        Some(id) => {
            // The marker is durable before the records go; what a crash left behind goes now.
            backend.purge(id.index).map_err(|e| damaged(e.to_string()))?;
            id.index + 1
        }
        None => 0,
    };
    let mut next = first;
    loop {
        let chunk = backend.read(next..next.saturating_add(256)).map_err(|e| damaged(e.to_string()))?;
        if chunk.is_empty() {
            break;
        }
        for (index, bytes) in chunk {
            if index != next {
                return Err(damaged(format!("entry {next} is missing, {index} is there")));
            }
            decode_entry(index, &bytes).map_err(|e| damaged(format!("entry {index}: {e}")))?;
            next += 1;
        }
    }
    let last = backend.last().map_err(|e| damaged(e.to_string()))?.map(|(index, _)| index);
    match last {
        Some(last) if last + 1 != next => Err(damaged(format!("entry {next} is missing, {last} is there"))),
        Some(_) if vote.is_none() => Err(damaged("it has entries but no vote".to_owned())),
        _ => Ok(()),
    }
}

/// How far the log has come.
fn mark_of(backend: &dyn LogBackend, node: NodeId) -> io::Result<Mark> {
    let purged = get_log_id(backend, Meta::Purged)?;
    let last = match backend.last()? {
        Some((index, bytes)) if purged.as_ref().is_none_or(|p| p.index < index) => {
            Some(decode_entry(index, &bytes)?.log_id)
        }
        _ => purged,
    };
    Ok(Mark { node, vote: get_vote(backend)?, last })
}

/// A log that is behind the mark beside it was put back from an older copy, or made anew: what it
/// acknowledged since then is forgotten, so it is nobody's vote any more.
fn check_mark(backend: &dyn LogBackend, dir: &Path, node: NodeId) -> Result<(), OpenError> {
    // The mark of another node says nothing: its member has been replaced since.
    let Some(marked) = mark::load(dir)?.filter(|m| m.node == node) else { return Ok(()) };
    let found = mark_of(backend, node).map_err(io_at("read", dir))?;
    if !marked.is_ahead_of(&found) {
        return Ok(());
    }
    Err(OpenError::WentBack { path: dir.to_owned(), found: found.words(), marked: marked.words() })
}

/// The id of the newest membership among the entries of the log.
fn newest_membership(backend: &dyn LogBackend) -> io::Result<u64> {
    for (index, bytes) in backend.read(0..u64::MAX)?.into_iter().rev() {
        let entry = decode_entry(index, &bytes)?;
        if let openraft::EntryPayload::Membership(_) = entry.payload {
            return Ok(membership_id(Some(&entry.log_id)));
        }
    }
    Ok(0)
}

fn decode_entry(index: u64, bytes: &[u8]) -> io::Result<Entry> {
    let entry = entry_in(record::open::<v1::Entry>(bytes)?)?;
    if entry.log_id.index == index {
        return Ok(entry);
    }
    let why = format!("the record at {index} says it is entry {}", entry.log_id.index);
    Err(io::Error::new(io::ErrorKind::InvalidData, why))
}

fn get_log_id(backend: &dyn LogBackend, meta: Meta) -> io::Result<Option<LogId>> {
    let Some(bytes) = backend.get(meta)? else {
        return Ok(None);
    };
    Ok(Some(log_id_in(&record::open::<v1::LogId>(&bytes)?)))
}

fn get_vote(backend: &dyn LogBackend) -> io::Result<Option<Vote>> {
    let Some(bytes) = backend.get(Meta::Vote)? else {
        return Ok(None);
    };
    Ok(Some(vote_in(&record::open::<v1::Vote>(&bytes)?)))
}

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let start = match range.start_bound() {
            Bound::Included(i) => *i,
            Bound::Excluded(i) => i.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(i) => i.saturating_add(1),
            Bound::Excluded(i) => *i,
            Bound::Unbounded => u64::MAX,
        };
        let records = self.backend()?.read(start..end)?;
        records.iter().map(|(index, bytes)| decode_entry(*index, bytes)).collect()
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        get_vote(self.backend()?.as_ref())
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let last = mark_of(self.backend.as_ref(), self.now.node)?.last;
        Ok(LogState { last_purged_log_id: self.purged()?, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader { backend: Arc::downgrade(&self.backend) }
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.backend.put(Meta::Vote, record::seal(&vote_out(vote)))?;
        self.now.vote = Some(*vote);
        self.durable().await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        // Not synced: after a power loss the state is only rebuilt a little later.
        let Some(id) = committed else {
            return Ok(());
        };
        self.backend.put(Meta::Committed, record::seal(&log_id_out(&id)))
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        let committed = get_log_id(self.backend.as_ref(), Meta::Committed)?;
        let last = self.get_log_state().await?.last_log_id;
        // Committed and the log are synced apart; what is not in the log can't be applied.
        Ok(committed.min(last))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        for entry in entries {
            self.now.last = Some(entry.log_id);
            if let openraft::EntryPayload::Membership(_) = entry.payload {
                self.membership.store(membership_id(Some(&entry.log_id)), Ordering::SeqCst);
            }
            records.push((entry.log_id.index, record::seal(&entry_out(&entry))));
        }
        self.backend.append(records)?;
        self.enqueue(Waiter::Append(callback))
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        self.backend.truncate(last_log_id.map_or(0, |id| id.index + 1))?;
        self.now.last = last_log_id;
        self.membership.store(newest_membership(self.backend.as_ref())?, Ordering::SeqCst);
        self.durable().await
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        self.backend.put(Meta::Purged, record::seal(&log_id_out(&log_id)))?;
        self.now.last = self.now.last.max(Some(log_id));
        self.durable().await?;
        self.backend.purge(log_id.index)?;
        self.membership.store(newest_membership(self.backend.as_ref())?, Ordering::SeqCst);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use openraft::{alias::OneshotReceiverOf, type_config::TypeConfigExt as _};

    use super::{super::test_disk::TestDisk, *};

    fn entry(index: u64) -> Entry {
        let log_id = log_id_in(&v1::LogId { term: 1, index });
        Entry { log_id, payload: openraft::EntryPayload::Blank }
    }

    async fn append(store: &mut LogStore, index: u64) -> OneshotReceiverOf<TypeConfig, io::Result<()>> {
        let (tx, rx) = TypeConfig::oneshot();
        store.append([entry(index)], IOFlushed::signal(tx)).await.unwrap();
        rx
    }

    #[tokio::test]
    async fn nothing_is_acknowledged_before_the_sync_and_one_sync_serves_all() {
        let disk = Arc::new(TestDisk::default());
        let mut store = LogStore::over(disk.clone()).unwrap();
        let hanging = disk.hang();
        let mut first = append(&mut store, 0).await;
        let mut rest = Vec::new();
        for index in 1..20 {
            rest.push(append(&mut store, index).await);
        }
        let readable = store.get_log_reader().await.try_get_log_entries(0..20).await.unwrap();
        assert_eq!(readable.len(), 20, "entries are readable before they are durable");
        tokio::time::sleep(Duration::from_millis(30)).await;
        assert!(first.try_recv().is_err(), "acknowledged without a sync");
        drop(hanging);
        first.await.unwrap().unwrap();
        for ack in rest {
            ack.await.unwrap().unwrap();
        }
        assert!(disk.syncs() <= 2, "the waiting writes share a sync");
    }

    #[tokio::test]
    async fn a_vote_waits_for_the_sync() {
        let disk = Arc::new(TestDisk::default());
        let mut store = LogStore::over(disk.clone()).unwrap();
        let vote = vote_in(&v1::Vote { term: 2, node_id: 1, committed: false });
        store.save_vote(&vote).await.unwrap();
        assert_eq!(disk.syncs(), 1);
        assert_eq!(store.get_log_reader().await.read_vote().await.unwrap(), Some(vote));
    }

    #[tokio::test]
    async fn a_failed_sync_is_never_tried_again() {
        let disk = Arc::new(TestDisk::default());
        let mut store = LogStore::over(disk.clone()).unwrap();
        disk.fail();
        assert!(append(&mut store, 0).await.await.unwrap().is_err());
        disk.recover();
        assert!(append(&mut store, 1).await.await.unwrap().is_err(), "what the first failure lost is unknown");
        assert_eq!(disk.syncs(), 1);
        assert_eq!(store.failed().borrow().as_deref(), Some("no space"));
    }

    fn check(disk: &TestDisk) -> Result<(), String> {
        check_log(disk, Path::new("log")).map_err(|e| e.to_string())
    }

    #[test]
    fn a_log_that_lost_something_is_refused() {
        let disk = TestDisk::default();
        assert_eq!(check(&disk), Ok(()), "an empty one is fine");
        disk.append((0..5).map(|i| (i, record::seal(&entry_out(&entry(i))))).collect()).unwrap();
        assert!(check(&disk).unwrap_err().contains("no vote"));
        disk.put(Meta::Vote, record::seal(&v1::Vote { term: 1, node_id: 1, committed: true })).unwrap();
        assert_eq!(check(&disk), Ok(()));
        disk.change(3, |record| record[8] ^= 1);
        assert!(check(&disk).unwrap_err().contains("entry 3"));
        disk.lose(3);
        assert!(check(&disk).unwrap_err().contains("entry 3 is missing"));
    }

    #[test]
    fn what_a_crash_left_of_a_purge_goes_at_the_next_opening() {
        let disk = TestDisk::default();
        disk.append((0..5).map(|i| (i, record::seal(&entry_out(&entry(i))))).collect()).unwrap();
        disk.put(Meta::Vote, record::seal(&v1::Vote { term: 1, node_id: 1, committed: true })).unwrap();
        disk.put(Meta::Purged, record::seal(&v1::LogId { term: 1, index: 2 })).unwrap();
        assert_eq!(check(&disk), Ok(()));
        assert_eq!(disk.read(0..9).unwrap().len(), 2);
    }

    #[test]
    fn a_directory_belongs_to_the_node_that_first_opened_it() {
        let disk = TestDisk::default();
        let check = |node, member: &str| {
            check_identity(&disk, Path::new("raft"), NodeId(node), &member.parse().unwrap()).map_err(|e| e.to_string())
        };
        assert_eq!(check(1, "n1"), Ok(()));
        assert_eq!(check(1, "n1"), Ok(()));
        assert!(check(2, "n1").unwrap_err().contains("belongs to node 1 (n1)"));
        assert!(check(1, "n2").is_err());
    }
}
