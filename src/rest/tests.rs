//! What a load balancer, an exporter and a plugin are told, in each situation.

use std::collections::BTreeMap;

use super::*;
use crate::{
    domain::{
        Epoch, MemberId, PostgresState, SettingsDocument, SyncMode, SyncRule,
        observation::{AgentView, LayerView, ServerView},
    },
    policy::testing,
    state::{Asked, ClusterState, Hibernation, Stopped},
};

/// What is asked of the member `me`, as a bench.
struct Host {
    state: ClusterState,
    agents: BTreeMap<MemberId, AgentView>,
    me: MemberId,
    ago: Duration,
    confirmed: Duration,
}

impl Host {
    fn new(lock: &str, me: &str, agents: &[(&str, &str)]) -> Host {
        let agents = agents.iter().map(|(member, spec)| (testing::id(member), testing::agent(member, spec)));
        Host {
            state: testing::state(lock),
            agents: agents.collect(),
            me: testing::id(me),
            ago: Duration::ZERO,
            confirmed: Duration::from_secs(2),
        }
    }

    /// A primary with its lease, and two standbys; `me` is asked.
    fn healthy(me: &str) -> Host {
        let mut host = Host::new(
            "granted a open 2",
            me,
            &[("a", "primary 2:5000000 lease=1"), ("b", "standby 2:5000000"), ("c", "standby 2:3000000")],
        );
        for (member, agent) in &mut host.agents {
            agent.lease.remaining_ms = if member.as_str() == "a" { 1_000 } else { 0 };
            agent.streaming = member.as_str() != "a";
            agent.replay_lsn = agent.wal_end.lsn;
        }
        host
    }

    fn own(&mut self) -> &mut AgentView {
        self.agents.get_mut(&self.me).unwrap()
    }

    fn facts<T>(&self, look: impl FnOnce(&Facts<'_>) -> T) -> T {
        let known = |id: &MemberId| Known { agent: self.agents.get(id), postgres: ("10.0.0.1", 5432) };
        let members = self.state.members.keys().map(|id| (id.clone(), known(id))).collect();
        look(&Facts {
            state: &self.state,
            scope: "orders",
            me: &self.me,
            own: self.agents.get(&self.me).map(|agent| (agent, self.ago)),
            members: &members,
            confirmed: self.confirmed,
            stale_after: Duration::from_secs(15),
            now: Duration::from_secs(1_000),
            api: ("http", 8008),
        })
    }

    fn says(&self, path: &str) -> u16 {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        self.facts(|facts| answer(path, query, facts, &BTreeMap::new())).status
    }

    fn json(&self, path: &str) -> serde_json::Value {
        let reply = self.facts(|facts| answer(path, "", facts, &BTreeMap::new()));
        serde_json::from_str(&reply.body).unwrap()
    }
}

fn set(key: &str, value: &str) -> SettingsDocument {
    SettingsDocument { version: 1, values: [(key.to_owned(), value.to_owned())].into() }
}

/// Of all questions those that are answered by 200.
fn yes(host: &Host) -> Vec<&'static str> {
    let all = [
        "primary",
        "leader",
        "standby-leader",
        "replica",
        "read-only",
        "sync",
        "read-only-sync",
        "quorum",
        "read-only-quorum",
        "async",
        "health",
        "liveness",
        "readiness",
    ];
    all.into_iter().filter(|path| host.says(&format!("/{path}")) == 200).collect()
}

#[test]
fn a_primary_and_a_standby_are_told_apart() {
    let primary =
        ["primary", "leader", "read-only", "read-only-sync", "read-only-quorum", "health", "liveness", "readiness"];
    assert_eq!(yes(&Host::healthy("a")), primary);
    assert_eq!(yes(&Host::healthy("b")), ["replica", "read-only", "async", "health", "liveness", "readiness"]);
    assert_eq!(yes(&Host::healthy("c")), ["replica", "read-only", "async", "health", "liveness"], "2 MB behind");
}

