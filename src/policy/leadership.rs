//! Where the Raft leader should be: not where the disk is slow, for every decision waits for the leader's.
//!
//! Nothing of a lease waits for a disk but the first acknowledgement of an epoch, so a slow one costs no failover; it
//! makes the next one slow.

use std::time::Duration;

use super::{Situation, Verdict};
use crate::{
    domain::MemberId,
    state::{GrantPhase, Lock},
};

/// A disk that syncs within this is never called slow.
const SLOW: Duration = Duration::from_millis(20);
/// So many times the successor's makes a disk slow: noise moves nothing.
const TIMES: u32 = 4;
/// A leader stays at least this long: two disks that are slow by turns don't pass the leadership to and fro.
const STAYS: Duration = Duration::from_secs(60);

/// Rule 490. The leader's disk is slow and another voter's isn't: that one leads, for choice one that doesn't carry the
/// primary as well. Only while nothing else goes on, and only by figures of the last minute; a host without one is no
/// successor. A disk that hangs altogether is not waited for: that leader hands over by itself.
pub fn lead_elsewhere(s: &Situation<'_>) -> Option<Verdict> {
    let Lock::Granted { member: holder, phase: GrantPhase::Open, .. } = &s.state.lock else { return None };
    if s.state.operation.is_some() || s.now.since(s.since.lead) < STAYS {
        return None;
    }
    let me = s.group.leader.map(|node| s.group.group.name_of(node))?;
    let mine = s.seen.get(&me)?.disk.filter(|disk| *disk > SLOW)?;
    let voters = s.membership();
    let votes = |m: &&MemberId| voters.halves.iter().all(|half| half.contains(*m));
    let others = s.state.members.keys().filter(|m| **m != me && votes(m) && !s.state.maintenance.contains_key(*m));
    let faster = others.filter_map(|m| Some((m, s.fresh(m)?.disk.filter(|disk| mine > *disk * TIMES)?)));
    let best: Option<(&MemberId, Duration)> = faster.min_by_key(|(m, disk)| (*m == holder, *disk, *m));
    best.map(|(member, disk)| Verdict::Lead { to: member.clone(), mine, theirs: disk })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::Bench;

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
