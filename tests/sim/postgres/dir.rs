//! A data directory: what is on a host's disk while no server runs, and what `postgres::Instance` does
//! to it. Only what decisions or correctness depend on is there.

use std::collections::BTreeMap;

use matriarch::{
    agent::core::{Disk, DiskFacts},
    domain::{Epoch, Lsn, TimelineHistory, TimelineId, WalPosition},
};

use super::wal::{Branches, Content, whole};
use crate::{mutation::Mutation, world::Sky};

/// "Database cluster state" of `pg_control`, as far as it is told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlState {
    ShutDown,
    ShutDownInRecovery,
    InProduction,
    InArchiveRecovery,
}

impl ControlState {
    pub fn is_clean(self) -> bool {
        matches!(self, Self::ShutDown | Self::ShutDownInRecovery)
    }

    pub fn was_primary(self) -> bool {
        matches!(self, Self::ShutDown | Self::InProduction)
    }
}

/// A file `NNNNNNNN.history`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HistoryFile {
    Real(TimelineHistory),
    Stub,
}

/// Whom `postgresql.conf` makes it follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conf {
    /// The server, and of which epoch its name there is.
    Standby(Option<(usize, Epoch)>),
    DormantPrimary,
}

/// One data directory.
#[derive(Debug, Clone)]
pub struct DataDir {
    pub system: u64,
    pub state: ControlState,
    /// Where the last checkpoint lies.
    pub checkpoint: (TimelineId, u64),
    /// Recovery is not consistent before, and on this timeline.
    pub min_recovery: Option<(TimelineId, u64)>,
    /// The bytes in `pg_wal`.
    pub wal: Content,
    pub histories: BTreeMap<TimelineId, HistoryFile>,
    /// `pg_wal` has no segment from before: what began earlier has no first record here.
    pub kept_from: u64,
    pub standby_signal: bool,
    /// Has permissions that PostgreSQL doesn't start with: a rewind works here, or was cut off.
    pub barred: bool,
    pub backup_label: bool,
    pub conf: Conf,
    /// A rewind has overwritten pages that its WAL doesn't tell about. Only a bug gets there.
    pub corrupt: bool,
}

/// What lies in the place of the data directory, and beside it.
#[derive(Debug, Clone, Default)]
pub struct Place {
    pub data: Option<DataDir>,
    /// `<data_dir>.new`, complete.
    pub new: Option<DataDir>,
    /// `<data_dir>.rewinding`: may be half rewound.
    pub rewinding: bool,
}

impl Place {
    pub fn read(&self) -> Disk {
        let Some(data) = &self.data else { return Disk::NoData };
        Disk::Present(DiskFacts {
            system_identifier: data.system,
            was_primary: data.state.was_primary(),
            clean_shutdown: data.state.is_clean(),
            crashed_standby: data.state == ControlState::InArchiveRecovery,
            checkpoint_timeline: data.checkpoint.0,
            proven_end: None,
            history: TimelineHistory::default(),
            rewind_unfinished: self.rewinding,
            required: data.min_recovery.map(|(timeline, lsn)| WalPosition { timeline, lsn: Lsn(lsn) }),
        })
    }

    /// A swap that was cut off between its two renames.
    pub fn finish_swap(&mut self) {
        if self.data.is_none()
            && let Some(new) = self.new.take()
        {
            self.data = Some(new);
        }
    }
}

impl DataDir {
    /// What initdb makes.
    pub fn fresh(system: u64, wal: Content) -> Self {
        Self {
            system,
            state: ControlState::ShutDown,
            checkpoint: (TimelineId(1), wal.end),
            min_recovery: None,
            wal,
            histories: BTreeMap::new(),
            kept_from: 0,
            standby_signal: true,
            barred: false,
            backup_label: false,
            conf: Conf::Standby(None),
            corrupt: false,
        }
    }

