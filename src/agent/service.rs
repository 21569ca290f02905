//! The gRPC face: passes requests into the loop and waits for its answer.
//! Nothing is decided here.

use std::{os::unix::fs::PermissionsExt as _, path::Path, pin::Pin};

use futures_util::StreamExt as _;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{mpsc, oneshot, watch},
};
use tokio_stream::{
    Stream,
    wrappers::{ReceiverStream, TcpListenerStream, UnixListenerStream, WatchStream},
};
use tonic::{Request, Response, Status, transport::Server};

use super::{
    core::Refusal,
    order::{self, Address, Order},
};
use crate::{
    config::AgentEndpoint,
    domain::Briefing,
    rpc::{
        briefing,
        v1::{self, agent_server},
    },
};

type Pieces = mpsc::Receiver<Result<v1::WalPiece, Status>>;

/// A request on its way into the loop, with the way back.
#[derive(Debug)]
pub enum Ask {
    /// Carry out an order.
    Execute(Address, Order, oneshot::Sender<Result<(), Refusal>>),
    /// Watch the status.
    Watch(Address, oneshot::Sender<Result<watch::Receiver<v1::AgentStatus>, String>>),
    /// Probe now.
    Probe(Address, oneshot::Sender<Result<v1::AgentStatus, String>>),
    /// Read WAL that a crashed primary has left here.
    ReadWal(Address, v1::ReadWalRequest, oneshot::Sender<Result<Pieces, String>>),
    /// Read a segment of WAL that another member has removed.
    ReadSegment(Address, v1::ReadSegmentRequest, oneshot::Sender<Result<Pieces, Status>>),
    /// Judge settings of PostgreSQL, and tell of them.
    Parameters(Address, v1::ParametersRequest, oneshot::Sender<Result<v1::ParametersReply, String>>),
    /// Write PostgreSQL's configuration anew and have it read.
    Reload(Address, super::reload::Reply),
    /// What the manager has applied.
    Brief(Address, Briefing, oneshot::Sender<Result<(), String>>),
    /// Until when this host may have the address for standbys.
    LendReader(Address, v1::LendReaderRequest, oneshot::Sender<Result<(), String>>),
}

/// The service; cheap to clone.
#[derive(Debug, Clone)]
pub struct Service {
    asks: mpsc::Sender<Ask>,
}

impl Service {
    /// A service whose requests arrive at the other end of `asks`.
    pub fn new(asks: mpsc::Sender<Ask>) -> Self {
        Self { asks }
    }

    async fn ask<T>(&self, ask: Ask, answer: oneshot::Receiver<T>) -> Result<T, Status> {
        let ended = || Status::unavailable("the agent is ending");
        self.asks.send(ask).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())
    }
}

#[tonic::async_trait]
impl agent_server::Agent for Service {
    type ReadWalStream = ReceiverStream<Result<v1::WalPiece, Status>>;
    type ReadSegmentStream = ReceiverStream<Result<v1::WalPiece, Status>>;
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::AgentStatus, Status>> + Send>>;

    async fn watch(&self, request: Request<v1::AgentWatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let to = order::address(request.into_inner().to.as_ref()).map_err(Status::invalid_argument)?;
        let (sender, answer) = oneshot::channel();
        let receiver = self.ask(Ask::Watch(to, sender), answer).await?.map_err(Status::failed_precondition)?;
        Ok(Response::new(Box::pin(WatchStream::new(receiver).map(Ok))))
    }

    async fn execute(&self, request: Request<v1::Order>) -> Result<Response<v1::OrderReply>, Status> {
        let (to, order) = order::order(request.into_inner()).map_err(Status::invalid_argument)?;
        let (sender, answer) = oneshot::channel();
        let outcome = match self.ask(Ask::Execute(to, order, sender), answer).await? {
            Ok(()) => v1::order_reply::Outcome::Accepted(v1::order_reply::Accepted {}),
            Err(Refusal { reason, highest_epoch }) => {
                let highest_epoch = highest_epoch.0;
                v1::order_reply::Outcome::Refused(v1::order_reply::Refused { reason, highest_epoch })
            }
        };
        Ok(Response::new(v1::OrderReply { outcome: Some(outcome) }))
    }

    async fn probe(&self, request: Request<v1::AgentProbeRequest>) -> Result<Response<v1::AgentStatus>, Status> {
        let to = order::address(request.into_inner().to.as_ref()).map_err(Status::invalid_argument)?;
        let (sender, answer) = oneshot::channel();
        let status = self.ask(Ask::Probe(to, sender), answer).await?.map_err(Status::failed_precondition)?;
        Ok(Response::new(status))
    }

