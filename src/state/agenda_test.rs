use super::*;
use crate::{
    domain::{ClusterId, Epoch, Generation, NodeId, WalPosition},
    state::{Applied, Evidence, Member, RuleId},
};

fn id(name: &str) -> MemberId {
    name.parse().unwrap()
}

struct Scene {
    state: ClusterState,
    /// Of the leader's wall clock; each command is a second later.
    now: u64,
}

impl Scene {
    /// a is primary, b and c are standbys.
    fn new() -> Scene {
        let mut scene = Scene { state: ClusterState::default(), now: 1_000 };
        let member = |n: u64| Member {
            node: NodeId(n),
            manager: format!("h{n}:7400"),
            postgres: format!("h{n}:5432"),
            agent: String::new(),
            learner: false,
        };
        for kind in [
            Kind::Genesis {
                cluster_id: ClusterId("x".into()),
                generation: Generation(1),
                name: "test".into(),
                members: vec![(id("a"), member(1)), (id("b"), member(2)), (id("c"), member(3))],
                initializer: id("a"),
            },
            Kind::RecordSystem { system_identifier: 7, history: None },
            Kind::fence("first".into()),
            Kind::Grant { member: id("a"), floor: WalPosition::default(), sync: None },
            Kind::NoteFormat { format: Format::OPERATE },
        ] {
            scene.done("", kind);
        }
        scene
    }

    fn ask(&mut self, request_id: &str, kind: Kind) -> Applied {
        self.now += 1_000;
        let evidence = Evidence { at_ms: self.now, ..Evidence::default() };
        // Those of rules are new each time.
        let request_id = if request_id.is_empty() { self.now.to_string() } else { request_id.to_owned() };
        let expected = self.state.epoch;
        self.state.apply(&Command { request_id, expected, because: RuleId(2), kind, evidence: Some(evidence.into()) })
    }

    fn done(&mut self, request_id: &str, kind: Kind) {
        assert_eq!(self.ask(request_id, kind), Applied::Changed);
    }

    fn refused(&mut self, request_id: &str, change: AgendaChange) -> String {
        match self.ask(request_id, Kind::Agenda(change)) {
            Applied::Stale { why, .. } => why,
            other => panic!("{other:?}"),
        }
    }

    fn change(&mut self, request_id: &str, change: AgendaChange) {
        self.done(request_id, Kind::Agenda(change));
    }

    fn end(&mut self, succeeded: bool) {
        let id = self.state.operation.as_ref().unwrap().id;
        self.done("", Kind::EndOperation { id, succeeded, reason: "so it is".into() });
    }

    fn last(&self) -> &Ended {
        self.state.agenda.ended.back().unwrap()
    }
}

fn switchover(at_ms: u64) -> AgendaChange {
    AgendaChange::Schedule { kind: OperationKind::Switchover, from: None, to: Some(id("b")), at_ms, by: "kim".into() }
}

fn restart(member: &str) -> AgendaChange {
    let (kind, to) = (OperationKind::Restart, Some(id(member)));
    AgendaChange::Schedule { kind, from: None, to, at_ms: 9, by: String::new() }
}

fn begin(of: u64, kind: OperationKind, to: &str) -> AgendaChange {
    AgendaChange::Begin { of, kind, from: Some(id("a")), to: id(to) }
}

fn cancel(id: u64, phase: Option<OperationPhase>) -> AgendaChange {
    AgendaChange::Cancel { id, phase, by: "kim".into() }
}

fn roll() -> AgendaChange {
    let members = ["a", "b", "c"].map(id).into();
    AgendaChange::Roll { members, primary: PrimaryTurn::Switchover, by: "kim".into() }
}

fn plain(kind: OperationKind, to: &str) -> Kind {
    Kind::BeginOperation { kind, from: Some(id("a")), to: id(to), accepts_loss: false }
}

