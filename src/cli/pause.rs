//! `matriarch pause`, `resume` and `maintenance`: the decisions of the cluster stop, or go on; a member is left alone,
//! or takes part.

use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{
    args::{AcknowledgeArgs, ClientArgs, MaintenanceCommand, PauseArgs, ResumeArgs},
    client::{Client, target},
    complain, complain_client,
    exit::{self, Exit},
    print, render,
    settings::who,
};
use crate::rpc::v1::{AcknowledgeRequest, MaintenanceRequest, PauseRequest, StatusReply};

/// Between two looks at the cluster.
const POLL: Duration = Duration::from_millis(200);

pub(super) async fn pause(args: PauseArgs) -> Exit {
    let (wait, json) = (args.wait.then_some(args.timeout), args.json);
    change(&args.client, true, args.reason, wait, json).await
}

pub(super) async fn resume(args: ResumeArgs) -> Exit {
    let (wait, json) = (args.wait.then_some(args.timeout), args.json);
    change(&args.client, false, String::new(), wait, json).await
}

pub(super) async fn maintenance(command: MaintenanceCommand) -> Exit {
    let (client, member, on, reason, json) = match command {
        MaintenanceCommand::On(args) => (args.client, args.member, true, args.reason, args.json),
        MaintenanceCommand::Off(args) => (args.client, args.member, false, String::new(), args.json),
    };
    let client = match Client::new(&client) {
        Ok(client) => client,
        Err(error) => return complain_client(&error),
    };
    let (to, request_id) = (Some(target("", 0)), Uuid::now_v7().to_string());
    let request = MaintenanceRequest { to, member: member.clone(), on, reason, by: who(), request_id };
    match client.maintenance(request).await {
        Ok(reply) if reply.done => {
            print(&maintained(&member, on, json));
            exit::OK
        }
        Ok(reply) => {
            let word = if on { "on" } else { "off" };
            complain(&format!("maintenance {word} {member} refused: {}", reply.reason), exit::FAILED)
        }
        Err(error) => complain_client(&error),
    }
}

/// `matriarch acknowledge`.
pub(super) async fn acknowledge(args: AcknowledgeArgs) -> Exit {
    #[derive(Serialize)]
    struct Json {
        acknowledged: u32,
    }
    let client = match Client::new(&args.client) {
        Ok(client) => client,
        Err(error) => return complain_client(&error),
    };
    let request = AcknowledgeRequest { to: Some(target("", 0)), by: who(), request_id: Uuid::now_v7().to_string() };
    match client.acknowledge(request).await {
        Ok(reply) if reply.done => {
            let acknowledged = reply.failovers;
            print(&match (args.json, acknowledged) {
                (true, _) => render::json(&Json { acknowledged }),
                (false, 0) => "no failover followed a crash lately: there is nothing to acknowledge\n".to_owned(),
                (false, n) => {
                    format!(
                        "failovers after crashes count no more, there were {n}; the next crash may be failed over again\n"
                    )
                }
            });
            exit::OK
        }
        Ok(reply) => complain(&format!("acknowledge refused: {}", reply.reason), exit::FAILED),
        Err(error) => complain_client(&error),
    }
}

fn maintained(member: &str, on: bool, as_json: bool) -> String {
    #[derive(Serialize)]
    struct Json<'a> {
        member: &'a str,
        maintenance: bool,
    }
    match (as_json, on) {
        (true, _) => render::json(&Json { member, maintenance: on }),
        (false, true) => format!(
            "{member} is left alone and is no candidate; `matriarch maintenance off {member}` lets it take part again\n"
        ),
        (false, false) => format!("{member} takes part again\n"),
    }
}

/// Asks for it, and waits for so many seconds, if at all, until it is so everywhere.
async fn change(client: &ClientArgs, on: bool, reason: String, wait: Option<u64>, json: bool) -> Exit {
    let client = match Client::new(client) {
        Ok(client) => client,
        Err(error) => return complain_client(&error),
    };
    let what = if on { "pause" } else { "resume" };
    let to = Some(target("", 0));
    let request = PauseRequest { to, on, reason, by: who(), request_id: Uuid::now_v7().to_string() };
    match client.pause(request).await {
        Ok(reply) if reply.done => {}
        Ok(reply) => return complain(&format!("{what} refused: {}", reply.reason), exit::FAILED),
        Err(error) => return complain_client(&error),
    }
    if let Some(seconds) = wait
        && let Err(missing) = wait_for(&client, on, Duration::from_secs(seconds)).await
    {
        let so_far = if on { "the cluster is paused" } else { "the cluster decides again" };
        return complain(&format!("{so_far}, and after {seconds} s not yet everywhere: {missing}"), exit::FAILED);
    }
    print(&said(on, wait.is_some(), json));
    exit::OK
}

/// # Errors
/// What is still missing when the time is over.
async fn wait_for(client: &Client, on: bool, patience: Duration) -> Result<(), String> {
    let began = Instant::now();
    loop {
        let missing = match client.status(false).await {
            Ok(status) => missing(&status, on),
            Err(error) => Some(error.to_string()),
        };
        match missing {
            None => return Ok(()),
            Some(missing) if began.elapsed() >= patience => return Err(missing),
            Some(_) => sleep(POLL).await,
        }
    }
}

fn missing(status: &StatusReply, on: bool) -> Option<String> {
    let not_told: Vec<&str> = status.members.iter().filter(|m| m.paused != on).map(|m| m.member.as_str()).collect();
    if !not_told.is_empty() {
        return Some(format!("not told: {}", not_told.join(", ")));
    }
    (!on && !render::is_healthy(status)).then(|| "not healthy; see `matriarch status`".to_owned())
}

fn said(on: bool, everywhere: bool, as_json: bool) -> String {
    #[derive(Serialize)]
    struct Json {
        paused: bool,
        /// Absent: it was not waited for.
        everywhere: Option<bool>,
    }
    if as_json {
        return render::json(&Json { paused: on, everywhere: everywhere.then_some(true) });
    }
    match (on, everywhere) {
        (true, false) => "the cluster is paused; `matriarch resume` lets it decide again\n",
        (true, true) => "the cluster is paused, every agent has been told; `matriarch resume` lets it decide again\n",
        (false, false) => "the cluster decides again\n",
        (false, true) => "the cluster decides again and is healthy\n",
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::v1::MemberStatus;

    fn status(paused: &[bool], healthy: bool) -> StatusReply {
        let member = |(n, paused): (usize, &bool)| {
            let member = format!("n{}", n + 1);
            MemberStatus { member, paused: *paused, healthy, ..MemberStatus::default() }
        };
        StatusReply {
            members: paused.iter().enumerate().map(member).collect(),
            lock: "open".to_owned(),
            primary: "n1".to_owned(),
            leader: "n1".to_owned(),
            ..StatusReply::default()
        }
    }

    #[test]
    fn a_pause_is_everywhere_when_every_agent_minds_it_and_over_when_all_is_well() {
        assert_eq!(missing(&status(&[true, false, true], true), true).as_deref(), Some("not told: n2"));
        assert_eq!(missing(&status(&[true, true, true], false), true), None, "it may be paused because it is not well");
        assert_eq!(missing(&status(&[false, false, true], true), false).as_deref(), Some("not told: n3"));
        assert!(missing(&status(&[false; 3], false), false).unwrap().contains("not healthy"));
        assert_eq!(missing(&status(&[false; 3], true), false), None);
    }
}
