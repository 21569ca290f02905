//! The live names: by which rule this server acknowledges commits, and who
//! confirms them (PostgreSQL manual, 20.6.2 `synchronous_standby_names`,
//! 28.2.2 `pg_stat_replication`).

use std::time::Duration;

use super::{
    PostgresError,
    conf::{self, PLACEHOLDER},
    files,
    instance::Instance,
    session::{Session, SqlError},
    vitals::have_handled_reloads,
};
use crate::domain::{Confirms, Generation, Lsn, SyncRule, sync::standby_name};

/// What the live configuration says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Live {
    /// `synchronous_standby_names`; empty: commits wait for nobody.
    pub names: String,
    /// What a standby has done when it confirms; `None` leaves it to the user's configuration.
    pub confirms: Option<Confirms>,
}

impl Live {
    /// For a primary that goes by `rule`.
    pub fn of(rule: Option<&SyncRule>, generation: Generation, confirms: Confirms) -> Live {
        match rule.filter(|rule| !rule.is_alone()) {
            Some(rule) => Live { names: names(rule, generation), confirms: Some(confirms) },
            None => Live::default(),
        }
    }

    /// Commits wait for somebody.
    pub fn waits(&self) -> bool {
        !self.names.is_empty()
    }

    fn text(&self) -> String {
        let mut text = format!("synchronous_standby_names = {}\n", conf::quote(&self.names));
        if let Some(confirms) = self.confirms {
            text.push_str(&format!("synchronous_commit = '{confirms}'\n"));
        }
        text
    }
}

/// Any of them may confirm. Where as many have to as there are, `FIRST` would say the same, and the order of the names nothing.
fn names(rule: &SyncRule, generation: Generation) -> String {
    let quoted = |name: String| format!("\"{name}\"");
    let names: Vec<String> =
        rule.names.iter().map(|member| quoted(standby_name(member, generation, rule.epoch))).collect();
    match names.is_empty() {
        true => PLACEHOLDER.to_owned(),
        false => format!("ANY {} ({})", rule.count, names.join(", ")),
    }
}

/// A standby that is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sender {
    /// The name it came with.
    pub name: String,
    /// Above 0 when its WAL sender goes by names that it is among.
    pub priority: u32,
    /// What it has flushed.
    pub flush_lsn: Lsn,
    /// It has caught up and streams.
    pub streams: bool,
    /// It streams from a slot, which nobody else does at the same time.
    pub in_slot: bool,
    /// When its last answer was sent, as text; it differs with each answer.
    pub reply: String,
}

/// How the server goes by its names now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SyncSight {
    /// `synchronous_standby_names` in force.
    pub names: String,
    /// Flushed here.
    pub flushed: Lsn,
    /// The checkpointer was where it takes a change of configuration at once, and after that neither it nor the postmaster had a
    /// signal left to handle. In two sights in a row: it has taken what was in force in the first. It tells all sessions whether
    /// commits wait.
    pub checkpointer_listens: bool,
    /// Who is connected.
    pub senders: Vec<Sender>,
}

const QUERY: &str = "\
SELECT current_setting('synchronous_standby_names') AS names, pg_current_wal_flush_lsn() AS flushed,
  (SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'
   AND wait_event IN ('CheckpointerMain', 'CheckpointWriteDelay') LIMIT 1) AS listens,
  (SELECT string_agg(concat_ws(E'\\t', application_name, sync_priority, coalesce(flush_lsn, '0/0'), state,
     EXISTS (SELECT 1 FROM pg_replication_slots s WHERE s.active_pid = r.pid), reply_time), E'\\n')
   FROM pg_stat_replication r) AS senders";

impl Session {
    /// How a primary goes by its names.
    ///
    /// # Errors
    /// See [`SqlError`]; a standby refuses (55000).
    pub async fn sync_sight(&self, deadline: Duration) -> Result<SyncSight, SqlError> {
        let rows = self.query("looking at the standbys that confirm", QUERY, deadline).await?;
        let text = |column: &str| rows.first().and_then(|row| row.try_get(column).ok().flatten());
        Ok(SyncSight {
            names: text("names").unwrap_or_default().to_owned(),
            flushed: text("flushed").and_then(|t| t.parse().ok()).unwrap_or_default(),
            // It is shown as waiting until it runs, though it may have been signalled, or be about to be.
            checkpointer_listens: text("listens").and_then(|pid| pid.parse().ok()).is_some_and(have_handled_reloads),
            senders: text("senders").map(senders).unwrap_or_default(),
        })
    }
}

