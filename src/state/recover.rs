//! The beginning of a new generation from the state of one host, when a majority
//! of the managers is gone for good. Not a command: there is no group that could
//! commit it. Numbers that the lost hosts may have used beyond what this host
//! knows are jumped over, and each host jumps elsewhere: two that are recovered
//! out of each other's sight are told apart when they meet, and the one of the
//! lower generation gives way.

use super::cluster::{ClusterState, FinishedOperation, INCIDENTS_KEPT, Incident, Lock, TimelineRecord};
use crate::domain::{Epoch, Format, Generation, MemberId, NodeId, TimelineHistory, TimelineId, WalPosition};

/// Epochs and node ids go on at the next multiple: the lost hosts have not used so many unseen.
const JUMP: u64 = 1_000;
/// Timelines go on after the next multiple. Each number in between costs a stub file at the next promotion.
const JUMP_TIMELINES: u64 = 16;
/// More than there can be members: the last two digits of a generation say on which of them it began.
const JUMP_GENERATIONS: u64 = 100;

/// The next multiple of `jump`, for the first member; each other member has a later one of its own.
fn after(number: u64, jump: u64, place: u64) -> u64 {
    (number / jump + 1 + place) * jump
}

impl ClusterState {
    /// This state as `me` alone begins a new generation with: nobody holds the lock, every member
    /// has to come in anew, and the history of `data`, when given, is the cluster's own.
    ///
    /// `None` before genesis, when `me` is no member, or when there are no timelines left.
    pub fn recovered(&self, me: &MemberId, data: Option<&TimelineHistory>) -> Option<ClusterState> {
        let mut state = self.clone();
        // Learners last: each place costs numbers of timelines.
        let learners = self.members.iter().filter(|(_, member)| member.learner);
        let place = self.voters().chain(learners).position(|(member, _)| member == me)? as u64;
        let identity = state.identity.as_mut()?;
        identity.generation = Generation(after(identity.generation.0, JUMP_GENERATIONS, 0) + place + 1);
        let generation = identity.generation;
        let node = NodeId(after(self.next_node().0, JUMP, place));
        state.members.values_mut().for_each(|m| m.node = NodeId(0));
        let alone = state.members.get_mut(me)?;
        // Somebody has to vote: whoever begins a generation does, and stays a voter.
        (alone.node, alone.learner) = (node, false);
        state.last_node = node;
        // A host that comes over from a lower generation may have sealed any epoch of that one.
        state.epoch = Epoch(after(self.epoch.0, JUMP, place).max(generation.0 * JUMP));
        let previous = match &self.lock {
            Lock::Free => None,
            Lock::Granted { epoch, member, .. } => Some((*epoch, member.clone())),
            Lock::Released(release) => Some((release.epoch, release.member.clone())),
            Lock::Fenced { previous, .. } => previous.clone(),
        };
        state.lock = Lock::Fenced { epoch: state.epoch, previous, released: None };
        state.roster.begin_generation(after(self.roster.version, JUMP, place));
        if let Some(data) = data {
            state.adopt(data);
        }
        let highest = self.highest_timeline().max(data.map_or(TimelineId(0), |d| d.timeline));
        let reserved = TimelineId(u32::try_from(after(highest.0.into(), JUMP_TIMELINES, place)).ok()?);
        state.lineage.push(TimelineRecord { timeline: reserved, epoch: state.epoch, switch: None, first_record: None });
        // An agent may know of a copy that it made for one of them, and takes the next of that number for done.
        state.operations = after(self.operations, JUMP, place);
        state.agenda.recovered(state.operation.as_ref());
        if let Some(operation) = state.operation.take() {
            let reason = "the cluster was recovered".to_owned();
            state.last_operation = Some(FinishedOperation { operation, succeeded: false, reason });
        }
        // What was acknowledged on hosts that are gone is accepted as lost.
        state.sync.clear();
        state.cascade.clear();
        if state.reader.id > 0 || state.format >= Format::OPERATE {
            // It may have been lent unseen, also for the first time: whoever has it keeps it by no lend of this generation, and
            // an agent that comes over from a lower one takes the lends of this one for later ones.
            state.reader.id = after(state.reader.id, JUMP, place).max(generation.0 * JUMP);
            state.reader.holder = None;
        }
        // Whoever recovers wants a primary.
        state.paused = None;
        state.hibernation = None;
        state.maintenance.remove(me);
        state.end_reigns();
        state.revision += 1;
        let what = format!("generation {generation} begins on {me} by command, epoch {}", state.epoch);
        state.incidents.push_back(Incident {
            revision: state.revision,
            epoch: state.epoch,
            what,
            rule: 0,
            evidence: None,
        });
        while state.incidents.len() > INCIDENTS_KEPT {
            state.incidents.pop_front();
        }
        Some(state)
    }

