use super::*;
use crate::{
    policy::testing::{Bench, id},
    state::{Asked, Stopped},
};

fn bench(lock: &str, c: &str) -> Bench {
    let a = "primary 2:90 lease=1 unheard=b unheard=c answering=a,b,c";
    let follows = "standby 2:80 upstream=a follows=1";
    let mut bench = Bench::new(lock).says("a", a).says("b", follows).says("c", c);
    for member in ["a", "b", "c"] {
        bench.seen.get_mut(&id(member)).unwrap().format = Format::NEWEST;
    }
    bench
}

fn open() -> Bench {
    bench("granted a open 2", "standby 2:80 upstream=a follows=1")
}

fn ask(bench: &Bench, member: &str, force: bool) -> Result<Option<Kind>, String> {
    admit_stop(&bench.situation(), &id(member), Words { reason: "disk", by: "kim", force })
}

fn stopped(bench: &mut Bench, member: &str) {
    let stopped = Some(Stopped::default());
    bench.state.maintenance.insert(id(member), Asked { by: "kim".into(), stopped, ..Asked::default() });
}

#[test]
fn a_standby_is_stopped_once_and_started_once() {
    let mut bench = open();
    let Ok(Some(Kind::Maintenance { member, on, reason, by, stop })) = ask(&bench, "b", false) else { panic!() };
    assert_eq!((member, on, reason.as_str(), by.as_str(), stop), (id("b"), true, "disk", "kim", Some(false)));
    assert_eq!(admit_start(&bench.situation(), &id("b"), "kim"), Ok(None), "nobody has stopped it");
    stopped(&mut bench, "b");
    assert_eq!(ask(&bench, "b", false), Ok(None), "it is stopped");
    let started = admit_start(&bench.situation(), &id("b"), "kim");
    assert!(matches!(started, Ok(Some(Kind::Maintenance { on: false, stop: Some(_), .. }))), "{started:?}");
    assert!(ask(&bench, "x", false).unwrap_err().contains("no member"));
    assert!(admit_start(&bench.situation(), &id("x"), "").unwrap_err().contains("no member"));
}

#[test]
fn the_primary_and_whoever_an_operation_is_about_are_not_stopped() {
    let refused = ask(&open(), "a", true).unwrap_err();
    assert!(refused.contains("`matriarch switchover`") && refused.contains("`matriarch stop --all`"), "{refused}");
    let busy = bench("granted a open 2; switchover b checkpoint", "standby 2:80 upstream=a");
    assert!(ask(&busy, "b", true).unwrap_err().starts_with("operation 1 is about b"));
    assert!(ask(&busy, "c", false).is_ok());
}

#[test]
fn maintenance_and_a_stop_are_two_things_and_each_is_ended_by_its_own_command() {
    let mut aside = open();
    aside.state.maintenance.insert(id("b"), Asked { reason: "disk".into(), ..Asked::default() });
    assert!(
        ask(&aside, "b", true).unwrap_err().starts_with("b is in maintenance: disk: PostgreSQL there is left to you")
    );
    let refused = admit_start(&aside.situation(), &id("b"), "").unwrap_err();
    assert_eq!(refused, "b is in maintenance: disk; `matriarch maintenance off b` ends it");
    stopped(&mut aside, "b");
    let other = |on| super::super::pause::admit_maintenance(&aside.situation(), &id("b"), on, "", "").unwrap_err();
    assert!(other(true).starts_with("b is stopped by kim; `matriarch start b` ends it"), "{}", other(true));
    assert!(other(false).starts_with("b is stopped by kim; `matriarch start b` ends it"));
}

#[test]
fn whom_commits_need_is_stopped_only_by_force() {
    let strict = |of: &str, count: &str, c: &str, force| {
        let mut bench = bench("granted a open 2", c);
        bench.state.format = Format::NEWEST;
        let values = [("replication_mode", "quorum"), ("sync_strict", "true"), ("sync_count", count)];
        bench.state.settings.values.extend(values.map(|(key, value)| (key.to_owned(), value.to_owned())));
        let names = of.split_whitespace().map(id).collect();
        bench.state.sync.add(crate::domain::Epoch(1), names, count.parse().unwrap()).unwrap();
        ask(&bench, "b", force)
    };
    let follows = "standby 2:80 upstream=a follows=1";
    assert!(strict("b c", "1", follows, false).is_ok(), "c confirms");
    assert!(strict("b", "1", follows, false).is_ok(), "c can");
    let nobody = strict("b c", "2", follows, false).unwrap_err();
    assert!(nobody.starts_with("commits need b, and nobody could confirm in its place"), "{nobody}");
    let absent = strict("b", "1", "stopped 2:80", false).unwrap_err();
    assert!(absent.contains("too far behind (c)") && absent.contains("--force"), "{absent}");
    let forced = strict("b", "1", "stopped 2:80", true);
    assert!(matches!(forced, Ok(Some(Kind::Maintenance { stop: Some(true), .. }))), "{forced:?}");
}

#[test]
fn who_may_be_the_next_primary_is_stopped_only_by_force() {
    let fenced = bench("fenced", "standby 2:80");
    assert!(ask(&fenced, "b", false).unwrap_err().contains("no open primary"));
    assert!(ask(&fenced, "b", true).is_ok());
}

#[test]
fn what_is_given_up_is_said_before() {
    assert_eq!(warnings(&open().situation(), &id("b")), Vec::<String>::new());
    let alone = bench("granted a open 2", "stopped 2:80");
    assert!(warnings(&alone.situation(), &id("b"))[0].starts_with("without b nobody can take over"));
    let mut other = open();
    stopped(&mut other, "c");
    assert!(warnings(&other.situation(), &id("b"))[0].starts_with("without b nobody can take over"));
    other.seen.remove(&id("b"));
    assert!(warnings(&other.situation(), &id("b")).iter().any(|said| said.starts_with("b does not answer")));
}

#[test]
fn nothing_is_stopped_while_a_host_would_not_understand_it() {
    let mut older = open();
    older.seen.get_mut(&id("c")).unwrap().format = Format::FIRST;
    assert!(ask(&older, "b", false).unwrap_err().starts_with("c runs a version"));
}
