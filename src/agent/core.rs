//! The agent's rules as a pure state machine: one event in, effects out.
//!
//! Nothing here reads a clock, a file or a socket. The order of the effects is
//! part of the rule: what protects comes first, what must survive is persisted
//! before anyone is told, and a reply comes last.

mod acks;
mod admit;
mod archive;
mod content;
mod cure;
mod doors;
mod ended;
mod events;
#[cfg(test)]
mod heard_test;
#[cfg(test)]
mod hung_test;
mod lend;
mod lists;
#[cfg(test)]
mod lists_test;
#[cfg(test)]
mod lost_test;
mod orders;
mod pause;
mod promoted;
mod rescue;
#[cfg(test)]
mod room_test;
mod running;
#[cfg(test)]
mod running_test;
#[cfg(test)]
mod serving_test;
mod stalled;
#[cfg(test)]
mod stalled_test;
#[cfg(test)]
mod stray_test;
mod stuck;
#[cfg(test)]
mod stuck_test;
#[cfg(test)]
mod tests;
mod view;
#[cfg(test)]
mod walk_test;

use std::time::Duration;

pub use content::{LEFT_ALONE, TO_BE_STOPPED, TO_BE_TAKEN_IN};
pub use events::{
    Complaint, Disk, DiskFacts, Effect, Event, Found, LeasePhase, LeaseSight, Limits, Now, Postmaster, Refusal, Sight,
    Start, Task, TaskEnd, Tree,
};
pub use lend::{Unlent, Wanted};
pub use orders::{covers, grows_from, is_as_granted};
pub use running::goes_on;
use stuck::Stuck;

use super::{
    archive::Archiving,
    crashes::{After, Cause, Crashes, Standbys},
    freshness::Freshness,
    order::WalHolder,
    room::Room,
    stall::Volumes,
    store::{Durable, Phase, Tenure},
};
use crate::{
    domain::{
        EndCause, Epoch, FailoverWait, LostWal, MemberId, Moment, Settings, SyncWord, TimelineHistory, Uncovered,
        WalPosition,
        observation::{ClockView, Notice, OrderResult, StandbyProgress, SyncView, Work},
    },
    lease::failsafe::Promiser,
    postgres::{Knock, Space},
};

/// A clone that failed this long ago counts no more: five in a row stop the cloning, but not for ever.
const FORGET_CLONE: Duration = Duration::from_secs(600);
/// A data directory that could not be read is read again this much later: the reason may have been the host's.
const READ_AGAIN: Duration = Duration::from_secs(30);

/// The running task and the order it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Running {
    epoch: Epoch,
    task: Task,
    shown: Work,
    began: Moment,
    phase_began: Moment,
}

