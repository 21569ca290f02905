//! Free space, as text and as JSON.

use serde::Serialize;

use crate::rpc::v1::{MemberStatus, Room, Volume};

/// One line for each host that tells how much room it has.
pub(super) fn lines(members: &[MemberStatus]) -> String {
    let line = |member: &MemberStatus| {
        let room = member.room.as_ref()?;
        let data = room.data.as_ref().map(|v| format!("{} {}", name(room), volume(v)));
        let wal = room.wal.as_ref().map(|v| format!("WAL {}", volume(v)));
        let told: Vec<String> = data.into_iter().chain(wal).collect();
        Some(format!("  {}: {}\n", member.member, told.join("; ")))
    };
    let lines: String = members.iter().filter_map(line).collect();
    if lines.is_empty() { lines } else { format!("\nRoom\n{lines}") }
}

fn name(room: &Room) -> &'static str {
    if room.wal.is_some() { "data" } else { "data and WAL" }
}

fn volume(volume: &Volume) -> String {
    let share = volume.free_bytes.saturating_mul(100) / volume.size_bytes.max(1);
    let reserve = match (volume.spent, volume.reserve_bytes) {
        (true, _) => "reserve used".to_owned(),
        (false, 0) => "no reserve".to_owned(),
        (false, bytes) => format!("reserve {}", mib(bytes)),
    };
    format!("{} of {} free ({share} %, {}), {reserve}", mib(volume.free_bytes), mib(volume.size_bytes), level(volume))
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

fn level(volume: &Volume) -> &'static str {
    match (volume.short || volume.spent, volume.low) {
        (true, _) => "short",
        (false, true) => "low",
        (false, false) => "fine",
    }
}

#[derive(Serialize)]
pub(super) struct RoomJson {
    data: Option<VolumeJson>,
    wal: Option<VolumeJson>,
}

#[derive(Serialize)]
struct VolumeJson {
    free_bytes: u64,
    size_bytes: u64,
    level: &'static str,
    reserve_bytes: u64,
    reserve_used: bool,
}

/// `wal` is `null` when it is on the volume of the data.
pub(super) fn json(room: &Room) -> RoomJson {
    let volume = |v: &Volume| VolumeJson {
        free_bytes: v.free_bytes,
        size_bytes: v.size_bytes,
        level: level(v),
        reserve_bytes: v.reserve_bytes,
        reserve_used: v.spent,
    };
    RoomJson { data: room.data.as_ref().map(volume), wal: room.wal.as_ref().map(volume) }
}
