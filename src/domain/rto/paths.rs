//! The sums behind the figures: what is waited for, its phases, and the phases of
//! each path of `faults.rs`.
//!
//! Each sum names the code it was taken from. Clocks of two hosts may differ by
//! rho; what one host counts takes `1/(1+rho)` to `1/(1-rho)` of it elsewhere.

use std::time::Duration;

use super::{Effect, Latencies, Network, Phase, Spread};
use crate::domain::{FailoverWait, OnPrimaryCrash, Settings, SyncMode, Timings};

/// So many deadlines may be unanswered before a guard counts as stalled (`guard::link`).
const DEADLINES_UNANSWERED: u32 = 2;
/// A new connection, and a write to each disk, is begun this often in the time that one may take (`agent::prober`).
const KNOCKS: u32 = 3;
/// An agent that has something to end looks this often whether it has (`agent::process`).
const TICK_URGENT: Duration = Duration::from_millis(50);
/// The same order is given again after this long at the earliest (`manager::host`).
const EFFECT: Duration = Duration::from_millis(300);
/// After a failed order; doubled with each in a row (`manager::host`).
const BACKOFF: Duration = Duration::from_millis(500);
/// At most this.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Free space, and recovery, are looked at this often (`agent::room`, `agent::redo`).
const LOOK: Duration = Duration::from_secs(1);
/// A primary whose disk is full does not wait longer for a checkpoint (`policy::room`).
const HURRY: Duration = Duration::from_secs(3);
/// A hold is looked at again after this long (`manager::leader`).
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// All that a formula may use.
pub(super) struct Sums<'a> {
    pub timings: &'a Timings,
    pub settings: &'a Settings,
    pub latencies: &'a Latencies,
    pub network: Network,
}

// ---- waits ---------------------------------------------------------------------------------------------------

impl Sums<'_> {
    /// What one clock measures as `count`, by another: `elsewhere` says how it can come out.
    fn by_other_clock(&self, count: Duration) -> Spread {
        let rho = f64::from(self.timings.drift_permille) / 1_000.0;
        Spread { best: count.div_f64(1.0 + rho), average: count, worst: count.div_f64(1.0 - rho) }
    }

    fn one_way(&self) -> Spread {
        self.network.round_trip.half()
    }

    fn round_trips(&self, halves: u32) -> Spread {
        self.network.round_trip.each(|d| d * halves / 2)
    }

    /// How long ago the last renewal was sent when something happens.
    fn renewal_age(&self) -> Spread {
        Spread { best: self.timings.renew, average: self.timings.renew / 2, worst: Duration::ZERO }
    }

    /// Each voter keeps its promise for T_grant from the receipt, by the slower of its two clocks; a majority has to be
    /// free (`lease::acceptor`, rule 330).
    pub(super) fn promises_end(&self) -> Spread {
        let grant = self.by_other_clock(self.timings.grant);
        let arrives = Spread { worst: self.one_way().worst, ..Spread::default() };
        grant.beyond(self.renewal_age()).plus(arrives)
    }

    /// The holder's own end: T_hold from the sending of the last renewal that counted (`lease::holder`).
    fn hold_ends(&self) -> Spread {
        self.by_other_clock(self.timings.hold).beyond(self.renewal_age())
    }

    /// openraft waits the leader lease, which is election_max, and then its own election time-out. The first of two
    /// followers draws a third of the range on average; a split vote costs one time-out more.
    fn elected(&self) -> Spread {
        let Timings { heartbeat, election_min, election_max, .. } = *self.timings;
        let range = election_max.saturating_sub(election_min);
        let silence = Spread {
            best: (election_max + election_min).saturating_sub(heartbeat),
            average: (election_max + election_min + range / 3).saturating_sub(heartbeat / 2),
            worst: election_max * 3,
        };
        // A vote before the vote, the vote, and the first reports.
        silence.plus(self.round_trips(5)).plus(self.latencies.commit).plus(self.latencies.reports)
    }

    fn killed(&self) -> Spread {
        let Latencies { kill, .. } = *self.latencies;
        Spread { best: kill.best, average: kill.average.min(self.timings.kill), worst: self.timings.kill }
    }

    /// A member that was heard of just now and has not told its end of WAL is waited for; one that is lost is not.
    fn collected(&self, expected: bool) -> Spread {
        let lately = self.timings.report + self.timings.rpc >= self.promises_end().best;
        let worst = if expected || lately { self.timings.collect } else { Duration::ZERO };
        Spread { worst, ..Spread::default() }
    }
}

