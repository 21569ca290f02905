//! Disks: directories that are there, room on them, and how long an fdatasync takes.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    sys::statfs::{TMPFS_MAGIC, statfs},
    unistd::geteuid,
};

use super::{fail, ok, warn};
use crate::{
    cli::render::Check,
    config::{FREE_BYTES_MIN, LocalMember, ManagerConfig, free_bytes},
};

/// Writes measured for one directory, each as long as a page of the Raft log.
const WRITES: usize = 20;
const WRITE_BYTES: usize = 4096;
/// Every commit waits for the fdatasync of a majority, so a slow one is felt at each failover.
const FSYNC_WARN: Duration = Duration::from_millis(10);
/// Less room than this for a database deserves a word.
const DATA_WARN: u64 = 1 << 30;

pub(super) fn all(member: &LocalMember) -> Vec<Check> {
    let (key, dir) = ("agent.state_dir", &member.agent.state_dir);
    let mut checks = of_manager(&member.manager);
    let of_agent = [state_dir(key, dir), room(key, dir, FREE_BYTES_MIN * 4)];
    checks.splice(2..2, of_agent);
    checks.push(room("postgresql.data_dir", &member.postgresql.data_dir, DATA_WARN));
    checks.push(latency("postgresql.data_dir", &member.postgresql.data_dir));
    checks
}

/// What a manager needs, be it that of a witness.
pub(super) fn of_manager(manager: &ManagerConfig) -> Vec<Check> {
    let (key, dir) = ("manager.state_dir", &manager.state_dir);
    vec![state_dir(key, dir), room(key, dir, FREE_BYTES_MIN * 4), latency(key, dir)]
}

/// A directory of ours: there, ours, closed to others, and kept over a reboot.
fn state_dir(key: &str, dir: &Path) -> Check {
    let name = format!("directory {key}");
    let shown = dir.display();
    let create = format!("create it: install -d -m 0700 -o postgres -g postgres {shown}");
    match fs::metadata(dir) {
        Err(error) => fail(name, format!("{shown}: {error}; {create}")),
        Ok(found) if !found.is_dir() => fail(name, format!("{shown} is no directory")),
        Ok(found) if found.uid() != geteuid().as_raw() && !geteuid().is_root() => {
            fail(name, format!("{shown} belongs to user {}, not to {}; chown it", found.uid(), geteuid()))
        }
        Ok(found) if found.permissions().mode() & 0o022 != 0 => {
            fail(name, format!("others may write in {shown}; chmod 0700 {shown}"))
        }
        Ok(_) if is_tmpfs(dir) => fail(name, format!("{shown} lies in memory (tmpfs) and is lost at a reboot")),
        Ok(_) => ok(name, shown.to_string()),
    }
}

fn is_tmpfs(dir: &Path) -> bool {
    statfs(dir).is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC)
}

fn room(key: &str, dir: &Path, enough: u64) -> Check {
    let name = format!("space {key}");
    match free_bytes(dir) {
        Err(error) => fail(name, format!("{}: free space is unknown ({error})", dir.display())),
        Ok(free) => {
            let found = format!("{} MiB free for {}", free >> 20, dir.display());
            if free < FREE_BYTES_MIN {
                fail(name, format!("{found}; {} MiB are needed to start", FREE_BYTES_MIN >> 20))
            } else if free < enough {
                warn(name, found)
            } else {
                ok(name, found)
            }
        }
    }
}

fn latency(key: &str, dir: &Path) -> Check {
    let name = format!("fsync {key}");
    // The data directory is created at the first start: its parent lies on the same disk.
    let Some(place) = dir.ancestors().find(|d| d.is_dir()) else {
        return fail(name, format!("{} has no directory to measure in", dir.display()));
    };
    // Nothing foreign is ever written into a data directory.
    let place = if place.join("PG_VERSION").exists() { place.parent().unwrap_or(place) } else { place };
    match measure(place) {
        Ok(times) => judge(&name, place, &times),
        Err(error) => fail(name, format!("can't write in {} ({error})", place.display())),
    }
}

fn judge(name: &str, place: &Path, times: &[Duration]) -> Check {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let (Some(median), Some(max)) = (sorted.get(sorted.len() / 2), sorted.last()) else {
        return fail(name, "nothing was measured");
    };
    let ms = |d: &Duration| d.as_secs_f64() * 1_000.0;
    let found =
        format!("p50 {:.2} ms, max {:.2} ms over {} writes in {}", ms(median), ms(max), sorted.len(), place.display());
    if *median > FSYNC_WARN {
        return warn(name, format!("{found}; slower than {} ms, every commit waits for it", FSYNC_WARN.as_millis()));
    }
    ok(name, found)
}

fn measure(place: &Path) -> io::Result<Vec<Duration>> {
    let mut probe = Probe::create(place)?;
    let page = [0x5A_u8; WRITE_BYTES];
    let mut times = Vec::with_capacity(WRITES);
    for _ in 0..WRITES {
        let start = Instant::now();
        probe.file.write_all(&page)?;
        probe.file.sync_data()?;
        times.push(start.elapsed());
    }
    Ok(times)
}

/// A file that is gone when it is dropped.
struct Probe {
    path: PathBuf,
    file: File,
}

impl Probe {
    fn create(place: &Path) -> io::Result<Probe> {
        let path = place.join(format!(".matriarch-preflight-{}", std::process::id()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Probe { path, file })
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // What can't be removed can't be removed; its name says where it comes from.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::render::Outcome;

    #[test]
    fn a_measurement_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(measure(dir.path()).unwrap().len(), WRITES);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_slow_disk_is_told() {
        let slow = judge("fsync", Path::new("/x"), &[Duration::from_millis(30); 3]);
        assert_eq!(slow.outcome, Outcome::Warn);
        assert!(slow.detail.starts_with("p50 30.00 ms, max 30.00 ms over 3 writes in /x; slower than 10 ms"));
        assert_eq!(judge("fsync", Path::new("/x"), &[Duration::from_millis(1)]).outcome, Outcome::Ok);
    }

    #[test]
    fn a_missing_directory_says_how_to_create_it() {
        let check = state_dir("agent.state_dir", Path::new("/nonexistent/agent"));
        assert_eq!(check.outcome, Outcome::Fail);
        assert!(check.detail.contains("install -d -m 0700"), "{check:?}");
    }
}
