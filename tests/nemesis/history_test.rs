//! Made-up histories: each anomaly is found, and what is none is not.

use super::*;

fn life(timeline: u32) -> Arc<Life> {
    Arc::new(Life { timeline, server: format!("s{timeline}"), started: String::new() })
}

/// Steps in short: `a1:5` appends 5 to list 1, `r1:3,5` reads 3 and 5 in it, `r1:` finds it empty.
fn ops(text: &str) -> Vec<Op> {
    let op = |word: &str| {
        let (key, rest) = word[1..].split_once(':').unwrap();
        let key = key.parse().unwrap();
        match word.starts_with('a') {
            true => Op::Append(key, rest.parse().unwrap()),
            false => {
                Op::Read(key, Some(rest.split(',').filter(|v| !v.is_empty()).map(|v| v.parse().unwrap()).collect()))
            }
        }
    };
    text.split_whitespace().map(op).collect()
}

/// On one server, one after the other; `!` in front: failed, `?`: nobody knows, `~`: begun before the one before it ended.
fn history(list: &[&str]) -> Vec<Txn> {
    on(list.iter().map(|text| (2, *text)))
}

/// The same with the timeline of the server.
fn on<'a>(list: impl IntoIterator<Item = (u32, &'a str)>) -> Vec<Txn> {
    let txn = |(index, (timeline, text)): (usize, (u32, &str))| {
        let at = index as Micros * 10;
        let end = match text {
            _ if text.contains('!') => End::Failed,
            _ if text.contains('?') => End::Unknown,
            _ => End::Ok,
        };
        let invoked = if text.contains('~') { 0 } else { at + 1 };
        let ops = ops(text.trim_start_matches(['!', '?', '~']));
        Txn { process: index, invoked, ended: at + 9, ops, end, life: Some(life(timeline)) }
    };
    list.into_iter().enumerate().map(txn).collect()
}

fn last(text: &str) -> BTreeMap<Key, Vec<Value>> {
    let all = ops(text).into_iter().filter_map(|op| match op {
        Op::Read(key, list) => Some((key, list?)),
        Op::Append(..) => None,
    });
    all.collect()
}

fn found(txns: &[Txn], at_the_end: &str, excuse: Excuse) -> Vec<(Anomaly, Option<Pardon>)> {
    let terms = Terms { excuse, in_hole: &|_, _| false };
    check(txns, &last(at_the_end), &terms).into_iter().map(|f| (f.anomaly, f.pardon)).collect()
}

fn anomalies(list: &[&str], at_the_end: &str) -> Vec<Anomaly> {
    found(&history(list), at_the_end, Excuse::Confirmed(0)).into_iter().map(|(anomaly, _)| anomaly).collect()
}

#[test]
fn clean_histories_pass() {
    let clean: &[(&[&str], &str)] = &[
        (&[], ""),
        (&["a1:1", "r1:1 a2:2 r2:2", "a1:3 r1:1,3", "r1:1,3 r2:2"], "r1:1,3 r2:2"),
        // Of what nobody knows some is there and some is not.
        (&["a1:1", "?a1:2", "?a1:3", "r1:1,3"], "r1:1,3"),
        // What failed is not there.
        (&["!a1:1", "r1:", "a1:2 r1:2"], "r1:2"),
        // Several appends of one transaction; others see all or nothing.
        (&["a1:1 a1:2 r1:1,2 a2:3", "~r1: r2:", "r1:1,2 r2:3"], "r1:1,2 r2:3"),
        // Begun at the same time: either order will do.
        (&["~a1:1", "~r1:", "~a1:2 r1:1,2", "~r1:1"], "r1:1,2"),
        // Both are read-only after disjoint writes, and agree.
        (&["a1:1", "~a2:2", "~r1:1 r2:", "r1:1 r2:2"], "r1:1 r2:2"),
    ];
    for (list, at_the_end) in clean {
        assert_eq!(anomalies(list, at_the_end), [], "{list:?}");
    }
}

#[test]
fn lost_appends() {
    assert_eq!(anomalies(&["a1:1", "a1:2"], "r1:1"), [Anomaly::Lost]);
    assert_eq!(anomalies(&["a1:1"], ""), [Anomaly::Lost], "with the whole list");
    // It was seen before it went: one order with it, one without.
    assert_eq!(anomalies(&["a1:1", "a1:2", "r1:1,2", "a1:3"], "r1:1,3"), [Anomaly::Lost, Anomaly::Incompatible]);
}

/// Nobody was told that it is there, and somebody read it.
#[test]
fn appends_of_unknown_end_that_were_read_and_vanish() {
    assert_eq!(anomalies(&["?a1:1", "r1:1"], ""), [Anomaly::Vanished]);
}

