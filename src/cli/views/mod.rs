//! Commands that only look: nothing here changes a cluster.

mod bundle;
mod check;
pub(super) mod fleet;
mod matrix;
mod redact;
mod shell;
mod top;
mod topology;

use std::process::ExitCode;

use super::{
    args::{ClientArgs, views::ViewCommand},
    client::{Client, ClientError},
    with_runtime,
};

/// Runs one of them.
pub(super) fn run(command: ViewCommand) -> ExitCode {
    match command {
        ViewCommand::Topology(args) => with_runtime(topology::run(args)),
        ViewCommand::Top(args) => with_runtime(top::run(args)),
        ViewCommand::Check(args) => with_runtime(check::run(args)),
        ViewCommand::Matrix(args) => with_runtime(matrix::run(args)),
        ViewCommand::SupportBundle(args) => with_runtime(bundle::run(args)),
        ViewCommand::Completion(args) => shell::completion(args.shell).into(),
        ViewCommand::Man(args) => shell::man(args.dir.as_deref()).into(),
    }
}

/// The client of these arguments, and the status that everything else is drawn from.
async fn status_of(args: &ClientArgs) -> Result<(Client, crate::rpc::v1::StatusReply), ClientError> {
    let client = Client::new(args)?;
    let status = client.status(false).await?;
    Ok((client, status))
}

/// What is not empty.
fn known(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}
