//! The thread of the acceptor: one socket, and one small file that is written
//! when an epoch begins or is sealed, never for a renewal.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

use super::{
    Secret,
    acceptor::{Acceptor, Durable, Ends, promise_at},
    clock::{exact_timers, two_clocks},
    counters::{Counters, Refusal},
    message::{Envelope, Membership},
    sealed_file,
    wake::{Mailbox, Postman, mailbox},
    wire::{Codec, Identity, MAX_DATAGRAM, check_target},
};
use crate::domain::{
    ClusterId, Epoch, Generation, MemberId, Promise, Timings, TimingsInUse, moment::TwoClocks, observation::Notice,
};

/// At most this many datagrams between two looks at the clock and the commands.
const BATCH: usize = 64;
const NOTICES: usize = 64;

/// What an acceptor's thread needs.
pub struct AcceptorOptions {
    /// The UDP address to listen on.
    pub listen: SocketAddr,
    /// The member whose voter this is.
    pub me: MemberId,
    /// T_grant is used.
    pub timings: Timings,
    /// Of the cluster.
    pub secret: Secret,
    /// Where the sealed epoch is kept.
    pub state_dir: PathBuf,
}

/// Starts acceptors.
pub struct AcceptorThread;

type SealReply = Box<dyn FnOnce(io::Result<Promise>) + Send>;

enum Command {
    Seal(Epoch, SealReply),
    Identity(Identity),
    Timings(TimingsInUse),
    Membership(Membership),
    Learner(bool),
    FollowLog(Arc<AtomicU64>),
    Stop,
}

/// The way to an acceptor's thread, which ends with the last clone.
#[derive(Clone)]
pub struct AcceptorHandle {
    shared: Arc<Shared>,
}

struct Shared {
    postman: Postman<Command>,
    address: SocketAddr,
    /// 0: never set; otherwise the epoch and 1. Not a command: an ack that leaves after
    /// `set_applied` has returned must know of it.
    applied: Arc<AtomicU64>,
    promise: watch::Receiver<Promise>,
    ends: Arc<Mutex<Ends>>,
    notices: Mutex<Option<mpsc::Receiver<Notice>>>,
    counters: Arc<Counters>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl AcceptorThread {
    /// Starts one, bound by the promises of an earlier start. It acks nothing before it was told
    /// its membership and that the log is applied.
    ///
    /// # Errors
    /// The sealed epoch can't be read, or there is no socket or thread to be had.
    pub fn spawn(options: AcceptorOptions) -> io::Result<AcceptorHandle> {
        let AcceptorOptions { listen, me, timings, secret, state_dir } = options;
        let durable = sealed_file::load(&state_dir)?;
        let socket = UdpSocket::bind(listen)?;
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        let (postman, mailbox) = mailbox()?;
        let now = two_clocks();
        let acceptor = Acceptor::new(timings.grant, durable, now);
        let (promise_sender, promise) = watch::channel(acceptor.promise(now));
        let ends = Arc::new(Mutex::new(acceptor.ends()));
        let (notice_sender, notices) = mpsc::channel(NOTICES);
        let counters = Arc::new(Counters::default());
        let applied = Arc::new(AtomicU64::new(0));
        let run = Run {
            acceptor,
            me,
            identity: Identity::default(),
            codec: Codec::new(&secret),
            socket,
            state_dir,
            mailbox,
            applied: applied.clone(),
            applied_known: 0,
            in_log: None,
            promise: promise_sender,
            ends: ends.clone(),
            notices: notice_sender,
            counters: counters.clone(),
        };
        let thread = thread::Builder::new().name("lease-acceptor".to_owned()).spawn(move || {
            exact_timers();
            run.run();
        })?;
        let (notices, thread) = (Mutex::new(Some(notices)), Mutex::new(Some(thread)));
        let shared = Shared { postman, address, applied, promise, ends, notices, counters, thread };
        Ok(AcceptorHandle { shared: Arc::new(shared) })
    }
}

impl AcceptorHandle {
    /// Never acks an epoch below `epoch` again, durably before this returns. Blocks for an fsync.
    ///
    /// # Errors
    /// It could not be made durable (the acceptor refuses the old epochs all the same), or the
    /// thread has ended.
    pub fn seal(&self, epoch: Epoch) -> io::Result<Promise> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let reply: SealReply = Box::new(move |result| drop(sender.send(result)));
        self.shared.postman.send(Command::Seal(epoch, reply));
        receiver.recv().map_err(|_| ended())?
    }

