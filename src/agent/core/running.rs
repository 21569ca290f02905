//! A PostgreSQL that was taken over while it ran. Until it is primary under a lease it writes without one, as it did before:
//! nobody else has its data, so nobody else can be granted. From then on it is bound like every primary.

use super::{Core, Effect, EndCause, Now, Phase, Sight, Task, TaskEnd, Tenure, Tree};
use crate::domain::{Epoch, TimelineId, WalPosition};

impl Core {
    /// Whether an order to make the first data directory takes over what runs.
    pub fn take_over_what_runs(&mut self, does: bool) {
        self.takes_over = does;
    }

    /// From the moment on in which a guard may come to stand beside it: on disk first, for whoever finds a writable PostgreSQL
    /// under a guard, and no lease, ends it.
    pub(super) fn begin_unleased(&mut self, out: &mut Vec<Effect>) {
        if self.takes_over && !std::mem::replace(&mut self.durable.unleased, true) {
            out.push(Effect::Persist);
        }
    }

    /// Nothing of it is left, or it is a primary as any other.
    pub(super) fn end_unleased(&mut self, out: &mut Vec<Effect>) {
        if std::mem::take(&mut self.durable.unleased) {
            out.push(Effect::Persist);
        }
    }

    /// It writes as it did before there was a cluster.
    pub(super) fn is_unleased(&self) -> bool {
        self.durable.unleased
    }

    /// Ends an epoch, and lets what was taken over go on when that epoch was never held here: it writes as it did before, and
    /// nobody else can have been granted.
    pub(super) fn end_or_let_go(&mut self, tenure: Tenure, why: (EndCause, &str), now: Now, out: &mut Vec<Effect>) {
        let never_held = self.is_unleased() && tenure.phase == Phase::Granted && self.held < tenure.epoch;
        match &self.tree {
            Tree::Running { .. } if never_held && self.fencing_since.is_none() => self.give_back(tenure, why.1, out),
            _ => self.end_tenure_of(tenure, why, now, out),
        }
    }

    /// A grant that lets it go on: for the very timeline it is on, and with all WAL that the grant was decided on.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn bind(
        &mut self,
        (epoch, timeline): (Epoch, TimelineId),
        floor: WalPosition,
        now: Now,
        out: &mut Vec<Effect>,
    ) -> Result<Task, String> {
        if let Some(why) = self.may_not_be_promoted(now) {
            return Err(why);
        }
        let runs = matches!(self.tree, Tree::Running { .. }) && self.fencing_since.is_none();
        let Some(sight) = self.sight.as_ref().filter(|_| runs) else {
            return Err("what was taken over doesn't answer".to_owned());
        };
        goes_on(sight, timeline, floor)?;
        self.begin_sync(epoch)?;
        let tenure = Tenure { epoch, timeline, floor, phase: Phase::Granted };
        self.durable.tenure = Some(tenure);
        out.push(Effect::Persist);
        Ok(Task::Promote(tenure))
    }
}

/// It left nothing behind that can end what runs.
pub(super) fn is_harmless(end: &TaskEnd) -> bool {
    !matches!(end, TaskEnd::Failed { harmless: false, .. })
}

/// Whether what runs is what such a grant was decided on.
///
/// # Errors
/// What it is, and what the grant wants.
pub fn goes_on(sight: &Sight, timeline: TimelineId, floor: WalPosition) -> Result<(), String> {
    if sight.in_recovery {
        return Err("what was taken over is a standby".to_owned());
    }
    let end = sight.wal_end;
    match end.timeline == timeline && floor.timeline == timeline && end.lsn >= floor.lsn {
        true => Ok(()),
        false => Err(format!("its WAL ends at {end}, the grant is for timeline {timeline} from {floor} on")),
    }
}
