//! What gets nowhere: a promotion that is late, recovery or replay that stands still, a standby that doesn't stream.

use std::time::Duration;

use super::{Complaint, Core, Effect, Now, Running, Sight, Task, Tree};
use crate::{
    agent::redo::Redo,
    domain::{EndCause, Lsn, Moment, OnPrimaryCrash, PostgresState, observation::RedoView},
    postgres::{Vitals, waits_at_the_end},
    telemetry::events,
};

/// A standby that doesn't stream for so long is told of. A failover is over sooner.
const NOT_STREAMING: Duration = Duration::from_secs(10);
/// Replay that is behind, or a standby that doesn't stream, is looked at more closely after this long.
const CLOSER: Duration = Duration::from_secs(5);

/// What is known of the newest postmaster's recovery, replay and streaming.
#[derive(Debug, Default)]
pub(super) struct Stuck {
    redo: Redo,
    /// It was ended because its recovery stood still, and none has answered since.
    ended: bool,
    /// What PostgreSQL says of what keeps it.
    words: Option<String>,
    /// There is more to replay from here on, and so it was then.
    behind: Option<(Lsn, Moment)>,
    /// Since when it doesn't stream.
    unstreamed: Option<Moment>,
    /// Since when it does.
    streamed: Option<Moment>,
    /// For people.
    said: Option<String>,
}

impl Stuck {
    /// Another postmaster was started.
    pub(super) fn begin(&mut self) {
        *self = Stuck { ended: self.ended, ..Stuck::default() };
    }

    /// Nothing that was seen of recovery before says anything of what begins now.
    pub(super) fn forget_redo(&mut self) {
        self.redo.forget();
    }

    /// It is to follow somebody: from now on it may be expected to stream.
    pub(super) fn follow(&mut self) {
        (self.unstreamed, self.streamed) = (None, None);
    }

    /// The server answered.
    pub(super) fn answered(&mut self, sight: &Sight, now: Moment) {
        self.ended = false;
        let at = sight.replay_lsn;
        // The last bytes received may be half of a record; who waits for more has replayed what there is.
        // One that waits on purpose is where it should be, and asks for no more WAL before it goes on.
        let delayed = sight.waits_on_purpose();
        let more = sight.in_recovery && sight.wal_end.lsn > at && !waits_at_the_end(&sight.replay_waits) && !delayed;
        let unmoved = self.behind.filter(|(lsn, _)| *lsn == at);
        self.behind = more.then(|| unmoved.unwrap_or((at, now)));
        let missed = sight.in_recovery && !sight.streaming && !delayed;
        self.unstreamed = missed.then(|| self.unstreamed.unwrap_or(now));
        self.streamed = sight.streaming.then(|| self.streamed.unwrap_or(now));
    }

    /// A WAL receiver ran at the last look.
    pub(super) fn receives(&self) -> bool {
        self.redo.receives()
    }

    /// What stands still and why, for people.
    pub(super) fn said(&self) -> Option<&str> {
        self.said.as_deref()
    }

    /// How long it has streamed, or not, without a break.
    fn streaming_for(&self, now: Moment) -> Duration {
        self.streamed.or(self.unstreamed).map(|since| now.since(since)).unwrap_or_default()
    }

    fn because(&self) -> String {
        self.words.as_ref().map(|words| format!(": {words}")).unwrap_or_default()
    }

    fn behind_for(&self, now: Moment) -> Option<(Lsn, Duration)> {
        self.behind.map(|(at, since)| (at, now.since(since)))
    }

    fn unstreamed_for(&self, now: Moment) -> Option<Duration> {
        self.unstreamed.map(|since| now.since(since))
    }
}

/// `recovering 0000…03` is at `0000…03`.
fn place(doing: &str) -> &str {
    doing.split_once(' ').map_or(doing, |(_, at)| at)
}

impl Core {
    /// One deadline for the whole of a promotion, wherever it hangs: the next candidate waits for it. The task gets as
    /// long; this holds also where the task itself hangs.
    pub(super) fn end_late_promotion(&mut self, now: Now, out: &mut Vec<Effect>) {
        let Some(Running { task: Task::Promote(tenure), shown, .. }) = &self.work else { return };
        let ours = self.durable.tenure.is_some_and(|t| t.epoch == tenure.epoch);
        if self.promotion_left(now) != Some(Duration::ZERO) || !ours {
            return;
        }
        let why = format!("not promoted within {} ms, it was at `{}`", self.limits.promote.as_millis(), shown.phase);
        self.problem = Some(why.clone());
        self.end_or_let_go(*tenure, (EndCause::PromotionLate, &why), now, out);
    }

    /// Until the promotion under way is given up; `None` when none is.
    pub fn promotion_left(&self, now: Now) -> Option<Duration> {
        let Some(Running { task: Task::Promote(_), began, .. }) = &self.work else { return None };
        Some(self.limits.promote.saturating_sub(now.moment.since(*began)))
    }

