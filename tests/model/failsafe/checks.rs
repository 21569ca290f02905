//! Failsafe as it is designed keeps its promise; without any of its rules it doesn't.

use super::{Failsafe, ONE_WRITER, Rule};
use crate::run::check;
use crate::ticks::Timing;

fn without(name: &str, rules: &[Rule]) -> crate::run::Outcome {
    check(&format!("failsafe without {name}"), Failsafe::new(rules))
}

#[test]
fn every_rule_in_place() {
    check("failsafe", Failsafe::new(&[])).holds();
}

#[test]
fn t_grant_is_tight() {
    let refusal = Timing::SHORT.grant - 1;
    check("failsafe, agents refuse one less", Failsafe { refusal, ..Failsafe::new(&[]) }).breaks(ONE_WRITER);
}

#[test]
fn an_acknowledgement_that_blocks_no_promotion_is_noticed() {
    without("ack blocks promotion", &[Rule::AckBlocksPromotion]).breaks(ONE_WRITER);
}

#[test]
fn a_promise_that_a_restart_forgets_is_noticed() {
    without("restart quarantine", &[Rule::RestartQuarantine]).breaks(ONE_WRITER);
}

#[test]
fn a_majority_of_agents_is_noticed() {
    without("unanimity", &[Rule::Unanimous]).breaks(ONE_WRITER);
}

#[test]
fn a_deadline_from_the_receipt_is_noticed() {
    without("deadline from sending", &[Rule::DeadlineFromSending]).breaks(ONE_WRITER);
}

#[test]
fn a_list_version_that_is_ignored_is_noticed() {
    without("same list version", &[Rule::SameListVersion]).breaks(ONE_WRITER);
}

#[test]
fn a_candidate_that_the_holder_does_not_know_is_noticed() {
    without("added later waits", &[Rule::AddedLaterWaits]).breaks(ONE_WRITER);
}

#[test]
fn a_grant_that_does_not_wait_for_the_voters_is_noticed() {
    without("grant waits for promises", &[Rule::GrantWaitsForPromises]).breaks(ONE_WRITER);
}

#[test]
#[ignore = "long"]
fn the_refusal_of_a_known_higher_epoch_is_a_second_net() {
    without("higher epoch refuses", &[Rule::HigherEpochRefuses]).is_safe();
    without("only held asks", &[Rule::OnlyHeldAsks]).is_safe();
    without("expired is final", &[Rule::ExpiredIsFinal]).is_safe();
}

#[test]
fn an_agent_that_helps_an_epoch_it_knows_to_be_over_is_noticed() {
    without("higher epoch refuses, only held asks", &[Rule::HigherEpochRefuses, Rule::OnlyHeldAsks]).breaks(ONE_WRITER);
}
