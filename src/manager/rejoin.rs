//! Asks the other managers what they know of this one, and, without a log it may
//! vote with, asks the Raft leader for a new node.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use super::{
    Ending, Manager,
    entry::{self, Standing},
    founding::{self, LIMIT, ask_all},
    identity::{self, Identity},
    kind, leader,
    peers::timed,
};
use crate::{
    domain::{ClusterId, Generation, MemberId, Membership, NodeId},
    raft::ProposeError,
    rpc::{convert, v1},
    state::{Applied, Command, Kind, RuleId},
    telemetry::events,
};

/// Between two rounds of questions while something is wrong, and while all is well.
const ROUND: Duration = Duration::from_millis(500);
const CALM: Duration = Duration::from_secs(5);
const ANSWERED: Duration = Duration::from_secs(3);
/// The rule number of what a manager asks for itself.
const ASKED: RuleId = RuleId(2);

/// Follows how this manager stands to the group, until it has to start over.
pub(super) async fn run(manager: Manager, dir: &Path) -> anyhow::Result<Ending> {
    match manager.inner.standing.clone() {
        Standing::Member => follow(&manager, dir).await,
        Standing::Joining => {
            open(&manager);
            follow(&manager, dir).await
        }
        Standing::Newcomer => {
            if !manager.inner.node.is_empty()
                && let Some(evidence) = look_back(&manager).await
            {
                return give_up(&manager, dir, &evidence);
            }
            if let Some(known) = founding::found_or_find(&manager).await {
                return ask_for_node(&manager, dir, known, "it is new").await;
            }
            follow(&manager, dir).await
        }
        Standing::Lost { evidence } => {
            let known = identity::load(dir)?.map(|i| (i.cluster_id(), i.generation()));
            ask_for_node(&manager, dir, known.unwrap_or_default(), &evidence).await
        }
    }
}

/// From now on this manager votes, and may be voted for.
pub(super) fn open(manager: &Manager) {
    manager.inner.gate.open();
    manager.inner.node.stand_for_election(true);
}

/// What the others know of a log that came without identity and mark. Either its manager ended before the genesis
/// was committed, or somebody put a copy of the directory into an empty place. It takes part when so many have
/// answered that they are a majority with this one; fewer could elect nobody anyway.
async fn look_back(manager: &Manager) -> Option<String> {
    let inner = &manager.inner;
    loop {
        let replies = ask_all(manager, LIMIT).await;
        let evidence = against(manager, &replies);
        // This manager's own answer is among them.
        let heard: BTreeSet<MemberId> =
            replies.values().filter(|r| r.lost.is_empty()).filter_map(|r| r.member.parse().ok()).collect();
        let group = inner.node.membership();
        let configured = Membership::simple(0, founding::voters(manager).map(|m| m.id.clone()));
        let enough = if group.halves.is_empty() { &configured } else { &group }.has_majority(&heard);
        if evidence.is_some() || enough {
            inner.gate.set_waits_for(&[]);
            return evidence;
        }
        let why = format!(
            "this manager has a Raft log and no identity beside it: it votes once a majority has said that the log did \
             not go back; {} answer",
            heard.iter().map(MemberId::as_str).collect::<Vec<_>>().join(", ")
        );
        if inner.gate.set_waits_for(std::slice::from_ref(&why)) {
            tracing::info!(why, "waiting to take part in Raft");
        }
        tokio::time::sleep(ROUND).await;
    }
}

