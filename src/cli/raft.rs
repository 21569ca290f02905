//! The managers' Raft group: how it stands, and a shorter log.

use std::time::Duration;

use serde::Serialize;

use super::{
    args::{ClientArgs, RaftSnapshotArgs, RaftStatusArgs},
    client::{Client, ClientError, target},
    complain, complain_client,
    exit::{self, Exit},
    print,
    render::{self, Cell, Style},
};
use crate::rpc::v1::{RaftNode, RaftSelf, RaftSnapshotReply, RaftSnapshotRequest, RaftStatusReply, RaftStatusRequest};

/// Every node that answers is asked, and so long a snapshot may take.
const PATIENCE: Duration = Duration::from_secs(12);

impl Client {
    async fn raft_status(&self, local: bool) -> Result<RaftStatusReply, ClientError> {
        self.look(super::client::OPERATION_PATIENCE, async move |mut admin| {
            let request = RaftStatusRequest { to: Some(target("", 0)), local };
            admin.raft_status(request).await.map(tonic::Response::into_inner)
        })
        .await
    }

    async fn raft_snapshot(&self, member: &str) -> Result<RaftSnapshotReply, ClientError> {
        self.ask(PATIENCE, async move |mut admin| {
            let request = RaftSnapshotRequest { to: Some(target("", 0)), member: member.to_owned(), local: false };
            admin.raft_snapshot(request).await.map(tonic::Response::into_inner)
        })
        .await
    }
}

pub(super) async fn status(args: RaftStatusArgs) -> Exit {
    let reply = match client(&args.client, args.local) {
        Ok(client) => client.raft_status(args.local).await,
        Err(error) => Err(error),
    };
    match reply {
        Ok(reply) => {
            print(&if args.json { json(&reply) } else { text(&reply) });
            exit::OK
        }
        Err(error) => complain_client(&error),
    }
}

fn client(args: &ClientArgs, local: bool) -> Result<Client, ClientError> {
    if local { Client::local(args) } else { Client::new(args) }
}

pub(super) async fn snapshot(args: RaftSnapshotArgs) -> Exit {
    let member = args.member.unwrap_or_default();
    let reply = match Client::new(&args.client) {
        Ok(client) => client.raft_snapshot(&member).await,
        Err(error) => Err(error),
    };
    let reply = match reply {
        Ok(reply) => reply,
        Err(error) => return complain_client(&error),
    };
    print(&if args.json { snapshot_json(&reply) } else { snapshot_text(&reply) });
    let failed: Vec<String> =
        reply.nodes.iter().filter(|n| !n.problem.is_empty()).map(|n| format!("{}: {}", n.member, n.problem)).collect();
    if failed.is_empty() {
        return exit::OK;
    }
    complain(&format!("no snapshot of {}", failed.join("; ")), exit::FAILED)
}

/// Who votes, in words that `member list` has too.
fn votes(node: &RaftNode, joint: bool) -> &'static str {
    match (node.old, node.new) {
        (false, false) => "learner",
        _ if !joint => "voter",
        (true, true) => "voter",
        (true, false) => "until the group has changed",
        (false, true) => "as soon as the group has changed",
    }
}

/// Names of nodes, for what names a node by its number.
fn named(reply: &RaftStatusReply, node: u64) -> String {
    let known = reply.nodes.iter().find(|n| n.node == node);
    known.map_or_else(|| format!("node {node}"), |n| n.member.clone())
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes / 1024),
        _ => format!("{} MiB", bytes / 1_048_576),
    }
}

