//! Keeps one physical slot for each other member on this host's PostgreSQL, whatever it is now: a standby has them ready when
//! it becomes primary, for whoever follows needs its slot at once.
//!
//! On a standby nobody follows they keep nothing back. A slot whose WAL sender hears nothing is freed, for the standby may
//! want to come again. Who uses a slot past its limit, anybody's, has to end for the checkpoint that gives it up, and is told
//! so until he does. What else is not of Matriarch by its name is touched only when the volume of WAL is nearly full and no
//! member's slot is left to give up.
//!
//! The same look tells what keeps WAL from being removed, and gives PostgreSQL its budget of slots. And it keeps users' slots
//! that are to survive a failover: physical ones here, logical ones PostgreSQL itself, which is configured for it.

mod steps;
mod uses;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::Instant,
};

use steps::{Heard, Logicals, Step, Wishes};
use uses::SlotUse;

use super::{
    checkpoints,
    core::{Core, Event},
    hands::{blocking, said},
    prober::Plan,
    process::Wake,
};
use crate::{
    domain::{MemberId, SlotsYield, slots::PermanentSlot, sync::slot_name, version::PostgresVersion},
    postgres::{Instance, Session, SlotsFound, SqlError, SyncedSlots},
    telemetry::events,
};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(2);
/// The same after a look that came to nothing, and so much longer with each further one.
const AGAIN: Duration = Duration::from_millis(500);
/// A standby says something every second: shorter than this no silence is one.
const SILENCE: Duration = Duration::from_secs(3);
/// A server that doesn't answer is asked no less often than this many times [`AGAIN`].
const PATIENCE: u32 = 4;
/// The size of the volume is looked at with each so many-th look.
const RESIZED: u64 = 15;
/// WAL that slots held is removed by a checkpoint; one on a full disk may take long.
const CHECKPOINT: Duration = Duration::from_secs(300);
/// A standby that is away so long holds no logical subscriber up any more.
const AWAY: Duration = Duration::from_secs(10);

/// Which slots there are to be, and whose server has the originals.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wished {
    /// Of the settings that say so.
    version: u64,
    /// Whom this standby follows.
    follows: Option<MemberId>,
    wishes: Wishes,
}

impl Wished {
    /// As things are now; `None`: the same as before.
    pub fn other(&self, core: &Core, instance: &Instance, server_version: u32) -> Option<Wished> {
        let (document, follows) = (&core.durable().settings, core.upstream());
        let first = self.wishes.version.0 == 0;
        if !first && self.version == document.version && self.follows.as_ref() == follows {
            return None;
        }
        let settings = core.settings();
        let wishes = Wishes {
            members: instance.others().map(|member| slot_name(&member.id)).collect(),
            permanent: settings.permanent_slots.clone(),
            ignored: settings.ignore_slots.clone(),
            possible_primary: document.of_member(instance.me()).eligible(),
            version: PostgresVersion(server_version),
            confirming: if settings.waits_always() { settings.sync_count as usize } else { 0 },
        };
        Some(Wished { version: document.version, follows: follows.cloned(), wishes })
    }
}

/// Keeps the slots of whatever server `plans` names until their sender is gone.
pub async fn keep(
    instance: Instance,
    mut plans: watch::Receiver<Option<Plan>>,
    wished: watch::Receiver<Wished>,
    wakes: mpsc::UnboundedSender<Wake>,
) {
    let mut keeper = Keeper::new(instance, wished, wakes);
    let mut next = Instant::now();
    loop {
        let plan = *plans.borrow_and_update();
        let Some(plan) = plan else {
            keeper.session = None;
            if plans.changed().await.is_err() {
                return;
            }
            continue;
        };
        if keeper.is_new(&plan) || Instant::now() >= next {
            next = keeper.look(&plan).await;
        }
        if let Ok(Err(_)) = tokio::time::timeout_at(next, plans.changed()).await {
            return;
        }
    }
}

