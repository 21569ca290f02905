//! What the writers' memory says about a run: how long nothing was
//! acknowledged, whether two servers acknowledged at once, and which
//! acknowledged rows are gone.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    layout::Layout,
    workload::{self, Attempt, Outcome},
};

/// In milliseconds, to the microsecond.
pub(crate) fn ms(d: Duration) -> f64 {
    d.as_micros() as f64 / 1000.0
}

/// From the fault to the first acknowledgement of a write that began after it,
/// by any server but the lives that begin with `not_by`: where the fault ends a server's life,
/// what its last processes still acknowledge while they die is no recovery.
pub(crate) fn recovery(attempts: &[Attempt], writer: &str, fault: Instant, not_by: Option<&str>) -> Option<Duration> {
    let by = |server: &str| not_by.is_none_or(|lives| !server.starts_with(lives));
    let good = attempts.iter().filter(|a| &*a.writer == writer && a.begun >= fault && a.server().is_some_and(by));
    good.map(|a| a.ended - fault).min()
}

/// The server, in its life, that acknowledged last.
pub(crate) fn last_server(attempts: &[Attempt]) -> Option<Arc<str>> {
    let acked = attempts.iter().rev().filter(|a| !a.is_probe());
    acked.filter_map(|a| if let Outcome::Acked(server) = &a.outcome { Some(server.clone()) } else { None }).next()
}

/// The longest time between two acknowledgements of that writer, from the last
/// one before the fault on; one still open at `end` counts up to there.
pub(crate) fn longest_gap(attempts: &[Attempt], writer: &str, fault: Instant, end: Instant) -> Option<Duration> {
    let acks: Vec<Instant> =
        attempts.iter().filter(|a| &*a.writer == writer && a.is_acked()).map(|a| a.ended).collect();
    let first = acks.iter().rposition(|at| *at <= fault).unwrap_or(0);
    let from_fault = acks.get(first..)?;
    let next = from_fault.iter().skip(1).copied().chain([end]);
    from_fault.iter().zip(next).map(|(a, b)| b.saturating_duration_since(*a)).max()
}

/// How long two servers acknowledged writes at the same time: each server's
/// life as primary lasts from its first to its last acknowledgement, and those
/// must not overlap.
pub(crate) fn two_writers(attempts: &[Attempt]) -> Duration {
    let mut lives: BTreeMap<Arc<str>, (Instant, Instant)> = BTreeMap::new();
    for attempt in attempts {
        if let Outcome::Acked(server) = &attempt.outcome {
            let life = lives.entry(server.clone()).or_insert((attempt.ended, attempt.ended));
            *life = (life.0.min(attempt.ended), life.1.max(attempt.ended));
        }
    }
    let lives: Vec<_> = lives.into_values().collect();
    let mut overlap = Duration::ZERO;
    for (i, a) in lives.iter().enumerate() {
        for b in &lives[i + 1..] {
            let (from, to) = (a.0.max(b.0), a.1.min(b.1));
            // A single acknowledgement within the other's life takes no time, and is an overlap all the same.
            if to >= from {
                overlap += (to - from).max(Duration::from_millis(1));
            }
        }
    }
    overlap
}

/// Attempts of the two writers, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// All.
    pub(crate) attempts: usize,
    /// Acknowledged.
    pub(crate) acked: usize,
    /// Outcome unknown.
    pub(crate) unknown: usize,
}

/// Counts what the writers tried; probes are left out.
pub(crate) fn count(attempts: &[Attempt]) -> Counts {
    let mut counts = Counts::default();
    for attempt in attempts.iter().filter(|a| !a.is_probe()) {
        counts.attempts += 1;
        match attempt.outcome {
            Outcome::Acked(_) => counts.acked += 1,
            Outcome::Unknown(_) => counts.unknown += 1,
            Outcome::Failed(_) => {}
        }
    }
    counts
}

/// The first few different errors of the writers, with their number.
pub(crate) fn first_errors(attempts: &[Attempt], fault: Instant) -> Vec<String> {
    let mut seen: Vec<(String, usize)> = Vec::new();
    for attempt in attempts.iter().filter(|a| !a.is_probe()) {
        let (Outcome::Failed(text) | Outcome::Unknown(text)) = &attempt.outcome else { continue };
        let key = format!("{}: {text}", attempt.writer);
        match seen.iter_mut().find(|(k, _)| k.split_once(" after ").is_some_and(|(k, _)| k == key)) {
            Some((_, count)) => *count += 1,
            None => {
                let at = attempt.ended.saturating_duration_since(fault);
                seen.push((format!("{key} after {:.0} ms", ms(at)), 1));
            }
        }
    }
    seen.into_iter().take(8).map(|(text, count)| format!("{text} ({count} times)")).collect()
}

/// How many acknowledged rows `primary` does not have.
pub(crate) async fn lost(layout: &Layout, primary: &str, attempts: &[Attempt]) -> Result<usize> {
    Ok(lost_writes(layout, primary, attempts).await?.len())
}