/// All that the agent knows.
#[derive(Debug)]
pub struct Core {
    limits: Limits,
    durable: Durable,
    tree: Tree,
    life: u64,
    fencing_since: Option<Moment>,
    /// How many trees were killed.
    killed: u64,
    lease: LeaseSight,
    sight: Option<Sight>,
    disk: Option<Disk>,
    wal_end: WalPosition,
    wal_end_known: bool,
    /// Of the newest postmaster the end of WAL was asked for: it is sought until it is found.
    end_sought: bool,
    history: TimelineHistory,
    work: Option<Running>,
    last_order: Option<OrderResult>,
    idle_since: Option<Moment>,
    stop_ended: bool,
    /// When the last clone failed that still counts.
    clone_failed: Option<Moment>,
    /// When the data directory was last read in vain.
    unusable: Option<Moment>,
    /// The newest postmaster answered a probe.
    answered: bool,
    /// It was writable without a lease, and what it wrote has not been read yet.
    strayed: bool,
    /// It hangs and is being ended; what follows is what follows a crash.
    hung: Option<String>,
    turns_away: Option<doors::TurnsAway>,
    /// Why the restart in place under way was ended.
    stalled: Option<String>,
    stuck: Stuck,
    cure: cure::Cure,
    content: content::Content,
    /// Why the last epoch ended here; this start of the agent may not know.
    ended_by: EndCause,
    /// When a standby was last seen to stream from here; a restart doesn't make that forgotten.
    followed: Option<Moment>,
    /// How many members did at the last look.
    followers: usize,
    crashes: Crashes,
    /// When the manager last told that a crashed primary stays primary, for too many failovers followed crashes.
    stays: Option<Moment>,
    /// When the manager last told that the cluster is paused.
    paused: Option<Moment>,
    /// Of the newest word about that.
    pauses: u64,
    /// PostgreSQL ended without an order; whether it was stopped is in what is being read.
    left: bool,
    room: Room,
    /// What the primary has said of its WAL, while this was a standby.
    freshness: Freshness,
    /// Whether the disks under PostgreSQL take writes.
    volumes: Volumes,
    /// When a primary's flushed WAL was last seen to have grown.
    flushed: Option<Moment>,
    /// What operators have set, as this version reads `durable.settings`.
    settings: Settings,
    checkpoints_done: u64,
    problem: Option<String>,
    system: Option<u64>,
    follows: Option<MemberId>,
    me: MemberId,
    /// The highest epoch the manager has told of.
    briefed: Epoch,
    promiser: Promiser,
    clock: ClockView,
    /// The newest word of a manager about rules of acknowledgement, of whatever epoch.
    told_sync: SyncWord,
    /// Who confirms, as it was seen last.
    sync_view: SyncView,
    uncovered: Uncovered,
    /// Where WAL ended that was a primary's when it was read, until it is known what became of it.
    reigned: Option<WalPosition>,
    /// Of the last time that it was primary. In memory: what is told of it after a restart is its word at the end.
    nothing_lost: Option<LostWal>,
    /// The epoch of the order to follow whom it follows.
    follows_epoch: Epoch,
    /// The task under way follows whom it follows already: what that brings may be a newer timeline.
    follows_on: bool,
    left_wal: rescue::Left,
    /// How archiving goes.
    archiving: Archiving,
    lineage: archive::Lineage,
    /// Of the last order to promote.
    wal_holder: Option<WalHolder>,
    /// What runs in the data directory is to be taken over, and goes on.
    takes_over: bool,
    /// The newest epoch that is known to have been held here: by the lease, or by a guard that was armed for it.
    held: Epoch,
    /// When this host was granted last, or this agent began: no older lease ends later than T_hold after that.
    granted: Moment,
}

impl Core {
    /// The agent at its start, and what it does first.
    pub fn begin(start: Start, now: Now) -> (Core, Vec<Effect>) {
        let Start { me, timings, durable, found, disk, system } = start;
        let in_force = durable.timings.in_force().map_or(timings, |c| c.timings);
        let mut core = Core {
            limits: Limits::of(&in_force),
            promiser: Promiser::new(timings.grant, durable.failsafe, now.clocks),
            briefed: Epoch(0),
            clock: ClockView::default(),
            freshness: Freshness::default(),
            settings: durable.settings.settings(),
            durable,
            tree: Tree::Empty,
            life: 1,
            fencing_since: None,
            killed: 0,
            lease: LeaseSight::default(),
            sight: None,
            disk,
            wal_end: WalPosition::default(),
            wal_end_known: false,
            end_sought: false,
            history: TimelineHistory::default(),
            work: None,
            last_order: None,
            idle_since: None,
            stop_ended: false,
            clone_failed: None,
            unusable: None,
            answered: false,
            strayed: false,
            hung: None,
            turns_away: None,
            stalled: None,
            stuck: Stuck::default(),
            cure: cure::Cure::default(),
            content: content::Content::default(),
            ended_by: EndCause::Unknown,
            followed: None,
            followers: 0,
            crashes: Crashes::default(),
            paused: None,
            stays: None,
            pauses: 0,
            left: false,
            room: Room::default(),
            volumes: Volumes::default(),
            flushed: None,
            checkpoints_done: 0,
            problem: None,
            system,
            follows: None,
            follows_epoch: Epoch(0),
            follows_on: false,
            left_wal: rescue::Left::default(),
            archiving: Archiving::default(),
            lineage: archive::Lineage::default(),
            wal_holder: None,
            takes_over: false,
            held: Epoch(0),
            granted: now.moment,
            told_sync: SyncWord::default(),
            sync_view: SyncView::default(),
            uncovered: Uncovered::default(),
            reigned: None,
            nothing_lost: None,
            me,
        };
        core.clone_failed = (core.durable.clone_failures > 0).then_some(now.moment);
        core.unusable = core.disk.as_ref().filter(|disk| disk.is_unusable()).map(|_| now.moment);
        core.cure.read(core.disk.as_ref().unwrap_or(&Disk::NoData), now.moment);
        let mut out = Vec::new();
        core.adopt(found, now, &mut out);
        (core, out)
    }

