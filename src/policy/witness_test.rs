#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, time::Duration};

use super::*;
use crate::{
    domain::{Epoch, Format, Moment, Profile, Timings, WalPosition},
    policy::{
        Hold, Verdict, candidates, copies, departure, evidence, failover, outvoted, pause, reader, reinit, settings,
        switchover, sync,
        testing::{Bench, id, position},
        timings,
    },
    state::{Kind, OperationKind},
};

/// a and b have PostgreSQL, c is a witness.
fn with_witness(lock: &str) -> Bench {
    let mut bench = Bench::new(lock);
    let witness = bench.state.members.get_mut(&id("c")).unwrap();
    (witness.postgres, witness.agent) = (String::new(), String::new());
    bench.state.format = Format::NEWEST;
    bench
}

/// All are well, and the manager of c is heard.
fn healthy() -> Bench {
    let mut bench = with_witness("granted a open 2")
        .says("a", "primary 2:200 lease=1 unheard=b answering=a,b,c")
        .says("b", "standby 2:200 upstream=a follows=1")
        .says("c", "nodata");
    bench.seen.get_mut(&id("c")).unwrap().agent = None;
    bench.seen.values_mut().for_each(|seen| seen.format = Format::NEWEST);
    bench
}

/// a is gone; b and c have sealed the next epoch.
fn fenced(b: &str) -> Bench {
    let mut bench = with_witness("fenced").seal("b", b).seal("c", "nodata");
    bench.seals.get_mut(&id("c")).unwrap().agent = None;
    bench
}

fn granted(bench: &Bench) -> Option<String> {
    match failover::grant(&bench.situation()) {
        Some(Verdict::Propose(Kind::Grant { member, .. })) => Some(member.to_string()),
        _ => None,
    }
}

#[test]
fn its_seal_makes_the_majority_that_grants_the_other_host() {
    assert_eq!(granted(&fenced("standby 2:80")), Some("b".to_owned()));
    let mut alone = fenced("standby 2:80");
    alone.seals.remove(&id("c"));
    let hold = failover::grant(&alone.situation());
    assert!(matches!(hold, Some(Verdict::Hold(Hold::TooFewSeals { sealed: 1, needed: 2, .. }))), "{hold:?}");
    let mut bound = fenced("standby 2:80");
    bound.seals.get_mut(&id("c")).unwrap().promise.lapsed = false;
    let hold = failover::grant(&bound.situation());
    assert!(matches!(hold, Some(Verdict::Hold(Hold::TooFewSeals { free: 1, .. }))), "its promise counts: {hold:?}");
}

#[test]
fn the_loss_of_the_primary_is_told_by_it_and_the_other_host() {
    let lapsed = || crate::domain::Promise { epoch: Epoch(1), lapsed: true, renewed: true, ..Default::default() };
    let ended = |bench: Bench| matches!(failover::lease_ran_out(&bench.situation()), Some(Verdict::Propose(_)));
    assert!(ended(with_witness("granted a open 2").promise("b", lapsed()).promise("c", lapsed())));
    assert!(!ended(with_witness("granted a open 2").promise("c", lapsed())), "one of three is no majority");
}

