//! Where Raft's log and vote are kept. [`LogBackend`] is the seam: nothing
//! above it knows sled, and a test can stand in for the disk.

use std::{
    fs::{self, File},
    io,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use futures_util::future::BoxFuture;

use crate::domain::NodeId;

/// A larger value goes to a file of its own inside sled, which the sync of the
/// database file would not cover.
pub(super) const VALUE_MAX: usize = 256 * 1024;

const CACHE_BYTES: u64 = 4 << 20;

/// The few values kept beside the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meta {
    /// The vote.
    Vote,
    /// Up to where the log was purged.
    Purged,
    /// Up to where the log is known to be committed.
    Committed,
    /// Whose log this is.
    Identity,
}

impl Meta {
    fn key(self) -> &'static [u8] {
        match self {
            Self::Vote => b"vote",
            Self::Purged => b"purged",
            Self::Committed => b"committed",
            Self::Identity => b"identity",
        }
    }
}

/// A log of opaque records by index, and a few named values.
///
/// Changes are visible to reads when a call returns, and on disk when the next
/// [`LogBackend::sync`] returns. After a failed sync nothing is known about
/// what is on disk: it is never tried again, the process ends.
pub trait LogBackend: Send + Sync + 'static {
    /// Adds records, all or none.
    ///
    /// # Errors
    /// The store's; the log is then unusable.
    fn append(&self, records: Vec<(u64, Vec<u8>)>) -> io::Result<()>;
    /// Removes every record from `from` on, all or none.
    ///
    /// # Errors
    /// The store's; the log is then unusable.
    fn truncate(&self, from: u64) -> io::Result<()>;
    /// Removes every record up to and with `upto`.
    ///
    /// # Errors
    /// The store's; the log is then unusable.
    fn purge(&self, upto: u64) -> io::Result<()>;
    /// The records in a range, in order.
    ///
    /// # Errors
    /// The store's.
    fn read(&self, range: Range<u64>) -> io::Result<Vec<(u64, Vec<u8>)>>;
    /// The last record.
    ///
    /// # Errors
    /// The store's.
    fn last(&self) -> io::Result<Option<(u64, Vec<u8>)>>;
    /// Sets a named value; the vote is one of them.
    ///
    /// # Errors
    /// The store's; the log is then unusable.
    fn put(&self, meta: Meta, value: Vec<u8>) -> io::Result<()>;
    /// A named value.
    ///
    /// # Errors
    /// The store's.
    fn get(&self, meta: Meta) -> io::Result<Option<Vec<u8>>>;
    /// Returns when everything before this call is on disk.
    ///
    /// # Errors
    /// The store's; the log is then unusable.
    fn sync(&self) -> io::Result<()>;
}

/// A disk whose syncs take time without a thread of their own: that of a simulation, whose time is virtual.
pub trait SlowDisk: LogBackend {
    /// As [`LogBackend::sync`].
    fn sync_slowly(&self) -> BoxFuture<'_, io::Result<()>>;
}

/// Why a store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file operation failed.
    #[error("can't {doing} {}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another process has it.
    #[error("{} is in use by another manager", .0.display())]
    InUse(PathBuf),
    /// sled can't open its files, also not without its own snapshots.
    #[error("the Raft log in {} can't be opened: {why}", path.display())]
    Unusable {
        /// The log's directory.
        path: PathBuf,
        /// What sled says.
        why: String,
    },
    /// What was read contradicts what was promised to be there.
    #[error("the Raft log in {} is damaged: {why}; replace this member under a new node id", path.display())]
    Damaged {
        /// The log's directory.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It had come further once: it is an older copy, or it was made anew.
    #[error("the Raft log in {} went back: it has {found}, it had {marked}", path.display())]
    WentBack {
        /// The directory.
        path: PathBuf,
        /// How far it is.
        found: String,
        /// How far it was.
        marked: String,
    },
    /// It was written by another node.
    #[error(
        "{} belongs to node {node} ({member}), not to node {expected}; if the identity beside it was lost, move \
         the directory away and start again: this manager is then taken in as a new node",
        path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// The node that wrote it.
        node: NodeId,
        /// Whose node that is.
        member: String,
        /// Who asks.
        expected: String,
    },
}

