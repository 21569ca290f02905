//! From Patroni's keys to Matriarch's: pure. Each key of the input ends with an outcome.

use std::{collections::BTreeMap, net::IpAddr};

use serde::Serialize;

use super::{
    draft::{Draft, Secret, quoted},
    without,
    yaml::Value,
};
use crate::domain::{MemberId, MemberSettings, Settings, parameters};

/// Where password files are on a host of Matriarch.
pub const DIRECTORY: &str = "/etc/matriarch";
/// Ports of the first member on an address.
const MANAGER_PORT: u16 = 7400;
/// Where Patroni's API listens.
const REST_PORT: u16 = 8008;

/// One host's file.
#[derive(Debug, Clone)]
pub struct HostFile {
    /// For messages.
    pub name: String,
    /// What it says.
    pub tree: Value,
}

/// What is imported.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// The files, one or one for each host.
    pub files: Vec<HostFile>,
    /// The dynamic configuration, as `patronictl show-config` prints it.
    pub dynamic: Option<Value>,
    /// Names with hosts, `host` or `host:port`; empty: those of the files.
    pub members: Vec<(String, String)>,
    /// Who is primary, and so the first of the members.
    pub primary: Option<String>,
}

/// What becomes of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It is this, in the file or among the commands.
    Mapped(String),
    /// There is no equivalent: why, and what to do instead.
    Without(String),
    /// Patroni doesn't know it either.
    Unknown,
}

/// What comes of it.
#[derive(Debug, Clone, Default)]
pub struct Imported {
    /// A file for each member, in their order.
    pub drafts: Vec<Draft>,
    /// Commands, to be run when the cluster stands.
    pub commands: Vec<String>,
    /// Each key with what becomes of it, by file.
    pub keys: BTreeMap<(String, String), Outcome>,
    /// What people have to do or to mind beside that.
    pub remarks: Vec<String>,
}

/// Maps all of it.
///
/// # Errors
/// The members can't be made out, or two files are of two clusters.
pub fn import(wanted: &Wanted) -> Result<Imported, String> {
    let mut imported = Imported::default();
    let members = members(wanted, &mut imported)?;
    let scopes: std::collections::BTreeSet<_> = wanted.files.iter().filter_map(|f| text(&f.tree, "scope")).collect();
    if scopes.len() > 1 {
        return Err(format!("the files are of several clusters (scope: {})", Vec::from_iter(scopes).join(", ")));
    }
    let base = Draft { scope: scopes.into_iter().next(), members: members.clone(), ..Draft::default() };
    let (tree, source, prefix) = dynamic(wanted);
    let mut cluster = Mapping::new(&source, prefix, &mut imported);
    let mut shared = base;
    shared.dynamic(&tree, &mut cluster);
    let weights = weights(wanted, &members);
    for (at, member) in members.iter().enumerate() {
        let of = |f: &&HostFile| name_of(&f.tree).is_some_and(|name| name == member.id);
        let Some(file) = wanted.files.iter().find(of).or_else(|| wanted.files.first()) else { continue };
        let mut draft = Draft { me: at, weights: weights.clone(), ..shared.clone() };
        let own = wanted.files.len() > 1 || wanted.members.is_empty();
        let mut mapping = Mapping::new(&file.name, "", &mut imported);
        draft.local(&file.tree, own, &member.id, &mut mapping);
        imported.drafts.push(draft);
    }
    together(&mut shared, &mut imported);
    imported.commands.splice(0..0, shared.commands());
    rest(wanted, &tree, &source, prefix, &mut imported);
    remarks(&mut imported);
    Ok(imported)
}

/// Some of what a host's file says is a setting of the whole cluster here; the first host's counts.
fn together(shared: &mut Draft, imported: &mut Imported) {
    for draft in &imported.drafts {
        for (key, value) in &draft.settings {
            match shared.settings.iter().find(|(known, _)| known == key) {
                None => shared.settings.push((key.clone(), value.clone())),
                Some((_, other)) if other != value => imported.remarks.push(format!(
                    "{key} is one for all hosts here: `{other}` counts, the file of {} says `{value}`",
                    draft.member()
                )),
                Some(_) => {}
            }
        }
    }
}

