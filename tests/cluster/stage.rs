//! Where the steps are played: a cluster that is started once for several of
//! them, and what every step has to keep, whatever it did.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, symlink},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use matriarch::{
    demo::rig::{self, Attempt, Ground, MULTI_HOST, ROUTED, Rig, Role, Unstarted},
    domain::{Profile, Timings},
    rpc::v1::StatusReply,
};

/// `normal` and not `fast`: on a machine with two busy cores a renewal may be late by a second.
/// `MATRIARCH_PROFILE=slow` is for a machine that is busier than that.
pub fn profile() -> Profile {
    match std::env::var("MATRIARCH_PROFILE") {
        Ok(name) if name == "slow" => Profile::Slow,
        Ok(name) if name != "normal" => panic!("MATRIARCH_PROFILE is normal or slow, not {name}"),
        _ => Profile::Normal,
    }
}

/// Shorter than the profile's, because steps wait for their end.
pub const TIMINGS: &str = "\n[cluster.timings]\nprimary_start_ms = 10000\nstop_ms = 8000\npromote_ms = 15000\n";
/// T_hold + T_kill of the profile.
pub fn fenced_after() -> Duration {
    let timings = Timings::of(profile());
    timings.hold + timings.kill
}

/// T_grant of the profile.
pub fn grant() -> Duration {
    Timings::of(profile()).grant
}

/// Until all members are healthy again; a clone and a few retries fit in.
pub const HEAL: Duration = Duration::from_secs(120);
/// Writes go on after this long at the latest: a dozen times what it takes on a quiet machine.
pub const SOON: Duration = Duration::from_secs(40);

/// The program under test.
pub const EXE: &str = env!("CARGO_BIN_EXE_matriarch");
/// In a host's directory: `postgres` of this host refuses to start.
pub const REFUSES: &str = "postgres-refuses";

/// A step's name and what it does to a healthy cluster.
pub type Step = (&'static str, fn(&Rig, &StatusReply) -> Promise);

/// What a step promises of the writes; checked by the stage.
pub struct Promise {
    /// Writes begun after this moment are acknowledged …
    pub since: Instant,
    /// … within this time.
    pub within: Duration,
    /// Not by this server, whose life has ended: its last processes may acknowledge while they die.
    pub not_by: Option<Arc<str>>,
    /// Which acknowledged writes may be gone.
    pub loss: Loss,
    /// No write at all may fail.
    pub no_errors: bool,
}

/// What may be lost.
#[derive(Debug, Clone, Copy)]
pub enum Loss {
    /// Nothing that was acknowledged.
    Nothing,
    /// With asynchronous replication: what the old primary acknowledged last, and after this moment.
    LastAfter(Instant),
}

impl Promise {
    /// Writes go on soon after `since`, and nothing is lost.
    pub fn no_loss(since: Instant) -> Promise {
        Promise { since, within: SOON, not_by: None, loss: Loss::Nothing, no_errors: false }
    }

    /// Writes go on soon after `since`; what was acknowledged after `replicated` may be lost.
    pub fn asynchronous(since: Instant, replicated: Instant) -> Promise {
        Promise { since, within: SOON, not_by: None, loss: Loss::LastAfter(replicated), no_errors: false }
    }

    /// The life of that server has ended.
    pub fn ended(self, server: Arc<str>) -> Promise {
        Promise { not_by: Some(server), ..self }
    }

    /// Nobody notices anything.
    pub fn no_failed_write(since: Instant) -> Promise {
        Promise { since, within: SOON, not_by: None, loss: Loss::Nothing, no_errors: true }
    }
}

/// One cluster at a time: its times are measured, and its end kills every descendant.
static STAGE: Mutex<()> = Mutex::new(());

/// Nobody else plays while this is held.
pub fn alone() -> MutexGuard<'static, ()> {
    STAGE.lock().unwrap_or_else(|e| e.into_inner())
}

/// Plays the steps one after the other on one cluster. A failed step gets its
/// logs kept, and the next one a new cluster. `MATRIARCH_STEPS=word` plays only
/// the steps with that word in their names.
pub fn play(steps: &[Step]) {
    play_on(0, steps);
}

