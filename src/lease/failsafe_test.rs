//! The sentences about failsafe, one test each.

use super::*;
use crate::domain::{CommittedTimings, Profile, Timings, TimingsId};

const GRANT: Duration = Duration::from_millis(3_200);
const HOLD: Duration = Duration::from_millis(2_500);

fn at(ms: u64) -> TwoClocks {
    TwoClocks::default().plus(Duration::from_millis(1_000_000 + ms))
}

fn member(name: &str) -> MemberId {
    name.parse().unwrap()
}

fn list(version: u64, names: &[&str]) -> MemberList {
    MemberList { version, agents: names.iter().map(|n| (member(n), format!("{n}:7401"))).collect() }
}

/// The agent of b, in a cluster of a, b and c.
struct Agent {
    promiser: Promiser,
    highest: u64,
    members: MemberList,
    timings: TimingsInUse,
}

impl Agent {
    fn new() -> Agent {
        Agent {
            promiser: Promiser::new(GRANT, None, at(0)),
            highest: 7,
            members: list(4, &["a", "b", "c"]),
            timings: TimingsInUse::default(),
        }
    }

    fn asked(&mut self, from: &str, letter: Letter, ms: u64) -> Reply {
        let me = member("b");
        let known = Knowledge { me: &me, highest: Epoch(self.highest), members: &self.members, timings: &self.timings };
        self.promiser.receive(&member(from), letter, at(ms), known)
    }

    fn left(&self, ms: u64) -> u64 {
        u64::try_from(self.promiser.left(at(ms)).as_millis()).unwrap()
    }
}

fn question(epoch: u64, seq: u64, members: u64, terms: Option<Terms>) -> Letter {
    let ticket = Ticket { session: 1, seq };
    Letter { epoch: Epoch(epoch), body: Body::Failsafe { ticket, members, terms } }
}

/// Asks for a promise under the hosts' files.
fn ask(epoch: u64, seq: u64) -> Letter {
    question(epoch, seq, 4, Some(Terms { timings: TimingsId::FILES, grant: GRANT }))
}

fn is_promise(reply: &Reply) -> bool {
    matches!(reply.reply, Some(Letter { body: Body::FailsafeAck { promised: true, .. }, .. }))
}

#[test]
fn an_agent_that_agrees_is_not_promoted_for_t_grant_from_the_receipt() {
    let mut agent = Agent::new();
    assert_eq!(agent.left(0), 0);
    assert!(is_promise(&agent.asked("a", ask(7, 1), 1_000)));
    assert_eq!((agent.left(1_000), agent.left(4_199), agent.left(4_200)), (3_200, 1, 0));
    assert_eq!(agent.promiser.holder(), Some((Epoch(7), &member("a"))));
    let one_clock = TwoClocks { boot: at(9_000).boot, raw: at(4_000).raw };
    assert_eq!(agent.promiser.left(one_clock), Duration::from_millis(200), "free when both clocks have passed");
}

#[test]
fn a_question_without_terms_binds_nobody() {
    let mut agent = Agent::new();
    let reply = agent.asked("a", question(7, 1, 4, None), 1_000);
    let body = Body::FailsafeAck { ticket: Ticket { session: 1, seq: 1 }, members: 4, promised: false };
    assert_eq!(reply, Reply { persist: false, reply: Some(Letter { epoch: Epoch(7), body }), refused: None });
    assert_eq!((agent.left(1_000), agent.promiser.durable()), (0, None));
}

#[test]
fn whoever_knows_a_higher_epoch_says_so() {
    let mut agent = Agent::new();
    agent.highest = 8;
    for letter in [ask(7, 1), question(7, 2, 99, None)] {
        let body = agent.asked("a", letter, 0).reply.map(|l| l.body);
        assert!(matches!(body, Some(Body::Nack { sealed: Epoch(8), .. })), "{body:?}");
    }
    assert_eq!(agent.left(0), 0);
    // So does one that has promised a higher one's holder, though nobody told it of that epoch.
    agent.asked("c", ask(9, 1), 0);
    let body = agent.asked("a", ask(8, 3), 0).reply.map(|l| l.body);
    assert!(matches!(body, Some(Body::Nack { sealed: Epoch(9), .. })), "{body:?}");
}

#[test]
fn both_sides_must_have_applied_the_same_list_of_members() {
    let mut agent = Agent::new();
    let refused = |agent: &mut Agent, from: &str, letter| agent.asked(from, letter, 0).refused;
    for version in [3, 5] {
        let terms = Some(Terms { timings: TimingsId::FILES, grant: GRANT });
        assert_eq!(refused(&mut agent, "a", question(7, 1, version, terms)), Some(Refusal::OtherMembers));
        assert_eq!(refused(&mut agent, "a", question(7, 1, version, None)), Some(Refusal::OtherMembers));
    }
    assert_eq!(refused(&mut agent, "x", ask(7, 1)), Some(Refusal::OtherMembers), "a stranger to the list");
    agent.members = list(4, &["a", "c"]);
    assert_eq!(refused(&mut agent, "a", ask(7, 1)), Some(Refusal::OtherMembers), "not on it itself");
    agent.members = MemberList::default();
    assert_eq!(refused(&mut agent, "a", question(7, 1, 0, None)), Some(Refusal::OtherMembers), "never told of any");
    assert_eq!(agent.left(0), 0);
}

