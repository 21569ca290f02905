//! Whether it is so: the answers to health checks. Stricter than Patroni's where that told a load balancer of a primary
//! that takes no writes: `/primary` needs the lease and a PostgreSQL that accepts writes (Patroni's issue 2756).

use super::{
    asked::{Conditions, Question},
    facts::{Facts, Lag, Role},
};

/// A standby with more than this to receive or to replay is not ready, where a request doesn't say (Patroni's default of
/// `maximum_lag_on_failover`), in bytes.
const READY: u64 = 1 << 20;

/// True: 200, false: 503.
pub fn is_so(question: Question, conditions: &Conditions, facts: &Facts<'_>) -> bool {
    let primary = || facts.takes_writes();
    let tagged_primary = || primary() && has_tags(conditions, facts);
    let standby = |confirms: Option<Role>| {
        let as_asked = match confirms {
            Some(role) => facts.role_of(facts.me) == role,
            None => true,
        };
        as_asked && is_replica(conditions, facts)
    };
    match question {
        Question::Primary => primary(),
        Question::Leader => facts.holds_lease(),
        Question::StandbyLeader => false,
        Question::Replica => standby(None),
        Question::ReadOnly => tagged_primary() || standby(None),
        Question::Sync => standby(Some(Role::SyncStandby)),
        Question::ReadOnlySync => tagged_primary() || standby(Some(Role::SyncStandby)),
        Question::Quorum => standby(Some(Role::QuorumStandby)),
        Question::ReadOnlyQuorum => tagged_primary() || standby(Some(Role::QuorumStandby)),
        Question::Async => standby(Some(Role::Replica)),
        Question::Health => facts.runs(),
        Question::Liveness => facts.state.paused.is_some() || facts.own.is_some() || facts.state.is_witness(facts.me),
        Question::Readiness => primary() || is_ready(conditions, facts),
    }
}

fn is_replica(conditions: &Conditions, facts: &Facts<'_>) -> bool {
    let state = replication_state(facts);
    let in_state = conditions.state.as_deref().is_none_or(|wanted| state == Some(wanted));
    let near = conditions.lag.is_none_or(|most| facts.lag(Lag::Replayed).is_some_and(|lag| lag <= most));
    facts.is_readable_standby() && in_state && near && has_tags(conditions, facts)
}

fn is_ready(conditions: &Conditions, facts: &Facts<'_>) -> bool {
    let of = if conditions.received { Lag::Received } else { Lag::Replayed };
    let streams = facts.agent().is_some_and(|agent| agent.streaming);
    facts.is_readable_standby() && streams && facts.lag(of).is_some_and(|lag| lag <= conditions.lag.unwrap_or(READY))
}

/// `streaming` or `in archive recovery`; `None`: it is no standby.
pub fn replication_state(facts: &Facts<'_>) -> Option<&'static str> {
    let agent = facts.agent().filter(|agent| agent.state == crate::domain::PostgresState::Standby)?;
    Some(if agent.streaming { "streaming" } else { "in archive recovery" })
}

/// Tags are the settings of the member, and Patroni's names of some; compared as text, in lower case where they are no text.
fn has_tags(conditions: &Conditions, facts: &Facts<'_>) -> bool {
    let tags = super::documents::tags(facts.state, facts.me);
    let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    conditions.tags.iter().all(|(key, wanted)| tags.get(key).is_some_and(|value| text(value) == *wanted))
}
