//! WAL that can't be removed yet: for whom slots hold it back, how much they may, and what waits to be archived.

use std::{fmt, str::FromStr};

use super::room::Least;

/// PostgreSQL counts WAL that is kept in these.
const MIB: u64 = 1 << 20;
/// The most that PostgreSQL takes for `max_slot_wal_keep_size` (`guc_tables.c`: `MAX_KILOBYTES`).
const MOST: u64 = i32::MAX as u64;
/// Of a size that changed by no more than this share a share of it is not resolved anew.
const STEADY: u64 = 10;
/// A slot that holds less than this back gains nothing when it is given up: two segments.
const WORTH: u64 = 32 * MIB;

/// How much WAL slots may hold back on one host, and what that was resolved from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotBudget {
    /// As it was set.
    pub set: Least,
    /// In MiB.
    pub mib: u64,
}

impl SlotBudget {
    /// Of a volume of `size` bytes. A share follows the size only when that has changed by more than a tenth, so what some
    /// file systems take for their size today doesn't change the configuration every minute.
    pub fn resolve(set: Least, size: u64, in_force: Option<SlotBudget>) -> SlotBudget {
        let mib = (set.of(size) / MIB).min(MOST);
        let steady = |was: &SlotBudget| was.set == set && was.mib.abs_diff(mib).saturating_mul(STEADY) <= was.mib;
        in_force.filter(steady).unwrap_or(SlotBudget { set, mib })
    }
}

/// Whose slots are given up when the volume of WAL is nearly full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SlotsYield {
    /// Nobody's: the primary moves.
    None,
    /// Members', for they are copied anew by themselves. What somebody else has made is his to give up.
    #[default]
    Members,
    /// Members', and when those are gone everybody else's.
    All,
}

impl FromStr for SlotsYield {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "members" => Ok(Self::Members),
            "all" => Ok(Self::All),
            _ => Err("none, members or all".to_owned()),
        }
    }
}

impl fmt::Display for SlotsYield {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::Members => "members",
            Self::All => "all",
        })
    }
}

/// For whom a slot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Whose {
    /// A member streams from it.
    Member,
    /// A user's that every possible primary has, or a copy of one that PostgreSQL keeps.
    Permanent,
    /// A user has said that it is nobody else's business.
    Ignored,
    /// Somebody has made it by hand.
    #[default]
    Other,
}

/// A slot that holds WAL back.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct SlotHolds {
    /// Its name.
    pub name: String,
    /// For whom it is.
    pub whose: Whose,
    /// Somebody streams from it.
    pub active: bool,
    /// Bytes from where it is to the end of WAL.
    pub bytes: u64,
}

/// What keeps WAL on the volume of one member.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct KeptWal {
    /// Bytes that slots may hold back, by the running server; `None`: any number, or it was not asked yet.
    pub limit: Option<u64>,
    /// Bytes that are kept for nobody in particular (`wal_keep_size`).
    pub anyway: u64,
    /// The slots that hold WAL back.
    pub slots: Vec<SlotHolds>,
    /// There is too little room, and slots are given up for it: the primary may not have to move.
    pub gives_way: bool,
    /// What keeps slots from being as they should, in words for people.
    pub problems: Vec<String>,
}

impl KeptWal {
    /// The slots to be given up next for room: those nobody streams from, members' before others', never both at once.
    pub fn to_give_up(&self, whose: SlotsYield) -> Vec<&SlotHolds> {
        let worth = self.anyway.max(WORTH);
        let idle = |whose: &[Whose]| {
            Vec::from_iter(self.slots.iter().filter(|s| !s.active && whose.contains(&s.whose) && s.bytes > worth))
        };
        let members = idle(&[Whose::Member]);
        match whose {
            SlotsYield::None => Vec::new(),
            SlotsYield::All if members.is_empty() => idle(&[Whose::Permanent, Whose::Other]),
            SlotsYield::Members | SlotsYield::All => members,
        }
    }

    /// What people should know of it.
    pub fn complaints(&self) -> Vec<String> {
        self.slots.iter().filter_map(|slot| self.complaint(slot)).collect()
    }