// ---- phases --------------------------------------------------------------------------------------------------

fn phase(name: &'static str, spread: Spread, formula: &'static str) -> Phase {
    Phase { name, spread, formula }
}

impl Sums<'_> {
    fn lease(&self) -> Phase {
        phase("lease", self.promises_end(), "T_grant - age of the last renewal (0 to renew), clocks off by rho")
    }

    fn is_outvoted(&self) -> bool {
        self.settings.failover_wait == FailoverWait::Promise && self.settings.waits_always()
    }

    /// What is waited for when nothing is heard of a primary any more, but by the leader until now. Standbys can outvote it
    /// once a majority has heard nothing for half of a promise and the leader no report (rule 332); they leave it while the
    /// voters seal.
    fn unheard(&self) -> Vec<Phase> {
        if !self.is_outvoted() {
            return vec![self.lease()];
        }
        let quiet = self.quiet();
        let report = self.missing_report(&quiet);
        vec![quiet, report, self.leave()]
    }

    /// The same where the leader is lost with it: the next one never had a report of its host.
    fn unheard_with_leader(&self) -> Vec<Phase> {
        let first = if self.is_outvoted() { self.quiet() } else { self.lease() };
        let election = self.election(std::slice::from_ref(&first), Duration::ZERO);
        let mut phases = vec![first, election];
        phases.extend(self.is_outvoted().then(|| self.leave()));
        phases
    }

    fn quiet(&self) -> Phase {
        let half = self.by_other_clock(self.timings.grant / 2).beyond(self.renewal_age());
        let late =
            Spread { best: Duration::ZERO, average: self.one_way().average, worst: self.one_way().worst + LOOK_AGAIN };
        phase("quiet", half.plus(late), "T_grant / 2 - age of the last renewal (0 to renew), clocks off by rho")
    }

    /// A manager reports once in `report`; one of which nothing came for as long as a report may take is not heard
    /// (`policy::outvoted`). What that takes longer than `quiet`, on average over reports of any age.
    fn missing_report(&self, quiet: &Phase) -> Phase {
        let Timings { grant, report, rpc, .. } = *self.timings;
        let silent = self.by_other_clock((grant / 2).max(report + rpc));
        let youngest = silent.worst + self.one_way().worst + LOOK_AGAIN;
        let left = silent.average.saturating_sub(quiet.spread.average);
        // It ends at any moment of the last `report` of `silent`: the part of it that is after `quiet`.
        let average = match report {
            _ if left >= report => left - report / 2,
            report => left.mul_f64(left.as_secs_f64() / report.as_secs_f64() / 2.0),
        };
        let spread = Spread {
            best: silent.best.saturating_sub(report).saturating_sub(quiet.spread.best),
            average,
            worst: youngest.saturating_sub(quiet.spread.worst),
        };
        phase(
            "report",
            spread,
            "max(T_grant / 2, report + rpc) since the leader's last report of its host (0 to report), as far as it \
             outlasts the phase before",
        )
    }

    fn leave(&self) -> Phase {
        let spread = self.latencies.leave.plus(self.round_trips(3));
        phase("leave", spread, "as many standbys as a promotion hears leave it, and say where their WAL ends")
    }

    /// What the election takes longer than all of `meanwhile`.
    fn election(&self, meanwhile: &[Phase], silent: Duration) -> Phase {
        let other = meanwhile.iter().fold(Spread::default(), |sum, p| sum.plus(p.spread));
        let elected = self.elected();
        let silence = Spread { worst: silent, average: silent, ..Spread::default() };
        phase(
            "election",
            elected.plus(silence).beyond(other),
            "election_max and a time-out, as far as they outlast the phases before",
        )
    }

    fn kill(&self) -> Phase {
        phase("kill", self.killed(), "the whole process tree, verified; at most T_kill")
    }

    /// The voters learn that the epoch has ended, and the leader commits it (rule 110).
    fn release(&self) -> Phase {
        let Latencies { notice, commit, .. } = *self.latencies;
        let spread = notice.plus(commit).plus(self.round_trips(3));
        phase("release", spread, "the end made durable, a notice to the voters, one commit")
    }

    fn end(&self) -> Phase {
        phase("end", self.latencies.commit.plus(self.round_trips(2)), "one commit ends the epoch")
    }

    fn seal(&self) -> Phase {
        let spread = self.latencies.seal.plus(self.round_trips(2));
        phase("seal", spread, "a majority seals it durably and says where its WAL ends")
    }

    fn collect(&self, expected: bool) -> Phase {
        phase("collect", self.collected(expected), "up to collect for a member that was heard of just now")
    }

    fn grant(&self) -> Phase {
        phase("grant", self.latencies.commit.plus(self.round_trips(2)), "one commit grants to the successor")
    }

    fn promote(&self) -> Phase {
        let spread = self.latencies.promote.plus(self.round_trips(3));
        phase("promote", spread, "order, lease, end of the WAL receiver, promotion")
    }

    fn open(&self) -> Phase {
        let commits = self.latencies.commit.plus(self.latencies.commit);
        phase("open", commits.plus(self.round_trips(5)), "two commits: on its timeline, open")
    }

    fn route(&self) -> Phase {
        phase("route", self.latencies.route.plus(self.one_way()), "a router hears of it and connects")
    }

    /// From an epoch nobody holds any more to the order to promote.
    fn choice(&self, expected: bool) -> [Phase; 4] {
        [self.end(), self.seal(), self.collect(expected), self.grant()]
    }

    /// The same up to the first write.
    fn succession(&self, expected: bool) -> Vec<Phase> {
        let mut phases = self.choice(expected).to_vec();
        phases.extend([self.promote(), self.open(), self.route()]);
        phases
    }

    /// A failover whose old holder tells its end itself.
    fn handed_over(&self) -> Vec<Phase> {
        let mut phases = vec![self.release()];
        phases.extend(self.succession(true));
        phases
    }
}

