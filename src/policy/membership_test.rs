use super::*;
use crate::{
    domain::GroupNode,
    policy::{
        rules::decide,
        testing::{Bench, id},
    },
    state::{Member, RuleId},
};

const HOLDS: &str = "primary 2:150 lease=1 counted=1 answering=a,b,c";

/// a is primary; b has lost its log and was given node 4.
fn replacing() -> Bench {
    let mut bench = Bench::new("granted a open 2").says("a", HOLDS);
    bench.state.members.get_mut(&id("b")).unwrap().node = NodeId(4);
    bench
}

fn node(bench: &mut Bench, node: u64, member: &str) {
    let of = GroupNode { member: id(member), address: format!("{member}:7400") };
    bench.group.group.nodes.insert(NodeId(node), of);
    bench.group.held.insert(NodeId(node), 0);
}

fn half(ids: &[u64]) -> BTreeSet<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

/// The rule that changes the group, and the change; otherwise the last hold in words.
fn step_of(bench: &Bench) -> Result<(u32, GroupStep), String> {
    let plan = decide(&bench.situation(), "r");
    assert_eq!(plan.command, None);
    match plan.step {
        Some((RuleId(rule), step)) => Ok((rule, step)),
        None => Err(plan.holds.last().map(ToString::to_string).unwrap_or_default()),
    }
}

#[test]
fn a_replaced_node_comes_in_step_by_step_and_the_old_one_goes_with_the_last() {
    let mut bench = replacing();
    let of = GroupNode { member: id("b"), address: "b:7400".into() };
    assert_eq!(step_of(&bench), Ok((460, GroupStep::AddLearner { node: NodeId(4), of })));
    node(&mut bench, 4, "b");
    assert_eq!(step_of(&bench), Ok((470, GroupStep::Join { voters: half(&[1, 3, 4]) })));
    bench.group.group.voters.push(half(&[1, 3, 4]));
    assert_eq!(step_of(&bench), Ok((450, GroupStep::Settle)));
    bench.group.group.voters.remove(0);
    bench.group.group.nodes.remove(&NodeId(2));
    assert_eq!(step_of(&bench), Err(String::new()), "at rest");
}

#[test]
fn the_next_step_waits_for_a_renewal_counted_under_the_present_membership() {
    let mut bench = replacing();
    bench.group.group.id = 2;
    let said = step_of(&bench).unwrap_err();
    assert!(said.contains("renewed its lease under membership 1, not yet under 2"), "{said}");
    node(&mut bench, 4, "b");
    bench.group.group.voters.push(half(&[1, 3, 4]));
    assert!(step_of(&bench).unwrap_err().contains("only the new voters vote"), "the last step waits too");
    let renewed = bench.says("a", "primary 2:150 lease=1 counted=2 answering=a,b,c");
    assert_eq!(step_of(&renewed), Ok((450, GroupStep::Settle)));
}

#[test]
fn a_holder_that_is_not_heard_or_lost_its_lease_counts_for_nothing() {
    let mut silent = replacing();
    silent.seen.clear();
    let said = decide(&silent.situation(), "r");
    assert!(said.step.is_none());
    assert!(said.holds.iter().any(|h| matches!(h, Hold::GroupUnsettled { .. })), "{:?}", said.holds);
    let lost = replacing().says("a", "standby 2:150 counted=1");
    assert!(step_of(&lost).unwrap_err().contains("holds no lease"));
}

#[test]
fn while_nobody_holds_a_majority_sealed_and_free_under_this_very_membership_is_enough() {
    let fenced = || {
        let mut bench = Bench::new("fenced");
        bench.state.members.get_mut(&id("b")).unwrap().node = NodeId(4);
        // Nobody can be promoted, so the lock stays fenced.
        bench.state.system_identifier = Some(8);
        bench.seal("a", "standby 2:150")
    };
    assert!(step_of(&fenced()).unwrap_err().contains("1 of 2 voters needed"), "one is no majority");
    let mut bench = fenced().seal("c", "standby 2:150");
    assert!(matches!(step_of(&bench), Ok((460, GroupStep::AddLearner { .. }))));
    for stale in [id("a"), id("c")] {
        let mut other = fenced().seal("c", "standby 2:150");
        other.seals.get_mut(&stale).unwrap().promise.membership = 7;
        assert!(step_of(&other).is_err(), "{stale} sealed under another membership");
        let mut bound = fenced().seal("c", "standby 2:150");
        bound.seals.get_mut(&stale).unwrap().promise.lapsed = false;
        assert!(step_of(&bound).is_err(), "{stale} still has a promise");
    }
    node(&mut bench, 4, "b");
    assert!(step_of(&bench).unwrap_err().contains("b: its manager didn't answer"), "it has not sealed");
    let bench = bench.seal("b", "standby 2:150");
    assert_eq!(step_of(&bench), Ok((470, GroupStep::Join { voters: half(&[1, 3, 4]) })));
}

