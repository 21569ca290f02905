//! Follows the managers: one stream to each, all at once, the local one first.
//! So a state reaches the router as soon as any manager has it, and neither a
//! dead nor a frozen nor a cut-off manager keeps it from there.

use std::{sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};
use tonic::transport::Endpoint;
use tracing::{debug, info, warn};

use super::{
    desk::Desk,
    table::{Backend, Bounds, Heard, Standby, Version},
};
use crate::{
    config::{Config, MemberConfig},
    domain::{ClusterId, Epoch, Generation, MemberId, ids::BadMemberId},
    rpc::v1::{self, routing_client::RoutingClient},
};

const CONNECT: Duration = Duration::from_secs(1);
/// Pauses between attempts: short for as long as a manager may just be
/// restarting, then seldom enough to be no load.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_SOON: Duration = Duration::from_millis(200);
const RETRY_LATER: Duration = Duration::from_secs(1);
const SOON: u32 = 25;

/// Why a stream from a manager ended.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error("connect to the manager at {address}")]
    Connect { address: String, source: tonic::transport::Error },
    #[error("ask the manager at {address} for the routing state")]
    Ask { address: String, source: tonic::Status },
    #[error("the manager at {address} ended the stream")]
    Ended { address: String },
    #[error("the manager at {address} said nothing for {silence:?}")]
    Silent { address: String, silence: Duration },
    #[error("the manager at {address} named a member wrongly")]
    Member { address: String, source: BadMemberId },
}

/// The managers in the order they are asked: the local one first.
pub fn managers(config: &Config) -> Vec<MemberConfig> {
    let mut out = config.cluster.members.clone();
    let local = config.local().map(|(me, _)| me);
    out.sort_by_key(|m| Some(&m.id) != local);
    out
}

/// Follows one manager for ever.
pub async fn follow(desk: Arc<Desk>, source: usize, manager: MemberConfig) {
    let mut failures = 0;
    loop {
        let mut heard_any = false;
        let Err(error) = stream(&desk, source, &manager, &mut heard_any).await;
        desk.lose(source);
        let error = anyhow::Error::new(error);
        if heard_any {
            failures = 0;
            warn!(manager = %manager.id, error = format!("{error:#}"), "lost the stream of a manager");
        } else {
            debug!(manager = %manager.id, error = format!("{error:#}"), "a manager gives no state");
        }
        sleep(match failures {
            0 => RETRY_FIRST,
            1..SOON => RETRY_SOON,
            _ => RETRY_LATER,
        })
        .await;
        failures += 1;
    }
}

/// A stream that says nothing for this long is asked anew; the answer is a confirmation of its own.
fn silence_of(desk: &Desk) -> Duration {
    (desk.views().borrow().bounds.stale / 3).max(Duration::from_millis(100))
}

async fn stream(
    desk: &Desk,
    source: usize,
    manager: &MemberConfig,
    heard_any: &mut bool,
) -> Result<std::convert::Infallible, FollowError> {
    let at = desk.moved(&manager.id).unwrap_or_else(|| manager.manager());
    let address = || at.clone();
    let mut silence = silence_of(desk);
    let silent = |silence| move |_| FollowError::Silent { address: address(), silence };
    let connect = |source| FollowError::Connect { address: address(), source };
    let ask = |source| FollowError::Ask { address: address(), source };
    let endpoint = Endpoint::from_shared(format!("http://{}", address())).map_err(connect)?.connect_timeout(CONNECT);
    let channel = timeout(silence.max(CONNECT), endpoint.connect()).await.map_err(silent(silence))?.map_err(connect)?;
    let mut client = RoutingClient::new(channel);
    let request = request(desk, &manager.id);
    let mut states = timeout(silence, client.watch(request)).await.map_err(silent(silence))?.map_err(ask)?.into_inner();
    loop {
        let state = timeout(silence, states.message()).await.map_err(silent(silence))?.map_err(ask)?;
        let mut state = state.ok_or_else(|| FollowError::Ended { address: address() })?;
        let moved = std::mem::take(&mut state.moved).into_iter();
        let moved = moved.map(|(member, at)| Ok((member.parse()?, at))).collect::<Result<_, _>>();
        let wrong = |source| FollowError::Member { address: address(), source };
        let (heard, moved) = (heard(state).map_err(wrong)?, moved.map_err(wrong)?);
        if !*heard_any {
            *heard_any = true;
            info!(manager = %manager.id, "following a manager");
        }
        desk.hear(source, &manager.id, heard, moved);
        // It may have brought other timings.
        silence = silence_of(desk);
    }
}

fn request(desk: &Desk, manager: &MemberId) -> v1::RoutingRequest {
    let (cluster, view) = desk.identity();
    let (generation, epoch) = view.epoch();
    v1::RoutingRequest {
        to: Some(v1::Target {
            cluster_id: cluster.0,
            generation: generation.0,
            target: manager.to_string(),
            epoch: epoch.0,
            sender: "router".to_owned(),
        }),
    }
}

fn heard(state: v1::RoutingState) -> Result<Heard, BadMemberId> {
    let standby = |s: v1::routing_state::Standby| {
        let backend = Backend { member: s.member.parse()?, address: s.address };
        Ok(Standby { backend, streaming: s.streaming, lag_bytes: s.lag_bytes, confirms: s.confirms })
    };
    let primary = match state.primary.as_str() {
        "" => None,
        member => Some(Backend { member: member.parse()?, address: state.primary_address }),
    };
    Ok(Heard {
        cluster: ClusterId(state.cluster_id),
        version: Version {
            generation: Generation(state.generation),
            epoch: Epoch(state.epoch),
            revision: state.revision,
        },
        open: state.open,
        draining: state.draining,
        hibernated: Some(state.hibernated).filter(|why| !why.is_empty()),
        primary,
        standbys: state.standbys.into_iter().map(standby).collect::<Result<_, _>>()?,
        confirmed_age: Duration::from_millis(state.confirmed_age_ms),
        bounds: (state.stale_ms > 0).then(|| Bounds {
            stale: Duration::from_millis(state.stale_ms),
            hold: Duration::from_millis(state.hold_ms),
        }),
    })
}
