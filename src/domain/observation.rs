//! What was seen of a member, and when. Observations live in memory and travel
//! by RPC; the log holds only what decisions must survive on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use super::{
    ArchiveView, ConfigurationView, CureView, EndCause, Epoch, Format, KeptWal, LostWal, Lsn, MemberId, Moment,
    RoomView, TimelineHistory, TimelineId, TimingsId, Uncovered, WalPosition,
};

/// Rewinds that may fail in a row before the member is cloned anew.
pub const REWINDS_TRIED: u64 = 2;

/// What an agent says of its PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PostgresState {
    /// No data directory, or an empty one.
    NoData,
    /// A complete data directory and no process.
    Stopped,
    /// Started, doesn't accept connections yet.
    Starting,
    /// Accepts read-only connections.
    Standby,
    /// A promotion runs.
    Promoting,
    /// Accepts writes.
    Primary,
    /// A stop runs.
    Stopping,
    /// Was primary, has no process, and the lease is still held: may be restarted in place.
    Crashed,
    /// initdb, rewind or clone works on the data directory.
    Busy,
    /// Needs an operator.
    Failed,
    /// It was taken over while it ran, and accepts writes as before. No lease was ever held for it.
    Unleased,
}

/// Long work that runs on a host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Work {
    /// The order that asked for it.
    pub order: u64,
    /// Its name: initdb, start, promote, restart, stop, rewind, clone, checkpoint.
    pub kind: String,
    /// Where it is.
    pub phase: String,
    /// Bytes done so far.
    pub done_bytes: u64,
    /// Bytes in all, 0 when not known.
    pub total_bytes: u64,
    /// Since this phase began, in milliseconds, when that was said.
    pub phase_ms: u64,
}

impl Work {
    /// Bytes a second since this phase began, when that can be said.
    pub fn rate(&self) -> Option<u64> {
        let rate = u128::from(self.done_bytes) * 1000 / u128::from(self.phase_ms.max(1));
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        (self.phase_ms >= 500 && self.total_bytes > 0 && rate > 0).then_some(rate)
    }
}

/// For people: what, where it is, how much of how much, how fast, and how long yet.
impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MB: u64 = 1 << 20;
        write!(f, "{} {}", self.kind, self.phase)?;
        if self.total_bytes == 0 {
            return Ok(());
        }
        let (done, total) = (self.done_bytes, self.total_bytes);
        write!(f, " {} of {} MB, {} %", done / MB, total.div_ceil(MB), done.saturating_mul(100) / total)?;
        match self.rate() {
            Some(rate) => write!(f, ", {} MB/s, {} s left", rate / MB, total.saturating_sub(done).div_ceil(rate)),
            None => Ok(()),
        }
    }
}

/// How the last order ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OrderResult {
    /// The order.
    pub order: u64,
    /// What it was.
    pub kind: String,
    /// `None` when it succeeded.
    pub error: Option<String>,
}

/// A standby as its primary sees it (`pg_stat_replication`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StandbyProgress {
    /// Which member.
    pub member: MemberId,
    /// `streaming`, `catchup`, `backup`.
    pub state: String,
    /// What it has flushed.
    pub flush_lsn: Lsn,
    /// Bytes of WAL it lacks.
    pub lag_bytes: u64,
}

/// The state of a lease as its holder sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct LeaseView {
    /// The epoch held or sought; 0 when none is.
    pub epoch: Epoch,
    /// A majority answered and the deadline has not passed.
    pub held: bool,
    /// Until the deadline.
    pub remaining_ms: u64,
    /// What the deadline was counted by.
    pub timings: TimingsId,
    /// It goes on without a majority of managers, because the agents of all other members agree.
    pub failsafe: bool,
}

/// What a holder has found out about clocks. Stays after its lease, until the agent starts anew.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct ClockView {
    /// Its own are off: most others' differ from them.
    pub own_off: bool,
    /// Voters whose clocks are off against its own, in millionths, above 0 when theirs run faster.
    pub off: BTreeMap<MemberId, i64>,
}