    /// Never primary from memory: what was left is gone on with only when the
    /// guard still enforces the deadline of this very epoch.
    fn adopt(&mut self, found: Found, now: Now, out: &mut Vec<Effect>) {
        match found {
            Found::Nothing => {
                self.end_tenure((EndCause::Restarted, "nothing of it was left when the agent started"), now, out);
                self.tree_is_empty(out);
                self.end_unleased(out);
                // An intent that was left over: the survey put the signal file back.
                if self.durable.restart_intent.take().is_some() {
                    out.push(Effect::Persist);
                }
                if matches!(self.disk, Some(Disk::Present(_))) {
                    self.survey(true, out);
                }
            }
            Found::Running { pid, armed, remaining } => {
                self.tree = Tree::Running { pid };
                self.held = armed;
                match self.durable.tenure {
                    Some(tenure) if tenure.epoch == armed && !remaining.is_zero() => {
                        out.push(Effect::Hold(tenure));
                        if self.durable.restart_intent.is_some() {
                            self.start_work((0, tenure.epoch), Task::Restart { tenure, resume: true }, now, out);
                        }
                    }
                    // Granted, never held: it is still a standby.
                    Some(tenure) if tenure.phase == Phase::Granted && armed == Epoch(0) => {
                        out.push(Effect::Hold(tenure));
                    }
                    Some(_) => {
                        self.end_tenure((EndCause::Restarted, "its guard is not armed for it any more"), now, out)
                    }
                    None if armed != Epoch(0) => self.fence(now, out),
                    None => {}
                }
            }
        }
    }

    /// One event in, effects out.
    pub fn step(&mut self, event: Event, now: Now) -> Vec<Effect> {
        let mut out = Vec::new();
        match event {
            Event::Tick => {}
            Event::Identified(system) => self.system = Some(system),
            Event::Spawned { life } => self.on_spawned(life),
            Event::Guard { life, postmaster } if life == self.life => self.on_guard(postmaster, now, &mut out),
            Event::GuardDied { life } if life == self.life => self.on_guard_died(now, &mut out),
            Event::TreeKilled { life } if life == self.life => self.on_tree_killed(now, &mut out),
            Event::Lease(sight) => self.on_lease(sight, now, &mut out),
            Event::Clocks(clock) => self.on_clocks(clock),
            Event::Acks { life, view } if life == self.life => self.on_acks(view),
            Event::Uncovered { life, view } if life == self.life => self.uncovered = view,
            Event::Archive { life, seen } if life == self.life => self.on_archive(*seen, now),
            Event::Copied(method) => self.on_copied(method),
            Event::Borrowed(bytes) => self.came(bytes, now),
            Event::Lost(lost) => self.on_lost(lost, &mut out),
            Event::Briefed(briefing) => self.on_briefed(*briefing, now, &mut out),
            Event::StrayEnded => self.on_stray_ended(&mut out),
            Event::Failsafe { from, letter } => self.on_failsafe(&from, letter, now, &mut out),
            Event::Knocked { life, knock, waited } if life == self.life => {
                self.on_knocked(knock, waited, now, &mut out)
            }
            Event::Probed { life, result } if life == self.life => self.on_probed(result, now, &mut out),
            Event::Order(order) => self.on_order(order, now, &mut out),
            Event::Progress { phase, done, total } => self.on_progress(phase, (done, total), now),
            Event::Done(end) => self.on_done(end, now, &mut out),
            Event::Touched { place, touch, waited, patience } => {
                self.on_touched(place, touch, (waited, patience), now, &mut out);
            }
            Event::Room(space) => self.on_room(space, now, &mut out),
            Event::Kept(kept) => self.room.see_kept(kept, &self.settings, now.moment),
            Event::Redo { life, vitals, words } if life == self.life => self.on_redo(vitals, words, now, &mut out),
            Event::Surveyed { life, disk } if life == self.life => self.on_surveyed(disk, now, &mut out),
            Event::WalEndRead { life, end, history } if life == self.life => self.on_wal_end(end, history, &mut out),
            Event::WalEndUnread { life, error } if life == self.life && self.tree == Tree::Empty => {
                self.cure.no_end(error)
            }
            // News of an earlier postmaster.
            Event::Acks { .. }
            | Event::Archive { .. }
            | Event::Uncovered { .. }
            | Event::Guard { .. }
            | Event::GuardDied { .. }
            | Event::TreeKilled { .. }
            | Event::Knocked { .. }
            | Event::Redo { .. }
            | Event::Probed { .. }
            | Event::Surveyed { .. }
            | Event::WalEndRead { .. }
            | Event::WalEndUnread { .. } => {}
        }
        self.keep_time(now, &mut out);
        out
    }

