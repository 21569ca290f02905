//! What can happen to a lease with fixed voters, one step at a time.
//!
//! Messages have no queue of their own. A renewal is under way from its sending
//! until its sender sends the next, and reaches each voter at any time or never;
//! the acks that it brought are in the network until the holder counts them, at
//! any time or never. So every delay, loss and order is covered.

use super::{
    Lease,
    rules::Rule,
    state::{FREE, Holder, Lock, NO_ROUND, Phase, SEALED, State, Voter},
};

/// Why an epoch is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Its holder released it.
    Released,
    /// An operator asked, or the deadline of the promotion has passed.
    Asked,
    /// A majority of voters reports no promise left.
    PromisesOver,
}

/// One step. Epochs by number, voters by their place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A tick of real time, in which these clocks stand still: voters from bit 0, holders from bit 8.
    Tick { still: u16 },
    /// The holder sends a renewal, or a probe; it may name the second lease configuration.
    Renew { epoch: u8, second: bool },
    /// It reaches a voter, which answers.
    Arrive { epoch: u8, voter: u8 },
    /// It reaches a voter, which refuses, and the holder hears it.
    Nack { epoch: u8, voter: u8 },
    /// The holder gets enough answers.
    Count { epoch: u8 },
    /// The holder ends its epoch by its own decision.
    GiveUp { epoch: u8 },
    /// The last process of the tree is gone before T_kill is over.
    TreeEmpty { epoch: u8 },
    /// `Fenced` goes out to all managers.
    Notice { epoch: u8 },
    /// PostgreSQL crashes.
    Crash { epoch: u8 },
    /// It is started again under the same epoch.
    RestartInPlace { epoch: u8 },
    /// The agent starts again.
    AgentRestart { epoch: u8 },
    /// One of the two clocks of a holder's host stops for good.
    ClockStops { epoch: u8 },
    /// One of the two clocks of a voter's host jumps far ahead.
    ClockJumps { voter: u8 },
    /// ReleasePrimary is committed.
    Release,
    /// FenceEpoch is committed.
    Fence(Cause),
    /// A voter seals the fenced epoch, and the leader gets its answer.
    Seal { voter: u8 },
    /// A voter applies the FenceEpoch of its log.
    Apply { voter: u8 },
    /// GrantPrimary is committed.
    Grant,
    /// A voter's manager restarts.
    Restart { voter: u8 },
    /// A voter applies the second lease configuration, durably.
    Configure { voter: u8 },
}

impl<const N: usize> Lease<N> {
    /// Everything that can be tried. [`Lease::step`] says what can happen.
    pub(super) fn candidates(&self, s: &State<N>, steps: &mut Vec<Step>) {
        self.ticks(s, steps);
        for epoch in 1..=self.epochs {
            self.candidates_of(s, epoch, steps);
        }
        for voter in distinct(s) {
            let v = &s.voters[usize::from(voter)];
            if v.sealed < s.epoch || v.report & FREE == 0 {
                steps.extend([Step::Seal { voter }, Step::Apply { voter }]);
            }
            steps.push(Step::Restart { voter });
            if self.configurations {
                steps.push(Step::Configure { voter });
            }
            if !self.keeps(Rule::AcceptorTakesLaterClock) {
                steps.push(Step::ClockJumps { voter });
            }
        }
        let causes = [Cause::Released, Cause::Asked, Cause::PromisesOver].map(Step::Fence);
        steps.extend([Step::Release, Step::Grant]);
        steps.extend(causes);
    }

