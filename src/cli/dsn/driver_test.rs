use expect_test::{Expect, expect};
use proptest::prelude::*;
use tokio_postgres::config::{Config, Host, TargetSessionAttrs};

use super::*;

/// A name that has something special for each of the formats.
const ODD: &str = "a b/c?d#e%f'g\"h\\i;j=k@l:m+n,ö";

fn target(through: Through, endpoints: &[&str], access: Access) -> Target {
    let endpoints = endpoints.iter().map(|e| e.parse().unwrap()).collect();
    let open_s = if through == Through::Members { CONNECT_S } else { 23 };
    Target { through, endpoints, access, database: "shop".into(), user: Some("app".into()), open_s }
}

fn members(access: Access) -> Target {
    target(Through::Members, &["10.0.0.1:5432", "db2.example:5433"], access)
}

fn check(to: &Target, expected: Expect) {
    let line = |driver: Driver| match driver.string(to) {
        Ok(string) => format!("{}: {string}\n", driver.name()),
        Err(reason) => format!("{}: none, {reason}\n", driver.name()),
    };
    expected.assert_eq(&Driver::ALL.map(line).concat());
}

#[test]
fn to_the_primary() {
    check(
        &members(Access::ReadWrite),
        expect![[r#"
            libpq-uri: postgresql://app@10.0.0.1:5432,db2.example:5433/shop?target_session_attrs=read-write&connect_timeout=3&keepalives_idle=5&keepalives_interval=2&keepalives_count=3&tcp_user_timeout=10000
            libpq: host=10.0.0.1,db2.example port=5432,5433 user=app dbname=shop target_session_attrs=read-write connect_timeout=3 keepalives_idle=5 keepalives_interval=2 keepalives_count=3 tcp_user_timeout=10000
            jdbc: jdbc:postgresql://10.0.0.1:5432,db2.example:5433/shop?user=app&targetServerType=primary&hostRecheckSeconds=2&connectTimeout=3&sslResponseTimeout=3000&loginTimeout=12&tcpKeepAlive=true
            node: none, pg takes one host and doesn't look whether it is the primary: name a router with --router HOST:PORT. pg-native takes libpq's string, postgres.js asyncpg's with primary for read-write
            go: postgresql://app@10.0.0.1:5432,db2.example:5433/shop?target_session_attrs=read-write&connect_timeout=3
            dotnet: Host=10.0.0.1:5432,db2.example:5433;Username=app;Database=shop;Target Session Attributes=read-write;Host Recheck Seconds=2;Timeout=3;TCP Keepalive=true;TCP Keepalive Time=5;TCP Keepalive Interval=2
            sqlalchemy: postgresql+psycopg://app@/shop?host=10.0.0.1,db2.example&port=5432,5433&target_session_attrs=read-write&connect_timeout=3&keepalives_idle=5&keepalives_interval=2&keepalives_count=3&tcp_user_timeout=10000
            asyncpg: postgresql://app@10.0.0.1:5432,db2.example:5433/shop?target_session_attrs=read-write
            rust: host=10.0.0.1,db2.example port=5432,5433 user=app dbname=shop target_session_attrs=read-write connect_timeout=3 keepalives_idle=5 keepalives_interval=2 keepalives_retries=3 tcp_user_timeout=10
        "#]],
    );
}

#[test]
fn to_a_standby() {
    check(
        &members(Access::ReadOnly),
        expect![[r#"
            libpq-uri: postgresql://app@10.0.0.1:5432,db2.example:5433/shop?target_session_attrs=prefer-standby&connect_timeout=3&keepalives_idle=5&keepalives_interval=2&keepalives_count=3&tcp_user_timeout=10000
            libpq: host=10.0.0.1,db2.example port=5432,5433 user=app dbname=shop target_session_attrs=prefer-standby connect_timeout=3 keepalives_idle=5 keepalives_interval=2 keepalives_count=3 tcp_user_timeout=10000
            jdbc: jdbc:postgresql://10.0.0.1:5432,db2.example:5433/shop?user=app&targetServerType=preferSecondary&hostRecheckSeconds=2&loadBalanceHosts=true&connectTimeout=3&sslResponseTimeout=3000&loginTimeout=12&tcpKeepAlive=true
            node: none, pg takes one host and doesn't look whether it is the primary: name a router with --router HOST:PORT. pg-native takes libpq's string, postgres.js asyncpg's with primary for read-write
            go: postgresql://app@10.0.0.1:5432,db2.example:5433/shop?target_session_attrs=prefer-standby&connect_timeout=3
            dotnet: Host=10.0.0.1:5432,db2.example:5433;Username=app;Database=shop;Target Session Attributes=prefer-standby;Host Recheck Seconds=2;Load Balance Hosts=true;Timeout=3;TCP Keepalive=true;TCP Keepalive Time=5;TCP Keepalive Interval=2
            sqlalchemy: postgresql+psycopg://app@/shop?host=10.0.0.1,db2.example&port=5432,5433&target_session_attrs=prefer-standby&connect_timeout=3&keepalives_idle=5&keepalives_interval=2&keepalives_count=3&tcp_user_timeout=10000
            asyncpg: postgresql://app@10.0.0.1:5432,db2.example:5433/shop?target_session_attrs=prefer-standby
            rust: host=10.0.0.1,db2.example port=5432,5433 user=app dbname=shop target_session_attrs=read-only load_balance_hosts=random connect_timeout=3 keepalives_idle=5 keepalives_interval=2 keepalives_retries=3 tcp_user_timeout=10
        "#]],
    );
}

#[test]
fn through_a_router() {
    check(
        &target(Through::Router, &["127.0.0.1:6432"], Access::ReadOnly),
        expect![[r#"
        libpq-uri: postgresql://app@127.0.0.1:6432/shop?connect_timeout=23&keepalives_idle=5&keepalives_interval=2&keepalives_count=3&tcp_user_timeout=10000
        libpq: host=127.0.0.1 port=6432 user=app dbname=shop connect_timeout=23 keepalives_idle=5 keepalives_interval=2 keepalives_count=3 tcp_user_timeout=10000
        jdbc: jdbc:postgresql://127.0.0.1:6432/shop?user=app&connectTimeout=3&sslResponseTimeout=23000&loginTimeout=26&tcpKeepAlive=true
        node: postgresql://app@127.0.0.1:6432/shop
        go: postgresql://app@127.0.0.1:6432/shop?connect_timeout=23
        dotnet: Host=127.0.0.1:6432;Username=app;Database=shop;Timeout=23;TCP Keepalive=true;TCP Keepalive Time=5;TCP Keepalive Interval=2
        sqlalchemy: postgresql+psycopg://app@/shop?host=127.0.0.1&port=6432&connect_timeout=23&keepalives_idle=5&keepalives_interval=2&keepalives_count=3&tcp_user_timeout=10000
        asyncpg: postgresql://app@127.0.0.1:6432/shop
        rust: host=127.0.0.1 port=6432 user=app dbname=shop connect_timeout=3 keepalives_idle=5 keepalives_interval=2 keepalives_retries=3 tcp_user_timeout=10
    "#]],
    );
    let routers = target(Through::Router, &["r1:6432", "r2:6432"], Access::ReadWrite);
    assert_eq!(
        Driver::LibpqUri.string(&routers).unwrap().split_once('?').unwrap().0,
        "postgresql://app@r1:6432,r2:6432/shop"
    );
    assert_eq!(Driver::Node.string(&routers).unwrap(), "postgresql://app@r1:6432/shop");
    assert_eq!(Driver::Node.notes(&routers)[0], "pg takes one host: this is the first router");
}

#[test]
fn without_a_user_there_is_none_in_any() {
    let to = Target { user: None, ..target(Through::Router, &["r1:6432"], Access::ReadWrite) };
    for driver in Driver::ALL {
        let string = driver.string(&to).unwrap().to_lowercase();
        assert!(!string.contains('@') && !string.contains("user=") && !string.contains("username"), "{string}");
    }
}

#[test]
fn odd_names_are_escaped_as_each_driver_reads_them() {
    let mut to = members(Access::ReadWrite);
    (to.database, to.user) = (ODD.into(), Some(ODD.into()));
    check(
        &to,
        expect![[r#"
            libpq-uri: postgresql://a%20b%2Fc%3Fd%23e%25f%27g%22h%5Ci%3Bj%3Dk%40l%3Am%2Bn%2C%C3%B6@10.0.0.1:5432,db2.example:5433/a%20b%2Fc%3Fd%23e%25f%27g%22h%5Ci%3Bj%3Dk%40l%3Am%2Bn%2C%C3%B6?target_session_attrs=read-write&connect_timeout=3&keepalives_idle=5&keepalives_interval=2&keepalives_count=3&tcp_user_timeout=10000
            libpq: host=10.0.0.1,db2.example port=5432,5433 user='a b/c?d#e%f\'g"h\\i;j=k@l:m+n,ö' dbname='a b/c?d#e%f\'g"h\\i;j=k@l:m+n,ö' target_session_attrs=read-write connect_timeout=3 keepalives_idle=5 keepalives_interval=2 keepalives_count=3 tcp_user_timeout=10000
            jdbc: jdbc:postgresql://10.0.0.1:5432,db2.example:5433/a%20b%2Fc%3Fd%23e%25f%27g%22h%5Ci%3Bj%3Dk%40l%3Am%2Bn%2C%C3%B6?user=a%20b%2Fc%3Fd%23e%25f%27g%22h%5Ci%3Bj%3Dk%40l%3Am%2Bn%2C%C3%B6&targetServerType=primary&hostRecheckSeconds=2&connectTimeout=3&sslResponseTimeout=3000&loginTimeout=12&tcpKeepAlive=true
            node: none, pg takes one host and doesn't look whether it is the primary: name a router with --router HOST:PORT. pg-native takes libpq's string, postgres.js asyncpg's with primary for read-write
            go: postgresql://a%20b%2Fc%3Fd%23e%25f%27g%22h%5Ci%3Bj%3Dk%40l%3Am%2Bn%2C%C3%B6@10.0.0.1:5432,db2.example:5433/a%20b%2Fc%3Fd%23e%25f%27g%22h%5Ci%3Bj%3Dk%40l%3Am%2Bn%2C%C3%B6?target_session_attrs=read-write&connect_timeout=3
            dotnet: Host=10.0.0.1:5432,db2.example:5433;Username="a b/c?d#e%f'g""h\i;j=k@l:m+n,ö";Database="a b/c?d#e%f'g""h\i;j=k@l:m+n,ö";Target Session Attributes=read-write;Host Recheck Seconds=2;Timeout=3;TCP Keepalive=true;TCP Keepalive Time=5;TCP Keepalive Interval=2
            sqlalchemy: postgresql+psycopg://a%20b%2Fc%3Fd%23e%25f%27g%22h%5Ci%3Bj%3Dk%40l%3Am%2Bn%2C%C3%B6@/?host=10.0.0.1,db2.example&port=5432,5433&dbname=a%20b%2Fc%3Fd%23e%25f%27g%22h%5Ci%3Bj%3Dk%40l%3Am%2Bn%2C%C3%B6&target_session_attrs=read-write&connect_timeout=3&keepalives_idle=5&keepalives_interval=2&keepalives_count=3&tcp_user_timeout=10000
            asyncpg: postgresql://a%20b%2Fc%3Fd%23e%25f%27g%22h%5Ci%3Bj%3Dk%40l%3Am%2Bn%2C%C3%B6@10.0.0.1:5432,db2.example:5433/a%20b%2Fc%3Fd%23e%25f%27g%22h%5Ci%3Bj%3Dk%40l%3Am%2Bn%2C%C3%B6?target_session_attrs=read-write
            rust: host=10.0.0.1,db2.example port=5432,5433 user='a b/c?d#e%f\'g"h\\i;j=k@l:m+n,ö' dbname='a b/c?d#e%f\'g"h\\i;j=k@l:m+n,ö' target_session_attrs=read-write connect_timeout=3 keepalives_idle=5 keepalives_interval=2 keepalives_retries=3 tcp_user_timeout=10
        "#]],
    );
}

#[test]
fn addresses_of_ipv6_stand_as_each_driver_reads_them() {
    check(
        &target(Through::Members, &["[fd00::1]:5432", "n2:5433"], Access::ReadWrite),
        expect![[r#"
            libpq-uri: postgresql://app@[fd00::1]:5432,n2:5433/shop?target_session_attrs=read-write&connect_timeout=3&keepalives_idle=5&keepalives_interval=2&keepalives_count=3&tcp_user_timeout=10000
            libpq: host=fd00::1,n2 port=5432,5433 user=app dbname=shop target_session_attrs=read-write connect_timeout=3 keepalives_idle=5 keepalives_interval=2 keepalives_count=3 tcp_user_timeout=10000
            jdbc: jdbc:postgresql://[fd00::1]:5432,n2:5433/shop?user=app&targetServerType=primary&hostRecheckSeconds=2&connectTimeout=3&sslResponseTimeout=3000&loginTimeout=12&tcpKeepAlive=true
            node: none, pg takes one host and doesn't look whether it is the primary: name a router with --router HOST:PORT. pg-native takes libpq's string, postgres.js asyncpg's with primary for read-write
            go: host=fd00::1,n2 port=5432,5433 user=app dbname=shop target_session_attrs=read-write connect_timeout=3
            dotnet: Host=[fd00::1]:5432,n2:5433;Username=app;Database=shop;Target Session Attributes=read-write;Host Recheck Seconds=2;Timeout=3;TCP Keepalive=true;TCP Keepalive Time=5;TCP Keepalive Interval=2
            sqlalchemy: postgresql+psycopg://app@/shop?host=fd00::1,n2&port=5432,5433&target_session_attrs=read-write&connect_timeout=3&keepalives_idle=5&keepalives_interval=2&keepalives_count=3&tcp_user_timeout=10000
            asyncpg: postgresql://app@/shop?host=%5Bfd00%3A%3A1%5D%3A5432%2Cn2%3A5433&target_session_attrs=read-write
            rust: host=fd00::1,n2 port=5432,5433 user=app dbname=shop target_session_attrs=read-write connect_timeout=3 keepalives_idle=5 keepalives_interval=2 keepalives_retries=3 tcp_user_timeout=10
        "#]],
    );
    let one = target(Through::Router, &["[fd00::1]:6432"], Access::ReadWrite);
    for (driver, start) in [
        (Driver::Node, "postgresql://app@[fd00::1]:6432/shop"),
        (Driver::Go, "postgresql://app@[fd00::1]:6432/shop?"),
        (Driver::Asyncpg, "postgresql://app@[fd00::1]:6432/shop"),
        (Driver::Dotnet, "Host=[fd00::1]:6432;"),
        (Driver::Sqlalchemy, "postgresql+psycopg://app@/shop?host=fd00::1&port=6432&"),
    ] {
        let string = driver.string(&one).unwrap();
        assert!(string.starts_with(start), "{string}");
    }
}

#[test]
fn what_node_postgres_does_not_decode_is_not_encoded_for_it() {
    let mut to = target(Through::Router, &["r1:6432"], Access::ReadWrite);
    to.database = "a b/c;d:e@f&g=h+i$j,k%l".into();
    assert_eq!(Driver::Node.string(&to).unwrap(), "postgresql://app@r1:6432/a%20b/c;d:e@f&g=h+i$j,k%25l");
    for name in ["what?", "no#1", ".", "a/../b"] {
        to.database = name.into();
        assert!(Driver::Node.string(&to).unwrap_err().contains("`database`"), "{name}");
    }
}

#[test]
fn only_what_clients_can_connect_to_is_an_endpoint() {
    for good in ["10.0.0.1:6432", "db-1.example_x:1", "[::1]:65535"] {
        assert_eq!(good.parse::<Endpoint>().unwrap().to_string(), good);
    }
    for bad in [
        "",
        "n1",
        "n1:",
        ":6432",
        "n1:0",
        "n1:65536",
        "fd00::1:6432",
        "[fd00::1]",
        "[n1]:6432",
        "[fd00::1:6432",
        "[]:1",
        "0.0.0.0:6432",
        "[::]:6432",
        "224.0.0.1:1",
        "a,b:6432",
        "/run:5432",
        "ö:1",
        "fe80::1%eth0:1",
    ] {
        assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
    }
}

#[test]
fn notes_fit_on_a_line() {
    for through in [Through::Members, Through::Router] {
        for access in [Access::ReadWrite, Access::ReadOnly] {
            for driver in Driver::ALL {
                for note in driver.notes(&target(through, &["r1:6432", "r2:6432"], access)) {
                    assert!(note.chars().count() <= 116, "{} characters: {note}", note.chars().count());
                }
            }
        }
    }
}

#[test]
fn the_string_of_tokio_postgres_is_read_with_its_units() {
    let config: Config = Driver::Rust.string(&members(Access::ReadWrite)).unwrap().parse().unwrap();
    assert_eq!(config.get_connect_timeout().unwrap().as_secs(), CONNECT_S);
    assert_eq!(config.get_tcp_user_timeout().unwrap().as_secs(), UNACKNOWLEDGED_S);
    assert_eq!(config.get_keepalives_idle().as_secs(), KEEPALIVE_IDLE_S);
    assert_eq!(config.get_keepalives_retries(), Some(KEEPALIVE_COUNT as u32));
    assert_eq!(config.get_target_session_attrs(), TargetSessionAttrs::ReadWrite);
    let config: Config = Driver::Rust.string(&members(Access::ReadOnly)).unwrap().parse().unwrap();
    assert_eq!(config.get_target_session_attrs(), TargetSessionAttrs::ReadOnly);
}

/// tokio-postgres reads libpq's strings, but for the names that differ.
fn as_tokio_postgres_knows_it(string: &str) -> Config {
    string.replace("keepalives_count", "keepalives_retries").replace("=prefer-standby", "=read-only").parse().unwrap()
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let host = prop_oneof![
        "[a-z][a-z0-9_-]{0,8}(\\.[a-z0-9]{1,8}){0,2}",
        any::<std::net::Ipv4Addr>().prop_map(|ip| ip.to_string()),
        any::<std::net::Ipv6Addr>().prop_map(|ip| ip.to_string()),
    ];
    (host, 1..=u16::MAX).prop_filter_map("nowhere", |(host, port)| Endpoint::new(&host, port))
}

prop_compose! {
    fn targets()(
        endpoints in prop::collection::vec(endpoint(), 1..6),
        // PostgreSQL's names have everything but NUL.
        database in "[^\0]{1,20}",
        user in prop::option::of("[^\0]{1,20}"),
        router in any::<bool>(),
        reads in any::<bool>(),
    ) -> Target {
        let through = if router { Through::Router } else { Through::Members };
        let access = if reads { Access::ReadOnly } else { Access::ReadWrite };
        Target { through, endpoints, access, database, user, open_s: 3 }
    }
}

proptest! {
    /// Of libpq's form: the URIs and the keywords of three drivers, whatever the names and hosts are.
    #[test]
    fn what_is_written_is_what_is_read(to in targets()) {
        for driver in [Driver::LibpqUri, Driver::Libpq, Driver::Go, Driver::Rust] {
            let string = driver.string(&to).unwrap();
            let read = as_tokio_postgres_knows_it(&string);
            let hosts: Vec<Host> = to.endpoints.iter().map(|e| Host::Tcp(e.host.clone())).collect();
            let ports: Vec<u16> = to.endpoints.iter().map(|e| e.port).collect();
            prop_assert_eq!(read.get_hosts(), hosts, "{}", string);
            prop_assert_eq!(read.get_ports(), ports, "{}", string);
            prop_assert_eq!(read.get_dbname(), Some(to.database.as_str()), "{}", string);
            if let Some(user) = &to.user {
                prop_assert_eq!(read.get_user(), Some(user.as_str()), "{}", string);
            }
            prop_assert_eq!(read.get_password(), None);
            let attributes = match (to.through, to.access) {
                (Through::Router, _) => TargetSessionAttrs::Any,
                (Through::Members, Access::ReadWrite) => TargetSessionAttrs::ReadWrite,
                (Through::Members, Access::ReadOnly) => TargetSessionAttrs::ReadOnly,
            };
            prop_assert_eq!(read.get_target_session_attrs(), attributes, "{}", string);
        }
    }

    /// Every name comes back when it is split at what separates and the quotes are undone.
    #[test]
    fn values_of_npgsql_end_where_they_should(to in targets()) {
        let string = Driver::Dotnet.string(&to).unwrap();
        let read = ado_pairs(&string);
        prop_assert_eq!(read.iter().find(|(key, _)| key == "Database").map(|(_, v)| v.as_str()), Some(to.database.as_str()));
        prop_assert_eq!(read.iter().find(|(key, _)| key == "Username").map(|(_, v)| v.clone()), to.user.clone());
    }
}

/// Reads `key=value;key="va""lue"`, with the rules of ADO.NET for what is between double quotes.
fn ado_pairs(string: &str) -> Vec<(String, String)> {
    let (mut pairs, mut rest) = (Vec::new(), string);
    while let Some((key, after)) = rest.split_once('=') {
        let (value, left) = match after.strip_prefix('"') {
            None => {
                let (value, left) = after.split_once(';').unwrap_or((after, ""));
                (value.trim().to_owned(), left)
            }
            Some(quoted) => {
                let marked = quoted.replace("\"\"", "\u{1}\u{1}");
                let end = marked.find('"').unwrap();
                (quoted[..end].replace("\"\"", "\""), quoted[end + 1..].trim_start_matches(';'))
            }
        };
        pairs.push((key.to_owned(), value));
        rest = left;
    }
    pairs
}