pub(super) fn io_at<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> OpenError + 'a {
    move |source| OpenError::Io { doing, path: path.to_owned(), source }
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// `fdatasync`. A trait, so that a test sees whether it is called.
trait SyncData: Send + Sync {
    fn sync_data(&self) -> io::Result<()>;
}

impl SyncData for File {
    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }
}

/// The log in a sled database.
///
/// sled's own `flush` ends in `sync_file_range`, which puts nothing safely on
/// disk; every [`SledBackend::sync`] therefore ends in an `fdatasync` of our own.
pub(super) struct SledBackend {
    db: sled::Db,
    log: sled::Tree,
    meta: sled::Tree,
    file: Box<dyn SyncData>,
    /// Held until the database is closed; another manager is refused.
    _lock: File,
}

impl SledBackend {
    /// Opens or creates the log in `dir`, which `lock` keeps others from.
    ///
    /// # Errors
    /// If sled can't open it even after its snapshots were set aside, or if the
    /// files can't be made durable.
    pub(super) fn open(dir: &Path, lock: File) -> Result<Self, OpenError> {
        fs::create_dir_all(dir).map_err(io_at("create", dir))?;
        // A crash while sled writes a snapshot leaves this file, and sled then
        // calls the whole database corrupt for ever.
        remove_generating(dir)?;
        let db = match open_sled(dir) {
            Ok(db) => db,
            Err(first) => {
                // sled's snapshots only shorten the recovery; the log holds everything.
                tracing::warn!(dir = %dir.display(), why = %first, "sled failed to open; trying without its snapshots");
                set_snapshots_aside(dir)?;
                open_sled(dir).map_err(|why| OpenError::Unusable { path: dir.to_owned(), why })?
            }
        };
        let unusable = |e: sled::Error| OpenError::Unusable { path: dir.to_owned(), why: e.to_string() };
        let log = db.open_tree("log").map_err(unusable)?;
        let meta = db.open_tree("meta").map_err(unusable)?;
        let path = dir.join("db");
        let file = File::open(&path).map_err(io_at("open", &path))?;
        db.flush().map_err(unusable)?;
        file.sync_all().map_err(io_at("sync", &path))?;
        let conf = dir.join("conf");
        File::open(&conf).and_then(|f| f.sync_all()).map_err(io_at("sync", &conf))?;
        sync_dir(dir).map_err(io_at("sync", dir))?;
        Ok(Self { db, log, meta, file: Box::new(file), _lock: lock })
    }
}

fn open_sled(dir: &Path) -> Result<sled::Db, String> {
    let config = sled::Config::new()
        .path(dir)
        .cache_capacity(CACHE_BYTES)
        .mode(sled::Mode::HighThroughput)
        // Its own flusher would fsync behind our back at its own pace.
        .flush_every_ms(None);
    // sled panics on some damage instead of returning an error.
    match catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(e)) => Err(e.to_string()),
        Err(panic) => Err(format!("sled panicked: {}", panic_text(panic.as_ref()))),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}

fn snapshots(dir: &Path) -> Result<Vec<PathBuf>, OpenError> {
    let entries = fs::read_dir(dir).map_err(io_at("read", dir))?;
    let paths: Vec<PathBuf> =
        entries.map(|e| e.map(|e| e.path())).collect::<io::Result<_>>().map_err(io_at("read", dir))?;
    let is_snapshot = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("snap."));
    Ok(paths.into_iter().filter(is_snapshot).collect())
}

fn remove_generating(dir: &Path) -> Result<(), OpenError> {
    for path in snapshots(dir)?.iter().filter(|p| p.extension().is_some_and(|e| e == "generating")) {
        tracing::info!(path = %path.display(), "removing a half-written sled snapshot");
        fs::remove_file(path).map_err(io_at("remove", path))?;
    }
    Ok(())
}

fn set_snapshots_aside(dir: &Path) -> Result<(), OpenError> {
    let aside = dir.join("set-aside");
    fs::create_dir_all(&aside).map_err(io_at("create", &aside))?;
    for path in snapshots(dir)? {
        if let Some(name) = path.file_name() {
            fs::rename(&path, aside.join(name)).map_err(io_at("set aside", &path))?;
        }
    }
    Ok(())
}

fn sled_io(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(e) => e,
        other => io::Error::other(other),
    }
}

fn index_of(key: &[u8]) -> io::Result<u64> {
    let bytes: [u8; 8] =
        key.try_into().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a log key is not eight bytes long"))?;
    Ok(u64::from_be_bytes(bytes))
}

