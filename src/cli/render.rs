//! Answers as text for people and as JSON for programs. Pure.

mod archive;
mod commits;
mod lag;
mod may_go;
mod room;

pub use may_go::{may_go, may_go_json};

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Serialize;

use crate::{
    config::Config,
    rpc::v1::{ExplainReply, Fence, Layer, MemberStatus, OperationStatus, StatusReply},
};

/// Whether colours may be used. The text says the same without them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Text only.
    Plain,
    /// ANSI colours: green is well, yellow wants a look, red is broken.
    Colour,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Good,
    Warn,
    Bad,
    Head,
}

impl Style {
    pub(super) fn paint(self, tone: Tone, text: &str) -> String {
        let text = plain(text);
        let code = match tone {
            _ if self == Style::Plain => return text,
            Tone::Plain => return text,
            Tone::Good => "32",
            Tone::Warn => "33",
            Tone::Bad => "31",
            Tone::Head => "1",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// The text without what would steer a terminal: names and words come from files and from other hosts.
pub(super) fn plain(text: &str) -> String {
    let harmless = |c: char| matches!(c, '\n' | '\t') || !c.is_control();
    text.chars().map(|c| if harmless(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
}

// ---- tables --------------------------------------------------------------------------------------------------

pub(super) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub(super) fn new(text: impl Into<String>) -> Cell {
        Cell::toned(text, Tone::Plain)
    }

    pub(super) fn toned(text: impl Into<String>, tone: Tone) -> Cell {
        // A cell has one line.
        let text = plain(&text.into()).replace(['\n', '\t'], " ");
        Cell { text: if text.is_empty() { "-".to_owned() } else { text }, tone }
    }
}

/// A column: its head, and whether it holds numbers (aligned right).
pub(super) type Column<'a> = (&'a str, bool);

/// Columns two spaces apart, as wide as their widest cell; no blanks at the end of a line.
pub(super) fn table(columns: &[Column<'_>], rows: &[Vec<Cell>], style: Style) -> String {
    let wide = |index: usize, head: &str| {
        rows.iter().map(|row| row[index].text.chars().count()).chain([head.chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = columns.iter().enumerate().map(|(i, (head, _))| wide(i, head)).collect();
    let heads: Vec<Cell> = columns.iter().map(|(head, _)| Cell::toned(*head, Tone::Head)).collect();
    let mut text = String::new();
    for row in std::iter::once(&heads).chain(rows) {
        let mut line = String::new();
        for (index, cell) in row.iter().enumerate() {
            let blanks = " ".repeat(widths[index] - cell.text.chars().count());
            let painted = style.paint(cell.tone, &cell.text);
            let last = index + 1 == row.len();
            match (columns[index].1, last) {
                (true, _) => line.push_str(&format!("{blanks}{painted}")),
                (false, true) => line.push_str(&painted),
                (false, false) => line.push_str(&format!("{painted}{blanks}")),
            }
            line.push_str(if last { "" } else { "  " });
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

// ---- status --------------------------------------------------------------------------------------------------

/// Every member healthy, the primary open, a Raft leader known. Warnings don't count.
pub fn is_healthy(reply: &StatusReply) -> bool {
    let members = !reply.members.is_empty() && reply.members.iter().all(|m| m.healthy);
    members && reply.lock == "open" && !reply.primary.is_empty() && !reply.leader.is_empty()
}

/// The table of `matriarch status`.
pub fn status(reply: &StatusReply, style: Style) -> String {
    let mut text = header(reply, style);
    for banner in &reply.banners {
        let _ = writeln!(text, "  {}", style.paint(Tone::Warn, &format!("*** {banner} ***")));
    }
    text.push('\n');
    let columns: &[Column<'_>] = &[
        ("MEMBER", false),
        ("ROLE", false),
        ("STATE", false),
        ("TL", true),
        ("LSN", false),
        ("FLUSH LAG", true),
        ("REPLAY LAG", true),
        ("EPOCH", true),
        ("RAFT", false),
        ("LEASE", true),
        ("GUARD", false),
        ("POSTGRES", false),
    ];
    let rows: Vec<Vec<Cell>> = reply.members.iter().map(member_row).collect();
    text.push_str(&table(columns, &rows, style));
    let unhealthy: Vec<&MemberStatus> = reply.members.iter().filter(|m| has_words(m)).collect();
    if !unhealthy.is_empty() {
        text.push('\n');
    }
    for member in unhealthy {
        let words =
            [&member.stopped, &member.progress, &member.note].into_iter().filter(|words| !words.is_empty()).cloned();
        let told: Vec<String> = member.problems.iter().cloned().chain(words).collect();
        let tone = if member.healthy { Tone::Warn } else { Tone::Bad };
        let _ = writeln!(text, "{}: {}", style.paint(tone, &member.member), plain(&told.join("; ")));
    }
    text.push_str(&fences(&reply.members));
    text.push_str(&room::lines(&reply.members));
    text.push_str(&archive::lines(&reply.members));
    text.push_str(&layers(reply));
    text.push_str(&footer(reply, style));
    text
}

/// How each host would end a PostgreSQL that must not write. Hosts that say nothing of it have no line.
fn fences(members: &[MemberStatus]) -> String {
    let mut text = String::new();
    for member in members {
        let Some(fence) = member.fence.as_ref().filter(|f| !f.method.is_empty()) else { continue };
        if text.is_empty() {
            text.push('\n');
        }
        let took = match fence.kill_micros {
            0 => String::new(),
            us => format!(" ({}.{} ms for 100 processes)", us / 1_000, us % 1_000 / 100),
        };
        let Fence { method, memory, priority, oom, .. } = fence;
        let guard = format!("guard: memory {memory}, priority {priority}, OOM score {oom}");
        let _ = writeln!(text, "Fence {}: {method}{took}; {guard}", member.member);
    }
    text
}

/// What protects beyond lease and guard, one line for each host.
fn layers(reply: &StatusReply) -> String {
    let said = |layers: &[Layer]| {
        let each: Vec<String> = layers.iter().map(|l| format!("{} {}", l.name, or(&l.state, "?"))).collect();
        each.join(", ")
    };
    let hosts = reply.members.iter().map(|m| (m.member.as_str(), m.layers.as_slice()));
    let all = hosts.chain([("cluster", reply.layers.as_slice())]);
    let mut lines: Vec<String> = all
        .filter(|(_, layers)| !layers.is_empty())
        .map(|(who, layers)| format!("  {who}: {}\n", said(layers)))
        .collect();
    lines.extend(known(&reply.reader).map(|reader| format!("  address for standbys: lent to {reader}\n")));
    if lines.is_empty() { String::new() } else { format!("\nLayers\n{}", lines.concat()) }
}

fn header(reply: &StatusReply, style: Style) -> String {
    let mut text = String::new();
    let health = if !reply.hibernated.is_empty() {
        style.paint(Tone::Warn, "hibernated")
    } else if is_healthy(reply) {
        style.paint(Tone::Good, "healthy")
    } else if reply.lock == "open" {
        style.paint(Tone::Warn, "degraded")
    } else {
        style.paint(Tone::Bad, "no open primary")
    };
    let _ = writeln!(text, "Cluster {}: {health}", or(&reply.cluster, "(unnamed)"));
    let _ = writeln!(
        text,
        "  primary {} (lock {})  epoch {}  timeline {}  profile {}",
        or(&reply.primary, "none"),
        or(&reply.lock, "unknown"),
        reply.epoch,
        reply.timeline,
        or(&reply.profile, "?"),
    );
    let _ = writeln!(
        text,
        "  Raft leader {}  answered by {}  id {}  generation {}",
        or(&reply.leader, "unknown"),
        or(&reply.answered_by, "?"),
        or(&reply.cluster_id, "(not founded yet)"),
        reply.generation,
    );
    text.push_str(&commits::line(reply.commits.as_ref(), style));
    if !matches!(reply.failsafe.as_str(), "" | "off") {
        let tone = if reply.failsafe == "ready" { Tone::Good } else { Tone::Warn };
        let _ = writeln!(text, "  failsafe {}", style.paint(tone, &reply.failsafe));
    }
    text
}

fn footer(reply: &StatusReply, style: Style) -> String {
    let mut text = String::new();
    if let Some(operation) = reply.operation.as_ref().filter(|o| !o.finished) {
        let _ = writeln!(text, "\nRunning: {}, phase {}", operation_text(operation), or(&operation.phase, "?"));
    }
    if let Some(last) = &reply.last_operation {
        let outcome = match (last.succeeded, last.reason.as_str()) {
            (true, _) => style.paint(Tone::Good, "succeeded"),
            (false, reason) => {
                format!("{}: {}", style.paint(Tone::Bad, "failed"), plain(or(reason, "no reason given")))
            }
        };
        let _ = writeln!(text, "\nLast operation: {} {outcome}", operation_text(last));
    }
    for (label, tone, lines) in
        [("Hold", Tone::Warn, reply.holds.as_slice()), ("Warning", Tone::Warn, reply.warnings.as_slice())]
    {
        if !lines.is_empty() {
            text.push('\n');
        }
        for line in lines {
            let _ = writeln!(text, "{}: {}", style.paint(tone, label), plain(line));
        }
    }
    text
}

fn operation_text(operation: &OperationStatus) -> String {
    let OperationStatus { id, kind, from, to, .. } = operation;
    if kind == "restart" {
        return format!("restart {id} of {}", or(to, "nobody"));
    }
    format!("{} {id} from {} to {}", or(kind, "operation"), or(from, "nobody"), or(to, "nobody"))
}

fn has_words(member: &MemberStatus) -> bool {
    let words = [&member.stopped, &member.progress, &member.note];
    !member.problems.is_empty() || words.into_iter().any(|words| !words.is_empty())
}

fn member_row(member: &MemberStatus) -> Vec<Cell> {
    let tone = match (member.healthy, member.state.as_str()) {
        (true, _) => Tone::Good,
        (false, "silent" | "crashed" | "stopped") => Tone::Bad,
        (false, _) => Tone::Warn,
    };
    let role = if member.role == "primary" { Tone::Head } else { Tone::Plain };
    let [flushed, replayed] = lag::cells(member);
    let lease = match member.lease_remaining_ms {
        0 => String::new(),
        ms => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
    };
    vec![
        Cell::toned(member.member.as_str(), tone),
        Cell::toned(member.role.as_str(), role),
        Cell::toned(member.state.as_str(), tone),
        Cell::new(number(member.timeline.into())),
        Cell::new(member.lsn.as_str()),
        Cell::new(flushed),
        Cell::new(replayed),
        Cell::new(number(member.epoch)),
        Cell::new(member.raft_role.as_str()),
        Cell::new(lease),
        Cell::new(member.guard.as_str()),
        Cell::new(member.postgres.as_str()),
    ]
}

/// Zero stands for "not known" in timelines and epochs.
fn number(number: u64) -> String {
    if number == 0 { String::new() } else { number.to_string() }
}

fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

/// How a member's PostgreSQL stands to what was committed.
pub(super) fn configuration_json(member: &MemberStatus) -> serde_json::Value {
    let view = crate::rpc::configuration::view_of(member.configuration.clone());
    let pending = view
        .pending
        .iter()
        .map(|p| serde_json::json!({"name": p.name, "running": p.running, "configured": p.configured, "why": p.why}));
    let strays = view.strays.iter().map(|s| serde_json::json!({"name": s.name, "value": s.value, "place": s.place}));
    let (pending, strays): (Vec<_>, Vec<_>) = (pending.collect(), strays.collect());
    serde_json::json!({"pending_restart": pending, "behind_our_back": strays, "problem": view.problem,
        "version": view.version, "refused_version": (view.refused > 0).then_some(view.refused)})
}

// ---- explain, config -----------------------------------------------------------------------------------------

/// The text of `matriarch explain`.
pub fn explain(reply: &ExplainReply) -> String {
    let mut text = String::new();
    for banner in &reply.banners {
        let _ = writeln!(text, "*** {banner} ***");
    }
    let parts = [
        ("What holds it up", &reply.holds, "nothing"),
        ("What was considered", &reply.considered, "nothing"),
        ("What you can do", &reply.next, "nothing needs to be done"),
        ("What happened lately", &reply.incidents, "nothing recorded"),
    ];
    for (title, lines, none) in parts {
        let _ = writeln!(text, "{title}:");
        if lines.is_empty() {
            let _ = writeln!(text, "  {none}");
        }
        for line in lines {
            let _ = writeln!(text, "  - {line}");
        }
    }
    let _ = writeln!(text, "(answered by {})", or(&reply.answered_by, "?"));
    text
}

/// What `matriarch config check` found good.
pub fn config_summary(config: &Config) -> String {
    let members: Vec<String> = config
        .cluster
        .members
        .iter()
        .map(|m| {
            let kind = match (m.witness, m.learner) {
                (true, _) => ", witness",
                (false, true) => ", learner",
                (false, false) => "",
            };
            format!("{} ({}{kind})", m.id, m.manager())
        })
        .collect();
    let here = match config.local() {
        Some((me, _)) => format!("this host is {me}"),
        None => "this host is no member".to_owned(),
    };
    let router = if config.router.is_some() { ", has a router" } else { "" };
    let file = config.file.display();
    let cluster = &config.cluster;
    let mut text = format!("{file}: good\n  cluster {}, profile {}\n", cluster.name, cluster.profile);
    let _ = writeln!(text, "  members {}\n  {here}{router}", members.join(", "));
    for why in cluster.members.iter().filter_map(|m| crate::domain::postgres_settings::no_name(m.id.as_str())) {
        let _ = writeln!(
            text,
            "  warning: {why}; a cluster that has it already goes on without settings of PostgreSQL for all hosts"
        );
    }
    if cluster.insecure {
        text.push_str("  warning: cluster.insecure is on; traffic between the hosts is not encrypted\n");
    }
    text
}

// ---- JSON ----------------------------------------------------------------------------------------------------

#[derive(Serialize)]
struct StatusJson<'a> {
    cluster: &'a str,
    cluster_id: &'a str,
    generation: u64,
    system_identifier: String,
    healthy: bool,
    /// How the whole cluster was stopped by command; absent: it wasn't.
    #[serde(skip_serializing_if = "Option::is_none")]
    hibernated: Option<&'a str>,
    primary: Option<&'a str>,
    lock: &'a str,
    epoch: u64,
    timeline: u32,
    profile: &'a str,
    failsafe: Option<&'a str>,
    commits: Option<commits::CommitsJson<'a>>,
    raft_leader: Option<&'a str>,
    /// Who has the address for standbys.
    reader: Option<&'a str>,
    answered_by: &'a str,
    members: Vec<MemberJson<'a>>,
    banners: &'a [String],
    holds: &'a [String],
    warnings: &'a [String],
    operation: Option<OperationJson<'a>>,
    last_operation: Option<OperationJson<'a>>,
    layers: BTreeMap<&'a str, &'a str>,
}

#[derive(Serialize)]
struct MemberJson<'a> {
    member: &'a str,
    role: &'a str,
    state: &'a str,
    healthy: bool,
    problems: &'a [String],
    progress: Option<&'a str>,
    /// Whom a standby follows.
    upstream: Option<&'a str>,
    /// What operators have set of that.
    note: Option<&'a str>,
    /// How PostgreSQL was stopped by command; absent: it wasn't.
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped: Option<&'a str>,
    timeline: Option<u32>,
    lsn: Option<&'a str>,
    /// Of the primary's WAL, not replayed; the same as `lag.replayed_bytes`.
    lag_bytes: Option<u64>,
    lag: Option<lag::LagJson>,
    epoch: u64,
    raft_role: &'a str,
    lease_remaining_ms: Option<u64>,
    guard: Option<&'a str>,
    fence: Option<FenceJson<'a>>,
    postgres: &'a str,
    manager: &'a str,
    server_version: Option<u32>,
    layers: BTreeMap<&'a str, &'a str>,
    room: Option<room::RoomJson>,
    archive: Option<archive::ArchiveJson<'a>>,
}

#[derive(Serialize)]
struct FenceJson<'a> {
    method: &'a str,
    kill_micros: Option<u64>,
    memory: &'a str,
    priority: &'a str,
    oom_score: &'a str,
}

#[derive(Serialize)]
struct OperationJson<'a> {
    id: u64,
    kind: &'a str,
    from: Option<&'a str>,
    to: Option<&'a str>,
    phase: &'a str,
    finished: bool,
    succeeded: bool,
    reason: Option<&'a str>,
}

#[derive(Serialize)]
struct ExplainJson<'a> {
    banners: &'a [String],
    holds: &'a [String],
    considered: &'a [String],
    next: &'a [String],
    incidents: &'a [String],
    answered_by: &'a str,
}

fn known(text: &str) -> Option<&str> {
    Some(text).filter(|t| !t.is_empty())
}

fn member_json(member: &MemberStatus) -> MemberJson<'_> {
    MemberJson {
        member: &member.member,
        role: &member.role,
        state: &member.state,
        healthy: member.healthy,
        problems: &member.problems,
        progress: known(&member.progress),
        upstream: known(&member.upstream),
        note: known(&member.note),
        stopped: known(&member.stopped),
        timeline: Some(member.timeline).filter(|t| *t != 0),
        lsn: known(&member.lsn),
        lag_bytes: member.lag_known.then_some(member.lag_bytes),
        lag: lag::json(member),
        epoch: member.epoch,
        raft_role: &member.raft_role,
        lease_remaining_ms: Some(member.lease_remaining_ms).filter(|ms| *ms != 0),
        guard: known(&member.guard),
        fence: member.fence.as_ref().filter(|f| !f.method.is_empty()).map(fence_json),
        postgres: &member.postgres,
        manager: &member.manager,
        server_version: Some(member.server_version).filter(|v| *v != 0),
        layers: layers_json(&member.layers),
        room: member.room.as_ref().map(room::json),
        archive: member.archive.as_ref().map(archive::json),
    }
}

fn fence_json(fence: &Fence) -> FenceJson<'_> {
    FenceJson {
        method: &fence.method,
        kill_micros: Some(fence.kill_micros).filter(|us| *us != 0),
        memory: &fence.memory,
        priority: &fence.priority,
        oom_score: &fence.oom,
    }
}

fn layers_json(layers: &[Layer]) -> BTreeMap<&str, &str> {
    layers.iter().map(|l| (l.name.as_str(), l.state.as_str())).collect()
}

fn operation_json(operation: &OperationStatus) -> OperationJson<'_> {
    OperationJson {
        id: operation.id,
        kind: &operation.kind,
        from: known(&operation.from),
        to: known(&operation.to),
        phase: &operation.phase,
        finished: operation.finished,
        succeeded: operation.succeeded,
        reason: known(&operation.reason),
    }
}

/// `matriarch status --json`. `null` stands for what is not known.
pub fn status_json(reply: &StatusReply) -> String {
    json(&StatusJson {
        cluster: &reply.cluster,
        cluster_id: &reply.cluster_id,
        generation: reply.generation,
        // As text, because it doesn't fit into the numbers of JavaScript.
        system_identifier: reply.system_identifier.to_string(),
        healthy: is_healthy(reply),
        hibernated: known(&reply.hibernated),
        primary: known(&reply.primary),
        lock: &reply.lock,
        epoch: reply.epoch,
        timeline: reply.timeline,
        profile: &reply.profile,
        failsafe: known(&reply.failsafe),
        commits: reply.commits.as_ref().map(commits::CommitsJson::from),
        raft_leader: known(&reply.leader),
        reader: known(&reply.reader),
        answered_by: &reply.answered_by,
        members: reply.members.iter().map(member_json).collect(),
        holds: &reply.holds,
        warnings: &reply.warnings,
        banners: &reply.banners,
        operation: reply.operation.as_ref().map(operation_json),
        last_operation: reply.last_operation.as_ref().map(operation_json),
        layers: layers_json(&reply.layers),
    })
}

/// `matriarch explain --json`.
pub fn explain_json(reply: &ExplainReply) -> String {
    json(&ExplainJson {
        banners: &reply.banners,
        holds: &reply.holds,
        considered: &reply.considered,
        next: &reply.next,
        incidents: &reply.incidents,
        answered_by: &reply.answered_by,
    })
}

/// The document as `--output` asks for it; JSON where nothing was asked.
pub(super) fn json(value: &impl Serialize) -> String {
    super::output::document(value)
}

// ---- preflight -----------------------------------------------------------------------------------------------

/// How one check of this host went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// Works, with less protection or speed.
    Warn,
    /// Has to be corrected first.
    Fail,
}

/// One check of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// How it went.
    pub outcome: Outcome,
    /// What was found, and what to do.
    pub detail: String,
}

