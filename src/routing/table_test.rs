use super::*;

const STALE: Duration = Duration::from_secs(15);
const OWN: Bounds = Bounds { stale: STALE, hold: Duration::from_secs(20) };

fn backend(member: &str) -> Backend {
    Backend { member: member.parse().unwrap(), address: format!("{member}:5432") }
}

fn at(seconds: u64) -> Moment {
    Moment(Duration::from_secs(1_000 + seconds))
}

fn version(generation: u64, epoch: u64, revision: u64) -> Version {
    Version { generation: Generation(generation), epoch: Epoch(epoch), revision }
}

/// `primary` is a name, a name with `?` when not open, or empty.
fn heard(epoch: u64, revision: u64, primary: &str) -> Heard {
    let name = primary.trim_end_matches('?');
    Heard {
        cluster: ClusterId("c".into()),
        version: version(1, epoch, revision),
        open: !primary.ends_with('?'),
        draining: false,
        hibernated: None,
        primary: (!name.is_empty()).then(|| backend(name)),
        standbys: Vec::new(),
        confirmed_age: Duration::ZERO,
        bounds: None,
    }
}

fn with_standbys(mut heard: Heard, standbys: &[(&str, u64)]) -> Heard {
    heard.standbys = standbys
        .iter()
        .map(|(name, lag_bytes)| Standby {
            backend: backend(name.trim_end_matches('!')),
            streaming: !name.ends_with('!'),
            lag_bytes: *lag_bytes,
            confirms: name.starts_with('s'),
        })
        .collect();
    heard
}

fn reader(member: &str, lag_bytes: u64) -> Reader {
    Reader { backend: backend(member), lag_bytes, confirms: false }
}

fn table() -> Table {
    Table::new(3, OWN, Rules::default())
}

fn read_write(table: &Table, now: Moment) -> Result<String, Closed> {
    table.view().lead(Port::ReadWrite, 0, &[], now).map(|s| s.backend.member.to_string())
}

fn read_only(table: &Table, turn: usize, avoid: &[&str]) -> Result<String, Closed> {
    let avoid: Vec<MemberId> = avoid.iter().map(|m| m.parse().unwrap()).collect();
    table.view().lead(Port::ReadOnly, turn, &avoid, at(0)).map(|s| s.backend.member.to_string())
}

#[test]
fn nothing_heard_leads_nowhere() {
    assert_eq!(read_write(&table(), at(0)), Err(Closed::NothingHeard));
    assert!(!table().view().is_stale(at(1_000)), "what was never known can't go stale");
    assert_eq!(table().view().until_stale(at(0)), None);
}

#[test]
fn an_open_primary_is_led_to_and_a_closed_one_is_not() {
    let mut t = table();
    assert_eq!(t.hear(0, heard(1, 1, "a?"), at(0)), Verdict::Adopted);
    assert_eq!(read_write(&t, at(0)), Err(Closed::NotOpen("a".parse().unwrap())));
    assert_eq!(t.hear(0, heard(1, 2, "a"), at(0)), Verdict::Adopted);
    assert_eq!(read_write(&t, at(0)), Ok("a".into()));
    assert_eq!(t.hear(0, heard(1, 3, ""), at(0)), Verdict::Adopted);
    assert_eq!(read_write(&t, at(0)), Err(Closed::NoPrimary));
}

#[test]
fn a_lower_version_is_never_gone_back_to() {
    let mut t = table();
    t.hear(0, heard(7, 50, "b"), at(0));
    for older in [heard(6, 90, "a"), heard(7, 49, "a")] {
        assert_eq!(t.hear(1, older, at(1)), Verdict::Older);
        assert_eq!(read_write(&t, at(1)), Ok("b".into()));
    }
    let mut old_life = heard(99, 99, "a");
    old_life.version.generation = Generation(0);
    assert_eq!(t.hear(1, old_life, at(1)), Verdict::Older);
    let mut new_life = heard(1, 1, "c");
    new_life.version.generation = Generation(2);
    assert_eq!(t.hear(1, new_life, at(1)), Verdict::Adopted);
    assert_eq!(read_write(&t, at(1)), Ok("c".into()));
}

