//! Free space under PostgreSQL: what is there, and how far it is from the end.

use std::{fmt, str::FromStr, time::Duration};

/// A least of free space: a share of the volume, or bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Least {
    /// So many hundredths of the volume.
    Percent(u8),
    /// So many bytes.
    Bytes(u64),
}

impl Least {
    /// In bytes, of a volume of this size.
    pub fn of(self, size: u64) -> u64 {
        match self {
            Least::Percent(share) => size / 100 * u64::from(share),
            Least::Bytes(bytes) => bytes,
        }
    }
}

const UNITS: [(&str, u64); 4] = [("kB", 1 << 10), ("MB", 1 << 20), ("GB", 1 << 30), ("TB", 1 << 40)];

impl FromStr for Least {
    type Err = String;

    /// `5%`, or bytes, with the units of PostgreSQL (`kB`, `MB`, `GB`, `TB`) or none.
    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || "a share of the volume from 0% to 90%, or bytes (kB, MB, GB, TB)".to_owned();
        if let Some(share) = text.strip_suffix('%') {
            return share.parse().ok().filter(|s| *s <= 90).map(Least::Percent).ok_or_else(wanted);
        }
        let unit = UNITS.iter().find_map(|(name, bytes)| Some((text.strip_suffix(name)?, *bytes)));
        let (number, unit) = unit.unwrap_or((text, 1));
        let bytes = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
        bytes.map(Least::Bytes).ok_or_else(wanted)
    }
}

/// As it is read.
impl fmt::Display for Least {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Least::Percent(share) => write!(f, "{share}%"),
            Least::Bytes(bytes) => {
                let unit = UNITS.iter().rev().find(|(_, unit)| *bytes > 0 && bytes % unit == 0);
                match unit {
                    Some((name, unit)) => write!(f, "{}{name}", bytes / unit),
                    None => write!(f, "{bytes}"),
                }
            }
        }
    }
}

/// How near the end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Level {
    /// There is room.
    #[default]
    Fine,
    /// Below the first threshold: people should look, and nobody moves a primary to here.
    Low,
    /// Below the second: a primary should be elsewhere.
    Short,
}

/// Both thresholds of one volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Below this it is [`Level::Low`] …
    pub warn: Least,
    /// … and below this [`Level::Short`].
    pub act: Least,
}

impl Thresholds {
    /// The level of a volume.
    pub fn level(&self, free: u64, size: u64) -> Level {
        if free < self.act.of(size) {
            Level::Short
        } else if free < self.warn.of(size) {
            Level::Low
        } else {
            Level::Fine
        }
    }
}

/// One volume as its agent judges it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Volume {
    /// Bytes that PostgreSQL can still write.
    pub free: u64,
    /// Bytes in all.
    pub size: u64,
    /// The verdict.
    pub level: Level,
    /// Bytes kept in a file of no content, to be freed when nothing else is left.
    pub reserve: u64,
    /// The reserve was freed, and there has been no room to make it again.
    pub spent: bool,
    /// By so many bytes a second it filled up lately; 0: it did not, by no more than segments come and go, or it is not known yet.
    pub filling: u64,
}

/// A volume that is full this soon is told of, however much room it still has.
const SOON: Duration = Duration::from_secs(3600);
/// What is further off than this is nothing to go by.
const FORESEEN: Duration = Duration::from_secs(7 * 86_400);

impl Volume {
    /// A primary should be elsewhere.
    pub fn is_short(&self) -> bool {
        self.level == Level::Short || self.spent
    }

    /// When it is full if it goes on so, without what is kept back; `None`: it doesn't fill up, or not within a week.
    pub fn full_in(&self) -> Option<Duration> {
        self.free.checked_div(self.filling).map(Duration::from_secs).filter(|left| *left <= FORESEEN)
    }

    /// It is full soon if it goes on so.
    pub fn is_full_soon(&self) -> bool {
        self.full_in().is_some_and(|left| left < SOON)
    }

    /// There is room for a primary to move to.
    pub fn is_fine(&self) -> bool {
        self.level == Level::Fine && !self.spent
    }
}

impl fmt::Display for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} MiB free", self.free >> 20, self.size >> 20)?;
        if self.spent {
            f.write_str(", the reserve is used")?;
        }
        if let Some(left) = self.full_in() {
            write!(f, ", full in {} at {}", about(left), per_second(self.filling))?;
        }
        Ok(())
    }
}

/// `40 s`, `25 min`, `7 h`, `3 days`.
pub fn about(time: Duration) -> String {
    match time.as_secs() {
        s @ ..120 => format!("{s} s"),
        s @ ..7_200 => format!("{} min", s / 60),
        s @ ..172_800 => format!("{} h", s / 3_600),
        s => format!("{} days", s / 86_400),
    }
}

/// `12.3 MiB/s`.
pub fn per_second(bytes: u64) -> String {
    format!("{:.1} MiB/s", bytes as f64 / f64::from(1 << 20))
}

