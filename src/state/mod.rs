//! The replicated state and the commands that change it.
//!
//! [`ClusterState::apply`] is deterministic and total: every node runs it on
//! every committed entry, years apart, so it reads no clock, draws no random
//! number and cannot fail. It performs nothing: hosts see the new state and act
//! at their own pace. Start with [`cluster`].

#![deny(clippy::disallowed_methods)]

mod again;
pub mod agenda;
mod apply;
mod cascade;
pub mod cluster;
pub mod command;
mod flaps;
pub mod hibernate;
mod history;
mod members;
pub mod pause;
mod reader;
mod recover;
pub mod roster;
mod running;
mod settings;
mod sync;
pub mod timings;

pub use agenda::{Agenda, AgendaChange, Course, Ended, Outcome, PrimaryTurn, Request, Rolling, Scheduled, Work};
pub use cascade::Link;
pub use cluster::{
    ClusterState, FinishedOperation, GrantPhase, Identity, Incident, Lock, Member, Operation, OperationKind,
    OperationPhase, Release, TimelineRecord,
};
pub use command::{Applied, Command, Decided, Kind, RuleId};
pub use flaps::ENDS;
pub use hibernate::{HibernateChange, Hibernation};
pub use history::{Evidence, Lasted, Reign};
pub use pause::{Asked, Stopped};
pub use reader::Reader;
pub use roster::Roster;
