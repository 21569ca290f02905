//! The Linux watchdog: a timer outside of all processes that restarts the host
//! unless it is reset in time. Reset only under a held lease whose last renewal is
//! fresh, so that a host on which everything has stopped is restarted before
//! anybody else can become primary (T2 of the lease's inequalities).
//!
//! A thread of its own: a driver may take its time, and nothing else waits for it.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use tracing::{error, info, warn};

use super::{
    ANSWER_PATIENCE, Left, Words,
    inbox::{Inbox, Mail},
};
use crate::{
    config::LayerMode,
    domain::{Epoch, Timings, moment::TwoClocks},
    guard::sys::{self, two_clocks},
};

/// The last reset comes this long before it would be too late.
const MARGIN: Duration = Duration::from_millis(10);
/// Says in the runtime directory that the device was left running by an agent that is no more.
const MARKER: &str = "watchdog.armed";
/// Written before the close, it stops the timer; without it a close means a crash.
const MAGIC_CLOSE: &[u8] = b"V";

/// What the kernel's ioctls do, so that a test can do without a device.
pub trait Ioctl: Send {
    /// Sets the time-out; gives the one the device took.
    ///
    /// # Errors
    /// It is no watchdog, or can't be set.
    fn set_timeout(&self, device: &File, seconds: u32) -> io::Result<u32>;
}

/// The real ones.
#[derive(Debug)]
pub struct Linux;

impl Ioctl for Linux {
    fn set_timeout(&self, device: &File, seconds: u32) -> io::Result<u32> {
        sys::set_watchdog_timeout(device, seconds)
    }
}

/// What a watchdog needs to know.
#[derive(Debug, Clone)]
pub struct WatchdogOptions {
    /// Off isn't for here.
    pub mode: LayerMode,
    /// `/dev/watchdog`.
    pub device: PathBuf,
    /// Its time-out in whole seconds.
    pub timeout_s: u32,
    /// Of the cluster: T_hold, T_grant and the drift are used.
    pub timings: Timings,
    /// Where the marker lies.
    pub runtime_dir: PathBuf,
}

/// The thread's outer side. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Watchdog {
    inbox: Inbox<Order>,
    required: bool,
    works: Arc<AtomicBool>,
}

#[derive(Debug)]
enum Order {
    Arm(Epoch, TwoClocks, Option<SyncSender<Result<(), String>>>),
    Timings(Box<Timings>),
    Down,
    /// The process ends: stop the timer and say so, or leave it running.
    End(Option<SyncSender<()>>),
}

impl Watchdog {
    pub(super) fn spawn(options: WatchdogOptions, ioctl: Box<dyn Ioctl>, words: Words) -> io::Result<Watchdog> {
        let works = Arc::new(AtomicBool::new(true));
        let required = options.mode == LayerMode::Required;
        let watchdog = Watchdog { inbox: Inbox::new(), required, works: works.clone() };
        let inbox = watchdog.inbox.clone();
        let run =
            Run { options, ioctl, words, works, inbox, device: None, seconds: 0, keep: Duration::MAX, armed: None };
        thread::Builder::new().name("watchdog".to_owned()).spawn(move || run.run())?;
        Ok(watchdog)
    }

    /// Starts the timer and waits until it runs.
    pub(super) fn arm(&self, epoch: Epoch, deadline: TwoClocks) -> Result<(), String> {
        let (reply, answer) = sync_channel(1);
        self.inbox.order(Order::Arm(epoch, deadline, Some(reply)));
        answer.recv_timeout(ANSWER_PATIENCE).map_err(|_| "the watchdog was not started in time".to_owned())?
    }

    /// The same without waiting.
    pub(super) fn arm_later(&self, epoch: Epoch, deadline: TwoClocks) {
        self.inbox.order(Order::Arm(epoch, deadline, None));
    }

    /// False while a required watchdog doesn't work.
    pub(super) fn moved(&self, epoch: Epoch, deadline: TwoClocks) -> bool {
        self.inbox.moved(epoch, deadline);
        !self.required || self.works.load(Ordering::Relaxed)
    }

    /// How fresh a renewal has to be is counted anew.
    pub(super) fn set_timings(&self, timings: Timings) {
        self.inbox.order(Order::Timings(Box::new(timings)));
    }

