//! Genesis (DESIGN §2): all configured members answer, each with an empty Raft
//! directory, an empty data directory and no identity. Until a manager has seen
//! that, or has a log, it takes no part in Raft: one whose disk was wiped must
//! not vote for a candidate that lacks what it once acknowledged.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use super::{Manager, peers::timed};
use crate::{domain::PostgresState, rpc::v1};

/// Between two rounds of questions.
const ROUND: Duration = Duration::from_millis(150);
const LIMIT: Duration = Duration::from_millis(800);

/// Whether this manager may take part in Raft.
pub(super) struct FoundingGate {
    open: AtomicBool,
}

impl FoundingGate {
    pub(super) fn new(raft_empty: bool) -> Self {
        Self { open: AtomicBool::new(!raft_empty) }
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }
}

/// What this manager says of itself.
pub(super) fn hello(manager: &Manager) -> v1::HelloReply {
    let inner = &manager.inner;
    let state = inner.node.state().borrow().clone();
    let data_empty = inner.link.said().is_some_and(|s| {
        s.view.state == PostgresState::NoData && s.view.accepted_epoch.0 == 0 && s.view.work.is_none()
    });
    v1::HelloReply {
        member: inner.me.to_string(),
        cluster_id: state.cluster_id().0,
        generation: state.generation().0,
        raft_empty: inner.node.is_empty(),
        data_empty,
        identity_empty: state.identity.is_none(),
        members: names(manager),
        cluster_name: inner.config.cluster.name.clone(),
        saw_all_empty: inner.founding.is_open(),
    }
}

fn names(manager: &Manager) -> Vec<String> {
    manager.inner.config.cluster.members.iter().map(|m| format!("{}={}", m.id, m.manager())).collect()
}

/// Founds the Raft group, or waits to be taken in.
pub(super) async fn run(manager: Manager) {
    let inner = &manager.inner;
    if !inner.node.is_empty() {
        // A group initialised before its genesis was committed goes on from there.
        inner.board.allow_founding();
    }
    let mut said = String::new();
    while inner.node.is_empty() {
        let replies = ask_all(&manager).await;
        match verdict(&manager, &replies) {
            Ok(()) => {
                inner.founding.open.store(true, Ordering::SeqCst);
                let all_saw = replies.values().all(|r| r.saw_all_empty || r.member == inner.me.as_str());
                let first = inner.config.cluster.members.first().map(|m| &m.id) == Some(&inner.me);
                if all_saw && first {
                    initialize(&manager).await;
                }
            }
            Err(why) if why != said => {
                tracing::info!(why, "waiting to found or join the cluster");
                said = why;
            }
            Err(_) => {}
        }
        tokio::time::sleep(ROUND).await;
    }
    inner.founding.open.store(true, Ordering::SeqCst);
    std::future::pending::<()>().await;
}

async fn initialize(manager: &Manager) {
    let members = manager.inner.config.cluster.members.iter();
    let members = members.map(|m| (m.node, (m.id.clone(), m.manager()))).collect();
    manager.inner.board.allow_founding();
    match manager.inner.node.initialize(members).await {
        Ok(()) => tracing::info!("every member is empty and answers: the Raft group is initialised"),
        Err(error) => tracing::warn!(error = %error, "could not initialise the Raft group"),
    }
}

async fn ask_all(manager: &Manager) -> BTreeMap<String, v1::HelloReply> {
    let inner = &manager.inner;
    let mut calls = tokio::task::JoinSet::new();
    for member in inner.config.cluster.members.iter().filter(|m| m.id != inner.me) {
        let Ok(mut peer) = inner.peers.peer(&member.id) else { continue };
        let request = v1::HelloRequest {
            to: Some(manager.target(&member.id)),
            cluster_name: inner.config.cluster.name.clone(),
            members: names(manager),
        };
        calls.spawn(async move { tokio::time::timeout(LIMIT, peer.hello(timed(request, LIMIT))).await });
    }
    let mut replies = BTreeMap::from([(inner.me.to_string(), hello(manager))]);
    while let Some(done) = calls.join_next().await {
        if let Ok(Ok(Ok(reply))) = done {
            let reply = reply.into_inner();
            replies.insert(reply.member.clone(), reply);
        }
    }
    replies
}

/// `Ok` when every configured member answers and is empty.
fn verdict(manager: &Manager, replies: &BTreeMap<String, v1::HelloReply>) -> Result<(), String> {
    let config = &manager.inner.config.cluster;
    for member in &config.members {
        let id = member.id.as_str();
        let Some(reply) = replies.get(id) else {
            return Err(format!("{id} ({}) does not answer", member.manager()));
        };
        check(id, reply, &config.name, &names(manager))?;
    }
    Ok(())
}

fn check(id: &str, reply: &v1::HelloReply, name: &str, members: &[String]) -> Result<(), String> {
    if reply.cluster_name != name || reply.members != members {
        return Err(format!(
            "{id} is configured for cluster {} with {}, this manager for cluster {name} with {}",
            reply.cluster_name,
            reply.members.join(" "),
            members.join(" ")
        ));
    }
    if !reply.cluster_id.is_empty() || !reply.identity_empty {
        return Err(format!(
            "{id} belongs to cluster {} already; this manager has no Raft log: it waits to be taken in, and if it was a \
             member before, it has lost its log and must be replaced (`matriarch member replace`)",
            reply.cluster_id
        ));
    }
    if !reply.raft_empty {
        return Err(format!("{id} has a Raft log already and no cluster yet"));
    }
    if !reply.data_empty {
        return Err(format!("{id}: its agent does not answer, or its data directory is not empty"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> v1::HelloReply {
        v1::HelloReply {
            member: "b".into(),
            raft_empty: true,
            data_empty: true,
            identity_empty: true,
            cluster_name: "x".into(),
            members: vec!["a=h:1".into()],
            ..Default::default()
        }
    }

    fn check_reply(change: impl FnOnce(&mut v1::HelloReply)) -> Result<(), String> {
        let mut reply = empty();
        change(&mut reply);
        check("b", &reply, "x", &["a=h:1".to_owned()])
    }

    #[test]
    fn genesis_needs_every_directory_empty_and_the_same_members_everywhere() {
        assert_eq!(check_reply(|_| ()), Ok(()));
        assert!(check_reply(|r| r.data_empty = false).unwrap_err().contains("data directory"));
        assert!(check_reply(|r| r.raft_empty = false).unwrap_err().contains("Raft log"));
        assert!(check_reply(|r| r.cluster_id = "c".into()).unwrap_err().contains("member replace"));
        assert!(check_reply(|r| r.members.clear()).unwrap_err().contains("configured"));
        assert!(check_reply(|r| r.cluster_name = "y".into()).unwrap_err().contains("cluster y"));
    }
}
