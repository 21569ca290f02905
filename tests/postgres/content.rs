//! What the first data directory of a cluster is made from.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use matriarch::{
    config::{
        ContentSource, HookCommand, InitialContent, InitialDatabase, InitialRole, PasswordSource, Recovery,
        RecoveryTarget,
    },
    domain::{HowToCopy, TimelineHistory, TimelineId},
    postgres::{InitdbError, Instance, Progress, Session},
};
use nix::sys::signal::Signal;

use super::{DEADLINE, Host, TIMINGS, as_postgres, bin_dir, hosts, primary, quiet, run, support::secret_file};

impl Host {
    /// What the operator wants in the first data directory.
    fn with_content(&mut self, content: InitialContent) {
        let mut config = self.instance.config().clone();
        *config.bootstrap = content;
        self.instance = Instance::new(&config, &self.member.id, self.instance.members(), &self.agent, &TIMINGS);
    }

    /// Every text that the agent or a program of it has left beside the data.
    fn words(&self) -> String {
        let texts = fs::read_dir(&self.agent.state_dir).unwrap().flatten();
        let texts = texts.filter(|file| !file.path().ends_with("pgpass"));
        texts.filter_map(|file| fs::read_to_string(file.path()).ok()).collect()
    }
}

/// An executable file with this text.
fn script(path: PathBuf, text: &str) -> String {
    fs::write(&path, format!("#!/bin/sh\nset -e\n{text}")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_string_lossy().into_owned()
}

fn role(name: &str, password: Option<PathBuf>, attributes: &[&str], member_of: &[&str]) -> InitialRole {
    let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
    let password = password.map(PasswordSource::File);
    InitialRole { name: name.into(), password, attributes: owned(attributes), member_of: owned(member_of) }
}

fn database(name: &str, owner: Option<&str>, extensions: &[&str]) -> InitialDatabase {
    InitialDatabase {
        name: name.into(),
        owner: owner.map(str::to_owned),
        template: None,
        encoding: None,
        locale: None,
        extensions: extensions.iter().map(|&name| name.to_owned()).collect(),
    }
}

/// The whole chain of causes.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

#[test]
fn roles_databases_and_the_last_command_are_there_before_anybody_can_connect() {
    as_postgres("content::roles_databases_and_the_last_command_are_there_before_anybody_can_connect", || async {
        let root = tempfile::tempdir().unwrap();
        let mut host = hosts(root.path(), 1).remove(0);
        let secret = "pass'w$1\\rd";
        let password = secret_file(root.path().join("app.pass"), secret);
        let after = script(
            root.path().join("after"),
            "test -d \"$MATRIARCH_DATA_DIR\"\necho said by the command\n\
             exec \"$MATRIARCH_BIN_DIR\"/psql -XqAt -d app -c 'CREATE TABLE made (x int); ALTER TABLE made OWNER TO app'\n",
        );
        host.with_content(InitialContent {
            // The member of a role stands before it.
            roles: vec![
                role("app", Some(password), &["LOGIN", "CREATEDB"], &["readers"]),
                role("readers", None, &["NOLOGIN"], &[]),
            ],
            databases: vec![database("app", Some("app"), &["plpgsql"])],
            after: Some(HookCommand(vec![after])),
            initdb_options: vec!["--locale=C".into()],
            ..InitialContent::default()
        });
        host.instance.initdb(&quiet).await.unwrap();
        assert!(host.instance.has_standby_signal());
        let session = host.start().await;
        let sql = "SELECT rolcreatedb, pg_has_role('app', 'readers', 'member') FROM pg_roles WHERE rolname = 'app'";
        assert_eq!(session.query("testing", sql, DEADLINE).await.unwrap()[0].get(1), Some("t"));
        assert_eq!(
            run(&session, "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'app'").await,
            ["app"]
        );
        assert_eq!(run(&session, "SELECT datcollate FROM pg_database WHERE datname = 'app'").await, ["C"]);
        let client = client(&host, "app", secret, "app").await;
        assert!(client.simple_query("SELECT * FROM made").await.is_ok(), "the command made it");
        let words = host.words();
        assert!(words.contains("said by the command"), "{words}");
        assert!(!words.contains(secret) && !words.contains("SCRAM-SHA-256$"), "{words}");
    });
}

async fn client(host: &Host, user: &str, password: &str, database: &str) -> tokio_postgres::Client {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(host.member.postgres_port).user(user).password(password).dbname(database);
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

#[test]
fn what_fails_leaves_nothing_and_says_why() {
    as_postgres("content::what_fails_leaves_nothing_and_says_why", || async {
        let root = tempfile::tempdir().unwrap();
        let mut host = hosts(root.path(), 1).remove(0);
        let mut refused = async |content: InitialContent, word: &str| {
            host.with_content(content);
            let error = told(&host.instance.initdb(&quiet).await.unwrap_err());
            assert!(error.contains(word), "{error}");
            let data = host.instance.data_dir();
            assert!(!data.exists() && !data.with_file_name("data.initdb-tmp").exists(), "{error}");
        };
        let missing = role("app", Some(root.path().join("no-such")), &["LOGIN"], &[]);
        refused(InitialContent { roles: vec![missing], ..InitialContent::default() }, "the password of role app").await;
        let nobody = vec![database("app", Some("nobody"), &[])];
        let content = InitialContent { databases: nobody, ..InitialContent::default() };
        refused(content, "making database app: making it: role \"nobody\" does not exist").await;
        let fails = script(root.path().join("fails"), "echo no such thing >&2\nexit 7\n");
        let after = Some(HookCommand(vec![fails.clone()]));
        let content = InitialContent { after, ..InitialContent::default() };
        refused(content, "bootstrap.post_command failed: fails ended with exit status: 7: no such thing").await;
        let by = |command: String| ContentSource::Command(HookCommand(vec![command, "{data_dir}".into()]));
        refused(InitialContent { source: by(fails), ..InitialContent::default() }, "bootstrap.command failed").await;
        let nothing = script(root.path().join("nothing"), "exit 0\n");
        let content = InitialContent { source: by(nothing), ..InitialContent::default() };
        refused(content, "bootstrap.command left nothing in the directory").await;
        let rubbish = script(root.path().join("rubbish"), "echo x > \"$1\"/x\n");
        let content = InitialContent { source: by(rubbish), ..InitialContent::default() };
        refused(content, "no data directory").await;
        let content =
            InitialContent { source: ContentSource::Backup(root.path().join("none")), ..InitialContent::default() };
        refused(content, "none").await;
    });
}

/// A primary that archives, a backup of it in both formats, and what it wrote after the backup.
struct Archived {
    host: Host,
    plain: PathBuf,
    tar: PathBuf,
    restore_command: String,
    /// Between the rows 2 and 3.
    lsn: matriarch::domain::Lsn,
    time: String,
    xid: u64,
}

impl Archived {
    async fn new(root: &Path) -> Archived {
        let mut host = hosts(root, 1).remove(0);
        let archive = root.join("archive");
        fs::create_dir_all(&archive).unwrap();
        host.reconfigure("archive_mode", "on");
        host.reconfigure("archive_command", &format!("cp %p {}/%f", archive.display()));
        let session = primary(&mut host).await;
        let (plain, tar) = (root.join("plain"), root.join("tar"));
        for (dir, more) in [(&plain, &["--format=plain"][..]), (&tar, &["--format=tar", "--gzip"][..])] {
            let mut backup = Command::new(bin_dir().join("pg_basebackup"));
            backup.env("PGPASSWORD", r"re'p:l\1").arg("--pgdata").arg(dir).args(more);
            backup.args(["--checkpoint=fast", "--username=matriarch_repl", "--host=127.0.0.1"]);
            let ran = backup.arg("--port").arg(host.member.postgres_port.to_string()).output().unwrap();
            assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        }
        run(&session, "INSERT INTO t VALUES (1)").await;
        run(&session, "SELECT pg_create_restore_point('before two')").await;
        let xid = run(&session, "INSERT INTO t VALUES (2) RETURNING pg_current_xact_id()").await[0].parse().unwrap();
        let lsn = run(&session, "SELECT pg_current_wal_lsn()").await[0].parse().unwrap();
        let time = run(&session, "SELECT clock_timestamp()").await[0].clone();
        run(&session, "INSERT INTO t VALUES (3)").await;
        run(&session, "SELECT pg_switch_wal()").await;
        session.checkpoint(DEADLINE).await.unwrap();
        host.stop(Signal::SIGINT);
        let restore_command = format!("cp {}/%f %p", archive.display());
        Archived { host, plain, tar, restore_command, lsn, time, xid }
    }

    fn content(&self, source: ContentSource, target: RecoveryTarget, inclusive: bool) -> InitialContent {
        let restore_command = Some(self.restore_command.clone());
        let recovery = Recovery { restore_command, target, inclusive, ..Recovery::default() };
        InitialContent { source, recovery, ..InitialContent::default() }
    }
}

/// The rows of a host that was made with this content, and the timeline it is on.
async fn rows(root: &Path, content: InitialContent) -> (Vec<String>, TimelineId) {
    let mut host = hosts(root, 1).remove(0);
    host.with_content(content);
    host.instance.initdb(&quiet).await.unwrap();
    let control = host.instance.control_data().unwrap();
    assert!(control.state.is_clean() && host.instance.has_standby_signal());
    let history = host.instance.history(control.timeline).unwrap();
    assert_eq!(history.switches.len() as u32 + 1, control.timeline.0, "it knows where it comes from");
    let session = host.start().await;
    assert_eq!(run(&session, "SHOW restore_command").await, [""], "the archive of another cluster is not read again");
    (rows_of(&session).await, control.timeline)
}

async fn rows_of(session: &Session) -> Vec<String> {
    run(session, "SELECT x FROM t ORDER BY x").await
}

#[test]
fn a_backup_is_recovered_to_a_point_in_time() {
    as_postgres("content::a_backup_is_recovered_to_a_point_in_time", || async {
        let root = tempfile::tempdir().unwrap();
        let source = Archived::new(&root.path().join("source")).await;
        let plain = || ContentSource::Backup(source.plain.clone());
        let content = |from, target, inclusive| source.content(from, target, inclusive);
        let (name, three) = (RecoveryTarget::Name("before two".into()), TimelineId(3));
        let made =
            rows(&root.path().join("name"), content(ContentSource::Backup(source.tar.clone()), name, true)).await;
        assert_eq!(made, (vec!["0".into(), "1".into()], three), "from the tar files");
        let lsn = RecoveryTarget::Lsn(source.lsn);
        let made = rows(&root.path().join("lsn"), content(plain(), lsn, true)).await;
        assert_eq!(made, (vec!["0".into(), "1".into(), "2".into()], three));
        let xid = RecoveryTarget::Xid(source.xid);
        let made = rows(&root.path().join("xid"), content(plain(), xid, false)).await;
        assert_eq!(made, (vec!["0".into(), "1".into()], three), "without the transaction itself");
        let copy = script(root.path().join("copy"), "cp -a \"$1\"/. \"$2\"\n");
        let from = source.plain.to_string_lossy().into_owned();
        let by_command = ContentSource::Command(HookCommand(vec![copy, from, "{data_dir}".into()]));
        let time = RecoveryTarget::Time(source.time.clone());
        let made = rows(&root.path().join("time"), content(by_command, time, true)).await;
        assert_eq!(made, (vec!["0".into(), "1".into(), "2".into()], three), "by a program of the operator's");
        let alone = InitialContent { source: plain(), ..InitialContent::default() };
        let made = rows(&root.path().join("alone"), alone).await;
        assert_eq!(made, (vec!["0".into()], TimelineId(2)), "with the WAL it has, and no further");
        drop(source.host);
    });
}

#[test]
fn a_recovery_that_fails_or_is_cut_off_leaves_the_way_free() {
    as_postgres("content::a_recovery_that_fails_or_is_cut_off_leaves_the_way_free", || async {
        let root = tempfile::tempdir().unwrap();
        let source = Archived::new(&root.path().join("source")).await;
        let mut host = hosts(&root.path().join("new"), 1).remove(0);
        let from = || ContentSource::Backup(source.plain.clone());
        host.with_content(source.content(from(), RecoveryTarget::Name("never".into()), true));
        let seen = Mutex::new(Vec::new());
        let phases = |progress: Progress| seen.lock().unwrap().push(progress.phase.into_owned());
        let error = host.instance.initdb(&phases).await.unwrap_err();
        assert!(matches!(error, InitdbError::Recovery { .. }));
        let error = told(&error);
        assert!(error.starts_with("the recovery to restore point never failed"), "{error}");
        assert!(error.contains("recovery ended before configured recovery target was reached"), "{error}");
        let seen = seen.into_inner().unwrap();
        assert!(seen.iter().any(|phase| phase.starts_with("recovery to restore point never, at 0000000")), "{seen:?}");
        assert!(!host.instance.data_dir().exists());

        // It waits for WAL when its agent is gone.
        let mut content = source.content(from(), RecoveryTarget::EndOfWal, true);
        content.recovery.restore_command = Some("exec sleep 100".into());
        host.with_content(content);
        let waits = AtomicBool::new(false);
        let phase = |progress: Progress| waits.store(progress.phase.starts_with("recovery"), Ordering::SeqCst);
        let pid_file = host.instance.data_dir().with_file_name("data.initdb-tmp").join("postmaster.pid");
        {
            let mut work = std::pin::pin!(host.instance.initdb(&phase));
            let begun = async {
                while !(waits.load(Ordering::SeqCst) && pid_file.exists()) {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::select! {
                made = &mut work => panic!("it can't have come to its end: {made:?}"),
                begun = tokio::time::timeout(DEADLINE, begun) => begun.unwrap(),
            }
        }
        host.with_content(source.content(from(), RecoveryTarget::Immediate, true));
        host.instance.initdb(&quiet).await.unwrap();
        let session = host.start().await;
        assert_eq!(rows_of(&session).await, ["0"]);
        drop(source.host);
    });
}

/// The data directory of a PostgreSQL that nobody manages, with one row, stopped cleanly.
fn somebodys(host: &Host) {
    let data = host.instance.data_dir();
    let ran = |program: &str, args: &[&str]| {
        let output = Command::new(bin_dir().join(program)).args(args).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let dir = data.to_string_lossy();
    let log = format!("{dir}.log");
    let run = host.agent.runtime_dir.to_string_lossy();
    ran("initdb", &["-D", &dir, "-U", "chief", "--auth=trust", "-N"]);
    fs::write(data.join("postgresql.auto.conf"), "work_mem = '9MB'\nprimary_conninfo = 'host=elsewhere'\n").unwrap();
    let options = format!("-c listen_addresses= -c unix_socket_directories={run} -c port=5");
    ran("pg_ctl", &["-D", &dir, "-w", "-l", &log, "-o", &options, "start"]);
    ran("psql", &["-Xqh", &run, "-p", "5", "-U", "chief", "postgres", "-c", "CREATE TABLE t AS SELECT 7 AS x"]);
    ran("pg_ctl", &["-D", &dir, "-w", "-m", "fast", "stop"]);
}

#[test]
fn a_stopped_postgresql_is_taken_over_as_it_lies() {
    as_postgres("content::a_stopped_postgresql_is_taken_over_as_it_lies", || async {
        let root = tempfile::tempdir().unwrap();
        let mut host = hosts(root.path(), 1).remove(0);
        let adopt = InitialContent { source: ContentSource::Adopt, ..InitialContent::default() };
        host.with_content(adopt);
        let nothing = told(&host.instance.initdb(&quiet).await.unwrap_err());
        assert!(nothing.contains("nothing in") && nothing.contains("to adopt"), "{nothing}");
        somebodys(&host);
        let data = host.instance.data_dir().to_owned();
        assert!(host.instance.is_to_be_adopted());
        let told_of = host.instance.adoption().unwrap();
        assert_eq!(told_of.refused, Vec::<String>::new());
        assert!(told_of.changes.iter().any(|change| change.contains("work_mem = 9MB")), "{told_of:?}");
        // What it can't be taken over with is found before anything is changed.
        fs::write(data.join("standby.signal"), "").unwrap();
        let conf = fs::read_to_string(data.join("postgresql.conf")).unwrap();
        let refused = told(&host.instance.initdb(&quiet).await.unwrap_err());
        assert!(refused.contains("somebody's standby"), "{refused}");
        assert_eq!(fs::read_to_string(data.join("postgresql.conf")).unwrap(), conf);
        let other = hosts(&root.path().join("other"), 1).remove(0);
        let copied =
            told(&host.instance.clone_from(&other.upstream(), HowToCopy::default(), &quiet).await.unwrap_err());
        assert!(copied.contains("bootstrap.method = adopt"), "it is not replaced by a copy either: {copied}");
        fs::remove_file(data.join("standby.signal")).unwrap();

        let before = host.instance.control_data().unwrap().system_identifier;
        assert_eq!(host.instance.initdb(&quiet).await.unwrap(), before);
        assert!(!host.instance.is_to_be_adopted() && host.instance.has_standby_signal());
        // It is Matriarch's from now on, whatever becomes of its configuration: what somebody starts in there is not spared.
        let (ours, aside) = (data.join("postgresql.conf"), data.join("aside.conf"));
        fs::rename(&ours, &aside).unwrap();
        assert!(!host.instance.is_to_be_adopted());
        fs::rename(&aside, &ours).unwrap();
        assert_eq!(fs::read_to_string(data.join("postgresql.conf.before-matriarch")).unwrap(), conf);
        let session = host.start().await;
        assert_eq!(rows_of(&session).await, ["7"]);
        assert_eq!(run(&session, "SHOW work_mem").await, ["9MB"], "what ALTER SYSTEM set stays");
        assert_eq!(run(&session, "SHOW primary_conninfo").await, [""]);
        assert!(host.client("matriarch_repl", r"re'p:l\1").await.is_ok());
    });
}

impl Host {
    /// What it has, stopped, becomes a standby of somebody's, with a configuration of his, that is to be taken in.
    fn becomes_somebodys(&mut self) {
        self.stop(Signal::SIGINT);
        let (data, run) = (self.instance.data_dir(), self.agent.runtime_dir.display());
        let conf = format!(
            "listen_addresses = ''\nport = 5\nunix_socket_directories = '{run}'\nfsync = off\nshared_buffers = 16MB\nwal_log_hints = on\n\
             max_connections = 100\nmax_wal_senders = 50\nmax_worker_processes = 50\nmax_locks_per_transaction = 128\n"
        );
        fs::write(data.join("postgresql.conf"), conf).unwrap();
        fs::write(data.join("pg_hba.conf"), "local all all trust\n").unwrap();
        assert!(self.instance.has_standby_signal());
        self.with_content(InitialContent { source: ContentSource::Adopt, ..InitialContent::default() });
        assert!(self.instance.takes_standby_in());
    }

    /// Another host gets the same.
    fn is_copied_to(&self, other: &mut Host) {
        let (from, to) = (self.instance.data_dir(), other.instance.data_dir());
        assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
        other.becomes_somebodys();
    }

    /// Somebody has made it a primary of the timeline it is on, written to it, and made it a standby again.
    fn is_written_to(&self) {
        let (data, run) = (self.instance.data_dir(), self.agent.runtime_dir.to_string_lossy().into_owned());
        let (dir, log) = (data.to_string_lossy(), format!("{}.log", data.display()));
        let ran = |program: &str, args: &[&str]| {
            let output = Command::new(bin_dir().join(program)).args(args).output().unwrap();
            let said =
                String::from_utf8_lossy(&output.stderr).into_owned() + &fs::read_to_string(&log).unwrap_or_default();
            assert!(output.status.success(), "{program}: {said}");
        };
        let start = || ran("pg_ctl", &["-D", &dir, "-w", "-l", &log, "start"]);
        let stop = || ran("pg_ctl", &["-D", &dir, "-w", "-m", "fast", "stop"]);
        fs::remove_file(data.join("standby.signal")).unwrap();
        start();
        ran("psql", &["-Xqh", &run, "-p", "5", "-U", "postgres", "postgres", "-c", "INSERT INTO t VALUES (-1)"]);
        stop();
        fs::write(data.join("standby.signal"), "").unwrap();
        start();
        stop();
    }

    async fn taken_in_by(&self, primary: &Host, lineage: &TimelineHistory) -> String {
        let taken = self.instance.take_in(&[primary.upstream()], Some(lineage), DEADLINE).await;
        taken.map_or_else(|error| error.to_string(), |()| "taken in".to_owned())
    }

    async fn replaced_by(&self, primary: &Host, lineage: &TimelineHistory) -> String {
        let may = self.instance.may_be_replaced(&[primary.upstream()], Some(lineage), DEADLINE).await;
        may.map_or_else(|error| error.to_string(), |()| "replaced".to_owned())
    }
}

#[test]
fn a_standby_is_taken_in_by_the_bytes_of_its_wal() {
    as_postgres("content::a_standby_is_taken_in_by_the_bytes_of_its_wal", || async {
        let root = tempfile::tempdir().unwrap();
        let mut all = hosts(root.path(), 4);
        let [first, good, apart, late] = &mut all[..] else { panic!("four hosts") };
        let session = primary(first).await;
        drop(super::standby(good, first).await);
        good.becomes_somebodys();
        good.is_copied_to(apart);
        good.is_copied_to(late);
        // By its timelines and positions it is one of the primary's, which is on the same and further on.
        apart.is_written_to();
        for sql in ["INSERT INTO t VALUES (4)", "SELECT pg_switch_wal()", "INSERT INTO t VALUES (5)"] {
            run(&session, sql).await;
        }
        let end = first.probe().await.wal_end;
        let lineage = first.instance.lineage(end).unwrap();
        let of_apart = apart.instance.wal_end_on_disk().await.unwrap();
        assert!(of_apart.timeline == end.timeline && of_apart < end, "{of_apart} {end}");

        let conf = fs::read_to_string(apart.instance.data_dir().join("postgresql.conf")).unwrap();
        let refused = apart.taken_in_by(first, &lineage).await;
        assert!(refused.starts_with("it is left alone: ") && refused.contains("it has other bytes"), "{refused}");
        assert_eq!(apart.replaced_by(first, &lineage).await, refused, "no copy replaces it either");
        assert_eq!(fs::read_to_string(apart.instance.data_dir().join("postgresql.conf")).unwrap(), conf);
        assert!(apart.instance.takes_standby_in());

        let may = good.replaced_by(first, &lineage).await;
        assert!(may.contains("it is proven to be the primary's now"), "{may}");
        assert_eq!(good.taken_in_by(first, &lineage).await, "taken in");
        assert!(good.instance.is_configured_by_us() && !good.instance.takes_standby_in());
        good.follow(Some(first));
        let of_good = good.start().await;
        super::await_row(&of_good, 5).await;

        // The primary has removed what it would be compared with.
        run(&session, "CHECKPOINT").await;
        let of_late = late.instance.wal_end_on_disk().await.unwrap();
        let segment = run(&session, &format!("SELECT pg_walfile_name('{}'::pg_lsn - 1)", of_late.lsn)).await.concat();
        fs::remove_file(first.instance.data_dir().join("pg_wal").join(segment)).unwrap();
        let told = late.taken_in_by(first, &lineage).await;
        assert!(told.starts_with("it is copied anew") && told.contains("has removed its own"), "{told}");
        assert_eq!(late.replaced_by(first, &lineage).await, "replaced");
    });
}
