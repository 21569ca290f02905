//! The sentences about holders, one test each.

use super::*;
use crate::{
    domain::{Lsn, Profile},
    lease::message::Rate,
};

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

fn ack_of(ticket: Ticket, membership: Membership) -> Body {
    Body::Ack { ticket, membership, elapsed: TwoClocks::default() }
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
        let _ = self.deliver(from, epoch, ack_of(ticket, membership(id)));
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
            Output::SendToAgent(_, letter) => Some(match letter.body {
                Body::Failsafe { terms: None, .. } => "question",
                Body::Failsafe { .. } => "failsafe",
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
    let terms = Terms { timings: TimingsId::FILES, grant: timings().grant };
    let body = Body::Renew { ticket, flush, terms, members: 0, rate: Rate::Unknown };
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
        bench.deliver(from, 7, ack_of(ticket, joint.clone())).unwrap();
    }
    assert_eq!(bench.phase(), Phase::Seeking);
    assert_eq!(bench.deliver("x", 7, ack_of(ticket, joint)), Err(Refusal::Unexpected));
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
    let old = ack_of(Ticket { session: SESSION, seq: 1 }, membership(1));
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
fn an_agent_whose_loop_stands_still_has_its_lease_renewed_no_more() {
    let mut bench = Bench::held(7);
    bench.holder.vouch(at(900).boot - timings().agent_patience());
    bench.go(600);
    assert_eq!(bench.sent().len(), 3, "that may yet be a slow disk");
    for ms in [901, 1_200, 1_500] {
        bench.go(ms);
        assert_eq!(bench.sent(), Vec::<&str>::new(), "{ms}");
    }
    // It goes on, and so does the lease, which is still there.
    bench.holder.vouch(at(1_600).boot);
    bench.go(1_900);
    assert_eq!(bench.sent().len(), 3);
    assert_eq!(bench.phase(), Phase::Held);
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
    Notice {
        member: member("a"),
        epoch: Epoch(epoch),
        fenced,
        end,
        clean: false,
        cause: crate::domain::EndCause::Unknown,
    }
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
    let fenced = |o: &Output| matches!(o, Output::Send(_, l) if l.body == Body::Notice { fenced: true, end: notice(7, true).end, clean: false, cause: crate::domain::EndCause::Unknown });
    assert!(bench.out.iter().all(fenced), "the later word replaces the earlier one");
}

#[test]
fn an_idle_holder_never_wakes() {
    assert_eq!(Bench::new().holder.next_wake(at(0)), None);
}

// ---- other timings -----------------------------------------------------------------------------------------------

impl Bench {
    /// What went out in the last step to one manager: the timings named by each renewal, with its seq.
    fn renewed_under(&self) -> Vec<(u64, u64)> {
        let one = |output: &Output| match output {
            Output::Send(to, Letter { body: Body::Renew { ticket, terms, .. }, .. }) if to.as_str() == "a" => {
                Some((terms.timings.0, ticket.seq))
            }
            Output::Send(..) | Output::SendToAgent(..) | Output::Deadline(..) => None,
        };
        self.out.iter().filter_map(one).collect()
    }
}

#[test]
fn a_holder_switches_to_other_timings_only_after_a_majority_acked_them() {
    let mut bench = Bench::held(7);
    bench.holder.set_timings(TimingsId(1), Timings::of(Profile::Fast));
    assert_eq!(bench.holder.view().timings, TimingsId::FILES);
    bench.go(300);
    let [(0, old), (1, new)] = bench.renewed_under()[..] else { panic!("{:?}", bench.renewed_under()) };
    bench.ms = 310;
    bench.ack("a", new, 1);
    bench.ack("a", old, 1);
    bench.ack("b", old, 1);
    assert_eq!((bench.deadline(), bench.holder.view().timings), (Some(at(2_800)), TimingsId::FILES));
    bench.go(600);
    assert_eq!(bench.renewed_under().len(), 2, "both, until the new ones are known to be applied");
    bench.ms = 610;
    bench.ack("b", new, 1);
    assert_eq!(bench.holder.view().timings, TimingsId(1), "the second voter answered the first renewal under them");
    assert_eq!(bench.deadline(), Some(at(2_800)), "300 ms and T_hold of `fast` are earlier than what is promised");
    bench.go(810);
    let [(1, seq)] = bench.renewed_under()[..] else { panic!("{:?}", bench.renewed_under()) };
    bench.ms = 820;
    bench.ack("a", seq, 1);
    bench.ack("c", seq, 1);
    assert_eq!(bench.deadline(), Some(at(2_800)), "a deadline never goes back");
    let times: Vec<u64> = bench.run_until(1_500).into_iter().map(|(ms, _)| ms).collect();
    assert_eq!(times, [1_010, 1_210, 1_410], "and the pace is theirs");
}

#[test]
fn a_joint_configuration_needs_both_halves_for_other_timings_too() {
    let mut bench = Bench::held(7);
    bench.holder.set_timings(TimingsId(1), Timings::of(Profile::Fast));
    bench.go(300);
    let new = bench.renewed_under()[1].1;
    let halves = vec![["a", "b", "c"].map(member).into(), ["c", "d", "e"].map(member).into()];
    let joint = Membership { id: 9, halves };
    for from in ["a", "b"] {
        bench.deliver(from, 7, ack_of(Ticket { session: SESSION, seq: new }, joint.clone())).unwrap();
    }
    assert_eq!(bench.holder.view().timings, TimingsId::FILES);
}

#[test]
fn each_deadline_counts_t_hold_of_the_timings_that_were_named() {
    let mut bench = Bench::held(7);
    bench.holder.set_timings(TimingsId(1), Timings::of(Profile::Slow));
    bench.go(300);
    let [(0, old), (1, new)] = bench.renewed_under()[..] else { panic!() };
    bench.ack("a", old, 1);
    bench.ack("b", old, 1);
    assert_eq!(bench.deadline(), Some(at(2_800)));
    bench.ack("a", new, 1);
    bench.ack("b", new, 1);
    assert_eq!(bench.deadline(), Some(at(8_300)), "T_hold of `slow`, of which the majority has promised T_grant");
}

#[test]
fn timings_never_go_back_and_a_new_tenure_begins_under_the_newest() {
    let mut bench = Bench::new();
    bench.holder.set_timings(TimingsId(3), Timings::of(Profile::Fast));
    assert_eq!(bench.holder.view().timings, TimingsId(3), "nothing is held: at once");
    bench.holder.set_timings(TimingsId(2), Timings::of(Profile::Slow));
    assert_eq!(bench.holder.view().timings, TimingsId(3));
    bench.hold(7);
    assert_eq!(bench.renewed_under(), [(3, 1)]);
    bench.holder.set_timings(TimingsId(4), Timings::of(Profile::Slow));
    bench.holder.set_timings(TimingsId(5), Timings::of(Profile::Normal));
    bench.go(51);
    assert_eq!(bench.renewed_under().iter().map(|(id, _)| *id).collect::<Vec<_>>(), [3, 5]);
    bench.holder.release();
    bench.hold(8);
    assert_eq!(bench.renewed_under().iter().map(|(id, _)| *id).collect::<Vec<_>>(), [5]);
}

// ---- clocks ------------------------------------------------------------------------------------------------------

#[test]
fn each_voter_is_told_of_its_own_clocks_unless_it_is_ours_that_are_off() {
    let mut bench = Bench::held(7);
    bench.holder.set_me(member("a"), false);
    let rates = |bench: &Bench| {
        let one = |o: &Output| match o {
            Output::Send(to, Letter { body: Body::Renew { rate, .. }, .. }) => Some((to.to_string(), *rate)),
            Output::Send(..) | Output::SendToAgent(..) | Output::Deadline(..) => None,
        };
        bench.out.iter().filter_map(one).collect::<BTreeMap<_, _>>()
    };
    // b's clocks run 5 % fast; c's too, from 20 s on.
    let answer = |bench: &mut Bench, seq| {
        let ms = bench.ms;
        for (from, elapsed) in [("a", ms), ("b", ms * 105 / 100), ("c", ms + ms.saturating_sub(20_000) * 5 / 100)] {
            let elapsed = TwoClocks::default().plus(Duration::from_millis(elapsed));
            let ticket = Ticket { session: SESSION, seq };
            let _ = bench.deliver(from, 7, Body::Ack { ticket, membership: membership(1), elapsed });
        }
    };
    for ms in (300..=12_000).step_by(300) {
        bench.go(ms);
        let seq = bench.seq();
        answer(&mut bench, seq);
    }
    bench.go(12_300);
    assert_eq!(rates(&bench)["c"], Rate::Fine);
    let Rate::Off(ppm) = rates(&bench)["b"] else { panic!("{:?}", rates(&bench)) };
    assert!((45_000..=50_000).contains(&ppm), "{ppm}");
    let view = bench.holder.view();
    assert_eq!((view.clocks_off.len(), view.own_clock_off), (1, false));
    for ms in (12_600..=45_000).step_by(300) {
        bench.go(ms);
        let seq = bench.seq();
        answer(&mut bench, seq);
    }
    bench.go(45_300);
    assert!(bench.holder.view().own_clock_off, "most others differ: they are right");
    assert!(rates(&bench).values().all(|rate| *rate == Rate::Fine), "nobody else is to blame: {:?}", rates(&bench));
}

// ---- failsafe ----------------------------------------------------------------------------------------------------

impl Bench {
    /// Held since 0 ms; a's holder, which may go on without the managers.
    fn failsafe() -> Self {
        let mut bench = Self::held(7);
        bench.holder.set_me(member("a"), true);
        bench.holder.set_members(members(4, &["a", "b", "c"]));
        bench
    }

    /// Probing since 1200 ms, with the first question to the agents out.
    fn without_managers() -> Self {
        let mut bench = Self::failsafe();
        bench.run_until(1_200);
        assert_eq!(
            (bench.phase(), bench.sent()),
            (Phase::Probing, ["probe", "probe", "probe", "question", "question"].into())
        );
        bench
    }

    fn agree(&mut self, from: &str, seq: u64, promised: bool) -> Result<(), Refusal> {
        let ticket = Ticket { session: SESSION, seq };
        self.deliver(from, 7, Body::FailsafeAck { ticket, members: 4, promised })
    }
}

fn members(version: u64, names: &[&str]) -> MemberList {
    MemberList { version, agents: names.iter().map(|n| (member(n), format!("{n}:7401"))).collect() }
}

#[test]
fn without_managers_the_holder_asks_every_other_agent_and_goes_on_when_all_agree() {
    let mut bench = Bench::without_managers();
    let question = bench.seq();
    bench.ms = 1_210;
    bench.agree("b", question, false).unwrap();
    assert_eq!(bench.sent(), Vec::<&str>::new());
    bench.agree("c", question, false).unwrap();
    assert_eq!(bench.sent(), ["failsafe", "failsafe"], "at once");
    assert_eq!(bench.deadline(), Some(at(2_500)), "a question moves nothing");
    let round = bench.seq();
    bench.ms = 1_220;
    bench.agree("b", round, true).unwrap();
    assert_eq!(bench.deadline(), Some(at(2_500)), "all but one are not all");
    bench.agree("c", round, true).unwrap();
    assert_eq!(bench.out, [Output::Deadline(Epoch(7), at(3_710))], "from the sending, as ever");
    let view = bench.holder.view();
    assert_eq!((view.phase, view.failsafe, view.confirmed), (Phase::Probing, true, Some(at(1_210))));
    bench.go(1_500);
    assert_eq!(bench.sent(), ["probe", "probe", "probe", "failsafe", "failsafe"], "the managers are asked on");
}

#[test]
fn failsafe_goes_on_for_as_long_as_all_agree_and_ends_at_t_hold_when_one_does_not() {
    let mut bench = Bench::without_managers();
    for ms in (1_200..=20_000).step_by(300) {
        if ms > 1_200 {
            bench.go(ms);
        }
        for promised in [false, true] {
            let seq = bench.seq();
            let _ = bench.agree("b", seq, promised);
            let _ = bench.agree("c", seq, promised);
        }
        assert_eq!(bench.deadline(), Some(at(ms + 2_500)), "at {ms}");
    }
    // c's agent is gone: three more rounds ask for promises, then only questions go out.
    let log = bench.run_until(22_500);
    assert!(log.iter().all(|(_, kind)| *kind == "probe"));
    assert_eq!(bench.phase(), Phase::Expired);
}

#[test]
fn a_majority_of_managers_ends_failsafe() {
    let mut bench = Bench::without_managers();
    for promised in [false, true] {
        let seq = bench.seq();
        bench.agree("b", seq, promised).unwrap();
        bench.agree("c", seq, promised).unwrap();
    }
    assert!(bench.holder.view().failsafe);
    bench.go(1_500);
    let probe = bench.seq() - 1;
    bench.probe_ack("a", probe);
    bench.probe_ack("b", probe);
    assert_eq!(bench.sent(), vec!["renew"; 3]);
    let seq = bench.seq();
    bench.ack("a", seq, 1);
    bench.ack("b", seq, 1);
    assert_eq!((bench.phase(), bench.holder.view().failsafe), (Phase::Held, false));
    bench.go(1_800);
    assert_eq!(bench.sent(), vec!["renew"; 3], "no agent is asked any more");
}

#[test]
fn a_nack_of_an_agent_ends_failsafe_at_once() {
    let mut bench = Bench::without_managers();
    let ticket = Ticket { session: SESSION, seq: bench.seq() };
    bench.deliver("c", 7, Body::Nack { ticket, sealed: Epoch(8) }).unwrap();
    assert_eq!(bench.phase(), Phase::Superseded { sealed: Epoch(8) });
}

#[test]
fn no_lease_is_begun_in_failsafe_and_none_without_leave_or_list() {
    let question = |bench: &Bench| bench.sent().contains(&"question");
    let mut seeking = Bench::seeking(7);
    seeking.holder.set_me(member("a"), true);
    seeking.holder.set_members(members(4, &["a", "b", "c"]));
    seeking.run_until(5_000);
    assert!(seeking.phase() == Phase::Probing && !question(&seeking), "there is nothing to go on with");

    let mut off = Bench::failsafe();
    off.holder.set_me(member("a"), false);
    off.run_until(1_500);
    assert!(off.phase() == Phase::Probing && !question(&off), "not allowed");

    for list in [MemberList::default(), members(4, &["b", "c"]), members(4, &["a"])] {
        let mut bench = Bench::held(7);
        bench.holder.set_me(member("a"), true);
        bench.holder.set_members(list.clone());
        bench.run_until(1_500);
        assert!(!question(&bench), "{list:?}");
    }
}

#[test]
fn a_newer_list_counts_from_the_next_round_and_an_older_one_never() {
    let mut bench = Bench::without_managers();
    bench.holder.set_members(members(5, &["a", "b", "c", "d"]));
    bench.holder.set_members(members(4, &["a", "b"]));
    assert_eq!(bench.holder.view().members, 5);
    let question = bench.seq();
    bench.agree("b", question, false).unwrap();
    bench.agree("c", question, false).unwrap();
    assert_eq!(bench.sent(), vec!["failsafe"; 3]);
    let round = bench.seq();
    for (from, version, fits) in [("b", 4, false), ("b", 5, true), ("c", 5, true)] {
        let ticket = Ticket { session: SESSION, seq: round };
        let noted = bench.deliver(from, 7, Body::FailsafeAck { ticket, members: version, promised: true });
        assert_eq!(noted.is_ok(), fits, "{from} {version}");
    }
    assert_eq!(bench.deadline(), Some(at(2_500)), "d was not heard");
    let ticket = Ticket { session: SESSION, seq: round };
    bench.deliver("d", 7, Body::FailsafeAck { ticket, members: 5, promised: true }).unwrap();
    assert_eq!(bench.deadline(), Some(at(3_700)));
}

#[test]
fn an_answer_that_comes_after_the_deadline_revives_nothing_in_failsafe_either() {
    let mut bench = Bench::without_managers();
    for from in ["b", "c"] {
        let question = bench.seq();
        let _ = bench.agree(from, question, false);
    }
    let round = bench.seq();
    bench.ms = 2_500;
    let _ = bench.agree("b", round, true);
    let _ = bench.agree("c", round, true);
    assert_eq!(bench.phase(), Phase::Expired);
}

#[test]
fn a_learners_answer_completes_no_majority_and_its_silence_keeps_no_renewal_back() {
    let mut bench = Bench::new();
    bench.holder.config.peers.extend(["x", "y", "z"].map(member));
    bench.holder.set_learners(["x", "y", "z"].map(member).into());
    bench.hold(1);
    let (seq, ticket) = (bench.seq(), Ticket { session: SESSION, seq: bench.seq() });
    for learner in ["x", "y", "z"] {
        // What a learner sends, and what one would that is taken for a voter.
        bench.deliver(learner, 1, ack_of(ticket, Membership::default())).unwrap();
        bench.deliver(learner, 1, ack_of(ticket, membership(1))).unwrap();
    }
    bench.ack("a", seq, 1);
    assert_eq!(bench.phase(), Phase::Seeking, "one of three voters");
    (1..40).for_each(|n| bench.go(n * 300));
    let seq = bench.seq();
    assert_eq!(bench.phase(), Phase::Probing);
    bench.probe_ack("a", seq);
    bench.probe_ack("b", seq);
    assert_eq!(bench.phase(), Phase::Seeking, "two of three voters answer");
}
