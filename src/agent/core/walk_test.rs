//! Any events in any order, restarts in between: what must hold of the effects
//! whatever happened before. `AGENT_WALK_SEED=17` walks one seed again.

use std::time::Duration;

use super::{lists_test::briefing, tests::*, *};
use crate::{
    agent::{
        order::{Action, Order, Source, StopMode},
        store::Durable,
    },
    domain::{MemberId, PostgresState, Profile, TimelineId, Timings, TimingsId, moment::TwoClocks},
    lease::message::{Body, Letter, Terms, Ticket},
    reconcile::states::{BEGINNINGS, Cause, EDGES},
};

/// Whether a rule of reconcile gives this order in this state.
fn is_given(state: PostgresState, action: &Action) -> bool {
    EDGES.iter().any(|edge| match edge.cause {
        Cause::Order(kind, _) => edge.from == state && kind.to_string() == action.kind(),
        Cause::Awaited(..) | Cause::Event(_) => false,
    })
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

struct Walk {
    dice: Dice,
    core: Core,
    /// What a restart would find.
    on_disk: Durable,
    ms: u64,
    seq: u64,
    /// The epoch whose lease this start of the agent was told to seek: the holder speaks of no other.
    asked: Option<Epoch>,
    /// The lease of these epochs was held here at some time.
    held: std::collections::BTreeSet<Epoch>,
    fenced_notices: u32,
    promotions: u32,
    answers: u32,
    /// Nothing comes that the rest of the agent, its manager and its guard don't say then.
    tame: bool,
    /// From which state to which, without restarts.
    changes: Vec<(PostgresState, PostgresState)>,
    /// The end of the newest postmaster was told.
    gone: bool,
    /// The directory is being read.
    surveys: bool,
}

impl Walk {
    fn new(seed: u64) -> Walk {
        let (core, _) = agent(Durable::default(), Found::Nothing, Some(facts(false)));
        Walk {
            dice: Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1)),
            core,
            on_disk: Durable::default(),
            ms: 0,
            seq: 0,
            asked: None,
            held: [].into(),
            fenced_notices: 0,
            promotions: 0,
            answers: 0,
            tame: false,
            changes: Vec::new(),
            gone: false,
            surveys: false,
        }
    }

    /// A tame walk, from a primary on when `seed` is odd: few come so far by chance.
    fn tame(seed: u64) -> Walk {
        let walk = Walk { tame: true, ..Walk::new(seed) };
        if seed.is_multiple_of(2) {
            return walk;
        }
        let core = primary();
        Walk { on_disk: core.durable().clone(), core, ms: 50, asked: Some(Epoch(4)), held: [Epoch(4)].into(), ..walk }
    }

    fn run(&mut self, steps: u32) {
        for _ in 0..steps {
            self.ms += self.pause();
            if self.dice.chance(3) && (!self.tame || self.dice.chance(20)) {
                self.restart();
                continue;
            }
            let event = self.event();
            if self.tame && !self.can_be(&event) {
                continue;
            }
            let before = self.core.durable().clone();
            let promised = !self.core.promiser().left(now(self.ms).clocks).is_zero();
            if let Event::Lease(LeaseSight { epoch, phase: LeasePhase::Held, .. }) = &event {
                self.held.insert(*epoch);
            }
            let from = self.core.state();
            let effects = self.core.step(event, now(self.ms));
            if !self.changes.contains(&(from, self.core.state())) {
                self.changes.push((from, self.core.state()));
            }
            self.judge(&effects, &before, promised);
        }
    }

    /// A tame walk leaves time for what has to come in time, and waits now and then.
    fn pause(&mut self) -> u64 {
        match self.tame {
            true if self.dice.below(300) == 0 => 31_000,
            true => self.dice.below(100),
            false => self.dice.below(600),
        }
    }

    /// Whether this event can come now.
    fn can_be(&mut self, event: &Event) -> bool {
        let (tree, state) = (self.core.tree(), self.core.state());
        let work = self.core.work().map(|work| work.kind.clone()).unwrap_or_default();
        match event {
            Event::Spawned { .. } if state == PostgresState::Starting && tree == Tree::Empty => {
                self.gone = false;
                true
            }
            Event::Spawned { .. } => false,
            Event::Guard { postmaster: Postmaster::Running { .. }, .. } => !self.gone && tree == Tree::Ending,
            Event::Guard { .. } | Event::GuardDied { .. } => {
                self.gone |= tree != Tree::Empty;
                tree != Tree::Empty
            }
            Event::TreeKilled { .. } => self.core.is_fencing(),
            // It says nothing of PostgreSQL, and keeps promotions away.
            Event::Failsafe { .. } => false,
            Event::Surveyed { .. } => tree == Tree::Empty && std::mem::take(&mut self.surveys),
            // The start is done as soon as there is a postmaster.
            Event::Probed { .. } => work != "start",
            // What the guard says first is heard together with the news of the postmaster.
            Event::Done(_) if tree == Tree::Ending && !self.gone => false,
            // These look at what they have brought about, and tell.
            Event::Done(TaskEnd::Succeeded) => {
                !["promote", "restart"].contains(&work.as_str()) || self.core.sight().is_some_and(|s| !s.in_recovery)
            }
            // By a rule of reconcile.
            Event::Order(order) => is_given(state, &order.action),
            _ => true,
        }
    }

    /// Kill −9, and a new start with what is on disk.
    fn restart(&mut self) {
        let found = match self.core.tree() {
            Tree::Running { pid } => {
                let remaining = Duration::from_millis(self.dice.below(2_500));
                let armed = self.core.durable().tenure.map(|t| t.epoch).filter(|_| self.dice.chance(80));
                Found::Running { pid, armed: armed.unwrap_or(Epoch(0)), remaining }
            }
            Tree::Empty | Tree::Ending => Found::Nothing,
        };
        let disk = (found == Found::Nothing).then(|| facts(false));
        let before = self.on_disk.clone();
        let me = "n1".parse().unwrap();
        let timings = Timings::of(Profile::Normal);
        let start = Start { me, timings, durable: before.clone(), found, disk, system: Some(SYSTEM) };
        let (core, effects) = Core::begin(start, now(self.ms));
        self.core = core;
        self.asked = None;
        (self.gone, self.surveys) = (false, false);
        if let Some(promise) = before.failsafe {
            assert!(self.core.promiser().left(now(self.ms).clocks) >= promise, "a promise was forgotten");
        }
        self.judge(&effects, &before, false);
    }

    fn judge(&mut self, effects: &[Effect], before: &Durable, promised: bool) {
        let durable = self.core.durable().clone();
        assert!(durable.accepted >= before.accepted && durable.ended >= before.ended, "an epoch went back");
        for effect in effects {
            match effect {
                // As the loop does it: what is written is what the rules know after the step.
                Effect::Persist => self.on_disk = durable.clone(),
                Effect::Survey { .. } => self.surveys = true,
                Effect::Notice(notice) if notice.fenced => {
                    self.fenced_notices += 1;
                    assert!(self.on_disk.ended >= notice.epoch, "told before it was on disk: {notice:?}");
                    let empty = self.core.tree() == Tree::Empty;
                    assert!(empty || !self.held.contains(&notice.epoch), "told before the tree was empty: {notice:?}");
                }
                Effect::Notice(notice) => {
                    assert!(durable.ended < notice.epoch, "a crash was told of an epoch that is over");
                    assert!(durable.tenure.is_some_and(|t| t.epoch == notice.epoch));
                }
                Effect::Hold(tenure) => {
                    self.asked = Some(tenure.epoch);
                    assert!(tenure.epoch > before.ended, "an ended epoch is held again");
                }
                Effect::Begin(Task::Promote(tenure)) => {
                    self.promotions += 1;
                    self.asked = Some(tenure.epoch);
                    let on_disk = (self.on_disk.ended, self.on_disk.tenure);
                    assert_eq!(on_disk, (before.ended, Some(*tenure)), "begun before it was on disk");
                    assert!(tenure.epoch > durable.ended, "an ended epoch is promoted: {effects:?}");
                    let begun = before.tenure.is_some_and(|t| t.epoch == tenure.epoch);
                    assert!(begun || !promised, "promoted against a promise");
                }
                Effect::Begin(Task::Restart { tenure, .. }) => {
                    assert!(tenure.epoch > durable.ended, "an ended epoch is restarted in place");
                    assert_eq!(self.on_disk.restart_intent, Some(tenure.epoch), "the intent is not on disk");
                }
                Effect::Answer(Letter { body: Body::FailsafeAck { promised: true, .. }, epoch }) => {
                    self.answers += 1;
                    assert!(self.on_disk.failsafe.is_some(), "a promise was told before it was on disk");
                    assert!(*epoch >= durable.accepted, "a promise to help an epoch below one that is known");
                }
                Effect::Answer(Letter { body: Body::Nack { sealed, .. }, epoch }) => assert!(sealed > epoch),
                _ => {}
            }
        }
    }

    fn epoch(&mut self) -> u64 {
        let top = self.core.durable().accepted.0;
        if self.tame && self.core.durable().tenure.is_some() && self.dice.chance(90) {
            return top;
        }
        (top + self.dice.below(3)).saturating_sub(1).max(1)
    }

    fn event(&mut self) -> Event {
        let life = self.core.life();
        match self.dice.below(14) {
            0 => Event::Tick,
            // Mostly what makes a standby that answers, or nothing would ever be promoted.
            1 if self.core.tree() == Tree::Empty || self.dice.chance(10) => Event::Spawned { life: life + 1 },
            1 | 2 => Event::Guard { life, postmaster: Postmaster::Running { pid: 42 } },
            3 if self.dice.chance(40) => {
                let (tree_empty, fenced) = (self.dice.chance(80), self.dice.chance(50));
                Event::Guard { life, postmaster: Postmaster::Gone { tree_empty, fenced, exit: "signal 9".into() } }
            }
            4 if self.dice.chance(10) => Event::GuardDied { life },
            4 if self.dice.chance(10) => Event::TreeKilled { life },
            4 if self.dice.chance(10) => Event::Knocked { life, knock: Knock::Silent, waited: Duration::from_secs(3) },
            5 | 6 => self.lease(),
            3 | 4 | 7 => {
                let primary = self.core.durable().tenure.is_some() && self.dice.chance(70);
                let Event::Probed { result, .. } = sight(!primary, at(if primary { 2 } else { 1 }, 200)) else {
                    panic!()
                };
                Event::Probed { life, result }
            }
            8 | 9 => self.order(),
            10 => {
                let harmless = self.core.durable().tenure.is_some_and(|t| !self.held.contains(&t.epoch));
                match self.dice.chance(70) {
                    true => Event::Done(TaskEnd::Succeeded),
                    false => Event::Done(TaskEnd::Failed { error: "no".into(), harmless }),
                }
            }
            11 => Event::Surveyed { life, disk: self.disk() },
            12 => Event::Briefed(Box::new(briefing(self.epoch(), 4, &[(1 + self.dice.below(3), Profile::Fast)]))),
            // A promise of failsafe keeps promotions away for seconds.
            _ if self.dice.chance(20) => self.failsafe(),
            _ => Event::Tick,
        }
    }

    /// A directory that is good, or not there, stays so by itself.
    fn disk(&mut self) -> Disk {
        match self.dice.below(20) {
            _ if matches!(self.core.disk(), Some(Disk::NoData)) => Disk::NoData,
            _ if matches!(self.core.disk(), Some(Disk::Present(_))) => facts(self.dice.chance(50)),
            _ if matches!(self.core.disk(), Some(Disk::Unusable(_) | Disk::Damaged(_))) && self.dice.chance(20) => {
                Disk::NoData
            }
            0 => Disk::NoData,
            1 => Disk::Unusable("no PG_VERSION".to_owned()),
            2 => Disk::Damaged("no pg_control".to_owned()),
            _ => facts(self.dice.chance(50)),
        }
    }

    fn lease(&mut self) -> Event {
        let Some(epoch) = self.asked else { return Event::Tick };
        let phase = match self.dice.below(10) {
            0 if !self.tame || self.dice.chance(30) => LeasePhase::Expired,
            1 if !self.tame || self.dice.chance(20) => LeasePhase::Superseded,
            2 => LeasePhase::Seeking,
            _ => LeasePhase::Held,
        };
        let at_least = if self.tame { 1_000 } else { 0 };
        let deadline = TwoClocks::default().plus(Duration::from_millis(self.ms + at_least + self.dice.below(2_500)));
        Event::Lease(LeaseSight { epoch, phase, deadline, ..LeaseSight::default() })
    }

    fn order(&mut self) -> Event {
        let epoch = Epoch(self.epoch());
        let mut action = self.action();
        for _ in 0..20 {
            // It is stopped by command then, which happens less often than that a start comes to an end.
            let cut_off = self.core.state() == PostgresState::Starting && matches!(action, Action::Stop { .. });
            let rare = cut_off && self.dice.chance(95);
            if self.tame && (rare || !is_given(self.core.state(), &action)) {
                action = self.action();
            }
        }
        Event::Order(Order {
            id: 1,
            rule: 1,
            epoch,
            system_identifier: Some(SYSTEM),
            action,
            own_timeline: None,
            last: None,
            briefing: None,
        })
    }

    fn action(&mut self) -> Action {
        let source =
            || Source { member: "n2".parse().unwrap(), host: "n2".to_owned(), port: 5432, fork: None, named: None };
        match self.dice.below(10) {
            0..3 => Action::Promote { timeline: TimelineId(2), floor: at(1, 100) },
            3 => Action::RestartInPlace { timeline: TimelineId(2) },
            4 => Action::Stop { mode: StopMode::Fast, keep_lease: self.dice.chance(50) },
            5 => Action::StartStandby(None),
            6 => Action::Initdb,
            7 => Action::Rewind(source()),
            8 if self.core.state() == PostgresState::Busy => Action::EndClone,
            8 => Action::Clone(source()),
            _ => Action::Checkpoint,
        }
    }

    fn failsafe(&mut self) -> Event {
        self.seq += 1;
        let from: MemberId = ["n2", "n3"][usize::try_from(self.dice.below(2)).unwrap()].parse().unwrap();
        let grant = Timings::of(Profile::Fast).grant;
        let timings = TimingsId(self.dice.below(4));
        let terms = self.dice.chance(80).then_some(Terms { timings, grant });
        let body = Body::Failsafe { ticket: Ticket { session: 1, seq: self.seq }, members: 4, terms };
        Event::Failsafe { from, letter: Letter { epoch: Epoch(self.epoch()), body } }
    }
}

