//! Pause: nothing is decided but what an operator asked for. The lease goes on, and whatever it protects with it.
//! Maintenance: a member is left alone, and chosen for nothing.

use super::{Hold, Situation, format, witness};
use crate::{
    domain::{Format, MemberId},
    state::{Kind, OperationPhase},
};

/// Nobody needs more to know why; it stands in the log for ever.
const REASON_MAX: usize = 200;

/// What a pause keeps from being done, given in words; `None` when it may be done: there is no pause, or it is a part of
/// what an operator asked for, which has to come to its end.
pub fn holds(s: &Situation<'_>, undone: impl FnOnce() -> String) -> Option<Hold> {
    let asked = s.state.paused.clone()?;
    let by_command = s.state.operation.as_ref().is_some_and(|o| o.phase == OperationPhase::Transfer);
    (!by_command).then(|| Hold::Paused { asked, undone: undone() })
}

/// What an operator's request to pause (`on`) or to go on becomes; `None`: it is so already.
///
/// # Errors
/// Why it is refused, in words for the operator.
pub fn admit(s: &Situation<'_>, on: bool, reason: &str, by: &str) -> Result<Option<Kind>, String> {
    if s.state.identity.is_none() {
        return Err("the cluster is not founded yet".to_owned());
    }
    if s.state.paused.is_some() == on {
        return Ok(None);
    }
    if !on {
        return Ok(Some(Kind::Resume { by: words(by) }));
    }
    format::gate(s, Format::SETTINGS).map_err(|old| old.to_string())?;
    Ok(Some(Kind::Pause { reason: words(reason), by: words(by) }))
}

/// What an operator's request to leave `member` alone, or not any more, becomes; `None`: it is so already.
///
/// # Errors
/// Why it is refused, in words for the operator.
pub fn admit_maintenance(
    s: &Situation<'_>,
    member: &MemberId,
    on: bool,
    reason: &str,
    by: &str,
) -> Result<Option<Kind>, String> {
    if !s.state.members.contains_key(member) {
        return Err(s.no_member(member));
    }
    witness::refuse(s, member, "to leave alone; `matriarch member check` says whether its host may be taken down")?;
    if let Some(asked) = s.state.maintenance.get(member).filter(|asked| asked.stopped.is_some()) {
        return Err(asked.refusal(member));
    }
    if s.state.maintenance.contains_key(member) == on {
        return Ok(None);
    }
    let kind = Kind::Maintenance { member: member.clone(), on, reason: words(reason), by: words(by), stop: None };
    if !on {
        return Ok(Some(kind));
    }
    if s.state.holder().is_some_and(|(_, holder)| holder == member) {
        return Err(format!("{member} is the primary: `matriarch switchover` moves it first"));
    }
    if let Some(running) = s.state.brief_operation().filter(|o| o.to == *member) {
        return Err(format!("operation {} is about {member}: wait until it is over", running.id));
    }
    format::gate(s, Format::SETTINGS).map_err(|old| old.to_string())?;
    Ok(Some(kind))
}

/// It stands in texts for people: one line, not long.
pub(super) fn words(text: &str) -> String {
    text.trim().chars().filter(|c| !c.is_control()).take(REASON_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        policy::testing::{Bench, id},
        state::Asked,
    };

    fn bench(lock: &str) -> Bench {
        let mut bench = Bench::new(lock);
        for member in ["a", "b", "c"] {
            bench = bench.says(member, "standby 2:80");
            bench.seen.get_mut(&id(member)).unwrap().format = Format::NEWEST;
        }
        bench
    }

    #[test]
    fn a_pause_is_asked_for_once_and_said_in_one_line() {
        let mut bench = bench("granted a open 2");
        let asked = admit(&bench.situation(), true, " new\nkernel ", "kim");
        assert_eq!(asked, Ok(Some(Kind::Pause { reason: "newkernel".into(), by: "kim".into() })));
        assert_eq!(admit(&bench.situation(), false, "", ""), Ok(None), "it is not paused");
        bench.state.paused = Some(Asked::default());
        assert_eq!(admit(&bench.situation(), true, "", ""), Ok(None), "it is paused");
        assert_eq!(admit(&bench.situation(), false, "", ""), Ok(Some(Kind::Resume { by: String::new() })));
    }

    #[test]
    fn nothing_is_paused_while_a_host_would_end_of_it_or_before_there_is_a_cluster() {
        let mut older = bench("granted a open 2");
        older.seen.get_mut(&id("b")).unwrap().format = Format::FIRST;
        assert!(admit(&older.situation(), true, "", "").unwrap_err().starts_with("b runs a version"));
        older.state.identity = None;
        assert!(admit(&older.situation(), true, "", "").unwrap_err().contains("not founded"));
    }

    #[test]
    fn the_primary_is_moved_before_it_is_left_alone() {
        let mut bench = bench("granted a open 2");
        let ask = |bench: &Bench, member: &str| admit_maintenance(&bench.situation(), &id(member), true, "disk", "kim");
        let refused = ask(&bench, "a").unwrap_err();
        assert_eq!(refused, "a is the primary: `matriarch switchover` moves it first");
        assert!(ask(&bench, "x").unwrap_err().contains("no member"));
        assert!(matches!(ask(&bench, "b"), Ok(Some(Kind::Maintenance { on: true, .. }))));
        bench.state.maintenance.insert(id("b"), Asked::default());
        assert_eq!(ask(&bench, "b"), Ok(None), "it is so already");
    }

    #[test]
    fn what_an_operator_asked_for_comes_to_its_end_in_a_pause() {
        let held = |lock: &str| {
            let mut bench = bench(lock);
            bench.state.paused = Some(Asked::default());
            holds(&bench.situation(), || "x".to_owned()).is_some()
        };
        assert!(held("fenced"));
        assert!(held("granted a open 2; switchover b stop"), "it may be rolled back still");
        assert!(!held("granted a open 2; switchover b transfer"));
        assert!(!held("granted a open 2; failover b"));
    }
}
