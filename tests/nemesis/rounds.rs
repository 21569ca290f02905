//! One round: a healthy cluster under writes, one fault, its end, a healthy
//! cluster again, and what the clients' memory and the rows say.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use matriarch::{
    demo::rig::Role,
    domain::timings::{Profile, Timings},
    rpc::v1::StatusReply,
};

use crate::{
    checker::{self, Ack, Excuse, Lost, Overlap},
    confirmers::writes_go_on,
    dice::Dice,
    faults::{Change, Done, Fault, Kind, Limits},
    history::{self, End, Finding, Lists, Op, Terms, Txn},
    hosts::{Hosts, Wanted},
    report::{Appends, Record, Verdict},
    workload::{Attempt, Commit, Life, Micros, Outcome, Route, Workload, now},
};

/// Until all members are healthy again; a clone and a few retries fit in.
const HEAL: Duration = Duration::from_secs(60);
/// Writes go on after this long at the latest, once the fault is over.
const SOON: Duration = Duration::from_secs(60);
/// Nobody is without an acknowledgement for longer than this at the client's router: while the fault lasts where writes have
/// to go on, after its end elsewhere. A failover takes 4 s; a busy machine, and a standby that doesn't answer
/// and is waited for (`replication`, 10 s), come on top.
const RESUMED: Duration = Duration::from_secs(30);
/// Writes are watched this long before the fault.
const BEFORE: Duration = Duration::from_secs(1);
/// All must be well for this long: the first answers after a short fault may be from before it.
const SETTLED: Duration = Duration::from_millis(1_500);
/// What was begun before the end of a round gets this long.
const PATIENCE: Duration = Duration::from_secs(4);
/// Standbys stream: what was acknowledged longer ago than this is theirs, however busy the machine.
const STREAMED: Micros = 5_000_000;

/// Timings of a profile.
pub fn timings(profile: &str) -> Timings {
    Timings::of(profile.parse::<Profile>().expect("the profile has been used already"))
}

/// A cluster with its clients.
pub struct Stage {
    /// The cluster.
    pub hosts: Hosts,
    /// Its clients.
    pub workload: Workload,
    wanted: Wanted,
    limits: Limits,
}

/// Which round of which run.
#[derive(Debug, Clone)]
pub struct Place {
    /// Name of the run.
    pub run: String,
    /// Its seed.
    pub seed: u64,
    /// From 0.
    pub round: u64,
}

/// What a round collects until it is judged.
struct Seen {
    before: StatusReply,
    after: StatusReply,
    done: Done,
    hold: Duration,
    undone_at: Micros,
    healed_at: Micros,
    heal: Duration,
    effect: Result<String, String>,
    attempts: Vec<Attempt>,
    rows: HashSet<(String, i64)>,
    txns: Vec<Txn>,
    lists: Lists,
    took: Duration,
    complaints: Vec<String>,
    log_problems: Vec<String>,
    phases: Vec<String>,
}

/// An acknowledgement of the host's server in the life, or on the timeline, that was begun by hand, to a session that
/// leaves synchronous_commit as it is. Until the fault is undone nobody else starts or promotes that server.
fn by_hand<'a>(fault: &Fault, seen: &Seen, acks: &'a [Ack<'a>]) -> Option<&'a Ack<'a>> {
    if !matches!(fault.kind, Kind::HandStart | Kind::HandStartPromote | Kind::HandPromote) {
        return None;
    }
    let (from, to) = (seen.done.at, seen.undone_at);
    let of_host = |a: &&Ack<'_>| a.client.host == seen.done.host && a.client.route != Route::Router;
    let before: BTreeSet<_> = acks.iter().filter(of_host).filter(|a| a.received < from).map(|a| &a.life).collect();
    let waits = |a: &&Ack<'_>| a.client.commit == Commit::On && (from..to).contains(&a.received);
    acks.iter().filter(of_host).filter(waits).find(|a| !before.contains(&a.life))
}

/// What a server acknowledged in a documented hole while another one did.
struct Stale {
    /// To sessions as configured over TCP, over a unix socket, and to the others.
    counts: (usize, usize, usize),
    /// The last of them.
    until: Option<Micros>,
    /// Two writers beyond the documented holes.
    unexcused: Option<Overlap>,
}

/// Where the time of a round goes.
struct Clock {
    began: Instant,
    last: Instant,
    laps: Vec<String>,
}

