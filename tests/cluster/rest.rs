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

use crate::stage::{HEAL, Promise, SOON, others, seen_down};

/// Longer than any healthy answer takes.
const PATIENCE: Duration = Duration::from_secs(5);

/// Status and body; `None`: nobody answers.
fn asked(rig: &Rig, host: &str, method: &str, path: &str) -> Option<(u16, String)> {
    let at = rig.contact(host).unwrap();
    let mut stream = TcpStream::connect((at.address.as_str(), at.rest_port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "{method} {path} HTTP/1.0\r\nHost: x\r\n\r\n").ok()?;
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
    assert_eq!(asked(rig, &old, "POST", "/switchover").unwrap().0, 405);
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
