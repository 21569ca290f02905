//! No key of Patroni's is passed over silently, no password is shown, and what is written is a configuration.

use std::collections::BTreeMap;

use expect_test::expect;

use super::{
    map::{HostFile, Imported, Outcome, Wanted, host_and_port, import},
    report, streamed, text_of, yaml,
};
use crate::config::Config;

const EVERY_KEY: &str = include_str!("every_key.yml");

fn file(name: &str, text: &str) -> HostFile {
    HostFile { name: name.to_owned(), tree: yaml::parse(text).unwrap() }
}

/// Three members by one file.
fn wanted(text: &str) -> Wanted {
    let members = ["PG_1=10.0.0.1", "pg2=10.0.0.2", "pg3=10.0.0.3"].map(|word| word.split_once('=').unwrap());
    let members = members.map(|(name, host)| (name.to_owned(), host.to_owned())).to_vec();
    Wanted { files: vec![file("patroni.yml", text)], members, ..Wanted::default() }
}

fn minimal(n: u8, more: &str) -> String {
    format!(
        "scope: shop\nname: pg{n}\nrestapi: {{listen: '0.0.0.0:8008', connect_address: '10.0.0.{n}:8008'}}\npostgresql:\n  \
         listen: 0.0.0.0:5432\n  connect_address: 10.0.0.{n}:5432\n  data_dir: /data/pg\n  bin_dir: /usr/lib/postgresql/15/bin\n  \
         authentication: {{superuser: {{username: postgres, password: s3cret}}, replication: {{username: rep, password: s3cret}}}}\n\
         {more}"
    )
}

fn three(more: [&str; 3]) -> Wanted {
    let files = more.iter().zip(1..).map(|(more, n)| file(&format!("pg{n}.yml"), &minimal(n, more))).collect();
    Wanted { files, ..Wanted::default() }
}

fn parsed(imported: &Imported) -> Vec<Config> {
    let parse = |draft| {
        let text = text_of(draft);
        Config::parse("m.toml".as_ref(), &text).unwrap_or_else(|error| panic!("{error}\n{text}"))
    };
    imported.drafts.iter().map(parse).collect()
}

fn outcome<'a>(imported: &'a Imported, key: &str) -> &'a Outcome {
    let found = imported.keys.iter().find(|((_, name), _)| name == key);
    found.unwrap_or_else(|| panic!("nothing is said of {key}")).1
}

#[test]
fn no_key_is_passed_over_silently() {
    // Each file for itself, so that tags count, too.
    let mut wanted = three(["", "", ""]);
    let every = EVERY_KEY.replace("scope: main", "scope: shop");
    wanted.files[0] = file("patroni.yml", &every);
    let imported = import(&wanted).unwrap();
    let leaves = wanted.files[0].tree.leaves("");
    assert!(leaves.len() > 250, "{}", leaves.len());
    let silent = Vec::from_iter(leaves.iter().filter(|leaf| match outcome(&imported, leaf) {
        Outcome::Mapped(to) => to.is_empty(),
        Outcome::Without(why) => why.is_empty(),
        Outcome::Unknown => true,
    }));
    assert_eq!(silent, [""; 0]);
    wanted.files[0] = file("patroni.yml", &every.replacen("namespace:", "namespaze:", 1));
    let imported = import(&wanted).unwrap();
    assert_eq!(outcome(&imported, "namespaze"), &Outcome::Unknown);
    assert!(report(&imported).contains("patroni.yml: is not known\n  namespaze\n"));
    // The dynamic configuration has the same keys without a prefix.
    let dynamic = wanted.files[0].tree.at("bootstrap.dcs").cloned();
    let with = import(&Wanted { dynamic: dynamic.clone(), ..wanted }).unwrap();
    for leaf in dynamic.unwrap().leaves("") {
        assert_ne!(outcome(&with, &leaf), &Outcome::Unknown, "{leaf}");
        assert!(matches!(outcome(&with, &format!("bootstrap.dcs.{leaf}")), Outcome::Without(_)), "{leaf}");
    }
}