/// What counts for all hosts, the name of its source, and how its keys begin there.
fn dynamic(wanted: &Wanted) -> (Value, String, &'static str) {
    let empty = || Value::Map(Vec::new());
    match (&wanted.dynamic, wanted.files.first()) {
        (Some(tree), _) => (tree.clone(), "dynamic configuration".to_owned(), ""),
        (None, Some(file)) => {
            (file.tree.at("bootstrap.dcs").cloned().unwrap_or_else(empty), file.name.clone(), "bootstrap.dcs.")
        }
        (None, None) => (empty(), String::new(), ""),
    }
}

/// What was not mapped has a reason, or is nothing that Patroni knows.
fn rest(wanted: &Wanted, dynamic: &Value, source: &str, prefix: &str, imported: &mut Imported) {
    let of_dynamic = |key: &str| match key.starts_with("postgresql.") {
        true => without::why(key),
        false => without::why(key).filter(|_| !key.starts_with("bootstrap.")),
    };
    let mut all: Vec<(String, String, Option<&str>)> = Vec::new();
    for key in dynamic.leaves("") {
        let why = of_dynamic(&key);
        all.push((source.to_owned(), format!("{prefix}{key}"), why));
    }
    for file in &wanted.files {
        for key in file.tree.leaves("") {
            if prefix.is_empty() || source != file.name || !key.starts_with(prefix) {
                let why = without::why(&key);
                all.push((file.name.clone(), key, why));
            }
        }
    }
    for (file, key, why) in all {
        let outcome = why.map_or(Outcome::Unknown, |why| Outcome::Without(why.to_owned()));
        imported.keys.entry((file, key)).or_insert(outcome);
    }
}

fn remarks(imported: &mut Imported) {
    let open = imported.drafts.first().is_some_and(Draft::is_open);
    if open {
        imported.remarks.push(
            "cluster.insecure = true: traffic between managers is not encrypted; keep their network (TCP and UDP 7400) to the hosts"
                .to_owned(),
        );
    }
    imported.remarks.push(format!(
        "{DIRECTORY}/secret authenticates lease datagrams: the same file on all hosts, mode 0600, owned by the user of the agent"
    ));
}

/// Members with the place of their PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// As Matriarch names it.
    pub id: String,
    /// Name or address.
    pub host: String,
    /// Of PostgreSQL.
    pub port: u16,
    /// Of its manager.
    pub manager_port: u16,
}

fn text(tree: &Value, path: &str) -> Option<String> {
    tree.at(path).and_then(Value::text).filter(|text| !text.is_empty())
}

/// A name of Patroni's as one of Matriarch's.
fn id(name: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c.to_ascii_lowercase() } else { '-' };
    name.chars().map(fits).take(40).collect()
}

fn name_of(tree: &Value) -> Option<String> {
    text(tree, "name").map(|name| id(&name))
}

/// `host:port`, `[v6]:port`, or either alone.
pub fn host_and_port(text: &str) -> (String, Option<u16>) {
    let plain = |host: &str| host.trim().trim_start_matches('[').trim_end_matches(']').to_owned();
    match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => match port.trim().parse() {
            Ok(port) => (plain(host), Some(port)),
            Err(_) => (plain(text), None),
        },
        _ => (plain(text), None),
    }
}

