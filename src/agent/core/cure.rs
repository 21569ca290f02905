//! What keeps a member from being a streaming standby for good: whether its data is of no use, or what an operator has to do.

use std::time::Duration;

use super::{Core, Disk, Now, Sight, Tree, events::Complaint};
use crate::{
    agent::blame::{self, Blame},
    domain::{
        CloneMethod, CopyCause, CureView, Lsn, Moment, NeedsCopy, PostgresState, STARTS_TRIED,
        observation::REWINDS_TRIED,
    },
    telemetry::events,
};

/// So often PostgreSQL has to say anew that the primary has removed the WAL it needs …
const GONE_SAID: u32 = 3;
/// … over at least this long, until that is believed.
const GONE_FOR: Duration = Duration::from_secs(10);
/// A data directory has to be found damaged again after this long: one look may have been misled by the host.
pub(super) const READ_SOON: Duration = Duration::from_secs(5);
/// The same of the end of its WAL, which is sought every few seconds.
const ENDS_SOUGHT: u32 = 3;
/// A copy that was of no use so soon would be none the next time either, or WAL goes faster than a copy.
const COPY_AGAIN: Duration = Duration::from_secs(600);

/// What was seen of it since it last streamed. In memory: an agent that is started again begins to count anew.
#[derive(Debug, Default)]
pub(super) struct Cure {
    /// Starts in a row that ended before an answer …
    starts: u64,
    /// … of them those that were not the host's fault.
    failed_starts: u64,
    /// What the last of them was blamed on, and the words.
    last: Option<(Blame, String)>,
    /// The newest start is counted.
    counted: bool,
    gone: Option<Gone>,
    /// Since when all looks have found the directory damaged, when the last of them was, and what it found.
    damaged: Option<(Moment, Moment, String)>,
    /// Tries in a row to find the end of its WAL, and why the last one failed.
    endless: (u32, String),
    /// PostgreSQL runs and lets nobody in, for what is in its files, since then.
    refuses: Option<(Moment, String)>,
    /// Until when that was so.
    refused: Moment,
    /// When it was last copied because its data was of no use.
    copied: Option<Moment>,
    /// By which method it was copied last, while nothing was streamed into the copy.
    method: Option<CloneMethod>,
    /// One that was not tried since follows it.
    another: bool,
    /// So long WAL that the primary has removed is looked for in the archive; `None`: there is none.
    archive: Option<Duration>,
    /// What became of asking other members for that WAL.
    lent: Lent,
}

/// WAL that the primary has removed, and other members may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Lent {
    /// Nobody was asked.
    #[default]
    No,
    /// They are being asked.
    Asked,
    /// It is here, for PostgreSQL to take.
    Here,
    /// They don't have it.
    InVain,
}

/// PostgreSQL says that WAL is gone.
#[derive(Debug)]
struct Gone {
    first: Moment,
    last: Moment,
    times: u32,
    /// The whole line: the next one has another time in it.
    line: String,
    said: String,
    replayed: Lsn,
}

impl Cure {
    /// Another postmaster was started.
    pub(super) fn begin(&mut self) {
        (self.counted, self.gone, self.endless, self.refuses) = (false, None, Default::default(), None);
    }

    /// PostgreSQL answered; when it streams, nothing is wrong with it.
    pub(super) fn answered(&mut self, sight: &Sight) {
        if sight.streaming || !sight.in_recovery {
            *self = Cure { copied: self.copied, archive: self.archive, ..Cure::default() };
            return;
        }
        (self.starts, self.failed_starts, self.last, self.refuses) = (0, 0, None, None);
        if self.gone.as_ref().is_some_and(|gone| gone.replayed < sight.replay_lsn && gone.replayed > Lsn(0)) {
            self.gone = None;
            // The primary may have removed more meanwhile.
            if self.lent == Lent::Here {
                self.lent = Lent::No;
            }
        }
    }

    /// PostgreSQL runs and answers nobody.
    pub(super) fn refused(&mut self, why: &str, now: Moment) {
        if blame::of(why) == Blame::Data {
            self.refuses.get_or_insert_with(|| (now, why.to_owned()));
            self.refused = now;
        } else {
            self.refuses = None;
        }
    }

    /// A start ended before PostgreSQL answered, or gets nowhere.
    pub(super) fn start_failed(&mut self, words: &str) {
        if std::mem::replace(&mut self.counted, true) {
            return;
        }
        let blame = blame::of(words);
        self.starts += 1;
        self.failed_starts += u64::from(blame != Blame::Host);
        self.last = Some((blame, words.to_owned()));
    }

    /// No postmaster came of it; what is read for a start may be damaged.
    pub(super) fn not_started(&mut self, error: &str) {
        if blame::of(error) == Blame::Data {
            self.counted = false;
            self.start_failed(error);
        }
    }

