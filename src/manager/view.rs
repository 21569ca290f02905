//! What a manager tells about the cluster, and what it does for operators.

use std::{collections::BTreeMap, time::Duration};

use super::{Manager, leader, recover};
use crate::{
    config::check_address,
    domain::{Epoch, MemberId, PostgresState, SettingChanges, observation::AgentView},
    guard::sys::two_clocks,
    policy::{
        self, Plan, Situation,
        departure::{self, Obstacle},
        loss::Loss,
        reinit,
        settings::Refused,
        switchover,
    },
    raft::{Leadership, ProposeError},
    rpc::v1,
    state::{Applied, ClusterState, Command, Kind, Operation, OperationKind, RuleId},
};

/// Whether the primary can be copied from.
pub fn primary_ready(s: &Situation<'_>) -> bool {
    let agent = s.state.holder().and_then(|(_, holder)| s.agent(holder));
    agent.is_some_and(|a| a.state == PostgresState::Primary && a.checkpoint_timeline == a.wal_end.timeline)
}

/// See [`primary_ready`]; and the standbys as their primary and their own agents see them.
pub fn seen_by_leader(s: &Situation<'_>) -> (bool, BTreeMap<MemberId, (bool, u64)>) {
    let Some((_, holder)) = s.state.holder() else { return (false, BTreeMap::new()) };
    let primary = s.agent(holder).filter(|a| a.state == PostgresState::Primary);
    let standbys = s.state.members.keys().filter(|m| *m != holder).filter_map(|m| {
        let agent = s.agent(m)?;
        let lag = primary.map_or(0, |p| p.wal_end.lsn.bytes_past(agent.replay_lsn));
        // Who shows the past on purpose is nobody to read from.
        let shows_now = !s.state.settings.of_member(m).is_delayed();
        Some((m.clone(), (agent.state == PostgresState::Standby && agent.streaming && shows_now, lag)))
    });
    (primary_ready(s), standbys.collect())
}

/// How old the confirmation is that `state` is current: by Raft; or, when the managers are gone and the
/// primary goes on in failsafe, by this host's agent, which holds the epoch or has promised its holder
/// not to help another.
pub(super) fn confirmed_age(manager: &Manager, state: &ClusterState) -> Duration {
    let vouched = manager.inner.link.said().and_then(|said| {
        let failsafe = said.view.failsafe;
        let vouches = failsafe.enabled && state.epoch > Epoch(0) && failsafe.confirmed == state.epoch;
        let since = two_clocks().boot.saturating_sub(said.at);
        vouches.then(|| Duration::from_millis(failsafe.confirmed_age_ms).saturating_add(since))
    });
    let by_raft = manager.inner.node.confirmed_age();
    vouched.map_or(by_raft, |age| age.min(by_raft))
}

/// How long a Raft leader is waited for by who asks for what only that one can do. With `fast` an election is over by then, with
/// `normal` most are; with what the leader takes to answer it is less than clients have patience for.
pub const ELECTED: Duration = Duration::from_millis(2_500);
/// How long an obstacle that may be over in a moment is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks.
const AGAIN: Duration = Duration::from_millis(250);

/// What an operator does to the list of members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberChange {
    /// One more: with PostgreSQL, and with a vote or without, or a witness.
    Add {
        /// Its name.
        member: MemberId,
        /// `host:port` of its manager.
        manager: String,
        /// `host:port` of its PostgreSQL; empty: it is a witness.
        postgres: String,
        /// It gets the log and never votes.
        learner: bool,
    },
    /// One less.
    Remove {
        /// Which.
        member: MemberId,
    },
    /// It is reached elsewhere.
    Move {
        /// Which.
        member: MemberId,
        /// `host:port` of its manager; empty: as it is.
        manager: String,
        /// `host:port` of its PostgreSQL; empty: as it is.
        postgres: String,
        /// `host:port` of its agent's datagrams; empty: as it is.
        agent: String,
    },
    /// It gets a new Raft node, and the present one never votes again.
    Replace {
        /// Which.
        member: MemberId,
    },
}

