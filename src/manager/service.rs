//! The gRPC services of a manager on one port: Raft, Peer, Routing, Admin,
//! health and reflection.

use std::{pin::Pin, time::Duration};

use anyhow::Context as _;
use tokio::{net::TcpListener, sync::watch};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

use super::{Manager, copies, founding, reader, rejoin, reload, seal, view};
use crate::{
    domain::{Epoch, Format, Generation, MemberId},
    policy::Situation,
    rpc::{convert, v1},
    state::ClusterState,
};

/// Largest request but for Raft's own.
const MESSAGE_MAX: usize = 4 << 20;
/// Routers hear at least this often.
const ROUTERS: Duration = Duration::from_secs(1);

pub(super) async fn bind(manager: &Manager) -> anyhow::Result<TcpListener> {
    let (_, local) = manager.inner.config.local().context("no [member]")?;
    let address = local.listen;
    TcpListener::bind(address).await.with_context(|| format!("listen on {address} (manager.listen)"))
}

pub(super) async fn serve<A: v1::admin_server::Admin>(
    manager: Manager,
    admin: A,
    listener: TcpListener,
    mut shutdown: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status("", tonic_health::ServingStatus::Serving).await;
    health.set_service_status("matriarch.v1.Admin", tonic_health::ServingStatus::Serving).await;
    let described =
        || tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(v1::FILE_DESCRIPTOR_SET);
    let reflection = described().build_v1().context("gRPC reflection")?;
    // What grpcio-reflection of Python and others ask still.
    let older_reflection = described().build_v1alpha().context("gRPC reflection")?;
    let gate = manager.clone();
    let raft = tonic::service::interceptor::InterceptedService::new(manager.inner.node.grpc(), move |request| {
        // A manager without a log takes no part before it has seen genesis, one with a log not before it
        // has asked whether anybody knows that it went back.
        if gate.inner.gate.is_open() {
            Ok(request)
        } else {
            Err(Status::unavailable("this manager takes no part in Raft yet"))
        }
    });
    let peer = v1::peer_server::PeerServer::new(PeerService { manager: manager.clone() });
    let routing = v1::routing_server::RoutingServer::new(RoutingService { manager: manager.clone() });
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .add_service(raft)
        .add_service(peer.max_decoding_message_size(MESSAGE_MAX))
        .add_service(routing)
        .add_service(v1::admin_server::AdminServer::new(admin).max_decoding_message_size(MESSAGE_MAX))
        .add_service(health_service)
        .add_service(reflection)
        .add_service(older_reflection)
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), async move {
            let _ = shutdown.wait_for(|stop| *stop).await;
        })
        .await
        .context("serve gRPC")
}

fn check(manager: &Manager, to: Option<&v1::Target>) -> Result<v1::Target, Status> {
    let state = manager.inner.node.state().borrow().clone();
    convert::check_member_target(to, manager.inner.me.as_str(), &state.cluster_id(), state.generation())
}

struct PeerService {
    manager: Manager,
}

#[tonic::async_trait]
impl v1::peer_server::Peer for PeerService {
    async fn hello(&self, request: Request<v1::HelloRequest>) -> Result<Response<v1::HelloReply>, Status> {
        // Strangers must learn that they are strangers, so the cluster id is not checked here.
        let request = request.into_inner();
        let to = request.to.clone().unwrap_or_default();
        if !to.target.is_empty() && to.target != self.manager.inner.me.as_str() {
            let me = &self.manager.inner.me;
            return Err(Status::failed_precondition(format!("the request is for {}, this is {me}", to.target)));
        }
        Ok(Response::new(founding::hello(&self.manager, &request)))
    }

