//! Reinit and reload: what is done to PostgreSQL of single members.

use serde::Serialize;
use uuid::Uuid;

use super::{
    args_verbs::{ReinitArgs, ReloadArgs},
    client::{Client, target},
    complain, complain_client,
    exit::{self, Exit},
    operations::{follow, named, reach},
    print, render,
};
use crate::rpc::v1::{PendingRestart, ReinitRequest, ReloadRequest, Reloaded};

pub(super) async fn reinit(args: ReinitArgs) -> Exit {
    let ReinitArgs { member, client, from, force, operation } = args;
    let (client, status) = match reach(&client, &operation).await {
        Ok(reached) => reached,
        Err(exit) => return exit,
    };
    if !operation.yes {
        eprintln!(
            "The data of {member} is copied anew; its PostgreSQL is down meanwhile. What it has now is kept until the copy is \
             complete, and gone then."
        );
        if !named(&member) {
            return complain("not confirmed; nothing was changed", exit::FAILED);
        }
    }
    let request = ReinitRequest {
        to: Some(target(&status.cluster_id, status.generation)),
        member,
        from: from.unwrap_or_default(),
        force,
        request_id: Uuid::now_v7().to_string(),
    };
    let reply = client.reinit(request).await;
    follow(&client, "reinit", reply, &operation).await
}

pub(super) async fn reload(args: ReloadArgs) -> Exit {
    let asked = match Client::new(&args.client) {
        Ok(client) => client.reload(ReloadRequest { to: None, members: args.members }).await,
        Err(error) => Err(error),
    };
    let reply = match asked {
        Ok(reply) => reply,
        Err(error) => return complain_client(&error),
    };
    print(&if args.json { in_json(&reply.members) } else { in_words(&reply.members) });
    if reply.members.iter().all(|member| member.done) { exit::OK } else { exit::FAILED }
}

fn in_words(members: &[Reloaded]) -> String {
    let mut out = String::new();
    for Reloaded { member, done, reason, pending } in members {
        out += &match done {
            true => format!("{member}: reloaded\n"),
            false => format!("{member}: not reloaded: {reason}\n"),
        };
        for p in pending {
            let written = if p.written.is_empty() { "its default" } else { &p.written };
            out += &format!("  {} waits for a restart: {} now, {written} then\n", p.name, p.now);
        }
    }
    out
}

fn in_json(members: &[Reloaded]) -> String {
    #[derive(Serialize)]
    struct Pending<'a> {
        name: &'a str,
        now: &'a str,
        written: Option<&'a str>,
    }
    #[derive(Serialize)]
    struct Member<'a> {
        member: &'a str,
        done: bool,
        reason: Option<&'a str>,
        pending_restart: Vec<Pending<'a>>,
    }
    fn given(text: &str) -> Option<&str> {
        Some(text).filter(|text| !text.is_empty())
    }
    fn pending(p: &PendingRestart) -> Pending<'_> {
        Pending { name: &p.name, now: &p.now, written: given(&p.written) }
    }
    let told = members.iter().map(|m| Member {
        member: &m.member,
        done: m.done,
        reason: given(&m.reason),
        pending_restart: m.pending.iter().map(pending).collect(),
    });
    let told: Vec<Member<'_>> = told.collect();
    render::json(&told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_member_says_what_came_of_it_and_what_waits_for_a_restart() {
        let pending = |name: &str, now: &str, written: &str| PendingRestart {
            name: name.to_owned(),
            now: now.to_owned(),
            written: written.to_owned(),
        };
        let done = Reloaded {
            member: "a".to_owned(),
            done: true,
            reason: String::new(),
            pending: vec![pending("max_connections", "100", "200"), pending("wal_buffers", "4MB", "")],
        };
        let not = Reloaded { member: "b".to_owned(), reason: "it is down".to_owned(), ..Reloaded::default() };
        let members = [done, not];
        assert_eq!(
            in_words(&members),
            "a: reloaded\n  max_connections waits for a restart: 100 now, 200 then\n  wal_buffers waits for a restart: 4MB \
             now, its default then\nb: not reloaded: it is down\n"
        );
        let json: serde_json::Value = serde_json::from_str(&in_json(&members)).unwrap();
        assert_eq!(json[0]["pending_restart"][1]["written"], serde_json::Value::Null);
        assert_eq!((&json[1]["done"], &json[1]["reason"]), (&false.into(), &"it is down".into()));
    }
}
