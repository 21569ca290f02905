use std::collections::BTreeSet;

use expect_test::expect;

use super::{
    super::table::{Backend, Bounds, Reader, Version},
    *,
};
use crate::domain::{Epoch, Generation, Moment};

fn member(name: &str) -> MemberId {
    name.parse().unwrap()
}

fn backend(name: &str) -> Backend {
    Backend { member: member(name), address: format!("{name}.example:5432") }
}

fn port(port: Port, closed: Option<Closed>) -> PortFigures {
    PortFigures { port, closed, held_now: 0, counts: CountFigures::default(), routes: Vec::new() }
}

fn fixed() -> Fixed {
    let at = |number| SocketAddr::from(([127, 0, 0, 1], number));
    Fixed { listens: vec![(Port::ReadWrite, at(6432)), (Port::ReadOnly, at(6433))], max_sessions: 100, managers: 3 }
}

fn figures() -> Figures {
    let mut read_write = port(Port::ReadWrite, Some(Closed::NotOpen(member("n1"))));
    read_write.held_now = 2;
    read_write.counts = CountFigures {
        accepted: 9,
        begun: 5,
        ahead: 3,
        refused: 1,
        malformed: 2,
        cut: 3,
        drained: 4,
        held: Duration::from_millis(2_500),
        held_max: Duration::from_millis(1_250),
    };
    let route = |name, open| RouteFigures { member: member(name), open, begun: 5, bytes_up: 10, bytes_down: 1 << 40 };
    read_write.routes = vec![route("n1", 3), route("n2", 0)];
    Figures {
        view: View {
            version: Some(Version { generation: Generation(1), epoch: Epoch(7), revision: 42 }),
            primary: Some(backend("n1")),
            draining: true,
            standbys: vec![Reader { backend: backend("n2"), lag_bytes: 16, confirms: true }],
            confirmed_at: Moment(Duration::from_secs(1)),
            bounds: Bounds { stale: Duration::from_secs(15), hold: Duration::from_secs(20) },
            ..View::default()
        },
        stale: false,
        confirmed_age: Some(Duration::from_millis(250)),
        managers_followed: 2,
        ports: vec![read_write, port(Port::ReadOnly, None), port(Port::SyncOnly, Some(Closed::NoStandby))],
        unwatched_now: 1,
        unwatched: Unwatched { tls: 6, gss: 0, muted: 1 },
        false_acks_turned: 8,
    }
}

/// The lines with values, without what goes by the version of the program.
fn values(page: &str) -> String {
    let values = page.lines().filter(|line| !line.starts_with('#') && !line.contains("build_info"));
    values.map(|line| format!("{line}\n")).collect()
}

