//! What holders and acceptors say to each other, as the pure parts see it.

use std::time::Duration;

pub use crate::domain::Membership;
use crate::domain::{ClusterId, EndCause, Epoch, Generation, MemberId, TimingsId, WalPosition, moment::TwoClocks};

/// One message with what a receiver checks before looking at its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Which cluster; empty before genesis.
    pub cluster: ClusterId,
    /// Which life of it.
    pub generation: Generation,
    /// The receiver.
    pub to: MemberId,
    /// The sender.
    pub from: MemberId,
    /// What is said.
    pub letter: Letter,
}

/// The epoch a message is about, and what it says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// The epoch that is renewed, probed, acked, refused or over.
    pub epoch: Epoch,
    /// The rest.
    pub body: Body,
}

/// One datagram of a sender: drawn at its start, and counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// Drawn with each start of a holder.
    pub session: u64,
    /// Rises with each renewal and probe of the session.
    pub seq: u64,
}

/// Which promise is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Terms {
    /// The timings the holder counts by. The receiver promises the T_grant that it knows under this id.
    pub timings: TimingsId,
    /// T_grant of those timings; what counts under [`TimingsId::FILES`], which the receiver can't look up.
    pub grant: Duration,
}

/// How the clocks of two hosts compare, as the holder measured it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rate {
    /// Not measured yet.
    #[default]
    Unknown,
    /// Within half of ρ, or it is the holder's own that are off.
    Fine,
    /// Off by so many millionths for certain; above 0 the other clock runs faster than the holder's.
    Off(i64),
}

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Holder: let me write for T_hold from now on.
    Renew {
        /// Named again in the answer.
        ticket: Ticket,
        /// What the holder's PostgreSQL has flushed.
        flush: WalPosition,
        /// The promise asked for.
        terms: Terms,
        /// The version of the list of members that the holder would ask in failsafe; 0: none.
        members: u64,
        /// How the receiver's clocks compare to the holder's.
        rate: Rate,
    },
    /// Acceptor: promised.
    Ack {
        /// Of the renewal.
        ticket: Ticket,
        /// Effective in the acceptor's log.
        membership: Membership,
        /// The acceptor's time since it first acked this session, on both clocks.
        elapsed: TwoClocks,
    },
    /// Acceptor: a higher epoch was committed.
    Nack {
        /// Of the renewal or probe.
        ticket: Ticket,
        /// No epoch below it is acked any more.
        sealed: Epoch,
    },
    /// Holder's agent: how an epoch ended.
    Notice {
        /// The process tree is verified empty; otherwise it crashed and may be restarted in place.
        fenced: bool,
        /// Where its WAL ends.
        end: WalPosition,
        /// After a clean shutdown.
        clean: bool,
        /// Why.
        cause: EndCause,
    },
    /// Holder: can we talk? Moves no promise.
    Probe {
        /// Named again in the answer.
        ticket: Ticket,
    },
    /// Acceptor: we can. Moves no deadline.
    ProbeAck {
        /// Of the probe.
        ticket: Ticket,
    },
    /// Holder without a majority of managers, to another member's agent.
    Failsafe {
        /// Named again in the answer.
        ticket: Ticket,
        /// The version of the holder's list of members.
        members: u64,
        /// The promise asked for; `None`: can we talk? Moves no promise.
        terms: Option<Terms>,
    },
    /// Agent: promised, or (to a question without terms) could promise.
    FailsafeAck {
        /// Of the question.
        ticket: Ticket,
        /// The version of its own list of members: the same.
        members: u64,
        /// A promise was asked for and given.
        promised: bool,
    },
}
