//! `matriarch matrix`: who reaches whom. Every manager is asked by itself, all at once, so a dead host costs one deadline.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde::Serialize;
use tokio::time::timeout;

use super::super::{
    args::views::ShowArgs,
    client::Client,
    complain_client,
    exit::{self, Exit},
    print,
    render::{self, Cell, Style, Tone},
    style,
};
use crate::rpc::v1::{ReachReply, ReachedManager, StatusReply};

/// How long a manager may take: each looks at the others for less than this.
const PATIENCE: Duration = Duration::from_millis(1_200);
/// Beyond this a word is old: agents speak once a second, leases are renewed more often.
const OLD_MS: u64 = 5_000;

/// What one manager says, or why it says nothing.
pub(super) struct Host {
    member: String,
    answer: Result<ReachReply, String>,
    /// From here to it and back, with all that it looked at.
    took: Duration,
}

pub(super) async fn run(args: ShowArgs) -> Exit {
    let (_, status) = match super::status_of(&args.client).await {
        Ok(both) => both,
        Err(error) => return complain_client(&error),
    };
    let hosts = ask(&status).await;
    print(&if args.json { document(&status, &hosts) } else { text(&status, &hosts, style()) });
    if faults(&status, &hosts).is_empty() { exit::OK } else { exit::DEGRADED }
}

/// Every manager of the cluster, in the order of the members.
pub(super) async fn ask(status: &StatusReply) -> Vec<Host> {
    let one = async |(member, manager): (String, String)| {
        let began = Instant::now();
        let client = Client::of_all(vec![manager]);
        let answer = match timeout(PATIENCE, client.reach()).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} ms", PATIENCE.as_millis())),
        };
        Host { member, answer, took: began.elapsed() }
    };
    join_all(status.members.iter().map(|m| one((m.member.clone(), m.manager.clone())))).await
}

/// What one host says of another.
fn between<'a>(host: &'a Host, to: &str) -> Option<&'a ReachedManager> {
    host.answer.as_ref().ok()?.managers.iter().find(|m| m.member == to)
}

fn text(status: &StatusReply, hosts: &[Host], style: Style) -> String {
    let mut columns = vec![("FROM", false)];
    let heads: Vec<String> = hosts.iter().map(|host| format!("TO {}", host.member)).collect();
    columns.extend(heads.iter().map(|head| (head.as_str(), true)));
    columns.extend([
        ("HERE", true),
        ("AGENT", true),
        ("POSTGRES", false),
        ("FOLLOWS", false),
        ("RAFT", true),
        ("LEASE", true),
    ]);
    let rows: Vec<Vec<Cell>> = hosts.iter().map(|host| row(host, hosts)).collect();
    let mut out = render::table(&columns, &rows, style);
    let faults = faults(status, hosts);
    if !faults.is_empty() {
        out.push('\n');
    }
    for fault in &faults {
        // Writing to a String can't fail.
        let _ = writeln!(out, "{}", style.paint(Tone::Bad, fault));
    }
    let leader = if status.leader.is_empty() { "nobody" } else { &status.leader };
    let _ = writeln!(
        out,
        "\nColumns of members: a request over gRPC and back. Here: from this command. Agent, Raft, lease: since the last word.\n\
         Raft leader: {leader}. Primary: {}.",
        if status.primary.is_empty() { "nobody" } else { &status.primary },
    );
    out
}

fn row(host: &Host, hosts: &[Host]) -> Vec<Cell> {
    let mut cells = vec![Cell::new(host.member.as_str())];
    for other in hosts {
        let seen = between(host, &other.member);
        cells.push(match (other.member == host.member, &host.answer, seen) {
            (true, ..) => Cell::new("."),
            (false, Err(_), _) => Cell::toned("?", Tone::Warn),
            (false, Ok(_), Some(ReachedManager { rtt_us: Some(us), .. })) => Cell::toned(micros(*us), Tone::Good),
            (false, Ok(_), Some(_)) => Cell::toned("no", Tone::Bad),
            // It has never heard of that member.
            (false, Ok(_), None) => Cell::toned("no", Tone::Bad),
        });
    }
    let Ok(reply) = &host.answer else {
        cells.push(Cell::toned("no", Tone::Bad));
        cells.extend((0..5).map(|_| Cell::new("?")));
        return cells;
    };
    let age = |ms: Option<u64>| match ms {
        Some(ms) if ms <= OLD_MS => Cell::toned(millis(ms), Tone::Good),
        Some(ms) => Cell::toned(millis(ms), Tone::Warn),
        None => Cell::toned("no", Tone::Bad),
    };
    cells.push(Cell::toned(format!("{} ms", host.took.as_millis()), Tone::Good));
    cells.push(if is_witness(reply) { Cell::new("") } else { age(reply.agent_ms) });
    cells.push(Cell::new(reply.postgres.as_str()));
    cells.push(Cell::new(reply.upstream.as_str()));
    cells.push(age(reply.raft_ms));
    cells.push(age(reply.lease_ms));
    cells
}

