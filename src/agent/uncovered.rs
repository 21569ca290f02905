//! Looks every few seconds for commits of the running primary that its rule does not cover: roles and databases that wait for
//! less, connections that confirm as a member and are none, and `ALTER SYSTEM` of what the agent writes, which is undone.
//!
//! A look is one query, over a connection of its own: what takes long here keeps nothing up.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, watch};

use super::{acks::SyncPlan, core::Event, hands::said, process::Wake};
use crate::{
    domain::{
        Confirms, MemberId, Uncovered,
        sync::read_standby_name,
        uncovered::{Imitator, Override, OwnLevel, is_less},
    },
    postgres::{Findings, Instance, LEVEL, NAMES, SenderFound, Session},
    telemetry::events,
};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(3);
/// A server that doesn't answer is asked so many times less often, for each look may leave a session there.
const PATIENCE: u32 = 9;
/// How long the addresses of the members are used before their names are looked up again.
const KNOWN: Duration = Duration::from_secs(60);

/// Looks until the sender of the plans is gone. `undone` goes up before anything is undone.
pub async fn watch(
    instance: Instance,
    mut plans: watch::Receiver<Option<SyncPlan>>,
    undone: Arc<AtomicU64>,
    wakes: mpsc::UnboundedSender<Wake>,
) {
    let mut looker = Looker {
        instance,
        undone,
        session: None,
        homes: BTreeMap::new(),
        looked_up: None,
        told: None,
        life: 0,
        failed: 0,
    };
    loop {
        let plan = plans.borrow_and_update().clone();
        match plan {
            None => looker.rest(),
            Some(plan) => {
                if let Some(view) = looker.look(&plan).await
                    && wakes.send(Wake::Core(Event::Uncovered { life: plan.life, view })).is_err()
                {
                    return;
                }
            }
        }
        let pause = EVERY * (1 + looker.failed.min(PATIENCE));
        if let Ok(Err(_)) = tokio::time::timeout(pause, plans.changed()).await {
            return;
        }
    }
}

/// Where the members are. One whose name could not be looked up has no address here.
type Homes = BTreeMap<MemberId, Vec<IpAddr>>;

struct Looker {
    instance: Instance,
    undone: Arc<AtomicU64>,
    session: Option<Session>,
    homes: Homes,
    looked_up: Option<Instant>,
    told: Option<Uncovered>,
    life: u64,
    /// Looks in a row that came to nothing.
    failed: u32,
}

impl Looker {
    fn rest(&mut self) {
        (self.session, self.told) = (None, None);
    }

    /// One look; what it saw when that is not what was told last.
    async fn look(&mut self, plan: &SyncPlan) -> Option<Uncovered> {
        if self.life != plan.life {
            self.rest();
            self.life = plan.life;
        }
        match self.try_to(plan).await {
            Ok(view) => {
                self.failed = 0;
                self.news(view)
            }
            Err(why) => {
                self.failed = self.failed.saturating_add(1);
                tracing::debug!(why, "the primary could not be asked for commits that its rule does not cover");
                self.session = None;
                None
            }
        }
    }

    async fn try_to(&mut self, plan: &SyncPlan) -> Result<Uncovered, String> {
        self.find_homes().await;
        let instance = &self.instance;
        if self.session.as_ref().is_none_or(Session::is_closed) {
            self.session = Some(instance.connect_within(plan.deadline).await.map_err(said)?);
        }
        let session = self.session.as_ref().ok_or("no connection")?;
        let found = session.uncovered(plan.deadline).await.map_err(said)?;
        let view = judge(&found, plan, &self.homes, instance.replication_user());
        for name in to_undo(&view) {
            self.undone.fetch_add(1, Ordering::SeqCst);
            match session.undo_override(name, plan.deadline).await {
                Ok(()) => tracing::warn!(event = events::OVERRIDE_UNDONE, name, "what ALTER SYSTEM had set is undone"),
                Err(error) => tracing::error!(error = said(error), name, "what ALTER SYSTEM has set can't be undone"),
            }
        }
        Ok(view)
    }

    fn news(&mut self, view: Uncovered) -> Option<Uncovered> {
        let (before, now) = (self.told.as_ref().map(Uncovered::words).unwrap_or_default(), view.words());
        for what in now.difference(&before) {
            tracing::warn!(event = events::UNCOVERED, what, "begins");
        }
        for what in before.difference(&now) {
            tracing::info!(event = events::UNCOVERED, what, "is over");
        }
        let new = self.told.as_ref() != Some(&view);
        self.told = Some(view.clone());
        new.then_some(view)
    }

