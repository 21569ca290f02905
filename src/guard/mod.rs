//! The guard: parent of the postmaster and keeper of one deadline.
//!
//! ```text
//!  agent ── GuardHandle ──▶ guard.sock ◀── DeadlineLink ── lease holder thread
//!                               │
//!                             guard (one thread, subreaper) ── postmaster ── backends
//!                               └─ a thread that only a fence wakes ── rtnetlink
//! ```
//!
//! The agent may be killed and replaced at any time: the guard keeps PostgreSQL running
//! until the deadline of the last renewal, and not longer. At the deadline, or when told
//! to fence, it kills the whole process tree, by [`cgroup`] or by [`tree`]; nothing below
//! it can escape, because every orphan becomes its child. When the guard itself dies, the
//! kernel sends SIGQUIT to the postmaster, and the agent's [`sentry`] kills the tree. The
//! sentry does the same at the deadline, whether the guard answers or not: it covers a
//! guard that is frozen. A newer program takes a guard over by exec ([`handover`]). The virtual addresses that lead to what
//! was fenced go after the first strike ([`addresses`]).
//!
//! A PostgreSQL that ran before there was a guard can be [`taken_over`]: everything holds but that the kernel ends
//! it when the guard dies; then it is the sentry's alone.
//!
//! What nobody here can do: fence while agent and guard are frozen or the machine is. Any
//! process of the same user, and so any database superuser, can stop both.
//!
//! Read [`process`] for the guard, [`link`] for the agent's side, [`deadline`] for the rules.

mod addresses;
mod cgroup;
pub mod deadline;
mod handover;
mod link;
mod means;
mod measure;
mod options;
mod process;
mod record;
mod sentry;
pub mod sys;
mod taken_over;
mod tree;
mod wire;

use std::{ffi::OsString, path::PathBuf};

pub use addresses::Addresses;
pub use cgroup::own_cgroup;
pub use deadline::Refusal;
pub use link::{
    DeadlineLink, GuardError, GuardHandle, SpawnOptions, adopt, let_go, put_down, spawn, spawn_armed, take_over,
};
pub use means::{FileId, GroupUse, Means, Method, Shield, Shields, WhyWalk};
pub use measure::{Measured, measure_kill};
pub use process::run;
pub use sentry::Kill;
pub use tree::{KillTreeError, ProcessIdentity, boot_id, clocks_name, kill_tree_of_foreign_postmaster, kill_unguarded};

use crate::domain::{Epoch, moment::TwoClocks};

/// Its name in the runtime directory; agent and guard meet there.
const SOCKET_FILE: &str = "guard.sock";
/// Locked by a guard as long as it lives: one guard for each runtime directory.
const LOCK_FILE: &str = "guard.lock";
/// A link to the program that a guard is asked to execute.
const NEXT_FILE: &str = "guard.next";
/// The live sync names; without them no standby acknowledges anything for this primary.
const LIVE_FILE: &str = "live.conf";

/// The program to guard.
#[derive(Debug, Clone)]
pub struct GuardedCommand {
    pub program: PathBuf,
    pub args: Vec<OsString>,
    /// Added to the environment of the agent.
    pub env: Vec<(OsString, OsString)>,
    /// Gets stdout and stderr of the program, and the few words of the guard.
    pub log_file: PathBuf,
}

/// What may be asked of a postmaster besides its death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PostmasterSignal {
    /// SIGINT: end sessions, checkpoint, exit. Never on the fence path.
    Fast,
    /// SIGQUIT: exit without a checkpoint. No fence either: wait for `tree_empty`.
    Immediate,
    /// SIGHUP: read the configuration again.
    Reload,
}

impl PostmasterSignal {
    fn number(self) -> nix::sys::signal::Signal {
        use nix::sys::signal::Signal;
        match self {
            PostmasterSignal::Fast => Signal::SIGINT,
            PostmasterSignal::Immediate => Signal::SIGQUIT,
            PostmasterSignal::Reload => Signal::SIGHUP,
        }
    }
}

/// How the postmaster ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitKind {
    /// Exited with this code; 0 is a clean shutdown.
    Code(i32),
    /// Killed by this signal number.
    Signal(i32),
}

/// How a postmaster ended that is not the guard's child: only a parent is told.
pub const UNTOLD: ExitKind = ExitKind::Code(i32::MIN);

/// The postmaster as its parent sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Postmaster {
    Running {
        pid: u32,
    },
    Gone {
        status: ExitKind,
        /// No process of its tree is left: proven by `waitpid`, not assumed.
        tree_empty: bool,
        /// The guard killed it, at the deadline or on request.
        fenced: bool,
    },
}

impl Postmaster {
    /// Ended, with every process below it.
    pub fn is_clear(&self) -> bool {
        matches!(self, Postmaster::Gone { tree_empty: true, .. })
    }
}

/// The guard as its agent sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardState {
    pub guard_pid: u32,
    pub postmaster: Postmaster,
    /// The highest epoch the guard has seen.
    pub epoch: Epoch,
    /// The deadline at the last push. A renewal that only moves it forward isn't pushed.
    pub deadline: Option<TwoClocks>,
    /// How it kills, and what protects it.
    pub means: Means,
    /// Spawned by an earlier run of the agent.
    pub adopted: bool,
    /// False once the guard process has ended. If the postmaster was still running, the
    /// kernel sent it SIGQUIT; clear its tree with [`kill_unguarded`].
    pub alive: bool,
}
