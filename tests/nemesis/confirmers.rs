//! Clusters whose commits standbys confirm: the modes, the faults that are made for them, and whether writes have to
//! go on while a fault lasts.

use std::{
    fmt,
    path::Path,
    process::Command,
    str::FromStr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use matriarch::rpc::v1::Commits;

use crate::{
    dice::Dice,
    faults::{Fault, Kind, Target, Undo},
    hosts::{Hosts, Proc, exe},
};

/// The settings are what they were within this time, once all hosts are up.
const SETTLED: Duration = Duration::from_secs(60);

/// Who has to confirm a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    /// Any of all standbys; else those that are chosen.
    pub quorum: bool,
    /// Commits wait where there are too few.
    pub strict: bool,
    /// How many.
    pub count: usize,
}

/// `quorum-strict`; one confirms.
impl FromStr for Mode {
    type Err = String;
    fn from_str(text: &str) -> Result<Mode, String> {
        let (kind, strict) = text.strip_suffix("-strict").map_or((text, false), |kind| (kind, true));
        match kind {
            "sync" | "quorum" => Ok(Mode { quorum: kind == "quorum", strict, count: 1 }),
            _ => Err(format!("`{text}` is none of sync, sync-strict, quorum, quorum-strict")),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.quorum { "quorum" } else { "sync" };
        f.pad(&format!("{kind}{}", if self.strict { "-strict" } else { "" }))
    }
}

impl Mode {
    /// As an operator sets it.
    pub fn settings(self) -> Vec<String> {
        let kind = if self.quorum { "quorum" } else { "sync" };
        vec![
            format!("replication_mode={kind}"),
            format!("sync_strict={}", self.strict),
            format!("sync_count={}", self.count),
        ]
    }

    /// What these settings make of a new cluster; `None`: nobody confirms.
    pub fn of(settings: &[String]) -> Option<Mode> {
        let value = |key: &str| settings.iter().rev().find_map(|s| s.strip_prefix(key)?.strip_prefix('='));
        assert!(
            value("protection").is_none(),
            "say replication_mode, sync_strict and sync_count instead of protection"
        );
        let kind = value("replication_mode").filter(|mode| *mode != "async")?;
        let count = value("sync_count").and_then(|n| n.parse().ok()).unwrap_or(1);
        Some(Mode { quorum: kind == "quorum", strict: value("sync_strict") == Some("true"), count })
    }

    /// That is in force in a cluster of so many members that are all well.
    pub fn is_in_force(self, commits: &Commits, members: usize) -> bool {
        let names = if self.quorum { members - 1 } else { self.count };
        let kind = if self.quorum { "quorum" } else { "sync" };
        let set = commits.mode == kind && commits.strict == self.strict;
        let rule = commits.in_effect && commits.rules.len() == 1;
        set && rule && commits.count as usize == self.count && commits.names.len() == names
    }
}

/// What of a confirming standby is lost first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Its postmaster; the agent starts it again.
    Postgres,
    /// Its agent; it is started again.
    Agent,
    /// Its host.
    Host,
}

/// What happens while the settings change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum With {
    /// Nothing.
    Nothing,
    /// The primary's host is lost.
    Lose,
    /// The primary's postmaster is killed.
    Crash,
    /// A switchover.
    Switchover,
    /// The host of one that confirms is lost.
    LoseConfirmer,
    /// Nothing passes between the primary and the other members.
    Cut,
}

impl fmt::Display for With {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            With::Nothing => "settings",
            With::Lose => "settings+lose-host",
            With::Crash => "settings+kill-postmaster",
            With::Switchover => "settings+switchover",
            With::LoseConfirmer => "settings+lose-confirmer",
            With::Cut => "settings+cut-both",
        })
    }
}

/// The faults that are about who confirms.
pub fn catalogue() -> Vec<Fault> {
    let mut all = Vec::new();
    let mut add = |kind, target, seconds| all.push(Fault { kind, target, hold: Duration::from_secs(seconds) });
    for part in [Part::Postgres, Part::Agent, Part::Host] {
        add(Kind::ThenPrimary(part), Target::Primary, 8);
        add(Kind::ThenPrimary(part), Target::PrimaryLeading, 8);
    }
    add(Kind::LoseWithConfirmer, Target::Primary, 8);
    add(Kind::LoseWithConfirmer, Target::PrimaryLeading, 8);
    add(Kind::CrashThenLose, Target::Primary, 8);
    add(Kind::CrashWithConfirmer, Target::Primary, 5);
    for with in [With::Nothing, With::Lose, With::Crash, With::Switchover, With::LoseConfirmer, With::Cut] {
        add(Kind::Changing(with), Target::Primary, 8);
    }
    // A crash that is answered by a restart in place, after which clients are kept out.
    add(Kind::Kill(&[Proc::Postmaster]), Target::Primary, 5);
    all
}

