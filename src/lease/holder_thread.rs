//! The thread of the holder: one socket, no disk, no async runtime, and nothing
//! else to do.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::sync::watch;
use tracing::{debug, warn};

use super::{
    Secret,
    addresses::{Addresses, Lookup},
    clock::two_clocks,
    counters::{Counters, Refusal},
    holder::{Holder, HolderConfig, HolderView, Output},
    message::{Body, Envelope, Letter},
    wake::{Mailbox, Postman, mailbox},
    wire::{Codec, Identity, MAX_DATAGRAM, check_target},
};
use crate::domain::{
    ClusterId, Epoch, Generation, MemberId, MemberList, TimelineId, Timings, TimingsId, WalPosition, moment::TwoClocks,
    observation::Notice,
};

/// Takes each new deadline, on the holder's thread, without blocking. False: the guard has not
/// answered for a while, and renewing stops until it does.
pub type Sink = Box<dyn FnMut(Epoch, TwoClocks) -> bool + Send>;

/// At most this many datagrams between two looks at the clock.
const BATCH: usize = 64;

/// What a holder's thread needs.
pub struct HolderOptions {
    /// The member this holder writes for.
    pub me: MemberId,
    /// `host:port` of every manager.
    pub peers: Vec<(MemberId, String)>,
    /// renew, rpc, hold and grant are used.
    pub timings: Timings,
    /// Of the cluster.
    pub secret: Secret,
    /// Where deadlines go until [`HolderHandle::set_sink`].
    pub sink: Sink,
}

/// Starts holders.
pub struct HolderThread;

enum Command {
    Hold(Epoch, TimelineId, Option<TwoClocks>),
    Release,
    Wal(WalPosition),
    Notice(Notice),
    Identity(Identity),
    Sink(Sink),
    Timings(TimingsId, Box<Timings>),
    Members(MemberList),
    Moved(BTreeMap<MemberId, String>),
    Failsafe(bool),
    Learners(BTreeSet<MemberId>),
    Resolved(Book, MemberId, Lookup, Option<SocketAddr>),
    Stop,
}

/// Which of the two address books.
#[derive(Debug, Clone, Copy)]
enum Book {
    Managers,
    Agents,
}

/// The way to a holder's thread. The thread ends with the last clone; what it held then ends at
/// its deadline, and a later start may go on with it until then.
#[derive(Clone)]
pub struct HolderHandle {
    shared: Arc<Shared>,
}

struct Shared {
    postman: Postman<Command>,
    view: watch::Receiver<HolderView>,
    counters: Arc<Counters>,
    /// `CLOCK_BOOTTIME` in microseconds when the agent's loop was last at work; 0 before that. Not a command, for it
    /// would wake the thread each time.
    vouched: Arc<AtomicU64>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl HolderThread {
    /// Starts one that holds nothing and belongs to no cluster yet.
    ///
    /// # Errors
    /// No socket, no eventfd or no thread could be had.
    pub fn spawn(options: HolderOptions) -> io::Result<HolderHandle> {
        let HolderOptions { me, peers, timings, secret, sink } = options;
        let addresses = Addresses::new(&peers);
        let socket = addresses.socket()?;
        socket.set_nonblocking(true)?;
        let socket_is_v6 = socket.local_addr()?.is_ipv6();
        let (postman, mailbox) = mailbox()?;
        let (view_sender, view) = watch::channel(HolderView::default());
        let counters = Arc::new(Counters::default());
        let vouched = Arc::new(AtomicU64::new(0));
        let members = peers.into_iter().map(|(member, _)| member).collect();
        let session = uuid::Uuid::new_v4().as_u64_pair().0;
        let mut holder = Holder::new(HolderConfig { session, peers: members, timings });
        holder.set_me(me.clone(), false);
        let run = Run {
            holder,
            me,
            identity: Identity::default(),
            codec: Codec::new(&secret),
            addresses,
            agents: Addresses::default(),
            socket,
            socket_is_v6,
            sink,
            mailbox,
            postman: postman.clone(),
            view: view_sender,
            counters: counters.clone(),
            vouched: vouched.clone(),
            out: Vec::new(),
            send_errors: BTreeMap::new(),
        };
        let thread = thread::Builder::new().name("lease-holder".to_owned()).spawn(move || run.run())?;
        let thread = Mutex::new(Some(thread));
        Ok(HolderHandle { shared: Arc::new(Shared { postman, view, counters, vouched, thread }) })
    }
}

impl HolderHandle {
    /// Seeks the lease of a granted epoch (see [`Holder::hold`]).
    pub fn hold(&self, epoch: Epoch, timeline: TimelineId) {
        self.send(Command::Hold(epoch, timeline, None));
    }

