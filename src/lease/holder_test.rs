//! The sentences about holders, one test each.

use super::*;
use crate::domain::{Lsn, Profile};

const SESSION: u64 = 42;

/// renew 300 ms, rpc 250 ms, hold 2.5 s, grant 3.2 s.
fn timings() -> Timings {
    Timings::of(Profile::Normal)
}

fn at(ms: u64) -> TwoClocks {
    // Far from zero, so that one clock can be set back.
    TwoClocks::default().plus(Duration::from_millis(1_000_000 + ms))
}

fn member(name: &str) -> MemberId {
    name.parse().unwrap()
}

fn membership(id: u64) -> Membership {
    Membership::simple(id, ["a", "b", "c"].map(member))
}

/// A holder with a time line and the outputs of the last step.
struct Bench {
    holder: Holder,
    out: Vec<Output>,
    ms: u64,
}

impl Bench {
    fn new() -> Self {
        let peers = ["a", "b", "c"].map(member).to_vec();
        Self { holder: Holder::new(HolderConfig { session: SESSION, peers, timings: timings() }), out: vec![], ms: 0 }
    }

    fn seeking(epoch: u64) -> Self {
        let mut bench = Self::new();
        bench.hold(epoch);
        bench
    }

    /// Held since 0 ms by a renewal of 0 ms.
    fn held(epoch: u64) -> Self {
        let mut bench = Self::seeking(epoch);
        let seq = bench.seq();
        bench.ack("a", seq, 1);
        bench.ack("b", seq, 1);
        assert_eq!(bench.phase(), Phase::Held);
        bench
    }

    fn hold(&mut self, epoch: u64) {
        self.out.clear();
        self.holder.hold(Epoch(epoch), TimelineId(0), at(self.ms), &mut self.out);
    }

    fn go(&mut self, ms: u64) {
        self.out.clear();
        self.ms = ms;
        self.holder.tick(at(ms), &mut self.out);
    }

    fn deliver(&mut self, from: &str, epoch: u64, body: Body) -> Result<(), Refusal> {
        self.out.clear();
        self.holder.receive(&member(from), Letter { epoch: Epoch(epoch), body }, at(self.ms), &mut self.out)
    }

    fn ack(&mut self, from: &str, seq: u64, id: u64) {
        let epoch = self.holder.view().epoch.0;
        let ticket = Ticket { session: SESSION, seq };
        let _ = self.deliver(from, epoch, Body::Ack { ticket, membership: membership(id) });
    }

    fn probe_ack(&mut self, from: &str, seq: u64) {
        let epoch = self.holder.view().epoch.0;
        let _ = self.deliver(from, epoch, Body::ProbeAck { ticket: Ticket { session: SESSION, seq } });
    }

    fn phase(&self) -> Phase {
        self.holder.view().phase
    }

    /// Of the last thing sent.
    fn seq(&self) -> u64 {
        self.holder.seq
    }

    fn deadline(&self) -> Option<TwoClocks> {
        self.holder.view().deadline
    }

    /// What went out in the last step, as `renew`, `probe`, `notice`, one for each member.
    fn sent(&self) -> Vec<&'static str> {
        let kind = |output: &Output| match output {
            Output::Send(_, letter) => Some(match letter.body {
                Body::Renew { .. } => "renew",
                Body::Probe { .. } => "probe",
                Body::Notice { .. } => "notice",
                _ => "?",
            }),
            Output::Deadline(..) => None,
        };
        self.out.iter().filter_map(kind).collect()
    }

    /// Ticks whenever something is due, until `ms`; what was sent to one member and when.
    fn run_until(&mut self, ms: u64) -> Vec<(u64, &'static str)> {
        let mut log = vec![];
        while let Some(wait) = self.holder.next_wake(at(self.ms)) {
            let next = self.ms + u64::try_from(wait.as_millis()).unwrap().max(1);
            if next > ms {
                break;
            }
            self.go(next);
            log.extend(self.sent().first().map(|kind| (self.ms, *kind)));
        }
        log
    }
}

#[test]
fn a_renewal_goes_to_all_voters_at_once_and_names_flush_lsn_and_t_grant() {
    let mut bench = Bench::new();
    let flush = WalPosition { timeline: TimelineId(2), lsn: Lsn(77) };
    bench.holder.set_wal(flush);
    bench.hold(7);
    let to = |o: &Output| if let Output::Send(to, _) = o { to.to_string() } else { String::new() };
    assert_eq!(bench.out.iter().map(to).collect::<Vec<_>>(), ["a", "b", "c"]);
    let ticket = Ticket { session: SESSION, seq: 1 };
    let body = Body::Renew { ticket, flush, grant: timings().grant };
    assert_eq!(bench.out[0], Output::Send(member("a"), Letter { epoch: Epoch(7), body }));
}

