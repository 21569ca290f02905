//! Who leads, and whether that is confirmed. openraft's leader stays leader
//! for ever, also alone; here it counts only while a quorum answers it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use openraft::{Instant as _, RaftMetrics, ServerState, alias::WatchReceiverOf, async_runtime::WatchReceiver as _};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    group::group_of,
    identity::Identity,
    log_store::SyncGauge,
    service::Contact,
    types::{Raft, TypeConfig},
};
use crate::{
    domain::{Group, MemberId, Timings},
    state::ClusterState,
};

/// Who leads the managers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leadership {
    /// The leader, as far as this member knows; `None` when it has not been heard for one longest election time-out.
    pub leader: Option<MemberId>,
    /// This member leads: a quorum answered within the longest election
    /// time-out, and everything committed before its term is applied here.
    pub am_leader: bool,
    /// Raft's term.
    pub term: u64,
}

/// Whether this node leads and no quorum has answered it for one longest election time-out. Then
/// it must not be heard: whoever hears it waits for it instead of electing another.
#[derive(Debug, Clone, Default)]
pub(super) struct Silence(Arc<AtomicBool>);

impl Silence {
    pub(super) fn is_kept(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn keep(&self, silent: bool) {
        if self.0.swap(silent, Ordering::Relaxed) != silent {
            if silent {
                tracing::warn!(
                    "this Raft leader has no quorum: it keeps silent, so that those it reaches can elect another"
                );
            } else {
                tracing::info!("this Raft leader has a quorum again, or has ended");
            }
        }
    }
}

/// The task behind [`super::Node::leadership`].
pub(super) struct Monitor {
    pub(super) raft: Raft,
    pub(super) timings: Timings,
    pub(super) identity: Identity,
    pub(super) contact: Contact,
    pub(super) gauge: Arc<SyncGauge>,
    pub(super) state: watch::Receiver<Arc<ClusterState>>,
    pub(super) leadership: watch::Sender<Leadership>,
    pub(super) group: watch::Sender<Group>,
    pub(super) silence: Silence,
    pub(super) stop: watch::Receiver<bool>,
}

/// How long ago a quorum last answered this leader. A group of one is its own quorum.
pub(super) fn quorum_age(metrics: &RaftMetrics<TypeConfig>) -> Option<Duration> {
    if metrics.membership_config.voter_ids().eq([metrics.id]) {
        return Some(Duration::ZERO);
    }
    metrics.last_quorum_acked.as_ref().map(|at| at.elapsed())
}

/// The member behind a node id.
pub(super) fn member_of(metrics: &RaftMetrics<TypeConfig>, node: u64) -> Option<MemberId> {
    metrics.membership_config.get_node(&node)?.member.parse().ok()
}

impl Monitor {
    pub(super) async fn run(mut self) {
        // The narrow watch wakes this task on a change of role, leader or
        // membership only; the full one wakes it at every tick and answer.
        let mut role = self.raft.server_metrics();
        let mut all = self.raft.metrics();
        let mut stalled = false;
        let mut led: Option<(u64, Instant)> = None;
        let contact = self.contact.clone();
        self.adopt_identity();
        loop {
            // Before the look: a message that comes after it must not be missed.
            let heard = contact.next();
            let (now, recheck) = self.look(&mut all, &mut led);
            let unheard = now.0.leader.is_none();
            let unconfirmed = now.1;
            self.leadership.send_if_modified(|known| {
                let changed = *known != now.0;
                if changed {
                    *known = now.0;
                }
                changed
            });
            stalled = self.watch_disk(stalled).await;
            tokio::select! {
                changed = role.changed() => if changed.is_err() { break },
                changed = all.changed(), if unconfirmed => if changed.is_err() { break },
                changed = self.state.changed() => match changed {
                    Ok(()) => self.adopt_identity(),
                    Err(_) => break,
                },
                // A new leader's first message changes the metrics before it counts as heard.
                () = heard, if unheard => {}
                _ = self.stop.changed() => break,
                () = sleep(recheck) => {}
            }
        }
        self.leadership.send_replace(Leadership::default());
    }

    fn publish_group(&self, metrics: &RaftMetrics<TypeConfig>) {
        self.group.send_if_modified(|known| {
            let found = group_of(&metrics.membership_config);
            let changed = *known != found;
            *known = found;
            changed
        });
    }