    pub(super) fn on_redo(&mut self, vitals: Vitals, words: Option<Complaint>, now: Now, out: &mut Vec<Effect>) {
        if !matches!(self.tree, Tree::Running { .. }) || self.is_fencing() {
            return;
        }
        self.stuck.redo.see(vitals, now.moment);
        self.mind_complaint(words.as_ref(), now.moment);
        self.stuck.words = words.map(|complaint| complaint.said);
        let stands = self.recovery_stands(now.moment).is_some() && self.storage_problem().is_none();
        // One that streams serves its readers; one on a disk that stands still can't be helped by a kill.
        let idle = self.work.is_none() && self.durable.tenure.is_none() && !self.stuck.receives();
        if stands && idle {
            self.cure.start_failed(self.stuck.words.as_deref().unwrap_or("recovery stands still"));
        }
        self.name_what_is_stuck(now);
        // What follows nobody has nothing to wait for.
        let first = idle && (!self.stuck.ended || self.follows.is_none());
        if let (true, true, Some(why)) = (stands, first || self.restarts(), self.stuck.said.clone()) {
            tracing::warn!(why, "postgresql gets nowhere and is ended");
            self.stuck.ended |= !self.restarts();
            self.hung = Some(why.clone());
            self.problem = Some(why);
            self.fence(now, out);
        }
    }

    /// Where recovery has stood still for too long, if PostgreSQL recovers and doesn't answer yet.
    fn recovery_stands(&self, now: Moment) -> Option<&str> {
        let (doing, still) = self.stuck.redo.still(now).filter(|_| self.state() == PostgresState::Starting)?;
        (still >= self.settings.redo_stall).then_some(doing)
    }

    /// Says what stands still, as long as it does.
    pub(super) fn name_what_is_stuck(&mut self, now: Now) {
        let said = self.what_is_stuck(now.moment);
        if let (None, Some(reason)) = (&self.stuck.said, &said) {
            tracing::warn!(event = events::STUCK, reason, "postgresql gets no further");
        }
        self.stuck.said = said;
    }

    fn what_is_stuck(&self, now: Moment) -> Option<String> {
        let stall = self.settings.redo_stall;
        if let Some(doing) = self.recovery_stands(now) {
            let what = match place(doing) {
                "" => "recovery does not begin".to_owned(),
                at => format!("recovery stands still at {at}"),
            };
            let again = match (self.stuck.ended, self.needs_copy(now).is_some()) {
                (false, _) => "",
                (true, false) => "; another start did not help, it needs an operator",
                (true, true) => "; another start did not help, it is to be copied anew",
            };
            return Some(format!("{what} for more than {} s{}{again}", stall.as_secs(), self.stuck.because()));
        }
        let sight = self.sight.as_ref().filter(|_| self.state() == PostgresState::Standby)?;
        if let Some((at, _)) = self.stuck.behind_for(now).filter(|(_, still)| *still >= stall) {
            let missing = sight.wal_end.lsn.bytes_past(at);
            let what =
                format!("replay stands still at {at} for more than {} s, {missing} bytes behind", stall.as_secs());
            return Some(match (sight.replay_paused, &self.stuck.words) {
                (true, Some(words)) if words.contains("is a lower setting") => format!("{what}: paused, for {words}"),
                (true, _) => format!("{what}: it is paused; `SELECT pg_wal_replay_resume()` there lets it go on"),
                (false, _) if sight.replay_waits.is_empty() => format!("{what}{}", self.stuck.because()),
                (false, _) => format!("{what}: it waits for {}{}", sight.replay_waits, self.stuck.because()),
            });
        }
        let follows = self.follows.as_ref().or(sight.upstream.as_ref())?;
        self.stuck.unstreamed_for(now).filter(|since| *since >= NOT_STREAMING)?;
        let since = NOT_STREAMING.as_secs();
        let copy = if self.needs_copy(now).is_some() { "; it is to be copied anew" } else { "" };
        Some(format!("it does not stream from {follows} for more than {since} s{}{copy}", self.stuck.because()))
    }

    /// The postmaster whose recovery or replay is to be watched: one that is not where it should be.
    pub fn redo_to_watch(&self, now: Now) -> Option<u32> {
        let Tree::Running { pid } = self.tree else { return None };
        let late = |since: Option<Duration>| since.is_some_and(|since| since >= CLOSER);
        let watched = match self.state() {
            PostgresState::Starting | PostgresState::Promoting => true,
            PostgresState::Standby => {
                let behind = self.stuck.behind_for(now.moment).map(|(_, since)| since);
                late(behind) || late(self.stuck.unstreamed_for(now.moment))
            }
            _ => false,
        };
        watched.then_some(pid)
    }

    /// A recovery that gets on is waited for when nobody could take over, or nobody is to: it would have to be done all
    /// the same.
    pub fn waits_for_redo(&self, now: Now) -> bool {
        let gets_on = self.stuck.redo.still(now.moment).is_some_and(|(_, still)| still < self.settings.redo_stall);
        let crashed = self.idle_since.unwrap_or(now.moment);
        let followed = self.was_followed(crashed);
        let stays = self.settings.on_primary_crash == OnPrimaryCrash::Restart;
        self.restarts() && gets_on && (stays || !followed)
    }

    /// How long it has streamed, or not, without a break; in milliseconds.
    pub fn streaming_ms(&self, now: Now) -> u64 {
        u64::try_from(self.stuck.streaming_for(now.moment).as_millis()).unwrap_or(u64::MAX)
    }

    /// Where recovery or replay is, while it is watched.
    pub fn redo(&self, now: Now) -> Option<RedoView> {
        let view = |at: String, still: Duration| RedoView {
            at,
            still_ms: u64::try_from(still.as_millis()).unwrap_or(u64::MAX),
            stands: still >= self.settings.redo_stall,
        };
        self.redo_to_watch(now)?;
        match self.stuck.behind_for(now.moment) {
            Some((at, still)) if self.state() == PostgresState::Standby => Some(view(at.to_string(), still)),
            _ if self.state() == PostgresState::Standby => None,
            _ => self.stuck.redo.still(now.moment).map(|(doing, still)| view(place(doing).to_owned(), still)),
        }
    }
}