struct Keeper {
    instance: Instance,
    wished: watch::Receiver<Wished>,
    wakes: mpsc::UnboundedSender<Wake>,
    session: Option<Session>,
    /// To the server with the originals.
    primary: Option<(MemberId, Session)>,
    heard: Heard,
    /// Who used a slot past its limit in the last look.
    doomed: BTreeSet<u32>,
    life: u64,
    /// Looks in this life.
    looks: u64,
    /// The number of the budget that was given to PostgreSQL.
    budget: u64,
    /// What the last look was told to give up.
    short: Option<SlotsYield>,
    logical: Logicals,
    /// Permanent slots that this host had as a standby; `None`: not read yet.
    copies: Option<BTreeSet<String>>,
    /// The slots of standbys that have to have what a logical subscriber is sent, and since when each of them has no WAL sender.
    confirming: BTreeSet<String>,
    away: BTreeMap<String, Instant>,
    /// One that is under way removes what slots held back.
    checkpoint: Option<JoinHandle<()>>,
    /// Looks in a row that came to nothing.
    failed: u32,
    /// What was told last of steps that failed.
    told: Vec<String>,
}

impl Keeper {
    fn new(instance: Instance, wished: watch::Receiver<Wished>, wakes: mpsc::UnboundedSender<Wake>) -> Keeper {
        Keeper {
            instance,
            wished,
            wakes,
            session: None,
            primary: None,
            heard: Heard::default(),
            doomed: BTreeSet::new(),
            life: 0,
            looks: 0,
            budget: 0,
            short: None,
            logical: Logicals::default(),
            copies: None,
            confirming: BTreeSet::new(),
            away: BTreeMap::new(),
            checkpoint: None,
            failed: 0,
            told: Vec::new(),
        }
    }

    /// Something that doesn't wait for the next look.
    fn is_new(&self, plan: &Plan) -> bool {
        let shorter = plan.short.is_some() && self.short.is_none();
        self.life != plan.life || self.budget != plan.slot_budget || shorter
    }

    /// One look; when the next is due.
    async fn look(&mut self, plan: &Plan) -> Instant {
        if self.life != plan.life {
            (self.life, self.session, self.heard, self.failed) = (plan.life, None, Heard::default(), 0);
            self.logical = Logicals::default();
            self.looks = 0;
            self.doomed.clear();
        }
        let resized = self.looks.is_multiple_of(RESIZED) || self.budget != plan.slot_budget;
        (self.budget, self.short) = (plan.slot_budget, plan.short);
        let pause = match self.try_to(plan, resized).await {
            Ok(()) => {
                self.failed = 0;
                EVERY
            }
            Err(why) => {
                tracing::debug!(why, "the members' slots could not be looked after");
                self.session = None;
                self.failed = (self.failed + 1).min(PATIENCE);
                AGAIN * self.failed
            }
        };
        Instant::now() + pause
    }

    async fn try_to(&mut self, plan: &Plan, resized: bool) -> Result<(), String> {
        let (deadline, wished) = (plan.deadline, self.wished.borrow().clone());
        let session = match self.session.take().filter(|session| !session.is_closed()) {
            Some(session) => session,
            None => self.instance.connect_within(deadline).await.map_err(said)?,
        };
        self.end_doomed(&session, deadline).await?;
        let found = session.slots(deadline).await.map_err(said)?;
        let resized = self.confirm(&found, &wished.wishes) || resized;
        if resized {
            give_budget(&self.instance, &session, self.looks == 0).await?;
        }
        self.looks += 1;
        let primary = self.originals(&found, &wished, deadline).await;
        let given_up = self.tell(&found, primary.as_ref(), &wished.wishes, plan.short);
        let gives_up = !given_up.is_empty();
        // When the network is why, the standby has given that connection up by then as well.
        let silent = self.heard.silent(&found, Instant::now(), self.instance.peer_silence().max(SILENCE));
        let uses = self.uses();
        let mut wishes = wished.wishes.clone();
        wishes.members.retain(|name| uses.contains_key(name));
        let due = steps::due(&found, &wishes, &silent);
        let mut due = uses::adapt(due, &found, uses.iter().map(|(name, used)| (name, *used)));
        due.extend(self.permanent(&found, primary.as_ref(), &wished.wishes).await?);
        // What has just been given up for want of room is not taken again.
        due.retain(|step| plan.short.is_none() || !matches!(step, Step::Reserve(_) | Step::CreatePermanent(_)));
        let done = self.take_all(&session, steps::with(due, given_up), deadline).await;
        if gives_up {
            self.checkpoint = Some(tokio::spawn(checkpoint(self.instance.clone())));
        }
        self.session = Some(session);
        done
    }

    /// What the slot of each other member is for here; who streams from nobody has none.
    fn uses(&self) -> BTreeMap<String, SlotUse> {
        let of = |member: &MemberId| SlotUse::of(&self.instance.settings_of(member), self.instance.me());
        self.instance.others().filter_map(|other| Some((slot_name(&other.id), of(&other.id)?))).collect()
    }

