//! What happened, and what happens.

use std::{fmt::Write as _, time::Duration};

use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    args::{EventsArgs, ExplainArgs, HistoryArgs},
    client::{Client, ClientError},
    complain, complain_client,
    exit::{self, Exit},
    print, render,
};
use crate::{
    domain::{EndCause, LostWal},
    rpc::{
        sync::lost_of,
        v1::{Event, HistoryReply, Incident, Lasted, Loss, Reign, event::What},
    },
};

/// Between two tries to find a manager that answers.
const AGAIN: Duration = Duration::from_millis(500);

/// `matriarch history`.
pub(super) async fn history(args: HistoryArgs) -> Exit {
    match ask(&args.client).await {
        Ok(reply) => {
            print(&if args.json { history_json(&reply, args.last) } else { history_text(&reply, args.last) });
            exit::OK
        }
        Err(error) => complain_client(&error),
    }
}

/// `matriarch explain --incident`.
pub(super) async fn incident(args: &ExplainArgs, revision: u64) -> Exit {
    let reply = match ask(&args.client).await {
        Ok(reply) => reply,
        Err(error) => return complain_client(&error),
    };
    let Some(incident) = reply.incidents.iter().find(|i| i.revision == revision) else {
        let kept: Vec<u64> = reply.incidents.iter().map(|i| i.revision).collect();
        let which = match (kept.first(), kept.last()) {
            (Some(first), Some(last)) => format!("; {} are, from revision {first} to {last}", kept.len()),
            _ => "; none is".to_owned(),
        };
        return complain(
            &format!("no decision of revision {revision} is kept{which}: `matriarch history`"),
            exit::FAILED,
        );
    };
    print(&if args.json { render::json(&DecisionJson::of(incident)) } else { incident_text(incident) });
    exit::OK
}

async fn ask(args: &super::args::ClientArgs) -> Result<HistoryReply, ClientError> {
    Client::new(args)?.history().await
}

