//! The API of Patroni, for the health checks, exporters and plugins that people have: a face of the manager, over HTTP.
//!
//! It reads what the manager knows and changes nothing. What is there, and what differs from Patroni, is in docs/rest.md.
//! Everything but this file is pure: `asked` reads a request, `facts` says what an answer may go by, `health`, `documents`
//! and `metrics` answer.

mod asked;
mod documents;
mod facts;
mod health;
mod metrics;
#[cfg(test)]
mod tests;

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use crate::{
    config::Config,
    manager::{ManagerHandle, view::SeenMember},
};
use asked::{Conditions, Document, Place, Question};
use facts::{Facts, Known};

/// Requests that are being answered at one time; more wait to be accepted.
const AT_ONCE: usize = 128;
/// A client has so long to say what it wants, and twice that to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// After the operating system gave no connection.
const PAUSE: Duration = Duration::from_millis(100);

/// Bound, and not served yet.
pub struct Rest {
    listener: TcpListener,
    listen: SocketAddr,
}

impl Rest {
    /// Listens where the configuration says; `None`: nowhere.
    ///
    /// # Errors
    /// The address is taken, or not of this host.
    pub async fn bind(config: &Config) -> anyhow::Result<Option<Self>> {
        let Some(listen) = config.rest else { return Ok(None) };
        let bound = TcpListener::bind(listen).await;
        let listener = bound.map_err(|error| config.cannot_listen("rest.listen", &listen.to_string(), &error))?;
        Ok(Some(Self { listener, listen }))
    }

    /// Answers for as long as it is polled.
    pub async fn serve(self, manager: ManagerHandle) {
        let (room, port) = (Arc::new(Semaphore::new(AT_ONCE)), self.listen.port());
        tracing::info!(listen = %self.listen, "answers Patroni's health checks");
        loop {
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((client, _)) => {
                    let manager = manager.clone();
                    tokio::spawn(async move {
                        let _permit = permit;
                        converse(client, manager, port).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "no connection could be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

async fn converse(client: TcpStream, manager: ManagerHandle, port: u16) {
    let respond = |request: Request<Incoming>| {
        let reply = respond(&manager, port, request.method(), request.uri().path(), request.uri().query());
        async move { Ok::<_, Infallible>(reply) }
    };
    let mut http = http1::Builder::new();
    // One request for each connection: nobody keeps one open.
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
    let conversation = http.serve_connection(TokioIo::new(client), service_fn(respond));
    // Whoever breaks off, or doesn't read, has what it wanted, or comes again.
    match tokio::time::timeout(2 * PATIENCE, conversation).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a client of the API broke off"),
        Err(_) => tracing::debug!("a client of the API took too long"),
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
}

fn respond(
    manager: &ManagerHandle,
    port: u16,
    method: &Method,
    path: &str,
    query: Option<&str>,
) -> Response<Full<Bytes>> {
    let reads = [Method::GET, Method::HEAD, Method::OPTIONS].contains(method);
    let reply = match reads {
        true => look(manager, port, |facts| answer(path, query.unwrap_or_default(), facts)),
        false => {
            Reply::text(405, format!("{method} is not offered here: use matriarch on any host, or its gRPC API\n"))
        }
    };
    let body = if *method == Method::GET || !reads { reply.body } else { String::new() };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(reply.kind));
    if !reads {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"));
    }
    response
}

/// Gathers what an answer may go by.
fn look<T>(manager: &ManagerHandle, port: u16, answer: impl FnOnce(&Facts<'_>) -> T) -> T {
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
        api: ("http", port),
    })
}

/// The answer to a request that reads.
fn answer(path: &str, query: &str, facts: &Facts<'_>) -> Reply {
    match asked::place(path) {
        Some(Place::Question(question)) => check(question, query, facts),
        Some(Place::Document(Document::Host)) => Reply::json(200, &documents::host(facts)),
        Some(Place::Document(Document::Cluster)) => Reply::json(200, &documents::cluster(facts)),
        Some(Place::Document(Document::History)) => Reply::json(200, &documents::history(facts)),
        Some(Place::Document(Document::Config)) => Reply::json(200, &documents::config(facts)),
        Some(Place::Document(Document::Metrics)) => {
            Reply { status: 200, kind: "text/plain; version=0.0.4; charset=utf-8", body: metrics::page(facts) }
        }
        None => Reply::text(404, format!("{path} is unknown here; docs/rest.md has what is there\n")),
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