    fn on_spawned(&mut self, life: u64) {
        self.life = life;
        self.sight = None;
        self.answered = false;
        (self.hung, self.turns_away) = (None, None);
        self.stuck.begin();
        self.cure.begin();
        self.volumes.found();
        self.disk = None;
        self.follows = None;
        self.archiving.forget();
        self.forget_acks();
        self.fencing_since = None;
        (self.wal_end_known, self.end_sought) = (false, false);
        self.problem = None;
        self.tree = Tree::Ending;
    }

    fn on_guard(&mut self, postmaster: Postmaster, now: Now, out: &mut Vec<Effect>) {
        if self.tree == Tree::Empty {
            // Nothing of this postmaster is left, and what says otherwise was said before.
            return;
        }
        match postmaster {
            Postmaster::Running { pid } => self.tree = Tree::Running { pid },
            Postmaster::Gone { tree_empty: false, .. } => {
                self.tree = Tree::Ending;
                self.sight = None;
            }
            Postmaster::Gone { tree_empty: true, fenced, exit } => self.on_gone(fenced, &exit, now, out),
        }
    }

    fn on_guard_died(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.tree == Tree::Empty {
            return;
        }
        self.tree = Tree::Ending;
        self.sight = None;
        self.problem = Some("the guard ended, its postmaster is no longer guarded".to_owned());
        self.fencing_since = Some(now.moment);
        out.push(Effect::KillTree);
        self.end_tenure((EndCause::GuardDied, "the guard ended"), now, out);
    }

    fn on_tree_killed(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.on_gone(true, "killed by the agent", now, out);
    }

    fn on_lease(&mut self, sight: LeaseSight, now: Now, out: &mut Vec<Effect>) {
        self.lease = sight;
        if sight.phase == LeasePhase::Held
            || sight.deadline != LeaseSight::default().deadline
            || sight.confirmed.is_some()
        {
            self.held = self.held.max(sight.epoch);
        }
        let Some(tenure) = self.durable.tenure.filter(|t| t.epoch == sight.epoch) else { return };
        match sight.phase {
            LeasePhase::Expired => self.end_tenure_of(tenure, (EndCause::Lease, "the lease ran out"), now, out),
            LeasePhase::Superseded => {
                self.end_or_let_go(tenure, (EndCause::Superseded, "a higher epoch was committed"), now, out)
            }
            LeasePhase::Idle | LeasePhase::Seeking | LeasePhase::Held => {}
        }
    }