/// Writes have to go on while that fault lasts: who is left is a majority, has the word of enough standbys for
/// a promotion, and, where that is strict, enough to confirm.
pub fn writes_go_on(fault: &Fault, mode: Option<Mode>, members: usize) -> bool {
    let hits_primary = matches!(fault.target, Target::Primary | Target::PrimaryLeading);
    // Whether the primary, and how many standbys, are gone or out of reach as long as it lasts.
    let (primary, standbys) = match fault.kind {
        Kind::Split | Kind::FreezeOthers | Kind::LoseOthers | Kind::Cold | Kind::Changing(_) => return false,
        Kind::ThenPrimary(Part::Host) | Kind::LoseWithConfirmer => (1, 1),
        Kind::ThenPrimary(Part::Postgres | Part::Agent) | Kind::CrashThenLose => (1, 0),
        Kind::LosePromoted => (0, 1),
        Kind::CutPair => (0, 1),
        Kind::CutBoth | Kind::CutAll | Kind::CutOut | Kind::CutIn | Kind::Stop(_) | Kind::Freeze | Kind::Lose => {
            if hits_primary {
                (1, 0)
            } else {
                (0, 1)
            }
        }
        Kind::HandStart | Kind::HandStartPromote | Kind::HandStop => {
            if hits_primary {
                (1, 0)
            } else {
                (0, 1)
            }
        }
        _ => (0, 0),
    };
    let left = members - primary - standbys;
    let Some(mode) = mode else { return left > members / 2 };
    let promoted = primary == 0 || standbys < mode.count;
    let confirmed = !mode.strict || left > mode.count;
    left > members / 2 && promoted && confirmed
}

impl Fault {
    /// Those that only [`catalogue`] has.
    ///
    /// # Errors
    /// It can't be done.
    pub fn hit_confirmers(&self, hosts: &Hosts, host: &str, dice: &mut Dice) -> Result<(String, Undo)> {
        let mode = hosts.mode.context("nobody confirms anything in this cluster")?;
        let names = hosts.rig.status().and_then(|s| s.commits).map(|c| c.names).unwrap_or_default();
        let standby = dice.shuffled(names).pop().context("nobody confirms at the moment")?;
        let pause = Duration::from_millis(dice.below(2_500));
        match self.kind {
            Kind::ThenPrimary(part) => {
                match part {
                    Part::Postgres => hosts.kill(&[hosts.process(&standby, Proc::Postmaster)?])?,
                    Part::Agent => hosts.kill(&[hosts.process(&standby, Proc::Agent)?])?,
                    Part::Host => drop(hosts.rig.kill_host(&standby)?),
                }
                thread::sleep(pause);
                let down =
                    if part == Part::Host { vec![host.to_owned(), standby.clone()] } else { vec![host.to_owned()] };
                let (effect, undo) = self.lose(hosts, vec![host.to_owned()])?;
                ensure!(matches!(undo, Undo::Boot(_)), "a lost host is booted later");
                Ok((format!("{standby} lost its {} {pause:?} before; {effect}", part.name()), Undo::Boot(down)))
            }
            Kind::LoseWithConfirmer => self.lose(hosts, dice.shuffled(vec![host.to_owned(), standby])),
            Kind::CrashThenLose => {
                hosts.kill(&[hosts.process(host, Proc::Postmaster)?])?;
                thread::sleep(pause);
                let (effect, undo) = self.lose(hosts, vec![host.to_owned()])?;
                Ok((format!("its postmaster was killed {pause:?} before; {effect}"), undo))
            }
            Kind::CrashWithConfirmer => {
                let both = [hosts.process(host, Proc::Postmaster)?, hosts.process(&standby, Proc::Postmaster)?];
                hosts.kill(&both)?;
                Ok((format!("postmasters of {host} and {standby} gone"), Undo::Nothing))
            }
            Kind::Changing(with) => {
                let changer = Changer::start(hosts, mode, dice)?;
                thread::sleep(pause / 2);
                let (effect, undo) = self.meanwhile(hosts, (host, &standby), with, dice)?;
                Ok((effect, Undo::Changing(Box::new(undo), changer)))
            }
            _ => bail!("{self} is none of the confirmers' faults"),
        }
    }

