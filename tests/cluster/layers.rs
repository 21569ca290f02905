//! The operator's program that takes a host's power: it hangs for longer than a
//! failover takes, which must not notice it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use matriarch::{demo::rig::ROUTED, rpc::v1::StatusReply};

use crate::stage::{self, HEAL, SOON, others, until};

const DEADLINE: Duration = Duration::from_secs(10);

fn told(status: &StatusReply) -> String {
    status.layers.iter().find(|l| l.name == "stonith").map(|l| l.state.clone()).unwrap_or_default()
}

#[test]
#[ignore = "half a minute: make proof"]
fn a_stonith_hook_that_hangs_delays_nothing_and_its_end_is_in_the_log() {
    let _alone = stage::alone();
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let ran = dir.path().join("ran");
    let script = format!("echo \"$MATRIARCH_MEMBER $MATRIARCH_EPOCH $1 $2\" >> {}; sleep 600", ran.display());
    let hook = format!(
        "\n[layers]\nstonith_command = ['/bin/sh', '-c', '{script}', 'hook', '{{member}}', '{{host}}']\n\
         stonith_deadline_ms = {}\n",
        DEADLINE.as_millis()
    );
    let rig = stage::raise_with(&hook, &[]);

    // A planned change: the old primary says itself that it is dead.
    let before = rig.healthy(HEAL).unwrap();
    assert_eq!(told(&before), "ready");
    let candidate = others(&rig, &[&before.primary]).remove(0);
    let operation = rig.switchover(&candidate).unwrap();
    assert!(operation.accepted, "{}", operation.reason);
    assert!(rig.finished(operation.id, SOON).unwrap().succeeded);
    let before = rig.healthy(HEAL).unwrap();
    assert!(!ran.exists(), "nobody takes the power of a host that released its epoch");

    // A host that dies without a word.
    let old = before.primary.clone();
    let server = rig.server().unwrap();
    let fault = rig.kill_host(&old).unwrap();
    rig.wait_for_write(ROUTED, fault, Some(&server), SOON).unwrap();
    let resumed = fault.elapsed();
    until("the hook is started", SOON, || ran.exists());
    let started = Instant::now();
    let status = rig.status().unwrap();
    assert_eq!(told(&status), "ready", "writes go on while it hangs");
    assert_ne!(status.primary, old);
    until("its end is committed", DEADLINE + SOON, || rig.status().is_some_and(|s| told(&s).contains("STONITH")));
    let wanted = format!(
        "ready; last: STONITH of {old}, which held epoch {}, failed: killed, it had not ended within {} ms",
        before.epoch,
        DEADLINE.as_millis()
    );
    assert_eq!(told(&rig.status().unwrap()), wanted);
    stage::say(format!(
        "writes go on after {:.1} s, the hook ends {:.1} s after its start",
        resumed.as_secs_f64(),
        started.elapsed().as_secs_f64()
    ));
    let lines = fs::read_to_string(&ran).unwrap();
    for line in lines.lines() {
        assert_eq!(line, format!("{old} {} {old} 127.0.0.1", before.epoch));
    }
    rig.boot_host(&old).unwrap();
    rig.healthy(HEAL).unwrap();
}
