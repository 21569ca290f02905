use super::*;
use crate::{
    domain::{EndCause, Epoch, Lsn, TimelineId, TimelineSwitch},
    policy::{
        candidates, failover,
        testing::{Bench, id, position},
    },
    state::{Asked, Hibernation, Release, Stopped, TimelineRecord},
};

fn bench(lock: &str, a: &str, b: &str, c: &str) -> Bench {
    let mut bench = Bench::new(lock).says("a", a).says("b", b).says("c", c).operation_began_now();
    for member in ["a", "b", "c"] {
        bench.seen.get_mut(&id(member)).unwrap().format = Format::NEWEST;
    }
    let end = lock.contains("wake").then(|| position("2:90"));
    if lock.contains("hibernate") || end.is_some() {
        hibernated(&mut bench, end, end.is_some());
    }
    bench
}

fn hibernated(bench: &mut Bench, end: Option<WalPosition>, waking: bool) {
    let asked = Asked { reason: "move".into(), by: "kim".into(), stopped: None };
    bench.state.hibernation = Some(Hibernation { asked, at_ms: 7, primary: id("a"), end, waking });
}

/// Whoever was primary gave its lease up with this last word.
fn gave_up(bench: &mut Bench, end: &str, clean: bool) {
    let Lock::Fenced { released, .. } = &mut bench.state.lock else { panic!() };
    let (end, cause) = (position(end), EndCause::Unknown);
    *released = Some(Release { epoch: Epoch(1), member: id("a"), end, clean, cause });
}

const FOLLOWS: &str = "standby 2:90 upstream=a follows=1";

fn open() -> Bench {
    bench("granted a open 2", "primary 2:90 lease=1", FOLLOWS, FOLLOWS)
}

fn ask(bench: &Bench, force: bool) -> Result<Option<Kind>, String> {
    admit(&bench.situation(), Words { reason: "move", by: "kim", force })
}

fn next(bench: &Bench) -> Option<Verdict> {
    let s = bench.situation();
    over(&s).filter(|v| !matches!(v, Verdict::Hold(_))).or_else(|| go_on(&s)).or_else(|| over(&s))
}

