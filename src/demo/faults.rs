//! The faults a demo can inject, and what mends them.

use std::{
    convert::Infallible,
    fmt,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::ValueEnum;
use nix::sys::signal::Signal;

use super::{
    cluster::Cluster,
    disks::{Disk, Disks},
    netns::Cut,
    processes,
    supervisor::Role,
    watcher::Watcher,
    workload,
};
use crate::rpc::v1::StatusReply;

/// How soon a postmaster that came back is killed again.
const CRASH_PACE: Duration = Duration::from_millis(20);

/// A fault, always of the primary's host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// The host loses power: link cut, manager, agent, guard, router and PostgreSQL killed at once.
    KillHost,
    /// The postmaster is killed.
    KillPostgres,
    /// The postmaster is stopped (SIGSTOP) and stays so: sessions go on, nobody new gets in.
    StopPostgres,
    /// Every process of PostgreSQL is stopped (SIGSTOP) and stays so.
    StopTree,
    /// The postmaster is killed whenever there is one, until another host is primary.
    CrashLoop,
    /// Replay stands still on every standby, then the host loses power: whoever is chosen can't be promoted, and replay
    /// goes on at the others.
    StuckPromotion,
    /// The host loses power, and recovery of the standby that is chosen is killed while it is promoted: its PostgreSQL ends.
    FailPromotion,
    /// The postmaster is killed, and PostgreSQL can't start again in its data directory.
    FailStart,
    /// The host is cut off, both ways; its processes go on (--netns).
    Cut,
    /// Nothing that the host sends arrives (--netns).
    CutOut,
    /// Nothing arrives at the host (--netns).
    CutIn,
    /// The volume of its WAL has no room left, and WAL is written on (root).
    WalFull,
    /// The volume of its data has no room left (root).
    DataFull,
    /// No write to the disk of its PostgreSQL ends any more, and what waits for one can't be killed (root).
    FreezeDisk,
    /// The agent is killed.
    KillAgent,
    /// The manager is killed.
    KillManager,
    /// The postmaster of a standby is killed.
    KillStandby,
    /// The host of a standby loses power.
    KillStandbyHost,
    /// No fault: a planned change of primary.
    Switchover,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Fault::KillHost => "kill-host",
            Fault::KillPostgres => "kill-postgres",
            Fault::StopPostgres => "stop-postgres",
            Fault::StopTree => "stop-tree",
            Fault::CrashLoop => "crash-loop",
            Fault::StuckPromotion => "stuck-promotion",
            Fault::FailPromotion => "fail-promotion",
            Fault::FailStart => "fail-start",
            Fault::Cut => "cut",
            Fault::CutOut => "cut-out",
            Fault::CutIn => "cut-in",
            Fault::WalFull => "wal-full",
            Fault::DataFull => "data-full",
            Fault::FreezeDisk => "freeze-disk",
            Fault::KillAgent => "kill-agent",
            Fault::KillManager => "kill-manager",
            Fault::KillStandby => "kill-standby",
            Fault::KillStandbyHost => "kill-standby-host",
            Fault::Switchover => "switchover",
        })
    }
}

impl Fault {
    /// What happens, for the story.
    pub(crate) fn sentence(self, host: &str) -> String {
        match self {
            Fault::KillHost => format!("{host}, the primary's host, loses power: every process of it is killed"),
            Fault::KillPostgres => format!("the postmaster of {host}, the primary, is killed"),
            Fault::StopPostgres => format!("the postmaster of {host}, the primary, is stopped and stays so"),
            Fault::StopTree => {
                format!("every process of PostgreSQL on {host}, the primary, is stopped and stays so")
            }
            Fault::CrashLoop => {
                format!(
                    "the postmaster of {host}, the primary, is killed whenever there is one, until another is primary"
                )
            }
            Fault::StuckPromotion => {
                format!(
                    "{host}, the primary's host, loses power, and replay stands still at the standby that is chosen"
                )
            }
            Fault::FailPromotion => {
                format!(
                    "{host}, the primary's host, loses power, and PostgreSQL of the standby that is chosen ends while it is promoted"
                )
            }
            Fault::FailStart => {
                format!("the postmaster of {host}, the primary, is killed, and can't be started again")
            }
            Fault::Cut => format!("{host}, the primary's host, is cut off; its processes go on"),
            Fault::CutOut => format!("nothing that {host}, the primary's host, sends arrives any more"),
            Fault::CutIn => format!("nothing arrives at {host}, the primary's host, any more"),
            Fault::WalFull => format!("the volume of WAL of {host}, the primary, has no room left"),
            Fault::DataFull => format!("the volume of data of {host}, the primary, has no room left"),
            Fault::FreezeDisk => format!("the disk of {host}, the primary, finishes no write any more"),
            Fault::KillAgent => format!("the agent of {host}, the primary's host, is killed"),
            Fault::KillManager => format!("the manager of {host}, the primary's host, is killed"),
            Fault::KillStandby => format!("the postmaster of {host}, a standby, is killed"),
            Fault::KillStandbyHost => {
                format!("{host}, the host of a standby, loses power: every process of it is killed")
            }
            Fault::Switchover => format!("switchover away from {host}"),
        }
    }

