//! A change of timings is over when the holder counts by the newest and no
//! promise under older ones can be running any more.

use std::{collections::BTreeMap, time::Duration};

use super::{Situation, Verdict, format};
use crate::{
    domain::{Format, MemberId, Profile, Timings, TimingsId, observation::AgentView},
    state::{Decided, Kind},
};

/// Raft was started with its own and can't change them.
const RAFTS: [&str; 3] = ["heartbeat_ms", "election_min_ms", "election_max_ms"];

/// Rule 140. Until then quarantines are as long as the longest promise that may be running.
pub fn settle(s: &Situation<'_>) -> Option<Verdict> {
    let known = &s.state.timings;
    let (id, since) = s.since.timings?;
    if known.is_settled() || id != known.newest() {
        return None;
    }
    // What other hosts' files say is not known here; no profile has a longer promise than `safe`.
    let file = Timings::of(Profile::Safe).grant.max(s.timings.grant);
    let longest = known.longest_grant(file);
    // A tenth more than by the slowest clock, and one report that may be on its way.
    let wait = longest + longest / 10 + s.timings.report;
    (s.now.since(since) >= wait).then_some(Verdict::Propose(Kind::SettleTimings { id }))
}

/// Other timings, as an operator asks for them.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Those of this profile.
    pub profile: Profile,
    /// But for these, by their keys.
    pub overrides: &'a BTreeMap<String, u64>,
    /// Other overrides that are in force may be dropped.
    pub reset: bool,
    /// Only if these are in force.
    pub instead_of: Option<TimingsId>,
}

/// What an operator's request for other timings becomes; `None`: they are in force. `file` are those this manager was
/// started with, and the profile they are of.
///
/// # Errors
/// Why it is refused, in words for the operator.
pub fn admit(s: &Situation<'_>, file: (Profile, &Timings), asked: Asked<'_>) -> Result<Option<Kind>, String> {
    let Asked { profile, overrides, reset, instead_of } = asked;
    if s.state.identity.is_none() {
        return Err("the cluster is not founded yet".to_owned());
    }
    if let Some(running) = s.state.brief_operation() {
        return Err(format!("operation {} to {} is under way", running.id, running.to));
    }
    if let Some(key) = overrides.keys().find(|key| RAFTS.contains(&key.as_str())) {
        return Err(format!("{key} is Raft's, which keeps what it was started with: change the files and restart"));
    }
    let mut timings = Timings::of(profile);
    for (key, value) in overrides {
        timings.set(key, *value).map_err(|e| e.to_string())?;
    }
    let timings = timings.with_raft_of(file.1);
    timings.check().map_err(|contradiction| contradiction.to_string())?;
    let known = s.state.timings.in_force();
    if known.is_some_and(|known| known.profile == profile && known.timings == timings) {
        // Heard twice, or by two who want the same.
        return Ok(None);
    }
    let newest = s.state.timings.newest();
    if let Some(other) = instead_of.filter(|id| *id != newest) {
        return Err(format!("timings {newest} are in force, not {other} (0: those of the files)"));
    }
    if let Some(contradiction) = s.state.settings.settings().contradictions_with(&timings).first() {
        let key = contradiction.key;
        return Err(format!("{contradiction}; it is a setting: `matriarch config set {key}=…` comes first"));
    }
    let before = known.map_or((file.0, *file.1), |known| (known.profile, known.timings));
    if let Some(lost) = dropped(before, &timings, overrides).filter(|_| !reset) {
        return Err(lost);
    }
    if let Some(problem) = s.state.with_postgres().find_map(|member| unprepared(s, member, &timings)) {
        return Err(problem);
    }
    // A host that doesn't know this would change what others leave alone.
    let decided = format::gate(s, Format::BESIDE).is_ok();
    let decided = decided.then_some(Decided { timings: newest, settings: s.state.settings.version });
    let kind = Kind::SetTimings { profile, timings: timings.into(), decided };
    format::gate(s, kind.format()).map_err(|old| old.to_string())?;
    Ok(Some(kind))
}