    /// What PostgreSQL said last while it does not stream.
    fn complained(&mut self, complaint: &Complaint, replayed: Lsn, now: Moment) {
        if !blame::is_gone(&complaint.said) {
            return;
        }
        let (line, said) = (complaint.line.clone(), complaint.said.clone());
        match &mut self.gone {
            Some(gone) if gone.line == line => {}
            Some(gone) => (gone.last, gone.times, gone.line, gone.said) = (now, gone.times + 1, line, said),
            // What stands in the log already may be of whom it followed before.
            None => self.gone = Some(Gone { first: now, last: now, times: 0, line, said, replayed }),
        }
    }

    /// The directory was read.
    pub(super) fn read(&mut self, disk: &Disk, now: Moment) {
        self.damaged = match disk {
            Disk::Damaged(why) => {
                let since = self.damaged.as_ref().map_or(now, |(since, ..)| *since);
                Some((since, now, why.clone()))
            }
            Disk::NoData | Disk::Present(_) | Disk::Unusable(_) => None,
        };
    }

    /// What all looks at the directory for a while have found.
    fn damage(&self) -> Option<&str> {
        let lasting = |(since, last, _): &&(Moment, Moment, String)| last.since(*since) >= READ_SOON;
        self.damaged.as_ref().filter(lasting).map(|(.., why)| why.as_str())
    }

    /// It is read again sooner as long as it may have been the host's fault.
    pub(super) fn is_suspect(&self) -> bool {
        self.damaged.is_some() && self.damage().is_none()
    }

    /// The end of its WAL could not be found.
    pub(super) fn no_end(&mut self, why: String) {
        let data = blame::of(&why) == Blame::Data;
        self.endless = if data { (self.endless.0 + 1, why) } else { Default::default() };
    }

    /// The end of its WAL was found.
    pub(super) fn found_end(&mut self) {
        self.endless = Default::default();
    }

    /// What one primary has removed another may have.
    pub(super) fn another_primary(&mut self) {
        (self.gone, self.lent) = (None, Lent::No);
        if self.last.as_ref().is_some_and(|(_, words)| blame::is_gone(words)) {
            (self.starts, self.failed_starts, self.last) = (0, 0, None);
        }
    }

    /// Other data is in place.
    pub(super) fn replaced(&mut self, now: Moment) {
        let copied = self.verdict().map(|_| now).or(self.copied);
        // What a backup didn't do another method may.
        let copied = copied.filter(|_| !self.another);
        *self = Cure { copied, method: self.method, another: self.another, archive: self.archive, ..Cure::default() };
    }

    /// Whether its data is of no use, and why.
    fn verdict(&self) -> Option<NeedsCopy> {
        let need = |cause, why: &str| Some(NeedsCopy { cause, why: why.to_owned() });
        if let Some(why) = self.damage() {
            return need(CopyCause::Unreadable, why);
        }
        if self.endless.0 >= ENDS_SOUGHT {
            return need(CopyCause::Unreadable, &self.endless.1);
        }
        if let Some((Blame::Data, why)) = &self.last
            && self.failed_starts >= STARTS_TRIED
        {
            let cause = if blame::is_gone(why) { CopyCause::WalGone } else { CopyCause::EndsEarly };
            return need(cause, why);
        }
        if let Some((since, why)) = &self.refuses
            && self.refused.since(*since) >= GONE_FOR
        {
            return need(CopyCause::EndsEarly, why);
        }
        let long = self.patience();
        let lasting = |gone: &&Gone| gone.times >= GONE_SAID && gone.last.since(gone.first) >= long;
        let asks = self.lent == Lent::Asked;
        self.gone.as_ref().filter(lasting).filter(|_| !asks).and_then(|gone| need(CopyCause::WalGone, &gone.said))
    }

    /// The primary said so twice, and no archive is looked in.
    pub(super) fn wants_wal(&self) -> bool {
        let gone = self.gone.as_ref().is_some_and(|gone| gone.times > 0);
        gone && self.lent == Lent::No && self.archive.is_none()
    }

    pub(super) fn borrow(&mut self) {
        self.lent = Lent::Asked;
    }

    /// PostgreSQL has a while to take what came; `None`: they were not asked to the end.
    pub(super) fn borrowed(&mut self, some: Option<bool>) {
        if self.lent == Lent::Asked {
            self.lent = some.map_or(Lent::No, |some| if some { Lent::Here } else { Lent::InVain });
        }
    }

    /// What PostgreSQL has said so far is of WAL that is here now.
    pub(super) fn begin_anew(&mut self, now: Moment) {
        if let Some(gone) = &mut self.gone {
            (gone.first, gone.last, gone.times) = (now, now, 0);
        }
    }