#[test]
fn incompatible_orders() {
    assert_eq!(anomalies(&["~a1:1", "~a1:2", "~r1:2,1"], "r1:1,2"), [Anomaly::Incompatible]);
    assert_eq!(anomalies(&["a1:1", "~a1:2", "~r1:2"], "r1:1,2"), [Anomaly::Incompatible]);
}

#[test]
fn garbage() {
    assert_eq!(anomalies(&["a1:1", "r1:1,1"], "r1:1,1"), [Anomaly::Garbage]);
    assert_eq!(anomalies(&["a1:1", "r1:1,7"], "r1:1,7"), [Anomaly::Garbage]);
}

#[test]
fn transactions_that_do_not_see_themselves() {
    assert_eq!(anomalies(&["a1:1", "a1:2 r1:1"], "r1:1,2")[0], Anomaly::Internal);
    assert_eq!(anomalies(&["~a1:1", "~r1: r1:1"], "r1:1")[0], Anomaly::Internal);
    assert_eq!(anomalies(&["~r1: a1:1 r1:2,1", "~a1:2"], "r1:2,1")[0], Anomaly::Internal);
}

#[test]
fn aborted_reads() {
    assert_eq!(anomalies(&["!a1:1", "r1:1"], "r1:1"), [Anomaly::G1a]);
    assert_eq!(anomalies(&["!a1:1", "a1:2", "r1:1,2"], "r1:1,2"), [Anomaly::G1a]);
}

#[test]
fn intermediate_reads() {
    assert_eq!(anomalies(&["~a1:1 a1:2", "~r1:1"], "r1:1,2"), [Anomaly::G1b, Anomaly::G2]);
}

#[test]
fn cycles_of_writes() {
    assert_eq!(anomalies(&["~a1:1 a2:1", "~a1:2 a2:2"], "r1:1,2 r2:2,1"), [Anomaly::G0]);
    // One that others write in between.
    assert_eq!(anomalies(&["~a1:1 a1:3", "~a1:2"], "r1:1,2,3"), [Anomaly::G0]);
    // Three of them, and who has nothing to do with it is not named.
    let txns = history(&["~a1:1 a3:2", "~a1:2 a2:1", "~a2:2 a3:1", "~a4:1"]);
    let terms = Terms { excuse: Excuse::None, in_hole: &|_, _| false };
    let found = check(&txns, &last("r1:1,2 r2:1,2 r3:1,2 r4:1"), &terms);
    assert_eq!(found.iter().map(|f| f.anomaly).collect::<Vec<_>>(), [Anomaly::G0]);
    let names = ["process 0", "process 1", "process 2", "ww 1", "ww 2", "ww 3"];
    assert!(names.iter().all(|name| found[0].text.contains(name)), "{}", found[0].text);
    assert!(!found[0].text.contains("process 3"), "{}", found[0].text);
}

#[test]
fn cycles_of_writes_and_reads() {
    assert_eq!(anomalies(&["~a1:1 r2:2", "~a2:2 r1:1"], "r1:1 r2:2"), [Anomaly::G1c]);
    assert_eq!(anomalies(&["~a1:1 a2:1", "~a1:2 r2:1", "~r1:1,2 a2:2"], "r1:1,2 r2:1,2"), []);
    assert_eq!(anomalies(&["~a1:1 r3:3", "~r1:1 a2:2", "~r2:2 a3:3"], "r1:1 r2:2 r3:3"), [Anomaly::G1c]);
}

/// The sessions are serializable.
#[test]
fn cycles_with_somebody_who_did_not_see_it() {
    assert_eq!(anomalies(&["~r1: a2:2", "~r2: a1:1"], "r1:1 r2:2"), [Anomaly::G2], "write skew");
    assert_eq!(anomalies(&["~a1:1 a2:2", "~r1:1 r2:"], "r1:1 r2:2"), [Anomaly::G2], "read skew");
}

#[test]
fn stale_reads() {
    assert_eq!(anomalies(&["a1:1", "r1:"], "r1:1"), [Anomaly::Stale]);
    assert_eq!(anomalies(&["a1:1", "a1:2", "r1:1"], "r1:1,2"), [Anomaly::Stale]);
    // What was acknowledged stands behind what nobody knows of.
    assert_eq!(anomalies(&["~?a1:1", "a1:2", "r1:1"], "r1:1,2"), [Anomaly::Stale]);
    // What nobody had been told of may be missing.
    assert_eq!(anomalies(&["?a1:1", "r1:"], "r1:1"), []);
    // Its own appends don't count as seen.
    assert_eq!(anomalies(&["a1:1", "~r1: a1:2 r1:2"], "r1:2,1"), []);
}

