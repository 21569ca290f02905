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
    time::Duration,
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

/// So many connections more than any other thread the first one takes. To wake another takes a tenth of a millisecond, which
/// is longer than all that is done to let a connection in; of many sessions each thread has its share all the same.
const AHEAD: usize = 4;
/// Shorter than any time-out of a connection that is being let in. A timer that is due before all others of its thread wakes
/// that thread through the kernel, to be looked at: with this one there is always another that is due before.
const TICK: Duration = Duration::from_millis(500);

/// The first thread and those beside it.
#[derive(Debug)]
pub struct Threads {
    /// Of the first.
    load: Arc<Load>,
    others: Vec<Thread>,
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
struct Counted(Arc<Load>);

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
        Self { load: Arc::default(), others: started.collect() }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        1 + self.others.len()
    }

    /// Serves `client` on the first thread, or on the one that has fewest when the first has many more.
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
        let fewest = self.others.iter().min_by_key(|thread| thread.load.now());
        Ok(match fewest.filter(|thread| thread.load.now() + AHEAD <= self.load.now()) {
            Some(thread) => {
                let client = thread.load.arrived(Client::There(client.into_std()?));
                tasks.spawn_on(thread.load.counts(serve(client)), &thread.runtime)
            }
            None => tasks.spawn(self.load.counts(serve(self.load.arrived(Client::Here(client))))),
        })
    }
}

impl Load {
    fn now(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    fn arrived(self: &Arc<Self>, client: Client) -> Arrived {
        Arrived { client, load: Arc::clone(self) }
    }

    /// The task that serves a client, which counts from now on.
    fn counts<F: Future<Output = ()>>(self: &Arc<Self>, task: F) -> impl Future<Output = ()> + use<F> {
        if self.connections.fetch_add(1, Ordering::Relaxed) == 0 {
            self.some.notify_one();
        }
        let counted = Counted(Arc::clone(self));
        async move {
            let _counted = counted;
            task.await;
        }
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
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
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
    async fn few_stay_where_they_were_accepted_and_of_many_each_thread_has_its_share() {
        let threads = Threads::start(3);
        assert_eq!(threads.count(), 3);
        let mut tasks = JoinSet::new();
        assert_eq!(spread(&threads, &mut tasks, AHEAD).await, [AHEAD]);
        // Those that have ended count no more.
        tasks.abort_all();
        while tasks.join_next().await.is_some() {}
        assert_eq!(spread(&threads, &mut tasks, AHEAD + 6).await, [AHEAD + 2, 2, 2]);
        // Those that would go on for ever go with their thread.
        drop(threads);
        let mut cancelled = 0;
        while timeout(Duration::from_secs(1), tasks.join_next()).await.is_ok_and(|e| e.is_some()) {
            cancelled += 1;
        }
        assert_eq!(cancelled, 4, "those of the first thread go on");
    }
}
