use super::*;
use crate::{
    policy::{
        decide,
        testing::{Bench, id, state},
    },
    state::{Asked, Request, Rolling},
};

const AT: u64 = 1_000_000;

/// a is primary, b and c stream from it; a switchover to b is scheduled as operation 5.
fn bench() -> Bench {
    let mut bench = Bench::new("granted a open 2")
        .says("a", "primary 2:90 lease=1")
        .says("b", "standby 2:90 upstream=a")
        .says("c", "standby 2:90 upstream=a");
    for member in ["a", "b", "c"] {
        bench.seen.get_mut(&id(member)).unwrap().format = Format::NEWEST;
    }
    bench.state.format = Format::NEWEST;
    let (kind, asked) = (OperationKind::Switchover, Request::default());
    let scheduled = Scheduled { kind, from: Some(id("a")), to: Some(id("b")), at_ms: AT, asked };
    bench.state.agenda.scheduled.insert(5, scheduled);
    bench.wall_ms = AT;
    bench
}

fn closed(bench: &Bench) -> (Outcome, String) {
    match due(&bench.situation()) {
        Some(Verdict::Propose(Kind::Agenda(AgendaChange::Close { id: 5, outcome, reason }))) => (outcome, reason),
        other => panic!("{other:?}"),
    }
}

