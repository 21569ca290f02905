//! Ends the programs that an agent had begun and left behind when it was killed. Nobody waits for what they do any more, and they
//! hold the data directory, a copy from a host that is gone for hours.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{files, instance::Instance};

/// One that hangs in the kernel is left to whoever takes the lock next.
const DEADLINE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

impl Instance {
    /// Kills what holds the lock of operations, and waits for its end. Only for an agent that has begun nothing yet: whatever it
    /// finds is of an earlier one.
    pub fn end_orphans(&self) {
        let lock = files::beside(self.data_dir(), ".lock");
        let mut ended = Vec::new();
        let until = Instant::now() + DEADLINE;
        loop {
            let holders = holders(&lock);
            for (pid, name) in &holders {
                let told = format!("{name} ({pid})");
                if !ended.contains(&told) {
                    ended.push(told);
                }
                // One that has ended by itself is what is wanted.
                let _ = kill(*pid, Signal::SIGKILL);
            }
            if holders.is_empty() || Instant::now() >= until {
                break;
            }
            thread::sleep(POLL);
        }
        if !ended.is_empty() {
            tracing::warn!(
                ended = ended.join(", "),
                "an earlier agent had left programs at work in the data directory"
            );
        }
    }
}

/// Who has this file as its standard input, as helpers have.
fn holders(lock: &Path) -> Vec<(Pid, String)> {
    let Ok(wanted) = fs::metadata(lock) else { return Vec::new() };
    let holds = |dir: &Path| {
        fs::metadata(dir.join("fd/0")).is_ok_and(|file| (file.dev(), file.ino()) == (wanted.dev(), wanted.ino()))
    };
    let found = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let name = || fs::read_to_string(entry.path().join("comm")).unwrap_or_default().trim().to_owned();
        holds(&entry.path()).then(|| (Pid::from_raw(pid), name()))
    });
    found.collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn who_has_the_lock_as_its_input_is_found_and_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let (lock, other) = (dir.path().join("data.lock"), dir.path().join("other.lock"));
        let sleeper = |file: &Path| {
            let file = fs::File::create(file).unwrap();
            Command::new("sleep").arg("60").stdin(Stdio::from(file)).spawn().unwrap()
        };
        assert!(holders(&lock).is_empty(), "there is no such file");
        let (mut one, mut two) = (sleeper(&lock), sleeper(&other));
        let pid = Pid::from_raw(one.id().cast_signed());
        assert_eq!(holders(&lock), [(pid, "sleep".to_owned())]);
        for child in [&mut one, &mut two] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(holders(&lock).is_empty());
    }
}
