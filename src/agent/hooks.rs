//! Hooks: the operator's programs that run when PostgreSQL starts, stops or changes its role.
//!
//! [`due`] finds out what has happened and is pure; [`program`] runs one program. This file is what lies between: a queue with
//! a thread of its own for what nobody waits for, and the few moments at which a task waits. No fence, no renewal and no end of
//! a lease comes through here, and none waits for anything that does: the loop only looks and puts into a queue that it never
//! waits for. Both kinds of thread give the agent's capabilities up first.

pub mod due;
mod program;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use self::due::{Occurrence, Seen, Told, Watch};
use super::{
    core::{Core, Tree},
    store::replace,
};
use crate::{
    config::{Config, Hook, LocalMember, runnable},
    domain::{Epoch, hooks::HookEvent},
    guard::sys,
    telemetry::events,
};

/// So many changes wait for hooks that take long; what comes then is told to none.
const QUEUE: usize = 256;
/// So many programs that nobody waits for run at once.
const ASIDE_MAX: usize = 16;
/// Between two tries of one that failed.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// After a veto the next promotion on this host asks its hooks no sooner, so that members that all refuse don't pass the lock
/// around as fast as they can.
const VETO_PAUSE: Duration = Duration::from_secs(2);

/// What a thread may be late by.
const SLACK: Duration = Duration::from_millis(500);

/// What was told, and what is to be kept of it first.
type News = (Vec<Occurrence>, Told);

/// The hooks of one agent. Cheap to clone.
#[derive(Clone)]
pub struct Hooks(Arc<Shared>);

struct Shared {
    hooks: Vec<Hook>,
    place: Place,
    failed: Mutex<Option<Failure>>,
    vetoed: Mutex<Option<Instant>>,
    aside: AtomicUsize,
    queue: Option<SyncSender<News>>,
    watch: Mutex<Option<Watch>>,
    reloads: AtomicU64,
}

/// What every hook is told besides what has happened.
struct Place {
    cluster: String,
    member: String,
    data_dir: PathBuf,
    socket_dir: PathBuf,
    port: u16,
}

/// The last hook that failed.
struct Failure {
    key: String,
    event: HookEvent,
    says: String,
}

impl Hooks {
    /// Those of this host's file. With none there is no thread, and nothing is kept.
    pub fn open(config: &Config, local: &LocalMember) -> anyhow::Result<Hooks> {
        let hooks = config.hooks.run.clone();
        let postgresql = &local.postgresql;
        let place = Place {
            cluster: config.cluster.name.clone(),
            member: local.id.to_string(),
            data_dir: postgresql.data_dir.clone(),
            socket_dir: postgresql.socket_dir.clone(),
            port: postgresql.port,
        };
        let (queue, news) = sync_channel(QUEUE);
        let any = !hooks.is_empty();
        let shared = Arc::new(Shared {
            hooks,
            place,
            failed: Mutex::default(),
            vetoed: Mutex::default(),
            aside: AtomicUsize::new(0),
            queue: any.then_some(queue),
            watch: Mutex::default(),
            reloads: AtomicU64::new(0),
        });
        if any {
            if let Err(error) = sys::close_all_on_exec() {
                tracing::warn!(%error, "what the agent was started with open is open in hooks, too");
            }
            shared.look_aside(runnable);
            let (kept, inside) = (kept_at(local), Arc::clone(&shared));
            thread::Builder::new().name("hooks".to_owned()).spawn(move || serve(&inside, &news, &kept))?;
        }
        Ok(Hooks(shared))
    }

    /// What an agent finds at its start, before its rules have done anything with it.
    pub fn begin(&self, local: &LocalMember, reign: Option<Epoch>, runs: Option<u64>) {
        if self.0.queue.is_some() {
            *lock(&self.0.watch) = Some(Watch::begin(read(&kept_at(local)), reign, runs));
        }
    }

    /// PostgreSQL was given anew what operators have set.
    pub fn reloaded(&self) {
        self.0.reloads.fetch_add(1, Ordering::Relaxed);
    }

    /// Looks at what the rules know now. Never waits.
    pub fn look(&self, core: &Core) {
        let (Some(queue), Some(watch)) = (&self.0.queue, &mut *lock(&self.0.watch)) else { return };
        let due = watch.observe(seen(core, self.0.reloads.load(Ordering::Relaxed)));
        if !due.is_empty() && queue.try_send((due, watch.told())).is_err() {
            tracing::error!(event = events::HOOK, "hooks take so long that no more can wait for them: one is not told");
        }
    }

