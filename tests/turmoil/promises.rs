//! What must hold at every moment, and what the whole run has seen. One function a promise.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use matriarch::{
    domain::{Group, NodeId},
    raft::Node,
    rpc::{
        codec,
        v1::{self, entry::Payload},
    },
    state::{ClusterState, Command},
};

use crate::{
    disk::{Content, entry},
    host::{Ack, Seat, Shared},
};

type Broken = Result<(), String>;

/// An acknowledged command must be seen applied so soon, unless its host crashed meanwhile.
const SEEN_WITHIN: Duration = Duration::from_secs(1);

/// An entry that some node has applied, and so everybody must.
struct Committed {
    record: Vec<u8>,
    term: u64,
    /// The highest term anybody had heard of when it was first seen applied. Its commitment is no younger.
    seen_in: u64,
}

/// What is known of one life of one node.
#[derive(Default)]
struct Watched {
    /// Of which start.
    start: u64,
    applied: Option<u64>,
    revision: Option<u64>,
    leadership: Option<(bool, u64)>,
}

/// What one node has told others about its votes.
#[derive(Default)]
struct Told {
    /// For whom it voted in each term.
    voted: BTreeMap<u64, u64>,
    last: (u64, bool),
}

/// The run as the checker saw it.
pub struct Chronicle {
    shared: Arc<Shared>,
    committed: BTreeMap<u64, Committed>,
    indexes: BTreeMap<String, u64>,
    leaders: BTreeMap<u64, u64>,
    told: BTreeMap<u64, Told>,
    watched: BTreeMap<u64, Watched>,
    /// Acknowledged, and not seen applied yet; with the time.
    open: Vec<(Duration, Ack)>,
    /// The real rules over the committed entries.
    oracle: ClusterState,
    oracle_next: u64,
    states: BTreeMap<u64, Vec<u8>>,
    highest_term: u64,
    /// Disks keep what they say they do.
    nobody_forgets: bool,
    pub trace: Vec<String>,
    pub counts: BTreeMap<&'static str, u64>,
}

/// A new leader that has to have everything.
struct NewLeader {
    host: u64,
    term: u64,
}

impl Chronicle {
    pub fn new(shared: Arc<Shared>, nobody_forgets: bool) -> Self {
        Self {
            shared,
            committed: BTreeMap::new(),
            indexes: BTreeMap::new(),
            leaders: BTreeMap::new(),
            told: BTreeMap::new(),
            watched: BTreeMap::new(),
            open: Vec::new(),
            oracle: ClusterState::default(),
            oracle_next: 0,
            states: BTreeMap::new(),
            highest_term: 0,
            nobody_forgets,
            trace: Vec::new(),
            counts: BTreeMap::new(),
        }
    }

    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub fn note(&mut self, at: Duration, what: impl AsRef<str>) {
        self.trace.push(format!("{:>9.3} s  {}", at.as_secs_f64(), what.as_ref()));
    }

    /// Every promise, after every step of the simulation.
    pub fn look(&mut self, at: Duration) -> Broken {
        let shared = Arc::clone(&self.shared);
        if let Some(what) = shared.notes().broken.first() {
            return Err(format!("nobody gives up: {what}"));
        }
        for seat in &shared.seats {
            self.votes_are_not_taken_back(seat)?;
            if let Some(new) = self.one_leader_a_term(at, seat)? {
                self.a_leader_has_all_that_is_committed(&new, &seat.disk.with_now(Content::clone))?;
            }
        }
        for seat in &shared.seats {
            let Some(node) = seat.node() else { continue };
            self.all_apply_the_same(at, seat, &node)?;
        }
        for seat in &shared.seats {
            let Some(node) = seat.node() else { continue };
            self.one_history_one_state(seat, &node)?;
            if self.nobody_forgets {
                nobody_is_accused(seat, &node)?;
            }
            self.watch_leadership(at, seat, &node);
        }
        let acks = std::mem::take(&mut shared.notes().acks);
        for ack in acks {
            self.an_acknowledged_write_is_on_a_quorum_of_disks(at, &ack)?;
            self.open.push((at, ack));
        }
        self.acknowledged_writes_are_applied(at)
    }