#[test]
fn nobody_is_primary_without_a_lease_that_runs() {
    let mut late = Host::healthy("a");
    late.ago = Duration::from_millis(1_000);
    assert_eq!(yes(&late), ["health", "liveness"], "the lease has ended since its agent spoke");
    let mut lost = Host::healthy("a");
    lost.own().lease.held = false;
    assert_eq!(yes(&lost), ["health", "liveness"]);
    let mut stood_still = Host::healthy("a");
    stood_still.confirmed = Duration::from_secs(16);
    assert_eq!(yes(&stood_still), ["health", "liveness"], "an old word that is read late");
    // The committed state may be old: the lease alone is not enough either.
    let mut other = Host::healthy("a");
    other.state = testing::state("granted b open 2");
    assert_eq!((other.says("/primary"), other.says("/leader")), (503, 200));
}

#[test]
fn a_primary_that_takes_no_writes_is_none_to_a_load_balancer() {
    let mut crashed = Host::healthy("a");
    crashed.own().state = PostgresState::Crashed;
    assert_eq!(yes(&crashed), ["leader", "liveness"], "restarted in place under its lease");
    let mut closed = Host::healthy("a");
    closed.own().sync.gate_closed = true;
    assert_eq!(closed.says("/primary"), 503, "clients are kept out until what it has is confirmed");
    let leaving = |phase: &str| {
        let mut host = Host::healthy("a");
        host.state = testing::state(&format!("granted a open 2; switchover b {phase}"));
        host.says("/primary")
    };
    assert_eq!((leaving("checkpoint"), leaving("stop")), (200, 503), "a switchover holds writes");
}

#[test]
fn a_silent_agent_is_nothing() {
    let mut host = Host::healthy("a");
    host.agents.remove(&testing::id("a"));
    assert_eq!(yes(&host), Vec::<&str>::new());
    assert_eq!(host.json("/patroni")["state"], "unknown");
}

#[test]
fn a_standby_is_measured_as_it_is_asked() {
    let host = Host::healthy("c");
    let says = |query: &str| host.says(&format!("/replica?{query}"));
    assert_eq!((says("lag=2000000"), says("lag=1999999"), says("lag=10MB")), (200, 503, 200));
    assert_eq!((says("lag=much"), host.says("/replica?lag=")), (400, 400), "never by no limit");
    assert_eq!((says("replication_state=streaming"), says("replication_state=in+archive+recovery")), (200, 503));
    assert_eq!((says("tag_nofailover=false"), says("tag_nofailover=true"), says("tag_what=1")), (200, 503, 503));
    let mut blind = Host::healthy("c");
    blind.agents.remove(&testing::id("a"));
    assert_eq!(
        (blind.says("/replica"), blind.says("/replica?lag=10MB")),
        (200, 503),
        "nobody knows how far the primary is"
    );
    let mut delayed = Host::healthy("c");
    delayed.state.settings = set("c.recovery_min_apply_delay", "60000");
    assert_eq!(delayed.says("/replica"), 503, "it shows the past on purpose");
}

#[test]
fn who_confirms_has_a_name_for_it() {
    let of = |mode: SyncMode, me: &str| {
        let mut host = Host::healthy(me);
        let rule = SyncRule { id: 1, epoch: Epoch(1), names: vec![testing::id("b")], count: 1 };
        host.state.sync.rules.push(rule);
        host.state.settings = set("replication_mode", &mode.to_string());
        host
    };
    let asked = |host: &Host| [host.says("/sync"), host.says("/quorum"), host.says("/async")];
    assert_eq!(asked(&of(SyncMode::Sync, "b")), [200, 503, 503]);
    assert_eq!(asked(&of(SyncMode::Quorum, "b")), [503, 200, 503]);
    assert_eq!(asked(&of(SyncMode::Quorum, "c")), [503, 503, 200]);
    assert_eq!(of(SyncMode::Sync, "b").json("/patroni")["sync_standby"], true);
    let roles = of(SyncMode::Sync, "a").json("/cluster");
    let roles = roles["members"].as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap().to_owned());
    assert_eq!(roles.collect::<Vec<_>>(), ["leader", "sync_standby", "replica"]);
}

