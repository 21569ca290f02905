//! What a leader sees that has one of the bugs of confirmed commits: the situation is changed before the real code decides on
//! it, and the code is what it is.

use std::collections::BTreeMap;

use matriarch::{
    domain::{Epoch, MemberId, PostgresState, WalPosition, observation::Observation},
    policy::{Seal, Situation},
    state::{ClusterState, Lock, OperationKind},
};

use crate::mutation::Mutation;

/// Where each member's WAL ended by its last report before this leader saw the epoch fenced.
#[derive(Debug, Default)]
pub struct Early {
    epoch: Epoch,
    ends: BTreeMap<MemberId, WalPosition>,
}

/// Another state, and other words of standbys.
pub struct Misled {
    state: ClusterState,
    seals: BTreeMap<MemberId, Seal>,
    seen: BTreeMap<MemberId, Observation>,
}

impl Misled {
    pub fn by(mutation: Mutation, s: &Situation<'_>, early: &mut Early) -> Option<Self> {
        let misled = || Self { state: s.state.clone(), seals: s.seals.clone(), seen: s.seen.clone() };
        match (mutation, &s.state.lock) {
            (Mutation::GrantBeforePromises, Lock::Fenced { epoch, .. }) => Some(misled().all_have_left(*epoch, s)),
            (Mutation::EndBeforeSevered, Lock::Fenced { epoch, .. }) => {
                if early.epoch != *epoch {
                    let end = |(m, o): (&MemberId, &Observation)| Some((m.clone(), o.agent.as_ref()?.wal_end));
                    *early = Early { epoch: *epoch, ends: s.seen.iter().filter_map(end).collect() };
                }
                Some(misled().with_ends(&early.ends))
            }
            (Mutation::OnePromiseTooFew, Lock::Fenced { .. }) => Some(misled().one_less()),
            (Mutation::RuleBeforeItBinds, Lock::Fenced { .. }) => Some(misled().bound()),
            (Mutation::EndOfSleepForgotten, Lock::Fenced { .. }) if s.state.waking().is_some() => {
                Some(misled().without_hibernation())
            }
            (Mutation::DownBeforeReceived, Lock::Granted { member, .. }) => Some(misled().all_received(member)),
            // Whoever is heard says itself when its rule is in effect.
            (Mutation::RuleBeforeItBinds, Lock::Granted { member, .. }) => {
                let silent = s.seen.get(member).is_none_or(|o| s.now.since(o.at) > s.timings.grant / 2);
                silent.then(|| misled().bound())
            }
            _ => None,
        }
    }

    /// Borrows what `s` does, but for what is changed.
    pub fn sees<'a>(&'a self, s: &Situation<'a>) -> Situation<'a> {
        Situation { state: &self.state, seals: &self.seals, seen: &self.seen, ..*s }
    }

    /// Whose agent doesn't answer counts by its last report.
    fn all_have_left(mut self, epoch: Epoch, s: &Situation<'_>) -> Self {
        for (member, seal) in &mut self.seals {
            let reported = || s.seen.get(member)?.agent.clone();
            seal.agent = seal.agent.take().or_else(reported);
            if let Some(agent) = seal.agent.as_mut().filter(|agent| agent.state == PostgresState::Standby) {
                (agent.severed, agent.accepted_epoch) = (true, agent.accepted_epoch.max(epoch));
            }
        }
        self
    }

    fn with_ends(mut self, ends: &BTreeMap<MemberId, WalPosition>) -> Self {
        for (member, seal) in &mut self.seals {
            if let (Some(agent), Some(end)) = (&mut seal.agent, ends.get(member))
                && end.timeline == agent.wal_end.timeline
            {
                agent.wal_end = agent.wal_end.min(*end);
            }
        }
        self
    }

    /// With one more that confirms each commit, one less has to be heard.
    fn one_less(mut self) -> Self {
        self.state.sync.rules.iter_mut().filter(|rule| rule.count > 0).for_each(|rule| rule.count += 1);
        self
    }

    fn without_hibernation(mut self) -> Self {
        self.state.hibernation = None;
        self
    }

    /// In a hibernation every standby says that it has what the primary has.
    fn all_received(mut self, primary: &MemberId) -> Self {
        let hibernates = self.state.operation.as_ref().is_some_and(|o| o.kind == OperationKind::Hibernate);
        let end = self.seen.get(primary).and_then(|o| Some(o.agent.as_ref()?.wal_end));
        for agent in self.seen.values_mut().filter_map(|o| o.agent.as_mut()).filter(|_| hibernates) {
            agent.wal_end = agent.wal_end.max(end.unwrap_or_default());
        }
        self
    }

    fn bound(mut self) -> Self {
        self.state.sync.binding = true;
        self
    }
}
