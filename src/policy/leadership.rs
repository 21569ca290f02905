//! Where the Raft leader should be: not where the disk is slow, for every decision waits for the leader's, nor on a host that
//! an operator is at work on.
//!
//! Nothing of a lease waits for a disk but the first acknowledgement of an epoch, so a slow one costs no failover; it
//! makes the next one slow. A leader that goes down with its host costs an election.

use std::{fmt, time::Duration};

use super::{Situation, Verdict};
use crate::{
    domain::{MemberId, Observation},
    state::{GrantPhase, Lock},
};

/// A disk that syncs within this is never called slow.
const SLOW: Duration = Duration::from_millis(20);
/// So many times the successor's makes a disk slow: noise moves nothing.
const TIMES: u32 = 4;
/// A leader stays at least this long: two disks that are slow by turns don't pass the leadership to and fro.
const STAYS: Duration = Duration::from_secs(60);
/// A leader in maintenance stays at least this long, to hear of the others, and after a move that failed: whoever gets it
/// is in no maintenance, so it can't come back by this rule.
const ASKS: Duration = Duration::from_secs(5);

/// Why another manager should lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeadsWorse {
    /// The leader's host is in maintenance.
    Maintenance,
    /// Syncs of the log take long.
    Slow {
        /// On the leader's host.
        mine: Duration,
        /// On the successor's.
        theirs: Duration,
    },
}

impl fmt::Display for LeadsWorse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Maintenance => f.write_str("this host is in maintenance"),
            Self::Slow { mine, theirs } => {
                write!(f, "a sync takes {} ms here, {} ms there", mine.as_millis(), theirs.as_millis())
            }
        }
    }
}

/// Rule 485. The leader's host is in maintenance and another voter's isn't: that one leads, for choice one that doesn't
/// carry the primary as well, then the one with the fastest disk. When all others are in maintenance too, or silent, it stays.
pub fn leave_maintenance(s: &Situation<'_>) -> Option<Verdict> {
    let (me, holder) = at_rest(s, ASKS)?;
    s.state.maintenance.get(&me)?;
    let known = |seen: &Observation| seen.disk.unwrap_or(Duration::MAX);
    let best = successors(s, &me).min_by_key(|(m, seen)| (*m == holder, known(seen), *m));
    best.map(|(member, _)| Verdict::Lead { to: member.clone(), why: LeadsWorse::Maintenance })
}

/// Rule 490. The leader's disk is slow and another voter's isn't: that one leads, for choice one that doesn't carry the
/// primary as well. Only by figures of the last minute; a host without one is no successor. A disk that hangs altogether is
/// not waited for: that leader hands over by itself.
pub fn lead_elsewhere(s: &Situation<'_>) -> Option<Verdict> {
    let (me, holder) = at_rest(s, STAYS)?;
    let mine = s.seen.get(&me)?.disk.filter(|disk| *disk > SLOW)?;
    let faster = successors(s, &me).filter_map(|(m, seen)| Some((m, seen.disk.filter(|disk| mine > *disk * TIMES)?)));
    let best = faster.min_by_key(|(m, disk)| (*m == holder, *disk, *m));
    best.map(|(member, theirs)| Verdict::Lead { to: member.clone(), why: LeadsWorse::Slow { mine, theirs } })
}

/// The leader and the primary, when nothing else goes on and the leadership has not moved for `stays`.
fn at_rest<'a>(s: &Situation<'a>, stays: Duration) -> Option<(MemberId, &'a MemberId)> {
    let Lock::Granted { member: holder, phase: GrantPhase::Open, .. } = &s.state.lock else { return None };
    if s.state.brief_operation().is_some() || s.now.since(s.since.lead) < stays {
        return None;
    }
    let me = s.group.leader.map(|node| s.group.group.name_of(node))?;
    Some((me, holder))
}

