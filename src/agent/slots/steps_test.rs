#![allow(clippy::unwrap_used)]
use super::*;

fn slot(name: &str, active_pid: Option<u32>) -> SlotFound {
    let reply = active_pid.map(|_| "12:00".to_owned());
    let name = name.to_owned();
    SlotFound {
        name,
        ours: true,
        physical: true,
        active_pid,
        reserves: true,
        restart: 1_000,
        bytes: 100 << 20,
        reply,
        ..SlotFound::default()
    }
}

fn names(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

fn found(in_recovery: bool, slots: Vec<SlotFound>) -> SlotsFound {
    SlotsFound { in_recovery, slots, ..SlotsFound::default() }
}

fn wishes(permanent: &str, major: u32) -> Wishes {
    Wishes {
        members: names(&["matriarch_n2", "matriarch_n3"]),
        permanent: permanent.parse().unwrap(),
        possible_primary: true,
        version: PostgresVersion(major * 10_000),
        ..Wishes::default()
    }
}

fn steps(in_recovery: bool, slots: Vec<SlotFound>, silent: &[u32]) -> Vec<Step> {
    due(&found(in_recovery, slots), &wishes("", 15), &silent.iter().copied().collect())
}

#[test]
fn every_member_has_a_slot_and_nobody_else_has() {
    let gone = slot("matriarch_n9", None);
    assert_eq!(
        steps(false, vec![slot("matriarch_n2", Some(7)), gone.clone()], &[]),
        [Step::Drop("matriarch_n9".into()), Step::Create("matriarch_n3".into())]
    );
    let streams = SlotFound { active_pid: Some(9), ..gone.clone() };
    let logical = SlotFound { physical: false, ..gone };
    let both = || vec![slot("matriarch_n2", None), slot("matriarch_n3", None)];
    for one in [streams, logical] {
        assert_eq!(steps(false, [both(), vec![one.clone()]].concat(), &[]), [], "{one:?}");
    }
}

#[test]
fn a_standby_keeps_nothing_back_for_nobody_and_a_lost_slot_is_made_anew() {
    let idle = || vec![slot("matriarch_n2", None), slot("matriarch_n3", Some(3))];
    assert_eq!(steps(false, idle(), &[]), []);
    assert_eq!(steps(true, idle(), &[]), [Step::Renew("matriarch_n2".into())]);
    let fresh = SlotFound { reserves: false, ..slot("matriarch_n2", None) };
    assert_eq!(steps(true, vec![fresh, slot("matriarch_n3", None)], &[]), [Step::Renew("matriarch_n3".into())]);
    let lost = SlotFound { lost: true, reserves: false, ..slot("matriarch_n2", None) };
    assert_eq!(steps(false, vec![lost, slot("matriarch_n3", None)], &[]), [Step::Renew("matriarch_n2".into())]);
}

#[test]
fn what_holds_no_wal_back_is_not_counted_and_what_is_nobodys_is_left_alone_while_there_is_room() {
    let theirs = SlotFound { ours: false, ..slot("theirs", None) };
    let lost = SlotFound { lost: true, ..slot("matriarch_n2", None) };
    let fresh = SlotFound { reserves: false, ..slot("matriarch_n3", None) };
    let all = vec![theirs, lost, fresh];
    assert_eq!(steps(false, all.clone(), &[]), [Step::Renew("matriarch_n2".into())]);
    let found = SlotsFound { slots: all, limit_mib: 51, anyway_mib: 51, ..SlotsFound::default() };
    let kept = kept(&found, &wishes("", 15));
    assert_eq!((kept.limit, kept.anyway, kept.slots.len()), (Some(51 << 20), 51 << 20, 1));
    let given_up = |whose| for_room(&kept, Some(whose));
    let theirs = Step::GiveUp { slot: "theirs".into(), of_member: false, bytes: 100 << 20 };
    assert_eq!((given_up(SlotsYield::All), given_up(SlotsYield::Members)), (vec![theirs], vec![]));
}

#[test]
fn the_slot_of_a_silent_standby_is_freed_and_one_that_answers_keeps_it() {
    let begun = Instant::now();
    let after = |seconds| begun + Duration::from_secs(seconds);
    let limit = Duration::from_secs(5);
    let seen = |pid, reply: &str| SlotsFound {
        in_recovery: false,
        slots: vec![SlotFound { reply: Some(reply.to_owned()), ..slot("matriarch_n2", Some(pid)) }],
        ..SlotsFound::default()
    };
    let mut heard = Heard::default();
    assert!(heard.silent(&seen(7, "a"), begun, limit).is_empty());
    assert!(heard.silent(&seen(7, "b"), after(4), limit).is_empty());
    assert!(heard.silent(&seen(7, "b"), after(8), limit).is_empty());
    assert_eq!(heard.silent(&seen(7, "b"), after(9), limit), BTreeSet::from([7]));
    assert!(heard.silent(&seen(8, "b"), after(10), limit).is_empty(), "another connection");
    let both = vec![slot("matriarch_n2", Some(7)), slot("matriarch_n3", Some(8))];
    let theirs = SlotFound { ours: false, ..slot("theirs", Some(9)) };
    let all = [both, vec![theirs]].concat();
    assert_eq!(steps(false, all, &[7, 9]), [Step::Free { slot: "matriarch_n2".into(), pid: 7 }]);
}

fn theirs(name: &str) -> SlotFound {
    SlotFound { ours: false, ..slot(name, None) }
}

fn logical(name: &str) -> SlotFound {
    SlotFound {
        physical: false,
        database: Some("app".into()),
        plugin: Some("pgoutput".into()),
        failover: true,
        ..theirs(name)
    }
}

const BOTH: &str = "backup,audit:app:pgoutput";

#[test]
fn a_primary_has_every_permanent_slot_that_its_version_can_have() {
    let made = |wishes: &Wishes, slots| {
        let steps = permanent(&found(false, slots), None, wishes, &names(&[]));
        let name = |step: &Step| match step {
            Step::CreatePermanent(slot) => slot.name.clone(),
            other => panic!("{other:?}"),
        };
        Vec::from_iter(steps.iter().map(name))
    };
    assert_eq!(made(&wishes(BOTH, 17), vec![]), ["backup", "audit"]);
    assert_eq!(made(&wishes(BOTH, 16), vec![]), ["backup"]);
    assert_eq!(
        made(&wishes(BOTH, 17), vec![theirs("backup"), theirs("audit")]),
        [""; 0],
        "another of that name is not touched"
    );
    let nowhere = Wishes { possible_primary: false, ..wishes(BOTH, 17) };
    assert_eq!(made(&nowhere, vec![]), ["backup", "audit"], "whoever is primary has them");
}

#[test]
fn a_standby_has_a_copy_that_goes_where_the_primarys_slot_is_and_no_further() {
    let wishes = wishes(BOTH, 17);
    let primary = found(false, vec![SlotFound { restart: 2_000, ..theirs("backup") }, logical("audit")]);
    let due = |slots| permanent(&found(true, slots), Some(&primary), &wishes, &names(&["backup"]));
    let backup = wishes.permanent.get("backup").unwrap().clone();
    assert_eq!(due(vec![]), [Step::CreatePermanent(backup)], "PostgreSQL copies the logical one");
    let at = |restart| vec![SlotFound { restart, ..theirs("backup") }];
    assert_eq!(due(at(1_000)), [Step::Advance { slot: "backup".into(), to: Lsn(2_000) }]);
    assert_eq!((due(at(2_000)), due(at(3_000))), (vec![], vec![]), "WAL that is gone doesn't come back");
    for odd in [
        SlotFound { pins_rows: true, ..theirs("backup") },
        SlotFound { lost: true, ..theirs("backup") },
        SlotFound { reserves: false, restart: 0, ..theirs("backup") },
    ] {
        assert_eq!(due(vec![odd.clone()]), [Step::RenewCopy("backup".into())], "{odd:?}");
        assert_eq!(due(vec![SlotFound { active_pid: Some(5), ..odd }]), [], "somebody uses it");
    }
    let unheard = permanent(&found(true, at(1_000)), None, &wishes, &names(&[]));
    assert_eq!(unheard, [], "nobody knows where the primary's is");
    let lost = found(false, vec![SlotFound { lost: true, ..theirs("backup") }]);
    assert_eq!(permanent(&found(true, vec![]), Some(&lost), &wishes, &names(&[])), []);
}

#[test]
fn a_copy_that_nobody_needs_goes_and_what_a_user_has_made_stays() {
    let primary = found(false, vec![theirs("backup"), logical("audit"), logical("own")]);
    let due = |wishes: &Wishes, slots| permanent(&found(true, slots), Some(&primary), wishes, &names(&["backup"]));
    let gone = [Step::Drop("backup".into())];
    assert_eq!(due(&wishes("", 17), vec![theirs("backup"), theirs("by_hand")]), gone);
    let nowhere = Wishes { possible_primary: false, ..wishes(BOTH, 17) };
    assert_eq!(due(&nowhere, vec![theirs("backup")]), gone, "it is never primary");
    assert_eq!(due(&wishes("", 17), vec![SlotFound { active_pid: Some(5), ..theirs("backup") }]), []);
    let ignored = Wishes { ignored: "name=backup".parse().unwrap(), ..wishes("", 17) };
    assert_eq!(due(&ignored, vec![theirs("backup")]), []);
    assert_eq!(permanent(&found(false, vec![theirs("backup")]), None, &wishes("", 17), &names(&["backup"])), []);
}

#[test]
fn what_a_former_primary_has_of_a_synced_slot_goes_for_it_keeps_postgresql_from_copying_any() {
    let primary = found(false, vec![logical("audit"), logical("own")]);
    let due = |wishes: &Wishes, slots| permanent(&found(true, slots), Some(&primary), wishes, &names(&[]));
    let left = || vec![logical("audit"), logical("own"), logical("unknown")];
    assert_eq!(due(&wishes(BOTH, 17), left()), [Step::Drop("audit".into()), Step::Drop("own".into())]);
    assert_eq!(due(&wishes("backup", 17), left()), [], "nothing is synced");
    let ignored = Wishes { ignored: "name=own".parse().unwrap(), ..wishes(BOTH, 17) };
    assert_eq!(due(&ignored, left()), [Step::Drop("audit".into())]);
    let synced = |name: &str| SlotFound { synced: true, ..logical(name) };
    assert_eq!(due(&wishes(BOTH, 17), vec![synced("audit"), SlotFound { failover: false, ..logical("own") }]), []);
    assert_eq!(permanent(&found(true, left()), None, &wishes(BOTH, 17), &names(&[])), [], "nobody knows the primary's");
}

#[test]
fn what_keeps_a_slot_from_being_as_it_should_is_told() {
    let told = |in_recovery, slots, major| {
        let primary = found(false, vec![SlotFound { restart: 500, ..theirs("backup") }]);
        problems(&found(in_recovery, slots), Some(&primary).filter(|_| in_recovery), &wishes(BOTH, major))
    };
    assert_eq!(told(false, vec![theirs("backup"), logical("audit")], 17), [""; 0]);
    assert_eq!(told(true, vec![SlotFound { restart: 500, ..theirs("backup") }], 17), [""; 0]);
    for (in_recovery, slot, major, begins) in [
        (
            false,
            theirs("audit"),
            17,
            "permanent slot audit is there as another: physical, not logical, of database app and plugin pgoutput",
        ),
        (
            false,
            SlotFound { failover: false, ..logical("audit") },
            17,
            "permanent slot audit was not made for failover",
        ),
        (false, SlotFound { lost: true, ..theirs("backup") }, 17, "permanent slot backup has lost its WAL"),
        (true, theirs("backup"), 17, "permanent slot backup keeps WAL from 0/3E8 on, its reader is at 0/1F4 still"),
        (false, logical("matriarch_n2"), 17, "slot matriarch_n2 is a logical one and in the way of a member's"),
        (
            false,
            theirs("backup"),
            15,
            "permanent_slots: the slot audit is logical, and logical slots that survive a failover",
        ),
    ] {
        let told = told(in_recovery, vec![slot], major);
        assert!(told.len() == 1 && told[0].starts_with(begins), "{begins}: {told:?}");
    }
}

#[test]
fn a_subscriber_waits_for_the_standbys_that_stream_and_a_while_for_one_that_is_away() {
    let both = |two: Option<u32>, three: Option<u32>| {
        vec![slot("matriarch_n2", two), slot("matriarch_n3", three), theirs("backup")]
    };
    let (all, limit) = (names(&["matriarch_n2", "matriarch_n3"]), Duration::from_secs(10));
    let away = |two: u64, three: u64| -> BTreeMap<String, Duration> {
        all.iter().cloned().zip([two, three].map(Duration::from_secs)).collect()
    };
    let of = |in_recovery, slots, was: &BTreeSet<String>, away, least| {
        let wishes = Wishes { confirming: least, ..wishes(BOTH, 17) };
        confirming(&found(in_recovery, slots), was, &away, &wishes, limit)
    };
    let two = names(&["matriarch_n2"]);
    assert_eq!(
        of(true, both(None, None), &names(&[]), away(99, 99), 0),
        all,
        "whoever becomes primary begins with all"
    );
    assert_eq!(of(false, both(Some(1), None), &all, away(0, 9), 0), all);
    assert_eq!(of(false, both(Some(1), None), &all, away(0, 10), 0), two);
    assert_eq!(of(false, both(Some(1), None), &two, away(0, 3), 0), two, "it comes back when it streams");
    assert_eq!(of(false, both(Some(1), Some(2)), &two, away(0, 0), 0), all);
    assert_eq!(of(false, both(None, None), &all, away(20, 30), 0), names(&[]));
    assert_eq!(of(false, both(None, None), &all, away(20, 30), 1), two, "commits wait for one, so it does");
}

#[test]
fn a_logical_slot_that_was_there_once_is_not_made_anew() {
    let wished = wishes("audit:postgres:pgoutput", 17);
    let make = |in_recovery, slots: Vec<SlotFound>, logicals: &mut Logicals| {
        let found = SlotsFound { in_recovery, slots, ..SlotsFound::default() };
        let due = permanent(&found, None, &wished, &BTreeSet::new());
        logicals.without_those_that_were_lost(due, &found, &wished).len()
    };
    let audit = || SlotFound { physical: false, ours: false, ..slot("audit", None) };
    // It was wished for while this was a standby: the primary before had it.
    let mut successor = Logicals::default();
    make(true, vec![], &mut successor);
    assert_eq!(make(false, vec![], &mut successor), 0);
    assert_eq!(successor.problems().count(), 1);
    assert_eq!(make(false, vec![audit()], &mut successor), 0);
    assert_eq!(successor.problems().count(), 0);
    // One that is asked for later is made, once.
    let mut primary = Logicals { expected: Some(BTreeSet::new()), ..Logicals::default() };
    assert_eq!(make(false, vec![], &mut primary), 1);
    make(false, vec![audit()], &mut primary);
    assert_eq!(make(false, vec![], &mut primary), 0, "somebody dropped it");
}
