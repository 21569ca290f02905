//! Makes a running primary go by the rule of acknowledgement it was told, finds
//! out when that is in effect, and watches who confirms.
//!
//! A rule is in effect when nothing can be acknowledged by an older one any
//! more, and everything that was is where the new one says. WAL senders release
//! waiting commits each by the names it has read itself, so each has to be seen
//! to go by the new ones; sessions wait or not as the checkpointer has told
//! them. What was flushed by then, and is confirmed by as many as the rule
//! wants, covers whatever was acknowledged before (`effective` in
//! reliability.md 2.3: reload, seen by every sender, a position after that,
//! confirmed).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{
    core::Event,
    hands::{blocking, said},
    process::Wake,
};
use crate::{
    domain::{Generation, Lsn, MemberId, SyncRule, observation::SyncView, sync::read_standby_name, sync::standby_name},
    postgres::{Instance, Live, Sender, Session, SyncSight, conf::PLACEHOLDER},
};

/// Between two looks while a rule is coming into effect.
const OFTEN: Duration = Duration::from_millis(20);
/// The same when it takes its time, or the server can't be asked.
const SELDOM: Duration = Duration::from_millis(300);
/// So long a rule is expected to come into effect at any moment.
const SOON: Duration = Duration::from_secs(3);
/// While a rule is coming into effect standbys are given something to answer so often.
const ASK: Duration = Duration::from_millis(50);
/// A standby at rest answers once a second: silence is told from here on, in steps.
const USUAL: Duration = Duration::from_millis(1_100);
const STEP: Duration = Duration::from_millis(100);
/// So many answers of a WAL sender's standby are processed before it is certain to go by the names read before the first.
const ANSWERS: u32 = 2;
/// The number of a postmaster that was there when the agent started; those it starts itself have higher ones.
const ADOPTED: u64 = 1;
/// In so many looks in a row the checkpointer has to listen: it had no signal left in the first, and waits again in the second.
const LOOKS: u32 = 2;

/// What a primary is to go by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncPlan {
    /// Which postmaster.
    pub life: u64,
    /// The number of the word.
    pub id: u64,
    /// The rule; `None`: commits wait for nobody.
    pub rule: Option<SyncRule>,
    /// What goes into the live configuration.
    pub live: Live,
    /// Of the cluster: a part of the names.
    pub generation: Generation,
    /// Between two looks at who confirms; `None`: nobody has to, and nobody is watched.
    pub watch: Option<Duration>,
    /// How long a look may take.
    pub deadline: Duration,
}

impl SyncPlan {
    /// Of those who may confirm.
    pub(super) fn names(&self) -> BTreeSet<String> {
        let rule = self.rule.iter().filter(|rule| !rule.is_alone());
        rule.flat_map(|rule| rule.names.iter().map(|m| standby_name(m, self.generation, rule.epoch))).collect()
    }

    fn count(&self) -> u32 {
        self.rule.as_ref().map_or(0, |rule| rule.count)
    }
}

/// How far a rule has come into effect. One is begun for each.
#[derive(Debug, Default)]
pub struct Settling {
    /// Whoever still goes by what was in force before releases nothing that this rule would not: it wanted as many, and was in
    /// effect, so that only names have changed; or the postmaster was started with this rule, and before, as a standby, it had
    /// a name that nobody has.
    none_weaker: bool,
    answers: BTreeMap<String, (String, u32)>,
    listened: u32,
    /// Everybody goes by it.
    all_go_by_it: bool,
    /// What was flushed when that had been seen.
    past: Option<Lsn>,
    /// Everything that was acknowledged before is where this rule says, too.
    pub effective: bool,
}

impl Settling {
    /// For a rule that was just written.
    pub fn begun(none_weaker: bool) -> Self {
        Self { none_weaker, ..Self::default() }
    }

