//! The tasks: long work, one at a time. Each step can be cut off at any moment;
//! what it leaves behind is an ordinary state for the survey or the next order.

use std::{
    sync::{PoisonError, atomic::Ordering},
    time::Duration,
};

use super::{
    blame,
    checkpoints::checkpoint,
    core::{Event, Sight, Task, TaskEnd, goes_on, grows_from, is_as_granted},
    hands::{Hands, blocking, chain, said, standby_role, wait_clear},
    lend::Borrower,
    order::{Source, StopMode, WalHolder},
    phases::Phases,
    prober::{lineage, sight},
    process::Wake,
    rescue::Asker,
    store::Tenure,
};
use crate::{
    domain::{CloneMethod, Epoch, Generation, KeepDiverged, LostWal, TimelineId, WalPosition, moment::TwoClocks},
    guard::{GuardHandle, PostmasterSignal, sys::two_clocks},
    lease,
    postgres::{
        CloneError, ConfigRole, CopyPlan, Live, PostgresError, Progress, RewindError, Saved, Session, Tail, Upstream,
    },
    telemetry::events,
};

/// How often a task asks a server that is about to open.
const POLL: Duration = Duration::from_millis(20);
/// So many looks in a row must find that replay waits for more WAL: the first may be from before the last was received.
const LOOKS_AT_THE_END: u32 = 2;

/// One task with what it needs to know.
pub struct Job {
    /// What to touch things with.
    pub hands: Hands,
    /// What to do.
    pub task: Task,
    /// The guard of the postmaster that runs or has just ended.
    pub guard: Option<GuardHandle>,
    /// The timeline that a server which answers was on when the task was decided.
    pub timeline: Option<TimelineId>,
    /// Where WAL ended when it was decided; `None`: not known.
    pub wal_end: Option<WalPosition>,
    /// Highest epoch accepted.
    pub epoch: Epoch,
    /// Of the cluster.
    pub generation: Generation,
    /// By which rule a primary of this tenure acknowledges.
    pub live: Live,
    /// What stays of diverged data.
    pub keep: KeepDiverged,
    /// How a copy is made.
    pub copies: CopyPlan,
    /// Whom a promotion asks for WAL that this member lacks.
    pub rescue: Option<(WalHolder, Asker)>,
    /// Who may have WAL that this member has removed; `None`: nobody is known.
    pub borrower: Option<Borrower>,
    /// What is in the data directory is damaged.
    pub damaged: bool,
    /// What runs was taken over, and has held no lease yet.
    pub unleased: bool,
    /// So long a stop that an operator wants waits for transactions in progress.
    pub drain: Duration,
}

/// What a member has that the cluster has not.
enum Left {
    /// WAL past the fork.
    Tail(Tail),
    /// Nothing.
    Nothing,
    /// Its history shares nothing with the cluster's, or it can't be read where its WAL ends.
    Unknown,
}

/// Why a task failed.
pub(super) struct Failure {
    pub error: String,
    pub harmless: bool,
}

impl From<String> for Failure {
    fn from(error: String) -> Failure {
        Failure { error, harmless: false }
    }
}

/// Runs it to its end.
pub async fn run(job: Job) -> TaskEnd {
    let kind = job.task.kind();
    let began = std::time::Instant::now();
    let end = match job.carry_out().await {
        Ok(()) => TaskEnd::Succeeded,
        Err(Failure { error, harmless }) => TaskEnd::Failed { error, harmless },
    };
    let elapsed_ms = began.elapsed().as_millis();
    match &end {
        TaskEnd::Succeeded => tracing::info!(task = kind, elapsed_ms, "task done"),
        TaskEnd::Failed { error, .. } => tracing::error!(task = kind, elapsed_ms, error, "task failed"),
    }
    end
}

