//! Matriarch itself is replaced by another version of it, and versions N−1 and N work together.
//!
//! The older program is `MATRIARCH_PREVIOUS`, or target/previous/matriarch (deploy/scripts/previous.sh builds it from the
//! newest tag).

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use matriarch::{
    demo::rig::{self, Ground, MULTI_HOST, ROUTED, Rig, Role},
    rpc::v1::StatusReply,
};
use nix::sys::signal::Signal;

use crate::stage::{EXE, HEAL, SOON, alone, others, raise_from, say, until};

/// One run of pgbench; the next one begins at its end.
const ROUND: &str = "15";
const OPERATION: Duration = Duration::from_secs(60);

/// The older program, where there is one.
fn previous() -> Option<PathBuf> {
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("previous").join("matriarch");
    let given = std::env::var_os("MATRIARCH_PREVIOUS").map(PathBuf::from);
    given.or(Some(built)).filter(|file| file.is_file())
}

/// The program under test as another file, where the cluster's OS user can run it.
fn newer(rig: &Rig) -> PathBuf {
    let file = rig.dir("n1").unwrap().with_file_name("matriarch-newer");
    fs::copy(EXE, &file).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    file
}

/// As `systemctl restart` with another program in place does it.
fn replaced(rig: &Rig, host: &str, role: Role, exe: &Path) {
    let old = rig.pid(host, role).unwrap();
    rig.use_program(host, role, exe);
    rig.signal(old, Signal::SIGTERM).unwrap();
    until("the newer program runs", SOON, || {
        let now = rig.pid(host, role).filter(|pid| *pid != old);
        now.is_some_and(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|runs| runs == exe))
    });
    until("its manager has its agent's word", SOON, || {
        let said = rig.local_status(host);
        said.is_ok_and(|s| s.members.iter().any(|m| m.member == host && m.server_version > 0))
    });
    rig.healthy(HEAL).unwrap();
}

/// The guard is the parent of the postmaster.
fn program_of_guard(rig: &Rig, host: &str) -> PathBuf {
    let stat = fs::read_to_string(format!("/proc/{}/stat", rig.postmaster(host).unwrap())).unwrap();
    let parent = stat[stat.rfind(')').unwrap() + 1..].split_whitespace().nth(1).unwrap().to_owned();
    fs::read_link(format!("/proc/{parent}/exe")).unwrap()
}

fn guard_runs(rig: &Rig, host: &str, exe: &Path) {
    until("the guard runs the program of its agent", SOON, || program_of_guard(rig, host) == exe);
}

/// pgbench by way of the client's router, again and again.
struct Load {
    over: Arc<AtomicBool>,
    runs: JoinHandle<Vec<String>>,
}

