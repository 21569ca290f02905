//! Matriarch: PostgreSQL high availability without an external store.
//!
//! ```text
//!  every host               Raft leader only             every host
//!  observe ──report──▶  decide (pure)  ──propose──▶  commit, apply (pure)  ──watch──▶  reconcile (pure) ──▶ act
//!     ▲                                                                                                  │
//!     └───────────────────────── the effect is the next observation ─────────────────────────────────────┘
//! ```
//!
//! The rooms in reading order. `domain`, `state`, `policy` and `reconcile` are
//! pure; each outside thing lives in one room of the hands; the processes are
//! where deciding meets doing. ARCHITECTURE.md has the map and the invariants.

// The pure floors.
pub mod domain;
pub mod policy;
pub mod reconcile;
pub mod state;

// The hands: each knows one outside thing.
pub mod guard;
pub mod layers;
pub mod lease;
pub mod net;
pub mod netlink;
pub mod postgres;
pub mod raft;
pub mod rpc;

// The processes.
pub mod agent;
pub mod manager;
pub mod rest;
pub mod routing;

// The faces.
pub mod admin;
pub mod cli;
pub mod demo;

// Used by every process.
pub mod config;
pub mod telemetry;