#[test]
fn an_older_state_confirms_nothing() {
    let mut t = table();
    t.hear(0, heard(7, 50, "b"), at(0));
    t.hear(1, heard(6, 40, "a"), at(14));
    assert!(t.view().is_stale(at(16)));
}

#[test]
fn the_managers_doubt_counts_from_its_own_last_confirmation() {
    let mut t = table();
    t.hear(0, Heard { confirmed_age: Duration::from_secs(10), ..heard(1, 1, "a") }, at(0));
    assert_eq!(t.view().until_stale(at(0)), Some(Duration::from_secs(5)));
    assert!(!t.view().is_stale(at(5)));
    assert!(t.view().is_stale(at(6)));
    assert_eq!(read_write(&t, at(6)), Err(Closed::Stale(Duration::from_secs(16))));
    // A manager that has contact brings it back, one that has not does not.
    t.hear(1, Heard { confirmed_age: Duration::from_secs(17), ..heard(1, 1, "a") }, at(6));
    assert!(t.view().is_stale(at(6)));
    t.hear(2, heard(1, 1, "a"), at(6));
    assert_eq!(read_write(&t, at(6)), Ok("a".into()));
}

#[test]
fn a_newer_state_of_a_manager_without_contact_is_taken_and_its_age_too() {
    let mut t = table();
    t.hear(0, heard(1, 1, "a"), at(0));
    t.hear(1, Heard { confirmed_age: Duration::from_secs(20), ..heard(2, 2, "b") }, at(1));
    assert!(t.view().is_stale(at(1)), "epoch 1 was confirmed a second ago, epoch 2 was not");
}

#[test]
fn committed_timings_count_for_as_long_as_there_are_any() {
    let shorter = Bounds { stale: Duration::from_secs(10), hold: Duration::from_secs(8) };
    let mut t = table();
    assert_eq!(t.view().bounds, OWN);
    t.hear(0, Heard { bounds: Some(shorter), ..heard(1, 2, "a") }, at(0));
    assert_eq!((t.view().bounds, t.view().is_stale(at(11))), (shorter, true));
    // An older word changes nothing.
    t.hear(1, heard(1, 1, "a"), at(1));
    assert_eq!(t.view().bounds, shorter);
    t.hear(1, heard(1, 3, "a"), at(1));
    assert_eq!((t.view().bounds, t.view().is_stale(at(12))), (OWN, false));
}

#[test]
fn an_age_longer_than_the_hosts_uptime_is_stale_not_a_panic() {
    let mut t = table();
    t.hear(0, Heard { confirmed_age: Duration::from_millis(u64::MAX), ..heard(1, 1, "a") }, at(0));
    assert!(t.view().is_stale(at(0)));
}

#[test]
fn another_cluster_and_one_not_yet_founded_are_ignored() {
    let mut t = table();
    assert_eq!(t.hear(0, Heard { cluster: ClusterId::default(), ..heard(0, 0, "") }, at(0)), Verdict::BeforeGenesis);
    t.hear(0, heard(1, 1, "a"), at(0));
    let other = Heard { cluster: ClusterId("d".into()), ..heard(9, 9, "x") };
    assert_eq!(t.hear(1, other, at(0)), Verdict::OtherCluster);
    assert_eq!(read_write(&t, at(0)), Ok("a".into()));
}