    /// Goes on with an epoch held before a restart of the agent, until the guard's deadline for it.
    pub fn resume(&self, epoch: Epoch, timeline: TimelineId, deadline: TwoClocks) {
        self.send(Command::Hold(epoch, timeline, Some(deadline)));
    }

    /// Gives the lease up; nothing of its epoch is renewed again.
    pub fn release(&self) {
        self.send(Command::Release);
    }

    /// The agent's loop is at work (see [`Holder::vouch`]).
    pub fn vouch(&self) {
        let now = u64::try_from(two_clocks().boot.as_micros()).unwrap_or(u64::MAX);
        self.shared.vouched.store(now, Ordering::Relaxed);
    }

    /// What PostgreSQL has flushed.
    pub fn set_wal(&self, flush: WalPosition) {
        self.send(Command::Wal(flush));
    }

    /// Tells every manager how an epoch ended.
    pub fn send_notice(&self, notice: Notice) {
        self.send(Command::Notice(notice));
    }

    /// Which cluster's messages to send and take. Before the first call there is none.
    pub fn set_identity(&self, cluster: ClusterId, generation: Generation) {
        self.send(Command::Identity(Identity { cluster, generation }));
    }

    /// Where deadlines go from now on.
    pub fn set_sink(&self, sink: Sink) {
        self.send(Command::Sink(sink));
    }

    /// Timings that were committed (see [`Holder::set_timings`]).
    pub fn set_timings(&self, id: TimingsId, timings: Timings) {
        self.send(Command::Timings(id, Box::new(timings)));
    }

    /// The members as last applied on this host: whom to ask in failsafe.
    pub fn set_members(&self, members: MemberList) {
        self.send(Command::Members(members));
    }

    /// All managers that were moved by command, and where they are; of others the first word counts again.
    pub fn set_moved(&self, moved: BTreeMap<MemberId, String>) {
        self.send(Command::Moved(moved));
    }

    /// Whether the lease may go on without the managers while all other agents agree. Not before this was called.
    pub fn allow_failsafe(&self, allowed: bool) {
        self.send(Command::Failsafe(allowed));
    }

    /// See [`Holder::set_learners`].
    pub fn set_learners(&self, learners: BTreeSet<MemberId>) {
        self.send(Command::Learners(learners));
    }

    /// The state of the lease, pushed.
    pub fn view(&self) -> watch::Receiver<HolderView> {
        self.shared.view.clone()
    }

    /// What was passed over.
    pub fn counters(&self) -> Arc<Counters> {
        self.shared.counters.clone()
    }

    /// Ends the thread and waits for it.
    pub fn stop(&self) {
        self.send(Command::Stop);
        let thread = self.shared.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            warn!("lease holder thread had panicked");
        }
    }

    fn send(&self, command: Command) {
        // A thread that has ended renews nothing; its watch channel is closed, which says so.
        self.shared.postman.send(command);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.postman.send(Command::Stop);
    }
}

struct Run {
    holder: Holder,
    me: MemberId,
    identity: Identity,
    codec: Codec,
    /// Of the managers.
    addresses: Addresses,
    agents: Addresses,
    socket: UdpSocket,
    socket_is_v6: bool,
    sink: Sink,
    mailbox: Mailbox<Command>,
    postman: Postman<Command>,
    view: watch::Sender<HolderView>,
    counters: Arc<Counters>,
    vouched: Arc<AtomicU64>,
    out: Vec<Output>,
    /// The last error for each address, so that a lasting one is logged once.
    send_errors: BTreeMap<SocketAddr, io::ErrorKind>,
}

impl Run {
    fn run(mut self) {
        loop {
            while let Some(command) = self.mailbox.next() {
                if matches!(command, Command::Stop) {
                    return;
                }
                self.obey(command);
                self.perform();
            }
            self.read_socket();
            self.hear_the_agent();
            self.holder.tick(two_clocks(), &mut self.out);
            self.perform();
            self.publish();
            let now = two_clocks();
            self.look_up(now);
            if let Err(error) = self.mailbox.wait(&self.socket, self.holder.next_wake(now)) {
                // Without waiting there is no renewing either; the deadline does the rest.
                warn!(%error, "lease holder can't wait on its socket");
                return;
            }
        }
    }

