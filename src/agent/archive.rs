//! How archiving goes, looked at every few seconds beside everything else, and judged. The rules are pure, [`watch`] is not.

use std::time::Duration;

use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{
    core::Event,
    hands::{blocking, said},
    prober::Plan,
    process::Wake,
};
use crate::{
    domain::{ArchiveView, Moment, RoomView, Settings},
    postgres::{Archiver, Instance, Session, WalNote},
};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(2);

/// One look.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ArchiveSeen {
    /// PostgreSQL's own word.
    pub archiver: Archiver,
    /// Files that wait, and their bytes.
    pub waiting: (u64, u64),
    /// What the commands came to.
    pub notes: (WalNote, WalNote),
    /// By what was set PostgreSQL is to archive.
    pub wanted: bool,
    /// A standby can take WAL from an archive.
    pub restores: bool,
}

/// What is known of the archive.
#[derive(Debug, Clone, Default)]
pub struct Archiving {
    seen: ArchiveSeen,
    /// Since when every look has found that the last try failed.
    failing: Option<Moment>,
}

impl Archiving {
    /// A new look.
    pub fn see(&mut self, seen: ArchiveSeen, now: Moment) {
        let fails = seen.archiver.on && seen.archiver.fails;
        self.failing = fails.then(|| self.failing.unwrap_or(now));
        self.seen = seen;
    }

    /// Another postmaster.
    pub fn forget(&mut self) {
        let restores = self.seen.restores;
        *self = Self { seen: ArchiveSeen { restores, ..ArchiveSeen::default() }, failing: None };
    }

    /// A standby can take WAL from an archive.
    pub fn restores(&self) -> bool {
        self.seen.restores
    }

