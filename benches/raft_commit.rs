//! How long a commit takes on three nodes over loopback, and what they cost idle.
//!
//! Three nodes, each on a thread of its own with its own runtime, log and
//! gRPC server, on this machine's disk (`TMPDIR` chooses it). One client
//! proposes one command after the other to the leader; a commit is done when
//! the command is applied there. Prints min, median and max of each percentile
//! over the runs. `RUNS`, `COMMITS` and `IDLE_S` change the size.

use std::{
    collections::BTreeMap,
    env,
    net::TcpListener as StdListener,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use matriarch::{
    domain::{Epoch, MemberId, NodeId, Profile, Timings},
    raft::{Node, NodeOptions},
    state::{Command, Kind, RuleId},
};
use nix::time::{ClockId, clock_gettime};
use tokio::{net::TcpListener, runtime::Handle};
use tonic::transport::{Server, server::TcpIncoming};

fn setting(name: &str, default: u64) -> u64 {
    env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn member(id: u64) -> MemberId {
    format!("n{id}").parse().expect("n and a digit is a member's name")
}

/// A node on a thread of its own; the thread lives as long as the process.
fn start(id: u64, listener: StdListener, dir: PathBuf) -> (Node, Handle) {
    let (ready, started) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime needs nothing special");
        runtime.block_on(async move {
            let address = listener.local_addr().expect("it is bound").to_string();
            let timings = Timings::of(Profile::Normal);
            let options = NodeOptions { node: NodeId(id), member: member(id), address, dir, timings, stands: true };
            let node = Node::start(options).await.expect("an empty directory opens");
            let listener = TcpListener::from_std(listener).expect("it is non-blocking");
            let service = node.grpc();
            ready.send((node, Handle::current())).expect("the caller waits");
            // Without it Nagle and the delayed ACK of the other side cost 40 ms now and then.
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            Server::builder()
                .tcp_nodelay(true)
                .add_service(service)
                .serve_with_incoming(incoming)
                .await
                .expect("serves");
        });
    });
    started.recv().expect("the node starts")
}

fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    sorted[(sorted.len() - 1) * percent / 100].as_secs_f64() * 1_000.0
}

async fn one_run(leader: &Node, commits: u64) -> [f64; 3] {
    // Stale before genesis: the whole way through log, quorum and disk, and the state stays small.
    let command = Command {
        request_id: "bench".to_owned(),
        expected: Epoch(9),
        because: RuleId(0),
        kind: Kind::fence("x".repeat(120)),
        evidence: None,
    };
    let mut times = Vec::new();
    for _ in 0..commits {
        let start = Instant::now();
        leader.propose(command.clone()).await.expect("the leader commits");
        times.push(start.elapsed());
    }
    times.sort();
    [percentile(&times, 50), percentile(&times, 90), percentile(&times, 99)]
}

async fn cpu(handle: &Handle) -> Duration {
    let clock = handle.spawn(async { clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every thread has it") });
    clock.await.expect("the node's thread lives").into()
}

async fn idle(hosts: &[(Node, Handle)], seconds: u64) {
    let mut before = Vec::new();
    for (_, handle) in hosts {
        before.push(cpu(handle).await);
    }
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    for ((node, handle), before) in hosts.iter().zip(before) {
        let share = (cpu(handle).await - before).as_secs_f64() / Duration::from_secs(seconds).as_secs_f64();
        let role = if node.leadership().borrow().am_leader { "leader" } else { "follower" };
        println!("idle {role:<9} {:.2} % of a core (profile normal, {seconds} s)", share * 100.0);
    }
}

async fn measure() {
    let (runs, commits, idle_s) = (setting("RUNS", 5), setting("COMMITS", 1_000), setting("IDLE_S", 20));
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut members = BTreeMap::new();
    let mut hosts = Vec::new();
    for id in 1..=3 {
        let listener = StdListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket can be");
        members.insert(NodeId(id), (member(id), listener.local_addr().expect("it is bound").to_string()));
        hosts.push(start(id, listener, dir.path().join(format!("n{id}"))));
    }
    hosts[0].0.initialize(members).await.expect("an empty group is founded");
    let mut leadership = hosts[0].0.leadership();
    leadership.wait_for(|l| l.am_leader).await.expect("the founder leads");
    let leader = &hosts[0].0;
    one_run(leader, commits / 10 + 1).await;

    let mut results = Vec::new();
    for run in 1..=runs {
        let [p50, p90, p99] = one_run(leader, commits).await;
        println!("run {run}: {commits} commits, p50 {p50:.2} ms, p90 {p90:.2} ms, p99 {p99:.2} ms");
        results.push([p50, p90, p99]);
    }
    for (column, name) in ["p50", "p90", "p99"].iter().enumerate() {
        let mut values: Vec<f64> = results.iter().map(|r| r[column]).collect();
        values.sort_by(f64::total_cmp);
        let (min, median, max) = (values[0], values[values.len() / 2], values[values.len() - 1]);
        println!("commit {name}: min {min:.2} ms, median {median:.2} ms, max {max:.2} ms over {runs} runs");
    }
    println!("last sync of the leader's log: {:?}", leader.sync_gauge().last());
    idle(&hosts, idle_s).await;
}

fn main() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime needs nothing special");
    runtime.block_on(measure());
}
