//! Confirmed commits: the list of rules, failover and crashes, in one model.
//!
//! Time is not in it: an old primary may go on writing, and be confirmed what was
//! under way to it, when the next has long been promoted. What keeps commits is
//! the list alone. In the models with `promise` a grant waits until nobody of an
//! earlier epoch lives, but where standbys outvote the old primary.

mod checks;
mod log;
mod rules;
mod state;
mod steps;

use stateright::{Model, Property};

use log::{Ack, Log, Met, bit};
use rules::{Rule, Without};
use state::{COMMITS, EPOCHS, Host, Lock, NONE, Role, State};
use steps::Step;

/// The promises that everything else is for.
const NONE_LOST: &str = "every acknowledged commit is on the winner of every later epoch";
const NONE_VANISHES: &str = "what clients saw after a crash is on every later winner";
const OUTVOTED: &str = "a primary that was outvoted acknowledges nothing that the next one lacks";
const LISTED: &str = "a primary acknowledges by no rule that is not in the log";

/// The bounds of one model, and the rules it goes without.
#[derive(Debug, Clone)]
struct Confirmed<const N: usize> {
    /// Epochs, commits and changes of rules at most.
    epochs: u8,
    commits: u8,
    changes: u8,
    /// The mode may become `async`, and come back.
    to_async: bool,
    /// Primaries crash and are restarted in place.
    crashes: bool,
    /// By what it begins.
    begin: Vec<Ack>,
    /// Every rule there can be, or `ANY 1` and nobody only.
    all_rules: bool,
    without: Without,
    /// The only rules that are set; none: all.
    sets: Vec<(u8, u8)>,
    /// Hosts that are alike stand for each other.
    alike: bool,
    /// Files of earlier epochs are written once more.
    stale: bool,
    /// `failover_wait = promise`: a grant waits for the end of all leases, but where standbys outvote the old primary.
    promise: bool,
    /// The promise about the log is looked at too.
    listed: bool,
    met: Met,
}

impl<const N: usize> Confirmed<N> {
    fn new(without: &[Rule]) -> Self {
        let others = (1 << N) - 2;
        let begin = vec![Ack { epoch: 1, names: others, count: 1 }];
        Self {
            epochs: 2,
            commits: 1,
            changes: 1,
            to_async: false,
            crashes: true,
            begin,
            all_rules: false,
            without: Without::rules(without),
            sets: Vec::new(),
            alike: true,
            stale: !Without::rules(without).keeps(Rule::NamesWithEpoch),
            promise: false,
            listed: without.is_empty(),
            met: Met::table(N),
        }
    }

    fn keeps(&self, rule: Rule) -> bool {
        self.without.keeps(rule)
    }

    /// With these rules gone it matters what a PostgreSQL went by long ago.
    fn remembers(&self) -> bool {
        self.stale || !self.keeps(Rule::RestartReadsIt)
    }

    fn first(&self, rule: Ack) -> State<N> {
        let mut hosts = [Host::standby(); N];
        hosts[0] = Host { role: Role::Primary, follows: 0, tenure: 1, disk: 1, by: bit(1), ..Host::standby() };
        hosts[0].was = if self.remembers() { bit(1) } else { 0 };
        let mut forks = [(0, NONE); EPOCHS + 1];
        forks[1] = (0, 0);
        State {
            log: Log::of(rule),
            epoch: 1,
            lock: Lock::Granted(0, true),
            heard: 0,
            changes: 0,
            hosts,
            forks,
            born: [0; COMMITS],
            acked: 0,
            told: 0,
            seen: 0,
            late: 0,
            unlisted: false,
        }
    }
}

/// The first primary's newest rule is the only one.
fn settled<const N: usize>(s: &State<N>) -> bool {
    s.epoch == 1 && s.log.len() == 1 && s.changes > 0
}

impl<const N: usize> Model for Confirmed<N> {
    type State = State<N>;
    type Action = Step;

    fn init_states(&self) -> Vec<State<N>> {
        self.begin.iter().map(|rule| self.first(*rule)).collect()
    }

    fn actions(&self, s: &State<N>, steps: &mut Vec<Step>) {
        self.candidates(s, steps);
    }

    fn next_state(&self, s: &State<N>, step: Step) -> Option<State<N>> {
        let mut t = *s;
        let next = self.step(&mut t, step).then(|| t.tidy(self.remembers(), self.alike))?;
        (next != *s).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::<Self>::always(NONE_LOST, |_, s| s.kept(s.acked)),
            Property::<Self>::always(NONE_VANISHES, |_, s| s.kept(s.seen)),
            Property::<Self>::sometimes("a failover follows an acknowledged commit", |_, s| {
                s.fork(2) != NONE && s.acked & s.before(2) != 0
            }),
            Property::<Self>::sometimes("the old primary writes on when the next one does", |_, s| {
                s.hosts.iter().any(|h| h.role == Role::Primary && h.tenure < s.newest())
            }),
            Property::<Self>::sometimes("a commit of the old primary is lost that nobody was told of", |_, s| {
                s.fork(2) != NONE && s.before(2) & !s.fork(2) & !s.acked != 0
            }),
        ];
        if self.promise {
            all.push(Property::<Self>::always(OUTVOTED, |_, s| s.kept(s.late)));
            all.push(Property::<Self>::sometimes("a confirmation comes to one that was outvoted", |_, s| s.late != 0));
        }
        if self.listed {
            all.push(Property::<Self>::always(LISTED, |_, s| !s.unlisted));
        }
        if self.changes > 0 {
            all.push(Property::<Self>::sometimes("a rule settles", |_, s| settled(s) && s.changes == 1));
            all.push(Property::<Self>::sometimes("the primary goes on alone, and acknowledges", |_, s| {
                settled(s) && s.log.rule(s.log.last).is_alone() && s.acked != 0
            }));
        }
        if self.changes > 1 {
            all.push(Property::<Self>::sometimes("one that was alone is confirmed again", |_, s| {
                settled(s) && s.changes == 2 && !s.log.rule(s.log.last).is_alone() && s.acked != 0
            }));
        }
        if self.crashes {
            all.push(Property::<Self>::sometimes("clients come in after a crash", |_, s| s.seen != 0));
        }
        all
    }
}
