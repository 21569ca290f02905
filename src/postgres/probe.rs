//! What the local server says of itself: one query over a connection that stays.

use std::{fs, time::Duration};

use tokio_postgres::SimpleQueryRow;

use super::{
    files,
    instance::Instance,
    session::{Session, SqlError},
};
use crate::domain::{
    Lsn, MemberId, TimelineId, WalPosition,
    observation::{ServerView, StandbyProgress},
    sync::read_standby_name,
};

/// What the local server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// It is a standby.
    pub in_recovery: bool,
    /// Where its WAL ends: a primary's flush position, a standby's received or replayed position.
    pub wal_end: WalPosition,
    /// `wal_end` covers all WAL this instance has. A standby that still replays what it finds on disk after a
    /// start doesn't know yet.
    pub wal_end_known: bool,
    /// Standby: replayed up to here. Primary: the flush position.
    pub replay_lsn: Lsn,
    /// Standby: the WAL receiver is streaming.
    pub streaming: bool,
    /// Standby: a WAL receiver runs, streaming or not.
    pub has_receiver: bool,
    /// Standby: where the primary's WAL ended when it was heard last, and how long ago that is.
    pub upstream_end: Option<(WalPosition, Duration)>,
    /// Standby: whom the WAL receiver is connected to, when it is a member.
    pub upstream: Option<MemberId>,
    /// Standbys connected to this server.
    pub standbys: Vec<StandbyProgress>,
    /// Timeline of the last checkpoint; a rewind from this server needs it to be the current one.
    pub checkpoint_timeline: TimelineId,
    /// Standby: what replay waits for now (`wait_event` of the startup process); empty: it works, or nothing is known.
    pub replay_waits: String,
    /// Standby: replay is paused, by hand or by PostgreSQL itself.
    pub replay_paused: bool,
    /// Standby: it is configured to follow nobody, and no WAL receiver runs.
    pub severed: bool,
    /// Drawn by initdb.
    pub system_identifier: u64,
    /// `server_version_num`.
    pub server_version: u32,
    /// `synchronous_standby_names` in force.
    pub sync_names: String,
    /// When it was started, and the like.
    pub server: ServerView,
}

/// The local server didn't answer the probe.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Nobody listens.
    #[error("nobody listens on the socket of the local server")]
    Refused,
    /// It starts or shuts down (57P03).
    #[error("the local server doesn't accept connections now: {0}")]
    NotYet(String),
    /// No answer in time: hung, frozen, or out of everything.
    #[error("the local server didn't answer the probe within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// It answered with an error (too many connections, authentication, …): it is alive.
    #[error("the local server is alive and answered: {message} (SQLSTATE {sqlstate})")]
    AnsweredOther {
        /// Five characters.
        sqlstate: String,
        /// The server's words.
        message: String,
    },
    /// The connection broke, or the answer was odd.
    #[error("the probe of the local server failed")]
    Broken(#[source] SqlError),
}

impl ProbeError {
    /// A server process gave an answer.
    pub fn is_alive(&self) -> bool {
        matches!(self, ProbeError::NotYet(_) | ProbeError::AnsweredOther { .. })
    }

    fn from_sql(error: SqlError, deadline: Duration) -> Self {
        let not_yet = error.is_not_yet();
        match error {
            SqlError::Refused { .. } => ProbeError::Refused,
            SqlError::Timeout { .. } => ProbeError::Timeout(deadline),
            SqlError::Database { message, .. } if not_yet => ProbeError::NotYet(message),
            SqlError::Database { sqlstate, message, .. } => ProbeError::AnsweredOther { sqlstate, message },
            other => ProbeError::Broken(other),
        }
    }
}

