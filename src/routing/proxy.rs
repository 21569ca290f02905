//! One client: read what it opens with, hold it until a backend takes it, then
//! carry bytes both ways until one side ends or the state says so.
//!
//! The client sees nothing of an attempt that failed: until a backend has
//! answered its packet with anything but "not yet", the packet is kept and sent
//! again, to whoever is the primary by then.

use std::{io, sync::Arc, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::TcpStream,
    select,
    sync::{SemaphorePermit, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::debug;

use super::{
    desk::{Desk, Pass, now},
    table::{Cut, Port, Stamp, View},
    wire::{self, Framing, Malformed, Opening},
};

/// A client must have sent its packet by then.
const STARTUP_DEADLINE: Duration = Duration::from_secs(10);
/// A backend must have taken the TCP connection by then.
const CONNECT: Duration = Duration::from_secs(1);
/// Pause before a backend that was not ready is tried again.
const RETRY: Duration = Duration::from_millis(25);
/// Bytes sent to a backend may stay unacknowledged this long: a host that is
/// gone without a word ends its sessions by then.
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);
/// Time for a backend's last message after it has stopped to read.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Both requests to encrypt, and then the session itself.
const PACKETS_MAX: usize = 3;

/// How a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The client stopped talking before it had a session.
    #[error("the client went away")]
    ClientGone(#[source] io::Error),
    /// The client took too long to say what it wants.
    #[error("the client sent no startup packet within {STARTUP_DEADLINE:?}")]
    Slow,
    /// The client's bytes open no session.
    #[error("the client sent no startup packet")]
    Malformed(#[from] Malformed),
    /// There are too many sessions already.
    #[error("refused, the router has its maximum of sessions")]
    Crowded,
    /// There was no backend within the bound.
    #[error("refused after it was held for {:.1} s: {why}", held.as_secs_f64())]
    HeldTooLong {
        /// How long.
        held: Duration,
        /// What was in the way at last.
        why: String,
    },
    /// The state said so.
    #[error("cut: {0:?}")]
    Cut(Cut),
    /// A socket failed in the middle of the session.
    #[error("carry bytes between client and backend")]
    Carry(#[source] io::Error),
}

/// What a backend has to answer before the client may know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// One byte: whether it encrypts.
    Byte,
    /// A message that isn't "not yet".
    Message,
    /// Nothing: what comes is encrypted.
    Connection,
}

/// Why a backend does not take a session now.
#[derive(Debug, thiserror::Error)]
enum NotYet {
    #[error("connect: {0}")]
    Connect(io::Error),
    #[error("no TCP connection within {CONNECT:?}")]
    Silent,
    #[error("it closed the connection: {0}")]
    Closed(io::Error),
    #[error("it is starting up or shutting down (SQLSTATE 57P03)")]
    Starting,
}

/// A backend that has answered.
#[derive(Debug)]
struct Link {
    backend: TcpStream,
    pass: Pass,
    answer: Vec<u8>,
}

/// Serves one client to its end. With `crowded` it is told that there is no room,
/// unless it only wants to cancel.
pub async fn serve(desk: Arc<Desk>, client: TcpStream, port: Port, crowded: bool) {
    keep_alive(&client, None);
    match (Guest { desk, client, port }).serve(crowded).await {
        Ok(()) => debug!(?port, "connection ended"),
        Err(end) => debug!(?port, end = format!("{:#}", anyhow::Error::new(end)), "connection ended"),
    }
}

struct Guest {
    desk: Arc<Desk>,
    client: TcpStream,
    port: Port,
}

impl Guest {
    async fn serve(mut self, crowded: bool) -> Result<(), End> {
        let mut kept: Option<Link> = None;
        for _ in 0..PACKETS_MAX {
            let (packet, expect) = match self.packet().await? {
                (packet, Some(Opening::Cancel)) => return self.cancel(&packet).await,
                (packet, Some(Opening::Encryption)) => (packet, Expect::Byte),
                (packet, Some(Opening::Startup)) => (packet, Expect::Message),
                (packet, None) => (packet, Expect::Connection),
            };
            if crowded {
                self.refuse(expect, wire::TOO_MANY_CONNECTIONS, "the router has its maximum of sessions", "").await?;
                if expect == Expect::Byte {
                    continue;
                }
                return Err(End::Crowded);
            }
            let mut link = match self.admit(&packet, expect, kept.take()).await {
                Err(End::HeldTooLong { held, why }) => return self.held_too_long(expect, held, why).await,
                other => other?,
            };
            let answer = std::mem::take(&mut link.answer);
            self.client.write_all(&answer).await.map_err(End::ClientGone)?;
            if expect != Expect::Byte || answer != b"N" {
                drop(packet);
                return self.splice(link).await;
            }
            // No encryption: the client goes on in plain text, on the same connection to the backend if it can.
            kept = Some(link);
        }
        Err(End::Slow)
    }

    /// Reads one packet and not a byte more; `None` for TLS from the first byte on.
    async fn packet(&mut self) -> Result<(Vec<u8>, Option<Opening>), End> {
        let read = async {
            let mut packet = vec![0; 4];
            self.client.read_exact(&mut packet).await.map_err(End::ClientGone)?;
            let head = [packet[0], packet[1], packet[2], packet[3]];
            let Framing::Rest(rest) = wire::framing(head)? else { return Ok((packet, None)) };
            packet.resize(4 + rest, 0);
            self.client.read_exact(&mut packet[4..]).await.map_err(End::ClientGone)?;
            let opening = wire::opening(&packet)?;
            Ok((packet, Some(opening)))
        };
        timeout(STARTUP_DEADLINE, read).await.unwrap_or(Err(End::Slow))
    }

    /// Finds a backend that takes the packet, within the bound.
    async fn admit(&mut self, packet: &[u8], expect: Expect, kept: Option<Link>) -> Result<Link, End> {
        let start = Instant::now();
        let hold = self.desk.views().borrow().bounds.hold;
        let mut why = String::new();
        let _held = self.desk.hold_one();
        let search = Search { desk: &self.desk, port: self.port, packet, expect };
        let link = select! {
            biased;
            link = search.run(kept, &mut why) => Ok(link),
            error = gone(&self.client) => Err(End::ClientGone(error)),
            () = sleep_until(start + hold) => Err(End::Slow),
        };
        // The reason is borrowed by the search until here.
        link.map_err(|end| match end {
            End::Slow => End::HeldTooLong { held: start.elapsed(), why },
            end => end,
        })
    }

    async fn held_too_long(&mut self, expect: Expect, held: Duration, why: String) -> Result<(), End> {
        let message = self.desk.views().borrow().refusal(self.port, held, now());
        let mut expect = expect;
        while expect == Expect::Byte {
            // An error can't be told before the client has said which protocol it speaks.
            self.refuse(expect, "", "", "").await?;
            expect = match self.packet().await? {
                (_, Some(Opening::Encryption)) => Expect::Byte,
                (_, Some(Opening::Startup)) => Expect::Message,
                (_, Some(Opening::Cancel) | None) => Expect::Connection,
            };
        }
        self.refuse(expect, wire::CANNOT_CONNECT_NOW, &message, &why).await?;
        Err(End::HeldTooLong { held, why })
    }

    /// Tells the client so, as far as it can be told anything at this point.
    async fn refuse(&mut self, expect: Expect, sqlstate: &str, message: &str, detail: &str) -> Result<(), End> {
        let bytes = match expect {
            Expect::Byte => b"N".to_vec(),
            Expect::Message => wire::fatal(sqlstate, message, detail),
            Expect::Connection => return Ok(()),
        };
        self.client.write_all(&bytes).await.map_err(End::ClientGone)
    }

    async fn splice(mut self, link: Link) -> Result<(), End> {
        let Link { mut backend, mut pass, .. } = link;
        pass.establish();
        let (mut from_client, mut to_client) = self.client.split();
        let (mut from_backend, mut to_backend) = backend.split();
        let up = async {
            let carried = copy(&mut from_client, &mut to_backend).await;
            // The backend may have more to say, so only its input ends here.
            let _ = to_backend.shutdown().await;
            let Err(error) = carried else { return std::future::pending().await };
            // A backend that was told to stop takes no bytes, but why it stops is on its way.
            sleep(LAST_WORDS).await;
            error
        };
        // When the backend ends the session, so does this: a client that doesn't notice must not hold a place.
        select! {
            biased;
            cut = pass.cut() => Err(End::Cut(cut)),
            carried = copy(&mut from_backend, &mut to_client) => carried.map(drop).map_err(End::Carry),
            error = up => Err(End::Carry(error)),
        }
    }

    /// Hands a request to cancel on, and waits for the backend to close, as libpq does.
    async fn cancel(&mut self, packet: &[u8]) -> Result<(), End> {
        let targets = self.desk.cancel_targets(self.port);
        let hand_on = targets.iter().map(|address| async move {
            let Ok(mut backend) = connect(address).await else { return };
            if backend.write_all(packet).await.is_ok() {
                let _ = backend.read(&mut [0; 1]).await;
            }
        });
        let all = futures_util::future::join_all(hand_on);
        // Nobody is told whether a cancel worked, so neither is the client when it takes too long.
        let _ = timeout(CONNECT * 2, all).await;
        Ok(())
    }
}

/// Ends when the client has gone. One that talks before it was answered has not.
async fn gone(client: &TcpStream) -> io::Error {
    match client.peek(&mut [0; 1]).await {
        Ok(0) => io::ErrorKind::UnexpectedEof.into(),
        Ok(_) => std::future::pending().await,
        Err(error) => error,
    }
}

/// The search for a backend that takes one packet of one client.
#[derive(Clone, Copy)]
struct Search<'a> {
    desk: &'a Arc<Desk>,
    port: Port,
    packet: &'a [u8],
    expect: Expect,
}

impl<'a> Search<'a> {
    /// Runs until there is one; `why` always says what is in the way.
    async fn run(self, mut kept: Option<Link>, why: &mut String) -> Link {
        let mut views = self.desk.views();
        let turn = self.desk.turn();
        let mut avoid = Vec::new();
        let mut permit = None;
        loop {
            if let Some(mut link) = kept.take() {
                match self.exchange(link.backend, &mut link.pass).await {
                    Some(Ok((backend, answer))) => return Link { backend, answer, pass: link.pass },
                    Some(Err(not_yet)) => *why = format!("the backend was not ready: {not_yet}"),
                    None => {}
                }
            }
            let view = Arc::clone(&views.borrow_and_update());
            let stamp = match view.lead(self.port, turn, &avoid, now()) {
                Ok(stamp) => stamp,
                Err(closed) if avoid.is_empty() => {
                    *why = closed.to_string();
                    permit = None;
                    // A confirmation is news too. It can't fail: the desk that sends lives as long as this.
                    let _ = views.changed().await;
                    continue;
                }
                Err(_) => {
                    avoid.clear();
                    permit = self.pause(&mut views, &view, permit).await;
                    continue;
                }
            };
            let Some(mut pass) = self.desk.enter(&stamp, self.port) else { continue };
            match self.attempt(&stamp, &mut pass).await {
                Some(Ok((backend, answer))) => return Link { backend, answer, pass },
                Some(Err(not_yet)) => {
                    *why = format!("{} ({}): {not_yet}", stamp.backend.member, stamp.backend.address);
                    avoid.push(stamp.backend.member);
                }
                // Cut: what was tried before is no news any more.
                None => avoid.clear(),
            }
        }
    }

    /// One attempt; `None` when the state moved on meanwhile.
    async fn attempt(&self, stamp: &Stamp, pass: &mut Pass) -> Option<Result<(TcpStream, Vec<u8>), NotYet>> {
        let connected = select! {
            biased;
            _ = pass.cut() => return None,
            connected = connect(&stamp.backend.address) => connected,
        };
        match connected {
            Ok(backend) => self.exchange(backend, pass).await,
            Err(not_yet) => Some(Err(not_yet)),
        }
    }

    /// Sends the packet and reads as much of the answer as decides.
    async fn exchange(&self, mut backend: TcpStream, pass: &mut Pass) -> Option<Result<(TcpStream, Vec<u8>), NotYet>> {
        let talk = async {
            backend.write_all(self.packet).await.map_err(NotYet::Closed)?;
            answer(&mut backend, self.expect).await
        };
        let answer = select! {
            biased;
            _ = pass.cut() => return None,
            answer = talk => answer,
        };
        Some(answer.map(|answer| (backend, answer)))
    }

    /// After a failed attempt: wait a little, or queue behind those who wait
    /// already, but not longer than the state stays what it was.
    async fn pause(
        &self,
        views: &mut watch::Receiver<Arc<View>>,
        tried: &View,
        permit: Option<SemaphorePermit<'a>>,
    ) -> Option<SemaphorePermit<'a>> {
        let knock = async {
            if let Some(permit) = permit {
                sleep(RETRY).await;
                drop(permit);
            }
            self.desk.knocking(self.port).acquire().await.ok()
        };
        select! {
            permit = knock => permit,
            _ = views.wait_for(|view| view.place() != tried.place()) => None,
        }
    }
}

