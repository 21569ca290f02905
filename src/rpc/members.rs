//! The members of the cluster and their list, as they stand in the log.

use super::{Malformed, convert::member_id, v1};
use crate::{
    domain::{MemberId, NodeId},
    state::{Member, Roster},
};

type Result<T> = std::result::Result<T, Malformed>;

pub(super) fn encode_roster(roster: &Roster) -> v1::Roster {
    let since = roster.since.iter().map(|(id, version)| (id.to_string(), *version));
    v1::Roster { version: roster.version, since: since.collect(), at_grant: roster.at_grant, granted: roster.granted }
}

pub(super) fn decode_roster(raw: v1::Roster) -> Result<Roster> {
    let since = raw.since.into_iter().map(|(id, version)| Ok((member_id(&id)?, version)));
    Ok(Roster {
        version: raw.version,
        since: since.collect::<Result<_>>()?,
        at_grant: raw.at_grant,
        granted: raw.granted,
    })
}

pub(super) fn encode(id: &MemberId, member: &Member) -> v1::Member {
    v1::Member {
        id: id.to_string(),
        node: member.node.0,
        manager: member.manager.clone(),
        postgres: member.postgres.clone(),
        agent: member.agent.clone(),
        learner: member.learner,
    }
}

pub(super) fn decode(raw: v1::Member) -> Result<(MemberId, Member)> {
    let v1::Member { id, node, manager, postgres, agent, learner } = raw;
    Ok((member_id(&id)?, Member { node: NodeId(node), manager, postgres, agent, learner }))
}