/// The phase it goes on to, its end, or what it waits for.
fn told(bench: &Bench) -> String {
    match next(bench) {
        Some(Verdict::Propose(Kind::AdvanceOperation { phase, .. })) => format!("{phase:?}"),
        Some(Verdict::Propose(Kind::Hibernate(HibernateChange::Down { end, .. }))) => format!("down at {end}"),
        Some(Verdict::Propose(Kind::EndOperation { succeeded, reason, .. })) => format!("{succeeded}: {reason}"),
        Some(Verdict::Hold(Hold::Operation { waits_for, .. })) => format!("waits for {waits_for}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_cluster_that_is_well_is_stopped_once() {
    let Ok(Some(Kind::Hibernate(HibernateChange::Begin { from, reason, by, force }))) = ask(&open(), false) else {
        panic!()
    };
    assert_eq!((from, reason.as_str(), by.as_str(), force), (id("a"), "move", "kim", false));
    let mut asleep = open();
    hibernated(&mut asleep, Some(position("2:90")), false);
    assert_eq!(ask(&asleep, false), Ok(None));
    assert_eq!(admit_wake(&open().situation(), "kim"), Ok(None), "it is not stopped");
    let mut alone = bench("granted a open 2", "primary 2:90 lease=1", "stopped 2:80", "standby 2:80");
    assert!(ask(&alone, false).unwrap_err().starts_with("no standby streams"));
    assert!(ask(&alone, true).is_ok());
    alone.state.paused = Some(Asked::default());
    assert!(ask(&alone, true).unwrap_err().contains("paused"));
    assert!(
        ask(&bench("granted a open 2; switchover b stop", "primary 2:90 lease=1", FOLLOWS, FOLLOWS), true).is_err()
    );
    assert!(ask(&bench("fenced", "standby 2:90", FOLLOWS, FOLLOWS), true).unwrap_err().contains("no open primary"));
    let mut older = open();
    older.seen.get_mut(&id("c")).unwrap().format = Format::FIRST;
    assert!(ask(&older, false).unwrap_err().starts_with("c runs a version"));
}

#[test]
fn nothing_else_begins_meanwhile() {
    use crate::policy::{agenda, halt, reinit, rolling, switchover};
    let mut asleep = open();
    hibernated(&mut asleep, Some(position("2:90")), false);
    let s = asleep.situation();
    let is_said =
        |why: String| assert!(why.contains("hibernated by kim: move; `matriarch start --all` wakes it"), "{why}");
    for kind in [OperationKind::Switchover, OperationKind::Failover, OperationKind::Restart] {
        is_said(switchover::admit(&s, kind, Some(&id("b")), true).unwrap_err());
    }
    let (b, force) = (id("b"), true);
    is_said(reinit::admit(&s, reinit::Asked { member: &b, from: None, force }).unwrap_err());
    is_said(halt::admit_stop(&s, &b, Words { force, ..Words::default() }).unwrap_err());
    let wanted = rolling::Wanted { pending: false, primary: crate::state::PrimaryTurn::InPlace };
    is_said(rolling::admit(&s, wanted, "kim").unwrap_err());
    let scheduled = agenda::admit(&s, OperationKind::Restart, (None, Some(&b)), u64::MAX, "kim");
    is_said(format!("{scheduled:?}"));
}

#[test]
fn it_is_stopped_as_in_a_switchover_and_its_wal_is_waited_for() {
    let at = |phase: &str, a: &str, b: &str, c: &str| bench(&format!("granted a open 2; hibernate a {phase}"), a, b, c);
    let primary = "primary 2:90 lease=1";
    assert_eq!(told(&at("checkpoint", primary, FOLLOWS, FOLLOWS)), "waits for a checkpoint on a");
    let mut flushed = at("checkpoint", primary, FOLLOWS, FOLLOWS);
    flushed.seen.get_mut(&id("a")).unwrap().agent.as_mut().unwrap().checkpoints_done = 1;
    assert_eq!(told(&flushed), "HoldWrites");
    assert_eq!(told(&at("hold", primary, FOLLOWS, FOLLOWS)), "Stop");
    assert_eq!(told(&at("stop", primary, FOLLOWS, FOLLOWS)), "waits for PostgreSQL on a to stop");
    let down = "stopped 2:95 lease=1 clean";
    let has = "standby 2:95 upstream=a";
    assert_eq!(told(&at("stop", down, has, FOLLOWS)), "waits for c to have all WAL of a");
    assert_eq!(told(&at("stop", down, has, has)), "down at 2:0/5F");
    assert_eq!(told(&at("stop", down, has, "nodata")), "down at 2:0/5F", "who gets nothing is not waited for");
    assert_eq!(told(&at("stop", down, "nodata", "stopped 2:80")), "RollBack", "nobody has it");
    let mut forced = at("stop", down, "nodata", "stopped 2:80");
    forced.state.operation.as_mut().unwrap().accepts_loss = true;
    assert_eq!(told(&forced), "down at 2:0/5F");
    let crashed = at("stop", "crashed 2:90 lease=1", has, has);
    assert!(told(&crashed).starts_with("false: a did not stop cleanly"), "{}", told(&crashed));
    assert!(told(&at("rollback", primary, has, has)).starts_with("false: rolled back"));
}

#[test]
fn a_primary_that_loses_its_lease_before_is_no_hibernation() {
    let lost = bench("fenced; hibernate a stop", "stopped 2:90", FOLLOWS, FOLLOWS);
    assert_eq!(told(&lost), "false: a lost its lease before it was stopped");
}

#[test]
fn it_is_over_when_nobody_has_the_lock_and_nothing_runs() {
    let at = |lock: &str, b: &str| {
        let mut bench = bench(&format!("{lock}; hibernate a transfer"), "stopped 2:90 lease=1", b, "stopped 2:90");
        hibernated(&mut bench, Some(position("2:90")), false);
        told(&bench)
    };
    assert_eq!(at("granted a open 2", "stopped 2:90"), "waits for a to give its lease up");
    assert_eq!(at("released a", FOLLOWS), "waits for b to stop");
    assert_eq!(at("fenced", "stopped 2:90"), "true: the cluster is hibernated, the WAL of a ends at 2:0/5A");
}

#[test]
fn a_lease_that_is_not_given_up_is_ended_and_holds_nobody_up_for_ever() {
    let lock = "granted a open 2; hibernate a transfer";
    let mut bench = bench(lock, "stopped 2:90 lease=1", "stopped 2:90", "stopped 2:90");
    hibernated(&mut bench, Some(position("2:90")), false);
    // Its manager ended right after that was committed; its agent, which has heard of nothing, goes on renewing.
    bench.seen.remove(&id("a"));
    bench.now_is(60_000 + 600_000);
    let Some(Verdict::Propose(Kind::Fence { reason, .. })) = over(&bench.situation()) else { panic!() };
    assert_eq!(reason, "hibernation 1: a has not given its lease up in time");
    bench.state.lock = crate::policy::testing::state("fenced").lock;
    let ended = told(&bench);
    assert!(ended.starts_with("true: the cluster is hibernated") && ended.contains("does not answer"), "{ended}");
}

#[test]
fn it_is_rolled_back_for_as_long_as_the_stop_waits_for_transactions() {
    let lock = "granted a open 2; hibernate a rollback";
    let mut bench = bench(lock, "stopping 2:90 lease=1", FOLLOWS, FOLLOWS);
    bench.state.settings.values.insert("drain_timeout_ms".into(), "10000".into());
    let limit = bench.situation().timings.primary_start + bench.state.settings.settings().drain_timeout;
    let began = 60_000;
    bench.now_is(began + limit.as_millis() as u64 - 1);
    assert_eq!(told(&bench.hears_again("a")), "waits for a to be primary again");
}

#[test]
fn how_much_may_be_missing_is_known_of_a_cluster_that_wakes() {
    let mut bench = bench("fenced; wake a", "stopped 2:90", "standby 2:90", "standby 2:90");
    for member in ["b", "c"] {
        bench = bench.seal(member, "standby 2:90");
    }
    // Nobody is left who heard of the former primary's end but the log.
    bench.seen.remove(&id("a"));
    bench.state.settings.values.insert("maximum_lag_on_failover".into(), "1000".into());
    let best = candidates::successor(&bench.situation(), None, None).map(|(member, ..)| member);
    assert_eq!(best, Ok(id("b")));
}

#[test]
fn nobody_is_granted_the_lock_before_it_is_woken_and_then_the_same_member_is() {
    let sealed = |lock: &str, a: &str, b: &str| {
        let mut bench = bench(lock, a, b, "standby 2:90");
        for (member, said) in [("a", a), ("b", b), ("c", "standby 2:90")] {
            bench = bench.seal(member, said);
        }
        gave_up(&mut bench, "2:90", true);
        bench
    };
    let mut asleep = sealed("fenced", "stopped 2:90", "standby 2:90");
    hibernated(&mut asleep, Some(position("2:90")), false);
    assert!(matches!(failover::grant(&asleep.situation()), Some(Verdict::Hold(Hold::Hibernated { .. }))));
    let best = |bench: &Bench| candidates::successor(&bench.situation(), None, None).map(|(member, ..)| member);
    let mut awake = sealed("fenced; wake a", "stopped 2:90", "standby 2:90");
    assert_eq!(best(&awake), Ok(id("a")), "though others run already");
    awake.state.settings.values.insert("b.priority".into(), "200".into());
    assert_eq!(best(&awake), Ok(id("a")), "it was primary");
    awake.seals.remove(&id("a"));
    assert_eq!(best(&awake), Ok(id("b")), "it has everything, too");
    // Once somebody was granted, it may have taken writes that only others have.
    let mut granted = sealed("fenced; wake a", "standby 2:90", "standby 3:200");
    assert_eq!(granted.state.highest_timeline(), TimelineId(2));
    let (timeline, epoch) = (TimelineId(3), Epoch(9));
    granted.state.lineage.push(TimelineRecord { timeline, epoch, switch: Some(position("2:90")), first_record: None });
    let b = granted.seals.get_mut(&id("b")).unwrap().agent.as_mut().unwrap();
    b.history.switches.push(TimelineSwitch { timeline: TimelineId(2), end: Lsn(90) });
    assert_eq!(
        best(&granted),
        Ok(id("b")),
        "what was written after the wake is not given up for who was primary before"
    );
    let mut short = sealed("fenced; wake a", "failed", "standby 2:89");
    short.seals.remove(&id("c"));
    let Err(Hold::NoSuccessor { why }) = best(&short) else { panic!() };
    assert!(why.iter().any(|(who, why)| *who == id("b") && why.to_string().contains("2:0/5A")), "{why:?}");
}

/// A manager that was restarted and has not read of the hibernation yet has the primary restarted in place: commits of that
/// time are where the rules say.
#[test]
fn a_primary_that_ran_again_before_it_gave_its_lease_up_is_succeeded_by_the_rules() {
    let awake = |last: Option<(&str, bool)>| {
        let mut bench = bench("fenced; wake a", "stopped 2:90", "standby 2:90", "standby 2:90");
        bench = bench.seal("b", "standby 2:90");
        bench.state.sync.add(Epoch(1), [id("b"), id("c")].into(), 1).unwrap();
        if let Some((end, clean)) = last {
            gave_up(&mut bench, end, clean);
        }
        candidates::successor(&bench.situation(), None, None).map(|(member, ..)| member)
    };
    assert_eq!(awake(Some(("2:90", true))), Ok(id("b")));
    assert!(matches!(awake(Some(("2:91", true))), Err(Hold::NoSuccessor { .. })), "that is where it ends now");
    // A host that is lost before it could say so may have run, too.
    for last in [Some(("2:90", false)), Some(("2:91", false)), None] {
        assert!(matches!(awake(last), Err(Hold::Unconfirmed { .. })), "c may have confirmed what b lacks: {last:?}");
    }
}

#[test]
fn it_is_awake_when_somebody_is_open() {
    let waits = bench("fenced; wake a", "stopped 2:90", FOLLOWS, FOLLOWS);
    assert_eq!(told(&waits), "waits for a, or another with all its WAL, to be primary");
    let mut open = bench("granted b open 3; wake a", "standby 3:90", "primary 3:90 lease=1", FOLLOWS);
    open.state.hibernation = None;
    assert_eq!(told(&open), "true: b is primary of epoch 1");
}

#[test]
fn what_an_operator_should_know_is_said_before() {
    let mut some = open();
    let stopped = Some(Stopped::default());
    some.state.maintenance.insert(id("b"), Asked { by: "kim".into(), stopped, ..Asked::default() });
    some.state.maintenance.insert(id("c"), Asked::default());
    let said = warnings(&some.situation());
    assert_eq!(said.len(), 2, "{said:?}");
    assert_eq!(said[1], "c is in maintenance: PostgreSQL there is left to you");
    hibernated(&mut some, Some(position("2:90")), false);
    some.seen.remove(&id("a"));
    let said = wake_warnings(&some.situation());
    assert!(said[0].starts_with("a, which was primary, does not answer") && said[0].ends_with("2:0/5A"), "{said:?}");
    assert_eq!(said[1], "b stays stopped by kim; `matriarch start b` starts it");
}