fn joined(first: impl IntoIterator<Item = Phase>, then: Vec<Phase>) -> Vec<Phase> {
    let mut phases: Vec<Phase> = first.into_iter().collect();
    phases.extend(then);
    phases
}

// ---- paths ---------------------------------------------------------------------------------------------------

pub(super) fn host_loss(s: &Sums<'_>) -> Vec<Phase> {
    joined(s.unheard(), s.succession(false))
}

pub(super) fn host_loss_with_leader(s: &Sums<'_>) -> Vec<Phase> {
    joined(s.unheard_with_leader(), s.succession(false))
}

pub(super) fn agent_loss(s: &Sums<'_>) -> Vec<Phase> {
    joined([s.lease()], s.succession(true))
}

/// It hears no answer, ends itself at T_hold, and its notice arrives.
fn own_end(s: &Sums<'_>) -> [Phase; 2] {
    let hold = phase("lease", s.hold_ends(), "T_hold - age of the last renewal (0 to renew), clocks off by rho");
    [hold, s.kill()]
}

pub(super) fn deaf(s: &Sums<'_>) -> Vec<Phase> {
    joined(own_end(s), s.handed_over())
}

pub(super) fn deaf_with_leader(s: &Sums<'_>) -> Vec<Phase> {
    let end = own_end(s);
    let election = s.election(&end, s.timings.election_max);
    joined(end.into_iter().chain([election]), s.handed_over())
}

