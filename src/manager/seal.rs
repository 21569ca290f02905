//! While an epoch is fenced and nothing granted, the leader asks every voter
//! for its durable promise, and its host for where its WAL ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Manager, peers::timed};
use crate::{
    domain::{Epoch, MemberId, PostgresState, Promise, membership::is_reserved, observation::AgentView},
    rpc::{convert, v1},
    state::Lock,
};

/// Between two questions to the same voter.
const AGAIN: Duration = Duration::from_millis(40);
/// How long a host may take to say where its WAL ends.
const PROBE: Duration = Duration::from_millis(1_000);

/// Seals for ever: each time an epoch is fenced while this manager leads.
pub(super) async fn run(manager: Manager) {
    let mut states = manager.inner.node.state();
    let mut leadership = manager.inner.node.leadership();
    let mut groups = manager.inner.node.group();
    let mut asking: BTreeMap<(Epoch, MemberId), tokio::task::JoinHandle<()>> = BTreeMap::new();
    loop {
        let state = states.borrow_and_update().clone();
        let leads = leadership.borrow_and_update().am_leader;
        asking.retain(|_, task| !task.is_finished());
        match &state.lock {
            Lock::Fenced { epoch, .. } if leads => {
                asking.retain(|(asked, _), task| {
                    let current = asked == epoch;
                    if !current {
                        task.abort();
                    }
                    current
                });
                // One that was removed and still votes has to seal, too: without it there may be no majority.
                let group = groups.borrow_and_update().membership();
                let voters = group.halves.iter().flatten().filter(|m| !is_reserved(m));
                let asked: BTreeSet<MemberId> = state.members.keys().chain(voters).cloned().collect();
                for member in &asked {
                    asking
                        .entry((*epoch, member.clone()))
                        .or_insert_with(|| tokio::spawn(ask(manager.clone(), member.clone(), *epoch)));
                }
            }
            Lock::Fenced { .. } | Lock::Free | Lock::Granted { .. } | Lock::Released(_) => {
                for (_, task) in std::mem::take(&mut asking) {
                    task.abort();
                }
            }
        }
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            changed = leadership.changed() => if changed.is_err() { return },
            changed = groups.changed() => if changed.is_err() { return },
            // A question that failed for good is asked again.
            () = tokio::time::sleep(Duration::from_secs(1)), if !asking.is_empty() => {}
        }
    }
}

/// Asks one voter until the epoch is granted: its answer gets better as its
/// promise runs out and its PostgreSQL comes up.
async fn ask(manager: Manager, member: MemberId, epoch: Epoch) {
    let mut heard = manager.inner.board.now();
    loop {
        match seal_of(&manager, &member, epoch).await {
            Ok((promise, agent)) => {
                heard = manager.inner.board.now();
                // Where commits were confirmed a word counts when it was given after the old primary was left.
                let promises = !manager.inner.node.state().borrow().sync.rules.is_empty();
                let left = |a: &AgentView| !promises || (a.severed && a.accepted_epoch >= epoch);
                let settled = |a: &AgentView| a.state == PostgresState::Standby && a.wal_end_known && left(a);
                let no_agent = manager.inner.node.state().borrow().is_witness(&member);
                let done = promise.lapsed && (no_agent || agent.as_ref().is_some_and(settled));
                // One that sleeps is asked for days.
                let asleep = manager.inner.node.state().borrow().asleep().is_some();
                let wait = match (asleep, done) {
                    (true, _) => Duration::from_secs(2),
                    (false, true) => Duration::from_millis(500),
                    (false, false) => AGAIN,
                };
                let at = manager.inner.board.now();
                manager.inner.board.update(|facts| facts.seal(&member, epoch, (promise, agent), at));
                tokio::time::sleep(wait).await;
            }
            Err(status) => {
                tracing::debug!(member = %member, epoch = %epoch, error = %status.message(), "no seal");
                if manager.inner.board.now().since(heard) > manager.timings().silent {
                    manager.inner.board.update(|facts| facts.seal_silent(&member, epoch));
                }
                tokio::time::sleep(AGAIN * 2).await;
            }
        }
    }
}

async fn seal_of(
    manager: &Manager,
    member: &MemberId,
    epoch: Epoch,
) -> Result<(Promise, Option<AgentView>), tonic::Status> {
    if *member == manager.inner.me {
        return own_seal(manager, epoch).await;
    }
    let limit = PROBE + manager.timings().rpc;
    let request = v1::SealRequest { to: Some(manager.target(member)), epoch: epoch.0 };
    let call = async {
        let mut peer = manager.inner.peers.peer(member)?;
        peer.seal(timed(request, limit)).await
    };
    let reply = tokio::time::timeout(limit, call)
        .await
        .map_err(|_| tonic::Status::deadline_exceeded("no answer in time"))??
        .into_inner();
    let agent = reply.status.and_then(|s| convert::agent_view(s).ok());
    Ok((convert::promise_of(reply.promise), agent))
}

/// Waits until this node has applied the entry that names `epoch`, and refuses
/// one that no committed entry names: a seal can't be taken back.
pub(super) async fn committed_here(manager: &Manager, epoch: Epoch) -> Result<(), tonic::Status> {
    let mut states = manager.inner.node.state();
    let named = states.wait_for(|state| state.epoch >= epoch);
    match tokio::time::timeout(PROBE, named).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) | Err(_) => {
            Err(tonic::Status::failed_precondition(format!("no entry that names epoch {epoch} is committed here")))
        }
    }
}

/// Seals durably, then asks the own agent where WAL ends: in this order, so that
/// no old epoch is helped after the answer.
pub(super) async fn own_seal(manager: &Manager, epoch: Epoch) -> Result<(Promise, Option<AgentView>), tonic::Status> {
    let sealed = manager.inner.acceptor.seal_async(epoch).await;
    let promise = sealed.map_err(|e| tonic::Status::internal(format!("seal epoch {epoch}: {e}")))?;
    let to = manager.target(&manager.inner.me);
    let agent = manager.inner.link.probe(to, PROBE).await.ok();
    Ok((promise, agent))
}
