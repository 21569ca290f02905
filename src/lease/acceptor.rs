//! The acceptor of a voter, pure: readings of the clocks and messages in,
//! answers and what must be durable before them out.
//!
//! An ack promises not to help another primary until `receipt + T_grant`. The
//! promise itself is kept in memory: whoever starts, or finds itself in another
//! membership, behaves as if it had acked a moment ago. Only the sealed epoch is
//! durable, because forgetting it would let an old epoch be renewed again.
//!
//! A learner has one, too, and it promises nothing: its answers name no voters, so that no majority can be made of them,
//! whatever a file says. They tell how its clocks run, for its PostgreSQL may be primary like any other.

use std::{collections::VecDeque, time::Duration};

use super::{
    counters::Refusal,
    message::{Body, Letter, Membership, Rate, Terms, Ticket},
    tenure::Tenure,
};
use crate::domain::{
    Epoch, GRANT_MAX, MemberId, Promise, TimingsId, TimingsInUse, WalPosition, moment::TwoClocks, observation::Notice,
};

const NOTICES_MAX: usize = 64;

/// What an acceptor must find again after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Durable {
    /// No renewal of an epoch below is acked.
    pub sealed: Epoch,
    /// The longest promise that may be running or may be asked for: a restart waits for that long.
    pub grant: Duration,
    /// The oldest timings that may be in use. From 1 on the file of this host counts no more.
    pub oldest: TimingsId,
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

/// What an admitted renewal said besides.
#[derive(Debug, Clone, Copy)]
struct Said {
    flush: WalPosition,
    terms: Terms,
    members: u64,
    rate: Rate,
}

/// What the clock decides of a promise.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ends {
    /// It ends then.
    pub until: TwoClocks,
    /// Half of what the last renewal was given is over then.
    pub quiet_at: TwoClocks,
    /// When it acked a renewal last whose holder had an open PostgreSQL.
    pub renewed_at: Option<TwoClocks>,
}

/// The acceptor of one voter.
#[derive(Debug)]
pub struct Acceptor {
    /// T_grant in the file of this host.
    grant: Duration,
    timings: TimingsInUse,
    sealed: Epoch,
    durable: Durable,
    until: TwoClocks,
    /// Half of the promise that the last renewal was given is over then.
    quiet_at: TwoClocks,
    /// When a renewal was acked last whose holder had an open PostgreSQL.
    renewed_at: Option<TwoClocks>,
    tenure: Tenure,
    highest: WalPosition,
    /// The newest list of members that a holder of the tenure's epoch named.
    members: u64,
    /// How our clocks compare to the last holder's that measured them.
    rate: Rate,
    applied: bool,
    membership: Option<Membership>,
    in_log: u64,
    /// It never votes, says the log.
    learner: bool,
    notices: VecDeque<Notice>,
}

impl Acceptor {
    /// An acceptor that starts `now`, with the T_grant of its host's file and what an earlier
    /// start left behind. It may have acked a moment ago, so it promises anew.
    pub fn new(grant: Duration, durable: Durable, now: TwoClocks) -> Self {
        // What is waited for now; what is durable stays as it was read, so that a longer promise is made durable
        // before it is given.
        let longest = if durable.oldest == TimingsId::FILES { durable.grant.max(grant) } else { durable.grant };
        Self {
            grant,
            timings: TimingsInUse { oldest: durable.oldest, committed: Vec::new() },
            sealed: durable.sealed,
            durable,
            until: now.plus(longest),
            quiet_at: TwoClocks::default(),
            renewed_at: None,
            tenure: Tenure::default(),
            highest: WalPosition::default(),
            members: 0,
            rate: Rate::Unknown,
            applied: false,
            membership: None,
            in_log: 0,
            learner: false,
            notices: VecDeque::new(),
        }
    }

    /// The promise as others may rely on it: `sealed` is what is durable.
    pub fn promise(&self, now: TwoClocks) -> Promise {
        promise_at(&self.view(), self.ends(), now)
    }

