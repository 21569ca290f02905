//! Names of the events that people and alerts look for. A name never changes
//! its meaning; a new meaning gets a new name. Used as the field `event`:
//!
//! ```text
//! use matriarch::telemetry::events;
//! tracing::info!(event = events::PRIMARY_CHANGED, epoch = 4, from = "n1", to = "n2", "primary changed");
//! ```
//!
//! Field names that recur: `member`, `epoch`, `timeline`, `lsn`, `from`, `to`,
//! `reason`, `error`, and times with their unit last (`elapsed_ms`).

/// A process of ours is up. Fields: `process`, `version`.
pub const STARTED: &str = "process.started";
/// It was asked to end and does. Fields: `signal`.
pub const STOPPING: &str = "process.stopping";
/// It ends because it can't go on. Fields: `error`.
pub const FAILED: &str = "process.failed";
/// A bug of ours. Fields: `place`, `message`.
pub const PANIC: &str = "process.panic";

/// The cluster was founded. Fields: `cluster_id`, `member`.
pub const GENESIS: &str = "cluster.genesis";
/// Another Raft leader, as seen by this manager. Fields: `leader`, `term`.
pub const LEADER_CHANGED: &str = "raft.leader_changed";

/// The Raft group was changed by one entry. Fields: `step`, `rule`.
pub const GROUP_CHANGED: &str = "raft.group_changed";
/// A member was added or removed, or got a new Raft node. Fields: `command`, `member`, `rule`.
pub const MEMBERS_CHANGED: &str = "cluster.members_changed";
/// This manager has no log it may vote with. Fields: `evidence`.
pub const LOG_LOST: &str = "raft.log_lost";

/// An operator began a new generation here. Fields: `generation`, `member`.
pub const RECOVERED: &str = "cluster.recovered";

/// An epoch was ended by the cluster. Fields: `epoch`, `previous`, `reason`, `rule`.
pub const EPOCH_FENCED: &str = "epoch.fenced";
/// A member was granted to become primary. Fields: `epoch`, `member`, `rule`.
pub const GRANTED: &str = "epoch.granted";
/// The granted member is open for writes. Fields: `epoch`, `member`, `timeline`.
pub const PRIMARY_CHANGED: &str = "primary.changed";
/// The holder gave the lock back. Fields: `epoch`, `member`, `clean`.
pub const RELEASED: &str = "epoch.released";
/// A program of the operator's was run. Fields: `hook`, `on`, `program`, `how`, `printed`, `elapsed_ms`.
pub const HOOK: &str = "hook.run";
/// The operator's program was run against a host. Fields: `member`, `epoch`, `succeeded`, `how`.
pub const STONITH: &str = "host.stonith";
/// A command was committed that has no event of its own. Fields: `command`, `epoch`, `rule`.
pub const COMMITTED: &str = "decision.committed";
/// Operators have set something. Fields: `command`, `epoch`, `rule`.
pub const SETTINGS_CHANGED: &str = "settings.changed";
/// Other timings are in force. Fields: `timings`, `profile`.
pub const TIMINGS_CHANGED: &str = "timings.changed";
/// The cluster is paused, or decides again. Fields: `reason`.
pub const PAUSED: &str = "cluster.paused";
/// Failovers after crashes count no more. Fields: `command`, `epoch`, `rule`.
pub const ACKNOWLEDGED: &str = "failovers.acknowledged";
/// Clients are kept out of a primary that crashed, or may come in again. Fields: `command`, `epoch`, `rule`.
pub const KEPT_OUT: &str = "clients.kept-out";
/// A standby streams from another standby from now on, or from the primary again. Fields: `command`, `epoch`, `rule`.
pub const CASCADE: &str = "replication.source_changed";
/// The address for standbys goes to a member, or ends with one. Fields: `command`, `epoch`, `rule`, for the first `member`.
pub const READER: &str = "reader.address";
/// Other standbys confirm commits from now on. Fields: `command`, `epoch`, `rule`.
pub const SYNC_CHANGED: &str = "commits.rule";
/// The connection of a standby that was not heard for `tcp_ms` is ended. Fields: `slot`, `pid`.
pub const SENDER_ENDED: &str = "replication.sender_ended";
/// A slot that held WAL back on a volume that is nearly full is given up. Fields: `slot`, `bytes`, `of_member`.
pub const SLOT_GIVEN_UP: &str = "replication.slot_given_up";
/// Commits that the rule does not cover: a role or database waits for less, somebody confirms who is no member, ALTER SYSTEM
/// wins over it; or that is over. Fields: `what`.
pub const UNCOVERED: &str = "commits.uncovered";
/// What ALTER SYSTEM had set of the names or the level of commits is undone. Fields: `name`.
pub const OVERRIDE_UNDONE: &str = "commits.override_undone";
/// WAL that only a crashed primary had was given to its successor. Fields: `member`, `timeline`, `bytes`, `to`.
pub const RESCUED: &str = "failover.rescued";
/// WAL that this member had removed came from others that still had it. Fields: `bytes`.
pub const BORROWED: &str = "rejoin.wal_borrowed";
/// What a former primary had alone was counted before it is undone. Fields: `timeline`, `bytes`, `transactions`.
pub const LOST: &str = "failover.lost";
/// A member is in maintenance, or is so no more. Fields: `member`.
pub const MAINTENANCE: &str = "member.maintenance";
/// Nothing is done though something should be. Fields: `reason`.
pub const HOLD: &str = "decision.hold";

