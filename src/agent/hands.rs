//! What the agent can do, and the few steps that tasks share: start a guard,
//! wait for the end of a tree, make a stopped data directory safe and read it.

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Mutex, mpsc};

use super::{
    blame::{self, Blame},
    core::{Disk, DiskFacts, Event, TO_BE_STOPPED, TO_BE_TAKEN_IN},
    hooks::Hooks,
    order::Source,
    parameters,
    process::Wake,
};
use crate::{
    domain::{Epoch, Generation, KeepDiverged, TimelineHistory, Timings, WalPosition, moment::TwoClocks},
    guard::{self, GroupUse, GuardHandle, GuardedCommand, Measured, PostmasterSignal, ProcessIdentity, SpawnOptions},
    layers::Layers,
    lease::{HolderHandle, wire::Codec},
    postgres::{DataState, DbState, Instance, Upstream},
};

/// Between two tries to kill.
const KILL_AGAIN: Duration = Duration::from_millis(20);
/// A client has so long to be let in before a planned stop.
const LET_IN: Duration = Duration::from_millis(200);

/// Everything a task may touch. Cheap to clone.
#[derive(Clone)]
pub struct Hands {
    /// PostgreSQL's files and programs.
    pub instance: Instance,
    /// The lease.
    pub holder: HolderHandle,
    /// All timings.
    pub timings: Timings,
    /// The program that is started as guard.
    pub exe: PathBuf,
    /// Where guards live.
    pub runtime_dir: PathBuf,
    /// Into the loop.
    pub wakes: mpsc::UnboundedSender<Wake>,
    /// The number of the newest postmaster.
    pub life: Arc<AtomicU64>,
    /// Nobody would take over: a restart takes as long as it takes.
    pub patient: Arc<AtomicBool>,
    /// Held by whoever works in the data directory.
    pub data_dir: Arc<Mutex<()>>,
    /// Held by whoever starts a postmaster or kills one without its guard, on a thread that may block:
    /// so a kill that was meant for one never meets the next.
    pub gate: Arc<std::sync::Mutex<()>>,
    /// Whether PostgreSQL gets a cgroup of its own.
    pub group: GroupUse,
    /// How long a fence takes here, once that was measured.
    pub measured: Arc<OnceLock<Measured>>,
    /// What protects beyond the guard.
    pub layers: Layers,
    /// Up to where WAL of a crashed primary was put into place here: replay may not have come to it yet.
    pub rescued: Arc<std::sync::Mutex<WalPosition>>,
    /// Makes the tags that only members can make.
    pub codec: Codec,
    /// The operator's programs.
    pub hooks: Hooks,
}

/// An error with all its causes in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // A transparent wrapper says the same thing twice.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// For `map_err`: the error as a task reports it.
pub fn said<E: std::error::Error + 'static>(error: E) -> String {
    chain(&error)
}

impl From<&Source> for Upstream {
    fn from(source: &Source) -> Upstream {
        Upstream { member: source.member.clone(), host: source.host.clone(), port: source.port }
    }
}

/// Runs work that blocks on a thread where that harms nobody.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|e| format!("a task of the agent broke off: {e}"))
}

impl Hands {
    /// Starts the postmaster under a new guard, armed from the first moment when
    /// there is a deadline. What may still run there without a guard is killed.
    pub async fn start_postmaster(&self, epoch: Epoch, deadline: Option<TwoClocks>) -> Result<GuardHandle, String> {
        let hands = self.clone();
        let (life, handle) = blocking(move || hands.start_blocking(epoch, deadline)).await??;
        // The loop is gone only when the agent ends; then the guard goes on by itself.
        let _ = self.wakes.send(Wake::Guarded { life, handle: handle.clone() });
        Ok(handle)
    }

    /// Puts a guard beside the postmaster that runs here already; from then on it is Matriarch's.
    pub async fn take_over(&self) -> Result<(), String> {
        let hands = self.clone();
        let (life, handle) = blocking(move || hands.take_over_blocking()).await??;
        let _ = self.wakes.send(Wake::Guarded { life, handle });
        Ok(())
    }

