//! `matriarch config`: what operators have set for the whole cluster. The file of a host is another matter.

mod edit;
mod explain;
mod versions;

use std::{collections::BTreeMap, env, fmt::Write as _};

use nix::unistd::{User, geteuid};
use serde::Serialize;
use uuid::Uuid;

pub(super) use self::{
    edit::edit,
    explain::explain,
    versions::{diff, history, rollback},
};
use super::{
    args::{ClientArgs, ConfigSetArgs, ConfigShowArgs},
    client::{Client, ClientError, target},
    complain, complain_client,
    exit::{self, Exit},
    print, render,
};
use crate::domain::{
    PostgresKey, SettingChanges,
    postgres_settings::Scope,
    settings_document::{member_key, member_of},
    settings_history::differences,
};
use crate::rpc::v1::{MemberStatus, SetSettingsReply, SetSettingsRequest, Setting, SettingsOutcome, SettingsReply};

pub(super) async fn show(args: ConfigShowArgs) -> Exit {
    let client = match Client::new(&args.client) {
        Ok(client) => client,
        Err(error) => return complain_client(&error),
    };
    match client.settings().await {
        Ok(reply) => {
            // What waits is worth a line, and no reason to show nothing.
            let members = client.status(false).await.map(|status| status.members).unwrap_or_default();
            print(&if args.json { json(&reply, &members) } else { text(&reply) + &waiting(&members) });
            exit::OK
        }
        Err(error) => complain_client(&error),
    }
}

/// What is not in force as it is set, on each member.
fn waiting(members: &[MemberStatus]) -> String {
    let mut out = String::new();
    for member in members {
        for remark in crate::rpc::configuration::view_of(member.configuration.clone()).remarks() {
            if out.is_empty() {
                out.push_str("\nnot as set\n");
            }
            // Writing to a String can't fail.
            let _ = writeln!(out, "  {}: {remark}", member.member);
        }
    }
    out
}

pub(super) async fn set(args: ConfigSetArgs) -> Exit {
    let request = match request(&args) {
        Ok(request) => request,
        Err(problem) => return complain(&problem, exit::USAGE),
    };
    let request = SetSettingsRequest { force: args.taken.force, dry_run: args.taken.dry_run, ..request };
    match changed_with(&args.client, args.taken.if_version, request).await {
        Ok(changed) => told("config set", &changed, args.taken.json),
        Err(error) => complain_client(&error),
    }
}

/// The request, but for the version when none is given.
fn request(args: &ConfigSetArgs) -> Result<SetSettingsRequest, String> {
    let mut set = BTreeMap::new();
    for word in &args.assignments {
        let (key, value) = word
            .split_once('=')
            .map(|(key, value)| (key.trim(), value.trim()))
            .filter(|(key, value)| !key.is_empty() && (!value.is_empty() || key.contains("parameters.")))
            .ok_or_else(|| {
                format!("{word}: write KEY=VALUE, e.g. crash_budget=5; `--unset KEY` brings a default back")
            })?;
        if set.insert(key.to_owned(), read_lines(key, value)?).is_some() {
            return Err(format!("{key} is given twice"));
        }
    }
    if let Some(key) = args.unset.iter().find(|key| set.contains_key(*key)) {
        return Err(format!("{key} is given a value and unset"));
    }
    // A key may name its member itself, as it is shown.
    let of = |key: &String| match &args.member {
        Some(member) => member_key(member, key),
        None => key.clone(),
    };
    let for_another = |key: &&String| match PostgresKey::of(key) {
        Some(PostgresKey::Parameter(Scope::All, _)) => false,
        Some(_) => true,
        None => member_of(key).is_some(),
    };
    if let Some(key) = set.keys().chain(&args.unset).filter(|_| args.member.is_some()).find(for_another) {
        return Err(format!("{key} says for whom it is, and so does --member"));
    }
    let changes = set.iter().map(|(key, value)| (of(key), Some(value.clone())));
    Ok(request_of(changes.chain(args.unset.iter().map(|key| (of(key), None)))))
}

