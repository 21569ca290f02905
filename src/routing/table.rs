//! What the router knows and where that leads. Pure: what the managers said
//! and the time come in as values.
//!
//! Three rules. The highest (generation, epoch, revision) ever heard counts and
//! nothing below it. Knowledge counts for [`Bounds::stale`] since a manager last
//! confirmed it. A session outlives the state it was opened in only as long as
//! that state names the same primary in the same epoch.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use crate::domain::{ClusterId, Epoch, Generation, MemberId, Moment};

/// Standbys at most this many bytes behind the best one share the read-only sessions.
pub const SHARED_LAG_BYTES: u64 = 16 * 1024 * 1024;

/// A PostgreSQL to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// The member.
    pub member: MemberId,
    /// Its `host:port`.
    pub address: String,
}

/// A standby as one manager sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standby {
    /// Where it is.
    pub backend: Backend,
    /// It streams from the primary.
    pub streaming: bool,
    /// Bytes of WAL it is behind.
    pub lag_bytes: u64,
    /// Commits of the primary wait for it.
    pub confirms: bool,
}

/// A streaming standby, by what all managers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reader {
    /// Where it is.
    pub backend: Backend,
    /// Bytes of WAL it is behind.
    pub lag_bytes: u64,
    /// Commits of the primary wait for it.
    pub confirms: bool,
}

/// Who of the standbys is led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// One that is further behind takes no session that only reads; `None`: however far.
    pub max_lag: Option<u64>,
    /// How much of them each member gets; 100 where nothing is said, 0: none.
    pub weights: BTreeMap<MemberId, u32>,
    /// The primary takes them when no standby does.
    pub primary_too: bool,
}

/// Of a member of which nothing is said.
pub const WEIGHT: u32 = 100;

impl Default for Rules {
    fn default() -> Self {
        Self { max_lag: None, weights: BTreeMap::new(), primary_too: true }
    }
}

impl Rules {
    fn weight(&self, member: &MemberId) -> u32 {
        self.weights.get(member).copied().unwrap_or(WEIGHT)
    }

    fn take(&self, reader: &Reader) -> bool {
        self.max_lag.is_none_or(|most| reader.lag_bytes <= most) && self.weight(&reader.backend.member) > 0
    }
}

/// Orders everything that was ever committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Version {
    /// Life of the cluster.
    pub generation: Generation,
    /// Count of its primaries.
    pub epoch: Epoch,
    /// Count of committed changes.
    pub revision: u64,
}

/// How long a router goes on by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bounds {
    /// How long a confirmation counts.
    pub stale: Duration,
    /// How long a new connection is held.
    pub hold: Duration,
}

/// One message of one manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// The cluster it speaks of; empty before genesis.
    pub cluster: ClusterId,
    /// Which state this is.
    pub version: Version,
    /// The primary may be routed to.
    pub open: bool,
    /// It is about to be stopped by a command: its sessions end when their transactions do.
    pub draining: bool,
    /// The whole cluster is stopped by command, in words.
    pub hibernated: Option<String>,
    /// The primary, when there is one.
    pub primary: Option<Backend>,
    /// The standbys this manager knows of.
    pub standbys: Vec<Standby>,
    /// How long before the receipt the manager itself was last sure of its state.
    pub confirmed_age: Duration,
    /// As committed in that state; `None`: the router's own counts.
    pub bounds: Option<Bounds>,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is the newest state now.
    Adopted,
    /// It says what is known already, and so confirms it.
    Confirmed,
    /// It is older than what is known. It confirms nothing.
    Older,
    /// The cluster is not founded yet.
    BeforeGenesis,
    /// It speaks of another cluster.
    OtherCluster,
}

/// Which of the router's ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Port {
    /// Leads to the primary.
    ReadWrite,
    /// Leads to a standby, to the primary when there is none.
    ReadOnly,
    /// Leads to a standby that commits wait for, and nowhere else.
    SyncOnly,
}

impl Port {
    /// As it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::ReadWrite => "read-write",
            Self::ReadOnly => "read-only",
            Self::SyncOnly => "sync-only",
        }
    }

    /// As it is called in the configuration, and by programs.
    pub fn key(self) -> &'static str {
        match self {
            Self::ReadWrite => "read_write",
            Self::ReadOnly => "read_only",
            Self::SyncOnly => "sync_only",
        }
    }
}

