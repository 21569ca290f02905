//! What applications see of a switchover and of the loss of the primary's host: each driver as it is found elsewhere, in a small
//! program of its own (beside this file), through the router and straight to the members, all at the same time.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use matriarch::{
    demo::rig::{Ground, ROUTED, Rig},
    rpc::v1::StatusReply,
};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::{Pid, geteuid},
};
use tokio_postgres::{Config, NoTls};

use crate::{
    addresses::{
        a_standby_has_the_address_for_standbys_and_never_two_hosts, keepalived_by_the_shipped_example,
        vip_manager_by_the_health_check,
    },
    failovers::STREAMED,
    stage::{EXE, HEAL, Promise, SOON, Step, others, seen_down, until},
};

pub const STEPS: &[Step] = &[
    ("every_driver_in_a_switchover_and_in_the_loss_of_a_host", every_driver_in_a_switchover_and_in_the_loss_of_a_host),
    ("vip_manager_by_the_health_check", vip_manager_by_the_health_check),
    ("keepalived_by_the_shipped_example", keepalived_by_the_shipped_example),
    (
        "a_standby_has_the_address_for_standbys_and_never_two_hosts",
        a_standby_has_the_address_for_standbys_and_never_two_hosts,
    ),
];

/// A lost host is silent where hosts have networks of their own; on loopback its ports refuse.
pub fn ground() -> Ground {
    // With the agents' capabilities, for an address of Matriarch's own.
    Ground { netns: geteuid().is_root(), as_units: geteuid().is_root(), ..Ground::default() }
}

/// Longer than a router holds a connection, and than three rounds of members of which one is silent.
const RECOVERED: Duration = Duration::from_secs(60);
/// Of every program the first write: a JVM takes its time when six others start as well.
const STARTED: Duration = Duration::from_secs(60);
const PACE: Duration = Duration::from_millis(50);
const TABLE: &str = "create table driver_writes (way text, n bigint, primary key (way, n))";
const INSERT: &str = "insert into driver_writes (way, n) values ($1, $2)";

/// Set up otherwise than is recommended: measured, and nothing is expected of it.
fn is_wrong(way: &str) -> bool {
    ["bare", "as it is", "checks", "as printed"].iter().any(|word| way.contains(word))
}

/// What a program told, when it was read.
#[derive(Clone)]
struct Told {
    at: Instant,
    way: String,
    wrote: Result<i64, String>,
}

type Journal = Arc<Mutex<Vec<Told>>>;
/// Names, and what each connects with.
type Ways = Vec<(&'static str, String)>;

/// Ends with the step, with all that it started.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

/// Whence the drivers come, and where they go.
struct Scene<'r> {
    rig: &'r Rig,
    installed: PathBuf,
    password: String,
}

