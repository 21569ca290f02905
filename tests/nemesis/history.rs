//! Histories of transactions that append to lists and read them, after Elle (Kingsbury and Alvaro, "Elle: Inferring
//! Isolation Anomalies from Experimental Observations", 2020): a list shows who wrote before whom. Pure.
//!
//! Every value is appended once. The longest list that was read under a key is the order of its versions. From it
//! follow the edges between transactions: *ww* (the next value), *wr* (who read it), *rw* (who wrote what came after what
//! was read). The sessions are serializable, so a cycle of any of these is wrong, and so is a read that lacks
//! what was acknowledged before it began.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result};
use petgraph::graph::{DiGraph, NodeIndex};
use serde::{Deserialize, Serialize};

use crate::{
    checker::Excuse,
    workload::{Life, Micros},
};

/// Name of a list.
pub type Key = i64;
/// What is appended; never twice.
pub type Value = i64;
/// What is under each key.
pub type Lists = BTreeMap<Key, Vec<Value>>;

/// A step of a transaction. As in Elle's histories: `["append", 3, 17]`, `["r", 3, [11, 17]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "(String, Key, serde_json::Value)", try_from = "(String, Key, serde_json::Value)")]
pub enum Op {
    /// Puts a value at the end of a list.
    Append(Key, Value),
    /// Reads a list; `None` until the answer is there. A list that isn't there is empty.
    Read(Key, Option<Vec<Value>>),
}

impl From<Op> for (String, Key, serde_json::Value) {
    fn from(op: Op) -> Self {
        match op {
            Op::Append(key, value) => ("append".to_owned(), key, value.into()),
            Op::Read(key, list) => ("r".to_owned(), key, list.into()),
        }
    }
}

impl TryFrom<(String, Key, serde_json::Value)> for Op {
    type Error = String;
    fn try_from((name, key, value): (String, Key, serde_json::Value)) -> Result<Op, String> {
        let wrong = |e: serde_json::Error| e.to_string();
        match name.as_str() {
            "append" => Ok(Op::Append(key, serde_json::from_value(value).map_err(wrong)?)),
            "r" => Ok(Op::Read(key, serde_json::from_value(value).map_err(wrong)?)),
            _ => Err(format!("`{name}` is no step of a transaction")),
        }
    }
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// Committed, and the client was told.
    Ok,
    /// Certainly not committed.
    #[serde(rename = "fail")]
    Failed,
    /// Its commit was sent, and no word of how it ended.
    #[serde(rename = "info")]
    Unknown,
}

/// A transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Txn {
    /// Whose. One process has one transaction at a time; after an unknown end it goes on under another number.
    pub process: usize,
    /// Before anything was sent.
    pub invoked: Micros,
    /// When its end was known.
    pub ended: Micros,
    /// What it did, as far as it got.
    pub ops: Vec<Op>,
    /// How it ended.
    pub end: End,
    /// Who executed it, as far as is known.
    pub life: Option<Arc<Life>>,
}

impl fmt::Display for Txn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} {:?} {}…{} µs", self.process, self.end, self.invoked, self.ended)?;
        if let Some(life) = &self.life {
            write!(f, " at {} timeline {}", life.server, life.timeline)?;
        }
        for op in &self.ops {
            match op {
                Op::Append(key, value) => write!(f, " append({key}, {value})")?,
                Op::Read(key, None) => write!(f, " read({key})")?,
                // The end of a long list says it all.
                Op::Read(key, Some(list)) => {
                    write!(f, " read({key}, {}…{:?})", list.len(), &list[list.len().saturating_sub(4)..])?;
                }
            }
        }
        Ok(())
    }
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Anomaly {
    /// Acknowledged, and not in the last read.
    Lost,
    /// Read, and not in the last read, though nobody was told that it is there.
    Vanished,
    /// Two reads, neither of which begins with the other.
    Incompatible,
    /// A list has a value twice, or one that nobody appended.
    Garbage,
    /// A transaction does not see its own appends, or sees others come in between.
    Internal,
    /// Aborted read: of what was certainly not committed.
    G1a,
    /// Intermediate read: of what its writer wrote over later in its transaction.
    G1b,
    /// A cycle of writes.
    G0,
    /// A cycle of writes and of reads of them.
    G1c,
    /// A cycle in which somebody did not see what another one of the cycle wrote.
    G2,
    /// A read lacks what was acknowledged before it began.
    Stale,
}

