//! `matriarch topology`: who follows whom.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use serde::Serialize;

use super::super::{
    args::views::ShowArgs,
    complain_client,
    exit::{self, Exit},
    print,
    render::{self, Style, Tone},
    style,
};
use crate::{
    domain::settings_document::member_of,
    rpc::v1::{MemberStatus, SettingsReply, StatusReply},
};

pub(super) async fn run(args: ShowArgs) -> Exit {
    let (client, status) = match super::status_of(&args.client).await {
        Ok(both) => both,
        Err(error) => return complain_client(&error),
    };
    // The tree stands without them.
    let settings = client.settings().await.unwrap_or_default();
    let tree = tree(&status, &settings);
    print(&if args.json { document(&status, &tree) } else { text(&status, &tree, style()) });
    exit::OK
}

/// One member where it hangs.
#[derive(Debug, Serialize)]
struct Branch<'a> {
    member: &'a str,
    /// 0: it follows nobody that is known.
    depth: usize,
    role: &'a str,
    state: &'a str,
    healthy: bool,
    upstream: Option<&'a str>,
    timeline: Option<u32>,
    lsn: Option<&'a str>,
    flush_lag_bytes: Option<u64>,
    replay_lag_bytes: Option<u64>,
    replay_lag_ms: Option<u64>,
    /// Commits wait for it, or may be confirmed by it.
    confirms: bool,
    /// What operators have set of it.
    set: BTreeMap<&'a str, &'a str>,
    problems: &'a [String],
    #[serde(skip)]
    last: Vec<bool>,
}

/// The members in the order of the tree: below each those that follow it.
fn tree<'a>(status: &'a StatusReply, settings: &'a SettingsReply) -> Vec<Branch<'a>> {
    let names: BTreeSet<&str> = status.members.iter().map(|m| m.member.as_str()).collect();
    let hangs = |m: &MemberStatus| names.contains(m.upstream.as_str()) && m.upstream != m.member;
    let mut out = Vec::new();
    let mut hung = BTreeSet::new();
    let mut roots: Vec<&MemberStatus> = status.members.iter().filter(|m| !hangs(m)).collect();
    roots.sort_by_key(|m| m.role != "primary");
    for root in roots {
        hang(root, &[], (status, settings), &mut hung, &mut out);
    }
    // Two that are said to follow each other hang on nobody.
    for member in &status.members {
        hang(member, &[], (status, settings), &mut hung, &mut out);
    }
    out
}

fn hang<'a>(
    member: &'a MemberStatus,
    last: &[bool],
    (status, settings): (&'a StatusReply, &'a SettingsReply),
    hung: &mut BTreeSet<&'a str>,
    out: &mut Vec<Branch<'a>>,
) {
    if !hung.insert(&member.member) {
        return;
    }
    out.push(branch(member, last.to_vec(), status, settings));
    let below: Vec<_> =
        status.members.iter().filter(|m| m.upstream == member.member && m.member != member.member).collect();
    for (n, next) in below.iter().enumerate() {
        let last = [last, &[n + 1 == below.len()]].concat();
        hang(next, &last, (status, settings), hung, out);
    }
}

fn branch<'a>(
    member: &'a MemberStatus,
    last: Vec<bool>,
    status: &'a StatusReply,
    settings: &'a SettingsReply,
) -> Branch<'a> {
    let of = settings.settings.iter().filter(|s| s.is_set);
    let set = of.filter_map(|s| member_of(&s.key).map(|(whose, key)| (whose, key, s.value.as_str())));
    Branch {
        member: &member.member,
        depth: last.len(),
        role: &member.role,
        state: &member.state,
        healthy: member.healthy,
        upstream: super::known(&member.upstream),
        timeline: Some(member.timeline).filter(|t| *t != 0),
        lsn: super::known(&member.lsn),
        flush_lag_bytes: member.flushed.map(|lag| lag.bytes),
        replay_lag_bytes: member.replayed.map(|lag| lag.bytes).or_else(|| member.lag_known.then_some(member.lag_bytes)),
        replay_lag_ms: member.replayed.and_then(|lag| lag.ms),
        confirms: status.commits.as_ref().is_some_and(|c| c.in_effect && c.names.contains(&member.member)),
        set: set.filter(|(whose, ..)| *whose == member.member).map(|(_, key, value)| (key, value)).collect(),
        problems: &member.problems,
        last,
    }
}

