//! A PostgreSQL that is true to its WAL: what is flushed survives, what is not may be lost; a standby
//! follows whoever's timeline numbers fit, whatever the bytes; a promotion takes the newest number it sees
//! and one more; backends that lost their postmaster go on acknowledging until they notice.
//!
//! Not modelled: what is in the pages, removed WAL segments (a rewind sometimes fails for one), slots,
//! archives, replay that lags behind what is received.

pub mod confirms;
pub mod dir;
mod life;
mod streaming;
pub mod wal;

use matriarch::{
    agent::core::Sight,
    domain::{Epoch, Lsn, TimelineHistory, TimelineId, WalPosition},
};

use self::{
    confirms::Confirms,
    dir::DataDir,
    wal::{Branch, Branches, Content, RECORD, whole},
};
use crate::{
    clock::{MS, SECOND, Time},
    invariants,
    tasks::TaskRun,
    world::{What, World},
};

/// What happens in a server.
#[derive(Debug)]
pub enum PgEvent {
    /// All local WAL is read.
    Recovered,
    /// It can't start, and ends.
    Fatal,
    /// The WAL receiver tries to connect.
    Connect,
    /// WAL from the server it follows.
    Chunk {
        sender: usize,
        life: u32,
        content: Content,
    },
    /// The connection to the server it follows was reset.
    Disconnected {
        life: u32,
    },
    /// `wal_receiver_timeout`.
    ReceiverCheck,
    /// What a standby says to have flushed.
    Answer {
        connection: u32,
        flushed: u64,
    },
    /// A WAL sender takes a change of configuration.
    SenderReads {
        connection: u32,
    },
    /// The checkpointer does, and tells the sessions whether commits wait.
    CheckpointerReads,
    /// Clients commit.
    Commit,
    Flushed {
        to: u64,
    },
    /// The configuration is read again.
    Reload,
    Stop {
        fast: bool,
    },
    /// A fast stop waits until its standbys have everything.
    StopCheck,
    /// The whole tree ends by itself.
    Ended {
        clean: bool,
    },
    /// The last orphan has noticed.
    OrphansEnded,
    /// The end of a promotion.
    Promoted {
        epoch: Option<Epoch>,
    },
    /// `again`: one of those that PostgreSQL makes by itself.
    Checkpoint {
        again: bool,
    },
}

impl PgEvent {
    /// A frozen postmaster holds this up.
    pub fn needs_the_postmaster(&self) -> bool {
        match self {
            PgEvent::Recovered
            | PgEvent::Fatal
            | PgEvent::Connect
            | PgEvent::Reload
            | PgEvent::Stop { .. }
            | PgEvent::StopCheck
            | PgEvent::Ended { .. }
            | PgEvent::Promoted { .. } => true,
            PgEvent::Chunk { .. }
            | PgEvent::Disconnected { .. }
            | PgEvent::ReceiverCheck
            | PgEvent::Answer { .. }
            | PgEvent::SenderReads { .. }
            | PgEvent::CheckpointerReads
            | PgEvent::Commit
            | PgEvent::Flushed { .. }
            | PgEvent::OrphansEnded
            | PgEvent::Checkpoint { .. } => false,
        }
    }
}

/// A connected WAL receiver.
#[derive(Debug, Clone)]
pub struct Receiver {
    pub sender: usize,
    /// Which server there.
    pub life: u32,
    branch: wal::BranchId,
    heard: Time,
    /// Its number there.
    connection: u32,
}

/// A running server, or what is left of its process tree.
#[derive(Debug)]
pub struct Postgres {
    pub life: u32,
    /// The life of the guard that started it; `None` by hand.
    pub guard: Option<u32>,
    pub postmaster_alive: bool,
    pub postmaster_frozen: bool,
    pub in_recovery: bool,
    /// Accepts connections.
    pub open: bool,
    stopping: Option<Time>,
    /// No synchronous standby is waited for; otherwise nothing is acknowledged but by sessions with
    /// `synchronous_commit` local or off.
    pub live: bool,
    /// By which names, and who has confirmed what.
    confirms: Confirms,
    /// No clients are let in.
    shut: bool,
    /// What a restart in place has found, as long as no client has seen it.
    recovered: Option<Content>,
    pub upstream: Option<(usize, Epoch)>,
    pub receiver: Option<Receiver>,
    /// `pg_last_wal_receive_lsn()` is not null.
    received: bool,
    at_end: bool,
    connecting: bool,
    /// A look at the receiver's silence is due.
    checking: bool,
    /// Checkpoints or restart points are made now and then.
    checkpoints: bool,
    /// `standby.signal` was there when it was started.
    as_standby: bool,
    target: TimelineId,
    /// Written beyond what is flushed.
    inserted: u64,
    /// Under which grant it became writable.
    pub epoch: Option<Epoch>,
}

impl Postgres {
    pub fn is_standby(&self) -> bool {
        self.in_recovery && self.postmaster_alive && self.stopping.is_none()
    }

    /// Sessions can commit.
    pub fn writable(&self) -> bool {
        !self.in_recovery && self.stopping.is_none()
    }

