//! The acceptor of a voter, pure: readings of the clocks and messages in,
//! answers and what must be durable before them out.
//!
//! An ack promises not to help another primary until `receipt + T_grant`. The
//! promise itself is kept in memory: whoever starts, or finds itself in another
//! membership, behaves as if it had acked a moment ago. Only the sealed epoch is
//! durable, because forgetting it would let an old epoch be renewed again.

use std::{collections::VecDeque, time::Duration};

use super::{
    counters::Refusal,
    message::{Body, Letter, Membership, Ticket},
};
use crate::domain::{Epoch, MemberId, Promise, WalPosition, moment::TwoClocks, observation::Notice};

/// No profile has a promise this long; a renewal that asks for one is a mistake,
/// and acking it would keep every other member from taking over.
pub const GRANT_MAX: Duration = Duration::from_secs(600);
const SESSIONS_MAX: usize = 16;
const NOTICES_MAX: usize = 64;

/// What an acceptor must find again after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Durable {
    /// No renewal of an epoch below is acked.
    pub sealed: Epoch,
    /// The longest promise ever given: a restart waits for that long.
    pub grant: Duration,
}

/// What follows from one message. When `persist` is there it is made durable,
/// and confirmed by [`Acceptor::persisted`], before `reply` leaves; when that
/// fails, `reply` is dropped.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Response {
    /// To be made durable first.
    pub persist: Option<Durable>,
    /// To the sender.
    pub reply: Option<Letter>,
    /// A notice not seen before.
    pub notice: Option<Notice>,
    /// Why there is no answer.
    pub refused: Option<Refusal>,
}

impl Response {
    fn reply(epoch: Epoch, body: Body) -> Self {
        Self { reply: Some(Letter { epoch, body }), ..Self::default() }
    }

    fn refused(refusal: Refusal) -> Self {
        Self { refused: Some(refusal), ..Self::default() }
    }
}

/// What the last acked renewal said, and who else renewed the epoch.
#[derive(Debug, Default)]
struct Tenure {
    epoch: Epoch,
    holder: Option<MemberId>,
    /// The highest seq of each session, so that a recorded datagram can't prolong a promise.
    sessions: VecDeque<Ticket>,
}

/// The acceptor of one voter.
#[derive(Debug)]
pub struct Acceptor {
    grant: Duration,
    sealed: Epoch,
    durable: Durable,
    until: TwoClocks,
    tenure: Tenure,
    highest: WalPosition,
    applied: bool,
    membership: Option<Membership>,
    in_log: u64,
    notices: VecDeque<Notice>,
}

impl Acceptor {
    /// An acceptor that starts `now`, with its own T_grant and what an earlier
    /// start left behind. It may have acked a moment ago, so it promises anew.
    pub fn new(grant: Duration, durable: Durable, now: TwoClocks) -> Self {
        Self {
            grant,
            sealed: durable.sealed,
            durable: Durable { sealed: durable.sealed, grant: durable.grant.max(grant) },
            until: now.plus(grant.max(durable.grant)),
            tenure: Tenure::default(),
            highest: WalPosition::default(),
            applied: false,
            membership: None,
            in_log: 0,
            notices: VecDeque::new(),
        }
    }

    /// The promise as others may rely on it: `sealed` is what is durable.
    pub fn promise(&self, now: TwoClocks) -> Promise {
        promise_until(&self.view(), self.until, now)
    }

    /// Everything in the promise that does not depend on the clock.
    fn view(&self) -> Promise {
        Promise {
            sealed: self.durable.sealed,
            epoch: self.tenure.epoch,
            lapsed: false,
            remaining_ms: 0,
            highest: self.highest,
            renewed: self.tenure.holder.is_some(),
            membership: self.effective().map_or(0, |m| m.id),
        }
    }

    /// The membership it can act on: the one in its log, everything before it applied.
    fn effective(&self) -> Option<&Membership> {
        let known = self.membership.as_ref().filter(|_| self.applied)?;
        (self.in_log == 0 || self.in_log == known.id).then_some(known)
    }

    /// When the promise ends, on both clocks.
    pub fn until(&self) -> TwoClocks {
        self.until
    }

    /// The membership that acks carry.
    pub fn membership(&self) -> Option<&Membership> {
        self.membership.as_ref()
    }

    /// The membership effective in this voter's log. Entries before it must have been applied (see
    /// [`Acceptor::set_applied`]). The old voters may hold promises this one knows nothing of, so a
    /// change starts as a restart does.
    pub fn set_membership(&mut self, membership: Membership, now: TwoClocks) {
        if self.membership.as_ref().is_some_and(|known| *known == membership) {
            return;
        }
        self.until = self.until.later(now.plus(self.durable.grant));
        self.membership = Some(membership);
    }

    /// The newest membership in the log now, 0 when the log has none. Until
    /// [`Acceptor::set_membership`] names the same one nothing is acked: an ack under the membership
    /// before could be counted after a majority has gone on from it.
    pub fn set_in_log(&mut self, id: u64) {
        self.in_log = id;
    }

    /// The log was applied up to the present, and the highest epoch in it is `epoch`. Before the
    /// first call nothing is acked: an epoch might have been fenced in an entry not applied yet.
    /// Returns what should be made durable.
    pub fn set_applied(&mut self, epoch: Epoch) -> Option<Durable> {
        self.applied = true;
        self.raise(epoch)
    }