#[test]
fn no_password_is_shown() {
    let imported = import(&wanted(EVERY_KEY)).unwrap();
    let files = Vec::from_iter(imported.drafts.iter().map(|draft| (draft, text_of(draft))));
    let shown =
        report(&imported) + &streamed(&imported, &files) + &super::json(&imported, &files) + &format!("{imported:?}");
    for line in EVERY_KEY.lines() {
        for word in line.split(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_') {
            let secret = word.ends_with("-password") || ["consul-token", "zk-digest"].contains(&word);
            assert!(!secret || !shown.contains(word), "{word}");
        }
    }
    let kept = imported.drafts[0].secrets.iter().map(|secret| (secret.file, secret.value.as_str()));
    let files = BTreeMap::from_iter(kept);
    assert_eq!(files["superuser.pass"], "superuser-password");
    assert_eq!(files["replication.pass"], "replication-password");
    assert_eq!(files["rest.pass"], "rest-password");
}

#[test]
fn what_is_written_is_a_configuration() {
    let imported = import(&wanted(EVERY_KEY)).unwrap();
    let configs = parsed(&imported);
    assert_eq!(configs.len(), 3);
    let local = configs[1].member.as_ref().unwrap();
    assert_eq!((local.id.as_str(), local.postgresql.port), ("pg2", 5433));
    assert!(!local.postgresql.bootstrap.restart, "it goes on running");
    expect![[r#"
        # Imported from a configuration of Patroni. `matriarch config check` and `matriarch preflight` look at it.

        [cluster]
        name = "main"
        # ttl 30 s, loop_wait 10 s, retry_timeout 10 s are Patroni's defaults or less, so nothing speaks for patience; a lost host is replaced after about 3.5 s (fast: 2 s, same rack).
        profile = "normal"
    "#]]
    .assert_eq(text_of(&imported.drafts[0]).split("# Traffic").next().unwrap());
    expect![[r#"

        id = "pg_1"

        [manager]

        [agent]

        [postgresql]
        bin_dir = "/usr/lib/postgresql/15/bin"
        data_dir = "/var/lib/postgresql/15/main"
        socket_dir = "/run/postgresql"
        superuser = "postgres"
        superuser_password_file = "/etc/matriarch/superuser.pass"
        replication_user = "replicator"
        replication_password_file = "/etc/matriarch/replication.pass"
        hba = [
          "local all all peer",
          "host all all 10.0.0.0/8 scram-sha-256",
        ]

        [postgresql.parameters]
        archive_mode = "on"
        log_line_prefix = "%m 'q' "
        max_connections = "100"
        max_locks_per_transaction = "64"
        max_prepared_transactions = "0"
        max_worker_processes = "8"
        "pg_stat_statements.max" = "5000"
        shared_preload_libraries = "pg_stat_statements"
        track_commit_timestamp = "off"
        wal_keep_size = "128MB"
        wal_level = "replica"
        work_mem = "16MB"

        # What runs is taken over as it runs: the primary of the first member, standbys without a copy
        # (docs/from-patroni.md). Read once; the table may go afterwards.
        [bootstrap]
        method = "adopt"
        restart = false

        [rest]
        listen = "0.0.0.0:8008"
        password_file = "/etc/matriarch/rest.pass"
        tls_certificate_file = "/etc/patroni/rest.crt"
        tls_key_file = "/etc/patroni/rest.key"
        username = "ops"
        allowlist = [
          "10.0.0.0/24",
          "10.0.0.1",
          "10.0.0.2",
          "10.0.0.3",
        ]

        [layers]
        watchdog = "automatic"
        watchdog_device = "/dev/watchdog"

        # [hooks.patroni]
        # on_reload = "/cb"
        # on_restart = "/cb"
        # on_role_change = "/cb role"
        # on_start = "/cb"
        # on_stop = "/cb"

        # Leads clients to the primary: docs/router.md. Clients may as well go by the API, as they did.
        # [router]
        # read_write = "127.0.0.1:6432"
        # read_only = "127.0.0.1:6433"
        # read_only_weights = { "pg_1" = 0 }

    "#]]
    .assert_eq(&format!(
        "{}\n",
        imported.drafts[0].to_toml(false).split("postgres_port = 5433\n\n[member]").nth(1).unwrap()
    ));
    expect![[r#"
        matriarch config set replication_mode=quorum sync_strict=true sync_count=1 maximum_lag_on_syncnode=off maximum_lag_on_failover=1048576 permanent_slots=reports,cdc:app:pgoutput 'ignore_slots=name=other type=logical database=app plugin=test_decoding,type=physical name=debezium' 'archive_command=cp %p /archive/%f' synchronous_commit=remote_apply 'restore_command=cp /archive/%f %p' pgbackrest_stanza=main clone_command=/bin/wal_e_restore clone_methods=pgbackrest,command,basebackup clone_rate=100MB
    "#]]
    .assert_eq(&format!("{}\n", imported.commands.join("\n")));
}

#[test]
fn files_of_three_hosts_make_three_members_and_the_primary_is_the_first() {
    let tags =
        ["", "tags: {nofailover: true, noloadbalance: true}\n", "tags: {failover_priority: 3, replicatefrom: pg2}\n"];
    let dynamic = "ttl: 60\nloop_wait: 10\nretry_timeout: 20\nsynchronous_mode: on\nfailsafe_mode: true\npostgresql:\n  pg_hba:\n  - local all all peer\n";
    let wanted =
        Wanted { dynamic: Some(yaml::parse(dynamic).unwrap()), primary: Some("pg3".to_owned()), ..three(tags) };
    let imported = import(&wanted).unwrap();
    let configs = parsed(&imported);
    let ids = configs.iter().map(|c| (c.member.as_ref().unwrap().id.to_string(), c.cluster.members[0].id.to_string()));
    assert_eq!(
        Vec::from_iter(ids),
        [("pg3", "pg3"), ("pg1", "pg3"), ("pg2", "pg3")].map(|(a, b)| (a.to_owned(), b.to_owned()))
    );
    let first = &configs[0];
    assert_eq!((first.cluster.name.as_str(), first.cluster.failsafe), ("shop", true));
    assert_eq!(first.cluster.profile, crate::domain::Profile::Slow);
    assert_eq!(first.member.as_ref().unwrap().postgresql.hba, ["local all all peer"]);
    assert!(text_of(&imported.drafts[0]).contains("# read_only_weights = { \"pg2\" = 0 }"));
    let commands = [
        "matriarch config set replication_mode=sync",
        "matriarch config set priority=3 --member pg3",
        "matriarch config set replicatefrom=pg2 --member pg3",
        "matriarch config set failover=false --member pg2",
    ];
    assert_eq!(imported.commands, commands);
}

#[test]
fn what_can_not_be_imported_is_refused() {
    let error = |wanted: &Wanted| import(wanted).unwrap_err();
    let mut two = three(["", "", ""]);
    two.files.pop();
    assert!(error(&two).starts_with("2 members are given"));
    let mut other = three(["", "", ""]);
    other.files[1] = file("pg2.yml", &minimal(2, "").replace("scope: shop", "scope: till"));
    assert!(error(&other).contains("several clusters (scope: shop, till)"));
    let unnamed = Wanted { primary: Some("pg9".to_owned()), ..three(["", "", ""]) };
    assert!(error(&unnamed).contains("--primary pg9"));
    let twice = Wanted { files: vec![file("a", &minimal(1, "")); 3], ..Wanted::default() };
    assert!(error(&twice).contains("two members are called pg1"));
}

#[test]
fn members_on_one_address_get_ports_of_their_own() {
    let mut wanted = three(["", "", ""]);
    for (n, host) in wanted.files.iter_mut().enumerate() {
        let n = u8::try_from(n).unwrap() + 1;
        let text = minimal(n, "").replace(&format!("10.0.0.{n}"), "127.0.0.1").replace(":5432", &format!(":543{n}"));
        *host = file(&host.name, &text.replace("0.0.0.0:8008", "127.0.0.1:8008").replace("0.0.0.0", "127.0.0.1"));
    }
    let imported = import(&wanted).unwrap();
    let ports = imported.drafts[0].members.iter().map(|m| (m.port, m.manager_port));
    assert_eq!(Vec::from_iter(ports), [(5431, 7400), (5432, 7410), (5433, 7420)]);
    assert!(!imported.drafts[0].is_open());
    parsed(&imported);
}

#[test]
fn addresses_are_read() {
    let told = |text: &str| host_and_port(text);
    assert_eq!(told("10.0.0.1:5432"), ("10.0.0.1".into(), Some(5432)));
    assert_eq!(told("[::1]:5432"), ("::1".into(), Some(5432)));
    assert_eq!(told("::1"), ("::1".into(), None));
    assert_eq!(told("db1"), ("db1".into(), None));
    assert_eq!(told("*:5432"), ("*".into(), Some(5432)));
    assert_eq!(told("10.0.0.1,127.0.0.1:5433"), ("10.0.0.1,127.0.0.1".into(), Some(5433)));
}

#[test]
fn a_password_of_digits_is_written_as_it_is() {
    let with = |password: &str| {
        let of = |n| {
            file(&format!("pg{n}.yml"), &minimal(n, "").replace("password: s3cret", &format!("password: {password}")))
        };
        let imported = import(&Wanted { files: [1, 2, 3].map(of).to_vec(), ..Wanted::default() }).unwrap();
        (imported.drafts[0].secrets[0].value.clone(), imported.remarks.join("\n"))
    };
    for (written, wanted, octal) in
        [("0123", "0123", true), ("'0123'", "0123", true), ("0089", "0089", false), ("12", "12", false)]
    {
        let (value, remarks) = with(written);
        assert_eq!((value.as_str(), remarks.contains("octal")), (wanted, octal), "{written}");
        assert!(!remarks.contains(wanted) || wanted == "12", "{remarks}");
    }
}

#[test]
fn a_list_of_names_lets_nobody_in_that_it_did_not() {
    let with = |rest: &str| {
        let of = |n| {
            let login = format!("authentication: {{username: ops, password: x}}, {rest}, connect_address");
            file(&format!("pg{n}.yml"), &minimal(n, "").replacen("connect_address", &login, 1))
        };
        let imported = import(&Wanted { files: [1, 2, 3].map(of).to_vec(), ..Wanted::default() }).unwrap();
        let list = parsed(&imported)[0].rest.as_ref().unwrap().allowlist.clone();
        (imported, list)
    };
    let has = |list: &[crate::config::Network], ip: &str| list.iter().any(|network| network.has(ip.parse().unwrap()));
    let (imported, list) = with("allowlist: [db1.example, db2.example]");
    assert!(!list.is_empty() && has(&list, "127.0.0.1") && !has(&list, "10.0.0.9"));
    let Outcome::Without(why) = outcome(&imported, "restapi.allowlist") else { panic!("{imported:?}") };
    assert!(why.contains("db1.example, db2.example are none"), "{why}");
    assert!(report(&imported).contains("write their addresses there"));

    let (imported, list) = with("allowlist: [db1.example, 10.0.0.9]");
    assert!(has(&list, "10.0.0.9") && !has(&list, "127.0.0.1"));
    let to = Outcome::Mapped("rest.allowlist, without db1.example: addresses only".to_owned());
    assert_eq!(outcome(&imported, "restapi.allowlist"), &to);

    let (imported, list) = with("allowlist: [db1.example], allowlist_include_members: true");
    assert!(has(&list, "10.0.0.2") && !has(&list, "127.0.0.1"));
    assert!(matches!(outcome(&imported, "restapi.allowlist_include_members"), Outcome::Mapped(_)));
    let (_, list) = with("allowlist: []");
    assert!(list.is_empty(), "from everywhere, as it was");
}

#[test]
fn what_may_have_credentials_is_for_its_owner_alone_and_no_link_is_followed() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let imported = import(&wanted(EVERY_KEY)).unwrap();
    let files = Vec::from_iter(imported.drafts.iter().map(|draft| (draft, text_of(draft))));
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("new");
    super::written(&place, &imported, &files).unwrap();
    let mode = |name: &str| place.join(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(
        ["settings.sh", "report.txt", "pg2/secret", "pg2/superuser.pass"].map(mode),
        [0o700, 0o600, 0o600, 0o600]
    );

    let (linked, elsewhere) = (dir.path().join("linked"), dir.path().join("elsewhere"));
    std::fs::create_dir(&linked).unwrap();
    symlink(&elsewhere, linked.join("settings.sh")).unwrap();
    let refused = super::written(&linked, &imported, &files).unwrap_err();
    assert!(refused.contains("settings.sh is there already"), "{refused}");
    assert!(!elsewhere.exists() && !linked.join("pg2").exists(), "nothing was written");
}
