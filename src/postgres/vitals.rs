//! What recovery does, seen from outside: a server that recovers answers nobody, and may do so for an hour for good
//! reasons.
//!
//! Looked at are the startup process, which replays, and the checkpointer, which it waits for at the end of a primary's
//! recovery: CPU time and voluntary switches from `/proc/PID/stat` and `status`, bytes read and written from
//! `/proc/PID/io` (proc(5)), the segment from the title of the startup process, and when `pg_control` was written, for
//! that has the minimum recovery point.

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::instance::Instance;

/// The process of this pid, and its parent, wait for something and have no SIGHUP left to handle: whatever the one passes on
/// of a reload it has passed on. A process that has handled a signal does not wait before it has acted on it, but for what it
/// reads.
pub fn have_handled_reloads(pid: u32) -> bool {
    let status = |pid: &str| fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let child = || status(&pid.to_string());
    let first = child();
    // The child after its parent: what that passes on before it waits has come by then.
    field(&first, "PPid:").is_some_and(|parent| waits_for_nothing_told(&status(parent)))
        && waits_for_nothing_told(&child())
}

/// Of `/proc/PID/status` (proc(5)): signals that are pending are shown as a mask, of which the lowest bit is SIGHUP.
fn waits_for_nothing_told(status: &str) -> bool {
    let pending = |name| field(status, name).and_then(|mask| u64::from_str_radix(mask, 16).ok());
    let none = |name| pending(name).is_some_and(|mask| mask & 1 == 0);
    field(status, "State:") == Some("S") && none("SigPnd:") && none("ShdPnd:")
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()
}

/// `/proc/PID/stat` counts in hundredths of a second (USER_HZ) on every machine that PostgreSQL is packaged for.
const TICK: Duration = Duration::from_millis(10);

/// What recovery has come to, and has used up so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Vitals {
    /// The startup process; 0: there is none.
    pub pid: u32,
    /// What it says it does, e.g. `recovering 000000010000000000000003`; empty: nothing.
    pub doing: String,
    /// When `pg_control` was last written; only whether it changed means something.
    pub control: Option<SystemTime>,
    /// CPU time.
    pub cpu: Duration,
    /// Bytes read and written, by system calls.
    pub bytes: u64,
    /// How often it waited for something and went on.
    pub switches: u64,
    /// One of the two waits in the kernel, for a disk most likely.
    pub waits_for_disk: bool,
    /// Writes that the disk below the data directory has finished, of whoever; 0: it does not tell.
    pub disk_writes: u64,
    /// A WAL receiver runs, so it streams.
    pub receives: bool,
    /// The startup process waits for a command, to restore a segment for instance.
    pub runs_a_command: bool,
}

impl Instance {
    /// Backends that are letting a client in. Stopped then they tell it nothing (postgres.c, `ProcessInterrupts`, while
    /// `ClientAuthInProgress`), so that it sees a connection that breaks.
    pub fn letting_in(&self) -> Vec<u32> {
        let postmaster = self.running_pid().and_then(|pid| u32::try_from(pid).ok());
        let children = postmaster.and_then(children).unwrap_or_default();
        children.into_iter().filter(|(_, title)| lets_in(title)).map(|(pid, _)| pid).collect()
    }

    /// The vitals of recovery below this postmaster. Takes a few reads of `/proc`; what can't be read counts as nothing.
    /// `None`: it has processes, and none of them is known, so nothing can be said.
    pub fn vitals(&self, postmaster: u32) -> Option<Vitals> {
        let control = fs::metadata(self.data_dir().join("global/pg_control")).and_then(|m| m.modified());
        let mut vitals = Vitals { control: control.ok(), ..Vitals::default() };
        let children = children(postmaster)?;
        let others = !children.is_empty();
        for (pid, title) in children {
            let Some((who, doing)) = role(&title) else { continue };
            match who {
                "startup" => {
                    (vitals.pid, vitals.doing) = (pid, doing.to_owned());
                    vitals.runs_a_command = self::children(pid).is_some_and(|commands| !commands.is_empty());
                }
                "walreceiver" => {
                    vitals.receives = true;
                    continue;
                }
                _ => {}
            }
            let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
            let stat = read("stat");
            vitals.cpu += cpu(&stat);
            vitals.waits_for_disk |= stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('D'));
            vitals.bytes += sum(&read("io"), &["rchar:", "wchar:"]);
            vitals.switches += sum(&read("status"), &["voluntary_ctxt_switches:"]);
        }
        vitals.disk_writes = device_of(self.data_dir()).and_then(|disk| writes_finished(&disk)).unwrap_or_default();
        (vitals.pid != 0 || !others).then_some(vitals)
    }
}

/// Where the kernel counts what the disk below `path` has done; `None`: it is on no disk, or on several, or the kernel
/// doesn't know on which (ZFS, NFS, overlays).
///
/// Files of Btrfs are on a device of a number of its own, which is none; the disk is the one that was mounted.
pub fn device_of(path: &Path) -> Option<PathBuf> {
    counts_of(fs::metadata(path).ok()?.dev()).or_else(|| {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let source = source_of(&mounts, &fs::canonicalize(path).ok()?)?;
        let disk = fs::metadata(source).ok()?;
        let counts = counts_of(disk.file_type().is_block_device().then(|| disk.rdev())?)?;
        (!is_one_of_several(Path::new("/sys/fs/btrfs"), &fs::canonicalize(counts.parent()?).ok()?)).then_some(counts)
    })
}

