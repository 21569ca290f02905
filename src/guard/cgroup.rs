//! A cgroup of PostgreSQL's own, where the host lets us make one: one write kills
//! everything in it, also what is being forked at that moment.
//!
//! It lies below the group that the guard itself is in (systemd: `Delegate=yes`), and the
//! guard stays outside of it. Its name says which runtime directory it belongs to, so
//! that whoever comes later finds what a dead guard has left. No controller is switched
//! on, so limits go on to count for the unit or slice as a whole.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::unistd::{AccessFlags, access};

use super::means::WhyWalk;

/// What an earlier guard has left in the group is dead within this.
const LEFTOVER_PATIENCE: Duration = Duration::from_secs(5);

/// The open files of one group.
#[derive(Debug)]
pub(super) struct Group {
    dir: PathBuf,
    /// Write-only: "0" moves the writer in.
    pub procs: File,
    /// Write-only: "1" kills.
    pub kill: File,
    pub events: File,
}

/// Why there is no group.
#[derive(Debug)]
pub(super) enum NoGroup {
    /// The walk does as well, only slower.
    Unavailable(WhyWalk),
    /// Something of an earlier PostgreSQL lives on in it; a second one must not be started beside it.
    StillPopulated(PathBuf),
}

impl Group {
    /// Makes the group of a runtime directory below `own`, empty.
    pub fn prepare(own: &Path, runtime_dir: &Path) -> Result<Self, NoGroup> {
        let unavailable = |error: io::Error| NoGroup::Unavailable(why(&error));
        let dir = own.join(name(runtime_dir).map_err(unavailable)?);
        // Whoever may not move processes out of `own` may make a group, but not fill it.
        access(&own.join("cgroup.procs"), AccessFlags::W_OK).map_err(|errno| unavailable(errno.into()))?;
        match fs::create_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(unavailable(error)),
            _ => {}
        }
        let group = match Self::open(dir.clone()) {
            Ok(group) => group,
            Err(error) => {
                let _ = fs::remove_dir(&dir);
                return Err(match error.kind() {
                    io::ErrorKind::NotFound => NoGroup::Unavailable(WhyWalk::NoKill),
                    _ => unavailable(error),
                });
            }
        };
        match group.clear() {
            true => Ok(group),
            false => Err(NoGroup::StillPopulated(dir)),
        }
    }

    /// Opens a group that is there.
    pub fn open(dir: PathBuf) -> io::Result<Self> {
        let writable = |name: &str| OpenOptions::new().write(true).open(dir.join(name));
        Ok(Self {
            procs: writable("cgroup.procs")?,
            kill: writable("cgroup.kill")?,
            events: File::open(dir.join("cgroup.events"))?,
            dir,
        })
    }

    /// Takes over what an earlier image of this process had open.
    pub fn resume(dir: PathBuf, procs: File, kill: File, events: File) -> Self {
        Self { dir, procs, kill, events }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// SIGKILL to all in it and in the groups below it. One system call, no allocation.
    pub fn strike(&self) {
        // It fails only for a group that was removed, which nobody is in.
        let _ = self.kill.write_at(b"1", 0);
    }

    /// Whether anything lives in it. What the kernel won't tell counts as yes, except that it is gone.
    pub fn is_populated(&self) -> bool {
        let mut text = [0u8; 128];
        match self.events.read_at(&mut text, 0) {
            Ok(length) => !text[..length].split(|b| *b == b'\n').any(|line| line == b"populated 0"),
            Err(error) => error.raw_os_error() != Some(nix::libc::ENODEV),
        }
    }

    /// Kills until it is empty; false when something can't be killed.
    pub fn clear(&self) -> bool {
        let patience = Instant::now() + LEFTOVER_PATIENCE;
        while self.is_populated() {
            if Instant::now() > patience {
                return false;
            }
            self.strike();
            thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// Best effort: an empty directory does no harm, and the next guard takes it.
    pub fn remove(&self) {
        let _ = fs::remove_dir(&self.dir);
    }
}

/// The group of the calling process in the version 2 hierarchy, where there is one. `root`
/// is `/`, or a made-up tree in tests.
pub fn own_cgroup(root: &Path) -> Option<PathBuf> {
    dir_of("self", root).ok()?
}

/// The same of any process (a pid, or `self`).
fn dir_of(process: &str, root: &Path) -> io::Result<Option<PathBuf>> {
    let mounts = fs::read_to_string(root.join("proc/self/mountinfo"));
    let groups = fs::read_to_string(root.join("proc").join(process).join("cgroup"));
    let (Some(mounts), Some(groups)) = (unless_absent(mounts)?, unless_absent(groups)?) else { return Ok(None) };
    Ok(locate(&mounts, &groups))
}

/// What isn't there, or isn't ours to use, is none; the walk has to do then. Any other error says nothing.
fn unless_absent<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Ok(None),
            // The process, or the group, has just gone.
            _ if matches!(error.raw_os_error(), Some(nix::libc::ESRCH | nix::libc::ENODEV)) => Ok(None),
            _ => Err(error),
        },
    }
}