    /// One look at the server.
    pub fn look(&mut self, plan: &SyncPlan, seen: &SyncSight) {
        if self.effective || seen.names != plan.live.names {
            return;
        }
        let (names, count) = (plan.names(), plan.count());
        // Nothing waits for anybody: that covers nothing, and needs no cover.
        if count == 0 {
            self.effective = true;
            return;
        }
        for sender in seen.senders.iter().filter(|s| names.contains(&s.name)) {
            let entry = self.answers.entry(sender.name.clone()).or_insert_with(|| (sender.reply.clone(), 0));
            if entry.0 != sender.reply {
                *entry = (sender.reply.clone(), entry.1 + 1);
            }
        }
        self.listened = if seen.checkpointer_listens { self.listened + 1 } else { 0 };
        if !self.everybody_goes_by_it(&names, seen) {
            return;
        }
        // Of the next look: in one and the same the position is read before the senders are.
        let Some(past) = self.past else {
            self.past = self.all_go_by_it.then_some(seen.flushed);
            self.all_go_by_it = true;
            return;
        };
        // Where several have to confirm, one that came again and is there twice would be counted twice: what is confirmed
        // is so only where nobody can be.
        let once = |s: &Sender| count < 2 || s.in_slot;
        let confirms = |s: &&Sender| s.streams && once(s) && names.contains(&s.name) && s.flush_lsn >= past;
        let confirmed = seen.senders.iter().filter(confirms);
        let confirmed: BTreeSet<&str> = confirmed.map(|s| s.name.as_str()).collect();
        self.effective = confirmed.len() >= count as usize;
    }

    fn everybody_goes_by_it(&self, names: &BTreeSet<String>, seen: &SyncSight) -> bool {
        let read = seen.senders.iter().all(|s| (s.priority > 0) == names.contains(&s.name));
        // Another count shows in no sender: only that it has gone round since.
        let answered = || {
            let here = seen.senders.iter().filter(|s| names.contains(&s.name));
            here.map(|s| self.answers.get(&s.name).map_or(0, |(_, n)| *n)).all(|n| n >= ANSWERS)
        };
        read && (self.none_weaker || (answered() && self.listened >= LOOKS))
    }
}

/// When each standby was last heard.
#[derive(Debug, Default)]
pub struct Ears(BTreeMap<MemberId, (String, Lsn, Instant)>);

impl Ears {
    /// How long ago each standby that streams, or that the rule names, was heard, in milliseconds.
    pub fn look(&mut self, plan: &SyncPlan, seen: &SyncSight, now: Instant) -> BTreeMap<MemberId, u64> {
        let epoch = plan.rule.as_ref().map(|rule| rule.epoch);
        let named = plan.rule.iter().flat_map(|rule| rule.names.iter());
        for member in named {
            self.0.entry(member.clone()).or_insert_with(|| (String::new(), Lsn(0), now));
        }
        for sender in &seen.senders {
            let Some((member, of)) = read_standby_name(&sender.name) else { continue };
            // One that came under the name of another epoch confirms nothing here.
            let ours = of.is_some_and(|(g, e)| g == plan.generation && epoch.is_none_or(|epoch| epoch == e));
            if !ours {
                continue;
            }
            let heard = self.0.entry(member).or_insert_with(|| (String::new(), Lsn(0), now));
            if (&heard.0, heard.1) != (&sender.reply, sender.flush_lsn) {
                *heard = (sender.reply.clone(), sender.flush_lsn, now);
            }
        }
        let connected = |m: &MemberId| {
            let is = |name: &str| read_standby_name(name).is_some_and(|(member, _)| member == *m);
            seen.senders.iter().any(|s| is(&s.name))
        };
        let wanted = |m: &MemberId| plan.rule.as_ref().is_some_and(|rule| rule.names.contains(m));
        self.0.retain(|m, _| connected(m) || wanted(m));
        self.0.iter().map(|(m, (_, _, at))| (m.clone(), told(now.saturating_duration_since(*at)))).collect()
    }
}

/// The names in force are neither those that are to be nor those that were `before`, which count until the others are seen.
fn are_somebody_elses(seen: &str, live: &str, before: &mut Option<String>) -> bool {
    if seen == live {
        *before = None;
        return false;
    }
    before.as_deref() != Some(seen)
}

/// What is usual is told as nothing, so that a status at rest stays the same.
fn told(silence: Duration) -> u64 {
    if silence < USUAL { 0 } else { (silence.as_millis() / STEP.as_millis() * STEP.as_millis()) as u64 }
}