/// What follows the kill of what is left.
fn restarted(s: &Sums<'_>) -> [Phase; 3] {
    let Latencies { survey, start, replay, .. } = *s.latencies;
    [
        phase("survey", survey, "what the crash left is read, the manager orders the restart"),
        phase("start", start, "the postmaster under the lease it still holds"),
        phase("replay", replay, "WAL since the last checkpoint, at light load"),
    ]
}

fn restart_in_place(s: &Sums<'_>) -> Vec<Phase> {
    let mut phases = joined([s.kill()], restarted(s).to_vec());
    phases.push(s.route());
    phases
}

pub(super) fn crash_failed_over(s: &Sums<'_>) -> Vec<Phase> {
    joined([s.kill()], s.handed_over())
}

/// What answers a crash that no other was before, where a standby streams (`agent::crashes`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    FailOver,
    /// In place, so many times.
    Restarts(u32),
    /// In place, however often.
    RestartsForEver,
}

fn answer(s: &Sums<'_>) -> Answer {
    match (s.settings.on_primary_crash, s.settings.crash_budget) {
        (OnPrimaryCrash::Failover, _) | (OnPrimaryCrash::Auto, 0) => Answer::FailOver,
        // Standbys have every commit.
        (OnPrimaryCrash::Auto, _) if s.settings.replication_mode != SyncMode::Async => Answer::FailOver,
        (OnPrimaryCrash::Auto, budget) => Answer::Restarts(budget),
        (OnPrimaryCrash::Restart, _) => Answer::RestartsForEver,
    }
}

/// A crash, or a hang that was made one, by what the settings answer it with.
pub(super) fn crash(s: &Sums<'_>) -> Vec<Phase> {
    match answer(s) {
        Answer::FailOver => crash_failed_over(s),
        Answer::Restarts(_) | Answer::RestartsForEver => restart_in_place(s),
    }
}

/// By `failover`, a disk that failed, or a budget that is spent; `restart` has none of these.
pub(super) fn crash_that_fails_over(s: &Sums<'_>) -> Effect {
    match answer(s) {
        Answer::FailOver | Answer::Restarts(_) => Effect::Outage(crash_failed_over(s)),
        Answer::RestartsForEver => Effect::RuledOut,
    }
}

pub(super) fn crash_loop(s: &Sums<'_>) -> Effect {
    match answer(s) {
        Answer::FailOver => Effect::Outage(crash_failed_over(s)),
        Answer::Restarts(budget) => Effect::Outage(budget_spent(s, budget)),
        Answer::RestartsForEver => Effect::Endless,
    }
}

/// So many crashes are answered by a restart in place, the next by a failover (`agent::crashes`).
fn budget_spent(s: &Sums<'_>, budget: u32) -> Vec<Phase> {
    let once = joined([s.kill()], restarted(s).to_vec()).iter().fold(Spread::default(), |sum, p| sum.plus(p.spread));
    let again = Spread { worst: EFFECT, ..Spread::default() };
    let restarts = once.plus(again).each(|d| d * budget);
    joined([phase("restarts", restarts, "crash_budget restarts in place")], crash_failed_over(s))
}

/// The pauses between so many tries.
fn pauses(tries: u32) -> Duration {
    (1..tries).map(|n| (BACKOFF * (1 << (n - 1).min(5))).min(BACKOFF_MAX)).sum()
}

/// The crash and each failed start count alike, so that as many starts as the budget have to fail. With `restart` only
/// `primary_start` ends it, and a try that is under way then is waited for (`agent::core::keep_time`).
pub(super) fn restart_fails(s: &Sums<'_>) -> Vec<Phase> {
    let Timings { primary_start, .. } = *s.timings;
    let once = s.latencies.survey.plus(s.latencies.start);
    let tick = s.latencies.tick;
    let (spread, formula) = match answer(s) {
        Answer::FailOver => return crash_failed_over(s),
        Answer::Restarts(budget) => {
            let tries = once.each(|d| (d * budget + pauses(budget)).min(primary_start));
            let late = Spread { worst: tick, ..Spread::default() };
            (tries.plus(late), "crash_budget starts and the pauses between; at most primary_start")
        }
        Answer::RestartsForEver => {
            let late = Spread { worst: tick + once.worst, ..Spread::up_to(tick) };
            (Spread::of(primary_start).plus(late), "primary_start from the crash, and a start that is under way then")
        }
    };
    joined([s.kill(), phase("restarts", spread, formula)], s.handed_over())
}