    fn meanwhile(
        &self,
        hosts: &Hosts,
        (host, standby): (&str, &str),
        with: With,
        dice: &mut Dice,
    ) -> Result<(String, Undo)> {
        let like = |kind| Fault { kind, ..*self };
        match with {
            With::Nothing => Ok(("settings change".to_owned(), Undo::Nothing)),
            With::Lose => self.lose(hosts, vec![host.to_owned()]),
            With::LoseConfirmer => self.lose(hosts, vec![standby.to_owned()]),
            With::Crash => like(Kind::Kill(&[Proc::Postmaster])).act(hosts, host, dice),
            With::Cut => like(Kind::CutBoth).act(hosts, host, dice),
            // It may be refused, or be rolled back, while it is not settled who confirms.
            With::Switchover => match like(Kind::Switchover).act(hosts, host, dice) {
                Ok(done) => Ok(done),
                Err(e) => Ok((format!("no switchover: {e:#}"), Undo::Nothing)),
            },
        }
    }
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Part::Postgres => "postmaster",
            Part::Agent => "agent",
            Part::Host => "host",
        }
    }
}

/// Somebody who can't decide who is to confirm. In the end all is set as it was. Nobody ever says that nobody has to.
#[derive(Debug)]
pub struct Changer {
    stop: Arc<AtomicBool>,
    task: Mutex<Option<JoinHandle<Changes>>>,
}

/// How many changes were accepted and refused, and whether all is set as it was.
#[derive(Debug)]
struct Changes {
    counts: (usize, usize),
    set_back: Result<()>,
}

impl Changer {
    fn start(hosts: &Hosts, mode: Mode, dice: &mut Dice) -> Result<Changer> {
        let stop = Arc::new(AtomicBool::new(false));
        let members = hosts.rig.members();
        let configs = members.iter().map(|m| hosts.rig.config(m)).collect::<Result<Vec<_>>>()?;
        let (mut dice, told) = (Dice::new(dice.below(u64::MAX)), stop.clone());
        let (mut accepted, mut refused) = (0, 0);
        let most = members.len() as u64 - 1;
        let change = move || {
            while !told.load(Ordering::SeqCst) {
                let strict = dice.below(2) == 0;
                let other = Mode { quorum: dice.below(2) == 0, strict, count: 1 + dice.below(most.min(2)) as usize };
                let wanted = if dice.below(3) == 0 { mode } else { other };
                match set(&configs[dice.below(most + 1) as usize], &wanted.settings()) {
                    Ok(()) => accepted += 1,
                    Err(_) => refused += 1,
                }
                thread::sleep(Duration::from_millis(150 + dice.below(1_500)));
            }
            let began = Instant::now();
            loop {
                match configs.iter().map(|c| set(c, &mode.settings())).find(|r| r.is_ok()) {
                    Some(_) => return Changes { counts: (accepted, refused), set_back: Ok(()) },
                    None if began.elapsed() > SETTLED => {
                        let set_back = Err(anyhow!("the settings are not what they were before"));
                        return Changes { counts: (accepted, refused), set_back };
                    }
                    None => thread::sleep(Duration::from_millis(200)),
                }
            }
        };
        Ok(Changer { stop, task: Mutex::new(Some(thread::spawn(change))) })
    }

    /// Sets what was set before. How many changes were accepted and refused.
    ///
    /// # Errors
    /// It can't be set.
    pub fn end(&self) -> Result<(usize, usize)> {
        self.stop.store(true, Ordering::SeqCst);
        let task = self.task.lock().unwrap_or_else(|e| e.into_inner()).take().context("it has ended before")?;
        let changes = task.join().map_err(|_| anyhow!("whoever changed settings panicked"))?;
        changes.set_back.map(|()| changes.counts)
    }
}