/// Goes by `plan` until its sender is gone. `undone` counts what somebody had set otherwise and is no more.
pub async fn run(
    instance: Instance,
    mut plan: watch::Receiver<Option<SyncPlan>>,
    undone: Arc<AtomicU64>,
    wakes: mpsc::UnboundedSender<Wake>,
) {
    let (settling, ears) = (Settling::default(), Ears::default());
    let plans = plan.clone();
    let mut keeper = Keeper {
        instance,
        plans,
        undone,
        known: 0,
        session: None,
        present: None,
        last: None,
        settling,
        before: None,
        ears,
        told: None,
        opened: None,
        life: 0,
        applied: Instant::now(),
        asked: None,
        failed: false,
    };
    loop {
        let current = plan.borrow_and_update().clone();
        let Some(current) = current else {
            keeper.rest();
            if plan.changed().await.is_err() {
                return;
            }
            continue;
        };
        if let Some(view) = keeper.go_by(&current).await
            && wakes.send(Wake::Core(Event::Acks { life: current.life, view })).is_err()
        {
            return;
        }
        let pause = keeper.pause(&current);
        if let Ok(Err(_)) = tokio::time::timeout(pause, plan.changed()).await {
            return;
        }
    }
}

struct Keeper {
    instance: Instance,
    /// What is wanted now, whatever is being done.
    plans: watch::Receiver<Option<SyncPlan>>,
    undone: Arc<AtomicU64>,
    /// So much of that is known.
    known: u64,
    session: Option<Session>,
    present: Option<SyncPlan>,
    /// The count of the last rule that was seen in effect, and of which postmaster.
    last: Option<(u64, u32)>,
    settling: Settling,
    /// The names before those of the present rule, until PostgreSQL has been seen to have read its files.
    before: Option<String>,
    ears: Ears,
    told: Option<SyncView>,
    /// Of which postmaster the gate is known to be open.
    opened: Option<u64>,
    /// The last postmaster that a rule was applied to.
    life: u64,
    /// When the present rule was.
    applied: Instant,
    /// When standbys were given something to answer last.
    asked: Option<Instant>,
    /// The last look failed.
    failed: bool,
}

impl Keeper {
    fn rest(&mut self) {
        (self.session, self.present, self.last, self.told) = (None, None, None, None);
        self.ears = Ears::default();
    }

    fn pause(&self, plan: &SyncPlan) -> Duration {
        match plan.watch {
            _ if self.failed => SELDOM,
            // One whose standbys are away may never come into effect.
            _ if !self.settling.effective && self.applied.elapsed() < SOON => OFTEN,
            _ if !self.settling.effective => plan.watch.unwrap_or(SELDOM),
            Some(watch) => watch,
            None => Duration::from_secs(3600),
        }
    }

    /// One look; what is new of it.
    async fn go_by(&mut self, plan: &SyncPlan) -> Option<SyncView> {
        let result = self.try_to(plan).await;
        self.failed = false;
        match result {
            Ok(view) if self.told.as_ref() != Some(&view) => {
                self.told = Some(view.clone());
                Some(view)
            }
            Ok(_) => None,
            Err(why) => {
                self.failed = true;
                tracing::debug!(why, "the primary could not be made to go by its rule of commits, or be asked");
                self.session = None;
                None
            }
        }
    }

    async fn try_to(&mut self, plan: &SyncPlan) -> Result<SyncView, String> {
        let same = self.present.as_ref().is_some_and(|p| (p.life, p.id, &p.live) == (plan.life, plan.id, &plan.live));
        if !same {
            self.apply(plan).await?;
        }
        self.present = Some(plan.clone());
        let session = self.session(plan).await?;
        let seen = session.sync_sight(plan.deadline).await.map_err(said)?;
        // Counted before it is undone: whoever sees our names again finds that they were not.
        let undone = self.undone.load(Ordering::SeqCst);
        let were_not = undone != std::mem::replace(&mut self.known, undone);
        if are_somebody_elses(&seen.names, &plan.live.names, &mut self.before) || were_not {
            // Those who go by them may release what no rule of ours would.
            (self.last, self.settling) = (None, Settling::default());
        }
        self.settling.look(plan, &seen);
        if self.settling.effective {
            self.last = Some((plan.life, plan.count()));
        }
        let gate_closed = self.keep_gate(plan).await?;
        let unheard_ms = self.ears.look(plan, &seen, Instant::now());
        if let Err(why) = self.ask_for_answers(plan, &seen).await {
            tracing::debug!(why, "standbys could not be given something to answer");
        }
        let applied = if seen.names == plan.live.names { plan.id } else { 0 };
        Ok(SyncView { applied, effective: self.settling.effective, gate_closed, unheard_ms })
    }

