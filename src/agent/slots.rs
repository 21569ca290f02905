//! Keeps one physical slot for each other member on this host's PostgreSQL, whatever it is now: a standby has them ready when
//! it becomes primary, for whoever follows needs its slot at once.
//!
//! On a standby nobody follows they keep nothing back. A slot whose WAL sender hears nothing is freed, for the standby may
//! want to come again. Who uses a slot past its limit, anybody's, has to end for the checkpoint that gives it up, and is told
//! so until he does. What else is not of Matriarch by its name is touched only when the volume of WAL is nearly full and no
//! member's slot is left to give up.
//!
//! The same look tells what keeps WAL from being removed, and gives PostgreSQL its budget of slots.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::Instant,
};

use super::{
    core::Event,
    hands::{blocking, said},
    prober::Plan,
    process::Wake,
    slot_uses::{SlotUse, adapt},
    tasks,
};
use crate::{
    domain::{Archiving, KeptWal, MemberId, SlotHolds, SlotsYield, sync::slot_name},
    postgres::{Instance, Session, SlotFound, SlotsFound},
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
/// The archive is looked at with each so many-th look, for that reads a directory that may be large.
const ARCHIVE: u64 = 5;
/// The size of the volume is looked at with each so many-th look.
const RESIZED: u64 = 15;
/// WAL that slots held is removed by a checkpoint; one on a full disk may take long.
const CHECKPOINT: Duration = Duration::from_secs(300);
/// A mebibyte.
const MIB: u64 = 1 << 20;

/// What is to be done with a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// A member has none.
    Create(String),
    /// It is of nobody who is a member.
    Drop(String),
    /// It keeps WAL back for nobody, or nobody can stream from it any more.
    Renew(String),
    /// It is to keep WAL back before anybody streams from it.
    Reserve(String),
    /// It holds WAL back on a volume that is nearly full.
    GiveUp {
        slot: String,
        /// It is made anew, without WAL.
        of_member: bool,
        bytes: u64,
    },
    /// The standby of this WAL sender is silent.
    Free { slot: String, pid: u32 },
}

/// What is due. `wanted` are the slots of the other members, `silent` WAL senders whose standby was not heard for too long.
fn due(found: &SlotsFound, wanted: &BTreeSet<String>, silent: &BTreeSet<u32>) -> Vec<Step> {
    let there: BTreeSet<&str> = found.slots.iter().map(|slot| slot.name.as_str()).collect();
    let missing = wanted.iter().filter(|name| !there.contains(name.as_str())).cloned().map(Step::Create);
    let of = |slot: &SlotFound| -> Option<Step> {
        let name = slot.name.clone();
        match slot.active_pid {
            // Others say something less often, and their silence is no business of ours.
            Some(pid) if slot.ours && silent.contains(&pid) => Some(Step::Free { slot: name, pid }),
            Some(_) => None,
            None if !slot.ours => None,
            // Somebody else's, by the name of one of ours: whoever made it has to take it away.
            None if !slot.physical => None,
            None if !wanted.contains(&slot.name) => Some(Step::Drop(name)),
            None if slot.lost || (found.in_recovery && slot.reserves) => Some(Step::Renew(name)),
            None => None,
        }
    };
    // There may be room for a new one only when an old one is gone.
    found.slots.iter().filter_map(of).chain(missing).collect()
}

/// What the slots hold back.
fn kept(found: &SlotsFound, archiving: Archiving) -> KeptWal {
    let holds = |slot: &SlotFound| SlotHolds {
        name: slot.name.clone(),
        // A logical one by such a name is somebody else's.
        of_member: slot.ours && slot.physical,
        active: slot.active_pid.is_some(),
        bytes: slot.bytes,
    };
    KeptWal {
        limit: u64::try_from(found.limit_mib).ok().map(|mib| mib.saturating_mul(MIB)),
        anyway: found.anyway_mib.saturating_mul(MIB),
        slots: found.slots.iter().filter(|s| s.reserves && !s.lost).map(holds).collect(),
        archiving,
        gives_way: false,
    }
}

