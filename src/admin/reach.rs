//! Whom this manager reaches, for the matrix of who reaches whom.

use std::time::Duration;

use crate::{
    manager::{
        ManagerHandle,
        reach::{Reached, ReachedManager},
    },
    rpc::{convert::optional_text, v1},
};

/// A manager that takes longer to give a sign of life counts as not reached. Below what the asking command has patience for.
const LIMIT: Duration = Duration::from_millis(700);

pub(super) async fn of(manager: &ManagerHandle) -> v1::ReachReply {
    let reached = manager.reach(LIMIT).await;
    let leader = manager.leadership().leader.map(|l| l.to_string()).unwrap_or_default();
    let mut reply = reply(reached, manager.me().to_string(), leader);
    if manager.state().is_witness(manager.me()) {
        reply.postgres = "witness".to_owned();
    }
    reply
}

fn reply(reached: Reached, answered_by: String, leader: String) -> v1::ReachReply {
    let view = reached.agent.as_ref().map(|(view, _)| view);
    v1::ReachReply {
        answered_by,
        leader,
        managers: reached.managers.into_iter().map(other).collect(),
        agent_ms: reached.agent.as_ref().map(|(_, age)| millis(*age)),
        postgres: view.map(|v| super::status::state_word(v).to_owned()).unwrap_or_default(),
        raft_ms: reached.raft.map(millis),
        lease_ms: reached.lease.map(millis),
        upstream: view.filter(|v| v.streaming).map(|v| optional_text(v.upstream.as_ref())).unwrap_or_default(),
    }
}

fn other(one: ReachedManager) -> v1::ReachedManager {
    let (rtt_us, problem) = match one.answer {
        Ok(took) => (Some(u64::try_from(took.as_micros()).unwrap_or(u64::MAX)), String::new()),
        Err(why) => (None, why),
    };
    v1::ReachedManager { member: one.member.to_string(), rtt_us, problem, heard_ms: one.heard.map(millis) }
}

fn millis(age: Duration) -> u64 {
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}
