//! How the rules change by which commits are acknowledged.

use super::cluster::{ClusterState, GrantPhase, Lock};
use crate::domain::{Epoch, MemberId, SyncStart};

impl ClusterState {
    /// The primary of the present epoch acknowledges by another rule from now on; `None`: it promises nothing any more.
    pub(super) fn set_sync(
        &mut self,
        after: u64,
        rule: Option<&(Vec<MemberId>, u32)>,
    ) -> Result<Option<String>, String> {
        let epoch = match &self.lock {
            Lock::Granted { epoch, phase, .. } if *phase != GrantPhase::Promoting => *epoch,
            Lock::Granted { .. } | Lock::Free | Lock::Released(_) | Lock::Fenced { .. } => {
                return Err("nobody is primary".to_owned());
            }
        };
        if self.sync.id != after {
            return Err(format!("the last rule of commits is {}, not {after}", self.sync.id));
        }
        let Some((names, count)) = rule else {
            if self.sync.rules.is_empty() {
                return Err("nothing is promised".to_owned());
            }
            self.sync.clear();
            return Ok(Some("commits are acknowledged without a standby".to_owned()));
        };
        let holder = self.holder().map(|(_, holder)| holder);
        if let Some(name) = names.iter().find(|name| !self.with_postgres().any(|m| m == *name) || holder == Some(*name))
        {
            return Err(format!("{name} is no standby"));
        }
        let id = self.sync.add(epoch, names.clone(), *count)?;
        Ok(self
            .sync
            .rules
            .last()
            .map(|rule| format!("commits are confirmed by {} (rule of commits {id})", rule.words())))
    }

    /// The newest rule is in effect.
    pub(super) fn settle_sync(&mut self, id: u64) -> Result<Option<String>, String> {
        self.sync.settle(id).map(|()| None)
    }

    /// Clients of an open primary wait for what it has to be confirmed, or no more.
    pub(super) fn keep_out(&mut self, on: bool) -> Result<Option<String>, String> {
        let Lock::Granted { member, phase: GrantPhase::Open, .. } = &self.lock else {
            return Err("no primary is open".to_owned());
        };
        if self.kept_out == on {
            return Err(if on { "they are kept out" } else { "nobody is kept out" }.to_owned());
        }
        let what = match on {
            true => format!("clients are kept out of {member}, which crashed, until what it has is confirmed"),
            false => format!("what {member} has is confirmed: clients may come in"),
        };
        self.kept_out = on;
        Ok(Some(what))
    }

