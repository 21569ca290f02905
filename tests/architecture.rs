//! The floor plan is a test: which room uses which, and what may stand where.
//!
//! One crate, so the compiler does not see the floors. A new arrow is one line in the
//! diff of this file, and its author says why. `UPDATE_EXPECT=1` draws them anew.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

#[path = "architecture/pages.rs"]
mod pages;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use expect_test::expect;

/// Rooms that decide: no clock, no file, no process, no network, no waiting.
const PURE: [&str; 4] = ["domain", "state", "policy", "reconcile"];

/// Files longer than 800 lines. The numbers only go down; a new name needs a reason.
const LONG_FILES: &[(&str, usize)] = &[];

struct Source {
    /// Below `src/`, with `/`.
    path: String,
    /// Its first directory, or its own name at the top.
    room: String,
    lines: usize,
    /// Without comments and tests.
    code: String,
}

fn files_below(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    files_below(&root, &mut found);
    found.sort();
    let source = |file: &PathBuf| {
        let text = fs::read_to_string(file).unwrap();
        let path = file.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
        let room = path.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
        let code = if is_test_file(&path) { String::new() } else { without_tests(&text) };
        Source { path, room, lines: text.lines().count(), code }
    };
    found.iter().map(source).collect()
}

/// Children that are compiled for tests only.
fn is_test_file(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap();
    name.ends_with("_test.rs") || name.starts_with("test_") || name == "tests.rs" || name == "testing.rs"
}

/// The text without comment lines and without items under `#[cfg(test)]`.
fn without_tests(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let bare = line.trim_start();
        if bare.starts_with("#[cfg(test)]") || bare.starts_with("#[cfg(all(test") {
            skip_item(&mut lines);
        } else if !bare.starts_with("//") {
            code.push_str(line.split(" // ").next().unwrap());
            code.push('\n');
        }
    }
    code
}

fn skip_item<'a>(lines: &mut impl Iterator<Item = &'a str>) {
    let mut depth = 0;
    let mut opened = false;
    for line in lines.by_ref().filter(|l| !l.trim_start().starts_with("#[")) {
        for c in line.chars() {
            depth += i32::from(c == '{') - i32::from(c == '}');
            opened |= c == '{';
        }
        if depth <= 0 && (opened || line.trim_end().ends_with(';')) {
            return;
        }
    }
}

