//! The threads that carry sessions. The first is the one that accepts them, which also follows the managers; the others have
//! nothing but sessions. Each connection stays on one thread to its end.

use std::{
    future::Future,
    io,
    sync::atomic::{AtomicUsize, Ordering},
    thread::{self, JoinHandle},
};

use tokio::{
    runtime::{Builder, Handle},
    sync::watch,
    task::{AbortHandle, JoinSet},
};
use tracing::warn;

/// Threads beside the first.
#[derive(Debug)]
pub struct Threads {
    others: Vec<Thread>,
    turn: AtomicUsize,
}

#[derive(Debug)]
struct Thread {
    runtime: Handle,
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
        Self { others: started.collect(), turn: AtomicUsize::new(0) }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        1 + self.others.len()
    }

    /// Runs `task` on the thread whose turn it is.
    pub fn spawn<F>(&self, tasks: &mut JoinSet<()>, task: F) -> AbortHandle
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.count();
        match turn.checked_sub(1).and_then(|other| self.others.get(other)) {
            Some(thread) => tasks.spawn_on(task, &thread.runtime),
            None => tasks.spawn(task),
        }
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
        Ok(Self { runtime: handle, ends, thread })
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
        for _ in 0..9 {
            let tell = tell.clone();
            threads.spawn(&mut tasks, async move {
                tokio::task::yield_now().await;
                tell.send(thread::current().id()).unwrap();
            });
        }
        while tasks.join_next().await.is_some() {}
        let mut ran: HashMap<ThreadId, usize> = HashMap::new();
        for _ in 0..9 {
            *ran.entry(told.recv().await.unwrap()).or_default() += 1;
        }
        assert_eq!(Vec::from_iter(ran.values().copied()), [3, 3, 3]);
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