/// What would not be in force any more though somebody has set it and nobody has named it now.
fn dropped((profile, before): (Profile, Timings), after: &Timings, named: &BTreeMap<String, u64>) -> Option<String> {
    let after = after.values();
    let mut lost = before.overrides(profile);
    lost.retain(|value| !named.contains_key(value.0) && !after.contains(value));
    let keep: Vec<String> = lost.iter().map(|(key, value)| format!("--set {key}={value}")).collect();
    let changes = lost.iter().filter_map(|(key, value)| {
        let (_, then) = after.iter().find(|(known, _)| known == key)?;
        Some(format!("{key} from {value} to {then}"))
    });
    let changes: Vec<String> = changes.collect();
    (!lost.is_empty()).then(|| {
        format!(
            "it would also change what was set beside profile {profile}: {}; keep it with {}, or drop it with --reset",
            changes.join(", "),
            keep.join(" ")
        )
    })
}

/// What a member that was seen at least once says against these timings.
fn unprepared(s: &Situation<'_>, member: &MemberId, timings: &Timings) -> Option<String> {
    let Some(agent) = s.seen.get(member).and_then(|seen| seen.agent.as_ref()) else {
        return Some(format!(
            "{member} was not heard of since the Raft leader changed, and might run a version that ends when it reads such an entry; start it, or remove it"
        ));
    };
    // Manager and agent of a version that knows of timings that change have told each other of the members.
    if agent.failsafe.members == 0 {
        return Some(format!(
            "{member} runs a version that can't change timings, or has not been told of the members yet; upgrade it, or ask again in a moment"
        ));
    }
    slow_fence(agent, timings)
        .map(|(took, allowed)| {
            let (took, allowed) = (took.as_millis(), allowed.as_millis());
            format!("{member} took {took} ms for a fence, these timings allow {allowed} ms")
        })
        .or_else(|| layer_of_other_timings(agent, timings).map(|problem| format!("{member} {problem}")))
}

/// A host that needs longer for a fence than these timings allow could still write when the next is granted:
/// how long it took when it was measured, and what is allowed.
pub(super) fn slow_fence(agent: &AgentView, timings: &Timings) -> Option<(Duration, Duration)> {
    let took = Duration::from_micros(agent.fence.kill_micros);
    (took > timings.kill).then_some((took, timings.kill))
}

