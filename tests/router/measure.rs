//! What the way through the router costs, side by side with HAProxy and with no proxy at all, in turns in one run.
//! `MATRIARCH=target/release/matriarch ROUNDS=10 SECONDS=4`; `LOAD=connect` measures that load only, `BESIDE=…/matriarch,haproxy`
//! other builds beside this one, and HAProxy beside itself, which shows what is noise. `connections_in_turns` (`COUNT=4000`) takes the
//! ways in turns with each connection.

use std::{
    fs,
    hash::{BuildHasher as _, RandomState},
    io::{Read as _, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use crate::{
    fakes::{Client, Manager},
    ports::free_port,
    real::Server,
};

/// Clients of pgbench.
const CLIENTS: &str = "16";
/// Connections that do nothing.
const IDLE: usize = 2_000;

fn from_env(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Ends with the measurement.
pub struct Process(pub Child);

impl Process {
    pub fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }

    /// Bytes that are its own. Those of its program count for nobody: they seem to be as soon as no other process runs it.
    pub fn private_bytes(&self) -> u64 {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.0.id())).unwrap();
        let of = |key: &str| {
            let line = rollup.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
        };
        of("Private_Dirty:")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub async fn listens(port: u16) {
    let began = Instant::now();
    while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(20), "nothing listens on {port}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// The command that starts a router of its own process, as it is released, and the port of it.
pub fn router_command(dir: &Path, managers: &[&Manager], max_sessions: usize) -> (Command, u16) {
    let exe = std::env::var_os("MATRIARCH").unwrap_or_else(|| env!("CARGO_BIN_EXE_matriarch").into());
    router_command_of(PathBuf::from(exe), dir, managers, max_sessions)
}

fn router_command_of(exe: PathBuf, dir: &Path, managers: &[&Manager], max_sessions: usize) -> (Command, u16) {
    let port = free_port();
    let mut text = "[cluster]\nname = \"measured\"\ninsecure = true\n".to_owned();
    // A cluster has three; of those that are missing here nobody is there.
    for i in 0..managers.len().max(3) {
        let manager = managers.get(i).map_or_else(free_port, |manager| manager.port);
        let ports = format!("manager_port = {manager}\nagent_port = {}\npostgres_port = {}", free_port(), free_port());
        text += &format!("[[cluster.members]]\nid = \"n{i}\"\nhost = \"127.0.0.1\"\n{ports}\n");
    }
    text += &format!("[router]\nread_write = \"127.0.0.1:{port}\"\nmax_sessions = {max_sessions}\n");
    let file = dir.join("router.toml");
    fs::write(&file, text).unwrap();
    let log = fs::File::create(dir.join("router.log")).unwrap();
    let mut command = Command::new(exe);
    command.args(["router", "--config"]).arg(&file).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    (command, port)
}

/// The same, when it listens.
pub async fn router_process(dir: &Path, managers: &[&Manager], max_sessions: usize) -> (Child, u16) {
    let (mut command, port) = router_command(dir, managers, max_sessions);
    let child = command.spawn().unwrap();
    listens(port).await;
    (child, port)
}

async fn haproxy(dir: &Path, server: u16) -> (Process, u16) {
    let port = free_port();
    let file = dir.join("haproxy.cfg");
    let text = format!(
        "global\n  maxconn 5000\ndefaults\n  mode tcp\n  option splice-auto\n  timeout connect 1s\n  timeout client 30m\n  \
         timeout server 30m\nlisten pg\n  bind 127.0.0.1:{port}\n  server n0 127.0.0.1:{server}\n"
    );
    fs::write(&file, text).unwrap();
    let process = Process::start(Command::new("haproxy").arg("-f").arg(&file).arg("-db"));
    listens(port).await;
    (process, port)
}

/// What one run of pgbench has shown.
#[derive(Clone, Copy)]
struct Run {
    /// Transactions in a second.
    tps: f64,
    /// The 99th percentile of their latencies, in microseconds.
    p99: f64,
    /// What each took of a processor for the process in between, in microseconds.
    spent: f64,
}

fn pgbench(server: &Server, dir: &Path, (_, port, between): &Way, load: &[&str], seconds: usize) -> Run {
    let spent = || between.as_ref().map(processor).unwrap_or_default();
    let before = spent();
    let prefix = dir.join("latencies");
    let output = Command::new(server.bin.join("pgbench"))
        .args(["-h", "127.0.0.1", "-U", "postgres", "-n", "-c", CLIENTS, "-j", "1", "-l", "-T", &seconds.to_string()])
        .arg("--log-prefix")
        .arg(&prefix)
        .args(["-p", &port.to_string()])
        .args(load)
        .arg("postgres")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let tps = said.lines().find_map(|l| l.strip_prefix("tps = ")?.split(' ').next()?.parse().ok()).unwrap();
    let mut latencies: Vec<u64> = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("latencies") {
            let text = fs::read_to_string(entry.path()).unwrap();
            latencies.extend(text.lines().filter_map(|l| l.split(' ').nth(2)?.parse::<u64>().ok()));
            fs::remove_file(entry.path()).unwrap();
        }
    }
    latencies.sort_unstable();
    let spent = (spent() - before).as_secs_f64() * 1e6 / latencies.len() as f64;
    Run { tps, p99: latencies[latencies.len() * 99 / 100] as f64, spent }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let [low, high] = [(values.len() - 1) / 2, values.len() / 2].map(|at| values[at]);
    f64::midpoint(low, high)
}

/// Name, port and the process in between.
type Way = (String, u16, Option<Process>);

/// Who comes first leaves something to be done to who comes next.
fn in_any_order(ways: usize) -> Vec<usize> {
    let mut order = Vec::from_iter(0..ways);
    order.sort_by_cached_key(|way| RandomState::new().hash_one(way));
    order
}

/// Where the median of all such values lies, 95 times of 100, as their order tells it.
fn bounds_of_median(sorted: &[f64]) -> (f64, f64) {
    let count = sorted.len();
    // How likely it is that none of them lies below the median, then one, and so on.
    let mut likely = 0.5f64.powi(count as i32);
    let (mut below, mut outside) = (likely, 0);
    while below <= 0.025 {
        outside += 1;
        likely *= (count + 1 - outside) as f64 / outside as f64;
        below += likely;
    }
    // Of too few nothing can be said that would be more certain than the first and the last.
    let outside = outside.saturating_sub(1);
    (sorted[outside], sorted[count - 1 - outside])
}

#[test]
fn the_bounds_of_a_median_are_those_of_the_binomial_distribution() {
    let of = |count: u32| bounds_of_median(&Vec::from_iter((1..=count).map(f64::from)));
    for (count, bounds) in [(1, (1.0, 1.0)), (5, (1.0, 5.0)), (10, (2.0, 9.0)), (24, (7.0, 18.0)), (60, (22.0, 39.0))] {
        assert_eq!(of(count), bounds, "{count}");
    }
}

/// The ways from a client to the server, side by side.
struct Ways {
    /// The one that is measured against comes third, others after it.
    all: Vec<Way>,
}

impl Ways {
    async fn open(dir: &Path, server: &Server, manager: &Manager) -> Self {
        let (router, through_router) = router_process(dir, &[manager], 5_000).await;
        let (haproxy, through_haproxy) = haproxy(dir, server.port).await;
        let mut all = vec![
            ("direct".to_owned(), server.port, None),
            ("router".to_owned(), through_router, Some(Process(router))),
            ("haproxy".to_owned(), through_haproxy, Some(haproxy)),
        ];
        let others = std::env::var("BESIDE").unwrap_or_default();
        for (i, exe) in others.split(',').filter(|exe| !exe.is_empty()).enumerate() {
            let dir = dir.join(format!("beside-{i}"));
            fs::create_dir(&dir).unwrap();
            let (process, port) = if exe == "haproxy" {
                self::haproxy(&dir, server.port).await
            } else {
                let (mut command, port) = router_command_of(PathBuf::from(exe), &dir, &[manager], 5_000);
                let process = Process(command.spawn().unwrap());
                listens(port).await;
                (process, port)
            };
            all.push((format!("{exe} beside"), port, Some(process)));
        }
        Self { all }
    }
}

/// At least the throughput of HAProxy, and no more latency added at the 99th percentile.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn beside_haproxy() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(&["max_connections=100", "shared_buffers=256MB"], |_| {}).await.unwrap();
    let manager = Manager::start_with_beat(server.state(), Duration::from_millis(500));
    let Ways { all: ways } = Ways::open(dir.path(), &server, &manager).await;
    let made = Command::new(server.bin.join("pgbench"))
        .args(["-h", "127.0.0.1", "-U", "postgres", "-i", "-q", "-s", "20", "-p", &server.port.to_string(), "postgres"])
        .output();
    assert!(made.unwrap().status.success());
    let (rounds, seconds) = (from_env("ROUNDS", 10), from_env("SECONDS", 4));
    let loads: [(&str, &[&str]); 3] = [
        ("select-only", &["-S", "-M", "prepared"]),
        ("tpcb-like", &["-M", "prepared"]),
        ("connect-per-transaction", &["-S", "-C"]),
    ];
    let mut worse = Vec::new();
    let wanted = std::env::var("LOAD").unwrap_or_default();
    for (name, load) in loads.into_iter().filter(|(name, _)| name.contains(&wanted)) {
        let mut all = vec![Vec::new(); ways.len()];
        for _ in 0..rounds {
            for way in in_any_order(ways.len()) {
                all[way].push(pgbench(&server, dir.path(), &ways[way], load, seconds));
            }
        }
        for ((way, ..), of) in ways.iter().zip(&all) {
            let of = |what: fn(&Run) -> f64| median(of.iter().map(what).collect());
            let (tps, p99, spent) = (of(|run| run.tps), of(|run| run.p99) / 1e3, of(|run| run.spent));
            println!(
                "{name}, {way}: {tps:.0} tps, p99 {p99:.2} ms, {spent:.1} µs of processor time (medians of {rounds})"
            );
        }
        let haproxy = &all[2];
        let against = |way: usize| {
            let pairs = || all[way].iter().zip(haproxy);
            let mut ratios: Vec<f64> = pairs().map(|(this, haproxy)| this.tps / haproxy.tps).collect();
            let more = median(pairs().map(|(this, haproxy)| (this.p99 - haproxy.p99) / 1e3).collect());
            ratios.sort_by(f64::total_cmp);
            let (low, high) = bounds_of_median(&ratios);
            let ratio = median(ratios);
            println!("{name}: {} against haproxy {ratio:.3} ({low:.3} to {high:.3}), p99 {more:+.2} ms", ways[way].0);
            (ratio, more)
        };
        for way in 3..ways.len() {
            against(way);
        }
        let (ratio, more) = against(1);
        if ratio < 1.0 || more > 0.0 {
            worse.push(format!("{name}: {ratio:.3}, p99 {more:+.2} ms"));
        }
    }
    assert!(worse.is_empty(), "{worse:?}");
}

/// One connection as libpq makes it, with one query, to the end of it.
fn connection(port: u16) -> Duration {
    let began = Instant::now();
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut heard = [0; 4096];
    stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).unwrap();
    stream.read_exact(&mut heard[..1]).unwrap();
    let mut startup = vec![0, 0, 0, 0, 0, 3, 0, 0];
    startup.extend(b"user\0postgres\0database\0postgres\0\0");
    startup[3] = startup.len() as u8;
    for say in [&startup[..], b"Q\0\0\0\x0dSELECT 1\0"] {
        stream.write_all(say).unwrap();
        let mut read = 0;
        while !heard[..read].ends_with(b"Z\0\0\0\x05I") {
            let more = stream.read(&mut heard[read..]).unwrap();
            assert!(more > 0, "{}", String::from_utf8_lossy(&heard[..read]));
            read += more;
        }
    }
    stream.write_all(b"X\0\0\0\x04").unwrap();
    began.elapsed()
}