async fn connect(address: &str) -> Result<TcpStream, NotYet> {
    let backend = timeout(CONNECT, TcpStream::connect(address)).await;
    let backend = backend.map_err(|_| NotYet::Silent)?.map_err(NotYet::Connect)?;
    keep_alive(&backend, Some(UNACKNOWLEDGED));
    Ok(backend)
}

/// Options that fail leave a connection that works, only slower to notice a dead peer.
fn keep_alive(stream: &TcpStream, unacknowledged: Option<Duration>) {
    let socket = SockRef::from(stream);
    let (idle, interval) = if unacknowledged.is_some() { (10, 3) } else { (60, 10) };
    let probes = TcpKeepalive::new()
        .with_time(Duration::from_secs(idle))
        .with_interval(Duration::from_secs(interval))
        .with_retries(3);
    let results = [
        socket.set_tcp_nodelay(true),
        socket.set_tcp_keepalive(&probes),
        unacknowledged.map_or(Ok(()), |limit| socket.set_tcp_user_timeout(Some(limit))),
    ];
    for error in results.into_iter().filter_map(Result::err) {
        debug!(%error, "a socket option could not be set");
    }
}

/// Reads the backend's answer as far as `expect` needs it.
async fn answer(backend: &mut TcpStream, expect: Expect) -> Result<Vec<u8>, NotYet> {
    let mut out = Vec::new();
    match expect {
        Expect::Connection => {}
        Expect::Byte => {
            out.resize(1, 0);
            backend.read_exact(&mut out).await.map_err(NotYet::Closed)?;
        }
        Expect::Message => loop {
            let start = out.len();
            out.resize(start + 5, 0);
            // The first byte decides, except for an error, and for the one message that may come before it.
            backend.read_exact(&mut out[start..=start]).await.map_err(NotYet::Closed)?;
            let kind = out[start];
            if kind != b'E' && kind != b'v' {
                out.truncate(start + 1);
                break;
            }
            backend.read_exact(&mut out[start + 1..]).await.map_err(NotYet::Closed)?;
            let head = [out[start + 1], out[start + 2], out[start + 3], out[start + 4]];
            let Some(length) = wire::body_length(head) else { break };
            out.resize(start + 5 + length, 0);
            backend.read_exact(&mut out[start + 5..]).await.map_err(NotYet::Closed)?;
            if kind == b'E' {
                if wire::sqlstate(&out[start + 5..]) == Some(wire::CANNOT_CONNECT_NOW) {
                    return Err(NotYet::Starting);
                }
                break;
            }
            // A peer that keeps negotiating is not PostgreSQL; what it said goes to the client as it is.
            if out.len() > wire::ANSWER_MAX {
                break;
            }
        },
    }
    Ok(out)
}
