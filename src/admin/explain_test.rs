//! Nothing waits without an end or a way out.

use super::*;
use crate::{
    domain::{Epoch, Format, GroupStep, Lsn, SyncMode, TimelineId, WalPosition},
    policy::{format::TooOld, report::NotReady},
    state::{Asked, OperationPhase},
};

const SECOND: Duration = Duration::from_secs(1);

fn n1() -> MemberId {
    "n1".parse().unwrap()
}

/// Of every kind one. The match has no arm for the rest: a new kind has to be added here.
fn every_unfit() -> Vec<Unfit> {
    let end = WalPosition { timeline: TimelineId(1), lsn: Lsn(5) };
    let all = vec![
        Unfit::NotSealed,
        Unfit::Maintenance(Asked::default()),
        Unfit::AgentSilent,
        Unfit::OtherSystem { found: None },
        Unfit::OtherSystem { found: Some(7) },
        Unfit::State(PostgresState::NoData),
        Unfit::State(PostgresState::Failed),
        Unfit::State(PostgresState::Starting),
        Unfit::WalEndUnknown,
        Unfit::HalfRewound,
        Unfit::Diverged { end },
        Unfit::ClockOff { ppm: 5 },
        Unfit::SlowFence { took: SECOND, allowed: SECOND },
        Unfit::Promised { left: SECOND },
        Unfit::NotAsked { since: 2, known: 1 },
        Unfit::FailedBefore { error: "x".into() },
        Unfit::NeverStreamed,
        Unfit::NoStream,
        Unfit::Delayed { delay: SECOND },
        Unfit::NoFailover { priority: 0, failover: true },
        Unfit::NoFailover { priority: 1, failover: false },
        Unfit::OtherSite { site: String::new(), wanted: "east".into() },
        Unfit::TooFar { behind: 2, limit: 1 },
        Unfit::TooOld { behind: Duration::from_secs(3), limit: Duration::from_secs(2) },
        Unfit::AgeUnknown { limit: Duration::from_secs(2) },
        Unfit::Behind { end, needed: end },
        Unfit::LacksCommits { end, needed: end },
        Unfit::NoRoom { volumes: vec![] },
        Unfit::NoTarget { why: "x".into() },
        Unfit::Storage { why: "x".into() },
    ];
    for one in &all {
        match one {
            Unfit::NotSealed
            | Unfit::Maintenance(_)
            | Unfit::AgentSilent
            | Unfit::OtherSystem { .. }
            | Unfit::State(_)
            | Unfit::WalEndUnknown
            | Unfit::HalfRewound
            | Unfit::Diverged { .. }
            | Unfit::ClockOff { .. }
            | Unfit::SlowFence { .. }
            | Unfit::Promised { .. }
            | Unfit::NotAsked { .. }
            | Unfit::FailedBefore { .. }
            | Unfit::NeverStreamed
            | Unfit::NoStream
            | Unfit::Delayed { .. }
            | Unfit::NoFailover { .. }
            | Unfit::OtherSite { .. }
            | Unfit::TooFar { .. }
            | Unfit::TooOld { .. }
            | Unfit::AgeUnknown { .. }
            | Unfit::Behind { .. }
            | Unfit::LacksCommits { .. }
            | Unfit::NoRoom { .. }
            | Unfit::NoTarget { .. }
            | Unfit::Storage { .. } => {}
        }
    }
    all
}

