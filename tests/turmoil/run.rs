//! One seed: a group is founded, things go wrong, everything must heal.

use std::{
    collections::BTreeMap,
    env, panic,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use turmoil::Sim;

use crate::{
    chance,
    chaos::{Chaos, Kinds, LATENCY},
    dice::Dice,
    disk::{Disk, Lie},
    host::{self, HEALED_WITHIN, Seat, Shared, name},
    promises::Chronicle,
};

/// Time goes on in steps of so many milliseconds, one of these for each seed; a message needs one step at least.
const TICKS_MS: [u64; 3] = [2, 5, 8];

/// A bug that is put in on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mutation {
    #[default]
    None,
    /// The disk says it has synced and has not.
    FsyncLies,
    /// The disk does that with votes only.
    VotesNotSynced,
    /// Writes are acknowledged before the sync that makes them safe.
    SyncOneLate,
    /// A host that lost its disk comes back under its old number.
    SameNumber,
}

impl Mutation {
    pub const ALL: [Mutation; 5] =
        [Mutation::None, Mutation::FsyncLies, Mutation::VotesNotSynced, Mutation::SyncOneLate, Mutation::SameNumber];

    fn named(name: &str) -> Mutation {
        *Self::ALL.iter().find(|m| format!("{m:?}") == name).unwrap_or_else(|| panic!("{name} is no mutation"))
    }
}

/// What is run.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub seed: u64,
    pub mutation: Mutation,
    /// Three seconds of faults only.
    pub short: bool,
}

impl Plan {
    pub fn chaos(seed: u64) -> Self {
        Self { seed, mutation: Mutation::None, short: false }
    }
}

/// What came of it.
#[derive(Debug, Default, Clone)]
pub struct Report {
    pub broken: Option<String>,
    pub counts: BTreeMap<String, u64>,
    pub fingerprint: u64,
    /// Virtual time.
    pub virtual_ms: u64,
    /// CPU time of the process.
    pub cpu_ms: u64,
}

static PANICKED: Mutex<Option<String>> = Mutex::new(None);

struct World<'a> {
    sim: Sim<'a>,
    shared: Arc<Shared>,
    seen: Chronicle,
}

impl Plan {
    fn world(self) -> World<'static> {
        let mut dice = Dice::new(self.seed);
        let size = if dice.one_in(3) { 5 } else { 3 };
        let tick = Duration::from_millis(TICKS_MS[dice.below(TICKS_MS.len())]);
        let lie = match self.mutation {
            Mutation::FsyncLies => Lie::Sync,
            Mutation::VotesNotSynced => Lie::Vote,
            Mutation::SyncOneLate => Lie::OneLate,
            Mutation::None | Mutation::SameNumber => Lie::None,
        };
        let seat = |host| Arc::new(Seat::new(host, Disk::new(lie, Dice::new(self.seed ^ (host << 32)))));
        let shared = Arc::new(Shared {
            seed: self.seed,
            seats: (1..=size).map(seat).collect(),
            notes: Mutex::default(),
            wanted: Mutex::new((1..=size).collect()),
            quiet: Mutex::new(false),
        });
        let mut sim = turmoil::Builder::new()
            .tick_duration(tick)
            .simulation_duration(Duration::from_secs(3_600))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(LATENCY)
            .tcp_capacity(4_096)
            .repair_rate(0.05)
            .rng_seed(self.seed)
            .enable_random_order()
            .build();
        for seat in &shared.seats {
            let (shared, seat) = (Arc::clone(&shared), Arc::clone(seat));
            sim.host(name(seat.host), move || host::run(Arc::clone(&shared), Arc::clone(&seat)));
        }
        // The code's own suspicion of a node that forgot something is no failure where every disk forgets.
        let nobody_forgets = matches!(self.mutation, Mutation::None | Mutation::SameNumber);
        let seen = Chronicle::new(Arc::clone(&shared), nobody_forgets);
        World { sim, shared, seen }
    }
}

impl World<'_> {
    fn step(&mut self) -> Result<Duration, String> {
        self.sim.step().map_err(|e| format!("nobody gives up: a host ended: {e}"))?;
        let at = self.sim.elapsed();
        if let Some(what) = PANICKED.lock().unwrap().take() {
            return Err(format!("nobody gives up: a panic: {what}"));
        }
        self.seen.look(at)?;
        Ok(at)
    }

    fn play(&mut self, plan: Plan) -> Result<(), String> {
        let mut dice = Dice::new(plan.seed ^ 0xC4A0_5000);
        let troubled = Duration::from_secs(if plan.short { 3 } else { dice.between(10, 20) });
        let same_number = plan.mutation == Mutation::SameNumber;
        let kinds = Kinds { replaces: same_number || dice.one_in(2), same_number };
        let mut chaos = Chaos::new(Arc::clone(&self.shared), dice, kinds);
        loop {
            let at = self.step()?;
            if at >= troubled {
                break;
            }
            chaos.step(&mut self.sim, &mut self.seen, at);
        }
        let at = self.sim.elapsed();
        self.seen.note(at, "the faults end");
        chaos.end(&mut self.sim, &mut self.seen, at);
        self.it_heals(at)?;
        self.seen.nothing_acknowledged_is_missing()
    }

    /// After the faults the group leads, commits, and everybody has everything, in bounded time.
    fn it_heals(&mut self, since: Duration) -> Result<(), String> {
        let wanted = self.shared.wanted.lock().unwrap().clone();
        let before = self.seen.last_committed();
        let mut last = "nothing is committed".to_owned();
        while self.sim.elapsed() < since + HEALED_WITHIN {
            let at = self.step()?;
            // Clients write until everybody is there, and then hold still so that all can be compared.
            match self.seen.is_settled(&wanted) {
                Ok(()) if self.seen.last_committed() > before => {
                    if *self.shared.quiet.lock().unwrap() {
                        self.seen.note(at, "all have everything");
                        let took = (at - since).as_millis();
                        self.seen.counts.insert("ms to heal", u64::try_from(took).unwrap());
                        return Ok(());
                    }
                    *self.shared.quiet.lock().unwrap() = true;
                }
                Ok(()) => {}
                Err(why) => {
                    last = why;
                    let long = at > since + HEALED_WITHIN / 2 && self.seen.last_committed() > before;
                    *self.shared.quiet.lock().unwrap() = long;
                }
            }
        }
        Err(format!("it heals: not within {HEALED_WITHIN:?}: {last}"))
    }
}