    fn complaint(&self, slot: &SlotHolds) -> Option<String> {
        let much = self.limit.is_some_and(|limit| slot.bytes > limit / 2);
        let unknown = slot.whose == Whose::Other && !slot.active;
        let of = self.limit.map(|limit| format!(" of {}", limit / MIB)).unwrap_or_default();
        let who = match (slot.whose, slot.active) {
            (Whose::Member, true) => "whose member lags",
            (Whose::Member, false) => "whose member is away",
            (Whose::Permanent, _) => "that is permanent",
            (Whose::Ignored, _) => "that is ignored",
            (Whose::Other, true) => "that is no member's",
            (Whose::Other, false) => "that is no member's and that nobody uses",
        };
        let (name, held) = (&slot.name, slot.bytes / MIB);
        (much || unknown).then(|| format!("slot {name}, {who}, holds {held}{of} MiB of WAL back"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1_000 * MIB;

    #[test]
    fn a_share_follows_the_volume_and_does_not_flap() {
        let share = Least::Percent(20);
        let first = SlotBudget::resolve(share, SIZE, None);
        assert_eq!(first, SlotBudget { set: share, mib: 200 });
        for size in [910, 950, 1_050, 1_100] {
            assert_eq!(SlotBudget::resolve(share, size * MIB, Some(first)), first, "{size}");
        }
        for (size, mib) in [(890, 177), (1_200, 240), (4_000, 800)] {
            assert_eq!(SlotBudget::resolve(share, size * MIB, Some(first)).mib, mib);
        }
        assert_eq!(SlotBudget::resolve(Least::Percent(21), SIZE, Some(first)).mib, 210, "it was set otherwise");
    }

    #[test]
    fn bytes_are_what_they_are_and_no_more_than_postgresql_takes() {
        let of = |bytes| SlotBudget::resolve(Least::Bytes(bytes), SIZE, None).mib;
        assert_eq!([of(0), of(MIB), of(512 * MIB + 1), of(u64::MAX)], [0, 1, 512, MOST]);
        let was = Some(SlotBudget { set: Least::Bytes(100 * MIB), mib: 100 });
        assert_eq!(SlotBudget::resolve(Least::Bytes(101 * MIB), SIZE, was).mib, 101);
    }

    fn slot(name: &str, whose: Whose, active: bool, mib: u64) -> SlotHolds {
        SlotHolds { name: name.into(), whose, active, bytes: mib * MIB }
    }

    fn kept(slots: Vec<SlotHolds>) -> KeptWal {
        KeptWal { limit: Some(200 * MIB), anyway: 40 * MIB, slots, ..KeptWal::default() }
    }

    fn given_up(of: &KeptWal, whose: SlotsYield) -> Vec<&str> {
        of.to_give_up(whose).into_iter().map(|s| s.name.as_str()).collect()
    }

    #[test]
    fn members_slots_are_given_up_before_others_and_never_one_in_use() {
        let mut of = kept(vec![
            slot("n2", Whose::Member, false, 90),
            slot("n3", Whose::Member, true, 900),
            slot("n4", Whose::Member, false, 40),
            slot("theirs", Whose::Other, false, 95),
            slot("busy", Whose::Other, true, 95),
            slot("ignored", Whose::Ignored, false, 95),
            slot("kept", Whose::Permanent, false, 95),
        ]);
        assert_eq!(given_up(&of, SlotsYield::All), ["n2"], "n4 holds what is kept anyway");
        assert_eq!(given_up(&of, SlotsYield::None), [""; 0]);
        of.slots.remove(0);
        assert_eq!(given_up(&of, SlotsYield::All), ["theirs", "kept"]);
        assert_eq!(given_up(&of, SlotsYield::Members), [""; 0]);
    }

    #[test]
    fn slots_that_hold_more_than_half_and_those_of_nobody_are_named() {
        let of = kept(vec![
            slot("n2", Whose::Member, false, 101),
            slot("n3", Whose::Member, true, 99),
            slot("n4", Whose::Member, true, 150),
            slot("old", Whose::Other, false, 3),
            slot("busy", Whose::Other, true, 90),
            slot("ignored", Whose::Ignored, false, 90),
            slot("kept", Whose::Permanent, false, 120),
        ]);
        let expected = [
            "slot n2, whose member is away, holds 101 of 200 MiB of WAL back",
            "slot n4, whose member lags, holds 150 of 200 MiB of WAL back",
            "slot old, that is no member's and that nobody uses, holds 3 of 200 MiB of WAL back",
            "slot kept, that is permanent, holds 120 of 200 MiB of WAL back",
        ];
        assert_eq!(of.complaints(), expected);
        let unlimited = KeptWal { limit: None, ..of };
        assert_eq!(
            unlimited.complaints(),
            ["slot old, that is no member's and that nobody uses, holds 3 MiB of WAL back"]
        );
    }
}
