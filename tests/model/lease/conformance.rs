//! The real holder and acceptor do what the model says: random walks through the
//! model, each step also done with the real code, and both compared after it.
//!
//! The model can't be built from the real code: its clocks run on for ever and
//! its sequence numbers rise for ever, so no state would be seen twice.

use std::time::Duration;

use matriarch::{
    domain::{Epoch, MemberId, Profile, TimelineId, Timings, WalPosition, moment::TwoClocks, observation::Notice},
    lease::{
        Membership, Phase as RealPhase,
        acceptor::{Acceptor, Durable},
        holder::{Holder, HolderConfig, Output},
        message::{Body, Letter},
    },
};
use stateright::Model;

use super::{Lease, Phase, State, Step};
use crate::{
    quorum::{name, names},
    ticks::{SLOWEST, Timing},
};

const VOTERS: usize = 3;
const UNIT: Duration = Duration::from_secs(1);
const TIMING: Timing = Timing::LONG;

/// One holder, the renewal it sent last, and the acks that this brought.
struct Agent {
    me: MemberId,
    holder: Holder,
    sent: Option<Letter>,
    acks: Vec<(MemberId, Letter)>,
    session: u64,
}

struct World {
    model: Lease<VOTERS>,
    state: State<VOTERS>,
    tick: u32,
    acceptors: Vec<Acceptor>,
    disks: Vec<Durable>,
    agents: Vec<Option<Agent>>,
}

fn timings() -> Timings {
    Timings {
        hold: UNIT * u32::from(TIMING.hold),
        grant: UNIT * u32::from(TIMING.grant),
        renew: Duration::from_millis(1),
        rpc: Duration::from_millis(3),
        ..Timings::of(Profile::Normal)
    }
}

fn both(d: Duration) -> TwoClocks {
    TwoClocks { boot: Duration::from_secs(100) + d, raw: Duration::from_secs(7) + d }
}

impl World {
    fn new() -> Self {
        let model = Lease::<VOTERS> { first: TIMING, ..Lease::new(&[]) };
        let state = model.init_states()[0];
        let mut world =
            Self { model, state, tick: 0, acceptors: vec![], disks: vec![Durable::default(); VOTERS], agents: vec![] };
        for voter in 0..VOTERS {
            let acceptor = world.started(voter);
            world.acceptors.push(acceptor);
            world.seal(voter, 1);
        }
        world.tick = u32::from(TIMING.grant); // the quarantine of the start is over
        world.agents = vec![None, None];
        world.grant(1);
        world
    }

    /// Acceptors have the fastest clocks.
    fn voter_now(&self) -> TwoClocks {
        both(UNIT * self.tick)
    }

    /// Holders have the slowest.
    fn holder_now(&self) -> TwoClocks {
        both(UNIT / u32::from(SLOWEST) * self.tick)
    }

    fn started(&self, voter: usize) -> Acceptor {
        let mut acceptor = Acceptor::new(timings().grant, self.disks[voter], self.voter_now());
        acceptor.set_membership(Membership::simple(1, names(0b111)), self.voter_now());
        assert_eq!(acceptor.set_applied(Epoch(0)), None);
        acceptor
    }

    fn persist(&mut self, voter: usize, durable: Option<Durable>) {
        if let Some(durable) = durable {
            self.disks[voter] = durable;
            self.acceptors[voter].persisted(durable);
        }
    }

    fn seal(&mut self, voter: usize, epoch: u64) {
        let durable = self.acceptors[voter].seal(Epoch(epoch));
        self.persist(voter, durable);
    }

    fn grant(&mut self, epoch: u8) {
        let place = usize::from(epoch) - 1;
        let mut agent = Agent::new(name(place), u64::from(epoch) * 1_000);
        agent.holder.hold(Epoch(u64::from(epoch)), TimelineId(1), self.holder_now(), &mut Vec::new());
        self.agents[place] = Some(agent);
    }

    fn agent(&mut self, epoch: u8) -> &mut Agent {
        self.agents[usize::from(epoch) - 1].as_mut().unwrap()
    }

