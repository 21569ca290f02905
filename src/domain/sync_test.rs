#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use super::*;

fn id(name: &str) -> MemberId {
    name.parse().unwrap()
}

fn names(text: &str) -> Vec<MemberId> {
    text.split_whitespace().map(id).collect()
}

fn rule(of: &str, count: u32) -> SyncRule {
    SyncRule { id: 1, epoch: Epoch(1), names: names(of), count }
}

fn heard(of: &str) -> BTreeSet<MemberId> {
    names(of).into_iter().collect()
}

#[test]
fn a_promotion_hears_one_of_each_set_that_may_have_confirmed() {
    for (of, count, needed) in [
        ("b c", 1, Some(2)),
        ("b c", 2, Some(1)),
        ("b", 1, Some(1)),
        ("b c d e", 2, Some(3)),
        ("", 0, None),
        ("b c", 0, None),
        // Nothing is acknowledged that way, so nobody has to be heard.
        ("b", 2, Some(0)),
        ("", 1, Some(0)),
    ] {
        assert_eq!(rule(of, count).needed(), needed, "{count} of {of}");
    }
    assert!(rule("b c", 2).is_met_by(&heard("c x")));
    assert!(!rule("b c", 1).is_met_by(&heard("c x")));
    assert!(!rule("", 0).is_met_by(&heard("b c")));
    assert!(rule("b", 2).is_met_by(&heard("")));
}

#[test]
fn a_rule_is_told_in_words() {
    assert_eq!(rule("b c", 1).words(), "any 1 of b, c");
    assert_eq!(rule("b c", 2).words(), "b, c");
    assert_eq!(rule("", 0).words(), "nobody: the primary acknowledges alone");
    assert_eq!(rule("", 1).words(), "1, and there is nobody to");
}

#[test]
fn a_standby_has_another_name_in_each_epoch() {
    let name = standby_name(id("n_2"), Generation(1), Epoch(37));
    assert_eq!(name, "n_2_g1e37");
    assert_eq!(read_standby_name(&name), Some((id("n_2"), Some((Generation(1), Epoch(37))))));
    assert_eq!(read_standby_name("n_2"), Some((id("n_2"), None)), "of a version before there were such names");
    assert_eq!(read_standby_name("n2_gxe1"), Some((id("n2_gxe1"), None)));
    assert_eq!(read_standby_name("pg_receivewal X"), None);
    let longest = standby_name(id(&"x".repeat(40)), Generation(9_999), Epoch(99_999_999));
    assert!(longest.len() <= 63, "PostgreSQL cuts application_name there (NAMEDATALEN)");
}

#[test]
fn rules_are_added_settled_and_bounded() {
    let mut set = SyncSet::default();
    assert_eq!(set.unmet(&heard("")), None, "nothing is promised");
    assert_eq!(set.add(Epoch(1), names("b c"), 1), Ok(1));
    assert_eq!(set.add(Epoch(1), names("c"), 1), Ok(2));
    assert_eq!(set.unmet(&heard("c")).map(|r| r.id), Some(1), "until the second is in effect");
    assert!(set.settle(1).is_err());
    assert_eq!(set.settle(2), Ok(()));
    assert!(set.settle(2).is_err(), "once");
    assert_eq!(set.unmet(&heard("c")), None);
    assert_eq!(set.in_force(Epoch(1)).map(|r| r.id), Some(2));
    assert_eq!(set.in_force(Epoch(2)), None);
    for _ in 1..RULES_KEPT {
        set.add(Epoch(1), names("c"), 1).unwrap();
    }
    assert!(set.add(Epoch(1), names("c"), 1).is_err());
    let before = set.id;
    set.clear();
    assert_eq!((set.id, set.rules.len()), (before + 1, 0));
}

/// All there is to know of a small cluster: a commit is a number, and each standby has some of them.
#[derive(Clone)]
struct World {
    set: SyncSet,
    /// By which rule PostgreSQL acknowledges: any rule of the set, from the one that was settled last to the newest.
    applied: SyncRule,
    on: BTreeMap<MemberId, u32>,
    acked: u32,
}

/// What goes wrong when a step is done in another order.
#[derive(Clone, Copy, PartialEq)]
enum Mutation {
    None,
    /// PostgreSQL goes by a rule before it stands in the log.
    AppliedFirst,
    /// The older rules go from the log as soon as the new one is there.
    SettledFirst,
}

fn subsets(of: &[MemberId]) -> Vec<Vec<MemberId>> {
    let pick = |mask: u32| of.iter().enumerate().filter(|(i, _)| mask >> i & 1 == 1).map(|(_, m)| m.clone()).collect();
    (0..1u32 << of.len()).map(pick).collect()
}

