//! A session that has begun: bytes both ways until one side ends, the state says
//! so, or the server is about to acknowledge a commit that is not confirmed.
//!
//! Told to drain, a session whose messages can be looked at ends between two transactions, when its client has everything.
//! A session that is quiet holds no buffer: all of one thread share one, and what could not be written at once is kept.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf, ReadHalf, WriteHalf, split},
    net::{TcpStream, tcp},
    select,
    sync::Notify,
    task::yield_now,
    time::{sleep, timeout},
};

use super::{
    bulk::Bulk,
    desk::{Pass, Signal},
    follower::Follower,
    requests::{self, Requests},
    stream::Stream,
    table::Cut,
};

/// Time for the last message of one side after the other has stopped to listen.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Bytes that are on their way from one side to the other at once.
const BUFFER: usize = 64 << 10;

thread_local! {
    static BETWEEN: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into());
}

/// How a session ended.
#[derive(Debug)]
pub enum Ending {
    /// The server ended it.
    Server,
    /// The client did, when everything it had asked for was answered.
    Client,
    /// The state said so.
    Cut(Cut),
    /// Nothing was under way, and its server or the router is about to stop.
    Drained,
    /// The server said that it gave a wait for standbys up. The client has its notice, and nothing after it.
    Unconfirmed,
    /// A socket failed.
    Broken(io::Error),
}

/// Carries bytes. `early` are those of the client that have been read already; with a follower the server's messages are
/// looked at. What the server had said before this has been handed on, and followed.
pub async fn carry(
    client: &mut Stream,
    backend: &mut Stream,
    early: Vec<u8>,
    follower: Option<Follower>,
    pass: &mut Pass,
) -> Ending {
    // Two plain sockets need no lock between reading and writing.
    if let (Stream::Plain(client), Stream::Plain(backend)) = (&mut *client, &mut *backend) {
        return both_ways(client.split(), backend.split(), early, follower, pass).await;
    }
    both_ways(split(client), split(backend), early, follower, pass).await
}

async fn both_ways<CR, CW, BR, BW>(
    (from_client, to_client): (CR, CW),
    (from_backend, to_backend): (BR, BW),
    early: Vec<u8>,
    follower: Option<Follower>,
    pass: &mut Pass,
) -> Ending
where
    CR: AsyncRead + Side + Unpin,
    CW: AsyncWrite + Side + Unpin,
    BR: AsyncRead + Side + Unpin,
    BW: AsyncWrite + Side + Unpin,
{
    // What nobody looks at need not be copied.
    let unread = follower.is_none();
    let talk = Talk::new(follower, &early);
    let counts = pass.shared_counts();
    let up = async {
        let count = &counts.bytes_up;
        let mut way = Way { from: from_client, to: to_backend, kept: early, dirty: false, unread, bulk: None, count };
        let carried = way.carry(|said| talk.client(said), || {}).await;
        // Nothing is left to be said: the server need not be waited for. Who encrypts says an end of that, too.
        if carried.is_ok() && way.is_plain() && talk.is_over() {
            return Ending::Client;
        }
        // The backend may have more to say, so only its input ends here.
        // One that takes nothing does not hold this up.
        let _ = timeout(LAST_WORDS, way.to.shutdown()).await;
        let Err(error) = carried else { return std::future::pending().await };
        // A backend that was told to stop takes no bytes, but why it stops is on its way.
        sleep(LAST_WORDS).await;
        Ending::Broken(error)
    };
    let down = async {
        let count = &counts.bytes_down;
        let kept = Vec::new();
        let mut way = Way { from: from_backend, to: to_client, kept, dirty: false, unread, bulk: None, count };
        way.carry(|said| talk.server(said), || talk.handed_on()).await
    };
    let (mut up, mut down) = (pin!(up), pin!(down));
    loop {
        // When the backend ends the session, so does this: a client that doesn't notice must not hold a place.
        select! {
            biased;
            told = pass.told() => match told {
                Signal::Cut(cut) => return Ending::Cut(cut),
                Signal::Drain => {
                    pass.listen_again();
                    talk.drain(pass.leaves());
                }
            },
            carried = &mut down => return match carried {
                Ok(Stop::Ended) => Ending::Server,
                Ok(Stop::Said) => Ending::Unconfirmed,
                Err(error) => Ending::Broken(error),
            },
            ending = &mut up => return ending,
            () = talk.drained(), if talk.drains() => {
                if pass.drains() {
                    return Ending::Drained;
                }
                // What was about to stop goes on.
                talk.drains.store(false, Ordering::Relaxed);
            }
        }
    }
}