impl Scene<'_> {
    /// What `matriarch dsn` prints.
    fn dsn(&self, driver: &str, through_router: bool) -> String {
        let client = self.rig.contact("client").unwrap();
        let mut command = Command::new(EXE);
        command.arg("dsn").arg("--config").arg(self.rig.config(&self.rig.members()[0]).unwrap());
        command.args(["--driver", driver, "--user", client.user, "--database", client.database]);
        if through_router {
            command.arg("--router").arg(format!("{}:{}", client.address, client.router_port));
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn routed(&self, driver: &str) -> String {
        self.dsn(driver, true)
    }

    fn direct(&self, driver: &str) -> String {
        self.dsn(driver, false)
    }

    /// Without what limits a wait.
    fn bare(&self, driver: &str) -> String {
        let dsn = self.direct(driver);
        match dsn.split_once('?') {
            Some((hosts, parameters)) => {
                let kept = parameters.split('&').filter(|p| p.starts_with("user=") || p.starts_with("target"));
                format!("{hosts}?{}", kept.collect::<Vec<_>>().join("&"))
            }
            None => {
                let kept = dsn.split(' ').take_while(|word| !word.starts_with("connect_timeout"));
                kept.collect::<Vec<_>>().join(" ")
            }
        }
    }

    fn python(&self, program: &str) -> Option<Command> {
        let packages = self.installed.join("python");
        let python = Path::new("/usr/bin/python3");
        (packages.is_dir() && python.exists()).then(|| {
            let mut command = Command::new(python);
            command.arg("-B").arg(here(program)).env("PYTHONPATH", packages);
            command
        })
    }

    fn java(&self) -> Option<Command> {
        let driver = Path::new("/usr/share/java/postgresql.jar");
        // Compiling takes a JDK.
        (driver.exists() && found("javac")).then(|| {
            let mut command = Command::new("java");
            command.args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx128m", "-cp"]);
            command.arg(driver).arg(here("WithPgjdbc.java"));
            command
        })
    }

    fn node(&self) -> Option<Command> {
        let modules = self.installed.join("node/node_modules");
        (modules.is_dir() && found("node")).then(|| {
            let mut command = Command::new("node");
            command.arg(here("node/with_pg.js")).env("NODE_PATH", modules);
            command
        })
    }

    fn psql(&self) -> Option<Command> {
        found("psql").then(|| Command::new(here("with_psql.sh")))
    }

    /// Each program with its ways; `None`: it isn't installed.
    fn programs(&self) -> Vec<(&'static str, Option<Command>, Ways)> {
        let psycopg = vec![
            ("psycopg routed", self.routed("libpq")),
            ("psycopg direct", self.direct("libpq")),
            ("psycopg direct, bare", self.bare("libpq")),
            ("psycopg routed, pool as it is", self.routed("libpq")),
            ("psycopg routed, pool that checks", self.routed("libpq")),
            ("psycopg routed, pool that drains", self.routed("libpq")),
        ];
        let asyncpg = vec![
            ("asyncpg routed", self.routed("asyncpg")),
            ("asyncpg direct, as printed", self.direct("asyncpg")),
            ("asyncpg direct, turned", self.direct("asyncpg")),
        ];
        let pgjdbc = vec![
            ("pgjdbc routed", self.routed("jdbc")),
            ("pgjdbc direct", self.direct("jdbc")),
            ("pgjdbc direct, bare", self.bare("jdbc")),
        ];
        vec![
            (
                "psql",
                self.psql(),
                vec![("psql routed", self.routed("libpq-uri")), ("psql direct", self.direct("libpq-uri"))],
            ),
            ("psycopg", self.python("with_psycopg.py"), psycopg),
            ("asyncpg", self.python("with_asyncpg.py"), asyncpg),
            ("pgjdbc", self.java(), pgjdbc),
            ("node-postgres", self.node(), vec![("node-postgres routed", self.routed("node"))]),
        ]
    }

    /// Starts them all. What they say on stderr goes to files.
    fn start(&self, journal: &Journal) -> (Vec<Program>, BTreeSet<String>) {
        let (mut programs, mut ways) = (Vec::new(), BTreeSet::new());
        for (name, command, own_ways) in self.programs() {
            let Some(mut command) = command else {
                println!("{name} is not installed: passed over");
                continue;
            };
            for (way, dsn) in own_ways {
                command.args([way, &dsn]);
                ways.insert(way.to_owned());
            }
            let log = self.rig.dir(&self.rig.members()[0]).unwrap().join(format!("{name}.log"));
            command.env("PGPASSWORD", &self.password).process_group(0);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(std::fs::File::create(log).unwrap());
            let mut child = command.spawn().unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let journal = Arc::clone(journal);
            thread::spawn(move || {
                for line in lines.map_while(Result::ok) {
                    journal.lock().unwrap().push(told(&line));
                }
            });
            programs.push(Program(child));
        }
        for (way, dsn) in
            [("tokio-postgres routed", self.routed("rust")), ("tokio-postgres direct", self.direct("rust"))]
        {
            let mut config: Config = dsn.parse().unwrap();
            config.password(&self.password);
            let journal = Arc::clone(journal);
            thread::spawn(move || with_tokio_postgres(way, &config, &journal));
            ways.insert(way.to_owned());
        }
        (programs, ways)
    }
}

fn here(program: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/drivers").join(program)
}

fn found(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|place| place.join(program).exists())
}

