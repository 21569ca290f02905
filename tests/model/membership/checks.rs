//! A membership change as it is designed keeps its promises; without its rules it doesn't.

use super::{Change, promises::ONE_WRITER, rules::Rule};
use crate::run::{Outcome, check};

/// One voter becomes three: the smallest change in which half of the new members knows nothing of the old.
const GROW: [u8; 2] = [0b001, 0b111];
/// One of three is replaced.
const REPLACE: [u8; 2] = [0b0111, 0b1011];
/// Five become three.
const SHRINK: [u8; 2] = [0b1_1111, 0b0_0111];

fn grow(elections: bool, rules: &[Rule]) -> Outcome {
    let model = Change::<3> { elections, ..Change::through(&GROW, rules) };
    check(&format!("1 to 3, elections {elections}, without {rules:?}"), model)
}

fn replace(rules: &[Rule]) -> Outcome {
    let model = Change::<4> { elections: false, restarts: false, ..Change::through(&REPLACE, rules) };
    check(&format!("replace one of 3 without {rules:?}"), model)
}

fn shrink(rules: &[Rule]) -> Outcome {
    let model = Change::<5> { elections: false, restarts: false, ..Change::through(&SHRINK, rules) };
    check(&format!("5 to 3 without {rules:?}"), model)
}

#[test]
fn m_grow() {
    grow(false, &[]).holds();
}
#[test]
fn m_grow_el() {
    grow(true, &[]).holds();
}
#[test]
fn m_replace() {
    replace(&[]).holds();
}
#[test]
fn m_shrink() {
    shrink(&[]).holds();
}

macro_rules! mutants { ($($n:ident $f:expr, [$($r:ident),*];)*) => { $(#[test] fn $n() { let o = $f(&[$(Rule::$r),*]); println!("{:?}", o.broken.map(|b| b.1)); })* } }
mutants! {
  x_nowait replace, [NextStepWaits];
  x_noquar replace, [QuarantineOnChange];
  x_nowait_noquar replace, [NextStepWaits, QuarantineOnChange];
  x_learners replace, [OnlyVotersCount];
  x_union replace, [BothHalves];
  x_ids replace, [AcksOfOneMembership];
  x_sealids replace, [SealsOfOneMembership];
  x_ackapply replace, [AckAfterApply];
  x_refuse replace, [SealRefusesLower];
  x_applyseals replace, [ApplySeals];
  x_adopt replace, [AdoptWithLog];
  x_grantwait replace, [GrantWaitsForPromises];
  x_final replace, [ExpiredIsFinal];
  x_stepids replace, [StepSealsOfOneMembership];
  x_stepprom replace, [StepWaitsForPromises];
  y_nowait gr, [NextStepWaits];
  y_noquar gr, [QuarantineOnChange];
  y_nowait_noquar gr, [NextStepWaits, QuarantineOnChange];
  y_nowait_ackapply gr, [NextStepWaits, AckAfterApply];
  y_nowait_applyseals gr, [NextStepWaits, ApplySeals];
  y_adopt_nowait gr, [AdoptWithLog, NextStepWaits];
  y_adopt_noquar gr, [AdoptWithLog, QuarantineOnChange];
  y_sealids_noquar gr, [SealsOfOneMembership, QuarantineOnChange];
  y_stepids_noquar gr, [StepSealsOfOneMembership, QuarantineOnChange];
  y_stepprom_noquar gr, [StepWaitsForPromises, QuarantineOnChange];
  y_learners gr, [OnlyVotersCount];
  y_union gr, [BothHalves];
  y_ids gr, [AcksOfOneMembership];
  y_sealids gr, [SealsOfOneMembership];
  y_ackapply gr, [AckAfterApply];
  y_applyseals gr, [ApplySeals];
  y_adopt gr, [AdoptWithLog];
  y_restart gr, [RestartQuarantine];
  y_stepids gr, [StepSealsOfOneMembership];
  y_stepprom gr, [StepWaitsForPromises];
  y_final gr, [ExpiredIsFinal];
}
#[test]
fn z_union() {
    let o = grow(true, &[Rule::BothHalves]);
    println!("{:?}", o.broken.map(|b| b.1));
}
#[test]
fn z_ids() {
    let o = grow(true, &[Rule::AcksOfOneMembership]);
    println!("{:?}", o.broken.map(|b| b.1));
}
#[test]
fn z_sealids() {
    let o = grow(true, &[Rule::SealsOfOneMembership]);
    println!("{:?}", o.broken.map(|b| b.1));
}
#[test]
fn z_noquar() {
    let o = grow(true, &[Rule::QuarantineOnChange]);
    println!("{:?}", o.broken.map(|b| b.1));
}
#[test]
fn z_nowait() {
    let o = grow(true, &[Rule::NextStepWaits]);
    println!("{:?}", o.broken.map(|b| b.1));
}
#[test]
fn z_adopt() {
    let o = grow(true, &[Rule::AdoptWithLog]);
    println!("{:?}", o.broken.map(|b| b.1));
}
#[test]
fn w_union() {
    let o = shrink(&[Rule::BothHalves]);
    println!("{:?}", o.broken.map(|b| b.1));
}
fn gr(rules: &[Rule]) -> Outcome {
    grow(false, rules)
}
