//! Who has to confirm a commit before it is acknowledged, and whose word a
//! promotion needs therefore.
//!
//! A commit is acknowledged when `count` of some standbys have flushed it. A
//! promotion that hears at least `names - count + 1` of them hears one that has
//! it. So what the log keeps is every rule by which a commit may have been
//! acknowledged that no later rule covers, and a promotion satisfies them all.
//! A rule stands in the log before PostgreSQL goes by it, and goes from the log
//! after the next one has come into effect: whatever stops in between leaves
//! one rule too many, never one too few. The same invariant in other words is
//! that of Patroni's quorum commit and of Flexible Paxos (Howard et al. 2016,
//! "majority agreement revisited"): each set that acknowledges meets each set that elects.

use std::{collections::BTreeSet, fmt, str::FromStr};

use super::{Epoch, Generation, MemberId};

/// So many rules are kept at once. More are no gain: a promotion has to satisfy them all.
pub const RULES_KEPT: usize = 6;

/// How a primary replicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SyncMode {
    /// Nobody has to confirm anything.
    #[default]
    Async,
    /// Each of `sync_count` chosen standbys does.
    Sync,
    /// Any `sync_count` of all standbys do.
    Quorum,
}

impl FromStr for SyncMode {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "async" => Ok(Self::Async),
            "sync" => Ok(Self::Sync),
            "quorum" => Ok(Self::Quorum),
            _ => Err("async, sync or quorum".to_owned()),
        }
    }
}

impl fmt::Display for SyncMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Async => "async",
            Self::Sync => "sync",
            Self::Quorum => "quorum",
        })
    }
}

/// What a standby has done with a commit when it confirms it (PostgreSQL manual, 20.5.1, `synchronous_commit`). Less than
/// a flush would be no promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Confirms {
    /// Flushed: `on`.
    #[default]
    Flush,
    /// Replayed, so that whoever reads there sees it: `remote_apply`.
    Apply,
}

impl FromStr for Confirms {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "on" => Ok(Self::Flush),
            "remote_apply" => Ok(Self::Apply),
            _ => Err("on or remote_apply".to_owned()),
        }
    }
}

impl fmt::Display for Confirms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Flush => "on",
            Self::Apply => "remote_apply",
        })
    }
}

/// Every commit acknowledged under this rule is on its primary and on `count` of `names` at least.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SyncRule {
    /// Its number; they only go up.
    pub id: u64,
    /// Whose primary acknowledges by it.
    pub epoch: Epoch,
    /// Who may confirm, those who shall do it first.
    pub names: Vec<MemberId>,
    /// How many have to. 0: nobody, the primary acknowledges alone. More than there are names: nothing is acknowledged.
    pub count: u32,
}

impl SyncRule {
    /// How many of `names` a promotion has to hear, so that one of them has every such commit. `None`: all of them
    /// together may lack one, so only whoever was primary may be primary.
    pub fn needed(&self) -> Option<usize> {
        let (names, count) = (self.names.len(), self.count as usize);
        (count > 0).then(|| (names + 1).saturating_sub(count))
    }

    /// One of `heard` has every commit acknowledged under this rule.
    pub fn is_met_by(&self, heard: &BTreeSet<MemberId>) -> bool {
        self.needed().is_some_and(|needed| self.heard_of(heard) >= needed)
    }

    /// How many of its names are among `heard`.
    pub fn heard_of(&self, heard: &BTreeSet<MemberId>) -> usize {
        self.names.iter().filter(|name| heard.contains(*name)).count()
    }

    /// Nobody has to confirm.
    pub fn is_alone(&self) -> bool {
        self.count == 0
    }

    /// For people: `any 1 of n2, n3`.
    pub fn words(&self) -> String {
        let names = Vec::from_iter(self.names.iter().map(MemberId::as_str)).join(", ");
        match (self.count as usize, self.names.len()) {
            (0, _) => "nobody: the primary acknowledges alone".to_owned(),
            (count, 0) => format!("{count}, and there is nobody to"),
            (count, all) if count == all => names,
            (count, _) => format!("any {count} of {names}"),
        }
    }
}