/// As what a session's backend was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// As the primary of the epoch.
    Primary,
    /// As a standby.
    Standby,
}

/// The state a session was opened in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// Life of the cluster.
    pub generation: Generation,
    /// Epoch at the time.
    pub epoch: Epoch,
    /// Its backend.
    pub backend: Backend,
    /// As what it was chosen.
    pub role: Role,
}

/// Why a session must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The primary it was led to is the primary no longer.
    Superseded,
    /// What the router knows is too old to lead anybody anywhere.
    Stale,
}

/// Why there is nowhere to lead a new connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closed {
    /// No manager has answered since the router started.
    NothingHeard,
    /// The last confirmation is this old.
    Stale(Duration),
    /// The whole cluster is stopped by command.
    Hibernated(String),
    /// The epoch has no primary.
    NoPrimary,
    /// The primary is not open for clients.
    NotOpen(MemberId),
    /// Every backend there is was tried.
    AllTried,
    /// No standby that may be led to, and the primary is not to be.
    NoStandby,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingHeard => f.write_str("no manager has told this router the state of the cluster yet"),
            Self::Stale(age) => write!(
                f,
                "the state known to this router is stale: no manager has confirmed it for {:.1} s",
                age.as_secs_f64()
            ),
            Self::Hibernated(why) => f.write_str(why),
            Self::NoPrimary => f.write_str("no member is the primary"),
            Self::NotOpen(member) => write!(f, "{member} is to be the primary and is not open yet"),
            Self::AllTried => f.write_str("no member accepts connections"),
            Self::NoStandby => f.write_str("no standby streams that this port leads to"),
        }
    }
}

/// The state of the cluster as far as sessions are concerned.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// The newest state heard; `None` before the first message.
    pub version: Option<Version>,
    /// The primary, open or not.
    pub primary: Option<Backend>,
    /// The primary may be routed to.
    pub open: bool,
    /// It is about to be stopped by a command.
    pub draining: bool,
    /// The whole cluster is stopped by command, in words: nobody waits for a primary.
    pub hibernated: Option<String>,
    /// Streaming standbys, by name.
    pub standbys: Vec<Reader>,
    /// Who of them is led to.
    pub rules: Arc<Rules>,
    /// When a manager was last sure of this state.
    pub confirmed_at: Moment,
    /// As of that state.
    pub bounds: Bounds,
}

impl View {
    /// Generation and epoch; zero before the first message.
    pub fn epoch(&self) -> (Generation, Epoch) {
        self.version.map(|v| (v.generation, v.epoch)).unwrap_or_default()
    }

    /// What must be the same for an attempt that failed to be worth repeating
    /// after a pause only.
    pub fn place(&self) -> (Generation, Epoch, Option<&MemberId>, bool) {
        let (generation, epoch) = self.epoch();
        (generation, epoch, self.primary.as_ref().map(|p| &p.member), self.open)
    }

    /// The confirmation is too old to lead anybody by it.
    pub fn is_stale(&self, now: Moment) -> bool {
        self.version.is_some() && now.since(self.confirmed_at) > self.bounds.stale
    }

    /// Time until the state goes stale without a further confirmation.
    pub fn until_stale(&self, now: Moment) -> Option<Duration> {
        self.version.map(|_| now.until(self.confirmed_at + self.bounds.stale))
    }

    /// Whether a session opened in the state of `stamp` must end.
    pub fn cut(&self, stamp: &Stamp, now: Moment) -> Option<Cut> {
        let (generation, epoch) = self.epoch();
        if generation != stamp.generation {
            return Some(Cut::Superseded);
        }
        // A standby that was chosen as one stays as good as it was in any epoch.
        let same_primary = self.primary.as_ref().is_some_and(|p| p.member == stamp.backend.member);
        if stamp.role == Role::Primary && (epoch != stamp.epoch || !same_primary) {
            return Some(Cut::Superseded);
        }
        self.is_stale(now).then_some(Cut::Stale)
    }

