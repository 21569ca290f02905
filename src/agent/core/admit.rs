//! Which cluster, and which life of it, this host belongs to.

use super::{Core, Effect};
use crate::{
    agent::order::Address,
    domain::{MemberList, Settings, SettingsDocument, SyncWord, TimingsInUse},
};

impl Core {
    /// Which cluster a request must name; learns it from the first that names one.
    ///
    /// # Errors
    /// The request is for someone else, or from another life of the cluster.
    pub fn admit(&mut self, to: &Address) -> Result<Vec<Effect>, String> {
        if to.target != self.me.as_str() {
            return Err(format!("this is {}, not {}", self.me, to.target));
        }
        let known = &self.durable.cluster_id;
        if to.cluster_id.0.is_empty() {
            return Ok(Vec::new());
        }
        if known.0.is_empty() {
            self.durable.cluster_id = to.cluster_id.clone();
            self.durable.generation = to.generation;
            return Ok(vec![Effect::Persist, Effect::Identify(to.cluster_id.clone(), to.generation)]);
        }
        if *known != to.cluster_id {
            return Err(format!("this host belongs to cluster {known}, not to {}", to.cluster_id));
        }
        let (ours, theirs) = (self.durable.generation, to.generation);
        if theirs < ours {
            return Err(format!("this host is of generation {ours} of its cluster, not of {theirs}"));
        }
        if theirs == ours {
            return Ok(Vec::new());
        }
        // The cluster was recovered. What this host holds of the generation before ends first, by itself.
        if self.durable.tenure.is_some() || self.is_fencing() {
            return Err(format!(
                "this host still holds an epoch of generation {ours}, which has to end before {theirs}"
            ));
        }
        self.durable.generation = theirs;
        // Their numbers begin anew: what counts as newer is not to be told from those of the generation before.
        self.durable.members = MemberList::default();
        self.durable.timings = TimingsInUse::default();
        self.durable.settings = SettingsDocument::default();
        self.settings = Settings::default();
        self.forget_lineage();
        (self.durable.sync, self.told_sync) = (SyncWord::default(), SyncWord::default());
        (self.paused, self.stays, self.pauses) = (None, None, 0);
        Ok(vec![Effect::Persist, Effect::Identify(to.cluster_id.clone(), theirs)])
    }
}