#[test]
fn a_joint_group_needs_both_halves_free_before_it_settles_while_nobody_holds() {
    let mut bench =
        Bench::new("fenced").seal("a", "standby 2:150").seal("b", "standby 2:150").seal("c", "standby 2:150");
    bench.state.system_identifier = Some(8);
    bench.group.group.voters.push(half(&[3, 4, 5]));
    node(&mut bench, 4, "d");
    node(&mut bench, 5, "e");
    assert!(step_of(&bench).unwrap_err().contains("1 of 2 voters needed"), "c alone is no majority of c, d, e");
    let bench = bench.seal("d", "standby 2:150");
    assert_eq!(step_of(&bench), Ok((450, GroupStep::Settle)));
}

#[test]
fn a_new_voter_has_the_whole_log_and_answers_before_it_votes() {
    let mut bench = replacing();
    node(&mut bench, 4, "b");
    bench.group.commit = 30;
    bench.group.held = [(NodeId(1), 30), (NodeId(3), 12), (NodeId(4), 29)].into();
    let said = step_of(&bench).unwrap_err();
    assert_eq!(said, "not to vote yet: b: its node has 29 of 30 committed entries");
    bench.group.held.insert(NodeId(4), 30);
    let bench = bench.says("a", "primary 2:150 lease=1 counted=1 answering=a,c");
    assert_eq!(step_of(&bench).unwrap_err(), "not to vote yet: b: its manager didn't answer the last three renewals");
    assert!(step_of(&bench.says("a", HOLDS)).is_ok());
}

#[test]
fn a_group_is_not_made_smaller_while_a_new_node_is_awaited() {
    let mut bench = replacing();
    node(&mut bench, 4, "b");
    bench.group.held.insert(NodeId(4), 0);
    bench.group.commit = 1;
    bench.group.held.insert(NodeId(1), 1);
    assert!(step_of(&bench).is_err(), "node 2 stays a voter until node 4 is one");
}

#[test]
fn five_become_three_when_a_majority_of_the_three_answers() {
    let five = |answering: &str| {
        let spec = format!("primary 2:150 lease=1 counted=1 answering={answering}");
        let mut bench = Bench::new("granted a open 2").says("a", &spec);
        for (n, name) in [(4, "d"), (5, "e")] {
            node(&mut bench, n, name);
            bench.group.group.voters[0].insert(NodeId(n));
        }
        bench
    };
    let join = GroupStep::Join { voters: half(&[1, 2, 3]) };
    assert_eq!(step_of(&five("a,b,d,e")), Ok((470, join)));
    let said = step_of(&five("a,d,e")).unwrap_err();
    assert!(said.contains("b: its manager") && said.contains("c: its manager"), "{said}");
}

#[test]
fn an_added_member_waits_for_its_node_and_a_stray_node_is_dropped() {
    let mut bench = Bench::new("granted a open 2").says("a", "primary 2:150 lease=1 counted=1 answering=a,b,c,d");
    let member = Member {
        node: NodeId(0),
        manager: "d:7400".into(),
        postgres: "d:5432".into(),
        agent: String::new(),
        learner: false,
    };
    bench.state.members.insert(id("d"), member);
    assert_eq!(step_of(&bench), Err(String::new()), "it has not asked for a node");
    bench.state.members.get_mut(&id("d")).unwrap().node = NodeId(4);
    assert!(matches!(step_of(&bench), Ok((460, _))));
    node(&mut bench, 4, "d");
    assert_eq!(step_of(&bench), Ok((470, GroupStep::Join { voters: half(&[1, 2, 3, 4]) })));
    bench.state.members.get_mut(&id("d")).unwrap().node = NodeId(5);
    node(&mut bench, 5, "d");
    bench.group.group.voters[0].extend([NodeId(5)]);
    assert_eq!(step_of(&bench), Ok((480, GroupStep::Drop { node: NodeId(4) })));
}

#[test]
fn nothing_moves_while_a_change_is_uncommitted_or_something_else_is_under_way() {
    let mut bench = replacing();
    bench.group.committed = false;
    assert_eq!(step_of(&bench), Err(String::new()));
    for lock in ["granted a promoting 2", "granted a promoted 2", "released a", "free"] {
        let mut bench = Bench::new(lock);
        bench.state.members.get_mut(&id("b")).unwrap().node = NodeId(4);
        assert_eq!(decide(&bench.situation(), "r").step, None, "{lock}");
    }
    let mut bench = Bench::new("granted a open 2; switchover c checkpoint").says("a", HOLDS).says("c", "standby 2:150");
    bench.state.members.get_mut(&id("b")).unwrap().node = NodeId(4);
    assert_eq!(decide(&bench.situation(), "r").step, None);
}

