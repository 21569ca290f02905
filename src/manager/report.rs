//! Tells the Raft leader what this host sees: at once when something changed,
//! and at least every `report`.

use std::time::Duration;

use super::{
    Manager,
    copies::{self, Copying},
    peers::timed,
    view,
};
use crate::{
    domain::{Epoch, Format, MemberId, PostgresState, observation::Notice},
    guard::sys::two_clocks,
    policy::Situation,
    rpc::{convert, v1},
};

pub(super) async fn run(manager: Manager) {
    let mut said = manager.inner.link.watch();
    let mut promise = manager.inner.acceptor.promise();
    let mut leadership = manager.inner.node.leadership();
    let mut notices = manager.inner.acceptor.notices();
    let mut heard: Vec<Notice> = Vec::new();
    loop {
        said.borrow_and_update();
        promise.borrow_and_update();
        let leader = leadership.borrow_and_update().leader.clone().or_else(|| leader_by_name(&manager));
        let delivered = tell(&manager, leader.as_ref(), &heard).await;
        if delivered {
            heard.clear();
        }
        let timings = manager.timings();
        let soon = !delivered || waits_for_the_primary(&manager);
        let pause = if soon { timings.heartbeat } else { timings.report };
        tokio::select! {
            changed = said.changed() => if changed.is_err() { return },
            changed = promise.changed() => if changed.is_err() { return },
            changed = leadership.changed() => if changed.is_err() { return },
            notice = next_notice(&mut notices) => {
                manager.inner.board.notice(notice.clone());
                heard.retain(|old| old.member != notice.member || old.epoch > notice.epoch);
                heard.push(notice);
            }
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// This member can't follow before the primary has a checkpoint on its timeline, which the leader's answer says.
fn waits_for_the_primary(manager: &Manager) -> bool {
    let inner = &manager.inner;
    let state = inner.node.state().borrow().clone();
    let follows = state.holder().is_some_and(|(_, holder)| *holder != inner.me);
    let down = inner.link.said().is_some_and(|s| s.view.state == PostgresState::Stopped);
    follows && down && inner.board.read(|f| f.primary_ready != Some(state.epoch))
}

async fn next_notice(notices: &mut Option<tokio::sync::mpsc::Receiver<Notice>>) -> Notice {
    if let Some(channel) = notices
        && let Some(notice) = channel.recv().await
    {
        return notice;
    }
    std::future::pending().await
}

/// A node that was just given has no log and hears no leader, and gets none before the leader knows how the lease of
/// this host's PostgreSQL stands. So it reports to whom the others name.
fn leader_by_name(manager: &Manager) -> Option<MemberId> {
    let inner = &manager.inner;
    inner.node.state().borrow().identity.is_none().then(|| inner.gate.leader()).flatten()
}

/// Puts this host on the own board, and on the leader's; true when the leader has it.
async fn tell(manager: &Manager, leader: Option<&MemberId>, heard: &[Notice]) -> bool {
    let inner = &manager.inner;
    let promise = inner.acceptor.promise_now();
    let said = inner.link.said();
    let age = |at: Duration| two_clocks().boot.saturating_sub(at);
    let agent = said.as_ref().map(|s| (s.view.clone(), age(s.at)));
    let disk = inner.node.sync_gauge().typical();
    inner.board.observe(&inner.me, agent, promise, (Format::NEWEST, disk));
    let Some(leader) = leader else { return false };
    if *leader == inner.me {
        let state = inner.node.state().borrow().clone();
        let look = |s: &Situation<'_>| (view::seen_by_leader(s), copies::word(s, &inner.me));
        let ((ready, standbys), copying) = inner.board.situation(&state, &manager.timings(), look);
        let ready = ready.then_some(state.epoch);
        inner.board.update(|f| {
            f.take_word(ready, standbys);
            f.copying = copying;
        });
        return true;
    }
    let state = inner.node.state().borrow().clone();
    let without_log = inner.known.as_ref().filter(|_| state.identity.is_none());
    let to = match without_log {
        Some((cluster, generation)) => {
            convert::target(cluster, *generation, leader.as_str(), state.epoch, inner.me.as_str())
        }
        None => manager.target(leader),
    };
    let request = v1::ReportRequest {
        to: Some(to),
        status: said.as_ref().map(|s| convert::agent_status(&s.view, 0, 0)),
        // A voter that has no log promises nothing that could be counted.
        promise: without_log.is_none().then(|| convert::promise(&promise)),
        age_ms: said.as_ref().map_or(0, |s| u64::try_from(age(s.at).as_millis()).unwrap_or(u64::MAX)),
        notices: heard.iter().map(convert::notice).collect(),
        format: Format::NEWEST.0,
        disk_us: disk.map_or(0, |disk| u64::try_from(disk.as_micros()).unwrap_or(u64::MAX)),
    };
    let limit = manager.timings().rpc.max(Duration::from_millis(250));
    let Ok(mut peer) = inner.peers.peer(leader) else { return false };
    match tokio::time::timeout(limit, peer.report(timed(request, limit))).await {
        Ok(Ok(reply)) => {
            let reply = reply.into_inner();
            for (node, floor) in reply.floors.iter().copied().map(convert::floor_of) {
                inner.node.learn_floor(node, floor);
            }
            if !reply.forgot.is_empty() {
                inner.forgot.send_replace(format!("the Raft leader {leader} says: {}", reply.forgot));
            }
            let standbys = reply.standbys.into_iter();
            let standbys = standbys.filter_map(|s| Some((s.member.parse().ok()?, (s.streaming, s.lag_bytes))));
            let ready = reply.primary_ready.then_some(Epoch(reply.epoch));
            inner.board.update(|f| {
                f.take_word(ready, standbys.collect());
                f.copying = Copying { may: reply.may_copy, from: reply.copy_from.parse().ok() };
            });
            true
        }
        Ok(Err(status)) => {
            tracing::debug!(leader = %leader, error = %status.message(), "the report did not reach the leader");
            false
        }
        Err(_) => false,
    }
}
