//! Patroni's JSON documents: `/patroni`, `/cluster` and `/history`, with its names and its words.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Map, Value, json};

use super::{
    facts::{Facts, Known, Role},
    health::replication_state,
    told::Shown,
};
use crate::{
    domain::{
        Epoch, MemberId, PostgresKey, PostgresState, SettingsDocument, Side, WalPosition,
        observation::{AgentView, StandbyProgress},
        postgres_settings::{HBA, IDENT, Scope},
        settings_document::member_of,
    },
    state::{ClusterState, OperationKind, Scheduled},
};

/// What Patroni says of a PostgreSQL.
pub fn state_word(agent: Option<&AgentView>) -> &'static str {
    let Some(agent) = agent else { return "unknown" };
    let work = agent.work.as_ref().map(|work| work.kind.as_str());
    match (agent.state, work) {
        (_, Some("clone")) => "creating replica",
        (_, Some("rewind")) => "running pg_rewind",
        (PostgresState::Busy, Some("initdb")) => "initializing new cluster",
        (PostgresState::Standby | PostgresState::Primary | PostgresState::Promoting | PostgresState::Unleased, _) => {
            "running"
        }
        (PostgresState::Starting, _) => "starting",
        (PostgresState::Stopping, _) => "stopping",
        (PostgresState::Crashed, _) => "crashed",
        (PostgresState::Failed, _) => "start failed",
        (PostgresState::NoData | PostgresState::Stopped | PostgresState::Busy, _) => "stopped",
    }
}

/// The settings of a member, and Patroni's names of those that it has, too.
pub fn tags(state: &ClusterState, member: &MemberId) -> Map<String, Value> {
    let settings = state.settings.of_member(member);
    let mut tags: Map<String, Value> =
        settings.values().into_iter().map(|(key, value)| (key.to_owned(), typed(&value))).collect();
    tags.insert("nofailover".to_owned(), Value::Bool(!settings.failover || settings.priority == 0));
    tags.insert("failover_priority".to_owned(), json!(settings.priority));
    tags.insert("nosync".to_owned(), Value::Bool(!settings.confirms()));
    tags.insert("noloadbalance".to_owned(), Value::Bool(settings.is_delayed()));
    tags
}

/// A setting as JSON has it.
fn typed(text: &str) -> Value {
    match text {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        // Only what is written the same way: `01` put back as 1 would be another value.
        text => match text.parse::<i64>() {
            Ok(number) if number.to_string() == text => json!(number),
            Ok(_) | Err(_) => json!(text),
        },
    }
}

fn other_word(role: Role) -> &'static str {
    if role == Role::Witness { role.word() } else { "replica" }
}

