//! What a run measured, as written to the JSON file.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;

use super::phases::Phases;

/// One run. Times in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Record {
    /// Name of the fault as on the command line.
    pub(crate) fault: String,
    /// Name of the profile.
    pub(crate) profile: String,
    /// From 1.
    pub(crate) run: u32,
    /// `netns`, or what loopback can't show.
    pub(crate) network: String,
    /// Number of members.
    pub(crate) members: usize,
    /// Fault to the first acknowledged routed write that began after it.
    pub(crate) rto_ms: Option<f64>,
    /// Where that time went; they add up to `rto_ms`.
    pub(crate) phases: Option<Phases>,
    /// The same as `rto_ms` for the writer with the multi-host string.
    pub(crate) multi_host_rto_ms: Option<f64>,
    /// Longest time without an acknowledged routed write.
    pub(crate) write_gap_ms: Option<f64>,
    /// Writes begun, by both writers.
    pub(crate) attempts: usize,
    /// Writes not acknowledged: refused, cut, or given up.
    pub(crate) errors: usize,
    /// Those of the errors whose outcome the client can't know.
    pub(crate) unknown: usize,
    /// Writes acknowledged.
    pub(crate) acked: usize,
    /// Acknowledged writes the final primary doesn't have.
    pub(crate) lost: usize,
    /// How long two servers acknowledged writes at the same time.
    pub(crate) two_writers_ms: f64,
    /// Start of what was down to all members healthy.
    pub(crate) rejoin_ms: Option<f64>,
    /// `recovered`, or what did not happen.
    pub(crate) outcome: String,
    /// The fault's host had the Raft leader.
    pub(crate) killed_host_was_raft_leader: bool,
    /// Primary before the fault.
    pub(crate) primary_before: String,
    /// Primary at the end.
    pub(crate) primary_after: String,
    /// Epoch before the fault.
    pub(crate) epoch_before: u64,
    /// Epoch at the end.
    pub(crate) epoch_after: u64,
    /// Messages of the first errors, for whoever reads the file.
    pub(crate) first_errors: Vec<String>,
}

impl Record {
    /// The run went as it should.
    pub(crate) fn is_good(&self) -> bool {
        self.outcome == RECOVERED
    }

    /// One line for people.
    pub(crate) fn sentence(&self) -> String {
        let ms = |value: Option<f64>| value.map_or_else(|| "never".to_owned(), |v| format!("{v:.0} ms"));
        let phases = self.phases.as_ref().map_or_else(String::new, |p| format!(" ({p})"));
        format!(
            "{} run {}: {}; writes resumed after {}{phases}, longest gap {}; {} of {} writes failed, {} acknowledged, \
             {} lost; two writers for {:.0} ms; healthy again after {}",
            self.fault,
            self.run,
            self.outcome,
            ms(self.rto_ms),
            ms(self.write_gap_ms),
            self.errors,
            self.attempts,
            self.acked,
            self.lost,
            self.two_writers_ms,
            ms(self.rejoin_ms)
        )
    }
}

/// Outcome of a run in which everything came back.
pub(crate) const RECOVERED: &str = "recovered";

/// Writes the list, whole, after each run: an interrupted series keeps its results.
pub(crate) fn write(file: &Path, records: &[Record]) -> Result<()> {
    let text = serde_json::to_string_pretty(records).context("render the results")?;
    let tmp = file.with_extension("tmp");
    fs::write(&tmp, text + "\n").with_context(|| format!("write {}", tmp.display()))?;
    fs::rename(&tmp, file).with_context(|| format!("write {}", file.display()))?;
    super::cluster::give_to_caller(file);
    Ok(())
}

/// Minimum, median and maximum of a series.
pub(crate) fn spread(mut values: Vec<f64>) -> Option<(f64, f64, f64)> {
    values.sort_by(f64::total_cmp);
    let (first, last) = (*values.first()?, *values.last()?);
    let half = values.len() / 2;
    let median = if values.len() % 2 == 1 { values[half] } else { (values[half - 1] + values[half]) / 2.0 };
    Some((first, median, last))
}

/// The lines that sum up a series.
pub(crate) fn summary(records: &[Record]) -> Vec<String> {
    let series = |what: &str, of: fn(&Record) -> Option<f64>| {
        let values: Vec<f64> = records.iter().filter_map(of).collect();
        let (count, all) = (values.len(), records.len());
        spread(values).map(|(min, median, max)| {
            format!("{what}: min {min:.0}, median {median:.0}, max {max:.0} ms ({count} of {all} runs)")
        })
    };
    let mut lines = Vec::new();
    lines.extend(series("writes resumed after", |r| r.rto_ms));
    lines.extend(series("longest gap", |r| r.write_gap_ms));
    lines.extend(series("healthy again after", |r| r.rejoin_ms));
    let total = |of: fn(&Record) -> usize| records.iter().map(of).sum::<usize>();
    let two_writers = records.iter().map(|r| r.two_writers_ms).fold(0.0, f64::max);
    let bad = records.iter().filter(|r| !r.is_good()).count();
    lines.push(format!(
        "{} acknowledged, {} lost, {} errors in {} attempts; two writers for at most {two_writers:.0} ms; {bad} of {} runs \
         did not end well",
        total(|r| r.acked),
        total(|r| r.lost),
        total(|r| r.errors),
        total(|r| r.attempts),
        records.len()
    ));
    lines
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn example() -> Record {
        Record {
            fault: "kill-host".into(),
            profile: "fast".into(),
            run: 1,
            network: "netns".into(),
            members: 3,
            rto_ms: Some(2000.0),
            phases: Some(Phases::default()),
            multi_host_rto_ms: None,
            write_gap_ms: Some(2005.0),
            attempts: 10,
            errors: 2,
            unknown: 1,
            acked: 8,
            lost: 0,
            two_writers_ms: 0.0,
            rejoin_ms: Some(3000.0),
            outcome: RECOVERED.into(),
            killed_host_was_raft_leader: true,
            primary_before: "n1".into(),
            primary_after: "n2".into(),
            epoch_before: 1,
            epoch_after: 2,
            first_errors: Vec::new(),
        }
    }

    #[test]
    fn the_file_is_a_list_with_the_promised_keys() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("out.json");
        write(&file, &[example(), example()]).unwrap();
        let list: Vec<serde_json::Value> = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        assert_eq!(list.len(), 2);
        let promised = "fault profile run network members rto_ms phases write_gap_ms attempts errors acked lost \
                        two_writers_ms rejoin_ms outcome killed_host_was_raft_leader";
        for key in promised.split_whitespace() {
            assert!(list[0].get(key).is_some(), "{key} is missing");
        }
    }

    #[test]
    fn spread_of_odd_even_and_no_runs() {
        assert_eq!(spread(vec![3.0, 1.0, 2.0]), Some((1.0, 2.0, 3.0)));
        assert_eq!(spread(vec![4.0, 1.0, 2.0, 3.0]), Some((1.0, 2.5, 4.0)));
        assert_eq!(spread(vec![]), None);
    }

    #[test]
    fn a_run_that_failed_is_said_in_the_summary() {
        let bad = Record { outcome: "no write within 60 s".into(), rto_ms: None, ..example() };
        let lines = summary(&[example(), bad]);
        assert!(lines[0].contains("1 of 2 runs"), "{lines:?}");
        assert!(lines.last().unwrap().contains("1 of 2 runs did not end well"), "{lines:?}");
    }
}