/// `matriarch events`.
pub(super) async fn events(args: EventsArgs) -> Exit {
    let client = match Client::new(&args.client) {
        Ok(client) => client,
        Err(error) => return complain_client(&error),
    };
    let mut after = args.after;
    let mut reached = false;
    loop {
        match client.events(after, args.follow).await {
            Ok(mut stream) => {
                reached = true;
                while let Ok(Some(event)) = stream.message().await {
                    if let Some(What::Decision(decision)) = &event.what {
                        after = after.max(Some(decision.revision));
                    }
                    if !print(&if args.json { event_json(&event) } else { event_text(&event) }) {
                        return exit::OK;
                    }
                }
                if !args.follow {
                    return exit::OK;
                }
            }
            // Whoever follows a cluster waits for it, once it was there.
            Err(ClientError::NobodyReached { .. }) if args.follow && reached => {}
            Err(error) => return complain_client(&error),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// UTC, to the millisecond; empty when nobody noted it.
pub(super) fn time_of(ms: u64) -> String {
    let nanos = i128::from(ms) * 1_000_000;
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok().filter(|_| ms != 0);
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default()
}

fn at(incident: &Incident) -> String {
    incident.evidence.as_ref().map(|e| time_of(e.at_ms)).unwrap_or_default()
}

fn lasted(ms: u64) -> String {
    match ms {
        0..10_000 => format!("{ms} ms"),
        10_000..600_000 => format!("{:.1} s", ms as f64 / 1_000.0),
        _ => format!("{} min", ms / 60_000),
    }
}

/// How the epoch ended, in words.
fn ending(reign: &Reign) -> String {
    let told = EndCause::of_code(reign.cause);
    match (reign.ended_ms, told) {
        (None, _) => "is primary".to_owned(),
        (Some(_), EndCause::Unknown) => reign.reason.clone(),
        (Some(_), cause) => cause.to_string(),
    }
}

/// For how long nobody was open before this one was.
fn gap(before: Option<&Reign>, reign: &Reign) -> Option<u64> {
    let ended = before?.ended_ms.filter(|ms| *ms != 0)?;
    reign.opened_ms?.checked_sub(ended)
}

fn loss_of<'a>(reply: &'a HistoryReply, reign: &Reign) -> Option<&'a Loss> {
    reply.losses.iter().find(|loss| loss.epoch == reign.epoch)
}

fn history_text(reply: &HistoryReply, last: usize) -> String {
    let mut text = String::from("Primaries:\n");
    if reply.reigns.is_empty() {
        text.push_str("  none is recorded\n");
    }
    for (n, reign) in reply.reigns.iter().enumerate() {
        let before = n.checked_sub(1).and_then(|n| reply.reigns.get(n));
        let opened = reign.opened_ms.map_or_else(|| "never open".to_owned(), |ms| format!("open {}", time_of(ms)));
        let ended = reign.ended_ms.filter(|ms| *ms != 0);
        let ended = ended.map(|ms| format!(", ended {}", time_of(ms))).unwrap_or_default();
        let gap = gap(before, reign).map(|ms| format!(" ({} after the one before)", lasted(ms))).unwrap_or_default();
        let (epoch, member, timeline) = (reign.epoch, &reign.member, reign.timeline);
        let _ =
            writeln!(text, "  epoch {epoch}  {member}  timeline {timeline}  {opened}{gap}{ended}: {}", ending(reign));
        if let Some(loss) = loss_of(reply, reign).filter(|loss| !loss.words.starts_with("nothing")) {
            let _ = writeln!(text, "    lost with it: {}", loss.words);
        }
    }
    text.push_str("Decisions:\n");
    for incident in reply.incidents.iter().skip(reply.incidents.len().saturating_sub(last)) {
        let _ = writeln!(text, "  {}", decision_line(incident));
    }
    let _ = writeln!(
        text,
        "(revision {}, answered by {}; `matriarch explain --incident REVISION` says what a decision went by)",
        reply.revision, reply.answered_by
    );
    text
}

pub(super) fn decision_line(incident: &Incident) -> String {
    let (revision, epoch, rule, what) = (incident.revision, incident.epoch, incident.rule, &incident.what);
    format!("{} revision {revision} epoch {epoch} rule {rule}: {what}", at(incident)).trim_start().to_owned()
}

fn incident_text(incident: &Incident) -> String {
    let mut text = format!("{}\n", decision_line(incident));
    let Some(evidence) = &incident.evidence else {
        text.push_str("What it went by was not recorded.\n");
        return text;
    };
    let _ = writeln!(text, "Decided by {}, the Raft leader, which knew:", evidence.leader);
    for seen in &evidence.seen {
        let _ = writeln!(text, "  - {seen}");
    }
    for (title, lines) in [("What had held it up", &evidence.held), ("How it had been", &evidence.phases)] {
        let _ = writeln!(text, "{title}:");
        if lines.is_empty() {
            text.push_str("  nothing\n");
        }
        for Lasted { what, ms } in lines {
            let _ = writeln!(text, "  - {what}: {}", lasted(*ms));
        }
    }
    text
}

fn event_text(event: &Event) -> String {
    match &event.what {
        Some(What::Decision(decision)) => format!("{}\n", decision_line(decision)),
        Some(What::Holding(held)) => format!("holding, says {}: {}\n", held.member, held.hold),
        Some(What::Over(held)) => format!("no longer: {}\n", held.hold),
        Some(What::Missed(missed)) => {
            format!("decisions between revision {} and {} are kept no more\n", missed.after, missed.before)
        }
        // Of a newer version.
        None => String::new(),
    }
}

// ---- JSON ----------------------------------------------------------------------------------------------------

#[derive(Serialize)]
struct HistoryJson<'a> {
    reigns: Vec<ReignJson<'a>>,
    decisions: Vec<DecisionJson<'a>>,
    revision: u64,
    answered_by: &'a str,
}

#[derive(Serialize)]
struct ReignJson<'a> {
    epoch: u64,
    member: &'a str,
    timeline: u32,
    granted: String,
    opened: Option<String>,
    ended: Option<String>,
    cause: Option<&'static str>,
    reason: &'a str,
    /// Milliseconds from the end of the one before until this one was open.
    gap_ms: Option<u64>,
    /// What was lost with it; `None`: it is primary, or was not followed.
    lost: Option<LossJson<'a>>,
}

