//! Makes what somebody else's standby has left a standby of this cluster, without copying it. That needs a proof: all of its WAL
//! is the primary's. Whoever has none is copied.

use std::{collections::BTreeMap, fs, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    adopt::{Adoption, AdoptionFacts, changes_of_files, refusal_of_slots},
    conf::Upstream,
    controldata::DbState,
    error::PostgresError,
    files::{self, OperationLock},
    initdb::waiting,
    instance::Instance,
    session::SqlError,
};
use crate::{
    config::ContentSource,
    domain::{Lsn, TimelineHistory, TimelineId, WalPosition},
};

/// Between two looks whether it has ended.
const POLL: Duration = Duration::from_millis(20);

/// A standby was not taken in. It is as it was, but may have been stopped.
#[derive(Debug, thiserror::Error)]
pub enum TakeInError {
    /// It is not what the primary's standby would be: only a copy helps.
    #[error("it is copied anew, for it is not proven to be a standby of this cluster: {0}")]
    Unproven(String),
    /// Somebody has to correct that first; nothing is copied over it.
    #[error("it is left alone: {0}")]
    Refused(String),
    /// It did not end.
    #[error(
        "PostgreSQL runs as process {pid} and did not end within {after:?} of a fast stop; stop it (pg_ctl stop -m fast)"
    )]
    Goes {
        /// The postmaster.
        pid: i32,
        /// So long it was waited for.
        after: Duration,
    },
    /// No primary answered.
    #[error("the primary could not be asked")]
    Primary(#[from] SqlError),
    /// A step failed.
    #[error(transparent)]
    Step(#[from] PostgresError),
}

/// What the primary says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrimarySays {
    /// Its system identifier.
    pub system_identifier: u64,
    /// How far its WAL is on its disk, and on which timeline.
    pub end: WalPosition,
}

/// What is in the data directory that is to be taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// Its system identifier.
    pub system_identifier: u64,
    /// Its state by `pg_control`.
    pub state: DbState,
    /// Of `standby.signal`, `recovery.signal` and `backup_label` those that are there.
    pub signals: Vec<&'static str>,
    /// Where its WAL ends.
    pub end: WalPosition,
    /// A start has to replay at least so far.
    pub required: Option<WalPosition>,
    /// The timelines that its WAL has been through.
    pub history: TimelineHistory,
}

/// Whether all WAL of `left` is the primary's, whose history is `lineage`. It was read after `left` had ended: a primary's WAL
/// only grows.
///
/// # Errors
/// What speaks against it.
pub fn judge(left: &Left, primary: PrimarySays, lineage: &TimelineHistory) -> Result<(), TakeInError> {
    let unproven = |why: String| Err(TakeInError::Unproven(why));
    same_system(left.system_identifier, primary.system_identifier)?;
    if let Some(why) = no_standby(left.state, &left.signals) {
        return Err(TakeInError::Refused(why));
    }
    let (history, end) = (&left.history, left.end);
    let fork = history.fork_from(lineage).filter(|_| !history.is_mistaken_for(lineage));
    let Some(fork) = fork else {
        return unproven(format!("timeline {} of its WAL is none of the primary's", end.timeline));
    };
    if fork.timeline != end.timeline || end.lsn > fork.lsn {
        return unproven(format!("its WAL ends at {end}, the primary's history parted from it at {fork}"));
    }
    if end.timeline == primary.end.timeline && end.lsn > primary.end.lsn {
        return unproven(format!("its WAL ends at {end}, that of the primary at {}", primary.end));
    }
    let past = |point: &WalPosition| !lineage.includes(*point) || !history.includes(*point);
    match left.required.filter(past) {
        Some(point) => unproven(format!("it has to replay to {point}, which is not on its way")),
        None => Ok(()),
    }
}

fn same_system(ours: u64, theirs: u64) -> Result<(), TakeInError> {
    if ours == theirs {
        return Ok(());
    }
    let why = format!("its system identifier is {ours}, the cluster's {theirs}; name an empty postgresql.data_dir");
    Err(TakeInError::Refused(why))
}

/// Why it is no standby's. What may have been written to is nothing that a copy may replace.
fn no_standby(state: DbState, signals: &[&str]) -> Option<String> {
    let standby = matches!(state, DbState::ShutDownInRecovery | DbState::InArchiveRecovery);
    let other = signals.iter().find(|file| **file != "standby.signal");
    let why = match other {
        _ if !standby => "it is no standby".to_owned(),
        _ if !signals.contains(&"standby.signal") => "it has no standby.signal".to_owned(),
        Some(file) => format!("it has {file}, its recovery never came to its end"),
        None => return None,
    };
    Some(format!(
        "{why}: if the cluster is to begin with it, name its member first in cluster.members on all hosts; if it is of no use, \
         move it away, and its member is copied from the primary"
    ))
}

