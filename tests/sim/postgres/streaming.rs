//! Replication: who may follow whom is decided by numbers, as PostgreSQL does; whether that was right is
//! then looked up in what the bytes really are.

use std::collections::btree_map::Entry;

use matriarch::domain::{
    Epoch, Lsn, TimelineHistory, TimelineId, WalPosition, observation::StandbyProgress, sync::standby_name,
};

use super::{
    PgEvent, Receiver,
    dir::{DataDir, HistoryFile},
    shown_history,
    wal::{Content, whole},
};
use crate::{
    clock::{MS, SECOND, Time},
    host::Host,
    network::Channel,
    world::{What, World},
};

/// `wal_retrieve_retry_interval` as configured.
const RETRY: Time = 500 * MS;
/// `wal_receiver_timeout` and `wal_sender_timeout` as configured.
pub(super) const TIMEOUT: Time = 10 * SECOND;

impl World {
    /// Looks for the server to follow, now and again every half second.
    pub(super) fn connect_soon(&mut self, i: usize, delay: Time) {
        if let Some(postgres) = &mut self.hosts[i].postgres
            && !postgres.connecting
        {
            postgres.connecting = true;
            self.pg(i, delay, PgEvent::Connect);
        }
    }

    pub(super) fn connect(&mut self, i: usize) {
        let Some(postgres) = &mut self.hosts[i].postgres else { return };
        postgres.connecting = false;
        let idle = postgres.is_standby() && postgres.at_end && postgres.receiver.is_none();
        let Some((sender, epoch)) = postgres.upstream.filter(|_| idle) else { return };
        if let Err(_why) = self.follow(i, sender, epoch) {
            self.connect_soon(i, RETRY);
        }
    }

    /// Begins to stream from `sender`.
    fn follow(&mut self, i: usize, sender: usize, epoch: Epoch) -> Result<(), String> {
        let reachable = sender != i && self.sky.net.is_open(Channel::Postgres, i, sender);
        let server = self.hosts[sender].postgres.as_ref().filter(|p| reachable && p.accepts_connections());
        let life = server.map(|p| p.life).ok_or("can't connect")?;
        if self.hosts[sender].is_frozen(crate::world::Proc::Postgres) {
            return Err("no answer".to_owned());
        }
        let theirs = self.hosts[sender].disks.place.data.clone().ok_or("no data")?;
        let branches = &self.sky.branches;
        let host = &mut self.hosts[i];
        let (Some(postgres), Some(ours)) = (&mut host.postgres, &mut host.disks.place.data) else {
            return Err("no server".to_owned());
        };
        let at = Content { branch: ours.wal.branch, end: whole(ours.wal.end) };
        let from = branches.timeline(branches.branch_at(at.branch, at.end));
        let history = shown_history(&theirs, branches)?;
        if postgres.guard.is_none() && !branches.is_prefix(at, theirs.wal) {
            // Started by hand, nobody has compared first records. It stumbles over the first record that it gets.
            return Err("invalid record length".to_owned());
        }
        serves(&history, theirs.wal.end, WalPosition { timeline: from, lsn: Lsn(at.end) })?;
        fetch_histories(ours, &theirs, from, history.timeline)?;
        rescan(ours, &mut postgres.target, WalPosition { timeline: from, lsn: Lsn(at.end) });
        if !branches.is_prefix(at, theirs.wal) {
            ours.corrupt = true;
            let what = format!("{i} at {at:?} follows {sender} at {:?}, whose bytes are others", theirs.wal);
            self.sky.told.other_bytes.push(what);
        }
        let heard = self.sky.now;
        self.sky.connections += 1;
        let connection = self.sky.connections;
        postgres.receiver = Some(Receiver { sender, life, branch: theirs.wal.branch, heard, connection });
        postgres.received = true;
        ours.wal.end = at.end;
        ours.wal.branch = branches.branch_at(theirs.wal.branch, at.end);
        let content = theirs.wal;
        let generation = host.disks.agent.generation;
        self.sender_begins(sender, (i, connection), standby_name(self.sky.names[i].clone(), generation, epoch));
        let Some(postgres) = &mut self.hosts[i].postgres else { return Ok(()) };
        if !std::mem::replace(&mut postgres.checking, true) {
            self.pg(i, TIMEOUT, PgEvent::ReceiverCheck);
        }
        self.send_chunk(sender, i, life, content);
        Ok(())
    }

    /// What is flushed goes to every connected receiver.
    pub(super) fn send_wal(&mut self, sender: usize) {
        let (Some(postgres), Some(data)) = (&self.hosts[sender].postgres, &self.hosts[sender].disks.place.data) else {
            return;
        };
        let (life, content) = (postgres.life, data.wal);
        for i in 0..self.hosts.len() {
            let follows = self.hosts[i].postgres.as_ref().and_then(|p| p.receiver.as_ref());
            if follows.is_some_and(|r| r.sender == sender && r.life == life) {
                self.send_chunk(sender, i, life, content);
            }
        }
    }

    fn send_chunk(&mut self, sender: usize, i: usize, life: u32, content: Content) {
        // In a cut nothing arrives; after it, what is sent next brings the rest.
        if let Some(delay) = self.sky.net.stream(&mut self.sky.dice, Channel::Postgres, sender, i) {
            let Some(postgres) = &self.hosts[i].postgres else { return };
            let to = postgres.life;
            self.sky.after(delay, i, to, What::Postgres(PgEvent::Chunk { sender, life, content }));
        }
    }