/// The lease is held by this host. Fields: `epoch`.
pub const LEASE_HELD: &str = "lease.held";
/// It ran out or was refused. Fields: `epoch`, `reason`.
pub const LEASE_LOST: &str = "lease.lost";
/// The lease goes on without a majority of managers, or does no more. Fields: `epoch`, `active`.
pub const FAILSAFE: &str = "lease.failsafe";
/// Clocks run at rates too different from this holder's, or do no more. Fields: `member`, `ppm`, `own`.
pub const CLOCK_UNFIT: &str = "clock.unfit";
/// PostgreSQL of this host was killed so that it can't write. Fields: `epoch`, `reason`, `elapsed_ms`.
pub const FENCED: &str = "postgres.fenced";
/// PostgreSQL was started. Fields: `role`, `epoch`.
pub const POSTGRES_STARTED: &str = "postgres.started";
/// PostgreSQL ended without being asked. Fields: `status`.
pub const POSTGRES_CRASHED: &str = "postgres.crashed";
/// PostgreSQL was promoted. Fields: `epoch`, `timeline`, `lsn`, `elapsed_ms`.
pub const PROMOTED: &str = "postgres.promoted";

/// PostgreSQL refused to start with its configuration; the next start has another, where there is one. Fields: `error`.
pub const CONFIGURATION_REFUSED: &str = "postgres.configuration_refused";

/// Recovery, replay or streaming of this host stands still. Fields: `reason`.
pub const STUCK: &str = "postgres.stuck";

/// A member is coming back into line. Fields: `method` (follow, rewind, reclone), `from`.
pub const REJOIN_STARTED: &str = "rejoin.started";
/// It follows the primary again. Fields: `method`, `elapsed_ms`.
pub const REJOINED: &str = "rejoin.finished";
/// One try failed; another follows. Fields: `method`, `error`.
pub const REJOIN_FAILED: &str = "rejoin.failed";

/// An operator's request was taken on. Fields: `operation`, `kind`, `from`, `to`.
pub const OPERATION_STARTED: &str = "operation.started";
/// It ended. Fields: `operation`, `succeeded`, `reason`.
pub const OPERATION_FINISHED: &str = "operation.finished";

/// Where the router leads clients has changed. Fields: `primary`, `epoch`.
pub const ROUTE_CHANGED: &str = "route.changed";
/// Sessions were cut because their primary was replaced. Fields: `sessions`, `epoch`.
pub const SESSIONS_CUT: &str = "route.sessions_cut";
/// The router's knowledge is too old to work on. Fields: `age_ms`.
pub const ROUTE_STALE: &str = "route.stale";
/// PostgreSQL would have acknowledged a commit whose wait for standbys was cancelled; the router said instead that its
/// outcome is unknown. Fields: `backend`, `total`.
pub const FALSE_ACK_TURNED: &str = "route.false_ack_turned";
/// Sessions came in that are not watched for that; at most once a minute. Fields: `open` now, and since the start `tls`,
/// `gss`, `muted` and `false_acks_turned`.
pub const SESSIONS_UNWATCHED: &str = "route.sessions_unwatched";
/// Somebody asked for a change over the REST API and was heard. Fields: `user`, `client`, `method`, `path`, `status`.
pub const REST_CHANGE: &str = "rest.change";
/// Somebody asked for a change over the REST API and may not. Fields: `client`, `method`, `path`, `error`.
pub const REST_REFUSED: &str = "rest.refused";
/// New certificates are in use. Fields: `certificate`.
pub const CERTIFICATE_RELOADED: &str = "route.certificate_reloaded";
/// Changed files can't be used; what was read before stays. Fields: `error`.
pub const CERTIFICATE_REFUSED: &str = "route.certificate_refused";