    fn take_over_blocking(&self) -> Result<(u64, GuardHandle), String> {
        let _alone = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = self.instance.running_pid().map(i32::unsigned_abs);
        let postmaster = pid.and_then(ProcessIdentity::of).ok_or("what was to be taken over has ended")?;
        let log_file = self.instance.log_file().to_owned();
        let command = GuardedCommand { program: PathBuf::new(), args: Vec::new(), env: Vec::new(), log_file };
        let (exe, runtime_dir) = (self.exe.clone(), self.runtime_dir.clone());
        let options = SpawnOptions { exe, runtime_dir, command, epoch_hint: Epoch(0), group: self.group };
        let system = self.instance.control_data().map_err(said)?.system_identifier;
        let handle = guard::take_over(&options, postmaster, self.instance.data_dir()).map_err(said)?;
        let life = self.life.load(Ordering::SeqCst) + 1;
        let marked = self.instance.mark_adopted(true).map_err(said);
        if let Err(error) = marked.and_then(|()| self.watch_over(life, &handle)) {
            // It goes on without a guard, as before. Without the mark first: marked and without a guard it would be ended.
            let undone = self.instance.mark_adopted(false).map_err(said);
            return undone.and_then(|()| handle.let_go().map_err(said)).and(Err(error));
        }
        self.life.store(life, Ordering::SeqCst);
        let _ = self.wakes.send(Wake::Core(Event::Identified(system)));
        tracing::warn!(pid = postmaster.pid, "a PostgreSQL that runs was taken over");
        Ok((life, handle))
    }

    /// Gives PostgreSQL the timings in force and the settings of all hosts, as soon as nobody works in its data directory.
    pub fn refresh_timings(&self, guard: Option<GuardHandle>) {
        let hands = self.clone();
        tokio::spawn(async move {
            let _works = hands.data_dir.lock().await;
            parameters::apply(&hands.instance).await;
            let refresh = move || {
                hands.instance.refresh_timings().map_err(said)?;
                // Also when nothing had to be written: an agent that was killed may have written it and no more.
                guard.map_or(Ok(()), |guard| guard.signal(PostmasterSignal::Reload).map_err(said))
            };
            if let Err(error) = blocking(refresh).await.and_then(|done| done) {
                tracing::warn!(
                    error,
                    "failed to give PostgreSQL its timings; it gets them with its next start or change of role"
                );
            }
        });
    }

    /// Gives PostgreSQL what is set of the archive, as soon as nobody works in its data directory.
    pub fn refresh_archive(&self, guard: Option<GuardHandle>) {
        let hands = self.clone();
        tokio::spawn(async move {
            let _works = hands.data_dir.lock().await;
            let refresh = move || {
                hands.instance.refresh_archive().map_err(said)?;
                guard.map_or(Ok(()), |guard| guard.signal(PostmasterSignal::Reload).map_err(said))
            };
            if let Err(error) = blocking(refresh).await.and_then(|done| done) {
                tracing::debug!(
                    error,
                    "PostgreSQL gets what is set of the archive with its next start or change of role"
                );
            }
        });
    }

