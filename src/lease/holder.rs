//! The holder of the lease, pure: orders, messages and readings of the clocks
//! in, datagrams and deadlines out.
//!
//! Every step looks at the clocks before anything else, so nothing that arrives
//! late can bring an expired epoch back. Time is what the caller read *before*
//! sending: a deadline counted from there can only be too early.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use super::{
    counters::Refusal,
    failsafe::{Rounds, Unanimous},
    fitness::Fitness,
    message::{Body, Letter, Membership, Rate, Terms, Ticket},
};
use crate::domain::{
    Epoch, MemberId, MemberList, TimelineId, Timings, TimingsId, WalPosition, moment::TwoClocks, observation::Notice,
};

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
    /// What the deadline was counted by.
    pub timings: TimingsId,
    /// The last deadline came from the agents of all other members, not from a majority of managers.
    pub failsafe: bool,
    /// When that was asked for which the deadline stands: nobody had a higher epoch then.
    pub confirmed: Option<TwoClocks>,
    /// The version of the list of members that would be asked in failsafe; 0: none.
    pub members: u64,
    /// Voters whose clocks are off against ours, in millionths, above 0 when theirs run faster.
    pub clocks_off: BTreeMap<MemberId, i64>,
    /// Most voters differ from our clocks: it is ours that are off.
    pub own_clock_off: bool,
    /// Who answered each of the last [`IN_A_ROW`] renewals, counted or not.
    pub answering: BTreeSet<MemberId>,
}

/// What a holder is told once.
#[derive(Debug, Clone)]
pub struct HolderConfig {
    /// Drawn at each start.
    pub session: u64,
    /// All members: voters, and learners, which are asked how their clocks run.
    pub peers: Vec<MemberId>,
    /// Of this host's file, until others are told by [`Holder::set_timings`]. Renew, T_rpc, T_hold and T_grant are used.
    pub timings: Timings,
}

/// What a holder wants done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// To a member's manager.
    Send(MemberId, Letter),
    /// To a member's agent.
    SendToAgent(MemberId, Letter),
    /// To the guard; its answer comes back through [`Holder::published`].
    Deadline(Epoch, TwoClocks),
}

/// One renewal or probe under way.
#[derive(Debug)]
struct Sent {
    seq: u64,
    at: TwoClocks,
    probe: bool,
    /// T_hold, and what it belongs to.
    hold: Duration,
    timings: TimingsId,
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
    rounds: Rounds,
    failsafe: bool,
    confirmed: Option<TwoClocks>,
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
    /// Of `config.timings`.
    timings: TimingsId,
    /// Committed timings that no majority of acceptors is known to have applied.
    offered: Option<(TimingsId, Timings)>,
    /// This member; it is not asked in failsafe.
    me: Option<MemberId>,
    failsafe: bool,
    /// Peers that never vote, by the file of this host.
    learners: BTreeSet<MemberId>,
    members: MemberList,
    fitness: Fitness,
    seq: u64,
    ended: Epoch,
    flush: WalPosition,
    tenure: Option<Tenure>,
    notices: Vec<PendingNotice>,
    /// When the agent's loop was last at work; `None` before it has begun.
    vouched: Option<Duration>,
}

impl Holder {
    /// A holder that holds nothing.
    pub fn new(config: HolderConfig) -> Self {
        Self {
            config,
            timings: TimingsId::FILES,
            offered: None,
            me: None,
            failsafe: false,
            learners: BTreeSet::new(),
            members: MemberList::default(),
            fitness: Fitness::default(),
            seq: 0,
            ended: Epoch(0),
            flush: WalPosition::default(),
            tenure: None,
            notices: Vec::new(),
            vouched: None,
        }
    }

    /// Which member this is, and whether it may go on without the managers.
    pub fn set_me(&mut self, me: MemberId, failsafe: bool) {
        self.me = Some(me);
        self.failsafe = failsafe;
    }

    /// Who never votes, by the file of this host. No majority is counted by it, for acks name the voters: only before the first
    /// of them it says how many answers to a probe make renewals worth a try.
    pub fn set_learners(&mut self, learners: BTreeSet<MemberId>) {
        self.learners = learners;
    }

    /// The members as last applied on this host. An older list changes nothing.
    pub fn set_members(&mut self, members: MemberList) {
        if members.version > self.members.version {
            self.members = members;
        }
    }

    /// Timings that were committed; older ones than those in use change nothing. A lease that is held
    /// moves to them when a majority of the acceptors has acked a renewal that names them; until
    /// then every renewal goes out under both.
    pub fn set_timings(&mut self, id: TimingsId, timings: Timings) {
        if id <= self.timings || self.offered.is_some_and(|(offered, _)| id <= offered) {
            return;
        }
        self.offered = Some((id, timings));
        if self.active().is_none() {
            self.adopt_offered();
        }
    }

