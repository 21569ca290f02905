//! One case a test: seals and settings, and who is chosen.

use super::*;
use crate::{
    domain::Epoch,
    policy::{
        Verdict,
        failover::grant,
        switchover,
        testing::{Bench, id, position},
    },
    state::{Kind, OperationKind},
};

/// a held epoch 1 and is lost; what each of the others says when it has sealed.
fn fenced(settings: &[(&str, &str)], seals: &[(&str, &str)]) -> Bench {
    let mut bench = seals.iter().fold(Bench::new("fenced"), |bench, (member, spec)| bench.seal(member, spec));
    let set = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    bench.state.settings.values = set.collect();
    bench
}

/// What the voter of `member` remembers of the last primary's WAL.
fn told(mut bench: Bench, member: &str, end: &str) -> Bench {
    bench.seals.get_mut(&id(member)).unwrap().promise.highest = position(end);
    bench
}

fn chosen(bench: &Bench) -> String {
    match successor(&bench.situation(), None, None) {
        Ok((member, ..)) => member.to_string(),
        Err(hold) => hold.to_string(),
    }
}

fn named(bench: &Bench, member: &str) -> Result<MemberId, Hold> {
    successor(&bench.situation(), None, Some(&id(member))).map(|(member, ..)| member)
}

const EQUAL: &[(&str, &str)] = &[("b", "standby 2:80"), ("c", "standby 2:80")];
const C_HAS_MORE: &[(&str, &str)] = &[("b", "standby 2:80"), ("c", "standby 2:81")];

#[test]
fn priority_decides_among_equals_and_never_costs_wal() {
    assert_eq!(chosen(&fenced(&[], EQUAL)), "b");
    assert_eq!(chosen(&fenced(&[("c.priority", "101")], EQUAL)), "c");
    assert_eq!(chosen(&fenced(&[("b.priority", "101")], C_HAS_MORE)), "c");
}

/// Its host gives the other what only it has.
#[test]
fn where_all_have_crashed_the_last_one_is_taken_last() {
    let mut bench = fenced(&[], &[("a", "stopped 2:90"), ("b", "standby 2:80")]);
    bench.seals.values_mut().for_each(|seal| seal.agent.as_mut().unwrap().unsteady = true);
    let given =
        |bench: &mut Bench, gives| bench.seals.get_mut(&id("a")).unwrap().agent.as_mut().unwrap().gives_wal = gives;
    given(&mut bench, true);
    let after = |bench: &Bench, cause| {
        let release = Release { epoch: Epoch(1), member: id("a"), end: position("2:90"), clean: false, cause };
        successor(&bench.situation(), Some(&release), None).map(|(member, ..)| member.to_string()).unwrap()
    };
    assert_eq!(after(&bench, EndCause::Crash), "b");
    assert_eq!(after(&bench, EndCause::Storage), "a", "it gives nothing");
    given(&mut bench, false);
    assert_eq!(after(&bench, EndCause::Crash), "a", "something is said against its WAL");
    given(&mut bench, true);
    for (key, value) in [("wal_rescue_max", "9"), ("wal_rescue_ms", "0")] {
        bench.state.settings.values.insert(key.to_owned(), value.to_owned());
        assert_eq!(after(&bench, EndCause::Crash), "a", "{key}: it would not be fetched");
        bench.state.settings.values.remove(key);
    }
}

#[test]
fn whose_disk_stands_still_is_not_chosen_nor_may_anybody_name_it() {
    let mut bench = fenced(&[], C_HAS_MORE);
    let agent = bench.seals.get_mut(&id("c")).unwrap().agent.as_mut().unwrap();
    agent.storage = Some("the volume of its WAL has not finished a write for 3000 ms".to_owned());
    assert_eq!(chosen(&bench), "b");
    let Err(Hold::NoSuccessor { why }) = named(&bench, "c") else { panic!("it could not even be promoted") };
    assert!(why[0].1.to_string().contains("has not finished a write"), "{why:?}");
}

