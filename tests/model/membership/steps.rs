//! What can happen while the membership changes, one step at a time.
//!
//! Raft is one log that only grows, and a leader that is nobody in particular: a
//! manager has some first part of that log. An election takes back what its
//! winner does not have; managers that had it go by the old membership until
//! the new leader reaches them. Messages are as in the model of the lease.

use super::{
    Change,
    chain::Membership,
    rules::Rule,
    state::{NO_ROUND, NOWHERE, Phase, State},
};

/// One step. Voters by their place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A tick of real time.
    Tick,
    /// The holder of epoch 1 sends a renewal.
    Renew,
    /// It reaches a manager, which acks.
    Arrive { voter: u8 },
    /// The holder gets enough acks under this membership.
    Count { membership: u8 },
    /// The epoch that has expired is sought again.
    Revive,
    /// The leader appends the next membership.
    ProposeMembership,
    /// The leader appends FenceEpoch: an operator asked.
    ProposeFence,
    /// A manager appends the next entry; the leader commits what enough voters have.
    Append { voter: u8 },
    /// An acceptor takes over the membership of its log.
    Adopt { voter: u8 },
    /// A manager with a shorter log becomes leader.
    Elect { voter: u8 },
    /// A manager seals epoch 2, and the leader gets its answer.
    Seal { voter: u8 },
    /// GrantPrimary of epoch 2.
    Grant,
    /// A manager restarts.
    Restart { voter: u8 },
}

impl<const N: usize> Change<N> {
    /// Everything that can be tried. [`Change::step`] says what can happen.
    pub(super) fn candidates(&self, s: &State<N>, steps: &mut Vec<Step>) {
        if s.lost || (s.phase == Phase::Dead && s.granted && self.keeps(Rule::ExpiredIsFinal)) {
            return; // the end of the story
        }
        steps.push(Step::Tick);
        if matches!(s.phase, Phase::Seeking | Phase::Held) && s.age != 0 {
            steps.push(Step::Renew);
        }
        if s.age != NO_ROUND {
            steps.extend((0..=self.chain.steps()).map(|membership| Step::Count { membership }));
        }
        if s.memberships < self.chain.steps() {
            steps.push(Step::ProposeMembership);
        }
        if s.fence == NOWHERE {
            steps.push(Step::ProposeFence);
        }
        if s.is_fenced() && !s.granted {
            steps.push(Step::Grant);
        }
        if !self.keeps(Rule::ExpiredIsFinal) && s.phase == Phase::Dead {
            steps.push(Step::Revive);
        }
        for voter in 0..N as u8 {
            let place = usize::from(voter);
            if !self.chain.alike[place] || s.voters[place] != s.voters[place - 1] {
                self.candidates_of(s, voter, steps);
            }
        }
    }

    fn candidates_of(&self, s: &State<N>, voter: u8, steps: &mut Vec<Step>) {
        let v = &s.voters[usize::from(voter)];
        if s.age != NO_ROUND && v.acked == 0 {
            steps.push(Step::Arrive { voter });
        }
        if v.log < s.length() {
            steps.push(Step::Append { voter });
            if self.elections {
                steps.push(Step::Elect { voter });
            }
        }
        if v.membership != s.membership_at(v.log) {
            steps.push(Step::Adopt { voter });
        }
        if s.is_fenced() && !s.granted {
            steps.push(Step::Seal { voter });
        }
        if self.restarts {
            steps.push(Step::Restart { voter });
        }
    }

