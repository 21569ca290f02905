//! The virtual address that leads clients to the primary: on this host only while it
//! holds the lease and its PostgreSQL is open. The one for standbys is a second one of its
//! kind: what the lease is to the first, the confirmations that it is lent are to that.
//!
//! It lapses by itself. Each write gives the kernel a lifetime that ends before the lease
//! does ([`plan`]), and a thread of its own takes it away before that where it still runs.
//! Lifetimes may end late; that the host is silent then all the same is [`lease`]'s doing.

mod address;
mod announce;
mod beside;
pub(super) mod lease;
mod plan;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use tracing::{info, warn};

use super::{
    ANSWER_PATIENCE, Sign,
    inbox::{Inbox, Mail},
};
use crate::{
    config::{LayerMode, VipConfig},
    domain::{Epoch, moment::TwoClocks},
    guard::sys::two_clocks,
};
use address::{Address, AddressError, Put};
use beside::{Kind, Shared};
use lease::AddressLease;
use plan::{Known, Step, Written};
pub use plan::{LATE, Serving};

/// How long the lock is kept back for an address that has to go first. Usually it takes microseconds.
const GONE_PATIENCE: Duration = Duration::from_millis(250);
/// Between two looks whether the one for standbys could be put up.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Tries to write one lifetime in time before the address goes instead.
const TRIES: usize = 3;

/// The thread's outer side. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Vip {
    inbox: Inbox<Order>,
    required: bool,
    works: Arc<AtomicBool>,
    run: Shared,
    lease: AddressLease,
}

/// What an address has of its own.
#[derive(Debug)]
pub(super) struct Parts {
    pub config: VipConfig,
    /// Where it tells of itself.
    pub sign: Sign,
    pub lease: AddressLease,
}

#[derive(Debug)]
enum Order {
    /// A lease is held; nothing is led here yet.
    Arm(Epoch, TwoClocks, SyncSender<Result<(), String>>),
    /// The lease that an earlier agent held.
    Resume(Epoch, TwoClocks),
    Serve(Serving),
    /// Of the one for standbys: it is lent to this host by this number, until then.
    Lent(Epoch, TwoClocks),
    /// Of the one for standbys: it was put up beside the primary's.
    Beside,
    /// No lease is held any more.
    Down(Option<SyncSender<()>>),
    End,
}

/// Why an address can't be put up here.
#[derive(Debug)]
pub(super) struct Missing {
    /// In words for people.
    pub problem: String,
    /// Nothing but a restart of the agent can change it.
    pub lasting: bool,
}

/// Whether the address could be put up and announced here. Changes nothing.
///
/// # Errors
/// Why not.
pub(super) fn look(config: &VipConfig) -> Result<(), Missing> {
    let lasting = |error: io::Error| Missing { problem: error.to_string(), lasting: true };
    let may_announce = match announce::check(config.address) {
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(lasting(error)),
        checked => checked.is_ok(),
    };
    let needs = |what: &str| Err(Missing { problem: format!("needs {what}"), lasting: true });
    match Address::open(config).map_err(lasting)?.check() {
        Err(AddressError::Privilege) if !may_announce => needs("CAP_NET_ADMIN and CAP_NET_RAW"),
        Err(AddressError::Privilege) => needs("CAP_NET_ADMIN"),
        Ok(()) | Err(_) if !may_announce => needs("CAP_NET_RAW"),
        Ok(()) => Ok(()),
        Err(error) => Err(Missing { problem: error.to_string(), lasting: false }),
    }
}

/// Takes away what an earlier agent left, where the layer is off by now.
pub(super) fn remove_what_was_left(config: &VipConfig) {
    let removed = Address::open(config).and_then(|mut address| Ok(address.remove()?));
    if let Err(error) = removed {
        warn!(%error, address = %config.address, "failed to look for a virtual address that was left");
    }
}

impl Vip {
    /// The address that leads to the primary. `reader`: the one for standbys may be on this host, too.
    pub fn spawn(parts: Parts, reader: Option<&Vip>) -> io::Result<Vip> {
        Vip::spawn_as(parts, Kind::primary(reader.map(|vip| vip.run.clone())))
    }

