//! Failsafe, pure: a holder that has lost the majority of the managers goes on
//! while the agents of *all* other members agree to it.
//!
//! The same proof as for the quorum lease, with "all" in the place of "a
//! majority": whoever is promoted next is one of those that were asked. Its agent
//! has promised not to be, until T_grant after the last question it answered, and
//! the holder has fenced itself by then. What has to hold besides:
//!
//! - Everybody is asked, of one list of members that both sides have applied. A
//!   member that was added later is no successor before the holder knows of it
//!   (`policy`).
//! - The promise survives a restart of the agent: that one may be running is
//!   durable before the first answer, and a restart then starts with a whole T_grant.
//! - Whoever knows a higher epoch says so, and that ends it at once.
//!
//! [`Rounds`] is the holder's side, [`Promiser`] the agent's. A round that asks
//! for promises is sent only after one that asks for none was answered by all:
//! a holder that hears nobody must not keep the others bound.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use super::{
    acceptor::promised,
    counters::Refusal,
    message::{Body, Letter, Terms, Ticket},
    tenure::Tenure,
};
use crate::domain::{Epoch, MemberId, MemberList, TimingsInUse, moment::TwoClocks};

/// After so many rounds in a row that not all answered, no promise is asked for.
const MISSES_MAX: u32 = 3;
/// Rounds remembered; those still young enough to count are far fewer.
const ROUNDS_MAX: usize = 64;

/// One question to the agents of all other members.
#[derive(Debug, Clone)]
struct Round {
    seq: u64,
    at: TwoClocks,
    hold: Duration,
    members: u64,
    promise: bool,
    waiting: BTreeSet<MemberId>,
}

/// A round that everybody has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unanimous {
    /// When it was sent.
    pub(super) at: TwoClocks,
    /// T_hold of its timings.
    pub(super) hold: Duration,
    /// Promises were asked for.
    pub(super) promise: bool,
}

/// The holder's side.
#[derive(Debug, Clone)]
pub(super) struct Rounds {
    rounds: VecDeque<Round>,
    misses: u32,
    answered: bool,
}

impl Default for Rounds {
    fn default() -> Self {
        Self { rounds: VecDeque::new(), misses: MISSES_MAX, answered: false }
    }
}

impl Rounds {
    /// Begins a round; true when it asks for promises.
    pub(super) fn begin(
        &mut self,
        seq: u64,
        now: TwoClocks,
        hold: Duration,
        members: u64,
        others: &BTreeSet<MemberId>,
    ) -> bool {
        self.misses = if self.answered { 0 } else { self.misses.saturating_add(1) };
        self.answered = false;
        let promise = self.misses < MISSES_MAX;
        if self.rounds.len() == ROUNDS_MAX {
            self.rounds.pop_front();
        }
        self.rounds.push_back(Round { seq, at: now, hold, members, promise, waiting: others.clone() });
        promise
    }

    /// Notes an answer; says so when it was the last one missing.
    pub(super) fn answer(
        &mut self,
        from: &MemberId,
        seq: u64,
        members: u64,
        promised: bool,
    ) -> Result<Option<Unanimous>, Refusal> {
        let fits = |r: &&mut Round| r.seq == seq && r.members == members && r.promise == promised;
        let round = self.rounds.iter_mut().find(fits).ok_or(Refusal::Unexpected)?;
        if !round.waiting.remove(from) {
            return Err(Refusal::Unexpected);
        }
        if !round.waiting.is_empty() {
            return Ok(None);
        }
        self.answered = true;
        self.misses = 0;
        Ok(Some(Unanimous { at: round.at, hold: round.hold, promise: round.promise }))
    }
}

/// What an agent knows when it is asked.
#[derive(Debug, Clone, Copy)]
pub struct Knowledge<'a> {
    /// Which member it is.
    pub me: &'a MemberId,
    /// The highest epoch that it, or its manager, knows of.
    pub highest: Epoch,
    /// The members as last applied on this host.
    pub members: &'a MemberList,
    /// The timings as last applied on this host.
    pub timings: &'a TimingsInUse,
}

