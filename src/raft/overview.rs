//! What a node knows of itself and of the others, for people; and a snapshot at their wish.

use std::{fs, path::Path, sync::Arc, time::Duration};

use openraft::{RaftMetrics, ServerState, async_runtime::WatchReceiver as _};
use tokio::{sync::Semaphore, time::Instant};

use super::{
    leadership,
    node::{Node, RaftError},
    types::{LogId, TypeConfig},
};
use crate::domain::NodeId;

/// A snapshot of the small state that stands here takes milliseconds; a disk that hangs takes for ever.
const SNAPSHOT_WAIT: Duration = Duration::from_secs(5);
/// A few files, on a disk that does well: milliseconds.
const COUNT_WAIT: Duration = Duration::from_millis(300);
/// Entries are dropped by the library in batches, after its answer.
const PURGE_WAIT: Duration = Duration::from_secs(2);

/// One node as it knows itself. Indexes count from 1; 0 stands for none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Overview {
    /// The present term.
    pub term: u64,
    /// Whom it has voted for in this term.
    pub voted_for: Option<NodeId>,
    /// And that one has won.
    pub vote_won: bool,
    /// The last entry in its log.
    pub last: u64,
    /// The last one that it knows to be committed.
    pub commit: u64,
    /// The last one that was applied.
    pub applied: u64,
    /// The last one its snapshot covers.
    pub snapshot: u64,
    /// The last one that was dropped from the log.
    pub purged: u64,
    /// What its directory takes on disk; `None`: that could not be counted in time.
    pub files: Option<Files>,
    /// leader, follower, candidate or learner.
    pub role: &'static str,
}

/// What files take, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Files {
    /// All that is in the directory.
    pub all: u64,
    /// Of these, the log.
    pub log: u64,
}

/// Lets one count at a time touch the disk: one that hangs would take a thread with each question. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Counting(Arc<Semaphore>);

impl Default for Counting {
    fn default() -> Self {
        Counting(Arc::new(Semaphore::new(1)))
    }
}

impl Counting {
    /// What `count` comes to beside this thread, or `None` when it is not there within `limit`.
    async fn within<T: Send + 'static>(
        &self,
        limit: Duration,
        count: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let counted = async {
            let alone = Arc::clone(&self.0).acquire_owned().await.ok()?;
            let count = move || {
                let counted = count();
                drop(alone);
                counted
            };
            tokio::task::spawn_blocking(count).await.ok()
        };
        tokio::time::timeout(limit, counted).await.ok().flatten()
    }
}

fn index(id: Option<&LogId>) -> u64 {
    id.map_or(0, |id| id.index + 1)
}

fn role(state: ServerState) -> &'static str {
    match state {
        ServerState::Leader => "leader",
        ServerState::Candidate => "candidate",
        ServerState::Learner => "learner",
        ServerState::Follower | ServerState::Shutdown => "follower",
    }
}

/// What the files below `dir` take; those that vanish meanwhile take nothing.
fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(of) if of.is_dir() => bytes_below(&entry.path()),
        Ok(of) => of.len(),
        Err(_) => 0,
    };
    entries.filter_map(Result::ok).map(size).sum()
}

impl Node {
    /// What this node knows of itself now.
    pub async fn overview(&self) -> Overview {
        let dir = self.options.dir.clone();
        let count = move || Files { all: bytes_below(&dir), log: bytes_below(&dir.join("log")) };
        Overview { files: self.counting.within(COUNT_WAIT, count).await, ..self.metrics_now() }
    }

    fn metrics_now(&self) -> Overview {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        // Vote and term may be of no election yet: a node that was never asked has voted for nobody.
        let voted = (metrics.current_term > 0).then_some(NodeId(metrics.vote.leader_id.voted_for));
        Overview {
            term: metrics.current_term,
            voted_for: voted.filter(|node| node.0 != 0),
            vote_won: metrics.vote.committed,
            last: metrics.last_log_index.map_or(0, |index| index + 1),
            commit: index(metrics.local_committed.as_ref()),
            applied: index(metrics.last_applied.as_ref()),
            snapshot: index(metrics.snapshot.as_ref()),
            purged: index(metrics.purged.as_ref()),
            files: None,
            role: role(metrics.state),
        }
    }

    /// Builds a snapshot of what is applied now and drops the log that it covers. A node that lacks what was dropped is
    /// sent the snapshot instead.
    ///
    /// # Errors
    /// If the library has stopped, or the snapshot is not there in time: it may come all the same.
    pub async fn compact(&self) -> Result<(), RaftError> {
        let (applied, covered) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            (index(metrics.last_applied.as_ref()), index(metrics.snapshot.as_ref()))
        };
        if applied == 0 {
            return Ok(());
        }
        if covered < applied {
            self.snapshot_now().await?;
            let there = |m: &RaftMetrics<TypeConfig>| index(m.snapshot.as_ref()) >= applied;
            if !leadership::wait_for(self.raft.metrics(), Instant::now() + SNAPSHOT_WAIT, there).await {
                return Err(RaftError::NoSnapshot { waited: SNAPSHOT_WAIT });
            }
        }
        self.purge_log(applied - 1).await?;
        // A follower that is being sent these entries keeps them a moment longer: they go with the next purge.
        let gone = |m: &RaftMetrics<TypeConfig>| index(m.purged.as_ref()) >= applied;
        let _ = leadership::wait_for(self.raft.metrics(), Instant::now() + PURGE_WAIT, gone).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// On one thread, as a manager's work is.
    #[tokio::test]
    async fn a_disk_that_hangs_holds_nobody_up_and_takes_one_thread_only() {
        let counting = Counting::default();
        let (go_on, hangs) = mpsc::channel::<()>();
        let hung = counting.within(Duration::from_millis(20), move || hangs.recv().is_ok()).await;
        assert_eq!(hung, None);
        let (began, begun) = mpsc::channel();
        let second = counting.within(Duration::from_millis(20), move || began.send(()).is_ok()).await;
        assert_eq!(second, None);
        assert!(begun.try_recv().is_err(), "nothing more is begun on it");
        go_on.send(()).unwrap();
        assert_eq!(counting.within(Duration::from_secs(20), || 7).await, Some(7), "the disk goes on");
    }

    #[tokio::test]
    async fn what_lies_below_a_directory_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("log")).unwrap();
        fs::write(dir.path().join("log/a"), [0; 10]).unwrap();
        fs::write(dir.path().join("b"), [0; 7]).unwrap();
        assert_eq!((bytes_below(dir.path()), bytes_below(&dir.path().join("log"))), (17, 10));
    }
}
