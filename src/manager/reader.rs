//! The address for standbys, on the host that has it: its manager asks the Raft leader whether it still has, and passes on to
//! the agent until when that holds.
//!
//! An answer was true at some moment after the question was asked, so it counts from then, on this host's clocks. Whoever ends the
//! lend does it after that moment, and whoever lends anew waits for longer than an answer counts:
//! docs/decisions/2026-11-28-the-address-for-standbys.md.

use std::time::Duration;

use super::{Manager, peers::timed};
use crate::{
    domain::{MemberId, moment::TwoClocks, reader::kept_until},
    guard::{clocks_name, sys::two_clocks},
    rpc::v1,
};

/// Between two tries to reach an agent that was not told that it may not have it.
const AGAIN: Duration = Duration::from_millis(200);

/// What the agent was told: by which start of it, and of which lend; 0: it may not have it.
type Told = (u64, u64);

pub(super) async fn run(manager: Manager) {
    let inner = &manager.inner;
    let mut states = inner.node.state();
    let mut said = inner.link.watch();
    let mut told: Option<Told> = None;
    loop {
        let lend = {
            let state = states.borrow_and_update();
            let mine = state.reader.holder.as_ref() == Some(&inner.me);
            state.identity.is_some().then_some(if mine { state.reader.id } else { 0 })
        };
        let session = said.borrow_and_update().as_ref().map(|said| said.view.session);
        let mut pause = None;
        if let (Some(lend), Some(session)) = (lend, session) {
            if lend > 0 {
                // Asked for anew each time, as a lease is renewed.
                pause = Some(manager.timings().renew);
                if let Some(until) = confirm(&manager, lend).await
                    && tell(&manager, lend, until).await
                {
                    told = Some((session, lend));
                }
            } else if told != Some((session, 0)) {
                match tell(&manager, 0, TwoClocks::default()).await {
                    true => told = Some((session, 0)),
                    false => pause = Some(AGAIN),
                }
            }
        }
        let idle = pause.is_none();
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            changed = said.changed(), if idle => if changed.is_err() { return },
            () = tokio::time::sleep(pause.unwrap_or_default()), if !idle => {}
        }
    }
}

/// Until when this host may keep it, if the leader says that it has it.
async fn confirm(manager: &Manager, lend: u64) -> Option<TwoClocks> {
    let inner = &manager.inner;
    let leader = inner.node.leadership().borrow().leader.clone()?;
    // Before the question: what is answered was true at some time after this.
    let asked = two_clocks();
    if leader == inner.me {
        return Some(kept_until(asked, life(manager, &inner.me, lend).await?));
    }
    let limit = manager.timings().rpc.max(Duration::from_millis(250));
    let request = v1::ConfirmReaderRequest { to: Some(manager.target(&leader)), id: lend };
    let mut peer = inner.peers.peer(&leader).ok()?;
    match tokio::time::timeout(limit, peer.confirm_reader(timed(request, limit))).await {
        Ok(Ok(reply)) => {
            let reply = reply.into_inner();
            reply.confirmed.then(|| kept_until(asked, Duration::from_millis(reply.life_ms)))
        }
        Ok(Err(status)) => {
            tracing::debug!(leader = %leader, error = %status.message(), "the address for standbys was not confirmed");
            None
        }
        Err(_) => None,
    }
}

/// As the leader: how long an answer counts that `member` has lend `id`. `None`: it hasn't, as far as can be told.
pub(super) async fn life(manager: &Manager, member: &MemberId, id: u64) -> Option<Duration> {
    manager.inner.node.confirmed_state().await?.reader_life(member, id)
}

/// The agent shares this host's clocks, so it gets the deadline itself, as its guard does: one that arrives late is no longer for it.
async fn tell(manager: &Manager, id: u64, until: TwoClocks) -> bool {
    let Ok(clocks) = clocks_name() else { return false };
    let ns = |at: Duration| u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
    let to = Some(manager.target(&manager.inner.me));
    let request = v1::LendReaderRequest { to, id, boot_ns: ns(until.boot), raw_ns: ns(until.raw), clocks };
    match manager.inner.link.lend_reader(request).await {
        Ok(()) => true,
        // An agent of an older version has no such address.
        Err(status) if id == 0 && status.code() == tonic::Code::Unimplemented => true,
        Err(status) => {
            tracing::debug!(error = %status.message(), "the agent was not told of the address for standbys");
            false
        }
    }
}