#[test]
fn a_former_primary_in_a_documented_hole_may_be_stale_and_nobody_else() {
    let txns = on([(3, "a1:1"), (2, "r1:")]);
    let check = |hole: u32| {
        let in_hole = move |life: &Life, _: Micros| life.timeline == hole;
        let terms = Terms { excuse: Excuse::Confirmed(0), in_hole: &in_hole };
        check(&txns, &last("r1:1"), &terms).into_iter().map(|f| (f.anomaly, f.pardon)).collect::<Vec<_>>()
    };
    assert_eq!(check(2), [(Anomaly::Stale, Some(Pardon::FormerPrimary))]);
    assert_eq!(check(3), [(Anomaly::Stale, None)]);
}

#[test]
fn an_asynchronous_end_takes_what_was_read_along() {
    let txns = on([(2, "a1:1"), (2, "a1:2"), (2, "r1:1,2"), (3, "r1:1 a1:3")]);
    let end = Some(Pardon::AsyncEnd);
    assert_eq!(found(&txns, "r1:1,3", Excuse::Replaced(15)), [(Anomaly::Lost, end)]);
    // It was acknowledged long enough before, or nobody was replaced, or somebody had to confirm it.
    assert_eq!(found(&txns, "r1:1,3", Excuse::Replaced(25))[0], (Anomaly::Lost, None));
    assert_eq!(found(&txns, "r1:1,3", Excuse::Confirmed(0))[0], (Anomaly::Lost, None));
    let same = on([(2, "a1:1"), (2, "a1:2"), (2, "r1:1,2"), (2, "~r1:1 a1:3")]);
    assert_eq!(found(&same, "r1:1,3", Excuse::Replaced(15))[0], (Anomaly::Lost, None));
    // One that was told to nobody.
    let txns = on([(2, "a1:1"), (2, "?a1:2"), (2, "r1:1,2"), (3, "r1:1 a1:3")]);
    assert_eq!(found(&txns, "r1:1,3", Excuse::Replaced(15)), [(Anomaly::Vanished, end)]);
}

/// A new primary shows what it inherited; it is replaced in its turn, by one that had not got that.
#[test]
fn what_a_new_primary_showed_before_anything_was_confirmed() {
    let pardoned = [(Anomaly::Vanished, Some(Pardon::Unconfirmed))];
    let txns = on([(2, "a1:1"), (2, "?a1:2"), (3, "r1:1,2"), (4, "r1:1 a1:3")]);
    assert_eq!(found(&txns, "r1:1,3", Excuse::Confirmed(0)), pardoned);
    assert_eq!(found(&txns, "r1:1,3", Excuse::None)[0], (Anomaly::Vanished, None));
    // Something was confirmed there before: then this was, too.
    let txns = on([(2, "a1:1"), (2, "?a1:2"), (3, "a2:9"), (3, "r1:1,2"), (4, "r1:1 a1:3")]);
    assert_eq!(found(&txns, "r1:1,3 r2:9", Excuse::Confirmed(0))[0], (Anomaly::Vanished, None));
    // Its own commits it shows to nobody before they are confirmed.
    let txns = on([(2, "a1:1"), (3, "?a1:2"), (3, "r1:1,2"), (4, "r1:1 a1:3")]);
    assert_eq!(found(&txns, "r1:1,3", Excuse::Confirmed(0))[0], (Anomaly::Vanished, None));
    // It is primary still.
    let txns = on([(2, "a1:1"), (2, "?a1:2"), (3, "r1:1,2")]);
    assert_eq!(found(&txns, "r1:1", Excuse::Confirmed(0))[0], (Anomaly::Vanished, None));
    // The client was told.
    let txns = on([(2, "a1:1"), (2, "a1:2"), (3, "r1:1,2"), (4, "r1:1 a1:3")]);
    assert_eq!(found(&txns, "r1:1,3", Excuse::Confirmed(0))[0], (Anomaly::Lost, None));
}

#[test]
fn a_history_file_says_the_same() {
    let txns = history(&["a1:1", "!a1:2", "?a1:3", "r1:1 a2:4 r2:4"]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("history.jsonl");
    let at_the_end = last("r1:1 r2:4");
    write(&file, &txns, &at_the_end).unwrap();
    assert_eq!(read(&file).unwrap(), (txns, at_the_end));
    let text = std::fs::read_to_string(&file).unwrap();
    let line = r#"{"process":3,"type":"ok","f":"txn","value":[["r",1,[1]],["append",2,4],["r",2,[4]]],"time":39,"life":["s2",2,""]}"#;
    assert!(text.lines().any(|l| l == line), "{text}");
}
