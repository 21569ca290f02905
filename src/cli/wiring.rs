//! Where the command line meets the processes. One line per process.

use std::process::ExitCode;

use tokio::sync::watch;

use crate::config::Config;

/// Body of `matriarch guard`.
pub(super) fn guard() -> ExitCode {
    eprintln!("matriarch: this build has no guard");
    super::exit::USAGE.into()
}

/// Runs a manager until `shutdown` turns true.
#[allow(clippy::unused_async)]
pub(super) async fn manager(_config: Config, _shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
    anyhow::bail!("this build has no manager")
}

/// Runs an agent until `shutdown` turns true.
#[allow(clippy::unused_async)]
pub(super) async fn agent(_config: Config, _shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
    anyhow::bail!("this build has no agent")
}

/// Runs a router until `shutdown` turns true.
#[allow(clippy::unused_async)]
pub(super) async fn router(_config: Config, _shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
    anyhow::bail!("this build has no router")
}

/// The demo's own flags.
#[derive(Debug, clap::Args)]
pub(super) struct DemoArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    rest: Vec<String>,
}

/// Runs the demo.
pub(super) fn demo(_args: DemoArgs) -> ExitCode {
    eprintln!("matriarch: this build has no demo");
    super::exit::USAGE.into()
}
