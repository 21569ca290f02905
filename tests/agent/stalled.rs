//! Disks that stand still or lose their files under a real server. A file system is frozen by root, in the process that
//! started the test, for as long as the test holds a connection to it: it goes on whatever becomes of the test.

use std::{
    env, fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use matriarch::{
    config::Config,
    domain::{Profile, Timings},
    rpc::v1::{self, PostgresState as State, order::Action},
};
use nix::unistd::{geteuid, getppid};

use super::{Cluster, DEADLINE, Host, as_postgres};

/// See `demo::disks`: frozen before it says so, and thawed when its standard input ends.
const FREEZE: &str =
    "fsfreeze --freeze \"$DISK\" || exit 1; echo frozen; cat > /dev/null; fsfreeze --unfreeze \"$DISK\"";

/// Scheduling, and the way of a status to the test.
const SLACK: Duration = Duration::from_millis(1_500);

/// Each test has its own: two of one process run beside each other. Short, for there is a socket in it.
fn ground_of(pid: u32, test: &str) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    test.hash(&mut hasher);
    env::temp_dir().join(format!("matriarch-stalled-{pid}-{:x}", hasher.finish()))
}

fn run(program: &str, args: &[&Path]) -> Result<(), String> {
    let output = Command::new(program).args(args).output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}

/// A file system of root's; unmounted when dropped.
struct Ground(PathBuf);

impl Ground {
    fn new(test: &str) -> Result<Ground, String> {
        let ground = Ground(ground_of(std::process::id(), test));
        let (image, disk) = (ground.0.join("image"), ground.0.join("disk"));
        fs::create_dir_all(&disk).map_err(|e| e.to_string())?;
        fs::File::create(&image).and_then(|f| f.set_len(512 << 20)).map_err(|e| e.to_string())?;
        run("mkfs.ext4", &[Path::new("-q"), Path::new("-F"), &image])?;
        run("mount", &[Path::new("-o"), Path::new("loop"), &image, &disk])?;
        run("chown", &[Path::new("postgres"), &disk])?;
        run("chmod", &[Path::new("0700"), &disk])?;
        let listener = UnixListener::bind(ground.0.join("freezer")).map_err(|e| e.to_string())?;
        run("chown", &[Path::new("postgres"), &ground.0.join("freezer")])?;
        thread::spawn(move || listener.incoming().for_each(|asked| freeze_for(asked.unwrap(), &disk)));
        Ok(ground)
    }
}

/// For as long as whoever asked keeps the connection; if this process ends first the disk goes on as well.
fn freeze_for(mut asked: UnixStream, disk: &Path) {
    let mut command = Command::new("setsid");
    command.args(["sh", "-c", FREEZE]).env("DISK", disk).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut freezer = command.spawn().unwrap();
    let mut said = String::new();
    BufReader::new(freezer.stdout.take().unwrap()).read_line(&mut said).unwrap();
    let _ = asked.write_all(said.as_bytes());
    let _ = asked.read(&mut [0]);
    drop(freezer.stdin.take());
    freezer.wait().unwrap();
    let _ = asked.write_all(b"thawed\n");
}

