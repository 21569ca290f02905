//! The lease holder's thread and what passes between it, the rules and the network.

use matriarch::{
    agent::core::{Event, LeasePhase, LeaseSight},
    domain::{Epoch, MemberId, moment::TwoClocks, observation::ClockView},
    lease::{
        holder::{Holder, HolderView, Output},
        message::{Body, Letter},
    },
};

use super::{AgentEvent, Wake};
use crate::{
    clock::MS,
    invariants,
    manager::ManagerEvent,
    mutation::Mutation,
    world::{What, World},
};

impl World {
    /// Everything that touches the holder goes through here: what it wants sent or published is, and what
    /// changed for the rules is told them.
    pub fn with_holder(&mut self, i: usize, touch: impl FnOnce(&mut Holder, TwoClocks, &mut Vec<Output>)) {
        let clocks = self.hosts[i].clock.read(self.sky.now);
        let Some(agent) = self.agent(i) else { return };
        let mut out = Vec::new();
        touch(&mut agent.holder, clocks, &mut out);
        for output in out {
            match output {
                Output::Send(to, letter) => self.send_letter(i, &to, letter),
                Output::SendToAgent(..) => {} // failsafe is off
                Output::Deadline(epoch, deadline) => self.new_deadline(i, epoch, deadline),
            }
        }
        self.tell_rules_of_the_lease(i);
        self.set_holder_timer(i);
    }

    fn send_letter(&mut self, i: usize, to: &MemberId, mut letter: Letter) {
        let to = self.sky.index(to);
        if self.sky.mutation == Mutation::NoMargin
            && let Body::Renew { terms, .. } = &mut letter.body
        {
            terms.grant = self.sky.timings.hold;
        }
        let clocks = self.hosts[i].clock.read(self.sky.now);
        let Some(agent) = self.agent(i) else { return };
        if !agent.identified {
            return;
        }
        invariants::ended_epochs_stay_ended::looked_at(&mut self.sky.told, i, &letter);
        let Some(agent) = self.agent(i) else { return };
        if agent.renewals.back() != Some(&clocks) {
            agent.renewals.push_back(clocks);
            if agent.renewals.len() > 64 {
                agent.renewals.pop_front();
            }
        }
        for delay in self.sky.net.datagram(&mut self.sky.dice, i, to).into_iter().flatten() {
            let letter = letter.clone();
            self.sky.after(delay, to, 0, What::Manager(ManagerEvent::Datagram { from: i, letter }));
        }
    }

    fn new_deadline(&mut self, i: usize, epoch: Epoch, deadline: TwoClocks) {
        let clocks = self.hosts[i].clock.read(self.sky.now);
        let hold = self.sky.timings.hold;
        let Some(agent) = self.agent(i) else { return };
        let sent = std::mem::take(&mut agent.renewals);
        invariants::deadline_from_a_send_time::looked_at(&mut self.sky.told, &sent, deadline, clocks, hold);
        if let Some(agent) = self.agent(i) {
            agent.renewals = sent;
        }
        let mut deadline = deadline;
        if self.sky.mutation == Mutation::DeadlineFromReceipt {
            deadline = clocks.plus(hold);
            if let Some(agent) = self.agent(i) {
                agent.wrong_deadline = Some((epoch, deadline));
            }
        }
        let taken = self.publish_deadline(i, epoch, deadline);
        if let Some(agent) = self.agent(i) {
            agent.holder.published(taken, clocks);
        }
    }

    fn tell_rules_of_the_lease(&mut self, i: usize) {
        let Some(agent) = self.agent(i) else { return };
        let view = agent.holder.view();
        if view == agent.holder_view {
            return;
        }
        let superseded = |view: &HolderView| LeaseSight::from(view).phase == LeasePhase::Superseded;
        if superseded(&view) && !superseded(&agent.holder_view) {
            self.sky.told.cover.nacks += 1;
        }
        let Some(agent) = self.agent(i) else { return };
        if (view.own_clock_off, &view.clocks_off) != (agent.holder_view.own_clock_off, &agent.holder_view.clocks_off) {
            let clock = ClockView { own_off: view.own_clock_off, off: view.clocks_off.clone() };
            self.agent_after(i, 100, AgentEvent::Wake(Wake::Core(Event::Clocks(clock))));
        }
        let Some(agent) = self.agent(i) else { return };
        agent.holder_view = view;
        self.agent_after(i, 100, AgentEvent::Wake(Wake::Lease));
    }

    fn set_holder_timer(&mut self, i: usize) {
        let now = self.sky.now;
        let host = &mut self.hosts[i];
        let Some(agent) = &mut host.agent else { return };
        let clocks = host.clock.read(now);
        let Some(wait) = agent.holder.next_wake(clocks) else { return };
        // A thread is woken a little late.
        let at = host.clock.after(now, wait) + self.sky.dice.lag(10, 200, 50, 5 * MS);
        if agent.holder_wake.is_some_and(|set| set <= at && set >= now) {
            return;
        }
        agent.holder_wake = Some(at);
        let life = agent.life;
        self.sky.at(at, i, life, What::Agent(AgentEvent::HolderTimer));
    }

    pub(super) fn holder_timer(&mut self, i: usize) {
        let now = self.sky.now;
        let Some(agent) = self.agent(i) else { return };
        if agent.holder_wake.is_some_and(|set| set > now) {
            return;
        }
        agent.holder_wake = None;
        self.with_holder(i, |holder, now, out| holder.tick(now, out));
    }

    pub(super) fn holder_hears(&mut self, i: usize, from: usize, letter: Letter) {
        let name = self.sky.names[from].clone();
        self.with_holder(i, |holder, now, out| {
            let _ = holder.receive(&name, letter, now, out);
        });
    }
}