/// What an agent knows and has promised for failsafe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FailsafeView {
    /// Its configuration allows it.
    pub enabled: bool,
    /// The version of the list of members it has applied; 0: none.
    pub members: u64,
    /// Until it may be promoted again; 0: it may.
    pub promise_left_ms: u64,
    /// An epoch that nobody was above …
    pub confirmed: Epoch,
    /// … so long ago: it holds it, or has promised its holder.
    pub confirmed_age_ms: u64,
}

/// One of the layers beyond lease and guard, as it stands on a host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LayerView {
    /// `kernel lease`, `watchdog`, `client reset`, `virtual address`, `address lease`.
    pub name: String,
    /// `off`, `ready` (nothing to protect here now), `active`, or `unavailable: …`, `failed: …`, `clearing: …`.
    pub state: String,
}

/// Whom the holder of a lease reaches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LeaseReach {
    /// The membership that the last renewal was counted under (see [`super::Membership::id`]); 0 when none was.
    pub counted: u64,
    /// Members whose managers answered each of the last three renewals, voters or not.
    pub answering: BTreeSet<MemberId>,
}

/// By which rule a primary acknowledges commits, and whom it hears.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct SyncView {
    /// The number of the last change of rules that PostgreSQL goes by; 0: none.
    pub applied: u64,
    /// Everything that was acknowledged before is where this rule says, too.
    pub effective: bool,
    /// It lets no clients in: it was restarted after a crash, and what it has is not confirmed yet.
    pub gate_closed: bool,
    /// How long ago each standby that streams, or that the rule names, was last heard, in milliseconds.
    pub unheard_ms: BTreeMap<MemberId, u64>,
}

/// What a standby has heard from the primary it streams or streamed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct HeardOfPrimary {
    /// Where the primary's WAL ended when it was heard last; zero: unknown.
    pub end: WalPosition,
    /// All that the primary had written this long ago is here, in milliseconds; `None`: nobody knows.
    pub complete_ago_ms: Option<u64>,
    /// The same of what is replayed.
    pub replayed_ago_ms: Option<u64>,
}

/// What an agent says of its guard when that has not started PostgreSQL, which was taken over while it ran.
pub const TAKEN_OVER: &str = "taken over";

/// The layer of the address for standbys, by which the Raft leader tells who could have it.
pub const READER_LAYER: &str = "virtual address for standbys";

impl AgentView {
    /// Its host could have the address for standbys, or has it.
    pub fn may_have_reader(&self) -> bool {
        self.layers.iter().any(|l| l.name == READER_LAYER && matches!(l.state.as_str(), "ready" | "active"))
    }

    /// Its guard is not the parent of the postmaster, which knows nothing of Matriarch's configuration before it is started again.
    pub fn is_taken_over(&self) -> bool {
        self.guard == TAKEN_OVER
    }
}

