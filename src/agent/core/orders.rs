//! Which orders are carried out, which are refused and why.

use super::{Core, Disk, Effect, Now, Refusal, Running, Sight, Task, Tree};
use crate::{
    agent::{
        order::{Action, Order, Source},
        store::{Phase, Tenure},
    },
    domain::{
        EndCause, Epoch, Moment, TimelineHistory, TimelineId, WalPosition,
        observation::{OrderResult, REWINDS_TRIED, Work},
    },
};

/// `Ok(true)`: accepted and something begins; `Ok(false)`: accepted, nothing is left to do.
type Verdict = Result<bool, String>;

/// Why a copy ended that an operator did not want now.
pub(super) const GIVEN_UP: &str = "given up, for the member is in maintenance";

impl Core {
    pub(super) fn on_order(&mut self, order: Order, now: Now, out: &mut Vec<Effect>) {
        if let Some(briefing) = order.briefing.clone() {
            self.on_briefed(*briefing, now, out);
        }
        let result = self.pass_gate(&order, now, out).and_then(|()| {
            let verdict = self.carry_out(&order, now, out);
            verdict.map_err(|reason| Refusal { reason, highest_epoch: self.durable.accepted })
        });
        if result == Ok(false) {
            let kind = order.action.kind().to_owned();
            self.last_order = Some(OrderResult { order: order.id, kind, error: None });
        }
        out.push(Effect::Reply(result.map(|_| ())));
    }

    /// The epoch gate: an old order is refused, a newer epoch is on disk before
    /// anything is done in its name, and ends what an older one left.
    fn pass_gate(&mut self, order: &Order, now: Now, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        let accepted = self.durable.accepted;
        if order.epoch < accepted {
            let reason = format!("order of epoch {} refused, this member has seen epoch {accepted}", order.epoch);
            return Err(Refusal { reason, highest_epoch: accepted });
        }
        if order.epoch > accepted {
            self.durable.accepted = order.epoch;
            self.give_up_rewinding();
            self.cure.another_primary();
            out.push(Effect::Persist);
            if let Some(tenure) = self.durable.tenure.filter(|t| t.epoch < order.epoch) {
                self.end_or_let_go(tenure, (EndCause::Superseded, "an order came with a higher epoch"), now, out);
            }
            self.drop_overtaken_work(order.epoch, out);
        }
        Ok(())
    }

    /// A rewind that was cut off, or goes on while the epoch changes, was decided for the primary of an earlier epoch. The
    /// present one may have begun a timeline of a number that this directory has from elsewhere, and what could tell them
    /// apart may be overwritten already. It is cloned, unless that rewind still succeeds.
    fn give_up_rewinding(&mut self) {
        let under_way = self.work.as_ref().is_some_and(|w| matches!(w.task, Task::Rewind(_)));
        let cut_off = self.tree == Tree::Empty
            && match &self.disk {
                Some(Disk::Present(facts)) => facts.rewind_unfinished,
                Some(Disk::NoData | Disk::Damaged(_) | Disk::Unusable(_)) => false,
                // It is being read.
                None => self.durable.rewind_failures > 0,
            };
        if under_way || cut_off {
            self.durable.rewind_failures = self.durable.rewind_failures.max(REWINDS_TRIED);
        }
    }

    /// A copy of a source that is primary no more would only be thrown away.
    fn drop_overtaken_work(&self, epoch: Epoch, out: &mut Vec<Effect>) {
        if let Some(Running { epoch: older, task: Task::Clone(_), .. }) = &self.work
            && *older < epoch
        {
            out.push(Effect::Cancel("a newer epoch overtook it"));
        }
    }

    /// As an operator wants it: no failure, so it may begin again at any time.
    fn end_clone(&mut self, out: &mut Vec<Effect>) {
        if let Some(Running { task: Task::Clone(_), shown, .. }) = &mut self.work {
            GIVEN_UP.clone_into(&mut shown.phase);
            out.push(Effect::Cancel(GIVEN_UP));
        }
    }