/// Why something that looks wrong is none that is promised not to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pardon {
    /// Asynchronous replication, and its server was replaced.
    AsyncEnd,
    /// A server that was replaced answered in a documented hole: a read that was stale.
    FormerPrimary,
    /// A new primary showed what it had before anybody confirmed it, and nobody was told that it was committed.
    Unconfirmed,
}

impl Pardon {
    /// As it is counted.
    pub fn name(self) -> &'static str {
        match self {
            Pardon::AsyncEnd => "appends: asynchronous end",
            Pardon::FormerPrimary => "appends: read at a former primary in a documented hole",
            Pardon::Unconfirmed => "appends: read at a new primary before it was confirmed",
        }
    }
}

/// One finding.
#[derive(Debug, Clone)]
pub struct Finding {
    /// What it is.
    pub anomaly: Anomaly,
    /// The transactions, and what is wrong with them.
    pub text: String,
    /// Why it may be.
    pub pardon: Option<Pardon>,
}

/// What may be pardoned.
pub struct Terms<'a> {
    /// Of losses.
    pub excuse: Excuse,
    /// That server may answer at that time though it was replaced.
    pub in_hole: &'a dyn Fn(&Life, Micros) -> bool,
}

/// Everything that is wrong with a history. `last` is what the primary has at the end, when everybody rests.
pub fn check(txns: &[Txn], last: &Lists, terms: &Terms<'_>) -> Vec<Finding> {
    let mut sight = Sight::new(txns, last);
    let mut found = sight.gone(terms);
    found.extend(sight.single_reads());
    found.extend(sight.orders());
    found.extend(sight.stale(terms));
    found.extend(sight.cycles());
    found
}

/// A list as a transaction read it from others: without its own appends.
struct Seen<'a> {
    txn: usize,
    key: Key,
    list: &'a [Value],
}

struct Sight<'a> {
    txns: &'a [Txn],
    last: &'a Lists,
    writer: BTreeMap<(Key, Value), usize>,
    seen: Vec<Seen<'a>>,
    /// The longest list of each key, once what is gone with a pardon has been left out.
    order: BTreeMap<Key, &'a [Value]>,
}

