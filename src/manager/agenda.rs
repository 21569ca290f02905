//! What operators ask of schedules, rolling restarts and operations under way.

use super::{
    leader,
    view::{ManagerHandle, NotBegun},
};
use crate::{
    domain::MemberId,
    policy::{
        Situation,
        agenda::{self, NotScheduled},
        rehearsal::{self, Rehearsal},
        rolling::{self, Wanted},
    },
    state::{Applied, Command, Kind, OperationKind, RuleId},
};

impl ManagerHandle {
    /// Lets an operation begin later; only the Raft leader can. Gives its number.
    ///
    /// # Errors
    /// Why it is refused, or that its fate is unknown.
    pub async fn schedule(
        &self,
        kind: OperationKind,
        who: (Option<&MemberId>, Option<&MemberId>),
        at_ms: u64,
        (by, request_id): (&str, String),
    ) -> Result<u64, NotBegun> {
        let admit = |s: &Situation<'_>| {
            agenda::admit(s, kind, who, at_ms, by).map_err(|why| match why {
                NotScheduled::Past(why) => NotBegun::Past(why),
                NotScheduled::Taken(why) => NotBegun::Taken(why),
                NotScheduled::Refused(why) => NotBegun::Refused(why),
            })
        };
        self.number(request_id, admit).await
    }

    /// Begins a rolling restart; only the Raft leader can. Gives its number.
    ///
    /// # Errors
    /// Why it is refused, or that its fate is unknown.
    pub async fn roll(&self, wanted: Wanted, (by, request_id): (&str, String)) -> Result<u64, NotBegun> {
        self.number(request_id, |s| rolling::admit(s, wanted, by).map_err(NotBegun::Refused)).await
    }

    /// Takes something back; only the Raft leader can. Says what happens now.
    ///
    /// # Errors
    /// Why it is refused, or that its fate is unknown.
    pub async fn cancel(&self, id: u64, (by, request_id): (&str, String)) -> Result<String, String> {
        let mut says = String::new();
        let admit = |s: &Situation<'_>| {
            let (kind, then) = agenda::admit_cancel(s, id, by)?;
            says = then;
            Ok(Some(kind))
        };
        self.put(request_id, admit).await?;
        Ok(says)
    }

    /// What an operation would do, as this manager knows it; only the Raft leader hears all.
    ///
    /// # Errors
    /// Why it would be refused, or that nobody leads.
    pub fn rehearse(
        &self,
        kind: OperationKind,
        who: (Option<&MemberId>, Option<&MemberId>),
        allow_loss: bool,
    ) -> Result<Rehearsal, String> {
        if !self.leadership().am_leader {
            return Err("no Raft leader answers: bring a majority of managers up".to_owned());
        }
        self.look(|s| rehearsal::of(s, kind, who, allow_loss))
    }

    /// Proposes what gets a number; the same request heard again gets the same one.
    async fn number(
        &self,
        request_id: String,
        admit: impl FnOnce(&Situation<'_>) -> Result<Kind, NotBegun>,
    ) -> Result<u64, NotBegun> {
        let (manager, state) = (self.manager(), self.state());
        if let Some(known) = state.number_of(&request_id) {
            return Ok(known);
        }
        if !self.leadership().am_leader {
            // Only a leader hears of all hosts.
            return Err(NotBegun::Undecided("no Raft leader answers: bring a majority of managers up".to_owned()));
        }
        let kind = self.look(admit)?;
        let evidence = leader::evidence(manager, &state, &[]);
        let (expected, because) = (state.epoch, RuleId(2));
        let command = Command { request_id: request_id.clone(), expected, because, kind, evidence };
        let proposed = manager.inner.node.propose(command).await;
        if let Some(known) = self.state().number_of(&request_id) {
            return Ok(known);
        }
        Err(match proposed {
            Ok(Applied::Stale { why, .. }) => NotBegun::Refused(format!("the cluster has changed meanwhile: {why}")),
            Ok(Applied::Changed | Applied::Nothing) => NotBegun::Undecided("nobody knows its number".to_owned()),
            Err(error) => NotBegun::Undecided(error.to_string()),
        })
    }
}