#[test]
fn a_refusal_says_what_was_missing() {
    let mut t = table();
    let held = Duration::from_millis(20_040);
    let refusal = |t: &Table, port, now| t.view().refusal(port, held, now);
    let unknown = "no manager has told this router the state of the cluster yet: held 20.0 s";
    assert_eq!(refusal(&t, Port::ReadWrite, at(0)), unknown);
    t.hear(0, heard(4, 1, "a?"), at(0));
    let closed = "the cluster has no open primary (epoch 4): held 20.0 s";
    assert_eq!(refusal(&t, Port::ReadWrite, at(0)), closed);
    assert_eq!(refusal(&t, Port::ReadOnly, at(0)), "no member takes read-only sessions (epoch 4): held 20.0 s");
    let stale = "the state known to this router is stale: no manager has confirmed it for 16.0 s: held 20.0 s";
    assert_eq!(refusal(&t, Port::ReadWrite, at(16)), stale);
}

fn session(t: &Table, port: Port) -> Stamp {
    t.view().lead(port, 0, &[], at(0)).unwrap()
}

#[test]
fn sessions_end_with_the_epoch_the_generation_or_the_primary() {
    let start = || {
        let mut t = table();
        t.hear(0, with_standbys(heard(5, 10, "a"), &[("b", 0)]), at(0));
        t
    };
    // (what comes, cut to the primary, cut to the standby)
    let superseded = Some(Cut::Superseded);
    let mut new_life = heard(5, 10, "a");
    new_life.version.generation = Generation(2);
    let cases = [
        (heard(5, 11, "a"), None, None),
        (heard(5, 11, "a?"), None, None), // restart in place, or the hold of a switchover
        (heard(6, 11, "b?"), superseded, None),
        (heard(6, 11, "a"), superseded, None), // the same member again, and yet a new primary
        (heard(5, 11, "b"), superseded, None),
        (heard(5, 11, ""), superseded, None),
        (new_life, superseded, superseded),
    ];
    for (next, to_primary, to_standby) in cases {
        let mut t = start();
        let (writer, reader) = (session(&t, Port::ReadWrite), session(&t, Port::ReadOnly));
        let text = format!("{next:?}");
        t.hear(0, next, at(1));
        assert_eq!(t.view().cut(&writer, at(1)), to_primary, "{text}");
        assert_eq!(t.view().cut(&reader, at(1)), to_standby, "{text}");
    }
}

#[test]
fn every_session_ends_when_the_state_goes_stale() {
    let mut t = table();
    t.hear(0, with_standbys(heard(5, 10, "a"), &[("b", 0)]), at(0));
    for stamp in [session(&t, Port::ReadWrite), session(&t, Port::ReadOnly)] {
        assert_eq!(t.view().cut(&stamp, at(15)), None);
        assert_eq!(t.view().cut(&stamp, at(16)), Some(Cut::Stale));
    }
}

#[test]
fn a_read_only_session_on_the_primary_ends_with_its_epoch() {
    let mut t = table();
    t.hear(0, heard(5, 10, "a"), at(0));
    let stamp = session(&t, Port::ReadOnly);
    assert_eq!(stamp.role, Role::Primary);
    t.hear(0, heard(6, 11, "b"), at(0));
    assert_eq!(t.view().cut(&stamp, at(0)), Some(Cut::Superseded));
}

#[test]
fn readers_take_turns_among_the_standbys_that_are_near_the_best() {
    let mut t = table();
    let far = SHARED_LAG_BYTES + 101;
    t.hear(0, with_standbys(heard(1, 1, "a"), &[("d", far), ("c", 100), ("b", SHARED_LAG_BYTES), ("e!", 0)]), at(0));
    let turns: Vec<String> = (0..4).map(|turn| read_only(&t, turn, &[]).unwrap()).collect();
    assert_eq!(turns, ["b", "c", "b", "c"]);
    assert_eq!(read_only(&t, 0, &["b", "c"]), Ok("d".into()), "far behind is better than the primary");
    assert_eq!(read_only(&t, 0, &["b", "c", "d"]), Ok("a".into()));
    assert_eq!(read_only(&t, 0, &["a", "b", "c", "d"]), Err(Closed::AllTried));
}

