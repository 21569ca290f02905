//! The link to this host's agent: its status, followed by push, and the way for orders.

use std::{path::PathBuf, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, sync::watch};
use tonic::transport::{Channel, Endpoint, Uri};

use super::{Manager, peers::timed};
use crate::{
    config::AgentEndpoint,
    domain::{MemberId, observation::AgentView},
    guard::sys::two_clocks,
    rpc::{convert, v1},
};

/// After this long without a word the agent counts as gone; it speaks at least once a second.
const SILENT: Duration = Duration::from_secs(3);

/// What the agent said last, and when (CLOCK_BOOTTIME of this process).
#[derive(Debug, Clone)]
pub(super) struct Said {
    pub(super) view: AgentView,
    pub(super) at: Duration,
}

/// The link of one manager.
pub(super) struct Link {
    /// `None` on a witness, which has no agent.
    channel: Option<Channel>,
    name: String,
    said: watch::Sender<Option<Said>>,
}

impl Link {
    pub(super) fn new(endpoint: Option<&AgentEndpoint>, me: &MemberId) -> Self {
        let channel = endpoint.map(|endpoint| match endpoint {
            AgentEndpoint::Unix(path) => unix_channel(path.clone()),
            AgentEndpoint::Tcp(address) => Endpoint::from_shared(format!("http://{address}"))
                .unwrap_or_else(|_| Endpoint::from_static("http://[::1]:1"))
                .connect_timeout(Duration::from_secs(1))
                .connect_lazy(),
        });
        Self { channel, name: me.to_string(), said: watch::channel(None).0 }
    }

    /// There is an agent to be reached.
    pub(super) fn is_there(&self) -> bool {
        self.channel.is_some()
    }

    /// The last word, `None` while the agent is not reached.
    pub(super) fn said(&self) -> Option<Said> {
        self.said.borrow().clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Option<Said>> {
        self.said.subscribe()
    }

    // tonic's own error type; boxing it here would only be undone by the caller.
    #[allow(clippy::result_large_err)]
    fn client(&self) -> Result<v1::agent_client::AgentClient<Channel>, tonic::Status> {
        let channel = self.channel.clone().ok_or_else(|| {
            let why = format!("{} is a witness: it has no agent and no PostgreSQL", self.name);
            tonic::Status::failed_precondition(why)
        });
        channel.map(v1::agent_client::AgentClient::new)
    }

    pub(super) fn put(&self, view: AgentView) {
        self.said.send_replace(Some(Said { view, at: two_clocks().boot }));
    }

    /// Sends an order; `Ok(Some(reason))` when the agent refused it.
    pub(super) async fn execute(&self, order: v1::Order) -> Result<Option<String>, tonic::Status> {
        let reply = self.client()?.execute(timed(order, Duration::from_secs(5))).await?.into_inner();
        Ok(match reply.outcome {
            Some(v1::order_reply::Outcome::Refused(refused)) => Some(refused.reason),
            Some(v1::order_reply::Outcome::Accepted(_)) | None => None,
        })
    }

    /// Tells the agent what was applied here.
    pub(super) async fn brief(&self, request: v1::BriefRequest) -> Result<(), tonic::Status> {
        self.client()?.brief(timed(request, Duration::from_secs(1))).await.map(drop)
    }

    /// Tells the agent until when it may have the address for standbys.
    pub(super) async fn lend_reader(&self, request: v1::LendReaderRequest) -> Result<(), tonic::Status> {
        self.client()?.lend_reader(timed(request, Duration::from_secs(1))).await.map(drop)
    }

    /// What PostgreSQL says of settings.
    pub(super) async fn parameters(
        &self,
        request: v1::ParametersRequest,
        limit: Duration,
    ) -> Result<v1::ParametersReply, tonic::Status> {
        let mut client = self.client()?;
        let asked = client.parameters(timed(request, limit));
        let late = |_| tonic::Status::deadline_exceeded("its agent did not answer in time");
        Ok(tokio::time::timeout(limit, asked).await.map_err(late)??.into_inner())
    }

    /// Has PostgreSQL's configuration written anew and read.
    pub(super) async fn reload(
        &self,
        request: v1::ReloadHereRequest,
        limit: Duration,
    ) -> Result<v1::Reloaded, tonic::Status> {
        Ok(self.client()?.reload(timed(request, limit)).await?.into_inner())
    }

    /// WAL that a crashed primary has left on this host.
    pub(super) async fn read_wal(
        &self,
        request: v1::ReadWalRequest,
    ) -> Result<tonic::Streaming<v1::WalPiece>, tonic::Status> {
        Ok(self.client()?.read_wal(request).await?.into_inner())
    }

    /// A segment of WAL that this host still has.
    pub(super) async fn read_segment(
        &self,
        request: v1::ReadSegmentRequest,
    ) -> Result<tonic::Streaming<v1::WalPiece>, tonic::Status> {
        Ok(self.client()?.read_segment(request).await?.into_inner())
    }

    /// A status probed now.
    pub(super) async fn probe(&self, to: v1::Target, limit: Duration) -> Result<AgentView, tonic::Status> {
        let request = timed(v1::AgentProbeRequest { to: Some(to) }, limit);
        let status = tokio::time::timeout(limit, self.client()?.probe(request))
            .await
            .map_err(|_| tonic::Status::deadline_exceeded("the agent did not answer in time"))??;
        let view = convert::agent_view(status.into_inner()).map_err(|e| tonic::Status::internal(e.to_string()))?;
        self.put(view.clone());
        Ok(view)
    }
}

fn unix_channel(path: PathBuf) -> Channel {
    // The URI is only a name: the connector goes to the socket whatever it says.
    Endpoint::from_static("http://agent.invalid").connect_timeout(Duration::from_secs(1)).connect_with_connector_lazy(
        tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        }),
    )
}

/// Follows the agent's status for ever.
pub(super) async fn follow(manager: Manager) {
    let link = &manager.inner.link;
    let mut wait = Duration::from_millis(50);
    let mut reached = None;
    loop {
        let outcome = follow_once(&manager).await;
        if link.said().is_some() {
            wait = Duration::from_millis(50);
            reached = None;
        }
        link.said.send_replace(None);
        let why = match &outcome {
            Ok(()) => "it closed the stream".to_owned(),
            Err(status) => status.message().to_owned(),
        };
        if reached.as_ref() != Some(&why) {
            tracing::warn!(member = %link.name, error = %why, "the agent is not reached");
            reached = Some(why);
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_millis(500));
    }
}

async fn follow_once(manager: &Manager) -> Result<(), tonic::Status> {
    let link = &manager.inner.link;
    let to = manager.target(&manager.inner.me);
    let mut stream = link.client()?.watch(v1::AgentWatchRequest { to: Some(to) }).await?.into_inner();
    loop {
        let next = tokio::time::timeout(SILENT, stream.message()).await;
        let message = next.map_err(|_| tonic::Status::deadline_exceeded("it fell silent"))??;
        let Some(status) = message else { return Ok(()) };
        match convert::agent_view(status) {
            Ok(view) => link.put(view),
            Err(error) => tracing::warn!(error = %error, "the agent's status can't be read"),
        }
    }
}