#[test]
fn a_position_from_before_the_promotion_is_not_reported() {
    let mut bench = Bench::new();
    bench.holder.set_wal(WalPosition { timeline: TimelineId(1), lsn: Lsn(77) });
    bench.holder.hold(Epoch(7), TimelineId(2), at(0), &mut bench.out);
    let Output::Send(_, Letter { body: Body::Renew { flush, .. }, .. }) = &bench.out[0] else { panic!() };
    assert_eq!(*flush, WalPosition::default());
}

#[test]
fn a_majority_of_acks_for_one_renewal_makes_the_lease_valid_from_its_send_time() {
    let mut bench = Bench::seeking(7);
    bench.ms = 60;
    bench.ack("a", 1, 1);
    assert_eq!((bench.phase(), bench.deadline()), (Phase::Seeking, None));
    bench.ack("a", 1, 1);
    assert_eq!(bench.phase(), Phase::Seeking, "one voter twice is one voter");
    bench.ack("c", 1, 1);
    assert_eq!((bench.phase(), bench.deadline()), (Phase::Held, Some(at(2_500))));
    assert_eq!(bench.out, [Output::Deadline(Epoch(7), at(2_500))]);
    bench.ack("b", 1, 1);
    assert_eq!(bench.out, [], "the third ack says nothing new");
}

#[test]
fn acks_of_different_renewals_make_no_majority() {
    let mut bench = Bench::seeking(7);
    bench.ack("a", 1, 1);
    bench.go(84);
    bench.ack("b", 2, 1);
    assert_eq!(bench.phase(), Phase::Seeking);
}

#[test]
fn only_acks_with_one_identical_membership_id_count_together() {
    let mut bench = Bench::seeking(7);
    bench.ack("a", 1, 1);
    bench.ack("b", 1, 2);
    assert_eq!(bench.phase(), Phase::Seeking);
    bench.ack("c", 1, 2);
    assert_eq!(bench.phase(), Phase::Held);
    assert_eq!(bench.holder.view().membership, Some(2));
}

#[test]
fn only_voters_count_and_a_joint_configuration_needs_both_halves() {
    let mut bench = Bench::seeking(7);
    let halves = vec![["a", "b", "c"].map(member).into(), ["c", "d", "e"].map(member).into()];
    let joint = Membership { id: 9, halves };
    let ticket = Ticket { session: SESSION, seq: 1 };
    for from in ["a", "b"] {
        bench.deliver(from, 7, Body::Ack { ticket, membership: joint.clone() }).unwrap();
    }
    assert_eq!(bench.phase(), Phase::Seeking);
    assert_eq!(bench.deliver("x", 7, Body::Ack { ticket, membership: joint }), Err(Refusal::Unexpected));
}

#[test]
fn a_deadline_never_goes_back() {
    let mut bench = Bench::seeking(7);
    bench.go(84);
    bench.ack("a", 2, 1);
    bench.ack("b", 2, 1);
    assert_eq!(bench.deadline(), Some(at(2_584)));
    bench.ack("a", 1, 1);
    bench.ack("b", 1, 1);
    assert_eq!((bench.deadline(), bench.out.len()), (Some(at(2_584)), 0));
}

#[test]
fn the_holder_expires_when_either_clock_has_passed() {
    for (boot, raw) in [(2_500, 2_000), (2_000, 2_500)] {
        let mut bench = Bench::held(7);
        let now = TwoClocks { boot: at(boot).boot, raw: at(raw).raw };
        bench.holder.tick(now, &mut bench.out);
        assert_eq!(bench.phase(), Phase::Expired);
    }
    let mut bench = Bench::held(7);
    bench.go(2_499);
    assert_eq!(bench.phase(), Phase::Held);
}

#[test]
fn an_expired_epoch_is_never_renewed_again() {
    let mut bench = Bench::held(7);
    bench.go(300);
    let late = bench.seq();
    bench.go(2_500);
    assert_eq!((bench.phase(), bench.sent()), (Phase::Expired, vec![]));
    bench.ack("a", late, 1);
    bench.ack("b", late, 1);
    assert_eq!(bench.phase(), Phase::Expired, "answers that come after the deadline revive nothing");
    bench.hold(7);
    assert_eq!((bench.phase(), bench.out.len()), (Phase::Expired, 0));
    assert_eq!(bench.holder.next_wake(at(9_000)), None);
    bench.hold(8);
    assert_eq!((bench.phase(), bench.sent()), (Phase::Seeking, vec!["renew"; 3]));
}

#[test]
fn a_late_answer_is_judged_by_the_clock_before_it_is_counted() {
    // No tick between 2.4 s and 2.6 s: the thread was paused, and the ack waited in the socket.
    let mut bench = Bench::held(7);
    bench.go(2_400);
    let seq = bench.seq();
    bench.ms = 2_600;
    bench.ack("a", seq, 1);
    bench.ack("b", seq, 1);
    assert_eq!(bench.phase(), Phase::Expired);
}