impl Clock {
    fn new() -> Clock {
        Clock { began: Instant::now(), last: Instant::now(), laps: Vec::new() }
    }

    fn lap(&mut self, name: &str) {
        self.laps.push(format!("{name} {:.1}", self.last.elapsed().as_secs_f64()));
        self.last = Instant::now();
    }
}

impl Stage {
    /// A new cluster, healthy, with clients at rest.
    ///
    /// # Errors
    /// It doesn't become healthy.
    pub fn raise(wanted: &Wanted) -> Result<Stage> {
        let hosts = Hosts::raise(wanted)?;
        let primary = hosts.rig.healthy(HEAL)?.primary;
        if !wanted.settings.is_empty() {
            hosts.set(&wanted.settings)?;
        }
        hosts.confirmed(HEAL)?;
        let workload = Workload::start(&hosts.rig, &primary)?;
        let t = timings(&wanted.profile);
        let limits = Limits { hold: t.hold, kill: t.kill, renew: t.renew, probe: t.probe, kernel_lease: false };
        Ok(Stage { hosts, workload, wanted: wanted.clone(), limits })
    }

    /// Plays one fault. The cluster is healthy before and, unless this fails, after it.
    ///
    /// # Errors
    /// The round could not be played to its end: the cluster is of no use any more.
    pub fn play(&self, fault: &Fault, hold: Duration, place: &Place, dice: &mut Dice) -> Result<Record> {
        let mut clock = Clock::new();
        let host = fault.aim(&self.hosts, dice)?;
        self.hosts.confirmed(HEAL)?;
        let before = self.hosts.rig.healthy(HEAL)?;
        let logs = LogMarks::new(&self.hosts);
        self.workload.begin(place.round);
        self.all_write(&before.primary, now())?;
        clock.lap("ready");
        thread::sleep(BEFORE);

        let done = fault.inject(&self.hosts, &host, dice)?;
        // Some take their time to be done, like a restart by hand.
        let spent = Duration::from_micros(now() - done.at);
        thread::sleep(hold.saturating_sub(spent));
        let (undone_at, effect) = done.undo(&self.hosts, dice)?;
        let effect = effect.map(|seen| format!("{}; {seen}", done.effect));
        let healed_at = now();
        clock.lap("fault");
        let mut complaints = Vec::new();
        if self.workload.acked_since(Route::Router, "client", healed_at, SOON).is_none() {
            complaints.push(format!("no write through the router was acknowledged within {SOON:?} after the fault"));
        }
        clock.lap("write");
        self.settle()?;
        self.hosts.confirmed(HEAL)?;
        clock.lap("healthy");
        let heal = Duration::from_micros(now() - healed_at).saturating_sub(SETTLED);
        self.workload.rest(PATIENCE)?;
        clock.lap("rest");
        let after = self.settle()?;
        clock.lap("settled");
        let (rows, lists) = self.compare_rows(&after.primary, place.round, &mut complaints)?;
        let txns = self.workload.txns();
        history::write(&crate::runs::history(place), &txns, &lists)?;
        clock.lap("rows");
        let log_problems = logs.problems(&self.hosts);
        let attempts = self.workload.attempts();
        let (phases, took) = (clock.laps, clock.began.elapsed());
        let seen = Seen {
            before,
            after,
            done,
            hold,
            undone_at,
            healed_at,
            heal,
            effect,
            attempts,
            rows,
            txns,
            lists,
            took,
            complaints,
            log_problems,
            phases,
        };
        let record = self.judge(fault, place, seen);
        self.hosts
            .rig
            .query(&record.primary.1, "truncate nemesis_writes, nemesis_lists")
            .context("empty the tables")?;
        Ok(record)
    }

    /// The sessions on the primary and those through the routers write before anything is broken.
    fn all_write(&self, primary: &str, since: Micros) -> Result<()> {
        let mut wanted = vec![(Route::Local, primary.to_owned()), (Route::Direct, primary.to_owned())];
        wanted.extend(self.hosts.rig.members().into_iter().chain(["client".to_owned()]).map(|h| (Route::Router, h)));
        for (route, host) in wanted {
            let found = self.workload.acked_since(route, &host, since, SOON);
            ensure!(
                found.is_some(),
                "no {route:?} client of {host} is acknowledged: {:?}; {:?}",
                self.workload.errors(),
                self.hosts.rig.status()
            );
        }
        Ok(())
    }

