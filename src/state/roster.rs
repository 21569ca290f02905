//! How the list of members came to be. A holder in failsafe asks the members of
//! the list it knows; one that was added later has not been asked, and must not
//! be granted on the strength of promises it never gave.

use std::collections::BTreeMap;

use super::cluster::{ClusterState, GrantPhase, Lock, Member};
use crate::domain::{Briefing, MemberId, MemberList, SyncWord, TimelineHistory};

/// The versions of the list of members.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Roster {
    /// Rises with each change of the list; 0 before there is one.
    pub version: u64,
    /// The version each member came with, or came back with as another host.
    pub since: BTreeMap<MemberId, u64>,
    /// The version when the lock was granted last: a holder that has taken it knows that one.
    pub granted: u64,
    /// Nobody who may still hold a lease was granted with an older version: that of the last grant which is known to
    /// have been taken. A grant that nobody took says nothing of the holder before it.
    pub at_grant: u64,
}

impl Roster {
    /// That of a state which was stored before there was one: the list is that of genesis. What replaying the log
    /// comes to, so that all hosts count alike whichever of both they started from.
    pub fn of_founded<'a>(members: impl Iterator<Item = &'a MemberId>, granted: bool) -> Roster {
        let since: BTreeMap<MemberId, u64> = members.map(|member| (member.clone(), 1)).collect();
        let version = u64::from(!since.is_empty());
        let granted = if granted { version } else { 0 };
        Roster { version, since, granted, at_grant: granted }
    }

    /// Takes note of a change of the list, whatever command brought it.
    pub(super) fn follow(&mut self, before: &BTreeMap<MemberId, Member>, after: &BTreeMap<MemberId, Member>) {
        // Another Raft node on the same host is no other host: its agent is asked, and has promised, as before.
        let there = |list: &BTreeMap<MemberId, Member>, id: &MemberId, member: &Member| {
            list.get(id).is_some_and(|m| Member { node: member.node, ..m.clone() } == *member)
        };
        let same = before.len() == after.len() && after.iter().all(|(id, member)| there(before, id, member));
        if same {
            return;
        }
        self.version += 1;
        self.since.retain(|member, _| after.contains_key(member));
        let came = after.iter().filter(|(id, member)| !there(before, id, member));
        for (member, _) in came {
            self.since.insert(member.clone(), self.version);
        }
    }

    /// The lock is granted. Whoever held it before may go on in failsafe until this grant is taken.
    pub(super) fn grant(&mut self) {
        self.granted = self.version;
        if self.at_grant == 0 {
            self.at_grant = self.version;
        }
    }

    /// The grant was taken: its agent was free of promises then, and so everybody before has ended.
    pub(super) fn taken(&mut self) {
        self.at_grant = self.granted;
    }

    /// Nobody goes on by the word of agents across generations: they take no datagram of another one. Members that
    /// come in anew are candidates at once.
    pub(super) fn begin_generation(&mut self, version: u64) {
        self.version = version;
        self.at_grant = u64::MAX;
    }

    /// A holder whose list has this version asks this member too, if it must go on without the managers.
    pub fn is_asked(&self, member: &MemberId, version: u64) -> bool {
        self.since.get(member).is_none_or(|since| *since <= version)
    }
}

impl ClusterState {
    /// What an agent needs to know of this state.
    pub fn briefing(&self) -> Briefing {
        // A witness is never primary: nobody who goes on in failsafe needs its promise.
        let with_agent = self.members.iter().filter(|(_, member)| !member.is_witness());
        let agents = with_agent.clone().map(|(id, member)| (id.clone(), member.agent.clone())).collect();
        let members = MemberList { version: self.roster.version, agents };
        let (timings, settings) = (self.timings.clone(), self.settings.clone());
        let sync = SyncWord { id: self.sync.id, epoch: self.epoch, rule: self.sync.in_force(self.epoch).cloned() };
        let (pause, lineage) = (self.pause_word(), self.lineage_of_primary());
        let managers = with_agent.map(|(id, member)| (id.clone(), member.manager.clone())).collect();
        Briefing {
            epoch: self.epoch,
            members,
            timings,
            settings,
            pause,
            sync,
            lineage,
            managers,
            moved: self.moved.clone(),
        }
    }

    /// The history of the timeline that the promoted primary writes.
    fn lineage_of_primary(&self) -> Option<TimelineHistory> {
        match &self.lock {
            Lock::Granted { phase, timeline, .. } if *phase != GrantPhase::Promoting => {
                Some(self.history_of(*timeline))
            }
            Lock::Granted { .. } | Lock::Free | Lock::Released(_) | Lock::Fenced { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::NodeId;

    fn list(names: &[(&str, u64)]) -> BTreeMap<MemberId, Member> {
        let member = |node: u64| Member {
            node: NodeId(node),
            manager: format!("h{node}:7400"),
            postgres: format!("h{node}:5432"),
            agent: format!("h{node}:7401"),
            learner: false,
        };
        names.iter().map(|(name, node)| (name.parse().unwrap(), member(*node))).collect()
    }

    #[test]
    fn a_grant_that_nobody_took_says_nothing_of_the_holder_before_it() {
        let mut roster = Roster { version: 7, ..Roster::default() };
        roster.grant();
        assert_eq!(roster.at_grant, 7, "there was nobody before");
        roster.taken();
        roster.version = 8;
        roster.grant();
        assert_eq!(roster.at_grant, 7, "the holder with list 7 may go on by its word");
        roster.taken();
        assert_eq!(roster.at_grant, 8);
    }

    #[test]
    fn a_member_is_asked_from_the_version_it_came_with() {
        let mut roster = Roster::default();
        let (first, second) = (list(&[("a", 1), ("b", 2)]), list(&[("a", 1), ("b", 2), ("c", 3)]));
        roster.follow(&BTreeMap::new(), &first);
        roster.follow(&first, &first.clone());
        assert_eq!(roster.version, 1);
        roster.follow(&first, &second);
        let asked = |roster: &Roster, name: &str, version| roster.is_asked(&name.parse().unwrap(), version);
        assert!(asked(&roster, "b", 1) && !asked(&roster, "c", 1) && asked(&roster, "c", 2));

        let mut renumbered = second.clone();
        renumbered.get_mut(&"a".parse::<MemberId>().unwrap()).unwrap().node = NodeId(9);
        roster.follow(&second, &renumbered);
        assert_eq!(roster.version, 2, "another Raft node on the same host is no other host");
        let replaced = list(&[("a", 1), ("b", 4), ("c", 3)]);
        roster.follow(&second, &replaced);
        assert!(!asked(&roster, "b", 2), "the same name on another host is another member");
        roster.follow(&replaced, &first);
        roster.follow(&first, &second);
        assert!(!asked(&roster, "c", 4) && asked(&roster, "c", 5), "one that came back counts as new");
    }
}
