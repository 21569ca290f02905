//! What each check says of a cluster that is well, and of one that is not.

use super::*;
use crate::{
    cli::args::{ClientArgs, views::Role},
    rpc::v1::{Archive, Commits, KeptWal, Lag, MemberStatus, OperationStatus, Room, SlotHolds, Volume, Voter},
};

fn args(what: Subject) -> CheckArgs {
    CheckArgs {
        what,
        client: ClientArgs { managers: Vec::new(), cluster: None, config: None },
        member: None,
        role: None,
        warning: None,
        critical: None,
        json: false,
    }
}

fn healthy() -> StatusReply {
    let member = |name: &str, role: &str| MemberStatus {
        member: name.into(),
        role: role.into(),
        state: if role == "primary" { "running".into() } else { "streaming".into() },
        raft_role: if name == "n2" { "leader".into() } else { "follower".into() },
        upstream: if role == "primary" { String::new() } else { "n1".into() },
        lag_known: role == "standby",
        replayed: (role == "standby").then_some(Lag { bytes: 328, ms: Some(1_300) }),
        healthy: true,
        lease_remaining_ms: if role == "primary" { 2_310 } else { 0 },
        room: Some(Room {
            data: Some(Volume { free_bytes: 400, size_bytes: 1_000, ..Volume::default() }),
            ..Room::default()
        }),
        ..MemberStatus::default()
    };
    let voter = |(node, member): (u64, &str)| Voter { node, member: member.into(), old: true, new: true };
    StatusReply {
        cluster: "main".into(),
        epoch: 4,
        primary: "n1".into(),
        lock: "open".into(),
        leader: "n2".into(),
        answered_by: "n2".into(),
        members: vec![member("n1", "primary"), member("n2", "standby"), member("n3", "standby")],
        voters: [(1, "n1"), (2, "n2"), (3, "n3")].map(voter).to_vec(),
        commits: Some(Commits {
            mode: "sync".into(),
            in_effect: true,
            names: vec!["n2".into()],
            count: 1,
            ..Commits::default()
        }),
        ..StatusReply::default()
    }
}

#[test]
fn a_witness_has_no_lag_and_counts_as_a_voter() {
    let mut status = healthy();
    let witness = MemberStatus {
        member: "n3".into(),
        role: "witness".into(),
        state: "running".into(),
        raft_role: "follower".into(),
        healthy: true,
        ..MemberStatus::default()
    };
    status.members[2] = witness;
    says(&status, Subject::Quorum, "QUORUM OK - 3 of 3 voters answer");
    says(&status, Subject::Lag, "LAG OK - n2 has not replayed 328 B");
    assert!(render::is_healthy(&status));
    let silent = |status: &mut StatusReply| status.members[2].raft_role = "silent".into();
    silent(&mut status);
    says(
        &status,
        Subject::Quorum,
        "QUORUM WARNING - 2 of 3 voters answer (silent: n3): the loss of one more would be the loss of the majority",
    );
}

fn silent(status: &mut StatusReply, name: &str) {
    let member = status.members.iter_mut().find(|m| m.member == name).unwrap();
    *member = MemberStatus {
        member: name.into(),
        role: "none".into(),
        state: "silent".into(),
        raft_role: "silent".into(),
        ..MemberStatus::default()
    };
}

fn said(status: &StatusReply, args: &CheckArgs) -> String {
    let limits = Limits::of(args.what, args.warning.as_deref(), args.critical.as_deref()).unwrap();
    text(&facts::findings(args, &limits, status))
}

#[track_caller]
fn says(status: &StatusReply, what: Subject, expected: &str) {
    let text = said(status, &args(what));
    assert_eq!(text.split(" | ").next().unwrap().trim_end(), expected);
}

#[test]
fn a_healthy_cluster_is_ok_in_all_of_them() {
    let findings = facts::findings(&args(Subject::All), &Limits::default(), &healthy());
    assert_eq!(findings.len(), 8);
    let expected = "\
MATRIARCH OK - 8 checks are well
QUORUM OK - 3 of 3 voters answer | voters=3;3;2
ROLE OK - n1 is primary of epoch 4
LAG OK - n2 has not replayed 328 B, n3 has not replayed 328 B | n2_lag=328B;16777216;1073741824 n3_lag=328B;16777216;1073741824
SLOTS OK - no slot holds WAL back
ARCHIVE OK - nothing is archived
LEASE OK - n1 holds it for another 2.3 s | remaining=2.31s
DISK OK - 40 % of n1 are free for data, 40 % of n2 are free for data, 40 % of n3 are free for data | n1_data_free=40% n2_data_free=40% n3_data_free=40%
SYNC OK - sync: 1 of 1 confirm, 2 could | confirming=1 able=2
";
    assert_eq!(text(&findings), expected);
    assert_eq!(worst(&findings).exit(), Exit(0));
}

