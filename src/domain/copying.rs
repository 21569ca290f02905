//! What a copy of a member takes, and how it travels.

use std::{fmt, str::FromStr};

/// How a copy of a member is compressed on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CloneCompression {
    /// Not at all.
    #[default]
    None,
    /// The least of a processor, and the least gain.
    Lz4,
    /// In between.
    Zstd,
    /// The most of a processor; every PostgreSQL can.
    Gzip,
}

impl FromStr for CloneCompression {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "lz4" => Ok(Self::Lz4),
            "zstd" => Ok(Self::Zstd),
            "gzip" => Ok(Self::Gzip),
            _ => Err("none, lz4, zstd or gzip".to_owned()),
        }
    }
}

impl fmt::Display for CloneCompression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        })
    }
}

/// What a copy takes of its source and of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HowToCopy {
    /// In bytes a second; 0: no limit.
    pub max_rate: u64,
    /// By the source; PostgreSQL before 15 can't, and then it is none.
    pub compression: CloneCompression,
}
