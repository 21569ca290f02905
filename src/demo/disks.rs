//! Small disks for a host's PostgreSQL: one for its data, one for its WAL. They are in memory and in a mount namespace of
//! this process, so that nothing is left of them whatever ends it; only root can have them.

use std::{
    fmt, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    fcntl::posix_fallocate,
    sched::{CloneFlags, unshare},
    sys::statvfs::statvfs,
};

use super::processes::OsUser;

/// As much WAL as a primary keeps, twice.
const SIZE: &str = "1g";
/// In a disk's directory, whatever fills it.
const BALLAST: &str = "ballast";
/// So much is taken last, at once.
const REST: u64 = 1 << 20;
/// PostgreSQL doesn't take of the rest as often as that.
const TRIES: u32 = 100;

/// One of a host's disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// Where the data directory is.
    Data,
    /// Where its WAL is.
    Wal,
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Disk::Data => "data",
            Disk::Wal => "WAL",
        })
    }
}

impl Disk {
    /// Where it is mounted.
    pub(crate) fn dir(self, host_dir: &Path) -> PathBuf {
        host_dir.join(match self {
            Disk::Data => "disk",
            Disk::Wal => "wal",
        })
    }

    /// Takes all its room but for so many bytes.
    pub(crate) fn fill(self, host_dir: &Path, leave: u64) -> Result<Instant> {
        let dir = self.dir(host_dir);
        let what = || format!("fill {}", dir.display());
        let ballast = fs::File::create(dir.join(BALLAST)).with_context(what)?;
        let (mut length, mut tries, mut began) = (0, 1, Instant::now());
        loop {
            let stat = statvfs(&dir).with_context(what)?;
            let free = stat.blocks_available().saturating_mul(stat.fragment_size()).saturating_sub(leave);
            if free == 0 {
                return Ok(began);
            }
            // The most of it takes a while, in which PostgreSQL takes some, too; the rest doesn't.
            let step = i64::try_from(if free > REST { free - REST } else { free })?;
            began = Instant::now();
            match posix_fallocate(&ballast, length, step) {
                Ok(()) => length += step,
                Err(Errno::ENOSPC) if tries < TRIES => tries += 1,
                Err(error) => return Err(error).with_context(what),
            }
        }
    }

    /// Gives it back.
    pub(crate) fn empty(self, host_dir: &Path) -> Result<()> {
        let ballast = self.dir(host_dir).join(BALLAST);
        fs::remove_file(&ballast).with_context(|| format!("remove {}", ballast.display()))
    }
}

/// What this thread mounts, and whatever it starts from here on, nobody else sees.
///
/// # Errors
/// It may not: only root may.
pub fn own_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace, which only root may")?;
    run(Command::new("mount").args(["--make-rprivate", "/"]))
}

/// Gives a host its disks.
pub(crate) fn mount(host_dir: &Path, user: Option<&OsUser>) -> Result<()> {
    for disk in [Disk::Data, Disk::Wal] {
        let dir = disk.dir(host_dir);
        fs::create_dir(&dir).with_context(|| format!("make directory {}", dir.display()))?;
        let owner = user.map(|u| format!(",uid={},gid={}", u.uid, u.gid)).unwrap_or_default();
        let options = format!("size={SIZE},mode=0700{owner}");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "matriarch-demo"]).arg(&dir))?;
    }
    Ok(())
}

/// Takes all disks below `root` away.
pub(crate) fn unmount(root: &Path) {
    // The namespace is the thread's, and the process's first thread may be in another.
    let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap_or_default();
    let dirs = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
    for dir in dirs.filter(|dir| dir.starts_with(root)) {
        // What is left of it goes with this process.
        let _ = run(Command::new("umount").arg("--lazy").arg(dir));
    }
}

/// PostgreSQL's programs, of which those that make a data directory put its WAL on the other disk.
pub(crate) fn programs(real: &Path, root: &Path) -> Result<PathBuf> {
    let ours = root.join("programs");
    let what = || format!("make {}", ours.display());
    fs::create_dir(&ours).with_context(what)?;
    for program in fs::read_dir(real).with_context(|| format!("read {}", real.display()))? {
        let program = program?;
        let link = ours.join(program.file_name());
        let makes_data = ["initdb", "pg_basebackup"].iter().any(|name| program.file_name() == *name);
        if !makes_data {
            std::os::unix::fs::symlink(program.path(), link).with_context(what)?;
            continue;
        }
        fs::write(&link, wrapper(&program.path())).with_context(what)?;
        fs::set_permissions(&link, fs::Permissions::from_mode(0o755)).with_context(what)?;
    }
    Ok(ours)
}

/// Only whoever makes a data directory gets a place for WAL, a new one each time. (`HOST/disk/data…` → `HOST/wal/…`.)
fn wrapper(real: &Path) -> String {
    format!(
        "#!/bin/sh\nhost=\nfor argument in \"$@\"; do\n    case $argument in\n    */disk/data*) host=${{argument%/disk/data*}} ;;\n    \
         --sync-only | --version) host=; break ;;\n    esac\ndone\n[ -n \"$host\" ] || exec '{real}' \"$@\"\n\
         exec '{real}' \"$@\" --waldir=\"$(mktemp -d \"$host/wal/pg_wal.XXXXXX\")\"\n",
        real = real.display()
    )
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
