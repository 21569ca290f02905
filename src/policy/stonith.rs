//! Whose power is to be taken: the host of a holder whose epoch was ended and
//! that has not said itself that its process tree is empty.
//!
//! A layer beside the failover, not a step of it: no grant waits for it, and none
//! comes earlier for it. The promises are waited for all the same.

use super::Situation;
use crate::{
    domain::{Epoch, MemberId},
    state::{ClusterState, Command, Kind, Lock, Operation, RuleId},
};

/// Stands in the log entry that records how it ended. No rule of the table: nothing is decided by it.
pub const RULE: RuleId = RuleId(340);
/// What `RULE` means, for logs.
pub const RULE_NAME: &str = "an epoch was ended without its holder's word: STONITH was run";

/// A host that may still run a primary of an epoch that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspect {
    /// The epoch that began with the fence; each has at most one suspect.
    pub fenced: Epoch,
    /// The epoch it held.
    pub held: Epoch,
    /// Whose host it is.
    pub member: MemberId,
}

/// The last holder, when the present fence rests on the end of promises or an
/// operator's word and not on its own. `None` also when this epoch's run is recorded.
pub fn suspect(state: &ClusterState) -> Option<Suspect> {
    let Lock::Fenced { epoch, previous: Some((held, member)), released: None } = &state.lock else { return None };
    let recorded = state.incidents.iter().any(|i| i.rule == RULE.0 && i.epoch == *epoch);
    (!recorded).then(|| Suspect { fenced: *epoch, held: *held, member: member.clone() })
}

/// In a pause somebody may be at work on that host: only whoever is to be primary by command is to be protected from it.
pub fn is_wanted(state: &ClusterState) -> bool {
    // Whoever sleeps is followed by nobody.
    state.asleep().is_none()
        && (state.paused.is_none() || state.operation.as_ref().is_some_and(Operation::moves_primary))
}

/// It said meanwhile that nothing of that epoch runs any more.
pub fn has_cleared_itself(s: &Situation<'_>, suspect: &Suspect) -> bool {
    let told = s.notices.get(&suspect.member).is_some_and(|n| n.fenced && n.epoch >= suspect.held);
    told || s.agent(&suspect.member).is_some_and(|agent| agent.fenced_epoch >= suspect.held)
}

/// The entry that tells how it ended.
pub fn record(suspect: &Suspect, now: Epoch, request_id: String, succeeded: bool, how: String) -> Command {
    let kind = Kind::RecordStonith { member: suspect.member.clone(), epoch: suspect.held, succeeded, how };
    Command { request_id, expected: now, because: RULE, kind, evidence: None }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        domain::{WalPosition, observation::Notice},
        policy::testing::{Bench, id, state},
        state::{Applied, OperationKind},
    };

    fn of_a() -> Suspect {
        Suspect { fenced: Epoch(2), held: Epoch(1), member: id("a") }
    }

    #[test]
    fn only_a_holder_that_did_not_release_its_epoch_is_suspected() {
        assert_eq!(suspect(&state("fenced")), Some(of_a()));
        assert_eq!(suspect(&state("granted a open 2")), None);
        assert_eq!(suspect(&state("free")), None);
        let mut released = state("released a");
        let fence = Kind::fence("released".into());
        let fence =
            Command { request_id: "r".into(), expected: Epoch(1), because: RuleId(320), kind: fence, evidence: None };
        assert_eq!(released.apply(&fence), Applied::Changed);
        assert_eq!(suspect(&released), None, "its tree is empty by its own word");
    }

    #[test]
    fn in_a_pause_only_whoever_is_to_be_primary_by_command_is_protected() {
        let wanted = |operation: &str, paused: bool| {
            let mut state = state(&format!("fenced; {operation}"));
            state.paused = paused.then(Default::default);
            is_wanted(&state)
        };
        assert!(wanted("", false) && wanted("reinit b copy", false));
        assert!(wanted("failover b", true) && wanted("switchover b transfer", true));
        assert!(!wanted("", true) && !wanted("reinit b copy", true));
        let mut restarts = state("fenced; switchover b stop");
        restarts.paused = Some(Default::default());
        restarts.operation.as_mut().unwrap().kind = OperationKind::Restart;
        assert!(!is_wanted(&restarts));
    }

    #[test]
    fn an_epoch_whose_run_is_recorded_has_no_suspect_and_the_lock_is_as_it_was() {
        let mut state = state("fenced");
        let before = state.lock.clone();
        let command = record(&of_a(), Epoch(2), "r".into(), false, "exit status: 1 after 20 ms".into());
        assert_eq!(state.apply(&command), Applied::Changed);
        assert_eq!(state.lock, before, "a run of the program fences nobody by itself");
        let told = "STONITH of a, which held epoch 1, failed: exit status: 1 after 20 ms";
        assert_eq!(state.incidents.back().map(|i| i.what.as_str()), Some(told));
        assert_eq!(suspect(&state), None);
    }

    #[test]
    fn a_host_that_says_its_tree_is_empty_keeps_its_power() {
        let bench = Bench::new("fenced");
        assert!(!has_cleared_itself(&bench.situation(), &of_a()), "silence");
        let word = |epoch, fenced| Notice {
            member: id("a"),
            epoch: Epoch(epoch),
            fenced,
            end: WalPosition::default(),
            clean: false,
            cause: crate::domain::EndCause::Unknown,
        };
        let cleared = |notice: Notice| {
            let notices = BTreeMap::from([(id("a"), notice)]);
            has_cleared_itself(&Situation { notices: &notices, ..bench.situation() }, &of_a())
        };
        assert!(!cleared(word(1, false)), "crashed, and may be restarted in place");
        assert!(!cleared(word(0, true)), "an earlier epoch");
        assert!(cleared(word(1, true)));
    }
}
