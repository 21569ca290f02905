//! The agent and its guard, beside the rules: finding one that may be frozen, watching
//! over it, measuring how fast it kills, and handing it the newer program.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, PoisonError, atomic::Ordering},
    thread,
};

use super::{
    core::{Event, Found, Postmaster},
    hands::{Hands, chain, said},
};
use crate::{
    config::{CgroupUse, Config, ConfigError, LocalMember},
    domain::observation::FenceView,
    guard::{
        self, ExitKind, FileId, GroupUse, GuardError, GuardHandle, GuardState, Measured, Method, Refusal, WhyWalk,
        sys::two_clocks,
    },
    postgres::Instance,
};

/// As many processes as a busy PostgreSQL has.
const TREE: usize = 100;
/// So often a fence is tried out before an agent refuses to start.
const TRIES: usize = 3;

/// The guard that an earlier agent has left, if its PostgreSQL still runs. One that doesn't
/// answer is frozen, and nobody knows its deadline, which may have passed: then
/// PostgreSQL is ended, and it as well. `unbound`: it never had one, and what it stands beside goes on.
pub fn find(hands: &Hands, unbound: bool) -> Result<Option<GuardHandle>, String> {
    match guard::adopt(&hands.runtime_dir) {
        Ok(found) => Ok(found.filter(|g| !g.state().borrow().postmaster.is_clear())),
        Err(error) if is_frozen(&error) && unbound => {
            tracing::error!(
                error = chain(&error),
                "a guard is there and doesn't answer; it is ended, PostgreSQL goes on"
            );
            guard::let_go(&hands.runtime_dir).map_err(said)?;
            Ok(None)
        }
        Err(error) if is_frozen(&error) => {
            tracing::error!(
                error = chain(&error),
                "a guard is there and doesn't answer; it is ended with its PostgreSQL"
            );
            hands.kill_unguarded(0)?;
            guard::put_down(&hands.runtime_dir).map_err(said)?;
            Ok(None)
        }
        Err(error) => Err(said(error)),
    }
}

/// What an earlier agent left, after what has no guard was killed.
pub fn left_behind(hands: &Hands, guard: Option<&GuardHandle>) -> Result<Found, String> {
    hands.instance.end_orphans();
    let Some(guard) = guard else {
        hands.kill_foreign()?;
        hands.instance.finish_swap().map_err(said)?;
        return Ok(Found::Nothing);
    };
    // The pushed state may have an old deadline.
    let state = guard.refresh().map_err(said)?;
    let armed = state.deadline.map(|_| state.epoch).unwrap_or_default();
    let remaining = state.deadline.map(|d| d.holder_remaining(two_clocks())).unwrap_or_default();
    let pid = match state.postmaster {
        guard::Postmaster::Running { pid } => pid,
        guard::Postmaster::Gone { .. } => 0,
    };
    Ok(Found::Running { pid, armed, remaining })
}

