//! One JSON line for each fault, and what all of them say together.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write as _,
    path::Path,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{
    faults::Fault,
    rounds::{Place, build},
};

/// How a round ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every promise was kept, and the run showed it.
    Pass,
    /// A promise was broken.
    Fail,
    /// None was seen broken, but the fault was not effective or nobody wrote.
    Unknown,
}

/// The transactions of a round that append to lists and read them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Appends {
    /// Committed, failed, with unknown end.
    pub txns: (usize, usize, usize),
    /// Values of those that committed.
    pub values: usize,
    /// Lists that these read.
    pub reads: usize,
    /// Commits that were acknowledged before the fault, while it lasted, and after it.
    pub acked: (usize, usize, usize),
    /// Anomalies that are not excused, by kind.
    pub anomalies: BTreeMap<String, usize>,
}

/// One round. Times in milliseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// Version and profile of the build.
    pub build: String,
    /// `soak`, `list`, …
    pub run: String,
    /// Seed of the run.
    pub seed: u64,
    /// Number of the round in the run, from 0.
    pub round: u64,
    /// When it began, since 1970, in seconds.
    pub at_s: u64,
    /// Name of the fault.
    pub fault: String,
    /// Host that was hit.
    pub host: String,
    /// For how long.
    pub hold_ms: u64,
    /// Name of the profile.
    pub profile: String,
    /// Who has to confirm commits; empty: nobody.
    #[serde(default)]
    pub mode: String,
    /// Hosts with a member.
    #[serde(default)]
    pub members: usize,
    /// How the guard of the host that was hit kills, by its own word.
    #[serde(default)]
    pub kill: String,
    /// The kernel lease protected it.
    #[serde(default)]
    pub kernel_lease: bool,
    /// Primary before and after.
    pub primary: (String, String),
    /// Raft leader before and after.
    pub leader: (String, String),
    /// What the cluster was set to.
    #[serde(default)]
    pub settings: String,
    /// Epoch before and after.
    pub epoch: (u64, u64),
    /// What showed that the fault was effective.
    pub effect: String,
    /// Acknowledged before the fault, while it lasted, and after it.
    pub acked: (usize, usize, usize),
    /// Attempts that were under way while the fault lasted, by unix socket, TCP, router.
    pub attempts_during: (usize, usize, usize),
    /// Of these, those at the host that was hit.
    pub attempts_at_host: usize,
    /// Attempts refused as read-only, failed, with unknown end; all in the round.
    pub not_acked: (usize, usize, usize),
    /// Longest time without any acknowledgement.
    pub gap_ms: f64,
    /// Longest time in which nobody was acknowledged through the client's router: from the beginning of the fault where
    /// writes had to go on while it lasted, else from its end.
    #[serde(default)]
    pub resumed_ms: f64,
    /// Writes had to go on while it lasted.
    #[serde(default)]
    pub goes_on: bool,
    /// From the end of the fault until all members were healthy.
    pub heal_ms: f64,
    /// Servers (member since … on timeline …) that acknowledged, with the time from the fault to the first and last.
    pub reigns: Vec<String>,
    /// Two servers acknowledged at once, the documented holes left out.
    pub two_writers_ms: f64,
    /// Acknowledgements by a server that had been replaced, documented holes included: to sessions as configured
    /// over TCP, the same over a unix socket, and to those with a `synchronous_commit` of their own.
    pub stale: (usize, usize, usize),
    /// The last of these, counted from the end of the fault.
    pub stale_until_ms: Option<f64>,
    /// Acknowledgements received late over a path that the fault touched; given in time.
    pub late_deliveries: usize,
    /// Acknowledged rows that are gone: sessions as configured, and the others.
    pub lost: (usize, usize),
    /// Acknowledged rows, and reads, that look wrong and are excused, by kind.
    #[serde(default)]
    pub excused: BTreeMap<String, usize>,
    /// Transactions that append to lists.
    #[serde(default)]
    pub appends: Appends,
    /// How late this process itself was at most.
    pub lag_ms: f64,
    /// The most frequent errors.
    pub errors: Vec<String>,
    /// Where the time of the round went, in seconds.
    #[serde(default)]
    pub phases_s: String,
    /// How long the round took, in seconds.
    #[serde(default)]
    pub took_s: f64,
    /// How it ended.
    pub verdict: Verdict,
    /// Why it is no pass.
    pub reasons: Vec<String>,
}

