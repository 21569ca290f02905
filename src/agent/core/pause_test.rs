//! What a pause changes for a host, told as events and effects.

use super::super::{lists_test::briefing, tests::*, *};
use crate::{
    domain::{Briefing, OnPrimaryCrash, PauseWord, PostgresState, TimelineId},
    reconcile::states::{Cause, EDGES},
};

/// Too many failovers followed crashes, or no more.
fn stays(version: u64, stays: bool) -> Event {
    Event::Briefed(Box::new(Briefing { pause: PauseWord { version, on: false, stays }, ..briefing(4, 0, &[]) }))
}

fn paused(version: u64, on: bool) -> Event {
    Event::Briefed(Box::new(Briefing { pause: PauseWord { version, on, stays: false }, ..briefing(4, 0, &[]) }))
}

fn surveyed(clean: bool) -> Event {
    let Disk::Present(facts) = facts(true) else { panic!() };
    Event::Surveyed { life: 1, disk: Disk::Present(DiskFacts { clean_shutdown: clean, ..facts }) }
}

/// Renewals go on meanwhile.
fn at_time(core: &mut Core, ms: u64) -> Vec<Effect> {
    let mut effects = core.step(held(4, ms + 2_500), now(ms));
    effects.extend(core.step(Event::Tick, now(ms)));
    effects
}

fn ends(effects: &[Effect]) -> bool {
    effects.contains(&Effect::Release)
}

#[test]
fn what_is_stopped_by_hand_in_a_pause_keeps_its_lease_and_waits_for_an_order_after_it() {
    let mut core = primary();
    core.step(paused(1, true), now(60));
    core.step(gone(false), now(70));
    assert_eq!(core.state(), PostgresState::Stopping, "nobody restarts what may have been stopped");
    let effects = core.step(surveyed(true), now(80));
    assert!(effects.contains(&Effect::Persist));
    assert_eq!((core.state(), core.is_stopped_by_hand()), (PostgresState::Stopped, true));
    assert!(core.problem().unwrap().contains("`matriarch restart n1`"));
    for second in 1..120 {
        core.step(paused(1, true), now(second * 1_000));
        assert!(!ends(&at_time(&mut core, second * 1_000)), "after {second} s");
    }
    core.step(paused(2, false), now(120_000));
    assert!(!ends(&at_time(&mut core, 120_001)), "the wait for an order begins now");
    let order = order(4, crate::agent::order::Action::RestartInPlace { timeline: TimelineId(2) });
    let effects = core.step(order, now(120_002));
    assert!(effects.iter().any(|e| matches!(e, Effect::Begin(Task::Restart { .. }))), "{effects:?}");
    assert!(!core.is_stopped_by_hand());
}

#[test]
fn nobody_waits_for_ever_for_a_manager_that_says_nothing_of_the_pause_any_more() {
    let mut core = primary();
    core.step(paused(1, true), now(60));
    core.step(gone(false), now(70));
    core.step(surveyed(true), now(80));
    let ended = (1..200).find(|second| ends(&at_time(&mut core, second * 1_000)));
    let limit = core.limits.primary_start.as_secs() + super::FORGET.as_secs();
    assert!(ended.is_some_and(|second| second <= limit + 1), "{ended:?}");
}

#[test]
fn a_crash_in_a_pause_is_restarted_in_place_however_often_and_whatever_is_set() {
    let mut core = primary();
    core.settings.on_primary_crash = OnPrimaryCrash::Failover;
    core.settings.crash_budget = 0;
    core.followed = Some(Moment::from_millis(50));
    core.step(paused(1, true), now(60));
    core.step(gone(false), now(70));
    let effects = core.step(surveyed(false), now(80));
    assert!(!ends(&effects));
    assert_eq!((core.state(), core.is_stopped_by_hand()), (PostgresState::Crashed, false));
}

