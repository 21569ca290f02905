//! Decides, while this manager leads Raft: situation in, proposal out, again
//! whenever something changed. Everything it does is a committed command.

use std::{
    mem::{Discriminant, discriminant},
    sync::Arc,
    time::Duration,
};

use super::{Manager, board::wall_clock_ms};
use crate::{
    domain::{GroupStep, MemberId, Moment},
    policy::{self, Hold, Plan},
    raft::ProposeError,
    state::{AgendaChange, Applied, ClusterState, Command, Evidence, HibernateChange, Kind, OperationPhase, RuleId},
    telemetry::events,
};

/// More of them than one failover has.
const HOLDS_KEPT: usize = 16;
/// Holds with a deadline are looked at again at least this often.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

pub(super) async fn run(manager: Manager) {
    let node = &manager.inner.node;
    let board = &manager.inner.board;
    let mut leadership = node.leadership();
    let mut states = node.state();
    let mut changes = board.changes();
    let mut led = false;
    let mut told = Told::default();
    let mut walked = Walked::default();
    loop {
        let leads = leadership.borrow_and_update().am_leader;
        if leads && !led {
            board.lead(&manager.inner.me, manager.timings().report);
            manager.inner.stonith.lead(board.now());
            tracing::info!(member = %manager.inner.me, "this manager leads");
        }
        if !leads {
            walked = Walked::default();
        }
        led = leads;
        let state = states.borrow_and_update().clone();
        changes.borrow_and_update();
        let mut plan = Plan::default();
        if leads {
            board.keep_time(&state, &manager.timings());
            walked.follow(&state, board.now());
            manager.inner.stonith.consider(&manager, &state);
            board.keep_group(node.group_view());
            let request = uuid::Uuid::now_v7().to_string();
            plan = board.situation(&state, &manager.timings(), |s| policy::decide(s, &request));
            told.tell(&plan, board.now());
            // No tick here: the plan itself must not wake this loop.
            board.keep_plan(plan.clone());
            if let Some(command) = plan.command.take() {
                let held = told.so_far(board.now());
                let evidence = evidence_of(&manager, &state, (&held, &walked.past));
                if propose(&manager, Command { evidence, ..command }).await {
                    told.forget(board.now());
                }
                continue;
            }
            if let Some((rule, step)) = plan.step.take() {
                change(&manager, rule, &step).await;
                continue;
            }
            if let Some((rule, to)) = plan.lead.take() {
                hand_over(&manager, rule, &to).await;
                continue;
            }
        }
        let pause = if plan.holds.is_empty() { manager.timings().report } else { LOOK_AGAIN };
        tokio::select! {
            changed = leadership.changed() => if changed.is_err() { return },
            changed = states.changed() => if changed.is_err() { return },
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause), if leads => {}
        }
    }
}

/// What this manager goes by at the moment.
pub(super) fn evidence(manager: &Manager, state: &ClusterState, held: &[(String, Duration)]) -> Option<Arc<Evidence>> {
    evidence_of(manager, state, (held, &[]))
}

/// What held the cluster up, or a phase, and for how long.
type Lasted<'a> = &'a [(String, Duration)];

fn evidence_of(manager: &Manager, state: &ClusterState, told: (Lasted<'_>, Lasted<'_>)) -> Option<Arc<Evidence>> {
    let of = |s: &policy::Situation<'_>| policy::evidence::of(s, &manager.inner.me, wall_clock_ms(), told);
    Some(Arc::new(manager.inner.board.situation(state, &manager.timings(), of)))
}

/// The phases that the operation under way has left behind while this manager led. An operation of seconds would push a
/// week of incidents out if each of them were one; told with its end they cost nothing.
#[derive(Default)]
struct Walked {
    present: Option<(u64, OperationPhase, Moment)>,
    past: Vec<(String, Duration)>,
}

impl Walked {
    fn follow(&mut self, state: &ClusterState, now: Moment) {
        let present = state.operation.as_ref().map(|o| (o.id, o.phase));
        let before = self.present;
        if before.map(|(id, phase, _)| (id, phase)) == present {
            return;
        }
        self.present = present.map(|(id, phase)| (id, phase, now));
        match (before, present) {
            (Some((was, phase, since)), Some((id, _))) if was == id => {
                self.past.push((format!("operation {id} was in {phase:?}"), now.since(since)));
            }
            (Some(_) | None, Some(_) | None) => self.past.clear(),
        }
    }
}

