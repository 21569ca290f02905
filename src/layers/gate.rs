//! The gate in front of PostgreSQL's port: kernel lease and client reset, in a
//! thread of its own, so that neither can hold a renewal up.
//!
//! Order matters when a primary has ended. What a server wrote after its deadline
//! was dropped by the kernel lease and lies in the send queue of a connection that
//! nobody owns; taken away too early, the table would let it out. So first the
//! connections are ended, then it is looked whether any is left, then the table goes.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use nix::errno::Errno;
use tracing::{info, warn};

use super::{
    ANSWER_PATIENCE, Left, Words,
    inbox::{Inbox, Mail},
    kernel_lease::{KernelLease, Written},
    sockets::Sockets,
};
use crate::{
    config::LayerMode,
    domain::{Epoch, moment::TwoClocks},
    guard::sys::two_clocks,
};

/// Between two looks at connections that still hold something.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Where connections can't be listed: for so long the kernel goes on with one that nobody owns
/// (`tcp_orphan_retries` of 8 and a first pause of 200 ms), and some more.
const BLIND: Duration = Duration::from_secs(120);

/// The thread's outer side. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    inbox: Inbox<Order>,
    required: bool,
    works: Arc<AtomicBool>,
}

/// What the thread is made of.
#[derive(Debug)]
pub(super) struct Parts {
    /// `None`: off or not to be had.
    pub lease: Option<KernelLease>,
    /// `None`: the kernel can't list sockets.
    pub sockets: Option<Sockets>,
    /// Connections may be reset.
    pub may_reset: bool,
    /// What is configured for the kernel lease.
    pub mode: LayerMode,
    /// T_kill.
    pub kill: Duration,
    /// Told to people.
    pub words: Words,
}

#[derive(Debug)]
pub(super) enum Order {
    Arm(Epoch, TwoClocks, Option<SyncSender<Result<(), String>>>),
    Down(Left),
    End,
}

impl Gate {
    pub fn spawn(parts: Parts) -> io::Result<Gate> {
        let works = Arc::new(AtomicBool::new(true));
        let gate = Gate { inbox: Inbox::new(), required: parts.mode == LayerMode::Required, works: works.clone() };
        let inbox = gate.inbox.clone();
        let run = Run { parts, works, inbox, armed: None, clearing: None, remove_again: false, failed: None };
        thread::Builder::new().name("port-gate".to_owned()).spawn(move || run.run())?;
        Ok(gate)
    }

    /// Puts the kernel lease up and waits until it stands.
    pub fn arm(&self, epoch: Epoch, deadline: TwoClocks) -> Result<(), String> {
        let (reply, answer) = sync_channel(1);
        self.inbox.order(Order::Arm(epoch, deadline, Some(reply)));
        answer.recv_timeout(ANSWER_PATIENCE).map_err(|_| "the kernel lease was not put up in time".to_owned())?
    }

    /// The same without waiting.
    pub fn arm_later(&self, epoch: Epoch, deadline: TwoClocks) {
        self.inbox.order(Order::Arm(epoch, deadline, None));
    }

    /// False while a required kernel lease doesn't work.
    pub fn moved(&self, epoch: Epoch, deadline: TwoClocks) -> bool {
        self.inbox.moved(epoch, deadline);
        !self.required || self.works.load(Ordering::Relaxed)
    }

    pub fn down(&self, left: Left) {
        self.inbox.order(Order::Down(left));
    }

    pub fn end(&self) {
        self.inbox.order(Order::End);
    }
}

struct Run {
    parts: Parts,
    works: Arc<AtomicBool>,
    inbox: Inbox<Order>,
    /// The epoch of the primary here, and until when it may answer.
    armed: Option<(Epoch, TwoClocks)>,
    /// Since when connections of a server that is dead may still hold answers.
    clearing: Option<Instant>,
    /// The table could not be removed: without a primary it would cut off whoever serves here next.
    remove_again: bool,
    /// The last complaint, so that a lasting one is logged once.
    failed: Option<Errno>,
}

impl Run {
    fn run(mut self) {
        loop {
            let unfinished = self.clearing.is_some() || self.remove_again;
            match self.inbox.wait(unfinished.then_some(LOOK_AGAIN)) {
                Mail::Order(Order::Arm(epoch, deadline, reply)) => {
                    let result = self.arm(epoch, deadline);
                    if let Some(reply) = reply {
                        // Nobody waits any more: the promotion was given up.
                        let _ = reply.send(result);
                    }
                }
                Mail::Order(Order::Down(left)) => self.down(left),
                Mail::Order(Order::End) => return,
                Mail::Moved(epoch, deadline) => self.moved(epoch, deadline),
                Mail::Nothing if self.clearing.is_some() => self.clear(),
                Mail::Nothing => self.remove(),
            }
        }
    }

