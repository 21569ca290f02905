//! `matriarch stop` and `start`: PostgreSQL of a standby, or of the whole cluster, stops and stays so, or goes on.

use serde::Serialize;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{
    args::OperationArgs,
    args_verbs::{StartArgs, StopArgs},
    client::{Client, ClientError, OPERATION_PATIENCE, target},
    complain, complain_client,
    exit::{self, Exit},
    operations::{POLL, confirmed, follow, reach},
    print, render,
    settings::who,
};
use crate::rpc::v1::{MemberStatus, OperationReply, StartRequest, StatusReply, StopReply, StopRequest};

pub(super) async fn stop(args: StopArgs) -> Exit {
    let member = args.member.clone().unwrap_or_default();
    let ask = |status: &StatusReply, dry_run| StopRequest {
        to: Some(target(&status.cluster_id, status.generation)),
        member: member.clone(),
        reason: args.reason.clone(),
        by: who(),
        force: args.force,
        dry_run,
        request_id: Uuid::now_v7().to_string(),
    };
    // A rehearsal asks nobody.
    let quiet = OperationArgs { yes: args.operation.yes || args.dry_run, ..copied(&args.operation) };
    let (client, status) = match reach(&args.client, &quiet).await {
        Ok(reached) => reached,
        Err(exit) => return exit,
    };
    let halt = Halt { verb: "stop", member: &member, dry_run: args.dry_run, args: &args.operation };
    let would = match client.stop(ask(&status, true)).await {
        Ok(reply) => reply,
        Err(error) => return complain_client(&error),
    };
    if let Some(exit) = halt.settled(&would) {
        return exit;
    }
    for warning in &would.warnings {
        eprintln!("{warning}");
    }
    let question = match member.as_str() {
        "" => format!("Stop the whole cluster {}, the primary {} first?", status.cluster, status.primary),
        member => format!("Stop PostgreSQL of {member}, until `matriarch start {member}`? Its sessions end."),
    };
    if !args.operation.yes && !confirmed(&question) {
        return complain("not confirmed; nothing was changed", exit::FAILED);
    }
    let reply = client.stop(ask(&status, false)).await;
    halt.follow(&client, reply, "stopped").await
}

pub(super) async fn start(args: StartArgs) -> Exit {
    let member = args.member.clone().unwrap_or_default();
    let client = match Client::new(&args.client) {
        Ok(client) => client,
        Err(error) => return complain_client(&error),
    };
    let (to, request_id) = (Some(target("", 0)), Uuid::now_v7().to_string());
    let request = StartRequest { to, member: member.clone(), by: who(), dry_run: args.dry_run, request_id };
    let halt = Halt { verb: "start", member: &member, dry_run: args.dry_run, args: &args.operation };
    let reply = client.start(request).await;
    if let Ok(reply) = &reply
        && let Some(exit) = halt.settled(reply)
    {
        return exit;
    }
    if let Ok(reply) = &reply {
        reply.warnings.iter().for_each(|warning| eprintln!("{warning}"));
    }
    halt.follow(&client, reply, "runs again").await
}

fn copied(args: &OperationArgs) -> OperationArgs {
    OperationArgs { yes: args.yes, no_wait: args.no_wait, wait: args.wait, json: args.json, timeout: args.timeout }
}

/// What was asked for.
struct Halt<'a> {
    verb: &'static str,
    /// Empty: the whole cluster.
    member: &'a str,
    dry_run: bool,
    args: &'a OperationArgs,
}