/// The same for `matriarch preflight`, as far as the host alone can say it.
pub(super) fn judge_standby(facts: &AdoptionFacts, ours: (&BTreeMap<String, String>, &[String])) -> Adoption {
    let mut adoption = Adoption { standby: true, goes_on: facts.goes_on, ..Adoption::default() };
    let refused = &mut adoption.refused;
    refused.extend(facts.unusable.clone());
    refused.extend(managers(facts));
    refusal_of_slots(facts, ours.0, refused);
    if let Some(pid) = facts.running.filter(|_| !facts.goes_on) {
        refused.push(format!(
            "PostgreSQL runs in it as process {pid}: stop it cleanly (pg_ctl stop -m fast); with bootstrap.restart = false it is \
             stopped when its turn comes"
        ));
    }
    let Some(control) = &facts.control else { return adoption };
    if let Some(why) = no_standby(control.state, &facts.signals) {
        adoption.refused.push(why);
    }
    if facts.tablespaces {
        adoption.warnings.push("it has tablespaces: they stay where they are".to_owned());
    }
    changes_of_files(facts, ours, &mut adoption.changes);
    adoption
}

fn managers(facts: &AdoptionFacts) -> impl Iterator<Item = String> {
    facts.managers.iter().map(|(manager, pid)| {
        format!(
            "{manager} runs as process {pid} and would start or change PostgreSQL again: stop it for good on this host first"
        )
    })
}

impl Instance {
    /// This is the member that the cluster begins with.
    pub fn founds(&self) -> bool {
        self.members().first().is_some_and(|first| first.id == *self.me())
    }

    /// The configuration says that a standby which lies here is taken in, and there is something.
    pub fn takes_standby_in(&self) -> bool {
        self.is_to_be_adopted() && !self.founds()
    }

    /// Why a standby can't be taken in now. Changes nothing.
    ///
    /// # Errors
    /// The data directory can't be read.
    pub fn standby_waits_for(&self) -> Result<Vec<String>, PostgresError> {
        let facts = self.adoption_facts()?;
        let runs = facts.running.filter(|_| self.config().bootstrap.restart);
        let runs = runs.map(|pid| format!("PostgreSQL runs in it as process {pid}: stop it cleanly"));
        let other = facts.control.as_ref().and_then(|control| no_standby(control.state, &facts.signals));
        Ok(managers(&facts).chain(runs).chain(other).collect())
    }

    /// Stops it, if it runs and is a standby; takes it in, if it is proven to be one of the primary's. `primaries` are asked in
    /// turn. From then on it has Matriarch's configuration, and follows nobody yet.
    ///
    /// # Errors
    /// See [`TakeInError`]. Until the last step it is as its owner left it, and can be started with its own configuration.
    pub async fn take_in(
        &self,
        primaries: &[Upstream],
        lineage: Option<&TimelineHistory>,
        patience: Duration,
    ) -> Result<(), TakeInError> {
        let _lock = OperationLock::take(self.data_dir())?;
        let instance = self.clone();
        let facts = files::blocking(move || instance.adoption_facts()).await?;
        let mut refused = Vec::from_iter(managers(&facts));
        refusal_of_slots(&facts, &self.config().parameters, &mut refused);
        if !refused.is_empty() {
            return Err(TakeInError::Refused(refused.join("; ")));
        }
        // Nothing is stopped for a primary that doesn't answer, or is another's.
        let before = self.ask_primary(primaries).await?;
        if let Some(control) = &facts.control {
            same_system(control.system_identifier, before.system_identifier)?;
        }
        self.stop_standby(&facts, patience).await?;
        let left = self.left().await?;
        let primary = self.ask_primary(primaries).await?;
        let Some(lineage) = lineage.filter(|lineage| lineage.timeline == primary.end.timeline) else {
            let problem = format!("it is on timeline {}, the log says another", primary.end.timeline);
            return Err(SqlError::Unexpected { doing: "asking the primary for its timeline", problem }.into());
        };
        judge(&left, primary, lineage)?;
        let instance = self.clone();
        files::blocking(move || instance.make_ours()).await?;
        Ok(())
    }

