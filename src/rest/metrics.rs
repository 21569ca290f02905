//! `/metrics`: Patroni's names, so that dashboards and alerts go on; in the text format of Prometheus 0.0.4.

use std::fmt::Display;

use super::{
    documents::state_word,
    facts::{Facts, Role},
    health::replication_state,
};
use crate::{domain::PostgresState, net::exposition::Exposition};

/// Values that all have the same labels.
struct Page<'a> {
    page: Exposition,
    labels: [(&'a str, &'a str); 2],
}

impl Page<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.page.gauge(&format!("patroni_{name}"), help).value(&self.labels, value);
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.page.counter(&format!("patroni_{name}"), help).value(&self.labels, value);
    }
}

/// The page.
pub fn page(facts: &Facts<'_>) -> String {
    let labels = [("scope", facts.scope), ("name", facts.me.as_str())];
    let mut page = Page { page: Exposition::default(), labels };
    let (agent, role) = (facts.agent(), facts.role_of(facts.me));
    let one = u8::from;
    let standby = agent.is_some_and(|agent| agent.state == PostgresState::Standby);
    page.gauge("version", "Version of Patroni whose words these are.", version());
    page.gauge("postgres_running", "Value is 1 if Postgres is running, 0 otherwise.", one(facts.runs()));
    let server = agent.map(|agent| agent.server).unwrap_or_default();
    let started = seconds(server.started_ms);
    page.gauge("postmaster_start_time", "Epoch seconds since Postgres started.", started);
    page.gauge("primary", "Value is 1 if this node is the leader, 0 otherwise.", one(facts.holds_lease()));
    page.gauge("standby_leader", "Value is 1 if this node is the standby_leader, 0 otherwise.", 0);
    page.gauge("replica", "Value is 1 if this node is a replica, 0 otherwise.", one(standby));
    page.gauge(
        "sync_standby",
        "Value is 1 if this node is a sync standby, 0 otherwise.",
        one(role == Role::SyncStandby),
    );
    let quorum = role == Role::QuorumStandby;
    page.gauge("quorum_standby", "Value is 1 if this node is a quorum standby, 0 otherwise.", one(quorum));
    let (location, received, replayed) = match agent {
        Some(agent) if standby => (0, agent.wal_end.lsn.0, agent.replay_lsn.0),
        Some(agent) => (agent.wal_end.lsn.0, 0, 0),
        None => (0, 0, 0),
    };
    page.counter(
        "xlog_location",
        "Current location of the Postgres transaction log, 0 if this node is not the leader.",
        location,
    );
    page.counter(
        "xlog_received_location",
        "Current location of the received Postgres transaction log, 0 if this node is not a replica.",
        received,
    );
    page.counter(
        "xlog_replayed_location",
        "Current location of the replayed Postgres transaction log, 0 if this node is not a replica.",
        replayed,
    );
    page.gauge(
        "xlog_replayed_timestamp",
        "Current timestamp of the replayed Postgres transaction log, 0 if null.",
        seconds(server.replayed_at_ms),
    );
    let paused = agent.is_some_and(|agent| agent.waits_on_purpose);
    page.gauge("xlog_paused", "Value is 1 if the Postgres xlog is paused, 0 otherwise.", one(paused));
    let streams = replication_state(facts) == Some("streaming");
    page.gauge("postgres_streaming", "Value is 1 if Postgres is streaming, 0 otherwise.", one(streams));
    let archive = replication_state(facts) == Some("in archive recovery");
    page.gauge(
        "postgres_in_archive_recovery",
        "Value is 1 if Postgres is replicating from archive, 0 otherwise.",
        one(archive),
    );
    let version_of_server = agent.map_or(0, |agent| agent.server_version);
    page.gauge(
        "postgres_server_version",
        "Version of Postgres (if running), 0 otherwise.",
        if facts.runs() { version_of_server } else { 0 },
    );
    page.gauge(
        "cluster_unlocked",
        "Value is 1 if the cluster is unlocked, 0 if locked.",
        one(facts.state.holder().is_none()),
    );
    let failsafe = agent.is_some_and(|agent| agent.lease.failsafe);
    page.gauge("failsafe_mode_is_active", "Value is 1 if failsafe mode is active, 0 if inactive.", one(failsafe));
    let timeline = agent.map_or(0, |agent| agent.wal_end.timeline.0);
    page.counter("postgres_timeline", "Postgres timeline of this node (if running), 0 otherwise.", timeline);
    let seen = facts.now.saturating_sub(facts.confirmed).as_secs();
    page.gauge("dcs_last_seen", "Epoch timestamp when a majority of managers last confirmed the state.", seen);
    let pending = one(server.pending_restart);
    page.gauge("pending_restart", "Value is 1 if the node needs a restart, 0 otherwise.", pending);
    page.gauge("is_paused", "Value is 1 if auto failover is disabled, 0 otherwise.", one(facts.state.paused.is_some()));
    page.gauge("postgres_state", "State of PostgreSQL, by Patroni's numbers.", number_of(state_word(agent)));
    let priority = facts.state.settings.of_member(facts.me).priority;
    page.gauge("failover_priority", "Priority of this node as failover candidate.", priority);
    page.page.into_text()
}

/// Patroni's `PostgresqlState` (its postgresql/misc.py, 4.1). It has no word for a rewind, and counts it as a copy here.
fn number_of(word: &str) -> u8 {
    match word {
        "initializing new cluster" => 0,
        "creating replica" | "running pg_rewind" => 4,
        "running" => 5,
        "starting" => 6,
        "start failed" => 8,
        "stopping" => 11,
        "crashed" => 14,
        _ => 12,
    }
}

/// Of milliseconds.
fn seconds(ms: u64) -> String {
    format!("{}.{:03}", ms / 1_000, ms % 1_000)
}

/// `1.2.3` is 10203.
fn version() -> u64 {
    let numbers = super::SPOKEN.split('.').map(|part| part.parse::<u64>().unwrap_or(0));
    numbers.take(3).fold(0, |all, number| all * 100 + number)
}
