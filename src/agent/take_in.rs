//! The task that makes what somebody else's standby has left a standby of this cluster.

use std::time::Duration;

use super::{
    hands::said,
    order::Source,
    tasks::{Failure, Job},
};
use crate::postgres::{TakeInError, Upstream};

/// A standby that is stopped writes a restartpoint, which may be as much as it has in memory.
const STOP: Duration = Duration::from_secs(120);

impl Job {
    /// A failure is harmless when only a copy helps. Then it is copied, and what was there is kept.
    pub(super) async fn take_in(&self, source: &Source) -> Result<(), Failure> {
        let instance = &self.hands.instance;
        let _works = self.hands.data_dir.lock().await;
        if !instance.takes_standby_in() {
            return Err(Failure { error: "nothing is there that could be taken in".to_owned(), harmless: true });
        }
        self.hands.progress("looking at what is taken in", 0, 0);
        let primaries = self.primaries(source);
        let taken = instance.take_in(&primaries, self.copies.lineage.as_ref(), STOP).await;
        taken.map_err(|error| Failure { harmless: matches!(error, TakeInError::Unproven(_)), error: said(error) })?;
        // From now on, and not only when it streams. What it needs from before, its old slot has kept.
        if let Err(error) = instance.keep_wal_for_copy(&Upstream::from(source)).await {
            tracing::warn!(error = said(error), "the primary keeps no WAL for this member until it streams");
        }
        tracing::warn!(source = %source.member, "a standby of this cluster's data was taken in as it lies");
        Ok(())
    }
    /// Before a copy: somebody else's directory is replaced by what it is in this moment, not by what was found before.
    pub(super) async fn may_be_replaced(&self, source: &Source) -> Result<(), Failure> {
        let instance = &self.hands.instance;
        if !instance.takes_standby_in() {
            return Ok(());
        }
        self.hands.progress("looking at what is replaced", 0, 0);
        let may = instance.may_be_replaced(&self.primaries(source), self.copies.lineage.as_ref(), STOP).await;
        may.map_err(|error| Failure { error: said(error), harmless: false })
    }

    fn primaries(&self, source: &Source) -> Vec<Upstream> {
        let first = Upstream::from(source);
        let others = self.hands.instance.others().filter(|other| other.id != first.member);
        let others = others.map(|m| Upstream { member: m.id.clone(), host: m.host.clone(), port: m.postgres_port });
        Vec::from_iter(std::iter::once(first.clone()).chain(others))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::core::LEFT_ALONE;

    #[test]
    fn what_is_refused_is_known_by_its_first_words() {
        assert!(TakeInError::Refused("why".to_owned()).to_string().starts_with(LEFT_ALONE));
        assert!(!TakeInError::Unproven("why".to_owned()).to_string().starts_with(LEFT_ALONE));
    }
}