/// A layer that would no longer end before the promises do.
fn layer_of_other_timings(agent: &AgentView, timings: &Timings) -> Option<&'static str> {
    let stands = |name: &str| {
        let state = agent.layers.iter().find(|layer| layer.name == name).map_or("off", |layer| layer.state.as_str());
        state != "off" && !state.starts_with("unavailable")
    };
    if stands("watchdog") {
        // Its time-out is the device's, and how fresh a renewal has to be was counted at the agent's start.
        return Some(
            "uses a watchdog, which keeps the timings it was started with: change the files and restart instead",
        );
    }
    let late = stands("kernel lease") && !timings.allows_kernel_lease(Timings::KERNEL_TICKS);
    late.then_some("uses a kernel lease, and T_hold/(1-rho) + 20 ms <= T_grant/(1+rho) does not hold")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{CommittedTimings, Moment, TimingsId, TimingsInUse, observation::LayerView},
        policy::testing::{Bench, agent, id},
    };

    #[test]
    fn older_timings_are_settled_when_their_longest_promise_has_run_out() {
        let committed = [(4, Profile::Slow), (5, Profile::Fast)].map(|(id, profile)| CommittedTimings {
            id: TimingsId(id),
            profile,
            timings: Timings::of(profile),
        });
        let settles = |oldest: u64, seen: Option<u64>, seconds: u64| {
            let mut bench = Bench::new("granted a open 2");
            bench.state.timings = TimingsInUse { oldest: TimingsId(oldest), committed: committed.to_vec() };
            let mut s = bench.situation();
            s.since.timings = seen.map(|id| (TimingsId(id), Moment(s.now.0 - Duration::from_secs(seconds))));
            settle(&s) == Some(Verdict::Propose(Kind::SettleTimings { id: TimingsId(5) }))
        };
        // T_grant of `slow` is 10.4 s.
        assert!(!settles(4, Some(5), 11) && settles(4, Some(5), 13));
        assert!(!settles(4, None, 13), "the holder was not seen under them");
        assert!(!settles(4, Some(4), 13), "it was, under older ones");
        assert!(!settles(0, Some(5), 13) && settles(0, Some(5), 30), "a file may have 25 s");
        assert!(!settles(5, Some(5), 60), "settled");
    }

    #[test]
    fn other_timings_are_admitted_when_they_keep_the_inequalities() {
        let mut bench = Bench::new("granted a open 2");
        for member in ["a", "b", "c"] {
            bench.seen.entry(id(member)).or_default().agent = Some(agent(member, "standby 2:80"));
        }
        let file = Timings::of(Profile::Normal);
        let ask = |bench: &Bench, profile, overrides: &[(&str, u64)]| {
            let overrides = overrides.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect();
            admit(&bench.situation(), (Profile::Normal, &file), asked(profile, &overrides))
        };
        let Ok(Some(Kind::SetTimings { profile: Profile::Fast, timings, .. })) = ask(&bench, Profile::Fast, &[]) else {
            panic!()
        };
        assert_eq!(timings.hold, Timings::of(Profile::Fast).hold);
        assert_eq!(timings.heartbeat, file.heartbeat, "Raft's own stay");
        assert!(ask(&bench, Profile::Normal, &[("promote_ms", 10_000)]).is_ok());

        let no = |bench: &Bench, overrides: &[(&str, u64)]| ask(bench, Profile::Fast, overrides).unwrap_err();
        let text = no(&bench, &[("hold_ms", 20_000)]);
        assert!(text.starts_with("grant_ms: T_grant >="), "{text}");
        assert!(no(&bench, &[("heartbeat_ms", 50)]).contains("is Raft's"));
        assert_eq!(no(&bench, &[("hld_ms", 50)]), "`hld_ms` is no timing");
        bench.state.timings = TimingsInUse {
            oldest: TimingsId(1),
            committed: vec![CommittedTimings { id: TimingsId(1), profile: Profile::Fast, timings: *timings }],
        };
        assert_eq!(ask(&bench, Profile::Fast, &[]), Ok(None), "asked twice");
        let running = Bench::new("granted a open 2; switchover b stop");
        assert_eq!(no(&running, &[]), "operation 1 to b is under way");
    }

    fn asked(profile: Profile, overrides: &BTreeMap<String, u64>) -> Asked<'_> {
        Asked { profile, overrides, reset: false, instead_of: None }
    }

    /// What asks for these becomes, beside committed timings 7: `fast` with another `promote`.
    fn beside_an_override(change: &dyn Fn(&mut Bench, &mut Asked<'_>)) -> Result<Option<Kind>, String> {
        let mut bench = Bench::new("granted a open 2");
        for member in ["a", "b", "c"] {
            bench.seen.entry(id(member)).or_default().agent = Some(agent(member, "standby 2:80"));
        }
        let file = Timings::of(Profile::Normal);
        let timings = Timings { promote: Duration::from_secs(20), ..Timings::of(Profile::Fast) }.with_raft_of(&file);
        let committed = vec![CommittedTimings { id: TimingsId(7), profile: Profile::Fast, timings }];
        bench.state.timings = TimingsInUse { oldest: TimingsId(7), committed };
        let none = BTreeMap::new();
        let mut asked = asked(Profile::Slow, &none);
        change(&mut bench, &mut asked);
        admit(&bench.situation(), (Profile::Normal, &file), asked)
    }

    #[test]
    fn an_override_is_dropped_only_by_somebody_who_says_so() {
        let refused = beside_an_override(&|_, _| ()).unwrap_err();
        assert_eq!(
            refused,
            "it would also change what was set beside profile fast: promote_ms from 20000 to 60000; keep it with \
             --set promote_ms=20000, or drop it with --reset"
        );
        assert!(beside_an_override(&|_, asked| asked.profile = Profile::Fast).is_err(), "its own profile as well");
        assert!(matches!(beside_an_override(&|_, asked| asked.reset = true), Ok(Some(_))));
        // Raft's own are the file's in any case, and what is named is not dropped.
        let file = Timings { tcp: Duration::from_secs(9), ..Timings::of(Profile::Normal) };
        let all = Timings::of(Profile::Slow);
        assert_eq!(dropped((Profile::Normal, file), &all, &[("tcp_ms".to_owned(), 1)].into()), None);
        assert!(dropped((Profile::Normal, file), &all, &BTreeMap::new()).is_some(), "also what a file says");
    }

    #[test]
    fn timings_are_changed_only_if_they_are_those_that_were_seen() {
        let ask =
            |seen: u64| beside_an_override(&|_, asked| (asked.reset, asked.instead_of) = (true, Some(TimingsId(seen))));
        assert!(matches!(ask(7), Ok(Some(_))));
        assert_eq!(ask(6).unwrap_err(), "timings 7 are in force, not 6 (0: those of the files)");
    }

    #[test]
    fn timings_that_the_settings_do_not_go_with_are_refused() {
        let refused = beside_an_override(&|bench, asked| {
            asked.reset = true;
            bench.state.settings.values.insert("crash_window_ms".to_owned(), "20000".to_owned());
        });
        let why = refused.unwrap_err();
        assert!(why.starts_with("crash_window_ms: crash_window >= 2 * probe + T_kill"), "{why}");
    }

    #[test]
    fn what_a_member_can_not_keep_up_with_is_refused() {
        let refused = |profile: Profile, change: &dyn Fn(&mut AgentView)| {
            let mut bench = Bench::new("granted a open 2");
            for member in ["a", "b", "c"] {
                let mut view = agent(member, "standby 2:80");
                if member == "c" {
                    change(&mut view);
                }
                bench.seen.entry(id(member)).or_default().agent = Some(view);
            }
            let file = Timings::of(Profile::Normal);
            admit(&bench.situation(), (Profile::Normal, &file), asked(profile, &BTreeMap::new()))
        };
        let no = |profile, change: &dyn Fn(&mut AgentView)| refused(profile, change).unwrap_err();
        assert!(refused(Profile::Fast, &|_| ()).is_ok());
        let slow = no(Profile::Fast, &|view| view.fence.kill_micros = 350_000);
        assert_eq!(slow, "c took 350 ms for a fence, these timings allow 300 ms");
        assert!(refused(Profile::Normal, &|view| view.fence.kill_micros = 350_000).is_ok());
        let old = no(Profile::Fast, &|view| view.failsafe.members = 0);
        assert!(old.starts_with("c runs a version that can't change timings"), "{old}");
        let layer = |name: &str, state: &str| LayerView { name: name.into(), state: state.into() };
        let watchdog = |state: &str| no(Profile::Slow, &|view| view.layers = vec![layer("watchdog", state)]);
        assert!(watchdog("ready").starts_with("c uses a watchdog") && watchdog("failed: x").contains("watchdog"));
        let without = |state: &str| refused(Profile::Slow, &|view| view.layers = vec![layer("watchdog", state)]);
        assert!(without("off").is_ok() && without("unavailable: there is no /dev/watchdog").is_ok());
        assert!(refused(Profile::Fast, &|view| view.layers = vec![layer("kernel lease", "active")]).is_ok());

        let unseen = Bench::new("granted a open 2");
        let (file, none) = (Timings::of(Profile::Normal), BTreeMap::new());
        let text = admit(&unseen.situation(), (Profile::Normal, &file), asked(Profile::Fast, &none));
        assert!(text.unwrap_err().contains("was not heard of"));
    }
}