    /// What `member` begins with when it is granted `epoch`.
    pub(super) fn start_sync(
        &mut self,
        epoch: Epoch,
        member: &MemberId,
        start: Option<&SyncStart>,
    ) -> Result<(), String> {
        let Some(SyncStart { holders, names, count }) = start else {
            if !self.sync.rules.is_empty() {
                self.sync.clear();
            }
            return Ok(());
        };
        let stranger = |name: &&MemberId| !self.members.contains_key(*name);
        if let Some(name) = holders.iter().chain(names).find(stranger) {
            return Err(format!("{name} is no member"));
        }
        if names.contains(member) || !holders.contains(member) {
            return Err(format!("{member} has what was acknowledged, and confirms nothing to itself"));
        }
        let before = self.sync.rules.last().map(|rule| rule.epoch);
        self.sync.rules.clear();
        if let Some(before) = before {
            let all = u32::try_from(holders.len()).unwrap_or(u32::MAX);
            self.sync.add(before, holders.clone(), all)?;
        }
        self.sync.add(epoch, names.clone(), *count)?;
        // It has these names before it leaves recovery.
        self.sync.binding = true;
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{
        domain::{ClusterId, Format, Generation, Lsn, TimelineId, WalPosition},
        state::{Applied, Command, Identity, Kind, Member, RuleId},
    };

    fn id(name: &str) -> MemberId {
        name.parse().unwrap()
    }

    fn names(text: &str) -> Vec<MemberId> {
        text.split_whitespace().map(id).collect()
    }

    fn run(state: &mut ClusterState, kind: Kind) -> Applied {
        let (request_id, expected) = ("r".to_owned(), state.epoch);
        state.apply(&Command { request_id, expected, because: RuleId(1), kind, evidence: None })
    }

    fn grant(member: &str, sync: Option<SyncStart>) -> Kind {
        Kind::Grant { member: id(member), floor: WalPosition { timeline: TimelineId(1), lsn: Lsn(50) }, sync }
    }

    fn start(holders: &str, of: &str, count: u32) -> Option<SyncStart> {
        Some(SyncStart { holders: names(holders), names: names(of), count })
    }

    fn set(after: u64, of: &str, count: u32) -> Kind {
        Kind::SetSync { after, rule: Some((names(of), count)) }
    }

    /// Founded with a, b and c, and a is granted as told.
    fn granted(sync: Option<SyncStart>) -> ClusterState {
        let identity = Identity { cluster_id: ClusterId("x".into()), generation: Generation(1), name: "x".into() };
        let member = |name: &str| {
            let member = Member {
                node: crate::domain::NodeId(0),
                manager: format!("{name}:1"),
                postgres: format!("{name}:2"),
                agent: String::new(),
                learner: false,
            };
            (id(name), member)
        };
        let members = ["a", "b", "c"].map(member).into();
        let mut state = ClusterState { identity: Some(identity), members, ..ClusterState::default() };
        run(&mut state, Kind::fence("first".into()));
        assert_eq!(run(&mut state, grant("a", sync)), Applied::Changed);
        state
    }

    fn promoted(state: &mut ClusterState, member: &str) {
        let Lock::Granted { timeline, .. } = state.lock else { panic!() };
        let (switch, first_record) = (WalPosition { timeline: TimelineId(1), lsn: Lsn(60) }, None);
        let kind = Kind::PromotionComplete { member: id(member), timeline, switch, first_record };
        assert_eq!(run(state, kind), Applied::Changed);
    }

    fn stale(applied: Applied) -> String {
        match applied {
            Applied::Stale { why, .. } => why,
            other => panic!("{other:?}"),
        }
    }

    fn rules(state: &ClusterState) -> Vec<(u64, u64, String)> {
        state.sync.rules.iter().map(|r| (r.id, r.epoch.0, r.words())).collect()
    }

    #[test]
    fn a_rule_is_added_to_the_last_one_known_and_settled_when_it_is_in_effect() {
        let mut state = granted(None);
        assert_eq!(stale(run(&mut state, set(0, "b c", 1))), "nobody is primary");
        promoted(&mut state, "a");
        assert_eq!(stale(run(&mut state, set(7, "b c", 1))), "the last rule of commits is 0, not 7");
        assert_eq!(stale(run(&mut state, set(0, "a b", 1))), "a is no standby");
        assert_eq!(stale(run(&mut state, set(0, "b x", 1))), "x is no standby");
        assert_eq!(run(&mut state, set(0, "b c", 1)), Applied::Changed);
        assert_eq!(state.format, Format::SYNC);
        assert_eq!(state.incidents.back().unwrap().what, "commits are confirmed by any 1 of b, c (rule of commits 1)");
        assert_eq!(run(&mut state, set(1, "c", 1)), Applied::Changed);
        assert_eq!(rules(&state), [(1, 1, "any 1 of b, c".to_owned()), (2, 1, "c".to_owned())]);
        assert!(matches!(run(&mut state, Kind::SettleSync { id: 1 }), Applied::Stale { .. }));
        assert_eq!(run(&mut state, Kind::SettleSync { id: 2 }), Applied::Changed);
        assert_eq!(rules(&state), [(2, 1, "c".to_owned())]);
        let word = state.briefing().sync;
        assert_eq!((word.id, word.epoch, word.rule.map(|r| r.id)), (2, Epoch(1), Some(2)));
        assert_eq!(run(&mut state, Kind::SetSync { after: 2, rule: None }), Applied::Changed);
        assert_eq!((state.sync.id, rules(&state).len()), (3, 0));
        let word = state.briefing().sync;
        assert_eq!((word.id, word.epoch, word.rule), (3, Epoch(1), None));
        assert_eq!(stale(run(&mut state, Kind::SetSync { after: 3, rule: None })), "nothing is promised");
    }

    #[test]
    fn a_successor_begins_with_a_rule_of_its_own_and_keeps_who_has_what_was_acknowledged() {
        let mut state = granted(None);
        promoted(&mut state, "a");
        run(&mut state, set(0, "b c", 1));
        run(&mut state, Kind::fence("lost".into()));
        assert!(matches!(run(&mut state, set(1, "c", 1)), Applied::Stale { .. }), "nobody is primary");
        assert!(matches!(run(&mut state, grant("b", start("c", "a c", 1))), Applied::Stale { .. }));
        assert!(matches!(run(&mut state, grant("b", start("b", "b c", 1))), Applied::Stale { .. }));
        assert_eq!(rules(&state).len(), 1, "what is refused changes nothing");
        assert_eq!(run(&mut state, grant("b", start("b c", "a c", 1))), Applied::Changed);
        assert_eq!(rules(&state), [(2, 1, "b, c".to_owned()), (3, 2, "any 1 of a, c".to_owned())]);
        let heard: BTreeSet<MemberId> = names("c").into_iter().collect();
        assert_eq!(state.sync.unmet(&heard).map(|r| r.id), Some(3), "c has all of epoch 1, and maybe not all of 2");
    }

    #[test]
    fn a_grant_that_says_nothing_of_it_promises_nothing() {
        let mut state = granted(None);
        promoted(&mut state, "a");
        run(&mut state, set(0, "b c", 1));
        run(&mut state, Kind::fence("lost".into()));
        assert_eq!(run(&mut state, grant("b", None)), Applied::Changed);
        assert_eq!((state.sync.id, state.sync.rules.len()), (2, 0));
    }

    #[test]
    fn the_first_primary_begins_with_its_rule_alone() {
        let state = granted(start("a", "b c", 1));
        assert_eq!(rules(&state), [(1, 1, "any 1 of b, c".to_owned())]);
    }

    #[test]
    fn clients_are_kept_out_of_an_open_primary_of_this_epoch() {
        let mut state = granted(start("a", "b c", 1));
        promoted(&mut state, "a");
        assert_eq!(stale(run(&mut state, Kind::KeepOut { on: true })), "no primary is open");
        run(&mut state, Kind::Open { member: id("a") });
        assert_eq!(stale(run(&mut state, Kind::KeepOut { on: false })), "nobody is kept out");
        assert_eq!(run(&mut state, Kind::KeepOut { on: true }), Applied::Changed);
        assert_eq!((state.open_primary(), state.holder().map(|(_, m)| m.clone())), (None, Some(id("a"))));
        assert_eq!(stale(run(&mut state, Kind::KeepOut { on: true })), "they are kept out");
        let mut opened = state.clone();
        assert_eq!(run(&mut opened, Kind::KeepOut { on: false }), Applied::Changed);
        assert!(opened.open_primary().is_some());
        run(&mut state, Kind::fence("lost".into()));
        assert!(!state.kept_out, "of the next primary nobody is");
    }

    #[test]
    fn whoever_may_have_confirmed_a_commit_is_not_removed() {
        let mut state = granted(None);
        promoted(&mut state, "a");
        run(&mut state, set(0, "b c", 1));
        let refused = stale(run(&mut state, Kind::RemoveMember { member: id("c") }));
        assert_eq!(refused, "c confirms commits; set c.sync=false first");
    }
}
