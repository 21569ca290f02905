//! What an agent must not forget: one small JSON file in the state directory,
//! replaced whole (temporary file, fsync, rename, fsync of the directory), and
//! a lock, so that two agents never act on one data directory.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::domain::{
    ClusterId, CommittedTimings, Epoch, Generation, LostWal, Lsn, MemberId, MemberList, SettingsDocument, SyncRule,
    SyncWord, TimelineId, Timings, TimingsId, TimingsInUse, WalPosition, ids::BadMemberId,
};

const FILE: &str = "agent.json";

/// A state directory that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused.
    #[error("{action} {path}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not what this version writes. Guessing could forget an ended epoch, so nothing is guessed.
    #[error("{path} can't be read as the agent's state", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Another agent works with this directory.
    #[error("another agent works with {path} (it holds the lock)", path = path.display())]
    Locked {
        /// The locked file.
        path: PathBuf,
    },
}

/// How far a tenure has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// The lease is sought, a promotion runs or is to be finished.
    Granted,
    /// Promoted, and the timeline was compared with the grant.
    Primary,
    /// The postmaster ended by itself; may be restarted in place while the lease lasts.
    Crashed,
    /// Stopped by an order that keeps the lease.
    Stopped,
}

/// The right to be primary in one epoch, from the Promote order to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tenure {
    /// The epoch.
    pub epoch: Epoch,
    /// The timeline the grant reserved.
    pub timeline: TimelineId,
    /// The WAL end the grant was decided on.
    pub floor: WalPosition,
    /// How far it has come.
    pub phase: Phase,
}

/// Everything that survives a restart of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Durable {
    /// The cluster this host belongs to; empty until an order or a watch named one.
    pub cluster_id: ClusterId,
    /// Its generation.
    pub generation: Generation,
    /// Highest epoch an order came with.
    pub accepted: Epoch,
    /// Highest epoch that ended on this host. It is never held, adopted or restarted again.
    pub ended: Epoch,
    /// Highest ended epoch whose process tree was seen empty.
    pub fenced: Epoch,
    /// The right to be primary, while there is one.
    pub tenure: Option<Tenure>,
    /// `standby.signal` may be missing: a restart in place of this epoch is under way.
    pub restart_intent: Option<Epoch>,
    /// Failed rewinds in a row.
    pub rewind_failures: u64,
    /// Failed clones in a row.
    pub clone_failures: u64,
    /// The members as last told.
    pub members: MemberList,
    /// Managers that were moved by command, as last told, and where they are.
    pub moved: BTreeMap<MemberId, String>,
    /// The timings as last told. What a lease was counted by is never older.
    pub timings: TimingsInUse,
    /// The settings as last told.
    pub settings: SettingsDocument,
    /// By which rule the primary of the tenure acknowledges. It never goes by an older one.
    pub sync: SyncWord,
    /// A promise of failsafe may be running, and is at most this long.
    pub failsafe: Option<Duration>,
    /// The data directory was copied, and nothing has been streamed into it yet.
    pub fresh_copy: bool,
    /// The order of the last copy that was completed; 0: none was.
    pub copied_for: u64,
    /// Somebody stopped PostgreSQL while the cluster was paused, and nothing was ordered since.
    pub stopped_by_hand: bool,
    /// What runs here was taken over while it ran, and has not been primary under a lease yet: it may write without one.
    pub unleased: bool,
    /// What was lost of this host's WAL when it was primary, the newest last.
    pub lost: Vec<LostWal>,
}

impl Durable {
    /// The epoch by which this host is primary; that its PostgreSQL is down for a moment doesn't matter.
    pub fn reign(&self) -> Option<Epoch> {
        self.tenure.filter(|tenure| tenure.phase != Phase::Granted).map(|tenure| tenure.epoch)
    }
}

/// The file as written. Unknown fields are refused: a newer agent's promise must not be dropped in silence.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    format: u32,
    cluster_id: String,
    generation: u64,
    accepted: u64,
    ended: u64,
    fenced: u64,
    tenure: Option<RawTenure>,
    restart_intent: Option<u64>,
    rewind_failures: u64,
    clone_failures: u64,
    #[serde(default)]
    members: RawMembers,
    /// Only when somebody was moved, for a version that doesn't know of it refuses the file.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    moved: BTreeMap<String, String>,
    #[serde(default)]
    timings: RawTimings,
    /// Only when something was ever set: a version that doesn't know of settings refuses the file with them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    settings: Option<RawSettings>,
    /// Only when there is a rule, for a version that doesn't know of them refuses the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sync: Option<RawSync>,
    #[serde(default)]
    failsafe_ms: Option<u64>,
    #[serde(default)]
    fresh_copy: bool,
    /// Only when it is so, for a version that doesn't know of it refuses the file.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    stopped_by_hand: bool,
    /// The same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unleased: bool,
    /// Only of a copy that an operator wanted, for the same reason.
    #[serde(default, skip_serializing_if = "is_none")]
    copied_for: u64,
    /// Only when something was, for the same reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    lost: Vec<RawLost>,
}