#[test]
fn quorum_is_critical_without_a_majority_and_warns_one_host_before() {
    let mut status = healthy();
    silent(&mut status, "n3");
    let text = "2 of 3 voters answer (silent: n3): the loss of one more would be the loss of the majority";
    says(&status, Subject::Quorum, &format!("QUORUM WARNING - {text}"));
    silent(&mut status, "n1");
    says(&status, Subject::Quorum, "QUORUM CRITICAL - 1 of 3 voters answer (silent: n1, n3): no majority");
    status.leader = String::new();
    says(&status, Subject::Quorum, "QUORUM CRITICAL - no Raft leader: the managers that answer are no majority");
    status.leader = "n1".into();
    says(&status, Subject::Quorum, "QUORUM UNKNOWN - the Raft leader n1 does not answer");
}

/// While the group is joint each half needs its own majority.
#[test]
fn quorum_counts_the_half_that_can_lose_least() {
    let mut status = healthy();
    status.voters.push(Voter { node: 4, member: "n4".into(), old: false, new: true });
    status.members.push(MemberStatus { member: "n4".into(), raft_role: "silent".into(), ..MemberStatus::default() });
    let text = "3 of 4 voters answer (silent: n4): the loss of one more would be the loss of the majority";
    says(&status, Subject::Quorum, &format!("QUORUM WARNING - {text}"));
}

#[test]
fn a_role_is_that_of_the_cluster_or_of_one_member() {
    let mut status = healthy();
    let of = |member: &str, role| CheckArgs { member: Some(member.into()), role: Some(role), ..args(Subject::Role) };
    assert_eq!(said(&status, &of("n1", Role::Primary)), "ROLE OK - n1 is primary, running\n");
    assert_eq!(said(&status, &of("n1", Role::Standby)), "ROLE CRITICAL - n1 is primary, running\n");
    status.members[2].role = "primary".into();
    says(&status, Subject::Role, "ROLE CRITICAL - n1 is primary, and so says n3");
    status.lock = "fenced".into();
    says(&status, Subject::Role, "ROLE CRITICAL - no open primary, the lock is fenced");
}

#[test]
fn there_is_a_primary_only_by_the_lock_and_by_its_own_word() {
    let mut status = healthy();
    silent(&mut status, "n1");
    says(&status, Subject::Role, "ROLE CRITICAL - n1 has the lock of epoch 4, and nothing is heard of it");
    let mut status = healthy();
    (status.members[0].role, status.members[0].state) = ("none".into(), "stopped".into());
    let text = "n1 has the lock of epoch 4 and is no running primary: n1 says none, stopped";
    says(&status, Subject::Role, &format!("ROLE CRITICAL - {text}"));
    // The agent of a primary that crashed names it so until somebody else has the lock.
    (status.members[0].role, status.members[0].state) = ("primary".into(), "crashed".into());
    assert!(said(&status, &args(Subject::Role)).starts_with("ROLE CRITICAL - n1 has the lock"));
    let of = |role| CheckArgs { member: Some("n1".into()), role: Some(role), ..args(Subject::Role) };
    assert_eq!(said(&status, &of(Role::Primary)), "ROLE CRITICAL - n1 is primary, crashed\n");
}

/// A switchover and a restart take the primary back before its lock.
#[test]
fn a_primary_that_is_held_back_is_no_split_brain() {
    let mut status = healthy();
    status.primary = String::new();
    let begin = "no primary takes writes: the lock is open, its holder is held back by";
    let text = format!("{begin} an operation, or is kept out; `matriarch status` says more");
    says(&status, Subject::Role, &format!("ROLE CRITICAL - {text}"));
    says(&status, Subject::Lease, &format!("LEASE CRITICAL - {text}"));
    status.operation = Some(OperationStatus { id: 7, kind: "switchover".into(), ..OperationStatus::default() });
    (status.members[0].role, status.members[0].state) = ("none".into(), "stopped".into());
    let text = format!("{begin} the operation 7 (switchover); `matriarch status` says more");
    says(&status, Subject::Role, &format!("ROLE CRITICAL - {text}"));
}

