//! What comes into the rules and what comes out of them.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    agent::{
        archive::ArchiveSeen,
        order::{Order, Source, StopMode},
        room::Reserve,
        store::{Durable, Tenure},
    },
    domain::{
        Briefing, CloneMethod, ClusterId, CommittedTimings, Epoch, Generation, KeptWal, LostWal, Lsn, MemberId,
        MemberList, Moment, SettingsDocument, TimelineHistory, TimelineId, Timings, TimingsId, Uncovered, WalPosition,
        moment::TwoClocks,
        observation::{ClockView, Notice, ServerView, StandbyProgress, SyncView},
    },
    lease::message::Letter,
    postgres::{Knock, Place, Space, Touch, Vitals, waits_on_purpose},
};

/// Both kinds of time an event comes with.
#[derive(Debug, Clone, Copy, Default)]
pub struct Now {
    /// For deadlines that protect nothing.
    pub moment: Moment,
    /// For the lease.
    pub clocks: TwoClocks,
}

/// The timings the rules need.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// T_hold.
    pub hold: Duration,
    /// T_kill: after this long without an answer to a fence the agent kills the tree itself.
    pub kill: Duration,
    /// How long a crashed or stopped primary may keep its lease.
    pub primary_start: Duration,
    /// How long a promotion may take, from its order to its end.
    pub promote: Duration,
    /// How long a hang may take until it is ended.
    pub hang: Duration,
    /// How long a fast stop may take.
    pub stop: Duration,
}

impl Limits {
    /// Those among all timings.
    pub fn of(timings: &Timings) -> Limits {
        let Timings { hold, kill, primary_start, promote, stop, .. } = *timings;
        Limits { hold, kill, primary_start, promote, hang: timings.hang(), stop }
    }
}

/// The postmaster as its guard reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Postmaster {
    /// Runs.
    Running {
        /// Its process.
        pid: u32,
    },
    /// Its end was seen.
    Gone {
        /// No process of its tree is left.
        tree_empty: bool,
        /// The guard ended it: by order or at the deadline.
        fenced: bool,
        /// How it ended, for people.
        exit: String,
    },
}

/// What the agent knows of the process tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tree {
    /// Seen empty.
    Empty,
    /// A postmaster runs.
    Running {
        /// Its process.
        pid: u32,
    },
    /// The postmaster is gone, something may be left.
    Ending,
}

/// Where the lease holder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LeasePhase {
    /// Nothing is held or sought.
    #[default]
    Idle,
    /// No majority has answered yet.
    Seeking,
    /// Held until the deadline.
    Held,
    /// The deadline passed.
    Expired,
    /// A voter has sealed a higher epoch.
    Superseded,
}

/// The lease as its holder reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LeaseSight {
    /// The epoch held or sought.
    pub epoch: Epoch,
    /// Where it is.
    pub phase: LeasePhase,
    /// Until when it holds.
    pub deadline: TwoClocks,
    /// What the deadline was counted by.
    pub timings: TimingsId,
    /// It goes on by the agents of all other members, without a majority of managers.
    pub failsafe: bool,
    /// When that was asked for which it holds.
    pub confirmed: Option<TwoClocks>,
}

/// What a successful probe saw.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sight {
    /// Read-only.
    pub in_recovery: bool,
    /// Where its WAL ends.
    pub wal_end: WalPosition,
    /// That end is proven.
    pub wal_end_known: bool,
    /// Ancestry of the timeline of `wal_end`.
    pub history: TimelineHistory,
    /// Standby: replayed up to here.
    pub replay_lsn: Lsn,
    /// Standby: the WAL receiver streams.
    pub streaming: bool,
    /// Standby: whom it follows.
    pub upstream: Option<MemberId>,
    /// Standby: where the primary's WAL ended when it was heard last, and how long ago that is.
    pub upstream_end: Option<(WalPosition, Duration)>,
    /// Primary: who follows it.
    pub standbys: Vec<StandbyProgress>,
    /// Timeline of the last checkpoint.
    pub checkpoint_timeline: TimelineId,
    /// Standby: what replay waits for now, in PostgreSQL's word.
    pub replay_waits: String,
    /// Standby: replay is paused.
    pub replay_paused: bool,
    /// Standby: it is configured to follow nobody, and no WAL receiver runs.
    pub severed: bool,
    /// When it was started, and the like.
    pub server: ServerView,
}

impl Sight {
    /// Replay waits until a commit is as old as operators have set. While it does the startup process starts no WAL receiver.
    pub fn waits_on_purpose(&self) -> bool {
        self.in_recovery && waits_on_purpose(&self.replay_waits)
    }
}

/// What lies in the data directory of a stopped instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disk {
    /// Missing or empty.
    NoData,
    /// Complete.
    Present(DiskFacts),
    /// It was a data directory of this cluster, and what PostgreSQL needs to start is damaged or missing.
    Damaged(String),
    /// There is something that can't be used as it is, for a reason that no copy would change; it is never touched.
    Unusable(String),
}

