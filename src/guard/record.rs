//! Who guards here, and whom: kept in the guard's lock file, for whoever finds neither
//! answering. Processes are named by pid, start and boot, so that a reused pid or a
//! reboot is told from the process that was meant.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
};

use super::{
    LOCK_FILE,
    tree::{ProcessIdentity, boot_id},
};

/// What the lock file of a runtime directory says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub guard: ProcessIdentity,
    /// Missing while there is none yet.
    pub postmaster: Option<ProcessIdentity>,
}

/// `boot PID START [PID START]`.
pub(super) fn write(file: &File, record: Record) -> io::Result<()> {
    let of = |process: ProcessIdentity| format!(" {} {}", process.pid, process.start_ticks);
    let postmaster = record.postmaster.map(of).unwrap_or_default();
    let text = format!("{}{}{postmaster}\n", boot_id()?, of(record.guard));
    file.set_len(0)?;
    file.write_all_at(text.as_bytes(), 0)
}

/// `None` when nobody ever guarded here since this boot.
///
/// # Errors
/// It could not be read, which says nothing about who guards here.
pub(super) fn read(runtime_dir: &Path) -> io::Result<Option<Record>> {
    match fs::read_to_string(runtime_dir.join(LOCK_FILE)) {
        Ok(text) => Ok(parse(&text, &boot_id()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse(text: &str, boot: &str) -> Option<Record> {
    let mut words = text.split_ascii_whitespace();
    if words.next()? != boot {
        return None;
    }
    let mut process = || {
        let (pid, start_ticks) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(ProcessIdentity { pid, start_ticks })
    };
    Some(Record { guard: process()?, postmaster: process() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_an_earlier_boot_names_nobody() {
        let me = ProcessIdentity::of(std::process::id()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        let file = File::create(dir.path().join(LOCK_FILE)).unwrap();
        let record = Record { guard: me, postmaster: Some(me) };
        write(&file, record).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(record));
        let alone = Record { guard: me, postmaster: None };
        write(&file, alone).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(alone), "the longer text is gone");
        let text = fs::read_to_string(dir.path().join(LOCK_FILE)).unwrap();
        assert_eq!(parse(&text, "another-boot"), None);
        assert_eq!(parse("", "b"), None);
    }

    #[test]
    fn a_record_that_cannot_be_read_is_not_taken_for_none() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(LOCK_FILE)).unwrap();
        assert!(read(dir.path()).is_err());
    }
}