/// What has held this leader up since its last command.
#[derive(Default)]
struct Told {
    present: Vec<(Discriminant<Hold>, String, Moment)>,
    over: Vec<(String, Duration)>,
}

impl Told {
    /// Holds are logged when they change, not each time they are found again.
    fn tell(&mut self, plan: &Plan, now: Moment) {
        let mut before = std::mem::take(&mut self.present);
        for hold in &plan.holds {
            let kind = discriminant(hold);
            let since = match before.iter().position(|(known, ..)| *known == kind) {
                Some(known) => before.swap_remove(known).2,
                None => {
                    tracing::info!(event = events::HOLD, hold = %hold, "holding");
                    now
                }
            };
            self.present.push((kind, hold.to_string(), since));
        }
        self.over.extend(before.into_iter().map(|(_, what, since)| (what, now.since(since))));
        // A leader that proposes nothing for days has nothing to tell of most of it.
        let surplus = self.over.len().saturating_sub(HOLDS_KEPT);
        self.over.drain(..surplus);
    }

    fn so_far(&self, now: Moment) -> Vec<(String, Duration)> {
        let present = self.present.iter().map(|(_, what, since)| (what.clone(), now.since(*since)));
        self.over.iter().cloned().chain(present).collect()
    }

    /// They are told with a command; what goes on counts anew.
    fn forget(&mut self, now: Moment) {
        self.over.clear();
        self.present.iter_mut().for_each(|(_, _, since)| *since = now);
    }
}

