//! What all sessions and all followed managers of one router share: the table,
//! who is connected where, and who waits. The lock is never held across an await.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tracing::{debug, error, info, warn};

use super::{
    Status, Unwatched,
    figures::{CountFigures, Figures, PortFigures, RouteFigures},
    table::{Bounds, Cut, Heard, Port, Rules, Stamp, Table, Verdict, View},
};
use crate::{
    domain::{ClusterId, MemberId, Moment},
    telemetry::events,
};

/// So many connections knock at a closed backend at once; the rest queue behind
/// them, so that a thousand held clients are no load on a server that recovers.
const KNOCKING: usize = 4;

/// Now, on a clock that goes on while the host is suspended: a router that wakes
/// up must not take yesterday's state for fresh.
pub fn now() -> Moment {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has CLOCK_BOOTTIME since 2.6.39");
    Moment(Duration::from(time))
}

/// The shared state of one router.
#[derive(Debug)]
pub struct Desk {
    inner: Mutex<Inner>,
    views: watch::Sender<Arc<View>>,
    /// Permits for repeated attempts, by port.
    knocking: [Semaphore; PORTS],
    /// What was counted since the start, by port.
    counts: [Counts; PORTS],
    turn: AtomicUsize,
    /// False acknowledgements turned into an unknown outcome.
    turned: AtomicU64,
    /// Something was counted that is to be told.
    counted: Notify,
}

/// Kinds of ports.
pub const PORTS: usize = 3;

/// What one port has seen since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Connections that were accepted.
    pub accepted: AtomicU64,
    /// Sessions that began.
    pub begun: AtomicU64,
    /// Connections that were refused: too many, held too long, not encrypted.
    pub refused: AtomicU64,
    /// Connections that brought nothing a server would understand, or too slowly.
    pub malformed: AtomicU64,
    /// Of those that began, those whose connection to the server had been opened ahead.
    pub ahead: AtomicU64,
    /// Sessions that the state has ended.
    pub cut: AtomicU64,
    /// Sessions that ended between two transactions, for their server or the router was about to stop.
    pub drained: AtomicU64,
    /// Connections that wait for a server now.
    pub held: AtomicUsize,
    /// Microseconds that all connections were held before their sessions began.
    pub held_micros: AtomicU64,
    /// The longest of them.
    pub held_micros_max: AtomicU64,
}

/// What one port and one server have seen of each other since the start.
#[derive(Debug, Default)]
pub struct Route {
    /// Bytes of clients that were handed on.
    pub bytes_up: AtomicU64,
    /// Bytes of the server that were handed on.
    pub bytes_down: AtomicU64,
    begun: AtomicU64,
    /// Sessions now. Changed under the desk's lock only.
    open: AtomicUsize,
}

/// What a session is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// End now.
    Cut(Cut),
    /// End as soon as nothing is under way.
    Drain,
}

#[derive(Debug)]
struct Inner {
    table: Table,
    /// The router is about to stop.
    leaving: bool,
    sessions: HashMap<u64, Entry>,
    next: u64,
    /// By port and member: as many as there ever were members.
    routes: BTreeMap<(Port, MemberId), Arc<Route>>,
    /// Since the start.
    unwatched: Unwatched,
    unwatched_now: usize,
    stale: bool,
    /// Managers of another cluster, to complain of each once.
    strangers: HashSet<MemberId>,
    /// Managers that were moved by command.
    moved: BTreeMap<MemberId, String>,
}

#[derive(Debug)]
struct Entry {
    stamp: Stamp,
    port: Port,
    route: Arc<Route>,
    established: bool,
    watched: bool,
    /// It was told to end as soon as nothing is under way.
    drains: bool,
    /// `None`: it was told something, and has not listened again yet.
    tell: Option<oneshot::Sender<Signal>>,
}

/// The right to be connected to the backend of a stamp, until it is cut.
#[derive(Debug)]
pub struct Pass {
    desk: Arc<Desk>,
    id: u64,
    port: Port,
    route: Arc<Route>,
    told: oneshot::Receiver<Signal>,
}

