//! The list of rules as the log has it: small numbers here, and every change made by the real `SyncSet`.

use matriarch::domain::{Epoch, MemberId, SyncRule, SyncSet};

use crate::quorum::{Members, name, names};

/// Numbers of rules that may be in use at once, 1 to this.
pub const IDS: usize = 8;
/// The number of the rule that never comes into the log, with a rule of the model taken away.
pub const GHOST: u8 = 8;

/// A set of rules, a bit each.
pub type Ids = u8;

/// The bit of a number.
pub fn bit(id: u8) -> Ids {
    1 << (id - 1)
}

/// By what commits are acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ack {
    /// Whose primary; 0: it says that nothing is promised (mode `async`).
    pub epoch: u8,
    /// Who may confirm.
    pub names: Members,
    /// How many have to.
    pub count: u8,
}

impl Ack {
    /// Nobody has to confirm, and that is a promise: nobody else becomes primary.
    pub fn is_alone(self) -> bool {
        self.count == 0 && self.epoch > 0
    }

    fn real(self, id: u8) -> SyncRule {
        let (id, epoch) = (id.into(), Epoch(self.epoch.into()));
        SyncRule { id, epoch, names: members(self.names), count: self.count.into() }
    }

    fn of(rule: &SyncRule) -> Self {
        let count = u8::try_from(rule.count).unwrap();
        Self { epoch: u8::try_from(rule.epoch.0).unwrap(), names: mask(&rule.names), count }
    }
}

fn members(set: Members) -> Vec<MemberId> {
    names(set).into_iter().collect()
}

fn mask(names: &[MemberId]) -> Members {
    names.iter().map(|n| (0..8).find(|i| name(*i) == *n).map_or(0, |i| 1 << i)).sum()
}

/// What the log holds: rules `first` to `last` of all that there are; none when `first` is above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Log {
    /// Every rule that the log or some PostgreSQL still goes by, by its number less one.
    pub all: [Ack; IDS],
    /// The oldest in the log.
    pub first: u8,
    /// The newest number. Rises with each change.
    pub last: u8,
    /// What was acknowledged under this number or an earlier one is not promised any more.
    pub cleared: u8,
    /// As in `SyncSet`. Always, in a model without [`promise`](super::Confirmed::promise).
    pub binding: bool,
}

impl Log {
    /// With one rule.
    pub fn of(rule: Ack) -> Self {
        let mut all = [Ack::default(); IDS];
        all[0] = rule;
        Self { all, first: 1, last: 1, cleared: 0, binding: true }
    }

    /// The rule of a number.
    pub fn rule(&self, id: u8) -> Ack {
        self.all[usize::from(id) - 1]
    }

    /// What is in the log.
    pub fn listed(&self) -> impl Iterator<Item = u8> {
        self.first..=self.last
    }

    /// How many rules are.
    pub fn len(&self) -> usize {
        self.listed().count()
    }

    fn real(&self) -> SyncSet {
        let rules = self.listed().map(|id| self.rule(id).real(id)).collect();
        SyncSet { id: self.last.into(), rules, binding: self.binding }
    }

    fn take(&mut self, set: &SyncSet) {
        self.last = u8::try_from(set.id).unwrap();
        self.first = set.rules.first().map_or(self.last + 1, |rule| u8::try_from(rule.id).unwrap());
        for rule in &set.rules {
            self.all[usize::try_from(rule.id).unwrap() - 1] = Ack::of(rule);
        }
    }

    /// One more number fits.
    pub fn has_room(&self, more: u8) -> bool {
        self.last + more < GHOST
    }

    /// `SyncSet::add`; false when it refuses.
    pub fn add(&mut self, rule: Ack) -> bool {
        let mut set = self.real();
        let added = set.add(Epoch(rule.epoch.into()), members(rule.names), rule.count.into()).is_ok();
        self.take(&set);
        added
    }

    /// `SyncSet::settle`; false when it refuses.
    pub fn settle(&mut self) -> bool {
        let mut set = self.real();
        let settled = set.settle(set.id).is_ok();
        self.take(&set);
        self.binding = set.binding;
        settled
    }

    /// `SyncSet::clear`: nothing is promised any more. `binds`: it is looked at whether rules bind.
    pub fn clear(&mut self, binds: bool) {
        let mut set = self.real();
        set.clear();
        self.take(&set);
        self.binding = set.binding || !binds;
        self.all[usize::from(self.last) - 1] = Ack::default();
        self.cleared = self.last;
    }

    /// As `ClusterState::start_sync`: whoever has everything, and the first rule of the new epoch.
    pub fn begin(&mut self, holders: Option<(u8, Members)>, rule: Ack) {
        let mut set = self.real();
        set.rules.clear();
        self.take(&set);
        if let Some((before, holders)) = holders {
            self.add(Ack { epoch: before, names: holders, count: holders.count_ones() as u8 });
        }
        self.add(rule);
        self.binding = true;
    }

    /// Numbers that nobody goes by any more are given away again: only their order counts.
    pub fn renumber(&mut self, used: Ids) -> [u8; IDS + 1] {
        let mut to = [0; IDS + 1];
        let mut all = [Ack::default(); IDS];
        let (mut next, mut cleared) = (0, 0);
        for id in 1..GHOST {
            // The last number counts also when it says that nothing is promised.
            let listed = (self.first <= id && id <= self.last) || id == self.last;
            if listed || used & bit(id) != 0 {
                next += 1;
                to[usize::from(id)] = next;
                all[usize::from(next) - 1] = self.rule(id);
                if id <= self.cleared {
                    cleared = next;
                }
            }
        }
        to[usize::from(GHOST)] = GHOST;
        all[IDS - 1] = self.all[IDS - 1];
        let last = to[usize::from(self.last)];
        let first = if self.first > self.last { last + 1 } else { to[usize::from(self.first)] };
        *self = Self { all, first, last, cleared, ..*self };
        to
    }
}

/// Whether a rule is met, for every one and every set that is heard: asked of the real one.
#[derive(Debug, Clone)]
pub struct Met(Vec<bool>);

impl Met {
    pub fn table(n: usize) -> Self {
        let sets = 0..1_u16 << n;
        let met = |names: u16, count: u8, heard: u16| {
            let rule = Ack { epoch: 1, names: names as u8, count }.real(1);
            rule.is_met_by(&crate::quorum::names(heard as u8))
        };
        let mut table = Vec::new();
        for names in sets.clone() {
            for count in 0..8 {
                table.extend(sets.clone().map(|heard| met(names, count, heard)));
            }
        }
        Self(table)
    }

    /// `SyncRule::is_met_by`.
    pub fn by(&self, n: usize, rule: Ack, heard: Members) -> bool {
        self.0[((usize::from(rule.names) * 8 + usize::from(rule.count)) << n) + usize::from(heard)]
    }
}