    /// A node votes for one candidate in a term, and its vote never goes back, whatever it forgot in a crash.
    fn votes_are_not_taken_back(&mut self, seat: &Seat) -> Broken {
        let told = self.told.entry(seat.node_id()).or_default();
        for vote in seat.disk.told() {
            let now = (vote.term, vote.committed);
            if now < told.last {
                return Err(format!(
                    "votes are not taken back: node {} went from term {} (led: {}) to term {} (led: {})",
                    seat.node_id(),
                    told.last.0,
                    told.last.1,
                    now.0,
                    now.1
                ));
            }
            told.last = now;
            self.highest_term = self.highest_term.max(vote.term);
            if vote.committed {
                continue;
            }
            let before = *told.voted.entry(vote.term).or_insert(vote.node_id);
            if before != vote.node_id {
                return Err(format!(
                    "votes are not taken back: in term {} node {} voted for {before} and then for {}",
                    vote.term,
                    seat.node_id(),
                    vote.node_id
                ));
            }
        }
        Ok(())
    }

    /// Whoever leads a term is the only one who ever does.
    fn one_leader_a_term(&mut self, at: Duration, seat: &Seat) -> Result<Option<NewLeader>, String> {
        let vote = seat.disk.with_now(Content::vote);
        let Some(vote) = vote.filter(|vote| vote.committed) else { return Ok(None) };
        let known = self.leaders.get(&vote.term).copied();
        match known {
            Some(leader) if leader != vote.node_id => Err(format!(
                "one leader a term: term {} is led by {leader}, and node {} says by {}",
                vote.term,
                seat.node_id(),
                vote.node_id
            )),
            Some(_) => Ok(None),
            None => {
                self.leaders.insert(vote.term, vote.node_id);
                self.count("leaders");
                self.note(at, format!("node {} leads term {}", vote.node_id, vote.term));
                let own = vote.node_id == seat.node_id() && seat.node().is_some();
                Ok(own.then_some(NewLeader { host: seat.host, term: vote.term }))
            }
        }
    }

    /// A leader has every entry that was committed before its term.
    fn a_leader_has_all_that_is_committed(&self, new: &NewLeader, log: &Content) -> Broken {
        let first = log.begins_at();
        for (index, committed) in self.committed.range(first..).filter(|(_, c)| c.seen_in < new.term) {
            let has = log.log.get(index);
            if has != Some(&committed.record) {
                let found = has.map_or_else(|| "nothing".to_owned(), |record| words(record));
                return Err(format!(
                    "a leader has all that is committed: n{} leads term {} and has {found} at {index}, where {} was committed",
                    new.host,
                    new.term,
                    words(&committed.record)
                ));
            }
        }
        Ok(())
    }

    /// Two nodes never apply different entries at one index.
    fn all_apply_the_same(&mut self, at: Duration, seat: &Seat, node: &Node) -> Broken {
        let start = seat.starts.load(std::sync::atomic::Ordering::SeqCst);
        let watched = self.watched.entry(seat.host).or_default();
        if watched.start != start {
            *watched = Watched { start, ..Watched::default() };
        }
        let applied = node.applied_index();
        if applied == 0 || watched.applied == Some(applied) {
            return Ok(());
        }
        let from = watched.applied.map_or(0, |last| last + 1);
        let fresh = watched.applied.is_none();
        watched.applied = Some(applied);
        if from > applied {
            return Err(format!("all apply the same: n{} applied {} and then only {applied}", seat.host, from - 1));
        }
        let records: Vec<(u64, Vec<u8>)> =
            seat.disk.with_now(|c| c.log.range(from..=applied).map(|(i, r)| (*i, r.clone())).collect());
        if !fresh && (records.len() as u64) < applied - from + 1 {
            self.count("snapshots installed");
            self.note(at, format!("n{} goes on from a snapshot at {applied}", seat.host));
        }
        for (index, record) in records {
            self.apply(seat, index, record)?;
        }
        Ok(())
    }