    fn arm(&mut self, epoch: Epoch, deadline: TwoClocks) -> Result<(), String> {
        self.clear();
        if self.clearing.is_some() {
            return Err("connections of the fenced server still hold answers that were never sent".to_owned());
        }
        self.armed = Some((epoch, deadline));
        // The new one takes the place of what is left.
        self.remove_again = false;
        let Some(lease) = &mut self.parts.lease else { return Ok(()) };
        let written = lease.install(deadline, two_clocks);
        if let Ok(Written::Restored) = written {
            info!(table = lease.table(), epoch = %epoch, "kernel lease put up");
        }
        self.judge(written).or_else(|problem| match self.parts.mode {
            LayerMode::Required => Err(problem),
            LayerMode::Automatic | LayerMode::Off => Ok(()),
        })
    }

    fn moved(&mut self, epoch: Epoch, deadline: TwoClocks) {
        let Some((armed, _)) = self.armed.filter(|(armed, _)| *armed == epoch) else { return };
        self.armed = Some((armed, deadline));
        let Some(lease) = &mut self.parts.lease else { return };
        let written = lease.refresh(deadline, two_clocks);
        match &written {
            Ok(Written::Restored) => warn!(table = lease.table(), "somebody removed the kernel lease, it is back"),
            Ok(Written::Reopened) => warn!("the kernel lease had lapsed under a held lease: clients had to wait"),
            Ok(Written::Refreshed | Written::Closed) | Err(_) => {}
        }
        // What the complaint says is in the words and in the log.
        let _ = self.judge(written);
    }

    /// What a write to the kernel means for the status and for renewing.
    fn judge(&mut self, written: Result<Written, Errno>) -> Result<(), String> {
        match written {
            Ok(_) => {
                self.failed = None;
                self.works.store(true, Ordering::Relaxed);
                self.parts.words.kernel_lease("active");
                Ok(())
            }
            Err(errno) => {
                let problem = format!("failed: nf_tables says {}", errno.desc());
                if self.failed.replace(errno) != Some(errno) {
                    warn!(error = problem, "failed to write the kernel lease");
                }
                self.works.store(false, Ordering::Relaxed);
                self.parts.words.kernel_lease(&problem);
                if self.parts.mode != LayerMode::Required
                    && let Some(lease) = &mut self.parts.lease
                {
                    // Without a refresh it would cut a healthy primary off.
                    let _ = lease.remove();
                }
                Err(problem)
            }
        }
    }

    fn down(&mut self, left: Left) {
        let armed = self.armed.take();
        let stands = match &mut self.parts.lease {
            None => false,
            // What an earlier agent left stands too, and so may what can't be looked at.
            Some(lease) => armed.is_some() || lease.is_present().unwrap_or(true),
        };
        match left {
            // A standby started where a primary was fenced waits until that one's answers are gone.
            Left::Standby if self.clearing.is_some() => {}
            Left::Standby => self.remove(),
            Left::Nothing => {
                // Before the deadline, or so soon after it that T_kill allows for it, nothing too late was written.
                let over =
                    armed.is_none_or(|(_, at)| at.plus(self.parts.kill).holder_remaining(two_clocks()).is_zero());
                if stands || armed.is_some() {
                    self.reset();
                }
                if stands && over {
                    self.clearing = Some(Instant::now());
                    self.clear();
                } else {
                    self.remove();
                }
            }
        }
    }

    fn reset(&mut self) {
        if !self.parts.may_reset {
            return;
        }
        let Some(sockets) = &mut self.parts.sockets else { return };
        match sockets.reset_all() {
            Ok(0) => {}
            Ok(ended) => info!(ended, "connections of the ended server were reset"),
            Err(errno) => warn!(error = errno.desc(), "failed to reset connections of the ended server"),
        }
    }

    /// Takes the table away once no connection holds an answer.
    fn clear(&mut self) {
        let Some(since) = self.clearing else { return };
        self.reset();
        let held = match self.parts.sockets.as_mut().map(Sockets::with_unsent) {
            Some(Ok(held)) => held,
            Some(Err(_)) | None => usize::from(since.elapsed() < BLIND),
        };
        if held == 0 {
            self.clearing = None;
            return self.remove();
        }
        let word = format!("clearing: {held} connections of the fenced server hold unsent answers");
        if self.parts.words.kernel_lease(&word) {
            warn!(held, "clients have to wait until connections of the fenced server are gone");
        }
    }

    fn remove(&mut self) {
        let Some(lease) = &mut self.parts.lease else { return };
        match lease.remove() {
            Ok(()) => {
                (self.failed, self.remove_again) = (None, false);
                self.parts.words.kernel_lease("ready");
            }
            Err(errno) => {
                self.remove_again = true;
                if self.failed.replace(errno) != Some(errno) {
                    warn!(
                        error = errno.desc(),
                        table = lease.table(),
                        "failed to remove the kernel lease, trying again"
                    );
                }
                self.parts.words.kernel_lease(&format!("failed: can't be removed, {}", errno.desc()));
            }
        }
    }
}
