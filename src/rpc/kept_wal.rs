//! What keeps WAL from being removed, to and from the wire.

use super::v1;
use crate::domain::{KeptWal, SlotHolds, Whose};

/// To the wire.
pub fn to_wire(view: &KeptWal) -> v1::KeptWal {
    let slot = |s: &SlotHolds| v1::SlotHolds {
        name: s.name.clone(),
        owner: owner(s.whose).into(),
        active: s.active,
        bytes: s.bytes,
    };
    v1::KeptWal {
        limit_bytes: view.limit,
        anyway_bytes: view.anyway,
        slots: view.slots.iter().map(slot).collect(),
        gives_way: view.gives_way,
        problems: view.problems.clone(),
    }
}

fn owner(whose: Whose) -> v1::SlotOwner {
    match whose {
        Whose::Member => v1::SlotOwner::Member,
        Whose::Permanent => v1::SlotOwner::Permanent,
        Whose::Ignored => v1::SlotOwner::Ignored,
        Whose::Other => v1::SlotOwner::Unspecified,
    }
}

/// From the wire.
pub(super) fn of_wire(raw: v1::KeptWal) -> KeptWal {
    let slot = |s: v1::SlotHolds| {
        let whose = match s.owner() {
            v1::SlotOwner::Member => Whose::Member,
            v1::SlotOwner::Permanent => Whose::Permanent,
            v1::SlotOwner::Ignored => Whose::Ignored,
            v1::SlotOwner::Unspecified => Whose::Other,
        };
        SlotHolds { name: s.name, whose, active: s.active, bytes: s.bytes }
    };
    KeptWal {
        limit: raw.limit_bytes,
        anyway: raw.anyway_bytes,
        slots: raw.slots.into_iter().map(slot).collect(),
        gives_way: raw.gives_way,
        problems: raw.problems,
    }
}
