//! The command line of `matriarch guard`: how an agent starts one, and how a guard
//! starts the program that takes its place.

use std::{
    ffi::{OsStr, OsString},
    net::IpAddr,
    os::fd::RawFd,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use super::{addresses::Addresses, means::GroupUse, tree::ProcessIdentity};
use crate::domain::{Epoch, moment::TwoClocks};

/// What comes first on the command line of a successor.
const RESUME: &str = "--resume";
/// What comes first on the command line of a second (see [`super::taken_over`]).
const SECOND: &str = "--second";

/// A guard's command line.
#[derive(Debug)]
pub(super) enum CommandLine {
    Start(Options),
    Resume(Inheritance),
    Second(Wards),
}

/// Whose death a second waits for, and whom it ends then: `--second PID,START PID,START`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wards {
    pub guard: ProcessIdentity,
    pub postmaster: ProcessIdentity,
}

/// `--runtime-dir D --log-file F --epoch-hint N [--deadline BOOT,RAW] [--cgroup auto|off|required]`, and then either
/// `-- PROGRAM ARGS...` or `--take-over PID,START --data-dir D`.
#[derive(Debug)]
pub(super) struct Options {
    pub runtime_dir: PathBuf,
    pub log_file: PathBuf,
    pub epoch_hint: Epoch,
    pub deadline: Option<TwoClocks>,
    pub group: GroupUse,
    /// Empty when something is taken over.
    pub program: OsString,
    pub args: Vec<OsString>,
    /// A postmaster that runs already, and its data directory.
    pub take_over: Option<(ProcessIdentity, PathBuf)>,
}

/// What a guard hands to the program that takes its place: all it knows and all it has open.
/// `--resume FORM`, and then in this order what the fields say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inheritance {
    pub runtime_dir: PathBuf,
    pub postmaster: i32,
    pub epoch: Epoch,
    pub deadline: Option<TwoClocks>,
    /// How it kills, and its three shields, as on the wire.
    pub method: u8,
    pub shields: [u8; 3],
    /// The lock file and the listening socket.
    pub lock: RawFd,
    pub listener: RawFd,
    /// The group's directory, and its `cgroup.procs`, `cgroup.kill` and `cgroup.events`.
    pub group: Option<(PathBuf, [RawFd; 3])>,
    /// Each with whether it wants to hear of changes.
    pub connections: Vec<(RawFd, bool)>,
    /// Who asked for this, and under which number.
    pub asker: Option<(RawFd, u64)>,
    /// What goes with a fence. An older program takes no notice.
    pub addresses: Addresses,
}

/// The form of [`Inheritance`] that this program writes. It goes up when a field changes
/// its meaning; then the older forms must still be read.
pub(super) const FORM: u8 = 1;

impl CommandLine {
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let mut args = args.into_iter().peekable();
        if args.next_if(|first| first == RESUME).is_some() {
            return Inheritance::parse(args).map(Self::Resume);
        }
        if args.next_if(|first| first == SECOND).is_some() {
            return Wards::parse(args).map(Self::Second);
        }
        Options::parse(args).map(Self::Start)
    }
}

impl Wards {
    /// The whole command line, from `guard` on.
    pub fn to_args(self) -> Vec<OsString> {
        let of = |process: ProcessIdentity| format!("{},{}", process.pid, process.start_ticks).into();
        vec!["guard".into(), SECOND.into(), of(self.guard), of(self.postmaster)]
    }

    fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let mut process = || identity(&args.next().ok_or_else(|| format!("{SECOND} needs two processes"))?);
        Ok(Self { guard: process()?, postmaster: process()? })
    }
}