/// Time on a processor since the start, of all threads.
fn processor(process: &Process) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.0.id())).unwrap().flatten();
    let of = |task: fs::DirEntry| fs::read_to_string(task.path().join("schedstat")).unwrap();
    tasks.map(|task| Duration::from_nanos(of(task).split(' ').next().unwrap().parse().unwrap())).sum()
}

/// The same as the last load above, each way in turn with every connection, so that noise meets all of them alike.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn connections_in_turns() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(&["max_connections=100", "shared_buffers=256MB"], |_| {}).await.unwrap();
    let manager = Manager::start_with_beat(server.state(), Duration::from_millis(500));
    let Ways { all: ways } = Ways::open(dir.path(), &server, &manager).await;
    let count = from_env("COUNT", 4_000);
    let mut took = vec![Vec::with_capacity(count); ways.len()];
    let spent = |way: &Option<Process>| way.as_ref().map(processor).unwrap_or_default();
    let before: Vec<_> = ways.iter().map(|(.., process)| spent(process)).collect();
    for _ in 0..count {
        for way in in_any_order(ways.len()) {
            took[way].push(connection(ways[way].1).as_secs_f64() * 1e6);
        }
    }
    let mut middle = Vec::new();
    for (i, (name, _, process)) in ways.iter().enumerate() {
        let mut took = took[i].clone();
        took.sort_by(f64::total_cmp);
        let at = |share: f64| took[(took.len() as f64 * share) as usize];
        let mean = took.iter().sum::<f64>() / count as f64;
        let spent = (spent(process) - before[i]).as_secs_f64() * 1e6 / count as f64;
        println!(
            "{name}: {:.0} µs (10 %: {:.0}, 90 %: {:.0}, 99 %: {:.0}, mean {mean:.0}), {spent:.0} µs of processor time",
            at(0.5),
            at(0.1),
            at(0.9),
            at(0.99),
        );
        middle.push((at(0.5), mean));
    }
    println!("haproxy / router: median {:.3}, mean {:.3}", middle[2].0 / middle[1].0, middle[2].1 / middle[1].1);
}

