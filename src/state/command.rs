//! What may be proposed. Every command names the epoch it expects and the rule
//! that asked for it; one that lost a race is [`Applied::Stale`] and changes nothing.

use std::{fmt, sync::Arc, time::Duration};

use super::{
    agenda::AgendaChange,
    cluster::{Member, OperationKind, OperationPhase},
    hibernate::HibernateChange,
    history::Evidence,
};
use crate::domain::{
    ClusterId, EndCause, Epoch, Format, Generation, MemberId, NodeId, PostgresKey, Profile, SettingChanges, SyncStart,
    TimelineHistory, TimelineId, Timings, TimingsId, WalPosition,
};

/// The number of a rule in `policy::rules`; it stands in every log entry it caused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RuleId(pub u32);

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {}", self.0)
    }
}

/// One log entry of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Set by the proposer; the same request proposed twice has the same id.
    pub request_id: String,
    /// The epoch it was decided in.
    pub expected: Epoch,
    /// The rule that asked for it.
    pub because: RuleId,
    /// What it changes.
    pub kind: Kind,
    /// What it was decided on. For people.
    pub evidence: Option<Arc<Evidence>>,
}

/// What a command changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Founds the cluster. Once.
    Genesis {
        /// The new cluster's id.
        cluster_id: ClusterId,
        /// 1.
        generation: Generation,
        /// The configured name.
        name: String,
        /// Its members.
        members: Vec<(MemberId, Member)>,
        /// Who runs initdb.
        initializer: MemberId,
    },
    /// Records PostgreSQL's identity of the cluster. Once.
    RecordSystem {
        /// From `pg_control`.
        system_identifier: u64,
        /// The timeline that its WAL ends on and where that comes from, when the cluster begins with restored or adopted data;
        /// `None`: on the first.
        history: Option<TimelineHistory>,
    },
    /// Ends the expected epoch: no grant for it or below can follow.
    Fence {
        /// Why, for people.
        reason: String,
        /// Why, by the word of the holder's agent; unknown when it gave none, and while a host counts only what releases say.
        cause: EndCause,
    },
    /// Gives the lock of the fenced epoch to a member.
    Grant {
        /// To whom.
        member: MemberId,
        /// The WAL end the choice was made on.
        floor: WalPosition,
        /// By which rule its commits are acknowledged; `None`: by none, and nothing is promised any more.
        sync: Option<SyncStart>,
    },
    /// Gives the lock of the fenced epoch to the first member, whose PostgreSQL was taken over while it ran and writes
    /// already: it stays on the timeline that it is on, and none is reserved. Only before anybody was granted.
    GrantRunning {
        /// To whom.
        member: MemberId,
        /// The WAL end the choice was made on.
        floor: WalPosition,
    },
    /// The promotion is done.
    PromotionComplete {
        /// Who was promoted.
        member: MemberId,
        /// The timeline it is on.
        timeline: TimelineId,
        /// The position on the parent timeline where it began.
        switch: WalPosition,
        /// CRC of its first WAL record, as far as it is known.
        first_record: Option<u32>,
    },
    /// Clients may be routed to the primary.
    Open {
        /// Which.
        member: MemberId,
    },
    /// The holder gave the lock up; its process tree is verified empty.
    Release {
        /// The holder.
        member: MemberId,
        /// Where its WAL ends.
        end: WalPosition,
        /// After a clean shutdown.
        clean: bool,
        /// Why it ended.
        cause: EndCause,
    },
    /// An operator's request begins.
    BeginOperation {
        /// What.
        kind: OperationKind,
        /// From whom; of a reinit whom the operator wants to be copied.
        from: Option<MemberId>,
        /// To whom.
        to: MemberId,
        /// The operator accepts that acknowledged commits are lost.
        accepts_loss: bool,
    },
    /// The operation goes on to its next phase.
    AdvanceOperation {
        /// Which.
        id: u64,
        /// To where.
        phase: OperationPhase,
    },
    /// A manager that lost its Raft log, or never had one, gets a new node. The group follows step by step.
    ReplaceNode {
        /// Whose.
        member: MemberId,
        /// The node it has now; none of that number votes again.
        old: NodeId,
        /// The new one: a number never used before.
        node: NodeId,
        /// Why, for people.
        reason: String,
    },
    /// A host joins the cluster. It gets a node when its manager asks for one.
    AddMember {
        /// Its name.
        member: MemberId,
        /// `host:port` of its manager.
        manager: String,
        /// `host:port` of its PostgreSQL; empty: it is a witness.
        postgres: String,
        /// It gets the log and never votes.
        learner: bool,
    },
    /// A member is reached elsewhere from now on. What it is stays: whoever answers there has to be that member.
    MoveMember {
        /// Which.
        member: MemberId,
        /// `host:port` of its manager.
        manager: String,
        /// `host:port` of its PostgreSQL; empty: it is a witness.
        postgres: String,
        /// `host:port` of its agent's datagrams; empty when it has none.
        agent: String,
    },
    /// A host leaves the cluster.
    RemoveMember {
        /// Which.
        member: MemberId,
    },
    /// A timeline that somebody began by hand becomes part of the cluster's history: no WAL is left without it.
    AdoptTimeline {
        /// Who has it.
        member: MemberId,
        /// Its number, above every one that was granted.
        timeline: TimelineId,
        /// Where it left the cluster's last one.
        switch: WalPosition,
        /// CRC of its first WAL record, as far as it is known.
        first_record: Option<u32>,
    },
    /// The operation is over.
    EndOperation {
        /// Which.
        id: u64,
        /// It did what was asked.
        succeeded: bool,
        /// Why not, or a remark.
        reason: String,
    },
    /// The operator's program was run against a host whose epoch had ended. Changes nothing but
    /// what people can read: no grant waits for it or is earlier for it.
    RecordStonith {
        /// Whose host.
        member: MemberId,
        /// The epoch it had held.
        epoch: Epoch,
        /// The program said so.
        succeeded: bool,
        /// How it ended, or why it was not run.
        how: String,
    },
    /// Other timings are in force from now on; leases move to them one renewal at a time.
    SetTimings {
        /// The profile they were made from.
        profile: Profile,
        /// Every value, the inequalities checked by whoever proposes it.
        timings: Box<Timings>,
        /// The newest it was decided on, and the version of the settings they were checked against: beside others nothing
        /// is changed. `None` while some host knows no [`Format::BESIDE`].
        decided: Option<Decided>,
    },
    /// No lease is held, and no promise runs, under anything older.
    SettleTimings {
        /// The newest timings, as the proposer knew them.
        id: TimingsId,
    },
    /// Some settings have other values from now on.
    SetSettings {
        /// The version of the settings it was decided on; of another one nothing is changed.
        version: u64,
        /// What changes. Every value was checked by whoever proposes it.
        changes: SettingChanges,
        /// Who asked, as they call themselves; empty when they don't.
        by: String,
        /// The timings they were checked against: beside others nothing is changed. `None` while some host knows no
        /// [`Format::BESIDE`].
        beside: Option<TimingsId>,
    },
    /// The cluster decides nothing by itself until an operator lets it go on.
    Pause {
        /// Why, in the operator's words; may be empty.
        reason: String,
        /// Who asked, as they call themselves; empty when they don't.
        by: String,
    },
    /// The pause is over.
    Resume {
        /// Who asked, as they call themselves; empty when they don't.
        by: String,
    },
    /// A member is left alone and chosen for nothing, or is so no more.
    Maintenance {
        /// Which.
        member: MemberId,
        /// It begins.
        on: bool,
        /// Why, in the operator's words; may be empty.
        reason: String,
        /// Who asked, as they call themselves; empty when they don't.
        by: String,
        /// PostgreSQL there is stopped, too, or started again; `true`: though commits wait for it.
        stop: Option<bool>,
    },
    /// Failovers that followed crashes count no more.
    Acknowledge {
        /// Who said so, as they call themselves; empty for the rule.
        by: String,
    },
    /// Commits are acknowledged by another rule from now on.
    SetSync {
        /// The number of the last change of them; after another one nothing is changed.
        after: u64,
        /// Who may confirm, and how many have to; `None`: nothing is promised any more.
        rule: Option<(Vec<MemberId>, u32)>,
    },
    /// Clients are kept out of the primary until what it has is confirmed, or may come in again.
    KeepOut {
        /// They are.
        on: bool,
    },
    /// The newest rule is in effect: what was acknowledged under older ones is covered by it.
    SettleSync {
        /// Its number.
        id: u64,
    },
    /// A member streams from a standby from now on, or from the primary again.
    Cascade {
        /// Which.
        member: MemberId,
        /// From whom; `None`: the primary.
        source: Option<MemberId>,
        /// How often it has left that source lately because of it.
        falls: u32,
        /// Why, for people.
        reason: String,
    },
    /// A member has the address for standbys from now on.
    Lend {
        /// Which.
        member: MemberId,
        /// One more than that of the last.
        id: u64,
        /// So long each confirmation of it counts.
        life: Duration,
    },
    /// It has it no more.
    EndLend {
        /// Which lend.
        id: u64,
        /// Why, for people.
        reason: String,
    },
    /// Every host has told that it can apply commands of this format: they may be proposed also while one is away.
    NoteFormat {
        /// Which.
        format: Format,
    },
    /// Something is scheduled, begun, taken back or over.
    Agenda(AgendaChange),
    /// The whole cluster is stopped, or goes on.
    Hibernate(HibernateChange),
}

