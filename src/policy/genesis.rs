//! How a cluster begins: founded once, one initdb, the first epoch.

use super::{Hold, Situation, Verdict};
use crate::{
    domain::{Generation, PostgresState},
    state::{Kind, Lock},
};

/// Rule 10.
pub fn found(s: &Situation<'_>) -> Option<Verdict> {
    let founding = s.founding.filter(|_| s.state.identity.is_none())?;
    Some(Verdict::Propose(Kind::Genesis {
        cluster_id: founding.cluster_id.clone(),
        generation: Generation(1),
        name: founding.name.clone(),
        members: founding.members.clone(),
        initializer: founding.initializer.clone(),
    }))
}

/// Rule 20.
pub fn record_system(s: &Situation<'_>) -> Option<Verdict> {
    let initializer = s.state.initializer.as_ref().filter(|_| s.state.system_identifier.is_none())?;
    let agent = s.agent(initializer);
    let done = agent.filter(|a| matches!(a.state, PostgresState::Stopped | PostgresState::Standby));
    match done.and_then(|a| a.system_identifier) {
        Some(system_identifier) => Some(Verdict::Propose(Kind::RecordSystem { system_identifier })),
        None => {
            Some(Verdict::Hold(Hold::WaitingForInitdb { member: initializer.clone(), state: agent.map(|a| a.state) }))
        }
    }
}

/// Rule 30.
pub fn first_epoch(s: &Situation<'_>) -> Option<Verdict> {
    let due = s.state.lock == Lock::Free && s.state.system_identifier.is_some();
    due.then(|| Verdict::Propose(Kind::fence("the cluster is founded".to_owned())))
}
