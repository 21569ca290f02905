use super::*;
use crate::{
    policy::testing::{Bench, id},
    state::Asked as Words,
};

/// `a` is primary; what b and c say.
fn bench(lock: &str, b: &str, c: &str) -> Bench {
    let a = "primary 2:90 lease=1 unheard=b unheard=c answering=a,b,c";
    let mut bench = Bench::new(lock).says("a", a).says("b", b).says("c", c);
    for member in ["a", "b", "c"] {
        bench.seen.get_mut(&id(member)).unwrap().format = Format::NEWEST;
    }
    bench
}

const FOLLOWS: &str = "standby 2:80 upstream=a follows=1";

fn ask(bench: &Bench, member: &str, from: Option<&str>, force: bool) -> Result<Kind, String> {
    let (member, from) = (id(member), from.map(id));
    admit(&bench.situation(), Asked { member: &member, from: from.as_ref(), force })
}

#[test]
fn a_standby_is_copied_anew_whatever_it_is_like_and_nobody_else_is() {
    for b in [FOLLOWS, "standby 1:70", "stopped 2:80", "failed", "starting", "nodata", "failed clones=9"] {
        let begun = ask(&bench("granted a open 2", b, FOLLOWS), "b", None, false).unwrap();
        let to_begin =
            Kind::BeginOperation { kind: OperationKind::Reinit, from: None, to: id("b"), accepts_loss: false };
        assert_eq!(begun, to_begin, "{b}");
    }
    let refused = |lock: &str, b: &str, member: &str| ask(&bench(lock, b, FOLLOWS), member, None, true).unwrap_err();
    assert!(refused("granted a open 2", FOLLOWS, "a").starts_with("a is the primary, whose data"));
    assert!(refused("granted a open 2", FOLLOWS, "x").contains("no member"));
    assert!(refused("fenced", FOLLOWS, "b").starts_with("there is no open primary"));
    assert!(refused("granted a open 2", "busy cloning", "b").starts_with("b is at work (clone"));
    assert_eq!(
        refused("granted a open 2", "stopping", "b"),
        "PostgreSQL on b is stopping: try again when that is over"
    );
    assert!(refused("granted a open 2", "failed system=8", "b").contains("another cluster (system 8)"));
    let under_way = refused("granted a open 2; reinit c copy", FOLLOWS, "b");
    assert!(
        under_way.starts_with("operation 1 copies c anew: wait, or `matriarch operations cancel 1`"),
        "{under_way}"
    );
}

#[test]
fn what_is_left_alone_or_too_old_is_not_copied() {
    let mut aside = bench("granted a open 2", FOLLOWS, FOLLOWS);
    aside.state.maintenance.insert(id("b"), Words { reason: "disk".into(), ..Words::default() });
    assert!(ask(&aside, "b", None, true).unwrap_err().starts_with("b is in maintenance: disk;"));
    let mut old = bench("granted a open 2", FOLLOWS, FOLLOWS);
    old.seen.get_mut(&id("c")).unwrap().format = Format::FIRST;
    assert!(ask(&old, "b", None, false).unwrap_err().starts_with("c runs a version"));
    let mut agent = bench("granted a open 2", FOLLOWS, FOLLOWS);
    agent.seen.get_mut(&id("b")).unwrap().agent.as_mut().unwrap().copied_for = None;
    assert!(ask(&agent, "b", None, false).unwrap_err().starts_with("the agent of b is of a version"));
}

#[test]
fn the_source_is_the_primary_or_a_standby_that_streams() {
    let from = |c: &str, from: &str| ask(&bench("granted a open 2", FOLLOWS, c), "b", Some(from), false);
    assert!(from(FOLLOWS, "a").is_ok());
    let Ok(Kind::BeginOperation { from: Some(source), .. }) = from(FOLLOWS, "c") else { panic!() };
    assert_eq!(source, id("c"));
    assert_eq!(from(FOLLOWS, "b").unwrap_err(), "b can't be copied from itself");
    assert!(from(FOLLOWS, "x").unwrap_err().contains("no member"));
    assert_eq!(from("stopped 2:80", "c").unwrap_err(), "c, which is to be copied, is stopped");
    assert!(from("standby 2:80", "c").unwrap_err().ends_with("and does not stream"));
}

#[test]
fn whoever_commits_need_is_copied_by_force_only() {
    let strict = |names: &str, count: &str, c: &str, force| {
        let mut bench = bench("granted a open 2", FOLLOWS, c);
        bench.state.format = Format::NEWEST;
        let values = [("replication_mode", "quorum"), ("sync_strict", "true"), ("sync_count", count)];
        bench.state.settings.values.extend(values.map(|(key, value)| (key.to_owned(), value.to_owned())));
        let names = names.split_whitespace().map(id).collect();
        bench.state.sync.add(crate::domain::Epoch(1), names, count.parse().unwrap()).unwrap();
        ask(&bench, "b", None, force)
    };
    assert!(strict("b c", "1", FOLLOWS, false).is_ok(), "c confirms");
    for (names, count, c) in [("b", "1", "stopped 2:80"), ("b c", "2", FOLLOWS)] {
        let refused = strict(names, count, c, false).unwrap_err();
        assert!(refused.starts_with("commits need b, and") && refused.contains("--force"), "{refused}");
        let Ok(Kind::BeginOperation { accepts_loss: true, .. }) = strict(names, count, c, true) else { panic!() };
    }
}

