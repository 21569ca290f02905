//! Switchover, failover and restart: ask once, then watch until it is finished.

use std::{
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    time::Duration,
};

use serde::Serialize;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{
    agenda,
    args::{ClientArgs, FailoverArgs, OperationArgs, SwitchoverArgs},
    args_verbs::RestartArgs,
    client::{Client, ClientError, target},
    complain, complain_client,
    exit::{self, Exit},
    print, render,
};
use crate::rpc::v1::{
    FailoverRequest, OperationKind, OperationRecord, OperationReply, OperationStatus, RestartRequest, StatusReply,
    SwitchoverRequest,
};

/// Between two looks at a running operation.
pub(super) const POLL: Duration = Duration::from_millis(200);
/// What has no other limit is waited for as long as some manager answers now and then.
pub(super) const SILENCE: Duration = Duration::from_secs(180);
/// How often the progress of a copy is shown.
const PROGRESS: Duration = Duration::from_secs(5);

pub(super) async fn switchover(args: SwitchoverArgs) -> Exit {
    let candidate = args.candidate.unwrap_or_default();
    let meant = (OperationKind::Switchover, candidate.as_str());
    if args.later.dry_run {
        return agenda::rehearse(&args.client, meant, false, args.operation.json).await;
    }
    match agenda::time(args.later.scheduled.as_deref()) {
        Ok(None) => {}
        Ok(Some(at_ms)) => return agenda::schedule(&args.client, meant, at_ms, &args.operation).await,
        Err(exit) => return exit,
    }
    let wanted = if candidate.is_empty() { "the best standby" } else { &candidate };
    let question = |status: &StatusReply| format!("Switch over from {} to {wanted}?", primary(status));
    let (client, status) = match prepare(&args.client, &args.operation, question).await {
        Ok(prepared) => prepared,
        Err(exit) => return exit,
    };
    let to = Some(target(&status.cluster_id, status.generation));
    let request_id = Uuid::now_v7().to_string();
    let request = SwitchoverRequest { to, candidate, request_id, from: String::new() };
    let reply = client.switchover(request).await;
    follow(&client, "switchover", reply, &args.operation).await
}

pub(super) async fn failover(args: FailoverArgs) -> Exit {
    let candidate = args.candidate.clone();
    if args.dry_run {
        let meant = (OperationKind::Failover, candidate.as_str());
        return agenda::rehearse(&args.client, meant, args.allow_data_loss, args.operation.json).await;
    }
    let ask = |status: &StatusReply, request_id| FailoverRequest {
        to: Some(target(&status.cluster_id, status.generation)),
        candidate: candidate.clone(),
        request_id,
        allow_data_loss: args.allow_data_loss,
    };
    let (client, status) = match reach(&args.client, &args.operation).await {
        Ok(reached) => reached,
        Err(exit) => return exit,
    };
    // No question about what the leader refuses anyway; without one it says so itself.
    if primary(&status) == candidate && !args.operation.yes {
        let why = format!("{candidate} is the primary already");
        return match args.operation.json {
            true => tell("failover", &OperationReply::default(), Some(false), &why),
            false => complain(&format!("failover refused: {why}"), exit::FAILED),
        };
    }
    let agreed = match (args.allow_data_loss, args.operation.yes) {
        (false, true) => true,
        (false, false) => confirmed(&failover_question(primary(&status), &candidate)),
        (true, yes) => match client.failover_loss(ask(&status, String::new())).await {
            Ok(loss) if !loss.reason.is_empty() => {
                return match args.operation.json {
                    true => tell("failover", &OperationReply::default(), Some(false), &loss.reason),
                    false => complain(&format!("failover refused: {}", loss.reason), exit::FAILED),
                };
            }
            Ok(loss) => accepted((primary(&status), &candidate), &loss.says, yes),
            Err(error) => return complain_client(&error),
        },
    };
    if !agreed {
        return complain("not confirmed; nothing was changed", exit::FAILED);
    }
    let reply = client.failover(ask(&status, Uuid::now_v7().to_string())).await;
    follow(&client, "failover", reply, &args.operation).await
}

fn failover_question(primary: &str, candidate: &str) -> String {
    format!(
        "Fail over from {primary} to {candidate}? What only {primary} has is lost to the cluster; \
         when {primary} is well, `matriarch switchover` loses nothing."
    )
}

