//! The holder of the lease, pure: orders, messages and readings of the clocks
//! in, datagrams and deadlines out.
//!
//! Every step looks at the clocks before anything else, so nothing that arrives
//! late can bring an expired epoch back. Time is what the caller read *before*
//! sending: a deadline counted from there can only be too early.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use super::{
    counters::Refusal,
    message::{Body, Letter, Membership, Ticket},
};
use crate::domain::{Epoch, MemberId, TimelineId, Timings, WalPosition, moment::TwoClocks, observation::Notice};

/// After so many renewals in a row without a majority, probes are sent instead.
const MISSES_MAX: u32 = 3;
/// Notices are not acked; each goes out this often.
const NOTICE_REPEATS: u32 = 5;
/// So many renewals in a row have to be answered before a member is relied on as a voter to be.
pub const IN_A_ROW: usize = 3;
/// Renewals remembered. In a hold of four renewals and more, sought three times
/// in each T_rpc, far fewer are young enough to count.
const SENT_MAX: usize = 128;

/// Where the lease of an epoch stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// Nothing is held or sought.
    #[default]
    Idle,
    /// No majority has answered yet.
    Seeking,
    /// A majority answered and the deadline has not passed.
    Held,
    /// Three renewals in a row found no majority. The deadline, if there is one, still stands.
    Probing,
    /// The deadline passed, or the epoch had already ended when it was asked for. Final.
    Expired,
    /// A higher epoch was committed. Final.
    Superseded {
        /// The acceptor's sealed epoch.
        sealed: Epoch,
    },
}

/// What others may see of a holder.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HolderView {
    /// The epoch held, sought or last held; 0 when there was none.
    pub epoch: Epoch,
    /// Where it stands.
    pub phase: Phase,
    /// Until then nobody else can write, when it was ever held.
    pub deadline: Option<TwoClocks>,
    /// The membership that the last counted renewal was counted under.
    pub membership: Option<u64>,
    /// The guard does not take deadlines, so nothing is renewed.
    pub stalled: bool,
    /// Who answered each of the last [`IN_A_ROW`] renewals, counted or not.
    pub answering: BTreeSet<MemberId>,
}

/// What a holder is told once.
#[derive(Debug, Clone)]
pub struct HolderConfig {
    /// Drawn at each start.
    pub session: u64,
    /// All members that may be voters.
    pub peers: Vec<MemberId>,
    /// Renew, T_rpc, T_hold and T_grant are used.
    pub timings: Timings,
}

/// What a holder wants done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// To a member's manager.
    Send(MemberId, Letter),
    /// To the guard; its answer comes back through [`Holder::published`].
    Deadline(Epoch, TwoClocks),
}

/// One renewal or probe under way.
#[derive(Debug)]
struct Sent {
    seq: u64,
    at: TwoClocks,
    probe: bool,
    /// A majority was counted.
    done: bool,
    /// Who answered, under which membership; only identical ones count together.
    answers: Vec<(Membership, BTreeSet<MemberId>)>,
}

#[derive(Debug)]
struct Tenure {
    epoch: Epoch,
    timeline: TimelineId,
    phase: Phase,
    deadline: Option<TwoClocks>,
    membership: Option<Membership>,
    sent: VecDeque<Sent>,
    /// When to send next.
    next: TwoClocks,
    /// When the present renewal counts as missed, unless `answered`.
    judged: TwoClocks,
    answered: bool,
    misses: u32,
    stalled: bool,
    /// Who answered each of the last renewals, as of the last sending.
    answering: BTreeSet<MemberId>,
}

#[derive(Debug)]
struct PendingNotice {
    notice: Notice,
    left: u32,
    next: TwoClocks,
}

/// The lease holder of one agent.
#[derive(Debug)]
pub struct Holder {
    config: HolderConfig,
    seq: u64,
    ended: Epoch,
    flush: WalPosition,
    tenure: Option<Tenure>,
    notices: Vec<PendingNotice>,
}

impl Holder {
    /// A holder that holds nothing.
    pub fn new(config: HolderConfig) -> Self {
        let flush = WalPosition::default();
        Self { config, seq: 0, ended: Epoch(0), flush, tenure: None, notices: Vec::new() }
    }

