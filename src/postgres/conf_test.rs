use std::sync::LazyLock;

use std::collections::BTreeSet;

use super::*;
use crate::domain::{Least, SlotBudget};

static ME: LazyLock<MemberId> = LazyLock::new(|| "n-1".parse().unwrap());

fn settings<'a>(parameters: &'a BTreeMap<String, String>, hba: &'a [String]) -> Settings<'a> {
    Settings {
        listen_addresses: "127.0.0.1",
        port: 5433,
        socket_dir: "/run/m",
        superuser: "postgres",
        replication_user: "repl",
        passfile: "/var/lib/it's/pgpass",
        member: &ME,
        member_hosts: vec!["10.0.0.1", "10.0.0.2", "10.0.0.1", "db3", "fd00::1"],
        moved_hosts: &[],
        hba,
        parameters,
        archive: None,
        archive_alone: false,
        silence: Silence { replication: Duration::from_secs(10), tcp: Duration::from_secs(5) },
        delay: Duration::ZERO,
    }
}

#[test]
fn a_standby_is_behind_on_purpose_and_what_a_primary_is_made_of_is_not() {
    let parameters = BTreeMap::new();
    let delayed = Settings { delay: Duration::from_secs(5), ..settings(&parameters, &[]) };
    let role = ConfigRole::Standby { upstream: Some(upstream()), epoch: Epoch(7), generation: Generation(1) };
    let text = postgresql_conf(&delayed, &role);
    assert_eq!(value(&text, "recovery_min_apply_delay"), Some("'5000'"));
    let now = postgresql_conf(&settings(&parameters, &[]), &role);
    assert_eq!(other_delay(&text, Duration::ZERO), Some(now));
    assert_eq!(other_delay(&text, Duration::from_secs(5)), None);
    let line = delay_line(Duration::from_secs(5));
    let (older, late) = (text.replace(&line, ""), Duration::from_secs(5));
    assert_eq!(other_delay(&older, late), Some(format!("{older}{line}")), "of a version that had no such line");
    assert_eq!(other_delay(&older, Duration::ZERO), None);
    let dormant = postgresql_conf(&delayed, &ConfigRole::DormantPrimary);
    assert_eq!((value(&dormant, "recovery_min_apply_delay"), other_delay(&dormant, Duration::ZERO)), (None, None));
    assert_eq!(other_delay(&dormant, late), None, "a primary is not delayed");
}

fn upstream() -> Upstream {
    Upstream { member: "n2".parse().unwrap(), host: "10.0.0.2".into(), port: 5432 }
}

fn value<'a>(conf: &'a str, key: &str) -> Option<&'a str> {
    conf.lines().rev().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "))
}

#[test]
fn a_standby_follows_and_a_dormant_primary_does_not() {
    let parameters = BTreeMap::from([
        ("restore_command".to_owned(), "cp /a/%f %p".to_owned()),
        ("shared_buffers".to_owned(), "16MB".to_owned()),
        ("Wal_Keep_Size".to_owned(), "2GB".to_owned()),
        ("port".to_owned(), "1".to_owned()),
        ("evil\nport".to_owned(), "2".to_owned()),
    ]);
    let settings = settings(&parameters, &[]);
    let role = ConfigRole::Standby { upstream: Some(upstream()), epoch: Epoch(7), generation: Generation(1) };
    let conf = postgresql_conf(&settings, &role);
    let conninfo = value(&conf, "primary_conninfo").unwrap();
    assert!(conninfo.starts_with("'host=''10.0.0.2'' port=''5432'' user=''repl'' passfile="), "{conninfo}");
    assert!(conninfo.contains(r"''/var/lib/it\\''s/pgpass''"), "{conninfo}");
    assert!(conninfo.contains(" application_name=''n-1_g1e7'' "), "{conninfo}");
    assert_eq!(value(&conf, "primary_slot_name"), Some("'matriarch_n_1'"));
    assert_eq!(value(&conf, "max_slot_wal_keep_size"), Some("'2GB'"));
    assert_eq!(value(&conf, "port"), Some("'5433'"));
    assert_eq!(value(&conf, "restore_command"), Some("'cp /a/%f %p'"));
    assert_eq!(value(&conf, "recovery_target_timeline"), Some("'latest'"));
    assert!(!conf.contains("evil"));

    let conf = postgresql_conf(&settings, &ConfigRole::DormantPrimary);
    assert_eq!((value(&conf, "primary_conninfo"), value(&conf, "primary_slot_name")), (Some("''"), Some("''")));
    assert_eq!(value(&conf, "recovery_target_timeline"), Some("'current'"));
    assert_eq!(value(&conf, "restore_command"), None);
    assert_eq!(value(&conf, "synchronous_standby_names"), Some("'matriarch_placeholder'"));
    assert_eq!(value(&conf, "restart_after_crash"), Some("'off'"));
}