    fn candidates_of(&self, s: &State<N>, epoch: u8, steps: &mut Vec<Step>) {
        let h = &s.holders[usize::from(epoch) - 1];
        if h.phase == Phase::Ungranted || (self.inert && epoch == self.epochs) {
            return;
        }
        steps.extend([Step::Renew { epoch, second: false }, Step::Count { epoch }]);
        if self.ends {
            steps.extend([Step::GiveUp { epoch }, Step::TreeEmpty { epoch }, Step::Notice { epoch }]);
            steps.push(Step::AgentRestart { epoch });
        }
        if h.age != NO_ROUND {
            for voter in distinct(s) {
                steps.extend([Step::Arrive { epoch, voter }, Step::Nack { epoch, voter }]);
            }
        }
        if self.configurations {
            steps.push(Step::Renew { epoch, second: true });
        }
        if self.crashes {
            steps.extend([Step::Crash { epoch }, Step::RestartInPlace { epoch }]);
        }
        if !self.keeps(Rule::HolderTakesEarlierClock) {
            steps.push(Step::ClockStops { epoch });
        }
    }

    /// The state after a step; `None` when it can't happen or changes nothing.
    pub(super) fn step(&self, s: &State<N>, step: Step) -> Option<State<N>> {
        self.step_in_place(s, step).map(State::sorted)
    }

    /// The same, with every voter where it was.
    pub(super) fn step_in_place(&self, s: &State<N>, step: Step) -> Option<State<N>> {
        let mut t = *s;
        let possible = match step {
            Step::Tick { still } => self.tick(&mut t, still),
            Step::Renew { epoch, second } => self.renew(&mut t, epoch, second),
            Step::Arrive { epoch, voter } => self.arrive(&mut t, epoch, voter),
            Step::Nack { epoch, voter } => self.nack(&mut t, epoch, voter),
            Step::Count { epoch } => self.count(&mut t, epoch),
            Step::GiveUp { epoch } => self.give_up(&mut t, epoch),
            Step::TreeEmpty { epoch } => tree_empty(&mut t, epoch),
            Step::Notice { epoch } => self.notice(&mut t, epoch),
            Step::Crash { epoch } => self.crash(&mut t, epoch),
            Step::RestartInPlace { epoch } => self.restart_in_place(&mut t, epoch),
            Step::AgentRestart { epoch } => self.agent_restart(&mut t, epoch),
            Step::ClockStops { epoch } => clock_stops(&mut t, epoch),
            Step::ClockJumps { voter } => clock_jumps(&mut t, voter),
            Step::Release => release(&mut t),
            Step::Fence(cause) => self.fence(&mut t, cause),
            Step::Seal { voter } => self.seal(&mut t, voter),
            Step::Apply { voter } => self.apply(&mut t, voter),
            Step::Grant => self.grant(&mut t),
            Step::Restart { voter } => self.restart(&mut t, voter),
            Step::Configure { voter } => configure(&mut t, voter),
        };
        (possible && t != *s).then_some(t)
    }

    // ---- the holder --------------------------------------------------------------------------

    fn renew(&self, t: &mut State<N>, epoch: u8, second: bool) -> bool {
        let h = holder(t, epoch);
        if !h.is_active() {
            return false;
        }
        if self.probes && h.age != NO_ROUND {
            h.misses = (h.misses + 1).min(self.misses_max);
        }
        h.probe = self.probes && h.misses == self.misses_max && self.keeps(Rule::ProbeAfterMisses);
        h.second = second;
        h.age = 0;
        if self.keeps(Rule::AcksOfOneRenewal) {
            forget_acks(t, epoch);
        }
        true
    }

    fn arrive(&self, t: &mut State<N>, epoch: u8, voter: u8) -> bool {
        let h = *holder(t, epoch);
        let v = &mut t.voters[usize::from(voter)];
        let refuses = epoch < v.sealed && self.keeps(Rule::SealRefusesLower);
        if h.age == NO_ROUND || v.acked & bit(epoch) != 0 || refuses {
            return false;
        }
        if h.second && !v.second && self.keeps(Rule::AckOnlyAppliedConfiguration) {
            return false;
        }
        v.acked |= bit(epoch);
        if h.probe && self.keeps(Rule::ProbeMovesNoPromise) {
            return true;
        }
        let named = if self.keeps(Rule::PromiseOfNamedConfiguration) { h.second } else { v.second };
        let until = v.until.max(self.timing(named).grant);
        t.bound |= self.probes && h.misses == self.misses_max && until > v.until;
        v.until = until;
        v.sealed = v.sealed.max(epoch);
        if self.keeps(Rule::DurableSeal) && self.keeps(Rule::DurableSealOfRenewal) {
            v.durable = v.durable.max(epoch);
        }
        let h = holder(t, epoch);
        if h.phase == Phase::Seeking {
            h.phase = Phase::Answered;
        }
        true
    }

