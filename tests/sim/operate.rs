//! What operators do to a cluster, in any state it is in, and that they undo all of it in the end.

use matriarch::{
    policy::{Situation, agenda, halt, hibernate, rolling, rolling::Wanted, switchover},
    state::{Kind, OperationKind, PrimaryTurn},
};

use crate::{
    chaos::Fault,
    clock::{MS, SECOND, Time},
    world::World,
};

impl World {
    pub fn work(&mut self, fault: Fault, i: usize) {
        let me = self.sky.names[i].clone();
        let roll = self.sky.dice.roll(12);
        let said = halt::Words { reason: "test", by: "op", force: roll < 4 };
        match fault {
            Fault::Hibernate if self.asleep() => self.ask("wakes", |s| hibernate::admit_wake(s, "op")),
            Fault::Hibernate => self.ask("stops of all", |s| hibernate::admit(s, said)),
            Fault::StopMember if roll.is_multiple_of(2) => self.start_members(),
            Fault::StopMember => self.ask("stops of one", |s| halt::admit_stop(s, &me, said)),
            Fault::Restart => {
                self.ask("restarts of one", |s| {
                    switchover::admit(s, OperationKind::Restart, Some(&me), said.force).map(Some)
                });
            }
            Fault::Roll => {
                let primary = [PrimaryTurn::Switchover, PrimaryTurn::InPlace, PrimaryTurn::Left];
                let wanted = Wanted { pending: false, primary: primary[usize::from(roll as u8 % 3)] };
                self.ask("rolling restarts", |s| rolling::admit(s, wanted, "op").map(Some));
            }
            Fault::Schedule => {
                let wait: Time = self.sky.dice.between(SECOND, 40 * SECOND);
                let kind = [OperationKind::Switchover, OperationKind::Restart][usize::from(roll < 4)];
                let to = (roll < 8).then_some(&me);
                self.ask("schedules", |s| {
                    let at_ms = s.wall_ms + wait / MS;
                    agenda::admit(s, kind, (None, to), at_ms, "op").map(Some).map_err(|why| format!("{why:?}"))
                });
            }
            _ => self.ask("cancels", |s| {
                let ids = s.state.agenda.scheduled.keys().copied();
                let ids: Vec<u64> = ids
                    .chain(s.state.agenda.rolling.as_ref().map(|r| r.id))
                    .chain(s.state.operation.as_ref().map(|o| o.id))
                    .collect();
                let id = ids.get(roll as usize % ids.len().max(1)).ok_or("there is nothing to cancel")?;
                Ok(Some(agenda::admit_cancel(s, *id, "op")?.0))
            }),
        }
    }

    fn ask(&mut self, what: &'static str, decide: impl FnOnce(&Situation<'_>) -> Result<Option<Kind>, String>) {
        let Some(leader) = self.leader() else { return };
        let refused = self.hosts[leader].ask(&mut self.sky, decide).err();
        self.sky.told.trace(self.sky.now, || format!("{what} asked for: {refused:?}"));
        self.sky.told.cover.count(if refused.is_some() { "work refused" } else { what });
    }

    /// By all that was committed.
    pub fn asleep(&self) -> bool {
        self.sky.told.state().is_some_and(|s| s.asleep().is_some())
    }

    fn start_members(&mut self) {
        let state = self.sky.told.state();
        let stopped =
            state.and_then(|s| Some(s.maintenance.iter().find(|(_, asked)| asked.stopped.is_some())?.0.clone()));
        if let Some(member) = stopped {
            self.ask("starts of one", |s| halt::admit_start(s, &member, "op"));
        }
    }

    /// Operators have everything started again.
    pub fn start_all(&mut self) {
        if self.asleep() {
            self.ask("wakes", |s| hibernate::admit_wake(s, "op"));
        }
        self.start_members();
    }

    /// Operators have the whole cluster stopped.
    pub fn stop_all(&mut self) {
        let said = halt::Words { reason: "test", by: "op", force: false };
        self.ask("stops of all", |s| hibernate::admit(s, said));
    }

    /// What operators wanted is under way, or not taken back.
    pub fn is_worked_on(&self) -> bool {
        self.sky.told.state().is_some_and(|s| {
            let agenda = &s.agenda;
            s.hibernation.is_some()
                || agenda.rolling.is_some()
                || !(agenda.scheduled.is_empty() && s.maintenance.is_empty())
        })
    }
}
