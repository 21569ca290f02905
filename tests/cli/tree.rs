//! The whole tree of commands: none without help and an example, none that takes a wrong flag, none that falls over.

use clap::Command as Tree;

use super::matriarch;

/// Every command that can be seen, by its words, and whether others stand below it.
fn commands() -> Vec<(Vec<String>, Tree)> {
    fn walk(words: &[String], command: &Tree, out: &mut Vec<(Vec<String>, Tree)>) {
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
            let words = [words, &[sub.get_name().to_owned()]].concat();
            walk(&words, sub, out);
            out.push((words, sub.clone()));
        }
    }
    let mut out = Vec::new();
    walk(&[], &matriarch::cli::command_tree(), &mut out);
    out
}

fn run(words: &[String], more: &[&str]) -> (i32, String, String) {
    let words: Vec<&str> = words.iter().map(String::as_str).chain(more.iter().copied()).collect();
    let output = matriarch(&words);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[test]
fn every_command_says_what_it_does_and_gives_an_example() {
    let mut wrong = Vec::new();
    let commands = commands();
    for (words, command) in &commands {
        let name = words.join(" ");
        if command.get_about().is_none_or(|about| about.to_string().is_empty()) {
            wrong.push(format!("{name}: says nothing of itself"));
        }
        let (code, help, stderr) = run(words, &["--help"]);
        if code != 0 || !stderr.is_empty() || !help.contains("Usage:") {
            wrong.push(format!("{name} --help: exit {code}\n{stderr}"));
        }
        wrong.extend(examples(&help).err().map(|problem| format!("{name} --help: {problem}")));
        let long: Vec<&str> = help.lines().filter(|line| line.chars().count() > 100).collect();
        if !long.is_empty() {
            wrong.push(format!("{name} --help: too long: {long:?}"));
        }
        for arg in command.get_arguments().filter(|arg| !arg.is_hide_set() && arg.get_help().is_none()) {
            wrong.push(format!("{name}: {} has no help", arg.get_id()));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    let (_, whole, _) = run(&[], &["--help"]);
    assert_eq!(examples(&whole), Ok(()), "matriarch --help");
    assert!(commands.len() > 35, "{}", commands.len());
}

/// There is one way to give examples: the help ends with `Examples:` and lines that can be pasted, with remarks behind `#`
/// in one column.
fn examples(help: &str) -> Result<(), String> {
    let mut parts = help.split("\nExamples:\n");
    let (_, Some(lines), None) = (parts.next(), parts.next(), parts.next()) else {
        return Err("it doesn't have one heading `Examples:`".to_owned());
    };
    if help.contains("Example:") || lines.trim().is_empty() {
        return Err("examples are given in another way".to_owned());
    }
    let wrong = |line: &&str| !line.starts_with("  ") || line.starts_with("   ") || !line.contains("matriarch ");
    if let Some(line) = lines.lines().find(wrong) {
        return Err(format!("no example that can be typed: `{line}`"));
    }
    let mut columns: Vec<usize> = lines.lines().filter_map(|line| line.find("  # ")).collect();
    columns.dedup();
    if columns.len() > 1 {
        return Err(format!("remarks begin in the columns {columns:?}"));
    }
    Ok(())
}

#[test]
fn wrong_use_of_every_command_exits_2_with_a_hint() {
    let mut wrong = Vec::new();
    for (words, command) in commands() {
        let name = words.join(" ");
        let (code, stdout, stderr) = run(&words, &["--no-such-flag"]);
        if code != 2 || !stdout.is_empty() || !stderr.contains("--help") || !stderr.contains("--no-such-flag") {
            wrong.push(format!("{name} --no-such-flag: exit {code}\n{stdout}{stderr}"));
        }
        if command.has_subcommands() {
            let (code, _, stderr) = run(&words, &["no-such-command"]);
            if code != 2 || !stderr.contains("--help") {
                wrong.push(format!("{name} no-such-command: exit {code}\n{stderr}"));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

/// Without arguments, and without a configuration on this host, each one ends by itself: with what it prints, or with a hint.
#[test]
fn no_command_falls_over_without_arguments() {
    let offline = ["rules", "completion", "man", "config check"];
    let mut wrong = Vec::new();
    for (words, _) in commands() {
        let name = words.join(" ");
        // A whole cluster would be run.
        if name == "demo" {
            continue;
        }
        let (code, stdout, stderr) = run(&words, &[]);
        let ends = matches!(code, 0..=2) && (code == 0 || !stderr.trim().is_empty());
        if !ends || stderr.contains("panicked") || (code == 0 && stdout.is_empty()) {
            wrong.push(format!("{name}: exit {code}\n{stdout}{stderr}"));
        }
        if code == 0 && !offline.contains(&name.as_str()) {
            wrong.push(format!("{name}: does something without a cluster\n{stdout}"));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

/// What shows something shows it to programs as well, in each form.
#[test]
fn whatever_has_json_has_the_other_forms() {
    for (words, command) in commands() {
        let has = |id: &str| command.get_arguments().any(|arg| arg.get_id() == id);
        // That of the demo names a file.
        let json = command.get_arguments().any(|arg| arg.get_id() == "json" && !arg.get_action().takes_values());
        assert_eq!(json, has("output"), "{}", words.join(" "));
    }
    let shows = ["status", "topology", "check", "matrix", "history", "events", "explain", "member list", "config show"];
    let commands = commands();
    for name in shows {
        let (_, command) =
            commands.iter().find(|(words, _)| words.join(" ") == name).unwrap_or_else(|| panic!("{name}"));
        assert!(command.get_arguments().any(|arg| arg.get_id() == "output"), "{name}");
    }
}

/// The cells of a table in a page of docs/, row by row.
fn rows(page: &str) -> Vec<Vec<String>> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(page);
    let text = std::fs::read_to_string(&path).unwrap().replace("\\|", "/");
    let row = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    text.lines().filter(|line| line.starts_with("| ")).map(row).collect()
}

/// What stands in backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Of patronictl 4.1, by command: each has its flags beside ours.
const PATRONICTL: &[(&str, &[&str])] = &[
    ("list", &["-e", "--extended", "-t", "--timestamp", "-W", "-w"]),
    ("topology", &["-W", "-w"]),
    ("switchover", &["--leader", "--primary", "--candidate", "--scheduled"]),
    ("failover", &["--candidate"]),
    ("restart", &["-r", "--any", "--pending", "--pg-version", "--timeout", "--scheduled"]),
    ("reload", &["-r"]),
    ("reinit", &["--from-leader", "--wait"]),
    ("pause", &["--wait"]),
    ("resume", &["--wait"]),
    ("edit-config", &["-s", "--set", "-p", "--pg", "--apply", "--replace", "-q"]),
    ("show-config", &[]),
    ("flush", &["-r"]),
    ("history", &["-f"]),
    ("dsn", &["-r", "-m"]),
    ("query", &[]),
    ("remove", &[]),
    ("demote-cluster", &[]),
    ("promote-cluster", &[]),
    ("version", &[]),
];

#[test]
fn each_command_and_flag_of_patronictl_stands_beside_ours() {
    let rows = rows("from-patroni-commands.md");
    let theirs: Vec<&str> = rows.iter().filter_map(|row| row.first()).flat_map(|cell| quoted(cell)).collect();
    let mut wrong = Vec::new();
    for (command, flags) in PATRONICTL {
        let of_it: Vec<&str> = rows
            .iter()
            .map(|row| row[0].as_str())
            .filter(|cell| quoted(cell).any(|words| words.split(' ').next() == Some(command)))
            .flat_map(|cell| quoted(cell).flat_map(|words| words.split([' ', ','])))
            .collect();
        let missing = flags.iter().filter(|flag| !of_it.contains(flag));
        wrong.extend(missing.map(|flag| format!("{command} {flag} is missing")));
        if of_it.is_empty() {
            wrong.push(format!("{command} is missing"));
        }
    }
    assert!(theirs.len() > 40, "{theirs:?}");
    // What stands there as ours can be typed.
    let root = matriarch::cli::command_tree();
    for words in rows.iter().filter_map(|row| row.get(1)).flat_map(|cell| quoted(cell)) {
        let (mut at, mut found) = (&root, false);
        for word in words.split(' ') {
            match at.find_subcommand(word) {
                Some(sub) => (at, found) = (sub, true),
                None => break,
            }
        }
        let has = |flag: &str| at.get_arguments().any(|arg| arg.get_long() == flag.strip_prefix("--"));
        let flags = words.split([' ', '|']).filter(|word| word.starts_with("--") && word.len() > 2);
        wrong.extend(flags.filter(|flag| found && !has(flag)).map(|flag| format!("`{words}`: no {flag}")));
        let elsewhere = words.starts_with(['-', '$']) || words.starts_with("psql") || words.contains('/');
        if !found
            && !elsewhere
            && words.chars().all(|c| c.is_ascii_lowercase() || " -".contains(c))
            && words != "server_version"
        {
            wrong.push(format!("`{words}` is no command"));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn every_method_of_the_api_is_on_its_page() {
    let proto = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/matriarch/v1/admin.proto");
    let proto = std::fs::read_to_string(proto).unwrap();
    let methods: Vec<&str> =
        proto.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next()).collect();
    let rows = rows("api.md");
    let told: Vec<&str> = rows.iter().flat_map(|row| quoted(&row[0])).collect();
    let missing: Vec<&&str> = methods.iter().filter(|method| !told.contains(method)).collect();
    assert!(methods.len() > 30 && missing.is_empty(), "docs/api.md says nothing of {missing:?}");
}
