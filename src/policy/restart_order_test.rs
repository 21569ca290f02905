use super::*;
use crate::{
    domain::Format,
    policy::{
        decide, rehearsal, rolling, switchover,
        testing::{Bench, id},
    },
    state::{AgendaChange, Asked, FinishedOperation, Operation, OperationPhase, Request, Rolling},
};

const RISES: &str = "waits=max_connections:100:200";
const FALLS: &str = "waits=max_connections:200:100";
const HELD: &str = "waits=max_connections:200:100:held";
const HAS_MORE: &str = "counts=max_connections:200";

/// What a, the primary, and its standbys b and c say of their settings.
fn bench(a: &str, b: &str, c: &str) -> Bench {
    let mut bench = Bench::new("granted a open 2")
        .says("a", &format!("primary 2:90 lease=1 {a}"))
        .says("b", &format!("standby 2:90 upstream=a replayed=90 {b}"))
        .says("c", &format!("standby 2:90 upstream=a replayed=90 {c}"))
        .operation_began_now();
    for member in ["a", "b", "c"] {
        bench.seen.get_mut(&id(member)).unwrap().format = Format::NEWEST;
    }
    bench.state.format = Format::NEWEST;
    bench
}

fn restart(bench: &Bench, member: &str, force: bool) -> Result<(), String> {
    let s = bench.situation();
    switchover::admit(&s, OperationKind::Restart, Some(&id(member)), force).map(|_| ())
}

fn roll(bench: &Bench, pending: bool, primary: PrimaryTurn) -> Result<Vec<String>, String> {
    match rolling::admit(&bench.situation(), Wanted { pending, primary }, "kim")? {
        Kind::Agenda(AgendaChange::Roll { members, .. }) => Ok(members.iter().map(ToString::to_string).collect()),
        other => panic!("{other:?}"),
    }
}

/// What a rolling restart of all, with `done` behind it, does next.
fn next(mut bench: Bench, primary: PrimaryTurn, done: &[&str]) -> Result<(OperationKind, String), String> {
    bench.state.agenda.rolling = Some(Rolling {
        id: 4,
        members: ["a", "b", "c"].map(id).into(),
        done: done.iter().map(|m| id(m)).collect(),
        primary,
        asked: Request::default(),
        cancelled: None,
    });
    match rolling::go_on(&bench.situation()) {
        Some(Verdict::Propose(Kind::Agenda(AgendaChange::Begin { kind, to, .. }))) => Ok((kind, to.to_string())),
        Some(Verdict::Hold(hold)) => Err(hold.to_string()),
        other => panic!("{other:?}"),
    }
}

fn restart_of(member: &str) -> Result<(OperationKind, String), String> {
    Ok((OperationKind::Restart, member.to_owned()))
}

#[test]
fn more_begins_with_the_standbys() {
    let all = || bench(RISES, RISES, RISES);
    let why = restart(&all(), "a", false).unwrap_err();
    assert!(
        why.starts_with("max_connections of a, the primary, rises from 100 to 200 by that, and b, c would stop"),
        "{why}"
    );
    assert!(why.contains("`matriarch restart b`") && why.ends_with("; --force restarts a first all the same"), "{why}");
    let rehearsed = rehearsal::of(&all().situation(), OperationKind::Restart, (None, Some(&id("a"))), false);
    assert_eq!(rehearsed.unwrap_err(), why, "a rehearsal says the same");
    assert_eq!((restart(&all(), "a", true), restart(&all(), "b", false)), (Ok(()), Ok(())));

    assert!(restart(&bench(RISES, HAS_MORE, RISES), "a", false).unwrap_err().contains("and c would stop"));
    assert_eq!(restart(&bench(RISES, HAS_MORE, HAS_MORE), "a", false), Ok(()));
    let down = bench(RISES, HAS_MORE, "").says("c", "stopped 2:90 waits=max_connections:100:200");
    assert_eq!(restart(&down, "a", false), Ok(()), "c gets it with its next start");
    assert_eq!(restart(&bench(RISES, "", ""), "a", false), Ok(()), "of hosts that don't say nothing is known");
    assert_eq!(restart(&bench("waits=work_mem:1:2", "counts=work_mem:1", ""), "a", false), Ok(()));

    assert_eq!(roll(&all(), true, PrimaryTurn::Switchover).unwrap(), ["a", "b", "c"]);
    assert_eq!(next(all(), PrimaryTurn::Switchover, &[]), restart_of("b"));
    assert_eq!(next(bench(RISES, HAS_MORE, RISES), PrimaryTurn::Switchover, &["b"]), restart_of("c"));
    let last = || bench(RISES, HAS_MORE, HAS_MORE);
    assert_eq!(next(last(), PrimaryTurn::InPlace, &["b", "c"]), restart_of("a"));
    assert_eq!(next(last(), PrimaryTurn::Switchover, &["b", "c"]).unwrap().0, OperationKind::Switchover);
    // Nobody has looked at the new process yet, or it was restarted by somebody with what it had.
    let unseen = bench(RISES, HAS_MORE, RISES);
    let waits = next(unseen, PrimaryTurn::InPlace, &["b", "c"]).unwrap_err();
    assert!(waits.contains("c would stop replaying"), "{waits}");
}

#[test]
fn who_is_configured_for_less_is_named_before_anything_is_restarted() {
    let bench = bench(RISES, RISES, "counts=max_connections:100");
    for why in [restart(&bench, "a", false), roll(&bench, true, PrimaryTurn::InPlace).map(|_| ())] {
        let why = why.unwrap_err();
        assert!(
            why.contains("rises to 200, and c would stop replaying") && why.contains("c.parameters.max_connections"),
            "{why}"
        );
    }
    assert_eq!(roll(&bench, true, PrimaryTurn::Left).unwrap(), ["b"]);
}