#[test]
fn other_timings_change_the_connection_of_a_standby_and_nothing_else() {
    let role = ConfigRole::Standby { upstream: Some(upstream()), epoch: Epoch(7), generation: Generation(1) };
    let parameters = BTreeMap::new();
    let was = settings(&parameters, &[]);
    let silence = Silence { replication: Duration::from_secs(30), tcp: Duration::from_millis(15_500) };
    let now = Settings { silence, ..was.clone() };
    let text = postgresql_conf(&was, &role);
    assert!(
        text.contains(
            "keepalives_idle=''2'' keepalives_interval=''1'' keepalives_count=''3'' tcp_user_timeout=''5000''"
        )
    );
    assert_eq!(other_conninfo(&text, silence), Some(postgresql_conf(&now, &role)));
    assert_eq!(other_conninfo(&text, was.silence), None);
    assert_eq!(other_conninfo(&postgresql_conf(&was, &ConfigRole::DormantPrimary), silence), None);
}

#[test]
fn an_idle_connection_is_given_up_in_the_time_of_a_busy_one() {
    for (tcp, expected) in [(1_000, (1, 1)), (3_000, (1, 1)), (5_000, (2, 1)), (15_000, (6, 3)), (30_000, (12, 6))] {
        let silence = Silence { replication: Duration::ZERO, tcp: Duration::from_millis(tcp) };
        assert_eq!(silence.probes(), expected, "{tcp} ms");
    }
}