/// Counts one held connection for as long as it lives.
#[derive(Debug)]
pub struct Held<'a>(&'a AtomicUsize);

impl Desk {
    /// A desk that knows nothing yet.
    pub fn new(managers: usize, own: Bounds, rules: Rules) -> Self {
        let table = Table::new(managers, own, rules);
        Self {
            views: watch::Sender::new(Arc::new(table.view().clone())),
            inner: Mutex::new(Inner {
                table,
                leaving: false,
                sessions: HashMap::new(),
                next: 0,
                routes: BTreeMap::new(),
                unwatched: Unwatched::default(),
                unwatched_now: 0,
                stale: false,
                strangers: HashSet::new(),
                moved: BTreeMap::new(),
            }),
            knocking: [(); PORTS].map(|()| Semaphore::new(KNOCKING)),
            counts: Default::default(),
            turn: AtomicUsize::new(0),
            turned: AtomicU64::new(0),
            counted: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change below leaves the table whole, so a panic elsewhere takes nothing from it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state and its changes.
    pub fn views(&self) -> watch::Receiver<Arc<View>> {
        self.views.subscribe()
    }

    /// What to tell a manager about who asks: cluster, generation and epoch as far as known.
    pub fn identity(&self) -> (ClusterId, View) {
        let inner = self.lock();
        (inner.table.cluster().cloned().unwrap_or_default(), inner.table.view().clone())
    }

    /// Where a manager is that was moved by command, as far as was heard.
    pub fn moved(&self, manager: &MemberId) -> Option<String> {
        self.lock().moved.get(manager).cloned()
    }

    /// Takes in what a manager said, and cuts at once what must not go on. `moved`: managers that are not where the file says.
    pub fn hear(&self, source: usize, manager: &MemberId, heard: Heard, moved: BTreeMap<MemberId, String>) {
        let mut inner = self.lock();
        let before = inner.table.view().clone();
        let cluster = heard.cluster.clone();
        let verdict = inner.table.hear(source, heard, now());
        match verdict {
            Verdict::OtherCluster => {
                let ours = inner.table.cluster().cloned().unwrap_or_default();
                if inner.strangers.insert(manager.clone()) {
                    error!(%manager, %cluster, %ours, "manager belongs to another cluster, its word does not count");
                }
                return;
            }
            Verdict::BeforeGenesis | Verdict::Older => {
                debug!(%manager, ?verdict, "message of a manager changes nothing");
                return;
            }
            Verdict::Adopted | Verdict::Confirmed => inner.moved = moved,
        }
        let cut = self.settle(&mut inner);
        let view = inner.table.view();
        if before.place() != view.place() {
            let (generation, epoch) = view.epoch();
            let primary = view.primary.as_ref().map_or("none", |p| p.member.as_str());
            info!(%generation, %epoch, primary, open = view.open, cut, by = %manager, "routing follows the committed state");
        }
    }

    /// The stream of a manager ended.
    pub fn lose(&self, source: usize) {
        self.lock().table.lose(source);
    }

    /// Notices when the state has gone stale; returns when to look again.
    pub fn watch_staleness(&self) -> Duration {
        let mut inner = self.lock();
        self.settle(&mut inner);
        // A second at most: the timer stands still while the host is suspended, the clock does not.
        let left = inner.table.view().until_stale(now()).filter(|left| !left.is_zero());
        left.map_or(Duration::from_secs(1), |left| (left + Duration::from_millis(1)).min(Duration::from_secs(1)))
    }

    /// Cuts what the state as it stands does not allow, then shows the state to
    /// those who wait. Returns how many sessions were cut.
    fn settle(&self, inner: &mut Inner) -> usize {
        let (now, view) = (now(), inner.table.view().clone());
        let ends: Vec<(u64, Cut)> =
            inner.sessions.iter().filter_map(|(id, e)| view.cut(&e.stamp, now).map(|cut| (*id, cut))).collect();
        let mut established = 0;
        for (id, cut) in ends {
            let Some(entry) = inner.forget(id) else { continue };
            if entry.established {
                established += 1;
                self.counts(entry.port).cut.fetch_add(1, Ordering::Relaxed);
            }
            // A session that has just ended by itself listens no more.
            let _ = entry.tell.map(|tell| tell.send(Signal::Cut(cut)));
        }
        let leaving = inner.leaving;
        for entry in inner.sessions.values_mut() {
            entry.drain(leaving || view.drains(&entry.stamp));
        }
        let stale = view.is_stale(now);
        if stale != inner.stale {
            inner.stale = stale;
            let (_, epoch) = view.epoch();
            if stale {
                let age_ms = u64::try_from(now.since(view.confirmed_at).as_millis()).unwrap_or(u64::MAX);
                warn!(%epoch, age_ms, cut = established, "state of the cluster went stale, all sessions are cut");
            } else {
                info!(%epoch, "state of the cluster is confirmed again");
            }
        }
        self.views.send_replace(Arc::new(view));
        established
    }

    /// Permits for attempts that come after a failed one.
    pub fn knocking(&self, port: Port) -> &Semaphore {
        &self.knocking[port.index()]
    }

    /// What is counted for a port.
    pub fn counts(&self, port: Port) -> &Counts {
        &self.counts[port.index()]
    }

    /// From here on each session ends as soon as nothing is under way in it.
    pub fn leave(&self) {
        let mut inner = self.lock();
        inner.leaving = true;
        self.settle(&mut inner);
    }

    /// Number of this connection, for taking turns.
    pub fn turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// Counts a held connection.
    pub fn hold_one(&self, port: Port) -> Held<'_> {
        let held = &self.counts(port).held;
        held.fetch_add(1, Ordering::Relaxed);
        Held(held)
    }

    /// Registers a connection to the backend of `stamp`. `None` when the state has moved on.
    pub fn enter(self: &Arc<Self>, stamp: &Stamp, port: Port) -> Option<Pass> {
        let mut inner = self.lock();
        if inner.table.view().cut(stamp, now()).is_some() {
            return None;
        }
        let id = inner.next;
        inner.next += 1;
        let (tell, told) = oneshot::channel();
        let (stamp, tell) = (stamp.clone(), Some(tell));
        let route = Arc::clone(inner.routes.entry((port, stamp.backend.member.clone())).or_default());
        let ours = Arc::clone(&route);
        let entry = Entry { stamp, port, route, established: false, watched: true, drains: false, tell };
        inner.sessions.insert(id, entry);
        Some(Pass { desk: Arc::clone(self), id, port, route: ours, told })
    }

    /// Whether more sessions can be expected where those of `stamp` are.
    pub fn expects(&self, stamp: &Stamp) -> bool {
        let inner = self.lock();
        let view = inner.table.view();
        !inner.leaving && !view.drains(stamp) && view.cut(stamp, now()).is_none()
    }

    /// Where a request to cancel may have to go: to the primary, or to each
    /// backend the read-only port has sessions on. Elsewhere its key fits nobody.
    pub fn cancel_targets(&self, port: Port) -> Vec<String> {
        let inner = self.lock();
        let view = inner.table.view();
        if view.is_stale(now()) {
            return Vec::new();
        }
        let primary = view.primary.iter().filter(|_| port == Port::ReadWrite).map(|p| &p.address);
        let readers = inner.sessions.values().filter(|e| port != Port::ReadWrite && e.port == port && e.established);
        let mut out: Vec<String> = primary.chain(readers.map(|e| &e.stamp.backend.address)).cloned().collect();
        out.sort();
        out.dedup();
        out
    }

    /// A picture of the router.
    pub fn status(&self) -> Status {
        let inner = self.lock();
        let view = inner.table.view();
        let count = |port| inner.routes_of(port).map(|(_, route)| route.open.load(Ordering::Relaxed)).sum();
        Status {
            version: view.version,
            primary: view.primary.clone(),
            open: view.open,
            stale: view.is_stale(now()),
            confirmed_age: view.version.map(|_| now().since(view.confirmed_at)),
            managers_followed: inner.table.followed(),
            sessions_read_write: count(Port::ReadWrite),
            sessions_read_only: count(Port::ReadOnly),
            sessions_sync_only: count(Port::SyncOnly),
            draining: view.draining,
            held: self.counts.iter().map(|counts| counts.held.load(Ordering::Relaxed)).sum(),
            cut_total: self.total(|counts| &counts.cut),
            drained_total: self.total(|counts| &counts.drained),
            unwatched_now: inner.unwatched_now,
            unwatched: inner.unwatched,
            false_acks_turned: self.turned.load(Ordering::Relaxed),
        }
    }

    /// What each port has seen, into the log.
    pub fn tell_counts(&self) {
        for PortFigures { port, counts: c, routes, .. } in self.figures().ports {
            let bytes = |of: fn(&RouteFigures) -> u64| routes.iter().map(of).sum::<u64>();
            info!(
                port = port.name(),
                accepted = c.accepted,
                sessions = c.begun,
                refused = c.refused,
                malformed = c.malformed,
                cut = c.cut,
                drained = c.drained,
                bytes_up = bytes(|route| route.bytes_up),
                bytes_down = bytes(|route| route.bytes_down),
                held_ms = c.held.as_millis(),
                held_ms_max = c.held_max.as_millis(),
                "what came in by this port since the start"
            );
        }
    }

    /// Everything that is told of the router.
    pub fn figures(&self) -> Figures {
        let inner = self.lock();
        let (view, now) = (inner.table.view(), now());
        let port = |port| {
            let counts = self.counts(port);
            let count = |of: fn(&Counts) -> &AtomicU64| of(counts).load(Ordering::Relaxed);
            let routes = inner.routes_of(port).map(|(member, route)| RouteFigures {
                member: member.clone(),
                open: route.open.load(Ordering::Relaxed),
                begun: route.begun.load(Ordering::Relaxed),
                bytes_up: route.bytes_up.load(Ordering::Relaxed),
                bytes_down: route.bytes_down.load(Ordering::Relaxed),
            });
            PortFigures {
                port,
                closed: view.lead(port, 0, &[], now).err(),
                held_now: counts.held.load(Ordering::Relaxed),
                counts: CountFigures {
                    accepted: count(|c| &c.accepted),
                    begun: count(|c| &c.begun),
                    ahead: count(|c| &c.ahead),
                    refused: count(|c| &c.refused),
                    malformed: count(|c| &c.malformed),
                    cut: count(|c| &c.cut),
                    drained: count(|c| &c.drained),
                    held: Duration::from_micros(count(|c| &c.held_micros)),
                    held_max: Duration::from_micros(count(|c| &c.held_micros_max)),
                },
                routes: routes.collect(),
            }
        };
        Figures {
            view: view.clone(),
            stale: view.is_stale(now),
            confirmed_age: view.version.map(|_| now.since(view.confirmed_at)),
            managers_followed: inner.table.followed(),
            ports: [Port::ReadWrite, Port::ReadOnly, Port::SyncOnly].map(port).into(),
            unwatched_now: inner.unwatched_now,
            unwatched: inner.unwatched,
            false_acks_turned: self.turned.load(Ordering::Relaxed),
        }
    }

    fn total(&self, of: impl Fn(&Counts) -> &AtomicU64) -> u64 {
        self.counts.iter().map(|counts| of(counts).load(Ordering::Relaxed)).sum()
    }

    /// A server was about to acknowledge a commit that is not confirmed, and its client was told otherwise.
    pub fn turned(&self, backend: &str) {
        let total = self.turned.fetch_add(1, Ordering::Relaxed) + 1;
        warn!(
            event = events::FALSE_ACK_TURNED,
            backend,
            total,
            "a commit's wait for standbys was cancelled, its client was told that the outcome is unknown"
        );
    }

    /// Waits for a session that isn't watched, and tells of those there are.
    pub async fn tell_unwatched(&self) {
        self.counted.notified().await;
        let Status { unwatched_now: open, unwatched, false_acks_turned, .. } = self.status();
        let Unwatched { tls, gss, muted } = unwatched;
        info!(
            event = events::SESSIONS_UNWATCHED,
            open, tls, gss, muted, false_acks_turned, "sessions come in that are not watched for cancelled commits"
        );
    }
}

impl Inner {
    /// The routes of one port.
    fn routes_of(&self, port: Port) -> impl Iterator<Item = (&MemberId, &Arc<Route>)> {
        self.routes.iter().filter(move |((of, _), _)| *of == port).map(|((_, member), route)| (member, route))
    }