/// Where `groups` (/proc/PID/cgroup) is found below the mounts of `mounts` (/proc/PID/mountinfo).
fn locate(mounts: &str, groups: &str) -> Option<PathBuf> {
    let own = Path::new(groups.lines().find_map(|line| line.strip_prefix("0::"))?);
    mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        if kind.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = place.split(' ').skip(3);
        let (root, mount) = (unescape(fields.next()?), unescape(fields.next()?));
        Some(Path::new(&mount).join(own.strip_prefix(&root).ok()?))
    })
}

/// Blanks and the like are written as `\040` in mountinfo.
fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        match after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(char::from(byte));
                rest = &after[3..];
            }
            None => {
                plain.push('\\');
                rest = after;
            }
        }
    }
    plain + rest
}

fn why(error: &io::Error) -> WhyWalk {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => WhyWalk::NotDelegated,
        _ => WhyWalk::Failed,
    }
}

/// `/run/matriarch` becomes `postgresql-run-matriarch-801.2af`: its path for people, and
/// device and inode, because containers on one host may have the same paths.
fn name(runtime_dir: &Path) -> io::Result<String> {
    let found = fs::metadata(runtime_dir)?;
    let mut name = "postgresql".to_owned();
    for byte in runtime_dir.as_os_str().as_bytes() {
        match byte {
            b'.' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => name.push(char::from(*byte)),
            _ => name.push('-'),
        }
    }
    // A name may have 255 bytes; what tells them apart is at the end.
    name.truncate(200);
    Ok(format!("{name}-{:x}.{:x}", found.dev(), found.ino()))
}

/// The group that `pid` is in, if it is the one of that runtime directory: wherever it
/// lies, for an agent may be started in another place than the one before it.
///
/// # Errors
/// It could not be looked for.
pub(super) fn of_process(pid: u32, runtime_dir: &Path) -> io::Result<Option<Group>> {
    let Some(dir) = dir_of(&pid.to_string(), Path::new("/"))? else { return Ok(None) };
    let Some(name) = unless_absent(name(runtime_dir))? else { return Ok(None) };
    match dir.file_name() {
        Some(found) if found == name.as_str() => unless_absent(Group::open(dir)),
        _ => Ok(None),
    }
}

/// The group of that runtime directory below the caller's own, when there is one.
///
/// # Errors
/// It could not be looked for.
pub(super) fn left_behind(runtime_dir: &Path) -> io::Result<Option<Group>> {
    let Some(own) = dir_of("self", Path::new("/"))? else { return Ok(None) };
    let Some(name) = unless_absent(name(runtime_dir))? else { return Ok(None) };
    unless_absent(Group::open(own.join(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_found_below_the_mount_of_version_2() {
        let hybrid = "24 1 0:22 / / rw - ext4 /dev/vda rw\n\
                      40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        let groups = "1:name=systemd:/x\n0::/system.slice/a.service\n";
        assert_eq!(locate(hybrid, groups), Some("/sys/fs/cgroup/unified/system.slice/a.service".into()));
        assert_eq!(locate(hybrid, "0::/\n"), Some("/sys/fs/cgroup/unified/".into()));
        assert_eq!(locate(hybrid, "4:memory:/a\n"), None, "only version 1");
        assert_eq!(locate("24 1 0:22 / / rw - ext4 /dev/vda rw\n", groups), None, "not mounted");
        let container = "41 31 0:38 /docker/1 /my\\040cgroup rw - cgroup2 cgroup rw\n";
        assert_eq!(locate(container, "0::/docker/1/a\n"), Some("/my cgroup/a".into()));
        assert_eq!(locate(container, "0::/docker/2\n"), None, "outside of what is mounted");
    }

    #[test]
    fn two_runtime_directories_never_share_a_group() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["a b", "a-b", "a", &"x".repeat(250)].map(|n| {
            let path = dir.path().join(n);
            fs::create_dir(&path).unwrap();
            name(&path).unwrap()
        });
        for (i, one) in names.iter().enumerate() {
            assert!(!one.contains('/') && one.len() < 256, "{one}");
            assert!(!names[..i].contains(one), "{names:?}");
        }
        assert_eq!(name(&dir.path().join("a")).unwrap(), names[2]);
    }

    #[test]
    fn a_group_that_could_not_be_looked_for_is_not_taken_for_none() {
        let of = |code| unless_absent::<()>(Err(io::Error::from_raw_os_error(code)));
        assert!(matches!(of(nix::libc::ENOENT), Ok(None)));
        assert!(matches!(of(nix::libc::ESRCH), Ok(None)));
        assert!(of(nix::libc::EMFILE).is_err());
        assert!(of(nix::libc::EIO).is_err());
    }

    #[test]
    fn a_host_without_permission_is_told_from_one_without_the_feature() {
        assert_eq!(why(&io::ErrorKind::PermissionDenied.into()), WhyWalk::NotDelegated);
        assert_eq!(why(&io::ErrorKind::ReadOnlyFilesystem.into()), WhyWalk::NotDelegated);
        assert_eq!(why(&io::ErrorKind::StorageFull.into()), WhyWalk::Failed);
        // A directory that is no cgroup has no cgroup.procs.
        let dir = tempfile::tempdir().unwrap();
        let none = Group::prepare(dir.path(), dir.path()).unwrap_err();
        assert!(matches!(none, NoGroup::Unavailable(WhyWalk::Failed)), "{none:?}");
    }
}
