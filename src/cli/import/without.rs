//! Keys of Patroni's that have no equivalent, with why and what to do instead. The longest entry that a key begins with counts;
//! `*` stands for one part of it.

/// Patroni's own store.
const STORE: &str = "Matriarch has no external store: its managers keep the state themselves. Leave it running until the takeover is \
                     done, then it can go";
const HTTP: &str = "the API has no such setting; put a proxy in front of it where that is needed";
const ONCE: &str = "it was read when the cluster began; its data is there and is taken over (docs/initial-content.md for new clusters)";
const LIBPQ: &str =
    "members connect to each other without TLS and with a password file; keep their network to themselves";

/// Why there is none of `path`; `None`: Patroni has no such key either.
pub fn why(path: &str) -> Option<&'static str> {
    let fits = |pattern: &str| {
        let mut parts = path.split('.');
        pattern.split('.').all(|wanted| parts.next().is_some_and(|part| wanted == "*" || wanted == part))
    };
    let found = WITHOUT.iter().filter(|(pattern, _)| fits(pattern));
    found.max_by_key(|(pattern, _)| pattern.split('.').count()).map(|(_, why)| *why)
}

/// Keys of the dynamic configuration stand without a prefix.
#[rustfmt::skip]
const WITHOUT: &[(&str, &str)] = &[
    ("namespace", "it names keys in Patroni's store; cluster.name is all there is"),
    ("thread_pool_size", "threads are not limited by hand"),
    ("thread_stack_size", "threads have the system's stack size"),
    ("log", "all processes log to stderr, which the journal keeps: --log text or json, --log-level or MATRIARCH_LOG; rotation is the journal's"),
    ("log.level", "--log-level LEVEL, or MATRIARCH_LOG in a drop-in of the units"),
    ("log.type", "--log json in a drop-in of the units gives JSON"),
    ("ctl", "matriarch's commands ask the managers of the configuration file; there is no TLS between them yet: use them on the hosts"),
    ("restapi.connect_address", "nobody looks it up: each manager answers for its own member at rest.listen"),
    ("restapi.keyfile_password", "the key has to be without a passphrase, mode 0600 (openssl pkey -in KEY -out NEW)"),
    ("restapi.cafile", "client certificates are not asked for; who may change something is a matter of login and allowlist"),
    ("restapi.verify_client", "client certificates are not asked for; who may change something is a matter of login and allowlist"),
    ("restapi.ciphers", "TLS is rustls with its own choice, TLS 1.2 and 1.3"),
    ("restapi.http_extra_headers", HTTP),
    ("restapi.https_extra_headers", HTTP),
    ("restapi.request_queue_size", HTTP),
    ("restapi.server_tokens", HTTP),
    ("restapi.thread_pool_size", HTTP),
    ("bootstrap.method", ONCE),
    ("bootstrap.initdb", ONCE),
    ("bootstrap.users", ONCE),
    ("bootstrap.pg_hba", ONCE),
    ("bootstrap.post_bootstrap", ONCE),
    ("bootstrap.post_init", ONCE),
    ("bootstrap.dcs", "it was read when the cluster began; what --dynamic gives counts (patronictl show-config)"),
    ("bootstrap.*.command", ONCE),
    ("bootstrap.*.no_params", ONCE),
    ("bootstrap.*.no_leader", ONCE),
    ("bootstrap.*.keep_existing_recovery_conf", ONCE),
    ("bootstrap.*.recovery_conf", ONCE),
    ("consul", STORE),
    ("etcd", STORE),
    ("etcd3", STORE),
    ("exhibitor", STORE),
    ("raft", STORE),
    ("zookeeper", STORE),
    ("kubernetes", "Matriarch runs on hosts, not as an operator of Kubernetes; routers, or the API's health checks, lead clients"),
    ("citus", "groups of Citus are not coordinated: each of its PostgreSQL clusters can be one of Matriarch's, and the coordinator's metadata is yours"),
    ("postgresql.proxy_address", "matriarch router or your pooler: nobody looks addresses up in the cluster"),
    ("postgresql.authentication.*.sslmode", LIBPQ),
    ("postgresql.authentication.*.sslkey", LIBPQ),
    ("postgresql.authentication.*.sslpassword", LIBPQ),
    ("postgresql.authentication.*.sslcert", LIBPQ),
    ("postgresql.authentication.*.sslrootcert", LIBPQ),
    ("postgresql.authentication.*.sslcrl", LIBPQ),
    ("postgresql.authentication.*.sslcrldir", LIBPQ),
    ("postgresql.authentication.*.sslnegotiation", LIBPQ),
    ("postgresql.authentication.*.gssencmode", LIBPQ),
    ("postgresql.authentication.*.channel_binding", LIBPQ),
    ("postgresql.authentication.rewind", "a rewind connects as postgresql.superuser; drop the role if nobody else uses it"),
    ("postgresql.krbsrvname", "members log in with passwords (scram-sha-256)"),
    ("postgresql.bin_name", "programs have PostgreSQL's names; make a directory with links of those names and name it in postgresql.bin_dir"),
    ("postgresql.config_dir", "the configuration lies in the data directory, and Matriarch writes it; the old files stay where they are"),
    ("postgresql.custom_conf", "Matriarch writes postgresql.conf: put what that file sets into [postgresql.parameters]"),
    ("postgresql.pgpass", "Matriarch makes its own password file in agent.runtime_dir"),
    ("postgresql.recovery_conf", "Matriarch writes what a standby needs to recover"),
    ("postgresql.pg_ctl_timeout", "a start is ended when recovery gets no further (redo_stall_ms), not when it takes long; cluster.timings.primary_start_ms bounds a restart in place"),
    ("postgresql.use_pg_rewind", "a rewind is always tried first, a copy made when it can't be or fails (docs/rejoin.md)"),
    ("postgresql.use_slots", "members always have slots; slot_wal_max says how much WAL they may hold back"),
    ("postgresql.use_unix_socket", "the agent always connects by postgresql.socket_dir"),
    ("postgresql.use_unix_socket_repl", "a member's own slots are looked after by postgresql.socket_dir always"),
    ("postgresql.remove_data_directory_on_rewind_failure", "it is copied anew by itself, and keep_diverged_data says what stays"),
    ("postgresql.remove_data_directory_on_diverged_timelines", "it is rewound or copied anew by itself, and keep_diverged_data says what stays"),
    ("postgresql.before_stop", "a hook before a stop: see [hooks]"),
    ("postgresql.pre_promote", "a hook before a promotion, which may forbid it: see [hooks]"),
    ("postgresql.basebackup", "only max-rate has an equivalent, clone_rate; a checkpoint is always asked for, WAL is streamed, the manifest checked"),
    ("postgresql.parameters_primary", "settings by role are not kept: put what both may have into [postgresql.parameters]"),
    ("postgresql.parameters_replica", "settings by role are not kept: put what both may have into [postgresql.parameters]"),
    ("postgresql.parameters_standby_leader", "there is no standby cluster"),
    ("postgresql.pg_hba_primary", "all members have the same lines: postgresql.hba"),
    ("postgresql.pg_hba_replica", "all members have the same lines: postgresql.hba"),
    ("postgresql.pg_hba_standby_leader", "there is no standby cluster"),
    ("postgresql.pg_ident_primary", "pg_ident.conf stays as it lies in the data directory"),
    ("postgresql.pg_ident_replica", "pg_ident.conf stays as it lies in the data directory"),
    ("postgresql.pg_ident_standby_leader", "there is no standby cluster"),
    ("watchdog.safety_margin", "the time of the watchdog follows from the timings (layers.watchdog_timeout_s)"),
    ("member_slots_ttl", "a member's slot is there as long as the member is; slot_wal_max bounds the WAL that it may hold back"),
    ("check_timeline", "histories of timelines are always compared before anybody is promoted"),
    ("max_timelines_history", "the last decisions are in `matriarch history`"),
    ("standby_cluster", "a cluster that follows another cluster is not built: promote it under Patroni first, or stay with Patroni for it"),
    ("pause", "a cluster of Matriarch begins unpaused; `matriarch pause` when you want it"),
    ("failsafe_mode", "it is off, as here without the key"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_entry_counts() {
        assert!(why("log.level").unwrap().starts_with("--log-level"));
        assert!(why("log.loggers.urllib3").unwrap().starts_with("all processes log"));
        assert!(why("bootstrap.pgbackrest.command").unwrap().starts_with("it was read"));
        assert_eq!(why("bootstrap.pgbackrest"), None);
        assert_eq!(why("logs"), None);
        assert_eq!(why("postgresql.authentication.superuser.sslmode"), Some(LIBPQ));
    }
}
