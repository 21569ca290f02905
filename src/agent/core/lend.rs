//! WAL that this member has and that another may ask for, because it has removed it.

use super::{Core, Now};
use crate::{
    agent::order::Address,
    domain::{Lsn, MemberId, PostgresState, TimelineHistory},
    postgres::Segment,
};

/// Why somebody does not get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unlent {
    /// For the reason given.
    Refused(String),
    /// Not all of it is written here.
    NotYet(String),
}

impl From<String> for Unlent {
    fn from(why: String) -> Self {
        Unlent::Refused(why)
    }
}

/// A segment that somebody asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Which.
    pub segment: Segment,
    /// Of which system.
    pub system: u64,
    /// CRC of the first WAL record of its timeline, where whoever asks knows that.
    pub first_record: Option<u32>,
}

impl Core {
    /// WAL that this standby needs is gone where it streams from, and no archive has it: whom it follows, where its WAL ends, and by which
    /// history it goes on. From then on it doesn't count as of no use until [`Event::Borrowed`](super::Event::Borrowed).
    pub fn borrows(&mut self) -> Option<(MemberId, Lsn, TimelineHistory)> {
        // What lies past the end that is known is fetched once more at worst.
        let idle = self.work.is_none() && self.state() == PostgresState::Standby && self.wal_end.lsn > Lsn(0);
        let upstream = self.follows.clone().filter(|_| idle && self.cure.wants_wal())?;
        let history = self.lineage.history().filter(|history| history.includes(self.wal_end))?.clone();
        self.others().next()?;
        self.cure.borrow();
        Some((upstream, self.wal_end.lsn, history))
    }

    /// Nobody is asked for WAL any more; so many bytes came. `None`: that was given up for other work.
    pub fn borrowed(&mut self, bytes: Option<u64>) {
        self.cure.borrowed(bytes.map(|bytes| bytes > 0));
    }

    /// So many bytes of it came.
    pub(super) fn came(&mut self, bytes: u64, now: Now) {
        self.borrowed(Some(bytes));
        if bytes > 0 {
            self.cure.begin_anew(now.moment);
        }
    }

    /// The request is for this member of this cluster.
    ///
    /// # Errors
    /// It is for somebody else.
    pub(super) fn is_for_this(&self, to: &Address, system: u64) -> Result<(), String> {
        let known = (&self.durable.cluster_id, self.durable.generation);
        let meant = to.target == self.me.as_str() && (&to.cluster_id, to.generation) == known;
        match meant && self.system_identifier() == Some(system) {
            true => Ok(()),
            false => Err(format!("this is {} of cluster {}, which the request is not for", self.me, known.0)),
        }
    }

    /// Whether another member may have this segment from here: all of it is written, on the history of a member in line, and lies
    /// before the end of its timeline.
    ///
    /// # Errors
    /// Why not.
    pub fn may_lend(&self, to: &Address, wanted: &Wanted) -> Result<(), Unlent> {
        self.is_for_this(to, wanted.system)?;
        let streams = self.sight.as_ref().is_some_and(|sight| sight.streaming);
        let in_line = match self.state() {
            PostgresState::Primary => self.durable.tenure.is_some(),
            PostgresState::Standby => streams && !self.strayed,
            _ => false,
        };
        if !in_line || !self.wal_end_known {
            return Err("it is neither a primary nor a standby that streams".to_owned().into());
        }
        let Wanted { segment, first_record, .. } = *wanted;
        let (ours, timeline) = (&self.history, segment.timeline);
        let until = match ours.end_of(timeline) {
            None if timeline == ours.timeline => self.wal_end.lsn,
            end => end.ok_or_else(|| format!("timeline {timeline} is not of its history"))?,
        };
        if segment.end() > until {
            let why = format!("{} ends past {until}, where timeline {timeline} does here", segment.name());
            return Err(if timeline == ours.timeline { Unlent::NotYet(why) } else { why.into() });
        }
        match (first_record, ours.first_records.get(&timeline)) {
            (Some(theirs), Some(own)) if theirs != *own => {
                Err(format!("another promotion began its timeline {timeline}").into())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod checks {
    use super::*;
    use crate::{
        agent::core::{Event, tests},
        domain::{Lsn, TimelineHistory, TimelineId, TimelineSwitch, WalPosition},
    };

    const BYTES: u64 = 1 << 20;

    fn asked(core: &Core, timeline: u32, number: u64, first_record: Option<u32>) -> Result<(), Unlent> {
        let (cluster_id, generation) = (core.durable.cluster_id.clone(), core.durable.generation);
        let to = Address { cluster_id, generation, target: "n1".to_owned() };
        let segment = Segment { timeline: TimelineId(timeline), start: Lsn(number * BYTES), bytes: BYTES };
        core.may_lend(&to, &Wanted { segment, system: tests::SYSTEM, first_record })
    }

    /// Timeline 1 ended in its fourth segment, and its WAL in the seventh.
    fn lender() -> Core {
        let mut core = tests::primary();
        let switches = vec![TimelineSwitch { timeline: TimelineId(1), end: Lsn(3 * BYTES + 100) }];
        let first_records = [(TimelineId(2), 9)].into();
        core.history = TimelineHistory { timeline: TimelineId(2), switches, first_records };
        core.wal_end = WalPosition { timeline: TimelineId(2), lsn: Lsn(6 * BYTES + 8) };
        core.wal_end_known = true;
        core
    }

    #[test]
    fn only_whole_segments_before_the_end_of_their_timeline_are_lent() {
        let core = lender();
        assert_eq!(asked(&core, 1, 2, None), Ok(()));
        assert!(matches!(asked(&core, 1, 3, None), Err(Unlent::Refused(_))), "the fork lies in it");
        assert_eq!(asked(&core, 2, 5, Some(9)), Ok(()));
        assert!(matches!(asked(&core, 2, 6, None), Err(Unlent::NotYet(_))), "it is being written");
        assert!(asked(&core, 3, 1, None).is_err(), "of nobody's history");
        assert!(asked(&core, 2, 5, Some(8)).is_err(), "another timeline of that number");
    }

    #[test]
    fn a_member_that_is_not_in_line_lends_nothing() {
        let mut unknown = lender();
        unknown.wal_end_known = false;
        assert!(asked(&unknown, 1, 2, None).is_err());
        let mut crashed = lender();
        crashed.step(tests::gone(false), tests::now(60));
        assert!(asked(&crashed, 1, 2, None).is_err());
        let mut other = lender();
        other.step(Event::Tick, tests::now(60));
        let to = Address {
            target: "n2".into(),
            cluster_id: other.durable.cluster_id.clone(),
            generation: other.durable.generation,
        };
        let segment = Segment { timeline: TimelineId(1), start: Lsn(2 * BYTES), bytes: BYTES };
        assert!(other.may_lend(&to, &Wanted { segment, system: tests::SYSTEM, first_record: None }).is_err());
    }
}
