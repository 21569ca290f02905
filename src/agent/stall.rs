//! Disks that stand still: each volume is written to all the time, a little, on a thread that nothing else waits for.
//! The verdict is pure, [`watch`] is not.

use std::{path::PathBuf, sync::mpsc as threads, thread, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout_at},
};

use super::{core::Event, prober::KNOCKS, process::Wake};
use crate::postgres::{Instance, Place, Touch, writes_finished};

/// What is known of the disks under PostgreSQL.
#[derive(Debug, Clone, Default)]
pub struct Volumes {
    data: Sign,
    wal: Sign,
    /// So many looks in a row the files of the database were not where they belong.
    missing: u32,
}

/// A directory that was renamed for a moment is not gone.
const LOOKS: u32 = 2;

/// How one volume was found last.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
enum Sign {
    /// Nothing is known against it.
    #[default]
    Fine,
    /// A write has not ended in this time.
    Silent(Duration),
    /// It says so itself.
    Failing(String),
}

impl Volumes {
    /// A new look. `None`: a write has not ended within `waited`.
    pub fn see(&mut self, place: Place, touch: Option<&Touch>, waited: Duration) {
        let sign = match touch {
            None => Sign::Silent(waited),
            Some(Touch::Failing(why)) => Sign::Failing(why.clone()),
            Some(Touch::Written | Touch::Missing | Touch::Untried(_)) => Sign::Fine,
        };
        match place {
            Place::Data => {
                self.missing = match touch {
                    Some(Touch::Missing) => self.missing.saturating_add(1),
                    Some(_) => 0,
                    // While a write is under way nothing was looked at.
                    None => self.missing,
                };
                self.data = sign;
            }
            Place::Wal => self.wal = sign,
        }
    }

    /// What is wrong, for people. `lived_in`: there was a database a moment ago, and nobody is at work on its directory.
    pub fn problem(&self, lived_in: bool) -> Option<String> {
        let of = |name: &str, sign: &Sign| match sign {
            Sign::Fine => None,
            Sign::Silent(waited) => {
                Some(format!("the volume of its {name} has not finished a write for {} ms", waited.as_millis()))
            }
            Sign::Failing(why) => Some(format!("the volume of its {name} fails: {why}")),
        };
        let gone = || "its data directory is gone: PG_VERSION or pg_control is missing".to_owned();
        let missing = (self.is_missing() && lived_in).then(gone);
        missing.or_else(|| of("data directory", &self.data)).or_else(|| of("WAL", &self.wal))
    }

    /// A postmaster was started, so its files were there.
    pub fn found(&mut self) {
        self.missing = 0;
    }

    fn is_missing(&self) -> bool {
        self.missing >= LOOKS
    }

    /// Why a start could only hang, or find nothing to start.
    pub fn forbid_a_start(&self) -> Option<String> {
        let stands = [&self.data, &self.wal].iter().any(|sign| matches!(sign, Sign::Silent(_)));
        if stands || self.is_missing() { self.problem(true) } else { None }
    }
}

/// A disk that is busy has this many times the patience, as long as it finishes anything at all.
const BUSY: u32 = 10;

/// Whether a write is waited for in vain.
struct Wait {
    device: Option<PathBuf>,
    began: Instant,
    /// When the disk last had finished something, and what it counted then.
    moved: Instant,
    writes: Option<u64>,
}

impl Wait {
    fn begin(device: Option<PathBuf>) -> Self {
        let writes = device.as_deref().and_then(writes_finished);
        let now = Instant::now();
        Self { device, began: now, moved: now, writes }
    }

    /// The disk has finished nothing for `patience`, of whoever's, or too little for much longer.
    fn is_in_vain(&mut self, patience: Duration) -> bool {
        let writes = self.device.as_deref().and_then(writes_finished);
        if writes > self.writes {
            (self.writes, self.moved) = (writes, Instant::now());
        }
        self.moved.elapsed() >= patience || self.began.elapsed() >= patience * BUSY
    }
}

/// Writes to one volume until nobody listens any more, as often in `patience` as a new connection is begun; a write that
/// has not ended after `patience`, though the disk finished nothing else either, is told of, and again for as long as it
/// hangs. What is as it was is not told again.
pub async fn watch(
    instance: Instance,
    place: Place,
    patience: watch::Receiver<Duration>,
    wakes: mpsc::UnboundedSender<Wake>,
) {
    let Some((ask, mut answers)) = start_thread(instance, place) else { return };
    let mut fine = false;
    loop {
        let (began, patience) = (Instant::now(), *patience.borrow());
        if ask.send(()).is_err() {
            return;
        }
        let mut wait = Wait::begin(None);
        let mut until = began + patience / KNOCKS;
        let answer = loop {
            match timeout_at(until, answers.recv()).await {
                Ok(Some(Answer::On(device))) => {
                    wait = Wait::begin(device);
                    continue;
                }
                Ok(Some(Answer::Done(touch))) => break touch,
                Ok(None) => return,
                Err(_) => until += patience / KNOCKS,
            }
            if !wait.is_in_vain(patience) {
                continue;
            }
            fine = false;
            if wakes.send(Wake::Core(Event::Touched { place, touch: None, waited: patience })).is_err() {
                return;
            }
        };
        let well = answer == Touch::Written;
        if let Touch::Untried(why) = &answer {
            tracing::debug!(?place, why, "a volume was not written to");
        }
        if !(fine && well)
            && wakes.send(Wake::Core(Event::Touched { place, touch: Some(answer), waited: patience })).is_err()
        {
            return;
        }
        fine = well;
        sleep_until(began + patience / KNOCKS).await;
    }
}