/// Keeps an eye on what the others say of this node. They are asked before it takes part for the
/// first time: a log that went back with everything on this host is known to them only.
async fn follow(manager: &Manager, dir: &Path) -> anyhow::Result<Ending> {
    let inner = &manager.inner;
    if !inner.gate.is_open() {
        // Nobody waits longer than for an election: after a start of everything at once nobody knows anything.
        let replies = ask_all(manager, inner.config.cluster.timings.election_min).await;
        if let Some(evidence) = against(manager, &replies) {
            return give_up(manager, dir, &evidence);
        }
        open(manager);
    }
    let mut told = inner.forgot.subscribe();
    loop {
        let replies = ask_all(manager, LIMIT).await;
        if let Some(evidence) = against(manager, &replies) {
            return give_up(manager, dir, &evidence);
        }
        inner.gate.set_leader(named_leader(manager, &replies));
        let mut warnings = without_quorum(manager, &replies);
        let quorum = warnings.len();
        warnings.extend(kind::strays(&inner.node.state().borrow(), &inner.config.cluster.members));
        let wait = if inner.node.leadership().borrow().leader.is_some() { CALM } else { ROUND };
        if inner.gate.set_warnings(&warnings) {
            let (lost, strays) = warnings.split_at(quorum);
            if let Some(first) = lost.first() {
                tracing::warn!(warning = first, "no quorum can come about by itself");
            }
            for stray in strays {
                tracing::error!(
                    problem = stray,
                    "the file of this host says otherwise than the cluster; the cluster counts"
                );
            }
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // The sender lives as long as this manager.
            Ok(evidence) = told.wait_for(|evidence| !evidence.is_empty()) => {
                return give_up(manager, dir, &evidence);
            }
        }
    }
}

fn give_up(manager: &Manager, dir: &Path, evidence: &str) -> anyhow::Result<Ending> {
    let state = manager.inner.node.state().borrow().clone();
    let stored = identity::load(dir)?;
    let here = || {
        Identity::new(&state.cluster_id().0, state.generation().0, manager.inner.me.as_str(), manager.inner.node.id())
    };
    // What `recover` has just written is not about this log.
    let recovered = stored.as_ref().is_some_and(|s| s.generation > state.generation().0);
    if !recovered {
        entry::give_up(dir, &stored.unwrap_or_else(here), evidence)?;
    }
    tracing::warn!(
        event = events::LOG_LOST,
        evidence,
        "this node never votes again: the manager starts over without it"
    );
    Ok(Ending::StartOver(evidence.to_owned()))
}

/// Why this node is no voter any more, in the words of whoever knows.
fn against(manager: &Manager, replies: &BTreeMap<String, v1::HelloReply>) -> Option<String> {
    let inner = &manager.inner;
    let state = inner.node.state().borrow().clone();
    let me = state.members.get(&inner.me);
    if let Some(other) = me.map(|m| m.node).filter(|n| *n != NodeId(0) && *n > inner.node.id()) {
        return Some(format!("{} takes part as node {other}, this is node {}", inner.me, inner.node.id()));
    }
    for (who, reply) in replies.iter().filter(|(who, _)| who.as_str() != inner.me.as_str()) {
        let known = !reply.cluster_id.is_empty() && reply.knows_you;
        // Nothing of this log is known to be committed: it has no genesis to be compared, but it may have been a voter.
        let forgot = forgotten(manager, reply);
        if state.identity.is_none()
            && known
            && let Some(forgot) = &forgot
        {
            return Some(format!("{who} says: {forgot}"));
        }
        let ours = known && reply.cluster_id == state.cluster_id().0;
        if ours && reply.generation > state.generation().0 {
            let (theirs, mine) = (reply.generation, state.generation());
            return Some(format!("{who} is of generation {theirs} of this cluster, this log of generation {mine}"));
        }
        if ours
            && reply.generation == state.generation().0
            && let Some(forgot) = forgot
        {
            return Some(format!("{who} says: {forgot}"));
        }
    }
    None
}

/// What another manager knows to be gone from this node's log. The log is looked at when the answer is here: it only
/// grows, so whatever was acknowledged while the question was on its way is in it.
fn forgotten(manager: &Manager, reply: &v1::HelloReply) -> Option<String> {
    let node = &manager.inner.node;
    let floor = reply.floor.map(convert::floor_of).filter(|(of, _)| *of == node.id());
    let below = || floor.and_then(|(_, floor)| floor.forgotten_by(node.here()));
    Some(reply.forgot.clone()).filter(|text| !text.is_empty()).or_else(below)
}