impl Job {
    async fn carry_out(&self) -> Result<(), Failure> {
        match &self.task {
            Task::Initdb => return self.initdb().await,
            Task::Start(source) => self.start(source.as_ref()).await?,
            Task::Follow(source) => self.follow(source.as_ref()).await?,
            Task::Promote(tenure) => return self.promote(tenure).await,
            Task::Restart { tenure, resume } => self.restart(tenure, *resume).await?,
            Task::Stop { mode, keep_lease } => self.stop(*mode, *keep_lease).await?,
            Task::Rewind(source) => return self.rewind(source).await,
            Task::TakeIn(source) => return self.take_in(source).await,
            Task::Clone(source) => return self.copy(source).await,
            Task::Checkpoint => checkpoint(&self.hands.instance, self.hands.timings.stop).await?,
        }
        Ok(())
    }

    async fn start(&self, source: Option<&Source>) -> Result<(), String> {
        let hands = &self.hands;
        self.before_start().await;
        let _works = hands.data_dir.lock().await;
        if let Some(guard) = &self.guard
            && !wait_clear(guard, Duration::from_secs(10)).await
            && guard.state().borrow().alive
        {
            return Err("the processes of the fenced PostgreSQL have not ended yet".to_owned());
        }
        if hands.instance.rewind_unfinished() {
            return Err("a rewind was cut off; rewind again or clone".to_owned());
        }
        let instance = hands.instance.clone();
        let role = standby_role(source, self.epoch, self.generation);
        let prepare = move || {
            instance.remove_live().map_err(said)?;
            instance.write_config(&role).map_err(said)?;
            instance.set_standby_signal(true).map_err(said)
        };
        blocking(prepare).await??;
        hands.start_postmaster(self.epoch, None).await.map(|_| ())
    }

    async fn follow(&self, source: Option<&Source>) -> Result<(), String> {
        let (guard, hands) = (self.running_guard()?, &self.hands);
        if let (Some(source), Some(timeline)) = (source, self.timeline) {
            self.leave(source, &guard).await?;
            self.can_follow(source, timeline).await?;
        }
        self.point_at(source, &guard).await?;
        if source.is_none() {
            // Whoever waits to hear that nothing is received any more is not to wait for replay. What can't be asked now ends
            // its receiver by itself.
            match hands.instance.connect().await {
                Ok(session) => session.end_receiver().await.map_err(said)?,
                Err(error) => tracing::debug!(error = chain(&error), "the WAL receiver could not be ended"),
            }
        }
        Ok(())
    }

    async fn point_at(&self, source: Option<&Source>, guard: &GuardHandle) -> Result<(), String> {
        let role = standby_role(source, self.epoch, self.generation);
        let (instance, guard) = (self.hands.instance.clone(), guard.clone());
        let point = move || {
            instance.write_config(&role).map_err(said)?;
            guard.signal(PostmasterSignal::Reload).map_err(said)
        };
        blocking(point).await?
    }

    /// Nothing is received any more but from `source` under the name of this epoch, so that where its WAL ends stays true. Only an
    /// agent that was restarted is told to follow whom it follows.
    async fn leave(&self, source: &Source, guard: &GuardHandle) -> Result<(), String> {
        let session = self.hands.instance.connect().await.map_err(said)?;
        let role = standby_role(Some(source), self.epoch, self.generation);
        let receives_from = session.receives_from().await.map_err(said)?;
        if receives_from.is_some_and(|conninfo| conninfo == self.hands.instance.conninfo(&role))
            || session.is_severed().await.map_err(said)?
        {
            return Ok(());
        }
        self.point_at(None, guard).await?;
        session.end_receiver().await.map_err(said)?;
        session.await_severed(self.hands.timings.probe).await.map_err(said)
    }

