//! Failsafe in a small world, exhaustively: a holder and two other agents, steps
//! of 300 ms, every moment at which the managers come back and grant the epoch
//! after it, and every pair of faults at every moment: a question or an answer
//! lost, an answer that comes late, a restart. The holder's clocks are as slow
//! and the agents' as fast as ρ allows, so that no margin is hidden.
//!
//! That an agent compares epochs is no mutation here: it ends failsafe at once, but whoever is promoted has let its
//! promise run out, and by then the holder has fenced itself without being told.
//!
//! `failsafe_sim` has what doesn't fit in here: lists that change, drift of any
//! size, pauses.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use matriarch::{
    domain::{Epoch, MemberId, MemberList, Profile, TimelineId, Timings, TimingsInUse, moment::TwoClocks},
    lease::{
        Membership, Phase,
        failsafe::{Knowledge, Promiser},
        holder::{Holder, HolderConfig, Output},
        message::{Body, Letter, Ticket},
    },
};

const STEP: f64 = 0.3;
const STEPS: usize = 26;
/// A voter that acked the last renewal, at 0 s, has no promise left from this step on.
const FREE: usize = 11;
const AGENTS: [&str; 2] = ["b", "c"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutation {
    None,
    AckWithoutPromise,
    PromiseForgotten,
    MostAgents,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    QuestionLost,
    AnswerLost,
    AnswerLate,
    Restart,
}

/// What goes wrong: in which step, at which of the two agents.
type Faults = [Option<(usize, usize, Fault)>; 2];

fn member(name: &str) -> MemberId {
    name.parse().unwrap()
}

/// What a clock of this rate shows at a real time.
fn clock(rate: f64, t: f64) -> TwoClocks {
    let d = Duration::from_secs_f64(1_000.0 + rate * t);
    TwoClocks { boot: d, raw: d }
}

struct Agent {
    promiser: Promiser,
    on_disk: Option<Duration>,
    accepted: Epoch,
}

struct World {
    mutation: Mutation,
    timings: Timings,
    list: MemberList,
    holder: Holder,
    agents: [Agent; 2],
    late: Vec<(usize, Letter)>,
    faults: Faults,
    step: usize,
    now: f64,
    /// Real time until which the holder may write.
    until: f64,
}

impl World {
    fn new(mutation: Mutation, faults: Faults) -> World {
        let timings = Timings::of(Profile::Normal);
        let names = ["a", "b", "c"].map(member);
        let config = HolderConfig { session: 1, peers: names.to_vec(), timings };
        let list = MemberList { version: 1, agents: names.iter().map(|n| (n.clone(), String::new())).collect() };
        let agent = || Agent {
            promiser: Promiser::new(timings.grant, None, clock(1.02, 0.0)),
            on_disk: None,
            accepted: Epoch(7),
        };
        let mut world = World {
            mutation,
            timings,
            holder: Holder::new(config),
            agents: [agent(), agent()],
            late: Vec::new(),
            faults,
            step: 0,
            now: 0.0,
            until: 0.0,
            list,
        };
        world.holder.set_me(member("a"), true);
        let mut asked = world.list.clone();
        if mutation == Mutation::MostAgents {
            asked.agents.remove(&member("c"));
        }
        world.holder.set_members(asked);
        // Two managers ack the first renewal, and no manager is heard again.
        let (mut out, now) = (Vec::new(), clock(0.98, 0.0));
        world.holder.hold(Epoch(7), TimelineId(1), now, &mut out);
        for from in ["b", "c"] {
            let ticket = Ticket { session: 1, seq: 1 };
            let membership = Membership::simple(1, names.clone());
            let body = Body::Ack { ticket, membership, elapsed: TwoClocks::default() };
            world.holder.receive(&member(from), Letter { epoch: Epoch(7), body }, now, &mut out).unwrap();
        }
        world.carry_out(out);
        world
    }

    fn fault(&self, agent: usize, fault: Fault) -> bool {
        self.faults.contains(&Some((self.step, agent, fault)))
    }

    fn advance(&mut self) {
        self.step += 1;
        self.now += STEP;
        for agent in 0..2 {
            if self.fault(agent, Fault::Restart) {
                let now = clock(1.02, self.real());
                let kept = self.agents[agent].on_disk.filter(|_| self.mutation != Mutation::PromiseForgotten);
                self.agents[agent].promiser = Promiser::new(self.timings.grant, kept, now);
            }
        }
        for (agent, letter) in std::mem::take(&mut self.late) {
            self.answer(agent, letter);
        }
        let (mut out, now) = (Vec::new(), self.holder_clock());
        self.holder.tick(now, &mut out);
        self.carry_out(out);
    }

    /// The slow clock of the holder needs a little more than a step between two renewals.
    fn real(&self) -> f64 {
        self.now + 0.01 * f64::from(u32::try_from(self.step).unwrap())
    }

    fn holder_clock(&self) -> TwoClocks {
        clock(0.98, self.real())
    }

    fn carry_out(&mut self, out: Vec<Output>) {
        for output in out {
            match output {
                Output::Send(..) => {}
                Output::Deadline(_, deadline) => {
                    let left = deadline.boot.as_secs_f64() - self.holder_clock().boot.as_secs_f64();
                    self.until = self.real() + left / 0.98 + self.timings.kill.as_secs_f64();
                }
                Output::SendToAgent(to, letter) => {
                    let agent = AGENTS.iter().position(|n| *n == to.as_str()).unwrap();
                    self.ask(agent, letter);
                }
            }
        }
    }

    fn ask(&mut self, agent: usize, letter: Letter) {
        if self.fault(agent, Fault::QuestionLost) {
            return;
        }
        let me = member(AGENTS[agent]);
        let now = clock(1.02, self.real());
        let asked = &mut self.agents[agent];
        let timings = TimingsInUse::default();
        let known = Knowledge { me: &me, highest: asked.accepted, members: &self.list, timings: &timings };
        let reply = asked.promiser.receive(&member("a"), letter, now, known);
        if reply.persist {
            asked.on_disk = asked.promiser.durable();
        }
        let Some(letter) = reply.reply.filter(|_| !self.fault(agent, Fault::AnswerLost)) else { return };
        match self.fault(agent, Fault::AnswerLate) {
            true => self.late.push((agent, letter)),
            false => self.answer(agent, letter),
        }
    }

    fn answer(&mut self, agent: usize, letter: Letter) {
        let mut out = Vec::new();
        let now = self.holder_clock();
        let _ = self.holder.receive(&member(AGENTS[agent]), letter, now, &mut out);
        self.carry_out(out);
    }

    /// The order of the next epoch. True when the agent takes it: from now on it may write.
    fn promote(&mut self, agent: usize) -> bool {
        let now = clock(1.02, self.real());
        let agent = &mut self.agents[agent];
        agent.accepted = Epoch(8);
        self.mutation == Mutation::AckWithoutPromise || agent.promiser.left(now).is_zero()
    }
}

/// Plays one run; says what went wrong.
fn run(mutation: Mutation, faults: Faults, granted: usize, to: usize) -> (Option<String>, bool) {
    let mut world = World::new(mutation, faults);
    let mut writes = false;
    while world.step < STEPS {
        world.advance();
        if !writes && world.step >= granted && world.promote(to) {
            writes = true;
        }
        if writes && world.real() < world.until {
            let (from, until) = (world.real(), world.until);
            return (Some(format!("{} writes from {from:.2} s, a until {until:.2} s", AGENTS[to])), writes);
        }
    }
    (None, writes)
}

fn every_pair_of_faults() -> Vec<Faults> {
    let mut single = vec![None];
    for step in 4..STEPS - 6 {
        for agent in 0..2 {
            for fault in [Fault::QuestionLost, Fault::AnswerLost, Fault::AnswerLate, Fault::Restart] {
                single.push(Some((step, agent, fault)));
            }
        }
    }
    let pairs = single.iter().enumerate().flat_map(|(i, one)| single[i..].iter().map(move |two| [*one, *two]));
    pairs.collect()
}

/// The number of runs, of those in which the successor wrote, and the first that went wrong.
fn explore(mutation: Mutation) -> (usize, usize, Option<String>) {
    let (mut runs, mut writing) = (0, 0);
    for faults in every_pair_of_faults() {
        for granted in FREE..STEPS - 4 {
            // Both agents are alike, unless one of them is not asked.
            for to in 0..if mutation == Mutation::MostAgents { 2 } else { 1 } {
                let (wrong, wrote) = run(mutation, faults, granted, to);
                runs += 1;
                writing += usize::from(wrote);
                if let Some(wrong) = wrong {
                    return (runs, writing, Some(format!("{faults:?}, granted in step {granted}: {wrong}")));
                }
            }
        }
    }
    (runs, writing, None)
}

#[test]
fn nobody_is_promoted_while_a_holder_may_write_by_the_agents_word() {
    let (runs, writing, wrong) = explore(Mutation::None);
    println!("{runs} runs, {writing} with a successor that wrote");
    assert_eq!(wrong, None);
    assert!(runs > 50_000 && writing > runs / 4, "{runs} runs, {writing} with a successor");
}

#[test]
fn without_a_fault_and_a_grant_the_holder_goes_on_for_ever() {
    let mut world = World::new(Mutation::None, [None, None]);
    for _ in 0..1_000 {
        world.advance();
        assert_ne!(world.holder.view().phase, Phase::Expired, "at step {}", world.step);
    }
    assert!(world.holder.view().failsafe);
}

#[test]
fn every_rule_that_is_taken_away_is_noticed() {
    for mutation in [Mutation::AckWithoutPromise, Mutation::PromiseForgotten, Mutation::MostAgents] {
        let (runs, _, wrong) = explore(mutation);
        println!("{mutation:?}: {wrong:?} after {runs} runs");
        assert!(wrong.is_some(), "{mutation:?} goes unnoticed");
    }
}
