//! The admin API as a program in another language finds it, and hooks of a cluster: who refuses to be promoted is passed by.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use matriarch::{demo::rig::Rig, rpc::v1::StatusReply};
use serde_json::Value;

use crate::{
    drivers::installed,
    stage::{HEAL, Promise, SOON, others, until},
};

/// In a host's directory: it refuses to be promoted.
const VETO: &str = "hooks-veto";
/// In a host's directory: what its hooks were told.
const TOLD: &str = "agent/hooks-told";

/// Hooks in a host's file: one that may refuse, and one that writes down what it is told.
pub fn with_hooks(text: &str) -> String {
    let Some(file) = text.lines().find_map(|line| line.strip_prefix("superuser_password_file = ")) else {
        return text.to_owned();
    };
    let dir = PathBuf::from(file.trim_matches('"')).parent().unwrap().to_owned();
    let (veto, told) = (dir.join(VETO), dir.join(TOLD));
    format!(
        "{text}\n[[hooks.run]]\non = [\"before_promote\"]\nrequired = true\ncommand = [\"/bin/sh\", \"-c\", \"test ! -e {}\"]\n\
         [[hooks.run]]\non = [\"after_promote\", \"after_demote\"]\ncommand = [\"/bin/sh\", \"-c\", \"echo {{event}} {{role}} \
         {{epoch}} >> {}\"]\n",
        veto.display(),
        told.display()
    )
}

/// What the example client prints of any manager but the leader's, document by document, and its exit code.
fn asked(rig: &Rig, words: &[&str]) -> (i32, Vec<Value>) {
    let status = rig.status().unwrap();
    let other = status.members.iter().find(|m| m.member != status.leader).unwrap();
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples/python/matriarch_admin.py");
    let mut command = Command::new("/usr/bin/python3");
    command.arg("-B").arg(program).arg(&other.manager).args(words).env("PYTHONPATH", installed().join("python"));
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let documents = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    println!("{words:?}: {:?} {said}{}", output.status.code(), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap_or(-1), documents)
}

pub fn a_program_asks_by_reflection_and_a_veto_is_passed_by(rig: &Rig, before: &StatusReply) -> Promise {
    let began = Instant::now();
    if !installed().join("python/grpc_reflection").is_dir() || !Path::new("/usr/bin/python3").exists() {
        println!("grpcio is not installed: passed over");
        return Promise::no_loss(began);
    }
    let old = before.primary.as_str();
    let standbys = others(rig, &[old]);
    let (code, said) = asked(rig, &["status"]);
    assert_eq!((code, said[0]["primary"].as_str()), (0, Some(old)));

    let (code, said) = asked(rig, &["switchover", old]);
    let error = &said[0]["error"];
    assert_eq!((code, error["code"].as_str()), (1, Some("FAILED_PRECONDITION")));
    assert_eq!((error["reason"].as_str(), error["domain"].as_str()), (Some("REFUSED_BY_POLICY"), Some("matriarch")));
    assert_eq!(error["message"], format!("{old} is the primary already"));

    // It refuses when the old primary is stopped already: somebody else takes over, perhaps the old one again.
    let veto = rig.dir(&standbys[0]).unwrap().join(VETO);
    fs::write(&veto, "").unwrap();
    let (code, said) = asked(rig, &["switchover", &standbys[0]]);
    assert_eq!(code, 1, "{said:?}");
    assert!(said[0]["accepted"] == true && said[1]["reason"].as_str().unwrap().contains("did not become primary"));
    // Its refusal stands as a problem of its, so the cluster is not called healthy.
    let mut next = StatusReply::default();
    until("somebody else is primary, and it streams from that one", HEAL, || {
        next = rig.status().unwrap_or_default();
        let it = next.members.iter().find(|m| m.member == standbys[0]);
        let refused = |problem: &String| problem.starts_with("hook before_promote (hooks.run[0], /bin/sh) failed");
        it.is_some_and(|m| m.upstream == next.primary && m.state == "streaming" && m.problems.iter().any(refused))
    });
    assert_ne!(next.primary, standbys[0]);
    fs::remove_file(&veto).unwrap();
    assert!(next.epoch >= before.epoch + 2, "one epoch came to nothing: {}", next.epoch);

    let (began, server) = (Instant::now(), rig.server().unwrap());
    let (code, said) = asked(rig, &["switchover", &standbys[0]]);
    assert_eq!((code, &said[1]["succeeded"]), (0, &Value::Bool(true)), "{said:?}");
    let (code, said) = asked(rig, &["events", "1"]);
    let to = |event: &Value| event["decision"]["what"].as_str().is_some_and(|what| what.contains(&standbys[0]));
    assert!(code == 0 && said.iter().any(to), "{said:?}");
    let after = rig.healthy(HEAL).unwrap();
    let told = rig.dir(&standbys[0]).unwrap().join(TOLD);
    let promoted = format!("after_promote primary {}\n", after.epoch);
    // It may have been primary before.
    until("its hook is told once", SOON, || {
        fs::read_to_string(&told).unwrap_or_default().matches(&promoted).count() == 1
    });
    let told = fs::read_to_string(rig.dir(&next.primary).unwrap().join(TOLD)).unwrap_or_default();
    assert!(told.ends_with(&format!("after_demote replica {}\n", next.epoch)), "{told}");
    Promise::no_loss(began).ended(server)
}
