//! `matriarch status --all`: one line for each cluster that is known by name.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde::Serialize;
use tokio::time::timeout;

use super::super::{
    client::{Client, ClientError},
    clusters, complain,
    exit::{self, Exit},
    print,
    render::{self, Cell, Style, Tone},
    style,
};
use crate::rpc::v1::StatusReply;

/// All clusters are asked at once, and one that takes longer counts as not reached.
const PATIENCE: Duration = Duration::from_secs(5);

/// What came of asking one cluster.
struct Seen {
    name: String,
    answer: Result<StatusReply, String>,
    took: Duration,
}

pub(in crate::cli) async fn run(json: bool) -> Exit {
    let clusters = match clusters::all() {
        Ok(clusters) => clusters,
        Err(problem) => return complain(&problem, exit::USAGE),
    };
    let ask = async |(name, managers): (String, Vec<String>)| {
        let began = Instant::now();
        let client = Client::of_all(managers);
        let answer = match timeout(PATIENCE, client.status(false)).await {
            Ok(answer) => answer.map_err(|error: ClientError| error.to_string()),
            Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
        };
        Seen { name, answer, took: began.elapsed() }
    };
    let seen = join_all(clusters.into_iter().map(ask)).await;
    print(&if json { document(&seen) } else { text(&seen, style()) });
    worst(&seen)
}

/// Not reached is worse than degraded, and that is worse than healthy.
fn worst(seen: &[Seen]) -> Exit {
    let rank = |seen: &Seen| match &seen.answer {
        Err(_) => 2,
        Ok(reply) => i32::from(!render::is_healthy(reply)),
    };
    match seen.iter().map(rank).max() {
        Some(2) => exit::UNREACHABLE,
        Some(1) => exit::DEGRADED,
        _ => exit::OK,
    }
}

fn text(seen: &[Seen], style: Style) -> String {
    let columns = [
        ("CLUSTER", false),
        ("HEALTH", false),
        ("PRIMARY", false),
        ("EPOCH", true),
        ("TL", true),
        ("MEMBERS", true),
        ("LAG", true),
        ("ANSWER", true),
        ("WHAT", false),
    ];
    let rows: Vec<Vec<Cell>> = seen.iter().map(row).collect();
    render::table(&columns, &rows, style)
}

fn row(seen: &Seen) -> Vec<Cell> {
    let took = format!("{} ms", seen.took.as_millis());
    let reply = match &seen.answer {
        Ok(reply) => reply,
        Err(why) => {
            let mut row = vec![Cell::new(seen.name.as_str()), Cell::toned("not reached", Tone::Bad)];
            row.extend((0..5).map(|_| Cell::new("")));
            row.extend([Cell::new(took), Cell::new(why.as_str())]);
            return row;
        }
    };
    let (word, tone) = health(reply);
    vec![
        Cell::new(seen.name.as_str()),
        Cell::toned(word, tone),
        Cell::new(reply.primary.as_str()),
        Cell::new(reply.epoch.to_string()),
        Cell::new(reply.timeline.to_string()),
        Cell::new(format!("{}/{}", well(reply), reply.members.len())),
        Cell::new(lag(reply).map(|bytes| format!("{bytes} B")).unwrap_or_default()),
        Cell::new(took),
        Cell::new(what(reply).unwrap_or_default()),
    ]
}

fn health(reply: &StatusReply) -> (&'static str, Tone) {
    match (render::is_healthy(reply), reply.lock.as_str()) {
        _ if !reply.hibernated.is_empty() => ("hibernated", Tone::Warn),
        (true, _) => ("healthy", Tone::Good),
        (false, "open") => ("degraded", Tone::Warn),
        (false, _) => ("no open primary", Tone::Bad),
    }
}

fn well(reply: &StatusReply) -> usize {
    reply.members.iter().filter(|member| member.healthy).count()
}

/// Of the standby that is furthest behind.
fn lag(reply: &StatusReply) -> Option<u64> {
    reply.members.iter().filter(|m| m.lag_known && m.role != "primary").map(|m| m.lag_bytes).max()
}

