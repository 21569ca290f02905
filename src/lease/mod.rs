//! The quorum lease that keeps the committed lock alive without touching a disk.
//!
//! ```text
//!  agent of the primary                                   manager of every voter
//!  ┌───────────────┐   Renew{epoch, seq, flush LSN}   ┌────────────────────────┐
//!  │ holder        │ ───────────────────────────────▶ │ acceptor               │
//!  │ deadline =    │                                  │ promises, until        │
//!  │ send + T_hold │ ◀─────────────────────────────── │ receipt + T_grant, not │
//!  └───────────────┘   Ack{membership} or Nack{sealed}│ to help another primary│
//!                                                     └────────────────────────┘
//! ```
//!
//! A majority of acks for one renewal moves the holder's deadline. A failover
//! needs a majority of voters that have durably sealed the old epoch and whose
//! promise has run out. Two majorities share a voter, and
//! `T_grant >= (1+ρ) * (T_hold/(1-ρ) + T_kill)` puts the end of its promise
//! after the last write of the old holder, whatever was delayed, paused or lost.
//!
//! Read [`holder`] and [`acceptor`] first: both are pure, events and clock
//! readings in, datagrams and deadlines out. [`HolderThread`] and
//! [`AcceptorThread`] give each a plain thread with one socket, because nothing
//! else that runs in the process may delay a renewal. Then [`failsafe`]: what a
//! holder does when the managers are gone and all agents are there, and
//! [`fitness`]: whether the clocks are as alike as the inequality assumes.
//!
//! This room does not decide who is primary, and it kills nothing: the guard
//! enforces the deadline, the leader reads the promises.

pub mod acceptor;
mod acceptor_thread;
mod addresses;
pub mod clock;
pub mod counters;
pub mod failsafe;
pub mod fitness;
pub mod holder;
mod holder_thread;
pub mod message;
pub mod sealed_file;
mod tenure;
mod wake;
pub mod wire;

pub use crate::domain::Secret;
pub use acceptor_thread::{AcceptorHandle, AcceptorOptions, AcceptorThread};
pub use counters::{Counters, Refusal};
pub use holder::{HolderView, Phase};
pub use holder_thread::{HolderHandle, HolderOptions, HolderThread, Sink};
pub use message::Membership;
