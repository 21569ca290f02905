//! Small disks for a host's PostgreSQL: one for its data, one for its WAL, both in memory; or one for all, an image on a
//! loop device, whose file system can be frozen. They are in a mount namespace of this process, so that nothing is left of
//! them whatever ends it; only root can have them.

use std::{
    fmt, fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
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
/// A WAL volume that a slot nobody streams from fills within a minute of load.
const TIGHT: &str = "256m";
/// Bytes of an image, of which most are never written.
const IMAGE: u64 = 1 << 30;
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

/// What the disks of a host are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disks {
    /// One for data and one for WAL, in memory: they can be filled.
    Memory,
    /// The same with a small one for WAL; PostgreSQL has to be configured for it.
    Tight,
    /// One for both, an image of a file system: it can be frozen.
    Image,
}

/// The file system is frozen before it says so, and goes on when its standard input ends: with whoever holds that, however
/// he ends. The directory is in its environment and not in its arguments, by which the demo knows what it has to kill.
const FREEZE: &str =
    "fsfreeze --freeze \"$DISK\" || exit 1; echo frozen; cat > /dev/null; fsfreeze --unfreeze \"$DISK\"";

/// A disk that finishes no write, until this is dropped or this process ends.
#[derive(Debug)]
pub(crate) struct Frozen(Child);

impl Disk {
    /// Lets no write end any more.
    pub(crate) fn freeze(self, host_dir: &Path) -> Result<(Instant, Frozen)> {
        let dir = self.dir(host_dir);
        // In a session of its own, for what ends our group must not end it.
        let mut command = Command::new("setsid");
        command.args(["sh", "-c", FREEZE]).env("DISK", &dir).current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let began = Instant::now();
        let mut frozen = Frozen(command.spawn().with_context(|| format!("freeze {}", dir.display()))?);
        let mut said = String::new();
        if let Some(out) = frozen.0.stdout.take() {
            BufReader::new(out).read_line(&mut said)?;
        }
        if said != "frozen\n" {
            bail!("{} can't be frozen", dir.display());
        }
        Ok((began, frozen))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Lets every disk below `root` go on, whoever stopped it.
pub(crate) fn thaw(root: &Path) {
    for dir in mounted(root, Some("ext4")) {
        // One that was not frozen says so.
        let _ = run(Command::new("fsfreeze").arg("--unfreeze").arg(dir));
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
pub(crate) fn mount(host_dir: &Path, user: Option<&OsUser>, disks: Disks) -> Result<()> {
    if disks == Disks::Image {
        return mount_image(host_dir, user);
    }
    for disk in [Disk::Data, Disk::Wal] {
        let dir = disk.dir(host_dir);
        fs::create_dir(&dir).with_context(|| format!("make directory {}", dir.display()))?;
        let owner = user.map(|u| format!(",uid={},gid={}", u.uid, u.gid)).unwrap_or_default();
        let size = if (disk, disks) == (Disk::Wal, Disks::Tight) { TIGHT } else { SIZE };
        let options = format!("size={size},mode=0700{owner}");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "matriarch-demo"]).arg(&dir))?;
    }
    Ok(())
}

fn mount_image(host_dir: &Path, user: Option<&OsUser>) -> Result<()> {
    let (image, dir) = (host_dir.join("disk.img"), Disk::Data.dir(host_dir));
    let what = || format!("make {}", image.display());
    fs::create_dir(&dir).with_context(|| format!("make directory {}", dir.display()))?;
    fs::File::create(&image).and_then(|file| file.set_len(IMAGE)).with_context(what)?;
    run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
    run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&dir))?;
    if let Some(user) = user {
        std::os::unix::fs::chown(&dir, Some(user.uid), Some(user.gid)).with_context(what)?;
    }
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).with_context(what)
}

fn mounted(root: &Path, kind: Option<&str>) -> Vec<PathBuf> {
    // The namespace is the thread's, and the process's first thread may be in another.
    let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap_or_default();
    let of = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let dir = PathBuf::from(fields.next()?);
        let wanted = kind.is_none_or(|kind| fields.next() == Some(kind));
        (wanted && dir.starts_with(root)).then_some(dir)
    };
    mounts.lines().filter_map(of).collect()
}

/// Takes all disks below `root` away.
pub(crate) fn unmount(root: &Path) {
    for dir in mounted(root, None) {
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