/// Says what is lost, and has it accepted by a word that nobody types by habit; `yes`: it is.
fn accepted((primary, candidate): (&str, &str), loss: &str, yes: bool) -> bool {
    eprintln!("Fail over from {primary} to {candidate}: {loss}. What {candidate} lacks is lost to the cluster.");
    if yes {
        return true;
    }
    eprint!("Type {candidate} to accept that: ");
    typed().is_some_and(|answer| answer == candidate)
}

pub(super) async fn restart(args: RestartArgs) -> Exit {
    let member = args.member;
    let meant = (OperationKind::Restart, member.as_str());
    if args.later.dry_run {
        return agenda::rehearse(&args.client, meant, args.force, args.operation.json).await;
    }
    match agenda::time(args.later.scheduled.as_deref()) {
        Ok(None) => {}
        Ok(Some(at_ms)) => return agenda::schedule(&args.client, meant, at_ms, &args.operation).await,
        Err(exit) => return exit,
    }
    let question = |status: &StatusReply| match status.primary == member {
        true => format!(
            "Restart PostgreSQL of {member}, the primary? Its sessions end, and writes wait until it runs again."
        ),
        false => format!("Restart PostgreSQL of {member}? Its sessions end."),
    };
    let (client, status) = match prepare(&args.client, &args.operation, question).await {
        Ok(prepared) => prepared,
        Err(exit) => return exit,
    };
    let to = Some(target(&status.cluster_id, status.generation));
    let request = RestartRequest { to, member, request_id: Uuid::now_v7().to_string(), force: args.force };
    let reply = client.restart(request).await;
    follow(&client, "restart", reply, &args.operation).await
}

/// Moves the Raft leader. Harmless, so nobody is asked.
pub(super) async fn transfer_leader(member: String, args: ClientArgs) -> Exit {
    let moved = match Client::new(&args) {
        Ok(client) => client.transfer_leader(&member).await,
        Err(error) => Err(error),
    };
    match moved {
        Ok(reply) if reply.done => {
            print(&format!("{member} leads Raft; before: {}\n", or_nobody(&reply.leader)));
            exit::OK
        }
        Ok(reply) => complain(&format!("the Raft leader was not moved to {member}: {}", reply.reason), exit::FAILED),
        Err(error) => complain_client(&error),
    }
}

fn primary(status: &StatusReply) -> &str {
    if status.primary.is_empty() { "no primary" } else { &status.primary }
}

/// Finds the cluster, and asks the operator unless told not to.
async fn prepare(
    client: &ClientArgs,
    operation: &OperationArgs,
    question: impl FnOnce(&StatusReply) -> String,
) -> Result<(Client, StatusReply), Exit> {
    let (client, status) = reach(client, operation).await?;
    if !operation.yes && !confirmed(&question(&status)) {
        return Err(complain("not confirmed; nothing was changed", exit::FAILED));
    }
    Ok((client, status))
}

/// Finds the cluster, if somebody is there to confirm what changes it.
pub(super) async fn reach(client: &ClientArgs, operation: &OperationArgs) -> Result<(Client, StatusReply), Exit> {
    let client = Client::new(client).map_err(|error| complain_client(&error))?;
    if !operation.yes && !io::stdin().is_terminal() {
        return Err(complain("there is no terminal to ask for confirmation; use --yes", exit::USAGE));
    }
    let status = client.status(false).await.map_err(|error| complain_client(&error))?;
    Ok((client, status))
}

pub(super) fn confirmed(question: &str) -> bool {
    eprint!("{question} [y/N] ");
    typed().is_some_and(|answer| matches!(answer.as_str(), "y" | "Y" | "yes"))
}

/// Has the operator type the name of what is about to be changed.
pub(super) fn named(member: &str) -> bool {
    eprint!("Type {member} to confirm that: ");
    typed().is_some_and(|answer| answer == member)
}

/// A line from the terminal; an unreadable answer is none.
fn typed() -> Option<String> {
    let _ = io::stderr().flush();
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).ok()?;
    Some(answer.trim().to_owned())
}