fn pgbench(rig: &Rig, args: &[&str]) -> Command {
    let contact = rig.contact("client").unwrap();
    let mut command = Command::new(rig.bin_dir().join("pgbench"));
    command.env("PGPASSWORD", &contact.password).args(["-h", &contact.address, "-p"]);
    command.arg(contact.router_port.to_string()).args(["-U", contact.user, "-n"]).args(args).arg(contact.database);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn ended(run: Child) -> String {
    let said = run.wait_with_output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    if said.status.success() { text } else { format!("{}: {text}", said.status) }
}

impl Load {
    fn begin(rig: &Rig) -> Load {
        let made = ended(pgbench(rig, &["-i", "-I", "dtgp", "-q"]).spawn().unwrap());
        assert!(made.contains("done in"), "{made}");
        let over = Arc::new(AtomicBool::new(false));
        let mut command = pgbench(rig, &["-c", "4", "-T", ROUND]);
        let stop = Arc::clone(&over);
        let runs = thread::spawn(move || {
            let mut said = Vec::new();
            while !stop.load(Ordering::SeqCst) {
                said.push(ended(command.spawn().unwrap()));
            }
            said
        });
        Load { over, runs }
    }

    /// Transactions that were processed; panics when one failed.
    fn end(self) -> u64 {
        self.over.store(true, Ordering::SeqCst);
        let mut all = 0;
        for text in self.runs.join().unwrap() {
            assert!(text.contains("number of failed transactions: 0 "), "{text}");
            let line =
                text.lines().find_map(|l| l.strip_prefix("number of transactions actually processed: ")).unwrap();
            all += line.trim().parse::<u64>().unwrap();
        }
        all
    }
}

/// Every manager, agent and guard, host by host, under load through a router.
pub fn rolling() {
    let _alone = alone();
    let older = previous();
    if older.is_none() {
        say("no older program (MATRIARCH_PREVIOUS): a copy of the program under test takes its place".to_owned());
    }
    let rig = raise_from(older.as_deref().unwrap_or_else(|| Path::new(EXE)), Ground::default());
    let before = rig.healthy(HEAL).unwrap();
    let postmasters = || rig.members().iter().map(|m| rig.postmaster(m).unwrap()).collect::<Vec<_>>();
    let (began, pids, newer) = (Instant::now(), postmasters(), newer(&rig));
    let load = Load::begin(&rig);
    for host in others(&rig, &[&before.primary]).iter().chain([&before.primary]) {
        let this = Instant::now();
        replaced(&rig, host, Role::Manager, &newer);
        replaced(&rig, host, Role::Agent, &newer);
        guard_runs(&rig, host, &newer);
        say(format!("manager, agent and guard of {host} replaced in {:.1} s", this.elapsed().as_secs_f64()));
    }
    let took = began.elapsed();
    let transactions = load.end();
    let after = rig.healthy(HEAL).unwrap();
    assert_eq!((&after.primary, after.epoch), (&before.primary, before.epoch));
    assert_eq!(postmasters(), pids, "a postmaster was replaced");
    let writes = rig.writes(began);
    let failed = writes.iter().filter(|w| !w.is_probe() && !w.is_acked()).count();
    assert_eq!(failed, 0, "{:?}", rig::first_errors(&writes, began));
    assert!(rig.lost(&after.primary, &writes).unwrap().is_empty());
    say(format!(
        "nine processes replaced in {:.1} s under {transactions} transactions of pgbench and {} other writes: 0 failed",
        took.as_secs_f64(),
        writes.len()
    ));
}

/// A new manager beside an old agent, an old manager beside a new agent, and a host that is all old; moved to each of them,
/// led by a manager of each version, and failed over.
pub fn mixed() {
    let _alone = alone();
    let Some(older) = previous() else {
        say("passed over: no older program (MATRIARCH_PREVIOUS)".to_owned());
        return;
    };
    let rig = raise_from(&older, Ground::default());
    let (began, newer) = (Instant::now(), newer(&rig));
    replaced(&rig, "n1", Role::Manager, &newer);
    replaced(&rig, "n2", Role::Agent, &newer);
    guard_runs(&rig, "n2", &newer);
    for leader in ["n1", "n3"] {
        rig.transfer_leader(leader);
        let led = || rig.status().is_some_and(|s| s.leader == leader);
        until("it leads", SOON, led);
        for to in ["n1", "n2", "n3"] {
            moved(&rig, to);
        }
        waits_for_the_others(&rig);
        failed_over(&rig, &format!("{leader} leads"));
    }
    // The rest, and what the newer version alone can do.
    for (host, role) in [("n1", Role::Agent), ("n2", Role::Manager), ("n3", Role::Manager), ("n3", Role::Agent)] {
        replaced(&rig, host, role, &newer);
    }
    for host in rig.members() {
        guard_runs(&rig, &host, &newer);
    }
    let status = rig.healthy(HEAL).unwrap();
    let writes = rig.writes(began);
    let lost = rig.lost(&status.primary, &writes).unwrap();
    assert_eq!(rig::two_writers(&writes), Duration::ZERO, "two servers acknowledged writes at once");
    say(format!("{} writes, {} lost by failovers without confirmation", writes.len(), lost.len()));
    checks_after(&rig);
}

fn moved(rig: &Rig, to: &str) {
    let before = rig.healthy(HEAL).unwrap();
    if before.primary == to {
        return;
    }
    let began = Instant::now();
    let reply = rig.switchover(to).unwrap();
    assert!(reply.accepted, "{}", reply.reason);
    let done = rig.finished(reply.id, OPERATION).unwrap();
    assert!(done.succeeded, "to {to}: {}", done.reason);
    goes_on(rig, began);
    say(format!("switchover from {} to {to}, led by {}: {:.1} s", before.primary, before.leader, secs(began)));
}

/// The primary's host dies; whoever leads then.
fn failed_over(rig: &Rig, what: &str) {
    let before = rig.healthy(HEAL).unwrap();
    // The end of the old server's WAL has time to reach the others.
    thread::sleep(Duration::from_millis(500));
    let fault = rig.kill_host(&before.primary).unwrap();
    until("another one is primary", OPERATION, || {
        rig.status().is_some_and(|s| s.primary != before.primary && s.lock == "open" && s.epoch > before.epoch)
    });
    let lasted = fault.elapsed();
    rig.boot_host(&before.primary).unwrap();
    let after = rig.healthy(HEAL).unwrap();
    goes_on(rig, fault);
    say(format!(
        "{what}: {} was lost, {} is primary after {:.1} s",
        before.primary,
        after.primary,
        lasted.as_secs_f64()
    ));
}

fn goes_on(rig: &Rig, since: Instant) {
    for writer in [ROUTED, MULTI_HOST] {
        rig.wait_for_write(writer, since, None, SOON).unwrap();
    }
}

fn secs(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

/// The newer command line on the newer manager.
fn asked(rig: &Rig, words: &[&str]) -> (bool, String) {
    let mut command = Command::new(EXE);
    let done = command.args(words).arg("--config").arg(rig.config("n1").unwrap()).output().unwrap();
    let text = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    (done.status.success(), text)
}

/// What an older version can't apply is refused as long as one is there, and the refusal says who that is.
fn waits_for_the_others(rig: &Rig) {
    let status: StatusReply = rig.healthy(HEAL).unwrap();
    let (_, said) = asked(rig, &["status"]);
    assert!(said.contains("primary"), "the newer command line understands {}: {said}", status.leader);
    // This one came with format 8; a version that knows that refuses nothing.
    let guest = others(rig, &[&status.primary]).remove(0);
    let (done, said) = asked(rig, &["member", "address", &guest, "--to-manager", "127.0.0.1:1", "--dry-run"]);
    let refused = said.contains("runs a version that knows format") || said.contains("names no change");
    assert!(done || refused, "{said}");
    say(format!("led by {}, a command of the newer version: {}", status.leader, said.trim()));
}

fn checks_after(rig: &Rig) {
    let (done, said) = asked(rig, &["member", "check", &others(rig, &[&rig.status().unwrap().primary])[0]]);
    assert!(done, "{said}");
}
