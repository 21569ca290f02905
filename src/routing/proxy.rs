//! One client: read what it opens with, encrypt if that is the router's part, hold
//! it until a backend takes it; then its session begins.
//!
//! The client sees nothing of an attempt that failed: until a backend has
//! answered its packet with anything but "not yet", the packet is kept and sent
//! again, to whoever is the primary by then.

use std::{
    io::{self, Read as _},
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    select,
    sync::{SemaphorePermit, watch},
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::debug;

use super::{
    Access, Unwatched,
    carry::{Ending, carry, farewell},
    desk::{Counts, Desk, Pass, now},
    follower::Follower,
    lobby::Ticket,
    origin::{self, BadOrigin},
    spares::Spares,
    stream::Stream,
    table::{Cut, Port, Stamp, View},
    threads::Arrived,
    tls::Tls,
    wire::{self, Framing, Malformed, Opening},
};

/// A client must have sent its packet by then.
const STARTUP_DEADLINE: Duration = Duration::from_secs(10);
/// A backend must have taken the TCP connection by then.
const CONNECT: Duration = Duration::from_secs(1);
/// How long a server may take to agree on encryption.
const SHAKE_HANDS: Duration = Duration::from_secs(3);
/// Pause before a backend that was not ready is tried again.
const RETRY: Duration = Duration::from_millis(25);
/// Bytes sent to a backend may stay unacknowledged this long: a host that is gone without a word ends its sessions by
/// then, where no decision does so before. To the kernel one that lives and reads nothing, for it waits for a lock or a disk,
/// is no different.
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);
/// What a client or a server says at first fits into this many bytes.
const READ_AHEAD: usize = 1024;
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
    /// No header of the PROXY protocol came, where each client has one.
    #[error(transparent)]
    Origin(#[from] BadOrigin),
    /// The client's bytes open no session.
    #[error("the client sent no startup packet")]
    Malformed(#[from] Malformed),
    /// The client and the router did not come to terms on TLS.
    #[error("shake hands with the client")]
    Handshake(#[source] io::Error),
    /// Plain text, and the router takes none.
    #[error("refused, the session is not encrypted")]
    NotEncrypted,
    /// A commit was not confirmed, and the server would have acknowledged it.
    #[error("ended, a commit's wait for standbys was cancelled")]
    Unconfirmed,
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
    #[error("encrypt: {0}")]
    Encrypt(io::Error),
    #[error("no answer to a TCP connection within {CONNECT:?}, or to a request for encryption within {SHAKE_HANDS:?}")]
    Silent,
    #[error("it closed the connection: {0}")]
    Closed(io::Error),
    #[error("it is starting up or shutting down (SQLSTATE 57P03)")]
    Starting,
}

/// A backend that has answered.
#[derive(Debug)]
struct Link {
    backend: Stream,
    pass: Pass,
    answer: Vec<u8>,
    /// It had been opened before there was a client for it.
    spare: bool,
}

/// Serves one client to its end. Where there is no place for it it is told so, unless it only wants to cancel.
pub async fn serve(desk: Arc<Desk>, access: Access, client: Arrived, from: SocketAddr, port: Port, ticket: Ticket) {
    let (client, spares) = match client.stream() {
        Ok(arrived) => arrived,
        Err(error) => return debug!(?port, %from, %error, "a connection could not be served"),
    };
    // Where headers come first, or TLS that ends here, nothing is read ahead.
    let early = if access.proxied || access.tls.ends_here() { Vec::new() } else { said_already(&client) };
    let client = Stream::Plain(client);
    let counting = Arc::clone(&desk);
    let turn = desk.turn();
    let mut guest = Guest { desk, access, spares, client, early, port, turn };
    let from = guest.origin(from).await;
    let (from, end) = match from {
        Ok(from) => (from, guest.serve(ticket).await),
        Err(end) => (None, Err(end)),
    };
    count(counting.counts(port), end.as_ref().err());
    match end {
        Ok(()) => debug!(?port, ?from, "connection ended"),
        Err(end) => debug!(?port, ?from, end = format!("{:#}", anyhow::Error::new(end)), "connection ended"),
    }
}

fn count(counts: &Counts, end: Option<&End>) {
    let of = match end {
        Some(End::Crowded | End::HeldTooLong { .. } | End::NotEncrypted) => &counts.refused,
        Some(End::Malformed(_) | End::Origin(_) | End::Slow | End::Handshake(_)) => &counts.malformed,
        Some(End::ClientGone(_) | End::Cut(_) | End::Unconfirmed | End::Carry(_)) | None => return,
    };
    of.fetch_add(1, Ordering::Relaxed);
}

struct Guest {
    desk: Arc<Desk>,
    access: Access,
    spares: Arc<Spares>,
    client: Stream,
    /// What the client said before it was answered, where it had to be read to notice that it is still there.
    early: Vec<u8>,
    port: Port,
    /// Which of all connections it is, for taking turns.
    turn: usize,
}

impl Guest {
    /// Where the client comes from, as the load balancer before the router says; `None`: it says nothing, or there is none.
    async fn origin(&mut self, from: SocketAddr) -> Result<Option<SocketAddr>, End> {
        if !self.access.proxied {
            return Ok(Some(from));
        }
        let (client, mut header) = (&mut self.client, Vec::new());
        let read = async {
            fill(client, &mut header, origin::HEAD, 0).await.map_err(End::ClientGone)?;
            let mut head = [0; origin::HEAD];
            head.copy_from_slice(&header[..origin::HEAD]);
            let rest = origin::rest(&head)?;
            fill(client, &mut header, origin::HEAD + rest, 0).await.map_err(End::ClientGone)?;
            Ok(origin::client(&head, &header[origin::HEAD..]))
        };
        timeout(STARTUP_DEADLINE, read).await.unwrap_or(Err(End::Slow))
    }

    async fn serve(mut self, ticket: Ticket) -> Result<(), End> {
        let mut kept: Option<Link> = None;
        let (mut ticket, mut place) = (Some(ticket), None);
        for _ in 0..PACKETS_MAX {
            let (packet, opening) = self.packet().await?;
            // Where TLS ends here nobody waits for anything before it has shaken hands.
            let shakes_hands = matches!(opening, Some(Opening::Tls) | None) && self.access.tls.ends_here();
            if !shakes_hands && let Some(ticket) = ticket.take() {
                place = ticket.take_place();
            }
            let crowded = place.is_none();
            let expect = match opening {
                Some(Opening::Cancel) => return self.cancel(&packet).await,
                Some(Opening::Tls) | None if self.access.tls.ends_here() => {
                    self = self.encrypt(opening.is_none()).await?;
                    continue;
                }
                Some(Opening::Gss) if self.access.tls_required => {
                    self.say(b"N").await?;
                    continue;
                }
                Some(Opening::Tls | Opening::Gss) => Expect::Byte,
                Some(Opening::Startup) => Expect::Message,
                None => Expect::Connection,
            };
            if crowded {
                self.refuse(expect, wire::TOO_MANY_CONNECTIONS, "the router has its maximum of sessions", "").await?;
                if expect == Expect::Byte {
                    continue;
                }
                return Err(End::Crowded);
            }
            if expect == Expect::Message && self.access.tls_required && !self.client.is_encrypted() {
                let detail = "Connect with sslmode=require or stronger.";
                self.refuse(expect, wire::NOT_ALLOWED, "the router takes encrypted sessions only", detail).await?;
                return Err(End::NotEncrypted);
            }
            let mut link = match self.admit(&packet, expect, kept.take()).await {
                Err(End::HeldTooLong { held, why }) => return self.held_too_long(expect, held, why).await,
                other => other?,
            };
            let answer = std::mem::take(&mut link.answer);
            if expect != Expect::Byte || answer != b"N" {
                let unwatched = unwatched(expect, &packet, &answer);
                drop(packet);
                return self.session(link, answer, expect == Expect::Message, unwatched).await;
            }
            self.say(&answer).await?;
            // No encryption: the client goes on in plain text, on the same connection to the backend if it can.
            kept = Some(link);
        }
        Err(End::Slow)
    }

    async fn say(&mut self, words: &[u8]) -> Result<(), End> {
        let said = async {
            self.client.write_all(words).await?;
            self.client.flush().await
        };
        said.await.map_err(End::ClientGone)
    }

    /// Reads one packet; `None` for TLS from the first byte on, of which nothing is read when it ends here.
    async fn packet(&mut self) -> Result<(Vec<u8>, Option<Opening>), End> {
        // Where TLS may follow that ends here, not a byte of it is read.
        let (exactly, client) = (self.access.tls.ends_here() && !self.client.is_encrypted(), &mut self.client);
        let (early, ahead) = (&mut self.early, if exactly { 0 } else { READ_AHEAD });
        let read = async {
            if let Stream::Plain(client) = client
                && exactly
            {
                let mut first = [0; 1];
                client.peek(&mut first).await.map_err(End::ClientGone)?;
                if first == [wire::TLS_HANDSHAKE] {
                    return Ok((Vec::new(), None));
                }
            }
            fill(client, early, 4, ahead).await.map_err(End::ClientGone)?;
            let head = [early[0], early[1], early[2], early[3]];
            let rest = match wire::framing(head)? {
                Framing::Rest(rest) => rest,
                // TLS within TLS is as little of PostgreSQL's protocol as any other bytes.
                Framing::Tls if client.is_encrypted() => return Err(Malformed::Length(u32::from_be_bytes(head)).into()),
                Framing::Tls => return Ok((std::mem::take(early), None)),
            };
            fill(client, early, 4 + rest, ahead).await.map_err(End::ClientGone)?;
            let more = early.split_off(4 + rest);
            let packet = std::mem::replace(early, more);
            match wire::opening(&packet)? {
                Opening::Tls | Opening::Gss if client.is_encrypted() => Err(Malformed::Again.into()),
                opening => Ok((packet, Some(opening))),
            }
        };
        timeout(STARTUP_DEADLINE, read).await.unwrap_or(Err(End::Slow))
    }

    /// From here on the client is talked to in TLS. `direct`: it began so without asking.
    async fn encrypt(self, direct: bool) -> Result<Self, End> {
        let Self { desk, access, spares, client, early, port, turn } = self;
        let Stream::Plain(mut client) = client else { return Err(Malformed::Again.into()) };
        if !direct {
            client.write_all(b"S").await.map_err(End::ClientGone)?;
        }
        let client = timeout(STARTUP_DEADLINE, access.tls.accept(client, direct)).await;
        let client = client.map_err(|_| End::Slow)?.map_err(End::Handshake)?;
        Ok(Self { desk, access, spares, client, early, port, turn })
    }

    /// Finds a backend that takes the packet, within the bound.
    async fn admit(&mut self, packet: &[u8], expect: Expect, kept: Option<Link>) -> Result<Link, End> {
        let start = Instant::now();
        let views = self.desk.views();
        let mut why = String::new();
        let _held = self.desk.hold_one(self.port);
        let bound = self.client.is_encrypted();
        let (desk, spares, tls) = (&self.desk, &self.spares, &self.access.tls);
        let search = Search { desk, spares, tls, port: self.port, turn: self.turn, packet, expect, bound };
        // Only a session is encrypted by the router: a client that asks whether the server encrypts does so itself.
        let kept = kept.filter(|_| !search.encrypts());
        let link = select! {
            biased;
            link = search.run(kept, &mut why) => Ok(link),
            error = self.client.gone(&mut self.early) => Err(End::ClientGone(error)),
            () = hold_ends(views, start) => Err(End::Slow),
        };
        let counts = self.desk.counts(self.port);
        let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        counts.held_micros.fetch_add(micros, Ordering::Relaxed);
        counts.held_micros_max.fetch_max(micros, Ordering::Relaxed);
        // The reason is borrowed by the search until here.
        link.map_err(|end| match end {
            End::Slow => End::HeldTooLong { held: start.elapsed(), why },
            end => end,
        })
    }

    async fn held_too_long(&mut self, expect: Expect, held: Duration, why: String) -> Result<(), End> {
        let message = self.desk.views().borrow().refusal(self.port, held, now());
        let mut expect = expect;
        for _ in 0..PACKETS_MAX {
            if expect != Expect::Byte {
                break;
            }
            // An error can't be told before the client has said which protocol it speaks.
            self.refuse(expect, "", "", "").await?;
            expect = match self.packet().await? {
                (_, Some(Opening::Tls | Opening::Gss)) => Expect::Byte,
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
            Expect::Message if self.client.is_encrypted() => {
                farewell(&mut self.client, &wire::fatal(sqlstate, message, detail, "")).await;
                return Ok(());
            }
            Expect::Message => wire::fatal(sqlstate, message, detail, ""),
            Expect::Connection => return Ok(()),
        };
        self.say(&bytes).await
    }

    /// Carries a session. `read`: the server's messages can be looked at, and `answer` begins with one.
    async fn session(
        mut self,
        link: Link,
        answer: Vec<u8>,
        read: bool,
        unwatched: Option<Unwatched>,
    ) -> Result<(), End> {
        let Link { mut backend, mut pass, spare, .. } = link;
        let mut follower = read.then(Follower::default);
        let end = follower.as_mut().and_then(|follower| follower.follow(&answer));
        // First, for a client that has its answer may ask at once that its session be cancelled.
        pass.establish(unwatched);
        self.say(&answer[..end.unwrap_or(answer.len())]).await?;
        // Whoever shakes hands with the server at once can't be given one that is opened ahead.
        let connects_ahead = self.access.connect_ahead && !answer.is_empty();
        drop(answer);
        // Before, one word at a time was awaited; and the client has its answer now.
        if let Stream::Plain(backend) = &backend {
            keep_alive(&SockRef::from(backend), Some(UNACKNOWLEDGED));
            if connects_ahead && let Some(stamp) = pass.stamp() {
                self.spares.expect_another(&self.desk, self.port, stamp);
            }
        }
        pass.counts().ahead.fetch_add(u64::from(spare), Ordering::Relaxed);
        if end.is_some() {
            return self.unconfirmed(backend, pass).await;
        }
        let early = std::mem::take(&mut self.early);
        let ending = carry(&mut self.client, &mut backend, early, follower, &mut pass).await;
        if connects_ahead && let Some(stamp) = pass.stamp() {
            self.spares.one_ended(self.port, stamp);
        }
        match ending {
            Ending::Server if self.client.is_encrypted() => {
                // An end that isn't said in TLS could be anybody's doing.
                drop((backend, pass));
                farewell(&mut self.client, b"").await;
                Ok(())
            }
            Ending::Server | Ending::Client => Ok(()),
            Ending::Cut(cut) => Err(End::Cut(cut)),
            Ending::Broken(error) => Err(End::Carry(error)),
            Ending::Drained => {
                pass.counts().drained.fetch_add(1, Ordering::Relaxed);
                // The server's side first, so that it need not wait for this client.
                drop((backend, pass));
                farewell(&mut self.client, &drained()).await;
                Ok(())
            }
            Ending::Unconfirmed => self.unconfirmed(backend, pass).await,
        }
    }

    async fn unconfirmed(&mut self, backend: Stream, pass: Pass) -> Result<(), End> {
        self.desk.turned(&pass.address());
        // The server's side first: whatever else the client had asked for should not be begun.
        drop((backend, pass));
        farewell(&mut self.client, &unconfirmed()).await;
        Err(End::Unconfirmed)
    }

    /// Hands a request to cancel on, and waits for the backend to close, as libpq does.
    async fn cancel(&mut self, packet: &[u8]) -> Result<(), End> {
        let targets = self.desk.cancel_targets(self.port);
        let tls = &self.access.tls;
        let hand_on = targets.iter().map(|address| async move {
            let Ok(backend) = connect(address).await else { return };
            keep_alive(&SockRef::from(&backend), Some(UNACKNOWLEDGED));
            // A key is a secret: it goes encrypted wherever sessions do.
            let Ok(mut backend) = tls.connect(backend, address, false).await else { return };
            if backend.write_all(packet).await.is_ok() && backend.flush().await.is_ok() {
                let _ = backend.read(&mut [0; 1]).await;
            }
        });
        let all = futures_util::future::join_all(hand_on);
        // Nobody is told whether a cancel worked, so neither is the client when it takes too long.
        let _ = timeout(CONNECT * 2, all).await;
        Ok(())
    }
}

/// Why cancelled commits of a session won't be seen, if so.
fn unwatched(expect: Expect, packet: &[u8], answer: &[u8]) -> Option<Unwatched> {
    match (expect, answer) {
        (Expect::Connection, _) | (Expect::Byte, b"S") => Some(Unwatched::TLS),
        (Expect::Byte, b"G") => Some(Unwatched::GSS),
        // An error instead of an answer: nothing will come of it.
        (Expect::Byte, _) => None,
        (Expect::Message, _) => wire::mutes_warnings(packet).then_some(Unwatched::MUTED),
    }
}

/// What a client is told instead of "committed".
fn unconfirmed() -> Vec<u8> {
    wire::fatal(
        wire::OUTCOME_UNKNOWN,
        "the wait for synchronous replication was cancelled, so the outcome of the commit is unknown",
        "The commit is on the primary, and not known to be on a standby: it may or may not survive a failover.",
        "Connect anew and look whether it is there before trying again.",
    )
}

/// What PostgreSQL says to sessions when it is stopped, and what every driver takes for the end of a connection.
fn drained() -> Vec<u8> {
    wire::fatal(
        wire::ADMIN_SHUTDOWN,
        "terminating connection due to administrator command",
        "The server is about to be stopped by a command of the cluster. No transaction was open.",
        "Connect anew.",
    )
}

/// The search for a backend that takes one packet of one client.
#[derive(Clone, Copy)]
struct Search<'a> {
    desk: &'a Arc<Desk>,
    spares: &'a Spares,
    tls: &'a Tls,
    port: Port,
    turn: usize,
    packet: &'a [u8],
    expect: Expect,
    /// The client came in TLS that ends here.
    bound: bool,
}

impl<'a> Search<'a> {
    /// Whether what is found is to be encrypted by the router.
    fn encrypts(&self) -> bool {
        self.expect == Expect::Message && self.tls.goes_on()
    }

    /// Runs until there is one; `why` always says what is in the way.
    async fn run(self, mut kept: Option<Link>, why: &mut String) -> Link {
        let mut views = self.desk.views();
        let mut avoid = Vec::new();
        let mut permit = None;
        loop {
            if let Some(Link { backend, mut pass, spare, .. }) = kept.take() {
                match self.exchange(backend, &mut pass).await {
                    Some(Ok((backend, answer))) => return Link { backend, pass, answer, spare },
                    Some(Err(not_yet)) => *why = format!("the backend was not ready: {not_yet}"),
                    None => {}
                }
            }
            let view = Arc::clone(&views.borrow_and_update());
            let stamp = match view.lead(self.port, self.turn, &avoid, now()) {
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
            if let Some(link) = self.try_spare(&stamp).await {
                return link;
            }
            let Some(mut pass) = self.desk.enter(&stamp, self.port) else { continue };
            match self.attempt(&stamp, &mut pass).await {
                Some(Ok((backend, answer))) => return Link { backend, pass, answer, spare: false },
                Some(Err(not_yet)) => {
                    *why = format!("{} ({}): {not_yet}", stamp.backend.member, stamp.backend.address);
                    avoid.push(stamp.backend.member);
                }
                // Cut: what was tried before is no news any more.
                None => avoid.clear(),
            }
        }
    }

    /// What had been opened ahead; `None` when there is nothing, or it is of no use, which says nothing of the next attempt.
    async fn try_spare(&self, stamp: &Stamp) -> Option<Link> {
        // To a client that shakes hands with the server at once nothing could be said of what went wrong.
        if self.expect == Expect::Connection {
            return None;
        }
        let (backend, mut pass) = self.spares.take(self.port, stamp)?;
        // Its host may have gone since it was opened. A new connection would tell so in that time.
        let answer = timeout(CONNECT, self.exchange(Stream::Plain(backend), &mut pass)).await;
        let (backend, answer) = answer.ok()??.ok()?;
        Some(Link { backend, pass, answer, spare: true })
    }

    /// One attempt; `None` when the state moved on meanwhile.
    async fn attempt(&self, stamp: &Stamp, pass: &mut Pass) -> Option<Result<(Stream, Vec<u8>), NotYet>> {
        let connected = select! {
            biased;
            _ = pass.cut() => return None,
            connected = self.connect(&stamp.backend.address) => connected,
        };
        match connected {
            Ok(backend) => self.exchange(backend, pass).await,
            Err(not_yet) => Some(Err(not_yet)),
        }
    }

    async fn connect(&self, address: &str) -> Result<Stream, NotYet> {
        let backend = connect(address).await?;
        if !self.encrypts() {
            return Ok(Stream::Plain(backend));
        }
        keep_alive(&SockRef::from(&backend), Some(UNACKNOWLEDGED));
        let encrypted = timeout(SHAKE_HANDS, self.tls.connect(backend, address, self.bound)).await;
        encrypted.map_err(|_| NotYet::Silent)?.map_err(NotYet::Encrypt)
    }

    /// Sends the packet and reads as much of the answer as decides.
    async fn exchange(&self, mut backend: Stream, pass: &mut Pass) -> Option<Result<(Stream, Vec<u8>), NotYet>> {
        let talk = async {
            backend.write_all(self.packet).await.map_err(NotYet::Closed)?;
            backend.flush().await.map_err(NotYet::Closed)?;
            answer(&mut backend, self.expect, self.encrypts() && !self.bound).await
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

/// Waits until who came at `start` is held no longer: at the bound, or as soon as the cluster is stopped by command, for
/// nobody knows when it is started again.
async fn hold_ends(mut views: watch::Receiver<Arc<View>>, start: Instant) {
    loop {
        let bound = start + views.borrow_and_update().hold();
        // It can't fail to change: the desk that sends lives as long as who waits.
        if timeout_at(bound, views.changed()).await.is_err() {
            return;
        }
    }
}

/// Its options are still the kernel's: nobody is kept waiting for them.
async fn connect(address: &str) -> Result<TcpStream, NotYet> {
    let backend = timeout(CONNECT, TcpStream::connect(address)).await;
    backend.map_err(|_| NotYet::Silent)?.map_err(NotYet::Connect)
}

/// What a client has said already. Most have by the time they are accepted, and to look takes less than to be told.
fn said_already(client: &TcpStream) -> Vec<u8> {
    let mut bytes = [0; READ_AHEAD];
    // Nothing yet, its end, or an error: whoever reads next meets with it.
    let read = (&*SockRef::from(client)).read(&mut bytes).unwrap_or(0);
    bytes[..read].to_vec()
}

/// Options that fail leave a connection that works, only slower to notice a dead peer.
pub fn keep_alive(socket: &SockRef<'_>, unacknowledged: Option<Duration>) {
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

/// Reads the backend's answer as far as `expect` needs it. `unbound`: it is encrypted on the backend's side only.
async fn answer(backend: &mut Stream, expect: Expect, unbound: bool) -> Result<Vec<u8>, NotYet> {
    let mut out = Vec::new();
    match expect {
        Expect::Connection => {}
        Expect::Byte => {
            out.resize(1, 0);
            backend.read_exact(&mut out).await.map_err(NotYet::Closed)?;
        }
        Expect::Message => first_message(backend, &mut out, unbound).await?,
    }
    Ok(out)
}

/// Reads until it is known whether it is a "not yet". What has come with that goes to the client as well.
async fn first_message(backend: &mut Stream, out: &mut Vec<u8>, unbound: bool) -> Result<(), NotYet> {
    let mut start = 0;
    // A peer that keeps negotiating is not PostgreSQL; what it said goes to the client as it is.
    while start <= wire::ANSWER_MAX {
        // The first byte decides, except for an error, for the one message that may come before it, and for an
        // offer that has to be altered.
        fill(backend, out, start + 1, READ_AHEAD).await.map_err(NotYet::Closed)?;
        let kind = out[start];
        if kind != b'E' && kind != b'v' && !(unbound && kind == b'R') {
            break;
        }
        fill(backend, out, start + 5, READ_AHEAD).await.map_err(NotYet::Closed)?;
        let head = [out[start + 1], out[start + 2], out[start + 3], out[start + 4]];
        let Some(length) = wire::body_length(head) else { break };
        let end = start + 5 + length;
        fill(backend, out, end, READ_AHEAD).await.map_err(NotYet::Closed)?;
        match kind {
            b'E' if wire::sqlstate(&out[start + 5..end]) == Some(wire::CANNOT_CONNECT_NOW) => {
                return Err(NotYet::Starting);
            }
            b'R' => {
                if let Some(altered) = wire::without_channel_binding(&out[start..end]) {
                    out.splice(start..end, altered);
                }
                break;
            }
            b'v' => start = end,
            _ => break,
        }
    }
    Ok(())
}

/// Reads until there are `wanted` bytes, and at most `ahead` more.
async fn fill(from: &mut Stream, bytes: &mut Vec<u8>, wanted: usize, ahead: usize) -> io::Result<()> {
    while bytes.len() < wanted {
        let limit = wanted + ahead - bytes.len();
        bytes.reserve(limit);
        if (&mut *from).take(limit as u64).read_buf(bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}
