//! The archive of a real server: what gets into it, what a standby takes from it, and copies that are made of backups.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Instant,
};

use matriarch::rpc::v1::{self, PostgresState as State, order::Action};

use super::{Cluster, DEADLINE, Epoch, Host, PASSWORD, Profile, Timings, as_postgres};

impl Host {
    /// What a manager would tell it: settings, and that the primary is on this timeline, which began there.
    async fn briefed(&mut self, epoch: u64, settings: &[(&str, &str)], lineage: Option<(u32, &[(u32, u64)])>) {
        let values: BTreeMap<String, String> = settings.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let switch = |(timeline, end): &(u32, u64)| v1::TimelineSwitch { timeline: *timeline, end: *end };
        let lineage = lineage
            .map(|(timeline, switches)| v1::Lineage { timeline, switches: switches.iter().map(switch).collect() });
        let settings = Some(v1::Settings { version: 1, values });
        let briefing = Some(v1::Briefing { epoch, settings, lineage, ..Default::default() });
        self.agent.brief(v1::BriefRequest { to: self.to(0), briefing }).await.unwrap();
    }

    fn archive(&self) -> PathBuf {
        self.local().postgresql.data_dir.parent().unwrap().parent().unwrap().join("archive")
    }

    async fn fills(&self, files: usize) {
        let client = self.client().await;
        for statement in ["INSERT INTO t VALUES (5)", "SELECT pg_switch_wal()", "CHECKPOINT"].repeat(files) {
            client.batch_execute(statement).await.unwrap();
        }
    }

    async fn all_archived(&mut self) {
        let last = self.client().await.query_one("SELECT pg_walfile_name(pg_current_wal_lsn() - 1)", &[]).await;
        let last: String = last.unwrap().get(0);
        let done = |s: &v1::AgentStatus| {
            s.archive.as_ref().is_some_and(|a| a.waiting == 0 && a.last_archived.as_str() >= last.as_str())
        };
        self.client().await.batch_execute("SELECT pg_switch_wal()").await.unwrap();
        self.until("everything is archived", done).await;
    }
}

/// Both commands on a directory, which is made.
fn plain(cluster: &Cluster) -> [(&'static str, String); 2] {
    let dir = cluster.root.path().join("archive");
    fs::create_dir_all(&dir).unwrap();
    let put = format!("test ! -e {0}/closed && cp %p {0}/%f", dir.display());
    let get = format!("cp {}/%f %p", dir.display());
    [("archive_command", put), ("restore_command", get)]
}

fn as_text<'a>(settings: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    settings.iter().map(|(key, value)| (*key, value.as_str())).collect()
}

