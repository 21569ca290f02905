//! openraft's state machine over `ClusterState::apply`. The state is in memory;
//! a restart rebuilds it from the snapshot file and the log.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, future::BoxFuture};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder,
    storage::{EntryResponder, RaftStateMachine},
};
use tokio::sync::watch;

use super::{
    backend::{OpenError, io_at, sync_dir},
    convert::{meta_in, meta_out},
    record,
    types::{LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig},
};
use crate::{
    rpc::{codec, v1},
    state::{Applied, ClusterState},
};

/// Where a node's newest snapshot is kept. The seam for a simulation.
pub trait SnapshotStore: Send + Sync + 'static {
    /// Replaces what is kept unless that covers as much already. When this ends what is kept is on
    /// disk; until then the one before is, as a whole.
    fn save(self: Arc<Self>, meta: SnapshotMeta, state: Bytes) -> BoxFuture<'static, io::Result<()>>;
    /// What is kept.
    fn load(self: Arc<Self>) -> BoxFuture<'static, io::Result<Option<Snapshot>>>;
}

impl SnapshotStore for SnapshotFile {
    fn save(self: Arc<Self>, meta: SnapshotMeta, state: Bytes) -> BoxFuture<'static, io::Result<()>> {
        Box::pin(off_thread(move || self.write(&meta, &state)))
    }

    fn load(self: Arc<Self>) -> BoxFuture<'static, io::Result<Option<Snapshot>>> {
        Box::pin(off_thread(move || self.read()))
    }
}

/// The snapshot: one file, replaced as a whole.
pub(super) struct SnapshotFile {
    path: PathBuf,
    /// What the file covers; `None` without a file. Also keeps writers apart.
    covers: Mutex<Option<SnapshotMeta>>,
}

impl SnapshotFile {
    /// Opens `dir/snapshot`, if there is one, and removes a half-written one.
    pub(super) fn open(dir: &Path) -> Result<Self, OpenError> {
        fs::create_dir_all(dir).map_err(io_at("create", dir))?;
        let path = dir.join("snapshot");
        let unfinished = path.with_extension("tmp");
        match fs::remove_file(&unfinished) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_at("remove", &unfinished)(e)),
            _ => {}
        }
        let file = Self { path, covers: Mutex::new(None) };
        let found = file.read().map_err(|e| match e.kind() {
            io::ErrorKind::InvalidData => OpenError::Damaged { path: file.path.clone(), why: e.to_string() },
            _ => io_at("read", &file.path)(e),
        })?;
        *lock(&file.covers) = found.map(|snapshot| snapshot.meta);
        Ok(file)
    }

    fn read(&self) -> io::Result<Option<Snapshot>> {
        let bytes = match fs::read(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let file: v1::SnapshotFile = record::open(&bytes)?;
        let meta = file.meta.ok_or_else(|| record::RecordError::Nonsense("a snapshot without meta".to_owned()))?;
        Ok(Some(Snapshot { meta: meta_in(meta)?, snapshot: file.state }))
    }

    /// Replaces the file unless it covers as much already.
    pub(super) fn write(&self, meta: &SnapshotMeta, state: &Bytes) -> io::Result<()> {
        let mut covers = lock(&self.covers);
        if covers.as_ref().is_some_and(|c| c.last_log_id >= meta.last_log_id) {
            return Ok(());
        }
        let bytes = record::seal(&v1::SnapshotFile { meta: Some(meta_out(meta)), state: state.clone() });
        let unfinished = self.path.with_extension("tmp");
        let mut file = File::create(&unfinished)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, &self.path)?;
        if let Some(dir) = self.path.parent() {
            sync_dir(dir)?;
        }
        *covers = Some(meta.clone());
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here panics between two dependent writes, so a poisoned value is a whole one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// The applied state, and where it came from.
pub struct StateMachine {
    kept: Arc<dyn SnapshotStore>,
    last_applied: Option<LogId>,
    membership: StoredMembership,
    state: Arc<ClusterState>,
    published: watch::Sender<Arc<ClusterState>>,
}

impl StateMachine {
    /// An empty machine over `dir`; openraft installs the snapshot and applies
    /// the log before it uses it.
    ///
    /// # Errors
    /// [`OpenError`] if the snapshot file can't be read or is damaged.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        Ok(Self::over(Arc::new(SnapshotFile::open(dir)?)))
    }

    /// An empty machine over what keeps its snapshots.
    pub fn over(kept: Arc<dyn SnapshotStore>) -> Self {
        let state = Arc::new(ClusterState::default());
        Self {
            kept,
            last_applied: None,
            membership: StoredMembership::default(),
            published: watch::Sender::new(Arc::clone(&state)),
            state,
        }
    }

    /// The state after every applied entry.
    pub fn watch(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.published.subscribe()
    }

    fn apply_command(&mut self, bytes: &[u8]) -> io::Result<Applied> {
        // A command this version can't read is committed all the same: going on
        // without it would be another history, so the process ends.
        let command = codec::decode_command(bytes)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("committed command: {e}")))?;
        let applied = Arc::make_mut(&mut self.state).apply(&command);
        self.published.send_replace(Arc::clone(&self.state));
        Ok(applied)
    }

    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.last_applied, last_membership: self.membership.clone() }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.last_applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let applied = match entry.payload {
                EntryPayload::Blank => Applied::Nothing,
                EntryPayload::Normal(command) => self.apply_command(&command.0)?,
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Applied::Nothing
                }
            };
            self.last_applied = Some(entry.log_id);
            // After the publication, so that a proposer sees its own change in the watch.
            if let Some(responder) = responder {
                responder.send(applied);
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Builder> {
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { kept: Arc::clone(&self.kept), meta: self.meta(), state: Arc::clone(&self.state) }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Bytes) -> io::Result<()> {
        let state = codec::decode_state(&snapshot)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("snapshot: {e}")))?;
        Arc::clone(&self.kept).save(meta.clone(), snapshot).await?;
        self.last_applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.state = Arc::new(state);
        self.published.send_replace(Arc::clone(&self.state));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        Arc::clone(&self.kept).load().await
    }
}

/// A frozen view of the state that becomes a snapshot.
pub struct Builder {
    kept: Arc<dyn SnapshotStore>,
    meta: SnapshotMeta,
    state: Arc<ClusterState>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let snapshot = Bytes::from(codec::encode_state(&self.state));
        Arc::clone(&self.kept).save(self.meta.clone(), snapshot.clone()).await?;
        Ok(Snapshot { meta: self.meta.clone(), snapshot })
    }
}