/// A try that stands still is ended after `redo_stall` and counts like a crash (`agent::core::stuck`). None is begun once
/// `primary_start` is over, and none takes longer than that.
pub(super) fn restart_hangs(s: &Sums<'_>) -> Vec<Phase> {
    let Timings { primary_start, .. } = *s.timings;
    let stall = s.settings.redo_stall.min(primary_start);
    let longest = primary_start + stall + LOOK * 2;
    let (spread, formula) = match answer(s) {
        Answer::FailOver => return crash_failed_over(s),
        Answer::Restarts(budget) => {
            let in_time = u32::try_from(primary_start.as_millis().div_ceil(stall.as_millis())).unwrap_or(u32::MAX);
            let tries = budget.min(in_time);
            let found = Spread::of(stall).plus(Spread { best: Duration::ZERO, average: LOOK / 2, worst: LOOK * 2 });
            let once = s.latencies.survey.plus(s.latencies.start).plus(found).plus(s.killed());
            let spread = once.each(|d| (d * tries + pauses(tries)).min(longest));
            (spread, "redo_stall for each try, crash_budget of them, none begun after primary_start")
        }
        Answer::RestartsForEver => {
            let late = Spread { best: Duration::ZERO, average: stall / 2, worst: stall + LOOK * 2 };
            let late = late.plus(Spread { worst: s.latencies.tick + s.killed().worst, ..Spread::default() });
            (Spread::of(primary_start).plus(late), "tries of redo_stall each, none begun after primary_start")
        }
    };
    joined([s.kill(), phase("restarts", spread, formula)], s.handed_over())
}

/// Who is refused tries twice more (`postgres::knock`).
const REFUSED: Duration = Duration::from_millis(100);

/// A knock is begun every third of the time it may take, one at a time.
pub(super) fn hangs(s: &Sums<'_>) -> Vec<Phase> {
    let probe = s.timings.probe;
    let found = Spread::of(probe).plus(Spread::up_to(probe / KNOCKS));
    joined([phase("detection", found, "a new connection gets no word for probe, begun every probe / 3")], crash(s))
}

pub(super) fn refuses(s: &Sums<'_>) -> Vec<Phase> {
    let found = Spread::of(REFUSED).plus(Spread::up_to(s.timings.probe / KNOCKS));
    joined(
        [phase("detection", found, "a new connection is begun every probe / 3, and refused 3 times in 0.1 s")],
        crash(s),
    )
}

/// It can't be killed, so its holder gives the epoch up without being able to say that it is gone.
pub(super) fn disk_hangs(s: &Sums<'_>) -> Vec<Phase> {
    let probe = s.timings.probe;
    let found = Spread::of(probe).plus(Spread::up_to(probe / KNOCKS));
    let unkilled = Spread::of(s.timings.kill).plus(Spread::up_to(TICK_URGENT));
    let first = [
        phase("detection", found, "a new connection gets no word for probe, begun every probe / 3"),
        phase("kill", unkilled, "T_kill in vain, then nothing is renewed"),
        s.lease(),
    ];
    joined(first, s.succession(true))
}

/// What waits for the disk can't be killed, so the promises have to end; where nothing does, the end is told.
pub(super) fn disk_stalls(s: &Sums<'_>) -> Vec<Phase> {
    let probe = s.timings.probe;
    let found = Spread::of(probe).plus(Spread::up_to(probe / KNOCKS));
    let told = s.killed().plus(s.release().spread);
    let over = Spread { best: told.best, ..s.promises_end() };
    let first = [
        phase("detection", found, "a write of the agent's does not end within probe, begun every probe / 3"),
        phase("lease", over, "T_grant, as of a lost host; best: nothing hangs in the kernel, killed and told"),
    ];
    joined(first, s.succession(true))
}

