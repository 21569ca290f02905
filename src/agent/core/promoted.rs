//! How a promotion ends: as a primary, with the grant given back, or with a fence.

use super::*;

impl Core {
    pub(super) fn promoted(&mut self, tenure: Tenure, end: &TaskEnd, now: Now, out: &mut Vec<Effect>) {
        let still_ours = self.durable.tenure.is_some_and(|t| t.epoch == tenure.epoch);
        match end {
            TaskEnd::Succeeded if still_ours => {
                self.set_phase(Phase::Primary);
                self.durable.unleased = false;
                out.push(Effect::Persist);
                if self.tree == Tree::Empty {
                    // It ended after the task's last look, and was left to the task until now.
                    return self.crash(Tenure { phase: Phase::Primary, ..tenure }, false, now, out);
                }
                out.push(Effect::CheckpointBeside);
            }
            // The lease was lost on the way; the fence is under way already.
            TaskEnd::Succeeded => self.fence(now, out),
            TaskEnd::Failed { harmless: true, error } if still_ours => self.give_back(tenure, error, out),
            TaskEnd::Failed { error, .. } => {
                let why = format!("the promotion failed: {error}");
                if let Some(tenure) = self.durable.tenure {
                    self.end_or_let_go(tenure, (EndCause::PromotionFailed, &why), now, out);
                }
            }
        }
    }

    /// A promotion that never held the lease: the standby goes on as a standby.
    pub(super) fn give_back(&mut self, tenure: Tenure, error: &str, out: &mut Vec<Effect>) {
        tracing::warn!(epoch = %tenure.epoch, error, "the lease was not reached, the grant is given back");
        self.ended_by = EndCause::PromotionFailed;
        self.durable.tenure = None;
        self.durable.ended = self.durable.ended.max(tenure.epoch);
        self.durable.fenced = self.durable.fenced.max(tenure.epoch);
        let notice = self.notice(tenure.epoch, true, false);
        out.extend([Effect::Release, Effect::Persist, Effect::Notice(notice)]);
        // PostgreSQL may have ended meanwhile, and its directory been read.
        self.seek_the_end(out);
    }
}