/// The same on a cluster of `more` hosts than three.
pub fn play_on(more: usize, steps: &[Step]) {
    play_as(Ground { more, ..Ground::default() }, str::to_owned, steps);
}

/// The same on other ground, and with a change to the configuration of every host.
pub fn play_as(ground: Ground, change: fn(&str) -> String, steps: &[Step]) {
    let _alone = alone();
    let wanted = std::env::var("MATRIARCH_STEPS").unwrap_or_default();
    let mut cluster = None;
    let mut failed = Vec::new();
    for (name, step) in steps.iter().filter(|(name, _)| name.contains(&wanted)) {
        let began = Instant::now();
        let played = catch_unwind(AssertUnwindSafe(|| {
            let rig = cluster.take().unwrap_or_else(|| raise_as(ground.clone(), change, &[]));
            play_one(rig, name, *step)
        }));
        match played {
            Ok((rig, summary)) => {
                say(format!("{name}: ok in {:.1} s; {summary}", began.elapsed().as_secs_f64()));
                cluster = Some(rig);
            }
            Err(why) => {
                let why =
                    why.downcast_ref::<String>().map(String::as_str).or_else(|| why.downcast_ref::<&str>().copied());
                say(format!("{name}: FAILED after {:.1} s", began.elapsed().as_secs_f64()));
                let why = why.unwrap_or("(no message)");
                // An error may carry a backtrace, as long as all the rest.
                let why = why.split("\nStack backtrace:").next().unwrap_or(why).trim_end();
                failed.push(format!("{name}: {why}"));
            }
        }
    }
    assert!(failed.is_empty(), "{} of {} steps failed\n\n{}", failed.len(), steps.len(), failed.join("\n\n"));
}

/// Past the runner's capture: the counts are wanted from runs that pass, too.
pub fn say(line: String) {
    let _ = writeln!(std::io::stderr(), "cluster: {line}");
}

/// Keeps the logs when the step panics.
struct Keeper<'a> {
    rig: Option<Rig>,
    name: &'a str,
}

impl Drop for Keeper<'_> {
    fn drop(&mut self) {
        if let Some(rig) = &self.rig
            && thread::panicking()
        {
            keep_logs(rig, self.name);
        }
    }
}

fn play_one(rig: Rig, name: &str, step: fn(&Rig, &StatusReply) -> Promise) -> (Rig, String) {
    let mut keeper = Keeper { rig: Some(rig), name };
    let rig = keeper.rig.as_ref().unwrap();
    let before = rig.healthy(HEAL).unwrap();
    let began = Instant::now();
    for writer in [ROUTED, MULTI_HOST] {
        rig.wait_for_write(writer, began, None, SOON).unwrap();
    }
    let promise = step(rig, &before);
    let summary = check(rig, &promise, began);
    if std::env::var_os("MATRIARCH_KEEP_LOGS").is_some() {
        keep_logs(rig, name);
    }
    (keeper.rig.take().unwrap(), summary)
}

/// What holds after every step: writes resumed, nothing is lost that must not
/// be, and there never were two writers.
fn check(rig: &Rig, promise: &Promise, began: Instant) -> String {
    let mut resumed = Vec::new();
    for writer in [ROUTED, MULTI_HOST] {
        resumed.push(rig.wait_for_write(writer, promise.since, promise.not_by.as_deref(), promise.within).unwrap());
    }
    let status = rig.healthy(HEAL).unwrap();
    let writes = rig.writes(began);
    let lost = rig.lost(&status.primary, &writes).unwrap();
    match promise.loss {
        Loss::Nothing => assert!(lost.is_empty(), "{} acknowledged writes are lost: {:?}", lost.len(), lost.first()),
        Loss::LastAfter(moment) => only_the_last(&writes, &lost, moment),
    }
    assert_eq!(rig::two_writers(&writes), Duration::ZERO, "two servers acknowledged writes at once");
    let clients: Vec<&Attempt> = writes.iter().filter(|w| !w.is_probe()).collect();
    let failed = clients.iter().filter(|w| !w.is_acked()).count();
    if promise.no_errors {
        assert_eq!(failed, 0, "writes failed: {:?}", rig::first_errors(&writes, promise.since));
    }
    format!(
        "writes go on after {:.0} ms (routed) and {:.0} ms (multi-host); {} acknowledged, {failed} failed, {} lost; \
         never two writers",
        resumed[0].as_secs_f64() * 1e3,
        resumed[1].as_secs_f64() * 1e3,
        clients.len() - failed,
        lost.len()
    )
}

