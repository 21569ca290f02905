//! What operators ask of schedules, rolling restarts and operations under way.

use super::{
    leader,
    view::{ManagerHandle, NotBegun, is_short, other},
};
use crate::{
    domain::MemberId,
    policy::{
        Situation,
        agenda::{self, NotScheduled},
        rehearsal::{self, Rehearsal},
        rolling::{self, Wanted},
    },
    state::{Applied, ClusterState, Command, Kind, OperationKind, RuleId},
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
        let same = |state: &ClusterState, id| state.agenda.was_scheduled(id, kind, who, at_ms);
        self.number(request_id, same, admit).await
    }

    /// Begins a rolling restart; only the Raft leader can. Gives its number.
    ///
    /// # Errors
    /// Why it is refused, or that its fate is unknown.
    pub async fn roll(&self, wanted: Wanted, (by, request_id): (&str, String)) -> Result<u64, NotBegun> {
        let same = |state: &ClusterState, id| state.agenda.was_rolling(id, wanted.primary);
        self.number(request_id, same, |s| rolling::admit(s, wanted, by).map_err(NotBegun::Refused)).await
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
    pub async fn rehearse(
        &self,
        kind: OperationKind,
        who: (Option<&MemberId>, Option<&MemberId>),
        allow_loss: bool,
    ) -> Result<Rehearsal, String> {
        if !self.leadership().am_leader {
            return Err("no Raft leader answers: bring a majority of managers up".to_owned());
        }
        self.patiently(|| self.look(|s| rehearsal::of(s, kind, who, allow_loss))).await
    }

    /// Proposes what gets a number; the same request heard again gets the same one.
    async fn number(
        &self,
        request_id: String,
        same: impl Fn(&ClusterState, u64) -> bool,
        admit: impl Fn(&Situation<'_>) -> Result<Kind, NotBegun>,
    ) -> Result<u64, NotBegun> {
        is_short(&request_id).map_err(NotBegun::Refused)?;
        let manager = self.manager();
        let known = |state: &ClusterState| {
            let id = state.number_of(&request_id)?;
            Some(if same(state, id) { Ok(id) } else { Err(NotBegun::Refused(other(&request_id, id))) })
        };
        if let Some(known) = known(&self.state()) {
            return known;
        }
        if !self.leadership().am_leader {
            // Only a leader hears of all hosts.
            return Err(NotBegun::Undecided("no Raft leader answers: bring a majority of managers up".to_owned()));
        }
        let admitted = || {
            let state = self.state();
            self.look(&admit).map(|kind| (state, kind))
        };
        let (state, kind) = self.patiently(admitted).await?;
        let evidence = leader::evidence(manager, &state, &[]);
        let (expected, because) = (state.epoch, RuleId(2));
        let command = Command { request_id: request_id.clone(), expected, because, kind, evidence };
        let proposed = manager.inner.node.propose(command).await;
        if let Some(known) = known(&self.state()) {
            return known;
        }
        Err(match proposed {
            Ok(Applied::Stale { why, .. }) => NotBegun::Refused(format!("the cluster has changed meanwhile: {why}")),
            Ok(Applied::Changed | Applied::Nothing) => NotBegun::Undecided("nobody knows its number".to_owned()),
            Err(error) => NotBegun::Undecided(error.to_string()),
        })
    }
}
