//! The address for standbys: who has it while no standby is fit, and until when whoever has it may keep it.

use std::{fmt, str::FromStr, time::Duration};

use super::moment::TwoClocks;

/// Who may have the address for standbys while no standby is fit for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ReaderFallback {
    /// Nobody.
    #[default]
    None,
    /// The primary.
    Primary,
}

impl FromStr for ReaderFallback {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "primary" => Ok(Self::Primary),
            _ => Err("none or primary".to_owned()),
        }
    }
}

impl fmt::Display for ReaderFallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::Primary => "primary",
        })
    }
}

/// Until when a host may keep the address by a confirmation that it asked for at `asked`: the answer was true at some moment after
/// that, whenever it came. Counted on the host's own clocks.
pub fn kept_until(asked: TwoClocks, life: Duration) -> TwoClocks {
    asked.plus(life)
}
