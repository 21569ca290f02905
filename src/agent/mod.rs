//! The agent of one PostgreSQL instance: carries out orders, holds the lease
//! while its instance is primary, and says what it sees.
//!
//! ```text
//!  manager ──Execute──▶ service ─┐
//!  guard, lease holder, prober ──┼──▶ process (the loop) ──event──▶ core (the rules, pure)
//!  tasks ─────────progress, end ─┘            ▲                        │
//!                                             └─── hands, tasks ◀──effects
//! ```
//!
//! - **Never primary from memory.** A postmaster is started with `standby.signal`
//!   present; it becomes primary by a Promote order, a held lease and an armed
//!   guard, in this order. The one exception is a restart in place under a lease
//!   that is still held.
//! - **An ended epoch is never used again.** It is on disk before anybody hears of it.
//! - **The agent may die at any moment.** Guard and PostgreSQL go on until the
//!   lease runs out (T_hold); an agent that is back before goes on where it was.
//!   So SIGTERM ends the agent and leaves PostgreSQL alone, and its systemd unit
//!   has `KillMode=process`.
//!
//! Read [`core`] first: its events and effects are all that can happen here.

pub mod acks;
mod archive;
mod aside;
mod asks;
mod blame;
mod checkpoints;
pub mod core;
mod crashes;
mod failsafe;
mod freshness;
mod guarding;
mod hands;
mod hooks;
mod initial;
mod lease_news;
mod lend;
pub mod order;
mod pace;
mod parameters;
mod phases;
mod planned;
mod prober;
mod process;
mod publish;
mod redo;
mod refused;
mod reload;
mod rescue;
mod room;
mod service;
mod slots;
mod stall;
mod standing;
mod start;
pub mod status;
pub mod store;
mod take_in;
mod tasks;
mod uncovered;

pub use process::{run, run_with};
pub use start::adoption;