/// It has no agent to be reached.
fn is_witness(reply: &ReachReply) -> bool {
    reply.postgres == "witness"
}

fn micros(us: u64) -> String {
    format!("{}.{} ms", us / 1_000, us % 1_000 / 100)
}

fn millis(ms: u64) -> String {
    format!("{}.{} s", ms / 1_000, ms % 1_000 / 100)
}

/// Whatever does not reach what it should, in words.
fn faults(status: &StatusReply, hosts: &[Host]) -> Vec<String> {
    let mut out = Vec::new();
    let dead: BTreeSet<&str> = hosts.iter().filter(|h| h.answer.is_err()).map(|h| h.member.as_str()).collect();
    for host in hosts {
        let reply = match &host.answer {
            Ok(reply) => reply,
            Err(why) => {
                out.push(format!("the manager of {} is not reached from here: {why}", host.member));
                continue;
            }
        };
        for other in &reply.managers {
            if other.rtt_us.is_none() {
                let also = if dead.contains(other.member.as_str()) { "" } else { ", though this command does" };
                out.push(format!("{} does not reach {}{also}: {}", host.member, other.member, other.problem));
            }
        }
        if reply.agent_ms.is_none() && !is_witness(reply) {
            out.push(format!("the manager of {} does not reach its agent", host.member));
        }
        if reply.leader != status.leader {
            let leads = if reply.leader.is_empty() { "nobody" } else { &reply.leader };
            out.push(format!("{} takes {leads} for the Raft leader", host.member));
        }
        if status.lock == "open" && reply.lease_ms.is_none_or(|ms| ms > OLD_MS) {
            out.push(format!(
                "{} does not hear the lease being renewed: UDP from {} is lost",
                host.member, status.primary
            ));
        }
    }
    out
}