/// Missed twice (`agent::stall`).
pub(super) fn data_lost(s: &Sums<'_>) -> Vec<Phase> {
    let look = s.timings.probe / KNOCKS;
    let found = Spread::of(look).plus(Spread::up_to(look));
    let first = [phase("detection", found, "its files are missed twice, looked for every probe / 3")];
    joined(first, crash_failed_over(s))
}

/// A loop that stands still vouches for nothing, and after a while its lease thread renews no more (`lease::holder`).
pub(super) fn agent_livelock(s: &Sums<'_>) -> Vec<Phase> {
    let vouched = Spread { best: s.latencies.tick, average: s.latencies.tick / 2, worst: Duration::ZERO };
    let spread = Spread::of(s.timings.agent_patience()).beyond(vouched);
    let patience = phase("patience", spread, "2 * T_hold + probe since its loop was last at work");
    joined([patience, s.lease()], s.succession(true))
}

pub(super) fn nobody_restarts(s: &Sums<'_>) -> Vec<Phase> {
    if answer(s) == Answer::FailOver {
        return crash_failed_over(s);
    }
    let spread = Spread::of(s.timings.primary_start).plus(Spread::up_to(s.latencies.tick));
    let wait = phase("restarts", spread, "primary_start from the crash");
    joined([s.kill(), wait], s.handed_over())
}

/// Nothing is renewed once the guard has not answered twice; the agent kills at the deadline.
pub(super) fn guard_hangs(s: &Sums<'_>) -> Vec<Phase> {
    let renew = s.timings.renew;
    let renewed =
        Spread { best: renew, average: renew * DEADLINES_UNANSWERED, worst: renew * (DEADLINES_UNANSWERED + 1) };
    let spread = renewed.plus(s.by_other_clock(s.timings.hold));
    let lease = phase("lease", spread, "two renewals without an answer of the guard, then T_hold");
    let unguarded = phase("unguarded", s.latencies.unguarded, "the agent does without the guard's word and ends it");
    joined([lease, s.kill(), unguarded], s.handed_over())
}

pub(super) fn promotion_fails(s: &Sums<'_>) -> Vec<Phase> {
    let failed =
        phase("failed", s.promote().spread, "a promotion that fails, at the latest where it would have succeeded");
    let first = joined(s.unheard(), joined(s.choice(false), vec![failed, s.kill()]));
    joined(first, s.handed_over())
}

pub(super) fn promotion_hangs(s: &Sums<'_>) -> Vec<Phase> {
    let promote = s.timings.promote;
    let spread = Spread::of(promote).plus(Spread::up_to(LOOK_AGAIN));
    let hangs = phase("hangs", spread, "promote for all of it, from the order on");
    let first = joined(s.unheard(), joined(s.choice(false), vec![hangs, s.kill()]));
    joined(first, s.handed_over())
}

pub(super) fn successor_lost(s: &Sums<'_>) -> Vec<Phase> {
    let taken = phase("promote", Spread { best: Duration::ZERO, ..s.promote().spread }, "until it is lost as well");
    let first = joined(s.unheard(), joined(s.choice(false), vec![taken]));
    joined(first, host_loss(s))
}

/// Nobody can know that it took no lease, so its whole time is waited for (rule 330).
pub(super) fn successor_lost_early(s: &Sums<'_>) -> Vec<Phase> {
    let spread = Spread::of(s.timings.promote).plus(Spread::up_to(LOOK_AGAIN));
    let overdue = phase("overdue", spread, "promote from the grant");
    let first = joined(s.unheard(), joined(s.choice(false), vec![overdue]));
    joined(first, s.succession(false))
}