#[test]
fn the_file_a_postmaster_is_started_with() {
    let silence = Silence { replication: Duration::from_secs(10), tcp: Duration::from_secs(5) };
    expect_test::expect![[r#"
        # Written by matriarch; the postmaster is started with this file.
        tcp_keepalives_idle = 2
        tcp_keepalives_interval = 1
        tcp_keepalives_count = 3
        include '/data/postgresql.conf'
        max_slot_wal_keep_size = 51MB # 20%
        wal_keep_size = 12MB
        recovery_target_timeline = 'latest'
        wal_sender_timeout = 10000
        wal_receiver_timeout = 10000
        include_if_exists '/run/live.conf'
    "#]]
    .assert_eq(&runtime_conf(
        silence,
        &budget_lines(&BTreeMap::new(), Some(SlotBudget { set: Least::Percent(20), mib: 51 })),
        "/data/postgresql.conf",
        "/run/live.conf",
    ));
}

#[test]
fn slots_are_synced_and_a_users_own_word_goes_before() {
    let confirming = BTreeSet::from(["matriarch_n2".to_owned(), "matriarch_n3".to_owned()]);
    let synced = SyncedSlots { confirming };
    let none = BTreeMap::new();
    assert_eq!(synced_lines(&none, None), "");
    expect_test::expect![[r#"
        sync_replication_slots = 'on'
        hot_standby_feedback = 'on'
        synchronized_standby_slots = 'matriarch_n2,matriarch_n3'
    "#]]
    .assert_eq(&synced_lines(&none, Some(&synced)));
    let own = ["hot_standby_feedback", "Synchronized_Standby_Slots"].map(|key| (key.to_owned(), "off".to_owned()));
    assert_eq!(synced_lines(&own.into(), Some(&synced)), "sync_replication_slots = 'on'\n");
}

#[test]
fn wal_of_logical_slots_is_written_where_the_user_says_so() {
    let level = |parameters: &BTreeMap<String, String>| {
        let conf = postgresql_conf(&settings(parameters, &[]), &ConfigRole::DormantPrimary);
        value(&conf, "wal_level").unwrap().to_owned()
    };
    assert_eq!(level(&BTreeMap::new()), "'replica'");
    assert_eq!(level(&BTreeMap::from([("wal_level".to_owned(), "logical".to_owned())])), "'logical'");
}

#[test]
fn the_budget_of_slots_is_read_as_it_is_written_and_a_users_own_goes_before() {
    let none = BTreeMap::new();
    for set in [Least::Percent(20), Least::Bytes(3 << 30), Least::Bytes(0)] {
        let budget = SlotBudget { set, mib: 3_000 };
        let lines = budget_lines(&none, Some(budget));
        assert!(!lines.contains("wal_keep_size = 512"), "{lines}");
        assert_eq!(budget_in(&format!("port = 1\n{lines}include x\n")), Some(budget));
    }
    assert_eq!(budget_in("max_slot_wal_keep_size = 5GB\n"), None);
    let budget = Some(SlotBudget { set: Least::Percent(20), mib: 51 });
    let of = |key: &str| budget_lines(&BTreeMap::from([(key.to_owned(), "1GB".to_owned())]), budget);
    assert_eq!(of("Max_Slot_Wal_Keep_Size"), "");
    assert_eq!(of("wal_keep_size"), "max_slot_wal_keep_size = 51MB # 20%\n");
    assert_eq!(budget_lines(&none, None), "");
}

#[test]
fn every_setting_that_is_written_and_not_a_default_is_owned() {
    let parameters = BTreeMap::new();
    let conf = postgresql_conf(&settings(&parameters, &[]), &ConfigRole::DormantPrimary);
    let keys = conf.lines().filter_map(|l| l.split_once(" = ")).map(|(key, _)| key);
    let free: Vec<&str> = keys.filter(|key| !owned_key(key)).collect();
    assert_eq!(free, ["wal_keep_size", "max_slot_wal_keep_size"]);
    assert!(owned_key(" Primary_ConnInfo"));
    assert!(!owned_key("shared_buffers"));
}

#[test]
fn hba_names_each_member_once_and_ends_with_the_users_lines() {
    let (parameters, hba) = (BTreeMap::new(), ["host all all 0.0.0.0/0 scram-sha-256".to_owned()]);
    expect_test::expect![[r#"
        # Written by matriarch; further lines come from its configuration file.
        local all "postgres" scram-sha-256
        host replication "repl" 10.0.0.1/32 scram-sha-256
        host postgres "repl" 10.0.0.1/32 scram-sha-256
        host replication "repl" 10.0.0.2/32 scram-sha-256
        host postgres "repl" 10.0.0.2/32 scram-sha-256
        host replication "repl" db3 scram-sha-256
        host postgres "repl" db3 scram-sha-256
        host replication "repl" fd00::1/128 scram-sha-256
        host postgres "repl" fd00::1/128 scram-sha-256
        host all all 0.0.0.0/0 scram-sha-256
    "#]]
    .assert_eq(&pg_hba(&settings(&parameters, &hba), false));
    let moved = ["10.0.0.2".to_owned(), "db9".to_owned()];
    let settings = Settings { moved_hosts: &moved, ..settings(&parameters, &hba) };
    let text = pg_hba(&settings, false);
    assert!(text.contains("host replication \"repl\" db9 scram-sha-256\n"), "who was moved comes from there: {text}");
    assert_eq!(text.matches("10.0.0.2/32").count(), 2, "{text}");
}

#[test]
fn quoting_survives_what_a_password_or_a_path_may_contain() {
    assert_eq!(quote(r"a'b\c"), r"'a''b\\c'");
    assert_eq!(quote("a\nport = 1"), r"'a\nport = 1'");
    assert_eq!(conninfo(&[("host", r"a'b\c")]), r"host='a\'b\\c'");
    let line = passfile([("fd00::1", 5432)].into_iter(), "re:pl", r"p\w:d");
    assert_eq!(line, "fd00\\:\\:1:5432:*:re\\:pl:p\\\\w\\:d\n");
    assert_eq!(sql_literal("it's"), "'it''s'");
    assert_eq!(sql_identifier("a\"b"), "\"a\"\"b\"");
}

#[test]
fn a_standby_is_not_started_with_less_than_its_primary_had() {
    let parameters = BTreeMap::from([("Max_Connections".to_owned(), "30".to_owned())]);
    let floors = [("max_connections", 100), ("max_wal_senders", 10), ("max_prepared_transactions", 5)];
    let raised = raised_to(&settings(&parameters, &[]), &floors);
    assert_eq!(raised, [("max_connections", 100), ("max_prepared_transactions", 5)]);
}

#[test]
fn alter_system_can_not_take_our_settings() {
    let text = "# Do not edit\nsynchronous_standby_names = ''\nwork_mem = '8MB'\nPORT='1'\n";
    assert_eq!(without_owned(text).unwrap(), "# Do not edit\nwork_mem = '8MB'\n");
    assert_eq!(without_owned("# Do not edit\nwork_mem = '8MB'\n"), None);
}

#[test]
fn what_is_set_of_the_archive_goes_with_the_role_and_before_the_users_own() {
    let parameters = BTreeMap::from([("archive_command".to_owned(), "cp own".to_owned())]);
    let archive = Archive { put: Some("m wal put".into()), get: Some("m wal get".into()), library: false };
    let settings = Settings { archive: Some(archive.clone()), ..settings(&parameters, &[]) };
    let standby = |upstream| ConfigRole::Standby { upstream, epoch: Epoch(7), generation: Generation(1) };
    let of = |conf: &str| ARCHIVE.map(|key| value(conf, key).unwrap_or_default().to_owned());
    let follows = postgresql_conf(&settings, &standby(Some(upstream())));
    assert_eq!(of(&follows), ["'on'", "'m wal put'", "'m wal get'"]);
    assert_eq!(of(&postgresql_conf(&settings, &standby(None)))[2], "''", "severed, it takes nothing");
    assert_eq!(of(&postgresql_conf(&settings, &ConfigRole::DormantPrimary))[2], "''");
    assert!(follows_somebody(&follows) && !follows_somebody(&postgresql_conf(&settings, &standby(None))));
    // Switched off while it runs: no file waits for a command that isn't there.
    let off = other_archive(&follows, &Archive { put: None, get: None, library: false }, true);
    assert_eq!(of(&off), ["'off'", "'true'", "''"]);
    assert_eq!(other_archive(&off, &archive, true).lines().count(), follows.lines().count());
    assert_eq!(value(&off, "primary_conninfo"), value(&follows, "primary_conninfo"));
    // A library archives by itself, and what is restored is held to the history all the same.
    let library = Archive { put: None, library: true, ..archive };
    assert_eq!(library.settings(true), [("restore_command", "m wal get")]);
    let settings = Settings { archive: Some(library), ..settings };
    let follows = postgresql_conf(&settings, &standby(Some(upstream())));
    assert_eq!(of(&follows), ["", "'cp own'", "'m wal get'"]);
    assert_eq!(of(&postgresql_conf(&settings, &standby(None)))[2], "''");
    assert_eq!(without_owned("restore_command = 'x'\nwork_mem = '1MB'\n").as_deref(), Some("work_mem = '1MB'\n"));
}
