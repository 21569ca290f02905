//! The watchdog on a FIFO in place of the device: what is written into it is read
//! by the test. The real device, where there is one, is only looked at.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use matriarch::{
    config::{LayerMode, LayersConfig, WatchdogConfig},
    domain::{Epoch, Profile, Timings, moment::TwoClocks},
    guard::sys::two_clocks,
    layers::{
        Layers, LayersOptions, Left,
        watchdog::{Ioctl, Linux},
    },
};
use nix::{libc::O_NONBLOCK, sys::stat::Mode, unistd::mkfifo};

const PATIENCE: Duration = Duration::from_secs(10);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A driver that takes every time-out, or always its own.
#[derive(Clone, Default)]
struct Driver {
    own_s: Option<u32>,
    asked_s: Arc<AtomicU32>,
}

impl Ioctl for Driver {
    fn set_timeout(&self, _device: &File, seconds: u32) -> io::Result<u32> {
        self.asked_s.store(seconds, Ordering::SeqCst);
        Ok(self.own_s.unwrap_or(seconds))
    }
}

/// The device and who reads what is written into it.
struct Device {
    dir: tempfile::TempDir,
    reader: File,
}

impl Device {
    fn new() -> Device {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watchdog");
        mkfifo(&path, Mode::from_bits_truncate(0o600)).unwrap();
        let reader = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path).unwrap();
        Device { dir, reader }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("watchdog")
    }

    fn options(&self, mode: LayerMode) -> LayersOptions {
        let timings = Timings::of(Profile::Fast);
        let timeout_s = timings.watchdog_timeout_max_s().unwrap();
        let watchdog = WatchdogConfig { mode, device: self.path(), timeout_s };
        let (kernel_lease, client_reset) = (LayerMode::Off, LayerMode::Off);
        LayersOptions {
            cluster: "main".into(),
            me: "n1".parse().unwrap(),
            config: LayersConfig { watchdog, kernel_lease, client_reset, stonith: None, vip: None, vip_standby: None },
            port: 1,
            listen_addresses: "127.0.0.1".into(),
            runtime_dir: self.dir.path().to_owned(),
            timings,
        }
    }

    fn layers(&self, driver: &Driver) -> Layers {
        Layers::open_with(self.options(LayerMode::Automatic), Box::new(driver.clone())).unwrap()
    }

    /// What was written since the last look; `None` when nobody has it open.
    fn read(&mut self) -> Option<Vec<u8>> {
        let mut buffer = [0; 4_096];
        match self.reader.read(&mut buffer) {
            Ok(0) => None,
            Ok(n) => Some(buffer[..n].to_vec()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Some(Vec::new()),
            Err(error) => panic!("{error}"),
        }
    }

    /// All that is written until it is closed.
    fn rest(&mut self) -> Vec<u8> {
        let (began, mut all) = (Instant::now(), Vec::new());
        while let Some(more) = self.read() {
            all.extend(more);
            assert!(began.elapsed() < PATIENCE, "it is never closed");
            thread::sleep(ms(1));
        }
        all
    }
}

fn word(layers: &Layers) -> String {
    layers.views().into_iter().find(|l| l.name == "watchdog").unwrap().state
}

fn until(what: &str, mut check: impl FnMut() -> bool) {
    let began = Instant::now();
    while !check() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        thread::sleep(ms(1));
    }
}

/// A renewal sent now.
fn renewed() -> TwoClocks {
    two_clocks().plus(Timings::of(Profile::Fast).hold)
}

#[test]
fn it_is_reset_while_renewals_are_fresh_and_never_after() {
    let mut device = Device::new();
    let driver = Driver::default();
    let layers = device.layers(&driver);
    assert_eq!(word(&layers), "ready");
    assert_eq!(device.read(), None, "a standby has it not even open");
    let timings = Timings::of(Profile::Fast);
    let freshness = timings.watchdog_freshness(1).unwrap();
    let mut last = two_clocks();
    layers.arm(Epoch(1), renewed()).unwrap();
    assert_eq!((word(&layers).as_str(), driver.asked_s.load(Ordering::SeqCst)), ("active", 1));
    for _ in 0..5 {
        last = two_clocks();
        assert!(layers.moved(Epoch(1), last.plus(timings.hold)));
        until("it is reset for the renewal", || device.read().is_some_and(|w| w.contains(&0)));
        thread::sleep(timings.renew);
    }
    // Renewals end: it is reset once more, at the last moment that T2 allows, and then no more.
    let mut last_reset = Duration::ZERO;
    while two_clocks().boot < last.boot + timings.grant {
        match device.read() {
            Some(written) if !written.is_empty() => last_reset = two_clocks().boot - last.boot,
            Some(_) => {}
            None => panic!("it was closed, though nobody said that the primary is dead"),
        }
        thread::sleep(ms(1));
    }
    eprintln!(
        "figure: last reset {} ms after the last renewal, allowed {} ms",
        last_reset.as_millis(),
        freshness.as_millis()
    );
    assert!(last_reset <= freshness + ms(5), "{last_reset:?} after the renewal, allowed {freshness:?}");
    assert!(last_reset + ms(100) >= freshness, "{last_reset:?}: an ordinary fence needs the time");
    // So the host is restarted before any promise ends, by T2.
    assert!(last_reset + Duration::from_secs(1) < timings.grant);
    layers.stand_down(Left::Nothing);
    assert_eq!(device.rest(), b"V", "closed so that the timer stops");
    until("it says so", || word(&layers) == "ready");
}

