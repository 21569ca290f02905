//! The three loops: the leader decides, the host is brought to the committed state, the leader is told.

use std::{rc::Rc, time::Duration};

use matriarch::{
    agent::order::{Action as Ordered, Order, Source, StopMode as OrderedStop},
    domain::{Format, SettingChanges, observation::AgentView},
    manager::{
        host::{CATCHING_UP, EFFECT, is_target},
        view::seen_by_leader,
    },
    policy::{self, Situation},
    reconcile::{Action, Host as HostView, Next, StopMode, Upstream, next_action, shared},
    state::{Applied, ClusterState, Command, Kind, OperationKind, RuleId},
};

use super::{ManagerEvent, Proposal, misled::Misled, rpc::Pending, rpc::Request};
use crate::{
    agent::{AgentEvent, Ask},
    clock::{MS, SECOND, Time, micros},
    host::Host,
    invariants,
    world::{Sky, What},
};

/// Holds with a deadline are looked at again at least this often.
const LOOK_AGAIN: Time = 50 * MS;

impl Host {
    /// What is on the board has changed: both loops that read it look again.
    pub(super) fn board_changed(&mut self, sky: &mut Sky) {
        if self.m().led {
            self.wake_leader(sky, 20);
        }
        self.wake_host(sky, 40);
    }

    pub(super) fn wake_leader(&mut self, sky: &mut Sky, delay: Time) {
        let (at, manager) = (sky.now + delay, self.m());
        if manager.leader_turn.awaiting {
            manager.leader_turn.changed = true;
        } else if manager.leader_turn.at.is_none_or(|set| set > at) {
            manager.leader_turn.at = Some(at);
            self.manager_event(sky, delay, ManagerEvent::LeaderLook);
        }
    }

    pub(super) fn wake_host(&mut self, sky: &mut Sky, delay: Time) {
        let (at, manager) = (sky.now + delay, self.m());
        if manager.host_turn.awaiting {
            manager.host_turn.changed = true;
        } else if manager.host_turn.at.is_none_or(|set| set > at) {
            manager.host_turn.at = Some(at);
            self.manager_event(sky, delay, ManagerEvent::HostLook);
        }
    }

    pub(super) fn wake_report(&mut self, sky: &mut Sky, delay: Time) {
        let (at, manager) = (sky.now + delay, self.m());
        if manager.report_turn.awaiting {
            manager.report_turn.changed = true;
        } else if manager.report_turn.at.is_none_or(|set| set > at) {
            manager.report_turn.at = Some(at);
            self.manager_event(sky, delay, ManagerEvent::ReportLook);
        }
    }

    fn pause(&self, sky: &Sky, d: Duration) -> Time {
        self.clock.after(sky.now, d) - sky.now
    }

    // ------------------------------------------------------------ the leader

    pub(super) fn leader_look(&mut self, sky: &mut Sky) {
        let now = sky.now;
        if self.m().leader_turn.at.is_none_or(|set| set > now) || self.m().leader_turn.awaiting {
            return;
        }
        self.m().leader_turn.at = None;
        self.look_at_leadership(sky);
        let leads = self.m().leads();
        let moment = self.board_now(sky);
        let me = sky.names[self.index].clone();
        let wall_ms = self.wall_ms(sky);
        let manager = self.m();
        if leads && !manager.led {
            manager.board.lead(&me, moment, sky.timings.report);
        }
        manager.led = leads;
        if !leads {
            return;
        }
        let state = Rc::clone(&manager.state);
        manager.board.keep_time(&state, moment);
        let request = format!("r{}", manager.numbers);
        let situation = Situation { wall_ms, ..manager.board.situation(&state, &sky.timings, moment) };
        let misled = Misled::by(sky.mutation, &situation, &mut manager.early);
        let situation = misled.as_ref().map_or(situation, |misled| misled.sees(&situation));
        let plan = policy::decide(&situation, &request);
        if let Some(command) = &plan.command {
            invariants::grants_go_to_the_most_advanced::looked_at(&mut sky.told, &situation, command);
        }
        let holds = !plan.holds.is_empty();
        self.m().holds = plan.holds;
        match plan.command {
            Some(command) => self.propose(sky, command),
            None => {
                let wait = if holds { LOOK_AGAIN } else { self.pause(sky, sky.timings.report) };
                self.wake_leader(sky, wait);
            }
        }
    }