    /// The last hook that failed and has not succeeded since, in words; empty: none.
    pub fn failed(&self) -> String {
        lock(&self.0.failed).as_ref().map(|failure| failure.says.clone()).unwrap_or_default()
    }

    /// Runs what is to run before a promotion, for no longer than `budget`.
    ///
    /// # Errors
    /// One that is required failed: the member is not to be promoted.
    pub async fn before_promotion(&self, of: Occurrence, budget: Duration) -> Result<(), String> {
        let until = Instant::now() + budget;
        let vetoed = *lock(&self.0.vetoed);
        if let Some(at) = vetoed {
            tokio::time::sleep((VETO_PAUSE.saturating_sub(at.elapsed())).min(budget / 2)).await;
        }
        let asked = self.before(&[of], until.saturating_duration_since(Instant::now())).await;
        *lock(&self.0.vetoed) = asked.is_err().then(Instant::now);
        asked
    }

    /// Runs the hooks of these moments one after the other and waits for those that block, for no longer than `budget`.
    /// Dropped, it ends the one that runs.
    ///
    /// # Errors
    /// One that is required failed.
    pub async fn before(&self, due: &[Occurrence], budget: Duration) -> Result<(), String> {
        let wanted = |hook: &Hook| due.iter().any(|of| hook.on.contains(&of.event));
        if !self.0.hooks.iter().any(wanted) {
            return Ok(());
        }
        let over = GiveUp::default();
        let (told, ended) = oneshot::channel();
        let (shared, due, given_up) = (Arc::clone(&self.0), due.to_vec(), Arc::clone(&over.0));
        // Not a thread of the runtime: those that start guards need what this one gives up.
        let spawned = thread::Builder::new().name("hooks-before".to_owned()).spawn(move || {
            give_up_capabilities();
            let _ =
                told.send(shared.run_all(&due, Some(Instant::now() + budget), &|| given_up.load(Ordering::Relaxed)));
        });
        spawned.map_err(|error| format!("no thread for the hooks is to be had ({error})"))?;
        in_time(ended, budget, self.0.hooks.iter().any(|hook| wanted(hook) && hook.required)).await
    }
}

/// Each run has its own limit, and this one is for what nobody has thought of: the thread hangs. What is required says no then.
async fn in_time(ended: oneshot::Receiver<Result<(), String>>, budget: Duration, required: bool) -> Result<(), String> {
    match tokio::time::timeout(budget + program::OVERTIME + SLACK, ended).await {
        Ok(done) => done.unwrap_or_else(|_| Err("the thread of the hooks broke off".to_owned())),
        Err(_) if required => Err("vetoed: the thread of the hooks hangs".to_owned()),
        Err(_) => {
            tracing::error!(event = events::HOOK, "the thread of the hooks hangs: nobody waits for it any more");
            Ok(())
        }
    }
}

/// Nobody waits any more once this is dropped.
#[derive(Default)]
struct GiveUp(Arc<AtomicBool>);

