//! The log of a new group of one, made from a state: what `matriarch recover` begins with.

use std::{collections::BTreeMap, fs, path::Path};

use bytes::Bytes;

use super::{
    backend::{LogBackend as _, Meta, OpenError, SledBackend, io_at, sync_dir},
    convert::{log_id_in, log_id_out},
    log_store, record,
    state_machine::SnapshotFile,
    types::{Membership, PeerNode, SnapshotMeta, StoredMembership},
};
use crate::{
    domain::{GroupNode, NodeId},
    rpc::{codec, v1},
    state::ClusterState,
};

/// Where the log of the new group begins. Its entries are of no earlier group's terms: the
/// generation keeps the groups apart.
const BEGINNING: v1::LogId = v1::LogId { term: 1, index: 1 };

/// Makes the Raft directory `dir` of a group whose only voter is `node`, with `state` as its snapshot.
///
/// # Errors
/// If the directory exists, or can't be made durable.
pub fn found_alone(dir: &Path, node: NodeId, of: &GroupNode, state: &ClusterState) -> Result<(), OpenError> {
    fs::create_dir(dir).map_err(io_at("create", dir))?;
    let log = dir.join("log");
    let backend = SledBackend::open(&log, log_store::lock(dir)?)?;
    let owner = v1::NodeInfo { id: node.0, member: of.member.to_string(), address: String::new() };
    let vote = v1::Vote { term: BEGINNING.term, node_id: node.0, committed: false };
    let last = log_id_in(&BEGINNING);
    let put = |meta, bytes| backend.put(meta, bytes).map_err(io_at("write", &log));
    put(Meta::Identity, record::seal(&owner))?;
    put(Meta::Vote, record::seal(&vote))?;
    put(Meta::Purged, record::seal(&log_id_out(&last)))?;
    backend.sync().map_err(io_at("sync", &log))?;
    let peer = PeerNode { member: of.member.to_string(), address: of.address.clone() };
    let membership = Membership::new(vec![[node.0].into()], BTreeMap::from([(node.0, peer)]))
        .map_err(|e| OpenError::Damaged { path: dir.to_owned(), why: e.to_string() })?;
    let meta = SnapshotMeta { last_log_id: Some(last), last_membership: StoredMembership::new(Some(last), membership) };
    let bytes = Bytes::from(codec::encode_state(state));
    SnapshotFile::open(dir)?.write(&meta, &bytes).map_err(io_at("write the snapshot of", dir))?;
    sync_dir(dir).map_err(io_at("sync", dir))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        domain::{Epoch, MemberId, Profile, Timings},
        raft::{Node, NodeOptions},
    };

    #[tokio::test]
    async fn a_group_of_one_leads_itself_and_has_the_state() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("raft");
        let of = GroupNode { member: "n1".parse().unwrap(), address: "127.0.0.1:1".to_owned() };
        let state = ClusterState { epoch: Epoch(1_000), revision: 9, ..ClusterState::default() };
        found_alone(&dir, NodeId(1_000), &of, &state).unwrap();
        assert!(found_alone(&dir, NodeId(1_000), &of, &state).is_err(), "never over anything");
        let options = NodeOptions {
            node: NodeId(1_000),
            member: of.member.clone(),
            address: of.address,
            dir,
            timings: Timings::of(Profile::Fast),
            stands: true,
        };
        let node = Node::start(options).await.unwrap();
        let mut leadership = node.leadership();
        let led = leadership.wait_for(|l| l.am_leader);
        tokio::time::timeout(Duration::from_secs(20), led).await.expect("it leads").unwrap();
        assert_eq!(**node.state().borrow(), state);
        let alone: Vec<MemberId> = node.membership().halves.into_iter().flatten().collect();
        assert_eq!(alone, [of.member]);
        node.shutdown().await;
    }
}