    /// Where a new connection goes. `turn` counts connections, for taking the
    /// standbys in turn; members in `avoid` were tried a moment ago.
    ///
    /// # Errors
    /// Why it has to wait.
    pub fn lead(&self, port: Port, turn: usize, avoid: &[MemberId], now: Moment) -> Result<Stamp, Closed> {
        let Some(Version { generation, epoch, .. }) = self.version else { return Err(Closed::NothingHeard) };
        if self.is_stale(now) {
            return Err(Closed::Stale(now.since(self.confirmed_at)));
        }
        if let Some(why) = &self.hibernated {
            return Err(Closed::Hibernated(why.clone()));
        }
        let stamp = |backend: &Backend, role| Stamp { generation, epoch, backend: backend.clone(), role };
        if port != Port::ReadWrite {
            if let Some(standby) = self.standby(port, turn, avoid) {
                return Ok(stamp(standby, Role::Standby));
            }
            if port == Port::SyncOnly || !self.rules.primary_too {
                let tried = self.standby(port, turn, &[]).is_some();
                return Err(if tried { Closed::AllTried } else { Closed::NoStandby });
            }
        }
        match &self.primary {
            None => Err(Closed::NoPrimary),
            Some(primary) if !self.open => Err(Closed::NotOpen(primary.member.clone())),
            Some(primary) if avoid.contains(&primary.member) => Err(Closed::AllTried),
            Some(primary) => Ok(stamp(primary, Role::Primary)),
        }
    }

    /// How long a new connection is held; not at all while the cluster is stopped by command.
    pub fn hold(&self) -> Duration {
        if self.hibernated.is_some() { Duration::ZERO } else { self.bounds.hold }
    }

    /// What a client is told that was held in vain for `held`.
    pub fn refusal(&self, port: Port, held: Duration, now: Moment) -> String {
        let held = held.as_secs_f64();
        let (_, epoch) = self.epoch();
        match (self.lead(port, 0, &[], now), port) {
            (Err(closed @ (Closed::NothingHeard | Closed::Stale(_))), _) => format!("{closed}: held {held:.1} s"),
            (Err(Closed::Hibernated(why)), _) => format!("{why}: `matriarch start --all` wakes it"),
            (_, Port::ReadWrite) => format!("the cluster has no open primary (epoch {epoch}): held {held:.1} s"),
            (_, Port::ReadOnly | Port::SyncOnly) => {
                format!("no member takes {} sessions (epoch {epoch}): held {held:.1} s", port.name())
            }
        }
    }

    fn standby(&self, port: Port, turn: usize, avoid: &[MemberId]) -> Option<&Backend> {
        let wanted = |reader: &&Reader| port == Port::ReadOnly || reader.confirms;
        let usable = || {
            let readers = self.standbys.iter().filter(|reader| self.rules.take(reader)).filter(wanted);
            readers.filter(|reader| !avoid.contains(&reader.backend.member))
        };
        let least = usable().map(|reader| reader.lag_bytes).min()?;
        let near: Vec<&Reader> = usable().filter(|reader| reader.lag_bytes - least <= SHARED_LAG_BYTES).collect();
        let weights: Vec<u32> = near.iter().map(|reader| self.rules.weight(&reader.backend.member)).collect();
        near.get(choose(&weights, turn)).map(|reader| &reader.backend)
    }

    /// Whether a session opened in the state of `stamp` is to end as soon as nothing is under way in it.
    pub fn drains(&self, stamp: &Stamp) -> bool {
        self.draining && stamp.role == Role::Primary && self.epoch() == (stamp.generation, stamp.epoch)
    }
}

