//! `matriarch recover`: a majority of the managers is gone for good, and an
//! operator says so. A new generation begins with what this host has; whatever
//! is left of the old one is refused by its generation, everywhere.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;

use super::{
    Manager, entry,
    founding::{LIMIT, ask_all},
    identity::Identity,
};
use crate::{
    domain::{GroupNode, MemberId, observation::AgentView},
    raft,
    rpc::v1,
    state::{ClusterState, Lock},
    telemetry::events,
};

/// What would be done, for the operator to read first.
pub struct Proposal {
    state: ClusterState,
    /// Line by line.
    pub says: Vec<String>,
}

/// Looks whether a recovery is needed and possible here, and what it would cost.
///
/// # Errors
/// Why not, in words for the operator. `force` goes on although another host has a longer log, or
/// this host's agent is silent.
pub(super) async fn propose(manager: &Manager, force: bool) -> Result<Proposal, String> {
    let inner = &manager.inner;
    let state = inner.node.state().borrow().clone();
    if !inner.standing.lost().is_empty() || state.identity.is_none() {
        return Err("this host has no Raft log of a cluster to recover from".to_owned());
    }
    if let Some(leader) = &inner.node.leadership().borrow().leader {
        return Err(format!("{leader} is the Raft leader: there is a majority, nothing is to be recovered"));
    }
    let replies = ask_all(manager, LIMIT).await;
    refuse_a_majority(manager, &state, &replies)?;
    let agent = inner.link.said().map(|said| said.view);
    if !force {
        refuse_the_worse_host(manager, &replies)?;
        if state.is_witness(&inner.me) {
            return Err(format!(
                "{} is a witness, without data: recover on a host that has PostgreSQL, or, if no log of those is left, give --force",
                inner.me
            ));
        }
        if state.is_learner(&inner.me) {
            return Err(format!(
                "{} is a learner: what the voters have committed may not have come to it, and they did not wait for it; recover on a \
                 voter, or, if no log of those is left, give --force",
                inner.me
            ));
        }
        let Some(agent) = &agent else {
            return Err("the agent of this host doesn't answer, so nobody knows what its data is worth; start it, or \
                        give --force to go on without its data"
                .to_owned());
        };
        refuse_the_wrong_data(&state, agent)?;
    }
    if agent.as_ref().is_some_and(|a| a.lease.held) {
        return Err("PostgreSQL of this host holds its lease: a majority of managers still answers it".to_owned());
    }
    let data = agent.as_ref().filter(|a| a.system_identifier.is_some()).map(|a| &a.history);
    let recovered = state.recovered(&inner.me, data).ok_or("this host is no member of the cluster")?;
    let says = words(manager, &state, &recovered, agent.as_ref());
    Ok(Proposal { state: recovered, says })
}

fn refuse_a_majority(
    manager: &Manager,
    state: &ClusterState,
    replies: &BTreeMap<String, v1::HelloReply>,
) -> Result<(), String> {
    let mine = state.cluster_id();
    let with_log = |r: &&v1::HelloReply| r.cluster_id == mine.0 && r.lost.is_empty();
    for reply in replies.values().filter(with_log) {
        if reply.generation > state.generation().0 {
            let (who, theirs) = (&reply.member, reply.generation);
            return Err(format!("{who} is of generation {theirs} of this cluster: it was recovered there"));
        }
        if !reply.leader.is_empty() {
            return Err(format!("{} hears the Raft leader {}: there is a majority", reply.member, reply.leader));
        }
    }
    let able: BTreeSet<MemberId> = replies.values().filter(with_log).filter_map(|r| r.member.parse().ok()).collect();
    if manager.inner.node.membership().has_majority(&able) {
        let names: Vec<&str> = able.iter().map(MemberId::as_str).collect();
        return Err(format!(
            "{} answer and have their logs: they are a majority and elect a leader by themselves",
            names.join(", ")
        ));
    }
    Ok(())
}

/// The host with the longest log knows most of what was committed.
fn refuse_the_worse_host(manager: &Manager, replies: &BTreeMap<String, v1::HelloReply>) -> Result<(), String> {
    let here = manager.inner.node.here();
    let further = replies.values().filter(|r| r.lost.is_empty()).find(|r| {
        r.here.is_some_and(|theirs| (theirs.last_term, theirs.last_index) > (here.last_term, here.last_index))
    });
    match further {
        None => Ok(()),
        Some(reply) => Err(format!(
            "the Raft log of {} goes further than this host's: recover there, or give --force to go on from here",
            reply.member
        )),
    }
}