    async fn report(&self, request: Request<v1::ReportRequest>) -> Result<Response<v1::ReportReply>, Status> {
        let report = request.into_inner();
        let to = check(&self.manager, report.to.as_ref())?;
        let sender: MemberId = to.sender.parse().map_err(|_| Status::invalid_argument("the sender is no member id"))?;
        let board = &self.manager.inner.board;
        let agent = match report.status.map(convert::agent_view).transpose() {
            Ok(agent) => agent.map(|view| (view, Duration::from_millis(report.age_ms))),
            Err(error) => return Err(Status::invalid_argument(error.to_string())),
        };
        for notice in report.notices {
            match convert::notice_of(notice) {
                Ok(notice) => board.notice(notice),
                Err(error) => tracing::warn!(member = %sender, error = %error, "a notice can't be read"),
            }
        }
        let disk = (report.disk_us > 0).then(|| Duration::from_micros(report.disk_us));
        let manager = (Format::from(report.format), disk);
        board.observe(&sender, agent, convert::promise_of(report.promise), manager);
        let state = self.manager.inner.node.state().borrow().clone();
        let look = |s: &Situation<'_>| (view::seen_by_leader(s), copies::word(s, &sender));
        let ((primary_ready, standbys), copying) = board.situation(&state, &self.manager.timings(), look);
        let standbys = standbys
            .into_iter()
            .map(|(member, (streaming, lag_bytes))| v1::StandbyLag { member: member.to_string(), streaming, lag_bytes })
            .collect();
        let node = &self.manager.inner.node;
        let floors = node.floors().into_iter().map(|(id, floor)| convert::floor(id, floor)).collect();
        let present = state.members.get(&sender).map(|m| m.node);
        let forgot = present.and_then(|present| node.lost_logs().remove(&present)).unwrap_or_default();
        let epoch = state.epoch.0;
        let (may_copy, copy_from) = (copying.may, copying.from.map(|m| m.to_string()).unwrap_or_default());
        Ok(Response::new(v1::ReportReply { primary_ready, standbys, epoch, floors, forgot, may_copy, copy_from }))
    }

    async fn confirm_reader(
        &self,
        request: Request<v1::ConfirmReaderRequest>,
    ) -> Result<Response<v1::ConfirmReaderReply>, Status> {
        let request = request.into_inner();
        let to = check(&self.manager, request.to.as_ref())?;
        let sender: MemberId = to.sender.parse().map_err(|_| Status::invalid_argument("the sender is no member id"))?;
        let life = reader::life(&self.manager, &sender, request.id).await;
        let life_ms = life.map_or(0, |life| u64::try_from(life.as_millis()).unwrap_or(u64::MAX));
        Ok(Response::new(v1::ConfirmReaderReply { confirmed: life.is_some(), life_ms }))
    }

    async fn reload(&self, request: Request<v1::ReloadHereRequest>) -> Result<Response<v1::Reloaded>, Status> {
        check(&self.manager, request.into_inner().to.as_ref())?;
        Ok(Response::new(reload::here(&self.manager).await?))
    }

    async fn rejoin(&self, request: Request<v1::RejoinRequest>) -> Result<Response<v1::RejoinReply>, Status> {
        let request = request.into_inner();
        let to = request.to.clone().unwrap_or_default();
        let state = self.manager.inner.node.state().borrow().clone();
        // A member of an earlier generation comes in this way, one of another cluster doesn't.
        let generation = Generation(to.generation);
        convert::check_member_target(Some(&to), self.manager.inner.me.as_str(), &state.cluster_id(), generation)?;
        Ok(Response::new(rejoin::give(&self.manager, &request).await))
    }

    type ReadWalStream = tonic::Streaming<v1::WalPiece>;

    async fn read_wal(&self, request: Request<v1::ReadWalRequest>) -> Result<Response<Self::ReadWalStream>, Status> {
        let request = request.into_inner();
        check(&self.manager, request.to.as_ref())?;
        Ok(Response::new(self.manager.inner.link.read_wal(request).await?))
    }

    type ReadSegmentStream = tonic::Streaming<v1::WalPiece>;

