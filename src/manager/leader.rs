//! Decides, while this manager leads Raft: situation in, proposal out, again
//! whenever something changed. Everything it does is a committed command.

use std::time::Duration;

use super::Manager;
use crate::{
    domain::{GroupStep, MemberId},
    policy::{self, Hold, Plan},
    raft::ProposeError,
    state::{Applied, Command, Kind, RuleId},
    telemetry::events,
};

/// Holds with a deadline are looked at again at least this often.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

pub(super) async fn run(manager: Manager) {
    let node = &manager.inner.node;
    let board = &manager.inner.board;
    let mut leadership = node.leadership();
    let mut states = node.state();
    let mut changes = board.changes();
    let mut led = false;
    let mut told: Vec<Hold> = Vec::new();
    loop {
        let leads = leadership.borrow_and_update().am_leader;
        if leads && !led {
            board.lead(&manager.inner.me);
            manager.inner.stonith.lead(board.now());
            tracing::info!(member = %manager.inner.me, "this manager leads");
        }
        led = leads;
        let state = states.borrow_and_update().clone();
        changes.borrow_and_update();
        let mut plan = Plan::default();
        if leads {
            board.keep_time(&state);
            manager.inner.stonith.consider(&manager, &state);
            board.keep_group(node.group_view());
            let request = uuid::Uuid::now_v7().to_string();
            plan = board.situation(&state, &manager.timings(), |s| policy::decide(s, &request));
            tell(&mut told, &plan);
            // No tick here: the plan itself must not wake this loop.
            board.keep_plan(plan.clone());
            if let Some(command) = plan.command.take() {
                propose(&manager, command).await;
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

/// Holds are logged when they change, not each time they are found again.
fn tell(told: &mut Vec<Hold>, plan: &Plan) {
    let same = |a: &Hold, b: &Hold| std::mem::discriminant(a) == std::mem::discriminant(b);
    for hold in &plan.holds {
        if !told.iter().any(|t| same(t, hold)) {
            tracing::info!(event = events::HOLD, hold = %hold, "holding");
        }
    }
    told.clone_from(&plan.holds);
}

async fn propose(manager: &Manager, command: Command) {
    let rule = command.because;
    let what = command.kind.name();
    let event = event_of(&command.kind);
    let member = subject(&command.kind).map(ToString::to_string).unwrap_or_default();
    let epoch = command.expected;
    match manager.inner.node.propose(command).await {
        Ok(Applied::Changed) => {
            tracing::info!(event, command = what, member, epoch = %epoch, rule = rule.0, why = policy::rules::name(rule), "committed");
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
        Kind::Grant { .. } => events::GRANTED,
        Kind::Open { .. } => events::PRIMARY_CHANGED,
        Kind::Release { .. } => events::RELEASED,
        Kind::BeginOperation { .. } => events::OPERATION_STARTED,
        Kind::EndOperation { .. } => events::OPERATION_FINISHED,
        Kind::RecordStonith { .. } => events::STONITH,
        Kind::ReplaceNode { .. } | Kind::AddMember { .. } | Kind::RemoveMember { .. } => events::MEMBERS_CHANGED,
        Kind::SetTimings { .. } => events::TIMINGS_CHANGED,
        Kind::SetSettings { .. } => events::SETTINGS_CHANGED,
        Kind::Pause { .. } | Kind::Resume { .. } => events::PAUSED,
        Kind::Maintenance { .. } => events::MAINTENANCE,
        Kind::RecordSystem { .. }
        | Kind::PromotionComplete { .. }
        | Kind::AdoptTimeline { .. }
        | Kind::AdvanceOperation { .. }
        | Kind::SettleTimings { .. }
        | Kind::NoteFormat { .. } => events::COMMITTED,
    }
}

/// Whom a command is about.
fn subject(kind: &Kind) -> Option<&MemberId> {
    match kind {
        Kind::Grant { member, .. }
        | Kind::PromotionComplete { member, .. }
        | Kind::AdoptTimeline { member, .. }
        | Kind::Open { member }
        | Kind::Release { member, .. }
        | Kind::RecordStonith { member, .. }
        | Kind::ReplaceNode { member, .. }
        | Kind::AddMember { member, .. }
        | Kind::Maintenance { member, .. }
        | Kind::RemoveMember { member } => Some(member),
        Kind::Genesis { initializer, .. } => Some(initializer),
        Kind::BeginOperation { to, .. } => Some(to),
        Kind::RecordSystem { .. }
        | Kind::Fence { .. }
        | Kind::AdvanceOperation { .. }
        | Kind::EndOperation { .. }
        | Kind::SetTimings { .. }
        | Kind::SettleTimings { .. }
        | Kind::SetSettings { .. }
        | Kind::Pause { .. }
        | Kind::Resume { .. }
        | Kind::NoteFormat { .. } => None,
    }
}
