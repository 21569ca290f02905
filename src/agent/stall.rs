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
            Sign::Silent(waited) => Some(format!(
                "the volume of its {name} has not finished a write for {} ms",
                waited.as_millis() / 10 * 10
            )),
            Sign::Failing(why) => Some(format!("the volume of its {name} fails: {why}")),
        };
        let gone = || "its data directory is gone: PG_VERSION or pg_control is missing".to_owned();
        let missing = (self.is_missing() && lived_in).then(gone);
        missing.or_else(|| of("data directory", &self.data)).or_else(|| of("WAL", &self.wal))
    }

    /// What is wrong, if anything is, is that writes take too long.
    pub fn may_go_on(&self) -> bool {
        let fails = |sign: &Sign| matches!(sign, Sign::Failing(_));
        !self.is_missing() && !fails(&self.data) && !fails(&self.wal)
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

/// What is known of the disk below a volume.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Disk {
    /// Where the kernel counts what it has finished; `None`: nobody can say.
    counts: Option<PathBuf>,
    /// Nothing else says that it is at work either, so it may be busy and not still.
    unknown: bool,
}

/// Whether a write is waited for in vain.
struct Wait {
    disk: Disk,
    /// When the write was asked for.
    began: Instant,
    /// When the disk last had finished something, and what it counted then.
    moved: Instant,
    writes: Option<u64>,
}

impl Wait {
    fn begin(disk: Disk, began: Instant) -> Self {
        let writes = disk.counts.as_deref().and_then(writes_finished);
        Self { disk, began, moved: began, writes }
    }

    /// When it is in vain if the disk finishes nothing until then.
    fn due(&self, patience: Duration) -> Instant {
        let longest = self.began + patience * BUSY;
        if self.disk.unknown { longest } else { longest.min(self.moved + patience) }
    }

