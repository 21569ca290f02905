//! What is told of a member that can't get in line with what it has.

use crate::domain::{CLONES_TRIED, MemberId, NeedsCopy, observation::AgentView};

/// Why it isn't healthy.
pub(super) fn problems(agent: &AgentView) -> Vec<String> {
    let mut out: Vec<String> =
        agent.cure.needs_operator.iter().map(|why| format!("needs an operator: {why}")).collect();
    if let Some(NeedsCopy { cause, why }) = &agent.cure.needs_copy {
        out.push(format!("needs a copy: {cause} ({why})"));
    }
    let failed = agent.clone_failures;
    out.extend(
        in_vain(agent)
            .then(|| format!("needs an operator: {failed} copies in a row failed, another is tried every 10 min")),
    );
    out
}

/// No more than that is known of it.
fn in_vain(agent: &AgentView) -> bool {
    agent.clone_failures >= CLONES_TRIED && agent.cure.needs_operator.is_none()
}

/// What an operator can do about it, or what happens by itself.
pub(super) fn ways(member: &MemberId, agent: &AgentView, most: u32) -> Vec<String> {
    let mut out = Vec::new();
    if let Some(why) = &agent.cure.needs_operator {
        out.push(format!(
            "{member} needs an operator: {why}. Put that right on its host, its data is left as it is; if it should be copied \
             anew all the same: `matriarch reinit {member}`"
        ));
    }
    if in_vain(agent) {
        let failed = agent.clone_failures;
        out.push(format!(
            "{failed} copies to {member} in a row failed: look at its agent's log, another is tried every 10 min"
        ));
    } else if let Some(NeedsCopy { cause, .. }) = &agent.cure.needs_copy {
        out.push(match most {
            0 => format!("{cause}: {member} is not copied anew by itself, for max_concurrent_clones is 0"),
            _ => format!(
                "{cause}: {member} is copied anew by itself as soon as a primary has checkpointed and fewer than {most} are \
                 being copied (max_concurrent_clones)"
            ),
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::{agent, id};

    fn told(spec: &str, most: u32) -> (Vec<String>, Vec<String>) {
        let mut agent = agent("b", spec);
        agent.cure.needs_operator = spec.contains("failed-starts").then(|| "no room".to_owned());
        (problems(&agent), ways(&id("b"), &agent, most))
    }

    #[test]
    fn who_is_well_is_not_spoken_of() {
        assert_eq!(told("standby 2:100", 1), (vec![], vec![]));
    }

    #[test]
    fn what_happens_by_itself_and_what_does_not_are_told_apart() {
        let (problems, ways) = told("failed useless=unreadable", 1);
        assert_eq!(problems, ["needs a copy: its data can't be read (it said so)"]);
        assert!(ways[0].starts_with("its data can't be read: b is copied anew by itself as soon as"), "{ways:?}");
        assert!(told("failed useless=unreadable", 0).1[0].contains("not copied anew by itself"));
        let (problems, ways) = told("failed useless=unreadable clones=5", 1);
        assert!(problems[1].starts_with("needs an operator: 5 copies in a row failed"), "{problems:?}");
        assert!(ways.len() == 1 && ways[0].starts_with("5 copies to b in a row failed"), "{ways:?}");
        let (problems, ways) = told("stopped 2:100 failed-starts=2", 1);
        assert_eq!(problems, ["needs an operator: no room"]);
        assert!(ways[0].starts_with("b needs an operator: no room. Put that right"), "{ways:?}");
    }
}
