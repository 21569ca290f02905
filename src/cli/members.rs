//! Who belongs to the cluster, and its recovery when a majority is gone for good.

use std::{
    io::{self, BufRead as _, Write as _},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{
    args::{ClientArgs, MemberCommand, RecoverArgs},
    args_verbs::AddMemberArgs,
    client::{Client, ClientError, target},
    complain, complain_client, config_file,
    exit::{self, Exit},
    print, render,
};
use crate::{
    config::{Config, MemberConfig, Purpose, check_address},
    rpc::v1::{
        ChangeMemberReply, ChangeMemberRequest, CheckMemberReply, CheckMemberRequest, MemberChange, RecoverReply,
        RecoverRequest, StatusReply,
    },
};

/// Between two looks at the Raft group.
const POLL: Duration = Duration::from_millis(500);
/// A new generation leads itself within a few elections.
const BEGINS: Duration = Duration::from_secs(60);

pub(super) async fn member(command: MemberCommand) -> Exit {
    match command {
        MemberCommand::List { client, json } => list(&client, json).await,
        MemberCommand::Add(asked) => add(asked).await,
        MemberCommand::Check { member, client, json } => check(&member, &client, json).await,
        MemberCommand::Address { member, to_manager, to_postgres, to_agent, dry_run, client } => {
            address(&member, [to_manager, to_postgres, to_agent], dry_run, &client).await
        }
        MemberCommand::Remove { member, dry_run, client } => {
            let asked = if dry_run { MemberChange::DryRemove } else { MemberChange::Remove };
            change(&client, request(asked, &member), dry_run, &format!("{member} is no member any more")).await
        }
        MemberCommand::Replace { member, dry_run, client } => {
            let asked = if dry_run { MemberChange::DryReplace } else { MemberChange::Replace };
            change(
                &client,
                request(asked, &member),
                dry_run,
                &format!("{member} gets a new Raft node; the old one never votes again"),
            )
            .await
        }
    }
}

/// May this member's host be taken down now? For scripts: 0 yes, 1 no.
async fn check(member: &str, args: &ClientArgs, json: bool) -> Exit {
    let reply = match Client::new(args) {
        Ok(client) => client.check_member(member).await,
        Err(error) => Err(error),
    };
    let reply = match reply {
        Ok(reply) => reply,
        Err(error) => return complain_client(&error),
    };
    print(&if json { render::may_go_json(member, &reply) } else { render::may_go(member, &reply) });
    if reply.may_go { exit::OK } else { exit::FAILED }
}

fn request(change: MemberChange, member: &str) -> ChangeMemberRequest {
    let (to, change) = (Some(target("", 0)), change as i32);
    ChangeMemberRequest { to, change, member: member.to_owned(), ..ChangeMemberRequest::default() }
}

impl Client {
    async fn check_member(&self, member: &str) -> Result<CheckMemberReply, ClientError> {
        self.look(super::client::OPERATION_PATIENCE, async move |mut admin| {
            let request = CheckMemberRequest { to: Some(target("", 0)), member: member.to_owned() };
            admin.check_member(request).await.map(tonic::Response::into_inner)
        })
        .await
    }
}

async fn list(args: &ClientArgs, json: bool) -> Exit {
    let status = match Client::new(args) {
        Ok(client) => client.status(false).await,
        Err(error) => Err(error),
    };
    match status {
        Ok(reply) => {
            print(&if json { render::voters_json(&reply) } else { render::voters(&reply) });
            exit::OK
        }
        Err(error) => complain_client(&error),
    }
}

/// Without a word of where, this host's configuration file says it.
async fn address(member: &str, to: [Option<String>; 3], dry_run: bool, args: &ClientArgs) -> Exit {
    let [manager, postgres, agent] = if to.iter().all(Option::is_none) {
        match configured(member, args) {
            Ok(found) => [found.manager(), found.postgres(), found.agent()],
            Err(why) => return complain(&why, exit::USAGE),
        }
    } else {
        let names = ["--to-manager", "--to-postgres", "--to-agent"];
        for (name, given) in names.iter().zip(&to) {
            if let Some(given) = given
                && let Err(why) = check_address(given)
            {
                return complain(&format!("{name} {given}: {why}; nothing was changed"), exit::USAGE);
            }
        }
        to.map(Option::unwrap_or_default)
    };
    let asked = if dry_run { MemberChange::DryMove } else { MemberChange::Move };
    let request = ChangeMemberRequest { manager, postgres, agent, ..request(asked, member) };
    let done = format!("the others look for {member} there from now on; start it there, with that in its own file");
    change(args, request, dry_run, &done).await
}

fn configured(member: &str, args: &ClientArgs) -> Result<MemberConfig, String> {
    let file = config_file(args.config.clone());
    let config = Config::load_for(&file, Purpose::Client).map_err(|error| error.to_string())?;
    let found = config.cluster.members.into_iter().find(|m| m.id.as_str() == member);
    found.ok_or_else(|| {
        format!(
            "{}: cluster.members has no `{member}`; say where it is: --to-manager HOST:PORT --to-postgres HOST:PORT",
            file.display()
        )
    })
}

/// Its addresses are those of this host's configuration file: every host needs them there, too.
async fn add(AddMemberArgs { member, witness, learner, client: args }: AddMemberArgs) -> Exit {
    let file = config_file(args.config.clone());
    let config = match Config::load_for(&file, Purpose::Client) {
        Ok(config) => config,
        Err(error) => return complain(&error.to_string(), exit::USAGE),
    };
    let Some(found) = config.cluster.members.iter().find(|m| m.id.as_str() == member) else {
        let what = format!(
            "{}: cluster.members has no `{member}`: add it to the file of every host, restart manager and agent of one \
             host after the other, then add the member",
            file.display()
        );
        return complain(&what, exit::USAGE);
    };
    let wanted = [("witness", witness, found.witness), ("learner", learner, found.learner)];
    if let Some((word, _, _)) = wanted.into_iter().find(|(_, asked, written)| *asked && !written) {
        let what = format!(
            "{}: `{member}` of cluster.members is no {word}: add `{word} = true` to it in the file of every host, or leave \
             --{word} out; nothing was changed",
            file.display()
        );
        return complain(&what, exit::USAGE);
    }
    const VOTES: &str = "it votes when its manager runs and has the log";
    let (kind, what, then) = match (found.witness, found.learner) {
        (true, _) => (MemberChange::AddWitness, "a member, a witness", VOTES),
        (false, true) => (MemberChange::AddLearner, "a member, a learner", "its manager gets the log and never votes"),
        (false, false) => (MemberChange::Add, "a member", VOTES),
    };
    let request =
        ChangeMemberRequest { manager: found.manager(), postgres: found.postgres(), ..request(kind, &member) };
    change(&args, request, false, &format!("{member} is {what}; {then}")).await
}

async fn change(args: &ClientArgs, request: ChangeMemberRequest, dry_run: bool, done: &str) -> Exit {
    let reply: Result<ChangeMemberReply, ClientError> = match Client::new(args) {
        Ok(client) => client.change_member(request).await,
        Err(error) => Err(error),
    };
    match reply {
        Ok(reply) => match said(&reply, dry_run, done) {
            Ok(text) => {
                print(&text);
                exit::OK
            }
            Err(why) => complain(&why, exit::FAILED),
        },
        Err(error) => complain_client(&error),
    }
}

/// What became of a change, or why nothing did.
fn said(reply: &ChangeMemberReply, dry_run: bool, done: &str) -> Result<String, String> {
    let note = match reply.note.as_str() {
        "" => String::new(),
        note => format!("\nnote: {note}"),
    };
    match (reply.done, dry_run, reply.advice.as_str()) {
        (true, true, _) => Ok(format!("nothing stands against it; nothing was changed{note}\n")),
        (true, false, _) => Ok(format!("{done}; see `matriarch member list`{note}\n")),
        (false, _, "") => Err(format!("refused: {}{note}", reply.reason)),
        (false, _, advice) => Err(format!("refused: {}; {advice}{note}", reply.reason)),
    }
}

/// Asks the manager of this host, and no other: the command says what becomes of this host's data.
pub(super) async fn recover(args: RecoverArgs) -> Exit {
    let client = match Client::local(&args.client) {
        Ok(client) => client,
        Err(error) => return complain_client(&error),
    };
    let proposal = match client.recover(request_of("", args.force)).await {
        Ok(reply) => reply,
        Err(error) => return complain_client(&error),
    };
    if !proposal.reason.is_empty() {
        return complain(&format!("nothing is recovered: {}", proposal.reason), exit::FAILED);
    }
    for line in &proposal.says {
        print(&format!("- {line}\n"));
    }
    let typed = match &args.confirm {
        Some(name) => name.clone(),
        None => ask(&proposal),
    };
    if typed != proposal.cluster {
        return complain("not confirmed by the name of the cluster; nothing was changed", exit::FAILED);
    }
    let done = match client.recover(request_of(&typed, args.force)).await {
        Ok(reply) => reply,
        Err(error) => return complain_client(&error),
    };
    if !done.done {
        return complain(&format!("nothing is recovered: {}", done.reason), exit::FAILED);
    }
    wait(&client, &proposal.member).await
}

fn request_of(confirm: &str, force: bool) -> RecoverRequest {
    RecoverRequest { to: Some(target("", 0)), confirm: confirm.to_owned(), force }
}

fn ask(proposal: &RecoverReply) -> String {
    eprint!(
        "The other hosts must be off, or their logs gone: a host that still runs alone can have a primary of its own.\n\
         Type the name of the cluster to begin a new generation on {}: ",
        proposal.member
    );
    let _ = io::stderr().flush();
    let mut answer = String::new();
    // An unreadable answer is no.
    let read = io::stdin().lock().read_line(&mut answer);
    if read.is_ok() { answer.trim().to_owned() } else { String::new() }
}

async fn wait(client: &Client, member: &str) -> Exit {
    let began = Instant::now();
    while began.elapsed() < BEGINS {
        sleep(POLL).await;
        if let Ok(StatusReply { generation, leader, .. }) = client.status(true).await
            && leader == member
        {
            print(&format!("generation {generation} has begun, {member} leads; see `matriarch status`\n"));
            return exit::OK;
        }
    }
    complain("the new generation is written and no leader is seen yet; see `matriarch status --local`", exit::FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_in_a_paused_cluster_says_that_it_is_paused() {
        let note = "the cluster is paused by ada: no automatic failover until `matriarch resume`".to_owned();
        let mut reply = ChangeMemberReply { done: true, note, ..ChangeMemberReply::default() };
        let text = said(&reply, false, "n4 is a member").unwrap();
        assert!(
            text.starts_with("n4 is a member; see `matriarch member list`\nnote: the cluster is paused by ada"),
            "{text}"
        );
        assert!(said(&reply, true, "").unwrap().contains("paused"));
        (reply.done, reply.reason) = (false, "n4 is a member already".into());
        assert!(said(&reply, false, "").unwrap_err().contains("note: the cluster is paused"));
        reply.note.clear();
        assert_eq!(said(&reply, false, "").unwrap_err(), "refused: n4 is a member already");
    }
}
