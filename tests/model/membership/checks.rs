//! A membership change as it is designed keeps its promises; without its rules it doesn't.

use stateright::Model as _;

use super::{Change, promises::ONE_WRITER, rules::Rule, steps::Step};
use crate::run::{Outcome, check, check_to};

/// One voter becomes three: the smallest change in which a majority of the new voters knows nothing of the old.
const GROW: [u8; 2] = [0b001, 0b111];
/// One of three is replaced.
const REPLACE: [u8; 2] = [0b0111, 0b1011];
/// Two changes in a row: to another voter and back, and on to a third. The first and the last voter share no change.
const THERE_AND_BACK: [u8; 3] = [0b01, 0b10, 0b01];
const ON_AND_ON: [u8; 3] = [0b001, 0b010, 0b100];
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

fn there_and_back(elections: bool, rules: &[Rule]) -> Outcome {
    let model = Change::<2> { elections, ..Change::through(&THERE_AND_BACK, rules) };
    check(&format!("there and back without {rules:?}, elections {elections}"), model)
}

fn on_and_on(restarts: bool, rules: &[Rule]) -> Outcome {
    let model = Change::<3> { elections: false, restarts, ..Change::through(&ON_AND_ON, rules) };
    check(&format!("on to a third without {rules:?}, restarts {restarts}"), model)
}

/// A counterexample that takes long to be found, played again: the steps until one can't be taken, and whether the
/// promise is broken after the last.
fn play<const N: usize>(mut model: Change<N>, steps: &[Step]) -> (usize, bool) {
    model.chain.alike.fill(false); // the script calls managers by their places
    let mut state = model.init_states()[0];
    for (taken, step) in steps.iter().enumerate() {
        let mut possible = Vec::new();
        model.actions(&state, &mut possible);
        match model.step(&state, *step).filter(|_| possible.contains(step)) {
            Some(next) => state = next,
            None => return (taken, false),
        }
    }
    (steps.len(), state.old_writes() && state.granted)
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
fn two_changes_in_a_row() {
    there_and_back(false, &[]).holds();
}

#[test]
#[ignore = "long"]
fn two_changes_in_a_row_and_leaders_change() {
    there_and_back(true, &[]).holds();
}

#[test]
#[ignore = "long"]
fn two_changes_in_a_row_to_a_third_voter() {
    on_and_on(true, &[]).holds();
}

/// What the real managers are: the acceptor hears of a membership through a channel, and waiting makes up for it.
#[test]
fn an_acceptor_behind_its_log_is_safe_as_long_as_the_next_step_waits() {
    there_and_back(false, &[Rule::AdoptWithLog]).is_safe();
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

/// One of three is replaced. a and d go by the new membership, seal and grant; b is behind by a membership, c by two. Counted
/// together, b and c are a majority of the old one for ever.
#[test]
fn acks_of_several_memberships_counted_together_are_noticed() {
    use Step::*;
    let (a, b, c, d) = (0, 1, 2, 3);
    let renewed = |voters: [u8; 2], membership: u8| {
        [Renew, Arrive { voter: voters[0] }, Arrive { voter: voters[1] }, Count { membership }]
    };
    let append = |voters: &[u8]| Vec::from_iter(voters.iter().map(|&voter| Append { voter }));
    let mut steps = Vec::new();
    steps.extend(renewed([a, b], 0));
    steps.push(ProposeMembership);
    steps.extend(append(&[a, b]));
    steps.extend(renewed([a, b], 1));
    steps.push(ProposeMembership);
    steps.extend(append(&[a, d, d]));
    steps.push(ProposeFence);
    steps.extend(append(&[a, d]));
    let mixed = steps.len() + 3;
    for _ in 0..3 {
        steps.extend(renewed([b, c], 0));
        steps.push(Tick);
    }
    steps.extend([Seal { voter: a }, Seal { voter: d }, Grant]);
    let through = |rules: &[Rule]| Change::<4>::through(&REPLACE, rules);
    assert_eq!(play(through(&[Rule::AcksOfOneMembership]), &steps), (steps.len(), true));
    assert_eq!(play(through(&[]), &steps), (mixed, false), "c alone is no majority");
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
    there_and_back(false, &[Rule::AdoptWithLog, Rule::NextStepWaits]).breaks(ONE_WRITER);
}

/// Two changes in a row. a goes by the first membership still, and is alone a majority of it.
#[test]
fn an_acceptor_behind_its_log_and_two_changes_without_waiting_are_noticed() {
    use Step::*;
    let (a, b) = (0, 1);
    let renewed = [Renew, Arrive { voter: a }, Count { membership: 0 }];
    let mut steps = renewed.to_vec();
    steps.extend([ProposeMembership, ProposeFence, Append { voter: a }, Append { voter: b }]);
    let second = steps.len();
    steps.extend([ProposeMembership, Append { voter: b }, Append { voter: b }, Adopt { voter: b }, Tick]);
    steps.extend(renewed);
    steps.extend([Tick, Tick, Seal { voter: b }, Grant]);
    let through = |rules: &[Rule]| Change::<2>::through(&THERE_AND_BACK, rules);
    assert_eq!(play(through(&[Rule::AdoptWithLog, Rule::NextStepWaits]), &steps), (steps.len(), true));
    assert_eq!(play(through(&[Rule::AdoptWithLog]), &steps), (second, false), "the second change waits");
    assert!(!play(through(&[Rule::NextStepWaits]), &steps).1, "a hears of it with its log");
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
        Rule::ExpiredIsFinal,
    ] {
        whole_grow(false, &[rule]).is_safe();
        there_and_back(false, &[rule]).is_safe();
    }
    // There a majority of the old voters is one; what takes three voters is played above.
    whole_grow(false, &[Rule::AcksOfOneMembership]).is_safe();
    there_and_back(false, &[Rule::NextStepWaits, Rule::AcksOfOneMembership]).is_safe();
    there_and_back(true, &[Rule::NextStepWaits]).is_safe();
}
