use super::*;
use crate::{
    policy::{
        decide,
        testing::{Bench, id},
    },
    state::{Asked, Request},
};

fn bench() -> Bench {
    let mut bench = Bench::new("granted a open 2")
        .says("a", "primary 2:90 lease=1")
        .says("b", "standby 2:90 upstream=a")
        .says("c", "standby 2:90 upstream=a");
    for member in ["a", "b", "c"] {
        let seen = bench.seen.get_mut(&id(member)).unwrap();
        seen.format = Format::NEWEST;
        // The standbys of the bench have replayed nothing, and have nothing to replay.
        let agent = seen.agent.as_mut().unwrap();
        agent.replay_lsn = agent.wal_end.lsn;
    }
    bench.state.format = Format::NEWEST;
    bench
}

fn rolls(primary: PrimaryTurn, done: &[&str]) -> Bench {
    let mut bench = bench().operation_began_now();
    bench.state.agenda.rolling = Some(Rolling {
        id: 4,
        members: ["a", "b", "c"].map(id).into(),
        done: done.iter().map(|m| id(m)).collect(),
        primary,
        asked: Request::default(),
        cancelled: None,
    });
    bench
}

fn change(bench: &Bench) -> AgendaChange {
    match go_on(&bench.situation()) {
        Some(Verdict::Propose(Kind::Agenda(change))) => change,
        other => panic!("{other:?}"),
    }
}

fn step(bench: &Bench) -> (OperationKind, MemberId) {
    match change(bench) {
        AgendaChange::Begin { of: 4, kind, from: Some(_), to } => (kind, to),
        other => panic!("{other:?}"),
    }
}

fn waits(bench: &Bench) -> String {
    match go_on(&bench.situation()) {
        Some(Verdict::Hold(hold)) => hold.to_string(),
        other => panic!("{other:?}"),
    }
}

fn ask(bench: &Bench, pending: bool, primary: PrimaryTurn) -> Result<Kind, String> {
    admit(&bench.situation(), Wanted { pending, primary }, "kim")
}

fn meant(asked: Result<Kind, String>) -> Vec<String> {
    let Ok(Kind::Agenda(AgendaChange::Roll { members, .. })) = asked else { panic!("{asked:?}") };
    members.iter().map(ToString::to_string).collect()
}

#[test]
fn who_is_meant_is_settled_when_it_begins() {
    let mut bench = bench();
    assert_eq!(meant(ask(&bench, false, PrimaryTurn::Switchover)), ["a", "b", "c"]);
    assert_eq!(meant(ask(&bench, false, PrimaryTurn::Left)), ["b", "c"]);
    assert!(
        ask(&bench, true, PrimaryTurn::InPlace).unwrap_err().contains("wait for a restart: there is nothing to do")
    );
    for member in ["a", "c"] {
        bench.seen.get_mut(&id(member)).unwrap().agent.as_mut().unwrap().server.pending_restart = true;
    }
    assert_eq!(meant(ask(&bench, true, PrimaryTurn::InPlace)), ["a", "c"]);
    assert_eq!(meant(ask(&bench, true, PrimaryTurn::Left)), ["c"]);
    bench.state.maintenance.insert(id("c"), Asked::default());
    assert!(ask(&bench, true, PrimaryTurn::Left).unwrap_err().contains("in maintenance"));
    bench.seen.get_mut(&id("b")).unwrap().format = Format::RUNNING;
    assert!(ask(&bench, false, PrimaryTurn::Left).unwrap_err().starts_with("b runs a version"));
}

#[test]
fn it_begins_on_a_cluster_that_is_well_and_only_one_at_a_time() {
    let lame = bench().says("c", "standby 2:90");
    assert_eq!(ask(&lame, false, PrimaryTurn::Left).unwrap_err(), "the cluster is not well: c does not stream from a");
    assert!(
        ask(&rolls(PrimaryTurn::Left, &["b"]), false, PrimaryTurn::Left)
            .unwrap_err()
            .contains("restarted: b; left: a, c")
    );
    let mut paused = bench();
    paused.state.paused = Some(Asked::default());
    assert!(ask(&paused, false, PrimaryTurn::Left).unwrap_err().contains("paused"));
}

#[test]
fn standbys_come_first_and_the_primary_last() {
    assert_eq!(step(&rolls(PrimaryTurn::Switchover, &[])), (OperationKind::Restart, id("b")));
    assert_eq!(step(&rolls(PrimaryTurn::Switchover, &["b"])), (OperationKind::Restart, id("c")));
    assert_eq!(step(&rolls(PrimaryTurn::Switchover, &["b", "c"])).0, OperationKind::Switchover);
    assert_eq!(step(&rolls(PrimaryTurn::InPlace, &["b", "c"])), (OperationKind::Restart, id("a")));
    let over = rolls(PrimaryTurn::InPlace, &["b", "c", "a"]);
    let reason = "restarted: b, c, a; left: nobody".to_owned();
    assert_eq!(change(&over), AgendaChange::Close { id: 4, outcome: Outcome::Succeeded, reason });
    let left = rolls(PrimaryTurn::Left, &["b", "c"]);
    assert!(
        matches!(change(&left), AgendaChange::Close { outcome: Outcome::Succeeded, .. }),
        "whoever is primary is left"
    );
    let plan = decide(&rolls(PrimaryTurn::Left, &[]).situation(), "r");
    assert_eq!(plan.command.map(|c| c.because.0), Some(436));
}

