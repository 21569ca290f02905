//! Positions in WAL and the history of timelines (PostgreSQL manual, 26.3.6 "Timelines").

use std::{collections::BTreeMap, fmt, str::FromStr};

/// A byte position in WAL, written `X/X` as PostgreSQL writes `pg_lsn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Bytes from `other` up to here; 0 when `other` is ahead.
    pub fn bytes_past(self, other: Lsn) -> u64 {
        self.0.saturating_sub(other.0)
    }
}

/// PostgreSQL's own spelling, so that an operator can paste it into psql.
impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// A text that is not an LSN, a timeline or a history line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {wanted}")]
pub struct ParseError {
    /// What was read.
    pub text: String,
    /// What it should have been.
    pub wanted: &'static str,
}

impl FromStr for Lsn {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let fail = || ParseError { text: text.to_owned(), wanted: "an LSN like 16/B374D848" };
        let (high, low) = text.trim().split_once('/').ok_or_else(fail)?;
        let high = u32::from_str_radix(high, 16).map_err(|_| fail())?;
        let low = u32::from_str_radix(low, 16).map_err(|_| fail())?;
        Ok(Lsn(u64::from(high) << 32 | u64::from(low)))
    }
}

/// PostgreSQL's branch counter: one more with each promotion. Not the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TimelineId(pub u32);

impl TimelineId {
    /// The timeline after this one.
    pub fn next(self) -> TimelineId {
        TimelineId(self.0 + 1)
    }

    /// The name of its history file in `pg_wal`: eight hex digits and `.history`.
    pub fn history_file(self) -> String {
        format!("{:08X}.history", self.0)
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Where a member's WAL ends. The timeline outranks the position: the derived
/// order compares fields from the top, which is the order in which WAL is ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct WalPosition {
    /// The branch.
    pub timeline: TimelineId,
    /// The byte position on it.
    pub lsn: Lsn,
}

impl fmt::Display for WalPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.timeline, self.lsn)
    }
}

/// One line of a history file: `timeline` ended at `end`, where its child begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TimelineSwitch {
    /// The timeline that ended.
    pub timeline: TimelineId,
    /// Where it ended.
    pub end: Lsn,
}

/// The ancestry of one timeline: the switches that led to it, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct TimelineHistory {
    /// The timeline this is the history of.
    pub timeline: TimelineId,
    /// Its ancestors and where each of them ended.
    pub switches: Vec<TimelineSwitch>,
    /// CRC of the first WAL record of each of these timelines, as far as it is known. A promotion writes the time
    /// into that record (`xl_end_of_recovery`), so timelines of one number that were begun by two promotions differ
    /// in it, also when they began at one position.
    pub first_records: BTreeMap<TimelineId, u32>,
}

impl TimelineHistory {
    /// A timeline without ancestors.
    pub fn root(timeline: TimelineId) -> Self {
        Self { timeline, ..Self::default() }
    }