#[derive(Serialize)]
struct LossJson<'a> {
    /// `None`: not known.
    bytes: Option<u64>,
    /// `None`: not known, or not counted.
    transactions: Option<u64>,
    /// False: at least that much, or not known.
    exact: bool,
    words: &'a str,
}

impl<'a> From<&'a Loss> for LossJson<'a> {
    fn from(loss: &'a Loss) -> Self {
        let known = loss.known.map(lost_of);
        let transactions = known.and_then(|lost| lost.transactions);
        LossJson { bytes: known.as_ref().map(LostWal::bytes), transactions, exact: loss.exact, words: &loss.words }
    }
}

#[derive(Serialize)]
struct DecisionJson<'a> {
    revision: u64,
    epoch: u64,
    rule: u32,
    what: &'a str,
    at: String,
    leader: &'a str,
    seen: &'a [String],
    held: Vec<LastedJson<'a>>,
    phases: Vec<LastedJson<'a>>,
}

#[derive(Serialize)]
struct LastedJson<'a> {
    what: &'a str,
    ms: u64,
}

#[derive(Serialize)]
struct EventJson<'a> {
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    decision: Option<DecisionJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hold: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    member: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<u64>,
}

impl<'a> DecisionJson<'a> {
    fn of(incident: &'a Incident) -> Self {
        let evidence = incident.evidence.as_ref();
        let lasted = |lines: &'a [Lasted]| lines.iter().map(|l| LastedJson { what: &l.what, ms: l.ms }).collect();
        Self {
            revision: incident.revision,
            epoch: incident.epoch,
            rule: incident.rule,
            what: &incident.what,
            at: at(incident),
            leader: evidence.map_or("", |e| &e.leader),
            seen: evidence.map_or(&[], |e| &e.seen),
            held: evidence.map_or_else(Vec::new, |e| lasted(&e.held)),
            phases: evidence.map_or_else(Vec::new, |e| lasted(&e.phases)),
        }
    }
}

fn reign_json<'a>(before: Option<&Reign>, reign: &'a Reign, loss: Option<&'a Loss>) -> ReignJson<'a> {
    ReignJson {
        epoch: reign.epoch,
        member: &reign.member,
        timeline: reign.timeline,
        granted: time_of(reign.granted_ms),
        opened: reign.opened_ms.map(time_of),
        ended: reign.ended_ms.filter(|ms| *ms != 0).map(time_of),
        cause: reign.ended_ms.map(|_| EndCause::of_code(reign.cause).name()),
        reason: &reign.reason,
        gap_ms: gap(before, reign),
        lost: loss.map(LossJson::from),
    }
}

pub(super) fn history_json(reply: &HistoryReply, last: usize) -> String {
    let decisions = reply.incidents.iter().skip(reply.incidents.len().saturating_sub(last));
    let before = |n: usize| n.checked_sub(1).and_then(|n| reply.reigns.get(n));
    let reigns = reply.reigns.iter().enumerate();
    render::json(&HistoryJson {
        reigns: reigns.map(|(n, reign)| reign_json(before(n), reign, loss_of(reply, reign))).collect(),
        decisions: decisions.map(DecisionJson::of).collect(),
        revision: reply.revision,
        answered_by: &reply.answered_by,
    })
}