impl<'a> Sight<'a> {
    fn new(txns: &'a [Txn], last: &'a Lists) -> Sight<'a> {
        let mut writer = BTreeMap::new();
        for (index, txn) in txns.iter().enumerate() {
            writer.extend(appends(txn).map(|at| (at, index)));
        }
        let all = txns.iter().enumerate().filter(|(_, t)| t.end == End::Ok);
        let seen = all.flat_map(|(index, txn)| {
            reads(txn).map(move |(key, list)| {
                let own = list.iter().rev().take_while(|v| appends(txn).any(|a| a == (key, **v))).count();
                Seen { txn: index, key, list: &list[..list.len() - own] }
            })
        });
        Sight { txns, last, writer, seen: seen.collect(), order: BTreeMap::new() }
    }

    fn of(&self, key: Key, value: Value) -> Option<&'a Txn> {
        self.writer.get(&(key, value)).map(|index| &self.txns[*index])
    }

    fn is_there(&self, key: Key, value: Value) -> bool {
        self.last.get(&key).is_some_and(|list| list.contains(&value))
    }

    /// What was acknowledged or read and is not there at the end. Reads on a branch that went with a pardon are left
    /// out of all that follows.
    fn gone(&mut self, terms: &Terms<'_>) -> Vec<Finding> {
        let mut found = Vec::new();
        let lives = self.txns.iter().filter(|t| t.end == End::Ok).filter_map(|t| t.life.clone());
        let newest = lives.map(|l| l.timeline).max().unwrap_or_default();
        for txn in self.txns.iter().filter(|t| t.end == End::Ok) {
            for (key, value) in appends(txn).filter(|(k, v)| !self.is_there(*k, *v)) {
                let pardon = at_an_asynchronous_end(txn, newest, terms).then_some(Pardon::AsyncEnd);
                let text = format!("{value} of key {key} was acknowledged and is gone: {txn}");
                found.push(Finding { anomaly: Anomaly::Lost, text, pardon });
            }
        }
        let mut dropped = BTreeSet::new();
        let mut told = BTreeSet::new();
        for (index, seen) in self.seen.iter().enumerate() {
            let reader = &self.txns[seen.txn];
            let missing = seen.list.iter().filter(|v| !self.is_there(seen.key, **v));
            let missing: Vec<Value> = missing.copied().collect();
            let Some(first) = missing.first() else { continue };
            let judged = missing.iter().map(|v| self.pardon(seen.key, *v, reader, newest, terms));
            let pardon = judged.collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().max());
            if pardon.is_some() {
                dropped.insert(index);
            }
            // What was acknowledged is in the list of lost ones already.
            let writer = self.of(seen.key, *first).filter(|w| w.end == End::Unknown);
            if let Some(writer) = writer.filter(|_| told.insert((seen.key, *first))) {
                let text = format!("{first} of key {} was read and is gone: by {reader}; of {writer}", seen.key);
                found.push(Finding { anomaly: Anomaly::Vanished, text, pardon });
            }
        }
        let all = std::mem::take(&mut self.seen).into_iter().enumerate();
        self.seen = all.filter(|(index, _)| !dropped.contains(index)).map(|(_, seen)| seen).collect();
        let last = self.last.iter().map(|(key, list)| (*key, &list[..]));
        for (key, list) in self.seen.iter().map(|s| (s.key, s.list)).chain(last) {
            let longest = self.order.entry(key).or_default();
            if list.len() > longest.len() {
                *longest = list;
            }
        }
        found
    }

    /// Why `reader` may have seen a value that is gone.
    fn pardon(&self, key: Key, value: Value, reader: &Txn, newest: u32, terms: &Terms<'_>) -> Option<Pardon> {
        let writer = self.of(key, value)?;
        if writer.end == End::Failed {
            return None;
        }
        if at_an_asynchronous_end(reader, newest, terms) {
            return Some(Pardon::AsyncEnd);
        }
        let life = reader.life.as_ref()?;
        // It was told to nobody, was in the WAL before this server was promoted, and nothing that came after it
        // had been confirmed when it was read; then that server was replaced in its turn.
        let inherited = writer.life.as_ref().is_none_or(|w| w.timeline < life.timeline);
        let confirmed = self.txns.iter().any(|t| {
            t.end == End::Ok && t.ended < reader.invoked && appends(t).next().is_some() && same_timeline(t, life)
        });
        let replaced = life.timeline < newest;
        let unconfirmed = writer.end == End::Unknown && inherited && !confirmed && replaced;
        (matches!(terms.excuse, Excuse::Confirmed(_)) && unconfirmed).then_some(Pardon::Unconfirmed)
    }

    /// What one read alone shows.
    fn single_reads(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut push = |anomaly, text| found.push(Finding { anomaly, text, pardon: None });
        for txn in self.txns.iter().filter(|t| t.end == End::Ok) {
            if let Some(text) = internal(txn) {
                push(Anomaly::Internal, format!("{text}: {txn}"));
            }
        }
        for seen in &self.seen {
            let reader = &self.txns[seen.txn];
            let mut once = BTreeSet::new();
            for value in seen.list {
                match self.of(seen.key, *value) {
                    _ if !once.insert(value) => push(Anomaly::Garbage, format!("{value} twice: {reader}")),
                    None => push(Anomaly::Garbage, format!("nobody appended {value}: {reader}")),
                    Some(writer) if writer.end == End::Failed => {
                        push(Anomaly::G1a, format!("{value} of key {}: {reader} read it of {writer}", seen.key));
                    }
                    Some(_) => {}
                }
            }
            let Some((last, writer)) = seen.list.last().and_then(|v| Some((*v, self.of(seen.key, *v)?))) else {
                continue;
            };
            let final_one = appends(writer).filter(|(key, _)| *key == seen.key).last().map(|(_, value)| value);
            if final_one != Some(last) {
                push(Anomaly::G1b, format!("{last} of key {}: {reader} read it in the middle of {writer}", seen.key));
            }
        }
        found
    }

    /// Every list is the beginning of the longest.
    fn orders(&self) -> Vec<Finding> {
        let mut told = BTreeSet::new();
        let last = self.last.iter().map(|(key, list)| (*key, &list[..], None));
        let all = self.seen.iter().map(|s| (s.key, s.list, Some(&self.txns[s.txn]))).chain(last);
        let wrong = all.filter(|(key, list, _)| !self.order[key].starts_with(list) && told.insert(*key));
        let finding = |(key, list, reader): (Key, &[Value], Option<&Txn>)| {
            let longest = self.order[&key];
            let same = list.iter().zip(longest).take_while(|(a, b)| a == b).count();
            let who = reader.map_or_else(|| "at the end".to_owned(), ToString::to_string);
            let text = format!(
                "key {key} after {same} values: {:?} and {:?}; {who}",
                &list[same..(same + 4).min(list.len())],
                &longest[same..(same + 4).min(longest.len())]
            );
            Finding { anomaly: Anomaly::Incompatible, text, pardon: None }
        };
        wrong.map(finding).collect()
    }

    /// Reads that lack what was acknowledged before they began and is there at the end.
    fn stale(&self, terms: &Terms<'_>) -> Vec<Finding> {
        let mut found = Vec::new();
        for (key, order) in &self.order {
            // When each value, or a later one, had been acknowledged first.
            let mut acked: Vec<Micros> = order
                .iter()
                .map(|v| self.of(*key, *v).filter(|w| w.end == End::Ok).map_or(Micros::MAX, |w| w.ended))
                .collect();
            for i in (1..acked.len()).rev() {
                acked[i - 1] = acked[i - 1].min(acked[i]);
            }
            for seen in self.seen.iter().filter(|s| s.key == *key && order.starts_with(s.list)) {
                let reader = &self.txns[seen.txn];
                let own = |v: &Value| self.writer.get(&(*key, *v)) == Some(&seen.txn);
                let next = order.get(seen.list.len()).filter(|v| !own(v));
                if next.is_some() && acked[seen.list.len()] < reader.invoked {
                    let former = reader.life.as_ref().is_some_and(|l| (terms.in_hole)(l, reader.ended));
                    let lacks = order[seen.list.len()..].iter();
                    let lacks = lacks.filter_map(|v| self.of(*key, *v)).find(|w| w.end == End::Ok);
                    let lacks = lacks.map(ToString::to_string).unwrap_or_default();
                    found.push(Finding {
                        anomaly: Anomaly::Stale,
                        text: format!("key {key}: {reader} lacks what was acknowledged before, {lacks}"),
                        pardon: former.then_some(Pardon::FormerPrimary),
                    });
                }
            }
        }
        found
    }

    fn edges(&self) -> BTreeMap<(usize, usize), Edge> {
        let mut edges: BTreeMap<(usize, usize), Edge> = BTreeMap::new();
        let mut add = |from: usize, to: usize, edge: Edge| {
            if from != to {
                // The strongest between two counts.
                edges.entry((from, to)).and_modify(|e| *e = (*e).min(edge)).or_insert(edge);
            }
        };
        let at = |key: Key, value: Value| self.writer.get(&(key, value)).copied();
        for (key, order) in &self.order {
            for pair in order.windows(2) {
                if let (Some(from), Some(to)) = (at(*key, pair[0]), at(*key, pair[1])) {
                    add(from, to, Edge::Ww(*key));
                }
            }
        }
        for seen in &self.seen {
            let order = self.order[&seen.key];
            // Of a list that fits no order nobody knows what came next.
            if !order.starts_with(seen.list) {
                continue;
            }
            if let Some(from) = seen.list.last().and_then(|v| at(seen.key, *v)) {
                add(from, seen.txn, Edge::Wr(seen.key));
            }
            // Where that is its own, *ww* has what comes after it.
            if let Some(to) = order.get(seen.list.len()).and_then(|v| at(seen.key, *v)) {
                add(seen.txn, to, Edge::Rw(seen.key));
            }
        }
        edges
    }

    fn cycles(&self) -> Vec<Finding> {
        let edges = self.edges();
        let mut found: Vec<Finding> = Vec::new();
        let mut told: BTreeSet<usize> = BTreeSet::new();
        for anomaly in [Anomaly::G0, Anomaly::G1c, Anomaly::G2] {
            let mut graph: DiGraph<usize, Edge> = DiGraph::new();
            let nodes: Vec<NodeIndex> = (0..self.txns.len()).map(|index| graph.add_node(index)).collect();
            for ((from, to), edge) in edges.iter().filter(|(_, e)| e.counts(anomaly)) {
                graph.add_edge(nodes[*from], nodes[*to], *edge);
            }
            for component in petgraph::algo::tarjan_scc(&graph).into_iter().filter(|c| c.len() > 1) {
                // A cycle of writes is one of reads and writes too.
                if component.iter().any(|n| told.contains(&graph[*n])) {
                    continue;
                }
                told.extend(component.iter().map(|n| graph[*n]));
                let text = self.words(&graph, &cycle(&graph, &component));
                found.push(Finding { anomaly, text, pardon: None });
            }
        }
        found
    }

    fn words(&self, graph: &DiGraph<usize, Edge>, cycle: &[NodeIndex]) -> String {
        let mut text = String::new();
        for (i, node) in cycle.iter().enumerate() {
            let next = cycle[(i + 1) % cycle.len()];
            let edge = graph.find_edge(*node, next).map(|e| graph[e]);
            text += &format!("{} —{}→ ", self.txns[graph[*node]], edge.map(|e| e.to_string()).unwrap_or_default());
        }
        text + "the first"
    }
}