/// The table of `matriarch preflight`.
pub fn preflight(checks: &[Check], style: Style) -> String {
    let row = |check: &Check| {
        let (mark, tone) = match check.outcome {
            Outcome::Ok => ("ok", Tone::Good),
            Outcome::Warn => ("WARN", Tone::Warn),
            Outcome::Fail => ("FAIL", Tone::Bad),
        };
        vec![Cell::toned(mark, tone), Cell::new(check.name.as_str()), Cell::new(check.detail.as_str())]
    };
    let rows: Vec<Vec<Cell>> = checks.iter().map(row).collect();
    let mut text = table(&[("RESULT", false), ("CHECK", false), ("FOUND", false)], &rows, style);
    let count = |outcome| checks.iter().filter(|c| c.outcome == outcome).count();
    let (failed, warned) = (count(Outcome::Fail), count(Outcome::Warn));
    let verdict = if failed == 0 { "fit" } else { "not fit" };
    let _ =
        writeln!(text, "\nThis host is {verdict}: {failed} failed, {warned} warned, {} passed.", count(Outcome::Ok));
    text
}

/// `matriarch preflight --json`.
pub fn preflight_json(checks: &[Check]) -> String {
    #[derive(Serialize)]
    struct Report<'a> {
        fit: bool,
        checks: &'a [Check],
    }
    json(&Report { fit: checks.iter().all(|c| c.outcome != Outcome::Fail), checks })
}