    /// Seeks the lease of an epoch that was granted to this member; flush positions are reported
    /// from `timeline` on. An epoch that ended here, or one below, is not sought: the view shows how
    /// it ended, or [`Phase::Expired`]. One already sought or held goes on.
    pub fn hold(&mut self, epoch: Epoch, timeline: TimelineId, now: TwoClocks, out: &mut Vec<Output>) {
        self.start(epoch, timeline, None, now, out);
    }

    /// Goes on with an epoch that an earlier start of the agent held, up to the deadline that the
    /// guard still knows.
    pub fn resume(
        &mut self,
        epoch: Epoch,
        timeline: TimelineId,
        deadline: TwoClocks,
        now: TwoClocks,
        out: &mut Vec<Output>,
    ) {
        self.start(epoch, timeline, Some(deadline), now, out);
    }

    fn start(
        &mut self,
        epoch: Epoch,
        timeline: TimelineId,
        deadline: Option<TwoClocks>,
        now: TwoClocks,
        out: &mut Vec<Output>,
    ) {
        self.expire(now);
        if let Some(known) = &self.tenure {
            if epoch <= known.epoch {
                return;
            }
            self.ended = self.ended.max(known.epoch);
        }
        let refused = epoch <= self.ended;
        let phase = match deadline {
            _ if refused => Phase::Expired,
            Some(_) => Phase::Held,
            None => Phase::Seeking,
        };
        self.tenure = Some(Tenure {
            epoch,
            timeline,
            phase,
            deadline: deadline.filter(|_| !refused),
            membership: None,
            sent: VecDeque::new(),
            next: now,
            judged: now,
            answered: true,
            misses: 0,
            stalled: false,
            answering: BTreeSet::new(),
        });
        self.tick(now, out);
    }

    /// Gives the lease up. Nothing of this epoch is sent again.
    pub fn release(&mut self) {
        if let Some(tenure) = self.tenure.take() {
            self.ended = self.ended.max(tenure.epoch);
        }
    }

    /// What PostgreSQL has flushed; the next renewal carries it.
    pub fn set_wal(&mut self, flush: WalPosition) {
        self.flush = flush;
    }

    /// Tells every manager how an epoch ended, several times. `fenced` ends the epoch here too:
    /// it must never be renewed once others may rely on its end.
    pub fn notice(&mut self, notice: Notice, now: TwoClocks, out: &mut Vec<Output>) {
        if notice.fenced {
            if self.tenure.as_ref().is_some_and(|t| t.epoch <= notice.epoch) {
                self.release();
            }
            self.ended = self.ended.max(notice.epoch);
        }
        self.notices.retain(|pending| pending.notice.epoch != notice.epoch);
        self.notices.push(PendingNotice { notice, left: NOTICE_REPEATS, next: now });
        self.tick(now, out);
    }

    /// What the guard said to the last deadline. Renewing stops while it takes none.
    pub fn published(&mut self, taken: bool, now: TwoClocks) {
        let renew = self.config.timings.renew;
        if let Some(tenure) = self.tenure.as_mut().filter(|t| t.is_active()) {
            if taken && tenure.stalled {
                tenure.next = now;
                tenure.answered = true; // the silence was ours
            } else if !taken {
                tenure.next = now.plus(renew);
            }
            tenure.stalled = !taken;
        }
    }

    /// What others may see.
    pub fn view(&self) -> HolderView {
        let Some(tenure) = &self.tenure else { return HolderView::default() };
        HolderView {
            epoch: tenure.epoch,
            phase: tenure.phase,
            deadline: tenure.deadline,
            membership: tenure.membership.as_ref().map(|m| m.id),
            stalled: tenure.stalled,
            answering: tenure.answering.clone(),
        }
    }

    /// Time until [`Holder::tick`] has something to do; `None` when nothing is due ever.
    pub fn next_wake(&self, now: TwoClocks) -> Option<Duration> {
        let notices = self.notices.iter().map(|n| n.next);
        let tenure = self.active().into_iter().flat_map(|t| [Some(t.next), t.deadline]).flatten();
        notices.chain(tenure).map(|at| at.holder_remaining(now)).min()
    }