#[test]
fn an_ended_epoch_is_on_disk_before_anybody_hears_of_it_and_never_used_again() {
    let one = std::env::var("AGENT_WALK_SEED").ok().and_then(|s| s.parse::<u64>().ok());
    let seeds = one.map_or(0..2_000, |seed| seed..seed + 1);
    let (mut notices, mut promotions, mut answers) = (0, 0, 0);
    for seed in seeds {
        let mut walk = Walk::new(seed);
        let walked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| walk.run(300)));
        assert!(walked.is_ok(), "AGENT_WALK_SEED={seed}");
        notices += walk.fenced_notices;
        promotions += walk.promotions;
        answers += walk.answers;
    }
    if one.is_none() {
        let counts = (notices, promotions, answers);
        println!("{counts:?} notices, promotions, answers in failsafe");
        assert!(notices > 200 && promotions > 200 && answers > 200, "it walked too little: {counts:?}");
    }
}

/// What `reconcile::states` says of the agent is what the agent does: no other change, and none that there is not.
#[test]
fn the_changes_of_state_are_the_edges_of_the_drawing() {
    let mut changes = Vec::new();
    for seed in 0..1_000 {
        let mut walk = Walk::tame(seed);
        walk.run(500);
        let new: Vec<_> = walk.changes.into_iter().filter(|change| !changes.contains(change)).collect();
        changes.extend(new);
    }
    changes.retain(|(from, to)| from != to);
    let drawn = |change: &(PostgresState, PostgresState)| EDGES.iter().any(|e| (e.from, e.to) == *change);
    let missing: Vec<_> = changes.iter().filter(|change| !drawn(change)).collect();
    let walked = |(from, to): (PostgresState, PostgresState)| from == to || changes.contains(&(from, to));
    let vain: Vec<_> = EDGES.iter().filter(|e| !walked((e.from, e.to))).collect();
    assert!(missing.is_empty() && vain.is_empty(), "not drawn: {missing:?}\ndrawn and never seen: {vain:?}");
}

#[test]
fn an_agent_begins_where_the_drawing_begins() {
    let running = Found::Running { pid: 42, armed: Epoch(0), remaining: Duration::ZERO };
    let begun = [
        (Found::Nothing, Some(Disk::NoData)),
        (Found::Nothing, Some(facts(true))),
        (running, None),
        (Found::Nothing, Some(Disk::Unusable("no PG_VERSION".to_owned()))),
    ];
    let states = begun.map(|(found, disk)| agent(Durable::default(), found, disk).0.state());
    assert_eq!(states, BEGINNINGS);
}