#[test]
fn an_operation_is_remembered_with_its_phases_and_their_times() {
    let mut scene = Scene::new();
    scene.done("r", plain(OperationKind::Switchover, "b"));
    let began = scene.now;
    scene.done("", Kind::AdvanceOperation { id: 1, phase: OperationPhase::HoldWrites });
    scene.end(false);
    let last = scene.last();
    assert_eq!((last.id, last.asked.at_ms, last.ended_ms, last.outcome), (1, began, began + 2_000, Outcome::Failed));
    let phases = [(OperationPhase::Checkpoint, began), (OperationPhase::HoldWrites, began + 1_000)];
    assert_eq!((last.phases.as_slice(), last.reason.as_str()), (phases.as_slice(), "so it is"));
    for n in 0..40 {
        scene.done(&format!("r{n}"), plain(OperationKind::Restart, "b"));
        scene.end(true);
    }
    assert_eq!((scene.state.agenda.ended.len(), scene.last().id), (ENDED_KEPT, 41));
    assert!(matches!(scene.ask("r20", plain(OperationKind::Restart, "b")), Applied::Stale { .. }), "it is remembered");
}

#[test]
fn nothing_is_remembered_before_every_host_can_read_it() {
    let mut scene = Scene::new();
    scene.state.format = Format::CASCADE;
    scene.done("r", plain(OperationKind::Restart, "b"));
    scene.end(true);
    assert_eq!(scene.state.agenda, Agenda::default());
}

#[test]
fn what_is_scheduled_begins_once_under_another_number() {
    let mut scene = Scene::new();
    scene.change("s", switchover(99_000));
    assert_eq!(scene.refused("s", switchover(99_000)), "this request is operation 1");
    assert!(scene.refused("t", switchover(99_000)).contains("operation 1, a switchover to b, is scheduled already"));
    scene.change("u", restart("b"));
    assert!(scene.refused("v", restart("b")).contains("is scheduled already"));
    scene.change("w", restart("c"));
    assert_eq!(scene.state.agenda.scheduled.len(), 3);

    scene.change("", begin(1, OperationKind::Switchover, "b"));
    assert_eq!((scene.state.operation.as_ref().unwrap().id, scene.state.agenda.course.of), (4, 1));
    let begun = scene.last();
    assert_eq!((begun.id, begun.outcome, begun.asked.at_ms), (1, Outcome::Begun, 99_000));
    assert_eq!(begun.reason, "begun as operation 4");
    assert_eq!(scene.refused("", begin(1, OperationKind::Switchover, "b")), "operation 1 is over");
    assert!(scene.refused("", begin(2, OperationKind::Restart, "b")).contains("is under way"), "one at a time");
    scene.end(true);
    assert_eq!((scene.last().id, scene.last().of), (4, 1));

    scene.change("", cancel(2, None));
    let reason = "late".to_owned();
    scene.change("", AgendaChange::Close { id: 3, outcome: Outcome::Missed, reason });
    let ended = scene.state.agenda.ended.iter().map(|e| (e.id, e.outcome)).collect::<Vec<_>>();
    let expected = [(1, Outcome::Begun), (4, Outcome::Succeeded), (2, Outcome::Cancelled), (3, Outcome::Missed)];
    assert_eq!((ended.as_slice(), scene.state.agenda.scheduled.len()), (expected.as_slice(), 0));
    assert_eq!(scene.refused("", cancel(2, None)), "operation 2 is over");
}

#[test]
fn what_can_be_rolled_back_is_and_nothing_else() {
    let mut scene = Scene::new();
    let advance = |id, phase| Kind::AdvanceOperation { id, phase };
    scene.done("r1", plain(OperationKind::Switchover, "b"));
    assert!(scene.refused("", cancel(1, Some(OperationPhase::Stop))).contains("is in Checkpoint"), "it had moved on");
    scene.change("", cancel(1, Some(OperationPhase::Checkpoint)));
    assert_eq!((scene.last().outcome, scene.last().reason.as_str()), (Outcome::Cancelled, "cancelled by kim"));
    assert_eq!(scene.state.operation, None);

    scene.done("r2", plain(OperationKind::Switchover, "b"));
    scene.done("", advance(2, OperationPhase::Stop));
    scene.change("", cancel(2, Some(OperationPhase::Stop)));
    assert_eq!(scene.state.operation.as_ref().unwrap().phase, OperationPhase::RollBack);
    assert!(scene.refused("", cancel(2, Some(OperationPhase::RollBack))).contains("RollBack"));
    scene.end(false);
    assert_eq!(scene.last().outcome, Outcome::Cancelled);

    scene.done("r3", plain(OperationKind::Switchover, "b"));
    scene.done("", advance(3, OperationPhase::Transfer));
    assert!(scene.refused("", cancel(3, Some(OperationPhase::Transfer))).contains("Transfer"));
}

