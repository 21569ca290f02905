//! Brings this host to the committed state: the next action of `reconcile`
//! becomes an order to the local agent, again whenever something changed.
//! An order is never reported as done; its effect is the next observation.

use std::time::Duration;

use super::{Manager, link::Said};
use crate::{
    domain::{MemberId, Moment, observation::AgentView},
    guard::sys::two_clocks,
    reconcile::{self, Action, Host, Next, StopMode, Upstream},
    rpc::{self, convert, v1},
    state::{ClusterState, OperationKind, OperationPhase},
};

/// After this long an order without any visible effect is given again.
pub const EFFECT: Duration = Duration::from_millis(300);
/// What failed so long ago counts no more.
const FORGET: Duration = Duration::from_secs(60);
/// How often the target of a switchover is probed while the old primary stops.
pub const CATCHING_UP: Duration = Duration::from_millis(25);

pub(super) async fn run(manager: Manager) {
    let inner = &manager.inner;
    let mut said = inner.link.watch();
    let mut states = inner.node.state();
    let mut changes = inner.board.changes();
    let mut desk = Desk::default();
    loop {
        let state = states.borrow_and_update().clone();
        let status = said.borrow_and_update().clone();
        changes.borrow_and_update();
        let mut pause = Duration::from_secs(1);
        if let Some(Said { view, .. }) = &status {
            let (primary_ready, copying) =
                inner.board.read(|f| (f.primary_ready == Some(state.epoch), f.copying.clone()));
            let (may_copy, copy_from) = (copying.may, copying.from.as_ref());
            let host = Host { state: &state, me: &inner.me, agent: view, primary_ready, may_copy, copy_from };
            if let Some(next) = reconcile::next_action(&host) {
                pause = match desk.due(&next, view.last_order.as_ref(), inner.board.now()) {
                    Some(wait) => wait,
                    None => {
                        give(&manager, &mut desk, &next, (&state, view)).await;
                        EFFECT
                    }
                };
            }
            if is_target(&state, &inner.me) {
                pause = pause.min(CATCHING_UP);
                tokio::time::sleep(CATCHING_UP).await;
                let to = manager.target(&inner.me);
                // Only its effect counts: the probed status goes to the leader by itself.
                let _ = inner.link.probe(to, Duration::from_millis(500)).await;
            }
        }
        tokio::select! {
            changed = said.changed() => if changed.is_err() { return },
            changed = states.changed() => if changed.is_err() { return },
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// The primary is being stopped, and waits for what this member has of its WAL: the target of a switchover, and everybody in
/// a hibernation.
pub fn is_target(state: &ClusterState, me: &MemberId) -> bool {
    state.operation.as_ref().is_some_and(|o| {
        let meant = match o.kind {
            OperationKind::Switchover => o.to == *me,
            OperationKind::Hibernate => true,
            OperationKind::Failover | OperationKind::Restart | OperationKind::Reinit | OperationKind::Wake => false,
        };
        meant && o.phase == OperationPhase::Stop
    })
}

/// What was ordered last, and what failed.
#[derive(Debug, Default)]
pub struct Desk {
    last: Option<(Next, Moment)>,
    failures: u32,
    failed_order: u64,
    not_before: Option<Moment>,
    orders: u64,
}

impl Desk {
    /// How long to wait before `next` is ordered, `None` when it is due now.
    pub fn due(
        &mut self,
        next: &Next,
        result: Option<&crate::domain::observation::OrderResult>,
        now: Moment,
    ) -> Option<Duration> {
        let failed = result.filter(|r| r.error.is_some() && r.order > self.failed_order);
        // One that was carried out, and is due again much later, has failed never.
        let lately = |given: Moment| now.since(self.not_before.unwrap_or(given)) < FORGET || failed.is_some();
        let same = self.last.as_ref().is_some_and(|(last, given)| last == next && lately(*given));
        if !same {
            self.failures = 0;
            self.not_before = None;
            return None;
        }
        if let Some(failed) = failed {
            self.failed_order = failed.order;
            self.failures += 1;
            self.not_before = Some(now + backoff(self.failures));
        }
        let (_, given) = self.last.as_ref()?;
        let again = self.not_before.unwrap_or(*given + EFFECT);
        let wait = now.until(again);
        (!wait.is_zero()).then_some(wait)
    }

    /// Notes that `next` is ordered now. Gives the number of the order; `since_boot` makes it
    /// rise from one life of a manager to the next.
    pub fn order(&mut self, next: &Next, since_boot: Duration, now: Moment) -> u64 {
        self.orders += 1;
        self.last = Some((next.clone(), now));
        order_id(&next.action, since_boot, self.orders)
    }

    /// Notes what became of the order given at `ordered`: the agent took it, or refused.
    pub fn answered(&mut self, refused: bool, ordered: Moment) {
        if refused {
            self.failures += 1;
            self.not_before = Some(ordered + backoff(self.failures).min(Duration::from_secs(2)));
        } else if self.failures == 0 {
            self.not_before = None;
        }
    }
}

/// Half a second, doubled with each failure in a row, at most ten.
fn backoff(failures: u32) -> Duration {
    Duration::from_millis(500 << failures.saturating_sub(1).min(5)).min(Duration::from_secs(10))
}

/// `state` and `view` are those it was decided on.
async fn give(manager: &Manager, desk: &mut Desk, next: &Next, (state, view): (&ClusterState, &AgentView)) {
    let inner = &manager.inner;
    let now = inner.board.now();
    let id = desk.order(next, two_clocks().boot, now);
    let mut to = manager.target(&inner.me);
    to.epoch = next.epoch.0;
    let briefing = Some(rpc::briefing::briefing(&state.briefing()));
    let action = Some(encode(&next.action, state, view));
    let order = v1::Order { to: Some(to), id, rule: next.because.0, briefing, action };
    tracing::info!(member = %inner.me, epoch = %next.epoch, rule = next.because.0, action = ?next.action, "order");
    let refused = match inner.link.execute(order).await {
        Ok(None) => None,
        Ok(Some(reason)) => Some(reason),
        Err(status) => Some(status.message().to_owned()),
    };
    if let Some(reason) = &refused {
        tracing::warn!(member = %inner.me, rule = next.because.0, error = %reason, "the agent refused an order");
    }
    desk.answered(refused.is_some(), now);
}

/// Rises within the life of a manager and from one life to the next. What an
/// operation asks for carries its number, so that its effect is seen.
fn order_id(action: &Action, since_boot: Duration, count: u64) -> u64 {
    match action {
        Action::Checkpoint { operation } | Action::Reinit { operation, .. } => *operation,
        Action::Initdb
        | Action::StartStandby { .. }
        | Action::Promote { .. }
        | Action::RestartInPlace { .. }
        | Action::Stop { .. }
        | Action::Rewind { .. }
        | Action::Clone { .. }
        | Action::EndClone => {
            let uptime = u64::try_from(since_boot.as_millis()).unwrap_or(u64::MAX >> 16);
            reconcile::FIRST_ORDER + (uptime << 8) + (count & 0xFF)
        }
    }
}

fn split(postgres: &str) -> (String, u32) {
    let (host, port) = postgres.rsplit_once(':').unwrap_or((postgres, "5432"));
    (host.trim_matches(['[', ']']).to_owned(), port.parse().unwrap_or(5432))
}

fn encode(action: &Action, state: &ClusterState, view: &AgentView) -> v1::order::Action {
    use v1::order::Action as A;
    let system_identifier = state.system_identifier.unwrap_or(0);
    let place = |upstream: &Upstream| {
        let (host, port) = split(&upstream.postgres);
        (upstream.member.to_string(), host, port)
    };
    match action {
        Action::Initdb => A::Initdb(v1::Initdb {}),
        Action::StartStandby { upstream } => {
            let (upstream, upstream_host, upstream_port) = upstream.as_ref().map(place).unwrap_or_default();
            A::StartStandby(v1::StartStandby {
                upstream,
                upstream_host,
                upstream_port,
                system_identifier,
                own_timeline: view.wal_end.timeline.0,
                fork: reconcile::shared(state, view).map(convert::position),
            })
        }
        Action::Promote { timeline, floor } => A::Promote(v1::Promote {
            expected_timeline: timeline.0,
            system_identifier,
            floor: Some(convert::position(*floor)),
            last: wal_holder(state),
        }),
        Action::RestartInPlace { timeline } => {
            A::RestartInPlace(v1::RestartInPlace { timeline: timeline.0, system_identifier })
        }
        Action::Stop { mode, keep_lease } => {
            let mode = match mode {
                StopMode::Fast => v1::StopMode::Fast,
                StopMode::Immediate => v1::StopMode::Immediate,
            };
            A::Stop(v1::Stop { mode: mode as i32, keep_lease: *keep_lease })
        }
        Action::Rewind { source } => {
            let (source, source_host, source_port) = place(source);
            A::Rewind(v1::Rewind { source, source_host, source_port, system_identifier, fork: fork(state, view) })
        }
        Action::Clone { source } => {
            let (source, source_host, source_port) = place(source);
            A::Clone(v1::Clone {
                source,
                source_host,
                source_port,
                system_identifier,
                fork: fork(state, view),
                named: None,
            })
        }
        Action::Reinit { source, named, .. } => {
            let (source, source_host, source_port) = place(source);
            let (fork, named) = (fork(state, view), Some(*named));
            A::Clone(v1::Clone { source, source_host, source_port, system_identifier, fork, named })
        }
        Action::Checkpoint { .. } => A::Checkpoint(v1::Checkpoint {}),
        Action::EndClone => A::EndClone(v1::EndClone {}),
    }
}

fn wal_holder(state: &ClusterState) -> Option<v1::WalHolder> {
    let (reign, member) = reconcile::left_by_a_crash(state)?;
    Some(v1::WalHolder {
        member: reign.member.to_string(),
        manager: member.manager.clone(),
        epoch: reign.epoch.0,
        timeline: reign.timeline.0,
    })
}

/// Where the cluster's history left that of this member; `None`: it did not, or nobody knows.
fn fork(state: &ClusterState, view: &AgentView) -> Option<v1::WalPosition> {
    let fork = reconcile::shared(state, view)?;
    // Whether something lies past it is read when PostgreSQL has been stopped.
    (!view.rewind_unfinished).then(|| convert::position(fork))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{Epoch, observation::OrderResult},
        state::RuleId,
    };

    fn next(action: Action) -> Next {
        Next { because: RuleId(1), epoch: Epoch(1), action }
    }

    #[test]
    fn an_order_that_failed_is_given_again_later_and_later() {
        let mut desk = Desk::default();
        let order = next(Action::Initdb);
        let at = Moment::from_millis;
        assert_eq!(desk.due(&order, None, at(0)), None);
        desk.last = Some((order.clone(), at(0)));
        assert_eq!(desk.due(&order, None, at(100)), Some(Duration::from_millis(200)));
        let failed = |order| OrderResult { order, kind: "initdb".into(), error: Some("no".into()) };
        assert_eq!(desk.due(&order, Some(&failed(7)), at(150)), Some(Duration::from_millis(500)));
        assert_eq!(desk.due(&order, Some(&failed(7)), at(650)), None);
        assert_eq!(desk.due(&order, Some(&failed(8)), at(700)), Some(Duration::from_millis(1_000)));
        assert_eq!(
            desk.due(&next(Action::Promote { timeline: Default::default(), floor: Default::default() }), None, at(701)),
            None
        );
    }

    #[test]
    fn what_failed_long_ago_makes_nobody_wait() {
        let mut desk = Desk::default();
        let order = next(Action::Initdb);
        let at = Moment::from_millis;
        let failed = |order| OrderResult { order, kind: "initdb".into(), error: Some("no".into()) };
        for n in 1..6 {
            desk.last = Some((order.clone(), at(n * 20_000)));
            desk.due(&order, Some(&failed(n)), at(n * 20_000));
        }
        assert_eq!(desk.due(&order, Some(&failed(5)), at(100_001)), Some(Duration::from_millis(7_999)));
        assert_eq!(desk.due(&order, None, at(170_000)), None);
        desk.last = Some((order.clone(), at(170_000)));
        assert_eq!(
            desk.due(&order, Some(&failed(6)), at(260_000)),
            Some(Duration::from_millis(500)),
            "however long it took"
        );
    }

    #[test]
    fn an_address_is_split_into_host_and_port() {
        assert_eq!(split("10.0.0.1:5432"), ("10.0.0.1".to_owned(), 5432));
        assert_eq!(split("[::1]:5433"), ("::1".to_owned(), 5433));
    }
}