/// There, and not answering; anything else wants a person to look at it.
fn is_frozen(error: &GuardError) -> bool {
    match error {
        GuardError::Silent { .. } | GuardError::Closed { .. } => true,
        // Its backlog is full of those that asked before.
        GuardError::Connect { source, .. } => matches!(source.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        _ => false,
    }
}

/// What the configuration says, in the guard's own terms.
pub fn group_use(local: &LocalMember) -> GroupUse {
    match local.agent.cgroup {
        CgroupUse::Auto => GroupUse::Auto,
        CgroupUse::Off => GroupUse::Off,
        CgroupUse::Required => GroupUse::Required,
    }
}

/// Measures how long a fence takes here. Where it takes longer than the profile allows,
/// another host could be granted while this one still writes: such an agent doesn't start.
///
/// # Errors
/// Too slow, or nothing could be measured.
pub fn measure(config: &Config, hands: &Hands) -> Result<(), ConfigError> {
    Measurement::of(config, hands).take()
}

/// All that a measurement needs, and nothing that would keep the agent's lease alive.
struct Measurement {
    config: Config,
    exe: PathBuf,
    runtime_dir: PathBuf,
    group: GroupUse,
    measured: Arc<OnceLock<Measured>>,
}

impl Measurement {
    fn of(config: &Config, hands: &Hands) -> Self {
        let (config, measured) = (config.clone(), Arc::clone(&hands.measured));
        Self { config, exe: hands.exe.clone(), runtime_dir: hands.runtime_dir.clone(), group: hands.group, measured }
    }

    fn try_out(&self) -> Result<Measured, GuardError> {
        guard::measure_kill(&self.exe, &self.runtime_dir, self.group, TREE)
    }

    fn take(&self) -> Result<(), ConfigError> {
        let mut measured = self.try_out();
        for _ in 1..TRIES {
            let Err(error @ GuardError::Silent { .. }) = &measured else { break };
            // All of a host starts at once after a boot, and a guard may be late then.
            tracing::warn!(error = chain(error), "a fence could not be tried out, it is tried again");
            measured = self.try_out();
        }
        let measured = measured.map_err(|error| {
            let key = if self.group == GroupUse::Required { "agent.cgroup" } else { "agent.runtime_dir" };
            let problem = format!("a fence could not be tried out: {}", chain(&error));
            self.config.wrong(key, problem, "correct that; a primary that can't be fenced is not safe")
        })?;
        let measured = *self.measured.get_or_init(|| measured);
        judge(&self.config, &measured)
    }
}

fn judge(config: &Config, measured: &Measured) -> Result<(), ConfigError> {
    let (took, method) = (measured.took, measured.means.method);
    tracing::info!(took_us = took.as_micros(), processes = TREE, %method, "measured how long a fence takes");
    match too_slow(config, measured) {
        None => Ok(()),
        Some(problem) => {
            let advice = "take load off this host, delegate a cgroup (Delegate=yes), or choose a slower profile";
            Err(config.wrong("cluster.profile", problem, advice))
        }
    }
}

/// What is wrong with a measured fence, if anything.
pub fn too_slow(config: &Config, measured: &Measured) -> Option<String> {
    let allowed = config.cluster.timings.kill;
    (measured.took > allowed).then(|| {
        format!(
            "profile `{}` allows {} ms for a fence, and killing {TREE} processes took {} ms on this host ({})",
            config.cluster.profile,
            allowed.as_millis(),
            measured.took.as_millis(),
            measured.means.method,
        )
    })
}

/// The same for an agent that has found a PostgreSQL running. It doesn't end for that: an
/// agent that ends takes the lease with it, and what is slow now was measured before.
pub fn measure_later(config: &Config, hands: &Hands) {
    let measurement = Measurement::of(config, hands);
    let work = move || {
        thread::sleep(measurement.config.cluster.timings.hold);
        if let Err(error) = measurement.take() {
            tracing::error!(%error, "the next start of this agent will be refused");
        }
    };
    if let Err(error) = thread::Builder::new().name("measure-kill".to_owned()).spawn(work) {
        tracing::error!(%error, "no thread to measure a fence in");
    }
}

/// Lets an adopted guard execute the program of this agent, if it runs another one. Tried
/// until it was done or can't be done; the guard goes on in either case.
pub fn hand_over(hands: &Hands, guard: GuardHandle) {
    let (exe, renew, addresses) = (hands.exe.clone(), hands.timings.renew, hands.layers.addresses());
    let means = guard.state().borrow().means;
    match FileId::of(&exe) {
        Ok(own) if own == means.program => return,
        Ok(_) => {}
        Err(error) => return tracing::warn!(%error, exe = %exe.display(), "failed to look at the own program"),
    }
    let work = move || {
        loop {
            match guard.upgrade(&exe) {
                Ok(()) => {
                    tracing::info!("the guard runs the program of this agent now");
                    // The program before may not have known of any.
                    return name_addresses(&guard, addresses);
                }
                // There is more time after a renewal.
                Err(GuardError::Refused(Refusal::TooLate)) => thread::sleep(renew / 4),
                Err(error) => {
                    return tracing::warn!(error = chain(&error), "the guard goes on with its older program");
                }
            }
            let state = guard.state().borrow().clone();
            if state.postmaster.is_clear() || !state.alive {
                return;
            }
        }
    };
    if let Err(error) = thread::Builder::new().name("guard-upgrade".to_owned()).spawn(work) {
        tracing::warn!(%error, "no thread to hand a guard over in");
    }
}

/// What the guard takes away when it fences. Without it the kernel ends an address, later.
fn name_addresses(guard: &GuardHandle, addresses: guard::Addresses) {
    if let Err(error) = guard.name_addresses(addresses) {
        tracing::warn!(error = chain(&error), "the guard was not told of the virtual addresses");
    }
}

/// The guard's word, for the rules.
pub fn event(life: u64, state: &GuardState) -> Event {
    if !state.alive && !state.postmaster.is_clear() {
        return Event::GuardDied { life };
    }
    let postmaster = match state.postmaster {
        guard::Postmaster::Running { pid } => Postmaster::Running { pid },
        guard::Postmaster::Gone { status, tree_empty, fenced } => {
            let exit = match status {
                guard::UNTOLD => "only whoever had started it knows how".to_owned(),
                ExitKind::Code(code) => format!("exit code {code}"),
                ExitKind::Signal(signal) => format!("signal {signal}"),
            };
            Postmaster::Gone { tree_empty, fenced, exit }
        }
    };
    Event::Guard { life, postmaster }
}

/// PostgreSQL runs, and this guard is not its parent.
pub fn took_over(guard: Option<&GuardHandle>) -> bool {
    guard.is_some_and(|guard| {
        let state = guard.state().borrow().clone();
        state.means.method == Method::Walk(WhyWalk::TakenOver) && !state.postmaster.is_clear()
    })
}

/// How this host fences, in words: what the running guard says, or else what was found at the measurement.
pub fn fence_view(hands: &Hands, guard: Option<&GuardHandle>) -> FenceView {
    let measured = hands.measured.get();
    let running = guard.map(|g| g.state().borrow().clone()).filter(|s| s.alive && !s.postmaster.is_clear());
    let Some(means) = running.map(|s| s.means).or_else(|| measured.map(|m| m.means)) else {
        return FenceView::default();
    };
    let [memory, priority, oom] = means.shields.words();
    let kill_micros = measured.map_or(0, |m| u64::try_from(m.took.as_micros()).unwrap_or(u64::MAX));
    FenceView { method: means.method.to_string(), kill_micros, memory, priority, oom }
}

fn kill_unguarded(instance: &Instance, runtime_dir: &Path, pid: u32) -> Result<usize, String> {
    // A postmaster that is gone may have left backends that still acknowledge: they are looked for by
    // their data directory, whatever postmaster.pid says.
    guard::kill_unguarded(pid, instance.data_dir(), runtime_dir).map_err(said)
}

impl Hands {
    /// Ends what runs in the data directory without a guard that answers.
    pub fn kill_unguarded(&self, pid: u32) -> Result<usize, String> {
        kill_unguarded(&self.instance, &self.runtime_dir, pid)
    }

    /// From now on the tree of this guard is killed by the agent, too, when the guard ends and at the deadline.
    /// `life` is the number of its postmaster: what belongs to a later one is left alone.
    pub fn watch_over(&self, life: u64, guard: &GuardHandle) -> Result<(), String> {
        // Not the hands as a whole: they would keep the lease alive.
        let (gate, newest) = (Arc::clone(&self.gate), Arc::clone(&self.life));
        let (instance, runtime_dir) = (self.instance.clone(), self.runtime_dir.clone());
        let kill = move || {
            let _alone = gate.lock().unwrap_or_else(PoisonError::into_inner);
            if newest.load(Ordering::SeqCst) != life {
                return true;
            }
            match kill_unguarded(&instance, &runtime_dir, 0) {
                Ok(killed) => {
                    tracing::warn!(killed, "nothing of the process tree is left");
                    true
                }
                Err(error) => {
                    tracing::error!(error, "failed to kill the process tree");
                    false
                }
            }
        };
        guard.watch_over(Box::new(kill)).map_err(said)?;
        name_addresses(guard, self.layers.addresses());
        Ok(())
    }

    /// PostgreSQL doesn't start beside a lock file whose process lives, be it a zombie or somebody else's that
    /// got the number. Nothing of PostgreSQL runs here any more: that was seen to before.
    pub fn set_stale_locks_aside(&self) -> Result<(), String> {
        for (path, pid) in self.instance.lock_files() {
            // With no such process PostgreSQL removes the file by itself.
            let Ok(name) = std::fs::read_to_string(format!("/proc/{pid}/comm")) else { continue };
            let (path_shown, name) = (path.display(), name.trim());
            tracing::warn!(path = %path_shown, pid, name, "names a process that is not ours; it is set aside");
            Instance::set_lock_file_aside(&path).map_err(said)?;
        }
        Ok(())
    }
}
