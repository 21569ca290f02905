//! openraft's types from and to `proto/matriarch/v1/raft.proto`. The wire and
//! the disk have our format, so that a change of library version is no change of format.

use std::collections::{BTreeMap, BTreeSet};

use openraft::{
    EntryPayload,
    raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest, VoteResponse},
    vote::{RaftLeaderId as _, RaftLeaderIdExt as _},
};

use super::{
    record::RecordError,
    types::{CommandBytes, Entry, LogId, Membership, PeerNode, SnapshotMeta, StoredMembership, TypeConfig, Vote},
};
use crate::rpc::v1;

type LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>;

fn missing(what: &str) -> RecordError {
    RecordError::Nonsense(format!("{what} is missing"))
}

pub(super) fn vote_out(vote: &Vote) -> v1::Vote {
    v1::Vote { term: vote.leader_id.term, node_id: vote.leader_id.voted_for, committed: vote.committed }
}

pub(super) fn vote_in(vote: &v1::Vote) -> Vote {
    Vote { leader_id: LeaderId::new(vote.term, vote.node_id), committed: vote.committed }
}

pub(super) fn need_vote(vote: Option<&v1::Vote>) -> Result<Vote, RecordError> {
    vote.map(vote_in).ok_or_else(|| missing("vote"))
}

pub(super) fn log_id_out(id: &LogId) -> v1::LogId {
    v1::LogId { term: id.leader_id.term, index: id.index }
}

pub(super) fn log_id_in(id: &v1::LogId) -> LogId {
    // The committed id of a standard leader has no node: there is one in a term.
    LogId::new(LeaderId::new_committed(id.term, 0), id.index)
}

pub(super) fn membership_out(membership: &Membership) -> v1::Membership {
    let configs = membership.get_joint_config().iter();
    v1::Membership {
        configs: configs.map(|set| v1::VoterSet { ids: set.iter().copied().collect() }).collect(),
        nodes: membership
            .nodes()
            .map(|(id, node)| v1::NodeInfo { id: *id, member: node.member.clone(), address: node.address.clone() })
            .collect(),
    }
}

pub(super) fn membership_in(membership: v1::Membership) -> Result<Membership, RecordError> {
    let configs: Vec<BTreeSet<u64>> = membership.configs.into_iter().map(|set| set.ids.into_iter().collect()).collect();
    let nodes: BTreeMap<u64, PeerNode> = membership
        .nodes
        .into_iter()
        .map(|node| (node.id, PeerNode { member: node.member, address: node.address }))
        .collect();
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|e| RecordError::Nonsense(e.to_string()))
}

pub(super) fn entry_out(entry: &Entry) -> v1::Entry {
    let payload = match &entry.payload {
        EntryPayload::Blank => v1::entry::Payload::Blank(v1::entry::Blank {}),
        EntryPayload::Normal(command) => v1::entry::Payload::Command(command.0.clone()),
        EntryPayload::Membership(membership) => v1::entry::Payload::Membership(membership_out(membership)),
    };
    v1::Entry { log_id: Some(log_id_out(&entry.log_id)), payload: Some(payload) }
}

pub(super) fn entry_in(entry: v1::Entry) -> Result<Entry, RecordError> {
    let log_id = entry.log_id.as_ref().map(log_id_in).ok_or_else(|| missing("log id"))?;
    let payload = match entry.payload.ok_or_else(|| missing("payload"))? {
        v1::entry::Payload::Blank(_) => EntryPayload::Blank,
        v1::entry::Payload::Command(bytes) => EntryPayload::Normal(CommandBytes(bytes)),
        v1::entry::Payload::Membership(membership) => EntryPayload::Membership(membership_in(membership)?),
    };
    Ok(Entry { log_id, payload })
}

pub(super) fn append_out(to: v1::Target, node: u64, request: &AppendEntriesRequest<TypeConfig>) -> v1::AppendRequest {
    v1::AppendRequest {
        to: Some(to),
        node,
        vote: Some(vote_out(&request.vote)),
        prev: request.prev_log_id.as_ref().map(log_id_out),
        entries: request.entries.iter().map(entry_out).collect(),
        committed: request.leader_commit.as_ref().map(log_id_out),
    }
}

pub(super) fn append_in(request: v1::AppendRequest) -> Result<AppendEntriesRequest<TypeConfig>, RecordError> {
    Ok(AppendEntriesRequest {
        vote: need_vote(request.vote.as_ref())?,
        prev_log_id: request.prev.as_ref().map(log_id_in),
        entries: request.entries.into_iter().map(entry_in).collect::<Result<_, _>>()?,
        leader_commit: request.committed.as_ref().map(log_id_in),
    })
}

pub(super) fn append_reply_out(reply: &AppendEntriesResponse<TypeConfig>) -> v1::AppendReply {
    use v1::append_reply::Kind;
    let (kind, matching, vote) = match reply {
        AppendEntriesResponse::Success => (Kind::Success, None, None),
        AppendEntriesResponse::PartialSuccess(matching) => (Kind::Partial, matching.as_ref().map(log_id_out), None),
        AppendEntriesResponse::Conflict => (Kind::Conflict, None, None),
        AppendEntriesResponse::HigherVote(vote) => (Kind::HigherVote, None, Some(vote_out(vote))),
    };
    v1::AppendReply { kind: kind.into(), matching, vote }
}