/// One line, so that a stream of them can be read line by line.
pub(super) fn event_json(event: &Event) -> String {
    let none = |event| EventJson { event, decision: None, hold: None, member: None, after: None, before: None };
    let json = match &event.what {
        Some(What::Decision(decision)) => EventJson { decision: Some(DecisionJson::of(decision)), ..none("decision") },
        Some(What::Holding(held)) => {
            EventJson { hold: Some(&held.hold), member: Some(&held.member), ..none("holding") }
        }
        Some(What::Over(held)) => EventJson { hold: Some(&held.hold), member: Some(&held.member), ..none("over") },
        Some(What::Missed(missed)) => {
            EventJson { after: Some(missed.after), before: Some(missed.before), ..none("missed") }
        }
        None => return String::new(),
    };
    super::output::streamed(&json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    use crate::rpc::v1::Evidence;

    const NOON: u64 = 1_790_000_000_000;

    fn reply() -> HistoryReply {
        let reign = |epoch, member: &str, opened, ended: Option<u64>, cause: EndCause, reason: &str| Reign {
            epoch,
            member: member.into(),
            timeline: u32::try_from(epoch).unwrap() + 1,
            granted_ms: NOON,
            opened_ms: opened,
            ended_ms: ended,
            cause: cause.code(),
            reason: reason.into(),
            end: None,
        };
        let lasts = |what: &str, ms| Lasted { what: what.into(), ms };
        let evidence = Evidence {
            at_ms: NOON + 5_000,
            leader: "b".into(),
            seen: vec!["a: heard 3120 ms ago, no promise left; its agent does not answer".into()],
            held: vec![lasts("the lease of a is held", 1_204)],
            phases: vec![lasts("a is primary", 86_400_000)],
        };
        HistoryReply {
            reigns: vec![
                reign(1, "a", Some(NOON), Some(NOON + 5_000), EndCause::Unknown, "the lease of a ran out"),
                reign(2, "b", Some(NOON + 5_700), Some(NOON + 9_000), EndCause::Hung, "b released epoch 2"),
                reign(3, "c", None, None, EndCause::Unknown, ""),
            ],
            incidents: vec![Incident {
                revision: 12,
                epoch: 2,
                what: "epoch 2 begins".into(),
                rule: 330,
                evidence: Some(evidence),
            }],
            answered_by: "b".into(),
            revision: 14,
            losses: vec![
                Loss {
                    epoch: 1,
                    words: "not known yet: a is not heard of, it knows when it is back".into(),
                    ..Loss::default()
                },
                Loss { epoch: 2, known: Some(Default::default()), words: "nothing".into(), exact: true },
            ],
        }
    }

    #[test]
    fn the_history_says_who_when_and_why() {
        let text = history_text(&reply(), 20);
        let expected = "\
Primaries:
  epoch 1  a  timeline 2  open 2026-09-21T14:13:20Z, ended 2026-09-21T14:13:25Z: the lease of a ran out
    lost with it: not known yet: a is not heard of, it knows when it is back
  epoch 2  b  timeline 3  open 2026-09-21T14:13:25.7Z (700 ms after the one before), ended 2026-09-21T14:13:29Z: PostgreSQL let nobody in
  epoch 3  c  timeline 4  never open: is primary
Decisions:
  2026-09-21T14:13:25Z revision 12 epoch 2 rule 330: epoch 2 begins
(revision 14, answered by b; `matriarch explain --incident REVISION` says what a decision went by)
";
        assert_eq!(text, expected);
        assert!(!history_text(&reply(), 0).contains("revision 12"));
    }

    #[test]
    fn a_decision_is_told_with_what_it_went_by() {
        let text = incident_text(&reply().incidents[0]);
        for part in
            ["Decided by b", "a: heard 3120 ms ago", "the lease of a is held: 1204 ms", "a is primary: 1440 min"]
        {
            assert!(text.contains(part), "{part}\n{text}");
        }
        let bare = Incident { evidence: None, ..reply().incidents[0].clone() };
        assert!(incident_text(&bare).contains("not recorded"));
    }

    #[test]
    fn json_has_all_of_it_and_an_event_is_one_line() {
        let json: Value = serde_json::from_str(&history_json(&reply(), 20)).unwrap();
        assert_eq!(json["reigns"][1]["gap_ms"], 700);
        assert_eq!(json["reigns"][1]["cause"], "hung");
        assert_eq!(
            (&json["reigns"][0]["lost"]["bytes"], &json["reigns"][1]["lost"]["bytes"]),
            (&Value::Null, &0.into())
        );
        assert_eq!(json["reigns"][2]["lost"], Value::Null, "it is primary");
        assert_eq!(json["decisions"][0]["held"][0]["ms"], 1_204);
        let event = Event { what: Some(What::Decision(reply().incidents[0].clone())) };
        let line = event_json(&event);
        assert_eq!(line.matches('\n').count(), 1);
        let json: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&json["event"], &json["decision"]["rule"]), (&"decision".into(), &330.into()));
        assert!(json.get("hold").is_none());
        assert_eq!(event_json(&Event { what: None }), "", "of a newer version");
    }
}
