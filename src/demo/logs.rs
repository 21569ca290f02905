//! Moments from the processes' log files (JSON, one object a line). They are
//! exact where polling is late by its period.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::phases::Marks;
use crate::telemetry::events;

/// A run writes far less than this.
const TAIL_BYTES: u64 = 4 << 20;

/// An event and when it was logged, since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Logged {
    at: Duration,
    event: String,
}

/// The events at the end of a log file; none when it can't be read.
pub(crate) fn events_of(file: &Path) -> Vec<Logged> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(file)?;
        let start = file.metadata()?.len().saturating_sub(TAIL_BYTES);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).lines().filter_map(parse).collect()
}

fn parse(line: &str) -> Option<Logged> {
    let value: serde_json::Value = serde_json::from_str(line).ok()?;
    Some(Logged { at: moment(value.get("timestamp")?.as_str()?)?, event: value.get("event")?.as_str()?.to_owned() })
}

/// `2026-11-22T14:02:27.123456Z`, since 1970.
fn moment(text: &str) -> Option<Duration> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|n| n.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut time = time.splitn(3, ':');
    let (hour, minute): (i64, i64) = (time.next()?.parse().ok()?, time.next()?.parse().ok()?);
    let seconds: f64 = time.next()?.parse().ok()?;
    let whole = days_since_1970(year, month, day) * 86_400 + hour * 3_600 + minute * 60;
    Some(Duration::from_secs(u64::try_from(whole).ok()?) + Duration::try_from_secs_f64(seconds).ok()?)
}

/// Gregorian; years are taken to begin in March, so that leap days come last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    365 * y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (153 * m + 2) / 5 + day - 1 - 719_468
}

/// The marks that the managers' logs give for a recovery after `fault`.
pub(crate) fn marks(logged: &[Logged], fault: SystemTime) -> Marks {
    let fault = fault.duration_since(UNIX_EPOCH).unwrap_or_default();
    let first = |names: &[&str]| {
        let after = logged.iter().filter(|l| l.at >= fault && names.contains(&l.event.as_str()));
        after.map(|l| l.at - fault).min()
    };
    Marks {
        suspected: first(&[events::HOLD, events::POSTGRES_CRASHED, events::LEASE_LOST, events::OPERATION_STARTED]),
        fenced: first(&[events::EPOCH_FENCED, events::RELEASED]),
        granted: first(&[events::GRANTED]),
        promoted: first(&[events::PRIMARY_CHANGED]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        let check = |text, seconds: f64| {
            assert!((moment(text).unwrap().as_secs_f64() - seconds).abs() < 1e-5, "{text}");
        };
        check("1970-01-01T00:00:00Z", 0.0);
        check("2000-03-01T00:00:00.5Z", 951_868_800.5);
        check("2024-02-29T12:30:01.123456Z", 1_709_209_801.123_456);
        assert_eq!(moment("yesterday"), None);
    }

    #[test]
    fn marks_are_the_first_events_after_the_fault() {
        let lines = [
            r#"{"timestamp":"2026-01-01T00:00:01.000000Z","level":"INFO","event":"epoch.granted","epoch":1}"#,
            "thread panicked, or some other text",
            r#"{"timestamp":"2026-01-01T00:00:12.500000Z","level":"INFO","event":"epoch.fenced","epoch":2}"#,
            r#"{"timestamp":"2026-01-01T00:00:12.600000Z","level":"INFO","event":"epoch.granted","epoch":2}"#,
            r#"{"timestamp":"2026-01-01T00:00:12.550000Z","level":"INFO","event":"epoch.granted","epoch":2}"#,
        ];
        let logged: Vec<Logged> = lines.iter().filter_map(|l| parse(l)).collect();
        let fault = UNIX_EPOCH + moment("2026-01-01T00:00:11Z").unwrap();
        let ms = |n| Some(Duration::from_millis(n));
        let expected = Marks { suspected: None, fenced: ms(1500), granted: ms(1550), promoted: None };
        assert_eq!(marks(&logged, fault), expected);
    }
}