/// A primary that archives, and what its briefing says of its timelines.
async fn archiving(cluster: &Cluster, settings: &[(&'static str, String)]) -> (Host, (u32, Vec<(u32, u64)>)) {
    let mut first = Host::start(cluster.config(0)).await;
    first.briefed(0, &as_text(settings), None).await;
    let (mut first, end) = first.into_standby().await;
    first.promote(1, 2, end).await;
    let primary = first.until("it is primary", |s| s.state() == State::Primary).await;
    let switches = primary.history.iter().map(|s| (s.timeline, s.end)).collect();
    let client = first.client().await;
    client.batch_execute("CREATE TABLE t (i int); INSERT INTO t VALUES (1)").await.unwrap();
    (first, (2, switches))
}

/// A standby that knows the same.
async fn standby(
    cluster: &Cluster,
    index: usize,
    settings: &[(&'static str, String)],
    lineage: &(u32, Vec<(u32, u64)>),
) -> Host {
    let mut host = cluster.host(index).await;
    host.briefed(1, &as_text(settings), Some((lineage.0, &lineage.1))).await;
    host
}

#[test]
fn what_the_primary_writes_is_archived_and_a_command_that_fails_is_told() {
    let name = "archive::what_the_primary_writes_is_archived_and_a_command_that_fails_is_told";
    as_postgres(name, || async {
        let cluster = Cluster::new();
        let settings = plain(&cluster);
        let (mut first, _) = archiving(&cluster, &settings).await;
        first.all_archived().await;
        assert!(fs::read_dir(first.archive()).unwrap().count() >= 2, "the history of its timeline is there, too");
        fs::write(first.archive().join("closed"), "").unwrap();
        first.fills(2).await;
        let failing =
            |s: &v1::AgentStatus| s.archive.as_ref().is_some_and(|a| a.failing_ms.is_some() && a.waiting >= 2);
        let told = first.until("archiving fails", failing).await.archive.unwrap();
        assert!(told.failed > 0 && !told.last_failed.is_empty() && told.said.contains("exit status: 1"), "{told:?}");
        assert_eq!(told.waiting_bytes >> 20, told.waiting * 16);
        fs::remove_file(first.archive().join("closed")).unwrap();
        first.fills(1).await;
        let works = |s: &v1::AgentStatus| s.archive.as_ref().is_some_and(|a| a.failing_ms.is_none() && a.waiting == 0);
        first.until("it works again", works).await;
        // Switched off, nothing waits for ever though PostgreSQL still archives.
        let off = [("archive_command", "")];
        let settings = Some(v1::Settings { version: 2, values: off.map(|(k, v)| (k.to_owned(), v.to_owned())).into() });
        let briefing = Some(v1::Briefing { settings, ..Default::default() });
        first.agent.brief(v1::BriefRequest { to: first.to(0), briefing }).await.unwrap();
        first.until("it waits for a restart", |s| s.archive.as_ref().is_some_and(|a| a.wants_restart)).await;
        let archived = fs::read_dir(first.archive()).unwrap().count();
        first.fills(1).await;
        first.until("nothing waits", works).await;
        assert_eq!(fs::read_dir(first.archive()).unwrap().count(), archived);
    });
}

#[test]
fn a_standby_whose_wal_the_primary_has_removed_catches_up_from_the_archive() {
    let name = "archive::a_standby_whose_wal_the_primary_has_removed_catches_up_from_the_archive";
    as_postgres(name, || async {
        let cluster = Cluster::new();
        let settings = plain(&cluster);
        let (mut first, lineage) = archiving(&cluster, &settings).await;
        let mut second = standby(&cluster, 1, &settings, &lineage).await;
        second.copy_and_follow(1, &first).await;
        second.stop(1, false).await;
        second.until("it is stopped", |s| s.state() == State::Stopped && s.wal_end_known).await;
        let client = first.client().await;
        client.batch_execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots").await.unwrap();
        client.batch_execute("ALTER SYSTEM SET wal_keep_size = 0").await.unwrap();
        client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        // What is not archived yet is not removed.
        for _ in 0..2 {
            first.fills(3).await;
            first.all_archived().await;
        }
        client.batch_execute("CHECKPOINT").await.unwrap();
        let segments = "SELECT count(*) FROM pg_ls_waldir() WHERE name = $1";
        let needed = second.status().await.wal_end.unwrap();
        let file = format!("{:08X}{:08X}{:08X}", needed.timeline, needed.lsn >> 32, (needed.lsn >> 24) & 0xff);
        let older: i64 = client.query_one(segments, &[&file]).await.unwrap().get(0);
        assert_eq!(older, 0, "the primary has removed what the standby needs");
        second.follow(1, Some(&first)).await;
        let well = second.until("it streams", |s| s.streaming && s.state() == State::Standby).await;
        assert!(well.cure.is_none() && well.clone_failures == 0, "{well:?}");
        let took = |s: &v1::AgentStatus| s.archive.as_ref().is_some_and(|a| a.restored > 0);
        second.until("it has taken files from the archive", took).await;
        let rows = first.rows().await;
        let begun = Instant::now();
        while second.rows().await != rows {
            assert!(begun.elapsed() < DEADLINE, "it does not get what was written");
        }
        // One that is to follow nobody takes nothing any more.
        let permit = second.local().agent.runtime_dir.join("restore.json");
        assert!(permit.exists());
        second.follow(1, None).await;
        second.until("it follows nobody", |s| s.severed).await;
        assert!(!permit.exists());
    });
}

#[test]
fn a_diverged_primary_that_has_removed_its_wal_is_rewound_with_the_archive() {
    let name = "archive::a_diverged_primary_that_has_removed_its_wal_is_rewound_with_the_archive";
    as_postgres(name, || async {
        let cluster = Cluster::new();
        let settings = plain(&cluster);
        let (mut first, lineage) = archiving(&cluster, &settings).await;
        let mut second = standby(&cluster, 1, &settings, &lineage).await;
        second.copy_and_follow(1, &first).await;
        second.follow(1, None).await;
        let left = second.until("it follows nobody", |s| s.severed && s.wal_end_known).await.wal_end.unwrap();
        first.fills(3).await;
        first.all_archived().await;
        for voter in &cluster.voters {
            voter.seal(Epoch(2)).unwrap();
        }
        first.until("it is fenced", |s| s.state() == State::Stopped && s.wal_end_known).await;
        tokio::time::sleep(Timings::of(Profile::Fast).grant).await;
        second.promote(2, 3, left).await;
        second.until("the checkpoint after the promotion", |s| s.checkpoint_timeline == 3).await;
        let last = second.status().await.history.pop().unwrap();
        let fork = v1::WalPosition { timeline: last.timeline, lsn: last.end };
        // All but the newest two segments.
        let wal = first.local().postgresql.data_dir.join("pg_wal");
        let mut segments: Vec<PathBuf> = fs::read_dir(&wal).unwrap().map(|e| e.unwrap().path()).collect();
        segments.retain(|path| path.file_name().unwrap().len() == 24 && fs::metadata(path).unwrap().is_file());
        segments.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with("00000002"));
        segments.sort();
        let end = first.status().await.wal_end.unwrap().lsn;
        let newest = wal.join(format!("{:08X}{:08X}{:08X}", 2, end >> 32, ((end >> 24) & 0xff) - 1));
        let gone: Vec<&PathBuf> = segments.iter().filter(|path| **path < newest).collect();
        assert!(!gone.is_empty(), "{segments:?}");
        gone.into_iter().for_each(|path| fs::remove_file(path).unwrap());
        let order = v1::Rewind {
            source: second.local().id.to_string(),
            source_host: "127.0.0.1".into(),
            source_port: second.local().postgresql.port.into(),
            system_identifier: first.system,
            fork: Some(fork),
        };
        first.execute(2, Action::Rewind(order)).await.unwrap();
        let ended = |s: &v1::AgentStatus| s.last_order.as_ref().is_some_and(|o| o.kind == "rewind") && s.work.is_none();
        let rewound = first.until("the rewind ended", ended).await;
        assert_eq!(rewound.last_order.unwrap().error, "");
        first.until("its end is known", |s| s.state() == State::Stopped && s.wal_end_known).await;
        first.follow(2, Some(&second)).await;
        first.until("it streams", |s| s.streaming).await;
    });
}

/// pgBackRest with its configuration file, or `None` where it isn't installed.
struct Pgbackrest {
    config: PathBuf,
}

impl Pgbackrest {
    fn new(cluster: &Cluster, repository: &str) -> Option<Self> {
        if Command::new("pgbackrest").arg("version").output().is_err() {
            eprintln!("pgbackrest is not installed: this test is passed over");
            return None;
        }
        let config = cluster.config(0);
        let local = config.member.unwrap();
        let root = cluster.root.path();
        let text = format!(
            "[global]\n{repository}\nrepo1-retention-full=1\nlock-path={0}/lock\nlog-path={0}\nlog-level-file=off\nstart-fast=y\n\
             [main]\npg1-path={1}\npg1-socket-path={2}\npg1-port={3}\npg1-user=postgres\n",
            root.display(),
            local.postgresql.data_dir.display(),
            local.postgresql.socket_dir.display(),
            local.postgresql.port
        );
        let config = root.join("pgbackrest.conf");
        fs::write(&config, text).unwrap();
        fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
        Some(Self { config })
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("pgbackrest_stanza", "main".to_owned()),
            ("pgbackrest_config", self.config.display().to_string()),
            ("clone_methods", "pgbackrest,basebackup".to_owned()),
        ]
    }

    /// A pgBackRest is older than PostgreSQL may be: `false` where it doesn't know this one, which is not Debian's then.
    async fn knows_this_version(&self) -> bool {
        let said = self.says("stanza-create").await;
        let unknown = said.as_ref().is_err_and(|why| why.contains("VersionNotSupportedError"));
        assert!(!unknown || std::env::var_os("MATRIARCH_TEST_BIN_DIR").is_some(), "{said:?}");
        said.inspect_err(|why| assert!(unknown, "{why}")).is_ok()
    }

    async fn run(&self, what: &'static str) {
        let said = self.says(what).await;
        assert!(said.is_ok(), "{said:?}");
    }

    async fn says(&self, what: &'static str) -> Result<(), String> {
        let config = format!("--config={}", self.config.display());
        let run = move || {
            let args = [config.as_str(), "--stanza=main", "--log-level-console=info", what];
            Command::new("pgbackrest").args(args).env("PGPASSWORD", PASSWORD).output()
        };
        let Output { status, stdout, stderr } = tokio::task::spawn_blocking(run).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
        status.success().then_some(()).ok_or_else(|| format!("{what}: {said}"))
    }
}

/// The phases that were seen while it was copied, and that it streams.
async fn copied_from_a_backup(host: &mut Host, first: &mut Host) -> String {
    host.system = first.system;
    let clone = v1::Clone {
        source: first.local().id.to_string(),
        source_host: "127.0.0.1".into(),
        source_port: first.local().postgresql.port.into(),
        system_identifier: first.system,
        fork: None,
        named: None,
    };
    host.execute(1, Action::Clone(clone)).await.unwrap();
    let phases = std::sync::Mutex::new(String::new());
    let seen = |s: &v1::AgentStatus| {
        let mut phases = phases.lock().unwrap();
        s.work.iter().for_each(|work| phases.push_str(&format!("{}\n", work.phase)));
        s.state() == State::Stopped && s.wal_end_known
    };
    host.until("it is copied", seen).await;
    host.follow(1, Some(first)).await;
    let streams = |s: &v1::AgentStatus| s.streaming && s.state() == State::Standby;
    let well = host.until("it streams", streams).await;
    assert!(well.cure.is_none() && well.clone_failures == 0, "{well:?}");
    assert_eq!(host.rows().await, first.rows().await);
    phases.into_inner().unwrap()
}

async fn backups(repository: impl FnOnce(&Path) -> String) {
    let cluster = Cluster::new();
    let Some(pgbackrest) = Pgbackrest::new(&cluster, &repository(cluster.root.path())) else { return };
    let settings = pgbackrest.settings();
    // What it archives before there is a stanza fails, and is tried again.
    let (mut first, lineage) = archiving(&cluster, &settings).await;
    if !pgbackrest.knows_this_version().await {
        return eprintln!("this pgBackRest is older than this PostgreSQL: passed over");
    }
    pgbackrest.run("backup").await;
    first.fills(3).await;
    first.all_archived().await;
    let client = first.client().await;
    client.batch_execute("ALTER SYSTEM SET wal_keep_size = 0; ").await.unwrap();
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    first.fills(2).await;
    let mut second = standby(&cluster, 1, &settings, &lineage).await;
    let phases = copied_from_a_backup(&mut second, &mut first).await;
    assert!(phases.contains("pgbackrest") && !phases.contains("pg_basebackup"), "{phases}");
    let took = |s: &v1::AgentStatus| s.archive.as_ref().is_some_and(|a| a.restored > 0);
    second.until("it has taken files from the archive", took).await;
    // Without a backup the next method is taken, and the reason is seen.
    pgbackrest_without(&cluster, &mut first, &settings, &lineage).await;
}

async fn pgbackrest_without(
    cluster: &Cluster,
    first: &mut Host,
    settings: &[(&'static str, String)],
    lineage: &(u32, Vec<(u32, u64)>),
) {
    let mut settings = settings.to_vec();
    settings[0].1 = "other".to_owned();
    let mut third = standby(cluster, 2, &settings, lineage).await;
    let phases = copied_from_a_backup(&mut third, first).await;
    assert!(phases.contains("pg_basebackup (pgbackrest failed: "), "{phases}");
}

#[test]
fn a_member_is_copied_from_a_backup_of_pgbackrest_and_by_the_next_method_without_one() {
    let name = "archive::a_member_is_copied_from_a_backup_of_pgbackrest_and_by_the_next_method_without_one";
    as_postgres(name, || backups(|root| format!("repo1-path={}/repository", root.display())));
}

/// An S3 server with TLS and one bucket, or `None` where it isn't installed (deploy/scripts/s3-server.sh).
struct S3Server {
    process: std::process::Child,
    port: u16,
}

impl S3Server {
    fn start(root: &Path) -> Option<Self> {
        let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/s3-server");
        let packages = std::env::var_os("MATRIARCH_TEST_S3_SERVER").map_or_else(default, PathBuf::from);
        if !packages.join("moto").is_dir() {
            eprintln!("no S3 server in {}: this test is passed over", packages.display());
            return None;
        }
        let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(root.join("cert.pem"), certificate.cert.pem()).unwrap();
        fs::write(root.join("key.pem"), certificate.signing_key.serialize_pem()).unwrap();
        let port = super::free_port();
        let run = include_str!("s3_server.py");
        let args = ["-c", run, "-H", "127.0.0.1", "-p", &port.to_string(), "-s"];
        let process = Command::new("/usr/bin/python3")
            .args(args)
            .args(["-c", "cert.pem", "-k", "key.pem"])
            .env("PYTHONPATH", &packages)
            .env("HOME", root)
            .current_dir(root)
            .stdout(fs::File::create(root.join("s3.log")).unwrap())
            .stderr(fs::File::create(root.join("s3.err")).unwrap())
            .spawn()
            .unwrap();
        let server = Self { process, port };
        let begun = Instant::now();
        while !server.make_bucket(root) {
            let said = fs::read_to_string(root.join("s3.err")).unwrap();
            assert!(begun.elapsed() < DEADLINE, "the S3 server doesn't answer: {said}");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        Some(server)
    }

    fn make_bucket(&self, root: &Path) -> bool {
        let script = format!(
            "import ssl, urllib.request as u; c = ssl.create_default_context(cafile='cert.pem'); \
             u.urlopen(u.Request('https://localhost:{}/backups', method='PUT', headers={{'Authorization': 'AWS4-HMAC-SHA256 \
             Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0'}}), context=c)",
            self.port
        );
        let made = Command::new("/usr/bin/python3").args(["-c", &script]).current_dir(root).output().unwrap();
        made.status.success()
    }

    fn repository(&self, root: &Path) -> String {
        format!(
            "repo1-type=s3\nrepo1-bundle=y\nrepo1-path=/matriarch\nrepo1-s3-bucket=backups\nrepo1-s3-endpoint=localhost\nrepo1-s3-region=us-east-1\n\
             repo1-s3-key=key\nrepo1-s3-key-secret=secret\nrepo1-s3-uri-style=path\nrepo1-storage-port={}\n\
             repo1-storage-ca-file={}",
            self.port,
            root.join("cert.pem").display()
        )
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
#[ignore = "needs an S3 server: deploy/scripts/s3-server.sh fetches one"]
fn backups_on_an_s3_server() {
    as_postgres("archive::backups_on_an_s3_server", || async {
        let root = tempfile::tempdir().unwrap();
        let Some(server) = S3Server::start(root.path()) else { return };
        Box::pin(backups(|_| server.repository(root.path()))).await;
    });
}

#[test]
fn what_a_lost_primary_had_not_archived_its_successor_archives() {
    let name = "archive::what_a_lost_primary_had_not_archived_its_successor_archives";
    as_postgres(name, || async {
        let cluster = Cluster::new();
        let settings = plain(&cluster);
        let (mut first, lineage) = archiving(&cluster, &settings).await;
        let mut second = standby(&cluster, 1, &settings, &lineage).await;
        second.copy_and_follow(1, &first).await;
        first.all_archived().await;
        fs::write(first.archive().join("closed"), "").unwrap();
        first.fills(3).await;
        let end = first.status().await.wal_end.unwrap();
        let all = second.until("it has all", |s| s.wal_end.unwrap().lsn >= end.lsn).await.wal_end.unwrap();
        for voter in &cluster.voters {
            voter.seal(Epoch(2)).unwrap();
        }
        first.until("it is fenced", |s| s.state() == State::Stopped && s.wal_end_known).await;
        tokio::time::sleep(Timings::of(Profile::Fast).grant).await;
        let names = |dir: &Path| -> Vec<u64> {
            let files = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
            let of_old = files.filter(|name| name.len() == 24 && name.starts_with("00000002"));
            let mut numbers: Vec<u64> = of_old.map(|name| u64::from_str_radix(&name[8..], 16).unwrap()).collect();
            numbers.sort_unstable();
            numbers
        };
        let before = names(&first.archive());
        fs::remove_file(first.archive().join("closed")).unwrap();
        second.promote(2, 3, all).await;
        second.until("it is primary", |s| s.state() == State::Primary).await;
        let last = (all.lsn >> 32 << 32) + ((all.lsn >> 24) & 0xff) - 1;
        let begun = Instant::now();
        // PostgreSQL's archiver looks when a file is full.
        let whole = |now: &[u64]| now.last() == Some(&last) && now.windows(2).all(|w| w[1] == w[0] + 1);
        while !whole(&names(&first.archive())) {
            assert!(begun.elapsed() < DEADLINE, "{before:x?} {:x?} {last:x}", names(&first.archive()));
            second.fills(1).await;
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        let now = names(&first.archive());
        assert!(now.len() >= before.len() + 3, "{before:x?} {now:x?}");
    });
}

#[test]
fn a_copy_is_made_by_a_command_of_the_operators() {
    as_postgres("archive::a_copy_is_made_by_a_command_of_the_operators", || async {
        let cluster = Cluster::new();
        let mut first = cluster.primary().await;
        let command = "\"$MATRIARCH_BIN\"/pg_basebackup -D \"$MATRIARCH_DIRECTORY\" -h \"$MATRIARCH_HOST\" \
                       -p \"$MATRIARCH_PORT\" -U \"$MATRIARCH_USER\" -X stream -c fast -P --no-password";
        let settings = [("clone_methods", "command,basebackup".to_owned()), ("clone_command", command.to_owned())];
        let mut second = standby(&cluster, 1, &settings, &(2, Vec::new())).await;
        let phases = copied_from_a_backup(&mut second, &mut first).await;
        assert!(phases.contains("clone_command") && !phases.contains("pg_basebackup"), "{phases}");
        // One that hangs is killed with its children.
        let hangs = [
            ("clone_methods", "command,basebackup".to_owned()),
            ("clone_command", "sleep 77 & wait".to_owned()),
            ("clone_command_ms", "1000".to_owned()),
        ];
        let mut third = standby(&cluster, 2, &hangs, &(2, Vec::new())).await;
        let phases = copied_from_a_backup(&mut third, &mut first).await;
        assert!(phases.contains("pg_basebackup (command failed: "), "{phases}");
        let sleeps = |pid: &Path| fs::read(pid.join("cmdline")).is_ok_and(|line| line == b"sleep\x0077\0");
        let left = fs::read_dir("/proc").unwrap().filter(|e| sleeps(&e.as_ref().unwrap().path())).count();
        assert_eq!(left, 0, "its child lives on");
    });
}
