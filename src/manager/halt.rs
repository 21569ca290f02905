//! What operators ask of PostgreSQL of a member, or of the whole cluster: that it stops and stays so, or is started again.

use super::view::{ManagerHandle, is_short, other};
use crate::{
    domain::MemberId,
    policy::{
        Situation,
        halt::{self, Words},
        hibernate,
    },
    state::{Kind, OperationKind},
};

/// Whose PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// That of one member.
    Member(MemberId),
    /// That of all.
    All,
}

/// What became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Done {
    /// What is given up by it.
    pub warnings: Vec<String>,
    /// It was so before.
    pub already: bool,
    /// Its number, and who is primary, where it is an operation.
    pub operation: Option<(u64, MemberId)>,
}

impl ManagerHandle {
    /// Stops it; only the Raft leader can. Where nothing is to be changed (`dry_run`) it only says what would be.
    ///
    /// # Errors
    /// Why it is refused, or that its fate is unknown.
    pub async fn stop(
        &self,
        what: &What,
        words: Words<'_>,
        (dry_run, request_id): (bool, String),
    ) -> Result<Done, String> {
        let admit = |s: &Situation<'_>| match what {
            What::Member(member) => Ok((halt::admit_stop(s, member, words)?, halt::warnings(s, member))),
            What::All => Ok((hibernate::admit(s, words)?, hibernate::warnings(s))),
        };
        self.halt((what, OperationKind::Hibernate), (dry_run, request_id), admit).await
    }

    /// Starts it again; only the Raft leader can.
    ///
    /// # Errors
    /// As [`Self::stop`].
    pub async fn start(&self, what: &What, by: &str, (dry_run, request_id): (bool, String)) -> Result<Done, String> {
        let admit = |s: &Situation<'_>| match what {
            What::Member(member) => Ok((halt::admit_start(s, member, by)?, Vec::new())),
            What::All => Ok((hibernate::admit_wake(s, by)?, hibernate::wake_warnings(s))),
        };
        self.halt((what, OperationKind::Wake), (dry_run, request_id), admit).await
    }

    async fn halt(
        &self,
        (what, kind): (&What, OperationKind),
        (dry_run, request_id): (bool, String),
        admit: impl Fn(&Situation<'_>) -> Result<(Option<Kind>, Vec<String>), String>,
    ) -> Result<Done, String> {
        is_short(&request_id)?;
        let operation = || self.state().begun_by(&request_id).filter(|o| *what == What::All && o.kind == kind);
        let operation = || operation().map(|o| (o.id, o.to));
        // The same request heard again means what it began.
        if let Some(known) = operation() {
            return Ok(Done { operation: Some(known), ..Done::default() });
        }
        if let Some(id) = self.state().number_of(&request_id) {
            return Err(other(&request_id, id));
        }
        if !self.leadership().am_leader {
            // Only a leader hears of all hosts.
            return Err("no Raft leader answers: bring a majority of managers up".to_owned());
        }
        let (kind, warnings) = self.patiently(|| self.look(&admit)).await?;
        let already = kind.is_none();
        if dry_run || already {
            let warnings = if already { Vec::new() } else { warnings };
            return Ok(Done { warnings, already, operation: None });
        }
        let done = self.put(request_id.clone(), |s| admit(s).map(|(kind, _)| kind)).await;
        match operation() {
            Some(known) => Ok(Done { warnings, already: false, operation: Some(known) }),
            None => done.map(|()| Done { warnings, already: false, operation: None }),
        }
    }
}