/// Where `deploy/scripts/drivers.sh` puts them.
pub fn installed() -> PathBuf {
    let built =
        || std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from).join("drivers");
    let place = std::env::var_os("MATRIARCH_TEST_DRIVERS").map_or_else(built, PathBuf::from);
    Path::new(env!("CARGO_MANIFEST_DIR")).join(place)
}

fn told(line: &str) -> Told {
    let words: Vec<&str> = line.splitn(3, '\t').collect();
    let [way, what, of] = words[..] else { panic!("a program told {line:?}") };
    let wrote = if what == "wrote" { Ok(of.parse().unwrap()) } else { Err(of.to_owned()) };
    Told { at: Instant::now(), way: way.to_owned(), wrote }
}

/// The same program in this one; ends with the process or when nobody else looks at its journal.
fn with_tokio_postgres(way: &'static str, config: &Config, journal: &Journal) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (mut client, mut failures) = (None, 0_u32);
    for n in 1.. {
        if Arc::strong_count(journal) == 1 {
            return;
        }
        let wrote = runtime.block_on(write(config, &mut client, way, n));
        let failed = wrote.is_err();
        journal.lock().unwrap().push(Told { at: Instant::now(), way: way.to_owned(), wrote: wrote.map(|()| n) });
        let pause = if failed { PACE * (1 << failures.min(4)) } else { PACE };
        failures = if failed { failures + 1 } else { 0 };
        // The connection's task goes on meanwhile, as in an application.
        runtime.block_on(async { tokio::time::sleep(pause).await });
    }
}

async fn write(config: &Config, client: &mut Option<tokio_postgres::Client>, way: &str, n: i64) -> Result<(), String> {
    const CONNECT: Duration = Duration::from_secs(23);
    let patience = if way.contains("direct") { CONNECT.min(Duration::from_secs(9)) } else { CONNECT };
    // Dropped on any error.
    let own = match client.take() {
        Some(own) => own,
        None => {
            let connected = tokio::time::timeout(patience, config.connect(NoTls)).await;
            let (new, connection) = connected.map_err(|_| "connect(): timed out")?.map_err(|e| error_text(&e))?;
            tokio::spawn(connection);
            new
        }
    };
    own.execute(INSERT, &[&way, &n]).await.map_err(|e| error_text(&e))?;
    *client = Some(own);
    Ok(())
}

fn error_text(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{}: {}", db.code().code(), db.message()),
        None => std::error::Error::source(error).map_or_else(|| error.to_string(), |why| format!("{error}: {why}")),
    }
}

/// What one way saw of what began at a moment.
struct Seen {
    /// The longest time between two writes that ended well; when the last one goes on, without a second.
    gap: Duration,
    recovered: bool,
    errors: BTreeMap<String, usize>,
}

fn seen(journal: &Journal, way: &str, since: Instant) -> Seen {
    let told = journal.lock().unwrap();
    let own: Vec<&Told> = told.iter().filter(|t| t.way == way).collect();
    let mut good: Vec<Instant> = own.iter().filter(|t| t.wrote.is_ok()).map(|t| t.at).collect();
    // A write that was acknowledged when it began may be read a moment later.
    let recovered = good.last().is_some_and(|last| *last > since + Duration::from_secs(1));
    good.push(Instant::now());
    let gap = good.windows(2).filter(|two| two[1] > since).map(|two| two[1] - two[0]).max().unwrap_or(Duration::MAX);
    let mut errors = BTreeMap::new();
    for error in own.iter().filter(|t| t.at > since).filter_map(|t| t.wrote.as_ref().err()) {
        *errors.entry(error.chars().take(150).collect()).or_default() += 1;
    }
    Seen { gap, recovered, errors }
}