impl Record {
    /// One line for people.
    pub fn sentence(&self) -> String {
        let verdict = match self.verdict {
            Verdict::Pass => "ok",
            Verdict::Fail => "FAILED",
            Verdict::Unknown => "UNKNOWN",
        };
        let (before, during, after) = self.acked;
        let (tcp, local, own) = self.stale;
        let change = if self.epoch.0 == self.epoch.1 {
            format!("{} stays primary", self.primary.1)
        } else {
            format!("{} -> {} (epoch {} -> {})", self.primary.0, self.primary.1, self.epoch.0, self.epoch.1)
        };
        let mut line = format!(
            "{} {} of {} for {:.1} s: {verdict}; {change}; acknowledged {before}+{during}+{after}, gap {:.0} ms, \
             healed in {:.1} s, two writers {:.0} ms, stale {tcp}/{local}/{own}{}, lost {}+{}, {} transactions ({} \
             failed, {} unknown), {:.0} s",
            self.round,
            self.fault,
            self.host,
            self.hold_ms as f64 / 1e3,
            self.gap_ms,
            self.heal_ms / 1e3,
            self.two_writers_ms,
            self.stale_until_ms.map_or_else(String::new, |at| format!(" (last {at:+.0} ms)")),
            self.lost.0,
            self.lost.1,
            self.appends.txns.0,
            self.appends.txns.1,
            self.appends.txns.2,
            self.took_s,
        );
        for reason in &self.reasons {
            line += &format!("\n    {reason}");
        }
        line
    }
}

/// Appends a line. A run that is killed leaves whole lines.
///
/// # Errors
/// The file can't be written.
pub fn append<T: Serialize>(file: &Path, record: &T) -> Result<()> {
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    let mut open = File::options().create(true).append(true).open(file);
    let line = serde_json::to_string(record)? + "\n";
    open.as_mut()
        .map_err(|e| anyhow::anyhow!("{e}"))
        .and_then(|f| Ok(f.write_all(line.as_bytes())?))
        .with_context(|| format!("append to {}", file.display()))
}

/// A round that came to no verdict. It is played again when the run goes on; its line stays.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Broken {
    /// Version and profile of the build.
    pub build: String,
    /// See [`Record`].
    pub run: String,
    /// Seed of the run.
    pub seed: u64,
    /// Number of the round in the run, from 0.
    pub round: u64,
    /// Name of the fault.
    pub fault: String,
    /// Why.
    pub broken: String,
}

impl Broken {
    /// What to append when a round ends with an error.
    pub fn new(place: &Place, fault: &Fault, error: &anyhow::Error) -> Broken {
        let (run, fault, broken) = (place.run.clone(), fault.to_string(), format!("{error:#}"));
        Broken { build: build(), run, seed: place.seed, round: place.round, fault, broken }
    }
}

/// The rounds of that run and seed that came to no verdict.
pub fn broken(file: &Path, run: &str, seed: u64) -> Vec<Broken> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let broken = text.lines().filter_map(|l| serde_json::from_str::<Broken>(l).ok());
    broken.filter(|r| r.run == run && r.seed == seed).collect()
}

/// The rounds of that run and seed that are in the file already.
pub fn load(file: &Path, run: &str, seed: u64) -> Vec<Record> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let records = text.lines().filter_map(|l| serde_json::from_str::<Record>(l).ok());
    records.filter(|r| r.run == run && r.seed == seed).collect()
}

/// The table by fault, and a line on the whole.
pub fn summary(records: &[Record]) -> String {
    let mut by_fault: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for record in records {
        by_fault.entry(&record.fault).or_default().push(record);
    }
    let mut text = String::from(
        "| fault | rounds | failed | unknown | changes | longest hold s | two writers ms | stale acks (tcp/unix/own) | lost (on+own) | \
         longest gap s |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for (fault, list) in &by_fault {
        text += &row(fault, list);
    }
    let all: Vec<&Record> = records.iter().collect();
    text + &row("all", &all)
}

