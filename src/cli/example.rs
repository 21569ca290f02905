//! What stands below the options in `--help`.

use super::exit;

/// Examples, one a line, and the exit codes.
pub(super) fn help(examples: &[&str]) -> String {
    let lines: String = examples.iter().map(|line| format!("  {line}\n")).collect();
    format!("Examples:\n{lines}\n{}", exit::HELP)
}