/// The rooms named after each `crate::`, also inside of `crate::{…}`.
fn rooms_used(code: &str, root: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for (at, _) in code.match_indices(root) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + root.len()..];
        match rest.strip_prefix('{') {
            None => {
                used.insert(word(rest));
            }
            Some(list) => used.extend(top_level(list)),
        }
    }
    used.retain(|w| !w.is_empty());
    used
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn top_level(list: &str) -> Vec<String> {
    let (mut depth, mut names, mut at_start) = (1, Vec::new(), true);
    for (i, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => at_start = true,
            c if at_start && depth == 1 && !c.is_whitespace() => {
                names.push(word(&list[i..]));
                at_start = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

#[test]
fn arrows() {
    let sources = sources();
    let rooms: BTreeSet<&str> = sources.iter().map(|s| s.room.as_str()).collect();
    let mut arrows = BTreeSet::new();
    for source in &sources {
        let root = if source.room == "main" { "matriarch::" } else { "crate::" };
        for used in rooms_used(&source.code, root) {
            if used != source.room && rooms.contains(used.as_str()) {
                arrows.insert((source.room.clone(), used));
            }
        }
    }
    let mut drawn = String::new();
    for room in &rooms {
        let to: Vec<&str> = arrows.iter().filter(|(from, _)| from == room).map(|(_, to)| to.as_str()).collect();
        if !to.is_empty() {
            drawn.push_str(&format!("{room} -> {}\n", to.join(", ")));
        }
    }
    expect![[r#"
        admin -> domain, manager, policy, rpc, state
        agent -> config, domain, guard, layers, lease, postgres, rpc, telemetry
        cli -> admin, agent, config, demo, domain, guard, manager, policy, postgres, reconcile, rest, routing, rpc, telemetry
        config -> domain
        demo -> domain, rpc, telemetry
        guard -> domain, netlink
        layers -> config, domain, guard, netlink
        lease -> domain, rpc
        main -> cli
        manager -> config, domain, guard, layers, lease, policy, raft, reconcile, rpc, state, telemetry
        net -> config, telemetry
        policy -> domain, state
        postgres -> config, domain
        raft -> domain, rpc, state
        reconcile -> domain, state
        rest -> config, domain, manager, net, rpc, state, telemetry
        routing -> config, domain, net, rpc, telemetry
        rpc -> domain, state
        state -> domain
    "#]]
    .assert_eq(&drawn);

    // `matriarch rules` prints the tables of both, offline; no other command may decide anything.
    let decides = |s: &&Source| {
        s.room == "cli" && rooms_used(&s.code, "crate::").iter().any(|r| ["policy", "reconcile"].contains(&r.as_str()))
    };
    let printers: Vec<&str> = sources.iter().filter(decides).map(|s| s.path.as_str()).collect();
    assert_eq!(printers, ["cli/rules.rs"]);

    let may: [(&str, &[&str]); 4] = [
        ("domain", &[]),
        ("state", &["domain"]),
        ("policy", &["domain", "state"]),
        ("reconcile", &["domain", "state"]),
    ];
    for (room, allowed) in may {
        let others = arrows.iter().filter(|(from, to)| from == room && !allowed.contains(&to.as_str()));
        assert_eq!(others.collect::<Vec<_>>(), Vec::<&(String, String)>::new(), "{room} is pure and low");
    }
}

/// Where each of `needles` stands outside of `allowed` (prefixes of paths).
fn strays(needle: &str, allowed: &[&str]) -> Vec<String> {
    let outside = |s: &Source| !allowed.iter().any(|a| s.path.starts_with(a));
    let stands = |s: &Source| s.code.lines().any(|l| names(l, needle));
    sources().iter().filter(|s| outside(s) && stands(s)).map(|s| s.path.clone()).collect()
}

/// `needle` stands in `line` as a word of its own.
fn names(line: &str, needle: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(needle).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + needle.len()..].chars().next();
        let goes_on = needle.ends_with(part_of_word) && after.is_some_and(part_of_word);
        !goes_on && !before.is_some_and(part_of_word)
    })
}

#[test]
fn deciding_reads_no_clock_no_file_and_waits_for_nobody() {
    let forbidden = [
        "async fn",
        "async move",
        ".await",
        "tokio",
        "std::fs",
        "std::process",
        "std::net",
        "std::env",
        "std::thread",
        "Instant::now",
        "SystemTime",
        "Config",
        "tonic",
        "prost",
        "v1",
        "rpc::",
        "tracing",
        "rand",
        "Uuid",
    ];
    for source in sources().iter().filter(|s| PURE.contains(&s.room.as_str())) {
        for (number, line) in source.code.lines().enumerate() {
            for needle in forbidden {
                assert!(
                    !names(line, needle),
                    "{}: line {} of its code names `{needle}`: {line}",
                    source.path,
                    number + 1
                );
            }
        }
    }
}

#[test]
fn each_outside_thing_has_one_room() {
    let homes: [(&str, &[&str]); 9] = [
        // The log filter names their targets.
        ("openraft", &["raft/", "telemetry/mod.rs"]),
        ("sled", &["raft/", "telemetry/mod.rs"]),
        ("tokio_postgres", &["postgres/", "demo/"]),
        ("clap", &["cli/", "demo/"]),
        ("ratatui", &["demo/", "cli/views/top"]),
        ("unsafe", &["guard/sys.rs"]),
        // An identity file is read by people too; the demo and the import write configurations; settings are edited as text, a command line has a file of
        // its own, and a support bundle looks for secrets in any configuration, right or wrong.
        (
            "toml",
            &[
                "config/",
                "manager/identity.rs",
                "demo/layout.rs",
                "cli/import/",
                "cli/settings/edit.rs",
                "cli/clusters.rs",
                "cli/views/bundle.rs",
                "cli/views/redact",
            ],
        ),
        ("yaml_rust2", &["cli/import/yaml.rs"]),
        ("hmac", &["lease/wire.rs"]),
    ];
    for (needle, allowed) in homes {
        assert_eq!(strays(needle, allowed), Vec::<String>::new(), "`{needle}` belongs to {allowed:?}");
    }
}

#[test]
fn processes_are_started_where_it_is_expected() {
    let started: Vec<String> = strays("Command::new", &[]);
    expect![[r#"
        agent/hooks/program.rs
        cli/preflight/postgres.rs
        cli/settings/edit.rs
        cli/views/bundle.rs
        demo/cluster.rs
        demo/disks.rs
        demo/netns.rs
        demo/processes.rs
        guard/link.rs
        guard/process.rs
        guard/taken_over.rs
        layers/stonith.rs
        postgres/command.rs
        postgres/private.rs
        routing/heir.rs
    "#]]
    .assert_eq(&(started.join("\n") + "\n"));
}

#[test]
fn no_file_grows_past_a_few_screens() {
    let mut wrong = Vec::new();
    for source in sources() {
        let limit = LONG_FILES.iter().find(|(path, _)| *path == source.path).map_or(800, |(_, lines)| *lines);
        if source.lines > limit {
            wrong.push(format!("src/{}: {} lines, {limit} allowed: split it", source.path, source.lines));
        }
        if limit > 800 && source.lines <= 800 {
            wrong.push(format!("src/{} is short enough now: take it off the list", source.path));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_scanner_sees_what_it_should() {
    let code = without_tests(
        "use crate::{\n    domain::{Epoch, Lsn},\n    state::ClusterState,\n};\n// crate::raft\n#[cfg(test)]\nmod tests {\n use crate::agent;\n}\nfn f() { crate::policy::decide(); my_crate::lease(); }\n",
    );
    let used: Vec<String> = rooms_used(&code, "crate::").into_iter().collect();
    assert_eq!(used, ["domain", "policy", "state"]);
    assert!(names("unsafe { x }", "unsafe") && !names("unsafe_code", "unsafe") && names("a std::fs::read", "std::fs"));
}