impl Disk {
    /// PostgreSQL can't be started in it, nor could it be made there.
    pub fn is_unusable(&self) -> bool {
        matches!(self, Disk::Damaged(_) | Disk::Unusable(_))
    }
}

/// What PostgreSQL says in its log of not getting on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// The line as it stands there; the same words said again make another.
    pub line: String,
    /// What it says.
    pub said: String,
}

/// What `pg_control` and the files beside it say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiskFacts {
    /// The cluster's identity as PostgreSQL knows it.
    pub system_identifier: u64,
    /// It was writable when it last ran.
    pub was_primary: bool,
    /// It ended with a shutdown checkpoint.
    pub clean_shutdown: bool,
    /// It was a standby, and did not end cleanly.
    pub crashed_standby: bool,
    /// Timeline of the last checkpoint.
    pub checkpoint_timeline: TimelineId,
    /// The end of WAL as far as `pg_control` proves it: of the shutdown checkpoint.
    pub proven_end: Option<WalPosition>,
    /// Ancestry of the timeline of `proven_end`.
    pub history: TimelineHistory,
    /// A rewind was cut off.
    pub rewind_unfinished: bool,
    /// A start has to replay at least so far (`minRecoveryPoint`); `None` on a primary.
    pub required: Option<WalPosition>,
}

/// Work that takes longer than a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Create the data directory.
    Initdb,
    /// Start as a standby, once the tree is empty.
    Start(Option<Source>),
    /// Follow someone else without a restart.
    Follow(Option<Source>),
    /// Take the lease and promote.
    Promote(Tenure),
    /// Start again under the lease held. `resume`: it was started by an agent that is no more.
    Restart {
        /// The right it rests on.
        tenure: Tenure,
        /// Only wait for it and put the signal file back.
        resume: bool,
    },
    /// Stop.
    Stop {
        /// How.
        mode: StopMode,
        /// The lease is kept.
        keep_lease: bool,
    },
    /// Rewind to the source.
    Rewind(Source),
    /// Make what somebody else's standby has left a standby of this cluster, without copying it.
    TakeIn(Source),
    /// Copy the source.
    Clone(Source),
    /// Write a checkpoint.
    Checkpoint,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskEnd {
    /// As ordered.
    Succeeded,
    /// Not, and why. `harmless`: a promotion that never got as far as holding the lease; a copy or a rewind that found somebody
    /// else at work in the data directory; a data directory that is no standby's of this cluster, and was left as it is.
    Failed {
        /// For people.
        error: String,
        /// Nothing can have been written.
        harmless: bool,
    },
}

/// Everything that can wake this agent, as its rules see it.
#[derive(Debug, Clone)]
pub enum Event {
    /// Time has passed.
    Tick,
    /// The identity in the `pg_control` of what is taken over.
    Identified(u64),
    /// A task started a postmaster under a new guard.
    Spawned {
        /// Counts postmasters; tells late news of an older one apart.
        life: u64,
    },
    /// News from the guard.
    Guard {
        /// Of which postmaster.
        life: u64,
        /// What it says.
        postmaster: Postmaster,
    },
    /// The guard itself is gone.
    GuardDied {
        /// Of which postmaster.
        life: u64,
    },
    /// The agent itself killed what was left of a tree.
    TreeKilled {
        /// Of which postmaster.
        life: u64,
    },
    /// News from the lease holder.
    Lease(LeaseSight),
    /// The lease holder has found out something about clocks.
    Clocks(ClockView),
    /// Who confirms commits.
    Acks {
        /// Of which postmaster.
        life: u64,
        /// What was seen.
        view: SyncView,
    },
    /// What the rule of commits does not cover.
    Uncovered {
        /// Of which postmaster.
        life: u64,
        /// What was seen.
        view: Uncovered,
    },
    /// How archiving goes.
    Archive {
        /// Of which postmaster.
        life: u64,
        /// What was seen.
        seen: Box<ArchiveSeen>,
    },
    /// A copy was made.
    Copied(CloneMethod),
    /// So many bytes of WAL that this standby lacks came from other members; 0: none that is of use.
    Borrowed(u64),
    /// What is about to be undone was counted.
    Lost(LostWal),
    /// The manager tells what it has applied.
    Briefed(Box<Briefing>),
    /// A PostgreSQL that somebody had started without a guard was killed.
    StrayEnded,
    /// Another member's holder has lost the managers and asks whether it may go on.
    Failsafe {
        /// Whose.
        from: MemberId,
        /// What it asks.
        letter: Letter,
    },
    /// A new connection was begun.
    Knocked {
        /// To which postmaster.
        life: u64,
        /// What became of it.
        knock: Knock,
        /// How long it was waited.
        waited: Duration,
    },
    /// A probe answered, or why it didn't.
    Probed {
        /// Of which postmaster.
        life: u64,
        /// What it saw.
        result: Result<Box<Sight>, String>,
    },
    /// A block was written to a volume, or is still being written.
    Touched {
        /// Which.
        place: Place,
        /// What became of it; `None`: it has not ended, and is waited for in vain.
        touch: Option<Touch>,
        /// How long it had been waited for then.
        waited: Duration,
        /// How long one may take on a disk that finishes nothing else.
        patience: Duration,
    },
    /// How much room there is.
    Room(Space),
    /// What keeps WAL from being removed.
    Kept(KeptWal),
    /// A look at recovery or replay.
    Redo {
        /// Of which postmaster.
        life: u64,
        /// What was seen.
        vitals: Vitals,
        /// What PostgreSQL said last of what keeps it.
        words: Option<Complaint>,
    },
    /// An order for this very agent.
    Order(Order),
    /// A task goes on.
    Progress {
        /// Where it is.
        phase: String,
        /// Bytes done.
        done: u64,
        /// Bytes in all, 0 unknown.
        total: u64,
    },
    /// A task ended.
    Done(TaskEnd),
    /// The data directory was made safe and read.
    Surveyed {
        /// After which postmaster.
        life: u64,
        /// What was found.
        disk: Disk,
    },
    /// The end of WAL of the stopped instance was read.
    WalEndRead {
        /// After which postmaster.
        life: u64,
        /// Where it is.
        end: WalPosition,
        /// Ancestry of its timeline.
        history: TimelineHistory,
    },
    /// The end of WAL of the stopped instance could not be found; it is sought again.
    WalEndUnread {
        /// After which postmaster.
        life: u64,
        /// Why.
        error: String,
    },
}

