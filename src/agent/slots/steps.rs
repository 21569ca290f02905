//! What is to be done with the slots of a server, from a look at them and at those of its primary. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    domain::{
        IgnoredSlots, KeptWal, Logical, Lsn, PermanentSlots, SlotHolds, SlotsYield, Whose, slots::PermanentSlot,
        version::PostgresVersion,
    },
    postgres::{SlotFound, SlotsFound},
};

/// A mebibyte.
const MIB: u64 = 1 << 20;

/// Which slots there are to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wishes {
    /// Those of the other members.
    pub members: BTreeSet<String>,
    /// Those of users that survive a failover.
    pub permanent: PermanentSlots,
    /// Nobody else's business.
    pub ignored: IgnoredSlots,
    /// This member may become primary; else permanent slots are of no use here.
    pub possible_primary: bool,
    /// Of this server.
    pub version: PostgresVersion,
    /// So many standbys at least have to have what a logical subscriber is sent.
    pub confirming: usize,
}

impl Wishes {
    /// Logical slots are to be copied to standbys, and PostgreSQL does that.
    pub fn syncs(&self) -> bool {
        self.permanent.has_logical() && self.permanent.unsupported(self.version).is_none()
    }

    fn whose(&self, slot: &SlotFound) -> Whose {
        match slot.logical() {
            None if slot.ours => Whose::Member,
            logical if self.ignored.has(&slot.name, logical.as_ref()) => Whose::Ignored,
            _ if slot.synced || self.permanent.get(&slot.name).is_some() => Whose::Permanent,
            // A logical one by the name of a member's is somebody else's, too.
            _ => Whose::Other,
        }
    }
}

/// What is to be done with a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A member has none.
    Create(String),
    /// A permanent one is missing.
    CreatePermanent(PermanentSlot),
    /// It is of nobody who is a member, or a copy that nobody needs any more.
    Drop(String),
    /// It keeps WAL back for nobody, or nobody can stream from it any more.
    Renew(String),
    /// It is to keep WAL back before anybody streams from it.
    Reserve(String),
    /// The copy of a permanent slot is of no use as it is.
    RenewCopy(String),
    /// The copy of a permanent slot keeps no more back than the primary's.
    Advance { slot: String, to: Lsn },
    /// It holds WAL back on a volume that is nearly full.
    GiveUp {
        slot: String,
        /// It is made anew, without WAL.
        of_member: bool,
        bytes: u64,
    },
    /// The standby of this WAL sender is silent.
    Free { slot: String, pid: u32 },
}

impl Step {
    /// Of which slot.
    pub fn slot(&self) -> &str {
        match self {
            Step::CreatePermanent(slot) => &slot.name,
            Step::Create(slot)
            | Step::Drop(slot)
            | Step::Renew(slot)
            | Step::Reserve(slot)
            | Step::RenewCopy(slot)
            | Step::Advance { slot, .. }
            | Step::GiveUp { slot, .. }
            | Step::Free { slot, .. } => slot,
        }
    }

    /// The slot that is a copy from now on, on a standby.
    pub fn copies(&self) -> Option<&str> {
        matches!(self, Step::CreatePermanent(_) | Step::RenewCopy(_) | Step::Advance { .. }).then(|| self.slot())
    }

    fn takes_away(&self, name: &str) -> bool {
        matches!(self, Step::Drop(slot) | Step::Renew(slot) | Step::Reserve(slot) | Step::RenewCopy(slot) if slot == name)
    }
}

