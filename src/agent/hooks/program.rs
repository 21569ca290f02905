//! Runs one program of the operator's: no shell, an environment with nothing of the agent's own, no open descriptor, a
//! deadline after which its whole process group is ended. No step of it waits for a process without a limit: one on a dead
//! disk can't be killed, and one that has become another user's may not be.

use std::{
    io::{self, PipeReader, Read as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{RecvTimeoutError, sync_channel},
    thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        signal::{Signal, killpg},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};

/// Between two looks.
const POLL: Duration = Duration::from_millis(10);
/// So much of what it prints last is kept.
const KEPT: usize = 1_000;
/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(1);
/// From SIGKILL to when it counts as one that can't be ended.
const KILLED: Duration = Duration::from_millis(500);
/// So much longer than its deadline a run may take.
pub(super) const OVERTIME: Duration = GRACE.saturating_add(KILLED);
/// What the agent's own environment has of these it gets, and nothing else.
const PASSED_ON: [&str; 7] = ["PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR"];

/// How a run ended.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Why it counts as failed; `Ok`: exit code 0 in time.
    pub how: Result<(), String>,
    /// What it printed last, on one line.
    pub printed: String,
}

/// Runs it to its end, to its deadline, or until `given_up` says so; for no longer than the deadline and [`OVERTIME`].
pub(super) fn run(
    command: &[String],
    env: &[(&'static str, String)],
    deadline: Duration,
    given_up: &dyn Fn() -> bool,
) -> Outcome {
    run_with(
        command,
        env,
        deadline,
        (given_up, &|child, signal| {
            // Its number was not given to another, for nobody has waited for it yet.
            let _ = killpg(group(child), signal);
        }),
    )
}

type Means<'a> = (&'a dyn Fn() -> bool, &'a dyn Fn(&Child, Signal));

fn run_with(
    command: &[String],
    env: &[(&'static str, String)],
    deadline: Duration,
    (given_up, signal): Means<'_>,
) -> Outcome {
    let failed = |how| Outcome { how: Err(how), printed: String::new() };
    let until = Instant::now() + deadline;
    let (mut child, mut pipe) = match spawn(command, env, until, given_up) {
        Ok(spawned) => spawned,
        Err(why) => return failed(why),
    };
    let mut printed = Vec::new();
    let why = loop {
        keep(&mut pipe, &mut printed);
        if has_ended(&child) {
            break None;
        }
        if Instant::now() >= until {
            break Some(format!("ended, for it took longer than {} ms", deadline.as_millis()));
        }
        if given_up() {
            break Some("ended, for what waited for it is over".to_owned());
        }
        thread::sleep(POLL);
    };
    let can_be_ended = why.is_none() || end(&child, signal);
    let printing = keep(&mut pipe, &mut printed);
    let how = match (why, can_be_ended) {
        (None, _) => judge(child.wait()),
        (Some(why), true) => {
            let _ = child.wait();
            Err(why)
        }
        (Some(why), false) => {
            let pid = child.id();
            leave(pipe, Some(child));
            let why = format!("{why}, and process {pid} can't be ended: SIGKILL does nothing");
            return Outcome { how: Err(why), printed: one_line(&printed) };
        }
    };
    if printing {
        leave(pipe, None);
    }
    Outcome { how, printed: one_line(&printed) }
}

/// What goes on without the agent is read from until it prints no more, so that no print of it fails, and is waited for
/// then. Nobody waits for this.
fn leave(mut pipe: PipeReader, child: Option<Child>) {
    let reap = move || {
        let waits = fcntl(&pipe, FcntlArg::F_SETFL(OFlag::empty()));
        let _ = waits.map_err(io::Error::from).and_then(|_| io::copy(&mut pipe, &mut io::sink()));
        child.map(|mut child| child.wait())
    };
    if let Err(error) = thread::Builder::new().name("hook-left".to_owned()).spawn(reap) {
        tracing::warn!(%error, "what a hook has left running ends when it prints: no thread is to be had");
    }
}

/// Starts it on a thread of its own, which has as little as this one: a program on a dead disk can't even be started, or
/// found not to be there.
///
/// # Errors
/// Why it was not started. What is started later is ended at once.
fn spawn(
    command: &[String],
    env: &[(&'static str, String)],
    until: Instant,
    given_up: &dyn Fn() -> bool,
) -> Result<(Child, PipeReader), String> {
    let (program, args) = command.split_first().ok_or("no program is configured")?;
    let (mut command, out) = prepare(program, args, env).map_err(|error| format!("can't be started ({error})"))?;
    let (started, told) = sync_channel(1);
    let start = move || {
        // A group of its own, so that what it starts can be ended with it.
        let child = command.process_group(0).spawn();
        if let Ok(child) = &child {
            // The agent's own keeps the OOM killer away from it.
            let _ = std::fs::write(format!("/proc/{}/oom_score_adj", child.id()), "0");
        }
        // The copies of what it prints to, so that its own are the last.
        drop(command);
        let _ = started.send(child).map_err(|late| late.0.map(end_late));
    };
    let thread = thread::Builder::new().name("hook-start".to_owned()).spawn(start);
    thread.map_err(|error| format!("can't be started (no thread is to be had: {error})"))?;
    loop {
        match told.recv_timeout(POLL) {
            Ok(child) => return Ok((child.map_err(|error| format!("can't be started ({error})"))?, out)),
            Err(RecvTimeoutError::Disconnected) => return Err("can't be started (its thread broke off)".to_owned()),
            Err(RecvTimeoutError::Timeout) if Instant::now() >= until || given_up() => {
                return Err("can't be started (in time: does the disk of the program answer?)".to_owned());
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

fn end_late(mut child: Child) {
    let _ = killpg(group(&child), Signal::SIGKILL);
    let _ = child.wait();
}

fn prepare(program: &str, args: &[String], env: &[(&'static str, String)]) -> io::Result<(Command, PipeReader)> {
    let (out, into) = io::pipe()?;
    fcntl(&out, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut command = Command::new(program);
    let passed_on = PASSED_ON.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    command.args(args).env_clear().envs(passed_on).envs(env.iter().map(|(name, value)| (*name, value)));
    command.current_dir("/").stdin(Stdio::null()).stdout(into.try_clone()?).stderr(into);
    Ok((command, out))
}

/// It has ended and was not waited for yet: its number still is its own.
fn has_ended(child: &Child) -> bool {
    let looks = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    !matches!(waitid(Id::Pid(group(child)), looks), Ok(WaitStatus::StillAlive))
}

fn group(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// Asks the group to end, then ends it. False: the program lives on all the same.
fn end(child: &Child, signal: &dyn Fn(&Child, Signal)) -> bool {
    signal(child, Signal::SIGTERM);
    ends_within(child, GRACE);
    // The rest of its group, too.
    signal(child, Signal::SIGKILL);
    ends_within(child, KILLED)
}

fn ends_within(child: &Child, limit: Duration) -> bool {
    let until = Instant::now() + limit;
    loop {
        if has_ended(child) {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        thread::sleep(POLL);
    }
}

fn judge(ended: io::Result<ExitStatus>) -> Result<(), String> {
    match ended {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(status.to_string()),
        Err(error) => Err(format!("its end could not be awaited ({error})")),
    }
}

/// What is there by now, and no more than a pipe holds: one that prints without end is no reason to miss its deadline.
/// False: nobody can print to it any more.
fn keep(pipe: &mut PipeReader, printed: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 8_192];
    for _ in 0..8 {
        let read = match pipe.read(&mut buffer) {
            Ok(0) => return false,
            Ok(read) => read,
            Err(_) => return true,
        };
        printed.extend_from_slice(&buffer[..read]);
        let excess = printed.len().saturating_sub(KEPT);
        printed.drain(..excess);
    }
    true
}

fn one_line(printed: &[u8]) -> String {
    let text = String::from_utf8_lossy(printed);
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, deadline: Duration) -> Outcome {
        let command = ["/bin/sh", "-c", script].map(str::to_owned);
        run(&command, &[("MATRIARCH_EVENT", "after_stop".to_owned())], deadline, &|| false)
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn it_is_told_what_happened_and_nothing_of_the_agent() {
        // As an agent does: what whoever started it had open is not its hooks' either.
        crate::guard::sys::close_all_on_exec().unwrap();
        let outcome = sh("echo $MATRIARCH_EVENT; env | grep -c CARGO; ls /proc/self/fd | wc -l; pwd", LONG);
        assert_eq!(outcome.how, Ok(()));
        // The fourth descriptor is the directory that `ls` reads.
        assert_eq!(outcome.printed, "after_stop | 0 | 4 | /");
    }

    #[test]
    fn a_failure_says_how_and_what_was_printed_last() {
        let outcome = sh("echo one; echo two >&2; exit 3", LONG);
        assert_eq!((outcome.how, outcome.printed.as_str()), (Err("exit status: 3".to_owned()), "one | two"));
        let missing = run(&["/no/such/program".to_owned()], &[], LONG, &|| false);
        assert!(missing.how.unwrap_err().starts_with("can't be started (No such file"));
    }

    #[test]
    fn at_its_deadline_it_is_ended_with_all_that_it_started() {
        let began = Instant::now();
        // Neither hears SIGTERM.
        let outcome = sh("trap '' TERM; sh -c 'trap \"\" TERM; echo $$; sleep 60' & wait", Duration::from_millis(200));
        assert_eq!(outcome.how, Err("ended, for it took longer than 200 ms".to_owned()));
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        let stat = format!("/proc/{}/stat", outcome.printed);
        let gone = || std::fs::read_to_string(&stat).map_or(true, |text| text.contains(") Z "));
        let until = Instant::now() + LONG;
        while !gone() {
            assert!(Instant::now() < until, "what it started lives on");
            thread::sleep(POLL);
        }
    }

    #[test]
    fn one_that_prints_without_end_is_ended_all_the_same() {
        let outcome = sh("yes", Duration::from_millis(200));
        assert_eq!(outcome.how, Err("ended, for it took longer than 200 ms".to_owned()));
        assert!(outcome.printed.len() < 4 * KEPT);
    }

    #[test]
    fn what_it_leaves_running_is_not_waited_for() {
        let began = Instant::now();
        assert_eq!(sh("sleep 30 & exit 0", LONG).how, Ok(()));
        assert!(began.elapsed() < Duration::from_secs(10));
    }

    /// Nothing of it is killed by a print that nobody reads.
    #[test]
    fn what_it_leaves_running_goes_on_when_it_prints() {
        let proof = std::env::temp_dir().join(format!("matriarch-hook-left-{}", std::process::id()));
        let _ = std::fs::remove_file(&proof);
        // More than a pipe holds, and only after the hook itself has ended.
        let left =
            "(while kill -0 $$; do sleep 0.02; done; head -c 300000 /dev/zero && echo on && echo done >$PROOF) &";
        let command = ["/bin/sh".to_owned(), "-c".to_owned(), format!("PROOF={}; {left}", proof.display())];
        assert_eq!(run(&command, &[], LONG, &|| false).how, Ok(()));
        let until = Instant::now() + LONG;
        while !std::fs::read_to_string(&proof).is_ok_and(|text| text == "done\n") {
            assert!(Instant::now() < until, "what it left running ended at its print");
            thread::sleep(POLL);
        }
        std::fs::remove_file(&proof).unwrap();
    }

    /// As on a dead disk, or as another user: signals do nothing.
    #[test]
    fn one_that_no_kill_ends_is_left_behind_in_time() {
        let began = Instant::now();
        let command = ["/bin/sh", "-c", "echo $$; exec sleep 30"].map(str::to_owned);
        let outcome = run_with(&command, &[], Duration::from_millis(200), (&|| false, &|_, _| {}));
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        let pid = outcome.printed;
        let why =
            format!("ended, for it took longer than 200 ms, and process {pid} can't be ended: SIGKILL does nothing");
        assert_eq!(outcome.how, Err(why));
        let pid = Pid::from_raw(pid.parse().unwrap());
        killpg(pid, Signal::SIGKILL).unwrap();
        // Its end is seen all the same: nothing of it stays.
        let until = Instant::now() + LONG;
        while std::fs::exists(format!("/proc/{pid}")).unwrap() {
            assert!(Instant::now() < until, "nobody has waited for it");
            thread::sleep(POLL);
        }
    }

    #[test]
    fn when_nobody_waits_any_more_it_is_ended() {
        let began = Instant::now();
        let command = ["/bin/sleep", "60"].map(str::to_owned);
        let outcome = run(&command, &[], LONG, &|| true);
        assert!(outcome.how.is_err() && began.elapsed() < Duration::from_secs(10));
    }
}
