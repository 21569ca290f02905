//! Connection strings, driver by driver. Pure: what is connected to goes in, text comes out.
//!
//! Names of parameters and their units differ from driver to driver, and so does what becomes of an unknown one:
//! libpq and tokio-postgres refuse it, pgx and asyncpg send it to PostgreSQL, which does. So each string has only
//! what its own driver reads.

use std::{fmt, net::IpAddr, str::FromStr};

use super::escape::{ado, is_plain, keyword, node_path, percent};
use crate::config::{host_port, is_host};

/// A SYN that gets lost is sent again after a second, and once more after two: a host that has not answered then is
/// taken for dead. libpq before 17 knows no less than two.
pub(super) const CONNECT_S: u64 = 3;
/// A connection on which nothing comes is asked for a sign of life after this long, …
const KEEPALIVE_IDLE_S: u64 = 5;
/// … again and again, …
const KEEPALIVE_INTERVAL_S: u64 = 2;
/// … and is given up after so many without an answer: 11 seconds in all.
const KEEPALIVE_COUNT: u64 = 3;
/// What was sent is given up when it was not received after this long.
const UNACKNOWLEDGED_S: u64 = 10;
/// pgjdbc and Npgsql keep in mind who was primary. By default for 10 seconds, in which they don't ask the new one.
const RECHECK_S: u64 = 2;

/// Somewhere to connect to. There is none whose host isn't a name or an address, so that no format has to escape it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    host: String,
    port: u16,
}

impl Endpoint {
    /// `None` when `host` is neither a name nor an address that somebody can connect to.
    pub(super) fn new(host: &str, port: u16) -> Option<Endpoint> {
        let nowhere = host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified() || ip.is_multicast());
        (is_host(host) && !nowhere && port != 0).then(|| Endpoint { host: host.to_owned(), port })
    }

    fn is_ipv6(&self) -> bool {
        self.host.contains(':')
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&host_port(&self.host, self.port))
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Endpoint, String> {
        let wrong =
            || "not HOST:PORT that clients can connect to; write e.g. 10.0.0.1:6432 or [fd00::1]:6432".to_owned();
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if bare.is_some() != host.contains(':') {
            return Err(wrong());
        }
        let port = port.parse().map_err(|_| wrong())?;
        Endpoint::new(bare.unwrap_or(host), port).ok_or_else(wrong)
    }
}

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The primary.
    ReadWrite,
    /// A standby, or the primary where there is none: as on the read-only port of a router.
    ReadOnly,
}

impl FromStr for Access {
    type Err = String;

    fn from_str(text: &str) -> Result<Access, String> {
        match text {
            "read-write" | "primary" => Ok(Access::ReadWrite),
            "read-only" | "standby" => Ok(Access::ReadOnly),
            _ => Err("read-write or read-only".to_owned()),
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Access::ReadWrite => "read-write",
            Access::ReadOnly => "read-only",
        })
    }
}

/// Who finds out which member it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Through {
    /// The driver: it is told all members, and asks one after the other.
    Members,
    /// A router, by what the managers decided: the driver has nothing to ask.
    Router,
}

/// What the strings lead to.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) through: Through,
    /// At least one.
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) access: Access,
    pub(super) database: String,
    /// Without one each driver has a default of its own.
    pub(super) user: Option<String>,
    /// So long one endpoint may take until the session is open; a router may hold it until there is a primary.
    pub(super) open_s: u64,
}

/// A driver, or a family that reads the same strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// A URI for libpq.
    LibpqUri,
    /// Keywords and values for libpq.
    Libpq,
    /// pgjdbc.
    Jdbc,
    /// node-postgres, the package `pg`.
    Node,
    /// pgx.
    Go,
    /// Npgsql.
    Dotnet,
    /// SQLAlchemy with psycopg 3.
    Sqlalchemy,
    /// asyncpg.
    Asyncpg,
    /// tokio-postgres.
    Rust,
}

impl Driver {
    /// As they are listed.
    pub(super) const ALL: [Driver; 9] = [
        Driver::LibpqUri,
        Driver::Libpq,
        Driver::Jdbc,
        Driver::Node,
        Driver::Go,
        Driver::Dotnet,
        Driver::Sqlalchemy,
        Driver::Asyncpg,
        Driver::Rust,
    ];