fn held(bench: &Bench) -> String {
    match due(&bench.situation()) {
        Some(Verdict::Hold(hold)) => hold.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_scheduled_begins_at_its_time_and_not_before() {
    let mut bench = bench();
    bench.wall_ms = AT - 1;
    assert_eq!(due(&bench.situation()), None);
    bench.wall_ms = 0;
    assert_eq!(due(&bench.situation()), None, "nobody looked at a clock");
    bench.wall_ms = AT;
    let plan = decide(&bench.situation(), "r");
    let begin = AgendaChange::Begin { of: 5, kind: OperationKind::Switchover, from: Some(id("a")), to: id("b") };
    assert_eq!(plan.command.map(|c| (c.because.0, c.kind)), Some((434, Kind::Agenda(begin))));
}

#[test]
fn what_is_under_way_is_waited_for_until_the_window_is_over() {
    let rolling = Rolling {
        id: 4,
        members: [id("b")].into(),
        done: Vec::new(),
        primary: crate::state::PrimaryTurn::Left,
        asked: Request::default(),
        cancelled: None,
    };
    let mut paused = bench();
    paused.state.paused = Some(Asked { reason: "disk".into(), ..Asked::default() });
    let mut rolls = bench();
    rolls.state.agenda.rolling = Some(rolling);
    let mut runs = bench();
    runs.state.operation = state("granted a open 2; switchover c checkpoint").operation;
    let window = WINDOW.as_millis() as u64;
    for (mut bench, why) in [
        (paused, "the cluster was paused: disk"),
        (rolls, "rolling restart 4 was"),
        (runs, "operation 1 was under way"),
    ] {
        assert!(held(&bench).contains(why), "{}", held(&bench));
        bench.wall_ms = AT + window;
        assert!(held(&bench).contains("(0 s left)"));
        bench.wall_ms = AT + window + 1;
        let (outcome, reason) = closed(&bench);
        assert!(
            outcome == Outcome::Missed && reason.contains("1970-01-01T00:16:40Z: ") && reason.contains(why),
            "{reason}"
        );
    }
    let mut nobody_led = bench();
    nobody_led.wall_ms = AT + window + 1;
    assert_eq!(closed(&nobody_led).1, "not begun within 10 minutes of 1970-01-01T00:16:40Z: no manager led");
}

#[test]
fn a_copy_gives_way_to_a_scheduled_switchover_as_to_one_that_is_asked_for() {
    let mut copies = bench();
    copies.state.operation = state("granted a open 2; reinit c copy").operation;
    let Some(Verdict::Propose(Kind::EndOperation { id: 1, succeeded: false, reason })) = due(&copies.situation())
    else {
        panic!("{:?}", due(&copies.situation()))
    };
    assert_eq!(reason, "given up, for operation 5, a switchover from a to b, was scheduled and begins");
    // What would be refused ends no copy.
    copies.state.agenda.scheduled.get_mut(&5).unwrap().from = Some(id("c"));
    assert_eq!(closed(&copies).1, "refused when its time had come: a is primary, not c");
    // A restart waits for it.
    let restart = Scheduled { kind: OperationKind::Restart, ..copies.state.agenda.scheduled[&5].clone() };
    copies.state.agenda.scheduled.insert(5, restart);
    assert!(held(&copies).contains("operation 1 was under way"), "{}", held(&copies));
}

#[test]
fn it_is_checked_again_when_its_time_has_come() {
    let other = bench().says("b", "standby 2:90");
    let (outcome, reason) = closed(&other);
    assert_eq!(
        (outcome, reason.as_str()),
        (Outcome::Failed, "refused when its time had come: b does not stream from a")
    );
    let mut moved = bench();
    moved.state.agenda.scheduled.get_mut(&5).unwrap().from = Some(id("c"));
    assert_eq!(closed(&moved).1, "refused when its time had come: a is primary, not c");
    // A leader that has heard of nobody refuses nothing for that.
    let mut new = bench().leads_since_now();
    new.seen.remove(&id("b"));
    assert!(held(&new).contains("had not heard of all members"));
}

#[test]
fn what_makes_no_sense_is_not_scheduled() {
    let mut bench = bench();
    let ask = |bench: &Bench, kind, to: Option<&str>, at| {
        let to = to.map(id);
        admit(&bench.situation(), kind, (None, to.as_ref()), at, "kim")
    };
    let refused = |asked| match asked {
        Err(NotScheduled::Refused(why)) => why,
        other => panic!("{other:?}"),
    };
    let (switchover, restart) = (OperationKind::Switchover, OperationKind::Restart);
    let Err(NotScheduled::Taken(why)) = ask(&bench, switchover, Some("c"), AT) else { panic!() };
    assert!(why.starts_with("operation 5, a switchover from a to b, is scheduled for"), "{why}");
    assert!(matches!(ask(&bench, restart, Some("b"), AT), Ok(Kind::Agenda(AgendaChange::Schedule { .. }))));
    for far in [AT + 11 * 366 * 86_400_000, u64::MAX] {
        let Err(NotScheduled::Refused(why)) = ask(&bench, restart, Some("b"), far) else { panic!() };
        assert!(why.ends_with("is more than ten years away"), "{why}");
    }
    let Err(NotScheduled::Past(why)) = ask(&bench, restart, Some("b"), AT - 1) else { panic!() };
    assert!(why.starts_with("1970-01-01T00:16:39Z is over"), "{why}");
    assert!(refused(ask(&bench, OperationKind::Failover, Some("b"), AT)).contains("can't be scheduled"));
    assert!(refused(ask(&bench, restart, None, AT)).contains("needs the name"));
    assert!(refused(ask(&bench, restart, Some("x"), AT)).contains("no member"));
    bench.seen.get_mut(&id("c")).unwrap().format = Format::RUNNING;
    assert!(refused(ask(&bench, restart, Some("b"), AT)).starts_with("c runs a version"));
    bench.state.paused = Some(Asked::default());
    assert!(refused(ask(&bench, restart, Some("b"), AT)).contains("paused"));
}

#[test]
fn what_can_be_taken_back_says_what_happens_then() {
    let mut bench = bench();
    let ask = |bench: &Bench, n| admit_cancel(&bench.situation(), n, "kim").map(|(_, says)| says);
    let says = "operation 5, a switchover from a to b, does not begin at 1970-01-01T00:16:40Z";
    assert_eq!(ask(&bench, 5).unwrap(), says);
    assert!(ask(&bench, 9).unwrap_err().contains("there is no operation 9"));
    for (phase, allowed) in
        [("checkpoint", true), ("hold", true), ("stop", true), ("transfer", false), ("rollback", false)]
    {
        bench.state.operation = state(&format!("granted a open 2; switchover b {phase}")).operation;
        assert_eq!(ask(&bench, 1).is_ok(), allowed, "{phase}: {:?}", ask(&bench, 1));
    }
}

#[test]
fn a_wake_can_be_taken_back_until_somebody_is_granted_the_lock() {
    let mut bench = bench();
    let ask = |bench: &Bench| admit_cancel(&bench.situation(), 1, "kim").map(|(_, says)| says);
    let woken = |bench: &mut Bench, lock: &str| {
        bench.state = state(lock);
        bench.state.format = Format::NEWEST;
        let (asked, primary) = (Asked::default(), id("a"));
        let end =
            Some(crate::domain::WalPosition { timeline: bench.state.highest_timeline(), lsn: crate::domain::Lsn(90) });
        bench.state.hibernation = Some(crate::state::Hibernation { asked, at_ms: 0, primary, end, waking: true });
    };
    woken(&mut bench, "fenced; wake a");
    assert_eq!(ask(&bench).unwrap(), "it is over, and the cluster is stopped again as it was");
    let later = |h: &mut crate::state::Hibernation| h.end = Some(Default::default());
    bench.state.hibernation.iter_mut().for_each(later);
    assert!(ask(&bench).unwrap_err().starts_with("operation 1 can't be taken back: somebody was granted the lock"));
    woken(&mut bench, "granted a pending 2; wake a");
    assert!(ask(&bench).unwrap_err().contains("`matriarch stop --all` stops the cluster when a primary is open"));
}