/// Why one transaction comes before another; the strongest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Edge {
    Ww(Key),
    Wr(Key),
    Rw(Key),
}

impl Edge {
    /// A cycle of such an anomaly may have it.
    fn counts(self, cycle: Anomaly) -> bool {
        match self {
            Edge::Ww(_) => true,
            Edge::Wr(_) => cycle != Anomaly::G0,
            Edge::Rw(_) => cycle == Anomaly::G2,
        }
    }
}

impl fmt::Display for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Edge::Ww(key) => write!(f, "ww {key}"),
            Edge::Wr(key) => write!(f, "wr {key}"),
            Edge::Rw(key) => write!(f, "rw {key}"),
        }
    }
}

/// The shortest cycle through the first of the component.
fn cycle(graph: &DiGraph<usize, Edge>, component: &[NodeIndex]) -> Vec<NodeIndex> {
    let start = component[0];
    let mut before: BTreeMap<NodeIndex, NodeIndex> = BTreeMap::new();
    let mut next = std::collections::VecDeque::from([start]);
    while let Some(node) = next.pop_front() {
        for neighbour in graph.neighbors(node) {
            if neighbour == start {
                let mut path = vec![node];
                while path.last() != Some(&start) {
                    path.push(before[&path[path.len() - 1]]);
                }
                path.reverse();
                return path;
            }
            if component.contains(&neighbour) && !before.contains_key(&neighbour) {
                before.insert(neighbour, node);
                next.push_back(neighbour);
            }
        }
    }
    component.to_vec()
}

