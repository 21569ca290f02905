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
mod told;

use std::{
    collections::BTreeMap,
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{runtime::Handle, task::JoinSet, time::timeout};

use crate::{
    config::Config,
    domain::MemberId,
    manager::{ManagerHandle, view::SeenMember},
    net::{
        http::{
            Answer, Answers, Asked, BODY_MAX, Method, PATIENCE, Reply, Running, Server, Unread,
            header::{ALLOW, AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE},
        },
        tls::Tls,
    },
    rpc::v1::admin_server::Admin,
    telemetry::events,
};
use access::{Access, Denied};
use asked::{Conditions, Document, Place, Question};
use facts::{Facts, Known};
use told::Shown;

/// The Patroni whose words these are. Plugins go by it: to one that is older than 3.0.4 no state but `running` is healthy.
const SPOKEN: &str = "4.1.4";
/// The manager has so long to turn to a question about itself.
const TURN: Duration = Duration::from_secs(3);

/// Bound, and not served yet.
pub struct Rest {
    server: Server,
    access: Access,
}

impl Rest {
    /// Listens where the configuration says; `None`: nowhere.
    ///
    /// # Errors
    /// The address is taken, or not of this host; the password or the certificate can't be used.
    pub fn bind(config: &Config) -> anyhow::Result<Option<Self>> {
        let Some(rest) = &config.rest else { return Ok(None) };
        let access = Access::load(rest).map_err(|error| config.told("rest.password_file", &error.to_string()))?;
        let keys = ("rest.tls_certificate_file", "rest.tls_key_file");
        let tls = rest.certificate.clone().map(|files| Tls::load(files, keys)).transpose();
        let tls = tls.map_err(|error| config.told(error.key, &error.told))?;
        let server = Server::bind(rest.listen, tls)
            .map_err(|error| config.cannot_listen("rest.listen", &rest.listen.to_string(), &error))?;
        Ok(Some(Self { server, access }))
    }

    /// Answers until what it gives is dropped, on a thread of its own. What has to wait for others runs where this is called,
    /// which has to be inside of the manager's runtime: a flood of clients is none of its connections' affair.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn start(self, manager: ManagerHandle, admin: impl Admin) -> io::Result<Running> {
        let Self { server, access } = self;
        let (listen, tls) = (server.address(), server.encrypts());
        let api = (if tls { "https" } else { "http" }, listen.port());
        let desk = Desk { manager, admin, access, api, runtime: Handle::current() };
        let running = server.start("rest", desk)?;
        tracing::info!(%listen, tls, "answers in Patroni's words");
        Ok(running)
    }
}

/// What every request is answered with.
struct Desk<A> {
    manager: ManagerHandle,
    admin: A,
    access: Access,
    /// How and at which port it answers.
    api: (&'static str, u16),
    /// The manager's.
    runtime: Handle,
}

fn denied(denied: Denied) -> Reply {
    Reply::text(denied.status(), format!("{}\n", denied.says()))
}

impl<A: Admin> Answers for Desk<A> {
    fn answer(self: Arc<Self>, asked: Asked) -> Answer {
        if asked.reads() { self.read(&asked) } else { self.change(asked) }
    }
}

impl<A: Admin> Desk<A> {
    fn read(self: &Arc<Self>, asked: &Asked) -> Answer {
        let (path, query) = (asked.head.uri.path().to_owned(), asked.query().to_owned());
        let this = Arc::clone(self);
        match asked::place(&path) {
            Some(Place::Document(Document::Cluster)) => Answer::Soon(Box::pin(async move {
                let there = Arc::clone(&this);
                let told = this.turn(async move { perform::members(&there.manager, &there.admin).await }).await;
                this.look(|facts| answer(&path, &query, facts, &told.unwrap_or_default()))
            })),
            // Only the manager's own thread can say that it isn't stuck.
            Some(Place::Question(Question::Liveness)) => Answer::Soon(Box::pin(async move {
                let there = Arc::clone(&this);
                let look = async move { there.look(|facts| answer(&path, &query, facts, &BTreeMap::new())) };
                let stuck = || Reply::text(503, "the manager doesn't turn to this question\n");
                this.turn(look).await.unwrap_or_else(stuck)
            })),
            Some(Place::Document(_) | Place::Question(_)) | None => {
                Answer::Now(dressed(&path, self.look(|facts| answer(&path, &query, facts, &BTreeMap::new()))))
            }
        }
    }

