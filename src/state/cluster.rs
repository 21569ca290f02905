//! What every node knows: who belongs to the cluster, who holds the primary's
//! lock, which timelines there have been, and which operation is under way.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::{
    agenda::Agenda,
    cascade::Link,
    command::RuleId,
    hibernate::Hibernation,
    history::{Evidence, Reign},
    pause::Asked,
    reader::Reader,
    roster::Roster,
};
use crate::domain::{
    ClusterId, EndCause, Epoch, Format, Generation, Lsn, MemberId, NodeId, SettingsChange, SettingsDocument, SyncSet,
    TimelineHistory, TimelineId, TimelineSwitch, TimingsInUse, WalPosition,
};

/// How many incidents the state remembers.
pub const INCIDENTS_KEPT: usize = 64;

/// The replicated state of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterState {
    /// `None` before genesis.
    pub identity: Option<Identity>,
    /// Who belongs to it.
    pub members: BTreeMap<MemberId, Member>,
    /// The member whose initdb founds the cluster.
    pub initializer: Option<MemberId>,
    /// PostgreSQL's own identity of the cluster, once there is one.
    pub system_identifier: Option<u64>,
    /// The highest epoch ever named. Never goes back.
    pub epoch: Epoch,
    /// The primary's lock.
    pub lock: Lock,
    /// Every timeline that was reserved for a promotion, oldest first.
    pub lineage: Vec<TimelineRecord>,
    /// The operation under way.
    pub operation: Option<Operation>,
    /// How the last operation ended.
    pub last_operation: Option<FinishedOperation>,
    /// How many operations there have been; the id of the next is one more.
    pub operations: u64,
    /// The last changes of primary and what caused them.
    pub incidents: VecDeque<Incident>,
    /// The last primaries, oldest first.
    pub reigns: VecDeque<Reign>,
    /// Counts the commands that changed this state.
    pub revision: u64,
    /// Which timings a lease may be held under.
    pub timings: TimingsInUse,
    /// What operators have set.
    pub settings: SettingsDocument,
    /// The last changes of that, oldest first.
    pub settings_changes: VecDeque<SettingsChange>,
    /// What it takes to read this state and the log that led to it. Never goes back.
    pub format: Format,
    /// The cluster decides nothing by itself: who asked for that, and why.
    pub paused: Option<Asked>,
    /// Failovers that followed crashes of PostgreSQL, since a primary lasted or an operator acknowledged them.
    pub crash_failovers: u32,
    /// Who has not said yet why the last epoch it held ended, and which that was: its word still counts.
    pub unexplained: BTreeMap<MemberId, Epoch>,
    /// Counts the changes of what agents mind: pauses, and whether a crashed primary stays.
    pub pauses: u64,
    /// Members that are left alone and chosen for nothing: who asked for that, and why.
    pub maintenance: BTreeMap<MemberId, Asked>,
    /// How the list of members came to be.
    pub roster: Roster,
    /// The highest Raft id ever given to a member. None is given twice.
    pub last_node: NodeId,
    /// The rules by which commits may have been acknowledged.
    pub sync: SyncSet,
    /// Clients are kept out of the primary: it was restarted after a crash, and what they would read is not confirmed yet.
    pub kept_out: bool,
    /// Timelines that were begun by hand, and on whose host. Anybody else's WAL under that number may be other WAL.
    pub by_hand: BTreeMap<TimelineId, MemberId>,
    /// Who streams from a standby, or has lately. Nobody does so before it has streamed from the primary of this epoch.
    pub cascade: BTreeMap<MemberId, Link>,
    /// Managers that were moved by command, and where they are, `host:port`: that counts before the hosts' files.
    pub moved: BTreeMap<MemberId, String>,
    /// Who has the address for standbys.
    pub reader: Reader,
    /// What operators asked for beside the operation under way, and what came of the last ones.
    pub agenda: Agenda,
    /// The whole cluster is stopped by command, being stopped, or woken.
    pub hibernation: Option<Hibernation>,
}

