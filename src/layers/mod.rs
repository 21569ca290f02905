//! Layers beyond the lease and the guard. Each covers what the two can't when
//! nothing of them runs any more, each can be left out, and none decides anything:
//! they are told of grants, deadlines and ends, and carry them on to the kernel, to
//! a device or to a program.
//!
//! ```text
//!  holder thread ──deadline──▶ gate thread ──▶ nf_tables, inet_diag   kernel_lease, sockets
//!                        ├───▶ watchdog thread ──▶ /dev/watchdog      watchdog
//!                        ├───▶ virtual-address thread ──▶ rtnetlink   vip
//!                        └───▶ address-lease thread ──▶ nf_tables     vip/lease
//!  manager ──lent until──▶ another thread of that kind, for the standbys' address
//!  manager of the Raft leader ──fenced epoch──▶ a program            stonith
//! ```
//!
//! What each covers and what not: docs/layers.md. Read [`kernel_lease`] first.

mod gate;
mod inbox;
pub mod kernel_lease;
mod nft;
mod nft_address;
pub mod sockets;
pub mod stonith;
pub mod vip;
pub mod watchdog;

use std::{
    io,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::errno::Errno;

use crate::{
    config::{LayerMode, LayersConfig, VipConfig},
    domain::{Epoch, MemberId, Timings, moment::TwoClocks, observation::LayerView, observation::READER_LAYER},
    guard::Addresses,
    netlink,
};
use gate::{Gate, Parts};
use kernel_lease::KernelLease;
use sockets::Sockets;
pub use vip::Serving;
use vip::{Vip, lease::AddressLease};
use watchdog::{Ioctl, Watchdog, WatchdogOptions};

/// How long a promotion waits for a layer to stand.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);

/// How the tables of the two addresses end.
const VIP_TABLES: &str = "vip";
const READER_TABLES: &str = "vip-standby";

/// What runs when protection may be taken down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Nothing: the process tree of the primary was seen empty.
    Nothing,
    /// A standby that never became primary, or none that this host ever promoted.
    Standby,
}

/// What the layers of one agent need to know.
#[derive(Debug, Clone)]
pub struct LayersOptions {
    /// Name of the cluster.
    pub cluster: String,
    /// This member.
    pub me: MemberId,
    /// What is configured.
    pub config: LayersConfig,
    /// Port of PostgreSQL.
    pub port: u16,
    /// `listen_addresses` of PostgreSQL.
    pub listen_addresses: String,
    /// Gone after a reboot.
    pub runtime_dir: PathBuf,
    /// Of the cluster.
    pub timings: Timings,
}

/// Why an agent doesn't start.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// A required layer can't be had.
    #[error("{what} is required and {problem}")]
    Unavailable {
        /// The key that asks for it.
        key: &'static str,
        /// Its name.
        what: &'static str,
        /// Why not.
        problem: String,
    },
    /// No thread could be had.
    #[error("start the thread of a layer")]
    Thread(#[from] io::Error),
}

/// The layers of one agent. Cheap to clone; the threads end with the last clone.
#[derive(Debug, Clone)]
pub struct Layers {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    gate: Gate,
    watchdog: Option<Watchdog>,
    vip: Option<Vip>,
    reader: Option<Vip>,
    addresses: Addresses,
    words: Words,
}

impl Drop for Inner {
    /// As if the process had been killed: what protects goes on until it lapses.
    fn drop(&mut self) {
        self.gate.end();
        if let Some(watchdog) = &self.watchdog {
            watchdog.end();
        }
        for vip in [&self.vip, &self.reader].into_iter().flatten() {
            vip.end();
        }
    }
}

impl Layers {
    /// Looks what can be had on this host and starts the threads. Nothing is armed yet.
    ///
    /// # Errors
    /// A required layer is not to be had, or no thread.
    pub fn open(options: LayersOptions) -> Result<Layers, LayerError> {
        Layers::open_with(options, Box::new(watchdog::Linux))
    }

