//! Promotions that are late, recovery and replay that stand still.

use std::time::Duration;

use super::{
    tests::{at, facts, gone, held, now, order, primary, promote, standby},
    *,
};
use crate::{
    agent::order::{Action, Source},
    domain::{Lsn, PostgresState, TimelineId},
    postgres::Vitals,
};

fn complaint(words: &str) -> Complaint {
    Complaint { line: format!("t {words}"), said: words.to_owned() }
}

fn look(life: u64, doing: &str) -> Event {
    let vitals = Vitals { pid: 9, doing: doing.to_owned(), ..Vitals::default() };
    Event::Redo { life, vitals, words: Some(complaint("it said so")) }
}

/// Looks each second, from `from` on, until `to` included; gives what followed from them all.
fn watched(core: &mut Core, life: u64, doing: &str, (from, to): (u64, u64)) -> Vec<Effect> {
    (from..=to).step_by(1_000).flat_map(|ms| core.step(look(life, doing), now(ms))).collect()
}

fn follow() -> Event {
    order(
        4,
        Action::StartStandby(Some(Source {
            member: "n2".parse().unwrap(),
            host: "h".into(),
            port: 1,
            fork: None,
            named: None,
        })),
    )
}

/// A standby whose postmaster runs and has not answered yet.
fn starting(core: &mut Core, life: u64, ms: u64) {
    let effects = core.step(follow(), now(ms));
    assert!(effects.iter().any(|e| matches!(e, Effect::Begin(Task::Start(_)))), "{effects:?}");
    core.step(Event::Spawned { life }, now(ms));
    core.step(Event::Guard { life, postmaster: Postmaster::Running { pid: 43 } }, now(ms));
    core.step(Event::Done(TaskEnd::Succeeded), now(ms));
    assert_eq!(core.state(), PostgresState::Starting);
}

fn stopped_standby() -> Core {
    let mut core = standby();
    core.step(gone(false), now(20));
    core.step(Event::Surveyed { life: 1, disk: facts(true) }, now(30));
    core
}

fn ended(life: u64) -> Event {
    let exit = "signal 9".to_owned();
    Event::Guard { life, postmaster: Postmaster::Gone { tree_empty: true, fenced: true, exit } }
}

#[test]
fn a_promotion_has_one_deadline_wherever_it_hangs() {
    let mut core = standby();
    core.step(promote(4), now(20));
    core.step(held(4, 1_000_000), now(30));
    core.step(Event::Progress { phase: "replay".to_owned(), done: 1, total: 2 }, now(40));
    assert_eq!(core.promotion_left(now(30_019)), Some(Duration::from_millis(1)));
    assert_eq!(core.step(Event::Tick, now(30_019)), []);
    let effects = core.step(Event::Tick, now(30_020));
    assert_eq!(effects, [Effect::Fence, Effect::Release, Effect::Persist]);
    assert_eq!((core.durable().ended, core.ended_by()), (Epoch(4), EndCause::PromotionLate));
    assert_eq!(core.problem().as_deref(), Some("not promoted within 30000 ms, it was at `replay`"));
    let effects = core.step(gone(true), now(30_050));
    assert!(matches!(&effects[1], Effect::Notice(n) if n.fenced && n.cause == EndCause::PromotionLate), "{effects:?}");
    assert_eq!(core.step(Event::Tick, now(40_000)), [], "the task may still hang; that is said once");
    // Whatever the task has written since is made safe again, also when it says that it succeeded.
    core.step(Event::Surveyed { life: 1, disk: facts(false) }, now(40_010));
    let failed = TaskEnd::Failed { error: "the connection broke".to_owned(), harmless: false };
    let effects = core.step(Event::Done(failed), now(40_020));
    assert!(effects.contains(&Effect::Survey { wal_end: true }), "{effects:?}");
}

#[test]
fn a_promotion_that_came_to_its_end_is_not_late() {
    let mut core = primary();
    core.step(held(4, 1_000_000), now(60));
    assert_eq!(core.promotion_left(now(30_100)), None);
    assert_eq!(core.step(Event::Tick, now(30_100)), []);
}

#[test]
fn a_standby_whose_recovery_stands_still_is_started_once_more_and_then_reported() {
    let mut core = stopped_standby();
    starting(&mut core, 2, 100);
    assert_eq!(core.redo_to_watch(now(100)), Some(43));
    assert_eq!(watched(&mut core, 2, "recovering 03", (1_000, 10_999)), []);
    let view = core.redo(now(10_500)).unwrap();
    assert_eq!((view.at.as_str(), view.still_ms, view.stands), ("03", 9_500, false));
    assert_eq!(core.step(look(2, "recovering 03"), now(11_000)), [Effect::Fence]);
    assert_eq!(core.problem().as_deref(), Some("recovery stands still at 03 for more than 10 s: it said so"));
    core.step(ended(2), now(11_100));
    core.step(Event::Surveyed { life: 2, disk: facts(false) }, now(11_200));
    assert_eq!(core.state(), PostgresState::Stopped);
    starting(&mut core, 3, 12_000);
    assert_eq!(watched(&mut core, 3, "recovering 03", (13_000, 60_000)), [], "it is not ended again and again");
    let why =
        "recovery stands still at 03 for more than 10 s: it said so; another start did not help, it needs an operator";
    assert_eq!(core.problem().as_deref(), Some(why));
    // It gets on, answers, and all is forgotten.
    core.step(look(3, "recovering 04"), now(61_000));
    assert_eq!(core.problem().as_deref(), None);
    let probed = Sight { in_recovery: true, streaming: true, ..Sight::default() };
    core.step(Event::Probed { life: 3, result: Ok(Box::new(probed)) }, now(62_000));
    assert_eq!((core.state(), core.redo(now(62_000))), (PostgresState::Standby, None));
}

