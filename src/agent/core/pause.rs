//! A pause of the cluster as this host minds it: nothing that happens here makes another member primary, and a
//! PostgreSQL that somebody stops stays down.

use std::time::Duration;

use super::{Core, Disk, Effect, Now};
use crate::{
    agent::store::Phase,
    domain::{EndCause, Moment, PauseWord},
};

/// A pause that the manager hasn't confirmed for so long counts no more; it says so every two seconds.
const FORGET: Duration = Duration::from_secs(20);

impl Core {
    pub(super) fn take_pause(&mut self, told: PauseWord, now: Now) {
        if told.version < self.pauses {
            return;
        }
        self.pauses = told.version;
        self.stays = told.stays.then_some(now.moment);
        match told.on {
            true => self.paused = Some(now.moment),
            false => self.end_pause(now),
        }
    }

    /// What waited for an operator so far waits for an order from now on.
    fn end_pause(&mut self, now: Now) {
        if self.paused.take().is_some() && self.idle_since.is_some() {
            self.idle_since = Some(now.moment);
        }
    }

    /// Without a manager nobody can tell that the pause is over.
    pub(super) fn forget_pause(&mut self, now: Now) {
        if self.paused.is_some_and(|told| now.moment.since(told) >= FORGET) {
            self.end_pause(now);
        }
        self.stays.take_if(|told| now.moment.since(*told) >= FORGET);
    }

    /// The directory of a PostgreSQL that ended without an order was read: it was shut down, and so by somebody.
    pub(super) fn note_stop_by_hand(&mut self, out: &mut Vec<Effect>) {
        let shut_down = matches!(&self.disk, Some(Disk::Present(facts)) if facts.clean_shutdown);
        if !std::mem::take(&mut self.left) || !shut_down || self.paused.is_none() {
            return;
        }
        tracing::warn!("postgresql was stopped by hand in a pause and stays down; `matriarch restart` starts it again");
        let me = &self.me;
        self.problem =
            Some(format!("PostgreSQL was stopped by hand in a pause; `matriarch restart {me}` starts it again"));
        self.durable.stopped_by_hand = true;
        if self.durable.tenure.is_some_and(|t| t.phase == Phase::Crashed) {
            self.set_phase(Phase::Stopped);
        }
        out.push(Effect::Persist);
    }

    /// One that somebody started without a guard was killed. Whoever did it wants PostgreSQL to run: it is started
    /// again, as it should be.
    pub(super) fn on_stray_ended(&mut self, out: &mut Vec<Effect>) {
        self.left = false;
        if std::mem::take(&mut self.durable.stopped_by_hand) {
            tracing::warn!(
                "a PostgreSQL that was started by hand was ended, for no guard watched it, and is started again; use \
                 `matriarch restart` instead"
            );
            self.problem = Some(format!("PostgreSQL was started by hand; use `matriarch restart {}`", self.me));
            out.push(Effect::Persist);
        }
    }

    /// Why the highest epoch that ended here did.
    pub fn ended_by(&self) -> EndCause {
        self.ended_by
    }

    /// Nobody is to take over by itself: a restart takes as long, and is tried as often, as it takes.
    pub fn waits_for_ever(&self) -> bool {
        self.paused.is_some() || self.stays.is_some()
    }

    /// A primary that has not run since then is waited for however long it takes. Not one that stays only because too many
    /// failovers have followed crashes, when somebody else could go on: it did not come up, so there is nothing to save.
    pub(super) fn waits_for(&self, since: Moment) -> bool {
        self.paused.is_some() || (self.stays.is_some() && !self.was_followed(since))
    }

    /// The manager has told of a pause, and lately.
    pub fn is_paused(&self) -> bool {
        self.paused.is_some()
    }

    /// Somebody stopped PostgreSQL in a pause, and nothing was ordered since.
    pub fn is_stopped_by_hand(&self) -> bool {
        self.durable.stopped_by_hand
    }
}

#[cfg(test)]
#[path = "pause_test.rs"]
mod tests;