    async fn end_doomed(&mut self, session: &Session, deadline: Duration) -> Result<(), String> {
        let doomed = session.end_doomed_senders(&self.doomed, deadline).await.map_err(said)?;
        for pid in doomed.intersection(&self.doomed) {
            tracing::warn!(pid, "who uses a slot past its limit is told to end, or no WAL could be removed");
        }
        self.doomed = doomed;
        Ok(())
    }

    /// Whom a logical subscriber has to wait for. True when that, or whether there is anything of the kind, is new.
    fn confirm(&mut self, found: &SlotsFound, wishes: &Wishes) -> bool {
        if !wishes.syncs() {
            self.confirming.clear();
            return self.instance.set_synced_slots(None);
        }
        let now = Instant::now();
        if found.in_recovery {
            // Nobody streams from a standby that is no primary yet: that says nothing of them.
            self.away.clear();
        }
        let streams = |name: &String| found.slots.iter().any(|s| s.name == *name && s.active_pid.is_some());
        self.away.retain(|name, _| !streams(name));
        for name in wishes.members.iter().filter(|name| !streams(name)) {
            self.away.entry(name.clone()).or_insert(now);
        }
        let away =
            self.away.iter().map(|(name, since)| (name.clone(), now.saturating_duration_since(*since))).collect();
        self.confirming = steps::confirming(found, &self.confirming, &away, wishes, AWAY);
        self.instance.set_synced_slots(Some(SyncedSlots { confirming: self.confirming.clone() }))
    }

    /// The slots of whom this standby follows, where there are copies to be kept of them; `None`: nobody knows.
    async fn originals(&mut self, found: &SlotsFound, wished: &Wished, deadline: Duration) -> Option<SlotsFound> {
        let follows = wished.follows.as_ref().filter(|_| found.in_recovery);
        let Some(follows) = follows.filter(|_| wished.wishes.permanent.iter().next().is_some()) else {
            self.primary = None;
            return None;
        };
        let upstream = self.instance.place_of(follows)?;
        let session = match self.primary.take() {
            Some((of, session)) if of == *follows && !session.is_closed() => session,
            _ => self.instance.connect_to(&upstream, deadline).await.map_err(|error| unheard(follows, error)).ok()?,
        };
        let slots = session.slots(deadline).await.map_err(|error| unheard(follows, error)).ok()?;
        self.primary = Some((follows.clone(), session));
        Some(slots)
    }

    /// Tells what keeps WAL; what is to be given up for room.
    fn tell(
        &mut self,
        found: &SlotsFound,
        primary: Option<&SlotsFound>,
        wishes: &Wishes,
        short: Option<SlotsYield>,
    ) -> Vec<Step> {
        let mut kept = steps::kept(found, wishes);
        kept.problems = steps::problems(found, primary, wishes);
        kept.problems.extend(self.told.iter().cloned());
        kept.problems.extend(self.logical.problems());
        let short = short.filter(|_| !found.in_recovery);
        let given_up = if self.frees_room() { Vec::new() } else { steps::for_room(&kept, short) };
        let _ = self.wakes.send(Wake::Core(Event::Kept(kept)));
        given_up
    }

    /// What is due with users' slots. Which of them are copies is on disk before they are made: after they are taken off the
    /// list nobody else knows.
    async fn permanent(
        &mut self,
        found: &SlotsFound,
        primary: Option<&SlotsFound>,
        wishes: &Wishes,
    ) -> Result<Vec<Step>, String> {
        let was = match self.copies.take() {
            Some(copies) => copies,
            None => {
                let instance = self.instance.clone();
                blocking(move || instance.slot_copies().map_err(said)).await??
            }
        };
        let due =
            self.logical.without_those_that_were_lost(steps::permanent(found, primary, wishes, &was), found, wishes);
        let there = |name: &String| {
            // What is taken off the list on the primary is its owner's from then on.
            let kept = found.in_recovery && found.slots.iter().any(|s| s.name == *name);
            kept || wishes.permanent.get(name).is_some()
        };
        let mut copies: BTreeSet<String> = was.iter().filter(|name| there(name)).cloned().collect();
        if found.in_recovery {
            copies.extend(due.iter().filter_map(Step::copies).map(str::to_owned));
        }
        if copies != was {
            let (instance, names) = (self.instance.clone(), copies.clone());
            blocking(move || instance.note_slot_copies(&names).map_err(said)).await??;
        }
        self.copies = Some(copies);
        Ok(due)
    }

