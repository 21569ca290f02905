//! What load balancers and plugins made for Patroni are told, over HTTP, by real managers.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use matriarch::{
    demo::rig::{ROUTED, Rig},
    rpc::v1::StatusReply,
};
use serde_json::Value;

use crate::{
    api, plugin,
    stage::{HEAL, Promise, SOON, Step, others, seen_down, until},
};

/// On a cluster of which the API has a login.
pub const STEPS: &[Step] = &[
    ("what_patronis_api_changes_changes", what_patronis_api_changes_changes),
    ("every_check_of_check_patroni", plugin::every_check_of_check_patroni),
    ("a_program_asks_by_reflection_and_a_veto_is_passed_by", api::a_program_asks_by_reflection_and_a_veto_is_passed_by),
];

/// Longer than any healthy answer takes.
const PATIENCE: Duration = Duration::from_secs(5);

/// The login of the API in a host's file: its password is that of PostgreSQL's superuser, which lies there anyhow.
pub fn with_login(text: &str) -> String {
    let file = text.lines().find_map(|line| line.strip_prefix("superuser_password_file = ")).unwrap_or("\"\"");
    text.replace("[rest]\n", &format!("[rest]\nusername = \"ops\"\npassword_file = {file}\n"))
}

/// Status and body; `None`: nobody answers.
fn asked(rig: &Rig, host: &str, method: &str, path: &str) -> Option<(u16, String)> {
    sent(rig, host, &format!("{method} {path} HTTP/1.0\r\nHost: x\r\n\r\n"), PATIENCE)
}

/// The same of a request that changes something; `login`: name and password.
pub fn told(rig: &Rig, host: &str, (method, path): (&str, &str), login: Option<&str>, body: &str) -> (u16, String) {
    let login = login.map(|login| format!("Authorization: Basic {}\r\n", base64(login))).unwrap_or_default();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{login}Content-Length: {}\r\n\r\n", body.len());
    // It answers when the operation is over.
    sent(rig, host, &(head + body), HEAL).unwrap()
}

/// RFC 4648, 4.
fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |three: &[u8]| {
        let bits = three.iter().chain(&[0; 2]).take(3).fold(0_usize, |all, byte| all << 8 | usize::from(*byte));
        let digit = |n: usize| if n > three.len() { '=' } else { char::from(DIGITS[bits >> (18 - 6 * n) & 63]) };
        (0..4).map(digit).collect::<String>()
    };
    text.as_bytes().chunks(3).map(group).collect()
}

fn sent(rig: &Rig, host: &str, request: &str, patience: Duration) -> Option<(u16, String)> {
    let at = rig.contact(host).unwrap();
    let mut stream = TcpStream::connect((at.address.as_str(), at.rest_port)).ok()?;
    stream.set_read_timeout(Some(patience)).unwrap();
    stream.write_all(request.as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// Whom a load balancer with this check would lead to.
fn led_to<'h>(rig: &Rig, hosts: &'h [String], path: &str) -> Vec<&'h str> {
    let yes = |host: &&String| asked(rig, host, "OPTIONS", path).is_some_and(|(status, _)| status == 200);
    hosts.iter().filter(yes).map(String::as_str).collect()
}

