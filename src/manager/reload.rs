//! Has agents write PostgreSQL's configuration anew and have it read. Nothing is committed by it, and each manager can ask
//! each agent, by the manager beside that.

use std::time::Duration;

use futures_util::future::join_all;
use tonic::{Code, Status};

use super::{Manager, peers::timed, view::ManagerHandle};
use crate::{domain::MemberId, rpc::v1};

/// A reload and what is looked at after it end in this time.
const LIMIT: Duration = Duration::from_secs(10);

impl ManagerHandle {
    /// What came of it, member by member; of all when none is named.
    pub async fn reload(&self, wanted: &[MemberId]) -> Vec<v1::Reloaded> {
        let state = self.state();
        let all: Vec<MemberId> = state.with_postgres().cloned().collect();
        let members = if wanted.is_empty() { &all[..] } else { wanted };
        join_all(members.iter().map(|member| async {
            if state.is_witness(member) {
                return refused(member, "it is a witness, without PostgreSQL".to_owned());
            }
            if !all.contains(member) {
                return refused(member, "it is no member of this cluster".to_owned());
            }
            let reply = tokio::time::timeout(LIMIT, one(&self.manager, member)).await;
            let reply = reply.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")));
            reply.unwrap_or_else(|status| refused(member, said(&status)))
        }))
        .await
    }
}

async fn one(manager: &Manager, member: &MemberId) -> Result<v1::Reloaded, Status> {
    if *member == manager.inner.me {
        return here(manager).await;
    }
    let request = v1::ReloadHereRequest { to: Some(manager.target(member)) };
    Ok(manager.inner.peers.peer(member)?.reload(timed(request, LIMIT)).await?.into_inner())
}

/// By the agent beside this manager.
pub(super) async fn here(manager: &Manager) -> Result<v1::Reloaded, Status> {
    let to = Some(manager.target(&manager.inner.me));
    manager.inner.link.reload(v1::ReloadHereRequest { to }, LIMIT).await
}

fn refused(member: &MemberId, reason: String) -> v1::Reloaded {
    v1::Reloaded { member: member.to_string(), done: false, reason, pending: Vec::new() }
}

fn said(status: &Status) -> String {
    match status.code() {
        Code::Unimplemented => "its manager or its agent is of a version that can't be asked: upgrade it".to_owned(),
        _ => format!("its manager or its agent does not answer ({})", status.message()),
    }
}
