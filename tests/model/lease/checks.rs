//! The lease as it is designed keeps its promises; without any of its rules it doesn't.

use super::{
    Lease, Start,
    promises::{ENDS_BEFORE_GRANT, NO_HASTE, ONE_WRITER, UNBOUND},
    rules::Rule,
};
use crate::{
    run::{Outcome, check},
    ticks::{Drift, Timing},
};

type Three = Lease<3>;

fn without(rules: &[Rule]) -> Outcome {
    check(&format!("lease without {rules:?}"), Three::new(rules))
}

fn with_crashes(rules: &[Rule]) -> Outcome {
    check(&format!("lease with crashes without {rules:?}"), Three { crashes: true, ..Lease::new(rules) })
}

fn with_probes(rules: &[Rule]) -> Outcome {
    let model = Three { probes: true, ends: false, start: Start::Unheard, ..Lease::new(rules) };
    check(&format!("lease with probes without {rules:?}"), model)
}

fn with_configurations(first: Timing, second: Timing, rules: &[Rule]) -> Outcome {
    let model =
        Three { configurations: true, ends: false, inert: true, strict: true, first, second, ..Lease::new(rules) };
    check(&format!("lease with configurations without {rules:?}"), model)
}

// ---- every rule in place -----------------------------------------------------------------------

#[test]
fn three_voters_and_two_epochs() {
    check("lease", Three::new(&[])).holds();
}

#[test]
fn crashes_and_restarts_in_place() {
    with_crashes(&[]).holds();
}

#[test]
fn a_clock_may_run_at_any_rate_within_the_bound() {
    check("lease, free drift", Three { drift: Drift::Free, ends: false, ..Lease::new(&[]) }).holds();
}

#[test]
#[ignore = "long"]
fn one_way_cuts_and_probes() {
    check("lease with probes", Three { probes: true, ends: false, ..Lease::new(&[]) }).holds();
}

#[test]
#[ignore = "long"]
fn three_voters_and_three_epochs() {
    check("lease, three epochs", Three { epochs: 3, ..Lease::new(&[]) }).holds();
}

#[test]
#[ignore = "long"]
fn five_voters() {
    check("lease, five voters", Lease::<5>::new(&[])).holds();
}

#[test]
#[ignore = "long"]
fn a_longer_lease() {
    check("lease, longer", Three { first: Timing::LONG, crashes: true, ..Lease::new(&[]) }).holds();
}

#[test]
#[ignore = "long"]
fn three_misses_before_a_probe() {
    check("lease, three misses", Three { probes: true, misses_max: 3, ..Lease::new(&[]) }).holds();
}

#[test]
#[ignore = "long"]
fn clocks_at_any_rate_and_agents_that_restart() {
    check("lease, free drift and endings", Three { drift: Drift::Free, ..Lease::new(&[]) }).holds();
}

#[test]
#[ignore = "long"]
fn a_lease_configuration_that_gets_longer() {
    with_configurations(Timing::SHORT, Timing::LONG, &[]).holds();
}

#[test]
#[ignore = "long"]
fn a_lease_configuration_that_gets_shorter() {
    with_configurations(Timing::LONG, Timing::SHORT, &[]).holds();
}

// ---- the inequality ----------------------------------------------------------------------------

fn granting(timing: Timing, grant: u8, drift: Drift) -> Outcome {
    let first = timing.granting(grant);
    let model = Three { first, drift, ends: false, strict: false, patient: false, ..Lease::new(&[]) };
    check(&format!("lease, T_grant {grant} instead of {}, {drift:?}", timing.grant), model)
}

/// The same in the longer lease, where the grant of the next epoch is what counts.
fn granting_long(grant: u8) -> Outcome {
    let first = Timing::LONG.granting(grant);
    let model = Three { first, ends: false, inert: true, patient: false, ..Lease::new(&[]) };
    check(&format!("longer lease, T_grant {grant} instead of {}", Timing::LONG.grant), model)
}

#[test]
fn t_grant_is_tight() {
    granting(Timing::SHORT, Timing::SHORT.grant - 1, Drift::Worst).breaks(ONE_WRITER);
    granting(Timing::SHORT, Timing::SHORT.grant - 1, Drift::Free).breaks(ONE_WRITER);
    granting_long(Timing::LONG.grant - 1).breaks(ENDS_BEFORE_GRANT);
}

#[test]
fn a_promise_as_long_as_the_hold_is_noticed() {
    granting(Timing::SHORT, Timing::SHORT.hold, Drift::Worst).breaks(ONE_WRITER);
    granting_long(Timing::LONG.hold).breaks(ENDS_BEFORE_GRANT);
}

#[test]
fn a_promise_without_room_for_drift_is_noticed() {
    granting_long(Timing::LONG.hold + Timing::LONG.kill).breaks(ENDS_BEFORE_GRANT);
}

#[test]
fn a_promise_without_room_for_the_kill_is_noticed() {
    granting_long(Timing::LONG.grant - Timing::LONG.kill).breaks(ENDS_BEFORE_GRANT);
}

// ---- the holder --------------------------------------------------------------------------------

#[test]
fn a_deadline_from_the_receipt_of_the_acks_is_noticed() {
    without(&[Rule::DeadlineFromSending]).breaks(ONE_WRITER);
}

#[test]
fn acks_of_different_renewals_counted_together_are_noticed() {
    without(&[Rule::AcksOfOneRenewal]).breaks(ONE_WRITER);
}

#[test]
fn a_renewal_by_a_minority_is_noticed() {
    without(&[Rule::RenewalNeedsMajority]).breaks(ONE_WRITER);
}