/// Lines are read from a file that is named (`hba=@FILE`).
fn read_lines(key: &str, value: &str) -> Result<String, String> {
    match value
        .strip_prefix('@')
        .filter(|_| matches!(PostgresKey::of(key), Some(PostgresKey::Hba | PostgresKey::Ident)))
    {
        None => Ok(value.to_owned()),
        Some(file) => {
            let text =
                std::fs::read_to_string(file).map_err(|error| format!("{key}: {file} can't be read: {error}"))?;
            Ok(text.trim_end().to_owned())
        }
    }
}

/// The request for these changes, but for the version.
fn request_of(changes: impl Iterator<Item = (String, Option<String>)>) -> SetSettingsRequest {
    let changes: SettingChanges = changes.collect();
    let set = changes.iter().filter_map(|(key, value)| Some((key.clone(), value.clone()?)));
    let unset = changes.iter().filter(|(_, value)| value.is_none()).map(|(key, _)| key.clone());
    SetSettingsRequest {
        to: Some(target("", 0)),
        set: set.collect(),
        unset: unset.collect(),
        by: who(),
        request_id: Uuid::now_v7().to_string(),
        ..SetSettingsRequest::default()
    }
}

/// Who asks, for those who read of it in `matriarch explain`. Nothing rests on it. A job of cron or of a container may have no
/// variable that says so.
pub(super) fn who() -> String {
    let names = ["SUDO_USER", "USER", "LOGNAME"].map(env::var);
    let named = names.into_iter().flatten().find(|name| !name.is_empty());
    named.or_else(|| User::from_uid(geteuid()).ok().flatten().map(|user| user.name)).unwrap_or_default()
}

/// What was asked for, and how it was before and came to be.
struct Changed {
    before: SettingsReply,
    asked: SetSettingsRequest,
    reply: SetSettingsReply,
}

/// Without a version the one that is read first counts: whoever changes settings in between is not overruled.
async fn changed_with(
    args: &ClientArgs,
    if_version: Option<u64>,
    mut asked: SetSettingsRequest,
) -> Result<Changed, ClientError> {
    let client = Client::new(args)?;
    let before = client.settings().await?;
    asked.version = if_version.unwrap_or(before.version);
    let reply = client.set_settings(asked.clone()).await?;
    Ok(Changed { before, asked, reply })
}

/// `command` names what was typed.
fn told(command: &str, changed: &Changed, as_json: bool) -> Exit {
    let reply = &changed.reply;
    for warning in &reply.warnings {
        eprintln!("matriarch: {warning}");
    }
    let (exit, advice) = match reply.outcome() {
        SettingsOutcome::InForce => {
            let settings = reply.settings.clone().unwrap_or_default();
            print(&if as_json { json(&settings, &[]) } else { came_to(changed, &settings) });
            return exit::OK;
        }
        SettingsOutcome::Impossible => (exit::USAGE, "nothing was changed"),
        SettingsOutcome::Stale => {
            (exit::FAILED, "nothing was changed; look at them (`matriarch config show`) and set again")
        }
        SettingsOutcome::Refused => (exit::FAILED, "nothing was changed"),
        SettingsOutcome::Unknown | SettingsOutcome::Unspecified => {
            (exit::FAILED, "`matriarch config show` says what is in force")
        }
    };
    complain(&format!("{command}: {}; {advice}", reply.reason), exit)
}

/// Only what is another now: all there is shows `config show`.
fn came_to(changed: &Changed, now: &SettingsReply) -> String {
    let Changed { before, asked, .. } = changed;
    let set = |reply: &SettingsReply| -> BTreeMap<String, String> {
        reply.settings.iter().filter(|s| s.is_set).map(|s| (s.key.clone(), s.value.clone())).collect()
    };
    let (old, version) = (set(before), now.version);
    if asked.dry_run {
        let mut new = old.clone();
        new.extend(asked.set.clone());
        new.retain(|key, _| !asked.unset.contains(key));
        // What was set in a version `config diff` knows.
        let would = match asked.back_to {
            Some(back) => format!("  as in version {back}: `matriarch config diff {version} {back}`\n"),
            None => versions::changes(&differences(&old, &new)),
        };
        return format!("settings of version {version} as before; what would be another:\n{would}");
    }
    match differences(&old, &set(now)) {
        same if same.is_empty() => format!("settings of version {version} as before: nothing is another\n"),
        found => {
            // Each member has PostgreSQL's a moment later, and some wait for a restart.
            let then = match found.keys().any(|key| PostgresKey::of(key).is_some()) {
                true => "`matriarch config diff` says what is in force on each member, and what waits for a restart\n",
                false => "",
            };
            let what = versions::changes(&found);
            format!("settings of version {version} now, of {} before\n{what}{then}", before.version)
        }
    }
}

