//! Channels to the other managers. Each is lazy, and dropped by HTTP/2
//! keep-alive when its peer is cut off without a word. One that was moved by
//! command is reached where the log says, every other where the file does.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};

use crate::{config::Config, domain::MemberId, rpc::v1, state::ClusterState};

/// Channels by member.
pub(super) struct Peers {
    configured: BTreeMap<MemberId, String>,
    state: watch::Receiver<Arc<ClusterState>>,
    channels: Mutex<BTreeMap<MemberId, (String, Channel)>>,
}

fn dial(address: &str) -> Result<Channel, tonic::Status> {
    // An address was checked when the configuration was read; one that is no URI all the same has no channel, and its
    // calls are unavailable.
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| tonic::Status::unavailable(format!("{address} is no address: {error}")))?;
    Ok(endpoint
        .connect_timeout(Duration::from_millis(1_000))
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(2))
        .tcp_nodelay(true)
        .connect_lazy())
}

impl Peers {
    pub(super) fn new(config: &Config, state: watch::Receiver<Arc<ClusterState>>) -> Self {
        let configured = config.cluster.members.iter().map(|m| (m.id.clone(), m.manager())).collect();
        Self { configured, state, channels: Mutex::default() }
    }

    /// `host:port` of a member's manager.
    fn address(&self, member: &MemberId) -> Option<String> {
        let moved = self.state.borrow().moved.get(member).cloned();
        moved.or_else(|| self.configured.get(member).cloned())
    }

    pub(super) fn channel(&self, member: &MemberId) -> Result<Channel, tonic::Status> {
        let unknown = || tonic::Status::unavailable(format!("no address of {member} is configured"));
        let address = self.address(member).ok_or_else(unknown)?;
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, channel)) = channels.get(member)
            && *at == address
        {
            return Ok(channel.clone());
        }
        let channel = dial(&address)?;
        channels.insert(member.clone(), (address, channel.clone()));
        Ok(channel)
    }

    pub(super) fn peer(&self, member: &MemberId) -> Result<v1::peer_client::PeerClient<Channel>, tonic::Status> {
        Ok(v1::peer_client::PeerClient::new(self.channel(member)?))
    }

    pub(super) fn admin(&self, member: &MemberId) -> Result<v1::admin_client::AdminClient<Channel>, tonic::Status> {
        Ok(v1::admin_client::AdminClient::new(self.channel(member)?))
    }
}

/// A request that is given up after `limit`.
pub(super) fn timed<T>(message: T, limit: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(limit);
    request
}