/// Who doesn't lead knows its own host only, and may know an old state.
#[test]
fn without_a_leader_that_answers_nothing_is_known() {
    let mut status = healthy();
    status.leader = "n3".into();
    let of = |what, member: &str, role| CheckArgs { member: Some(member.into()), role, ..args(what) };
    for what in [Subject::Role, Subject::Archive, Subject::Slots, Subject::Disk, Subject::Sync] {
        let name = facts::name(what).to_uppercase();
        says(&status, what, &format!("{name} UNKNOWN - the Raft leader n3 does not answer"));
    }
    let role = said(&status, &of(Subject::Role, "n1", Some(Role::Primary)));
    assert_eq!(role, "ROLE UNKNOWN - the Raft leader n3 does not answer\n");
    status.leader = String::new();
    status.commits.as_mut().unwrap().mode = "async".into();
    for what in [Subject::Role, Subject::Archive, Subject::Slots, Subject::Disk, Subject::Sync] {
        let name = facts::name(what).to_uppercase();
        says(&status, what, &format!("{name} UNKNOWN - no Raft leader: what the managers know may be old"));
    }
}

#[test]
fn what_nobody_says_is_not_well() {
    let mut status = healthy();
    silent(&mut status, "n1");
    let of = |what, member: &str| CheckArgs { member: Some(member.into()), ..args(what) };
    for what in [Subject::Archive, Subject::Slots, Subject::Disk] {
        let name = facts::name(what).to_uppercase();
        assert_eq!(said(&status, &of(what, "n1")), format!("{name} UNKNOWN - nothing is heard of n1\n"));
        assert!(said(&status, &args(what)).starts_with(&format!("{name} UNKNOWN - nothing is heard of n1")), "{name}");
        assert!(said(&status, &of(what, "n2")).starts_with(&format!("{name} OK")), "of another it is known");
    }
    says(&status, Subject::Sync, "SYNC UNKNOWN - sync: nothing is heard of n1");
    silent(&mut status, "n3");
    assert!(said(&status, &of(Subject::Role, "n3")).contains("nothing is heard of n3"));
}

#[test]
fn what_is_of_the_cluster_is_not_of_a_member() {
    let of = |what, member: &str, role| CheckArgs { member: Some(member.into()), role, ..args(what) };
    for what in [Subject::Quorum, Subject::Lease, Subject::Sync] {
        let problem = unfit(&of(what, "n2", None)).unwrap();
        assert!(problem.contains("is of the whole cluster; leave it out"), "{problem}");
        assert_eq!(unfit(&args(what)), None);
    }
    assert!(unfit(&of(Subject::Lag, "n2", Some(Role::Primary))).unwrap().contains("asks for no role"));
    assert_eq!(unfit(&of(Subject::All, "n2", Some(Role::Primary))), None);
    let status = healthy();
    let lag = no_such_member(&of(Subject::Lag, "n1", None), &status).unwrap();
    assert!(lag.contains("n1 is the primary, which lags behind nobody; name a standby"), "{lag}");
    assert_eq!(no_such_member(&of(Subject::Lag, "n2", None), &status), None);
    let checks = |member: &str| -> Vec<&str> {
        let found = facts::findings(&of(Subject::All, member, None), &Limits::default(), &status);
        found.into_iter().map(|f| f.check).collect()
    };
    assert_eq!(checks("n2"), ["role", "lag", "slots", "archive", "disk"]);
    assert_eq!(checks("n1"), ["role", "slots", "archive", "disk"]);
}

#[test]
fn a_lag_is_measured_in_bytes_or_in_time() {
    let mut status = healthy();
    let of = |warning: &str, critical: &str| CheckArgs {
        warning: Some(warning.into()),
        critical: Some(critical.into()),
        ..args(Subject::Lag)
    };
    assert!(said(&status, &of("100", "300")).starts_with("LAG CRITICAL - n2 has not replayed 328 B"));
    assert!(said(&status, &of("1s", "60s")).starts_with("LAG WARNING - n2 has not replayed 1.3 s"));
    assert!(said(&status, &of("1s", "60s")).contains("n2_lag=1.3s;1;60"));
    status.members[1].replayed = Some(Lag { bytes: 5, ms: None });
    assert!(said(&status, &of("2s", "60s")).starts_with("LAG UNKNOWN - n2 has not replayed 5 B"));
    silent(&mut status, "n3");
    says(&status, Subject::Lag, "LAG CRITICAL - n3 is no standby that can be measured (silent)");
    // Who shows the past on purpose has all of it.
    let mut late = healthy();
    late.members[2].state = "delayed".into();
    late.members[2].replayed = Some(Lag { bytes: 5 << 30, ms: Some(3_600_000) });
    late.members[2].flushed = Some(Lag { bytes: 0, ms: Some(0) });
    says(&late, Subject::Lag, "LAG OK - n2 has not replayed 328 B, n3 has not flushed 0 B");
}

