//! Orders as this room uses them: checked for shape and for the receiver, in
//! domain types. The proto types end here and in `status.rs`.

use crate::{
    domain::{Briefing, ClusterId, Epoch, Generation, Lsn, MemberId, TimelineId, WalPosition},
    rpc::{briefing, v1},
};

/// A member to follow, to rewind to or to copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its name.
    pub member: MemberId,
    /// Its host.
    pub host: String,
    /// The port of its PostgreSQL.
    pub port: u16,
    /// The last position that the cluster's history and this member's share: for what is undone or copied over, and up to which
    /// WAL may be that is to be continued; `None`: nobody said.
    pub fork: Option<WalPosition>,
    /// An operator wants a copy, and named this member for it, or nobody; `None`: it is made for another reason.
    pub named: Option<bool>,
}

/// The host of a primary that crashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalHolder {
    /// Its name.
    pub member: MemberId,
    /// `host:port` of its manager.
    pub manager: String,
    /// The epoch it held.
    pub epoch: Epoch,
    /// The timeline it wrote on.
    pub timeline: TimelineId,
}

/// How to end PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Sessions end, a shutdown checkpoint is written, standbys get all WAL.
    Fast,
    /// As after a crash.
    Immediate,
}

/// What a manager may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Create the first data directory of a cluster.
    Initdb,
    /// Start as a standby, or follow someone else.
    StartStandby(Option<Source>),
    /// Become primary.
    Promote {
        /// The timeline the grant reserved.
        timeline: TimelineId,
        /// The WAL end the grant was decided on.
        floor: WalPosition,
    },
    /// Start a crashed or stopped primary again under the lease it still holds.
    RestartInPlace {
        /// The timeline of its grant.
        timeline: TimelineId,
    },
    /// Stop PostgreSQL.
    Stop {
        /// How.
        mode: StopMode,
        /// The stop may be rolled back: go on renewing.
        keep_lease: bool,
    },
    /// Undo what the source doesn't have.
    Rewind(Source),
    /// Copy the source.
    Clone(Source),
    /// Write a checkpoint.
    Checkpoint,
    /// Give up a copy that is under way.
    EndClone,
}

impl Action {
    /// The name shown in the status.
    pub fn kind(&self) -> &'static str {
        match self {
            Action::Initdb => "initdb",
            Action::StartStandby(_) => "start",
            Action::Promote { .. } => "promote",
            Action::RestartInPlace { .. } => "restart",
            Action::Stop { .. } => "stop",
            Action::Rewind(_) => "rewind",
            Action::Clone(_) => "clone",
            Action::Checkpoint => "checkpoint",
            Action::EndClone => "end clone",
        }
    }
}

/// One order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Unique within one manager's life.
    pub id: u64,
    /// The rule of reconcile that asked for it.
    pub rule: u32,
    /// The epoch it was given in.
    pub epoch: Epoch,
    /// The system identifier the cluster has, when it is known.
    pub system_identifier: Option<u64>,
    /// What to do.
    pub action: Action,
    /// The timeline of the end of this member's WAL that it was decided on, for a standby that is to follow somebody.
    pub own_timeline: Option<TimelineId>,
    /// Who may have WAL of the last primary that this member lacks, for one that is to be promoted.
    pub last: Option<WalHolder>,
    /// The state it was decided on, as far as it concerns an agent.
    pub briefing: Option<Box<Briefing>>,
}

/// For whom a request is, and from which life of which cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The cluster; empty before genesis.
    pub cluster_id: ClusterId,
    /// Its generation.
    pub generation: Generation,
    /// The receiver.
    pub target: String,
}

/// Who is meant by a request.
pub fn address(to: Option<&v1::Target>) -> Result<Address, String> {
    let to = to.ok_or("the request names no target")?;
    Ok(Address {
        cluster_id: ClusterId(to.cluster_id.clone()),
        generation: Generation(to.generation),
        target: to.target.clone(),
    })
}