#[test]
fn the_next_step_waits_until_all_are_well_and_not_for_ever() {
    let behind = |spec: &str| {
        let mut bench = rolls(PrimaryTurn::Switchover, &["b"]).says("b", spec);
        bench.seen.get_mut(&id("a")).unwrap().agent.as_mut().unwrap().wal_end.lsn.0 = 90 + LAG_BYTES;
        for member in ["b", "c"] {
            bench.seen.get_mut(&id(member)).unwrap().agent.as_mut().unwrap().replay_lsn.0 = 90;
        }
        bench
    };
    assert_eq!(step(&behind("standby 2:90 upstream=a")), (OperationKind::Restart, id("c")));
    let mut more = behind("standby 2:90 upstream=a");
    more.seen.get_mut(&id("b")).unwrap().agent.as_mut().unwrap().replay_lsn.0 = 89;
    assert!(waits(&more).contains("b has 16777217 bytes to replay"), "{}", waits(&more));
    assert!(waits(&behind("starting")).contains("PostgreSQL on b is"));
    assert!(waits(&behind("standby 2:90 upstream=c")).contains("b does not stream from a"));
    let mut silent = rolls(PrimaryTurn::Switchover, &["b"]);
    silent.seen.remove(&id("c"));
    assert!(waits(&silent).contains("c does not answer"));
    silent.now_is(60_000 + PATIENCE.as_millis() as u64);
    for member in ["a", "b"] {
        silent = silent.hears_again(member);
    }
    let AgendaChange::Close { outcome: Outcome::Failed, reason, .. } = change(&silent) else { panic!() };
    assert_eq!(reason, "it could not go on for 300 s: c does not answer; restarted: b; left: a, c");
}

#[test]
fn one_that_replays_late_on_purpose_has_that_much_longer() {
    let mut bench =
        rolls(PrimaryTurn::InPlace, &["a", "b"]).says("a", "primary 2:90 lease=1 counts=max_connections:100");
    bench = bench.says("c", "standby 2:90 upstream=a waits=max_connections:200:100:held");
    let seen = bench.seen.get_mut(&id("a")).unwrap();
    let agent = seen.agent.as_mut().unwrap();
    agent.replay_lsn = agent.wal_end.lsn;
    let key = ("c.recovery_min_apply_delay".to_owned(), "3600000".to_owned());
    bench.state.settings.values.extend([key]);
    let at = |mut bench: Bench, seconds: u64| {
        bench.now_is(60_000 + seconds * 1_000);
        ["a", "b", "c"].iter().fold(bench, |bench, member| bench.hears_again(member))
    };
    let bench = at(bench, 3_600);
    assert!(waits(&bench).contains("c has not replayed yet"), "{}", waits(&bench));
    // As long where it has had its first turn.
    let mut second = bench;
    second.state.agenda.rolling.as_mut().unwrap().done = ["b", "c", "a"].map(id).into();
    assert!(waits(&second).contains("c has not replayed yet"), "{}", waits(&second));
    let mut bench = second;
    bench.state.agenda.rolling.as_mut().unwrap().done = ["a", "b"].map(id).into();
    let AgendaChange::Close { outcome: Outcome::Failed, reason, .. } = change(&at(bench, 3_900)) else { panic!() };
    assert!(reason.starts_with("it could not go on for 3900 s: c has not replayed yet"), "{reason}");
}

#[test]
fn nobody_is_copied_anew_by_command_meanwhile() {
    use crate::policy::reinit;
    let rolling = rolls(PrimaryTurn::Switchover, &["b"]);
    let (member, from, force) = (&id("c"), None, true);
    let why = reinit::admit(&rolling.situation(), reinit::Asked { member, from, force }).unwrap_err();
    assert!(why.starts_with("rolling restart 4 is under way (restarted: b; left: a, c)"), "{why}");
}

#[test]
fn a_pause_holds_it_up_and_so_does_an_operation() {
    let mut paused = rolls(PrimaryTurn::Switchover, &["b"]);
    paused.state.paused = Some(Asked::default());
    assert!(waits(&paused).contains("rolling restart 4 goes on"), "{}", waits(&paused));
    let mut busy = rolls(PrimaryTurn::Switchover, &["b"]);
    busy.state.operation = crate::policy::testing::state("granted a open 2; switchover c checkpoint").operation;
    assert_eq!(go_on(&busy.situation()), None);
}

#[test]
fn who_confirms_commits_is_waited_for() {
    let mut bench = rolls(PrimaryTurn::Left, &["b"]);
    let values = [("replication_mode", "quorum"), ("sync_count", "2")];
    bench.state.settings.values.extend(values.map(|(key, value)| (key.to_owned(), value.to_owned())));
    assert!(waits(&bench).contains("confirm"), "{}", waits(&bench));
    bench.state.settings.values.clear();
    assert_eq!(step(&bench), (OperationKind::Restart, id("c")));
}
