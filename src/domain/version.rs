//! Which versions of PostgreSQL are managed. Pure.
//!
//! A version is let in by name and not by being newer: log texts, wait events, the output of `pg_waldump` and what
//! `pg_rewind` takes for granted change with each, and what is read wrongly here decides who has the most WAL.

use std::{fmt, ops::RangeInclusive};

/// The major versions that are managed.
pub const MAJORS: RangeInclusive<u32> = 14..=18;

/// Those that the tests run on. The others are written for by PostgreSQL's release notes alone.
pub const MAJORS_TESTED: RangeInclusive<u32> = 15..=18;

/// The version of a PostgreSQL: `server_version_num`, 150018 is 15.18. From version 10 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct PostgresVersion(pub u32);

/// What is promised of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// The tests run on it.
    Tested,
    /// It is managed, and no test runs on it.
    Untested,
    /// It is not managed: too old, or too new to be known.
    Refused,
}

impl PostgresVersion {
    /// Of what `postgres -V` says: `postgres (PostgreSQL) 15.18 (Debian …)` is 150018; `17beta1` is 170000.
    pub fn parse(text: &str) -> Option<Self> {
        let version = text.trim().strip_prefix("postgres (PostgreSQL) ")?.split_whitespace().next()?;
        let (major, minor) = version.split_once('.').unwrap_or((version, "0"));
        let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u32>();
        let major = digits(major).ok()?.checked_mul(10_000)?;
        major.checked_add(digits(minor).unwrap_or(0)).map(Self)
    }

    /// 15 of 15.18.
    pub fn major(self) -> u32 {
        self.0 / 10_000
    }

    /// What is promised of it.
    pub fn support(self) -> Support {
        match self.major() {
            major if MAJORS_TESTED.contains(&major) => Support::Tested,
            major if MAJORS.contains(&major) => Support::Untested,
            _ => Support::Refused,
        }
    }
}

impl fmt::Display for PostgresVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major(), self.0 % 10_000)
    }
}

/// `PostgreSQL 14 to 18`, for people.
pub fn supported() -> String {
    format!("PostgreSQL {} to {}", MAJORS.start(), MAJORS.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_server_version_num() {
        for (text, number) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", Some(150_018)),
            ("postgres (PostgreSQL) 17beta1", Some(170_000)),
            ("postgres (PostgreSQL) 13.0", Some(130_000)),
            ("postgres (PostgreSQL) 19devel", Some(190_000)),
            ("postgres (PostgreSQL) 4294967295.1", None),
            ("mysqld 8", None),
            ("", None),
        ] {
            assert_eq!(PostgresVersion::parse(text).map(|v| v.0), number, "{text}");
        }
        assert_eq!(PostgresVersion(150_018).to_string(), "15.18");
    }

    #[test]
    fn versions_14_to_18_are_managed_and_no_other() {
        for (number, support) in [
            (96_024, Support::Refused),
            (130_023, Support::Refused),
            (140_000, Support::Untested),
            (140_023, Support::Untested),
            (150_000, Support::Tested),
            (160_002, Support::Tested),
            (170_010, Support::Tested),
            (180_006, Support::Tested),
            (190_000, Support::Refused),
        ] {
            assert_eq!(PostgresVersion(number).support(), support, "{number}");
        }
        assert_eq!(supported(), "PostgreSQL 14 to 18");
    }
}
