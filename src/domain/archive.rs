//! The WAL archive: what a standby may take from it, how a member's archiving goes, and the ways to make a copy.

use std::{fmt, str::FromStr, time::Duration};

use super::{Lsn, Settings, TimelineHistory, TimelineId};

/// A way to make a copy of a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloneMethod {
    /// `pg_basebackup` from another member.
    Basebackup,
    /// The newest fitting backup of pgBackRest.
    Pgbackrest,
    /// What `clone_command` says.
    Command,
}

impl FromStr for CloneMethod {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "basebackup" => Ok(Self::Basebackup),
            "pgbackrest" => Ok(Self::Pgbackrest),
            "command" => Ok(Self::Command),
            _ => Err("basebackup, pgbackrest or command".to_owned()),
        }
    }
}

impl fmt::Display for CloneMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Basebackup => "basebackup",
            Self::Pgbackrest => "pgbackrest",
            Self::Command => "command",
        })
    }
}

/// In which order they are tried. Never empty, none twice.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CloneMethods(pub Vec<CloneMethod>);

impl Default for CloneMethods {
    fn default() -> Self {
        Self(vec![CloneMethod::Basebackup])
    }
}

impl CloneMethods {
    /// Those to try when a copy by `last` was of no use: what follows it, or all when nothing does.
    pub fn after(&self, last: Option<CloneMethod>) -> Vec<CloneMethod> {
        let at = last.and_then(|last| self.0.iter().position(|method| *method == last));
        let rest = at.map_or(&self.0[..], |at| &self.0[at + 1..]);
        if rest.is_empty() { self.0.clone() } else { rest.to_vec() }
    }
}

impl FromStr for CloneMethods {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || "one or more of basebackup, pgbackrest, command, with commas, none twice".to_owned();
        let mut methods = Vec::new();
        for word in text.split(',').map(str::trim) {
            let method = word.parse().map_err(|_| wanted())?;
            if methods.contains(&method) {
                return Err(wanted());
            }
            methods.push(method);
        }
        Ok(Self(methods))
    }
}

impl fmt::Display for CloneMethods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&names.join(","))
    }
}

/// So long a standby waits for the archive at most: PostgreSQL asks it before it streams.
pub const STANDBY_ASKS: Duration = Duration::from_secs(15);

/// What a standby may take of a file from the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetch {
    /// All of it.
    Whole,
    /// What lies before this position; the rest is of a primary that had lost its lock.
    Until(Lsn),
    /// Nothing: it is not of the cluster's history.
    Nothing,
}

/// What a standby may take of `file`, a name of PostgreSQL's in a segment size of `segment` bytes, when the cluster's history is
/// `lineage`. A former primary that nobody reaches may go on archiving until its lease ends: its WAL past the fork is on no
/// other member, and a standby that replayed it could confirm commits that it doesn't have.
pub fn may_fetch(file: &str, segment: u64, lineage: &TimelineHistory) -> Fetch {
    let Some(timeline) = timeline_of(file) else { return Fetch::Nothing };
    if !lineage.contains(timeline) {
        return Fetch::Nothing;
    }
    let (Some(start), Some(end)) = (segment_start(file, segment), lineage.end_of(timeline)) else {
        return Fetch::Whole;
    };
    if end <= start {
        Fetch::Nothing
    } else if end.0 - start.0 >= segment {
        Fetch::Whole
    } else {
        Fetch::Until(end)
    }
}

/// Of which timeline a file in `pg_wal` is: a segment, what belongs to one, or a history.
pub fn timeline_of(file: &str) -> Option<TimelineId> {
    let name = file.get(..8).filter(|_| file.get(8..) == Some(".history") || is_segment(file))?;
    u32::from_str_radix(name, 16).ok().map(TimelineId)
}

fn is_segment(file: &str) -> bool {
    let hex = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    file.get(..24).is_some_and(hex) && (file.len() == 24 || file.as_bytes()[24] == b'.')
}

