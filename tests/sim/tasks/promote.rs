//! Promotions: `agent::tasks::promote`.

use matriarch::{
    agent::{
        core::{Event, Sight, grows_from, is_as_granted},
        store::Tenure,
    },
    lease,
};

use super::{Failure, POLL, Progress, Step, TaskRun};
use crate::{
    agent::{AgentEvent, Link, Wake},
    clock::{MS, SECOND, Time},
    guard::Request,
    mutation::Mutation,
    postgres::{PgEvent, dir::Conf},
    world::{Proc, What, World},
};

impl World {
    /// Lease first, guard armed, and only then anything that could become writable.
    pub(super) fn promote(&mut self, i: usize, run: &mut TaskRun, tenure: &Tenure) -> Progress {
        let harmless = |began: bool| move |error: String| Failure { error, harmless: !began };
        match run.step {
            Step::Begin => {
                self.handle(i, run)?;
                self.refresh(i, run)?;
                run.began = self.hosts[i].armed() == Some(tenure.epoch);
                run.until = self.local(i, self.sky.timings.probe);
                run.step = Step::Look;
                Ok(Some(self.sky.dice.between(MS, 8 * MS)))
            }
            Step::Look => {
                let Some(seen) = self.look(i, run.until) else { return Ok(Some(POLL)) };
                let before = seen.map_err(harmless(run.began))?;
                run.began |= !before.in_recovery;
                if before.in_recovery {
                    is_as_granted(&before, tenure.floor).map_err(harmless(run.began))?;
                    self.is_free(i, tenure).map_err(harmless(run.began))?;
                } else if self.hosts[i].armed() != Some(tenure.epoch) {
                    return Err("somebody promoted it by hand".into());
                }
                run.before = Some(Box::new(before));
                run.step = Step::Hold;
                Ok(Some(100))
            }
            Step::Hold | Step::AwaitLease => self.take_lease(i, run, tenure),
            Step::Sever | Step::AwaitSevered | Step::Stubs | Step::AwaitPrimary => self.open_for_writes(i, run, tenure),
            _ => self.verify(i, run, tenure),
        }
    }

    /// A guard that does not answer won't take a deadline either.
    fn refresh(&self, i: usize, run: &TaskRun) -> Result<(), String> {
        let handle = self.handle(i, run)?;
        let host = &self.hosts[i];
        let there = host.guard.as_ref().is_some_and(|g| g.alive && g.life == handle.guard);
        match there && host.acts(Proc::Guard) {
            true => Ok(()),
            false => Err("the guard did not answer".to_owned()),
        }
    }

    fn take_lease(&mut self, i: usize, run: &mut TaskRun, tenure: &Tenure) -> Progress {
        let progress = self.try_lease(i, run, tenure);
        match progress {
            Err(error) if run.began => Err(Failure { error, harmless: false }),
            Err(error) => {
                self.with_holder(i, |holder, _, _| holder.release());
                let epoch = tenure.epoch;
                let _ = self.tell_guard(i, run, Request::Disarm { epoch });
                Err(Failure { error, harmless: true })
            }
            Ok(wait) => Ok(Some(wait)),
        }
    }

    fn try_lease(&mut self, i: usize, run: &mut TaskRun, tenure: &Tenure) -> Result<Time, String> {
        if run.step == Step::Hold {
            self.refresh(i, run)?;
            let handle = self.handle(i, run)?;
            if let Some(agent) = self.hosts[i].agent.as_mut() {
                agent.link = Some(Link { guard: handle.guard, sent: 0, echoed: 0, refused: None });
            }
            let (epoch, timeline) = (tenure.epoch, tenure.timeline);
            self.with_holder(i, |holder, now, out| holder.hold(epoch, timeline, now, out));
            run.until = self.local(i, self.sky.timings.grant * 2);
            run.step = Step::AwaitLease;
            return Ok(2 * MS);
        }
        let view = self.hosts[i].agent.as_ref().map(|a| a.holder.view()).unwrap_or_default();
        if view.epoch == tenure.epoch {
            match view.phase {
                lease::Phase::Held => {
                    let at = view.deadline.ok_or("the lease has no deadline")?;
                    let handle = self.handle(i, run)?;
                    let armed = self.ask_guard(i, handle.guard, Request::Arm { epoch: tenure.epoch, at });
                    armed.map_err(|_| "the guard did not take the deadline of this epoch".to_owned())?;
                    let recovering = run.before.as_ref().is_some_and(|b| b.in_recovery);
                    run.step = if recovering { Step::Sever } else { Step::Verify };
                    return Ok(MS);
                }
                lease::Phase::Expired | lease::Phase::Superseded { .. } => {
                    return Err(format!("the lease was not to be had: {:?}", view.phase));
                }
                lease::Phase::Idle | lease::Phase::Seeking | lease::Phase::Probing => {}
            }
        }
        if self.sky.now >= run.until {
            return Err("no majority of the managers answered for the lease".to_owned());
        }
        Ok(3 * MS)
    }