    fn propose(&mut self, sky: &mut Sky, command: Command) {
        let i = self.index;
        sky.told.trace(sky.now, || format!("{i}: proposes {command}"));
        let command = Rc::new(command);
        let mut index = None;
        self.m().leader_turn.awaiting = true;
        self.with_raft(sky, |raft, now, _, out| index = raft.propose(command, now, out));
        let Some(index) = index else {
            // Not the leader any more.
            return self.leader_goes_on(sky, 100 * MS);
        };
        let limit = self.pause(sky, sky.timings.election_max * 2);
        let number = self.expect(sky, Pending::Proposal, limit);
        let term = self.m().raft.term;
        self.m().proposal = Some(Proposal { index, term, number });
    }

    /// `None`: its fate is not known.
    pub(super) fn proposal_settled(&mut self, sky: &mut Sky, outcome: Option<Applied>) {
        if let Some(proposal) = self.m().proposal.take() {
            self.m().pending.remove(&proposal.number);
        }
        let wait = match outcome {
            Some(Applied::Changed | Applied::Nothing) => 1,
            Some(Applied::Stale { .. }) | None => LOOK_AGAIN,
        };
        self.leader_goes_on(sky, wait);
    }

    fn leader_goes_on(&mut self, sky: &mut Sky, wait: Time) {
        self.m().leader_turn.awaiting = false;
        self.m().leader_turn.changed = false;
        self.wake_leader(sky, wait);
    }

    /// What its wall clock says, in milliseconds since 1970; no two hosts agree.
    fn wall_ms(&self, sky: &Sky) -> u64 {
        1_790_000_000_000 + sky.now / MS + 300 * self.index as u64
    }

