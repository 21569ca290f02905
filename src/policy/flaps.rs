//! When failovers after crashes count no more.

use super::{Hold, Situation, Verdict, pause::words};
use crate::{
    domain::{Format, PostgresState},
    policy::format,
    state::{GrantPhase, Kind, Lock},
};

/// Rule 150. A primary that has been open for `failover_calm`, and hasn't crashed for as long, proves that what ended the ones before is
/// over. Until then too many of them are a hold: the agents restart a crashed primary in place.
pub fn calm(s: &Situation<'_>) -> Option<Verdict> {
    let Lock::Granted { member, phase: GrantPhase::Open, .. } = &s.state.lock else { return None };
    if s.state.crash_failovers == 0 {
        return None;
    }
    let settings = s.state.settings.settings();
    let remaining = settings.failover_calm.saturating_sub(s.now.since(s.since.lock));
    let steady = s.agent(member).is_some_and(|a| a.state == PostgresState::Primary && !a.crashed_lately);
    if remaining.is_zero() && steady {
        return Some(Verdict::Propose(Kind::Acknowledge { by: String::new() }));
    }
    let failovers = s.state.crash_failovers;
    s.state.stays_put().then(|| Verdict::Hold(Hold::StaysPut { member: member.clone(), failovers, remaining }))
}

/// What an operator's request to acknowledge the failovers becomes; `None`: there are none.
///
/// # Errors
/// Why it is refused, in words for the operator.
pub fn admit(s: &Situation<'_>, by: &str) -> Result<Option<Kind>, String> {
    if s.state.crash_failovers == 0 {
        return Ok(None);
    }
    format::gate(s, Format::SETTINGS).map_err(|old| old.to_string())?;
    let by = words(by);
    // By nobody, it would look like the rule's.
    Ok(Some(Kind::Acknowledge { by: if by.is_empty() { "an operator".to_owned() } else { by } }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        domain::Observation,
        policy::testing::{Bench, id},
    };

    fn bench(failovers: u32) -> Bench {
        let mut bench = Bench::new("granted b open 2").says("b", "primary 2:200");
        bench.state.crash_failovers = failovers;
        bench
    }

    fn after(seconds: u64, bench: &Bench) -> Option<Verdict> {
        let mut s = bench.situation();
        let now = s.since.lock + Duration::from_secs(seconds);
        let heard = |seen: &Observation| Observation { at: now, agent_at: now, ..seen.clone() };
        let seen = bench.seen.iter().map(|(member, seen)| (member.clone(), heard(seen))).collect();
        (s.now, s.seen) = (now, &seen);
        calm(&s)
    }

    #[test]
    fn a_primary_that_lasts_ends_the_count() {
        assert_eq!(after(10_000, &bench(0)), None);
        assert_eq!(after(599, &bench(2)), None, "fewer than the limit hold nothing up");
        let forgotten = Some(Verdict::Propose(Kind::Acknowledge { by: String::new() }));
        assert_eq!(after(600, &bench(2)), forgotten);
        let member = id("b");
        let remaining = Duration::from_secs(1);
        let hold = Some(Verdict::Hold(Hold::StaysPut { member: member.clone(), failovers: 3, remaining }));
        assert_eq!(after(599, &bench(3)), hold);
        assert_eq!(after(600, &bench(3)), forgotten);

        let mut shaky = bench(3);
        shaky.seen.get_mut(&member).unwrap().agent.as_mut().unwrap().crashed_lately = true;
        let hold = Some(Verdict::Hold(Hold::StaysPut { member, failovers: 3, remaining: Duration::ZERO }));
        assert_eq!(after(10_000, &shaky), hold, "it crashes in place");
    }
}
