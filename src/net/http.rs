//! HTTP and HTTPS for load balancers, exporters and scripts: one request for each connection, HTTP/1.0 and 1.1.
//!
//! A server has a thread and a runtime of its own, so that neither a flood of connections nor TLS handshakes (about 1 ms each
//! with RSA) keep anybody else in the process from its work. Whoever has said nothing yet, or doesn't take its answer, waits in
//! the [lobby](super::lobby) and goes when too many others come; only operations have places.

use std::{
    convert::Infallible,
    fmt, io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, OwnedFd},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use http_body_util::{BodyExt as _, Full};
pub use hyper::{Method, header};
use hyper::{
    Request, Response, StatusCode,
    body::{Body, Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderName, HeaderValue},
    http::request::Parts,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
    select,
    sync::oneshot,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    lobby::{Lobby, Ticket},
    tls::Tls,
};

/// Operations at one time; who wants one more is told to come again.
const AT_ONCE: usize = 128;
/// So many may say nothing, or not take their answers, at one time.
const SILENT: usize = 256;
/// Connections of one server at most, all told.
pub const MOST: usize = AT_ONCE + SILENT;
/// A client has so long to say what it wants, and twice that to take the answer.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// The largest body that is taken, in bytes.
pub const BODY_MAX: usize = 64 << 10;
/// So much of a body that is too long is read and thrown away, in bytes.
const DISCARDED: usize = 1 << 20;
/// The longest head of a request, in bytes.
const HEAD_MAX: usize = 16 << 10;
/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 1_024;
/// After the operating system gave no connection.
const PAUSE: Duration = Duration::from_millis(100);

/// A request, as far as it could be read.
#[derive(Debug)]
pub struct Asked {
    /// Verb, path, query and headers.
    pub head: Parts,
    /// What came with it; empty where the verb only reads.
    pub body: Result<Vec<u8>, Unread>,
    /// Who asks.
    pub from: IpAddr,
}

impl Asked {
    /// It changes nothing: `GET`, `HEAD` or `OPTIONS`.
    pub fn reads(&self) -> bool {
        reads(&self.head.method)
    }

    /// What follows the question mark; empty without one.
    pub fn query(&self) -> &str {
        self.head.uri.query().unwrap_or_default()
    }
}

fn reads(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS].contains(method)
}

/// Why a body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unread {
    /// It has more than [`BODY_MAX`] bytes.
    TooLong,
    /// It took more than [`PATIENCE`].
    TooSlow,
    /// It broke off.
    Broken,
}

/// An answer before it is put on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// HTTP's status.
    pub status: u16,
    /// What the body is, as `Content-Type`.
    pub kind: &'static str,
    /// The body. `HEAD` and `OPTIONS` go without.
    pub body: String,
    /// Further headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl Reply {
    /// A document.
    pub fn json(status: u16, body: &serde_json::Value) -> Self {
        Self { status, kind: "application/json", body: body.to_string(), headers: Vec::new() }
    }

    /// Words.
    pub fn text(status: u16, text: impl Into<String>) -> Self {
        Self { status, kind: "text/plain; charset=utf-8", body: text.into(), headers: Vec::new() }
    }

    /// Metrics of Prometheus.
    pub fn metrics(page: String) -> Self {
        Self { status: 200, kind: super::exposition::CONTENT_TYPE, body: page, headers: Vec::new() }
    }

    /// With one more header.
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }
}

/// What becomes of a request.
pub enum Answer {
    /// It is answered.
    Now(Reply),
    /// It soon will be. Whoever waits for that goes, too, when too many others come.
    Soon(Pending),
    /// An operation that takes so long at the longest, with a place of its own: for those who may ask for one.
    Later(Duration, Pending),
}

/// An answer that is looked for once it is polled. It is dropped when the client goes, so what must not be broken off has to be
/// a task of its own.
pub type Pending = Pin<Box<dyn Future<Output = Reply> + Send>>;

/// Who answers.
pub trait Answers: Send + Sync + 'static {
    /// Says what becomes of a request. Called on the server's own thread, and waits for nobody.
    fn answer(self: Arc<Self>, asked: Asked) -> Answer;
}