fn check_size(len: usize) -> io::Result<()> {
    if len <= VALUE_MAX {
        return Ok(());
    }
    let why = format!("a record of {len} bytes is larger than {VALUE_MAX}");
    Err(io::Error::new(io::ErrorKind::InvalidInput, why))
}

impl LogBackend for SledBackend {
    fn append(&self, records: Vec<(u64, Vec<u8>)>) -> io::Result<()> {
        let mut batch = sled::Batch::default();
        for (index, record) in records {
            check_size(record.len())?;
            batch.insert(&index.to_be_bytes(), record);
        }
        self.log.apply_batch(batch).map_err(sled_io)
    }

    fn truncate(&self, from: u64) -> io::Result<()> {
        let mut batch = sled::Batch::default();
        for key in self.log.range(from.to_be_bytes()..).keys() {
            batch.remove(key.map_err(sled_io)?);
        }
        self.log.apply_batch(batch).map_err(sled_io)
    }

    fn purge(&self, upto: u64) -> io::Result<()> {
        let mut batch = sled::Batch::default();
        for key in self.log.range(..=upto.to_be_bytes()).keys() {
            batch.remove(key.map_err(sled_io)?);
        }
        self.log.apply_batch(batch).map_err(sled_io)
    }

    fn read(&self, range: Range<u64>) -> io::Result<Vec<(u64, Vec<u8>)>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let pairs = self.log.range(range.start.to_be_bytes()..range.end.to_be_bytes());
        pairs
            .map(|pair| {
                let (key, value) = pair.map_err(sled_io)?;
                Ok((index_of(&key)?, value.to_vec()))
            })
            .collect()
    }

    fn last(&self) -> io::Result<Option<(u64, Vec<u8>)>> {
        let Some((key, value)) = self.log.last().map_err(sled_io)? else {
            return Ok(None);
        };
        Ok(Some((index_of(&key)?, value.to_vec())))
    }

    fn put(&self, meta: Meta, value: Vec<u8>) -> io::Result<()> {
        check_size(value.len())?;
        self.meta.insert(meta.key(), value).map_err(sled_io).map(drop)
    }

    fn get(&self, meta: Meta) -> io::Result<Option<Vec<u8>>> {
        Ok(self.meta.get(meta.key()).map_err(sled_io)?.map(|v| v.to_vec()))
    }

    fn sync(&self) -> io::Result<()> {
        self.db.flush().map_err(sled_io)?;
        // The one line that makes a vote or an entry survive a power loss.
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    struct Counting(Arc<AtomicUsize>);

    impl SyncData for Counting {
        fn sync_data(&self) -> io::Result<()> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    }

    fn open(dir: &Path) -> SledBackend {
        SledBackend::open(dir, File::create(dir.join("lock")).unwrap()).unwrap()
    }

    // sled's flush alone is no durability; tests/power_loss.rs shows what it loses.
    #[test]
    fn every_sync_ends_in_an_fdatasync_of_the_database_file() {
        let dir = tempfile::tempdir().unwrap();
        let count = Arc::new(AtomicUsize::new(0));
        let backend = SledBackend { file: Box::new(Counting(Arc::clone(&count))), ..open(dir.path()) };
        for round in 1..=3 {
            backend.put(Meta::Vote, vec![round]).unwrap();
            backend.sync().unwrap();
            assert_eq!(count.load(Ordering::SeqCst), usize::from(round));
        }
    }

    #[test]
    fn truncate_and_purge_take_what_they_name() {
        let dir = tempfile::tempdir().unwrap();
        let backend = open(dir.path());
        backend.append((0..10).map(|i| (i, vec![1])).collect()).unwrap();
        backend.truncate(8).unwrap();
        backend.purge(2).unwrap();
        let left: Vec<u64> = backend.read(0..u64::MAX).unwrap().into_iter().map(|(i, _)| i).collect();
        assert_eq!(left, [3, 4, 5, 6, 7]);
        assert_eq!(backend.last().unwrap().unwrap().0, 7);
    }

    #[test]
    fn a_record_that_sled_would_put_in_a_file_of_its_own_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let backend = open(dir.path());
        assert!(backend.append(vec![(0, vec![0; VALUE_MAX + 1])]).is_err());
        assert!(backend.last().unwrap().is_none());
    }
}