#[test]
fn less_begins_with_the_primary_in_place() {
    let all = || bench(FALLS, HELD, HELD);
    assert_eq!(restart(&all(), "a", false), Ok(()));
    let why = restart(&all(), "b", false).unwrap_err();
    let begin = "a restart of b would put nothing in force now: max_connections falls from 200 to 100, and no standby can have less than a";
    assert!(why.starts_with(begin) && why.ends_with("; --force restarts it all the same"), "{why}");
    assert_eq!(restart(&all(), "b", true), Ok(()));
    let more = bench(FALLS, &format!("{HELD} waits=shared_buffers:1:2"), HELD);
    assert_eq!(restart(&more, "b", false), Ok(()), "something else waits for it");

    assert_eq!(roll(&all(), true, PrimaryTurn::Switchover).unwrap(), ["a", "b", "c"], "the standbys are meant as well");
    let why = roll(&all(), true, PrimaryTurn::Left).unwrap_err();
    assert!(why.contains("leave `--only standbys` out"), "{why}");
    assert_eq!(roll(&all(), false, PrimaryTurn::Left).unwrap(), ["b", "c"], "for its own sake");
    for turn in [PrimaryTurn::Switchover, PrimaryTurn::InPlace] {
        assert_eq!(next(all(), turn, &[]), restart_of("a"), "a new primary would have as much as the old one");
    }
    assert_eq!(next(all(), PrimaryTurn::Left, &[]), restart_of("b"));

    // The primary has less, which b has not replayed yet, and then has.
    let has_less = "counts=max_connections:100";
    let why = next(bench(has_less, HELD, HELD), PrimaryTurn::Switchover, &["a"]).unwrap_err();
    assert!(why.contains("b has not replayed yet that a runs with max_connections = 100"), "{why}");
    assert!(restart(&bench(has_less, HELD, HELD), "b", false).unwrap_err().contains("has not replayed yet"));
    assert_eq!(next(bench(has_less, FALLS, HELD), PrimaryTurn::Switchover, &["a"]), restart_of("b"));
    assert_eq!(restart(&bench(has_less, FALLS, HELD), "b", false), Ok(()));
}

#[test]
fn a_standby_that_is_to_have_less_than_its_primary_waits_for_nothing() {
    let bench = bench(HAS_MORE, HELD, "");
    assert_eq!(restart(&bench, "b", false), Ok(()));
    assert_eq!(next(bench, PrimaryTurn::Left, &[]), restart_of("b"));
}

#[test]
fn what_rises_and_falls_at_once_are_two_changes() {
    let mixed = bench(&format!("{FALLS} waits=max_wal_senders:10:12"), HELD, HELD);
    let why = roll(&mixed, true, PrimaryTurn::InPlace).unwrap_err();
    assert!(why.starts_with("max_wal_senders rises") && why.contains("max_connections falls"), "{why}");
    assert!(why.contains("make two changes of it"), "{why}");
}

#[test]
fn who_has_stopped_replaying_is_restarted_one_at_a_time() {
    let lacking = "waits=max_connections:100:200:lacking";
    let begins = |bench: &Bench| match revive(&bench.situation()) {
        Some(Verdict::Propose(Kind::BeginOperation { kind: OperationKind::Restart, from, to, .. })) => {
            assert_eq!(from, Some(id("a")));
            Some(to.to_string())
        }
        None => None,
        other => panic!("{other:?}"),
    };
    let both = || bench(HAS_MORE, lacking, lacking);
    assert_eq!(begins(&both()).as_deref(), Some("b"));
    assert_eq!(begins(&bench(HAS_MORE, HAS_MORE, lacking)).as_deref(), Some("c"));
    assert_eq!(begins(&bench(HAS_MORE, HAS_MORE, RISES)), None);
    let plan = decide(&both().situation(), "r");
    assert_eq!(plan.command.map(|c| c.because.0), Some(RULE));
    let rolls = next(both(), PrimaryTurn::Left, &[]).unwrap_err();
    assert!(rolls.contains("b replays nothing, for a runs with max_connections = 200"), "{rolls}");

    let mut kept = both();
    kept.state.maintenance.insert(id("b"), Asked::default());
    assert_eq!(begins(&kept).as_deref(), Some("c"));
    kept.state.paused = Some(Asked::default());
    assert!(matches!(revive(&kept.situation()), Some(Verdict::Hold(_))));

    // After one that came to nothing there is a pause for all, or two that fail in turn would keep operators out.
    let mut failed = both();
    let operation = Operation {
        id: 1,
        kind: OperationKind::Restart,
        from: Some(id("a")),
        to: id("b"),
        phase: OperationPhase::Stop,
        request_id: "r".to_owned(),
        because: RuleId(RULE),
        accepts_loss: false,
    };
    failed.state.last_operation = Some(FinishedOperation { operation, succeeded: false, reason: String::new() });
    assert_eq!(begins(&failed), None);
    // One that runs again and lacks it still waits for the next time, others don't.
    failed.state.last_operation.iter_mut().for_each(|last| last.succeeded = true);
    assert_eq!(begins(&failed).as_deref(), Some("c"));
    failed.now_is(60_000 + 60_000);
    for member in ["a", "b", "c"] {
        failed = failed.hears_again(member);
    }
    assert_eq!(begins(&failed).as_deref(), Some("b"));
}
