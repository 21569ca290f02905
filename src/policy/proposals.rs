//! What each rule may propose: commands by their names, changes of the Raft group by theirs.
//!
//! Said here and not read from the rules, which are functions. The scenarios hold it against
//! what the rules do propose.

use crate::{
    domain::GroupStep,
    state::{Kind, RuleId},
};

/// By the number of the rule.
pub const PROPOSALS: &[(u32, &[&str])] = &[
    (10, &["genesis"]),
    (20, &["record-system"]),
    (30, &["fence-epoch"]),
    (110, &["release-primary"]),
    (120, &["promotion-complete"]),
    (130, &["primary-open"]),
    (132, &["keep-out"]),
    (134, &["keep-out"]),
    (140, &["settle-timings"]),
    (150, &["acknowledge"]),
    (210, &["end-operation"]),
    (220, &["end-operation"]),
    (230, &["advance-operation", "end-operation"]),
    (240, &["advance-operation"]),
    (250, &["advance-operation"]),
    (260, &["advance-operation"]),
    (262, &["end-operation"]),
    (264, &["advance-operation"]),
    (266, &["end-operation"]),
    (267, &["end-operation"]),
    (268, &["advance-operation"]),
    (269, &["advance-operation", "hibernated"]),
    (270, &["begin-operation", "end-operation"]),
    (272, &["begin-operation", "end-operation"]),
    (274, &[]),
    (310, &["fence-epoch"]),
    (320, &["fence-epoch"]),
    (330, &["fence-epoch"]),
    (332, &["fence-epoch"]),
    (335, &["release-primary"]),
    (337, &["release-primary"]),
    (405, &["promotion-complete"]),
    (407, &["adopt-timeline"]),
    (410, &["grant-primary", "grant-running"]),
    (430, &["settle-sync"]),
    (432, &["set-sync"]),
    (434, &["begin-next", "close-operation"]),
    (436, &["begin-next", "close-operation"]),
    (438, &["begin-operation"]),
    (440, &["cascade"]),
    (442, &["cascade"]),
    (444, &["cascade"]),
    (446, &["end-lend"]),
    (448, &["lend"]),
    (450, &["settle-group"]),
    (460, &["add-learner"]),
    (470, &["join-voters"]),
    (480, &["drop-node"]),
    (485, &["lead-elsewhere"]),
    (490, &["lead-elsewhere"]),
    (495, &["note-format"]),
];

/// What `rule` may propose; empty for one that is not in the table.
pub fn of(rule: u32) -> &'static [&'static str] {
    PROPOSALS.iter().find(|(id, _)| *id == rule).map_or(&[], |(_, names)| names)
}

/// Whether `rule` may propose this command.
pub fn may_propose(rule: RuleId, kind: &Kind) -> bool {
    of(rule.0).contains(&kind.name())
}

/// Whether `rule` may change the Raft group in this way.
pub fn may_change(rule: RuleId, step: &GroupStep) -> bool {
    let name = match step {
        GroupStep::AddLearner { .. } => "add-learner",
        GroupStep::Join { .. } => "join-voters",
        GroupStep::Settle => "settle-group",
        GroupStep::Drop { .. } => "drop-node",
    };
    of(rule.0).contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::RULES;

    #[test]
    fn every_rule_says_what_it_proposes() {
        let said: Vec<u32> = PROPOSALS.iter().map(|(id, _)| *id).collect();
        let rules: Vec<u32> = RULES.iter().map(|rule| rule.id).collect();
        assert_eq!(said, rules);
        let silent: Vec<u32> = PROPOSALS.iter().filter(|(_, names)| names.is_empty()).map(|(id, _)| *id).collect();
        assert_eq!(silent, [274], "it only says");
    }
}
