//! Replication slots: a physical one for each other member, whatever this server is now, and those of users (PostgreSQL
//! manual, 27.2.6 "Replication Slots", 54.19 `pg_replication_slots`, 47.2.3 "Replication Slot Synchronization").
//!
//! A slot has one WAL sender at a time. So a standby that comes again while its old connection is still open waits until that
//! one is gone, where without slots it would be two senders of one name, and counted twice by `ANY 2 (…)`.

use std::{collections::BTreeSet, fs, io, time::Duration};

use serde::Deserialize;
use tokio_postgres::Config;

use super::{
    Upstream,
    conf::sql_literal,
    error::PostgresError,
    files,
    instance::Instance,
    session::{Session, SqlError, connect_as},
};
use crate::domain::{
    Logical, Lsn,
    sync::{SLOT_PREFIX, slot_name},
};

/// A copy doesn't wait longer for each server that may be primary.
const KEEP: Duration = Duration::from_secs(2);

/// The slots on this server.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct SlotsFound {
    /// It is a standby.
    pub in_recovery: bool,
    /// All but those that end with a session.
    pub slots: Vec<SlotFound>,
    /// `max_slot_wal_keep_size` in MiB; negative: no limit.
    pub limit_mib: i64,
    /// `wal_keep_size` in MiB.
    pub anyway_mib: u64,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct SlotFound {
    /// Its name.
    pub name: String,
    /// By its name it is of Matriarch.
    pub ours: bool,
    /// Not logical.
    pub physical: bool,
    /// Who streams from it.
    pub active_pid: Option<u32>,
    /// Of which database a logical one is.
    #[serde(default)]
    pub database: Option<String>,
    /// What decodes it.
    #[serde(default)]
    pub plugin: Option<String>,
    /// It keeps WAL back.
    pub reserves: bool,
    /// From here on it does; zero: it doesn't.
    #[serde(default)]
    pub restart: u64,
    /// It keeps rows back from vacuum that nobody sees any more.
    #[serde(default)]
    pub pins_rows: bool,
    /// PostgreSQL keeps a copy of it on standbys (17 and newer).
    #[serde(default)]
    pub failover: bool,
    /// It is such a copy.
    #[serde(default)]
    pub synced: bool,
    /// Bytes from there to the end of WAL.
    pub bytes: u64,
    /// What it kept back was too much (`max_slot_wal_keep_size`): nobody can stream from it any more.
    pub lost: bool,
    /// When the last answer of the standby that streams was sent, as text; it differs with each answer.
    pub reply: Option<String>,
}

impl SlotFound {
    /// What decodes it, and of which database; `None`: it is physical.
    pub fn logical(&self) -> Option<Logical> {
        let named = |name: &Option<String>| name.clone().unwrap_or_default();
        (!self.physical).then(|| Logical { database: named(&self.database), plugin: named(&self.plugin) })
    }
}

/// The end of WAL is where a standby has it from its primary, or else to where it has replayed it.
fn query() -> String {
    let setting = |name| format!("(SELECT setting::bigint FROM pg_settings WHERE name = '{name}')");
    format!(
        "SELECT json_build_object('in_recovery', pg_is_in_recovery(), 'limit_mib', {}, 'anyway_mib', {}, \
         'slots', (SELECT coalesce(json_agg(json_build_object(\
         'name', s.slot_name, 'ours', starts_with(s.slot_name, {}), 'physical', s.slot_type = 'physical', \
         'active_pid', s.active_pid, 'reserves', s.restart_lsn IS NOT NULL, 'database', s.database, 'plugin', s.plugin, \
         'restart', coalesce(pg_wal_lsn_diff(s.restart_lsn, '0/0'), 0)::bigint, 'pins_rows', s.xmin IS NOT NULL, \
         'failover', coalesce((to_jsonb(s) ->> 'failover')::boolean, false), \
         'synced', coalesce((to_jsonb(s) ->> 'synced')::boolean, false), \
         'bytes', greatest(coalesce(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN \
         coalesce(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) ELSE pg_current_wal_lsn() END, s.restart_lsn), 0), 0)::bigint, \
         'lost', coalesce(s.wal_status = 'lost', false), 'reply', r.reply_time::text) \
         ORDER BY s.slot_name), '[]') FROM pg_replication_slots s LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid \
         WHERE NOT s.temporary))::text",
        setting("max_slot_wal_keep_size"),
        setting("wal_keep_size"),
        sql_literal(SLOT_PREFIX)
    )
}

