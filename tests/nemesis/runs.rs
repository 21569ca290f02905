//! The runs: a short list, every fault three times, and a random soak.

use std::{
    collections::BTreeMap,
    env,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use crate::{
    dice::Dice,
    faults::{Fault, Kind, Target, catalogue},
    history,
    hosts::{Proc, Wanted},
    report::{self, Broken, Record, Verdict},
    rounds::{Place, Stage, keep_logs},
};

/// A soak is at least this long.
const SOAK: u64 = 300;
/// A cluster is played on this often in a soak, then a new one is raised.
const ROUNDS_OF_A_CLUSTER: u64 = 25;

/// One cluster at a time: its times are measured, and its end kills every descendant.
static ALONE: Mutex<()> = Mutex::new(());

/// Nobody else plays while this is held. `None`, with a message, for who is not root.
pub fn alone() -> Option<MutexGuard<'static, ()>> {
    if !nix::unistd::geteuid().is_root() {
        say("passed over: network namespaces need root");
        return None;
    }
    Some(ALONE.lock().unwrap_or_else(|e| e.into_inner()))
}

/// Past the runner's capture: the figures are wanted from runs that pass, too.
pub fn say(line: impl AsRef<str>) {
    let _ = writeln!(std::io::stderr(), "nemesis: {}", line.as_ref());
}

/// A number from the environment.
pub fn number(name: &str) -> Option<f64> {
    let text = env::var(name).ok().filter(|t| !t.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// `SEED`, or one of this run; printed either way.
pub fn seed() -> u64 {
    let given = env::var("SEED").ok().and_then(|s| s.parse().ok());
    let seed = given.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0 >> 40);
    say(format!("SEED={seed}"));
    seed
}

/// Where the JSON lines go.
pub fn log() -> PathBuf {
    let usual = || Path::new(env!("CARGO_TARGET_TMPDIR")).join("nemesis").join("rounds.jsonl");
    env::var_os("NEMESIS_LOG").map_or_else(usual, PathBuf::from)
}

/// `SETTINGS=replication_mode=quorum,sync_strict=true,n3:replicatefrom=n2`: the last is a key of member n3.
fn settings() -> Vec<String> {
    let given = env::var("SETTINGS").unwrap_or_default();
    given.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect()
}

/// `MEMBERS=5`
pub fn members() -> Option<usize> {
    let members = number("MEMBERS").map(|n| n as usize);
    assert!(members.is_none_or(|n| (3..=9).contains(&n)), "MEMBERS={members:?}: three at least");
    members
}

/// Where the history of a round goes. Those of rounds that pass are removed unless `KEEP_LOGS` is set.
pub fn history(place: &Place) -> PathBuf {
    log().with_file_name("histories").join(format!("{}-{}-{}.jsonl", place.run, place.seed, place.round))
}

/// The cluster that the environment asks for.
pub fn wanted(clocks: bool, as_units: bool) -> Wanted {
    Wanted {
        profile: env::var("PROFILE").unwrap_or_else(|_| "normal".to_owned()),
        members: members().unwrap_or(3),
        clocks,
        as_units,
        writers: false,
        config: env::var("NEMESIS_CONFIG").unwrap_or_default(),
        settings: settings(),
    }
}

/// The faults whose names contain one of the words of `FAULTS`; all of them when it is unset or a number.
pub fn selected(faults: Vec<Fault>) -> Vec<Fault> {
    let words = env::var("FAULTS").unwrap_or_default();
    if words.is_empty() || words.parse::<u64>().is_ok() {
        return faults;
    }
    let found: Vec<Fault> =
        faults.into_iter().filter(|f| words.split(',').any(|w| f.to_string().contains(w.trim()))).collect();
    assert!(!found.is_empty(), "FAULTS={words} selects no fault");
    found
}

/// One of those that can be played on such a cluster.
pub fn one_of(faults: &[Fault], dice: &mut Dice, ground: Ground) -> Fault {
    let possible: Vec<&Fault> = faults.iter().filter(|f| ground.clocks || !f.needs_clocks()).collect();
    *possible[dice.below(possible.len() as u64) as usize]
}

/// What kind of cluster a fault needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ground {
    /// Its wall clocks can be shifted.
    pub clocks: bool,
    /// See [`Wanted::as_units`].
    pub as_units: bool,
}