pub(super) async fn follow(
    client: &Client,
    kind: &str,
    reply: Result<OperationReply, ClientError>,
    args: &OperationArgs,
) -> Exit {
    let reply = match reply {
        Ok(reply) => reply,
        Err(ClientError::NobodyReached { tried, maybe_received: true }) => {
            let tried = tried.join("; ");
            let what = format!("nobody confirmed the {kind}, it may still happen; see `matriarch status` ({tried})");
            return complain(&what, exit::UNREACHABLE);
        }
        Err(error) => return complain_client(&error),
    };
    if !reply.accepted && args.json {
        return tell(kind, &reply, Some(false), &reply.reason);
    }
    if !reply.accepted {
        return complain(&format!("{kind} refused: {}", reply.reason), exit::FAILED);
    }
    if args.json {
        return follow_in_json(client, kind, &reply, args).await;
    }
    let of_one = kind == "restart" || kind == "reinit";
    let of_all = kind == "stop" || kind == "start";
    print(&match of_one {
        _ if of_all => format!("{kind} {} of the whole cluster accepted\n", reply.id),
        true => format!("{kind} {} of {} accepted\n", reply.id, reply.to),
        false => {
            format!("{kind} {} from {} to {} accepted\n", reply.id, or_nobody(&reply.from), or_nobody(&reply.to))
        }
    });
    if args.no_wait {
        return exit::OK;
    }
    let started = Instant::now();
    let ending = wait(client, &reply, started, (args.patience(kind), false)).await;
    match ending {
        Some(Ending::Succeeded(to)) => {
            let now = match kind {
                "restart" => "runs again",
                "reinit" => "is copied anew and follows",
                "stop" => "and all others are stopped, `matriarch start --all` wakes the cluster",
                _ => "is primary",
            };
            let took = started.elapsed().as_secs_f64();
            print(&format!("{kind} {} done: {to} {now} ({took:.1} s)\n", reply.id));
            exit::OK
        }
        Some(Ending::Failed(reason)) => complain(&format!("{kind} {} failed: {reason}", reply.id), exit::FAILED),
        Some(Ending::Replaced) => {
            let what = format!("{kind} {} is over and a later operation too; see `matriarch status`", reply.id);
            complain(&what, exit::FAILED)
        }
        None => {
            let what = format!(
                "{kind} {} is not finished after {} s and goes on; see `matriarch status`",
                reply.id,
                started.elapsed().as_secs()
            );
            complain(&what, exit::FAILED)
        }
    }
}

async fn follow_in_json(client: &Client, kind: &str, reply: &OperationReply, args: &OperationArgs) -> Exit {
    if args.no_wait {
        return tell(kind, reply, None, "");
    }
    match wait(client, reply, Instant::now(), (args.patience(kind), true)).await {
        Some(Ending::Succeeded(_)) => tell(kind, reply, Some(true), ""),
        Some(Ending::Failed(reason)) => tell(kind, reply, Some(false), &reason),
        Some(Ending::Replaced) => tell(kind, reply, None, "it is over and a later operation too"),
        None => tell(kind, reply, None, "it is not finished and goes on"),
    }
}

/// `succeeded` is absent when nobody can say yet, or any more.
fn tell(kind: &str, reply: &OperationReply, succeeded: Option<bool>, reason: &str) -> Exit {
    #[derive(Serialize)]
    struct Json<'a> {
        operation: &'a str,
        accepted: bool,
        id: Option<u64>,
        from: Option<&'a str>,
        to: Option<&'a str>,
        succeeded: Option<bool>,
        reason: Option<&'a str>,
    }
    fn given(text: &str) -> Option<&str> {
        Some(text).filter(|t| !t.is_empty())
    }
    print(&render::json(&Json {
        operation: kind,
        accepted: reply.accepted,
        id: reply.accepted.then_some(reply.id),
        from: given(&reply.from).filter(|_| reply.accepted && kind != "restart"),
        to: given(&reply.to).filter(|_| reply.accepted),
        succeeded: succeeded.filter(|_| reply.accepted),
        reason: given(reason),
    }));
    match (succeeded, reason) {
        (Some(true), _) | (None, "") => exit::OK,
        (Some(false) | None, _) => exit::FAILED,
    }
}

/// How an operation ended.
#[derive(Debug, PartialEq, Eq)]
enum Ending {
    Succeeded(String),
    Failed(String),
    /// Its outcome can't be told any more.
    Replaced,
}

impl Ending {
    /// A later one has taken its place in the status, and then the list of operations tells.
    async fn or_remembered(self, id: u64, client: &Client) -> Ending {
        if self != Self::Replaced {
            return self;
        }
        let all = client.operations().await.map(|reply| reply.operations).unwrap_or_default();
        all.iter().find(|record| record.id == id).and_then(remembered).unwrap_or(Self::Replaced)
    }
}

