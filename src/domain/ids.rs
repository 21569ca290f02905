//! Who is who, and which number is which. Raft's term, our epoch and
//! PostgreSQL's timeline all go up at a failover; each has a type of its own.

use std::{fmt, str::FromStr, sync::Arc};

/// One host with one PostgreSQL and one agent. `[a-z0-9_-]`, 1 to 40 characters,
/// so that it can stand in `application_name`, file names and log lines unquoted.
/// Shared, for it is cloned with every message.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(Arc<str>);

/// A text that can't name a member.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` can't name a member: 1 to 40 characters of a-z, 0-9, `-` and `_`")]
pub struct BadMemberId(pub String);

impl MemberId {
    /// The text, unquoted.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for MemberId {
    type Err = BadMemberId;
    fn from_str(text: &str) -> Result<Self, BadMemberId> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
        if text.is_empty() || text.len() > 40 || !text.chars().all(allowed) {
            return Err(BadMemberId(text.to_owned()));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A participant in Raft. Never used twice in the life of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Counts the primaries of this cluster; one more with each change. The fencing
/// token on every order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch after this one.
    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Counts the lives of a cluster: `matriarch recover` starts a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Names a cluster for ever; drawn at genesis. Empty before it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ClusterId(pub String);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_name_is_safe_to_put_anywhere() {
        for good in ["n1", "db-2_a", "0"] {
            assert_eq!(good.parse::<MemberId>().unwrap().as_str(), good);
        }
        for bad in ["", "N1", "a b", "a'b", "ä", "a.b", &"x".repeat(41)] {
            assert!(bad.parse::<MemberId>().is_err(), "{bad}");
        }
    }
}
