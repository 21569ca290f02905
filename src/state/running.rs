//! The first grant, when the cluster begins with a PostgreSQL that goes on running.

use super::cluster::{ClusterState, Lock};
use crate::domain::{Epoch, MemberId, WalPosition};

impl ClusterState {
    /// The lock was granted to one that goes on running on the timeline it is on: none was reserved for it.
    pub fn is_granted_running(&self) -> bool {
        let Lock::Granted { epoch, timeline, .. } = &self.lock else { return false };
        !self.lineage.iter().any(|record| record.timeline == *timeline && record.epoch == *epoch)
    }

    /// A timeline that somebody was granted before is never granted again, so this is for the first grant alone: until
    /// then there is no WAL of this cluster but on that host.
    pub(super) fn grant_running(&mut self, member: &MemberId, floor: WalPosition) -> Result<Option<String>, String> {
        let Lock::Fenced { epoch, previous, .. } = &self.lock else {
            return Err("a grant needs a fenced epoch".to_owned());
        };
        let epoch = *epoch;
        let others = previous.as_ref().is_some_and(|(_, last)| last != member);
        let reserved = self.lineage.iter().any(|record| record.epoch > Epoch(0));
        if others || reserved || self.initializer.as_ref() != Some(member) {
            return Err("somebody else was granted before".to_owned());
        }
        if floor.timeline != self.highest_timeline() {
            return Err(format!(
                "{member} is on timeline {}, the cluster on {}",
                floor.timeline,
                self.highest_timeline()
            ));
        }
        self.may_be_granted(member)?;
        self.start_sync(epoch, member, None)?;
        self.hand_to(member, (epoch, floor.timeline), floor);
        let timeline = floor.timeline;
        Ok(Some(format!(
            "{member} is to be primary of epoch {epoch}, goes on running on timeline {timeline}, its WAL ends at {floor}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{ClusterId, Format, Generation, Lsn, NodeId, TimelineHistory, TimelineId, TimelineSwitch},
        state::{Applied, Command, Kind, Member, RuleId},
    };

    fn id(name: &str) -> MemberId {
        name.parse().unwrap()
    }

    fn at(timeline: u32, lsn: u64) -> WalPosition {
        WalPosition { timeline: TimelineId(timeline), lsn: Lsn(lsn) }
    }

    fn run(state: &mut ClusterState, kind: Kind) -> Applied {
        let (request_id, expected) = ("r".to_owned(), state.epoch);
        state.apply(&Command { request_id, expected, because: RuleId(1), kind, evidence: None })
    }

    fn is_stale(applied: &Applied) -> bool {
        matches!(applied, Applied::Stale { .. })
    }

    fn founded() -> ClusterState {
        let mut state = ClusterState::default();
        let member = |n: u64| {
            let (manager, postgres, agent) = (format!("h{n}:7400"), format!("h{n}:5432"), String::new());
            Member { node: NodeId(n), manager, postgres, agent, learner: false }
        };
        let members = vec![(id("a"), member(1)), (id("b"), member(2)), (id("c"), member(3))];
        let (cluster_id, generation) = (ClusterId("x".into()), Generation(1));
        let genesis = Kind::Genesis { cluster_id, generation, name: "test".into(), members, initializer: id("a") };
        assert_eq!(run(&mut state, genesis), Applied::Changed);
        state
    }

    #[test]
    fn only_the_founding_member_goes_on_running() {
        let restored = TimelineHistory {
            timeline: TimelineId(3),
            switches: vec![TimelineSwitch { timeline: TimelineId(1), end: Lsn(40) }],
            first_records: Default::default(),
        };
        for (history, timeline) in [(None, 1), (Some(restored), 3)] {
            let mut state = founded();
            run(&mut state, Kind::RecordSystem { system_identifier: 7, history });
            let running = |member: &str, timeline| Kind::GrantRunning { member: id(member), floor: at(timeline, 50) };
            assert!(is_stale(&run(&mut state, running("a", timeline))), "nothing is fenced");
            run(&mut state, Kind::fence("first".into()));
            assert!(is_stale(&run(&mut state, running("b", timeline))), "who has no data");
            assert!(is_stale(&run(&mut state, running("a", timeline + 1))), "another timeline");
            let lineage = state.lineage.clone();
            assert_eq!(run(&mut state, running("a", timeline)), Applied::Changed);
            assert!(state.is_granted_running());
            assert_eq!(state.format, Format::RUNNING);
            // Given back without a lease: again, for nobody else has anything.
            run(&mut state, Kind::fence("no majority".into()));
            assert_eq!(run(&mut state, running("a", timeline)), Applied::Changed);
            let member = id("a");
            let began = Kind::PromotionComplete {
                member,
                timeline: TimelineId(timeline),
                switch: at(timeline, 50),
                first_record: None,
            };
            assert_eq!(run(&mut state, began), Applied::Changed);
            assert_eq!(run(&mut state, Kind::Open { member: id("a") }), Applied::Changed);
            assert_eq!(state.lineage, lineage, "where its timeline comes from is as it was recorded");
            // The next takes a number that nobody had, and then nobody goes on running any more.
            run(&mut state, Kind::fence("it is lost".into()));
            assert_eq!(
                run(&mut state, Kind::Grant { member: id("b"), floor: at(timeline, 90), sync: None }),
                Applied::Changed
            );
            assert!(matches!(state.lock, Lock::Granted { timeline: next, .. } if next == TimelineId(timeline + 1)));
            assert!(!state.is_granted_running());
            run(&mut state, Kind::fence("again".into()));
            assert!(is_stale(&run(&mut state, running("a", timeline))), "somebody else was granted");
        }
    }
}
