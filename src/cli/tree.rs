//! The tree of commands with what all of them have in common: exit codes and examples below each help, and `--output`
//! wherever something is shown. It is hung on here, so that no command can forget it.

use std::ffi::OsString;

use clap::{
    Arg, ArgAction, ArgMatches, Command, CommandFactory as _, Error, FromArgMatches as _, Id, builder::EnumValueParser,
};

use super::{args::Arguments, examples, exit, output::Format};

/// The flag that `--output` goes beside.
const JSON: &str = "json";
const OUTPUT: &str = "output";

/// The whole command line, as help, completion and man pages see it.
pub fn command() -> Command {
    with_end(Arguments::command(), "").mut_subcommands(|sub| dressed(sub, ""))
}

/// What was typed, and how documents are to be written.
pub(super) fn parse(args: impl Iterator<Item = OsString>) -> Result<(Arguments, Format), Error> {
    let mut command = command();
    let matches = command.try_get_matches_from_mut(args)?;
    let format = format(&matches);
    let arguments = Arguments::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
    Ok((arguments, format))
}

fn format(matches: &ArgMatches) -> Format {
    let mut leaf = matches;
    while let Some((_, below)) = leaf.subcommand() {
        leaf = below;
    }
    let asked = leaf.try_get_one::<Format>(OUTPUT).ok().flatten().copied();
    // Without it a document is what `--json` asks for.
    asked.unwrap_or(Format::Json)
}

fn dressed(command: Command, above: &str) -> Command {
    let words =
        if above.is_empty() { command.get_name().to_owned() } else { format!("{above} {}", command.get_name()) };
    let command = with_output(with_end(command, &words));
    command.mut_subcommands(|sub| dressed(sub, &words))
}

/// Each help ends with what the command has to say itself, the exit codes, and examples, in this order.
fn with_end(command: Command, words: &str) -> Command {
    let own = command.get_after_help().map(ToString::to_string);
    let own = match own {
        None => exit::HELP.to_owned(),
        Some(own) if own.contains("Exit codes:") => own,
        Some(own) => format!("{own}\n\n{}", exit::HELP),
    };
    match examples::of(words) {
        Some(examples) => command.after_help(format!("{own}\n\n{examples}")),
        None => command.after_help(own),
    }
}

/// `--output` says how, and asks for a document as `--json` does. A `--json` that takes a file is none of these.
fn with_output(command: Command) -> Command {
    let find = |id| command.get_arguments().find(|arg| arg.get_id() == id);
    if !find(JSON).is_some_and(|json| matches!(json.get_action(), ArgAction::SetTrue)) || find(OUTPUT).is_some() {
        return command;
    }
    // What has no document (`--watch`) has none in any form; it is there that clap is told so.
    let has_none = |arg: &&Arg| command.get_arg_conflicts_with(arg).iter().any(|other| other.get_id() == JSON);
    let without: Vec<Id> = command.get_arguments().filter(has_none).map(|arg| arg.get_id().clone()).collect();
    let output = Arg::new(OUTPUT)
        .long(OUTPUT)
        .value_name("FORMAT")
        .value_parser(EnumValueParser::<Format>::new())
        .hide_possible_values(true)
        .conflicts_with(JSON)
        .conflicts_with_all(without)
        .help("Print it as table, json, yaml or tsv [default: table]");
    let documents = ["json", "yaml", "tsv"].map(|format| (OUTPUT, format, "true"));
    command.mut_arg(JSON, |json| json.default_value_ifs(documents)).arg(output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{self, views::ViewCommand};

    fn parsed(line: &str) -> (Arguments, Format) {
        parse(line.split(' ').map(OsString::from)).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    #[test]
    fn output_asks_for_a_document_unless_it_is_the_table() {
        let asks = |line: &str| match parsed(line) {
            (Arguments { command: args::Command::Status(status) }, format) => (status.json, format),
            (other, _) => panic!("{other:?}"),
        };
        assert_eq!(asks("matriarch status"), (false, Format::Json));
        assert_eq!(asks("matriarch status --json"), (true, Format::Json));
        assert_eq!(asks("matriarch status --output table"), (false, Format::Table));
        assert_eq!(asks("matriarch status --output yaml"), (true, Format::Yaml));
        assert_eq!(asks("matriarch status --output tsv"), (true, Format::Tsv));
        let both = parse("matriarch status --json --output yaml".split(' ').map(OsString::from));
        assert!(both.unwrap_err().to_string().contains("cannot be used with"));
        let watched = parse("matriarch status --watch --output yaml".split(' ').map(OsString::from));
        assert!(watched.unwrap_err().to_string().contains("cannot be used with"), "as with --json");
        let demo = parse("matriarch demo --output yaml".split(' ').map(OsString::from));
        assert!(demo.unwrap_err().to_string().contains("unexpected argument"), "its --json names a file");
        let wrong = parse("matriarch status --output xml".split(' ').map(OsString::from));
        assert!(wrong.unwrap_err().to_string().contains("yaml"), "the values are named");
        let (deep, format) = parsed("matriarch member list --output tsv");
        assert!(matches!(deep.command, args::Command::Member(_)));
        assert_eq!(format, Format::Tsv);
        assert!(matches!(parsed("matriarch topology").0.command, args::Command::View(ViewCommand::Topology(_))));
    }

    /// A help that shows what does not work is worse than none.
    #[test]
    fn every_example_is_a_command_that_can_be_typed() {
        let mut wrong = Vec::new();
        let mut seen = 0;
        walk(&command(), &mut |command| {
            let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples = after.split("Examples:\n").nth(1).unwrap_or_default();
            for line in examples.lines() {
                let line = line.split_once("matriarch ").map_or("", |(_, line)| line);
                // What follows `#` is said of it; what follows a pipe, `>` or `&&` is the shell's.
                let typed =
                    [" | ", " > ", " && ", "  #"].iter().fold(line, |line, end| line.split(end).next().unwrap_or(line));
                seen += 1;
                let words = std::iter::once("matriarch".to_owned()).chain(unquoted(typed));
                // Help is what was asked for.
                let failed = super::command().try_get_matches_from(words).err().filter(Error::use_stderr);
                wrong.extend(failed.map(|error| format!("{typed}: {error}")));
            }
        });
        assert_eq!(wrong, Vec::<String>::new());
        assert!(seen > 100, "{seen}");
    }

    fn walk(command: &Command, look: &mut impl FnMut(&Command)) {
        look(command);
        command.get_subcommands().for_each(|sub| walk(sub, look));
    }

    fn unquoted(line: &str) -> Vec<String> {
        let (mut words, mut word, mut inside) = (Vec::new(), String::new(), false);
        for c in line.chars() {
            match c {
                '"' | '\'' => inside = !inside,
                ' ' if !inside => words.push(std::mem::take(&mut word)),
                c => word.push(c),
            }
        }
        words.push(word);
        words.retain(|w| !w.is_empty());
        words
    }

    #[test]
    fn clap_finds_nothing_wrong_with_the_tree() {
        command().debug_assert();
    }
}
