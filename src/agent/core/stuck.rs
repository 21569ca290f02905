//! What gets nowhere: a promotion that is late.

use std::time::Duration;

use super::{Core, Effect, Now, Running, Task};
use crate::domain::EndCause;

impl Core {
    /// One deadline for the whole of a promotion, wherever it hangs: the next candidate waits for it. The task gets as
    /// long; this holds also where the task itself hangs.
    pub(super) fn end_late_promotion(&mut self, now: Now, out: &mut Vec<Effect>) {
        let Some(Running { task: Task::Promote(tenure), shown, .. }) = &self.work else { return };
        if self.promotion_left(now) != Some(Duration::ZERO) || self.durable.tenure.is_none_or(|t| t.epoch != tenure.epoch) {
            return;
        }
        let why = format!("not promoted within {} ms, it was at `{}`", self.limits.promote.as_millis(), shown.phase);
        self.problem = Some(why.clone());
        self.end_tenure_of(*tenure, (EndCause::PromotionLate, &why), now, out);
    }

    /// Until the promotion under way is given up; `None` when none is.
    pub fn promotion_left(&self, now: Now) -> Option<Duration> {
        let Some(Running { task: Task::Promote(_), began, .. }) = &self.work else { return None };
        Some(self.limits.promote.saturating_sub(now.moment.since(*began)))
    }
}
