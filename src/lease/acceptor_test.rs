//! The sentences about acceptors, one test each.

use super::*;
use crate::domain::{CommittedTimings, Lsn, Profile, TimelineId, Timings};

const GRANT: Duration = Duration::from_millis(3_200);

fn at(ms: u64) -> TwoClocks {
    TwoClocks::default().plus(Duration::from_millis(ms))
}

fn member(name: &str) -> MemberId {
    name.parse().unwrap()
}

fn voters() -> Membership {
    Membership::simple(1, ["a", "b", "c"].map(member))
}

fn ticket(seq: u64) -> Ticket {
    Ticket { session: 1, seq }
}

fn wal(timeline: u32, lsn: u64) -> WalPosition {
    WalPosition { timeline: TimelineId(timeline), lsn: Lsn(lsn) }
}

fn renewal(epoch: u64, seq: u64) -> Letter {
    asks(epoch, seq, TimingsId::FILES, GRANT)
}

/// A renewal under these timings.
fn asks(epoch: u64, seq: u64, timings: TimingsId, grant: Duration) -> Letter {
    let terms = Terms { timings, grant };
    let flush = wal(1, seq);
    let body = Body::Renew { ticket: ticket(seq), flush, terms, members: 0, rate: Rate::Unknown };
    Letter { epoch: Epoch(epoch), body }
}

/// Timings of these profiles, committed one after the other from `oldest` on.
fn in_use(oldest: u64, profiles: &[(u64, Profile)]) -> TimingsInUse {
    let committed = profiles.iter().map(|(id, profile)| CommittedTimings {
        id: TimingsId(*id),
        profile: *profile,
        timings: Timings::of(*profile),
    });
    TimingsInUse { oldest: TimingsId(oldest), committed: committed.collect() }
}

fn probe(epoch: u64) -> Letter {
    Letter { epoch: Epoch(epoch), body: Body::Probe { ticket: ticket(99) } }
}

/// An acceptor whose first quarantine is over, with `sealed` durable and applied.
fn ready(sealed: u64) -> Acceptor {
    let mut acceptor =
        Acceptor::new(GRANT, Durable { sealed: Epoch(sealed), grant: GRANT, ..Durable::default() }, at(0));
    acceptor.set_membership(voters(), at(0));
    assert_eq!(acceptor.set_applied(Epoch(sealed)), None);
    acceptor
}

/// Delivers a message and makes durable what that asks for.
fn deliver(acceptor: &mut Acceptor, letter: Letter, ms: u64) -> Option<Body> {
    let response = acceptor.receive(&member("a"), letter, at(ms));
    if let Some(durable) = response.persist {
        acceptor.persisted(durable);
    }
    response.reply.map(|letter| letter.body)
}

fn is_ack(reply: Option<Body>) -> bool {
    matches!(reply, Some(Body::Ack { .. }))
}

#[test]
fn a_voter_that_acks_promises_until_receipt_plus_t_grant() {
    let mut acceptor = ready(7);
    assert!(is_ack(deliver(&mut acceptor, renewal(7, 1), 10_000)));
    assert_eq!(acceptor.until(), at(13_200));
    let promise = acceptor.promise(at(10_000));
    assert_eq!((promise.remaining_ms, promise.lapsed, promise.epoch, promise.renewed), (3_200, false, Epoch(7), true));
    assert!(!acceptor.promise(at(13_199)).lapsed);
    assert!(acceptor.promise(at(13_200)).lapsed);
}

#[test]
fn an_acceptor_frees_when_both_clocks_have_passed() {
    let mut acceptor = ready(7);
    deliver(&mut acceptor, renewal(7, 1), 10_000);
    let (early, late) = (at(13_000), at(14_000));
    let boot_only = TwoClocks { boot: late.boot, raw: early.raw };
    let raw_only = TwoClocks { boot: early.boot, raw: late.raw };
    for one in [boot_only, raw_only] {
        assert_eq!(acceptor.promise(one).remaining_ms, 200);
        assert_eq!(acceptor.next_wake(one), Some(Duration::from_millis(200)));
    }
    assert!(acceptor.promise(late).lapsed);
    assert_eq!(acceptor.next_wake(late), None);
}