    /// Reads the text of the history file of `timeline`. A comment or an empty line is passed over.
    ///
    /// # Errors
    /// A line that is neither a comment nor `<timeline> <lsn> …`.
    pub fn parse(timeline: TimelineId, text: &str) -> Result<Self, ParseError> {
        let mut switches = Vec::new();
        for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            let fail = || ParseError { text: line.to_owned(), wanted: "a line of a timeline history file" };
            let mut words = line.split_whitespace();
            let id = words.next().and_then(|w| w.parse().ok()).ok_or_else(fail)?;
            let end = words.next().and_then(|w| w.parse().ok()).ok_or_else(fail)?;
            switches.push(TimelineSwitch { timeline: TimelineId(id), end });
        }
        Ok(Self { timeline, switches, ..Self::default() })
    }

    /// Where `timeline` ended in this history; `None` for the current timeline
    /// (it goes on) and for one that is no ancestor.
    pub fn end_of(&self, timeline: TimelineId) -> Option<Lsn> {
        self.switches.iter().find(|s| s.timeline == timeline).map(|s| s.end)
    }

    /// True when `timeline` is the current one or an ancestor of it.
    pub fn contains(&self, timeline: TimelineId) -> bool {
        timeline == self.timeline || self.end_of(timeline).is_some()
    }

    /// True when `position` lies on this history: WAL up to there is shared with it.
    pub fn includes(&self, position: WalPosition) -> bool {
        if position.timeline == self.timeline {
            return true;
        }
        self.end_of(position.timeline).is_some_and(|end| position.lsn <= end)
    }

    /// The last position that two histories share, `None` when they share none.
    ///
    /// Both are walked from the oldest timeline; they part where the timelines
    /// differ, or where the same timeline ended at different positions.
    pub fn fork_from(&self, other: &TimelineHistory) -> Option<WalPosition> {
        self.fork(other, |timeline| self.is_another(other, timeline))
    }

    /// By its numbers and positions it has more in common with `other` than it has by its bytes. PostgreSQL and
    /// pg_rewind look at the numbers only.
    pub fn is_mistaken_for(&self, other: &TimelineHistory) -> bool {
        self.fork(other, |_| false) != self.fork_from(other)
    }

    /// Both have a timeline of that number, and not the same one.
    fn is_another(&self, other: &TimelineHistory, timeline: TimelineId) -> bool {
        match (self.first_records.get(&timeline), other.first_records.get(&timeline)) {
            (Some(ours), Some(theirs)) => ours != theirs,
            (None, _) | (_, None) => false,
        }
    }

    fn fork(&self, other: &TimelineHistory, is_another: impl Fn(TimelineId) -> bool) -> Option<WalPosition> {
        let mut shared = None;
        let mut ours = self.steps();
        let mut theirs = other.steps();
        loop {
            let (Some((a, a_end)), Some((b, b_end))) = (ours.next(), theirs.next()) else { return shared };
            if a != b || is_another(a) {
                return shared;
            }
            let end = match (a_end, b_end) {
                (None, None) => Lsn(u64::MAX),
                (Some(end), None) | (None, Some(end)) => end,
                (Some(x), Some(y)) => x.min(y),
            };
            shared = Some(WalPosition { timeline: a, lsn: end });
            if a_end != b_end {
                return shared;
            }
        }
    }

    fn steps(&self) -> impl Iterator<Item = (TimelineId, Option<Lsn>)> + '_ {
        let ancestors = self.switches.iter().map(|s| (s.timeline, Some(s.end)));
        ancestors.chain(std::iter::once((self.timeline, None)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(timeline: u32, switches: &[(u32, u64)]) -> TimelineHistory {
        let switches =
            switches.iter().map(|&(t, end)| TimelineSwitch { timeline: TimelineId(t), end: Lsn(end) }).collect();
        TimelineHistory { timeline: TimelineId(timeline), switches, ..Default::default() }
    }

    fn at(timeline: u32, lsn: u64) -> WalPosition {
        WalPosition { timeline: TimelineId(timeline), lsn: Lsn(lsn) }
    }

    #[test]
    fn lsn_reads_and_writes_as_postgresql_does() {
        let lsn: Lsn = "16/B374D848".parse().unwrap();
        assert_eq!(lsn, Lsn(0x16_B374_D848));
        assert_eq!(lsn.to_string(), "16/B374D848");
        for bad in ["", "16", "16/", "/1", "1/2/3", "x/1", "100000000/1"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_newer_timeline_outranks_a_longer_one() {
        assert!(at(3, 10) > at(2, 99));
    }

    #[test]
    fn history_file_is_read_with_comments_and_reasons() {
        let text = "# stub\n\n1\t0/3000000\tno recovery target specified\n2\t0/5000148\tx\n";
        let got = TimelineHistory::parse(TimelineId(3), text).unwrap();
        assert_eq!(got, history(3, &[(1, 0x300_0000), (2, 0x500_0148)]));
        assert!(TimelineHistory::parse(TimelineId(3), "1 nonsense").is_err());
        assert_eq!(TimelineId(31).history_file(), "0000001F.history");
    }

    #[test]
    fn fork_is_where_two_histories_part() {
        let two = history(2, &[(1, 100)]);
        assert_eq!(history(1, &[]).fork_from(&two), Some(at(1, 100)));
        assert_eq!(two.fork_from(&two), Some(at(2, u64::MAX)));
        assert_eq!(history(3, &[(1, 80)]).fork_from(&two), Some(at(1, 80)));
        assert_eq!(history(3, &[(1, 100), (2, 150)]).fork_from(&two), Some(at(2, 150)));
        assert_eq!(history(9, &[]).fork_from(&two), None);
    }

    #[test]
    fn timelines_of_one_number_that_began_with_other_records_are_not_one() {
        let begun = |crc: &[(u32, u32)]| TimelineHistory {
            first_records: crc.iter().map(|&(t, crc)| (TimelineId(t), crc)).collect(),
            ..history(3, &[(1, 100), (2, 150)])
        };
        let ours = begun(&[(2, 7), (3, 8)]);
        let another = begun(&[(2, 7), (3, 9)]);
        assert_eq!(ours.fork_from(&another), Some(at(2, 150)));
        assert!(ours.is_mistaken_for(&another));
        assert_eq!(ours.fork_from(&begun(&[(2, 6), (3, 8)])), Some(at(1, 100)));
        // What is not known is not held against it.
        for same in [begun(&[]), begun(&[(3, 8)]), begun(&[(2, 7), (3, 8)])] {
            assert_eq!(ours.fork_from(&same), Some(at(3, u64::MAX)));
            assert!(!ours.is_mistaken_for(&same));
        }
    }

    #[test]
    fn a_position_past_the_switch_is_not_included() {
        let two = history(2, &[(1, 100)]);
        assert!(two.includes(at(1, 100)));
        assert!(!two.includes(at(1, 101)));
        assert!(two.includes(at(2, 7000)));
        assert!(!two.includes(at(3, 1)));
    }
}
