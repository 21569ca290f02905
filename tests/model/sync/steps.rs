//! What can happen around confirmed commits, one step at a time.

use super::{
    Confirmed,
    log::{Ack, GHOST, bit},
    rules::Rule,
    state::{Host, Lock, NONE, Role, State, Wal},
};
use crate::quorum::Members;

/// One step. Hosts by their place. What a leader does is begun anew at each: it may be another leader every time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A client commits, and the primary has flushed it.
    Write { host: u8 },
    /// The client is told so, by one of the rules that the primary may go by.
    Acknowledge { host: u8, commit: u8, rule: u8 },
    /// A standby flushes one commit more, and says so.
    Stream { host: u8 },
    /// The log has one more rule.
    SetRule { names: Members, count: u8 },
    /// Nothing is promised any more.
    Clear,
    /// The primary's agent hears of a rule: on disk, and some processes go by it.
    Tell { host: u8, rule: u8 },
    /// All processes have been seen to go by it.
    AllGoByIt { host: u8 },
    /// The leader hears that it is in effect.
    Hear,
    /// The older rules go from the log.
    Settle,
    /// The primary's PostgreSQL crashes.
    Crash { host: u8 },
    /// It is restarted in place; by this rule.
    Restart { host: u8, rule: u8 },
    /// It lets clients in.
    LetIn { host: u8 },
    /// An epoch ends.
    Fence,
    /// A host accepts the new epoch and leaves the old primary for good, or ceases to be one. It can give its word from now on.
    Sever { host: u8 },
    /// A host that was overtaken ends, and comes back as a standby.
    End { host: u8 },
    /// The leader has heard these, and grants the epoch.
    Grant { host: u8, heard: Members, names: Members, count: u8 },
    /// It is promoted.
    Promote { host: u8 },
    /// A host follows the new primary, as it is or with a copy.
    Join { host: u8 },
    // With a rule taken away only.
    /// The primary goes by a rule that is not in the log.
    Stray { host: u8, names: Members, count: u8 },
    /// A file from an earlier epoch is written once more.
    StaleFile { host: u8, rule: u8 },
    /// A host reads where its WAL ends, to tell it later.
    ReadEnd { host: u8 },
}

fn hosts<const N: usize>() -> impl Iterator<Item = u8> {
    0..N as u8
}

fn has(set: u8, i: u8) -> bool {
    set & (1 << i) != 0
}

fn ids(set: u8) -> impl Iterator<Item = u8> {
    (1..=GHOST).filter(move |id| set & bit(*id) != 0)
}

impl<const N: usize> Confirmed<N> {
    /// Everything that can be tried. [`Confirmed::step`] says what can happen.
    pub(super) fn candidates(&self, s: &State<N>, steps: &mut Vec<Step>) {
        for host in hosts::<N>() {
            let h = &s.hosts[usize::from(host)];
            match h.role {
                Role::Primary => self.of_primary(s, host, steps),
                Role::Standby => {
                    steps.extend([Step::Stream { host }, Step::Sever { host }, Step::Promote { host }]);
                    steps.push(Step::Join { host });
                    if !self.keeps(Rule::EndReadAfterSever) {
                        steps.push(Step::ReadEnd { host });
                    }
                }
                Role::Crashed => {
                    let rules = if self.keeps(Rule::RestartReadsIt) { bit(h.disk) } else { h.was };
                    steps.extend(ids(rules).map(|rule| Step::Restart { host, rule }));
                    steps.extend([Step::Sever { host }, Step::End { host }]);
                }
            }
        }
        steps.extend([Step::Hear, Step::Settle, Step::Fence]);
        match s.lock {
            Lock::Granted(host, true) => {
                let others = ((1 << N) - 1) & !(1 << host);
                let rules = self.choices(others).filter(|rule| self.sets.is_empty() || self.sets.contains(rule));
                steps.extend(rules.map(|(names, count)| Step::SetRule { names, count }));
                if self.to_async {
                    steps.push(Step::Clear);
                }
            }
            Lock::Granted(_, false) => {}
            Lock::Fenced(_) => self.grants(s, steps),
        }
    }