/// Who may lead in the place of `me`, with what was heard of it.
fn successors<'a>(s: &Situation<'a>, me: &MemberId) -> std::vec::IntoIter<(&'a MemberId, &'a Observation)> {
    let voters = s.membership();
    let votes = |m: &MemberId| voters.halves.iter().all(|half| half.contains(m));
    let others = s.state.members.keys().filter(|m| *m != me && votes(m) && !s.state.maintenance.contains_key(*m));
    let heard: Vec<_> = others.filter_map(|m| Some((m, s.fresh(m)?))).collect();
    heard.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        policy::testing::{Bench, id},
        state::Asked,
    };

    fn bench(disks: &[(&str, u64)]) -> Bench {
        let bench = Bench::new("granted b open 2").led_by("a");
        let bench = bench.says("a", "standby 2:200").says("b", "primary 2:200").says("c", "standby 2:200");
        disks.iter().fold(bench, |bench, (member, ms)| bench.disk(member, Duration::from_millis(*ms)))
    }

    fn to(bench: &Bench) -> Option<String> {
        match lead_elsewhere(&bench.situation()) {
            Some(Verdict::Lead { to, .. }) => Some(to.to_string()),
            None => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_slow_disk_gives_the_leadership_to_a_fast_one_that_is_not_the_primarys() {
        assert_eq!(to(&bench(&[("a", 100), ("b", 1), ("c", 5)])), Some("c".to_owned()));
        assert_eq!(to(&bench(&[("a", 100), ("b", 1), ("c", 30)])), Some("b".to_owned()), "rather than a slow one");
    }

    #[test]
    fn neither_noise_nor_an_unknown_disk_moves_it() {
        assert_eq!(to(&bench(&[("a", 15), ("b", 1), ("c", 1)])), None, "fast enough");
        assert_eq!(to(&bench(&[("a", 100), ("b", 40), ("c", 26)])), None, "all are slow");
        assert_eq!(to(&bench(&[("a", 100)])), None, "nobody knows the others'");
        assert_eq!(to(&bench(&[("b", 1), ("c", 1)])), None, "nobody knows its own");
    }

    fn leaves(bench: &Bench) -> Option<String> {
        match leave_maintenance(&bench.situation()) {
            Some(Verdict::Lead { to, why: LeadsWorse::Maintenance }) => Some(to.to_string()),
            None => None,
            other => panic!("{other:?}"),
        }
    }

    fn in_maintenance(members: &[&str]) -> Bench {
        let mut bench = bench(&[("a", 1), ("b", 1), ("c", 50)]);
        bench.state.maintenance.extend(members.iter().map(|m| (id(m), Asked::default())));
        bench
    }

    #[test]
    fn a_leader_in_maintenance_gives_the_leadership_to_one_that_is_in_none() {
        assert_eq!(leaves(&in_maintenance(&[])), None);
        assert_eq!(leaves(&in_maintenance(&["b", "c"])), None, "others are");
        assert_eq!(leaves(&in_maintenance(&["a"])), Some("c".to_owned()), "rather than the primary's, fast or not");
        assert_eq!(leaves(&in_maintenance(&["a", "c"])), Some("b".to_owned()));
        assert_eq!(leaves(&in_maintenance(&["a"]).leads_since_now()), None, "it has heard of nobody yet");
    }

    #[test]
    fn it_stays_while_all_others_are_in_maintenance_or_silent() {
        assert_eq!(leaves(&in_maintenance(&["a", "b", "c"])), None);
        let mut silent = in_maintenance(&["a", "c"]);
        silent.seen.remove(&id("b"));
        assert_eq!(leaves(&silent), None);
        let mut busy = in_maintenance(&["a"]);
        busy.state.lock = Bench::new("fenced").state.lock;
        assert_eq!(leaves(&busy), None);
    }

    #[test]
    fn whoever_got_it_of_one_in_maintenance_does_not_give_it_back() {
        let bench = in_maintenance(&["a"]).led_by("c");
        assert_eq!(
            (leaves(&bench), to(&bench)),
            (None, Some("b".to_owned())),
            "its disk is slow, and a is no successor"
        );
        let last = in_maintenance(&["a", "b"]).led_by("c");
        assert_eq!((leaves(&last), to(&last)), (None, None), "better a slow disk than maintenance");
    }

    #[test]
    fn not_while_anything_goes_on_nor_soon_after_the_last_move() {
        let slow = || bench(&[("a", 100), ("b", 1), ("c", 1)]);
        assert_eq!(to(&slow()), Some("c".to_owned()));
        assert_eq!(to(&slow().leads_since_now()), None);
        let mut busy = slow();
        busy.state.lock = Bench::new("fenced").state.lock;
        assert_eq!(to(&busy), None);
    }
}