    /// The holder sends; false when it is not time for it. Probes are answered at once, and then it renews.
    fn renew(&mut self, epoch: u8) -> bool {
        let (now, voter_now) = (self.holder_now(), self.voter_now());
        let mut out = Vec::new();
        self.agent(epoch).holder.tick(now, &mut out);
        let probe = letters(&out).find(|letter| matches!(letter.body, Body::Probe { .. })).cloned();
        if let Some(probe) = probe {
            out.clear();
            let me = self.agent(epoch).me.clone();
            for voter in 0..VOTERS {
                let until = self.acceptors[voter].until();
                let response = self.acceptors[voter].receive(&me, probe.clone(), voter_now);
                assert_eq!(self.acceptors[voter].until(), until, "a probe moves no promise");
                if let Some(reply) = response.reply.filter(|r| matches!(r.body, Body::ProbeAck { .. })) {
                    let deadline = self.agent(epoch).holder.view().deadline;
                    let _ = self.agent(epoch).holder.receive(&name(voter), reply, now, &mut out);
                    assert_eq!(self.agent(epoch).holder.view().deadline, deadline, "its ack moves no deadline");
                }
            }
        }
        let sent = letters(&out).find(|letter| matches!(letter.body, Body::Renew { .. })).cloned();
        let Some(sent) = sent else { return false };
        let agent = self.agent(epoch);
        agent.acks.clear();
        agent.sent = Some(sent);
        true
    }

    fn deliver(&mut self, epoch: u8, voter: u8) -> Letter {
        let now = self.voter_now();
        let (me, letter) = (self.agent(epoch).me.clone(), self.agent(epoch).sent.clone().unwrap());
        let voter = usize::from(voter);
        let response = self.acceptors[voter].receive(&me, letter, now);
        self.persist(voter, response.persist);
        response.reply.unwrap()
    }

    /// Does a step with the real code; false when the real code would not do it now.
    fn perform(&mut self, step: Step) -> bool {
        let now = self.holder_now();
        match step {
            Step::Tick { .. } => self.tick += 1,
            Step::Renew { epoch, .. } => return self.renew(epoch),
            Step::Arrive { epoch, voter } => {
                let reply = self.deliver(epoch, voter);
                assert!(matches!(reply.body, Body::Ack { .. }), "{reply:?}");
                self.agent(epoch).acks.push((name(voter.into()), reply));
            }
            Step::Nack { epoch, voter } => {
                let reply = self.deliver(epoch, voter);
                assert!(matches!(reply.body, Body::Nack { .. }), "{reply:?}");
                self.agent(epoch).holder.receive(&name(voter.into()), reply, now, &mut Vec::new()).unwrap();
            }
            Step::Count { epoch } => {
                for (from, ack) in self.agent(epoch).acks.clone() {
                    let _ = self.agent(epoch).holder.receive(&from, ack, now, &mut Vec::new());
                }
            }
            Step::GiveUp { epoch } => self.agent(epoch).holder.release(),
            Step::Notice { epoch } => self.end(epoch),
            Step::AgentRestart { epoch } => self.restart_agent(epoch),
            Step::Seal { voter } => self.seal(voter.into(), self.state.epoch.into()),
            Step::Apply { voter } => {
                let durable = self.acceptors[usize::from(voter)].set_applied(Epoch(self.state.epoch.into()));
                self.persist(voter.into(), durable);
            }
            Step::Restart { voter } => self.acceptors[usize::from(voter)] = self.started(voter.into()),
            Step::Grant => self.grant(self.state.epoch),
            Step::Release | Step::Fence(_) | Step::TreeEmpty { .. } => {}
            Step::Crash { .. }
            | Step::RestartInPlace { .. }
            | Step::ClockStops { .. }
            | Step::ClockJumps { .. }
            | Step::Configure { .. } => return false,
        }
        true
    }

    /// `Fenced` goes out, and the epoch can't be sought here again.
    fn end(&mut self, epoch: u8) {
        let now = self.holder_now();
        let agent = self.agent(epoch);
        let (member, e) = (agent.me.clone(), Epoch(u64::from(epoch)));
        let notice = Notice {
            member,
            epoch: e,
            fenced: true,
            end: WalPosition::default(),
            clean: false,
            cause: matriarch::domain::EndCause::Unknown,
        };
        agent.holder.notice(notice, now, &mut Vec::new());
        agent.holder.hold(e, TimelineId(1), now, &mut Vec::new());
        assert_eq!(agent.holder.view().phase, RealPhase::Expired, "an ended epoch is never sought again");
    }

