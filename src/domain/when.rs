//! Times that people write and read: of a schedule, in UTC or with the offset to it.

use time::{Duration as Span, OffsetDateTime, format_description::well_known::Rfc3339};

/// What is no time, and how one is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoTime {
    /// It says no offset to UTC: the same text is another moment elsewhere.
    NoZone,
    /// It can't be read.
    Unreadable,
}

/// `2026-11-28T15:00:00Z`, from milliseconds since 1970; nothing for 0.
pub fn utc(ms: u64) -> String {
    if ms == 0 {
        return String::new();
    }
    // What stands in the log is shown whatever it is: a time that no calendar has must not end whoever reads it.
    let at =
        OffsetDateTime::UNIX_EPOCH.checked_add(Span::milliseconds(i64::try_from(ms - ms % 1_000).unwrap_or(i64::MAX)));
    at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| format!("{ms} ms after 1970"))
}

/// Milliseconds since 1970 of `now`, `2026-11-28T15:00:00+01:00`, `2026-11-28 15:00 +01` and the like.
///
/// # Errors
/// A text that is no time of this century, or says no offset to UTC.
pub fn parse(text: &str, now_ms: u64) -> Result<u64, NoTime> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("now") {
        return Ok(now_ms);
    }
    let (date, rest) = text.split_at_checked(10).ok_or(NoTime::Unreadable)?;
    let rest = rest.strip_prefix(['T', 't', ' ']).ok_or(NoTime::Unreadable)?;
    let ends = rest.find(|c: char| !(c.is_ascii_digit() || c == ':' || c == '.')).unwrap_or(rest.len());
    let (clock, zone) = rest.split_at(ends);
    let zone = zone.trim();
    let colons = clock.matches(':').count();
    if zone.is_empty() {
        return Err(if colons > 0 { NoTime::NoZone } else { NoTime::Unreadable });
    }
    let seconds = if colons == 1 { ":00" } else { "" };
    let whole = format!("{date}T{clock}{seconds}{}", offset(zone).ok_or(NoTime::Unreadable)?);
    let at = OffsetDateTime::parse(&whole, &Rfc3339).map_err(|_| NoTime::Unreadable)?;
    u64::try_from(at.unix_timestamp_nanos() / 1_000_000).map_err(|_| NoTime::Unreadable)
}

/// `Z`, `UTC`, `+01`, `+0100` or `+01:00`, as RFC 3339 has it.
fn offset(zone: &str) -> Option<String> {
    if ["z", "utc", "gmt"].contains(&zone.to_ascii_lowercase().as_str()) {
        return Some("Z".to_owned());
    }
    let digits = zone.strip_prefix(['+', '-'])?;
    let sign = zone.get(..1)?;
    let all_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    Some(match digits.len() {
        2 if all_digits(digits) => format!("{sign}{digits}:00"),
        4 if all_digits(digits) => format!("{sign}{}:{}", &digits[..2], &digits[2..]),
        _ => format!("{sign}{digits}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_with_its_offset_and_never_without() {
        let at = Ok(1_795_878_000_000);
        for text in [
            "2026-11-28T15:00:00Z",
            "2026-11-28T16:00:00+01:00",
            "2026-11-28 16:00+01",
            "2026-11-28 16:00:00 +0100",
            "2026-11-28t13:00:00.000-02:00",
            " 2026-11-28 15:00 UTC ",
        ] {
            assert_eq!(parse(text, 0), at, "{text}");
        }
        assert_eq!((parse("now", 7), parse("NOW", 8)), (Ok(7), Ok(8)));
        for text in ["2026-11-28T15:00:00", "2026-11-28 15:00"] {
            assert_eq!(parse(text, 0), Err(NoTime::NoZone), "{text}");
        }
        for text in [
            "",
            "tomorrow",
            "2026-11-28",
            "15:00Z",
            "2026-13-28T15:00:00Z",
            "2026-11-28T15:00:00+1",
            "2026-11-28 15 Z",
            "1950-01-01T00:00Z",
            "20é6-11-28T1",
        ] {
            assert_eq!(parse(text, 0), Err(NoTime::Unreadable), "{text}");
        }
    }

    #[test]
    fn it_is_written_in_utc() {
        assert_eq!(utc(1_795_878_000_999), "2026-11-28T15:00:00Z");
        assert_eq!(utc(0), "");
        for far in [u64::MAX, u64::MAX / 2, 253_402_300_800_000] {
            assert_eq!(utc(far), format!("{far} ms after 1970"));
        }
    }
}
