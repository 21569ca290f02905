//! The manager's process around its real rules: `policy::decide`, `reconcile::next_action`, the real
//! acceptor, the real board (`manager::board::Facts`) and the real desk (`manager::host::Desk`). Mirrors the
//! loops of `manager::{leader, host, report, seal, link, identity}`: each awaits its own answers, and hears
//! of changes only between two of them.
//!
//! Simplified: the founding's greetings are left out (the Raft group is there from the beginning), the
//! membership is constant, operators talk to the leader directly.

mod lease_side;
mod loops;
mod misled;
mod rpc;

use std::{
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    time::Duration,
};

use matriarch::{
    domain::{Briefing, ClusterId, Epoch, MemberId, Moment, NodeId, observation::AgentView, observation::Notice},
    lease::{Membership, acceptor::Acceptor, message::Letter},
    manager::{board::Facts, host::Desk},
    policy::{Founding, Hold},
    state::{ClusterState, Lock, Member},
};

pub use self::{
    lease_side::AcceptorDone,
    rpc::{Reply, Request},
};
use crate::{
    clock::{MS, SECOND, Time, micros},
    host::Host,
    invariants,
    mutation::Mutation,
    network::Channel,
    raft::{self, Limits, Msg, Out, Raft},
    world::{Sky, What, World},
};

/// What happens to a manager.
#[derive(Debug)]
pub enum ManagerEvent {
    Raft {
        from: usize,
        msg: Msg,
    },
    RaftTimer,
    RaftSynced(u64),
    /// A leader that was not heard again counts as gone.
    Recheck,
    Datagram {
        from: usize,
        letter: Letter,
    },
    AcceptorSynced(Box<AcceptorDone>),
    AcceptorTimer,
    /// The acceptor's thread hands a notice on.
    Notice(Notice),
    LeaderLook,
    HostLook,
    ReportLook,
    Said {
        view: Rc<AgentView>,
        agent: u32,
    },
    LinkLost,
    LinkConnect,
    LinkSilent,
    Executed {
        number: u64,
        refused: Option<String>,
    },
    Probed {
        number: u64,
        view: Option<Rc<AgentView>>,
    },
    /// The agent was told of the committed state.
    Briefed {
        number: u64,
    },
    BriefAgain,
    Request {
        from: usize,
        number: u64,
        request: Request,
    },
    Reply {
        number: u64,
        reply: Reply,
    },
    Timeout {
        number: u64,
    },
    SealAsk {
        member: usize,
        epoch: Epoch,
    },
}

/// A loop that waits for a change, for time, or for an answer.
#[derive(Debug, Default)]
struct Turn {
    at: Option<Time>,
    awaiting: bool,
    changed: bool,
}

/// A command on its way through the log.
#[derive(Debug)]
struct Proposal {
    index: u64,
    term: u64,
    number: u64,
}

/// One life of a manager.
pub struct Manager {
    pub life: u32,
    /// It has no log and waits to be taken in.
    gated: bool,
    pub raft: Raft,
    raft_timer: Option<Time>,
    recheck: bool,
    pub state: Rc<ClusterState>,
    pub applied: u64,
    pub acceptor: Acceptor,
    acceptor_busy: bool,
    acceptor_queue: VecDeque<lease_side::Item>,
    acceptor_timer: bool,
    promise_shown: (Epoch, Epoch, bool, bool, bool),
    /// The acceptor takes datagrams of the cluster.
    identified: bool,
    board: Facts,
    started: Duration,
    said: Option<(Rc<AgentView>, Duration)>,
    /// The life of the agent that is watched.
    link: Option<u32>,
    link_wait: Time,
    link_checked: bool,
    /// When the agent was connected to last.
    connected: Duration,
    leadership: (Option<usize>, bool),
    leader_turn: Turn,
    host_turn: Turn,
    report_turn: Turn,
    led: bool,
    proposal: Option<Proposal>,
    pub holds: Vec<Hold>,
    desk: Desk,
    ordered: Option<(u64, Moment)>,
    catching_up: bool,
    heard: Vec<Notice>,
    notices: VecDeque<Notice>,
    numbers: u64,
    pending: BTreeMap<u64, rpc::Pending>,
    asks: BTreeMap<usize, (Epoch, Moment)>,
    /// With a bug put back only.
    early: misled::Early,
    awaiting_entry: Vec<(usize, u64, Epoch, Time)>,
    /// Which agent was told what, and what is under way.
    briefed: Option<(u64, Briefing)>,
    briefing: Option<(u64, Briefing)>,
}