fn members(wanted: &Wanted, imported: &mut Imported) -> Result<Vec<Member>, String> {
    let port = |tree: &Value| {
        let address = text(tree, "postgresql.connect_address").or_else(|| text(tree, "postgresql.listen"));
        address.and_then(|address| host_and_port(&address).1)
    };
    let common = wanted.files.first().and_then(|file| port(&file.tree)).unwrap_or(5432);
    let mut found: Vec<Member> = Vec::new();
    let mut add = |name: &str, host: String, port: u16| {
        let id = id(name);
        if id != name {
            imported.remarks.push(format!("{name} is called {id} here: names of members are of a-z, 0-9, - and _"));
        }
        let same = found.iter().filter(|member| member.host == host).count();
        let manager_port = MANAGER_PORT + 10 * u16::try_from(same).unwrap_or_default();
        found.push(Member { id, host, port, manager_port });
    };
    if wanted.members.is_empty() {
        for file in &wanted.files {
            let name = text(&file.tree, "name").ok_or_else(|| format!("{}: `name` is missing", file.name))?;
            let addresses = ["postgresql.connect_address", "restapi.connect_address"];
            let address = addresses.iter().find_map(|key| text(&file.tree, key));
            let address = address.ok_or_else(|| format!("{}: postgresql.connect_address is missing", file.name))?;
            add(&name, host_and_port(&address).0, port(&file.tree).unwrap_or(5432));
        }
    } else {
        for (name, address) in &wanted.members {
            let (host, port) = host_and_port(address);
            add(name, host, port.unwrap_or(common));
        }
    }
    if let Some(bad) = found.iter().find(|member| member.id.parse::<MemberId>().is_err()) {
        return Err(format!("`{}` can't name a member", bad.id));
    }
    if let Some(twice) = found.iter().find(|m| found.iter().filter(|other| other.id == m.id).count() > 1) {
        return Err(format!("two members are called {}", twice.id));
    }
    if let Some(primary) = &wanted.primary {
        let at = found.iter().position(|member| member.id == id(primary));
        let at = at.ok_or_else(|| format!("--primary {primary}: no member is called so"))?;
        let first = found.remove(at);
        found.insert(0, first);
    }
    if !(3..=7).contains(&found.len()) {
        return Err(format!(
            "{} members are given, and a cluster has three to seven: give the patroni.yml of each host, or --members NAME=HOST,…; in \
             place of a third one with data there has to be one more host",
            found.len()
        ));
    }
    Ok(found)
}

/// `noloadbalance`: routers lead nobody there.
fn weights(wanted: &Wanted, members: &[Member]) -> Vec<String> {
    let put_aside = |file: &&HostFile| file.tree.at("tags.noloadbalance").and_then(Value::truth) == Some(true);
    let names = wanted.files.iter().filter(put_aside).filter_map(|file| name_of(&file.tree));
    names.filter(|name| members.iter().any(|member| member.id == *name)).collect()
}

/// Takes down what becomes of keys of one source.
pub struct Mapping<'a> {
    source: &'a str,
    prefix: &'a str,
    pub(super) imported: &'a mut Imported,
}

impl<'a> Mapping<'a> {
    fn new(source: &'a str, prefix: &'a str, imported: &'a mut Imported) -> Self {
        Self { source, prefix, imported }
    }

    pub(super) fn note(&mut self, key: &str, outcome: Outcome) {
        let key = (self.source.to_owned(), format!("{}{key}", self.prefix));
        self.imported.keys.insert(key, outcome);
    }

    pub(super) fn mapped(&mut self, key: &str, to: impl Into<String>) {
        self.note(key, Outcome::Mapped(to.into()));
    }

    fn without(&mut self, key: &str, why: impl Into<String>) {
        self.note(key, Outcome::Without(why.into()));
    }

    /// A setting of one member.
    fn of_member(&mut self, key: &str, member: &str, setting: (&str, &str)) {
        let (name, value) = setting;
        match MemberSettings::default().set(name, value) {
            Ok(()) => {
                let command = format!("matriarch config set {} --member {member}", quoted(&format!("{name}={value}")));
                self.mapped(key, command.clone());
                if !self.imported.commands.contains(&command) {
                    self.imported.commands.push(command);
                }
            }
            Err(error) => self.without(key, error.to_string()),
        }
    }
}

impl Draft {
    /// A setting of the whole cluster; it is checked as the cluster would.
    fn setting(&mut self, key: &str, (name, value): (&str, &str), mapping: &mut Mapping<'_>) {
        match Settings::default().set(name, value) {
            Ok(()) => {
                self.settings.retain(|(known, _)| known != name);
                self.settings.push((name.to_owned(), value.to_owned()));
                mapping.mapped(key, format!("matriarch config set {}", quoted(&format!("{name}={value}"))));
            }
            Err(error) => mapping.without(key, error.to_string()),
        }
    }