    /// [`AcceptorHandle::seal`] for callers that may not block.
    ///
    /// # Errors
    /// As there.
    pub async fn seal_async(&self, epoch: Epoch) -> io::Result<Promise> {
        let (sender, receiver) = oneshot::channel();
        let reply: SealReply = Box::new(move |result| drop(sender.send(result)));
        self.shared.postman.send(Command::Seal(epoch, reply));
        receiver.await.map_err(|_| ended())?
    }

    /// The promise, pushed when its epoch, seal or end changes. A renewal that only prolongs it
    /// wakes nobody; for the figures of this moment ask [`AcceptorHandle::promise_now`].
    pub fn promise(&self) -> watch::Receiver<Promise> {
        self.shared.promise.clone()
    }

    /// The promise with the time that is left now.
    pub fn promise_now(&self) -> Promise {
        let promise = *self.shared.promise.borrow();
        let ends = *self.shared.ends.lock().unwrap_or_else(PoisonError::into_inner);
        promise_at(&promise, ends, two_clocks())
    }

    /// What agents said of the end of their epochs, each once. `None` after the first call.
    pub fn notices(&self) -> Option<mpsc::Receiver<Notice>> {
        self.shared.notices.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Which cluster's messages to take. Before the first call there is none.
    pub fn set_identity(&self, cluster: ClusterId, generation: Generation) {
        self.shared.postman.send(Command::Identity(Identity { cluster, generation }));
    }

    /// The membership effective in this voter's log; a change binds it for T_grant. Every entry
    /// before the membership's own must have been applied and told by `set_applied`.
    pub fn set_membership(&self, membership: Membership) {
        self.shared.postman.send(Command::Membership(membership));
    }

    /// Whether this member is a learner; to be told before the membership of the same state.
    pub fn set_learner(&self, learner: bool) {
        self.shared.postman.send(Command::Learner(learner));
    }

    /// Where whoever appends to the log stores the id of the newest membership in it, 0 for none, before
    /// the append is acknowledged. While that is not the one of [`AcceptorHandle::set_membership`],
    /// nothing is acked.
    pub fn follow_log(&self, newest: Arc<AtomicU64>) {
        self.shared.postman.send(Command::FollowLog(newest));
    }

    /// The timings this voter's log has come to; to be told before the membership of the same state.
    pub fn set_timings(&self, timings: TimingsInUse) {
        self.shared.postman.send(Command::Timings(timings));
    }

    /// The log is applied up to the present, and the highest epoch fenced or granted in it is
    /// `epoch`. Holds for every datagram answered after the return.
    pub fn set_applied(&self, epoch: Epoch) {
        self.shared.applied.fetch_max(epoch.0.saturating_add(1), Ordering::SeqCst);
        self.shared.postman.ring();
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.address
    }

    /// What was passed over.
    pub fn counters(&self) -> Arc<Counters> {
        self.shared.counters.clone()
    }

    /// Ends the thread and waits for it.
    pub fn stop(&self) {
        self.shared.postman.send(Command::Stop);
        let thread = self.shared.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            warn!("lease acceptor thread had panicked");
        }
    }
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the lease acceptor has ended")
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.postman.send(Command::Stop);
    }
}

struct Run {
    acceptor: Acceptor,
    me: MemberId,
    identity: Identity,
    codec: Codec,
    socket: UdpSocket,
    state_dir: PathBuf,
    mailbox: Mailbox<Command>,
    applied: Arc<AtomicU64>,
    applied_known: u64,
    in_log: Option<Arc<AtomicU64>>,
    promise: watch::Sender<Promise>,
    ends: Arc<Mutex<Ends>>,
    notices: mpsc::Sender<Notice>,
    counters: Arc<Counters>,
}