/// Asynchronous replication loses an end of the WAL and nothing from its middle.
fn only_the_last(writes: &[Attempt], lost: &[Attempt], moment: Instant) {
    let mut first_lost: BTreeMap<(&str, Option<&str>), i64> = BTreeMap::new();
    for write in lost {
        assert!(write.ended >= moment, "lost, though the standbys had time to get it: {write:?}");
        let first = first_lost.entry((&*write.writer, write.server())).or_insert(write.seq);
        *first = write.seq.min(*first);
    }
    for write in writes.iter().filter(|w| w.is_acked()) {
        let Some(first) = first_lost.get(&(&*write.writer, write.server())) else { continue };
        let is_lost = lost.iter().any(|l| l.writer == write.writer && l.seq == write.seq);
        assert!(write.seq < *first || is_lost, "{write:?} survived, number {first} of the same server is lost");
    }
}

/// A new cluster, up and checked. `first` starts ahead of the rest, with pauses; the rest at once.
pub fn raise(first: &[(String, Role, Duration)]) -> Rig {
    raise_with("", first)
}

/// The same with more in the configuration of every host; a text with `{root}` gets the cluster's directory.
pub fn raise_with(more: &str, first: &[(String, Role, Duration)]) -> Rig {
    raise_as(Ground::default(), |text| text.to_owned() + more, first)
}

/// The same on other ground, with any change to the configuration of every host.
pub fn raise_as(ground: Ground, change: impl Fn(&str) -> String, first: &[(String, Role, Duration)]) -> Rig {
    raise_all(Path::new(EXE), ground, change, first)
}

/// The same with another program than the one under test.
pub fn raise_from(exe: &Path, ground: Ground) -> Rig {
    raise_all(exe, ground, str::to_owned, &[])
}

fn raise_all(exe: &Path, ground: Ground, change: impl Fn(&str) -> String, first: &[(String, Role, Duration)]) -> Rig {
    let began = Instant::now();
    let cluster = Unstarted::lay_out_on(exe, Path::new("/tmp"), &profile().to_string(), ground).unwrap();
    let bin = postgres_that_may_refuse(&cluster);
    let (real, ours) = (quoted(cluster.bin_dir()), quoted(&bin));
    let root = cluster.root().display().to_string();
    let changed = |text: &str| change(&(text.replace(&real, &ours) + TIMINGS)).replace("{root}", &root);
    cluster.configure(changed).unwrap();
    for (host, role, pause) in first {
        cluster.start_process(host, *role).unwrap();
        thread::sleep(*pause);
    }
    let rig = cluster.up().unwrap();
    let mut keeper = Keeper { rig: Some(rig), name: "genesis" };
    genesis_was_right(keeper.rig.as_ref().unwrap());
    say(format!("a new cluster writes after {:.1} s", began.elapsed().as_secs_f64()));
    keeper.rig.take().unwrap()
}

fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display())
}

/// PostgreSQL's programs, with a `postgres` that refuses where a file says so.
fn postgres_that_may_refuse(cluster: &Unstarted) -> PathBuf {
    let bin = cluster.root().join("bin");
    fs::create_dir(&bin).unwrap();
    for program in fs::read_dir(cluster.bin_dir()).unwrap() {
        let program = program.unwrap();
        if program.file_name() != "postgres" {
            symlink(program.path(), bin.join(program.file_name())).unwrap();
        }
    }
    let real = cluster.bin_dir().join("postgres");
    let script = format!(
        "#!/bin/sh\nfor argument in \"$@\"; do\n    case $argument in\n    */data)\n        \
         if [ -e \"${{argument%/data}}/{REFUSES}\" ]; then echo 'the test wants no start' >&2; exit 1; fi ;;\n    \
         esac\ndone\nexec '{}' \"$@\"\n",
        real.display()
    );
    fs::write(bin.join("postgres"), script).unwrap();
    fs::set_permissions(bin.join("postgres"), fs::Permissions::from_mode(0o755)).unwrap();
    bin
}

