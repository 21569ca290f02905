//! The Raft log on disk: openraft's own storage suite, crashes, and directories
//! that are not what they should be.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

#[path = "support/removal.rs"]
mod removal;

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use matriarch::{
    domain::NodeId,
    raft::{LogStore, OpenError, StateMachine, TypeConfig},
};
use openraft::{
    RaftLogReader as _, StorageError,
    alias::{EntryOf, VoteOf},
    storage::{RaftLogStorage, RaftLogStorageExt as _},
    testing::{
        blank_ent,
        log::{StoreBuilder, Suite},
    },
    vote::RaftVote as _,
};
use tempfile::TempDir;

fn open(dir: &Path) -> Result<LogStore, OpenError> {
    LogStore::open(dir, NodeId(1), &"n1".parse().unwrap())
}

fn entry(term: u64, index: u64) -> EntryOf<TypeConfig> {
    blank_ent::<TypeConfig>(term, 1, index)
}

fn vote(term: u64) -> VoteOf<TypeConfig> {
    VoteOf::<TypeConfig>::from_leader_id(openraft::impls::leader_id_std::LeaderId { term, voted_for: 1 }, false)
}

/// The store closes when its sync thread has let go of it.
fn reopen(dir: &Path) -> LogStore {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match open(dir) {
            Err(OpenError::InUse(_)) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            other => return other.unwrap(),
        }
    }
}

/// A Raft directory that is not there yet, one level down: the mark beside it goes with what it is in.
struct RaftDir {
    path: PathBuf,
    within: TempDir,
}

impl RaftDir {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { path: dir.path().join("raft"), within: dir }
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RaftDir {
    /// The thread that writes the mark may be at it still.
    fn drop(&mut self) {
        removal::remove(self.within.path());
    }
}

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, RaftDir> for Builder {
    async fn build(&self) -> Result<(RaftDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = RaftDir::new();
        let store = open(dir.path()).unwrap();
        let machine = StateMachine::open(dir.path()).unwrap();
        Ok((dir, store, machine))
    }
}

#[tokio::test]
async fn openraft_storage_suite() {
    Suite::test_all(Builder).await.unwrap();
}

#[tokio::test]
async fn everything_is_there_after_a_reopening() {
    let dir = RaftDir::new();
    let mut store = open(dir.path()).unwrap();
    store.save_vote(&vote(3)).await.unwrap();
    store.blocking_append((0..10).map(|i| entry(3, i))).await.unwrap();
    store.truncate_after(Some(entry(3, 7).log_id)).await.unwrap();
    store.save_committed(Some(entry(3, 6).log_id)).await.unwrap();
    store.purge(entry(3, 2).log_id).await.unwrap();
    drop(store);
    let mut store = reopen(dir.path());
    let state = store.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(entry(3, 2).log_id));
    assert_eq!(state.last_log_id, Some(entry(3, 7).log_id));
    assert_eq!(store.read_committed().await.unwrap(), Some(entry(3, 6).log_id));
    let mut reader = store.get_log_reader().await;
    assert_eq!(reader.read_vote().await.unwrap(), Some(vote(3)));
    assert_eq!(reader.try_get_log_entries(0..100).await.unwrap().len(), 5);
}

#[test]
fn a_second_manager_is_refused() {
    let dir = RaftDir::new();
    let first = open(dir.path()).unwrap();
    assert!(matches!(open(dir.path()), Err(OpenError::InUse(_))));
    drop(first);
    reopen(dir.path());
}

#[test]
fn another_node_s_directory_is_refused() {
    let dir = RaftDir::new();
    drop(open(dir.path()).unwrap());
    drop(reopen(dir.path()));
    let deadline = Instant::now() + Duration::from_secs(5);
    let refused = loop {
        match LogStore::open(dir.path(), NodeId(2), &"n1".parse().unwrap()) {
            Err(OpenError::InUse(_)) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            other => break other.err().expect("node 2 opened node 1's log"),
        }
    };
    assert!(matches!(refused, OpenError::Foreign { .. }), "{refused}");
}