/// The first thing that somebody should know.
fn what(reply: &StatusReply) -> Option<String> {
    let ailing = reply.members.iter().find(|m| !m.healthy);
    let problem = ailing.and_then(|m| m.problems.first().map(|problem| format!("{}: {problem}", m.member)));
    reply.banners.first().cloned().or(problem).or_else(|| reply.holds.first().cloned())
}

fn document(seen: &[Seen]) -> String {
    #[derive(Serialize)]
    struct One<'a> {
        cluster: &'a str,
        reached: bool,
        healthy: bool,
        primary: Option<&'a str>,
        epoch: Option<u64>,
        timeline: Option<u32>,
        members: Option<usize>,
        members_healthy: Option<usize>,
        lag_bytes: Option<u64>,
        answered_by: Option<&'a str>,
        answer_ms: u64,
        what: Option<String>,
    }
    #[derive(Serialize)]
    struct Fleet<'a> {
        clusters: Vec<One<'a>>,
    }
    let clusters = seen
        .iter()
        .map(|seen| {
            let reply = seen.answer.as_ref().ok();
            One {
                cluster: &seen.name,
                reached: reply.is_some(),
                healthy: reply.is_some_and(render::is_healthy),
                primary: reply.and_then(|r| super::known(&r.primary)),
                epoch: reply.map(|r| r.epoch),
                timeline: reply.map(|r| r.timeline),
                members: reply.map(|r| r.members.len()),
                members_healthy: reply.map(well),
                lag_bytes: reply.and_then(lag),
                answered_by: reply.map(|r| r.answered_by.as_str()),
                answer_ms: u64::try_from(seen.took.as_millis()).unwrap_or(u64::MAX),
                what: reply.and_then(what).or_else(|| seen.answer.as_ref().err().cloned()),
            }
        })
        .collect();
    render::json(&Fleet { clusters })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::v1::MemberStatus;

    fn seen(name: &str, healthy: Option<bool>) -> Seen {
        let member = |name: &str, healthy| MemberStatus {
            member: name.into(),
            role: if name == "n1" { "primary".into() } else { "standby".into() },
            healthy,
            lag_known: true,
            lag_bytes: 9,
            problems: if healthy { Vec::new() } else { vec!["it does not stream".into()] },
            ..MemberStatus::default()
        };
        let reply = |healthy| StatusReply {
            primary: "n1".into(),
            leader: "n1".into(),
            lock: "open".into(),
            epoch: 4,
            timeline: 3,
            members: vec![member("n1", true), member("n2", healthy)],
            ..StatusReply::default()
        };
        let answer = healthy.map(reply).ok_or_else(|| "no manager could be reached".to_owned());
        Seen { name: name.into(), answer, took: Duration::from_millis(7) }
    }

    #[test]
    fn each_cluster_has_its_line_and_the_worst_decides() {
        let fleet = [seen("east", Some(true)), seen("north", None), seen("west", Some(false))];
        let expected = "\
CLUSTER  HEALTH       PRIMARY  EPOCH  TL  MEMBERS  LAG  ANSWER  WHAT
east     healthy      n1           4   3      2/2  9 B    7 ms  -
north    not reached  -            -   -        -    -    7 ms  no manager could be reached
west     degraded     n1           4   3      1/2  9 B    7 ms  n2: it does not stream
";
        assert_eq!(text(&fleet, Style::Plain), expected);
        assert_eq!(worst(&fleet), exit::UNREACHABLE);
        assert_eq!(worst(&[seen("east", Some(true)), seen("west", Some(false))]), exit::DEGRADED);
        assert_eq!(worst(&[seen("east", Some(true))]), exit::OK);
        let json: serde_json::Value = serde_json::from_str(&document(&fleet)).unwrap();
        assert_eq!(json["clusters"][2]["members_healthy"], 1);
        assert_eq!(json["clusters"][1]["reached"], false);
    }
}
