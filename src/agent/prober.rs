//! Asks PostgreSQL how it is, as often as the rules want to know, over one
//! connection that stays, and knocks with a new one beside that: a server that
//! takes nobody any more may go on answering whoever is in.

use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};

use super::{
    core::{Event, Sight},
    hands::{blocking, said},
    process::Wake,
};
use crate::{
    domain::{SlotsYield, TimelineHistory, WalPosition},
    postgres::{Instance, Probe, ProbeError, Session},
};

/// So many bytes from its beginning the first record of a timeline is looked for.
const SOUGHT: u64 = 1 << 20;

/// What to probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Which postmaster.
    pub life: u64,
    /// How often.
    pub interval: Duration,
    /// How long one may take.
    pub deadline: Duration,
    /// Counts requests for a probe now.
    pub asked: u64,
    /// The postmaster whose recovery or replay is to be watched.
    pub redo: Option<u32>,
    /// Changes with the budget of slots that is set.
    pub slot_budget: u64,
    /// The volume of WAL is nearly full: whose slots are given up.
    pub short: Option<SlotsYield>,
}

/// Probes by `plan` until its sender is gone.
pub async fn run(instance: Instance, mut plan: watch::Receiver<Option<Plan>>, wakes: mpsc::UnboundedSender<Wake>) {
    let mut prober = Prober { instance, session: None, life: 0, history: None };
    loop {
        let current = *plan.borrow_and_update();
        let Some(current) = current else {
            prober.session = None;
            if plan.changed().await.is_err() {
                return;
            }
            continue;
        };
        let result = prober.probe(current.life, current.deadline).await;
        if wakes.send(Wake::Probed { life: current.life, asked: current.asked, result }).is_err() {
            return;
        }
        // A change of plan is a reason to look at once: something began or ended, or someone asked.
        if let Ok(Err(_)) = tokio::time::timeout(current.interval, plan.changed()).await {
            return;
        }
    }
}

/// Of the time that one knock may take, so much lies between two.
pub(super) const KNOCKS: u32 = 3;

/// Knocks by `plan` until its sender is gone. One at a time, each until its deadline: a server that froze is found out
/// between one deadline and one and a third after that.
pub async fn knock(instance: Instance, mut plan: watch::Receiver<Option<Plan>>, wakes: mpsc::UnboundedSender<Wake>) {
    loop {
        let current = *plan.borrow_and_update();
        let Some(Plan { life, deadline, .. }) = current else {
            if plan.changed().await.is_err() {
                return;
            }
            continue;
        };
        let next = tokio::time::Instant::now() + deadline / KNOCKS;
        let knock = instance.knock(deadline).await;
        if wakes.send(Wake::Core(Event::Knocked { life, knock, waited: deadline })).is_err() {
            return;
        }
        tokio::time::sleep_until(next).await;
    }
}

struct Prober {
    instance: Instance,
    session: Option<Session>,
    life: u64,
    history: Option<TimelineHistory>,
}

impl Prober {
    async fn probe(&mut self, life: u64, deadline: Duration) -> Result<Box<Sight>, String> {
        if self.life != life {
            (self.life, self.session, self.history) = (life, None, None);
        }
        let probe = self.instance.probe(&mut self.session, deadline).await.map_err(|e| words(&e))?;
        let history = self.history(probe.wal_end, deadline).await?;
        Ok(Box::new(sight(probe, history)))
    }

    /// The first record of a timeline that was just gone over to may not be there yet. Far from its beginning it is not
    /// looked for any more: what a copy didn't bring along won't come.
    async fn history(&mut self, end: WalPosition, deadline: Duration) -> Result<TimelineHistory, String> {
        let complete = |h: &TimelineHistory| {
            let began = h.switches.last().map_or(end.lsn, |s| s.end);
            h.first_records.contains_key(&h.timeline) || h.switches.is_empty() || end.lsn.bytes_past(began) > SOUGHT
        };
        if let Some(known) = self.history.as_ref().filter(|h| h.timeline == end.timeline && complete(h)) {
            return Ok(known.clone());
        }
        let history = lineage(&self.instance, end, deadline).await?;
        self.history = Some(history.clone());
        Ok(history)
    }
}

/// One at a time: on a disk under which reading hangs each would leave a thread behind.
static READS: Semaphore = Semaphore::const_new(1);

/// See [`Instance::lineage`]; on a disk that stands still it takes no longer than `deadline`.
pub async fn lineage(instance: &Instance, end: WalPosition, deadline: Duration) -> Result<TimelineHistory, String> {
    let instance = instance.clone();
    let read = async {
        let alone = READS.acquire().await.map_err(|e| e.to_string())?;
        blocking(move || {
            let _alone = alone;
            instance.lineage(end).map_err(said)
        })
        .await
    };
    match tokio::time::timeout(deadline, read).await {
        Ok(read) => read?,
        Err(_) => Err(format!("the history of timeline {} could not be read within {deadline:?}", end.timeline)),
    }
}

/// A starting server is no problem worth telling about.
fn words(error: &ProbeError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// A probe and the history of its timeline, for the rules.
pub fn sight(probe: Probe, history: TimelineHistory) -> Sight {
    Sight {
        in_recovery: probe.in_recovery,
        wal_end: probe.wal_end,
        wal_end_known: probe.wal_end_known,
        history,
        replay_lsn: probe.replay_lsn,
        streaming: probe.streaming,
        upstream: probe.upstream,
        upstream_end: probe.upstream_end,
        standbys: probe.standbys,
        checkpoint_timeline: probe.checkpoint_timeline,
        replay_waits: probe.replay_waits,
        replay_paused: probe.replay_paused,
        server: probe.server,
        severed: probe.severed,
    }
}