    fn of_primary(&self, s: &State<N>, host: u8, steps: &mut Vec<Step>) {
        let h = &s.hosts[usize::from(host)];
        steps.extend([Step::Write { host }, Step::AllGoByIt { host }, Step::LetIn { host }]);
        steps.extend([Step::Sever { host }, Step::End { host }]);
        if self.crashes {
            steps.push(Step::Crash { host });
        }
        steps.extend((s.log.first.min(s.log.last)..=s.log.last).map(|rule| Step::Tell { host, rule }));
        for commit in (0..self.commits).filter(|c| has(h.wal & !(s.acked | s.told), *c)) {
            steps.extend(ids(h.by).map(|rule| Step::Acknowledge { host, commit, rule }));
        }
        if !self.keeps(Rule::CommittedFirst) {
            let others = ((1 << N) - 1) & !(1 << host);
            steps.extend(self.choices(others).map(|(names, count)| Step::Stray { host, names, count }));
        }
        if !self.keeps(Rule::DegradeIsCommitted) {
            steps.push(Step::Stray { host, names: 0, count: 0 });
        }
        if self.stale {
            steps.extend(ids(h.was).map(|rule| Step::StaleFile { host, rule }));
        }
    }

    /// Every rule there can be of these standbys.
    fn choices(&self, others: Members) -> impl Iterator<Item = (Members, u8)> + use<N> {
        let all = self.all_rules;
        let most = move |names: Members| if all { names.count_ones() as u8 } else { 1 };
        let sets = (1..=others).filter(move |names| names & !others == 0);
        sets.flat_map(move |names| (1..=most(names)).map(move |count| (names, count))).chain([(0, 0)])
    }

    fn grants(&self, s: &State<N>, steps: &mut Vec<Step>) {
        let word = |h: &Host| h.role == Role::Standby && h.accepted == s.epoch && s.on_history(h);
        // A word before it has left the old primary is no word.
        let gives = |h: &Host| word(h) && (h.follows == 0 || !self.keeps(Rule::SeverBeforeWord));
        let promised: Members = hosts::<N>().filter(|i| gives(&s.hosts[usize::from(*i)])).map(|i| 1 << i).sum();
        for heard in (0..=promised).filter(|heard| heard & !promised == 0) {
            let Ok(everything) = self.everything(s, heard) else { continue };
            if self.promise && s.is_leased() && !self.outvoted(s, heard) {
                continue;
            }
            for host in hosts::<N>() {
                let h = &s.hosts[usize::from(host)];
                let fit = h.role == Role::Standby && s.on_history(h) && self.end(h) >= everything.unwrap_or_default();
                if fit {
                    let able =
                        hosts::<N>().filter(|i| *i != host && self.end(&s.hosts[usize::from(*i)]) <= self.end(h));
                    let able: Members = able.map(|i| 1 << i).sum();
                    let rules = self.choices(able).filter(|(_, count)| *count < 2);
                    steps.extend(rules.map(|(names, count)| Step::Grant { host, heard, names, count }));
                }
            }
        }
    }

    /// `policy::outvoted::is_over`: no rule is left by which the old primary could acknowledge anything.
    fn outvoted(&self, s: &State<N>, heard: Members) -> bool {
        let alone = |rule: Ack| rule.count == 0 && !self.keeps(Rule::WaitsAlways);
        let binds = s.log.binding || !self.keeps(Rule::BindsFirst);
        let waits = (s.log.len() > 0 && binds) || !self.keeps(Rule::WaitsAlways);
        waits && s.log.listed().map(|id| s.log.rule(id)).all(|r| alone(r) || self.reach(s, r, heard).is_some())
    }

    /// The end of WAL as it was told.
    fn end(&self, h: &Host) -> (u8, u32) {
        let early = !self.keeps(Rule::EndReadAfterSever) && h.read.1 != NONE;
        if early { (h.read.0, h.read.1.count_ones()) } else { h.end() }
    }

    /// Where WAL has to reach to have everything: `policy::sync::everything`, in small numbers.
    fn everything(&self, s: &State<N>, heard: Members) -> Result<Option<(u8, u32)>, ()> {
        if s.log.len() == 0 {
            return Ok(None);
        }
        let Lock::Fenced(last) = s.lock else { return Err(()) };
        let itself = has(heard, last).then(|| self.end(&s.hosts[usize::from(last)]));
        let by_rules: Result<Vec<_>, ()> =
            s.log.listed().map(|id| self.reach(s, s.log.rule(id), heard).ok_or(())).collect();
        match (by_rules.map(|r| r.into_iter().max().unwrap_or_default()), itself) {
            (Ok(reach), itself) => Ok(Some(itself.map_or(reach, |end| end.min(reach)))),
            (Err(()), Some(end)) => Ok(Some(end)),
            (Err(()), None) => Err(()),
        }
    }