    /// What counts for all hosts.
    fn dynamic(&mut self, tree: &Value, mapping: &mut Mapping<'_>) {
        self.timings(tree, mapping);
        self.synchronous(tree, mapping);
        if let Some(bytes) = text(tree, "maximum_lag_on_failover") {
            self.setting("maximum_lag_on_failover", ("maximum_lag_on_failover", &bytes), mapping);
        }
        if tree.at("failsafe_mode").and_then(Value::truth) == Some(true) {
            self.failsafe = true;
            mapping.mapped("failsafe_mode", "cluster.failsafe = true");
        }
        self.slots(tree, mapping);
        self.postgresql(tree, mapping);
    }

    fn timings(&mut self, tree: &Value, mapping: &mut Mapping<'_>) {
        let number = |key: &str| text(tree, key).and_then(|text| text.parse::<u64>().ok());
        let (profile, why) = profile(number("ttl"), number("loop_wait"), number("retry_timeout"));
        for key in ["ttl", "loop_wait", "retry_timeout"] {
            if tree.at(key).is_some() {
                mapping.mapped(key, format!("cluster.profile = \"{profile}\": {why}"));
            }
        }
        self.profile = Some((profile, why));
        for key in ["primary_start_timeout", "master_start_timeout"] {
            match number(key) {
                Some(0) => self.setting(key, ("on_primary_crash", "failover"), mapping),
                Some(seconds) if seconds <= 86_400 => {
                    self.timings.insert("primary_start_ms", seconds * 1_000);
                    mapping.mapped(key, format!("cluster.timings.primary_start_ms = {}", seconds * 1_000));
                }
                Some(_) => mapping.without(key, "more than a day is no limit here"),
                None => {}
            }
        }
        for key in ["primary_stop_timeout", "master_stop_timeout"] {
            match number(key) {
                Some(0) => {
                    mapping.without(key, "a stop always has a limit, cluster.timings.stop_ms; then it is immediate")
                }
                Some(seconds) if seconds <= 86_400 => {
                    self.timings.insert("stop_ms", seconds * 1_000);
                    mapping.mapped(key, format!("cluster.timings.stop_ms = {}", seconds * 1_000));
                }
                Some(_) => mapping.without(key, "more than a day is no limit here"),
                None => {}
            }
        }
    }

    fn synchronous(&mut self, tree: &Value, mapping: &mut Mapping<'_>) {
        let mode = tree.at("synchronous_mode");
        match mode.map(|value| (value.text().unwrap_or_default(), value.truth())) {
            None => {}
            Some((text, _)) if text.eq_ignore_ascii_case("quorum") => {
                self.setting("synchronous_mode", ("replication_mode", "quorum"), mapping);
            }
            Some((_, Some(true))) => self.setting("synchronous_mode", ("replication_mode", "sync"), mapping),
            Some((_, Some(false))) => self.setting("synchronous_mode", ("replication_mode", "async"), mapping),
            Some((text, None)) => mapping.without("synchronous_mode", format!("`{text}` is no mode")),
        }
        if let Some(strict) = tree.at("synchronous_mode_strict").and_then(Value::truth) {
            self.setting("synchronous_mode_strict", ("sync_strict", &strict.to_string()), mapping);
        }
        if let Some(count) = text(tree, "synchronous_node_count") {
            self.setting("synchronous_node_count", ("sync_count", &count), mapping);
        }
        if let Some(lag) = text(tree, "maximum_lag_on_syncnode") {
            let lag = if lag.starts_with('-') { "off".to_owned() } else { lag };
            self.setting("maximum_lag_on_syncnode", ("maximum_lag_on_syncnode", &lag), mapping);
        }
    }

    fn slots(&mut self, tree: &Value, mapping: &mut Mapping<'_>) {
        let slots = tree.at("slots").map(Value::entries).unwrap_or_default();
        let permanent = slots.iter().map(|(name, slot)| match (text(slot, "database"), text(slot, "plugin")) {
            (Some(database), Some(plugin)) => format!("{name}:{database}:{plugin}"),
            _ => name.clone(),
        });
        let permanent = Vec::from_iter(permanent).join(",");
        for (name, slot) in slots {
            for leaf in slot.leaves(&format!("slots.{name}")) {
                match leaf.ends_with(".cluster_type") {
                    true => mapping.without(&leaf, "there is no standby cluster, the slot is in this one"),
                    false => self.setting(&leaf, ("permanent_slots", &permanent), mapping),
                }
            }
        }
        let Some(Value::List(ignored)) = tree.at("ignore_slots") else { return };
        let matcher = |item: &Value| {
            let field = |(key, value): &(String, Value)| Some(format!("{key}={}", value.text()?));
            Vec::from_iter(item.entries().iter().filter_map(field)).join(" ")
        };
        let ignored = Vec::from_iter(ignored.iter().map(matcher)).join(",");
        self.setting("ignore_slots", ("ignore_slots", &ignored), mapping);
    }