/// What every host is configured with.
pub fn founding(names: &[MemberId], witness: Option<usize>) -> Founding {
    let member = |(i, id): (usize, &MemberId)| {
        let has = |port: u16| if witness == Some(i) { String::new() } else { format!("{id}:{port}") };
        let member = Member {
            node: NodeId(i as u64 + 1),
            manager: format!("{id}:7400"),
            postgres: has(5432),
            agent: has(7401),
            learner: false,
        };
        (id.clone(), member)
    };
    Founding {
        cluster_id: ClusterId("sim".into()),
        name: "sim".into(),
        members: names.iter().enumerate().map(member).collect(),
        initializer: names[0].clone(),
    }
}

impl World {
    pub fn start_manager(&mut self, i: usize) {
        let now = self.sky.now;
        let life = self.hosts[i].new_life();
        let n = self.sky.n();
        let host = &mut self.hosts[i];
        let gated = host.disks.manager_lost;
        let local = micros(host.clock.boot(now));
        let limits = Limits::of(&self.sky.timings);
        let raft = Raft::start(i, n, limits, &host.disks.raft, local, &mut self.sky.dice);
        let clocks = host.clock.read(now);
        let grant = match self.sky.mutation {
            Mutation::NoMargin => self.sky.timings.hold,
            _ => self.sky.timings.grant,
        };
        let mut start = clocks;
        if self.sky.mutation == Mutation::NoQuarantine {
            let back = grant.max(host.disks.sealed.grant) * 2;
            (start.boot, start.raw) = (start.boot.saturating_sub(back), start.raw.saturating_sub(back));
        }
        let acceptor = Acceptor::new(grant, host.disks.sealed, start);
        let mut board = Facts::new(founding(&self.sky.names, self.sky.witness));
        // The group is there from the beginning (see `founding::run`).
        board.allow_founding();
        host.manager = Some(Manager {
            life,
            gated,
            raft,
            raft_timer: None,
            recheck: false,
            state: Rc::new(ClusterState::default()),
            applied: 0,
            acceptor,
            acceptor_busy: false,
            acceptor_queue: VecDeque::new(),
            acceptor_timer: false,
            promise_shown: (Epoch(0), Epoch(0), false, false, false),
            early: misled::Early::default(),
            identified: false,
            board,
            started: clocks.boot,
            said: None,
            link: None,
            link_wait: 50 * MS,
            link_checked: false,
            connected: clocks.boot,
            leadership: (None, false),
            leader_turn: Turn::default(),
            host_turn: Turn::default(),
            report_turn: Turn::default(),
            led: false,
            proposal: None,
            holds: Vec::new(),
            desk: Desk::default(),
            ordered: None,
            catching_up: false,
            heard: Vec::new(),
            notices: VecDeque::new(),
            numbers: u64::from(life) << 32,
            pending: BTreeMap::new(),
            asks: BTreeMap::new(),
            awaiting_entry: Vec::new(),
            briefed: None,
            briefing: None,
        });
        self.sky.told.trace(now, || format!("{i}: manager starts"));
        let host = &mut self.hosts[i];
        host.apply(&mut self.sky);
        host.keep_identity(&mut self.sky);
        if !gated {
            let membership = Membership::simple(1, self.sky.names.iter().cloned());
            let manager = host.manager.as_mut().expect("just made");
            let quarantine = self.sky.mutation != Mutation::NoQuarantine;
            manager.acceptor.set_membership(membership, if quarantine { clocks } else { start });
            host.set_raft_timer(&mut self.sky);
        }
        host.watch_promise(&mut self.sky);
        host.manager_event(&mut self.sky, MS, ManagerEvent::LinkConnect);
        host.manager_event(&mut self.sky, 2 * MS, ManagerEvent::ReportLook);
        let manager = host.manager.as_mut().expect("just made");
        manager.report_turn.at = Some(now + 2 * MS);
        host.wake_host(&mut self.sky, 2 * MS);
        host.wake_leader(&mut self.sky, 2 * MS);
        invariants::restart_never_shortens_a_promise::restarted(self, i);
    }