    /// Waits until all has been well for a while.
    fn settle(&self) -> Result<StatusReply> {
        let began = Instant::now();
        loop {
            self.hosts.rig.healthy(HEAL.saturating_sub(began.elapsed()))?;
            thread::sleep(SETTLED);
            let status = self.hosts.rig.healthy(HEAL.saturating_sub(began.elapsed()))?;
            if self.hosts.rig.well_for() >= Some(SETTLED) {
                return Ok(status);
            }
        }
    }

    /// The rows of the round, and the lists, on the primary. Each standby must have the very same, once it has replayed as far.
    fn compare_rows(
        &self,
        primary: &str,
        round: u64,
        complaints: &mut Vec<String>,
    ) -> Result<(HashSet<(String, i64)>, Lists)> {
        let rig = &self.hosts.rig;
        // The end of a record that a commit flushes: the end of what is written may lie within one that nobody flushes.
        let end = rig.query(primary, "select pg_logical_emit_message(true, 'nemesis', '')")?.concat();
        let sql = format!(
            "select client || ' ' || seq from nemesis_writes where round = {round} union all \
             select key || '=' || array_to_string(list, ',') from nemesis_lists"
        );
        let rows: BTreeSet<String> = rig.query(primary, &sql)?.into_iter().collect();
        for standby in self.hosts.others(primary) {
            let reached = format!("select pg_last_wal_replay_lsn() >= '{end}'");
            let began = Instant::now();
            while rig.query(&standby, &reached)?.concat() != "t" {
                if began.elapsed() > SOON {
                    bail!("{standby} has not replayed up to {end} within {SOON:?}");
                }
                thread::sleep(Duration::from_millis(20));
            }
            let theirs: BTreeSet<String> = rig.query(&standby, &sql)?.into_iter().collect();
            if theirs != rows {
                let (more, less) = (theirs.difference(&rows).count(), rows.difference(&theirs).count());
                complaints.push(format!("{standby} has {more} rows that {primary} has not, and lacks {less}"));
            }
        }
        let split = |row: &String| row.split_once(' ').and_then(|(c, s)| Some((c.to_owned(), s.parse().ok()?)));
        let list = |row: &String| {
            let (key, list) = row.split_once('=')?;
            Some((key.parse().ok()?, list.split(',').filter_map(|v| v.parse().ok()).collect()))
        };
        Ok((rows.iter().filter_map(split).collect(), rows.iter().filter_map(list).collect()))
    }