/// Why an operation has not begun, in words for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotBegun {
    /// Not as things are.
    #[error("{0}")]
    Refused(String),
    /// The time it is to begin at is over.
    #[error("{0}")]
    Past(String),
    /// One like it is scheduled already.
    #[error("{0}")]
    Taken(String),
    /// For want of a leader or a majority: it may begin later all the same.
    #[error("{0}")]
    Undecided(String),
}

/// Why the list of members is as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotChanged {
    /// In words for the operator.
    pub reason: String,
    /// What to do instead; empty when nothing is known.
    pub advice: String,
}

/// A request that names itself at greater length than this is refused: its name stands in the log, and is remembered.
const REQUEST_ID_MAX: usize = 200;

/// See [`REQUEST_ID_MAX`].
///
/// # Errors
/// It is too long, in words for the operator.
pub(super) fn is_short(request_id: &str) -> Result<(), String> {
    let long = request_id.len();
    let fits = long <= REQUEST_ID_MAX;
    fits.then_some(())
        .ok_or_else(|| format!("the request_id has {long} bytes, and {REQUEST_ID_MAX} are enough for any"))
}

/// What a request is told that comes under the id of another.
pub(super) fn other(request_id: &str, id: u64) -> String {
    format!("the request_id {request_id} stands for operation {id}, which is another one: ask under an id of its own")
}

/// The operation that the same request began before.
fn again(
    state: &ClusterState,
    request_id: &str,
    (kind, from, wanted, allow_loss): (OperationKind, Option<&MemberId>, Option<&MemberId>, bool),
) -> Result<Option<Operation>, NotBegun> {
    let Some(id) = state.number_of(request_id) else { return Ok(None) };
    // What a failover that is over accepted is remembered of the last operation only.
    let accepts = |o: &Operation| o.accepts_loss == allow_loss || state.operation_of(request_id).is_none();
    let same = |o: &Operation| {
        let accepted = kind != OperationKind::Failover || accepts(o);
        let named = wanted.is_none_or(|to| *to == o.to) && from.is_none_or(|from| o.from.as_ref() == Some(from));
        o.kind == kind && named && accepted
    };
    let known = state.begun_by(request_id).filter(same);
    known.map(Some).ok_or_else(|| NotBegun::Refused(other(request_id, id)))
}

/// Where a manager is to be looked for.
fn manager_of(kind: &Kind) -> &str {
    match kind {
        Kind::MoveMember { manager, .. } => manager,
        _ => "",
    }
}

impl From<String> for NotChanged {
    fn from(reason: String) -> Self {
        Self { reason, advice: String::new() }
    }
}

impl From<&Obstacle> for NotChanged {
    fn from(of: &Obstacle) -> Self {
        Self { reason: of.to_string(), advice: of.advice() }
    }
}

/// What the admin faces may do with a manager. Cheap to clone.
#[derive(Clone)]
pub struct ManagerHandle {
    pub(super) manager: Manager,
}

/// One host as the answering manager knows it.
#[derive(Debug, Clone)]
pub struct SeenMember {
    /// What its agent said, unless it has been silent too long.
    pub agent: Option<AgentView>,
    /// Its manager was heard of lately.
    pub manager_heard: bool,
    /// Its clocks are off against the last holder's, by so many millionths; 0: not, as far as is known.
    pub clock_off_ppm: i64,
}

impl ManagerHandle {
    pub(super) fn new(manager: Manager) -> Self {
        Self { manager }
    }

    pub(super) fn manager(&self) -> &Manager {
        &self.manager
    }

    /// Which member answers.
    pub fn me(&self) -> &MemberId {
        &self.manager.inner.me
    }

    /// The configuration of this host.
    pub fn config(&self) -> &crate::config::Config {
        &self.manager.inner.config
    }

    /// The committed state as applied here.
    pub fn state(&self) -> std::sync::Arc<ClusterState> {
        self.manager.inner.node.state().borrow().clone()
    }