/// Bound, and not served yet.
#[derive(Debug)]
pub struct Server {
    listener: std::net::TcpListener,
    address: SocketAddr,
    tls: Option<Arc<Tls>>,
}

/// Served until it is dropped; the port is free then.
pub struct Running {
    over: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").finish_non_exhaustive()
    }
}

impl Server {
    /// Listens at `address`. Clients may connect from here on; they are answered once it is started.
    ///
    /// # Errors
    /// The address is taken, or not of this host.
    pub fn bind(address: SocketAddr, tls: Option<Tls>) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let listener = std::net::TcpListener::from(socket);
        let address = listener.local_addr()?;
        Ok(Self { listener, address, tls: tls.map(Arc::new) })
    }

    /// The same with a socket that listens already.
    ///
    /// # Errors
    /// It is none of use.
    pub fn inherit(listener: std::net::TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address, tls: None })
    }

    /// Another descriptor of the socket that listens.
    ///
    /// # Errors
    /// There are too many files.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.listener.as_fd().try_clone_to_owned()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// It talks HTTPS only.
    pub fn encrypts(&self) -> bool {
        self.tls.is_some()
    }

    /// Answers, on a thread of this name (15 bytes at most).
    ///
    /// # Errors
    /// The operating system gives no thread, or nothing to wait for sockets with.
    pub fn start(self, name: &str, answers: impl Answers) -> io::Result<Running> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(self.listener)?
        };
        let (over, end) = oneshot::channel();
        let (tls, answers) = (self.tls, Arc::new(answers));
        let serve = move || run(runtime, listener, tls, answers, end);
        let thread = thread::Builder::new().name(name.to_owned()).spawn(serve)?;
        Ok(Running { over: Some(over), thread: Some(thread) })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.over.take());
        // It waits for nobody, so it ends at once. One that panicked has said so.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn run<A: Answers>(
    runtime: Runtime,
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    answers: Arc<A>,
    end: oneshot::Receiver<()>,
) {
    runtime.block_on(async {
        let fresh = async {
            match &tls {
                Some(tls) => Arc::clone(tls).keep_fresh().await,
                None => std::future::pending().await,
            }
        };
        select! {
            () = serve(listener, tls.clone(), answers) => {}
            () = fresh => {}
            _ = end => {}
        }
    });
    // A certificate may be read from a disk that stands still just now.
    runtime.shutdown_background();
}