#[test]
fn readers_fall_to_the_primary_and_wait_when_it_is_closed() {
    let mut t = table();
    t.hear(0, with_standbys(heard(1, 1, "a"), &[("b!", 0)]), at(0));
    assert_eq!(read_only(&t, 0, &[]), Ok("a".into()));
    t.hear(0, with_standbys(heard(1, 2, "a?"), &[("b!", 0)]), at(0));
    assert_eq!(read_only(&t, 0, &[]), Err(Closed::NotOpen("a".parse().unwrap())));
    t.hear(0, with_standbys(heard(1, 3, "a?"), &[("b", 0)]), at(0));
    assert_eq!(read_only(&t, 0, &[]), Ok("b".into()), "a standby reads on while the primary is closed");
}

#[test]
fn a_manager_that_knows_no_lag_leaves_the_standbys_to_the_others() {
    let mut t = table();
    t.hear(0, with_standbys(heard(1, 1, "a"), &[("b", 7)]), at(0));
    t.hear(1, heard(1, 1, "a"), at(0));
    t.hear(2, with_standbys(heard(1, 1, "a"), &[("b", 9), ("a", 0)]), at(0));
    assert_eq!(t.view().standbys, [reader("b", 9)], "the worse lag counts, and the primary is no standby");
    t.lose(2);
    t.hear(1, heard(1, 1, "a"), at(0));
    assert_eq!(t.view().standbys, [reader("b", 7)]);
    t.lose(0);
    assert_eq!((t.followed(), t.view().standbys.len()), (1, 1), "until another speaks");
    t.hear(1, heard(1, 1, "a"), at(0));
    assert_eq!(t.view().standbys, []);
}

#[test]
fn the_last_manager_lost_leaves_the_state_as_it_was() {
    let mut t = table();
    t.hear(0, with_standbys(heard(1, 1, "a"), &[("b", 7)]), at(0));
    t.lose(0);
    assert_eq!(read_write(&t, at(15)), Ok("a".into()));
    assert_eq!(t.view().standbys, [reader("b", 7)]);
}

proptest::proptest! {
    /// Whatever order the messages of three managers arrive in, the version never
    /// falls, and no session to a primary survives a change of generation or epoch.
    #[test]
    fn the_version_never_falls(messages in proptest::collection::vec((0usize..3, 0u64..3, 0u64..4, 0u64..4), 1..40)) {
        let mut t = table();
        let mut stamps: Vec<Stamp> = Vec::new();
        for (source, generation, epoch, revision) in messages {
            let before = t.view().version;
            let mut message = heard(epoch, revision, ["a", "b", "c", "a"][usize::try_from(epoch).unwrap()]);
            message.version.generation = Generation(generation);
            t.hear(source, message, at(0));
            proptest::prop_assert!(t.view().version >= before);
            stamps.retain(|s| t.view().cut(s, at(0)).is_none());
            proptest::prop_assert!(stamps.iter().all(|s| (s.generation, s.epoch) == t.view().epoch()));
            stamps.extend(t.view().lead(Port::ReadWrite, 0, &[], at(0)));
        }
    }
}

fn with_rules(rules: Rules, standbys: &[(&str, u64)]) -> Table {
    let mut table = Table::new(3, OWN, rules);
    table.hear(0, with_standbys(heard(1, 1, "a"), standbys), at(0));
    table
}

#[test]
fn a_standby_too_far_behind_or_without_weight_takes_no_session_that_only_reads() {
    let rules = Rules { max_lag: Some(100), weights: [("c".parse().unwrap(), 0)].into(), primary_too: true };
    let t = with_rules(rules.clone(), &[("b", 101), ("c", 0), ("d", 100)]);
    assert!((0..9).all(|turn| read_only(&t, turn, &[]).unwrap() == "d"));
    let t = with_rules(rules.clone(), &[("b", 101), ("c", 0)]);
    assert_eq!(read_only(&t, 0, &[]), Ok("a".into()), "then the primary takes them");
    let t = with_rules(Rules { primary_too: false, ..rules.clone() }, &[("b", 101), ("c", 0)]);
    assert_eq!(read_only(&t, 0, &[]), Err(Closed::NoStandby), "or nobody");
    let t = with_rules(Rules { primary_too: false, ..rules }, &[("d", 0)]);
    assert_eq!(read_only(&t, 0, &["d"]), Err(Closed::AllTried));
}