    /// The committed state, and its changes.
    pub fn states(&self) -> tokio::sync::watch::Receiver<std::sync::Arc<ClusterState>> {
        self.manager.inner.node.state()
    }

    /// What keeps this manager from founding or joining a cluster; empty once it has.
    pub fn waits_to_be_founded(&self) -> Vec<String> {
        self.manager.inner.gate.waits_for()
    }

    /// The Raft group as it stands in this manager's log.
    pub fn group(&self) -> crate::domain::Group {
        self.manager.inner.node.group().borrow().clone()
    }

    /// What an operator should know of the Raft group as this manager sees it.
    pub fn group_warnings(&self) -> Vec<String> {
        self.manager.inner.gate.warnings()
    }

    /// This manager was in a cluster before and has no log it may vote with.
    pub fn has_lost_its_log(&self) -> bool {
        !self.manager.inner.standing.lost().is_empty()
    }

    /// Who leads Raft.
    pub fn leadership(&self) -> Leadership {
        self.manager.inner.node.leadership().borrow().clone()
    }

    /// Who leads Raft, as it changes.
    pub fn watch_leadership(&self) -> tokio::sync::watch::Receiver<Leadership> {
        self.manager.inner.node.leadership()
    }

    /// Whether somebody leads Raft, or does after [`ELECTED`] at most.
    pub async fn is_led_soon(&self) -> bool {
        let mut leadership = self.watch_leadership();
        tokio::time::timeout(ELECTED, leadership.wait_for(|l| l.leader.is_some()))
            .await
            .is_ok_and(|known| known.is_ok())
    }

    /// How old the confirmation is that this manager's state is current.
    pub fn confirmed_age(&self) -> Duration {
        confirmed_age(&self.manager, &self.state())
    }

    /// Whoever leads clients goes by a state so old at most (`router_stale_ms`).
    pub fn stale_after(&self) -> Duration {
        self.manager.timings().router_stale
    }

    /// What this host's agent said last, and how long ago; `None`: it doesn't answer.
    pub fn own(&self) -> Option<(AgentView, Duration)> {
        let said = self.manager.inner.link.said()?;
        Some((said.view, two_clocks().boot.saturating_sub(said.at)))
    }

    /// What is known of every member.
    pub fn seen(&self) -> BTreeMap<MemberId, SeenMember> {
        let state = self.state();
        self.manager.inner.board.situation(&state, &self.manager.timings(), |s| {
            let seen = |m: &MemberId| SeenMember {
                agent: s.agent(m).cloned(),
                manager_heard: s.fresh(m).is_some(),
                clock_off_ppm: s.fresh(m).map_or(0, |o| o.promise.clock_off_ppm),
            };
            state.members.keys().map(|m| (m.clone(), seen(m))).collect()
        })
    }

    /// The last plan made here; empty unless this manager leads.
    pub fn plan(&self) -> Plan {
        self.manager.inner.board.read(|f| f.plan.clone())
    }