    /// As others see it. `writes`: it is a primary; a standby archives nothing, and what waits there waits for its promotion.
    pub fn view(&self, settings: &Settings, room: Option<&RoomView>, writes: bool, now: Moment) -> ArchiveView {
        let ArchiveSeen { archiver, waiting, notes: (put, get), wanted, .. } = &self.seen;
        let on = archiver.on && writes;
        let failing = self.failing.filter(|_| on);
        let most = settings.archive_backlog_warn.of(room.map_or(u64::MAX, |room| room.of_wal().size));
        let (files, bytes) = if on { *waiting } else { (0, 0) };
        ArchiveView {
            on,
            failing_ms: failing.map(|since| ms(now.since(since))),
            failed: if on { archiver.failed.0 } else { 0 },
            last_failed: if on { archiver.failed.1.clone() } else { String::new() },
            last_archived: if on { archiver.archived.1.clone() } else { String::new() },
            said: failing.map(|_| put.said.clone()).unwrap_or_default(),
            waiting: files,
            waiting_bytes: bytes,
            much: bytes > most,
            wants_restart: *wanted != archiver.on,
            restored: get.files,
            last_restored: get.last.clone(),
            seeks_ms: None,
        }
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Looks until the sender of the plans is gone.
pub async fn watch(instance: Instance, mut plans: watch::Receiver<Option<Plan>>, wakes: mpsc::UnboundedSender<Wake>) {
    let (mut session, mut told, mut life, mut next) = (None, None, 0, Instant::now());
    loop {
        let plan = *plans.borrow_and_update();
        let Some(plan) = plan else {
            session = None;
            if plans.changed().await.is_err() {
                return;
            }
            continue;
        };
        if life != plan.life || Instant::now() >= next {
            if std::mem::replace(&mut life, plan.life) != plan.life {
                (session, told) = (None, None);
            }
            next = Instant::now() + EVERY;
            match look(&instance, &mut session, plan.deadline).await {
                // What stays as it was is not told again: it would wake the agent for nothing.
                Ok(seen) if told.as_ref() == Some(&seen) => {}
                Ok(seen) => {
                    told = Some(seen.clone());
                    if wakes.send(Wake::Core(Event::Archive { life, seen: Box::new(seen) })).is_err() {
                        return;
                    }
                }
                Err(why) => {
                    tracing::debug!(why, "PostgreSQL could not be asked how archiving goes");
                    session = None;
                }
            }
        }
        if let Ok(Err(_)) = tokio::time::timeout_at(next, plans.changed()).await {
            return;
        }
    }
}

async fn look(instance: &Instance, session: &mut Option<Session>, deadline: Duration) -> Result<ArchiveSeen, String> {
    if session.as_ref().is_none_or(Session::is_closed) {
        *session = Some(instance.connect_within(deadline).await.map_err(said)?);
    }
    let archiver = session.as_ref().ok_or("no connection")?.archiver(deadline).await.map_err(said)?;
    let at_work = instance.clone();
    let read = move || {
        // Without archiving nothing waits, and the directory may be large.
        let waiting = if archiver.on { at_work.archive_backlog().map_err(said)? } else { (0, 0) };
        let (wanted, restores) = (at_work.wants_archiving(), at_work.has_archive());
        Ok(ArchiveSeen { archiver, waiting, notes: at_work.wal_notes(), wanted, restores })
    };
    blocking(read).await?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Least, Volume};

    fn at(seconds: u64) -> Moment {
        Moment(Duration::from_secs(seconds))
    }

    fn seen(fails: bool, waiting: u64) -> ArchiveSeen {
        let archiver = Archiver { on: true, fails, failed: (3, "0005".into()), ..Archiver::default() };
        let put = WalNote { said: "no route".into(), ..WalNote::default() };
        let notes = (put, WalNote::default());
        ArchiveSeen { archiver, waiting: (waiting, waiting << 24), notes, wanted: true, restores: false }
    }

    fn room() -> RoomView {
        RoomView { data: Volume { size: 1 << 30, ..Volume::default() }, ..RoomView::default() }
    }

    #[test]
    fn it_fails_since_the_first_look_that_found_it_and_no_more_when_one_try_worked() {
        let mut archiving = Archiving::default();
        let settings = Settings::default();
        let view = |archiving: &Archiving, now| archiving.view(&settings, Some(&room()), true, at(now));
        archiving.see(seen(true, 1), at(10));
        archiving.see(seen(true, 2), at(12));
        let told = view(&archiving, 40);
        assert_eq!((told.failing_ms, told.waiting, told.said.as_str()), (Some(30_000), 2, "no route"));
        archiving.see(seen(false, 0), at(41));
        assert_eq!(view(&archiving, 41).failing_ms, None);
        archiving.see(seen(true, 1), at(42));
        assert_eq!(view(&archiving, 43).failing_ms, Some(1_000), "another time");
    }

    #[test]
    fn what_waits_is_much_by_the_size_of_the_volume_or_in_bytes() {
        let mut archiving = Archiving::default();
        let of = |archiving: &Archiving, most| {
            let settings = Settings { archive_backlog_warn: most, ..Settings::default() };
            archiving.view(&settings, Some(&room()), true, at(0)).much
        };
        archiving.see(seen(false, 6), at(0));
        assert!(!of(&archiving, Least::Percent(10)), "96 of 102 MB");
        archiving.see(seen(false, 7), at(0));
        assert!(of(&archiving, Least::Percent(10)) && of(&archiving, Least::Bytes(100 << 20)));
        assert!(!of(&archiving, Least::Bytes(200 << 20)));
        let standby = archiving.view(&Settings::default(), Some(&room()), false, at(0));
        assert_eq!((standby.on, standby.much, standby.waiting), (false, false, 0), "a standby archives nothing");
    }

    #[test]
    fn archiving_that_was_switched_on_or_off_waits_for_a_restart() {
        let mut archiving = Archiving::default();
        let view = |archiving: &Archiving| archiving.view(&Settings::default(), None, true, at(0)).wants_restart;
        archiving.see(seen(false, 0), at(0));
        assert!(!view(&archiving));
        archiving.see(ArchiveSeen { wanted: false, ..seen(false, 0) }, at(0));
        assert!(view(&archiving));
    }
}