fn counts_of(device: u64) -> Option<PathBuf> {
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let counts = PathBuf::from(format!("/sys/dev/block/{major}:{minor}/stat"));
    counts.exists().then_some(counts)
}

/// The disk that is mounted where `path` is, of Btrfs (proc_pid_mountinfo(5): of mounts at one place the last counts).
fn source_of(mounts: &str, path: &Path) -> Option<PathBuf> {
    let mount = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let at = PathBuf::from(unescaped(before.split(' ').nth(4)?));
        let mut after = after.split(' ');
        let (kind, source) = (after.next()?, after.next()?);
        path.starts_with(&at).then(|| (at.components().count(), kind == "btrfs", PathBuf::from(unescaped(source))))
    };
    let (_, btrfs, source) = mounts.lines().filter_map(mount).max_by_key(|(depth, ..)| *depth)?;
    btrfs.then_some(source)
}

/// Blanks and the like stand there as three octal digits.
fn unescaped(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(text.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}

/// A file system that stands on other disks as well says with this one's counts nothing of the others'. `all` has a
/// directory for each of Btrfs, with its disks in `devices`.
fn is_one_of_several(all: &Path, disk: &Path) -> bool {
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries(all).any(|one| {
        let disks: Vec<PathBuf> = entries(&one.join("devices")).filter_map(|d| fs::canonicalize(d).ok()).collect();
        disks.len() > 1 && disks.iter().any(|one| one == disk)
    })
}

/// How many writes a disk has finished since it is there (Documentation/block/stat.rst, field 5).
pub fn writes_finished(device: &Path) -> Option<u64> {
    fs::read_to_string(device).ok()?.split_whitespace().nth(4)?.parse().ok()
}

/// The children of a process's main thread with their titles; PostgreSQL's have no other thread.
fn children(parent: u32) -> Option<Vec<(u32, String)>> {
    let pids = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    let titled = |pid: &str| {
        let title = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        Some((pid.parse().ok()?, title))
    };
    Some(pids.split_whitespace().filter_map(titled).collect())
}

/// The title is still the postmaster's until the client's first packet is there.
fn lets_in(title: &str) -> bool {
    let said = title.trim_end_matches(['\0', ' ']);
    !said.starts_with("postgres: ") || said.ends_with(" authentication") || said.ends_with(" initializing")
}

/// `postgres: startup recovering 0000…` is `startup`, and `recovering 0000…`; `cluster_name` may stand before that.
fn role(title: &str) -> Option<(&'static str, &str)> {
    let said = title.trim_end_matches(['\0', ' ']).strip_prefix("postgres: ")?;
    let of = |said: &'_ str| {
        ["startup", "checkpointer", "walreceiver"]
            .into_iter()
            .find(|who| said.strip_prefix(who).is_some_and(|doing| doing.is_empty() || doing.starts_with(' ')))
    };
    let named = said.split_once(": ").map_or(said, |(_, after)| after);
    let said = if of(said).is_some() { said } else { named };
    of(said).map(|who| (who, said[who.len()..].trim()))
}

/// Fields 14 and 15; the second one, the name, is in brackets and may have blanks.
fn cpu(stat: &str) -> Duration {
    let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u32 = after.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u32>().ok()).sum();
    TICK * ticks
}