async fn serve<A: Answers>(listener: TcpListener, tls: Option<Arc<Tls>>, answers: Arc<A>) {
    let lobby = Lobby::new(AT_ONCE, SILENT);
    let mut clients = JoinSet::new();
    loop {
        let accepted = select! {
            accepted = listener.accept() => accepted,
            Some(_) = clients.join_next() => continue,
        };
        match accepted {
            Ok((client, from)) => {
                let (answers, tls, ticket) = (Arc::clone(&answers), tls.clone(), lobby.enter());
                let number = ticket.number();
                let task = clients.spawn(async move {
                    meet(client, from.ip().to_canonical(), ticket, &answers, tls.as_deref()).await;
                });
                lobby.serves(number, task);
            }
            Err(error) => {
                tracing::warn!(%error, "no connection could be accepted");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn meet<A: Answers>(client: TcpStream, from: IpAddr, ticket: Ticket, answers: &Arc<A>, tls: Option<&Tls>) {
    let Some(tls) = tls else { return converse(client, from, ticket, answers).await };
    match timeout(PATIENCE, tls.accept(client)).await {
        Ok(Ok(client)) => converse(client, from, ticket, answers).await,
        Ok(Err(error)) => tracing::debug!(%error, "a client over HTTP didn't come to terms about TLS"),
        Err(_) => tracing::debug!("a client over HTTP took too long over TLS"),
    }
}

/// How far a connection has come: while it has no place it is in the lobby, and it ends at a time that may be put off.
struct Course {
    ticket: Mutex<Option<Ticket>>,
    end: Mutex<Instant>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Course {
    fn new(ticket: Ticket) -> Self {
        Self { ticket: Mutex::new(Some(ticket)), end: Mutex::new(Instant::now() + 2 * PATIENCE) }
    }

    async fn ends(&self) {
        loop {
            let end = *lock(&self.end);
            if Instant::now() >= end {
                return;
            }
            sleep_until(end).await;
        }
    }

    /// An operation takes its time, and only who may ask for one gets more.
    async fn carry_out(&self, longest: Duration, work: Pending) -> Reply {
        let ticket = lock(&self.ticket).take();
        let place = match ticket.map(Ticket::or_stay) {
            Some(Ok(place)) => place,
            Some(Err(ticket)) => {
                *lock(&self.ticket) = Some(ticket);
                return busy();
            }
            // There is one request for each connection.
            None => return busy(),
        };
        *lock(&self.end) = Instant::now() + longest + 2 * PATIENCE;
        let reply = work.await;
        // Whether it takes the answer is up to the client.
        *lock(&self.ticket) = Some(place.leave());
        reply
    }
}

fn busy() -> Reply {
    Reply::text(503, format!("{AT_ONCE} operations are under way already; nothing was changed, come again\n"))
        .with(header::RETRY_AFTER, HeaderValue::from_static("1"))
}

async fn converse<A: Answers>(
    client: impl AsyncRead + AsyncWrite + Unpin,
    from: IpAddr,
    ticket: Ticket,
    answers: &Arc<A>,
) {
    let course = Course::new(ticket);
    let respond = |request: Request<Incoming>| async {
        let (head, body) = request.into_parts();
        let with_body = ![Method::HEAD, Method::OPTIONS].contains(&head.method);
        // Whoever is refused has sent it all the same, and reads no answer before.
        let body = if reads(&head.method) { Ok(Vec::new()) } else { received(body).await };
        let reply = match Arc::clone(answers).answer(Asked { head, body, from }) {
            Answer::Now(reply) => reply,
            Answer::Soon(pending) => pending.await,
            Answer::Later(longest, work) => course.carry_out(longest, work).await,
        };
        Ok::<_, Infallible>(response(reply, with_body))
    };
    let mut http = http1::Builder::new();
    // One request for each connection: nobody keeps one open.
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false).half_close(true);
    http.max_buf_size(HEAD_MAX);
    let conversation = http.serve_connection(TokioIo::new(client), service_fn(respond));
    // Whoever breaks off, or doesn't read, has what it wanted, or comes again.
    select! {
        ended = conversation => match ended {
            Ok(()) => {}
            Err(error) => tracing::debug!(%error, "a client over HTTP broke off"),
        },
        () = course.ends() => tracing::debug!("a client over HTTP took too long"),
    }
}

/// The body of a request. What is too long is read to its end, within reason: a client that still sends when the connection is
/// closed never sees the answer.
async fn received<B: Body<Data = Bytes> + Unpin>(mut body: B) -> Result<Vec<u8>, Unread> {
    let (mut bytes, mut length) = (Vec::new(), 0_usize);
    let read = async {
        while let Some(frame) = body.frame().await {
            let data = frame.map_err(drop)?.into_data().unwrap_or_default();
            length = length.saturating_add(data.len());
            match length {
                0..=BODY_MAX => bytes.extend_from_slice(&data),
                _ if length > DISCARDED => break,
                _ => bytes.clear(),
            }
        }
        Ok::<_, ()>(())
    };
    match timeout(PATIENCE, read).await {
        Err(_) => Err(Unread::TooSlow),
        Ok(Err(())) => Err(Unread::Broken),
        Ok(Ok(())) if length > BODY_MAX => Err(Unread::TooLong),
        Ok(Ok(())) => Ok(bytes),
    }
}

fn response(reply: Reply, with_body: bool) -> Response<Full<Bytes>> {
    let body = if with_body { reply.body } else { String::new() };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(reply.kind));
    response.headers_mut().extend(reply.headers);
    response
}

#[cfg(test)]
#[path = "http_test.rs"]
mod tests;