    fn on_probed(&mut self, result: Result<Box<Sight>, String>, now: Now, out: &mut Vec<Effect>) {
        if !matches!(self.tree, Tree::Running { .. }) {
            return;
        }
        let sight = match result {
            Ok(sight) => *sight,
            Err(why) => {
                self.cure.refused(&why, now.moment);
                self.problem = Some(why);
                self.name_what_is_stuck(now);
                return;
            }
        };
        if !sight.in_recovery {
            let granted = self.durable.tenure.filter(|t| t.phase == Phase::Granted);
            let bare = self.durable.tenure.is_none() || (granted.is_some() && self.lease_left(now).is_zero());
            if bare && !self.is_unleased() {
                self.problem = Some("PostgreSQL was writable without a lease".to_owned());
                self.strayed = true;
                return match granted {
                    None => self.fence(now, out),
                    // The lease was not reached: somebody else promoted it.
                    Some(t) => self.end_tenure_of(
                        t,
                        (EndCause::PromotionFailed, "PostgreSQL was writable before the lease was held"),
                        now,
                        out,
                    ),
                };
            }
            if self.sight.as_ref().is_some_and(|last| !last.in_recovery && last.wal_end < sight.wal_end) {
                self.flushed = Some(now.moment);
            }
            out.push(Effect::SetWal(sight.wal_end));
        }
        self.problem = None;
        self.answered = true;
        // As a primary it is nobody's copy any more.
        if self.durable.fresh_copy && (sight.streaming || !sight.in_recovery) {
            self.durable.fresh_copy = false;
            out.push(Effect::Persist);
        }
        // A backup streams as well, under a name that is no member's.
        let is_member = |s: &&StandbyProgress| self.durable.members.agents.contains_key(&s.member);
        let streaming = sight.standbys.iter().filter(|s| s.state == "streaming");
        self.followers = streaming.clone().filter(is_member).count();
        if streaming.count() > 0 {
            self.followed = Some(now.moment);
        }
        if let Some((end, age)) = sight.upstream_end.filter(|_| !self.hears_a_standby(&sight)) {
            self.freshness.note(Moment(now.clocks.boot.saturating_sub(age)), end);
        }
        self.wal_end = sight.wal_end;
        self.wal_end_known = sight.wal_end_known;
        self.history = sight.history.clone();
        self.stuck.answered(&sight, now.moment);
        self.cure.answered(&sight);
        self.sight = Some(sight);
        self.name_what_is_stuck(now);
    }

    /// What it hears may be where a standby's WAL ends, and not the primary's, whose it was set beside.
    fn hears_a_standby(&self, sight: &Sight) -> bool {
        let from = self.follows.as_ref().or(sight.upstream.as_ref()).map(MemberId::as_str);
        self.durable.settings.of_member(&self.me).source().is_some_and(|source| from == Some(source))
    }

    fn on_room(&mut self, space: Space, now: Now, out: &mut Vec<Effect>) {
        let occupied = self.tree != Tree::Empty || matches!(self.disk, Some(Disk::Present(_)));
        let end = self.wal_end_known.then_some(self.wal_end.lsn);
        self.room.wal_ends(end.filter(|_| self.tree != Tree::Empty), now.moment);
        let todo = self.room.see(space, &self.settings, occupied, now.moment);
        out.extend(todo.into_iter().map(Effect::Reserve));
    }

    fn on_progress(&mut self, phase: String, (done, total): (u64, u64), now: Now) {
        if let Some(work) = &mut self.work {
            if work.shown.phase != phase {
                work.phase_began = now.moment;
            }
            let phase_ms = u64::try_from(now.moment.since(work.phase_began).as_millis()).unwrap_or(u64::MAX);
            work.shown.phase = phase;
            (work.shown.done_bytes, work.shown.total_bytes, work.shown.phase_ms) = (done, total, phase_ms);
        }
    }

