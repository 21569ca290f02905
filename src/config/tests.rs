use std::{fs, os::unix::fs::PermissionsExt};

use expect_test::{Expect, expect};

use super::*;

const GOOD: &str = r#"
[cluster]
name = "demo"
insecure = true
[cluster.timings]
renew_ms = 300
[[cluster.members]]
id = "n1"
host = "10.0.0.1"
[[cluster.members]]
id = "n2"
host = "10.0.0.2"
[[cluster.members]]
id = "n3"
host = "10.0.0.3"
[member]
id = "n1"
[manager]
state_dir = "/var/lib/matriarch/manager"
[agent]
listen = "unix:/run/matriarch/agent.sock"
[postgresql]
bin_dir = "/usr/lib/postgresql/15/bin"
hba = ["host all all 10.0.0.0/24 scram-sha-256"]
[postgresql.parameters]
shared_buffers = "128MB"
max_connections = 200
log_connections = true
[router]
read_write = "127.0.0.1:6432"
read_only = "127.0.0.1:6433"
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("m.toml"), text)
}

/// The error after each `(from, to)` edit of a good file, one line each.
fn check(edits: &[(&str, &str)], expected: Expect) {
    let mut lines = String::new();
    for (from, to) in edits {
        assert!(GOOD.contains(from), "the good file has no `{from}`");
        let error = parse(&GOOD.replacen(from, to, 1)).expect_err(to);
        let line = error.to_string();
        assert!(!line.contains('\n'), "{line}");
        lines.push_str(&line);
        lines.push('\n');
    }
    expected.assert_eq(&lines);
}

#[test]
fn defaults_are_filled_in() {
    let config = parse(GOOD).unwrap();
    let me = config.member.as_ref().unwrap();
    assert_eq!(me.manager.listen, "10.0.0.1:7400".parse().unwrap());
    assert_eq!(me.agent.listen, AgentEndpoint::Unix("/run/matriarch/agent.sock".into()));
    assert_eq!(me.postgresql.listen_addresses, "10.0.0.1");
    assert_eq!(me.postgresql.socket_dir, Path::new("/run/matriarch"));
    assert_eq!(me.postgresql.data_dir, Path::new("/var/lib/matriarch/pgdata"));
    assert_eq!(me.postgresql.parameters["max_connections"], "200");
    assert_eq!(me.postgresql.parameters["log_connections"], "on");
    assert_eq!(config.cluster.members[2].node, crate::domain::NodeId(3));
    assert_eq!(config.router.unwrap().max_sessions, 1_000);
}

#[test]
fn the_example_file_is_a_good_configuration() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/matriarch.toml.example");
    let text = fs::read_to_string(&path).unwrap();
    parse(&text).unwrap();
    // What the comments offer must be right as well: every commented key is switched on.
    let is_key = |line: &str| {
        let word = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        line.split_once(" = ").is_some_and(|(name, _)| word(name))
    };
    let switched_on: Vec<&str> = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if is_key(rest) || (rest.starts_with('[') && rest.ends_with(']')) => rest,
            _ => line,
        })
        .collect();
    parse(&switched_on.join("\n")).unwrap();
}