    /// Names of hosts are looked up now and then; what can't be is no longer known.
    async fn find_homes(&mut self) {
        if self.looked_up.is_some_and(|at| at.elapsed() < KNOWN) {
            return;
        }
        self.looked_up = Some(Instant::now());
        let mut homes = Homes::new();
        for member in self.instance.members() {
            let found = match member.host.parse::<IpAddr>() {
                Ok(address) => vec![address],
                Err(_) => addresses_of(&member.host).await,
            };
            homes.insert(member.id.clone(), found);
        }
        self.homes = homes;
    }
}

async fn addresses_of(host: &str) -> Vec<IpAddr> {
    let found = tokio::time::timeout(EVERY, tokio::net::lookup_host((host, 0))).await;
    found.ok().and_then(Result::ok).map(|found| found.map(|a| a.ip()).collect()).unwrap_or_default()
}

fn to_undo(view: &Uncovered) -> impl Iterator<Item = &'static str> + '_ {
    [NAMES, LEVEL].into_iter().filter(|name| view.overrides.iter().any(|o| o.name == *name))
}

/// What of the findings matters where commits are acknowledged as `plan` says. Where nobody confirms, everybody's level is
/// their own affair, the one of the whole server too; the names are the agent's always.
fn judge(found: &Findings, plan: &SyncPlan, homes: &Homes, replication_user: &str) -> Uncovered {
    let set = plan.live.confirms;
    let levels = found.levels.iter().filter(|l| set.is_some_and(|set: Confirms| is_less(&l.level, set)));
    let levels = levels.map(|l| OwnLevel {
        role: l.role.clone().unwrap_or_default(),
        database: l.database.clone().unwrap_or_default(),
        level: l.level.to_ascii_lowercase(),
        sessions: l.sessions,
    });
    let overrides = found.overrides.iter().filter(|o| o.name == NAMES || (o.name == LEVEL && set.is_some()));
    let overrides = overrides.map(|o| Override { name: o.name.clone(), value: o.value.clone() });
    let (imitators, others) = foreign(&found.senders, plan, homes, replication_user);
    Uncovered { levels: levels.collect(), imitators, others, overrides: overrides.collect() }
}

/// Who confirms under the name of a member and is not that member; and how many others there are that are none.
fn foreign(senders: &[SenderFound], plan: &SyncPlan, homes: &Homes, user: &str) -> (Vec<Imitator>, u32) {
    let names = plan.names();
    let (mut imitators, mut others) = (Vec::new(), 0);
    for sender in senders {
        // As PostgreSQL compares them.
        let confirms = names.iter().find(|name| name.eq_ignore_ascii_case(&sender.name));
        let name = confirms.unwrap_or(&sender.name);
        let stranger = match read_standby_name(name) {
            Some((member, _)) => not_at_home(sender, &member, homes, user),
            None => Some("that is no name of a member".to_owned()),
        };
        if confirms.is_none() {
            others += u32::from(stranger.is_some());
            continue;
        }
        // A standby has one WAL receiver, and the one that connected last is it.
        let newer = |other: &&SenderFound| other.name.eq_ignore_ascii_case(&sender.name) && other.began > sender.began;
        let another = senders.iter().find(newer).map(|_| "the member has another connection since then".to_owned());
        if let Some(why) = stranger.or(another) {
            let (name, address) = (sender.name.clone(), sender.address.clone().unwrap_or_default());
            imitators.push(Imitator { name, address, why });
        }
    }
    (imitators, others)
}

/// How it is known that this is not the member. Of one whose address is not known the role alone tells.
fn not_at_home(sender: &SenderFound, member: &MemberId, homes: &Homes, user: &str) -> Option<String> {
    if sender.role.as_deref() != Some(user) {
        let role = sender.role.as_deref().unwrap_or("that is gone");
        return Some(format!("it logged in as role {role}, members do as {user}"));
    }
    let Some(home) = homes.get(member) else { return Some(format!("{member} is no member")) };
    if home.is_empty() {
        return None;
    }
    let here = sender.address.as_ref().and_then(|address| address.parse::<IpAddr>().ok());
    let there = |here: IpAddr| home.iter().any(|h| h.to_canonical() == here.to_canonical());
    (!here.is_some_and(there)).then(|| {
        let home = Vec::from_iter(home.iter().map(ToString::to_string)).join(", ");
        format!("{member} is at {home}")
    })
}

#[cfg(test)]
#[path = "uncovered_test.rs"]
mod tests;