    fn on_surveyed(&mut self, disk: Disk, now: Now, out: &mut Vec<Effect>) {
        if self.tree != Tree::Empty {
            return;
        }
        if let Disk::Present(facts) = &disk
            && let Some(end) = facts.proven_end
        {
            self.wal_end = end;
            self.wal_end_known = true;
            self.history = facts.history.clone();
        }
        if let Disk::Present(facts) = &disk {
            self.reigned = facts.proven_end.filter(|_| facts.was_primary).or(self.reigned);
            self.system = Some(facts.system_identifier);
        }
        self.unusable = disk.is_unusable().then_some(now.moment);
        self.cure.read(&disk, now.moment);
        self.strayed &= !self.wal_end_known;
        self.disk = Some(disk);
        self.note_stop_by_hand(out);
        // The survey put the signal file back, unless a restart in place is what runs.
        if !self.restarts() && self.durable.restart_intent.take().is_some() {
            out.push(Effect::Persist);
        }
        if std::mem::take(&mut self.stop_ended) {
            self.on_done(TaskEnd::Succeeded, now, out);
        }
        self.seek_the_end(out);
    }

    /// A survey that was asked for while the epoch could still go on didn't look for the end of WAL. Once the epoch has
    /// ended nothing else would.
    fn seek_the_end(&mut self, out: &mut Vec<Effect>) {
        let present = self.tree == Tree::Empty && matches!(self.disk, Some(Disk::Present(_)));
        let unsought = !self.wal_end_known && !self.end_sought;
        if present && unsought && self.durable.tenure.is_none() && !self.restarts() {
            self.survey(true, out);
        }
    }

    fn survey(&mut self, wal_end: bool, out: &mut Vec<Effect>) {
        self.end_sought |= wal_end;
        out.push(Effect::Survey { wal_end });
    }

    fn on_wal_end(&mut self, end: WalPosition, history: TimelineHistory, out: &mut Vec<Effect>) {
        if self.tree != Tree::Empty {
            return;
        }
        let news = !self.wal_end_known && self.durable.ended > Epoch(0) && self.durable.ended == self.durable.fenced;
        self.wal_end = end;
        self.wal_end_known = true;
        self.cure.found_end();
        self.strayed = false;
        self.history = history;
        let was_primary = matches!(&self.disk, Some(Disk::Present(f)) if f.was_primary);
        // The first notice came with what was known then; this one has the position itself.
        self.reigned = was_primary.then_some(end).or(self.reigned);
        if news && was_primary && self.durable.tenure.is_none() {
            out.push(Effect::Notice(self.notice(self.durable.ended, true, false)));
        }
    }

