//! Users' slots that survive a failover: a reader that goes on where it was, from whoever is primary then.

use std::collections::BTreeSet;

use super::*;

/// The servers from which logical slots are offered.
const LOGICAL: u32 = 170_000;

async fn set(host: &mut Host, version: u64, settings: &[(&str, &str)]) {
    let values = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let briefing = Some(v1::Briefing { settings: Some(v1::Settings { version, values }), ..Default::default() });
    host.agent.brief(v1::BriefRequest { to: host.to(0), briefing }).await.unwrap();
}

async fn text(host: &Host, sql: &str) -> Vec<String> {
    let rows = host.client().await.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| row.get::<_, Option<String>>(0).unwrap_or_default()).collect()
}

async fn until_text(host: &Host, sql: &str, wanted: &[&str]) {
    let until = Instant::now() + DEADLINE;
    loop {
        let now = text(host, sql).await;
        if now == wanted {
            return;
        }
        assert!(Instant::now() < until, "{sql}: {now:?}, not {wanted:?}; {}", host.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Receives all WAL up to `end` into a directory, from where it left off there.
fn receive(host: &Host, slot: &str, dir: &Path, end: &str) {
    let mut command = Command::new(host.local().postgresql.bin_dir.join("pg_receivewal"));
    let port = host.local().postgresql.port;
    let target = format!("host=127.0.0.1 port={port} user=matriarch_repl");
    command.args(["--no-loop", "--synchronous", "-d", &target, "--slot", slot, "--endpos", end, "-D"]).arg(dir);
    let done = command.env("PGPASSWORD", "replicate").output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// Where a segment ends that has something in it.
async fn switched(host: &Host) -> String {
    text(host, "SELECT pg_switch_wal()::text FROM pg_logical_emit_message(true, '', '')").await.remove(0)
}

const NAMES: &str = "SELECT slot_name::text FROM pg_replication_slots ORDER BY 1";
const RESTART: &str = "SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = 'backup'";
const DECODED: &str = "SELECT encode(data, 'escape') FROM pg_logical_slot_get_binary_changes('audit', NULL, NULL, \
     'proto_version', '1', 'publication_names', 'p') WHERE encode(data, 'escape') LIKE 'I%'";

pub async fn survive_a_takeover() {
    let cluster = Cluster::new();
    let config = |index| {
        let mut config = cluster.config(index);
        let parameters = &mut config.member.as_mut().unwrap().postgresql.parameters;
        parameters.insert("wal_level".into(), "logical".into());
        config
    };
    let mut first = cluster.primary_of(config(0)).await;
    let logical = first.status().await.server_version >= LOGICAL;
    let wanted = if logical { "backup,audit:postgres:pgoutput" } else { "backup" };
    set(&mut first, 1, &[("permanent_slots", wanted)]).await;
    let mut all = BTreeSet::from(["backup", "matriarch_n2", "matriarch_n3"]);
    all.extend(logical.then_some("audit"));
    let all = Vec::from_iter(all);
    until_text(&first, NAMES, &all).await;
    first.client().await.batch_execute("CREATE PUBLICATION p FOR TABLE t").await.unwrap();

    let mut second = Host::start(config(1)).await;
    set(&mut second, 1, &[("permanent_slots", wanted)]).await;
    second.copy_and_follow(1, &first).await;
    // The reader has all that there is, and then is away for a while.
    let received = tempfile::tempdir().unwrap();
    first.client().await.execute("INSERT INTO t VALUES (111)", &[]).await.unwrap();
    let begun = text(&second, "SELECT pg_last_wal_replay_lsn()::text").await.remove(0);
    let passed = format!("{RESTART} AND restart_lsn > '{begun}'");
    // Its last word may be lost when it goes.
    while text(&first, &passed).await.is_empty() {
        receive(&first, "backup", received.path(), &switched(&first).await);
    }
    if logical {
        assert_eq!(text(&first, DECODED).await.len(), 1);
        // PostgreSQL's copy is ready once its reader is past the rows that the standby began without.
        let ready = "SELECT slot_name::text FROM pg_replication_slots WHERE slot_name = 'audit' AND NOT temporary";
        let until = Instant::now() + DEADLINE * 3;
        while text(&second, ready).await.is_empty() {
            assert!(Instant::now() < until, "{}", second.log());
            text(&first, "SELECT pg_log_standby_snapshot()::text").await;
            assert!(text(&first, DECODED).await.is_empty());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    first.client().await.execute("INSERT INTO t VALUES (222)", &[]).await.unwrap();
    let mine = [["matriarch_n1", "matriarch_n3"].as_slice(), &all].concat();
    let mine: BTreeSet<&str> = mine.into_iter().filter(|name| *name != "matriarch_n2").collect();
    until_text(&second, NAMES, &Vec::from_iter(mine)).await;
    until_text(&second, RESTART, &[&text(&first, RESTART).await[0]]).await;
    if logical {
        let confirmed =
            "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'audit' AND NOT temporary";
        until_text(&second, confirmed, &[&text(&first, confirmed).await[0]]).await;
    }
    let end = first.status().await.wal_end.unwrap();
    second.until("it has all", |s| s.wal_end.unwrap().lsn >= end.lsn).await;

    for voter in &cluster.voters {
        voter.seal(Epoch(2)).unwrap();
    }
    first.until("it is fenced", |s| s.state() == State::Stopped && s.wal_end_known).await;
    // The promises of the first epoch must be over before the next is granted.
    tokio::time::sleep(Timings::of(Profile::Fast).grant).await;
    let floor = second.status().await.wal_end.unwrap();
    second.promote(2, 3, floor).await;
    second.until("it is primary", |s| s.state() == State::Primary).await;
    second.client().await.execute("INSERT INTO t VALUES (333)", &[]).await.unwrap();
    receive(&second, "backup", received.path(), &switched(&second).await);
    if logical {
        let decoded = text(&second, DECODED).await;
        let has = |value: &str| decoded.iter().filter(|row| row.contains(value)).count();
        assert_eq!([has("111"), has("222"), has("333")], [0, 1, 1], "{decoded:?}");
    }
}

#[test]
#[ignore = "six seconds, its rules have tests of their own: make proof"]
fn a_copy_of_a_slot_that_is_permanent_no_more_goes_and_what_a_user_made_there_stays() {
    as_postgres("slots::a_copy_of_a_slot_that_is_permanent_no_more_goes_and_what_a_user_made_there_stays", || async {
        let cluster = Cluster::new();
        let mut first = cluster.primary().await;
        let mut second = cluster.host(1).await;
        for host in [&mut first, &mut second] {
            set(host, 1, &[("permanent_slots", "backup")]).await;
        }
        second.copy_and_follow(1, &first).await;
        text(&second, "SELECT slot_name::text FROM pg_create_physical_replication_slot('by_hand', true)").await;
        until_text(&second, NAMES, &["backup", "by_hand", "matriarch_n1", "matriarch_n3"]).await;
        // Which ones are copies is not in the agent's memory only.
        second.restart_agent().await;
        for host in [&mut first, &mut second] {
            set(host, 2, &[]).await;
        }
        until_text(&second, NAMES, &["by_hand", "matriarch_n1", "matriarch_n3"]).await;
        assert_eq!(text(&first, NAMES).await, ["backup", "matriarch_n2", "matriarch_n3"], "the user's, on the primary");
    });
}

/// Between the end of a copy and the moment its PostgreSQL streams the primary may write much, as when there is much to replay.
#[test]
fn the_primary_keeps_what_a_copy_needs_before_it_streams() {
    as_postgres("slots::the_primary_keeps_what_a_copy_needs_before_it_streams", || async {
        let cluster = Cluster::new();
        let keeps_nothing = |index| {
            let mut config = cluster.config(index);
            let parameters = &mut config.member.as_mut().unwrap().postgresql.parameters;
            parameters.insert("wal_keep_size".into(), "0".into());
            config
        };
        let first = cluster.primary_of(keeps_nothing(0)).await;
        let (mut second, mut third) = (cluster.host(1).await, cluster.host(2).await);
        second.copy_and_follow(1, &first).await;
        // Also when the copy is of a standby, and when the slot has been used before.
        for source in [&second, &first] {
            let before = third.status().await;
            third.copy(1, source, before.wal_end.filter(|_| before.wal_end_known)).await;
            for _ in 0..3 {
                switched(&first).await;
                first.client().await.batch_execute("CHECKPOINT").await.unwrap();
            }
            third.follow(1, Some(&first)).await;
            third.until("it streams", |s| s.streaming && s.state() == State::Standby).await;
        }
        let removed = text(
            &first,
            "SELECT count(*)::text FROM pg_ls_waldir() WHERE length(name) = 24 AND name < '000000020000000000000003'",
        )
        .await;
        assert_eq!(removed, ["0"], "the primary keeps nothing but for slots");
    });
}
