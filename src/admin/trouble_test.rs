//! Whatever keeps clients from writing, somebody is told what to do about it.

use super::*;
use crate::{
    admin::explain::ways_out,
    domain::{EndCause, Format, observation::Work},
    policy::{
        self, Hold,
        testing::{Bench, id},
    },
    state::{Asked, Operation, OperationKind, OperationPhase, RuleId},
};

const LOCKS: [&str; 6] =
    ["free", "granted a promoting 2", "granted a promoted 2", "granted a open 2", "released a", "fenced"];

/// What the agent of the holder says; `None`: it is not heard of.
const HOLDERS: [Option<&str>; 23] = [
    None,
    Some("nodata"),
    Some("stopped 2:200 lease=1"),
    Some("stopped 2:200 lease=1 by-hand"),
    Some("stopped 2:200 by-hand"),
    Some("stopped 2:200 lease=1 storage"),
    Some("stopped 2:200 ended=1"),
    Some("starting 2:200 lease=1"),
    Some("standby 2:200"),
    Some("standby 2:200 lease=1"),
    Some("promoting 2:200 lease=1"),
    Some("primary 2:200 lease=1 problem"),
    Some("primary 2:200 lease=1 storage"),
    Some("primary 2:200 lease=1 alone storage"),
    Some("primary 2:200"),
    Some("primary 2:200 lease=1"),
    Some("stopping 2:200 lease=1"),
    Some("stopping 2:200 ended=1 storage"),
    Some("crashed 2:200 lease=1"),
    Some("crashed 2:200 lease=1 failed=restart"),
    Some("crashed 2:200 lease=1 alone storage"),
    Some("busy"),
    Some("failed 2:200"),
];

fn operations() -> Vec<Option<(OperationKind, OperationPhase)>> {
    use OperationPhase::{Checkpoint, HoldWrites, RollBack, Start, Stop, Transfer};
    let switchover = [Checkpoint, HoldWrites, Stop, Transfer, RollBack].map(|phase| (OperationKind::Switchover, phase));
    let restart = [Checkpoint, HoldWrites, Stop, Start, RollBack].map(|phase| (OperationKind::Restart, phase));
    let failover = [(OperationKind::Failover, Transfer)];
    [None].into_iter().chain(switchover.into_iter().chain(restart).chain(failover).map(Some)).collect()
}

fn holder_says(mut bench: Bench, spec: &str) -> Bench {
    let ours = ["by-hand", "storage", "problem"];
    let (words, marks): (Vec<&str>, Vec<&str>) = (
        spec.split(' ').filter(|word| !ours.contains(word)).collect(),
        spec.split(' ').filter(|word| ours.contains(word)).collect(),
    );
    bench = bench.says("a", &words.join(" "));
    let agent = bench.seen.get_mut(&id("a")).unwrap().agent.as_mut().unwrap();
    for mark in marks {
        match mark {
            "by-hand" => (agent.stopped_by_hand, agent.clean_shutdown) = (true, true),
            "storage" => {
                let why = "the volume of its data directory has not finished a write for 5000 ms".to_owned();
                (agent.storage, agent.problem) = (Some(why.clone()), Some(why));
            }
            _ => agent.problem = Some("it is not well".to_owned()),
        }
    }
    bench
}

fn bench(lock: &str, holder: Option<&str>, others: bool) -> Bench {
    let mut bench = Bench::new(lock);
    if let Some(spec) = holder {
        bench = holder_says(bench, spec);
    }
    if others {
        bench = bench.says("b", "standby 2:200 upstream=a").says("c", "standby 2:190 upstream=a");
    }
    // Else nothing could have been paused.
    bench.state.format = Format::NEWEST;
    bench.seen.values_mut().for_each(|seen| seen.format = Format::NEWEST);
    bench
}

fn with_operation(bench: &mut Bench, operation: Option<(OperationKind, OperationPhase)>) {
    bench.state.operation = operation.map(|(kind, phase)| Operation {
        id: 1,
        kind,
        from: Some(id("a")),
        to: id(if kind == OperationKind::Restart { "a" } else { "b" }),
        accepts_loss: false,
        phase,
        request_id: "r".to_owned(),
        because: RuleId(0),
    });
}

/// What is asked of each situation. An operator who is told nothing waits for ever.
fn has_a_way_out(s: &Situation<'_>) -> Result<(), String> {
    let plan = policy::decide(s, "r");
    let trouble = of(s);
    if let Some(trouble) = &trouble {
        if trouble.ways.is_empty() || trouble.what.ends_with(": ") {
            return Err(format!("{trouble:?} says nothing"));
        }
        commands_are_accepted(s, trouble)?;
    }
    // Something is decided: it is on its way.
    if plan.command.is_some() || plan.step.is_some() || plan.lead.is_some() {
        return Ok(());
    }
    let stands = |hold: &&Hold| matches!(hold, Hold::Operation { remaining, .. } if remaining.is_zero());
    if let Some(hold) = plan.holds.iter().find(stands) {
        return Err(format!("its time is over and it ends not: {hold}"));
    }
    let well = |(_, m): (Epoch, &MemberId)| s.agent(m).is_some_and(|a| is_well(a, s.state.epoch));
    let ways: Vec<String> =
        plan.holds.iter().flat_map(ways_out).chain(trouble.into_iter().flat_map(|t| t.ways)).collect();
    let leads_on = |way: &String| {
        let words = ["`matriarch ", "look at ", "start ", "bring ", "repair ", "wait "];
        words.iter().any(|word| way.contains(word)) && !way.contains("wait 0.0 s")
    };
    if s.state.open_primary().is_some_and(well) || ways.iter().any(leads_on) {
        return Ok(());
    }
    Err(format!("no way out of {:?}: {ways:?}", plan.holds))
}

