//! The client side: openraft's requests to other managers over tonic.
//!
//! Heartbeats, entries and votes to one peer share a connection; each snapshot
//! has its own, so that a big transfer never delays a heartbeat. Every
//! transport failure is `Unreachable`, which makes openraft wait before it tries again.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use openraft::{
    OptionalSend, RaftNetworkFactory, RaftNetworkV2,
    errors::{RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::{Backoff, RPCOption},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
        VoteRequest, VoteResponse,
    },
};
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};

use super::{
    convert,
    identity::Identity,
    leadership::Silence,
    line::Line,
    memory::Memory,
    types::{PeerNode, Snapshot, TypeConfig, Vote},
};
use crate::{
    domain::Timings,
    rpc::v1::{self, raft_client::RaftClient},
    state::ClusterState,
};

/// The largest message either side takes.
pub(super) const MESSAGE_MAX: usize = 64 << 20;
const CHUNK: usize = 1 << 20;

/// How another manager is reached. The seam for TLS and for tests that cut links.
pub trait Dialer: Send + Sync + 'static {
    /// A channel that connects when it is first used.
    ///
    /// # Errors
    /// If the address can't be one.
    fn dial(&self, address: &str, connect_timeout: Duration) -> Result<Channel, tonic::transport::Error>;
}

/// Plain TCP.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpDialer;

impl Dialer for TcpDialer {
    fn dial(&self, address: &str, connect_timeout: Duration) -> Result<Channel, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
        Ok(endpoint.connect_timeout(connect_timeout).tcp_nodelay(true).connect_lazy())
    }
}

/// Makes clients for peers; connections to one address are shared between them.
pub(super) struct Network {
    identity: Identity,
    silence: Silence,
    memory: Memory,
    dialer: Arc<dyn Dialer>,
    timings: Timings,
    state: watch::Receiver<Arc<ClusterState>>,
    lines: HashMap<(String, String), Arc<Line>>,
}

impl Network {
    pub(super) fn new(
        identity: Identity,
        dialer: Arc<dyn Dialer>,
        timings: Timings,
        (silence, memory): (Silence, Memory),
        state: watch::Receiver<Arc<ClusterState>>,
    ) -> Self {
        Self { identity, silence, memory, dialer, timings, state, lines: HashMap::new() }
    }

    fn peer(&mut self, target: u64, node: &PeerNode, heartbeats: bool) -> Peer {
        let line = self.lines.entry((node.member.clone(), node.address.clone())).or_insert_with(|| {
            Arc::new(Line::new(node, self.state.clone(), Arc::clone(&self.dialer), self.timings.heartbeat))
        });
        Peer {
            node: target,
            member: node.member.clone(),
            heartbeats,
            identity: self.identity.clone(),
            silence: self.silence.clone(),
            memory: self.memory.clone(),
            line: Arc::clone(line),
            timings: self.timings,
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &PeerNode) -> Peer {
        self.peer(target, node, false)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &PeerNode) -> Peer {
        self.peer(target, node, true)
    }
}

/// A client for one peer.
pub(super) struct Peer {
    node: u64,
    member: String,
    /// It carries the leader's heartbeats and nothing else.
    heartbeats: bool,
    identity: Identity,
    silence: Silence,
    memory: Memory,
    line: Arc<Line>,
    timings: Timings,
}

pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn unreachable(why: impl ToString) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(why))
}

impl Peer {
    fn target(&self) -> v1::Target {
        self.identity.target(&self.member)
    }

    /// Passes an answer on, unless it contradicts an earlier one: openraft takes a log that went back
    /// for one that is only late (a debug build panics), and counts on the node again.
    fn believe(
        &self,
        request: &AppendEntriesRequest<TypeConfig>,
        reply: AppendEntriesResponse<TypeConfig>,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let sent = request.entries.last().map(|e| e.log_id).or(request.prev_log_id);
        match &reply {
            AppendEntriesResponse::Success => {
                self.memory.acknowledged(self.node, &request.vote, sent, request.leader_commit);
            }
            AppendEntriesResponse::PartialSuccess(matching) => {
                self.memory.acknowledged(self.node, &request.vote, *matching, request.leader_commit);
            }
            AppendEntriesResponse::Conflict => {
                if let Some(evidence) = self.memory.contradicts(self.node, &request.vote, request.prev_log_id) {
                    return Err(unreachable(format!("{}: {evidence}", self.member)));
                }
            }
            AppendEntriesResponse::HigherVote(_) => {}
        }
        Ok(reply)
    }