#[test]
fn cluster_errors() {
    check(
        &[
            ("name = \"demo\"", "naem = \"demo\""),
            ("name = \"demo\"", ""),
            ("name = \"demo\"", "name = \"a b\""),
            ("name = \"demo\"", "name = \"demo\"\nprofile = \"quick\""),
            ("renew_ms = 300", "renew_ms = 900"),
            ("renew_ms = 300", "grant_ms = 2500"),
            ("renew_ms = 300", "renew_ms = 0"),
            ("renew_ms = 300", "renew_ms = \"300\""),
            ("renew_ms = 300", "drift_permille = 900"),
            ("[[cluster.members]]\nid = \"n3\"\nhost = \"10.0.0.3\"\n", ""),
            ("id = \"n3\"", "id = \"N3\""),
            ("id = \"n3\"", "id = \"n2\""),
            (
                "id = \"n2\"\nhost = \"10.0.0.2\"\n[[cluster.members]]\nid = \"n3\"",
                "id = \"n-2\"\nhost = \"10.0.0.2\"\n[[cluster.members]]\nid = \"n_2\"",
            ),
            ("host = \"10.0.0.3\"", "host = \"10.0.0.2\""),
            ("host = \"10.0.0.3\"", "host = \"10.0.0.3:7400\""),
            ("host = \"10.0.0.3\"", "host = \"0.0.0.0\""),
            ("host = \"10.0.0.3\"", "host = \"10.0.0.3\"\nmanager_port = 5432"),
            ("host = \"10.0.0.3\"", "host = \"10.0.0.3\"\nmanager_port = 70000"),
        ],
        expect![[r#"
            m.toml: cluster.naem: unknown key in line 3; did you mean `name`?
            m.toml: cluster.name: missing; add it
            m.toml: cluster.name: `a b` can't name a cluster; use 1 to 63 letters, digits, `-`, `_` and `.`
            m.toml: cluster.profile: `quick` is no profile: fast, normal, slow or safe; name one of them
            m.toml: cluster.timings.hold_ms: T_hold >= 4 * renew + T_rpc does not hold (2.500 s against 3.850 s); change this key or the others in the inequality, or use a profile unchanged
            m.toml: cluster.timings.grant_ms: T_grant >= (1+rho) * (T_hold/(1-rho) + T_kill) does not hold (2.500 s against 3.112 s); change this key or the others in the inequality, or use a profile unchanged
            m.toml: cluster.timings.renew_ms: 0 ms is out of range; use 1 to 86400000 (a day)
            m.toml: cluster.timings.renew_ms: invalid type: string "300", expected u64 (line 6); correct the line; deploy/matriarch.toml.example has every key
            m.toml: cluster.timings.drift_permille: 900 is out of range; use 1 to 100 (0.1 % to 10 %)
            m.toml: cluster.members: 2 given; list three to seven members that vote; fewer can't lose one and still decide
            m.toml: cluster.members[2].id: `N3` can't name a member: 1 to 40 characters of a-z, 0-9, `-` and `_`; rename it
            m.toml: cluster.members[2].id: `n2` is in the list twice; rename one
            m.toml: cluster.members[2].id: `n-2` and `n_2` would have one replication slot, which knows no `-`; rename one
            m.toml: cluster.members[2].manager_port: 10.0.0.2:7400 is also an address of member n2; give each its own host or port
            m.toml: cluster.members[2].host: `10.0.0.3:7400` is neither a host name nor an address; write it without port and brackets, e.g. 10.0.0.1 or db1.example
            m.toml: cluster.members[2].host: other members can't reach 0.0.0.0; write the address they use for this host
            m.toml: cluster.members[2].manager_port: manager and PostgreSQL would share port 5432; give each its own
            m.toml: cluster.members.manager_port: invalid value: integer `70000`, expected u16 (line 16); correct the line; deploy/matriarch.toml.example has every key
        "#]],
    );
}

#[test]
fn host_errors() {
    check(
        &[
            ("[member]\nid = \"n1\"", "[member]\nid = \"n9\""),
            ("[member]\nid = \"n1\"", "[member]"),
            ("[member]\nid = \"n1\"", ""),
            ("insecure = true", ""),
            ("listen = \"unix:/run/matriarch/agent.sock\"", "listen = \"tcp:0.0.0.0\""),
            ("listen = \"unix:/run/matriarch/agent.sock\"", "listen = \"/run/matriarch/agent.sock\""),
            ("listen = \"unix:/run/matriarch/agent.sock\"", "listen = \"tcp:127.0.0.1:6432\""),
            ("state_dir = \"/var", "state_dir = \"var"),
            ("state_dir = \"/var/lib/matriarch/manager\"", "state_dir = \"/var/lib/matriarch/pgdata/m\""),
            ("state_dir = \"/var/lib/matriarch/manager\"", "listen = \"10.0.0.1\""),
            ("state_dir = \"/var/lib/matriarch/manager\"", "listen = \"127.0.0.1:6433\""),
            ("read_only = \"127.0.0.1:6433\"", "read_only = \"127.0.0.1:6432\""),
            ("read_only = \"127.0.0.1:6433\"", "read_only = \"0.0.0.0:5432\""),
            ("read_only = \"127.0.0.1:6433\"", "max_sessions = 0"),
            ("read_only = \"127.0.0.1:6433\"", "sync_only = \"127.0.0.1:6432\""),
            ("read_only = \"127.0.0.1:6433\"", "metrics = \"127.0.0.1:6432\""),
            ("read_only = \"127.0.0.1:6433\"", "metrics = \"9187\""),
            ("read_only = \"127.0.0.1:6433\"", "drain_ms = 60001"),
            ("read_only = \"127.0.0.1:6433\"", "threads = 65"),
            ("read_only = \"127.0.0.1:6433\"", "read_only_weights = { n9 = 1 }"),
            ("read_only = \"127.0.0.1:6433\"", "read_only_weights = { n2 = 1001 }"),
        ],
        expect![[r#"
            m.toml: member.id: `n9` is not in cluster.members; use one of n1, n2, n3, or add this host to cluster.members
            m.toml: member.id: missing; add it
            m.toml: manager: given, but the file doesn't say which member this host is; add `[member]` with the id of this host, or remove the table
            m.toml: manager.listen: 10.0.0.1:7400 can be reached from other hosts, and nothing is encrypted yet; set cluster.insecure = true on a network you trust, or listen on 127.0.0.1
            m.toml: agent.listen: `0.0.0.0` is no address with a port; write e.g. 10.0.0.1:7400 or [fd00::1]:7400
            m.toml: agent.listen: `/run/matriarch/agent.sock` is no endpoint; write unix:/run/matriarch/agent.sock or tcp:127.0.0.1:7402
            m.toml: router.read_write: 127.0.0.1:6432 is taken by agent.listen; give each its own port
            m.toml: manager.state_dir: `var/lib/matriarch/manager` is a relative path; write it from the root (/…)
            m.toml: manager.state_dir: /var/lib/matriarch/pgdata/m and postgresql.data_dir (/var/lib/matriarch/pgdata) lie one in the other; give each a directory of its own
            m.toml: manager.listen: `10.0.0.1` is no address with a port; write e.g. 10.0.0.1:7400 or [fd00::1]:7400
            m.toml: router.read_only: 127.0.0.1:6433 is taken by manager.listen; give each its own port
            m.toml: router.read_only: 127.0.0.1:6432 is taken by router.read_write; give each its own port
            m.toml: router.read_only: 0.0.0.0:5432 is taken by PostgreSQL; give each its own port
            m.toml: router.max_sessions: 0 would refuse everybody; use 1 or more
            m.toml: router.sync_only: 127.0.0.1:6432 is taken by router.read_write; give each its own port
            m.toml: router.metrics: 127.0.0.1:6432 is taken by router.read_write; give each its own port
            m.toml: router.metrics: `9187` is no address with a port; write e.g. 10.0.0.1:7400 or [fd00::1]:7400
            m.toml: router.drain_ms: 60001 ms is too long; use up to 60000 ms; 0 ends sessions at once
            m.toml: router.threads: 65 is no number of threads that helps; use 1 to 64, not more than there are processors
            m.toml: router.read_only_weights: `n9` is no member; name one of n1, n2, n3
            m.toml: router.read_only_weights: 1001 for n2 is too much; use 0 to 1000
        "#]],
    );
}

#[test]
fn certificates_of_the_router_come_with_their_keys() {
    let with = |more: &str| format!("max_sessions = 9\n{more}\nread_only = \"127.0.0.1:6433\"");
    let wrong = [
        "tls_key_file = \"/k\"",
        "tls_certificate_file = \"/c\"",
        "tls_certificate_file = \"c.pem\"\ntls_key_file = \"/k\"",
        "tls_required = true",
        "postgresql_ca_file = \"root.crt\"",
    ]
    .map(with);
    let edits: Vec<(&str, &str)> = wrong.iter().map(|w| ("read_only = \"127.0.0.1:6433\"", w.as_str())).collect();
    check(
        &edits,
        expect![[r#"
            m.toml: router.tls_certificate_file: missing; name the key's certificate
            m.toml: router.tls_key_file: missing; name the certificate's key
            m.toml: router.tls_certificate_file: `c.pem` is a relative path; write it from the root (/…)
            m.toml: router.tls_required: the router has no certificate to encrypt with; set tls_certificate_file and tls_key_file, or remove it
            m.toml: router.postgresql_ca_file: `root.crt` is a relative path; write it from the root (/…)
        "#]],
    );
    let given = with("tls_certificate_file = \"/c\"\ntls_key_file = \"/k\"\ntls_required = true");
    let router = parse(&GOOD.replace("read_only = \"127.0.0.1:6433\"", &given)).unwrap().router.unwrap();
    assert_eq!(router.certificate, Some(CertificateFiles { certificate: "/c".into(), key: "/k".into() }));
    assert!(router.tls_required);
    let off = parse(GOOD).unwrap().router.unwrap();
    assert_eq!((off.certificate, off.tls_required, off.postgresql_ca_file), (None, false, None));
}

#[test]
fn layers_are_checked_against_the_timings() {
    let defaults = parse(GOOD).unwrap().layers;
    assert_eq!((defaults.kernel_lease, defaults.watchdog.mode), (LayerMode::Automatic, LayerMode::Off));
    assert_eq!((defaults.watchdog.timeout_s, defaults.client_reset), (2, LayerMode::Automatic));
    assert_eq!(defaults.stonith, None);
    let table = "[router]\n";
    let with = |text: &str| format!("[layers]\n{text}\n[router]\n");
    let given = with("watchdog = \"required\"\nstonith_command = [\"/bin/off\", \"{host}\"]");
    let given = parse(&GOOD.replacen(table, &given, 1)).unwrap().layers;
    assert_eq!(given.watchdog.mode, LayerMode::Required);
    let stonith = given.stonith.unwrap();
    assert_eq!((stonith.command, stonith.deadline.as_secs()), (vec!["/bin/off".to_owned(), "{host}".to_owned()], 30));
    // Timings that leave no room: what was not asked for is off, what was is an error.
    let tight = GOOD.replacen("renew_ms = 300", "renew_ms = 300\nkill_ms = 1\ngrant_ms = 2605", 1);
    assert_eq!(parse(&tight).unwrap().layers.kernel_lease, LayerMode::Off);
    let asked = parse(&tight.replacen(table, &with("kernel_lease = \"automatic\""), 1)).unwrap_err();
    assert_eq!(asked.key, "layers.kernel_lease");
    check(
        &[
            (table, &with("kernel_lease = \"on\"")),
            (table, &with("client_reset = \"required\"")),
            (table, &with("watchdog_timeout_s = 3")),
            (table, &with("watchdog_timeout_s = 0")),
            (table, &with("watchdog_device = \"watchdog\"")),
            (table, &with("stonith_command = []")),
            (table, &with("stonith_command = [\"fence\"]")),
            (table, &with("stonith_deadline_ms = 5")),
            (table, &with("stonith_command = [\"/bin/off\"]\nstonith_deadline_ms = 5")),
            (table, &with("kernel_leas = \"off\"")),
        ],
        expect![[r#"
            m.toml: layers.kernel_lease: `on` is no mode; use off, automatic or required
            m.toml: layers.client_reset: it protects nothing, so it can't be required; use off or automatic
            m.toml: layers.watchdog_timeout_s: T_grant >= (1+rho) * (W/(1-rho) + delta) does not hold with W = 3 s and delta >= renew + T_rpc; use 1 to 2
            m.toml: layers.watchdog_timeout_s: 0 is no time-out; use whole seconds
            m.toml: layers.watchdog_device: `watchdog` is a relative path; write it from the root (/…)
            m.toml: layers.stonith_command: empty; name a program, or remove the key
            m.toml: layers.stonith_command: `fence` is no path from the root; write the program's whole path, then its arguments, one by one
            m.toml: layers.stonith_deadline_ms: given without layers.stonith_command; add the command, or remove it
            m.toml: layers.stonith_deadline_ms: 5 ms is out of range; use 100 to 600000 (ten minutes)
            m.toml: layers.kernel_leas: unknown key in line 30; did you mean `kernel_lease`?
        "#]],
    );
}

#[test]
fn a_virtual_address_is_nobodys_own_and_postgresql_listens_on_it() {
    assert_eq!(parse(GOOD).unwrap().layers.vip, None);
    let (hba, everywhere) = ("hba = [", "listen_addresses = \"*\"\nhba = [");
    let (table, with) = ("[router]\n", |text: &str| format!("[layers]\n{text}\n[router]\n"));
    let given = |text: &str| parse(&GOOD.replacen(hba, everywhere, 1).replacen(table, &with(text), 1));
    let on = |address: &str| given(&format!("vip_address = \"{address}\"\nvip_interface = \"eth0\""));
    let vip = |address: &str| on(address).unwrap().layers.vip.unwrap();
    let four = vip("10.0.0.100/24");
    assert_eq!((four.address, four.prefix, four.mode), ([10, 0, 0, 100].into(), 24, LayerMode::Automatic));
    assert_eq!((four.interface.as_str(), vip("10.0.0.100").prefix, vip("fd00::100").prefix), ("eth0", 32, 128));
    for wrong in ["10.0.0.100/33", "10.0.0.100/0", "127.0.0.1", "fe80::1", "224.0.0.1", "::ffff:10.0.0.9", "db.example"]
    {
        assert_eq!(on(wrong).unwrap_err().key, "layers.vip_address", "{wrong}");
    }
    let all = "vip_address = \"10.0.0.100\"\nvip_interface = \"eth0\"";
    assert!(parse(&GOOD.replacen(table, &with(&format!("vip = \"off\"\n{all}")), 1)).is_ok());
    check(
        &[
            (table, &with(all)),
            (table, &with("vip = \"required\"")),
            (table, &with("vip_interface = \"eth0\"")),
            (table, &with("vip_address = \"10.0.0.100\"")),
            (table, &with("vip_address = \"10.0.0.100\"\nvip_interface = \"eth 0\"")),
            (table, &with("vip_address = \"10.0.0.256\"\nvip_interface = \"eth0\"")),
            (table, &with("vip_address = \"10.0.0.2\"\nvip_interface = \"eth0\"")),
        ],
        expect![[r#"
            m.toml: postgresql.listen_addresses: PostgreSQL does not listen on 10.0.0.100; set it to `*`: the address comes and goes
            m.toml: layers.vip_address: missing; add the address that is to be the primary's
            m.toml: layers.vip_address: missing; add the address that is to be the primary's
            m.toml: layers.vip_interface: missing; add the interface it is put on
            m.toml: layers.vip_interface: `eth 0` names no interface; use what `ip link` shows
            m.toml: layers.vip_address: `10.0.0.256` is no address that hosts could share; write it as 10.0.0.100/24 or fd00::100/64, or without the length
            m.toml: layers.vip_address: 10.0.0.2 is the host of a member; use one that no host has of its own
        "#]],
    );
}

#[test]
fn an_address_for_standbys_is_another_one_on_the_same_interface() {
    let (hba, everywhere) = ("hba = [", "listen_addresses = \"*\"\nhba = [");
    let (table, with) = ("[router]\n", |text: &str| format!("[layers]\n{text}\n[router]\n"));
    let given = |text: &str| parse(&GOOD.replacen(hba, everywhere, 1).replacen(table, &with(text), 1));
    let alone = "vip_interface = \"eth0\"\nvip_standby_address = \"10.0.0.101/24\"";
    let layers = given(alone).unwrap().layers;
    let standbys = layers.vip_standby.unwrap();
    assert_eq!((layers.vip, standbys.address, standbys.prefix), (None, [10, 0, 0, 101].into(), 24));
    assert_eq!((standbys.interface.as_str(), standbys.mode), ("eth0", LayerMode::Automatic));
    let both = given(&format!("{alone}\nvip_address = \"10.0.0.100/24\"")).unwrap().layers;
    assert_eq!(both.vip.unwrap().interface, both.vip_standby.unwrap().interface);
    assert_eq!(given("vip_standby = \"off\"").unwrap().layers.vip_standby, None);
    check(
        &[
            (table, &with(alone)),
            (table, &with("vip_standby = \"automatic\"")),
            (table, &with(&format!("{alone}\nvip_standby = \"required\""))),
            (table, &with("vip_standby_address = \"10.0.0.101\"")),
            (table, &with(&format!("{alone}\nvip_address = \"10.0.0.101\""))),
            (table, &with("vip_interface = \"eth0\"\nvip_standby_address = \"127.0.0.1\"")),
            (table, &with("vip_interface = \"eth0\"\nvip_standby_address = \"10.0.0.2\"")),
        ],
        expect![[r#"
            m.toml: postgresql.listen_addresses: PostgreSQL does not listen on 10.0.0.101; set it to `*`: the address comes and goes
            m.toml: layers.vip_standby_address: missing; add the address that is to be a standby's
            m.toml: layers.vip_standby: it protects nothing, so it can't be required; use off or automatic
            m.toml: layers.vip_interface: missing; add the interface it is put on
            m.toml: layers.vip_standby_address: 10.0.0.101 is layers.vip_address, too; use another: the two may be on different hosts
            m.toml: layers.vip_standby_address: `127.0.0.1` is no address that hosts could share; write it as 10.0.0.100/24 or fd00::100/64, or without the length
            m.toml: layers.vip_standby_address: 10.0.0.2 is the host of a member; use one that no host has of its own
        "#]],
    );
}

#[test]
fn postgresql_errors() {
    check(
        &[
            ("bin_dir = \"/usr/lib/postgresql/15/bin\"", ""),
            ("shared_buffers = \"128MB\"", "Fsync = \"off\""),
            ("shared_buffers = \"128MB\"", "synchronous_standby_names = \"*\""),
            ("shared_buffers = \"128MB\"", "recovery_target_time = \"now\""),
            ("shared_buffers = \"128MB\"", "wal_level = \"minimal\""),
            ("shared_buffers = \"128MB\"", "shared_buffers = [\"128MB\"]"),
            ("shared_buffers = \"128MB\"", "shared_buffers = \"1\\nfsync = off\""),
            ("hba = [\"host all", "hba = [\"hsot all"),
            ("hba = [", "replication_user = \"postgres\"\nhba = ["),
            ("hba = [", "superuser = \"po'stgres\"\nhba = ["),
            ("hba = [", "listen_addresses = \"a'b\"\nhba = ["),
        ],
        expect![[r#"
            m.toml: postgresql.bin_dir: missing (never guessed: a newly installed version would be picked by accident); add it, e.g. /usr/lib/postgresql/15/bin
            m.toml: postgresql.parameters.Fsync: this setting belongs to Matriarch; remove it (without it a crash loses acknowledged commits)
            m.toml: postgresql.parameters.synchronous_standby_names: this setting belongs to Matriarch; remove it (it is the live catch against starts by hand)
            m.toml: postgresql.parameters.recovery_target_time: this setting belongs to Matriarch; remove it (Matriarch writes recovery settings and includes itself)
            m.toml: postgresql.parameters.wal_level: standbys need `replica`, logical slots `logical`; write one of them or nothing
            m.toml: postgresql.parameters.shared_buffers: a value of type array can't be a PostgreSQL setting; write text, a number or a boolean; lists as one text
            m.toml: postgresql.parameters.shared_buffers: the value has a control character or spans lines; write it on one line
            m.toml: postgresql.hba[0]: `hsot all all 10.0.0.0/24 scram-sha-256` is no line of pg_hba.conf; start it with one of local, host, hostssl, hostnossl, hostgssenc, hostnogssenc
            m.toml: postgresql.replication_user: `postgres` is the superuser too; use a role of its own
            m.toml: postgresql.superuser: `po'stgres` can't name a role; use 1 to 63 of a-z, 0-9 and `_`, not starting with pg_
            m.toml: postgresql.listen_addresses: `a'b` is no list of addresses; write addresses with commas between, or `*`
        "#]],
    );
}

#[test]
fn without_insecure_the_manager_must_stay_on_loopback() {
    let text = GOOD.replace("insecure = true", "").replace("10.0.0.", "127.0.0.");
    parse(&text).unwrap();
    let router = text.replace("127.0.0.1:6432", "10.0.0.1:6432");
    assert_eq!(parse(&router).unwrap_err().key, "router.read_write");
    let metrics = text.replace("[router]", "[router]\nmetrics = \"0.0.0.0:6480\"");
    assert_eq!(parse(&metrics).unwrap_err().key, "router.metrics");
    let agent = text.replace("unix:/run/matriarch/agent.sock", "tcp:0.0.0.0:7402");
    assert_eq!(parse(&agent).unwrap_err().key, "agent.listen");
}

#[test]
fn what_a_host_lacks_is_found_by_purpose_and_nothing_is_created() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let text = GOOD
        .replace("name = \"demo\"", &format!("name = \"demo\"\nsecret_file = \"{}\"", at("secret").display()))
        .replace(
            "hba = [",
            &format!(
                "superuser_password_file = \"{0}\"\nreplication_password_file = \"{0}\"\nhba = [",
                at("pass").display()
            ),
        );
    let file = at("matriarch.toml");
    fs::write(&file, &text).unwrap();
    let key = |purpose| Config::load_for(&file, purpose).map_err(|e| e.key);
    assert!(key(Purpose::Client).is_ok());
    assert!(key(Purpose::Router).is_ok());
    assert_eq!(key(Purpose::Manager).unwrap_err(), "cluster.secret_file");

    fs::write(at("secret"), "x".repeat(40)).unwrap();
    fs::set_permissions(at("secret"), fs::Permissions::from_mode(0o644)).unwrap();
    let error = Config::load(&file).unwrap_err().to_string();
    assert!(error.contains("has mode 0644") && error.ends_with(&format!("chmod 0600 {}", at("secret").display())));
    fs::set_permissions(at("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    assert!(key(Purpose::Manager).is_ok());
    assert_eq!(key(Purpose::Agent).unwrap_err(), "postgresql.superuser_password_file");

    fs::write(at("pass"), "pw\n").unwrap();
    fs::set_permissions(at("pass"), fs::Permissions::from_mode(0o600)).unwrap();
    assert!(Config::load(&file).is_ok());
    let unresolved = text.replace("host = \"10.0.0.3\"", "host = \"no-such-host.invalid\"");
    fs::write(&file, unresolved).unwrap();
    assert_eq!(key(Purpose::Router).unwrap_err(), "cluster.members[2].host");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
}

#[test]
fn a_missing_file_says_what_to_do() {
    let error = Config::load(Path::new("/nonexistent/matriarch.toml")).unwrap_err().to_string();
    expect!["/nonexistent/matriarch.toml: can't be read (No such file or directory (os error 2)); create it (docs/install.md), or name another with --config"]
        .assert_eq(&error);
}

#[test]
fn the_api_listens_where_a_manager_answers() {
    assert_eq!(parse(GOOD).unwrap().rest, None, "off without its table");
    let with = |text: &str| parse(&format!("{GOOD}\n[rest]\n{text}"));
    let read_only = with("").unwrap().rest.unwrap();
    assert_eq!(read_only.listen, "127.0.0.1:8008".parse().unwrap());
    assert_eq!((read_only.login, read_only.certificate, read_only.allowlist.len()), (None, None, 0));
    assert!(with("listen = \"127.0.0.1:6433\"").unwrap_err().to_string().contains("is taken by router.read_only"));
    let full = "username = \"ops\"\npassword_file = \"/p\"\nallowlist = [\"10.0.0.0/24\", \"::1\"]\n\
                tls_certificate_file = \"/c\"\ntls_key_file = \"/k\"";
    let full = with(full).unwrap().rest.unwrap();
    assert_eq!(full.login.unwrap().username, "ops");
    assert_eq!(full.certificate, Some(CertificateFiles { certificate: "/c".into(), key: "/k".into() }));
    assert!(full.allowlist[0].has("10.0.0.9".parse().unwrap()) && !full.allowlist[0].has("10.0.1.9".parse().unwrap()));
}

#[test]
fn errors_of_the_api() {
    let edits = [
        "port = 8008",
        "username = \"ops\"",
        "password_file = \"/p\"",
        "username = \"o:s\"\npassword_file = \"/p\"",
        "username = \"ops\"\npassword_file = \"p\"",
        "allowlist = [\"10.0.0.0/8\"]",
        "username = \"ops\"\npassword_file = \"/p\"\nallowlist = [\"::1\", \"db1.example\"]",
        "username = \"ops\"\npassword_file = \"/p\"\nallowlist = [\"10.0.0.0/40\"]",
        "allowlist = \"10.0.0.0/8\"",
        "tls_key_file = \"/k\"",
        "tls_certificate_file = \"/c\"",
    ]
    .map(|text| format!("[rest]\n{text}\n[router]\n"));
    let edits: Vec<(&str, &str)> = edits.iter().map(|to| ("[router]\n", to.as_str())).collect();
    check(
        &edits,
        expect![[r#"
        m.toml: rest.port: unknown key in line 30; known here: listen, username, password_file, allowlist, tls_certificate_file, tls_key_file
        m.toml: rest.password_file: missing; name a file with the user's password
        m.toml: rest.username: missing; name the user whose password that is
        m.toml: rest.username: `o:s` can't be a user's name; use at least one character, and no colon
        m.toml: rest.password_file: `p` is a relative path; write it from the root (/…)
        m.toml: rest.allowlist: given, but without a login nobody may change anything from anywhere; set rest.username and rest.password_file, or remove it
        m.toml: rest.allowlist[1]: `db1.example` is no network: no address; write e.g. 10.0.0.0/24, 10.0.0.1 or fd00::/64
        m.toml: rest.allowlist[0]: `10.0.0.0/40` is no network: no such prefix; write e.g. 10.0.0.0/24, 10.0.0.1 or fd00::/64
        m.toml: rest.allowlist: invalid type: string "10.0.0.0/8", expected a sequence (line 30); correct the line; deploy/matriarch.toml.example has every key
        m.toml: rest.tls_certificate_file: missing; name the key's certificate
        m.toml: rest.tls_key_file: missing; name the certificate's key
    "#]],
    );
}

#[test]
fn the_api_leaves_loopback_with_a_certificate_only() {
    let text = GOOD.replace("insecure = true", "").replace("10.0.0.", "127.0.0.");
    let with = |more: &str| parse(&format!("{text}\n[rest]\nlisten = \"10.0.0.1:8008\"\n{more}"));
    let refused = with("").unwrap_err();
    assert_eq!(refused.key, "rest.listen");
    assert!(refused.advice.starts_with("set rest.tls_certificate_file and rest.tls_key_file, "), "{refused}");
    with("tls_certificate_file = \"/c\"\ntls_key_file = \"/k\"").unwrap();
}

#[test]
fn what_the_api_needs_from_the_host_is_looked_at_for_the_manager() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let write = |name: &str, mode| {
        fs::write(at(name), "x".repeat(40)).unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    let rest = format!(
        "[rest]\nusername = \"ops\"\npassword_file = \"{}\"\ntls_certificate_file = \"{}\"\ntls_key_file = \"{}\"\n",
        at("pass").display(),
        at("crt").display(),
        at("key").display()
    );
    let secret = format!("name = \"demo\"\nsecret_file = \"{}\"", at("secret").display());
    fs::write(at("m.toml"), format!("{}\n{rest}", GOOD.replace("name = \"demo\"", &secret))).unwrap();
    let key = || Config::load_for(&at("m.toml"), Purpose::Manager).map(drop).map_err(|error| error.key);
    write("secret", 0o600);
    assert_eq!(key().unwrap_err(), "rest.password_file");
    write("pass", 0o640);
    let open = Config::load_for(&at("m.toml"), Purpose::Manager).unwrap_err();
    assert!(open.to_string().contains("has mode 0640") && !open.to_string().contains("xxxx"), "{open}");
    write("pass", 0o600);
    assert_eq!(key().unwrap_err(), "rest.tls_certificate_file");
    write("crt", 0o644);
    write("key", 0o644);
    assert_eq!(key().unwrap_err(), "rest.tls_key_file");
    write("key", 0o600);
    assert_eq!(key(), Ok(()));
    assert!(Config::load_for(&at("m.toml"), Purpose::Router).is_ok(), "it is none of the router's");
}

/// n3 is a witness; the rest of the file is that of `me`.
fn with_witness(me: &str) -> String {
    let text = GOOD.replace("host = \"10.0.0.3\"", "host = \"10.0.0.3\"\nwitness = true");
    text.replace("[member]\nid = \"n1\"", &format!("[member]\nid = \"{me}\""))
}

/// What a manager alone needs.
fn of_witness() -> String {
    let text = with_witness("n3");
    let (before, after) = (text.find("[agent]").unwrap(), text.find("[router]").unwrap());
    text[..before].to_owned() + &text[after..]
}

#[test]
fn a_witness_has_a_manager_and_nothing_else() {
    let config = parse(&of_witness()).unwrap();
    assert!(config.member.is_none());
    let (me, manager) = config.local().unwrap();
    assert_eq!((me.as_str(), manager.listen), ("n3", "10.0.0.3:7400".parse().unwrap()));
    let known = config.find(me).unwrap();
    assert_eq!(
        (known.manager().as_str(), known.postgres(), known.agent()),
        ("10.0.0.3:7400", String::new(), String::new())
    );
    assert!(listeners(&config).iter().any(|(key, _)| *key == "manager.listen"));
    // The others know it, and are what they were.
    let beside = parse(&with_witness("n1")).unwrap();
    assert_eq!(beside.local().unwrap().0.as_str(), "n1");
    assert!(beside.witness.is_none() && beside.member.is_some());
    // With failsafe nobody needs a port of an agent that is not there.
    assert!(parse(&of_witness().replace("insecure = true", "insecure = true\nfailsafe = true")).is_ok());
    // Two of them on one host differ by their managers' ports alone.
    let more = "[[cluster.members]]\nid = \"n4\"\nhost = \"10.0.0.3\"\nmanager_port = 7500\nwitness = true\n[member]";
    assert!(parse(&of_witness().replace("[member]", more)).is_ok());
}

#[test]
fn what_a_witness_can_not_have_is_an_error() {
    let wrong = |text: String| parse(&text).unwrap_err().to_string() + "\n";
    let lines = [
        wrong(with_witness("n3")),
        wrong(of_witness().replace("witness = true", "witness = true\npostgres_port = 5432")),
        wrong(of_witness().replace("witness = true", "witness = true\nagent_port = 7401")),
        wrong(of_witness().replace("witness = true", "witness = true\nmanager_port = 0")),
        wrong(of_witness().replace("witness = true", "witness = 1")),
        wrong(of_witness().replace("host = \"10.0.0.2\"", "host = \"10.0.0.2\"\nwitness = true")),
        wrong(of_witness() + "[hooks]\n"),
        wrong(of_witness().replace("witness = true", "")),
    ];
    expect![[r#"
        m.toml: agent: given, but this host is a witness; remove it: a witness has a manager only
        m.toml: cluster.members[2].postgres_port: given, but n3 is a witness, without agent and PostgreSQL; remove it, or remove `witness`
        m.toml: cluster.members[2].agent_port: given, but n3 is a witness, without agent and PostgreSQL; remove it, or remove `witness`
        m.toml: cluster.members[2].manager_port: 0 is no port; use 1 to 65535
        m.toml: cluster.members.witness: invalid type: integer `1`, expected a boolean (line 16); correct the line; deploy/matriarch.toml.example has every key
        m.toml: cluster.members: 1 of 3 have PostgreSQL, the others are witnesses; list two or more that do: with fewer nobody could take over
        m.toml: hooks: given, but this host is a witness; remove it: a witness has a manager only
        m.toml: postgresql: missing; add the table; deploy/matriarch.toml.example shows it
    "#]]
    .assert_eq(&lines.concat());
}

/// So many further members, each a learner or not.
fn with_more(learners: &[bool]) -> String {
    let more = learners.iter().zip(4..).map(|(learner, n)| {
        let learner = if *learner { "learner = true\n" } else { "" };
        format!("[[cluster.members]]\nid = \"n{n}\"\nhost = \"10.0.0.{n}\"\n{learner}")
    });
    GOOD.replace("[member]", &(more.collect::<String>() + "[member]"))
}

#[test]
fn seven_vote_and_further_members_are_learners() {
    let config = parse(&with_more(&[true, false, true])).unwrap();
    let learners = config.cluster.members.iter().filter(|m| m.learner).map(|m| m.id.as_str());
    assert_eq!(learners.collect::<Vec<_>>(), ["n4", "n6"]);
    // It has all that a member has.
    let fourth = with_more(&[true]).replace("[member]\nid = \"n1\"", "[member]\nid = \"n4\"");
    assert!(parse(&fourth).unwrap().member.is_some());
    assert!(parse(&with_more(&[[false; 4].as_slice(), &[true; 25]].concat())).is_ok());
    let wrong = |text: String| parse(&text).unwrap_err().to_string() + "\n";
    let lines = [
        wrong(with_more(&[false; 5])),
        wrong(with_more(&[[false; 5].as_slice(), &[true; 2]].concat())),
        wrong(with_more(&[true; 26])),
        wrong(GOOD.replace("host = \"10.0.0.3\"", "host = \"10.0.0.3\"\nlearner = true")),
        wrong(with_more(&[true]).replace("learner = true", "learner = true\nwitness = true")),
    ];
    expect![[r#"
        m.toml: cluster.members: 8 given; let no more than seven vote: make the eighth and every further one a learner (`learner = true`)
        m.toml: cluster.members: 8 vote, 2 are learners; let no more than seven vote: make the eighth and every further one a learner (`learner = true`)
        m.toml: cluster.members: 3 vote, 26 are learners; list at most 25 learners
        m.toml: cluster.members: 2 vote, 1 are learners; list three to seven members that vote; fewer can't lose one and still decide
        m.toml: cluster.members[3].learner: given, but n4 is a witness, which is there to vote; remove it, or remove `witness`
    "#]].assert_eq(&lines.concat());
}
