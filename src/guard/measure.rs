//! How long a fence takes on this host, measured on trees of sleepers.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{sys::stat::Mode, unistd::mkfifo};

use super::{
    GroupUse, GuardError, GuardHandle, GuardedCommand, Means, SpawnOptions, link::put_down, spawn, tree::kill_unguarded,
};
use crate::domain::Epoch;

/// Starting the sleepers and killing them: milliseconds, unless the host is in trouble.
const PATIENCE: Duration = Duration::from_secs(10);
/// Trees that are killed; the middle one counts, so that one hiccup of the host doesn't.
const RUNS: usize = 3;

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// From the order to fence to the report that the tree is empty: the middle one of three.
    pub took: Duration,
    /// How the guards killed, and what protected them.
    pub means: Means,
}

/// Time from a fence order to the report that a tree of `processes` is empty. Real backends
/// hold more memory than sleepers, so take it as a lower bound.
///
/// Works in a directory of its own below `runtime_dir`. Blocks for some hundred milliseconds.
pub fn measure_kill(exe: &Path, runtime_dir: &Path, group: GroupUse, processes: usize) -> Result<Measured, GuardError> {
    let dir = runtime_dir.join("measure-kill");
    let mut taken = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let _never = prepare(&dir)?;
        let tree = SpawnOptions {
            exe: exe.to_owned(),
            runtime_dir: dir.clone(),
            command: sleepers(&dir, processes),
            epoch_hint: Epoch(0),
            group,
        };
        let run = spawn(&tree).and_then(|handle| one_run(&handle, &dir));
        if run.is_err() {
            let _ = kill_unguarded(0, &dir, &dir);
            let _ = put_down(&dir);
        }
        let _ = fs::remove_dir_all(&dir);
        taken.push(run?);
    }
    taken.sort_unstable_by_key(|run| run.took);
    Ok(taken[RUNS / 2])
}

fn failed(dir: &Path, source: io::Error) -> GuardError {
    GuardError::Measure { dir: dir.to_owned(), source }
}

/// The end to write to of what the sleepers read.
fn prepare(dir: &Path) -> Result<File, GuardError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(dir, error)),
        _ => fs::create_dir(dir).map_err(|error| failed(dir, error))?,
    }
    let never = dir.join("never");
    mkfifo(&never, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|errno| failed(dir, errno.into()))?;
    // To read as well, or it would wait for who reads.
    OpenOptions::new().read(true).write(true).open(never).map_err(|error| failed(dir, error))
}

/// Each reads what nobody writes, until whoever measures is gone: then it ends by itself, should its guard have gone as well.
/// A fork each, without an exec.
fn sleepers(dir: &Path, processes: usize) -> GuardedCommand {
    let script = format!(
        "cd \"$MEASURE_KILL\" && exec 3< never || exit 1
         i=0; while [ $i -lt {processes} ]; do (read -r word <&3) & i=$((i+1)); done; : > ready; wait"
    );
    GuardedCommand {
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        env: vec![("MEASURE_KILL".into(), dir.into())],
        log_file: dir.join("log"),
    }
}

fn one_run(handle: &GuardHandle, dir: &Path) -> Result<Measured, GuardError> {
    let state = handle.state();
    let wait = |done: &dyn Fn() -> bool| {
        let until = Instant::now() + PATIENCE;
        while !done() {
            if Instant::now() > until {
                return Err(failed(dir, io::ErrorKind::TimedOut.into()));
            }
            thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    };
    let ready = dir.join("ready");
    wait(&|| ready.exists() || state.borrow().postmaster.is_clear())?;
    let ordered = Instant::now();
    handle.fence()?;
    wait(&|| state.borrow().postmaster.is_clear())?;
    let took = ordered.elapsed();
    let means = state.borrow().means;
    handle.bye()?;
    Ok(Measured { took, means })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn who_works_in(dir: &Path) -> usize {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        processes.filter(|process| fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == dir)).count()
    }

    fn until(what: &str, done: impl Fn() -> bool) {
        let until = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < until, "{what}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn sleepers_end_with_whoever_measures() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap().join("measure-kill");
        let never = prepare(&dir).unwrap();
        let tree = sleepers(&dir, 5);
        let mut command = Command::new(&tree.program);
        command.args(&tree.args).envs(tree.env.iter().map(|(name, value)| (name, value))).stdin(Stdio::null());
        let mut shell = command.spawn().unwrap();
        until("they are ready", || dir.join("ready").exists());
        // As a guard that is killed in the middle would leave them.
        shell.kill().unwrap();
        shell.wait().unwrap();
        assert_eq!(who_works_in(&dir), 5);
        drop(never);
        until("their end", || who_works_in(&dir) == 0);
    }
}
