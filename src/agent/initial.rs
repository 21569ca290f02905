//! The task that makes the first data directory, or takes over what runs in it.

use super::{
    hands::{blocking, said},
    tasks::{Failure, Job},
};
use crate::{guard, postgres::Progress};

impl Job {
    /// A failure is harmless when no guard came to stand beside anything.
    pub(super) async fn initdb(&self) -> Result<(), Failure> {
        let harmless = |error| Failure { error, harmless: true };
        let _works = self.hands.data_dir.lock().await;
        let progress = |p: Progress| self.hands.progress(&p.phase, p.done_bytes, p.total_bytes);
        self.hands.instance.initdb(&progress).await.map_err(|error| harmless(said(error)))?;
        if self.hands.instance.is_to_go_on_running() {
            // Whoever finds a writable PostgreSQL under a guard would end it.
            if !self.unleased {
                return Err(harmless("it began to run meanwhile".to_owned()));
            }
            self.hands.progress("a guard beside it", 0, 0);
            if let Err(error) = self.hands.take_over().await {
                let runtime_dir = self.hands.runtime_dir.clone();
                let stands = blocking(move || !matches!(guard::adopt(&runtime_dir), Ok(None))).await;
                return Err(Failure { error, harmless: stands == Ok(false) });
            }
        }
        Ok(())
    }
}
