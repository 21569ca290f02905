//! May a member's host be taken down?

use serde::Serialize;

use crate::rpc::v1::CheckMemberReply;

/// The answer, with what stands against it and what to do instead.
pub fn may_go(member: &str, reply: &CheckMemberReply) -> String {
    let mut text = match reply.may_go {
        true => format!("{member} may be taken down now\n"),
        false => format!("{member} must not be taken down now:\n"),
    };
    for obstacle in &reply.obstacles {
        text += &format!("- {}: {}; {}\n", obstacle.kind, obstacle.says, obstacle.advice);
    }
    for note in &reply.notes {
        text += &format!("note: {note}\n");
    }
    text
}

#[derive(Serialize)]
struct Answer<'a> {
    member: &'a str,
    may_go: bool,
    reasons: Vec<Reason<'a>>,
    notes: &'a [String],
    answered_by: &'a str,
}

#[derive(Serialize)]
struct Reason<'a> {
    kind: &'a str,
    says: &'a str,
    advice: &'a str,
}

/// The same for programs.
pub fn may_go_json(member: &str, reply: &CheckMemberReply) -> String {
    let reasons = reply.obstacles.iter().map(|o| Reason { kind: &o.kind, says: &o.says, advice: &o.advice });
    super::json(&Answer {
        member,
        may_go: reply.may_go,
        reasons: reasons.collect(),
        notes: &reply.notes,
        answered_by: &reply.answered_by,
    })
}
