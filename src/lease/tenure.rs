//! Who renews an epoch here, and how far each of its sessions has come. The same
//! for a voter's acceptor and for an agent in failsafe.

use std::collections::VecDeque;

use super::{counters::Refusal, message::Ticket};
use crate::domain::{Epoch, MemberId, moment::TwoClocks};

const SESSIONS_MAX: usize = 16;

/// One start of the holder.
#[derive(Debug, Clone, Copy)]
struct Session {
    /// The highest seq, so that a recorded datagram can't prolong a promise.
    last: Ticket,
    /// When it was first admitted here.
    began: TwoClocks,
}

/// What the last renewal said, and who else renewed the epoch.
#[derive(Debug, Clone, Default)]
pub(super) struct Tenure {
    epoch: Epoch,
    holder: Option<MemberId>,
    sessions: VecDeque<Session>,
}

impl Tenure {
    /// The epoch renewed last; 0 before the first.
    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Who renews it.
    pub(super) fn holder(&self) -> Option<&MemberId> {
        self.holder.as_ref()
    }

    /// Notes a renewal, and when its session was first seen.
    ///
    /// # Errors
    /// It is old, or from a second holder of the epoch.
    pub(super) fn admit(
        &mut self,
        from: &MemberId,
        epoch: Epoch,
        ticket: Ticket,
        now: TwoClocks,
    ) -> Result<TwoClocks, Refusal> {
        let first = Session { last: ticket, began: now };
        if epoch > self.epoch || self.holder.is_none() {
            *self = Self { epoch, holder: Some(from.clone()), sessions: VecDeque::from([first]) };
            return Ok(now);
        }
        if self.holder.as_ref() != Some(from) {
            return Err(Refusal::OtherHolder);
        }
        match self.sessions.iter_mut().find(|known| known.last.session == ticket.session) {
            Some(known) if ticket.seq <= known.last.seq => Err(Refusal::Replayed),
            Some(known) => {
                known.last = ticket;
                Ok(known.began)
            }
            None => {
                if self.sessions.len() == SESSIONS_MAX {
                    self.sessions.pop_front();
                }
                self.sessions.push_back(first);
                Ok(now)
            }
        }
    }
}