    /// [`Layers::open`] with other ioctls.
    ///
    /// # Errors
    /// As [`Layers::open`].
    pub fn open_with(options: LayersOptions, ioctl: Box<dyn Ioctl>) -> Result<Layers, LayerError> {
        let words = Words::default();
        let addresses = addresses(&options.listen_addresses);
        let lease = open_kernel_lease(&options, addresses.clone(), &words)?;
        let (sockets, may_reset) = open_sockets(&options, addresses, &words);
        let kill = options.timings.kill;
        let mode = options.config.kernel_lease;
        let gate = Gate::spawn(Parts { lease, sockets, may_reset, mode, kill, words: words.clone() })?;
        let watchdog = open_watchdog(&options, ioctl, &words)?;
        let reader = open_reader(&options, &words)?;
        let vip = open_vip(&options, reader.as_ref(), &words)?;
        let address = |config: &Option<Box<VipConfig>>| config.as_ref().map(|config| config.address);
        let led = vip.as_ref().and_then(|_| address(&options.config.vip));
        let addresses = [led, reader.as_ref().and_then(|_| address(&options.config.vip_standby))];
        Ok(Layers { inner: Arc::new(Inner { gate, watchdog, vip, reader, addresses, words }) })
    }

    /// The virtual addresses that may be put up here, for a guard that ends what they lead to.
    pub fn addresses(&self) -> Addresses {
        self.inner.addresses
    }

    /// Before PostgreSQL can become writable: blocks until every layer stands.
    ///
    /// # Errors
    /// A required layer doesn't, or what an earlier primary left is not cleared yet.
    pub fn arm(&self, epoch: Epoch, deadline: TwoClocks) -> Result<(), String> {
        self.inner.gate.arm(epoch, deadline)?;
        self.inner.watchdog.as_ref().map_or(Ok(()), |watchdog| watchdog.arm(epoch, deadline))?;
        self.inner.vip.as_ref().map_or(Ok(()), |vip| vip.arm(epoch, deadline))
    }

    /// Takes over what an earlier agent armed, without waiting.
    pub fn resume(&self, epoch: Epoch, deadline: TwoClocks) {
        self.inner.gate.arm_later(epoch, deadline);
        if let Some(watchdog) = &self.inner.watchdog {
            watchdog.arm_later(epoch, deadline);
        }
        if let Some(vip) = &self.inner.vip {
            vip.resume(epoch, deadline);
        }
    }

    /// A renewal moved the deadline. Never blocks. False while a required layer doesn't
    /// work: then renewing has to stop.
    #[must_use]
    pub fn moved(&self, epoch: Epoch, deadline: TwoClocks) -> bool {
        let gate = self.inner.gate.moved(epoch, deadline);
        let watchdog = self.inner.watchdog.as_ref().is_none_or(|watchdog| watchdog.moved(epoch, deadline));
        let vip = self.inner.vip.as_ref().is_none_or(|vip| vip.moved(epoch, deadline));
        gate && watchdog && vip
    }

    /// Whether clients are to be led to this host. Never blocks.
    pub fn serve(&self, serving: Serving) {
        if let Some(vip) = &self.inner.vip {
            vip.serve(serving);
        }
    }

    /// Until when this host may have the address for standbys by lend `id`; `None`: it may not. Never blocks.
    pub fn lend_reader(&self, lent: Option<(u64, TwoClocks)>) {
        let Some(reader) = &self.inner.reader else { return };
        match lent {
            Some((id, until)) => reader.lent(id, until),
            None => reader.down(),
        }
    }

    /// Whether clients that read are to be led to this host, where it may have the address for standbys. Never blocks.
    pub fn serve_reader(&self, serving: Serving) {
        if let Some(reader) = &self.inner.reader {
            reader.serve(serving);
        }
    }

    /// The lock is about to be given back: what leads clients here goes before. Waits for that, a quarter of a second at most.
    pub fn lead_nobody(&self) {
        if let Some(vip) = &self.inner.vip {
            vip.down_first();
        }
    }

    /// Other timings are in force. Never blocks.
    pub fn set_timings(&self, timings: Timings) {
        if let Some(watchdog) = &self.inner.watchdog {
            watchdog.set_timings(timings);
        }
    }

    /// Nothing of a primary can run here any more.
    pub fn stand_down(&self, left: Left) {
        self.inner.gate.down(left);
        if let Some(watchdog) = &self.inner.watchdog {
            watchdog.down(left);
        }
        if let Some(vip) = &self.inner.vip {
            vip.down();
        }
    }

    /// The agent ends in an orderly way and its guard goes on: the watchdog is stopped,
    /// for a restart of the agent is no reason for one of the host. Waits for that, two seconds at most.
    pub fn leave(&self) {
        if let Some(watchdog) = &self.inner.watchdog {
            watchdog.stop();
        }
    }

    /// The state of each, for people.
    pub fn views(&self) -> Vec<LayerView> {
        self.inner.words.views()
    }
}