impl Run {
    fn run(mut self) {
        loop {
            self.learn_applied();
            while let Some(command) = self.mailbox.next() {
                if matches!(command, Command::Stop) {
                    return;
                }
                self.obey(command);
            }
            self.read_socket();
            let now = two_clocks();
            let shorter = self.acceptor.forget_longer_promises(now);
            // When this fails a restart waits longer than it needs to.
            let _ = self.persist(shorter);
            self.publish(now);
            if let Err(error) = self.mailbox.wait(&self.socket, self.acceptor.next_wake(now)) {
                error!(%error, "lease acceptor can't wait on its socket");
                return;
            }
        }
    }

    fn learn_applied(&mut self) {
        if let Some(newest) = &self.in_log {
            self.acceptor.set_in_log(newest.load(Ordering::SeqCst));
        }
        let applied = self.applied.load(Ordering::SeqCst);
        if applied > self.applied_known {
            self.applied_known = applied;
            let persist = self.acceptor.set_applied(Epoch(applied - 1));
            // When this fails it is no harm: the log that says so is durable itself, and is applied
            // again before the next start acks anything.
            let _ = self.persist(persist);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Seal(epoch, reply) => {
                self.learn_applied();
                let persist = self.acceptor.seal(epoch);
                let stored = self.persist(persist);
                let now = two_clocks();
                self.publish(now);
                reply(stored.map(|()| self.acceptor.promise(now)));
            }
            Command::Identity(identity) => self.identity = identity,
            Command::Timings(timings) => {
                let persist = self.acceptor.set_timings(timings);
                // When this fails nothing longer is promised: the ack needs it durable, and asks again.
                let _ = self.persist(persist);
            }
            Command::Membership(membership) => self.acceptor.set_membership(membership, two_clocks()),
            Command::Learner(learner) => self.acceptor.set_learner(learner),
            Command::FollowLog(newest) => self.in_log = Some(newest),
            Command::Stop => {}
        }
    }

    fn persist(&mut self, durable: Option<Durable>) -> io::Result<()> {
        let Some(durable) = durable else { return Ok(()) };
        sealed_file::store(&self.state_dir, durable).map_err(|source| {
            error!(epoch = %durable.sealed, error = %source, cause = ?std::error::Error::source(&source),
                "failed to make the sealed epoch durable");
            io::Error::from(source)
        })?;
        info!(epoch = %durable.sealed, grant_ms = durable.grant.as_millis(), timings = %durable.oldest,
            "sealed epoch stored: older ones are not renewed here any more");
        self.acceptor.persisted(durable);
        Ok(())
    }

    fn read_socket(&mut self) {
        let mut buffer = [0_u8; MAX_DATAGRAM + 1];
        for _ in 0..BATCH {
            match self.socket.recv_from(&mut buffer) {
                Ok((length, sender)) => {
                    if let Err(refusal) = self.take(&buffer[..length], sender) {
                        self.counters.count(refusal);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {} // an ICMP error of an earlier answer concerns nobody
            }
        }
    }

    fn take(&mut self, datagram: &[u8], sender: SocketAddr) -> Result<(), Refusal> {
        let envelope = self.codec.decode(datagram)?;
        check_target(&envelope, &self.me, &self.identity)?;
        self.learn_applied();
        let response = self.acceptor.receive(&envelope.from, envelope.letter, two_clocks());
        if let Some(notice) = response.notice
            && self.notices.try_send(notice.clone()).is_err()
        {
            self.acceptor.forget_notice(&notice);
        }
        self.persist(response.persist).map_err(|_| Refusal::NotDurable)?;
        if let Some(letter) = response.reply {
            let Identity { cluster, generation } = self.identity.clone();
            let reply = Envelope { cluster, generation, to: envelope.from, from: self.me.clone(), letter };
            let bytes = self.codec.encode(&reply)?;
            self.socket.send_to(&bytes, sender).map_err(|_| Refusal::SendFailed)?;
        }
        response.refused.map_or(Ok(()), Err)
    }

    fn publish(&self, now: TwoClocks) {
        *self.ends.lock().unwrap_or_else(PoisonError::into_inner) = self.acceptor.ends();
        let promise = self.acceptor.promise(now);
        self.promise.send_if_modified(|known| {
            let news = |p: &Promise| {
                let ends = (p.lapsed, p.quiet, p.renewed);
                (p.sealed, p.epoch, ends, p.members, p.clock_off_ppm, p.membership)
            };
            let news = news(known) != news(&promise);
            *known = promise;
            news
        });
    }
}