/// What an agent says of itself and its PostgreSQL at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentView {
    /// Which member.
    pub member: MemberId,
    /// Changes with each start of the agent.
    pub session: u64,
    /// Why the highest epoch that ended here did, as far as this start of the agent knows.
    pub ended_by: EndCause,
    /// What PostgreSQL does.
    pub state: PostgresState,
    /// `server_version_num`, 0 unknown.
    pub server_version: u32,
    /// From `pg_control`; `None` before there is one.
    pub system_identifier: Option<u64>,
    /// Where the WAL of this instance ends.
    pub wal_end: WalPosition,
    /// `wal_end` is proven: streamed in this life, reached the end of local WAL, or stopped and read.
    pub wal_end_known: bool,
    /// Standby: replayed up to here.
    pub replay_lsn: Lsn,
    /// Standby: the WAL receiver is streaming.
    pub streaming: bool,
    /// For so long that has been so without a break, in milliseconds.
    pub streaming_ms: u64,
    /// Standby: replay waits on purpose, until a commit is as old as operators have set. Before it goes on no WAL receiver that
    /// ended is started again.
    pub waits_on_purpose: bool,
    /// Standby: whom it follows.
    pub upstream: Option<MemberId>,
    /// Standby, or what was one: what it knows of the primary's WAL.
    pub heard: HeardOfPrimary,
    /// Ancestry of the timeline of `wal_end`.
    pub history: TimelineHistory,
    /// The lease.
    pub lease: LeaseView,
    /// Whom its renewals reach.
    pub reach: LeaseReach,
    /// Highest epoch this agent has persisted.
    pub accepted_epoch: Epoch,
    /// Highest epoch this agent has persisted as ended.
    pub ended_epoch: Epoch,
    /// Highest epoch whose process tree was verified empty.
    pub fenced_epoch: Epoch,
    /// A stopped instance: `pg_control` says it was a primary.
    pub was_primary: bool,
    /// A stopped instance: it was shut down cleanly.
    pub clean_shutdown: bool,
    /// A stopped instance: `pg_control` says it was a standby that did not end cleanly.
    pub crashed_standby: bool,
    /// Long work that runs now.
    pub work: Option<Work>,
    /// How the last order ended.
    pub last_order: Option<OrderResult>,
    /// Primary only.
    pub standbys: Vec<StandbyProgress>,
    /// Timeline of the last checkpoint.
    pub checkpoint_timeline: TimelineId,
    /// The last Checkpoint order that was carried out.
    pub checkpoints_done: u64,
    /// The order by which its data was copied last, 0: none; `None` from an agent that doesn't say.
    pub copied_for: Option<u64>,
    /// `guarding`, `none`, `adopted` (found by a later agent), or [`TAKEN_OVER`].
    pub guard: String,
    /// Why it isn't healthy, for people.
    pub problem: Option<String>,
    /// A rewind was cut off.
    pub rewind_unfinished: bool,
    /// Failed rewinds in a row.
    pub rewind_failures: u64,
    /// Failed clones in a row.
    pub clone_failures: u64,
    /// The last hook that failed and has not succeeded since, in words; `None`: none.
    pub failed_hook: Option<String>,
    /// It crashed out of the lock not long ago: whoever else can is to be primary.
    pub unsteady: bool,
    /// PostgreSQL crashed there less than `failover_calm` ago, whatever followed.
    pub crashed_lately: bool,
    /// A crash left WAL here that a successor may have.
    pub gives_wal: bool,
    /// What is wrong with the disks under PostgreSQL, for people: nothing can be granted to it. `None` when writes end, as
    /// far as is known, and from an agent that doesn't look.
    pub storage: Option<String>,
    /// A copy into which nothing has been streamed yet: what its source acknowledged since may be missing.
    pub never_streamed: bool,
    /// Its agent was told that the cluster is paused, and minds it.
    pub paused: bool,
    /// It ended cleanly without an order while the cluster was paused: somebody stopped it, and may be at work on it.
    pub stopped_by_hand: bool,
    /// How this host fences.
    pub fence: FenceView,
    /// The layers of this host; none from an agent that has none.
    pub layers: Vec<LayerView>,
    /// Clocks.
    pub clock: ClockView,
    /// Failsafe.
    pub failsafe: FailsafeView,
    /// Free space; `None` until it was looked at, and from an agent that doesn't look.
    pub room: Option<RoomView>,
    /// What keeps WAL from being removed.
    pub kept_wal: KeptWal,
    /// Recovery or replay, while it is watched; `None` when there is no need to.
    pub redo: Option<RedoView>,
    /// Primary: by which rule it acknowledges commits.
    pub sync: SyncView,
    /// It follows nobody, and won't before an order of an epoch it accepts then: with `accepted_epoch` a promise not to
    /// confirm a commit of an earlier one any more.
    pub severed: bool,
    /// Standby: the epoch whose primary it follows, under the name of that epoch; 0: not known.
    pub follows_epoch: Epoch,
    /// Primary: what its rule of commits does not cover.
    pub uncovered: Uncovered,
    /// What was lost of its WAL when it was primary, the newest last.
    pub lost: Vec<LostWal>,
    /// Why it doesn't get where it should.
    pub cure: CureView,
    /// How archiving goes, and what it has from the archive.
    pub archive: ArchiveView,
    /// What a running server says of itself, for people. Nothing is decided by it.
    pub server: ServerView,
    /// How PostgreSQL's configuration stands to what was committed.
    pub configuration: ConfigurationView,
}