/// Whose turn it is: each as often as its weight says, and well mixed. None of the weights is 0.
fn choose(weights: &[u32], turn: usize) -> usize {
    if weights.windows(2).all(|two| two[0] == two[1]) {
        return turn % weights.len().max(1);
    }
    // Multiples of the golden ratio, less their whole parts, fill the range from 0 to 1 evenly, however many there are.
    let part = (turn as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    let mut left = (part * total) >> 32;
    let takes = |weight: &u32| {
        let its = left < u64::from(*weight);
        left = left.saturating_sub(u64::from(*weight));
        its
    };
    weights.iter().position(takes).unwrap_or(0)
}

/// Collects what the managers say.
#[derive(Debug)]
pub struct Table {
    cluster: Option<ClusterId>,
    /// The last message of each manager.
    sources: Vec<Option<Source>>,
    /// As long as none was committed.
    own: Bounds,
    view: View,
}

#[derive(Debug, Clone)]
struct Source {
    heard: Heard,
    /// Its stream goes on.
    followed: bool,
}

impl Table {
    /// An empty table for that many managers.
    pub fn new(managers: usize, own: Bounds, rules: Rules) -> Self {
        let view = View { bounds: own, rules: Arc::new(rules), ..View::default() };
        Self { cluster: None, sources: vec![None; managers], own, view }
    }

    /// The state as it stands.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The cluster this router belongs to, from the first message on.
    pub fn cluster(&self) -> Option<&ClusterId> {
        self.cluster.as_ref()
    }

    /// Managers followed at the moment.
    pub fn followed(&self) -> usize {
        self.sources.iter().flatten().filter(|s| s.followed).count()
    }

    /// Takes in one message of the manager number `source`.
    pub fn hear(&mut self, source: usize, heard: Heard, now: Moment) -> Verdict {
        if heard.cluster.0.is_empty() {
            return Verdict::BeforeGenesis;
        }
        if *self.cluster.get_or_insert_with(|| heard.cluster.clone()) != heard.cluster {
            return Verdict::OtherCluster;
        }
        // The age may be longer than this host is up: then nothing was ever confirmed in its time.
        let confirmed_at = Moment(now.0.saturating_sub(heard.confirmed_age));
        let verdict = match self.view.version {
            Some(known) if heard.version < known => Verdict::Older,
            Some(known) if heard.version == known => {
                self.view.confirmed_at = self.view.confirmed_at.max(confirmed_at);
                Verdict::Confirmed
            }
            _ => {
                // The time of the last state does not carry over: it was about less than this.
                self.view.confirmed_at = confirmed_at;
                Verdict::Adopted
            }
        };
        if verdict != Verdict::Older {
            self.view.version = Some(heard.version);
            self.view.bounds = heard.bounds.unwrap_or(self.own);
            self.view.primary.clone_from(&heard.primary);
            self.view.open = heard.open && heard.primary.is_some();
            self.view.draining = heard.draining && heard.primary.is_some();
            self.view.hibernated.clone_from(&heard.hibernated);
        }
        self.sources.iter_mut().for_each(|slot| *slot = slot.take().filter(|s| s.followed));
        if let Some(slot) = self.sources.get_mut(source) {
            *slot = Some(Source { heard, followed: true });
        }
        self.view.standbys = self.standbys();
        verdict
    }

    /// The stream of the manager number `source` ended. What it said of the
    /// standbys stays good until another manager speaks.
    pub fn lose(&mut self, source: usize) {
        if let Some(Some(source)) = self.sources.get_mut(source) {
            source.followed = false;
        }
    }

    /// All managers at the newest state together: one that knows no lag (it does
    /// not lead) leaves the list to those that do, and of two lags the worse counts.
    fn standbys(&self) -> Vec<Reader> {
        let mut out: Vec<Reader> = Vec::new();
        let newest = self.sources.iter().flatten().map(|s| &s.heard).filter(|h| Some(h.version) == self.view.version);
        for standby in newest.flat_map(|h| &h.standbys).filter(|s| s.streaming) {
            let is_primary = self.view.primary.as_ref().is_some_and(|p| p.member == standby.backend.member);
            match out.iter_mut().find(|reader| reader.backend.member == standby.backend.member) {
                Some(reader) => reader.lag_bytes = standby.lag_bytes.max(reader.lag_bytes),
                None if is_primary => {}
                None => {
                    let Standby { backend, lag_bytes, confirms, .. } = standby.clone();
                    out.push(Reader { backend, lag_bytes, confirms });
                }
            }
        }
        out.sort_by(|a, b| a.backend.member.cmp(&b.backend.member));
        out
    }
}

#[cfg(test)]
#[path = "table_test.rs"]
mod tests;