    /// How long no quorum has answered, for a leader whom none ever answered since it began.
    fn unanswered(led: &mut Option<(u64, Instant)>, term: u64, age: Option<Duration>) -> Duration {
        let since = match led {
            Some((known, since)) if *known == term => *since,
            _ => led.insert((term, Instant::now())).1,
        };
        age.unwrap_or_else(|| since.elapsed())
    }

    /// What is so now, whether this member leads unconfirmed, and when to look again.
    fn look(
        &self,
        all: &mut WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>,
        led: &mut Option<(u64, Instant)>,
    ) -> ((Leadership, bool), Duration) {
        let metrics = all.borrow_and_update();
        let longest = self.timings.election_max;
        let term = metrics.current_term;
        self.publish_group(&metrics);
        if metrics.state == ServerState::Leader {
            let age = quorum_age(&metrics);
            self.silence.keep(Self::unanswered(led, term, age) >= longest);
            let age = age.filter(|age| *age < longest);
            let caught_up = metrics.last_applied.as_ref().is_some_and(|id| id.leader_id.term == term);
            let am_leader = age.is_some() && caught_up;
            let leader = am_leader.then(|| member_of(&metrics, metrics.id)).flatten();
            let recheck = age.map_or(self.timings.heartbeat, |age| longest.saturating_sub(age));
            return ((Leadership { leader, am_leader, term }, !am_leader), recheck + Duration::from_millis(1));
        }
        *led = None;
        self.silence.keep(false);
        let heard = self.contact.age().filter(|age| *age < longest);
        let leader = heard.and_then(|_| metrics.current_leader).and_then(|node| member_of(&metrics, node));
        let recheck = heard.map_or(longest, |age| longest.saturating_sub(age)) + Duration::from_millis(1);
        ((Leadership { leader, am_leader: false, term }, false), recheck)
    }

    fn adopt_identity(&mut self) {
        let state = self.state.borrow_and_update();
        if state.identity.is_some() {
            self.identity.set(state.cluster_id(), state.generation());
        }
        self.identity.set_epoch(state.epoch);
    }

    /// A leader whose disk hangs still sends heartbeats, so nobody would replace
    /// it and nothing would commit: it hands over. Returns whether the disk hangs.
    async fn watch_disk(&self, stalled: bool) -> bool {
        let running = self.gauge.running().unwrap_or_default();
        if running < self.timings.election_max {
            return false;
        }
        if !stalled {
            tracing::warn!(for_ms = running.as_millis(), "a sync of the Raft log hangs");
            let successor = successor(&self.raft.metrics().borrow_watched());
            if let Some(node) = successor {
                tracing::warn!(to = node, "handing the Raft leadership over because of the hanging disk");
                // Only fails when the library has stopped, which `fatal` reports.
                drop(self.raft.trigger().transfer_leader(node).await);
            }
        }
        true
    }
}

/// The voter whose log is nearest to this leader's; `None` if this is no leader.
fn successor(metrics: &RaftMetrics<TypeConfig>) -> Option<u64> {
    let replication = metrics.replication.as_ref()?;
    let voters: Vec<u64> = metrics.membership_config.voter_ids().filter(|id| *id != metrics.id).collect();
    let reached = |id: &u64| replication.get(id).and_then(|log| log.as_ref().map(|l| l.index));
    voters.into_iter().max_by_key(reached)
}

/// The age as of now, for a caller that is no task of ours.
pub(super) fn confirmed_age(metrics: &RaftMetrics<TypeConfig>, contact: &Contact) -> Duration {
    let age = match metrics.state {
        ServerState::Leader => quorum_age(metrics),
        _ => contact.age(),
    };
    age.unwrap_or(Duration::MAX)
}

/// Waits until `accept` says yes to the metrics, or until `deadline`.
pub(super) async fn wait_for(
    mut metrics: WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>,
    deadline: Instant,
    accept: impl Fn(&RaftMetrics<TypeConfig>) -> bool + Send,
) -> bool {
    let wait = metrics.wait_until(accept);
    matches!(tokio::time::timeout_at(deadline, wait).await, Ok(Ok(_)))
}