fn is_none(order: &u64) -> bool {
    *order == 0
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLost {
    fork_timeline: u32,
    fork_lsn: u64,
    end_timeline: u32,
    end_lsn: u64,
    transactions: Option<u64>,
    #[serde(default)]
    saved: bool,
}

impl From<&LostWal> for RawLost {
    fn from(lost: &LostWal) -> RawLost {
        RawLost {
            fork_timeline: lost.fork.timeline.0,
            fork_lsn: lost.fork.lsn.0,
            end_timeline: lost.end.timeline.0,
            end_lsn: lost.end.lsn.0,
            transactions: lost.transactions,
            saved: lost.saved,
        }
    }
}

impl From<RawLost> for LostWal {
    fn from(raw: RawLost) -> LostWal {
        let at = |timeline, lsn| WalPosition { timeline: TimelineId(timeline), lsn: Lsn(lsn) };
        LostWal {
            fork: at(raw.fork_timeline, raw.fork_lsn),
            end: at(raw.end_timeline, raw.end_lsn),
            transactions: raw.transactions,
            saved: raw.saved,
        }
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMembers {
    version: u64,
    agents: BTreeMap<String, String>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTimings {
    oldest: u64,
    committed: Vec<RawCommitted>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSettings {
    version: u64,
    values: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSync {
    id: u64,
    epoch: u64,
    rule: Option<RawRule>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    id: u64,
    epoch: u64,
    names: Vec<String>,
    count: u32,
}

impl From<&SyncWord> for RawSync {
    fn from(word: &SyncWord) -> RawSync {
        let rule = word.rule.as_ref().map(|rule| RawRule {
            id: rule.id,
            epoch: rule.epoch.0,
            names: rule.names.iter().map(ToString::to_string).collect(),
            count: rule.count,
        });
        RawSync { id: word.id, epoch: word.epoch.0, rule }
    }
}

impl TryFrom<RawSync> for SyncWord {
    type Error = String;
    fn try_from(raw: RawSync) -> Result<SyncWord, String> {
        let read = |rule: RawRule| {
            let names = rule.names.iter().map(|name| name.parse()).collect::<Result<_, BadMemberId>>();
            let names = names.map_err(|e| e.to_string())?;
            Ok::<_, String>(SyncRule { id: rule.id, epoch: Epoch(rule.epoch), names, count: rule.count })
        };
        Ok(SyncWord { id: raw.id, epoch: Epoch(raw.epoch), rule: raw.rule.map(read).transpose()? })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCommitted {
    id: u64,
    profile: String,
    values: BTreeMap<String, u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTenure {
    epoch: u64,
    timeline: u32,
    floor_timeline: u32,
    floor_lsn: u64,
    phase: Phase,
}

impl From<&Durable> for Raw {
    fn from(d: &Durable) -> Raw {
        Raw {
            format: 1,
            cluster_id: d.cluster_id.0.clone(),
            generation: d.generation.0,
            accepted: d.accepted.0,
            ended: d.ended.0,
            fenced: d.fenced.0,
            tenure: d.tenure.map(|t| RawTenure {
                epoch: t.epoch.0,
                timeline: t.timeline.0,
                floor_timeline: t.floor.timeline.0,
                floor_lsn: t.floor.lsn.0,
                phase: t.phase,
            }),
            restart_intent: d.restart_intent.map(|e| e.0),
            rewind_failures: d.rewind_failures,
            clone_failures: d.clone_failures,
            members: RawMembers {
                version: d.members.version,
                agents: d.members.agents.iter().map(|(id, at)| (id.to_string(), at.clone())).collect(),
            },
            moved: d.moved.iter().map(|(id, at)| (id.to_string(), at.clone())).collect(),
            timings: RawTimings {
                oldest: d.timings.oldest.0,
                committed: d.timings.committed.iter().map(RawCommitted::from).collect(),
            },
            settings: (d.settings.version > 0)
                .then(|| RawSettings { version: d.settings.version, values: d.settings.values.clone() }),
            sync: (d.sync.id > 0).then(|| RawSync::from(&d.sync)),
            // Rounded up: a promise is never remembered shorter than it was.
            failsafe_ms: d.failsafe.map(|f| u64::try_from(f.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX)),
            fresh_copy: d.fresh_copy,
            copied_for: d.copied_for,
            stopped_by_hand: d.stopped_by_hand,
            unleased: d.unleased,
            lost: d.lost.iter().map(RawLost::from).collect(),
        }
    }
}

impl From<&CommittedTimings> for RawCommitted {
    fn from(c: &CommittedTimings) -> RawCommitted {
        let values = c.timings.told(c.profile).into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        RawCommitted { id: c.id.0, profile: c.profile.to_string(), values }
    }
}

impl TryFrom<RawCommitted> for CommittedTimings {
    type Error = String;
    fn try_from(r: RawCommitted) -> Result<CommittedTimings, String> {
        let profile = r.profile.parse()?;
        let mut timings = Timings::of(profile);
        for (key, value) in r.values {
            timings.set(&key, value).map_err(|e| e.to_string())?;
        }
        Ok(CommittedTimings { id: TimingsId(r.id), profile, timings })
    }
}

impl TryFrom<Raw> for Durable {
    type Error = String;
    fn try_from(r: Raw) -> Result<Durable, String> {
        let agents = r.members.agents.into_iter().map(|(id, at)| Ok((id.parse()?, at)));
        let agents = agents.collect::<Result<_, BadMemberId>>().map_err(|e| e.to_string())?;
        let moved = r.moved.into_iter().map(|(id, at)| Ok((id.parse()?, at)));
        let committed = r.timings.committed.into_iter().map(CommittedTimings::try_from);
        Ok(Durable {
            cluster_id: ClusterId(r.cluster_id),
            generation: Generation(r.generation),
            accepted: Epoch(r.accepted),
            ended: Epoch(r.ended),
            fenced: Epoch(r.fenced),
            tenure: r.tenure.map(|t| Tenure {
                epoch: Epoch(t.epoch),
                timeline: TimelineId(t.timeline),
                floor: WalPosition { timeline: TimelineId(t.floor_timeline), lsn: Lsn(t.floor_lsn) },
                phase: t.phase,
            }),
            restart_intent: r.restart_intent.map(Epoch),
            rewind_failures: r.rewind_failures,
            clone_failures: r.clone_failures,
            members: MemberList { version: r.members.version, agents },
            moved: moved.collect::<Result<_, BadMemberId>>().map_err(|e| e.to_string())?,
            timings: TimingsInUse {
                oldest: TimingsId(r.timings.oldest),
                committed: committed.collect::<Result<_, String>>()?,
            },
            settings: r
                .settings
                .map_or_else(SettingsDocument::default, |s| SettingsDocument { version: s.version, values: s.values }),
            sync: r.sync.map(SyncWord::try_from).transpose()?.unwrap_or_default(),
            failsafe: r.failsafe_ms.map(Duration::from_millis),
            fresh_copy: r.fresh_copy,
            copied_for: r.copied_for,
            stopped_by_hand: r.stopped_by_hand,
            unleased: r.unleased,
            lost: r.lost.into_iter().map(LostWal::from).collect(),
        })
    }
}

/// The open state directory. Holds the locks as long as it lives.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    _locks: Vec<Flock<File>>,
}

impl Store {
    /// Opens (and creates) the state directory, takes its lock and one beside
    /// the data directory, and reads what was kept.
    ///
    /// # Errors
    /// The directory can't be used, the file can't be understood, or another agent is at work.
    pub fn open(dir: &Path, data_dir: &Path) -> Result<(Store, Durable), StoreError> {
        let own = dir.join("agent.lock");
        // Two configurations with two state directories could still name one data directory.
        let mut beside = data_dir.as_os_str().to_owned();
        beside.push(".matriarch-lock");
        // Whoever is refused leaves no trace: nothing is made before both were looked at.
        for path in [own.as_path(), Path::new(&beside)] {
            if path.exists() {
                drop(lock(path)?);
            }
        }
        fs::create_dir_all(dir).map_err(io_error("create", dir))?;
        let mut locks = vec![lock(&own)?];
        if let Some(parent) = data_dir.parent() {
            fs::create_dir_all(parent).map_err(io_error("create", parent))?;
        }
        locks.push(lock(Path::new(&beside))?);
        let store = Store { dir: dir.to_owned(), _locks: locks };
        let path = dir.join(FILE);
        let durable = match fs::read(&path) {
            Ok(bytes) => {
                let read = serde_json::from_slice::<Raw>(&bytes);
                let read = read.and_then(|raw| Durable::try_from(raw).map_err(serde::de::Error::custom));
                read.map_err(|source| StoreError::Unreadable { path, source })?
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Durable::default(),
            Err(e) => return Err(io_error("read", &path)(e)),
        };
        Ok((store, durable))
    }

    /// Replaces the file; on disk when this returns.
    ///
    /// # Errors
    /// The file system refused. The caller must end: what it was about to do rests on this.
    pub fn save(&self, durable: &Durable) -> Result<(), StoreError> {
        let path = self.dir.join(FILE);
        let bytes = serde_json::to_vec_pretty(&Raw::from(durable))
            .map_err(|source| StoreError::Unreadable { path: path.clone(), source })?;
        replace(&path, &bytes).map_err(io_error("replace", &path))
    }
}

/// Replaces a file whole; on disk when this returns.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

fn lock(path: &Path) -> Result<Flock<File>, StoreError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).map_err(io_error("open", path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => StoreError::Locked { path: path.to_owned() },
        other => io_error("lock", path)(other.into()),
    })
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Profile;

    #[test]
    fn what_was_saved_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("pgdata");
        let state = dir.path().join("state");
        let (store, empty) = Store::open(&state, &data).unwrap();
        assert_eq!(empty, Durable::default());
        let at = |lsn| WalPosition { timeline: TimelineId(2), lsn: Lsn(lsn) };
        let full = Durable {
            fresh_copy: true,
            copied_for: 9,
            lost: vec![LostWal { fork: at(5), end: at(9), transactions: Some(1), saved: true }],
            stopped_by_hand: true,
            cluster_id: ClusterId("c".into()),
            generation: Generation(1),
            accepted: Epoch(7),
            ended: Epoch(5),
            fenced: Epoch(5),
            tenure: Some(Tenure {
                epoch: Epoch(7),
                timeline: TimelineId(3),
                floor: WalPosition { timeline: TimelineId(2), lsn: Lsn(9) },
                phase: Phase::Primary,
            }),
            restart_intent: Some(Epoch(7)),
            rewind_failures: 1,
            clone_failures: 2,
            members: MemberList { version: 3, agents: [("n1".parse().unwrap(), "h1:7401".to_owned())].into() },
            moved: [("n2".parse().unwrap(), "h9:7400".to_owned())].into(),
            timings: TimingsInUse {
                oldest: TimingsId(1),
                committed: [(1, Profile::Slow), (2, Profile::Fast)]
                    .map(|(id, profile)| CommittedTimings { id: TimingsId(id), profile, timings: Timings::of(profile) })
                    .into(),
            },
            settings: SettingsDocument { version: 2, values: [("a_newer_one".into(), "x".into())].into() },
            sync: SyncWord {
                id: 9,
                epoch: Epoch(7),
                rule: Some(SyncRule { id: 9, epoch: Epoch(7), names: vec!["n2".parse().unwrap()], count: 1 }),
            },
            failsafe: Some(Duration::from_millis(3_200)),
            unleased: true,
        };
        store.save(&full).unwrap();
        drop(store);
        assert_eq!(Store::open(&state, &data).unwrap().1, full);
    }

    #[test]
    fn a_file_of_the_version_before_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"format":1,"cluster_id":"c","generation":1,"accepted":7,"ended":5,"fenced":5,"tenure":null,
            "restart_intent":null,"rewind_failures":0,"clone_failures":0}"#;
        fs::write(dir.path().join(FILE), text).unwrap();
        let durable = Store::open(dir.path(), &dir.path().join("pgdata")).unwrap().1;
        assert_eq!((durable.accepted, durable.timings, durable.failsafe), (Epoch(7), TimingsInUse::default(), None));
    }

    #[test]
    fn settings_and_moves_are_in_the_file_only_when_there_are_any() {
        let dir = tempfile::tempdir().unwrap();
        let (store, durable) = Store::open(dir.path(), &dir.path().join("pgdata")).unwrap();
        store.save(&durable).unwrap();
        let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert!(
            !text.contains("settings") && !text.contains("moved"),
            "the version before refuses what it does not know: {text}"
        );
    }

    #[test]
    fn a_second_agent_is_refused_also_with_another_state_directory() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("pgdata");
        let (_first, _) = Store::open(&dir.path().join("a"), &data).unwrap();
        for state in ["a", "b"] {
            let second = Store::open(&dir.path().join(state), &data);
            assert!(matches!(second, Err(StoreError::Locked { .. })), "{second:?}");
        }
    }

    #[test]
    fn a_damaged_file_is_not_taken_for_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), b"{\"format\":1").unwrap();
        let opened = Store::open(dir.path(), &dir.path().join("pgdata"));
        assert!(matches!(opened, Err(StoreError::Unreadable { .. })), "{opened:?}");
    }
}