#[test]
fn a_promise_with_a_microsecond_left_is_not_reported_as_0() {
    let acceptor = ready(7);
    let now = TwoClocks::default().plus(GRANT - Duration::from_micros(1));
    let promise = acceptor.promise(now);
    assert_eq!((promise.remaining_ms, promise.lapsed), (1, false));
}

#[test]
fn a_new_or_restarted_voter_starts_as_if_it_had_acked_just_now() {
    let acceptor = Acceptor::new(GRANT, Durable::default(), at(500));
    assert_eq!(acceptor.until(), at(3_700));
    let promise = acceptor.promise(at(500));
    assert!(!promise.lapsed && !promise.renewed);
}

#[test]
fn the_quarantine_uses_the_largest_t_grant_ever_promised() {
    let longer = Durable { sealed: Epoch(3), grant: GRANT * 2, ..Durable::default() };
    let mut acceptor = Acceptor::new(GRANT, longer, at(0));
    assert_eq!(acceptor.until(), at(6_400));
    acceptor.set_membership(voters(), at(10_000));
    assert_eq!(acceptor.until(), at(16_400));
}

#[test]
fn each_change_of_effective_membership_binds_for_t_grant() {
    let mut acceptor = ready(7);
    acceptor.set_membership(voters(), at(10_000));
    assert!(acceptor.promise(at(10_000)).lapsed, "the same membership again is no change");
    acceptor.set_membership(Membership { id: 2, ..voters() }, at(10_000));
    assert_eq!(acceptor.until(), at(13_200));
}

#[test]
fn nothing_is_acked_between_the_append_of_a_membership_and_its_turn() {
    let mut acceptor = ready(7);
    acceptor.set_in_log(1);
    assert!(matches!(deliver(&mut acceptor, renewal(7, 1), 1), Some(Body::Ack { .. })));
    acceptor.set_in_log(2);
    assert_eq!(acceptor.receive(&member("a"), renewal(7, 2), at(2)).refused, Some(Refusal::NotReady));
    assert_eq!(acceptor.promise(at(2)).membership, 0, "neither the old one nor the new one");
    acceptor.set_membership(Membership { id: 2, ..voters() }, at(3));
    assert_eq!(acceptor.promise(at(3)).membership, 2);
    assert!(matches!(deliver(&mut acceptor, renewal(7, 3), 3), Some(Body::Ack { .. })));
    // Cut off from the log again by a leader that never saw entry 2.
    acceptor.set_in_log(1);
    assert_eq!(acceptor.receive(&member("a"), renewal(7, 4), at(4)).refused, Some(Refusal::NotReady));
}

#[test]
fn an_ack_names_the_membership_of_the_acceptor() {
    let mut acceptor = ready(7);
    let Some(Body::Ack { membership, ticket: answered, .. }) = deliver(&mut acceptor, renewal(7, 4), 1) else {
        panic!()
    };
    assert_eq!((membership, answered), (voters(), ticket(4)));
}

#[test]
fn an_epoch_below_the_seal_is_nacked_at_once() {
    let mut acceptor = ready(7);
    let durable = acceptor.seal(Epoch(8)).unwrap();
    acceptor.persisted(durable);
    let nack = Some(Body::Nack { ticket: ticket(5), sealed: Epoch(8) });
    let until = acceptor.until();
    assert_eq!(deliver(&mut acceptor, renewal(7, 5), 10_000), nack);
    assert!(matches!(deliver(&mut acceptor, probe(7), 10_000), Some(Body::Nack { sealed: Epoch(8), .. })));
    assert_eq!(acceptor.until(), until, "a refused renewal binds nobody");
    assert!(is_ack(deliver(&mut acceptor, renewal(8, 6), 10_000)));
}

#[test]
fn sealed_is_never_below_any_fence_epoch_applied() {
    let mut acceptor = ready(7);
    let durable = acceptor.set_applied(Epoch(9)).unwrap();
    assert_eq!(durable.sealed, Epoch(9));
    assert!(matches!(deliver(&mut acceptor, renewal(8, 1), 1), Some(Body::Nack { sealed: Epoch(9), .. })));
    acceptor.persisted(durable);
    assert_eq!(acceptor.set_applied(Epoch(4)), None, "an older one lowers nothing");
    assert_eq!(acceptor.promise(at(1)).sealed, Epoch(9));
}