    /// An operator asks the leader for something, and what it decides by what it sees is proposed (`view::ManagerHandle`).
    pub fn ask(
        &mut self,
        sky: &mut Sky,
        decide: impl FnOnce(&Situation<'_>) -> Result<Option<Kind>, String>,
    ) -> Result<(), String> {
        let (moment, wall_ms) = (self.board_now(sky), self.wall_ms(sky));
        let manager = self.manager.as_ref().ok_or("no manager runs")?;
        let state = Rc::clone(&manager.state);
        let situation = Situation { wall_ms, ..manager.board.situation(&state, &sky.timings, moment) };
        let Some(kind) = decide(&situation)? else { return Ok(()) };
        let request_id = format!("o{}", self.m().number());
        let command = Rc::new(Command { request_id, expected: state.epoch, because: RuleId(1), kind, evidence: None });
        self.with_raft(sky, |raft, now, _, out| {
            let _ = raft.propose(command, now, out);
        });
        Ok(())
    }

    /// A switchover or a failover.
    pub fn operator(&mut self, sky: &mut Sky, kind: OperationKind, to: usize) -> Result<(), String> {
        let wanted = sky.names[to].clone();
        self.ask(sky, |s| policy::switchover::admit(s, kind, Some(&wanted), true).map(Some))
    }

    /// Other settings.
    pub fn configure(&mut self, sky: &mut Sky, changes: &SettingChanges) -> Result<(), String> {
        self.ask(sky, |s| {
            policy::settings::admit(s, s.state.settings.version, changes, "op").map_err(|e| e.to_string())
        })
    }

    // ------------------------------------------------------------ the host

    pub(super) fn host_look(&mut self, sky: &mut Sky) {
        let now = sky.now;
        if self.m().host_turn.at.is_none_or(|set| set > now) || self.m().host_turn.awaiting {
            return;
        }
        self.m().host_turn.at = None;
        let mut wait = SECOND;
        if let Some((view, _)) = self.m().said.clone() {
            let manager = self.manager.as_ref().expect("alive");
            let state = Rc::clone(&manager.state);
            let primary_ready = manager.board.primary_ready == Some(state.epoch);
            let me = &sky.names[self.index];
            let host = HostView { state: &state, me, agent: &view, primary_ready, may_copy: true, copy_from: None };
            if let Some(next) = next_action(&host) {
                let moment = self.board_now(sky);
                match self.m().desk.due(&next, view.last_order.as_ref(), moment) {
                    Some(later) => wait = self.pause(sky, later),
                    None => return self.give(sky, &next, &state, &view),
                }
            }
            if is_target(&state, me) {
                return self.catch_up(sky);
            }
        }
        self.wake_host(sky, wait);
    }

    fn give(&mut self, sky: &mut Sky, next: &Next, state: &ClusterState, view: &AgentView) {
        let moment = self.board_now(sky);
        let boot = self.clock.boot(sky.now);
        let id = self.m().desk.order(next, boot, moment);
        self.m().host_turn.awaiting = true;
        let Some(life) = self.agent.as_ref().filter(|a| a.serving).map(|a| a.life) else {
            self.m().ordered = Some((0, moment));
            return self.executed(sky, 0, true);
        };
        let i = self.index;
        sky.told.trace(sky.now, || format!("{i}: order {:?} in epoch {} ({})", next.action, next.epoch, next.because));
        let number = self.expect(sky, Pending::Execute, 5 * SECOND);
        self.m().ordered = Some((number, moment));
        let (mut action, known) = ordered(&next.action);
        if let Ordered::StartStandby(Some(source)) = &mut action {
            source.fork = shared(state, view);
        }
        let own = view.wal_end.timeline;
        let system_identifier = state.system_identifier.filter(|_| known);
        let own_timeline = matches!(action, Ordered::StartStandby(_)).then_some(own).filter(|own| own.0 != 0);
        let briefing = sky.sync.then(|| Box::new(state.briefing()));
        let (rule, epoch) = (next.because.0, next.epoch);
        let order = Order { id, rule, epoch, system_identifier, action, own_timeline, last: None, briefing };
        let ask = AgentEvent::Ask(Ask::Execute(self.address(), Box::new(order), number));
        sky.after(150, self.index, life, What::Agent(ask));
    }

    pub(super) fn executed(&mut self, sky: &mut Sky, number: u64, refused: bool) {
        if self.m().ordered.is_none_or(|(ordered, _)| ordered != number) {
            return;
        }
        self.m().pending.remove(&number);
        let Some((_, at)) = self.m().ordered.take() else { return };
        self.m().desk.answered(refused, at);
        let state = Rc::clone(&self.m().state);
        if is_target(&state, &sky.names[self.index]) {
            return self.catch_up(sky);
        }
        self.host_goes_on(sky, micros(EFFECT));
    }

    pub(super) fn executed_in_vain(&mut self, sky: &mut Sky, number: u64) {
        self.executed(sky, number, true);
    }

    /// The target of a switchover is probed again and again while the old primary stops.
    fn catch_up(&mut self, sky: &mut Sky) {
        self.m().host_turn.awaiting = true;
        self.m().catching_up = true;
        if !self.ask_probe(sky, Pending::CatchUp, 500 * MS) {
            self.caught_up(sky);
        }
    }

    pub(super) fn caught_up(&mut self, sky: &mut Sky) {
        if std::mem::take(&mut self.m().catching_up) {
            self.host_goes_on(sky, micros(CATCHING_UP));
        }
    }

    fn host_goes_on(&mut self, sky: &mut Sky, wait: Time) {
        let manager = self.m();
        manager.host_turn.awaiting = false;
        let changed = std::mem::take(&mut manager.host_turn.changed);
        self.wake_host(sky, if changed { 20 } else { wait });
    }

    // ------------------------------------------------------------ the report

    pub(super) fn report_look(&mut self, sky: &mut Sky) {
        let now = sky.now;
        if self.m().report_turn.at.is_none_or(|set| set > now) || self.m().report_turn.awaiting {
            return;
        }
        self.m().report_turn.at = None;
        while let Some(notice) = self.m().notices.pop_front() {
            let manager = self.m();
            manager.board.notice(notice.clone());
            manager.heard.retain(|old| old.member != notice.member || old.epoch > notice.epoch);
            manager.heard.push(notice);
        }
        let (promise, moment) = (self.promise(sky), self.board_now(sky));
        let boot = self.clock.boot(sky.now);
        let me = sky.names[self.index].clone();
        let manager = self.m();
        let said = manager.said.clone().map(|(view, at)| (view, boot.saturating_sub(at)));
        let agent = said.as_ref().map(|(view, age)| (AgentView::clone(view), *age));
        manager.board.observe(&me, agent, promise, moment);
        manager.board.knows(&me, Format::NEWEST);
        let leader = manager.leadership.0;
        self.board_changed(sky);
        match leader {
            None => self.report_pause(sky, false),
            Some(leader) if leader == self.index => {
                let manager = self.m();
                let situation = manager.board.situation(&manager.state, &sky.timings, moment);
                let (ready, standbys) = seen_by_leader(&situation);
                let ready = ready.then_some(manager.state.epoch);
                manager.board.take_word(ready, standbys);
                self.report_pause(sky, true);
            }
            Some(leader) => {
                let notices = self.m().heard.clone();
                self.m().report_turn.awaiting = true;
                let limit = micros(sky.timings.rpc.max(Duration::from_millis(250)));
                let request = Request::Report { view: said, promise, notices };
                self.ask_peer(sky, leader, Pending::Report, limit, request);
            }
        }
    }

    pub(super) fn report_delivered(&mut self, sky: &mut Sky, delivered: bool) {
        self.m().report_turn.awaiting = false;
        self.report_pause(sky, delivered);
    }

    fn report_pause(&mut self, sky: &mut Sky, delivered: bool) {
        if delivered {
            self.m().heard.clear();
        }
        let pause = if delivered { sky.timings.report } else { sky.timings.heartbeat };
        let wait = self.pause(sky, pause);
        let manager = self.m();
        let news = std::mem::take(&mut manager.report_turn.changed) || !manager.notices.is_empty();
        self.wake_report(sky, if news { 20 } else { wait });
    }
}

/// An action as its agent gets it, and whether the order names the system identifier (`host::encode`).
fn ordered(action: &Action) -> (Ordered, bool) {
    let source = |upstream: &Upstream| {
        let host = upstream.postgres.split(':').next().unwrap_or_default().to_owned();
        Source { member: upstream.member.clone(), host, port: 5432, fork: None, named: None }
    };
    match action {
        Action::Initdb => (Ordered::Initdb, false),
        Action::StartStandby { upstream } => (Ordered::StartStandby(upstream.as_ref().map(source)), true),
        Action::Promote { timeline, floor } => (Ordered::Promote { timeline: *timeline, floor: *floor }, true),
        Action::RestartInPlace { timeline } => (Ordered::RestartInPlace { timeline: *timeline }, true),
        Action::Stop { mode, keep_lease } => {
            let mode = match mode {
                StopMode::Fast => OrderedStop::Fast,
                StopMode::Immediate => OrderedStop::Immediate,
            };
            (Ordered::Stop { mode, keep_lease: *keep_lease }, false)
        }
        Action::Rewind { source: from } => (Ordered::Rewind(source(from)), true),
        Action::Clone { source: from } => (Ordered::Clone(source(from)), true),
        Action::Reinit { source: from, named, .. } => {
            (Ordered::Clone(Source { named: Some(*named), ..source(from) }), true)
        }
        Action::Checkpoint { .. } => (Ordered::Checkpoint, false),
        Action::EndClone => (Ordered::EndClone, false),
    }
}