/// True when it is committed.
async fn propose(manager: &Manager, command: Command) -> bool {
    let rule = command.because;
    let what = command.kind.name();
    let event = event_of(&command.kind);
    let member = subject(&command.kind).map(ToString::to_string).unwrap_or_default();
    let epoch = command.expected;
    match manager.inner.node.propose(command).await {
        Ok(Applied::Changed) => {
            tracing::info!(event, command = what, member, epoch = %epoch, rule = rule.0, why = policy::rules::name(rule), "committed");
            return true;
        }
        Ok(Applied::Stale { current, why }) => {
            tracing::info!(command = what, epoch = %epoch, current = %current, why, "lost a race, nothing changed");
            // The next look must not be as fast as the disk.
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(Applied::Nothing) => {}
        Err(error) => {
            tracing::warn!(command = what, epoch = %epoch, error = %error, "not committed, or not known to be");
            // The situation decides again; a proposal of unknown fate is no failure.
            let pause = if matches!(error, ProposeError::Unknown) { 50 } else { 100 };
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }
    false
}

/// Changes the Raft group by one entry.
async fn change(manager: &Manager, rule: RuleId, step: &GroupStep) {
    let node = &manager.inner.node;
    let membership = manager.inner.board.read(|f| f.group.group.clone());
    if let GroupStep::Join { voters } = step
        && !voters.contains(&node.id())
    {
        // Whoever is to go leads nothing any more: the next leader does it.
        let to = voters.iter().find(|v| membership.is_voter(**v)).map(|v| membership.name_of(*v));
        if let Some(to) = to
            && let Err(error) = node.transfer_leader(&to).await
        {
            tracing::warn!(to = %to, error = %error, "the Raft leadership of a manager that is to go can't be moved");
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        return;
    }
    match node.change_group(membership.id, step).await {
        Ok(()) => {
            let why = policy::rules::name(rule);
            tracing::info!(event = events::GROUP_CHANGED, step = %step, rule = rule.0, why, "the Raft group is changed");
        }
        Err(error) => {
            tracing::warn!(step = %step, error = %error, "the Raft group is not changed, or not known to be");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

/// Lets another manager lead. Nothing can be committed here until somebody leads anew, this one perhaps, and then nobody
/// is asked for as long as after any other change.
async fn hand_over(manager: &Manager, rule: RuleId, to: &MemberId) {
    let why = policy::rules::name(rule);
    tracing::warn!(event = events::LEADER_CHANGED, to = %to, rule = rule.0, why, "handing the Raft leadership over");
    if let Err(error) = manager.inner.node.transfer_leader(to).await {
        tracing::warn!(to = %to, error = %error, "the Raft leadership can't be moved");
        manager.inner.board.stays_leader();
    }
}

/// The event people look for when such a command is committed.
fn event_of(kind: &Kind) -> &'static str {
    match kind {
        Kind::Genesis { .. } => events::GENESIS,
        Kind::Fence { .. } => events::EPOCH_FENCED,
        Kind::Grant { .. } | Kind::GrantRunning { .. } => events::GRANTED,
        Kind::Open { .. } => events::PRIMARY_CHANGED,
        Kind::Release { .. } => events::RELEASED,
        Kind::BeginOperation { .. } => events::OPERATION_STARTED,
        Kind::EndOperation { .. } | Kind::Agenda(AgendaChange::Close { .. }) => events::OPERATION_FINISHED,
        Kind::Hibernate(HibernateChange::Down { .. }) => events::COMMITTED,
        Kind::Hibernate(_) => events::OPERATION_STARTED,
        Kind::Agenda(AgendaChange::Begin { .. } | AgendaChange::Roll { .. }) => events::OPERATION_STARTED,
        Kind::Agenda(AgendaChange::Schedule { .. } | AgendaChange::Cancel { .. }) => events::COMMITTED,
        Kind::RecordStonith { .. } => events::STONITH,
        Kind::ReplaceNode { .. } | Kind::AddMember { .. } | Kind::MoveMember { .. } | Kind::RemoveMember { .. } => {
            events::MEMBERS_CHANGED
        }
        Kind::SetTimings { .. } => events::TIMINGS_CHANGED,
        Kind::SetSettings { .. } => events::SETTINGS_CHANGED,
        Kind::Pause { .. } | Kind::Resume { .. } => events::PAUSED,
        Kind::Maintenance { .. } => events::MAINTENANCE,
        Kind::Acknowledge { .. } => events::ACKNOWLEDGED,
        Kind::SetSync { .. } => events::SYNC_CHANGED,
        Kind::KeepOut { .. } => events::KEPT_OUT,
        Kind::Cascade { .. } => events::CASCADE,
        Kind::Lend { .. } | Kind::EndLend { .. } => events::READER,
        Kind::RecordSystem { .. }
        | Kind::PromotionComplete { .. }
        | Kind::AdoptTimeline { .. }
        | Kind::AdvanceOperation { .. }
        | Kind::SettleTimings { .. }
        | Kind::SettleSync { .. }
        | Kind::NoteFormat { .. } => events::COMMITTED,
    }
}

/// Whom a command is about.
fn subject(kind: &Kind) -> Option<&MemberId> {
    match kind {
        Kind::Grant { member, .. }
        | Kind::GrantRunning { member, .. }
        | Kind::PromotionComplete { member, .. }
        | Kind::AdoptTimeline { member, .. }
        | Kind::Open { member }
        | Kind::Release { member, .. }
        | Kind::RecordStonith { member, .. }
        | Kind::ReplaceNode { member, .. }
        | Kind::AddMember { member, .. }
        | Kind::MoveMember { member, .. }
        | Kind::Maintenance { member, .. }
        | Kind::Lend { member, .. }
        | Kind::Cascade { member, .. }
        | Kind::RemoveMember { member } => Some(member),
        Kind::Genesis { initializer, .. } => Some(initializer),
        Kind::BeginOperation { to, .. } | Kind::Agenda(AgendaChange::Begin { to, .. }) => Some(to),
        Kind::RecordSystem { .. }
        | Kind::Fence { .. }
        | Kind::AdvanceOperation { .. }
        | Kind::EndOperation { .. }
        | Kind::SetTimings { .. }
        | Kind::SettleTimings { .. }
        | Kind::SetSync { .. }
        | Kind::SettleSync { .. }
        | Kind::KeepOut { .. }
        | Kind::EndLend { .. }
        | Kind::SetSettings { .. }
        | Kind::Pause { .. }
        | Kind::Resume { .. }
        | Kind::Acknowledge { .. }
        | Kind::Agenda(_)
        | Kind::Hibernate(_)
        | Kind::NoteFormat { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing;

    #[test]
    fn an_operation_ends_with_the_phases_it_has_left_behind() {
        let mut walked = Walked::default();
        let at = Moment::from_millis;
        walked.follow(&testing::state("granted a open 2"), at(0));
        for (phase, ms) in [("checkpoint", 10), ("hold", 510), ("hold", 511), ("stop", 512)] {
            walked.follow(&testing::state(&format!("granted a open 2; switchover b {phase}")), at(ms));
        }
        let past = [
            ("operation 1 was in Checkpoint".to_owned(), Duration::from_millis(500)),
            ("operation 1 was in HoldWrites".to_owned(), Duration::from_millis(2)),
        ];
        assert_eq!(walked.past, past);
        walked.follow(&testing::state("granted b open 3"), at(600));
        assert_eq!(walked.past, [], "the next one begins anew");
    }
}