    /// As it is given.
    pub(super) fn name(self) -> &'static str {
        match self {
            Driver::LibpqUri => "libpq-uri",
            Driver::Libpq => "libpq",
            Driver::Jdbc => "jdbc",
            Driver::Node => "node",
            Driver::Go => "go",
            Driver::Dotnet => "dotnet",
            Driver::Sqlalchemy => "sqlalchemy",
            Driver::Asyncpg => "asyncpg",
            Driver::Rust => "rust",
        }
    }

    /// For whom its strings are.
    pub(super) fn title(self) -> &'static str {
        match self {
            Driver::LibpqUri => "psql, psycopg and all that is made of libpq",
            Driver::Libpq => "the same, as keywords and values",
            Driver::Jdbc => "Java: pgjdbc",
            Driver::Node => "Node.js: node-postgres (pg)",
            Driver::Go => "Go: pgx",
            Driver::Dotnet => ".NET: Npgsql",
            Driver::Sqlalchemy => "Python: SQLAlchemy with psycopg 3",
            Driver::Asyncpg => "Python: asyncpg",
            Driver::Rust => "Rust: tokio-postgres",
        }
    }

    /// The string, or why there is none.
    pub(super) fn string(self, to: &Target) -> Result<String, &'static str> {
        Ok(match self {
            Driver::LibpqUri => uri(to, &libpq_parameters(to)),
            Driver::Libpq => keywords(to, &libpq_parameters(to)),
            Driver::Jdbc => jdbc(to),
            Driver::Node => return node(to),
            Driver::Go => go(to),
            Driver::Dotnet => dotnet(to),
            Driver::Sqlalchemy => sqlalchemy(to),
            Driver::Asyncpg => asyncpg(to),
            Driver::Rust => keywords(to, &rust_parameters(to)),
        })
    }
}

impl FromStr for Driver {
    type Err = String;

    fn from_str(text: &str) -> Result<Driver, String> {
        let names = || Driver::ALL.map(Driver::name).join(", ");
        Driver::ALL.into_iter().find(|driver| driver.name() == text).ok_or_else(|| format!("all or one of {}", names()))
    }
}

type Parameters = Vec<(&'static str, String)>;

impl Target {
    /// Those of libpq, which others took over. `read-write` and not `primary`: every libpq since 10 knows it, and it
    /// also passes by a primary on which somebody set `default_transaction_read_only`.
    fn attributes(&self) -> Option<&'static str> {
        match (self.through, self.access) {
            (Through::Router, _) => None,
            (Through::Members, Access::ReadWrite) => Some("read-write"),
            (Through::Members, Access::ReadOnly) => Some("prefer-standby"),
        }
    }

    /// The driver chooses among standbys, and should not always choose the same.
    fn spreads(&self) -> bool {
        self.through == Through::Members && self.access == Access::ReadOnly
    }

    fn has_list_with_ipv6(&self) -> bool {
        self.endpoints.len() > 1 && self.endpoints.iter().any(Endpoint::is_ipv6)
    }

    fn list(&self, of: impl Fn(&Endpoint) -> String) -> String {
        self.endpoints.iter().map(of).collect::<Vec<_>>().join(",")
    }

    fn hosts(&self) -> String {
        self.list(|e| e.host.clone())
    }

    fn ports(&self) -> String {
        self.list(|e| e.port.to_string())
    }

    fn hosts_with_ports(&self) -> String {
        self.list(Endpoint::to_string)
    }

    /// `user@`, or nothing.
    fn user_in_uri(&self) -> String {
        self.user.as_ref().map(|user| format!("{}@", percent(user))).unwrap_or_default()
    }
}