    pub fn accepts_connections(&self) -> bool {
        self.open && self.postmaster_alive && !self.postmaster_frozen && self.stopping.is_none()
    }

    pub fn has_receiver(&self) -> bool {
        self.receiver.is_some()
    }
}

impl World {
    fn data(&self, i: usize) -> Option<&DataDir> {
        self.hosts[i].disks.place.data.as_ref()
    }

    fn pg(&mut self, i: usize, delay: Time, event: PgEvent) {
        if let Some(postgres) = &self.hosts[i].postgres {
            let life = postgres.life;
            self.sky.after(delay, i, life, What::Postgres(event));
        }
    }

    /// What a probe of the local server sees (`Instance::probe`), or why it fails.
    pub fn probe(&self, i: usize) -> Result<Sight, String> {
        let (Some(postgres), Some(data)) = (&self.hosts[i].postgres, self.data(i)) else {
            return Err("nobody listens on the socket of the local server".to_owned());
        };
        if !postgres.open || postgres.stopping.is_some() {
            return Err("the local server doesn't accept connections now".to_owned());
        }
        let branches = &self.sky.branches;
        if !postgres.in_recovery {
            let timeline = branches.timeline(data.wal.branch);
            let wal_end = WalPosition { timeline, lsn: Lsn(data.wal.end) };
            return Ok(Sight {
                in_recovery: false,
                wal_end,
                wal_end_known: true,
                history: data.lineage(wal_end, &self.sky)?,
                replay_lsn: Lsn(data.wal.end),
                standbys: self.sent_to(i),
                checkpoint_timeline: data.checkpoint.0,
                ..Sight::default()
            });
        }
        let replay = whole(data.wal.end);
        let end = if postgres.received { data.wal.end } else { replay };
        let mut timeline = data.checkpoint.0.max(data.min_recovery.map_or(TimelineId(0), |(t, _)| t));
        timeline = timeline.max(match &postgres.receiver {
            // The timeline that is streamed, though no byte of it may have come yet.
            Some(r) if data.wal.end >= branches.begin(r.branch) => branches.timeline(r.branch),
            Some(_) | None => branches.timeline(branches.branch_at(data.wal.branch, end)),
        });
        let wal_end = WalPosition { timeline, lsn: Lsn(end) };
        Ok(Sight {
            in_recovery: true,
            wal_end,
            wal_end_known: postgres.received || postgres.at_end,
            history: data.lineage(wal_end, &self.sky)?,
            replay_lsn: Lsn(replay),
            streaming: postgres.receiver.is_some(),
            upstream: postgres.receiver.as_ref().map(|r| self.sky.names[r.sender].clone()),
            upstream_end: None,
            standbys: Vec::new(),
            checkpoint_timeline: data.checkpoint.0,
            severed: self.is_severed(postgres),
            ..Sight::default()
        })
    }

    pub fn on_postgres(&mut self, i: usize, event: PgEvent) {
        match event {
            PgEvent::Recovered => self.recovered(i),
            PgEvent::Fatal => self.postmaster_dies(i, false),
            PgEvent::Connect => self.connect(i),
            PgEvent::Chunk { sender, life, content } => self.take_chunk(i, sender, life, content),
            PgEvent::Disconnected { life } => self.disconnected(i, life),
            PgEvent::ReceiverCheck => self.check_receiver(i),
            PgEvent::Answer { connection, flushed } => self.answered(i, connection, flushed),
            PgEvent::SenderReads { connection } => self.sender_reads(i, connection),
            PgEvent::CheckpointerReads => self.checkpointer_reads(i),
            PgEvent::Commit => self.commit(i),
            PgEvent::Flushed { to } => self.flushed(i, to),
            PgEvent::Reload => self.reload(i),
            PgEvent::Stop { fast } => self.stop_begins(i, fast),
            PgEvent::StopCheck => self.check_stop(i),
            PgEvent::Ended { clean } => self.stop_ends(i, clean),
            PgEvent::OrphansEnded => self.tree_dies(i, false),
            // By hand on a member that its agent promotes at this moment: it is as good as that.
            PgEvent::Promoted { epoch: None } if self.is_being_promoted(i) => {}
            PgEvent::Promoted { epoch } => self.promoted(i, epoch),
            PgEvent::Checkpoint { again } => self.checkpoint(i, again),
        }
    }

    fn is_being_promoted(&self, i: usize) -> bool {
        self.hosts[i].agent.as_ref().and_then(|a| a.task.as_ref()).is_some_and(TaskRun::promotes)
    }

    // ------------------------------------------------------------ commits

    fn commit(&mut self, i: usize) {
        let next = self.sky.dice.between(100 * MS, 400 * MS);
        let records = self.sky.dice.between(1, 40);
        let flush = self.sky.dice.between(MS, 8 * MS);
        let Some(postgres) = &mut self.hosts[i].postgres else { return };
        if !postgres.writable() {
            return;
        }
        if postgres.shut {
            // Nobody commits. Its senders and their standbys speak all the same.
            self.send_wal(i);
            return self.pg(i, next, PgEvent::Commit);
        }
        postgres.inserted += records * RECORD;
        let to = postgres.inserted;
        self.pg(i, flush, PgEvent::Flushed { to });
        self.pg(i, next, PgEvent::Commit);
    }

