//! What slots need in PostgreSQL's configuration: their budget, and what syncs those of users to standbys.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use super::conf::{WAL_KEPT_MIB, quote};
use crate::domain::{Least, SlotBudget};

/// How the line with the budget of slots begins. What it was resolved from stands behind it, for the next time.
const BUDGET: &str = "max_slot_wal_keep_size = ";

/// So much less than slots may hold is kept for nobody in particular, on a small volume.
const ANYWAY: u64 = 4;

/// The lines of the budget of slots; none where the user has set it, or it is not known.
pub(super) fn budget_lines(parameters: &BTreeMap<String, String>, budget: Option<SlotBudget>) -> String {
    let given = |name: &str| parameters.keys().any(|key| key.eq_ignore_ascii_case(name));
    let Some(SlotBudget { set, mib }) = budget.filter(|_| !given("max_slot_wal_keep_size")) else {
        return String::new();
    };
    let mut text = format!("{BUDGET}{mib}MB # {set}\n");
    // What is kept for nobody in particular would fill a small volume by itself.
    let anyway = mib / ANYWAY;
    if anyway < WAL_KEPT_MIB && !given("wal_keep_size") {
        let _ = writeln!(text, "wal_keep_size = {anyway}MB");
    }
    text
}

/// Of users' slots that survive a failover what PostgreSQL has to be configured for. Before version 17 it has no such settings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SyncedSlots {
    /// The slots of the standbys that have to have received what a logical subscriber is sent.
    pub confirming: BTreeSet<String>,
}

/// The lines of slots that are synced to standbys. What the user has set goes before.
pub(super) fn synced_lines(parameters: &BTreeMap<String, String>, synced: Option<&SyncedSlots>) -> String {
    let Some(SyncedSlots { confirming }) = synced else { return String::new() };
    let names = Vec::from_iter(confirming.iter().map(String::as_str)).join(",");
    let given = |name: &str| parameters.keys().any(|key| key.eq_ignore_ascii_case(name));
    let lines = [
        ("sync_replication_slots", "on"),
        ("hot_standby_feedback", "on"),
        ("synchronized_standby_slots", names.as_str()),
    ];
    let own = lines.into_iter().filter(|(name, _)| !given(name));
    own.map(|(name, value)| format!("{name} = {}\n", quote(value))).collect()
}

/// The budget that [`budget_lines`] has written.
pub(super) fn budget_in(text: &str) -> Option<SlotBudget> {
    let (mib, set) = text.lines().find_map(|line| line.strip_prefix(BUDGET))?.split_once("MB # ")?;
    Some(SlotBudget { set: set.parse::<Least>().ok()?, mib: mib.parse().ok()? })
}
