//! a is primary; b and c are standbys that could have the address.

use super::*;
use crate::{
    domain::{Moment, Observation},
    policy::testing::{Bench, id},
    state::Asked,
};

const PRIMARY: &str = "primary 2:90000000 lease=1 reader";
const FIT: &str = "standby 2:90000000 upstream=a replayed=90000000 reader";
const BEHIND: &str = "standby 2:90000000 upstream=a replayed=80000000 reader";
const LIFE: Duration = Duration::from_millis(2_500);

/// `reader`: who has it, by lend 4; empty: nobody has it since lend 4.
fn bench(reader: &str, b: &str, c: &str) -> Bench {
    let mut bench = Bench::new("granted a open 2");
    let holder = (!reader.is_empty()).then(|| id(reader));
    bench.state.reader = Reader { id: 4, holder, life: LIFE };
    bench.says("a", PRIMARY).says("b", b).says("c", c)
}

fn falling_back(mut bench: Bench) -> Bench {
    bench.state.settings.values.insert("vip_standby_fallback".to_owned(), "primary".to_owned());
    bench
}

fn told(verdict: Option<Verdict>) -> String {
    match verdict {
        None => "nothing".to_owned(),
        Some(Verdict::Propose(Kind::Lend { member, id, life })) => format!("lend {id} to {member} for {life:?}"),
        Some(Verdict::Propose(Kind::EndLend { id, reason })) => format!("end {id}: {reason}"),
        Some(Verdict::Hold(hold)) => hold.to_string(),
        Some(other) => panic!("{other:?}"),
    }
}

/// What rule 448 says so long after this leader has seen that nobody has it.
fn lent_after(ms: u64, bench: &Bench) -> String {
    let mut s = bench.situation();
    s.since.reader = Moment(s.now.0 - Duration::from_millis(ms));
    told(lend(&s))
}

fn lent(bench: &Bench) -> String {
    lent_after(60_000, bench)
}

/// What rule 446 says when whoever has it has been unfit for so long.
fn ended_after(ms: u64, bench: &Bench) -> String {
    let mut s = bench.situation();
    s.since.reader_unfit = Some(Moment(s.now.0 - Duration::from_millis(ms)));
    told(end(&s))
}

fn ended(bench: &Bench) -> String {
    ended_after(0, bench)
}

#[test]
fn the_standby_that_has_replayed_most_gets_it_the_first_by_name_among_equals() {
    assert_eq!(lent(&bench("", FIT, FIT)), "lend 5 to b for 2.5s");
    assert_eq!(lent(&bench("", BEHIND, FIT)), "lend 5 to c for 2.5s");
    let nearly = FIT.replace("replayed=90000000", "replayed=89900000");
    assert_eq!(lent(&bench("", &nearly, FIT)), "lend 5 to b for 2.5s", "less than a megabyte is no difference");
    assert_eq!(lent(&bench("b", FIT, FIT)), "nothing", "who has it keeps it");
    assert_eq!(ended(&bench("c", FIT, BEHIND)), "nothing", "also when another has replayed more");
}

#[test]
fn nobody_gets_it_before_every_confirmation_of_the_last_lend_is_over() {
    let free = bench("", FIT, FIT);
    let wait = free.situation().timings.reader_wait(LIFE);
    assert_eq!(wait.as_millis(), 3_122, "(1 + 0.02) * (2.5 / (1 - 0.02) + 0.51)");
    assert_eq!(
        lent_after(3_122, &free),
        "b is to have the address for standbys, which somebody else may still have (0.0 s left)"
    );
    assert_eq!(lent_after(3_123, &free), "lend 5 to b for 2.5s");
    // A life that was longer when it was lent is waited for, whatever the timings are now.
    let mut longer = bench("", FIT, FIT);
    longer.state.reader.life = Duration::from_secs(20);
    assert!(lent_after(20_900, &longer).starts_with("b is to have"), "{}", lent_after(20_900, &longer));
    assert_eq!(lent_after(21_400, &longer), "lend 5 to b for 2.5s");
    let mut first = bench("", FIT, FIT);
    first.state.reader = Reader::default();
    assert_eq!(lent_after(0, &first), "lend 1 to b for 2.5s", "nobody ever had it");
}

#[test]
fn who_is_not_fit_does_not_get_it() {
    let reasons = [
        ("standby 2:90000000 upstream=a replayed=90000000", "the address can't be put up there"),
        ("standby 2:90000000 upstream=a replayed=90000000 reader=failed:x", "the address can't be put up there"),
        ("standby 2:90000000 replayed=90000000 reader", "it does not stream"),
        (
            "standby 2:90000000 upstream=a replayed=70000000 reader",
            "it has not replayed 20000000 bytes, more than 16777216",
        ),
        ("standby 2:90000000 upstream=a replayed=90000000 reader storage", "its disk or its replay stands still"),
        ("stopped 2:90000000 reader", "its PostgreSQL is stopped"),
    ];
    for (c, why) in reasons {
        let told = lent(&bench("", c, "nodata"));
        let nobody = "nobody has the address for standbys: a: it is primary, or is to be; b: ";
        assert_eq!(told, format!("{nobody}{why}; c: the address can't be put up there"));
    }
    let mut delayed = bench("", FIT, "nodata");
    delayed.state.settings.values.insert("b.recovery_min_apply_delay".to_owned(), "5000".to_owned());
    assert!(lent(&delayed).contains("b: it shows the past"), "{}", lent(&delayed));
    let mut put_aside = bench("", FIT, FIT);
    put_aside.state.maintenance.insert(id("b"), Asked { reason: "disk".into(), ..Asked::default() });
    assert_eq!(lent(&put_aside), "lend 5 to c for 2.5s");
    let mut operation = Bench::new("granted a open 2; switchover b checkpoint");
    operation.state.reader = Reader { id: 4, holder: None, life: LIFE };
    let operation = operation.says("a", PRIMARY).says("b", FIT).says("c", FIT);
    assert_eq!(lent(&operation), "lend 5 to c for 2.5s", "b is about to be primary");
    let nobody_has_the_layer =
        Bench::new("granted a open 2").says("a", "primary 2:9 lease=1").says("b", "standby 2:9 upstream=a");
    assert_eq!(lent(&nobody_has_the_layer), "nothing", "where it is not configured nothing is said of it");
}

