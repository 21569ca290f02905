//! `matriarch operations` and `rolling-restart`, and what `--scheduled` and `--dry-run` do.

use std::fmt::Write as _;

use clap::{Args, Subcommand};
use serde::Serialize;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{
    args::{ClientArgs, OperationArgs},
    client::{Client, ClientError, target},
    complain, complain_client,
    exit::{self, Exit},
    history::time_of,
    operations::{POLL, SILENCE, confirmed, reach},
    print, render,
    settings::who,
};
use crate::{
    domain::when::{self, NoTime},
    rpc::v1::{
        CancelOperationRequest, OperationKind, OperationRecord, OperationReply, PlanOperationReply,
        PlanOperationRequest, RollingRestartRequest, ScheduleOperationRequest,
    },
};

/// When an operation begins, or that it doesn't.
#[derive(Debug, Args)]
pub struct LaterArgs {
    /// Begin then and not at once: a time with its offset to UTC, e.g. 2026-12-01T03:00:00+01:00, or `now`
    #[arg(long, value_name = "TIME", conflicts_with = "dry_run")]
    pub scheduled: Option<String>,
    /// Check all that a real one would, say what it would do, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct OperationsArgs {
    #[command(subcommand)]
    pub command: OperationsCommand,
}

#[derive(Debug, Subcommand)]
pub enum OperationsCommand {
    /// Show what is scheduled, what is under way and what the last ones came to
    List {
        #[command(flatten)]
        client: ClientArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one with its phases, deadline and result
    Show {
        /// Its number
        #[arg(value_name = "ID")]
        id: u64,
        #[command(flatten)]
        client: ClientArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Take back what is scheduled, or what is under way and can be rolled back still
    Cancel {
        /// Its number
        #[arg(value_name = "ID")]
        id: u64,
        #[command(flatten)]
        client: ClientArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub struct RollingRestartArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// Only members whose settings wait for a restart
    #[arg(long)]
    pub pending: bool,
    /// `standbys`: leave the primary as it is
    #[arg(long, value_name = "WHICH", value_parser = ["standbys"], conflicts_with_all = ["switchover", "in_place"])]
    pub only: Option<String>,
    /// The best standby takes over from the primary, which is restarted by that (the default; in place and before the
    /// standbys, when max_connections or another setting of which no standby may have less falls; after those that need
    /// more of another one first)
    #[arg(long, conflicts_with = "in_place")]
    pub switchover: bool,
    /// The primary is restarted under its lease and stays primary
    #[arg(long)]
    pub in_place: bool,
    #[command(flatten)]
    pub operation: OperationArgs,
}

pub(super) async fn operations(command: OperationsCommand) -> Exit {
    match command {
        OperationsCommand::List { client, json } => list(&client, json).await,
        OperationsCommand::Show { id, client, json } => show(&client, id, json).await,
        OperationsCommand::Cancel { id, client, json } => cancel(&client, id, json).await,
    }
}

async fn ask(client: &ClientArgs) -> Result<Vec<OperationRecord>, ClientError> {
    Ok(Client::new(client)?.operations().await?.operations)
}

async fn list(client: &ClientArgs, json: bool) -> Exit {
    match ask(client).await {
        Ok(all) => {
            print(&match json {
                true => render::json(&all.iter().map(RecordJson::of).collect::<Vec<_>>()),
                false => table(&all),
            });
            exit::OK
        }
        Err(error) => complain_client(&error),
    }
}

async fn show(client: &ClientArgs, id: u64, json: bool) -> Exit {
    match ask(client).await.map(|all| all.into_iter().find(|record| record.id == id)) {
        Ok(Some(record)) => {
            print(&if json { render::json(&RecordJson::of(&record)) } else { whole(&record) });
            exit::OK
        }
        Ok(None) => {
            complain(&format!("operation {id} is not remembered; see `matriarch operations list`"), exit::FAILED)
        }
        Err(error) => complain_client(&error),
    }
}

async fn cancel(client: &ClientArgs, id: u64, json: bool) -> Exit {
    #[derive(Serialize)]
    struct Json<'a> {
        cancelled: bool,
        id: u64,
        says: &'a str,
    }
    let (to, by, request_id) = (Some(target("", 0)), who(), Uuid::now_v7().to_string());
    let request = CancelOperationRequest { to, id, by, request_id };
    let reply = match Client::new(client) {
        Ok(client) => client.cancel_operation(request).await,
        Err(error) => Err(error),
    };
    match reply {
        Ok(reply) if reply.done => {
            let says = reply.says.as_str();
            print(&if json {
                render::json(&Json { cancelled: true, id, says })
            } else {
                format!("cancelled: {says}\n")
            });
            exit::OK
        }
        Ok(reply) if json => {
            print(&render::json(&Json { cancelled: false, id, says: &reply.reason }));
            exit::FAILED
        }
        Ok(reply) => complain(&format!("operation {id} is not cancelled: {}", reply.reason), exit::FAILED),
        Err(error) => complain_client(&error),
    }
}

/// What it is about: `n1 -> n2`, `n3`, `2 of 3 done`.
fn about(record: &OperationRecord) -> String {
    match (record.from.as_str(), record.to.as_str(), record.kind.as_str()) {
        _ if !record.done.is_empty() || !record.left.is_empty() => {
            format!("{} of {} done", record.done.len(), record.done.len() + record.left.len())
        }
        (_, "", "rolling-restart") => String::new(),
        (_, to, "restart") => to.to_owned(),
        ("", "", _) => "-> the best standby".to_owned(),
        (from, "", _) => format!("{from} -> the best standby"),
        ("", to, _) => format!("-> {to}"),
        (from, to, _) => format!("{from} -> {to}"),
    }
}

fn time_shown(record: &OperationRecord) -> String {
    time_of([record.began_ms, record.scheduled_ms].into_iter().find(|ms| *ms != 0).unwrap_or(0))
}

fn table(all: &[OperationRecord]) -> String {
    if all.is_empty() {
        return "no operation is scheduled, under way or remembered\n".to_owned();
    }
    let row = |r: &OperationRecord| {
        let phase = r.phases.last().map(|p| p.phase.as_str()).filter(|_| r.state == "running").unwrap_or_default();
        let state = if phase.is_empty() { r.state.clone() } else { format!("{}, {phase}", r.state) };
        [r.id.to_string(), r.kind.clone(), about(r), state, time_shown(r), r.reason.clone()]
    };
    let head = ["ID", "KIND", "MEMBERS", "STATE", "BEGAN OR BEGINS", "RESULT"].map(str::to_owned);
    let rows: Vec<[String; 6]> = std::iter::once(head).chain(all.iter().map(row)).collect();
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; 6]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn whole(r: &OperationRecord) -> String {
    let mut text = format!("operation {}: {} {}\n", r.id, r.kind, about(r)).replace(" \n", "\n");
    let mut say = |key: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "  {key:<10} {value}");
        }
    };
    say("state", &r.state);
    say("by", &r.by);
    say("part of", &if r.part_of == 0 { String::new() } else { format!("operation {}", r.part_of) });
    say("scheduled", &time_of(r.scheduled_ms));
    say("began", &time_of(r.began_ms));
    for phase in &r.phases {
        say("phase", &format!("{} {}", time_of(phase.at_ms), phase.phase));
    }
    say("restarted", &r.done.join(", "));
    say("left", &r.left.join(", "));
    say("waits for", &r.waits_for);
    say("deadline", &time_of(r.deadline_ms));
    say("ended", &time_of(r.ended_ms));
    say("reason", &r.reason);
    say("cancel", if r.can_be_cancelled { "can be taken back: `matriarch operations cancel`" } else { "" });
    text
}

