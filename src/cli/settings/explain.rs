//! `matriarch config explain KEY`: what a key is, where its value comes from, and whether it takes a restart.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::{
    cli::{
        args::ConfigExplainArgs,
        client::{Client, ClientError},
        complain, complain_client,
        exit::{self, Exit},
        print, render,
    },
    domain::{PostgresKey, parameters::nearest},
    rpc::v1::{Parameter, ParametersReply, ParametersRequest, Setting, SettingsReply},
};

pub(in crate::cli) async fn explain(args: ConfigExplainArgs) -> Exit {
    match try_to_explain(&args).await {
        Ok(Ok(text)) => {
            print(&text);
            exit::OK
        }
        Ok(Err(problem)) => complain(&problem, exit::USAGE),
        Err(error) => complain_client(&error),
    }
}

async fn try_to_explain(args: &ConfigExplainArgs) -> Result<Result<String, String>, ClientError> {
    let client = Client::new(&args.client)?;
    let known = client.settings().await?;
    let plain = |setting: &&Setting| PostgresKey::of(&setting.key).is_none() || !setting.key.contains('.');
    if let Some(setting) = known.settings.iter().filter(plain).find(|setting| setting.key == args.key) {
        return Ok(Ok(if args.json { setting_json(setting) } else { setting_text(setting) }));
    }
    let name = match PostgresKey::of(&args.key) {
        Some(PostgresKey::Parameter(_, name)) => name,
        Some(PostgresKey::Hba | PostgresKey::Ident) => {
            return Ok(Ok(format!("{}: not set; `matriarch config set {0}=@FILE`\n", args.key)));
        }
        None => args.key.as_str(),
    };
    let members = ask_members(&client, name).await?;
    let any = members.iter().any(|(_, told)| told.as_ref().is_ok_and(|reply| !reply.parameters.is_empty()));
    let answered = members.iter().any(|(_, told)| told.as_ref().is_ok_and(|reply| reply.live));
    if answered && !any {
        return Ok(Err(unknown(&client, name, &known).await));
    }
    let set = set_for(&known, name);
    Ok(Ok(if args.json { parameter_json(name, &set, &members) } else { parameter_text(name, &set, &members) }))
}

type Told = (String, Result<ParametersReply, String>);

/// Every member's manager, one beside the other.
async fn ask_members(client: &Client, name: &str) -> Result<Vec<Told>, ClientError> {
    let status = client.status(false).await?;
    let with_postgres = status.members.into_iter().filter(|member| member.role != "witness");
    let asked = with_postgres.map(|member| async move {
        let request = ParametersRequest { describe: vec![name.to_owned()], ..ParametersRequest::default() };
        let told = Client::of(&member.manager).postgres_settings(request).await;
        (member.member, told.map_err(|error| error.to_string()))
    });
    Ok(futures_util::future::join_all(asked).await)
}

/// There is no such thing; what was meant.
async fn unknown(client: &Client, name: &str, known: &SettingsReply) -> String {
    let request = ParametersRequest { describe_all: true, ..ParametersRequest::default() };
    let all = client.postgres_settings(request).await.map(|reply| reply.parameters).unwrap_or_default();
    let names = all.iter().map(|parameter| parameter.name.as_str());
    let keys = known.settings.iter().map(|setting| setting.key.as_str());
    let meant = nearest(name, names.chain(keys)).map(|meant| format!(", did you mean `{meant}`?"));
    format!(
        "config explain: `{name}` is neither a setting of the cluster nor one of PostgreSQL{}",
        meant.unwrap_or_default()
    )
}

/// The keys that set a parameter.
fn set_for<'a>(known: &'a SettingsReply, name: &str) -> Vec<&'a Setting> {
    let of = |setting: &&Setting| matches!(PostgresKey::of(&setting.key), Some(PostgresKey::Parameter(_, found)) if found.eq_ignore_ascii_case(name));
    known.settings.iter().filter(of).collect()
}

fn setting_text(setting: &Setting) -> String {
    let from = if setting.is_set { "set in the settings of the cluster" } else { "its default" };
    let mut out = format!("{} = {}  ({from})\n", setting.key, setting.value);
    if !setting.default.is_empty() {
        // Writing to a String can't fail.
        let _ = writeln!(out, "  default {}", setting.default);
    }
    for words in [&setting.help, &setting.problem].into_iter().filter(|words| !words.is_empty()) {
        let _ = writeln!(out, "  {words}");
    }
    out.push_str("  it takes effect without a restart\n");
    out
}

fn setting_json(setting: &Setting) -> String {
    render::json(&json!({"key": setting.key, "value": setting.value, "default": setting.default, "set": setting.is_set,
        "help": setting.help, "restart": false}))
}

