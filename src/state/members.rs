//! Who belongs to the cluster, by which Raft node, and where each is reached.

use super::cluster::{ClusterState, Member};
use crate::domain::{MemberId, NodeId};

impl ClusterState {
    pub(super) fn replace_node(
        &mut self,
        who: &MemberId,
        old: NodeId,
        node: NodeId,
        reason: &str,
    ) -> Result<Option<String>, String> {
        let next = self.next_node();
        let Some(member) = self.members.get_mut(who) else {
            return Err(format!("{who} is no member"));
        };
        if member.node != old {
            return Err(format!("the node of {who} is {}", member.node));
        }
        if node != next {
            return Err(format!("the next node is {next}"));
        }
        member.node = node;
        self.last_node = node;
        Ok(Some(match old {
            NodeId(0) => format!("{who} takes part as node {node}"),
            old => format!("{who} takes part as node {node}, node {old} never votes again: {reason}"),
        }))
    }

    pub(super) fn add_member(
        &mut self,
        who: &MemberId,
        (manager, postgres): (&str, &str),
        learner: bool,
    ) -> Result<Option<String>, String> {
        if self.identity.is_none() {
            return Err("the cluster is not founded".to_owned());
        }
        if self.members.contains_key(who) {
            return Err(format!("{who} is a member"));
        }
        self.free([manager, postgres], who)?;
        if learner && postgres.is_empty() {
            return Err(format!("{who} would have neither a vote nor PostgreSQL"));
        }
        let kind = match (postgres.is_empty(), learner) {
            (true, _) => "a member, a witness",
            (false, true) => "a member, a learner",
            (false, false) => "a member",
        };
        self.last_node = NodeId(self.next_node().0 - 1);
        let member = Member {
            node: NodeId(0),
            manager: manager.to_owned(),
            postgres: postgres.to_owned(),
            agent: String::new(),
            learner,
        };
        self.members.insert(who.clone(), member);
        self.moved.remove(who);
        Ok(Some(format!("{who} is {kind}")))
    }

    pub(super) fn remove_member(&mut self, who: &MemberId) -> Result<Option<String>, String> {
        if !self.members.contains_key(who) {
            return Err(format!("{who} is no member"));
        }
        if self.holder().is_some_and(|(_, holder)| holder == who) {
            return Err(format!("{who} holds the lock"));
        }
        if let Some(running) = self.operation.as_ref().filter(|o| o.to == *who) {
            return Err(format!("{who} is the target of operation {}", running.id));
        }
        if self.hibernation.as_ref().is_some_and(|h| h.primary == *who) {
            return Err(format!("{who} was primary when the cluster was hibernated: `matriarch start --all` first"));
        }
        if self.sync.rules.iter().any(|rule| rule.names.contains(who)) {
            return Err(format!("{who} confirms commits; set {who}.sync=false first"));
        }
        // The number of a member that is gone is not given again.
        self.last_node = NodeId(self.next_node().0 - 1);
        self.members.remove(who);
        self.moved.remove(who);
        self.settings.forget(who);
        self.maintenance.remove(who);
        self.unexplained.remove(who);
        self.leave_source(who);
        Ok(Some(format!("{who} is no member any more")))
    }

    /// The address is only where the member is reached: who answers there has to be that member, by its name, its cluster
    /// and its generation, for every request names them.
    pub(super) fn move_member(&mut self, who: &MemberId, to: [&str; 3]) -> Result<Option<String>, String> {
        let [manager, postgres, agent] = to;
        if !self.members.contains_key(who) {
            return Err(format!("{who} is no member"));
        }
        if self.holder().is_some_and(|(_, holder)| holder == who) {
            return Err(format!("{who} holds the lock: make another member primary first"));
        }
        if let Some(running) = self.operation.as_ref().filter(|o| o.to == *who) {
            return Err(format!("{who} is the target of operation {}", running.id));
        }
        self.free(to, who)?;
        let Some(member) = self.members.get_mut(who) else { return Err(format!("{who} is no member")) };
        // What a member is does not change with its address.
        if member.is_witness() && !(postgres.is_empty() && agent.is_empty()) {
            return Err(format!("{who} is a witness: it has neither PostgreSQL nor an agent that could be reached"));
        }
        if !member.is_witness() && postgres.is_empty() {
            return Err(format!("{who} has PostgreSQL, which needs an address"));
        }
        let there = Member {
            node: member.node,
            manager: manager.to_owned(),
            postgres: postgres.to_owned(),
            agent: agent.to_owned(),
            learner: member.learner,
        };
        if *member == there {
            return Err(format!("{who} is there already"));
        }
        *member = there;
        self.moved.insert(who.clone(), manager.to_owned());
        Ok(Some(match postgres.is_empty() {
            true => format!("{who} is reached at {manager}"),
            false => format!("{who} is reached at {manager}, its PostgreSQL at {postgres}"),
        }))
    }