    fn judge(&self, fault: &Fault, place: &Place, seen: Seen) -> Record {
        let clients = &self.workload.clients;
        let Seen { before, after, done, hold, healed_at, .. } = &seen;
        let disturbed: Vec<_> = done.disturbed(*healed_at).into_iter().collect();
        let mut acks = checker::acks(clients, &seen.attempts, &disturbed);
        let (hole, confirmed) = (self.hole(fault, &seen), self.hosts.mode.is_some());
        let any_hole = |a: &Ack| hole(&a.life, a.certain, a.client.route, a.client.commit);
        if confirmed {
            checker::told_late(&mut acks, any_hole);
        }
        // Who waits for standbys that have promised the next epoch is told nothing.
        let in_hole = |a: &Ack| any_hole(a) && !(confirmed && a.client.commit == Commit::On);
        let reigns = checker::reigns(&acks);
        let stale = stale(&acks, in_hole);
        let changed = before.epoch != after.epoch;
        let since = done.at.saturating_sub(STREAMED);
        let excuse = match fault.is_planned() {
            true => Excuse::None,
            false if confirmed => Excuse::Confirmed(since),
            false => Excuse::Replaced(since),
        };
        let lost = checker::lost(&acks, &seen.rows, excuse, in_hole);
        // A server that nobody could stop may be read, too.
        let read_in_hole = |life: &Life, at: Micros| hole(life, at, Route::Router, Commit::On);
        let findings = history::check(&seen.txns, &seen.lists, &Terms { excuse, in_hole: &read_in_hole });
        let appends = appends(&seen, &findings);
        let lag = self.workload.lag();

        let mut failures = seen.complaints.clone();
        let mut doubts = Vec::new();
        if let Some(overlap) = &stale.unexcused {
            let text =
                format!("two writers for {:.1} ms: {:?} and {:?}", ms(overlap.micros()), overlap.older, overlap.newer);
            // This process may have been late to look at its sockets.
            let list = if overlap.micros() > lag { &mut failures } else { &mut doubts };
            list.push(text);
        }
        for (anomaly, count) in &appends.anomalies {
            let first = findings.iter().find(|f| f.pardon.is_none() && format!("{:?}", f.anomaly) == *anomaly);
            let text = first.map(|f| f.text.clone()).unwrap_or_default();
            failures.push(format!("{count} × {anomaly} in the history: {text}"));
        }
        let goes_on = writes_go_on(fault, self.hosts.mode, self.wanted.members);
        let resumed = self.resumed(&acks, if goes_on { done.at } else { *healed_at });
        if resumed > RESUMED {
            let when = if goes_on { "from the beginning" } else { "after the end" };
            failures.push(format!(
                "nobody was acknowledged through the client's router for {resumed:?} {when} of the fault"
            ));
        }
        for one in lost.iter().filter_map(|l| Some((l.ack, l.unexcused()?))).take(1) {
            let all = lost.iter().filter(|l| l.judged.is_err()).count();
            failures.push(format!("{all} acknowledged rows are lost that must not be ({}): first {:?}", one.1, one.0));
        }
        if let Some(ack) = by_hand(fault, &seen, &acks).filter(|_| !(changed && fault.kind == Kind::HandPromote)) {
            failures
                .push(format!("a server started or promoted by hand acknowledged to a session that waits: {ack:?}"));
        }
        match (fault.change(*hold, &self.limits), changed) {
            (Change::Must, false) => failures.push("the epoch did not rise".to_owned()),
            (Change::MustNot, true) => failures.push("a failover that nobody needed".to_owned()),
            _ => {}
        }
        failures.extend(seen.log_problems.iter().cloned());
        let during = |a: &&Attempt| a.sent <= *healed_at && a.ended >= done.at;
        let routes = [Route::Local, Route::Direct, Route::Router];
        let attempts_during =
            routes.map(|r| seen.attempts.iter().filter(during).filter(|a| clients[a.client].route == r).count());
        let at_host = seen.attempts.iter().filter(during).filter(|a| clients[a.client].host == done.host).count();
        let acked = |from: Micros, to: Micros| acks.iter().filter(|a| a.received >= from && a.received < to).count();
        let acked = (acked(0, done.at), acked(done.at, *healed_at), acked(*healed_at, Micros::MAX));
        if let Err(why) = &seen.effect {
            doubts.push(format!("the fault was not effective: {why}"));
        }
        if acked.0 == 0 || acked.2 == 0 || attempts_during.contains(&0) || at_host == 0 {
            doubts.push(format!(
                "nothing was exercised: acknowledged {acked:?}, tried {attempts_during:?}, {at_host} of them at {}",
                done.host
            ));
        }
        if appends.acked.0 == 0 || appends.acked.2 == 0 || appends.reads == 0 {
            doubts.push(format!("no transactions before the fault, or none after it: {appends:?}"));
        }
        let verdict = match (failures.is_empty(), doubts.is_empty()) {
            (false, _) => Verdict::Fail,
            (true, false) => Verdict::Unknown,
            (true, true) => Verdict::Pass,
        };
        failures.extend(doubts);
        let count = |of: &Outcome| seen.attempts.iter().filter(|a| a.outcome == *of).count();
        let since = |at: Micros| (at as f64 - done.at as f64) / 1e3;
        Record {
            build: build(),
            run: place.run.clone(),
            seed: place.seed,
            round: place.round,
            at_s: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            fault: fault.to_string(),
            settings: self.wanted.settings.join(","),
            host: done.host.clone(),
            hold_ms: hold.as_millis() as u64,
            profile: self.wanted.profile.clone(),
            mode: self.hosts.mode.map(|m| m.to_string()).unwrap_or_default(),
            members: self.wanted.members,
            kill: kills_by(before, &done.host),
            kernel_lease: has_kernel_lease(before, &done.host),
            primary: (before.primary.clone(), after.primary.clone()),
            leader: (before.leader.clone(), after.leader.clone()),
            epoch: (before.epoch, after.epoch),
            effect: seen.effect.clone().unwrap_or_else(|e| e),
            acked,
            attempts_during: attempts_during.into(),
            attempts_at_host: at_host,
            not_acked: (count(&Outcome::Refused), count(&Outcome::Failed), count(&Outcome::Unknown)),
            gap_ms: ms(gap(&acks)),
            resumed_ms: resumed.as_secs_f64() * 1e3,
            goes_on,
            heal_ms: seen.heal.as_secs_f64() * 1e3,
            reigns: reigns
                .iter()
                .map(|r| {
                    let (life, first, last) = (&r.life, since(r.first), since(r.last));
                    format!("{} timeline {} {first:.1} … {last:.1} ms, {} acks", life.server, life.timeline, r.acked)
                })
                .collect(),
            two_writers_ms: ms(stale.unexcused.as_ref().map_or(0, Overlap::micros)),
            stale: stale.counts,
            stale_until_ms: stale.until.map(|at| (at as f64 - seen.undone_at as f64) / 1e3),
            late_deliveries: checker::late_deliveries(&acks),
            lost: (
                lost.iter().filter(|l| l.ack.client.commit == Commit::On).count(),
                lost.iter().filter(|l| l.ack.client.commit != Commit::On).count(),
            ),
            excused: excused(&lost, &findings),
            appends,
            lag_ms: ms(lag),
            errors: self.workload.errors(),
            phases_s: seen.phases.join(", "),
            took_s: seen.took.as_secs_f64(),
            verdict,
            reasons: failures,
        }
    }

