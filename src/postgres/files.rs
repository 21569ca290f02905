//! Durable file operations, and the lock that keeps operations on one data directory apart.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};
use tokio::sync::Semaphore;

use super::error::PostgresError;

/// `<path><suffix>`, beside `path`: `/a/data` and `.new` make `/a/data.new`.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path.as_os_str());
    name.push(suffix);
    PathBuf::from(name)
}

/// Makes it survive a power loss: the bytes of a file, or what was created, renamed and removed in a directory.
pub(super) fn sync(path: &Path) -> Result<(), PostgresError> {
    File::open(path).and_then(|it| it.sync_all()).map_err(PostgresError::file("syncing", path))
}

/// Makes the entry of `path` in its directory survive a power loss.
pub(super) fn sync_parent(path: &Path) -> Result<(), PostgresError> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync(parent),
        _ => Ok(()),
    }
}

/// Replaces `path` in one step, mode 0600; a reader sees the old text or the new one.
pub(super) fn replace(path: &Path, text: &str) -> Result<(), PostgresError> {
    if fs::read(path).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(());
    }
    let temporary = beside(path, ".matriarch-tmp");
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(PostgresError::file("writing", &temporary))?;
    fs::rename(&temporary, path).map_err(PostgresError::file("putting in place", path))?;
    sync_parent(path)
}

/// Makes `path` exist as an (empty or given) file, durably.
pub(super) fn ensure(path: &Path, text: &str) -> Result<(), PostgresError> {
    if path.exists() { Ok(()) } else { replace(path, text) }
}

/// Removes a file if it is there, durably. True when it was.
pub(super) fn remove(path: &Path) -> Result<bool, PostgresError> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(PostgresError::File { doing: "removing", path: path.to_owned(), source }),
    }
}

/// Removes a directory and all in it, if it is there, off the runtime's threads.
pub(super) async fn remove_tree(path: &Path) -> Result<(), PostgresError> {
    let path = path.to_owned();
    blocking(move || match remove_all(&path) {
        Ok(()) => sync_parent(&path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(PostgresError::File { doing: "removing", path, source }),
    })
    .await
}

/// A process that was killed a moment ago may still end what it was writing there.
fn remove_all(path: &Path) -> io::Result<()> {
    for _ in 0..20 {
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => thread::sleep(Duration::from_millis(50)),
            done => return done,
        }
    }
    fs::remove_dir_all(path)
}

/// So many reads may hang at once on a disk under which reading hangs; each leaves a thread behind until it goes on.
static READS: Semaphore = Semaphore::const_new(2);

/// [`blocking`] for whoever may give up before it ends, and come again.
pub(super) async fn reading<T, F>(work: F) -> Result<T, PostgresError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, PostgresError> + Send + 'static,
{
    // It is never closed.
    let permit = READS.acquire().await.ok();
    blocking(move || {
        let _permit = permit;
        work()
    })
    .await
}

/// Runs file work that may take long on a thread that may block.
pub(super) async fn blocking<T, F>(work: F) -> Result<T, PostgresError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, PostgresError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => Err(PostgresError::File { doing: "working on", path: PathBuf::new(), source: error.into() }),
    }
}

/// Held while one operation works on a data directory. The helper programs inherit it, so that a
/// pg_basebackup that outlives its agent still keeps the next one out.
pub(super) struct OperationLock(Flock<File>);

impl OperationLock {
    /// Takes `<data_dir>.lock`, or says `Busy`.
    pub(super) fn take(data_dir: &Path) -> Result<Self, PostgresError> {
        let path = beside(data_dir, ".lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(PostgresError::file("opening", &path))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self(lock)),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(PostgresError::Busy { lock: path }),
            Err((_, errno)) => Err(PostgresError::File { doing: "locking", path, source: errno.into() }),
        }
    }

    /// A handle for a helper to inherit.
    pub(super) fn share(&self) -> Result<File, PostgresError> {
        self.0.try_clone().map_err(PostgresError::file("sharing", "the operation lock"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_is_for_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let first = OperationLock::take(&data).unwrap();
        assert!(matches!(OperationLock::take(&data), Err(PostgresError::Busy { .. })));
        drop(first);
        OperationLock::take(&data).unwrap();
    }

    #[test]
    fn a_replaced_file_has_the_new_text_and_no_leftover() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.conf");
        replace(&path, "one").unwrap();
        replace(&path, "two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(remove(&path).unwrap());
        assert!(!remove(&path).unwrap());
    }
}