impl Session {
    /// Writes a record, so that standbys have something to answer. WAL senders release waiting commits when an answer comes,
    /// not when they have read other names, and a standby at rest answers once a second. Waits for no standby itself.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn ask_for_answers(&self, deadline: Duration) -> Result<(), SqlError> {
        let sql = "SELECT pg_logical_emit_message(true, 'matriarch', '')";
        self.query("writing a record for standbys to answer", sql, deadline).await.map(drop)
    }
}

fn senders(text: &str) -> Vec<Sender> {
    let one = |line: &str| {
        let mut fields = line.split('\t');
        Some(Sender {
            name: fields.next()?.to_owned(),
            priority: fields.next()?.parse().ok()?,
            flush_lsn: fields.next()?.parse().ok()?,
            streams: fields.next()? == "streaming",
            in_slot: fields.next()? == "t",
            reply: fields.next().unwrap_or_default().to_owned(),
        })
    };
    text.lines().filter_map(one).collect()
}

impl Instance {
    /// Lets no clients in from the next start or reload on.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn close_gate(&self) -> Result<(), PostgresError> {
        self.write_hba(true)
    }

    /// Lets clients in again from the next reload on. True when they were kept out.
    ///
    /// # Errors
    /// The file can't be read or written.
    pub fn open_gate(&self) -> Result<bool, PostgresError> {
        if !self.is_gate_closed() {
            return Ok(false);
        }
        self.write_hba(false).map(|()| true)
    }

    /// Whether clients are kept out, or will be from the next reload on.
    pub fn is_gate_closed(&self) -> bool {
        let text = std::fs::read_to_string(self.hba_path());
        text.is_ok_and(|text| text.lines().any(|line| line == conf::CLOSED))
    }

    /// Writes the live configuration. Takes effect with a reload of a postmaster that was started by
    /// [`Instance::postmaster_command`].
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write_live(&self, live: &Live) -> Result<(), PostgresError> {
        self.write_live_while(live, || true).map(|_| ())
    }

    /// The live configuration says exactly this.
    pub fn has_live(&self, live: &Live) -> bool {
        std::fs::read_to_string(self.live_path()).is_ok_and(|there| there == live.text())
    }

    /// The same, unless `wanted` says that this is over: what was removed since must not come back. True when it was written.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write_live_while(&self, live: &Live, wanted: impl Fn() -> bool) -> Result<bool, PostgresError> {
        let _alone = self.live_alone();
        if !wanted() {
            return Ok(false);
        }
        files::replace(&self.live_path(), &live.text())?;
        Ok(true)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::domain::{Epoch, MemberId};

    fn rule(names: &[&str], count: u32) -> SyncRule {
        let names = names.iter().map(|name| name.parse::<MemberId>().unwrap()).collect();
        SyncRule { id: 1, epoch: Epoch(7), names, count }
    }

    #[test]
    fn the_live_file_names_standbys_of_one_epoch() {
        let live = |rule: Option<&SyncRule>, confirms| Live::of(rule, Generation(2), confirms).text();
        assert_eq!(
            live(Some(&rule(&["n2", "n-3"], 1)), Confirms::Flush),
            "synchronous_standby_names = 'ANY 1 (\"n2_g2e7\", \"n-3_g2e7\")'\nsynchronous_commit = 'on'\n"
        );
        assert_eq!(
            live(Some(&rule(&[], 1)), Confirms::Apply),
            "synchronous_standby_names = 'matriarch_placeholder'\nsynchronous_commit = 'remote_apply'\n"
        );
        assert_eq!(live(Some(&rule(&[], 0)), Confirms::Flush), "synchronous_standby_names = ''\n");
        assert_eq!(live(None, Confirms::Flush), "synchronous_standby_names = ''\n");
    }

    #[test]
    fn standbys_that_stream_are_read_with_their_last_answer() {
        let seen = senders("n2_g1e7\t1\t0/3000060\tstreaming\tt\t2026-11-26 22:00:00.1+00\nn3\t0\t0/0\tcatchup\tf\t\n");
        assert_eq!(seen.len(), 2);
        assert_eq!((seen[0].name.as_str(), seen[0].priority, seen[0].flush_lsn), ("n2_g1e7", 1, Lsn(0x300_0060)));
        assert_eq!((seen[1].priority, seen[1].streams, seen[1].reply.as_str()), (0, false, ""));
        assert_eq!((seen[0].in_slot, seen[1].in_slot), (true, false));
    }
}
