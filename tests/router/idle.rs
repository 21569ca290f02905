//! What a router costs that nobody uses.

use std::{fs, thread, time::Duration};

use matriarch::routing::Router;
use tokio::sync::watch;

use crate::fakes::{Client, Manager, Options, config, state};

/// CPU time and wake-ups of one thread so far.
fn spent(task: &str) -> (Duration, u64) {
    let read = |file: &str| fs::read_to_string(format!("/proc/self/task/{task}/{file}")).unwrap();
    let cpu_ns = read("schedstat").split_whitespace().next().unwrap().parse().unwrap();
    let switches = read("status").lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:")?.trim().parse().ok());
    (Duration::from_nanos(cpu_ns), switches.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_router_wakes_for_its_managers_and_little_else() {
    let beat = Duration::from_secs(1);
    let backend = crate::fakes::Backend::start("a").await;
    let managers = [(); 3].map(|()| Manager::start_with_beat(state(1, 1, true, Some(&backend)), beat));
    let mut config = config(&managers.each_ref(), Options { stale: Duration::from_secs(15), ..Options::default() });
    // One is looked at.
    config.router.as_mut().unwrap().threads = 1;
    let (send, ports) = std::sync::mpsc::channel();
    let (shutdown, stop) = watch::channel(false);
    let router = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let router = Router::bind(config).await.unwrap();
            let task = fs::read_link("/proc/thread-self").unwrap().file_name().unwrap().to_owned();
            send.send((router.handle(), task.into_string().unwrap())).unwrap();
            router.run(stop).await.unwrap();
        });
    });
    let (handle, task) = ports.recv().unwrap();
    let mut sessions = Vec::new();
    for _ in 0..20 {
        sessions.push(Client::session(handle.read_write().unwrap()).await);
    }
    let before = spent(&task);
    let seconds = 5;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let after = spent(&task);
    let (cpu, wakes) = ((after.0 - before.0) / seconds as u32, (after.1 - before.1) / seconds);
    println!("idle with three managers and 20 sessions: {cpu:?} of CPU and {wakes} wake-ups a second");
    assert_eq!(handle.status().managers_followed, 3);
    assert!(cpu < Duration::from_millis(5), "{cpu:?} a second");
    assert!(wakes < 30, "{wakes} wake-ups a second");
    shutdown.send(true).unwrap();
    router.join().unwrap();
}