    /// `Instance::history`: an error when the file is missing or a stub.
    pub fn history(&self, timeline: TimelineId) -> Result<TimelineHistory, String> {
        if timeline.0 <= 1 {
            return Ok(TimelineHistory::root(timeline));
        }
        match self.histories.get(&timeline) {
            Some(HistoryFile::Real(history)) => Ok(history.clone()),
            Some(HistoryFile::Stub) => Err(format!("{} is a stub", timeline.history_file())),
            None => Err(format!("{} is missing", timeline.history_file())),
        }
    }

    /// `Instance::place_stubs`.
    pub fn place_stubs(&mut self, own: TimelineId, below: TimelineId) -> Result<(), String> {
        let history = self.history(own)?;
        for timeline in (2..below.0).map(TimelineId).filter(|t| *t != own) {
            let until = history.switches.iter().position(|s| s.timeline == timeline);
            let file = match until {
                Some(until) => HistoryFile::Real(TimelineHistory {
                    timeline,
                    switches: history.switches[..until].to_vec(),
                    ..Default::default()
                }),
                None => HistoryFile::Stub,
            };
            self.histories.entry(timeline).or_insert(file);
        }
        Ok(())
    }

    pub fn remove_stubs(&mut self) {
        self.histories.retain(|_, file| *file != HistoryFile::Stub);
    }

    /// PostgreSQL's `findNewestTimeLine`: numbers are tried one after the other until one is missing.
    pub fn newest_timeline(&self, from: TimelineId) -> TimelineId {
        let mut newest = from;
        while self.histories.contains_key(&newest.next()) {
            newest = newest.next();
        }
        newest
    }

    /// `Instance::wal_end_on_disk`: the end of the last whole record after the last checkpoint.
    pub fn wal_end(&self, branches: &Branches) -> WalPosition {
        let end = whole(self.wal.end);
        let branch = branches.branch_at(self.wal.branch, end);
        let timeline = branches.timeline(branch);
        if timeline == self.checkpoint.0 || matches!(self.histories.get(&timeline), Some(HistoryFile::Real(_))) {
            return WalPosition { timeline, lsn: Lsn(end) };
        }
        // A newer timeline whose history file is not there is not looked for.
        let known = branches.history(branch).end_of(self.checkpoint.0);
        WalPosition { timeline: self.checkpoint.0, lsn: known.unwrap_or(Lsn(self.checkpoint.1)) }
    }

    /// `Instance::lineage`: the history of the timeline of `end`, with the first records that are there.
    pub fn lineage(&self, end: WalPosition, sky: &Sky) -> Result<TimelineHistory, String> {
        let (mut history, branches) = (self.history(end.timeline)?, &sky.branches);
        if sky.mutation == Mutation::NumbersOnly {
            return Ok(history);
        }
        let first = branches.first_records(self.wal, self.kept_from);
        history.first_records = first.into_iter().filter(|(timeline, _)| history.contains(*timeline)).collect();
        Ok(history)
    }

    /// Which timeline a start recovers along, or why PostgreSQL refuses (`StartupXLOG`).
    pub fn recovery_target(&self) -> Result<TimelineId, String> {
        let checkpoint = self.checkpoint.0;
        let known = self.min_recovery.map_or(checkpoint, |(timeline, _)| timeline.max(checkpoint));
        let target = match self.conf {
            Conf::Standby(_) if self.standby_signal => self.newest_timeline(known),
            // `recovery_target_timeline = current`, or a crash recovery.
            Conf::Standby(_) | Conf::DormantPrimary => known,
        };
        let history = self.history(target)?;
        let at = |timeline, lsn| WalPosition { timeline, lsn: Lsn(lsn) };
        if !history.includes(at(checkpoint, self.checkpoint.1)) {
            return Err(format!("requested timeline {target} is not a child of this server's history"));
        }
        match self.min_recovery {
            Some((timeline, lsn)) if !history.includes(at(timeline, lsn)) => {
                Err(format!("requested timeline {target} does not contain minimum recovery point"))
            }
            _ => Ok(target),
        }
    }
}
