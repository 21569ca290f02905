//! The list of rules keeps every acknowledged commit; without its rules it doesn't.

use stateright::Model as _;

use super::{Confirmed, LISTED, NONE_LOST, NONE_VANISHES, OUTVOTED, log::Ack, rules::Rule, steps::Step};
use crate::run::{Outcome, check, check_to};

fn three(rules: &[Rule]) -> Confirmed<3> {
    Confirmed::new(rules)
}

/// It begins with nobody who confirms: the rule that a restart may not fall back to.
const ALONE: [Ack; 1] = [Ack { epoch: 1, names: 0, count: 0 }];

fn without(name: &str, model: Confirmed<3>) -> Outcome {
    check(&format!("confirmed commits without {name}"), model)
}

// ---- every rule in place -----------------------------------------------------------------------

#[test]
fn one_change_of_rules() {
    check("confirmed commits, one change of rules", Confirmed { crashes: false, ..three(&[]) }).holds();
}

#[test]
fn crashes_and_restarts_in_place() {
    check("confirmed commits, crashes", Confirmed { changes: 0, ..three(&[]) }).holds();
}

/// `failover_wait = promise`, small enough for `make test`.
fn outvoted(rules: &[Rule]) -> Confirmed<3> {
    Confirmed { promise: true, changes: 0, crashes: false, ..three(rules) }
}

#[test]
fn standbys_outvote_a_primary_whose_lease_runs() {
    check("confirmed commits, by promise", outvoted(&[])).holds();
}

#[test]
#[ignore = "long"]
fn standbys_outvote_a_primary_while_rules_change_and_after_crashes() {
    check("confirmed commits, by promise, one change", Confirmed { changes: 1, ..outvoted(&[]) }).holds();
    check("confirmed commits, by promise, crashes", Confirmed { crashes: true, ..outvoted(&[]) }).holds();
    check("confirmed commits, by promise, two failovers", Confirmed { epochs: 3, ..outvoted(&[]) }).holds();
}

#[test]
#[ignore = "long"]
fn standbys_outvote_a_primary_by_any_rule() {
    let any = three(&[]).begin[0];
    let begin = vec![any, Ack { count: 2, ..any }, Ack { names: 0b010, ..any }, Ack { names: 0, count: 0, ..any }];
    let model = Confirmed { begin, all_rules: true, changes: 1, ..outvoted(&[]) };
    check("confirmed commits, by promise, every rule", model).holds();
}

#[test]
#[ignore = "long"]
fn standbys_outvote_a_primary_whose_mode_changes() {
    let model = Confirmed { changes: 1, to_async: true, ..outvoted(&[]) };
    check("confirmed commits, by promise, async and back", model).holds();
}

#[test]
#[ignore = "long"]
fn one_change_of_rules_and_crashes() {
    check("confirmed commits, one change of rules, crashes", three(&[])).holds();
}

#[test]
#[ignore = "long"]
fn two_failovers() {
    check("confirmed commits, two failovers", Confirmed { epochs: 3, changes: 0, crashes: false, ..three(&[]) })
        .holds();
}

#[test]
#[ignore = "long"]
fn every_rule_there_can_be() {
    let any = three(&[]).begin[0];
    let begin = vec![any, Ack { count: 2, ..any }, Ack { names: 0b010, ..any }, Ack { names: 0, count: 0, ..any }];
    check("confirmed commits, every rule", Confirmed { begin, all_rules: true, ..three(&[]) }).holds();
}

#[test]
#[ignore = "long"]
fn two_changes_of_rules() {
    check("confirmed commits, two changes", Confirmed { changes: 2, ..three(&[]) }).holds();
}

#[test]
#[ignore = "long"]
fn two_commits() {
    check("confirmed commits, two of them", Confirmed { commits: 2, ..three(&[]) }).holds();
}

#[test]
#[ignore = "long"]
fn two_failovers_with_a_change_and_crashes() {
    check("confirmed commits, two failovers, a change, crashes", Confirmed { epochs: 3, ..three(&[]) }).holds();
}

#[test]
#[ignore = "long"]
fn the_mode_changes_to_async_and_back() {
    check("confirmed commits, async and back", Confirmed { to_async: true, ..three(&[]) }).holds();
}

#[test]
#[ignore = "long"]
fn four_and_five_members_as_far_as_it_was_looked() {
    check_to(10, "confirmed commits, 4 members", Confirmed::<4>::new(&[])).is_safe();
    check_to(8, "confirmed commits, 5 members", Confirmed::<5>::new(&[])).is_safe();
}

// ---- one rule less -----------------------------------------------------------------------------

#[test]
fn a_rule_that_is_applied_before_it_is_committed_is_noticed() {
    let model = Confirmed { changes: 0, crashes: false, ..three(&[Rule::CommittedFirst]) };
    without("committed first", Confirmed { listed: true, ..model.clone() }).breaks(LISTED);
    without("committed first", model).breaks(NONE_LOST);
}

#[test]
fn a_primary_that_goes_on_alone_before_the_log_says_so_is_noticed() {
    without("degrade is committed", Confirmed { changes: 0, crashes: false, ..three(&[Rule::DegradeIsCommitted]) })
        .breaks(NONE_LOST);
}