/// Reads an order.
///
/// # Errors
/// What is missing or can't be, for the sender.
pub fn order(message: v1::Order) -> Result<(Address, Order), String> {
    let address = address(message.to.as_ref())?;
    let epoch = Epoch(message.to.map(|t| t.epoch).unwrap_or_default());
    let action = message.action.ok_or("the order names no action (or one this version doesn't know)")?;
    let own_timeline = match &action {
        v1::order::Action::StartStandby(a) => Some(TimelineId(a.own_timeline)).filter(|t| t.0 != 0),
        _ => None,
    };
    let last = match &action {
        v1::order::Action::Promote(a) => a.last.clone().map(wal_holder).transpose()?,
        _ => None,
    };
    let (system_identifier, action) = read_action(action)?;
    let system_identifier = Some(system_identifier).filter(|id| *id != 0);
    let briefing = message.briefing.map(briefing::briefing_of).transpose().map_err(|e| e.to_string())?.map(Box::new);
    let (id, rule) = (message.id, message.rule);
    Ok((address, Order { id, rule, epoch, system_identifier, action, own_timeline, last, briefing }))
}

fn read_action(action: v1::order::Action) -> Result<(u64, Action), String> {
    use v1::order::Action as Proto;
    Ok(match action {
        Proto::Initdb(_) => (0, Action::Initdb),
        Proto::StartStandby(a) => {
            let upstream = match a.upstream.is_empty() {
                true => None,
                false => Some(Source { fork: fork(a.fork), ..source(&a.upstream, a.upstream_host, a.upstream_port)? }),
            };
            (a.system_identifier, Action::StartStandby(upstream))
        }
        Proto::Promote(a) => {
            let floor = a.floor.unwrap_or_default();
            let floor = WalPosition { timeline: TimelineId(floor.timeline), lsn: Lsn(floor.lsn) };
            (a.system_identifier, Action::Promote { timeline: TimelineId(a.expected_timeline), floor })
        }
        Proto::RestartInPlace(a) => (a.system_identifier, Action::RestartInPlace { timeline: TimelineId(a.timeline) }),
        Proto::Stop(a) => {
            let mode = match a.mode() {
                v1::StopMode::Immediate => StopMode::Immediate,
                v1::StopMode::Fast | v1::StopMode::Unspecified => StopMode::Fast,
            };
            (0, Action::Stop { mode, keep_lease: a.keep_lease })
        }
        Proto::Rewind(a) => {
            let from = source(&a.source, a.source_host, a.source_port)?;
            (a.system_identifier, Action::Rewind(Source { fork: fork(a.fork), ..from }))
        }
        Proto::Clone(a) => {
            let from = source(&a.source, a.source_host, a.source_port)?;
            (a.system_identifier, Action::Clone(Source { fork: fork(a.fork), named: a.named, ..from }))
        }
        Proto::Checkpoint(_) => (0, Action::Checkpoint),
        Proto::EndClone(_) => (0, Action::EndClone),
    })
}

fn source(member: &str, host: String, port: u32) -> Result<Source, String> {
    let member: MemberId = member.parse().map_err(|e| format!("{e}"))?;
    let port = u16::try_from(port).ok().filter(|p| *p != 0);
    let port = port.ok_or_else(|| format!("{member}: a port is from 1 to 65535"))?;
    if host.is_empty() {
        return Err(format!("{member}: the order names no host for it"));
    }
    Ok(Source { member, host, port, fork: None, named: None })
}

fn wal_holder(told: v1::WalHolder) -> Result<WalHolder, String> {
    let member = told.member.parse().map_err(|e| format!("{e}"))?;
    Ok(WalHolder { member, manager: told.manager, epoch: Epoch(told.epoch), timeline: TimelineId(told.timeline) })
}

fn fork(told: Option<v1::WalPosition>) -> Option<WalPosition> {
    told.map(|at| WalPosition { timeline: TimelineId(at.timeline), lsn: Lsn(at.lsn) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_without_a_target_or_a_port_is_refused_before_anything_else() {
        assert!(order(v1::Order::default()).is_err());
        let to = Some(v1::Target { target: "n1".into(), ..v1::Target::default() });
        let start = v1::StartStandby { upstream: "n2".into(), upstream_host: "h".into(), ..Default::default() };
        let action = Some(v1::order::Action::StartStandby(start));
        let refused = order(v1::Order { to, action, ..v1::Order::default() }).unwrap_err();
        assert_eq!(refused, "n2: a port is from 1 to 65535");
    }
}
