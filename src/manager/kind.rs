//! What a member is, in the file of a host and in the cluster: with or without a vote.
//!
//! The file says it to whoever founds the cluster or is added to it. From then on what is committed counts, everywhere: majorities
//! are counted among the nodes that vote by the Raft log, and a manager that is a learner by the log promises nothing to the
//! holder of a lease. A file that says otherwise changes nothing but what its host waits for, so it is only complained of.

use crate::{config::MemberConfig, domain::MemberId, state::ClusterState};

/// Why `member` may not come in with this file; `None`: cluster and file agree.
pub(super) fn against_file(member: &MemberId, in_cluster: bool, in_file: bool) -> Option<String> {
    match (in_cluster, in_file) {
        (true, false) => Some(format!(
            "{member} is a learner of the cluster, and its own file has it vote: write `learner = true` into its entry of \
             cluster.members on every host; or, if it is to vote, `matriarch member remove {member}` and add it again"
        )),
        (false, true) => Some(format!(
            "{member} votes in the cluster, and its own file has it as a learner: take `learner = true` out of its entry of \
             cluster.members on every host; or, if it is to be a learner, `matriarch member remove {member}` and add it again"
        )),
        (true, true) | (false, false) => None,
    }
}

/// Members that are learners in the cluster and not by this file, or the other way round.
pub(super) fn strays(state: &ClusterState, configured: &[MemberConfig]) -> Vec<String> {
    let stray = |of: &MemberConfig| {
        let committed = state.members.get(&of.id)?.learner;
        let (cluster, file) = if committed { ("a learner", "vote") } else { ("a voter", "be a learner") };
        (committed != of.learner).then(|| {
            format!(
                "{id} is {cluster} of the cluster and would {file} by the file of this host: correct `learner` in its entry of \
                 cluster.members; a member becomes the one or the other by `matriarch member remove {id}` and `member add {id}`",
                id = of.id
            )
        })
    };
    configured.iter().filter_map(stray).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{domain::NodeId, state::Member};

    fn configured(id: &str, learner: bool) -> MemberConfig {
        let (id, host) = (id.parse().unwrap(), "h".to_owned());
        let (manager_port, agent_port, postgres_port) = (1, 2, 3);
        MemberConfig { id, node: NodeId(1), host, manager_port, agent_port, postgres_port, witness: false, learner }
    }

    #[test]
    fn whoever_comes_in_is_by_its_file_what_it_is_in_the_cluster() {
        let d = "d".parse().unwrap();
        assert_eq!((against_file(&d, true, true), against_file(&d, false, false)), (None, None));
        assert!(
            against_file(&d, true, false)
                .unwrap()
                .contains("d is a learner of the cluster, and its own file has it vote")
        );
        let voter = against_file(&d, false, true).unwrap();
        assert!(voter.contains("take `learner = true` out") && voter.contains("member remove d"), "{voter}");
    }

    #[test]
    fn a_file_that_contradicts_the_cluster_is_complained_of_and_members_to_be_are_not() {
        let member = |learner| {
            let (manager, postgres, agent) = ("h:1".to_owned(), "h:3".to_owned(), "h:2".to_owned());
            Member { node: NodeId(1), manager, postgres, agent, learner }
        };
        let members = [("a", false), ("b", true)].map(|(id, learner)| (id.parse().unwrap(), member(learner)));
        let state = ClusterState { members: members.into(), ..ClusterState::default() };
        let told = |file: &[(&str, bool)]| {
            strays(&state, &file.iter().map(|(id, learner)| configured(id, *learner)).collect::<Vec<_>>())
        };
        assert_eq!(told(&[("a", false), ("b", true), ("c", true)]), [""; 0]);
        let both = told(&[("a", true), ("b", false)]);
        assert!(both[0].starts_with("a is a voter of the cluster and would be a learner by the file"), "{both:?}");
        assert!(both[1].starts_with("b is a learner of the cluster and would vote by the file"), "{both:?}");
    }
}