    /// After a promotion: what the last primary could not archive any more is archived by this one. Nobody waits for that.
    pub fn mend_archive(&self) {
        let instance = self.instance.clone();
        tokio::spawn(async move {
            match instance.mend_archive().await {
                Ok(0) => {}
                Ok(files) => {
                    tracing::info!(files, "WAL that the last primary had not archived is archived by this one")
                }
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(error, "it is not known whether the last primary had archived everything");
                }
            }
        });
    }

    /// Makes the shutdown that somebody has begun a fast one.
    pub fn end_shutdown(&self, guard: Option<GuardHandle>) {
        let Some(guard) = guard else { return };
        tokio::spawn(async move {
            if let Err(error) = signal(&guard, PostmasterSignal::Fast).await {
                tracing::warn!(error, "failed to tell PostgreSQL to end its sessions");
            }
        });
    }

    fn start_blocking(&self, epoch: Epoch, deadline: Option<TwoClocks>) -> Result<(u64, GuardHandle), String> {
        let _alone = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        self.kill_foreign()?;
        self.set_stale_locks_aside()?;
        let command = self.instance.postmaster_command().map_err(said)?;
        let command = GuardedCommand {
            program: command.program,
            args: command.args,
            env: command.env,
            log_file: command.log_file,
        };
        let (exe, runtime_dir) = (self.exe.clone(), self.runtime_dir.clone());
        let options = SpawnOptions { exe, runtime_dir, command, epoch_hint: epoch, group: self.group };
        let spawned = match deadline {
            Some(at) => guard::spawn_armed(&options, at),
            None => guard::spawn(&options),
        };
        let life = self.life.load(Ordering::SeqCst) + 1;
        let watched = spawned.map_err(said).and_then(|handle| match self.watch_over(life, &handle) {
            Ok(()) => Ok(handle),
            Err(error) => {
                let _ = handle.fence();
                Err(error)
            }
        });
        // Nobody else knows of what was started: an error says that nothing of it is left.
        let handle = watched.inspect_err(|_| self.end_unwatched())?;
        self.life.store(life, Ordering::SeqCst);
        Ok((life, handle))
    }

    /// Kills until it is known that nothing is left, or the agent ends.
    fn end_unwatched(&self) {
        let mut told = false;
        while let Err(error) = self.kill_unguarded(0) {
            if self.wakes.is_closed() {
                return;
            }
            if !told {
                tracing::error!(error, "failed to kill what a start that failed has left, trying again");
                told = true;
            }
            std::thread::sleep(KILL_AGAIN);
        }
    }

    /// Lets the holder's deadlines go to this guard and to the layers.
    pub fn sink_to(&self, guard: &GuardHandle) -> Result<(), String> {
        let mut link = guard.deadline_link().map_err(said)?;
        let layers = self.layers.clone();
        self.holder.set_sink(Box::new(move |epoch, at| {
            // The guard first: it is what a renewal waits for.
            let guarded = link.publish(epoch, at);
            layers.moved(epoch, at) && guarded
        }));
        Ok(())
    }

    /// Puts the layers up; nothing may become writable before.
    pub async fn arm_layers(&self, epoch: Epoch, deadline: TwoClocks) -> Result<(), String> {
        let layers = self.layers.clone();
        blocking(move || layers.arm(epoch, deadline)).await?
    }

    /// Nothing runs that a deadline could end.
    pub fn sink_to_nobody(&self) {
        self.holder.set_sink(Box::new(|_, _| true));
    }

    /// Gives transactions in progress time to end, and those who are being let in to begin one. Whatever comes of it, PostgreSQL
    /// is stopped then.
    pub async fn drain(&self, patience: Duration) {
        self.progress("transactions in progress", 0, 0);
        let began = std::time::Instant::now();
        let waits = async {
            let new = self.instance.letting_in();
            let session = self.instance.connect().await?;
            // Those that came later are not waited for: where no router holds them there is no end of them.
            let let_in = async {
                while self.instance.letting_in().iter().any(|pid| new.contains(pid)) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            // One that says nothing is not waited for any longer.
            let _ = tokio::time::timeout(LET_IN, let_in).await;
            session.await_transactions(&new, patience).await
        };
        match tokio::time::timeout(patience, waits).await {
            Ok(Ok(())) => {
                tracing::info!(elapsed_ms = began.elapsed().as_millis(), "no transaction is in progress any more")
            }
            Ok(Err(error)) => tracing::info!(error = chain(&error), "transactions are ended by the stop"),
            Err(_) => {
                tracing::info!(drain_timeout_ms = patience.as_millis(), "transactions take longer, the stop ends them")
            }
        }
    }

    /// Asks PostgreSQL to end and sees to it that it does: fast, then immediate,
    /// then by force.
    pub async fn stop_postmaster(&self, guard: &GuardHandle, fast_for: Option<Duration>) -> Result<(), String> {
        if let Some(patience) = fast_for {
            signal(guard, PostmasterSignal::Fast).await?;
            if wait_clear(guard, patience).await {
                return Ok(());
            }
            tracing::warn!(patience_ms = patience.as_millis(), "the fast stop took too long, stopping immediately");
        }
        signal(guard, PostmasterSignal::Immediate).await?;
        if wait_clear(guard, Duration::from_secs(5)).await {
            return Ok(());
        }
        let handle = guard.clone();
        blocking(move || handle.fence()).await?.map_err(said)?;
        match wait_clear(guard, Duration::from_secs(10)).await {
            true => Ok(()),
            false => Err("some process of PostgreSQL could not be ended".to_owned()),
        }
    }

    /// Progress of the running task.
    pub fn progress(&self, phase: &str, done: u64, total: u64) {
        let _ = self.wakes.send(Wake::Core(Event::Progress { phase: phase.to_owned(), done, total }));
    }

    /// Makes the data directory of a postmaster that is gone safe to be found by
    /// anybody, then reads it. Skipped when a newer postmaster was started.
    pub async fn survey(self, life: u64, wal_end: bool) {
        let (instance, newest) = (self.instance.clone(), Arc::clone(&self.life));
        let mut disk = {
            let _works = self.data_dir.lock().await;
            if newest.load(Ordering::SeqCst) != life {
                return;
            }
            let read = blocking(move || {
                make_safe(&instance);
                read_disk(&instance)
            });
            read.await.unwrap_or_else(Disk::Unusable)
        };
        if let Disk::Present(facts) = &mut disk
            && facts.clean_shutdown
        {
            // Only the shutdown checkpoint is to be read, which takes milliseconds.
            match self.end_and_history().await {
                Ok((end, history)) => (facts.proven_end, facts.history) = (Some(end), history),
                Err(error) => tracing::warn!(error, "failed to read the shutdown checkpoint"),
            }
        }
        let unread = matches!(&disk, Disk::Present(facts) if facts.proven_end.is_none());
        let _ = self.wakes.send(Wake::Core(Event::Surveyed { life, disk }));
        if wal_end && unread {
            self.read_wal_end(life).await;
        }
    }

    /// The manager does nothing with a stopped instance whose end of WAL it doesn't
    /// know, so this is tried again until it succeeds or somebody starts it.
    async fn read_wal_end(&self, life: u64) {
        loop {
            let read = self.end_and_history().await;
            if self.life.load(Ordering::SeqCst) != life || self.wakes.is_closed() {
                return;
            }
            match read {
                Ok((end, history)) => {
                    let _ = self.wakes.send(Wake::Core(Event::WalEndRead { life, end, history }));
                    return;
                }
                Err(error) => {
                    tracing::warn!(error, "failed to find the end of WAL, trying again");
                    let _ = self.wakes.send(Wake::Core(Event::WalEndUnread { life, error }));
                    tokio::time::sleep(Duration::from_secs(5)).await;
                }
            }
        }
    }

    async fn end_and_history(&self) -> Result<(WalPosition, TimelineHistory), String> {
        let end = self.instance.wal_end_on_disk().await.map_err(said)?;
        let instance = self.instance.clone();
        let history = blocking(move || instance.lineage(end).map_err(said)).await??;
        Ok((end, history))
    }

    /// Removes what a rewind or a clone has kept aside. That may take minutes, in which a crashed primary must be
    /// restarted and a stopped directory read: only what takes no time keeps others out.
    pub async fn discard_old(&self, keep: KeepDiverged) -> Result<(), String> {
        {
            let _works = self.data_dir.lock().await;
            let instance = self.instance.clone();
            blocking(move || instance.discard_old(keep).map_err(said)).await??;
        }
        self.instance.remove_discarded().await.map_err(said)?;
        let gone = self.instance.prune_kept(keep).await.map_err(said)?;
        if !gone.is_empty() {
            tracing::info!(?gone, %keep, "what was kept of diverged data is removed");
        }
        Ok(())
    }

    /// Kills what is left of the tree of postmaster number `life`, whose guard can't.
    pub async fn kill_tree(self, life: u64, pid: u32) {
        let killed = blocking(move || self.kill_tree_blocking(life, pid)).await;
        if let Ok(Err(error)) | Err(error) = killed {
            tracing::error!(error, "failed to kill the process tree");
        }
    }

    fn kill_tree_blocking(&self, life: u64, pid: u32) -> Result<(), String> {
        let _alone = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        if self.life.load(Ordering::SeqCst) != life {
            return Ok(());
        }
        let killed = self.kill_unguarded(pid)?;
        tracing::warn!(killed, "killed the process tree without its guard");
        let _ = self.wakes.send(Wake::Core(Event::TreeKilled { life }));
        // One that answers sees by itself that the tree is empty. One that doesn't would keep the next from starting.
        match guard::adopt(&self.runtime_dir) {
            Ok(_) => Ok(()),
            Err(_) => guard::put_down(&self.runtime_dir).map_err(said),
        }
    }

    /// A postmaster that no guard of ours watches was started by hand or left by a
    /// dead guard: it must not run beside the one that is about to start. True when there was one.
    pub fn kill_foreign(&self) -> Result<bool, String> {
        // Somebody else's still: whoever takes it over stops it.
        if self.instance.is_to_be_adopted() {
            return Ok(false);
        }
        let pid = self.instance.running_pid().map_or(0, i32::unsigned_abs);
        let killed = self.kill_unguarded(pid)?;
        if killed > 0 {
            tracing::warn!(
                pid,
                killed,
                "processes of PostgreSQL without a guard ran in the data directory and were killed"
            );
        }
        Ok(killed > 0)
    }
}

