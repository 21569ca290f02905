//! Every state of small models of what keeps two primaries from writing, and acknowledged commits from being lost,
//! seen by `stateright`.
//!
//! Four models. Three are the rules of DESIGN.md §3 in integers: [`lease`] (fixed
//! voters, restarts, FenceEpoch and GrantPrimary, notices, probes, lease
//! configurations), [`membership`] (joint steps over an abstract Raft log) and
//! [`failsafe`]. The fourth, [`mod@sync`], is the list of rules by which commits are
//! acknowledged (§5). Every rule is a switch: without it a promise must break, or
//! the rule is a second net and the test says under what. A model that can't fail
//! proves nothing.
//!
//! The models are not built from `Holder` and `Acceptor`: those count time and
//! sequence numbers up for ever, so that no state would be seen twice. What binds
//! them together is `lease/conformance.rs`, which takes random walks through the
//! model and does each step with the real code too. Majorities are counted by the
//! real `Membership::has_majority` ([`quorum`]).
//!
//! `docs/proof/model.md` says what is modelled, within which bounds, and how many
//! states there are. Long bounds are marked `ignored`: `make proof` runs them.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::disallowed_methods)]

mod failsafe;
mod lease;
mod membership;
mod quorum;
mod run;
mod sync;
mod ticks;