/// What the shell does, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Tell the guard to kill the tree now.
    Fence,
    /// Kill the tree without the guard.
    KillTree,
    /// Write [`Durable`] and wait for the disk. On failure the process ends.
    Persist,
    /// Stop renewing.
    Release,
    /// Renew under an epoch that this host already holds.
    Hold(Tenure),
    /// The lease datagrams carry this identity from now on.
    Identify(ClusterId, Generation),
    /// The lease datagrams carry this position from now on.
    SetWal(WalPosition),
    /// The lease is counted by these timings as soon as the acceptors have them.
    Timings(Box<CommittedTimings>),
    /// Operators have set otherwise who streams from whom, how old a commit is when it is replayed, or what PostgreSQL is
    /// configured with.
    Streams(Box<SettingsDocument>),
    /// Give PostgreSQL what is set of the archive, and what a standby may take from it.
    Archive,
    /// Whom to ask in failsafe from now on.
    Members(MemberList),
    /// Managers that were moved by command, and where they are: for the lease, and for whom PostgreSQL lets in.
    Moved(BTreeMap<MemberId, String>),
    /// To the holder that asked in failsafe.
    Answer(Letter),
    /// Tell every manager.
    Notice(Notice),
    /// Begin a task.
    Begin(Task),
    /// Write a checkpoint beside everything else.
    CheckpointBeside,
    /// Make the shutdown that somebody has begun a fast one.
    EndShutdown,
    /// Make the stopped data directory safe and read it; also find the end of its WAL.
    Survey {
        /// Reading it may take a while, and a restart in place is not to wait for it.
        wal_end: bool,
    },
    /// Keep something back on a volume, or free it. A task that begins after this finds it done.
    Reserve(Reserve),
    /// Drop the running task, and why.
    Cancel(&'static str),
    /// Answer the order.
    Reply(Result<(), Refusal>),
}

/// Why an order is not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For people.
    pub reason: String,
    /// What this agent has accepted, when that is why.
    pub highest_epoch: Epoch,
}

/// How the agent begins.
#[derive(Debug, Clone)]
pub struct Start {
    /// This member.
    pub me: MemberId,
    /// Those of this host's file.
    pub timings: Timings,
    /// What it kept.
    pub durable: Durable,
    /// What an earlier agent left behind.
    pub found: Found,
    /// What lies in the data directory when no postmaster runs.
    pub disk: Option<Disk>,
    /// The system identifier in `pg_control`.
    pub system: Option<u64>,
}

/// What an earlier agent left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// No guard, and no process of this data directory.
    Nothing,
    /// A guard whose postmaster runs.
    Running {
        /// The postmaster.
        pid: u32,
        /// The epoch the guard is armed with, 0 for a standby.
        armed: Epoch,
        /// Time left until the guard's deadline.
        remaining: Duration,
    },
}

impl Task {
    /// What was known of the data directory may be no longer true when it ends.
    pub fn touches_data(&self) -> bool {
        matches!(self, Task::Initdb | Task::Rewind(_) | Task::TakeIn(_) | Task::Clone(_) | Task::Start(_))
    }

    /// The name shown in the status.
    pub fn kind(&self) -> &'static str {
        match self {
            Task::Initdb => "initdb",
            Task::Start(_) | Task::Follow(_) => "start",
            Task::Promote(_) => "promote",
            Task::Restart { .. } => "restart",
            Task::Stop { .. } => "stop",
            Task::Rewind(_) => "rewind",
            Task::TakeIn(_) => "take-in",
            Task::Clone(_) => "clone",
            Task::Checkpoint => "checkpoint",
        }
    }
}
