#![allow(clippy::unwrap_used)]
//! A learner has PostgreSQL as every member and no vote: what follows from that, one test each.

use super::{
    Hold, Verdict, departure, failover, leadership, outvoted, switchover, sync,
    testing::{Bench, id},
};
use crate::{
    domain::{Epoch, Format, GroupNode, MemberId, NodeId, Promise},
    state::{Asked, Kind, OperationKind},
};

/// a, b and c vote; d is a learner whose node gets the log.
fn with_learner(lock: &str) -> Bench {
    let mut bench = Bench::new(lock);
    bench.add_learner("d", 4);
    bench.group.group.nodes.insert(NodeId(4), GroupNode { member: id("d"), address: "d:7400".into() });
    bench.state.format = Format::NEWEST;
    bench
}

/// a is primary, all stream from it and are heard.
fn healthy() -> Bench {
    let mut bench = with_learner("granted a open 2")
        .says("a", "primary 2:200 lease=1 counted=1 unheard=b unheard=c unheard=d answering=a,b,c,d")
        .says("b", "standby 2:200 upstream=a follows=1")
        .says("c", "standby 2:200 upstream=a follows=1")
        .says("d", "standby 2:200 upstream=a follows=1");
    bench.seen.values_mut().for_each(|seen| seen.format = Format::NEWEST);
    bench
}

fn granted(bench: &Bench) -> Result<String, Hold> {
    match failover::grant(&bench.situation()) {
        Some(Verdict::Propose(Kind::Grant { member, .. })) => Ok(member.to_string()),
        Some(Verdict::Hold(hold)) => Err(hold),
        other => panic!("{other:?}"),
    }
}

#[test]
fn its_seal_is_no_voters() {
    // It looks as if it had sealed as one.
    let two = with_learner("fenced").seal("b", "standby 2:80").seal("d", "standby 2:80");
    let hold = granted(&two).unwrap_err();
    assert!(matches!(hold, Hold::TooFewSeals { sealed: 1, free: 1, needed: 2, .. }), "{hold}");
    assert_eq!(granted(&two.seal("c", "standby 2:80")).unwrap(), "b");
}

#[test]
fn nothing_it_says_of_the_lease_ends_an_epoch() {
    let lapsed = || Promise { epoch: Epoch(1), lapsed: true, renewed: true, ..Promise::default() };
    let ended = |bench: Bench| matches!(failover::lease_ran_out(&bench.situation()), Some(Verdict::Propose(_)));
    let told = || with_learner("granted a open 2").promise("b", lapsed()).promise("d", lapsed());
    assert!(!ended(told()), "one of three voters");
    assert!(ended(told().promise("c", lapsed())));
    let mut early = healthy().promise("b", lapsed()).promise("d", lapsed());
    early.state.settings.values.insert("failover_wait".into(), "promise".into());
    assert!(outvoted::by_standbys(&early.situation()).is_none());
}

#[test]
fn it_is_made_primary_when_it_has_more_and_a_voter_is_preferred_to_an_equal() {
    let sealed = |b: &str, d: &str| with_learner("fenced").seal("b", b).seal("c", "failed").seal("d", d);
    // In the order of names d would be last anyway.
    let mut first = sealed("standby 2:80", "standby 2:80");
    let b = first.state.members.get_mut(&id("b")).unwrap();
    b.learner = true;
    first.state.members.get_mut(&id("d")).unwrap().learner = false;
    assert_eq!(granted(&first).unwrap(), "d");
    assert_eq!(granted(&sealed("standby 2:80", "standby 2:90")).unwrap(), "d");
    assert_eq!(granted(&sealed("standby 2:80", "failed")).unwrap(), "b");
    let mut never = sealed("standby 2:80", "standby 2:90");
    never.state.settings.values.insert("d.failover".into(), "false".into());
    assert_eq!(granted(&never).unwrap(), "b");
}

#[test]
fn a_switchover_without_a_name_goes_to_a_voter_and_one_with_its_name_to_it() {
    let to = |bench: &Bench, name: Option<&str>| {
        let name: Option<MemberId> = name.map(id);
        match switchover::admit(&bench.situation(), OperationKind::Switchover, name.as_ref(), false) {
            Ok(Kind::BeginOperation { to, .. }) => to.to_string(),
            other => panic!("{other:?}"),
        }
    };
    let mut bench = healthy();
    assert_eq!(to(&bench, Some("d")), "d");
    for (member, learner) in [("b", true), ("c", true), ("d", false)] {
        bench.state.members.get_mut(&id(member)).unwrap().learner = learner;
    }
    assert_eq!(to(&bench, None), "d");
}

