//! A router that starts its program anew: sessions go on, and nobody who connects is refused.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio_postgres::{Config, NoTls};

use crate::{
    fakes::{Client, Manager, SOON},
    figures::asked,
    measure::router_command,
    real::Server,
};

/// A router and its heirs, as a service manager knows them; all end with it.
struct Service {
    told: UnixDatagram,
    first: Child,
    /// The one that is taken for the service comes last.
    pids: Vec<Pid>,
    port: u16,
}

impl Service {
    fn start(dir: &Path, manager: &Manager) -> Self {
        let socket = dir.join("notify");
        let told = UnixDatagram::bind(&socket).unwrap();
        told.set_read_timeout(Some(SOON)).unwrap();
        let (mut command, port) = router_command(dir, &[manager], 100);
        let first = command.env("NOTIFY_SOCKET", &socket).spawn().unwrap();
        let pids = vec![Pid::from_raw(first.id().try_into().unwrap())];
        let service = Self { told, first, pids, port };
        assert_eq!(service.hears(), "READY=1");
        service
    }

    fn hears(&self) -> String {
        let mut said = [0; 256];
        let size = self.told.recv(&mut said).expect("a word of the router");
        String::from_utf8_lossy(&said[..size]).trim().to_owned()
    }

    /// As `systemctl reload` does it.
    fn reload(&self) {
        kill(*self.pids.last().unwrap(), Signal::SIGUSR2).unwrap();
    }