#[test]
fn a_recovery_that_gets_on_is_never_ended() {
    let mut core = stopped_standby();
    starting(&mut core, 2, 100);
    for second in 1..100 {
        let segment = format!("recovering {}", second / 9);
        assert_eq!(core.step(look(2, &segment), now(second * 1_000)), []);
    }
}

#[test]
fn a_restart_in_place_that_stands_still_is_ended_and_counts_as_a_crash() {
    let mut core = primary();
    core.step(held(4, 1_000_000), now(60));
    core.step(gone(false), now(100));
    core.step(order(4, Action::RestartInPlace { timeline: TimelineId(2) }), now(200));
    core.step(Event::Spawned { life: 2 }, now(201));
    core.step(Event::Guard { life: 2, postmaster: Postmaster::Running { pid: 43 } }, now(202));
    assert_eq!(watched(&mut core, 2, "recovering 03", (1_000, 10_999)), []);
    assert_eq!(core.step(look(2, "recovering 03"), now(11_000)), [Effect::Fence]);
    let effects = core.step(ended(2), now(11_050));
    assert!(!effects.iter().any(|e| matches!(e, Effect::Notice(_) | Effect::Release)), "the task says: {effects:?}");
    let failed = TaskEnd::Failed { error: "PostgreSQL ended again".to_owned(), harmless: false };
    core.step(Event::Done(failed), now(11_060));
    assert_eq!((core.state(), core.durable().ended), (PostgresState::Crashed, Epoch(0)), "it may be started again");
    let error = core.last_order().and_then(|o| o.error.clone());
    assert_eq!(error.as_deref(), Some("recovery stands still at 03 for more than 10 s: it said so"));
}

#[test]
fn a_redo_that_gets_on_is_waited_for_when_nobody_could_take_over() {
    let mut core = primary();
    core.step(held(4, 1_000_000), now(60));
    core.step(gone(false), now(100));
    core.step(order(4, Action::RestartInPlace { timeline: TimelineId(2) }), now(200));
    core.step(Event::Spawned { life: 2 }, now(201));
    core.step(Event::Guard { life: 2, postmaster: Postmaster::Running { pid: 43 } }, now(202));
    assert!(!core.waits_for_redo(now(900)), "nothing is known of it");
    core.step(look(2, "recovering 03"), now(1_000));
    assert!(core.waits_for_redo(now(1_100)));
    assert!(!core.waits_for_redo(now(11_000)), "it stands still");
    core.followed = Some(now(90).moment);
    assert!(!core.waits_for_redo(now(1_100)), "somebody streamed when it crashed, who takes over");
}

#[test]
fn replay_that_stands_still_is_named_with_its_reason() {
    let behind = |lsn: u64, waits: &str, paused| {
        let end = at(1, 1_000);
        let (replay_waits, replay_paused) = (waits.to_owned(), paused);
        let sight = Sight {
            in_recovery: true,
            wal_end: end,
            replay_lsn: Lsn(lsn),
            streaming: true,
            replay_waits,
            replay_paused,
            ..Sight::default()
        };
        Event::Probed { life: 1, result: Ok(Box::new(sight)) }
    };
    let said = |waits: &str, paused, words: Option<&str>| {
        let mut core = standby();
        core.step(behind(500, waits, paused), now(1_000));
        core.step(behind(500, waits, paused), now(6_000));
        assert_eq!(core.redo_to_watch(now(6_000)).is_some(), waits != "RecoveryWalStream", "looked at more closely");
        let words = words.map(complaint);
        assert_eq!(core.step(Event::Redo { life: 1, vitals: Vitals::default(), words }, now(7_000)), []);
        core.step(behind(500, waits, paused), now(11_000));
        core.problem()
    };
    let stands = "replay stands still at 0/1F4 for more than 10 s, 500 bytes behind";
    let by_hand = format!("{stands}: it is paused; `SELECT pg_wal_replay_resume()` there lets it go on");
    assert_eq!(said("RecoveryPause", true, None), Some(by_hand));
    let lower = "max_connections = 5 is a lower setting than on the primary server, where its value was 9.";
    assert_eq!(said("RecoveryPause", true, Some(lower)), Some(format!("{stands}: paused, for {lower}")));
    let conflict = "RecoveryConflictSnapshot";
    assert_eq!(said(conflict, false, None), Some(format!("{stands}: it waits for {conflict}")));
    assert_eq!(said("", false, Some("so")), Some(format!("{stands}: so")));
    assert_eq!(said("RecoveryWalStream", false, None), None, "half of a record is no backlog");
    let mut core = standby();
    for second in 1..60 {
        core.step(behind(500 + second, "", false), now(second * 1_000));
        assert_eq!(core.problem().as_deref(), None, "it goes on");
    }
}

#[test]
fn a_standby_that_does_not_stream_is_named_after_a_while() {
    let mut core = stopped_standby();
    starting(&mut core, 2, 100);
    let idle = || {
        let sight = Sight { in_recovery: true, wal_end: at(1, 100), replay_lsn: Lsn(100), ..Sight::default() };
        Event::Probed { life: 2, result: Ok(Box::new(sight)) }
    };
    core.step(idle(), now(1_000));
    core.step(look(2, ""), now(8_000));
    core.step(idle(), now(10_999));
    assert_eq!(core.problem().as_deref(), None);
    core.step(idle(), now(11_000));
    assert_eq!(core.problem().as_deref(), Some("it does not stream from n2 for more than 10 s: it said so"));
    // Told to follow again, it gets as long again.
    core.step(follow(), now(12_000));
    core.step(Event::Done(TaskEnd::Succeeded), now(12_010));
    core.step(idle(), now(12_020));
    assert_eq!(core.problem().as_deref(), None);
}
