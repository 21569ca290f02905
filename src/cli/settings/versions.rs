//! `matriarch config history`, `diff` and `rollback`: what was set before, and what runs.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Serialize;

use super::{changed_with, told, who};
use crate::{
    cli::{
        args::{ConfigDiffArgs, ConfigHistoryArgs, ConfigRollbackArgs},
        client::{Client, ClientError, target},
        complain, complain_client,
        exit::{self, Exit},
        history::time_of,
        print, render,
    },
    domain::{
        PostgresKey, SettingsDocument,
        settings_history::{differences, values_of},
    },
    rpc::{
        configuration,
        v1::{SetSettingsRequest, SettingsChange, SettingsHistoryReply, StatusReply},
    },
};

pub(in crate::cli) async fn history(args: ConfigHistoryArgs) -> Exit {
    let answer = match Client::new(&args.client) {
        Ok(client) => client.settings_history().await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(reply) => {
            print(&if args.json { json(&reply) } else { text(&reply) });
            exit::OK
        }
        Err(error) => complain_client(&error),
    }
}

fn text(reply: &SettingsHistoryReply) -> String {
    if reply.changes.is_empty() {
        return format!("no change is kept; the settings are of version {}\n", reply.version);
    }
    let mut out = String::new();
    for change in reply.changes.iter().rev() {
        let by = if change.by.is_empty() { String::new() } else { format!(" by {}", change.by) };
        let why = if change.why.is_empty() { String::new() } else { format!(": {}", change.why) };
        let at = if change.at_ms == 0 { String::new() } else { format!("  {}", time_of(change.at_ms)) };
        // Writing to a String can't fail.
        let _ = writeln!(out, "version {}{at}{by}{why}", change.version);
        for key in &change.keys {
            out += &format!("    {}", changed(&key.key, key.before.as_deref(), key.after.as_deref()));
        }
    }
    let _ = writeln!(out, "(answered by {})", reply.answered_by);
    out
}

/// One key that is another than before, in one line.
fn changed(key: &str, before: Option<&str>, after: Option<&str>) -> String {
    format!("{key} = {} (was {})\n", shown(after), shown(before))
}

/// All that is another than before, a line each.
pub(super) fn changes(found: &Found) -> String {
    if found.is_empty() {
        return "  nothing\n".to_owned();
    }
    let line = |(key, (before, after)): (&String, &(Option<String>, Option<String>))| {
        format!("  {}", changed(key, before.as_deref(), after.as_deref()))
    };
    found.iter().map(line).collect()
}

/// A value in one line.
fn shown(value: Option<&str>) -> String {
    match value {
        None => "default".to_owned(),
        Some(text) if text.contains('\n') => format!("{} lines", text.lines().count()),
        Some(text) => text.to_owned(),
    }
}

#[derive(Serialize)]
struct KeyJson<'a> {
    key: &'a str,
    before: Option<&'a str>,
    after: Option<&'a str>,
}

fn json(reply: &SettingsHistoryReply) -> String {
    #[derive(Serialize)]
    struct One<'a> {
        version: u64,
        by: &'a str,
        at_ms: u64,
        why: &'a str,
        keys: Vec<KeyJson<'a>>,
    }
    #[derive(Serialize)]
    struct Json<'a> {
        version: u64,
        changes: Vec<One<'a>>,
        answered_by: &'a str,
    }
    let one = |change: &'_ SettingsChange| -> Vec<(String, Option<String>, Option<String>)> {
        change.keys.iter().map(|k| (k.key.clone(), k.before.clone(), k.after.clone())).collect()
    };
    let kept: Vec<_> = reply.changes.iter().map(|change| (change, one(change))).collect();
    let changes = kept.iter().map(|(change, keys)| One {
        version: change.version,
        by: &change.by,
        at_ms: change.at_ms,
        why: &change.why,
        keys: keys.iter().map(key_json).collect(),
    });
    render::json(&Json { version: reply.version, changes: changes.collect(), answered_by: &reply.answered_by })
}

fn key_json((key, before, after): &(String, Option<String>, Option<String>)) -> KeyJson<'_> {
    KeyJson { key, before: before.as_deref(), after: after.as_deref() }
}

pub(in crate::cli) async fn diff(args: ConfigDiffArgs) -> Exit {
    let done = match Client::new(&args.client) {
        Err(error) => Err(error),
        Ok(client) if args.versions.is_empty() => against_members(&client, args.json).await,
        Ok(client) => of_versions(&client, &args).await,
    };
    done.unwrap_or_else(|error| complain_client(&error))
}

