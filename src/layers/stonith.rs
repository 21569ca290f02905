//! Runs the operator's program that takes a host's power away. No shell, a
//! deadline, and nothing of what it prints goes further than the local log.

use std::{
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{io::AsyncReadExt as _, process::Command};

use crate::{
    config::StonithConfig,
    domain::{Epoch, MemberId},
};

/// So much of what it prints is read and kept.
const OUTPUT_MAX: usize = 2_000;

/// Whose power to take, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Name of the cluster.
    pub cluster: String,
    /// The member that held the lock.
    pub member: MemberId,
    /// Its host, from the list of members.
    pub host: String,
    /// The epoch it held.
    pub epoch: Epoch,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Exit code 0 in time.
    pub succeeded: bool,
    /// How, for people; nothing that it printed.
    pub how: String,
    /// The end of what it printed, for the local log only.
    pub printed: String,
}

/// Runs it to its end or to its deadline; then it and what it started are killed.
pub async fn run(config: &StonithConfig, target: &Target) -> Outcome {
    let began = Instant::now();
    let Some((program, args)) = config.command.split_first() else {
        return failed("no program is configured".to_owned());
    };
    let mut command = Command::new(program);
    command.args(args.iter().map(|arg| filled_in(arg, target)));
    command.env_clear().envs(environment(target)).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A group of its own, so that what it starts can be killed with it.
    command.process_group(0).kill_on_drop(true);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return failed(format!("can't start {program} ({error})")),
    };
    let group = child.id().map(|pid| Pid::from_raw(pid.cast_signed()));
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let reading = tokio::spawn(async move { (printed(out).await, printed(err).await) });
    let ended = tokio::time::timeout(config.deadline, child.wait()).await;
    // Not waited for yet, so the number is still its own.
    if let (Err(_), Some(group)) = (&ended, group) {
        let _ = killpg(group, Signal::SIGKILL);
    }
    let mut outcome = judge(ended.ok(), config.deadline, began.elapsed());
    if let Ok(Ok((out, err))) = tokio::time::timeout(Duration::from_millis(200), reading).await {
        outcome.printed = format!("{out}{err}");
    }
    outcome
}

fn judge(ended: Option<std::io::Result<ExitStatus>>, deadline: Duration, elapsed: Duration) -> Outcome {
    let took = format!("after {} ms", elapsed.as_millis());
    match ended {
        None => failed(format!("killed, it had not ended within {} ms", deadline.as_millis())),
        Some(Ok(status)) if status.success() => Outcome { succeeded: true, how: took, printed: String::new() },
        Some(Ok(status)) => failed(format!("{status} {took}")),
        Some(Err(error)) => failed(format!("its end could not be awaited ({error})")),
    }
}

fn failed(how: String) -> Outcome {
    Outcome { succeeded: false, how, printed: String::new() }
}

/// What is told in the environment, whatever the arguments are.
fn environment(target: &Target) -> Vec<(String, String)> {
    let own = [
        ("MATRIARCH_CLUSTER", target.cluster.clone()),
        ("MATRIARCH_MEMBER", target.member.to_string()),
        ("MATRIARCH_HOST", target.host.clone()),
        ("MATRIARCH_EPOCH", target.epoch.to_string()),
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
    ];
    own.map(|(name, value)| (name.to_owned(), value)).into()
}

fn filled_in(argument: &str, target: &Target) -> String {
    argument
        .replace("{cluster}", &target.cluster)
        .replace("{member}", target.member.as_str())
        .replace("{host}", &target.host)
        .replace("{epoch}", &target.epoch.to_string())
}

/// The end of what comes out of a pipe.
async fn printed(pipe: Option<impl tokio::io::AsyncRead + Unpin>) -> String {
    let Some(mut pipe) = pipe else { return String::new() };
    let mut kept = Vec::new();
    let mut buffer = [0; 1_000];
    while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..read]);
        let excess = kept.len().saturating_sub(OUTPUT_MAX);
        kept.drain(..excess);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        let member = "n1".parse().unwrap();
        Target { cluster: "main".into(), member, host: "10.0.0.1".into(), epoch: Epoch(7) }
    }

    async fn outcome(script: &str, deadline_ms: u64) -> Outcome {
        let command = ["/bin/sh", "-c", script, "hook", "{member}", "--host={host}"].map(str::to_owned).into();
        run(&StonithConfig { command, deadline: Duration::from_millis(deadline_ms) }, &target()).await
    }

    #[tokio::test]
    async fn arguments_and_environment_name_the_target() {
        let said =
            outcome("echo $1 $2 $MATRIARCH_MEMBER/$MATRIARCH_HOST/$MATRIARCH_EPOCH/$MATRIARCH_CLUSTER", 5_000).await;
        assert_eq!(said.printed, "n1 --host=10.0.0.1 n1/10.0.0.1/7/main\n");
        assert!(said.succeeded && said.how.starts_with("after "), "{said:?}");
    }

    #[tokio::test]
    async fn a_failure_is_told_by_its_exit_code_alone() {
        let said = outcome("echo secret >&2; exit 3", 5_000).await;
        assert!(!said.succeeded && said.how.starts_with("exit status: 3 after "), "{said:?}");
        assert!(!said.how.contains("secret"));
    }

    #[tokio::test]
    async fn what_hangs_is_killed_with_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let script = format!("sleep 60 & echo $! > {}; wait", pid_file.display());
        let said = outcome(&script, 300).await;
        assert_eq!(said.how, "killed, it had not ended within 300 ms");
        let pid: i32 = std::fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
        let alive = || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z "));
        let until = Instant::now() + Duration::from_secs(5);
        while alive() {
            assert!(Instant::now() < until, "process {pid} is still there");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_a_failure() {
        let config = StonithConfig { command: vec!["/nonexistent/fence".into()], deadline: Duration::from_secs(1) };
        let said = run(&config, &target()).await;
        assert!(said.how.starts_with("can't start /nonexistent/fence (No such file"), "{said:?}");
    }
}
