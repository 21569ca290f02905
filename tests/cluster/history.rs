//! What is on record of what happened, and who hears of it while it does.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use matriarch::{demo::rig::Rig, rpc::v1::StatusReply};
use serde_json::Value;

use crate::stage::{EXE, SOON};

/// `matriarch events --follow`. Killed when dropped.
pub struct Listener {
    process: Child,
    lines: Receiver<Value>,
}

impl Listener {
    pub fn begins(rig: &Rig) -> Listener {
        let config = rig.config("n1").unwrap();
        let mut command = Command::new(EXE);
        command.args(["events", "--follow", "--json", "--config"]).arg(config).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let out = BufReader::new(process.stdout.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || {
            // Ends with the process, or when nobody wants to hear any more.
            let _ = out.lines().map_while(Result::ok).try_for_each(|l| sender.send(serde_json::from_str(&l).unwrap()));
        });
        Listener { process, lines }
    }

    /// Waits for a decision of that epoch with these words; gives its revision.
    pub fn hears(&self, epoch: u64, words: &str) -> u64 {
        let until = Instant::now() + SOON;
        loop {
            let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            let event = self.lines.recv_timeout(left).unwrap_or_else(|e| panic!("nothing of {words:?}: {e}"));
            let decision = &event["decision"];
            if decision["epoch"] == epoch && decision["what"].as_str().unwrap().contains(words) {
                return decision["revision"].as_u64().unwrap();
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a command says as JSON.
pub fn asks(rig: &Rig, words: &[&str]) -> Value {
    let config = rig.config("n1").unwrap();
    let output = Command::new(EXE).args(words).arg("--json").arg("--config").arg(config).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The change from the primary of `before` to that of `after` is on record, with its decision of this revision.
pub fn is_on_record(rig: &Rig, before: &StatusReply, after: &StatusReply, opened: u64) {
    let history = asks(rig, &["history"]);
    let [.., old, new] = history["reigns"].as_array().unwrap().as_slice() else { panic!("{history:#}") };
    assert_eq!((&old["member"], &new["member"]), (&before.primary.as_str().into(), &after.primary.as_str().into()));
    assert_eq!((&new["epoch"], &new["ended"]), (&after.epoch.into(), &Value::Null));
    assert!(new["gap_ms"].as_u64().is_some_and(|ms| ms < 60_000), "{new:#}");
    assert!(old["ended"].as_str().is_some_and(|at| at.starts_with("20")), "{old:#}");

    let decision = asks(rig, &["explain", "--incident", &opened.to_string()]);
    let seen = decision["seen"].as_array().unwrap();
    assert_eq!(seen.len(), after.members.len(), "{decision:#}");
    let of_the_new = seen.iter().filter_map(Value::as_str).find(|line| line.starts_with(&after.primary)).unwrap();
    assert!(of_the_new.contains(&format!("holds the lease of epoch {}", after.epoch)), "{decision:#}");
    assert!(decision["phases"][0]["what"].as_str().unwrap().contains(&after.primary), "{decision:#}");
}