/// `matriarch matrix --json`.
pub(super) fn document(status: &StatusReply, hosts: &[Host]) -> String {
    #[derive(Serialize)]
    struct One<'a> {
        member: &'a str,
        reached: bool,
        problem: Option<&'a str>,
        took_ms: u64,
        raft_leader: Option<&'a str>,
        agent_ms: Option<u64>,
        postgres: Option<&'a str>,
        follows: Option<&'a str>,
        raft_ms: Option<u64>,
        lease_ms: Option<u64>,
        reaches: BTreeMap<&'a str, To<'a>>,
    }
    #[derive(Serialize)]
    struct To<'a> {
        rtt_us: Option<u64>,
        problem: Option<&'a str>,
        heard_ms: Option<u64>,
    }
    #[derive(Serialize)]
    struct Matrix<'a> {
        whole: bool,
        hosts: Vec<One<'a>>,
        faults: &'a [String],
    }
    fn one(host: &Host) -> One<'_> {
        let reply = host.answer.as_ref().ok();
        One {
            member: &host.member,
            reached: reply.is_some(),
            problem: host.answer.as_ref().err().map(String::as_str),
            took_ms: u64::try_from(host.took.as_millis()).unwrap_or(u64::MAX),
            raft_leader: reply.and_then(|r| super::known(&r.leader)),
            agent_ms: reply.and_then(|r| r.agent_ms),
            postgres: reply.and_then(|r| super::known(&r.postgres)),
            follows: reply.and_then(|r| super::known(&r.upstream)),
            raft_ms: reply.and_then(|r| r.raft_ms),
            lease_ms: reply.and_then(|r| r.lease_ms),
            reaches: reply
                .iter()
                .flat_map(|r| &r.managers)
                .map(|m| {
                    let problem = super::known(&m.problem);
                    (m.member.as_str(), To { rtt_us: m.rtt_us, problem, heard_ms: m.heard_ms })
                })
                .collect(),
        }
    }
    let faults = faults(status, hosts);
    render::json(&Matrix { whole: faults.is_empty(), hosts: hosts.iter().map(one).collect(), faults: &faults })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::v1::MemberStatus;

    fn status() -> StatusReply {
        let member = |name: &str| MemberStatus { member: name.into(), ..MemberStatus::default() };
        StatusReply {
            leader: "n2".into(),
            primary: "n1".into(),
            lock: "open".into(),
            members: ["n1", "n2", "n3"].map(member).to_vec(),
            ..StatusReply::default()
        }
    }

    fn host(name: &str, to: &[(&str, Result<u64, &str>)]) -> Host {
        let other = |(member, answer): &(&str, Result<u64, &str>)| ReachedManager {
            member: (*member).to_owned(),
            rtt_us: answer.ok(),
            problem: answer.err().unwrap_or_default().to_owned(),
            heard_ms: None,
        };
        let reply = ReachReply {
            answered_by: name.into(),
            leader: "n2".into(),
            managers: to.iter().map(other).collect(),
            agent_ms: Some(300),
            postgres: if name == "n1" { "running".into() } else { "streaming".into() },
            raft_ms: Some(100),
            lease_ms: Some(412),
            upstream: if name == "n1" { String::new() } else { "n1".into() },
        };
        Host { member: name.into(), answer: Ok(reply), took: Duration::from_millis(4) }
    }

    fn dead(name: &str) -> Host {
        Host { member: name.into(), answer: Err("no answer within 1200 ms".into()), took: PATIENCE }
    }

    #[test]
    fn a_whole_cluster_has_a_number_everywhere() {
        let hosts = [
            host("n1", &[("n2", Ok(850)), ("n3", Ok(1_240))]),
            host("n2", &[("n1", Ok(700)), ("n3", Ok(900))]),
            host("n3", &[("n1", Ok(700)), ("n2", Ok(900))]),
        ];
        let expected = "\
FROM   TO n1   TO n2   TO n3  HERE  AGENT  POSTGRES   FOLLOWS   RAFT  LEASE
n1         .  0.8 ms  1.2 ms  4 ms  0.3 s  running    -        0.1 s  0.4 s
n2    0.7 ms       .  0.9 ms  4 ms  0.3 s  streaming  n1       0.1 s  0.4 s
n3    0.7 ms  0.9 ms       .  4 ms  0.3 s  streaming  n1       0.1 s  0.4 s
";
        let shown = text(&status(), &hosts, Style::Plain);
        assert!(shown.starts_with(expected), "{shown}");
        assert_eq!(faults(&status(), &hosts), Vec::<String>::new());
    }

    #[test]
    fn a_witness_has_no_agent_that_could_be_cut_off() {
        let mut hosts = vec![
            host("n1", &[("n2", Ok(850)), ("n3", Ok(1_240))]),
            host("n2", &[("n1", Ok(700)), ("n3", Ok(900))]),
            host("n3", &[("n1", Ok(700)), ("n2", Ok(900))]),
        ];
        if let Ok(reply) = &mut hosts[2].answer {
            (reply.agent_ms, reply.postgres, reply.upstream) = (None, "witness".into(), String::new());
        }
        assert_eq!(faults(&status(), &hosts), Vec::<String>::new());
        let shown = text(&status(), &hosts, Style::Plain);
        let line = shown.lines().find(|line| line.starts_with("n3")).unwrap();
        let words = line.split_whitespace().collect::<Vec<_>>();
        assert_eq!(words[7..10], ["ms", "-", "witness"], "{line}");
    }

    #[test]
    fn what_is_cut_off_is_told_once_for_each_direction() {
        let mut hosts = vec![
            host("n1", &[("n2", Ok(850)), ("n3", Err("no answer within 700 ms"))]),
            host("n2", &[("n1", Err("no route to host")), ("n3", Err("no answer within 700 ms"))]),
            dead("n3"),
        ];
        if let Ok(reply) = &mut hosts[1].answer {
            (reply.agent_ms, reply.lease_ms) = (None, Some(9_000));
        }
        assert_eq!(
            faults(&status(), &hosts),
            [
                "n1 does not reach n3: no answer within 700 ms",
                "n2 does not reach n1, though this command does: no route to host",
                "n2 does not reach n3: no answer within 700 ms",
                "the manager of n2 does not reach its agent",
                "n2 does not hear the lease being renewed: UDP from n1 is lost",
                "the manager of n3 is not reached from here: no answer within 1200 ms",
            ]
        );
        let shown = text(&status(), &hosts, Style::Plain);
        let line = shown.lines().find(|line| line.starts_with("n3")).unwrap();
        assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["n3", "?", "?", ".", "no", "?", "?", "?", "?", "?"]);
        let json: serde_json::Value = serde_json::from_str(&document(&status(), &hosts)).unwrap();
        assert_eq!(json["hosts"][1]["reaches"]["n1"]["problem"], "no route to host");
        assert_eq!((&json["whole"], &json["hosts"][2]["reached"]), (&false.into(), &false.into()));
    }
}