fn refuse_the_wrong_data(state: &ClusterState, agent: &AgentView) -> Result<(), String> {
    match agent.system_identifier {
        None => Err("this host has no data of the cluster: recover on a host that has, or give --force".to_owned()),
        found if found != state.system_identifier => {
            Err("the data directory of this host belongs to another cluster".to_owned())
        }
        Some(_) => Ok(()),
    }
}

/// What becomes of whom, and what may be lost.
fn words(manager: &Manager, old: &ClusterState, new: &ClusterState, agent: Option<&AgentView>) -> Vec<String> {
    let me = &manager.inner.me;
    let others: Vec<&str> = old.members.keys().filter(|m| *m != me).map(MemberId::as_str).collect();
    let mut says = vec![
        format!("generation {} of cluster {} begins on {me} alone", new.generation(), old.cluster_id()),
        format!(
            "{} are out of it until they come back with their hosts: their logs count for nothing any more; one that is \
             back before there is a primary may be it, if it has more WAL of the same history; otherwise what its \
             PostgreSQL has beyond this host's is put aside and replaced",
            others.join(", ")
        ),
    ];
    if old.is_learner(me) {
        says.push(format!(
            "{me} was a learner: it votes from now on, alone at first. What was committed after its log ended is forgotten, and \
             nobody can tell how much that is"
        ));
    }
    match agent {
        Some(a) => {
            says.push(format!("PostgreSQL of {me} has WAL up to {} on timeline {}", a.wal_end.lsn, a.wal_end.timeline))
        }
        None if old.is_witness(me) => says.push(format!(
            "{me} is a witness, without data: whoever comes back first with the most WAL may be primary"
        )),
        None => says.push(format!("the agent of {me} doesn't answer: what its PostgreSQL has is unknown")),
    }
    says.push(loss(manager, old, agent));
    if !new.settings.of_member(me).eligible() {
        says.push(format!(
            "{me} may not become primary by its settings (failover, priority): nobody is promoted before \
             `matriarch config set failover=true --member {me}`"
        ));
    }
    says
}

fn loss(manager: &Manager, old: &ClusterState, agent: Option<&AgentView>) -> String {
    let me = &manager.inner.me;
    let last = match &old.lock {
        Lock::Free => return "nobody was primary yet: nothing can be lost".to_owned(),
        Lock::Granted { epoch, member, .. } => (*epoch, member),
        Lock::Released(release) => (release.epoch, &release.member),
        Lock::Fenced { previous: Some((epoch, member)), .. } => (*epoch, member),
        Lock::Fenced { previous: None, .. } => return "nobody was primary yet: nothing can be lost".to_owned(),
    };
    let unseen =
        "if another member was made primary after this host lost touch, what that one acknowledged is lost too";
    if last.1 == me {
        return format!(
            "acknowledged data: {me} itself was the last primary this log knows of (epoch {}), so what it acknowledged \
             is here; {unseen}",
            last.0
        );
    }
    let highest = manager.inner.acceptor.promise_now().highest;
    let end = agent.map(|a| a.wal_end).unwrap_or_default();
    let known = if highest.lsn.0 == 0 {
        "this host never heard how far that was".to_owned()
    } else if highest > end {
        let lacking = highest.lsn.bytes_past(end.lsn);
        format!("its last word here was {}: at least {lacking} bytes of WAL are missing", highest.lsn)
    } else {
        format!("up to its last word here ({}) nothing is missing, what it wrote after that may be", highest.lsn)
    };
    format!(
        "acknowledged data MAY BE LOST: {} was the last primary this log knows of (epoch {}), and replication is \
         asynchronous; {known}; {unseen}",
        last.1, last.0
    )
}

/// Makes the log of the new generation. The manager starts over with it.
///
/// # Errors
/// What could not be written; the old log is still the one that counts then.
pub(super) fn carry_out(manager: &Manager, dir: &std::path::Path, proposal: &Proposal) -> anyhow::Result<()> {
    let inner = &manager.inner;
    let state = &proposal.state;
    let me = &state.members[&inner.me];
    let log = entry::dir_of(dir, me.node);
    // What an earlier try left unfinished.
    if log.exists() {
        std::fs::remove_dir_all(&log).with_context(|| format!("clear {}", log.display()))?;
    }
    let of = GroupNode { member: inner.me.clone(), address: me.manager.clone() };
    raft::found_alone(&log, me.node, &of, state)?;
    let generation = state.generation().0;
    let identity = Identity::new(&state.cluster_id().0, generation, inner.me.as_str(), me.node);
    // From here on the next start begins with the new log.
    entry::recovered(dir, &identity)?;
    tracing::warn!(event = events::RECOVERED, generation, member = %inner.me, "a new generation begins by command");
    Ok(())
}