#[test]
fn an_ack_older_than_t_hold_does_not_begin_a_lease() {
    let mut bench = Bench::seeking(7);
    bench.ms = 2_500;
    bench.ack("a", 1, 1);
    bench.ack("b", 1, 1);
    assert_eq!((bench.phase(), bench.deadline()), (Phase::Seeking, None));
}

#[test]
fn a_nack_with_a_higher_epoch_supersedes_at_once() {
    let mut bench = Bench::held(7);
    let nack = |session, sealed| Body::Nack { ticket: Ticket { session, seq: 1 }, sealed: Epoch(sealed) };
    assert_eq!(bench.deliver("c", 7, nack(SESSION, 7)), Err(Refusal::Unexpected), "our own epoch is not higher");
    assert_eq!(bench.deliver("c", 7, nack(1, 8)), Err(Refusal::Unexpected), "answers another session");
    assert_eq!(bench.deliver("x", 7, nack(SESSION, 8)), Err(Refusal::Unexpected), "comes from nobody we asked");
    assert_eq!(bench.phase(), Phase::Held);
    bench.deliver("c", 7, nack(SESSION, 8)).unwrap();
    assert_eq!(bench.phase(), Phase::Superseded { sealed: Epoch(8) });
    assert_eq!(bench.run_until(10_000), []);
    bench.hold(7);
    assert_eq!(bench.phase(), Phase::Superseded { sealed: Epoch(8) }, "a superseded epoch is never renewed again");
    bench.hold(8);
    assert_eq!(bench.phase(), Phase::Seeking);
}

#[test]
fn a_released_epoch_is_never_renewed_again() {
    let mut bench = Bench::held(7);
    bench.holder.release();
    assert_eq!((bench.phase(), bench.run_until(10_000)), (Phase::Idle, vec![]));
    bench.hold(6);
    assert_eq!((bench.phase(), bench.out.len()), (Phase::Expired, 0));
    bench.hold(7);
    assert_eq!((bench.phase(), bench.out.len()), (Phase::Expired, 0));
}

#[test]
fn a_higher_grant_ends_the_lower_epoch_and_an_older_order_changes_nothing() {
    let mut bench = Bench::held(7);
    bench.hold(7);
    assert_eq!((bench.phase(), bench.out.len()), (Phase::Held, 0), "the same order twice is no harm");
    bench.hold(6);
    assert_eq!((bench.phase(), bench.holder.view().epoch), (Phase::Held, Epoch(7)));
    bench.hold(9);
    assert_eq!((bench.phase(), bench.deadline()), (Phase::Seeking, None));
    let old = Body::Ack { ticket: Ticket { session: SESSION, seq: 1 }, membership: membership(1) };
    assert_eq!(bench.deliver("c", 7, old), Err(Refusal::Unexpected));
}

#[test]
fn renewals_are_fast_until_the_first_majority_and_calm_after() {
    let mut bench = Bench::seeking(7);
    assert_eq!(bench.run_until(260), [(84, "renew"), (168, "renew"), (252, "renew")]);
    let mut bench = Bench::held(7);
    assert_eq!(bench.run_until(700), [(300, "renew"), (600, "renew")]);
}

#[test]
fn after_3_renewals_without_a_majority_the_holder_sends_probes() {
    let mut bench = Bench::held(7);
    let log = bench.run_until(2_600);
    let wanted = [
        (300, "renew"),
        (600, "renew"),
        (900, "renew"),
        (1_200, "probe"),
        (1_500, "probe"),
        (1_800, "probe"),
        (2_100, "probe"),
        (2_400, "probe"),
    ];
    assert_eq!(log, wanted);
    assert_eq!(bench.phase(), Phase::Expired);
}

#[test]
fn a_probe_ack_never_moves_the_deadline_but_a_majority_resumes_renewals_at_once() {
    let mut bench = Bench::held(7);
    bench.run_until(1_200);
    assert_eq!((bench.phase(), bench.sent()), (Phase::Probing, vec!["probe"; 3]));
    let seq = bench.seq();
    bench.ms = 1_210;
    bench.ack("a", seq, 1);
    bench.ack("b", seq, 1);
    assert_eq!(bench.phase(), Phase::Probing, "a probe can't be acked as a renewal");
    bench.probe_ack("a", seq);
    assert_eq!((bench.phase(), bench.sent()), (Phase::Probing, vec![]));
    bench.probe_ack("c", seq);
    assert_eq!((bench.phase(), bench.sent()), (Phase::Held, vec!["renew"; 3]));
    assert_eq!(bench.deadline(), Some(at(2_500)));
    let log = bench.run_until(2_300);
    let wanted = [(1_510, "renew"), (1_810, "renew"), (2_110, "probe")];
    assert_eq!(log, wanted, "and three more misses lead to probes again");
}