    /// The one for standbys.
    pub fn spawn_reader(parts: Parts) -> io::Result<Vip> {
        Vip::spawn_as(parts, Kind::Reader(beside::Reader::default()))
    }

    fn spawn_as(Parts { config, sign, lease }: Parts, kind: Kind) -> io::Result<Vip> {
        let (works, required) = (Arc::new(AtomicBool::new(true)), config.mode == LayerMode::Required);
        let address = Address::open(&config)?;
        let known = Known { deadline: None, serving: Serving::Shut, written: None };
        let inbox = Inbox::new();
        let name = if matches!(kind, Kind::Reader(_)) { "standby-address" } else { "virtual-address" };
        let run = Run {
            config,
            address,
            sign,
            kind,
            lease: lease.clone(),
            stood: None,
            works: works.clone(),
            inbox: inbox.clone(),
            epoch: Epoch(0),
            known,
            announcing: None,
            remove_again: false,
        };
        let run = Shared::new(run);
        let vip = Vip { inbox: inbox.clone(), required, works, run: run.clone(), lease };
        let turns = move || {
            loop {
                let patience = run.lock().patience();
                let mail = inbox.wait(patience);
                if !run.lock().take(mail) {
                    return;
                }
            }
        };
        thread::Builder::new().name(name.to_owned()).spawn(turns)?;
        Ok(vip)
    }

    /// A lease is held; waits until it was looked whether the address could be put up.
    pub fn arm(&self, epoch: Epoch, deadline: TwoClocks) -> Result<(), String> {
        let (reply, answer) = sync_channel(1);
        self.inbox.order(Order::Arm(epoch, deadline, reply));
        answer.recv_timeout(ANSWER_PATIENCE).map_err(|_| "the virtual address was not seen to in time".to_owned())?
    }

    pub fn resume(&self, epoch: Epoch, deadline: TwoClocks) {
        self.inbox.order(Order::Resume(epoch, deadline));
    }

    /// False while a required address can't be put up.
    pub fn moved(&self, epoch: Epoch, deadline: TwoClocks) -> bool {
        self.lease.moved(epoch, deadline);
        self.inbox.moved(epoch, deadline);
        !self.required || self.works.load(Ordering::Relaxed)
    }

    pub fn serve(&self, serving: Serving) {
        self.inbox.order(Order::Serve(serving));
    }

    /// It is lent to this host by the number `id`, and may be kept until then.
    pub fn lent(&self, id: u64, until: TwoClocks) {
        self.lease.moved(Epoch(id), until);
        self.inbox.order(Order::Lent(Epoch(id), until));
    }

    pub fn down(&self) {
        self.inbox.order(Order::Down(None));
    }

    /// The same, and waits until the address is gone: another host may put it up as soon as the lock is given back.
    pub fn down_first(&self) {
        let (reply, gone) = sync_channel(1);
        self.inbox.order(Order::Down(Some(reply)));
        if gone.recv_timeout(GONE_PATIENCE).is_err() {
            warn!(waited = ?GONE_PATIENCE, "did not see the virtual address gone; the kernel ends it");
        }
    }

    pub fn end(&self) {
        self.inbox.order(Order::End);
        self.lease.end();
    }
}

struct Run {
    config: VipConfig,
    address: Address,
    sign: Sign,
    kind: Kind,
    lease: AddressLease,
    /// Whose lease stands for the address in the kernel.
    stood: Option<Epoch>,
    works: Arc<AtomicBool>,
    inbox: Inbox<Order>,
    /// Whose deadline is known; of the one for standbys the number of its lend.
    epoch: Epoch,
    known: Known,
    /// When the address was put up, and how often that was announced since.
    announcing: Option<(TwoClocks, usize)>,
    /// It could not be taken away.
    remove_again: bool,
}

