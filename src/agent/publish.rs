//! What the loop does beside the rules: it tells others what it sees, and looks for what nobody told it of.

use std::{sync::atomic::Ordering, time::Instant};

use super::{
    core::{Event, Tree},
    hands::blocking,
    process::{AT_LEAST, Agent, TICK, Wake},
    start,
    status::essence,
};

impl Agent {
    /// A PostgreSQL that somebody started by hand is nobody's standby and nobody's primary.
    pub(super) fn look_for_strangers_if_due(&mut self) {
        if self.looked.elapsed() >= TICK {
            self.looked = Instant::now();
            self.look_for_strangers();
        }
    }

    /// Beside the loop, for the data directory may be on a disk that stands still; no look is begun before the last one.
    pub(super) fn look_for_strangers(&mut self) {
        let quiet = self.core.tree() == Tree::Empty && self.core.work().is_none();
        if !quiet || self.looking.as_ref().is_some_and(|look| !look.is_finished()) {
            return;
        }
        let (hands, life, known) = (self.hands.clone(), self.core.life(), self.core.durable().clone());
        self.looking = Some(tokio::spawn(async move {
            let at_work = hands.clone();
            let found = blocking(move || {
                let instance = &at_work.instance;
                // Somebody else's is in nobody's way: whatever would start here is refused as long as it runs.
                instance.running_pid().is_some() && !start::is_stranger(instance, &known)
            });
            if !found.await.unwrap_or(false) {
                return;
            }
            let _works = hands.data_dir.lock().await;
            if hands.life.load(Ordering::SeqCst) != life {
                return;
            }
            let at_work = hands.clone();
            match blocking(move || at_work.kill_foreign()).await {
                Ok(Ok(true)) => drop(hands.wakes.send(Wake::Core(Event::StrayEnded))),
                Ok(Ok(false)) => {}
                Ok(Err(error)) | Err(error) => {
                    tracing::error!(error, "failed to end a PostgreSQL that no guard watches");
                }
            }
        }));
    }

    /// Answers every request that the probe began after.
    pub(super) fn answer_probes(&mut self, asked: u64, stale: Option<String>) {
        if !self.probes_wanted.iter().any(|(number, _)| *number <= asked) {
            return;
        }
        self.publish();
        let fresh = match stale {
            None => Ok(self.statuses.borrow().clone()),
            Some(why) => Err(why),
        };
        let (due, later) = self.probes_wanted.drain(..).partition(|(number, _)| *number <= asked);
        self.probes_wanted = later;
        let due: Vec<_> = due;
        for (_, reply) in due {
            let _ = reply.send(fresh.clone());
        }
    }

    pub(super) fn publish_if_due(&mut self) {
        let due = self.publish_at.is_some_and(|at| at <= Instant::now());
        if due || self.published.elapsed() >= AT_LEAST {
            self.publish();
        }
    }

    pub(super) fn publish(&mut self) {
        self.sequence += 1;
        let mut status = self.status();
        self.essence = essence(&status);
        status.sequence = self.sequence;
        self.publish_at = None;
        self.published = Instant::now();
        self.statuses.send_replace(status);
    }
}