    /// Flushed: now it may be acknowledged, and sent to standbys.
    fn flushed(&mut self, i: usize, to: u64) {
        let host = &mut self.hosts[i];
        let (Some(postgres), Some(data)) = (&host.postgres, &mut host.disks.place.data) else { return };
        if to <= data.wal.end {
            return;
        }
        data.wal.end = to;
        let content = data.wal;
        self.sky.branches.note_flush(content);
        if postgres.writable() {
            self.await_confirmation(i, content);
        }
        self.send_wal(i);
    }

    /// A checkpoint on a primary, a restart point on a standby.
    pub fn checkpoint(&mut self, i: usize, again: bool) {
        let pause = self.sky.dice.between(20 * SECOND, 60 * SECOND);
        let host = &mut self.hosts[i];
        let (Some(postgres), Some(data)) = (&mut host.postgres, &mut host.disks.place.data) else { return };
        if postgres.in_recovery {
            restart_point(data, &self.sky.branches);
        } else if postgres.stopping.is_none() {
            let at = postgres.inserted.max(data.wal.end);
            postgres.inserted = at + RECORD;
            data.wal.end = at + RECORD;
            data.checkpoint = (self.sky.branches.timeline(data.wal.branch), at);
            data.min_recovery = None;
            self.sky.branches.note_flush(data.wal);
            self.sky.branches.note_checkpoint(data.wal.branch, at);
        }
        if again {
            self.pg(i, pause, PgEvent::Checkpoint { again });
        }
    }

    fn checkpoints_begin(&mut self, i: usize) {
        let pause = self.sky.dice.between(20 * SECOND, 60 * SECOND);
        if let Some(postgres) = &mut self.hosts[i].postgres
            && !std::mem::replace(&mut postgres.checkpoints, true)
        {
            self.pg(i, pause, PgEvent::Checkpoint { again: true });
        }
    }

    // ------------------------------------------------------------ becoming writable

    /// The end of recovery by promotion: the newest number it sees and one more.
    fn promoted(&mut self, i: usize, epoch: Option<Epoch>) {
        let host = &mut self.hosts[i];
        let (Some(postgres), Some(data)) = (&mut host.postgres, &mut host.disks.place.data) else { return };
        if !postgres.is_standby() {
            return;
        }
        let timeline = data.newest_timeline(postgres.target).next();
        let end = whole(data.wal.end);
        let parent = self.sky.branches.branch_at(data.wal.branch, end);
        let branch = Branch { timeline, parent: Some((parent, end)), host: i, epoch, checkpoint: None, tip: end };
        let branch = self.sky.branches.add(branch);
        data.wal = Content { branch, end: end + RECORD };
        data.histories.insert(timeline, dir::HistoryFile::Real(self.sky.branches.history(branch)));
        data.min_recovery = Some((timeline, data.wal.end));
        data.standby_signal = false;
        data.backup_label = false;
        let content = data.wal;
        self.sky.branches.note_flush(content);
        self.sky.told.promoted(self.sky.now, i, epoch, timeline, (parent, end));
        let began = Content { branch: parent, end };
        invariants::confirmed_commits_are_kept::promoted(&mut self.sky, epoch, began);
        invariants::hibernated_stays_down::promoted(&mut self.sky, epoch, began);
        if let Some(epoch) = epoch {
            invariants::the_outvoted_acknowledge_nothing_new::promoted(&mut self.sky, epoch, began);
        }
        self.opens(i, epoch);
    }

    /// Writable from now on.
    fn opens(&mut self, i: usize, epoch: Option<Epoch>) {
        let host = &mut self.hosts[i];
        let (Some(postgres), Some(data)) = (&mut host.postgres, &mut host.disks.place.data) else { return };
        data.state = dir::ControlState::InProduction;
        postgres.in_recovery = false;
        postgres.open = true;
        postgres.receiver = None;
        postgres.confirms.begin();
        postgres.epoch = epoch;
        postgres.inserted = data.wal.end;
        self.writers_changed = true;
        let first = self.sky.dice.between(MS, 50 * MS);
        self.pg(i, first, PgEvent::Commit);
        self.checkpoints_begin(i);
        invariants::one_system::opened(self, i);
        invariants::writable_under_a_lease::opened(self, i);
    }
}

/// As a restart point leaves it.
fn restart_point(data: &mut DataDir, branches: &Branches) {
    let replay = whole(data.wal.end);
    let timeline = branches.timeline(branches.branch_at(data.wal.branch, replay));
    if let Some((on, at)) = branches.last_checkpoint(data.wal.branch, replay)
        && (on, at) > data.checkpoint
    {
        data.checkpoint = (on, at);
    }
    data.min_recovery = Some((timeline, replay));
}

/// The history of a server's own timeline, as another server reads it.
fn shown_history(data: &DataDir, branches: &Branches) -> Result<TimelineHistory, String> {
    data.history(branches.timeline(data.wal.branch))
}
