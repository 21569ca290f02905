//! What an agent reads of a directory whose server is gone: `Hands::survey`.

use matriarch::agent::core::{Disk, Event};

use super::POLL;
use crate::{
    agent::{AgentEvent, Wake},
    clock::{MS, SECOND},
    mutation::Mutation,
    world::World,
};

impl World {
    /// `Hands::survey`: makes the directory of a server that is gone safe, then reads it.
    pub fn survey(&mut self, i: usize, life: u64, wal_end: bool, locked: bool) {
        let Some(agent) = self.hosts[i].agent.as_mut() else { return };
        if !locked {
            if agent.data_dir_locked {
                return self.agent_after(i, POLL, AgentEvent::Survey { life, wal_end, locked: false });
            }
            agent.data_dir_locked = true;
            let wait = self.sky.dice.between(5 * MS, 40 * MS);
            return self.agent_after(i, wait, AgentEvent::Survey { life, wal_end, locked: true });
        }
        agent.data_dir_locked = false;
        if agent.postmasters != life {
            return;
        }
        self.make_safe(i);
        let mut disk = self.hosts[i].disks.place.read();
        if let (Disk::Present(facts), Some(data)) = (&mut disk, &self.hosts[i].disks.place.data)
            && facts.clean_shutdown
        {
            let end = data.wal_end(&self.sky.branches);
            if let Ok(history) = data.lineage(end, &self.sky) {
                (facts.proven_end, facts.history) = (Some(end), history);
            }
        }
        let unread = matches!(&disk, Disk::Present(facts) if facts.proven_end.is_none());
        self.wake_agent(i, Wake::Core(Event::Surveyed { life, disk }));
        if wal_end && unread {
            let wait = self.sky.dice.lag(20 * MS, 200 * MS, 10, 2 * SECOND);
            self.agent_after(i, wait, AgentEvent::WalEnd { life });
        }
    }

    fn make_safe(&mut self, i: usize) {
        self.hosts[i].live = None;
        let catch = self.sky.mutation != Mutation::NoDormantCatch;
        let place = self.place(i);
        let rewinding = place.rewinding;
        if let Some(data) = &mut place.data {
            data.standby_signal |= !rewinding && catch;
            data.remove_stubs();
        }
    }

    pub fn read_wal_end(&mut self, i: usize, life: u64) {
        let host = &self.hosts[i];
        let Some(agent) = &host.agent else { return };
        if agent.postmasters != life {
            return;
        }
        let runs = host.postgres.is_some();
        let read = host.disks.place.data.as_ref().filter(|_| !runs).and_then(|data| {
            let end = data.wal_end(&self.sky.branches);
            data.lineage(end, &self.sky).ok().map(|history| (end, history))
        });
        match read {
            Some((end, history)) => self.wake_agent(i, Wake::Core(Event::WalEndRead { life, end, history })),
            None => self.agent_after(i, 5 * SECOND, AgentEvent::WalEnd { life }),
        }
    }
}