    /// So long it may get no further until WAL that is gone counts as gone for good.
    fn patience(&self) -> Duration {
        self.archive.map_or(GONE_FOR, |wait| wait.max(GONE_FOR))
    }

    /// How long WAL that the primary has removed may yet be looked for elsewhere.
    pub(super) fn look_in_archive(&mut self, wait: Option<Duration>) {
        self.archive = wait;
    }

    /// How long it still looks in the archive; `None`: it doesn't.
    pub(super) fn seeks(&self, now: Moment) -> Option<Duration> {
        let gone = self.gone.as_ref().filter(|gone| gone.times > 0 && self.archive.is_some())?;
        Some(self.patience().saturating_sub(now.since(gone.first))).filter(|left| !left.is_zero())
    }

    /// `another`: a method is left that was not tried since.
    pub(super) fn copied_by(&mut self, method: CloneMethod, another: bool) {
        (self.method, self.another) = (Some(method), another);
    }

    /// The method of the last copy, which never streamed.
    pub(super) fn copied_in_vain(&self) -> Option<CloneMethod> {
        self.method.filter(|_| self.verdict().is_some())
    }

    fn lately(&self, now: Moment) -> bool {
        self.copied.is_some_and(|at| now.since(at) < COPY_AGAIN)
    }
}

impl Core {
    /// A look at a standby that doesn't stream, or at a start that takes long.
    pub(super) fn mind_complaint(&mut self, complaint: Option<&Complaint>, now: Moment) {
        let streams = self.sight.as_ref().is_some_and(|sight| sight.streaming) || self.stuck.receives();
        let Some(complaint) = complaint.filter(|_| !streams && self.durable.tenure.is_none()) else { return };
        let replayed = self.sight.as_ref().map(|sight| sight.replay_lsn).unwrap_or_default();
        self.cure.complained(complaint, replayed, now);
    }

    /// Its data is of no use, and a copy may help.
    pub fn needs_copy(&self, now: Moment) -> Option<NeedsCopy> {
        let due = self.durable.tenure.is_none() && !self.cure.lately(now);
        self.cure.verdict().filter(|_| due)
    }

    /// One that would fail for the same reason again is not tried again: a copy is due.
    pub(super) fn rewind_failed(&mut self, error: &str) {
        let failures = self.durable.rewind_failures + 1;
        let hopeless = blame::is_no_rewind(error);
        self.durable.rewind_failures = if hopeless { failures.max(REWINDS_TRIED) } else { failures };
    }

    /// For whoever asks later where the old data went.
    pub(super) fn say_why_it_is_copied(&self) {
        if let Some(NeedsCopy { cause, why }) = self.cure.verdict() {
            tracing::warn!(event = events::STUCK, reason = why, %cause, "data of no use is replaced by a copy");
        }
    }

    /// What could not be rewound is gone; the next divergence is another one.
    pub(super) fn copied_anew(&mut self, now: Now) {
        (self.durable.clone_failures, self.durable.rewind_failures, self.clone_failed) = (0, 0, None);
        self.cure.replaced(now.moment);
    }

    /// What a copy is about to replace is damaged.
    pub fn is_damaged(&self) -> bool {
        self.cure.verdict().is_some_and(|need| need.cause.is_damage())
    }

    /// Why it doesn't get where it should.
    pub fn cure(&self, now: Now) -> CureView {
        CureView {
            needs_copy: self.needs_copy(now.moment),
            needs_operator: self.needs_operator(now.moment),
            failed_starts: self.cure.failed_starts,
        }
    }

    /// What nothing that happens by itself would cure.
    fn needs_operator(&self, now: Moment) -> Option<String> {
        if let (Some(Disk::Unusable(why)), Tree::Empty) = (&self.disk, self.tree) {
            return Some(why.clone());
        }
        if let Some(why) = self.content_given_up().or_else(|| self.left_alone()) {
            return Some(why);
        }
        if let Some(need) = self.cure.verdict() {
            let again = || {
                let minutes = COPY_AGAIN.as_secs() / 60;
                format!("it was copied anew less than {minutes} min ago, and {}: {}", need.cause, need.why)
            };
            return self.cure.lately(now).then(again);
        }
        if let Some((_, words)) = self.cure.last.as_ref().filter(|_| self.cure.starts >= STARTS_TRIED) {
            return Some(format!("PostgreSQL did not start, {} times in a row: {words}", self.cure.starts));
        }
        let words = self.stuck.said().filter(|words| blame::of(words) == Blame::Host);
        words.filter(|_| self.state() == PostgresState::Standby).map(str::to_owned)
    }
}

#[cfg(test)]
#[path = "cure_test.rs"]
mod tests;