#[test]
fn it_is_never_granted_and_no_reason_is_given_for_what_nobody_could_wish() {
    let bench = fenced("failed");
    let Some(Verdict::Hold(Hold::NoSuccessor { why })) = failover::grant(&bench.situation()) else { panic!() };
    assert_eq!(why.iter().map(|(m, _)| m.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let nobody = candidates::nobody(&bench.situation(), None).unwrap();
    assert_eq!(nobody.len(), 2);
    // Also when something there claims to be a PostgreSQL.
    let mut odd = fenced("failed");
    odd = odd.seal("c", "standby 2:900");
    assert_eq!(granted(&odd), None);
    assert!(candidates::successor(&odd.situation(), None, Some(&id("c"))).is_err(), "not by command either");
}

#[test]
fn after_a_start_of_everything_nobody_waits_for_its_agent() {
    let waits = |bench: &Bench| {
        let mut s = bench.situation();
        (s.since.start, s.now) = (s.now, Moment(s.now.0 + Duration::from_millis(10)));
        match failover::grant(&s) {
            Some(Verdict::Hold(Hold::Collecting { missing, .. })) => Some(missing),
            _ => None,
        }
    };
    assert_eq!(waits(&fenced("standby 2:80")), Some(vec![id("a")]));
    assert_eq!(waits(&fenced("standby 2:80").seal("a", "stopped 2:80")), None);
}

#[test]
fn commits_are_never_confirmed_by_it() {
    let rule = |count: &str, strict: &str| {
        let mut bench = healthy();
        let values = [("replication_mode", "quorum"), ("sync_strict", strict), ("sync_count", count)];
        bench.state.settings.values.extend(values.map(|(k, v)| (k.to_owned(), v.to_owned())));
        // It looks like a standby that streams.
        let bench = bench.says("c", "standby 2:200 upstream=a follows=1");
        match sync::change(&bench.situation()) {
            Some(Verdict::Propose(Kind::SetSync { rule: Some((names, count)), .. })) => {
                Some((names.iter().map(ToString::to_string).collect::<Vec<_>>(), count))
            }
            _ => None,
        }
    };
    for (count, strict) in [("1", "true"), ("2", "false")] {
        assert!(rule(count, strict).is_none_or(|(names, _)| !names.contains(&"c".to_owned())), "{count} {strict}");
    }
    let bench = healthy();
    assert!(!bench.state.may_confirm(&id("c")) && bench.state.may_confirm(&id("b")));
    let start = |end: WalPosition| {
        let mut bench = fenced("standby 2:80");
        bench.state.settings.values.insert("replication_mode".into(), "quorum".into());
        sync::start(&bench.situation(), (&id("b"), end), None, (None, &Default::default())).unwrap()
    };
    assert!(!start(position("2:80")).names.contains(&id("c")));
    assert!(outvoted::by_standbys(&healthy().situation()).is_none());
}

#[test]
fn too_few_could_confirm_is_counted_without_it() {
    let ask = |count: &str| {
        let changes = [("replication_mode", "quorum"), ("sync_strict", "true"), ("sync_count", count)];
        let changes = changes.map(|(key, value)| (key.to_owned(), Some(value.to_owned()))).into();
        settings::admit(&healthy().situation(), 0, &changes, "")
    };
    assert!(ask("1").is_ok());
    let why = format!("{:?}", ask("2").unwrap_err());
    assert!(why.contains("with a as primary there are 1 standbys that may confirm"), "{why}");
}

#[test]
fn what_is_asked_of_its_postgresql_is_refused_in_words() {
    let bench = healthy();
    let s = bench.situation();
    let c = id("c");
    let begin = |kind| switchover::admit(&s, kind, Some(&c), true).unwrap_err();
    for kind in [OperationKind::Switchover, OperationKind::Failover] {
        assert_eq!(begin(kind), "c is a witness: it votes and has no PostgreSQL that could be primary");
    }
    assert_eq!(begin(OperationKind::Restart), "c is a witness: it votes and has no PostgreSQL to restart");
    assert!(switchover::would_lose(&s, &c).unwrap_err().contains("no PostgreSQL that could be primary"));
    let copy = |member: &MemberId, from: Option<&MemberId>| {
        reinit::admit(&s, reinit::Asked { member, from, force: true }).unwrap_err()
    };
    assert!(copy(&c, None).ends_with("has no PostgreSQL whose data could be copied anew"));
    let from = copy(&id("b"), Some(&c));
    assert!(from.ends_with("has no PostgreSQL that could be copied"), "{from}");
    let aside = pause::admit_maintenance(&s, &c, true, "", "").unwrap_err();
    assert!(aside.contains("no PostgreSQL to leave alone; `matriarch member check`"), "{aside}");
}

#[test]
fn a_switchover_without_a_name_goes_to_the_other_host() {
    let chosen = switchover::admit(&healthy().situation(), OperationKind::Switchover, None, false);
    let Ok(Kind::BeginOperation { to, .. }) = chosen else { panic!("{chosen:?}") };
    assert_eq!(to, id("b"));
}

#[test]
fn nothing_is_set_for_it_and_nobody_is_set_to_follow_it() {
    let ask = |key: &str, value: &str| {
        let changes = [(key.to_owned(), Some(value.to_owned()))].into();
        format!("{:?}", settings::admit(&healthy().situation(), 0, &changes, ""))
    };
    for (key, value) in [("c.priority", "50"), ("c.sync", "false"), ("c.parameters.work_mem", "1MB")] {
        let why = ask(key, value);
        assert!(why.contains("c is a witness: it votes and has no PostgreSQL that this could be set for"), "{why}");
    }
    let why = ask("b.replicatefrom", "c");
    assert!(why.contains("b: replicatefrom: c is a witness, without PostgreSQL to stream from"), "{why}");
    assert!(ask("b.priority", "50").starts_with("Ok"), "{}", ask("b.priority", "50"));
}

#[test]
fn its_host_may_go_as_a_voters_may() {
    let of = |bench: &Bench, member: &str| -> Vec<&'static str> {
        departure::of_host(&bench.situation(), &id(member)).iter().map(departure::Obstacle::kind).collect()
    };
    assert_eq!(of(&healthy(), "c"), [""; 0]);
    assert_eq!(departure::notes(&healthy().situation(), &id("c")), Vec::<String>::new());
    let mut away = healthy().says("a", "primary 2:200 lease=1 unheard=b answering=a,c");
    away.seen.remove(&id("b"));
    assert_eq!(of(&away, "c"), ["quorum"]);
    let mut gone = healthy().says("a", "primary 2:200 lease=1 unheard=b answering=a,b");
    gone.seen.remove(&id("c"));
    assert_eq!(of(&gone, "b"), ["quorum"], "its loss is a voter's loss");
    // Nobody is primary: whoever has data may have commits that nobody else has, and it has none.
    let mut nobody = fenced("standby 2:80").says("b", "standby 2:80").says("a", "stopped 2:80").says("c", "nodata");
    nobody.seen.get_mut(&id("c")).unwrap().agent = None;
    assert_eq!((of(&nobody, "b"), of(&nobody, "c")), (vec!["no_primary"], vec![]));
}

#[test]
fn two_members_with_postgresql_stay() {
    let bench = healthy();
    let why = enough_without(&bench.situation(), &id("b")).unwrap_err();
    assert!(why.starts_with("1 member with PostgreSQL would be left"), "{why}");
    assert_eq!(enough_without(&bench.situation(), &id("c")), Ok(()));
    let three = Bench::new("granted a open 2");
    assert_eq!(enough_without(&three.situation(), &id("b")), Ok(()));
    assert_eq!(enough_without(&three.situation(), &id("x")), Ok(()), "which is refused for another reason");
}

#[test]
fn other_timings_wait_for_no_word_of_an_agent_that_is_not_there() {
    let bench = healthy();
    let asked = timings::Asked { profile: Profile::Slow, overrides: &BTreeMap::new(), reset: true, instead_of: None };
    let file = Timings::of(Profile::Normal);
    let done = timings::admit(&bench.situation(), (Profile::Normal, &file), asked);
    assert!(matches!(done, Ok(Some(Kind::SetTimings { .. }))), "{done:?}");
}

#[test]
fn it_is_copied_by_nobody_and_has_no_address_for_standbys() {
    let bench = healthy().says("c", "standby 2:200 upstream=a");
    assert_eq!(copies::source(&bench.situation(), &id("b")).map(MemberId::as_str), None);
    let lent = bench.state.clone().apply(&crate::state::Command {
        request_id: "r".into(),
        expected: Epoch(1),
        because: crate::state::RuleId(1),
        kind: Kind::Lend { member: id("c"), id: 1, life: Duration::from_secs(1) },
        evidence: None,
    });
    assert!(matches!(lent, crate::state::Applied::Stale { .. }), "{lent:?}");
    assert!(reader::lend(&bench.situation()).is_none());
    let told = evidence::of(&healthy().situation(), &id("a"), 0, (&[], &[]));
    assert!(told.seen[2].ends_with("; a witness"), "{:?}", told.seen);
}
