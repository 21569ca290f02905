//! What the Raft leader says of the members: only that one hears of all of them.

use std::collections::BTreeMap;

use super::facts::{Facts, Known};
use crate::{
    domain::{Lsn, MemberId, PostgresState, TimelineId},
    rpc::v1::{MemberStatus, StatusReply},
};

/// A member as `/cluster` shows it, whoever knows that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Patroni's word.
    pub state: &'static str,
    /// Its timeline.
    pub timeline: Option<TimelineId>,
    /// What it has received, and the bytes that it lacks.
    pub received: (Option<Lsn>, Option<u64>),
    /// What it has replayed, likewise.
    pub replayed: (Option<Lsn>, Option<u64>),
}

impl Shown {
    /// As this manager knows it.
    pub fn here(facts: &Facts<'_>, member: &MemberId, known: &Known<'_>) -> Shown {
        // A witness that answers is up.
        if member == facts.me && facts.state.is_witness(member) {
            return Shown::unknown("running");
        }
        let state = super::documents::state_word(known.agent);
        let Some(agent) = known.agent else { return Shown::unknown(state) };
        let end = facts.primary_end();
        let at = |lsn: Lsn| {
            let lsn = Some(lsn).filter(|lsn| *lsn > Lsn(0));
            (lsn, lsn.filter(|_| end > Lsn(0)).map(|lsn| end.bytes_past(lsn)))
        };
        Shown {
            state: if agent.state == PostgresState::Standby && agent.streaming { "streaming" } else { state },
            timeline: Some(agent.wal_end.timeline),
            received: at(agent.wal_end.lsn),
            replayed: at(agent.replay_lsn),
        }
    }

    fn unknown(state: &'static str) -> Shown {
        Shown { state, timeline: None, received: (None, None), replayed: (None, None) }
    }

    fn told(member: &MemberStatus) -> Shown {
        let lsn = |text: &str| text.parse::<Lsn>().ok().filter(|lsn| *lsn > Lsn(0));
        Shown {
            state: state_word(&member.state),
            timeline: Some(TimelineId(member.timeline)),
            received: (lsn(&member.lsn), member.flushed.map(|lag| lag.bytes)),
            replayed: (lsn(&member.replayed_lsn), member.replayed.map(|lag| lag.bytes)),
        }
    }
}

/// Each member of which the leader knows something; nothing when somebody else has answered in its place.
pub fn members(reply: &StatusReply) -> BTreeMap<MemberId, Shown> {
    if reply.leader.is_empty() || reply.leader != reply.answered_by {
        return BTreeMap::new();
    }
    let heard = reply.members.iter().filter(|member| member.state != "silent");
    heard.filter_map(|member| Some((member.member.parse().ok()?, Shown::told(member)))).collect()
}

/// The status' words in Patroni's.
fn state_word(word: &str) -> &'static str {
    match word {
        "streaming" => "streaming",
        "running" | "delayed" | "promoting" | "unleased" => "running",
        "cloning" => "creating replica",
        "rewinding" => "running pg_rewind",
        "initdb" => "initializing new cluster",
        "starting" => "starting",
        "stopping" => "stopping",
        "crashed" => "crashed",
        "failed" => "start failed",
        "stopped" | "no data" | "busy" => "stopped",
        _ => "unknown",
    }
}