/// From the first write that is held until it gives its lease up.
fn stopped_for_a_move(s: &Sums<'_>) -> [Phase; 3] {
    let Latencies { stop, catch_up, commit, .. } = *s.latencies;
    [
        phase("stop", stop, "a fast stop with its checkpoint, one was made just before"),
        phase("catch-up", catch_up.plus(s.round_trips(2)), "the standby has all of it, and both say so"),
        phase("transfer", commit.plus(s.round_trips(3)), "one commit, and the order to give the lease up"),
    ]
}

pub(super) fn switchover(s: &Sums<'_>) -> Vec<Phase> {
    joined(stopped_for_a_move(s), s.handed_over())
}

/// At best it moves before anything fails (rule 270). A volume that is full between two looks ends PostgreSQL, which is
/// restarted with the reserve freed, and then moves; or fails over at once, where that is the answer to a crash.
pub(super) fn wal_full(s: &Sums<'_>) -> Vec<Phase> {
    if answer(s) == Answer::FailOver {
        let (moved, killed) = (stopped_for_a_move(s), s.killed());
        let moved = moved.iter().fold(Spread::default(), |sum, p| sum.plus(p.spread));
        let ends = Spread {
            best: moved.best.min(killed.best),
            average: moved.average.max(killed.average),
            worst: moved.worst.max(killed.worst),
        };
        let ended = phase("end", ends, "a crash ends its epoch at once, or it moves before anything fails");
        return joined([ended], s.handed_over());
    }
    let once = joined([s.kill()], restarted(s).to_vec()).iter().fold(Spread::default(), |sum, p| sum.plus(p.spread));
    let crash = Spread { best: Duration::ZERO, ..once.plus(Spread::up_to(LOOK)) };
    joined(
        [phase("restart", crash, "a restart in place, and up to 1 s until it is seen; 0 where that saw it before")],
        switchover(s),
    )
}

/// Writes fail from when it is full; the checkpoint is not waited for any longer than that (rules 230 and 272).
pub(super) fn data_full(s: &Sums<'_>) -> Vec<Phase> {
    let look = phase("look", Spread::up_to(LOOK), "free space is looked at every second");
    let flush = phase("checkpoint", Spread::up_to(HURRY), "at most 3 s");
    joined([look, flush], switchover(s))
}

/// The voters have sealed, so its next renewal is refused with the higher epoch; its notice ends the wait (rule 335).
pub(super) fn failover_by_command(s: &Sums<'_>) -> Vec<Phase> {
    let asked = phase("command", s.latencies.commit.plus(s.round_trips(2)), "one commit begins the operation");
    let refused = Spread::up_to(s.timings.renew).plus(s.round_trips(2));
    let refused = phase("refusal", refused, "until its next renewal, which is refused");
    let [end, seal, collect, grant] = s.choice(true);
    let phases = vec![asked, end, seal, refused, s.kill(), s.release(), collect, grant];
    joined(phases, vec![s.promote(), s.open(), s.route()])
}

/// A voter that was restarted promises nothing for T_grant, and a restarted node may be elected at once. A new leader
/// waits for members that have not answered, when no voter knows the last epoch.
pub(super) fn cold_start(s: &Sums<'_>) -> Vec<Phase> {
    let quarantine = phase("lease", s.by_other_clock(s.timings.grant), "T_grant from the start of each voter");
    let elected = Spread { best: Duration::ZERO, average: s.timings.election_max, ..s.elected() };
    let election = phase("election", elected.beyond(quarantine.spread), "as far as it outlasts the phase before");
    // It counts from the leader's start, of which the wait before is a part: at worst none.
    let missing = Spread { worst: s.timings.silent * 2, ..Spread::default() };
    let missing = phase("missing", missing, "2 * silent for a member that does not come back");
    let Latencies { start, replay, .. } = *s.latencies;
    let up = start.plus(replay).beyond(quarantine.spread);
    let up = phase("start", up, "the standbys, as far as they outlast the phases before");
    joined([quarantine, election, missing, up], s.succession(true))
}