    /// Nothing of a session counts from here on.
    fn forget(&mut self, id: u64) -> Option<Entry> {
        let entry = self.sessions.remove(&id)?;
        if entry.established {
            entry.route.open.fetch_sub(1, Ordering::Relaxed);
            self.unwatched_now -= usize::from(!entry.watched);
        }
        Some(entry)
    }
}

impl Entry {
    /// Told once; when it need not any more, it finds that out when it could.
    fn drain(&mut self, drains: bool) {
        if drains
            && !self.drains
            && self.established
            && let Some(tell) = self.tell.take()
        {
            let _ = tell.send(Signal::Drain);
        }
        self.drains = drains && self.established;
    }
}

impl Port {
    fn index(self) -> usize {
        match self {
            Self::ReadWrite => 0,
            Self::ReadOnly => 1,
            Self::SyncOnly => 2,
        }
    }
}

impl Pass {
    /// Counts as a session from now on. `unwatched`: why its cancelled commits won't be seen.
    pub fn establish(&self, unwatched: Option<Unwatched>) {
        let mut inner = self.desk.lock();
        let (view, leaving) = (inner.table.view().clone(), inner.leaving);
        if let Some(entry) = inner.sessions.get_mut(&self.id) {
            (entry.established, entry.watched) = (true, unwatched.is_none());
            entry.route.open.fetch_add(1, Ordering::Relaxed);
            // The state may have moved on since it was led here.
            entry.drain(leaving || view.drains(&entry.stamp));
            inner.unwatched_now += usize::from(unwatched.is_some());
        }
        self.counts().begun.fetch_add(1, Ordering::Relaxed);
        self.route.begun.fetch_add(1, Ordering::Relaxed);
        if let Some(one) = unwatched {
            inner.unwatched.add(one);
            self.desk.counted.notify_one();
        }
    }

