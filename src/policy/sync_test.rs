#![allow(clippy::unwrap_used)]

use super::*;
use crate::{
    domain::Moment,
    policy::{
        report::Unfit,
        testing::{Bench, agent, id},
    },
};

fn names(text: &str) -> Vec<MemberId> {
    text.split_whitespace().map(id).collect()
}

/// a is open, b and c stream to it, and the settings are these.
fn bench(settings: &[(&str, &str)]) -> Bench {
    let mut bench = Bench::new("granted a open 2")
        .says("a", "primary 2:200 lease=1 unheard=b unheard=c answering=a,b,c")
        .says("b", "standby 2:200 upstream=a follows=1")
        .says("c", "standby 2:200 upstream=a follows=1");
    set(&mut bench, settings);
    bench.state.format = Format::SYNC;
    bench
}

fn set(bench: &mut Bench, settings: &[(&str, &str)]) {
    let values = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    bench.state.settings.values.extend(values);
}

const QUORUM: &[(&str, &str)] = &[("replication_mode", "quorum")];
fn strict<'a>(settings: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [settings, &[("sync_strict", "true")]].concat()
}

const SYNC: &[(&str, &str)] = &[("replication_mode", "sync")];

/// The rule is in force alone.
fn with(mut bench: Bench, of: &str, count: u32) -> Bench {
    bench.state.sync.rules.clear();
    bench.state.sync.add(Epoch(1), names(of), count).unwrap();
    bench
}

/// The next rule, if another one is wanted.
fn next(bench: &Bench) -> Option<(String, u32)> {
    match change(&bench.situation()) {
        Some(Verdict::Propose(Kind::SetSync { after, rule: Some((names, count)) })) => {
            assert_eq!(after, bench.state.sync.id);
            Some((Vec::from_iter(names.iter().map(MemberId::as_str)).join(" "), count))
        }
        Some(Verdict::Hold(_)) | None => None,
        other => panic!("{other:?}"),
    }
}

fn rule(of: &str, count: u32) -> Option<(String, u32)> {
    Some((of.to_owned(), count))
}