#[derive(Serialize)]
struct PhaseJson<'a> {
    phase: &'a str,
    at: String,
}

/// Times in RFC 3339; null where there is none.
#[derive(Serialize)]
struct RecordJson<'a> {
    id: u64,
    kind: &'a str,
    state: &'a str,
    from: Option<&'a str>,
    to: Option<&'a str>,
    part_of: Option<u64>,
    by: Option<&'a str>,
    request_id: &'a str,
    scheduled: Option<String>,
    began: Option<String>,
    ended: Option<String>,
    phases: Vec<PhaseJson<'a>>,
    deadline: Option<String>,
    waits_for: Option<&'a str>,
    reason: Option<&'a str>,
    restarted: &'a [String],
    left: &'a [String],
    can_be_cancelled: bool,
}

fn given(text: &str) -> Option<&str> {
    Some(text).filter(|t| !t.is_empty())
}

impl RecordJson<'_> {
    fn of(r: &OperationRecord) -> RecordJson<'_> {
        let time = |ms| Some(time_of(ms)).filter(|t| !t.is_empty());
        RecordJson {
            id: r.id,
            kind: &r.kind,
            state: &r.state,
            from: given(&r.from),
            to: given(&r.to),
            part_of: Some(r.part_of).filter(|of| *of != 0),
            by: given(&r.by),
            request_id: &r.request_id,
            scheduled: time(r.scheduled_ms),
            began: time(r.began_ms),
            ended: time(r.ended_ms),
            phases: r.phases.iter().map(|p| PhaseJson { phase: &p.phase, at: time_of(p.at_ms) }).collect(),
            deadline: time(r.deadline_ms),
            waits_for: given(&r.waits_for),
            reason: given(&r.reason),
            restarted: &r.done,
            left: &r.left,
            can_be_cancelled: r.can_be_cancelled,
        }
    }
}