fn pairs(parameters: &[(&'static str, String)], between: &str, write: impl Fn(&str) -> String) -> String {
    let one = |(key, value): &(&str, String)| format!("{key}={}", write(value));
    parameters.iter().map(one).collect::<Vec<_>>().join(between)
}

fn query(parameters: &[(&'static str, String)]) -> String {
    if parameters.is_empty() { String::new() } else { format!("?{}", pairs(parameters, "&", percent)) }
}

fn uri(to: &Target, parameters: &[(&'static str, String)]) -> String {
    let (user, hosts, database) = (to.user_in_uri(), to.hosts_with_ports(), percent(&to.database));
    format!("postgresql://{user}{hosts}/{database}{}", query(parameters))
}

/// libpq's own, and tokio-postgres and pgx read the same form: they differ in the parameters.
fn keywords(to: &Target, parameters: &[(&'static str, String)]) -> String {
    let mut all: Parameters = vec![("host", to.hosts()), ("port", to.ports())];
    all.extend(to.user.clone().map(|user| ("user", user)));
    all.push(("dbname", to.database.clone()));
    all.extend_from_slice(parameters);
    pairs(&all, " ", keyword)
}

fn session(to: &Target) -> Parameters {
    to.attributes().map(|a| ("target_session_attrs", a.to_owned())).into_iter().collect()
}

fn libpq_parameters(to: &Target) -> Parameters {
    let mut all = session(to);
    all.extend([
        ("connect_timeout", to.open_s.to_string()),
        ("keepalives_idle", KEEPALIVE_IDLE_S.to_string()),
        ("keepalives_interval", KEEPALIVE_INTERVAL_S.to_string()),
        ("keepalives_count", KEEPALIVE_COUNT.to_string()),
        // Milliseconds, unlike the others.
        ("tcp_user_timeout", (UNACKNOWLEDGED_S * 1_000).to_string()),
    ]);
    all
}

/// Looks like libpq's, but tcp_user_timeout is in seconds, the keepalives have another name, `connect_timeout` is
/// that of TCP alone, and there is no `prefer-standby`.
fn rust_parameters(to: &Target) -> Parameters {
    let mut all = session(to);
    if to.spreads() {
        all = vec![("target_session_attrs", "read-only".to_owned()), ("load_balance_hosts", "random".to_owned())];
    }
    all.extend([
        ("connect_timeout", CONNECT_S.to_string()),
        ("keepalives_idle", KEEPALIVE_IDLE_S.to_string()),
        ("keepalives_interval", KEEPALIVE_INTERVAL_S.to_string()),
        ("keepalives_retries", KEEPALIVE_COUNT.to_string()),
        ("tcp_user_timeout", UNACKNOWLEDGED_S.to_string()),
    ]);
    all
}

/// `connectTimeout` is that of TCP alone. A host that takes connections and stands still, and a router that holds one,
/// leave the question for TLS without an answer: that has a timeout of its own, in milliseconds.
fn jdbc(to: &Target) -> String {
    let mut all: Parameters = to.user.clone().map(|user| ("user", user)).into_iter().collect();
    if to.through == Through::Members {
        let kind = if to.access == Access::ReadWrite { "primary" } else { "preferSecondary" };
        all.extend([("targetServerType", kind.to_owned()), ("hostRecheckSeconds", RECHECK_S.to_string())]);
    }
    if to.spreads() {
        all.push(("loadBalanceHosts", "true".to_owned()));
    }
    let endpoints = to.endpoints.len() as u64;
    all.extend([
        ("connectTimeout", CONNECT_S.to_string()),
        ("sslResponseTimeout", (to.open_s * 1_000).to_string()),
        ("loginTimeout", ((CONNECT_S + to.open_s) * endpoints).to_string()),
        ("tcpKeepAlive", "true".to_owned()),
    ]);
    format!("jdbc:postgresql://{}/{}{}", to.hosts_with_ports(), percent(&to.database), query(&all))
}

/// Timeouts and keepalives are no part of its string, and it takes one host.
fn node(to: &Target) -> Result<String, &'static str> {
    const ONE_HOST: &str = "pg takes one host and doesn't look whether it is the primary: name a router with --router \
                            HOST:PORT. pg-native takes libpq's string, postgres.js asyncpg's with primary for read-write";
    const NO_SUCH_NAME: &str =
        "pg can't read this name of a database from a URI: give it as `database` beside host, port and user";
    let router = to.endpoints.first().filter(|_| to.through == Through::Router).ok_or(ONE_HOST)?;
    let database = node_path(&to.database).ok_or(NO_SUCH_NAME)?;
    Ok(format!("postgresql://{}{router}/{database}", to.user_in_uri()))
}

/// What pgx doesn't know it sends to PostgreSQL as a setting, so there is nothing of keepalives here. Go's URLs have
/// no list with IPv6 addresses, and pgx strips a `/` that a name begins with.
fn go(to: &Target) -> String {
    let mut all = session(to);
    all.push(("connect_timeout", to.open_s.to_string()));
    if to.has_list_with_ipv6() || to.database.starts_with('/') { keywords(to, &all) } else { uri(to, &all) }
}

fn dotnet(to: &Target) -> String {
    let mut all: Parameters = vec![("Host", to.hosts_with_ports())];
    all.extend(to.user.clone().map(|user| ("Username", user)));
    all.push(("Database", to.database.clone()));
    if let Some(attributes) = to.attributes() {
        all.push(("Target Session Attributes", attributes.to_owned()));
        all.push(("Host Recheck Seconds", RECHECK_S.to_string()));
    }
    if to.spreads() {
        all.push(("Load Balance Hosts", "true".to_owned()));
    }
    all.extend([
        ("Timeout", to.open_s.to_string()),
        ("TCP Keepalive", "true".to_owned()),
        ("TCP Keepalive Time", KEEPALIVE_IDLE_S.to_string()),
        ("TCP Keepalive Interval", KEEPALIVE_INTERVAL_S.to_string()),
    ]);
    pairs(&all, ";", ado)
}

/// Its URL has room for one host, so the hosts are parameters. `host=h1,h2&port=p1,p2` and not `host=h1:p1&host=h2:p2`:
/// that has no room for IPv6. SQLAlchemy before 2.1 doesn't decode the database of a URL, but parameters.
fn sqlalchemy(to: &Target) -> String {
    let plain = is_plain(&to.database);
    let path = if plain { to.database.as_str() } else { "" };
    let mut all = libpq_parameters(to);
    if !plain {
        all.insert(0, ("dbname", to.database.clone()));
    }
    let (user, hosts, ports) = (to.user_in_uri(), to.hosts(), to.ports());
    format!("postgresql+psycopg://{user}/{path}?host={hosts}&port={ports}&{}", pairs(&all, "&", percent))
}

/// What asyncpg doesn't know it sends to PostgreSQL as a setting: timeouts are arguments of `connect()`. Python's
/// URLs have no list that is mixed with IPv6 addresses; as a parameter it is read.
fn asyncpg(to: &Target) -> String {
    if !to.has_list_with_ipv6() {
        return uri(to, &session(to));
    }
    let mut all: Parameters = vec![("host", to.hosts_with_ports())];
    all.extend(session(to));
    format!("postgresql://{}/{}{}", to.user_in_uri(), percent(&to.database), query(&all))
}

// ---- what can't be said in the string ------------------------------------------------------------------------

impl Driver {
    /// What who uses the string has to know. One line each.
    pub(super) fn notes(self, to: &Target) -> Vec<String> {
        let mut notes = Vec::new();
        match self {
            Driver::LibpqUri | Driver::Libpq | Driver::Sqlalchemy if to.spreads() => notes.push(
                "needs libpq 14; from 16 on add load_balance_hosts=random, or all read from the first standby"
                    .to_owned(),
            ),
            Driver::Jdbc => notes.push(
                "socketTimeout (seconds) would notice a dead host sooner; it also ends every statement that takes longer"
                    .to_owned(),
            ),
            Driver::Node => notes.extend(node_notes(to)),
            Driver::Go => notes.push("keepalives are those of Go (config.DialFunc); deadlines come with the context".to_owned()),
            Driver::Dotnet if to.through == Through::Members => notes.push(
                "for NpgsqlConnection; a multi-host data source wants Target Session Attributes in WithTargetSession() instead"
                    .to_owned(),
            ),
            Driver::Asyncpg => notes.push(asyncpg_note(to)),
            Driver::Rust => notes.extend(rust_notes(to)),
            Driver::LibpqUri | Driver::Libpq | Driver::Dotnet | Driver::Sqlalchemy => {}
        }
        if self == Driver::Sqlalchemy {
            notes.push("create_engine(url, pool_pre_ping=True) tries a pooled connection before it is used".to_owned());
        }
        notes
    }
}

fn node_notes(to: &Target) -> Vec<String> {
    let (open_ms, idle_ms) = (to.open_s * 1_000, KEEPALIVE_IDLE_S * 1_000);
    let settings = format!(
        "beside connectionString: connectionTimeoutMillis: {open_ms}, keepAlive: true, keepAliveInitialDelayMillis: {idle_ms}"
    );
    let first = "pg takes one host: this is the first router".to_owned();
    match (to.through, to.endpoints.len()) {
        (Through::Members, _) => Vec::new(),
        (Through::Router, 1) => vec![settings],
        (Through::Router, _) => vec![first, settings],
    }
}

/// Seen in 0.32: a host that refuses is passed by, for one that doesn't answer there is no limit of its own.
fn asyncpg_note(to: &Target) -> String {
    match to.through {
        Through::Members => {
            "connect(dsn, timeout=SECONDS): a dead host uses it up before the next is tried; better go through a router"
                .to_owned()
        }
        Through::Router => format!("connect(dsn, timeout={}) and command_timeout=SECONDS", to.open_s),
    }
}

fn rust_notes(to: &Target) -> Vec<String> {
    let total = (to.open_s.max(CONNECT_S)) * to.endpoints.len() as u64;
    let mut notes = vec![format!(
        "connect_timeout is that of TCP: put a timeout ({total} s) around connect(); Config::password() has the password"
    )];
    if to.spreads() {
        notes.push("there is no prefer-standby: without a standby this finds nobody".to_owned());
    }
    notes
}

#[cfg(test)]
#[path = "driver_test.rs"]
mod tests;