    fn on_done(&mut self, end: TaskEnd, now: Now, out: &mut Vec<Effect>) {
        let Some(work) = self.work.take() else { return };
        let error = match &end {
            TaskEnd::Succeeded if matches!(work.task, Task::Start(_)) => self.failed_start(),
            TaskEnd::Succeeded => None,
            TaskEnd::Failed { error, .. } => Some(self.stalled.clone().unwrap_or_else(|| error.clone())),
        };
        self.content_ended(&work.task, &end, now);
        match (&work.task, &end) {
            (Task::Promote(tenure), _) => self.promoted(*tenure, &end, now, out),
            (Task::Restart { tenure, .. }, _) => self.restarted(*tenure, &end, now, out),
            (Task::Stop { keep_lease, .. }, _) => {
                let keep_lease = *keep_lease;
                if self.tree == Tree::Empty && self.disk.is_none() {
                    // Whether it was clean is in pg_control, which is being read: the work ends with that.
                    self.work = Some(work);
                    self.stop_ended = true;
                    return;
                }
                self.stopped(keep_lease, now, out);
            }
            // Somebody else was at work in the data directory: it was not tried.
            (Task::Clone(_) | Task::Rewind(_), TaskEnd::Failed { harmless: true, .. }) => {}
            (Task::Rewind(_), TaskEnd::Succeeded) => self.durable.rewind_failures = 0,
            (Task::Rewind(_), TaskEnd::Failed { error, .. }) => self.rewind_failed(error),
            (Task::Clone(source), TaskEnd::Succeeded) => {
                if source.named.is_some() {
                    self.durable.copied_for = work.shown.order;
                }
                self.copied_anew(now);
            }
            (Task::Clone(_), TaskEnd::Failed { error, .. }) if error == orders::GIVEN_UP => {}
            (Task::Clone(_), TaskEnd::Failed { .. }) => {
                self.durable.clone_failures += 1;
                self.clone_failed = Some(now.moment);
            }
            (Task::Checkpoint, TaskEnd::Succeeded) => self.checkpoints_done = work.shown.order,
            (Task::Start(source) | Task::Follow(source), TaskEnd::Succeeded) => {
                self.follows = source.as_ref().map(|s| s.member.clone());
                self.follows_epoch = work.epoch;
            }
            (Task::Start(_), TaskEnd::Failed { error, .. }) if self.tree == Tree::Empty => self.cure.not_started(error),
            (Task::Initdb | Task::Start(_) | Task::Follow(_) | Task::TakeIn(_) | Task::Checkpoint, _) => {}
        }
        if matches!(work.task, Task::Rewind(_) | Task::Clone(_)) {
            out.push(Effect::Persist);
            // It could not even be stopped, for its guard is silent. What has WAL of its own streams no further, from
            // whomever it follows: a fence ends it whatever the guard does.
            if self.tree != Tree::Empty && work.epoch == self.durable.accepted && self.durable.tenure.is_none() {
                self.fence(now, out);
            }
        }
        if matches!(work.task, Task::Initdb) && self.tree == Tree::Empty && running::is_harmless(&end) {
            self.end_unleased(out);
        }
        let touched = work.task.touches_data();
        if touched && self.tree == Tree::Empty {
            // What was known of the directory is no longer true: nothing is said of it until it is read again.
            self.disk = None;
            self.wal_end_known = false;
            self.survey(true, out);
        }
        let late = matches!(work.task, Task::Promote(_)) && self.ended_by == EndCause::PromotionLate;
        if late && self.tree == Tree::Empty {
            // It may have written its files after they were made safe.
            self.survey(!self.wal_end_known, out);
        }
        self.last_order = Some(OrderResult { order: work.shown.order, kind: work.shown.kind, error });
    }

    fn stopped(&mut self, keep_lease: bool, now: Now, out: &mut Vec<Effect>) {
        let Some(tenure) = self.durable.tenure else { return };
        if self.tree != Tree::Empty {
            return self.end_tenure_of(tenure, (EndCause::Stuck, "it could not be stopped"), now, out);
        }
        if !keep_lease {
            return self.end_tenure_of(tenure, (EndCause::Ordered, "it was stopped by an order"), now, out);
        }
        let clean = matches!(&self.disk, Some(Disk::Present(f)) if f.clean_shutdown);
        self.set_phase(if clean { Phase::Stopped } else { Phase::Crashed });
        self.idle_since = Some(now.moment);
        if !clean {
            out.push(Effect::Notice(self.notice(tenure.epoch, false, false)));
        }
    }

    /// Rules that only time can wake.
    fn keep_time(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.forget_promise(now, out);
        self.forget_pause(now);
        if let Some(tenure) = self.durable.tenure
            && self.lease.epoch == tenure.epoch
            && self.lease.phase == LeasePhase::Held
            && self.lease_left(now).is_zero()
        {
            self.end_tenure_of(tenure, (EndCause::Lease, "the lease's deadline passed"), now, out);
        }
        if let (Some(since), Some(tenure), false) = (self.idle_since, self.durable.tenure, self.restarts())
            && !self.waits_for(since)
            && now.moment.since(since) >= self.limits.primary_start
        {
            self.end_tenure_of(tenure, (EndCause::Crash, "it did not run again within the time for a start"), now, out);
        }
        if let Some(since) = self.fencing_since
            && self.tree != Tree::Empty
            && now.moment.since(since) >= self.limits.kill
        {
            self.fencing_since = Some(now.moment);
            out.push(Effect::KillTree);
            // What can't be killed is not restarted either; its disk may hang. Where nobody would take over it is waited for.
            if let Some(tenure) = self.durable.tenure
                && self.is_followed(now)
                && !self.waits_for_ever()
                && let Some(why) = self.hung.take()
            {
                self.end_tenure_of(tenure, (EndCause::Hung, &why), now, out);
            }
        }
        self.end_late_promotion(now, out);
        if let Some(tenure) = self.durable.tenure
            && tenure.phase == Phase::Granted
            && self.work.is_none()
            && self.lease_left(now) > Duration::ZERO
        {
            // Granted to an agent that was restarted on the way: go on from where it was.
            self.start_work((0, tenure.epoch), Task::Promote(tenure), now, out);
        }
        self.try_again(now, out);
    }

