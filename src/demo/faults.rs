//! The faults a demo can inject, and what mends them.

use std::{fmt, time::Instant};

use anyhow::Result;
use clap::ValueEnum;
use nix::sys::signal::Signal;

use super::{cluster::Cluster, supervisor::Role, watcher::Watcher};
use crate::rpc::v1::StatusReply;

/// A fault, always of the primary's host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// The host loses power: link cut, manager, agent, guard, router and PostgreSQL killed at once.
    KillHost,
    /// The postmaster is killed.
    KillPostgres,
    /// The postmaster is stopped (SIGSTOP) and stays so: sessions go on, nobody new gets in.
    StopPostgres,
    /// The agent is killed.
    KillAgent,
    /// The manager is killed.
    KillManager,
    /// No fault: a planned change of primary.
    Switchover,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Fault::KillHost => "kill-host",
            Fault::KillPostgres => "kill-postgres",
            Fault::StopPostgres => "stop-postgres",
            Fault::KillAgent => "kill-agent",
            Fault::KillManager => "kill-manager",
            Fault::Switchover => "switchover",
        })
    }
}

impl Fault {
    /// What happens, for the story.
    pub(crate) fn sentence(self, primary: &str) -> String {
        match self {
            Fault::KillHost => format!("{primary}, the primary's host, loses power: every process of it is killed"),
            Fault::KillPostgres => format!("the postmaster of {primary}, the primary, is killed"),
            Fault::StopPostgres => format!("the postmaster of {primary}, the primary, is stopped and stays so"),
            Fault::KillAgent => format!("the agent of {primary}, the primary's host, is killed"),
            Fault::KillManager => format!("the manager of {primary}, the primary's host, is killed"),
            Fault::Switchover => format!("switchover away from {primary}"),
        }
    }

    /// The server that is primary must end or be demoted: only another one, or the
    /// same after a new start, can be the recovery.
    pub(crate) fn ends_the_server(self) -> bool {
        matches!(self, Fault::KillHost | Fault::KillPostgres | Fault::StopPostgres | Fault::Switchover)
    }

    /// Does it. Returns the moment it began.
    pub(crate) async fn inject(self, cluster: &Cluster, watcher: &Watcher, before: &StatusReply) -> Result<Instant> {
        let primary = before.primary.as_str();
        match self {
            Fault::KillHost => tokio::task::block_in_place(|| cluster.kill_host(primary)),
            Fault::KillPostgres => cluster.signal_postmaster(primary, Signal::SIGKILL),
            Fault::StopPostgres => cluster.signal_postmaster(primary, Signal::SIGSTOP),
            Fault::KillAgent => cluster.kill_process(primary, Role::Agent),
            Fault::KillManager => cluster.kill_process(primary, Role::Manager),
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
            Fault::KillHost => {
                tokio::task::block_in_place(|| cluster.boot_host(host))?;
                Ok(Some(format!("{host} is started again")))
            }
            Fault::StopPostgres => {
                let same = cluster.postmaster(host).ok().filter(|pid| Some(*pid) == postmaster);
                let Some(pid) = same else { return Ok(None) };
                super::processes::signal(pid, Signal::SIGCONT)?;
                Ok(Some(format!("nobody had replaced the stopped postmaster of {host}; it continues")))
            }
            Fault::KillPostgres | Fault::KillAgent | Fault::KillManager | Fault::Switchover => Ok(None),
        }
    }
}
