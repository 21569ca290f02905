//! Whether recovery and replay get anywhere, looked at once a second. The rules are pure, [`watch`] is not.

use std::{path::Path, time::Duration};

use tokio::sync::{mpsc, watch};

use super::{
    core::{Complaint, Event},
    hands,
    hands::blocking,
    prober::Plan,
    process::Wake,
};
use crate::{
    domain::Moment,
    postgres::{Instance, Vitals},
};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// One that waits for WAL wakes up for every try to get some, twice a second or less. Who works does more than this.
const SWITCHES: u64 = 10;
/// Bytes in a second, by system calls: each try to get WAL reads a page or two.
const BYTES: u64 = 128 * 1024;
/// Of the time, in percent, on the CPU.
const CPU: u32 = 3;

/// How recovery came to where it is.
#[derive(Debug, Clone, Default)]
pub struct Redo {
    /// When it last got on, and what there was to see then.
    mark: Option<(Moment, Vitals)>,
    receives: bool,
}

impl Redo {
    /// A new look at the newest postmaster.
    pub fn see(&mut self, vitals: Vitals, now: Moment) {
        let still = self.mark.as_ref().is_some_and(|(at, last)| !gets_on(last, &vitals, now.since(*at)));
        self.receives = vitals.receives;
        if !still {
            self.mark = Some((now, vitals));
        }
    }

    /// A WAL receiver ran at the last look.
    pub fn receives(&self) -> bool {
        self.receives
    }

    /// Another postmaster, or nothing to look at.
    pub fn forget(&mut self) {
        self.mark = None;
    }

    /// What it was at when it last got on, and how long ago that was; `None` before the first look.
    pub fn still(&self, now: Moment) -> Option<(&str, Duration)> {
        let (at, vitals) = self.mark.as_ref()?;
        Some((&vitals.doing, now.since(*at)))
    }
}

/// It came further, or did in `elapsed` what only one that works does: by its position alone the replay of one large
/// transaction, or the checkpoint at the end, would look like standing still.
fn gets_on(last: &Vitals, now: &Vitals, elapsed: Duration) -> bool {
    let further = (last.pid, &last.doing, last.control) != (now.pid, &now.doing, now.control);
    let used = now.cpu.saturating_sub(last.cpu) * 100 >= elapsed * CPU && now.cpu > last.cpu;
    let rate = |now: u64, last: u64, each: u64| {
        let least = u128::from(each) * elapsed.as_millis() / 1_000;
        now > last && u128::from(now - last) >= least
    };
    // A wait in the kernel is for a disk that works, if it finishes writes meanwhile: one flush of a full cache has no steps
    // of its own.
    let flushes = now.waits_for_disk && now.disk_writes > last.disk_writes;
    flushes
        || now.runs_a_command
        || further
        || used
        || rate(now.bytes, last.bytes, BYTES)
        || rate(now.switches, last.switches, SWITCHES)
}

