//! A disk that stands still, fails, or has lost its files, under a primary and under a standby.

use std::time::Duration;

use super::{
    tests::{at, facts, gone, held, now, order, position, primary, refusal, standby},
    *,
};
use crate::{
    agent::order::Action,
    domain::{PauseWord, PostgresState, TimelineId, observation::StandbyProgress},
    postgres::{Place, Touch, VolumeSpace},
};

const WAITED: Duration = Duration::from_secs(5);

fn silent(place: Place) -> Event {
    Event::Touched { place, touch: None, waited: WAITED, patience: WAITED }
}

fn touched(touch: Touch) -> Event {
    Event::Touched { place: Place::Data, touch: Some(touch), waited: WAITED, patience: WAITED }
}

fn space(apart: bool) -> Event {
    let volume = VolumeSpace { free: 900 << 20, size: 1 << 30, reserve: 64 << 20 };
    Event::Room(Space { data: volume, wal: apart.then_some(volume) })
}

fn seen(end: u64, followed: bool) -> Event {
    let standby = StandbyProgress {
        member: "n2".parse().unwrap(),
        state: "streaming".to_owned(),
        flush_lsn: at(2, end).lsn,
        lag_bytes: 0,
    };
    let standbys = if followed { vec![standby] } else { vec![] };
    let sight = Sight { wal_end: at(2, end), wal_end_known: true, standbys, ..Sight::default() };
    Event::Probed { life: 1, result: Ok(Box::new(sight)) }
}

/// A primary whose lease lasts for ever, and that a standby streams from or not.
fn reigning(followed: bool) -> Core {
    let mut core = primary();
    core.step(held(4, 100_000_000), now(60));
    core.step(seen(200, followed), now(70));
    core
}

fn told_of_the_end(effects: &[Effect]) -> bool {
    effects.iter().any(|e| matches!(e, Effect::Notice(n) if n.fenced))
}

#[test]
fn a_primary_whose_disk_stands_still_is_fenced_and_released_before_anything_waits_for_a_disk() {
    for place in [Place::Data, Place::Wal] {
        let mut core = reigning(true);
        assert_eq!(core.step(touched(Touch::Written), now(1_000)), []);
        let effects = core.step(silent(place), now(6_000));
        assert_eq!(effects, [Effect::Fence, Effect::Release, Effect::Persist]);
        assert_eq!((core.durable().ended, core.ended_by()), (Epoch(4), EndCause::Storage));
        assert!(core.storage_problem().is_some_and(|why| why.contains("has not finished a write for 5000 ms")));
        assert!(!core.is_unsteady(now(6_001)), "its WAL counts as any once the disk goes on");
    }
}

/// The old primary's processes hang in the kernel until the disk goes on.
#[test]
fn that_nothing_is_left_is_said_when_it_is_so_and_not_before() {
    let mut core = reigning(true);
    core.step(silent(Place::Data), now(6_000));
    for ms in (6_100..600_000).step_by(1_000) {
        let effects = [core.step(Event::Tick, now(ms)), core.step(silent(Place::Data), now(ms))].concat();
        assert!(effects.iter().all(|e| *e == Effect::KillTree), "{effects:?}");
        assert_eq!((core.state(), core.durable().fenced), (PostgresState::Stopping, Epoch(0)));
    }
    assert!(told_of_the_end(&core.step(gone(true), now(600_000))));
    core.step(Event::Surveyed { life: 1, disk: facts(false) }, now(600_100));
    core.step(touched(Touch::Written), now(600_200));
    assert_eq!((core.state(), core.storage_problem()), (PostgresState::Stopped, None), "and it comes back");
}

#[test]
fn without_a_standby_and_in_a_pause_the_epoch_is_kept_and_the_disk_named() {
    let mut alone = reigning(false);
    assert_eq!(alone.step(silent(Place::Data), now(6_000)), []);
    assert!(alone.problem().is_some_and(|why| why.contains("has not finished a write")));
    assert_eq!(alone.state(), PostgresState::Primary);
    alone.step(seen(200, true), now(7_000));
    assert_eq!(alone.step(silent(Place::Data), now(7_100))[0], Effect::Fence, "somebody came who can take over");

    let mut paused = reigning(true);
    paused.take_pause(PauseWord { version: 1, on: true, ..PauseWord::default() }, now(100));
    assert_eq!(paused.step(silent(Place::Data), now(6_000)), []);
    assert_eq!(paused.durable().ended, Epoch(0));
    paused.step(touched(Touch::Written), now(7_000));
    assert_eq!(paused.problem(), None);
}