    async fn take_all(&mut self, session: &Session, steps: Vec<Step>, deadline: Duration) -> Result<(), String> {
        let mut failed = Vec::new();
        for step in steps {
            // One that fails keeps none of the others back.
            if let Err(error) = take(&self.instance, session, &step, deadline).await {
                failed.push(format!("slot {}: {}", step.slot(), said(error)));
            }
        }
        // The same again is told once.
        for why in failed.iter().filter(|why| !self.told.contains(why)) {
            tracing::warn!(why, "a slot could not be made, removed or advanced; it is tried again");
        }
        let first = failed.first().cloned();
        self.told = failed;
        first.map_or(Ok(()), Err)
    }

    /// What was given up is being removed, or was until now: that may be enough, so nothing else is given up before the
    /// volume was looked at again.
    fn frees_room(&mut self) -> bool {
        let ended = self.checkpoint.as_ref().map(JoinHandle::is_finished);
        if ended == Some(true) {
            self.checkpoint = None;
        }
        ended.is_some()
    }
}

fn unheard(of: &MemberId, error: SqlError) {
    tracing::debug!(error = said(error), of = %of, "the slots of the primary are not known");
}

/// What slots held back is removed by it.
async fn checkpoint(instance: Instance) {
    if let Err(error) = checkpoints::checkpoint(&instance, CHECKPOINT).await {
        tracing::warn!(error, "the checkpoint that removes what slots held back has failed");
    }
}

/// Gives the running server its budget of slots, when that is another. At `first` also when it is not: an agent that was
/// killed may have written it and no more.
async fn give_budget(instance: &Instance, session: &Session, first: bool) -> Result<(), String> {
    let at_work = instance.clone();
    let other = blocking(move || at_work.refresh_slot_budget().map_err(said)).await??;
    if other {
        tracing::info!("slots may hold back another amount of WAL");
    }
    if other || first {
        session.reload().await.map_err(said)?;
    }
    Ok(())
}

async fn take(instance: &Instance, session: &Session, step: &Step, deadline: Duration) -> Result<(), SqlError> {
    match step {
        Step::Create(slot) => {
            tracing::info!(slot, "a member's slot is made");
            session.create_slot(slot, deadline).await
        }
        Step::Drop(slot) => {
            tracing::info!(slot, "a slot of Matriarch's that nobody needs is removed");
            session.drop_slot(slot, deadline).await
        }
        Step::Renew(slot) => {
            tracing::info!(slot, "a slot that keeps WAL for nobody, or has given up, is made anew");
            session.drop_slot(slot, deadline).await?;
            session.create_slot(slot, deadline).await
        }
        Step::Reserve(slot) => {
            tracing::info!(slot, "a slot keeps WAL from now on for a member that asks for it late");
            session.drop_slot(slot, deadline).await?;
            session.create_reserving_slot(slot, deadline).await
        }
        Step::CreatePermanent(slot) => {
            tracing::info!(slot = slot.name, "a permanent slot is made");
            create_permanent(instance, session, slot, deadline).await
        }
        Step::RenewCopy(slot) => {
            tracing::info!(slot, "the copy of a permanent slot is made anew");
            session.drop_slot(slot, deadline).await?;
            session.create_reserving_slot(slot, deadline).await
        }
        Step::Advance { slot, to } => session.advance_slot(slot, *to, deadline).await,
        Step::GiveUp { slot, of_member, bytes } => {
            tracing::warn!(
                event = events::SLOT_GIVEN_UP,
                slot,
                bytes,
                of_member,
                "a slot that nobody streams from is given up: there is no room for the WAL that it holds back"
            );
            session.drop_slot(slot, deadline).await?;
            match of_member {
                true => session.create_slot(slot, deadline).await,
                false => Ok(()),
            }
        }
        Step::Free { slot, pid } => {
            tracing::warn!(
                event = events::SENDER_ENDED,
                slot,
                pid,
                "a standby is silent, its connection is ended so that it can come again"
            );
            session.end_sender(slot, *pid, deadline).await
        }
    }
}

async fn create_permanent(
    instance: &Instance,
    session: &Session,
    slot: &PermanentSlot,
    deadline: Duration,
) -> Result<(), SqlError> {
    match &slot.logical {
        None => session.create_reserving_slot(&slot.name, deadline).await,
        Some(logical) => {
            let session = instance.connect_to_database(&logical.database, deadline).await?;
            session.create_failover_slot(&slot.name, &logical.plugin, deadline).await
        }
    }
}