fn text(reply: &SettingsReply) -> String {
    let mut out = format!("settings of version {} (answered by {})\n", reply.version, reply.answered_by);
    let (postgres, own): (Vec<_>, Vec<_>) = reply.settings.iter().partition(|s| PostgresKey::of(&s.key).is_some());
    let (of_all, of_one): (Vec<&Setting>, Vec<&Setting>) = own.into_iter().partition(|s| member_of(&s.key).is_none());
    for setting in of_all {
        // Writing to a String can't fail.
        let _ = writeln!(out, "\n  {} = {}  ({})", setting.key, setting.value, origin(setting));
        if !setting.help.is_empty() {
            let _ = writeln!(out, "      {}", setting.help);
        }
    }
    members(&mut out, &of_one);
    of_postgres(&mut out, &postgres);
    out
}

/// What PostgreSQL is configured with on all hosts.
fn of_postgres(out: &mut String, settings: &[&Setting]) {
    if !settings.is_empty() {
        out.push_str("\nof PostgreSQL (config explain NAME says where each is in force)\n");
    }
    for setting in settings {
        // Writing to a String can't fail.
        let _ = match setting.value.contains('\n') {
            true => writeln!(out, "  {} =\n      {}", setting.key, setting.value.replace('\n', "\n      ")),
            false => writeln!(out, "  {} = {}", setting.key, setting.value),
        };
    }
}

/// One line each: what a key does is said once.
fn members(out: &mut String, settings: &[&Setting]) {
    let mut explained: Vec<&str> = Vec::new();
    if !settings.is_empty() {
        out.push_str("\nof each member (config set KEY=VALUE --member MEMBER)\n");
    }
    for setting in settings {
        // Writing to a String can't fail.
        let _ = writeln!(out, "  {} = {}  ({})", setting.key, setting.value, origin(setting));
    }
    for setting in settings {
        let key = member_of(&setting.key).map_or("", |(_, key)| key);
        if !setting.help.is_empty() && !explained.contains(&key) {
            let _ = writeln!(out, "      {key}: {}", setting.help);
            explained.push(key);
        }
    }
}

fn origin(setting: &Setting) -> String {
    match (setting.is_set, setting.problem.as_str()) {
        (false, _) => "default".to_owned(),
        (true, "") => format!("set; default {}", setting.default),
        // Of a key that the answering version doesn't know.
        (true, problem) if setting.help.is_empty() => format!("set; {problem}"),
        (true, problem) => format!("default, for what is set can't be read: {problem}"),
    }
}

pub(super) fn json(reply: &SettingsReply, members: &[MemberStatus]) -> String {
    #[derive(Serialize)]
    struct One<'a> {
        value: &'a str,
        default: Option<&'a str>,
        set: bool,
        help: Option<&'a str>,
        problem: Option<&'a str>,
    }
    #[derive(Serialize)]
    struct Json<'a> {
        version: u64,
        settings: BTreeMap<&'a str, One<'a>>,
        answered_by: &'a str,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        members: BTreeMap<&'a str, serde_json::Value>,
    }
    fn given(text: &str) -> Option<&str> {
        Some(text).filter(|t| !t.is_empty())
    }
    let settings = reply.settings.iter().map(|s| {
        let (default, help, problem) = (given(&s.default), given(&s.help), given(&s.problem));
        (s.key.as_str(), One { value: &s.value, default, set: s.is_set, help, problem })
    });
    let waiting = members.iter().filter(|member| member.configuration.is_some());
    let waiting = waiting.map(|member| (member.member.as_str(), render::configuration_json(member))).collect();
    render::json(&Json {
        version: reply.version,
        settings: settings.collect(),
        answered_by: &reply.answered_by,
        members: waiting,
    })
}