    /// Nobody but `who` has one of these addresses. None, as of a witness' PostgreSQL, is nobody's.
    fn free<const N: usize>(&self, addresses: [&str; N], who: &MemberId) -> Result<(), String> {
        let taken = |a: &&String| !a.is_empty() && addresses.contains(&a.as_str());
        let has = |m: &Member| [&m.manager, &m.postgres].iter().any(taken);
        match self.members.iter().find(|(id, m)| *id != who && has(m)) {
            Some((other, _)) => Err(format!("{other} has one of these addresses")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::Epoch,
        state::{Applied, Command, GrantPhase, Kind, Lock, RuleId},
    };

    fn id(name: &str) -> MemberId {
        name.parse().unwrap()
    }

    /// a is primary.
    fn state() -> ClusterState {
        let member = |n: u64| Member {
            node: NodeId(n),
            manager: format!("h{n}:1"),
            postgres: format!("h{n}:2"),
            agent: format!("h{n}:3"),
            learner: false,
        };
        let lock = Lock::Granted {
            epoch: Epoch(1),
            member: id("a"),
            phase: GrantPhase::Open,
            timeline: crate::domain::TimelineId(2),
            switch_lsn: crate::domain::Lsn(1),
            floor: crate::domain::WalPosition::default(),
        };
        let members = [(id("a"), member(1)), (id("b"), member(2)), (id("c"), member(3))];
        ClusterState { members: members.into(), epoch: Epoch(1), lock, ..ClusterState::default() }
    }

    fn move_to(state: &mut ClusterState, who: &str, host: &str) -> Applied {
        let [manager, postgres, agent] = [1, 2, 3].map(|port| format!("{host}:{port}"));
        let kind = Kind::MoveMember { member: id(who), manager, postgres, agent };
        let because = RuleId(1);
        state.apply(&Command { request_id: "r".into(), expected: Epoch(1), because, kind, evidence: None })
    }

    fn why(applied: Applied) -> String {
        match applied {
            Applied::Stale { why, .. } => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_member_is_reached_elsewhere_and_back_and_is_the_same_node() {
        let mut state = state();
        let before = state.members.clone();
        assert_eq!(move_to(&mut state, "b", "x"), Applied::Changed);
        assert_eq!((state.members[&id("b")].node, state.members[&id("b")].postgres.as_str()), (NodeId(2), "x:2"));
        assert_eq!(state.moved[&id("b")], "x:1");
        assert_eq!(state.roster.version, 1, "whoever asks the agents has to learn of it");
        assert!(why(move_to(&mut state, "b", "x")).contains("already"));
        assert_eq!(move_to(&mut state, "b", "h2"), Applied::Changed);
        assert_eq!(state.members, before);
    }

    #[test]
    fn nobody_moves_to_where_another_one_is_and_the_primary_not_at_all() {
        let mut state = state();
        assert_eq!(why(move_to(&mut state, "b", "h3")), "c has one of these addresses");
        assert!(why(move_to(&mut state, "a", "x")).contains("make another member primary"));
        assert_eq!(why(move_to(&mut state, "d", "x")), "d is no member");
        assert!(state.moved.is_empty());
    }

    /// d is a witness.
    fn with_witness() -> ClusterState {
        let mut state = ClusterState { identity: Some(identity()), ..state() };
        assert_eq!(run(&mut state, add("d", "h4:1", "")), Applied::Changed);
        state
    }

    fn identity() -> crate::state::Identity {
        crate::state::Identity {
            cluster_id: crate::domain::ClusterId("x".into()),
            generation: crate::domain::Generation(1),
            name: "x".into(),
        }
    }

    fn add(member: &str, manager: &str, postgres: &str) -> Kind {
        Kind::AddMember { member: id(member), manager: manager.into(), postgres: postgres.into(), learner: false }
    }

    fn run(state: &mut ClusterState, kind: Kind) -> Applied {
        let expected = state.epoch;
        state.apply(&Command { request_id: "r".into(), expected, because: RuleId(1), kind, evidence: None })
    }

    #[test]
    fn a_member_without_postgresql_is_a_witness_and_there_may_be_several() {
        let mut state = with_witness();
        assert!(state.is_witness(&id("d")) && !state.is_witness(&id("b")) && !state.is_witness(&id("x")));
        assert_eq!(why(run(&mut state, add("e", "h4:1", ""))), "d has one of these addresses");
        assert_eq!(run(&mut state, add("e", "h5:1", "")), Applied::Changed, "no address is nobody's");
        assert_eq!(state.with_postgres().map(MemberId::as_str).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(state.next_node(), NodeId(4), "it asks for a node as every manager");
        assert_eq!(run(&mut state, Kind::RemoveMember { member: id("e") }), Applied::Changed);
    }

    #[test]
    fn agents_are_told_of_those_that_have_agents() {
        let briefing = with_witness().briefing();
        assert_eq!(briefing.members.agents.keys().map(MemberId::as_str).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert!(!briefing.managers.contains_key(&id("d")), "nobody asks it for WAL");
        assert_eq!(briefing.members.version, 1, "the list has changed all the same");
    }

    fn learner(member: &str, postgres: &str) -> Kind {
        let manager = format!("{postgres}0");
        Kind::AddMember { member: id(member), manager, postgres: postgres.into(), learner: true }
    }

    #[test]
    fn a_learner_has_postgresql_and_stays_one_wherever_it_moves_and_whatever_its_node() {
        let mut state = with_witness();
        assert!(why(run(&mut state, learner("e", ""))).contains("neither a vote nor PostgreSQL"));
        assert_eq!(run(&mut state, learner("e", "h5:2")), Applied::Changed);
        assert!(state.incidents.back().is_some_and(|i| i.what.contains("e is a member, a learner")));
        assert_eq!(state.voters().map(|(m, _)| m.as_str()).collect::<Vec<_>>(), ["a", "b", "c", "d"]);
        assert!(state.is_learner(&id("e")) && state.may_confirm(&id("e")) && !state.is_learner(&id("x")));
        let node =
            Kind::ReplaceNode { member: id("e"), old: NodeId(0), node: state.next_node(), reason: String::new() };
        assert_eq!(run(&mut state, node), Applied::Changed);
        assert_eq!(move_to(&mut state, "e", "h9"), Applied::Changed);
        assert!(state.is_learner(&id("e")));
        assert!(
            why(run(&mut state, add("e", "h9:1", "h9:2"))).contains("e is a member"),
            "it becomes no voter by that"
        );
    }

    #[test]
    fn whoever_goes_on_in_failsafe_asks_a_learner_too_for_it_may_be_primary() {
        let mut state = with_witness();
        run(&mut state, learner("e", "h5:2"));
        let briefing = state.briefing();
        assert_eq!(briefing.members.agents.keys().map(MemberId::as_str).collect::<Vec<_>>(), ["a", "b", "c", "e"]);
        assert!(briefing.managers.contains_key(&id("e")), "it gives WAL");
    }

    #[test]
    fn a_witness_moves_with_its_manager_only_and_nobody_becomes_one_by_a_move() {
        let mut state = with_witness();
        let to = |who: &str, [manager, postgres, agent]: [&str; 3]| Kind::MoveMember {
            member: id(who),
            manager: manager.into(),
            postgres: postgres.into(),
            agent: agent.into(),
        };
        for place in [["h9:1", "h9:2", ""], ["h9:1", "", "h9:3"]] {
            assert!(why(run(&mut state, to("d", place))).contains("is a witness"), "{place:?}");
        }
        assert!(why(run(&mut state, to("b", ["h9:1", "", ""]))).contains("needs an address"));
        assert_eq!(run(&mut state, to("d", ["h9:1", "", ""])), Applied::Changed);
        assert_eq!((state.members[&id("d")].manager.as_str(), state.is_witness(&id("d"))), ("h9:1", true));
    }

    #[test]
    fn a_witness_gets_nothing_that_takes_postgresql() {
        let mut state = with_witness();
        let d = id("d");
        let begin = |kind| Kind::BeginOperation { kind, from: Some(id("a")), to: id("d"), accepts_loss: true };
        let kinds = [
            begin(crate::state::OperationKind::Switchover),
            begin(crate::state::OperationKind::Failover),
            begin(crate::state::OperationKind::Reinit),
            begin(crate::state::OperationKind::Restart),
            Kind::Maintenance { member: d.clone(), on: true, reason: String::new(), by: String::new(), stop: None },
            Kind::SetSync { after: 0, rule: Some((vec![d.clone()], 1)) },
            Kind::Cascade { member: d.clone(), source: Some(id("b")), falls: 0, reason: String::new() },
            Kind::Cascade { member: id("b"), source: Some(d.clone()), falls: 0, reason: String::new() },
            Kind::Lend { member: d.clone(), id: 1, life: std::time::Duration::from_secs(1) },
        ];
        for kind in kinds {
            why(run(&mut state, kind));
        }
        run(&mut state, Kind::fence("x".into()));
        let grant = Kind::Grant { member: d, floor: Default::default(), sync: None };
        assert_eq!(why(run(&mut state, grant)), "d is a witness");
    }

    #[test]
    fn only_hosts_that_know_witnesses_and_learners_are_told_of_one() {
        assert_eq!(add("d", "h4:1", "").format(), crate::domain::Format::OPERATE);
        assert_eq!(add("d", "h4:1", "h4:2").format(), crate::domain::Format::FIRST);
        assert_eq!(learner("d", "h4:2").format(), crate::domain::Format::OPERATE);
        let genesis = |state: &ClusterState| Kind::Genesis {
            cluster_id: identity().cluster_id,
            generation: identity().generation,
            name: "x".into(),
            members: state.members.iter().map(|(id, m)| (id.clone(), m.clone())).collect(),
            initializer: id("a"),
        };
        assert_eq!(genesis(&with_witness()).format(), crate::domain::Format::OPERATE);
        assert_eq!(genesis(&state()).format(), crate::domain::Format::FIRST);
        let mut learns = state();
        learns.members.get_mut(&id("c")).unwrap().learner = true;
        assert_eq!(genesis(&learns).format(), crate::domain::Format::OPERATE);
    }
}
