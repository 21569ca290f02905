//! What holders and acceptors say to each other, as the pure parts see it.

use std::time::Duration;

pub use crate::domain::Membership;
use crate::domain::{ClusterId, Epoch, Generation, MemberId, WalPosition};

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

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Holder: let me write for T_hold from now on.
    Renew {
        /// Named again in the answer.
        ticket: Ticket,
        /// What the holder's PostgreSQL has flushed.
        flush: WalPosition,
        /// T_grant of the holder's configuration.
        grant: Duration,
    },
    /// Acceptor: promised.
    Ack {
        /// Of the renewal.
        ticket: Ticket,
        /// Effective in the acceptor's log.
        membership: Membership,
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
}