/// Everything at once, as text. Functions that only one role may call are asked only there. Whether it follows nobody is
/// looked at before where its WAL ends: `OFFSET 0` keeps that among what is scanned, and the end is of what is shown then.
/// What only recovery goes by is left out of the pending restart, or a promoted standby would have one for good.
const QUERY: &str = "\
SELECT pg_is_in_recovery() AS in_recovery,
  CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() END AS received,
  CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() END AS replayed,
  CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() END AS paused,
  CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn() END AS flushed,
  CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_flush_lsn()) END AS walfile,
  c.timeline_id AS checkpoint_timeline, r.min_recovery_end_timeline AS recovery_timeline,
  s.system_identifier, w.pid AS receiver, w.status AS receiver_status, w.received_tli,
  w.sender_host, w.sender_port,
  CASE WHEN w.last_msg_send_time <> w.last_msg_receipt_time THEN w.latest_end_lsn END AS upstream_end,
  (extract(epoch FROM clock_timestamp() - w.last_msg_receipt_time) * 1000)::bigint AS upstream_age_ms,
  (SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup' LIMIT 1) AS startup_wait,
  current_setting('server_version_num') AS version,
  current_setting('synchronous_standby_names') AS sync_names,
  l.follows_nobody, g.segment_bytes, g.pending_restart,
  (extract(epoch FROM pg_postmaster_start_time()) * 1000)::bigint AS started_ms,
  CASE WHEN pg_is_in_recovery() THEN (extract(epoch FROM pg_last_xact_replay_timestamp()) * 1000)::bigint END
    AS replayed_at_ms,
  (SELECT string_agg(application_name || E'\\t' || coalesce(state, '') || E'\\t' || coalesce(flush_lsn, '0/0'), E'\\n')
   FROM pg_stat_replication) AS standbys
FROM (SELECT current_setting('primary_conninfo') = ''
    AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'walreceiver') AS follows_nobody OFFSET 0) l,
  (SELECT max(CASE WHEN name = 'wal_segment_size' THEN setting::bigint END) AS segment_bytes,
    bool_or(pending_restart AND name NOT LIKE 'recovery_target%') AS pending_restart FROM pg_settings) g,
  pg_control_checkpoint() c, pg_control_recovery() r, pg_control_system() s
  LEFT JOIN pg_stat_wal_receiver w ON true";

impl Instance {
    /// Asks the local server how it is, over `session`, which is made when it is missing or broken and dropped
    /// when it stopped answering. The whole takes no longer than `deadline`.
    ///
    /// # Errors
    /// See [`ProbeError`]; it tells a dead server from a busy one.
    pub async fn probe(&self, session: &mut Option<Session>, deadline: Duration) -> Result<Probe, ProbeError> {
        let ask = async {
            // A session whose server is gone gets one more chance with a new one.
            if let Some(result) = self.ask(session).await {
                return result;
            }
            *session = Some(self.connect_within(deadline).await?);
            self.ask(session).await.unwrap_or_else(|| Err(closed()))
        };
        let result = tokio::time::timeout(deadline, ask).await;
        let result = result.unwrap_or(Err(SqlError::Timeout { doing: "probing", after: deadline }));
        if result.is_err() {
            *session = None;
        }
        result.map_err(|error| ProbeError::from_sql(error, deadline))
    }

    /// `None` when there is no session, or it turned out to be closed.
    async fn ask(&self, session: &mut Option<Session>) -> Option<Result<Probe, SqlError>> {
        let open = session.as_mut().filter(|s| !s.is_closed())?;
        for last_try in [false, true] {
            return match open.query("probing", QUERY, Duration::from_secs(3600)).await {
                Ok(rows) => Some(self.read(open, rows.first()).await),
                // A promotion between two of its functions fails the query once.
                Err(SqlError::Database { sqlstate, .. }) if sqlstate == "55000" && !last_try => continue,
                Err(SqlError::Broken { .. }) => None,
                // The server is stopping and has ended this session: a new connection tells the rest.
                Err(SqlError::Database { sqlstate, .. }) if sqlstate.starts_with("57P") => None,
                Err(error) => Some(Err(error)),
            };
        }
        None
    }

