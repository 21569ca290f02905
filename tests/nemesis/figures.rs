//! Figures of their own: how long a primary that is cut off still acknowledges,
//! and whether anything short of a fault ends an epoch.
//!
//! Each appends a JSON line to the file of the rounds.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use matriarch::rpc::v1::{AgentProbeRequest, AgentStatus, Target as Address, agent_client::AgentClient};
use serde::Serialize;
use tonic::transport::Endpoint;

use crate::{
    checker,
    dice::Dice,
    faults::{Fault, Kind, Target},
    hosts::{Hosts, Proc, Wanted},
    report,
    rounds::{build, timings},
    runs::{alone, log, number, say, seed, wanted},
    workload::{Micros, Outcome, Workload, busy, now},
};

const HEAL: Duration = Duration::from_secs(120);
const SESSIONS: usize = 100;

#[derive(Serialize)]
struct Figure<'a> {
    figure: &'a str,
    build: String,
    profile: String,
    seed: u64,
    minutes: f64,
    values: serde_json::Value,
}

pub fn keep(figure: &str, wanted: &Wanted, seed: u64, minutes: f64, values: serde_json::Value) {
    say(format!("{figure}: {values}"));
    let line = Figure { figure, build: build(), profile: wanted.profile.clone(), seed, minutes, values };
    report::append(&log(), &line).unwrap();
}

/// Min, median and max in milliseconds.
pub fn spread(mut list: Vec<f64>) -> [f64; 3] {
    list.sort_by(f64::total_cmp);
    let at = |i: usize| (list[i] * 10.0).round() / 10.0;
    [at(0), at(list.len() / 2), at(list.len() - 1)]
}

/// What the agent of a host says of its lease, asked on its socket.
fn ask_agent(hosts: &Hosts, host: &str, cluster_id: &str, generation: u64) -> Result<AgentStatus> {
    let path = hosts.rig.contact(host)?.socket_dir.join("agent.sock");
    let to = Address {
        cluster_id: cluster_id.to_owned(),
        generation,
        target: host.to_owned(),
        sender: host.to_owned(),
        ..Address::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let asked = async {
            let connector = tower::service_fn(move |_: tonic::transport::Uri| {
                let path = path.clone();
                async move {
                    let stream = tokio::net::UnixStream::connect(path).await?;
                    Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
                }
            });
            let channel = Endpoint::from_static("http://agent.invalid").connect_with_connector(connector).await?;
            let reply = AgentClient::new(channel).probe(AgentProbeRequest { to: Some(to) }).await?;
            anyhow::Ok(reply.into_inner())
        };
        tokio::time::timeout(Duration::from_secs(1), asked).await.context("the agent does not answer")?
    })
}

/// When the last counted renewal of a primary was sent: the agent says how much of the lease is left. The latest of
/// some samples counts, since an answer is old when it arrives.
fn last_renewal(hosts: &Hosts, host: &str, cluster_id: &str, generation: u64, hold: Duration) -> Option<Micros> {
    let mut latest = None;
    for _ in 0..12 {
        let asked = now();
        if let Ok(status) = ask_agent(hosts, host, cluster_id, generation)
            && let Some(lease) = status.lease.filter(|l| l.held && l.remaining_ms > 0)
        {
            latest = latest.max(Some(asked + lease.remaining_ms * 1_000 - hold.as_micros() as Micros));
        }
        thread::sleep(Duration::from_millis(50));
    }
    latest
}