    /// Makes a history the cluster's own: its timelines began where it says, all others came to nothing.
    fn adopt(&mut self, history: &TimelineHistory) {
        self.lineage.iter_mut().for_each(|record| record.switch = None);
        let children = history.switches.iter().skip(1).map(|s| s.timeline).chain([history.timeline]);
        for (parent, child) in history.switches.iter().zip(children) {
            let switch = Some(WalPosition { timeline: parent.timeline, lsn: parent.end });
            let first_record = history.first_records.get(&child).copied();
            match self.lineage.iter_mut().find(|r| r.timeline == child) {
                // What this host doesn't know any more may be known from its promotion.
                Some(record) => {
                    record.switch = switch;
                    record.first_record = first_record.or(record.first_record);
                }
                None => {
                    self.lineage.push(TimelineRecord { timeline: child, epoch: Epoch(0), switch, first_record });
                }
            }
            // Whose it was before counts no more: this host's WAL is the one that is gone on with.
            self.by_hand.remove(&child);
        }
        self.lineage.sort_by_key(|r| r.timeline);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{ClusterId, Lsn, TimelineSwitch},
        state::{Asked, GrantPhase, Identity, Member},
    };

    fn id(name: &str) -> MemberId {
        name.parse().unwrap()
    }

    fn at(timeline: u32, lsn: u64) -> WalPosition {
        WalPosition { timeline: TimelineId(timeline), lsn: Lsn(lsn) }
    }

    /// b is primary of epoch 7 on timeline 4; timeline 3 came to nothing.
    fn before() -> ClusterState {
        let member = |n: u64| Member {
            node: NodeId(n),
            manager: format!("h{n}:1"),
            postgres: format!("h{n}:2"),
            agent: String::new(),
            learner: false,
        };
        let record = |t: u32, epoch, switch| TimelineRecord {
            timeline: TimelineId(t),
            epoch: Epoch(epoch),
            switch,
            first_record: None,
        };
        ClusterState {
            identity: Some(Identity { cluster_id: ClusterId("c".into()), generation: Generation(1), name: "x".into() }),
            members: [(id("a"), member(1)), (id("b"), member(2)), (id("c"), member(3))].into(),
            epoch: Epoch(7),
            lock: Lock::Granted {
                epoch: Epoch(7),
                member: id("b"),
                phase: GrantPhase::Open,
                timeline: TimelineId(4),
                switch_lsn: Lsn(200),
                floor: at(2, 190),
            },
            lineage: vec![
                record(1, 0, None),
                record(2, 1, Some(at(1, 100))),
                record(3, 5, None),
                record(4, 7, Some(at(2, 200))),
            ],
            ..ClusterState::default()
        }
    }

