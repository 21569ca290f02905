//! How long each step of a long task took, for the log: what to look at when a member takes long to be back.

use std::{
    borrow::Cow,
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::postgres::Progress;

/// The steps of one task so far.
#[derive(Debug, Default)]
pub struct Phases(Mutex<Vec<Phase>>);

#[derive(Debug)]
struct Phase {
    name: Cow<'static, str>,
    began: Instant,
    last: Instant,
    bytes: u64,
}

impl Phases {
    /// Takes a step of the task's progress.
    pub fn note(&self, progress: &Progress) {
        self.note_at(progress, Instant::now());
    }

    fn note_at(&self, progress: &Progress, now: Instant) {
        let mut phases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match phases.last_mut().filter(|last| last.name == progress.phase) {
            Some(last) => (last.last, last.bytes) = (now, last.bytes.max(progress.done_bytes)),
            None => {
                if let Some(before) = phases.last_mut() {
                    before.last = now;
                }
                let (name, bytes) = (progress.phase.clone(), progress.done_bytes);
                phases.push(Phase { name, began: now, last: now, bytes });
            }
        }
    }

    /// The task has ended, and with it its last step.
    pub fn end(&self) {
        let mut phases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = phases.last_mut() {
            last.last = Instant::now();
        }
    }
}

impl fmt::Display for Phases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let phases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (place, phase) in phases.iter().enumerate() {
            let (comma, took) = (if place == 0 { "" } else { ", " }, phase.last.duration_since(phase.began));
            write!(f, "{comma}{} {:.2} s", phase.name, Duration::as_secs_f64(&took))?;
            if phase.bytes > 0 {
                write!(f, " ({} MB)", phase.bytes / 1_000_000)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(phase: &'static str, done_bytes: u64) -> Progress {
        Progress { phase: phase.into(), done_bytes, total_bytes: 0 }
    }

    #[test]
    fn each_step_has_its_time_and_its_bytes() {
        let (phases, zero) = (Phases::default(), Instant::now());
        let at = |ms: u64| zero + Duration::from_millis(ms);
        phases.note_at(&progress("crash recovery", 0), at(0));
        phases.note_at(&progress("pg_rewind", 0), at(1_200));
        phases.note_at(&progress("pg_rewind", 5_000_000), at(1_500));
        phases.note_at(&progress("pg_rewind", 193_000_000), at(2_250));
        assert_eq!(phases.to_string(), "crash recovery 1.20 s, pg_rewind 1.05 s (193 MB)");
    }
}
