//! Who confirms commits, as text and as JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Style, Tone};
use crate::{
    domain::{Uncovered, uncovered},
    rpc::{sync::uncovered_of, v1::Commits},
};

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
    let not_by = match not_by(commits).join(", ") {
        nobody if nobody.is_empty() => nobody,
        who => format!("; not by: {who}"),
    };
    format!("{}{strict}: confirmed by {last} ({effect}){also}{not_by}", commits.mode)
}

/// Whose commits don't wait for that: `role app (off)`.
fn not_by(commits: &Commits) -> Vec<String> {
    uncovered_of(commits.uncovered.clone()).levels.iter().map(ToString::to_string).collect()
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
    /// Whose commits wait for less.
    not_by: Vec<LevelJson>,
    /// Who confirms as a member and is none.
    imitators: Vec<ImitatorJson>,
    /// WAL senders that are no members and confirm nothing.
    other_senders: u32,
    /// What ALTER SYSTEM has set of the agent's settings, until it is undone.
    overrides: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct LevelJson {
    role: Option<String>,
    database: Option<String>,
    synchronous_commit: String,
    sessions: u32,
}

impl From<uncovered::OwnLevel> for LevelJson {
    fn from(level: uncovered::OwnLevel) -> Self {
        let known = |text: String| Some(text).filter(|t| !t.is_empty());
        LevelJson {
            role: known(level.role),
            database: known(level.database),
            synchronous_commit: level.level,
            sessions: level.sessions,
        }
    }
}

#[derive(Serialize)]
struct ImitatorJson {
    name: String,
    address: Option<String>,
    why: String,
}

impl From<uncovered::Imitator> for ImitatorJson {
    fn from(i: uncovered::Imitator) -> Self {
        ImitatorJson { name: i.name, address: Some(i.address).filter(|a| !a.is_empty()), why: i.why }
    }
}

impl<'a> From<&'a Commits> for CommitsJson<'a> {
    fn from(c: &'a Commits) -> Self {
        let Uncovered { levels, imitators, others, overrides } = uncovered_of(c.uncovered.clone());
        CommitsJson {
            mode: &c.mode,
            strict: c.strict,
            names: &c.names,
            count: c.count,
            in_effect: c.in_effect,
            rules: &c.rules,
            not_by: levels.into_iter().map(LevelJson::from).collect(),
            imitators: imitators.into_iter().map(ImitatorJson::from).collect(),
            other_senders: others,
            overrides: overrides.into_iter().map(|o| (o.name, o.value)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::v1::{self, OwnLevel};

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

    #[test]
    fn whose_commits_wait_for_less_is_named() {
        let level = |role: &str, database: &str, level: &str| OwnLevel {
            role: role.to_owned(),
            database: database.to_owned(),
            level: level.to_owned(),
            sessions: 4,
        };
        let levels = vec![level("app", "", "off"), level("", "x", "local")];
        let uncovered = Some(v1::Uncovered { levels, others: 2, ..v1::Uncovered::default() });
        let commits = Commits { uncovered, ..commits(&["n2"], true) };
        assert_eq!(
            line(Some(&commits), Style::Plain),
            "  commits  quorum: confirmed by n2 (in effect); not by: role app (off), database x (local)\n"
        );
        let json = serde_json::to_value(CommitsJson::from(&commits)).expect("plain structs");
        assert_eq!(json["not_by"][0]["role"], "app");
        assert_eq!((&json["not_by"][1]["role"], &json["not_by"][1]["sessions"]), (&serde_json::Value::Null, &4.into()));
        assert_eq!(json["other_senders"], 2);
    }
}