    async fn read(&self, session: &mut Session, row: Option<&SimpleQueryRow>) -> Result<Probe, SqlError> {
        let odd = |problem: String| SqlError::Unexpected { doing: "reading the probe's answer", problem };
        let row = row.ok_or_else(|| odd("no row".to_owned()))?;
        let text = |column: &str| row.try_get(column).ok().flatten();
        let lsn = |column: &str| text(column).and_then(|t| t.parse::<Lsn>().ok());
        let timeline = |column: &str| text(column).and_then(|t| t.parse().ok()).map(TimelineId);
        let number = |column: &str| text(column).and_then(|t| t.parse::<i64>().ok());
        let in_recovery = text("in_recovery") == Some("t");
        let checkpoint_timeline = timeline("checkpoint_timeline").ok_or_else(|| odd("no timeline".to_owned()))?;
        let replay_lsn = lsn("replayed").or_else(|| lsn("flushed")).unwrap_or_default();
        let streaming = text("receiver_status") == Some("streaming");
        let (wal_end, wal_end_known) = if in_recovery {
            let end = lsn("received").unwrap_or_default().max(replay_lsn);
            // A receive position exists only after the startup process has read all local WAL.
            let waits = text("startup_wait").is_some_and(waits_at_the_end);
            session.reached_wal_end |= lsn("received").is_some() || waits;
            let known = [Some(checkpoint_timeline), timeline("recovery_timeline"), timeline("received_tli")];
            let mut highest = known.into_iter().flatten().max().unwrap_or(checkpoint_timeline);
            if timeline("received_tli").is_none() {
                let bytes = number("segment_bytes").and_then(|n| u64::try_from(n).ok()).unwrap_or(16 << 20);
                highest = highest.max(self.newest_timeline(end, bytes).await.unwrap_or(highest));
            }
            (WalPosition { timeline: highest, lsn: end }, session.reached_wal_end)
        } else {
            let timeline = text("walfile").and_then(walfile_timeline).ok_or_else(|| odd("no WAL file".to_owned()))?;
            (WalPosition { timeline, lsn: replay_lsn }, true)
        };
        Ok(Probe {
            in_recovery,
            wal_end,
            wal_end_known,
            replay_lsn,
            streaming,
            has_receiver: text("receiver").is_some(),
            severed: in_recovery && text("follows_nobody") == Some("t") && text("receiver").is_none(),
            // A receiver that has just connected shows the end of an earlier one, and two equal times. The age is by the
            // wall clock: a word from the future is none.
            upstream_end: lsn("upstream_end").filter(|_| streaming).and_then(|lsn| {
                let age = number("upstream_age_ms").and_then(|ms| u64::try_from(ms).ok())?;
                let end = WalPosition { timeline: timeline("received_tli")?, lsn };
                Some((end, Duration::from_millis(age)))
            }),
            upstream: text("sender_host")
                .zip(text("sender_port").and_then(|port| port.parse().ok()))
                .and_then(|(host, port)| self.member_at(host, port)),
            standbys: text("standbys").map(|t| standbys(t, wal_end.lsn)).unwrap_or_default(),
            checkpoint_timeline,
            replay_waits: text("startup_wait").unwrap_or_default().to_owned(),
            replay_paused: text("paused") == Some("t"),
            // bigint in SQL, unsigned in pg_control.
            system_identifier: number("system_identifier").unwrap_or_default().cast_unsigned(),
            server_version: text("version").and_then(|t| t.parse().ok()).unwrap_or_default(),
            sync_names: text("sync_names").unwrap_or_default().to_owned(),
            server: ServerView {
                started_ms: number("started_ms").unwrap_or_default().max(0).cast_unsigned(),
                replayed_at_ms: number("replayed_at_ms").unwrap_or_default().max(0).cast_unsigned(),
                pending_restart: text("pending_restart") == Some("t"),
            },
        })
    }

    /// [`Instance::segment_timeline`], on a thread that a disk may hold up.
    async fn newest_timeline(&self, end: Lsn, segment_bytes: u64) -> Option<TimelineId> {
        let instance = self.clone();
        files::reading(move || Ok(instance.segment_timeline(end, segment_bytes))).await.ok().flatten()
    }