impl Instance {
    /// Connects to another member's server as the replication role, which may look at its slots.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn connect_to(&self, upstream: &Upstream, deadline: Duration) -> Result<Session, SqlError> {
        let instance = self.clone();
        let password = files::reading(move || instance.replication_password());
        let mut target = Config::new();
        target.host(&upstream.host).port(upstream.port).user(&self.config().replication_user).connect_timeout(deadline);
        target.tcp_user_timeout(deadline);
        connect_as(target, "connecting to whom this standby follows", password, deadline).await
    }

    /// Before a copy: from now on whoever is primary keeps WAL for this member, in its slot. A copy has a slot of its own until it
    /// ends, but before its PostgreSQL streams it may have to replay for long.
    ///
    /// # Errors
    /// No primary was found, or its last error.
    pub async fn keep_wal_for_copy(&self, source: &Upstream) -> Result<(), SqlError> {
        let others = self.others().filter(|other| other.id != source.member);
        let others = others.map(|m| Upstream { member: m.id.clone(), host: m.host.clone(), port: m.postgres_port });
        let problem = "no member's server says that it is primary".to_owned();
        let mut failed = SqlError::Unexpected { doing: "looking for the primary", problem };
        for server in std::iter::once(source.clone()).chain(others) {
            match self.keep_wal_at(&server).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// False: it is a standby.
    async fn keep_wal_at(&self, server: &Upstream) -> Result<bool, SqlError> {
        let session = self.connect_to(server, KEEP).await?;
        let (found, name) = (session.slots(KEEP).await?, slot_name(self.me()));
        if found.in_recovery {
            return Ok(false);
        }
        match found.slots.iter().find(|slot| slot.name == name && slot.physical) {
            // Its last connection is ending, and keeps WAL from its old place on.
            Some(slot) if slot.active_pid.is_some() => return Ok(true),
            // The old place would count against the budget of slots, and a copy needs nothing from there.
            Some(_) => session.drop_slot(&name, KEEP).await?,
            None => {}
        }
        session.create_reserving_slot(&name, KEEP).await.map(|()| true)
    }

    /// The permanent slots that this host had copies of, as noted last.
    ///
    /// # Errors
    /// The file is there and can't be read.
    pub fn slot_copies(&self) -> Result<BTreeSet<String>, PostgresError> {
        let path = self.slot_copies_path();
        match fs::read_to_string(path) {
            Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
            Err(e) => Err(PostgresError::file("reading", path)(e)),
        }
    }

    /// Notes them, durably.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn note_slot_copies(&self, names: &BTreeSet<String>) -> Result<(), PostgresError> {
        let text: String = names.iter().map(|name| format!("{name}\n")).collect();
        files::replace(self.slot_copies_path(), &text)
    }

    /// Connects to another database of the local server.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn connect_to_database(&self, database: &str, deadline: Duration) -> Result<Session, SqlError> {
        let instance = self.clone();
        let password = files::reading(move || instance.superuser_password());
        let mut target = self.local();
        target.dbname(database);
        connect_as(target, "connecting to the database of a slot", password, deadline).await
    }
}