fn document(rig: &Rig, host: &str, path: &str) -> Value {
    let (status, body) = asked(rig, host, "GET", path).unwrap();
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

pub fn health_checks_follow_a_failover(rig: &Rig, before: &StatusReply) -> Promise {
    let (old, standbys) = (before.primary.clone(), others(rig, &[&before.primary]));
    let all: Vec<String> = [vec![old.clone()], standbys.clone()].concat();
    assert_eq!(led_to(rig, &all, "/"), [old.as_str()]);
    assert_eq!(led_to(rig, &all, "/replica?lag=16MB&replication_state=streaming"), standbys);
    assert_eq!(led_to(rig, &all, "/read-only"), all);
    assert_eq!((led_to(rig, &all, "/health").len(), led_to(rig, &all, "/liveness").len()), (3, 3));
    let cluster = document(rig, &standbys[0], "/cluster");
    let roles = cluster["members"].as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap());
    assert_eq!(roles.filter(|role| *role == "leader").count(), 1, "{cluster}");
    assert_eq!(document(rig, &old, "/patroni")["role"], "primary");
    assert!(asked(rig, &old, "GET", "/metrics").unwrap().1.contains("patroni_primary{"));
    let (status, why) = asked(rig, &old, "POST", "/switchover").unwrap();
    assert_eq!((status, why.contains("rest.username")), (403, true), "without a login it is read only: {why}");
    assert_eq!(asked(rig, &old, "POST", "/primary").unwrap().0, 405);
    assert_eq!(asked(rig, &old, "HEAD", "/primary").unwrap(), (200, String::new()));

    let server = rig.server().unwrap();
    let fault = rig.kill_host(&old).unwrap();
    let next = loop {
        match led_to(rig, &all, "/primary").as_slice() {
            [] => assert!(fault.elapsed() < SOON, "nobody says that it is primary"),
            [one] => break (*one).to_owned(),
            two => panic!("{two:?} say that they are primary"),
        }
    };
    println!("a health check leads to {next} {:?} after the loss of {old}", fault.elapsed());
    let told = Instant::now();
    rig.wait_for_write(ROUTED, fault, Some(&server), SOON).unwrap();
    println!("the router's first write came {:?} later or before", told.elapsed());
    seen_down(rig, &old);
    rig.boot_host(&old).unwrap();
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!(after.primary, next);
    assert_eq!(document(rig, &old, "/patroni")["role"], "replica");
    let history = document(rig, &next, "/history");
    assert_eq!(history.as_array().unwrap().last().unwrap()[4], next, "{history}");
    Promise::asynchronous(fault, fault - crate::failovers::STREAMED).ended(server)
}

/// The state of every member, as each host tells it.
fn states(rig: &Rig, host: &str) -> Vec<String> {
    let cluster = document(rig, host, "/cluster");
    let members = cluster["members"].as_array().unwrap().iter();
    let mut states: Vec<String> = members.map(|m| format!("{} {}", m["role"], m["state"])).collect();
    states.sort();
    states
}

/// Far more than are kept.
const SILENT: usize = 500;

fn who_says_nothing_keeps_nobody_waiting(rig: &Rig, host: &str) {
    let at = rig.contact(host).unwrap();
    let connect = |_| TcpStream::connect((at.address.as_str(), at.rest_port)).unwrap();
    let silent: Vec<TcpStream> = (0..SILENT).map(connect).collect();
    let began = Instant::now();
    for _ in 0..10 {
        assert_eq!(asked(rig, host, "GET", "/health").unwrap().0, 200);
        assert_eq!(asked(rig, host, "GET", "/liveness").unwrap().0, 200);
    }
    println!("20 answers beside {} who say nothing: {:?}", silent.len(), began.elapsed());
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
}