fn appends(txn: &Txn) -> impl Iterator<Item = (Key, Value)> {
    txn.ops.iter().filter_map(|op| match op {
        Op::Append(key, value) => Some((*key, *value)),
        Op::Read(..) => None,
    })
}

fn reads(txn: &Txn) -> impl Iterator<Item = (Key, &[Value])> {
    txn.ops.iter().filter_map(|op| match op {
        Op::Read(key, Some(list)) => Some((*key, &list[..])),
        Op::Read(_, None) | Op::Append(..) => None,
    })
}

fn same_timeline(txn: &Txn, life: &Life) -> bool {
    txn.life.as_ref().is_some_and(|l| l.timeline == life.timeline)
}

/// What this transaction did or saw may be gone: nobody had to have a copy.
fn at_an_asynchronous_end(txn: &Txn, newest: u32, terms: &Terms<'_>) -> bool {
    let Excuse::Replaced(since) = terms.excuse else { return false };
    txn.ended >= since && txn.life.as_ref().is_some_and(|l| l.timeline < newest)
}

/// A transaction sees what it saw, and what it appended since.
fn internal(txn: &Txn) -> Option<String> {
    let mut known: BTreeMap<Key, Vec<Value>> = BTreeMap::new();
    let mut own: BTreeMap<Key, Vec<Value>> = BTreeMap::new();
    for op in &txn.ops {
        match op {
            Op::Append(key, value) => {
                if let Some(list) = known.get_mut(key) {
                    list.push(*value);
                }
                own.entry(*key).or_default().push(*value);
            }
            Op::Read(key, Some(list)) => {
                if known.get(key).is_some_and(|expected| expected != list) {
                    return Some(format!("key {key} changed under its eyes"));
                }
                if own.get(key).is_some_and(|own| !list.ends_with(own)) {
                    return Some(format!("key {key} lacks its own appends"));
                }
                known.insert(*key, list.clone());
            }
            Op::Read(_, None) => {}
        }
    }
    None
}