    async fn reload(&self, request: Request<v1::ReloadHereRequest>) -> Result<Response<v1::Reloaded>, Status> {
        let to = order::address(request.into_inner().to.as_ref()).map_err(Status::invalid_argument)?;
        let (sender, answer) = oneshot::channel();
        let reloaded = self.ask(Ask::Reload(to, sender), answer).await?.map_err(Status::failed_precondition)?;
        Ok(Response::new(reloaded))
    }

    async fn read_wal(&self, request: Request<v1::ReadWalRequest>) -> Result<Response<Self::ReadWalStream>, Status> {
        let request = request.into_inner();
        let to = order::address(request.to.as_ref()).map_err(Status::invalid_argument)?;
        let (sender, answer) = oneshot::channel();
        let pieces = self.ask(Ask::ReadWal(to, request, sender), answer).await?.map_err(Status::failed_precondition)?;
        Ok(Response::new(ReceiverStream::new(pieces)))
    }

    async fn read_segment(
        &self,
        request: Request<v1::ReadSegmentRequest>,
    ) -> Result<Response<Self::ReadSegmentStream>, Status> {
        let request = request.into_inner();
        let to = order::address(request.to.as_ref()).map_err(Status::invalid_argument)?;
        let (sender, answer) = oneshot::channel();
        let ask = Ask::ReadSegment(to, request, sender);
        Ok(Response::new(ReceiverStream::new(self.ask(ask, answer).await??)))
    }

    async fn parameters(
        &self,
        request: Request<v1::ParametersRequest>,
    ) -> Result<Response<v1::ParametersReply>, Status> {
        let request = request.into_inner();
        let to = order::address(request.to.as_ref()).map_err(Status::invalid_argument)?;
        let (sender, answer) = oneshot::channel();
        let reply = self.ask(Ask::Parameters(to, request, sender), answer).await?;
        reply.map(Response::new).map_err(Status::failed_precondition)
    }

    async fn brief(&self, request: Request<v1::BriefRequest>) -> Result<Response<v1::BriefReply>, Status> {
        let request = request.into_inner();
        let to = order::address(request.to.as_ref()).map_err(Status::invalid_argument)?;
        let briefing = briefing::briefing_of(request.briefing.unwrap_or_default());
        let briefing = briefing.map_err(|e| Status::invalid_argument(e.to_string()))?;
        let (sender, answer) = oneshot::channel();
        self.ask(Ask::Brief(to, briefing, sender), answer).await?.map_err(Status::failed_precondition)?;
        Ok(Response::new(v1::BriefReply {}))
    }

    async fn lend_reader(
        &self,
        request: Request<v1::LendReaderRequest>,
    ) -> Result<Response<v1::LendReaderReply>, Status> {
        let request = request.into_inner();
        let to = order::address(request.to.as_ref()).map_err(Status::invalid_argument)?;
        let (sender, answer) = oneshot::channel();
        self.ask(Ask::LendReader(to, request, sender), answer).await?.map_err(Status::failed_precondition)?;
        Ok(Response::new(v1::LendReaderReply {}))
    }
}

/// A place where the agent can't listen.
#[derive(Debug, thiserror::Error)]
#[error("agent.listen: listen on {place}")]
pub struct ListenError {
    place: String,
    source: std::io::Error,
}

/// The open door.
pub enum Listener {
    /// A unix socket of mode 0600.
    Unix(UnixListener),
    /// A TCP address.
    Tcp(TcpListener),
}

impl Listener {
    /// Opens the endpoint. A socket file that an earlier agent left is replaced;
    /// the lock on the state directory says that there is no other agent.
    ///
    /// # Errors
    /// The address is taken or the directory can't be written.
    pub async fn open(endpoint: &AgentEndpoint) -> Result<Listener, ListenError> {
        match endpoint {
            AgentEndpoint::Unix(path) => {
                let failed = |source| ListenError { place: path.display().to_string(), source };
                Ok(Listener::Unix(private_socket(path).map_err(failed)?))
            }
            AgentEndpoint::Tcp(address) => {
                let failed = |source| ListenError { place: address.to_string(), source };
                Ok(Listener::Tcp(TcpListener::bind(address).await.map_err(failed)?))
            }
        }
    }

    /// Serves until the runtime ends.
    ///
    /// # Errors
    /// The transport broke.
    pub async fn serve(self, service: Service) -> Result<(), tonic::transport::Error> {
        let router = Server::builder().add_service(agent_server::AgentServer::new(service));
        match self {
            Listener::Unix(listener) => router.serve_with_incoming(UnixListenerStream::new(listener)).await,
            Listener::Tcp(listener) => router.serve_with_incoming(TcpListenerStream::new(listener)).await,
        }
    }
}

/// Nobody else may connect even for a moment: it gets its name after its mode.
fn private_socket(path: &Path) -> std::io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    match std::fs::remove_file(&temporary) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&temporary)?;
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&temporary, path)?;
    Ok(listener)
}