impl Drop for Changer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// `matriarch config set` as an operator on that host.
///
/// # Errors
/// It is refused, or nobody answers.
pub fn set(config: &Path, settings: &[String]) -> Result<()> {
    let (of_members, of_all): (Vec<&String>, Vec<&String>) = settings.iter().partition(|s| of_member(s).is_some());
    if !of_all.is_empty() {
        run_set(config, of_all.iter().map(|s| s.as_str()))?;
    }
    // Whom a member follows has to be there before it can be named, so these come last.
    of_members
        .iter()
        .filter_map(|s| of_member(s))
        .try_for_each(|(member, setting)| run_set(config, [setting, "--member", member]))
}

/// `n3:replicatefrom=n2` is a key of that member.
fn of_member(setting: &str) -> Option<(&str, &str)> {
    let (member, rest) = setting.split_once(':')?;
    (!member.contains('=')).then_some((member, rest))
}

fn run_set<'a>(config: &Path, args: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let mut command = Command::new("timeout");
    command.arg("10").arg(exe()).args(["config", "set"]).args(args).arg("--config").arg(config);
    let out = command.output()?;
    ensure!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_of_a_member_names_it() {
        assert_eq!(of_member("n3:replicatefrom=n2"), Some(("n3", "replicatefrom=n2")));
        assert_eq!(of_member("archive_command=scp %p host:/wal/%f"), None);
    }

    #[test]
    fn modes_are_what_their_names_say() {
        let mode: Mode = "quorum-strict".parse().unwrap();
        assert_eq!(mode, Mode { quorum: true, strict: true, count: 1 });
        assert_eq!(Mode::of(&mode.settings()), Some(mode));
        let two = Mode { count: 2, ..mode };
        assert_eq!((Mode::of(&two.settings()), two.to_string()), (Some(two), "quorum-strict".to_owned()));
        assert_eq!(Mode::of(&[]), None);
        assert_eq!(Mode::of(&["replication_mode=async".to_owned(), "sync_count=2".to_owned()]), None);
        assert!("strict".parse::<Mode>().is_err());
    }

    #[test]
    fn a_rule_is_in_force_with_all_its_names() {
        let mode: Mode = "quorum".parse().unwrap();
        let names = vec!["n2".to_owned(), "n3".to_owned()];
        let rules = vec!["1 of n2, n3".to_owned()];
        let commits = Commits {
            mode: "quorum".into(),
            strict: false,
            rules,
            in_effect: true,
            names,
            count: 1,
            ..Commits::default()
        };
        assert!(mode.is_in_force(&commits, 3));
        assert!(!mode.is_in_force(&commits, 5));
        assert!(!Mode { strict: true, ..mode }.is_in_force(&commits, 3));
        assert!(!Mode { count: 2, ..mode }.is_in_force(&commits, 3));
        assert!(!mode.is_in_force(&Commits { in_effect: false, ..commits.clone() }, 3));
        assert!(!mode.is_in_force(&Commits { mode: "async".into(), ..commits }, 3));
    }

    #[test]
    fn writes_wait_only_where_too_few_are_left() {
        let on = |kind, target, mode: &str, members, count| {
            let mode = Some(Mode { count, ..mode.parse::<Mode>().unwrap() });
            writes_go_on(&Fault { kind, target, hold: Duration::ZERO }, mode, members)
        };
        let (primary, standby) = (Target::Primary, Target::Standby);
        for mode in ["sync", "sync-strict", "quorum", "quorum-strict"] {
            assert!(on(Kind::Lose, primary, mode, 3, 1), "{mode}: two are left, one confirms");
            assert!(on(Kind::Lose, standby, mode, 3, 1));
            assert!(!on(Kind::LoseWithConfirmer, primary, mode, 3, 1), "{mode}: no majority");
            assert!(on(Kind::LoseWithConfirmer, primary, mode, 5, 2), "{mode}: one of the two who confirmed is left");
            assert!(!on(Kind::LoseWithConfirmer, primary, mode, 5, 1), "{mode}: who alone confirmed is gone");
            assert!(!on(Kind::Cold, primary, mode, 5, 2));
        }
        assert!(!on(Kind::Lose, primary, "quorum-strict", 3, 2), "one is left of two who have to confirm");
        assert!(on(Kind::Lose, primary, "quorum", 3, 2), "as many as there are confirm");
    }
}
