//! A control group (v2) for each host, so that a host can be frozen as a whole.

use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::processes;

const NAMES: &str = "mtr";

/// The control groups of one demo. Removed when dropped, with what the hosts made below them.
#[derive(Debug)]
pub(crate) struct Groups {
    root: PathBuf,
}

impl Groups {
    /// Makes one group for each host below `parent`. It is delegated to that user (and group), as a unit with
    /// `Delegate=yes` has it: who is in it may make groups of its own.
    pub(crate) fn create(parent: &Path, hosts: &[String], delegate: Option<(u32, u32)>) -> Result<Groups> {
        remove_leftovers(parent);
        let groups = Groups { root: parent.join(format!("{NAMES}{}", processes::own_pid())) };
        for host in hosts {
            let dir = groups.dir(host);
            fs::create_dir_all(&dir).with_context(|| format!("make control group {}", dir.display()))?;
            let Some((uid, gid)) = delegate else { continue };
            let files = ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"].map(|f| dir.join(f));
            for file in files.iter().filter(|f| f.exists()) {
                chown(file, Some(uid), Some(gid)).with_context(|| format!("delegate {}", file.display()))?;
            }
        }
        Ok(groups)
    }

    /// The group of a host.
    pub(crate) fn dir(&self, host: &str) -> PathBuf {
        self.root.join(host)
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        remove(&self.root);
    }
}

/// Control groups go from the leaves up, and their files go with them. One that
/// can't be removed is found as a leftover by the next demo.
fn remove(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}

/// Removes the groups of demos that are no longer there.
fn remove_leftovers(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let owner = name.strip_prefix(NAMES).and_then(|pid| pid.parse().ok());
        if owner.is_some_and(|pid| !processes::is_alive(pid)) {
            remove(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The groups go with what a host made below its own; those of a demo that died go with the next one.
    /// Plain directories do: the kernel's files need no removing.
    #[test]
    fn nothing_is_left_of_the_groups() {
        let parent = tempfile::tempdir().unwrap();
        // The largest pid a kernel gives out is far below it.
        let dead = parent.path().join(format!("{NAMES}{}", i32::MAX));
        fs::create_dir_all(dead.join("n1/postgres")).unwrap();
        let foreign = parent.path().join("system.slice");
        fs::create_dir(&foreign).unwrap();
        let groups = Groups::create(parent.path(), &["n1".into(), "n2".into()], None).unwrap();
        assert!(!dead.exists());
        fs::create_dir(groups.dir("n2").join("postgres")).unwrap();
        drop(groups);
        let left: Vec<_> = fs::read_dir(parent.path()).unwrap().flatten().map(|e| e.path()).collect();
        assert_eq!(left, [foreign]);
    }
}
