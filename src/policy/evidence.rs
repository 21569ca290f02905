//! What a decision went by, in words that are committed with it.

use std::time::Duration;

use super::{Situation, report::state_word};
use crate::{
    domain::{MemberId, Observation, observation::AgentView},
    state::{Evidence, GrantPhase, Lasted, Lock},
};

/// More of one text helps nobody, and it stays in the log.
const TEXT_MAX: usize = 240;
/// More than the holds of one failover.
const HELD_MAX: usize = 8;

/// What has lasted how long.
pub type Told = (String, Duration);

/// What this leader knows now. `held` is what has held it up since its last command, `past` the phases that the operation
/// under way has left behind.
pub fn of(s: &Situation<'_>, leader: &MemberId, at_ms: u64, (held, past): (&[Told], &[Told])) -> Evidence {
    let told = |(what, lasted): &Told| lasts(short(what), *lasted);
    Evidence {
        at_ms,
        leader: leader.to_string(),
        seen: s.state.members.keys().map(|m| short(&known(s, m))).collect(),
        held: held.iter().rev().take(HELD_MAX).rev().map(told).collect(),
        phases: past.iter().map(told).chain(phases(s)).collect(),
    }
}

fn lasts(what: String, lasted: Duration) -> Lasted {
    Lasted { what, ms: u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX) }
}

fn short(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}

fn phases(s: &Situation<'_>) -> Vec<Lasted> {
    let lock = match &s.state.lock {
        Lock::Free => "nobody holds the lock".to_owned(),
        Lock::Granted { member, phase, .. } => match phase {
            GrantPhase::Promoting => format!("{member} is being promoted"),
            GrantPhase::Promoted => format!("{member} is promoted"),
            GrantPhase::Open => format!("{member} is primary"),
        },
        Lock::Released(release) => format!("{} has released the lock", release.member),
        Lock::Fenced { epoch, .. } => format!("epoch {epoch} has no holder yet"),
    };
    let mut phases = vec![lasts(lock, s.now.since(s.since.lock))];
    if let Some(operation) = &s.state.operation {
        let what = format!("operation {} is in {:?}", operation.id, operation.phase);
        phases.push(lasts(what, s.now.since(s.since.operation)));
    }
    phases
}

/// `b: heard 12 ms ago, promise to epoch 3 for 900 ms; standby at 2:0/5000 from a, 3 ms older`.
fn known(s: &Situation<'_>, member: &MemberId) -> String {
    let Some(seen) = s.seen.get(member) else { return format!("{member}: never heard") };
    let age = s.now.since(seen.at).as_millis();
    let agent = match &seen.agent {
        None if s.state.is_witness(member) => "a witness".to_owned(),
        None => "its agent does not answer".to_owned(),
        Some(agent) => format!("{}, {} ms ago", said(agent), s.now.since(seen.agent_at).as_millis()),
    };
    format!("{member}: heard {age} ms ago, {}; {agent}", promised(seen))
}

fn promised(seen: &Observation) -> String {
    let promise = &seen.promise;
    match promise.lapsed {
        true => "no promise left".to_owned(),
        false => format!("promise to epoch {} for {} ms", promise.epoch, promise.remaining_ms),
    }
}

fn said(agent: &AgentView) -> String {
    let end = if agent.wal_end_known { format!(" at {}", agent.wal_end) } else { String::new() };
    let lease = match agent.lease.held {
        true => format!(", holds the lease of epoch {}", agent.lease.epoch),
        false => String::new(),
    };
    let problem = agent.problem.as_ref().map(|problem| format!(": {problem}")).unwrap_or_default();
    format!("{}{end}{lease}{problem}", state_word(agent.state))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::{Bench, id};

    #[test]
    fn it_says_what_was_known_of_everybody_and_how_long_it_took() {
        let bench = Bench::new("granted b open 2").says("a", "standby 2:200").says("b", "primary 2:200");
        let held = [("a long wait".repeat(100), Duration::from_millis(1_500))];
        let past = [("operation 1 was in Checkpoint".to_owned(), Duration::from_millis(20))];
        let evidence = of(&bench.situation(), &id("a"), 7, (&held, &past));
        assert_eq!((evidence.at_ms, evidence.leader.as_str()), (7, "a"));
        assert_eq!(evidence.seen.len(), 3, "{evidence:?}");
        assert!(evidence.seen[0].starts_with("a: heard 0 ms ago"), "{evidence:?}");
        assert!(evidence.seen[0].contains("running as a standby at 2:"), "{evidence:?}");
        assert_eq!(evidence.seen[2], "c: never heard");
        assert_eq!((evidence.held[0].what.len(), evidence.held[0].ms), (TEXT_MAX, 1_500));
        let phases: Vec<&str> = evidence.phases.iter().map(|phase| phase.what.as_str()).collect();
        assert_eq!(phases, ["operation 1 was in Checkpoint", "b is primary"]);
    }

    #[test]
    fn it_stays_small_however_much_there_was() {
        let held = vec![("x".repeat(1_000), Duration::ZERO); 100];
        let evidence = of(&Bench::new("fenced").situation(), &id("a"), 0, (&held, &[]));
        let size: usize = evidence.held.iter().map(|h| h.what.len()).sum();
        assert_eq!((evidence.held.len(), size), (HELD_MAX, HELD_MAX * TEXT_MAX));
    }
}
