//! One host's files in a temporary directory, and its processes: for tests that
//! run the real binary without a whole cluster.

#![allow(dead_code, clippy::unwrap_used)]

mod ports;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant, SystemTime},
};

use nix::unistd::{User, geteuid};
pub use ports::free_port;

/// The binary under test.
pub const MATRIARCH: &str = env!("CARGO_BIN_EXE_matriarch");

/// Who runs PostgreSQL and everything of ours: `postgres` when the test is root.
pub fn os_user() -> Option<User> {
    geteuid().is_root().then(|| User::from_name("postgres").unwrap().expect("PostgreSQL's package made this user"))
}

/// Runs the command as that user.
pub fn as_user(command: &mut Command) -> &mut Command {
    if let Some(user) = os_user() {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
}

/// Runs `body` as a user that may run PostgreSQL: that refuses root, so a test that is root runs itself again as
/// `postgres`. Says so and passes where no PostgreSQL is installed.
pub fn as_postgres<F: Future<Output = ()>>(test: &str, body: impl FnOnce() -> F) {
    if installed().is_none() {
        eprintln!("{test}: passed over, no PostgreSQL is installed");
        return;
    }
    if geteuid().is_root() {
        let mut again = Command::new("setpriv");
        again.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]);
        again.arg(std::env::current_exe().unwrap()).args(["--exact", test, "--include-ignored", "--nocapture"]);
        let output = again.current_dir("/").output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{out}{err}");
        assert!(out.contains("ok. 1 passed"), "{test}: no test has that name, modules included\n{out}");
        print!("{out}");
        return;
    }
    tokio::runtime::Runtime::new().unwrap().block_on(body());
}

/// A file for the owner alone with one line.
pub fn secret_file(path: PathBuf, text: &str) -> PathBuf {
    fs::write(&path, format!("{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// The programs of the PostgreSQL that the tests run on: the newest of the distribution, if nobody wants another.
pub fn bin_dir() -> PathBuf {
    installed().expect("PostgreSQL is installed")
}

/// Names the directory with the programs of another PostgreSQL than that of the distribution.
const BIN_DIR: &str = "MATRIARCH_TEST_BIN_DIR";

fn installed() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os(BIN_DIR) {
        let dir = PathBuf::from(dir);
        assert!(dir.join("initdb").exists(), "{BIN_DIR} has no initdb: {}", dir.display());
        return Some(dir);
    }
    let found = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let found = found.map(|e| e.path().join("bin")).chain(["/usr/pgsql-17/bin".into(), "/usr/bin".into()]);
    found.filter(|dir| dir.join("initdb").exists()).max()
}

/// Runs one test of this file again on another PostgreSQL: `deploy/scripts/postgresql-versions.sh` puts it there. Says so and
/// passes where it has not been run.
pub fn on_version(major: &str, test: &str) {
    const PLACE: &str = "MATRIARCH_TEST_POSTGRESQL";
    let wanted = std::env::var_os(PLACE).map(PathBuf::from);
    let place = wanted.clone().unwrap_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("postgresql"));
    let bin_dir = place.join(major).join("server/pginstall/bin");
    if !bin_dir.join("initdb").exists() {
        assert!(wanted.is_none(), "{PLACE} has no PostgreSQL {major}: {}", bin_dir.display());
        eprintln!("{test}: passed over, no PostgreSQL {major} in {}", place.display());
        return;
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", test, "--include-ignored", "--nocapture"]).env(BIN_DIR, bin_dir);
    let output = again.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "on PostgreSQL {major}:\n{out}{err}");
    assert!(out.contains("ok. 1 passed"), "{test}: no test has that name, modules included\n{out}");
}

/// The tests, each as one more for every version that the distribution may not have.
#[macro_export]
macro_rules! on_every_version {
    ($tests:tt) => {
        $crate::on_one_version!(postgresql_16 "16" $tests);
        $crate::on_one_version!(postgresql_17 "17" $tests);
        $crate::on_one_version!(postgresql_18 "18" $tests);
    };
}

/// See [`on_every_version`].
#[macro_export]
macro_rules! on_one_version {
    ($module:ident $major:literal [$($test:ident),+ $(,)?]) => {
        mod $module {
            $(#[test]
            fn $test() {
                super::support::on_version($major, stringify!($test));
            })+
        }
    };
}

/// Polls until `check` gives something.
pub fn until<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// How a process ended, and what it wrote to stderr.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stderr: String,
}

/// Host n1 of three, of which only this one is there.
pub struct Site {
    dir: tempfile::TempDir,
    pub manager_port: u16,
    pub read_write_port: u16,
    postgres_port: u16,
}