#[test]
fn documents_have_the_fields_that_plugins_read() {
    let cluster = Host::healthy("a").json("/cluster");
    let members = cluster["members"].as_array().unwrap();
    let behind = &members[2];
    assert_eq!((behind["name"].as_str(), behind["state"].as_str()), (Some("c"), Some("streaming")));
    assert_eq!((behind["lag"].as_u64(), behind["timeline"].as_u64()), (Some(2_000_000), Some(2)));
    assert_eq!(behind["api_url"], "http://10.0.0.1:8008/patroni");
    assert!(members[0].get("lag").is_none(), "a leader has none");
    let host = Host::healthy("a").json("/patroni");
    for (field, value) in [("state", "running"), ("role", "primary"), ("database_system_identifier", "7")] {
        assert_eq!(host[field], value, "{field}");
    }
    assert_eq!((host["dcs_last_seen"].as_u64(), host["cluster_unlocked"].as_bool()), (Some(998), Some(false)));
    assert_eq!(
        (host["xlog"]["location"].as_u64(), host["patroni"]["scope"].as_str()),
        (Some(5_000_000), Some("orders"))
    );
    assert_eq!(Host::healthy("a").json("/config")["settings"]["replication_mode"], "async");
}

#[test]
fn metrics_are_as_prometheus_reads_them() {
    let page = Host::healthy("b").facts(|facts| answer("/metrics", "", facts, &BTreeMap::new())).body;
    let value = |name: &str| {
        let line = page.lines().find(|line| line.starts_with(&format!("patroni_{name}{{"))).unwrap();
        line.rsplit(' ').next().unwrap().to_owned()
    };
    assert_eq!((value("primary"), value("replica"), value("postgres_state")), ("0".into(), "1".into(), "5".into()));
    assert_eq!(value("xlog_replayed_location"), "5000000");
    assert!(page.contains("patroni_version{scope=\"orders\",name=\"b\"} 40104\n"));
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
    }
    assert_eq!(page.matches("# TYPE").count(), page.matches("# HELP").count());
}

#[test]
fn what_is_not_there_is_said() {
    let host = Host::healthy("a");
    assert_eq!([host.says("/nothing"), host.says("/switchover"), host.says("/restart")], [404, 405, 405]);
    let of = |method: Method, path: &str| no_such(path, &method).status;
    assert_eq!([of(Method::POST, "/primary"), of(Method::DELETE, "/config"), of(Method::POST, "/x")], [405, 405, 404]);
    assert_eq!(allowed("/config"), "GET, HEAD, OPTIONS, PATCH, PUT");
    assert_eq!(allowed("/switchover"), "POST, DELETE");
}

#[test]
fn refusals_ask_for_a_login_or_name_the_verbs() {
    let header = |reply: &Reply, name| reply.headers.iter().find(|(of, _)| *of == name).map(|(_, value)| value.clone());
    let nobody = dressed("/restart", denied(Denied::Nobody));
    assert_eq!((nobody.status, header(&nobody, WWW_AUTHENTICATE).is_some()), (401, true));
    let closed = dressed("/restart", denied(Denied::Closed));
    assert_eq!((closed.status, header(&closed, WWW_AUTHENTICATE)), (403, None));
    let wrong = dressed("/restart", no_such("/restart", &Method::PUT));
    assert_eq!(header(&wrong, ALLOW).unwrap(), "POST, DELETE");
}