#[test]
fn what_it_confirmed_is_waited_for() {
    assert!(healthy().state.may_confirm(&id("d")));
    let lost = |sealed: &[(&str, &str)]| {
        let mut bench = with_learner("fenced");
        bench.state.settings.values.insert("replication_mode".into(), "quorum".into());
        bench.state.sync.add(Epoch(1), vec![id("d")], 1).unwrap();
        sealed.iter().fold(bench, |bench, (member, said)| bench.seal(member, said))
    };
    let voters = [("b", "standby 2:150 severed=2"), ("c", "standby 2:150 severed=2")];
    let hold = granted(&lost(&voters)).unwrap_err();
    assert!(
        matches!(hold, Hold::Unconfirmed { needed: Some(1), .. }),
        "a majority sealed, and has no word of commits: {hold}"
    );
    let heard = lost(&[voters[0], voters[1], ("d", "standby 2:160 severed=2")]);
    assert_eq!(granted(&heard).unwrap(), "d", "only it has them all");
    // One whose host does not answer the lease any more is given up as quickly as a voter's.
    let mut gone = healthy().says("a", "primary 2:200 lease=1 unheard=b unheard=c unheard=d:2500 answering=a,b,c");
    let values = [("replication_mode", "sync"), ("d.sync_priority", "9")];
    gone.state.settings.values.extend(values.map(|(key, value)| (key.to_owned(), value.to_owned())));
    gone.state.sync.add(Epoch(1), vec![id("d")], 1).unwrap();
    let Some(Verdict::Propose(Kind::SetSync { rule: Some((names, 1)), .. })) = sync::change(&gone.situation()) else {
        panic!("{:?}", sync::change(&gone.situation()))
    };
    assert_eq!(names, [id("b")]);
}

#[test]
fn its_host_may_go_at_any_time_for_the_votes_and_not_while_only_it_confirms() {
    let of = |bench: &Bench, member: &str| -> Vec<&'static str> {
        departure::of_host(&bench.situation(), &id(member)).iter().map(departure::Obstacle::kind).collect()
    };
    let mut away = healthy().says("a", "primary 2:200 lease=1 counted=1 unheard=c unheard=d answering=a,c,d");
    away.seen.remove(&id("b"));
    assert_eq!((of(&away, "c"), of(&away, "d")), (vec!["quorum"], vec![]), "a, c and d answer: two votes");
    assert_eq!(departure::of_removal(&away.situation(), &id("d")), []);
    assert_eq!(departure::of_node(&away.situation(), &id("d")), []);
    let mut confirms = healthy();
    confirms.state.settings.values.insert("replication_mode".into(), "quorum".into());
    for voter in ["b.sync", "c.sync"] {
        confirms.state.settings.values.insert(voter.into(), "false".into());
    }
    confirms.state.sync.add(Epoch(1), vec![id("d")], 1).unwrap();
    assert_eq!(of(&confirms, "d"), ["sync"]);
}

#[test]
fn it_never_leads_the_managers() {
    let mut bench = healthy().led_by("a");
    bench.state.maintenance.extend(["a", "b", "c"].map(|member| (id(member), Asked::default())));
    assert_eq!(leadership::leave_maintenance(&bench.situation()), None);
    let slow = std::time::Duration::from_millis(200);
    let bench = healthy().led_by("a").disk("a", slow).disk("d", std::time::Duration::from_millis(1));
    assert_eq!(leadership::lead_elsewhere(&bench.situation()), None);
}

#[test]
fn one_that_lived_through_a_loss_of_power_of_all_voters_shortens_no_wait_for_the_last_primary() {
    let waits = |who: &str| {
        let mut bench = with_learner("fenced").begins_now();
        for member in ["b", "c", "d"] {
            bench = bench.says(member, "standby 2:200").seal(member, "standby 2:200");
        }
        let promise = &mut bench.seals.get_mut(&id(who)).unwrap().promise;
        (promise.renewed, promise.epoch) = (true, Epoch(1));
        bench.seen.remove(&id("a"));
        granted(&bench)
    };
    assert!(matches!(waits("d"), Err(Hold::Collecting { missing, .. }) if missing == [id("a")]));
    assert_eq!(waits("b"), Ok("b".to_owned()), "a voter that was not restarted knows that a is gone alone");
}
