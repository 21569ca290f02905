//! Who confirms commits, as text and as JSON.

use serde::Serialize;

use super::{Style, Tone};
use crate::rpc::v1::Commits;

/// The line of the status; nothing where commits wait for nobody and never did.
pub(super) fn line(commits: Option<&Commits>, style: Style) -> String {
    let Some(commits) = commits.filter(|c| c.mode != "async" || !c.rules.is_empty()) else { return String::new() };
    format!("  commits  {}\n", style.paint(tone(commits), &words(commits)))
}

fn tone(commits: &Commits) -> Tone {
    if commits.in_effect && commits.count > 0 { Tone::Good } else { Tone::Warn }
}

fn words(commits: &Commits) -> String {
    let strict = if commits.strict { " strict" } else { "" };
    let Some((last, older)) = commits.rules.split_last() else {
        return format!("{}{strict}: nobody confirms them yet", commits.mode);
    };
    let effect = if commits.in_effect { "in effect" } else { "not in effect yet" };
    let also = match older {
        [] => String::new(),
        older => format!("; a promotion has to satisfy also: {}", older.join("; ")),
    };
    format!("{}{strict}: confirmed by {last} ({effect}){also}", commits.mode)
}

/// The same for programs.
#[derive(Serialize)]
pub(super) struct CommitsJson<'a> {
    mode: &'a str,
    strict: bool,
    /// Who may confirm …
    names: &'a [String],
    /// … and how many have to.
    count: u32,
    in_effect: bool,
    rules: &'a [String],
}

impl<'a> From<&'a Commits> for CommitsJson<'a> {
    fn from(c: &'a Commits) -> Self {
        CommitsJson {
            mode: &c.mode,
            strict: c.strict,
            names: &c.names,
            count: c.count,
            in_effect: c.in_effect,
            rules: &c.rules,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commits(rules: &[&str], in_effect: bool) -> Commits {
        let rules = rules.iter().map(|rule| (*rule).to_owned()).collect();
        Commits { mode: "quorum".to_owned(), rules, in_effect, count: 1, ..Commits::default() }
    }

    #[test]
    fn the_line_says_who_confirms_and_whether_that_is_so_already() {
        let line = |commits: &Commits| line(Some(commits), Style::Plain);
        assert_eq!(
            line(&commits(&["any 1 of n2, n3"], true)),
            "  commits  quorum: confirmed by any 1 of n2, n3 (in effect)\n"
        );
        assert_eq!(
            line(&Commits { strict: true, ..commits(&["n2", "any 1 of n2, n3"], false) }),
            "  commits  quorum strict: confirmed by any 1 of n2, n3 (not in effect yet); a promotion has to satisfy also: n2\n"
        );
        assert_eq!(line(&commits(&[], false)), "  commits  quorum: nobody confirms them yet\n");
        assert_eq!(line(&Commits { mode: "async".to_owned(), ..Commits::default() }), "");
        assert_eq!(super::line(None, Style::Plain), "", "of a version that doesn't say");
    }
}
