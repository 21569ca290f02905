//! From where on something is a warning, and from where on critical.

use super::super::super::args::views::Subject;

/// A limit in the unit it was given in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Limit {
    Bytes(u64),
    Millis(u64),
    /// Of 100.
    Percent(f64),
}

/// What was given, or the defaults.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Limits {
    pub(super) warning: Option<Limit>,
    pub(super) critical: Option<Limit>,
}

const UNITS: [(&str, u64, bool); 9] = [
    // Bytes as PostgreSQL counts them, and times in milliseconds.
    ("kB", 1 << 10, true),
    ("MB", 1 << 20, true),
    ("GB", 1 << 30, true),
    ("TB", 1 << 40, true),
    ("ms", 1, false),
    ("min", 60_000, false),
    ("h", 3_600_000, false),
    ("s", 1_000, false),
    ("B", 1, true),
];

impl Limits {
    /// Of what was typed. What is said is for the one who typed it.
    pub(super) fn of(what: Subject, warning: Option<&str>, critical: Option<&str>) -> Result<Limits, String> {
        let limit = |flag: &str, text: Option<&str>| {
            text.map(|text| parse(what, text).map_err(|problem| format!("{flag} {text}: {problem}"))).transpose()
        };
        let limits = Limits { warning: limit("--warning", warning)?, critical: limit("--critical", critical)? };
        if let (Some(warning), Some(critical)) = (limits.warning, limits.critical) {
            let (low, high, percent) = match (warning, critical) {
                (Limit::Bytes(w), Limit::Bytes(c)) | (Limit::Millis(w), Limit::Millis(c)) => {
                    (w as f64, c as f64, false)
                }
                (Limit::Percent(w), Limit::Percent(c)) => (c, w, true),
                _ => return Err("--warning and --critical are to be of one unit, both bytes or both a time".to_owned()),
            };
            if low > high {
                let least = if percent { "below" } else { "above" };
                return Err(format!("--critical is to be {least} --warning: what is critical is worse"));
            }
        }
        Ok(limits)
    }
}

fn parse(what: Subject, text: &str) -> Result<Limit, String> {
    let limit = match what {
        Subject::Lag | Subject::Slots => amount(text, true),
        Subject::Archive => amount(text, false),
        Subject::Disk => {
            text.trim_end_matches('%').parse::<f64>().ok().filter(|p| (0.0..=100.0).contains(p)).map(Limit::Percent)
        }
        Subject::Quorum | Subject::Role | Subject::Lease | Subject::Sync | Subject::All => {
            return Err("only lag, slots, archive and disk take limits, one check at a time".to_owned());
        }
    };
    let fits = |limit: &Limit| match (what, limit) {
        (Subject::Slots, limit) => matches!(limit, Limit::Bytes(_)),
        (Subject::Archive, limit) => matches!(limit, Limit::Millis(_)),
        _ => true,
    };
    limit.filter(fits).ok_or_else(|| {
        match what {
            Subject::Disk => "write percent that are free, e.g. 20",
            Subject::Archive => "write seconds, e.g. 300, or a time, e.g. 5min",
            Subject::Slots => "write bytes, e.g. 16MB",
            _ => "write bytes, e.g. 16MB, or a time, e.g. 30s",
        }
        .to_owned()
    })
}

/// A number with a unit; without one it is of bytes, or of seconds.
fn amount(text: &str, bytes: bool) -> Option<Limit> {
    let found = UNITS.iter().find_map(|(unit, factor, bytes)| Some((text.strip_suffix(unit)?, *factor, *bytes)));
    let (number, factor, bytes) = found.unwrap_or((text, if bytes { 1 } else { 1_000 }, bytes));
    let value = number.trim().parse::<u64>().ok()?.checked_mul(factor)?;
    Some(if bytes { Limit::Bytes(value) } else { Limit::Millis(value) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_has_the_unit_of_what_is_checked() {
        let of = |what, text| parse(what, text).ok();
        assert_eq!(of(Subject::Lag, "16MB"), Some(Limit::Bytes(16 << 20)));
        assert_eq!(of(Subject::Lag, "512"), Some(Limit::Bytes(512)));
        assert_eq!(of(Subject::Lag, "90s"), Some(Limit::Millis(90_000)));
        assert_eq!(of(Subject::Lag, "5min"), Some(Limit::Millis(300_000)));
        assert_eq!(of(Subject::Archive, "300"), Some(Limit::Millis(300_000)));
        assert_eq!(of(Subject::Archive, "16MB"), None);
        assert_eq!(of(Subject::Slots, "30s"), None);
        assert_eq!(of(Subject::Disk, "20%"), Some(Limit::Percent(20.0)));
        for (what, wrong) in [(Subject::Disk, "120"), (Subject::Lag, "-3"), (Subject::Lag, ""), (Subject::Quorum, "2")]
        {
            assert_eq!(of(what, wrong), None, "{wrong}");
        }
    }

    #[test]
    fn critical_is_worse_than_warning() {
        let of = |what, warning, critical| Limits::of(what, Some(warning), Some(critical));
        assert!(of(Subject::Lag, "1MB", "2MB").is_ok());
        assert!(of(Subject::Lag, "2MB", "1MB").unwrap_err().contains("above"));
        assert!(of(Subject::Lag, "2MB", "10s").unwrap_err().contains("one unit"));
        assert!(of(Subject::Disk, "20", "10").is_ok());
        assert!(of(Subject::Disk, "10", "20").unwrap_err().contains("below"));
        assert!(of(Subject::All, "10", "20").unwrap_err().contains("one check at a time"));
    }
}
