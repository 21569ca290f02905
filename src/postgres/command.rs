//! Runs PostgreSQL's helper programs: with a deadline, without the caller's
//! environment, keeping the last lines they wrote to stderr.

use std::{
    borrow::Cow,
    collections::VecDeque,
    ffi::OsString,
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{sys::signal, unistd::Pid};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, Command},
};

/// How many lines of stderr are kept for the error message.
const KEPT_LINES: usize = 12;

/// A helper program didn't do its work.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// It could not be started, fed or read.
    #[error("running {}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended with an error.
    #[error("{program} ended with {status}: {tail}")]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines it wrote.
        tail: String,
    },
    /// It was killed because it took too long.
    #[error("{program} was killed after {} s: {tail}", after.as_secs())]
    Deadline {
        /// The program.
        program: String,
        /// The deadline.
        after: Duration,
        /// The last lines it wrote.
        tail: String,
    },
}

/// Where a long operation is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The step: "initdb", "crash recovery", "pg_rewind", "pg_basebackup", "verify".
    pub phase: Cow<'static, str>,
    /// Bytes done so far.
    pub done_bytes: u64,
    /// Bytes in all, 0 when not known.
    pub total_bytes: u64,
}

impl Progress {
    /// The start of a step of unknown size.
    pub(super) fn phase(phase: impl Into<Cow<'static, str>>) -> Self {
        Self { phase: phase.into(), done_bytes: 0, total_bytes: 0 }
    }

    /// Reads `12345/67890 kB (18%)`, as pg_basebackup and pg_rewind print it.
    pub(super) fn parse(phase: &'static str, line: &str) -> Option<Self> {
        let (numbers, _) = line.split_once(" kB (")?;
        let (done, total) = numbers.trim().split_once('/')?;
        let kilobytes = |text: &str| text.trim().parse::<u64>().ok().map(|kb| kb * 1024);
        Some(Self { phase: phase.into(), done_bytes: kilobytes(done)?, total_bytes: kilobytes(total)? })
    }
}

/// Called with each step of a long operation; must return at once.
pub type OnProgress<'a> = &'a (dyn Fn(Progress) + Send + Sync);

enum Input {
    Nothing,
    /// The helper inherits the lock: it stays locked while the helper lives, even when the agent dies.
    Lock(File),
    Text(Vec<u8>),
}

/// One run of a helper program.
pub(super) struct Helper {
    program: PathBuf,
    args: Vec<OsString>,
    input: Input,
    deadline: Duration,
    /// On top of [`clean_env`], or of the agent's own.
    env: Vec<(&'static str, OsString)>,
    /// The agent's own environment: for a program of the operator's, which may need what the agent was given.
    inherits: bool,
    changes: Changes,
}

/// Variables that are set, or removed where there is no value.
pub(super) type Changes = Vec<(OsString, Option<OsString>)>;

/// How a helper ended, whatever the status.
pub(super) struct Finished {
    pub(super) status: ExitStatus,
    pub(super) tail: String,
}

impl Helper {
    pub(super) fn new(bin_dir: &Path, name: &str, deadline: Duration) -> Self {
        let (args, env, changes) = (Vec::new(), Vec::new(), Vec::new());
        Self { program: bin_dir.join(name), args, input: Input::Nothing, deadline, env, inherits: false, changes }
    }

    pub(super) fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub(super) fn args<S: Into<OsString>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// It gets the environment of the agent, with these changes.
    pub(super) fn own_env(mut self, changes: Changes) -> Self {
        (self.inherits, self.changes) = (true, changes);
        self
    }

    pub(super) fn input(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.input = Input::Text(text.into());
        self
    }

    pub(super) fn env(mut self, key: &'static str, value: impl Into<OsString>) -> Self {
        self.env.push((key, value.into()));
        self
    }

    /// It gets the caller's environment: it is a command of the operator's, who expects to find there what PostgreSQL has.
    pub(super) fn inheriting(mut self) -> Self {
        self.inherits = true;
        self
    }