    /// Does what is due.
    pub fn tick(&mut self, now: TwoClocks, out: &mut Vec<Output>) {
        self.expire(now);
        self.send_notices(now, out);
        self.send_renewal(now, out);
    }

    /// Takes one message that was checked to be for us.
    ///
    /// # Errors
    /// It answers nothing that is still of interest.
    pub fn receive(
        &mut self,
        from: &MemberId,
        letter: Letter,
        now: TwoClocks,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        self.expire(now);
        let session = self.config.session;
        let epoch = letter.epoch;
        let peer = self.config.peers.contains(from);
        let Some(tenure) = self.tenure.as_mut().filter(|t| peer && t.is_active() && t.epoch == epoch) else {
            return Err(Refusal::Unexpected);
        };
        match letter.body {
            Body::Ack { ticket, membership } if ticket.session == session => {
                self.acked(from, ticket.seq, membership, now, out)
            }
            Body::ProbeAck { ticket } if ticket.session == session => self.probe_acked(from, ticket.seq, now, out),
            Body::Nack { ticket, sealed } if ticket.session == session && sealed > epoch => {
                tenure.phase = Phase::Superseded { sealed };
                tenure.sent.clear();
                self.ended = self.ended.max(epoch);
                Ok(())
            }
            Body::Ack { .. }
            | Body::ProbeAck { .. }
            | Body::Nack { .. }
            | Body::Renew { .. }
            | Body::Probe { .. }
            | Body::Notice { .. } => Err(Refusal::Unexpected),
        }
    }

    fn active(&self) -> Option<&Tenure> {
        self.tenure.as_ref().filter(|t| t.is_active())
    }

    fn expire(&mut self, now: TwoClocks) {
        if let Some(tenure) = self.tenure.as_mut().filter(|t| t.is_active())
            && tenure.deadline.is_some_and(|d| d.holder_remaining(now).is_zero())
        {
            tenure.phase = Phase::Expired;
            tenure.sent.clear();
            self.ended = self.ended.max(tenure.epoch);
        }
    }

    fn acked(
        &mut self,
        from: &MemberId,
        seq: u64,
        membership: Membership,
        now: TwoClocks,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        let hold = self.config.timings.hold;
        let tenure = self.tenure.as_mut().ok_or(Refusal::Unexpected)?;
        let sent = tenure.sent.iter_mut().find(|s| s.seq == seq && !s.probe).ok_or(Refusal::Unexpected)?;
        let deadline = sent.at.plus(hold);
        if !sent.answer(from, &membership) || deadline.holder_remaining(now).is_zero() {
            return Ok(());
        }
        let was = tenure.deadline;
        let deadline = was.map_or(deadline, |d| d.later(deadline));
        tenure.deadline = Some(deadline);
        tenure.membership = Some(membership);
        tenure.answered = true;
        tenure.misses = 0;
        if was.is_none() {
            tenure.next = now.plus(self.config.timings.renew); // no haste any more
        } else if tenure.phase == Phase::Probing {
            tenure.next = now;
        }
        tenure.phase = Phase::Held;
        if was != Some(deadline) {
            out.push(Output::Deadline(tenure.epoch, deadline));
        }
        Ok(())
    }

    fn probe_acked(&mut self, from: &MemberId, seq: u64, now: TwoClocks, out: &mut Vec<Output>) -> Result<(), Refusal> {
        let tenure = self.tenure.as_mut().ok_or(Refusal::Unexpected)?;
        // A probe ack names no membership: it only has to make an answer to a renewal likely.
        let assumed =
            tenure.membership.clone().unwrap_or_else(|| Membership::simple(0, self.config.peers.iter().cloned()));
        let sent = tenure.sent.iter_mut().find(|s| s.seq == seq && s.probe).ok_or(Refusal::Unexpected)?;
        if sent.answer(from, &assumed) && tenure.phase == Phase::Probing {
            tenure.phase = if tenure.deadline.is_some() { Phase::Held } else { Phase::Seeking };
            tenure.misses = 0;
            tenure.answered = true;
            tenure.next = now;
            tenure.judged = now;
            self.send_renewal(now, out);
        }
        Ok(())
    }