    pub(super) fn down(&self, _left: Left) {
        self.inbox.order(Order::Down);
    }

    /// The thread ends and leaves the timer running.
    pub(super) fn end(&self) {
        self.inbox.order(Order::End(None));
    }

    /// The thread stops the timer and ends; waits for that, since a process that ends first would leave it running.
    pub(super) fn stop(&self) {
        let (reply, stopped) = sync_channel(1);
        self.inbox.order(Order::End(Some(reply)));
        // It has ended before, or the device hangs, of which it says so itself.
        if stopped.recv_timeout(ANSWER_PATIENCE).is_err() {
            warn!(waited = ?ANSWER_PATIENCE, "did not see the watchdog stopped");
        }
    }
}

/// Stops a timer that an agent left running, when its PostgreSQL is known to be dead.
pub(super) fn stop_what_was_left(device: &Path, runtime_dir: &Path) {
    let marker = runtime_dir.join(MARKER);
    if !marker.exists() {
        return;
    }
    let stopped = OpenOptions::new().write(true).open(device).and_then(|mut device| device.write_all(MAGIC_CLOSE));
    match stopped {
        Ok(()) => {
            info!(device = %device.display(), "stopped the watchdog that an earlier agent left running");
            // A marker that stays only means one more such close.
            let _ = std::fs::remove_file(&marker);
        }
        Err(error) => error!(%error, device = %device.display(), "can't stop the watchdog: this host will restart"),
    }
}

struct Run {
    options: WatchdogOptions,
    ioctl: Box<dyn Ioctl>,
    words: Words,
    works: Arc<AtomicBool>,
    inbox: Inbox<Order>,
    device: Option<File>,
    /// The time-out it runs with.
    seconds: u32,
    /// It is reset only while more than this of the lease is left.
    keep: Duration,
    armed: Option<(Epoch, TwoClocks)>,
}

impl Run {
    fn run(mut self) {
        loop {
            match self.inbox.wait(self.patience()) {
                Mail::Order(Order::Arm(epoch, deadline, reply)) => {
                    let result = self.arm(epoch, deadline);
                    if let Some(reply) = reply {
                        let _ = reply.send(result);
                    }
                }
                Mail::Order(Order::Timings(timings)) => self.retime(*timings),
                Mail::Order(Order::Down) => self.down(),
                Mail::Order(Order::End(None)) => return,
                Mail::Order(Order::End(Some(reply))) => {
                    if self.device.is_some() {
                        self.down();
                    }
                    let _ = reply.send(());
                    return;
                }
                Mail::Moved(epoch, deadline) => self.moved(epoch, deadline),
                Mail::Nothing => self.pet(),
            }
        }
    }

    /// Until the next reset is due: in half of the time-out, and once more at the last moment that is allowed.
    fn patience(&self) -> Option<Duration> {
        self.device.as_ref()?;
        let (_, deadline) = self.armed?;
        let fresh = self.fresh_for(deadline).checked_sub(MARGIN).filter(|left| !left.is_zero())?;
        Some(fresh.min(Duration::from_secs(self.options.timeout_s.into()) / 2))
    }

    fn fresh_for(&self, deadline: TwoClocks) -> Duration {
        deadline.holder_remaining(two_clocks()).saturating_sub(self.keep)
    }

    fn arm(&mut self, epoch: Epoch, deadline: TwoClocks) -> Result<(), String> {
        self.armed = Some((epoch, deadline));
        if self.device.is_none()
            && let Err(problem) = self.open()
        {
            warn!(problem, device = %self.options.device.display(), "no watchdog");
            self.works.store(false, Ordering::Relaxed);
            self.words.watchdog(&format!("unavailable: {problem}"));
            return match self.options.mode {
                LayerMode::Required => Err(format!("the watchdog is required and {problem}")),
                LayerMode::Automatic | LayerMode::Off => Ok(()),
            };
        }
        self.pet();
        Ok(())
    }

