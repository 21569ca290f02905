//! What operators put aside for a while: the decisions of the whole cluster, or one member.

use std::fmt;

use super::cluster::ClusterState;
use crate::domain::{MemberId, PauseWord};

/// Why something is as it is, in an operator's words.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Asked {
    /// Why; may be empty.
    pub reason: String,
    /// Who asked, as they call themselves; empty when they don't.
    pub by: String,
}

/// ` by kim: new kernel`, or what there is of it; nothing at all when nothing was said.
impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.by.is_empty() {
            write!(f, " by {}", self.by)?;
        }
        if !self.reason.is_empty() {
            write!(f, ": {}", self.reason)?;
        }
        Ok(())
    }
}

impl ClusterState {
    pub(super) fn pause(&mut self, reason: &str, by: &str) -> Result<Option<String>, String> {
        if self.identity.is_none() {
            return Err("the cluster is not founded".to_owned());
        }
        if let Some(asked) = &self.paused {
            return Err(format!("the cluster is paused{asked}"));
        }
        let asked = Asked { reason: reason.to_owned(), by: by.to_owned() };
        let what = format!("the cluster is paused{asked}");
        (self.paused, self.pauses) = (Some(asked), self.pauses + 1);
        Ok(Some(what))
    }

    pub(super) fn resume(&mut self, by: &str) -> Result<Option<String>, String> {
        if self.paused.take().is_none() {
            return Err("the cluster is not paused".to_owned());
        }
        self.pauses += 1;
        let asked = Asked { reason: String::new(), by: by.to_owned() };
        Ok(Some(format!("the cluster decides again, resumed{asked}")))
    }

    pub(super) fn maintain(
        &mut self,
        member: &MemberId,
        on: bool,
        reason: &str,
        by: &str,
    ) -> Result<Option<String>, String> {
        if !self.members.contains_key(member) {
            return Err(format!("{member} is no member"));
        }
        if self.is_witness(member) {
            return Err(format!("{member} is a witness"));
        }
        if !on {
            let was = self.maintenance.remove(member);
            was.ok_or_else(|| format!("{member} is not in maintenance"))?;
            let asked = Asked { reason: String::new(), by: by.to_owned() };
            return Ok(Some(format!("the maintenance of {member} is ended{asked}")));
        }
        if let Some(asked) = self.maintenance.get(member) {
            return Err(format!("{member} is in maintenance{asked}"));
        }
        if self.holder().is_some_and(|(_, holder)| holder == member) {
            return Err(format!("{member} holds the lock"));
        }
        // A copy is given up by it.
        if let Some(running) = self.brief_operation().filter(|o| o.to == *member) {
            return Err(format!("operation {} is about {member}", running.id));
        }
        let asked = Asked { reason: reason.to_owned(), by: by.to_owned() };
        let what = format!("{member} is in maintenance{asked}");
        self.maintenance.insert(member.clone(), asked);
        Ok(Some(what))
    }

    /// What agents are told of it.
    pub(super) fn pause_word(&self) -> PauseWord {
        PauseWord { version: self.pauses, on: self.paused.is_some(), stays: self.stays_put() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{ClusterId, Generation},
        state::{Applied, Command, Identity, Kind, RuleId},
    };

    fn run(state: &mut ClusterState, kind: Kind) -> Applied {
        let expected = state.epoch;
        state.apply(&Command { request_id: "r".into(), expected, because: RuleId(2), kind, evidence: None })
    }

    fn pause() -> Kind {
        Kind::Pause { reason: "new kernel".into(), by: "kim".into() }
    }

    #[test]
    fn a_pause_has_one_beginning_and_one_end_and_agents_can_tell_them_apart() {
        let identity = Identity { cluster_id: ClusterId("x".into()), generation: Generation(1), name: "x".into() };
        let mut state = ClusterState { identity: Some(identity), ..ClusterState::default() };
        let resume = || Kind::Resume { by: String::new() };
        assert!(matches!(run(&mut state, resume()), Applied::Stale { .. }), "it is not paused");
        assert_eq!(run(&mut state, pause()), Applied::Changed);
        assert!(matches!(run(&mut state, pause()), Applied::Stale { .. }), "it is paused");
        assert_eq!(state.pause_word(), PauseWord { version: 1, on: true, stays: false });
        assert_eq!(state.incidents.back().unwrap().what, "the cluster is paused by kim: new kernel");
        assert_eq!(run(&mut state, resume()), Applied::Changed);
        assert_eq!(state.pause_word(), PauseWord { version: 2, on: false, stays: false });
    }

    #[test]
    fn nothing_is_paused_that_is_not_there() {
        assert!(matches!(run(&mut ClusterState::default(), pause()), Applied::Stale { .. }));
    }
}
