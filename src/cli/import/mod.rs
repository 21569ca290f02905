//! `matriarch import`: a configuration of Patroni becomes files of Matriarch's and a list of commands, and every key of it is
//! accounted for. Asks nobody.

mod allowed;
mod draft;
#[cfg(test)]
mod import_test;
mod map;
mod without;
mod yaml;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, DirBuilder, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use serde::Serialize;
use uuid::Uuid;

use self::{
    draft::Draft,
    map::{HostFile, Imported, Outcome, Wanted, import},
    yaml::Value,
};
use super::{
    args::ImportArgs,
    complain,
    exit::{self, Exit},
    print,
};
use crate::config::Config;

pub(super) fn run(args: &ImportArgs) -> Exit {
    let imported = match wanted(args).and_then(|wanted| import(&wanted)) {
        Ok(imported) => imported,
        Err(problem) => return complain(&problem, exit::USAGE),
    };
    let files = match chosen(args, &imported) {
        Ok(files) => files,
        Err(problem) => return complain(&problem, exit::USAGE),
    };
    if args.json {
        print(&json(&imported, &files));
    } else if args.output == "-" {
        print(&streamed(&imported, &files));
        eprint!("{}", report(&imported));
    } else if let Err(problem) = written(Path::new(&args.output), &imported, &files) {
        return complain(&problem, exit::FAILED);
    } else {
        print(&report(&imported));
    }
    let wrong = files.iter().find_map(|(draft, text)| Some((draft, checked(text).err()?)));
    match wrong {
        Some((draft, problem)) => {
            complain(&format!("the file of {} is not complete: {problem}", draft.member()), exit::FAILED)
        }
        None => exit::OK,
    }
}

fn read(file: &Path) -> Result<Value, String> {
    let mut text = String::new();
    let read = match file.as_os_str() == "-" {
        true => std::io::stdin().read_to_string(&mut text),
        false => fs::File::open(file).and_then(|mut opened| opened.read_to_string(&mut text)),
    };
    read.map_err(|error| {
        format!("{}: can't be read ({error}); name a file of YAML, as Patroni has it", file.display())
    })?;
    yaml::parse(&text).map_err(|error| format!("{}: not a configuration in YAML: {error}", file.display()))
}

fn wanted(args: &ImportArgs) -> Result<Wanted, String> {
    let dynamic = args.dynamic.as_deref().map(read).transpose()?;
    let file = |path: &std::path::PathBuf| Ok(HostFile { name: path.display().to_string(), tree: read(path)? });
    let files = args.files.iter().map(file).collect::<Result<Vec<_>, String>>()?;
    let member = |word: &String| {
        let (name, host) = word.split_once('=').filter(|(name, host)| !name.is_empty() && !host.is_empty())?;
        Some((name.to_owned(), host.to_owned()))
    };
    let members = args.members.iter().map(|word| member(word).ok_or_else(|| word.clone()));
    let members = members.collect::<Result<Vec<_>, _>>();
    let members =
        members.map_err(|word| format!("--members {word}: write NAME=HOST or NAME=HOST:PORT, with commas between"))?;
    Ok(Wanted { files, dynamic, members, primary: args.primary.clone() })
}

/// A later version knows hooks, and this one may not.
fn text_of(draft: &Draft) -> String {
    let with = draft.to_toml(true);
    let known = checked(&with).is_ok() || draft.callbacks.is_empty();
    if known { with } else { draft.to_toml(false) }
}

fn checked(text: &str) -> Result<(), String> {
    Config::parse(Path::new("matriarch.toml"), text).map(drop).map_err(|error| error.to_string())
}

fn chosen<'a>(args: &ImportArgs, imported: &'a Imported) -> Result<Vec<(&'a Draft, String)>, String> {
    let asked = |draft: &&Draft| args.member.as_deref().is_none_or(|name| name == draft.member());
    let found = Vec::from_iter(imported.drafts.iter().filter(asked).map(|draft| (draft, text_of(draft))));
    match (&args.member, found.is_empty()) {
        (Some(name), true) => Err(format!("--member {name}: no member is called so")),
        _ => Ok(found),
    }
}