fn open_kernel_lease(
    options: &LayersOptions,
    addresses: Vec<IpAddr>,
    words: &Words,
) -> Result<Option<KernelLease>, LayerError> {
    let mode = options.config.kernel_lease;
    let opened = KernelLease::open(&options.cluster, options.me.as_str(), options.port, addresses);
    match opened {
        Ok(mut lease) if mode == LayerMode::Off => {
            // One that was switched off must not go on dropping packets.
            if let Err(errno) = lease.remove() {
                tracing::warn!(error = errno.desc(), "failed to remove a kernel lease that was switched off");
            }
            words.kernel_lease("off");
            Ok(None)
        }
        Ok(lease) => {
            words.kernel_lease("ready");
            Ok(Some(lease))
        }
        Err(_) if mode == LayerMode::Off => {
            words.kernel_lease("off");
            Ok(None)
        }
        Err(error) => {
            let problem = network_problem(&error, "the kernel has no nf_tables");
            if mode == LayerMode::Required {
                return Err(LayerError::Unavailable { key: "layers.kernel_lease", what: "the kernel lease", problem });
            }
            words.kernel_lease(&format!("unavailable: {problem}"));
            Ok(None)
        }
    }
}

/// The list of sockets is wanted by the kernel lease too, the reset only where it is configured.
fn open_sockets(options: &LayersOptions, addresses: Vec<IpAddr>, words: &Words) -> (Option<Sockets>, bool) {
    let wanted = options.config.client_reset != LayerMode::Off;
    let sockets = Sockets::open(options.port, addresses).ok();
    let may = Sockets::may_reset();
    match &may {
        _ if !wanted => words.client_reset("off"),
        Ok(()) => words.client_reset("ready"),
        Err(error) => {
            let problem = network_problem(error, "the kernel lacks CONFIG_INET_DIAG_DESTROY");
            words.client_reset(&format!("unavailable: {problem}"));
        }
    }
    (sockets, wanted && may.is_ok())
}

fn network_problem(error: &io::Error, otherwise: &str) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM | Errno::EACCES) => "needs CAP_NET_ADMIN".to_owned(),
        Some(Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::EINVAL) => otherwise.to_owned(),
        _ => error.to_string(),
    }
}

fn open_watchdog(
    options: &LayersOptions,
    ioctl: Box<dyn Ioctl>,
    words: &Words,
) -> Result<Option<Watchdog>, LayerError> {
    let config = &options.config.watchdog;
    match (config.mode, watchdog::look(&config.device)) {
        (LayerMode::Off, _) => {
            words.watchdog("off");
            watchdog::stop_what_was_left(&config.device, &options.runtime_dir);
            return Ok(None);
        }
        (LayerMode::Required, Err(problem)) => {
            return Err(LayerError::Unavailable { key: "layers.watchdog", what: "the watchdog", problem });
        }
        (LayerMode::Automatic, Err(problem)) => {
            words.watchdog(&format!("unavailable: {problem}"));
            return Ok(None);
        }
        (LayerMode::Automatic | LayerMode::Required, Ok(())) => {
            words.watchdog("ready");
        }
    }
    let options = WatchdogOptions {
        mode: config.mode,
        device: config.device.clone(),
        timeout_s: config.timeout_s,
        timings: options.timings,
        runtime_dir: options.runtime_dir.clone(),
    };
    Ok(Some(Watchdog::spawn(options, ioctl, words.clone())?))
}

fn open_vip(options: &LayersOptions, reader: Option<&Vip>, words: &Words) -> Result<Option<Vip>, LayerError> {
    let Some(config) = &options.config.vip else {
        words.vip().say("off");
        vip::lease::remove_what_was_left(&tables(options, VIP_TABLES));
        return Ok(None);
    };
    let of = Opening { name: tables(options, VIP_TABLES), sign: words.vip(), lease: words.vip_lease() };
    open_address(config, of, |parts| Vip::spawn(parts, reader))
}

/// Nothing is said of it where none is configured.
fn open_reader(options: &LayersOptions, words: &Words) -> Result<Option<Vip>, LayerError> {
    let name = tables(options, READER_TABLES);
    let Some(config) = &options.config.vip_standby else {
        vip::lease::remove_what_was_left(&name);
        return Ok(None);
    };
    let of = Opening { name, sign: words.reader(), lease: words.reader_lease() };
    open_address(config, of, Vip::spawn_reader)
}

/// The name of what nf_tables has for one of the two addresses of this member.
fn tables(options: &LayersOptions, which: &str) -> String {
    format!("matriarch.{}.{}.{which}", options.cluster, options.me)
}