/// One cluster, one initdb, everybody on the timeline of the first promotion.
fn genesis_was_right(rig: &Rig) {
    let status = rig.healthy(HEAL).unwrap();
    assert!(!status.cluster_id.is_empty());
    assert_eq!(status.timeline, 2, "initdb gives timeline 1, the first grant 2");
    let mut initdbs = 0;
    for host in rig.members() {
        let local = rig.local_status(&host).unwrap();
        assert_eq!(local.cluster_id, status.cluster_id, "{host}");
        assert_eq!(local.system_identifier, status.system_identifier, "{host}");
        let member = status.members.iter().find(|m| m.member == host).unwrap();
        if member.role == "witness" {
            continue;
        }
        assert_eq!(member.timeline, 2, "{host}");
        initdbs += tasks_done(rig, &host, "initdb");
        // A standby may not have replayed the birth of the database yet.
        until("the workload's database is there", SOON, || rig.query(&host, "select 1").is_ok());
        let show = |name: &str| rig.query(&host, &format!("show {name}")).unwrap().concat();
        assert_eq!((show("data_checksums"), show("wal_log_hints")), ("on".to_owned(), "on".to_owned()), "{host}");
        assert_eq!(show("password_encryption"), "scram-sha-256", "{host}");
    }
    assert_eq!(initdbs, 1, "initdb runs once for a cluster");
    let streams = rig.query(&status.primary, "select count(*) from pg_stat_replication").unwrap().concat();
    let with_postgres = status.members.iter().filter(|m| m.role != "witness").count();
    assert_eq!(streams, (with_postgres - 1).to_string());
}

/// How often a host's agent has carried out a kind of task, by its log.
pub fn tasks_done(rig: &Rig, host: &str, kind: &str) -> usize {
    let text = fs::read_to_string(rig.log(host, Role::Agent).unwrap()).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines.filter(|l| l["message"] == "task done" && l["task"] == kind).count()
}

/// Waits for something that is asked again and again.
pub fn until(what: &str, deadline: Duration, mut check: impl FnMut() -> bool) {
    let began = Instant::now();
    while !check() {
        assert!(began.elapsed() < deadline, "not within {deadline:?}: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until the Raft leader has noticed that a host is gone: what it heard of it last was good.
pub fn seen_down(rig: &Rig, host: &str) {
    until("the leader notices that the host is gone", SOON, || {
        rig.status().is_some_and(|s| s.members.iter().any(|m| m.member == host && !m.healthy))
    });
}

/// Members but for these.
pub fn others(rig: &Rig, but: &[&str]) -> Vec<String> {
    rig.members().into_iter().filter(|m| !but.contains(&m.as_str())).collect()
}

fn keep_logs(rig: &Rig, name: &str) {
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cluster").join(name);
    let _ = fs::remove_dir_all(&to);
    for host in rig.members().iter().map(String::as_str).chain(["client"]) {
        let Ok(dir) = rig.dir(host).or_else(|_| rig.dir("n1").map(|d| d.with_file_name(host))) else { continue };
        let _ = fs::create_dir_all(to.join(host));
        for file in [&dir, &dir.join("agent")].into_iter().flat_map(fs::read_dir).flatten().flatten() {
            if file.path().extension().is_some_and(|e| e == "log") {
                let _ = fs::copy(file.path(), to.join(host).join(file.file_name()));
            }
        }
    }
    let status = format!("{:#?}\n", rig.status());
    let _ = fs::write(to.join("story.txt"), rig.story().join("\n") + "\n" + &status);
    say(format!("{name}: logs are kept in {}", to.display()));
}