impl World {
    /// Every way in which one more commit is acknowledged by the rule that PostgreSQL goes by: exactly as many as have
    /// to confirm it, whichever. WAL is a sequence: whoever has it has all before.
    fn acknowledge(&self) -> Vec<World> {
        let confirm = |who: &Vec<MemberId>| {
            let mut next = self.clone();
            next.acked += 1;
            for name in who {
                next.on.insert(name.clone(), next.acked);
            }
            next
        };
        let by = subsets(&self.applied.names).into_iter().filter(|s| s.len() == self.applied.count as usize);
        by.map(|who| confirm(&who)).collect()
    }

    /// Nobody who could be promoted lacks a commit that was acknowledged.
    fn holds(&self, all: &[MemberId]) -> bool {
        subsets(all).into_iter().all(|heard| {
            let heard: BTreeSet<MemberId> = heard.into_iter().collect();
            if heard.is_empty() || self.set.unmet(&heard).is_some() {
                return true;
            }
            heard.iter().filter_map(|m| self.on.get(m)).max().copied().unwrap_or_default() >= self.acked
        })
    }

    /// The newest rule is in effect: as many as it wants have everything that was acknowledged until then, whichever.
    fn take_effect(&self) -> Vec<World> {
        let rule = self.set.rules.last().unwrap();
        let who = subsets(&rule.names).into_iter().filter(|s| s.len() == rule.count as usize);
        let have = |who: Vec<MemberId>| {
            let mut next = self.clone();
            for name in who {
                next.on.insert(name, next.acked);
            }
            next
        };
        who.map(have).collect()
    }
}

/// From every rule to every other one, with commits acknowledged before, between and after all steps, and stopped after
/// each of them: what was left is gone on with to any third rule.
fn violations(mutation: Mutation) -> usize {
    let all = names("b c d");
    let rules: Vec<(Vec<MemberId>, u32)> = subsets(&all)
        .into_iter()
        .flat_map(|names| (0..=names.len() as u32).map(move |count| (names.clone(), count)))
        .filter(|(names, count)| *count > 0 || names.is_empty())
        .collect();
    let mut bad = 0;
    for (from, from_count) in &rules {
        let mut set = SyncSet::default();
        set.add(Epoch(1), from.clone(), *from_count).unwrap();
        let applied = set.rules[0].clone();
        let begin = World { set, applied, on: BTreeMap::new(), acked: 0 };
        for (to, to_count) in &rules {
            for world in begin.acknowledge() {
                bad += change(&world, &all, (to, *to_count), mutation, &rules[1..4]);
            }
        }
    }
    bad
}

/// One change, stopped after every step; each place it may stop at goes on to each of `then`.
fn change(
    world: &World,
    all: &[MemberId],
    (to, count): (&[MemberId], u32),
    mutation: Mutation,
    then: &[(Vec<MemberId>, u32)],
) -> usize {
    let mut bad = 0;
    let mut see = |w: &World| bad += usize::from(!w.holds(all));
    let mut stopped = Vec::new();
    let mut listed = world.clone();
    listed.set.add(Epoch(1), to.to_vec(), count).unwrap();
    let new = listed.set.rules.last().unwrap().clone();
    if mutation == Mutation::AppliedFirst {
        let early = World { applied: new.clone(), ..world.clone() };
        early.acknowledge().iter().for_each(&mut see);
    }
    if mutation == Mutation::SettledFirst {
        let _ = listed.set.settle(new.id);
    }
    // In the log: PostgreSQL goes by the old rule still, or by the new one already.
    for applied in [world.applied.clone(), new.clone()] {
        let between = World { applied, ..listed.clone() };
        for acked in between.acknowledge() {
            see(&acked);
            if acked.applied.id == new.id {
                for mut settled in acked.take_effect() {
                    let _ = settled.set.settle(new.id);
                    see(&settled);
                    settled.acknowledge().iter().for_each(&mut see);
                }
            }
            stopped.push(acked);
        }
    }
    for world in stopped {
        for (to, count) in then {
            bad += change(&world, all, (to, *count), mutation, &[]);
        }
    }
    bad
}

#[test]
fn no_change_of_rules_loses_a_commit_wherever_it_stops() {
    assert_eq!(violations(Mutation::None), 0);
}

#[test]
fn a_rule_that_is_applied_before_it_is_listed_is_found() {
    assert!(violations(Mutation::AppliedFirst) > 0);
}

#[test]
fn rules_that_go_before_the_next_is_in_effect_are_found() {
    assert!(violations(Mutation::SettledFirst) > 0);
}