    /// The table `postgresql`, of all hosts or of one, which counts more.
    fn postgresql(&mut self, tree: &Value, mapping: &mut Mapping<'_>) {
        for (name, value) in tree.at("postgresql.parameters").map(Value::entries).unwrap_or_default() {
            self.parameter(name, value, mapping);
        }
        if let Some(Value::List(lines)) = tree.at("postgresql.pg_hba") {
            self.hba = hba(lines);
            mapping.mapped("postgresql.pg_hba", format!("postgresql.hba, {} lines", self.hba.len()));
        }
        if tree.at("postgresql.pg_ident").is_some() {
            mapping.mapped(
                "postgresql.pg_ident",
                "pg_ident.conf stays as it lies in the data directory, which is taken over; change it there on each host and reload",
            );
        }
        if let Some(command) = text(tree, "postgresql.recovery_conf.restore_command") {
            self.setting("postgresql.recovery_conf.restore_command", ("restore_command", &command), mapping);
        }
        for (name, command) in tree.at("postgresql.callbacks").map(Value::entries).unwrap_or_default() {
            let key = format!("postgresql.callbacks.{name}");
            match (name.as_str(), command.text()) {
                ("on_start" | "on_stop" | "on_restart" | "on_reload" | "on_role_change", Some(command)) => {
                    self.callbacks.insert(name.clone(), command);
                    mapping.mapped(&key, format!("hooks.patroni.{name}"));
                }
                _ => mapping.note(&key, Outcome::Unknown),
            }
        }
        self.replicas(tree, mapping);
    }

    fn parameter(&mut self, name: &str, value: &Value, mapping: &mut Mapping<'_>) {
        let (key, lower) = (format!("postgresql.parameters.{name}"), name.to_ascii_lowercase());
        let Some(value) = (match value {
            Value::Bool(value) => Some(if *value { "on".to_owned() } else { "off".to_owned() }),
            value => value.text(),
        }) else {
            return mapping.without(&key, "it has no value");
        };
        if lower == "unix_socket_directories" {
            let first = value.split(',').map(str::trim).find(|dir| dir.starts_with('/')).map(str::to_owned);
            return match first {
                Some(dir) => {
                    mapping.mapped(&key, format!("postgresql.socket_dir = \"{dir}\""));
                    self.socket_dir = Some(dir);
                }
                None => mapping.without(&key, "there has to be a socket: postgresql.socket_dir"),
            };
        }
        if let command @ ("archive_command" | "restore_command") = lower.as_str() {
            return match value.is_empty() {
                true => mapping.mapped(&key, "empty, as it is here without it"),
                false => self.setting(&key, (command, &value), mapping),
            };
        }
        if lower == "synchronous_commit" && matches!(value.as_str(), "on" | "remote_apply") {
            return self.setting(&key, ("synchronous_commit", &value), mapping);
        }
        if let Some((_, why)) = parameters::OWNED.iter().find(|(owned, _)| *owned == lower) {
            return mapping.without(&key, format!("this setting belongs to Matriarch: {why}"));
        }
        if lower.starts_with("recovery_target") || lower.starts_with("include") {
            return mapping.without(&key, "Matriarch writes recovery settings and includes itself");
        }
        let value = match (lower.as_str(), value.to_ascii_lowercase().as_str()) {
            ("wal_level", "replica" | "logical") => value.to_ascii_lowercase(),
            ("wal_level", _) => "replica".to_owned(),
            ("archive_mode", "always") => "on".to_owned(),
            _ => value,
        };
        if value.chars().any(char::is_control) {
            return mapping.without(&key, "its value spans lines or has a control character: write it on one line");
        }
        mapping.mapped(&key, format!("postgresql.parameters.{name} = \"{value}\""));
        self.parameters.insert(lower, value);
    }