#[test]
fn an_older_promotion_that_failed_counts_before_priority_so_that_the_next_one_follows() {
    let seals = [("b", "standby 2:80"), ("c", "standby 2:80 failed=promote")];
    assert_eq!(chosen(&fenced(&[("c.priority", "101")], &seals)), "b");
}

#[test]
fn whom_operators_forbid_is_not_chosen_whatever_its_wal_and_is_when_one_names_it() {
    for (key, value, why) in
        [("failover", "false", "it has failover = false"), ("priority", "0", "it has priority = 0")]
    {
        let bench = fenced(&[(&format!("c.{key}"), value)], C_HAS_MORE);
        assert_eq!(chosen(&bench), "b");
        assert_eq!(named(&bench, "c"), Ok(id("c")));
        let alone = fenced(&[(&format!("c.{key}"), value)], &C_HAS_MORE[1..]);
        assert!(chosen(&alone).ends_with(&format!("c: {why}")), "{}", chosen(&alone));
    }
    let both = fenced(&[("c.failover", "false"), ("c.priority", "200")], C_HAS_MORE);
    assert_eq!(chosen(&both), "b", "no priority makes up for it");
}

#[test]
fn sites_count_when_the_last_primary_has_one() {
    let sites = [("a.site", "east"), ("b.site", "east"), ("c.site", "west")];
    let with = |rule: &str, seals: &[(&str, &str)]| {
        let mut all = sites.to_vec();
        all.push(("site_failover", rule));
        fenced(&all, seals)
    };
    assert_eq!(chosen(&with("any", C_HAS_MORE)), "c");
    assert_eq!(chosen(&with("prefer", C_HAS_MORE)), "b");
    assert_eq!(chosen(&with("same", C_HAS_MORE)), "b");
    let only_c = &C_HAS_MORE[1..];
    assert_eq!(chosen(&with("prefer", only_c)), "c", "better than nobody");
    let nobody = with("same", only_c);
    let why = "c: its site is west, the last primary's is east, and site_failover = same";
    assert!(chosen(&nobody).ends_with(why), "{}", chosen(&nobody));
    assert_eq!(named(&nobody, "c"), Ok(id("c")));
    for rule in ["prefer", "same"] {
        let unset = fenced(&[("site_failover", rule), ("c.site", "west")], C_HAS_MORE);
        assert_eq!(chosen(&unset), "c", "nobody has said where the last primary was");
    }
}

#[test]
fn a_member_that_lacks_more_than_may_be_lost_waits_for_an_operator() {
    let limit = |bytes: &str| told(fenced(&[("maximum_lag_on_failover", bytes)], EQUAL), "b", "2:90");
    assert_eq!(chosen(&limit("10")), "b");
    let too_far = limit("9");
    let why = "b: it lacks at least 10 bytes of the last primary's WAL, maximum_lag_on_failover is 9";
    assert!(chosen(&too_far).contains(why), "{}", chosen(&too_far));
    assert_eq!(named(&too_far, "b"), Ok(id("b")));
    assert_eq!(chosen(&limit("off")), "b");
    let ahead = told(fenced(&[("maximum_lag_on_failover", "5")], C_HAS_MORE), "b", "2:86");
    assert_eq!(chosen(&ahead), "c", "one is near enough");
}

/// Both standbys lack 5 bytes of what the primary had; the last renewal was 10 s ago.
fn aged(b: &str) -> Bench {
    let set = [("maximum_lag_on_failover_ms", "3000")];
    let mut bench = told(fenced(&set, &[("b", b), ("c", "standby 2:80")]), "b", "2:90");
    bench.seals.get_mut(&id("b")).unwrap().promise.renewed_ago_ms = Some(12_000);
    bench.seals.get_mut(&id("c")).unwrap().promise.renewed_ago_ms = Some(10_000);
    bench
}