/// The name under which a member follows the primary of an epoch. Another epoch's primary does not know it, so nobody
/// confirms a commit to a primary that is over, whatever it is told late.
pub fn standby_name(member: impl fmt::Display, generation: Generation, epoch: Epoch) -> String {
    format!("{member}_g{generation}e{epoch}")
}

/// How the names of the members' slots begin. Nobody else's may.
pub const SLOT_PREFIX: &str = "matriarch_";

/// The physical slot a member streams from, on every server. PostgreSQL allows no `-` in it; members whose names differ in
/// nothing else can't be in one cluster.
pub fn slot_name(member: &MemberId) -> String {
    format!("{SLOT_PREFIX}{}", member.as_str().replace('-', "_"))
}

/// Whose name that is, and of which epoch; a bare name of a member is of a version that has no such names.
pub fn read_standby_name(name: &str) -> Option<(MemberId, Option<(Generation, Epoch)>)> {
    let named = name.rsplit_once("_g").and_then(|(member, rest)| {
        let (generation, epoch) = rest.split_once('e')?;
        Some((member.parse().ok()?, Some((Generation(generation.parse().ok()?), Epoch(epoch.parse().ok()?)))))
    });
    named.or_else(|| Some((name.parse().ok()?, None)))
}

/// What a primary begins with when it is granted an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SyncStart {
    /// Each of these, the new primary among them, has everything that was ever acknowledged.
    pub holders: Vec<MemberId>,
    /// Who may confirm its first commits.
    pub names: Vec<MemberId>,
    /// How many have to.
    pub count: u32,
}

/// By which rule the primary of an epoch acknowledges, as an agent is told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SyncWord {
    /// Rises with each change; 0 before the first.
    pub id: u64,
    /// The epoch it is for.
    pub epoch: Epoch,
    /// The rule; `None`: commits wait for nobody.
    pub rule: Option<SyncRule>,
}

/// Every rule by which a commit may have been acknowledged that no later one covers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SyncSet {
    /// Of the last change. Never goes back.
    pub id: u64,
    /// Oldest first. The last is the one in force, or about to be; none: nothing is promised.
    pub rules: Vec<SyncRule>,
    /// The present primary, or the last, acknowledges by one of the rules and not otherwise: one of them has come into effect, or
    /// it began with one. Until then it may still wait for nobody.
    pub binding: bool,
}

impl SyncSet {
    /// The rule that the primary of `epoch` is to go by; `None`: commits wait for nobody.
    pub fn in_force(&self, epoch: Epoch) -> Option<&SyncRule> {
        self.rules.last().filter(|rule| rule.epoch == epoch)
    }

    /// The first rule of which `heard` may lack a commit; `None`: the most advanced of them has all.
    pub fn unmet(&self, heard: &BTreeSet<MemberId>) -> Option<&SyncRule> {
        self.rules.iter().find(|rule| !rule.is_met_by(heard))
    }

    /// One more rule, which PostgreSQL may go by from now on.
    ///
    /// # Errors
    /// There are too many: the last has to come into effect first.
    pub fn add(&mut self, epoch: Epoch, names: Vec<MemberId>, count: u32) -> Result<u64, String> {
        if self.rules.len() >= RULES_KEPT {
            return Err(format!("{RULES_KEPT} rules are in use; the last has to come into effect first"));
        }
        self.id += 1;
        self.rules.push(SyncRule { id: self.id, epoch, names, count });
        Ok(self.id)
    }

    /// The rule of this number, the last, is in effect: it covers what was acknowledged under all before, and without any.
    ///
    /// # Errors
    /// It is not the last, or that is known already.
    pub fn settle(&mut self, id: u64) -> Result<(), String> {
        match self.rules.last() {
            Some(last) if last.id == id && (self.rules.len() > 1 || !self.binding) => {
                self.rules.drain(..self.rules.len() - 1);
                self.binding = true;
                Ok(())
            }
            Some(last) => Err(format!("rule {} is the last of {}", last.id, self.rules.len())),
            None => Err("there is no rule".to_owned()),
        }
    }

    /// Nothing is promised any more.
    pub fn clear(&mut self) {
        self.id += 1;
        self.rules.clear();
        self.binding = false;
    }
}

#[cfg(test)]
#[path = "sync_test.rs"]
mod tests;
