//! Who streams from a standby. The log says it, so that every host knows from whom it follows and nobody follows in a circle.

use super::cluster::{ClusterState, Lock};
use crate::domain::MemberId;

/// From whom a member streams.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// The standby; `None`: the primary, for now.
    pub source: Option<MemberId>,
    /// How often it has left its source lately because of it: the more often, the later it goes back.
    pub falls: u32,
}

impl ClusterState {
    /// Whom `member` is to follow: its source, or else the primary. `None`: there is no primary, or it is that itself.
    pub fn upstream_of(&self, member: &MemberId) -> Option<&MemberId> {
        let (_, holder) = self.holder()?;
        let source = self.source_of(member).filter(|source| self.members.contains_key(*source));
        (holder != member).then(|| source.unwrap_or(holder))
    }

    /// The standby that `member` streams from.
    pub fn source_of(&self, member: &MemberId) -> Option<&MemberId> {
        self.cascade.get(member)?.source.as_ref()
    }

    /// The standbys between `member` and the primary, the nearest first. Ends also where they would go round in a circle.
    pub fn sources_above(&self, member: &MemberId) -> Vec<&MemberId> {
        let mut above: Vec<&MemberId> = Vec::new();
        let mut last = member;
        while let Some(source) = self.source_of(last).filter(|source| !above.contains(source)) {
            above.push(source);
            last = source;
        }
        above
    }

    pub(super) fn lead_to(
        &mut self,
        member: &MemberId,
        source: Option<&MemberId>,
        falls: u32,
        reason: &str,
    ) -> Result<Option<String>, String> {
        let Lock::Granted { member: holder, .. } = &self.lock else { return Err("nobody is primary".to_owned()) };
        if member == holder || !self.with_postgres().any(|m| m == member) {
            return Err(format!("{member} is no standby"));
        }
        if let Some(source) = source {
            if source == holder || source == member || !self.with_postgres().any(|m| m == source) {
                return Err(format!("{source} is no standby that {member} could follow"));
            }
            if self.sources_above(source).contains(&member) {
                return Err(format!("{source} follows {member}"));
            }
        }
        let link = Link { source: source.cloned(), falls };
        let known = self.cascade.get(member).cloned().unwrap_or_default();
        if known == link {
            return Err(format!("{member} follows {} already", source.unwrap_or(holder)));
        }
        let what =
            (known.source != link.source).then(|| format!("{member} follows {}: {reason}", source.unwrap_or(holder)));
        match link == Link::default() {
            true => drop(self.cascade.remove(member)),
            false => drop(self.cascade.insert(member.clone(), link)),
        }
        Ok(what)
    }

    /// Whoever is no member any more is nobody's source.
    pub(super) fn leave_source(&mut self, gone: &MemberId) {
        self.cascade.retain(|member, link| member != gone && link.source.as_ref() != Some(gone));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::Epoch,
        policy::testing::{id, state},
        state::{Applied, Command, Kind, RuleId},
    };

    fn lead(state: &mut ClusterState, member: &str, source: Option<&str>) -> Applied {
        let (member, source, reason) = (id(member), source.map(id), "so it is set".to_owned());
        let kind = Kind::Cascade { member, source, falls: 0, reason };
        let (request_id, expected) = ("r".to_owned(), Epoch(1));
        state.apply(&Command { request_id, expected, because: RuleId(442), kind, evidence: None })
    }

    #[test]
    fn nobody_follows_itself_the_primary_as_a_standby_or_in_a_circle() {
        let mut state = state("granted a open 2");
        for (member, source) in [("b", "b"), ("b", "a"), ("a", "b"), ("b", "x"), ("x", "b")] {
            assert!(matches!(lead(&mut state, member, Some(source)), Applied::Stale { .. }), "{member} -> {source}");
        }
        assert_eq!(lead(&mut state, "c", Some("b")), Applied::Changed);
        let Applied::Stale { why, .. } = lead(&mut state, "b", Some("c")) else { panic!() };
        assert_eq!(why, "c follows b");
        assert_eq!(state.upstream_of(&id("c")), Some(&id("b")));
        assert_eq!((state.upstream_of(&id("b")), state.upstream_of(&id("a"))), (Some(&id("a")), None));
        assert_eq!(lead(&mut state, "c", None), Applied::Changed);
        assert!(state.cascade.is_empty());
    }

    #[test]
    fn a_source_that_leaves_or_another_primary_leads_everybody_to_the_primary() {
        let mut state = state("granted a open 2");
        lead(&mut state, "c", Some("b"));
        let command = |kind, expected| Command {
            request_id: "r".into(),
            expected: Epoch(expected),
            because: RuleId(0),
            kind,
            evidence: None,
        };
        let mut left = state.clone();
        assert_eq!(left.apply(&command(Kind::RemoveMember { member: id("b") }, 1)), Applied::Changed);
        assert_eq!(left.upstream_of(&id("c")), Some(&id("a")));
        state.apply(&command(Kind::fence("lost".into()), 1));
        let grant = Kind::Grant { member: id("b"), floor: Default::default(), sync: None };
        assert_eq!(state.apply(&command(grant, 2)), Applied::Changed);
        assert_eq!(state.upstream_of(&id("c")), Some(&id("b")));
        assert!(state.cascade.is_empty(), "as the primary");
    }
}