#[test]
fn what_is_missing_may_be_limited_by_when_it_was_written() {
    assert_eq!(chosen(&aged("standby 2:85 complete-ago=13000 heard=2:86")), "b");
    let too_old = aged("standby 2:85 complete-ago=13001 heard=2:86");
    let why = "b: what it lacks was written up to 3.0 s before the last primary's end, maximum_lag_on_failover_ms allows 3.0 s";
    assert!(chosen(&too_old).contains(why), "{}", chosen(&too_old));
    assert_eq!(named(&too_old, "b"), Ok(id("b")));
    assert_eq!(chosen(&aged("standby 2:90 complete-ago=13001 heard=2:86")), "b", "it lacks nothing that is known of");
    assert_eq!(chosen(&aged("standby 2:90")), "b");
    let unknown = aged("standby 2:85");
    assert!(chosen(&unknown).contains("b: nobody knows how old its WAL was"), "{}", chosen(&unknown));

    let elsewhere = aged("standby 2:85 complete-ago=13000 heard=1:86");
    assert!(chosen(&elsewhere).contains("b: nobody knows how old"), "of an older timeline: {}", chosen(&elsewhere));

    // No voter remembers a renewal: they all were started anew.
    let mut unheard = aged("standby 2:85 complete-ago=100 heard=2:86");
    unheard.seals.values_mut().for_each(|seal| seal.promise.renewed_ago_ms = None);
    assert!(chosen(&unheard).contains("b: nobody knows how old"), "{}", chosen(&unheard));
    // An answer that came earlier was as old as it said when it came.
    let mut earlier = aged("standby 2:85 complete-ago=13001 heard=2:86");
    let seal = earlier.seals.get_mut(&id("b")).unwrap();
    seal.told_at = seal.told_at + Duration::from_secs(1);
    assert_eq!(chosen(&earlier), "b");
}

#[test]
fn what_standbys_heard_of_the_primarys_end_counts_like_its_own_word() {
    let limit = |heard: &str| fenced(&[("maximum_lag_on_failover", "4")], &[("b", heard), ("c", "standby 2:85")]);
    assert_eq!(chosen(&limit("standby 2:85 heard=2:89")), "b");
    let ahead = limit("standby 2:85 heard=2:90");
    assert!(chosen(&ahead).contains("it lacks at least 5 bytes"), "{}", chosen(&ahead));
    let other = limit("standby 2:85 heard=1:90");
    assert!(matches!(successor(&other.situation(), None, None), Err(Hold::LagUnknown { .. })), "of an older timeline");
}

#[test]
fn with_a_limit_nobody_is_promoted_while_nobody_knows_what_is_lost() {
    let set = [("maximum_lag_on_failover", "1000")];
    let unknown = fenced(&set, EQUAL);
    assert!(matches!(successor(&unknown.situation(), None, None), Err(Hold::LagUnknown { limit: 1000, .. })));
    assert_eq!(named(&unknown, "c"), Ok(id("c")), "an operator decides");
    let known: [(&str, Bench); 2] = [
        ("a renewal told it", told(fenced(&set, EQUAL), "c", "2:85")),
        ("the old primary's host says it", fenced(&set, &[("a", "failed 2:85"), EQUAL[0], EQUAL[1]])),
    ];
    for (how, bench) in known {
        assert_eq!(chosen(&bench), "b", "{how}");
    }
    let older = told(fenced(&set, EQUAL), "c", "1:85");
    assert!(matches!(successor(&older.situation(), None, None), Err(Hold::LagUnknown { .. })), "of an older timeline");
    let release =
        Release { epoch: Epoch(1), member: id("a"), end: position("2:90"), clean: false, cause: EndCause::Unknown };
    let mut released = fenced(&set, EQUAL);
    if let Lock::Fenced { released, .. } = &mut released.state.lock {
        *released = Some(release.clone());
    }
    assert_eq!(successor(&released.situation(), Some(&release), None).map(|(m, ..)| m), Ok(id("b")));
    let mut first = fenced(&set, EQUAL);
    if let Lock::Fenced { previous, .. } = &mut first.state.lock {
        *previous = None;
    }
    assert_eq!(chosen(&first), "b", "before the first primary there is nothing to lose");
}

