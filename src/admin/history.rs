//! What happened, and what happens.

use std::{
    collections::BTreeSet,
    mem::{Discriminant, discriminant},
    pin::Pin,
    time::Duration,
};

use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::Status;

use crate::{
    domain::{LostWal, Lsn, MemberId, PostgresState, TimelineId, WalPosition, observation::AgentView},
    manager::ManagerHandle,
    policy::Hold,
    rpc::{
        history, sync,
        v1::{self, event::What},
    },
    state::{ClusterState, Reign, cluster::INCIDENTS_KEPT},
};

/// A stream of events, for as long as somebody listens.
pub type Events = Pin<Box<dyn Stream<Item = Result<v1::Event, Status>> + Send>>;

/// How often the holds of this manager are compared with those that were told. Decisions are told at once.
const HOLDS: Duration = Duration::from_millis(200);
/// A listener may be so far behind before the stream waits for it.
const BEHIND: usize = 64;

/// All that is kept.
pub(super) fn of(manager: &ManagerHandle) -> v1::HistoryReply {
    let state = manager.state();
    v1::HistoryReply {
        reigns: state.reigns.iter().map(history::reign).collect(),
        incidents: state.incidents.iter().map(history::incident).collect(),
        answered_by: manager.me().to_string(),
        revision: state.revision,
        losses: losses(&state, |member| manager.seen().remove(member).and_then(|seen| seen.agent)),
    }
}

/// What was lost with each primary that was open and followed by another.
fn losses(state: &ClusterState, agent: impl Fn(&MemberId) -> Option<AgentView>) -> Vec<v1::Loss> {
    let reigns = state.reigns.iter().filter(|reign| reign.opened_ms.is_some());
    let loss = |reign: &Reign| {
        let switch = left_at(state, reign.timeline)?;
        let found = lost_with(reign, switch, agent(&reign.member).as_ref());
        let (known, exact) = found.as_ref().map_or((None, false), |(lost, exact)| (Some(sync::lost(lost)), *exact));
        let words = match found {
            Ok((lost, true)) => lost.to_string(),
            Ok((lost, false)) if lost.bytes() == 0 => format!("nothing, by the word of {} at its end", reign.member),
            Ok((lost, false)) => format!("by the word of {} at its end at least {lost}", reign.member),
            Err(why) => why,
        };
        Some(v1::Loss { epoch: reign.epoch.0, known, words, exact })
    };
    reigns.filter_map(loss).collect()
}

/// Where the cluster's history left that timeline.
fn left_at(state: &ClusterState, timeline: TimelineId) -> Option<Lsn> {
    let switches = state.lineage.iter().filter_map(|record| record.switch);
    switches.filter(|at| at.timeline == timeline).map(|at| at.lsn).max()
}

/// What it had counted before it was undone; what lies on its disk still; what it said at its end, which is that much at
/// least; or why nobody knows.
fn lost_with(reign: &Reign, switch: Lsn, agent: Option<&AgentView>) -> Result<(LostWal, bool), String> {
    let ours = |at: &WalPosition| at.timeline == reign.timeline;
    let counted = agent.and_then(|agent| agent.lost.iter().rfind(|lost| ours(&lost.fork)));
    let here = agent.filter(|a| a.wal_end_known && ours(&a.wal_end)).map(|a| LostWal::by_word(a.wal_end, switch));
    if let Some(known) = counted.copied().or(here) {
        return Ok((known, true));
    }
    if let Some(end) = reign.end.filter(ours) {
        return Ok((LostWal::by_word(end, switch), false));
    }
    let member = &reign.member;
    Err(match agent {
        None => format!("not known yet: {member} is not heard of, it knows when it is back"),
        Some(a) if a.state == PostgresState::NoData || a.wal_end.timeline > reign.timeline => {
            format!("not known: {member} has other data since then, and what it had was not counted")
        }
        Some(_) => format!("not known yet: {member} does not know yet where its WAL ends"),
    })
}

/// The decisions after a revision, and then what happens.
pub(super) fn events(manager: &ManagerHandle, after: Option<u64>, follow: bool) -> Events {
    let (sender, receiver) = mpsc::channel(BEHIND);
    let manager = manager.clone();
    tokio::spawn(async move {
        // Nobody listens any more: nothing is left to be done.
        let _ = tell(&manager, after, follow, &sender).await;
    });
    Box::pin(ReceiverStream::new(receiver))
}