    /// Since the last probe it may have gone over to a timeline that somebody began by hand on the server it follows,
    /// and that may be of the number of the timeline it is to follow now: other bytes, and PostgreSQL would not notice. Or it has
    /// received more from the old primary than the new one had when it began its timeline. PostgreSQL would not continue
    /// that, but its WAL sender would take the end of that WAL for a confirmation of commits that lie before it.
    async fn can_follow(&self, source: &Source, timeline: TimelineId) -> Result<(), String> {
        let end = self.whole_end().await?;
        if end.timeline != timeline {
            return Err(format!("its WAL is on timeline {}, it was to follow from {timeline} on", end.timeline));
        }
        match source.fork {
            Some(fork) if end > fork => {
                Err(format!("its WAL goes on to {end}, that of {} parts from it at {fork}", source.member))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Where its WAL ends, replayed or not. What replay has not come to after a start is known only when it has, which may take
    /// long, or be put off: then the files say it.
    async fn whole_end(&self) -> Result<WalPosition, String> {
        let (mut session, until) = (None, tokio::time::Instant::now() + self.hands.timings.probe);
        loop {
            let seen = self.look(&mut session).await?;
            let (end, known) = (seen.wal_end, seen.wal_end_known);
            self.report(seen);
            if known {
                let rescued = *self.hands.rescued.lock().unwrap_or_else(PoisonError::into_inner);
                return Ok(if rescued.timeline == end.timeline { end.max(rescued) } else { end });
            }
            if tokio::time::Instant::now() >= until {
                let instance = &self.hands.instance;
                return instance.wal_end_in_files().await.map(|files| files.max(end)).map_err(said);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn running_guard(&self) -> Result<GuardHandle, String> {
        self.guard.clone().ok_or_else(|| "no guard runs".to_owned())
    }

    async fn stop(&self, mode: StopMode, planned: bool) -> Result<(), String> {
        if planned && mode == StopMode::Fast && !self.drain.is_zero() {
            self.hands.drain(self.drain).await;
        }
        let guard = self.running_guard()?;
        let took = self.before_stop(&guard, mode, planned).await;
        let patience = self.hands.timings.stop_patience().saturating_sub(took);
        self.hands.stop_postmaster(&guard, (mode == StopMode::Fast).then_some(patience)).await
    }

    /// A standby that runs is stopped first; its fast stop writes a restartpoint only.
    async fn stop_if_running(&self) -> Result<(), String> {
        match &self.guard {
            // Nothing runs under a guard that died: the rules had its tree killed before they took this order.
            Some(guard) if guard.state().borrow().alive && !guard.state().borrow().postmaster.is_clear() => {
                self.hands.progress("stop", 0, 0);
                self.hands.stop_postmaster(guard, Some(self.hands.timings.stop)).await
            }
            _ => Ok(()),
        }
    }

    async fn rewind(&self, source: &Source) -> Result<(), Failure> {
        let _works = self.hands.data_dir.lock().await;
        self.stop_if_running().await?;
        self.count_what_is_lost(source).await;
        let phases = Phases::default();
        let progress = |p: Progress| {
            phases.note(&p);
            self.hands.progress(&p.phase, p.done_bytes, p.total_bytes);
        };
        let upstream = Upstream::from(source);
        let rewind = || self.hands.instance.rewind(&upstream, &progress);
        let mut outcome = rewind().await;
        if let Some(borrower) = self.borrower.as_ref().filter(|_| outcome.as_ref().is_err_and(lacks_wal))
            && borrower.for_rewind(source).await
        {
            outcome = rewind().await;
        }
        phases.end();
        let outcome = outcome.map_err(|error| Failure {
            harmless: matches!(error, RewindError::Step(PostgresError::Busy { .. })),
            error: said(error),
        })?;
        tracing::info!(source = %source.member, ?outcome, %phases, "rewound");
        Ok(())
    }

    /// What this member alone has is about to go. What can't be counted holds nothing up.
    async fn count_what_is_lost(&self, source: &Source) -> Left {
        let Some(fork) = source.fork else { return Left::Unknown };
        // It may have ended somewhere else when this was decided.
        let end = match self.hands.instance.wal_end_on_disk().await {
            Ok(end) => end,
            Err(error) => {
                tracing::warn!(error = chain(&error), "the end of WAL could not be read before it is undone");
                let Some(end) = self.wal_end else { return Left::Unknown };
                end
            }
        };
        if end.lsn <= fork.lsn {
            return Left::Nothing;
        }
        self.hands.progress("counting what is lost", 0, 0);
        let counted = match end.timeline == fork.timeline {
            true => self.hands.instance.commits_between(fork, end.lsn).await.map(Some),
            // It went on to a timeline of its own.
            false => Ok(None),
        };
        let transactions = counted.unwrap_or_else(|error| {
            tracing::warn!(error = chain(&error), "the transactions that are lost could not be counted");
            None
        });
        let mut lost = LostWal { fork, end, transactions, saved: false };
        if self.keep != KeepDiverged::None {
            lost.saved = self.save(&lost, source).await;
        }
        tracing::warn!(event = events::LOST, timeline = %fork.timeline, bytes = lost.bytes(), transactions, %lost,
            "what this member alone had is undone");
        let _ = self.hands.wakes.send(Wake::Core(Event::Lost(lost)));
        Left::Tail(Tail { fork, end })
    }

    /// True when it is kept. What can't be kept holds nothing up: it is undone because the cluster went another way.
    async fn save(&self, lost: &LostWal, source: &Source) -> bool {
        self.hands.progress("saving what is lost", 0, 0);
        let (instance, tail) = (&self.hands.instance, Tail { fork: lost.fork, end: lost.end });
        let report = format!("{lost}\nIt is undone so that this member can follow {}.\n", source.member);
        match instance.save_tail(tail, report).await {
            Ok(Saved::Files { bytes }) => {
                tracing::info!(bytes, directory = %instance.kept(tail).display(), "the WAL that only this member had is saved");
                true
            }
            Ok(Saved::NoRoom { bytes, free }) => {
                tracing::error!(bytes, free, "the WAL that only this member had is not saved: too little room");
                false
            }
            Err(error) => {
                tracing::error!(error = chain(&error), "the WAL that only this member had could not be saved");
                false
            }
        }
    }

    /// What can't be kept holds no copy up.
    fn marked(&self, mark: Result<(), PostgresError>) {
        if let Err(error) = mark {
            tracing::error!(
                error = chain(&error),
                "the directory that is replaced could not be marked, and won't be kept"
            );
        }
    }

    async fn copy(&self, source: &Source) -> Result<(), Failure> {
        self.before_copy(source).await;
        let _works = self.hands.data_dir.lock().await;
        self.stop_if_running().await?;
        self.may_be_replaced(source).await?;
        let instance = &self.hands.instance;
        if let Err(error) = instance.forget_lent().await {
            tracing::warn!(error = chain(&error), "failed to remove WAL that other members have lent");
        }
        match self.count_what_is_lost(source).await {
            Left::Tail(tail) => self.marked(instance.mark_diverged(tail)),
            _ if self.damaged => self.marked(instance.mark_as("damaged")),
            Left::Unknown if !instance.rewind_unfinished() => self.marked(instance.mark_as("unrelated")),
            Left::Unknown | Left::Nothing => {}
        }
        // Whoever looks sees why it isn't the first method that is at work.
        let failed = std::sync::Mutex::new(String::new());
        let progress = |p: Progress| {
            let before = failed.lock().unwrap_or_else(PoisonError::into_inner).clone();
            self.hands.progress(&format!("{}{before}", p.phase), p.done_bytes, p.total_bytes);
        };
        let on_failure = |method: CloneMethod, error: &CloneError| {
            let why = chain(error);
            tracing::warn!(%method, error = why, "a copy failed, the next method is tried");
            let short: String = why.chars().take(200).collect();
            *failed.lock().unwrap_or_else(PoisonError::into_inner) += &format!(" ({method} failed: {short})");
        };
        let source_server = Upstream::from(source);
        if let Err(error) = instance.keep_wal_for_copy(&source_server).await {
            tracing::warn!(error = chain(&error), "the primary keeps no WAL for this member until it streams");
        }
        let copied = instance.copy(&source_server, &self.copies, &progress, &on_failure).await;
        let before = failed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (_, method) = copied.map_err(|error| Failure {
            harmless: matches!(error, CloneError::Step(PostgresError::Busy { .. })),
            error: format!("{}{before}", chain(&error)),
        })?;
        tracing::info!(source = %source.member, %method, "copied");
        let _ = self.hands.wakes.send(Wake::Core(Event::Copied(method)));
        Ok(())
    }

    /// Lease first, guard armed, and only then anything that could become writable. All of it within one deadline, which
    /// the rules keep as well.
    async fn promote(&self, tenure: &Tenure) -> Result<(), Failure> {
        let until = tokio::time::Instant::now() + self.hands.timings.promote;
        // Nothing was asked for yet. A guard that is late for a moment ends no more than this try.
        let harmless = |error| Failure { error, harmless: true };
        let guard = self.running_guard().map_err(harmless)?;
        let handle = guard.clone();
        let state = blocking(move || handle.refresh().map_err(said)).await.and_then(|state| state).map_err(harmless)?;
        // An earlier try, of an agent that is no more, got as far as the lease.
        let armed = state.deadline.is_some() && state.epoch == tenure.epoch;
        if !armed {
            self.before_promotion(tenure, until).await.map_err(harmless)?;
        }
        let mut session = None;
        let before = self.look(&mut session).await.map_err(|error| failed_before_the_lease(error, armed, None))?;
        let harmless = |error| failed_before_the_lease(error, armed, Some(&before));
        if !before.in_recovery && self.unleased {
            return self.bind(tenure, &before, (session, armed), &guard).await;
        }
        if before.in_recovery {
            is_as_granted(&before, tenure.floor).map_err(harmless)?;
            self.is_free(tenure.timeline).await.map_err(harmless)?;
        } else if !armed {
            return Err(harmless(BY_HAND.to_owned()));
        }
        self.lease_or(tenure, &guard, harmless).await?;
        let Some(session) = session else { return Err("the probe left no session".to_owned().into()) };
        if before.in_recovery {
            self.open(tenure, &before, &session, until).await?;
        }
        self.verify(tenure, &before).await?;
        if !before.in_recovery {
            // It may have been promoted before that try had come to the live names.
            self.go_live(&session).await?;
        }
        Ok(())
    }

    /// What can go on without a lease does, when there is none.
    async fn lease_or(
        &self,
        tenure: &Tenure,
        guard: &GuardHandle,
        failure: impl Fn(String) -> Failure,
    ) -> Result<(), Failure> {
        self.hands.progress("lease", 0, 0);
        let Err(error) = self.take_lease(tenure, guard).await else { return Ok(()) };
        let failure = failure(error);
        if failure.harmless {
            let (handle, epoch) = (guard.clone(), tenure.epoch);
            self.hands.holder.release();
            // A deadline may have arrived in the last moment; it goes on without one.
            let _ = blocking(move || handle.disarm(epoch)).await;
        }
        Err(failure)
    }

    /// What was taken over while it ran is bound to its first lease, and goes on as it is. Until that is done it writes as
    /// it did before, and nobody can have taken anything from it: no primary was open.
    async fn bind(
        &self,
        tenure: &Tenure,
        before: &Sight,
        (session, armed): (Option<Session>, bool),
        guard: &GuardHandle,
    ) -> Result<(), Failure> {
        let harmless = |error| Failure { error, harmless: !armed };
        goes_on(before, tenure.timeline, tenure.floor).map_err(harmless)?;
        let Some(session) = session else { return Err(harmless("the probe left no session".to_owned())) };
        // What may fail does so before there is a lease that could end.
        let kept_down = self.hands.instance.keep_down_after_crash(&session).await;
        kept_down.map_err(|error| harmless(said(error)))?;
        self.lease_or(tenure, guard, harmless).await?;
        self.hands.progress("binding", 0, 0);
        let instance = self.hands.instance.clone();
        blocking(move || instance.bind_running().map_err(said)).await??;
        let after = self.look(&mut None).await?;
        goes_on(&after, tenure.timeline, tenure.floor)?;
        self.still_held(tenure)?;
        self.report(after);
        Ok(())
    }

    async fn look(&self, session: &mut Option<Session>) -> Result<Sight, String> {
        let instance = &self.hands.instance;
        let deadline = self.hands.timings.probe;
        let probe = instance.probe(session, deadline).await.map_err(said)?;
        let history = lineage(instance, probe.wal_end, deadline).await?;
        Ok(sight(probe, history))
    }

    /// Holds the lease of the grant, with a guard that has its deadline.
    async fn take_lease(&self, tenure: &Tenure, guard: &GuardHandle) -> Result<(), String> {
        let hands = &self.hands;
        // A guard that doesn't answer now won't take the deadline either.
        let handle = guard.clone();
        blocking(move || handle.refresh().map_err(said)).await??;
        hands.sink_to(guard)?;
        hands.holder.hold(tenure.epoch, tenure.timeline);
        let deadline = self.await_lease(tenure).await?;
        hands.arm_layers(tenure.epoch, deadline).await?;
        // The holder's own word to the guard may still be on its way; nothing is promoted before this one is confirmed.
        let (handle, epoch) = (guard.clone(), tenure.epoch);
        match blocking(move || handle.arm(epoch, deadline)).await? {
            true => Ok(()),
            false => Err("the guard did not take the deadline of this epoch".to_owned()),
        }
    }

    async fn await_lease(&self, tenure: &Tenure) -> Result<TwoClocks, String> {
        let mut view = self.hands.holder.view();
        let decided = view.wait_for(|v| v.epoch == tenure.epoch && is_settled(v));
        match tokio::time::timeout(self.hands.timings.grant * 2, decided).await {
            Err(_) => Err("no majority of the managers answered for the lease".to_owned()),
            Ok(Err(_)) => Err("the lease holder's thread has ended".to_owned()),
            Ok(Ok(view)) if view.phase == lease::Phase::Held => {
                view.deadline.ok_or_else(|| "the lease has no deadline".to_owned())
            }
            Ok(Ok(view)) => Err(format!("the lease was not to be had: {:?}", view.phase)),
        }
    }

    /// From the held lease to writable.
    async fn open(
        &self,
        tenure: &Tenure,
        before: &Sight,
        session: &Session,
        until: tokio::time::Instant,
    ) -> Result<(), String> {
        let hands = &self.hands;
        hands.progress("sever", 0, 0);
        // With the live names it acknowledges as soon as it is writable, and the lease may have taken its time.
        if !session.is_standby().await.map_err(said)? {
            return Err(BY_HAND.to_owned());
        }
        self.go_live(session).await?;
        session.await_severed(left(until)).await.map_err(said)?;
        // What was received in the meantime may have brought a newer timeline.
        let probe = hands.instance.probe(&mut None, hands.timings.probe).await.map_err(said)?;
        if !probe.in_recovery {
            return Err(BY_HAND.to_owned());
        }
        let own = probe.wal_end.timeline;
        if own != before.wal_end.timeline {
            return Err(format!("its timeline became {own} on the way"));
        }
        self.rescue(session, own, until).await?;
        // A write of a promotion that was dropped may still be on its way.
        drop(self.hands.data_dir.lock().await);
        self.await_replay(session, until).await?;
        self.is_free(tenure.timeline).await?;
        let (instance, below) = (hands.instance.clone(), tenure.timeline);
        blocking(move || instance.place_stubs(own, below).map_err(said)).await??;
        self.still_held(tenure)?;
        hands.progress("promote", 0, 0);
        session.promote().await.map_err(said)?;
        session.await_primary(left(until)).await.map_err(said)
    }

    /// Nothing is received any more; what was is replayed before the promotion, so that everybody sees how far it is.
    async fn await_replay(&self, session: &Session, until: tokio::time::Instant) -> Result<(), String> {
        let mut at_its_end = 0;
        let mut from = None;
        while at_its_end < LOOKS_AT_THE_END {
            let replay = session.replay(left(until)).await.map_err(said)?;
            let begin = *from.get_or_insert(replay.replayed);
            let (done, total) = (replay.replayed.bytes_past(begin), replay.received.bytes_past(begin));
            self.hands.progress("replay", done, total);
            if replay.is_through() {
                return Ok(());
            }
            at_its_end = if replay.waits { at_its_end + 1 } else { 0 };
            if left(until).is_zero() {
                return Err(format!("WAL was replayed up to {} only, of {}", replay.replayed, replay.received));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// The reserved number was taken by nobody whose history file came here: PostgreSQL would take the next one, and that
    /// timeline is not the cluster's. It may count from that file already, so to remove it would not help; the next grant
    /// reserves another number.
    async fn is_free(&self, timeline: TimelineId) -> Result<(), String> {
        let instance = self.hands.instance.clone();
        match blocking(move || instance.has_history_file(timeline).map_err(said)).await?? {
            true => Err(format!("its pg_wal has a history file of timeline {timeline}, which is reserved for it")),
            false => Ok(()),
        }
    }

    /// With the names of its first rule, before it can acknowledge anything.
    async fn go_live(&self, session: &Session) -> Result<(), String> {
        let (instance, live) = (self.hands.instance.clone(), self.live.clone());
        let prepare = move || {
            instance.write_config(&ConfigRole::DormantPrimary).map_err(said)?;
            instance.write_live(&live).map_err(said)
        };
        blocking(prepare).await??;
        session.reload().await.map_err(said)
    }

    fn still_held(&self, tenure: &Tenure) -> Result<(), String> {
        let view = self.hands.holder.view().borrow().clone();
        let left = view.deadline.map(|d| d.holder_remaining(two_clocks())).unwrap_or_default();
        match view.epoch == tenure.epoch && !left.is_zero() {
            true => Ok(()),
            false => Err("the lease was lost on the way".to_owned()),
        }
    }

    /// The timeline it took must be the one of the grant, and grow out of what it was.
    async fn verify(&self, tenure: &Tenure, before: &Sight) -> Result<(), String> {
        let after = self.look(&mut None).await?;
        if after.in_recovery {
            return Err("it is still in recovery".to_owned());
        }
        if after.wal_end.timeline != tenure.timeline {
            return Err(format!("it took timeline {}, the grant reserved {}", after.wal_end.timeline, tenure.timeline));
        }
        if !grows_from(&after.history, before, tenure) {
            return Err(format!("the history of timeline {} is not the one of the grant", tenure.timeline));
        }
        let instance = self.hands.instance.clone();
        blocking(move || instance.set_standby_signal(true).map_err(said)).await??;
        self.report(after);
        Ok(())
    }

    /// The rules learn what was seen here before they learn that the task is done.
    fn report(&self, sight: Sight) {
        let life = self.hands.life.load(Ordering::SeqCst);
        let result = Ok(Box::new(sight));
        let _ = self.hands.wakes.send(Wake::Core(Event::Probed { life, result }));
    }

    /// The one start without `standby.signal`; the rules have persisted the intent.
    async fn restart(&self, tenure: &Tenure, resume: bool) -> Result<(), String> {
        if !resume {
            self.before_restart(tenure).await;
        }
        let _works = self.hands.data_dir.lock().await;
        let started = match resume {
            true => self.running_guard(),
            false => self.start_again(tenure).await,
        };
        let guard = match started {
            Ok(guard) => guard,
            Err(error) => return Err(self.take_back(None, error).await),
        };
        let open = async {
            // An agent that goes on with it has asked for the lease a moment ago.
            if resume {
                self.await_lease(tenure).await?;
            }
            self.opened(tenure, &guard).await
        };
        match open.await {
            Ok(sight) => {
                let (instance, own) = (self.hands.instance.clone(), tenure.timeline);
                let close = move || {
                    instance.set_standby_signal(true).map_err(said)?;
                    // The start has removed those of the promotion; standbys ask for them.
                    instance.place_stubs(own, own).map_err(said)
                };
                blocking(close).await??;
                self.report(sight);
                Ok(())
            }
            Err(error) => Err(self.take_back(Some(&guard), error).await),
        }
    }

    async fn start_again(&self, tenure: &Tenure) -> Result<GuardHandle, String> {
        let hands = &self.hands;
        let control = {
            let instance = hands.instance.clone();
            blocking(move || instance.control_data().map_err(said)).await??
        };
        // Right after a promotion the last checkpoint is still on the old timeline.
        let timeline = control.timeline.max(control.min_recovery_timeline);
        if timeline != tenure.timeline {
            return Err(format!("pg_control is on timeline {timeline}, the grant on {}", tenure.timeline));
        }
        let deadline = self.deadline_with_time_left(tenure)?;
        let (instance, live) = (hands.instance.clone(), self.live.clone());
        let prepare = move || {
            instance.write_config(&ConfigRole::DormantPrimary).map_err(said)?;
            // Before it can be read: what it has beyond the last confirmed commit may vanish with it.
            if live.waits() {
                instance.close_gate().map_err(said)?;
            }
            instance.set_standby_signal(false).map_err(said)?;
            instance.write_live(&live).map_err(said)
        };
        blocking(prepare).await??;
        hands.arm_layers(tenure.epoch, deadline).await?;
        let guard = hands.start_postmaster(tenure.epoch, Some(deadline)).await?;
        hands.sink_to(&guard)?;
        Ok(guard)
    }

    fn deadline_with_time_left(&self, tenure: &Tenure) -> Result<TwoClocks, String> {
        let view = self.hands.holder.view().borrow().clone();
        let deadline = view.deadline.filter(|_| view.epoch == tenure.epoch);
        let deadline = deadline.ok_or("the lease is not held")?;
        match deadline.holder_remaining(two_clocks()) >= self.hands.timings.hold / 2 {
            true => Ok(deadline),
            false => Err("too little of the lease is left".to_owned()),
        }
    }

    /// Waits until it is writable.
    async fn opened(&self, tenure: &Tenure, guard: &GuardHandle) -> Result<Sight, String> {
        let until = tokio::time::Instant::now() + self.hands.timings.primary_start;
        let mut session = None;
        loop {
            let state = guard.state().borrow().clone();
            if state.postmaster.is_clear() || !state.alive {
                return Err("PostgreSQL ended again".to_owned());
            }
            self.still_held(tenure)?;
            if let Ok(sight) = self.look(&mut session).await
                && !sight.in_recovery
            {
                return match sight.wal_end.timeline == tenure.timeline {
                    true => Ok(sight),
                    false => Err(format!("it came up on timeline {}", sight.wal_end.timeline)),
                };
            }
            if tokio::time::Instant::now() >= until && !self.hands.patient.load(Ordering::Relaxed) {
                return Err("it did not accept writes in time".to_owned());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// A restart that failed leaves nothing running and the signal file in place.
    async fn take_back(&self, guard: Option<&GuardHandle>, error: String) -> String {
        let mut error = error;
        if let Some(guard) = guard
            && let Err(also) = self.hands.stop_postmaster(guard, None).await
        {
            error = format!("{error}; and then: {also}");
        }
        let instance = self.hands.instance.clone();
        let put_back = move || {
            instance.remove_live().map_err(said)?;
            instance.set_standby_signal(true).map_err(said)
        };
        match blocking(put_back).await {
            Ok(Ok(())) => error,
            Ok(Err(also)) | Err(also) => format!("{error}; and standby.signal could not be put back: {also}"),
        }
    }
}

pub(super) fn left(until: tokio::time::Instant) -> Duration {
    until.saturating_duration_since(tokio::time::Instant::now())
}

/// What is promoted without the lease may have taken any timeline.
const BY_HAND: &str = "somebody promoted it by hand";

/// A promotion that got no lease. Where an earlier try held it, or where PostgreSQL is writable already, be it by hand,
/// something can have been written, and nothing short of a fence is harmless.
fn failed_before_the_lease(error: String, armed: bool, before: Option<&Sight>) -> Failure {
    let writable = before.is_some_and(|b| !b.in_recovery);
    Failure { error, harmless: !armed && !writable }
}

/// Seeking may probe for a while; only an answer decides.
fn is_settled(view: &lease::HolderView) -> bool {
    match view.phase {
        lease::Phase::Held | lease::Phase::Expired | lease::Phase::Superseded { .. } => true,
        lease::Phase::Idle | lease::Phase::Seeking | lease::Phase::Probing => false,
    }
}

/// It has changed nothing, for WAL back to the last checkpoint before the fork was not there.
fn lacks_wal(error: &RewindError) -> bool {
    matches!(error, RewindError::Failed { touched: false, source } if blame::lacks_wal(&source.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promotion_without_lease_is_harmless_only_where_nothing_can_have_been_written() {
        let standby = Sight { in_recovery: true, ..Sight::default() };
        let by_hand = Sight { in_recovery: false, ..Sight::default() };
        let harmless = |armed, before| failed_before_the_lease("no majority".to_owned(), armed, before).harmless;
        assert!(harmless(false, Some(&standby)));
        assert!(!harmless(false, Some(&by_hand)), "promoted by hand a moment before the order");
        assert!(!harmless(true, Some(&standby)), "an earlier try held the lease: it may become writable");
        assert!(harmless(false, None));
        assert!(!harmless(true, None));
    }
}