/// What is due with members' slots. `silent` are WAL senders whose standby was not heard for too long.
pub fn due(found: &SlotsFound, wishes: &Wishes, silent: &BTreeSet<u32>) -> Vec<Step> {
    let there: BTreeSet<&str> = found.slots.iter().map(|slot| slot.name.as_str()).collect();
    let missing = wishes.members.iter().filter(|name| !there.contains(name.as_str())).cloned().map(Step::Create);
    let of = |slot: &SlotFound| -> Option<Step> {
        let name = slot.name.clone();
        match slot.active_pid {
            Some(pid) if slot.ours && silent.contains(&pid) => Some(Step::Free { slot: name, pid }),
            Some(_) => None,
            None if !slot.ours => None,
            // Somebody else's, by the name of one of ours: whoever made it has to take it away.
            None if !slot.physical => None,
            None if !wishes.members.contains(&slot.name) => Some(Step::Drop(name)),
            None if slot.lost || (found.in_recovery && slot.reserves) => Some(Step::Renew(name)),
            None => None,
        }
    };
    // There may be room for a new one only when an old one is gone.
    found.slots.iter().filter_map(of).chain(missing).collect()
}

/// What is due with users' slots. `primary`: those of whom this standby follows, when they are known. `copies`: those that
/// were permanent here while this was a standby.
pub fn permanent(
    found: &SlotsFound,
    primary: Option<&SlotsFound>,
    wishes: &Wishes,
    copies: &BTreeSet<String>,
) -> Vec<Step> {
    if !found.in_recovery {
        let missing = |slot: &&PermanentSlot| !found.slots.iter().any(|there| there.name == slot.name);
        let possible = |slot: &&PermanentSlot| slot.logical.is_none() || wishes.syncs();
        return wishes.permanent.iter().filter(missing).filter(possible).cloned().map(Step::CreatePermanent).collect();
    }
    let kept = |slot: &&SlotFound| slot.active_pid.is_none() && wishes.whose(slot) != Whose::Ignored;
    let stale = found.slots.iter().filter(kept).filter_map(|slot| stale(slot, primary, wishes, copies));
    let physical = wishes.permanent.iter().filter(|slot| slot.logical.is_none() && wishes.possible_primary);
    stale.chain(physical.filter_map(|slot| copy(slot, found, primary?))).collect()
}

/// Logical slots that a primary has to have already: made anew, one would let its reader skip what it has not read, without a word.
#[derive(Debug, Default)]
pub struct Logicals {
    /// Those that were wished for while this was a standby, or when its primary was seen first, and those that were there since.
    expected: Option<BTreeSet<String>>,
    lost: BTreeSet<String>,
}

impl Logicals {
    /// `due` but for slots that were there once.
    pub fn without_those_that_were_lost(&mut self, due: Vec<Step>, found: &SlotsFound, wishes: &Wishes) -> Vec<Step> {
        let logical = wishes.permanent.iter().filter(|slot| slot.logical.is_some()).map(|slot| slot.name.clone());
        let logical: BTreeSet<String> = logical.collect();
        if found.in_recovery {
            (self.expected, self.lost) = (Some(logical), BTreeSet::new());
            return due;
        }
        let expected = self.expected.get_or_insert_with(|| logical.clone());
        expected.retain(|name| logical.contains(name));
        let there = |name: &&String| found.slots.iter().any(|slot| slot.name == **name);
        self.lost = expected.iter().filter(|name| !there(name)).cloned().collect();
        expected.extend(logical.iter().filter(there).cloned());
        let lost = &self.lost;
        due.into_iter()
            .filter(|step| !matches!(step, Step::CreatePermanent(slot) if lost.contains(&slot.name)))
            .collect()
    }

    /// For people.
    pub fn problems(&self) -> impl Iterator<Item = String> + '_ {
        self.lost.iter().map(|name| {
            format!(
                "the permanent slot {name} is missing, and is not made anew: its reader would skip what it has not read. Let it begin \
                 anew, and make the slot by hand, or take it off permanent_slots and put it there again"
            )
        })
    }
}

