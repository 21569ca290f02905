//! One line a case: the lock, what the agent says, and the next action.

use super::*;
use crate::{
    domain::{Lsn, TimelineHistory, TimelineSwitch},
    policy::testing,
    state::{Operation, OperationKind, OperationPhase, TimelineRecord},
};

/// `spec` is a scenario prefix (see `policy::testing`); `agent` is what n1's agent says.
fn check(lock: &str, agent: &str, expected: &str) {
    let state = testing::state(lock);
    let agent = testing::agent("a", agent);
    let host = Host {
        state: &state,
        me: &agent.member.clone(),
        agent: &agent,
        primary_ready: true,
        may_copy: true,
        copy_from: None,
    };
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
fn a_first_data_directory_that_can_not_be_made_is_left_to_the_operator() {
    let mut state = testing::state("free");
    (state.initializer, state.system_identifier) = (Some(testing::id("a")), None);
    let next = |said: &str| {
        let agent = testing::agent("a", said);
        let me = agent.member.clone();
        let host =
            Host { state: &state, me: &me, agent: &agent, primary_ready: false, may_copy: false, copy_from: None };
        next_action(&host).map(|next| next.because.0)
    };
    assert_eq!(next("nodata"), Some(510));
    assert_eq!(next("nodata failed=initdb"), Some(510), "it is tried again");
    assert_eq!(next("nodata given-up"), None);
}

#[test]
fn a_returning_member_follows_rewinds_or_clones() {
    check("granted b open 2", "stopped 1:50", "570: StartStandby");
    check("granted b open 2", "stopped 1:150", "560: Rewind");
    check("granted b open 2", "nodata", "550: Clone");
    check("granted b open 2", "standby 1:150", "560: Rewind");
    check("granted b open 2", "stopped 1:150 crashed-standby", "562: StartStandby { upstream: None }");
    check("granted b open 2", "stopped 1:50 crashed-standby", "570: StartStandby { upstream: Some");
    check("granted b open 2", "stopped 1:150 crashed-standby rewinds=2", "550: Clone");
    check("granted b open 2", "stopped 1:150 crashed-standby half-rewound", "560: Rewind");
    check("granted b promoting 2", "stopped 1:150 crashed-standby", "nothing");
    check("granted b open 2", "standby 2:90 upstream=b", "nothing");
    check("granted b open 2", "standby 2:90 upstream=c", "570: StartStandby");
    check("granted b open 2", "stopped 1:150 rewinds=2", "550: Clone");
    check("granted b open 2", "stopped 1:50 half-rewound", "560: Rewind");
    check("granted b open 2", "stopped 1:50 half-rewound unknown", "560: Rewind");
    check("granted b open 2", "stopped 1:50 half-rewound unknown rewinds=2", "550: Clone");
    check("fenced", "stopped 1:50 half-rewound", "nothing");
    check("granted b open 2", "nodata clones=5", "nothing");
}

/// n1's host, which may replace its data by a copy or has to wait.
fn useless(lock: &str, said: &str, may_copy: bool) -> Option<u32> {
    let (state, agent) = (testing::state(lock), testing::agent("a", said));
    let host = Host {
        state: &state,
        me: &agent.member.clone(),
        agent: &agent,
        primary_ready: true,
        may_copy,
        copy_from: None,
    };
    next_action(&host).map(|next| next.because.0)
}

#[test]
fn a_diverged_standby_that_crashed_and_does_not_start_is_copied_anew() {
    let lock = "granted b open 2";
    assert_eq!(useless(lock, "stopped 1:150 crashed-standby failed-starts=1", true), Some(562), "once more");
    assert_eq!(useless(lock, "stopped 1:150 crashed-standby failed-starts=2", true), Some(550));
    assert_eq!(useless(lock, "stopped 1:150 crashed-standby failed-starts=2", false), None, "others are copied first");
    assert_eq!(useless(lock, "stopped 1:50 crashed-standby failed-starts=2", true), Some(570), "it is not diverged");
    assert_eq!(useless(lock, "stopped 1:150 failed-starts=2", true), Some(560), "it ended cleanly");
}

#[test]
fn data_of_no_use_is_replaced_when_the_leader_lets_it() {
    let lock = "granted b open 2";
    for cause in ["wal-gone", "ends-early", "unreadable"] {
        for said in
            ["stopped 1:50", "standby 1:50 upstream=b", "starting 1:50", "failed 1:50 unknown", "stopped 1:50 unknown"]
        {
            let said = format!("{said} accepted=1 useless={cause}");
            assert_eq!(useless(lock, &said, true), Some(550), "{said}");
            assert_eq!(useless(lock, &said, false), None, "{said}: others are copied first");
            assert_eq!(useless(lock, &format!("{said} clones=5"), true), None, "{said}: five were in vain");
            assert_eq!(useless(lock, &format!("{said} system=8"), true), None, "{said}: of another cluster");
        }
    }
    assert_eq!(useless(lock, "failed 1:50", true), None, "an operator has to look");
    // Nobody to copy from, or it is the one that is to be copied from.
    assert_eq!(useless("granted b promoting 2", "standby 1:50 useless=wal-gone", true), None);
    assert_eq!(useless("fenced", "stopped 1:50 useless=ends-early", true), Some(580), "it may be the best there is");
    assert_eq!(useless("granted a open 2", "crashed 2:90 lease=1 useless=ends-early", true), Some(535));
}

#[test]
fn what_one_primary_has_removed_the_next_is_asked_for_first() {
    let lock = "granted b open 2";
    assert_eq!(useless(lock, "standby 1:50 upstream=c useless=wal-gone", true), Some(570));
    assert_eq!(useless(lock, "stopped 1:50 useless=wal-gone", true), Some(570));
    assert_eq!(useless(lock, "standby 1:50 upstream=b useless=wal-gone", true), Some(550), "the same in a new epoch");
    assert_eq!(useless(lock, "standby 1:50 upstream=c useless=ends-early", true), Some(550), "that is its own");
}

#[test]
fn a_copy_is_made_of_the_standby_that_the_leader_names_and_of_the_primary_after_one_that_failed() {
    let state = testing::state("granted b open 2");
    let source = |said: &str, from: Option<&str>| {
        let agent = testing::agent("a", said);
        let from: Option<MemberId> = from.map(|name| name.parse().unwrap());
        let copy_from = from.as_ref();
        let me = &agent.member.clone();
        let next =
            next_action(&Host { state: &state, me, agent: &agent, primary_ready: true, may_copy: true, copy_from });
        match next.unwrap().action {
            Action::Clone { source } => source.member.to_string(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(source("nodata", None), "b");
    assert_eq!(source("nodata", Some("c")), "c");
    assert_eq!(source("nodata clones=1", Some("c")), "b");
    assert_eq!(source("nodata", Some("gone")), "b", "it has left the cluster");
    assert_eq!(source("nodata", Some("a")), "b", "nobody copies itself");
}

/// Its agent was restarted and doesn't know under which name it follows. In a strict mode there is no rule before somebody can
/// confirm, and nobody could before it has the name of this epoch.
#[test]
fn a_standby_gets_the_name_of_the_epoch_before_there_is_a_rule() {
    let mut state = testing::state("granted b open 2");
    let next = |state: &ClusterState, said: &str| {
        let agent = testing::agent("a", said);
        next_action(&Host {
            state,
            me: &agent.member.clone(),
            agent: &agent,
            primary_ready: true,
            may_copy: true,
            copy_from: None,
        })
        .map(|n| n.because.0)
    };
    state.format = Format::SYNC;
    assert_eq!(next(&state, "standby 2:90 upstream=b"), None, "nobody confirms anything");
    state.settings.values.insert("replication_mode".to_owned(), "quorum".to_owned());
    assert_eq!(next(&state, "standby 2:90 upstream=b"), Some(570));
    assert_eq!(next(&state, "standby 2:90 upstream=b follows=1"), None);
    state.format = Format::default();
    assert_eq!(next(&state, "standby 2:90 upstream=b"), None, "not before every host knows of rules");
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
        let host = Host {
            state: &state,
            me: &agent.member.clone(),
            agent: &agent,
            primary_ready: false,
            may_copy: true,
            copy_from: None,
        };
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
        let host =
            Host { state, me: &agent.member.clone(), agent, primary_ready: true, may_copy: true, copy_from: None };
        next_action(&host).map(|n| n.because.0)
    };
    state.lineage.iter_mut().for_each(|r| r.first_record = Some(1));
    agent.history.first_records = [(TimelineId(2), 1)].into();
    assert_eq!(next(&state, &agent), Some(560));
    agent.history.first_records = [(TimelineId(2), 2)].into();
    assert_eq!(next(&state, &agent), Some(550));
}

/// Timeline 3 was begun by hand on the host of `by`, from 2:500, and adopted; b is primary on 4, begun at 3:600.
fn adopted(by: &str, first_record: Option<u32>) -> ClusterState {
    let record = |timeline: u32, switch: Option<&str>, first_record| TimelineRecord {
        timeline: TimelineId(timeline),
        epoch: Epoch(0),
        switch: switch.map(testing::position),
        first_record,
    };
    let mut state = testing::state("granted b open 4");
    state.lineage = vec![
        record(1, None, None),
        record(2, Some("1:100"), Some(2)),
        record(3, Some("2:500"), first_record),
        record(4, Some("3:600"), Some(4)),
    ];
    state.by_hand.insert(TimelineId(3), testing::id(by));
    state
}

/// What n1's host does whose WAL ends there, and whose timeline 3 begins with that record.
fn way_of_adopted(state: &ClusterState, agent: &str, first_record: Option<u32>) -> Option<(u32, Action)> {
    let mut agent = testing::agent("a", agent);
    let switches =
        [(1, 100), (2, 500), (3, 550)].map(|(t, end)| TimelineSwitch { timeline: TimelineId(t), end: Lsn(end) });
    let timeline = agent.wal_end.timeline;
    agent.history.switches = switches.into_iter().filter(|s| s.timeline < timeline).collect();
    agent.history.first_records = first_record.map(|crc| (TimelineId(3), crc)).into_iter().collect();
    let host =
        Host { state, me: &agent.member.clone(), agent: &agent, primary_ready: true, may_copy: true, copy_from: None };
    next_action(&host).map(|n| (n.because.0, n.action))
}

fn from_b() -> Upstream {
    Upstream { member: testing::id("b"), postgres: "b:5432".into() }
}

/// Two members promoted by hand from the same position have equal histories and other bytes.
#[test]
fn who_ends_on_a_timeline_begun_by_hand_follows_only_when_it_begins_with_the_same_record() {
    let follow = || Some((570, Action::StartStandby { upstream: Some(from_b()) }));
    let clone = || Some((550, Action::Clone { source: from_b() }));
    for state in ["stopped", "standby"] {
        let at = |end: &str| format!("{state} {end}");
        assert_eq!(way_of_adopted(&adopted("c", Some(5)), &at("3:550"), Some(5)), follow(), "the same");
        assert_eq!(way_of_adopted(&adopted("c", Some(5)), &at("3:550"), Some(6)), clone(), "another");
        assert_eq!(way_of_adopted(&adopted("c", Some(5)), &at("3:550"), None), clone(), "its own is not known");
        assert_eq!(way_of_adopted(&adopted("c", None), &at("3:550"), Some(5)), clone(), "the cluster's is not known");
        assert_eq!(way_of_adopted(&adopted("c", None), &at("3:550"), None), clone(), "unknown is not equal");
        assert_eq!(way_of_adopted(&adopted("a", None), &at("3:550"), None), follow(), "it was begun here");
        assert_eq!(way_of_adopted(&adopted("c", Some(5)), &at("2:450"), None), follow(), "it has nothing of it");
    }
}

/// It lost the lease and got the next one: whom its standbys follow is the same, its timeline is not.
#[test]
fn a_standby_of_the_same_primary_on_a_new_timeline_goes_on_or_is_rewound() {
    let way = |said: &str| way_of_adopted(&adopted("a", None), said, None).map(|(rule, _)| rule);
    assert_eq!(way("standby 3:550 upstream=b"), None, "it streams over the switch");
    assert_eq!(way("standby 3:650 upstream=b"), Some(560), "it has more than the primary had then");
    assert_eq!(way("stopped 3:550"), Some(570));
    assert_eq!(way("stopped 3:650 crashed-standby"), Some(562));
}

#[test]
fn what_forks_off_a_timeline_begun_by_hand_is_rewound_only_when_that_is_the_clusters() {
    let rewind = || Some((560, Action::Rewind { source: from_b() }));
    let clone = || Some((550, Action::Clone { source: from_b() }));
    // Past the end of 3, and on a timeline of its own that began at 3:550.
    for end in ["stopped 3:650", "standby 3:650", "stopped 5:570", "standby 5:570"] {
        assert_eq!(way_of_adopted(&adopted("c", Some(5)), end, Some(5)), rewind(), "{end}: the same");
        assert_eq!(way_of_adopted(&adopted("a", None), end, None), rewind(), "{end}: it was begun here");
        assert_eq!(way_of_adopted(&adopted("c", Some(5)), end, None), clone(), "{end}: its own is not known");
        assert_eq!(way_of_adopted(&adopted("c", Some(5)), end, Some(6)), clone(), "{end}: another");
        assert_eq!(way_of_adopted(&adopted("c", None), end, Some(5)), clone(), "{end}: the cluster's is not known");
    }
    // The fork lies before it: nothing of it is kept.
    assert_eq!(way_of_adopted(&adopted("c", Some(5)), "stopped 2:550", None), rewind());
}

/// A directory that PostgreSQL refuses to start on counts as half rewound, though no rewind has begun.
#[test]
fn a_half_rewound_directory_that_can_be_read_is_judged_by_the_first_record_too() {
    let rewind = || Some((560, Action::Rewind { source: from_b() }));
    let clone = || Some((550, Action::Clone { source: from_b() }));
    for end in ["stopped 3:550 half-rewound", "stopped 3:650 half-rewound", "stopped 5:570 half-rewound"] {
        assert_eq!(way_of_adopted(&adopted("c", Some(5)), end, Some(5)), rewind(), "{end}: the same");
        assert_eq!(way_of_adopted(&adopted("c", Some(5)), end, None), clone(), "{end}: its own is not known");
        assert_eq!(way_of_adopted(&adopted("c", None), end, Some(5)), clone(), "{end}: the cluster's is not known");
    }
    // What a rewind that was cut off left has no end, and was judged before that began.
    assert_eq!(way_of_adopted(&adopted("c", Some(5)), "stopped 3:550 half-rewound unknown", None), rewind());
}

/// Commits wait for it anyway: nobody can ever be put in its place.
#[test]
fn who_confirms_is_stopped_for_a_restart_when_it_is_out_of_the_rule_or_no_commit_can_do_without_it() {
    let next = |count: u32, names: &[&str], settings: &[(&str, &str)]| {
        let mut state = testing::state("granted b open 2");
        state.format = Format::SYNC;
        let mut all = vec![("replication_mode", "quorum"), ("sync_strict", "true")];
        all.extend(settings);
        state.settings.values.extend(all.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())));
        state.sync.add(Epoch(1), names.iter().map(|name| testing::id(name)).collect(), count).unwrap();
        state.operation = Some(Operation {
            id: 1,
            kind: OperationKind::Restart,
            from: Some(testing::id("b")),
            to: testing::id("a"),
            phase: OperationPhase::Stop,
            request_id: String::new(),
            because: Default::default(),
            accepts_loss: false,
        });
        let agent = testing::agent("a", "standby 2:90 upstream=b follows=1");
        let host = Host {
            state: &state,
            me: &agent.member.clone(),
            agent: &agent,
            primary_ready: true,
            may_copy: true,
            copy_from: None,
        };
        next_action(&host).map(|n| n.because.0)
    };
    assert_eq!(next(1, &["c"], &[]), Some(527));
    assert_eq!(next(1, &["a", "c"], &[]), None, "it is to be taken out first");
    assert_eq!(next(1, &["a"], &[]), None, "c may take its place");
    assert_eq!(next(1, &["a"], &[("c.sync", "false")]), Some(527));
    assert_eq!(next(2, &["a", "c"], &[]), Some(527));
    assert_eq!(next(2, &["a", "c"], &[("sync_strict", "false")]), None, "commits need not wait");
}

/// What a host that ended because of a crash has alone is asked for; what its last word doesn't cover is not there to be had.
#[test]
fn only_a_primary_that_crashed_and_said_so_is_asked_for_wal() {
    let reign = |epoch: u64, member: &str, cause: EndCause, end: Option<WalPosition>| Reign {
        epoch: Epoch(epoch),
        member: member.parse().unwrap(),
        timeline: TimelineId(2),
        granted_ms: 0,
        opened_ms: Some(0),
        ended_ms: Some(0),
        cause,
        reason: String::new(),
        end,
    };
    let end = Some(WalPosition { timeline: TimelineId(2), lsn: Lsn(90) });
    let asked = |reigns: &[Reign], promoted: &[u64]| {
        let mut state = testing::state("granted a promoting 4");
        let Lock::Granted { epoch, .. } = &mut state.lock else { panic!("granted") };
        *epoch = Epoch(3);
        state.epoch = Epoch(3);
        state.reigns = reigns.iter().cloned().collect();
        let switch = Some(WalPosition::default());
        let record =
            |epoch: &u64| TimelineRecord { timeline: TimelineId(2), epoch: Epoch(*epoch), switch, first_record: None };
        state.lineage = promoted.iter().map(record).collect();
        left_by_a_crash(&state).map(|(reign, _)| reign.member.to_string())
    };
    let crashed = reign(1, "b", EndCause::Crash, end);
    let now = reign(3, "a", EndCause::Unknown, None);
    assert_eq!(asked(&[crashed.clone(), now.clone()], &[1]).as_deref(), Some("b"));
    let in_vain = reign(2, "c", EndCause::PromotionFailed, end);
    assert_eq!(asked(&[crashed.clone(), in_vain, now.clone()], &[1]), None, "it may have failed of that WAL");
    let silent = reign(2, "c", EndCause::Unknown, None);
    assert_eq!(asked(&[crashed.clone(), silent, now.clone()], &[1]).as_deref(), Some("b"), "the last that wrote");
    assert_eq!(asked(&[crashed, reign(2, "c", EndCause::Ordered, end), now.clone()], &[1, 2]), None);
    for (cause, end) in [
        (EndCause::Crash, None),
        (EndCause::Ordered, end),
        (EndCause::Storage, end),
        (EndCause::NoSpace, end),
        (EndCause::Lease, end),
    ] {
        assert_eq!(asked(&[reign(1, "b", cause, end), now.clone()], &[1]), None, "{cause:?}");
    }
    assert_eq!(asked(&[reign(1, "a", EndCause::Crash, end), now], &[1]), None, "it is that host itself");
}

#[test]
fn what_an_operator_wants_copied_is_copied_once() {
    let act = |lock: &str, said: &str, change: &dyn Fn(&mut ClusterState)| {
        let mut state = testing::state(lock);
        change(&mut state);
        let agent = testing::agent("a", said);
        let (me, copy_from) = (agent.member.clone(), None);
        let host = Host { state: &state, me: &me, agent: &agent, primary_ready: true, may_copy: false, copy_from };
        next_action(&host).map(|next| (next.because.0, next.action))
    };
    let lock = "granted b open 2; reinit a copy";
    let nobody = |state: &mut ClusterState| state.operation.as_mut().unwrap().from = None;
    let copies =
        |said: &str| matches!(act(lock, said, &nobody), Some((550, Action::Reinit { operation: 1, named: false, .. })));
    for said in ["standby 2:90 upstream=b", "stopped 2:90", "failed", "starting", "nodata", "standby 1:70 clones=9"] {
        assert!(copies(said), "{said}");
    }
    for said in ["standby 2:90 upstream=b copied=1", "stopped 2:90 failed=clone", "stopping", "busy", "busy cloning"] {
        assert!(!copies(said), "made, failed, or nothing can begin now: {said}");
    }
    let named = |state: &mut ClusterState| state.operation.as_mut().unwrap().from = Some(testing::id("c"));
    let Some((_, Action::Reinit { source, named: true, .. })) = act(lock, "stopped 2:90", &named) else { panic!() };
    assert_eq!(source.member, testing::id("c"));

    let confirms = |state: &mut ClusterState| {
        nobody(state);
        state.sync.add(Epoch(1), [testing::id("a"), testing::id("c")].into(), 1).unwrap();
    };
    let waits = act(lock, "standby 2:90 upstream=b follows=1", &confirms);
    assert!(!matches!(waits, Some((_, Action::Reinit { .. }))), "it is taken out of the rule first: {waits:?}");
    let forced = |state: &mut ClusterState| {
        confirms(state);
        state.operation.as_mut().unwrap().accepts_loss = true;
    };
    assert!(matches!(act(lock, "standby 2:90 upstream=b follows=1", &forced), Some((550, Action::Reinit { .. }))));

    let over = |state: &mut ClusterState| state.operation = None;
    assert_eq!(act(lock, "busy cloning", &over), Some((545, Action::EndClone)), "its operation was given up");
}