impl Drop for Ground {
    fn drop(&mut self) {
        let until = Instant::now() + Duration::from_secs(10);
        while run("umount", &[&self.0.join("disk")]).is_err() && Instant::now() < until {
            thread::sleep(Duration::from_millis(50));
        }
        let _ = run("umount", &[Path::new("--lazy"), &self.0.join("disk")]);
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs the body as `postgres` with a disk that can be frozen.
fn with_a_disk<F: Future<Output = ()>>(test: &str, body: impl FnOnce(Disk) -> F) {
    let ground = geteuid().is_root().then(|| Ground::new(test));
    if let Some(Err(why)) = &ground {
        println!("SKIPPED: no loop-mounted ext4 here ({why})");
        let _ = fs::remove_dir_all(ground_of(std::process::id(), test));
        return;
    }
    as_postgres(test, || async {
        let disk = Disk(ground_of(getppid().as_raw().unsigned_abs(), test));
        match disk.0.exists() {
            true => body(disk).await,
            false => println!("SKIPPED: only root can freeze a file system"),
        }
    });
    drop(ground);
}

struct Disk(PathBuf);

/// Goes on when dropped.
struct Frozen(BufReader<UnixStream>);

impl Disk {
    fn dir(&self) -> PathBuf {
        self.0.join("disk")
    }

    fn freeze(&self) -> Frozen {
        let mut frozen = Frozen(BufReader::new(UnixStream::connect(self.0.join("freezer")).unwrap()));
        assert_eq!(frozen.said(), "frozen\n");
        frozen
    }
}

impl Frozen {
    fn said(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }

    fn thaw(mut self) {
        self.0.get_ref().shutdown(Shutdown::Write).unwrap();
        assert_eq!(self.said(), "thawed\n");
    }
}

/// A primary of this configuration, and a standby that streams from it.
async fn followed(cluster: &Cluster, config: Config) -> (Host, Host) {
    let mut first = cluster.primary_of(config).await;
    let mut second = cluster.host(1).await;
    second.system = first.system;
    let clone = v1::Clone {
        source: first.local().id.to_string(),
        source_host: "127.0.0.1".into(),
        source_port: first.local().postgresql.port.into(),
        system_identifier: first.system,
        fork: None,
        named: None,
    };
    second.execute(1, Action::Clone(clone)).await.unwrap();
    second.until("it is cloned", |s| s.state() == State::Stopped && s.wal_end_known).await;
    second.follow(1, Some(&first)).await;
    second.until("it streams", |s| s.state() == State::Standby && s.streaming).await;
    first.until("the primary sees it", |s| s.standbys.iter().any(|b| b.state == "streaming")).await;
    (first, second)
}

/// Writes until it may not; when each write that was acknowledged was.
async fn keep_writing(host: &Host) -> Arc<Mutex<Vec<Instant>>> {
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let (client, noted) = (host.client().await, Arc::clone(&acknowledged));
    tokio::spawn(async move {
        while client.execute("INSERT INTO t VALUES (2)", &[]).await.is_ok() {
            noted.lock().unwrap().push(Instant::now());
        }
    });
    acknowledged
}

/// When a majority of the voters has no promise to the old epoch left.
async fn promises_end(cluster: &Cluster) -> Instant {
    for voter in &cluster.voters {
        let mut promise = voter.promise();
        let lapsed = promise.wait_for(|p| p.lapsed);
        tokio::time::timeout(DEADLINE, lapsed).await.expect("a promise never ended").unwrap();
    }
    Instant::now()
}

/// From the stall to the last promise. The write is begun up to a third of `probe` after it.
fn bound() -> Duration {
    let Timings { probe, grant, .. } = Timings::of(Profile::Fast);
    probe + probe / 3 + grant + SLACK
}

async fn comes_back(host: &mut Host) {
    let over = host.until("the tree is empty", |s| s.state() == State::Stopped && s.wal_end_known).await;
    assert_eq!((over.ended_epoch, over.fenced_epoch), (1, 1));
    host.until("the disk is well", |s| s.storage.is_empty()).await;
    host.follow(1, None).await;
    host.until("it is a standby", |s| s.state() == State::Standby && s.wal_end_known).await;
}

/// What waits for the disk can't be killed; the epoch ends without waiting for it, and nothing is acknowledged after.
#[test]
fn a_disk_that_stands_still_ends_the_epoch_before_the_tree_is_dead() {
    with_a_disk("stalled::a_disk_that_stands_still_ends_the_epoch_before_the_tree_is_dead", |disk| async move {
        let cluster = Cluster::new();
        let mut config = cluster.config(0);
        config.member.as_mut().unwrap().postgresql.data_dir = disk.dir().join("data");
        let (mut host, _second) = Box::pin(followed(&cluster, config)).await;
        let acknowledged = keep_writing(&host).await;
        let frozen = disk.freeze();
        let began = Instant::now();
        let over = host.until("the epoch is over", |s| s.ended_epoch == 1).await;
        let noticed = began.elapsed();
        let free = promises_end(&cluster).await.duration_since(began);
        eprintln!("noticed after {noticed:?}, no promise left after {free:?}");
        assert!(noticed >= Timings::of(Profile::Fast).probe && free < bound(), "{noticed:?}, {free:?}");
        assert!(over.storage.contains("has not finished a write"), "{over:?}");
        let status = host.status().await;
        assert_eq!((status.state(), status.fenced_epoch), (State::Stopping, 0), "it hangs in the kernel still");
        let before = acknowledged.lock().unwrap().len();
        frozen.thaw();
        comes_back(&mut host).await;
        let times = acknowledged.lock().unwrap().clone();
        assert_eq!(times.len(), before, "a write was acknowledged after the epoch was over");
        assert!(times.iter().all(|at| at.saturating_duration_since(began) < SLACK), "nothing ends on a frozen disk");
    });
}

/// With the agent's own files there its loop stops with them, and says nothing more. Nothing is renewed all the same.
#[test]
fn a_disk_that_holds_the_agents_own_files_too_does_not_keep_the_lease() {
    with_a_disk("stalled::a_disk_that_holds_the_agents_own_files_too_does_not_keep_the_lease", |disk| async move {
        let cluster = Cluster::new();
        let mut config = cluster.config(0);
        let local = config.member.as_mut().unwrap();
        local.postgresql.data_dir = disk.dir().join("data");
        local.agent.state_dir = disk.dir().join("state");
        fs::create_dir(&local.agent.state_dir).unwrap();
        let (mut host, _second) = Box::pin(followed(&cluster, config)).await;
        let acknowledged = keep_writing(&host).await;
        let frozen = disk.freeze();
        let began = Instant::now();
        let free = promises_end(&cluster).await.duration_since(began);
        eprintln!("no promise left after {free:?}");
        assert!(free < bound(), "{free:?}");
        let before = acknowledged.lock().unwrap().len();
        frozen.thaw();
        comes_back(&mut host).await;
        assert_eq!(acknowledged.lock().unwrap().len(), before, "a write was acknowledged after the epoch was over");
    });
}

#[test]
fn a_standby_whose_disk_stands_still_says_so_and_goes_on_with_it() {
    with_a_disk("stalled::a_standby_whose_disk_stands_still_says_so_and_goes_on_with_it", |disk| async move {
        let cluster = Cluster::new();
        let mut config = cluster.config(0);
        config.member.as_mut().unwrap().postgresql.data_dir = disk.dir().join("data");
        let (mut host, _) = cluster.standby_of(config).await;
        let frozen = disk.freeze();
        let ill = host.until("it names its disk", |s| !s.storage.is_empty()).await;
        assert_eq!((ill.state(), &ill.problem), (State::Standby, &ill.storage));
        frozen.thaw();
        let well = host.until("the disk is well", |s| s.storage.is_empty()).await;
        assert_eq!((well.state(), well.problem.as_str()), (State::Standby, ""));
    });
}

#[test]
fn a_data_directory_that_is_gone_ends_the_epoch() {
    as_postgres("stalled::a_data_directory_that_is_gone_ends_the_epoch", || async {
        let cluster = Cluster::new();
        let (mut host, _second) = Box::pin(followed(&cluster, cluster.config(0))).await;
        let data = host.local().postgresql.data_dir.clone();
        fs::rename(&data, data.with_extension("elsewhere")).unwrap();
        let began = Instant::now();
        let over = host.until("the epoch is over", |s| s.fenced_epoch == 1 && s.state() == State::NoData).await;
        let noticed = began.elapsed();
        eprintln!("gone for {noticed:?}");
        assert!(noticed < Timings::of(Profile::Fast).probe + SLACK, "{noticed:?}");
        assert_eq!(over.ended_epoch, 1);
    });
}