    /// Until an heir has the ports.
    fn inherited(&mut self) {
        self.reload();
        let said = self.hears();
        let pid = said.strip_prefix("MAINPID=").unwrap_or_else(|| panic!("{said}"));
        self.pids.push(Pid::from_raw(pid.parse().unwrap()));
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        for pid in &self.pids {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        let _ = self.first.wait();
    }
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < SOON, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Connects, asks and leaves without pause; what went wrong, and how often it went well.
fn comes_and_goes(port: u16, over: Arc<AtomicBool>) -> thread::JoinHandle<(Vec<String>, usize)> {
    let visit = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut config = Config::new();
        config.host("127.0.0.1").port(port).user("postgres").dbname("postgres");
        let (mut errors, mut good) = (Vec::new(), 0);
        while !over.load(Ordering::SeqCst) {
            let once = runtime.block_on(async {
                let (client, connection) = config.connect(NoTls).await?;
                let connection = tokio::spawn(connection);
                client.simple_query("SELECT 1").await?;
                drop(client);
                connection.await.unwrap()
            });
            match once {
                Ok(()) => good += 1,
                Err(error) => errors.push(format!("{error:?}")),
            }
        }
        (errors, good)
    };
    thread::spawn(visit)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_is_started_anew_under_load_and_nobody_notices() {
    let Some(server) = Server::start_with(&[], |_| {}).await else {
        println!("passed over: no PostgreSQL installed");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::start_with_beat(server.state(), Duration::from_millis(200));
    let mut service = Service::start(dir.path(), &manager);
    let port = service.port.to_string();
    let pgbench = |args: &[&str]| {
        let mut command = Command::new(server.bin.join("pgbench"));
        command.args(["-h", "127.0.0.1", "-U", "postgres", "-n", "-p", &port]).args(args).arg("postgres");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let made = Command::new(server.bin.join("pgbench"))
        .args(["-h", "127.0.0.1", "-U", "postgres", "-i", "-q", "-p", &server.port.to_string(), "postgres"])
        .output();
    assert!(made.unwrap().status.success());

    let load = pgbench(&["-c", "4", "-T", "6"]);
    let over = Arc::new(AtomicBool::new(false));
    let visitors = [(); 2].map(|()| comes_and_goes(service.port, Arc::clone(&over)));
    for _ in 0..3 {
        // Sessions that began before it, and after.
        thread::sleep(Duration::from_millis(500));
        service.inherited();
    }
    let said = load.wait_with_output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert!(said.status.success() && text.contains("number of failed transactions: 0 "), "{text}");
    over.store(true, Ordering::SeqCst);
    for visitor in visitors {
        let (errors, good) = visitor.join().unwrap();
        println!("{good} connections");
        assert!(errors.is_empty() && good > 50, "{good} were good: {errors:?}");
    }
    // Their last sessions have ended, so those that have heirs do.
    let [_, elders @ .., _] = &service.pids[..] else { panic!("three heirs") };
    let first = service.first.wait().unwrap();
    assert!(first.success(), "{first}");
    until("those with heirs end", || elders.iter().all(|pid| has_ended(*pid)));
    let log = fs::read_to_string(dir.path().join("router.log")).unwrap();
    assert_eq!(log.matches("a new process has the ports").count(), 3, "{log}");
}

fn parent(pid: Pid) -> Pid {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    Pid::from_raw(stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap())
}

/// Nobody waits for a heir's heir here but init, or whoever stands for it.
fn has_ended(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_none_or(|rest| rest.is_empty() || rest.starts_with(" Z"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_on_in_the_elder_until_it_is_stopped_too() {
    let a = crate::fakes::Backend::start("a").await;
    let b = crate::fakes::Backend::start("b").await;
    let manager = Manager::start_with_beat(crate::fakes::state(1, 1, true, Some(&a)), Duration::from_millis(200));
    let dir = tempfile::tempdir().unwrap();
    let mut service = Service::start(dir.path(), &manager);
    let address = ([127, 0, 0, 1], service.port).into();
    let (mut old, _) = Client::session(address).await;
    let (mut other, _) = Client::session(address).await;
    service.inherited();
    // Whoever supervises the service hears of the end of its own children alone.
    assert_ne!(parent(service.pids[1]), service.pids[0]);
    let (mut new, _) = Client::session(address).await;
    assert!(old.works().await && new.works().await);
    drop(old);
    // It goes on to follow the managers, and ends what leads to a primary that is none any more.
    manager.say(crate::fakes::state(2, 2, true, Some(&b)));
    other.ended().await;
    new.ended().await;
    assert!(service.first.wait().unwrap().success(), "its last session has ended");
    assert_eq!(Client::session(address).await.1, "b");

    let (mut last, _) = Client::session(address).await;
    service.inherited();
    assert!(last.works().await);
    let [.., elder, _] = service.pids[..] else { panic!("two heirs") };
    kill(elder, Signal::SIGTERM).unwrap();
    last.ended().await;
    until("it ends when it is told to", || has_ended(elder));
    assert_eq!(Client::session(address).await.1, "b");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_in_the_way_of_an_heir_leaves_everything_as_it_was() {
    let a = crate::fakes::Backend::start("a").await;
    let manager = Manager::start_with_beat(crate::fakes::state(1, 1, true, Some(&a)), Duration::from_millis(200));
    let dir = tempfile::tempdir().unwrap();
    let mut service = Service::start(dir.path(), &manager);
    let address = ([127, 0, 0, 1], service.port).into();
    let (mut old, _) = Client::session(address).await;
    let file = dir.path().join("router.toml");
    let good = fs::read_to_string(&file).unwrap();
    // With a port more, which is free, and statistics, which its own heir has, too.
    let [more, metrics] = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let ready = || async move { asked(metrics, "GET /ready").await.0 };
    fs::write(&file, format!("{good}read_only = \"{more}\"\nmetrics = \"{metrics}\"\n")).unwrap();
    for _ in 0..2 {
        service.inherited();
        assert_eq!(Client::session(more).await.1, "a");
        assert_eq!(ready().await, 200);
    }
    let log = || fs::read_to_string(dir.path().join("router.log")).unwrap();
    fs::write(&file, format!("{good}nonsense = 1\n")).unwrap();
    service.reload();
    until("it is told", || log().contains("a new process did not take the ports over; this one goes on"));
    assert!(log().contains("router.nonsense: unknown key"), "{}", log());
    assert!(old.works().await);
    Client::session(address).await;

    // And one that isn't where it was.
    let moved = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    fs::write(&file, good.replace(&address.to_string(), &moved.to_string())).unwrap();
    service.inherited();
    assert_eq!(Client::session(moved).await.1, "a");
    until("the ports it no longer has are closed", || {
        [address, more, metrics].iter().all(|gone| std::net::TcpStream::connect(gone).is_err())
    });
    assert!(old.works().await);
}

#[test]
fn nothing_is_inherited_from_a_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let (mut command, _) = router_command(dir.path(), &[], 10);
    let status = command.arg("--inherit").status().unwrap();
    assert_eq!(status.code(), Some(1));
    let log = fs::read_to_string(dir.path().join("router.log")).unwrap();
    assert!(log.contains("is for a router that is started by another one"), "{log}");
}
