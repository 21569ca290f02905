//! What reinit and reload are told on the command line.

use clap::Args;

use super::{
    args::{ClientArgs, OperationArgs},
    exit,
};

const REINIT_EXAMPLES: &str = "\
Examples:
  matriarch reinit n3                    copy n3 anew, from a standby if one is fit
  matriarch reinit n3 --from n1 --yes    from n1, without being asked
  matriarch maintenance on n3            give a copy up that is under way";

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
            ["reinit", "switchover"].map(|kind| line.reinit.operation.patience(kind))
        };
        assert_eq!(patience(&[]), [Duration::MAX, Duration::from_secs(180)]);
        assert_eq!(patience(&["--timeout", "5"]), [Duration::from_secs(5); 2]);
    }
}