/// An event of a history file. The names are Elle's.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Event {
    process: usize,
    #[serde(rename = "type")]
    kind: String,
    f: String,
    value: Vec<Op>,
    /// Microseconds since the box was started.
    time: Micros,
    /// Server, timeline and start of its postmaster.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    life: Option<(String, u32, String)>,
}

/// Writes every invocation and every end, in the order of their times, as lines of JSON; the last line is what was
/// read at the end.
///
/// # Errors
/// The file can't be written.
pub fn write(file: &Path, txns: &[Txn], last: &Lists) -> Result<()> {
    let mut events: Vec<Event> = Vec::with_capacity(txns.len() * 2 + 1);
    for txn in txns {
        let life = txn.life.as_ref().map(|l| (l.server.clone(), l.timeline, l.started.clone()));
        let kind = serde_json::to_value(txn.end)?.as_str().unwrap_or_default().to_owned();
        let asked = txn.ops.iter().map(|op| match op {
            Op::Append(..) => op.clone(),
            Op::Read(key, _) => Op::Read(*key, None),
        });
        let (process, f) = (txn.process, "txn".to_owned());
        let invoke = "invoke".to_owned();
        events.push(Event {
            process,
            kind: invoke,
            f: f.clone(),
            value: asked.collect(),
            time: txn.invoked,
            life: None,
        });
        events.push(Event { process, kind, f, value: txn.ops.clone(), time: txn.ended, life });
    }
    events.sort_by_key(|e| e.time);
    let read = last.iter().map(|(key, list)| Op::Read(*key, Some(list.clone())));
    let time = events.last().map_or(0, |e| e.time);
    events.push(Event { process: 0, kind: "ok".into(), f: "last".into(), value: read.collect(), time, life: None });
    if let Some(dir) = file.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let mut out = BufWriter::new(File::create(file).with_context(|| format!("create {}", file.display()))?);
    for event in events {
        serde_json::to_writer(&mut out, &event)?;
        out.write_all(b"\n")?;
    }
    out.flush().context("write the history")
}

/// Reads what [`write`] wrote.
///
/// # Errors
/// It is no such file.
pub fn read(file: &Path) -> Result<(Vec<Txn>, Lists)> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let mut open: BTreeMap<usize, Micros> = BTreeMap::new();
    let (mut txns, mut last) = (Vec::new(), BTreeMap::new());
    for line in text.lines() {
        let event: Event = serde_json::from_str(line)?;
        if event.f == "last" {
            let lists = event.value.into_iter().filter_map(|op| match op {
                Op::Read(key, list) => Some((key, list?)),
                Op::Append(..) => None,
            });
            last.extend(lists);
        } else if event.kind == "invoke" {
            open.insert(event.process, event.time);
        } else {
            let invoked = open.remove(&event.process).context("an end without a beginning")?;
            let life = event.life.map(|(server, timeline, started)| Arc::new(Life { timeline, server, started }));
            let end = serde_json::from_value(event.kind.into())?;
            txns.push(Txn { process: event.process, invoked, ended: event.time, ops: event.value, end, life });
        }
    }
    Ok((txns, last))
}

#[cfg(test)]
#[path = "history_test.rs"]
mod tests;
