//! What commands do with a terminal, and when nobody can read what they print.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::fd::OwnedFd,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    pty::{Winsize, openpty},
    sys::{
        signal::{Signal, kill},
        termios::{LocalFlags, tcgetattr},
    },
    unistd::Pid,
};

use super::{
    views::{frozen, text, with_clusters},
    with_manager,
};

/// Longer than anything here takes on a busy machine.
const LONG: Duration = Duration::from_secs(20);

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_matriarch"));
    command.args(args).env_clear().env("MATRIARCH_CONFIG", "/nonexistent/matriarch.toml");
    command
}

/// `None`: it goes on for ever, and was killed.
fn ended(child: &mut Child) -> Option<ExitStatus> {
    let began = Instant::now();
    while began.elapsed() < LONG {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

#[test]
fn a_watch_ends_when_nobody_reads_it_any_more() {
    with_manager(Ok(()), None, |address| {
        let mut watch = command(&["status", "--watch", "--manager", &address.to_string()]);
        let mut child = watch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        assert_eq!(first, "Cluster main: healthy\n");
        let ended = ended(&mut child).expect("it ends");
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!((ended.code(), said.as_str()), (Some(0), ""));
    });
}

#[test]
fn what_could_not_be_written_is_an_error() {
    with_manager(Ok(()), None, |address| {
        let address = address.to_string();
        for args in [&["status", "--json"][..], &["history"]] {
            let args = [args, &["--manager", &address]].concat();
            let full = File::options().write(true).open("/dev/full").unwrap();
            let output =
                command(&args).stdout(full).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
            assert_eq!(output.status.code(), Some(1), "{args:?}");
            assert!(text(&output).starts_with("matriarch: can't write to the standard output ("), "{}", text(&output));
        }
    });
}

#[test]
fn names_do_not_steer_the_terminal() {
    let file = "[clusters.\"\\u001b[31mred\"]\nmanagers = [\"127.0.0.1:1\"]\n";
    let all = text(&with_clusters(file, &["status", "--all"]));
    assert!(all.contains("\u{fffd}[31mred  not reached") && !all.contains('\x1b'), "{all:?}");
    let none = text(&with_clusters(file, &["status", "--cluster", "blue"]));
    assert!(none.contains("there is \u{fffd}[31mred") && !none.contains('\x1b'), "{none:?}");
}

/// `top` in a terminal of its own, before a manager that takes connections and never says a word.
struct Top {
    child: Child,
    keys: File,
    terminal: OwnedFd,
}

impl Top {
    fn start(manager: &str) -> Top {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(&size, None).unwrap();
        let end = || Stdio::from(pair.slave.try_clone().unwrap());
        let mut top = command(&["top", "--manager", manager]);
        let child = top.env("TERM", "xterm").stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let keys = File::from(pair.master);
        let mut screen = keys.try_clone().unwrap();
        // What is drawn has to be read, or drawing waits.
        thread::spawn(move || while screen.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {});
        let top = Top { child, keys, terminal: pair.slave };
        let began = Instant::now();
        while !top.is_raw() {
            assert!(began.elapsed() < LONG, "it takes the terminal over");
            thread::sleep(Duration::from_millis(10));
        }
        top
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.terminal).unwrap().local_flags.contains(LocalFlags::ICANON)
    }
}

#[test]
fn top_gives_the_terminal_back_at_once_whatever_ends_it() {
    let (_listener, silent) = frozen();
    let ends: [(&str, Option<Signal>, i32); 4] = [
        ("q", None, 0),
        ("", Some(Signal::SIGTERM), 143),
        ("", Some(Signal::SIGHUP), 129),
        ("", Some(Signal::SIGINT), 130),
    ];
    for (keys, signal, code) in ends {
        let mut top = Top::start(&silent.to_string());
        let began = Instant::now();
        top.keys.write_all(keys.as_bytes()).unwrap();
        if let Some(signal) = signal {
            kill(Pid::from_raw(top.child.id().try_into().unwrap()), signal).unwrap();
        }
        let status = ended(&mut top.child).expect("it ends");
        assert_eq!(status.code(), Some(code), "{keys} {signal:?}");
        assert!(!top.is_raw(), "{keys} {signal:?}");
        // A look at such a manager takes 2 s and more.
        assert!(began.elapsed() < Duration::from_millis(1_500), "{keys} {signal:?}: {:?}", began.elapsed());
    }
}
