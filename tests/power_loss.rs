//! What a power loss leaves of the Raft log.
//!
//! The model: the log is on an ext4 filesystem in a loop-mounted image. While
//! the writer is stopped (SIGSTOP), the image is copied from behind the
//! filesystem. The copy holds what the filesystem had sent to its device and
//! nothing that was only in memory, as a disk holds after the power went.
//! The copy is mounted, which replays the filesystem's journal, and the log in
//! it is opened: every entry and vote whose acknowledgement was printed before
//! the stop has to be there. A device's own volatile cache is not modelled.
//!
//! Without the `fdatasync` in `SledBackend::sync` most rounds fail: sled's own
//! flush reaches the device only in part. Needs root and loop devices; where
//! there are none it says so and passes, and the unit test
//! `every_sync_ends_in_an_fdatasync_of_the_database_file` stands alone.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use matriarch::{
    domain::NodeId,
    raft::{LogStore, OpenError, TypeConfig},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use openraft::{
    RaftLogReader as _,
    alias::VoteOf,
    storage::{RaftLogStorage, RaftLogStorageExt as _},
    testing::blank_ent,
    vote::RaftVote as _,
};

const WRITER_DIR: &str = "MATRIARCH_TEST_POWER_LOSS_DIR";
const ROUNDS: u64 = 8;

fn open(dir: &Path) -> Result<LogStore, OpenError> {
    LogStore::open(dir, NodeId(1), &"n1".parse().unwrap())
}

fn vote(term: u64) -> VoteOf<TypeConfig> {
    VoteOf::<TypeConfig>::from_leader_id(openraft::impls::leader_id_std::LeaderId { term, voted_for: 1 }, false)
}

/// Not a test: the process whose power goes.
#[test]
fn writer() {
    let Ok(dir) = env::var(WRITER_DIR) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut store = open(Path::new(&dir)).unwrap();
        for next in 0.. {
            let term = next + 1;
            store.save_vote(&vote(term)).await.unwrap();
            store.blocking_append([blank_ent::<TypeConfig>(term, 1, next)]).await.unwrap();
            println!("acked {next}");
        }
    });
}

fn run(program: &str, args: &[&Path]) -> Result<(), String> {
    let output = Command::new(program).args(args).output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

/// A mounted image; unmounted when dropped.
struct Mount(PathBuf);

impl Mount {
    fn new(image: &Path, at: PathBuf) -> Result<Mount, String> {
        fs::create_dir_all(&at).map_err(|e| e.to_string())?;
        run("mount", &[Path::new("-o"), Path::new("loop"), image, &at])?;
        Ok(Mount(at))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        // Busy until the log's last thread has closed its files.
        while let Err(e) = run("umount", &[&self.0]) {
            if Instant::now() > deadline {
                eprintln!("{e}");
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn make_image(path: &Path) -> Result<(), String> {
    fs::File::create(path).and_then(|f| f.set_len(32 << 20)).map_err(|e| e.to_string())?;
    run("mkfs.ext4", &[Path::new("-q"), Path::new("-F"), path])
}

/// The last entry the writer acknowledged before it was stopped, and then it is stopped.
fn write_for(dir: &Path, how_long: Duration) -> (u64, Child) {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "writer", "--nocapture"])
        .env(WRITER_DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let (told, acked) = mpsc::channel();
    thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if let Some(index) = line.strip_prefix("acked ").and_then(|l| l.parse::<u64>().ok()) {
                let _ = told.send(index);
            }
        }
    });
    let mut last = acked.recv_timeout(Duration::from_secs(20)).expect("the writer never wrote");
    thread::sleep(how_long);
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    while !fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T ") {
        thread::sleep(Duration::from_millis(1));
    }
    // What was printed before the stop; the reader may still be a few lines behind.
    while let Ok(index) = acked.recv_timeout(Duration::from_millis(50)) {
        last = index;
    }
    (last, child)
}

async fn verdict(dir: &Path, acked: u64) -> Result<(), String> {
    let mut store = open(dir).map_err(|e| format!("does not open: {e}"))?;
    let last = store.get_log_state().await.map_err(|e| e.to_string())?.last_log_id.map(|id| id.index);
    let kept = store.get_log_reader().await.read_vote().await.map_err(|e| e.to_string())?;
    if last < Some(acked) {
        return Err(format!("entry {acked} was acknowledged, the log ends at {last:?}"));
    }
    match kept {
        Some(vote) if vote.leader_id.term > acked => Ok(()),
        other => Err(format!("vote {} was acknowledged, {other:?} is there", acked + 1)),
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_the_power_goes() {
    let work = tempfile::tempdir().unwrap();
    let probe = work.path().join("probe.img");
    if let Err(why) = make_image(&probe).and_then(|()| Mount::new(&probe, work.path().join("probe")).map(drop)) {
        println!("SKIPPED: no loop-mounted ext4 here ({why})");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut lost = Vec::new();
    for round in 0..ROUNDS {
        let image = work.path().join(format!("{round}.img"));
        let copy = work.path().join(format!("{round}.copy"));
        make_image(&image).unwrap();
        let live = Mount::new(&image, work.path().join(format!("live{round}"))).unwrap();
        let (acked, mut child) = write_for(&live.0.join("raft"), Duration::from_millis(20 + round * 60));
        fs::copy(&image, &copy).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        drop(live);
        let after = Mount::new(&copy, work.path().join(format!("after{round}"))).unwrap();
        if let Err(why) = runtime.block_on(verdict(&after.0.join("raft"), acked)) {
            lost.push(format!("round {round}: {why}"));
        }
        println!("round {round}: {} acknowledged", acked + 1);
    }
    assert!(lost.is_empty(), "{} of {ROUNDS} rounds lost something:\n{}", lost.len(), lost.join("\n"));
}
