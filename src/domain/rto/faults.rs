//! The table of faults: what fails, how it is noticed, and what stands beside it.

use super::{
    FailureDomain, Noticed, Scope, Statistics,
    paths::{
        agent_livelock, agent_loss, cold_start, crash, crash_failed_over, crash_loop, crash_that_fails_over, data_full,
        data_lost, deaf, deaf_with_leader, disk_hangs, disk_stalls, failover_by_command, guard_hangs, hangs, host_loss,
        host_loss_with_leader, nobody_restarts, promotion_fails, promotion_hangs, refuses, restart_fails,
        restart_hangs, successor_lost, successor_lost_early, switchover, wal_full,
    },
    patroni::{Class, Detection},
};

/// One line of the table.
pub(super) struct Row {
    pub path: &'static str,
    pub name: &'static str,
    pub domain: FailureDomain,
    pub scope: Scope,
    pub statistics: Statistics,
    pub noticed: Noticed,
    pub classes: &'static [Class],
    pub detection: Option<Detection>,
    /// Patroni notices it, so that Pigsty's formula means something.
    pub patroni_sees: bool,
    pub note: &'static str,
}

/// What most rows have in common; each names what differs.
const ROW: Row = Row {
    path: "",
    name: "",
    domain: FailureDomain::Process,
    scope: Scope::RoutedWrite,
    statistics: Statistics::Usual,
    noticed: Noticed::No,
    classes: &[],
    detection: None,
    patroni_sees: true,
    note: "",
};