/// Plays one seed in this process, on a thread whose chance begins with the seed.
fn play(plan: Plan) -> (Report, Vec<String>) {
    panic::set_hook(Box::new(|info| {
        eprintln!("{info}");
        PANICKED.lock().unwrap().get_or_insert(info.to_string());
    }));
    chance::begin(plan.seed);
    let run = std::thread::spawn(move || {
        let mut world = plan.world();
        let broken = world.play(plan).err();
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        let lost: u64 = world.shared.seats.iter().map(|s| s.disk.lost()).sum();
        counts.insert("unsynced writes lost".to_owned(), lost);
        for (what, n) in world.seen.counts.iter().chain(&world.shared.notes().counts) {
            *counts.entry((*what).to_owned()).or_default() += n;
        }
        let virtual_ms = u64::try_from(world.sim.elapsed().as_millis()).unwrap();
        let report = Report { broken, counts, fingerprint: world.seen.fingerprint(), virtual_ms, cpu_ms: 0 };
        (report, std::mem::take(&mut world.seen.trace))
    });
    run.join().unwrap_or_else(|_| {
        let broken = PANICKED.lock().unwrap().take().or_else(|| Some("a panic".to_owned()));
        (Report { broken, ..Report::default() }, Vec::new())
    })
}

fn cpu_ms() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap();
    u64::try_from(now.tv_sec() * 1_000 + now.tv_nsec() / 1_000_000).unwrap()
}

/// What the child of [`one`] does: plays the seed, and prints what came of it.
pub fn as_child(seed: u64) {
    let mutation = env::var("TURMOIL_MUTATION").map_or(Mutation::None, |name| Mutation::named(&name));
    if env::var("TURMOIL_LOG").is_ok() {
        tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_ansi(false).init();
    }
    let (report, trace) = play(Plan { seed, mutation, short: env::var("TURMOIL_SHORT").is_ok() });
    let shown = if env::var("TURMOIL_TRACE").is_ok() { trace.len() } else { 60 };
    if report.broken.is_some() || env::var("TURMOIL_TRACE").is_ok() {
        for line in &trace[trace.len().saturating_sub(shown)..] {
            println!("{line}");
        }
    }
    // The runner has begun a line of its own.
    println!();
    for (what, n) in &report.counts {
        println!("count\t{what}\t{n}");
    }
    println!("fingerprint\t{}", report.fingerprint);
    println!("virtual\t{}", report.virtual_ms);
    println!("cpu\t{}", cpu_ms());
    if let Some(broken) = &report.broken {
        println!("broken\t{}", broken.replace('\n', " "));
    }
    println!("end");
}

/// Plays one seed in a process of its own: then nothing that went before has a part in it.
pub fn one(plan: Plan) -> Report {
    let mut child = Command::new(env::current_exe().unwrap());
    child.args(["--exact", "one_seed", "--nocapture", "--test-threads=1"]);
    child.env("TURMOIL_SEED", plan.seed.to_string()).env("TURMOIL_MUTATION", format!("{:?}", plan.mutation));
    if plan.short {
        child.env("TURMOIL_SHORT", "1");
    }
    let child = child.output().unwrap();
    let text = String::from_utf8_lossy(&child.stdout).into_owned();
    let mut report = Report::default();
    let mut ended = false;
    for line in text.lines() {
        let words: Vec<&str> = line.split('\t').collect();
        match words.as_slice() {
            ["count", what, n] => drop(report.counts.insert((*what).to_owned(), n.parse().unwrap())),
            ["fingerprint", n] => report.fingerprint = n.parse().unwrap(),
            ["virtual", n] => report.virtual_ms = n.parse().unwrap(),
            ["cpu", n] => report.cpu_ms = n.parse().unwrap(),
            ["broken", what] => report.broken = Some((*what).to_owned()),
            ["end"] => ended = true,
            _ => {}
        }
    }
    if !ended {
        report.broken = Some(format!("the process ended early: {}", child.status));
    }
    if let Some(broken) = &report.broken {
        let errors = String::from_utf8_lossy(&child.stderr);
        report.broken = Some(format!("{broken}\n{}\n{errors}", text.trim_end()));
    }
    report
}