    fn apply(&mut self, seat: &Seat, index: u64, record: Vec<u8>) -> Broken {
        if let Some(known) = self.committed.get(&index) {
            if known.record == record {
                return Ok(());
            }
            return Err(format!(
                "all apply the same: at {index} n{} applied {}, and {} was applied before",
                seat.host,
                words(&record),
                words(&known.record)
            ));
        }
        let found = entry(&record);
        let term = found.log_id.as_ref().map_or(0, |id| id.term);
        let before = self.committed.range(..index).next_back().map_or(0, |(_, c)| c.term);
        if term < before {
            return Err(format!("all apply the same: the term goes back from {before} to {term} at {index}"));
        }
        self.highest_term = self.highest_term.max(term);
        if let Some(command) = command_of(&found) {
            self.indexes.insert(command.request_id, index);
        }
        self.committed.insert(index, Committed { record, term, seen_in: self.highest_term });
        self.count("entries");
        self.advance_oracle();
        Ok(())
    }

    fn advance_oracle(&mut self) {
        while let Some(next) = self.committed.get(&self.oracle_next) {
            if let Some(command) = command_of(&entry(&next.record)) {
                self.oracle.apply(&command);
                self.states.insert(self.oracle.revision, codec::encode_state(&self.oracle));
            }
            self.oracle_next += 1;
        }
    }

    /// Every node's state is what the committed entries make of it, also when it came by a snapshot.
    fn one_history_one_state(&mut self, seat: &Seat, node: &Node) -> Broken {
        let state = node.state().borrow().clone();
        let watched = self.watched.entry(seat.host).or_default();
        if watched.revision == Some(state.revision) || state.revision == 0 {
            return Ok(());
        }
        // What was applied within this step may not be in the metrics yet.
        let Some(expected) = self.states.get(&state.revision) else { return Ok(()) };
        watched.revision = Some(state.revision);
        if *expected == codec::encode_state(&state) {
            return Ok(());
        }
        Err(format!("one history, one state: n{} has another state at revision {}", seat.host, state.revision))
    }

    /// When a write is acknowledged it is on the disks, as far as they say, of a majority of each half of the voters.
    fn an_acknowledged_write_is_on_a_quorum_of_disks(&mut self, at: Duration, ack: &Ack) -> Broken {
        let [before, after] = &ack.groups;
        if before.id != after.id {
            return Ok(());
        }
        let needle = ack.request.as_bytes();
        let has = |record: &Vec<u8>| record.windows(needle.len()).any(|w| w == needle);
        let holders: BTreeSet<NodeId> = self
            .shared
            .seats
            .iter()
            .filter(|seat| seat.disk.with_claimed(|c| c.log.values().rev().take(200).any(has)))
            .map(|seat| NodeId(seat.node_id()))
            .collect();
        if is_quorum(after, &holders) || self.is_snapshotted(ack) {
            return Ok(());
        }
        Err(format!(
            "an acknowledged write is on a quorum of disks: at {at:?} {} of n{} is on {holders:?} of {:?}",
            ack.request, ack.host, after.voters
        ))
    }

    /// The log that had it may have given way to a snapshot within this step.
    fn is_snapshotted(&self, ack: &Ack) -> bool {
        let Some(index) = self.indexes.get(&ack.request) else { return false };
        self.shared.seats.iter().any(|seat| seat.disk.with_now(Content::begins_at) > *index)
    }

