//! `matriarch`: one binary for every process and every admin command.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The guard is the parent of a postmaster: it must come up without an
    // argument parser, a configuration file or a runtime.
    if std::env::args_os().nth(1).is_some_and(|first| first == "guard") {
        return matriarch::cli::guard();
    }
    matriarch::cli::run(std::env::args_os())
}
