//! The API of Patroni, for the health checks, exporters, plugins and scripts that people have: a face of the manager, over
//! HTTP and HTTPS.
//!
//! It answers by what the manager knows. What changes something goes by the admin service, as for any other operator's tool.
//! What is there, and what differs from Patroni, is in docs/rest.md. Pure are `asked` and `orders`, which read a request,
//! `access`, who may change something, `facts` and `told`, what an answer may go by, and `health`, `documents` and
//! `metrics`, which answer; `perform` carries out.

mod access;
mod asked;
mod documents;
mod facts;
mod health;
mod metrics;
mod orders;
mod perform;
#[cfg(test)]
mod tests;
mod tls;
mod told;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body, Bytes, Incoming},
    header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

use crate::{
    config::Config,
    domain::MemberId,
    manager::{ManagerHandle, view::SeenMember},
    rpc::v1::admin_server::Admin,
    telemetry::events,
};
use access::{Access, Denied};
use asked::{Conditions, Document, Place, Question};
use facts::{Facts, Known};
use told::Shown;

/// The Patroni whose words these are. Plugins go by it: to one that is older than 3.0.4 no state but `running` is healthy.
const SPOKEN: &str = "4.1.4";
/// Requests that are being answered at one time; more wait to be accepted.
const AT_ONCE: usize = 128;
/// A client has so long to say what it wants, and twice that to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// So much of a body that is too long is read and thrown away, in bytes.
const DISCARDED: usize = 1 << 20;
/// After the operating system gave no connection.
const PAUSE: Duration = Duration::from_millis(100);

/// Bound, and not served yet.
pub struct Rest {
    listener: TcpListener,
    listen: SocketAddr,
    access: Access,
    tls: Option<Arc<tls::Tls>>,
}

impl Rest {
    /// Listens where the configuration says; `None`: nowhere.
    ///
    /// # Errors
    /// The address is taken, or not of this host; the password or the certificate can't be used.
    pub async fn bind(config: &Config) -> anyhow::Result<Option<Self>> {
        let Some(rest) = &config.rest else { return Ok(None) };
        let access = Access::load(rest).map_err(|error| config.told("rest.password_file", &error.to_string()))?;
        let tls = rest.certificate.clone().map(tls::Tls::load).transpose();
        let tls = tls.map_err(|error| config.told(error.key, &error.told))?.map(Arc::new);
        let listen = rest.listen;
        let bound = TcpListener::bind(listen).await;
        let listener = bound.map_err(|error| config.cannot_listen("rest.listen", &listen.to_string(), &error))?;
        Ok(Some(Self { listener, listen, access, tls }))
    }