fn sum(text: &str, keys: &[&str]) -> u64 {
    let value = |line: &str| keys.iter().find_map(|key| line.strip_prefix(key)?.trim().parse::<u64>().ok());
    text.lines().filter_map(value).sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_title_tells_who_it_is_and_what_it_does() {
        let recovering = "postgres: startup recovering 0000000100000000000000A5\0\0\0";
        assert_eq!(role(recovering), Some(("startup", "recovering 0000000100000000000000A5")));
        assert_eq!(role("postgres: startup \0"), Some(("startup", "")));
        assert_eq!(role("postgres: checkpointer \0"), Some(("checkpointer", "")));
        assert_eq!(role("postgres: main: startup recovering 05\0"), Some(("startup", "recovering 05")), "cluster_name");
        assert_eq!(role("postgres: walreceiver streaming 0/5\0"), Some(("walreceiver", "streaming 0/5")));
        assert_eq!(role("postgres: main: demo demo [local] idle"), None);
        assert_eq!(role("postgres: startupper demo [local] idle"), None);
        assert_eq!(role("/usr/lib/postgresql/15/bin/postgres\0-D\0/data\0"), None);
    }

    #[test]
    fn the_title_tells_who_is_being_let_in() {
        assert!(lets_in("postgres: main: app shop 10.0.0.7(40312) authentication\0\0"));
        assert!(lets_in("/usr/lib/postgresql/15/bin/postgres\0-D\0/data\0"));
        assert!(lets_in("postgres: main: app shop 10.0.0.7(40312) initializing\0"));
        assert!(!lets_in("postgres: main: app authentication 10.0.0.7(40312) idle\0"));
        assert!(!lets_in("postgres: checkpointer \0"));
    }

    #[test]
    fn who_waits_has_handled_its_signals() {
        let status = |state: &str, own: &str, shared: &str| {
            format!(
                "Name:\tpostgres\nState:\t{state}\nPPid:\t1\nSigPnd:\t{own}\nShdPnd:\t{shared}\nSigBlk:\t0000000000000001\n"
            )
        };
        let none = "0000000000000000";
        let waits = |state: &str, own: &str, shared: &str| waits_for_nothing_told(&status(state, own, shared));
        assert!(waits("S (sleeping)", none, none));
        assert!(waits("S (sleeping)", none, "0000000000004000"), "that is another signal");
        for (state, own, shared) in [
            ("R (running)", none, none),
            ("T (stopped)", none, none),
            ("S (sleeping)", "0000000000000001", none),
            ("S (sleeping)", none, "0000000000004001"),
        ] {
            assert!(!waits(state, own, shared), "{state} {own} {shared}");
        }
        assert!(!waits_for_nothing_told(""), "it is gone");
        assert!(!have_handled_reloads(u32::MAX));
    }

    /// A process that is frozen has its SIGHUP before it, whatever else is known of it.
    #[test]
    fn who_was_signalled_and_does_not_run_has_not_handled_it() {
        use nix::{
            sys::signal::{Signal, kill},
            unistd::Pid,
        };
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        let state = || fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let until = |what: &dyn Fn(&str) -> bool| {
            while !what(&state()) {
                std::thread::yield_now();
            }
        };
        until(&|status| field(status, "State:") == Some("S"));
        assert!(waits_for_nothing_told(&state()));
        kill(pid, Signal::SIGSTOP).unwrap();
        until(&|status| field(status, "State:") == Some("T"));
        kill(pid, Signal::SIGHUP).unwrap();
        assert!(!waits_for_nothing_told(&state()));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_disk_counts_what_it_has_finished() {
        let dir = tempfile::tempdir().unwrap();
        let counts = dir.path().join("stat");
        fs::write(
            &counts,
            "     511        0     4096      120     9981      312   251904     8123        0     5000\n",
        )
        .unwrap();
        assert_eq!(writes_finished(&counts), Some(9_981));
        assert_eq!(writes_finished(&dir.path().join("none")), None);
        assert_eq!(device_of(Path::new("/proc")), None, "no disk");
    }

    #[test]
    fn the_disk_of_btrfs_is_the_one_that_was_mounted_last_where_the_path_is() {
        let mounts = "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
                      30 22 0:41 /@pg /srv/pg\\040data rw shared:5 - btrfs /dev/mapper/vg-pg rw,space_cache=v2\n\
                      31 22 0:42 / /srv/pg\\040data/zfs rw - zfs tank/pg rw\n\
                      32 22 0:43 / /srv/over rw - btrfs /dev/vdb rw\n\
                      33 22 0:44 / /srv/over rw - btrfs /dev/vdc rw\n";
        let of = |path: &str| source_of(mounts, Path::new(path));
        assert_eq!(of("/srv/pg data/15/main"), Some("/dev/mapper/vg-pg".into()));
        assert_eq!(of("/srv/over"), Some("/dev/vdc".into()));
        for other in ["/srv/pg data/zfs/15", "/srv/pg database", "/"] {
            assert_eq!(of(other), None, "{other}: another kind of file system has no disk to be found so");
        }
    }

    #[test]
    fn a_file_system_on_several_disks_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let disk = |name: &str| {
            let disk = dir.path().join(name);
            fs::create_dir_all(&disk).unwrap();
            fs::canonicalize(disk).unwrap()
        };
        let (a, b, c) = (disk("vda"), disk("vdb"), disk("vdc"));
        for (system, disks) in [("one", vec![&a]), ("two", vec![&b, &c])] {
            let devices = dir.path().join("btrfs").join(system).join("devices");
            fs::create_dir_all(&devices).unwrap();
            for (n, disk) in disks.into_iter().enumerate() {
                std::os::unix::fs::symlink(disk, devices.join(n.to_string())).unwrap();
            }
        }
        let all = dir.path().join("btrfs");
        assert_eq!([&a, &b, &c].map(|disk| is_one_of_several(&all, disk)), [false, true, true]);
    }

    #[test]
    fn what_proc_says_is_added_up() {
        let stat = "4242 (postgres: st)rtup) S 1 4242 4242 0 -1 4194560 900 0 0 0 150 25 0 0 20 0 1 0 8 9 10";
        assert_eq!(cpu(stat), Duration::from_millis(1_750));
        assert_eq!(cpu("gone"), Duration::ZERO);
        assert_eq!(sum("rchar: 100\nwchar: 23\nsyscr: 7\n", &["rchar:", "wchar:"]), 123);
        let status = "Threads:\t1\nvoluntary_ctxt_switches:\t17\nnonvoluntary_ctxt_switches:\t4\n";
        assert_eq!(sum(status, &["voluntary_ctxt_switches:"]), 17);
    }
}
