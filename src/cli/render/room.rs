//! Free space, as text and as JSON.

use serde::Serialize;

use crate::{
    domain::room::{about, per_second},
    rpc::{
        convert,
        v1::{MemberStatus, Room, Volume},
    },
};

/// One line for each host that tells how much room it has.
pub(super) fn lines(members: &[MemberStatus]) -> String {
    let line = |member: &MemberStatus| {
        let room = member.room.as_ref()?;
        let data = room.data.as_ref().map(|v| format!("{} {}", name(room), volume(v)));
        let wal = room.wal.as_ref().map(|v| format!("WAL {}", volume(v)));
        let written = (room.wal_bytes_per_s > 0).then(|| format!("{} of WAL", per_second(room.wal_bytes_per_s)));
        let told: Vec<String> = data.into_iter().chain(wal).chain(written).collect();
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
    let full = convert::volume_view(*volume).full_in().map(|left| format!(", full in {}", about(left)));
    format!(
        "{} of {} free ({share} %, {}), {reserve}{}",
        mib(volume.free_bytes),
        mib(volume.size_bytes),
        level(volume),
        full.unwrap_or_default()
    )
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
    wal_bytes_per_s: u64,
}

#[derive(Serialize)]
struct VolumeJson {
    free_bytes: u64,
    size_bytes: u64,
    level: &'static str,
    reserve_bytes: u64,
    reserve_used: bool,
    filling_bytes_per_s: u64,
    /// `null`: not within a week.
    full_in_s: Option<u64>,
}

/// `wal` is `null` when it is on the volume of the data.
pub(super) fn json(room: &Room) -> RoomJson {
    let volume = |v: &Volume| VolumeJson {
        free_bytes: v.free_bytes,
        size_bytes: v.size_bytes,
        level: level(v),
        reserve_bytes: v.reserve_bytes,
        reserve_used: v.spent,
        filling_bytes_per_s: v.filling_bytes_per_s,
        full_in_s: convert::volume_view(*v).full_in().map(|left| left.as_secs()),
    };
    let (data, wal) = (room.data.as_ref().map(volume), room.wal.as_ref().map(volume));
    RoomJson { data, wal, wal_bytes_per_s: room.wal_bytes_per_s }
}