#[test]
fn nothing_is_acked_before_the_log_is_applied_and_the_membership_known() {
    let mut acceptor = Acceptor::new(GRANT, Durable { sealed: Epoch(7), grant: GRANT, ..Durable::default() }, at(0));
    let refused = |acceptor: &mut Acceptor, letter| acceptor.receive(&member("a"), letter, at(1)).refused;
    assert_eq!(refused(&mut acceptor, renewal(7, 1)), Some(Refusal::NotReady));
    acceptor.set_membership(voters(), at(1));
    assert_eq!(refused(&mut acceptor, renewal(7, 2)), Some(Refusal::NotReady));
    assert_eq!(refused(&mut acceptor, probe(7)), Some(Refusal::NotReady));
    assert!(matches!(deliver(&mut acceptor, renewal(6, 3), 1), Some(Body::Nack { .. })), "a seal needs no log");
    acceptor.set_applied(Epoch(7));
    assert!(is_ack(deliver(&mut acceptor, renewal(7, 4), 1)));
    assert!(acceptor.promise(at(1)).renewed);
}

#[test]
fn a_higher_epoch_is_durable_before_its_first_ack_and_then_needs_no_disk() {
    let mut acceptor = ready(7);
    let first = acceptor.receive(&member("a"), renewal(8, 1), at(1));
    assert_eq!(first.persist, Some(Durable { sealed: Epoch(8), grant: GRANT, ..Durable::default() }));
    assert_eq!(acceptor.promise(at(1)).sealed, Epoch(7), "not reported before it is durable");
    // The disk failed, so the next renewal asks again.
    let second = acceptor.receive(&member("a"), renewal(8, 2), at(2));
    acceptor.persisted(second.persist.unwrap());
    assert_eq!(acceptor.receive(&member("a"), renewal(8, 3), at(3)).persist, None);
    assert_eq!(acceptor.promise(at(3)).sealed, Epoch(8));
}

#[test]
fn the_promise_is_the_t_grant_of_the_renewal_and_at_least_our_own() {
    let asks = |seq, grant| asks(7, seq, TimingsId::FILES, grant);
    let mut acceptor = ready(7);
    deliver(&mut acceptor, asks(1, GRANT / 2), 10_000);
    assert_eq!(acceptor.until(), at(13_200));
    let longer = acceptor.receive(&member("a"), asks(2, GRANT * 2), at(10_000));
    assert_eq!(
        longer.persist.map(|d| d.grant),
        Some(GRANT * 2),
        "durable before the ack, for a restart must honour it"
    );
    assert_eq!(acceptor.until(), at(16_400));
    let absurd = acceptor.receive(&member("a"), asks(3, GRANT_MAX + GRANT), at(10_000));
    assert_eq!((absurd.reply, absurd.refused), (None, Some(Refusal::GrantTooLong)));
}

#[test]
fn a_probe_never_moves_a_promise() {
    let mut acceptor = ready(7);
    let until = acceptor.until();
    assert_eq!(deliver(&mut acceptor, probe(8), 2_000), Some(Body::ProbeAck { ticket: ticket(99) }));
    assert_eq!(acceptor.until(), until);
    let promise = acceptor.promise(at(2_000));
    assert_eq!((promise.sealed, promise.epoch, promise.renewed), (Epoch(7), Epoch(0), false));
}

#[test]
fn the_voters_hand_over_the_highest_lsn_ever_reported() {
    let mut acceptor = ready(7);
    let says = |seq, wal| {
        let mut letter = renewal(7, seq);
        let Body::Renew { flush, .. } = &mut letter.body else { panic!() };
        *flush = wal;
        letter
    };
    deliver(&mut acceptor, says(1, wal(3, 500)), 1);
    deliver(&mut acceptor, says(2, wal(2, 900)), 2);
    deliver(&mut acceptor, says(3, wal(0, 0)), 3);
    acceptor.seal(Epoch(8));
    assert_eq!(acceptor.promise(at(4)).highest, wal(3, 500));
}

