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
    /// Of a member: PostgreSQL there is stopped, too, and stays so. `None`: it is in maintenance, and is left as it is.
    pub stopped: Option<Stopped>,
}

/// PostgreSQL of a member is stopped by command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stopped {
    /// When that was committed, by the leader's wall clock in milliseconds since 1970; 0: nobody looked.
    pub at_ms: u64,
    /// Though commits wait for it: it is not waited for that others confirm them in its place.
    pub force: bool,
}

impl Asked {
    /// What is so of a member by it: `in maintenance by kim: disk`, `stopped by kim: disk`.
    pub fn aside(&self) -> String {
        let word = if self.stopped.is_some() { "stopped" } else { "in maintenance" };
        format!("{word}{self}")
    }

    /// Why something about that member is refused, and what ends it.
    pub fn refusal(&self, member: &MemberId) -> String {
        format!("{member} is {}; {} ends it", self.aside(), self.ended_by(member))
    }

    /// The command that ends it.
    pub fn ended_by(&self, member: &MemberId) -> String {
        match self.stopped {
            Some(_) => format!("`matriarch start {member}`"),
            None => format!("`matriarch maintenance off {member}`"),
        }
    }
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
        let asked = Asked { reason: reason.to_owned(), by: by.to_owned(), stopped: None };
        let what = format!("the cluster is paused{asked}");
        (self.paused, self.pauses) = (Some(asked), self.pauses + 1);
        Ok(Some(what))
    }

    pub(super) fn resume(&mut self, by: &str) -> Result<Option<String>, String> {
        if self.paused.take().is_none() {
            return Err("the cluster is not paused".to_owned());
        }
        self.pauses += 1;
        let asked = Asked { by: by.to_owned(), ..Asked::default() };
        Ok(Some(format!("the cluster decides again, resumed{asked}")))
    }

    pub(super) fn maintain(&mut self, member: &MemberId, on: bool, asked: Asked) -> Result<Option<String>, String> {
        if !self.members.contains_key(member) {
            return Err(format!("{member} is no member"));
        }
        if self.is_witness(member) {
            return Err(format!("{member} is a witness"));
        }
        if !on {
            let stops = asked.stopped.is_some();
            // Who was put in maintenance meanwhile is not started by whoever wanted to start what was stopped.
            let was = self.maintenance.get(member).filter(|was| was.stopped.is_some() == stops);
            was.ok_or_else(|| format!("{member} is not {}", if stops { "stopped" } else { "in maintenance" }))?;
            self.maintenance.remove(member);
            let asked = Asked { by: asked.by, ..Asked::default() };
            return Ok(Some(match stops {
                true => format!("{member} is started again{asked}"),
                false => format!("the maintenance of {member} is ended{asked}"),
            }));
        }
        if let Some(asked) = self.maintenance.get(member) {
            return Err(format!("{member} is {}", asked.aside()));
        }
        if self.holder().is_some_and(|(_, holder)| holder == member) {
            return Err(format!("{member} holds the lock"));
        }
        // A copy is given up by it.
        if let Some(running) = self.brief_operation().filter(|o| o.to == *member) {
            return Err(format!("operation {} is about {member}", running.id));
        }
        let what = format!("{member} is {}", asked.aside());
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