#[test]
fn that_a_promise_may_run_is_durable_once_and_not_for_each() {
    let mut agent = Agent::new();
    assert!(agent.asked("a", ask(7, 1), 0).persist);
    assert_eq!(agent.promiser.durable(), Some(GRANT));
    assert!((2..20).all(|seq| !agent.asked("a", ask(7, seq), seq * 300).persist));
    let longer = Some(Terms { timings: TimingsId::FILES, grant: GRANT * 2 });
    assert!(agent.asked("a", question(7, 20, 4, longer), 6_000).persist, "a restart must wait longer than it knew");
    assert_eq!(agent.promiser.durable(), Some(GRANT * 2));
}

#[test]
fn a_restarted_agent_waits_as_if_it_had_promised_just_now() {
    let promiser = Promiser::new(GRANT, Some(GRANT * 2), at(0));
    assert_eq!(promiser.left(at(0)), GRANT * 2);
    assert_eq!(promiser.holder(), None);
    assert!(Promiser::new(GRANT, None, at(0)).left(at(0)).is_zero(), "an ordinary restart costs nothing");
}

#[test]
fn a_promise_that_has_run_out_is_forgotten_once() {
    let mut agent = Agent::new();
    agent.asked("a", ask(7, 1), 0);
    assert!(!agent.promiser.forget(at(3_199)));
    assert!(agent.promiser.forget(at(3_200)) && !agent.promiser.forget(at(3_200)));
    assert_eq!(agent.promiser.durable(), None);
    assert!(agent.asked("a", ask(7, 2), 4_000).persist, "the next is durable again");
}

#[test]
fn the_promise_is_the_t_grant_of_the_timings_named_and_none_under_unknown_ones() {
    let mut agent = Agent::new();
    let committed = |id, profile| CommittedTimings { id: TimingsId(id), profile, timings: Timings::of(profile) };
    agent.timings = TimingsInUse {
        oldest: TimingsId(2),
        committed: vec![committed(2, Profile::Slow), committed(3, Profile::Fast)],
    };
    let fast = Timings::of(Profile::Fast).grant;
    let under = |id, seq| question(7, seq, 4, Some(Terms { timings: TimingsId(id), grant: fast }));
    for id in [0, 1, 4] {
        assert_eq!(agent.asked("a", under(id, 1), 0).refused, Some(Refusal::OtherTimings), "{id}");
    }
    assert_eq!(agent.left(0), 0);
    agent.asked("a", under(3, 1), 0);
    assert_eq!(agent.left(0), 1_650);
    agent.asked("a", under(2, 2), 0);
    assert_eq!(agent.left(0), 10_400);
}

#[test]
fn a_recorded_question_prolongs_nothing_and_an_epoch_has_one_holder() {
    let mut agent = Agent::new();
    agent.asked("a", ask(7, 5), 0);
    for seq in [5, 4] {
        assert_eq!(agent.asked("a", ask(7, seq), 2_000).refused, Some(Refusal::Replayed));
    }
    assert_eq!(agent.asked("c", ask(7, 6), 2_000).refused, Some(Refusal::OtherHolder));
    assert_eq!(agent.asked("b", ask(7, 6), 2_000).refused, Some(Refusal::Unexpected), "nobody asks itself");
    assert_eq!(agent.asked("a", ask(0, 7), 2_000).reply.map(|l| l.epoch), Some(Epoch(0)), "nacked: no such lease");
    assert_eq!(agent.left(0), 3_200);
}

// ---- the holder's side -------------------------------------------------------------------------------------------

fn others() -> BTreeSet<MemberId> {
    ["b", "c"].map(member).into()
}

#[test]
fn promises_are_asked_for_only_after_everybody_answered_a_question() {
    let mut rounds = Rounds::default();
    for seq in 1..5 {
        assert!(!rounds.begin(seq, at(0), HOLD, 4, &others()), "round {seq}");
        assert_eq!(rounds.answer(&member("b"), seq, 4, false), Ok(None));
    }
    let unanimous = rounds.answer(&member("c"), 4, 4, false).unwrap();
    assert_eq!(unanimous, Some(Unanimous { at: at(0), hold: HOLD, promise: false }));
    assert!(rounds.begin(5, at(300), HOLD, 4, &others()));
    assert!(rounds.begin(6, at(600), HOLD, 4, &others()));
    assert!(rounds.begin(7, at(900), HOLD, 4, &others()));
    assert!(!rounds.begin(8, at(1_200), HOLD, 4, &others()), "after three that not all answered, questions again");
}

#[test]
fn only_all_others_together_let_the_holder_go_on() {
    let mut rounds = Rounds::default();
    let ready = |rounds: &mut Rounds| {
        rounds.begin(1, at(0), HOLD, 4, &others());
        for name in ["b", "c"] {
            rounds.answer(&member(name), 1, 4, false).unwrap();
        }
        assert!(rounds.begin(2, at(100), HOLD, 4, &others()));
    };
    ready(&mut rounds);
    assert_eq!(rounds.answer(&member("b"), 2, 4, true), Ok(None));
    assert_eq!(rounds.answer(&member("b"), 2, 4, true), Err(Refusal::Unexpected), "one agent twice is one agent");
    assert_eq!(rounds.answer(&member("x"), 2, 4, true), Err(Refusal::Unexpected), "not asked");
    assert_eq!(rounds.answer(&member("c"), 2, 3, true), Err(Refusal::Unexpected), "another list");
    assert_eq!(rounds.answer(&member("c"), 2, 4, false), Err(Refusal::Unexpected), "no promise");
    assert_eq!(rounds.answer(&member("c"), 1, 4, true), Err(Refusal::Unexpected), "another round");
    let unanimous = rounds.answer(&member("c"), 2, 4, true).unwrap();
    assert_eq!(unanimous, Some(Unanimous { at: at(100), hold: HOLD, promise: true }));
}