fn hold(bench: &Bench) -> String {
    match change(&bench.situation()) {
        Some(Verdict::Hold(hold)) => hold.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_was_taken_over_while_it_ran_goes_by_no_rule_until_it_is_started_again() {
    let mut taken_over = bench(QUORUM);
    let said = taken_over.seen.get_mut(&id("a")).and_then(|seen| seen.agent.as_mut()).unwrap();
    said.guard = crate::domain::observation::TAKEN_OVER.to_owned();
    assert!(hold(&taken_over).starts_with("replication_mode=quorum is not in effect: a was taken over"));
    set(&mut taken_over, &[("replication_mode", "async")]);
    assert_eq!(change(&taken_over.situation()), None);
}

#[test]
fn whoever_streams_closely_confirms_from_then_on() {
    assert_eq!(change(&bench(&[]).situation()), None, "async");
    assert_eq!(next(&bench(QUORUM)), rule("b c", 1));
    assert_eq!(next(&bench(SYNC)), rule("b", 1));
    let both = [QUORUM, &[("sync_count", "2")]].concat();
    assert_eq!(next(&bench(&both)), rule("b c", 2));
    assert_eq!(next(&with(bench(QUORUM), "b c", 1)), None, "it is so");

    let not = |why: &str, bench: Bench| assert_eq!(next(&bench), rule("b", 1), "{why}");
    let c = |spec: &str| bench(QUORUM).says("c", spec);
    let a = |more: &str| bench(QUORUM).says("a", &format!("primary 2:200 lease=1 unheard=b answering=a,b,c {more}"));
    not("follows under an older name", c("standby 2:200 upstream=a"));
    not("is down", c("stopped 2:200 follows=1"));
    not("its disk stands still", c("standby 2:200 upstream=a follows=1 storage"));
    not("the primary doesn't stream to it", a("unheard=c gone=c"));
    not("the primary hasn't heard it", a(""));
    not("the primary heard it long ago", a("unheard=c:9000"));
    not("lacks more than a segment", a("unheard=c behind=c:20000000"));
    not("operators don't want it", bench(&[QUORUM, &[("c.sync", "false")]].concat()));
    not("operators don't want it", bench(&[QUORUM, &[("c.sync_priority", "0")]].concat()));
    let mut aside = bench(QUORUM);
    aside.state.maintenance.insert(id("c"), crate::state::Asked::default());
    not("it is put aside", aside);
}

#[test]
fn nothing_is_promised_before_every_host_knows_of_such_rules() {
    let mut older = bench(QUORUM);
    older.state.format = Format::MOVES;
    assert_eq!(change(&older.situation()), None);
}

#[test]
fn an_async_cluster_gives_its_rules_up() {
    let back = with(bench(&[]), "b c", 1);
    let given_up = Verdict::Propose(Kind::SetSync { after: 1, rule: None });
    assert_eq!(change(&back.situation()), Some(given_up));
}

#[test]
fn a_standby_that_is_down_is_replaced_or_dropped_and_waited_for_when_that_is_strict() {
    let down = |settings: &[(&str, &str)], of: &str, count| with(bench(settings).says("b", "stopped 2:200"), of, count);
    assert_eq!(next(&down(QUORUM, "b c", 1)), rule("c", 1));
    assert_eq!(next(&down(SYNC, "b", 1)), rule("c", 1));
    assert_eq!(next(&down(&strict(QUORUM), "b c", 1)), rule("c", 1), "one is enough");
    assert_eq!(next(&down(&strict(SYNC), "b", 1)), rule("c", 1));

    let alone = |settings: &[(&str, &str)], of: &str, count| {
        with(bench(settings).says("b", "stopped 2:200").says("c", "stopped 2:200"), of, count)
    };
    assert_eq!(next(&alone(QUORUM, "c", 1)), rule("", 0));
    assert_eq!(next(&alone(QUORUM, "b c", 1)), rule("", 0));
    let waits = alone(&strict(QUORUM), "c", 1);
    assert_eq!(next(&waits), None, "commits wait for it");
    let both = [&strict(QUORUM)[..], &[("sync_count", "2")]].concat();
    assert_eq!(next(&down(&both, "b c", 2)), None, "commits wait for it");
    let two = [QUORUM, &[("sync_count", "2")]].concat();
    assert_eq!(next(&down(&two, "b c", 2)), rule("c", 1));
}

#[test]
fn what_is_less_than_was_asked_for_is_told() {
    let two = [QUORUM, &[("sync_count", "2")]].concat();
    let one = with(bench(&two).says("b", "stopped 2:200"), "c", 1);
    assert_eq!(hold(&one), "1 of 2 standbys confirm commits, for there are no more");
    let none = with(bench(QUORUM).says("b", "stopped 2:200").says("c", "stopped 2:200"), "", 0);
    assert!(hold(&none).starts_with("no standby confirms commits: if the primary is lost"));
    let strict = [QUORUM, &[("sync_count", "3"), ("sync_strict", "true")]].concat();
    let waits = with(bench(&strict), "b c", 3);
    assert!(hold(&waits).starts_with("commits wait: 2 of 3 standbys can confirm them"));
    let strict = [QUORUM, &[("sync_strict", "true")]].concat();
    let waits = with(bench(&strict).says("b", "stopped 2:200").says("c", "stopped 2:200"), "c", 1);
    assert!(hold(&waits).starts_with("commits wait: 0 of 1 standbys can confirm them"), "c is named and down");
    let begins = bench(&strict).says("b", "standby 2:200 upstream=a").says("c", "standby 2:200 upstream=a");
    assert!(hold(&begins).starts_with("commits wait: 0 of 1"), "no rule yet that would make all commits wait");
}

#[test]
fn a_silent_standby_confirms_until_its_loss_is_certain() {
    let heard =
        |more: &str| with(bench(QUORUM).says("a", &format!("primary 2:200 lease=1 unheard=b {more}")), "b c", 1);
    assert_eq!(next(&heard("unheard=c:2400 answering=a,b")), None, "less than T_hold");
    assert_eq!(next(&heard("unheard=c:2500 answering=a,b")), rule("b", 1), "its host doesn't answer the lease either");
    assert_eq!(next(&heard("unheard=c:2500 answering=a,b,c")), None, "its host is there");
    assert_eq!(next(&heard("unheard=c:10000 answering=a,b,c")), rule("b", 1), "as long as a connection may be silent");
    assert_eq!(next(&heard("gone=c unheard=c:2500 answering=a,b,c")), rule("b", 1), "it is not connected");
    let asks = |spec: &str| with(bench(QUORUM).says("c", spec), "b c", 1);
    assert_eq!(next(&asks("starting 2:200")), None, "its agent was restarted, and it streams");
}

#[test]
fn the_mode_sync_prefers_by_priority_and_changes_nobody_for_an_equal() {
    let c_first = [SYNC, &[("c.sync_priority", "200")]].concat();
    assert_eq!(next(&bench(&c_first)), rule("c", 1));
    assert_eq!(next(&with(bench(SYNC), "c", 1)), None, "b is no better");
    assert_eq!(next(&with(bench(&c_first), "b", 1)), rule("c", 1));
    let two = [&c_first[..], &[("sync_count", "2")]].concat();
    assert_eq!(next(&bench(&two)), rule("b c", 2));
}

#[test]
fn one_of_another_site_confirms_when_that_is_asked_for() {
    let sites = &[("a.site", "x"), ("b.site", "x"), ("c.site", "y"), ("sync_other_site", "true")];
    assert_eq!(next(&bench(&[SYNC, sites].concat())), rule("c", 1));
    assert_eq!(next(&bench(&[QUORUM, sites].concat())), rule("c", 1), "any one of two could be b");
    let lost = bench(&[QUORUM, sites].concat()).says("c", "stopped 2:200");
    assert_eq!(next(&lost), rule("b", 1), "as long as one there can");
}

#[test]
fn of_several_who_confirm_in_a_quorum_one_is_of_another_site() {
    let of_five = |count: &str, far: &[&str]| {
        let mut bench =
            bench(&[QUORUM, &[("sync_other_site", "true"), ("sync_count", count), ("sync_strict", "true")]].concat());
        bench = bench.says("a", "primary 2:200 lease=1 unheard=b unheard=c unheard=d unheard=e answering=a,b,c,d,e");
        for member in ["d", "e"] {
            bench.state.members.insert(id(member), bench.state.members[&id("a")].clone());
            bench = bench.says(member, "standby 2:200 upstream=a follows=1");
        }
        for member in far {
            set(&mut bench, &[(&format!("{member}.site"), "y")]);
        }
        bench
    };
    assert_eq!(next(&of_five("2", &["e"])), rule("b e", 2), "both of two");
    assert_eq!(next(&of_five("2", &["d", "e"])), rule("b d e", 2), "any two of them have one of d, e");
    assert_eq!(next(&of_five("3", &["e"])), rule("b c e", 3));
    assert_eq!(next(&of_five("3", &["c", "d", "e"])), rule("b c d e", 3));
    assert_eq!(next(&with(of_five("2", &["e"]), "c e", 2)), None, "nobody is exchanged for an equal");
    assert_eq!(next(&of_five("1", &["d", "e"])), rule("d e", 1));
}

#[test]
fn whoever_lags_too_far_confirms_only_when_nobody_else_does() {
    let limit = [QUORUM, &[("maximum_lag_on_syncnode", "1048576")]].concat();
    let lags = |more: &str| {
        with(bench(&limit).says("a", &format!("primary 2:200 lease=1 unheard=b unheard=c {more}")), "b c", 1)
    };
    assert_eq!(next(&lags("behind=c:2000000")), rule("b", 1));
    assert_eq!(next(&lags("behind=c:2000000 behind=b:2000000")), None);
}

#[test]
fn older_rules_go_when_the_newest_is_in_effect() {
    let mut two = with(bench(QUORUM), "b", 1);
    two.state.sync.add(Epoch(1), names("b c"), 1).unwrap();
    let a = |spec: &str| agent("a", &format!("primary 2:200 lease=1 unheard=b unheard=c answering=a,b,c {spec}"));
    let mut says = |spec: &str| {
        two.seen.get_mut(&id("a")).unwrap().agent = Some(a(spec));
        settle(&two.situation())
    };
    assert_eq!(says("applied=2"), None);
    assert_eq!(says("effective=1"), None);
    assert_eq!(says("effective=2"), Some(Verdict::Propose(Kind::SettleSync { id: 2 })));
    assert_eq!(settle(&with(bench(QUORUM), "b c", 1).situation()), None, "there is one only");
}

#[test]
fn clients_come_in_when_what_is_there_is_confirmed_or_nobody_has_to() {
    let after_a_crash = |of: &str, count, spec: &str| {
        let mut bench = with(bench(QUORUM).says("a", spec), of, count);
        bench.state.kept_out = true;
        let_in(&bench.situation())
    };
    let in_again = Some(Verdict::Propose(Kind::KeepOut { on: false }));
    assert_eq!(after_a_crash("b c", 1, "primary 2:200 lease=1 effective=1"), in_again);
    for waits in ["primary 2:200 lease=1 applied=1", "crashed 2:200 lease=1 effective=1"] {
        assert!(matches!(after_a_crash("b c", 1, waits), Some(Verdict::Hold(Hold::KeptOut { .. }))), "{waits}");
    }
    assert_eq!(after_a_crash("", 0, "primary 2:200 lease=1"), in_again, "an operator has them left out");
}

#[test]
fn rules_that_never_come_into_effect_do_not_pile_up() {
    let mut many = bench(QUORUM);
    for _ in 0..RULES_KEPT {
        many.state.sync.add(Epoch(1), names("b"), 1).unwrap();
    }
    assert!(hold(&many).starts_with("6 rules of commits are in use; the last waits until it is in effect: b"));
}

/// a is lost in epoch 1, in which `of` confirmed; who has promised epoch 2 is sealed with `severed=2`.
fn lost(of: &str, count: u32) -> Bench {
    let mut bench = Bench::new("fenced");
    set(&mut bench, QUORUM);
    bench.state.format = Format::SYNC;
    with(bench, of, count)
}

fn granted(bench: &Bench) -> Result<(String, Option<SyncStart>), Hold> {
    let s = bench.situation();
    let Lock::Fenced { released, .. } = &s.state.lock else { panic!() };
    crate::policy::candidates::successor(&s, released.as_ref(), None).map(|(who, _, sync)| (who.to_string(), sync))
}

fn who(bench: &Bench) -> String {
    granted(bench).map_or_else(|hold| hold.to_string(), |(who, _)| who)
}

#[test]
fn nobody_is_granted_before_one_is_heard_that_has_every_commit() {
    let one = lost("b c", 1).seal("b", "standby 2:150 severed=2").seal("c", "standby 2:140");
    assert!(matches!(granted(&one), Err(Hold::Unconfirmed { needed: Some(2), .. })), "{}", who(&one));
    assert!(who(&one).contains(
        "commits were acknowledged that any 1 of b, c confirmed, so 2 of these have to be heard (so far: b), or a"
    ));
    let both = lost("b c", 1).seal("b", "standby 2:150 severed=2").seal("c", "standby 2:140 severed=2");
    assert_eq!(who(&both), "b");
    let each = lost("b c", 2).seal("c", "standby 2:140 severed=2");
    assert_eq!(who(&each), "c", "each of both has everything");
    let earlier = lost("b c", 2).seal("c", "standby 2:140 severed=1");
    assert!(matches!(granted(&earlier), Err(Hold::Unconfirmed { .. })), "that was a promise of epoch 1");
    let unknown = lost("b c", 2).seal("c", "standby 2:140 severed=2 unknown");
    assert!(granted(&unknown).is_err());
}

#[test]
fn nobody_is_granted_who_lacks_what_another_has_that_was_heard() {
    let settings = [("b.failover", "false"), ("replication_mode", "quorum")];
    let mut behind = lost("b c", 1).seal("b", "standby 2:150 severed=2").seal("c", "standby 2:140 severed=2");
    set(&mut behind, &settings);
    let Err(Hold::NoSuccessor { why }) = granted(&behind) else { panic!() };
    assert!(why.iter().any(|(m, unfit)| *m == id("c") && matches!(unfit, Unfit::LacksCommits { .. })), "{why:?}");
    let mut equal = lost("b c", 1).seal("b", "standby 2:150 severed=2").seal("c", "standby 2:150 severed=2");
    set(&mut equal, &settings);
    assert_eq!(who(&equal), "c");
}

#[test]
fn the_last_primary_has_everything_by_itself() {
    let alone = lost("", 0).seal("b", "standby 2:150 severed=2").seal("c", "standby 2:150 severed=2");
    assert_eq!(who(&alone), "a acknowledged commits without a standby, so nobody else may have them");
    let back = lost("", 0).seal("a", "standby 2:160 severed=2").seal("b", "standby 2:150 severed=2");
    assert_eq!(who(&back), "a");
    let crashed = |clean| {
        let mut told = lost("b c", 1).seal("b", "standby 2:160 severed=2");
        let release = Release {
            epoch: Epoch(1),
            member: id("a"),
            end: crate::policy::testing::position("2:150"),
            clean,
            cause: crate::domain::EndCause::Crash,
        };
        let previous = Some((Epoch(1), id("a")));
        told.state.lock = Lock::Fenced { epoch: Epoch(2), previous, released: Some(release) };
        told
    };
    assert_eq!(who(&crashed(true)), "b");
    assert!(matches!(granted(&crashed(false)), Err(Hold::Unconfirmed { .. })), "it may have written more than it told");
    let mut told = lost("", 0).seal("b", "standby 2:160 severed=2").seal("c", "standby 2:150 severed=2");
    let release = Release {
        epoch: Epoch(1),
        member: id("a"),
        end: crate::policy::testing::position("2:160"),
        clean: true,
        cause: crate::domain::EndCause::Ordered,
    };
    told.state.lock = Lock::Fenced { epoch: Epoch(2), previous: Some((Epoch(1), id("a"))), released: Some(release) };
    assert_eq!(who(&told), "b", "it has all that a had when it ended");
}

#[test]
fn a_last_primary_put_back_from_an_older_copy_speaks_for_nobody() {
    let told =
        |end: &str| crate::domain::Promise { highest: crate::policy::testing::position(end), ..Default::default() };
    let back = |end: &str| {
        let has = lost("b", 1).seal("c", "standby 2:140 severed=2").seal("a", &format!("standby {end} severed=2"));
        has.promise("c", told("2:150"))
    };
    assert_eq!(who(&back("2:150")), "a", "it has what it told");
    assert!(matches!(granted(&back("2:149")), Err(Hold::Unconfirmed { .. })), "b may have more, and is not heard");
    assert!(matches!(granted(&back("1:200")), Err(Hold::Unconfirmed { .. })), "a copy of an earlier timeline");
    let heard = back("2:120").seal("b", "standby 2:145 severed=2");
    assert_eq!(who(&heard), "b", "what b confirmed counts, not what an old copy of a has");
    // Its own word at the end, in the log, when nobody remembers another.
    let released = |end: &str| {
        let mut has = lost("b", 1).seal("c", "standby 2:140 severed=2").seal("a", &format!("standby {end} severed=2"));
        let release = Release {
            epoch: Epoch(1),
            member: id("a"),
            end: crate::policy::testing::position("2:150"),
            clean: false,
            cause: crate::domain::EndCause::Ordered,
        };
        let previous = Some((Epoch(1), id("a")));
        has.state.lock = Lock::Fenced { epoch: Epoch(2), previous, released: Some(release) };
        granted(&has)
    };
    assert!(released("2:150").is_ok());
    assert!(matches!(released("2:149"), Err(Hold::Unconfirmed { .. })));
    // `recover` has reserved a timeline in the epoch of the first grant after it.
    let mut recovered = back("2:149");
    let reserved =
        crate::state::TimelineRecord { timeline: crate::domain::TimelineId(1), ..recovered.state.lineage[1] };
    recovered.state.lineage.insert(1, crate::state::TimelineRecord { switch: None, ..reserved });
    assert!(matches!(granted(&recovered), Err(Hold::Unconfirmed { .. })));
    // Said with its stream, not with a renewal of the lease.
    let streamed = lost("b", 1).seal("c", "standby 2:140 severed=2 heard=2:150").seal("a", "standby 2:149 severed=2");
    assert!(matches!(granted(&streamed), Err(Hold::Unconfirmed { .. })));

    // One that was taken over as it ran began no timeline: it told of the one that it was on.
    let went_on = |end: &str| {
        let has = lost("b", 1).seal("c", "standby 1:140 severed=2").seal("a", &format!("standby {end} severed=2"));
        let mut has = has.promise("c", told("1:150"));
        crate::policy::testing::went_on_running(&mut has.state, "a");
        has
    };
    assert_eq!(who(&went_on("1:150")), "a");
    assert!(matches!(granted(&went_on("1:149")), Err(Hold::Unconfirmed { .. })));

    // Flushed up to the end of a page, in the middle of a record that a crash cut off.
    let page = |end: u64| {
        let has = lost("b", 1).seal("c", "standby 2:140 severed=2").seal("a", &format!("standby 2:{end} severed=2"));
        granted(&has.promise("c", told("2:8388608")))
    };
    assert!(page(8_388_000).is_ok());
    assert!(matches!(page(7_000_000), Err(Hold::Unconfirmed { .. })));
}

#[test]
fn who_has_more_than_was_acknowledged_keeps_nobody_from_being_primary() {
    let mut ahead = lost("b", 1).seal("b", "standby 2:150 severed=2").seal("c", "standby 2:160 severed=2");
    set(&mut ahead, &[("c.sync", "false"), ("c.failover", "false")]);
    assert_eq!(who(&ahead), "b", "c confirmed nothing");
    let mut second = lost("b c", 2).seal("b", "standby 2:150 severed=2").seal("c", "standby 2:160 severed=2");
    set(&mut second, &[("c.failover", "false")]);
    assert_eq!(who(&second), "b", "each of both has every commit");
    let mut tail = lost("b c", 1).seal("b", "standby 2:150 severed=2").seal("c", "standby 2:140 severed=2");
    tail = tail.seal("a", "standby 2:170 severed=2");
    set(&mut tail, &[("a.failover", "false")]);
    assert_eq!(who(&tail), "b", "what a has beyond that nobody confirmed");
}

#[test]
fn how_far_wal_has_to_reach_is_counted_by_who_was_heard() {
    let reaches = |of: &str, count: u32, heard: &[(&str, &str)]| {
        let mut bench = lost(of, count);
        bench.state.members.extend(["d", "e"].map(|m| (id(m), bench.state.members[&id("a")].clone())));
        for (member, end) in heard {
            bench = bench.seal(member, &format!("standby {end} severed=2"));
        }
        let s = bench.situation();
        everything(&s, None, &promised(&s)).ok().map(|reach| reach.unwrap().lsn.0)
    };
    let ends = [("b", "2:110"), ("c", "2:120"), ("d", "2:130"), ("e", "2:140")];
    assert_eq!(reaches("b c d e", 2, &ends), Some(130), "two have each commit: the second most advanced has all");
    assert_eq!(reaches("b c d e", 2, &ends[..3]), Some(130), "e, which was not heard, may be one of the two");
    assert_eq!(reaches("b c d e", 2, &ends[..2]), None);
    assert_eq!(reaches("b c d e", 3, &ends[..3]), Some(120));
    assert_eq!(reaches("b c d e", 3, &ends[..2]), Some(120));
    assert_eq!(reaches("b c", 3, &ends[..2]), Some(0), "nothing was acknowledged");
}

#[test]
fn an_operator_may_accept_that_commits_are_lost() {
    let mut forced = lost("", 0).seal("b", "standby 2:150 severed=2").seal("c", "standby 2:140 severed=2");
    forced.state.operation = crate::policy::testing::state("fenced;failover c").operation;
    let to_c = |bench: &Bench| {
        crate::policy::candidates::successor(&bench.situation(), None, Some(&id("c"))).map(|(who, ..)| who.to_string())
    };
    assert!(matches!(to_c(&forced), Err(Hold::Unconfirmed { .. })));
    forced.state.operation.as_mut().unwrap().accepts_loss = true;
    assert_eq!(to_c(&forced), Ok("c".to_owned()));
}

/// What rule 220 says of a failover to b by command: why it ends, or that it is waited for.
fn failover_to_b(mut bench: Bench) -> Result<String, String> {
    bench.state.operation = crate::policy::testing::state("fenced;failover b").operation;
    bench = bench.operation_began_now();
    match crate::policy::switchover::failed(&bench.situation()) {
        Some(Verdict::Propose(Kind::EndOperation { id: 1, succeeded: false, reason })) => Ok(reason),
        Some(Verdict::Hold(hold)) => Err(hold.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_failover_by_command_ends_when_its_target_lacks_a_commit_and_not_before_that_is_certain() {
    let b = |spec: &str| lost("b c", 1).seal("b", spec);
    let behind = b("standby 2:140 severed=2").seal("c", "standby 2:150 severed=2");
    assert_eq!(
        failover_to_b(behind),
        Ok("b can't become primary: its WAL ends at 2:0/8C, and commits up to 2:0/96 may have been acknowledged"
            .into())
    );
    for (bench, why) in [
        (b("standby 2:150 severed=2").seal("c", "standby 2:140 severed=2"), "it has every commit"),
        (b("standby 2:140 severed=2"), "nobody knows what was acknowledged before c is heard"),
        (b("standby 2:140").seal("c", "standby 2:150 severed=2"), "it follows the old primary still, and gets more"),
        (b("standby 2:140 severed=2 unknown").seal("c", "standby 2:150 severed=2"), "where its WAL ends is not proven"),
    ] {
        assert!(failover_to_b(bench).is_err(), "{why}");
    }
    let mut accepted = b("standby 2:140 severed=2").seal("c", "standby 2:150 severed=2");
    accepted.state.operation = crate::policy::testing::state("fenced;failover b").operation;
    accepted.state.operation.as_mut().unwrap().accepts_loss = true;
    let says = crate::policy::switchover::failed(&accepted.operation_began_now().situation());
    assert!(matches!(says, Some(Verdict::Hold(_))), "the operator has accepted the loss: {says:?}");
}

#[test]
fn a_failover_by_command_hears_out_whoever_may_show_that_its_target_has_all() {
    // The seals of b and c are as old as the bench, or came just now; d's agent was heard of just now.
    let bench = |answered_now: bool| {
        let mut bench = lost("b c d", 2).seal("b", "standby 2:140 severed=2").seal("c", "standby 2:150 severed=2");
        bench.state.members.insert(id("d"), bench.state.members[&id("c")].clone());
        let now = bench.situation().now;
        if answered_now {
            bench.seals.values_mut().for_each(|seal| seal.at = now);
        }
        bench.says("d", "standby 2:130")
    };
    assert!(failover_to_b(bench(true)).is_err(), "two of b, c and d have each commit: perhaps it isn't c");
    let heard = bench(true).seal("d", "standby 2:130 severed=2");
    assert!(failover_to_b(heard).is_err(), "what two of them have reaches to b's end");
    assert!(failover_to_b(bench(false)).is_ok(), "d had the time to answer");
}

#[test]
fn a_successor_begins_with_those_who_can_follow_it() {
    let start = |bench: &Bench| granted(bench).unwrap().1.unwrap();
    let both = lost("b c", 1).seal("b", "standby 2:150 severed=2").seal("c", "standby 2:150 severed=2");
    assert_eq!(start(&both), SyncStart { holders: names("b c"), names: names("c"), count: 1 });
    let each = lost("b c", 2).seal("b", "standby 2:150 severed=2").seal("c", "standby 2:140 severed=2");
    assert_eq!(
        start(&each),
        SyncStart { holders: names("b c"), names: names("c"), count: 1 },
        "c has what was acknowledged"
    );
    let behind = lost("b c", 1).seal("b", "standby 2:150 severed=2").seal("c", "standby 2:140 severed=2");
    assert_eq!(start(&behind), SyncStart { holders: names("b"), names: names("c"), count: 1 });
    let ahead = lost("b", 1).seal("b", "standby 2:150 severed=2");
    assert_eq!(start(&ahead), SyncStart { holders: names("b"), names: vec![], count: 0 }, "nobody can confirm");
    let mut strict = ahead;
    set(&mut strict, &[("sync_strict", "true")]);
    assert_eq!(start(&strict), SyncStart { holders: names("b"), names: names("a"), count: 1 }, "commits wait");
    let mut async_again = both;
    set(&mut async_again, &[("replication_mode", "async")]);
    assert_eq!(granted(&async_again).unwrap().1, None);
}

#[test]
fn a_word_that_is_older_than_the_epoch_promises_nothing() {
    let bench = lost("b", 1).seal("b", "standby 2:150 severed=1").seal("c", "nodata severed=2");
    assert_eq!(promised(&bench.situation()), BTreeSet::new());
    let _ = Moment::default();
}