/// By what one of the two addresses is known.
struct Opening {
    /// To nf_tables.
    name: String,
    sign: Sign,
    lease: Sign,
}

fn open_address(
    config: &VipConfig,
    Opening { name, sign, lease }: Opening,
    spawn: impl FnOnce(vip::Parts) -> io::Result<Vip>,
) -> Result<Option<Vip>, LayerError> {
    if config.mode == LayerMode::Off {
        sign.say("off");
        vip::remove_what_was_left(config);
        vip::lease::remove_what_was_left(&name);
        return Ok(None);
    }
    match vip::look(config) {
        Ok(()) => {
            sign.say("ready");
        }
        Err(vip::Missing { problem, .. }) if config.mode == LayerMode::Required => {
            return Err(LayerError::Unavailable { key: "layers.vip", what: "the virtual address", problem });
        }
        Err(vip::Missing { problem, lasting }) => {
            sign.say(&format!("unavailable: {problem}"));
            if lasting {
                return Ok(None);
            }
        }
    }
    let lease = AddressLease::spawn(name, config.address, lease)?;
    Ok(Some(spawn(vip::Parts { config: config.clone(), sign, lease })?))
}

/// The addresses of `listen_addresses`, when each is one; empty stands for all of the host.
fn addresses(listen: &str) -> Vec<IpAddr> {
    let parts = listen.split(',').map(|part| part.trim().parse::<IpAddr>().ok().filter(|ip| !ip.is_unspecified()));
    parts.collect::<Option<Vec<_>>>().unwrap_or_default()
}

/// What each layer says of itself.
#[derive(Debug, Clone, Default)]
struct Words {
    said: Arc<Mutex<[String; 7]>>,
}

const NAMES: [&str; 7] = [
    "kernel lease",
    "watchdog",
    "client reset",
    "virtual address",
    READER_LAYER,
    "address lease",
    "address lease for standbys",
];

impl Words {
    /// True when that is news.
    fn kernel_lease(&self, word: &str) -> bool {
        self.say(0, word)
    }

    fn watchdog(&self, word: &str) -> bool {
        self.say(1, word)
    }

    fn client_reset(&self, word: &str) {
        self.say(2, word);
    }

    fn vip(&self) -> Sign {
        Sign { words: self.clone(), index: 3 }
    }

    fn reader(&self) -> Sign {
        Sign { words: self.clone(), index: 4 }
    }

    fn vip_lease(&self) -> Sign {
        Sign { words: self.clone(), index: 5 }
    }

    fn reader_lease(&self) -> Sign {
        Sign { words: self.clone(), index: 6 }
    }

    fn say(&self, index: usize, word: &str) -> bool {
        let said = &mut self.said.lock().unwrap_or_else(PoisonError::into_inner)[index];
        let news = said != word;
        if news {
            word.clone_into(said);
        }
        news
    }

    fn views(&self) -> Vec<LayerView> {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let view = |(name, state): (&str, &String)| LayerView { name: name.to_owned(), state: state.clone() };
        // What nobody asked for says nothing, and has no line.
        NAMES.into_iter().zip(said.iter()).filter(|(_, state)| !state.is_empty()).map(view).collect()
    }
}

/// Where one of the two virtual addresses, or its lease, tells of itself.
#[derive(Debug, Clone)]
struct Sign {
    words: Words,
    index: usize,
}

impl Sign {
    /// True when that is news.
    fn say(&self, word: &str) -> bool {
        self.words.say(self.index, word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_listens_on_names_or_everywhere_is_guarded_on_every_address() {
        assert_eq!(addresses("10.0.0.1, fd00::1"), ["10.0.0.1", "fd00::1"].map(|a| a.parse::<IpAddr>().unwrap()));
        assert_eq!(addresses("*"), Vec::<IpAddr>::new());
        assert_eq!(addresses("0.0.0.0"), Vec::<IpAddr>::new());
        assert_eq!(addresses("10.0.0.1,db1.example"), Vec::<IpAddr>::new());
    }

    #[test]
    fn a_missing_privilege_is_named() {
        let problem = |errno: Errno| network_problem(&errno.into(), "not there");
        assert_eq!(problem(Errno::EPERM), "needs CAP_NET_ADMIN");
        assert_eq!(problem(Errno::EOPNOTSUPP), "not there");
        assert_eq!(problem(Errno::ENOMEM), "Cannot allocate memory (os error 12)");
    }
}