#[test]
fn slots_are_measured_against_what_they_may_hold_back() {
    let mut status = healthy();
    let slot = |bytes| SlotHolds { name: "n3".into(), owner: 1, active: false, bytes };
    let kept = |bytes| Some(KeptWal { limit_bytes: Some(1_000), slots: vec![slot(bytes)], ..KeptWal::default() });
    for (bytes, level) in [(500, "OK"), (850, "WARNING"), (990, "CRITICAL")] {
        status.members[0].kept_wal = kept(bytes);
        let text = format!("SLOTS {level} - slot n3 of n1 holds {bytes} B back, nobody reads it");
        says(&status, Subject::Slots, &text);
    }
    let strict = CheckArgs { warning: Some("1MB".into()), ..args(Subject::Slots) };
    assert!(said(&status, &strict).starts_with("SLOTS OK"), "what was given counts");
}

#[test]
fn an_archive_that_fails_warns_and_after_a_while_is_critical() {
    let mut status = healthy();
    let failing = |failing_ms| {
        let (last_failed, said) = ("0001".into(), "no space | left".into());
        Some(Archive { on: true, failing_ms, last_failed, said, ..Archive::default() })
    };
    status.members[0].archive = failing(None);
    says(&status, Subject::Archive, "ARCHIVE OK - archiving of n1 works, 0 files wait");
    status.members[0].archive = failing(Some(2_000));
    // A bar would begin the numbers.
    says(&status, Subject::Archive, "ARCHIVE WARNING - archiving of n1 has failed for 2 s, last 0001: no space / left");
    status.members[0].archive = failing(Some(301_000));
    assert!(said(&status, &args(Subject::Archive)).starts_with("ARCHIVE CRITICAL"));
}

#[test]
fn a_lease_that_is_not_held_is_critical() {
    let mut status = healthy();
    status.members[0].lease_remaining_ms = 0;
    says(&status, Subject::Lease, "LEASE CRITICAL - n1 does not hold its lease");
    (status.members[0].lease_remaining_ms, status.failsafe) = (900, "active".into());
    says(&status, Subject::Lease, "LEASE WARNING - failsafe: the primary goes on without the managers");
}

#[test]
fn a_disk_is_full_by_what_the_cluster_goes_by_or_by_percent() {
    let mut status = healthy();
    let of = |warning: &str, critical: &str| CheckArgs {
        warning: Some(warning.into()),
        critical: Some(critical.into()),
        member: Some("n1".into()),
        ..args(Subject::Disk)
    };
    assert!(said(&status, &of("50", "10")).starts_with("DISK WARNING - 40 % of n1"));
    assert!(said(&status, &of("60", "50")).starts_with("DISK CRITICAL - 40 % of n1"));
    status.members[1].room.as_mut().unwrap().data.as_mut().unwrap().short = true;
    says(&status, Subject::Disk, "DISK CRITICAL - 40 % of n2 are free for data");
    assert!(said(&status, &of("20", "10")).starts_with("DISK OK"), "n1 alone");
}

#[test]
fn sync_is_critical_when_commits_wait_and_warns_one_standby_before() {
    let mut status = healthy();
    silent(&mut status, "n3");
    let text = "sync: 1 confirm; when one more standby is lost commits would be confirmed by the primary alone";
    says(&status, Subject::Sync, &format!("SYNC WARNING - {text}"));
    status.commits.as_mut().unwrap().strict = true;
    assert!(said(&status, &args(Subject::Sync)).contains("lost commits would wait"));
    silent(&mut status, "n2");
    says(&status, Subject::Sync, "SYNC CRITICAL - sync: 0 of the 1 that have to confirm do, commits wait");
    let commits = status.commits.as_mut().unwrap();
    (commits.count, commits.names) = (0, Vec::new());
    assert!(said(&status, &args(Subject::Sync)).starts_with("SYNC CRITICAL - sync: no standby confirms"));
    status.commits.as_mut().unwrap().mode = "async".into();
    says(&status, Subject::Sync, "SYNC OK - async: commits wait for no standby");
}

#[test]
fn of_several_the_worst_decides_and_stands_first() {
    let mut status = healthy();
    silent(&mut status, "n3");
    status.members[0].lease_remaining_ms = 0;
    let findings = facts::findings(&args(Subject::All), &Limits::default(), &status);
    let first = text(&findings).lines().next().unwrap().to_owned();
    assert!(first.starts_with("MATRIARCH CRITICAL - quorum: 2 of 3"), "{first}");
    assert!(first.contains("lease: n1 does not hold its lease"), "{first}");
    assert_eq!(worst(&findings).exit(), Exit(2));
    assert_eq!(unknown(Subject::All, "gone".into()).level.exit(), Exit(3));
}