    /// A Nack may be lost: then nothing happens, and no step is needed for it.
    fn nack(&self, t: &mut State<N>, epoch: u8, voter: u8) -> bool {
        let sealed = t.voters[usize::from(voter)].sealed;
        let h = holder(t, epoch);
        h.age != NO_ROUND && epoch < sealed && self.keeps(Rule::SealRefusesLower) && self.give_up(t, epoch)
    }

    fn count(&self, t: &mut State<N>, epoch: u8) -> bool {
        let acks = t.voters_that(|v| v.acked & bit(epoch) != 0);
        let enough = match self.keeps(Rule::RenewalNeedsMajority) {
            true => self.quorum.decides(acks),
            false => acks.count_ones() * 2 >= N as u32 - 1,
        };
        let h = holder(t, epoch);
        if !h.is_active() || h.age == NO_ROUND || !enough {
            return false;
        }
        let probe = h.probe;
        if !probe || !self.keeps(Rule::ProbeAckMovesNoDeadline) {
            let named = h.second || !self.keeps(Rule::SwitchAfterMajority);
            let hold = self.hold(named);
            let left = if self.keeps(Rule::DeadlineFromSending) { hold.saturating_sub(h.age) } else { hold };
            if left == 0 {
                return false;
            }
            h.left = if h.phase == Phase::Held { h.left.max(left) } else { left };
            h.phase = Phase::Held;
        }
        h.misses = 0;
        if probe {
            end_round(t, epoch);
        }
        true
    }

    fn give_up(&self, t: &mut State<N>, epoch: u8) -> bool {
        let h = holder(t, epoch);
        if !h.is_active() {
            return false;
        }
        self.end(t, epoch);
        true
    }

    /// The lease is over: what runs is killed.
    fn end(&self, t: &mut State<N>, epoch: u8) {
        let h = holder(t, epoch);
        h.misses = 0;
        (h.phase, h.left) = match h.phase {
            Phase::Held if h.crashed => (Phase::Dead, 0),
            Phase::Held => (Phase::Killing, self.first.kill),
            _ => (Phase::Dropped, 0),
        };
        if self.keeps(Rule::ExpiredIsFinal) {
            end_round(t, epoch);
        }
    }

    fn notice(&self, t: &mut State<N>, epoch: u8) -> bool {
        let h = holder(t, epoch);
        let empty = matches!(h.phase, Phase::Dead | Phase::Dropped);
        let early = h.phase == Phase::Killing && !self.keeps(Rule::FencedAfterTree);
        h.noticed = true;
        empty || early
    }

    fn crash(&self, t: &mut State<N>, epoch: u8) -> bool {
        let h = holder(t, epoch);
        if h.phase != Phase::Held {
            return false;
        }
        h.crashed = true;
        h.noticed |= !self.keeps(Rule::CrashIsNotFenced);
        true
    }

    fn restart_in_place(&self, t: &mut State<N>, epoch: u8) -> bool {
        let half = self.hold(false).div_ceil(2);
        let ended = self.keeps(Rule::CrashIsNotFenced);
        let h = holder(t, epoch);
        if !h.crashed || (ended && h.noticed) {
            return false;
        }
        h.crashed = false;
        match h.phase {
            Phase::Held => h.left >= half,
            Phase::Dead if !self.keeps(Rule::RestartNeedsLease) => {
                (h.phase, h.left) = (Phase::Held, 1);
                true
            }
            _ => false,
        }
    }

