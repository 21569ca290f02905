//! Hooks that a task waits for. Each wait is bounded by what the task itself has time for, ends when PostgreSQL does, and begins
//! only before work that may come later as well: never before a fence, an immediate stop or what holds a lease.

use std::time::{Duration, Instant};

use super::{
    hands::wait_clear,
    hooks::due::Occurrence,
    order::{Source, StopMode},
    store::Tenure,
    tasks::{Job, left},
};
use crate::{
    domain::{
        TimelineId,
        hooks::{HookEvent, HookRole},
    },
    guard::GuardHandle,
};

impl Job {
    /// Half of the time that is left for the promotion is theirs.
    ///
    /// # Errors
    /// The veto.
    pub(super) async fn before_promotion(&self, tenure: &Tenure, until: tokio::time::Instant) -> Result<(), String> {
        if self.unleased {
            // It goes on as it is: nothing is promoted.
            return Ok(());
        }
        self.hands.progress("hooks", 0, 0);
        let (event, role) = (HookEvent::BeforePromote, HookRole::Replica);
        let of = Occurrence { event, role, epoch: tenure.epoch, timeline: tenure.timeline };
        self.hands.hooks.before_promotion(of, left(until) / 2).await
    }

    /// What they took of the time that a stop has, of which a third is theirs. A stop that an operator has planned goes on
    /// whatever they say.
    pub(super) async fn before_stop(&self, guard: &GuardHandle, mode: StopMode, of_primary: bool) -> Duration {
        if mode == StopMode::Immediate {
            return Duration::ZERO;
        }
        let began = Instant::now();
        let role = if of_primary { HookRole::Primary } else { HookRole::Replica };
        let demoted = of_primary.then(|| self.own(HookEvent::BeforeDemote, role));
        let due: Vec<_> = demoted.into_iter().chain([self.own(HookEvent::BeforeStop, role)]).collect();
        self.hands.progress("hooks", 0, 0);
        let budget = self.hands.timings.stop / 3;
        tokio::select! {
            _ = self.hands.hooks.before(&due, budget) => {}
            // Fenced or crashed meanwhile: what follows has waited for this task.
            _ = wait_clear(guard, budget * 2) => {}
        }
        began.elapsed()
    }

    /// A standby that runs is stopped for a copy that an operator wants; any other copy is not planned.
    pub(super) async fn before_copy(&self, source: &Source) {
        let runs = |guard: &&GuardHandle| {
            let state = guard.state();
            let state = state.borrow();
            state.alive && !state.postmaster.is_clear()
        };
        if let Some(guard) = self.guard.as_ref().filter(runs).filter(|_| source.named.is_some()) {
            self.before_stop(guard, StopMode::Fast, false).await;
        }
    }

    /// A standby may be started because it was granted the lock, so they get half of what a promotion has.
    pub(super) async fn before_start(&self) {
        let due = [self.own(HookEvent::BeforeStart, HookRole::Replica)];
        let _ = self.hands.hooks.before(&due, self.hands.timings.promote / 2).await;
    }

    /// Nobody writes meanwhile, and the lease is held: half of the time for a start, and of that for a promotion.
    pub(super) async fn before_restart(&self, tenure: &Tenure) {
        let (event, role) = (HookEvent::BeforeRestart, HookRole::Primary);
        let due = [Occurrence { event, role, epoch: tenure.epoch, timeline: tenure.timeline }];
        let timings = &self.hands.timings;
        let _ = self.hands.hooks.before(&due, timings.promote.min(timings.primary_start) / 2).await;
    }

    fn own(&self, event: HookEvent, role: HookRole) -> Occurrence {
        let timeline = self.timeline.or_else(|| self.wal_end.map(|end| end.timeline)).unwrap_or(TimelineId(0));
        Occurrence { event, role, epoch: self.epoch, timeline }
    }
}
