//! Clocks that run at any rate, and what is found out about them.

use super::*;

/// ρ of profile `normal`.
const DRIFT: u32 = 20;

fn clocks(boot: f64, raw: f64) -> TwoClocks {
    TwoClocks { boot: Duration::from_secs_f64(boot), raw: Duration::from_secs_f64(raw) }
}

fn member(name: &str) -> MemberId {
    name.parse().unwrap()
}

/// One acceptor beside the holder, both with scaled clocks, in real time.
struct Pair {
    fitness: Fitness,
    /// Rates of the holder's clocks and of the acceptor's: (BOOTTIME, RAW).
    ours: (f64, f64),
    theirs: (f64, f64),
    /// Real time at which the acceptor first acked.
    since: f64,
    /// What the acceptor's clocks missed: (BOOTTIME, RAW).
    missed: (f64, f64),
}

impl Pair {
    fn new(ours: (f64, f64), theirs: (f64, f64)) -> Pair {
        Pair { fitness: Fitness::default(), ours, theirs, since: 0.0, missed: (0.0, 0.0) }
    }

    /// A renewal at real time `t` that takes `there` and `back`.
    fn renew(&mut self, t: f64, there: f64, back: f64) {
        let holder = |t: f64| clocks(1_000.0 + self.ours.0 * t, 2_000.0 + self.ours.1 * t);
        let at = t + there - self.since;
        let elapsed = clocks(self.theirs.0 * at - self.missed.0, self.theirs.1 * at - self.missed.1);
        let times = (holder(t), holder(t + there + back));
        self.fitness.note(&member("b"), times, elapsed, DRIFT);
    }

    /// Renewals every 300 ms in `from..to` with a quick network.
    fn renew_for(&mut self, from: u32, to: u32) -> Rate {
        for n in from * 10 / 3..to * 10 / 3 {
            self.renew(f64::from(n) * 0.3, 0.001, 0.001);
        }
        self.fitness.rate(&member("b"))
    }
}

#[test]
fn alike_clocks_are_fine_after_ten_seconds_and_not_before() {
    let mut pair = Pair::new((1.0, 1.0), (1.0001, 0.9999));
    assert_eq!(pair.renew_for(0, 10), Rate::Unknown);
    assert_eq!(pair.renew_for(10, 12), Rate::Fine);
}

#[test]
fn a_rate_difference_above_half_of_rho_is_found_in_either_direction() {
    for (theirs, found) in [(1.012, 1), (1.03, 1), (1.5, 1), (0.988, -1), (0.97, -1)] {
        let mut pair = Pair::new((1.0, 1.0), (theirs, theirs));
        let Rate::Off(ppm) = pair.renew_for(0, 12) else { panic!("{theirs} goes unnoticed") };
        assert_eq!(ppm.signum(), found, "{theirs}: {ppm}");
        let truth = (f64::max(theirs, 1.0 / theirs) - 1.0) * 1e6;
        assert!((ppm.abs() as f64 - truth).abs() < 500.0, "{theirs}: {ppm} ppm, in truth {truth:.0}");
    }
    for theirs in [1.008, 0.992] {
        assert_eq!(Pair::new((1.0, 1.0), (theirs, theirs)).renew_for(0, 12), Rate::Fine, "{theirs}");
    }
}

#[test]
fn one_good_clock_on_each_host_is_enough() {
    // chrony slews by 8 %: BOOTTIME follows, MONOTONIC_RAW does not.
    assert_eq!(Pair::new((1.08, 1.0), (1.0, 1.0)).renew_for(0, 12), Rate::Fine);
    assert_eq!(Pair::new((1.0, 1.0), (0.92, 1.0)).renew_for(0, 12), Rate::Fine);
    assert_eq!(Pair::new((1.0, 0.9), (1.0, 1.1)).renew_for(0, 12), Rate::Fine);
    assert!(matches!(Pair::new((1.0, 0.95), (1.05, 1.03)).renew_for(0, 12), Rate::Off(_)));
}