    fn replicas(&mut self, tree: &Value, mapping: &mut Mapping<'_>) {
        let methods = tree.at("postgresql.create_replica_methods").map(Value::texts).unwrap_or_default();
        let mut ours: Vec<&str> = Vec::new();
        for method in methods.iter().filter(|method| *method != "basebackup") {
            let command = text(tree, &format!("postgresql.{method}.command"));
            let stanza = command.as_deref().filter(|_| method.contains("pgbackrest")).and_then(stanza);
            for leaf in tree.at(&format!("postgresql.{method}")).map(|v| v.leaves("")).unwrap_or_default() {
                let key = format!("postgresql.{method}.{leaf}");
                match (&stanza, &command, leaf.as_str()) {
                    (Some(stanza), _, "command") => {
                        self.setting(&key, ("pgbackrest_stanza", stanza), mapping);
                        ours.push("pgbackrest");
                    }
                    (None, Some(command), "command") if !ours.contains(&"command") => {
                        self.setting(&key, ("clone_command", command), mapping);
                        ours.push("command");
                    }
                    (_, _, "command") => mapping.without(&key, "one clone_command is all there is, the first method has it"),
                    _ => mapping.without(
                        &key,
                        "clone_command gets what it needs in its environment (docs/archive.md), not by Patroni's arguments; \
                         Patroni gives --scope, --datadir, --role and --connstring to such a program",
                    ),
                }
            }
        }
        if methods.iter().any(|method| method == "basebackup") || methods.is_empty() {
            ours.push("basebackup");
        }
        if !methods.is_empty() {
            self.setting("postgresql.create_replica_methods", ("clone_methods", &ours.join(",")), mapping);
        }
        for key in ["max-rate", "max_rate"] {
            if let Some(rate) = text(tree, &format!("postgresql.basebackup.{key}")) {
                let rate = match rate.to_ascii_uppercase() {
                    upper if upper.ends_with('M') => format!("{upper}B"),
                    upper if upper.ends_with('K') => format!("{}kB", upper.trim_end_matches('K')),
                    upper => format!("{upper}kB"),
                };
                self.setting(&format!("postgresql.basebackup.{key}"), ("clone_rate", &rate), mapping);
            }
        }
    }

    /// What is of one host.
    fn local(&mut self, tree: &Value, own: bool, member: &str, mapping: &mut Mapping<'_>) {
        if tree.at("scope").is_some() {
            mapping.mapped("scope", "cluster.name");
        }
        if tree.at("name").is_some() {
            mapping.mapped("name", "member.id, and the id in cluster.members");
        }
        self.postgresql(tree, mapping);
        self.places(tree, own, mapping);
        self.authentication(tree, mapping);
        self.rest_api(tree, own, mapping);
        if own {
            tags(tree, member, mapping);
        } else if tree.at("tags").is_some() {
            for leaf in tree.at("tags").map(|tags| tags.leaves("tags")).unwrap_or_default() {
                mapping.without(&leaf, "it is of one host, and one file was given for all: give the file of each host");
            }
        }
        self.watchdog(tree, mapping);
    }

    fn places(&mut self, tree: &Value, own: bool, mapping: &mut Mapping<'_>) {
        let addresses = text(tree, "postgresql.listen").map(|listen| host_and_port(&listen).0);
        if let Some(addresses) = addresses {
            let other = !own && addresses.split(',').any(|address| is_of_one_host(address.trim()));
            mapping.mapped("postgresql.listen", match other {
                true => "postgresql.listen_addresses is the host of each member, for it names one host; the port is in cluster.members",
                false => "postgresql.listen_addresses, and the port in cluster.members",
            });
            self.listen_addresses = (!other).then_some(addresses);
        }
        if tree.at("postgresql.connect_address").is_some() {
            mapping.mapped("postgresql.connect_address", "host and postgres_port in cluster.members");
        }
        for (key, to) in [("data_dir", "postgresql.data_dir"), ("bin_dir", "postgresql.bin_dir")] {
            let Some(dir) = text(tree, &format!("postgresql.{key}")) else { continue };
            mapping.mapped(&format!("postgresql.{key}"), format!("{to} = \"{dir}\""));
            match key {
                "data_dir" => self.data_dir = Some(dir),
                _ => self.bin_dir = Some(dir),
            }
        }
        if self.bin_dir.is_none() {
            let told = "postgresql.bin_dir is not in the input and is never guessed: fill it in";
            if !mapping.imported.remarks.iter().any(|remark| remark == told) {
                mapping.imported.remarks.push(told.to_owned());
            }
        }
    }