#[test]
fn what_protects_the_data_itself_no_operator_overrules() {
    for spec in ["standby 2:80 system=9", "standby 2:80 half-rewound", "standby 2:80 unknown", "standby 2:80 clock-off"]
    {
        assert!(matches!(named(&fenced(&[], &[("b", spec)]), "b"), Err(Hold::NoSuccessor { .. })), "{spec}");
    }
}

#[test]
fn a_member_that_the_last_holder_may_not_have_asked_is_granted_only_when_failsafe_can_not_go_on() {
    let bench = |failsafe: bool| {
        let mut bench = Bench::new("fenced").seal("b", "standby 2:80").seal("c", "standby 2:90");
        bench.state.lock = Lock::Fenced { epoch: Epoch(2), previous: Some((Epoch(1), id("a"))), released: None };
        bench.state.roster.since = [("a", 1), ("b", 1), ("c", 2)].map(|(m, since)| (id(m), since)).into();
        (bench.state.roster.version, bench.state.roster.at_grant) = (2, 1);
        let agents = bench.seals.values_mut().filter_map(|seal| seal.agent.as_mut());
        agents.for_each(|agent| agent.failsafe.enabled = failsafe);
        bench
    };
    let chosen = |bench: &Bench| match grant(&bench.situation()) {
        Some(Verdict::Propose(Kind::Grant { member, .. })) => Some(member.to_string()),
        _ => None,
    };
    let fit = |bench: &Bench| fitness(&bench.situation(), &id("c"), None, false).map(|_| ());
    assert_eq!(fit(&bench(true)).unwrap_err(), Unfit::NotAsked { since: 2, known: 1 });
    assert_eq!(chosen(&bench(false)).as_deref(), Some("c"), "b would have had to agree, and does not take part");

    // The holder has named the newer list in a renewal.
    let mut named = bench(true);
    let promise = &mut named.seals.get_mut(&id("b")).unwrap().promise;
    (promise.epoch, promise.members) = (Epoch(1), 2);
    assert_eq!(chosen(&named).as_deref(), Some("c"));

    // b was restarted without failsafe, and may have agreed before.
    let mut before = bench(false);
    let agents = before.seals.values_mut().filter_map(|seal| seal.agent.as_mut());
    agents.for_each(|agent| agent.failsafe.promise_left_ms = 900);
    before.seals.get_mut(&id("c")).unwrap().agent.as_mut().unwrap().failsafe.promise_left_ms = 0;
    assert!(matches!(fit(&before), Err(Unfit::NotAsked { .. })), "{:?}", fit(&before));
}

/// The epoch of a primary that is well must not end for one who would be refused the next, whatever is accepted.
#[test]
fn what_could_never_be_granted_is_refused_at_the_command() {
    let asked = |of_b: &str| {
        let bench = Bench::new("granted a open 2").says("a", "primary 2:200").says("b", of_b);
        let b = id("b");
        switchover::admit(&bench.situation(), OperationKind::Failover, Some(&b), true)
    };
    asked("standby 2:150").unwrap();
    let refused = asked("standby 3:900").unwrap_err();
    assert!(refused.contains("not on the cluster's history"), "{refused}");
    let refused = asked("standby 2:150 system=77").unwrap_err();
    assert!(refused.starts_with("b: "), "{refused}");
}

/// The word of its failed order is overwritten by the start that follows.
#[test]
fn whose_promotion_came_to_no_end_is_not_the_next_one_again_among_equals() {
    for cause in [EndCause::PromotionLate, EndCause::PromotionFailed, EndCause::Unknown] {
        let mut bench = fenced(&[], EQUAL);
        let Lock::Fenced { previous, .. } = &mut bench.state.lock else { panic!() };
        *previous = Some((Epoch(2), id("b")));
        let agent = bench.seals.get_mut(&id("b")).unwrap().agent.as_mut().unwrap();
        (agent.ended_epoch, agent.ended_by) = (Epoch(2), cause);
        assert_eq!(chosen(&bench), "c", "{cause:?}");
        bench.seals.get_mut(&id("b")).unwrap().agent.as_mut().unwrap().wal_end = position("2:81");
        let again = if cause == EndCause::Unknown { "b" } else { "c" };
        assert_eq!(chosen(&bench), again, "its WAL is worth a second try, but not a promotion that hangs: {cause:?}");
    }
}