/// Looks as long as the plan wants that, until its sender is gone.
pub async fn watch(instance: Instance, mut plan: watch::Receiver<Option<Plan>>, wakes: mpsc::UnboundedSender<Wake>) {
    loop {
        let wanted = plan.borrow_and_update().and_then(|plan| Some((plan.life, plan.redo?)));
        let Some((life, postmaster)) = wanted else {
            if plan.changed().await.is_err() {
                return;
            }
            continue;
        };
        let at = instance.clone();
        let look = move || (at.vitals(postmaster), complaint(at.log_file(), postmaster));
        if let Ok((Some(vitals), words)) = blocking(look).await
            && wakes.send(Wake::Core(Event::Redo { life, vitals, words })).is_err()
        {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What PostgreSQL says in its log of not getting on.
fn complaint(log: &Path, postmaster: u32) -> Option<Complaint> {
    complaint_in(&hands::end_of(log)?, postmaster)
}

/// Whoever is turned away meanwhile fills the log, which says nothing; a newer complaint of another kind says more than
/// an older one. English, for PostgreSQL runs with `LC_ALL=C`.
fn complaint_in(text: &str, postmaster: u32) -> Option<Complaint> {
    let life = match text.rfind(hands::BEGINS) {
        // Another's: this one has not written anything yet.
        Some(at) if !text[..at].ends_with(&format!("[{postmaster}]")) => return None,
        Some(at) => &text[at..],
        None => text,
    };
    let telling = |line: &&str| {
        let cries = [" FATAL: ", " ERROR: ", " PANIC: ", " WARNING: "].iter().any(|cry| line.contains(cry));
        let reason = line.contains("is a lower setting than on the primary");
        (cries || reason) && !hands::TURNED_AWAY.iter().any(|words| line.contains(words))
    };
    let line = life.lines().rev().find(telling)?;
    let said = line.split_once(": ").map_or(line, |(_, said)| said);
    Some(Complaint { line: line.to_owned(), said: said.trim().chars().take(200).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    fn vitals(doing: &str, cpu_ms: u64, bytes: u64, switches: u64) -> Vitals {
        let cpu = Duration::from_millis(cpu_ms);
        Vitals { pid: 9, doing: doing.to_owned(), cpu, bytes, switches, ..Vitals::default() }
    }

    fn still_after(looks: &[Vitals]) -> u64 {
        let mut redo = Redo::default();
        for (second, look) in looks.iter().enumerate() {
            redo.see(look.clone(), at(1_000 * second as u64));
        }
        redo.still(at(1_000 * (looks.len() as u64 - 1))).map_or(0, |(_, still)| still.as_secs())
    }

    #[test]
    fn whoever_comes_further_or_works_gets_on() {
        let same = vitals("recovering 5", 100, 9, 9);
        let ten = |next: &dyn Fn(u64) -> Vitals| still_after(&(0..=10).map(next).collect::<Vec<_>>());
        assert_eq!(ten(&|_| same.clone()), 10);
        assert_eq!(ten(&|n| vitals(&format!("recovering {n}"), 100, 9, 9)), 0, "it comes further");
        assert_eq!(ten(&|n| vitals("recovering 5", 100 * n, 9, 9)), 0, "it computes");
        assert_eq!(ten(&|n| vitals("recovering 5", 100, n << 20, 9)), 0, "it reads");
        assert_eq!(ten(&|n| vitals("recovering 5", 100, 9, 50 * n)), 0, "it waits for a disk again and again");
        let flushes = |waits: bool, writes: u64| Vitals { waits_for_disk: waits, disk_writes: writes, ..same.clone() };
        assert_eq!(ten(&|n| flushes(true, n)), 0, "one long flush");
        assert_eq!(ten(&|_| flushes(true, 7)), 10, "the disk stands still");
        assert_eq!(ten(&|n| flushes(false, n)), 10, "somebody else writes");
        assert_eq!(ten(&|_| Vitals { runs_a_command: true, ..same.clone() }), 0, "it restores a segment");
    }

    #[test]
    fn whoever_only_asks_for_more_wal_stands_still() {
        let waits = |n: u64| vitals("recovering 5", 100 + 10 * (n / 5), 9 + 24_000 * n, 9 + 4 * n);
        assert_eq!(still_after(&(0..=30).map(waits).collect::<Vec<_>>()), 30);
    }

    #[test]
    fn another_process_or_another_postmaster_begins_anew() {
        let mut redo = Redo::default();
        redo.see(vitals("x", 0, 0, 0), at(0));
        redo.see(vitals("x", 0, 0, 0), at(5_000));
        assert_eq!(redo.still(at(5_000)), Some(("x", Duration::from_secs(5))));
        redo.see(Vitals { pid: 10, ..vitals("x", 0, 0, 0) }, at(6_000));
        assert_eq!(redo.still(at(6_000)), Some(("x", Duration::ZERO)));
        redo.forget();
        assert_eq!(redo.still(at(7_000)), None);
    }

    #[test]
    fn the_reason_in_the_log_is_the_last_that_says_something() {
        let log = "t [1] FATAL:  of another life\nt [1] LOG:  starting PostgreSQL 15.1\n\
                   t [2] FATAL:  could not receive data from WAL stream: ERROR:  requested WAL segment 03 has already been removed\n\
                   t [3] FATAL:  the database system is not yet accepting connections\n\
                   t [3] DETAIL:  Consistent recovery state has not been yet reached.\n";
        let removed =
            "could not receive data from WAL stream: ERROR:  requested WAL segment 03 has already been removed";
        let said = |text: &str, postmaster| complaint_in(text, postmaster).map(|complaint| complaint.said);
        assert_eq!(said(log, 1).as_deref(), Some(removed));
        assert_eq!(said(log, 7), None, "7 has not begun to write");
        let paused = format!(
            "{log}t [2] WARNING:  hot standby is not possible because of insufficient parameter settings\n\
             t [2] DETAIL:  max_connections = 50 is a lower setting than on the primary server, where its value was 100.\n"
        );
        let lower = "max_connections = 50 is a lower setting than on the primary server, where its value was 100.";
        assert_eq!(said(&paused, 1).as_deref(), Some(lower));
        assert_eq!(said("t [1] LOG:  starting PostgreSQL 15.1\nt [1] LOG:  all is well\n", 1), None);
    }
}