/// Which life of which cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Drawn at genesis.
    pub cluster_id: ClusterId,
    /// 1 at genesis; one more with each `matriarch recover`.
    pub generation: Generation,
    /// The configured name.
    pub name: String,
}

/// One member as committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its Raft id; 0 until its manager has asked for one.
    pub node: NodeId,
    /// `host:port` of its manager.
    pub manager: String,
    /// `host:port` of its PostgreSQL; empty: it has none, and is a witness.
    pub postgres: String,
    /// `host:port` of its agent's datagrams (failsafe); empty when it has none.
    pub agent: String,
    /// Its node gets the log and never votes; it acknowledges no lease and seals no epoch.
    pub learner: bool,
}

impl Member {
    /// It votes, and acknowledges the lease as every voter does, and has neither PostgreSQL nor an agent.
    pub fn is_witness(&self) -> bool {
        self.postgres.is_empty()
    }
}

/// The primary's lock. Exactly one of these holds at any time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Lock {
    /// Nobody ever held it.
    #[default]
    Free,
    /// One member may become, or is, primary of this epoch.
    Granted {
        /// The epoch of the grant.
        epoch: Epoch,
        /// Who.
        member: MemberId,
        /// How far the promotion is.
        phase: GrantPhase,
        /// The timeline reserved for it.
        timeline: TimelineId,
        /// Where the new timeline began; 0 until the promotion is complete.
        switch_lsn: Lsn,
        /// The WAL end the grant was decided on.
        floor: WalPosition,
    },
    /// The holder gave it up and its process tree is verified empty.
    Released(Release),
    /// An epoch above the last holder's was committed; nothing is granted yet.
    Fenced {
        /// The new epoch.
        epoch: Epoch,
        /// The last holder, if there was one.
        previous: Option<(Epoch, MemberId)>,
        /// Present when the last holder released the lock by itself.
        released: Option<Release>,
    },
}

/// The end of an epoch, in the words of its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// The epoch that ended.
    pub epoch: Epoch,
    /// Who held it.
    pub member: MemberId,
    /// Where its WAL ends.
    pub end: WalPosition,
    /// After a clean shutdown: `end` is proven.
    pub clean: bool,
    /// Why it ended.
    pub cause: EndCause,
}

/// How far a promotion is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum GrantPhase {
    /// The member takes the lease and promotes.
    Promoting,
    /// PostgreSQL has left recovery on the reserved timeline.
    Promoted,
    /// Clients may be routed to it.
    Open,
}

/// A timeline that was reserved for a promotion. Reserved numbers are never
/// used again, also when the promotion came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimelineRecord {
    /// The number.
    pub timeline: TimelineId,
    /// The epoch of the grant that reserved it.
    pub epoch: Epoch,
    /// Where it began, once the promotion was complete.
    pub switch: Option<WalPosition>,
    /// CRC of its first WAL record, when it was known at the end of the promotion (see
    /// [`TimelineHistory::first_records`]).
    pub first_record: Option<u32>,
}

/// What an operator asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationKind {
    /// A planned change of primary with the old one's help; nothing is lost.
    Switchover,
    /// A change of primary without the old one's help, by command.
    Failover,
    /// PostgreSQL of one member is stopped and started again, that of the primary under its lease.
    Restart,
    /// The data of a standby is copied anew.
    Reinit,
    /// The whole cluster is stopped, and stays so.
    Hibernate,
    /// A cluster that was stopped so goes on.
    Wake,
}

/// Where an operation is. Persisted before acting: a new leader goes on from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OperationPhase {
    /// The primary flushes early, so that the stop is short.
    Checkpoint,
    /// Routers hold new connections.
    HoldWrites,
    /// A fast stop with the lease kept. The last phase that can be rolled back.
    Stop,
    /// The lock is released or fenced; the target is promoted. A hibernation: everybody stops.
    Transfer,
    /// The old primary is opened again.
    RollBack,
    /// A restart: it is stopped, and to be started again. A wake: members are started, and one is to be primary.
    Start,
    /// A reinit: the data is being copied.
    Copy,
    /// A reinit: the copy is in place, and is to stream.
    Stream,
}