    async fn read_segment(
        &self,
        request: Request<v1::ReadSegmentRequest>,
    ) -> Result<Response<Self::ReadSegmentStream>, Status> {
        let request = request.into_inner();
        check(&self.manager, request.to.as_ref())?;
        Ok(Response::new(self.manager.inner.link.read_segment(request).await?))
    }

    async fn seal(&self, request: Request<v1::SealRequest>) -> Result<Response<v1::SealReply>, Status> {
        let seal = request.into_inner();
        check(&self.manager, seal.to.as_ref())?;
        seal::committed_here(&self.manager, Epoch(seal.epoch)).await?;
        let (promise, agent) = seal::own_seal(&self.manager, Epoch(seal.epoch)).await?;
        Ok(Response::new(v1::SealReply {
            promise: Some(convert::promise(&promise)),
            status: agent.map(|a| convert::agent_status(&a, 0, 0)),
        }))
    }
}

struct RoutingService {
    manager: Manager,
}

type RoutingStream = Pin<Box<dyn Stream<Item = Result<v1::RoutingState, Status>> + Send>>;

#[tonic::async_trait]
impl v1::routing_server::Routing for RoutingService {
    type WatchStream = RoutingStream;

    async fn watch(&self, request: Request<v1::RoutingRequest>) -> Result<Response<RoutingStream>, Status> {
        let state = self.manager.inner.node.state().borrow().clone();
        let (me, cluster) = (self.manager.inner.me.as_str(), state.cluster_id());
        convert::check_cluster(request.into_inner().to.as_ref(), me, &cluster)?;
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        tokio::spawn(follow(self.manager.clone(), sender));
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))))
    }
}

/// Sends at once, on every change, and once a second so that a router knows how fresh it is.
async fn follow(manager: Manager, sender: tokio::sync::mpsc::Sender<Result<v1::RoutingState, Status>>) {
    let mut states = manager.inner.node.state();
    loop {
        let state = states.borrow_and_update().clone();
        if sender.send(Ok(routing_state(&manager, &state))).await.is_err() {
            return;
        }
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(ROUTERS) => {}
            () = sender.closed() => return,
        }
    }
}

fn routing_state(manager: &Manager, state: &ClusterState) -> v1::RoutingState {
    let open = state.open_primary();
    let primary = open.map(|(_, m)| m).or_else(|| state.holder().map(|(_, m)| m));
    let address = |m: &MemberId| state.members.get(m).map(|m| m.postgres.clone()).unwrap_or_default();
    let seen = manager.inner.board.read(|f| f.standbys.clone());
    let standbys = state
        .with_postgres()
        .filter(|m| Some(*m) != primary)
        .map(|m| {
            let (streaming, lag_bytes) = seen.get(m).copied().unwrap_or((false, 0));
            let confirms =
                state.sync.in_force(state.epoch).is_some_and(|rule| rule.count > 0 && rule.names.contains(m));
            v1::routing_state::Standby { member: m.to_string(), address: address(m), streaming, lag_bytes, confirms }
        })
        .collect();
    let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let committed = state.timings.in_force().map(|c| c.timings);
    v1::RoutingState {
        cluster_id: state.cluster_id().0,
        generation: state.generation().0,
        epoch: state.epoch.0,
        open: open.is_some(),
        primary: primary.map(ToString::to_string).unwrap_or_default(),
        primary_address: primary.map(address).unwrap_or_default(),
        standbys,
        confirmed_age_ms: u64::try_from(view::confirmed_age(manager, state).as_millis()).unwrap_or(u64::MAX),
        revision: state.revision,
        stale_ms: committed.map_or(0, |t| ms(t.router_stale)),
        hold_ms: committed.map_or(0, |t| ms(t.router_hold)),
        hibernated: state.asleep().map(|h| format!("the cluster is hibernated{}", h.asked)).unwrap_or_default(),
        draining: state.holds_writes(),
        moved: state.moved.iter().map(|(m, at)| (m.to_string(), at.clone())).collect(),
    }
}