    /// Looks at all that this manager knows now.
    pub fn look<T>(&self, look: impl FnOnce(&Situation<'_>) -> T) -> T {
        let state = self.state();
        self.manager.inner.board.situation(&state, &self.manager.timings(), look)
    }

    /// Looks for what stands against something, again and again for so long while it may be over in a moment.
    pub async fn obstacles(&self, patience: Duration, look: impl Fn(&Situation<'_>) -> Vec<Obstacle>) -> Vec<Obstacle> {
        let until = tokio::time::Instant::now() + patience;
        loop {
            let found = self.look(&look);
            let over = found.is_empty() || !found.iter().all(Obstacle::may_pass);
            if over || tokio::time::Instant::now() >= until {
                return found;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Each rule and what it says of the situation now.
    pub fn considered(&self) -> Vec<(u32, &'static str, String)> {
        let state = self.state();
        self.manager.inner.board.situation(&state, &self.manager.timings(), |s| {
            policy::RULES
                .iter()
                .map(|rule| {
                    let says = match (rule.decide)(s) {
                        None => "does not apply".to_owned(),
                        Some(policy::Verdict::Hold(hold)) => format!("holds: {hold}"),
                        Some(policy::Verdict::Propose(kind)) => format!("proposes {}", kind.name()),
                        Some(policy::Verdict::Change(step)) => format!("changes the Raft group: {step}"),
                        Some(policy::Verdict::Lead { to, why }) => {
                            format!("moves the Raft leadership to {to}: {why}")
                        }
                    };
                    (rule.id, rule.name, says)
                })
                .collect()
        })
    }

    /// Begins a switchover, a failover, a restart or a copy by command; only the Raft leader can. `from`: only if that is primary;
    /// of a copy, whom to copy. `allow_loss`: see [`Operation::accepts_loss`](crate::state::Operation::accepts_loss).
    ///
    /// # Errors
    /// Why it is refused, or that its fate is unknown.
    pub async fn begin(
        &self,
        kind: OperationKind,
        (from, wanted): (Option<&MemberId>, Option<&MemberId>),
        (request_id, allow_loss): (String, bool),
    ) -> Result<Operation, NotBegun> {
        is_short(&request_id).map_err(NotBegun::Refused)?;
        let asked = (kind, from, wanted, allow_loss);
        if let Some(known) = again(&self.state(), &request_id, asked)? {
            return Ok(known);
        }
        if !self.leadership().am_leader {
            // Only a leader hears of all hosts.
            return Err(NotBegun::Undecided("no Raft leader answers: bring a majority of managers up".to_owned()));
        }
        let admit = || {
            let state = self.state();
            self.admitted(&state, asked).map(|admitted| (state, admitted))
        };
        let (mut state, (first, mut admitted)) = self.patiently(admit).await?;
        if let Some(end) = first {
            // Whatever comes of it: what is under way then is looked at again.
            let ended = self.propose(&state, uuid::Uuid::now_v7().to_string(), end).await;
            ended.map_err(|error| NotBegun::Refused(format!("the copy under way could not be given up: {error}")))?;
            state = self.state();
            (_, admitted) = self.admitted(&state, asked)?;
        }
        let proposed = self.propose(&state, request_id.clone(), admitted).await;
        // The same request may have reached another manager a moment ago: then that is the answer.
        if let Some(known) = again(&self.state(), &request_id, asked)? {
            return Ok(known);
        }
        Err(match proposed {
            Ok(Applied::Changed) => NotBegun::Refused("the operation is over, and so is a later one".to_owned()),
            Ok(Applied::Stale { why, .. }) => NotBegun::Refused(format!("the cluster has changed meanwhile: {why}")),
            Ok(Applied::Nothing) => NotBegun::Refused("nothing was proposed".to_owned()),
            Err(error @ ProposeError::TooLarge(_)) => NotBegun::Refused(error.to_string()),
            Err(error) => NotBegun::Undecided(error.to_string()),
        })
    }

    /// Looks, and for a moment again while a leader that has just begun to lead refuses what it asks for: it has not heard of
    /// everybody yet.
    pub(super) async fn patiently<T, E>(&self, look: impl Fn() -> Result<T, E>) -> Result<T, E> {
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            // First, for a word that comes in between is not in what is found.
            let had_heard = !self.leadership().am_leader || self.look(policy::agenda::has_heard);
            let found = look();
            if found.is_ok() || had_heard || tokio::time::Instant::now() >= until {
                return found;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// What the request becomes, and what has to end before that.
    fn admitted(
        &self,
        state: &ClusterState,
        (kind, from, wanted, allow_loss): (OperationKind, Option<&MemberId>, Option<&MemberId>, bool),
    ) -> Result<(Option<Kind>, Kind), NotBegun> {
        let admitted = self.manager.inner.board.situation(state, &self.manager.timings(), |s| {
            if let (OperationKind::Reinit, Some(member)) = (kind, wanted) {
                return Ok((None, reinit::admit(s, reinit::Asked { member, from, force: allow_loss })?));
            }
            from.map_or(Ok(()), |from| switchover::is_primary(s, from))?;
            policy::agenda::is_free(s, kind)?;
            let begins = switchover::admit(s, kind, wanted, allow_loss)?;
            Ok((reinit::gives_way(s, &begins), begins))
        });
        admitted.map_err(NotBegun::Refused)
    }

    async fn propose(&self, state: &ClusterState, request_id: String, kind: Kind) -> Result<Applied, ProposeError> {
        let (expected, evidence) = (state.epoch, leader::evidence(&self.manager, state, &[]));
        self.manager.inner.node.propose(Command { request_id, expected, because: RuleId(1), kind, evidence }).await
    }

    /// What a failover by command to `candidate` would lose, as this manager knows it; only the Raft leader hears all.
    ///
    /// # Errors
    /// Why the candidate can't be promoted at all, or that nobody leads.
    pub fn would_lose(&self, candidate: &MemberId) -> Result<Loss, String> {
        if !self.leadership().am_leader {
            return Err("no Raft leader answers: bring a majority of managers up".to_owned());
        }
        let state = self.state();
        let board = &self.manager.inner.board;
        board.situation(&state, &self.manager.timings(), |s| switchover::would_lose(s, candidate))
    }

    /// Moves the Raft leader from here to another member.
    ///
    /// # Errors
    /// Why it did not move, in words for the operator.
    pub async fn transfer_leader(&self, to: &MemberId) -> Result<(), String> {
        if self.state().is_learner(to) {
            return Err(format!("{to} is a learner: it has no vote, and only who votes can lead"));
        }
        self.manager.inner.node.transfer_leader(to).await.map_err(|e| e.to_string())
    }

    /// Puts other timings in force; only the Raft leader can. One request after the other, those for settings
    /// too, so that none is admitted by what another is about to replace.
    ///
    /// # Errors
    /// Why it is refused, or that its fate is unknown.
    pub async fn set_timings(&self, asked: policy::timings::Asked<'_>, request_id: String) -> Result<(), String> {
        let cluster = &self.manager.inner.config.cluster;
        let _alone = self.manager.inner.changing.lock().await;
        self.put(request_id, |s| policy::timings::admit(s, (cluster.profile, &cluster.timings), asked)).await
    }

    /// Pauses the cluster, or lets it go on; only the Raft leader can.
    ///
    /// # Errors
    /// Why it is refused, or that its fate is unknown.
    pub async fn pause(&self, on: bool, (reason, by): (&str, &str), request_id: String) -> Result<(), String> {
        self.put(request_id, |s| policy::pause::admit(s, on, reason, by)).await
    }

    /// Makes failovers after crashes count no more; only the Raft leader can. Says how many there were.
    ///
    /// # Errors
    /// Why it is refused, or that its fate is unknown.
    pub async fn acknowledge(&self, by: &str, request_id: String) -> Result<u32, String> {
        let failovers = self.state().crash_failovers;
        self.put(request_id, |s| policy::flaps::admit(s, by)).await.map(|()| failovers)
    }

    /// Leaves a member alone, or does so no more; only the Raft leader can.
    ///
    /// # Errors
    /// Why it is refused, or that its fate is unknown.
    pub async fn maintain(
        &self,
        (member, on): (&MemberId, bool),
        (reason, by): (&str, &str),
        request_id: String,
    ) -> Result<(), String> {
        self.put(request_id, |s| policy::pause::admit_maintenance(s, member, on, reason, by)).await
    }

    /// Proposes what an operator's request becomes; nothing when all is as asked.
    pub(super) async fn put(
        &self,
        request_id: String,
        admit: impl FnOnce(&Situation<'_>) -> Result<Option<Kind>, String>,
    ) -> Result<(), String> {
        is_short(&request_id)?;
        let (inner, state) = (&self.manager.inner, self.state());
        if !self.leadership().am_leader {
            // Only a leader hears of all hosts.
            return Err("no Raft leader answers: bring a majority of managers up".to_owned());
        }
        let Some(kind) = inner.board.situation(&state, &self.manager.timings(), admit)? else { return Ok(()) };
        let command = Command {
            request_id,
            expected: state.epoch,
            because: RuleId(2),
            kind,
            evidence: leader::evidence(&self.manager, &state, &[]),
        };
        match inner.node.propose(command).await {
            Ok(Applied::Changed) => Ok(()),
            Ok(Applied::Stale { why, .. }) => Err(format!("the cluster has changed meanwhile: {why}")),
            Ok(Applied::Nothing) => Err("nothing was proposed".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Changes what operators have set, if it is of `version` still; only the Raft leader can. As with
    /// [`Self::set_timings`] one request after the other.
    ///
    /// # Errors
    /// Why it is refused, or that its fate is unknown.
    pub async fn set_settings(
        &self,
        version: u64,
        changes: &SettingChanges,
        (by, request_id): (&str, String),
    ) -> Result<(), Refused> {
        let _alone = self.manager.inner.changing.lock().await;
        let (inner, state) = (&self.manager.inner, self.state());
        if !self.leadership().am_leader {
            // Only a leader hears what the hosts can apply.
            return Err(Refused::NotNow("no Raft leader answers: bring a majority of managers up".to_owned()));
        }
        let admit = |s: &Situation<'_>| policy::settings::admit(s, version, changes, by);
        let Some(kind) = inner.board.situation(&state, &self.manager.timings(), admit)? else { return Ok(()) };
        let command = Command {
            request_id,
            expected: state.epoch,
            because: RuleId(2),
            kind,
            evidence: leader::evidence(&self.manager, &state, &[]),
        };
        match inner.node.propose(command).await {
            Ok(Applied::Changed) => Ok(()),
            Ok(Applied::Stale { why, .. }) => Err(Refused::Stale(format!("the cluster has changed meanwhile: {why}"))),
            Ok(Applied::Nothing) => Err(Refused::NotNow("nothing was proposed".to_owned())),
            Err(error @ ProposeError::Unknown) => Err(Refused::Unknown(error.to_string())),
            Err(error) => Err(Refused::NotNow(error.to_string())),
        }
    }

    /// Looks what `matriarch recover` would do here, and does it when `confirmed` names the cluster.
    /// Gives the proposal line by line, and whether it was carried out.
    ///
    /// # Errors
    /// Why it can't be done.
    pub async fn recover(&self, confirmed: &str, force: bool) -> Result<(Vec<String>, bool), String> {
        let proposal = recover::propose(&self.manager, force).await?;
        if confirmed.is_empty() {
            return Ok((proposal.says, false));
        }
        let name = &self.config().cluster.name;
        if confirmed != name {
            return Err(format!("`{confirmed}` is not the name of this cluster: nothing was changed"));
        }
        let (_, local) = self.config().local().ok_or("this configuration names no [member]")?;
        recover::carry_out(&self.manager, &local.state_dir, &proposal).map_err(|e| format!("{e:#}"))?;
        let over = self.manager.inner.over.clone();
        tokio::spawn(async move {
            // The answer goes out first.
            tokio::time::sleep(Duration::from_millis(300)).await;
            over.send_replace("a new generation begins".to_owned());
        });
        Ok((proposal.says, true))
    }

    /// Adds a member, removes one, or takes its Raft node from it; only the Raft leader can. With `dry_run` it is only
    /// looked at whether that would be refused. One request after the other, so that two don't both take what one may.
    ///
    /// # Errors
    /// Why it is refused, or that its fate is unknown.
    pub async fn change_members(&self, change: MemberChange, dry_run: bool) -> Result<(), NotChanged> {
        let _alone = self.manager.inner.changing.lock().await;
        let state = self.state();
        if !self.leadership().am_leader {
            // Only a leader hears of all hosts.
            return Err("no Raft leader answers: bring a majority of managers up".to_owned().into());
        }
        let kind = self.kind_of(change.clone())?;
        let found = self.obstacles(PATIENCE, |s| match &change {
            MemberChange::Add { .. } => Vec::new(),
            MemberChange::Remove { member } => departure::of_removal(s, member),
            MemberChange::Replace { member } => departure::of_node(s, member),
            // Until it is there it is nowhere.
            MemberChange::Move { member, .. } => departure::of_move(s, member, manager_of(&kind)),
        });
        let obstacles = found.await;
        if let MemberChange::Remove { member } = &change {
            self.look(|s| policy::witness::enough_without(s, member))?;
        }
        let command = Command {
            request_id: uuid::Uuid::now_v7().to_string(),
            expected: state.epoch,
            because: RuleId(1),
            kind,
            evidence: leader::evidence(&self.manager, &state, &[]),
        };
        // What the log would refuse needs no advice: its words say what to do.
        if let Applied::Stale { why, .. } = ClusterState::clone(&state).apply(&command) {
            return Err(why.into());
        }
        self.look(|s| policy::format::gate(s, command.kind.format())).map_err(|old| old.to_string())?;
        if let Some(first) = obstacles.first() {
            return Err(first.into());
        }
        if dry_run {
            return Ok(());
        }
        match self.manager.inner.node.propose(command).await {
            Ok(Applied::Changed) => Ok(()),
            Ok(Applied::Stale { why, .. }) => Err(why.into()),
            Ok(Applied::Nothing) => Err("nothing was proposed".to_owned().into()),
            Err(error) => Err(error.to_string().into()),
        }
    }

    /// What an operator is to know of the cluster as a whole with any answer about members.
    pub fn note(&self) -> Option<String> {
        let paused = self.state().paused.clone()?;
        Some(format!("the cluster is paused{paused}: no automatic failover until `matriarch resume`"))
    }

    fn kind_of(&self, change: MemberChange) -> Result<Kind, String> {
        let (state, group) = (self.state(), self.group());
        Ok(match change {
            MemberChange::Add { member, manager, postgres, learner } => {
                policy::membership::room_for(&state, learner)?;
                Kind::AddMember { member, manager, postgres, learner }
            }
            MemberChange::Remove { member } => {
                let node = state.members.get(&member).map(|m| m.node).unwrap_or_default();
                policy::membership::enough_voters_without(&state, &member, group.is_voter(node))?;
                Kind::RemoveMember { member }
            }
            MemberChange::Move { member, manager, postgres, agent } => {
                let at = state.members.get(&member).ok_or_else(|| format!("{member} is no member"))?;
                for address in [&manager, &postgres, &agent].into_iter().filter(|address| !address.is_empty()) {
                    check_address(address).map_err(|why| format!("{address}: {why}"))?;
                }
                let or = |asked: String, present: &String| if asked.is_empty() { present.clone() } else { asked };
                Kind::MoveMember {
                    manager: or(manager, &at.manager),
                    postgres: or(postgres, &at.postgres),
                    agent: or(agent, &at.agent),
                    member,
                }
            }
            MemberChange::Replace { member } => {
                let old = state.members.get(&member).ok_or_else(|| format!("{member} is no member"))?.node;
                let reason = "by command".to_owned();
                Kind::ReplaceNode { member, old, node: state.next_node(), reason }
            }
        })
    }

    /// Whom this manager reaches now, each within `limit`, and of whom it heard when.
    pub async fn reach(&self, limit: Duration) -> super::reach::Reached {
        super::reach::look(&self.manager, limit).await
    }

    /// A client of the Raft leader's admin service, `None` when this manager leads or nobody does.
    pub fn leader_admin(&self) -> Option<(MemberId, v1::admin_client::AdminClient<tonic::transport::Channel>)> {
        let leader = self.leadership().leader.filter(|l| l != self.me())?;
        let client = self.manager.inner.peers.admin(&leader).ok()?;
        Some((leader, client))
    }
}

#[cfg(test)]
#[path = "view_test.rs"]
mod tests;
