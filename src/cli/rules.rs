//! `matriarch rules`: the two tables of rules and the states of a member, as they are compiled
//! into this binary. No manager is asked.

use std::fmt::Write as _;

use serde::Serialize;

use super::{
    args::RulesArgs,
    exit::{self, Exit},
    print, render,
};
use crate::{
    policy::{self, proposals},
    reconcile::{
        self,
        states::{self, Cause, EDGES, Edge, Patience},
    },
};

pub(super) fn run(args: &RulesArgs) -> Exit {
    print(&match args {
        RulesArgs { mermaid: true, .. } => states::mermaid(),
        RulesArgs { json: true, .. } => json(),
        RulesArgs { .. } => text(),
    });
    exit::OK
}

/// One rule of either table.
#[derive(Serialize)]
struct Row {
    rule: u32,
    when: &'static str,
    /// Commands it may propose, or orders it may give.
    then: Vec<String>,
}

fn policy() -> Vec<Row> {
    let then = |rule| proposals::of(rule).iter().map(ToString::to_string).collect();
    policy::RULES.iter().map(|r| Row { rule: r.id, when: r.name, then: then(r.id) }).collect()
}

fn reconcile() -> Vec<Row> {
    let then = |rule| states::orders_of(rule).iter().map(ToString::to_string).collect();
    reconcile::RULES.iter().map(|r| Row { rule: r.id, when: r.name, then: then(r.id) }).collect()
}

fn text() -> String {
    let mut out = String::from(
        "What the Raft leader proposes; the first rule that matches wins, a hold lets later ones match:\n\n",
    );
    table(&mut out, "PROPOSES", &policy());
    out.push_str("\nWhat each host orders its own agent; the first rule that matches wins:\n\n");
    table(&mut out, "ORDERS", &reconcile());
    out
}

fn table(out: &mut String, then: &str, rows: &[Row]) {
    const HEAD: &str = "WHEN, AND THEN WHAT";
    let wide = rows.iter().map(|row| row.when.chars().count()).chain([HEAD.len()]).max().unwrap_or(0);
    let _ = writeln!(out, "RULE  {HEAD:<wide$}  {then}");
    for Row { rule, when, then } in rows {
        let _ = writeln!(out, "{rule:>4}  {when:<wide$}  {}", then.join(", "));
    }
}

#[derive(Serialize)]
struct RulesJson {
    policy: Vec<Row>,
    reconcile: Vec<Row>,
    states: Vec<ChangeJson>,
}

/// From one state to another, and why: exactly one of `order`, `awaited` and `event`.
#[derive(Serialize)]
struct ChangeJson {
    from: String,
    to: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rules: Option<&'static [u32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    awaited: Option<&'static str>,
    /// How long it is awaited; missing where nothing ends the wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'static str>,
}

impl From<&Edge> for ChangeJson {
    fn from(edge: &Edge) -> Self {
        let (from, to) = (format!("{:?}", edge.from), format!("{:?}", edge.to));
        let bare = Self { from, to, order: None, rules: None, awaited: None, limit: None, event: None };
        match edge.cause {
            Cause::Order(kind, rules) => Self { order: Some(kind.to_string()), rules: Some(rules), ..bare },
            Cause::Awaited(what, Patience::Limit(limit)) => Self { awaited: Some(what), limit: Some(limit), ..bare },
            Cause::Awaited(what, Patience::Endless) => Self { awaited: Some(what), ..bare },
            Cause::Event(what) => Self { event: Some(what), ..bare },
        }
    }
}

fn json() -> String {
    render::json(&RulesJson {
        policy: policy(),
        reconcile: reconcile(),
        states: EDGES.iter().map(ChangeJson::from).collect(),
    })
}