    fn history(timeline: u32, switches: &[(u32, u64)]) -> TimelineHistory {
        let switch = |&(t, end): &(u32, u64)| TimelineSwitch { timeline: TimelineId(t), end: Lsn(end) };
        TimelineHistory {
            timeline: TimelineId(timeline),
            switches: switches.iter().map(switch).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn a_new_generation_goes_on_beyond_every_number_the_lost_hosts_may_have_used() {
        let mut old = before();
        for member in ["a", "b"] {
            old.maintenance.insert(id(member), Asked::default());
        }
        let after = old.recovered(&id("a"), None).unwrap();
        assert_eq!(after.maintenance.keys().collect::<Vec<_>>(), [&id("b")], "who recovers wants a primary here");
        assert_eq!(after.generation(), Generation(101), "the first jump, on the first member");
        assert_eq!(after.cluster_id(), ClusterId("c".into()), "it is the same cluster");
        assert_eq!(after.epoch, Epoch(101_000));
        assert_eq!(after.highest_timeline(), TimelineId(16));
        let nodes: Vec<u64> = after.members.values().map(|m| m.node.0).collect();
        assert_eq!(nodes, [1_000, 0, 0], "the others come in anew");
        assert_eq!(after.next_node(), NodeId(1_001));
        assert_eq!(after.operations, 1_000, "no agent has made a copy for the next of them");
        let Lock::Fenced { epoch, previous, released } = &after.lock else { panic!() };
        assert_eq!((*epoch, previous.clone(), released), (Epoch(101_000), Some((Epoch(7), id("b"))), &None));
        assert!(after.incidents.back().unwrap().what.contains("generation 101"));
        assert_eq!(before().recovered(&id("x"), None), None);
        assert_eq!(ClusterState::default().recovered(&id("a"), None), None);
        let again = after.recovered(&id("a"), None).unwrap();
        assert_eq!((again.generation(), again.epoch), (Generation(201), Epoch(201_000)));
    }

    #[test]
    fn two_hosts_recovered_out_of_each_others_sight_share_no_number() {
        let [a, c] = ["a", "c"].map(|me| before().recovered(&id(me), None).unwrap());
        assert!(a.generation() < c.generation(), "the first gives way");
        assert!(a.epoch < c.epoch, "an agent that comes over from the other one knows no higher epoch");
        assert!(c.highest_timeline().0 >= a.highest_timeline().0 + 16);
        assert_ne!(a.last_node, c.last_node);
        assert_ne!(a.operations, c.operations);
        let later = a.recovered(&id("a"), None).unwrap();
        assert!(c.generation() < later.generation(), "whoever goes on from what is known is ahead");
        assert!(c.epoch < later.epoch, "and its epochs are, though c had sealed some of its own");
    }

    #[test]
    fn no_lend_of_an_earlier_generation_is_taken_for_one_of_this() {
        // Of the first lend this host's log knows nothing yet.
        let before = || ClusterState { format: Format::OPERATE, ..before() };
        let a = before().recovered(&id("a"), None).unwrap();
        assert_eq!((a.reader.id, a.reader.holder.clone()), (101_000, None));
        // Out of sight of a; then a goes on from what it knows, and c, whose lends went on, comes over.
        let c = before().recovered(&id("c"), None).unwrap();
        let later = a.recovered(&id("a"), None).unwrap();
        assert!(a.generation() < c.generation() && c.generation() < later.generation());
        assert!(later.reader.id > c.reader.id + 500 && c.reader.id > a.reader.id + 500);
        let old = ClusterState { format: Format::SYNC, ..before() };
        assert_eq!(old.recovered(&id("a"), None).unwrap().reader.id, 0, "nobody could lend it");
    }

    #[test]
    fn the_data_of_the_host_is_the_history_of_the_cluster() {
        // The log of a knows timeline 4; its PostgreSQL never followed there and went further on timeline 2.
        let behind = before().recovered(&id("a"), Some(&history(2, &[(1, 100)]))).unwrap();
        assert_eq!(behind.newest_complete_timeline(), TimelineId(2));
        assert_eq!(behind.history_of(TimelineId(2)), history(2, &[(1, 100)]));
        assert!(behind.lineage.iter().any(|r| r.timeline == TimelineId(4)), "its number is not used again");
        // PostgreSQL followed to a timeline that the log doesn't know yet.
        let ahead = before().recovered(&id("a"), Some(&history(5, &[(1, 100), (2, 200), (4, 300)]))).unwrap();
        assert_eq!(ahead.newest_complete_timeline(), TimelineId(5));
        assert_eq!(ahead.history_of(TimelineId(5)), history(5, &[(1, 100), (2, 200), (4, 300)]));
    }

    #[test]
    fn a_learner_that_begins_a_generation_votes_and_has_a_number_after_all_voters() {
        let mut before = before();
        before.members.get_mut(&id("a")).unwrap().learner = true;
        let after = before.recovered(&id("a"), None).unwrap();
        assert!(!after.is_learner(&id("a")));
        assert_eq!(after.generation(), Generation(103), "b and c come first");
        assert!(before.recovered(&id("b"), None).unwrap().is_learner(&id("a")), "otherwise it stays one");
    }
}