/// What the thread says.
enum Answer {
    /// It begins, on this disk.
    On(Option<PathBuf>),
    /// What became of it.
    Done(Touch),
}

/// One that hangs in the kernel is left behind when the agent ends, and ends the process no sooner than the disk lets it.
fn start_thread(instance: Instance, place: Place) -> Option<(threads::Sender<()>, mpsc::UnboundedReceiver<Answer>)> {
    let (ask, asked) = threads::channel();
    let (tell, answers) = mpsc::unbounded_channel();
    let work = move || {
        while asked.recv().is_ok()
            && tell.send(Answer::On(instance.device(place))).is_ok()
            && tell.send(Answer::Done(instance.touch(place))).is_ok()
        {}
    };
    let name = match place {
        Place::Data => "disk of data",
        Place::Wal => "disk of WAL",
    };
    match thread::Builder::new().name(name.to_owned()).spawn(work) {
        Ok(_) => Some((ask, answers)),
        Err(error) => {
            tracing::error!(%error, ?place, "failed to start a thread; a disk that stands still will not be noticed");
            None
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const WAITED: Duration = Duration::from_secs(3);

    fn counts(writes: u64) -> String {
        format!("1 2 3 4 {writes} 6 7 8 9 10 11\n")
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_is_busy_has_more_patience_and_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let stat = dir.path().join("stat");
        std::fs::write(&stat, counts(1)).unwrap();
        let mut still = Wait::begin(Some(stat.clone()));
        let mut untold = Wait::begin(None);
        tokio::time::advance(WAITED).await;
        assert!(still.is_in_vain(WAITED), "it finished nothing");
        assert!(untold.is_in_vain(WAITED), "nobody knows what it finished");

        let mut busy = Wait::begin(Some(stat.clone()));
        for second in 1..=29 {
            tokio::time::advance(Duration::from_secs(1)).await;
            std::fs::write(&stat, counts(1 + second)).unwrap();
            assert!(!busy.is_in_vain(WAITED), "after {second} s");
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(busy.is_in_vain(WAITED), "ten times as long");
    }

    #[test]
    fn what_a_volume_said_last_counts() {
        let mut volumes = Volumes::default();
        volumes.see(Place::Wal, None, WAITED);
        let why = "the volume of its WAL has not finished a write for 3000 ms";
        assert_eq!(volumes.problem(true).as_deref(), Some(why));
        assert_eq!(volumes.forbid_a_start().as_deref(), Some(why));
        volumes.see(Place::Data, Some(&Touch::Written), WAITED);
        assert!(volumes.problem(true).is_some(), "that was the other one");
        volumes.see(Place::Wal, Some(&Touch::Untried("no room".into())), WAITED);
        assert_eq!(volumes.problem(true), None, "a full disk is none that stands still");
    }

    #[test]
    fn one_that_fails_may_be_tried() {
        let mut volumes = Volumes::default();
        volumes.see(Place::Data, Some(&Touch::Failing("Input/output error".into())), WAITED);
        assert_eq!(
            volumes.problem(true).as_deref(),
            Some("the volume of its data directory fails: Input/output error")
        );
        assert_eq!(volumes.forbid_a_start(), None);
    }

    #[test]
    fn no_data_is_missed_only_where_there_was_some() {
        let mut volumes = Volumes::default();
        volumes.see(Place::Data, Some(&Touch::Missing), WAITED);
        assert_eq!(volumes.problem(true), None, "it may be there again the next time");
        volumes.see(Place::Data, Some(&Touch::Missing), WAITED);
        assert_eq!(volumes.problem(false), None);
        assert!(volumes.problem(true).is_some_and(|why| why.contains("is gone")));
        volumes.see(Place::Data, None, WAITED);
        assert!(volumes.problem(true).is_some_and(|why| why.contains("is gone")), "nobody has looked again");
        volumes.see(Place::Data, Some(&Touch::Missing), WAITED);
        volumes.found();
        assert_eq!(volumes.problem(true), None);
    }
}