    pub fn manager_dies(&mut self, i: usize) {
        invariants::restart_never_shortens_a_promise::dies(self, i);
        let host = &mut self.hosts[i];
        if let Some(mut manager) = host.manager.take() {
            manager.raft.crash(&mut host.disks.raft, &mut self.sky.dice);
        }
    }

    pub fn manager_after(&mut self, i: usize, delay: Time, event: ManagerEvent) {
        self.hosts[i].manager_event(&mut self.sky, delay, event);
    }
}

impl Manager {
    pub fn watches(&self, agent: u32) -> bool {
        self.link == Some(agent)
    }

    pub fn leads(&self) -> bool {
        self.leadership.1
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }
}

impl Host {
    pub fn manager_event(&self, sky: &mut Sky, delay: Time, event: ManagerEvent) {
        if let Some(manager) = &self.manager {
            sky.after(delay, self.index, manager.life, What::Manager(event));
        }
    }

    fn m(&mut self) -> &mut Manager {
        self.manager.as_mut().expect("its events are dropped when it is not there")
    }

    /// Now, on the manager's own clock.
    fn board_now(&self, sky: &Sky) -> Moment {
        let started = self.manager.as_ref().map(|m| m.started).unwrap_or_default();
        Moment(self.clock.boot(sky.now).saturating_sub(started))
    }

    pub fn on_manager(&mut self, sky: &mut Sky, event: ManagerEvent) {
        if self.m().gated
            && matches!(event, ManagerEvent::Raft { .. } | ManagerEvent::Datagram { .. } | ManagerEvent::Request { .. })
        {
            return;
        }
        match event {
            ManagerEvent::Raft { from, msg } => {
                self.with_raft(sky, |raft, now, dice, out| raft.receive(from, msg, now, dice, out))
            }
            ManagerEvent::RaftTimer => self.raft_timer(sky),
            ManagerEvent::RaftSynced(id) => self.raft_synced(sky, id),
            ManagerEvent::Recheck => {
                self.m().recheck = false;
                self.look_at_leadership(sky);
            }
            ManagerEvent::Datagram { from, letter } => self.datagram(sky, from, letter),
            ManagerEvent::AcceptorSynced(done) => self.acceptor_synced(sky, *done),
            ManagerEvent::AcceptorTimer => {
                self.m().acceptor_timer = false;
                self.watch_promise(sky);
            }
            ManagerEvent::Notice(notice) => {
                self.m().notices.push_back(notice);
                self.wake_report(sky, 20);
            }
            ManagerEvent::LeaderLook => self.leader_look(sky),
            ManagerEvent::HostLook => self.host_look(sky),
            ManagerEvent::ReportLook => self.report_look(sky),
            ManagerEvent::Said { view, agent } => self.hear_agent(sky, view, agent),
            ManagerEvent::LinkLost => self.link_lost(sky),
            ManagerEvent::LinkConnect => self.connect_link(sky),
            ManagerEvent::LinkSilent => self.link_silent(sky),
            ManagerEvent::Executed { number, refused } => self.executed(sky, number, refused.is_some()),
            ManagerEvent::Probed { number, view } => self.probe_answered(sky, number, view),
            ManagerEvent::Briefed { number } => self.brief_answered(sky, number, true),
            ManagerEvent::BriefAgain => self.brief(sky),
            ManagerEvent::Request { from, number, request } => self.on_request(sky, from, number, request),
            ManagerEvent::Reply { number, reply } => self.on_reply(sky, number, reply),
            ManagerEvent::Timeout { number } => self.on_timeout(sky, number),
            ManagerEvent::SealAsk { member, epoch } => self.seal_ask(sky, member, epoch),
        }
    }

    // ------------------------------------------------------------ Raft

