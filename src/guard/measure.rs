//! How long a fence takes on this host, measured on a tree of sleepers.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use super::{GuardError, GuardedCommand, SpawnOptions, spawn};
use crate::domain::Epoch;

/// Starting the sleepers and killing them: milliseconds, unless the host is in trouble.
const PATIENCE: Duration = Duration::from_secs(10);

/// Time from a fence order to the report that a tree of `processes` is empty. Real backends
/// hold more memory than sleepers, so take it as a lower bound.
///
/// Works in a directory of its own below `runtime_dir`. Blocks for some hundred milliseconds.
pub fn measure_kill(exe: &Path, runtime_dir: &Path, processes: usize) -> Result<Duration, GuardError> {
    let dir = runtime_dir.join("measure-kill");
    let failed = |source| GuardError::Measure { dir: dir.clone(), source };
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => fs::create_dir(&dir).map_err(failed)?,
    }
    let script = format!(
        "i=0; while [ $i -lt {processes} ]; do setsid sleep 60 & i=$((i+1)); done; echo > \"$MEASURE_KILL/ready\"; wait"
    );
    let handle = spawn(&SpawnOptions {
        exe: exe.to_owned(),
        runtime_dir: dir.clone(),
        command: GuardedCommand {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: vec![("MEASURE_KILL".into(), dir.clone().into())],
            log_file: dir.join("log"),
        },
        epoch_hint: Epoch(0),
    })?;
    let state = handle.state();
    let wait = |done: &dyn Fn() -> bool| {
        let until = Instant::now() + PATIENCE;
        while !done() {
            if Instant::now() > until {
                return Err(failed(std::io::ErrorKind::TimedOut.into()));
            }
            thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    };
    if let Err(error) = wait(&|| dir.join("ready").exists()) {
        handle.fence()?;
        return Err(error);
    }
    let ordered = Instant::now();
    handle.fence()?;
    wait(&|| state.borrow().postmaster.is_clear())?;
    let took = ordered.elapsed();
    handle.bye()?;
    fs::remove_dir_all(&dir).map_err(failed)?;
    Ok(took)
}
