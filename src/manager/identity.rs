//! A copy of the cluster's identity outside the Raft directory, so that a
//! manager that lost its log is told from one that never had any.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::{Manager, entry};
use crate::domain::{ClusterId, Generation, NodeId};

/// What a manager remembers of its cluster beside the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) cluster_id: String,
    pub(super) generation: u64,
    pub(super) member: String,
    pub(super) node: u64,
    /// The node was given to this manager and has not had a log yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) fresh: bool,
    /// Why the node never votes again; empty while it may.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) lost: String,
}

impl Identity {
    pub(super) fn new(cluster_id: &str, generation: u64, member: &str, node: NodeId) -> Self {
        let (cluster_id, member) = (cluster_id.to_owned(), member.to_owned());
        Self { cluster_id, generation, member, node: node.0, fresh: false, lost: String::new() }
    }

    pub(super) fn cluster_id(&self) -> ClusterId {
        ClusterId(self.cluster_id.clone())
    }

    pub(super) fn generation(&self) -> Generation {
        Generation(self.generation)
    }

    pub(super) fn node(&self) -> NodeId {
        NodeId(self.node)
    }
}

fn file(dir: &Path) -> PathBuf {
    dir.join("identity.toml")
}

/// Reads the copy, `None` when this manager never belonged to a cluster.
pub(super) fn load(dir: &Path) -> anyhow::Result<Option<Identity>> {
    let path = file(dir);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(toml::from_str(&text).with_context(|| format!("read {}", path.display()))?)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("read {}", path.display())),
    }
}

/// Writes the copy once genesis is committed, and tells the other rooms who we are and who votes.
pub(super) async fn keep(manager: Manager, dir: PathBuf) -> anyhow::Result<()> {
    let inner = &manager.inner;
    let mut states = inner.node.state();
    let mut groups = inner.node.group();
    inner.acceptor.follow_log(inner.node.log_membership());
    let mut told = 0;
    loop {
        let membership = groups.borrow_and_update().membership();
        // Before its turn nothing is known to be applied, and nothing is acked: an epoch may have
        // been fenced in an entry that comes first. The state is looked at after that.
        let due = inner.node.is_due(membership.id);
        let state = states.borrow_and_update().clone();
        // First of all: a quarantine for a change of membership is as long as the longest promise in use.
        if due || told != 0 {
            inner.acceptor.set_timings(state.timings.clone());
            inner.acceptor.set_learner(state.is_learner(&inner.me));
        }
        if due && membership.id != told {
            inner.acceptor.set_applied(state.epoch);
            told = membership.id;
            inner.acceptor.set_membership(membership.clone());
        } else if told != 0 {
            inner.acceptor.set_applied(state.epoch);
        }
        if let Some(identity) = &state.identity {
            inner.node.set_identity(identity.cluster_id.clone(), identity.generation);
            inner.acceptor.set_identity(identity.cluster_id.clone(), identity.generation);
            let cluster = identity.cluster_id.0.as_str();
            let wanted = Identity::new(cluster, identity.generation.0, inner.me.as_str(), inner.node.id());
            // What says that the log is lost stays until another node is given.
            let kept = load(&dir)?;
            // Nor is that of a later generation undone, which `recover` has just written.
            let stays = |k: &Identity| !k.lost.is_empty() || k.generation > wanted.generation;
            // A log that came without one gets none before the others were asked: with it, the next start would not ask.
            let asked = inner.gate.is_open() || inner.standing != entry::Standing::Newcomer;
            if asked && kept.as_ref() != Some(&wanted) && !kept.as_ref().is_some_and(stays) {
                store(&dir, &wanted)?;
            }
        }
        let waits = !due && !membership.halves.is_empty();
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return Ok(()) },
            changed = groups.changed() => if changed.is_err() { return Ok(()) },
            // A blank entry that is applied changes no state.
            () = tokio::time::sleep(Duration::from_millis(10)), if waits => {}
        }
    }
}

pub(super) fn store(dir: &Path, identity: &Identity) -> anyhow::Result<()> {
    let path = file(dir);
    let text = toml::to_string(identity).context("write the identity")?;
    let tmp = path.with_extension("tmp");
    let write = || -> std::io::Result<()> {
        let mut file = fs::File::create(&tmp)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&tmp, &path)?;
        fs::File::open(dir)?.sync_all()
    };
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Identity {
        Identity::new("c", 1, "n1", NodeId(1))
    }

    #[test]
    fn the_copy_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()).unwrap(), None);
        for identity in [known(), Identity { fresh: true, ..known() }, Identity { lost: "a \"b\"".into(), ..known() }] {
            store(dir.path(), &identity).unwrap();
            assert_eq!(load(dir.path()).unwrap(), Some(identity));
        }
    }

    #[test]
    fn a_copy_of_an_earlier_version_is_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(file(dir.path()), "cluster_id = \"c\"\ngeneration = 1\nmember = \"n1\"\nnode = 1\n").unwrap();
        assert_eq!(load(dir.path()).unwrap(), Some(known()));
    }
}
