//! Whether users get in, by what those say who knock.

use super::*;

/// A running server lets nobody in any more, and says so.
#[derive(Debug, Clone, Copy)]
pub(super) struct TurnsAway {
    since: Moment,
    /// When it was told to make an end of it.
    told: Option<Moment>,
}

impl Core {
    /// Users can't get in. While something works on it, or before it ever answered, that is nothing unusual.
    pub(super) fn on_knocked(&mut self, knock: Knock, waited: Duration, now: Now, out: &mut Vec<Effect>) {
        // A checkpoint keeps nobody out.
        let at_work = self.work.as_ref().is_some_and(|work| work.task != Task::Checkpoint);
        let settled = matches!(self.tree, Tree::Running { .. }) && self.answered && !at_work;
        // Until it has held a lease nothing is done to it that was not done before.
        if !settled || self.is_fencing() || self.is_unleased() {
            self.turns_away = None;
            return;
        }
        match knock {
            Knock::Answered => self.turns_away = None,
            Knock::TurnsAway => self.on_turned_away(waited, now, out),
            Knock::Silent => {
                self.ends_hung(format!("PostgreSQL answered no new connection for {} ms", waited.as_millis()), now, out)
            }
            Knock::Refused => self.ends_hung("PostgreSQL runs and takes no connections".to_owned(), now, out),
        }
    }

    /// Somebody asked it to shut down. In the smart way that waits for all sessions to leave, the agent's own among them, so
    /// it would be for ever: a primary that serves nobody new, under a lease that goes on. So it is made a fast one; in a
    /// pause only when whoever did it has had the time of an ordered stop. What follows is what follows any stop by hand. One that
    /// comes to no end for as long as a start may take keeps others from going on, and is ended.
    fn on_turned_away(&mut self, waited: Duration, now: Now, out: &mut Vec<Effect>) {
        let turns = self.turns_away.get_or_insert(TurnsAway { since: now.moment, told: None });
        let patience = if self.paused.is_some() { self.limits.stop } else { waited };
        match turns.told {
            None if now.moment.since(turns.since) >= patience => {
                turns.told = Some(now.moment);
                let why = "PostgreSQL is being shut down and lets nobody in";
                tracing::warn!(patience_ms = patience.as_millis(), "{why}: it is told to end its sessions");
                self.problem = Some(why.to_owned());
                out.push(Effect::EndShutdown);
            }
            // In a pause that is whoever's began it, and its last checkpoint may take long.
            Some(told) if self.paused.is_none() && now.moment.since(told) >= self.limits.primary_start => {
                self.ends_hung("PostgreSQL is being shut down and comes to no end".to_owned(), now, out);
            }
            None | Some(_) => {}
        }
    }

    fn ends_hung(&mut self, why: String, now: Now, out: &mut Vec<Effect>) {
        tracing::warn!(why, "postgresql hangs and is ended");
        self.turns_away = None;
        self.hung = Some(why.clone());
        self.problem = Some(why);
        self.fence(now, out);
    }
}
