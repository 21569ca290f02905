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
    /// How late this process itself was at most.
    pub lag_ms: f64,
    /// The most frequent errors.
    pub errors: Vec<String>,
    /// Where the time of the round went, in seconds.
    #[serde(default)]
    pub phases_s: String,
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
             healed in {:.1} s, two writers {:.0} ms, stale {tcp}/{local}/{own}{}, lost {}+{}",
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
