//! One line a case: the lock, what the agent says, and the next action.

use super::*;
use crate::{
    domain::{Lsn, TimelineHistory, TimelineSwitch},
    policy::testing,
};

/// `spec` is a scenario prefix (see `policy::testing`); `agent` is what n1's agent says.
fn check(lock: &str, agent: &str, expected: &str) {
    let state = testing::state(lock);
    let agent = testing::agent("a", agent);
    let host = Host { state: &state, me: &agent.member.clone(), agent: &agent, primary_ready: true };
    let got = next_action(&host).map_or_else(|| "nothing".to_owned(), |n| format!("{}: {:?}", n.because.0, n.action));
    assert!(got.starts_with(expected), "lock {lock}, agent {agent:?}\n  got      {got}\n  expected {expected}");
}

#[test]
fn a_standby_is_promoted_only_under_a_grant_of_its_own() {
    check("granted a promoting 2", "standby 1:50", "530: Promote");
    check("granted b promoting 2", "standby 1:50", "nothing");
    check("fenced", "standby 1:50", "nothing");
    check("released b", "standby 1:50", "nothing");
    check("free", "standby 1:50", "nothing");
}

#[test]
fn an_ended_epoch_is_never_promoted_or_restarted() {
    check("granted a promoting 2", "standby 1:50 ended=1", "nothing");
    check("granted a open 2", "crashed 2:90 ended=1", "540: Stop { mode: Immediate, keep_lease: false }");
}

#[test]
fn a_crashed_primary_is_restarted_only_under_the_lease_it_holds() {
    check("granted a open 2", "crashed 2:90 lease=1", "535: RestartInPlace");
    check("granted a open 2", "crashed 2:90", "nothing");
    check("granted b open 2", "crashed 2:90 lease=1", "540: Stop");
}

#[test]
fn a_switchover_stops_the_primary_with_its_lease_and_gives_it_up_only_when_transferred() {
    check("granted a open 2; switchover b checkpoint", "primary 2:90 lease=1", "520: Checkpoint");
    check("granted a open 2; switchover b hold", "primary 2:90 lease=1", "nothing");
    check("granted a open 2; switchover b stop", "primary 2:90 lease=1", "525: Stop { mode: Fast, keep_lease: true }");
    check("granted a open 2; switchover b stop", "stopped 2:90 lease=1", "nothing");
    check("granted a open 2; switchover b rollback", "stopped 2:90 lease=1", "535: RestartInPlace");
    check("granted a open 2; switchover b transfer", "stopped 2:90 lease=1", "540: Stop");
    check("granted a open 2; switchover b transfer", "crashed 2:90 lease=1", "540: Stop");
}

#[test]
fn a_returning_member_follows_rewinds_or_clones() {
    check("granted b open 2", "stopped 1:50", "570: StartStandby");
    check("granted b open 2", "stopped 1:150", "560: Rewind");
    check("granted b open 2", "nodata", "550: Clone");
    check("granted b open 2", "standby 1:150", "560: Rewind");
    check("granted b open 2", "standby 2:90 upstream=b", "nothing");
    check("granted b open 2", "standby 2:90 upstream=c", "570: StartStandby");
    check("granted b open 2", "stopped 1:150 rewinds=2", "550: Clone");
    check("granted b open 2", "stopped 1:50 half-rewound", "560: Rewind");
    check("granted b open 2", "stopped 1:50 half-rewound unknown", "560: Rewind");
    check("granted b open 2", "stopped 1:50 half-rewound unknown rewinds=2", "550: Clone");
    check("fenced", "stopped 1:50 half-rewound", "nothing");
    check("granted b open 2", "nodata clones=5", "nothing");
}

#[test]
fn data_of_another_cluster_is_never_touched() {
    check("granted b open 2", "stopped 1:150 system=8", "nothing");
    check("granted a promoting 2", "standby 1:50 system=8", "nothing");
}

#[test]
fn after_a_cold_start_everybody_waits_read_only_until_somebody_is_granted() {
    check("fenced", "stopped 2:90", "580: StartStandby { upstream: None }");
    check("released a", "stopped 2:90 ended=1", "580: StartStandby { upstream: None }");
    check("granted a promoting 2", "stopped 1:50", "530: StartStandby { upstream: None }");
}

/// Without a quorum nobody ends its epoch for it.
#[test]
fn a_primary_that_lost_its_lease_comes_back_read_only() {
    check("granted a open 2", "stopped 2:90 ended=1", "580: StartStandby { upstream: None }");
    check("granted a open 2", "standby 2:90 ended=1", "nothing");
    check("granted a open 2", "stopped 2:90 lease=1", "535: RestartInPlace");
    check("granted a open 2; switchover b stop", "stopped 2:90 lease=1", "nothing");
    check("granted b promoting 2", "stopped 2:90 ended=1", "nothing");
}

#[test]
fn nothing_is_copied_from_a_primary_that_is_not_ready() {
    let state = testing::state("granted b open 2");
    for said in ["nodata", "stopped 1:150"] {
        let agent = testing::agent("a", said);
        let host = Host { state: &state, me: &agent.member.clone(), agent: &agent, primary_ready: false };
        assert_eq!(next_action(&host), None, "{said}");
    }
}

#[test]
fn rules_are_in_order_and_named_once() {
    let ids: Vec<u32> = RULES.iter().map(|r| r.id).collect();
    let mut sorted = ids.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(ids, sorted);
}

#[test]
fn history_is_that_of_the_granted_timeline() {
    let state = testing::state("granted b open 2");
    let expected = TimelineHistory {
        timeline: TimelineId(2),
        switches: vec![TimelineSwitch { timeline: TimelineId(1), end: Lsn(100) }],
        ..TimelineHistory::default()
    };
    assert_eq!(state.history_of(TimelineId(2)), expected);
}

/// A directory whose start PostgreSQL refuses counts as half rewound, and can be read.
#[test]
fn what_is_mistaken_for_the_primarys_is_cloned_also_when_it_counts_as_half_rewound() {
    let mut state = testing::state("granted b open 2");
    let mut agent = testing::agent("a", "stopped 2:150 half-rewound");
    let next = |state: &ClusterState, agent: &AgentView| {
        let host = Host { state, me: &agent.member.clone(), agent, primary_ready: true };
        next_action(&host).map(|n| n.because.0)
    };
    state.lineage.iter_mut().for_each(|r| r.first_record = Some(1));
    agent.history.first_records = [(TimelineId(2), 1)].into();
    assert_eq!(next(&state, &agent), Some(560));
    agent.history.first_records = [(TimelineId(2), 2)].into();
    assert_eq!(next(&state, &agent), Some(550));
}