/// `T_hold + T_kill` after its last renewal nobody is acknowledged any more, with a hundred sessions that write
/// without a pause.
#[test]
#[ignore = "minutes: make proof"]
fn last_acknowledgement_of_a_primary_that_is_cut_off() {
    let Some(_alone) = alone() else { return };
    let (wanted, seed) = (wanted(false, true), seed());
    let (t, mut dice) = (timings(&wanted.profile), Dice::new(seed));
    let runs = number("RUNS").map_or(10, |n| n as usize);
    let hosts = Hosts::raise(&wanted).unwrap();
    let (mut since_cut, mut since_renewal, mut acked, mut gaps) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for run in 0..runs {
        let status = hosts.rig.healthy(HEAL).unwrap();
        let primary = &status.primary;
        let workload = Workload::start_with(&hosts.rig, primary, busy(primary, SESSIONS, run)).unwrap();
        workload.begin(run as u64);
        let all_write = workload.wait_for(HEAL, |attempts| {
            let acked = attempts.iter().filter(|a| matches!(a.outcome, Outcome::Acked { .. }));
            let mut seen: Vec<usize> = acked.map(|a| a.client).collect();
            seen.sort_unstable();
            seen.dedup();
            (seen.len() == SESSIONS).then_some(())
        });
        if all_write.is_none() {
            let to = log().with_file_name("last-acknowledgement");
            crate::rounds::keep_logs(&hosts, &to);
            panic!(
                "run {run}: not every session is acknowledged: {:#?}; logs are kept in {}",
                workload.errors(),
                to.display()
            );
        }
        thread::sleep(Duration::from_secs(1));

        let fault = Fault { kind: Kind::CutBoth, target: Target::Primary, hold: Duration::ZERO };
        let done = fault.inject(&hosts, primary, &mut dice).unwrap();
        let renewed = last_renewal(&hosts, primary, &status.cluster_id, status.generation, t.hold);
        thread::sleep((t.hold + t.kill) * 2);
        let (_, effect) = done.undo(&hosts, &mut dice).unwrap();
        effect.expect("the cut is effective");
        let attempts = workload.attempts();
        let acks = checker::acks(&workload.clients, &attempts, &[]);
        let last = acks.iter().map(|a| a.received).max().unwrap();
        let during = acks.iter().filter(|a| a.received > done.at).count();
        let ms = |from: Micros| (last as f64 - from as f64) / 1e3;
        let renewed = renewed.expect("the agent said how much of its lease was left");
        say(format!(
            "run {run}: the last of {during} acknowledgements after the cut came {:.0} ms after the last renewal, {:.0} \
             ms after the cut",
            ms(renewed),
            ms(done.at)
        ));
        assert!(during > SESSIONS, "only {during} acknowledgements after the cut: nothing is shown");
        since_cut.push(ms(done.at));
        since_renewal.push(ms(renewed));
        acked.push(during as f64);
        gaps.push(workload.lag() as f64 / 1e3);
        drop(workload);
        let after = hosts.rig.healthy(HEAL).unwrap();
        assert!(after.epoch > status.epoch);
    }
    let bound = (t.hold + t.kill).as_secs_f64() * 1e3;
    let worst = spread(since_renewal.clone())[2];
    keep(
        "last acknowledgement of a primary that is cut off, ms (min, median, max)",
        &wanted,
        seed,
        0.0,
        serde_json::json!({
            "sessions": SESSIONS, "runs": runs, "bound_ms": bound, "since_last_renewal": spread(since_renewal),
            "since_cut": spread(since_cut), "acknowledged_after_cut": spread(acked), "lag": spread(gaps),
        }),
    );
    assert!(worst <= bound, "{worst} ms after its last renewal, {bound} ms are promised");
}

/// Watches until `end`: the epoch and the primary must stay. Gives the number of answers, and how little of the
/// lease was left at the least, in milliseconds.
fn nothing_changes(hosts: &Hosts, end: Instant, mut each: impl FnMut() -> Result<()>) -> Result<(usize, u64)> {
    let before = hosts.rig.healthy(HEAL)?;
    let (mut answers, mut least) = (0, u64::MAX);
    while Instant::now() < end {
        each()?;
        let Some(status) = hosts.rig.status() else { continue };
        answers += 1;
        ensure!(
            (status.epoch, &status.primary) == (before.epoch, &before.primary),
            "a failover that nobody needed: epoch {} to {}, {} to {}",
            before.epoch,
            status.epoch,
            before.primary,
            status.primary
        );
        let lease = status.members.iter().find(|m| m.member == status.primary).map_or(0, |m| m.lease_remaining_ms);
        if lease > 0 {
            least = least.min(lease);
        }
    }
    let after = hosts.rig.healthy(HEAL)?;
    ensure!(after.epoch == before.epoch, "the epoch rose from {} to {}", before.epoch, after.epoch);
    Ok((answers, least))
}