/// A checkpoint can keep a slow disk from finishing a small write for long.
#[test]
fn a_slow_disk_that_wal_is_flushed_to_is_none_that_stands_still() {
    for (apart, place, slow) in
        [(false, Place::Data, true), (true, Place::Wal, true), (true, Place::Data, false), (false, Place::Wal, true)]
    {
        let mut core = reigning(true);
        core.step(space(apart), now(80));
        core.step(seen(300, true), now(4_900));
        let effects = core.step(silent(place), now(6_000));
        assert_eq!(effects.is_empty(), slow, "WAL apart: {apart}, {place:?}: {effects:?}");
        // By then nothing has been flushed since that write was begun.
        core.step(silent(place), now(8_900));
        assert_eq!(core.durable().ended, Epoch(4));
    }
}

#[test]
fn a_data_directory_that_is_gone_ends_the_epoch_when_it_is_missed_twice() {
    let mut core = reigning(true);
    assert_eq!(core.step(touched(Touch::Missing), now(1_000)), []);
    assert_eq!(core.step(touched(Touch::Missing), now(2_000))[0], Effect::Fence);
    assert_eq!(core.ended_by(), EndCause::Storage);

    let mut running = standby();
    running.step(touched(Touch::Missing), now(1_000));
    assert_eq!(running.step(touched(Touch::Missing), now(2_000)), []);
    assert!(running.problem().is_some_and(|why| why.contains("is gone")), "it is named, and nothing is granted to it");

    let mut fresh = tests::agent(Durable::default(), Found::Nothing, Some(Disk::NoData)).0;
    fresh.step(touched(Touch::Missing), now(1_000));
    fresh.step(touched(Touch::Missing), now(2_000));
    assert_eq!(fresh.problem(), None, "there never was one");
}

#[test]
fn a_disk_that_fails_ends_the_epoch_at_once_and_a_full_one_does_not() {
    let mut core = reigning(true);
    assert_eq!(core.step(touched(Touch::Untried("No space left on device".into())), now(1_000)), []);
    assert_eq!(core.step(touched(Touch::Failing("Input/output error".into())), now(2_000))[0], Effect::Fence);
}

#[test]
fn a_crash_that_says_that_the_disk_failed_is_not_restarted_while_somebody_follows() {
    let panic = || Event::Guard {
        life: 1,
        postmaster: Postmaster::Gone {
            tree_empty: true,
            fenced: false,
            exit: "exit code 1, PANIC:  could not fsync file \"x\": Input/output error".to_owned(),
        },
    };
    let mut core = reigning(true);
    assert!(told_of_the_end(&core.step(panic(), now(1_000))));
    assert_eq!((core.ended_by(), core.is_unsteady(now(1_001))), (EndCause::Storage, true));
    let mut alone = reigning(false);
    alone.step(panic(), now(1_000));
    assert_eq!((alone.state(), alone.durable().ended), (PostgresState::Crashed, Epoch(0)));
}

#[test]
fn nothing_is_restarted_in_place_on_a_disk_that_stands_still() {
    let restart = || order(4, Action::RestartInPlace { timeline: TimelineId(2) });
    let mut core = reigning(true);
    core.step(gone(false), now(1_000));
    assert_eq!(core.state(), PostgresState::Crashed);
    assert!(told_of_the_end(&core.step(silent(Place::Data), now(6_000))), "a standby goes on");

    let mut alone = reigning(false);
    alone.step(silent(Place::Data), now(6_000));
    alone.step(gone(false), now(6_100));
    assert_eq!(alone.state(), PostgresState::Crashed);
    assert!(refusal(&alone.step(restart(), now(6_200))).reason.contains("can't be started now"));
    alone.step(touched(Touch::Written), now(7_000));
    let effects = alone.step(restart(), now(7_100));
    position(&effects, |e| matches!(e, Effect::Begin(Task::Restart { .. })));
}

#[test]
fn a_standby_names_its_disk_and_goes_on() {
    let mut core = standby();
    assert_eq!(core.step(silent(Place::Wal), now(6_000)), []);
    assert_eq!(core.state(), PostgresState::Standby);
    assert_eq!(core.problem().as_deref(), Some("the volume of its WAL has not finished a write for 5000 ms"));
}

#[test]
fn after_too_many_failovers_a_disk_that_stands_still_is_waited_for_and_one_that_fails_is_not() {
    let gives_way = |event: Event| {
        let mut core = reigning(true);
        core.stays = Some(Moment::from_millis(5_900));
        core.step(event, now(6_000)).contains(&Effect::Release)
    };
    assert!(!gives_way(silent(Place::Data)));
    assert!(gives_way(touched(Touch::Failing("Input/output error".to_owned()))));
}
