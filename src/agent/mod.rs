//! The agent of one PostgreSQL instance.

pub mod core;
pub mod order;
pub mod store;