/// How one ended that is listed; `None`: it goes on.
fn remembered(record: &OperationRecord) -> Option<Ending> {
    match record.state.as_str() {
        "running" => None,
        "succeeded" => Some(Ending::Succeeded(record.to.clone())),
        _ => Some(Ending::Failed(record.reason.clone())),
    }
}

/// Until it ends, at most so long; its phases are printed unless it is to be `quiet`.
async fn wait(
    client: &Client,
    reply: &OperationReply,
    started: Instant,
    (patience, quiet): (Duration, bool),
) -> Option<Ending> {
    let (mut shown, mut last, mut heard) = (String::new(), started, started);
    while started.elapsed() < patience && heard.elapsed() < SILENCE {
        // Whoever is asked may be dying right now; the next one knows.
        if let Ok(status) = client.status(false).await {
            heard = Instant::now();
            if let Some(ending) = ending(reply.id, &status) {
                return Some(ending.or_remembered(reply.id, client).await);
            }
            let phase = status.operation.filter(|o| o.id == reply.id).map(|o| o.phase).unwrap_or_default();
            let member = status.members.iter().find(|m| m.member == reply.to);
            let progress = member.map(|m| m.progress.as_str()).filter(|_| phase == "copy").unwrap_or_default();
            let goes_on = !progress.is_empty() && last.elapsed() >= PROGRESS;
            if !quiet && !phase.is_empty() && (phase != shown || goes_on) {
                print(
                    &format!("  {:5.1} s  {phase} {progress}\n", started.elapsed().as_secs_f64()).replace(" \n", "\n"),
                );
                (shown, last) = (phase, Instant::now());
            }
        }
        sleep(POLL).await;
    }
    None
}

fn ending(id: u64, status: &StatusReply) -> Option<Ending> {
    let of = |operation: &OperationStatus| match operation.succeeded {
        true => Ending::Succeeded(operation.to.clone()),
        false => Ending::Failed(operation.reason.clone()),
    };
    if let Some(last) = &status.last_operation {
        if last.id == id && last.finished {
            return Some(of(last));
        }
        if last.id > id {
            return Some(Ending::Replaced);
        }
    }
    status.operation.as_ref().filter(|o| o.id == id && o.finished).map(of)
}

fn or_nobody(member: &str) -> &str {
    if member.is_empty() { "nobody" } else { member }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(id: u64, finished: bool, succeeded: bool) -> OperationStatus {
        let reason = if succeeded { String::new() } else { "n2 lags".to_owned() };
        OperationStatus { id, finished, succeeded, reason, to: "n2".to_owned(), ..OperationStatus::default() }
    }

    #[test]
    fn an_operation_ends_when_it_is_listed_as_the_last_one() {
        let running = StatusReply { operation: Some(operation(4, false, false)), ..StatusReply::default() };
        assert_eq!(ending(4, &running), None);
        let last = |o| StatusReply { last_operation: Some(o), ..StatusReply::default() };
        assert_eq!(ending(4, &last(operation(3, true, true))), None);
        assert_eq!(ending(4, &last(operation(4, true, true))), Some(Ending::Succeeded("n2".to_owned())));
        assert_eq!(ending(4, &last(operation(4, true, false))), Some(Ending::Failed("n2 lags".to_owned())));
        assert_eq!(ending(4, &last(operation(5, true, true))), Some(Ending::Replaced));
        let begun = StatusReply { operation: Some(operation(5, false, false)), ..last(operation(4, true, true)) };
        assert_eq!(ending(4, &begun), Some(Ending::Succeeded("n2".to_owned())), "the next one is under way");
    }

    #[test]
    fn one_that_a_later_one_has_followed_is_looked_up_in_the_list() {
        let record = |state: &str| OperationRecord {
            state: state.to_owned(),
            to: "n2".to_owned(),
            reason: "so it is".to_owned(),
            ..OperationRecord::default()
        };
        assert_eq!(remembered(&record("succeeded")), Some(Ending::Succeeded("n2".to_owned())));
        for state in ["failed", "cancelled"] {
            assert_eq!(remembered(&record(state)), Some(Ending::Failed("so it is".to_owned())), "{state}");
        }
        assert_eq!(remembered(&record("running")), None);
    }
}