/// The faults, in the order they are printed in.
pub(super) const ROWS: &[Row] = &[
    Row {
        path: "host-loss",
        name: "host of the primary lost",
        domain: FailureDomain::Host,
        statistics: Statistics::AnyMoment,
        noticed: Noticed::Yes(host_loss),
        classes: &[Class::NodeDown],
        detection: Some(Detection::Passive),
        ..ROW
    },
    Row {
        path: "host-loss-leader",
        name: "the same, with the Raft leader on it",
        domain: FailureDomain::Host,
        statistics: Statistics::AnyMoment,
        noticed: Noticed::Yes(host_loss_with_leader),
        classes: &[Class::NodeDown],
        detection: Some(Detection::Passive),
        note: "the worst case has one split vote",
        ..ROW
    },
    Row {
        path: "host-frozen",
        name: "host of the primary stops (paused, hung)",
        domain: FailureDomain::Host,
        statistics: Statistics::AnyMoment,
        noticed: Noticed::Yes(host_loss_with_leader),
        classes: &[Class::NodeZombie],
        detection: Some(Detection::Watchdog),
        note: "when it goes on its guard kills; docs/layers.md says what closes the moment until then",
        ..ROW
    },
    Row {
        path: "cut-off",
        name: "primary cut off, or can't send",
        domain: FailureDomain::Network,
        statistics: Statistics::AnyMoment,
        noticed: Noticed::Yes(host_loss),
        classes: &[Class::Partition],
        detection: Some(Detection::Partition),
        note: "it has ended itself at T_hold; clients beside it write until then",
        ..ROW
    },
    Row {
        path: "cut-off-leader",
        name: "the same, with the Raft leader beside it",
        domain: FailureDomain::Network,
        statistics: Statistics::AnyMoment,
        noticed: Noticed::Yes(host_loss_with_leader),
        classes: &[Class::Partition],
        detection: Some(Detection::Partition),
        note: "the worst case has one split vote",
        ..ROW
    },
    Row {
        path: "cut-receive",
        name: "primary can send, but not receive",
        domain: FailureDomain::Network,
        statistics: Statistics::AnyMoment,
        noticed: Noticed::Yes(deaf),
        classes: &[Class::Partition],
        detection: Some(Detection::Partition),
        note: "if each of its notices is lost it takes 3 renewals and T_grant",
        ..ROW
    },
    Row {
        path: "cut-receive-leader",
        name: "the same, with the Raft leader beside it",
        domain: FailureDomain::Network,
        statistics: Statistics::AnyMoment,
        noticed: Noticed::Yes(deaf_with_leader),
        classes: &[Class::Partition],
        detection: Some(Detection::Partition),
        note: "a leader nobody answers falls silent first; the worst case has one split vote",
        ..ROW
    },
    Row {
        path: "postgres-crash",
        name: "PostgreSQL crashes",
        domain: FailureDomain::Postgres,
        noticed: Noticed::Yes(crash),
        classes: &[Class::PostgresCrash],
        detection: Some(Detection::Active),
        note: "restarted in place with `auto` and `restart`, and where no standby streams; more WAL to replay takes longer, up to \
               primary_start, or as long as it gets on (`restart`, no standby)",
        ..ROW
    },
    Row {
        path: "postgres-crash-failover",
        name: "the same, answered by a failover",
        domain: FailureDomain::Postgres,
        noticed: Noticed::BySettings(crash_that_fails_over),
        classes: &[Class::PostgresCrash],
        detection: Some(Detection::Active),
        note: "where a standby streams: `failover`, or `auto` and its disk failed or its budget is spent; never with `restart`",
        ..ROW
    },
    Row {
        path: "crash-loop",
        name: "PostgreSQL crashes again and again",
        domain: FailureDomain::Postgres,
        noticed: Noticed::BySettings(crash_loop),
        classes: &[Class::PostgresCrash],
        detection: Some(Detection::Active),
        patroni_sees: false,
        note: "without the time between; within crash_window; restarted for ever with `restart`, or without a standby",
        ..ROW
    },
    Row {
        path: "restart-fails",
        name: "PostgreSQL crashes, every start fails",
        domain: FailureDomain::Postgres,
        noticed: Noticed::Yes(restart_fails),
        classes: &[Class::PostgresCrash],
        detection: Some(Detection::Active),
        note: "each counts as a crash; with `restart` it is tried until primary_start is over",
        ..ROW
    },
    Row {
        path: "restart-hangs",
        name: "PostgreSQL crashes, its start hangs",
        domain: FailureDomain::Postgres,
        statistics: Statistics::Deadline,
        noticed: Noticed::Yes(restart_hangs),
        classes: &[Class::PostgresCrash],
        detection: Some(Detection::Active),
        note: "each try that stands still for redo_stall counts as a crash; with `restart`: until primary_start is over",
        ..ROW
    },
    Row {
        path: "crash-without-manager",
        name: "PostgreSQL crashes, its manager is down",
        domain: FailureDomain::Postgres,
        statistics: Statistics::Deadline,
        noticed: Noticed::Yes(nobody_restarts),
        classes: &[Class::PostgresCrash],
        detection: Some(Detection::Active),
        note: "nobody orders the restart; with `failover` none is needed",
        ..ROW
    },
    Row {
        path: "connections-refused",
        name: "PostgreSQL listens no more",
        domain: FailureDomain::Postgres,
        statistics: Statistics::AnyMoment,
        noticed: Noticed::Yes(refuses),
        classes: &[Class::ConnectionsRefused],
        detection: Some(Detection::Active),
        note: "killed, then like a crash; an answer is life, also `too many clients`: nothing is done then",
        ..ROW
    },
    Row {
        path: "postmaster-hangs",
        name: "the postmaster hangs",
        domain: FailureDomain::Postgres,
        statistics: Statistics::AnyMoment,
        noticed: Noticed::Yes(hangs),
        classes: &[Class::PostgresZombie],
        detection: Some(Detection::Active),
        patroni_sees: false,
        note: "killed, then like a crash; old sessions go on until then",
        ..ROW
    },
    Row {
        path: "postgres-hangs",
        name: "all of PostgreSQL hangs",
        domain: FailureDomain::Postgres,
        statistics: Statistics::AnyMoment,
        noticed: Noticed::Yes(hangs),
        classes: &[Class::PostgresZombie],
        detection: Some(Detection::Active),
        patroni_sees: false,
        note: "killed, then like a crash",
        ..ROW
    },
    Row {
        path: "disk-hangs",
        name: "the disk hangs, and new connections with it",
        domain: FailureDomain::Disk,
        statistics: Statistics::AnyMoment,
        noticed: Noticed::Yes(disk_hangs),
        classes: &[Class::NodeZombie, Class::StorageLoss],
        detection: Some(Detection::Watchdog),
        note: "what can't be killed ends the epoch; where the agent's own files hang it is `agent-livelock`",
        ..ROW
    },
    Row {
        path: "disk-stalls",
        name: "the disk stalls, connections are taken",
        domain: FailureDomain::Disk,
        statistics: Statistics::AnyMoment,
        noticed: Noticed::Yes(disk_stalls),
        classes: &[Class::NodeZombie, Class::StorageLoss],
        detection: Some(Detection::Watchdog),
        note: "where a standby streams; without one it stays primary, and its disk is named",
        ..ROW
    },
    Row {
        path: "wal-volume-full",
        name: "the volume of the WAL is full",
        domain: FailureDomain::Disk,
        statistics: Statistics::AnyMoment,
        noticed: Noticed::Yes(wal_full),
        classes: &[Class::StorageLoss],
        detection: Some(Detection::Active),
        patroni_sees: false,
        note: "where a standby has room; best: it moves before anything fails",
        ..ROW
    },
    Row {
        path: "data-volume-full",
        name: "the volume of the data is full",
        domain: FailureDomain::Disk,
        statistics: Statistics::AnyMoment,
        noticed: Noticed::Yes(data_full),
        note: "where a standby has room; full at once, mostly it moves before",
        classes: &[Class::StorageLoss],
        detection: Some(Detection::Active),
        patroni_sees: false,
        ..ROW
    },
    Row {
        path: "data-lost",
        name: "the data directory is gone",
        domain: FailureDomain::Disk,
        statistics: Statistics::AnyMoment,
        noticed: Noticed::Yes(data_lost),
        classes: &[Class::StorageLoss],
        detection: Some(Detection::Active),
        note: "where a standby streams; PostgreSQL would run on until it needs a file",
        ..ROW
    },
    Row {
        path: "agent-restarts",
        name: "agent dies and is back within T_hold",
        noticed: Noticed::Harmless,
        classes: &[Class::ManagerCrash],
        detection: Some(Detection::Passive),
        ..ROW
    },
    Row {
        path: "agent-loss",
        name: "agent dies and stays down",
        statistics: Statistics::AnyMoment,
        noticed: Noticed::Yes(agent_loss),
        classes: &[Class::ManagerCrash],
        detection: Some(Detection::Passive),
        note: "PostgreSQL writes until its guard kills it at T_hold",
        ..ROW
    },
    Row {
        path: "agent-hangs",
        name: "agent stops, all of it",
        statistics: Statistics::AnyMoment,
        noticed: Noticed::Yes(agent_loss),
        classes: &[Class::ManagerZombie],
        detection: Some(Detection::Watchdog),
        note: "PostgreSQL writes until its guard kills it at T_hold",
        ..ROW
    },
    Row {
        path: "agent-livelock",
        name: "agent hangs, its lease thread goes on",
        statistics: Statistics::AnyMoment,
        noticed: Noticed::Yes(agent_livelock),
        classes: &[Class::ManagerZombie],
        detection: Some(Detection::Watchdog),
        note: "after 2 * T_hold + probe nothing is renewed for it; PostgreSQL writes until T_hold after that",
        ..ROW
    },
    Row {
        path: "guard-loss",
        name: "guard dies",
        noticed: Noticed::Yes(crash_failed_over),
        note: "its PostgreSQL is killed, not restarted in place",
        ..ROW
    },
    Row {
        path: "guard-hangs",
        name: "guard stops",
        statistics: Statistics::AnyMoment,
        noticed: Noticed::Yes(guard_hangs),
        note: "PostgreSQL writes until its agent kills it at the deadline",
        ..ROW
    },
    Row {
        path: "manager-loss",
        name: "manager, Raft leader or another router dies",
        noticed: Noticed::Harmless,
        classes: &[Class::ManagerCrash],
        detection: Some(Detection::Passive),
        note: "nothing is decided until a Raft leader is elected; a router's own sessions end with it",
        ..ROW
    },
    Row {
        path: "standby-loss",
        name: "host of a standby lost",
        domain: FailureDomain::Host,
        noticed: Noticed::Harmless,
        classes: &[Class::NodeDown],
        detection: None,
        note: "replication is asynchronous; reads through its router fail",
        ..ROW
    },
    Row {
        path: "promotion-fails",
        name: "host loss, and the first promotion fails",
        domain: FailureDomain::TwoHosts,
        statistics: Statistics::AnyMoment,
        noticed: Noticed::Yes(promotion_fails),
        ..ROW
    },
    Row {
        path: "promotion-hangs",
        name: "host loss, and the first promotion hangs",
        domain: FailureDomain::TwoHosts,
        statistics: Statistics::Deadline,
        noticed: Noticed::Yes(promotion_hangs),
        note: "a successor that has to be started first may take as long for that as well",
        ..ROW
    },
    Row {
        path: "successor-lost",
        name: "host loss, then the new primary's host",
        domain: FailureDomain::TwoHosts,
        statistics: Statistics::AnyMoment,
        noticed: Noticed::Yes(successor_lost),
        note: "after its first renewal; needs five members",
        ..ROW
    },
    Row {
        path: "successor-lost-early",
        name: "the same, before its first renewal",
        domain: FailureDomain::TwoHosts,
        statistics: Statistics::Deadline,
        noticed: Noticed::Yes(successor_lost_early),
        note: "nobody can know that it never took the lease; needs five members",
        ..ROW
    },
    Row {
        path: "quorum-loss",
        name: "majority of the managers lost",
        domain: FailureDomain::Cluster,
        noticed: Noticed::UntilRepaired,
        note: "read-only after T_hold; with cluster.failsafe writes go on while all agents agree; docs/recover.md",
        ..ROW
    },
    Row {
        path: "switchover",
        name: "switchover, planned",
        domain: FailureDomain::Nothing,
        scope: Scope::WriteGap,
        noticed: Noticed::Yes(switchover),
        classes: &[Class::Manual],
        detection: Some(Detection::Manual),
        note: "a heavy load makes the stop longer: up to `stop`, then it is rolled back",
        ..ROW
    },
    Row {
        path: "failover-command",
        name: "failover by command, primary well",
        domain: FailureDomain::Nothing,
        scope: Scope::Command,
        statistics: Statistics::AnyMoment,
        noticed: Noticed::Yes(failover_by_command),
        classes: &[Class::Manual],
        detection: Some(Detection::Manual),
        note: "it ends at its next renewal and says so; a group that has not noted the format of settings waits for T_grant",
        ..ROW
    },
    Row {
        path: "cold-start",
        name: "all hosts start at once",
        domain: FailureDomain::Cluster,
        scope: Scope::Restart,
        noticed: Noticed::Yes(cold_start),
        note: "worst: a member is missing, and one split vote",
        ..ROW
    },
];