    /// The state after a step; `None` when it can't happen or changes nothing.
    pub(super) fn step(&self, s: &State<N>, step: Step) -> Option<State<N>> {
        let mut t = *s;
        let possible = match step {
            Step::Tick => self.tick(&mut t),
            Step::Renew => renew(&mut t),
            Step::Arrive { voter } => self.arrive(&mut t, voter),
            Step::Count { membership } => self.count(&mut t, membership),
            Step::Revive => revive(&mut t),
            Step::ProposeMembership => self.propose_step(&mut t),
            Step::ProposeFence => propose_fence(&mut t),
            Step::Append { voter } => self.append(&mut t, voter),
            Step::Adopt { voter } => self.adopt(&mut t, voter),
            Step::Elect { voter } => self.elect(&mut t, voter),
            Step::Seal { voter } => seal(&mut t, voter),
            Step::Grant => self.grant(&mut t),
            Step::Restart { voter } => self.restart(&mut t, voter),
        };
        (possible && t != *s).then(|| self.sorted(t))
    }

    // ---- the holders -------------------------------------------------------------------------

    fn arrive(&self, t: &mut State<N>, voter: u8) -> bool {
        let v = t.voters[usize::from(voter)];
        let before = t.place_of(v.membership);
        let unapplied = before > t.committed && self.keeps(Rule::AckAfterApply);
        // What is applied seals; an entry that is not applied yet, or does not seal, refuses nothing.
        let applied = t.fence < before && self.keeps(Rule::AckAfterApply) && self.keeps(Rule::ApplySeals);
        if unapplied || ((v.sealed || applied) && self.keeps(Rule::SealRefusesLower)) {
            return false;
        }
        let v = &mut t.voters[usize::from(voter)];
        v.acked = v.membership + 1;
        v.until = self.timing.grant;
        true
    }

    fn count(&self, t: &mut State<N>, membership: u8) -> bool {
        let one = self.keeps(Rule::AcksOfOneMembership);
        let known = t.voters_that(|v| v.acked == membership + 1);
        let acks = if one { known } else { t.voters_that(|v| v.acked != 0) };
        let active = matches!(t.phase, Phase::Seeking | Phase::Held);
        if !active || known == 0 || !self.decides(&self.chain.memberships[usize::from(membership)], acks) {
            return false;
        }
        let left = self.hold() - t.age;
        t.left = if t.phase == Phase::Held { t.left.max(left) } else { left };
        t.phase = Phase::Held;
        t.counted |= 1 << membership;
        end_round(t); // the next renewal may follow at once
        true
    }

    fn decides(&self, membership: &Membership, who: u8) -> bool {
        if !self.keeps(Rule::OnlyVotersCount) {
            return who.count_ones() >= u32::from(membership.anybody);
        }
        let quorum = if self.keeps(Rule::BothHalves) { &membership.quorum } else { &membership.union };
        quorum.decides(who)
    }

    // ---- the leader --------------------------------------------------------------------------