/// `/patroni`, and the body of every health check.
pub fn host(facts: &Facts<'_>) -> Value {
    let (agent, role) = (facts.agent(), facts.role_of(facts.me));
    let mut body = Map::new();
    let mut say = |key: &str, value: Value| drop(body.insert(key.to_owned(), value));
    say("state", json!(if role == Role::Witness { "running" } else { state_word(agent) }));
    say("role", json!(if facts.holds_lease() { "primary" } else { other_word(role) }));
    if let Some(agent) = agent {
        say("server_version", json!(agent.server_version));
        say("postmaster_start_time", timestamp(agent.server.started_ms));
        if agent.server.pending_restart {
            say("pending_restart", json!(true));
        }
        let pending = agent.configuration.pending.iter();
        let reasons: Map<String, Value> = pending
            .map(|p| (p.name.clone(), json!({"old_value": p.running, "new_value": p.configured, "reason": p.why})))
            .collect();
        if !reasons.is_empty() {
            say("pending_restart_reason", Value::Object(reasons));
        }
        if watchdog_failed(agent) {
            say("watchdog_failed", json!(true));
        }
        say("timeline", json!(agent.wal_end.timeline.0));
        say("xlog", wal(agent));
        if let Some(system) = agent.system_identifier {
            say("database_system_identifier", json!(system.to_string()));
        }
        if !agent.standbys.is_empty() {
            say("replication", replication(facts, agent));
        }
    }
    say("replication_state", json!(replication_state(facts)));
    if role == Role::SyncStandby {
        say("sync_standby", json!(true));
    }
    if role == Role::QuorumStandby {
        say("quorum_standby", json!(true));
    }
    say("cluster_unlocked", json!(facts.state.holder().is_none()));
    if agent.is_some_and(|agent| agent.lease.failsafe) {
        say("failsafe_mode_is_active", json!(true));
    }
    if facts.state.paused.is_some() {
        say("pause", json!(true));
    }
    if let Some(stopped) = stopped_by_command(facts.state, facts.me) {
        say("stopped_by_command", stopped);
    }
    if let Some(restart) = scheduled(facts, OperationKind::Restart).find(|s| s.to.as_ref() == Some(facts.me)) {
        say("scheduled_restart", json!({"schedule": rfc3339(Duration::from_millis(restart.at_ms))}));
    }
    say("tags", Value::Object(tags(facts.state, facts.me)));
    say("dcs_last_seen", json!(facts.now.saturating_sub(facts.confirmed).as_secs()));
    say("epoch", json!(facts.state.epoch.0));
    say("accepts_writes", json!(facts.takes_writes()));
    say("patroni", json!({"version": super::SPOKEN, "scope": facts.scope, "name": facts.me.as_str()}));
    say("matriarch", json!({"version": env!("CARGO_PKG_VERSION")}));
    Value::Object(body)
}

/// As PostgreSQL writes it, in UTC; null where nobody knows.
fn timestamp(ms_since_1970: u64) -> Value {
    let at = time::OffsetDateTime::UNIX_EPOCH + Duration::from_millis(ms_since_1970);
    let (date, (hour, minute, second, ms)) = (at.date(), at.time().as_hms_milli());
    match ms_since_1970 {
        0 => Value::Null,
        _ => json!(format!("{date} {hour:02}:{minute:02}:{second:02}.{ms:03}+00:00")),
    }
}

/// Somebody asked for a watchdog, and it does not work.
fn watchdog_failed(agent: &AgentView) -> bool {
    let failed = |state: &str| state.starts_with("failed") || state.starts_with("unavailable");
    agent.layers.iter().any(|layer| layer.name == "watchdog" && failed(&layer.state))
}

fn wal(agent: &AgentView) -> Value {
    match agent.state {
        PostgresState::Primary | PostgresState::Unleased => json!({"location": agent.wal_end.lsn.0}),
        _ => json!({
            "received_location": agent.wal_end.lsn.0,
            "replayed_location": agent.replay_lsn.0,
            "replayed_timestamp": timestamp(agent.server.replayed_at_ms),
            "paused": agent.waits_on_purpose,
        }),
    }
}

/// What the primary sees of its standbys.
fn replication(facts: &Facts<'_>, agent: &AgentView) -> Value {
    let standby = |standby: &StandbyProgress| {
        let sync = match facts.role_of(&standby.member) {
            Role::SyncStandby => "sync",
            Role::QuorumStandby => "quorum",
            Role::Primary | Role::Replica | Role::Witness => "async",
        };
        let host = facts.members.get(&standby.member).map(|known| known.postgres.0);
        json!({
            "application_name": standby.member.as_str(),
            "client_addr": host,
            "state": standby.state,
            "sync_state": sync,
            "flush_location": standby.flush_lsn.0,
            "lag": standby.lag_bytes,
        })
    };
    Value::Array(agent.standbys.iter().map(standby).collect())
}

fn scheduled<'a>(facts: &'a Facts<'_>, kind: OperationKind) -> impl Iterator<Item = &'a Scheduled> {
    facts.state.agenda.scheduled.values().filter(move |s| s.kind == kind)
}

