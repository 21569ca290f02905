//! Members, timings and the promise of failsafe, told as events and effects.

use std::time::Duration;

use super::{tests::*, *};
use crate::{
    agent::order::Address,
    domain::{
        Briefing, ClusterId, CommittedTimings, Generation, MemberList, OnPrimaryCrash, PauseWord, Profile, Settings,
        SettingsDocument, SyncWord, Timings, TimingsId, TimingsInUse,
    },
    lease::message::{Body, Letter, Terms, Ticket},
};

pub(super) fn briefing(epoch: u64, members: u64, timings: &[(u64, Profile)]) -> Briefing {
    let committed = timings.iter().map(|(id, profile)| CommittedTimings {
        id: TimingsId(*id),
        profile: *profile,
        timings: Timings::of(*profile),
    });
    let oldest = TimingsId(timings.first().map_or(0, |(id, _)| *id));
    Briefing {
        epoch: Epoch(epoch),
        members: MemberList {
            version: members,
            agents: ["n1", "n2", "n3"].map(|n| (n.parse().unwrap(), format!("{n}:7401"))).into(),
        },
        timings: TimingsInUse { oldest, committed: committed.collect() },
        settings: SettingsDocument::default(),
        pause: PauseWord::default(),
        sync: SyncWord::default(),
        lineage: None,
        managers: ["n1", "n2", "n3"].map(|n| (n.parse().unwrap(), format!("{n}:7400"))).into(),
        moved: Default::default(),
    }
}

fn settings(version: u64, values: &[(&str, &str)]) -> Event {
    let values = values.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Event::Briefed(Box::new(Briefing { settings: SettingsDocument { version, values }, ..briefing(3, 0, &[]) }))
}

/// n2's holder, in failsafe, asks for a promise.
fn failsafe(epoch: u64, seq: u64) -> Event {
    let terms = Some(Terms { timings: TimingsId::FILES, grant: Timings::of(Profile::Normal).grant });
    let body = Body::Failsafe { ticket: Ticket { session: 1, seq }, members: 4, terms };
    Event::Failsafe { from: "n2".parse().unwrap(), letter: Letter { epoch: Epoch(epoch), body } }
}

fn answered(effects: &[Effect]) -> Option<&Body> {
    effects.iter().find_map(|e| match e {
        Effect::Answer(letter) => Some(&letter.body),
        _ => None,
    })
}

fn briefed_standby() -> Core {
    let mut core = standby();
    core.step(Event::Briefed(Box::new(briefing(3, 4, &[]))), now(11));
    core
}

#[test]
fn what_the_manager_tells_is_on_disk_before_the_lease_counts_by_it_and_never_goes_back() {
    let mut core = primary();
    let effects = core.step(Event::Briefed(Box::new(briefing(4, 4, &[(1, Profile::Slow)]))), now(60));
    assert_eq!(effects[0], Effect::Persist);
    assert!(matches!(&effects[1], Effect::Members(m) if m.version == 4), "{effects:?}");
    assert!(matches!(&effects[2], Effect::Timings(t) if t.id == TimingsId(1)), "{effects:?}");
    assert_eq!(core.limits.hold, Timings::of(Profile::Slow).hold);
    for older in [briefing(3, 3, &[]), briefing(4, 4, &[(1, Profile::Slow)])] {
        assert_eq!(core.step(Event::Briefed(Box::new(older)), now(70)), []);
    }
    let durable = core.durable().clone();
    let effects =
        core.step(Event::Briefed(Box::new(briefing(4, 4, &[(1, Profile::Slow), (2, Profile::Fast)]))), now(80));
    assert!(effects.iter().any(|e| matches!(e, Effect::Timings(t) if t.id == TimingsId(2))), "{effects:?}");

    let found = Found::Running { pid: 42, armed: Epoch(4), remaining: Duration::from_secs(1) };
    let (core, _) = agent(durable, found, None);
    assert_eq!(core.limits.hold, Timings::of(Profile::Slow).hold, "a restarted agent does not fall back on its file");
}

#[test]
fn a_move_is_on_disk_before_anybody_goes_by_it_and_forgotten_when_it_is_undone() {
    let told = |members, moved: &[&str]| {
        let moved = moved.iter().map(|n| (n.parse().unwrap(), format!("{n}-elsewhere:7400"))).collect();
        Event::Briefed(Box::new(Briefing { moved, ..briefing(4, members, &[]) }))
    };
    let mut core = primary();
    let effects = core.step(told(4, &["n2"]), now(60));
    assert_eq!(effects[0], Effect::Persist);
    assert!(matches!(&effects[1], Effect::Moved(m) if m.len() == 1), "{effects:?}");
    assert_eq!(core.durable().moved[&"n2".parse().unwrap()], "n2-elsewhere:7400");
    assert_eq!(core.step(told(4, &["n2"]), now(70)), [], "known");
    assert_eq!(core.step(told(3, &[]), now(80)), [], "what an older list says");
    // n2 was removed and added anew.
    let effects = core.step(told(6, &[]), now(90));
    assert!(effects.iter().any(|e| matches!(e, Effect::Moved(m) if m.is_empty())), "{effects:?}");
    assert!(core.durable().moved.is_empty());
}