    /// The longest time without an acknowledgement through the client's router, counted from a moment.
    fn resumed(&self, acks: &[Ack], from: Micros) -> Duration {
        let routed = |a: &&Ack| a.client.route == Route::Router && a.client.host == "client" && a.received >= from;
        let times: Vec<Micros> = [from].into_iter().chain(acks.iter().filter(routed).map(|a| a.received)).collect();
        Duration::from_micros(times.windows(2).map(|w| w[1].saturating_sub(w[0])).max().unwrap_or_default())
    }

    /// Whether a server answered such a session in a documented hole, which is one of the host that was hit.
    fn hole(&self, fault: &Fault, seen: &Seen) -> impl Fn(&Life, Micros, Route, Commit) -> bool + use<> {
        let limits = Limits { kernel_lease: has_kernel_lease(&seen.before, &seen.done.host), ..self.limits };
        let holes = fault.holes(seen.done.at, seen.undone_at, &limits);
        let hit = self.hosts.rig.contact(&seen.done.host).map(|c| c.address).unwrap_or_default();
        move |life, at, route, commit| {
            let by_route = if route == Route::Local { holes.local } else { holes.tcp };
            let hole = if commit == Commit::On { by_route } else { holes.own.or(by_route) };
            life.server == hit && hole.is_some_and(|(from, to)| at >= from && at <= to)
        }
    }
}

/// What looks wrong and is excused, by kind.
fn excused(lost: &[Lost], findings: &[Finding]) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    let rows = lost.iter().filter_map(|l| l.judged.ok()).map(|p| p.name());
    for name in rows.chain(findings.iter().filter_map(|f| f.pardon).map(|p| p.name())) {
        *all.entry(name.to_owned()).or_insert(0) += 1;
    }
    all
}

/// The transactions in numbers.
fn appends(seen: &Seen, findings: &[Finding]) -> Appends {
    let (at, healed) = (seen.done.at, seen.healed_at);
    let count = |end: End| seen.txns.iter().filter(|t| t.end == end).count();
    let good = || seen.txns.iter().filter(|t| t.end == End::Ok);
    let writing = || good().filter(|t| t.ops.iter().any(|op| matches!(op, Op::Append(..))));
    let acked = |from: Micros, to: Micros| writing().filter(|t| t.ended >= from && t.ended < to).count();
    let ops = || good().flat_map(|t| &t.ops);
    let mut anomalies = BTreeMap::new();
    for finding in findings.iter().filter(|f| f.pardon.is_none()) {
        *anomalies.entry(format!("{:?}", finding.anomaly)).or_insert(0) += 1;
    }
    Appends {
        txns: (count(End::Ok), count(End::Failed), count(End::Unknown)),
        values: ops().filter(|op| matches!(op, Op::Append(..))).count(),
        reads: ops().filter(|op| matches!(op, Op::Read(..))).count(),
        acked: (acked(0, at), acked(at, healed), acked(healed, Micros::MAX)),
        anomalies,
    }
}