/// Connections that do nothing cost little.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn idle_connections() {
    let dir = tempfile::tempdir().unwrap();
    let backend = crate::fakes::Backend::start("a").await;
    let manager = Manager::start_with_beat(crate::fakes::state(1, 1, true, Some(&backend)), Duration::from_millis(500));
    let (router, port) = router_process(dir.path(), &[&manager], 5_000).await;
    let router = Process(router);
    let (haproxy, through_haproxy) = haproxy(dir.path(), backend.address.port()).await;
    let mut each = Vec::new();
    for (name, process, port) in [("router", &router, port), ("haproxy", &haproxy, through_haproxy)] {
        let before = process.private_bytes();
        let mut sessions = Vec::new();
        for _ in 0..IDLE {
            let (mut client, _) = Client::session(SocketAddr::from(([127, 0, 0, 1], port))).await;
            assert!(client.works().await);
            sessions.push(client);
        }
        let one = (process.private_bytes() - before) as f64 / IDLE as f64 / 1024.0;
        println!("{name}: {one:.1} KiB for each of {IDLE} connections that do nothing");
        each.push(one);
    }
    assert!(each[0] <= 40.0, "{each:?}");
}

/// From the word of a manager that the primary is open to the server's first byte at a client that was held.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn from_open_to_the_first_byte() {
    use crate::fakes::{Backend, Told, state};
    let dir = tempfile::tempdir().unwrap();
    let backend = Backend::start("a").await;
    let managers = [(); 3].map(|()| Manager::start(state(1, 1, true, Some(&backend))));
    let (router, port) = router_process(dir.path(), &managers.each_ref(), 100).await;
    let _router = Process(router);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut took = Vec::new();
    for epoch in 2..202 {
        for manager in &managers {
            manager.say(state(epoch, epoch * 2, false, Some(&backend)));
        }
        // Sessions of the last epoch are cut by that: then it is known.
        let mut held: Vec<Client> = Vec::new();
        for _ in 0..10 {
            held.push(Client::open(address).await);
        }
        sleep(Duration::from_millis(60)).await;
        let told = Instant::now();
        managers[epoch as usize % 3].say(state(epoch, epoch * 2 + 1, true, Some(&backend)));
        for client in &mut held {
            assert_eq!(client.told().await, Told::Ready("a".into()));
        }
        // The last of ten.
        took.push(told.elapsed());
    }
    took.sort_unstable();
    let at = |percent: usize| took[took.len() * percent / 100 - 1];
    println!(
        "from open to the first byte at the last of ten: median {:?}, p99 {:?}, max {:?}",
        at(50),
        at(99),
        at(100)
    );
    assert!(at(99) <= Duration::from_millis(20), "{:?}", at(99));
}
