//! When clients are led to this host: not before PostgreSQL is open, and for as long as
//! it ends their sessions under its lease.

use super::{tests::*, *};
use crate::{
    agent::order::{Action, StopMode},
    domain::{ReaderFallback, TimelineId},
    layers::Serving,
};

#[test]
fn clients_are_led_to_an_open_primary_and_to_nothing_else() {
    let mut core = standby();
    assert_eq!(core.serving(now(1_000)), Serving::Shut, "a standby");
    core.step(promote(4), now(20));
    core.step(held(4, 2_500), now(30));
    core.step(sight(false, at(2, 200)), now(40));
    assert_eq!(core.serving(now(1_000)), Serving::Shut, "promoted, not yet open");
    core.step(Event::Done(TaskEnd::Succeeded), now(50));
    assert_eq!(core.serving(now(1_000)), Serving::Open);
}

#[test]
fn a_primary_that_is_stopped_keeps_them_until_it_is_gone() {
    for keep_lease in [false, true] {
        let mut core = primary();
        core.step(order(4, Action::Stop { mode: StopMode::Fast, keep_lease }), now(100));
        assert_eq!(core.serving(now(1_000)), Serving::Keep, "sessions are ended through it");
        core.step(gone(false), now(200));
        assert_eq!(core.serving(now(1_000)), Serving::Shut);
    }
}

#[test]
fn a_primary_that_is_fenced_or_crashed_leads_nobody() {
    let mut core = primary();
    let lost = LeaseSight { epoch: Epoch(4), phase: LeasePhase::Expired, ..LeaseSight::default() };
    core.step(Event::Lease(lost), now(100));
    assert_eq!(core.serving(now(1_000)), Serving::Shut);
    let mut crashed = primary();
    crashed.step(gone(false), now(100));
    assert_eq!(crashed.serving(now(1_000)), Serving::Shut);
    crashed.step(order(4, Action::RestartInPlace { timeline: TimelineId(2) }), now(110));
    assert_eq!(crashed.serving(now(1_000)), Serving::Shut, "not before it is open again");
}

/// The standbys that confirm have left the last primary, and its lease, with its address, may go on for a while.
#[test]
fn who_did_not_wait_for_the_last_lease_leads_nobody_before_its_end() {
    let mut core = primary();
    core.settings.failover_wait = FailoverWait::Promise;
    assert_eq!(core.granted, now(20).moment, "counted from the grant");
    let hold = u64::try_from(core.limits.hold.as_millis()).unwrap();
    assert_eq!(core.serving(now(20 + hold)), Serving::Shut);
    assert_eq!(core.serving(now(21 + hold + hold / 100)), Serving::Open);
    let found = Found::Running { pid: 42, armed: Epoch(4), remaining: Duration::from_secs(1) };
    let (mut later, _) = agent(core.durable().clone(), found, None);
    later.settings.failover_wait = FailoverWait::Promise;
    assert!(later.granted >= now(0).moment, "an agent that is restarted counts anew");
}

/// Where this host may have the address for standbys.
#[test]
fn clients_that_read_are_led_to_an_open_standby_and_to_a_primary_only_where_that_is_set() {
    let mut core = standby();
    assert_eq!(core.serving_readers(now(1_000)), Serving::Open);
    core.step(promote(4), now(20));
    assert_eq!(core.serving_readers(now(1_000)), Serving::Shut, "it is no standby any more");
    let mut primary = primary();
    assert_eq!(primary.serving_readers(now(1_000)), Serving::Shut);
    primary.settings.vip_standby_fallback = ReaderFallback::Primary;
    assert_eq!(primary.serving_readers(now(1_000)), Serving::Open);
    let mut stopped = standby();
    stopped.step(order(4, Action::Stop { mode: StopMode::Fast, keep_lease: false }), now(100));
    assert_eq!(stopped.serving_readers(now(1_000)), Serving::Keep, "sessions are ended through it");
    stopped.step(gone(false), now(200));
    assert_eq!(stopped.serving_readers(now(1_000)), Serving::Shut);
}