fn streamed(imported: &Imported, files: &[(&Draft, String)]) -> String {
    let mut out = String::new();
    for (draft, text) in files {
        let _ = write!(out, "# ---- /etc/matriarch/matriarch.toml of {}\n{text}\n", draft.member());
    }
    if !imported.commands.is_empty() {
        out.push_str("# ---- when the cluster stands\n");
        imported.commands.iter().for_each(|command| _ = writeln!(out, "# {command}"));
    }
    out
}

/// What became of each key; the same of several at one place.
fn report(imported: &Imported) -> String {
    let mut said: BTreeMap<(&str, u8, &str), Vec<&str>> = BTreeMap::new();
    for ((file, key), outcome) in &imported.keys {
        let (rank, words) = match outcome {
            Outcome::Mapped(to) => (0, to.as_str()),
            Outcome::Without(why) => (1, why.as_str()),
            Outcome::Unknown => (2, "Patroni 4.1 has no such key, nothing was done with it"),
        };
        said.entry((file, rank, words)).or_default().push(key);
    }
    let mut out = String::new();
    let mut last = ("", u8::MAX);
    for ((file, rank, words), keys) in said {
        if last != (file, rank) {
            let title = ["is taken over", "has no equivalent", "is not known"][usize::from(rank)];
            let _ = writeln!(out, "\n{file}: {title}");
            last = (file, rank);
        }
        let _ = writeln!(out, "  {}\n      {words}", keys.join(", "));
    }
    if !imported.remarks.is_empty() {
        out.push_str("\nTo mind\n");
        imported.remarks.iter().for_each(|remark| _ = writeln!(out, "  {remark}"));
    }
    out.push_str("\nWhat to do with it, step by step: docs/from-patroni.md\n");
    out
}

/// Passwords are in none of it.
fn json(imported: &Imported, files: &[(&Draft, String)]) -> String {
    #[derive(Serialize)]
    struct File<'a> {
        member: &'a str,
        toml: &'a str,
    }
    #[derive(Serialize)]
    struct Key<'a> {
        file: &'a str,
        key: &'a str,
        outcome: &'a Outcome,
    }
    #[derive(Serialize)]
    struct All<'a> {
        files: Vec<File<'a>>,
        commands: &'a [String],
        keys: Vec<Key<'a>>,
        remarks: &'a [String],
    }
    let all = All {
        files: files.iter().map(|(draft, toml)| File { member: draft.member(), toml }).collect(),
        commands: &imported.commands,
        keys: imported.keys.iter().map(|((file, key), outcome)| Key { file, key, outcome }).collect(),
        remarks: &imported.remarks,
    };
    serde_json::to_string_pretty(&all).unwrap_or_default() + "\n"
}

/// Nothing that is there is written over: it may hold the secret that the hosts have already.
fn written(dir: &Path, imported: &Imported, files: &[(&Draft, String)]) -> Result<(), String> {
    let secret: String = (0..4).map(|_| Uuid::new_v4().simple().to_string()).collect();
    let mut all = Vec::new();
    for (draft, text) in files {
        let place = dir.join(draft.member());
        all.push((place.join("matriarch.toml"), 0o644, text.clone()));
        all.push((place.join("secret"), 0o600, format!("{secret}\n")));
        let passwords = draft.secrets.iter().map(|s| (place.join(s.file), 0o600, format!("{}\n", s.value)));
        all.extend(passwords);
    }
    let commands: String = imported.commands.iter().map(|command| format!("{command}\n")).collect();
    all.push((
        dir.join("settings.sh"),
        // Commands that archive or copy may have credentials among their words; the report shows them as well.
        0o700,
        format!("#!/bin/sh\n# When the cluster stands, once, on any host.\nset -e\n{commands}"),
    ));
    all.push((dir.join("report.txt"), 0o600, report(imported)));
    if let Some((taken, ..)) = all.iter().find(|(path, ..)| path.symlink_metadata().is_ok()) {
        return Err(format!(
            "{} is there already, and nothing is written over; name another --output",
            taken.display()
        ));
    }
    for (path, mode, text) in all {
        let failed = |error: std::io::Error| format!("{} can't be written ({error})", path.display());
        let parent = path.parent().unwrap_or(dir);
        DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed)?;
        // A link that somebody has put there is not followed.
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(failed)?;
    }
    Ok(())
}
