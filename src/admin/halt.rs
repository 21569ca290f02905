//! PostgreSQL of a member, or of the whole cluster, is stopped and started by command.

use tonic::Status;

use super::request_id;
use crate::{
    domain::{MemberId, when},
    manager::{ManagerHandle, halt::What},
    policy::halt::Words,
    rpc::{convert, v1},
    state::{Asked, ClusterState},
};

#[allow(clippy::result_large_err)]
fn what(member: &str) -> Result<What, Status> {
    match member {
        "" => Ok(What::All),
        member => convert::member_id(member).map(What::Member).map_err(|why| Status::invalid_argument(why.to_string())),
    }
}

/// Does what the request asks.
#[allow(clippy::result_large_err)]
pub(super) async fn stop(manager: &ManagerHandle, asked: v1::StopRequest) -> Result<v1::StopReply, Status> {
    let words = Words { reason: &asked.reason, by: &asked.by, force: asked.force };
    let what = what(&asked.member)?;
    Ok(reply(manager.stop(&what, words, (asked.dry_run, request_id(asked.request_id))).await))
}

/// Does what the request asks.
#[allow(clippy::result_large_err)]
pub(super) async fn start(manager: &ManagerHandle, asked: v1::StartRequest) -> Result<v1::StopReply, Status> {
    let what = what(&asked.member)?;
    Ok(reply(manager.start(&what, &asked.by, (asked.dry_run, request_id(asked.request_id))).await))
}

fn reply(done: Result<crate::manager::halt::Done, String>) -> v1::StopReply {
    match done {
        Ok(done) => v1::StopReply {
            done: true,
            reason: String::new(),
            warnings: done.warnings,
            already: done.already,
            id: done.operation.as_ref().map_or(0, |(id, _)| *id),
            to: done.operation.map(|(_, to)| to.to_string()).unwrap_or_default(),
        },
        Err(reason) => v1::StopReply { reason, ..Default::default() },
    }
}

/// ` since 2026-12-01T02:00:00Z`, or nothing when nobody looked at a clock.
fn since(at_ms: u64) -> String {
    if at_ms == 0 { String::new() } else { format!(" since {}", when::utc(at_ms)) }
}

/// What is said of a member in maintenance, or stopped by itself.
pub(super) fn banner(member: &MemberId, asked: &Asked) -> String {
    match asked.stopped {
        None => format!(
            "{member} is in maintenance{asked}: left alone and no candidate until `matriarch maintenance off {member}`"
        ),
        Some(stopped) => format!(
            "PostgreSQL of {member} is stopped{}{asked}: no candidate until `matriarch start {member}`",
            since(stopped.at_ms)
        ),
    }
}

/// ` since 2026-12-01T02:00:00Z by kim: move`; `None`: the cluster is not stopped by command.
pub(crate) fn hibernated(state: &ClusterState) -> Option<String> {
    state.asleep().map(|h| format!("hibernated{}{}", since(h.at_ms), h.asked))
}

/// How PostgreSQL of this member was stopped by command; `None`: it wasn't.
pub(super) fn stopped(state: &ClusterState, member: &MemberId) -> Option<String> {
    let own = state.maintenance.get(member).and_then(|asked| Some((asked, asked.stopped?)));
    match own {
        Some((asked, stopped)) => Some(format!("stopped{}{asked}", since(stopped.at_ms))),
        None => state.put_down(member).and_then(|_| hibernated(state)),
    }
}