#[test]
fn a_body_that_could_not_be_read_changes_nothing() {
    let says = [Unread::TooLong, Unread::TooSlow, Unread::Broken].map(unread);
    assert_eq!(says.each_ref().map(|reply| reply.status), [413, 408, 400]);
    assert!(says.iter().all(|reply| reply.body.ends_with("; nothing was changed\n")), "{says:?}");
}

#[test]
fn what_the_leader_tells_of_the_others_is_shown_by_every_manager() {
    use crate::rpc::v1::{Lag, MemberStatus, StatusReply};
    let mut host = Host::healthy("b");
    host.agents.retain(|member, _| member.as_str() == "b");
    let alone = host.json("/cluster");
    let of = |cluster: &serde_json::Value, index: usize, key: &str| cluster["members"][index][key].clone();
    assert_eq!(
        (of(&alone, 0, "state"), of(&alone, 0, "role")),
        ("unknown".into(), "leader".into()),
        "marked as not known"
    );
    assert_eq!(of(&alone, 0, "timeline"), 0, "plugins want a number");
    let member = |id: &str, state: &str, lag: Option<u64>| MemberStatus {
        member: id.to_owned(),
        state: state.to_owned(),
        timeline: 2,
        lsn: "0/4C4B40".to_owned(),
        replayed_lsn: lag.map(|_| "0/2DC6C0".to_owned()).unwrap_or_default(),
        flushed: lag.map(|_| Lag { bytes: 0, ms: None }),
        replayed: lag.map(|bytes| Lag { bytes, ms: None }),
        ..MemberStatus::default()
    };
    let members =
        vec![member("a", "running", None), member("c", "streaming", Some(2_000_000)), member("b", "silent", None)];
    let reply = StatusReply { members, leader: "a".to_owned(), answered_by: "a".to_owned(), ..StatusReply::default() };
    let told = told::members(&reply);
    assert_eq!(told.len(), 2, "of whom it hears nothing it tells nothing");
    let full = host.facts(|facts| documents::cluster(facts, &told));
    assert_eq!(
        (of(&full, 0, "state"), of(&full, 0, "timeline"), of(&full, 1, "state")),
        ("running".into(), 2.into(), "streaming".into())
    );
    assert_eq!((of(&full, 2, "lag"), of(&full, 2, "receive_lag")), (2_000_000.into(), 0.into()));
    assert_eq!((of(&full, 2, "replay_lsn"), of(&full, 2, "receive_lsn")), ("0/2DC6C0".into(), "0/4C4B40".into()));
    let in_its_place = StatusReply { answered_by: "b".to_owned(), ..reply };
    assert!(told::members(&in_its_place).is_empty(), "a follower's own view is nothing that a leader told");
}

#[test]
fn a_witness_is_shown_and_is_nothing_that_clients_could_use() {
    let witness = |me: &str| {
        let mut host = Host::healthy(me);
        let c = testing::id("c");
        host.agents.remove(&c);
        let known = host.state.members.get_mut(&c).unwrap();
        (known.postgres, known.agent) = (String::new(), String::new());
        host
    };
    let host = witness("c");
    assert_eq!(yes(&host), ["liveness"]);
    let own = host.json("/patroni");
    assert_eq!((&own["role"], &own["state"]), (&"witness".into(), &"running".into()));
    let shown = host.json("/cluster")["members"][2].clone();
    assert_eq!(
        (&shown["role"], &shown["state"], &shown["timeline"]),
        (&"witness".into(), &"running".into(), &0.into())
    );
    assert!(shown.get("port").is_none() && shown.get("lag").is_none(), "{shown}");
    // Another manager goes by what the leader says of it.
    let unknown = witness("b").json("/cluster")["members"][2].clone();
    assert_eq!((&unknown["role"], &unknown["state"]), (&"witness".into(), &"unknown".into()));
    assert!(!host.facts(metrics::page).contains("patroni_replica{scope=\"orders\",name=\"c\"} 1"));
}

