//! Starts a process: log lines, configuration, runtime, signals.

use std::{env, ffi::CString, fmt, os::unix::ffi::OsStringExt as _, process::ExitCode, time::Duration};

use nix::unistd::geteuid;
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

use super::{args::ProcessArgs, complain, config_file, exit, wiring};
use crate::{
    config::{Config, ConfigError, Purpose},
    telemetry::{self, LEVEL_VARIABLE, events},
};

/// Which process this one becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Process {
    Manager,
    Agent,
    Router {
        /// It takes the ports of the one that starts it.
        inherits: bool,
    },
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Manager => "manager",
            Self::Agent => "agent",
            Self::Router { .. } => "router",
        })
    }
}

/// Tasks get this long to end after the process's own future has.
const LAST_TASKS: Duration = Duration::from_millis(500);

/// Nanoseconds that timers of a manager and a router may be late (prctl(2), PR_SET_TIMERSLACK), so that one wake-up
/// serves several of them: most of what they cost while idle is waking up. Election times are 300 ms and more; the
/// thread that promises leases has exact timers.
const TIMER_SLACK: u64 = 15_000_000;

/// Runs it until it is told to end or can't go on.
pub(super) fn run(process: Process, args: &ProcessArgs) -> ExitCode {
    if process == Process::Agent && geteuid().is_root() {
        let what = "the agent refuses to run as root, because PostgreSQL does; run it as the user that owns the data \
                    directory, e.g. `setpriv --reuid=postgres --regid=postgres --init-groups matriarch agent …`, or \
                    with deploy/systemd/matriarch-agent.service";
        return complain(what, exit::USAGE).into();
    }
    let levels = args.log_level.clone().or_else(|| env::var(LEVEL_VARIABLE).ok()).unwrap_or_else(|| "info".to_owned());
    match telemetry::levels(&levels) {
        Ok(targets) => telemetry::start(args.log, targets),
        Err(problem) => return complain(&problem, exit::USAGE).into(),
    }
    telemetry::end_on_panic();
    let purpose = match process {
        Process::Manager => Purpose::Manager,
        Process::Agent => Purpose::Agent,
        Process::Router { .. } => Purpose::Router,
    };
    let config = match Config::load_for(&config_file(args.config.clone()), purpose) {
        Ok(config) => config,
        Err(error) => return complain(&error.to_string(), exit::USAGE).into(),
    };
    if matches!(process, Process::Manager | Process::Router { .. }) {
        // Best effort: without it they wake more often.
        let _ = nix::sys::prctl::set_timerslack(TIMER_SLACK);
    }
    match runtime() {
        Ok(runtime) => serve(process, config, runtime),
        Err(error) => complain(&format!("the {process} can't start: {error}"), exit::FAILED).into(),
    }
}

/// One thread is enough for every process, and costs least: what waits for a
/// disk or must not wait for anybody (the log's fsync, both sides of the lease)
/// has threads of its own.
fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

fn serve(process: Process, config: Config, runtime: Runtime) -> ExitCode {
    let result = runtime.block_on(async {
        let shutdown = on_signals()?;
        let version = env!("CARGO_PKG_VERSION");
        tracing::info!(event = events::STARTED, %process, version, config = %config.file.display(), "started");
        match process {
            Process::Manager => Box::pin(wiring::manager(config, shutdown)).await,
            Process::Agent => wiring::agent(config, shutdown).await.map(|()| false),
            Process::Router { inherits } => wiring::router(config, inherits, shutdown).await.map(|()| false),
        }
    });
    runtime.shutdown_timeout(LAST_TASKS);
    match result {
        Ok(false) => exit::OK.into(),
        Ok(true) => again(),
        // Found before anything was changed, and shown like what is found in the file itself.
        Err(error) if error.is::<ConfigError>() => complain(&error.to_string(), exit::USAGE).into(),
        Err(error) => {
            let chain = format!("{error:#}");
            tracing::error!(event = events::FAILED, %process, error = chain, "can't go on");
            complain(&format!("the {process} can't go on: {chain}"), exit::FAILED).into()
        }
    }
}

/// Runs this very command again in this very process: what ran in it before is gone, its pid stays.
fn again() -> ExitCode {
    let text = |arg: std::ffi::OsString| CString::new(arg.into_vec());
    let args: Result<Vec<CString>, _> = env::args_os().map(text).collect();
    let program = env::current_exe().map(|exe| text(exe.into_os_string()));
    let why = match (program, args) {
        (Ok(Ok(program)), Ok(args)) => {
            nix::unistd::execv(&program, &args).map_or_else(|e| e.to_string(), |never| match never {})
        }
        (Err(error), _) => error.to_string(),
        (Ok(Err(error)), _) | (_, Err(error)) => error.to_string(),
    };
    // Whoever supervises this process starts it again.
    complain(&format!("can't start over: {why}"), exit::FAILED).into()
}

/// Turns true at the first SIGTERM or SIGINT. The second one ends the process at once.
fn on_signals() -> std::io::Result<watch::Receiver<bool>> {
    let (told, shutdown) = watch::channel(false);
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        let name = first(&mut term, &mut int).await;
        tracing::info!(event = events::STOPPING, signal = name, "asked to end");
        // Nobody listening means that the process is ending already.
        let _ = told.send(true);
        first(&mut term, &mut int).await;
        std::process::exit(exit::FAILED.0.into());
    });
    Ok(shutdown)
}

async fn first(term: &mut Signal, int: &mut Signal) -> &'static str {
    tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = int.recv() => "SIGINT",
    }
}
