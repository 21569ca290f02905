//! The acceptor's thread: one thing at a time, and nothing answered before what it rests on is on disk.
//! Mirrors `lease::acceptor_thread`.

use matriarch::{
    domain::{Epoch, Promise},
    lease::{acceptor::Durable, message::Letter},
};

use super::{ManagerEvent, rpc::SealFor};
use crate::{
    agent::AgentEvent,
    clock::MS,
    host::Host,
    invariants,
    mutation::Mutation,
    world::{Sky, What},
};

/// What the thread has to do.
#[derive(Debug)]
pub enum Item {
    Datagram { from: usize, letter: Letter },
    Seal { epoch: Epoch, whose: SealFor },
    Applied(Epoch),
}

/// What follows once it is on disk.
#[derive(Debug)]
pub struct AcceptorDone {
    durable: Durable,
    reply: Option<(usize, Letter)>,
    seal: Option<SealFor>,
}

impl Host {
    pub(super) fn acceptor_applied(&mut self, sky: &mut Sky) {
        let epoch = self.m().state.epoch;
        self.give_acceptor(sky, Item::Applied(epoch));
    }

    pub(super) fn datagram(&mut self, sky: &mut Sky, from: usize, letter: Letter) {
        if self.m().identified {
            self.give_acceptor(sky, Item::Datagram { from, letter });
        }
    }

    pub(super) fn give_acceptor(&mut self, sky: &mut Sky, item: Item) {
        let manager = self.m();
        if manager.acceptor_busy {
            manager.acceptor_queue.push_back(item);
            return;
        }
        self.acceptor_does(sky, item);
    }

    fn acceptor_does(&mut self, sky: &mut Sky, item: Item) {
        let now = self.clock.read(sky.now);
        match item {
            Item::Applied(epoch) => {
                let durable = self.m().acceptor.set_applied(epoch);
                self.store(sky, AcceptorDone { durable: Durable::default(), reply: None, seal: None }, durable);
            }
            Item::Seal { epoch, whose } => {
                let durable = self.m().acceptor.seal(epoch);
                self.store(sky, AcceptorDone { durable: Durable::default(), reply: None, seal: Some(whose) }, durable);
            }
            Item::Datagram { from, letter } => {
                let name = sky.names[from].clone();
                let response = self.m().acceptor.receive(&name, letter, now);
                if let Some(notice) = response.notice {
                    self.manager_event(sky, 50, ManagerEvent::Notice(notice));
                }
                let reply = response.reply.map(|letter| (from, letter));
                if let Some((_, letter)) = &reply {
                    invariants::sealed_epochs_are_not_acked::looked_at(&mut sky.told, self.index, letter);
                }
                let done = AcceptorDone { durable: Durable::default(), reply, seal: None };
                self.store(sky, done, response.persist);
            }
        }
        self.watch_promise(sky);
    }

    /// Writes the small file when something in it changed, and goes on with what rests on it.
    fn store(&mut self, sky: &mut Sky, done: AcceptorDone, durable: Option<Durable>) {
        let Some(durable) = durable else { return self.acceptor_goes_on(sky, done) };
        if sky.mutation == Mutation::SealBeforeDurable {
            // Said to be durable, and never written.
            self.m().acceptor.persisted(durable);
            return self.acceptor_goes_on(sky, done);
        }
        self.m().acceptor_busy = true;
        let wait = sky.fsync();
        let done = AcceptorDone { durable, ..done };
        self.manager_event(sky, wait, ManagerEvent::AcceptorSynced(Box::new(done)));
    }

    pub(super) fn acceptor_synced(&mut self, sky: &mut Sky, done: AcceptorDone) {
        self.disks.sealed = done.durable;
        let manager = self.m();
        manager.acceptor.persisted(done.durable);
        manager.acceptor_busy = false;
        self.acceptor_goes_on(sky, done);
        while !self.m().acceptor_busy
            && let Some(item) = self.m().acceptor_queue.pop_front()
        {
            self.acceptor_does(sky, item);
        }
        self.watch_promise(sky);
    }

    fn acceptor_goes_on(&mut self, sky: &mut Sky, done: AcceptorDone) {
        if let Some((to, letter)) = done.reply {
            for delay in sky.net.datagram(&mut sky.dice, self.index, to).into_iter().flatten() {
                let event = AgentEvent::Lease { from: self.index, letter: letter.clone() };
                sky.after(delay, to, 0, What::Agent(event));
            }
        }
        if let Some(whose) = done.seal {
            let promise = self.promise(sky);
            invariants::sealed_epochs_are_not_acked::sealed(&mut sky.told, self.index, promise.sealed);
            self.sealed(sky, whose, promise);
        }
    }

    pub(super) fn promise(&self, sky: &Sky) -> Promise {
        let now = self.clock.read(sky.now);
        self.manager.as_ref().map(|m| m.acceptor.promise(now)).unwrap_or_default()
    }

    /// The promise is pushed when its epoch, seal or end changes, or half of it is over.
    pub(super) fn watch_promise(&mut self, sky: &mut Sky) {
        let promise = self.promise(sky);
        let quiet = promise.quiet && sky.promise;
        let shown = (promise.sealed, promise.epoch, promise.lapsed, promise.renewed, quiet);
        if self.m().promise_shown != shown {
            self.m().promise_shown = shown;
            self.wake_report(sky, 20);
        }
        let half = sky.promise && promise.renewed && !quiet;
        let ends = self.m().acceptor.ends();
        let until = if half { ends.quiet_at } else { ends.until };
        if !promise.lapsed && !self.m().acceptor_timer {
            self.m().acceptor_timer = true;
            let at = self.clock.both_reach(until, sky.now) + sky.dice.lag(20, 300, 50, 3 * MS);
            self.manager_event(sky, at - sky.now, ManagerEvent::AcceptorTimer);
        }
    }
}