    /// Only what is seen to be a standby is stopped: the configuration speaks of one.
    async fn stop_standby(&self, facts: &AdoptionFacts, patience: Duration) -> Result<(), TakeInError> {
        let Some(pid) = facts.running else { return Ok(()) };
        let standby = facts.control.as_ref().is_some_and(|control| control.state == DbState::InArchiveRecovery);
        if !standby || !facts.signals.contains(&"standby.signal") || self.config().bootstrap.restart {
            let why = format!("PostgreSQL runs in it as process {pid}: stop it cleanly (pg_ctl stop -m fast)");
            return Err(TakeInError::Refused(why));
        }
        tracing::warn!(pid, "the standby that is taken in is stopped");
        // It has ended when this fails, and that is what is wanted.
        let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
        let until = tokio::time::Instant::now() + patience;
        while self.running_pid().is_some() {
            if tokio::time::Instant::now() >= until {
                return Err(TakeInError::Goes { pid, after: patience });
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    async fn left(&self) -> Result<Left, TakeInError> {
        let end = self.wal_end_on_disk().await.map_err(unreadable)?;
        let instance = self.clone();
        let read = move || {
            let history = instance.lineage(end)?;
            Ok((history, instance.control_data()?, instance.adoption_facts()?.signals))
        };
        let (history, control, signals) = files::blocking(read).await.map_err(unreadable)?;
        let (system_identifier, state, required) = (control.system_identifier, control.state, control.required());
        Ok(Left { system_identifier, state, signals, end, required, history })
    }

    async fn ask_primary(&self, servers: &[Upstream]) -> Result<PrimarySays, SqlError> {
        let doing = "asking the primary where its WAL ends";
        let mut failed = SqlError::Unexpected { doing, problem: "no server says that it is primary".to_owned() };
        for server in servers {
            match self.ask_source(server, doing, WHERE).await {
                Ok(rows) => match rows.first().and_then(|row| parse(row)) {
                    Some(says) => return Ok(says),
                    // A standby.
                    None if rows.is_empty() => {}
                    None => failed = SqlError::Unexpected { doing, problem: format!("it said {rows:?}") },
                },
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    fn make_ours(&self) -> Result<(), PostgresError> {
        self.keep_foreign_configuration()?;
        // The signal is there. What is cut off from here on is found as a standby of ours, and looked at as one.
        self.write_config(&waiting())?;
        self.set_standby_signal(true)?;
        debug_assert_eq!(
            self.config().bootstrap.source,
            ContentSource::Adopt,
            "the mark is written with the configuration"
        );
        Ok(())
    }
}

/// No row: it is a standby.
const WHERE: &str = "SELECT pg_catalog.pg_current_wal_flush_lsn()::text || ' ' || c.timeline_id || ' ' || s.system_identifier \
     FROM pg_catalog.pg_control_checkpoint() c, pg_catalog.pg_control_system() s WHERE NOT pg_catalog.pg_is_in_recovery()";

fn parse(row: &str) -> Option<PrimarySays> {
    let mut words = row.split(' ');
    let lsn: Lsn = words.next()?.parse().ok()?;
    let timeline = TimelineId(words.next()?.parse().ok()?);
    // PostgreSQL shows it with a sign.
    let system_identifier = words.next()?.parse::<i64>().ok()?.cast_unsigned();
    Some(PrimarySays { system_identifier, end: WalPosition { timeline, lsn } })
}

/// What can't be read of a directory proves nothing; what can't be done just now is tried again.
fn unreadable(error: PostgresError) -> TakeInError {
    let missing = |source: &std::io::Error| source.kind() == std::io::ErrorKind::NotFound;
    match error {
        PostgresError::WalEnd { .. } | PostgresError::History { .. } | PostgresError::ControlData { .. } => {
            TakeInError::Unproven(error.to_string())
        }
        PostgresError::File { source, path, .. } if missing(&source) && !fs::exists(&path).unwrap_or(true) => {
            TakeInError::Unproven(format!("{} is missing", path.display()))
        }
        error => TakeInError::Step(error),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::domain::TimelineSwitch;

    fn at(timeline: u32, lsn: u64) -> WalPosition {
        WalPosition { timeline: TimelineId(timeline), lsn: Lsn(lsn) }
    }

    /// Steps are (timeline, where it ended), the last without an end.
    fn history(steps: &[(u32, u64)], last: u32) -> TimelineHistory {
        let switch = |(timeline, end): &(u32, u64)| TimelineSwitch { timeline: TimelineId(*timeline), end: Lsn(*end) };
        let switches = steps.iter().map(switch).collect();
        TimelineHistory { timeline: TimelineId(last), switches, ..TimelineHistory::default() }
    }

    /// A standby on timeline 3 of a primary on 3, whose WAL ends at 900.
    fn left() -> Left {
        Left {
            system_identifier: 7,
            state: DbState::ShutDownInRecovery,
            signals: vec!["standby.signal"],
            end: at(3, 800),
            required: Some(at(3, 700)),
            history: history(&[(1, 100), (2, 500)], 3),
        }
    }

    fn judged(change: impl Fn(&mut Left)) -> Result<(), String> {
        let mut left = left();
        change(&mut left);
        let primary = PrimarySays { system_identifier: 7, end: at(3, 900) };
        let lineage =
            TimelineHistory { first_records: [(TimelineId(3), 33)].into(), ..history(&[(1, 100), (2, 500)], 3) };
        judge(&left, primary, &lineage).map_err(|error| error.to_string())
    }

    #[test]
    fn a_standby_of_the_primary_is_taken_in() {
        assert_eq!(judged(|_| ()), Ok(()));
        assert_eq!(judged(|l| l.end = at(3, 900)), Ok(()), "as far as the primary itself");
        assert_eq!(judged(|l| l.state = DbState::InArchiveRecovery), Ok(()), "it was killed");
        let behind = |l: &mut Left| (l.end, l.required, l.history) = (at(2, 500), None, history(&[(1, 100)], 2));
        assert_eq!(judged(behind), Ok(()), "it ended at the fork");
        assert_eq!(judged(|l| l.history.first_records = [(TimelineId(3), 33)].into()), Ok(()));
    }

    #[test]
    fn what_is_not_proven_to_be_one_is_copied() {
        let unproven = |change: fn(&mut Left), word: &str| {
            let told = judged(change).unwrap_err();
            assert!(told.starts_with("it is copied anew") && told.contains(word), "{told}");
        };
        unproven(|l| l.end = at(3, 901), "that of the primary at 3:0/384");
        unproven(|l| (l.end, l.history) = (at(2, 501), history(&[(1, 100)], 2)), "parted from it at 2:0/1F4");
        unproven(|l| (l.end, l.history) = (at(4, 650), history(&[(1, 100), (2, 500), (3, 600)], 4)), "parted from it");
        unproven(|l| (l.end, l.history) = (at(3, 600), history(&[(1, 100), (2, 400)], 3)), "parted from it");
        unproven(|l| l.history.first_records = [(TimelineId(3), 34)].into(), "timeline 3 of its WAL is none");
        unproven(|l| (l.end, l.history) = (at(9, 1), history(&[], 9)), "timeline 9 of its WAL is none");
        unproven(|l| l.required = Some(at(2, 600)), "it has to replay to 2:0/258");
    }

    #[test]
    fn data_of_another_system_and_what_was_written_to_is_left_alone() {
        let refused = |change: fn(&mut Left), word: &str| {
            let told = judged(change).unwrap_err();
            assert!(told.starts_with("it is left alone: ") && told.contains(word), "{told}");
        };
        refused(|l| l.system_identifier = 8, "its system identifier is 8, the cluster's 7");
        refused(|l| l.state = DbState::ShutDown, "it is no standby: if the cluster is to begin with it");
        refused(|l| l.state = DbState::InProduction, "it is no standby");
        refused(|l| l.signals.clear(), "no standby.signal");
        refused(|l| l.signals.push("backup_label"), "it has backup_label");
    }

    #[test]
    fn the_word_of_the_primary_is_read() {
        let says = parse("0/5000148 3 -1").unwrap();
        assert_eq!(says, PrimarySays { system_identifier: u64::MAX, end: at(3, 0x500_0148) });
        assert_eq!(parse("0/5000148 3"), None);
    }

    #[test]
    fn what_the_host_alone_can_say_is_said_before() {
        let mut facts = AdoptionFacts { goes_on: true, running: Some(9), ..AdoptionFacts::default() };
        let told = |facts: &AdoptionFacts| judge_standby(facts, (&BTreeMap::new(), &[])).refused.join("\n");
        assert_eq!(told(&facts), "", "it is stopped when its turn comes");
        facts.goes_on = false;
        assert!(told(&facts).contains("runs in it as process 9"));
        facts.managers = vec![("patroni".into(), 8)];
        assert!(told(&facts).contains("patroni runs as process 8"));
        facts.slots = vec![("cdc".into(), true)];
        assert!(told(&facts).contains("logical slots (cdc)"));
    }
}