    fn reach(&self, s: &State<N>, rule: Ack, heard: Members) -> Option<(u8, u32)> {
        // One too few: whoever was not heard is taken for one that was.
        let missing = if self.keeps(Rule::HearEnough) { 0 } else { rule.names & !heard };
        let one = missing & missing.wrapping_neg();
        if rule.count == 0 || !self.met.by(N, rule, heard | one) {
            return None;
        }
        let named = hosts::<N>().filter(|i| has(rule.names & heard, *i));
        let mut ends: Vec<(u8, u32)> = named.map(|i| self.end(&s.hosts[usize::from(i)])).collect();
        ends.sort_unstable_by(|a, b| b.cmp(a));
        let unheard = rule.names.count_ones() as usize - ends.len();
        let have = usize::from(rule.count).saturating_sub(unheard);
        let enough = u32::from(rule.count) <= rule.names.count_ones();
        Some(ends.get(have.saturating_sub(1)).copied().filter(|_| enough).unwrap_or_default())
    }

    /// Takes a step; false when it can't happen.
    pub(super) fn step(&self, t: &mut State<N>, step: Step) -> bool {
        match step {
            Step::Write { host } => self.write(t, usize::from(host)),
            Step::Acknowledge { host, commit, rule } => self.acknowledge(t, usize::from(host), 1 << commit, rule),
            Step::Stream { host } => stream(t, usize::from(host)),
            Step::SetRule { names, count } => {
                let rule = Ack { epoch: t.epoch, names, count };
                let other = t.log.len() == 0 || t.log.rule(t.log.last) != rule;
                t.changes += 1;
                t.heard = 0;
                t.changes <= self.changes && other && t.log.has_room(1) && t.log.add(rule)
            }
            Step::Clear => {
                let possible = t.log.len() > 0 && t.log.has_room(1);
                if possible {
                    t.log.clear(self.promise);
                    (t.acked, t.told, t.seen, t.late, t.heard) = (0, 0, 0, 0, 0);
                }
                possible
            }
            Step::Tell { host, rule } => self.tell(t, usize::from(host), rule),
            Step::AllGoByIt { host } => {
                let newest = self.newest(&t.hosts[usize::from(host)]);
                let h = &mut t.hosts[usize::from(host)];
                (h.by, h.past) = (bit(newest), h.wal);
                true
            }
            Step::Hear => self.hear(t),
            Step::Settle => {
                let effective = t.heard == t.log.last || !self.keeps(Rule::EffectiveFirst);
                t.heard = 0;
                matches!(t.lock, Lock::Granted(_, true))
                    && effective
                    && t.log.rule(t.log.last).epoch == t.epoch
                    && t.log.settle()
            }
            Step::Crash { host } => {
                let h = &mut t.hosts[usize::from(host)];
                (h.role, h.by, h.past, h.shut) = (Role::Crashed, 0, NONE, false);
                true
            }
            Step::Restart { host, rule } => self.restart(t, usize::from(host), rule),
            Step::LetIn { host } => {
                let open = self.effective(t, usize::from(host));
                let h = &mut t.hosts[usize::from(host)];
                t.seen |= h.wal;
                open && std::mem::take(&mut h.shut)
            }
            Step::Fence => match t.lock {
                Lock::Granted(host, _) if t.epoch < self.epochs => {
                    (t.epoch, t.lock, t.heard) = (t.epoch + 1, Lock::Fenced(host), 0);
                    true
                }
                Lock::Granted(..) | Lock::Fenced(_) => false,
            },
            Step::Sever { host } => self.sever(t, usize::from(host)),
            Step::End { host } => {
                let h = &mut t.hosts[usize::from(host)];
                let over = h.tenure < t.epoch && (matches!(t.lock, Lock::Granted(..)) || self.promise);
                h.demote();
                over
            }
            Step::Grant { host, heard, names, count } => {
                self.grant(t, host, heard, Ack { epoch: t.epoch, names, count })
            }
            Step::Promote { host } => self.promote(t, host),
            Step::Join { host } => join(t, usize::from(host)),
            Step::Stray { host, names, count } => {
                let h = &mut t.hosts[usize::from(host)];
                let first = h.by & bit(GHOST) == 0;
                t.log.all[usize::from(GHOST) - 1] = Ack { epoch: h.tenure, names, count };
                h.by |= bit(GHOST);
                first
            }
            Step::StaleFile { host, rule } => {
                let h = &mut t.hosts[usize::from(host)];
                h.by |= bit(rule);
                t.log.rule(rule).epoch < h.tenure && t.log.rule(rule).count > 0
            }
            Step::ReadEnd { host } => {
                let h = &mut t.hosts[usize::from(host)];
                h.read = (h.line, h.wal);
                true
            }
        }
    }