    fn with_raft(&mut self, sky: &mut Sky, step: impl FnOnce(&mut Raft, Time, &mut crate::dice::Dice, &mut Vec<Out>)) {
        let local = micros(self.clock.boot(sky.now));
        let mut out = Vec::new();
        let manager = self.m();
        let before = manager.raft.role;
        step(&mut manager.raft, local, &mut sky.dice, &mut out);
        let (role, term) = (manager.raft.role, manager.raft.term);
        if role == raft::Role::Leader && before != role {
            sky.told.elected(self.index, term);
        }
        self.send_raft(sky, out);
        self.apply(sky);
        self.look_at_leadership(sky);
        self.set_raft_timer(sky);
    }

    fn send_raft(&mut self, sky: &mut Sky, out: Vec<Out>) {
        for out in out {
            match out {
                Out::Send(to, msg) => {
                    let what = What::Manager(ManagerEvent::Raft { from: self.index, msg });
                    sky.send(Channel::Control, self.index, to, 0, what);
                }
                Out::Sync(id) => {
                    let wait = sky.fsync();
                    self.manager_event(sky, wait, ManagerEvent::RaftSynced(id));
                }
            }
        }
    }

    fn raft_synced(&mut self, sky: &mut Sky, id: u64) {
        let local = micros(self.clock.boot(sky.now));
        let mut out = Vec::new();
        let before = self.m().raft.role;
        let Host { manager, disks, .. } = self;
        if let Some(manager) = manager {
            manager.raft.synced(id, &mut disks.raft, local, &mut out);
            if manager.raft.role == raft::Role::Leader && before != raft::Role::Leader {
                sky.told.elected(self.index, manager.raft.term);
            }
        }
        self.send_raft(sky, out);
        self.apply(sky);
        self.look_at_leadership(sky);
        self.set_raft_timer(sky);
    }

    fn set_raft_timer(&mut self, sky: &mut Sky) {
        let (now, local) = (sky.now, micros(self.clock.boot(sky.now)));
        let wait = self.m().raft.wake_at().saturating_sub(local);
        let at = self.clock.after(now, Duration::from_micros(wait)) + sky.dice.between(10, 300);
        let manager = self.m();
        if manager.raft_timer.is_some_and(|set| set <= at) {
            return;
        }
        manager.raft_timer = Some(at);
        let life = manager.life;
        sky.at(at, self.index, life, What::Manager(ManagerEvent::RaftTimer));
    }

    fn raft_timer(&mut self, sky: &mut Sky) {
        let local = micros(self.clock.boot(sky.now));
        let now = sky.now;
        let manager = self.m();
        if manager.raft_timer.is_some_and(|set| set > now) {
            return;
        }
        manager.raft_timer = None;
        if manager.raft.wake_at() <= local {
            self.with_raft(sky, |raft, now, dice, out| raft.tick(now, dice, out));
        } else {
            self.set_raft_timer(sky);
        }
    }

    /// Everything committed is applied, and whoever waits for it hears of it.
    fn apply(&mut self, sky: &mut Sky) {
        let mut changed = false;
        while self.m().applied < self.m().raft.committed {
            let i = self.index;
            let manager = self.m();
            let entry = manager.raft.log[usize::try_from(manager.applied).unwrap()].clone();
            manager.applied += 1;
            let index = manager.applied;
            let mut outcome = matriarch::state::Applied::Nothing;
            if let Some(command) = &entry.command {
                let before = manager.state.epoch;
                let state = Rc::make_mut(&mut manager.state);
                outcome = state.apply(command);
                if sky.mutation == Mutation::HibernationForgotten && state.asleep().is_some() {
                    state.hibernation = None;
                }
                changed = true;
                assert!(manager.state.epoch >= before, "an epoch went back");
            }
            sky.told.applied(sky.now, i, index, &entry, &manager.state, &outcome);
            if let Some(proposal) = manager.proposal.as_ref().filter(|p| p.index == index) {
                let kept = (proposal.term == entry.term).then_some(outcome);
                self.proposal_settled(sky, kept);
            }
        }
        if changed {
            self.state_changed(sky);
        }
    }

    fn state_changed(&mut self, sky: &mut Sky) {
        self.keep_identity(sky);
        self.wake_leader(sky, 30);
        self.wake_host(sky, 30);
        self.look_at_seals(sky);
        self.entries_arrived(sky);
        self.brief(sky);
    }

