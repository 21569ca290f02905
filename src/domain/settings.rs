//! What an operator may change on a running cluster, beside the timings: one
//! document for all hosts, changed by compare-and-set on its version.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use super::{
    CloneCompression, CloneMethods, Timings,
    kept_wal::SlotsYield,
    reader::ReaderFallback,
    room::{Least, Thresholds},
    slots::{IgnoredSlots, PermanentSlot, PermanentSlots},
    sync::{Confirms, SyncMode},
    timings::Contradiction,
};

/// What follows when the primary's PostgreSQL ends by itself while its host is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OnPrimaryCrash {
    /// Restart in place, until the crash budget is spent; then fail over.
    #[default]
    Auto,
    /// Restart in place, however often; fail over only when it does not run again within `primary_start`.
    Restart,
    /// Fail over at once, when a standby streams.
    Failover,
}

impl FromStr for OnPrimaryCrash {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "restart" => Ok(Self::Restart),
            "failover" => Ok(Self::Failover),
            _ => Err("auto, restart or failover".to_owned()),
        }
    }
}

impl fmt::Display for OnPrimaryCrash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Restart => "restart",
            Self::Failover => "failover",
        })
    }
}

/// What a failover from a lost primary waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum FailoverWait {
    /// The end of its lease, by the clocks of a majority of voters.
    #[default]
    Lease,
    /// That enough of the standbys that confirm its commits have promised not to any more.
    Promise,
}

impl FromStr for FailoverWait {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "lease" => Ok(Self::Lease),
            "promise" => Ok(Self::Promise),
            _ => Err("lease or promise".to_owned()),
        }
    }
}

impl fmt::Display for FailoverWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Lease => "lease",
            Self::Promise => "promise",
        })
    }
}

/// What stays of a data directory that went another way than the cluster, after it was rewound or copied anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KeepDiverged {
    /// Nothing.
    None,
    /// What only it had, of the last time.
    #[default]
    Last,
    /// The same of every time.
    All,
}

impl FromStr for KeepDiverged {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "last" => Ok(Self::Last),
            "all" => Ok(Self::All),
            _ => Err("none, last or all".to_owned()),
        }
    }
}

impl fmt::Display for KeepDiverged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::Last => "last",
            Self::All => "all",
        })
    }
}

/// How many bytes of the last primary's WAL its successor may lack; `None`: that is not asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct MaximumLag(pub Option<u64>);

/// Whether the next primary has to be at the site of the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SiteFailover {
    /// Sites don't count.
    #[default]
    Any,
    /// Whoever is at that site is taken first, also with less WAL; somebody else when nobody there can.
    Prefer,
    /// Nobody else without an operator's word.
    Same,
}

impl FromStr for SiteFailover {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "any" => Ok(Self::Any),
            "prefer" => Ok(Self::Prefer),
            "same" => Ok(Self::Same),
            _ => Err("any, prefer or same".to_owned()),
        }
    }
}

impl fmt::Display for SiteFailover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Any => "any",
            Self::Prefer => "prefer",
            Self::Same => "same",
        })
    }
}

/// A key that is none, or a value that it can't have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSetting {
    /// There is no such key.
    #[error("`{0}` is no setting")]
    Unknown(String),
    /// The key can't have this value.
    #[error("{key} = `{value}` is not possible: {wanted}")]
    Value {
        /// The key.
        key: &'static str,
        /// What was given.
        value: String,
        /// What it may be.
        wanted: String,
    },
}

/// A text and back, within limits.
trait Setting: Sized {
    fn read(text: &str, least: u64, most: u64) -> Result<Self, String>;
    fn write(&self) -> String;
}

impl Setting for OnPrimaryCrash {
    fn read(text: &str, _: u64, _: u64) -> Result<Self, String> {
        text.parse()
    }
    fn write(&self) -> String {
        self.to_string()
    }
}

impl Setting for u32 {
    fn read(text: &str, least: u64, most: u64) -> Result<Self, String> {
        let number = text.parse().ok().filter(|n| (least..=most).contains(&u64::from(*n)));
        number.ok_or_else(|| format!("a whole number from {least} to {most}"))
    }
    fn write(&self) -> String {
        self.to_string()
    }
}