/// Keeps the logs of a run that failed, and fails.
fn settled(hosts: &Hosts, name: &str, outcome: Result<(usize, u64)>) -> (usize, u64) {
    outcome.unwrap_or_else(|e| {
        let to = log().with_file_name(name);
        crate::rounds::keep_logs(hosts, &to);
        panic!("{name}: {e:#}; logs are kept in {}", to.display());
    })
}

/// Two programs of load, killed when dropped.
pub struct Load(Vec<std::process::Child>);

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Gone already is as wanted.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Load {
    /// pgbench's own mix, and its reads, against the primary.
    pub fn start(hosts: &Hosts, primary: &str, seconds: u64) -> Result<Load> {
        let at = hosts.rig.contact(primary)?;
        let (uid, gid) = hosts.rig.user().context("PostgreSQL refuses to run as root")?;
        let pgbench = |args: &[&str]| {
            let mut command = Command::new(hosts.rig.bin_dir().join("pgbench"));
            command.arg("-h").arg(&at.socket_dir).args(["-p", &at.postgres_port.to_string(), "-U", at.user]);
            command.args(args).arg(at.database).env("PGPASSWORD", &at.password).uid(uid).gid(gid).current_dir("/");
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        ensure!(pgbench(&["-i", "-s", "5", "-q"]).status()?.success(), "pgbench -i failed");
        let seconds = seconds.to_string();
        let writes = pgbench(&["-n", "-c", "16", "-j", "2", "-T", &seconds]).spawn()?;
        let reads = pgbench(&["-n", "-S", "-c", "16", "-j", "2", "-T", &seconds]).spawn()?;
        Ok(Load(vec![writes, reads]))
    }

    pub fn runs(&mut self) -> bool {
        self.0.iter_mut().all(|child| child.try_wait().is_ok_and(|ended| ended.is_none()))
    }
}

/// Idle and all time of all cores so far, in ticks.
fn cpu() -> (u64, u64) {
    let text = fs::read_to_string("/proc/stat").unwrap();
    let fields: Vec<u64> = text.lines().next().unwrap().split_whitespace().skip(1).flat_map(str::parse).collect();
    (fields[3] + fields[4], fields[..8].iter().sum())
}

/// All cores are busy with pgbench for `MINUTES` (30), and nobody fails over.
#[test]
#[ignore = "half an hour: make proof"]
fn no_failover_while_all_cores_are_busy() {
    let Some(_alone) = alone() else { return };
    let (wanted, seed, minutes) = (wanted(false, true), seed(), number("MINUTES").unwrap_or(30.0));
    let hosts = Hosts::raise(&wanted).unwrap();
    let primary = hosts.rig.healthy(HEAL).unwrap().primary;
    let time = Duration::from_secs_f64(minutes * 60.0);
    let mut load = Load::start(&hosts, &primary, time.as_secs() + 600).unwrap();
    let (before, end) = (cpu(), Instant::now() + time);
    let outcome = nothing_changes(&hosts, end, || {
        ensure!(load.runs(), "pgbench ended");
        thread::sleep(Duration::from_millis(200));
        Ok(())
    });
    let after = cpu();
    let busy = 100.0 - 100.0 * (after.0 - before.0) as f64 / (after.1 - before.1) as f64;
    drop(load);
    let (answers, least) = settled(&hosts, "busy-cores", outcome);
    let values =
        serde_json::json!({ "failovers": 0, "cpu_percent": busy.round(), "answers": answers, "least_lease_ms": least });
    keep("no failover while all cores are busy", &wanted, seed, minutes, values);
    assert!(busy > 90.0, "the cores were busy for {busy:.0} % of the time only: nothing is shown");
}

/// One packet in ten is lost between all hosts for `MINUTES` (10), and nobody fails over.
#[test]
#[ignore = "ten minutes: make proof"]
fn no_failover_while_one_packet_in_ten_is_lost() {
    let Some(_alone) = alone() else { return };
    let (wanted, seed, minutes) = (wanted(false, true), seed(), number("MINUTES").unwrap_or(10.0));
    let hosts = Hosts::raise(&wanted).unwrap();
    let primary = hosts.rig.healthy(HEAL).unwrap().primary;
    let workload = Workload::start(&hosts.rig, &primary).unwrap();
    workload.begin(0);
    hosts.drop_packets(&["numgen random mod 100 < 10".to_owned()]).unwrap();
    let end = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    let outcome = nothing_changes(&hosts, end, || {
        thread::sleep(Duration::from_millis(200));
        Ok(())
    });
    let dropped = hosts.dropped().unwrap();
    let _ = hosts.pass_packets();
    let acked = workload.attempts().len();
    let (answers, least) = settled(&hosts, "loss", outcome);
    let values = serde_json::json!({ "failovers": 0, "packets_dropped": dropped, "writes": acked, "answers": answers, "least_lease_ms": least });
    keep("no failover while one packet in ten is lost", &wanted, seed, minutes, values);
    assert!(dropped > 100 && acked > 100, "{dropped} packets lost, {acked} writes: nothing is shown");
}

/// Single processes are stopped, one after the other, each for less than `T_hold` − 2 · `renew`, for `MINUTES` (10).
#[test]
#[ignore = "ten minutes: make proof"]
fn no_failover_through_short_freezes_of_single_processes() {
    let Some(_alone) = alone() else { return };
    let (wanted, seed, minutes) = (wanted(false, true), seed(), number("MINUTES").unwrap_or(10.0));
    let (t, mut dice) = (timings(&wanted.profile), Dice::new(seed));
    let hosts = Hosts::raise(&wanted).unwrap();
    let primary = hosts.rig.healthy(HEAL).unwrap().primary;
    let workload = Workload::start(&hosts.rig, &primary).unwrap();
    workload.begin(0);
    let longest = (t.hold - t.renew * 2).as_millis() as u64;
    let end = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    let (mut freezes, mut last) = (0, String::new());
    let outcome = nothing_changes(&hosts, end, || {
        let which = [Proc::Postmaster, Proc::Agent, Proc::Guard, Proc::Manager, Proc::Router][dice.below(5) as usize];
        // The primary's host is where it can do harm.
        let host = if dice.below(2) == 0 { primary.clone() } else { dice.shuffled(hosts.rig.members()).remove(0) };
        let time = Duration::from_millis(50 + dice.below(longest - 50));
        last = format!("{} of {host} for {time:?}", which.name());
        let Ok(process) = hosts.process(&host, which) else { return Ok(()) };
        hosts.stop(&[process])?;
        thread::sleep(time);
        let stopped = process.is_stopped();
        hosts.resume(&[process]);
        ensure!(stopped, "{last}: it did not stay stopped");
        freezes += 1;
        thread::sleep(Duration::from_millis(300 + dice.below(700)));
        Ok(())
    });
    let outcome = outcome.with_context(|| format!("freeze {freezes}: {last}"));
    let acked = workload.attempts().len();
    let (_, least) = settled(&hosts, "short-freezes", outcome);
    let values = serde_json::json!({ "failovers": 0, "freezes": freezes, "longest_ms": longest, "writes": acked, "least_lease_ms": least });
    keep("no failover through short freezes of single processes", &wanted, seed, minutes, values);
    assert!(freezes > 0 && acked > 100, "{freezes} freezes, {acked} writes: nothing is shown");
}