    /// The server that is primary must end or be demoted: only another one, or the
    /// same after a new start, can be the recovery.
    pub(crate) fn ends_the_server(self) -> bool {
        !matches!(self, Fault::KillAgent | Fault::KillManager | Fault::KillStandby | Fault::KillStandbyHost)
    }

    /// Whom it befalls.
    pub(crate) fn host(self, status: &StatusReply) -> String {
        let standby = || status.members.iter().map(|m| &m.member).find(|member| **member != status.primary);
        match self {
            Fault::KillStandby | Fault::KillStandbyHost => standby().unwrap_or(&status.primary).clone(),
            _ => status.primary.clone(),
        }
    }

    /// It cuts a host off that goes on running.
    pub(crate) fn needs_network(self) -> bool {
        matches!(self, Fault::Cut | Fault::CutOut | Fault::CutIn)
    }

    /// It fills or stops a disk, which no other host may share.
    pub(crate) fn needs_disks(self) -> Option<Disks> {
        match self {
            Fault::WalFull | Fault::DataFull => Some(Disks::Memory),
            Fault::FreezeDisk => Some(Disks::Image),
            Fault::KillHost
            | Fault::KillPostgres
            | Fault::StopPostgres
            | Fault::StopTree
            | Fault::CrashLoop
            | Fault::StuckPromotion
            | Fault::FailPromotion
            | Fault::FailStart
            | Fault::Cut
            | Fault::CutOut
            | Fault::CutIn
            | Fault::KillAgent
            | Fault::KillManager
            | Fault::KillStandby
            | Fault::KillStandbyHost
            | Fault::Switchover => None,
        }
    }

    /// Which lives of servers are no recovery, if `life` was the one that took
    /// writes before the fault: all that begin with this.
    pub(crate) fn no_recovery(self, life: &str) -> &str {
        match self {
            // What a server does between two crashes is no recovery.
            Fault::CrashLoop => life.split(" since ").next().unwrap_or(life),
            _ => life,
        }
    }

    /// Goes on with the fault until it is dropped.
    pub(crate) async fn go_on(self, cluster: &Cluster, watcher: &Watcher, primary: &str) -> Infallible {
        let mut chosen = None;
        loop {
            tokio::time::sleep(CRASH_PACE).await;
            match self {
                // There may be no postmaster at this moment, or a dead one's file.
                Fault::CrashLoop => drop(cluster.signal_postmaster(primary, Signal::SIGKILL)),
                Fault::StuckPromotion | Fault::FailPromotion if chosen.is_none() => {
                    chosen = watcher.status().and_then(|status| promoted(&status));
                    if let Some(chosen) = &chosen {
                        if self == Fault::FailPromotion {
                            replay(cluster, chosen, Signal::SIGKILL);
                        }
                        cluster.others_than(&[primary, chosen]).for_each(|host| replay(cluster, host, Signal::SIGCONT));
                    }
                }
                // The segment that is written has room still, and so have those that were made ahead.
                Fault::WalFull => drop(workload::switch_wal(&cluster.layout, primary).await),
                _ => {}
            }
        }
    }