/// Acknowledged writes whose rows `primary` does not have.
pub(crate) async fn lost_writes(layout: &Layout, primary: &str, attempts: &[Attempt]) -> Result<Vec<Attempt>> {
    let session = workload::connect_member(layout, primary).await?;
    let writers: BTreeSet<Arc<str>> =
        attempts.iter().filter(|a| !a.is_probe() && a.is_acked()).map(|a| a.writer.clone()).collect();
    let mut lost = Vec::new();
    for writer in writers {
        let acked: Vec<&Attempt> = attempts.iter().filter(|a| a.writer == writer && a.is_acked()).collect();
        let seqs = || acked.iter().map(|a| a.seq);
        let (Some(first), Some(last)) = (seqs().min(), seqs().max()) else { continue };
        let sql = "select seq from demo_writes where writer = $1 and seq between $2 and $3";
        let rows = session.client.query(sql, &[&&*writer, &first, &last]).await;
        let rows = rows.with_context(|| format!("read the rows of writer {writer} on {primary}"))?;
        let present: HashSet<i64> = rows.iter().map(|r| r.get(0)).collect();
        lost.extend(missing(&acked, &present));
    }
    Ok(lost)
}

fn missing(acked: &[&Attempt], present: &HashSet<i64>) -> Vec<Attempt> {
    acked.iter().filter(|a| !present.contains(&a.seq)).map(|a| (*a).clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::workload::{MULTI_HOST, ROUTED};

    /// Attempts as (writer, begun, ended, server), times in ms; no server means failed.
    fn attempts(zero: Instant, list: &[(&str, u64, u64, &str)]) -> Vec<Attempt> {
        let at = |n: u64| zero + Duration::from_millis(n);
        let make = |(i, (writer, begun, ended, server)): (usize, &(&str, u64, u64, &str))| Attempt {
            writer: (*writer).into(),
            seq: i as i64,
            begun: at(*begun),
            ended: at(*ended),
            outcome: match *server {
                "" => Outcome::Failed("refused".into()),
                "?" => Outcome::Unknown("cut".into()),
                name => Outcome::Acked(name.into()),
            },
        };
        list.iter().enumerate().map(make).collect()
    }

    #[test]
    fn recovery_counts_from_writes_begun_after_the_fault() {
        let zero = Instant::now();
        let list = [
            (ROUTED, 90, 95, "a"),
            (ROUTED, 99, 130, "a"), // begun before the fault at 100
            (ROUTED, 131, 600, ""),
            (MULTI_HOST, 400, 500, "b"),
            (ROUTED, 620, 700, "b"),
            (ROUTED, 701, 702, "b"),
        ];
        let list = attempts(zero, &list);
        let fault = zero + Duration::from_millis(100);
        assert_eq!(recovery(&list, ROUTED, fault, None), Some(Duration::from_millis(600)));
        assert_eq!(recovery(&list, MULTI_HOST, fault, None), Some(Duration::from_millis(400)));
        assert_eq!(recovery(&list, "nobody", fault, None), None);
        let early = zero + Duration::from_millis(80);
        assert_eq!(recovery(&list, ROUTED, early, None), Some(Duration::from_millis(15)));
        assert_eq!(recovery(&list, ROUTED, early, Some("a")), Some(Duration::from_millis(620)));
        assert_eq!(last_server(&list[..2]).as_deref(), Some("a"));
        assert_eq!(last_server(&[]), None);
        let end = zero + Duration::from_millis(710);
        assert_eq!(longest_gap(&list, ROUTED, fault, end), Some(Duration::from_millis(570)));
        assert_eq!(longest_gap(&list, ROUTED, fault, end + Duration::from_secs(9)), Some(Duration::from_millis(9008)));
        assert_eq!(count(&list), Counts { attempts: 6, acked: 5, unknown: 0 });
    }

    #[test]
    fn only_overlapping_lives_are_two_writers() {
        let zero = Instant::now();
        let apart = attempts(zero, &[(ROUTED, 0, 10, "a"), (ROUTED, 20, 30, "a"), (ROUTED, 40, 50, "b")]);
        assert_eq!(two_writers(&apart), Duration::ZERO);
        let both = attempts(
            zero,
            &[(ROUTED, 0, 10, "a"), (ROUTED, 20, 30, "b"), ("probe-n1", 40, 75, "a"), (ROUTED, 80, 90, "b")],
        );
        assert_eq!(two_writers(&both), Duration::from_millis(45));
        let once = attempts(zero, &[(ROUTED, 0, 10, "a"), (ROUTED, 20, 20, "b"), (ROUTED, 30, 40, "a")]);
        assert_eq!(two_writers(&once), Duration::from_millis(1));
        // One server in two lives, another in between: nobody wrote beside another.
        let back = attempts(zero, &[(ROUTED, 0, 10, "a 1"), (ROUTED, 11, 12, "b 1"), (ROUTED, 13, 14, "a 2")]);
        assert_eq!(two_writers(&back), Duration::ZERO);
    }

    #[test]
    fn missing_rows_are_counted() {
        let list = attempts(Instant::now(), &[(ROUTED, 0, 1, "a"), (ROUTED, 2, 3, "a"), (ROUTED, 4, 5, "a")]);
        let acked: Vec<&Attempt> = list.iter().collect();
        let lost = missing(&acked, &HashSet::from([0, 2, 3]));
        assert_eq!(lost.iter().map(|a| a.seq).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn errors_are_grouped() {
        let zero = Instant::now();
        let list = attempts(zero, &[(ROUTED, 0, 10, ""), (ROUTED, 20, 30, ""), (MULTI_HOST, 0, 50, "?")]);
        let fault = zero + Duration::from_millis(5);
        let expected = ["routed: refused after 5 ms (2 times)", "multi-host: cut after 45 ms (1 times)"];
        assert_eq!(first_errors(&list, fault), expected);
    }
}
