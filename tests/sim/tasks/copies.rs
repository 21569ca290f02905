//! Rewinds and clones, and what pg_rewind makes of two histories.

use matriarch::{
    agent::order::Source,
    domain::{TimelineHistory, TimelineId},
};

use super::{POLL, Progress, Step, TaskRun};
use crate::{
    clock::{MS, SECOND, Time},
    network::Channel,
    postgres::{
        dir::{Conf, ControlState},
        wal::{RECORD, whole},
    },
    world::{Proc, World},
};

impl World {
    pub(super) fn rewind(&mut self, i: usize, run: &mut TaskRun, source: &Source) -> Progress {
        if !self.stopped_first(i, run)? {
            return Ok(Some(POLL));
        }
        let from = self.sky.index(&source.member);
        match self.rewind_step(i, run, from) {
            Ok(wait) => Ok(wait),
            Err(error) => {
                // A failure before the first changed page leaves the directory as startable as it was.
                if !run.touched && run.step != Step::Prepare {
                    self.put_signal_back(i)?;
                    self.data_mut(i)?.barred = false;
                    self.place(i).rewinding = false;
                }
                Err(error.into())
            }
        }
    }

    fn rewind_step(&mut self, i: usize, run: &mut TaskRun, from: usize) -> Result<Option<Time>, String> {
        match run.step {
            Step::Prepare => {
                if self.hosts[i].postgres.is_some() {
                    return Err("PostgreSQL runs in the data directory".to_owned());
                }
                let again = self.place(i).rewinding;
                let data = self.data_mut(i)?;
                if data.backup_label && !data.state.is_clean() {
                    return Err("it is an unfinished copy; clone it again".to_owned());
                }
                if data.state == ControlState::InArchiveRecovery {
                    return Err("it is a standby that was not shut down cleanly".to_owned());
                }
                data.remove_stubs();
                data.standby_signal = false;
                let clean = data.state.is_clean();
                data.barred = clean;
                self.place(i).rewinding = true;
                run.touched = again;
                run.step = if clean { Step::Connect } else { Step::Recover };
                Ok(Some(if clean { 10 * MS } else { self.sky.dice.between(150 * MS, SECOND) }))
            }
            Step::Recover => {
                let data = self.data_mut(i)?;
                data.wal.end = whole(data.wal.end) + RECORD;
                data.state = ControlState::ShutDown;
                let wal = data.wal;
                let timeline = self.sky.branches.timeline(wal.branch);
                let data = self.data_mut(i)?;
                data.checkpoint = (timeline, wal.end - RECORD);
                data.min_recovery = None;
                data.barred = true;
                run.step = Step::Connect;
                Ok(Some(10 * MS))
            }
            Step::Connect => {
                let data = self.data_mut(i)?;
                if data.min_recovery.is_some_and(|(timeline, _)| timeline > data.checkpoint.0) {
                    return Err("it has gone on to another timeline since its last checkpoint".to_owned());
                }
                run.source_life = self.source_serves(i, from)?;
                self.rewind_plan(i, from)?;
                if self.sky.dice.one_in(12) {
                    return Err("could not find previous WAL record".to_owned());
                }
                run.step = Step::Touch;
                Ok(Some(self.sky.dice.between(50 * MS, 500 * MS)))
            }
            Step::Touch => {
                run.touched = true;
                run.step = Step::Finish;
                Ok(Some(self.sky.dice.lag(200 * MS, 2 * SECOND, 10, 8 * SECOND)))
            }
            _ => {
                if self.source_serves(i, from)? != run.source_life {
                    return Err("the connection to the source broke off".to_owned());
                }
                self.rewound(i, from)?;
                Ok(None)
            }
        }
    }

    /// Whoever is to be copied from takes connections; which server it is.
    fn source_serves(&self, i: usize, from: usize) -> Result<u32, String> {
        let open = self.sky.net.is_open(Channel::Postgres, i, from);
        let frozen = self.hosts[from].is_frozen(Proc::Postgres);
        let server = self.hosts[from].postgres.as_ref().filter(|p| open && !frozen && p.accepts_connections());
        server.map(|p| p.life).ok_or_else(|| "can't connect to the source".to_owned())
    }