#[test]
fn a_recorded_datagram_prolongs_nothing() {
    let mut acceptor = ready(7);
    deliver(&mut acceptor, renewal(7, 5), 1_000);
    for seq in [5, 4] {
        let again = acceptor.receive(&member("a"), renewal(7, seq), at(9_000));
        assert_eq!((again.reply, again.refused), (None, Some(Refusal::Replayed)));
    }
    assert_eq!(acceptor.until(), at(4_200));
    let mut restarted = renewal(7, 1);
    let Body::Renew { ticket, .. } = &mut restarted.body else { panic!() };
    ticket.session = 2;
    assert!(is_ack(deliver(&mut acceptor, restarted, 9_000)), "a restarted agent counts from 1 again");
}

#[test]
fn an_epoch_has_one_holder() {
    let mut acceptor = ready(7);
    deliver(&mut acceptor, renewal(7, 1), 1);
    let other = acceptor.receive(&member("b"), renewal(7, 2), at(2));
    assert_eq!((other.reply, other.refused), (None, Some(Refusal::OtherHolder)));
    assert!(acceptor.receive(&member("b"), renewal(8, 2), at(2)).reply.is_some());
}

#[test]
fn no_lease_exists_for_epoch_0() {
    assert_eq!(ready(0).receive(&member("a"), renewal(0, 1), at(1)).refused, Some(Refusal::Unexpected));
}

#[test]
fn the_promise_is_the_t_grant_of_the_timings_a_renewal_names() {
    let mut acceptor = ready(7);
    let durable = acceptor.set_timings(in_use(0, &[(1, Profile::Slow), (2, Profile::Fast)])).unwrap();
    acceptor.persisted(durable);
    let longer = acceptor.receive(&member("a"), asks(7, 1, TimingsId(2), GRANT), at(10_000));
    assert_eq!(longer.refused, Some(Refusal::OtherTimings), "other timings under the same id");
    deliver(&mut acceptor, asks(7, 1, TimingsId(2), Duration::from_millis(1_650)), 10_000);
    assert_eq!(acceptor.until(), at(11_650), "of `fast`");
    deliver(&mut acceptor, asks(7, 2, TimingsId(0), GRANT), 10_000);
    assert_eq!(acceptor.until(), at(13_200), "of the file");
    deliver(&mut acceptor, asks(7, 3, TimingsId(1), Duration::ZERO), 10_000);
    assert_eq!(acceptor.until(), at(20_400), "of `slow`");
}

#[test]
fn timings_that_were_not_applied_or_are_out_of_use_are_not_acked() {
    let mut acceptor = ready(7);
    acceptor.set_timings(in_use(2, &[(2, Profile::Slow), (3, Profile::Fast)]));
    for id in [0, 1, 4] {
        let response = acceptor.receive(&member("a"), asks(7, id + 1, TimingsId(id), GRANT), at(10_000));
        assert_eq!((response.reply, response.refused), (None, Some(Refusal::OtherTimings)), "{id}");
    }
    assert!(acceptor.promise(at(10_000)).lapsed, "and bind nobody");
}

#[test]
fn a_longer_promise_is_durable_before_the_first_ack_that_gives_it() {
    let mut acceptor = ready(7);
    let slow = Timings::of(Profile::Slow).grant;
    // The disk fails when the timings are applied, and the renewal asks again.
    assert_eq!(acceptor.set_timings(in_use(0, &[(1, Profile::Slow)])).map(|d| d.grant), Some(slow));
    let first = acceptor.receive(&member("a"), asks(7, 1, TimingsId(1), slow), at(10_000));
    assert_eq!(first.persist.map(|d| d.grant), Some(slow));
    acceptor.persisted(first.persist.unwrap());
    let second = acceptor.receive(&member("a"), asks(7, 2, TimingsId(1), slow), at(10_300));
    assert_eq!(second.persist, None, "and then no renewal needs the disk");
}

/// The file of a host was changed and changed back, with restarts: what it promised meanwhile is still waited for.
#[test]
fn a_longer_promise_of_a_changed_file_is_durable_before_the_first_ack_that_gives_it() {
    let safe = Timings::of(Profile::Safe).grant;
    let shorter = Durable { sealed: Epoch(7), grant: GRANT, ..Durable::default() };
    let mut acceptor = Acceptor::new(safe, shorter, at(0));
    acceptor.set_membership(voters(), at(0));
    acceptor.set_applied(Epoch(7));
    let first = acceptor.receive(&member("a"), asks(7, 1, TimingsId::FILES, safe), at(30_000));
    let durable = first.persist.expect("nothing that long is promised before it is on disk");
    assert_eq!(durable.grant, safe);
    acceptor.persisted(durable);
    assert_eq!(acceptor.receive(&member("a"), asks(7, 2, TimingsId::FILES, safe), at(30_300)).persist, None);
    assert_eq!(Acceptor::new(GRANT, durable, at(0)).until(), at(safe.as_millis() as u64));
}