impl Options {
    fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let (mut runtime_dir, mut log_file, mut epoch_hint, mut deadline) = (None, None, Epoch(0), None);
        let mut group = GroupUse::default();
        let (mut postmaster, mut data_dir) = (None, None);
        while let Some(key) = args.next() {
            if key == "--" {
                break;
            }
            let value = args.next().ok_or_else(|| format!("{} needs a value", key.display()))?;
            match key.to_str() {
                Some("--runtime-dir") => runtime_dir = Some(PathBuf::from(value)),
                Some("--log-file") => log_file = Some(PathBuf::from(value)),
                Some("--epoch-hint") => epoch_hint = Epoch(number(&value, "an epoch")?),
                Some("--deadline") => deadline = Some(moment(&value)?),
                Some("--take-over") => postmaster = Some(identity(&value)?),
                Some("--data-dir") => data_dir = Some(PathBuf::from(value)),
                Some("--cgroup") => {
                    group = GroupUse::parse(&value).ok_or_else(|| format!("{} is no use", value.display()))?;
                }
                _ => return Err(format!("unknown argument {}", key.display())),
            }
        }
        let take_over = postmaster.zip(data_dir);
        let program = match &take_over {
            Some(_) => OsString::new(),
            None => args.next().ok_or("no program after --")?,
        };
        Ok(Self {
            runtime_dir: runtime_dir.ok_or("--runtime-dir is missing")?,
            log_file: log_file.ok_or("--log-file is missing")?,
            epoch_hint,
            deadline,
            group,
            program,
            args: args.collect(),
            take_over,
        })
    }
}

impl GroupUse {
    /// As on a guard's command line.
    pub fn word(self) -> &'static str {
        match self {
            GroupUse::Auto => "auto",
            GroupUse::Off => "off",
            GroupUse::Required => "required",
        }
    }

    fn parse(text: &OsStr) -> Option<Self> {
        [GroupUse::Auto, GroupUse::Off, GroupUse::Required].into_iter().find(|u| text == u.word())
    }
}

impl Inheritance {
    /// The whole command line of the successor, from `guard` on.
    pub fn to_args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["guard".into(), RESUME.into(), FORM.to_string().into()];
        let mut put = |key: &str, value: OsString| args.extend([key.into(), value]);
        put("--runtime-dir", self.runtime_dir.clone().into());
        put("--postmaster", self.postmaster.to_string().into());
        put("--epoch", self.epoch.0.to_string().into());
        if let Some(at) = self.deadline {
            put("--deadline", format_moment(at).into());
        }
        let [memory, priority, oom] = self.shields;
        put("--means", format!("{},{memory},{priority},{oom}", self.method).into());
        put("--lock", self.lock.to_string().into());
        put("--listener", self.listener.to_string().into());
        if let Some((dir, [procs, kill, events])) = &self.group {
            put("--group", dir.clone().into());
            put("--group-files", format!("{procs},{kill},{events}").into());
        }
        for (fd, listens) in &self.connections {
            put("--connection", format!("{fd},{}", u8::from(*listens)).into());
        }
        if let Some((fd, sequence)) = self.asker {
            put("--asker", format!("{fd},{sequence}").into());
        }
        for address in self.addresses.iter().flatten() {
            put("--address", address.to_string().into());
        }
        args
    }

    fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let form: u8 = number(&args.next().ok_or("--resume needs a value")?, "a form")?;
        if form == 0 || form > FORM {
            return Err(format!("what is handed over has form {form}, this program reads up to {FORM}"));
        }
        let (mut runtime_dir, mut postmaster, mut epoch, mut deadline) = (None, None, None, None);
        let (mut means, mut lock, mut listener) = (None, None, None);
        let (mut group_dir, mut group_files) = (None, None);
        let (mut connections, mut asker) = (Vec::new(), None);
        let mut addresses = Vec::new();
        while let Some(key) = args.next() {
            let value = args.next().ok_or_else(|| format!("{} needs a value", key.display()))?;
            match key.to_str() {
                Some("--runtime-dir") => runtime_dir = Some(PathBuf::from(value)),
                Some("--postmaster") => postmaster = Some(number(&value, "a process")?),
                Some("--epoch") => epoch = Some(Epoch(number(&value, "an epoch")?)),
                Some("--deadline") => deadline = Some(moment(&value)?),
                Some("--means") => means = Some(numbers::<u8, 4>(&value)?),
                Some("--lock") => lock = Some(number(&value, "a descriptor")?),
                Some("--listener") => listener = Some(number(&value, "a descriptor")?),
                Some("--group") => group_dir = Some(PathBuf::from(value)),
                Some("--group-files") => group_files = Some(numbers::<RawFd, 3>(&value)?),
                Some("--connection") => {
                    let [fd, listens] = numbers::<RawFd, 2>(&value)?;
                    connections.push((fd, listens != 0));
                }
                Some("--asker") => {
                    let [fd, sequence] = numbers::<u64, 2>(&value)?;
                    let fd = RawFd::try_from(fd).map_err(|_| format!("{fd} is no descriptor"))?;
                    asker = Some((fd, sequence));
                }
                // One that can't be read is left out: without it the guard is as good as an older one.
                Some("--address") => addresses.extend(value.to_str().and_then(|text| text.parse::<IpAddr>().ok())),
                // A later field of this form, which can be done without: otherwise the form would be another.
                _ => {}
            }
        }
        let [method, shields @ ..] = means.ok_or("--means is missing")?;
        Ok(Self {
            runtime_dir: runtime_dir.ok_or("--runtime-dir is missing")?,
            postmaster: postmaster.ok_or("--postmaster is missing")?,
            epoch: epoch.ok_or("--epoch is missing")?,
            deadline,
            method,
            shields,
            lock: lock.ok_or("--lock is missing")?,
            listener: listener.ok_or("--listener is missing")?,
            group: group_dir.zip(group_files),
            connections,
            asker,
            addresses: [addresses.first().copied(), addresses.get(1).copied()],
        })
    }
}

