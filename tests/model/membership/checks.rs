//! A membership change as it is designed keeps its promises; without its rules it doesn't.

use super::{Change, promises::ONE_WRITER, rules::Rule};
use crate::run::{Outcome, check, check_to};

/// One voter becomes three: the smallest change in which a majority of the new voters knows nothing of the old.
const GROW: [u8; 2] = [0b001, 0b111];
/// One of three is replaced.
const REPLACE: [u8; 2] = [0b0111, 0b1011];
/// Five become three.
const SHRINK: [u8; 2] = [0b1_1111, 0b0_0111];

fn whole_grow(elections: bool, rules: &[Rule]) -> Outcome {
    let model = Change::<3> { elections, ..Change::through(&GROW, rules) };
    check(&format!("1 to 3 without {rules:?}, elections {elections}"), model)
}

fn grow(rules: &[Rule]) -> Outcome {
    whole_grow(false, rules)
}

fn replace(rules: &[Rule]) -> Outcome {
    let model = Change::<4> { elections: false, restarts: false, ..Change::through(&REPLACE, rules) };
    check(&format!("replace one of 3 without {rules:?}"), model)
}

/// Too large to be seen whole.
fn shrink(steps: usize) -> Outcome {
    let model = Change::<5> { elections: false, restarts: false, ..Change::through(&SHRINK, &[]) };
    check_to(steps, &format!("5 to 3, {steps} steps"), model)
}

// ---- every rule in place -----------------------------------------------------------------------

#[test]
fn one_voter_becomes_three() {
    whole_grow(false, &[]).holds();
}

#[test]
#[ignore = "long"]
fn one_voter_becomes_three_and_leaders_change() {
    whole_grow(true, &[]).holds();
}

#[test]
#[ignore = "long"]
fn one_of_three_is_replaced() {
    replace(&[]).holds();
}

#[test]
#[ignore = "long"]
fn five_voters_become_three_as_far_as_it_was_looked() {
    shrink(14).is_safe();
}

// ---- one rule less -----------------------------------------------------------------------------

#[test]
fn learners_that_count_are_noticed() {
    grow(&[Rule::OnlyVotersCount]).breaks(ONE_WRITER);
    replace(&[Rule::OnlyVotersCount]).breaks(ONE_WRITER);
}

#[test]
fn a_plain_majority_of_the_union_is_noticed() {
    grow(&[Rule::BothHalves]).breaks(ONE_WRITER);
}

#[test]
fn an_ack_before_the_log_is_applied_is_noticed() {
    grow(&[Rule::AckAfterApply]).breaks(ONE_WRITER);
}

#[test]
fn an_applied_fence_that_does_not_seal_is_noticed() {
    grow(&[Rule::ApplySeals]).breaks(ONE_WRITER);
}

#[test]
fn a_restart_without_quarantine_is_noticed() {
    grow(&[Rule::RestartQuarantine]).breaks(ONE_WRITER);
}

#[test]
fn a_seal_that_refuses_nothing_is_noticed() {
    grow(&[Rule::SealRefusesLower]).breaks(ONE_WRITER);
    replace(&[Rule::SealRefusesLower]).breaks(ONE_WRITER);
}

#[test]
fn a_grant_before_the_promises_end_is_noticed() {
    grow(&[Rule::GrantWaitsForPromises]).breaks(ONE_WRITER);
    replace(&[Rule::GrantWaitsForPromises]).breaks(ONE_WRITER);
}

// ---- two nets less -----------------------------------------------------------------------------

#[test]
fn a_next_step_that_waits_for_nothing_and_starts_no_quarantine_is_noticed() {
    grow(&[Rule::NextStepWaits, Rule::QuarantineOnChange]).breaks(ONE_WRITER);
}

#[test]
fn a_step_on_seals_alone_that_starts_no_quarantine_is_noticed() {
    grow(&[Rule::StepWaitsForPromises, Rule::QuarantineOnChange]).breaks(ONE_WRITER);
}

#[test]
fn seals_of_another_membership_and_no_waiting_are_noticed() {
    grow(&[Rule::SealsOfOneMembership, Rule::NextStepWaits]).breaks(ONE_WRITER);
}

#[test]
fn an_expired_epoch_that_comes_back_without_seals_is_noticed() {
    grow(&[Rule::ExpiredIsFinal, Rule::SealRefusesLower]).breaks(ONE_WRITER);
}

#[test]
#[ignore = "long"]
fn an_acceptor_behind_its_log_and_no_waiting_is_noticed() {
    grow(&[Rule::AdoptWithLog, Rule::NextStepWaits]).breaks(ONE_WRITER);
}

#[test]
#[ignore = "long"]
fn each_second_net_may_go_alone() {
    for rule in [
        Rule::NextStepWaits,
        Rule::QuarantineOnChange,
        Rule::AdoptWithLog,
        Rule::StepWaitsForPromises,
        Rule::StepSealsOfOneMembership,
        Rule::SealsOfOneMembership,
        Rule::AcksOfOneMembership,
        Rule::ExpiredIsFinal,
    ] {
        whole_grow(false, &[rule]).is_safe();
    }
}