impl Drop for GiveUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn seen(core: &Core, reloads: u64) -> Seen {
    let durable = core.durable();
    Seen {
        life: core.life(),
        answers: matches!(core.tree(), Tree::Running { .. }) && core.sight().is_some(),
        gone: core.tree() == Tree::Empty,
        reign: durable.reign(),
        fenced: durable.fenced,
        accepted: durable.accepted,
        killed: core.killed(),
        restarts: core.restarts(),
        unleased: durable.unleased,
        reloads,
        timeline: core.wal_end().0.timeline,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn give_up_capabilities() {
    if let Err(error) = sys::drop_capabilities() {
        tracing::warn!(%error, "hooks run with the capabilities of the agent");
    }
}

/// The thread of what nobody waits for.
fn serve(shared: &Arc<Shared>, news: &Receiver<News>, kept: &Path) {
    give_up_capabilities();
    while let Ok((due, told)) = news.recv() {
        // First: what was begun is not begun again, whatever becomes of this agent meanwhile.
        if let Err(error) = write(kept, told) {
            tracing::warn!(%error, file = %kept.display(), "after a restart of the agent hooks may run again");
        }
        for of in due {
            let _ = shared.run_all(&[of], None, &|| false);
        }
    }
}

impl Shared {
    /// Warns of programs that can't be run. Nothing waits for that: on a dead disk it has no end.
    fn look_aside(self: &Arc<Self>, runnable: fn(&str) -> Result<(), String>) {
        let shared = Arc::clone(self);
        let look = move || {
            give_up_capabilities();
            for hook in &shared.hooks {
                if let Some(Err(why)) = hook.command.first().map(|program| runnable(program)) {
                    tracing::warn!(hook = hook.key, "{why}; the hook fails until it can be run");
                }
            }
        };
        if let Err(error) = thread::Builder::new().name("hooks-look".to_owned()).spawn(look) {
            tracing::warn!(%error, "the programs of hooks could not be looked at");
        }
    }

    /// All hooks of these moments, in the order of the moments, then of the file.
    fn run_all(
        self: &Arc<Self>,
        due: &[Occurrence],
        until: Option<Instant>,
        given_up: &dyn Fn() -> bool,
    ) -> Result<(), String> {
        for of in due {
            for index in 0..self.hooks.len() {
                let hook = &self.hooks[index];
                if !hook.on.contains(&of.event) {
                    continue;
                }
                if !hook.blocking {
                    self.run_aside(index, *of);
                    continue;
                }
                let done = self.run(hook, of, until, given_up);
                if given_up() {
                    return Err("what waited for the hooks is over".to_owned());
                }
                if let (Err(why), true) = (done, hook.required) {
                    return Err(format!("vetoed: {why}"));
                }
            }
        }
        Ok(())
    }

    /// On a thread of its own, which has as little as this one.
    fn run_aside(self: &Arc<Self>, index: usize, of: Occurrence) {
        let shared = Arc::clone(self);
        if self.aside.fetch_add(1, Ordering::SeqCst) >= ASIDE_MAX {
            self.aside.fetch_sub(1, Ordering::SeqCst);
            return self.note(&self.hooks[index], &of, Err(format!("not run: {ASIDE_MAX} run already")));
        }
        let spawned = thread::Builder::new().name("hook-aside".to_owned()).spawn(move || {
            let _ = shared.run(&shared.hooks[index], &of, None, &|| false);
            shared.aside.fetch_sub(1, Ordering::SeqCst);
        });
        if let Err(error) = spawned {
            self.aside.fetch_sub(1, Ordering::SeqCst);
            self.note(&self.hooks[index], &of, Err(format!("not run: no thread is to be had ({error})")));
        }
    }

    /// One hook with its tries.
    ///
    /// # Errors
    /// It failed; which, when and how.
    fn run(
        &self,
        hook: &Hook,
        of: &Occurrence,
        until: Option<Instant>,
        given_up: &dyn Fn() -> bool,
    ) -> Result<(), String> {
        let mut tries = 0;
        loop {
            let left = until.map_or(hook.deadline, |at| at.saturating_duration_since(Instant::now()));
            let done = match left.is_zero() {
                true => Err("not run: no time is left for it".to_owned()),
                false => self.try_once(hook, of, left.min(hook.deadline), given_up),
            };
            let over = given_up() || until.is_some_and(|at| Instant::now() + TRY_AGAIN >= at);
            if done.is_ok() || over || tries >= hook.retries {
                self.note(hook, of, done.clone());
                return done.map_err(|how| says(hook, of, &how));
            }
            tries += 1;
            thread::sleep(TRY_AGAIN);
        }
    }

    fn try_once(
        &self,
        hook: &Hook,
        of: &Occurrence,
        deadline: Duration,
        given_up: &dyn Fn() -> bool,
    ) -> Result<(), String> {
        let began = Instant::now();
        let outcome = program::run(&command(hook, of, &self.place), &environment(of, &self.place), deadline, given_up);
        let (on, program) = (of.event.name(), hook.command.first().map_or("", String::as_str));
        let (printed, elapsed_ms) = (outcome.printed.as_str(), began.elapsed().as_millis());
        match &outcome.how {
            Ok(()) => {
                tracing::info!(event = events::HOOK, hook = hook.key, on, program, printed, elapsed_ms, "hook done")
            }
            Err(how) => {
                tracing::error!(
                    event = events::HOOK,
                    hook = hook.key,
                    on,
                    program,
                    how,
                    printed,
                    elapsed_ms,
                    "hook failed"
                )
            }
        }
        outcome.how
    }

    /// The last failure stands until that very hook succeeds at that very moment.
    fn note(&self, hook: &Hook, of: &Occurrence, done: Result<(), String>) {
        let mut failed = lock(&self.failed);
        match done {
            Err(how) => {
                *failed = Some(Failure { key: hook.key.clone(), event: of.event, says: says(hook, of, &how) });
            }
            Ok(()) if failed.as_ref().is_some_and(|f| f.key == hook.key && f.event == of.event) => *failed = None,
            Ok(()) => {}
        }
    }
}

/// `hook after_promote (hooks.run[0], /usr/local/bin/announce) failed: exit status: 1`. What it printed stays in the log.
fn says(hook: &Hook, of: &Occurrence, how: &str) -> String {
    let program = hook.command.first().map_or("", String::as_str);
    format!("hook {} ({}, {program}) failed: {how}", of.event, hook.key)
}

fn command(hook: &Hook, of: &Occurrence, place: &Place) -> Vec<String> {
    let fill = |argument: &String| {
        argument
            .replace("{event}", of.event.name())
            .replace("{role}", of.role.name())
            .replace("{cluster}", &place.cluster)
            .replace("{member}", &place.member)
            .replace("{epoch}", &of.epoch.to_string())
            .replace("{timeline}", &of.timeline.to_string())
    };
    let mut command: Vec<String> = hook.command.iter().map(fill).collect();
    if let Some(action) = of.event.patroni().filter(|_| hook.as_callback) {
        command.extend([action, of.role.name(), &place.cluster].map(str::to_owned));
    }
    command
}

fn environment(of: &Occurrence, place: &Place) -> Vec<(&'static str, String)> {
    vec![
        ("MATRIARCH_EVENT", of.event.name().to_owned()),
        ("MATRIARCH_CLUSTER", place.cluster.clone()),
        ("MATRIARCH_MEMBER", place.member.clone()),
        ("MATRIARCH_ROLE", of.role.name().to_owned()),
        ("MATRIARCH_EPOCH", of.epoch.to_string()),
        ("MATRIARCH_TIMELINE", of.timeline.to_string()),
        ("MATRIARCH_DATA_DIR", place.data_dir.display().to_string()),
        ("MATRIARCH_SOCKET_DIR", place.socket_dir.display().to_string()),
        ("MATRIARCH_PORT", place.port.to_string()),
    ]
}

/// What the agent's hooks were told, on disk.
#[derive(Serialize, Deserialize)]
struct Kept {
    format: u32,
    promoted: u64,
    demoted: u64,
}

const FORMAT: u32 = 1;

fn kept_at(local: &LocalMember) -> PathBuf {
    local.agent.state_dir.join("hooks.json")
}

/// `None` when there is none that can be read: what is found then is no news. Nothing that protects rests on it.
fn read(path: &Path) -> Option<Told> {
    let kept: Kept = serde_json::from_slice(&fs::read(path).ok()?).ok().filter(|kept: &Kept| kept.format == FORMAT)?;
    Some(Told { promoted: Epoch(kept.promoted), demoted: Epoch(kept.demoted) })
}

/// Replaces it whole; on disk when this returns.
fn write(path: &Path, told: Told) -> std::io::Result<()> {
    let told = Kept { format: FORMAT, promoted: told.promoted.0, demoted: told.demoted.0 };
    replace(path, &serde_json::to_vec(&told)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{TimelineId, hooks::HookRole};

    fn place() -> Place {
        let (cluster, member) = ("main".to_owned(), "n1".to_owned());
        Place { cluster, member, data_dir: "/d".into(), socket_dir: "/s".into(), port: 5432 }
    }

    fn hook(on: HookEvent, script: &str) -> Hook {
        Hook {
            key: "hooks.run[0]".to_owned(),
            on: vec![on],
            command: ["/bin/sh", "-c", script].map(str::to_owned).into(),
            as_callback: false,
            blocking: true,
            deadline: Duration::from_secs(20),
            retries: 0,
            required: false,
        }
    }

    fn hooks(hooks: Vec<Hook>) -> Hooks {
        Hooks(Arc::new(Shared {
            hooks,
            place: place(),
            failed: Mutex::default(),
            vetoed: Mutex::default(),
            aside: AtomicUsize::new(0),
            queue: None,
            watch: Mutex::default(),
            reloads: AtomicU64::new(0),
        }))
    }

    const PROMOTE: Occurrence = Occurrence {
        event: HookEvent::BeforePromote,
        role: HookRole::Replica,
        epoch: Epoch(5),
        timeline: TimelineId(3),
    };

    #[test]
    fn a_callback_has_patronis_arguments_and_any_other_what_it_asks_for() {
        let change = Occurrence { event: HookEvent::AfterRoleChange, role: HookRole::Primary, ..PROMOTE };
        let callback =
            Hook { as_callback: true, command: vec!["/cb".to_owned(), "x".to_owned()], ..hook(change.event, "") };
        assert_eq!(command(&callback, &change, &place()), ["/cb", "x", "on_role_change", "primary", "main"]);
        let own = Hook { command: vec!["/own".to_owned(), "{event}:{epoch}:{timeline}".to_owned()], ..callback };
        let own = Hook { as_callback: false, ..own };
        assert_eq!(command(&own, &change, &place()), ["/own", "after_role_change:5:3"]);
    }

    #[tokio::test]
    async fn a_required_one_that_fails_is_a_veto_and_any_other_only_a_problem() {
        let no = hook(HookEvent::BeforePromote, "echo no; exit 3");
        let advice = hooks(vec![no.clone()]);
        assert_eq!(advice.before_promotion(PROMOTE, Duration::from_secs(20)).await, Ok(()));
        assert_eq!(advice.failed(), "hook before_promote (hooks.run[0], /bin/sh) failed: exit status: 3");
        let veto = hooks(vec![Hook { required: true, ..no }]);
        let refused = veto.before_promotion(PROMOTE, Duration::from_secs(20)).await.unwrap_err();
        assert_eq!(refused, "vetoed: hook before_promote (hooks.run[0], /bin/sh) failed: exit status: 3");
    }

    #[tokio::test]
    async fn what_waits_for_hooks_waits_no_longer_than_its_budget_whatever_their_deadlines() {
        let long = hook(HookEvent::BeforePromote, "exec sleep 60");
        let all = hooks(vec![long.clone(), Hook { required: true, ..long }]);
        let began = Instant::now();
        let refused = all.before(&[PROMOTE], Duration::from_millis(300)).await.unwrap_err();
        assert!(refused.ends_with("not run: no time is left for it"), "{refused}");
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn one_that_is_given_up_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let (begun, ended) = (dir.path().join("begun"), dir.path().join("ended"));
        let script = format!("trap 'touch {}; exit' TERM; touch {}; sleep 60 & wait", ended.display(), begun.display());
        let all = hooks(vec![hook(HookEvent::BeforePromote, &script)]);
        let due = [PROMOTE];
        let waits = all.before(&due, Duration::from_secs(60));
        let seen = |path: PathBuf| async move {
            while !path.exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            _ = waits => panic!("it takes a minute"),
            () = seen(begun) => {}
        }
        tokio::time::timeout(Duration::from_secs(20), seen(ended)).await.expect("it hears that nobody waits");
    }

    #[tokio::test]
    async fn it_is_tried_again_and_a_success_ends_the_problem() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("mark").display().to_string();
        let script = format!("test -e {mark} || {{ touch {mark}; exit 1; }}");
        let once = hook(HookEvent::BeforePromote, &script);
        let all = hooks(vec![once.clone()]);
        all.before(&[PROMOTE], Duration::from_secs(20)).await.unwrap();
        assert!(all.failed().ends_with("failed: exit status: 1"), "{}", all.failed());
        all.before(&[PROMOTE], Duration::from_secs(20)).await.unwrap();
        assert_eq!(all.failed(), "");
        fs::remove_file(&mark).unwrap();
        let all = hooks(vec![Hook { retries: 1, required: true, ..once }]);
        assert_eq!(all.before(&[PROMOTE], Duration::from_secs(20)).await, Ok(()));
    }

    /// As when a program lies on a dead disk.
    #[test]
    fn nothing_waits_for_a_look_at_the_programs() {
        static HANGS: Mutex<()> = Mutex::new(());
        static LOOKS: AtomicBool = AtomicBool::new(false);
        let held = lock(&HANGS);
        let all = hooks(vec![hook(HookEvent::AfterStop, "true")]);
        all.0.look_aside(|_| {
            LOOKS.store(true, Ordering::SeqCst);
            drop(lock(&HANGS));
            Ok(())
        });
        let until = Instant::now() + Duration::from_secs(20);
        while !LOOKS.load(Ordering::SeqCst) {
            assert!(Instant::now() < until, "nobody looks");
            thread::sleep(Duration::from_millis(10));
        }
        drop(held);
    }

    #[tokio::test(start_paused = true)]
    async fn a_thread_that_hangs_is_not_waited_for_and_says_no_where_that_is_asked() {
        let budget = Duration::from_secs(5);
        for (required, asked) in [(false, Ok(())), (true, Err("vetoed: the thread of the hooks hangs".to_owned()))] {
            let (hangs, ended) = oneshot::channel();
            let began = tokio::time::Instant::now();
            assert_eq!(in_time(ended, budget, required).await, asked);
            assert!(began.elapsed() <= budget + Duration::from_secs(3), "{:?}", began.elapsed());
            drop(hangs);
        }
    }

    #[test]
    fn what_was_told_is_found_again_and_anything_else_is_as_if_nothing_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hooks.json");
        assert_eq!(read(&path), None);
        let told = Told { promoted: Epoch(7), demoted: Epoch(6) };
        write(&path, told).unwrap();
        assert_eq!(read(&path), Some(told));
        fs::write(&path, "{\"format\":2}").unwrap();
        assert_eq!(read(&path), None);
    }
}