    fn authentication(&mut self, tree: &Value, mapping: &mut Mapping<'_>) {
        let name = |role: &str| text(tree, &format!("postgresql.authentication.{role}.username"));
        let fits = |name: &String| {
            let of = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            name.chars().all(of) && name.len() <= 63 && !name.starts_with("pg_")
        };
        let (superuser, replication) = (name("superuser"), name("replication"));
        for (role, found, other) in [("superuser", &superuser, None), ("replication", &replication, superuser.as_ref())]
        {
            let key = format!("postgresql.authentication.{role}.username");
            let to = if role == "superuser" { "postgresql.superuser" } else { "postgresql.replication_user" };
            match found {
                None => continue,
                Some(name) if !fits(name) => {
                    mapping.without(
                        &key,
                        format!("`{name}` can't be {to} (a-z, 0-9 and _); the default role is made instead"),
                    );
                    continue;
                }
                Some(name) if other == Some(name) => {
                    mapping.without(&key, "replication has a role of its own here, matriarch_repl, which is made");
                    continue;
                }
                Some(name) => mapping.mapped(&key, format!("{to} = \"{name}\"")),
            }
            match role {
                "superuser" => self.superuser.clone_from(found),
                _ => self.replication.clone_from(found),
            }
        }
        for (role, file) in [("superuser", "superuser.pass"), ("replication", "replication.pass")] {
            self.secret(tree, &format!("postgresql.authentication.{role}.password"), file, mapping);
        }
    }

    fn secret(&mut self, tree: &Value, key: &str, file: &'static str, mapping: &mut Mapping<'_>) {
        let Some(value) = text(tree, key) else { return };
        let octal = value.len() > 1 && value.starts_with('0') && value.bytes().all(|b| (b'0'..=b'7').contains(&b));
        let told = format!(
            "{key} has digits with a zero in front, and is taken as it is written. Without quotes Patroni reads an octal number: try \
             which of both PostgreSQL knows"
        );
        if octal && !mapping.imported.remarks.contains(&told) {
            mapping.imported.remarks.push(told);
        }
        mapping.mapped(key, format!("the file {DIRECTORY}/{file}, mode 0600, one line"));
        self.secrets.push(Secret { file, value });
    }

    fn rest_api(&mut self, tree: &Value, own: bool, mapping: &mut Mapping<'_>) {
        if let Some(listen) = text(tree, "restapi.listen") {
            let (host, port) = host_and_port(&listen);
            let ip = match host.as_str() {
                "localhost" => "127.0.0.1".to_owned(),
                "" | "*" => "0.0.0.0".to_owned(),
                host if !own && is_of_one_host(host) => "0.0.0.0".to_owned(),
                host if host.parse::<IpAddr>().is_ok() => host.to_owned(),
                _ => "0.0.0.0".to_owned(),
            };
            let port = port.unwrap_or(REST_PORT);
            let listen = if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") };
            mapping.mapped("restapi.listen", format!("rest.listen = \"{listen}\""));
            self.rest.insert("listen", listen);
        }
        if let Some(name) = text(tree, "restapi.authentication.username") {
            mapping.mapped("restapi.authentication.username", format!("rest.username = \"{name}\""));
            self.rest.insert("username", name);
            self.rest.insert("password_file", format!("{DIRECTORY}/rest.pass"));
        }
        self.secret(tree, "restapi.authentication.password", "rest.pass", mapping);
        for (theirs, ours) in [("certfile", "tls_certificate_file"), ("keyfile", "tls_key_file")] {
            if let Some(file) = text(tree, &format!("restapi.{theirs}")) {
                mapping.mapped(&format!("restapi.{theirs}"), format!("rest.{ours} = \"{file}\""));
                self.rest.insert(ours, file);
            }
        }
        self.allowed(tree, mapping);
    }

