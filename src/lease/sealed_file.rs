//! The one file of an acceptor: which epoch it sealed, and how long a restart has
//! to wait. One line of text with a checksum, replaced as a whole.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use super::acceptor::Durable;
use crate::domain::{Epoch, TimingsId};

const NAME: &str = "sealed";
const HEAD: &str = "matriarch-sealed-2";
/// Without the oldest timings: those of the hosts' files were the only ones.
const HEAD_1: &str = "matriarch-sealed-1";

/// The file can't be read or replaced.
#[derive(Debug, thiserror::Error)]
pub enum SealedFileError {
    /// Reading failed.
    #[error("read sealed epoch from {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what [`store`] writes. Going on with a lower epoch could let an old primary renew.
    #[error("{} is damaged: `{text}`; a voter that lost its seals must rejoin as a new one", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What it says.
        text: String,
    },
    /// Writing failed.
    #[error("make sealed epoch durable in {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl From<SealedFileError> for io::Error {
    fn from(error: SealedFileError) -> Self {
        let kind = match &error {
            SealedFileError::Read { source, .. } | SealedFileError::Write { source, .. } => source.kind(),
            SealedFileError::Damaged { .. } => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, error)
    }
}

/// What was stored last; nothing sealed when nothing was stored.
///
/// # Errors
/// The file is there and can't be read, or is damaged.
pub fn load(dir: &Path) -> Result<Durable, SealedFileError> {
    let path = dir.join(NAME);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Durable::default()),
        Err(source) => return Err(SealedFileError::Read { path, source }),
    };
    parse(&text).ok_or(SealedFileError::Damaged { path, text })
}

/// Replaces the file. On return it survives a loss of power.
///
/// # Errors
/// Any step failed; the earlier content is still there or the new one is.
pub fn store(dir: &Path, durable: Durable) -> Result<(), SealedFileError> {
    let path = dir.join(NAME);
    let temporary = dir.join(format!("{NAME}.new"));
    let replace = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(render(durable).as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(dir)?.sync_all()
    };
    replace().map_err(|source| SealedFileError::Write { path: path.clone(), source })
}

fn render(durable: Durable) -> String {
    // Rounded up: a promise is never remembered shorter than it was.
    let grant_ms = durable.grant.as_micros().div_ceil(1_000);
    let line = format!("{HEAD} {} {grant_ms} {}", durable.sealed.0, durable.oldest.0);
    format!("{line} {:08x}\n", crc32c::crc32c(line.as_bytes()))
}

fn parse(text: &str) -> Option<Durable> {
    let (line, crc) = text.strip_suffix('\n')?.rsplit_once(' ')?;
    if u32::from_str_radix(crc, 16).ok()? != crc32c::crc32c(line.as_bytes()) {
        return None;
    }
    let mut words = line.split(' ');
    let head = words.next()?;
    let sealed = Epoch(words.next()?.parse().ok()?);
    let grant = Duration::from_millis(words.next()?.parse().ok()?);
    let oldest = match head {
        HEAD => TimingsId(words.next()?.parse().ok()?),
        HEAD_1 => TimingsId::FILES,
        _ => return None,
    };
    words.next().is_none().then_some(Durable { sealed, grant, oldest })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stored_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()).unwrap(), Durable::default());
        for sealed in [Epoch(1), Epoch(7)] {
            let durable = Durable { sealed, grant: Duration::from_millis(3_200), oldest: TimingsId(4) };
            store(dir.path(), durable).unwrap();
            assert_eq!(load(dir.path()).unwrap(), durable);
        }
    }

    #[test]
    fn a_damaged_file_is_refused_and_not_taken_for_epoch_0() {
        let dir = tempfile::tempdir().unwrap();
        let durable = Durable { sealed: Epoch(12), grant: Duration::from_millis(3_200), oldest: TimingsId(4) };
        let whole = render(durable);
        for cut in 0..whole.len() {
            fs::write(dir.path().join(NAME), &whole[..cut]).unwrap();
            assert!(matches!(load(dir.path()), Err(SealedFileError::Damaged { .. })), "{cut}");
        }
        fs::write(dir.path().join(NAME), whole.replace(" 12 ", " 11 ")).unwrap();
        assert!(matches!(load(dir.path()), Err(SealedFileError::Damaged { .. })));
    }

    #[test]
    fn a_file_of_the_format_before_is_read() {
        let line = "matriarch-sealed-1 7 3200";
        let text = format!("{line} {:08x}\n", crc32c::crc32c(line.as_bytes()));
        let wanted = Durable { sealed: Epoch(7), grant: Duration::from_millis(3_200), oldest: TimingsId::FILES };
        assert_eq!(parse(&text), Some(wanted));
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error_that_says_so() {
        let error = store(Path::new("/nonexistent-matriarch"), Durable::default()).unwrap_err();
        assert_eq!(error.to_string(), "make sealed epoch durable in /nonexistent-matriarch/sealed");
    }
}
