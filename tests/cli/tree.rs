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
        let example = help.lines().skip_while(|line| !line.starts_with("Example")).nth(1).unwrap_or_default();
        if code != 0 || !stderr.is_empty() || !help.contains("Usage:") {
            wrong.push(format!("{name} --help: exit {code}\n{stderr}"));
        }
        if !example.starts_with("  ") || !example.contains("matriarch ") {
            wrong.push(format!("{name} --help: no example: `{example}`"));
        }
        let long: Vec<&str> = help.lines().filter(|line| line.chars().count() > 100).collect();
        if !long.is_empty() {
            wrong.push(format!("{name} --help: too long: {long:?}"));
        }
        for arg in command.get_arguments().filter(|arg| !arg.is_hide_set() && arg.get_help().is_none()) {
            wrong.push(format!("{name}: {} has no help", arg.get_id()));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert!(commands.len() > 35, "{}", commands.len());
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
        assert_eq!(has("json"), has("output"), "{}", words.join(" "));
    }
    let shows = ["status", "topology", "check", "matrix", "history", "events", "explain", "member list", "config show"];
    let commands = commands();
    for name in shows {
        let (_, command) =
            commands.iter().find(|(words, _)| words.join(" ") == name).unwrap_or_else(|| panic!("{name}"));
        assert!(command.get_arguments().any(|arg| arg.get_id() == "output"), "{name}");
    }
}
