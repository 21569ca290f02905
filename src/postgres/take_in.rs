//! Makes what somebody else's standby has left a standby of this cluster, without copying it. That needs a proof: all of its WAL
//! is the primary's, by its history and by its bytes. Where the primary has removed the WAL that would prove it, a copy replaces
//! it; what speaks against it may be data that nobody else has, and is left alone.

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
    same_wal::{Compared, SameWalError, Stretch},
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
    /// Nothing speaks against it, and what would prove it is not there any more: only a copy helps.
    #[error("it is copied anew, for it can't be proven to be a standby of this cluster any more: {0}")]
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
    /// Where its last restartpoint is: the record there has the time.
    pub checkpoint: Lsn,
    /// Of `standby.signal`, `recovery.signal` and `backup_label` those that are there.
    pub signals: Vec<&'static str>,
    /// Where its WAL ends.
    pub end: WalPosition,
    /// A start has to replay at least so far.
    pub required: Option<WalPosition>,
    /// The timelines that its WAL has been through.
    pub history: TimelineHistory,
}

/// Whether all WAL of `left` is the primary's by its history, which is `lineage`. It was read after `left` had ended: a primary's
/// WAL only grows.
///
/// # Errors
/// What speaks against it. It may be data that nobody else has, so that nothing replaces it.
pub fn judge(left: &Left, primary: PrimarySays, lineage: &TimelineHistory) -> Result<(), TakeInError> {
    let refused = |why: String| Err(TakeInError::Refused(why));
    same_system(left.system_identifier, primary.system_identifier)?;
    if let Some(why) = no_standby(left.state, &left.signals) {
        return refused(why);
    }
    let (history, end) = (&left.history, left.end);
    let newer = |from: WalPosition| {
        refused(format!(
            "its WAL ends at {end} and goes on past that of the primary, which ends at {from}: this member is newer than the one \
             that is named first. Name it first in cluster.members on all hosts and found the cluster anew \
             (docs/from-patroni.md); if what it has more is of no use, {AWAY}"
        ))
    };
    let fork = history.fork_from(lineage).filter(|_| !history.is_mistaken_for(lineage));
    let Some(fork) = fork else {
        return refused(format!(
            "timeline {} of its WAL is none of the primary's; if it is of no use, {AWAY}",
            end.timeline
        ));
    };
    if fork.timeline != end.timeline || end.lsn > fork.lsn {
        if fork.timeline == primary.end.timeline && fork.lsn >= primary.end.lsn {
            return newer(primary.end);
        }
        return refused(format!(
            "its WAL ends at {end}, the primary's history parted from it at {fork}: it has what nobody else has; if that is of no \
             use, {AWAY}"
        ));
    }
    if end.timeline == primary.end.timeline && end.lsn > primary.end.lsn {
        return newer(primary.end);
    }
    let past = |point: &WalPosition| {
        !lineage.includes(*point)
            || !history.includes(*point)
            || (point.timeline == end.timeline && point.lsn > end.lsn)
    };
    match left.required.filter(past) {
        Some(point) => refused(format!("it has to replay to {point}, which its WAL doesn't lead to; {AWAY}")),
        None => Ok(()),
    }
}

/// What nobody else does for an operator.
const AWAY: &str = "move it away, and its member is copied from the primary";

