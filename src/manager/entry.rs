//! How this manager comes into the Raft group: with its log, as a newcomer, or
//! after it has lost its log.
//!
//! A node that has forgotten what it acknowledged must never vote again. What is
//! on this host tells most of it (the identity, the mark beside the log), the
//! other managers tell the rest, and then the manager starts over without a log,
//! asks the Raft leader for a new node, and starts over once more as that. It
//! starts over as a process: no connection, no thread and no answer of the old
//! node survives.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Context as _;

use super::identity::{self, Identity};
use crate::{
    domain::{MemberId, NodeId},
    raft::{Node, NodeOptions, OpenError, RaftError},
    telemetry::events,
};

/// Raft's directory in the manager's.
const RAFT: &str = "raft";
/// Where a manager without a node keeps the empty log of nobody.
const OUTSIDE: &str = "outside";

/// How a manager stands to the group when it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// Never in a cluster: it founds one with the others, or is taken in.
    Newcomer,
    /// It has its log, as far as this host can tell.
    Member,
    /// It was given this node and has not had a log yet.
    Joining,
    /// It has no log it may vote with.
    Lost {
        /// How that is known.
        evidence: String,
    },
}

impl Standing {
    /// The evidence when the log is lost, otherwise nothing.
    pub(super) fn lost(&self) -> &str {
        match self {
            Self::Lost { evidence } => evidence,
            Self::Newcomer | Self::Member | Self::Joining => "",
        }
    }
}

/// Opens the log of this manager, or the log of nobody when its own is lost.
///
/// # Errors
/// A directory can't be used, or its content is damaged or somebody else's.
pub(super) async fn open(
    dir: &Path,
    options: NodeOptions,
    known: Option<&Identity>,
) -> anyhow::Result<(Node, Standing)> {
    let raft = dir.join(RAFT);
    let node = known.map_or(options.node, Identity::node);
    let mine = NodeOptions { node, dir: raft.clone(), ..options.clone() };
    // A process that was killed while it had no node left this behind.
    fs::remove_dir_all(dir.join(OUTSIDE)).or_else(not_there).with_context(|| format!("clear {}", dir.display()))?;
    take_recovered(dir, &raft, node)?;
    let evidence = match known {
        Some(known) if !known.lost.is_empty() => known.lost.clone(),
        Some(known) if !known.fresh && is_empty(&raft)? => {
            format!("{} is empty, and held the log of node {node}", raft.display())
        }
        Some(_) | None => match Node::start(mine).await {
            Ok(log) => return Ok((log, standing(known))),
            Err(RaftError::Open(OpenError::WentBack { path, found, marked })) => {
                format!("{} went back: it has {found}, it had {marked}", path.display())
            }
            // Only this member's own, older directory can be put aside in silence.
            Err(RaftError::Open(OpenError::Foreign { path, node: found, member, .. }))
                if known.is_some() && member == options.member.as_str() && found < node =>
            {
                format!("{} is that of node {found}, which this member has replaced by node {node}", path.display())
            }
            Err(other) => return Err(other).context("start Raft"),
        },
    };
    tracing::warn!(
        event = events::LOG_LOST,
        evidence,
        "this manager has no log it may vote with: it asks for a new node"
    );
    put_aside(&raft, node)?;
    let outside = NodeOptions { node: NodeId(0), dir: dir.join(OUTSIDE), ..options };
    let node = Node::start(outside).await.context("start Raft without a node")?;
    Ok((node, Standing::Lost { evidence }))
}

fn standing(known: Option<&Identity>) -> Standing {
    match known {
        None => Standing::Newcomer,
        Some(known) if known.fresh => Standing::Joining,
        Some(_) => Standing::Member,
    }
}

/// Makes the next start one without a log, whatever the directory looks like.
pub(super) fn give_up(dir: &Path, known: &Identity, evidence: &str) -> anyhow::Result<()> {
    identity::store(dir, &Identity { lost: evidence.to_owned(), fresh: false, ..known.clone() })
}

/// Makes the next start one as `node`, with an empty log. What lies in Raft's directory is put aside.
pub(super) fn become_node(dir: &Path, known: &Identity) -> anyhow::Result<()> {
    put_aside(&dir.join(RAFT), known.node())?;
    identity::store(dir, &Identity { lost: String::new(), fresh: true, ..known.clone() })
}

/// Where a new log of `node` is made before it takes the place of the old one.
pub(super) fn dir_of(dir: &Path, node: NodeId) -> PathBuf {
    dir.join(format!("{RAFT}.of-node-{node}"))
}

/// The log in [`dir_of`] is complete: the next start begins with it.
pub(super) fn recovered(dir: &Path, known: &Identity) -> anyhow::Result<()> {
    identity::store(dir, known)
}

/// The identity says which log counts, so a crash between the two writes leaves the old one or the new one.
fn take_recovered(dir: &Path, raft: &Path, node: NodeId) -> anyhow::Result<()> {
    let new = dir_of(dir, node);
    if !new.exists() {
        return Ok(());
    }
    put_aside(raft, node)?;
    fs::rename(&new, raft).with_context(|| format!("put {} in place", new.display()))?;
    fs::File::open(dir).and_then(|d| d.sync_all()).with_context(|| format!("sync {}", dir.display()))
}