    /// From here on the host restarts unless the timer is reset.
    fn open(&mut self) -> Result<(), String> {
        let WatchdogOptions { device, timeout_s, timings, runtime_dir, .. } = &self.options;
        let file = OpenOptions::new().write(true).open(device).map_err(|e| open_problem(device, &e))?;
        let taken = self.ioctl.set_timeout(&file, *timeout_s);
        let fits = match taken {
            Ok(seconds) => timings
                .watchdog_freshness(seconds)
                .map(|freshness| (freshness, seconds))
                .ok_or_else(|| format!("{} takes {seconds} s at least, too long", device.display())),
            Err(error) => Err(format!("the time-out of {} can't be set ({error})", device.display())),
        };
        match fits {
            Ok((freshness, seconds)) => {
                self.seconds = seconds;
                self.keep = timings.hold.saturating_sub(freshness);
                self.device = Some(file);
                // Without it the next agent would only not stop a timer that this one left.
                if let Err(error) = File::create(runtime_dir.join(MARKER)) {
                    warn!(%error, "failed to note that the watchdog runs");
                }
                info!(device = %device.display(), timeout_s, "watchdog started");
                Ok(())
            }
            Err(problem) => {
                stop(file);
                Err(problem)
            }
        }
    }

    /// The time-out that the timer runs with may be too long for other timings: a timer that would restart the host
    /// after the promises have ended is none. A required one that doesn't work stops the renewing.
    fn retime(&mut self, timings: Timings) {
        self.options.timings = timings;
        match (timings.watchdog_freshness(self.seconds), self.device.take()) {
            (_, None) => {}
            (Some(freshness), device) => {
                self.keep = timings.hold.saturating_sub(freshness);
                self.device = device;
            }
            (None, Some(file)) => {
                stop(file);
                self.works.store(false, Ordering::Relaxed);
                let problem = format!("its time-out of {} s is too long for the timings in force", self.seconds);
                warn!(problem, device = %self.options.device.display(), "no watchdog");
                self.words.watchdog(&format!("unavailable: {problem}"));
            }
        }
    }

    fn moved(&mut self, epoch: Epoch, deadline: TwoClocks) {
        if self.armed.is_none_or(|(armed, _)| armed != epoch) {
            return;
        }
        self.armed = Some((epoch, deadline));
        if self.device.is_none() && self.options.mode == LayerMode::Required {
            let _ = self.arm(epoch, deadline);
        } else {
            self.pet();
        }
    }

    fn pet(&mut self) {
        let Some((_, deadline)) = self.armed else { return };
        if self.fresh_for(deadline).is_zero() {
            return;
        }
        let Some(device) = &mut self.device else { return };
        match device.write_all(b"\0") {
            Ok(()) => {
                self.works.store(true, Ordering::Relaxed);
                self.words.watchdog("active");
            }
            Err(error) => {
                self.works.store(false, Ordering::Relaxed);
                if self.words.watchdog(&format!("failed: {error}")) {
                    error!(%error, "failed to reset the watchdog: this host may restart");
                }
            }
        }
    }

    fn down(&mut self) {
        self.armed = None;
        match self.device.take() {
            Some(file) => {
                if stop(file) {
                    info!("watchdog stopped");
                    let _ = std::fs::remove_file(self.options.runtime_dir.join(MARKER));
                }
            }
            None => stop_what_was_left(&self.options.device, &self.options.runtime_dir),
        }
        self.works.store(true, Ordering::Relaxed);
        self.words.watchdog("ready");
    }
}

fn stop(mut device: File) -> bool {
    match device.write_all(MAGIC_CLOSE) {
        Ok(()) => true,
        Err(error) => {
            error!(%error, "can't stop the watchdog: this host will restart");
            false
        }
    }
}

/// Why the device can't be had, in words that say what to do.
fn open_problem(device: &Path, error: &io::Error) -> String {
    let shown = device.display();
    match error.kind() {
        io::ErrorKind::NotFound => format!("there is no {shown}"),
        io::ErrorKind::PermissionDenied => format!("needs write access to {shown}"),
        io::ErrorKind::ResourceBusy => format!("{shown} is used by another program"),
        _ => format!("can't open {shown} ({error})"),
    }
}

/// Whether the device is there and may be written, without opening it, which would start it.
///
/// # Errors
/// Why not.
pub fn look(device: &Path) -> Result<(), String> {
    match nix::unistd::access(device, nix::unistd::AccessFlags::W_OK) {
        Ok(()) => Ok(()),
        Err(errno) => Err(open_problem(device, &errno.into())),
    }
}
