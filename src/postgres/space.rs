//! How much room PostgreSQL has, and a file that keeps some of it back.
//!
//! The reserve has no content. When a volume is full it is removed, and PostgreSQL can start, stop and write the last of
//! its WAL. For the data directory it lies beside it, where copies are made too. For WAL on a volume of its own it lies in
//! `pg_wal`, under the prefix of PostgreSQL's own temporary files, which `pg_rewind` and `pg_basebackup` pass over.
//! A file system that compresses, or shares blocks, may keep back less than the file's size.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::{fcntl::posix_fallocate, sys::statvfs::statvfs};

use super::{error::PostgresError, files, instance::Instance};

/// A volume by what PostgreSQL keeps there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The data directory.
    Data,
    /// `pg_wal`, when it is on another volume.
    Wal,
}

/// One volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VolumeSpace {
    /// Bytes that an ordinary user can still write.
    pub free: u64,
    /// Bytes in all.
    pub size: u64,
    /// Bytes of the reserve; 0 when there is none.
    pub reserve: u64,
}

/// The volumes of this host's PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    /// That of the data directory.
    pub data: VolumeSpace,
    /// That of `pg_wal`, when it is another one.
    pub wal: Option<VolumeSpace>,
}

impl Instance {
    /// How much room there is. Waits for the file system, which may hang.
    ///
    /// # Errors
    /// A file system can't be asked.
    pub fn space(&self) -> io::Result<Space> {
        let data_dir = self.data_dir();
        let data = self.volume(existing(data_dir), Place::Data)?;
        let wal = match self.wal_apart() {
            Some(real) => Some(self.volume(&real, Place::Wal)?),
            None => None,
        };
        Ok(Space { data, wal })
    }

    /// The real directory of WAL, when it is on another volume than the data directory.
    pub(super) fn wal_apart(&self) -> Option<PathBuf> {
        self.try_wal_apart().ok().flatten()
    }

    /// WAL is on another volume than the data directory, as far as can be told.
    pub fn has_wal_apart(&self) -> bool {
        self.wal_apart().is_some()
    }

    /// The same, for whoever has to know that it could not be told.
    pub(super) fn try_wal_apart(&self) -> io::Result<Option<PathBuf>> {
        let real = fs::canonicalize(self.pg_wal())?;
        let device = |path: &Path| fs::metadata(path).map(|m| m.dev());
        Ok((device(&real)? != device(self.data_dir())?).then_some(real))
    }

    fn volume(&self, dir: &Path, place: Place) -> io::Result<VolumeSpace> {
        let stat = statvfs(dir)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
        let reserve = fs::metadata(self.reserve(place)).map_or(0, |m| m.len());
        Ok(VolumeSpace { free: bytes(stat.blocks_available()), size: bytes(stat.blocks()), reserve })
    }

    fn reserve(&self, place: Place) -> PathBuf {
        match place {
            Place::Data => files::beside(self.data_dir(), ".matriarch-reserve"),
            Place::Wal => self.pg_wal().join("pgsql_tmp.matriarch-reserve"),
        }
    }

    /// Keeps `bytes` back. On failure nothing is kept.
    ///
    /// # Errors
    /// There is no such room, or the file can't be made.
    pub fn make_reserve(&self, place: Place, bytes: u64) -> Result<(), PostgresError> {
        let path = self.reserve(place);
        let make = || -> io::Result<()> {
            let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
            let length = i64::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
            posix_fallocate(&file, 0, length)?;
            file.sync_all()
        };
        make().map_err(|error| {
            let _ = fs::remove_file(&path);
            PostgresError::file("making the reserve", &path)(error)
        })
    }

    /// Frees what was kept back. True when something was.
    ///
    /// # Errors
    /// The file can't be removed.
    pub fn free_reserve(&self, place: Place) -> Result<bool, PostgresError> {
        let path = self.reserve(place);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(PostgresError::file("freeing the reserve", &path)(error)),
        }
    }
}

/// `dir`, or the nearest one above it that is there.
fn existing(dir: &Path) -> &Path {
    dir.ancestors().find(|d| d.exists()).unwrap_or_else(|| Path::new("/"))
}