    /// What of the agent's own environment begins so stays: a program may be configured by it.
    pub(super) fn keeping(mut self, prefix: &str) -> Self {
        let begins = |name: &OsString| name.as_encoded_bytes().starts_with(prefix.as_bytes());
        let kept = std::env::vars_os().filter(|(name, _)| begins(name));
        self.changes.extend(kept.map(|(name, value)| (name, Some(value))));
        self
    }

    pub(super) fn holding(mut self, lock: File) -> Self {
        self.input = Input::Lock(lock);
        self
    }

    /// Runs it and demands success; each line of its output goes to `on_line`.
    pub(super) async fn run(self, on_line: impl FnMut(&str) + Send) -> Result<Finished, HelperError> {
        let program = self.name();
        let finished = self.run_any(on_line).await?;
        if finished.status.success() {
            return Ok(finished);
        }
        Err(HelperError::Failed { program, status: finished.status, tail: finished.tail })
    }

    /// Runs it and takes any exit status.
    pub(super) async fn run_any(self, on_line: impl FnMut(&str) + Send) -> Result<Finished, HelperError> {
        let (program, deadline) = (self.name(), self.deadline);
        let path = self.program.clone();
        let mut tail = Tail::default();
        match tokio::time::timeout(deadline, self.drive(on_line, &mut tail)).await {
            Ok(Ok(status)) => Ok(Finished { status, tail: tail.text() }),
            Ok(Err(source)) => Err(HelperError::Start { program: path, source }),
            Err(_) => Err(HelperError::Deadline { program, after: deadline, tail: tail.text() }),
        }
    }

    /// Runs a helper that answers within milliseconds, and returns stdout and stderr.
    pub(super) fn run_short(self) -> Result<(String, String), HelperError> {
        let program = self.name();
        let mut command = std::process::Command::new(&self.program);
        command.args(&self.args).env_clear().envs(clean_env()).stdin(Stdio::null());
        let output = command.output().map_err(|source| HelperError::Start { program: self.program, source })?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            return Err(HelperError::Failed { program, status: output.status, tail: stderr });
        }
        Ok((String::from_utf8_lossy(&output.stdout).into_owned(), stderr))
    }

    async fn drive(self, mut on_line: impl FnMut(&str), tail: &mut Tail) -> io::Result<ExitStatus> {
        let mut command = Command::new(&self.program);
        command.args(&self.args);
        if !self.inherits {
            command.env_clear().envs(clean_env());
        }
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        change_env(&mut command, self.changes);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        let text = match self.input {
            Input::Nothing => {
                command.stdin(Stdio::null());
                None
            }
            Input::Lock(file) => {
                command.stdin(Stdio::from(file));
                None
            }
            Input::Text(text) => {
                command.stdin(Stdio::piped());
                Some(text)
            }
        };
        let mut child = command.spawn()?;
        // pg_basebackup has a child of its own, so the group is killed and not the process alone.
        let group = KillGroup::of(&child);
        if let (Some(text), Some(mut stdin)) = (text, child.stdin.take()) {
            stdin.write_all(&text).await?;
        }
        read_lines(&mut child, &mut on_line, tail).await?;
        let status = child.wait().await?;
        group.disarm();
        Ok(status)
    }

