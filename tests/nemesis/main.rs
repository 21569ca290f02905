//! The nemesis: three hosts or five with real PostgreSQL, each in a network namespace of
//! its own, under clients that never stop writing, and everything that can go
//! wrong done to them. What is promised is checked after each fault:
//!
//! - never two writers, beyond the documented holes (see [`faults::Fault::allowed`]);
//! - nothing acknowledged is lost but, where no standby confirms, the end of a replaced server's WAL;
//! - what transactions read fits together ([`history`]);
//! - the primary changes where it must and stays where it must;
//! - all heals, and every member ends with the same rows.
//!
//! A round that exercised nothing is `unknown`, and that is no pass.
//!
//!     cargo test --test nemesis                          the short list
//!     make proof                                         all of it
//!     FAULTS=cut,freeze cargo test --test nemesis -- --ignored every_fault --nocapture
//!     SEED=7 MINUTES=30 cargo test --test nemesis -- --ignored soak --nocapture
//!     MODE=quorum-strict MEMBERS=3 SEED=7 FAULTS=20 cargo test --test nemesis -- --ignored series --nocapture
//!
//! Needs root. docs/proof/nemesis.md says what is done and what came of it.

#![allow(clippy::unwrap_used)]

mod appends;
mod checker;
mod confirmers;
mod crashes;
mod dice;
mod faults;
mod figures;
mod history;
mod hosts;
mod report;
mod rounds;
mod runs;
mod series;
mod workload;
