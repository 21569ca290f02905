//! The rules, told as events and effects.

use std::time::Duration;

use super::*;
use crate::{
    agent::order::{Action, Address, Order, Source, StopMode},
    domain::{
        CloneCompression, ClusterId, Generation, Lsn, PostgresState, Profile, TimelineId, TimelineSwitch, Timings,
        moment::TwoClocks,
    },
};

pub(super) const SYSTEM: u64 = 77;

pub(super) fn now(ms: u64) -> Now {
    let d = Duration::from_millis(ms);
    Now { moment: Moment(d), clocks: TwoClocks { boot: d, raw: d } }
}

pub(super) fn at(timeline: u32, lsn: u64) -> WalPosition {
    WalPosition { timeline: TimelineId(timeline), lsn: Lsn(lsn) }
}

pub(super) fn facts(clean: bool) -> Disk {
    Disk::Present(DiskFacts {
        system_identifier: SYSTEM,
        was_primary: true,
        clean_shutdown: clean,
        proven_end: clean.then(|| at(2, 500)),
        ..DiskFacts::default()
    })
}

pub(super) fn agent(durable: Durable, found: Found, disk: Option<Disk>) -> (Core, Vec<Effect>) {
    let me = "n1".parse().unwrap();
    let timings = Timings::of(Profile::Normal);
    Core::begin(Start { me, timings, durable, found, disk, system: Some(SYSTEM) }, now(0))
}

pub(super) fn order(epoch: u64, action: Action) -> Event {
    Event::Order(Order {
        id: 9,
        rule: 1,
        epoch: Epoch(epoch),
        system_identifier: Some(SYSTEM),
        action,
        own_timeline: None,
        last: None,
        briefing: None,
    })
}

pub(super) fn promote(epoch: u64) -> Event {
    order(epoch, Action::Promote { timeline: TimelineId(2), floor: at(1, 100) })
}

pub(super) fn sight(in_recovery: bool, end: WalPosition) -> Event {
    let history = TimelineHistory::root(end.timeline);
    let result = Ok(Box::new(Sight { in_recovery, wal_end: end, wal_end_known: true, history, ..Sight::default() }));
    Event::Probed { life: 1, result }
}

pub(super) fn held(epoch: u64, until_ms: u64) -> Event {
    let d = Duration::from_millis(until_ms);
    let deadline = TwoClocks { boot: d, raw: d };
    Event::Lease(LeaseSight { epoch: Epoch(epoch), phase: LeasePhase::Held, deadline, ..LeaseSight::default() })
}

pub(super) fn gone(fenced: bool) -> Event {
    let exit = "killed by signal 9".to_owned();
    Event::Guard { life: 1, postmaster: Postmaster::Gone { tree_empty: true, fenced, exit } }
}

pub(super) fn standby() -> Core {
    let found = Found::Running { pid: 42, armed: Epoch(0), remaining: Duration::ZERO };
    let (mut core, effects) = agent(Durable { accepted: Epoch(3), ..Durable::default() }, found, None);
    assert_eq!(effects, []);
    core.step(sight(true, at(1, 100)), now(10));
    assert_eq!(core.state(), PostgresState::Standby);
    core
}

pub(super) fn primary() -> Core {
    let mut core = standby();
    let effects = core.step(promote(4), now(20));
    assert_eq!(core.state(), PostgresState::Promoting);
    assert_eq!(effects[0], Effect::Persist);
    assert!(matches!(effects[2], Effect::Begin(Task::Promote(_))), "{effects:?}");
    assert_eq!(*effects.last().unwrap(), Effect::Reply(Ok(())));
    core.step(held(4, 2_500), now(30));
    core.step(sight(false, at(2, 200)), now(40));
    let effects = core.step(Event::Done(TaskEnd::Succeeded), now(50));
    assert_eq!(effects, [Effect::Persist, Effect::CheckpointBeside]);
    assert_eq!(core.state(), PostgresState::Primary);
    core
}