    pub(super) fn take_chunk(&mut self, i: usize, sender: usize, life: u32, content: Content) {
        let part = self.sky.dice.one_in(10).then(|| self.sky.dice.roll(1 << 20));
        let host = &mut self.hosts[i];
        let (Some(postgres), Some(data)) = (&mut host.postgres, &mut host.disks.place.data) else { return };
        let stopping = postgres.stopping.is_some() || !postgres.in_recovery;
        let Some(receiver) = &mut postgres.receiver else { return };
        if receiver.sender != sender || receiver.life != life || stopping {
            return;
        }
        receiver.heard = self.sky.now;
        if receiver.branch != content.branch {
            // The server it follows was promoted: the stream of the old timeline ends.
            postgres.receiver = None;
            return self.connect_soon(i, 5 * MS);
        }
        let end = match part {
            Some(part) if content.end > data.wal.end => data.wal.end + part % (content.end - data.wal.end + 1),
            _ => content.end,
        };
        if end > data.wal.end {
            data.wal = Content { branch: self.sky.branches.branch_at(content.branch, end), end };
            // Those that follow this standby hear of it too.
            self.send_wal(i);
        }
        self.answer(i);
    }

    pub(super) fn disconnected(&mut self, i: usize, life: u32) {
        let Some(postgres) = &mut self.hosts[i].postgres else { return };
        if postgres.receiver.as_ref().is_some_and(|r| r.life == life) {
            postgres.receiver = None;
            let wait = self.sky.dice.between(5 * MS, RETRY);
            self.connect_soon(i, wait);
        }
    }

    pub(super) fn check_receiver(&mut self, i: usize) {
        let now = self.sky.now;
        let Some(postgres) = &mut self.hosts[i].postgres else { return };
        postgres.checking = false;
        let Some(receiver) = &postgres.receiver else { return };
        let over = receiver.heard + TIMEOUT;
        if now >= over {
            postgres.receiver = None;
            self.connect_soon(i, 5 * MS);
        } else {
            postgres.checking = true;
            self.pg(i, over - now, PgEvent::ReceiverCheck);
        }
    }

    /// A server is gone: those that followed it are told, where the network lets them.
    pub(super) fn reset_receivers(&mut self, sender: usize, life: u32) {
        for i in 0..self.hosts.len() {
            let Some(postgres) = &self.hosts[i].postgres else { continue };
            let follows = postgres.receiver.as_ref().is_some_and(|r| r.sender == sender && r.life == life);
            if follows && self.hosts[sender].power && !self.sky.net.is_cut(Channel::Postgres, sender, i) {
                let wait = self.sky.dice.between(MS, 10 * MS);
                self.pg(i, wait, PgEvent::Disconnected { life });
            }
        }
    }

    /// What `pg_stat_replication` says on `sender`.
    pub(super) fn sent_to(&self, sender: usize) -> Vec<StandbyProgress> {
        let Some(life) = self.hosts[sender].postgres.as_ref().map(|p| p.life) else { return Vec::new() };
        let follows = |(i, host): (usize, &Host)| {
            let receiver = host.postgres.as_ref()?.receiver.as_ref()?;
            let progress = StandbyProgress {
                member: self.sky.names[i].clone(),
                state: "streaming".to_owned(),
                flush_lsn: Lsn(host.disks.place.data.as_ref()?.wal.end),
                lag_bytes: 0,
            };
            (receiver.sender == sender && receiver.life == life).then_some(progress)
        };
        self.hosts.iter().enumerate().filter_map(follows).collect()
    }

    /// Everyone that follows `sender` has all its WAL, or has not been heard for too long.
    pub(super) fn standbys_have_all(&self, sender: usize, life: u32, end: u64) -> bool {
        self.hosts.iter().enumerate().all(|(i, host)| {
            let (Some(postgres), Some(data)) = (&host.postgres, &host.disks.place.data) else { return true };
            let follows = postgres.receiver.as_ref().is_some_and(|r| r.sender == sender && r.life == life);
            !follows || data.wal.end >= end || !self.sky.net.is_open(Channel::Postgres, sender, i)
        })
    }
}

/// `START_REPLICATION`: whether a server with this history sends WAL from `at` on.
fn serves(history: &TimelineHistory, flushed: u64, at: WalPosition) -> Result<(), String> {
    if at.timeline == history.timeline {
        let ahead = at.lsn.0 > flushed;
        return if ahead {
            Err("requested starting point is ahead of the WAL flush position".to_owned())
        } else {
            Ok(())
        };
    }
    match history.end_of(at.timeline) {
        Some(end) if at.lsn <= end => Ok(()),
        Some(_) | None => Err(format!("requested starting point {at} is not in this server's history")),
    }
}

/// `WalRcvFetchTimeLineHistoryFiles`: every number between is asked for, and all must be there.
fn fetch_histories(ours: &mut DataDir, theirs: &DataDir, from: TimelineId, to: TimelineId) -> Result<(), String> {
    for timeline in (from.0..=to.0).map(TimelineId).filter(|t| t.0 > 1) {
        if let Entry::Vacant(missing) = ours.histories.entry(timeline) {
            let file = theirs.histories.get(&timeline);
            let file = file.ok_or_else(|| format!("could not receive {}", timeline.history_file()))?;
            missing.insert(file.clone());
        }
    }
    Ok(())
}

/// `rescanLatestTimeLine`: a newer timeline becomes the target when it grew out of where recovery is.
fn rescan(ours: &DataDir, target: &mut TimelineId, at: WalPosition) {
    let newest = ours.newest_timeline(*target);
    let real = matches!(ours.histories.get(&newest), Some(HistoryFile::Real(h)) if h.includes(at));
    if real {
        *target = newest;
    }
}
