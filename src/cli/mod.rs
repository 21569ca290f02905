//! The command line: processes are started here, admin commands talk to any
//! manager through gRPC, `render` turns answers into text.

mod agenda;
mod args;
mod args_verbs;
mod client;
mod clusters;
mod dsn;
mod examples;
pub mod exit;
mod halt;
mod history;
mod import;
mod members;
mod operations;
mod output;
mod pause;
mod preflight;
mod processes;
mod profile;
mod raft;
pub mod render;
mod rto;
mod rules;
mod settings;
mod terminal;
mod tree;
mod verbs;
mod views;
mod wiring;

use std::{env, ffi::OsString, path::PathBuf, process::ExitCode, time::Duration};

use self::{
    args::{Command, ConfigCommand, ExplainArgs, RaftCommand, StatusArgs},
    args_verbs::HaltCommand,
    client::{Client, ClientError},
    exit::Exit,
    terminal::{complain, print, style},
};
use crate::config::{Config, DEFAULT_FILE, Purpose};

/// Names the configuration file where `--config` isn't given.
pub const CONFIG_VARIABLE: &str = "MATRIARCH_CONFIG";

pub use tree::command as command_tree;

/// Body of `matriarch guard`.
pub fn guard() -> ExitCode {
    wiring::guard()
}

/// Runs the command line and says how it ended.
pub fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments = match tree::parse(args) {
        Ok((arguments, format)) => {
            output::choose(format);
            arguments
        }
        Err(error) => {
            // Nothing can be done when even the usage can't be printed.
            let _ = error.print();
            return if error.use_stderr() { exit::USAGE.into() } else { exit::OK.into() };
        }
    };
    terminal::ended(ran(arguments.command))
}

fn ran(command: Command) -> ExitCode {
    match command {
        Command::Manager(args) => processes::run(processes::Process::Manager, &args),
        Command::Agent(args) => processes::run(processes::Process::Agent, &args),
        Command::Router(args) => processes::run(processes::Process::Router { inherits: args.inherit }, &args.process),
        Command::Guard => wiring::guard(),
        Command::Wal(args) => with_runtime(wiring::wal(args)),
        Command::Demo(args) => wiring::demo(args),
        Command::Status(args) if args.all => with_runtime(views::fleet::run(args.json)),
        Command::Status(args) => with_runtime(status(args)),
        Command::View(view) => views::run(view),
        Command::Profile(args) => with_runtime(profile::run(args)),
        Command::Rto(args) => with_runtime(rto::run(args)),
        Command::Explain(args) => with_runtime(explain(args)),
        Command::History(args) => with_runtime(history::history(args)),
        Command::Events(args) => with_runtime(history::events(args)),
        Command::Rules(args) => rules::run(&args).into(),
        Command::Dsn(args) => dsn::run(&args).into(),
        Command::Pause(args) => with_runtime(pause::pause(args)),
        Command::Acknowledge(args) => with_runtime(pause::acknowledge(args)),
        Command::Maintenance(args) => with_runtime(pause::maintenance(args.command)),
        Command::Restart(args) => with_runtime(operations::restart(args)),
        Command::Halt(HaltCommand::Stop(args)) => with_runtime(halt::stop(args)),
        Command::Halt(HaltCommand::Start(args)) => with_runtime(halt::start(args)),
        Command::Reinit(args) => with_runtime(verbs::reinit(args)),
        Command::Reload(args) => with_runtime(verbs::reload(args)),
        Command::RollingRestart(args) => with_runtime(agenda::rolling_restart(args)),
        Command::Operations(args) => with_runtime(agenda::operations(args.command)),
        Command::Resume(args) => with_runtime(pause::resume(args)),
        Command::Switchover(args) => with_runtime(operations::switchover(args)),
        Command::Failover(args) => with_runtime(operations::failover(args)),
        Command::Raft(args) => match args.command {
            RaftCommand::Status(args) => with_runtime(raft::status(args)),
            RaftCommand::Snapshot(args) => with_runtime(raft::snapshot(args)),
            RaftCommand::Transfer { member, client } => with_runtime(operations::transfer_leader(member, client)),
        },
        Command::Member(args) => with_runtime(members::member(args.command)),
        Command::Recover(args) => with_runtime(members::recover(args)),
        Command::Preflight(args) => preflight::run(config_file(args.config), args.json).into(),
        Command::Import(args) => import::run(&args).into(),
        Command::Config(args) => match args.command {
            ConfigCommand::Check { config } => check_config(config_file(config)).into(),
            ConfigCommand::Show(args) => with_runtime(settings::show(args)),
            ConfigCommand::Set(args) => with_runtime(settings::set(args)),
            ConfigCommand::Diff(args) => with_runtime(settings::diff(args)),
            ConfigCommand::History(args) => with_runtime(settings::history(args)),
            ConfigCommand::Rollback(args) => with_runtime(settings::rollback(args)),
            ConfigCommand::Explain(args) => with_runtime(settings::explain(args)),
            ConfigCommand::Edit(args) => with_runtime(settings::edit(args)),
        },
    }
}

fn config_file(given: Option<PathBuf>) -> PathBuf {
    given
        .or_else(|| env::var_os(CONFIG_VARIABLE).filter(|v| !v.is_empty()).map(PathBuf::from))
        .unwrap_or_else(|| PathBuf::from(DEFAULT_FILE))
}

fn with_runtime(command: impl Future<Output = Exit>) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(command).into(),
        Err(error) => complain(&format!("can't start: {error}"), exit::FAILED).into(),
    }
}

fn complain_client(error: &ClientError) -> Exit {
    let exit = match error {
        ClientError::Usage(_) | ClientError::Config(_) => exit::USAGE,
        ClientError::NobodyReached { .. } => exit::UNREACHABLE,
        ClientError::Refused { .. } => exit::FAILED,
    };
    complain(&error.to_string(), exit)
}

fn check_config(file: PathBuf) -> Exit {
    match Config::load_for(&file, Purpose::Host) {
        Ok(config) => {
            print(&render::config_summary(&config));
            exit::OK
        }
        Err(error) => complain(&error.to_string(), exit::USAGE),
    }
}

async fn status(args: StatusArgs) -> Exit {
    let client = match Client::new(&args.client) {
        Ok(client) => client,
        Err(error) => return complain_client(&error),
    };
    loop {
        let answer = client.status(args.local).await;
        if args.watch {
            let clear = terminal::clear();
            let read = match &answer {
                Ok(reply) => print(&format!("{clear}{}\n", render::status(reply, style()))),
                Err(error) => print(&format!("{clear}{error}\n")),
            };
            if !read {
                return exit::OK;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        }
        return match answer {
            Ok(reply) => {
                print(&if args.json { render::status_json(&reply) } else { render::status(&reply, style()) });
                if render::is_healthy(&reply) { exit::OK } else { exit::DEGRADED }
            }
            Err(error) => complain_client(&error),
        };
    }
}

async fn explain(args: ExplainArgs) -> Exit {
    if let Some(revision) = args.incident {
        return history::incident(&args, revision).await;
    }
    let answer = match Client::new(&args.client) {
        Ok(client) => client.explain().await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(reply) => {
            print(&if args.json { render::explain_json(&reply) } else { render::explain(&reply) });
            exit::OK
        }
        Err(error) => complain_client(&error),
    }
}
