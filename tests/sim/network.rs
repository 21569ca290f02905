//! The network between hosts: loss, delay, reordering, duplication, and cuts in one direction.

use crate::{
    clock::{MS, Time},
    dice::Dice,
};

/// What a pair of hosts says to each other goes three ways, which may be cut apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Lease datagrams.
    Lease,
    /// gRPC between managers: Raft, reports, seals.
    Control,
    /// PostgreSQL's own: replication, rewind, copy.
    Postgres,
}

/// Where everything travels.
#[derive(Debug, Clone)]
pub struct Network {
    n: usize,
    /// By channel, sender, receiver.
    cut: Vec<bool>,
    /// Lost datagrams, of a thousand.
    pub loss: u64,
    /// Doubled datagrams, of a thousand.
    pub doubled: u64,
    /// One message in so many is late by up to `late`; 0: none.
    pub late_one_in: u64,
    pub late: Time,
    /// Every other datagram takes up to so long; 0: no longer than everything else.
    pub late_datagrams: Time,
    /// The usual way takes this long.
    pub usual: (Time, Time),
}

impl Network {
    pub fn new(n: usize) -> Self {
        let cut = vec![false; 3 * n * n];
        Self { n, cut, loss: 0, doubled: 0, late_one_in: 0, late: 0, late_datagrams: 0, usual: (MS / 10, MS) }
    }

    fn slot(&self, channel: Channel, from: usize, to: usize) -> usize {
        (channel as usize * self.n + from) * self.n + to
    }

    pub fn is_cut(&self, channel: Channel, from: usize, to: usize) -> bool {
        from != to && self.cut[self.slot(channel, from, to)]
    }

    /// Both directions are open.
    pub fn is_open(&self, channel: Channel, a: usize, b: usize) -> bool {
        !self.is_cut(channel, a, b) && !self.is_cut(channel, b, a)
    }

    pub fn set_cut(&mut self, channel: Channel, from: usize, to: usize, cut: bool) {
        let slot = self.slot(channel, from, to);
        self.cut[slot] = cut;
    }

    /// Cuts or heals one direction on every channel.
    pub fn set_all(&mut self, from: usize, to: usize, cut: bool) {
        for channel in [Channel::Lease, Channel::Control, Channel::Postgres] {
            self.set_cut(channel, from, to, cut);
        }
    }

    pub fn heal(&mut self) {
        self.cut.fill(false);
    }

    /// How long a message is under way.
    pub fn delay(&self, dice: &mut Dice) -> Time {
        if self.late_one_in > 0 && dice.one_in(self.late_one_in) {
            return dice.between(self.usual.0, self.late.max(self.usual.1));
        }
        dice.between(self.usual.0, self.usual.1)
    }

    /// When a datagram arrives; never when it is lost, and sometimes twice.
    pub fn datagram(&self, dice: &mut Dice, from: usize, to: usize) -> [Option<Time>; 2] {
        if from == to {
            return [Some(dice.between(20, 200)), None];
        }
        if self.is_cut(Channel::Lease, from, to) || dice.permille(self.loss) {
            return [None, None];
        }
        if self.late_datagrams > 0 && dice.one_in(2) {
            return [Some(dice.between(self.usual.0, self.late_datagrams)), None];
        }
        let again = dice.permille(self.doubled).then(|| self.delay(dice));
        [Some(self.delay(dice)), again]
    }

    /// When bytes of a connection arrive: a lost packet is sent again, a cut holds them up. `None`: not
    /// while the cut lasts.
    pub fn stream(&self, dice: &mut Dice, channel: Channel, from: usize, to: usize) -> Option<Time> {
        if from == to {
            return Some(dice.between(50, 500));
        }
        if self.is_cut(channel, from, to) {
            return None;
        }
        let mut delay = self.delay(dice);
        let mut again = 200 * MS;
        while dice.permille(self.loss) && again < 2_000 * MS {
            delay += again;
            again *= 2;
        }
        Some(delay)
    }
}