    fn obey(&mut self, command: Command) {
        let now = two_clocks();
        match command {
            Command::Hold(epoch, timeline, None) => self.holder.hold(epoch, timeline, now, &mut self.out),
            Command::Hold(epoch, timeline, Some(deadline)) => {
                self.holder.resume(epoch, timeline, deadline, now, &mut self.out);
            }
            Command::Release => self.holder.release(),
            Command::Wal(flush) => self.holder.set_wal(flush),
            Command::Notice(notice) => self.holder.notice(notice, now, &mut self.out),
            Command::Identity(identity) => self.identity = identity,
            Command::Sink(sink) => self.sink = sink,
            Command::Timings(id, timings) => self.holder.set_timings(id, *timings),
            Command::Members(members) => {
                self.agents.follow(&members.agents);
                self.holder.set_members(members);
            }
            Command::Moved(moved) => self.addresses.moved(&moved),
            Command::Failsafe(allowed) => self.holder.set_me(self.me.clone(), allowed),
            Command::Learners(learners) => self.holder.set_learners(learners),
            Command::Resolved(Book::Managers, member, of, found) => self.addresses.resolved(&member, of, found),
            Command::Resolved(Book::Agents, member, of, found) => self.agents.resolved(&member, of, found),
            Command::Stop => {}
        }
    }

    fn hear_the_agent(&mut self) {
        let at = self.vouched.load(Ordering::Relaxed);
        // Nothing is logged here: what holds that loop up may be the log.
        if at > 0 {
            self.holder.vouch(Duration::from_micros(at));
        }
    }

    fn read_socket(&mut self) {
        let mut buffer = [0_u8; MAX_DATAGRAM + 1];
        for _ in 0..BATCH {
            match self.socket.recv_from(&mut buffer) {
                Ok((length, _)) => {
                    if let Err(refusal) = self.take(&buffer[..length]) {
                        self.counters.count(refusal);
                    }
                    self.perform();
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {} // an ICMP error of an earlier datagram: its silence is counted anyway
            }
        }
    }

    fn take(&mut self, datagram: &[u8]) -> Result<(), Refusal> {
        let envelope = self.codec.decode(datagram)?;
        check_target(&envelope, &self.me, &self.identity)?;
        self.book(book_of(&envelope.letter)).heard(&envelope.from);
        self.holder.receive(&envelope.from, envelope.letter, two_clocks(), &mut self.out)
    }

    fn perform(&mut self) {
        // `published` may not add outputs, so one pass is enough.
        let mut out = std::mem::take(&mut self.out);
        for output in out.drain(..) {
            match output {
                Output::Send(to, letter) => self.send(Book::Managers, to, letter),
                Output::SendToAgent(to, letter) => self.send(Book::Agents, to, letter),
                Output::Deadline(epoch, deadline) => {
                    let taken = (self.sink)(epoch, deadline);
                    self.holder.published(taken, two_clocks());
                }
            }
        }
        self.out = out;
    }

    fn book(&mut self, book: Book) -> &mut Addresses {
        match book {
            Book::Managers => &mut self.addresses,
            Book::Agents => &mut self.agents,
        }
    }

    fn send(&mut self, book: Book, to: MemberId, letter: Letter) {
        let v6 = self.socket_is_v6;
        let book = self.book(book);
        book.sent(&to);
        let Some(address) = book.get(&to, v6) else {
            self.counters.count(Refusal::SendFailed);
            return;
        };
        let Identity { cluster, generation } = self.identity.clone();
        let envelope = Envelope { cluster, generation, to, from: self.me.clone(), letter };
        let datagram = match self.codec.encode(&envelope) {
            Ok(datagram) => datagram,
            Err(refusal) => return self.counters.count(refusal),
        };
        match self.socket.send_to(&datagram, address) {
            Ok(_) => {
                self.send_errors.remove(&address);
            }
            Err(error) => {
                self.counters.count(Refusal::SendFailed);
                let before = self.send_errors.insert(address, error.kind());
                if before != Some(error.kind()) {
                    debug!(member = %envelope.to, %address, %error, "failed to send lease datagram");
                }
            }
        }
    }

    fn publish(&self) {
        let view = self.holder.view();
        self.view.send_if_modified(|known| {
            let changed = *known != view;
            *known = view;
            changed
        });
    }

    fn look_up(&mut self, now: TwoClocks) {
        for (book, which) in [(Book::Managers, &mut self.addresses), (Book::Agents, &mut self.agents)] {
            let postman = self.postman.clone();
            which.look_up(now, move |member, of, found| {
                postman.send(Command::Resolved(book, member, of, found));
            });
        }
    }
}

/// Where the sender of a letter is found again. A refusal may come from either; a manager's is the usual one.
fn book_of(letter: &Letter) -> Book {
    match letter.body {
        Body::FailsafeAck { .. } => Book::Agents,
        Body::Renew { .. }
        | Body::Ack { .. }
        | Body::Nack { .. }
        | Body::Notice { .. }
        | Body::Probe { .. }
        | Body::ProbeAck { .. }
        | Body::Failsafe { .. } => Book::Managers,
    }
}