    fn write(&self, t: &mut State<N>, i: usize) -> bool {
        let free = t.born.iter().position(|epoch| *epoch == 0).filter(|c| *c < usize::from(self.commits));
        let Some(commit) = free else { return false };
        let h = &mut t.hosts[i];
        h.wal |= 1 << commit;
        t.born[commit] = h.tenure;
        !h.shut
    }

    /// PostgreSQL counts whom it knows by name and who has said to have flushed it, whenever that arrives.
    fn acknowledge(&self, t: &mut State<N>, i: usize, commit: Wal, id: u8) -> bool {
        let (rule, epoch, shut) = (t.log.rule(id), t.hosts[i].tenure, t.hosts[i].shut);
        let known = rule.epoch == epoch || !self.keeps(Rule::NamesWithEpoch);
        let confirms =
            |n: &u8| has(rule.names, *n) && known && t.hosts[usize::from(*n)].sent[usize::from(epoch)] & commit != 0;
        let confirmed = hosts::<N>().filter(confirms).count();
        if shut || confirmed < usize::from(rule.count) {
            return false;
        }
        let present = t.lock == Lock::Granted(i as u8, true) && t.epoch == epoch;
        if self.promise && epoch < t.granted() {
            t.late |= commit;
        }
        let mut listed = t.log.listed();
        if id != GHOST && (rule.epoch == 0 || id <= t.log.cleared) {
            // It counts from when a later rule of this primary is in effect.
            if present {
                t.told |= commit;
            }
        } else {
            // Nothing is weaker than nobody.
            let fine = listed.any(|l| l == id || t.log.rule(l).is_alone());
            t.unlisted |= present && !fine;
            t.acked |= commit;
        }
        true
    }

    fn tell(&self, t: &mut State<N>, i: usize, id: u8) -> bool {
        let Lock::Granted(holder, true) = t.lock else { return false };
        let remembers = self.remembers();
        let disk = self.keeps(Rule::DiskFirst);
        let none = t.log.len() == 0;
        let h = &mut t.hosts[i];
        let ours = usize::from(holder) == i && h.tenure == t.epoch && (none || t.log.rule(id).epoch == t.epoch);
        let newer = if disk { id > h.disk } else { h.by & bit(id) == 0 && id > h.disk };
        if remembers {
            h.was |= h.by | bit(id);
        }
        h.by |= bit(id);
        h.past = NONE;
        if disk {
            h.disk = id;
        }
        ours && newer
    }

    /// The rule that it was told last.
    fn newest(&self, h: &Host) -> u8 {
        if self.keeps(Rule::DiskFirst) { h.disk } else { GHOST - h.by.leading_zeros() as u8 }
    }

    /// Everybody goes by the newest rule, and as many as it wants have all that was flushed by then.
    fn effective(&self, t: &State<N>, i: usize) -> bool {
        let h = &t.hosts[i];
        let newest = self.newest(h);
        let rule = t.log.rule(newest);
        let has_all =
            |n: &u8| has(rule.names, *n) && h.past & !t.hosts[usize::from(*n)].sent[usize::from(h.tenure)] == 0;
        let confirmed = || hosts::<N>().filter(has_all).count() >= usize::from(rule.count);
        rule.count == 0 || (h.past != NONE && h.by == bit(newest) && confirmed())
    }

    fn hear(&self, t: &mut State<N>) -> bool {
        let Lock::Granted(host, true) = t.lock else { return false };
        let i = usize::from(host);
        let h = &t.hosts[i];
        let goes = h.role == Role::Primary && self.newest(h) == t.log.last;
        let ours = goes && h.tenure == t.epoch && t.log.len() > 0;
        if !ours || !self.effective(t, i) {
            return false;
        }
        t.acked |= std::mem::take(&mut t.told);
        t.heard = if t.log.len() > 1 || !t.log.binding { t.log.last } else { 0 };
        true
    }