    /// What was acknowledged is among what is applied.
    fn acknowledged_writes_are_applied(&mut self, at: Duration) -> Broken {
        let indexes = &self.indexes;
        self.open.retain(|(_, ack)| !indexes.contains_key(&ack.request));
        // Its host may have crashed before that was seen; then the others must come up with it before the end.
        let stayed_up = |ack: &Ack| {
            let start = self.watched.get(&ack.host).map_or(0, |w| w.start.saturating_sub(1));
            ack.request.starts_with(&format!("r-{}-{start}-", ack.host)) && self.is_up(ack.host)
        };
        let late = self.open.iter().find(|(since, ack)| at > *since + SEEN_WITHIN && stayed_up(ack));
        late.map_or(Ok(()), |(_, ack)| Err(lost(ack)))
    }

    fn is_up(&self, host: u64) -> bool {
        self.shared.seats.iter().any(|seat| seat.host == host && seat.node().is_some())
    }

    /// At the end of a run that has healed.
    pub fn nothing_acknowledged_is_missing(&self) -> Broken {
        self.open.first().map_or(Ok(()), |(_, ack)| Err(lost(ack)))
    }

    fn watch_leadership(&mut self, at: Duration, seat: &Seat, node: &Node) {
        let leadership = node.leadership().borrow().clone();
        let now = (leadership.am_leader, leadership.term);
        let watched = self.watched.entry(seat.host).or_default();
        if watched.leadership.replace(now) != Some(now) && leadership.am_leader {
            self.count("leaderships confirmed");
            self.note(at, format!("n{} is confirmed as leader of term {}", seat.host, leadership.term));
        }
    }

    /// All of these have applied everything, and have the same state.
    pub fn is_settled(&self, wanted: &BTreeSet<u64>) -> Result<(), String> {
        let last = self.committed.last_key_value().map_or(0, |(index, _)| *index);
        for seat in &self.shared.seats {
            let Some(node) = seat.node() else { return Err(format!("n{} does not run", seat.host)) };
            let group = node.group().borrow().clone();
            let voters: Vec<BTreeSet<u64>> = group.voters.iter().map(|v| v.iter().map(|n| n.0).collect()).collect();
            if voters != [wanted.clone()] || group.nodes.len() != wanted.len() {
                return Err(format!("n{} has the voters {voters:?}, wanted are {wanted:?}", seat.host));
            }
            if node.applied_index() < last {
                return Err(format!("n{} has applied {} of {last}", seat.host, node.applied_index()));
            }
        }
        Ok(())
    }

    pub fn last_committed(&self) -> u64 {
        self.committed.last_key_value().map_or(0, |(index, _)| *index)
    }

    /// A number that stands for the whole run.
    pub fn fingerprint(&self) -> u64 {
        let mut hash: u64 = 0xCBF2_9CE4_8422_2325;
        let mut mix = |bytes: &[u8]| {
            for byte in bytes {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
            }
        };
        for line in &self.trace {
            mix(line.as_bytes());
        }
        for committed in self.committed.values() {
            mix(&committed.record);
        }
        hash
    }
}

/// An honest node is never said to have lost its log, and none is told that it forgot something.
fn nobody_is_accused(seat: &Seat, node: &Node) -> Broken {
    match node.lost_logs().into_iter().next() {
        None => Ok(()),
        Some((accused, evidence)) => {
            Err(format!("nobody is accused: n{} says that node {accused} lost its log: {evidence}", seat.host))
        }
    }
}

fn is_quorum(group: &Group, holders: &BTreeSet<NodeId>) -> bool {
    group.voters.iter().all(|half| half.intersection(holders).count() > half.len() / 2)
}

fn lost(ack: &Ack) -> String {
    format!("acknowledged writes are applied: {} was acknowledged by n{} and nobody has it", ack.request, ack.host)
}

fn command_of(entry: &v1::Entry) -> Option<Command> {
    match &entry.payload {
        Some(Payload::Command(bytes)) => codec::decode_command(bytes).ok(),
        _ => None,
    }
}

fn words(record: &[u8]) -> String {
    let entry = entry(record);
    let term = entry.log_id.as_ref().map_or(0, |id| id.term);
    let what = match command_of(&entry) {
        Some(command) => command.request_id,
        None => "no command".to_owned(),
    };
    format!("`{what}` of term {term}")
}