/// A command that is recommended must not be refused.
fn commands_are_accepted(s: &Situation<'_>, trouble: &Trouble) -> Result<(), String> {
    for way in trouble.ways.iter().filter(|_| s.state.operation.is_none()) {
        let try_it = |kind, member| {
            let admitted = admit(s, kind, Some(&id(member)), true);
            admitted.map_err(|why| format!("{way}: refused: {why}"))
        };
        if way.contains("`matriarch restart a`") {
            try_it(OperationKind::Restart, "a")?;
        }
        if let Some(member) = ["b", "c"].into_iter().find(|m| way.contains(&format!("--candidate {m}`"))) {
            try_it(OperationKind::Failover, member)?;
        }
    }
    Ok(())
}

#[test]
fn whenever_nobody_writes_there_is_a_way_out() {
    let (mut situations, mut wrong) = (0, Vec::new());
    for lock in LOCKS {
        for holder in HOLDERS {
            for others in [true, false] {
                for paused in [true, false] {
                    for operation in operations() {
                        let mut bench = bench(lock, holder, others);
                        with_operation(&mut bench, operation);
                        bench.state.paused = paused.then(Asked::default);
                        if lock == "fenced" && others {
                            bench = bench.seal("b", "standby 2:200").seal("c", "standby 2:190");
                        }
                        for long_ago in [true, false] {
                            let mut s = bench.situation();
                            if !long_ago {
                                (s.since.lock, s.since.operation) = (s.now, s.now);
                            }
                            let who = if others { "heard" } else { "silent" };
                            let what = format!(
                                "{lock}; a: {holder:?}, others {who}, paused: {paused}, {operation:?}, long ago: {long_ago}"
                            );
                            wrong.extend(has_a_way_out(&s).err().map(|why| format!("{what}: {why}")));
                            situations += 1;
                        }
                    }
                }
            }
        }
    }
    let some: Vec<_> = wrong.iter().take(20).collect();
    assert!(wrong.is_empty(), "{} of {situations}: {some:#?}", wrong.len());
}

fn told(holder: &str, paused: bool) -> Trouble {
    let mut bench = bench("granted a open 2", Some(holder), true);
    bench.state.paused = paused.then(Asked::default);
    of(&bench.situation()).expect("there is something to tell")
}

#[test]
fn a_primary_that_was_stopped_by_hand_is_started_by_a_command() {
    let down = told("stopped 2:200 lease=1 by-hand", true);
    assert_eq!(down.what, "a is primary: PostgreSQL is stopped by hand, and left alone in the pause");
    assert_eq!(
        down.ways,
        [
            "`matriarch restart a` starts it again, and so does `matriarch resume`",
            "to give a up: `matriarch failover --candidate b` (it says what would be lost)"
        ]
    );
}

#[test]
fn a_disk_that_stands_still_under_a_primary_is_named_and_who_could_go_on() {
    let stalled = told("primary 2:200 lease=1 storage", false);
    assert_eq!(
        stalled.what,
        "a is primary: PostgreSQL is running as primary; the volume of its data directory has not finished a write for 5000 ms"
    );
    assert!(stalled.ways[0].starts_with("repair the disk of a"), "{stalled:?}");
    assert!(stalled.ways[1].contains("`matriarch failover --candidate b`"), "{stalled:?}");
}

#[test]
fn a_crashed_primary_is_told_with_its_work_and_its_deadline() {
    let mut bench = bench("granted a open 2", Some("crashed 2:200 lease=1 failed=restart"), true);
    let agent = bench.seen.get_mut(&id("a")).unwrap().agent.as_mut().unwrap();
    agent.problem = Some("PostgreSQL ended: exit code 1".into());
    agent.work = Some(Work { order: 2, kind: "restart".into(), phase: "recovery".into(), ..Work::default() });
    let trouble = of(&bench.situation()).unwrap();
    assert_eq!(
        trouble.what,
        "a is primary: PostgreSQL is crashed; PostgreSQL ended: exit code 1; restart is at recovery; its last restart failed: it \
         failed; it is started again; if it doesn't run 60 s (primary_start) after its end and a standby streamed from it, that \
         takes over"
    );
    assert!(trouble.ways[0].starts_with("look at the agent's log on a"), "{trouble:?}");

    bench.state.paused = Some(Asked::default());
    assert!(of(&bench.situation()).unwrap().what.ends_with("nobody else takes over by itself"));
}

#[test]
fn the_end_of_an_epoch_is_told_with_its_cause_and_nothing_of_a_primary_that_is_well() {
    let mut bench = bench("granted a open 2", Some("stopping 2:200 ended=1"), true);
    bench.seen.get_mut(&id("a")).unwrap().agent.as_mut().unwrap().ended_by = EndCause::Storage;
    let what = of(&bench.situation()).unwrap().what;
    assert!(what.contains("its agent has given epoch 1 up: a disk stood still or failed"), "{what}");

    assert_eq!(of(&self::bench("granted a open 2", Some("primary 2:200 lease=1"), true).situation()), None);
    assert_eq!(of(&self::bench("fenced", Some("primary 2:200 lease=1"), true).situation()), None, "nobody holds it");
}
