//! Unpacks a base backup: a directory or tar files, as pg_basebackup makes them.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    command::{Helper, HelperError, Progress},
    content::Said,
    error::PostgresError,
    files,
};

/// The backup can't be used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// It is not what was expected.
    #[error("{}: {problem}", place.display())]
    Odd {
        /// The backup, or a part of it.
        place: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// tar failed.
    #[error("unpacking {}", archive.display())]
    Tar {
        /// Which file.
        archive: PathBuf,
        /// Its words.
        #[source]
        source: HelperError,
    },
    /// A file can't be copied.
    #[error("{doing} {}", path.display())]
    File {
        /// Present participle.
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another step failed.
    #[error(transparent)]
    Step(#[from] PostgresError),
}

/// How a backup is laid out.
#[derive(Debug, PartialEq, Eq)]
enum Layout {
    /// A data directory.
    Plain,
    /// `base.tar`, perhaps compressed, and perhaps `pg_wal.tar`.
    Tar { base: PathBuf, wal: Option<PathBuf> },
}

/// Copies the backup `from` into the empty directory `to`.
pub(super) async fn unpack(
    from: &Path,
    to: &Path,
    deadline: Duration,
    lock: impl Fn() -> Result<File, PostgresError>,
    said: Said<'_>,
) -> Result<(), BackupError> {
    match layout(from)? {
        Layout::Plain => {
            let copied = tokio::time::timeout(deadline, copy(from, to, said)).await;
            copied.unwrap_or_else(|_| {
                let problem = format!("copying it took longer than {} s (deadline_s)", deadline.as_secs());
                Err(BackupError::Odd { place: from.to_owned(), problem })
            })
        }
        Layout::Tar { base, wal } => {
            untar(&base, to, deadline, lock()?, said).await?;
            if let Some(wal) = wal {
                untar(&wal, &to.join("pg_wal"), deadline, lock()?, said).await?;
            }
            let manifest = from.join("backup_manifest");
            if from.is_dir() && manifest.exists() {
                let doing = "copying";
                fs::copy(&manifest, to.join("backup_manifest")).map_err(|source| BackupError::File {
                    doing,
                    path: manifest,
                    source,
                })?;
            }
            no_tablespaces(to)
        }
    }
}

fn layout(from: &Path) -> Result<Layout, BackupError> {
    let odd = |problem: &str| BackupError::Odd { place: from.to_owned(), problem: problem.to_owned() };
    let meta =
        fs::metadata(from).map_err(|source| BackupError::File { doing: "reading", path: from.into(), source })?;
    if !meta.is_dir() {
        return Ok(Layout::Tar { base: from.to_owned(), wal: None });
    }
    if from.join("PG_VERSION").exists() {
        no_tablespaces(from)?;
        return Ok(Layout::Plain);
    }
    let entries =
        fs::read_dir(from).map_err(|source| BackupError::File { doing: "reading", path: from.into(), source })?;
    let (mut base, mut wal) = (None, None);
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        match name.split_once(".tar").map(|(stem, _)| stem) {
            Some("base") => base = Some(entry.path()),
            Some("pg_wal") => wal = Some(entry.path()),
            Some(oid) if oid.parse::<u32>().is_ok() => return Err(odd(TABLESPACES)),
            Some(_) | None => {}
        }
    }
    base.map(|base| Layout::Tar { base, wal }).ok_or_else(|| odd("it holds neither PG_VERSION nor base.tar"))
}

const TABLESPACES: &str =
    "it has tablespaces; restore it with bootstrap.method = command, whose program says where they go";

/// Where they would have to go nobody has said; their links lead into the cluster the backup is of.
fn no_tablespaces(dir: &Path) -> Result<(), BackupError> {
    let linked = fs::read_dir(dir.join("pg_tblspc")).is_ok_and(|mut entries| entries.next().is_some());
    match linked || fs::metadata(dir.join("tablespace_map")).is_ok_and(|map| map.len() > 0) {
        true => Err(BackupError::Odd { place: dir.to_owned(), problem: TABLESPACES.to_owned() }),
        false => Ok(()),
    }
}

async fn untar(archive: &Path, to: &Path, deadline: Duration, lock: File, said: Said<'_>) -> Result<(), BackupError> {
    fs::create_dir_all(to).map_err(|source| BackupError::File { doing: "creating", path: to.into(), source })?;
    // GNU tar sees the compression by itself.
    let tar = Helper::new(Path::new("/"), "/usr/bin/tar", deadline).holding(lock);
    let tar = tar.arg("--extract").arg("--file").arg(archive).arg("--directory").arg(to);
    let ran = tar.run(|line| said.line(line)).await;
    ran.map(drop).map_err(|source| BackupError::Tar { archive: archive.to_owned(), source })
}

/// What there is to copy.
#[derive(Default)]
struct Found {
    dirs: Vec<PathBuf>,
    files: Vec<(PathBuf, u64)>,
    bytes: u64,
}

async fn copy(from: &Path, to: &Path, said: Said<'_>) -> Result<(), BackupError> {
    let root = from.to_owned();
    let found = blocking(move || {
        let mut found = Found::default();
        find(&root, Path::new(""), &mut found)?;
        Ok(found)
    })
    .await?;
    for dir in &found.dirs {
        let dir = to.join(dir);
        fs::create_dir_all(&dir).map_err(|source| BackupError::File { doing: "creating", path: dir, source })?;
    }
    let (mut done, total) = (0, found.bytes);
    for (file, bytes) in found.files {
        let (source, target) = (from.join(&file), to.join(&file));
        blocking(move || {
            let copied = fs::copy(&source, &target);
            copied.map(drop).map_err(|error| BackupError::File { doing: "copying", path: source, source: error })
        })
        .await?;
        done += bytes;
        let phase = "copying the backup".into();
        said.progress(Progress { phase, done_bytes: done, total_bytes: total });
    }
    Ok(())
}

/// `below` is relative to `root`. Links are followed: `pg_wal` may be one.
fn find(root: &Path, below: &Path, found: &mut Found) -> Result<(), BackupError> {
    let dir = root.join(below);
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |source| BackupError::File { doing: "reading", path, source }
    };
    for entry in fs::read_dir(&dir).map_err(fail(&dir))? {
        let entry = entry.map_err(fail(&dir))?;
        let (path, name) = (entry.path(), below.join(entry.file_name()));
        let meta = fs::metadata(&path).map_err(fail(&path))?;
        if meta.is_dir() {
            found.dirs.push(name.clone());
            find(root, &name, found)?;
        } else if meta.is_file() {
            found.bytes += meta.len();
            found.files.push((name, meta.len()));
        }
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, BackupError> {
    files::blocking(move || Ok(work())).await?
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_is_a_directory_or_tar_files_and_has_no_tablespaces() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        assert!(layout(at).unwrap_err().to_string().contains("neither PG_VERSION nor base.tar"));
        fs::write(at.join("base.tar.gz"), "").unwrap();
        fs::write(at.join("pg_wal.tar.gz"), "").unwrap();
        let tar = Layout::Tar { base: at.join("base.tar.gz"), wal: Some(at.join("pg_wal.tar.gz")) };
        assert_eq!(layout(at).unwrap(), tar);
        fs::write(at.join("16384.tar.gz"), "").unwrap();
        assert!(layout(at).unwrap_err().to_string().contains("tablespaces"));
        fs::write(at.join("PG_VERSION"), "15\n").unwrap();
        assert_eq!(layout(at).unwrap(), Layout::Plain);
        fs::create_dir_all(at.join("pg_tblspc/16384")).unwrap();
        assert!(layout(at).unwrap_err().to_string().contains("tablespaces"));
        assert!(layout(&at.join("missing")).is_err());
        let file = at.join("base.tar.gz");
        assert_eq!(layout(&file).unwrap(), Layout::Tar { base: file.clone(), wal: None });
    }
}
