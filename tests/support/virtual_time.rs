//! What the seeded simulations share: dice, clocks that drift, and a queue of what is due.

#![allow(dead_code)]

use std::{cmp::Ordering, time::Duration};

use matriarch::domain::moment::TwoClocks;

/// Bound on how far a clock's rate is from the truth.
pub const RHO: f64 = 0.02;

/// splitmix64: small, and the same on every machine for ever.
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        #[allow(clippy::cast_precision_loss)]
        let unit = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        low + unit * (high - low)
    }

    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(n).unwrap()).unwrap()
    }

    pub fn chance(&mut self, p: f64) -> bool {
        self.uniform(0.0, 1.0) < p
    }
}

/// Both clocks of one process, as functions of real time.
pub struct Clock {
    boot: (f64, f64),
    raw: (f64, f64),
}

impl Clock {
    pub fn new(dice: &mut Dice, extreme: bool, twins: bool) -> Self {
        let mut one = || {
            let rate = match extreme {
                true if dice.chance(0.5) => 1.0 - RHO,
                true => 1.0 + RHO,
                false => dice.uniform(1.0 - RHO, 1.0 + RHO),
            };
            (dice.uniform(1_000.0, 1_100.0), rate)
        };
        let boot = one();
        Self { boot, raw: if twins { boot } else { one() } }
    }

    pub fn read(&self, t: f64) -> TwoClocks {
        let read = |(offset, rate): (f64, f64)| Duration::from_secs_f64(offset + rate * t);
        TwoClocks { boot: read(self.boot), raw: read(self.raw) }
    }

    /// Real time when the first of the two clocks shows `d`.
    pub fn first_at(&self, d: TwoClocks) -> f64 {
        let at = |d: Duration, (offset, rate): (f64, f64)| (d.as_secs_f64() - offset) / rate;
        at(d.boot, self.boot).min(at(d.raw, self.raw))
    }
}

/// Something at a moment of real time; the number keeps equal moments in order.
pub struct Due<E>(pub f64, pub u64, pub E);

impl<E> Ord for Due<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        other.0.total_cmp(&self.0).then(other.1.cmp(&self.1)) // the heap gives the greatest first
    }
}
impl<E> PartialOrd for Due<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<E> PartialEq for Due<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl<E> Eq for Due<E> {}
