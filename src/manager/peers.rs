//! Channels to the other managers. Each is lazy, and dropped by HTTP/2
//! keep-alive when its peer is cut off without a word.

use std::{collections::BTreeMap, time::Duration};

use tonic::transport::{Channel, Endpoint};

use crate::{config::Config, domain::MemberId, rpc::v1};

/// Channels by member.
pub(super) struct Peers {
    channels: BTreeMap<MemberId, Channel>,
}

impl Peers {
    pub(super) fn new(config: &Config) -> Self {
        let channel = |address: String| {
            Endpoint::from_shared(format!("http://{address}")).map(|endpoint| {
                endpoint
                    .connect_timeout(Duration::from_millis(1_000))
                    .http2_keep_alive_interval(Duration::from_secs(2))
                    .keep_alive_timeout(Duration::from_secs(2))
                    .tcp_nodelay(true)
                    .connect_lazy()
            })
        };
        let channels = config
            .cluster
            .members
            .iter()
            // An address was checked when the configuration was read; one that is
            // no URI all the same has no channel, and its calls are unavailable.
            .filter_map(|m| Some((m.id.clone(), channel(m.manager()).ok()?)))
            .collect();
        Self { channels }
    }

    pub(super) fn channel(&self, member: &MemberId) -> Result<Channel, tonic::Status> {
        self.channels
            .get(member)
            .cloned()
            .ok_or_else(|| tonic::Status::unavailable(format!("no address of {member} is configured")))
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