/// Waits until each writes again that is set up as is recommended, and a while more; prints what each saw.
fn recovered(journal: &Journal, ways: &BTreeSet<String>, since: Instant, of: &str) {
    let silent = || -> Vec<&String> {
        ways.iter().filter(|way| !is_wrong(way) && !seen(journal, way, since).recovered).collect()
    };
    while !silent().is_empty() && since.elapsed() < RECOVERED {
        thread::sleep(Duration::from_millis(100));
    }
    // So that what is set up otherwise has a chance, and every connection of a pool its turn. Longer to measure it.
    let more = std::env::var("MATRIARCH_DRIVERS_SECONDS").map_or(3, |seconds| seconds.parse().unwrap());
    thread::sleep(Duration::from_secs(more));
    for way in ways {
        let Seen { gap, recovered, errors } = seen(journal, way, since);
        let none = if recovered { "" } else { ", and none since" };
        let count: usize = errors.values().sum();
        println!("{of}: {way}: {:.2} s without a write{none}; {count} errors {errors:?}", gap.as_secs_f64());
    }
    assert!(silent().is_empty(), "{of}: {:?} write no more after {RECOVERED:?}", silent());
}

/// Acknowledged rows that the member does not have, with the moment in which that was read.
fn missing(rig: &Rig, member: &str, acknowledged: &[Told]) -> Vec<Told> {
    let rows = rig.query(member, "select way || '\t' || n from driver_writes").unwrap();
    let rows: BTreeSet<&str> = rows.iter().map(String::as_str).collect();
    let lost = |t: &&Told| t.wrote.as_ref().is_ok_and(|n| !rows.contains(format!("{}\t{n}", t.way).as_str()));
    acknowledged.iter().filter(lost).cloned().collect()
}

fn every_driver_in_a_switchover_and_in_the_loss_of_a_host(rig: &Rig, before: &StatusReply) -> Promise {
    // Whom every string names first: nothing is worse than when that one is silent.
    let first = rig.members()[0].clone();
    if before.primary == first {
        switched(rig, &others(rig, &[&first])[0]);
    }
    let client = rig.contact("client").unwrap();
    let scene = Scene { rig, installed: installed(), password: client.password.clone() };
    let mut config: Config = scene.routed("rust").parse().unwrap();
    config.password(&client.password);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let made = runtime.block_on(async {
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        client.batch_execute(TABLE).await
    });
    made.unwrap();

    let journal = Journal::default();
    let (programs, ways) = scene.start(&journal);
    for way in &ways {
        until(&format!("{way} writes"), STARTED, || {
            journal.lock().unwrap().iter().any(|t| t.way == *way && t.wrote.is_ok())
        });
    }
    thread::sleep(Duration::from_secs(1));

    let began = Instant::now();
    switched(rig, &first);
    recovered(&journal, &ways, began, "switchover");
    let acknowledged = journal.lock().unwrap().clone();
    let lost = missing(rig, &first, &acknowledged);
    assert!(lost.is_empty(), "{} acknowledged rows are lost by a switchover: {:?}", lost.len(), lost[0].way);

    let silent = if rig.switch().is_some() { "silent" } else { "refusing" };
    let (server, fault) = (rig.server().unwrap(), rig.kill_host(&first).unwrap());
    rig.wait_for_write(ROUTED, fault, Some(&server), SOON).unwrap();
    recovered(&journal, &ways, fault, &format!("loss of a host, then {silent}"));
    drop(programs);
    let acknowledged = journal.lock().unwrap().clone();
    drop(journal);
    seen_down(rig, &first);
    rig.boot_host(&first).unwrap();
    let after = rig.healthy(HEAL).unwrap();
    let lost = missing(rig, &after.primary, &acknowledged);
    println!(
        "{} of {} acknowledged rows are lost",
        lost.len(),
        acknowledged.iter().filter(|t| t.wrote.is_ok()).count()
    );
    let old = lost.iter().find(|t| t.at < fault - STREAMED);
    assert!(old.is_none(), "lost, though the standbys had time to get it: {:?}", old.map(|t| (&t.way, fault - t.at)));
    Promise::asynchronous(fault, fault - STREAMED).ended(server)
}

pub fn switched(rig: &Rig, to: &str) {
    let reply = rig.switchover(to).unwrap();
    assert!(reply.accepted, "{reply:?}");
    assert!(rig.finished(reply.id, SOON).unwrap().succeeded);
    rig.healthy(HEAL).unwrap();
}
