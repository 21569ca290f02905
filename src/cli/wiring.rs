//! Where the command line meets the processes. One line per process.

use std::process::ExitCode;

use tokio::sync::watch;

use crate::config::Config;

/// Body of `matriarch guard`.
pub(super) fn guard() -> ExitCode {
    crate::guard::run(std::env::args_os().skip(2))
}

/// Body of `matriarch wal`. PostgreSQL writes what it says into its log.
pub(super) async fn wal(args: super::args::WalArgs) -> super::exit::Exit {
    let super::args::WalArgs { verb, runtime_dir, file, path, oldest } = args;
    let call = crate::postgres::WalCall { runtime_dir, file, path, oldest };
    let done = if verb == "put" { call.put().await } else { call.get().await };
    match done {
        Ok(()) => super::exit::OK,
        // That a file isn't there PostgreSQL asks all the time.
        Err(_) if verb == "get" => super::exit::FAILED,
        Err(why) => super::complain(&why, super::exit::FAILED),
    }
}

/// Runs a manager until `shutdown` turns true. Gives whether this process has to start itself again.
pub(super) async fn manager(config: Config, shutdown: watch::Receiver<bool>) -> anyhow::Result<bool> {
    let rest = crate::rest::Rest::bind(&config)?;
    // It answers for as long as the manager runs.
    let mut answering = None;
    let admin = |manager: crate::manager::ManagerHandle| {
        let started = rest.map(|rest| rest.start(manager.clone(), crate::admin::AdminService::new(manager.clone())));
        answering = started.transpose().unwrap_or_else(|error| {
            tracing::error!(%error, "the API can't be started, the manager runs without it");
            None
        });
        crate::admin::AdminService::new(manager)
    };
    let ending = crate::manager::run(config, shutdown, admin).await?;
    Ok(match ending {
        crate::manager::Ending::Stopped => false,
        crate::manager::Ending::StartOver(why) => {
            tracing::info!(why, "the manager starts over");
            true
        }
    })
}

/// Runs an agent until `shutdown` turns true.
pub(super) async fn agent(config: Config, shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
    crate::agent::run(config, shutdown).await
}

/// Runs a router until `shutdown` turns true.
pub(super) async fn router(config: Config, inherits: bool, shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
    crate::routing::run(config, inherits, shutdown).await
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