impl Ground {
    /// Every second cluster of a random run has clocks that can be shifted, every second pair of them is a plain user's.
    pub fn of_round(round: u64) -> Ground {
        let cluster = round / ROUNDS_OF_A_CLUSTER;
        Ground { clocks: cluster % 2 == 1, as_units: (cluster / 2).is_multiple_of(2) }
    }
}

/// Plays rounds, raises clusters as they are needed, and keeps what was seen.
pub struct Player {
    run: String,
    /// Its seed.
    pub seed: u64,
    wanted: Wanted,
    stage: Option<(Stage, Ground)>,
    /// The rounds that came to a verdict.
    pub records: Vec<Record>,
    broken: Vec<String>,
}

impl Player {
    fn new(run: &str, seed: u64) -> Player {
        Player::of(run, seed, wanted(false, true))
    }

    /// One that plays on such clusters, but for their ground.
    pub fn of(run: &str, seed: u64, wanted: Wanted) -> Player {
        Player { run: run.to_owned(), seed, wanted, stage: None, records: Vec::new(), broken: Vec::new() }
    }

    /// Takes the rounds that are in the file already.
    pub fn resume(&mut self) {
        self.records = report::load(&log(), &self.run, self.seed);
    }

    /// Random rounds up to `count`, each drawn from the seed and its number, so that a run that was stopped goes on where
    /// it was. `draw` takes the fault of a round.
    pub fn random(&mut self, count: u64, draw: impl Fn(&mut Dice, Ground) -> Fault) {
        self.resume();
        let end = number("MINUTES").map(|m| Instant::now() + Duration::from_secs_f64(m * 60.0));
        for round in 0..count {
            if self.records.iter().any(|r| r.round == round) {
                continue;
            }
            if end.is_some_and(|end| Instant::now() > end) {
                say(format!("time is up: {} of {count} rounds are done", self.records.len()));
                break;
            }
            if round % ROUNDS_OF_A_CLUSTER == 0 {
                self.stage = None;
            }
            let mut dice = Dice::new(self.seed.wrapping_mul(1_000_003).wrapping_add(round));
            let ground = Ground::of_round(round);
            let fault = draw(&mut dice, ground);
            let hold = fault.random_hold(&mut dice);
            self.play(&fault, hold, ground, round);
        }
    }

    fn stage(&mut self, ground: Ground) -> anyhow::Result<&Stage> {
        if self.stage.as_ref().is_none_or(|(_, has)| *has != ground) {
            self.stage = None;
            let began = Instant::now();
            let stage =
                Stage::raise(&Wanted { clocks: ground.clocks, as_units: ground.as_units, ..self.wanted.clone() })?;
            say(format!("a new cluster after {:.1} s", began.elapsed().as_secs_f64()));
            self.stage = Some((stage, ground));
        }
        Ok(self.stage.as_ref().map(|(stage, _)| stage).expect("it was just raised"))
    }

    /// One round. What went wrong is kept; the next round gets a new cluster then.
    pub fn play(&mut self, fault: &Fault, hold: Duration, ground: Ground, round: u64) {
        let place = Place { run: self.run.clone(), seed: self.seed, round };
        let mut dice = Dice::new(self.seed ^ (round << 32));
        let played = self.stage(ground).and_then(|stage| stage.play(fault, hold, &place, &mut dice));
        let good = match played {
            Ok(record) => {
                say(record.sentence());
                report::append(&log(), &record).unwrap();
                let good = record.verdict != Verdict::Fail;
                self.records.push(record);
                good
            }
            Err(e) => {
                let text = format!("{round} {fault} for {hold:?}: BROKEN: {e:#}");
                report::append(&log(), &Broken::new(&place, fault, &e)).unwrap();
                say(&text);
                self.broken.push(text);
                if let Some((stage, _)) = &self.stage {
                    // Without what is there at the end: all that was acknowledged will look lost in it.
                    let kept = history::write(&history(&place), &stage.workload.txns(), &BTreeMap::new());
                    say(format!("    its history: {kept:?}"));
                }
                false
            }
        };
        if good && env::var_os("KEEP_LOGS").is_none() {
            let _ = std::fs::remove_file(history(&place));
        }
        if !good || env::var_os("KEEP_LOGS").is_some() {
            let stage = if good { None } else { self.stage.take() };
            if let Some((stage, _)) = stage.as_ref().or(self.stage.as_ref()) {
                let dir = format!("{}-{}-{round}-{}", self.run, self.seed, fault.to_string().replace('/', "-"));
                let to = log().with_file_name(dir);
                keep_logs(&stage.hosts, &to);
                say(format!("    logs are kept in {}", to.display()));
            }
        }
    }