/// So much of the log's end is searched for the last words; those who were turned away meanwhile fill it, too.
const LAST_WORDS: u64 = 64 * 1024;

/// Why the last PostgreSQL to write a log ended: its last PANIC, or else its last FATAL.
pub fn last_words(log: &Path) -> Option<String> {
    telling(&end_of(log)?)
}

/// The end of a log.
pub fn end_of(log: &Path) -> Option<String> {
    log_since(log, 0)
}

/// What was written since a log ended there, but for what lies too far back. One that is shorter now is another.
pub fn log_since(log: &Path, from: u64) -> Option<String> {
    let mut file = fs::File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    let from = if from <= length { from } else { 0 };
    file.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS).max(from))).ok()?;
    let mut bytes = Vec::new();
    file.take(LAST_WORDS).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// What the last PostgreSQL to write a log wrote to its end; empty when that can't be read.
pub fn last_life(log: &Path) -> String {
    let text = end_of(log).unwrap_or_default();
    text.rfind(BEGINS).map(|at| text[at..].to_owned()).unwrap_or(text)
}

/// A postmaster writes this first; what stands before it is of another life.
pub const BEGINS: &str = " LOG:  starting PostgreSQL ";

/// Said to whoever comes or is cut off; it tells nothing of why.
pub const TURNED_AWAY: [&str; 3] =
    ["the database system is", "terminating connection", "terminating walreceiver process"];