/// What a change of timings was decided on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decided {
    /// The newest timings; [`TimingsId::FILES`]: those of the hosts' files.
    pub timings: TimingsId,
    /// The version of the settings.
    pub settings: u64,
}

impl Kind {
    /// The end of an epoch whose holder hasn't said why.
    pub fn fence(reason: String) -> Self {
        Self::Fence { reason, cause: EndCause::Unknown }
    }

    /// Its name, for logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Genesis { .. } => "genesis",
            Self::RecordSystem { .. } => "record-system",
            Self::Fence { .. } => "fence-epoch",
            Self::Grant { .. } => "grant-primary",
            Self::GrantRunning { .. } => "grant-running",
            Self::PromotionComplete { .. } => "promotion-complete",
            Self::Open { .. } => "primary-open",
            Self::Release { .. } => "release-primary",
            Self::BeginOperation { .. } => "begin-operation",
            Self::AdvanceOperation { .. } => "advance-operation",
            Self::EndOperation { .. } => "end-operation",
            Self::RecordStonith { .. } => "record-stonith",
            Self::SetTimings { .. } => "set-timings",
            Self::SettleTimings { .. } => "settle-timings",
            Self::ReplaceNode { .. } => "replace-node",
            Self::AddMember { .. } => "add-member",
            Self::RemoveMember { .. } => "remove-member",
            Self::MoveMember { .. } => "move-member",
            Self::AdoptTimeline { .. } => "adopt-timeline",
            Self::SetSettings { .. } => "set-settings",
            Self::NoteFormat { .. } => "note-format",
            Self::Pause { .. } => "pause",
            Self::Resume { .. } => "resume",
            Self::Maintenance { stop: None, .. } => "maintenance",
            Self::Maintenance { on: true, .. } => "stop-member",
            Self::Maintenance { on: false, .. } => "start-member",
            Self::Acknowledge { .. } => "acknowledge",
            Self::SetSync { .. } => "set-sync",
            Self::SettleSync { .. } => "settle-sync",
            Self::KeepOut { .. } => "keep-out",
            Self::Cascade { .. } => "cascade",
            Self::Lend { .. } => "lend",
            Self::EndLend { .. } => "end-lend",
            Self::Agenda(change) => change.name(),
            Self::Hibernate(change) => change.name(),
        }
    }

    /// The least format that can apply it.
    pub fn format(&self) -> Format {
        match self {
            Self::BeginOperation { kind: OperationKind::Reinit, .. }
            | Self::AdvanceOperation { phase: OperationPhase::Copy | OperationPhase::Stream, .. } => Format::OPERATE,
            Self::BeginOperation { kind: OperationKind::Restart, .. }
            | Self::AdvanceOperation { phase: OperationPhase::Start, .. } => Format::SETTINGS,
            Self::Genesis { members, .. } if members.iter().any(|(_, m)| m.is_witness() || m.learner) => {
                Format::OPERATE
            }
            Self::AddMember { postgres, learner, .. } if postgres.is_empty() || *learner => Format::OPERATE,
            Self::BeginOperation { .. }
            | Self::AdvanceOperation { .. }
            | Self::Genesis { .. }
            | Self::RecordSystem { history: None, .. }
            | Self::Fence { .. }
            | Self::Grant { sync: None, .. }
            | Self::PromotionComplete { .. }
            | Self::Open { .. }
            | Self::Release { .. }
            | Self::EndOperation { .. }
            | Self::RecordStonith { .. }
            | Self::SettleTimings { .. }
            | Self::ReplaceNode { .. }
            | Self::AddMember { .. }
            | Self::RemoveMember { .. }
            | Self::AdoptTimeline { .. } => Format::FIRST,
            Self::SetSettings { changes, .. } if changes.keys().any(|key| PostgresKey::of(key).is_some()) => {
                Format::OPERATE
            }
            Self::SetTimings { decided: Some(_), .. } | Self::SetSettings { beside: Some(_), .. } => Format::BESIDE,
            Self::SetTimings { profile, timings, .. } if timings.are_newer(*profile) => Format::MOVES,
            Self::SetTimings { .. } => Format::FIRST,
            Self::Maintenance { stop: Some(_), .. } => Format::OPERATE,
            Self::SetSettings { .. }
            | Self::Pause { .. }
            | Self::Resume { .. }
            | Self::Maintenance { .. }
            | Self::Acknowledge { .. } => Format::SETTINGS,
            Self::Grant { sync: Some(_), .. }
            | Self::SetSync { .. }
            | Self::SettleSync { .. }
            | Self::KeepOut { .. } => Format::SYNC,
            Self::Cascade { .. } => Format::CASCADE,
            Self::RecordSystem { history: Some(_), .. } => Format::CONTENT,
            Self::GrantRunning { .. } => Format::RUNNING,
            Self::MoveMember { .. } => Format::OPERATE,
            Self::Lend { .. } | Self::EndLend { .. } => Format::OPERATE,
            Self::Agenda(_) | Self::Hibernate(_) => Format::OPERATE,
            Self::NoteFormat { format } => Format::SETTINGS.max(*format),
        }
    }
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Applied {
    /// The state changed.
    Changed,
    /// The command lost a race; nothing changed.
    Stale {
        /// The epoch now.
        current: Epoch,
        /// What no longer held.
        why: String,
    },
    /// No command of ours (a blank entry or a membership change of Raft's).
    #[default]
    Nothing,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in epoch {} ({})", self.kind.name(), self.expected, self.because)
    }
}
