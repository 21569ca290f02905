//! The leader's view: committed state and observations in, at most one command
//! and the reasons for everything else out. Pure.
//!
//! Only the Raft leader asks, and what it gets is only a proposal: nothing
//! happens until the command is committed, and a command that lost a race is
//! stale. Start with [`rules`]: the ordered table, first match wins.

#![deny(clippy::disallowed_methods)]

pub mod agenda;
mod archive;
pub mod by_hand;
pub mod candidates;
pub mod cascade;
pub mod copies;
pub mod departure;
pub mod evidence;
mod failover;
pub mod flaps;
pub mod format;
pub mod genesis;
pub mod halt;
pub mod hibernate;
pub mod leadership;
pub mod loss;
pub mod membership;
mod outvoted;
pub mod pause;
pub mod postgres_settings;
pub mod promotion;
pub mod proposals;
pub mod reader;
pub mod rehearsal;
pub mod reinit;
pub mod report;
mod restart;
pub mod restart_order;
pub mod rolling;
pub mod room;
pub mod rules;
pub mod settings;
pub mod stonith;
pub mod switchover;
pub mod sync;
#[cfg(test)]
pub mod testing;
pub mod timings;
pub mod witness;

use std::collections::BTreeMap;

pub use proposals::PROPOSALS;
pub use report::{Hold, Plan};
pub use rules::{RULES, decide};

use crate::{
    domain::{
        EndCause, Epoch, GroupStep, MemberId, Membership, Moment, Observation, Promise, Timings, TimingsId,
        membership::GroupView, observation::AgentView, observation::Notice,
    },
    state::{ClusterState, Kind, Member},
};

/// All the leader knows at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// The committed state.
    pub state: &'a ClusterState,
    /// The last heard of each host.
    pub seen: &'a BTreeMap<MemberId, Observation>,
    /// The last word of each host's agent about the end of an epoch it held.
    pub notices: &'a BTreeMap<MemberId, Notice>,
    /// Durable seals of the fenced epoch, with what each host's agent said after it.
    pub seals: &'a BTreeMap<MemberId, Seal>,
    /// The Raft group as it stands in this leader's log.
    pub group: &'a GroupView,
    /// What a cluster not yet founded is to be founded with.
    pub founding: Option<&'a Founding>,
    /// The timings in force.
    pub timings: &'a Timings,
    /// When things began, on this leader's clock.
    pub since: Since,
    /// Now, on this leader's clock.
    pub now: Moment,
    /// Now by the wall clock of this leader's host, in milliseconds since 1970; 0: nobody looked. Only schedules go by it.
    pub wall_ms: u64,
}

/// When this leader saw things begin. A new leader starts them over: deadlines
/// only grow by that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Since {
    /// This process started.
    pub start: Moment,
    /// It began to lead.
    pub lead: Moment,
    /// The lock came into its present state and phase.
    pub lock: Moment,
    /// The operation under way came into its present phase.
    pub operation: Moment,
    /// A rolling restart came between its steps, or a failover came between them.
    pub rolling: Moment,
    /// The agent of the member that an operation is about said last that it works on it, be it an earlier operation.
    pub at_work: Moment,
    /// The holder counts by these timings, the newest, and since when.
    pub timings: Option<(TimingsId, Moment)>,
    /// The address for standbys came to whoever has it now, or to nobody.
    pub reader: Moment,
    /// Whoever has it does not do well.
    pub reader_unfit: Option<Moment>,
}

impl Since {
    /// To be called with all that was heard.
    pub fn hear_of_work(&mut self, state: &ClusterState, seen: &BTreeMap<MemberId, Observation>) {
        let Some(operation) = &state.operation else { return };
        let Some(of) = seen.get(&operation.to) else { return };
        let work = of.agent.as_ref().and_then(|agent| agent.work.as_ref());
        if work.is_some_and(|work| work.order == operation.id) {
            self.at_work = of.agent_at;
        }
    }
}

/// A voter's durable promise not to help an epoch below `promise.sealed`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seal {
    /// What it has promised, and whether a promise to the old holder is left.
    pub promise: Promise,
    /// When its first reply arrived, on this leader's clock.
    pub at: Moment,
    /// When its last one did.
    pub told_at: Moment,
    /// What its agent said after the seal was durable; `None` when it did not answer.
    pub agent: Option<AgentView>,
}

/// What genesis records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Founding {
    /// Drawn once by the node that initialised Raft.
    pub cluster_id: crate::domain::ClusterId,
    /// The configured name.
    pub name: String,
    /// The configured members.
    pub members: Vec<(MemberId, Member)>,
    /// Who runs initdb.
    pub initializer: MemberId,
}

/// What one rule says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Propose this.
    Propose(Kind),
    /// Change the Raft group by this one entry.
    Change(GroupStep),
    /// Another manager should lead.
    Lead {
        /// Whose.
        to: MemberId,
        /// Why.
        why: leadership::LeadsWorse,
    },
    /// Nothing can be done yet, and this is why.
    Hold(Hold),
}

impl<'a> Situation<'a> {
    /// The voters that a majority is counted among: effective, whether committed or not.
    pub fn membership(&self) -> Membership {
        self.group.group.membership()
    }

    /// Voters that have durably sealed `epoch` under the membership that is effective here. With
    /// `free`, only those that have no promise left.
    pub fn sealed(&self, epoch: Epoch, free: bool) -> impl Iterator<Item = (&'a MemberId, &'a Seal)> {
        let membership = self.group.group.id;
        self.seals.iter().filter(move |(_, seal)| {
            let promise = seal.promise;
            promise.sealed >= epoch && promise.membership == membership && (promise.lapsed || !free)
        })
    }

    /// The last heard of a host, unless it has been silent too long.
    pub fn fresh(&self, member: &MemberId) -> Option<&'a Observation> {
        self.seen.get(member).filter(|o| self.now.since(o.at) <= self.timings.silent)
    }

    /// What a host's agent said, unless the host or its agent has been silent too long.
    pub fn agent(&self, member: &MemberId) -> Option<&'a AgentView> {
        let observation = self.fresh(member)?;
        let recent = self.now.since(observation.agent_at) <= self.timings.silent;
        observation.agent.as_ref().filter(|_| recent)
    }

    /// The word of `member` that its process tree of `epoch` is verified empty.
    pub fn fenced_notice(&self, member: &MemberId, epoch: Epoch) -> Option<Notice> {
        let heard = self.notices.get(member).filter(|n| n.epoch == epoch && n.fenced).cloned();
        heard.or_else(|| {
            let agent = self.agent(member)?;
            let over = agent.fenced_epoch >= epoch && agent.ended_epoch >= epoch && agent.wal_end_known;
            over.then(|| Notice {
                member: member.clone(),
                epoch,
                fenced: true,
                end: agent.wal_end,
                clean: agent.clean_shutdown,
                cause: if agent.ended_epoch == epoch { agent.ended_by } else { EndCause::Unknown },
            })
        })
    }
}