#[test]
fn rules_that_go_before_the_next_is_in_effect_are_noticed() {
    without("effective first", Confirmed { crashes: false, ..three(&[Rule::EffectiveFirst]) }).breaks(NONE_LOST);
}

#[test]
fn a_word_before_the_old_primary_is_left_is_noticed() {
    without("sever before word", Confirmed { changes: 0, crashes: false, ..three(&[Rule::SeverBeforeWord]) })
        .breaks(NONE_LOST);
}

#[test]
fn an_end_of_wal_read_before_the_old_primary_is_left_is_noticed() {
    let model = Confirmed { changes: 0, crashes: false, ..three(&[Rule::EndReadAfterSever]) };
    without("end read after sever", model).breaks(NONE_LOST);
}

#[test]
fn a_promotion_that_hears_one_too_few_is_noticed() {
    without("hear enough", Confirmed { changes: 0, crashes: false, ..three(&[Rule::HearEnough]) }).breaks(NONE_LOST);
}

/// The same host is primary of epochs 1 and 2, and the names of epoch 1 are written once more. Breadth first this takes too
/// long for `make test`, so the steps are a script.
#[test]
fn names_without_an_epoch_are_noticed() {
    use Step::*;
    let mut script =
        vec![Fence, Sever { host: 0 }, Grant { host: 0, heard: 1, names: 0b010, count: 1 }, Promote { host: 0 }];
    script.extend([
        AllGoByIt { host: 0 },
        Hear,
        Settle,
        StaleFile { host: 0, rule: 1 },
        Join { host: 2 },
        Write { host: 0 },
    ]);
    script.extend([Stream { host: 2 }, Acknowledge { host: 0, commit: 0, rule: 1 }]);
    let acknowledged = script.len() - 1;
    script.extend([Fence, Sever { host: 1 }, Grant { host: 1, heard: 0b010, names: 0, count: 0 }, Promote { host: 1 }]);
    let model = |rules: &[Rule]| Confirmed { epochs: 3, alike: false, ..three(rules) };
    assert_eq!(play(model(&[Rule::NamesWithEpoch]), &script), (script.len(), false), "the model does not notice");
    // With the epoch in the names nobody confirms that commit.
    let named = Confirmed { stale: true, ..model(&[]) };
    assert_eq!(play(named, &script), (acknowledged, true));
}

/// A counterexample played again: the steps until one can't be taken, and whether every promise is kept after the last.
fn play(model: Confirmed<3>, steps: &[Step]) -> (usize, bool) {
    let mut state = model.init_states()[0];
    for (taken, step) in steps.iter().enumerate() {
        let mut possible = Vec::new();
        model.actions(&state, &mut possible);
        match model.next_state(&state, *step).filter(|_| possible.contains(step)) {
            Some(next) => state = next,
            None => return (taken, state.kept(state.acked)),
        }
    }
    (steps.len(), state.kept(state.acked))
}

#[test]
fn a_primary_that_lets_clients_in_after_a_crash_is_noticed() {
    without("gate", Confirmed { changes: 0, ..three(&[Rule::Gate]) }).breaks(NONE_VANISHES);
}

#[test]
fn a_restart_in_place_by_an_older_rule_is_noticed() {
    without(
        "restart reads rule",
        Confirmed { begin: ALONE.into(), sets: vec![(0b010, 1)], ..three(&[Rule::RestartReadsIt]) },
    )
    .breaks(NONE_VANISHES);
}

#[test]
fn a_rule_that_a_restarted_agent_has_forgotten_is_noticed() {
    without("disk first", Confirmed { begin: ALONE.into(), sets: vec![(0b010, 1)], ..three(&[Rule::DiskFirst]) })
        .breaks(NONE_VANISHES);
}

#[test]
fn a_grant_that_forgets_who_has_everything_is_noticed() {
    let model = Confirmed { epochs: 3, changes: 0, crashes: false, ..three(&[Rule::HoldersKept]) };
    without("holders kept", model).breaks(NONE_LOST);
}

#[test]
fn a_primary_that_is_outvoted_by_one_too_few_is_noticed() {
    without("hear enough, by promise", outvoted(&[Rule::HearEnough])).breaks(OUTVOTED);
}

#[test]
fn a_primary_that_is_outvoted_by_who_has_not_left_it_is_noticed() {
    without("sever before word, by promise", outvoted(&[Rule::SeverBeforeWord])).breaks(OUTVOTED);
}

#[test]
fn a_primary_that_is_outvoted_before_its_rules_bind_is_noticed() {
    let model = Confirmed { changes: 1, to_async: true, sets: vec![(0b110, 1)], ..outvoted(&[Rule::BindsFirst]) };
    without("binds first", model).breaks(OUTVOTED);
}

#[test]
fn a_primary_that_is_outvoted_where_nobody_waits_is_noticed() {
    let model = Confirmed { to_async: true, ..outvoted(&[Rule::WaitsAlways]) };
    without("waits always", model).breaks(OUTVOTED);
}