impl Site {
    pub fn new() -> Site {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let site = Site { dir, manager_port: free_port(), read_write_port: free_port(), postgres_port: free_port() };
        for name in ["state", "run", "db"] {
            fs::create_dir(site.path(name)).unwrap();
            fs::set_permissions(site.path(name), fs::Permissions::from_mode(0o700)).unwrap();
            site.give(name);
        }
        for name in ["secret", "superuser.pass", "replication.pass"] {
            fs::write(site.path(name), "0123456789abcdef0123456789abcdef\n").unwrap();
            fs::set_permissions(site.path(name), fs::Permissions::from_mode(0o600)).unwrap();
            site.give(name);
        }
        site.write(&site.text());
        site
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes the file one of the user that runs everything.
    pub fn give(&self, name: &str) {
        if let Some(user) = os_user() {
            chown(self.path(name), Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        }
    }

    pub fn file(&self) -> PathBuf {
        self.path("matriarch.toml")
    }

    pub fn write(&self, text: &str) {
        fs::write(self.file(), text).unwrap();
    }

    /// A configuration that is good.
    pub fn text(&self) -> String {
        let dir = self.dir.path().display();
        let bin_dir = bin_dir();
        let Site { manager_port, read_write_port, postgres_port, .. } = self;
        format!(
            r#"
[cluster]
name = "test"
profile = "fast"
secret_file = "{dir}/secret"
# cluster goes on here
[[cluster.members]]
id = "n1"
host = "127.0.0.1"
manager_port = {manager_port}
postgres_port = {postgres_port}
[[cluster.members]]
id = "n2"
host = "127.0.0.2"
[[cluster.members]]
id = "n3"
host = "127.0.0.3"
[member]
id = "n1"
[manager]
listen = "127.0.0.1:{manager_port}"
state_dir = "{dir}/state/manager"
[agent]
listen = "unix:{dir}/run/agent.sock"
state_dir = "{dir}/state/agent"
runtime_dir = "{dir}/run"
[postgresql]
bin_dir = "{bin_dir}"
data_dir = "{dir}/db/pgdata"
superuser_password_file = "{dir}/superuser.pass"
replication_password_file = "{dir}/replication.pass"
[router]
read_write = "127.0.0.1:{read_write_port}"
"#,
            bin_dir = bin_dir.display(),
        )
    }

    /// The configuration with some of its text replaced.
    pub fn edited(&self, edits: &[(&str, &str)]) -> String {
        edits.iter().fold(self.text(), |text, (from, to)| {
            assert!(text.contains(from), "{from} is not in the configuration");
            text.replace(from, to)
        })
    }

    /// Starts `matriarch ARGS --config FILE`.
    pub fn start(&self, args: &[&str]) -> Running {
        self.start_with(args, &self.file())
    }

    /// The same with a file other than this site's own.
    pub fn start_with(&self, args: &[&str], file: &Path) -> Running {
        // Outside the site: a log is no change of it.
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut command = Command::new(MATRIARCH);
        command.args(args).arg("--config").arg(file).current_dir("/");
        as_user(&mut command).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.reopen().unwrap());
        Running { child: command.spawn().unwrap(), log }
    }

    /// Every file and directory with what tells a change.
    pub fn listing(&self) -> BTreeMap<PathBuf, Seen> {
        listing(self.dir.path())
    }
}

/// What tells a change of a file: mode, owner, size, time of the last change.
pub type Seen = (u32, u32, u64, SystemTime);

/// Everything in a directory.
pub fn listing(dir: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(path) = open.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
        found.insert(path, (meta.mode(), meta.uid(), meta.len(), meta.modified().unwrap()));
    }
    found
}

/// Fails with what is different, if anything is.
pub fn assert_same(before: &BTreeMap<PathBuf, Seen>, after: &BTreeMap<PathBuf, Seen>) {
    let changed: Vec<&PathBuf> =
        before.keys().chain(after.keys()).filter(|path| before.get(*path) != after.get(*path)).collect();
    assert!(changed.is_empty(), "made, changed or removed: {changed:?}");
}

/// A process of ours. Killed when dropped.
pub struct Running {
    child: Child,
    log: tempfile::NamedTempFile,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn stderr(&self) -> String {
        fs::read_to_string(self.log.path()).unwrap()
    }

    /// Waits until it has ended by itself.
    pub fn ended(mut self, limit: Duration) -> Ended {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Ended { code: status.code(), stderr: self.stderr() };
            }
            assert!(Instant::now() < deadline, "it started and did not end:\n{}", self.stderr());
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Gone already is as wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file that others may read and run.
pub fn script(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    // Written and closed: else running it at once can fail with "text file busy".
    File::open(path).unwrap().sync_all().unwrap();
}