#[test]
fn quarantines_use_the_largest_t_grant_still_in_use() {
    let mut acceptor = ready(7);
    let durable = acceptor.set_timings(in_use(1, &[(1, Profile::Slow), (2, Profile::Fast)])).unwrap();
    acceptor.persisted(durable);
    assert_eq!(durable.grant, Timings::of(Profile::Slow).grant);
    acceptor.set_membership(Membership { id: 2, ..voters() }, at(20_000));
    assert_eq!(acceptor.until(), at(30_400), "of whatever another voter may have promised");
    assert_eq!(Acceptor::new(GRANT, durable, at(0)).until(), at(10_400), "after a restart");

    // `slow` is out of use; the own promise under it still runs for a while.
    let durable = acceptor.set_timings(in_use(2, &[(2, Profile::Fast)])).unwrap();
    acceptor.persisted(durable);
    assert_eq!(acceptor.forget_longer_promises(at(28_749)), None, "1651 ms of it are left");
    let shorter = acceptor.forget_longer_promises(at(28_750)).unwrap();
    assert_eq!(shorter, Durable { sealed: Epoch(7), grant: Duration::from_millis(1_650), oldest: TimingsId(2) });
    acceptor.persisted(shorter);
    assert_eq!(acceptor.forget_longer_promises(at(28_750)), None);
    assert_eq!(Acceptor::new(GRANT, shorter, at(0)).until(), at(1_650), "the file counts no more");
    acceptor.set_membership(Membership { id: 3, ..voters() }, at(40_000));
    assert_eq!(acceptor.until(), at(41_650));
}

#[test]
fn a_new_voter_waits_as_long_as_the_longest_committed_promise() {
    // Its file says `fast`, the cluster runs `safe`.
    let fast = Timings::of(Profile::Fast).grant;
    let mut acceptor = Acceptor::new(fast, Durable::default(), at(0));
    acceptor.set_timings(in_use(3, &[(3, Profile::Safe)]));
    acceptor.set_membership(voters(), at(1_000));
    assert_eq!(acceptor.until(), at(26_000));
}

#[test]
fn an_ack_carries_the_time_since_the_first_of_its_session_on_both_clocks() {
    let mut acceptor = ready(7);
    let elapsed = |acceptor: &mut Acceptor, letter: Letter, now: TwoClocks| {
        let reply = acceptor.receive(&member("a"), letter, now).reply.map(|l| l.body);
        let Some(Body::Ack { elapsed, .. }) = reply else { panic!("{reply:?}") };
        (elapsed.boot.as_millis(), elapsed.raw.as_millis())
    };
    assert_eq!(elapsed(&mut acceptor, renewal(7, 1), at(1_000)), (0, 0));
    let later = TwoClocks { boot: at(4_000).boot, raw: at(3_990).raw };
    assert_eq!(elapsed(&mut acceptor, renewal(7, 2), later), (3_000, 2_990));
    let mut restarted = renewal(7, 1);
    let Body::Renew { ticket, .. } = &mut restarted.body else { panic!() };
    ticket.session = 2;
    assert_eq!(elapsed(&mut acceptor, restarted, at(5_000)), (0, 0));
    assert_eq!(elapsed(&mut acceptor, renewal(8, 1), at(6_000)), (0, 0), "a new epoch counts anew");
}

#[test]
fn what_the_holder_says_of_our_clocks_and_of_its_list_is_handed_on() {
    let mut acceptor = ready(7);
    let mut says = |epoch, seq, list, verdict| {
        let mut letter = renewal(epoch, seq);
        let Body::Renew { members, rate, .. } = &mut letter.body else { panic!() };
        (*members, *rate) = (list, verdict);
        deliver(&mut acceptor, letter, seq);
        let promise = acceptor.promise(at(seq));
        (promise.members, promise.clock_off_ppm)
    };
    assert_eq!(says(7, 1, 4, Rate::Off(-12_000)), (4, -12_000));
    assert_eq!(says(7, 2, 3, Rate::Unknown), (4, -12_000), "an older word takes nothing back");
    assert_eq!(says(8, 3, 3, Rate::Unknown), (3, -12_000), "another holder has its own list, our clocks are the same");
    assert_eq!(says(8, 4, 3, Rate::Fine), (3, 0));
}