    /// One call over the shared line.
    async fn call<T>(
        &self,
        limit: Duration,
        call: impl AsyncFnOnce(RaftClient<Channel>) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> Result<T, RPCError<TypeConfig>> {
        let (at, channel) = self.line.channel().map_err(unreachable)?;
        match tokio::time::timeout(limit, call(client(channel))).await {
            Ok(Ok(reply)) => {
                self.line.answered(&at);
                Ok(reply.into_inner())
            }
            Ok(Err(status)) => {
                self.line.failed(&at);
                Err(unreachable(format!("{}: {status}", self.member)))
            }
            Err(_) => {
                self.line.missed(&at);
                Err(unreachable(format!("{}: no answer within {limit:?}", self.member)))
            }
        }
    }
}

fn client(channel: Channel) -> RaftClient<Channel> {
    RaftClient::new(channel).max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX)
}

/// The chunks of a snapshot; the first says what it is and for whom.
fn chunks(to: v1::Target, node: u64, vote: &Vote, snapshot: &Snapshot) -> Vec<v1::SnapshotChunk> {
    let mut rest: Bytes = snapshot.snapshot.clone();
    let mut chunks = Vec::with_capacity(rest.len() / CHUNK + 1);
    loop {
        let data = rest.split_to(rest.len().min(CHUNK));
        chunks.push(v1::SnapshotChunk { data, last: rest.is_empty(), ..v1::SnapshotChunk::default() });
        if rest.is_empty() {
            break;
        }
    }
    if let Some(first) = chunks.first_mut() {
        first.to = Some(to);
        first.node = node;
        first.vote = Some(convert::vote_out(vote));
        first.meta = Some(convert::meta_out(&snapshot.meta));
    }
    chunks
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        // openraft allows every append one heartbeat. Entries wait for the peer's
        // disk, and giving up on a slow one would only add a pause before the same work.
        let limit = if request.entries.is_empty() {
            option.soft_ttl()
        } else {
            option.soft_ttl().max(self.timings.election_min)
        };
        // openraft pauses its heartbeats when no quorum answers, and goes on offering entries,
        // which keep a follower from electing just as well.
        if !self.heartbeats && self.silence.is_kept() {
            return Err(unreachable("this leader has no quorum and keeps silent"));
        }
        let message = convert::append_out(self.target(), self.node, &request);
        let reply = self.call(limit, async move |mut client| client.append(message).await).await?;
        let reply = convert::append_reply_in(&reply).map_err(unreachable)?;
        self.believe(&request, reply)
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = convert::vote_request_out(self.target(), self.node, &request);
        let reply = self.call(option.soft_ttl(), async move |mut client| client.vote(message).await).await?;
        convert::vote_reply_in(&reply).map_err(unreachable)
    }

    // The library's default grants every pre-vote without asking anybody.
    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = convert::vote_request_out(self.target(), self.node, &request);
        let reply = self.call(option.soft_ttl(), async move |mut client| client.pre_vote(message).await).await?;
        convert::vote_reply_in(&reply).map_err(unreachable)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let failed = |why: String| StreamingError::Unreachable(Unreachable::from_string(why));
        let stream = tokio_stream::iter(chunks(self.target(), self.node, &vote, &snapshot));
        // Not the shared line: dropped, and with it closed, when the transfer ends.
        let (at, channel) = self.line.dial().map_err(failed)?;
        let mut client = client(channel);
        let reply = tokio::select! {
            reply = tokio::time::timeout(option.soft_ttl(), client.install_snapshot(stream)) => reply,
            closed = cancel => return Err(StreamingError::Closed(closed)),
        };
        let reply = reply
            .map_err(|_| failed(format!("{}: snapshot not taken within {:?}", self.member, option.soft_ttl())))?
            .inspect_err(|_| self.line.failed(&at))
            .map_err(|status| failed(format!("{}: {status}", self.member)))?
            .into_inner();
        let vote = convert::need_vote(reply.vote.as_ref()).map_err(|e| failed(e.to_string()))?;
        Ok(SnapshotResponse::new(vote))
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = convert::transfer_out(self.target(), &request);
        let reply = self.call(option.soft_ttl(), async move |mut client| client.transfer_leader(message).await).await?;
        if reply.refused.is_empty() {
            return Ok(Ok(()));
        }
        // openraft only logs the answer, so the reason travels as text.
        Err(unreachable(format!("{} refused the transfer: {}", self.member, reply.refused)))
    }

    fn backoff(&self) -> Option<Backoff> {
        // A dead peer costs one attempt in a heartbeat; the spin that openraft
        // falls into with a transport that fails at once is broken here.
        let pause = self.timings.heartbeat.max(Duration::from_millis(50));
        Some(Backoff::new(std::iter::repeat(pause)))
    }
}