    fn watchdog(&mut self, tree: &Value, mapping: &mut Mapping<'_>) {
        if let Some(value) = tree.at("watchdog.mode") {
            let mode = match value.truth() {
                Some(false) => "off".to_owned(),
                _ => value.text().unwrap_or_default().to_ascii_lowercase(),
            };
            match mode.as_str() {
                "off" | "automatic" | "required" => {
                    mapping.mapped("watchdog.mode", format!("layers.watchdog = \"{mode}\""));
                    self.layers.insert("watchdog", mode);
                }
                _ => mapping.note("watchdog.mode", Outcome::Unknown),
            }
        }
        if let Some(device) = text(tree, "watchdog.device") {
            mapping.mapped("watchdog.device", format!("layers.watchdog_device = \"{device}\""));
            self.layers.insert("watchdog_device", device);
        }
    }
}

/// An address that other hosts don't have.
fn is_of_one_host(address: &str) -> bool {
    address.parse::<IpAddr>().is_ok_and(|ip| !ip.is_unspecified() && !ip.is_loopback())
}

/// Lines that count; each is one string.
fn hba(lines: &[Value]) -> Vec<String> {
    let lines = lines.iter().filter_map(Value::text).map(|line| line.trim().to_owned());
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

fn tags(tree: &Value, member: &str, mapping: &mut Mapping<'_>) {
    for (tag, value) in tree.at("tags").map(Value::entries).unwrap_or_default() {
        let key = format!("tags.{tag}");
        match (tag.as_str(), value.truth(), value.text()) {
            ("nofailover", Some(true), _) => mapping.of_member(&key, member, ("failover", "false")),
            ("nosync", Some(true), _) => mapping.of_member(&key, member, ("sync", "false")),
            ("clonefrom", Some(false), _) => mapping.of_member(&key, member, ("clonefrom", "false")),
            ("nostream", Some(true), _) => mapping.of_member(&key, member, ("nostream", "true")),
            ("noloadbalance", Some(true), _) => mapping.mapped(&key, "router.read_only_weights, 0 for this member"),
            ("clonefrom", Some(true), _) | ("nofailover" | "nosync" | "nostream" | "noloadbalance", Some(false), _) => {
                mapping.mapped(&key, "that is so without a setting");
            }
            ("failover_priority", _, Some(value)) => mapping.of_member(&key, member, ("priority", &value)),
            ("sync_priority", _, Some(value)) => mapping.of_member(&key, member, ("sync_priority", &value)),
            ("replicatefrom", _, Some(value)) => mapping.of_member(&key, member, ("replicatefrom", &id(&value))),
            _ => {
                for leaf in value.leaves(&key) {
                    mapping.without(
                        &leaf,
                        "a tag of your own: nothing looks at it here; for a place there is `matriarch config set site=… --member …`",
                    );
                }
            }
        }
    }
}

/// `--stanza=NAME` of a command.
fn stanza(command: &str) -> Option<String> {
    let mut words = command.split_whitespace();
    words.find_map(|word| word.strip_prefix("--stanza=")).map(str::to_owned)
}

/// The profile, with the reason. Patroni's times have to cover polls of an external store, those of Matriarch don't: what counts is
/// by how much somebody has departed from Patroni's defaults (30, 10, 10).
fn profile(ttl: Option<u64>, loop_wait: Option<u64>, retry: Option<u64>) -> (&'static str, String) {
    let (ttl, loop_wait, retry) = (ttl.unwrap_or(30), loop_wait.unwrap_or(10), retry.unwrap_or(10));
    let profile = match (ttl, retry) {
        (ttl, retry) if ttl > 60 || retry > 20 => "safe",
        (ttl, retry) if ttl > 30 || retry > 10 => "slow",
        _ => "normal",
    };
    let then = match profile {
        "safe" => {
            "more than twice Patroni's defaults: hosts far apart, or pauses that are long; a lost host is replaced after about 26 s"
        }
        "slow" => {
            "more than Patroni's defaults: a network that needs patience; a lost host is replaced after about 11 s"
        }
        _ => {
            "Patroni's defaults or less, so nothing speaks for patience; a lost host is replaced after about 3.5 s (fast: 2 s, same rack)"
        }
    };
    (profile, format!("ttl {ttl} s, loop_wait {loop_wait} s, retry_timeout {retry} s are {then}"))
}
