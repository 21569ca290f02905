//! A PostgreSQL that lets nobody in, and one that ends again and again.

use std::time::Duration;

use super::{
    tests::{at, facts, gone, held, now, order, position, primary, promote, sight, standby},
    *,
};
use crate::{
    agent::order::Action,
    domain::{OnPrimaryCrash, PostgresState, SyncRule, TimelineId, observation::StandbyProgress},
};

fn knocked(life: u64, knock: Knock) -> Event {
    Event::Knocked { life, knock, waited: Duration::from_millis(5_000) }
}

/// A primary whose lease lasts for ever and that a standby streams from.
fn followed() -> Core {
    let mut core = primary();
    core.step(held(4, 100_000_000), now(60));
    core.step(seen_with_a_standby(1), now(70));
    core
}

fn seen_with_a_standby(life: u64) -> Event {
    let standby = StandbyProgress {
        member: "n2".parse().unwrap(),
        state: "streaming".to_owned(),
        flush_lsn: at(2, 200).lsn,
        lag_bytes: 0,
    };
    let sight = Sight { wal_end: at(2, 200), wal_end_known: true, standbys: vec![standby], ..Sight::default() };
    Event::Probed { life, result: Ok(Box::new(sight)) }
}

fn ends(life: u64, fenced: bool) -> Event {
    Event::Guard { life, postmaster: Postmaster::Gone { tree_empty: true, fenced, exit: "signal 9".to_owned() } }
}

/// Restarted in place as life `life`, from the crash before.
fn comes_back(core: &mut Core, life: u64, ms: u64) {
    core.step(order(4, Action::RestartInPlace { timeline: TimelineId(2) }), now(ms));
    core.step(Event::Spawned { life }, now(ms + 1));
    core.step(Event::Guard { life, postmaster: Postmaster::Running { pid: 43 } }, now(ms + 2));
    core.step(Event::Done(TaskEnd::Succeeded), now(ms + 3));
    assert_eq!(core.durable().tenure.map(|t| t.phase), Some(Phase::Primary));
}

#[test]
fn a_primary_that_lets_nobody_in_is_ended_and_then_treated_as_crashed() {
    let mut core = followed();
    assert_eq!(core.step(knocked(1, Knock::Answered), now(900)), []);
    assert_eq!(core.step(knocked(1, Knock::Silent), now(1_000)), [Effect::Fence]);
    assert_eq!(core.problem().as_deref(), Some("PostgreSQL answered no new connection for 5000 ms"));
    assert_eq!(core.step(knocked(1, Knock::Silent), now(1_010)), [], "once is enough");
    let effects = core.step(gone(true), now(1_100));
    assert!(matches!(&effects[0], Effect::Notice(n) if !n.fenced), "{effects:?}");
    assert_eq!((core.state(), core.durable().ended), (PostgresState::Crashed, Epoch(0)));
    comes_back(&mut core, 2, 1_200);
}

fn turned_away(core: &mut Core, ms: u64) -> Vec<Effect> {
    core.step(knocked(1, Knock::TurnsAway), now(ms))
}

/// The session of the agent itself goes on, and keeps such a shutdown from coming to its end.
#[test]
fn a_smart_shutdown_is_made_a_fast_one_and_one_that_does_not_end_is_a_hang() {
    let mut core = followed();
    assert_eq!(turned_away(&mut core, 1_000), []);
    assert_eq!(turned_away(&mut core, 5_999), []);
    assert_eq!(turned_away(&mut core, 6_000), [Effect::EndShutdown]);
    assert_eq!(turned_away(&mut core, 6_500), [], "once is enough");
    assert_eq!(core.step(gone(false), now(6_600)).iter().filter(|e| **e == Effect::Release).count(), 0);
    assert_eq!(core.state(), PostgresState::Crashed, "and started again");

    let mut stuck = followed();
    turned_away(&mut stuck, 1_000);
    turned_away(&mut stuck, 6_000);
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap();
    let (patience, start) = (millis(stuck.limits.stop), millis(stuck.limits.primary_start));
    assert_eq!(turned_away(&mut stuck, 5_999 + start), []);
    assert_eq!(turned_away(&mut stuck, 6_000 + start), [Effect::Fence]);

    let mut back = followed();
    turned_away(&mut back, 1_000);
    back.step(knocked(1, Knock::Answered), now(3_000));
    assert_eq!(turned_away(&mut back, 6_500), [], "it was another one");

    let mut paused = followed();
    paused.paused = Some(Moment::from_millis(900));
    turned_away(&mut paused, 1_000);
    let meant = |core: &mut Core, ms| {
        core.paused = Some(Moment::from_millis(ms));
        turned_away(core, ms)
    };
    assert_eq!(meant(&mut paused, 999 + patience), [], "whoever did it may wait for sessions to leave");
    assert_eq!(meant(&mut paused, 1_000 + patience), [Effect::EndShutdown]);
    assert_eq!(meant(&mut paused, 2_000 + patience + start), [], "its last checkpoint may take long");
}

