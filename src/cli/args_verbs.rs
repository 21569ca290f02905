//! What restart, reinit, reload and `member add` are told on the command line.

use clap::{Args, Subcommand};

use super::{
    agenda::LaterArgs,
    args::{ClientArgs, OperationArgs},
};

#[derive(Debug, Args)]
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
#[command(override_usage = "matriarch reload [OPTIONS] <MEMBER...|--all>")]
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

#[derive(Debug, Subcommand)]
pub enum HaltCommand {
    /// Stop PostgreSQL of a standby, or of the whole cluster, until it is started by command
    Stop(StopArgs),
    /// Start PostgreSQL of what was stopped by command
    Start(StartArgs),
}

#[derive(Debug, Args)]
#[command(override_usage = "matriarch stop [OPTIONS] <MEMBER|--all>")]
pub struct StopArgs {
    /// Whose; not the primary
    #[arg(value_name = "MEMBER", required_unless_present = "all", conflicts_with = "all")]
    pub member: Option<String>,
    /// The whole cluster: writes are held, the primary stops with its WAL received, then everybody
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub client: ClientArgs,
    /// Why, for everybody who looks at the cluster meanwhile
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reason: String,
    /// Though every commit waits for it meanwhile; of the whole cluster: though no standby has all WAL
    #[arg(long)]
    pub force: bool,
    /// Check all that a real one would, say what it would do, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub operation: OperationArgs,
}

#[derive(Debug, Args)]
#[command(override_usage = "matriarch start [OPTIONS] <MEMBER|--all>")]
pub struct StartArgs {
    /// Whose
    #[arg(value_name = "MEMBER", required_unless_present = "all", conflicts_with = "all")]
    pub member: Option<String>,
    /// The whole cluster: whoever was primary is it again
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub client: ClientArgs,
    /// Check all that a real one would, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub operation: OperationArgs,
}

#[derive(Debug, Args)]
pub struct AddMemberArgs {
    /// Its name in cluster.members
    #[arg(value_name = "MEMBER")]
    pub member: String,
    /// It is to be a witness, and is refused unless the file says so (witness = true)
    #[arg(long)]
    pub witness: bool,
    /// It is to be a learner, and is refused unless the file says so (learner = true)
    #[arg(long, conflicts_with = "witness")]
    pub learner: bool,
    #[command(flatten)]
    pub client: ClientArgs,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        reinit: super::ReinitArgs,
    }

    #[test]
    fn a_copy_is_waited_for_until_it_is_over_unless_somebody_says_how_long() {
        let patience = |words: &[&str]| {
            let line = Line::parse_from([&["reinit", "n3"], words].concat());
            ["reinit", "rolling restart", "switchover"].map(|kind| line.reinit.operation.patience(kind))
        };
        assert_eq!(patience(&[]), [Duration::MAX, Duration::MAX, Duration::from_secs(180)]);
        assert_eq!(patience(&["--timeout", "5"]), [Duration::from_secs(5); 3]);
    }
}
