//! By which rule a primary acknowledges commits, and what a standby has promised.
//!
//! A rule is on disk before PostgreSQL goes by it, so that a restart in place
//! never goes by an older one than before: that one may have gone from the log.

use std::time::Duration;

use super::{Core, Effect, Tree};
use crate::{
    agent::{acks::SyncPlan, store::Phase},
    domain::{Epoch, LostWal, SyncMode, SyncWord, Uncovered, observation::SyncView},
    postgres::Live,
};

/// So many losses are remembered.
const LOSSES_KEPT: usize = 8;

impl Core {
    /// What a manager tells of rules. True when the primary that runs here is to go by another one: that has to be on disk.
    pub(super) fn take_sync(&mut self, told: SyncWord) -> bool {
        let age = |word: &SyncWord| (word.epoch, word.id);
        if age(&told) > age(&self.told_sync) {
            self.told_sync = told;
        }
        let told = &self.told_sync;
        let ours = self.durable.tenure.is_some_and(|t| t.epoch == told.epoch);
        let newer = ours && told.id > self.durable.sync.id;
        if newer {
            self.durable.sync = told.clone();
        }
        newer
    }

    /// The rule that a promotion in `epoch` begins with.
    ///
    /// # Errors
    /// It was not told.
    pub(super) fn begin_sync(&mut self, epoch: Epoch) -> Result<(), String> {
        self.durable.sync = match &self.told_sync {
            told if told.epoch == epoch => told.clone(),
            // Of a manager that knows of no rules.
            told if told.id == 0 => SyncWord { epoch, ..SyncWord::default() },
            told => {
                return Err(format!(
                    "by which rule commits of epoch {epoch} are acknowledged was not told yet; the last that was is of epoch {}",
                    told.epoch
                ));
            }
        };
        Ok(())
    }

    pub(super) fn on_acks(&mut self, view: SyncView) {
        self.sync_view = view;
    }

    /// What the running primary is to go by; `None` when there is none.
    pub fn sync_plan(&self, watch: Duration, deadline: Duration) -> Option<SyncPlan> {
        let tenure = self.durable.tenure.filter(|t| t.phase == Phase::Primary)?;
        let runs = matches!(self.tree, Tree::Running { .. }) && self.fencing_since.is_none();
        self.sight.as_ref().filter(|s| runs && !s.in_recovery)?;
        let word = &self.durable.sync;
        let rule = word.rule.as_ref().filter(|rule| rule.epoch == tenure.epoch);
        let watched = rule.is_some() || self.settings.replication_mode != SyncMode::Async;
        Some(SyncPlan {
            life: self.life,
            id: word.id,
            rule: rule.cloned(),
            live: self.live(),
            generation: self.durable.generation,
            watch: watched.then_some(watch),
            deadline,
        })
    }

    /// The live configuration of the primary of the present tenure.
    pub fn live(&self) -> Live {
        let epoch = self.durable.tenure.map(|t| t.epoch);
        let rule = self.durable.sync.rule.as_ref().filter(|rule| Some(rule.epoch) == epoch);
        Live::of(rule, self.durable.generation, self.settings.synchronous_commit)
    }

    /// Who confirms, as far as it was seen.
    pub fn sync_view(&self) -> SyncView {
        match self.durable.tenure {
            Some(tenure) if tenure.phase == Phase::Primary => self.sync_view.clone(),
            Some(_) | None => SyncView::default(),
        }
    }

    /// What its rule of commits does not cover, as far as it was seen.
    pub fn uncovered(&self) -> Uncovered {
        match self.durable.tenure {
            Some(tenure) if tenure.phase == Phase::Primary => self.uncovered.clone(),
            Some(_) | None => Uncovered::default(),
        }
    }

    /// Who is to follow without a rewind has nothing that the cluster has not.
    pub(super) fn note_that_nothing_is_lost(&mut self) {
        let nothing = |end| LostWal { fork: end, end, transactions: Some(0), saved: false };
        self.nothing_lost = self.reigned.take().map(nothing).or(self.nothing_lost);
    }

    /// What was lost when this host was primary, as far as it is known.
    pub fn lost(&self) -> Vec<LostWal> {
        self.durable.lost.iter().copied().chain(self.nothing_lost).collect()
    }

    /// What is lost is counted once: a rewind that failed, and the copy after it, find less than there was.
    pub(super) fn on_lost(&mut self, lost: LostWal, out: &mut Vec<Effect>) {
        self.reigned = None;
        if self.durable.lost.iter().any(|known| known.fork == lost.fork) {
            return;
        }
        self.durable.lost.push(lost);
        let many = self.durable.lost.len().saturating_sub(LOSSES_KEPT);
        self.durable.lost.drain(..many);
        out.push(Effect::Persist);
    }

    /// It follows nobody, and will not before an order of an epoch it accepts then.
    pub fn is_severed(&self) -> bool {
        match self.tree {
            Tree::Empty => self.work.is_none() && self.durable.tenure.is_none(),
            Tree::Running { .. } => {
                let told = self.follows.is_none() && self.work.is_none() && self.durable.tenure.is_none();
                told && self.sight.as_ref().is_some_and(|s| s.in_recovery && s.severed)
            }
            Tree::Ending => false,
        }
    }

    /// The epoch under whose name it follows its primary; 0 when that is not known.
    pub fn follows_epoch(&self) -> Epoch {
        let follows = self.sight.as_ref().is_some_and(|s| s.in_recovery) && self.follows.is_some();
        if follows { self.follows_epoch } else { Epoch(0) }
    }

    pub(super) fn forget_acks(&mut self) {
        self.sync_view = SyncView::default();
        self.uncovered = Uncovered::default();
    }
}
