//! What is printed for people and programs, and what becomes of it when it can't be. Names and words that come from elsewhere
//! must not steer a terminal: all control characters but those of our own colours are replaced on the way.

use std::{
    env,
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
    sync::OnceLock,
};

use super::{
    exit::{self, Exit},
    render::{self, Style},
};

/// Clears the screen and goes to its top, as watch(1) does.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// All that we send to a terminal beside text.
const OWN: [&str; 6] = [CLEAR, "\x1b[0m", "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[33m"];

/// Why something could not be printed, the first time.
static UNPRINTED: OnceLock<io::Error> = OnceLock::new();

/// Prints to stdout. `false`: nobody can read it, so that whoever would go on printing ends; [`ended`] says why.
pub(super) fn print(text: &str) -> bool {
    let text = shown(text, io::stdout().is_terminal());
    match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
        Ok(()) => true,
        Err(error) => {
            // The first reason counts.
            let _ = UNPRINTED.set(error);
            false
        }
    }
}

/// How a command ends whose output could not be written: a closed pipe (`| head`) is no error of ours, a full disk is one.
pub(super) fn ended(code: ExitCode) -> ExitCode {
    match UNPRINTED.get() {
        Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let what = format!(
                "can't write to the standard output ({error}): what the command had to say is lost; `matriarch status` says what is"
            );
            complain(&what, exit::FAILED).into()
        }
        _ => code,
    }
}

/// One line on stderr, and the exit code that goes with it.
pub(super) fn complain(what: &str, exit: Exit) -> Exit {
    // Nobody is left to be told when this fails.
    let _ = writeln!(io::stderr(), "matriarch: {}", render::plain(what));
    exit
}

/// Colours only for people, and only when they didn't ask to go without.
pub(super) fn style() -> Style {
    let unwanted = env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    let dumb = env::var_os("TERM").is_some_and(|t| t == "dumb");
    if io::stdout().is_terminal() && !unwanted && !dumb { Style::Colour } else { Style::Plain }
}

/// What stands before each look of `--watch`.
pub(super) fn clear() -> &'static str {
    if io::stdout().is_terminal() { CLEAR } else { "" }
}

/// The text as it goes out; our own colours are for a terminal only.
fn shown(text: &str, terminal: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\x1b') {
        out.push_str(&render::plain(&rest[..at]));
        let own = OWN.into_iter().find(|own| terminal && rest[at..].starts_with(own));
        out.push_str(own.unwrap_or("\u{fffd}"));
        rest = &rest[at + own.map_or(1, str::len)..];
    }
    out + &render::plain(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_colours_reach_a_terminal() {
        let text = "\x1b[32mn1\x1b[0m \x1b]0;title\x07 \x1b[5m\ta\r\n";
        let clean = "\u{fffd}]0;title\u{fffd} \u{fffd}[5m\ta\u{fffd}\n";
        assert_eq!(shown(text, true), format!("\x1b[32mn1\x1b[0m {clean}"));
        assert_eq!(shown(text, false), format!("\u{fffd}[32mn1\u{fffd}[0m {clean}"));
    }
}
