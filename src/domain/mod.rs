//! The nouns of the cluster. Plain values: nothing here reads a clock, a file
//! or a socket, and nothing here uses another room.
//!
//! Start with [`wal`] (where WAL ends) and [`ids`] (who and which epoch).

#![deny(clippy::disallowed_methods)]

pub mod archive;
pub mod briefing;
pub mod cause;
pub mod copying;
pub mod cure;
pub mod format;
pub mod hba;
mod hba_rules;
pub mod hooks;
pub mod ids;
pub mod kept_wal;
pub mod membership;
pub mod moment;
pub mod observation;
pub mod parameters;
pub mod postgres_settings;
pub mod reader;
pub mod room;
pub mod rto;
pub mod secret;
pub mod settings;
pub mod settings_document;
pub mod settings_history;
pub mod slots;
pub mod sync;
pub mod timings;
pub mod uncovered;
pub mod version;
pub mod wal;
pub mod when;

pub use archive::{ArchiveView, CloneMethod, CloneMethods};
pub use briefing::{Briefing, MemberList, PauseWord};
pub use cause::EndCause;
pub use copying::{CloneCompression, HowToCopy};
pub use cure::{CLONES_TRIED, CONTENT_TRIED, CopyCause, CureView, NeedsCopy, STARTS_TRIED};
pub use format::Format;
pub use ids::{ClusterId, Epoch, Generation, MemberId, NodeId};
pub use kept_wal::{KeptWal, SlotBudget, SlotHolds, SlotsYield, Whose};
pub use membership::{Group, GroupNode, GroupStep, Membership};
pub use moment::Moment;
pub use observation::{Observation, PostgresState, Promise};
pub use postgres_settings::{ConfigurationView, PendingSetting, PostgresKey, Side, StraySetting};
pub use reader::ReaderFallback;
pub use room::{Least, Level, RoomView, Thresholds, Volume};
pub use secret::Secret;
pub use settings::{FailoverWait, KeepDiverged, MemberSettings, OnPrimaryCrash, Settings, SiteFailover};
pub use settings_document::{SettingChanges, SettingsDocument};
pub use settings_history::SettingsChange;
pub use slots::{IgnoredSlots, Logical, PermanentSlots};
pub use sync::{Confirms, SyncMode, SyncRule, SyncSet, SyncStart, SyncWord};
pub use timings::{CommittedTimings, GRANT_MAX, Profile, Timings, TimingsId, TimingsInUse};
pub use uncovered::{LostWal, Uncovered, diverged_name};
pub use wal::{Lsn, TimelineHistory, TimelineId, TimelineSwitch, WalPosition};