    /// What failed for a reason that may be over is tried again without anybody's help, and seldom.
    fn try_again(&mut self, now: Now, out: &mut Vec<Effect>) {
        let due = |since: Option<Moment>, pause| since.is_some_and(|at| now.moment.since(at) >= pause);
        if self.work.is_some() {
            return;
        }
        let forget = if self.content.waits_for_a_look() { content::LOOK_AGAIN } else { FORGET_CLONE };
        if due(self.clone_failed, forget) {
            self.durable.clone_failures = self.durable.clone_failures.saturating_sub(1);
            self.clone_failed = (self.durable.clone_failures > 0).then_some(now.moment);
            out.push(Effect::Persist);
        }
        let soon = if self.cure.is_suspect() { cure::READ_SOON } else { READ_AGAIN };
        let pause = self.content_waits().unwrap_or(soon);
        if self.tree == Tree::Empty && due(self.unusable, pause) {
            self.unusable = Some(now.moment);
            self.survey(self.durable.tenure.is_none(), out);
        }
    }

    fn end_tenure(&mut self, why: (EndCause, &str), now: Now, out: &mut Vec<Effect>) {
        if let Some(tenure) = self.durable.tenure {
            self.end_tenure_of(tenure, why, now, out);
        }
    }

    /// Ends the epoch on this host for good: fence and renew no more, for neither may wait for a disk, then persist,
    /// and only when both the disk and the empty tree say so the notice.
    fn end_tenure_of(&mut self, tenure: Tenure, (cause, why): (EndCause, &str), now: Now, out: &mut Vec<Effect>) {
        self.ended_by = cause;
        tracing::warn!(epoch = %tenure.epoch, cause = cause.name(), why, "the epoch ends on this host");
        self.fence(now, out);
        self.note_ending(tenure);
        self.durable.tenure = None;
        self.durable.ended = self.durable.ended.max(tenure.epoch);
        self.idle_since = None;
        out.extend([Effect::Release, Effect::Persist]);
        self.tree_is_empty(out);
        if self.tree == Tree::Empty && self.disk.is_some() && !self.wal_end_known {
            self.survey(true, out);
        }
    }

    fn fence(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.tree == Tree::Empty {
            return;
        }
        self.fencing_since.get_or_insert(now.moment);
        out.push(Effect::Fence);
    }

    /// Tells about an ended epoch once nothing of its tree is left.
    fn tree_is_empty(&mut self, out: &mut Vec<Effect>) {
        // While a restart in place is under way the tree is empty only for now; its end tells.
        if self.tree != Tree::Empty || self.restarts() || self.durable.ended <= self.durable.fenced {
            return;
        }
        let epoch = self.durable.ended;
        self.durable.fenced = epoch;
        let clean = self.wal_end_known && matches!(&self.disk, Some(Disk::Present(f)) if f.clean_shutdown);
        out.push(Effect::Persist);
        out.push(Effect::Notice(self.notice(epoch, true, clean)));
    }

    fn notice(&self, epoch: Epoch, fenced: bool, clean: bool) -> Notice {
        let cause = if epoch == self.durable.ended { self.ended_by } else { EndCause::Unknown };
        Notice { member: self.me.clone(), epoch, fenced, end: self.wal_end, clean, cause }
    }

    fn set_phase(&mut self, phase: Phase) {
        if let Some(tenure) = &mut self.durable.tenure {
            tenure.phase = phase;
        }
    }

    /// A restart in place is under way: a postmaster may come up at any moment.
    pub fn restarts(&self) -> bool {
        matches!(&self.work, Some(w) if matches!(w.task, Task::Restart { .. }))
    }
}
