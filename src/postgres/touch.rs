//! Whether a volume takes writes: one block, written into a small file and flushed, as PostgreSQL flushes its WAL.
//!
//! The file lies where the reserve of the volume does (see [`super::space`]), for the same reasons.

use std::{
    fs::{self, OpenOptions},
    io::{self, ErrorKind},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::PathBuf,
};

use nix::errno::Errno;

use super::{files, instance::Instance, space::Place, vitals::device_of};

/// As much as a page of most file systems: it is written over in place, so only the first one takes room.
const BLOCK: usize = 4096;

/// What became of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touch {
    /// It is on the disk.
    Written,
    /// There is no database: its files are not, or not any more, where they belong.
    Missing,
    /// The file system says that it, or what it stands on, fails.
    Failing(String),
    /// It could not be tried, which says nothing of the disk: there is no room, no right, or no such volume.
    Untried(String),
}

impl Instance {
    /// Writes one block to the volume and waits for the disk, which may hang: only for a thread that may, too. Without a
    /// database nothing is written, so that nothing is left where a volume is not mounted.
    pub fn touch(&self, place: Place) -> Touch {
        match self.try_touch(place) {
            Ok(touch) => touch,
            Err(error) => judge(&error),
        }
    }

    fn try_touch(&self, place: Place) -> io::Result<Touch> {
        for file in ["PG_VERSION", "global/pg_control"] {
            match fs::metadata(self.data_dir().join(file)) {
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                    return Ok(Touch::Missing);
                }
                Err(error) => return Err(error),
            }
        }
        if self.is_to_be_adopted() {
            return Ok(Touch::Untried("it is not Matriarch's yet".to_owned()));
        }
        if place == Place::Wal && self.try_wal_apart()?.is_none() {
            return Ok(Touch::Untried("WAL has no volume of its own".to_owned()));
        }
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.custom_flags(nix::libc::O_NOFOLLOW).open(self.touched(place))?;
        file.write_all_at(&[0; BLOCK], 0)?;
        file.sync_data()?;
        Ok(Touch::Written)
    }

    /// Where the kernel counts what the disk below this volume has done.
    pub fn device(&self, place: Place) -> Option<PathBuf> {
        match place {
            Place::Data => device_of(self.data_dir()),
            Place::Wal => device_of(&self.pg_wal()),
        }
    }

    fn touched(&self, place: Place) -> PathBuf {
        match place {
            Place::Data => files::beside(self.data_dir(), ".matriarch-probe"),
            Place::Wal => self.pg_wal().join("pgsql_tmp.matriarch-probe"),
        }
    }
}

/// Only what says that the storage itself is broken counts against it.
fn judge(error: &io::Error) -> Touch {
    let broken = [
        Errno::EIO,
        Errno::EROFS,
        Errno::EUCLEAN,
        Errno::ENODEV,
        Errno::ENXIO,
        Errno::ENODATA,
        Errno::EREMOTEIO,
        Errno::ESTALE,
    ];
    match error.raw_os_error().map(Errno::from_raw) {
        Some(errno) if broken.contains(&errno) => Touch::Failing(error.to_string()),
        Some(_) | None => Touch::Untried(error.to_string()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn want_of_room_or_of_a_right_is_no_failure_of_the_disk() {
        for errno in [Errno::EIO, Errno::EROFS, Errno::EUCLEAN] {
            assert!(matches!(judge(&errno.into()), Touch::Failing(_)), "{errno}");
        }
        for errno in [Errno::ENOSPC, Errno::EDQUOT, Errno::EACCES, Errno::EMFILE] {
            assert!(matches!(judge(&errno.into()), Touch::Untried(_)), "{errno}");
        }
    }
}
