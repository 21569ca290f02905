//! One run after the other: wait until all is well, inject the fault, measure,
//! mend, wait until all is well again. Every wait has a deadline and says what
//! it waited for.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::{
    checker::{self, ms},
    cluster::Cluster,
    faults::Fault,
    logs,
    phases::{Marks, Phases},
    record::{RECOVERED, Record},
    supervisor::Role,
    transcript::Story,
    watcher::{self, Watcher},
    workload::{self, MULTI_HOST, ROUTED, Workload},
};
use crate::rpc::v1::StatusReply;

const START_DEADLINE: Duration = Duration::from_secs(120);
const HEAL_DEADLINE: Duration = Duration::from_secs(180);
const WRITE_DEADLINE: Duration = Duration::from_secs(60);
/// Writes are watched this long before the fault.
const BEFORE: Duration = Duration::from_secs(1);
/// And at least this long after it, so that a late error or a late second writer is seen.
const AFTER: Duration = Duration::from_secs(3);
const LEADER_TRIES: u32 = 5;

/// Where the Raft leader should be when the fault comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LeaderHost {
    /// Wherever it is.
    #[default]
    Any,
    /// On the host that the fault befalls: the primary's, or a standby's.
    Leader,
    /// On another host.
    Follower,
}

/// Whether the demo's own clients write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writers {
    /// Two clients and a direct probe of each member.
    Write,
    /// Nobody: the caller has clients of its own.
    Rest,
}

/// A running cluster with its workload, ready for faults.
pub(crate) struct Driver {
    /// The hosts.
    pub(crate) cluster: Cluster,
    /// What the managers say.
    pub(crate) watcher: Watcher,
    /// The writers.
    pub(crate) workload: Workload,
    story: Story,
    runs: u32,
}

impl Driver {
    /// Starts everything and waits until the cluster is healthy and written to.
    pub(crate) async fn start(cluster: Cluster, watcher: Watcher, story: &Story, writers: Writers) -> Result<Driver> {
        let count = cluster.layout.members.len();
        let dir = cluster.layout.root.display();
        story.say(format!("starting {count} hosts, each with manager, agent, router and PostgreSQL, in {dir}"));
        let began = Instant::now();
        cluster.start()?;
        let status = healthy(&cluster, &watcher, START_DEADLINE).await.context("start the cluster")?;
        let (primary, took) = (&status.primary, began.elapsed().as_secs_f64());
        story.say(format!("the cluster is healthy after {took:.1} s; primary: {primary}"));
        prepare(&cluster, primary).await?;
        if writers == Writers::Rest {
            let workload = Workload::none();
            return Ok(Driver { cluster, watcher, workload, story: story.clone(), runs: 0 });
        }
        let workload = Workload::start(&cluster.layout)?;
        let driver = Driver { cluster, watcher, workload, story: story.clone(), runs: 0 };
        for writer in [ROUTED, MULTI_HOST] {
            driver.wait_for_write(writer, began, None).await?;
        }
        story.say("two clients write: one through the router of their own host, one with a multi-host string");
        Ok(driver)
    }