#[test]
fn a_renewal_that_finds_its_majority_late_ends_the_probing() {
    let mut bench = Bench::held(7);
    bench.run_until(900);
    let seq = bench.seq();
    bench.go(1_200);
    assert_eq!(bench.phase(), Phase::Probing);
    bench.ms = 1_300;
    bench.ack("a", seq, 1);
    bench.ack("b", seq, 1);
    assert_eq!((bench.phase(), bench.deadline()), (Phase::Held, Some(at(3_400))));
    bench.go(1_300);
    assert_eq!(bench.sent(), vec!["renew"; 3]);
}

#[test]
fn a_holder_that_never_found_a_majority_probes_too_and_does_not_expire() {
    let mut bench = Bench::seeking(7);
    let log = bench.run_until(5_000);
    assert_eq!(log.iter().find(|(_, kind)| *kind == "probe").map(|(ms, _)| ms / 300), Some(3));
    assert!(log.iter().all(|(ms, kind)| *ms < 1_300 || *kind == "probe"));
    let seq = bench.seq();
    bench.probe_ack("a", seq);
    bench.probe_ack("b", seq);
    assert_eq!((bench.phase(), bench.sent()), (Phase::Seeking, vec!["renew"; 3]));
}

#[test]
fn a_guard_that_stalls_stops_the_renewals_until_it_answers() {
    let mut bench = Bench::held(7);
    bench.holder.published(false, at(0));
    assert!(bench.holder.view().stalled);
    bench.go(300);
    assert_eq!(bench.out, [Output::Deadline(Epoch(7), at(2_500))], "asked again, nothing renewed");
    bench.holder.published(true, at(300));
    bench.go(301);
    assert_eq!(bench.sent(), vec!["renew"; 3]);

    let mut bench = Bench::held(7);
    bench.holder.published(false, at(0));
    for ms in (300..=2_400).step_by(300) {
        bench.go(ms);
        assert_eq!(bench.sent(), Vec::<&str>::new());
        bench.holder.published(false, at(ms));
    }
    bench.go(2_500);
    assert_eq!(bench.phase(), Phase::Expired);
}

#[test]
fn a_restarted_agent_goes_on_until_the_guards_deadline_and_not_past_it() {
    let mut bench = Bench::new();
    bench.holder.resume(Epoch(7), TimelineId(1), at(1_000), at(0), &mut bench.out);
    assert_eq!((bench.phase(), bench.sent()), (Phase::Held, vec!["renew"; 3]));
    bench.go(1_000);
    assert_eq!(bench.phase(), Phase::Expired);

    let mut bench = Bench::new();
    bench.holder.resume(Epoch(7), TimelineId(1), at(1_000), at(1_001), &mut bench.out);
    assert_eq!((bench.phase(), bench.out.len()), (Phase::Expired, 0));
}

fn notice(epoch: u64, fenced: bool) -> Notice {
    let end = WalPosition { timeline: TimelineId(1), lsn: Lsn(5) };
    Notice { member: member("a"), epoch: Epoch(epoch), fenced, end, clean: false }
}

#[test]
fn fenced_is_sent_to_every_manager_five_times_and_ends_the_epoch() {
    let mut bench = Bench::held(7);
    bench.out.clear();
    bench.holder.notice(notice(7, true), at(0), &mut bench.out);
    assert_eq!((bench.phase(), bench.sent()), (Phase::Idle, vec!["notice"; 3]));
    let times: Vec<u64> = bench.run_until(10_000).into_iter().map(|(ms, _)| ms).collect();
    assert_eq!(times, [300, 600, 900, 1_200]);
    bench.hold(7);
    assert_eq!(bench.phase(), Phase::Expired);
    assert_eq!(bench.holder.next_wake(at(10_000)), None);
}

#[test]
fn a_crash_that_may_still_be_restarted_in_place_does_not_end_the_epoch() {
    let mut bench = Bench::held(7);
    bench.out.clear();
    bench.holder.notice(notice(7, false), at(0), &mut bench.out);
    assert_eq!((bench.phase(), bench.sent()), (Phase::Held, vec!["notice"; 3]));
    bench.go(300);
    assert_eq!(bench.sent(), ["notice", "notice", "notice", "renew", "renew", "renew"]);
    bench.out.clear();
    bench.holder.notice(notice(7, true), at(310), &mut bench.out);
    let fenced = |o: &Output| matches!(o, Output::Send(_, l) if l.body == Body::Notice { fenced: true, end: notice(7, true).end, clean: false });
    assert!(bench.out.iter().all(fenced), "the later word replaces the earlier one");
}

#[test]
fn an_idle_holder_never_wakes() {
    assert_eq!(Bench::new().holder.next_wake(at(0)), None);
}
