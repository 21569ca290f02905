//! `matriarch demo`: a real cluster in a temporary directory, a workload, a
//! fault, and what it cost. Also the benchmark: `--fault … --runs … --json`.
//!
//! It sees the cluster from outside only: the processes it starts, the admin
//! API, the routing stream, PostgreSQL connections. Start reading at
//! `driver`: start, run, mend.

mod checker;
mod cluster;
mod disks;
mod driver;
mod faults;
mod groups;
mod layout;
mod live;
mod logs;
mod netns;
mod phases;
mod processes;
mod record;
pub mod rig;
mod supervisor;
mod transcript;
mod watcher;
mod workload;

use std::{io::IsTerminal as _, path::PathBuf, process::ExitCode, thread, time::Duration};

use anyhow::{Context, Result, bail};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc::UnboundedReceiver, watch},
};

use self::{
    cluster::{Cluster, Wanted},
    driver::{Driver, Writers},
    live::{Sources, View, Wish},
    record::Record,
    transcript::Story,
    watcher::Watcher,
};
pub use self::{driver::LeaderHost, faults::Fault};

/// In the live view the first fault comes by itself after this long.
const FIRST_FAULT: Duration = Duration::from_secs(5);

/// Start a cluster of real PostgreSQL servers in a temporary directory, write to it, and break it.
///
/// Without --fault: kills the primary's host, shows the recovery, starts the host again and waits
/// until it is back. In a terminal the live view stays until you press q.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Run unattended with this fault.
    #[arg(long, value_enum)]
    pub fault: Option<Fault>,
    /// How many times.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    /// Timings: fast (same rack), normal (same data centre), slow (same region), safe (across regions).
    #[arg(long, default_value = "normal", value_parser = ["fast", "normal", "slow", "safe"])]
    pub profile: String,
    /// Number of members.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=9))]
    pub members: u8,
    /// Give each host a network namespace of its own (root), so that a killed host's link is cut first.
    #[arg(long)]
    pub netns: bool,
    /// Write the measurements of every run to this file.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Leave the temporary directory with data and logs behind.
    #[arg(long)]
    pub keep: bool,
    /// Make the temporary directory in here.
    #[arg(long, value_name = "DIR", default_value = "/tmp")]
    pub dir: PathBuf,
    /// Where the Raft leader shall be when the fault comes.
    #[arg(long, value_enum, default_value = "any")]
    pub leader_host: LeaderHost,
    /// The OS user that everything runs as when started by root.
    #[arg(long, default_value = "postgres")]
    pub user: String,
    /// Change this setting before the first fault, e.g. on_primary_crash=failover; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = setting)]
    pub set: Vec<(String, String)>,
    /// Directory of PostgreSQL's programs (initdb, postgres, pg_rewind, …).
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// Plain transcript even in a terminal.
    #[arg(long)]
    pub plain: bool,
    /// Internal: cleans up when the demo is killed.
    #[arg(long, hide = true)]
    pub warden: bool,
}

