//! What managers ask each other and their agents, and what becomes of it in time.

use std::{collections::btree_map::Entry, rc::Rc};

use matriarch::{
    agent::order::Address,
    domain::{Epoch, Format, PostgresState, Promise, observation::AgentView, observation::Notice},
    manager::view::primary_ready,
};

use super::{ManagerEvent, lease_side::Item};
use crate::{
    agent::{AgentEvent, Ask},
    clock::{MS, SECOND, Time, micros},
    host::Host,
    network::Channel,
    world::{Sky, What},
};

/// Between two questions to the same voter.
const AGAIN: Time = 40 * MS;
/// How long a host may take to say where its WAL ends, or to apply the entry that names an epoch.
const PROBE: Time = SECOND;

#[derive(Debug)]
pub enum Request {
    Report { view: Option<(Rc<AgentView>, std::time::Duration)>, promise: Promise, notices: Vec<Notice> },
    Seal { epoch: Epoch },
}

#[derive(Debug)]
pub enum Reply {
    Report { ready: bool, epoch: Epoch },
    Seal(Option<(Promise, Option<Rc<AgentView>>)>),
}

/// Who wants a seal.
#[derive(Debug, Clone, Copy)]
pub enum SealFor {
    /// This leader, of its own host.
    Own { epoch: Epoch },
    /// The leader there.
    Remote { from: usize, number: u64 },
}

/// What an answer is waited for with.
#[derive(Debug)]
pub enum Pending {
    Report,
    Seal {
        member: usize,
        epoch: Epoch,
    },
    /// The agent's probe after a seal.
    SealProbe {
        whose: SealFor,
        promise: Promise,
    },
    Execute,
    Brief,
    Proposal,
    /// The probe of a switchover's target.
    CatchUp,
    Entry {
        from: usize,
        number: u64,
    },
}

impl Host {
    /// Who is meant by a request to the own agent.
    pub(super) fn address(&self) -> Address {
        let state = self.manager.as_ref().map(|m| Rc::clone(&m.state)).unwrap_or_default();
        let target = crate::world_name(self.index);
        Address { cluster_id: state.cluster_id(), generation: state.generation(), target }
    }

    /// Waits for an answer for `limit` at most.
    pub(super) fn expect(&mut self, sky: &mut Sky, pending: Pending, limit: Time) -> u64 {
        let number = self.m().number();
        self.m().pending.insert(number, pending);
        self.manager_event(sky, limit, ManagerEvent::Timeout { number });
        number
    }

    pub(super) fn ask_peer(&mut self, sky: &mut Sky, to: usize, pending: Pending, limit: Time, request: Request) {
        let number = self.expect(sky, pending, limit);
        let what = What::Manager(ManagerEvent::Request { from: self.index, number, request });
        sky.send(Channel::Control, self.index, to, 0, what);
    }

    pub(super) fn on_request(&mut self, sky: &mut Sky, from: usize, number: u64, request: Request) {
        match request {
            Request::Report { view, promise, notices } => {
                let now = self.board_now(sky);
                let member = sky.names[from].clone();
                let manager = self.m();
                notices.into_iter().for_each(|n| manager.board.notice(n));
                let agent = view.map(|(view, age)| (AgentView::clone(&view), age));
                manager.board.observe(&member, agent, promise, now);
                manager.board.knows(&member, Format::NEWEST);
                let situation = manager.board.situation(&manager.state, &sky.timings, now);
                let ready = primary_ready(&situation);
                let reply = Reply::Report { ready, epoch: manager.state.epoch };
                self.board_changed(sky);
                self.reply(sky, from, number, reply);
            }
            Request::Seal { epoch } => {
                if self.m().state.epoch >= epoch {
                    self.give_acceptor(sky, Item::Seal { epoch, whose: SealFor::Remote { from, number } });
                } else {
                    let until = sky.now + PROBE;
                    self.m().awaiting_entry.push((from, number, epoch, until));
                    self.expect(sky, Pending::Entry { from, number }, PROBE);
                }
            }
        }
    }