    /// The disk has finished nothing for `patience`, of whoever's, or too little for much longer.
    fn is_in_vain(&mut self, patience: Duration) -> bool {
        let writes = self.disk.counts.as_deref().and_then(writes_finished);
        if writes > self.writes {
            (self.writes, self.moved) = (writes, Instant::now());
        }
        Instant::now() >= self.due(patience)
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
    let (mut fine, mut disk) = (false, Disk::default());
    loop {
        let (began, patience) = (Instant::now(), *patience.borrow());
        if ask.send(()).is_err() {
            return;
        }
        let tell = |touch, waited| wakes.send(Wake::Core(Event::Touched { place, touch, waited, patience })).is_ok();
        let in_vain = |waited| {
            fine = false;
            tell(None, waited)
        };
        let Some(answer) = outcome(&mut answers, &mut disk, (began, patience), in_vain).await else { return };
        let well = answer == Touch::Written;
        if let Touch::Untried(why) = &answer {
            tracing::debug!(?place, why, "a volume was not written to");
        }
        let news = !fine || !well;
        if news && !tell(Some(answer), began.elapsed()) {
            return;
        }
        fine = well;
        sleep_until(began + patience / KNOCKS).await;
    }
}

/// What becomes of the write that was asked for at `began`. As soon as it is waited for in vain, and each time it is looked
/// at again, `in_vain` is told for how long it was when it became so. `None`: nobody asks or answers any more.
async fn outcome(
    answers: &mut mpsc::UnboundedReceiver<Answer>,
    disk: &mut Disk,
    (began, patience): (Instant, Duration),
    mut in_vain: impl FnMut(Duration) -> bool,
) -> Option<Touch> {
    let mut wait = Wait::begin(disk.clone(), began);
    let mut look = began + patience / KNOCKS;
    // The same words for as long as it hangs: they are compared.
    let mut waited = None;
    loop {
        let due = Some(wait.due(patience)).filter(|due| *due > Instant::now());
        match timeout_at(due.map_or(look, |due| due.min(look)), answers.recv()).await {
            Ok(Some(Answer::On(found))) => {
                if found != *disk {
                    *disk = found;
                    wait = Wait::begin(disk.clone(), began);
                }
                continue;
            }
            Ok(Some(Answer::Done(touch))) => return Some(touch),
            Ok(None) => return None,
            Err(_) => look = Instant::now() + patience / KNOCKS,
        }
        if !wait.is_in_vain(patience) {
            waited = None;
        } else if !in_vain(*waited.get_or_insert_with(|| began.elapsed())) {
            return None;
        }
    }
}

/// What the thread says.
enum Answer {
    /// It begins, on this disk.
    On(Disk),
    /// What became of it.
    Done(Touch),
}

/// What flushes its WAL is not still; a data volume has no WAL when that is apart. What the kernel can't count there has as
/// long as a busy disk: three seconds for one flush over a network are no reason to change the primary.
fn disk_of(instance: &Instance, place: Place) -> Disk {
    let counts = instance.device(place);
    let unknown = counts.is_none() && place == Place::Data && instance.has_wal_apart();
    Disk { counts, unknown }
}

/// One that hangs in the kernel is left behind when the agent ends, and ends the process no sooner than the disk lets it.
fn start_thread(instance: Instance, place: Place) -> Option<(threads::Sender<()>, mpsc::UnboundedReceiver<Answer>)> {
    let (ask, asked) = threads::channel();
    let (tell, answers) = mpsc::unbounded_channel();
    let work = move || {
        while asked.recv().is_ok()
            && tell.send(Answer::On(disk_of(&instance, place))).is_ok()
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

    fn counted(stat: &std::path::Path) -> Disk {
        Disk { counts: Some(stat.to_owned()), unknown: false }
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_is_busy_has_more_patience_and_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let stat = dir.path().join("stat");
        std::fs::write(&stat, counts(1)).unwrap();
        let now = Instant::now();
        let mut still = Wait::begin(counted(&stat), now);
        let mut untold = Wait::begin(Disk::default(), now);
        let mut unknown = Wait::begin(Disk { counts: None, unknown: true }, now);
        tokio::time::advance(WAITED).await;
        assert!(still.is_in_vain(WAITED), "it finished nothing");
        assert!(untold.is_in_vain(WAITED), "WAL that is flushed there would be seen");
        assert!(!unknown.is_in_vain(WAITED), "nobody knows what it finished");
        tokio::time::advance(WAITED * 9).await;
        assert!(unknown.is_in_vain(WAITED), "ten times as long");

        let mut busy = Wait::begin(counted(&stat), Instant::now());
        for second in 1..=29 {
            tokio::time::advance(Duration::from_secs(1)).await;
            std::fs::write(&stat, counts(1 + second)).unwrap();
            assert!(!busy.is_in_vain(WAITED), "after {second} s");
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(busy.is_in_vain(WAITED), "ten times as long");
    }

    /// When it was told of, and with which words, until the write ends after `ends`.
    async fn told(disk: Disk, patience: Duration, ends: Duration) -> Vec<(Duration, Duration)> {
        let (thread, mut answers) = mpsc::unbounded_channel();
        let began = Instant::now();
        let tells = std::cell::RefCell::new(Vec::new());
        let work = async {
            // The thread is held up before it begins.
            tokio::time::sleep(Duration::from_millis(150)).await;
            thread.send(Answer::On(disk)).ok();
            sleep_until(began + ends).await;
            thread.send(Answer::Done(Touch::Written)).ok();
        };
        let (mut known, note) = (Disk::default(), |waited| {
            tells.borrow_mut().push((began.elapsed(), waited));
            true
        });
        let (touch, ()) = tokio::join!(outcome(&mut answers, &mut known, (began, patience), note), work);
        assert_eq!(touch, Some(Touch::Written));
        tells.into_inner()
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_is_in_vain_when_the_patience_is_over_whenever_its_thread_began() {
        let dir = tempfile::tempdir().unwrap();
        let stat = dir.path().join("stat");
        std::fs::write(&stat, counts(1)).unwrap();
        let (tick, ms) = (Duration::from_millis(2), Duration::from_millis);
        // Thirds of some have no end.
        for patience in [WAITED, ms(5_000), ms(10_000)] {
            let tells = told(counted(&stat), patience, patience * 2).await;
            let (first, words) = tells[0];
            assert!(first >= patience && first < patience + tick, "{patience:?}: {first:?}");
            assert!(tells.len() >= 3 && tells.iter().all(|(_, waited)| *waited == words), "{tells:?}");
            let unknown = told(Disk { counts: None, unknown: true }, patience, patience * 11).await;
            let (first, words) = unknown[0];
            assert!(first >= patience * 10 && first < patience * 10 + tick, "{patience:?}: {first:?}");
            assert!(words >= patience * 10, "it says how long it was: {words:?}");
        }
        assert_eq!(told(counted(&stat), WAITED, ms(2_990)).await, []);
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