/// What a comparison of bytes means.
fn judge_bytes(compared: Compared, end: WalPosition) -> Result<(), TakeInError> {
    match compared {
        Compared::Same => Ok(()),
        Compared::Differs { from } => Err(TakeInError::Refused(format!(
            "its WAL ends at {end}, and from {from} on it has other bytes than the primary's at the same positions: it was written to \
             apart; if that is of no use, {AWAY}"
        ))),
        Compared::Removed { from } => Err(TakeInError::Unproven(format!(
            "its WAL ends at {end}, and the primary has removed its own from {from} on, with which it would be compared"
        ))),
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
        let facts = self.judged(primaries, lineage, patience).await?;
        let instance = self.clone();
        // Since it was looked at minutes may have passed.
        files::blocking(move || match instance.changed_since(&facts)? {
            Some(why) => Ok(Err(TakeInError::Refused(why))),
            None => instance.make_ours().map(Ok),
        })
        .await?
    }

    /// Whether a copy may replace what was to be taken in: by what it is now, and not by what it was when it was looked at last.
    ///
    /// # Errors
    /// It may not, and why.
    pub async fn may_be_replaced(
        &self,
        primaries: &[Upstream],
        lineage: Option<&TimelineHistory>,
        patience: Duration,
    ) -> Result<(), TakeInError> {
        let _lock = OperationLock::take(self.data_dir())?;
        match self.judged(primaries, lineage, patience).await {
            Err(TakeInError::Unproven(why)) => {
                tracing::warn!(why, "what was to be taken in is replaced by a copy");
                Ok(())
            }
            Err(other) => Err(other),
            Ok(_) => Err(TakeInError::Refused("it is proven to be the primary's now: it is taken in next".to_owned())),
        }
    }

    /// Stops it, if it runs and is a standby, and judges what it has left.
    async fn judged(
        &self,
        primaries: &[Upstream],
        lineage: Option<&TimelineHistory>,
        patience: Duration,
    ) -> Result<AdoptionFacts, TakeInError> {
        let instance = self.clone();
        let facts = files::blocking(move || instance.adoption_facts()).await?;
        let mut refused = Vec::from_iter(managers(&facts));
        refusal_of_slots(&facts, &self.config().parameters, &mut refused);
        if !refused.is_empty() {
            return Err(TakeInError::Refused(refused.join("; ")));
        }
        // Nothing is stopped for a primary that doesn't answer, or is another's.
        let (_, before) = self.ask_primary(primaries).await?;
        if let Some(control) = &facts.control {
            same_system(control.system_identifier, before.system_identifier)?;
        }
        self.stop_standby(&facts, patience).await?;
        let (facts, left) = self.left().await?;
        let (server, primary) = self.ask_primary(primaries).await?;
        let Some(lineage) = lineage.filter(|lineage| lineage.timeline == primary.end.timeline) else {
            let problem = format!("it is on timeline {}, the log says another", primary.end.timeline);
            return Err(SqlError::Unexpected { doing: "asking the primary for its timeline", problem }.into());
        };
        judge(&left, primary, lineage)?;
        self.compare(&server, &left, lineage).await?;
        Ok(facts)
    }

    /// Its last restartpoint is among what has to be alike: its record has the time, so that no other run of PostgreSQL has written
    /// the same. That proves the timeline as well, whose first record may have been removed by both long ago.
    async fn compare(&self, primary: &Upstream, left: &Left, lineage: &TimelineHistory) -> Result<(), TakeInError> {
        let instance = self.clone();
        let segment = files::blocking(move || instance.control_data()).await?.wal_segment_bytes;
        let (ours, end) = (&left.history, left.end.lsn);
        let stretch = Stretch { ours, theirs: lineage, from: left.checkpoint, end, segment };
        let compared = self.same_wal(primary, stretch).await.map_err(|error| match error {
            SameWalError::Primary(error) => TakeInError::Primary(error),
            SameWalError::Step(error) => TakeInError::Step(error),
            SameWalError::Missing { .. } => TakeInError::Refused(format!("{error}; {AWAY}")),
        })?;
        judge_bytes(compared, left.end)
    }

    /// Why what was `seen` can't be taken for what is there now.
    fn changed_since(&self, seen: &AdoptionFacts) -> Result<Option<String>, PostgresError> {
        Ok(change(seen, &self.adoption_facts()?))
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

    async fn left(&self) -> Result<(AdoptionFacts, Left), TakeInError> {
        // First, for what is changed while its WAL is read is found then.
        let instance = self.clone();
        let facts = files::blocking(move || instance.adoption_facts()).await.map_err(unreadable)?;
        let end = self.wal_end_on_disk().await.map_err(unreadable)?;
        let instance = self.clone();
        let read = move || Ok((instance.lineage(end)?, instance.control_data()?));
        let (history, control) = files::blocking(read).await.map_err(unreadable)?;
        let (system_identifier, state, required) = (control.system_identifier, control.state, control.required());
        let (signals, checkpoint) = (facts.signals.clone(), control.checkpoint);
        Ok((facts, Left { system_identifier, state, checkpoint, signals, end, required, history }))
    }

    async fn ask_primary(&self, servers: &[Upstream]) -> Result<(Upstream, PrimarySays), SqlError> {
        let doing = "asking the primary where its WAL ends";
        let mut failed = SqlError::Unexpected { doing, problem: "no server says that it is primary".to_owned() };
        for server in servers {
            match self.ask_source(server, doing, WHERE).await {
                Ok(rows) => match rows.first().and_then(|row| parse(row)) {
                    Some(says) => return Ok((server.clone(), says)),
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

/// Why what is there `now` is not what was `seen`, or is in somebody's hands.
fn change(seen: &AdoptionFacts, now: &AdoptionFacts) -> Option<String> {
    if let Some(why) = managers(now).next() {
        return Some(why);
    }
    if let Some(pid) = now.running {
        return Some(format!(
            "PostgreSQL was started in it meanwhile, as process {pid}: stop it, and whatever starts it"
        ));
    }
    let same = (&seen.control, &seen.signals, &seen.unusable) == (&now.control, &now.signals, &now.unusable);
    (!same).then(|| "it was changed while it was looked at: it is looked at again".to_owned())
}

/// What can't be read of a directory proves nothing, and may be of use to its owner; what can't be done just now is tried again.
fn unreadable(error: PostgresError) -> TakeInError {
    let missing = |source: &std::io::Error| source.kind() == std::io::ErrorKind::NotFound;
    match error {
        PostgresError::WalEnd { .. } | PostgresError::History { .. } | PostgresError::ControlData { .. } => {
            TakeInError::Refused(format!("it can't be read: {error}; {AWAY}"))
        }
        PostgresError::File { source, path, .. } if missing(&source) && !fs::exists(&path).unwrap_or(true) => {
            TakeInError::Refused(format!("it can't be read: {} is missing; {AWAY}", path.display()))
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
            checkpoint: Lsn(750),
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
    fn what_may_have_data_that_nobody_else_has_is_never_copied_over() {
        let refused = |change: fn(&mut Left), word: &str| {
            let told = judged(change).unwrap_err();
            assert!(told.starts_with("it is left alone: ") && told.contains(word), "{told}");
            assert!(told.contains("move it away, and its member is copied"), "{told}");
        };
        let newer = "newer than the one that is named first. Name it first in cluster.members";
        refused(|l| l.end = at(3, 901), newer);
        let promoted = |l: &mut Left| (l.end, l.history) = (at(4, 950), history(&[(1, 100), (2, 500), (3, 900)], 4));
        refused(promoted, newer);
        refused(|l| (l.end, l.history) = (at(2, 501), history(&[(1, 100)], 2)), "parted from it at 2:0/1F4");
        refused(|l| (l.end, l.history) = (at(4, 650), history(&[(1, 100), (2, 500), (3, 600)], 4)), "parted from it");
        refused(|l| (l.end, l.history) = (at(3, 600), history(&[(1, 100), (2, 400)], 3)), "parted from it");
        refused(|l| l.history.first_records = [(TimelineId(3), 34)].into(), "timeline 3 of its WAL is none");
        refused(|l| (l.end, l.history) = (at(9, 1), history(&[], 9)), "timeline 9 of its WAL is none");
        refused(|l| l.required = Some(at(2, 600)), "it has to replay to 2:0/258");
        refused(|l| l.required = Some(at(3, 801)), "which its WAL doesn't lead to");
    }

    #[test]
    fn only_what_the_primary_can_not_show_any_more_is_copied() {
        let judged = |compared| judge_bytes(compared, at(3, 800)).map_err(|error| error.to_string());
        assert_eq!(judged(Compared::Same), Ok(()));
        let told = judged(Compared::Differs { from: Lsn(700) }).unwrap_err();
        assert!(told.starts_with("it is left alone: ") && told.contains("from 0/2BC on it has other bytes"), "{told}");
        let told = judged(Compared::Removed { from: Lsn(700) }).unwrap_err();
        assert!(told.starts_with("it is copied anew") && told.contains("has removed its own from 0/2BC on"), "{told}");
    }

    #[test]
    fn what_can_not_be_read_is_left_alone_and_a_failed_step_is_tried_again() {
        let data_dir = std::path::PathBuf::from("/d");
        let told = unreadable(PostgresError::WalEnd { data_dir: data_dir.clone(), problem: "no record".into() });
        assert!(told.to_string().starts_with("it is left alone: it can't be read: "), "{told}");
        let missing = |path: &str| {
            let source = std::io::ErrorKind::NotFound.into();
            unreadable(PostgresError::File { doing: "reading", path: path.into(), source })
        };
        assert!(matches!(missing("/no/such/file"), TakeInError::Refused(_)));
        assert!(matches!(missing("/"), TakeInError::Step(_)), "it is there by now");
        assert!(matches!(unreadable(PostgresError::Running { data_dir, pid: 1 }), TakeInError::Step(_)));
    }

    #[test]
    fn what_changed_since_it_was_looked_at_is_not_taken_in() {
        let seen = AdoptionFacts { signals: vec!["standby.signal"], ..AdoptionFacts::default() };
        let told = |now: AdoptionFacts| change(&seen, &now).unwrap_or_default();
        assert_eq!(told(seen.clone()), "");
        assert!(
            told(AdoptionFacts { running: Some(9), ..seen.clone() }).contains("started in it meanwhile, as process 9")
        );
        let managed = AdoptionFacts { managers: vec![("patroni".into(), 8)], ..seen.clone() };
        assert!(told(managed).contains("patroni runs as process 8"));
        assert!(told(AdoptionFacts { signals: Vec::new(), ..seen.clone() }).contains("changed while it was looked at"));
        let gone = AdoptionFacts { unusable: Some("gone".into()), ..seen.clone() };
        assert!(told(gone).contains("changed while it was looked at"));
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