fn settings_are_changed_all_or_none(rig: &Rig, host: &str, all: &[String], login: &str) {
    let config = ("PATCH", "/config");
    let before = document(rig, host, "/config");
    let version = before["version"].as_u64().unwrap();
    for (login, body, expected) in [
        (None, r#"{"settings":{"crash_budget":7}}"#, 401),
        (Some("ops:wrong"), r#"{"settings":{"crash_budget":7}}"#, 401),
        (Some(login), r#"{"settings":{"crash_budget":7,"no_such":1}}"#, 400),
        (Some(login), r#"{"settings":{"crash_budget":-7}}"#, 400),
        (Some(login), r#"{"loop_wait":5}"#, 400),
        (Some(login), r#"{"settings":"#, 400),
        (Some(login), r#"{"version":999,"settings":{"crash_budget":7}}"#, 409),
        (Some(login), &" ".repeat(70_000), 413),
    ] {
        let (status, why) = told(rig, host, config, login, body);
        let body: String = body.chars().take(60).collect();
        assert_eq!(status, expected, "{body}: {why}");
    }
    assert_eq!(document(rig, host, "/config"), before, "bad input changes nothing");

    let (status, body) = told(rig, host, config, Some(login), r#"{"settings":{"crash_budget":7}}"#);
    assert_eq!(status, 200, "{body}");
    let after: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((after["version"].as_u64(), &after["settings"]["crash_budget"]), (Some(version + 1), &"7".into()));
    for other in all {
        until("the setting is everywhere", SOON, || document(rig, other, "/config") == after);
    }
    let (status, body) = told(rig, host, ("PUT", "/config"), Some(login), &after.to_string());
    assert_eq!((status, serde_json::from_str::<Value>(&body).unwrap()), (200, after), "what is shown is put as it is");
    let (status, body) = told(rig, host, config, Some(login), r#"{"settings":{"crash_budget":null}}"#);
    assert_eq!((status, body.contains(r#""crash_budget":"3""#)), (200, true), "{body}");
}

/// Asked of a host that does not lead Raft, and is no primary.
fn what_patronis_api_changes_changes(rig: &Rig, before: &StatusReply) -> Promise {
    let login = format!("ops:{}", rig.superuser_password());
    let standbys = others(rig, &[&before.primary]);
    let all: Vec<String> = [vec![before.primary.clone()], standbys.clone()].concat();
    let leader = rig.healthy(HEAL).unwrap().leader;
    let host = standbys.iter().find(|host| **host != leader).unwrap();
    let healthy = [r#""leader" "running""#, r#""replica" "streaming""#, r#""replica" "streaming""#];
    for host in &all {
        until("every manager tells of all members", SOON, || states(rig, host) == healthy);
    }
    let own = document(rig, host, "/patroni");
    assert!(own["postmaster_start_time"].as_str().unwrap().ends_with("+00:00"), "{own}");
    assert!(own["xlog"]["replayed_timestamp"].is_string() && own.get("pending_restart").is_none(), "{own}");
    who_says_nothing_keeps_nobody_waiting(rig, host);
    settings_are_changed_all_or_none(rig, host, &all, &login);

    let restarted = told(rig, host, ("POST", "/restart"), Some(&login), "");
    assert_eq!(restarted, (200, "restarted successfully\n".to_owned()));
    let again = document(rig, host, "/patroni");
    assert!(again["postmaster_start_time"].as_str() > own["postmaster_start_time"].as_str(), "{again}");
    rig.healthy(HEAL).unwrap();

    let (began, server) = (Instant::now(), rig.server().unwrap());
    let to = |from: &str, to: &str| format!(r#"{{"leader":"{from}","candidate":"{to}"}}"#);
    let switchover = ("POST", "/switchover");
    let (status, why) = told(rig, host, switchover, Some(&login), &to(&standbys[1], &standbys[0]));
    assert_eq!((status, why.contains("is primary, not")), (412, true), "{why}");
    let done = told(rig, host, switchover, Some(&login), &to(&before.primary, host));
    assert_eq!(done, (200, format!("Successfully switched over to \"{host}\"\n")));
    println!("a switchover by POST took {:?}", began.elapsed());
    until("the health check follows", SOON, || led_to(rig, &all, "/primary") == [host.as_str()]);
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (host, before.epoch + 1));
    let later = format!(r#"{{"leader":"{host}","scheduled_at":"2035-01-01T00:00:00+01:00"}}"#);
    assert_eq!(told(rig, host, switchover, Some(&login), &later), (202, "Switchover scheduled\n".to_owned()));
    assert_eq!(told(rig, host, switchover, Some(&login), &later).0, 409);
    until("it is shown", SOON, || document(rig, host, "/cluster")["scheduled_switchover"]["from"] == host.as_str());
    let taken_back = told(rig, host, ("DELETE", "/switchover"), Some(&login), "");
    assert_eq!(taken_back, (200, "scheduled switchover deleted\n".to_owned()));
    assert_eq!(told(rig, host, ("DELETE", "/switchover"), Some(&login), "").0, 404);
    assert_eq!(told(rig, host, ("POST", "/reload"), Some(&login), ""), (202, "reloaded\n".to_owned()));
    let (status, why) = told(rig, host, ("POST", "/reinitialize"), Some(&login), "");
    assert_eq!((status, why.contains("is the primary, whose data")), (503, true), "{why}");
    assert_eq!(told(rig, host, switchover, Some(&login), &later.replace("2035", "2020")).0, 422);
    Promise::no_loss(began).ended(server)
}
