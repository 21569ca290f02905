//! What a request that changes something asks for: verb, path and body as in Patroni's API, read before anything is done.
//! Whatever is in a body and not carried out is refused, never left out.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::Reply;
use crate::domain::{
    Side,
    postgres_settings::{HBA, IDENT, Scope, parameter_key},
    settings_document::member_key,
    when::{self, NoTime},
};

/// What a verb does at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// `PATCH /config`
    Patch,
    /// `PUT /config`
    Put,
    /// `POST /switchover`
    Switchover,
    /// `DELETE /switchover`
    CancelSwitchover,
    /// `POST /failover`
    Failover,
    /// `POST /restart`
    Restart,
    /// `DELETE /restart`
    CancelRestart,
    /// `POST /reload`
    Reload,
    /// `POST /reinitialize`
    Reinitialize,
}

const CHANGES: [(&str, &str, Change); 9] = [
    ("PATCH", "config", Change::Patch),
    ("PUT", "config", Change::Put),
    ("POST", "switchover", Change::Switchover),
    ("DELETE", "switchover", Change::CancelSwitchover),
    ("POST", "failover", Change::Failover),
    ("POST", "restart", Change::Restart),
    ("DELETE", "restart", Change::CancelRestart),
    ("POST", "reload", Change::Reload),
    ("POST", "reinitialize", Change::Reinitialize),
];

/// What is asked for; `None`: nothing that changes anything.
pub fn change(method: &str, path: &str) -> Option<Change> {
    let name = path.trim_matches('/');
    CHANGES.iter().find(|(verb, place, _)| *verb == method && *place == name).map(|(.., change)| *change)
}

/// The verbs that change something at a path.
pub fn verbs(path: &str) -> impl Iterator<Item = &'static str> {
    let name = path.trim_matches('/');
    CHANGES.iter().filter(move |(_, place, _)| *place == name).map(|(verb, ..)| *verb)
}

/// A request that makes sense by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Other settings.
    Set(Settings),
    /// The primary is moved.
    Switchover {
        /// Who is primary.
        from: String,
        /// Who shall be; empty: the best standby.
        to: String,
        /// When, in milliseconds since 1970; `None`: now.
        at: Option<u64>,
    },
    /// Somebody is made primary.
    Failover {
        /// Who.
        to: String,
    },
    /// PostgreSQL of this host is restarted.
    Restart {
        /// When, in milliseconds since 1970; `None`: now.
        at: Option<u64>,
    },
    /// The switchover that is scheduled is taken back.
    CancelSwitchover,
    /// The restart of this host that is scheduled is taken back.
    CancelRestart,
    /// PostgreSQL of this host reads its configuration anew.
    Reload,
    /// The data of this host is copied anew.
    Reinitialize {
        /// Though commits wait for it.
        force: bool,
        /// From the primary, whoever else is fit.
        from_leader: bool,
    },
}

/// What becomes of the settings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// Only if they are of this version.
    pub version: Option<u64>,
    /// Each key that is named, as it stands in the document; `None`: its default.
    pub named: BTreeMap<String, Option<String>>,
    /// Whatever is not named gets its default.
    pub replace: bool,
}

/// What a request asks for.
///
/// # Errors
/// The answer to a request that can't be carried out, whatever the cluster is like.
pub fn order(change: Change, body: &[u8]) -> Result<Order, Reply> {
    match change {
        Change::Patch => settings(&object(body, true)?, false),
        Change::Put => settings(&object(body, true)?, true),
        Change::Switchover => switchover(&object(body, true)?),
        Change::Failover => failover(&object(body, true)?),
        Change::Restart => restart(&object(body, false)?),
        Change::CancelSwitchover => Ok(Order::CancelSwitchover),
        Change::CancelRestart => Ok(Order::CancelRestart),
        Change::Reload => {
            only(&object(body, false)?, &[])?;
            Ok(Order::Reload)
        }
        Change::Reinitialize => reinitialize(&object(body, false)?),
    }
}

fn object(body: &[u8], needed: bool) -> Result<Map<String, Value>, Reply> {
    if body.trim_ascii().is_empty() && !needed {
        return Ok(Map::new());
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(map)) if !map.is_empty() || !needed => Ok(map),
        Ok(Value::Object(_)) => Err(bad("the body is an empty object: name what shall change")),
        Ok(_) => Err(bad("the body is no JSON object")),
        // Where it is wrong, and not what stands there: it may be a secret that went the wrong way.
        Err(error) => Err(bad(&format!("the body is no JSON (line {}, column {})", error.line(), error.column()))),
    }
}

