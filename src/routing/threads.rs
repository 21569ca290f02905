//! The threads that carry sessions. The first is the one that accepts them, which also follows the managers; the others have
//! nothing but sessions. Each connection stays on one thread to its end.

use std::{
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::{
    net::TcpStream,
    runtime::{Builder, Handle},
    select,
    sync::{Notify, watch},
    task::{AbortHandle, JoinSet},
    time::sleep,
};
use tracing::warn;

use super::spares::Spares;

/// While connections are brief, the first thread keeps them up to so many more than any other has: to wake another takes a
/// tenth of a millisecond, which is longer than all that is done to let one in.
const KEEPS: usize = 4;
/// Whoever stays for less is brief.
const BRIEF: Duration = Duration::from_millis(100);
/// So many brief ones must have ended in succession.
const SUCCESSION: usize = 4;
/// Shorter than any time-out of a connection that is being let in. A timer that is due before all others of its thread wakes
/// that thread through the kernel, to be looked at: with this one there is another that is due before those.
const TICK: Duration = Duration::from_millis(500);

/// The first thread and those beside it.
#[derive(Debug)]
pub struct Threads {
    /// Of the first.
    load: Arc<Load>,
    others: Vec<Thread>,
    /// How many connections have ended since the last that was not brief.
    brief: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Thread {
    runtime: Handle,
    load: Arc<Load>,
    /// Dropped, it ends the thread, and what still runs there.
    ends: watch::Sender<()>,
    thread: JoinHandle<()>,
}

/// The connections that one thread has now.
#[derive(Debug, Default)]
struct Load {
    connections: AtomicUsize,
    /// Told of the first of them.
    some: Notify,
    spares: Arc<Spares>,
}

/// Counts one connection for as long as it lives.
struct Counted {
    load: Arc<Load>,
    since: Instant,
    brief: Arc<AtomicUsize>,
}

/// A client, as it comes to the thread that carries it.
#[derive(Debug)]
pub struct Arrived {
    client: Client,
    load: Arc<Load>,
}

#[derive(Debug)]
enum Client {
    /// It stays on the thread that has accepted it.
    Here(TcpStream),
    /// That other thread has to get to know it.
    There(std::net::TcpStream),
}

impl Arrived {
    /// Its connection, on the thread of whoever asks, and the connections to servers which that thread has ready.
    ///
    /// # Errors
    /// The thread has no room for another.
    pub fn stream(self) -> io::Result<(TcpStream, Arc<Spares>)> {
        let client = match self.client {
            Client::Here(client) => client,
            Client::There(client) => TcpStream::from_std(client)?,
        };
        Ok((client, Arc::clone(&self.load.spares)))
    }
}

impl Threads {
    /// So many in all, and at least the first. One that can't be had is done without.
    pub fn start(count: usize) -> Self {
        let started = (1..count).map_while(|number| {
            let thread = Thread::start(number);
            thread.inspect_err(|error| warn!(%error, number, "a thread for sessions could not be started")).ok()
        });
        Self { load: Arc::default(), others: started.collect(), brief: Arc::default() }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        1 + self.others.len()
    }

    /// Serves `client` on the thread that has fewest, or on the first where it is not worth the while to wake another.
    ///
    /// # Errors
    /// The client can't be handed to another thread.
    pub fn spawn<F>(
        &self,
        tasks: &mut JoinSet<()>,
        client: TcpStream,
        serve: impl FnOnce(Arrived) -> F,
    ) -> io::Result<AbortHandle>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let more = if self.brief.load(Ordering::Relaxed) < SUCCESSION { 1 } else { KEEPS };
        let fewest = self.others.iter().min_by_key(|thread| thread.load.now());
        Ok(match fewest.filter(|thread| thread.load.now() + more <= self.load.now()) {
            Some(thread) => {
                let client = thread.load.arrived(Client::There(client.into_std()?));
                tasks.spawn_on(self.counted(&thread.load, serve(client)), &thread.runtime)
            }
            None => tasks.spawn(self.counted(&self.load, serve(self.load.arrived(Client::Here(client))))),
        })
    }

    /// The task that serves a client of a thread, which counts from now on.
    fn counted<F: Future<Output = ()>>(&self, load: &Arc<Load>, task: F) -> impl Future<Output = ()> + use<F> {
        if load.connections.fetch_add(1, Ordering::Relaxed) == 0 {
            load.some.notify_one();
        }
        let (load, brief) = (Arc::clone(load), Arc::clone(&self.brief));
        let counted = Counted { load, since: Instant::now(), brief };
        async move {
            let _counted = counted;
            task.await;
        }
    }
}

impl Load {
    fn now(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    fn arrived(self: &Arc<Self>, client: Client) -> Arrived {
        Arrived { client, load: Arc::clone(self) }
    }

    /// Ticks for as long as there are connections.
    async fn ticks(&self) {
        loop {
            self.some.notified().await;
            while self.now() > 0 {
                sleep(TICK).await;
            }
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.load.connections.fetch_sub(1, Ordering::Relaxed);
        match self.since.elapsed() < BRIEF {
            true => self.brief.fetch_add(1, Ordering::Relaxed),
            false => self.brief.swap(0, Ordering::Relaxed),
        };
    }
}

impl Thread {
    fn start(number: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (ends, mut told) = watch::channel(());
        let load = Arc::<Load>::default();
        let ticks = Arc::clone(&load);
        let run = move || {
            runtime.block_on(async {
                select! {
                    // Nobody is left who could say so: that is the word.
                    _ = told.changed() => {}
                    () = ticks.ticks() => {}
                }
            });
            // What still looks for an address of a name is not waited for.
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new().name(format!("sessions-{number}")).spawn(run)?;
        Ok(Self { runtime: handle, load, ends, thread })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        for Thread { ends, thread, .. } in self.others.drain(..) {
            drop(ends);
            // It has nothing to fail with, and a panic in it was told when it happened.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, io::Write as _, thread::ThreadId};

    use tokio::{net::TcpListener, sync::mpsc, time::timeout};

    use super::*;

    async fn client(listener: &TcpListener) -> (std::net::TcpStream, TcpStream) {
        let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    /// Where so many connections went that stay, by thread, the first one's count first.
    async fn spread(threads: &Threads, tasks: &mut JoinSet<()>, count: usize) -> Vec<usize> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (tell, mut told) = mpsc::unbounded_channel();
        for _ in 0..count {
            let tell = tell.clone();
            let (mut near, far) = client(&listener).await;
            let serve = |client: Arrived| async move {
                let (client, _) = client.stream().unwrap();
                // Its thread hears what comes.
                client.readable().await.unwrap();
                tell.send(thread::current().id()).unwrap();
                std::future::pending::<()>().await;
                drop(client);
            };
            threads.spawn(tasks, far, serve).unwrap();
            near.write_all(b"x").unwrap();
        }
        let mut ran: HashMap<ThreadId, usize> = HashMap::new();
        for _ in 0..count {
            *ran.entry(told.recv().await.unwrap()).or_default() += 1;
        }
        let first = ran.remove(&thread::current().id()).unwrap_or(0);
        let mut others = Vec::from_iter(ran.into_values());
        others.sort_unstable();
        [vec![first], others].concat()
    }

    #[tokio::test]
    async fn each_thread_has_its_share_but_for_a_few_that_are_brief() {
        let threads = Threads::start(3);
        assert_eq!(threads.count(), 3);
        let mut tasks = JoinSet::new();
        assert_eq!(spread(&threads, &mut tasks, 9).await, [3, 3, 3]);
        // Those that have ended count no more.
        tasks.abort_all();
        while tasks.join_next().await.is_some() {}
        // However long these took, they were brief.
        threads.brief.store(SUCCESSION, Ordering::Relaxed);
        assert_eq!(spread(&threads, &mut tasks, KEEPS).await, [KEEPS]);
        assert_eq!(spread(&threads, &mut tasks, 6).await, [2, 2, 2]);
        // Those that would go on for ever go with their thread.
        drop(threads);
        let mut cancelled = 0;
        while timeout(Duration::from_secs(1), tasks.join_next()).await.is_ok_and(|e| e.is_some()) {
            cancelled += 1;
        }
        assert_eq!(cancelled, 4, "those of the first thread go on");
    }

    #[tokio::test]
    async fn brief_ones_are_told_from_those_that_stay() {
        let threads = Threads::start(1);
        let had = || threads.brief.load(Ordering::Relaxed);
        let end = |ago: Duration| {
            let since = Instant::now().checked_sub(ago).unwrap();
            threads.load.connections.fetch_add(1, Ordering::Relaxed);
            drop(Counted { load: Arc::clone(&threads.load), since, brief: Arc::clone(&threads.brief) });
        };
        for count in 1..=SUCCESSION {
            end(Duration::ZERO);
            assert_eq!(had(), count);
        }
        end(BRIEF);
        assert_eq!((had(), threads.load.now()), (0, 0));
    }
}