    fn reply(&mut self, sky: &mut Sky, to: usize, number: u64, reply: Reply) {
        let what = What::Manager(ManagerEvent::Reply { number, reply });
        sky.send(Channel::Control, self.index, to, 0, what);
    }

    /// Seals that waited for the entry that names their epoch.
    pub(super) fn entries_arrived(&mut self, sky: &mut Sky) {
        let (epoch, now) = (self.m().state.epoch, sky.now);
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.m().awaiting_entry).into_iter().partition(|(_, _, wanted, _)| *wanted <= epoch);
        self.m().awaiting_entry = later;
        for (from, number, wanted, until) in due {
            if now <= until {
                let whose = SealFor::Remote { from, number };
                self.give_acceptor(sky, Item::Seal { epoch: wanted, whose });
            }
        }
    }

    /// The seal is durable: now the own agent is asked where WAL ends, in this order.
    pub(super) fn sealed(&mut self, sky: &mut Sky, whose: SealFor, promise: Promise) {
        match self.ask_probe(sky, Pending::SealProbe { whose, promise }, PROBE) {
            true => {}
            false => self.seal_answered(sky, whose, promise, None),
        }
    }

    /// `brief::run`: the own agent is told what is new.
    pub(super) fn brief(&mut self, sky: &mut Sky) {
        let manager = self.m();
        let told = manager.said.as_ref().map(|(view, _)| view.session);
        let Some(session) = told.filter(|_| sky.sync && manager.state.identity.is_some() && manager.briefing.is_none())
        else {
            return;
        };
        let news = (session, manager.state.briefing());
        let Some(life) = self.agent.as_ref().filter(|a| a.serving).map(|a| a.life) else { return };
        if self.m().briefed.as_ref() == Some(&news) {
            return;
        }
        let ask = Ask::Brief(self.address(), Box::new(news.1.clone()), self.expect(sky, Pending::Brief, SECOND));
        self.m().briefing = Some(news);
        sky.after(150, self.index, life, What::Agent(AgentEvent::Ask(ask)));
    }

    pub(super) fn brief_answered(&mut self, sky: &mut Sky, number: u64, taken: bool) {
        self.m().pending.remove(&number);
        let news = self.m().briefing.take();
        if taken {
            self.m().briefed = news;
        }
        self.manager_event(sky, if taken { 100 } else { 200 * MS }, ManagerEvent::BriefAgain);
    }

    /// Asks the own agent for a status probed now; false when it is not there.
    pub(super) fn ask_probe(&mut self, sky: &mut Sky, pending: Pending, limit: Time) -> bool {
        let Some(life) = self.agent.as_ref().filter(|a| a.serving).map(|a| a.life) else { return false };
        let number = self.expect(sky, pending, limit);
        let ask = AgentEvent::Ask(Ask::Probe(self.address(), number));
        sky.after(150, self.index, life, What::Agent(ask));
        true
    }

    pub(super) fn probe_answered(&mut self, sky: &mut Sky, number: u64, view: Option<Rc<AgentView>>) {
        let Some(pending) = self.m().pending.remove(&number) else { return };
        if let Some(view) = &view {
            self.put_said(sky, Rc::clone(view));
        }
        match pending {
            Pending::SealProbe { whose, promise } => self.seal_answered(sky, whose, promise, view),
            Pending::CatchUp => self.caught_up(sky),
            _ => {}
        }
    }

    fn seal_answered(&mut self, sky: &mut Sky, whose: SealFor, promise: Promise, view: Option<Rc<AgentView>>) {
        match whose {
            SealFor::Own { epoch } => self.take_seal(sky, self.index, epoch, Some((promise, view))),
            SealFor::Remote { from, number } => self.reply(sky, from, number, Reply::Seal(Some((promise, view)))),
        }
    }

    // ------------------------------------------------------------ the leader asks for seals

    /// `seal::run`: asks everybody while an epoch is fenced and this manager leads.
    pub(super) fn look_at_seals(&mut self, sky: &mut Sky) {
        let Some(epoch) = self.sealing() else {
            self.m().asks.clear();
            return;
        };
        self.m().asks.retain(|_, (asked, _)| *asked == epoch);
        let now = self.board_now(sky);
        for member in 0..sky.n() {
            if let Entry::Vacant(asked) = self.m().asks.entry(member) {
                asked.insert((epoch, now));
                self.manager_event(sky, 30, ManagerEvent::SealAsk { member, epoch });
            }
        }
    }

    pub(super) fn seal_ask(&mut self, sky: &mut Sky, member: usize, epoch: Epoch) {
        if self.m().asks.get(&member).is_none_or(|(asked, _)| *asked != epoch) {
            return;
        }
        if member == self.index {
            return self.give_acceptor(sky, Item::Seal { epoch, whose: SealFor::Own { epoch } });
        }
        let limit = PROBE + micros(sky.timings.rpc);
        self.ask_peer(sky, member, Pending::Seal { member, epoch }, limit, Request::Seal { epoch });
    }

    fn take_seal(
        &mut self,
        sky: &mut Sky,
        member: usize,
        epoch: Epoch,
        answer: Option<(Promise, Option<Rc<AgentView>>)>,
    ) {
        let now = self.board_now(sky);
        let name = sky.names[member].clone();
        let silent = sky.timings.silent;
        let manager = self.m();
        let Some((asked, heard)) = manager.asks.get_mut(&member) else { return };
        if *asked != epoch {
            return;
        }
        let wait = match answer {
            Some((promise, view)) => {
                *heard = now;
                let known = view.as_ref().is_some_and(|a| a.state == PostgresState::Standby && a.wal_end_known);
                let agent = view.map(|v| AgentView::clone(&v));
                manager.board.seal(&name, epoch, (promise, agent), now);
                let asleep = manager.state.asleep().is_some();
                self.board_changed(sky);
                let known = known || sky.witness == Some(member);
                match (asleep, promise.lapsed && known) {
                    // One that sleeps is asked for days.
                    (true, _) => 2 * SECOND,
                    (false, true) => 500 * MS,
                    (false, false) => AGAIN,
                }
            }
            None => {
                if now.since(*heard) > silent {
                    manager.board.seal_silent(&name, epoch);
                    self.board_changed(sky);
                }
                AGAIN * 2
            }
        };
        self.manager_event(sky, wait, ManagerEvent::SealAsk { member, epoch });
    }

    // ------------------------------------------------------------ answers

    pub(super) fn on_reply(&mut self, sky: &mut Sky, number: u64, reply: Reply) {
        let Some(pending) = self.m().pending.remove(&number) else { return };
        match (pending, reply) {
            (Pending::Report, Reply::Report { ready, epoch }) => {
                let ready = ready.then_some(epoch);
                self.m().board.take_word(ready, std::collections::BTreeMap::new());
                self.board_changed(sky);
                self.report_delivered(sky, true);
            }
            (Pending::Seal { member, epoch }, Reply::Seal(answer)) => self.take_seal(sky, member, epoch, answer),
            _ => {}
        }
    }

    pub(super) fn on_timeout(&mut self, sky: &mut Sky, number: u64) {
        let Some(pending) = self.m().pending.remove(&number) else { return };
        match pending {
            Pending::Report => self.report_delivered(sky, false),
            Pending::Seal { member, epoch } => self.take_seal(sky, member, epoch, None),
            Pending::SealProbe { whose, promise } => self.seal_answered(sky, whose, promise, None),
            Pending::Execute => self.executed_in_vain(sky, number),
            Pending::Brief => self.brief_answered(sky, number, false),
            Pending::Proposal => self.proposal_settled(sky, None),
            Pending::CatchUp => self.caught_up(sky),
            Pending::Entry { from, number } => {
                let before = self.m().awaiting_entry.len();
                self.m().awaiting_entry.retain(|(f, n, ..)| (*f, *n) != (from, number));
                if self.m().awaiting_entry.len() != before {
                    self.reply(sky, from, number, Reply::Seal(None));
                }
            }
        }
    }
}
