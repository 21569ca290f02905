//! What an operation would do, without doing it: the checks are those of the real one, and it says what they found.

use std::time::Duration;

use super::{
    Situation,
    agenda::{Begins, admitted, is_free},
    loss, reinit,
    switchover::{self, is_primary, stop_limit},
};
use crate::{domain::MemberId, state::OperationKind};

/// What would be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rehearsal {
    /// Who is primary.
    pub from: Option<MemberId>,
    /// Who would be, or be restarted.
    pub to: MemberId,
    /// What was found, and what would be done, line by line.
    pub says: Vec<String>,
    /// WAL of the primary that whoever would be primary has not flushed, as far as both were heard.
    pub lag_bytes: Option<u64>,
    /// Writes wait no longer than this, or it is rolled back or given up; zero: they don't wait.
    pub at_most: Duration,
}

/// See [`Rehearsal`].
///
/// # Errors
/// Why the operation would be refused, in words for the operator.
pub fn of(
    s: &Situation<'_>,
    kind: OperationKind,
    (from, wanted): (Option<&MemberId>, Option<&MemberId>),
    allow_loss: bool,
) -> Result<Rehearsal, String> {
    from.map_or(Ok(()), |from| is_primary(s, from))?;
    is_free(s, kind)?;
    let begins = switchover::admit(s, kind, wanted, allow_loss)?;
    let gives_way = reinit::gives_way(s, &begins).and(s.state.operation.as_ref());
    let begins = admitted(begins)?;
    let mut rehearsal = match kind {
        OperationKind::Switchover => moved(s, begins),
        OperationKind::Failover => forced(s, begins),
        OperationKind::Restart | OperationKind::Reinit | OperationKind::Hibernate | OperationKind::Wake => {
            restarted(s, begins)
        }
    };
    if let Some(copy) = gives_way {
        rehearsal.says.insert(0, format!("operation {}, which copies {} anew, is given up", copy.id, copy.to));
    }
    Ok(rehearsal)
}

fn lag(s: &Situation<'_>, from: Option<&MemberId>, to: &MemberId) -> Option<u64> {
    let (primary, standby) = (s.agent(from?)?, s.agent(to)?);
    Some(primary.wal_end.lsn.bytes_past(standby.wal_end.lsn))
}

fn named(from: Option<&MemberId>) -> String {
    from.map_or_else(|| "nobody".to_owned(), ToString::to_string)
}

fn moved(s: &Situation<'_>, (_, from, to): Begins) -> Rehearsal {
    let lag_bytes = lag(s, from.as_ref(), &to);
    let (old, at_most) = (named(from.as_ref()), stop_limit(s) + s.timings.promote);
    let says = vec![
        format!("{to} streams from {old}, lacks {} bytes, and may be granted the lock", lag_bytes.unwrap_or(0)),
        format!(
            "{old} flushes by a checkpoint; routers then hold new connections, and {old} is stopped with its lease kept"
        ),
        format!("the lock goes to {to} when {to} has all WAL of {old}: nothing that was committed is lost"),
        format!("{old} is started again as a standby"),
        format!(
            "rolled back when {old} is not stopped, and {to} not caught up, within {:.0} s",
            stop_limit(s).as_secs_f64()
        ),
    ];
    Rehearsal { from, to, says, lag_bytes, at_most }
}

fn forced(s: &Situation<'_>, (_, from, to): Begins) -> Rehearsal {
    let (lag_bytes, old) = (lag(s, from.as_ref(), &to), named(from.as_ref()));
    let lost = s.agent(&to).map_or_else(|| "nobody knows".to_owned(), |agent| loss::of(s, agent.wal_end).to_string());
    let says = vec![
        format!("{to} answers and can be promoted"),
        format!("the epoch of {old} ends at once, without its help; {to} is granted the next one"),
        format!("lost with {old}: {lost}"),
    ];
    Rehearsal { from, to, says, lag_bytes, at_most: s.timings.promote + s.timings.grant }
}

fn restarted(s: &Situation<'_>, (_, from, to): Begins) -> Rehearsal {
    let of_primary = from.as_ref() == Some(&to);
    let (says, at_most) = match of_primary {
        true => (
            vec![
                format!("{to} is open as primary and holds its lease"),
                format!("{to} flushes by a checkpoint; routers then hold new connections"),
                format!(
                    "PostgreSQL of {to} is stopped and started again under its lease: its sessions end, writes wait, and {to} stays primary"
                ),
            ],
            stop_limit(s) + s.timings.primary_start,
        ),
        false => (
            vec![
                format!("{to} is a standby, and commits don't need it, or can't be had without it anyway"),
                format!("PostgreSQL of {to} is stopped and started again: its sessions end, writes go on"),
            ],
            Duration::ZERO,
        ),
    };
    Rehearsal { from, to, says, lag_bytes: None, at_most }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::Format,
        policy::testing::{Bench, id},
    };

    fn bench() -> Bench {
        let mut bench = Bench::new("granted a open 2")
            .says("a", "primary 2:90 lease=1")
            .says("b", "standby 2:80 upstream=a")
            .says("c", "standby 2:90 upstream=a");
        for member in ["a", "b", "c"] {
            bench.seen.get_mut(&id(member)).unwrap().format = Format::NEWEST;
        }
        bench
    }

    #[test]
    fn it_says_what_would_be_done_and_refuses_what_would_be_refused() {
        let bench = bench();
        let s = bench.situation();
        let moved = of(&s, OperationKind::Switchover, (None, Some(&id("b"))), false).unwrap();
        assert_eq!((moved.from, moved.to, moved.lag_bytes), (Some(id("a")), id("b"), Some(10)));
        assert!(moved.says[0].contains("lacks 10 bytes") && moved.at_most > Duration::from_secs(1), "{:?}", moved.says);
        let best = of(&s, OperationKind::Switchover, (Some(&id("a")), None), false).unwrap();
        assert_eq!((best.to, best.lag_bytes), (id("c"), Some(0)));
        let refused = of(&s, OperationKind::Switchover, (Some(&id("b")), None), false).unwrap_err();
        assert_eq!(refused, "a is primary, not b");

        let lossy = of(&s, OperationKind::Failover, (None, Some(&id("b"))), false).unwrap_err();
        assert!(lossy.contains("--allow-data-loss"), "{lossy}");
        let forced = of(&s, OperationKind::Failover, (None, Some(&id("b"))), true).unwrap();
        assert!(forced.says[2].starts_with("lost with a: "), "{:?}", forced.says);

        let mut copying = self::bench();
        let operation = crate::policy::testing::state("granted a open 2; reinit c copy").operation;
        copying.state.operation = operation;
        let moved = of(&copying.situation(), OperationKind::Switchover, (None, Some(&id("b"))), false).unwrap();
        assert_eq!(moved.says[0], "operation 1, which copies c anew, is given up");

        let standby = of(&s, OperationKind::Restart, (None, Some(&id("b"))), false).unwrap();
        assert_eq!(standby.at_most, Duration::ZERO);
        let primary = of(&s, OperationKind::Restart, (None, Some(&id("a"))), false).unwrap();
        assert!(primary.at_most > Duration::ZERO && primary.says[2].contains("stays primary"));
        assert!(of(&s, OperationKind::Restart, (None, Some(&id("x"))), false).unwrap_err().contains("no member"));
    }
}
