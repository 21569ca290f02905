//! Physical replication slots: one for each other member, whatever this server is now (PostgreSQL manual, 27.2.6
//! "Replication Slots", 54.19 `pg_replication_slots`).
//!
//! A slot has one WAL sender at a time. So a standby that comes again while its old connection is still open waits until that
//! one is gone, where without slots it would be two senders of one name, and counted twice by `ANY 2 (…)`.

use std::time::Duration;

use serde::Deserialize;

use super::{
    conf::sql_literal,
    session::{Session, SqlError},
};
use crate::domain::sync::SLOT_PREFIX;

/// The slots of members on this server.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct SlotsFound {
    /// It is a standby.
    pub in_recovery: bool,
    /// Those whose names are of Matriarch.
    pub slots: Vec<SlotFound>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct SlotFound {
    /// Its name.
    pub name: String,
    /// Not logical.
    pub physical: bool,
    /// Who streams from it.
    pub active_pid: Option<u32>,
    /// It keeps WAL back.
    pub reserves: bool,
    /// What it kept back was too much (`max_slot_wal_keep_size`): nobody can stream from it any more.
    pub lost: bool,
    /// When the last answer of the standby that streams was sent, as text; it differs with each answer.
    pub reply: Option<String>,
}

fn query() -> String {
    format!(
        "SELECT json_build_object('in_recovery', pg_is_in_recovery(), 'slots', (SELECT coalesce(json_agg(json_build_object(\
         'name', s.slot_name, 'physical', s.slot_type = 'physical', 'active_pid', s.active_pid, \
         'reserves', s.restart_lsn IS NOT NULL, 'lost', coalesce(s.wal_status = 'lost', false), 'reply', r.reply_time::text) \
         ORDER BY s.slot_name), '[]') FROM pg_replication_slots s LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid \
         WHERE starts_with(s.slot_name, {})))::text",
        sql_literal(SLOT_PREFIX)
    )
}

impl Session {
    /// The slots of members.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn member_slots(&self, deadline: Duration) -> Result<SlotsFound, SqlError> {
        let doing = "looking at the members' slots";
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

    /// Makes one that keeps WAL back at once, from the last checkpoint on.
    ///
    /// # Errors
    /// See [`Session::create_slot`].
    pub async fn create_reserving_slot(&self, name: &str, deadline: Duration) -> Result<(), SqlError> {
        let sql = format!("SELECT pg_create_physical_replication_slot({}, true)", sql_literal(name));
        self.query("making a member's slot", &sql, deadline).await.map(drop)
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
        let text = r#"{"in_recovery" : false, "slots" : [{"name" : "matriarch_n2", "physical" : true, "active_pid" : 71,
            "reserves" : true, "lost" : false, "reply" : "2026-11-27 05:00:00.1+00"},
            {"name" : "matriarch_n3", "physical" : false, "active_pid" : null, "reserves" : false, "lost" : true, "reply" : null}]}"#;
        let found: SlotsFound = serde_json::from_str(text).unwrap();
        assert_eq!((found.slots[0].active_pid, found.slots[0].reserves), (Some(71), true));
        assert_eq!((found.slots[1].active_pid, found.slots[1].physical, found.slots[1].lost), (None, false, true));
    }
}