async fn of_versions(client: &Client, args: &ConfigDiffArgs) -> Result<Exit, ClientError> {
    let reply = client.settings_history().await?;
    let from = args.versions[0];
    let to = args.versions.get(1).copied().unwrap_or(reply.version);
    Ok(match between(&reply, from, to) {
        Err(problem) => complain(&format!("config diff: {problem}"), exit::USAGE),
        Ok(found) => {
            let rows: Vec<_> =
                found.iter().map(|(key, (before, after))| (key.clone(), before.clone(), after.clone())).collect();
            print(&match args.json {
                true => render::json(&rows.iter().map(key_json).collect::<Vec<_>>()),
                false => format!("version {from} against version {to}\n{}", lines(&found)),
            });
            exit::OK
        }
    })
}

type Found = BTreeMap<String, (Option<String>, Option<String>)>;

fn between(reply: &SettingsHistoryReply, from: u64, to: u64) -> Result<Found, String> {
    let now = SettingsDocument { version: reply.version, values: reply.values.clone() };
    let changes: Vec<_> = reply.changes.iter().cloned().map(configuration::change_of).collect();
    let of = |version| {
        values_of(&now, changes.iter(), version).ok_or_else(|| {
            let oldest = changes.first().map_or(now.version, |change| change.version - 1);
            format!("version {version} is not known: {oldest} to {} are kept", now.version)
        })
    };
    Ok(differences(&of(from)?, &of(to)?))
}

/// What is another, as `-` before and `+` after.
pub(super) fn lines(found: &Found) -> String {
    let side = |mark: &str, key: &str, value: &Option<String>| match value {
        None => String::new(),
        Some(text) if text.contains('\n') => {
            let each = text.lines().map(|line| format!("{mark}     {line}\n"));
            format!("{mark} {key} =\n{}", each.collect::<String>())
        }
        Some(text) => format!("{mark} {key} = {text}\n"),
    };
    if found.is_empty() {
        return "  nothing is another\n".to_owned();
    }
    let both = found.iter().map(|(key, (before, after))| side("-", key, before) + &side("+", key, after));
    both.collect()
}

/// What was committed against what runs on each member.
async fn against_members(client: &Client, as_json: bool) -> Result<Exit, ClientError> {
    let (settings, status) = (client.settings().await?, client.status(false).await?);
    // An older manager keeps no history: then nobody is said to be late.
    let due = client.settings_history().await.map(|reply| due(&reply)).unwrap_or_default();
    print(&match as_json {
        true => members_json(settings.version, &status),
        false => members_text(settings.version, due, &status),
    });
    Ok(exit::OK)
}

/// The version that changed PostgreSQL's settings last, which every member is to have; what else is set its files don't show.
fn due(reply: &SettingsHistoryReply) -> u64 {
    let of_postgres = |change: &&SettingsChange| change.keys.iter().any(|key| PostgresKey::of(&key.key).is_some());
    reply.changes.iter().rev().find(of_postgres).map_or(0, |change| change.version)
}

fn members_text(version: u64, due: u64, status: &StatusReply) -> String {
    let mut out = format!("settings of version {version} against what runs on each member\n");
    for member in &status.members {
        let view = configuration::view_of(member.configuration.clone());
        let remarks = view.remarks();
        let name = &member.member;
        if member.state == "silent" {
            let _ = writeln!(out, "  {name}: nobody knows, it does not answer");
        } else if (1..due).contains(&view.version) && view.refused == 0 && view.problem.is_empty() {
            let _ = writeln!(out, "  {name}: still those of version {}, newer ones come in a moment", view.version);
        } else if remarks.is_empty() {
            let _ = writeln!(out, "  {name}: as committed");
        } else {
            let _ = writeln!(out, "  {name}:");
            for remark in remarks {
                let _ = writeln!(out, "    {remark}");
            }
        }
    }
    out
}

/// What waits, what is strange and what was left out, of each member.
fn members_json(version: u64, status: &StatusReply) -> String {
    let of = |member: &crate::rpc::v1::MemberStatus| (member.member.clone(), render::configuration_json(member));
    let members: serde_json::Map<String, serde_json::Value> = status.members.iter().map(of).collect();
    render::json(&serde_json::json!({"version": version, "members": members}))
}