/// `/cluster`. What the Raft leader has told of a member goes before what is known here.
pub fn cluster(facts: &Facts<'_>, told: &BTreeMap<MemberId, Shown>) -> Value {
    let shown = |member: &MemberId, known: &Known<'_>| {
        told.get(member).cloned().unwrap_or_else(|| Shown::here(facts, member, known))
    };
    let members = facts.members.iter().map(|(member, known)| of_member(facts, (member, known), &shown(member, known)));
    let mut body = Map::new();
    body.insert("members".to_owned(), Value::Array(members.collect()));
    body.insert("scope".to_owned(), json!(facts.scope));
    if facts.state.paused.is_some() {
        body.insert("pause".to_owned(), json!(true));
    }
    let mut switchovers = scheduled(facts, OperationKind::Switchover);
    if let Some(scheduled) = switchovers.next() {
        let (from, to) = (scheduled.from.as_ref().or_else(|| facts.state.holder().map(|(_, m)| m)), &scheduled.to);
        let at = rfc3339(Duration::from_millis(scheduled.at_ms));
        let to = to.as_ref().map(|m| m.as_str());
        body.insert("scheduled_switchover".to_owned(), json!({"at": at, "from": from.map(|m| m.as_str()), "to": to}));
    }
    Value::Object(body)
}

fn of_member(facts: &Facts<'_>, (member, known): (&MemberId, &Known<'_>), shown: &Shown) -> Value {
    let (role, (host, port)) = (facts.role_of(member), known.postgres);
    let mut body = Map::new();
    let mut say = |key: &str, value: Value| drop(body.insert(key.to_owned(), value));
    say("name", json!(member.as_str()));
    say("role", json!(role.word()));
    say("state", json!(shown.state));
    say("api_url", json!(format!("{}://{host}:{}/patroni", facts.api.0, facts.api.1)));
    say("host", json!(host));
    if role != Role::Witness {
        say("port", json!(port));
    }
    // Plugins expect a number of a member that nobody has heard of, too.
    say("timeline", json!(shown.timeline.map_or(0, |timeline| timeline.0)));
    if role == Role::Witness {
        return Value::Object(body);
    }
    if let Some(stopped) = stopped_by_command(facts.state, member) {
        say("stopped_by_command", stopped);
    }
    let tags = tags_that_differ(facts.state, member);
    if !tags.is_empty() {
        say("tags", Value::Object(tags));
    }
    if role != Role::Primary {
        let (received, replayed) = (shown.received, shown.replayed);
        for (key, lag) in [("lag", replayed.1), ("receive_lag", received.1), ("replay_lag", replayed.1)] {
            say(key, lag.map_or_else(|| json!("unknown"), |bytes| json!(bytes)));
        }
        for (key, lsn) in [("receive_lsn", received.0), ("replay_lsn", replayed.0), ("lsn", replayed.0)] {
            say(key, lsn.map_or_else(|| json!("unknown"), |lsn| json!(lsn.to_string())));
        }
    }
    Value::Object(body)
}

/// Who wants PostgreSQL of the member stopped, itself or with the whole cluster; `None`: nobody, or it has none.
fn stopped_by_command(state: &ClusterState, member: &MemberId) -> Option<Value> {
    let stopped = state.put_down(member).filter(|_| !state.is_witness(member))?;
    let own = state.maintenance.get(member).map(|asked| ("member", asked));
    let (what, asked) = own.or_else(|| state.asleep().map(|h| ("cluster", &h.asked)))?;
    let mut body = Map::from_iter([("what".to_owned(), json!(what))]);
    let said = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let since = (stopped.at_ms > 0).then(|| rfc3339(Duration::from_millis(stopped.at_ms)));
    for (key, text) in [("by", said(&asked.by)), ("reason", said(&asked.reason)), ("since", since)] {
        body.extend(text.map(|text| (key.to_owned(), json!(text))));
    }
    Some(Value::Object(body))
}