    fn carry_out(&mut self, order: &Order, now: Now, out: &mut Vec<Effect>) -> Verdict {
        self.same_system(order.system_identifier)?;
        if order.action == Action::EndClone {
            self.end_clone(out);
            return Ok(false);
        }
        if let Some(work) = &self.work {
            return Err(format!("busy with order {} ({}, {})", work.shown.order, work.shown.kind, work.shown.phase));
        }
        let task = match &order.action {
            Action::Initdb => {
                let task = self.initdb()?;
                self.begin_unleased(out);
                task
            }
            Action::StartStandby(source) if self.follows_already(source.as_ref()) => return Ok(false),
            Action::StartStandby(source) => self.start_standby(source.clone(), order.own_timeline, now, out)?,
            Action::Promote { timeline, floor } => match self.promote((order.epoch, *timeline), *floor, now, out)? {
                Some(task) => {
                    self.wal_holder.clone_from(&order.last);
                    task
                }
                None => return Ok(false),
            },
            Action::RestartInPlace { timeline } => self.restart_in_place(order.epoch, *timeline, now, out)?,
            Action::Stop { mode, keep_lease } => {
                if self.tree == Tree::Empty {
                    return Ok(self.stop_what_is_stopped(*keep_lease, now, out));
                }
                Task::Stop { mode: *mode, keep_lease: *keep_lease }
            }
            Action::Rewind(source) => {
                self.give_up_idle_tenure("rewind", now, out)?;
                self.complete_data("rewind")?;
                self.may_rewind()?;
                Task::Rewind(source.clone())
            }
            Action::Clone(source) => {
                self.give_up_idle_tenure("clone", now, out)?;
                if self.content.takes_in() {
                    Task::TakeIn(source.clone())
                } else {
                    self.say_why_it_is_copied();
                    Task::Clone(source.clone())
                }
            }
            Action::EndClone => return Ok(false),
            Action::Checkpoint => {
                if self.sight.is_none() {
                    return Err("PostgreSQL doesn't answer, no checkpoint can be asked for".to_owned());
                }
                Task::Checkpoint
            }
        };
        self.start_work((order.id, order.epoch), task, now, out);
        Ok(true)
    }

    pub(super) fn start_work(&mut self, (order, epoch): (u64, Epoch), task: Task, now: Now, out: &mut Vec<Effect>) {
        if matches!(task, Task::Promote(_) | Task::Restart { .. }) {
            self.stuck.forget_redo();
        }
        if matches!(task, Task::Start(Some(_)) | Task::Follow(Some(_))) {
            self.note_that_nothing_is_lost();
        }
        if let Task::Follow(Some(source)) = &task
            && self.upstream().is_some_and(|last| *last != source.member)
        {
            // What one has removed another may still have.
            self.cure.another_primary();
        }
        if matches!(task, Task::Start(_) | Task::Follow(_)) {
            // One that fails half-way leaves it pointed at either: what it really follows is seen then.
            self.follows = None;
            self.stuck.follow();
        }
        if !matches!(task, Task::Stop { .. } | Task::Checkpoint) && std::mem::take(&mut self.durable.stopped_by_hand) {
            out.push(Effect::Persist);
        }
        if matches!(task, Task::Clone(_)) && !std::mem::replace(&mut self.durable.fresh_copy, true) {
            // From here on the directory may be the copy, and whoever finds it must know that.
            out.push(Effect::Persist);
        }
        if matches!(
            task,
            Task::Initdb
                | Task::Promote(_)
                | Task::Rewind(_)
                | Task::Clone(_)
                | Task::Start(Some(_))
                | Task::Follow(Some(_))
        ) {
            self.forget_wal_left();
        }
        let shown = Work { order, kind: task.kind().to_owned(), phase: "begins".to_owned(), ..Work::default() };
        out.push(Effect::Begin(task.clone()));
        self.work = Some(Running { epoch, task, shown, began: now.moment, phase_began: now.moment });
    }

    /// A data directory of another cluster is never touched.
    fn same_system(&self, wanted: Option<u64>) -> Result<(), String> {
        let Some(wanted) = wanted else { return Ok(()) };
        match self.system_identifier() {
            Some(ours) if ours != wanted => {
                Err(format!("the data directory is of system {ours}, the cluster's is {wanted}"))
            }
            _ => Ok(()),
        }
    }

    fn initdb(&self) -> Result<Task, String> {
        if let Some(why) = self.content_given_up() {
            return Err(why);
        }
        match (&self.tree, &self.disk) {
            (Tree::Empty, Some(Disk::NoData)) => Ok(Task::Initdb),
            _ => Err("initdb runs only where there is no data directory or an empty one".to_owned()),
        }
    }

    /// An order that was made before the one like it was seen to be carried out. What it was made on is over: with another
    /// timeline it would fail, and nothing would follow to make that good.
    fn follows_already(&self, source: Option<&Source>) -> bool {
        let runs = matches!(self.tree, Tree::Running { .. }) && self.fencing_since.is_none() && !self.strayed;
        let streams = self.sight.as_ref().is_some_and(|s| s.in_recovery && s.streaming);
        let same = source.is_some_and(|s| self.follows.as_ref() == Some(&s.member));
        runs && streams && same && self.follows_epoch == self.durable.accepted && self.durable.tenure.is_none()
    }