#[test]
fn what_a_server_says_of_itself_is_shown() {
    let mut host = Host::healthy("b");
    host.own().server =
        ServerView { started_ms: 1_700_000_000_042, replayed_at_ms: 1_700_000_001_000, pending_restart: true };
    host.own().layers = vec![LayerView { name: "watchdog".to_owned(), state: "failed: no answer".to_owned() }];
    let body = host.json("/patroni");
    assert_eq!(body["postmaster_start_time"], "2023-11-14 22:13:20.042+00:00");
    assert_eq!(body["xlog"]["replayed_timestamp"], "2023-11-14 22:13:21.000+00:00");
    assert_eq!((&body["pending_restart"], &body["watchdog_failed"]), (&true.into(), &true.into()));
    let healthy = Host::healthy("b").json("/patroni");
    assert!(healthy["postmaster_start_time"].is_null() && healthy.get("pending_restart").is_none());
    assert!(healthy.get("watchdog_failed").is_none());
    let page = host.facts(|facts| answer("/metrics", "", facts, &BTreeMap::new())).body;
    assert!(page.contains("patroni_postmaster_start_time{scope=\"orders\",name=\"b\"} 1700000000.042\n"), "{page}");
}

#[test]
fn settings_are_shown_in_the_shape_in_which_they_are_put() {
    let mut host = Host::healthy("a");
    host.state.settings = SettingsDocument {
        version: 4,
        values: [("crash_budget", "5"), ("b.priority", "0"), ("b.site", "east"), ("b.failover", "true")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
    };
    let shown = host.json("/config");
    assert_eq!((&shown["version"], &shown["settings"]["crash_budget"]), (&4.into(), &"5".into()));
    assert_eq!(
        shown["members"],
        serde_json::json!({"a": {}, "b": {"priority": 0, "site": "east", "failover": true}, "c": {}})
    );
    let Ok(orders::Order::Set(back)) = orders::order(orders::Change::Put, shown.to_string().as_bytes()) else {
        panic!()
    };
    assert_eq!((back.version, back.named["b.priority"].as_deref(), back.replace), (Some(4), Some("0"), true));
}

#[test]
fn who_wants_postgresql_stopped_is_told_beside_that_it_is() {
    let mut host = Host::healthy("b");
    host.own().state = PostgresState::Stopped;
    assert!(host.json("/patroni").get("stopped_by_command").is_none(), "nobody wants it");
    let asked = |stopped| Asked { reason: "disk".into(), by: "kim".into(), stopped };
    let of_member = |host: &Host, member: &str| {
        let cluster = host.json("/cluster");
        let members = cluster["members"].as_array().unwrap();
        members.iter().find(|m| m["name"] == member).unwrap().get("stopped_by_command").cloned()
    };
    let stopped = Stopped { at_ms: 1_764_000_000_000, force: false };
    host.state.maintenance.insert(testing::id("b"), asked(Some(stopped)));
    let wanted = serde_json::json!({"what": "member", "by": "kim", "reason": "disk", "since": "2025-11-24T16:00:00Z"});
    let body = host.json("/patroni");
    assert_eq!((&body["state"], &body["stopped_by_command"]), (&"stopped".into(), &wanted));
    assert_eq!((of_member(&host, "b"), of_member(&host, "c")), (Some(wanted), None));

    host.state.maintenance.insert(testing::id("b"), asked(None));
    let hibernation = Hibernation {
        asked: asked(None),
        at_ms: 0,
        primary: testing::id("a"),
        end: Some(Default::default()),
        waking: false,
    };
    host.state.hibernation = Some(hibernation);
    assert_eq!(of_member(&host, "b"), None, "one in maintenance is left alone");
    let all = serde_json::json!({"what": "cluster", "by": "kim", "reason": "disk"});
    assert_eq!(of_member(&host, "c"), Some(all));
    host.state.hibernation.iter_mut().for_each(|h| h.waking = true);
    assert_eq!(of_member(&host, "c"), None, "it wakes");
}
