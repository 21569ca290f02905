//! What an exit code means. Scripts rely on them; `--help` lists them.

use std::process::ExitCode;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit(pub u8);

/// Done; for `status`: healthy.
pub const OK: Exit = Exit(0);
/// Failed or refused; the reason was printed.
pub const FAILED: Exit = Exit(1);
/// Wrong usage or configuration; nothing was changed.
pub const USAGE: Exit = Exit(2);
/// No manager answered.
pub const UNREACHABLE: Exit = Exit(3);
/// `status` and `matrix` only: the cluster answers and is not healthy, or somebody is not reached.
pub const DEGRADED: Exit = Exit(4);

/// The list for `--help`.
pub const HELP: &str = "\
Exit codes:
  0  done; status: every member is healthy and the primary is open
  1  failed or refused; the reason was printed
  2  wrong usage or configuration; nothing was changed
  3  no manager could be reached
  4  status: the cluster answers and is degraded; matrix: somebody is not reached";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.0)
    }
}