pub(super) fn append_reply_in(reply: &v1::AppendReply) -> Result<AppendEntriesResponse<TypeConfig>, RecordError> {
    use v1::append_reply::Kind;
    match reply.kind() {
        Kind::Success => Ok(AppendEntriesResponse::Success),
        Kind::Partial => Ok(AppendEntriesResponse::PartialSuccess(reply.matching.as_ref().map(log_id_in))),
        Kind::Conflict => Ok(AppendEntriesResponse::Conflict),
        Kind::HigherVote => Ok(AppendEntriesResponse::HigherVote(need_vote(reply.vote.as_ref())?)),
        Kind::Unspecified => Err(missing("kind of append reply")),
    }
}

pub(super) fn vote_request_out(to: v1::Target, node: u64, request: &VoteRequest<TypeConfig>) -> v1::VoteRequest {
    v1::VoteRequest {
        to: Some(to),
        node,
        vote: Some(vote_out(&request.vote)),
        last: request.last_log_id.as_ref().map(log_id_out),
        leadership_transfer: request.leadership_transfer,
    }
}

pub(super) fn vote_request_in(request: &v1::VoteRequest) -> Result<VoteRequest<TypeConfig>, RecordError> {
    let mut vote = VoteRequest::new(need_vote(request.vote.as_ref())?, request.last.as_ref().map(log_id_in));
    vote.leadership_transfer = request.leadership_transfer;
    Ok(vote)
}

pub(super) fn vote_reply_out(reply: &VoteResponse<TypeConfig>) -> v1::VoteReply {
    v1::VoteReply {
        vote: Some(vote_out(&reply.vote)),
        granted: reply.vote_granted,
        last: reply.last_log_id.as_ref().map(log_id_out),
    }
}

pub(super) fn vote_reply_in(reply: &v1::VoteReply) -> Result<VoteResponse<TypeConfig>, RecordError> {
    let vote = need_vote(reply.vote.as_ref())?;
    Ok(VoteResponse::new(vote, reply.last.as_ref().map(log_id_in), reply.granted))
}

pub(super) fn transfer_out(to: v1::Target, request: &TransferLeaderRequest<TypeConfig>) -> v1::TransferRequest {
    v1::TransferRequest {
        to: Some(to),
        from: Some(vote_out(request.from_leader())),
        to_node: *request.to_node_id(),
        last: request.last_log_id().map(log_id_out),
    }
}

pub(super) fn transfer_in(request: &v1::TransferRequest) -> Result<TransferLeaderRequest<TypeConfig>, RecordError> {
    let from = need_vote(request.from.as_ref())?;
    Ok(TransferLeaderRequest::new(from, request.to_node, request.last.as_ref().map(log_id_in)))
}

pub(super) fn meta_out(meta: &SnapshotMeta) -> v1::SnapshotMeta {
    v1::SnapshotMeta {
        last: meta.last_log_id.as_ref().map(log_id_out),
        membership_log_id: meta.last_membership.log_id().as_ref().map(log_id_out),
        membership: Some(membership_out(meta.last_membership.membership())),
    }
}

pub(super) fn meta_in(meta: v1::SnapshotMeta) -> Result<SnapshotMeta, RecordError> {
    let membership = membership_in(meta.membership.ok_or_else(|| missing("membership"))?)?;
    Ok(SnapshotMeta {
        last_log_id: meta.last.as_ref().map(log_id_in),
        last_membership: StoredMembership::new(meta.membership_log_id.as_ref().map(log_id_in), membership),
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn id(term: u64, index: u64) -> LogId {
        log_id_in(&v1::LogId { term, index })
    }

    #[test]
    fn entries_come_back_as_they_were() {
        let voters: BTreeSet<u64> = [1, 2].into();
        let node = |n: u64| PeerNode { member: format!("n{n}"), address: format!("h{n}:1") };
        let nodes: BTreeMap<u64, PeerNode> = (1..=3).map(|n| (n, node(n))).collect();
        let joint = Membership::new(vec![voters, [2, 3].into()], nodes).unwrap();
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(CommandBytes(Bytes::from_static(b"\x01\xff"))),
            EntryPayload::Membership(joint),
        ] {
            let entry = Entry { log_id: id(3, 9), payload };
            assert_eq!(entry_in(entry_out(&entry)).unwrap(), entry);
        }
    }

    #[test]
    fn an_entry_without_payload_is_refused() {
        let entry = v1::Entry { log_id: Some(v1::LogId { term: 1, index: 1 }), payload: None };
        assert!(entry_in(entry).is_err());
    }

    #[test]
    fn a_transfer_keeps_its_mark() {
        let vote = vote_in(&v1::Vote { term: 4, node_id: 2, committed: false });
        let mut request = VoteRequest::new(vote, Some(id(2, 5)));
        request.leadership_transfer = true;
        let back = vote_request_in(&vote_request_out(v1::Target::default(), 1, &request)).unwrap();
        assert_eq!(back, request);
    }
}