#[test]
fn who_does_not_do_well_loses_it_after_a_while_and_who_cannot_have_it_at_once() {
    let stopped = bench("b", "stopped 2:90000000 reader", FIT);
    let waits = "b has the address for standbys, and its PostgreSQL is stopped (5.0 s left)";
    assert_eq!(ended(&stopped), waits, "it may be restarted");
    assert_eq!(ended_after(5_000, &stopped), "end 4: its PostgreSQL is stopped");
    assert_eq!(ended_after(9_000, &bench("b", FIT, FIT)), "nothing");
    let burst = FIT.replace("replayed=90000000", "replayed=60000000");
    assert_eq!(ended_after(9_000, &bench("b", &burst, FIT)), "nothing", "30 MB are a burst");
    let far = FIT.replace("replayed=90000000", "replayed=20000000");
    assert_eq!(
        ended_after(5_000, &bench("b", &far, FIT)),
        "end 4: it has not replayed 70000000 bytes, more than 67108864"
    );
    assert_eq!(ended(&bench("a", FIT, FIT)), "end 4: it is primary, or is to be");
    let mut removed = bench("b", FIT, FIT);
    removed.state.members.remove(&id("b"));
    assert_eq!(ended(&removed), "end 4: it is no member");
    let mut put_aside = bench("b", FIT, FIT);
    put_aside.state.maintenance.insert(id("b"), Asked { reason: "disk".into(), ..Asked::default() });
    assert_eq!(ended(&put_aside), "end 4: it is in maintenance");
}

#[test]
fn a_silent_host_loses_it_and_a_new_leader_first_listens() {
    let mut silent = bench("b", FIT, FIT);
    silent.seen.insert(id("b"), Observation::default());
    assert_eq!(ended(&silent), "end 4: its agent has said nothing for 60.0 s");
    assert_eq!(ended(&silent.leads_since_now()), "nothing");
}

#[test]
fn without_a_primary_nobody_is_blamed_for_streaming_from_none_and_nobody_gets_it() {
    let between = |reader: &str| {
        let mut bench = Bench::new("fenced");
        bench.state.reader = Reader { id: 4, holder: (!reader.is_empty()).then(|| id(reader)), life: LIFE };
        bench.says("b", "standby 2:90000000 replayed=90000000 reader").says("c", FIT)
    };
    assert_eq!(ended_after(60_000, &between("b")), "nothing");
    assert_eq!(lent(&between("")), "nothing");
}

#[test]
fn in_a_pause_it_stays_where_it_is() {
    let pause = |mut bench: Bench| {
        bench.state.paused = Some(Asked::default());
        bench
    };
    assert_eq!(ended_after(60_000, &pause(bench("b", "stopped 2:90000000 reader", FIT))), "nothing");
    assert_eq!(lent(&pause(bench("", FIT, FIT))), "nothing");
}

#[test]
fn the_primary_has_it_in_place_of_a_standby_where_that_is_set() {
    let none = "stopped 2:90000000 reader";
    assert!(lent(&bench("", none, none)).starts_with("nobody has the address"));
    let fallback = falling_back(bench("", none, none));
    assert!(lent_after(8_122, &fallback).starts_with("a is to have"), "a standby has a little more time");
    assert_eq!(lent_after(8_123, &fallback), "lend 5 to a for 2.5s");
    let has = |b: &str| falling_back(bench("a", b, none));
    assert_eq!(ended_after(60_000, &has(none)), "nothing");
    assert_eq!(ended(&has(FIT)), "a has the address for standbys, and b is a standby and fit for it (5.0 s left)");
    assert_eq!(ended_after(5_000, &has(FIT)), "end 4: b is a standby and fit for it");
    assert_eq!(ended(&bench("a", none, none)), "end 4: it is primary, or is to be", "it is set no more");
}

#[test]
fn a_confirmation_counts_for_two_and_a_half_seconds_at_least() {
    use crate::domain::{Profile, Timings};
    let bench = bench("", FIT, FIT);
    let lent_under = |profile| {
        let timings = Timings::of(profile);
        let mut s = bench.situation();
        s.timings = &timings;
        told(lend(&s))
    };
    assert_eq!(lent_under(Profile::Fast), "lend 5 to b for 2.5s");
    assert_eq!(lent_under(Profile::Safe), "lend 5 to b for 20s");
}