    fn adopt_offered(&mut self) {
        if let Some((id, timings)) = self.offered.take() {
            self.timings = id;
            self.config.timings = timings;
        }
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
        self.adopt_offered(); // nothing is at stake yet
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
            rounds: Rounds::default(),
            failsafe: false,
            confirmed: None,
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

    /// The agent's loop was at work at that moment (`CLOCK_BOOTTIME`). One that has not been for
    /// [`Timings::agent_patience`] can be given no order and can't be replaced, so nothing is renewed for it any more.
    pub fn vouch(&mut self, at: Duration) {
        self.vouched = self.vouched.max(Some(at));
    }

    /// Nobody has vouched for too long.
    pub fn is_neglected(&self, now: TwoClocks) -> bool {
        let patience = self.config.timings.agent_patience();
        self.vouched.is_some_and(|at| now.boot.saturating_sub(at) > patience)
    }

    /// What others may see.
    pub fn view(&self) -> HolderView {
        let me = self.me.as_ref();
        let common = HolderView {
            timings: self.timings,
            members: self.members.version,
            clocks_off: self.fitness.off(),
            own_clock_off: me.is_some_and(|me| self.fitness.own_is_off(me)),
            ..HolderView::default()
        };
        let Some(tenure) = &self.tenure else { return common };
        HolderView {
            epoch: tenure.epoch,
            phase: tenure.phase,
            deadline: tenure.deadline,
            membership: tenure.membership.as_ref().map(|m| m.id),
            stalled: tenure.stalled,
            failsafe: tenure.failsafe,
            confirmed: tenure.confirmed,
            answering: tenure.answering.clone(),
            ..common
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
        let peer = self.config.peers.contains(from) || self.members.agents.contains_key(from);
        let Some(tenure) = self.tenure.as_mut().filter(|t| peer && t.is_active() && t.epoch == epoch) else {
            return Err(Refusal::Unexpected);
        };
        match letter.body {
            Body::Ack { ticket, membership, elapsed } if ticket.session == session => {
                self.acked(from, ticket.seq, (membership, elapsed), now, out)
            }
            Body::FailsafeAck { ticket, members, promised } if ticket.session == session => {
                let unanimous = tenure.rounds.answer(from, ticket.seq, members, promised)?;
                self.agreed(unanimous, now, out);
                Ok(())
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
            | Body::Failsafe { .. }
            | Body::FailsafeAck { .. }
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
        (membership, elapsed): (Membership, TwoClocks),
        now: TwoClocks,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        let tenure = self.tenure.as_mut().ok_or(Refusal::Unexpected)?;
        let sent = tenure.sent.iter_mut().find(|s| s.seq == seq && !s.probe).ok_or(Refusal::Unexpected)?;
        self.fitness.note(from, (sent.at, now), elapsed, self.config.timings.drift_permille);
        let (at, deadline, timings) = (sent.at, sent.at.plus(sent.hold), sent.timings);
        if !sent.answer(from, &membership) || deadline.holder_remaining(now).is_zero() {
            return Ok(());
        }
        let first = tenure.deadline.is_none();
        tenure.extend(at, deadline, out);
        tenure.failsafe = false;
        tenure.rounds = Rounds::default();
        tenure.membership = Some(membership);
        tenure.answered = true;
        tenure.misses = 0;
        if first {
            tenure.next = now.plus(self.config.timings.renew); // no haste any more
        } else if tenure.phase == Phase::Probing {
            tenure.next = now;
        }
        tenure.phase = Phase::Held;
        self.move_to(timings, now);
        Ok(())
    }

    /// A majority has acked a renewal under these timings: from now on there are no others.
    fn move_to(&mut self, timings: TimingsId, now: TwoClocks) {
        if self.offered.is_some_and(|(offered, _)| offered == timings) {
            self.adopt_offered();
            if let Some(tenure) = &mut self.tenure {
                tenure.next = tenure.next.earlier(now.plus(self.config.timings.renew));
                tenure.judged = tenure.next;
            }
        }
    }

    /// The agents of all other members have answered one round.
    fn agreed(&mut self, unanimous: Option<Unanimous>, now: TwoClocks, out: &mut Vec<Output>) {
        let Some(Unanimous { at, hold, promise }) = unanimous else { return };
        if !promise {
            return self.ask_agents(now, out);
        }
        let deadline = at.plus(hold);
        // Whoever has a lease may go on with it; it is never begun this way.
        if let Some(tenure) = self.tenure.as_mut().filter(|t| t.deadline.is_some())
            && !deadline.holder_remaining(now).is_zero()
        {
            tenure.extend(at, deadline, out);
            tenure.failsafe = true;
        }
    }

    fn probe_acked(&mut self, from: &MemberId, seq: u64, now: TwoClocks, out: &mut Vec<Output>) -> Result<(), Refusal> {
        let tenure = self.tenure.as_mut().ok_or(Refusal::Unexpected)?;
        // A probe ack names no membership: it only has to make an answer to a renewal likely.
        let voters = || self.config.peers.iter().filter(|peer| !self.learners.contains(*peer)).cloned();
        let assumed = tenure.membership.clone().unwrap_or_else(|| Membership::simple(0, voters()));
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
        let Timings { renew, rpc, .. } = self.config.timings;
        let neglected = self.is_neglected(now);
        let Some(tenure) = self.tenure.as_mut().filter(|t| t.is_active() && is_due(t.next, now)) else { return };
        if neglected {
            (tenure.next, tenure.answered) = (now.plus(renew), true);
            return;
        }
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
        tenure.sent.retain(|s| !s.at.plus(s.hold).holder_remaining(now).is_zero());
        let current = (self.timings, self.config.timings);
        self.ask_managers(probe, current, now, out);
        match self.offered {
            Some(offered) if !probe => self.ask_managers(false, offered, now, out),
            Some(_) | None => {}
        }
        if probe {
            self.ask_agents(now, out);
        }
    }

    /// One renewal or probe to every manager.
    fn ask_managers(
        &mut self,
        probe: bool,
        (id, Timings { hold, grant, .. }): (TimingsId, Timings),
        now: TwoClocks,
        out: &mut Vec<Output>,
    ) {
        let Some(tenure) = &mut self.tenure else { return };
        if tenure.sent.len() == SENT_MAX {
            tenure.sent.pop_front();
        }
        tenure.answering = tenure.reached();
        self.seq += 1;
        let ticket = Ticket { session: self.config.session, seq: self.seq };
        let sent = Sent { seq: self.seq, at: now, probe, hold, timings: id, done: false, answers: Vec::new() };
        tenure.sent.push_back(sent);
        // What was flushed before the promotion says nothing of what this epoch wrote.
        let flush = if self.flush.timeline < tenure.timeline { WalPosition::default() } else { self.flush };
        let terms = Terms { timings: id, grant };
        let ours = self.me.as_ref().is_some_and(|me| self.fitness.own_is_off(me));
        for peer in &self.config.peers {
            let members = self.members.version;
            let rate = match self.fitness.rate(peer) {
                Rate::Off(_) if ours => Rate::Fine, // nobody else is to blame
                rate @ (Rate::Unknown | Rate::Fine | Rate::Off(_)) => rate,
            };
            let body = match probe {
                true => Body::Probe { ticket },
                false => Body::Renew { ticket, flush, terms, members, rate },
            };
            out.push(Output::Send(peer.clone(), Letter { epoch: tenure.epoch, body }));
        }
    }

    /// One round to the agents of all other members, where that is allowed and there is a lease to go on with.
    fn ask_agents(&mut self, now: TwoClocks, out: &mut Vec<Output>) {
        let (Some(me), Some(tenure)) = (&self.me, &mut self.tenure) else { return };
        let MemberList { version, agents } = &self.members;
        let others: BTreeSet<MemberId> = agents.keys().filter(|member| *member != me).cloned().collect();
        let listed = *version > 0 && agents.contains_key(me) && !others.is_empty();
        if !self.failsafe || !listed || tenure.deadline.is_none() {
            return;
        }
        self.seq += 1;
        let Timings { hold, grant, .. } = self.config.timings;
        let ticket = Ticket { session: self.config.session, seq: self.seq };
        let promise = tenure.rounds.begin(self.seq, now, hold, *version, &others);
        let terms = promise.then_some(Terms { timings: self.timings, grant });
        let body = Body::Failsafe { ticket, members: *version, terms };
        let letter = Letter { epoch: tenure.epoch, body };
        out.extend(others.into_iter().map(|agent| Output::SendToAgent(agent, letter.clone())));
    }

    fn send_notices(&mut self, now: TwoClocks, out: &mut Vec<Output>) {
        let renew = self.config.timings.renew;
        for pending in self.notices.iter_mut().filter(|p| is_due(p.next, now)) {
            let Notice { epoch, fenced, end, clean, cause, .. } = pending.notice;
            let letter = Letter { epoch, body: Body::Notice { fenced, end, clean, cause } };
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

    /// What was asked for at `at` lets the holder write until `deadline`. A deadline never goes back.
    fn extend(&mut self, at: TwoClocks, deadline: TwoClocks, out: &mut Vec<Output>) {
        let later = self.deadline.map_or(deadline, |known| known.later(deadline));
        self.confirmed = Some(self.confirmed.map_or(at, |known| known.later(at)));
        if self.deadline != Some(later) {
            self.deadline = Some(later);
            out.push(Output::Deadline(self.epoch, later));
        }
    }

    /// Who answered each of the last renewals.
    fn reached(&self) -> BTreeSet<MemberId> {
        let renewals = self.sent.iter().rev().filter(|s| !s.probe).take(IN_A_ROW);
        let last: Vec<&Sent> = renewals.collect();
        let Some((newest, others)) = last.split_first().filter(|_| last.len() == IN_A_ROW) else {
            return BTreeSet::new();
        };
        let always = |who: &&MemberId| others.iter().all(|sent| sent.has_answer_of(who));
        newest.answerers().filter(always).cloned().collect()
    }
}

impl Sent {
    /// Whoever answered, voter or not.
    fn answerers(&self) -> impl Iterator<Item = &MemberId> {
        self.answers.iter().flat_map(|(_, who)| who)
    }

    fn has_answer_of(&self, member: &MemberId) -> bool {
        self.answers.iter().any(|(_, who)| who.contains(member))
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