    fn send_renewal(&mut self, now: TwoClocks, out: &mut Vec<Output>) {
        let Timings { renew, rpc, hold, grant, .. } = self.config.timings;
        let Some(tenure) = self.tenure.as_mut().filter(|t| t.is_active() && is_due(t.next, now)) else { return };
        if let Some(deadline) = tenure.deadline.filter(|_| tenure.stalled) {
            tenure.next = now.plus(renew);
            out.push(Output::Deadline(tenure.epoch, deadline));
            return;
        }
        if is_due(tenure.judged, now) {
            tenure.misses = if tenure.answered { 0 } else { tenure.misses + 1 };
            tenure.answered = false;
            tenure.judged = now.plus(renew);
        }
        let probe = tenure.misses >= MISSES_MAX;
        if probe {
            tenure.phase = Phase::Probing;
        }
        let seeking = tenure.phase == Phase::Seeking;
        tenure.next = now.plus(if seeking { (rpc / 3).min(renew).max(Duration::from_millis(1)) } else { renew });
        if !seeking {
            tenure.judged = tenure.next;
        }
        tenure.sent.retain(|s| !s.at.plus(hold).holder_remaining(now).is_zero());
        if tenure.sent.len() == SENT_MAX {
            tenure.sent.pop_front();
        }
        tenure.answering = tenure.reached();
        self.seq += 1;
        tenure.sent.push_back(Sent { seq: self.seq, at: now, probe, done: false, answers: Vec::new() });
        let ticket = Ticket { session: self.config.session, seq: self.seq };
        // What was flushed before the promotion says nothing of what this epoch wrote.
        let flush = if self.flush.timeline < tenure.timeline { WalPosition::default() } else { self.flush };
        let body = if probe { Body::Probe { ticket } } else { Body::Renew { ticket, flush, grant } };
        let letter = Letter { epoch: tenure.epoch, body };
        out.extend(self.config.peers.iter().map(|peer| Output::Send(peer.clone(), letter.clone())));
    }

    fn send_notices(&mut self, now: TwoClocks, out: &mut Vec<Output>) {
        let renew = self.config.timings.renew;
        for pending in self.notices.iter_mut().filter(|p| is_due(p.next, now)) {
            let Notice { epoch, fenced, end, clean, .. } = pending.notice;
            let letter = Letter { epoch, body: Body::Notice { fenced, end, clean } };
            out.extend(self.config.peers.iter().map(|peer| Output::Send(peer.clone(), letter.clone())));
            pending.left -= 1;
            pending.next = now.plus(renew);
        }
        self.notices.retain(|pending| pending.left > 0);
    }
}

fn is_due(at: TwoClocks, now: TwoClocks) -> bool {
    at.holder_remaining(now).is_zero()
}

impl Tenure {
    fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Seeking | Phase::Held | Phase::Probing)
    }

    /// Who answered each of the last renewals.
    fn reached(&self) -> BTreeSet<MemberId> {
        let renewals = self.sent.iter().rev().filter(|s| !s.probe).take(IN_A_ROW);
        let mut sets: Vec<BTreeSet<MemberId>> = renewals.map(Sent::answerers).collect();
        let Some(last) = sets.pop().filter(|_| sets.len() + 1 == IN_A_ROW) else { return BTreeSet::new() };
        sets.into_iter().fold(last, |all, one| all.intersection(&one).cloned().collect())
    }
}

impl Sent {
    /// Whoever answered, voter or not.
    fn answerers(&self) -> BTreeSet<MemberId> {
        self.answers.iter().flat_map(|(_, who)| who).cloned().collect()
    }

    /// Notes an answer. True when it completes the first majority.
    fn answer(&mut self, from: &MemberId, membership: &Membership) -> bool {
        let index = self.answers.iter().position(|(known, _)| known == membership).unwrap_or_else(|| {
            self.answers.push((membership.clone(), BTreeSet::new()));
            self.answers.len() - 1
        });
        let (membership, who) = &mut self.answers[index];
        who.insert(from.clone());
        let first = !self.done && membership.has_majority(who);
        self.done |= first;
        first
    }
}

#[cfg(test)]
#[path = "holder_test.rs"]
mod tests;