/// What rules 266 and 268 say while b is copied anew, right after the phase began.
fn say(phase: &str, b: &str) -> String {
    let bench = bench(&format!("granted a open 2; reinit b {phase}"), b, FOLLOWS);
    let mut situation = bench.situation();
    situation.since.operation = situation.now;
    match over(&situation).or_else(|| go_on(&situation)) {
        None => "nothing".to_owned(),
        Some(Verdict::Hold(hold)) => format!("holds: {hold}"),
        Some(Verdict::Propose(Kind::EndOperation { succeeded, reason, .. })) => format!("{succeeded}: {reason}"),
        Some(Verdict::Propose(Kind::AdvanceOperation { phase, .. })) => format!("{phase:?}"),
        Some(other) => panic!("{other:?}"),
    }
}

#[test]
fn it_is_over_when_the_copy_streams_and_when_it_fails() {
    assert!(say("copy", FOLLOWS).contains("waits for the copy to b to begin"));
    assert_eq!(say("copy", "busy cloning"), "nothing", "as long as it takes");
    assert_eq!(say("copy", "stopped 2:80 copied=1"), "Stream");
    assert_eq!(
        say("copy", "stopped 2:80 failed=clone"),
        "false: b could not be copied anew, its old data is in place: it failed"
    );
    assert!(say("stream", "starting copied=1").contains("waits for b to stream"));
    assert_eq!(say("stream", &format!("{FOLLOWS} copied=1")), "true: b is copied anew and follows");
}

#[test]
fn it_gives_way_to_whoever_moves_the_primary_and_to_nobody_else() {
    let bench = bench("granted a open 2; reinit c copy", FOLLOWS, "busy cloning");
    let (s, to) = (bench.situation(), id("b"));
    let first = |kind| gives_way(&s, &admit_operation(&s, kind, Some(&to), true).unwrap());
    for (kind, word) in [(OperationKind::Switchover, "switchover"), (OperationKind::Failover, "failover")] {
        let reason = format!("given up, for a {word} to b begins");
        assert_eq!(first(kind), Some(Kind::EndOperation { id: 1, succeeded: false, reason }));
    }
    assert!(admit_operation(&s, OperationKind::Restart, Some(&to), false).unwrap_err().starts_with("operation 1"));
    // What is refused ends nothing.
    assert!(admit_operation(&s, OperationKind::Switchover, Some(&id("c")), false).is_err());
    let free = self::bench("granted a open 2", FOLLOWS, FOLLOWS);
    let begins = admit_operation(&free.situation(), OperationKind::Switchover, Some(&to), false).unwrap();
    assert_eq!(gives_way(&free.situation(), &begins), None);
}

#[test]
fn a_copy_that_began_long_ago_and_was_cut_off_has_the_whole_time_to_begin_again() {
    let mut bench = bench("granted a open 2; reinit b copy", "busy cloning", FOLLOWS);
    bench.now_is(600_000);
    bench = bench.says("b", "busy cloning");
    let mut since = crate::policy::Since::default();
    since.hear_of_work(&bench.state, &bench.seen);
    bench = bench.says("b", FOLLOWS);
    let long_ago = bench.situation();
    assert!(matches!(over(&long_ago), Some(Verdict::Propose(_))), "never seen at work");
    let s = Situation { since, ..long_ago };
    assert!(matches!(over(&s), Some(Verdict::Hold(_))));
    let later = s.now + stop_limit(&s) + s.timings.primary_start;
    let mut late = bench.seen.clone();
    late.values_mut().for_each(|o| (o.at, o.agent_at) = (later, later));
    let s = Situation { seen: &late, now: later, ..s };
    assert!(matches!(over(&s), Some(Verdict::Propose(Kind::EndOperation { succeeded: false, .. }))));
}

#[test]
fn it_ends_when_its_member_is_needed_or_put_aside() {
    let mut aside = bench("granted a open 2; reinit b copy", "busy cloning", FOLLOWS);
    aside.state.maintenance.insert(id("b"), Words { reason: "disk".into(), by: "kim".into(), stopped: None });
    let ended = |bench: &Bench| match over(&bench.situation()) {
        Some(Verdict::Propose(Kind::EndOperation { succeeded: false, reason, .. })) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(ended(&aside), "given up, for b is in maintenance by kim: disk");
    assert_eq!(ended(&bench("granted b promoting 2; reinit b copy", FOLLOWS, FOLLOWS)), "b is to be primary");
}