impl Setting for bool {
    fn read(text: &str, _: u64, _: u64) -> Result<Self, String> {
        text.parse().map_err(|_| "true or false".to_owned())
    }
    fn write(&self) -> String {
        self.to_string()
    }
}

/// One line for people, so many characters long.
impl Setting for String {
    fn read(text: &str, least: u64, most: u64) -> Result<Self, String> {
        let fits = (least..=most).contains(&(text.chars().count() as u64)) && !text.chars().any(char::is_control);
        fits.then(|| text.to_owned()).ok_or_else(|| format!("a text of {least} to {most} characters"))
    }
    fn write(&self) -> String {
        self.clone()
    }
}

impl Setting for FailoverWait {
    fn read(text: &str, _: u64, _: u64) -> Result<Self, String> {
        text.parse()
    }
    fn write(&self) -> String {
        self.to_string()
    }
}

impl Setting for KeepDiverged {
    fn read(text: &str, _: u64, _: u64) -> Result<Self, String> {
        text.parse()
    }
    fn write(&self) -> String {
        self.to_string()
    }
}

impl Setting for CloneCompression {
    fn read(text: &str, _: u64, _: u64) -> Result<Self, String> {
        text.parse()
    }
    fn write(&self) -> String {
        self.to_string()
    }
}

impl Setting for SlotsYield {
    fn read(text: &str, _: u64, _: u64) -> Result<Self, String> {
        text.parse()
    }
    fn write(&self) -> String {
        self.to_string()
    }
}

impl Setting for PermanentSlots {
    fn read(text: &str, _: u64, _: u64) -> Result<Self, String> {
        text.parse()
    }
    fn write(&self) -> String {
        self.to_string()
    }
}

impl Setting for IgnoredSlots {
    fn read(text: &str, _: u64, _: u64) -> Result<Self, String> {
        text.parse()
    }
    fn write(&self) -> String {
        self.to_string()
    }
}

impl Setting for SiteFailover {
    fn read(text: &str, _: u64, _: u64) -> Result<Self, String> {
        text.parse()
    }
    fn write(&self) -> String {
        self.to_string()
    }
}

impl Setting for MaximumLag {
    fn read(text: &str, least: u64, most: u64) -> Result<Self, String> {
        let limit = text.parse().ok().filter(|limit| (least..=most).contains(limit));
        match (text, limit) {
            ("off", _) => Ok(Self(None)),
            (_, Some(limit)) => Ok(Self(Some(limit))),
            (_, None) => Err(format!("off, or a number, {least} to {most}")),
        }
    }
    fn write(&self) -> String {
        self.0.map_or_else(|| "off".to_owned(), |limit| limit.to_string())
    }
}

macro_rules! as_text {
    ($($kind:ty),*) => {
        $(impl Setting for $kind {
            fn read(text: &str, _: u64, _: u64) -> Result<Self, String> {
                text.parse()
            }
            fn write(&self) -> String {
                self.to_string()
            }
        })*
    };
}

as_text!(CloneMethods, SyncMode, Confirms, ReaderFallback);

/// In whole milliseconds.
impl Setting for Duration {
    fn read(text: &str, least: u64, most: u64) -> Result<Self, String> {
        let ms = text.parse().ok().filter(|ms| (least..=most).contains(ms));
        ms.map(Duration::from_millis).ok_or_else(|| format!("milliseconds, {least} to {most}"))
    }
    fn write(&self) -> String {
        self.as_millis().to_string()
    }
}

impl Setting for Least {
    fn read(text: &str, _: u64, _: u64) -> Result<Self, String> {
        text.parse()
    }
    fn write(&self) -> String {
        self.to_string()
    }
}

/// In bytes, with a unit or none.
impl Setting for u64 {
    fn read(text: &str, least: u64, most: u64) -> Result<Self, String> {
        match text.parse() {
            Ok(Least::Bytes(bytes)) if (least..=most).contains(&bytes) => Ok(bytes),
            _ => Err(format!("bytes (kB, MB, GB, TB), {} to {}", Least::Bytes(least), Least::Bytes(most))),
        }
    }
    fn write(&self) -> String {
        Least::Bytes(*self).to_string()
    }
}