/// Whom the others of this manager's cluster hear as the Raft leader.
fn named_leader(manager: &Manager, replies: &BTreeMap<String, v1::HelloReply>) -> Option<MemberId> {
    let (cluster, generation) = manager.inner.known.as_ref()?;
    let ours = |r: &&v1::HelloReply| r.cluster_id == cluster.0 && r.generation == generation.0;
    replies.values().filter(ours).find_map(|r| r.leader.parse().ok())
}

/// Says so when too many managers have lost their logs.
fn without_quorum(manager: &Manager, replies: &BTreeMap<String, v1::HelloReply>) -> Vec<String> {
    let inner = &manager.inner;
    if inner.node.leadership().borrow().leader.is_some() {
        return Vec::new();
    }
    let lost: Vec<&str> = replies.values().filter(|r| !r.lost.is_empty()).map(|r| r.member.as_str()).collect();
    let voters = inner.node.membership();
    let left = |half: &BTreeSet<MemberId>| half.iter().filter(|m| !lost.contains(&m.as_str())).count() * 2 > half.len();
    if lost.is_empty() || voters.halves.iter().all(left) {
        return Vec::new();
    }
    vec![format!(
        "{} have lost their Raft logs: the managers that are left are no majority and can elect nobody; restore one of \
         the logs, or, if they are gone for good, `matriarch recover` on one host that has its log",
        lost.join(", ")
    )]
}

/// Asks until a node is given.
async fn ask_for_node(
    manager: &Manager,
    dir: &Path,
    known: (ClusterId, Generation),
    evidence: &str,
) -> anyhow::Result<Ending> {
    let inner = &manager.inner;
    loop {
        let replies = ask_all(manager, LIMIT).await;
        let mut refused = BTreeMap::new();
        for (who, reply) in replies.iter().filter(|(_, r)| r.lost.is_empty() && !r.cluster_id.is_empty()) {
            match ask_one(manager, who, reply, &known.0, evidence).await {
                Ok(given) => {
                    let node = NodeId(given.node);
                    let identity = Identity::new(&given.cluster_id, given.generation, inner.me.as_str(), node);
                    entry::become_node(dir, &identity)?;
                    return Ok(Ending::StartOver(format!("it is node {node} now")));
                }
                Err(why) => drop(refused.insert(who.clone(), why)),
            }
        }
        let why = waits_for(manager, &replies, &refused, evidence);
        if inner.gate.set_waits_for(&why) {
            tracing::info!(why = why.join("; "), "waiting to be taken in");
        }
        tokio::time::sleep(ROUND).await;
    }
}

async fn ask_one(
    manager: &Manager,
    who: &str,
    reply: &v1::HelloReply,
    known: &ClusterId,
    evidence: &str,
) -> Result<v1::RejoinReply, String> {
    let inner = &manager.inner;
    let (cluster, generation) = (ClusterId(reply.cluster_id.clone()), Generation(reply.generation));
    if !known.0.is_empty() && *known != cluster {
        return Err(format!("it belongs to cluster {cluster}, this manager to {known}"));
    }
    let member: MemberId = who.parse().map_err(|_| "it has no name".to_owned())?;
    let epoch = inner.node.state().borrow().epoch;
    let request = v1::RejoinRequest {
        to: Some(convert::target(&cluster, generation, who, epoch, inner.me.as_str())),
        member: inner.me.to_string(),
        evidence: evidence.to_owned(),
        learner: inner.config.find(&inner.me).is_some_and(|me| me.learner),
    };
    let mut peer = inner.peers.peer(&member).map_err(|status| status.message().to_owned())?;
    let given = peer.rejoin(timed(request, ANSWERED)).await.map_err(|status| status.message().to_owned())?.into_inner();
    if given.node == 0 { Err(given.refused) } else { Ok(given) }
}