#[test]
fn a_copy_by_command_is_given_up_until_it_is_in_place() {
    let mut scene = Scene::new();
    scene.done("r1", plain(OperationKind::Reinit, "b"));
    scene.change("", cancel(1, Some(OperationPhase::Copy)));
    assert_eq!((scene.last().outcome, scene.state.operation.as_ref()), (Outcome::Cancelled, None));
    scene.done("r2", plain(OperationKind::Reinit, "b"));
    scene.done("", Kind::AdvanceOperation { id: 2, phase: OperationPhase::Stream });
    assert!(scene.refused("", cancel(2, Some(OperationPhase::Stream))).contains("Stream"));
}

#[test]
fn a_rolling_restart_counts_who_was_restarted_and_ends_with_the_first_failure() {
    let mut scene = Scene::new();
    scene.change("r", roll());
    assert_eq!(scene.refused("r", roll()), "this request is operation 1");
    assert!(scene.refused("s", roll()).contains("rolling restart 1 is under way"));
    scene.change("", begin(1, OperationKind::Restart, "b"));
    scene.end(true);
    scene.change("", begin(1, OperationKind::Switchover, "c"));
    scene.end(true);
    let rolling = scene.state.agenda.rolling.as_ref().unwrap();
    assert_eq!(rolling.told(), "restarted: b, a; left: c", "a switchover restarts the primary of before");
    assert_eq!(rolling.left(&scene.state).collect::<Vec<_>>(), [&id("c")]);
    scene.change("", begin(1, OperationKind::Restart, "c"));
    scene.end(false);
    let last = scene.last();
    assert_eq!((last.id, last.work, last.outcome), (1, Work::Rolling, Outcome::Failed));
    assert_eq!(last.reason, "its restart 4 of c failed: so it is; restarted: b, a; left: c");
    assert_eq!(scene.state.agenda.rolling, None);
    assert_eq!(scene.refused("", begin(1, OperationKind::Restart, "c")), "operation 1 is over");
}

#[test]
fn a_cancelled_rolling_restart_ends_with_its_step() {
    let mut scene = Scene::new();
    scene.change("r", roll());
    scene.change("", begin(1, OperationKind::Restart, "b"));
    scene.change("", cancel(1, None));
    assert!(scene.refused("", cancel(1, None)).contains("cancelled already"));
    scene.end(true);
    let last = scene.last();
    assert_eq!((last.id, last.outcome), (1, Outcome::Cancelled));
    assert_eq!(last.reason, "cancelled by kim; restarted: b; left: a, c");
    scene.change("again", roll());
    scene.change("", cancel(3, None));
    assert_eq!(scene.last().reason, "cancelled by kim; restarted: nobody; left: a, b, c");
    assert_eq!(scene.state.epoch, Epoch(1));
}

#[test]
fn nothing_goes_on_by_itself_in_a_new_generation() {
    let mut scene = Scene::new();
    scene.change("s", restart("b"));
    scene.change("r", roll());
    scene.change("", begin(2, OperationKind::Restart, "b"));
    let running = scene.state.operation.clone();
    scene.state.agenda.recovered(running.as_ref());
    assert!(scene.state.agenda.scheduled.is_empty() && scene.state.agenda.rolling.is_none());
    let ended = scene.state.agenda.ended.iter().map(|e| (e.id, e.outcome)).collect::<Vec<_>>();
    assert_eq!(ended, [(3, Outcome::Failed), (2, Outcome::Failed), (1, Outcome::Missed)]);
}