/// What a standby has not flushed and what it has not replayed, for a table.
pub(super) fn lag_cells(member: &MemberStatus) -> [String; 2] {
    lag::cells(member)
}

// ---- members -------------------------------------------------------------------------------------------------

/// `matriarch member list --json`.
pub fn voters_json(status: &StatusReply) -> String {
    #[derive(Serialize)]
    struct Node<'a> {
        member: &'a str,
        node: Option<u64>,
        votes: bool,
        votes_after_change: bool,
    }
    #[derive(Serialize)]
    struct Members<'a> {
        members: Vec<Node<'a>>,
    }
    fn nodes_of<'a>(status: &'a StatusReply, member: &'a MemberStatus) -> Vec<Node<'a>> {
        let nodes = status.voters.iter().filter(|v| v.member == member.member);
        let mut nodes: Vec<Node<'_>> = nodes
            .map(|v| Node { member: &v.member, node: Some(v.node), votes: v.old, votes_after_change: v.new })
            .collect();
        if nodes.is_empty() {
            nodes.push(Node { member: &member.member, node: None, votes: false, votes_after_change: false });
        }
        nodes
    }
    json(&Members { members: status.members.iter().flat_map(|m| nodes_of(status, m)).collect() })
}

/// The members and their Raft nodes. A member can have two while one replaces the other.
pub fn voters(status: &StatusReply) -> String {
    let joint = status.voters.iter().any(|v| !(v.old && v.new));
    let votes = |old: bool, new: bool| match (old, new) {
        (true, true) => "yes",
        (true, false) => "until the group has changed",
        (false, true) => "as soon as the group has changed",
        (false, false) => "no",
    };
    let mut rows = Vec::new();
    for member in &status.members {
        let nodes: Vec<_> = status.voters.iter().filter(|v| v.member == member.member).collect();
        if nodes.is_empty() {
            rows.push(vec![Cell::new(member.member.clone()), Cell::new(""), Cell::new("no")]);
        }
        for voter in nodes {
            let words = if joint { votes(voter.old, voter.new) } else { "yes" };
            rows.push(vec![Cell::new(member.member.clone()), Cell::new(voter.node.to_string()), Cell::new(words)]);
        }
    }
    table(&[("MEMBER", false), ("NODE", true), ("VOTES", false)], &rows, Style::Plain)
}