/// The Raft group as a table.
pub(super) fn text(reply: &RaftStatusReply) -> String {
    let mut head = match reply.leader.as_str() {
        "" => format!("no leader, as {} sees it", reply.answered_by),
        leader => format!("{leader} leads, as {} sees it", reply.answered_by),
    };
    if reply.joint {
        head += "; the voters are being changed: the old and the new ones have to agree";
    }
    let rows: Vec<Vec<Cell>> = reply.nodes.iter().map(|node| row(reply, node)).collect();
    let columns = [
        ("NODE", true),
        ("MEMBER", false),
        ("ROLE", false),
        ("VOTES", false),
        ("TERM", true),
        ("VOTE", false),
        ("LAST", true),
        ("COMMIT", true),
        ("APPLIED", true),
        ("SNAPSHOT", true),
        ("PURGED", true),
        ("LOG", true),
        ("ANSWERED", true),
    ];
    format!("{head}\n\n{}", render::table(&columns, &rows, Style::Plain))
}

fn row(reply: &RaftStatusReply, node: &RaftNode) -> Vec<Cell> {
    let number = |value: Option<u64>| Cell::new(value.map(|v| v.to_string()).unwrap_or_default());
    let own = node.own.as_ref();
    let role = own.map_or("silent", |own| own.role.as_str());
    let vote = own.filter(|own| own.voted_for != 0).map(|own| named(reply, own.voted_for)).unwrap_or_default();
    // What the leader knows of one that is silent.
    let last = own.map(|own| own.last).or(node.held);
    vec![
        Cell::new(node.node.to_string()),
        Cell::new(node.member.clone()),
        Cell::new(role),
        Cell::new(votes(node, reply.joint)),
        number(own.map(|own| own.term)),
        Cell::new(vote),
        number(last),
        number(own.map(|own| own.commit)),
        number(own.map(|own| own.applied)),
        number(own.map(|own| own.snapshot)),
        number(own.map(|own| own.purged)),
        Cell::new(own.filter(|own| own.log_bytes > 0).map(|own| size(own.log_bytes)).unwrap_or_default()),
        Cell::new(node.answered_ms.map(|ms| format!("{ms} ms")).unwrap_or_default()),
    ]
}

#[derive(Serialize)]
struct Node<'a> {
    node: u64,
    member: &'a str,
    address: &'a str,
    role: &'a str,
    voter: bool,
    learner: bool,
    /// Of which half while the group is joint.
    old: bool,
    new: bool,
    held: Option<u64>,
    answered_ms: Option<u64>,
    own: Option<Own>,
}

#[derive(Serialize)]
struct Own {
    term: u64,
    voted_for: Option<u64>,
    vote_won: bool,
    last: u64,
    commit: u64,
    applied: u64,
    snapshot: u64,
    purged: u64,
    /// `None`: the disk did not say so in time.
    bytes: Option<u64>,
    log_bytes: Option<u64>,
}

impl From<&RaftSelf> for Own {
    fn from(of: &RaftSelf) -> Self {
        Own {
            term: of.term,
            voted_for: Some(of.voted_for).filter(|node| *node != 0),
            vote_won: of.vote_won,
            last: of.last,
            commit: of.commit,
            applied: of.applied,
            snapshot: of.snapshot,
            purged: of.purged,
            bytes: Some(of.bytes).filter(|bytes| *bytes > 0),
            log_bytes: Some(of.log_bytes).filter(|bytes| *bytes > 0),
        }
    }
}

#[derive(Serialize)]
struct Group<'a> {
    leader: Option<&'a str>,
    answered_by: &'a str,
    joint: bool,
    membership: u64,
    nodes: Vec<Node<'a>>,
}

fn json(reply: &RaftStatusReply) -> String {
    let node = |n: &'_ RaftNode| -> (bool, Option<Own>) { (n.old || n.new, n.own.as_ref().map(Own::from)) };
    let nodes = reply.nodes.iter().map(|n| {
        let (voter, own) = node(n);
        Node {
            node: n.node,
            member: &n.member,
            address: &n.address,
            role: n.own.as_ref().map_or("silent", |own| own.role.as_str()),
            voter,
            learner: !voter,
            old: n.old,
            new: n.new,
            held: n.held,
            answered_ms: n.answered_ms,
            own,
        }
    });
    render::json(&Group {
        leader: Some(reply.leader.as_str()).filter(|leader| !leader.is_empty()),
        answered_by: &reply.answered_by,
        joint: reply.joint,
        membership: reply.membership,
        nodes: nodes.collect(),
    })
}

