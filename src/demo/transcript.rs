//! What happened, line by line: kept for the live view, printed when standard
//! output is no terminal.

use std::{
    io::Write as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// One line of the story.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// Since the demo began.
    pub(crate) at: Duration,
    /// One sentence.
    pub(crate) text: String,
}

/// Where every part of the demo says what it does. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Story {
    began: Instant,
    prints: Arc<AtomicBool>,
    lines: Arc<Mutex<Vec<Line>>>,
}

impl Story {
    /// `prints` is false while a live view owns the terminal.
    pub(crate) fn new(prints: bool) -> Story {
        Story { began: Instant::now(), prints: Arc::new(prints.into()), lines: Arc::default() }
    }

    /// Adds a line.
    pub(crate) fn say(&self, text: impl Into<String>) {
        let line = Line { at: self.began.elapsed(), text: text.into() };
        if self.prints() {
            // A closed pipe (`matriarch demo | head`) must not stop the clean-up.
            let _ = writeln!(std::io::stdout().lock(), "{}", render(&line));
        }
        self.lines.lock().unwrap_or_else(|e| e.into_inner()).push(line);
    }

    /// The last `count` lines.
    pub(crate) fn last(&self, count: usize) -> Vec<Line> {
        let lines = self.lines.lock().unwrap_or_else(|e| e.into_inner());
        lines[lines.len().saturating_sub(count)..].to_vec()
    }

    /// The live view is gone: prints what was said so far, and from now on each line as it comes.
    pub(crate) fn print_from_now_on(&self) {
        self.prints.store(true, Ordering::Relaxed);
        for line in self.last(usize::MAX) {
            let _ = writeln!(std::io::stdout().lock(), "{}", render(&line));
        }
    }

    /// True when lines are printed as they come.
    pub(crate) fn prints(&self) -> bool {
        self.prints.load(Ordering::Relaxed)
    }
}

/// `  12.345 s  text`.
pub(crate) fn render(line: &Line) -> String {
    format!("{:>8.3} s  {}", line.at.as_secs_f64(), line.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_kept_in_order() {
        let story = Story::new(false);
        story.say("first");
        story.say(String::from("second"));
        let texts: Vec<_> = story.last(5).into_iter().map(|l| l.text).collect();
        assert_eq!(texts, ["first", "second"]);
        assert_eq!(story.last(1)[0].text, "second");
        assert_eq!(render(&Line { at: Duration::from_millis(1500), text: "x".into() }), "   1.500 s  x");
    }
}