    /// The state it was entered in; `None`: it must end.
    pub fn stamp(&self) -> Option<Stamp> {
        self.desk.lock().sessions.get(&self.id).map(|entry| entry.stamp.clone())
    }

    /// Where its backend is.
    pub fn address(&self) -> String {
        self.stamp().map(|stamp| stamp.backend.address).unwrap_or_default()
    }

    /// Waits until it is told something. May be called again after it was dropped halfway.
    pub async fn told(&mut self) -> Signal {
        (&mut self.told).await.unwrap_or(Signal::Cut(Cut::Superseded))
    }

    /// Waits until it must end, as long as it is no session yet.
    pub async fn cut(&mut self) -> Cut {
        loop {
            match self.told().await {
                Signal::Cut(cut) => return cut,
                Signal::Drain => self.listen_again(),
            }
        }
    }

    /// After it was told to end as soon as nothing is under way: more may be said.
    pub fn listen_again(&mut self) {
        let mut inner = self.desk.lock();
        let (tell, told) = oneshot::channel();
        // With no entry any more it hears at once that it must end.
        if let Some(entry) = inner.sessions.get_mut(&self.id) {
            entry.tell = Some(tell);
        }
        self.told = told;
    }

    /// Whether it is still to end as soon as nothing is under way.
    pub fn drains(&self) -> bool {
        self.desk.lock().sessions.get(&self.id).is_none_or(|entry| entry.drains)
    }

    /// Whether it is the router that is about to stop.
    pub fn leaves(&self) -> bool {
        self.desk.lock().leaving
    }

    /// What is counted for its port.
    pub fn counts(&self) -> &Counts {
        self.desk.counts(self.port)
    }

    /// What is counted for its port and its server.
    pub fn shared_counts(&self) -> Arc<Route> {
        Arc::clone(&self.route)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.desk.lock().forget(self.id);
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
