//! Connections to servers that are opened before a client asks for one.
//!
//! PostgreSQL starts a process for each connection, and answers nothing before that: for a client that connects anew for each
//! transaction it is the largest part of what it waits for. So while clients come in quick succession and others end, the next of
//! them finds a connection whose process is there. One waits for [`KEPT`] at most, then it is closed; a router to which nobody
//! comes has none. Many who come at once and stay are no reason for one: nobody would take it after the last of them.
//!
//! It is a connection like any other that has not become a session: PostgreSQL knows nothing of it but that somebody is about
//! to say who they are. One to a primary ends with the state it was opened in, and before a planned stop.

use std::{
    convert::Infallible,
    io,
    mem::MaybeUninit,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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

/// So long one is kept. Well below PostgreSQL's `authentication_timeout`, after which it would end it itself; an agent that
/// stops PostgreSQL goes by it (`postgres::session`).
const KEPT: Duration = Duration::from_millis(100);
/// So many clients must have come in succession, each within [`KEPT`] of the one before: to connect twice is no habit.
const SUCCESSION: u32 = 4;

/// What one thread has ready.
#[derive(Debug)]
pub struct Spares {
    inner: Mutex<Inner>,
    kept: Duration,
}

impl Default for Spares {
    fn default() -> Self {
        Self { inner: Mutex::default(), kept: KEPT }
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// One for each lane at most.
    spares: Vec<Spare>,
    /// Of the last of them.
    number: u64,
    /// Where sessions have begun of late.
    paces: Vec<Pace>,
}

/// How clients come to one lane, and go.
#[derive(Debug)]
struct Pace {
    lane: Lane,
    /// When the last of them began.
    last: Instant,
    /// How many have begun in succession.
    begun: u32,
    /// How many have ended meanwhile, less those for which a connection was opened. It needs no bound: however many there are,
    /// one connection at a time is opened, and a pause ends it all.
    ended: u32,
}

/// Where clients are led who come by one port.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lane {
    port: Port,
    stamp: Stamp,
}

#[derive(Debug)]
struct Spare {
    number: u64,
    lane: Lane,
    /// `None`: it is being opened.
    open: Option<(TcpStream, Pass)>,
    /// Dropped with it: whoever waits for its end need not go on.
    _life: oneshot::Sender<Infallible>,
}

impl Spares {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change below leaves it whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that was opened in the state of `stamp` and is still there.
    pub fn take(&self, port: Port, stamp: &Stamp) -> Option<(TcpStream, Pass)> {
        let mut inner = self.lock();
        let fits = |spare: &Spare| spare.lane.port == port && spare.lane.stamp == *stamp && spare.open.is_some();
        let at = inner.spares.iter().position(fits)?;
        let (backend, pass) = inner.spares.swap_remove(at).open?;
        drop(inner);
        is_silent(&backend).then_some((backend, pass))
    }

    /// A session has begun: opens a connection for the next one, where that can be expected soon.
    pub fn expect_another(self: &Arc<Self>, desk: &Arc<Desk>, port: Port, stamp: Stamp) {
        let lane = Lane { port, stamp };
        let mut inner = self.lock();
        if !inner.expects_another(&lane, Instant::now(), self.kept) {
            return;
        }
        inner.number += 1;
        let number = inner.number;
        let (_life, gone) = oneshot::channel();
        inner.spares.push(Spare { number, lane: lane.clone(), open: None, _life });
        drop(inner);
        tokio::spawn(Arc::clone(self).keep(Arc::clone(desk), number, lane, gone));
    }

    /// A session has ended: another may come in its place.
    pub fn one_ended(&self, port: Port, stamp: Stamp) {
        self.lock().one_ended(&Lane { port, stamp });
    }

    /// Opens a connection and keeps it for as long as it may be of use.
    async fn keep(self: Arc<Self>, desk: Arc<Desk>, number: u64, lane: Lane, gone: oneshot::Receiver<Infallible>) {
        let mut views = desk.views();
        let unfit = async {
            while desk.expects(&lane.stamp) {
                // It can't fail: the desk that sends lives as long as this.
                let _ = views.changed().await;
            }
        };
        let stays = async {
            let connect = TcpStream::connect(&lane.stamp.backend.address);
            let Ok(Ok(backend)) = timeout(self.kept, connect).await else { return };
            let Some(pass) = desk.enter(&lane.stamp, lane.port) else { return };
            if let Some(spare) = self.lock().spares.iter_mut().find(|spare| spare.number == number) {
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
        self.lock().spares.retain(|spare| spare.number != number);
    }
}

/// A server says nothing before it is spoken to. Where there is something to read it has gone, or is no server.
fn is_silent(backend: &TcpStream) -> bool {
    let said = SockRef::from(backend).peek(&mut [MaybeUninit::uninit()]);
    said.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

impl Inner {
    /// Counts a session that begins; whether a connection is to be opened for the next. So it is when enough have begun there
    /// in succession, each within `pause` of the one before, when one has ended for each that was opened, and when none is there.
    fn expects_another(&mut self, lane: &Lane, now: Instant, pause: Duration) -> bool {
        self.paces.retain(|pace| now.duration_since(pace.last) <= pause);
        let Some(pace) = self.paces.iter_mut().find(|pace| pace.lane == *lane) else {
            self.paces.push(Pace { lane: lane.clone(), last: now, begun: 1, ended: 0 });
            return false;
        };
        (pace.last, pace.begun) = (now, (pace.begun + 1).min(SUCCESSION));
        let keep_coming = pace.begun >= SUCCESSION && pace.ended > 0;
        if !keep_coming || self.spares.iter().any(|spare| spare.lane == *lane) {
            return false;
        }
        pace.ended -= 1;
        true
    }

    fn one_ended(&mut self, lane: &Lane) {
        if let Some(pace) = self.paces.iter_mut().find(|pace| pace.lane == *lane) {
            pace.ended = pace.ended.saturating_add(1);
        }
    }
}

#[cfg(test)]
#[path = "spares_test.rs"]
mod tests;