/// What is asked for: its kind, and the member that is named.
pub(super) type Meant<'a> = (OperationKind, &'a str);

fn word(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::Failover => "failover",
        OperationKind::Restart => "restart",
        _ => "switchover",
    }
}

/// `--dry-run`.
pub(super) async fn rehearse(client: &ClientArgs, (kind, member): Meant<'_>, allow_loss: bool, json: bool) -> Exit {
    let request = PlanOperationRequest {
        to: Some(target("", 0)),
        kind: kind as i32,
        from: String::new(),
        member: member.to_owned(),
        allow_data_loss: allow_loss,
    };
    let reply = match Client::new(client) {
        Ok(client) => client.plan_operation(request).await,
        Err(error) => Err(error),
    };
    match reply {
        Ok(plan) => told(word(kind), &plan, json),
        Err(error) => complain_client(&error),
    }
}

fn told(kind: &str, plan: &PlanOperationReply, json: bool) -> Exit {
    #[derive(Serialize)]
    struct Json<'a> {
        operation: &'a str,
        dry_run: bool,
        possible: bool,
        from: Option<&'a str>,
        to: Option<&'a str>,
        lag_bytes: Option<u64>,
        writes_wait_at_most_ms: Option<u64>,
        says: &'a [String],
        reason: Option<&'a str>,
    }
    let exit = if plan.possible { exit::OK } else { exit::FAILED };
    if json {
        print(&render::json(&Json {
            operation: kind,
            dry_run: true,
            possible: plan.possible,
            from: given(&plan.from),
            to: given(&plan.to),
            lag_bytes: plan.lag_bytes,
            writes_wait_at_most_ms: plan.possible.then_some(plan.at_most_ms),
            says: &plan.says,
            reason: given(&plan.reason),
        }));
        return exit;
    }
    if !plan.possible {
        return complain(&format!("{kind} would be refused: {}", plan.reason), exit);
    }
    let mut text = match kind {
        "restart" => format!("restart of {} would begin; nothing was changed\n", plan.to),
        _ => format!("{kind} from {} to {} would begin; nothing was changed\n", plan.from, plan.to),
    };
    for line in &plan.says {
        let _ = writeln!(text, "  - {line}");
    }
    let wait = match plan.at_most_ms {
        0 => "writes don't wait".to_owned(),
        ms => format!("writes wait {:.0} s at most, mostly much less", ms as f64 / 1_000.0),
    };
    let _ = writeln!(text, "  - {wait}");
    print(&text);
    exit
}

/// The time that `--scheduled` names, in milliseconds since 1970; `None`: now.
pub(super) fn time(scheduled: Option<&str>) -> Result<Option<u64>, Exit> {
    let Some(text) = scheduled.filter(|text| !text.trim().eq_ignore_ascii_case("now")) else { return Ok(None) };
    when::parse(text, 0).map(Some).map_err(|why| {
        let why = match why {
            NoTime::NoZone => "it says no offset to UTC",
            NoTime::Unreadable => "it is no time",
        };
        let example = "write e.g. 2026-12-01T03:00:00+01:00, 2026-12-01T02:00Z or now";
        complain(&format!("--scheduled {text}: {why}; {example}; nothing was changed"), exit::USAGE)
    })
}