    /// Answers for as long as it is polled.
    pub async fn serve(self, manager: ManagerHandle, admin: impl Admin) {
        let Self { listener, listen, access, tls } = self;
        let room = Arc::new(Semaphore::new(AT_ONCE));
        tracing::info!(%listen, tls = tls.is_some(), "answers in Patroni's words");
        if let Some(tls) = &tls {
            tokio::spawn(Arc::clone(tls).keep_fresh());
        }
        let scheme = if tls.is_some() { "https" } else { "http" };
        let desk = Arc::new(Desk { manager, admin, access, api: (scheme, listen.port()) });
        loop {
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((client, from)) => {
                    let (desk, tls) = (Arc::clone(&desk), tls.clone());
                    tokio::spawn(async move {
                        let _permit = permit;
                        meet(client, from.ip().to_canonical(), &desk, tls.as_deref()).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "no connection could be accepted");
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

/// What every request is answered with.
struct Desk<A> {
    manager: ManagerHandle,
    admin: A,
    access: Access,
    /// How and at which port it answers.
    api: (&'static str, u16),
}

async fn meet<A: Admin>(client: TcpStream, from: IpAddr, desk: &Arc<Desk<A>>, tls: Option<&tls::Tls>) {
    let Some(tls) = tls else { return converse(client, from, desk).await };
    match timeout(PATIENCE, tls.accept(client)).await {
        Ok(Ok(client)) => converse(client, from, desk).await,
        Ok(Err(error)) => tracing::debug!(%error, "a client of the API didn't come to terms about TLS"),
        Err(_) => tracing::debug!("a client of the API took too long over TLS"),
    }
}

async fn converse<A: Admin>(client: impl AsyncRead + AsyncWrite + Unpin, from: IpAddr, desk: &Arc<Desk<A>>) {
    // An operation takes its time, and only who may ask for one gets more.
    let works = AtomicBool::new(false);
    let respond = |request: Request<Incoming>| {
        let reply = desk.respond(request, from, &works);
        async move { Ok::<_, Infallible>(reply.await) }
    };
    let mut http = http1::Builder::new();
    // One request for each connection: nobody keeps one open.
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false).half_close(true);
    let conversation = http.serve_connection(TokioIo::new(client), service_fn(respond));
    let too_long = async {
        sleep(2 * PATIENCE).await;
        if works.load(Ordering::Relaxed) {
            sleep(perform::FOLLOWED + 2 * PATIENCE).await;
        }
    };
    // Whoever breaks off, or doesn't read, has what it wanted, or comes again.
    tokio::select! {
        ended = conversation => match ended {
            Ok(()) => {}
            Err(error) => tracing::debug!(%error, "a client of the API broke off"),
        },
        () = too_long => tracing::debug!("a client of the API took too long"),
    }
}

/// An answer before it is put on the wire.
#[derive(Debug, PartialEq, Eq)]
struct Reply {
    status: u16,
    kind: &'static str,
    body: String,
}

impl Reply {
    fn json(status: u16, body: &serde_json::Value) -> Self {
        Self { status, kind: "application/json", body: body.to_string() }
    }

    fn text(status: u16, text: impl Into<String>) -> Self {
        Self { status, kind: "text/plain; charset=utf-8", body: text.into() }
    }

    fn denied(denied: Denied) -> Self {
        Self::text(denied.status(), format!("{}\n", denied.says()))
    }

    fn without_body(self) -> Self {
        Self { body: String::new(), ..self }
    }
}

impl<A: Admin> Desk<A> {
    async fn respond(
        self: &Arc<Self>,
        request: Request<Incoming>,
        from: IpAddr,
        works: &AtomicBool,
    ) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let (method, path) = (head.method, head.uri.path().to_owned());
        if [Method::GET, Method::HEAD, Method::OPTIONS].contains(&method) {
            let reply = self.read(&path, head.uri.query().unwrap_or_default()).await;
            return response(&path, if method == Method::GET { reply } else { reply.without_body() });
        }
        // Whoever is refused has sent it all the same, and reads no answer before.
        let body = received(body).await;
        let Some(change) = orders::change(method.as_str(), &path) else {
            return response(&path, no_such(&path, &method));
        };
        let authorization = head.headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
        let user = match self.access.admit(from, authorization) {
            Ok(user) => user.to_owned(),
            Err(denied) => {
                tracing::info!(event = events::REST_REFUSED, client = %from, %method, path, error = denied.says(), "a change was refused");
                return response(&path, Reply::denied(denied));
            }
        };
        let order = body.and_then(|body| orders::order(change, &body));
        works.store(order.is_ok(), Ordering::Relaxed);
        // Whoever hangs up meanwhile stops nothing: what has begun comes to its end, and into the log.
        let (desk, asked_for) = (Arc::clone(self), path.clone());
        let work = tokio::spawn(async move {
            let reply = desk.carry_out(&user, order).await;
            let status = reply.status;
            tracing::info!(event = events::REST_CHANGE, user, client = %from, %method, path = asked_for, status, "a change was asked for");
            reply
        });
        let lost = |_| Reply::text(500, "the manager broke off: look at its log, and whether it was done\n");
        response(&path, work.await.unwrap_or_else(lost))
    }

    async fn carry_out(&self, user: &str, order: Result<orders::Order, Reply>) -> Reply {
        match order {
            Ok(order) => {
                let config = || self.look(|facts| Reply::json(200, &documents::config(facts)));
                perform::perform(&self.manager, &self.admin, perform::Asked { user, order }, config).await
            }
            Err(refusal) => refusal,
        }
    }

    async fn read(&self, path: &str, query: &str) -> Reply {
        let told = match asked::place(path) {
            Some(Place::Document(Document::Cluster)) => perform::members(&self.manager, &self.admin).await,
            Some(Place::Document(_) | Place::Question(_)) | None => BTreeMap::new(),
        };
        self.look(|facts| answer(path, query, facts, &told))
    }

    fn look<T>(&self, answer: impl FnOnce(&Facts<'_>) -> T) -> T {
        look(&self.manager, self.api, answer)
    }
}

/// The body of a request that changes something. What is too long is read to its end, within reason: a client that still
/// sends when the connection is closed never sees the answer.
async fn received<B: Body<Data = Bytes> + Unpin>(mut body: B) -> Result<Vec<u8>, Reply> {
    let (mut bytes, mut length) = (Vec::new(), 0_usize);
    let read = async {
        while let Some(frame) = body.frame().await {
            let data = frame.map_err(drop)?.into_data().unwrap_or_default();
            length = length.saturating_add(data.len());
            match length {
                0..=orders::BODY_MAX => bytes.extend_from_slice(&data),
                _ if length > DISCARDED => break,
                _ => bytes.clear(),
            }
        }
        Ok::<_, ()>(())
    };
    match timeout(PATIENCE, read).await {
        Err(_) => {
            Err(Reply::text(408, format!("the body took more than {} s; nothing was changed\n", PATIENCE.as_secs())))
        }
        Ok(Err(())) => Err(Reply::text(400, "the body broke off; nothing was changed\n")),
        Ok(Ok(())) if length > orders::BODY_MAX => {
            Err(Reply::text(413, format!("the body has more than {} bytes; nothing was changed\n", orders::BODY_MAX)))
        }
        Ok(Ok(())) => Ok(bytes),
    }
}

/// A verb that isn't offered, or not there.
fn no_such(path: &str, method: &Method) -> Reply {
    match asked::place(path).is_some() || orders::verbs(path).next().is_some() {
        true => Reply::text(405, format!("{method} is not offered at {path}; docs/rest.md has what is there\n")),
        false => unknown(path),
    }
}

fn unknown(path: &str) -> Reply {
    Reply::text(404, format!("{path} is unknown here; docs/rest.md has what is there\n"))
}

/// The verbs that a path has.
fn allowed(path: &str) -> String {
    let reads = asked::place(path).is_some().then_some("GET, HEAD, OPTIONS");
    reads.into_iter().chain(orders::verbs(path)).collect::<Vec<_>>().join(", ")
}

fn response(path: &str, reply: Reply) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(reply.body)));
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(reply.kind));
    if reply.status == 405
        && let Ok(verbs) = HeaderValue::from_str(&allowed(path))
    {
        headers.insert(ALLOW, verbs);
    }
    if reply.status == 401 {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"Matriarch\", charset=\"UTF-8\""));
    }
    response
}

