//! What follows when nothing of PostgreSQL is left: a crash, a restart that did or didn't succeed.

use super::*;

impl Core {
    pub(super) fn on_gone(&mut self, fenced: bool, exit: &str, now: Now, out: &mut Vec<Effect>) {
        if self.tree == Tree::Empty {
            return;
        }
        self.tree = Tree::Empty;
        self.killed += u64::from(fenced);
        self.end_unleased(out);
        self.sight = None;
        self.fencing_since = None;
        self.wal_end_known = false;
        let task = self.work.as_ref().map(|w| &w.task);
        let expected = matches!(task, Some(Task::Stop { .. } | Task::Rewind(_) | Task::Clone(_)));
        let handled_by_task = matches!(task, Some(Task::Stop { .. } | Task::Restart { .. } | Task::Promote(_)));
        let hung = self.hung.take();
        let restarts = self.restarts();
        if restarts {
            // What follows from that is the task's end's to say.
            self.stalled.clone_from(&hung);
        }
        self.left = !expected && !fenced && !handled_by_task && hung.is_none() && self.answered;
        if !expected && !fenced {
            self.problem = Some(format!("PostgreSQL ended: {exit}"));
            self.note_failed_start();
        }
        self.note_wal_left(restarts);
        match self.durable.tenure {
            Some(tenure) if hung.is_some() && !restarts => self.crash(tenure, true, now, out),
            Some(tenure) if fenced && hung.is_none() => {
                self.end_tenure_of(tenure, (EndCause::Lease, "the guard ended PostgreSQL"), now, out)
            }
            Some(tenure) if handled_by_task => {
                tracing::info!(epoch = %tenure.epoch, "postgresql ended during a task");
            }
            Some(tenure) => self.crash(tenure, false, now, out),
            None => {}
        }
        self.tree_is_empty(out);
        self.survey(self.durable.tenure.is_none(), out);
    }

    /// A start is reported as done when the postmaster runs, for recovery may take long. One
    /// that ends before it ever answers has failed all the same: it is tried again later and
    /// later, and another member is preferred as successor.
    fn note_failed_start(&mut self) {
        let Some(why) = self.failed_start() else { return };
        if self.durable.tenure.is_none() {
            self.cure.start_failed(&why);
        }
        if let Some(last) = self.last_order.as_mut().filter(|o| o.kind == "start" && o.error.is_none()) {
            last.error = Some(why);
        }
    }

    pub(super) fn failed_start(&self) -> Option<String> {
        let dead = self.tree == Tree::Empty && !self.answered;
        dead.then(|| self.problem.clone().unwrap_or_else(|| "PostgreSQL ended before it answered".to_owned()))
    }

    /// The postmaster ended by itself, or because it hung: with time enough left it may be restarted in place.
    pub(super) fn crash(&mut self, tenure: Tenure, hung: bool, now: Now, out: &mut Vec<Effect>) {
        if tenure.phase == Phase::Granted || self.lease_left(now) < self.limits.hold / 2 {
            let why = "PostgreSQL ended and too little of the lease was left";
            return self.end_tenure_of(tenure, (EndCause::Crash, why), now, out);
        }
        if let Some(why) = self.must_give_way(now) {
            return self.end_for_storage(tenure, &why, now, out);
        }
        let cause = if hung { EndCause::Hung } else { self.crash_cause() };
        if let After::FailOver(why) = self.note_crash(now, out) {
            return self.end_tenure_of(tenure, (cause, &why), now, out);
        }
        self.set_phase(Phase::Crashed);
        self.idle_since = Some(now.moment);
        out.push(Effect::Notice(self.notice(tenure.epoch, false, false)));
        // The voters remember how far it came; that it writes no more is news.
        out.push(Effect::SetWal(WalPosition::default()));
    }

    /// A standby streamed from here not long ago: there is somebody to take over.
    pub(super) fn is_followed(&self, now: Now) -> bool {
        self.was_followed(now.moment)
    }

    /// Who streamed before a hang counts when that is over, however short the window is.
    pub(super) fn was_followed(&self, at: Moment) -> bool {
        let lately = self.settings.crash_window.max(self.limits.hang);
        self.followed.is_some_and(|followed| at.since(followed) < lately)
    }

    fn crash_cause(&self) -> EndCause {
        match self.cause() {
            Cause::NoSpace => EndCause::NoSpace,
            Cause::Storage => EndCause::Storage,
            Cause::Other => EndCause::Crash,
        }
    }

    fn note_crash(&mut self, now: Now, out: &mut Vec<Effect>) -> After {
        self.crashes.happened(now.moment);
        let cause = self.cause();
        if cause == Cause::NoSpace {
            out.extend(self.room.ran_out().map(Effect::Reserve));
        }
        if self.waits_for_ever() {
            return After::Restart;
        }
        let standbys = match (self.is_followed(now), self.is_kept()) {
            (true, true) => Standbys::HaveAll,
            (true, false) => Standbys::Stream,
            (false, _) => Standbys::None,
        };
        self.crashes.note(&self.settings, cause, standbys, now.moment)
    }

    /// Standbys have every commit that was acknowledged, and with one of them as primary enough are left to confirm its own.
    fn is_kept(&self) -> bool {
        let count = self.durable.sync.rule.as_ref().map_or(0, |rule| rule.count as usize);
        let in_effect = self.sync_view.effective && self.sync_view.applied == self.durable.sync.id;
        count > 0 && in_effect && self.followers > count
    }

    /// Why PostgreSQL ended, by what it said last.
    fn cause(&self) -> Cause {
        self.problem.as_deref().map_or(Cause::Other, Cause::of)
    }

    pub(super) fn restarted(&mut self, tenure: Tenure, end: &TaskEnd, now: Now, out: &mut Vec<Effect>) {
        let still_ours = self.durable.tenure.is_some_and(|t| t.epoch == tenure.epoch);
        match end {
            TaskEnd::Succeeded if still_ours => {
                self.stalled = None;
                self.durable.restart_intent = None;
                self.forget_wal_left();
                self.set_phase(Phase::Primary);
                self.idle_since = None;
                out.push(Effect::Persist);
                if self.tree == Tree::Empty {
                    self.crash(Tenure { phase: Phase::Primary, ..tenure }, false, now, out);
                }
            }
            TaskEnd::Succeeded => self.fence(now, out),
            TaskEnd::Failed { .. } => {
                let stalled = self.stalled.take().is_some();
                if still_ours {
                    self.set_phase(Phase::Crashed);
                    self.idle_since.get_or_insert(now.moment);
                    let cause = if stalled { EndCause::Hung } else { self.crash_cause() };
                    if let After::FailOver(why) = self.note_crash(now, out) {
                        self.end_tenure_of(tenure, (cause, &why), now, out);
                    }
                }
                if self.tree != Tree::Empty {
                    // The task could not even end what it had started.
                    self.fence(now, out);
                    self.end_tenure((EndCause::Crash, "the restart in place failed and left processes"), now, out);
                } else {
                    self.tree_is_empty(out);
                    // Puts the signal file back and clears the intent.
                    self.survey(self.durable.tenure.is_none(), out);
                }
            }
        }
    }
}
