//! A copy of the cluster's identity outside the Raft directory, so that a
//! manager that lost its log is told from one that never had any.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use super::Manager;
use crate::domain::{ClusterId, Generation};

/// What a manager remembers of its cluster beside the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    cluster_id: String,
    generation: u64,
    member: String,
    node: u64,
}

impl Identity {
    pub(super) fn cluster_id(&self) -> ClusterId {
        ClusterId(self.cluster_id.clone())
    }

    pub(super) fn generation(&self) -> Generation {
        Generation(self.generation)
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

/// A manager that belonged to a cluster and has no log any more must never come
/// back as the same voter: it could vote against what it promised.
pub(super) fn refuse_lost_raft(identity: &Option<Identity>, raft_dir: &Path) -> anyhow::Result<()> {
    let empty = match fs::read_dir(raft_dir) {
        Ok(mut entries) => entries.next().is_none(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => true,
        Err(e) => return Err(e).with_context(|| format!("look into {}", raft_dir.display())),
    };
    if let Some(known) = identity.as_ref().filter(|_| empty) {
        bail!(
            "{} is empty, but this manager was {} (node {}) of cluster {}: it lost its Raft log and can't come back as \
             the same voter; replace the member (`matriarch member replace`), or restore the directory",
            raft_dir.display(),
            known.member,
            known.node,
            known.cluster_id
        );
    }
    Ok(())
}

/// Writes the copy once genesis is committed, and tells the other rooms who we are.
pub(super) async fn keep(manager: Manager, dir: PathBuf) -> anyhow::Result<()> {
    // A voter acks nothing before this: an entry it has not applied may have ended the epoch.
    manager.inner.node.caught_up().await;
    let mut states = manager.inner.node.state();
    let mut told = None;
    loop {
        let state = states.borrow_and_update().clone();
        // In this order: a quarantine for a change of membership is as long as the longest promise in use.
        manager.inner.acceptor.set_timings(state.timings.clone());
        manager.inner.acceptor.set_applied(state.epoch);
        let (id, voters) = manager.inner.node.membership();
        if !voters.is_empty() && told.as_ref() != Some(&(id, voters.clone())) {
            manager.inner.acceptor.set_membership(id, voters.clone());
            told = Some((id, voters));
        }
        if let Some(identity) = &state.identity {
            manager.inner.node.set_identity(identity.cluster_id.clone(), identity.generation);
            manager.inner.acceptor.set_identity(identity.cluster_id.clone(), identity.generation);
            let member = manager.inner.config.find(&manager.inner.me).context("this member left the configuration")?;
            let wanted = Identity {
                cluster_id: identity.cluster_id.0.clone(),
                generation: identity.generation.0,
                member: manager.inner.me.to_string(),
                node: member.node.0,
            };
            if load(&dir)?.as_ref() != Some(&wanted) {
                store(&dir, &wanted)?;
            }
        }
        if states.changed().await.is_err() {
            return Ok(());
        }
    }
}

fn store(dir: &Path, identity: &Identity) -> anyhow::Result<()> {
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
        Identity { cluster_id: "c".into(), generation: 1, member: "n1".into(), node: 1 }
    }

    #[test]
    fn the_copy_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()).unwrap(), None);
        store(dir.path(), &known()).unwrap();
        assert_eq!(load(dir.path()).unwrap(), Some(known()));
    }

    #[test]
    fn a_manager_that_lost_its_log_refuses_to_start() {
        let dir = tempfile::tempdir().unwrap();
        let raft = dir.path().join("raft");
        assert!(refuse_lost_raft(&None, &raft).is_ok());
        let refused = refuse_lost_raft(&Some(known()), &raft).unwrap_err().to_string();
        assert!(refused.contains("member replace") && refused.contains("n1"), "{refused}");
        fs::create_dir(&raft).unwrap();
        fs::write(raft.join("db"), "x").unwrap();
        assert!(refuse_lost_raft(&Some(known()), &raft).is_ok());
    }
}