pub(in crate::cli) async fn rollback(args: ConfigRollbackArgs) -> Exit {
    let request = SetSettingsRequest {
        to: Some(target("", 0)),
        back_to: Some(args.version),
        force: args.taken.force,
        dry_run: args.taken.dry_run,
        by: who(),
        request_id: uuid::Uuid::now_v7().to_string(),
        ..SetSettingsRequest::default()
    };
    match changed_with(&args.client, args.taken.if_version, request).await {
        Ok(changed) => told("config rollback", &changed, args.taken.json),
        Err(error) => complain_client(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::v1::{ChangedSetting, Configuration, MemberStatus, PendingSetting};

    fn reply() -> SettingsHistoryReply {
        let key = |key: &str, before: Option<&str>, after: Option<&str>| ChangedSetting {
            key: key.to_owned(),
            before: before.map(str::to_owned),
            after: after.map(str::to_owned),
        };
        let change =
            |version, by: &str, keys| SettingsChange { version, by: by.to_owned(), keys, ..Default::default() };
        SettingsHistoryReply {
            version: 3,
            values: [("parameters.work_mem".to_owned(), "2MB".to_owned())].into(),
            changes: vec![
                change(
                    2,
                    "kim",
                    vec![key("parameters.work_mem", None, Some("1MB")), key("hba", Some("a\nb"), Some("a"))],
                ),
                change(3, "", vec![key("parameters.work_mem", Some("1MB"), Some("2MB")), key("hba", Some("a"), None)]),
            ],
            answered_by: "n1".to_owned(),
        }
    }

    #[test]
    fn the_newest_change_stands_first() {
        let expected = "version 3\n    parameters.work_mem = 2MB (was 1MB)\n    hba = default (was a)\nversion 2 by kim\n    \
                        parameters.work_mem = 1MB (was default)\n    hba = a (was 2 lines)\n(answered by n1)\n";
        assert_eq!(text(&reply()), expected);
        assert!(json(&reply()).contains("\"before\": null"));
    }

    #[test]
    fn two_versions_differ_by_lines() {
        let found = between(&reply(), 1, 3).unwrap();
        assert_eq!(lines(&found), "- hba =\n-     a\n-     b\n+ parameters.work_mem = 2MB\n");
        assert_eq!(lines(&between(&reply(), 2, 2).unwrap()), "  nothing is another\n");
        assert_eq!(between(&reply(), 0, 3).unwrap_err(), "version 0 is not known: 1 to 3 are kept");
    }

    #[test]
    fn members_are_late_only_with_what_postgresql_shows() {
        assert_eq!(due(&reply()), 3);
        let mut other = reply();
        other.changes[1].keys[0].key = "crash_budget".into();
        other.changes[1].keys.truncate(1);
        assert_eq!(due(&other), 2, "version 3 is none of PostgreSQL's");
    }

    #[test]
    fn each_member_says_what_is_not_as_committed() {
        let pending = PendingSetting {
            name: "max_connections".into(),
            running: "100".into(),
            configured: "200".into(),
            why: "needs a restart, standbys first".into(),
        };
        let member = |name: &str, state: &str, pending: Vec<PendingSetting>| MemberStatus {
            member: name.into(),
            state: state.into(),
            configuration: Some(Configuration { pending, ..Default::default() }),
            ..Default::default()
        };
        let members = vec![
            member("n1", "running", vec![pending]),
            member("n2", "streaming", vec![]),
            member("n3", "silent", vec![]),
        ];
        let late = MemberStatus {
            member: "n4".into(),
            state: "streaming".into(),
            configuration: Some(Configuration { version: 3, ..Default::default() }),
            ..Default::default()
        };
        let refusing = MemberStatus {
            member: "n5".into(),
            configuration: Some(Configuration {
                version: 2,
                refused: 4,
                problem: "PostgreSQL did not start".into(),
                ..Default::default()
            }),
            ..late.clone()
        };
        let members = [members, vec![late, refusing]].concat();
        let told = members_text(4, 4, &StatusReply { members, ..Default::default() });
        let expected = "settings of version 4 against what runs on each member\n  n1:\n    pending restart: max_connections = 100, then 200 \
                        (needs a restart, standbys first)\n  n2: as committed\n  n3: nobody knows, it does not answer\n  n4: still those of version 3, newer ones \
                        come in a moment\n";
        assert!(told.starts_with(expected), "{told}");
        assert!(told.contains("  n5:\n") && told.contains("PostgreSQL did not start"), "{told}");
    }
}