#[test]
fn a_notice_is_handed_on_once() {
    let letter = |fenced| Letter {
        epoch: Epoch(7),
        body: Body::Notice { fenced, end: wal(2, 9), clean: false, cause: crate::domain::EndCause::Unknown },
    };
    let mut acceptor = ready(7);
    let notice = acceptor.receive(&member("a"), letter(true), at(1)).notice.unwrap();
    assert_eq!((notice.member.as_str(), notice.epoch, notice.fenced), ("a", Epoch(7), true));
    assert_eq!(acceptor.receive(&member("a"), letter(true), at(2)).notice, None);
    assert!(acceptor.receive(&member("a"), letter(false), at(3)).notice.is_some());
    acceptor.forget_notice(&notice);
    assert!(acceptor.receive(&member("a"), letter(true), at(4)).notice.is_some());
    for epoch in 0..200 {
        let other = Letter { epoch: Epoch(epoch), ..letter(true) };
        acceptor.receive(&member("b"), other, at(5));
    }
    assert!(acceptor.notices.len() <= NOTICES_MAX);
}

#[test]
fn half_of_the_promise_without_a_renewal_is_told_and_a_renewal_takes_it_back() {
    let mut acceptor = ready(7);
    assert!(!acceptor.promise(at(60_000)).quiet, "nobody was heard since the start: there is nobody to miss");
    deliver(&mut acceptor, renewal(7, 1), 10_000);
    assert!(!acceptor.promise(at(11_599)).quiet);
    assert_eq!(acceptor.next_wake(at(11_000)), Some(Duration::from_millis(600)), "it wakes up to tell");
    let quiet = acceptor.promise(at(11_600));
    assert!(quiet.quiet && !quiet.lapsed, "{quiet:?}");
    assert_eq!(acceptor.next_wake(at(11_600)), Some(Duration::from_millis(1_600)));
    deliver(&mut acceptor, renewal(7, 2), 11_700);
    assert!(!acceptor.promise(at(11_700)).quiet);
    assert!(acceptor.promise(at(14_900)).lapsed && acceptor.promise(at(14_900)).quiet);
}

#[test]
fn a_learner_promises_and_seals_nothing_by_a_renewal_and_names_no_voters() {
    let mut acceptor = ready(7);
    acceptor.set_learner(true);
    let before = (acceptor.until(), acceptor.promise(at(10_000)).sealed);
    let said = Terms { timings: TimingsId::FILES, grant: GRANT };
    let body =
        Body::Renew { ticket: ticket(1), flush: WalPosition::default(), terms: said, members: 4, rate: Rate::Off(9) };
    let response = acceptor.receive(&member("a"), Letter { epoch: Epoch(8), body }, at(10_000));
    assert_eq!(response.persist, None);
    let Some(Letter { body: Body::Ack { membership, .. }, .. }) = response.reply else {
        panic!("its clocks are compared")
    };
    assert!(!membership.has_majority(&["a", "b", "c"].map(member).into()), "nobody can count it: {membership:?}");
    let promise = acceptor.promise(at(10_000));
    assert_eq!((acceptor.until(), promise.sealed), before);
    assert_eq!((promise.membership, promise.renewed_ago_ms), (0, None), "its seal is none of a voter");
    // What is told by the way is kept: it may be primary, and then its clocks count.
    assert_eq!((promise.clock_off_ppm, promise.members), (9, 4));
    assert_eq!(acceptor.receive(&member("a"), probe(8), at(10_001)).refused, Some(Refusal::Learner));
    // A higher epoch is a fact, whoever says it.
    let durable = acceptor.seal(Epoch(9)).unwrap();
    acceptor.persisted(durable);
    assert!(matches!(deliver(&mut acceptor, renewal(8, 2), 10_002), Some(Body::Nack { sealed: Epoch(9), .. })));
}
