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
pub(super) use crate::demo::Args as DemoArgs;

/// Runs the demo.
pub(super) fn demo(args: DemoArgs) -> ExitCode {
    match crate::demo::run(args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("matriarch: demo: {error:#}");
            super::exit::FAILED.into()
        }
    }
}