/// What is given up for room; `None`: there is room.
fn for_room(kept: &KeptWal, whose: Option<SlotsYield>) -> Vec<Step> {
    let step = |s: &SlotHolds| Step::GiveUp { slot: s.name.clone(), of_member: s.of_member, bytes: s.bytes };
    kept.to_give_up(whose.unwrap_or(SlotsYield::None)).into_iter().map(step).collect()
}

/// The steps, and what else is given up: what is removed anyway is not removed twice.
fn with(steps: Vec<Step>, given_up: Vec<Step>) -> Vec<Step> {
    let dropped = |given: &Step| {
        let Step::GiveUp { slot, .. } = given else { return false };
        steps.iter().any(|step| matches!(step, Step::Drop(name) | Step::Renew(name) if name == slot))
    };
    let rest: Vec<Step> = given_up.into_iter().filter(|step| !dropped(step)).collect();
    steps.into_iter().chain(rest).collect()
}

/// When the standby of each WAL sender was heard last.
#[derive(Debug, Default)]
struct Heard(BTreeMap<u32, (Option<String>, Instant)>);

impl Heard {
    /// The WAL senders that heard nothing for `limit`.
    fn silent(&mut self, found: &SlotsFound, now: Instant, limit: Duration) -> BTreeSet<u32> {
        let streams = |slot: &SlotFound| slot.active_pid.map(|pid| (pid, slot.reply.clone()));
        let seen: BTreeMap<u32, Option<String>> = found.slots.iter().filter_map(streams).collect();
        self.0.retain(|pid, _| seen.contains_key(pid));
        for (pid, reply) in seen {
            let heard = self.0.entry(pid).or_insert_with(|| (reply.clone(), now));
            if heard.0 != reply {
                *heard = (reply, now);
            }
        }
        let long = |at: &Instant| now.saturating_duration_since(*at) >= limit;
        self.0.iter().filter(|(_, (_, at))| long(at)).map(|(pid, _)| *pid).collect()
    }
}

/// Keeps the slots of whatever server `plans` names until their sender is gone.
pub async fn keep(instance: Instance, mut plans: watch::Receiver<Option<Plan>>, wakes: mpsc::UnboundedSender<Wake>) {
    let wanted = instance.others().map(|member| (slot_name(&member.id), member.id.clone())).collect();
    let mut keeper = Keeper {
        instance,
        wanted,
        wakes,
        session: None,
        heard: Heard::default(),
        doomed: BTreeSet::new(),
        life: 0,
        looks: 0,
        budget: 0,
        short: None,
        archiving: Archiving::default(),
        checkpoint: None,
        failed: 0,
        told: None,
    };
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
    wanted: BTreeMap<String, MemberId>,
    wakes: mpsc::UnboundedSender<Wake>,
    session: Option<Session>,
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
    archiving: Archiving,
    /// One that is under way removes what slots held back.
    checkpoint: Option<JoinHandle<()>>,
    /// Looks in a row that came to nothing.
    failed: u32,
    /// What was told last of a step that failed.
    told: Option<String>,
}

impl Keeper {
    /// Something that doesn't wait for the next look.
    fn is_new(&self, plan: &Plan) -> bool {
        let shorter = plan.short.is_some() && self.short.is_none();
        self.life != plan.life || self.budget != plan.slot_budget || shorter
    }