#[test]
fn an_ordinary_fence_does_not_restart_the_host() {
    let timings = Timings::of(Profile::Fast);
    // The latest moment of the tree's end, and the earliest of the restart.
    let fenced = timings.hold + timings.kill;
    let restart = timings.watchdog_freshness(1).unwrap() - ms(10) + Duration::from_secs(1);
    assert!(restart + ms(10) > fenced, "{restart:?} against {fenced:?}");
}

#[test]
fn an_agent_that_is_killed_leaves_it_running_and_the_next_one_goes_on_or_stops_it() {
    let mut device = Device::new();
    let driver = Driver::default();
    let first = device.layers(&driver);
    first.arm(Epoch(1), renewed()).unwrap();
    until("it is reset", || device.read().is_some_and(|w| !w.is_empty()));
    drop(first);
    assert!(!device.rest().contains(&b'V'), "a crash must not stop the timer");
    assert!(device.dir.path().join("watchdog.armed").exists());

    let second = device.layers(&driver);
    second.resume(Epoch(1), renewed());
    until("the next one resets it", || device.read().is_some_and(|w| w.contains(&0)));
    drop(second);
    device.rest();

    // The one after finds nothing running.
    let third = device.layers(&driver);
    third.stand_down(Left::Nothing);
    until("it is stopped", || !device.dir.path().join("watchdog.armed").exists());
    assert_eq!(device.rest(), b"V");
}

#[test]
fn an_orderly_end_of_the_agent_stops_it() {
    let mut device = Device::new();
    let layers = device.layers(&Driver::default());
    layers.arm(Epoch(1), renewed()).unwrap();
    layers.leave();
    assert_eq!(device.rest().last(), Some(&b'V'));
}

#[test]
fn a_driver_that_takes_too_long_a_time_is_not_used() {
    let mut device = Device::new();
    let slow = Driver { own_s: Some(30), ..Driver::default() };
    let layers = device.layers(&slow);
    layers.arm(Epoch(1), renewed()).unwrap();
    assert!(word(&layers).starts_with("unavailable: ") && word(&layers).ends_with(" takes 30 s at least, too long"));
    assert_eq!(device.rest(), b"V");
    let required = Layers::open_with(device.options(LayerMode::Required), Box::new(slow)).unwrap();
    let refused = required.arm(Epoch(2), renewed()).unwrap_err();
    assert!(refused.starts_with("the watchdog is required and "), "{refused}");
    assert!(!required.moved(Epoch(2), renewed()), "then there is no renewing either");
}

#[test]
fn a_required_one_that_is_not_there_keeps_the_agent_from_starting() {
    let device = Device::new();
    let mut options = device.options(LayerMode::Required);
    options.config.watchdog.device = device.dir.path().join("none");
    let refused = Layers::open(options.clone()).unwrap_err().to_string();
    assert!(refused.starts_with("the watchdog is required and there is no "), "{refused}");
    options.config.watchdog.mode = LayerMode::Automatic;
    let layers = Layers::open(options).unwrap();
    assert!(word(&layers).starts_with("unavailable: there is no "));
    layers.arm(Epoch(1), renewed()).unwrap();
}

/// A FIFO is no watchdog for the real driver.
#[test]
fn what_is_no_watchdog_is_not_used() {
    let mut device = Device::new();
    let options = device.options(LayerMode::Automatic);
    let layers = Layers::open_with(options, Box::new(Linux)).unwrap();
    layers.arm(Epoch(1), renewed()).unwrap();
    assert!(word(&layers).contains("can't be set (Inappropriate ioctl for device"), "{}", word(&layers));
    assert_eq!(device.rest(), b"V");
}

/// Opened for a moment and closed so that it stops; only where it can be stopped.
#[test]
fn the_real_device_takes_a_time_and_stops() {
    let device = Path::new("/dev/watchdog");
    let stoppable = std::fs::read_to_string("/sys/class/watchdog/watchdog0/nowayout").is_ok_and(|t| t.trim() == "0");
    if !device.exists() || !stoppable {
        eprintln!("the_real_device_takes_a_time_and_stops: passed over, no {} that can be stopped", device.display());
        return;
    }
    let Ok(mut file) = OpenOptions::new().write(true).open(device) else {
        eprintln!(
            "the_real_device_takes_a_time_and_stops: passed over, {} is in use or closed to us",
            device.display()
        );
        return;
    };
    let taken = Linux.set_timeout(&file, 60);
    io::Write::write_all(&mut file, b"V").unwrap();
    drop(file);
    assert!(taken.unwrap() >= 1);
}