/// Its reign has no timeline of its own in the log.
#[test]
fn a_primary_that_went_on_running_was_not_granted_in_vain() {
    let mut bench = fenced(&[], &[("a", "stopped 1:90"), ("b", "standby 1:80"), ("c", "standby 1:80")]);
    bench.state.lineage.retain(|record| record.epoch == Epoch(0));
    let Lock::Fenced { previous, .. } = &mut bench.state.lock else { panic!() };
    *previous = Some((Epoch(1), id("a")));
    assert!(!granted_in_vain(&bench.situation(), &id("a")));
    assert_eq!(chosen(&bench), "a");
}

#[test]
fn the_first_grant_after_one_that_went_on_running_is_forgiven_as_well() {
    let far = format!("standby 1:{}", 81 + (257 << 20));
    let mut bench = fenced(&[], &[("b", &far), ("c", "standby 1:80")]);
    crate::policy::testing::went_on_running(&mut bench.state, "a");
    let (timeline, epoch) = (crate::domain::TimelineId(2), Epoch(2));
    bench.state.lineage.push(crate::state::TimelineRecord { timeline, epoch, switch: None, first_record: None });
    let Lock::Fenced { previous, .. } = &mut bench.state.lock else { panic!() };
    *previous = Some((Epoch(2), id("b")));
    let agent = bench.seals.get_mut(&id("b")).unwrap().agent.as_mut().unwrap();
    (agent.ended_epoch, agent.ended_by) = (Epoch(2), EndCause::PromotionFailed);
    assert_eq!(chosen(&bench), "b");
}

#[test]
fn a_first_grant_in_vain_is_forgiven_where_everybody_else_is_far_behind() {
    let bench = |of_b: &str, of_c: &str, epoch: u64| {
        let mut bench = fenced(&[], &[("b", of_b), ("c", of_c)]);
        let Lock::Fenced { previous, .. } = &mut bench.state.lock else { panic!() };
        *previous = Some((Epoch(epoch), id("b")));
        let agent = bench.seals.get_mut(&id("b")).unwrap().agent.as_mut().unwrap();
        (agent.ended_epoch, agent.ended_by) = (Epoch(epoch), EndCause::PromotionFailed);
        chosen(&bench)
    };
    assert_eq!(bench("standby 2:80", "standby 1:50", 2), "b", "an older timeline");
    assert_eq!(bench("standby 2:80", "standby 1:50", 3), "c", "once");
    assert_eq!(bench("stopped 2:80", "standby 1:50", 2), "b", "it was killed meanwhile");
    let far = format!("standby 2:{}", 81 + (257 << 20));
    assert_eq!(bench(&far, "standby 2:80", 2), "b", "more than a rescue would fetch");
    assert_eq!(bench("standby 2:81", "standby 2:80", 2), "c");
}

/// As after a switchover that has just ended: the next may be asked for in the same moment.
#[test]
fn a_switchover_without_a_name_waits_for_the_primary_s_word_of_those_that_have_just_come() {
    let to = |b: &str| {
        let bench = Bench::new("granted a open 2")
            .says("a", "primary 2:200 lease=1 counted=1 alone")
            .says("b", b)
            .says("c", "standby 2:200 upstream=b");
        switchover::admit(&bench.situation(), OperationKind::Switchover, None, false)
    };
    let Ok(Kind::BeginOperation { to: chosen, .. }) = to("standby 2:200 upstream=a follows=1") else { panic!() };
    assert_eq!(chosen, id("b"));
    for (b, why) in [
        ("standby 2:200 upstream=c", "it has not come"),
        ("standby 2:200 upstream=a follows=1 waits=max_connections:100:200:lacking", "it replays nothing"),
    ] {
        assert!(to(b).unwrap_err().contains("streams from a closely enough"), "{why}");
    }
}