    /// What is on its way to an agent's earlier start is of no use to the next.
    fn agent_restart(&self, t: &mut State<N>, epoch: u8) -> bool {
        let hold = self.hold(false);
        let h = holder(t, epoch);
        let over = matches!(h.phase, Phase::Dead | Phase::Dropped);
        if over && ((h.noticed && !self.keeps(Rule::EndedIsDurable)) || !self.keeps(Rule::ExpiredIsFinal)) {
            h.phase = Phase::Answered;
            return true;
        }
        if h.is_active() {
            if h.phase == Phase::Held && !self.keeps(Rule::ResumeKeepsDeadline) {
                h.left = hold;
            }
            h.misses = 0;
            end_round(t, epoch);
            return true;
        }
        false
    }

    // ---- the voters --------------------------------------------------------------------------

    fn seal(&self, t: &mut State<N>, voter: u8) -> bool {
        let epoch = t.epoch;
        let v = &mut t.voters[usize::from(voter)];
        if !matches!(t.lock, Lock::Fenced | Lock::FencedAfterRelease) {
            return false;
        }
        v.sealed = v.sealed.max(epoch);
        if self.keeps(Rule::DurableSeal) {
            v.durable = v.durable.max(epoch);
        }
        v.report |= SEALED | if v.until == 0 { FREE } else { 0 };
        true
    }

    /// The log is durable, and what is in it is applied again before anything is acked.
    fn apply(&self, t: &mut State<N>, voter: u8) -> bool {
        let v = &mut t.voters[usize::from(voter)];
        v.sealed = v.sealed.max(t.epoch);
        v.durable = v.durable.max(t.epoch);
        true
    }

    fn restart(&self, t: &mut State<N>, voter: u8) -> bool {
        let v = &mut t.voters[usize::from(voter)];
        let largest = match (v.second, self.keeps(Rule::QuarantineOfLargestGrant)) {
            (false, _) => self.first.grant,
            (true, true) => self.first.grant.max(self.second.grant),
            (true, false) => self.second.grant,
        };
        v.until = if self.keeps(Rule::RestartQuarantine) { largest } else { 0 };
        v.sealed = v.durable;
        true
    }

    // ---- the leader --------------------------------------------------------------------------

    fn fence(&self, t: &mut State<N>, cause: Cause) -> bool {
        if t.epoch == self.epochs {
            return false;
        }
        let h = *holder(t, t.epoch);
        let possible = match (t.lock, cause) {
            (Lock::Released, Cause::Released) | (Lock::Granted, Cause::Asked) => true,
            (Lock::Granted, Cause::PromisesOver) => self.promises_are_over(t, &h),
            _ => false,
        };
        t.hasty |= cause == Cause::PromisesOver && matches!(h.phase, Phase::Seeking | Phase::Held);
        t.lock = if cause == Cause::Released { Lock::FencedAfterRelease } else { Lock::Fenced };
        t.epoch += 1;
        possible
    }

    fn promises_are_over(&self, t: &State<N>, h: &Holder) -> bool {
        let renewed = h.phase > Phase::Seeking || !self.keeps(Rule::UnrenewedIsNotOver);
        let over = self.quorum.decides(t.voters_that(|v| v.until == 0));
        renewed && (over || !self.keeps(Rule::NoFenceOnSuspicion))
    }

    fn grant(&self, t: &mut State<N>) -> bool {
        let waits = t.lock == Lock::Fenced && self.keeps(Rule::GrantWaitsForPromises);
        let fits = |v: &Voter| match (self.keeps(Rule::GrantNeedsSeals), waits) {
            (true, true) => v.report & FREE != 0,
            (true, false) => v.report & SEALED != 0,
            (false, true) => v.until == 0,
            (false, false) => true,
        };
        let who = t.voters_that(fits);
        let enough = match self.keeps(Rule::GrantNeedsMajority) {
            true => self.quorum.decides(who),
            false => who.count_ones() * 2 >= N as u32 - 1,
        };
        if !matches!(t.lock, Lock::Fenced | Lock::FencedAfterRelease) || !enough {
            return false;
        }
        t.lock = Lock::Granted;
        holder(t, t.epoch).phase = Phase::Seeking;
        for v in &mut t.voters {
            v.report = 0;
        }
        true
    }