impl Halt<'_> {
    fn subject(&self) -> &str {
        if self.member.is_empty() { "the cluster" } else { self.member }
    }

    /// Where the first answer is the last: it is refused, it is so already, or nothing was to be changed.
    fn settled(&self, reply: &StopReply) -> Option<Exit> {
        let (verb, subject) = (self.verb, self.subject());
        if !reply.done {
            if self.args.json {
                print(&self.json(reply, false, &reply.reason));
                return Some(exit::FAILED);
            }
            return Some(complain(&format!("{verb} of {subject} refused: {}", reply.reason), exit::FAILED));
        }
        if !reply.already && !self.dry_run {
            return None;
        }
        let is = if verb == "stop" { "is stopped by command already" } else { "is not stopped by command" };
        print(&match (self.args.json, reply.already) {
            (true, _) => self.json(reply, true, ""),
            (false, true) => format!("{subject} {is}; nothing was changed\n"),
            (false, false) => {
                let warnings: String = reply.warnings.iter().map(|warning| format!("  {warning}\n")).collect();
                format!("{verb} of {subject} would begin; nothing was changed\n{warnings}")
            }
        });
        Some(exit::OK)
    }

    async fn follow(&self, client: &Client, reply: Result<StopReply, ClientError>, done: &str) -> Exit {
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) if self.member.is_empty() => return follow(client, self.verb, Err(error), self.args).await,
            Err(error) => return complain_client(&error),
        };
        if let Some(exit) = self.settled(&reply) {
            return exit;
        }
        if reply.id > 0 {
            let StopReply { id, to, .. } = reply;
            let (from, accepted) = (to.clone(), true);
            let operation = OperationReply { id, from, to, accepted, ..OperationReply::default() };
            return follow(client, self.verb, Ok(operation), self.args).await;
        }
        let started = Instant::now();
        let patience = self.args.patience(self.verb);
        while !self.args.no_wait && !self.is_so(client).await {
            if started.elapsed() >= patience {
                let so_far = format!(
                    "{} of {} is committed, and not carried out after {} s; see `matriarch status`",
                    self.verb,
                    self.member,
                    patience.as_secs()
                );
                return complain(&so_far, exit::FAILED);
            }
            sleep(POLL).await;
        }
        print(&match (self.args.json, self.args.no_wait) {
            (true, _) => self.json(&reply, true, ""),
            (false, true) => format!("{} of {} accepted\n", self.verb, self.member),
            (false, false) => format!("{} {done} ({:.1} s)\n", self.member, started.elapsed().as_secs_f64()),
        });
        exit::OK
    }

    async fn is_so(&self, client: &Client) -> bool {
        let Ok(status) = client.status(false).await else { return false };
        let seen = status.members.iter().find(|m| m.member == self.member);
        seen.is_some_and(|member| is_so(self.verb, member))
    }

    fn json(&self, reply: &StopReply, accepted: bool, reason: &str) -> String {
        #[derive(Serialize)]
        struct Json<'a> {
            operation: &'a str,
            /// Absent: the whole cluster.
            member: Option<&'a str>,
            accepted: bool,
            already: bool,
            dry_run: bool,
            warnings: &'a [String],
            reason: Option<&'a str>,
        }
        render::json(&Json {
            operation: self.verb,
            member: Some(self.member).filter(|m| !m.is_empty()),
            accepted,
            already: reply.already,
            dry_run: self.dry_run,
            warnings: &reply.warnings,
            reason: Some(reason).filter(|reason| !reason.is_empty()),
        })
    }
}

/// PostgreSQL of the member is as it was asked to be.
fn is_so(verb: &str, member: &MemberStatus) -> bool {
    match verb {
        "stop" => !member.stopped.is_empty() && member.state == "stopped",
        _ => member.stopped.is_empty() && member.role == "standby",
    }
}

impl Client {
    /// Asks for a stop. The same `request_id` goes to every manager tried; a second try finds it so.
    async fn stop(&self, request: StopRequest) -> Result<StopReply, ClientError> {
        self.ask(OPERATION_PATIENCE, async |mut admin| {
            admin.stop(request.clone()).await.map(tonic::Response::into_inner)
        })
        .await
    }

    /// Asks for a start, in the same way.
    async fn start(&self, request: StartRequest) -> Result<StopReply, ClientError> {
        self.ask(OPERATION_PATIENCE, async |mut admin| {
            admin.start(request.clone()).await.map(tonic::Response::into_inner)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_waited_for_until_postgresql_is_as_it_was_asked_to_be() {
        let member = |stopped: &str, state: &str, role: &str| MemberStatus {
            stopped: stopped.to_owned(),
            state: state.to_owned(),
            role: role.to_owned(),
            ..MemberStatus::default()
        };
        assert!(!is_so("stop", &member("stopped by kim", "streaming", "standby")), "it runs still");
        assert!(!is_so("stop", &member("", "stopped", "none")), "somebody else stopped it");
        assert!(is_so("stop", &member("stopped by kim", "stopped", "none")));
        assert!(!is_so("start", &member("", "stopped", "none")));
        assert!(is_so("start", &member("", "streaming", "standby")));
    }
}
