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
};

use tokio::{
    runtime::{Builder, Handle},
    sync::watch,
    task::{AbortHandle, JoinSet},
};
use tracing::warn;

/// The first thread and those beside it.
#[derive(Debug)]
pub struct Threads {
    /// Connections of the first.
    first: Load,
    others: Vec<Thread>,
}

/// How many connections a thread has now.
type Load = Arc<AtomicUsize>;

/// Counts one connection for as long as it lives.
struct Counted(Load);

#[derive(Debug)]
struct Thread {
    runtime: Handle,
    load: Load,
    /// Dropped, it ends the thread, and what still runs there.
    ends: watch::Sender<()>,
    thread: JoinHandle<()>,
}

impl Threads {
    /// So many in all, and at least the first. One that can't be had is done without.
    pub fn start(count: usize) -> Self {
        let started = (1..count).map_while(|number| {
            let thread = Thread::start(number);
            thread.inspect_err(|error| warn!(%error, number, "a thread for sessions could not be started")).ok()
        });
        Self { first: Load::default(), others: started.collect() }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        1 + self.others.len()
    }

    /// Runs `task` on the thread that has the fewest; on the first where that is one of them, for to wake another takes longer
    /// than all else that is done for a connection.
    pub fn spawn<F>(&self, tasks: &mut JoinSet<()>, task: F) -> AbortHandle
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let has = |load: &Load| load.load(Ordering::Relaxed);
        let least = self.others.iter().min_by_key(|thread| has(&thread.load));
        let other = least.filter(|thread| has(&thread.load) < has(&self.first));
        let counted = Counted::one(other.map_or(&self.first, |thread| &thread.load));
        let task = async move {
            let _counted = counted;
            task.await;
        };
        match other {
            Some(thread) => tasks.spawn_on(task, &thread.runtime),
            None => tasks.spawn(task),
        }
    }
}

impl Counted {
    fn one(load: &Load) -> Self {
        load.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(load))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Thread {
    fn start(number: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (ends, mut told) = watch::channel(());
        let run = move || {
            // Nobody is left who could say so: that is the word.
            let _ = runtime.block_on(told.changed());
            // What still looks for an address of a name is not waited for.
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new().name(format!("sessions-{number}")).spawn(run)?;
        Ok(Self { runtime: handle, load: Load::default(), ends, thread })
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
    use std::{collections::HashMap, thread::ThreadId};

    use super::*;

    #[tokio::test]
    async fn each_thread_gets_its_share_and_ends_with_them() {
        let threads = Threads::start(3);
        assert_eq!(threads.count(), 3);
        let mut tasks = JoinSet::new();
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let all_here = watch::Sender::new(false);
        for _ in 0..9 {
            let (tell, mut all_here) = (tell.clone(), all_here.subscribe());
            threads.spawn(&mut tasks, async move {
                all_here.wait_for(|here| *here).await.unwrap();
                tell.send(thread::current().id()).unwrap();
            });
        }
        let has = |load: &Load| load.load(Ordering::Relaxed);
        assert_eq!((has(&threads.first), threads.others.iter().map(|t| has(&t.load)).sum::<usize>()), (3, 6));
        all_here.send_replace(true);
        while tasks.join_next().await.is_some() {}
        let mut ran: HashMap<ThreadId, usize> = HashMap::new();
        for _ in 0..9 {
            *ran.entry(told.recv().await.unwrap()).or_default() += 1;
        }
        assert_eq!(Vec::from_iter(ran.values().copied()), [3, 3, 3]);
        // They are gone, and the first is preferred among equals.
        threads.spawn(&mut tasks, async {});
        assert_eq!(has(&threads.first), 1);
        while tasks.join_next().await.is_some() {}
        assert_eq!(has(&threads.first), 0);
        // One that would go on for ever goes with its thread.
        for _ in 0..3 {
            threads.spawn(&mut tasks, std::future::pending());
        }
        drop(threads);
        let mut cancelled = 0;
        while tokio::time::timeout(std::time::Duration::from_secs(1), tasks.join_next())
            .await
            .is_ok_and(|e| e.is_some())
        {
            cancelled += 1;
        }
        assert_eq!(cancelled, 2, "that of the first thread goes on");
    }
}
