//! What clients see of a switchover and of a failover, who come through programs as they are found elsewhere.

use std::{
    collections::BTreeMap,
    fs,
    hash::{BuildHasher as _, RandomState},
    ops::Range,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::channel,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use matriarch::{
    demo::rig::{Contact, ROUTED, Rig},
    rpc::v1::StatusReply,
};
use tokio_postgres::{Config, NoTls};

use crate::{
    failovers::STREAMED,
    ports::free_port,
    stage::{HEAL, Promise, SOON, Step, others, seen_down, until},
};

pub const STEPS: &[Step] = &[
    ("haproxy_by_the_shipped_example", haproxy_by_the_shipped_example),
    ("pgbouncer_by_the_shipped_example", pgbouncer_by_the_shipped_example),
];

/// Ends with the step.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where it was put; Debian's place is on root's path only.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    places.map(|place| place.join(name)).find(|file| file.exists())
}

/// The shipped file with the places of this cluster: ports of the two listeners, primary first, and the process.
fn haproxy(rig: &Rig, program: &Path) -> (Process, [u16; 2]) {
    let ports = [free_port(), free_port()];
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/haproxy/haproxy.cfg");
    let mut text = fs::read_to_string(shipped).unwrap();
    for (listener, port) in ["*:5000", "*:5001"].into_iter().zip(ports) {
        text = text.replace(listener, &format!("0.0.0.0:{port}"));
    }
    for (i, host) in rig.members().iter().enumerate() {
        let Contact { address, postgres_port, rest_port, .. } = rig.contact(host).unwrap();
        let shipped = format!("10.0.0.{}:5432 check port 8008", i + 1);
        assert_eq!(text.matches(&shipped).count(), 2);
        text = text.replace(&shipped, &format!("{address}:{postgres_port} check port {rest_port}"));
    }
    let file = rig.dir(&rig.members()[0]).unwrap().join("haproxy.cfg");
    fs::write(&file, text).unwrap();
    let log = fs::File::create(file.with_extension("log")).unwrap();
    let mut command = Command::new(program);
    let process = command.arg("-db").arg("-f").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    (Process(process.spawn().unwrap()), ports)
}

/// A write of one connection.
struct Write {
    ended: Instant,
    error: Option<String>,
}

/// Where a client comes in.
fn way(contact: &Contact, port: u16) -> Config {
    let mut config = Config::new();
    config.host(&contact.address).port(port).user(contact.user).password(&contact.password).dbname(contact.user);
    config.connect_timeout(Duration::from_secs(25));
    config
}

fn one_write(config: &Config) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(write(config)).map_err(|error| format!("{error:?}"))
}

/// Writes over a new connection each time, as an application without a pool.
struct Writer {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Write>>,
}

impl Writer {
    /// Without pause. Returns when it has written.
    fn begin(contact: &Contact, port: u16) -> Self {
        Self::begin_with_pauses(contact, port, 2..3)
    }

    /// With pauses of so many milliseconds.
    fn begin_with_pauses(contact: &Contact, port: u16, pauses: Range<u64>) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        let config = way(contact, port);
        let (wrote, has_written) = channel();
        let run = move || {
            let mut writes = Vec::new();
            while !ends.load(Ordering::SeqCst) {
                let error = one_write(&config).err();
                if error.is_none() {
                    // Only the first is waited for.
                    let _ = wrote.send(());
                }
                writes.push(Write { ended: Instant::now(), error });
                let any = RandomState::new().hash_one(()) % (pauses.end - pauses.start);
                // One that is refused at once is not tried a thousand times a second.
                let refused = writes.last().is_some_and(|w| w.error.is_some());
                thread::sleep(Duration::from_millis(if refused { 20 } else { pauses.start + any }));
            }
            writes
        };
        let thread = thread::spawn(run);
        has_written.recv_timeout(SOON).expect("a first write");
        Self { over, thread }
    }

    fn end(self) -> Vec<Write> {
        self.over.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

/// Something that only a primary does.
async fn write(config: &Config) -> Result<(), tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    let connection = tokio::spawn(connection);
    let written = client.simple_query("SELECT txid_current()").await;
    drop(client);
    let _ = connection.await;
    written.map(drop)
}

/// The longest time without a write that ended well, and how many failed, by what they were told.
fn seen(writes: &[Write], since: Instant) -> (Duration, BTreeMap<String, usize>) {
    let good: Vec<Instant> = writes.iter().filter(|w| w.error.is_none()).map(|w| w.ended).collect();
    let gaps = good.windows(2).filter(|two| two[1] > since).map(|two| two[1] - two[0]);
    let mut errors = BTreeMap::new();
    for error in writes.iter().filter(|w| w.ended > since).filter_map(|w| w.error.clone()) {
        *errors.entry(error).or_default() += 1;
    }
    (gaps.max().unwrap_or(Duration::MAX), errors)
}

/// Until a write has gone through each of them.
fn both_write(contact: &Contact, ports: &[u16]) {
    for port in ports {
        until("a write goes through", SOON, || {
            let written = one_write(&way(contact, *port));
            written.inspect_err(|error| println!("port {port}: {error}")).is_ok()
        });
    }
}