fn snapshot_text(reply: &RaftSnapshotReply) -> String {
    let mut text = String::new();
    for node in &reply.nodes {
        if let (Some(before), Some(after)) = (&node.before, &node.after)
            && node.problem.is_empty()
        {
            let dropped = after.purged.saturating_sub(before.purged);
            let (covers, bytes) = (after.snapshot, size(after.bytes));
            text += &format!(
                "{}: the snapshot covers {covers} entries, {dropped} were dropped from the log; {bytes} on disk\n",
                node.member
            );
        }
    }
    text
}

#[derive(Serialize)]
struct Compacted<'a> {
    member: &'a str,
    problem: Option<&'a str>,
    before: Option<Own>,
    after: Option<Own>,
}

fn snapshot_json(reply: &RaftSnapshotReply) -> String {
    let of = |n: &'_ crate::rpc::v1::RaftSnapshotOf| -> (Option<Own>, Option<Own>) {
        (n.before.as_ref().map(Own::from), n.after.as_ref().map(Own::from))
    };
    let nodes: Vec<Compacted<'_>> = reply
        .nodes
        .iter()
        .map(|n| {
            let (before, after) = of(n);
            let problem = Some(n.problem.as_str()).filter(|p| !p.is_empty());
            Compacted { member: &n.member, problem, before, after }
        })
        .collect();
    render::json(&nodes)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn node(node: u64, member: &str, own: Option<RaftSelf>) -> RaftNode {
        let address = format!("{member}:7400");
        RaftNode { node, member: member.into(), address, old: true, new: true, own, ..Default::default() }
    }

    fn own(role: &str) -> Option<RaftSelf> {
        Some(RaftSelf {
            term: 4,
            voted_for: 1,
            vote_won: true,
            last: 120,
            commit: 120,
            applied: 119,
            snapshot: 90,
            purged: 90,
            bytes: 900_000,
            log_bytes: 540_000,
            role: role.into(),
        })
    }

    fn reply() -> RaftStatusReply {
        let mut silent = node(3, "n3", None);
        (silent.held, silent.answered_ms) = (Some(97), Some(64_000));
        let mut learner = node(4, "n4", own("learner"));
        (learner.old, learner.new) = (false, false);
        RaftStatusReply {
            answered_by: "n1".into(),
            leader: "n1".into(),
            joint: false,
            membership: 7,
            nodes: vec![node(1, "n1", own("leader")), silent, learner],
        }
    }

    #[test]
    fn the_group_is_one_line_for_each_node_and_silence_is_said() {
        expect![[r#"
            n1 leads, as n1 sees it

            NODE  MEMBER  ROLE     VOTES    TERM  VOTE  LAST  COMMIT  APPLIED  SNAPSHOT  PURGED      LOG  ANSWERED
               1  n1      leader   voter       4  n1     120     120      119        90      90  527 KiB         -
               3  n3      silent   voter       -  -       97       -        -         -       -        -  64000 ms
               4  n4      learner  learner     4  n1     120     120      119        90      90  527 KiB         -
        "#]]
        .assert_eq(&text(&reply()));
    }

    #[test]
    fn programs_get_the_same_as_json() {
        let told: serde_json::Value = serde_json::from_str(&json(&reply())).unwrap();
        assert_eq!(told["leader"], "n1");
        assert_eq!(told["nodes"][1]["role"], "silent");
        assert_eq!(told["nodes"][1]["own"], serde_json::Value::Null);
        assert_eq!(told["nodes"][2]["learner"], true);
        assert_eq!(told["nodes"][0]["own"]["applied"], 119);
    }
}
