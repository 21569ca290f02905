//! Arguments of the commands that only look.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::ClientArgs;

#[derive(Debug, Subcommand)]
pub enum ViewCommand {
    /// Show who follows whom, as a tree
    Topology(ShowArgs),
    /// Show members, lag, WAL rate, operations and events on the whole screen; q ends it
    Top(TopArgs),
    /// Check one thing for monitoring or a script; exits 0, 1, 2 or 3 as monitoring plugins do
    Check(CheckArgs),
    /// Show who reaches whom: managers, agents, PostgreSQL, Raft, the lease
    Matrix(ShowArgs),
    /// Pack what whoever helps needs to know into one file, without secrets
    SupportBundle(BundleArgs),
    /// Print the completion of commands and flags for a shell
    Completion(CompletionArgs),
    /// Print the man page, or write that of each command into a directory
    Man(ManArgs),
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct TopArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// How often to look, in seconds, from 1 to 60
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub interval: u64,
}

/// What `matriarch check` looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Subject {
    /// A majority of the voters answers, and still does when one more host is lost
    Quorum,
    /// There is one open primary; with --member and --role: that member has that role
    Role,
    /// How far standbys are behind
    Lag,
    /// What replication slots hold back
    Slots,
    /// What is written gets into the archive
    Archive,
    /// The primary holds its lease
    Lease,
    /// Free space for data and WAL
    Disk,
    /// Enough standbys confirm commits, and still do when one more is lost
    Sync,
    /// All of these
    All,
}

/// A role to ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    Primary,
    Standby,
}

/// Instead of the exit codes of other commands.
const CHECK_HELP: &str = "\
Without limits it warns at, and is critical from: lag 16 MB and 1 GB; slots 80 and 95 percent of
what they may hold back; archive at once and 300 s; disk what the cluster itself goes by. Quorum and
sync warn when one more host would be too much.

Exit codes:
  0  OK
  1  WARNING
  2  CRITICAL, or wrong usage: that is said on stderr
  3  UNKNOWN; also when no manager could be reached";

#[derive(Debug, Args)]
#[command(after_help = CHECK_HELP)]
pub struct CheckArgs {
    /// What to look at
    #[arg(value_name = "WHAT", default_value = "all", hide_possible_values = false)]
    pub what: Subject,
    #[command(flatten)]
    pub client: ClientArgs,
    /// Only of this member (role, lag, slots, archive, disk; of all: these)
    #[arg(long, value_name = "MEMBER")]
    pub member: Option<String>,
    /// The role that the member is to have (check role)
    #[arg(long, value_name = "ROLE", requires = "member")]
    pub role: Option<Role>,
    /// From where on it warns: lag and slots in bytes (16MB) or, lag only, seconds (30s); archive in seconds; disk in percent
    #[arg(long, value_name = "LIMIT")]
    pub warning: Option<String>,
    /// From where on it is critical; in the same units
    #[arg(long, value_name = "LIMIT")]
    pub critical: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct BundleArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// The file to write [default: matriarch-CLUSTER-TIME.tar.gz here]
    #[arg(long, short, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// A log file, the end of which goes in; may be given several times
    #[arg(long = "log", value_name = "FILE")]
    pub logs: Vec<PathBuf>,
    /// So many lines of each log at most, from 0 to 100000
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub lines: u32,
}

/// A shell whose completion is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// Which shell
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write matriarch.1 and one page for each command into this directory, which is made
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}
