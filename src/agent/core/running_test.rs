//! What was taken over while it ran writes without a lease until it has held one, and never after.

use std::time::Duration;

use super::{
    Effect, Event, Found, LeasePhase, LeaseSight, Task, TaskEnd,
    tests::{agent, at, gone, held, now, order, refusal, sight},
};
use crate::{
    agent::{
        core::{Core, Disk},
        order::Action,
        store::{Durable, Phase, Tenure},
    },
    domain::{Epoch, PostgresState, TimelineId, moment::TwoClocks, observation::Notice},
    postgres::Knock,
};

fn is_fenced(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Fence | Effect::KillTree))
}

fn grant(epoch: u64, timeline: u32, floor: u64) -> Event {
    order(epoch, Action::Promote { timeline: TimelineId(timeline), floor: at(timeline, floor) })
}

/// As a later agent finds it under its guard, before there was a lease.
fn unleased() -> Core {
    let found = Found::Running { pid: 42, armed: Epoch(0), remaining: Duration::ZERO };
    let (mut core, effects) = agent(Durable { unleased: true, ..Durable::default() }, found, None);
    assert_eq!(effects, []);
    let effects = core.step(sight(false, at(1, 100)), now(10));
    assert!(!is_fenced(&effects), "{effects:?}");
    assert_eq!(core.state(), PostgresState::Unleased);
    core
}

fn bound() -> Core {
    let mut core = unleased();
    let effects = core.step(grant(1, 1, 90), now(20));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Begin(Task::Promote(_)))), "{effects:?}");
    assert_eq!(effects[0], Effect::Persist, "before anything is done in its name");
    core.step(held(1, 2_500), now(30));
    let effects = core.step(Event::Done(TaskEnd::Succeeded), now(40));
    assert!(effects.contains(&Effect::Persist));
    assert_eq!((core.state(), core.durable().unleased), (PostgresState::Primary, false));
    core
}

#[test]
fn what_is_taken_over_is_on_disk_before_a_guard_can_stand_beside_it() {
    let begun = || {
        let (mut core, _) = agent(Durable::default(), Found::Nothing, Some(Disk::NoData));
        core.take_over_what_runs(true);
        let effects = core.step(order(0, Action::Initdb), now(10));
        (core, effects)
    };
    let (mut core, effects) = begun();
    let begins = effects.iter().position(|effect| matches!(effect, Effect::Begin(Task::Initdb))).unwrap();
    let persisted = effects.iter().position(|effect| *effect == Effect::Persist).unwrap();
    assert!(persisted < begins && core.durable().unleased, "{effects:?}");
    // It could not be taken over: what comes up here later has no such right.
    let failed = |harmless| Event::Done(TaskEnd::Failed { error: "no".into(), harmless });
    core.step(failed(false), now(20));
    assert!(core.durable().unleased, "a guard may stand there");
    for nothing_stands in [failed(true), Event::Done(TaskEnd::Succeeded)] {
        let mut core = begun().0;
        core.step(nothing_stands, now(20));
        assert!(!core.durable().unleased);
    }
}

#[test]
fn it_writes_without_a_lease_until_it_has_held_one() {
    let mut core = unleased();
    assert!(!is_fenced(&core.step(sight(false, at(1, 110)), now(5_000))));
    let hangs = Event::Knocked { life: 1, knock: Knock::Silent, waited: Duration::from_secs(5) };
    assert!(!is_fenced(&core.step(hangs, now(6_000))), "it was nobody's to end before");
    let mut core = bound();
    let lost = LeaseSight { epoch: Epoch(1), phase: LeasePhase::Expired, ..LeaseSight::default() };
    assert!(is_fenced(&core.step(Event::Lease(lost), now(2_600))), "bound like every primary");
    assert!(is_fenced(&core.step(sight(false, at(1, 120)), now(2_700))), "and never free again");
}

#[test]
fn a_grant_of_another_timeline_or_of_wal_it_lacks_is_refused() {
    for (timeline, floor) in [(2, 90), (1, 101)] {
        let mut core = unleased();
        let effects = core.step(grant(1, timeline, floor), now(20));
        assert!(refusal(&effects).reason.contains("its WAL ends at"), "{effects:?}");
        assert!(!is_fenced(&effects) && core.durable().tenure.is_none());
    }
    let mut core = unleased();
    let effects = core.step(order(1, Action::StartStandby(None)), now(20));
    assert!(refusal(&effects).reason.contains("goes on running"));
}

