//! What lies beside the data directory for a while: what a rewind or a copy has kept aside, and WAL that other members have lent.

use super::{
    core::Event,
    hands::{Hands, blocking, chain},
    process::{Agent, Wake},
};
use crate::guard::GuardHandle;

impl Agent {
    pub(super) fn discard_what_was_kept_aside(&mut self) {
        let streams = self.core.sight().is_some_and(|s| s.streaming);
        if streams && self.discarded_life != self.core.life() && self.core.work().is_none() {
            self.discarded_life = self.core.life();
            let (hands, keep) = (self.hands.clone(), self.core.settings().keep_diverged_data);
            let guard = self.guard.clone();
            tokio::spawn(async move {
                // Of an agent that is no more.
                give_back(hands.clone(), guard).await;
                if let Err(error) = hands.discard_old(keep).await {
                    tracing::warn!(error, "failed to remove what a rewind or a clone kept aside");
                }
            });
        }
    }

    /// A standby that needs WAL which is gone where it streams from gets it from other members. What they lent goes when it
    /// streams, or was promoted.
    pub(super) fn mind_lent(&mut self) {
        if self.borrows.as_ref().is_some_and(|borrows| !borrows.is_finished()) {
            return;
        }
        let needless = self.core.sight().is_some_and(|sight| sight.streaming || !sight.in_recovery);
        if needless && self.core.work().is_none() && std::mem::take(&mut self.lent) {
            self.borrows = Some(tokio::spawn(give_back(self.hands.clone(), self.guard.clone())));
        } else if let Some((upstream, end, history)) = self.core.borrows() {
            let Some(borrower) = self.borrower() else { return self.core.borrowed(Some(0)) };
            tracing::info!(%upstream, %end, "the WAL after that is gone there, other members are asked");
            self.lent = true;
            let (hands, guard) = (self.hands.clone(), self.guard.clone());
            self.borrows = Some(tokio::spawn(async move {
                let bytes = borrower.for_standby((history, end), &upstream).await;
                if bytes > 0 {
                    hands.refresh_archive(guard);
                }
                let _ = hands.wakes.send(Wake::Core(Event::Borrowed(bytes)));
            }));
        }
    }

    /// Whoever works in the data directory from now on may need the room, or ask for something else.
    pub(super) fn end_borrowing(&mut self) {
        if let Some(borrows) = self.borrows.take()
            && !borrows.is_finished()
        {
            borrows.abort();
            self.core.borrowed(None);
            self.lent = true;
        }
    }
}

async fn give_back(hands: Hands, guard: Option<GuardHandle>) {
    let instance = hands.instance.clone();
    if !blocking(move || instance.keeps_lent()).await.unwrap_or(true) {
        return;
    }
    match hands.instance.forget_lent().await {
        Ok(()) => hands.refresh_archive(guard),
        Err(error) => tracing::warn!(error = chain(&error), "failed to remove WAL that other members have lent"),
    }
}