/// Gathers what an answer may go by.
fn look<T>(manager: &ManagerHandle, api: (&'static str, u16), answer: impl FnOnce(&Facts<'_>) -> T) -> T {
    let (state, own, seen) = (manager.state(), manager.own(), manager.seen());
    let members = state.members.iter().map(|(id, member)| {
        let postgres = member.postgres.rsplit_once(':');
        let (host, number) = postgres.unwrap_or((member.postgres.as_str(), ""));
        let agent = seen.get(id).and_then(|seen: &SeenMember| seen.agent.as_ref());
        (id.clone(), Known { agent, postgres: (host, number.parse().unwrap_or_default()) })
    });
    let members = members.collect();
    answer(&Facts {
        state: &state,
        scope: &manager.config().cluster.name,
        me: manager.me(),
        own: own.as_ref().map(|(agent, ago)| (agent, *ago)),
        members: &members,
        confirmed: manager.confirmed_age(),
        stale_after: manager.stale_after(),
        now: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(),
        api,
    })
}

/// The answer to a request that reads.
fn answer(path: &str, query: &str, facts: &Facts<'_>, told: &BTreeMap<MemberId, Shown>) -> Reply {
    match asked::place(path) {
        Some(Place::Question(question)) => check(question, query, facts),
        Some(Place::Document(Document::Host)) => Reply::json(200, &documents::host(facts)),
        Some(Place::Document(Document::Cluster)) => Reply::json(200, &documents::cluster(facts, told)),
        Some(Place::Document(Document::History)) => Reply::json(200, &documents::history(facts)),
        Some(Place::Document(Document::Config)) => Reply::json(200, &documents::config(facts)),
        Some(Place::Document(Document::Metrics)) => {
            Reply { status: 200, kind: "text/plain; version=0.0.4; charset=utf-8", body: metrics::page(facts) }
        }
        None if orders::verbs(path).next().is_some() => no_such(path, &Method::GET),
        None => unknown(path),
    }
}

fn check(question: Question, query: &str, facts: &Facts<'_>) -> Reply {
    match Conditions::of(query) {
        Ok(conditions) => {
            let status = if health::is_so(question, &conditions, facts) { 200 } else { 503 };
            Reply::json(status, &documents::host(facts))
        }
        // Never 200: who balances by a limit that can't be read balances by none.
        Err(why) => Reply::text(400, format!("{why}\n")),
    }
}