/// Where a segment begins; `None`: it is none.
pub fn segment_start(file: &str, segment: u64) -> Option<Lsn> {
    let part = |range| u64::from_str_radix(file.get(range)?, 16).ok();
    let (high, low) = (part(8..16)?, part(16..24)?);
    Some(Lsn((high << 32) + low.checked_mul(segment)?))
}

/// How the archiving of a member goes, and what it has from the archive.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct ArchiveView {
    /// PostgreSQL archives what it writes: it runs with `archive_mode` and a command.
    pub on: bool,
    /// The last try failed, and so long, in milliseconds, nothing was archived after one that failed; `None`: it works.
    pub failing_ms: Option<u64>,
    /// Tries that failed since PostgreSQL's counters began.
    pub failed: u64,
    /// The last file that could not be archived; empty: there was none.
    pub last_failed: String,
    /// The last file that was archived; empty: none was.
    pub last_archived: String,
    /// What the command said last when it failed.
    pub said: String,
    /// Files that wait to be archived …
    pub waiting: u64,
    /// … and how many bytes they are.
    pub waiting_bytes: u64,
    /// That is more than `archive_backlog_warn`.
    pub much: bool,
    /// Whether PostgreSQL archives follows what was set only after a restart.
    pub wants_restart: bool,
    /// Files that a standby has taken from the archive since its agent started.
    pub restored: u64,
    /// The last of them.
    pub last_restored: String,
    /// The primary has removed WAL that this standby needs: so long, in milliseconds, it still looks for it in the archive
    /// before it is copied anew.
    pub seeks_ms: Option<u64>,
}

impl ArchiveView {
    /// What endangers a primary's disk and a restore; empty: nothing.
    pub fn complaints(&self) -> Vec<String> {
        let waiting = || format!("{} files of WAL wait ({} MB)", self.waiting, self.waiting_bytes >> 20);
        let failing = self.failing_ms.map(|ms| {
            let said = if self.said.is_empty() { String::new() } else { format!(", it says: {}", self.said) };
            format!("archiving fails for {} s, last of {}; {}{said}", ms / 1000, self.last_failed, waiting())
        });
        let much = (self.much && failing.is_none())
            .then(|| format!("archiving falls behind: {}, more than archive_backlog_warn", waiting()));
        failing.into_iter().chain(much).collect()
    }

    /// The same, and what else people should know.
    pub fn remarks(&self) -> Vec<String> {
        let mut out = self.complaints();
        match (self.wants_restart, self.on) {
            (true, true) => out.push(
                "nothing is archived any more; PostgreSQL runs with archive_mode until it is restarted (`matriarch restart`)".to_owned(),
            ),
            (true, false) => out.push("archiving begins when PostgreSQL is restarted (`matriarch restart`)".to_owned()),
            (false, _) => {}
        }
        if let Some(ms) = self.seeks_ms {
            out.push(format!(
                "the primary has removed WAL that it needs: it looks in the archive, {} s more before it is copied anew",
                ms / 1000
            ));
        }
        out
    }
}

/// What can't be of the archive and of copies.
pub(super) fn problem(settings: &Settings) -> Option<String> {
    let (stanza, config) = (&settings.pgbackrest_stanza, &settings.pgbackrest_config);
    if !stanza.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
        return Some("pgbackrest_stanza has letters, digits, `-`, `_` and `.` only".to_owned());
    }
    if !(config.is_empty() || config.starts_with('/')) || config.contains(['\'', '"', '%']) {
        return Some("pgbackrest_config is a path from `/` on, without quotes and `%`".to_owned());
    }
    let uses = |method| settings.clone_methods.0.contains(&method);
    if uses(CloneMethod::Pgbackrest) && stanza.is_empty() {
        return Some("clone_methods has pgbackrest, and pgbackrest_stanza is empty".to_owned());
    }
    if uses(CloneMethod::Command) && settings.clone_command.is_empty() {
        return Some("clone_methods has command, and clone_command is empty".to_owned());
    }
    let commands = [
        ("archive_command", &settings.archive_command),
        ("restore_command", &settings.restore_command),
        ("clone_command", &settings.clone_command),
    ];
    commands.into_iter().find(|(_, command)| names_a_secret(command)).map(|(key, _)| {
        format!(
            "{key} seems to hold a password or a key: the settings are in the log and shown to everybody; write it into a file that \
             only PostgreSQL's user reads, on each host"
        )
    })
}