macro_rules! settings {
    ($(#[$all:meta])* $name:ident: $($(#[$doc:meta])* $field:ident: $kind:ty = $key:literal, $default:expr, $least:literal..=$most:literal, $help:literal;)*) => {
        $(#[$all])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name {
            $($(#[$doc])* pub $field: $kind,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl $name {
            /// Every key, and one line of what it does.
            pub const KEYS: &[(&str, &str)] = &[$(($key, $help),)*];

            /// Every value under its key.
            pub fn values(&self) -> BTreeMap<&'static str, String> {
                [$(($key, self.$field.write()),)*].into()
            }

            /// Sets the value under `key`.
            ///
            /// # Errors
            /// There is no such key, or it can't have this value; nothing is changed then.
            pub fn set(&mut self, key: &str, value: &str) -> Result<(), BadSetting> {
                match key {
                    $($key => {
                        self.$field = Setting::read(value, $least, $most).map_err(|wanted| BadSetting::Value {
                            key: $key,
                            value: value.to_owned(),
                            wanted,
                        })?;
                    })*
                    _ => return Err(BadSetting::Unknown(key.to_owned())),
                }
                Ok(())
            }
        }
    };
}

settings! {
    /// Every setting of the whole cluster with its value in force.
    Settings:
    /// What follows when the primary's PostgreSQL ends by itself.
    on_primary_crash: OnPrimaryCrash = "on_primary_crash", OnPrimaryCrash::Auto, 0..=0,
        "when the primary's PostgreSQL ends by itself: auto (failed over at once where standbys have every acknowledged \
         commit, else restarted in place within the crash budget), restart (in place however often), failover (at once, if a \
         standby streams). One that does not run again within primary_start is failed over, but not in a pause";
    /// So many crashes of a primary within `crash_window` are answered by a restart in place.
    crash_budget: u32 = "crash_budget", 3, 0..=1000,
        "so many crashes of a primary within crash_window_ms are answered by a restart in place, the next by a failover";
    /// A crash this long ago counts no more.
    crash_window: Duration = "crash_window_ms", Duration::from_secs(60), 1000..=86_400_000,
        "a crash this long ago counts no more";
    /// Recovery or replay that stands still this long is stuck.
    redo_stall: Duration = "redo_stall_ms", Duration::from_secs(10), 1000..=86_400_000,
        "recovery that gets no further for this long (segment, CPU, reads and writes, waits) is ended and begun again; replay that stands still as long is reported";
    /// So many failovers after crashes, one after the other, happen by themselves.
    failover_limit: u32 = "failover_limit", 3, 0..=1000,
        "so many failovers after crashes of PostgreSQL in a row happen by themselves, then it is restarted in place until a primary lasts or \
         somebody acknowledges them; 0: no limit. A lost host is always failed over";
    /// A primary that lasts so long ends such a row.
    failover_calm: Duration = "failover_calm_ms", Duration::from_secs(600), 1000..=86_400_000,
        "a primary that is open this long, without a crash, ends such a row";
    /// So long a planned stop of the primary waits for transactions in progress.
    drain_timeout: Duration = "drain_timeout_ms", Duration::from_millis(500), 0..=10_000,
        "so long a switchover, or a restart of the primary, waits for transactions in progress before PostgreSQL is stopped; routers hold new \
         sessions meanwhile and end those in which nothing is under way. 0: not at all";
    /// What a failover from a lost primary waits for.
    failover_wait: FailoverWait = "failover_wait", FailoverWait::Lease, 0..=0,
        "what a failover from a lost primary waits for: lease (its end), promise (that the standbys which confirm its commits have left it; \
         sooner, but until its lease ends it may show old data, and take commits that don't wait; needs sync_strict=true)";
    /// Whether the next primary has to be at the site of the last one.
    site_failover: SiteFailover = "site_failover", SiteFailover::Any, 0..=0,
        "who follows a primary that is lost: any; prefer (somebody at its site, also with less WAL, if anybody there can); \
         same (nobody else by itself)";
    /// How many bytes of the last primary's WAL its successor may lack.
    maximum_lag_on_failover: MaximumLag = "maximum_lag_on_failover", MaximumLag(None), 0..=1_099_511_627_776,
        "off, or the bytes of a lost primary's WAL that its successor may lack; more, or nobody knows how much: an operator decides";
    /// How long before the last primary's end what its successor lacks may have been written.
    maximum_lag_on_failover_ms: MaximumLag = "maximum_lag_on_failover_ms", MaximumLag(None), 2000..=3_600_000,
        "off, or the time before its end from which a lost primary's WAL may be missing on its successor; all that is older is there. A \
         member that lacks nothing as far as is known may follow anyway; one of unknown age may not";
    /// Less free space where WAL is written is told …
    wal_room_warn: Least = "wal_room_warn", Least::Percent(10), 0..=0,
        "less free space on the volume of WAL is shown, and no primary moves there for want of room: a share (10%) or bytes (5GB)";
    /// … and less than this is acted on.
    wal_room_act: Least = "wal_room_act", Least::Percent(2), 0..=0,
        "with less free space on the volume of WAL the reserve is freed and the primary moves to a standby with room";
    /// Less free space where the data directory is is told …
    data_room_warn: Least = "data_room_warn", Least::Percent(10), 0..=0,
        "less free space on the volume of the data directory is shown, and no primary moves there for want of room";
    /// … and less than this is acted on.
    data_room_act: Least = "data_room_act", Least::Percent(2), 0..=0,
        "with less free space on the volume of the data directory the primary moves to a standby with room";
    /// What is kept back on each volume, to be freed when it is full.
    disk_reserve: u64 = "disk_reserve", 64 << 20, 0..=1_099_511_627_776,
        "bytes kept back in a file on each volume and freed when it is full, so that PostgreSQL can start and stop; 0: none";
    /// So much WAL slots may hold back on a host.
    slot_wal_max: Least = "slot_wal_max", Least::Percent(20), 0..=0,
        "so much WAL each slot may hold back: a share of the volume of WAL (20%) or bytes (5GB); PostgreSQL has it as \
         max_slot_wal_keep_size, where postgresql.parameters doesn't say otherwise";
    /// Whose slots are given up when the volume of WAL is nearly full.
    slots_yield: SlotsYield = "slots_yield", SlotsYield::Members, 0..=0,
        "whose slots that nobody streams from are given up below wal_room_act, before the primary moves: members (they are \
         made anew), all (members' first, then everybody else's are dropped), none";
    /// Slots of users that survive a failover.
    permanent_slots: PermanentSlots = "permanent_slots", PermanentSlots::default(), 0..=0,
        "slots that every member has which may become primary, so that they survive a failover: NAME (physical) or \
         NAME:DATABASE:PLUGIN (logical, PostgreSQL 17 and newer), with commas between them";
    /// Slots that are somebody else's business.
    ignore_slots: IgnoredSlots = "ignore_slots", IgnoredSlots::default(), 0..=0,
        "slots that are never made, dropped, changed or told of as idle: any of name=, type=physical or logical, database=, plugin=, \
         with commas between the matchers; members' slots are never among them";
    /// What stays of a data directory that went another way than the cluster.
    keep_diverged_data: KeepDiverged = "keep_diverged_data", KeepDiverged::Last, 0..=0,
        "what stays of a data directory that went another way than the cluster and was rewound or copied anew: none; last (the WAL that \
         only it had, and the directory that a copy replaced, of the last time); all (of every time). Directories go when their \
         volume is below data_room_warn";
    /// So long a successor waits for WAL that only its crashed predecessor has.
    wal_rescue: Duration = "wal_rescue_ms", Duration::from_secs(1), 0..=600_000,
        "so long the successor of a primary whose PostgreSQL crashed may take to get the WAL from its host that nobody else has, before it is \
         promoted; 0: it doesn't ask";
    /// So much of it at most.
    wal_rescue_max: u64 = "wal_rescue_max", 256 << 20, 0..=1_099_511_627_776,
        "so much WAL at most is fetched so; what is beyond that is lost as without it";
    /// So fast a copy of a member is made at most.
    clone_rate: u64 = "clone_rate", 0, 0..=1_073_741_824,
        "bytes a second that a copy of a data directory takes from its source at most (pg_basebackup --max-rate, 32kB to 1GB); 0: no limit";
    /// How it is compressed on its way.
    clone_compression: CloneCompression = "clone_compression", CloneCompression::None, 0..=0,
        "how a copy is compressed on its way (by the server it comes from, PostgreSQL 15 and later): none, lz4, zstd or gzip; worth it where the network is slower \
         than about 1 Gbit/s. After a copy that failed the next is not compressed";
    /// How a copy of a data directory is made: each is tried when the one before failed.
    clone_methods: CloneMethods = "clone_methods", CloneMethods::default(), 0..=0,
        "how a copy of a data directory is made, one after the other until one succeeds: basebackup (from a standby or the primary), \
         pgbackrest (the newest fitting backup), command (clone_command)";
    /// What makes a copy, for the method `command`.
    clone_command: String = "clone_command", String::new(), 0..=1000,
        "shell command that makes a copy of another member in $MATRIARCH_DIRECTORY, for clone_methods; passwords don't belong in here";
    /// So long it may take.
    clone_command_limit: Duration = "clone_command_ms", Duration::from_secs(24 * 3600), 1000..=604_800_000,
        "so long clone_command may take, then it is killed with its children, and the next method is tried";
    /// What archives a file of WAL.
    archive_command: String = "archive_command", String::new(), 0..=1000,
        "shell command with which the primary archives a file of WAL (%p its path, %f its name), as in PostgreSQL; it runs under the lease \
         only. Empty: that of the host's file. Whether anything is archived at all changes with a restart of PostgreSQL";
    /// What gets one back.
    restore_command: String = "restore_command", String::new(), 0..=1000,
        "shell command with which a standby gets a file of WAL (%f its name, %p where to) that its primary has removed. Empty: that of the \
         host's file";
    /// So long either may take for one file.
    archive_command_limit: Duration = "archive_command_ms", Duration::from_secs(300), 1000..=86_400_000,
        "so long archive_command may take for one file, then it is killed with its children and counts as failed; restore_command: as long, and 15 s \
         at most, for a standby asks the archive before it streams";
    /// So long a standby looks in the archive for what its primary has removed.
    archive_wait: Duration = "archive_wait_ms", Duration::from_secs(60), 10_000..=86_400_000,
        "so long a standby whose WAL the primary has removed, and that gets no further, looks for it in the archive before it is copied anew";
    /// More WAL than this waiting for the archive is told.
    archive_backlog_warn: Least = "archive_backlog_warn", Least::Percent(10), 0..=0,
        "more WAL than this that waits to be archived is shown: a share of the volume of WAL (10%) or bytes (5GB)";
    /// The stanza of pgBackRest that both commands are made from.
    pgbackrest_stanza: String = "pgbackrest_stanza", String::new(), 0..=63,
        "stanza of pgBackRest: archive_command and restore_command, where they are empty, and the copies of clone_methods=pgbackrest use it";
    /// Its configuration file.
    pgbackrest_config: String = "pgbackrest_config", String::new(), 0..=255,
        "path of pgBackRest's configuration file on every host; empty: its own default. The data directory is told to it by Matriarch";
    /// So many members have data of no use replaced by a copy at one time.
    max_concurrent_clones: u32 = "max_concurrent_clones", 1, 0..=100,
        "so many members at one time have data that is of no use (WAL that the primary has removed, damaged files, starts that fail) \
         replaced by a copy; 0: none by itself";
    /// Who has to confirm a commit before it is acknowledged.
    replication_mode: SyncMode = "replication_mode", SyncMode::Async, 0..=0,
        "who confirms a commit before it is acknowledged: async (nobody), sync (each of sync_count standbys that are chosen), \
         quorum (any sync_count of all)";
    /// With fewer standbys than `sync_count` commits wait instead of going on with fewer.
    sync_strict: bool = "sync_strict", false, 0..=0,
        "with fewer standbys than sync_count: true: commits wait for them; false: the primary goes on with as many as there are, \
         with none only it may be primary until one is back";
    /// So many standbys confirm each commit.
    sync_count: u32 = "sync_count", 1, 1..=16,
        "so many standbys confirm each commit in the modes sync and quorum";
    /// What a standby has done when it confirms.
    synchronous_commit: Confirms = "synchronous_commit", Confirms::Flush, 0..=0,
        "what a standby has done with a commit when it confirms it: on (flushed), remote_apply (replayed: whoever reads there sees it)";
    /// One of the standbys that confirm is not at the primary's site.
    sync_other_site: bool = "sync_other_site", false, 0..=0,
        "whether one of the standbys that confirm has to be at another site than the primary, as long as one there can";
    /// A standby that lacks more than this is no synchronous one.
    maximum_lag_on_syncnode: MaximumLag = "maximum_lag_on_syncnode", MaximumLag(None), 1_048_576..=1_099_511_627_776,
        "off, or the bytes of WAL by which a standby that confirms may be behind before it is one no more, if the others are enough. To \
         become one it may lack 16MB, or this if it is less";
    /// Who has the address for standbys while no standby is fit for it.
    vip_standby_fallback: ReaderFallback = "vip_standby_fallback", ReaderFallback::None, 0..=0,
        "who has the virtual address for standbys while no standby is fit for it: none (nobody), primary";
}

settings! {
    /// Every setting of one member with its value in force.
    MemberSettings:
    /// Decides among members with equal WAL, the higher first; 0: never primary by itself.
    priority: u32 = "priority", 100, 0..=1_000_000,
        "the higher is primary first among members with equal WAL; 0: never, unless an operator names it";
    /// Whether it may become primary.
    failover: bool = "failover", true, 0..=0,
        "whether it may become primary; false wins over any priority (nofailover=true means the same)";
    /// Where it is.
    site: String = "site", String::new(), 0..=63,
        "where it is, any text; site_failover and sync_other_site compare it";
    /// Whether it may confirm commits.
    sync: bool = "sync", true, 0..=0,
        "whether it may be one of the standbys that confirm commits (nosync=true means the opposite)";
    /// Whether others may be copied from it while it is a standby.
    clonefrom: bool = "clonefrom", true, 0..=0,
        "whether others may be copied from it while it is a standby; the primary is copied when there is no standby to copy";
    /// Decides who confirms in the mode sync, the higher first.
    sync_priority: u32 = "sync_priority", 100, 0..=1_000_000,
        "in the mode sync the higher confirms commits first; 0: never";
    /// The standby it streams from; empty: the primary.
    replicatefrom: String = "replicatefrom", String::new(), 0..=63,
        "the member it streams from while that is a standby that does well; while it doesn't, the primary. It confirms no commits then";
    /// It streams from nobody.
    nostream: bool = "nostream", false, 0..=0,
        "whether it gets its WAL by restore_command alone (true), without a connection and a slot. It is no candidate and confirms no commits then";
    /// So long it waits before it replays a commit.
    recovery_min_apply_delay: Duration = "recovery_min_apply_delay", Duration::ZERO, 0..=2_147_483_647,
        "milliseconds after a commit before it is replayed there. With more than 0 it is no candidate and no source of copies, confirms no \
         commits, and routers lead nobody there";
}

/// One segment of WAL.
const LAG_TO_JOIN: u64 = 16 << 20;

impl MemberSettings {
    /// It may be one of the standbys that confirm commits. Only whoever streams from the primary itself is heard by it.
    pub fn confirms(&self) -> bool {
        let direct = self.replicatefrom.is_empty() && !self.nostream;
        self.sync && self.sync_priority > 0 && direct && !self.is_delayed()
    }

    /// It may become primary without an operator who names it.
    pub fn eligible(&self) -> bool {
        self.failover && self.priority > 0 && !self.nostream && !self.is_delayed()
    }

    /// It shows the past on purpose.
    pub fn is_delayed(&self) -> bool {
        !self.recovery_min_apply_delay.is_zero()
    }

    /// The standby it is to stream from.
    pub fn source(&self) -> Option<&str> {
        Some(self.replicatefrom.as_str()).filter(|source| !source.is_empty() && !self.nostream)
    }
}

impl Settings {
    /// How much of the primary's WAL a standby may lack to become one that confirms commits.
    pub fn lag_to_join(&self) -> u64 {
        self.maximum_lag_on_syncnode.0.map_or(LAG_TO_JOIN, |most| most.min(LAG_TO_JOIN))
    }

    /// No commit is acknowledged without a standby.
    pub fn waits_always(&self) -> bool {
        self.replication_mode != SyncMode::Async && self.sync_strict
    }

    /// Those of the volume that WAL is written to.
    pub fn wal_room(&self) -> Thresholds {
        Thresholds { warn: self.wal_room_warn, act: self.wal_room_act }
    }

    /// Those of the volume of the data directory.
    pub fn data_room(&self) -> Thresholds {
        Thresholds { warn: self.data_room_warn, act: self.data_room_act }
    }

    /// The inequalities that fail between these and the timings, with both sides.
    pub fn contradictions_with(&self, timings: &Timings) -> Vec<Contradiction> {
        let lag = self.maximum_lag_on_failover_ms.0.map(Duration::from_millis);
        let rules = [
            (
                "crash_window_ms",
                "crash_window >= 2 * probe + T_kill: of hangs that take longer to end no two would count together",
                self.crash_window,
                timings.hang(),
            ),
            (
                "maximum_lag_on_failover_ms",
                "maximum_lag >= replication / 2 + 2 s: an idle primary says no sooner where its WAL ends",
                lag.unwrap_or(Duration::MAX),
                timings.replication / 2 + Duration::from_secs(2),
            ),
        ];
        let failing = rules.into_iter().filter(|(_, _, left, least)| left < least);
        let told = failing.map(|(key, inequality, left, least)| {
            let numbers = format!("{:.3} s against {:.3} s", left.as_secs_f64(), least.as_secs_f64());
            Contradiction { key, inequality, numbers }
        });
        told.collect()
    }

    /// What can't be together, for people. A share and bytes can't be compared without the volume, and so are taken.
    pub fn contradiction(&self) -> Option<String> {
        if self.failover_wait == FailoverWait::Promise && !self.waits_always() {
            return Some(format!(
                "failover_wait = promise needs sync_strict = true and replication_mode = sync or quorum (they are {} and {}): only \
                 commits that wait for standbys are safe from a primary whose lease has not ended",
                self.sync_strict, self.replication_mode
            ));
        }
        if let Some(problem) = super::archive::problem(self) {
            return Some(problem);
        }
        let ignored = |slot: &&PermanentSlot| self.ignore_slots.has(&slot.name, slot.logical.as_ref());
        if let Some(slot) = self.permanent_slots.iter().find(ignored) {
            return Some(format!(
                "the slot {} is one of permanent_slots, and ignore_slots says to leave it alone",
                slot.name
            ));
        }
        let both = [("wal_room", self.wal_room()), ("data_room", self.data_room())];
        both.into_iter().find_map(|(name, Thresholds { warn, act })| {
            let wrong = match (warn, act) {
                (Least::Percent(warn), Least::Percent(act)) => warn < act,
                (Least::Bytes(warn), Least::Bytes(act)) => warn < act,
                (Least::Percent(_), Least::Bytes(_)) | (Least::Bytes(_), Least::Percent(_)) => false,
            };
            wrong.then(|| format!("{name}_warn = {warn} is less than {name}_act = {act}"))
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_written_as_it_is_read() {
        let mut changed = Settings::default();
        changed.set("on_primary_crash", "failover").unwrap();
        changed.set("crash_budget", "0").unwrap();
        changed.set("crash_window_ms", "5000").unwrap();
        changed.set("wal_room_act", "512MB").unwrap();
        changed.set("disk_reserve", "0").unwrap();
        assert_eq!(changed.crash_window, Duration::from_secs(5));
        let mut again = Settings::default();
        for (key, value) in changed.values() {
            again.set(key, &value).unwrap();
        }
        assert_eq!(again, changed);
        let keys: Vec<&str> = Settings::KEYS.iter().map(|(key, _)| *key).collect();
        assert!(keys.iter().all(|key| changed.values().contains_key(key)) && keys.len() == changed.values().len());
    }

    #[test]
    fn what_is_not_possible_says_what_would_be_and_changes_nothing() {
        let mut settings = Settings::default();
        let refused =
            |settings: &mut Settings, key: &str, value: &str| settings.set(key, value).unwrap_err().to_string();
        assert_eq!(refused(&mut settings, "colour", "red"), "`colour` is no setting");
        assert_eq!(
            refused(&mut settings, "on_primary_crash", "panic"),
            "on_primary_crash = `panic` is not possible: auto, restart or failover"
        );
        assert_eq!(
            refused(&mut settings, "crash_budget", "-1"),
            "crash_budget = `-1` is not possible: a whole number from 0 to 1000"
        );
        assert_eq!(
            refused(&mut settings, "crash_window_ms", "5s"),
            "crash_window_ms = `5s` is not possible: milliseconds, 1000 to 86400000"
        );
        assert_eq!(
            refused(&mut settings, "site_failover", "near"),
            "site_failover = `near` is not possible: any, prefer or same"
        );
        assert_eq!(
            refused(&mut settings, "data_room_warn", "much"),
            "data_room_warn = `much` is not possible: a share of the volume from 0% to 90%, or bytes (kB, MB, GB, TB)"
        );
        assert_eq!(
            refused(&mut settings, "disk_reserve", "5%"),
            "disk_reserve = `5%` is not possible: bytes (kB, MB, GB, TB), 0 to 1TB"
        );
        assert_eq!(settings, Settings::default());
    }

    #[test]
    fn a_permanent_slot_is_not_ignored() {
        let mut settings = Settings::default();
        settings.set("permanent_slots", "backup,audit:app:pgoutput").unwrap();
        settings.set("ignore_slots", "name=other,database=app plugin=wal2json").unwrap();
        assert_eq!(settings.contradiction(), None);
        settings.set("ignore_slots", "type=logical").unwrap();
        let why = "the slot audit is one of permanent_slots, and ignore_slots says to leave it alone";
        assert_eq!(settings.contradiction().as_deref(), Some(why));
    }

    #[test]
    fn room_is_shown_to_be_low_before_it_is_acted_on() {
        let mut settings = Settings::default();
        assert_eq!(settings.contradiction(), None);
        settings.set("data_room_act", "11%").unwrap();
        assert_eq!(settings.contradiction().as_deref(), Some("data_room_warn = 10% is less than data_room_act = 11%"));
        settings.set("data_room_act", "1GB").unwrap();
        assert_eq!(settings.contradiction(), None, "that depends on the volume");
    }

    #[test]
    fn a_member_is_never_primary_by_itself_with_priority_0_or_without_failover() {
        let mut of = MemberSettings::default();
        assert!(of.eligible());
        of.set("priority", "0").unwrap();
        assert!(!of.eligible());
        of.set("priority", "200").unwrap();
        of.set("failover", "false").unwrap();
        assert!(!of.eligible(), "it wins over any priority");
        let refused = |of: &mut MemberSettings, key: &str, value: &str| of.set(key, value).unwrap_err().to_string();
        assert_eq!(refused(&mut of, "failover", "no"), "failover = `no` is not possible: true or false");
        assert_eq!(
            refused(&mut of, "site", &"x".repeat(64)),
            format!("site = `{}` is not possible: a text of 0 to 63 characters", "x".repeat(64))
        );
        assert_eq!(of.site, "");
    }

    #[test]
    fn who_shows_the_past_or_is_not_heard_by_the_primary_confirms_nothing() {
        let with = |key: &str, value: &str| {
            let mut of = MemberSettings::default();
            of.set(key, value).unwrap();
            (of.eligible(), of.confirms())
        };
        assert_eq!(with("recovery_min_apply_delay", "0"), (true, true));
        assert_eq!(with("recovery_min_apply_delay", "3600000"), (false, false));
        assert_eq!(with("nostream", "true"), (false, false));
        assert_eq!(with("replicatefrom", "n2"), (true, false), "it has what its source has");
    }
}