    /// One fault from a healthy cluster to a healthy cluster.
    pub(crate) async fn run(&mut self, fault: Fault, leader: LeaderHost) -> Result<Record> {
        self.runs += 1;
        self.arrange_leader(leader, fault).await?;
        tokio::time::sleep(Duration::from_micros((uuid::Uuid::new_v4().as_u128() % 1_000_000) as u64)).await;
        let before = self.healthy(HEAL_DEADLINE).await?;
        self.workload.journal.forget(Instant::now() - BEFORE * 2);
        self.watcher.look_closely();
        tokio::time::sleep(BEFORE).await;

        let (primary, host) = (before.primary.clone(), fault.host(&before));
        let postmaster = self.cluster.postmaster(&host).ok();
        let old = checker::last_server(&self.workload.journal.since(Instant::now() - BEFORE));
        let old = old.filter(|_| fault.ends_the_server());
        let old = old.as_deref().map(|life| fault.no_recovery(life));
        self.story.say(fault.sentence(&host));
        let began = fault.inject(&self.cluster, &self.watcher, &before).await;
        let began = began.with_context(|| format!("inject {fault}"))?;
        let resumed = tokio::select! {
            resumed = self.wait_for_write(ROUTED, began, old) => resumed,
            never = fault.go_on(&self.cluster, &self.watcher, &primary) => match never {},
        };
        let marks = self.watcher.marks(began, before.epoch).earliest(self.logged_marks(began));
        match &resumed {
            Ok(rto) => self.story.say(format!("writes through the router go on {:.0} ms after the fault", ms(*rto))),
            Err(e) => self.story.say(format!("{e:#}")),
        }
        let multi_host = self.wait_for_write(MULTI_HOST, began, old).await.ok();
        tokio::time::sleep_until((began + AFTER).into()).await;

        let (rejoin, mut outcome) = self.mend(fault, &host, postmaster, began).await;
        if let Err(e) = &resumed {
            outcome = format!("{e:#}");
        }
        let end = Instant::now();
        let after = self.watcher.status().unwrap_or_default();
        let attempts = self.workload.journal.since(began - BEFORE);
        if fault == Fault::Switchover && outcome == RECOVERED && after.primary == primary {
            let why = after.last_operation.as_ref().map_or("no reason is known", |o| o.reason.as_str());
            outcome = format!("the primary is the same as before: {why}");
        }
        let lost = match checker::lost(&self.cluster.layout, &after.primary, &attempts).await {
            Ok(lost) => lost,
            Err(e) => {
                outcome = format!("lost rows could not be counted: {e:#}");
                0
            }
        };
        let counts = checker::count(&attempts);
        let rto = resumed.ok();
        let record = Record {
            fault: fault.to_string(),
            profile: self.cluster.layout.profile.clone(),
            run: self.runs,
            network: self.cluster.network_name().to_owned(),
            members: self.cluster.layout.members.len(),
            rto_ms: rto.map(ms),
            phases: rto.map(|rto| Phases::of(marks, rto)),
            multi_host_rto_ms: multi_host.map(ms),
            write_gap_ms: checker::longest_gap(&attempts, ROUTED, began, end).map(ms),
            attempts: counts.attempts,
            errors: counts.attempts - counts.acked,
            unknown: counts.unknown,
            acked: counts.acked,
            lost,
            two_writers_ms: ms(checker::two_writers(&attempts)),
            rejoin_ms: rejoin.map(ms),
            outcome,
            killed_host_was_raft_leader: before.leader == host,
            primary_before: primary,
            primary_after: after.primary,
            epoch_before: before.epoch,
            epoch_after: after.epoch,
            first_errors: checker::first_errors(&attempts, began),
        };
        self.story.say(record.sentence());
        Ok(record)
    }

    fn logged_marks(&self, fault: Instant) -> Marks {
        let members = self.cluster.layout.members.iter();
        let files = members.flat_map(|m| [Role::Manager, Role::Agent].map(|role| m.log(&role.to_string())));
        let logged: Vec<_> = files.flat_map(|file| logs::events_of(&file)).collect();
        logs::marks(&logged, SystemTime::now() - fault.elapsed())
    }

    /// Mends what does not mend itself and waits until all is well. Gives the
    /// time that took and the outcome.
    async fn mend(
        &self,
        fault: Fault,
        host: &str,
        postmaster: Option<i32>,
        began: Instant,
    ) -> (Option<Duration>, String) {
        let mut from = began;
        match fault.mend(&self.cluster, host, postmaster) {
            Ok(Some(what)) => {
                self.story.say(what);
                from = Instant::now();
            }
            Ok(None) => {}
            Err(e) => return (None, format!("{host} could not be started again: {e:#}")),
        }
        let healed = healed(&self.cluster, &self.watcher, from, HEAL_DEADLINE).await;
        match healed {
            Ok((took, status)) => {
                let primary = &status.primary;
                self.story.say(format!("all members are healthy after {:.0} ms; primary: {primary}", ms(took)));
                (Some(took), RECOVERED.to_owned())
            }
            Err(e) => (None, format!("{e:#}")),
        }
    }

