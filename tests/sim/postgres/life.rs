//! The life of a process tree: start, recovery, stop, and the ways to die.

use matriarch::domain::{Lsn, WalPosition};

use super::{
    PgEvent, Postgres,
    confirms::{Confirms, Names},
    dir::{Conf, ControlState},
    restart_point,
    streaming::TIMEOUT,
    wal::{Branch, Content, RECORD, whole},
};
use crate::{
    clock::{MS, SECOND},
    guard::GuardEvent,
    mutation::Mutation,
    world::{Proc, What, World},
};

impl World {
    /// Starts a server: under a guard, or by hand.
    pub fn start_postgres(&mut self, i: usize, guard: Option<u32>) {
        let life = self.hosts[i].new_life();
        let host = &mut self.hosts[i];
        let Some(data) = &mut host.disks.place.data else { return };
        let target = data.recovery_target();
        let upstream = match data.conf {
            Conf::Standby(upstream) => upstream,
            Conf::DormantPrimary => None,
        };
        let names = Names::read(host.live.as_ref().filter(|_| guard.is_some()));
        host.postgres = Some(Postgres {
            life,
            guard,
            postmaster_alive: true,
            postmaster_frozen: false,
            in_recovery: true,
            open: false,
            stopping: None,
            // Started by hand it reads the data directory's own configuration, with the placeholder.
            live: guard.is_some() && host.live.is_some(),
            confirms: Confirms::by(names),
            shut: host.disks.shut,
            recovered: None,
            upstream,
            receiver: None,
            received: false,
            at_end: false,
            connecting: false,
            checking: false,
            checkpoints: false,
            as_standby: data.standby_signal,
            target: target.clone().unwrap_or_default(),
            inserted: data.wal.end,
            epoch: None,
        });
        self.sky.told.trace(self.sky.now, || format!("{i}: PostgreSQL starts, target {target:?}, guard {guard:?}"));
        match target {
            Ok(_) => {
                let slow = if self.sky.rough { 8 * SECOND } else { SECOND };
                let redo = self.sky.dice.lag(60 * MS, 500 * MS, 20, slow);
                self.pg(i, redo, PgEvent::Recovered);
            }
            Err(_) => {
                let wait = self.sky.dice.between(20 * MS, 150 * MS);
                self.pg(i, wait, PgEvent::Fatal);
            }
        }
    }

    /// Local WAL is read: a standby waits for more, anything else opens.
    pub(super) fn recovered(&mut self, i: usize) {
        let host = &mut self.hosts[i];
        let (Some(postgres), Some(data)) = (&mut host.postgres, &mut host.disks.place.data) else { return };
        if !postgres.as_standby {
            return self.recovered_as_primary(i);
        }
        data.state = ControlState::InArchiveRecovery;
        postgres.at_end = true;
        let consistent = data.min_recovery.is_none_or(|(_, at)| whole(data.wal.end) >= at);
        if consistent {
            data.backup_label = false;
            postgres.open = true;
        }
        self.checkpoints_begin(i);
        self.connect_soon(i, MS);
    }

    /// Without `standby.signal`: crash recovery along the timeline of `pg_control`, and then it is primary.
    fn recovered_as_primary(&mut self, i: usize) {
        let host = &mut self.hosts[i];
        let (Some(postgres), Some(data)) = (&mut host.postgres, &mut host.disks.place.data) else { return };
        let clean = data.state.is_clean();
        let read = Content { branch: data.wal.branch, end: whole(data.wal.end) };
        let mut wal = self.sky.branches.up_to_timeline(read, postgres.target);
        // Also of a guard that was killed meanwhile: SIGQUIT is on its way, and until then it was started under that lease.
        let armed = host.guard.as_ref().filter(|g| postgres.guard == Some(g.life));
        let epoch = armed.filter(|g| g.deadline.at().is_some()).map(|g| g.deadline.epoch());
        let forked = !self.sky.branches.may_continue(i, wal);
        if forked {
            // It goes on with a number whose bytes beyond this point are somebody else's.
            let timeline = self.sky.branches.timeline(wal.branch);
            let parent = Some((wal.branch, wal.end));
            let branch = Branch { timeline, parent, host: i, epoch, checkpoint: None, tip: wal.end };
            wal.branch = self.sky.branches.add(branch);
        }
        if !clean {
            wal.end += RECORD;
        }
        data.checkpoint = (self.sky.branches.timeline(wal.branch), wal.end.saturating_sub(RECORD));
        data.min_recovery = None;
        data.backup_label = false;
        data.wal = wal;
        self.sky.branches.note_flush(wal);
        self.sky.told.opened_in_place(self.sky.now, i, epoch, wal, forked);
        self.opens(i, epoch);
        if let Some(postgres) = &mut self.hosts[i].postgres {
            postgres.recovered = Some(wal);
        }
        self.clients_come_in(i);
    }

    /// SIGHUP or `pg_reload_conf()`.
    pub(super) fn reload(&mut self, i: usize) {
        let host = &mut self.hosts[i];
        let (Some(postgres), Some(data)) = (&mut host.postgres, &host.disks.place.data) else { return };
        postgres.live = postgres.guard.is_some() && host.live.is_some();
        postgres.shut = host.disks.shut;
        let names = Names::read(host.live.as_ref().filter(|_| postgres.guard.is_some()));
        let upstream = match data.conf {
            Conf::Standby(upstream) => upstream,
            Conf::DormantPrimary => None,
        };
        if upstream != postgres.upstream {
            postgres.upstream = upstream;
            if upstream.is_some() || self.sky.mutation != Mutation::WordBeforeSevered {
                postgres.receiver = None;
            }
            let wait = self.sky.dice.between(5 * MS, 30 * MS);
            self.connect_soon(i, wait);
        }
        self.take_names(i, names);
        self.clients_come_in(i);
        self.writers_changed = true;
    }