fn row(name: &str, list: &[&Record]) -> String {
    let count = |verdict| list.iter().filter(|r| r.verdict == verdict).count();
    let max = |of: &dyn Fn(&Record) -> f64| list.iter().map(|r| of(r)).fold(0.0, f64::max);
    let sum = |of: &dyn Fn(&Record) -> usize| list.iter().map(|r| of(r)).sum::<usize>();
    format!(
        "| {name} | {} | {} | {} | {} | {:.1} | {:.0} | {}/{}/{} | {}+{} | {:.1} |\n",
        list.len(),
        count(Verdict::Fail),
        count(Verdict::Unknown),
        list.iter().filter(|r| r.epoch.0 != r.epoch.1).count(),
        max(&|r| r.hold_ms as f64 / 1e3),
        max(&|r| r.two_writers_ms),
        sum(&|r| r.stale.0),
        sum(&|r| r.stale.1),
        sum(&|r| r.stale.2),
        sum(&|r| r.lost.0),
        sum(&|r| r.lost.1),
        max(&|r| r.gap_ms / 1e3),
    )
}

/// A series as a whole, as the last line of its lines.
#[derive(Debug, Clone, Serialize)]
pub struct Series {
    /// Version and profile of the build.
    pub build: String,
    /// Name of the run, with mode and members.
    pub series: String,
    /// Its seed.
    pub seed: u64,
    /// What the clusters were set to.
    pub settings: String,
    /// Rounds that came to a verdict.
    pub rounds: usize,
    /// How many of them passed, failed, or are unknown.
    pub passed: usize,
    /// See `passed`.
    pub failed: usize,
    /// See `passed`.
    pub unknown: usize,
    /// Tries that came to no verdict; those rounds were played again.
    pub broken: usize,
    /// Rounds in which the epoch rose.
    pub changes: usize,
    /// Single rows that were acknowledged.
    pub rows: usize,
    /// Transactions that committed, failed, and have an unknown end.
    pub txns: (usize, usize, usize),
    /// Acknowledged rows, to sessions as configured, that are gone.
    pub lost: usize,
    /// Rounds with two writers beyond the documented holes.
    pub two_writers: usize,
    /// Anomalies of the histories, by kind.
    pub anomalies: BTreeMap<String, usize>,
    /// What looks wrong and is excused, by kind.
    pub excused: BTreeMap<String, usize>,
    /// Mean and longest round, in seconds.
    pub took_s: (f64, f64),
    /// Longest time without an acknowledgement where writes had to go on, and after the end of the fault elsewhere; in milliseconds.
    pub resumed_ms: (f64, f64),
}

impl Series {
    /// Of these rounds.
    pub fn of(name: &str, seed: u64, settings: &[String], records: &[Record], broken: usize) -> Series {
        let count = |verdict| records.iter().filter(|r| r.verdict == verdict).count();
        let sum = |of: &dyn Fn(&Record) -> usize| records.iter().map(of).sum::<usize>();
        let longest = |of: &dyn Fn(&Record) -> f64| records.iter().map(of).fold(0.0, f64::max);
        let resumed = |on: bool| longest(&|r| if r.goes_on == on { r.resumed_ms } else { 0.0 });
        let by_kind = |of: &dyn Fn(&Record) -> &BTreeMap<String, usize>| {
            let mut all = BTreeMap::new();
            for (kind, n) in records.iter().flat_map(of) {
                *all.entry(kind.clone()).or_insert(0) += n;
            }
            all
        };
        let total: f64 = records.iter().map(|r| r.took_s).sum();
        Series {
            build: build(),
            series: name.to_owned(),
            seed,
            settings: settings.join(","),
            rounds: records.len(),
            passed: count(Verdict::Pass),
            failed: count(Verdict::Fail),
            unknown: count(Verdict::Unknown),
            broken,
            changes: records.iter().filter(|r| r.epoch.0 != r.epoch.1).count(),
            rows: sum(&|r| r.acked.0 + r.acked.1 + r.acked.2),
            txns: (sum(&|r| r.appends.txns.0), sum(&|r| r.appends.txns.1), sum(&|r| r.appends.txns.2)),
            lost: sum(&|r| r.lost.0),
            two_writers: records.iter().filter(|r| r.two_writers_ms > 0.0).count(),
            anomalies: by_kind(&|r| &r.appends.anomalies),
            excused: by_kind(&|r| &r.excused),
            took_s: (total / records.len().max(1) as f64, longest(&|r| r.took_s)),
            resumed_ms: (resumed(true), resumed(false)),
        }
    }
}