    fn restart_agent(&mut self, epoch: u8) {
        let now = self.holder_now();
        let e = Epoch(u64::from(epoch));
        let agent = self.agent(epoch);
        let deadline = agent.holder.view().deadline;
        *agent = Agent::new(agent.me.clone(), agent.session + 1);
        match deadline {
            Some(deadline) => agent.holder.resume(e, TimelineId(1), deadline, now, &mut Vec::new()),
            None => agent.holder.hold(e, TimelineId(1), now, &mut Vec::new()),
        }
    }

    /// Both agree on everything that either can tell.
    fn compare(&mut self, steps: &[Step]) {
        let (now, voter_now) = (self.holder_now(), self.voter_now());
        for (acceptor, voter) in self.acceptors.iter().zip(&self.state.voters) {
            let promise = acceptor.promise(voter_now);
            let left = acceptor.until().acceptor_remaining(voter_now);
            assert_eq!(left, UNIT * u32::from(voter.until), "promise after {steps:?}");
            assert_eq!(promise.lapsed, voter.until == 0, "promise after {steps:?}");
            assert_eq!(promise.sealed, Epoch(voter.sealed.into()), "seal after {steps:?}");
        }
        for (agent, model) in self.agents.iter_mut().zip(&self.state.holders) {
            let Some(agent) = agent else { continue };
            let over = agent.holder.view().deadline.is_some_and(|d| d.holder_remaining(now).is_zero());
            if over {
                let mut out = Vec::new();
                agent.holder.tick(now, &mut out);
                assert_eq!(letters(&out).find(|l| matches!(l.body, Body::Renew { .. })), None);
            }
            let view = agent.holder.view();
            let active = matches!(view.phase, RealPhase::Seeking | RealPhase::Held | RealPhase::Probing);
            assert_eq!(active, model.is_active(), "{:?} and {:?} after {steps:?}", view.phase, model.phase);
            if model.phase == Phase::Held {
                let left = view.deadline.unwrap().holder_remaining(now);
                assert_eq!(left, UNIT / u32::from(SLOWEST) * u32::from(model.left), "deadline after {steps:?}");
            } else {
                assert!(!active || view.deadline.is_none(), "no deadline after {steps:?}");
            }
        }
    }
}

impl Agent {
    fn new(me: MemberId, session: u64) -> Self {
        let peers = names(0b111).into_iter().collect();
        let holder = Holder::new(HolderConfig { session, peers, timings: timings() });
        Self { me, holder, sent: None, acks: vec![], session }
    }
}

fn letters(out: &[Output]) -> impl Iterator<Item = &Letter> {
    out.iter().filter_map(|output| match output {
        Output::Send(_, letter) => Some(letter),
        Output::SendToAgent(..) | Output::Deadline(..) => None,
    })
}

/// xorshift: small, and the same on every machine for ever.
fn draw(seed: &mut u64, below: usize) -> usize {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    usize::try_from(*seed % below as u64).unwrap()
}

#[test]
fn the_real_holder_and_acceptor_do_what_the_model_says() {
    let (mut compared, mut held, mut successors) = (0, 0, 0);
    for run in 1..=400_u64 {
        let mut seed = run.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut world = World::new();
        let mut steps = Vec::new();
        for _ in 0..120 {
            let mut possible = Vec::new();
            world.model.actions(&world.state, &mut possible);
            // Epochs end rarely, or nothing else would happen.
            let rare = |s: &Step| matches!(s, Step::Fence(_) | Step::GiveUp { .. } | Step::AgentRestart { .. });
            let step = possible[draw(&mut seed, possible.len())];
            if rare(&step) && draw(&mut seed, 6) > 0 {
                continue;
            }
            let Some(next) = world.model.step_in_place(&world.state, step) else { continue };
            if world.perform(step) {
                world.state = next;
                steps.push(step);
                world.compare(&steps);
                compared += 1;
            }
        }
        held += usize::from(steps.iter().any(|s| matches!(s, Step::Count { epoch: 1 })));
        successors += usize::from(steps.iter().any(|s| matches!(s, Step::Count { epoch: 2 })));
    }
    println!("{compared} steps compared, {held} runs in which epoch 1 was held, {successors} in which epoch 2 was");
    assert!(compared > 8_000 && held > 40 && successors > 2, "the walks compare too little");
}