#[test]
fn without_a_lease_the_grant_is_given_back_and_it_goes_on() {
    let mut core = unleased();
    core.step(grant(1, 1, 90), now(20));
    let failed = TaskEnd::Failed { error: "no majority".into(), harmless: true };
    let effects = core.step(Event::Done(failed), now(4_000));
    assert!(!is_fenced(&effects), "{effects:?}");
    let gave_back = |effect: &Effect| matches!(effect, Effect::Notice(Notice { epoch: Epoch(1), fenced: true, .. }));
    assert!(effects.iter().any(gave_back), "nobody waits for it: {effects:?}");
    assert!(!is_fenced(&core.step(sight(false, at(1, 130)), now(4_100))));
    assert_eq!((core.state(), core.durable().unleased), (PostgresState::Unleased, true));
    core.step(grant(3, 1, 120), now(4_200));
    assert_eq!(core.durable().tenure.map(|t| (t.epoch, t.phase)), Some((Epoch(3), Phase::Granted)));
}

fn granted() -> Durable {
    let tenure = Tenure { epoch: Epoch(1), timeline: TimelineId(1), floor: at(1, 90), phase: Phase::Granted };
    Durable { unleased: true, accepted: Epoch(1), tenure: Some(tenure), ..Durable::default() }
}

fn superseded(epoch: u64) -> LeaseSight {
    LeaseSight { epoch: Epoch(epoch), phase: LeasePhase::Superseded, ..LeaseSight::default() }
}

fn lost(epoch: u64) -> Event {
    Event::Lease(superseded(epoch))
}

#[test]
fn a_promotion_that_fails_before_the_lease_lets_it_go_on() {
    for (held_before, ends) in [(false, false), (true, true)] {
        let mut core = unleased();
        core.step(grant(1, 1, 90), now(20));
        if held_before {
            core.step(held(1, 2_500), now(30));
        }
        let failed = TaskEnd::Failed { error: "the guard was late".into(), harmless: false };
        let effects = core.step(Event::Done(failed), now(40));
        assert_eq!(is_fenced(&effects), ends, "{effects:?}");
    }
}

/// The agent was killed between the grant and the first lease, and is back after the promotion's deadline.
#[test]
fn a_grant_that_was_given_up_meanwhile_lets_it_go_on() {
    let found = |armed| Found::Running { pid: 42, armed: Epoch(armed), remaining: Duration::from_secs(armed) };
    for overtaken in [lost(1), grant(2, 1, 90)] {
        let (mut core, effects) = agent(granted(), found(0), None);
        assert!(matches!(effects[..], [Effect::Hold(_)]), "{effects:?}");
        core.step(sight(false, at(1, 100)), now(10));
        let effects = core.step(overtaken, now(20));
        assert!(!is_fenced(&effects) && effects.contains(&Effect::Release), "{effects:?}");
        assert!(core.durable().unleased && core.durable().ended == Epoch(1));
        core.step(grant(2, 1, 90), now(30));
        assert_eq!(core.durable().tenure.map(|t| t.epoch), Some(Epoch(2)), "and it can be granted again");
    }
    // An earlier agent had got as far as the lease: then it ends.
    let (mut core, _) = agent(granted(), found(1), None);
    assert!(is_fenced(&core.step(lost(1), now(20))));
    // Or this one had it, be it for so short that nobody here has seen it held.
    let d = Duration::from_secs(2);
    let held_then = LeaseSight { deadline: TwoClocks { boot: d, raw: d }, ..superseded(1) };
    for events in [vec![held(1, 2_500), lost(1)], vec![Event::Lease(held_then)]] {
        let (mut core, _) = agent(granted(), found(0), None);
        core.step(sight(false, at(1, 100)), now(10));
        let effects: Vec<Effect> = events.into_iter().flat_map(|event| core.step(event, now(20))).collect();
        assert!(is_fenced(&effects), "{effects:?}");
    }
}

#[test]
fn what_is_not_bound_in_time_goes_on() {
    let mut core = unleased();
    core.step(grant(1, 1, 90), now(20));
    let effects = core.step(Event::Tick, now(3_600_000));
    assert!(!is_fenced(&effects) && effects.contains(&Effect::Release), "{effects:?}");
    assert!(core.durable().tenure.is_none() && core.durable().unleased);
}

#[test]
fn an_agent_that_finds_it_armed_for_no_tenure_of_its_own_ends_it() {
    let found = Found::Running { pid: 42, armed: Epoch(1), remaining: Duration::from_secs(1) };
    let (_, effects) = agent(Durable { unleased: true, ..Durable::default() }, found, None);
    assert!(is_fenced(&effects), "{effects:?}");
}

#[test]
fn once_it_has_ended_it_is_a_member_like_any_other() {
    let mut core = unleased();
    let effects = core.step(gone(false), now(20));
    assert!(effects.contains(&Effect::Persist) && !core.durable().unleased, "{effects:?}");
    let mut core = bound();
    core.step(gone(false), now(50));
    assert_eq!(core.state(), PostgresState::Crashed, "restarted in place under a guard");
}