#[test]
fn sessions_that_only_read_are_shared_by_weight() {
    let weights = [("b".parse().unwrap(), 300), ("c".parse().unwrap(), 100)].into();
    let t = with_rules(Rules { weights, ..Rules::default() }, &[("b", 0), ("c", 0)]);
    let turns: String = (0..400).map(|turn| read_only(&t, turn, &[]).unwrap()).collect();
    let of_c = turns.matches('c').count();
    assert!((98..=102).contains(&of_c), "{of_c} of 400");
    assert!(!turns.contains("bbbbb") && !turns.contains("cc"), "mixed: {turns}");
}

#[test]
fn the_sync_only_port_leads_to_who_confirms_and_to_nobody_else() {
    let lead = |t: &Table, turn| t.view().lead(Port::SyncOnly, turn, &[], at(0)).map(|s| s.backend.member.to_string());
    let t = with_rules(Rules::default(), &[("b", 0), ("s1", 5), ("s2", 0)]);
    assert_eq!([0, 1, 2].map(|turn| lead(&t, turn).unwrap()), ["s1", "s2", "s1"]);
    let t = with_rules(Rules::default(), &[("b", 0)]);
    assert_eq!(lead(&t, 0), Err(Closed::NoStandby));
    assert_eq!(
        t.view().refusal(Port::SyncOnly, Duration::from_secs(2), at(0)),
        "no member takes sync-only sessions (epoch 1): held 2.0 s"
    );
}

#[test]
fn only_sessions_of_a_primary_that_is_about_to_stop_are_to_end() {
    let mut t = table();
    t.hear(0, with_standbys(heard(5, 10, "a"), &[("b", 0)]), at(0));
    let primary = t.view().lead(Port::ReadWrite, 0, &[], at(0)).unwrap();
    let reader = t.view().lead(Port::ReadOnly, 0, &[], at(0)).unwrap();
    assert!(!t.view().drains(&primary));
    t.hear(0, Heard { open: false, draining: true, ..with_standbys(heard(5, 11, "a"), &[("b", 0)]) }, at(0));
    assert!(t.view().drains(&primary) && !t.view().drains(&reader));
    assert_eq!(t.view().cut(&primary, at(0)), None, "not cut");
    t.hear(0, with_standbys(heard(5, 12, "a"), &[("b", 0)]), at(0));
    assert!(!t.view().drains(&primary), "it goes on");
}

#[test]
fn nobody_waits_for_a_cluster_that_was_stopped_by_command() {
    let mut t = table();
    let hibernated = Some("the cluster is hibernated by kim: move".to_owned());
    t.hear(0, Heard { open: false, primary: None, hibernated, ..heard(5, 11, "a") }, at(0));
    let view = t.view();
    assert_eq!(view.hold(), Duration::ZERO);
    for port in [Port::ReadWrite, Port::ReadOnly, Port::SyncOnly] {
        assert!(matches!(view.lead(port, 0, &[], at(1)), Err(Closed::Hibernated(_))));
        let said = view.refusal(port, Duration::ZERO, at(1));
        assert_eq!(said, "the cluster is hibernated by kim: move: `matriarch start --all` wakes it");
    }
    t.hear(0, heard(6, 12, "a"), at(2));
    assert!(t.view().lead(Port::ReadWrite, 0, &[], at(2)).is_ok() && !t.view().hold().is_zero());
}