    /// The highest timeline of which `pg_wal` has the segment that `end` lies in. `pg_control` lags behind
    /// after a timeline switch, until the next restartpoint; the file is there from the first byte on.
    fn segment_timeline(&self, end: Lsn, segment_bytes: u64) -> Option<TimelineId> {
        let segment = end.0.checked_sub(1)? / segment_bytes;
        let per_id = 0x1_0000_0000 / segment_bytes;
        let suffix = format!("{:08X}{:08X}", segment / per_id, segment % per_id);
        let entries = fs::read_dir(self.pg_wal()).ok()?;
        let name = |entry: std::io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
        entries
            .filter_map(name)
            .filter(|n| n.len() == 24 && n.ends_with(&suffix))
            .filter_map(|n| walfile_timeline(&n))
            .max()
    }
}

fn closed() -> SqlError {
    SqlError::Unexpected { doing: "probing", problem: "the server closed a new connection".to_owned() }
}

/// The startup process has read all local WAL and waits for more.
pub fn waits_at_the_end(wait_event: &str) -> bool {
    matches!(wait_event, "RecoveryWalStream" | "RecoveryRetrieveRetryInterval")
}

/// The startup process waits for a commit to become as old as `recovery_min_apply_delay` (manual, 20.5.3).
pub fn waits_on_purpose(wait_event: &str) -> bool {
    wait_event == "RecoveryApplyDelay"
}

fn walfile_timeline(name: &str) -> Option<TimelineId> {
    u32::from_str_radix(name.get(..8)?, 16).ok().map(TimelineId)
}

fn standbys(text: &str, end: Lsn) -> Vec<StandbyProgress> {
    let one = |line: &str| {
        let mut fields = line.split('\t');
        let (member, _) = read_standby_name(fields.next()?)?;
        let state = fields.next()?.to_owned();
        let flush_lsn: Lsn = fields.next()?.parse().ok()?;
        Some(StandbyProgress { member, state, flush_lsn, lag_bytes: end.bytes_past(flush_lsn) })
    };
    // A connection that is over may be listed until its other end is given up: the one that has come further is alive.
    let mut seen: Vec<StandbyProgress> = Vec::new();
    for standby in text.lines().filter_map(one) {
        match seen.iter_mut().find(|s| s.member == standby.member) {
            Some(known) if standby.flush_lsn >= known.flush_lsn => *known = standby,
            Some(_) => {}
            None => seen.push(standby),
        }
    }
    seen
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn connected_clients_that_are_no_members_are_passed_over() {
        let seen = standbys("n2\tstreaming\t0/3000000\npg_basebackup X\tbackup\t0/0\n", Lsn(0x300_0010));
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].member.as_str(), seen[0].lag_bytes), ("n2", 16));
        let named = "n2_g1e3\tstreaming\t0/2000000\nn2_g1e4\tstreaming\t0/3000000\nn2_g1e3\tstreaming\t0/1000000\n";
        let seen = standbys(named, Lsn(0x300_0010));
        assert_eq!((seen.len(), seen[0].member.as_str(), seen[0].lag_bytes), (1, "n2", 16));
    }

    #[test]
    fn any_answer_proves_the_server_alive() {
        let answer = |sqlstate: &str| {
            let error = SqlError::Database { doing: "x", sqlstate: sqlstate.to_owned(), message: String::new() };
            ProbeError::from_sql(error, Duration::from_secs(1))
        };
        assert!(matches!(answer("57P03"), ProbeError::NotYet(_)) && answer("57P03").is_alive());
        assert!(matches!(answer("53300"), ProbeError::AnsweredOther { .. }) && answer("28P01").is_alive());
        assert!(!ProbeError::Timeout(Duration::ZERO).is_alive() && !ProbeError::Refused.is_alive());
    }

    #[test]
    fn the_timeline_is_in_the_first_eight_digits() {
        assert_eq!(walfile_timeline("0000001F0000000000000003"), Some(TimelineId(31)));
        assert_eq!(walfile_timeline("short"), None);
    }
}
