//! The port of a manager that is alone: what tools find there, and what it says
//! while there is no majority.

#![allow(clippy::unwrap_used)]

mod support;

use std::{process::Command, time::Duration};

use support::{MATRIARCH, Running, Site, until};
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// A manager whose port answers.
fn alone() -> (Site, Running) {
    let site = Site::new();
    let manager = site.start(&["manager"]);
    until("the manager's port", PATIENCE, || std::net::TcpStream::connect(("127.0.0.1", site.manager_port)).ok());
    (site, manager)
}

async fn channel(site: &Site) -> Channel {
    Channel::from_shared(format!("http://127.0.0.1:{}", site.manager_port)).unwrap().connect().await.unwrap()
}

async fn reflect(channel: &Channel, request: MessageRequest) -> MessageResponse {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let stream = tokio_stream::iter([request]);
    let mut client = ServerReflectionClient::new(channel.clone());
    let mut replies = client.server_reflection_info(stream).await.unwrap().into_inner();
    replies.message().await.unwrap().unwrap().message_response.unwrap()
}

#[tokio::test]
async fn the_port_has_health_and_reflection() {
    let (site, _manager) = alone();
    let channel = channel(&site).await;

    let mut health = HealthClient::new(channel.clone());
    for service in ["", "matriarch.v1.Admin"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let reply = health.check(request).await.unwrap().into_inner();
        assert_eq!(reply.status(), ServingStatus::Serving, "{service}");
    }

    // What `grpcurl -plaintext HOST:PORT list` asks.
    let MessageResponse::ListServicesResponse(list) =
        reflect(&channel, MessageRequest::ListServices(String::new())).await
    else {
        panic!("another reply");
    };
    let names: Vec<&str> = list.service.iter().map(|s| s.name.as_str()).collect();
    for wanted in ["matriarch.v1.Admin", "matriarch.v1.Peer", "matriarch.v1.Raft", "matriarch.v1.Routing"] {
        assert!(names.contains(&wanted), "{wanted} is not in {names:?}");
    }

    // What `grpcurl describe` asks: the types come with their imports.
    let symbol = MessageRequest::FileContainingSymbol("matriarch.v1.Admin.Status".to_owned());
    let MessageResponse::FileDescriptorResponse(files) = reflect(&channel, symbol).await else {
        panic!("another reply");
    };
    let has = |text: &str| {
        files.file_descriptor_proto.iter().any(|f| f.windows(text.len()).any(|bytes| bytes == text.as_bytes()))
    };
    assert!(has("StatusReply") && has("lag_bytes"));
}

/// Exit code, stdout, stderr of an admin command.
fn ask(site: &Site, args: &[&str]) -> (i32, String, String) {
    let output = Command::new(MATRIARCH).args(args).arg("--config").arg(site.file()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn alone_it_answers_and_says_that_it_is_alone() {
    let (site, manager) = alone();
    let missing = "n2 (127.0.0.2:7400) does not answer";
    // The founding rounds begin with the port.
    until("the first round", PATIENCE, || ask(&site, &["explain"]).1.contains(missing).then_some(()));

    let (code, status, _) = ask(&site, &["status"]);
    assert_eq!(code, 4, "{status}");
    assert!(status.starts_with("Cluster test: no open primary\n"), "{status}");
    assert!(status.contains("Warning: no Raft leader: this manager does not see a majority"), "{status}");
    assert!(status.contains(&format!("Hold: not founded yet: {missing}")), "{status}");

    let (code, json, _) = ask(&site, &["status", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &json["healthy"], &json["raft_leader"]), (4, &false.into(), &serde_json::Value::Null));

    let (code, explained, _) = ask(&site, &["explain"]);
    assert_eq!(code, 0);
    let (_, to_do) = explained.split_once("What you can do:\n").unwrap();
    assert!(to_do.starts_with("  - the cluster is not founded: bring every member up"), "{explained}");
    assert!(explained.ends_with("(answered by n1)\n"), "{explained}");

    let (code, _, refused) = ask(&site, &["switchover", "--yes"]);
    assert_eq!((code, refused.lines().count()), (1, 1), "{refused}");

    drop(manager);
    let (code, _, told) = ask(&site, &["status"]);
    assert_eq!(code, 3);
    assert!(told.starts_with("matriarch: no manager could be reached (127.0.0.1:"), "{told}");
}