/// Found by the simulation: the founder had lost its log before initdb, and nobody else may make the first data directory.
#[test]
fn a_founder_that_lost_its_log_gets_it_again_before_there_is_any_epoch() {
    let mut bench = Bench::new("free");
    bench.state.system_identifier = None;
    bench.state.members.get_mut(&id("a")).unwrap().node = NodeId(4);
    let of = GroupNode { member: id("a"), address: "a:7400".into() };
    assert_eq!(step_of(&bench), Ok((460, GroupStep::AddLearner { node: NodeId(4), of })));
    node(&mut bench, 4, "a");
    assert!(step_of(&bench).is_err(), "who votes does not change before an epoch was sealed");
}

/// d is a learner, by node 4.
fn with_learner(answering: &str) -> Bench {
    let spec = format!("primary 2:150 lease=1 counted=1 answering={answering}");
    let mut bench = Bench::new("granted a open 2").says("a", &spec);
    bench.add_learner("d", 4);
    bench
}

#[test]
fn a_learner_gets_the_log_and_never_a_vote() {
    let mut bench = with_learner("a,b,c,d");
    let of = GroupNode { member: id("d"), address: "d:7400".into() };
    assert_eq!(step_of(&bench), Ok((460, GroupStep::AddLearner { node: NodeId(4), of })));
    node(&mut bench, 4, "d");
    bench.group.held.insert(NodeId(4), bench.group.commit);
    assert_eq!(step_of(&bench), Err(String::new()), "at rest, though it has everything and answers");
    // Nobody waits for it.
    bench.group.commit = 100;
    bench.group.held = [(NodeId(1), 100), (NodeId(2), 100), (NodeId(3), 100)].into();
    assert_eq!(step_of(&bench), Err(String::new()));
    // Its next node is a learner again, and the old one is dropped.
    bench.state.members.get_mut(&id("d")).unwrap().node = NodeId(5);
    assert!(matches!(step_of(&bench), Ok((460, GroupStep::AddLearner { node: NodeId(5), .. }))));
    node(&mut bench, 5, "d");
    assert_eq!(step_of(&bench), Ok((480, GroupStep::Drop { node: NodeId(4) })));
}

#[test]
fn a_voters_new_node_joins_beside_a_learner_and_a_vote_that_a_learner_has_is_taken_from_it() {
    let mut bench = with_learner("a,b,c,d");
    node(&mut bench, 4, "d");
    bench.state.members.get_mut(&id("b")).unwrap().node = NodeId(5);
    node(&mut bench, 5, "b");
    assert_eq!(step_of(&bench), Ok((470, GroupStep::Join { voters: half(&[1, 3, 5]) })));
    let mut votes = with_learner("a,b,c,d");
    node(&mut votes, 4, "d");
    votes.group.group.voters[0].insert(NodeId(4));
    assert_eq!(step_of(&votes), Ok((470, GroupStep::Join { voters: half(&[1, 2, 3]) })));
}

#[test]
fn seven_vote_and_further_ones_are_learners() {
    let mut state = Bench::new("granted a open 2").state;
    let more = |state: &mut ClusterState, name: String, learner| {
        let (manager, postgres, agent) = (format!("{name}:1"), format!("{name}:2"), String::new());
        state.members.insert(id(&name), Member { node: NodeId(0), manager, postgres, agent, learner });
    };
    assert_eq!((room_for(&state, false), room_for(&state, true)), (Ok(()), Ok(())));
    (4..=7).for_each(|n| more(&mut state, format!("n{n}"), false));
    let full = room_for(&state, false).unwrap_err();
    assert!(
        full.starts_with("7 members vote, the most there may be: make this one a learner (`learner = true`"),
        "{full}"
    );
    (1..=25).for_each(|n| {
        assert_eq!(room_for(&state, true), Ok(()));
        more(&mut state, format!("l{n}"), true);
    });
    assert_eq!(room_for(&state, true), Err("the cluster has 25 learners, the most there may be".to_owned()));
}

#[test]
fn learners_are_no_voters_that_would_be_left() {
    let mut bench = with_learner("a,b,c,d");
    node(&mut bench, 4, "d");
    let gone = enough_voters_without(&bench.state, &id("b"), true).unwrap_err();
    assert!(gone.starts_with("2 voters would be left"), "{gone}");
    assert_eq!(enough_voters_without(&bench.state, &id("d"), false), Ok(()));
}