/// When a setting takes effect, by PostgreSQL's word for that.
fn takes(context: &str) -> &'static str {
    match context {
        "postmaster" => "with a restart of PostgreSQL",
        "sighup" => "with a reload, which the agent does by itself",
        "internal" => "never: it can't be set",
        "backend" | "superuser-backend" => "with the next session",
        _ => "with a reload, which the agent does by itself; sessions may have their own",
    }
}

fn parameter_text(name: &str, set: &[&Setting], members: &[Told]) -> String {
    let mut out = String::new();
    let first = members.iter().find_map(|(_, told)| told.as_ref().ok()?.parameters.first());
    match first {
        None => drop(writeln!(out, "{name}: no PostgreSQL answers")),
        Some(is) => {
            let range = if is.range.is_empty() { String::new() } else { format!(", {}", is.range) };
            let default = if is.default.is_empty() { "empty" } else { &is.default };
            let _ = writeln!(out, "{name}: {}\n  {}{range}; default {default}", is.help, is.kind);
            let _ = writeln!(out, "  takes effect {}", takes(&is.context));
        }
    }
    for setting in set {
        let _ = writeln!(out, "  set: {} = {}", setting.key, setting.value);
    }
    for (member, told) in members {
        let line = match told {
            Err(why) => format!("nobody knows: {why}"),
            Ok(reply) => match reply.parameters.first() {
                None => "its PostgreSQL does not answer".to_owned(),
                Some(is) => on_member(is),
            },
        };
        let _ = writeln!(out, "  {member}: {line}");
    }
    out
}

fn on_member(is: &Parameter) -> String {
    let value = if is.value.is_empty() { "(empty)" } else { &is.value };
    let from = match (is.origin.as_str(), is.file.as_str()) {
        ("", "") => is.source.clone(),
        ("", file) => format!("{}, {file}", is.source),
        (origin, "") => format!("{origin}; in force from {}", is.source),
        (origin, file) => format!("{origin}; {file}"),
    };
    let pending = if is.pending.is_empty() { String::new() } else { format!("; with a restart {}", is.pending) };
    format!("{value}  ({from}{pending})")
}

fn parameter_json(name: &str, set: &[&Setting], members: &[Told]) -> String {
    let first = members.iter().find_map(|(_, told)| told.as_ref().ok()?.parameters.first());
    let of = |(member, told): &Told| {
        let value = match told.as_ref().map(|reply| reply.parameters.first()) {
            Ok(Some(is)) => json!({"value": is.value, "source": is.source, "file": is.file, "origin": is.origin,
                "pending": Some(&is.pending).filter(|pending| !pending.is_empty())}),
            Ok(None) => json!({"problem": "its PostgreSQL does not answer"}),
            Err(why) => json!({"problem": why}),
        };
        (member.clone(), value)
    };
    let members: Map<String, Value> = members.iter().map(of).collect();
    let set: Map<String, Value> = set.iter().map(|setting| (setting.key.clone(), json!(setting.value))).collect();
    render::json(&json!({"key": name, "help": first.map(|is| &is.help), "kind": first.map(|is| &is.kind),
        "range": first.map(|is| &is.range), "default": first.map(|is| &is.default),
        "restart": first.map(|is| is.context == "postmaster"), "set": set, "members": members}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_explained_for_each_member() {
        let is = Parameter {
            name: "work_mem".into(),
            value: "64MB".into(),
            default: "4096kB".into(),
            kind: "integer".into(),
            range: "64kB to 2147483647kB".into(),
            context: "user".into(),
            source: "configuration file".into(),
            file: "/d/postgresql.conf:4".into(),
            wanted: "64MB".into(),
            origin: "parameters.work_mem".into(),
            pending: String::new(),
            help: "Sets the maximum memory to be used for query workspaces.".into(),
        };
        let pending = Parameter { pending: "200".into(), value: "100".into(), ..is.clone() };
        let reply = |parameter| Ok(ParametersReply { live: true, parameters: vec![parameter], ..Default::default() });
        let members: Vec<Told> =
            vec![("n1".into(), reply(is)), ("n2".into(), reply(pending)), ("n3".into(), Err("no connection".into()))];
        let set = Setting { key: "parameters.work_mem".into(), value: "64MB".into(), ..Default::default() };
        let expected = "work_mem: Sets the maximum memory to be used for query workspaces.\n  integer, 64kB to 2147483647kB; default 4096kB\n  \
            takes effect with a reload, which the agent does by itself; sessions may have their own\n  set: parameters.work_mem = 64MB\n  \
            n1: 64MB  (parameters.work_mem; /d/postgresql.conf:4)\n  n2: 100  (parameters.work_mem; /d/postgresql.conf:4; with a restart 200)\n  \
            n3: nobody knows: no connection\n";
        assert_eq!(parameter_text("work_mem", &[&set], &members), expected);
    }
}
