//! PostgreSQL on this host: its data directory, its helper programs and SQL to
//! the local server. The only room that opens the data directory.
//!
//! It deliberately knows nothing of leases, guards and RPC, and it never starts
//! a postmaster that anybody else could reach: it only says how one is to be started
//! ([`PostmasterCommand`]). What makes the first data directory of a cluster (`content`) runs a
//! private one (`private`) in a directory that is put in place when that has ended.
//! Start reading at [`instance`].

mod adopt;
mod archive;
mod backup;
pub mod basebackup;
mod command;
pub mod conf;
mod content;
pub mod controldata;
mod copy;
mod counts;
mod doomed;
pub mod error;
mod files;
mod first_record;
mod history;
mod inhabitants;
mod initdb;
pub mod instance;
pub mod judge;
mod kept;
mod knock;
mod managers;
mod orphans;
mod outside;
mod parameters;
mod private;
pub mod probe;
mod reload;
mod rescue;
pub mod rewind;
mod running;
mod same_wal;
mod segments;
pub mod session;
mod slot_lines;
mod slots;
mod space;
mod started;
mod sync;
mod take_in;
mod touch;
mod uncovered;
mod vitals;
mod wal_run;
mod waldump;

pub use adopt::{Adoption, AdoptionFacts, judge};
pub use archive::{ArchiveRules, Archiver, Stanza, WalNote};
pub use backup::BackupError;
pub use basebackup::{CloneError, CopyPlan};
pub use command::{HelperError, OnProgress, Progress};
pub use conf::{ConfigRole, SyncedSlots, Upstream, owned_key};
pub use content::InitdbError;
pub use controldata::{ControlData, DbState};
pub use error::PostgresError;
pub use instance::{DataState, Instance, PostmasterCommand};
pub use judge::{Described, Judged};
pub use kept::{Saved, Tail};
pub use knock::Knock;
pub use managers::OtherManager;
pub use parameters::{Staged, StagedOf};
pub use private::PrivateError;
pub use probe::{Probe, ProbeError, waits_at_the_end, waits_on_purpose};
pub use reload::Pending;
pub use rewind::{RewindError, RewindOutcome};
pub use running::{RunningFacts, Wanted};
pub use segments::Segment;
pub use session::{Session, SqlError};
pub use slots::{SlotFound, SlotsFound};
pub use space::{Place, Space, VolumeSpace};
pub use started::{AfterRefusal, Version};
pub use sync::{Live, Sender, SyncSight};
pub use take_in::TakeInError;
pub use touch::Touch;
pub use uncovered::{Findings, LEVEL, LevelFound, NAMES, OverrideFound, SenderFound};
pub use vitals::{Vitals, writes_finished};
pub use wal_run::WalCall;