    fn restart(&self, t: &mut State<N>, i: usize, id: u8) -> bool {
        let rule = t.log.rule(id);
        let promised = id > t.log.cleared && rule.epoch > 0;
        let h = &mut t.hosts[i];
        let ours = h.tenure == h.accepted;
        (h.role, h.by, h.past) = (Role::Primary, bit(id), NONE);
        h.shut = rule.count > 0 && self.keeps(Rule::Gate);
        if !h.shut && promised {
            t.seen |= h.wal;
        }
        ours
    }

    fn sever(&self, t: &mut State<N>, i: usize) -> bool {
        let over = matches!(t.lock, Lock::Fenced(_));
        let epoch = t.epoch;
        let h = &mut t.hosts[i];
        match h.role {
            Role::Standby if self.keeps(Rule::SeverBeforeWord) || h.accepted == epoch => h.follows = 0,
            // The word alone; it streams on.
            Role::Standby => {}
            Role::Primary | Role::Crashed => h.demote(),
        }
        h.accepted = epoch;
        over
    }

    fn grant(&self, t: &mut State<N>, host: u8, heard: Members, rule: Ack) -> bool {
        let Ok(everything) = self.everything(t, heard) else { return false };
        let enough = everything.unwrap_or_else(|| self.end(&t.hosts[usize::from(host)]));
        let has_all = |i: &u8| *i == host || (has(heard, *i) && self.end(&t.hosts[usize::from(*i)]) >= enough);
        let holders = hosts::<N>().filter(has_all).map(|i| 1 << i).sum();
        let before = (t.log.len() > 0).then(|| t.log.rule(t.log.last).epoch);
        if !t.log.has_room(2) {
            return false;
        }
        if before.is_none() {
            // Whatever was acknowledged before was not promised.
            t.log.cleared = t.log.last;
        }
        t.told = 0;
        t.log.begin(before.filter(|_| self.keeps(Rule::HoldersKept)).map(|epoch| (epoch, holders)), rule);
        t.lock = Lock::Granted(host, false);
        for h in &mut t.hosts {
            h.read = (0, NONE);
        }
        true
    }

    fn promote(&self, t: &mut State<N>, host: u8) -> bool {
        if t.lock != Lock::Granted(host, false) {
            return false;
        }
        let (epoch, rule) = (t.epoch, t.log.last);
        let h = &mut t.hosts[usize::from(host)];
        t.forks[usize::from(epoch)] = (h.line, h.wal);
        let was = if self.remembers() { h.was | bit(rule) } else { 0 };
        let tenure = Host { role: Role::Primary, line: epoch, tenure: epoch, accepted: epoch, disk: rule, ..*h };
        *h = Host { follows: 0, by: bit(rule), was, past: NONE, shut: false, ..tenure };
        t.lock = Lock::Granted(host, true);
        h.accepted >= epoch
    }
}

fn stream<const N: usize>(t: &mut State<N>, i: usize) -> bool {
    let epoch = t.hosts[i].follows;
    let Some(primary) = t.primary_of(epoch).filter(|p| epoch > 0 && *p != i) else { return false };
    let lacks = t.hosts[primary].wal & !t.hosts[i].wal;
    let next = lacks & lacks.wrapping_neg();
    let h = &mut t.hosts[i];
    h.wal |= next;
    h.sent[usize::from(epoch)] = h.wal;
    t.reach_line(i);
    next != 0
}

fn join<const N: usize>(t: &mut State<N>, i: usize) -> bool {
    let Lock::Granted(_, true) = t.lock else { return false };
    let epoch = t.epoch;
    let Some(primary) = t.primary_of(epoch) else { return false };
    let theirs = t.hosts[primary].wal;
    let same = t.on_history(&t.hosts[i]);
    let h = &mut t.hosts[i];
    let other = h.follows != epoch;
    if !same || h.wal & !theirs != 0 {
        (h.wal, h.line) = (theirs, epoch);
    }
    (h.accepted, h.follows) = (epoch, epoch);
    h.sent[usize::from(epoch)] = h.wal;
    t.reach_line(i);
    other
}
