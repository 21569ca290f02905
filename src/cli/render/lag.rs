//! How far a standby is behind, as text and as JSON.

use serde::Serialize;

use crate::rpc::v1::{Lag, MemberStatus};

/// What is not flushed, and what is not replayed: bytes of WAL, and seconds.
pub(super) fn cells(member: &MemberStatus) -> [String; 2] {
    if member.role == "primary" {
        return [String::new(), String::new()];
    }
    // A manager of an older version tells of replay alone, and no time.
    let replayed = member.lag_known.then(|| member.replayed.unwrap_or(Lag { bytes: member.lag_bytes, ms: None }));
    [cell(member.flushed.filter(|_| member.lag_known)), cell(replayed)]
}

fn cell(lag: Option<Lag>) -> String {
    match lag {
        None => "?".to_owned(),
        Some(Lag { bytes: 0, .. }) => "0".to_owned(),
        Some(Lag { bytes, ms: Some(ms) }) => format!("{} {}.{} s", amount(bytes), ms / 1_000, ms % 1_000 / 100),
        Some(Lag { bytes, ms: None }) => format!("{} ? s", amount(bytes)),
    }
}

fn amount(bytes: u64) -> String {
    match bytes {
        0..100_000 => format!("{bytes} B"),
        100_000..100_000_000 => format!("{} kB", bytes / 1_000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

/// The same for programs. Milliseconds are absent when nobody knows.
#[derive(Serialize)]
pub(super) struct LagJson {
    flushed_bytes: u64,
    flushed_ms: Option<u64>,
    replayed_bytes: u64,
    replayed_ms: Option<u64>,
}

/// `None`: not a standby, or not known.
pub(super) fn json(member: &MemberStatus) -> Option<LagJson> {
    let (flushed, replayed) = (member.flushed?, member.replayed?);
    member.lag_known.then_some(LagJson {
        flushed_bytes: flushed.bytes,
        flushed_ms: flushed.ms,
        replayed_bytes: replayed.bytes,
        replayed_ms: replayed.ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lag_has_bytes_and_seconds_and_nothing_missing_is_nothing() {
        let standby = |flushed, replayed| MemberStatus {
            role: "standby".to_owned(),
            lag_known: true,
            flushed,
            replayed,
            ..MemberStatus::default()
        };
        let lag = |bytes, ms| Some(Lag { bytes, ms });
        let cells = |member: MemberStatus| cells(&member);
        assert_eq!(cells(standby(lag(0, Some(0)), lag(328, Some(1_250)))), ["0", "328 B 1.2 s"]);
        assert_eq!(cells(standby(lag(2_345_678, None), lag(0, None))), ["2345 kB ? s", "0"]);
        assert_eq!(cells(MemberStatus { lag_bytes: 9, ..standby(None, None) }), ["?", "9 B ? s"], "an older manager");
        assert_eq!(cells(MemberStatus { lag_known: false, ..standby(lag(1, None), None) }), ["?", "?"]);
        assert_eq!(cells(MemberStatus { role: "primary".to_owned(), ..MemberStatus::default() }), ["", ""]);
    }
}
