//! What keeps WAL from being removed, to and from the wire.

use super::v1;
use crate::domain::{Archiving, KeptWal, SlotHolds};

/// To the wire.
pub(super) fn to_wire(view: &KeptWal) -> v1::KeptWal {
    let slot = |s: &SlotHolds| v1::SlotHolds {
        name: s.name.clone(),
        of_member: s.of_member,
        active: s.active,
        bytes: s.bytes,
    };
    v1::KeptWal {
        limit_bytes: view.limit,
        anyway_bytes: view.anyway,
        slots: view.slots.iter().map(slot).collect(),
        archive_failed: view.archiving.failed.clone(),
        archive_waiting: view.archiving.waiting,
        gives_way: view.gives_way,
    }
}

/// From the wire.
pub(super) fn of_wire(raw: v1::KeptWal) -> KeptWal {
    let slot = |s: v1::SlotHolds| SlotHolds { name: s.name, of_member: s.of_member, active: s.active, bytes: s.bytes };
    KeptWal {
        limit: raw.limit_bytes,
        anyway: raw.anyway_bytes,
        slots: raw.slots.into_iter().map(slot).collect(),
        archiving: Archiving { failed: raw.archive_failed, waiting: raw.archive_waiting },
        gives_way: raw.gives_way,
    }
}