/// What both sides have said, as far as it is looked at.
struct Talk {
    /// `None`: it is encrypted for somebody else, or no session.
    both: Option<Mutex<(Requests, Follower)>>,
    /// It is to end as soon as nothing is under way.
    drains: AtomicBool,
    /// The router itself leaves: then one that has asked for nothing yet ends as well.
    leaves: AtomicBool,
    /// The client has all that the server has said so far.
    handed_on: AtomicBool,
    idle: Notify,
}

impl Talk {
    fn new(follower: Option<Follower>, early: &[u8]) -> Self {
        let both = follower.map(|follower| {
            let mut requests = Requests::default();
            requests.follow(early);
            Mutex::new((requests, follower))
        });
        Self {
            both,
            drains: AtomicBool::new(false),
            leaves: AtomicBool::new(false),
            handed_on: AtomicBool::new(true),
            idle: Notify::new(),
        }
    }

    /// Nothing that a client says ends a session.
    fn client(&self, said: &[u8]) -> Option<usize> {
        self.both()?.0.follow(said);
        None
    }

    fn server(&self, said: &[u8]) -> Option<usize> {
        self.handed_on.store(false, Ordering::Relaxed);
        self.both()?.1.follow(said)
    }

    /// The client has all that the server has said.
    fn handed_on(&self) {
        self.handed_on.store(true, Ordering::Relaxed);
        if self.drains() && self.is_idle() {
            self.idle.notify_one();
        }
    }

    fn drain(&self, leaves: bool) {
        self.drains.store(true, Ordering::Relaxed);
        self.leaves.store(leaves, Ordering::Relaxed);
        // What is not handed on yet will be, and be told of then; a client that takes nothing is cut off in the end.
        if self.is_idle() {
            self.idle.notify_one();
        }
    }

    /// Outside of a transaction, everything the client has asked for is answered. One that has only just been let in is about
    /// to ask: ended then it would have met with an error on a new connection.
    fn is_idle(&self) -> bool {
        let handed_on = self.handed_on.load(Ordering::Relaxed);
        handed_on
            && self.both().is_some_and(|both| {
                let asked = both.0.asked();
                let begun = asked > requests::BEGIN || self.leaves.load(Ordering::Relaxed);
                begun && both.1.ready_outside() == Some(asked)
            })
    }

    fn drains(&self) -> bool {
        self.drains.load(Ordering::Relaxed)
    }

    /// The client has said that it ends, outside of a transaction and with every answer handed on.
    fn is_over(&self) -> bool {
        let handed_on = self.handed_on.load(Ordering::Relaxed);
        handed_on && self.both().is_some_and(|both| both.0.is_over() && both.1.ready_outside() == Some(both.0.asked()))
    }

    /// Never waited for: one task uses it.
    fn both(&self) -> Option<MutexGuard<'_, (Requests, Follower)>> {
        Some(self.both.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until nothing is under way.
    async fn drained(&self) {
        loop {
            self.idle.notified().await;
            // The client may have said something since, of which the kernel has told, and nobody has heard yet.
            yield_now().await;
            if self.is_idle() {
                return;
            }
        }
    }
}

/// Why one way has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// Who was read from says no more.
    Ended,
    /// Something was said after which nothing is handed on.
    Said,
}

/// One way of a session.
struct Way<'a, R, W> {
    from: R,
    to: W,
    /// What the other side did not take at once.
    kept: Vec<u8>,
    /// Something was written since the last flush.
    dirty: bool,
    /// Nobody looks at it.
    unread: bool,
    /// While so much comes that it is worth it.
    bulk: Option<Bulk>,
    /// Bytes that were handed on.
    count: &'a AtomicU64,
}

/// One half of a connection.
trait Side {
    /// Its socket, where the bytes of the session are those of the socket.
    fn socket(&self) -> Option<&TcpStream>;
}

impl Side for tcp::ReadHalf<'_> {
    fn socket(&self) -> Option<&TcpStream> {
        Some(self.as_ref())
    }
}

