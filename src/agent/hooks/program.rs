//! Runs one program of the operator's: no shell, an environment with nothing of the agent's own, no open descriptor, a
//! deadline after which its whole process group is ended.

use std::{
    io::{self, PipeReader, Read as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitStatus, Stdio},
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

/// Runs it to its end, to its deadline, or until `given_up` says so.
pub(super) fn run(
    command: &[String],
    env: &[(&'static str, String)],
    deadline: Duration,
    given_up: &dyn Fn() -> bool,
) -> Outcome {
    let failed = |how| Outcome { how: Err(how), printed: String::new() };
    let Some((program, args)) = command.split_first() else { return failed("no program is configured".to_owned()) };
    let (mut child, mut pipe) = match spawn(program, args, env) {
        Ok(spawned) => spawned,
        Err(error) => return failed(format!("can't be started ({error})")),
    };
    let mut printed = Vec::new();
    let until = Instant::now() + deadline;
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
        std::thread::sleep(POLL);
    };
    if why.is_some() {
        end(&child);
    }
    // Nothing but this takes its number away, so no signal has met another process.
    let ended = child.wait();
    keep(&mut pipe, &mut printed);
    let how = why.map_or_else(|| judge(ended), Err);
    Outcome { how, printed: one_line(&printed) }
}

fn spawn(program: &str, args: &[String], env: &[(&'static str, String)]) -> io::Result<(Child, PipeReader)> {
    let (out, into) = io::pipe()?;
    fcntl(&out, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut command = Command::new(program);
    let passed_on = PASSED_ON.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    command.args(args).env_clear().envs(passed_on).envs(env.iter().map(|(name, value)| (*name, value)));
    command.current_dir("/").stdin(Stdio::null()).stdout(into.try_clone()?).stderr(into);
    // A group of its own, so that what it starts can be ended with it.
    let child = command.process_group(0).spawn()?;
    // The agent's own keeps the OOM killer away from it.
    let _ = std::fs::write(format!("/proc/{}/oom_score_adj", child.id()), "0");
    Ok((child, out))
}

/// It has ended and was not waited for yet: its number still is its own.
fn has_ended(child: &Child) -> bool {
    let looks = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    !matches!(waitid(Id::Pid(group(child)), looks), Ok(WaitStatus::StillAlive))
}

fn group(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// Asks the group to end, then ends it.
fn end(child: &Child) {
    let _ = killpg(group(child), Signal::SIGTERM);
    let until = Instant::now() + GRACE;
    while !has_ended(child) && Instant::now() < until {
        std::thread::sleep(POLL);
    }
    let _ = killpg(group(child), Signal::SIGKILL);
}

fn judge(ended: io::Result<ExitStatus>) -> Result<(), String> {
    match ended {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(status.to_string()),
        Err(error) => Err(format!("its end could not be awaited ({error})")),
    }
}

/// What is there by now, and no more than a pipe holds: one that prints without end is no reason to miss its deadline.
fn keep(pipe: &mut PipeReader, printed: &mut Vec<u8>) {
    let mut buffer = [0; 8_192];
    for _ in 0..8 {
        let Ok(read @ 1..) = pipe.read(&mut buffer) else { return };
        printed.extend_from_slice(&buffer[..read]);
        let excess = printed.len().saturating_sub(KEPT);
        printed.drain(..excess);
    }
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
            std::thread::sleep(POLL);
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

    #[test]
    fn when_nobody_waits_any_more_it_is_ended() {
        let began = Instant::now();
        let command = ["/bin/sleep", "60"].map(str::to_owned);
        let outcome = run(&command, &[], LONG, &|| true);
        assert!(outcome.how.is_err() && began.elapsed() < Duration::from_secs(10));
    }
}