/// After a PANIC those who wait or come are turned away with a FATAL, which says nothing.
fn telling(text: &str) -> Option<String> {
    let life = text.rfind(BEGINS).map_or(text, |at| &text[at..]);
    let says = |line: &&str| !TURNED_AWAY.iter().any(|words| line.contains(words));
    let from = |line: &str, cry: &str| line.find(cry).map(|from| line[from + 1..].to_owned());
    let last = |cry: &str| life.lines().rev().filter(says).find_map(|line| from(line, cry));
    let died = |line: &&str| line.contains(" LOG:  startup process (PID ") && line.contains("was terminated by signal");
    let startup = || life.lines().rev().find(died).and_then(|line| from(line, " LOG: "));
    last(" PANIC: ").or_else(startup).or_else(|| last(" FATAL: "))
}

async fn signal(guard: &GuardHandle, signal: PostmasterSignal) -> Result<(), String> {
    let handle = guard.clone();
    match blocking(move || handle.signal(signal)).await? {
        Ok(()) => Ok(()),
        // It ended by itself in this moment.
        Err(guard::GuardError::Refused(guard::Refusal::Ended)) => Ok(()),
        Err(error) => Err(said(error)),
    }
}

/// True once nothing of the tree is left.
pub async fn wait_clear(guard: &GuardHandle, patience: Duration) -> bool {
    let mut state = guard.state();
    let clear = state.wait_for(|s| s.postmaster.is_clear() || !s.alive);
    let seen = matches!(tokio::time::timeout(patience, clear).await, Ok(Ok(s)) if s.postmaster.is_clear());
    seen
}