/// What a standby has no use for.
fn stale(slot: &SlotFound, primary: Option<&SlotsFound>, wishes: &Wishes, copies: &BTreeSet<String>) -> Option<Step> {
    let wanted = wishes.permanent.get(&slot.name).is_some_and(|p| p.logical.is_none()) && wishes.possible_primary;
    if slot.physical {
        return (copies.contains(&slot.name) && !wanted).then(|| Step::Drop(slot.name.clone()));
    }
    // What is left of the time in which this was the primary keeps PostgreSQL from copying any slot.
    let of_primary = primary.is_some_and(|p| p.slots.iter().any(|s| s.name == slot.name && s.failover));
    (wishes.syncs() && slot.failover && !slot.synced && of_primary).then(|| Step::Drop(slot.name.clone()))
}

/// The copy of a physical slot on a standby.
fn copy(slot: &PermanentSlot, found: &SlotsFound, primary: &SlotsFound) -> Option<Step> {
    let theirs = primary.slots.iter().find(|s| s.name == slot.name && s.physical && !s.lost && s.reserves)?;
    let Some(ours) = found.slots.iter().find(|s| s.name == slot.name) else {
        return Some(Step::CreatePermanent(slot.clone()));
    };
    match ours {
        SlotFound { physical: false, .. } | SlotFound { active_pid: Some(_), .. } => None,
        // What it pinned as the primary's own it would pin for ever; and nobody can read from a lost one.
        SlotFound { pins_rows: true, .. } | SlotFound { lost: true, .. } | SlotFound { reserves: false, .. } => {
            Some(Step::RenewCopy(slot.name.clone()))
        }
        SlotFound { restart, .. } if *restart < theirs.restart => {
            Some(Step::Advance { slot: slot.name.clone(), to: Lsn(theirs.restart) })
        }
        _ => None,
    }
}

/// What keeps slots from being as they should, in words for people.
pub fn problems(found: &SlotsFound, primary: Option<&SlotsFound>, wishes: &Wishes) -> Vec<String> {
    let in_the_way = found.slots.iter().filter(|s| !s.physical && wishes.members.contains(&s.name));
    let in_the_way = in_the_way.map(|s| {
        format!("slot {} is a logical one and in the way of a member's: drop it, or rename the member", s.name)
    });
    let unsupported = wishes.permanent.unsupported(wishes.version).map(|why| format!("permanent_slots: {why}"));
    let of = |slot: &PermanentSlot| {
        problem(slot, found.slots.iter().find(|s| s.name == slot.name)?, primary, found.in_recovery)
    };
    in_the_way.chain(unsupported).chain(wishes.permanent.iter().filter_map(of)).collect()
}

fn problem(wanted: &PermanentSlot, is: &SlotFound, primary: Option<&SlotsFound>, in_recovery: bool) -> Option<String> {
    let name = &wanted.name;
    let kind = |logical: &Option<Logical>| match logical {
        None => "physical".to_owned(),
        Some(Logical { database, plugin }) => format!("logical, of database {database} and plugin {plugin}"),
    };
    let (has, wants) = (is.logical(), &wanted.logical);
    if has != *wants {
        let (has, wants) = (kind(&has), kind(wants));
        return Some(format!(
            "permanent slot {name} is there as another: {has}, not {wants}; drop it, and it is made anew"
        ));
    }
    if wants.is_some() && !is.failover {
        return Some(format!(
            "permanent slot {name} was not made for failover: drop it, and it is made anew, or alter its subscription (failover = true)"
        ));
    }
    if is.lost && !in_recovery {
        return Some(format!(
            "permanent slot {name} has lost its WAL: its reader has to begin anew; drop it, and it is made anew"
        ));
    }
    let theirs = primary?.slots.iter().find(|s| s.name == *name && s.physical && s.reserves)?;
    let behind = in_recovery && is.physical && is.reserves && is.restart > theirs.restart;
    behind.then(|| {
        let (here, there) = (Lsn(is.restart), Lsn(theirs.restart));
        format!("permanent slot {name} keeps WAL from {here} on, its reader is at {there} still: after a failover to here WAL would be missing")
    })
}