#[test]
fn the_newest_settings_count_also_after_a_restart_of_the_agent() {
    let mut core = standby();
    assert_eq!(core.settings(), &Settings::default());
    let told = [("on_primary_crash", "failover"), ("a_newer_one", "x")];
    assert_eq!(core.step(settings(4, &told), now(20)), [Effect::Persist, Effect::Archive]);
    assert_eq!(core.settings().on_primary_crash, OnPrimaryCrash::Failover);
    for older in [settings(3, &[("on_primary_crash", "restart")]), settings(4, &told)] {
        assert_eq!(core.step(older, now(30)), []);
    }
    let found = Found::Running { pid: 42, armed: Epoch(0), remaining: Duration::ZERO };
    let (mut core, _) = agent(core.durable().clone(), found, None);
    assert_eq!(core.settings().on_primary_crash, OnPrimaryCrash::Failover);
    assert_eq!(core.durable().settings.values["a_newer_one"], "x", "kept for the version that knows it");
    assert_eq!(core.step(settings(5, &[]), now(40)), [Effect::Persist, Effect::Archive]);
    assert_eq!(core.settings(), &Settings::default());
}

#[test]
fn settings_of_the_generation_before_count_no_more_whatever_their_version() {
    let to = |generation: u64| Address {
        cluster_id: ClusterId("a".into()),
        generation: Generation(generation),
        target: "n1".into(),
    };
    let mut core = standby();
    core.admit(&to(1)).unwrap();
    core.step(settings(9, &[("on_primary_crash", "failover")]), now(20));
    core.admit(&to(11)).unwrap();
    assert_eq!(core.settings(), &Settings::default());
    core.step(settings(7, &[("on_primary_crash", "restart")]), now(30));
    assert_eq!(core.settings().on_primary_crash, OnPrimaryCrash::Restart);
}

#[test]
fn an_order_brings_the_state_it_was_decided_on_with_it() {
    let mut core = standby();
    let Event::Order(mut order) = promote(4) else { panic!() };
    order.briefing = Some(briefing(4, 4, &[(2, Profile::Fast)]).into());
    let effects = core.step(Event::Order(order), now(20));
    let timings = position(&effects, |e| matches!(e, Effect::Timings(t) if t.id == TimingsId(2)));
    let begin = position(&effects, |e| matches!(e, Effect::Begin(Task::Promote(_))));
    assert!(timings < begin, "the lease is begun under the timings of the grant: {effects:?}");
}

#[test]
fn an_agent_that_agreed_refuses_to_be_promoted_for_t_grant() {
    let mut core = briefed_standby();
    let effects = core.step(failsafe(3, 1), now(1_000));
    let persist = position(&effects, |e| *e == Effect::Persist);
    let answer = position(&effects, |e| matches!(e, Effect::Answer(_)));
    assert!(persist < answer, "durable before it is told: {effects:?}");
    assert!(core.durable().failsafe.is_some());
    assert!(!core.step(failsafe(3, 2), now(1_300)).contains(&Effect::Persist), "once, not for each");

    let effects = core.step(promote(4), now(1_500));
    let why = &refusal(&effects).reason;
    assert!(why.contains("n2, primary of epoch 3") && why.contains("another 3000 ms"), "{why}");
    assert!(!effects.iter().any(|e| matches!(e, Effect::Begin(_))));
    assert_eq!(core.durable().accepted, Epoch(4), "the epoch of a refused order is known all the same …");
    let effects = core.step(failsafe(3, 3), now(1_600));
    assert!(matches!(answered(&effects), Some(Body::Nack { sealed: Epoch(4), .. })), "… and ends failsafe at once");

    let effects = core.step(promote(4), now(4_500));
    assert!(effects.iter().any(|e| matches!(e, Effect::Begin(Task::Promote(_)))), "{effects:?}");
    assert_eq!(core.durable().failsafe, None, "a promise that has run out is forgotten");
}

#[test]
fn an_agent_restarted_under_a_promise_waits_it_out_whole() {
    let mut core = briefed_standby();
    core.step(failsafe(3, 1), now(1_000));
    let found = Found::Running { pid: 42, armed: Epoch(0), remaining: Duration::ZERO };
    let (mut core, _) = agent(core.durable().clone(), found, None);
    core.step(sight(true, at(1, 100)), now(10));
    let effects = core.step(promote(4), now(3_199));
    assert!(refusal(&effects).reason.contains("before this agent was restarted"), "{effects:?}");
    let effects = core.step(promote(4), now(3_200));
    assert!(effects.iter().any(|e| matches!(e, Effect::Begin(Task::Promote(_)))), "{effects:?}");
}

#[test]
fn an_agent_whose_manager_knows_a_higher_epoch_agrees_to_nothing() {
    let mut core = briefed_standby();
    core.step(Event::Briefed(Box::new(briefing(4, 4, &[]))), now(20));
    let effects = core.step(failsafe(3, 1), now(30));
    assert!(matches!(answered(&effects), Some(Body::Nack { sealed: Epoch(4), .. })), "{effects:?}");
    assert!(core.step(promote(4), now(40)).iter().any(|e| matches!(e, Effect::Begin(_))));
}

#[test]
fn a_granted_member_agrees_to_no_older_primary() {
    let mut core = briefed_standby();
    core.step(promote(4), now(20));
    let effects = core.step(failsafe(3, 1), now(30));
    assert!(matches!(answered(&effects), Some(Body::Nack { sealed: Epoch(4), .. })), "{effects:?}");
}

#[test]
fn an_agent_whose_clocks_are_off_takes_no_grant() {
    let mut core = standby();
    core.step(Event::Clocks(ClockView { own_off: true, off: [].into() }), now(12));
    assert!(refusal(&core.step(promote(4), now(20))).reason.starts_with("its clocks differ"));
    core.step(Event::Clocks(ClockView::default()), now(30));
    assert!(core.step(promote(4), now(40)).iter().any(|e| matches!(e, Effect::Begin(_))));
}