#[test]
fn after_too_many_failovers_a_crash_is_restarted_in_place_until_that_is_over_or_nobody_says_so_any_more() {
    let crashes = |words: &[Event], ms| {
        let mut core = primary();
        core.settings.on_primary_crash = OnPrimaryCrash::Failover;
        core.step(held(4, 100_000_000), now(51));
        core.followed = Some(Moment::from_millis(50));
        for word in words {
            core.step(word.clone(), now(60));
        }
        at_time(&mut core, ms);
        core.followed = Some(Moment::from_millis(ms));
        let effects = core.step(gone(false), now(ms + 10));
        !ends(&effects) && core.state() == PostgresState::Crashed
    };
    assert!(!crashes(&[], 70), "it is failed over as it is set");
    assert!(crashes(&[stays(1, true)], 70));
    assert!(!crashes(&[stays(1, true), stays(2, false)], 70), "acknowledged");
    assert!(crashes(&[stays(2, true), stays(1, false)], 70), "an older word");
    assert!(!crashes(&[stays(1, true)], 60 + 20_000), "nobody has confirmed it for long");
}

#[test]
fn one_that_is_started_by_hand_is_started_again_as_it_should_be() {
    let mut core = primary();
    core.step(paused(1, true), now(60));
    core.step(gone(false), now(70));
    core.step(surveyed(true), now(80));
    core.step(Event::StrayEnded, now(90));
    assert!(!core.is_stopped_by_hand());
    assert!(core.problem().unwrap().contains("use `matriarch restart n1`"));

    let mut sooner = primary();
    sooner.step(paused(1, true), now(60));
    sooner.step(gone(false), now(70));
    sooner.step(Event::StrayEnded, now(75));
    sooner.step(surveyed(true), now(80));
    assert_eq!((sooner.state(), sooner.is_stopped_by_hand()), (PostgresState::Crashed, false));
}

#[test]
fn without_a_pause_a_stop_by_hand_is_a_crash_and_a_fence_is_none_in_a_pause() {
    let mut core = primary();
    core.step(gone(false), now(70));
    core.step(surveyed(true), now(80));
    assert_eq!((core.state(), core.is_stopped_by_hand()), (PostgresState::Crashed, false));

    let mut fenced = primary();
    fenced.step(paused(1, true), now(60));
    let effects = fenced.step(gone(true), now(70));
    assert!(ends(&effects), "the lease is over: {effects:?}");
    fenced.step(surveyed(true), now(80));
    assert!(!fenced.is_stopped_by_hand());
}

#[test]
fn an_older_word_changes_nothing() {
    let mut core = primary();
    core.step(paused(2, false), now(60));
    core.step(paused(1, true), now(61));
    assert!(!core.is_paused());
}

/// The drawing of the states has the way of a stop by hand.
#[test]
fn the_way_is_drawn() {
    for (from, to) in
        [(PostgresState::Primary, PostgresState::Stopping), (PostgresState::Stopping, PostgresState::Stopped)]
    {
        assert!(EDGES.iter().any(|e| e.from == from && e.to == to && !matches!(e.cause, Cause::Order(..))));
    }
}

#[test]
fn one_that_does_not_come_up_is_given_up_after_too_many_failovers_too_when_somebody_could_go_on() {
    let given_up = |followed: bool, pause: bool| {
        let mut core = primary();
        core.step(held(4, 100_000_000), now(51));
        core.step(if pause { paused(1, true) } else { stays(1, true) }, now(60));
        core.followed = followed.then_some(Moment::from_millis(60));
        core.step(gone(false), now(70));
        core.step(surveyed(false), now(80));
        let limit = u64::try_from(core.limits.primary_start.as_millis()).unwrap();
        (1..=limit + 100).step_by(100).find(|ms| {
            let word = if pause { paused(1, true) } else { stays(1, true) };
            ends(&core.step(word, now(70 + ms)))
        })
    };
    assert!(given_up(true, false).is_some());
    assert_eq!(given_up(false, false), None, "there is nobody else");
    assert_eq!(given_up(true, true), None, "an operator is at work");
}