    /// Commits that wait are released by answers, and with all of them waiting nothing is written that standbys would answer.
    async fn ask_for_answers(&mut self, plan: &SyncPlan, seen: &SyncSight) -> Result<(), String> {
        let names = plan.names();
        let here = seen.senders.iter().any(|s| names.contains(&s.name) && s.priority > 0);
        let due = self.asked.is_none_or(|at| at.elapsed() >= ASK) && self.applied.elapsed() < SOON;
        if self.settling.effective || seen.names != plan.live.names || !here || !due {
            return Ok(());
        }
        self.asked = Some(Instant::now());
        self.session(plan).await?.ask_for_answers(plan.deadline).await.map_err(said)
    }

    /// After a restart in place clients are let in when everything that is there is where the rule says. True: they are not
    /// yet.
    async fn keep_gate(&mut self, plan: &SyncPlan) -> Result<bool, String> {
        if self.opened == Some(plan.life) {
            return Ok(false);
        }
        let instance = self.instance.clone();
        if !self.settling.effective {
            return blocking(move || instance.is_gate_closed()).await;
        }
        if blocking(move || instance.open_gate().map_err(said)).await?? {
            tracing::info!("what this primary has after its crash is confirmed, clients are let in");
            self.session(plan).await?.reload().await.map_err(said)?;
        }
        self.opened = Some(plan.life);
        Ok(false)
    }

    async fn apply(&mut self, plan: &SyncPlan) -> Result<(), String> {
        let (instance, live, life) = (self.instance.clone(), plan.live.clone(), plan.life);
        // An agent that is no more may have made this postmaster go by anything.
        let first = life > ADOPTED && self.life != life;
        self.life = life;
        let plans = self.plans.clone();
        let wanted = move || plans.borrow().as_ref().is_some_and(|plan| plan.life == life);
        let write = move || {
            let there = instance.has_live(&live);
            instance.write_live_while(&live, wanted).map(|written| written.then_some(there)).map_err(said)
        };
        let Some(there) = blocking(write).await?? else { return Err("that primary is over".to_owned()) };
        let before = self.present.as_ref().map_or(PLACEHOLDER, |present| &present.live.names);
        self.before = Some(before.to_owned());
        let count = plan.count();
        let none_weaker = count > 0 && ((first && there) || self.last == Some((plan.life, count)));
        if !none_weaker {
            // Should this one never be seen in effect, somebody may go by it all the same.
            self.last = None;
        }
        self.settling = Settling::begun(none_weaker);
        (self.applied, self.asked) = (Instant::now(), None);
        if let Some(rule) = &plan.rule {
            let confirmed_by = rule.words();
            tracing::info!(rule = plan.id, confirmed_by, "commits are acknowledged by this rule from now on");
        }
        // Also when the file was so already: an agent that is no more may have written it and no more.
        self.session(plan).await?.reload().await.map_err(said)
    }

    async fn session(&mut self, plan: &SyncPlan) -> Result<&Session, String> {
        let open = self.session.as_ref().is_some_and(|s| !s.is_closed());
        let same_life = self.present.as_ref().is_none_or(|p| p.life == plan.life);
        if !open || !same_life {
            let connected = tokio::time::timeout(plan.deadline, self.instance.connect()).await;
            self.session = Some(connected.map_err(|_| "no connection in time".to_owned())?.map_err(said)?);
        }
        self.session.as_ref().ok_or_else(|| "no connection".to_owned())
    }
}

#[cfg(test)]
#[path = "acks_test.rs"]
mod tests;