    /// Promises never to ack an epoch below `epoch` again; true once [`Acceptor::persisted`].
    pub fn seal(&mut self, epoch: Epoch) -> Option<Durable> {
        self.raise(epoch)
    }

    fn raise(&mut self, epoch: Epoch) -> Option<Durable> {
        self.sealed = self.sealed.max(epoch);
        self.undurable(self.durable.grant)
    }

    fn undurable(&self, grant: Duration) -> Option<Durable> {
        let wanted = Durable { sealed: self.sealed, grant: grant.max(self.durable.grant) };
        (wanted != self.durable).then_some(wanted)
    }

    /// The caller made this durable.
    pub fn persisted(&mut self, durable: Durable) {
        self.durable =
            Durable { sealed: self.durable.sealed.max(durable.sealed), grant: self.durable.grant.max(durable.grant) };
    }

    /// Answers one message that was checked to be for us.
    pub fn receive(&mut self, from: &MemberId, letter: Letter, now: TwoClocks) -> Response {
        let Letter { epoch, body } = letter;
        match body {
            Body::Renew { ticket, flush, grant } => self.renew(from, epoch, ticket, (flush, grant), now),
            Body::Probe { ticket } => self.probe(epoch, ticket),
            Body::Notice { fenced, end, clean } => {
                self.notice(Notice { member: from.clone(), epoch, fenced, end, clean })
            }
            Body::Ack { .. } | Body::Nack { .. } | Body::ProbeAck { .. } => Response::refused(Refusal::Unexpected),
        }
    }

    fn renew(
        &mut self,
        from: &MemberId,
        epoch: Epoch,
        ticket: Ticket,
        (flush, grant): (WalPosition, Duration),
        now: TwoClocks,
    ) -> Response {
        if epoch < self.sealed {
            return Response::reply(epoch, Body::Nack { ticket, sealed: self.sealed });
        }
        let Some(membership) = self.effective().cloned() else {
            return Response::refused(Refusal::NotReady);
        };
        if epoch == Epoch(0) {
            return Response::refused(Refusal::Unexpected);
        }
        if grant > GRANT_MAX {
            return Response::refused(Refusal::GrantTooLong);
        }
        if let Err(refusal) = self.tenure.admit(from, epoch, ticket) {
            return Response::refused(refusal);
        }
        let grant = grant.max(self.grant);
        self.until = self.until.later(now.plus(grant));
        self.highest = self.highest.max(flush);
        self.sealed = epoch;
        Response { persist: self.undurable(grant), ..Response::reply(epoch, Body::Ack { ticket, membership }) }
    }

    /// Changes nothing: a holder that hears nobody must not keep the voters bound.
    fn probe(&self, epoch: Epoch, ticket: Ticket) -> Response {
        if epoch < self.sealed {
            return Response::reply(epoch, Body::Nack { ticket, sealed: self.sealed });
        }
        if self.effective().is_none() {
            return Response::refused(Refusal::NotReady);
        }
        Response::reply(epoch, Body::ProbeAck { ticket })
    }

    fn notice(&mut self, notice: Notice) -> Response {
        if self.notices.contains(&notice) {
            return Response::default();
        }
        if self.notices.len() == NOTICES_MAX {
            self.notices.pop_front();
        }
        self.notices.push_back(notice.clone());
        Response { notice: Some(notice), ..Response::default() }
    }

    /// The notice could not be handed on: its next repetition counts as new.
    pub fn forget_notice(&mut self, notice: &Notice) {
        self.notices.retain(|known| known != notice);
    }

    /// Time until the promise lapses; `None` when it has.
    pub fn next_wake(&self, now: TwoClocks) -> Option<Duration> {
        Some(self.until.acceptor_remaining(now)).filter(|left| !left.is_zero())
    }
}

/// Fills in what depends on the clock. Milliseconds are rounded up, so that 0 means lapsed.
pub(super) fn promise_until(promise: &Promise, until: TwoClocks, now: TwoClocks) -> Promise {
    let left = until.acceptor_remaining(now);
    let remaining_ms = u64::try_from(left.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX);
    Promise { lapsed: left.is_zero(), remaining_ms, ..*promise }
}

impl Tenure {
    /// Notes a renewal, unless it is old or from a second holder of the epoch.
    fn admit(&mut self, from: &MemberId, epoch: Epoch, ticket: Ticket) -> Result<(), Refusal> {
        if epoch > self.epoch || self.holder.is_none() {
            *self = Self { epoch, holder: Some(from.clone()), sessions: VecDeque::from([ticket]) };
            return Ok(());
        }
        if self.holder.as_ref() != Some(from) {
            return Err(Refusal::OtherHolder);
        }
        match self.sessions.iter_mut().find(|known| known.session == ticket.session) {
            Some(known) if ticket.seq <= known.seq => return Err(Refusal::Replayed),
            Some(known) => known.seq = ticket.seq,
            None => {
                if self.sessions.len() == SESSIONS_MAX {
                    self.sessions.pop_front();
                }
                self.sessions.push_back(ticket);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "acceptor_test.rs"]
mod tests;
