//! The router before a real PostgreSQL. Passed over where none is installed.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use matriarch::rpc::v1::RoutingState;
use tokio::{process::Command, time::sleep};
use tokio_postgres::{Client, Config, NoTls, config::SslMode, error::SqlState};

use crate::fakes::{Manager, Options, router};

/// A PostgreSQL in a temporary directory; stopped when dropped.
pub struct Server {
    pub bin: PathBuf,
    pub dir: tempfile::TempDir,
    pub port: u16,
    /// Settings of its command line.
    settings: Vec<String>,
}

/// PostgreSQL refuses to run as root, so root runs it as `postgres`.
fn command(program: &Path) -> Command {
    if !nix::unistd::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--"]).arg(program);
    command
}

/// Gives what root made to the user PostgreSQL runs as.
pub fn give(path: &Path) {
    if nix::unistd::geteuid().is_root() {
        let user = nix::unistd::User::from_name("postgres").unwrap().unwrap();
        std::os::unix::fs::chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    }
}

/// The programs of PostgreSQL.
fn installed() -> Option<PathBuf> {
    if let Some(wanted) = std::env::var_os("MATRIARCH_TEST_BIN_DIR") {
        return Some(wanted.into());
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    versions.flatten().map(|v| v.path().join("bin")).filter(|b| b.join("initdb").exists()).max()
}

impl Server {
    async fn start() -> Option<Self> {
        Self::start_with(&[], |_| {}).await
    }

    /// Starts one with settings; `prepare` may put files into its directory, beside `data`.
    pub async fn start_with(settings: &[&str], prepare: impl FnOnce(&Path)) -> Option<Self> {
        let bin = installed()?;
        if settings.contains(&"ssl=on") && built_without_tls(&bin) {
            eprintln!("{} was built without TLS: passed over", bin.display());
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        give(dir.path());
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let server = Self { bin, dir, port, settings };
        let initdb = command(&server.bin.join("initdb"))
            .current_dir(server.dir.path())
            .args(["-A", "trust", "-U", "postgres", "-N", "-D"])
            .arg(server.data())
            .output();
        let output = initdb.await.unwrap();
        assert!(output.status.success(), "{output:?}");
        prepare(server.dir.path());
        server.pg_ctl(&["start"]).await;
        Some(server)
    }

    /// A session beside the router.
    pub async fn direct(&self) -> Client {
        connect(self.port, SslMode::Disable).await.unwrap()
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    async fn pg_ctl(&self, args: &[&str]) {
        let socket = self.dir.path().display();
        let mut options = format!("-p {} -c listen_addresses=127.0.0.1 -c fsync=off -k {socket}", self.port);
        for setting in &self.settings {
            options += &format!(" -c {}", setting.replace("DIR", &socket.to_string()));
        }
        let status = command(&self.bin.join("pg_ctl"))
            .current_dir(self.dir.path())
            // Where a test has put locales of its own.
            .env("LOCPATH", self.dir.path())
            .args(args)
            .args(["-w", "-s", "-o", &options, "-D"])
            .arg(self.data())
            .arg("-l")
            .arg(self.dir.path().join("log"))
            .status();
        assert!(status.await.unwrap().success(), "pg_ctl {args:?}");
    }

    pub fn state(&self) -> RoutingState {
        RoutingState {
            hibernated: String::new(),
            moved: Default::default(),
            cluster_id: "c".into(),
            generation: 1,
            epoch: 1,
            open: true,
            primary: "n0".into(),
            primary_address: format!("127.0.0.1:{}", self.port),
            standbys: Vec::new(),
            confirmed_age_ms: 0,
            revision: 1,
            stale_ms: 0,
            hold_ms: 0,
            draining: false,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = std::fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        if let Some(pid) = pid.lines().next().and_then(|l| l.parse().ok()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGQUIT);
        }
    }
}

async fn connect(port: u16, ssl: SslMode) -> Result<Client, tokio_postgres::Error> {
    let mut config = Config::new();
    config.host("127.0.0.1").port(port).user("postgres").dbname("postgres").ssl_mode(ssl);
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn one(client: &Client) -> i32 {
    client.query_one("select 1", &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_restart_in_place_is_a_slow_connect_and_no_error() {
    let Some(server) = Server::start().await else {
        println!("passed over: no PostgreSQL installed");
        return;
    };
    let manager = Manager::start(server.state());
    let r = router(&[&manager], Options { hold: Duration::from_secs(30), ..Options::default() }).await;
    let port = r.read_write.port();
    assert_eq!(one(&connect(port, SslMode::Disable).await.unwrap()).await, 1);

    let done = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..8)
        .map(|_| {
            let done = Arc::clone(&done);
            tokio::spawn(async move {
                let mut connects = 0;
                while !done.load(Ordering::SeqCst) {
                    // A session that a restart ends is no failure, not even when the server had
                    // only just let it in. To be refused is one, and to be told to come again.
                    match connect(port, SslMode::Disable).await {
                        Ok(client) => drop(client.query_one("select count(*) from pg_class", &[]).await),
                        Err(error) if error.is_closed() => {}
                        Err(error) => assert_eq!(error.code(), Some(&SqlState::ADMIN_SHUTDOWN), "{error:?}"),
                    }
                    connects += 1;
                }
                connects
            })
        })
        .collect();
    for mode in ["immediate", "fast", "immediate"] {
        sleep(Duration::from_millis(200)).await;
        server.pg_ctl(&["restart", "-m", mode]).await;
    }
    sleep(Duration::from_millis(200)).await;
    done.store(true, Ordering::SeqCst);
    for worker in workers {
        assert!(worker.await.unwrap() > 3);
    }
}

#[tokio::test]
async fn who_connects_in_quick_succession_finds_a_process_of_the_server_ready() {
    let Some(server) = Server::start().await else {
        println!("passed over: no PostgreSQL installed");
        return;
    };
    let manager = Manager::start(server.state());
    for connect_ahead in [true, false] {
        let metrics = Some(([127, 0, 0, 1], 0).into());
        let r = router(&[&manager], Options { connect_ahead, metrics, ..Options::default() }).await;
        const CLIENTS: usize = 60;
        for ssl in [SslMode::Disable, SslMode::Prefer] {
            for _ in 0..CLIENTS / 2 {
                assert_eq!(one(&connect(r.read_write.port(), ssl).await.unwrap()).await, 1);
            }
        }
        let (_, page) = crate::figures::asked(r.metrics(), "GET /status").await;
        let page: serde_json::Value = serde_json::from_str(&page).unwrap();
        let of = |name: &str| page["ports"]["read_write"][name].as_u64().unwrap_or_else(|| panic!("{name}: {page}"));
        println!("{} of {} on connections that were opened ahead", of("sessions_ahead_total"), of("sessions_total"));
        assert_eq!(of("sessions_total"), CLIENTS as u64);
        // After each tenth of a second in which a busy machine lets nobody in it begins anew.
        let expected = if connect_ahead { 1..CLIENTS as u64 } else { 0..1 };
        assert!(expected.contains(&of("sessions_ahead_total")), "{page}");
    }
}

#[tokio::test]
async fn a_query_is_cancelled_through_the_router() {
    let Some(server) = Server::start().await else {
        println!("passed over: no PostgreSQL installed");
        return;
    };
    let manager = Manager::start(server.state());
    let r = router(&[&manager], Options::default()).await;
    for port in [r.read_write, r.read_only] {
        let client = connect(port.port(), SslMode::Disable).await.unwrap();
        let token = client.cancel_token();
        let query = tokio::spawn(async move { client.batch_execute("select pg_sleep(60)").await });
        sleep(Duration::from_millis(200)).await;
        token.cancel_query(NoTls).await.unwrap();
        assert_eq!(query.await.unwrap().unwrap_err().code(), Some(&SqlState::QUERY_CANCELED));
    }
}

#[tokio::test]
async fn libpq_connects_in_each_of_its_ways() {
    let Some(server) = Server::start().await else {
        println!("passed over: no PostgreSQL installed");
        return;
    };
    let manager = Manager::start(server.state());
    let r = router(&[&manager], Options::default()).await;
    for mode in ["sslmode=disable gssencmode=disable", "sslmode=prefer", "sslmode=prefer gssencmode=prefer"] {
        let target = format!("host=127.0.0.1 port={} user=postgres dbname=postgres {mode}", r.read_write.port());
        let output = Command::new(server.bin.join("psql")).args(["-XAtc", "select 41 + 1", &target]).output();
        let output = output.await.unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "42\n", "{mode}: {output:?}");
    }
}

/// Its server has the words with which it refuses `ssl = on`.
fn built_without_tls(bin: &Path) -> bool {
    let words = b"SSL is not supported by this build";
    std::fs::read(bin.join("postgres")).unwrap().windows(words.len()).any(|window| window == words)
}