    /// Does it. Returns the moment it began.
    pub(crate) async fn inject(self, cluster: &Cluster, watcher: &Watcher, before: &StatusReply) -> Result<Instant> {
        let primary = before.primary.as_str();
        match self {
            Fault::KillHost => tokio::task::block_in_place(|| cluster.kill_host(primary)),
            Fault::KillPostgres | Fault::CrashLoop => cluster.signal_postmaster(primary, Signal::SIGKILL),
            Fault::StopPostgres => cluster.signal_postmaster(primary, Signal::SIGSTOP),
            Fault::StopTree => cluster.signal_postgres(primary, Signal::SIGSTOP),
            Fault::FailStart => {
                cluster.keep_from_starting(primary)?;
                cluster.signal_postmaster(primary, Signal::SIGKILL)
            }
            Fault::StuckPromotion | Fault::FailPromotion => {
                cluster.others_than(&[primary]).for_each(|host| replay(cluster, host, Signal::SIGSTOP));
                tokio::task::block_in_place(|| cluster.kill_host(primary))
            }
            Fault::Cut => cluster.cut(primary, Cut::BothWays),
            Fault::CutOut => cluster.cut(primary, Cut::Sends),
            Fault::CutIn => cluster.cut(primary, Cut::Receives),
            Fault::WalFull => cluster.fill(primary, Disk::Wal),
            Fault::DataFull => cluster.fill(primary, Disk::Data),
            Fault::FreezeDisk => cluster.freeze(primary),
            Fault::KillAgent => cluster.kill_process(primary, Role::Agent),
            Fault::KillManager => cluster.kill_process(primary, Role::Manager),
            Fault::KillStandby => cluster.signal_postmaster(&self.host(before), Signal::SIGKILL),
            Fault::KillStandbyHost => tokio::task::block_in_place(|| cluster.kill_host(&self.host(before))),
            Fault::Switchover => {
                let began = Instant::now();
                watcher.switchover(before).await?;
                Ok(began)
            }
        }
    }

    /// Brings back what doesn't come back by itself: a host is started again, a
    /// stopped postmaster continues (if it is still the same one). Returns what was done.
    pub(crate) fn mend(self, cluster: &Cluster, host: &str, postmaster: Option<i32>) -> Result<Option<String>> {
        match self {
            Fault::KillHost | Fault::KillStandbyHost => {
                tokio::task::block_in_place(|| cluster.boot_host(host))?;
                Ok(Some(format!("{host} is started again")))
            }
            Fault::FailStart => {
                cluster.let_start(host)?;
                Ok(Some(format!("PostgreSQL of {host} can be started again")))
            }
            Fault::StuckPromotion | Fault::FailPromotion => {
                // One that nobody has chosen.
                cluster.others_than(&[host]).for_each(|host| replay(cluster, host, Signal::SIGCONT));
                Fault::KillHost.mend(cluster, host, postmaster)
            }
            Fault::StopPostgres | Fault::StopTree => {
                let same = cluster.postmaster(host).ok().filter(|pid| Some(*pid) == postmaster);
                if same.is_none() {
                    return Ok(None);
                }
                cluster.signal_postgres(host, Signal::SIGCONT)?;
                Ok(Some(format!("nobody had replaced the stopped PostgreSQL of {host}; it continues")))
            }
            Fault::Cut | Fault::CutOut | Fault::CutIn => {
                cluster.join(host)?;
                Ok(Some(format!("{host} is connected again")))
            }
            Fault::WalFull | Fault::DataFull => {
                let disk = if self == Fault::WalFull { Disk::Wal } else { Disk::Data };
                cluster.empty(host, disk)?;
                Ok(Some(format!("the volume of {disk} of {host} has room again")))
            }
            Fault::FreezeDisk => {
                cluster.thaw(host);
                Ok(Some(format!("the disk of {host} goes on")))
            }
            Fault::KillPostgres
            | Fault::CrashLoop
            | Fault::KillAgent
            | Fault::KillManager
            | Fault::KillStandby
            | Fault::Switchover => Ok(None),
        }
    }
}

/// The member that is being promoted.
fn promoted(status: &StatusReply) -> Option<String> {
    status.members.iter().find(|m| m.state == "promoting").map(|m| m.member.clone())
}

/// Sends a signal to the process that replays WAL, where one runs.
fn replay(cluster: &Cluster, host: &str, signal: Signal) {
    for pid in cluster.startup_processes(host) {
        // It may have ended in between.
        let _ = processes::signal(pid, signal);
    }
}