    /// `identity::keep`: the acceptor hears of the highest epoch applied, and whose datagrams it takes.
    fn keep_identity(&mut self, sky: &mut Sky) {
        if self.m().gated {
            return;
        }
        if sky.mutation != Mutation::SealBeforeDurable {
            self.acceptor_applied(sky);
        } else {
            let _ = self.m().acceptor.set_applied(Epoch(0));
        }
        let manager = self.m();
        manager.identified |= manager.state.identity.is_some();
    }

    fn look_at_leadership(&mut self, sky: &mut Sky) {
        let local = micros(self.clock.boot(sky.now));
        let manager = self.m();
        let now = manager.raft.leadership(local, manager.applied);
        let changed = now != manager.leadership;
        manager.leadership = now;
        if now.0.is_some() && !manager.recheck {
            manager.recheck = true;
            let wait = sky.timings.election_max + Duration::from_millis(1);
            let wait = self.clock.after(sky.now, wait) - sky.now;
            self.manager_event(sky, wait, ManagerEvent::Recheck);
        }
        if changed {
            self.wake_leader(sky, 20);
            self.wake_report(sky, 20);
            self.look_at_seals(sky);
        }
    }

    /// The fenced epoch that waits for seals, when this manager leads.
    fn sealing(&self) -> Option<Epoch> {
        let manager = self.manager.as_ref()?;
        match &manager.state.lock {
            Lock::Fenced { epoch, .. } if manager.leads() => Some(*epoch),
            Lock::Fenced { .. } | Lock::Free | Lock::Granted { .. } | Lock::Released(_) => None,
        }
    }

    // ------------------------------------------------------------ the link to the agent

    fn connect_link(&mut self, sky: &mut Sky) {
        if self.m().link.is_some() {
            return;
        }
        let agent = self.agent.as_ref().filter(|a| a.serving).map(|a| a.life);
        match agent {
            Some(life) => {
                let to = self.address();
                let boot = self.clock.boot(sky.now);
                let manager = self.m();
                (manager.link, manager.connected) = (Some(life), boot);
                let ask = crate::agent::AgentEvent::Ask(crate::agent::Ask::Watch(to));
                sky.after(200, self.index, life, What::Agent(ask));
                if !std::mem::replace(&mut self.m().link_checked, true) {
                    self.manager_event(sky, 3 * SECOND, ManagerEvent::LinkSilent);
                }
            }
            None => {
                let manager = self.m();
                let wait = manager.link_wait;
                manager.link_wait = (wait * 2).min(500 * MS);
                self.manager_event(sky, wait, ManagerEvent::LinkConnect);
            }
        }
    }

    fn hear_agent(&mut self, sky: &mut Sky, view: Rc<AgentView>, agent: u32) {
        if self.m().link == Some(agent) {
            self.m().link_wait = 50 * MS;
            self.put_said(sky, view);
        }
    }

    fn put_said(&mut self, sky: &mut Sky, view: Rc<AgentView>) {
        let at = self.clock.boot(sky.now);
        self.m().said = Some((view, at));
        self.wake_report(sky, 20);
        self.wake_host(sky, 40);
        self.brief(sky);
    }

    fn link_lost(&mut self, sky: &mut Sky) {
        let manager = self.m();
        manager.link = None;
        manager.said = None;
        let wait = manager.link_wait;
        self.wake_report(sky, 20);
        self.manager_event(sky, wait, ManagerEvent::LinkConnect);
    }

    /// An agent that says nothing for three seconds is not reached.
    fn link_silent(&mut self, sky: &mut Sky) {
        let now = self.clock.boot(sky.now);
        let manager = self.m();
        manager.link_checked = false;
        if manager.link.is_none() {
            return;
        }
        let heard = manager.said.as_ref().map_or(manager.connected, |(_, at)| (*at).max(manager.connected));
        let over = heard + Duration::from_secs(3);
        if now >= over {
            self.link_lost(sky);
        } else {
            self.m().link_checked = true;
            let wait = self.clock.after(sky.now, over - now) - sky.now;
            self.manager_event(sky, wait, ManagerEvent::LinkSilent);
        }
    }
}
