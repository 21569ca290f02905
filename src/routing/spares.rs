//! Connections to servers that are opened before a client asks for one.
//!
//! PostgreSQL starts a process for each connection, and answers nothing before that: for a client that connects anew for each
//! transaction it is the largest part of what it waits for. So while clients come in quick succession, the next of them finds
//! a connection whose process is there. One waits for [`KEPT`] at most, then it is closed; a router to which nobody comes has none.
//!
//! It is a connection like any other that has not become a session: PostgreSQL knows nothing of it but that somebody is about
//! to say who they are, it ends with the state it was opened in, and before a planned stop.

use std::{
    convert::Infallible,
    io,
    mem::MaybeUninit,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    net::TcpStream,
    select,
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use super::{
    desk::{Desk, Pass},
    table::{Port, Stamp},
};

/// So long one is kept. Well below PostgreSQL's `authentication_timeout`, after which it would end it itself.
const KEPT: Duration = Duration::from_millis(100);
/// So many clients must have come in succession, each within [`KEPT`] of the one before: to connect twice is no habit.
const SUCCESSION: u32 = 4;

/// What one thread has ready.
#[derive(Debug)]
pub struct Spares {
    inner: Mutex<Inner>,
    numbers: AtomicU64,
    kept: Duration,
}

impl Default for Spares {
    fn default() -> Self {
        Self { inner: Mutex::default(), numbers: AtomicU64::new(0), kept: KEPT }
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// One for each port and server at most.
    ready: Vec<Spare>,
    /// When the last session began, and how many did in succession.
    pace: Option<(Instant, u32)>,
}

#[derive(Debug)]
struct Spare {
    number: u64,
    port: Port,
    stamp: Stamp,
    /// `None`: it is being opened.
    open: Option<(TcpStream, Pass)>,
    /// Dropped with it: whoever waits for its end need not go on.
    _gone: oneshot::Sender<Infallible>,
}

impl Spares {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change below leaves it whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that was opened in the state of `stamp` and is still there.
    pub fn take(&self, port: Port, stamp: &Stamp) -> Option<(TcpStream, Pass)> {
        let mut inner = self.lock();
        let place = inner.ready.iter().position(|s| s.port == port && s.stamp == *stamp && s.open.is_some())?;
        let (backend, pass) = inner.ready.swap_remove(place).open?;
        drop(inner);
        // A server says nothing before it is spoken to. So there is nothing to read, or it has gone.
        let said = SockRef::from(&backend).peek(&mut [MaybeUninit::uninit()]);
        said.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock).then_some((backend, pass))
    }

    /// A session has begun on the server at `address`: opens a connection for the next one, where that can be expected soon.
    pub fn expect_another(self: &Arc<Self>, desk: &Arc<Desk>, port: Port, stamp: &Stamp, address: SocketAddr) {
        let mut inner = self.lock();
        if !inner.keeps_coming(Instant::now()) || inner.ready.iter().any(|s| s.port == port && s.stamp == *stamp) {
            return;
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (_gone, gone) = oneshot::channel();
        inner.ready.push(Spare { number, port, stamp: stamp.clone(), open: None, _gone });
        drop(inner);
        tokio::spawn(Arc::clone(self).keep(Arc::clone(desk), number, port, stamp.clone(), address, gone));
    }

    /// Opens a connection and keeps it for as long as it may be of use.
    async fn keep(
        self: Arc<Self>,
        desk: Arc<Desk>,
        number: u64,
        port: Port,
        stamp: Stamp,
        address: SocketAddr,
        gone: oneshot::Receiver<Infallible>,
    ) {
        let mut views = desk.views();
        let unfit = async {
            while desk.expects(&stamp) {
                // It can't fail: the desk that sends lives as long as this.
                let _ = views.changed().await;
            }
        };
        let stays = async {
            let Ok(Ok(backend)) = timeout(self.kept, TcpStream::connect(address)).await else { return };
            let Some(pass) = desk.enter(&stamp, port) else { return };
            if let Some(spare) = self.lock().ready.iter_mut().find(|spare| spare.number == number) {
                spare.open = Some((backend, pass));
            }
            sleep(self.kept).await;
        };
        select! {
            biased;
            _ = gone => return,
            () = unfit => {}
            () = stays => {}
        }
        self.lock().ready.retain(|spare| spare.number != number);
    }
}

impl Inner {
    /// Counts a session that begins; whether enough have begun in succession.
    fn keeps_coming(&mut self, now: Instant) -> bool {
        let count = match self.pace {
            Some((last, count)) if now.duration_since(last) <= KEPT => (count + 1).min(SUCCESSION),
            _ => 1,
        };
        self.pace = Some((now, count));
        count >= SUCCESSION
    }
}

#[cfg(test)]
#[path = "spares_test.rs"]
mod tests;