    fn change(self: &Arc<Self>, asked: Asked) -> Answer {
        let Asked { head, body, from } = asked;
        let (method, path) = (head.method, head.uri.path().to_owned());
        let now = |reply| Answer::Now(dressed(&path, reply));
        let Some(change) = orders::change(method.as_str(), &path) else { return now(no_such(&path, &method)) };
        let authorization = head.headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
        let user = match self.access.admit(from, authorization) {
            Ok(user) => user.to_owned(),
            Err(why) => {
                tracing::info!(event = events::REST_REFUSED, client = %from, %method, path, error = why.says(), "a change was refused");
                return now(denied(why));
            }
        };
        let order = body.map_err(unread).and_then(|body| orders::order(change, &body));
        let told = move |user: &str, reply: &Reply| {
            let status = reply.status;
            tracing::info!(event = events::REST_CHANGE, user, client = %from, %method, path, status, "a change was asked for");
        };
        let order = match order {
            Ok(order) => order,
            Err(refusal) => {
                told(&user, &refusal);
                return Answer::Now(refusal);
            }
        };
        let this = Arc::clone(self);
        let carry_out = async move {
            let runtime = this.runtime.clone();
            // Whoever hangs up meanwhile stops nothing: what has begun comes to its end, and into the log.
            let work = runtime.spawn(async move {
                let reply = this.carry_out(&user, order).await;
                told(&user, &reply);
                reply
            });
            let lost = |_| Reply::text(500, "the manager broke off: look at its log, and whether it was done\n");
            work.await.unwrap_or_else(lost)
        };
        Answer::Later(perform::FOLLOWED + 2 * PATIENCE, Box::pin(carry_out))
    }

    /// Has the manager's thread do something, which ends with the one who waits for it; `None`: it didn't in time.
    async fn turn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let mut one = JoinSet::new();
        one.spawn_on(work, &self.runtime);
        timeout(TURN, one.join_next()).await.ok()??.ok()
    }

    async fn carry_out(&self, user: &str, order: orders::Order) -> Reply {
        let config = || self.look(|facts| Reply::json(200, &documents::config(facts)));
        perform::perform(&self.manager, &self.admin, perform::Asked { user, order }, config).await
    }

    fn look<T>(&self, answer: impl FnOnce(&Facts<'_>) -> T) -> T {
        look(&self.manager, self.api, answer)
    }
}

fn unread(why: Unread) -> Reply {
    let (status, why) = match why {
        Unread::TooSlow => (408, format!("the body took more than {} s", PATIENCE.as_secs())),
        Unread::Broken => (400, "the body broke off".to_owned()),
        Unread::TooLong => (413, format!("the body has more than {BODY_MAX} bytes")),
    };
    Reply::text(status, format!("{why}; nothing was changed\n"))
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

/// With the headers that its status asks for.
fn dressed(path: &str, reply: Reply) -> Reply {
    match (reply.status, HeaderValue::from_str(&allowed(path))) {
        (405, Ok(verbs)) => reply.with(ALLOW, verbs),
        (401, _) => {
            let asks = HeaderValue::from_static("Basic realm=\"Matriarch\", charset=\"UTF-8\"");
            reply.with(WWW_AUTHENTICATE, asks)
        }
        _ => reply,
    }
}

/// Gathers what an answer may go by.
fn look<T>(manager: &ManagerHandle, api: (&'static str, u16), answer: impl FnOnce(&Facts<'_>) -> T) -> T {
    let (state, own, seen) = (manager.state(), manager.own(), manager.seen());
    let members = state.members.iter().map(|(id, member)| {
        let (address, witness) = match member.is_witness() {
            true => (member.manager.as_str(), true),
            false => (member.postgres.as_str(), false),
        };
        let (host, number) = address.rsplit_once(':').unwrap_or((address, ""));
        let number = if witness { "" } else { number };
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
        Some(Place::Document(Document::Metrics)) => Reply::metrics(metrics::page(facts)),
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