/// An operation under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Its number.
    pub id: u64,
    /// What was asked for.
    pub kind: OperationKind,
    /// The primary when it began; of a reinit the member that the operator wants to be copied.
    pub from: Option<MemberId>,
    /// Who shall be primary, is restarted, or is copied anew; of a hibernation and its end who was primary.
    pub to: MemberId,
    /// Where it is.
    pub phase: OperationPhase,
    /// The operator's request: the same one asked again means this operation.
    pub request_id: String,
    /// The rule that began it; the zero rule for an operator's.
    pub because: RuleId,
    /// The operator accepts that acknowledged commits are lost; of a reinit, that commits wait until it is over; of a
    /// hibernation, that only the primary has all its WAL.
    pub accepts_loss: bool,
}

impl Operation {
    /// It is to end with another primary.
    pub fn moves_primary(&self) -> bool {
        matches!(self.kind, OperationKind::Switchover | OperationKind::Failover)
    }

    /// PostgreSQL of the primary is restarted, which stays primary.
    pub fn restarts_primary(&self) -> bool {
        self.kind == OperationKind::Restart && self.from.as_ref() == Some(&self.to)
    }
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishedOperation {
    /// The operation, in its last phase.
    pub operation: Operation,
    /// It did what was asked.
    pub succeeded: bool,
    /// Why not, or a remark.
    pub reason: String,
}

/// A change an operator will want to read about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incident {
    /// The revision it happened at.
    pub revision: u64,
    /// The epoch after it.
    pub epoch: Epoch,
    /// What happened.
    pub what: String,
    /// The rule that asked for it.
    pub rule: u32,
    /// What it was decided on.
    pub evidence: Option<Arc<Evidence>>,
}

impl ClusterState {
    /// The operation that this request began, if it is the one under way or the last one.
    pub fn operation_of(&self, request_id: &str) -> Option<&Operation> {
        let last = self.last_operation.as_ref().map(|f| &f.operation);
        self.operation.iter().chain(last).find(|o| o.request_id == request_id)
    }

    /// The member that holds the lock, with its epoch.
    pub fn holder(&self) -> Option<(Epoch, &MemberId)> {
        match &self.lock {
            Lock::Granted { epoch, member, .. } => Some((*epoch, member)),
            Lock::Free | Lock::Released(_) | Lock::Fenced { .. } => None,
        }
    }

    /// The primary clients may be routed to: granted, open, not about to be stopped, and nobody is kept out of it.
    pub fn open_primary(&self) -> Option<(Epoch, &MemberId)> {
        match &self.lock {
            Lock::Granted { epoch, member, phase: GrantPhase::Open, .. } if !self.holds_writes() && !self.kept_out => {
                Some((*epoch, member))
            }
            Lock::Free | Lock::Granted { .. } | Lock::Released(_) | Lock::Fenced { .. } => None,
        }
    }

    /// A switchover, a restart of the primary, or a hibernation has asked routers to hold new connections.
    pub fn holds_writes(&self) -> bool {
        let Some(operation) = &self.operation else { return false };
        match operation.kind {
            _ if operation.phase == OperationPhase::Checkpoint => false,
            OperationKind::Switchover => !self.transferred(),
            OperationKind::Restart => operation.restarts_primary(),
            OperationKind::Hibernate => true,
            OperationKind::Failover | OperationKind::Reinit | OperationKind::Wake => false,
        }
    }

    /// The operation under way, unless it is one that concerns nobody but its member and may take hours.
    pub fn brief_operation(&self) -> Option<&Operation> {
        self.operation.as_ref().filter(|o| o.kind != OperationKind::Reinit)
    }

    /// The members that have PostgreSQL: all but witnesses.
    pub fn with_postgres(&self) -> impl Iterator<Item = &MemberId> + Clone {
        self.members.iter().filter(|(_, member)| !member.is_witness()).map(|(id, _)| id)
    }

    /// A member without PostgreSQL. Whoever is no member is none.
    pub fn is_witness(&self, member: &MemberId) -> bool {
        self.members.get(member).is_some_and(Member::is_witness)
    }

