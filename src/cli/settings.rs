//! `matriarch config show` and `config set`: what operators have set for the
//! whole cluster. The file of a host is another matter.

use std::{collections::BTreeMap, env, fmt::Write as _};

use serde::Serialize;
use uuid::Uuid;

use super::{
    args::{ConfigSetArgs, ConfigShowArgs},
    client::{Client, ClientError, target},
    complain, complain_client,
    exit::{self, Exit},
    print, render,
};
use crate::domain::settings_document::{member_key, member_of};
use crate::rpc::v1::{SetSettingsReply, SetSettingsRequest, Setting, SettingsOutcome, SettingsReply};

pub(super) async fn show(args: ConfigShowArgs) -> Exit {
    let answer = match Client::new(&args.client) {
        Ok(client) => client.settings().await,
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

pub(super) async fn set(args: ConfigSetArgs) -> Exit {
    let request = match request(&args) {
        Ok(request) => request,
        Err(problem) => return complain(&problem, exit::USAGE),
    };
    match changed(&args, request).await {
        Ok(reply) => told(&reply, args.json),
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
            .filter(|(key, value)| !key.is_empty() && !value.is_empty())
            .ok_or_else(|| {
                format!("{word}: write KEY=VALUE, e.g. crash_budget=5; `--unset KEY` brings a default back")
            })?;
        if set.insert(key.to_owned(), value.to_owned()).is_some() {
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
    if let Some(key) = set.keys().chain(&args.unset).find(|key| args.member.is_some() && member_of(key).is_some()) {
        return Err(format!("{key} names a member, and so does --member"));
    }
    Ok(SetSettingsRequest {
        to: Some(target("", 0)),
        version: args.if_version.unwrap_or_default(),
        set: set.iter().map(|(key, value)| (of(key), value.clone())).collect(),
        unset: args.unset.iter().map(of).collect(),
        by: who(),
        request_id: Uuid::now_v7().to_string(),
    })
}

/// Who asks, for those who read of it in `matriarch explain`. Nothing rests on it.
pub(super) fn who() -> String {
    let names = ["SUDO_USER", "USER", "LOGNAME"].map(env::var);
    names.into_iter().flatten().find(|name| !name.is_empty()).unwrap_or_default()
}

/// Without a version the one that is read first counts: whoever changes settings in between is not overruled.
async fn changed(args: &ConfigSetArgs, mut request: SetSettingsRequest) -> Result<SetSettingsReply, ClientError> {
    let client = Client::new(&args.client)?;
    if args.if_version.is_none() {
        request.version = client.settings().await?.version;
    }
    client.set_settings(request).await
}

fn told(reply: &SetSettingsReply, as_json: bool) -> Exit {
    let (exit, advice) = match reply.outcome() {
        SettingsOutcome::InForce => {
            let settings = reply.settings.clone().unwrap_or_default();
            print(&if as_json { json(&settings) } else { text(&settings) });
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
    complain(&format!("config set: {}; {advice}", reply.reason), exit)
}

fn text(reply: &SettingsReply) -> String {
    let mut out = format!("settings of version {} (answered by {})\n", reply.version, reply.answered_by);
    let (of_all, of_one): (Vec<_>, Vec<_>) = reply.settings.iter().partition(|s| member_of(&s.key).is_none());
    for setting in of_all {
        // Writing to a String can't fail.
        let _ = writeln!(out, "\n  {} = {}  ({})", setting.key, setting.value, origin(setting));
        if !setting.help.is_empty() {
            let _ = writeln!(out, "      {}", setting.help);
        }
    }
    members(&mut out, &of_one);
    out
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

pub(super) fn json(reply: &SettingsReply) -> String {
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
    }
    fn given(text: &str) -> Option<&str> {
        Some(text).filter(|t| !t.is_empty())
    }
    let settings = reply.settings.iter().map(|s| {
        let (default, help, problem) = (given(&s.default), given(&s.help), given(&s.problem));
        (s.key.as_str(), One { value: &s.value, default, set: s.is_set, help, problem })
    });
    render::json(&Json { version: reply.version, settings: settings.collect(), answered_by: &reply.answered_by })
}
