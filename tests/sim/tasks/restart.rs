//! Restarts in place: `agent::tasks::restart`.

use matriarch::{agent::store::Tenure, domain::moment::TwoClocks};

use super::{Progress, Step, TaskRun};
use crate::{
    agent::Link,
    clock::{MS, Time},
    mutation::Mutation,
    postgres::dir::Conf,
    world::World,
};

impl World {
    pub(super) fn restart(&mut self, i: usize, run: &mut TaskRun, tenure: &Tenure, resume: bool) -> Progress {
        let progress = match run.step {
            Step::Begin if resume => self.handle(i, run).map(|_| self.await_open(i, run)),
            Step::Begin => {
                run.step = Step::Prepare;
                Ok(self.sky.dice.between(5 * MS, 40 * MS))
            }
            Step::Prepare => self.prepare_restart(i, run, tenure),
            Step::Spawn => self.spawn_again(i, run, tenure),
            Step::AwaitOpen => match self.opened(i, run, tenure) {
                Ok(None) => return Ok(None),
                Ok(Some(wait)) => Ok(wait),
                Err(error) => Err(error),
            },
            _ => return self.take_back(i, run),
        };
        match progress {
            Ok(wait) => Ok(Some(wait)),
            Err(error) => {
                run.error = Some(error);
                let started = run.step == Step::AwaitOpen;
                run.step = if started { Step::Signal } else { Step::TakeBack };
                Ok(Some(1))
            }
        }
    }

    fn await_open(&mut self, i: usize, run: &mut TaskRun) -> Time {
        run.until = self.local(i, self.sky.timings.primary_start);
        run.step = Step::AwaitOpen;
        5 * MS
    }

    fn prepare_restart(&mut self, i: usize, run: &mut TaskRun, tenure: &Tenure) -> Result<Time, String> {
        let data = self.data_mut(i)?;
        let timeline = data.min_recovery.map_or(data.checkpoint.0, |(t, _)| t.max(data.checkpoint.0));
        if timeline != tenure.timeline {
            return Err(format!("pg_control is on timeline {timeline}, the grant on {}", tenure.timeline));
        }
        self.deadline_with_time_left(i, tenure)?;
        let data = self.data_mut(i)?;
        data.conf = Conf::DormantPrimary;
        data.standby_signal = false;
        let mut live = run.live.clone();
        if self.sky.mutation == Mutation::OldRuleInPlace
            && let Some(first) = self.hosts[i].first_live.clone()
        {
            live = first;
        }
        self.hosts[i].disks.shut = live.waits() && self.sky.mutation != Mutation::NoGate;
        self.hosts[i].live = Some(live);
        run.step = Step::Spawn;
        Ok(self.sky.dice.between(15 * MS, 120 * MS))
    }

    fn deadline_with_time_left(&self, i: usize, tenure: &Tenure) -> Result<TwoClocks, String> {
        let host = &self.hosts[i];
        let now = host.clock.read(self.sky.now);
        let deadline = host.agent.as_ref().and_then(|a| a.deadline(tenure.epoch)).ok_or("the lease is not held")?;
        match deadline.holder_remaining(now) >= self.sky.timings.hold / 2 {
            true => Ok(deadline),
            false => Err("too little of the lease is left".to_owned()),
        }
    }

    fn spawn_again(&mut self, i: usize, run: &mut TaskRun, tenure: &Tenure) -> Result<Time, String> {
        // The deadline was read before the files were written; the guard gets that one.
        let deadline =
            self.hosts[i].agent.as_ref().and_then(|a| a.deadline(tenure.epoch)).ok_or("the lease is not held")?;
        let guard = self.start_postmaster(i, tenure.epoch, Some(deadline))?;
        run.guard = Some(guard);
        if let Some(agent) = self.hosts[i].agent.as_mut() {
            agent.link = Some(Link { guard, sent: 0, echoed: 0, refused: None });
        }
        Ok(self.await_open(i, run))
    }

    fn opened(&mut self, i: usize, run: &mut TaskRun, tenure: &Tenure) -> Result<Option<Time>, String> {
        let handle = self.handle(i, run)?;
        if handle.report.is_clear() || !handle.alive {
            return Err("PostgreSQL ended again".to_owned());
        }
        self.still_held(i, tenure)?;
        if let Some(Ok(sight)) = self.look(i, Time::MAX)
            && !sight.in_recovery
        {
            if sight.wal_end.timeline != tenure.timeline {
                return Err(format!("it came up on timeline {}", sight.wal_end.timeline));
            }
            self.put_signal_back(i)?;
            let own = tenure.timeline;
            self.data_mut(i)?.place_stubs(own, own)?;
            self.report(i, sight);
            self.sky.told.cover.restarts_in_place += 1;
            return Ok(None);
        }
        match self.sky.now < run.until {
            true => Ok(Some(20 * MS)),
            false => Err("it did not accept writes in time".to_owned()),
        }
    }

    /// A restart that failed leaves nothing running and the signal file in place.
    fn take_back(&mut self, i: usize, run: &mut TaskRun) -> Progress {
        if run.step != Step::TakeBack {
            match self.stopping(i, run, false) {
                Ok(Some(wait)) => return Ok(Some(wait)),
                Ok(None) | Err(_) => run.step = Step::TakeBack,
            }
        }
        self.hosts[i].live = None;
        let _ = self.put_signal_back(i);
        Err(run.error.take().unwrap_or_default().into())
    }
}