#[test]
fn a_holder_that_waits_for_both_clocks_is_noticed() {
    without(&[Rule::HolderTakesEarlierClock]).breaks(ONE_WRITER);
}

#[test]
fn an_agent_that_starts_with_a_full_hold_is_noticed() {
    without(&[Rule::ResumeKeepsDeadline]).breaks(ONE_WRITER);
}

#[test]
fn an_end_that_is_not_on_disk_before_fenced_is_noticed() {
    without(&[Rule::EndedIsDurable]).breaks(ONE_WRITER);
}

#[test]
fn fenced_before_the_tree_is_dead_is_noticed() {
    without(&[Rule::FencedAfterTree]).breaks(ONE_WRITER);
}

#[test]
fn a_crash_announced_as_fenced_is_noticed() {
    with_crashes(&[Rule::CrashIsNotFenced]).breaks(ONE_WRITER);
}

#[test]
fn a_restart_in_place_without_a_lease_is_noticed() {
    with_crashes(&[Rule::RestartNeedsLease]).breaks(ONE_WRITER);
}

// ---- the acceptors -----------------------------------------------------------------------------

#[test]
fn an_acceptor_that_frees_on_either_clock_is_noticed() {
    without(&[Rule::AcceptorTakesLaterClock]).breaks(ONE_WRITER);
}

#[test]
fn a_restart_without_quarantine_is_noticed() {
    without(&[Rule::RestartQuarantine]).breaks(ONE_WRITER);
}

#[test]
fn a_volatile_seal_is_noticed() {
    without(&[Rule::DurableSeal]).breaks(ONE_WRITER);
}

#[test]
fn a_seal_that_refuses_nothing_is_noticed() {
    without(&[Rule::SealRefusesLower]).breaks(ONE_WRITER);
}

// ---- the leader --------------------------------------------------------------------------------

#[test]
fn a_grant_before_the_promises_end_is_noticed() {
    without(&[Rule::GrantWaitsForPromises]).breaks(ONE_WRITER);
}

#[test]
fn a_grant_without_seals_is_noticed() {
    without(&[Rule::GrantNeedsSeals]).breaks(ONE_WRITER);
}

#[test]
fn a_grant_by_a_minority_is_noticed() {
    without(&[Rule::GrantNeedsMajority]).breaks(ONE_WRITER);
}

#[test]
fn a_fence_on_suspicion_is_noticed() {
    let rules = [Rule::NoFenceOnSuspicion];
    check("lease, fence on suspicion", Three { patient: true, ..Lease::new(&rules) }).breaks(NO_HASTE);
    without(&[Rule::NoFenceOnSuspicion, Rule::GrantWaitsForPromises]).breaks(ONE_WRITER);
}

#[test]
fn promises_that_were_never_made_don_t_count_as_over() {
    let rules = [Rule::UnrenewedIsNotOver];
    check("lease, never renewed", Three { patient: true, ..Lease::new(&rules) }).breaks(NO_HASTE);
}

// ---- one-way cuts ------------------------------------------------------------------------------

#[test]
fn a_probe_that_extends_the_promise_is_noticed() {
    with_probes(&[Rule::ProbeMovesNoPromise]).breaks(UNBOUND);
}

#[test]
fn renewals_without_end_are_noticed() {
    with_probes(&[Rule::ProbeAfterMisses]).breaks(UNBOUND);
}

#[test]
fn a_probe_that_extends_the_lease_is_noticed() {
    with_probes(&[Rule::ProbeAckMovesNoDeadline]).breaks(ONE_WRITER);
}

// ---- lease configurations ----------------------------------------------------------------------

#[test]
#[ignore = "long"]
fn a_promise_of_another_configuration_is_noticed() {
    with_configurations(Timing::LONG, Timing::SHORT, &[Rule::PromiseOfNamedConfiguration]).breaks(ENDS_BEFORE_GRANT);
}

#[test]
#[ignore = "long"]
fn an_ack_of_a_configuration_that_is_not_applied_is_noticed() {
    with_configurations(Timing::SHORT, Timing::LONG, &[Rule::AckOnlyAppliedConfiguration]).breaks(ENDS_BEFORE_GRANT);
}

#[test]
#[ignore = "long"]
fn a_quarantine_of_the_newest_configuration_is_noticed() {
    let (first, second) = (Timing::LONG, Timing::SHORT);
    let rules = [Rule::QuarantineOfLargestGrant];
    let model =
        Three { configurations: true, ends: false, inert: true, strict: true, first, second, ..Lease::new(&rules) };
    check("lease, quarantine of the newest configuration", Three { start: Start::Unheard, ..model })
        .breaks(ENDS_BEFORE_GRANT);
}

#[test]
fn a_switch_before_a_majority_acked_is_noticed() {
    with_configurations(Timing::SHORT, Timing::LONG, &[Rule::SwitchAfterMajority]).breaks(ENDS_BEFORE_GRANT);
}

// ---- second nets -------------------------------------------------------------------------------

#[test]
#[ignore = "long"]
fn an_expired_epoch_that_comes_back_meets_the_seals() {
    without(&[Rule::ExpiredIsFinal]).is_safe();
}

#[test]
fn without_seals_an_expired_epoch_that_comes_back_is_noticed() {
    without(&[Rule::ExpiredIsFinal, Rule::SealRefusesLower]).breaks(ONE_WRITER);
}

#[test]
fn a_seal_by_renewal_meets_the_seals_before_the_grant() {
    without(&[Rule::DurableSealOfRenewal]).is_safe();
}
