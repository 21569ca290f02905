//! The host's view: committed state, what this host's agent says, and what the
//! leader last told of the primary, give the next action for this host. Pure.
//!
//! Rules have numbers and an order; the first that matches wins, and its number
//! goes into the order it causes. [`role`] has the rules, [`rejoin`] the sum
//! that must not be wrong: follow, rewind or reclone; [`states`] what is asked of a
//! member, and that there is a way to it.

#![deny(clippy::disallowed_methods)]

pub mod rejoin;
pub mod role;
pub mod states;

pub use role::{Action, FIRST_ORDER, Host, Next, RULES, StopMode, Upstream, left_by_a_crash, next_action, shared};