#[test]
fn one_that_can_t_be_killed_loses_its_epoch() {
    let mut core = followed();
    core.step(knocked(1, Knock::Refused), now(1_000));
    assert_eq!(core.step(Event::Tick, now(1_499)), []);
    let effects = core.step(Event::Tick, now(1_500));
    assert!(position(&effects, |e| *e == Effect::KillTree) < position(&effects, |e| *e == Effect::Release));
    assert_eq!(core.durable().ended, Epoch(4));
    let effects = core.step(gone(true), now(9_000));
    assert!(effects.iter().any(|e| matches!(e, Effect::Notice(n) if n.fenced)), "and that is told when it is true");
}

/// What streams is not seen while nothing answers, and the window may be shorter than that takes.
#[test]
fn a_hang_is_failed_over_also_when_crashes_count_for_a_moment_only() {
    let mut core = followed();
    core.settings.crash_window = Duration::from_secs(1);
    core.settings.crash_budget = 0;
    core.step(knocked(1, Knock::Silent), now(70 + 6_600));
    core.step(gone(true), now(70 + 6_900));
    assert_eq!((core.durable().ended, core.ended_by()), (Epoch(4), EndCause::Hung));
}

#[test]
fn silence_before_the_first_answer_or_while_something_is_done_means_nothing() {
    let mut core = standby();
    core.step(promote(4), now(20));
    assert_eq!(core.step(knocked(1, Knock::Silent), now(30)), [], "it is being promoted");
    let mut core = followed();
    core.step(gone(false), now(100));
    core.step(order(4, Action::RestartInPlace { timeline: TimelineId(2) }), now(110));
    core.step(Event::Spawned { life: 2 }, now(120));
    core.step(Event::Guard { life: 2, postmaster: Postmaster::Running { pid: 43 } }, now(121));
    core.step(Event::Done(TaskEnd::Succeeded), now(122));
    assert_eq!(core.step(knocked(2, Knock::Silent), now(200)), [], "it has never answered");
    assert_eq!(core.step(knocked(1, Knock::Silent), now(201)), [], "that was the one before");
    let mut core = followed();
    core.step(order(4, Action::Checkpoint), now(100));
    assert_eq!(core.step(knocked(1, Knock::Silent), now(1_000)), [Effect::Fence], "a checkpoint keeps nobody out");
}

#[test]
fn a_standby_that_lets_nobody_in_is_ended_too() {
    let mut core = standby();
    assert_eq!(core.step(knocked(1, Knock::Silent), now(100)), [Effect::Fence]);
    let effects = core.step(gone(true), now(200));
    assert!(!effects.iter().any(|e| matches!(e, Effect::Notice(_))), "{effects:?}");
    core.step(Event::Surveyed { life: 1, disk: facts(false) }, now(210));
    assert_eq!(core.state(), PostgresState::Stopped);
}

#[test]
fn the_fourth_crash_within_a_minute_ends_the_epoch_and_another_is_preferred() {
    let mut core = followed();
    for (life, ms) in [(1, 1_000), (2, 10_000), (3, 20_000)] {
        assert!(matches!(&core.step(ends(life, false), now(ms))[0], Effect::Notice(n) if !n.fenced));
        comes_back(&mut core, life + 1, ms + 100);
    }
    assert!(!core.is_unsteady(now(29_000)));
    let effects = core.step(ends(4, false), now(30_000));
    assert!(effects.iter().any(|e| matches!(e, Effect::Notice(n) if n.fenced)), "{effects:?}");
    assert_eq!(core.durable().ended, Epoch(4));
    assert!(core.is_unsteady(now(89_999)) && !core.is_unsteady(now(90_000)));
}

#[test]
fn restarts_that_fail_count_as_crashes() {
    let mut core = followed();
    core.step(gone(false), now(1_000));
    for try_number in 1..=3u64 {
        let ms = 1_000 + try_number * 500;
        assert_eq!(core.durable().ended, Epoch(0), "after {try_number}");
        core.step(order(4, Action::RestartInPlace { timeline: TimelineId(2) }), now(ms));
        let failed = TaskEnd::Failed { error: "PostgreSQL ended again".into(), harmless: false };
        core.step(Event::Done(failed), now(ms + 100));
    }
    assert_eq!(core.durable().ended, Epoch(4));
}