    /// What pg_rewind computes from two `pg_control`s and history files: where the histories part, `None`
    /// when there is nothing to rewind.
    fn rewind_plan(&self, i: usize, from: usize) -> Result<Option<u64>, String> {
        let (ours, theirs) = (&self.hosts[i].disks.place.data, &self.hosts[from].disks.place.data);
        let (Some(ours), Some(theirs)) = (ours, theirs) else { return Err("no data".to_owned()) };
        if ours.system != theirs.system {
            return Err("source and target clusters are from different systems".to_owned());
        }
        let (our_line, their_line) = (ours.checkpoint.0, theirs.checkpoint.0);
        if our_line == their_line {
            return Err("pg_rewind takes them to be on one timeline, which proves nothing".to_owned());
        }
        let fork = parted(&ours.history(our_line)?, &theirs.history(their_line)?)
            .ok_or("could not find common ancestor of the source and target cluster's timelines")?;
        let end = match ours.state {
            ControlState::ShutDownInRecovery => ours.min_recovery.map_or(ours.checkpoint.1, |(_, at)| at),
            _ => whole(ours.wal.end),
        };
        Ok((end > fork).then_some(fork))
    }

    fn rewound(&mut self, i: usize, from: usize) -> Result<(), String> {
        let plan = self.rewind_plan(i, from)?;
        let theirs = self.hosts[from].disks.place.data.clone().ok_or("no data")?;
        let now = self.sky.now;
        let ours = self.data_mut(i)?;
        if let Some(fork) = plan {
            let wal = ours.wal;
            let shared = self.sky.branches.common(wal, theirs.wal);
            let wrong = shared < fork.min(wal.end);
            self.sky.told.trace(now, || format!("{i}: rewound to {from} at {fork}, shared up to {shared}"));
            let ours = self.data_mut(i)?;
            ours.corrupt |= wrong;
            ours.wal = theirs.wal;
            // Files that the source doesn't have are removed, those of pg_wal too.
            ours.histories = theirs.histories;
            ours.kept_from = ours.kept_from.max(theirs.kept_from);
            ours.checkpoint = theirs.checkpoint;
            ours.min_recovery = Some((theirs.checkpoint.0, theirs.wal.end));
            ours.state = ControlState::InArchiveRecovery;
            ours.backup_label = true;
            if wrong {
                self.sky.told.other_bytes.push(format!("{i}: rewound to {fork}, but its bytes part at {shared}"));
            }
        }
        let ours = self.data_mut(i)?;
        ours.conf = Conf::Standby(None);
        ours.barred = false;
        self.put_signal_back(i)?;
        self.place(i).rewinding = false;
        Ok(())
    }

    // ------------------------------------------------------------ clone

    pub(super) fn copy(&mut self, i: usize, run: &mut TaskRun, source: &Source) -> Progress {
        if !self.stopped_first(i, run)? {
            return Ok(Some(POLL));
        }
        let from = self.sky.index(&source.member);
        match run.step {
            Step::Prepare => {
                if self.hosts[i].postgres.is_some() {
                    return Err("PostgreSQL runs in the data directory".into());
                }
                self.place(i).finish_swap();
                self.place(i).new = None;
                run.source_life = self.source_serves(i, from)?;
                run.step = Step::Finish;
                Ok(Some(self.sky.dice.lag(400 * MS, 3 * SECOND, 8, 12 * SECOND)))
            }
            Step::Finish => {
                let broken = self.source_serves(i, from)? != run.source_life;
                if broken || (self.sky.rough && self.sky.dice.one_in(15)) {
                    return Err("pg_basebackup failed".into());
                }
                let mut new = self.hosts[from].disks.place.data.clone().ok_or("no data")?;
                // Only the history of the current timeline comes with the copy.
                let own = self.sky.branches.timeline(new.wal.branch);
                new.histories.retain(|timeline, _| *timeline == own);
                new.state = ControlState::InProduction;
                new.min_recovery = Some((own, whole(new.wal.end)));
                new.kept_from = new.checkpoint.1;
                new.backup_label = true;
                new.standby_signal = true;
                new.barred = false;
                new.conf = Conf::Standby(None);
                self.place(i).new = Some(new);
                run.step = Step::Swap;
                Ok(Some(self.sky.dice.between(MS, 10 * MS)))
            }
            _ => {
                if self.place(i).data.take().is_some() {
                    // Between the two renames.
                    return Ok(Some(MS));
                }
                self.place(i).finish_swap();
                self.place(i).rewinding = false;
                Ok(None)
            }
        }
    }
}

/// `findCommonAncestorTimeline`: entries are compared by number and beginning.
fn parted(ours: &TimelineHistory, theirs: &TimelineHistory) -> Option<u64> {
    let steps = |h: &TimelineHistory| -> Vec<(TimelineId, u64, u64)> {
        let mut begin = 0;
        let mut all: Vec<_> = h
            .switches
            .iter()
            .map(|s| {
                let step = (s.timeline, begin, s.end.0);
                begin = s.end.0;
                step
            })
            .collect();
        all.push((h.timeline, begin, u64::MAX));
        all
    };
    let (a, b) = (steps(ours), steps(theirs));
    let same = a.iter().zip(&b).take_while(|(x, y)| (x.0, x.1) == (y.0, y.1)).last();
    same.map(|(x, y)| x.2.min(y.2))
}
