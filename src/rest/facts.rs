//! What this host answers by: what its own agent said, the committed state, and what its manager has heard of the others.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    domain::{Lsn, MemberId, PostgresState, SyncMode, observation::AgentView},
    state::ClusterState,
};

/// All of it at one moment.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The committed state as applied here.
    pub state: &'a ClusterState,
    /// `cluster.name`.
    pub scope: &'a str,
    /// Which member answers.
    pub me: &'a MemberId,
    /// What this host's agent said last, and how long ago; `None`: it doesn't answer.
    pub own: Option<(&'a AgentView, Duration)>,
    /// What is known of each member.
    pub members: &'a BTreeMap<MemberId, Known<'a>>,
    /// How long ago a majority confirmed the state.
    pub confirmed: Duration,
    /// A state that is older leads nobody to a primary.
    pub stale_after: Duration,
    /// Since 1970.
    pub now: Duration,
    /// How and at which port this API listens; on the other hosts as well, as far as this one knows.
    pub api: (&'static str, u16),
}

/// One member.
#[derive(Debug, Clone)]
pub struct Known<'a> {
    /// What its agent said, unless it has been silent too long.
    pub agent: Option<&'a AgentView>,
    /// Host and port of its PostgreSQL; of a witness its host and 0.
    pub postgres: (&'a str, u16),
}

/// What the lock and PostgreSQL make of a member, in Patroni's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It holds the lock, by the committed state.
    Primary,
    /// It has to confirm commits in the mode sync.
    SyncStandby,
    /// It may confirm commits in the mode quorum.
    QuorumStandby,
    /// Any other with PostgreSQL.
    Replica,
    /// It has no PostgreSQL.
    Witness,
}

impl Role {
    /// As `/cluster` says it.
    pub fn word(self) -> &'static str {
        match self {
            Role::Primary => "leader",
            Role::SyncStandby => "sync_standby",
            Role::QuorumStandby => "quorum_standby",
            Role::Replica => "replica",
            Role::Witness => "witness",
        }
    }
}

impl<'a> Facts<'a> {
    /// This host's agent, as it spoke.
    pub fn agent(&self) -> Option<&'a AgentView> {
        self.own.map(|(agent, _)| agent)
    }

    /// The lease is held now: what its agent said of it, less what has passed since. A manager that stood still may read
    /// old words late; its state is old as well then.
    pub fn holds_lease(&self) -> bool {
        let Some((agent, ago)) = self.own.filter(|_| self.confirmed <= self.stale_after) else { return false };
        agent.lease.held && Duration::from_millis(agent.lease.remaining_ms) > ago
    }

    /// It holds the lease, PostgreSQL accepts writes, and clients are let in.
    pub fn takes_writes(&self) -> bool {
        let open = self.state.open_primary().is_some_and(|(_, primary)| primary == self.me);
        let writes = self.agent().is_some_and(|agent| agent.state == PostgresState::Primary && !agent.sync.gate_closed);
        open && writes && self.holds_lease()
    }

    /// PostgreSQL answers, as whatever.
    pub fn runs(&self) -> bool {
        self.agent().is_some_and(runs)
    }

    /// It is a standby that reads may go to.
    pub fn is_readable_standby(&self) -> bool {
        let shows_now = !self.state.settings.of_member(self.me).is_delayed();
        shows_now && self.agent().is_some_and(|agent| agent.state == PostgresState::Standby)
    }

    /// What `member` is.
    pub fn role_of(&self, member: &MemberId) -> Role {
        if self.state.holder().is_some_and(|(_, holder)| holder == member) {
            return Role::Primary;
        }
        if self.state.is_witness(member) {
            return Role::Witness;
        }
        let rule = self.state.sync.in_force(self.state.epoch);
        let named = rule.is_some_and(|rule| rule.count > 0 && rule.names.contains(member));
        match self.state.settings.settings().replication_mode {
            SyncMode::Sync if named => Role::SyncStandby,
            SyncMode::Quorum if named => Role::QuorumStandby,
            SyncMode::Sync | SyncMode::Quorum | SyncMode::Async => Role::Replica,
        }
    }

    /// The end of the primary's WAL as far as anybody here knows; zero: nobody does.
    pub fn primary_end(&self) -> Lsn {
        let holder = self.state.holder().and_then(|(_, holder)| self.members.get(holder));
        let told = holder.and_then(|known| known.agent).map(|agent| agent.wal_end.lsn);
        let heard = self.agent().map(|agent| agent.heard.end.lsn);
        told.into_iter().chain(heard).max().unwrap_or_default()
    }

    /// Bytes by which this standby is behind; `None`: nobody knows where the primary is.
    pub fn lag(&self, of: Lag) -> Option<u64> {
        let (agent, end) = (self.agent()?, self.primary_end());
        let at = match of {
            Lag::Received => agent.wal_end.lsn,
            Lag::Replayed => agent.replay_lsn,
        };
        (end > Lsn(0)).then(|| end.bytes_past(at))
    }
}

/// Of what a standby may be behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lag {
    /// What it has received.
    Received,
    /// What it has replayed.
    Replayed,
}

/// PostgreSQL of that agent answers.
pub fn runs(agent: &AgentView) -> bool {
    match agent.state {
        PostgresState::Primary | PostgresState::Standby | PostgresState::Promoting | PostgresState::Unleased => true,
        PostgresState::NoData
        | PostgresState::Stopped
        | PostgresState::Starting
        | PostgresState::Stopping
        | PostgresState::Crashed
        | PostgresState::Busy
        | PostgresState::Failed => false,
    }
}