impl Run {
    /// False when this was the end.
    fn take(&mut self, mail: Mail<Order>) -> bool {
        match mail {
            Mail::Order(Order::Arm(epoch, deadline, reply)) => {
                (self.epoch, self.known.deadline) = (epoch, Some(deadline));
                // Nobody waits any more: the promotion was given up.
                let _ = reply.send(self.prepare());
            }
            Mail::Order(Order::Resume(epoch, deadline)) => self.resume(epoch, deadline),
            Mail::Order(Order::Serve(serving)) => self.known.serving = serving,
            Mail::Order(Order::Lent(id, until)) => self.lent(id, until),
            Mail::Order(Order::Down(reply)) => {
                self.down();
                // Without an answer it is known that it may be there still.
                if let Some(reply) = reply.filter(|_| !self.remove_again) {
                    let _ = reply.send(());
                }
            }
            Mail::Order(Order::End) => return false,
            Mail::Moved(epoch, deadline) if self.known.deadline.is_some() && epoch == self.epoch => {
                self.known.deadline = Some(deadline);
            }
            // Of an epoch that is over.
            Mail::Moved(..) | Mail::Order(Order::Beside) | Mail::Nothing => {}
        }
        self.act();
        true
    }

    fn is_reader(&self) -> bool {
        matches!(self.kind, Kind::Reader(_))
    }

    fn patience(&self) -> Option<Duration> {
        let now = two_clocks();
        let again = self.remove_again.then_some(plan::TRY_AGAIN);
        let look = self.is_to_look().then_some(LOOK_AGAIN);
        let announce = self.announcing.and_then(|(since, times)| {
            let due = announce::TIMES.get(times)?;
            Some(due.saturating_sub(now.boot.saturating_sub(since.boot)))
        });
        let known = if self.is_beside() { self.known.patience_beside(now) } else { self.known.patience(now) };
        [known, again, look, announce].into_iter().flatten().min()
    }

    /// What would keep the address from being put up is said before anything becomes writable.
    fn prepare(&mut self) -> Result<(), String> {
        match self.address.check() {
            Ok(()) => {
                self.works.store(true, Ordering::Relaxed);
                if self.is_reader() {
                    self.sign.say("ready");
                }
                Ok(())
            }
            Err(error) => {
                self.complain(&error);
                match self.config.mode {
                    LayerMode::Required => Err(format!("the virtual address is required and {error}")),
                    LayerMode::Automatic | LayerMode::Off => Ok(()),
                }
            }
        }
    }

    /// What an agent that is no more put up goes on, until it is known whether PostgreSQL is open.
    fn resume(&mut self, epoch: Epoch, deadline: TwoClocks) {
        (self.epoch, self.known.deadline, self.known.serving) = (epoch, Some(deadline), Serving::Keep);
        if self.address.is_present().unwrap_or(false) {
            self.say_here(true);
            let now = two_clocks();
            // For how long it was to be is not known: it is written anew at once.
            self.known.written = Some(Written { deadline: now, at: now, seconds: 0 });
        }
    }

    /// Nobody is lent what can't be put up, so it is looked again whether it can.
    fn is_to_look(&self) -> bool {
        self.is_reader() && self.known.deadline.is_none() && !self.works.load(Ordering::Relaxed)
    }

    /// What came late is no longer for it.
    fn lent(&mut self, id: Epoch, until: TwoClocks) {
        let now = two_clocks();
        let left = |deadline: TwoClocks| deadline.holder_remaining(now);
        let newer = self.known.deadline.is_none_or(|known| id > self.epoch || left(until) > left(known));
        if id >= self.epoch && newer {
            (self.epoch, self.known.deadline) = (id, Some(until));
        }
    }

    fn down(&mut self) {
        if self.is_reader() {
            // Whether PostgreSQL is open is told when that changes only, and what did not work stays said.
            self.known.deadline = None;
            self.remove();
            return;
        }
        (self.known.deadline, self.known.serving) = (None, Serving::Shut);
        // What an earlier agent left goes too.
        self.remove();
        self.works.store(true, Ordering::Relaxed);
    }

    fn act(&mut self) {
        for _ in 0..TRIES {
            if self.turn(two_clocks()) {
                break;
            }
        }
        if self.remove_again {
            self.remove();
        }
        if self.is_to_look() {
            let _ = self.prepare();
        }
        self.announce();
    }