fn is_empty(dir: &Path) -> anyhow::Result<bool> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(e) => Err(e).with_context(|| format!("look into {}", dir.display())),
    }
}

/// An old log is never deleted: with two of three lost by mistake it may be all there is.
fn put_aside(raft: &Path, node: NodeId) -> anyhow::Result<()> {
    if is_empty(raft)? {
        return Ok(());
    }
    let free = |n: &u32| !aside(raft, node, *n).exists();
    let to = (0..).find(free).map(|n| aside(raft, node, n)).context("no free name for the old log")?;
    fs::rename(raft, &to).with_context(|| format!("put {} aside as {}", raft.display(), to.display()))?;
    tracing::warn!(from = %raft.display(), to = %to.display(), "the old Raft log is put aside");
    Ok(())
}

fn aside(raft: &Path, node: NodeId, n: u32) -> PathBuf {
    let suffix = if n == 0 { String::new() } else { format!(".{n}") };
    raft.with_file_name(format!("{RAFT}.before-node-{node}{suffix}"))
}

fn not_there(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Whether this manager may take part in Raft, and what keeps it from doing so. Closed at first.
#[derive(Default)]
pub(super) struct Gate {
    open: AtomicBool,
    waits_for: Mutex<Vec<String>>,
    warnings: Mutex<Vec<String>>,
    leader: Mutex<Option<MemberId>>,
}

impl Gate {
    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    pub(super) fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
    }

    /// What keeps this manager from founding or joining a cluster; empty once it has.
    pub(super) fn waits_for(&self) -> Vec<String> {
        self.waits_for.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives whether that is news.
    pub(super) fn set_waits_for(&self, what: &[String]) -> bool {
        replace(&self.waits_for, what)
    }

    /// The Raft leader as the others name it: without a log this manager hears none itself.
    pub(super) fn leader(&self) -> Option<MemberId> {
        self.leader.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_leader(&self, leader: Option<MemberId>) {
        *self.leader.lock().unwrap_or_else(PoisonError::into_inner) = leader;
    }

    /// What an operator should know of the group as this manager sees it.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives whether that is news.
    pub(super) fn set_warnings(&self, what: &[String]) -> bool {
        replace(&self.warnings, what)
    }
}

fn replace(known: &Mutex<Vec<String>>, what: &[String]) -> bool {
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    let news = *known != what;
    what.clone_into(&mut known);
    news
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Profile, Timings};

    fn options(dir: &Path) -> NodeOptions {
        NodeOptions {
            node: NodeId(2),
            member: "n2".parse().unwrap(),
            address: "127.0.0.1:1".to_owned(),
            dir: dir.to_owned(),
            timings: Timings::of(Profile::Fast),
            stands: false,
        }
    }

    fn known(node: u64) -> Identity {
        Identity::new("c", 1, "n2", NodeId(node))
    }

    async fn standing_of(dir: &Path, known: Option<&Identity>) -> Standing {
        let (node, standing) = open(dir, options(dir), known).await.unwrap();
        assert_eq!(node.id() == NodeId(0), matches!(standing, Standing::Lost { .. }));
        node.shutdown().await;
        standing
    }

    #[tokio::test]
    async fn an_empty_directory_is_a_newcomers_or_lost_by_whoever_had_a_node() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(matches!(standing_of(dir, Some(&known(2))).await, Standing::Lost { .. }));
        assert_eq!(standing_of(dir, None).await, Standing::Newcomer);
        let fresh = Identity { fresh: true, ..known(4) };
        become_node(dir, &fresh).unwrap();
        assert!(dir.join("raft.before-node-4").exists(), "nothing is deleted");
        assert_eq!(identity::load(dir).unwrap(), Some(fresh.clone()));
        assert_eq!(standing_of(dir, Some(&fresh)).await, Standing::Joining);
        assert_eq!(standing_of(dir, Some(&known(4))).await, Standing::Member);
    }

    #[tokio::test]
    async fn an_older_directory_of_ours_is_put_aside_and_anybody_elses_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert_eq!(standing_of(dir, Some(&Identity { fresh: true, ..known(2) })).await, Standing::Joining);
        let found = standing_of(dir, Some(&known(4))).await;
        assert!(found.lost().contains("node 2"), "{found:?}");
        assert!(dir.join("raft.before-node-4").exists());

        assert_eq!(standing_of(dir, Some(&Identity { fresh: true, ..known(4) })).await, Standing::Joining);
        let newer = open(dir, options(dir), Some(&known(2))).await;
        assert!(newer.is_err(), "an identity that is older than the log is no reason to drop the log");
        let other = NodeOptions { member: "n3".parse().unwrap(), ..options(dir) };
        assert!(open(dir, other, Some(&known(5))).await.is_err());
    }

    #[tokio::test]
    async fn what_was_given_up_is_not_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert_eq!(standing_of(dir, Some(&Identity { fresh: true, ..known(2) })).await, Standing::Joining);
        give_up(dir, &known(2), "the leader says so").unwrap();
        let stored = identity::load(dir).unwrap();
        assert_eq!(standing_of(dir, stored.as_ref()).await, Standing::Lost { evidence: "the leader says so".into() });
        assert_eq!(standing_of(dir, stored.as_ref()).await.lost(), "the leader says so", "until a node is given");
    }
}