    // ---- time --------------------------------------------------------------------------------

    fn tick(&self, t: &mut State<N>, still: u16) -> bool {
        for (i, v) in t.voters.iter_mut().enumerate() {
            if stands(&mut v.stood, still, i) {
                continue;
            }
            v.until = v.until.saturating_sub(1);
            v.stood &= v.until > 0;
        }
        let oldest = self.hold(false).max(self.hold(true));
        for i in 0..t.holders.len() {
            let epoch = i as u8 + 1;
            let h = &mut t.holders[i];
            if h.phase == Phase::Killing {
                h.left -= 1; // real time: no clock of ours measures it
                if h.left == 0 {
                    h.phase = Phase::Dead;
                }
                continue;
            }
            if stands(&mut h.stood, still, i + 8) {
                continue;
            }
            if h.age != NO_ROUND {
                h.age = (h.age + 1).min(oldest);
            }
            let too_old = h.age == oldest && self.keeps(Rule::DeadlineFromSending);
            if h.phase == Phase::Held {
                h.left -= 1;
                if h.left == 0 {
                    self.end(t, epoch);
                }
            }
            if too_old && !self.probes {
                end_round(t, epoch);
            }
        }
        true
    }
}

/// Of interchangeable voters that are alike, the first.
fn distinct<const N: usize>(s: &State<N>) -> impl Iterator<Item = u8> {
    let alike = |i: usize| i > 0 && s.voters[i] == s.voters[i - 1];
    (0..N).filter(move |i| !alike(*i)).map(|i| i as u8)
}

/// Whether a clock stands still in this tick; it can't in two ticks in a row.
fn stands(stood: &mut bool, still: u16, clock: usize) -> bool {
    *stood = still & (1 << clock) != 0;
    *stood
}

fn bit(epoch: u8) -> u8 {
    1 << (epoch - 1)
}

fn holder<const N: usize>(t: &mut State<N>, epoch: u8) -> &mut Holder {
    &mut t.holders[usize::from(epoch) - 1]
}

fn forget_acks<const N: usize>(t: &mut State<N>, epoch: u8) {
    for v in &mut t.voters {
        v.acked &= !bit(epoch);
    }
}

fn end_round<const N: usize>(t: &mut State<N>, epoch: u8) {
    let h = holder(t, epoch);
    (h.age, h.probe, h.second) = (NO_ROUND, false, false);
    forget_acks(t, epoch);
}

fn tree_empty<const N: usize>(t: &mut State<N>, epoch: u8) -> bool {
    let h = holder(t, epoch);
    let killing = h.phase == Phase::Killing;
    (h.phase, h.left) = (Phase::Dead, 0);
    killing
}

/// Only a holder that waits for the later of its clocks notices, and then it waits for ever.
fn clock_stops<const N: usize>(t: &mut State<N>, epoch: u8) -> bool {
    let h = holder(t, epoch);
    h.left = h.left.saturating_add(1).min(9);
    h.phase == Phase::Held
}

fn clock_jumps<const N: usize>(t: &mut State<N>, voter: u8) -> bool {
    t.voters[usize::from(voter)].until = 0;
    true
}

fn release<const N: usize>(t: &mut State<N>) -> bool {
    let granted = t.lock == Lock::Granted;
    t.lock = Lock::Released;
    granted && holder(t, t.epoch).noticed
}

fn configure<const N: usize>(t: &mut State<N>, voter: u8) -> bool {
    t.voters[usize::from(voter)].second = true;
    true
}