    fn start_standby(
        &mut self,
        source: Option<Source>,
        decided_on: Option<TimelineId>,
        now: Now,
        out: &mut Vec<Effect>,
    ) -> Result<Task, String> {
        if self.is_unleased() && self.tree != Tree::Empty {
            return Err("what runs was taken over and goes on running".to_owned());
        }
        self.give_up_idle_tenure("start as a standby", now, out)?;
        if source.as_ref().is_some_and(|s| s.member == self.me) {
            return Err("a member can't follow itself".to_owned());
        }
        if self.strayed && source.is_some() {
            // Whoever ordered this did not know; it may have taken the number of the timeline that it is to follow.
            return Err("PostgreSQL was writable without a lease; what it has is read first".to_owned());
        }
        let follows = matches!(self.tree, Tree::Running { .. }) && self.fencing_since.is_none();
        if follows {
            let on = self.sight.as_ref().map(|s| s.wal_end.timeline);
            if let (Some(_), Some(on), Some(decided_on)) = (&source, on, decided_on)
                && on != decided_on
            {
                return Err(format!("its WAL is on timeline {on}, the order was made when it was on {decided_on}"));
            }
            let same = source.as_ref().is_some_and(|s| self.follows.as_ref() == Some(&s.member));
            self.follows_on = same && self.follows_epoch == self.durable.accepted;
            return Ok(Task::Follow(source));
        }
        self.complete_data("start")?;
        if source.as_ref().is_some_and(|s| s.fork.is_some()) && !self.wal_end_known {
            // Somebody may have promoted it by hand before it ended, to the very number that it is to follow.
            return Err("where its WAL ends is read first".to_owned());
        }
        let fork = source.as_ref().and_then(|s| s.fork).filter(|fork| self.wal_end > *fork);
        if let (Some(fork), Some(source)) = (fork, &source) {
            return Err(format!("its WAL ends at {}, that of {} parts from it at {fork}", self.wal_end, source.member));
        }
        Ok(Task::Start(source))
    }

    /// `None`: it is primary of this epoch already.
    fn promote(
        &mut self,
        (epoch, timeline): (Epoch, TimelineId),
        floor: WalPosition,
        now: Now,
        out: &mut Vec<Effect>,
    ) -> Result<Option<Task>, String> {
        if epoch <= self.durable.ended {
            return Err(format!("epoch {epoch} has ended on this host"));
        }
        if let Some(tenure) = self.durable.tenure {
            return match tenure.phase {
                Phase::Primary => Ok(None),
                Phase::Granted => Ok(Some(Task::Promote(tenure))),
                Phase::Crashed | Phase::Stopped => Err("it holds the lease and is to be restarted in place".to_owned()),
            };
        }
        if self.is_unleased() && self.tree != Tree::Empty {
            return self.bind((epoch, timeline), floor, now, out).map(Some);
        }
        if let Some(why) = self.may_not_be_promoted(now) {
            return Err(why);
        }
        let standby = matches!(self.tree, Tree::Running { .. }) && self.fencing_since.is_none();
        match &self.sight {
            Some(sight) if standby && sight.in_recovery => {
                if timeline <= sight.wal_end.timeline {
                    // The grant was to let it go on running, and it has ended since: its promotion would take the next number.
                    return Err(format!(
                        "it is on timeline {} already, and is to begin {timeline}",
                        sight.wal_end.timeline
                    ));
                }
                is_as_granted(sight, floor)?;
            }
            _ => return Err("only a running standby that answers is promoted".to_owned()),
        }
        self.begin_sync(epoch)?;
        let tenure = Tenure { epoch, timeline, floor, phase: Phase::Granted };
        self.durable.tenure = Some(tenure);
        self.granted = now.moment;
        out.push(Effect::Persist);
        Ok(Some(Task::Promote(tenure)))
    }

    fn restart_in_place(
        &mut self,
        epoch: Epoch,
        timeline: TimelineId,
        now: Now,
        out: &mut Vec<Effect>,
    ) -> Result<Task, String> {
        let tenure = self.durable.tenure.filter(|t| t.epoch == epoch);
        let Some(tenure) = tenure else { return Err(format!("this host doesn't hold epoch {epoch}")) };
        if !matches!(tenure.phase, Phase::Crashed | Phase::Stopped) || self.tree != Tree::Empty {
            return Err("only a crashed or stopped primary is restarted in place".to_owned());
        }
        if tenure.timeline != timeline {
            return Err(format!("its grant is for timeline {}, not {timeline}", tenure.timeline));
        }
        let left = self.lease_left(now);
        if left < self.limits.hold / 2 {
            return Err(format!("only {} ms of the lease are left", left.as_millis()));
        }
        if let Some(why) = self.volumes.forbid_a_start() {
            return Err(format!("PostgreSQL can't be started now: {why}"));
        }
        self.durable.restart_intent = Some(epoch);
        out.push(Effect::Persist);
        Ok(Task::Restart { tenure, resume: false })
    }