fn number<T: FromStr>(text: &OsStr, what: &str) -> Result<T, String> {
    let number = text.to_str().and_then(|t| t.parse().ok());
    number.ok_or_else(|| format!("{} is not {what}", text.display()))
}

/// Numbers with commas between them.
fn numbers<T: FromStr, const N: usize>(text: &OsStr) -> Result<[T; N], String> {
    let all: Option<Vec<T>> = text.to_str().and_then(|t| t.split(',').map(|n| n.parse().ok()).collect());
    all.and_then(|all| all.try_into().ok()).ok_or_else(|| format!("{} is not {N} numbers", text.display()))
}

/// `PID,START`.
fn identity(text: &OsStr) -> Result<ProcessIdentity, String> {
    let [pid, start_ticks] = numbers::<u64, 2>(text)?;
    let pid = u32::try_from(pid).map_err(|_| format!("{pid} is no process"))?;
    Ok(ProcessIdentity { pid, start_ticks })
}

/// `BOOT,RAW` in nanoseconds.
pub(super) fn format_moment(at: TwoClocks) -> String {
    format!("{},{}", at.boot.as_nanos(), at.raw.as_nanos())
}

fn moment(text: &OsStr) -> Result<TwoClocks, String> {
    let [boot, raw] = numbers(text).map_err(|_| format!("{} is no deadline", text.display()))?;
    Ok(TwoClocks { boot: Duration::from_nanos(boot), raw: Duration::from_nanos(raw) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<CommandLine, String> {
        CommandLine::parse(line.split_whitespace().map(OsString::from))
    }

    fn options(line: &str) -> Options {
        match parse(line).unwrap() {
            CommandLine::Start(options) => options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_program_gets_everything_after_the_dashes() {
        let options = options("--runtime-dir /r --log-file /l --epoch-hint 7 --cgroup off -- postgres -D /d -- x");
        assert_eq!((options.epoch_hint, options.group), (Epoch(7), GroupUse::Off));
        assert_eq!(options.program, "postgres");
        assert_eq!(options.args, ["-D", "/d", "--", "x"]);
    }

    #[test]
    fn a_postmaster_that_runs_needs_no_program() {
        let options = options("--runtime-dir /r --log-file /l --take-over 71,4711 --data-dir /d");
        let postmaster = ProcessIdentity { pid: 71, start_ticks: 4711 };
        assert_eq!(options.take_over, Some((postmaster, PathBuf::from("/d"))));
        assert_eq!(parse("--runtime-dir /r --log-file /l --take-over 71,4711").unwrap_err(), "no program after --");
    }

    #[test]
    fn a_wrong_command_line_says_what_is_wrong() {
        let wrong = |line: &str| parse(line).unwrap_err();
        assert_eq!(wrong("--runtime-dir /r -- x"), "--log-file is missing");
        assert_eq!(wrong("--runtime-dir /r --log-file /l --"), "no program after --");
        assert_eq!(wrong("--epoch-hint x"), "x is not an epoch");
        assert_eq!(wrong("--deadline 5"), "5 is no deadline");
        assert_eq!(wrong("--cgroup maybe"), "maybe is no use");
        assert_eq!(wrong("--what 1"), "unknown argument --what");
    }

    #[test]
    fn a_second_knows_two_processes() {
        let process = |pid| ProcessIdentity { pid, start_ticks: u64::from(pid) * 3 };
        let second = Wards { guard: process(7), postmaster: process(8) };
        let mut args = second.to_args();
        assert_eq!(args.remove(0), "guard");
        assert!(matches!(CommandLine::parse(args), Ok(CommandLine::Second(arrived)) if arrived == second));
        assert_eq!(parse("--second 1,2").unwrap_err(), "--second needs two processes");
    }

    fn inheritance() -> Inheritance {
        Inheritance {
            runtime_dir: "/run/a b".into(),
            postmaster: 77,
            epoch: Epoch(1 << 40),
            deadline: Some(TwoClocks { boot: Duration::from_nanos(123_456_789_012), raw: Duration::from_nanos(7) }),
            method: 1,
            shields: [1, 2, 3],
            lock: 3,
            listener: 4,
            group: Some(("/sys/fs/cgroup/a".into(), [5, 6, 7])),
            connections: vec![(8, true), (9, false)],
            asker: Some((8, u64::MAX)),
            addresses: [Some("10.0.0.100".parse().unwrap()), Some("fd00::101".parse().unwrap())],
        }
    }

    #[test]
    fn what_is_handed_over_arrives() {
        let (connections, addresses) = (Vec::new(), [None; 2]);
        let bare = Inheritance { deadline: None, group: None, connections, asker: None, addresses, ..inheritance() };
        for all in [inheritance(), bare] {
            let mut args = all.to_args();
            assert_eq!(args.remove(0), "guard");
            args.extend(["--a-later-field".into(), "1".into()]);
            match CommandLine::parse(args).unwrap() {
                CommandLine::Resume(arrived) => assert_eq!(arrived, all),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_is_wrong_with_an_address_keeps_nobody_from_taking_over() {
        let mut args = Inheritance { addresses: [None; 2], ..inheritance() }.to_args();
        args.remove(0);
        for address in ["eth0", "10.0.0.9", "", "fd00::9", "10.0.0.10"] {
            args.extend(["--address".into(), address.into()]);
        }
        let CommandLine::Resume(arrived) = CommandLine::parse(args).unwrap() else { panic!() };
        assert_eq!(arrived.addresses, [Some("10.0.0.9".parse().unwrap()), Some("fd00::9".parse().unwrap())]);
    }

    #[test]
    fn a_form_from_the_future_is_refused() {
        let told = parse(&format!("--resume {}", FORM + 1)).unwrap_err();
        assert_eq!(told, format!("what is handed over has form {}, this program reads up to {FORM}", FORM + 1));
        assert_eq!(parse("--resume 1 --runtime-dir /r").unwrap_err(), "--means is missing");
    }
}