/// What a running server says of itself beside its WAL; nothing of one that doesn't answer. Times are by its host's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ServerView {
    /// When it was started, in milliseconds since 1970; 0: not known.
    pub started_ms: u64,
    /// Standby: when the last transaction that it has replayed was committed; 0: none yet.
    pub replayed_at_ms: u64,
    /// A setting was changed that takes effect with a restart.
    pub pending_restart: bool,
}

/// Where recovery or replay is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct RedoView {
    /// What it is at: a segment of WAL, or a position.
    pub at: String,
    /// So long it has not got on, in milliseconds.
    pub still_ms: u64,
    /// That is too long.
    pub stands: bool,
}

/// How a host ends a PostgreSQL that must not write, in words for people.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct FenceView {
    /// `cgroup.kill`, or the walk and why.
    pub method: String,
    /// How long killing a tree of 100 processes took, measured at the agent's start; 0 unknown.
    pub kill_micros: u64,
    /// Whether the guard is locked into memory.
    pub memory: String,
    /// Its priority.
    pub priority: String,
    /// Whether the OOM killer passes it by.
    pub oom: String,
}

/// What a voter's lease acceptor has promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Promise {
    /// Durable: no renewal of an epoch below this one is acked any more.
    pub sealed: Epoch,
    /// Epoch of the last renewal acked.
    pub epoch: Epoch,
    /// No promise is left.
    pub lapsed: bool,
    /// Until it lapses.
    pub remaining_ms: u64,
    /// The highest flush position the holder ever reported.
    pub highest: WalPosition,
    /// The epoch was renewed here at least once since the acceptor started.
    pub renewed: bool,
    /// How long ago a holder with an open PostgreSQL renewed here last, in milliseconds; `None`: none has since the
    /// acceptor started.
    pub renewed_ago_ms: Option<u64>,
    /// Nothing was heard of the holder for half of the promise that its last renewal was given: several renewals in a
    /// row are missing. Never so before the first one since the acceptor started.
    pub quiet: bool,
    /// The newest list of members that the holder of `epoch` named; 0: none.
    pub members: u64,
    /// This host's clocks are off against the holder's that measured them last, by at least so many
    /// millionths (above 0: they run faster); 0: not, as far as is known.
    pub clock_off_ppm: i64,
    /// The membership that was effective here when this was said (see [`super::Membership::id`]);
    /// 0 for none, or while a newer one in the log can't be acted on yet.
    pub membership: u64,
}

/// A word from a host's agent about the end of an epoch it held.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Notice {
    /// Who held it.
    pub member: MemberId,
    /// The epoch that ended.
    pub epoch: Epoch,
    /// The process tree is verified empty; otherwise it crashed and may be restarted in place.
    pub fenced: bool,
    /// Where its WAL ends.
    pub end: WalPosition,
    /// A clean shutdown: `end` is proven.
    pub clean: bool,
    /// Why it ended.
    pub cause: EndCause,
}

/// The last the leader heard of one host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observation {
    /// When the leader received it.
    pub at: Moment,
    /// What the agent said; `None` when the manager can't reach it.
    pub agent: Option<AgentView>,
    /// When the agent said it, on the leader's clock.
    pub agent_at: Moment,
    /// What the host's lease acceptor has promised.
    pub promise: Promise,
    /// What its manager can apply.
    pub format: Format,
    /// What a sync of its Raft log takes, by those of the last minute; `None` when there were too few.
    pub disk: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_told_with_what_is_known_of_it() {
        let work = |done: u64, total: u64, phase_ms| {
            let (kind, phase) = ("clone".to_owned(), "pg_basebackup".to_owned());
            Work { kind, phase, done_bytes: done << 20, total_bytes: total << 20, phase_ms, ..Work::default() }
                .to_string()
        };
        assert_eq!(work(0, 0, 900), "clone pg_basebackup");
        assert_eq!(work(0, 2048, 900), "clone pg_basebackup 0 of 2048 MB, 0 %");
        assert_eq!(work(10, 2048, 100), "clone pg_basebackup 10 of 2048 MB, 0 %", "too early to say how fast");
        assert_eq!(work(512, 2048, 4_000), "clone pg_basebackup 512 of 2048 MB, 25 %, 128 MB/s, 12 s left");
    }
}