fn bad(what: &str) -> Reply {
    Reply::text(400, format!("{what}; nothing was changed\n"))
}

/// A text; none where it is missing, null or empty.
fn text<'a>(body: &'a Map<String, Value>, key: &str) -> Result<&'a str, Reply> {
    match body.get(key) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(bad(&format!("{key} is no text"))),
    }
}

fn only(body: &Map<String, Value>, known: &[&str]) -> Result<(), Reply> {
    match body.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) if known.is_empty() => Err(bad(&format!("`{key}` is unknown here; nothing is taken"))),
        Some(key) => Err(bad(&format!("`{key}` is unknown here; known: {}", known.join(", ")))),
        None => Ok(()),
    }
}

/// `leader` and `candidate`, which is also called `member`.
fn moves(body: &Map<String, Value>) -> Result<(&str, &str, Option<u64>), Reply> {
    only(body, &["leader", "candidate", "member", "scheduled_at"])?;
    let (leader, candidate, member) = (text(body, "leader")?, text(body, "candidate")?, text(body, "member")?);
    let candidate = if candidate.is_empty() { member } else { candidate };
    let at = time(body, "scheduled_at", "switchover")?;
    if leader == candidate && !leader.is_empty() {
        return Err(bad("leader and candidate are the same member"));
    }
    Ok((leader, candidate, at))
}

/// With Patroni's answers; `now` is no schedule, as with `patronictl`.
fn time(body: &Map<String, Value>, key: &str, action: &str) -> Result<Option<u64>, Reply> {
    let text = text(body, key)?.trim();
    if text.is_empty() || text.eq_ignore_ascii_case("now") {
        return Ok(None);
    }
    when::parse(text, 0).map(Some).map_err(|why| match why {
        NoTime::NoZone => bad(&format!("Timezone information is mandatory for the scheduled {action}")),
        NoTime::Unreadable => Reply::text(
            422,
            format!("{key} is no time: write it as ISO 8601 with its offset, e.g. 2026-12-01T03:00:00+01:00; nothing was changed\n"),
        ),
    })
}

fn switchover(body: &Map<String, Value>) -> Result<Order, Reply> {
    let (leader, candidate, at) = moves(body)?;
    if leader.is_empty() {
        return Err(bad("a switchover needs `leader`, the present primary"));
    }
    Ok(Order::Switchover { from: leader.to_owned(), to: candidate.to_owned(), at })
}

/// With a leader it is a switchover, as in Patroni.
fn failover(body: &Map<String, Value>) -> Result<Order, Reply> {
    match moves(body)? {
        (_, "", _) => Err(bad("a failover needs `candidate`, who shall be primary")),
        ("", _, Some(_)) => Err(bad("a failover can't be scheduled, a switchover can")),
        ("", candidate, None) => Ok(Order::Failover { to: candidate.to_owned() }),
        (leader, candidate, at) => Ok(Order::Switchover { from: leader.to_owned(), to: candidate.to_owned(), at }),
    }
}

fn restart(body: &Map<String, Value>) -> Result<Order, Reply> {
    only(body, &["schedule", "role", "postgres_version", "timeout", "restart_pending"])?;
    let absent = |value: &Value| value.is_null() || *value == Value::Bool(false);
    match body.iter().find(|(key, value)| *key != "schedule" && !absent(value)) {
        None => Ok(Order::Restart { at: time(body, "schedule", "restart")? }),
        Some((key, _)) => {
            Err(bad(&format!("a restart with `{key}` is not offered: look first (GET /patroni), then ask without it")))
        }
    }
}

fn reinitialize(body: &Map<String, Value>) -> Result<Order, Reply> {
    only(body, &["force", "from-leader", "from_leader"])?;
    let flag = |key: &str| match body.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(yes)) => Ok(*yes),
        Some(_) => Err(bad(&format!("{key} is neither true nor false"))),
    };
    Ok(Order::Reinitialize { force: flag("force")?, from_leader: flag("from-leader")? || flag("from_leader")? })
}