/// `--scheduled`.
pub(super) async fn schedule(
    client: &ClientArgs,
    (kind, member): Meant<'_>,
    at_ms: u64,
    operation: &OperationArgs,
) -> Exit {
    let (client, status) = match reach(client, operation).await {
        Ok(reached) => reached,
        Err(exit) => return exit,
    };
    let what = word(kind);
    if !operation.yes && !confirmed(&format!("Schedule a {what} for {}?", when::utc(at_ms))) {
        return complain("not confirmed; nothing was changed", exit::FAILED);
    }
    let request = ScheduleOperationRequest {
        to: Some(target(&status.cluster_id, status.generation)),
        kind: kind as i32,
        from: String::new(),
        member: member.to_owned(),
        at_ms,
        by: who(),
        request_id: Uuid::now_v7().to_string(),
    };
    match accepted((what, what), client.schedule_operation(request).await, operation.json) {
        Ok(reply) if operation.json => {
            let (id, state) = (Some(reply.id), "scheduled");
            print(&render::json(&SteppedJson { operation: what, id, state, reason: None }));
            exit::OK
        }
        Ok(reply) => {
            let (id, at) = (reply.id, when::utc(at_ms));
            print(&format!(
                "{what} scheduled for {at} as operation {id}; `matriarch operations cancel {id}` takes it back\n"
            ));
            exit::OK
        }
        Err(exit) => exit,
    }
}

#[derive(Serialize)]
struct SteppedJson<'a> {
    operation: &'a str,
    /// Null: it is refused.
    id: Option<u64>,
    state: &'a str,
    reason: Option<&'a str>,
}

fn accepted(
    (what, operation): (&str, &str),
    reply: Result<OperationReply, ClientError>,
    json: bool,
) -> Result<OperationReply, Exit> {
    match reply {
        Ok(reply) if reply.accepted => Ok(reply),
        Ok(reply) if json => {
            let (id, state, reason) = (None, "refused", Some(reply.reason.as_str()));
            print(&render::json(&SteppedJson { operation, id, state, reason }));
            Err(exit::FAILED)
        }
        Ok(reply) => Err(complain(&format!("{what} refused: {}", reply.reason), exit::FAILED)),
        Err(ClientError::NobodyReached { tried, maybe_received: true }) => {
            let tried = tried.join("; ");
            let told = format!(
                "nobody confirmed the {what}, it may be there still; see `matriarch operations list` ({tried})"
            );
            Err(complain(&told, exit::UNREACHABLE))
        }
        Err(error) => Err(complain_client(&error)),
    }
}

/// `matriarch rolling-restart`.
pub(super) async fn rolling_restart(args: RollingRestartArgs) -> Exit {
    let operation = &args.operation;
    let (client, status) = match reach(&args.client, operation).await {
        Ok(reached) => reached,
        Err(exit) => return exit,
    };
    let which = if args.pending { "each member whose settings wait for it" } else { "each member" };
    let primary = match (&args.only, args.in_place) {
        (Some(_), _) => "the primary is left as it is",
        (None, true) => "the primary comes last, in place; first, if standbys can't have less before it",
        (None, false) => {
            "the primary comes last, by a switchover; first and in place, if standbys can't have less before it"
        }
    };
    if !operation.yes && !confirmed(&format!("Restart PostgreSQL of {which}, one after the other? {primary}.")) {
        return complain("not confirmed; nothing was changed", exit::FAILED);
    }
    let request = RollingRestartRequest {
        to: Some(target(&status.cluster_id, status.generation)),
        pending: args.pending,
        standbys: args.only.is_some(),
        in_place: args.in_place,
        by: who(),
        request_id: Uuid::now_v7().to_string(),
    };
    let (json, name) = (operation.json, "rolling-restart");
    let id = match accepted(("rolling restart", name), client.rolling_restart(request).await, json) {
        Ok(reply) => reply.id,
        Err(exit) => return exit,
    };
    if !json {
        print(&format!("rolling restart {id} accepted\n"));
    }
    let began = Instant::now();
    let ended = if operation.no_wait { None } else { follow(&client, id, operation).await };
    match ended {
        Some(r) if json => {
            print(&render::json(&SteppedJson {
                operation: name,
                id: Some(id),
                state: &r.state,
                reason: given(&r.reason),
            }));
            if r.state == "succeeded" { exit::OK } else { exit::FAILED }
        }
        Some(r) if r.state == "succeeded" => {
            print(&format!("rolling restart {id} done: {}\n", r.reason));
            exit::OK
        }
        Some(r) => complain(&format!("rolling restart {id} {}: {}", r.state, r.reason), exit::FAILED),
        None => {
            if json {
                print(&render::json(&SteppedJson { operation: name, id: Some(id), state: "running", reason: None }));
            }
            if operation.no_wait {
                return exit::OK;
            }
            let so_far = format!(
                "rolling restart {id} was not seen to end within {} s; see `matriarch operations show {id}`",
                began.elapsed().as_secs()
            );
            complain(&so_far, exit::FAILED)
        }
    }
}