/// The slots of standbys that have to have received what a logical subscriber is sent. `was`: until now; `away`: for how long
/// each has had no WAL sender.
///
/// PostgreSQL waits for all of them, so one that stays away is left out after `patience`, but not when fewer than are needed
/// would be left.
pub fn confirming(
    found: &SlotsFound,
    was: &BTreeSet<String>,
    away: &BTreeMap<String, Duration>,
    wishes: &Wishes,
    patience: Duration,
) -> BTreeSet<String> {
    let there = found.slots.iter().filter(|s| s.physical && !s.lost && wishes.members.contains(&s.name));
    if found.in_recovery {
        // Whoever becomes primary begins with all of them.
        return there.map(|s| s.name.clone()).collect();
    }
    let there = Vec::from_iter(there);
    let streams: BTreeSet<String> = there.iter().filter(|s| s.active_pid.is_some()).map(|s| s.name.clone()).collect();
    let mut missed =
        Vec::from_iter(there.iter().map(|s| &s.name).filter(|name| was.contains(*name) && !streams.contains(*name)));
    // Those that are away for the shortest time first.
    missed.sort_by_key(|name| away.get(*name).copied().unwrap_or_default());
    let mut names = streams;
    for name in missed {
        let lately = away.get(name).copied().unwrap_or_default() < patience;
        if lately || names.len() < wishes.confirming {
            names.insert(name.clone());
        }
    }
    names
}

/// What the slots hold back.
pub fn kept(found: &SlotsFound, wishes: &Wishes) -> KeptWal {
    let holds = |slot: &SlotFound| SlotHolds {
        name: slot.name.clone(),
        whose: wishes.whose(slot),
        active: slot.active_pid.is_some(),
        bytes: slot.bytes,
    };
    KeptWal {
        limit: u64::try_from(found.limit_mib).ok().map(|mib| mib.saturating_mul(MIB)),
        anyway: found.anyway_mib.saturating_mul(MIB),
        slots: found.slots.iter().filter(|s| s.reserves && !s.lost).map(holds).collect(),
        gives_way: false,
        problems: Vec::new(),
    }
}

/// What is given up for room; `None`: there is room.
pub fn for_room(kept: &KeptWal, whose: Option<SlotsYield>) -> Vec<Step> {
    let step =
        |s: &SlotHolds| Step::GiveUp { slot: s.name.clone(), of_member: s.whose == Whose::Member, bytes: s.bytes };
    kept.to_give_up(whose.unwrap_or(SlotsYield::None)).into_iter().map(step).collect()
}

/// The steps, and what else is given up: what is removed anyway is not removed twice.
pub fn with(steps: Vec<Step>, given_up: Vec<Step>) -> Vec<Step> {
    let dropped = |given: &Step| {
        let Step::GiveUp { slot, .. } = given else { return false };
        steps.iter().any(|step| step.takes_away(slot))
    };
    let rest: Vec<Step> = given_up.into_iter().filter(|step| !dropped(step)).collect();
    steps.into_iter().chain(rest).collect()
}

/// When the standby of each WAL sender was heard last.
#[derive(Debug, Default)]
pub struct Heard(BTreeMap<u32, (Option<String>, Instant)>);

impl Heard {
    /// The WAL senders that heard nothing for `limit`.
    pub fn silent(&mut self, found: &SlotsFound, now: Instant, limit: Duration) -> BTreeSet<u32> {
        let streams = |slot: &SlotFound| slot.active_pid.map(|pid| (pid, slot.reply.clone()));
        let seen: BTreeMap<u32, Option<String>> = found.slots.iter().filter_map(streams).collect();
        self.0.retain(|pid, _| seen.contains_key(pid));
        for (pid, reply) in seen {
            let heard = self.0.entry(pid).or_insert_with(|| (reply.clone(), now));
            if heard.0 != reply {
                *heard = (reply, now);
            }
        }
        let long = |at: &Instant| now.saturating_duration_since(*at) >= limit;
        self.0.iter().filter(|(_, (_, at))| long(at)).map(|(pid, _)| *pid).collect()
    }
}

#[cfg(test)]
#[path = "steps_test.rs"]
mod tests;
