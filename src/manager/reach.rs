//! Whom this manager reaches. The question goes over the channels that reports and Raft's neighbours take, so what is
//! seen here is what they meet.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::{Manager, peers::timed, view};
use crate::{
    domain::{MemberId, observation::AgentView},
    guard::sys::two_clocks,
};

/// What one manager reaches, and of whom it heard.
#[derive(Debug, Clone)]
pub struct Reached {
    /// The other managers, by name.
    pub managers: Vec<ReachedManager>,
    /// What this host's agent said last, and how long ago; `None`: it doesn't answer.
    pub agent: Option<(AgentView, Duration)>,
    /// Since Raft confirmed that this manager's state is current; `None`: not since it started.
    pub raft: Option<Duration>,
    /// Since a holder with an open PostgreSQL renewed its lease here; `None`: none has.
    pub lease: Option<Duration>,
}

/// Another manager.
#[derive(Debug, Clone)]
pub struct ReachedManager {
    /// Whose.
    pub member: MemberId,
    /// How long a request and its answer took, or why there is no answer.
    pub answer: Result<Duration, String>,
    /// Since it reported here; only the Raft leader is reported to.
    pub heard: Option<Duration>,
}

pub(super) async fn look(manager: &Manager, limit: Duration) -> Reached {
    let inner = &manager.inner;
    let state = inner.node.state().borrow().clone();
    let leads = inner.node.leadership().borrow().am_leader;
    let others = state.members.keys().filter(|m| **m != inner.me);
    let managers = join_all(others.map(|member| async move {
        let answer = ask(manager, member, limit).await;
        let now = inner.board.now();
        let heard = inner.board.read(|facts| facts.seen.get(member).map(|seen| now.since(seen.at)));
        ReachedManager { member: member.clone(), answer, heard: heard.filter(|_| leads) }
    }))
    .await;
    let said = inner.link.said().map(|said| (said.view, two_clocks().boot.saturating_sub(said.at)));
    let raft = view::confirmed_age(manager, &state);
    Reached {
        managers,
        agent: said,
        raft: (raft < Duration::MAX).then_some(raft),
        lease: inner.acceptor.promise_now().renewed_ago_ms.map(Duration::from_millis),
    }
}

/// Asks for nothing but a sign of life.
async fn ask(manager: &Manager, member: &MemberId, limit: Duration) -> Result<Duration, String> {
    let channel = manager.inner.peers.channel(member).map_err(|status| status.message().to_owned())?;
    let began = Instant::now();
    let request = timed(HealthCheckRequest { service: String::new() }, limit);
    match tokio::time::timeout(limit, HealthClient::new(channel).check(request)).await {
        Ok(Ok(_)) => Ok(began.elapsed()),
        Ok(Err(status)) => Err(cause(&status)),
        Err(_) => Err(format!("no answer within {} ms", limit.as_millis())),
    }
}

/// The last error of the chain: tonic's own says no more than "transport error".
fn cause(status: &tonic::Status) -> String {
    let mut last: &dyn std::error::Error = status;
    while let Some(next) = last.source() {
        last = next;
    }
    match std::ptr::addr_eq(last, status) {
        true => status.message().to_owned(),
        false => last.to_string(),
    }
}