    fn present<'a>(&'a self, t: &State<N>) -> &'a Membership {
        &self.chain.memberships[usize::from(t.memberships)]
    }

    fn propose_step(&self, t: &mut State<N>) -> bool {
        let settled = t.memberships == 0 || t.place_of(t.memberships) < t.committed;
        let renewed = t.counted & (1 << t.memberships) != 0;
        // Epoch 2 has a holder of its own then, which this model lets renew at any time.
        let sealed = t.granted
            || (t.is_fenced() && {
                let who =
                    self.free(t, self.keeps(Rule::StepSealsOfOneMembership), self.keeps(Rule::StepWaitsForPromises));
                self.decides(self.present(t), who)
            });
        t.memberships += 1;
        settled && (renewed || sealed || !self.keeps(Rule::NextStepWaits))
    }

    /// Voters that have told the leader that epoch 2 is sealed there and, if that matters, no promise left.
    fn free(&self, t: &State<N>, of_one: bool, ended: bool) -> u8 {
        let present = t.memberships + 1;
        t.voters_that(|v| match (ended, of_one) {
            (true, true) => v.report == present,
            (true, false) => v.report != 0,
            (false, true) => v.sealed && v.membership + 1 == present,
            (false, false) => v.sealed,
        })
    }

    fn commit(&self, t: &mut State<N>) {
        let quorum = &self.present(t).quorum;
        while t.committed < t.length() && quorum.decides(t.voters_that(|v| v.log > t.committed)) {
            t.committed += 1;
        }
    }

    fn elect(&self, t: &mut State<N>, voter: u8) -> bool {
        let length = t.voters[usize::from(voter)].log;
        let membership = &self.chain.memberships[usize::from(t.membership_at(length))];
        let votes = t.voters_that(|v| v.log <= length);
        if membership.voters & (1 << voter) == 0 || !membership.quorum.decides(votes) {
            return false;
        }
        t.lost |= length < t.committed;
        t.memberships = t.membership_at(length);
        if t.fence >= length {
            t.fence = NOWHERE;
        }
        // Another entry will have another id: nothing was counted under it yet.
        t.counted &= (2 << t.memberships) - 1;
        for v in &mut t.voters {
            v.log = v.log.min(length);
        }
        self.commit(t);
        true
    }

    fn grant(&self, t: &mut State<N>) -> bool {
        let who = self.free(t, self.keeps(Rule::SealsOfOneMembership), self.keeps(Rule::GrantWaitsForPromises));
        if !self.decides(self.present(t), who) {
            return false;
        }
        t.granted = true;
        for v in &mut t.voters {
            v.report = 0;
        }
        true
    }

    // ---- the managers ------------------------------------------------------------------------

    fn append(&self, t: &mut State<N>, voter: u8) -> bool {
        t.voters[usize::from(voter)].log += 1;
        if self.keeps(Rule::AdoptWithLog) {
            self.adopt(t, voter);
        }
        self.commit(t);
        true
    }

    fn adopt(&self, t: &mut State<N>, voter: u8) -> bool {
        let v = t.voters[usize::from(voter)];
        let membership = t.membership_at(v.log);
        if v.membership == membership {
            return false;
        }
        let v = &mut t.voters[usize::from(voter)];
        v.membership = membership;
        if self.keeps(Rule::QuarantineOnChange) {
            v.until = self.timing.grant;
        }
        true
    }

    fn restart(&self, t: &mut State<N>, voter: u8) -> bool {
        let v = &mut t.voters[usize::from(voter)];
        let promised = v.report == v.membership + 1;
        v.until = if self.keeps(Rule::RestartQuarantine) { self.timing.grant } else { 0 };
        !promised // it has said all that it is ever asked
    }

    // ---- time --------------------------------------------------------------------------------

    fn tick(&self, t: &mut State<N>) -> bool {
        for v in &mut t.voters {
            v.until = v.until.saturating_sub(1);
        }
        if t.age != NO_ROUND {
            t.age += 1;
            if t.age == self.hold() {
                end_round(t);
            }
        }
        if matches!(t.phase, Phase::Held | Phase::Killing) {
            t.left -= 1;
            match (t.phase, t.left) {
                (Phase::Held, 0) => {
                    (t.phase, t.left) = (Phase::Killing, self.timing.kill);
                    if self.keeps(Rule::ExpiredIsFinal) {
                        end_round(t);
                    }
                }
                (Phase::Killing, 0) => t.phase = Phase::Dead,
                _ => {}
            }
        }
        true
    }
}

fn end_round<const N: usize>(t: &mut State<N>) {
    t.age = NO_ROUND;
    for v in &mut t.voters {
        v.acked = 0;
    }
}

fn renew<const N: usize>(t: &mut State<N>) -> bool {
    end_round(t);
    t.age = 0;
    matches!(t.phase, Phase::Seeking | Phase::Held)
}

fn revive<const N: usize>(t: &mut State<N>) -> bool {
    let dead = t.phase == Phase::Dead;
    t.phase = Phase::Seeking;
    dead
}

fn propose_fence<const N: usize>(t: &mut State<N>) -> bool {
    let absent = t.fence == NOWHERE;
    t.fence = t.length();
    absent
}

fn seal<const N: usize>(t: &mut State<N>, voter: u8) -> bool {
    let v = &mut t.voters[usize::from(voter)];
    v.sealed = true;
    if v.until == 0 {
        v.report = v.membership + 1;
    }
    true
}