    /// A member that gets the log and never votes. Whoever is no member is none.
    pub fn is_learner(&self, member: &MemberId) -> bool {
        self.members.get(member).is_some_and(|m| m.learner)
    }

    /// The members whose present nodes vote, or are to vote as soon as they can: all but learners.
    pub fn voters(&self) -> impl Iterator<Item = (&MemberId, &Member)> + Clone {
        self.members.iter().filter(|(_, member)| !member.learner)
    }

    /// It has PostgreSQL, and operators have nothing against it: it confirms commits when it can.
    pub fn may_confirm(&self, member: &MemberId) -> bool {
        !self.is_witness(member) && self.settings.of_member(member).confirms() && !self.maintenance.contains_key(member)
    }

    /// Commits wait whenever this member is down, whoever else is up: all who may confirm have to, in a strict mode, by the
    /// only rule there is.
    pub fn is_indispensable(&self, member: &MemberId) -> bool {
        let [rule] = self.sync.rules.as_slice() else { return false };
        let all_have_to = rule.count as usize >= rule.names.len() && rule.names.contains(member);
        let holder = self.holder().map(|(_, holder)| holder);
        let mut others = self.members.keys().filter(|m| Some(*m) != holder && self.may_confirm(m));
        self.settings.settings().sync_strict && all_have_to && others.all(|m| rule.names.contains(m))
    }

    /// The target of the operation under way holds the lock.
    fn transferred(&self) -> bool {
        match (&self.operation, self.holder()) {
            (Some(operation), Some((_, holder))) => operation.to == *holder,
            (_, None) | (None, _) => false,
        }
    }

    /// The highest timeline number ever used or reserved.
    pub fn highest_timeline(&self) -> TimelineId {
        self.lineage.iter().map(|r| r.timeline).max().unwrap_or(TimelineId(1))
    }

    /// The ancestry of `timeline` as the log recorded it; a timeline whose
    /// promotion was never completed has no known parent.
    pub fn history_of(&self, timeline: TimelineId) -> TimelineHistory {
        let (mut switches, mut first_records) = (Vec::new(), BTreeMap::new());
        let mut current = timeline;
        while let Some(record) = self.lineage.iter().find(|r| r.timeline == current) {
            first_records.extend(record.first_record.map(|crc| (current, crc)));
            let Some(switch) = record.switch.filter(|s| s.timeline < current) else { break };
            switches.push(TimelineSwitch { timeline: switch.timeline, end: switch.lsn });
            current = switch.timeline;
        }
        switches.reverse();
        TimelineHistory { timeline, switches, first_records }
    }

    /// WAL of this member, which ends there, is the cluster's, as far as its number and its first record say: two
    /// members that were both promoted by hand from the same position have equal histories and other bytes.
    pub fn is_known_wal(&self, member: &MemberId, end: WalPosition, history: &TimelineHistory) -> bool {
        let Some(begun_on) = self.by_hand.get(&end.timeline) else { return true };
        let record = self.lineage.iter().find(|r| r.timeline == end.timeline).and_then(|r| r.first_record);
        begun_on == member || (record.is_some() && record.as_ref() == history.first_records.get(&end.timeline))
    }

    /// The newest timeline whose promotion was completed, 1 before the first.
    pub fn newest_complete_timeline(&self) -> TimelineId {
        let complete = self.lineage.iter().filter(|r| r.switch.is_some()).map(|r| r.timeline);
        complete.max().unwrap_or(TimelineId(1))
    }

    /// The Raft id that is given next.
    pub fn next_node(&self) -> NodeId {
        let known = self.members.values().map(|m| m.node).max().unwrap_or_default();
        NodeId(known.max(self.last_node).0 + 1)
    }

    /// The cluster's generation, 0 before genesis.
    pub fn generation(&self) -> Generation {
        self.identity.as_ref().map(|i| i.generation).unwrap_or_default()
    }

    /// The cluster's id, empty before genesis.
    pub fn cluster_id(&self) -> ClusterId {
        self.identity.as_ref().map(|i| i.cluster_id.clone()).unwrap_or_default()
    }
}
