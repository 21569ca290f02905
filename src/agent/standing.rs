//! What the layers are told, beside the deadlines of the lease.

use std::time::Duration;

use super::{
    core::Tree,
    process::{Agent, now},
};
use crate::{domain::moment::TwoClocks, guard::clocks_name, layers::Left, rpc::v1};

impl Agent {
    /// What protects beyond the guard goes when nothing of a primary can run any more, and not before.
    pub(super) fn mind_layers(&mut self) {
        let needed = self.core.needs_layers();
        if self.layers_stand && !needed {
            self.stand_down();
        }
        self.layers_stand = needed;
        let serving = self.core.serving(now(self.began));
        if std::mem::replace(&mut self.serving, serving) != serving {
            self.hands.layers.serve(serving);
        }
        let serving = self.core.serving_readers(now(self.began));
        if std::mem::replace(&mut self.serving_readers, serving) != serving {
            self.hands.layers.serve_reader(serving);
        }
    }

    pub(super) fn stand_down(&self) {
        self.hands.layers.stand_down(match self.core.tree() {
            Tree::Empty => Left::Nothing,
            Tree::Running { .. } | Tree::Ending => Left::Standby,
        });
    }

    /// The deadline is the manager's word for the Raft leader's: nothing here makes it later.
    pub(super) fn lend_reader(&self, request: &v1::LendReaderRequest) -> Result<(), String> {
        let lent = match request.id {
            0 => None,
            id => {
                let own = clocks_name().map_err(|error| format!("/proc can't be read: {error}"))?;
                if request.clocks != own {
                    return Err(
                        "the manager has other clocks than this agent: run both on one host, in one time namespace"
                            .to_owned(),
                    );
                }
                let (boot, raw) = (Duration::from_nanos(request.boot_ns), Duration::from_nanos(request.raw_ns));
                Some((id, TwoClocks { boot, raw }))
            }
        };
        self.hands.layers.lend_reader(lent);
        Ok(())
    }
}