impl Side for tcp::WriteHalf<'_> {
    fn socket(&self) -> Option<&TcpStream> {
        Some(self.as_ref())
    }
}

impl<T> Side for ReadHalf<T> {
    fn socket(&self) -> Option<&TcpStream> {
        None
    }
}

impl<T> Side for WriteHalf<T> {
    fn socket(&self) -> Option<&TcpStream> {
        None
    }
}

impl<R: AsyncRead + Side + Unpin, W: AsyncWrite + Side + Unpin> Way<'_, R, W> {
    /// Neither side is encrypted by the router.
    fn is_plain(&self) -> bool {
        self.from.socket().is_some() && self.to.socket().is_some()
    }

    /// Hands on what is read, in the pieces in which it is read. `look` sees each piece, and gives the place in it after which
    /// nothing is handed on; `handed_on` is called whenever everything was.
    async fn carry(&mut self, mut look: impl FnMut(&[u8]) -> Option<usize>, handed_on: impl Fn()) -> io::Result<Stop> {
        let mut said = false;
        poll_fn(|cx| {
            loop {
                ready!(self.hand_on_kept(cx))?;
                handed_on();
                if said {
                    return Poll::Ready(Ok(Stop::Said));
                }
                if !ready!(self.move_bulk(cx))? {
                    return Poll::Ready(Ok(Stop::Ended));
                }
                match ready!(BETWEEN.with_borrow_mut(|between| self.step(cx, between, &mut look)))? {
                    Some(ends) => said = ends,
                    None => return Poll::Ready(Ok(Stop::Ended)),
                }
            }
        })
        .await
    }

    fn hand_on_kept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.kept.is_empty() {
            match ready!(Pin::new(&mut self.to).poll_write(cx, &self.kept))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                // What is kept for one that reads nothing is not kept for the rest of the session.
                all if all == self.kept.len() => self.kept = Vec::new(),
                part => drop(self.kept.drain(..part)),
            }
            self.dirty = true;
        }
        if self.dirty {
            ready!(Pin::new(&mut self.to).poll_flush(cx))?;
            self.dirty = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Moves bulk, if there is any, until it thins out; false when there is nothing more to come.
    fn move_bulk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let Some(bulk) = &mut self.bulk else { return Poll::Ready(Ok(true)) };
        let (Some(from), Some(to)) = (self.from.socket(), self.to.socket()) else { return Poll::Ready(Ok(true)) };
        let count = |moved: usize| {
            self.count.fetch_add(moved as u64, Ordering::Relaxed);
        };
        let goes_on = ready!(bulk.poll_move(cx, from, to, count))?;
        self.bulk = None;
        Poll::Ready(Ok(goes_on))
    }

    /// Reads once and writes once; whether that was the last. `None`: there is nothing more to read.
    fn step(
        &mut self,
        cx: &mut Context<'_>,
        between: &mut [u8],
        look: &mut impl FnMut(&[u8]) -> Option<usize>,
    ) -> Poll<io::Result<Option<bool>>> {
        let mut buffer = ReadBuf::new(between);
        ready!(Pin::new(&mut self.from).poll_read(cx, &mut buffer))?;
        let said = buffer.filled();
        if said.is_empty() {
            return Poll::Ready(Ok(None));
        }
        let end = look(said);
        let to_write = &said[..end.unwrap_or(said.len())];
        let written = match Pin::new(&mut self.to).poll_write(cx, to_write) {
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        self.dirty = true;
        self.count.fetch_add(to_write.len() as u64, Ordering::Relaxed);
        self.kept.extend_from_slice(&to_write[written..]);
        if self.unread && said.len() == BUFFER && self.is_plain() {
            self.bulk = Bulk::begin();
        }
        Poll::Ready(Ok(Some(end.is_some())))
    }
}

/// Says a last thing, then ends the connection in order. A client that is still sending is listened to for a moment: to
/// close on unread bytes is a reset, which would take the last words with it.
pub async fn farewell(client: &mut Stream, words: &[u8]) {
    let talk = async {
        client.write_all(words).await?;
        client.shutdown().await?;
        let mut unread = [0; 512];
        while client.read(&mut unread).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    // One that has gone hears nothing, and one that goes on talking is cut off.
    let _ = timeout(LAST_WORDS, talk).await;
}

#[cfg(test)]
#[path = "carry_test.rs"]
mod tests;
