//! What restart, reinit and reload are told on the command line.

use clap::Args;

use super::{
    agenda::LaterArgs,
    args::{ClientArgs, OperationArgs},
    exit,
};

const REINIT_EXAMPLES: &str = "\
Examples:
  matriarch reinit n3                    copy n3 anew, from a standby if one is fit
  matriarch reinit n3 --from n1 --yes    from n1, without being asked
  matriarch maintenance on n3            give a copy up that is under way";

#[derive(Debug, Args)]
#[command(after_help = exit::HELP)]
pub struct RestartArgs {
    /// Whose PostgreSQL
    #[arg(value_name = "MEMBER")]
    pub member: String,
    /// Though settings that wait for it need another member restarted first
    #[arg(long, conflicts_with = "scheduled")]
    pub force: bool,
    #[command(flatten)]
    pub client: ClientArgs,
    #[command(flatten)]
    pub later: LaterArgs,
    #[command(flatten)]
    pub operation: OperationArgs,
}

#[derive(Debug, Args)]
#[command(after_help = with_examples(REINIT_EXAMPLES))]
pub struct ReinitArgs {
    /// Whose data; not the primary
    #[arg(value_name = "MEMBER")]
    pub member: String,
    #[command(flatten)]
    pub client: ClientArgs,
    /// Whom to copy, by pg_basebackup [default: as clone_methods says, a standby if one is fit]
    #[arg(long, value_name = "MEMBER")]
    pub from: Option<String>,
    /// Though commits wait for this member until the copy streams; nothing is lost by that
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub operation: OperationArgs,
}

#[derive(Debug, Args)]
#[command(after_help = with_examples(RELOAD_EXAMPLES))]
pub struct ReloadArgs {
    /// Of these members
    #[arg(value_name = "MEMBER", required_unless_present = "all", conflicts_with = "all")]
    pub members: Vec<String>,
    /// Of all members
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub client: ClientArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

const RELOAD_EXAMPLES: &str = "\
Examples:
  matriarch reload n2 n3
  matriarch reload --all --json";

/// Examples, and what exit codes mean.
fn with_examples(examples: &str) -> String {
    format!("{examples}\n\n{}", exit::HELP)
}