    /// How often a round came to no verdict, in earlier runs too.
    pub fn broken(&self) -> usize {
        report::broken(&log(), &self.run, self.seed).len()
    }

    /// Fails unless every round passed.
    pub fn conclude(mut self) {
        self.stage = None;
        if self.records.len() > 12 {
            say(format!("\n{}", report::summary(&self.records)));
        }
        let bad: Vec<String> =
            self.records.iter().filter(|r| r.verdict != Verdict::Pass).map(Record::sentence).collect();
        let count = self.records.len() + self.broken.len();
        assert!(count > 0, "no round was played");
        for earlier in report::broken(&log(), &self.run, self.seed) {
            let (round, fault) = (earlier.round, &earlier.fault);
            say(format!("round {round}, {fault}, was broken with {}: {}", earlier.build, earlier.broken));
        }
        assert!(
            bad.is_empty() && self.broken.is_empty(),
            "SEED={}: {} of {count} rounds did not pass\n{}\n{}",
            self.seed,
            bad.len() + self.broken.len(),
            bad.join("\n"),
            self.broken.join("\n")
        );
    }
}

/// What is in `make test`: the faults that a fence is made for.
#[test]
fn short_list() {
    let Some(_alone) = alone() else { return };
    let fault = |kind, seconds| Fault { kind, target: Target::Primary, hold: Duration::from_secs(seconds) };
    let list = [
        fault(Kind::CutBoth, 7),
        fault(Kind::CutIn, 7),
        fault(Kind::Stop(&[Proc::Agent, Proc::Guard]), 8),
        fault(Kind::Freeze, 10),
    ];
    let mut player = Player::new("short", seed());
    for (round, fault) in selected(list.to_vec()).iter().enumerate() {
        player.play(fault, fault.hold, Ground { clocks: false, as_units: true }, round as u64);
    }
    player.conclude();
}

/// The catalogue from its beginning to its end, three times. Continues where a run with that seed stopped.
#[test]
#[ignore = "hours: make proof"]
fn every_fault_three_times() {
    let Some(_alone) = alone() else { return };
    let runs = number("RUNS").map_or(3, |n| n as u64);
    let mut faults = selected(catalogue());
    // Those that need shifted clocks share a cluster.
    faults.sort_by_key(Fault::needs_clocks);
    let mut player = Player::new("list", seed());
    player.resume();
    let end = number("MINUTES").map(|m| Instant::now() + Duration::from_secs_f64(m * 60.0));
    for run in 0..runs {
        for (index, fault) in faults.iter().enumerate() {
            let round = run * faults.len() as u64 + index as u64;
            if player.records.iter().any(|r| r.round == round) {
                continue;
            }
            if end.is_some_and(|end| Instant::now() > end) {
                say(format!("time is up: {} of {} rounds are done", player.records.len(), faults.len() as u64 * runs));
                return player.conclude();
            }
            // The first run as systemd's units have it, the second as a plain user's, and so on.
            let ground = Ground { clocks: fault.needs_clocks(), as_units: run % 2 == 0 };
            player.play(fault, fault.hold, ground, round);
        }
    }
    player.conclude();
}

/// Random faults for random times, one after the other. Every round is drawn from the seed and its number, so
/// that a run that was stopped goes on where it was.
#[test]
#[ignore = "hours: make proof"]
fn soak() {
    let Some(_alone) = alone() else { return };
    let count = env::var("FAULTS").ok().and_then(|f| f.parse().ok()).unwrap_or(SOAK);
    let faults = selected(catalogue());
    let mut player = Player::new("soak", seed());
    player.random(count, |dice, ground| one_of(&faults, dice, ground));
    player.conclude();
}