    /// From the held lease to writable.
    fn open_for_writes(&mut self, i: usize, run: &mut TaskRun, tenure: &Tenure) -> Progress {
        let server = self.hosts[i].postgres.as_ref().filter(|p| p.postmaster_alive).map(|p| p.life);
        let life = server.ok_or("the session ended")?;
        match run.step {
            Step::Sever => {
                self.still_a_standby(i)?;
                self.data_mut(i)?.conf = Conf::DormantPrimary;
                (self.hosts[i].live, self.hosts[i].first_live) = (Some(run.live.clone()), Some(run.live.clone()));
                self.sky.after(MS, i, life, What::Postgres(PgEvent::Reload));
                run.until = self.local(i, self.sky.timings.promote);
                run.step = Step::AwaitSevered;
                Ok(Some(15 * MS))
            }
            Step::AwaitSevered => {
                let severed =
                    self.hosts[i].postgres.as_ref().is_some_and(|p| p.upstream.is_none() && !p.has_receiver());
                if !severed {
                    return if self.sky.now < run.until {
                        Ok(Some(15 * MS))
                    } else {
                        Err("not severed in time".into())
                    };
                }
                run.step = Step::Stubs;
                Ok(Some(self.sky.dice.between(2 * MS, 10 * MS)))
            }
            Step::Stubs => {
                let own = self.still_a_standby(i)?.wal_end.timeline;
                let before = run.before.as_ref().map(|b| b.wal_end.timeline);
                if Some(own) != before {
                    return Err(format!("its timeline became {own} on the way").into());
                }
                self.is_free(i, tenure)?;
                if self.sky.mutation != Mutation::TimelineNotReserved {
                    self.data_mut(i)?.place_stubs(own, tenure.timeline)?;
                }
                self.still_held(i, tenure)?;
                let wait = self.sky.dice.lag(40 * MS, 300 * MS, 25, 3 * SECOND);
                let epoch = Some(tenure.epoch);
                self.sky.after(wait, i, life, What::Postgres(PgEvent::Promoted { epoch }));
                run.step = Step::AwaitPrimary;
                Ok(Some(15 * MS))
            }
            _ => {
                let primary = self.hosts[i].postgres.as_ref().is_some_and(|p| !p.in_recovery);
                if primary {
                    run.until = self.local(i, self.sky.timings.probe);
                    run.step = Step::Verify;
                    return Ok(Some(3 * MS));
                }
                if self.sky.now < run.until { Ok(Some(15 * MS)) } else { Err("not promoted in time".into()) }
            }
        }
    }

    fn is_free(&mut self, i: usize, tenure: &Tenure) -> Result<(), String> {
        match self.data_mut(i)?.histories.contains_key(&tenure.timeline) {
            true => Err(format!("it has a history file of timeline {}", tenure.timeline)),
            false => Ok(()),
        }
    }

    fn still_a_standby(&mut self, i: usize) -> Result<Sight, String> {
        let seen = self.probe(i)?;
        match seen.in_recovery {
            true => Ok(seen),
            false => Err("somebody promoted it by hand".to_owned()),
        }
    }

    pub(super) fn still_held(&self, i: usize, tenure: &Tenure) -> Result<(), String> {
        let host = &self.hosts[i];
        let now = host.clock.read(self.sky.now);
        let deadline = host.agent.as_ref().and_then(|a| a.deadline(tenure.epoch));
        match deadline.is_some_and(|d| !d.holder_remaining(now).is_zero()) {
            true => Ok(()),
            false => Err("the lease was lost on the way".to_owned()),
        }
    }

    /// The timeline it took must be the one of the grant, and grow out of what it was.
    fn verify(&mut self, i: usize, run: &mut TaskRun, tenure: &Tenure) -> Progress {
        let Some(seen) = self.look(i, run.until) else { return Ok(Some(POLL)) };
        let after = seen?;
        if after.in_recovery {
            return Err("it is still in recovery".into());
        }
        let unchecked = self.sky.mutation == Mutation::TimelineNotReserved;
        if after.wal_end.timeline != tenure.timeline && !unchecked {
            return Err(
                format!("it took timeline {}, the grant reserved {}", after.wal_end.timeline, tenure.timeline).into()
            );
        }
        let before = run.before.as_ref().ok_or("nothing was seen before")?;
        if !grows_from(&after.history, before, tenure) {
            return Err(format!("the history of timeline {} is not the one of the grant", tenure.timeline).into());
        }
        self.put_signal_back(i)?;
        self.report(i, after);
        if !before.in_recovery {
            // It may have been promoted before an earlier try had come to the live names.
            self.hosts[i].live = Some(run.live.clone());
            self.reload_soon(i);
        }
        Ok(None)
    }

    pub(super) fn put_signal_back(&mut self, i: usize) -> Result<(), String> {
        let catch = self.sky.mutation != Mutation::NoDormantCatch;
        self.data_mut(i)?.standby_signal |= catch;
        Ok(())
    }

    /// The rules learn what was seen here before they learn that the task is done.
    pub(super) fn report(&mut self, i: usize, sight: Sight) {
        let Some(agent) = self.hosts[i].agent.as_ref() else { return };
        let life = agent.postmasters;
        let event = Event::Probed { life, result: Ok(Box::new(sight)) };
        self.agent_after(i, 1, AgentEvent::Wake(Wake::Core(event)));
    }
}