/// Until it ends, at most so long; its steps and what it waits for are printed unless JSON is wanted.
async fn follow(client: &Client, id: u64, args: &OperationArgs) -> Option<OperationRecord> {
    let (began, mut heard, mut shown) = (Instant::now(), Instant::now(), String::new());
    while began.elapsed() < args.patience("rolling restart") && heard.elapsed() < SILENCE {
        // Whoever is asked may be dying right now; the next one knows.
        let answer = client.operations().await;
        heard = if answer.is_ok() { Instant::now() } else { heard };
        let all = answer.map(|reply| reply.operations).unwrap_or_default();
        // It is over, and so many came after it that nobody remembers how.
        if all.iter().any(|r| r.id > id) && all.iter().all(|r| r.id != id) {
            return None;
        }
        if let Some(ended) = all.iter().find(|r| r.id == id && r.state != "running") {
            return Some(ended.clone());
        }
        let step = all.iter().find(|r| r.part_of == id && r.state == "running");
        let now = match (step, all.iter().find(|r| r.id == id)) {
            (Some(step), _) => {
                let phase = step.phases.last().map(|p| p.phase.as_str()).unwrap_or_default();
                format!("{} {} {}: {phase}", step.kind, step.id, about(step))
            }
            (None, Some(whole)) => whole.waits_for.clone(),
            (None, None) => String::new(),
        };
        if !args.json && !now.is_empty() && now != shown {
            print(&format!("  {:5.1} s  {now}\n", began.elapsed().as_secs_f64()));
            shown = now;
        }
        sleep(POLL).await;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_and_one_of_its_rows() {
        let scheduled = OperationRecord {
            id: 9,
            kind: "switchover".into(),
            state: "scheduled".into(),
            scheduled_ms: 1_795_878_000_000,
            by: "kim".into(),
            can_be_cancelled: true,
            ..Default::default()
        };
        let phase = |phase: &str, at_ms| crate::rpc::v1::PassedPhase { phase: phase.into(), at_ms };
        let running = OperationRecord {
            id: 8,
            kind: "restart".into(),
            state: "running".into(),
            from: "n1".into(),
            to: "n2".into(),
            began_ms: 1_795_877_000_000,
            phases: vec![phase("stop", 1_795_877_000_000)],
            part_of: 7,
            ..Default::default()
        };
        expect_test::expect![[r#"
            ID  KIND        MEMBERS              STATE          BEGAN OR BEGINS       RESULT
            9   switchover  -> the best standby  scheduled      2026-11-28T15:00:00Z
            8   restart     n2                   running, stop  2026-11-28T14:43:20Z
        "#]]
        .assert_eq(&table(&[scheduled.clone(), running.clone()]));
        assert!(whole(&running).contains("  part of    operation 7\n  began      2026-11-28T14:43:20Z\n  phase      "));
        assert!(
            whole(&scheduled)
                .starts_with("operation 9: switchover -> the best standby\n  state      scheduled\n  by         kim\n")
        );
        assert!(table(&[]).starts_with("no operation is scheduled"));
    }
}