/// As above.
fn every_hold() -> Vec<Hold> {
    let unsettled = [
        Unsettled::NotRenewed { holder: n1(), counted: None, effective: 2 },
        Unsettled::NotSealed { free: 1, needed: 2 },
    ];
    let mut all = vec![
        Hold::WaitingForInitdb { member: n1(), state: None, said: None },
        Hold::LeaseHeld { member: n1(), epoch: Epoch(1), lapsed: 0, needed: 2 },
        Hold::AgentSlow { member: n1(), epoch: Epoch(1), silent: SECOND },
        Hold::Promoting { member: n1(), state: None, remaining: SECOND },
        Hold::TooFewSeals { epoch: Epoch(1), sealed: 0, free: 0, needed: 2 },
        Hold::Collecting { missing: vec![n1()], remaining: SECOND },
        Hold::LagUnknown { limit: 1, would_be: vec![n1()] },
        Hold::Agenda { id: 1, waits_for: "x".into(), remaining: SECOND },
        Hold::Operation { id: 1, phase: OperationPhase::Stop, waits_for: "x".into(), remaining: SECOND },
        Hold::NotOpen { member: n1() },
        Hold::NotCascaded { member: n1(), source: "n2".into(), why: "x".into() },
        Hold::Reader { what: "x".into(), remaining: SECOND },
        Hold::StaysPut { member: n1(), failovers: 3, remaining: SECOND },
        Hold::Hibernated { asked: Asked::default() },
        Hold::Paused { asked: Asked::default(), undone: "x".into() },
        Hold::SlotsGiveWay { member: n1(), volumes: vec![] },
        Hold::NoRoom { member: n1(), volumes: vec![], why: vec![], remaining: SECOND },
        Hold::Archive { member: n1(), why: vec![] },
        Hold::Unconfirmed { rule: "n2".into(), heard: vec![], needed: Some(1), last: Some(n1()) },
        Hold::Unconfirmed { rule: "nobody".into(), heard: vec![n1()], needed: None, last: None },
        Hold::TooFewSync { have: 0, wanted: 1, strict: false },
        Hold::KeptOut { member: n1(), confirms: "n2".into() },
        Hold::TooFewSync { have: 1, wanted: 2, strict: true },
        Hold::TakenOver { member: n1(), mode: SyncMode::Quorum },
        Hold::SyncUnsettled { rules: 6, waits_for: "n2".into() },
        Hold::NewVotersNotReady { why: vec![(n1(), NotReady::Silent)] },
        Hold::TooOld(TooOld { member: n1(), knows: None, needed: Format::SETTINGS }),
    ];
    all.extend(unsettled.map(|unsettled| Hold::GroupUnsettled { step: GroupStep::Settle, unsettled }));
    all.extend(every_unfit().into_iter().map(|unfit| Hold::NoSuccessor { why: vec![(n1(), unfit)] }));
    for one in &all {
        match one {
            Hold::WaitingForInitdb { .. }
            | Hold::LeaseHeld { .. }
            | Hold::AgentSlow { .. }
            | Hold::Promoting { .. }
            | Hold::TooFewSeals { .. }
            | Hold::Collecting { .. }
            | Hold::LagUnknown { .. }
            | Hold::NoSuccessor { .. }
            | Hold::Operation { .. }
            | Hold::Agenda { .. }
            | Hold::NotOpen { .. }
            | Hold::NotCascaded { .. }
            | Hold::Reader { .. }
            | Hold::StaysPut { .. }
            | Hold::Hibernated { .. }
            | Hold::Paused { .. }
            | Hold::SlotsGiveWay { .. }
            | Hold::NoRoom { .. }
            | Hold::Archive { .. }
            | Hold::GroupUnsettled { .. }
            | Hold::Unconfirmed { .. }
            | Hold::TooFewSync { .. }
            | Hold::KeptOut { .. }
            | Hold::TakenOver { .. }
            | Hold::SyncUnsettled { .. }
            | Hold::NewVotersNotReady { .. }
            | Hold::TooOld(_) => {}
        }
    }
    all
}

#[test]
fn every_hold_names_a_command_a_place_to_look_or_a_deadline() {
    // What an operator can do, in the words the texts use.
    let ways = [
        "`matriarch ",
        "look at the agent's log",
        "look at the manager's log",
        "start the ",
        "bring ",
        "set postgresql.",
        "repair ",
        "restart the agent",
    ];
    for hold in every_hold() {
        let told = ways_out(&hold);
        assert!(!told.is_empty(), "{hold}: no way out");
        for way in told {
            let deadline = way.starts_with("wait 1.0 s: ");
            assert!(deadline || ways.iter().any(|w| way.contains(w)), "{hold}: {way}");
            assert!(!way.contains("{"), "{way}");
        }
    }
}

#[test]
fn what_an_operator_has_set_an_operator_can_take_back() {
    let way = |unfit| way_out(&n1(), &unfit);
    assert_eq!(
        way(Unfit::NoFailover { priority: 100, failover: false }),
        "`matriarch config set failover=true --member n1`, or `matriarch failover --candidate n1 --allow-data-loss`"
    );
    assert_eq!(
        way(Unfit::OtherSite { site: "west".into(), wanted: "east".into() }),
        "`matriarch config set site_failover=any`, or `matriarch failover --candidate n1`"
    );
}