    /// Waits until all is well.
    pub(crate) async fn healthy(&self, deadline: Duration) -> Result<StatusReply> {
        healthy(&self.cluster, &self.watcher, deadline).await
    }

    /// Waits for the writer's first acknowledgement of a write begun after `since`, not by lives that begin with `not_by`.
    async fn wait_for_write(&self, writer: &str, since: Instant, not_by: Option<&str>) -> Result<Duration> {
        let deadline = WRITE_DEADLINE;
        loop {
            if let Some(took) = checker::recovery(&self.workload.journal.since(since), writer, since, not_by) {
                return Ok(took);
            }
            if since.elapsed() > deadline {
                bail!("no write of the {writer} writer was acknowledged within {deadline:?}; {}", self.cluster.logs());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Moves the Raft leader to where it should be when the fault comes.
    async fn arrange_leader(&self, wanted: LeaderHost, fault: Fault) -> Result<()> {
        for _ in 0..LEADER_TRIES {
            let status = self.healthy(HEAL_DEADLINE).await?;
            let host = fault.host(&status);
            let is_there = |member: &String| *member == host;
            let right = match wanted {
                LeaderHost::Any => true,
                LeaderHost::Leader => is_there(&status.leader),
                LeaderHost::Follower => !is_there(&status.leader),
            };
            if right {
                return Ok(());
            }
            let members = status.members.iter().map(|m| &m.member);
            let to = members.into_iter().find(|m| is_there(m) == (wanted == LeaderHost::Leader));
            self.watcher.transfer_leader(to.context("the cluster has one member only")?).await;
        }
        bail!("the Raft leader did not come to the wanted host in {LEADER_TRIES} tries")
    }
}

/// Waits until all is well; two answers in a row must say so, because the first
/// may be from before the fault.
async fn healthy(cluster: &Cluster, watcher: &Watcher, deadline: Duration) -> Result<StatusReply> {
    healed(cluster, watcher, Instant::now(), deadline).await.map(|(_, status)| status)
}

async fn healed(
    cluster: &Cluster,
    watcher: &Watcher,
    from: Instant,
    deadline: Duration,
) -> Result<(Duration, StatusReply)> {
    let mut answers = watcher.receiver();
    answers.mark_unchanged();
    let mut since: Option<Instant> = None;
    let mut complaints = vec!["no manager has answered yet".to_owned()];
    loop {
        if let Some(failure) = cluster.failure() {
            bail!(failure);
        }
        if from.elapsed() > deadline {
            let why = complaints.join("; ");
            bail!("the cluster is not healthy after {deadline:?}: {why}; {}", cluster.logs());
        }
        let Ok(changed) = tokio::time::timeout(Duration::from_millis(500), answers.changed()).await else { continue };
        changed.context("the watcher has ended")?;
        let status = answers.borrow_and_update().clone();
        complaints = watcher::complaints(status.as_ref(), cluster.layout.members.len());
        match (complaints.is_empty(), since, status) {
            (true, Some(first), Some(status)) => {
                let well = watcher.well_since().unwrap_or(first);
                return Ok((well.saturating_duration_since(from), status));
            }
            (true, ..) => since = Some(Instant::now()),
            (false, ..) => since = None,
        }
    }
}

/// The primary may be open a moment before it takes the superuser's connection.
async fn prepare(cluster: &Cluster, primary: &str) -> Result<()> {
    let began = Instant::now();
    loop {
        match workload::prepare(&cluster.layout, primary).await {
            Ok(()) => return Ok(()),
            Err(e) if began.elapsed() > Duration::from_secs(20) => return Err(e.context(cluster.logs())),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}