type Told = Result<v1::Event, Status>;

async fn tell(
    manager: &ManagerHandle,
    after: Option<u64>,
    follow: bool,
    to: &mpsc::Sender<Told>,
) -> Result<(), mpsc::error::SendError<Told>> {
    let mut states = manager.states();
    let mut last = after;
    let mut held = Held::default();
    let mut look = tokio::time::interval(HOLDS);
    let led = manager.leadership().am_leader;
    loop {
        let state = states.borrow_and_update().clone();
        let mut news = since(&state, last);
        last = Some(state.revision.max(last.unwrap_or(0)));
        if follow {
            let leads = manager.leadership().am_leader;
            if led && !leads {
                // Another manager knows what holds the cluster up now; whoever listens comes back and is led there.
                return Ok(());
            }
            let holds = if leads { manager.plan().holds } else { Vec::new() };
            let primary = state.holder().filter(|_| leads).and_then(|(_, m)| manager.seen().remove(m)?.agent);
            let uncovered = primary.map(|agent| agent.uncovered.words()).unwrap_or_default();
            news.extend(held.changes(&holds, &uncovered, manager.me().as_str()));
        }
        for what in news {
            to.send(Ok(v1::Event { what: Some(what) })).await?;
        }
        if !follow {
            return Ok(());
        }
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return Ok(()) },
            _ = look.tick() => {}
            () = to.closed() => return Ok(()),
        }
    }
}

/// The decisions of a later revision than that, and whether some between are kept no more.
fn since(state: &ClusterState, after: Option<u64>) -> Vec<What> {
    let later = state.incidents.iter().filter(|i| i.revision > after.unwrap_or(0));
    let decisions = later.map(|i| What::Decision(history::incident(i)));
    let oldest = state.incidents.front().map_or(0, |i| i.revision);
    let lost = after.filter(|after| state.incidents.len() == INCIDENTS_KEPT && oldest > after + 1);
    let missed = lost.map(|after| What::Missed(v1::event::Missed { after, before: oldest }));
    missed.into_iter().chain(decisions).collect()
}

/// What was told to hold this manager up, and what commits were told not to be covered.
#[derive(Default)]
struct Held(Vec<(Discriminant<Hold>, String)>, BTreeSet<String>);