/// The shape of `GET /config`: `version`, `settings` and `members`, and what PostgreSQL is configured with, under Patroni's name.
fn settings(body: &Map<String, Value>, replace: bool) -> Result<Order, Reply> {
    let known = ["version", "settings", "members", "postgresql", "primary", "standby"];
    if let Some(key) = body.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(bad(&format!(
            "`{key}` is unknown here: write {{\"settings\": {{…}}, \"members\": {{MEMBER: {{…}}}}}} with the names of \
             GET /config, which are not Patroni's, and {{\"postgresql\": {{\"parameters\": {{…}}}}}} as there"
        )));
    }
    let version = match body.get("version") {
        None | Some(Value::Null) => None,
        Some(version) => Some(version.as_u64().ok_or_else(|| bad("version is no whole number"))?),
    };
    let nothing = Map::new();
    let table = |key: &str| match body.get(key) {
        None => Ok(&nothing),
        Some(Value::Object(table)) => Ok(table),
        Some(_) => Err(bad(&format!("{key} is no JSON object"))),
    };
    let (of_all, of_members) = (table("settings")?, table("members")?);
    // Whoever forgot it would set everything back.
    if replace && !body.contains_key("settings") {
        return Err(bad("PUT replaces all settings, and `settings` is missing; PATCH changes single ones"));
    }
    let mut named = BTreeMap::new();
    for (key, value) in of_all {
        // A member's would be named twice, one way and the other.
        if key.contains('.') {
            return Err(bad(&format!("`{key}` is a member's setting: it belongs to `members`")));
        }
        named.insert(key.clone(), written(key, value)?);
    }
    for (member, table) in of_members {
        let Value::Object(table) = table else { return Err(bad(&format!("members.{member} is no JSON object"))) };
        for (key, value) in table {
            let whole = member_key(member, key);
            named.insert(whole.clone(), written(&whole, value)?);
        }
    }
    for (key, scope) in
        [("postgresql", Scope::All), ("primary", Scope::Side(Side::Primary)), ("standby", Scope::Side(Side::Standby))]
    {
        of_postgres((key, scope), table(key)?, &mut named)?;
    }
    if named.is_empty() && !replace {
        return Err(bad("no setting is named"));
    }
    Ok(Order::Set(Settings { version, named, replace }))
}

/// `parameters`, `pg_hba` and `pg_ident` as Patroni has them.
fn of_postgres(
    (name, scope): (&str, Scope<'_>),
    table: &Map<String, Value>,
    named: &mut BTreeMap<String, Option<String>>,
) -> Result<(), Reply> {
    for (key, value) in table {
        let place = format!("{name}.{key}");
        match (key.as_str(), value) {
            ("parameters", Value::Object(parameters)) => {
                for (name, value) in parameters {
                    named.insert(parameter_key(scope, name), written(&format!("{place}.{name}"), value)?);
                }
            }
            ("pg_hba", value) if scope == Scope::All => drop(named.insert(HBA.to_owned(), lines(&place, value)?)),
            ("pg_ident", value) if scope == Scope::All => drop(named.insert(IDENT.to_owned(), lines(&place, value)?)),
            ("parameters", _) => return Err(bad(&format!("{place} is no JSON object"))),
            _ => {
                return Err(bad(&format!(
                    "`{place}` is unknown here; known: parameters, and of postgresql pg_hba, pg_ident"
                )));
            }
        }
    }
    Ok(())
}

/// Lines of a file, as a list or as one text; `None` for null: those of each host's file.
fn lines(key: &str, value: &Value) -> Result<Option<String>, Reply> {
    let wrong = || bad(&format!("{key}: write a list of lines, or null"));
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.trim_end().to_owned())),
        Value::Array(lines) => {
            let texts: Option<Vec<&str>> = lines.iter().map(Value::as_str).collect();
            texts.map(|lines| Some(lines.join("\n"))).ok_or_else(wrong)
        }
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => Err(wrong()),
    }
}

