//! Keeps this host's agent informed of the committed state: members, timings,
//! epoch. Orders carry the same, but there may be none for months.

use std::time::Duration;

use tokio::time::Instant;

use super::Manager;
use crate::{
    domain::Briefing,
    rpc::{briefing, v1},
};

/// Between two tries to reach an agent that did not take a briefing.
const AGAIN: Duration = Duration::from_millis(200);
/// How often a pause is confirmed: an agent that hears nothing of it any more has to act by itself.
const CONFIRM: Duration = Duration::from_secs(2);

pub(super) async fn run(manager: Manager) {
    let mut said = manager.inner.link.watch();
    let mut states = manager.inner.node.state();
    // Which start of the agent was told what.
    let mut told: Option<(u64, Briefing)> = None;
    // Outside the loop, which turns with every word of the agent.
    let mut confirmed = Instant::now();
    let leadership = manager.inner.node.leadership();
    loop {
        let state = states.borrow_and_update().clone();
        let session = said.borrow_and_update().as_ref().map(|s| s.view.session);
        let mut failed = false;
        if let Some(session) = session.filter(|_| state.identity.is_some()) {
            let news = (session, state.briefing());
            if told.as_ref() != Some(&news) {
                match tell(&manager, &news.1).await {
                    Ok(()) => {
                        told = Some(news);
                        confirmed = Instant::now();
                    }
                    Err(status) => {
                        tracing::debug!(error = %status.message(), "the agent was not told of the committed state");
                        failed = true;
                    }
                }
            }
        }
        tokio::select! {
            changed = said.changed() => if changed.is_err() { return },
            changed = states.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(AGAIN), if failed => {}
            () = tokio::time::sleep_until(confirmed + CONFIRM), if state.paused.is_some() => {
                confirmed = Instant::now();
                // Who hears no leader may not have heard that the pause is over.
                if leadership.borrow().leader.is_some() {
                    told = None;
                }
            }
        }
    }
}

async fn tell(manager: &Manager, news: &Briefing) -> Result<(), tonic::Status> {
    let to = Some(manager.target(&manager.inner.me));
    manager.inner.link.brief(v1::BriefRequest { to, briefing: Some(briefing::briefing(news)) }).await
}