/// What follows from one question. When `persist` is set, [`Promiser::durable`] is
/// on disk before `reply` leaves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reply {
    /// To be made durable first.
    pub persist: bool,
    /// To the holder.
    pub reply: Option<Letter>,
    /// Why there is no answer.
    pub refused: Option<Refusal>,
}

/// The agent's side: the promise not to be promoted.
#[derive(Debug, Clone)]
pub struct Promiser {
    /// T_grant in the file of this host.
    file: Duration,
    durable: Option<Duration>,
    until: TwoClocks,
    tenure: Tenure,
    confirmed: Option<(Epoch, TwoClocks)>,
}

impl Promiser {
    /// At the start of an agent. When an earlier start left a promise behind it may have given it
    /// a moment ago, so it stands for its whole length.
    pub fn new(file: Duration, durable: Option<Duration>, now: TwoClocks) -> Self {
        let until = durable.map_or_else(TwoClocks::default, |grant| now.plus(grant));
        Self { file, durable, until, tenure: Tenure::default(), confirmed: None }
    }

    /// The longest promise that may be running, `None` when none is: what a restart must find again.
    pub fn durable(&self) -> Option<Duration> {
        self.durable
    }

    /// How long no primary may be made of this member; zero: it may.
    pub fn left(&self, now: TwoClocks) -> Duration {
        self.until.acceptor_remaining(now)
    }

    /// To whom the last promise was given.
    pub fn holder(&self) -> Option<(Epoch, &MemberId)> {
        self.tenure.holder().map(|holder| (self.tenure.epoch(), holder))
    }

    /// The epoch promised last, and when: until the promise ends nobody can hold a higher one here.
    pub fn confirmed(&self) -> Option<(Epoch, TwoClocks)> {
        self.confirmed
    }

    /// Forgets a promise that has run out; true when that is to be made durable, at leisure.
    pub fn forget(&mut self, now: TwoClocks) -> bool {
        self.durable.is_some() && self.left(now).is_zero() && self.durable.take().is_some()
    }

    /// Answers one message that was checked to be for us.
    pub fn receive(&mut self, from: &MemberId, letter: Letter, now: TwoClocks, known: Knowledge<'_>) -> Reply {
        let Letter { epoch, body: Body::Failsafe { ticket, members, terms } } = letter else {
            return Reply { refused: Some(Refusal::Unexpected), ..Reply::default() };
        };
        let highest = known.highest.max(self.tenure.epoch());
        if epoch < highest {
            let reply = Some(Letter { epoch, body: Body::Nack { ticket, sealed: highest } });
            return Reply { reply, ..Reply::default() };
        }
        match self.promise(from, (epoch, ticket), members, terms, now, known) {
            Err(refusal) => Reply { refused: Some(refusal), ..Reply::default() },
            Ok(persist) => {
                let body = Body::FailsafeAck { ticket, members, promised: terms.is_some() };
                Reply { persist, reply: Some(Letter { epoch, body }), refused: None }
            }
        }
    }

    /// True when it has to be made durable before it is told.
    fn promise(
        &mut self,
        from: &MemberId,
        (epoch, ticket): (Epoch, Ticket),
        members: u64,
        terms: Option<Terms>,
        now: TwoClocks,
        known: Knowledge<'_>,
    ) -> Result<bool, Refusal> {
        let list = known.members;
        if epoch == Epoch(0) || from == known.me {
            return Err(Refusal::Unexpected);
        }
        let same = list.version > 0 && list.version == members;
        if !same || !list.agents.contains_key(from) || !list.agents.contains_key(known.me) {
            return Err(Refusal::OtherMembers);
        }
        let Some(terms) = terms else { return Ok(false) };
        let grant = promised(known.timings, terms, self.file)?;
        self.tenure.admit(from, epoch, ticket, now)?;
        self.until = self.until.later(now.plus(grant));
        self.confirmed = Some((epoch, now));
        let longer = self.durable.is_none_or(|durable| durable < grant);
        if longer {
            self.durable = Some(grant);
        }
        Ok(longer)
    }
}

#[cfg(test)]
#[path = "failsafe_test.rs"]
mod tests;