impl Session {
    /// The slots.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn slots(&self, deadline: Duration) -> Result<SlotsFound, SqlError> {
        let doing = "looking at the slots";
        let rows = self.query(doing, &query(), deadline).await?;
        let text = rows.first().and_then(|row| row.get(0)).unwrap_or_default();
        serde_json::from_str(text).map_err(|e| SqlError::Unexpected { doing, problem: e.to_string() })
    }

    /// Makes a slot. It keeps nothing back until somebody has streamed from it.
    ///
    /// # Errors
    /// See [`SqlError`]; one of this name is there (42710), or there are as many as `max_replication_slots` (53400).
    pub async fn create_slot(&self, name: &str, deadline: Duration) -> Result<(), SqlError> {
        let sql = format!("SELECT pg_create_physical_replication_slot({})", sql_literal(name));
        self.query("making a member's slot", &sql, deadline).await.map(drop)
    }

    /// Makes a slot that keeps WAL back from now on: on a standby from its last restartpoint.
    ///
    /// # Errors
    /// As those of [`Session::create_slot`].
    pub async fn create_reserving_slot(&self, name: &str, deadline: Duration) -> Result<(), SqlError> {
        let sql = format!("SELECT pg_create_physical_replication_slot({}, true)", sql_literal(name));
        self.query("making a slot that keeps WAL back", &sql, deadline).await.map(drop)
    }

    /// Makes a logical slot of the database that this session is in, of which PostgreSQL keeps copies on standbys (17 and
    /// newer).
    ///
    /// # Errors
    /// As those of [`Session::create_slot`]; `wal_level` is not `logical` (55000), or there is no such plugin.
    pub async fn create_failover_slot(&self, name: &str, plugin: &str, deadline: Duration) -> Result<(), SqlError> {
        let (name, plugin) = (sql_literal(name), sql_literal(plugin));
        let sql = format!("SELECT pg_create_logical_replication_slot({name}, {plugin}, failover => true)");
        self.query("making a permanent logical slot", &sql, deadline).await.map(drop)
    }

    /// Lets a physical slot keep less back. PostgreSQL goes no further than this server has replayed.
    ///
    /// # Errors
    /// See [`SqlError`]; somebody streams from it (55006), or it is further than that.
    pub async fn advance_slot(&self, name: &str, to: Lsn, deadline: Duration) -> Result<(), SqlError> {
        let sql = format!("SELECT pg_replication_slot_advance({}, '{to}')", sql_literal(name));
        self.query("advancing a permanent slot", &sql, deadline).await.map(drop)
    }

    /// Removes a slot.
    ///
    /// # Errors
    /// See [`SqlError`]; somebody streams from it (55006), or there is none (42704).
    pub async fn drop_slot(&self, name: &str, deadline: Duration) -> Result<(), SqlError> {
        let sql = format!("SELECT pg_drop_replication_slot({})", sql_literal(name));
        self.query("removing a member's slot", &sql, deadline).await.map(drop)
    }

    /// Ends the WAL sender `pid`, if it is still the one that streams from this slot.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn end_sender(&self, slot: &str, pid: u32, deadline: Duration) -> Result<(), SqlError> {
        let name = sql_literal(slot);
        let sql = format!(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = {name} AND active_pid = {pid}"
        );
        self.query("ending a WAL sender whose standby is silent", &sql, deadline).await.map(drop)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_answers_is_read() {
        let text = r#"{"in_recovery" : false, "limit_mib" : -1, "anyway_mib" : 512, "slots" : [
            {"name" : "matriarch_n2", "ours" : true, "bytes" : 77, "physical" : true, "active_pid" : 71,
            "reserves" : true, "lost" : false, "reply" : "2026-11-27 05:00:00.1+00"},
            {"name" : "matriarch_n3", "ours" : true, "bytes" : 0, "physical" : false, "active_pid" : null, "reserves" : false, "lost" : true, "reply" : null}]}"#;
        let found: SlotsFound = serde_json::from_str(text).unwrap();
        assert_eq!((found.slots[0].active_pid, found.slots[0].reserves), (Some(71), true));
        assert_eq!((found.limit_mib, found.anyway_mib, found.slots[0].bytes), (-1, 512, 77));
        assert_eq!((found.slots[1].active_pid, found.slots[1].physical, found.slots[1].lost), (None, false, true));
    }
}
