//! Tracing of the processes: what is written, where to, and under which names.
//!
//! Log lines go to stderr. A message is stable text; what varies stands in fields.

pub mod events;

use std::{panic, process, str::FromStr};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{filter::Targets, fmt, prelude::*};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people and journald.
    #[default]
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

impl FromStr for Format {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("`{text}` is no log format: text or json")),
        }
    }
}

/// The environment variable that is read where `--log-level` isn't given.
pub const LEVEL_VARIABLE: &str = "MATRIARCH_LOG";

/// Exit code of a process that panicked; the same as Rust's own.
pub const PANIC_EXIT: i32 = 101;

/// Which lines are written: a level, or levels by module, as in
/// `info,matriarch::raft=debug`.
///
/// # Errors
/// When the text is neither.
pub fn levels(text: &str) -> Result<Targets, String> {
    let given: Targets = text.parse().map_err(|error| {
        format!("`{text}` is no log level ({error}); write e.g. info or info,matriarch::raft=debug")
    })?;
    let names_default = given.default_level().is_some();
    // Libraries are quiet unless they are named; their `info` says little about a cluster.
    let mut targets = if names_default { given.clone() } else { given.clone().with_default(LevelFilter::INFO) };
    for library in ["h2", "hyper", "hyper_util", "tonic", "tower", "sled"] {
        if !given.iter().any(|(target, _)| target == library) {
            targets = targets.with_target(library, LevelFilter::WARN);
        }
    }
    // openraft warns of every heartbeat that a dead peer did not answer; what matters of that is in our own log lines.
    if !given.iter().any(|(target, _)| target == "openraft") {
        targets = targets.with_target("openraft", LevelFilter::ERROR);
    }
    Ok(targets)
}

/// Starts writing log lines. Does nothing when something else already does.
pub fn start(format: Format, targets: Targets) {
    let registry = tracing_subscriber::registry();
    // Failing means that a subscriber is already there, as in a test or in the demo.
    let _ = match format {
        Format::Text => {
            registry.with(fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_filter(targets)).try_init()
        }
        Format::Json => registry
            .with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).with_filter(targets))
            .try_init(),
    };
}

/// A panic anywhere ends the process, not only its task: half a manager or
/// agent is worse than none, and its supervisor starts it again at once.
pub fn end_on_panic() {
    let default = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let message = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no text)");
        tracing::error!(event = events::PANIC, place, message, "panicked, the process ends");
        default(info);
        process::exit(PANIC_EXIT);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_for_us_and_libraries_stay_quiet_unless_named() {
        let targets = levels("info,matriarch::raft=debug").unwrap();
        assert!(targets.would_enable("matriarch::raft", &tracing::Level::DEBUG));
        assert!(!targets.would_enable("matriarch::lease", &tracing::Level::DEBUG));
        assert!(!targets.would_enable("h2::client", &tracing::Level::INFO));
        assert!(levels("debug,h2=trace").unwrap().would_enable("h2::client", &tracing::Level::TRACE));
        assert!(levels("matriarch::raft=debug").unwrap().would_enable("matriarch::lease", &tracing::Level::INFO));
        assert!(levels("matriarch=loud").is_err());
    }
}
