//! What the listeners of several processes have in common: who has said nothing yet, HTTP on a thread of its own, and the text
//! format of Prometheus. It knows nothing of what is asked, and of nobody who answers.
//!
//! Start with `lobby`, which bounds what those may take who say nothing, then `http`, which goes by it.

pub mod exposition;
pub mod http;
pub mod lobby;
pub mod tls;