fn text(status: &StatusReply, tree: &[Branch<'_>], style: Style) -> String {
    let health = if render::is_healthy(status) { ("healthy", Tone::Good) } else { ("not healthy", Tone::Warn) };
    let health = style.paint(health.1, health.0);
    let mut out = format!("{}: {health}, epoch {}, timeline {}\n", status.cluster, status.epoch, status.timeline);
    for (at, branch) in tree.iter().enumerate() {
        let root_is_last = !tree[at + 1..].iter().any(|later| later.depth == 0);
        let mut lead = String::new();
        let ends: Vec<bool> = std::iter::once(root_is_last).chain(branch.last.iter().copied()).collect();
        for (n, end) in ends.iter().enumerate() {
            lead.push_str(match (n + 1 == ends.len(), end) {
                (true, true) => "└─ ",
                (true, false) => "├─ ",
                (false, true) => "   ",
                (false, false) => "│  ",
            });
        }
        // Writing to a String can't fail.
        let _ = writeln!(out, "{lead}{}", line(branch, status, style));
    }
    out
}

fn line(branch: &Branch<'_>, status: &StatusReply, style: Style) -> String {
    let tone = if branch.healthy { Tone::Good } else { Tone::Bad };
    let mut words = vec![format!("{} {}", branch.role, branch.state)];
    words.extend(branch.timeline.map(|timeline| format!("timeline {timeline}")));
    words.extend(branch.lsn.map(str::to_owned));
    let lag = branch.replay_lag_bytes.filter(|_| branch.role == "standby");
    let time = branch.replay_lag_ms.filter(|ms| *ms > 0).map(|ms| format!(" ({}.{} s)", ms / 1_000, ms % 1_000 / 100));
    words.extend(lag.map(|bytes| format!("lag {bytes} B{}", time.unwrap_or_default())));
    if branch.confirms {
        let mode = status.commits.as_ref().map_or("", |c| c.mode.as_str());
        words.push(format!("confirms commits ({mode})"));
    }
    words.extend(branch.set.iter().map(|(key, value)| format!("{key}={value}")));
    words.extend(branch.problems.first().cloned());
    format!("{}  {}", style.paint(tone, branch.member), render::plain(&words.join(", ")))
}

fn document(status: &StatusReply, tree: &[Branch<'_>]) -> String {
    #[derive(Serialize)]
    struct Topology<'a> {
        cluster: &'a str,
        healthy: bool,
        epoch: u64,
        timeline: u32,
        /// In the order of the tree.
        members: &'a [Branch<'a>],
    }
    render::json(&Topology {
        cluster: &status.cluster,
        healthy: render::is_healthy(status),
        epoch: status.epoch,
        timeline: status.timeline,
        members: tree,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::v1::{Commits, Lag, Setting};

    fn status() -> StatusReply {
        let member = |name: &str, role: &str, upstream: &str| MemberStatus {
            member: name.into(),
            role: role.into(),
            state: if role == "primary" { "running".into() } else { "streaming".into() },
            upstream: upstream.into(),
            timeline: 3,
            lsn: "0/5000060".into(),
            healthy: true,
            replayed: (role == "standby").then_some(Lag { bytes: 328, ms: Some(1_300) }),
            ..MemberStatus::default()
        };
        let lost = MemberStatus {
            member: "n5".into(),
            role: "none".into(),
            state: "silent".into(),
            problems: vec!["nothing is heard of this host".into()],
            ..MemberStatus::default()
        };
        StatusReply {
            cluster: "main".into(),
            epoch: 4,
            timeline: 3,
            members: vec![
                member("n1", "standby", "n2"),
                member("n2", "primary", ""),
                member("n3", "standby", "n1"),
                member("n4", "standby", "n2"),
                lost,
            ],
            commits: Some(Commits {
                mode: "sync".into(),
                in_effect: true,
                names: vec!["n1".into()],
                count: 1,
                ..Commits::default()
            }),
            ..StatusReply::default()
        }
    }

    #[test]
    fn standbys_hang_below_whom_they_follow() {
        let set = |key: &str, value: &str, is_set| Setting {
            key: key.into(),
            value: value.into(),
            is_set,
            ..Setting::default()
        };
        let settings = SettingsReply {
            settings: vec![
                set(&crate::domain::settings_document::member_key("n4", "priority"), "0", true),
                set(&crate::domain::settings_document::member_key("n1", "priority"), "100", false),
            ],
            ..SettingsReply::default()
        };
        let status = status();
        let expected = "\
main: not healthy, epoch 4, timeline 3
├─ n2  primary running, timeline 3, 0/5000060
│  ├─ n1  standby streaming, timeline 3, 0/5000060, lag 328 B (1.3 s), confirms commits (sync)
│  │  └─ n3  standby streaming, timeline 3, 0/5000060, lag 328 B (1.3 s)
│  └─ n4  standby streaming, timeline 3, 0/5000060, lag 328 B (1.3 s), priority=0
└─ n5  none silent, nothing is heard of this host
";
        assert_eq!(text(&status, &tree(&status, &settings), Style::Plain), expected);
        let json: serde_json::Value = serde_json::from_str(&document(&status, &tree(&status, &settings))).unwrap();
        let order: Vec<_> = json["members"].as_array().unwrap().iter().map(|m| (&m["member"], &m["depth"])).collect();
        let expected = [("n2", 0), ("n1", 1), ("n3", 2), ("n4", 1), ("n5", 0)];
        assert!(order.iter().zip(expected).all(|((m, d), (name, depth))| **m == name && **d == depth), "{order:?}");
    }

    /// What each agent says is of another moment: after a switchover two may seem to follow each other.
    #[test]
    fn nobody_is_lost_in_a_ring() {
        let mut status = status();
        status.members[1].upstream = "n1".into();
        let tree =
            tree(&status, &SettingsReply::default()).iter().map(|b| b.member.to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(tree.len(), 5);
    }
}