/// As `matriarch config set` takes it; `None` for null: the default.
fn written(key: &str, value: &Value) -> Result<Option<String>, Reply> {
    match value {
        Value::Null => Ok(None),
        Value::Bool(yes) => Ok(Some(yes.to_string())),
        Value::Number(number) => Ok(Some(number.to_string())),
        Value::String(text) => Ok(Some(text.trim().to_owned())),
        Value::Array(_) | Value::Object(_) => {
            Err(bad(&format!("{key} is no single value: write a text, a number, true, false or null")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: Change, body: &str) -> (u16, String) {
        let reply = order(change, body.as_bytes()).unwrap_err();
        (reply.status, reply.body)
    }

    fn set(change: Change, body: &str) -> Settings {
        match order(change, body.as_bytes()) {
            Ok(Order::Set(settings)) => settings,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn paths_and_verbs_are_patronis() {
        assert_eq!(change("PATCH", "/config"), Some(Change::Patch));
        assert_eq!(change("DELETE", "/switchover/"), Some(Change::CancelSwitchover));
        for (method, path) in [("GET", "/config"), ("POST", "/config"), ("POST", "/"), ("patch", "/config")] {
            assert_eq!(change(method, path), None, "{method} {path}");
        }
        assert_eq!(verbs("/restart").collect::<Vec<_>>(), ["POST", "DELETE"]);
    }

    #[test]
    fn a_switchover_names_the_primary_and_perhaps_its_successor() {
        let to = |from: &str, to: &str| Order::Switchover { from: from.to_owned(), to: to.to_owned(), at: None };
        let asked = |body: &str| order(Change::Switchover, body.as_bytes()).unwrap();
        assert_eq!(asked(r#"{"leader":"n1"}"#), to("n1", ""));
        assert_eq!(asked(r#"{"leader":"n1","candidate":null,"scheduled_at":null}"#), to("n1", ""));
        assert_eq!(asked(r#"{"leader":"n1","member":"n2"}"#), to("n1", "n2"), "as older Patronis called it");
        let failover = |body: &str| order(Change::Failover, body.as_bytes()).unwrap();
        assert_eq!(failover(r#"{"candidate":"n2"}"#), Order::Failover { to: "n2".to_owned() });
        assert_eq!(failover(r#"{"leader":"n1","candidate":"n2"}"#), to("n1", "n2"), "with a leader it loses nothing");
    }

    #[test]
    fn what_can_not_be_carried_out_is_refused_and_not_left_out() {
        let at = r#"{"leader":"n1","scheduled_at":"2030-01-01T00:00:00+00:00"}"#;
        let scheduled = order(Change::Switchover, at.as_bytes()).unwrap();
        let (from, to) = ("n1".to_owned(), String::new());
        assert_eq!(scheduled, Order::Switchover { from, to, at: Some(1_893_456_000_000) });
        let restart = order(Change::Restart, br#"{"schedule":"2030-01-01 01:00 +01"}"#);
        assert_eq!(restart, Ok(Order::Restart { at: Some(1_893_456_000_000) }));
        let (status, text) = refused(Change::Switchover, r#"{"leader":"n1","scheduled_at":"2030-01-01T00:00:00"}"#);
        assert_eq!((status, text.contains("Timezone information is mandatory")), (400, true), "{text}");
        assert_eq!(refused(Change::Restart, r#"{"schedule":"soon"}"#).0, 422);
        let at = r#"{"candidate":"n1","scheduled_at":"2030-01-01T00:00:00+00:00"}"#;
        assert!(refused(Change::Failover, at).1.contains("can't be scheduled"));
        for (body, says) in [
            (r#"{"candidate":"n2"}"#, "needs `leader`"),
            (r#"{"leader":"n1","candidate":"n1"}"#, "the same member"),
            (r#"{"leader":1}"#, "leader is no text"),
            (r#"{"leader":"n1","force":true}"#, "`force` is unknown here"),
            ("{}", "empty object"),
            ("[]", "no JSON object"),
            ("", "no JSON (line 1, column 0)"),
            (r#"{"leader":"n1""#, "no JSON (line 1"),
            ("\u{0}\u{1}", "no JSON"),
        ] {
            let (status, text) = refused(Change::Switchover, body);
            assert!(status == 400 && text.contains(says) && text.ends_with("nothing was changed\n"), "{body}: {text}");
        }
        assert!(refused(Change::Failover, r#"{"candidate":""}"#).1.contains("needs `candidate`"));
        let not_utf8 = order(Change::Restart, b"\xff{").unwrap_err();
        assert_eq!(not_utf8.status, 400);
        let deep = format!("{}1{}", "[".repeat(4_000), "]".repeat(4_000));
        assert_eq!(refused(Change::Restart, &deep).0, 400, "no stack is used up");
        for body in ["", " ", "{}", r#"{"restart_pending":false,"timeout":null}"#] {
            assert_eq!(order(Change::Restart, body.as_bytes()), Ok(Order::Restart { at: None }), "{body}");
        }
        for key in ["role", "postgres_version", "timeout", "restart_pending"] {
            let (status, text) = refused(Change::Restart, &format!(r#"{{"{key}":"x"}}"#));
            assert!(status == 400 && text.contains(&format!("with `{key}` is not offered")), "{text}");
        }
        assert_eq!(order(Change::CancelSwitchover, b""), Ok(Order::CancelSwitchover));
    }

    #[test]
    fn a_reload_takes_nothing_and_a_copy_patronis_two_flags() {
        for body in ["", "{}"] {
            assert_eq!(order(Change::Reload, body.as_bytes()), Ok(Order::Reload));
        }
        assert_eq!(refused(Change::Reload, r#"{"force":true}"#).0, 400);
        let asked = |body: &str| match order(Change::Reinitialize, body.as_bytes()) {
            Ok(Order::Reinitialize { force, from_leader }) => (force, from_leader),
            other => panic!("{other:?}"),
        };
        assert_eq!(asked(""), (false, false));
        assert_eq!(asked(r#"{"force":true,"from-leader":null}"#), (true, false));
        assert_eq!(asked(r#"{"from-leader":true}"#), (false, true));
        assert_eq!(asked(r#"{"from_leader":true}"#), (false, true));
        let (status, text) = refused(Change::Reinitialize, r#"{"force":"yes"}"#);
        assert!(status == 400 && text.contains("force is neither true nor false"), "{text}");
        assert!(refused(Change::Reinitialize, r#"{"from":"n1"}"#).1.contains("`from` is unknown here"));
    }

    #[test]
    fn what_postgresql_is_configured_with_is_named_as_in_patroni() {
        let body = r#"{"postgresql":{"parameters":{"Work_Mem":"64MB","max_connections":200,"log_connections":true,"x.y":null},
            "pg_hba":["local all all peer","host all all all md5"],"pg_ident":null},"standby":{"parameters":{"work_mem":"1MB"}}}"#;
        let named: Vec<String> =
            set(Change::Patch, body).named.iter().map(|(key, value)| format!("{key}={value:?}")).collect();
        let expected = [
            "hba=Some(\"local all all peer\\nhost all all all md5\")",
            "ident=None",
            "parameters.log_connections=Some(\"true\")",
            "parameters.max_connections=Some(\"200\")",
            "parameters.work_mem=Some(\"64MB\")",
            "parameters.x.y=None",
            "standby.parameters.work_mem=Some(\"1MB\")",
        ];
        assert_eq!(named, expected);
        for (body, says) in [
            (r#"{"postgresql":{"parameters":5}}"#, "postgresql.parameters is no JSON object"),
            (r#"{"postgresql":{"use_pg_rewind":true}}"#, "`postgresql.use_pg_rewind` is unknown here"),
            (r#"{"standby":{"pg_hba":[]}}"#, "`standby.pg_hba` is unknown here"),
            (r#"{"postgresql":{"pg_hba":[1]}}"#, "postgresql.pg_hba: write a list of lines"),
            (r#"{"postgresql":{"parameters":{"a":[1]}}}"#, "postgresql.parameters.a is no single value"),
        ] {
            let (status, text) = refused(Change::Patch, body);
            assert!(status == 400 && text.contains(says), "{body}: {text}");
        }
    }

    #[test]
    fn settings_are_named_as_they_are_shown() {
        let body = r#"{"version":3,"settings":{"crash_budget":5,"sync_strict":true,"replication_mode":" quorum ",
            "sync_count":null},"members":{"n2":{"priority":50,"site":null}}}"#;
        let patch = set(Change::Patch, body);
        let named: Vec<String> = patch.named.iter().map(|(key, value)| format!("{key}={value:?}")).collect();
        let expected = [
            "crash_budget=Some(\"5\")",
            "n2.priority=Some(\"50\")",
            "n2.site=None",
            "replication_mode=Some(\"quorum\")",
            "sync_count=None",
            "sync_strict=Some(\"true\")",
        ];
        assert_eq!((named, patch.version, patch.replace), (expected.map(str::to_owned).to_vec(), Some(3), false));
        assert!(set(Change::Put, r#"{"settings":{}}"#).replace, "everything gets its default");
        for (change, body, says) in [
            (Change::Patch, r#"{"loop_wait":5}"#, "`loop_wait` is unknown here"),
            (Change::Patch, r#"{"settings":null}"#, "settings is no JSON object"),
            (Change::Patch, r#"{"settings":{"crash_budget":[5]}}"#, "crash_budget is no single value"),
            (Change::Patch, r#"{"settings":{"n1.priority":5}}"#, "a member's setting"),
            (Change::Patch, r#"{"members":{"n1":5}}"#, "members.n1 is no JSON object"),
            (Change::Patch, r#"{"version":-1,"settings":{"crash_budget":5}}"#, "version is no whole number"),
            (Change::Patch, r#"{"settings":{}}"#, "no setting is named"),
            (Change::Put, r#"{"members":{}}"#, "`settings` is missing"),
        ] {
            let (status, text) = refused(change, body);
            assert!(status == 400 && text.contains(says), "{body}: {text}");
        }
    }
}