impl Held {
    fn changes(&mut self, holds: &[Hold], uncovered: &BTreeSet<String>, me: &str) -> Vec<What> {
        let event = |hold: &str| v1::event::Held { hold: hold.to_owned(), member: me.to_owned() };
        let mut news: Vec<What> = self.1.difference(uncovered).map(|what| What::Over(event(what))).collect();
        news.extend(uncovered.difference(&self.1).map(|what| What::Holding(event(what))));
        self.1.clone_from(uncovered);
        self.0.retain(|(kind, what)| {
            let lasts = holds.iter().any(|hold| discriminant(hold) == *kind);
            if !lasts {
                news.push(What::Over(event(what)));
            }
            lasts
        });
        for hold in holds {
            let kind = discriminant(hold);
            if !self.0.iter().any(|(known, _)| *known == kind) {
                let what = hold.to_string();
                news.push(What::Holding(event(&what)));
                self.0.push((kind, what));
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{EndCause, Epoch},
        policy::testing::agent,
        state::{Incident, Reign, TimelineRecord},
    };

    fn state(revisions: impl IntoIterator<Item = u64>) -> ClusterState {
        let incident = |revision| Incident { revision, epoch: Epoch(1), what: "x".into(), rule: 410, evidence: None };
        ClusterState { incidents: revisions.into_iter().map(incident).collect(), ..ClusterState::default() }
    }

    fn told(news: &[What]) -> Vec<String> {
        let word = |what: &What| match what {
            What::Decision(i) => i.revision.to_string(),
            What::Missed(m) => format!("missed {}..{}", m.after, m.before),
            What::Holding(h) => format!("+{}", h.hold),
            What::Over(h) => format!("-{}", h.hold),
        };
        news.iter().map(word).collect()
    }

    #[test]
    fn what_is_later_is_told_and_what_is_kept_no_more_is_said_to_be_missing() {
        assert_eq!(told(&since(&state([3, 5, 9]), None)), ["3", "5", "9"]);
        assert_eq!(told(&since(&state([3, 5, 9]), Some(5))), ["9"]);
        let full = state(10..10 + INCIDENTS_KEPT as u64);
        let news = told(&since(&full, Some(4)));
        assert_eq!((news[0].as_str(), news.len()), ("missed 4..10", INCIDENTS_KEPT + 1));
        assert_eq!(told(&since(&full, None)).len(), INCIDENTS_KEPT, "nobody had heard any");
        assert_eq!(told(&since(&full, Some(9))).len(), INCIDENTS_KEPT, "nothing lies between");
    }

    #[test]
    fn a_hold_is_told_when_it_begins_and_when_it_ends() {
        let hold = |free| Hold::TooFewSeals { epoch: Epoch(2), sealed: 1, free, needed: 2 };
        let mut held = Held::default();
        let none = BTreeSet::new();
        let news = told(&held.changes(&[hold(0)], &none, "a"));
        assert_eq!(news, [format!("+{}", hold(0))]);
        assert!(held.changes(&[hold(1)], &none, "a").is_empty(), "the same with other figures");
        assert_eq!(told(&held.changes(&[], &none, "a")), [format!("-{}", hold(0))]);
    }

    #[test]
    fn commits_that_are_not_covered_are_told_when_that_begins_and_when_it_ends() {
        let mut held = Held::default();
        let of = |what: &[&str]| what.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        assert_eq!(told(&held.changes(&[], &of(&["x", "y"]), "a")), ["+x", "+y"]);
        assert!(held.changes(&[], &of(&["x", "y"]), "a").is_empty());
        assert_eq!(told(&held.changes(&[], &of(&["y", "z"]), "a")), ["-x", "+z"]);
    }

    #[test]
    fn what_was_lost_with_a_primary_is_told_by_its_own_count_or_word_or_not_at_all() {
        let mut state = ClusterState::default();
        let at = |timeline, lsn| WalPosition { timeline: TimelineId(timeline), lsn: Lsn(lsn) };
        let reign = |epoch, member: &str, timeline, end| Reign {
            epoch: Epoch(epoch),
            member: member.parse().unwrap(),
            timeline: TimelineId(timeline),
            granted_ms: 1,
            opened_ms: Some(2),
            ended_ms: Some(3),
            cause: EndCause::Unknown,
            reason: String::new(),
            end,
        };
        let ends = [None, None, Some(at(4, 0x300)), Some(at(5, 0x5F0)), None];
        for (n, end) in (1..).zip(ends) {
            state.reigns.push_back(reign(n, "a", n as u32 + 1, end));
            let switch = Some(at(n as u32, n * 0x100 - 0x100));
            let timeline = TimelineId(n as u32 + 1);
            state.lineage.push(TimelineRecord { timeline, epoch: Epoch(n), switch, first_record: None });
        }
        let counted = LostWal { fork: at(2, 0x100), end: at(2, 0x180), transactions: Some(3), saved: false };
        let words = |agent: Option<AgentView>| -> Vec<String> {
            let seen = |m: &MemberId| agent.clone().filter(|_| m.as_str() == "a");
            losses(&state, seen).into_iter().map(|loss| loss.words).collect()
        };
        let silent = words(None);
        assert_eq!(silent.len(), 4, "the last one has no follower");
        assert!(silent[0].starts_with("not known yet: a is not heard of"), "{silent:?}");
        assert_eq!(silent[2], "nothing, by the word of a at its end");
        assert!(silent[3].starts_with("by the word of a at its end at least 496 bytes of WAL"), "{silent:?}");
        let back = AgentView { lost: vec![counted], ..agent("a", "standby 6:1536") };
        let back = words(Some(back));
        assert!(back[0].starts_with("128 bytes of WAL, 3 committed transactions"), "{back:?}");
        assert_eq!(back[1], "not known: a has other data since then, and what it had was not counted");
        let stopped = words(Some(agent("a", "stopped 3:752")));
        assert!(stopped[1].starts_with("240 bytes of WAL"), "its data is there still: {stopped:?}");
    }
}
