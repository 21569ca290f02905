//! What a version of this program can apply.

use std::fmt;

/// Which commands, and which parts of the state, a version knows: each format includes all before it. A manager
/// ends when it has to apply a command it doesn't know, so none is proposed before every host has told that it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Format(pub u32);

impl Format {
    /// Of versions that say nothing of it: everything up to the adoption of a timeline.
    pub const FIRST: Format = Format(1);
    /// Settings, and that the format itself is in the log.
    pub const SETTINGS: Format = Format(2);
    /// Moves of the primary for want of room count as failovers after crashes do, and PostgreSQL has timings of its own.
    pub const MOVES: Format = Format(3);
    /// Rules by which commits are acknowledged, standbys that follow under the name of an epoch, and ends of epochs that
    /// count by the word of the holder's agent.
    pub const SYNC: Format = Format(4);
    /// Changes of settings, and of timings, that name what of the other they were decided beside.
    pub const BESIDE: Format = Format(5);
    /// Members that stream from a standby.
    pub const CASCADE: Format = Format(6);
    /// Clusters that begin with data which has been through other timelines.
    pub const CONTENT: Format = Format(6);
    /// Clusters that begin with a PostgreSQL that goes on running.
    pub const RUNNING: Format = Format(7);
    /// Settings of PostgreSQL that hold for all members, operations that are scheduled or take many steps, and members of
    /// other kinds.
    pub const OPERATE: Format = Format(8);
    /// What this version can apply. One more with each version that has new commands, new parts of the state, or makes
    /// something else of a command that was there.
    pub const NEWEST: Format = Format::OPERATE;
}

impl Default for Format {
    fn default() -> Self {
        Self::FIRST
    }
}

impl From<u32> for Format {
    /// From the wire, where versions of the first format say nothing.
    fn from(raw: u32) -> Self {
        Self::FIRST.max(Self(raw))
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