/// Whoever starts this directory by hand gets a read-only standby. Best effort:
/// the postmaster's own start by this agent does all of it again.
fn make_safe(instance: &Instance) {
    if let Err(error) = instance.end_adoption() {
        tracing::error!(error = chain(&error), "failed to give what was taken over Matriarch's configuration");
    }
    if !instance.is_configured_by_us() {
        return;
    }
    let done = [
        ("remove the live configuration", instance.remove_live()),
        (
            "put standby.signal back",
            if instance.rewind_unfinished() { Ok(()) } else { instance.set_standby_signal(true) },
        ),
        ("remove the stub history files", instance.remove_stubs()),
        ("remove what was compared with the archive", instance.remove_checks()),
    ];
    for (what, result) in done {
        if let Err(error) = result {
            tracing::error!(error = chain(&error), what, "failed to make the data directory safe");
        }
    }
}

/// To the cluster there is no data until it is taken over: nothing else is done with it.
fn unadopted(instance: &Instance) -> Disk {
    if instance.takes_standby_in() {
        return match instance.standby_waits_for() {
            Ok(waits) if waits.is_empty() => Disk::NoData,
            Ok(waits) => {
                let dir = instance.data_dir().display();
                Disk::Unusable(format!("{TO_BE_TAKEN_IN}{dir} can't be yet: {}", waits.join("; ")))
            }
            Err(error) => Disk::Unusable(chain(&error)),
        };
    }
    let running = instance.running_pid();
    if instance.is_to_go_on_running() {
        return match instance.adoption() {
            Ok(adoption) if adoption.refused.is_empty() => Disk::NoData,
            Ok(adoption) => {
                let dir = instance.data_dir().display();
                Disk::Unusable(format!("{TO_BE_STOPPED}{dir}, and can't: {}", adoption.refused.join("; ")))
            }
            Err(error) => Disk::Unusable(chain(&error)),
        };
    }
    match running {
        Some(pid) => Disk::Unusable(format!(
            "{TO_BE_STOPPED}{} as process {pid}: stop it cleanly, and keep whatever starts it from \
             doing so",
            instance.data_dir().display()
        )),
        None => Disk::NoData,
    }
}

/// What lies in the data directory.
pub fn read_disk(instance: &Instance) -> Disk {
    let control = match instance.data_state() {
        Ok(DataState::Missing | DataState::Empty) => return Disk::NoData,
        Ok(DataState::Present(_)) if instance.is_to_be_adopted() => return unadopted(instance),
        Ok(DataState::Present(control)) => control,
        Ok(DataState::Incomplete(why)) if instance.is_configured_by_us() && blame::of(&why) != Blame::Host => {
            return Disk::Damaged(why);
        }
        Ok(DataState::Incomplete(why) | DataState::Foreign(why)) => return Disk::Unusable(why),
        Err(error) => return Disk::Unusable(chain(&error)),
    };
    Disk::Present(DiskFacts {
        system_identifier: control.system_identifier,
        was_primary: control.state.was_primary(),
        clean_shutdown: control.state.is_clean(),
        crashed_standby: control.state == DbState::InArchiveRecovery,
        checkpoint_timeline: control.timeline,
        proven_end: None,
        history: TimelineHistory::default(),
        rewind_unfinished: instance.rewind_unfinished(),
        required: control.required(),
    })
}

/// The configuration of a standby.
pub fn standby_role(upstream: Option<&Source>, epoch: Epoch, generation: Generation) -> crate::postgres::ConfigRole {
    crate::postgres::ConfigRole::Standby { upstream: upstream.map(Upstream::from), epoch, generation }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_of_the_last_life_and_say_most() {
        let log = "t [1] PANIC:  an older one\nt [1] LOG:  starting PostgreSQL 15.1\n\
                   t [2] PANIC:  could not write to file \"x\": No space left on device\n\
                   t [3] FATAL:  the database system is in recovery mode\nt [1] LOG:  shut down\n";
        let panic = "PANIC:  could not write to file \"x\": No space left on device";
        assert_eq!(telling(log).as_deref(), Some(panic));
        let (older, _) = log.split_once("t [2]").unwrap_or_default();
        assert_eq!(telling(older), None, "what ended the life before is no reason of this one");
        let refused = format!("{older}t [4] FATAL:  no such thing\n");
        assert_eq!(telling(&refused).as_deref(), Some("FATAL:  no such thing"));
        assert_eq!(telling("t [2] FATAL:  only its end is left\n").as_deref(), Some("FATAL:  only its end is left"));
    }
}