/// The shipped file before the router of `contact`. It refuses to run as root.
fn pgbouncer(rig: &Rig, program: &Path, contact: &Contact) -> (Process, u16) {
    let (port, dir) = (free_port(), rig.dir(&rig.members()[0]).unwrap().join("pgbouncer"));
    fs::create_dir_all(&dir).unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/pgbouncer/pgbouncer.ini");
    let mut text = fs::read_to_string(shipped).unwrap();
    let users = dir.join("userlist.txt");
    for (shipped, here) in [
        ("host=127.0.0.1 port=6432", format!("host={} port={}", contact.address, contact.router_port)),
        ("listen_port = 6500", format!("listen_port = {port}\nunix_socket_dir =")),
        ("/etc/pgbouncer/userlist.txt", users.display().to_string()),
    ] {
        assert_eq!(text.matches(shipped).count(), 1, "{shipped}");
        text = text.replace(shipped, &here);
    }
    let file = dir.join("pgbouncer.ini");
    fs::write(&file, text).unwrap();
    fs::write(&users, format!("\"{}\" \"{}\"\n", contact.user, contact.password)).unwrap();
    let mut command = match rig.user() {
        Some((uid, gid)) => {
            for place in [&dir, &file, &users] {
                std::os::unix::fs::chown(place, Some(uid), Some(gid)).unwrap();
            }
            let mut command = Command::new("setpriv");
            command
                .args([format!("--reuid={uid}"), format!("--regid={gid}")])
                .args(["--clear-groups", "--"])
                .arg(program);
            command
        }
        None => Command::new(program),
    };
    let log = fs::File::create(dir.join("log")).unwrap();
    let process = command.arg("-q").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    (Process(process.spawn().unwrap()), port)
}

fn pgbouncer_by_the_shipped_example(rig: &Rig, before: &StatusReply) -> Promise {
    let Some(program) = program("pgbouncer") else {
        println!("pgbouncer is not installed: passed over");
        return Promise::no_loss(Instant::now());
    };
    // The same host stays what it is in both changes.
    let [to, stays] = others(rig, &[&before.primary]).try_into().expect("three members");
    let contact = rig.contact(&stays).unwrap();
    let (_pgbouncer, port) = pgbouncer(rig, &program, &contact);
    both_write(&contact, &[port]);

    let (writer, began) = (Writer::begin(&contact, port), Instant::now());
    let reply = rig.switchover(&to).unwrap();
    assert!(reply.accepted, "{reply:?}");
    assert!(rig.finished(reply.id, SOON).unwrap().succeeded);
    both_write(&contact, &[port]);
    let (gap, errors) = seen(&writer.end(), began);
    println!("switchover, through pgbouncer and the router: {gap:?} without a write, {errors:?}");
    assert!(gap < SOON);
    rig.healthy(HEAL).unwrap();

    let (writer, server) = (Writer::begin(&contact, port), rig.server().unwrap());
    let fault = rig.kill_host(&to).unwrap();
    rig.wait_for_write(ROUTED, fault, Some(&server), SOON).unwrap();
    both_write(&contact, &[port]);
    let (gap, errors) = seen(&writer.end(), fault);
    println!("loss of the primary's host, through pgbouncer and the router: {gap:?} without a write, {errors:?}");
    assert!(gap < SOON);
    seen_down(rig, &to);
    rig.boot_host(&to).unwrap();
    rig.healthy(HEAL).unwrap();
    Promise::asynchronous(fault, fault - STREAMED).ended(server)
}

fn haproxy_by_the_shipped_example(rig: &Rig, before: &StatusReply) -> Promise {
    let Some(program) = program("haproxy") else {
        println!("haproxy is not installed: passed over");
        return Promise::no_loss(Instant::now());
    };
    let (_haproxy, [primary, standbys]) = haproxy(rig, &program);
    let contact = rig.contact(&others(rig, &[&before.primary])[0]).unwrap();
    both_write(&contact, &[primary, contact.router_port]);
    until("standbys are led to, which take no writes", SOON, || {
        one_write(&way(&contact, standbys)).is_err_and(|error| error.contains("during recovery"))
    });

    let (through_haproxy, routed) = (Writer::begin(&contact, primary), Writer::begin(&contact, contact.router_port));
    // Connections opened ahead are kept for 0.1 s: the client of one may come at the end of that. Its router has no others.
    let elsewhere = rig.contact(&others(rig, &[&before.primary])[1]).unwrap();
    let paced = Writer::begin_with_pauses(&elsewhere, elsewhere.router_port, 50..81);
    let began = Instant::now();
    let reply = rig.switchover("").unwrap();
    assert!(reply.accepted, "{reply:?}");
    assert!(rig.finished(reply.id, SOON).unwrap().succeeded);
    both_write(&contact, &[primary, contact.router_port]);
    for (clients, writer) in [("", routed), (" that come every 50 to 80 ms", paced)] {
        let (gap, errors) = seen(&writer.end(), began);
        println!("switchover, new connections through the router{clients}: {gap:?} without a write, {errors:?}");
        assert!(errors.is_empty(), "{errors:?}");
        assert!(gap < SOON);
    }
    let (gap, errors) = seen(&through_haproxy.end(), began);
    println!("switchover, new connections through haproxy: {gap:?} without a write, {errors:?}");
    assert!(gap < SOON);
    rig.healthy(HEAL).unwrap();

    let (old, server) = (reply.to.clone(), rig.server().unwrap());
    let contact = rig.contact(&others(rig, &[&old])[0]).unwrap();
    let (through_haproxy, routed) = (Writer::begin(&contact, primary), Writer::begin(&contact, contact.router_port));
    let fault = rig.kill_host(&old).unwrap();
    rig.wait_for_write(ROUTED, fault, Some(&server), SOON).unwrap();
    both_write(&contact, &[primary, contact.router_port]);
    for (way, writer) in [("router", routed), ("haproxy", through_haproxy)] {
        let (gap, errors) = seen(&writer.end(), fault);
        println!("loss of the primary's host, new connections through {way}: {gap:?} without a write, {errors:?}");
        assert!(gap < SOON);
    }
    seen_down(rig, &old);
    rig.boot_host(&old).unwrap();
    rig.healthy(HEAL).unwrap();
    Promise::asynchronous(fault, fault - STREAMED).ended(server)
}
