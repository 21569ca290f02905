//! What happened, and what happens.

use std::{
    mem::{Discriminant, discriminant},
    pin::Pin,
    time::Duration,
};

use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::Status;

use crate::{
    manager::ManagerHandle,
    policy::Hold,
    rpc::{
        history,
        v1::{self, event::What},
    },
    state::{ClusterState, cluster::INCIDENTS_KEPT},
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
    }
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
            news.extend(held.changes(&holds, manager.me().as_str()));
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

/// What was told to hold this manager up.
#[derive(Default)]
struct Held(Vec<(Discriminant<Hold>, String)>);

impl Held {
    fn changes(&mut self, holds: &[Hold], me: &str) -> Vec<What> {
        let event = |hold: &str| v1::event::Held { hold: hold.to_owned(), member: me.to_owned() };
        let mut news = Vec::new();
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
    use crate::{domain::Epoch, state::Incident};

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
        let news = told(&held.changes(&[hold(0)], "a"));
        assert_eq!(news, [format!("+{}", hold(0))]);
        assert!(held.changes(&[hold(1)], "a").is_empty(), "the same with other figures");
        assert_eq!(told(&held.changes(&[], "a")), [format!("-{}", hold(0))]);
    }
}
