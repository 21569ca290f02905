//! Directories of tests that somebody still writes in.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// Removes the directory. A thread or a process that was told to end may finish a write meanwhile, and a directory that gets
/// a file while it is removed stays.
pub fn remove(dir: &Path) {
    let deadline = Instant::now() + Duration::from_secs(2);
    while dir.exists() && Instant::now() < deadline {
        if fs::remove_dir_all(dir).is_err() {
            thread::sleep(Duration::from_millis(5));
        }
    }
}