// Without the removal sled reports the whole database as corrupt, for good.
#[tokio::test]
async fn a_half_written_sled_snapshot_does_not_stop_a_start() {
    let dir = RaftDir::new();
    let mut store = open(dir.path()).unwrap();
    store.save_vote(&vote(1)).await.unwrap();
    store.blocking_append([entry(1, 0)]).await.unwrap();
    drop(store);
    drop(reopen(dir.path()));
    let leftover = dir.path().join("log/snap.0000000000000F00.generating");
    fs::write(&leftover, b"half").unwrap();
    let mut store = reopen(dir.path());
    assert!(!leftover.exists());
    assert_eq!(store.get_log_state().await.unwrap().last_log_id, Some(entry(1, 0).log_id));
}

#[tokio::test]
async fn a_damaged_sled_snapshot_is_set_aside() {
    let dir = RaftDir::new();
    let mut store = open(dir.path()).unwrap();
    store.save_vote(&vote(1)).await.unwrap();
    store.blocking_append((0..50).map(|i| entry(1, i))).await.unwrap();
    drop(store);
    drop(reopen(dir.path()));
    fs::write(dir.path().join("log/snap.00000000000FFFFF"), b"no snapshot").unwrap();
    let mut store = reopen(dir.path());
    assert_eq!(store.get_log_state().await.unwrap().last_log_id, Some(entry(1, 49).log_id));
    assert_eq!(store.get_log_reader().await.read_vote().await.unwrap(), Some(vote(1)));
}

const WRITER_DIR: &str = "MATRIARCH_TEST_WRITER_DIR";

/// Not a test: the process that [`a_killed_writer_loses_nothing_acknowledged`] kills.
#[test]
fn writer() {
    let Ok(dir) = env::var(WRITER_DIR) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // Whoever looked at it last may not have let go of it yet.
        let mut store = reopen(Path::new(&dir));
        let state = store.get_log_state().await.unwrap();
        let mut next = state.last_log_id.map_or(0, |id| id.index + 1);
        loop {
            let term = next + 1;
            store.save_vote(&vote(term)).await.unwrap();
            store.blocking_append((next..next + 3).map(|i| entry(term, i))).await.unwrap();
            next += 3;
            println!("acked {} {}", term, next - 1);
            if next % 30 == 0 {
                store.purge(entry(term, next - 10).log_id).await.unwrap();
            }
        }
    });
}

#[tokio::test]
async fn a_killed_writer_loses_nothing_acknowledged() {
    let dir = RaftDir::new();
    let mut acked = None;
    for round in 0..6_u64 {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "writer", "--nocapture"])
            .env(WRITER_DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut child = Some(child);
        let mut kill_after = |wait: Duration| {
            let mut child = child.take().unwrap();
            std::thread::spawn(move || {
                std::thread::sleep(wait);
                child.kill().unwrap();
                child.wait().unwrap();
            })
        };
        // The first is killed while it begins, the others at some moment after they have written.
        let mut killer = (round == 0).then(|| kill_after(Duration::from_millis(40)));
        for line in output.lines() {
            let line = line.unwrap();
            if let Some(rest) = line.strip_prefix("acked ") {
                let (term, index) = rest.split_once(' ').unwrap();
                acked = Some((term.parse::<u64>().unwrap(), index.parse::<u64>().unwrap()));
                killer.get_or_insert_with(|| kill_after(Duration::from_millis(round * 70)));
            }
        }
        killer.expect("the writer never wrote").join().unwrap();
        let mut store = reopen(dir.path());
        if let Some((term, index)) = acked {
            let last = store.get_log_state().await.unwrap().last_log_id.unwrap();
            assert!(last.index >= index, "round {round}: entry {index} was acknowledged, the log ends at {last}");
            let kept = store.get_log_reader().await.read_vote().await.unwrap().unwrap();
            assert!(kept.leader_id.term >= term, "round {round}: vote {term} was acknowledged, {kept} is there");
        }
        drop(store);
        drop(reopen(dir.path()));
    }
    assert!(acked.is_some(), "the writer never wrote");
}