pub(super) fn refusal(effects: &[Effect]) -> &Refusal {
    match effects.last() {
        Some(Effect::Reply(Err(refusal))) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

pub(super) fn position(effects: &[Effect], wanted: impl Fn(&Effect) -> bool) -> usize {
    effects.iter().position(wanted).unwrap_or_else(|| panic!("missing in {effects:?}"))
}

#[test]
fn a_straggler_from_the_last_epoch_is_refused_and_told_why() {
    let mut core = standby();
    let effects = core.step(promote(2), now(20));
    let refused = refusal(&effects);
    assert_eq!(refused.reason, "order of epoch 2 refused, this member has seen epoch 3");
    assert_eq!(refused.highest_epoch, Epoch(3));
    assert_eq!(effects.len(), 1, "nothing is written for it");
}

#[test]
fn a_higher_epoch_is_on_disk_before_anything_else_even_when_the_order_is_refused() {
    let mut core = standby();
    let effects = core.step(order(8, Action::Initdb), now(20));
    assert_eq!(effects[0], Effect::Persist);
    assert_eq!(refusal(&effects).highest_epoch, Epoch(8));
    assert_eq!(core.durable().accepted, Epoch(8));
}

#[test]
fn one_thing_at_a_time() {
    let mut core = primary();
    core.step(order(4, Action::Checkpoint), now(60));
    let effects = core.step(order(4, Action::Checkpoint), now(61));
    assert!(refusal(&effects).reason.starts_with("busy with order 9 (checkpoint"), "{effects:?}");
    core.step(Event::Done(TaskEnd::Succeeded), now(70));
    assert_eq!(core.checkpoints_done(), 9);
}

#[test]
fn another_clusters_data_is_not_touched() {
    let mut core = standby();
    let action = Action::Promote { timeline: TimelineId(2), floor: at(1, 100) };
    let order = Order {
        id: 1,
        rule: 1,
        epoch: Epoch(4),
        system_identifier: Some(5),
        action,
        own_timeline: None,
        last: None,
        briefing: None,
    };
    let effects = core.step(Event::Order(order), now(20));
    assert!(refusal(&effects).reason.contains("is of system 77, the cluster's is 5"));
}

#[test]
fn a_standby_that_lacks_wal_of_the_grant_is_not_promoted() {
    let mut core = standby();
    let floor = at(1, 101);
    let effects = core.step(order(4, Action::Promote { timeline: TimelineId(2), floor }), now(20));
    assert_eq!(refusal(&effects).reason, "its WAL ends at 1:0/64, the grant wants 1:0/65");
    assert!(core.durable().tenure.is_none());
}

#[test]
fn the_end_of_wal_is_compared_along_the_history() {
    let two = TimelineHistory {
        timeline: TimelineId(2),
        switches: vec![TimelineSwitch { timeline: TimelineId(1), end: Lsn(100) }],
        ..TimelineHistory::default()
    };
    assert!(covers(&two, at(2, 50), at(1, 100)));
    assert!(!covers(&two, at(2, 50), at(1, 101)), "WAL past the switch is on another branch");
    assert!(!covers(&two, at(2, 50), at(2, 51)));
    assert!(!covers(&TimelineHistory::root(TimelineId(1)), at(1, 500), at(2, 50)));
}

#[test]
fn a_lost_lease_fences_first_persists_next_and_tells_last() {
    let mut core = primary();
    let lost = LeaseSight { epoch: Epoch(4), phase: LeasePhase::Superseded, ..LeaseSight::default() };
    let effects = core.step(Event::Lease(lost), now(100));
    assert_eq!(effects, [Effect::Fence, Effect::Release, Effect::Persist]);
    assert_eq!(core.durable().ended, Epoch(4));
    assert_eq!(core.durable().fenced, Epoch(0));
    assert_eq!(core.state(), PostgresState::Stopping);

    let effects = core.step(gone(true), now(150));
    let persisted = position(&effects, |e| *e == Effect::Persist);
    let told = position(&effects, |e| matches!(e, Effect::Notice(n) if n.fenced && n.epoch == Epoch(4)));
    assert!(persisted < told);
    assert_eq!(core.durable().fenced, Epoch(4));
}

#[test]
fn an_ended_epoch_is_never_used_again() {
    let mut core = primary();
    let lost = LeaseSight { epoch: Epoch(4), phase: LeasePhase::Expired, ..LeaseSight::default() };
    core.step(Event::Lease(lost), now(100));
    core.step(gone(true), now(150));
    core.step(Event::Surveyed { life: 1, disk: facts(false) }, now(160));
    core.step(order(4, Action::StartStandby(None)), now(170));
    core.step(Event::Spawned { life: 2 }, now(180));
    core.step(Event::Guard { life: 2, postmaster: Postmaster::Running { pid: 43 } }, now(181));
    core.step(Event::Done(TaskEnd::Succeeded), now(182));
    let effects = core.step(promote(4), now(200));
    assert_eq!(refusal(&effects).reason, "epoch 4 has ended on this host");
    let effects = core.step(order(4, Action::RestartInPlace { timeline: TimelineId(2) }), now(210));
    assert_eq!(refusal(&effects).reason, "this host doesn't hold epoch 4");
}

#[test]
fn the_deadline_counts_without_any_news() {
    let mut core = primary();
    assert_eq!(core.step(Event::Tick, now(2_499)), []);
    let effects = core.step(Event::Tick, now(2_500));
    assert_eq!(effects[0], Effect::Fence);
    // The guard doesn't answer: the agent kills the tree itself.
    let effects = core.step(Event::Tick, now(3_000));
    assert_eq!(effects, [Effect::KillTree]);
}

#[test]
fn a_crash_with_lease_left_waits_for_its_restart_in_place() {
    let mut core = primary();
    let effects = core.step(gone(false), now(100));
    assert!(matches!(&effects[0], Effect::Notice(n) if !n.fenced), "{effects:?}");
    assert_eq!(effects[1..], [Effect::SetWal(WalPosition::default()), Effect::Survey { wal_end: false }]);
    assert_eq!(core.state(), PostgresState::Crashed);
    assert_eq!(core.durable().ended, Epoch(0));

    let other = core.step(order(4, Action::RestartInPlace { timeline: TimelineId(3) }), now(105));
    assert_eq!(refusal(&other).reason, "its grant is for timeline 2, not 3");
    let effects = core.step(order(4, Action::RestartInPlace { timeline: TimelineId(2) }), now(110));
    assert_eq!(core.durable().restart_intent, Some(Epoch(4)));
    assert_eq!(effects[0], Effect::Persist);
    assert!(matches!(effects[1], Effect::Begin(Task::Restart { resume: false, .. })));

    core.step(Event::Spawned { life: 2 }, now(120));
    core.step(Event::Guard { life: 2, postmaster: Postmaster::Running { pid: 43 } }, now(121));
    assert_eq!(core.state(), PostgresState::Starting);
    let result = Ok(Box::new(Sight { wal_end: at(2, 300), ..Sight::default() }));
    core.step(Event::Probed { life: 2, result }, now(200));
    core.step(Event::Done(TaskEnd::Succeeded), now(210));
    assert_eq!(core.state(), PostgresState::Primary);
    assert_eq!(core.durable().restart_intent, None);
}

#[test]
fn a_crash_with_too_little_lease_left_ends_the_epoch() {
    let mut core = primary();
    let effects = core.step(gone(false), now(1_300));
    assert!(effects.iter().any(|e| matches!(e, Effect::Notice(n) if n.fenced)), "{effects:?}");
    assert_eq!(core.durable().ended, Epoch(4));
}

#[test]
fn nobody_orders_the_restart_so_the_epoch_ends_in_time() {
    let mut core = primary();
    core.step(held(4, 1_000_000), now(90));
    core.step(gone(false), now(100));
    core.step(Event::Surveyed { life: 1, disk: facts(false) }, now(110));
    assert_eq!(core.step(Event::Tick, now(60_099)), []);
    let effects = core.step(Event::Tick, now(60_100));
    assert_eq!(effects[..2], [Effect::Release, Effect::Persist]);
    assert!(effects.iter().any(|e| matches!(e, Effect::Notice(n) if n.fenced)));
    assert!(effects.contains(&Effect::Survey { wal_end: true }));
}

#[test]
fn a_stop_that_keeps_the_lease_can_be_rolled_back() {
    let mut core = primary();
    core.step(held(4, 1_000_000), now(90));
    core.step(order(4, Action::Stop { mode: StopMode::Fast, keep_lease: true }), now(100));
    assert_eq!(core.state(), PostgresState::Stopping);
    let effects = core.step(gone(false), now(200));
    assert!(!effects.iter().any(|e| matches!(e, Effect::Notice(_))), "no crash: {effects:?}");
    core.step(Event::Done(TaskEnd::Succeeded), now(201));
    assert_eq!(core.state(), PostgresState::Stopping, "until it is known to be clean");
    core.step(Event::Surveyed { life: 1, disk: facts(true) }, now(210));
    assert_eq!(core.state(), PostgresState::Stopped);
    assert_eq!(core.wal_end(), (at(2, 500), true));
    assert_eq!(core.durable().ended, Epoch(0));
    let effects = core.step(order(4, Action::RestartInPlace { timeline: TimelineId(2) }), now(220));
    assert_eq!(*effects.last().unwrap(), Effect::Reply(Ok(())));
}

#[test]
fn a_stop_for_good_gives_a_proven_end() {
    let mut core = primary();
    core.step(order(4, Action::Stop { mode: StopMode::Fast, keep_lease: false }), now(100));
    core.step(Event::Done(TaskEnd::Succeeded), now(150));
    assert_eq!(core.durable().ended, Epoch(4), "a task that ends with its postmaster running is a failure: fence");

    let mut core = primary();
    core.step(order(4, Action::Stop { mode: StopMode::Fast, keep_lease: false }), now(100));
    core.step(gone(false), now(200));
    core.step(Event::Done(TaskEnd::Succeeded), now(201));
    let effects = core.step(Event::Surveyed { life: 1, disk: facts(true) }, now(210));
    let told = Notice {
        member: "n1".parse().unwrap(),
        epoch: Epoch(4),
        fenced: true,
        end: at(2, 500),
        clean: true,
        cause: EndCause::Ordered,
    };
    assert_eq!(effects, [Effect::Release, Effect::Persist, Effect::Persist, Effect::Notice(told)]);
}

/// Its copy of timeline 2 has to reach 2:900, and 3, on which its WAL ends, left 2 at 800.
#[test]
fn a_directory_that_no_start_can_bring_up_is_said_to_be_no_better_than_half_rewound() {
    let core_at = |required| {
        let disk = Disk::Present(DiskFacts { system_identifier: SYSTEM, required, ..DiskFacts::default() });
        let (mut core, _) = agent(Durable::default(), Found::Nothing, Some(disk.clone()));
        core.step(Event::Surveyed { life: 1, disk }, now(10));
        let switches = vec![TimelineSwitch { timeline: TimelineId(2), end: Lsn(800) }];
        let history = TimelineHistory { timeline: TimelineId(3), switches, ..TimelineHistory::default() };
        core.step(Event::WalEndRead { life: 1, end: at(3, 950), history }, now(20));
        core
    };
    let start = || order(4, Action::StartStandby(None));
    let mut broken = core_at(Some(at(2, 900)));
    assert!(broken.is_out_of_reach() && broken.problem().is_some_and(|why| why.contains("copied anew")));
    let effects = broken.step(start(), now(30));
    assert!(matches!(effects.last(), Some(Effect::Reply(Err(_)))), "{effects:?}");
    for fine in [None, Some(at(2, 800)), Some(at(3, 950))] {
        let effects = core_at(fine).step(start(), now(30));
        assert_eq!(effects.last(), Some(&Effect::Reply(Ok(()))), "{fine:?}");
    }
}

#[test]
fn the_way_back_among_the_standbys_ends_the_epoch_first() {
    let mut core = primary();
    core.step(held(4, 1_000_000), now(90));
    core.step(order(4, Action::Stop { mode: StopMode::Fast, keep_lease: true }), now(100));
    core.step(gone(false), now(200));
    core.step(Event::Done(TaskEnd::Succeeded), now(201));
    core.step(Event::Surveyed { life: 1, disk: facts(true) }, now(210));
    let effects = core.step(order(5, Action::StartStandby(None)), now(300));
    let release = position(&effects, |e| *e == Effect::Release);
    let begin = position(&effects, |e| matches!(e, Effect::Begin(Task::Start(None))));
    assert_eq!(effects[0], Effect::Persist);
    assert!(release < begin);
    assert_eq!(core.durable().ended, Epoch(4));
}

#[test]
fn an_order_from_before_the_grant_does_not_stop_the_primary() {
    let mut core = primary();
    let effects = core.step(order(4, Action::StartStandby(None)), now(60));
    assert_eq!(refusal(&effects).reason, "won't start as a standby: it holds epoch 4");
}

#[test]
fn a_higher_epoch_fences_a_running_primary_before_it_is_started_as_a_standby() {
    let mut core = primary();
    let effects = core.step(order(5, Action::StartStandby(None)), now(60));
    assert_eq!(effects[..4], [Effect::Persist, Effect::Fence, Effect::Release, Effect::Persist]);
    assert!(effects.contains(&Effect::Begin(Task::Start(None))), "not a mere change of upstream: {effects:?}");
}

#[test]
fn a_promotion_that_never_held_the_lease_leaves_the_standby_running() {
    let mut core = standby();
    core.step(promote(4), now(20));
    let failed = TaskEnd::Failed { error: "no majority".into(), harmless: true };
    let effects = core.step(Event::Done(failed), now(7_000));
    assert!(!effects.contains(&Effect::Fence));
    assert_eq!((core.durable().ended, core.durable().fenced), (Epoch(4), Epoch(4)));
    assert_eq!(core.state(), PostgresState::Standby);
}

#[test]
fn a_promotion_that_went_wrong_under_the_lease_is_fenced() {
    let mut core = standby();
    core.step(promote(4), now(20));
    core.step(held(4, 10_000), now(30));
    let failed = TaskEnd::Failed { error: "took timeline 3, the grant reserved 2".into(), harmless: false };
    let effects = core.step(Event::Done(failed), now(300));
    assert_eq!(effects, [Effect::Fence, Effect::Release, Effect::Persist]);
}

/// Found by the simulation: PostgreSQL ends during its promotion, whose failure is heard before the directory was read.
/// The survey under way doesn't look for the end of WAL, and a member whose end nobody knows stays stopped for ever.
#[test]
fn the_end_of_wal_is_sought_when_a_promotion_failed_while_the_directory_was_being_read() {
    let failed = || Event::Done(TaskEnd::Failed { error: "the session ended".into(), harmless: false });
    let read = |clean| Event::Surveyed { life: 1, disk: facts(clean) };
    let died = || {
        let mut core = standby();
        core.step(promote(4), now(20));
        core.step(held(4, 10_000), now(30));
        let effects = core.step(gone(false), now(200));
        assert_eq!(*effects.last().unwrap(), Effect::Survey { wal_end: false });
        core
    };
    let mut core = died();
    let effects = core.step(failed(), now(201));
    assert!(!effects.iter().any(|e| matches!(e, Effect::Survey { .. })), "one is under way: {effects:?}");
    assert_eq!(core.step(read(false), now(210)), [Effect::Survey { wal_end: true }]);
    assert_eq!(core.step(read(false), now(220)), [], "asked for once");
    let history = TimelineHistory::root(TimelineId(1));
    core.step(Event::WalEndRead { life: 1, end: at(1, 120), history }, now(300));
    assert_eq!(core.wal_end(), (at(1, 120), true));

    let mut proven = died();
    proven.step(failed(), now(201));
    assert_eq!(proven.step(read(true), now(210)), [], "the shutdown checkpoint is the end");

    let mut late = died();
    assert_eq!(late.step(read(false), now(210)), [], "what comes of the promotion is not known yet");
    let effects = late.step(failed(), now(211));
    assert!(effects.contains(&Effect::Survey { wal_end: true }), "{effects:?}");
    assert_eq!(late.step(read(false), now(220)), []);

    // Also where it ended before the lease was reached.
    let mut harmless = died();
    harmless.step(read(false), now(210));
    let effects = harmless.step(Event::Done(TaskEnd::Failed { error: "no majority".into(), harmless: true }), now(211));
    assert_eq!(*effects.last().unwrap(), Effect::Survey { wal_end: true });
}

#[test]
fn writable_without_a_lease_is_fenced_at_once() {
    let mut core = standby();
    assert_eq!(core.step(sight(false, at(2, 1)), now(20)), [Effect::Fence]);
}

/// Found by the simulation: the lease may take long to be had, and somebody promotes meanwhile.
#[test]
fn writable_before_the_lease_is_held_is_fenced_and_ends_the_grant() {
    let mut core = standby();
    core.step(promote(4), now(20));
    let effects = core.step(sight(false, at(2, 200)), now(40));
    assert_eq!(effects, [Effect::Fence, Effect::Release, Effect::Persist]);
    assert_eq!(core.durable().ended, Epoch(4));
    let mut core = standby();
    core.step(promote(4), now(20));
    core.step(held(4, 2_500), now(30));
    let effects = core.step(sight(false, at(2, 200)), now(40));
    assert!(!effects.contains(&Effect::Fence), "our own promotion is seen before its task has ended: {effects:?}");
}

/// Found by the simulation: the order was made before anybody knew that PostgreSQL had been promoted by hand.
#[test]
fn what_strayed_follows_nobody_before_it_is_read() {
    let mut core = standby();
    core.step(sight(false, at(2, 200)), now(20));
    let follow = || order(3, Action::StartStandby(Some(source())));
    assert!(refusal(&core.step(follow(), now(25))).reason.contains("read first"));
    core.step(gone(true), now(30));
    core.step(Event::Surveyed { life: 1, disk: facts(false) }, now(40));
    assert!(refusal(&core.step(follow(), now(45))).reason.contains("read first"));
    let history = TimelineHistory::root(TimelineId(2));
    core.step(Event::WalEndRead { life: 1, end: at(2, 300), history }, now(50));
    assert!(core.step(follow(), now(60)).contains(&Effect::Reply(Ok(()))));
}

#[test]
fn a_dead_guard_costs_the_epoch() {
    let mut core = primary();
    let effects = core.step(Event::GuardDied { life: 1 }, now(100));
    assert_eq!(effects, [Effect::KillTree, Effect::Fence, Effect::Release, Effect::Persist]);
    let effects = core.step(Event::TreeKilled { life: 1 }, now(150));
    assert!(effects.iter().any(|e| matches!(e, Effect::Notice(n) if n.fenced)));
}

/// The start was done, the postmaster was not there for long: nobody may take that for a start that worked.
#[test]
fn a_postmaster_that_ends_before_it_answers_is_a_failed_start() {
    let stopped = || agent(Durable::default(), Found::Nothing, Some(facts(true))).0;
    let begun = |core: &mut Core| {
        core.step(order(1, Action::StartStandby(None)), now(10));
        core.step(Event::Spawned { life: 1 }, now(20));
    };
    let error = |core: &Core| core.last_order().and_then(|o| o.error.clone());
    let mut late = stopped();
    begun(&mut late);
    late.step(Event::Done(TaskEnd::Succeeded), now(30));
    assert_eq!(error(&late), None);
    late.step(gone(false), now(40));
    assert_eq!(error(&late).as_deref(), Some("PostgreSQL ended: killed by signal 9"));

    let mut early = stopped();
    begun(&mut early);
    early.step(gone(false), now(25));
    early.step(Event::Done(TaskEnd::Succeeded), now(30));
    assert_eq!(error(&early).as_deref(), Some("PostgreSQL ended: killed by signal 9"));

    let mut answers = stopped();
    begun(&mut answers);
    answers.step(Event::Done(TaskEnd::Succeeded), now(30));
    answers.step(Event::Guard { life: 1, postmaster: Postmaster::Running { pid: 7 } }, now(31));
    answers.step(sight(true, at(1, 100)), now(40));
    answers.step(gone(false), now(50));
    assert_eq!(error(&answers), None, "it started, and ended later");
}

#[test]
fn news_of_an_earlier_postmaster_change_nothing() {
    let mut core = primary();
    core.step(Event::Spawned { life: 2 }, now(60));
    core.step(Event::Guard { life: 2, postmaster: Postmaster::Running { pid: 43 } }, now(61));
    assert_eq!(core.step(gone(false), now(100)), []);
    assert_eq!(core.tree(), Tree::Running { pid: 43 });
}

/// The agent is told of the end of one postmaster after the next was spawned: whatever is said of the first one, also
/// that its guard killed it or died, is no news of the second, before that runs and after.
#[test]
fn late_news_of_the_last_postmaster_do_not_end_the_epoch_of_the_next() {
    let late = |life: u64| {
        let guard = |postmaster| Event::Guard { life, postmaster };
        let gone = |tree_empty| Postmaster::Gone { tree_empty, fenced: true, exit: "signal 9".to_owned() };
        let writable = Sight { wal_end: at(9, 9), ..Sight::default() };
        let (end, history) = (at(9, 9), TimelineHistory::root(TimelineId(9)));
        [
            guard(gone(false)),
            guard(gone(true)),
            guard(Postmaster::Running { pid: 42 }),
            Event::GuardDied { life },
            Event::Probed { life, result: Ok(Box::new(writable)) },
            Event::Surveyed { life, disk: Disk::NoData },
            Event::WalEndRead { life, end, history },
        ]
    };
    let restarting = || {
        let mut core = primary();
        core.step(held(4, 1_000_000), now(90));
        core.step(gone(false), now(100));
        core.step(order(4, Action::RestartInPlace { timeline: TimelineId(2) }), now(110));
        core
    };
    let unharmed = |core: &mut Core, told: Event, tree: Tree| {
        let words = format!("{told:?} while {tree:?}");
        assert_eq!(core.step(told, now(130)), [], "{words}");
        assert_eq!(core.tree(), tree, "{words}");
        assert!(core.durable().tenure.is_some() && core.durable().ended == Epoch(0), "{words}");
        assert!(core.sight().is_none() && core.wal_end() != (at(9, 9), true), "{words}");
    };
    for told in late(1) {
        let mut core = restarting();
        core.step(Event::Spawned { life: 2 }, now(120));
        unharmed(&mut core, told.clone(), Tree::Ending);
        core.step(Event::Guard { life: 2, postmaster: Postmaster::Running { pid: 43 } }, now(121));
        unharmed(&mut core, told, Tree::Running { pid: 43 });
    }
    // Said again of the first one, which is known to be gone, while the next is being spawned.
    let mut core = restarting();
    for told in late(1).into_iter().take(2) {
        core.step(told, now(115));
        assert!(core.durable().tenure.is_some() && core.durable().ended == Epoch(0));
    }
}

/// While a postmaster may come up at any moment the tree is not verified empty, whatever it is just now.
#[test]
fn a_lease_lost_during_a_restart_in_place_is_told_when_the_restart_has_ended() {
    let lost = || LeaseSight { epoch: Epoch(4), phase: LeasePhase::Superseded, ..LeaseSight::default() };
    let told = |effects: &[Effect]| effects.iter().any(|e| matches!(e, Effect::Notice(n) if n.fenced));
    let lost_while_restarting = || {
        let mut core = primary();
        core.step(held(4, 1_000_000), now(90));
        core.step(gone(false), now(100));
        core.step(order(4, Action::RestartInPlace { timeline: TimelineId(2) }), now(110));
        let effects = core.step(Event::Lease(lost()), now(120));
        assert!(!told(&effects), "{effects:?}");
        assert_eq!((core.durable().ended, core.durable().fenced), (Epoch(4), Epoch(0)));
        core
    };
    let failed = || Event::Done(TaskEnd::Failed { error: "the lease is not held".into(), harmless: false });

    let mut nothing_started = lost_while_restarting();
    let effects = nothing_started.step(failed(), now(130));
    assert!(told(&effects), "{effects:?}");
    assert_eq!(nothing_started.durable().fenced, Epoch(4));

    let mut started = lost_while_restarting();
    started.step(Event::Spawned { life: 2 }, now(125));
    started.step(Event::Guard { life: 2, postmaster: Postmaster::Running { pid: 43 } }, now(126));
    let effects = started.step(failed(), now(130));
    assert!(effects.contains(&Effect::Fence) && !told(&effects), "{effects:?}");
    let end = Postmaster::Gone { tree_empty: true, fenced: true, exit: "signal 9".to_owned() };
    let effects = started.step(Event::Guard { life: 2, postmaster: end }, now(140));
    assert!(told(&effects), "{effects:?}");
}

pub(super) fn source() -> Source {
    Source { member: "n2".parse().unwrap(), host: "h2".into(), port: 5432, fork: None, named: None }
}

#[test]
fn failed_clones_are_forgotten_one_by_one_so_that_nobody_waits_for_ever() {
    let (mut core, _) = agent(Durable::default(), Found::Nothing, Some(Disk::NoData));
    for failures in 1..=5 {
        core.step(order(1, Action::Clone(source())), now(failures));
        core.step(Event::Done(TaskEnd::Failed { error: "no route".into(), harmless: false }), now(failures));
        core.step(Event::Surveyed { life: 1, disk: Disk::NoData }, now(failures));
        assert_eq!(core.durable().clone_failures, failures);
    }
    assert_eq!(core.step(Event::Tick, now(600_004)), []);
    assert_eq!(core.step(Event::Tick, now(600_005)), [Effect::Persist]);
    assert_eq!(core.durable().clone_failures, 4, "one more try");
    // Not while one runs, and not all at once; an agent that is restarted counts from its start.
    core.step(order(1, Action::Clone(source())), now(600_006));
    assert_eq!(core.step(Event::Tick, now(9_000_000)), []);
    let kept = Durable { clone_failures: 5, ..Durable::default() };
    let (mut again, _) = agent(kept, Found::Nothing, Some(Disk::NoData));
    assert_eq!(again.step(Event::Tick, now(599_999)), []);
    assert_eq!(again.step(Event::Tick, now(600_000)), [Effect::Persist]);
}

#[test]
fn a_copy_that_is_given_up_for_an_operator_is_no_failed_one() {
    let (mut core, _) = agent(Durable::default(), Found::Nothing, Some(Disk::NoData));
    core.step(order(1, Action::Clone(source())), now(2));
    let effects = core.step(order(1, Action::EndClone), now(3));
    let Some(Effect::Cancel(why)) = effects.iter().find(|effect| matches!(effect, Effect::Cancel(_))) else {
        panic!("{effects:?}")
    };
    core.step(Event::Done(TaskEnd::Failed { error: (*why).to_owned(), harmless: false }), now(4));
    assert_eq!(core.durable().clone_failures, 0);
    // Nothing else is dropped for it.
    core.step(Event::Surveyed { life: 1, disk: facts(true) }, now(5));
    core.step(order(1, Action::StartStandby(None)), now(6));
    assert_eq!(core.step(order(1, Action::EndClone), now(7)), [Effect::Reply(Ok(()))]);
}

#[test]
fn a_copy_that_found_somebody_at_work_was_not_tried() {
    let (mut core, _) = agent(Durable::default(), Found::Nothing, Some(Disk::NoData));
    core.step(order(1, Action::Clone(source())), now(1));
    core.step(Event::Done(TaskEnd::Failed { error: "another operation".into(), harmless: true }), now(2));
    assert_eq!(core.durable().clone_failures, 0);
}

#[test]
fn after_a_copy_that_failed_the_next_is_not_compressed() {
    let (mut core, _) = agent(Durable::default(), Found::Nothing, Some(Disk::NoData));
    core.settings.clone_compression = CloneCompression::Lz4;
    assert_eq!(core.how_to_copy().compression, CloneCompression::Lz4);
    core.step(order(1, Action::Clone(source())), now(1));
    core.step(Event::Done(TaskEnd::Failed { error: "no lz4".into(), harmless: false }), now(2));
    assert_eq!(core.how_to_copy().compression, CloneCompression::None);
}

#[test]
fn a_copy_ends_the_count_of_failed_rewinds() {
    let durable = Durable { rewind_failures: 2, clone_failures: 1, ..Durable::default() };
    let (mut core, _) = agent(durable, Found::Nothing, Some(facts(true)));
    let effects = core.step(order(1, Action::Clone(source())), now(10));
    // Whoever dies with the copy in place and finds it again knows that it has not streamed.
    assert!(core.durable().fresh_copy);
    assert!(position(&effects, |e| *e == Effect::Persist) < position(&effects, |e| matches!(e, Effect::Begin(_))));
    core.step(Event::Done(TaskEnd::Succeeded), now(20));
    assert_eq!((core.durable().rewind_failures, core.durable().clone_failures), (0, 0));
}

#[test]
fn a_directory_that_could_not_be_read_is_read_again() {
    let unusable = || Disk::Unusable("running pg_controldata: Resource temporarily unavailable".into());
    let (mut core, _) = agent(Durable::default(), Found::Nothing, Some(unusable()));
    assert_eq!(core.state(), PostgresState::Failed);
    assert_eq!(core.step(Event::Tick, now(29_999)), []);
    assert_eq!(core.step(Event::Tick, now(30_000)), [Effect::Survey { wal_end: true }]);
    core.step(Event::Surveyed { life: 1, disk: unusable() }, now(30_100));
    assert_eq!(core.step(Event::Tick, now(60_100)), [Effect::Survey { wal_end: true }]);
    core.step(Event::Surveyed { life: 1, disk: facts(true) }, now(60_200));
    assert_eq!(core.state(), PostgresState::Stopped);
    assert_eq!(core.step(Event::Tick, now(900_000)), []);
}

fn kept(phase: Phase) -> Durable {
    let tenure = Tenure { epoch: Epoch(4), timeline: TimelineId(2), floor: at(1, 100), phase };
    Durable { accepted: Epoch(4), tenure: Some(tenure), ..Durable::default() }
}

#[test]
fn a_restarted_agent_goes_on_under_its_guard() {
    let found = Found::Running { pid: 42, armed: Epoch(4), remaining: Duration::from_secs(1) };
    let (mut core, effects) = agent(kept(Phase::Primary), found, None);
    assert!(matches!(effects[..], [Effect::Hold(t)] if t.epoch == Epoch(4)), "{effects:?}");
    core.step(sight(false, at(2, 200)), now(5));
    assert_eq!(core.state(), PostgresState::Primary);
}

#[test]
fn a_restarted_agent_finishes_a_promotion_once_the_lease_is_held_again() {
    let found = Found::Running { pid: 42, armed: Epoch(4), remaining: Duration::from_secs(1) };
    let (mut core, _) = agent(kept(Phase::Granted), found, None);
    assert!(core.step(sight(true, at(1, 100)), now(5)).is_empty());
    let effects = core.step(held(4, 2_500), now(30));
    assert!(matches!(effects[..], [Effect::Begin(Task::Promote(_))]), "{effects:?}");
}

#[test]
fn a_restarted_agent_does_not_go_on_past_the_deadline_or_under_another_epoch() {
    for (armed, left) in [(4, 0), (3, 1_000)] {
        let found = Found::Running { pid: 42, armed: Epoch(armed), remaining: Duration::from_millis(left) };
        let (core, effects) = agent(kept(Phase::Primary), found, None);
        assert_eq!(effects, [Effect::Fence, Effect::Release, Effect::Persist]);
        assert_eq!(core.durable().ended, Epoch(4));
    }
}

#[test]
fn after_a_reboot_the_epoch_is_over_and_the_signal_file_is_put_back() {
    let durable = Durable { restart_intent: Some(Epoch(4)), ..kept(Phase::Primary) };
    let (core, effects) = agent(durable, Found::Nothing, Some(facts(false)));
    assert_eq!(core.durable().ended, Epoch(4));
    assert_eq!(core.durable().restart_intent, None);
    assert!(effects.iter().any(|e| matches!(e, Effect::Notice(n) if n.fenced)));
    assert_eq!(*effects.last().unwrap(), Effect::Survey { wal_end: true });
    assert_eq!(core.state(), PostgresState::Stopped);
}

#[test]
fn the_first_request_that_names_a_cluster_is_believed_and_no_other() {
    let mut core = standby();
    let to = |cluster: &str, generation: u64, target: &str| Address {
        cluster_id: ClusterId(cluster.into()),
        generation: Generation(generation),
        target: target.into(),
    };
    assert_eq!(core.admit(&to("", 0, "n1")), Ok(vec![]));
    assert!(core.admit(&to("a", 1, "n2")).is_err());
    assert_eq!(core.admit(&to("a", 1, "n1")).unwrap()[0], Effect::Persist);
    assert_eq!(core.admit(&to("a", 1, "n1")), Ok(vec![]));
    assert!(core.admit(&to("b", 1, "n1")).is_err());
    let recovered = core.admit(&to("a", 2, "n1")).unwrap();
    assert_eq!(recovered, [Effect::Persist, Effect::Identify(ClusterId("a".into()), Generation(2))]);
    assert!(core.admit(&to("a", 1, "n1")).is_err(), "the generation before orders nothing any more");
    let mut core = primary();
    core.admit(&to("a", 1, "n1")).unwrap();
    let early = core.admit(&to("a", 2, "n1")).unwrap_err();
    assert!(early.contains("has to end"), "what it holds ends first: {early}");
}

/// Found by the simulation: a standby goes on streaming from a member that is granted again, and gets WAL of a
/// timeline whose promotion is never recorded. Promoted from there, its own timeline would have no known parent.
#[test]
fn a_standby_that_went_on_to_a_newer_timeline_is_not_what_was_granted() {
    let history = |timeline: u32, switches: &[(u32, u64)]| TimelineHistory {
        timeline: TimelineId(timeline),
        switches: switches.iter().map(|&(t, end)| TimelineSwitch { timeline: TimelineId(t), end: Lsn(end) }).collect(),
        ..TimelineHistory::default()
    };
    let seen = |history: TimelineHistory, wal_end| Sight { in_recovery: true, history, wal_end, ..Sight::default() };
    let granted = seen(history(7, &[(6, 80)]), at(7, 100));
    assert_eq!(is_as_granted(&granted, at(7, 90)), Ok(()));
    assert_eq!(is_as_granted(&granted, WalPosition::default()), Ok(()));
    let moved_on = seen(history(8, &[(6, 80), (7, 95)]), at(8, 120));
    assert_eq!(is_as_granted(&moved_on, at(7, 90)).unwrap_err(), "its WAL ends at 8:0/78, the grant wants 7:0/5A");
}

/// The kernel lease and the watchdog go by this: too early is a hole, too late cuts a standby off.
#[test]
fn layers_stand_from_the_grant_until_the_tree_is_seen_empty() {
    let mut core = standby();
    assert!(!core.needs_layers(), "a standby");
    core.step(promote(4), now(20));
    assert!(core.needs_layers(), "before anything can become writable");
    let mut given_back = core_after_harmless_failure();
    assert!(!given_back.needs_layers(), "it is a standby still");
    given_back.step(sight(true, at(1, 100)), now(60));
    assert!(!given_back.needs_layers());

    let mut core = primary();
    assert!(core.needs_layers());
    let lost = LeaseSight { epoch: Epoch(4), phase: LeasePhase::Expired, ..LeaseSight::default() };
    core.step(Event::Lease(lost), now(100));
    assert!(core.needs_layers(), "the epoch is over, the tree may live");
    core.step(gone(true), now(150));
    assert!(!core.needs_layers());

    let mut crashed = primary();
    crashed.step(gone(false), now(100));
    assert!(!crashed.needs_layers(), "nothing runs");
    crashed.step(order(4, Action::RestartInPlace { timeline: TimelineId(2) }), now(110));
    assert!(crashed.needs_layers(), "before the postmaster is started");
    let found = Found::Running { pid: 42, armed: Epoch(4), remaining: Duration::ZERO };
    let (adopted, _) = agent(Durable { accepted: Epoch(4), ..Durable::default() }, found, None);
    assert!(adopted.needs_layers(), "left by an agent that is no more, and being fenced");
}

fn core_after_harmless_failure() -> Core {
    let mut core = standby();
    core.step(promote(4), now(20));
    core.step(Event::Done(TaskEnd::Failed { error: "no majority".into(), harmless: true }), now(50));
    core
}
