//! Keeps one physical slot for each other member on this host's PostgreSQL, whatever it is now: a standby has them ready when
//! it becomes primary, for whoever follows needs its slot at once.
//!
//! On a standby nobody follows they keep nothing back. A slot whose WAL sender hears nothing is freed, for the standby may
//! want to come again. What is not of Matriarch by its name is never touched.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::{
    hands::said,
    prober::Plan,
    slot_uses::{SlotUse, adapt},
};
use crate::{
    domain::{MemberId, sync::slot_name},
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
            Some(pid) if silent.contains(&pid) => Some(Step::Free { slot: name, pid }),
            Some(_) => None,
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
pub async fn keep(instance: Instance, mut plans: watch::Receiver<Option<Plan>>) {
    let wanted = instance.others().map(|member| (slot_name(&member.id), member.id.clone())).collect();
    let mut keeper =
        Keeper { instance, wanted, session: None, heard: Heard::default(), life: 0, failed: 0, told: None };
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
        if keeper.life != plan.life || Instant::now() >= next {
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
    session: Option<Session>,
    heard: Heard,
    life: u64,
    /// Looks in a row that came to nothing.
    failed: u32,
    /// What was told last of a step that failed.
    told: Option<String>,
}

impl Keeper {
    /// One look; when the next is due.
    async fn look(&mut self, plan: &Plan) -> Instant {
        if self.life != plan.life {
            (self.life, self.session, self.heard, self.failed) = (plan.life, None, Heard::default(), 0);
        }
        let pause = match self.try_to(plan.deadline).await {
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

    async fn try_to(&mut self, deadline: Duration) -> Result<(), String> {
        if self.session.as_ref().is_none_or(Session::is_closed) {
            self.session = Some(self.instance.connect_within(deadline).await.map_err(said)?);
        }
        let session = self.session.as_ref().ok_or("no connection")?;
        let found = session.member_slots(deadline).await.map_err(said)?;
        // When the network is why, the standby has given that connection up by then as well.
        let limit = self.instance.peer_silence().max(SILENCE);
        let silent = self.heard.silent(&found, Instant::now(), limit);
        let mut failed = None;
        let uses = self.wanted.iter().filter_map(|(slot, member)| {
            Some((slot, SlotUse::of(&self.instance.settings_of(member), self.instance.me())?))
        });
        let uses: BTreeMap<&String, SlotUse> = uses.collect();
        let wanted = uses.keys().map(|slot| (*slot).clone()).collect();
        for step in adapt(due(&found, &wanted, &silent), &found, uses.into_iter()) {
            // One that fails keeps none of the others back.
            if let Err(error) = take(session, &step, deadline).await {
                failed = Some(format!("{step:?}: {}", said(error)));
            }
        }
        let new = failed.as_ref().filter(|why| self.told.as_ref() != Some(why));
        if let Some(why) = new {
            tracing::warn!(
                why,
                "a slot that a member needs, or that nobody does, could not be made or removed; it is tried again"
            );
        }
        self.told.clone_from(&failed);
        failed.map_or(Ok(()), Err)
    }
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
        SlotFound { name: name.into(), physical: true, active_pid, reserves: true, lost: false, reply }
    }

    fn names(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    fn steps(in_recovery: bool, slots: Vec<SlotFound>, silent: &[u32]) -> Vec<Step> {
        let wanted = names(&["matriarch_n2", "matriarch_n3"]);
        due(&SlotsFound { in_recovery, slots }, &wanted, &silent.iter().copied().collect())
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
    fn the_slot_of_a_silent_standby_is_freed_and_one_that_answers_keeps_it() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let limit = Duration::from_secs(5);
        let seen = |pid, reply: &str| SlotsFound {
            in_recovery: false,
            slots: vec![SlotFound { reply: Some(reply.to_owned()), ..slot("matriarch_n2", Some(pid)) }],
        };
        let mut heard = Heard::default();
        assert!(heard.silent(&seen(7, "a"), begun, limit).is_empty());
        assert!(heard.silent(&seen(7, "b"), after(4), limit).is_empty());
        assert!(heard.silent(&seen(7, "b"), after(8), limit).is_empty());
        assert_eq!(heard.silent(&seen(7, "b"), after(9), limit), BTreeSet::from([7]));
        assert!(heard.silent(&seen(8, "b"), after(10), limit).is_empty(), "another connection");
        let both = vec![slot("matriarch_n2", Some(7)), slot("matriarch_n3", Some(8))];
        assert_eq!(steps(false, both, &[7]), [Step::Free { slot: "matriarch_n2".into(), pid: 7 }]);
    }
}
