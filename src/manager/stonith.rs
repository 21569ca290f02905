//! Runs the operator's program against the host of a holder whose epoch was ended
//! over its head, once for each epoch this leader sees ended, beside the failover.
//! How it ended is committed, so that every manager can tell.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{Manager, leader};
use crate::{
    config::StonithConfig,
    domain::{Epoch, Moment},
    layers::stonith::{self, Outcome, Target},
    policy::stonith::{Suspect, has_cleared_itself, is_wanted, record, suspect},
    state::{Applied, ClusterState, Command},
    telemetry::events,
};

/// Between two tries to commit how it ended.
const AGAIN: Duration = Duration::from_millis(300);
/// Tries, while this manager leads.
const TRIES: usize = 20;

/// Which epochs were looked at already, and by a leader since when.
#[derive(Debug, Default)]
pub(super) struct Stonith {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    considered: Epoch,
    leads_since: Moment,
}

impl Stonith {
    /// This manager begins to lead, and has heard of nobody yet.
    pub(super) fn lead(&self, now: Moment) {
        self.lock().leads_since = now;
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called by the leader with every state that it decides on: it can't miss a fenced
    /// one, for only it proposes the grant that follows.
    pub(super) fn consider(&self, manager: &Manager, state: &ClusterState) {
        let Some(config) = manager.inner.config.layers.stonith.clone() else { return };
        let Some(suspect) = suspect(state).filter(|_| is_wanted(state)) else { return };
        let wait = {
            let mut known = self.lock();
            if suspect.fenced <= known.considered {
                return;
            }
            known.considered = suspect.fenced;
            // A new leader must not take its own ignorance for a host's silence.
            let heard = manager.timings().silent.saturating_sub(manager.inner.board.now().since(known.leads_since));
            heard.max(manager.timings().kill)
        };
        tokio::spawn(see_to(manager.clone(), config, suspect, wait));
    }
}

async fn see_to(manager: Manager, config: StonithConfig, suspect: Suspect, wait: Duration) {
    // A holder that lives hears of the fence at once and says when its tree is empty.
    tokio::time::sleep(wait).await;
    let state = manager.inner.node.state().borrow().clone();
    let cleared = manager.inner.board.situation(&state, &manager.timings(), |s| has_cleared_itself(s, &suspect));
    if cleared {
        tracing::info!(member = %suspect.member, epoch = %suspect.held, "no STONITH: its process tree is empty by its own word");
        return;
    }
    let outcome = match target(&manager, &suspect, &state) {
        Ok(target) => {
            tracing::warn!(member = %target.member, host = target.host, epoch = %target.epoch, "STONITH begins");
            stonith::run(&config, &target).await
        }
        Err(how) => Outcome { succeeded: false, how, printed: String::new() },
    };
    let Outcome { succeeded, how, printed } = &outcome;
    tracing::warn!(event = events::STONITH, member = %suspect.member, epoch = %suspect.held, succeeded, how, printed,
        "STONITH ended");
    commit(&manager, &suspect, outcome).await;
}

fn target(manager: &Manager, suspect: &Suspect, state: &ClusterState) -> Result<Target, String> {
    if suspect.member == manager.inner.me {
        return Err("not run: the Raft leader is on this very host".to_owned());
    }
    let member = state.members.get(&suspect.member).ok_or("not run: it is no member any more")?;
    let host = member.manager.rsplit_once(':').map_or(member.manager.as_str(), |(host, _)| host);
    Ok(Target {
        cluster: manager.inner.config.cluster.name.clone(),
        member: suspect.member.clone(),
        host: host.trim_matches(['[', ']']).to_owned(),
        epoch: suspect.held,
    })
}

/// The epoch goes on meanwhile, so an entry that came too late for one is made for the next.
async fn commit(manager: &Manager, suspect: &Suspect, outcome: Outcome) {
    let request = uuid::Uuid::now_v7().to_string();
    let node = &manager.inner.node;
    for _ in 0..TRIES {
        let state = node.state().borrow().clone();
        let command = record(suspect, state.epoch, request.clone(), outcome.succeeded, outcome.how.clone());
        let evidence = leader::evidence(manager, &state, &[]);
        match node.propose(Command { evidence, ..command }).await {
            Ok(Applied::Changed | Applied::Nothing) => return,
            Ok(Applied::Stale { .. }) | Err(_) => tokio::time::sleep(AGAIN).await,
        }
        if !node.leadership().borrow().am_leader {
            break;
        }
    }
    tracing::error!(member = %suspect.member, epoch = %suspect.held, "how STONITH ended could not be committed");
}