fn setting(word: &str) -> Result<(String, String), String> {
    let (key, value) = word.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Runs the demo to its end, or to a signal, and cleans up.
///
/// Call it outside any async runtime: with `--netns` it moves to the client's
/// host by thread, and builds its runtime there.
pub fn run(args: Args) -> Result<ExitCode> {
    if let Some(fault) = args.fault.filter(|fault| fault.needs_network() && !args.netns && !args.warden) {
        bail!("--fault {fault}: only a host with a network of its own can be cut off; add --netns (as root)");
    }
    if args.warden {
        cluster::warden()?;
        return Ok(ExitCode::SUCCESS);
    }
    let disks = args.fault.and_then(Fault::needs_disks);
    if disks.is_some() {
        disks::own_mounts().context("a disk of its own for each host")?;
    }
    let body = move || {
        let shows = args.fault.is_none() && !args.plain && std::io::stdout().is_terminal();
        let story = Story::new(!shows);
        let wanted = Wanted {
            members: usize::from(args.members),
            profile: args.profile.clone(),
            netns: args.netns,
            base: std::path::absolute(&args.dir).context("--dir")?,
            user: args.user.clone(),
            bin_dir: args.bin_dir.clone(),
            keep: args.keep,
            witness: false,
            exe: std::env::current_exe().context("find this program's own file")?,
            env: Vec::new(),
            cgroups: None,
            as_units: false,
            disks,
        };
        let cluster = Cluster::create(&wanted, &story)?;
        cluster.enter_client_host()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(until_signal(play(args, cluster, story)))
    };
    let thread = thread::Builder::new().name("demo".into()).spawn(body).context("start the demo's thread")?;
    thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the demo panicked; what it had started is gone")))
}

/// Dropping the demo's future is the clean-up, whatever it was waiting for.
async fn until_signal(demo: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut hangup = signal(SignalKind::hangup())?;
    let number = tokio::select! {
        result = demo => return result,
        _ = interrupt.recv() => 2,
        _ = terminate.recv() => 15,
        _ = hangup.recv() => 1,
    };
    Ok(ExitCode::from(128 + number))
}

async fn play(args: Args, cluster: Cluster, story: Story) -> Result<ExitCode> {
    let watcher = Watcher::start(&cluster.layout)?;
    let mut records = Vec::new();
    let result = if story.prints() {
        unattended(&args, cluster, watcher, &story, &mut records).await
    } else {
        let result = interactive(&args, cluster, watcher, &story, &mut records).await;
        story.print_from_now_on();
        result
    };
    for line in if records.is_empty() { Vec::new() } else { record::summary(&records) } {
        story.say(line);
    }
    result?;
    Ok(if records.iter().all(Record::is_good) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn unattended(
    args: &Args,
    cluster: Cluster,
    watcher: Watcher,
    story: &Story,
    records: &mut Vec<Record>,
) -> Result<()> {
    let mut driver = Driver::start(cluster, watcher, story, Writers::Write).await?;
    driver.watcher.change_settings(&args.set).await?;
    for _ in 0..args.runs {
        let fault = args.fault.unwrap_or(Fault::KillHost);
        records.push(driver.run(fault, args.leader_host).await?);
        if let Some(file) = &args.json {
            record::write(file, records)?;
        }
    }
    Ok(())
}

/// With the live view: one lost host, then whatever the keys ask for.
async fn interactive(
    args: &Args,
    cluster: Cluster,
    watcher: Watcher,
    story: &Story,
    records: &mut Vec<Record>,
) -> Result<()> {
    let (show_journal, journal) = watch::channel(None);
    let (_view, mut wishes) = View::start(Sources { status: watcher.receiver(), journal, story: story.clone() })?;
    let mut driver = tokio::select! {
        started = Driver::start(cluster, watcher, story, Writers::Write) => started?,
        () = until_quit(&mut wishes, story) => return Ok(()),
    };
    driver.watcher.change_settings(&args.set).await?;
    show_journal.send_replace(Some(driver.workload.journal.clone()));
    story.say("in five seconds the primary's host will lose power; or press a key");
    let mut next = tokio::time::timeout(FIRST_FAULT, wishes.recv()).await.unwrap_or(Some(Wish::Fault(Fault::KillHost)));
    while let Some(Wish::Fault(fault)) = next {
        let record = tokio::select! {
            record = driver.run(fault, args.leader_host) => record,
            () = until_quit(&mut wishes, story) => return Ok(()),
        };
        match record {
            Ok(record) => records.push(record),
            Err(e) => story.say(format!("{e:#}")),
        }
        if let Some(file) = &args.json {
            record::write(file, records)?;
        }
        next = wishes.recv().await;
    }
    Ok(())
}

/// Waits for `q`; faults are injected one at a time.
async fn until_quit(wishes: &mut UnboundedReceiver<Wish>, story: &Story) {
    while let Some(Wish::Fault(fault)) = wishes.recv().await {
        story.say(format!("{fault}: not now, one thing at a time"));
    }
}