/// Acknowledgements in a documented hole, and what is left of two writers without them.
fn stale(acks: &[Ack], in_hole: impl Fn(&Ack) -> bool) -> Stale {
    let (all, unexcused) = checker::past_holes(acks, in_hole);
    let count = |of: &dyn Fn(&Ack) -> bool| all.iter().filter(|a| of(a)).count();
    Stale {
        counts: (
            count(&|a| a.client.commit == Commit::On && a.client.route != Route::Local),
            count(&|a| a.client.commit == Commit::On && a.client.route == Route::Local),
            count(&|a| a.client.commit != Commit::On),
        ),
        until: all.iter().map(|a| a.certain).max(),
        unexcused,
    }
}

/// Copies the logs of every host to a directory, for whoever asks why.
pub fn keep_logs(hosts: &Hosts, to: &Path) {
    keep_logs_of(&hosts.rig, to);
}

/// See [`keep_logs`].
pub fn keep_logs_of(rig: &matriarch::demo::rig::Rig, to: &Path) {
    let _ = fs::remove_dir_all(to);
    for host in rig.members() {
        let Ok(dir) = rig.dir(&host) else { continue };
        let _ = fs::create_dir_all(to.join(&host));
        for file in [&dir, &dir.join("agent")].into_iter().flat_map(fs::read_dir).flatten().flatten() {
            if file.path().extension().is_some_and(|e| e == "log") {
                let _ = fs::copy(file.path(), to.join(&host).join(file.file_name()));
            }
        }
    }
    if std::env::var_os("KEEP_WAL").is_some() {
        for host in rig.members() {
            let (Ok(data), to) = (rig.data_dir(&host), to.join(&host)) else { continue };
            let mut copy = std::process::Command::new("cp");
            let _ = copy.arg("-a").args([data.join("pg_wal"), data.join("global/pg_control"), to]).status();
        }
    }
    let _ = fs::write(to.join("story.txt"), format!("{}\n{:#?}\n", rig.story().join("\n"), rig.status()));
}

fn ms(micros: Micros) -> f64 {
    micros as f64 / 1e3
}

/// The kernel lease protects that host, by its own word.
fn has_kernel_lease(status: &StatusReply, host: &str) -> bool {
    let member = status.members.iter().find(|m| m.member == host);
    member.is_some_and(|m| m.layers.iter().any(|l| l.name == "kernel lease" && l.state == "active"))
}

/// How the guard of that host kills, by its own word.
fn kills_by(status: &StatusReply, host: &str) -> String {
    let member = status.members.iter().find(|m| m.member == host);
    member.and_then(|m| m.fence.as_ref()).map(|f| f.method.clone()).unwrap_or_default()
}

/// The longest time between two acknowledgements, whoever gave them.
fn gap(acks: &[Ack]) -> Micros {
    let mut received: Vec<Micros> = acks.iter().map(|a| a.received).collect();
    received.sort_unstable();
    received.windows(2).map(|w| w[1] - w[0]).max().unwrap_or_default()
}

/// What is tested: `NEMESIS_BUILD`, or the version and profile of the tests, which is not always that of `MATRIARCH`.
pub fn build() -> String {
    if let Ok(named) = std::env::var("NEMESIS_BUILD") {
        return named;
    }
    format!("{} {}", env!("CARGO_PKG_VERSION"), if cfg!(debug_assertions) { "debug" } else { "release" })
}

/// Where each log ended when the round began.
struct LogMarks(Vec<(PathBuf, u64)>);

impl LogMarks {
    fn new(hosts: &Hosts) -> LogMarks {
        let rig = &hosts.rig;
        let roles = [Role::Agent, Role::Manager, Role::Router];
        let files = rig.members().into_iter().flat_map(|h| roles.map(|r| rig.log(&h, r)));
        LogMarks(files.flatten().map(|f| (f.clone(), fs::metadata(f).map_or(0, |m| m.len()))).collect())
    }

    /// Panics, and processes that gave up: no fault is an excuse for a bug.
    fn problems(&self, hosts: &Hosts) -> Vec<String> {
        let mut found = Vec::new();
        for (file, from) in &self.0 {
            let bytes = fs::read(file).unwrap_or_default();
            let text = String::from_utf8_lossy(bytes.get(*from as usize..).unwrap_or_default()).into_owned();
            for line in text.lines().filter(|l| l.contains("\"process.panic\"") || l.contains("panicked at")).take(2) {
                found.push(format!("{}: {line}", file.display()));
            }
        }
        found.extend(hosts.rig.failure());
        found
    }
}