fn waits_for(
    manager: &Manager,
    replies: &BTreeMap<String, v1::HelloReply>,
    refused: &BTreeMap<String, String>,
    evidence: &str,
) -> Vec<String> {
    let voters: Vec<&str> = founding::voters(manager).map(|m| m.id.as_str()).collect();
    let mut why = vec![format!("this manager has no Raft log it may vote with ({evidence}): it needs a new node")];
    why.extend(refused.iter().map(|(who, reason)| format!("{who}: {reason}")));
    let answers = |r: &&v1::HelloReply| r.lost.is_empty() && !r.cluster_id.is_empty();
    let votes = |r: &&v1::HelloReply| voters.contains(&r.member.as_str());
    let with_log: Vec<&str> = replies.values().filter(answers).filter(votes).map(|r| r.member.as_str()).collect();
    let lost = replies.values().filter(votes).filter(|r| !r.lost.is_empty()).count();
    if lost * 2 >= voters.len() && with_log.len() * 2 <= voters.len() {
        let where_to = if with_log.is_empty() { "a host that has its log".to_owned() } else { with_log.join(" or ") };
        why.push(format!(
            "{lost} of {} managers have lost their logs: no majority can come about; restore one of the logs, or, if \
             they are gone for good, `matriarch recover` on {where_to}",
            voters.len()
        ));
    }
    why
}

/// Gives the asking manager a new node, when this one leads and the old node doesn't live.
pub(super) async fn give(manager: &Manager, request: &v1::RejoinRequest) -> v1::RejoinReply {
    let state = manager.inner.node.state().borrow().clone();
    let reply = |node: u64, refused: String| v1::RejoinReply {
        node,
        refused,
        cluster_id: state.cluster_id().0,
        generation: state.generation().0,
    };
    match try_give(manager, request).await {
        Ok(node) => reply(node.0, String::new()),
        Err(why) => reply(0, why),
    }
}

async fn try_give(manager: &Manager, request: &v1::RejoinRequest) -> Result<NodeId, String> {
    let inner = &manager.inner;
    let leadership = inner.node.leadership().borrow().clone();
    if !leadership.am_leader {
        return Err(match leadership.leader {
            Some(leader) => format!("{leader} is the Raft leader"),
            None => "it sees no Raft leader".to_owned(),
        });
    }
    let state = inner.node.state().borrow().clone();
    let member: MemberId = request.member.parse().map_err(|_| "the request names no member".to_owned())?;
    let Some(known) = state.members.get(&member) else {
        return Err(format!("{member} is no member of the cluster: `matriarch member add {member}` first"));
    };
    if let Some(why) = kind::against_file(&member, known.learner, request.learner) {
        return Err(why);
    }
    let silent = manager.timings().silent;
    let lost = inner.node.lost_logs().contains_key(&known.node);
    if let Some(age) = inner.node.last_answer(known.node).filter(|age| *age < silent && !lost) {
        return Err(format!("node {} of {member} answered {} ms ago: it lives", known.node, age.as_millis()));
    }
    let node = state.next_node();
    let kind = Kind::ReplaceNode { member, old: known.node, node, reason: request.evidence.clone() };
    let request_id = uuid::Uuid::now_v7().to_string();
    let command = Command {
        request_id,
        expected: state.epoch,
        because: ASKED,
        kind,
        evidence: leader::evidence(manager, &state, &[]),
    };
    match inner.node.propose(command).await {
        Ok(Applied::Changed) => Ok(node),
        Ok(Applied::Stale { why, .. }) => Err(format!("the cluster has changed meanwhile: {why}")),
        Ok(Applied::Nothing) => Err("nothing was proposed".to_owned()),
        Err(error @ ProposeError::Unknown) => Err(format!("{error}; it is asked again")),
        Err(error) => Err(error.to_string()),
    }
}