    /// False when it has to be looked at again.
    fn turn(&mut self, now: TwoClocks) -> bool {
        match self.known.step(now) {
            Step::Leave => {
                if self.known.has_lapsed(now) && self.known.serving == Serving::Open {
                    let what = if self.is_reader() {
                        "that it is lent was not confirmed"
                    } else {
                        "the lease was not renewed"
                    };
                    self.sign.say(&format!("failed: it has lapsed, {what} in time"));
                }
                true
            }
            Step::Remove => {
                self.remove();
                true
            }
            // With the next write of the primary's.
            Step::Write(_) if self.is_beside() => true,
            Step::Write(_) if self.stand() => false,
            Step::Write(seconds) => self.write_both(seconds, now),
        }
    }

    /// Nothing is put up before its lease stands in the kernel. True when that was seen to, and so time has passed.
    fn stand(&mut self) -> bool {
        let Some(deadline) = self.known.deadline.filter(|_| self.lease.is_there()) else { return false };
        // What the host has of its own is not silenced.
        if self.stood == Some(self.epoch) || self.address.check().is_err() {
            return false;
        }
        self.stood = Some(self.epoch);
        self.lease.stand(self.epoch, deadline);
        true
    }

    /// False when too much time passed on the way: then what was written may be too long.
    fn write(&mut self, seconds: u32, now: TwoClocks) -> bool {
        let Some(deadline) = self.known.deadline else { return true };
        let before = self.known.written.filter(|_| !self.known.has_lapsed(now));
        match self.address.put(seconds, before.is_some()) {
            Ok(put) => {
                self.known.written = Some(Written { deadline, at: now, seconds });
                self.remove_again = false;
                self.works.store(true, Ordering::Relaxed);
                self.sign.say("active");
                if put == Put::Added {
                    info!(address = %self.config.address, interface = self.config.interface, epoch = %self.epoch, "virtual address put up");
                    self.announcing = Some((now, 0));
                }
                self.is_still_in_time(seconds)
            }
            Err(error) => {
                // In doubt it goes. The next try is after a while.
                self.take_away();
                self.complain(&error);
                true
            }
        }
    }

    /// The process may have been stopped since it looked at the clock; then what was written goes again.
    fn is_still_in_time(&mut self, seconds: u32) -> bool {
        let Some(deadline) = self.known.deadline.filter(|_| self.known.written.is_some()) else { return true };
        let in_time = plan::is_in_time(seconds, deadline.holder_remaining(two_clocks()));
        if !in_time {
            self.remove();
        }
        in_time
    }

    fn complain(&mut self, error: &AddressError) {
        self.works.store(false, Ordering::Relaxed);
        if self.sign.say(&format!("failed: {error}")) {
            warn!(%error, address = %self.config.address, interface = self.config.interface, "no virtual address");
        }
    }

    fn remove(&mut self) {
        if self.take_away() && (!self.is_reader() || self.works.load(Ordering::Relaxed)) {
            self.sign.say("ready");
        }
    }

    fn take_away(&mut self) -> bool {
        self.announcing = None;
        let written = self.known.written.take();
        // In one thread that, in another this: whichever the kernel does first ends it.
        if self.stood.take().is_some() {
            self.lease.close();
        }
        let removed = self.address.remove();
        self.remove_again = removed.is_err();
        if removed.is_ok() {
            self.lease.remove();
            self.say_here(false);
        }
        match removed {
            Ok(()) if written.is_some() => info!(address = %self.config.address, "virtual address taken away"),
            Ok(()) => {}
            Err(errno) => {
                if self.sign.say(&format!("failed: can't be removed, {}", errno.desc())) {
                    warn!(error = errno.desc(), "failed to take the virtual address away, trying again");
                }
            }
        }
        removed.is_ok()
    }

    fn announce(&mut self) {
        let Some((since, times)) = self.announcing else { return };
        let age = two_clocks().boot.saturating_sub(since.boot);
        let Some(due) = announce::TIMES.get(times) else {
            self.announcing = None;
            return;
        };
        // The process may have been stopped since it was decided that it stays.
        if age < *due || self.known.deadline.is_none_or(|deadline| deadline.holder_remaining(two_clocks()).is_zero()) {
            return;
        }
        self.announcing = Some((since, times + 1));
        if let Err(error) = announce::announce(self.config.address, &self.config.interface) {
            warn!(%error, address = %self.config.address, "failed to announce the virtual address");
        }
    }
}