#[test]
fn no_delay_and_no_pause_makes_good_clocks_look_bad_or_bad_ones_good() {
    for (theirs, good) in [(1.0, true), (1.025, false), (0.975, false)] {
        let mut pair = Pair::new((1.0, 1.0), (theirs, theirs));
        let mut seed = 7_u64;
        let mut t = 0.0;
        while t < 600.0 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let unit = (seed >> 40) as f64 / 16_777_216.0;
            // Seconds of delay one way or the other, by turns; a quick one in eight.
            let (there, back) = match seed >> 60 {
                0 | 1 => (0.001, 0.001),
                2..8 => (unit * 3.0, 0.001),
                _ => (0.001, unit * 3.0),
            };
            pair.renew(t, there, back);
            t += there + back + 0.3;
            let rate = pair.fitness.rate(&member("b"));
            match good {
                true => assert!(!matches!(rate, Rate::Off(_)), "{rate:?} at {t}"),
                false => assert_ne!(rate, Rate::Fine, "at {t}"),
            }
        }
        assert_ne!(pair.fitness.rate(&member("b")), Rate::Unknown, "ten minutes and no verdict");
    }
}

#[test]
fn a_restart_a_suspend_and_a_pause_of_the_machine_are_no_rates() {
    // The acceptor restarts and counts anew.
    let mut pair = Pair::new((1.0, 1.0), (1.0, 1.0));
    pair.renew_for(0, 6);
    pair.since = 6.0;
    assert_eq!(pair.renew_for(6, 15), Rate::Unknown, "a new window has begun");
    assert_eq!(pair.renew_for(15, 20), Rate::Fine);
    // Its host is suspended for a while: RAW stands still, BOOTTIME does not. Then the machine is paused: both do.
    for missed in [(0.0, 5.0), (5.0, 5.0)] {
        pair.missed = missed;
        pair.renew(25.0, 0.001, 0.001);
        assert_eq!(pair.renew_for(26, 40), Rate::Fine);
    }
}

#[test]
fn a_verdict_stands_until_a_later_window_finds_otherwise() {
    let mut pair = Pair::new((1.0, 1.0), (1.05, 1.05));
    assert!(matches!(pair.renew_for(0, 12), Rate::Off(_)));
    assert!(matches!(pair.renew_for(12, 18), Rate::Off(_)));
    // Repaired: from here on it runs true, and what it counted before stays counted.
    pair.theirs = (1.0, 1.0);
    pair.missed = (-0.9, -0.9);
    assert_eq!(pair.renew_for(18, 45), Rate::Fine);
}

#[test]
fn the_holders_own_clock_is_off_when_most_others_differ_from_it() {
    let rated = |rates: &[(&str, Rate)]| {
        let sample = Sample { sent: clocks(0.0, 0.0), received: clocks(0.0, 0.0), elapsed: clocks(0.0, 0.0) };
        let voter = |rate| Voter { begin: sample, last: sample, rate };
        Fitness { voters: rates.iter().map(|(name, rate)| (member(name), voter(*rate))).collect() }
    };
    let off = |rates: &[(&str, Rate)]| rated(rates).own_is_off(&member("a"));
    let (fine, bad) = (Rate::Fine, Rate::Off(20_000));
    assert!(!off(&[("a", fine), ("b", fine), ("c", fine)]));
    assert!(!off(&[("a", fine), ("b", bad), ("c", fine)]), "it is b's");
    assert!(off(&[("a", fine), ("b", bad), ("c", bad)]));
    assert!(off(&[("a", fine), ("b", bad), ("c", Rate::Unknown)]), "nobody but its own host speaks for it");
    assert!(!off(&[("a", fine), ("b", bad), ("c", bad), ("d", fine), ("e", fine)]));
    assert_eq!(rated(&[("b", bad), ("c", fine)]).off(), BTreeMap::from([(member("b"), 20_000)]));
}