    fn name(&self) -> String {
        self.program.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

async fn read_lines(child: &mut Child, on_line: &mut impl FnMut(&str), tail: &mut Tail) -> io::Result<()> {
    let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else { return Ok(()) };
    let (mut out, mut err) = (BufReader::new(out).split(b'\n'), BufReader::new(err).split(b'\n'));
    let (mut out_open, mut err_open) = (true, true);
    while out_open || err_open {
        tokio::select! {
            line = out.next_segment(), if out_open => match line? {
                Some(bytes) => each_part(&bytes, |part| on_line(part)),
                None => out_open = false,
            },
            line = err.next_segment(), if err_open => match line? {
                Some(bytes) => each_part(&bytes, |part| {
                    on_line(part);
                    tail.push(part);
                }),
                None => err_open = false,
            },
        }
    }
    Ok(())
}

/// Progress lines end with a carriage return in some versions.
fn each_part(bytes: &[u8], mut take: impl FnMut(&str)) {
    let text = String::from_utf8_lossy(bytes);
    for part in text.split('\r').filter(|p| !p.trim().is_empty()) {
        take(part);
    }
}

/// Messages are parsed, so they must be in English; times are compared, so they must be in UTC.
/// Nothing else of the caller's environment (PGHOST, PGOPTIONS, …) may change what a helper does.
fn clean_env() -> [(&'static str, &'static str); 3] {
    [("LC_ALL", "C"), ("TZ", "UTC"), ("PATH", "/usr/local/bin:/usr/bin:/bin")]
}

pub(super) fn change_env(command: &mut Command, changes: Changes) {
    for (name, value) in changes {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
}

#[derive(Default)]
struct Tail(VecDeque<String>);

impl Tail {
    fn push(&mut self, line: &str) {
        if self.0.len() == KEPT_LINES {
            self.0.pop_front();
        }
        self.0.push_back(line.trim().to_owned());
    }

    fn text(&self) -> String {
        Vec::from_iter(self.0.iter().map(String::as_str)).join(" | ")
    }
}

/// Kills the whole process group of a helper when it is dropped before the helper ended.
struct KillGroup(Option<Pid>);

impl KillGroup {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }

    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for KillGroup {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended in this moment; then there is nothing left to kill.
            let _ = signal::killpg(group, signal::Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn progress_lines_of_both_programs_are_read() {
        let seen = Progress::parse("x", "   23456/45678 kB (51%), 0/1 tablespace").unwrap();
        assert_eq!((seen.done_bytes, seen.total_bytes), (23456 * 1024, 45678 * 1024));
        assert!(Progress::parse("x", "48372/48372 kB (100%) copied").is_some());
        assert_eq!(Progress::parse("x", "waiting for checkpoint"), None);
    }

    #[tokio::test]
    async fn a_failed_helper_says_its_last_words() {
        let helper = Helper::new(Path::new("/bin"), "sh", Duration::from_secs(5));
        let error = helper.args(["-c", "echo one >&2; echo two >&2; exit 3"]).run(|_| ()).await.err().unwrap();
        assert_eq!(error.to_string(), "sh ended with exit status: 3: one | two");
    }

    #[tokio::test]
    async fn a_helper_has_nothing_of_the_agents_environment_but_what_is_kept() {
        let mut seen = Vec::new();
        let helper = Helper::new(Path::new("/usr/bin"), "env", Duration::from_secs(5)).keeping("CARGO_PKG_");
        helper.run(|line| seen.push(line.to_owned())).await.unwrap();
        assert!(seen.contains(&"CARGO_PKG_NAME=matriarch".to_owned()), "{seen:?}");
        let names = seen.iter().filter_map(|line| line.split_once('=')).map(|(name, _)| name);
        let others = names.filter(|name| !name.starts_with("CARGO_PKG_")).collect::<std::collections::BTreeSet<_>>();
        assert!(others.is_subset(&clean_env().iter().map(|(name, _)| *name).collect()), "{others:?}");
    }

    #[tokio::test]
    async fn a_helper_past_its_deadline_is_killed_with_its_children() {
        let mut pid = None;
        let helper = Helper::new(Path::new("/bin"), "sh", Duration::from_millis(300));
        let error = helper.args(["-c", "sleep 60 & echo $!; wait"]).run(|line| pid = Some(line.to_owned())).await;
        assert!(matches!(error, Err(HelperError::Deadline { .. })));
        let stat = format!("/proc/{}/stat", pid.unwrap());
        let gone = || std::fs::read_to_string(&stat).map_or(true, |text| text.contains(") Z "));
        let until = std::time::Instant::now() + Duration::from_secs(5);
        while !gone() {
            assert!(std::time::Instant::now() < until, "the grandchild lives on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_helper_reads_its_input_and_sees_no_foreign_environment() {
        let mut seen = Vec::new();
        let helper = Helper::new(Path::new("/bin"), "sh", Duration::from_secs(5)).input("hello\n");
        let script = "read x; echo $x $LC_ALL ${HOME:-none}";
        helper.args(["-c", script]).run(|line| seen.push(line.to_owned())).await.unwrap();
        assert_eq!(seen, ["hello C none"]);
    }
}
