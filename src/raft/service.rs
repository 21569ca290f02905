//! The server side: other managers' requests into openraft.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use nix::time::{ClockId, clock_gettime};
use openraft::raft::AppendEntriesResponse;
use tokio::sync::{Notify, futures::Notified};
use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status, Streaming};

use super::{
    convert,
    identity::{Identity, Misdirected},
    record::RecordError,
    types::{Raft, Snapshot},
};
use crate::rpc::v1::{self, raft_server};

/// Milliseconds since some moment, on a clock that also runs in suspend.
pub type Clock = fn() -> u64;

/// Milliseconds of `CLOCK_BOOTTIME`.
pub(super) fn boottime_ms() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |now| {
        let ms = now.tv_sec().saturating_mul(1_000).saturating_add(now.tv_nsec() / 1_000_000);
        u64::try_from(ms).unwrap_or(0)
    })
}

/// When the leader was last heard.
#[derive(Debug, Clone)]
pub(super) struct Contact {
    /// By the clock, plus one so that 0 can mean never.
    last: Arc<AtomicU64>,
    clock: Clock,
    heard: Arc<Notify>,
}

impl Contact {
    pub(super) fn new(clock: Clock) -> Self {
        Self { last: Arc::default(), clock, heard: Arc::default() }
    }

    fn now(&self) {
        self.last.store((self.clock)().saturating_add(1), Ordering::Relaxed);
        // Nobody waits but a monitor that has not heard a leader for long.
        self.heard.notify_waiters();
    }

    /// Ends with the next message of a leader after this call.
    pub(super) fn next(&self) -> Notified<'_> {
        self.heard.notified()
    }

    /// How long ago; `None` if never.
    pub(super) fn age(&self) -> Option<std::time::Duration> {
        let last = self.last.load(Ordering::Relaxed).checked_sub(1)?;
        Some(std::time::Duration::from_millis((self.clock)().saturating_sub(last)))
    }
}

/// The gRPC service `matriarch.v1.Raft`.
#[derive(Clone)]
pub struct RaftService {
    pub(super) raft: Raft,
    pub(super) identity: Identity,
    pub(super) contact: Contact,
}

// tonic's own error type; boxing it here would only be undone by the caller.
#[allow(clippy::result_large_err)]
fn admit(identity: &Identity, to: Option<&v1::Target>, node: u64) -> Result<(), Status> {
    identity.check(to, node).map_err(|e| {
        let sender = to.map_or("", |t| t.sender.as_str());
        // Requests for a node that was replaced go on, several a second, until the group has been changed.
        if matches!(e, Misdirected::Node { .. }) {
            tracing::debug!(error = %e, sender, "refused a Raft request");
        } else {
            tracing::warn!(error = %e, sender, "refused a Raft request");
        }
        match e {
            Misdirected::Member { .. }
            | Misdirected::Node { .. }
            | Misdirected::Cluster { .. }
            | Misdirected::Generation { .. } => Status::failed_precondition(e.to_string()),
        }
    })
}

fn malformed(error: RecordError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

#[tonic::async_trait]
impl raft_server::Raft for RaftService {
    async fn append(&self, request: Request<v1::AppendRequest>) -> Result<Response<v1::AppendReply>, Status> {
        let request = request.into_inner();
        admit(&self.identity, request.to.as_ref(), request.node)?;
        let request = convert::append_in(request).map_err(malformed)?;
        let reply = self.raft.append_entries(request).await.map_err(stopped)?;
        // Whoever has the higher vote is no contact with a leader.
        if !matches!(reply, AppendEntriesResponse::HigherVote(_)) {
            self.contact.now();
        }
        Ok(Response::new(convert::append_reply_out(&reply)))
    }

    async fn vote(&self, request: Request<v1::VoteRequest>) -> Result<Response<v1::VoteReply>, Status> {
        let request = request.into_inner();
        admit(&self.identity, request.to.as_ref(), request.node)?;
        let request = convert::vote_request_in(&request).map_err(malformed)?;
        let reply = self.raft.vote(request).await.map_err(stopped)?;
        Ok(Response::new(convert::vote_reply_out(&reply)))
    }

    async fn pre_vote(&self, request: Request<v1::VoteRequest>) -> Result<Response<v1::VoteReply>, Status> {
        let request = request.into_inner();
        admit(&self.identity, request.to.as_ref(), request.node)?;
        let request = convert::vote_request_in(&request).map_err(malformed)?;
        let reply = self.raft.pre_vote(request).await.map_err(stopped)?;
        Ok(Response::new(convert::vote_reply_out(&reply)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<v1::SnapshotChunk>>,
    ) -> Result<Response<v1::SnapshotReply>, Status> {
        let mut chunks = request.into_inner();
        let first = chunks.next().await.ok_or_else(|| Status::invalid_argument("a snapshot without chunks"))??;
        admit(&self.identity, first.to.as_ref(), first.node)?;
        let vote = convert::need_vote(first.vote.as_ref()).map_err(malformed)?;
        let meta = first.meta.ok_or_else(|| Status::invalid_argument("a snapshot without meta"))?;
        let meta = convert::meta_in(meta).map_err(malformed)?;
        let (mut state, mut complete) = (first.data.to_vec(), first.last);
        while !complete {
            let chunk = chunks.next().await.ok_or_else(|| Status::aborted("the snapshot ended early"))??;
            if state.len() + chunk.data.len() > super::network::MESSAGE_MAX {
                return Err(Status::resource_exhausted("the snapshot is larger than any state of ours"));
            }
            state.extend_from_slice(&chunk.data);
            complete = chunk.last;
        }
        let snapshot = Snapshot { meta, snapshot: state.into() };
        let reply = self.raft.install_full_snapshot(vote, snapshot).await.map_err(stopped)?;
        if reply.vote == vote {
            self.contact.now();
        }
        Ok(Response::new(v1::SnapshotReply { vote: Some(convert::vote_out(&reply.vote)) }))
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferRequest>,
    ) -> Result<Response<v1::TransferReply>, Status> {
        let request = request.into_inner();
        // Every voter is told, and `to_node` is the one that is to lead: it doesn't say whom this request is for. Nobody
        // votes by it, and whoever has another vote than the sender's refuses it.
        admit(&self.identity, request.to.as_ref(), self.identity.node())?;
        let request = convert::transfer_in(&request).map_err(malformed)?;
        let answer = self.raft.handle_transfer_leader(request).await.map_err(stopped)?;
        let refused = answer.err().map(|e| e.to_string()).unwrap_or_default();
        Ok(Response::new(v1::TransferReply { refused }))
    }
}