#[test]
fn prometheus_is_told_everything() {
    expect![[r#"
        matriarch_router_managers 3
        matriarch_router_managers_followed 2
        matriarch_router_state_known 1
        matriarch_router_state_generation 1
        matriarch_router_state_epoch 7
        matriarch_router_state_revision 42
        matriarch_router_state_age_seconds 0.25
        matriarch_router_state_stale_after_seconds 15
        matriarch_router_state_stale 0
        matriarch_router_primary_info{member="n1",address="n1.example:5432"} 1
        matriarch_router_primary_open 0
        matriarch_router_primary_draining 1
        matriarch_router_standby_lag_bytes{member="n2"} 16
        matriarch_router_sessions_max 100
        matriarch_router_port_leads{port="read_write"} 0
        matriarch_router_port_leads{port="read_only"} 1
        matriarch_router_sessions_open{port="read_write"} 3
        matriarch_router_sessions_open{port="read_only"} 0
        matriarch_router_connections_held{port="read_write"} 2
        matriarch_router_connections_held{port="read_only"} 0
        matriarch_router_connections_held_max_seconds{port="read_write"} 1.25
        matriarch_router_connections_held_max_seconds{port="read_only"} 0
        matriarch_router_connections_total{port="read_write"} 9
        matriarch_router_connections_total{port="read_only"} 0
        matriarch_router_connections_refused_total{port="read_write"} 1
        matriarch_router_connections_refused_total{port="read_only"} 0
        matriarch_router_connections_malformed_total{port="read_write"} 2
        matriarch_router_connections_malformed_total{port="read_only"} 0
        matriarch_router_connections_held_seconds_total{port="read_write"} 2.5
        matriarch_router_connections_held_seconds_total{port="read_only"} 0
        matriarch_router_sessions_total{port="read_write"} 5
        matriarch_router_sessions_total{port="read_only"} 0
        matriarch_router_sessions_ahead_total{port="read_write"} 3
        matriarch_router_sessions_ahead_total{port="read_only"} 0
        matriarch_router_sessions_cut_total{port="read_write"} 3
        matriarch_router_sessions_cut_total{port="read_only"} 0
        matriarch_router_sessions_drained_total{port="read_write"} 4
        matriarch_router_sessions_drained_total{port="read_only"} 0
        matriarch_router_received_bytes_total{port="read_write"} 20
        matriarch_router_received_bytes_total{port="read_only"} 0
        matriarch_router_sent_bytes_total{port="read_write"} 2199023255552
        matriarch_router_sent_bytes_total{port="read_only"} 0
        matriarch_router_server_sessions_open{port="read_write",member="n1"} 3
        matriarch_router_server_sessions_open{port="read_write",member="n2"} 0
        matriarch_router_server_sessions_total{port="read_write",member="n1"} 5
        matriarch_router_server_sessions_total{port="read_write",member="n2"} 5
        matriarch_router_server_sent_bytes_total{port="read_write",member="n1"} 10
        matriarch_router_server_sent_bytes_total{port="read_write",member="n2"} 10
        matriarch_router_server_received_bytes_total{port="read_write",member="n1"} 1099511627776
        matriarch_router_server_received_bytes_total{port="read_write",member="n2"} 1099511627776
        matriarch_router_sessions_unwatched 1
        matriarch_router_sessions_unwatched_total{reason="tls"} 6
        matriarch_router_sessions_unwatched_total{reason="gssapi"} 0
        matriarch_router_sessions_unwatched_total{reason="muted"} 1
        matriarch_router_false_acks_turned_total 8
    "#]]
    .assert_eq(&values(&metrics(&figures(), &fixed())));
}

#[test]
fn every_metric_has_one_help_and_one_type_by_its_name() {
    let page = metrics(&figures(), &fixed());
    let mut seen = BTreeSet::new();
    let mut lines = page.lines().peekable();
    while let Some(help) = lines.next() {
        let name = help.strip_prefix("# HELP ").unwrap().split(' ').next().unwrap();
        assert!(name.starts_with("matriarch_router_") && seen.insert(name), "{name}");
        let kind = lines.next().unwrap().strip_prefix(&format!("# TYPE {name} ")).unwrap();
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            assert_eq!(line.split(['{', ' ']).next().unwrap(), name);
            assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
        }
    }
    let docs = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/router.md")).unwrap();
    let missing: Vec<_> =
        seen.iter().filter(|name| !docs.contains(&format!("`{}", &name["matriarch_router_".len()..]))).collect();
    assert!(missing.is_empty(), "docs/router.md doesn't say what these are: {missing:?}");
}

#[test]
fn a_router_that_knows_nothing_says_so() {
    let nothing = Figures {
        view: View::default(),
        confirmed_age: None,
        ports: vec![port(Port::ReadWrite, Some(Closed::NothingHeard))],
        ..figures()
    };
    let page = metrics(&nothing, &fixed());
    assert!(page.contains("matriarch_router_state_known 0\n"), "{page}");
    for absent in ["state_epoch", "state_age_seconds", "primary_info{"] {
        assert!(!page.contains(absent), "{absent}");
    }
    let document = document(&nothing, &fixed());
    assert!(document["state"].is_null() && document["primary"].is_null());
    assert_eq!(document["ports"]["read_write"]["reason"], Closed::NothingHeard.to_string());
}

#[test]
fn the_document_says_the_same() {
    let mut document = document(&figures(), &fixed());
    document["version"] = "x".into();
    expect![[r#"
        {
          "false_acks_turned_total": 8,
          "managers": 3,
          "managers_followed": 2,
          "ports": {
            "read_only": {
              "bytes_to_clients": 0,
              "bytes_to_servers": 0,
              "connections_total": 0,
              "cut_total": 0,
              "drained_total": 0,
              "held_ms_max": 0,
              "held_ms_total": 0,
              "held_now": 0,
              "leads": true,
              "listen": "127.0.0.1:6433",
              "malformed_total": 0,
              "reason": null,
              "refused_total": 0,
              "servers": {},
              "sessions_ahead_total": 0,
              "sessions_open": 0,
              "sessions_total": 0
            },
            "read_write": {
              "bytes_to_clients": 2199023255552,
              "bytes_to_servers": 20,
              "connections_total": 9,
              "cut_total": 3,
              "drained_total": 4,
              "held_ms_max": 1250,
              "held_ms_total": 2500,
              "held_now": 2,
              "leads": false,
              "listen": "127.0.0.1:6432",
              "malformed_total": 2,
              "reason": "n1 is to be the primary and is not open yet",
              "refused_total": 1,
              "servers": {
                "n1": {
                  "bytes_to_clients": 1099511627776,
                  "bytes_to_server": 10,
                  "sessions_open": 3,
                  "sessions_total": 5
                },
                "n2": {
                  "bytes_to_clients": 1099511627776,
                  "bytes_to_server": 10,
                  "sessions_open": 0,
                  "sessions_total": 5
                }
              },
              "sessions_ahead_total": 3,
              "sessions_open": 3,
              "sessions_total": 5
            }
          },
          "primary": {
            "address": "n1.example:5432",
            "draining": true,
            "member": "n1",
            "open": false
          },
          "sessions_max": 100,
          "standbys": [
            {
              "address": "n2.example:5432",
              "confirms": true,
              "lag_bytes": 16,
              "member": "n2"
            }
          ],
          "state": {
            "age_ms": 250,
            "epoch": 7,
            "generation": 1,
            "revision": 42,
            "stale": false,
            "stale_after_ms": 15000
          },
          "unwatched": {
            "gssapi": 0,
            "muted": 1,
            "open": 1,
            "tls": 6
          },
          "version": "x"
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&document).unwrap());
}

#[test]
fn a_load_balancer_is_told_whether_and_why_not() {
    let says = |question, closed| is_so(question, &port(Port::ReadWrite, closed));
    for question in [Question::Leads, Question::Knows] {
        assert_eq!(says(question, None), Ok(()));
        let nothing = says(question, Some(Closed::NothingHeard)).unwrap_err();
        assert_eq!(nothing, "no manager has told this router the state of the cluster yet");
        let stale = says(question, Some(Closed::Stale(Duration::from_secs(20)))).unwrap_err();
        assert!(stale.contains("stale"), "{stale}");
    }
    assert_eq!(says(Question::Leads, Some(Closed::NoPrimary)).unwrap_err(), "no member is the primary");
    assert_eq!(says(Question::Knows, Some(Closed::NoPrimary)), Ok(()));
}