    // ------------------------------------------------------------ stopping

    pub(super) fn stop_begins(&mut self, i: usize, fast: bool) {
        let (now, dice) = (self.sky.now, &mut self.sky.dice);
        let wait = if fast { dice.between(50 * MS, 400 * MS) } else { dice.between(5 * MS, 100 * MS) };
        let Some(postgres) = &mut self.hosts[i].postgres else { return };
        if !fast {
            return self.pg(i, wait, PgEvent::Ended { clean: false });
        }
        if postgres.stopping.is_none() {
            postgres.stopping = Some(now);
            self.writers_changed = true;
            self.pg(i, wait, PgEvent::StopCheck);
        }
    }

    /// The shutdown checkpoint is written once; then everybody that follows gets it.
    pub(super) fn check_stop(&mut self, i: usize) {
        let now = self.sky.now;
        let host = &mut self.hosts[i];
        let (Some(postgres), Some(data)) = (&mut host.postgres, &mut host.disks.place.data) else { return };
        let Some(since) = postgres.stopping else { return };
        if postgres.in_recovery {
            restart_point(data, &self.sky.branches);
            data.state = ControlState::ShutDownInRecovery;
            return self.stop_ends(i, true);
        }
        if data.state != ControlState::ShutDown {
            let at = postgres.inserted.max(data.wal.end);
            data.wal.end = at + RECORD;
            data.checkpoint = (self.sky.branches.timeline(data.wal.branch), at);
            data.min_recovery = None;
            data.state = ControlState::ShutDown;
            let wal = data.wal;
            self.sky.branches.note_flush(wal);
            self.sky.branches.note_checkpoint(wal.branch, at);
        }
        let (life, end) = (postgres.life, data.wal.end);
        if self.standbys_have_all(i, life, end) || now >= since + TIMEOUT {
            self.stop_ends(i, true);
        } else {
            self.send_wal(i);
            self.pg(i, 20 * MS, PgEvent::StopCheck);
        }
    }

    pub(super) fn stop_ends(&mut self, i: usize, clean: bool) {
        self.sky.told.trace(self.sky.now, || format!("{i}: PostgreSQL ended, clean {clean}"));
        self.postmaster_dies(i, false);
    }

    // ------------------------------------------------------------ dying

    /// The postmaster is gone. `orphans`: it was killed, and its backends have not noticed yet.
    pub fn postmaster_dies(&mut self, i: usize, orphans: bool) {
        let Some(postgres) = &mut self.hosts[i].postgres else { return };
        if !postgres.postmaster_alive {
            return;
        }
        postgres.postmaster_alive = false;
        let (guard, life) = (postgres.guard, postgres.life);
        if orphans {
            // Idle ones see it at once, a busy one when its statement is done (measured: 3.95 s).
            let until = self.sky.dice.lag(10 * MS, 400 * MS, 3, 4 * SECOND);
            self.sky.after(until, i, life, What::Postgres(PgEvent::OrphansEnded));
        } else {
            self.tree_dies(i, false);
        }
        if let Some(guard) = guard {
            self.sky.after(50, i, guard, What::Guard(GuardEvent::ChildDied));
        }
        self.writers_changed = true;
    }

    /// No process is left. Of what was not flushed a part may have reached the disk.
    pub fn tree_dies(&mut self, i: usize, power_loss: bool) {
        let host = &mut self.hosts[i];
        let Some(postgres) = host.postgres.take() else { return };
        host.forget_freeze(Proc::Postgres);
        if let Some(data) = &mut host.disks.place.data
            && !postgres.in_recovery
            && data.state == ControlState::InProduction
            && postgres.inserted > data.wal.end
        {
            let lost = postgres.inserted - data.wal.end;
            let kept = if power_loss { 0 } else { self.sky.dice.roll(lost + 1) };
            data.wal.end += kept;
        }
        self.sky.told.trace(self.sky.now, || format!("{i}: no process of PostgreSQL is left"));
        let life = postgres.life;
        let orphaned = !postgres.postmaster_alive;
        if let Some(guard) = postgres.guard.filter(|_| !orphaned) {
            self.sky.after(50, i, guard, What::Guard(GuardEvent::ChildDied));
        }
        host.backlog.retain(|due| !matches!(due.what, What::Postgres(_)));
        self.reset_receivers(i, life);
        self.writers_changed = true;
        self.note_tree_gone(i);
    }

    /// SIGQUIT from the kernel, because the guard died.
    pub fn guard_left_postmaster(&mut self, i: usize) {
        let wait = self.sky.dice.between(5 * MS, 150 * MS);
        self.pg(i, wait, PgEvent::Ended { clean: false });
    }

    fn note_tree_gone(&mut self, i: usize) {
        let host = &mut self.hosts[i];
        if host.unwatched.take().is_some() {
            host.watched_again = self.sky.now;
        }
    }

    /// Why a member could not follow another by the numbers alone, for messages.
    pub fn describe(&self, i: usize) -> String {
        let host = &self.hosts[i];
        let data = host.disks.place.data.as_ref().map(|d| {
            let timeline = self.sky.branches.timeline(d.wal.branch);
            let end = WalPosition { timeline, lsn: Lsn(d.wal.end) };
            format!(
                "{end} (branch {}) {:?} signal {} label {}",
                d.wal.branch, d.state, d.standby_signal, d.backup_label
            )
        });
        let server = host.postgres.as_ref().map(|p| {
            format!(
                "running recovery {} open {} alive {} upstream {:?} receiver {:?} live {}",
                p.in_recovery, p.open, p.postmaster_alive, p.upstream, p.receiver, p.live
            )
        });
        format!("{data:?} {server:?}")
    }
}