    /// A stop of what doesn't run: at most the lease is to be given up.
    fn stop_what_is_stopped(&mut self, keep_lease: bool, now: Now, out: &mut Vec<Effect>) -> bool {
        if !keep_lease {
            self.end_tenure((EndCause::Ordered, "it was ordered to stop"), now, out);
        }
        false
    }

    /// Orders that make a standby of it end a tenure that has no process. One
    /// that runs ends by a higher epoch or a stop only: an order composed before
    /// the grant of the same epoch may still be on its way.
    fn give_up_idle_tenure(&mut self, what: &str, now: Now, out: &mut Vec<Effect>) -> Result<(), String> {
        match self.durable.tenure {
            None => Ok(()),
            Some(t) if matches!(t.phase, Phase::Crashed | Phase::Stopped) && self.tree == Tree::Empty => {
                self.end_tenure_of(t, (EndCause::Ordered, "it was ordered back among the standbys"), now, out);
                Ok(())
            }
            Some(t) => Err(format!("won't {what}: it holds epoch {}", t.epoch)),
        }
    }

    /// Half of a rewind is undone by another one only in the epoch it was begun in, and not for ever.
    fn may_rewind(&self) -> Result<(), String> {
        let half = matches!(&self.disk, Some(Disk::Present(facts)) if facts.rewind_unfinished);
        match half && self.durable.rewind_failures >= REWINDS_TRIED {
            true => Err("a rewind was cut off, of an earlier epoch or more than once; clone".to_owned()),
            false => Ok(()),
        }
    }

    fn complete_data(&self, what: &str) -> Result<(), String> {
        match &self.disk {
            Some(Disk::NoData) => Err(format!("can't {what}: there is no data directory")),
            Some(Disk::Damaged(why) | Disk::Unusable(why)) => Err(format!("can't {what}: {why}")),
            Some(Disk::Present(f)) if f.rewind_unfinished && what == "start" => {
                Err("can't start: a rewind was cut off; rewind again or clone".to_owned())
            }
            Some(Disk::Present(_)) if self.is_out_of_reach() && what == "start" => {
                Err("can't start: it would have to replay WAL past the end of a timeline; clone".to_owned())
            }
            Some(Disk::Present(_)) => Ok(()),
            // It runs, or has just ended and is being read.
            None => Ok(()),
        }
    }

    /// The cluster's identity as PostgreSQL knows it here.
    pub fn system_identifier(&self) -> Option<u64> {
        match &self.disk {
            Some(Disk::Present(facts)) => Some(facts.system_identifier),
            Some(Disk::NoData) => None,
            Some(Disk::Damaged(_) | Disk::Unusable(_)) | None => self.system,
        }
    }

    /// How long the tenure has had no process.
    pub fn idle_since(&self) -> Option<Moment> {
        self.idle_since
    }
}

/// True when an instance whose WAL ends at `end` has all WAL up to `floor`.
pub fn covers(history: &TimelineHistory, end: WalPosition, floor: WalPosition) -> bool {
    if floor.timeline == TimelineId(0) {
        return true;
    }
    history.includes(floor) && end.timeline >= floor.timeline && (end.timeline > floor.timeline || end.lsn >= floor.lsn)
}

/// Whether a standby is what the grant was decided on: it has all WAL up to `floor`, and none of a timeline that
/// began after that one. Such a timeline is of a promotion the log may know nothing of; a successor that grew out of
/// it would leave a hole in the lineage, and nobody would be on the cluster's history any more.
///
/// # Errors
/// What it has, and what the grant wants.
pub fn is_as_granted(sight: &Sight, floor: WalPosition) -> Result<(), String> {
    let newer = floor.timeline != TimelineId(0) && sight.wal_end.timeline != floor.timeline;
    match covers(&sight.history, sight.wal_end, floor) && !newer {
        true => Ok(()),
        false => Err(format!("its WAL ends at {}, the grant wants {floor}", sight.wal_end)),
    }
}

/// True when the history after a promotion is the one before it plus the timeline it was on.
pub fn grows_from(after: &TimelineHistory, before: &Sight, tenure: &Tenure) -> bool {
    if !before.in_recovery {
        // Promoted by an agent that is no more; what can still be checked is the floor.
        return covers(after, WalPosition { timeline: after.timeline, lsn: before.wal_end.lsn }, tenure.floor);
    }
    let Some((last, older)) = after.switches.split_last() else { return false };
    older == before.history.switches.as_slice()
        && last.timeline == before.wal_end.timeline
        && last.end >= before.replay_lsn
}