/// Words in a name whose value nobody else is to see, with `_` for `-`.
pub const SECRET_WORDS: [&str; 10] = [
    "password",
    "apikey",
    "api_key",
    "accountkey",
    "account_key",
    "passwd",
    "secret",
    "access_key",
    "token",
    "cipher_pass",
];

/// `PGPASSWORD=…`, `--secret-key …` and their like, with a value that is no variable and no file.
pub(super) fn names_a_secret(command: &str) -> bool {
    let lower = command.to_ascii_lowercase();
    // `https://user:word@host`, `curl -u user:word`, `sshpass -p word`.
    let in_url = lower.split("://").skip(1).any(|rest| {
        let host = rest.split(['/', ' ', '\'', '"']).next().unwrap_or_default();
        host.split_once('@').is_some_and(|(user, _)| user.contains(':') && !user.contains('$'))
    });
    let words: Vec<&str> = lower.split_whitespace().collect();
    let as_option = words
        .windows(2)
        .any(|two| matches!(two, ["-u" | "--user", value] if value.contains(':') && !value.contains('$')))
        || words.windows(3).any(|three| matches!(three, ["sshpass", "-p", value] if !value.contains('$')));
    if in_url || as_option {
        return true;
    }
    // As long as before, so that places are the same.
    let plain = lower.replace('-', "_");
    SECRET_WORDS.iter().any(|word| {
        plain.match_indices(word).any(|(at, _)| {
            let rest =
                lower[at + word.len()..].trim_start_matches(|c: char| c.is_ascii_alphanumeric() || "_-".contains(c));
            let value = rest.strip_prefix('=').or_else(|| rest.strip_prefix(' '));
            value.is_some_and(|value| !value.trim_start_matches(['"', '\'']).starts_with(['$', '/', '-']))
        })
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::domain::TimelineSwitch;

    const MIB16: u64 = 16 << 20;

    #[test]
    fn nothing_of_an_old_primary_past_the_fork_is_fetched() {
        let switches = vec![
            TimelineSwitch { timeline: TimelineId(1), end: Lsn(0x3000000) },
            TimelineSwitch { timeline: TimelineId(2), end: Lsn(0x5000100) },
        ];
        let lineage = TimelineHistory { timeline: TimelineId(4), switches, ..Default::default() };
        let may = |file: &str| may_fetch(file, MIB16, &lineage);
        assert_eq!(may("000000010000000000000002"), Fetch::Whole);
        assert_eq!(may("000000010000000000000003"), Fetch::Nothing, "the fork lies at its first byte");
        assert_eq!(may("000000020000000000000004"), Fetch::Whole);
        assert_eq!(may("000000020000000000000005"), Fetch::Until(Lsn(0x5000100)));
        assert_eq!(may("000000020000000000000006"), Fetch::Nothing);
        assert_eq!(may("000000040000000000000009"), Fetch::Whole, "the timeline that the primary writes");
        assert_eq!(may("000000030000000000000005"), Fetch::Nothing, "a promotion that came to nothing");
        assert_eq!(may("00000002.history"), Fetch::Whole);
        assert_eq!(may("00000003.history"), Fetch::Nothing, "it would lead the standby away");
        assert_eq!(may("00000005.history"), Fetch::Nothing);
        for odd in ["", "x", "00000002", "../../etc/passwd", "00000002.histor", "0000000200000000000000zz"] {
            assert_eq!(may(odd), Fetch::Nothing, "{odd}");
        }
    }

    #[test]
    fn a_segment_begins_where_postgresql_says() {
        assert_eq!(segment_start("000000010000000A000000FF", MIB16), Some(Lsn(0xA_FF00_0000)));
        assert_eq!(segment_start("000000010000000A00000003", 1 << 30), Some(Lsn(0xA_C000_0000)));
        assert_eq!(segment_start("00000002.history", MIB16), None);
        assert_eq!(timeline_of("0000000A0000000000000001.00000028.backup"), Some(TimelineId(10)));
    }

    #[test]
    fn methods_are_tried_in_order_and_after_one_that_was_of_no_use() {
        let methods: CloneMethods = "pgbackrest, basebackup".parse().unwrap();
        assert_eq!(methods.to_string(), "pgbackrest,basebackup");
        assert_eq!(methods.to_string().parse(), Ok(methods.clone()));
        assert_eq!(methods.after(None), methods.0);
        assert_eq!(methods.after(Some(CloneMethod::Pgbackrest)), [CloneMethod::Basebackup]);
        assert_eq!(methods.after(Some(CloneMethod::Basebackup)), methods.0, "all over again");
        assert_eq!(methods.after(Some(CloneMethod::Command)), methods.0, "it is not among them any more");
        for odd in ["", "basebackup,", "basebackup,basebackup", "rsync"] {
            assert!(odd.parse::<CloneMethods>().is_err(), "{odd}");
        }
    }

    #[test]
    fn what_endangers_the_disk_is_told_and_what_does_not_is_no_complaint() {
        let mut view = ArchiveView { on: true, waiting: 1, waiting_bytes: MIB16, ..Default::default() };
        assert!(view.complaints().is_empty());
        (view.waiting, view.waiting_bytes, view.much) = (40, 40 * MIB16, true);
        assert_eq!(
            view.complaints(),
            ["archiving falls behind: 40 files of WAL wait (640 MB), more than archive_backlog_warn"]
        );
        (view.failing_ms, view.last_failed, view.said) = (Some(61_500), "0003".into(), "no route".into());
        let told = "archiving fails for 61 s, last of 0003; 40 files of WAL wait (640 MB), it says: no route";
        assert_eq!(view.complaints(), [told]);
        view.wants_restart = true;
        assert_eq!((view.complaints().len(), view.remarks().len()), (1, 2));
    }

    #[test]
    fn what_a_copy_or_the_archive_needs_is_there_and_no_secret_is() {
        let told = |pairs: &[(&str, &str)]| {
            let mut settings = Settings::default();
            pairs.iter().for_each(|(key, value)| settings.set(key, value).unwrap());
            settings.contradiction().unwrap_or_default()
        };
        assert!(told(&[("clone_methods", "pgbackrest")]).contains("pgbackrest_stanza is empty"));
        assert_eq!(told(&[("clone_methods", "pgbackrest,basebackup"), ("pgbackrest_stanza", "main")]), "");
        assert!(told(&[("clone_methods", "command")]).contains("clone_command is empty"));
        assert!(told(&[("pgbackrest_stanza", "a b")]).contains("letters, digits"));
        assert!(told(&[("pgbackrest_config", "here")]).contains("path from `/`"));
        for secret in [
            "PGPASSWORD=hunter2 cp %p /a/%f",
            "s3put --secret-key AKIA1 %p",
            "x --token='abc' %p",
            "curl -u kim:word -T %p https://a/%f",
            "sshpass -p word scp %p h:",
            "curl https://kim:word@a/%f -o %p",
            "x --api-key=k1 %p",
        ] {
            assert!(told(&[("archive_command", secret)]).contains("seems to hold a password"), "{secret}");
        }
        for open in [
            "cp %p /secret/%f",
            "x --password-file=/etc/p %p",
            "x --token \"$TOKEN\" %p",
            "PGPASSFILE=/p x",
            "curl -u \"kim:$WORD\" https://a/%f -o %p",
            "scp kim@a:/%f %p",
        ] {
            assert_eq!(told(&[("restore_command", open)]), "", "{open}");
        }
    }
}