/// As Patroni lists only tags that somebody has set.
fn tags_that_differ(state: &ClusterState, member: &MemberId) -> Map<String, Value> {
    let usual = crate::domain::MemberSettings::default().values();
    let settings = state.settings.of_member(member);
    let all = tags(state, member);
    let differs = |key: &&str| settings.values().get(*key) != usual.get(*key);
    let own = usual.keys().copied().filter(differs).collect::<Vec<_>>();
    let derived =
        ["nofailover", "nosync", "noloadbalance"].into_iter().filter(|key| all.get(*key) == Some(&Value::Bool(true)));
    own.into_iter().chain(derived).filter_map(|key| Some((key.to_owned(), all.get(key)?.clone()))).collect()
}

/// `/history`: of each timeline that was left `[timeline, end, why, when, who went on]`.
pub fn history(facts: &Facts<'_>) -> Value {
    let left = facts.state.lineage.iter().filter_map(|record| Some((record.epoch, record.switch?)));
    let of = |(epoch, switch): (Epoch, WalPosition)| {
        let reign = facts.state.reigns.iter().find(|reign| reign.epoch == epoch);
        let before = facts.state.reigns.iter().rev().find(|reign| reign.epoch < epoch);
        let when = reign.and_then(|reign| reign.opened_ms).map(|ms| rfc3339(Duration::from_millis(ms)));
        let why = before.map_or("", |reign| reign.reason.as_str());
        json!([switch.timeline.0, switch.lsn.0, why, when, reign.map(|reign| reign.member.as_str())])
    };
    Value::Array(left.map(of).collect())
}

fn rfc3339(since_1970: Duration) -> String {
    let at = time::Duration::try_from(since_1970).ok().and_then(|d| time::OffsetDateTime::UNIX_EPOCH.checked_add(d));
    at.and_then(|at| at.format(&time::format_description::well_known::Rfc3339).ok()).unwrap_or_default()
}

/// `/config`: the settings in force, by Matriarch's names; of each member what somebody has set. `PUT /config` takes it.
pub fn config(facts: &Facts<'_>) -> Value {
    let document = &facts.state.settings;
    let settings: Map<String, Value> =
        document.settings().values().into_iter().map(|(key, value)| (key.to_owned(), Value::String(value))).collect();
    let of = |member: &MemberId| -> Map<String, Value> {
        let set = document.values.iter().filter_map(|(key, value)| Some((member_of(key)?, value)));
        let own = set.filter(|((of, _), _)| *of == member.as_str());
        own.map(|((_, key), value)| (key.to_owned(), typed(value))).collect()
    };
    let members = facts.state.members.keys().map(|member| (member.to_string(), Value::Object(of(member))));
    let mut body = Map::new();
    body.insert("version".to_owned(), json!(document.version));
    body.insert("settings".to_owned(), Value::Object(settings));
    body.insert("members".to_owned(), Value::Object(members.collect()));
    for (key, scope) in
        [("postgresql", Scope::All), ("primary", Scope::Side(Side::Primary)), ("standby", Scope::Side(Side::Standby))]
    {
        let of_scope = of_postgres(document, scope);
        if !of_scope.is_empty() {
            body.insert(key.to_owned(), Value::Object(of_scope));
        }
    }
    Value::Object(body)
}

/// What PostgreSQL is configured with, as Patroni shows it.
fn of_postgres(document: &SettingsDocument, scope: Scope<'_>) -> Map<String, Value> {
    let mut out = Map::new();
    let parameter = |(key, value): (&String, &String)| match PostgresKey::of(key) {
        Some(PostgresKey::Parameter(of, name)) if of == scope => Some((name.to_owned(), json!(value))),
        _ => None,
    };
    let parameters: Map<String, Value> = document.values.iter().filter_map(parameter).collect();
    if !parameters.is_empty() {
        out.insert("parameters".to_owned(), Value::Object(parameters));
    }
    for (key, name) in [(HBA, "pg_hba"), (IDENT, "pg_ident")] {
        if let Some(lines) = document.lines_of(key).filter(|_| scope == Scope::All) {
            out.insert(name.to_owned(), json!(lines));
        }
    }
    out
}