/// The volumes of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct RoomView {
    /// That of the data directory.
    pub data: Volume,
    /// That of `pg_wal`, when it is another one.
    pub wal: Option<Volume>,
    /// So many bytes of WAL a second its PostgreSQL wrote or received lately; 0: none, or it is not known yet.
    pub written: u64,
}

impl RoomView {
    /// The volume that WAL is written to.
    pub fn of_wal(&self) -> &Volume {
        self.wal.as_ref().unwrap_or(&self.data)
    }

    /// A primary here could move on to nowhere soon.
    pub fn is_short(&self) -> bool {
        self.data.is_short() || self.of_wal().is_short()
    }

    /// A primary may move to here.
    pub fn is_fine(&self) -> bool {
        self.data.is_fine() && self.of_wal().is_fine()
    }

    /// What people should know of it, one text for each volume that is not fine or won't be soon.
    pub fn complaints(&self) -> Vec<String> {
        let data = if self.wal.is_some() { "data volume" } else { "volume of data and WAL" };
        let volumes = [(data, Some(&self.data)), ("WAL volume", self.wal.as_ref())];
        let complaint = |(name, volume): (&str, Option<&Volume>)| {
            let volume = volume.filter(|v| !v.is_fine() || v.is_full_soon())?;
            let level = match (volume.is_short(), volume.is_fine()) {
                (true, _) => "is nearly full",
                (false, false) => "fills up",
                (false, true) => "will be full soon",
            };
            Some(format!("its {name} {level}: {volume}"))
        };
        volumes.into_iter().filter_map(complaint).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_least_is_written_as_it_is_read() {
        for (text, least, again) in [
            ("5%", Least::Percent(5), "5%"),
            ("0%", Least::Percent(0), "0%"),
            ("0", Least::Bytes(0), "0"),
            ("1000", Least::Bytes(1000), "1000"),
            ("1024MB", Least::Bytes(1 << 30), "1GB"),
            ("96MB", Least::Bytes(96 << 20), "96MB"),
        ] {
            assert_eq!(text.parse(), Ok(least));
            assert_eq!(least.to_string(), again);
            assert_eq!(again.parse(), Ok(least));
        }
        for odd in ["", "%", "91%", "-1", "5 %", "5MiB", "99999999999TB", "MB"] {
            assert!(odd.parse::<Least>().is_err(), "{odd}");
        }
    }

    #[test]
    fn a_level_is_left_where_it_was_entered() {
        let thresholds = Thresholds { warn: Least::Percent(10), act: Least::Bytes(30) };
        let level = |free| thresholds.level(free, 1_000);
        assert_eq!(
            [level(0), level(29), level(30), level(99), level(100)],
            [Level::Short, Level::Short, Level::Low, Level::Low, Level::Fine]
        );
    }

    #[test]
    fn each_volume_that_is_not_fine_is_named() {
        let size = 1 << 30;
        let volume = |free: u64, level, spent| Volume { free: free << 20, size, level, spent, ..Volume::default() };
        let mut room = RoomView { data: volume(500, Level::Fine, false), ..RoomView::default() };
        assert!(room.is_fine() && !room.is_short() && room.complaints().is_empty());
        room.wal = Some(volume(70, Level::Low, false));
        assert!(!room.is_fine() && !room.is_short());
        assert_eq!(room.complaints(), ["its WAL volume fills up: 70 of 1024 MiB free"]);
        room.wal = Some(volume(90, Level::Low, true));
        assert!(room.is_short(), "what is left of it is what was the reserve");
        assert_eq!(room.complaints(), ["its WAL volume is nearly full: 90 of 1024 MiB free, the reserve is used"]);
    }

    #[test]
    fn a_volume_that_will_be_full_within_the_hour_is_named_while_it_has_room() {
        let filling = |mib_per_minute: u64| {
            let filling = (mib_per_minute << 20) / 60;
            let data = Volume { free: 600 << 20, size: 1 << 30, filling, ..Volume::default() };
            RoomView { data, ..RoomView::default() }
        };
        assert_eq!(filling(9).complaints(), [""; 0]);
        let soon = filling(30);
        assert!(soon.is_fine() && !soon.is_short(), "it is told, nobody moves for it");
        let text = "its volume of data and WAL will be full soon: 600 of 1024 MiB free, full in 20 min at 0.5 MiB/s";
        assert_eq!(soon.complaints(), [text]);
        let full_in = |free, filling| Volume { free, filling, ..Volume::default() }.full_in();
        assert_eq!((full_in(0, 0), full_in(0, 5)), (None, Some(Duration::ZERO)));
        assert_eq!((full_in(604_800, 1), full_in(604_801, 1)), (Some(FORESEEN), None));
    }

    #[test]
    fn times_are_told_in_the_unit_they_are_worth() {
        let told = [119, 120, 7_199, 7_200, 172_799, 172_800].map(|s| about(Duration::from_secs(s)));
        assert_eq!(told, ["119 s", "2 min", "119 min", "2 h", "47 h", "2 days"]);
    }
}