    /// Everything in the promise that does not depend on the clock.
    fn view(&self) -> Promise {
        let off = |ppm: Rate| match ppm {
            Rate::Off(ppm) => ppm,
            Rate::Unknown | Rate::Fine => 0,
        };
        Promise {
            sealed: self.durable.sealed,
            epoch: self.tenure.epoch(),
            lapsed: false,
            remaining_ms: 0,
            highest: self.highest,
            renewed: self.tenure.holder().is_some(),
            renewed_ago_ms: None,
            quiet: false,
            members: self.members,
            clock_off_ppm: off(self.rate),
            membership: self.effective().filter(|_| !self.learner).map_or(0, |m| m.id),
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

    /// Everything in the promise that the clock decides.
    pub fn ends(&self) -> Ends {
        Ends { until: self.until, quiet_at: self.quiet_at, renewed_at: self.renewed_at }
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
        self.until = self.until.later(now.plus(self.durable.grant.max(self.timings.longest_grant(self.grant))));
        self.membership = Some(membership);
    }

    /// The timings this voter's log has come to: what renewals may name, and how long a quarantine
    /// has to be. To be told before the membership and the epoch of the same state. Returns what
    /// should be made durable; nothing longer than what is durable is promised before.
    pub fn set_timings(&mut self, timings: TimingsInUse) -> Option<Durable> {
        self.timings = timings;
        self.undurable(self.timings.longest_grant(self.grant))
    }

    /// Once older timings are out of use and no promise under them is left, a restart need not wait
    /// for them any more. Returns what should be made durable.
    pub fn forget_longer_promises(&mut self, now: TwoClocks) -> Option<Durable> {
        let longest = self.timings.longest_grant(self.grant);
        let over = self.applied && longest < self.durable.grant && self.until.acceptor_remaining(now) <= longest;
        over.then_some(Durable { sealed: self.sealed, grant: longest, oldest: self.timings.oldest })
    }

    /// The newest membership in the log now, 0 when the log has none. Until
    /// [`Acceptor::set_membership`] names the same one nothing is acked: an ack under the membership
    /// before could be counted after a majority has gone on from it.
    pub fn set_in_log(&mut self, id: u64) {
        self.in_log = id;
    }

    /// Whether the member of this host is a learner by what is committed. To be told before the membership of the same state.
    pub fn set_learner(&mut self, learner: bool) {
        self.learner = learner;
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
        let (sealed, oldest) = (self.sealed, self.timings.oldest);
        let wanted = Durable { sealed, grant: grant.max(self.durable.grant), oldest };
        (wanted != self.durable).then_some(wanted)
    }

    /// The caller made this durable, and nothing since.
    pub fn persisted(&mut self, durable: Durable) {
        self.durable = Durable { sealed: self.durable.sealed.max(durable.sealed), ..durable };
    }

    /// Answers one message that was checked to be for us.
    pub fn receive(&mut self, from: &MemberId, letter: Letter, now: TwoClocks) -> Response {
        let Letter { epoch, body } = letter;
        match body {
            Body::Renew { ticket, flush, terms, members, rate } => {
                self.renew(from, epoch, ticket, Said { flush, terms, members, rate }, now)
            }
            Body::Probe { ticket } => self.probe(epoch, ticket),
            Body::Notice { fenced, end, clean, cause } => {
                self.notice(Notice { member: from.clone(), epoch, fenced, end, clean, cause })
            }
            Body::Ack { .. }
            | Body::Nack { .. }
            | Body::ProbeAck { .. }
            | Body::Failsafe { .. }
            | Body::FailsafeAck { .. } => Response::refused(Refusal::Unexpected),
        }
    }

    fn renew(&mut self, from: &MemberId, epoch: Epoch, ticket: Ticket, said: Said, now: TwoClocks) -> Response {
        if epoch < self.sealed {
            return Response::reply(epoch, Body::Nack { ticket, sealed: self.sealed });
        }
        let Some(membership) = self.effective().cloned() else {
            return Response::refused(Refusal::NotReady);
        };
        if epoch == Epoch(0) {
            return Response::refused(Refusal::Unexpected);
        }
        if self.learner {
            return self.compare_clocks(from, epoch, ticket, said, now);
        }
        let grant = match promised(&self.timings, said.terms, self.grant) {
            Ok(grant) => grant,
            Err(refusal) => return Response::refused(refusal),
        };
        let of_before = self.tenure.epoch();
        let began = match self.tenure.admit(from, epoch, ticket, now) {
            Ok(began) => began,
            Err(refusal) => return Response::refused(refusal),
        };
        self.until = self.until.later(now.plus(grant));
        self.quiet_at = now.plus(grant / 2);
        // Before a promotion is through, and while a crashed one is restarted, nothing is written.
        if said.flush != WalPosition::default() {
            self.renewed_at = Some(now);
        }
        self.learn(&said, epoch == of_before);
        self.sealed = epoch;
        let elapsed = since(began, now);
        Response { persist: self.undurable(grant), ..Response::reply(epoch, Body::Ack { ticket, membership, elapsed }) }
    }

    /// What a renewal tells, whether anything is promised to it or not.
    fn learn(&mut self, said: &Said, same_epoch: bool) {
        self.highest = self.highest.max(said.flush);
        self.members = if same_epoch { self.members.max(said.members) } else { said.members };
        self.rate = if said.rate == Rate::Unknown { self.rate } else { said.rate };
    }

    /// A learner's answer: nothing is promised, nothing sealed, and it belongs to no configuration.
    fn compare_clocks(
        &mut self,
        from: &MemberId,
        epoch: Epoch,
        ticket: Ticket,
        said: Said,
        now: TwoClocks,
    ) -> Response {
        let same_epoch = epoch == self.tenure.epoch();
        match self.tenure.admit(from, epoch, ticket, now) {
            Err(refusal) => Response::refused(refusal),
            Ok(began) => {
                self.learn(&said, same_epoch);
                let (membership, elapsed) = (Membership::default(), since(began, now));
                Response::reply(epoch, Body::Ack { ticket, membership, elapsed })
            }
        }
    }

    /// Changes nothing: a holder that hears nobody must not keep the voters bound.
    fn probe(&self, epoch: Epoch, ticket: Ticket) -> Response {
        if epoch < self.sealed {
            return Response::reply(epoch, Body::Nack { ticket, sealed: self.sealed });
        }
        if self.effective().is_none() {
            return Response::refused(Refusal::NotReady);
        }
        if self.learner {
            return Response::refused(Refusal::Learner);
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

    /// Time until something in the promise changes by itself; `None`: nothing will.
    pub fn next_wake(&self, now: TwoClocks) -> Option<Duration> {
        let left = [self.quiet_at, self.until].map(|end| end.acceptor_remaining(now));
        left.into_iter().filter(|left| !left.is_zero()).min()
    }
}

fn since(began: TwoClocks, now: TwoClocks) -> TwoClocks {
    TwoClocks { boot: now.boot.saturating_sub(began.boot), raw: now.raw.saturating_sub(began.raw) }
}

/// How long a promise under these terms lasts: the T_grant that this host knows under their id; for
/// the files', which may differ from host to host, what is asked for and at least its own.
pub(super) fn promised(timings: &TimingsInUse, terms: Terms, file: Duration) -> Result<Duration, Refusal> {
    if terms.grant > GRANT_MAX {
        return Err(Refusal::GrantTooLong);
    }
    let known = timings.grant_of(terms.timings, file).ok_or(Refusal::OtherTimings)?;
    if terms.timings == TimingsId::FILES {
        return Ok(known.max(terms.grant));
    }
    // Its holder would count by more than is promised here: the same id, of another generation.
    if terms.grant > known {
        return Err(Refusal::OtherTimings);
    }
    Ok(known)
}

/// Fills in what depends on the clock. Milliseconds are rounded up, so that 0 means lapsed.
pub(super) fn promise_at(promise: &Promise, Ends { until, quiet_at, renewed_at }: Ends, now: TwoClocks) -> Promise {
    let ago = |at: TwoClocks| u64::try_from(now.boot.saturating_sub(at.boot).as_millis()).unwrap_or(u64::MAX);
    let left = until.acceptor_remaining(now);
    let remaining_ms = u64::try_from(left.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX);
    let quiet = promise.renewed && quiet_at.acceptor_remaining(now).is_zero();
    Promise { lapsed: left.is_zero(), remaining_ms, renewed_ago_ms: renewed_at.map(ago), quiet, ..*promise }
}

#[cfg(test)]
#[path = "acceptor_test.rs"]
mod tests;