#[test]
fn on_primary_crash_failover_ends_the_epoch_at_once_when_somebody_streams() {
    let mut core = followed();
    core.settings.on_primary_crash = OnPrimaryCrash::Failover;
    core.step(gone(false), now(1_000));
    assert_eq!(core.durable().ended, Epoch(4));
    let mut alone = primary();
    alone.settings.on_primary_crash = OnPrimaryCrash::Failover;
    alone.step(sight(false, at(2, 200)), now(60));
    alone.step(gone(false), now(100));
    assert_eq!((alone.state(), alone.durable().ended), (PostgresState::Crashed, Epoch(0)), "there is nobody else");
}

/// `restart` has no budget and one deadline, counted from the crash: what has not come up by then is failed over.
#[test]
fn on_primary_crash_restart_tries_until_the_time_for_a_start_is_over() {
    let mut core = followed();
    core.settings.on_primary_crash = OnPrimaryCrash::Restart;
    core.settings.crash_budget = 0;
    let limit = u64::try_from(core.limits.primary_start.as_millis()).unwrap();
    core.step(gone(false), now(1_000));
    for try_number in 1..=20u64 {
        let ms = 1_000 + try_number * limit / 21;
        core.step(order(4, Action::RestartInPlace { timeline: TimelineId(2) }), now(ms));
        let failed = TaskEnd::Failed { error: "PostgreSQL ended again".into(), harmless: false };
        core.step(Event::Done(failed), now(ms + 100));
        assert_eq!((core.state(), core.durable().ended), (PostgresState::Crashed, Epoch(0)), "after {try_number}");
    }
    core.step(order(4, Action::RestartInPlace { timeline: TimelineId(2) }), now(limit));
    core.step(Event::Tick, now(1_000 + limit + 500));
    assert_eq!(core.durable().ended, Epoch(0), "a start that is under way is waited for");
    let failed = TaskEnd::Failed { error: "PostgreSQL ended again".into(), harmless: false };
    core.step(Event::Done(failed), now(1_000 + limit + 600));
    core.step(Event::Tick, now(1_000 + limit + 700));
    assert_eq!((core.durable().ended, core.ended_by()), (Epoch(4), EndCause::Crash));

    // One that comes up each time is restarted for ever.
    let mut core = followed();
    core.settings.on_primary_crash = OnPrimaryCrash::Restart;
    for life in 1..=20u64 {
        core.step(ends(life, false), now(life * 1_000));
        comes_back(&mut core, life + 1, life * 1_000 + 100);
    }
    assert_eq!(core.durable().ended, Epoch(0));
}

/// Found by the proof of states: the task has looked for the last time, PostgreSQL ends, and then the task is done.
#[test]
fn one_that_ends_before_its_promotion_or_restart_is_noted_has_crashed() {
    let mut core = standby();
    core.step(promote(4), now(20));
    core.step(held(4, 100_000), now(30));
    core.step(sight(false, at(2, 200)), now(40));
    core.step(gone(false), now(50));
    let effects = core.step(Event::Done(TaskEnd::Succeeded), now(51));
    assert!(effects.iter().any(|e| matches!(e, Effect::Notice(n) if !n.fenced)), "{effects:?}");
    assert_eq!(core.state(), PostgresState::Crashed);

    core.step(order(4, Action::RestartInPlace { timeline: TimelineId(2) }), now(60));
    core.step(Event::Spawned { life: 2 }, now(61));
    core.step(Event::Guard { life: 2, postmaster: Postmaster::Running { pid: 43 } }, now(62));
    core.step(ends(2, false), now(63));
    core.step(Event::Done(TaskEnd::Succeeded), now(64));
    assert_eq!((core.state(), core.durable().ended), (PostgresState::Crashed, Epoch(0)));
}

#[test]
fn where_standbys_have_every_commit_a_crash_is_failed_over_at_once_while_enough_are_left() {
    let ends_by_a_crash = |count: u32, effective: bool, standbys: usize| {
        let mut core = followed();
        let names = ["n2", "n3"].map(|name| name.parse().unwrap()).to_vec();
        core.durable.sync.rule = Some(SyncRule { id: 1, epoch: Epoch(4), names, count });
        (core.sync_view.effective, core.sync_view.applied, core.durable.sync.id) = (effective, 7, 7);
        core.followers = standbys;
        core.step(gone(false), now(1_000)).contains(&Effect::Release)
    };
    assert!(ends_by_a_crash(1, true, 2));
    assert!(!ends_by_a_crash(1, false, 2), "nobody is certain to have them");
    assert!(!ends_by_a_crash(1, true, 1), "commits of the next one would have nobody to confirm them");
    assert!(!ends_by_a_crash(0, true, 2), "the primary was alone");
}
