//! A disk that fills up under a primary.

use super::{
    tests::{at, held, now, position, primary},
    *,
};
use crate::{
    agent::room::Reserve,
    domain::{PostgresState, observation::StandbyProgress},
    postgres::{Place, VolumeSpace},
};

const FULL: &str = "exit code 1, PANIC:  could not write to file \"pg_wal/xlogtemp.42\": No space left on device";

fn space(free_mib: u64, reserve_mib: u64) -> Event {
    let volume = |free: u64, reserve| VolumeSpace { free: free << 20, size: 1 << 30, reserve };
    Event::Room(Space { data: volume(900, 64 << 20), wal: Some(volume(free_mib, reserve_mib << 20)) })
}

fn panics(life: u64) -> Event {
    let exit = FULL.to_owned();
    Event::Guard { life, postmaster: Postmaster::Gone { tree_empty: true, fenced: false, exit } }
}

/// A primary whose lease lasts for ever and that a standby streams from.
fn followed() -> Core {
    let mut core = primary();
    core.step(held(4, 100_000_000), now(60));
    let standby = StandbyProgress {
        member: "n2".parse().unwrap(),
        state: "streaming".to_owned(),
        flush_lsn: at(2, 200).lsn,
        lag_bytes: 0,
    };
    let sight = Sight { wal_end: at(2, 200), wal_end_known: true, standbys: vec![standby], ..Sight::default() };
    core.step(Event::Probed { life: 1, result: Ok(Box::new(sight)) }, now(70));
    core
}

#[test]
fn a_primary_that_found_no_room_frees_its_reserve_and_is_restarted_once() {
    let mut core = followed();
    core.step(space(500, 64), now(100));
    let effects = core.step(panics(1), now(200));
    let freed = position(&effects, |e| *e == Effect::Reserve(Reserve::Free(Place::Wal)));
    assert!(freed < position(&effects, |e| matches!(e, Effect::Notice(n) if !n.fenced)), "{effects:?}");
    assert_eq!((core.state(), core.durable().ended), (PostgresState::Crashed, Epoch(0)));
    assert!(core.room().is_some_and(|r| r.wal.is_some_and(|w| w.spent)), "the leader moves it away");

    core.step(Event::Spawned { life: 2 }, now(300));
    core.step(Event::Guard { life: 2, postmaster: Postmaster::Running { pid: 43 } }, now(301));
    let effects = core.step(panics(2), now(400));
    assert!(!effects.iter().any(|e| matches!(e, Effect::Reserve(_))), "there is none any more: {effects:?}");
    assert_eq!(core.durable().ended, Epoch(4), "whoever has room goes on");
}

#[test]
fn the_reserve_goes_before_the_room_does() {
    let mut core = followed();
    assert_eq!(core.step(space(50, 64), now(100)), []);
    assert_eq!(core.step(space(10, 64), now(200)), [Effect::Reserve(Reserve::Free(Place::Wal))]);
    assert!(core.room().is_some_and(|r| r.is_short()));
}
