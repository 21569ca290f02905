//! Both addresses on one host, against a kernel that looks as Linux does: when the first of them is over, late by a quarter of a
//! second where a whole one is near, and never twice within a second; each write is a look.

use proptest::prelude::*;

use super::*;

fn at(millis: u64) -> TwoClocks {
    TwoClocks::default().plus(Duration::from_millis(millis))
}

const PRIMARY: usize = 0;
const READER: usize = 1;

#[derive(Debug, Clone)]
struct Kernel {
    ends: [Option<u64>; 2],
    next: u64,
    late: u64,
}

impl Kernel {
    fn new(late: u64) -> Kernel {
        Kernel { ends: [None; 2], next: u64::MAX, late }
    }

    fn look(&mut self, now: u64) {
        self.ends.iter_mut().for_each(|end| *end = end.filter(|end| *end > now));
        let first = self.ends.iter().flatten().min();
        self.next = first.map_or(u64::MAX, |first| (first + self.late).max(now + 1_000));
    }

    fn goes_on(&mut self, until: u64) {
        while self.next <= until {
            self.look(self.next);
        }
    }

    fn write(&mut self, which: usize, now: u64, seconds: u32) {
        self.goes_on(now);
        self.ends[which] = Some(now + u64::from(seconds) * 1_000);
        self.look(now);
    }

    /// When each is gone, if nobody does anything any more.
    fn gone(&self) -> [u64; 2] {
        let (mut left, mut gone) = (self.clone(), [0; 2]);
        while left.next < u64::MAX {
            let (now, before) = (left.next, left.ends);
            left.look(now);
            for which in [PRIMARY, READER] {
                if before[which].is_some() && left.ends[which].is_none() {
                    gone[which] = now;
                }
            }
        }
        gone
    }
}

/// The two threads, which do as `Run` does.
struct Host {
    kernel: Kernel,
    known: [Known; 2],
    now: u64,
}

impl Host {
    fn new(late: u64) -> Host {
        let known = Known { deadline: None, serving: Serving::Open, written: None };
        Host { kernel: Kernel::new(late), known: [known; 2], now: 0 }
    }

    fn put(&mut self, which: usize, seconds: u32) {
        let Some(deadline) = self.known[which].deadline else { return };
        self.kernel.write(which, self.now, seconds);
        self.known[which].written = Some(Written { deadline, at: at(self.now), seconds });
    }

    fn remove(&mut self, which: usize) {
        self.known[which].written = None;
        self.kernel.ends[which] = None;
    }

    fn primary_runs(&mut self) {
        match self.known[PRIMARY].step(at(self.now)) {
            Step::Leave => {}
            Step::Remove => self.remove(PRIMARY),
            Step::Write(seconds) => {
                let with = self.known[READER].together(at(self.now));
                if with == Step::Remove {
                    self.remove(READER);
                }
                self.put(PRIMARY, seconds);
                if let Step::Write(seconds) = with {
                    self.put(READER, seconds);
                }
            }
        }
    }

    fn reader_runs(&mut self) {
        match self.known[READER].step(at(self.now)) {
            Step::Remove => self.remove(READER),
            Step::Write(seconds) if self.known[PRIMARY].written.is_none() => self.put(READER, seconds),
            Step::Write(_) | Step::Leave => {}
        }
    }

    fn outlives(&self) -> Option<String> {
        let gone = self.kernel.gone();
        let late = |which: usize| {
            let deadline = self.known[which].deadline?;
            let over = at(gone[which]).boot.saturating_sub(deadline.boot);
            (!over.is_zero()).then(|| format!("{which} outlives by {over:?} at {}", self.now))
        };
        late(PRIMARY).or_else(|| late(READER))
    }
}

#[test]
fn one_that_is_written_by_itself_keeps_the_other_past_the_lease() {
    let mut kernel = Kernel::new(0);
    kernel.write(PRIMARY, 0, 1);
    kernel.write(READER, 900, 1);
    assert_eq!(kernel.gone(), [1_900, 1_900], "of a lease of 1.3 s");
    let mut host = Host::new(0);
    host.known[PRIMARY].deadline = Some(at(1_300));
    host.primary_runs();
    host.now = 900;
    host.known[READER].deadline = Some(at(900 + 2_500));
    host.reader_runs();
    assert_eq!(host.kernel.gone(), [1_000, 0], "it waits for the next renewal");
    host.known[PRIMARY].deadline = Some(at(900 + 1_300));
    host.primary_runs();
    assert_eq!(host.kernel.gone(), [1_900, 1_900]);
    // Of no confirmation enough is left to write it anew: it goes.
    host.now = 1_800;
    host.known[READER].deadline = Some(at(2_200));
    host.known[PRIMARY].deadline = Some(at(1_800 + 1_300));
    host.primary_runs();
    assert_eq!(host.kernel.gone(), [2_800, 0]);
}

#[derive(Debug, Clone)]
enum Event {
    Renewed,
    /// By an answer to what was asked so long ago.
    Confirmed(u64),
    PrimaryRuns,
    ReaderRuns,
    Serving(usize, Serving),
    /// It is held no more.
    Released,
}

fn event() -> impl Strategy<Value = (u64, Event)> {
    let serving = prop_oneof![2 => Just(Serving::Open), 1 => Just(Serving::Keep), 1 => Just(Serving::Shut)];
    let event = prop_oneof![
        4 => Just(Event::Renewed),
        4 => (0_u64..900).prop_map(Event::Confirmed),
        2 => Just(Event::PrimaryRuns),
        2 => Just(Event::ReaderRuns),
        1 => (0_usize..2, serving).prop_map(|(which, serving)| Event::Serving(which, serving)),
        1 => Just(Event::Released),
    ];
    (0_u64..700, event)
}

proptest! {
    /// Whenever agent and guard are killed, the kernel ends each before the lease, or the confirmation, of it does.
    #[test]
    fn of_both_on_one_host_neither_outlives_what_it_is_there_by(
        hold in 1_280_u64..9_000,
        late in 0_u64..=250,
        events in prop::collection::vec(event(), 1..80),
    ) {
        let life = hold.max(2_500);
        let mut host = Host::new(late);
        for (pause, event) in events {
            // Both threads run while they may.
            for _ in 0..(pause / 50) {
                host.now += 50;
                host.kernel.goes_on(host.now);
                host.primary_runs();
                host.reader_runs();
                prop_assert_eq!(host.outlives(), None);
            }
            host.now += pause % 50;
            host.kernel.goes_on(host.now);
            match event {
                Event::Renewed => host.known[PRIMARY].deadline = Some(at(host.now + hold)),
                Event::Confirmed(ago) => {
                    let known = host.known[READER].deadline.map_or(Duration::ZERO, |deadline| deadline.boot);
                    let until = at((host.now + life).saturating_sub(ago));
                    if until.boot > known {
                        host.known[READER].deadline = Some(until);
                    }
                }
                Event::PrimaryRuns => host.primary_runs(),
                Event::ReaderRuns => host.reader_runs(),
                Event::Serving(which, serving) => host.known[which].serving = serving,
                Event::Released => {
                    host.known[PRIMARY].deadline = None;
                    host.remove(PRIMARY);
                }
            }
            prop_assert_eq!(host.outlives(), None);
        }
    }
}