    /// One look; when the next is due.
    async fn look(&mut self, plan: &Plan) -> Instant {
        if self.life != plan.life {
            (self.life, self.session, self.heard, self.failed) = (plan.life, None, Heard::default(), 0);
            (self.looks, self.archiving) = (0, Archiving::default());
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
        let deadline = plan.deadline;
        if self.session.as_ref().is_none_or(Session::is_closed) {
            self.session = Some(self.instance.connect_within(deadline).await.map_err(said)?);
        }
        let frees_room = self.frees_room();
        let session = self.session.as_ref().ok_or("no connection")?;
        let doomed = session.end_doomed_senders(&self.doomed, deadline).await.map_err(said)?;
        for pid in doomed.intersection(&self.doomed) {
            tracing::warn!(pid, "who uses a slot past its limit is told to end, or no WAL could be removed");
        }
        self.doomed = doomed;
        if resized {
            give_budget(&self.instance, session, self.looks == 0).await?;
        }
        let found = session.slots(deadline).await.map_err(said)?;
        if self.looks.is_multiple_of(ARCHIVE) {
            // Beside the slots it is no reason to do nothing.
            self.archiving = session.archiving(deadline).await.unwrap_or_default();
        }
        self.looks += 1;
        let kept = kept(&found, self.archiving.clone());
        let short = plan.short.filter(|_| !found.in_recovery);
        let given_up = if frees_room { Vec::new() } else { for_room(&kept, short) };
        let _ = self.wakes.send(Wake::Core(Event::Kept(kept)));
        // When the network is why, the standby has given that connection up by then as well.
        let limit = self.instance.peer_silence().max(SILENCE);
        let silent = self.heard.silent(&found, Instant::now(), limit);
        let gives_up = !given_up.is_empty();
        let uses = self.wanted.iter().filter_map(|(slot, member)| {
            Some((slot, SlotUse::of(&self.instance.settings_of(member), self.instance.me())?))
        });
        let uses: BTreeMap<&String, SlotUse> = uses.collect();
        let wanted = uses.keys().map(|slot| (*slot).clone()).collect();
        let mut steps = adapt(due(&found, &wanted, &silent), &found, uses.into_iter());
        // What has just been given up for want of room is not taken again.
        steps.retain(|step| short.is_none() || !matches!(step, Step::Reserve(_)));
        let steps = with(steps, given_up);
        let mut failed = None;
        for step in steps {
            // One that fails keeps none of the others back.
            if let Err(error) = take(session, &step, deadline).await {
                failed = Some(format!("{step:?}: {}", said(error)));
            }
        }
        if gives_up {
            self.checkpoint = Some(tokio::spawn(checkpoint(self.instance.clone())));
        }
        self.tell(failed.as_ref());
        failed.map_or(Ok(()), Err)
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

    /// The same again is told once.
    fn tell(&mut self, failed: Option<&String>) {
        if let Some(why) = failed.filter(|why| self.told.as_ref() != Some(why)) {
            tracing::warn!(
                why,
                "a slot that a member needs, or that nobody does, could not be made or removed; it is tried again"
            );
        }
        self.told = failed.cloned();
    }
}

/// What slots held back is removed by it.
async fn checkpoint(instance: Instance) {
    if let Err(error) = tasks::checkpoint(&instance, CHECKPOINT).await {
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

async fn take(session: &Session, step: &Step, deadline: Duration) -> Result<(), crate::postgres::SqlError> {
    match step {
        Step::Create(slot) => {
            tracing::info!(slot, "a member's slot is made");
            session.create_slot(slot, deadline).await
        }
        Step::Drop(slot) => {
            tracing::info!(slot, "the slot of nobody who is a member is removed");
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn slot(name: &str, active_pid: Option<u32>) -> SlotFound {
        let reply = active_pid.map(|_| "12:00".to_owned());
        let name = name.to_owned();
        SlotFound { name, ours: true, physical: true, active_pid, reserves: true, bytes: 100 << 20, lost: false, reply }
    }

    fn names(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    fn steps(in_recovery: bool, slots: Vec<SlotFound>, silent: &[u32]) -> Vec<Step> {
        let wanted = names(&["matriarch_n2", "matriarch_n3"]);
        due(&SlotsFound { in_recovery, slots, ..SlotsFound::default() }, &wanted, &silent.iter().copied().collect())
    }

    #[test]
    fn every_member_has_a_slot_and_nobody_else_has() {
        let gone = slot("matriarch_n9", None);
        assert_eq!(
            steps(false, vec![slot("matriarch_n2", Some(7)), gone.clone()], &[]),
            [Step::Drop("matriarch_n9".into()), Step::Create("matriarch_n3".into())]
        );
        let streams = SlotFound { active_pid: Some(9), ..gone.clone() };
        let logical = SlotFound { physical: false, ..gone };
        let both = || vec![slot("matriarch_n2", None), slot("matriarch_n3", None)];
        for one in [streams, logical] {
            assert_eq!(steps(false, [both(), vec![one.clone()]].concat(), &[]), [], "{one:?}");
        }
    }

    #[test]
    fn a_standby_keeps_nothing_back_for_nobody_and_a_lost_slot_is_made_anew() {
        let idle = || vec![slot("matriarch_n2", None), slot("matriarch_n3", Some(3))];
        assert_eq!(steps(false, idle(), &[]), []);
        assert_eq!(steps(true, idle(), &[]), [Step::Renew("matriarch_n2".into())]);
        let fresh = SlotFound { reserves: false, ..slot("matriarch_n2", None) };
        assert_eq!(steps(true, vec![fresh, slot("matriarch_n3", None)], &[]), [Step::Renew("matriarch_n3".into())]);
        let lost = SlotFound { lost: true, reserves: false, ..slot("matriarch_n2", None) };
        assert_eq!(steps(false, vec![lost, slot("matriarch_n3", None)], &[]), [Step::Renew("matriarch_n2".into())]);
    }

    #[test]
    fn what_holds_no_wal_back_is_not_counted_and_what_is_nobodys_is_left_alone_while_there_is_room() {
        let theirs = SlotFound { ours: false, ..slot("theirs", None) };
        let lost = SlotFound { lost: true, ..slot("matriarch_n2", None) };
        let fresh = SlotFound { reserves: false, ..slot("matriarch_n3", None) };
        let all = vec![theirs, lost, fresh];
        assert_eq!(steps(false, all.clone(), &[]), [Step::Renew("matriarch_n2".into())]);
        let found = SlotsFound { slots: all, limit_mib: 51, anyway_mib: 51, ..SlotsFound::default() };
        let kept = kept(&found, Archiving::default());
        assert_eq!((kept.limit, kept.anyway, kept.slots.len()), (Some(51 << 20), 51 << 20, 1));
        let given_up = |whose| for_room(&kept, Some(whose));
        let theirs = Step::GiveUp { slot: "theirs".into(), of_member: false, bytes: 100 << 20 };
        assert_eq!((given_up(SlotsYield::All), given_up(SlotsYield::Members)), (vec![theirs], vec![]));
    }

    #[test]
    fn the_slot_of_a_silent_standby_is_freed_and_one_that_answers_keeps_it() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let limit = Duration::from_secs(5);
        let seen = |pid, reply: &str| SlotsFound {
            in_recovery: false,
            slots: vec![SlotFound { reply: Some(reply.to_owned()), ..slot("matriarch_n2", Some(pid)) }],
            ..SlotsFound::default()
        };
        let mut heard = Heard::default();
        assert!(heard.silent(&seen(7, "a"), begun, limit).is_empty());
        assert!(heard.silent(&seen(7, "b"), after(4), limit).is_empty());
        assert!(heard.silent(&seen(7, "b"), after(8), limit).is_empty());
        assert_eq!(heard.silent(&seen(7, "b"), after(9), limit), BTreeSet::from([7]));
        assert!(heard.silent(&seen(8, "b"), after(10), limit).is_empty(), "another connection");
        let both = vec![slot("matriarch_n2", Some(7)), slot("matriarch_n3", Some(8))];
        let theirs = SlotFound { ours: false, ..slot("theirs", Some(9)) };
        let all = [both, vec![theirs]].concat();
        assert_eq!(steps(false, all, &[7, 9]), [Step::Free { slot: "matriarch_n2".into(), pid: 7 }]);
    }
}
