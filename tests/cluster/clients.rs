//! What clients see of a switchover and of a failover, who come through programs as they are found elsewhere.

use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
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
    stage::{HEAL, Promise, SOON, Step, others, seen_down, until},
};

pub const STEPS: &[Step] = &[("haproxy_by_the_shipped_example", haproxy_by_the_shipped_example)];

/// Ends with the step.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The shipped file with the places of this cluster: ports of the two listeners, primary first, and the process.
fn haproxy(rig: &Rig) -> (Process, [u16; 2]) {
    let ports = [free_port(), free_port()];
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/haproxy/haproxy.cfg");
    let mut text = fs::read_to_string(shipped).unwrap();
    for (listener, port) in ["*:5000", "*:5001"].into_iter().zip(ports) {
        text = text.replace(listener, &format!("127.0.0.1:{port}"));
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
    let mut command = Command::new("haproxy");
    let process = command.arg("-db").arg("-f").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    (Process(process.spawn().expect("haproxy is installed by deploy/scripts/prepare.sh")), ports)
}

/// A write of one connection.
struct Write {
    began: Instant,
    ended: Instant,
    error: Option<String>,
}

/// Writes over a new connection each time, without pause, as an application without a pool.
struct Writer {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Write>>,
}

impl Writer {
    fn begin(contact: &Contact, port: u16) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        let mut config = Config::new();
        config.host("127.0.0.1").port(port).user(contact.user).password(&contact.password).dbname("postgres");
        config.connect_timeout(Duration::from_secs(25));
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let mut writes = Vec::new();
            while !ends.load(Ordering::SeqCst) {
                let began = Instant::now();
                let error = runtime.block_on(write(&config)).err().map(|error| format!("{error:?}"));
                writes.push(Write { began, ended: Instant::now(), error });
                // One that is refused at once is not tried a thousand times a second.
                thread::sleep(Duration::from_millis(if writes.last().is_some_and(|w| w.error.is_some()) {
                    20
                } else {
                    2
                }));
            }
            writes
        };
        Self { over, thread: thread::spawn(run) }
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

/// Until each of them has written after `since`.
fn both_write(contact: &Contact, ports: &[u16]) {
    for port in ports {
        until("a write goes through", SOON, || {
            let writes = Writer::begin(contact, *port);
            thread::sleep(Duration::from_millis(300));
            writes.end().iter().any(|write| write.error.is_none() && write.began < write.ended)
        });
    }
}

fn haproxy_by_the_shipped_example(rig: &Rig, before: &StatusReply) -> Promise {
    let (_haproxy, [primary, standbys]) = haproxy(rig);
    let contact = rig.contact(&others(rig, &[&before.primary])[0]).unwrap();
    both_write(&contact, &[primary, contact.router_port]);
    until("standbys are led to, which take no writes", SOON, || {
        let began = Instant::now();
        let writer = Writer::begin(&contact, standbys);
        thread::sleep(Duration::from_millis(300));
        let (_, errors) = seen(&writer.end(), began);
        !errors.is_empty() && errors.keys().all(|error| error.contains("during recovery"))
    });

    let (through_haproxy, routed) = (Writer::begin(&contact, primary), Writer::begin(&contact, contact.router_port));
    let began = Instant::now();
    let reply = rig.switchover("").unwrap();
    assert!(reply.accepted, "{reply:?}");
    assert!(rig.finished(reply.id, SOON).unwrap().succeeded);
    both_write(&contact, &[primary, contact.router_port]);
    let (gap, errors) = seen(&routed.end(), began);
    println!("switchover, new connections through the router: {gap:?} without a write, {errors:?}");
    assert!(errors.is_empty(), "{errors:?}");
    assert!(gap < SOON);
    let (gap, errors) = seen(&through_haproxy.end(), began);
    println!("switchover, new connections through haproxy: {gap:?} without a write, {errors:?}");
    assert!(gap < SOON);
    rig.healthy(HEAL).unwrap();

    let (old, server) = (reply.to.clone(), rig.server().unwrap());
    let contact = rig.contact(&others(rig, &[&old])[0]).unwrap();
    let (through_haproxy, routed) = (Writer::begin(&contact, primary), Writer::begin(&contact, contact.router_port));
    thread::sleep(Duration::from_millis(200));
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
