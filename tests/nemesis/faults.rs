//! The faults: what each is called, whom it hits, for how long, what the cluster
//! may make of it, how it is done, and how one sees that it was effective.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use matriarch::{demo::rig::Role, rpc::v1::StatusReply};

type Result<T, E = anyhow::Error> = std::result::Result<T, E>;

use crate::{
    checker::Span,
    confirmers::{Changer, Part, With},
    dice::Dice,
    hosts::{Frozen, Hosts, Proc, Running, one_way},
    workload::{Micros, now},
};

/// Whom a fault hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The primary, wherever the Raft leader is.
    Primary,
    /// The primary, on whose host the Raft leader is, too.
    PrimaryLeading,
    /// The Raft leader, on a host that is not the primary's.
    Leader,
    /// A standby.
    Standby,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Target::Primary => "primary",
            Target::PrimaryLeading => "primary+leader",
            Target::Leader => "leader",
            Target::Standby => "standby",
        })
    }
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing passes between the target and the other members.
    CutBoth,
    /// Nothing passes between the target and anybody, clients included.
    CutAll,
    /// What the target sends to the other members is lost.
    CutOut,
    /// What the other members send to the target is lost.
    CutIn,
    /// Nothing passes between the target and one other member; both reach the third.
    CutPair,
    /// Nothing passes between the two others; both reach the target.
    CutOthers,
    /// No member reaches another; clients reach all.
    Split,
    /// Of every hundred packets between any two hosts so many are lost, at random.
    Loss(u32),
    /// SIGKILL of these processes at once; what a service manager restarts is restarted.
    Kill(&'static [Proc]),
    /// SIGKILL of one client backend.
    KillBackend,
    /// SIGKILL of so many managers at once.
    KillManagers(usize),
    /// SIGSTOP of these processes, later SIGCONT.
    Stop(&'static [Proc]),
    /// Every process of the host is frozen, later goes on.
    Freeze,
    /// The two other hosts are frozen.
    FreezeOthers,
    /// The wall clock is so many hours ahead.
    Clock(i64),
    /// The wall clocks of all members are so many hours ahead.
    ClockAll(i64),
    /// The host loses power, later boots.
    Lose,
    /// The two other hosts lose power, later boot.
    LoseOthers,
    /// All hosts lose power, later boot in any order.
    Cold,
    /// `pg_ctl restart`
    HandRestart,
    /// `pg_ctl stop`
    HandStop,
    /// `select pg_promote()`
    HandPromote,
    /// The host loses power; PostgreSQL alone is started by `pg_ctl start`, later the host boots.
    HandStart,
    /// The same, and then `select pg_promote()`.
    HandStartPromote,
    /// A planned change of primary.
    Switchover,
    /// A change of primary by command.
    Failover,
    /// The same, and the host of the new primary loses power as soon as that is promoted; later it boots.
    LosePromoted,
    /// A standby that confirms loses this, and soon after the primary's host loses power; later all boots.
    ThenPrimary(Part),
    /// The hosts of the primary and of a standby that confirms lose power at once, later boot.
    LoseWithConfirmer,
    /// The primary's postmaster is killed, and soon after its host loses power; later it boots.
    CrashThenLose,
    /// The postmasters of the primary and of a standby that confirms are killed at once.
    CrashWithConfirmer,
    /// Somebody changes who has to confirm, again and again, and meanwhile this happens.
    Changing(With),
}

/// What the cluster may do about its primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The epoch must rise.
    Must,
    /// It must stay.
    MustNot,
    /// Either is fine.
    May,
}

/// A fault of the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub kind: Kind,
    /// Whom.
    pub target: Target,
    /// For how long, when the list is gone through one by one.
    pub hold: Duration,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |list: &[Proc]| list.iter().map(|p| p.name()).collect::<Vec<_>>().join("+");
        let kind = match self.kind {
            Kind::CutBoth => "cut-both".to_owned(),
            Kind::CutAll => "cut-all".to_owned(),
            Kind::CutOut => "cut-out".to_owned(),
            Kind::CutIn => "cut-in".to_owned(),
            Kind::CutPair => "cut-pair".to_owned(),
            Kind::CutOthers => "cut-others".to_owned(),
            Kind::Split => "split".to_owned(),
            Kind::Loss(percent) => format!("loss-{percent}"),
            Kind::Kill(list) => format!("kill-{}", joined(list)),
            Kind::KillBackend => "kill-backend".to_owned(),
            Kind::KillManagers(count) => format!("kill-{count}-managers"),
            Kind::Stop(list) => format!("stop-{}", joined(list)),
            Kind::Freeze => "freeze-host".to_owned(),
            Kind::FreezeOthers => "freeze-others".to_owned(),
            Kind::Clock(hours) => format!("clock{hours:+}h"),
            Kind::ClockAll(hours) => format!("clock-all{hours:+}h"),
            Kind::Lose => "lose-host".to_owned(),
            Kind::LoseOthers => "lose-others".to_owned(),
            Kind::Cold => "cold-restart".to_owned(),
            Kind::HandRestart => "hand-restart".to_owned(),
            Kind::HandStop => "hand-stop".to_owned(),
            Kind::HandPromote => "hand-promote".to_owned(),
            Kind::HandStart => "hand-start".to_owned(),
            Kind::HandStartPromote => "hand-start-promote".to_owned(),
            Kind::Switchover => "switchover".to_owned(),
            Kind::Failover => "failover".to_owned(),
            Kind::LosePromoted => "lose-promoted".to_owned(),
            Kind::ThenPrimary(Part::Postgres) => "kill-confirmer-then-lose".to_owned(),
            Kind::ThenPrimary(Part::Agent) => "kill-confirmers-agent-then-lose".to_owned(),
            Kind::ThenPrimary(Part::Host) => "lose-confirmer-then-lose".to_owned(),
            Kind::LoseWithConfirmer => "lose-with-confirmer".to_owned(),
            Kind::CrashThenLose => "kill-postmaster-then-lose".to_owned(),
            Kind::CrashWithConfirmer => "kill-with-confirmer".to_owned(),
            Kind::Changing(with) => with.to_string(),
        };
        f.pad(&format!("{kind}/{}", self.target))
    }
}

/// Timings that the expectations rest on.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// T_hold
    pub hold: Duration,
    /// T_kill
    pub kill: Duration,
    /// Time between two renewals.
    pub renew: Duration,
    /// Deadline of one probe of PostgreSQL.
    pub probe: Duration,
    /// The kernel lease is on.
    pub kernel_lease: bool,
}

/// `pg_promote` takes no longer.
const PROMOTES: Duration = Duration::from_secs(1);

/// When a server that was replaced may still acknowledge: nobody is there to stop it, and the documentation
/// says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Holes {
    /// To sessions as the server configures them, over TCP.
    pub tcp: Option<Span>,
    /// To the same over a unix socket.
    pub local: Option<Span>,
    /// More, to sessions that set `synchronous_commit` to `local` or `off`.
    pub own: Option<Span>,
}

impl Fault {
    /// The documented holes of a fault that lasted from … to.
    pub fn holes(&self, from: Micros, to: Micros, limits: &Limits) -> Holes {
        let micros = |d: Duration| d.as_micros() as Micros;
        let all = |span: Span| Holes { tcp: (!limits.kernel_lease).then_some(span), local: Some(span), own: None };
        let hits_primary = matches!(self.target, Target::Primary | Target::PrimaryLeading);
        match self.kind {
            // Nobody is left who could kill: until they go on, and T_kill more.
            Kind::Stop(list) if hits_primary && list.contains(&Proc::Agent) && list.contains(&Proc::Guard) => {
                all((from, to + micros(limits.kill)))
            }
            // All go on at once: the guard kills, but a backend may be faster.
            Kind::Freeze if hits_primary => all((to.saturating_sub(1), to + micros(limits.kill))),
            // No lease was ever held. The placeholder holds back whoever waits for standbys; the agent finds it.
            // Where only the server was touched the agent looks all the time; elsewhere it is down until the fault is undone.
            Kind::HandPromote => {
                Holes { own: Some((from, from + micros(PROMOTES + limits.probe))), ..Holes::default() }
            }
            Kind::HandStartPromote => Holes { own: Some((from, to + micros(limits.probe))), ..Holes::default() },
            _ => Holes::default(),
        }
    }

    /// What the cluster may do about its primary when the fault lasts that long.
    pub fn change(&self, hold: Duration, limits: &Limits) -> Change {
        let short = hold < limits.hold.saturating_sub(limits.renew * 2);
        let long = hold > limits.hold * 2;
        let by_length = match (short, long) {
            (true, _) => Change::MustNot,
            (_, true) => Change::Must,
            _ => Change::May,
        };
        let hits_primary = matches!(self.target, Target::Primary | Target::PrimaryLeading);
        match self.kind {
            Kind::CutBoth | Kind::CutAll | Kind::CutOut | Kind::CutIn | Kind::Freeze if hits_primary => by_length,
            Kind::Changing(With::Cut) => by_length,
            Kind::Changing(With::Lose) => Change::Must,
            Kind::Changing(With::Crash | With::Switchover) | Kind::CrashWithConfirmer => Change::May,
            Kind::ThenPrimary(_) | Kind::LoseWithConfirmer | Kind::CrashThenLose => Change::Must,
            Kind::FreezeOthers | Kind::Split if hits_primary => by_length,
            Kind::Stop(list) if hits_primary && (list.contains(&Proc::Agent) || list.contains(&Proc::Guard)) => {
                by_length
            }
            // Not noticed before the probe's deadline, if at all.
            Kind::Stop(list) if hits_primary && list.contains(&Proc::Postmaster) && !short => Change::May,
            Kind::Kill(list) if hits_primary && list.contains(&Proc::Guard) => Change::Must,
            // Restarted in place if that can be done in time.
            Kind::Kill(list) if hits_primary && list.contains(&Proc::Postmaster) => Change::May,
            Kind::KillBackend | Kind::KillManagers(_) => Change::May,
            Kind::Lose if hits_primary => Change::Must,
            // They may be back before the lease has ended.
            Kind::LoseOthers if !long => Change::May,
            Kind::LoseOthers | Kind::Cold | Kind::Switchover | Kind::Failover | Kind::LosePromoted => Change::Must,
            Kind::HandStart | Kind::HandStartPromote if hits_primary => Change::Must,
            Kind::HandRestart | Kind::HandStop if hits_primary => Change::May,
            _ => Change::MustNot,
        }
    }

    /// Nothing acknowledged may be lost.
    pub fn is_planned(&self) -> bool {
        self.kind == Kind::Switchover
    }

    /// Needs a cluster whose wall clocks can be shifted.
    pub fn needs_clocks(&self) -> bool {
        matches!(self.kind, Kind::Clock(_) | Kind::ClockAll(_))
    }

    /// How long it lasts in a random run.
    pub fn random_hold(&self, dice: &mut Dice) -> Duration {
        let ms = |dice: &mut Dice, from: u64, to: u64| Duration::from_millis(from + dice.below(to - from));
        match self.kind {
            Kind::Stop(_) | Kind::Freeze | Kind::FreezeOthers => match dice.below(10) {
                0..4 => ms(dice, 1_000, 3_000),
                4..8 => ms(dice, 3_000, 10_000),
                _ => ms(dice, 10_000, 30_000),
            },
            Kind::Switchover | Kind::Failover => self.hold,
            // A few changes fit in.
            Kind::Changing(_) => ms(dice, 4_000, 12_000),
            _ => ms(dice, 1_500, 12_000),
        }
    }
}

const AGENT_GUARD: &[Proc] = &[Proc::Agent, Proc::Guard];
/// Every process, and every pair.
const SINGLES: [&[Proc]; 5] = [&[Proc::Postmaster], &[Proc::Agent], &[Proc::Guard], &[Proc::Manager], &[Proc::Router]];
const PAIRS: [&[Proc]; 10] = [
    &[Proc::Postmaster, Proc::Agent],
    &[Proc::Postmaster, Proc::Guard],
    &[Proc::Postmaster, Proc::Manager],
    &[Proc::Postmaster, Proc::Router],
    AGENT_GUARD,
    &[Proc::Agent, Proc::Manager],
    &[Proc::Agent, Proc::Router],
    &[Proc::Guard, Proc::Manager],
    &[Proc::Guard, Proc::Router],
    &[Proc::Manager, Proc::Router],
];

/// Every fault there is.
pub fn catalogue() -> Vec<Fault> {
    use Target::{Leader, Primary, PrimaryLeading, Standby};
    let mut all = Vec::new();
    let mut add = |kind, target, seconds: f64| {
        all.push(Fault { kind, target, hold: Duration::from_secs_f64(seconds) });
    };
    for kind in [Kind::CutBoth, Kind::CutOut, Kind::CutIn] {
        for target in [Primary, PrimaryLeading, Leader, Standby] {
            add(kind, target, 8.0);
        }
    }
    add(Kind::CutAll, Primary, 8.0);
    add(Kind::CutAll, PrimaryLeading, 8.0);
    add(Kind::CutPair, Primary, 8.0);
    add(Kind::CutPair, PrimaryLeading, 8.0);
    add(Kind::CutPair, Leader, 8.0);
    add(Kind::CutOthers, Primary, 8.0);
    add(Kind::Split, Primary, 8.0);
    add(Kind::Loss(10), Primary, 15.0);
    for list in SINGLES.into_iter().chain(PAIRS) {
        add(Kind::Kill(list), Primary, 4.0);
    }
    for list in SINGLES {
        add(Kind::Kill(list), Standby, 3.0);
    }
    add(Kind::Kill(&[Proc::Manager]), Leader, 3.0);
    add(Kind::KillBackend, Primary, 4.0);
    add(Kind::KillManagers(2), Primary, 4.0);
    add(Kind::KillManagers(3), Primary, 4.0);
    for list in SINGLES.into_iter().chain([AGENT_GUARD]) {
        add(Kind::Stop(list), Primary, 10.0);
        add(Kind::Stop(list), Standby, 5.0);
    }
    for list in SINGLES {
        add(Kind::Stop(list), Primary, 1.5);
    }
    add(Kind::Stop(&[Proc::Manager]), Leader, 8.0);
    add(Kind::Freeze, Primary, 10.0);
    add(Kind::Freeze, Primary, 1.5);
    add(Kind::Freeze, PrimaryLeading, 10.0);
    add(Kind::Freeze, Leader, 10.0);
    add(Kind::Freeze, Standby, 10.0);
    add(Kind::FreezeOthers, Primary, 10.0);
    for hours in [1, -1] {
        add(Kind::Clock(hours), Primary, 5.0);
        add(Kind::Clock(hours), PrimaryLeading, 5.0);
        add(Kind::Clock(hours), Leader, 5.0);
        add(Kind::Clock(hours), Standby, 5.0);
        add(Kind::ClockAll(hours), Primary, 5.0);
    }
    for target in [Primary, PrimaryLeading, Leader, Standby] {
        add(Kind::Lose, target, 8.0);
    }
    add(Kind::LoseOthers, Primary, 8.0);
    add(Kind::Cold, Primary, 4.0);
    for target in [Primary, Standby] {
        add(Kind::HandRestart, target, 5.0);
        add(Kind::HandStop, target, 5.0);
        add(Kind::HandStart, target, 10.0);
        add(Kind::HandStartPromote, target, 10.0);
    }
    add(Kind::HandPromote, Standby, 6.0);
    add(Kind::Switchover, Primary, 3.0);
    add(Kind::Failover, Primary, 3.0);
    add(Kind::LosePromoted, Primary, 8.0);
    all
}

/// What was done, and what has to be undone.
#[derive(Debug)]
pub struct Done {
    /// The host that was hit.
    pub host: String,
    /// When it began.
    pub at: Micros,
    /// What showed at once that it was done.
    pub effect: String,
    undo: Undo,
}

/// How that is done.
#[derive(Debug)]
pub enum Undo {
    /// It is over already.
    Nothing,
    /// All packets pass again.
    Packets,
    /// These processes go on.
    Resume(Vec<Running>),
    /// These hosts go on.
    Thaw(Vec<Frozen>),
    /// These hosts' clocks are as they were.
    Clocks(Vec<String>),
    /// These hosts boot.
    Boot(Vec<String>),
    /// This, and then the settings are as they were.
    Changing(Box<Undo>, Changer),
}

impl Fault {
    /// Moves the Raft leader to where it has to be, and says whom the fault will hit.
    ///
    /// # Errors
    /// The leader doesn't come there.
    pub fn aim(&self, hosts: &Hosts, dice: &mut Dice) -> Result<String> {
        let began = Instant::now();
        loop {
            let status = hosts.rig.healthy(Duration::from_secs(120))?;
            let right = match self.target {
                Target::PrimaryLeading => status.leader == status.primary,
                Target::Leader => status.leader != status.primary,
                Target::Primary | Target::Standby => true,
            };
            if right {
                return self.host(hosts, &status, dice);
            }
            ensure!(began.elapsed() < Duration::from_secs(90), "the Raft leader doesn't come to where it is wanted");
            let standby = dice.shuffled(hosts.others(&status.primary)).remove(0);
            hosts.rig.transfer_leader(if self.target == Target::Leader { &standby } else { &status.primary });
        }
    }

    fn host(&self, hosts: &Hosts, status: &StatusReply, dice: &mut Dice) -> Result<String> {
        let standbys = hosts.others(&status.primary);
        Ok(match self.target {
            Target::Primary | Target::PrimaryLeading => status.primary.clone(),
            Target::Leader => status.leader.clone(),
            Target::Standby => standbys[dice.below(standbys.len() as u64) as usize].clone(),
        })
    }

    /// Does it to that host.
    ///
    /// # Errors
    /// It can't be done; what had been done is for [`Done::undo`] or the end of the cluster.
    pub fn inject(&self, hosts: &Hosts, host: &str, dice: &mut Dice) -> Result<Done> {
        let at = now();
        let (effect, undo) = self.act(hosts, host, dice).with_context(|| format!("{self} on {host}"))?;
        Ok(Done { host: host.to_owned(), at, effect, undo })
    }

    /// The same; what it showed and how it is undone.
    ///
    /// # Errors
    /// As [`Fault::inject`].
    pub fn act(&self, hosts: &Hosts, host: &str, dice: &mut Dice) -> Result<(String, Undo)> {
        match self.kind {
            Kind::CutBoth | Kind::CutAll | Kind::CutOut | Kind::CutIn | Kind::CutPair | Kind::CutOthers => {
                self.cut(hosts, host, dice)
            }
            Kind::Split | Kind::Loss(_) => self.cut(hosts, host, dice),
            Kind::Kill(list) => {
                let found = list.iter().map(|p| hosts.process(host, *p)).collect::<Result<Vec<_>>>()?;
                hosts.kill(&found)?;
                Ok((format!("{} gone", pids(&found)), Undo::Nothing))
            }
            Kind::KillBackend => {
                let backends = hosts.backends(host)?;
                ensure!(!backends.is_empty(), "there is no client backend");
                let one = backends[dice.below(backends.len() as u64) as usize];
                let one = Running::of(one).context("the backend has just ended")?;
                hosts.kill(&[one])?;
                Ok((format!("{} gone", pids(&[one])), Undo::Nothing))
            }
            Kind::KillManagers(count) => {
                let mut all = dice.shuffled(hosts.rig.members());
                all.truncate(count);
                let found = all.iter().map(|h| hosts.process(h, Proc::Manager)).collect::<Result<Vec<_>>>()?;
                hosts.kill(&found)?;
                Ok((format!("{} of {} gone", pids(&found), all.join(", ")), Undo::Nothing))
            }
            Kind::Stop(list) => {
                let found = list.iter().map(|p| hosts.process(host, *p)).collect::<Result<Vec<_>>>()?;
                hosts.stop(&found)?;
                Ok((format!("{} stopped", pids(&found)), Undo::Resume(found)))
            }
            Kind::Freeze => self.freeze(hosts, &[host.to_owned()]),
            Kind::FreezeOthers => self.freeze(hosts, &hosts.others(host)),
            Kind::Clock(hours) => self.shift(hosts, vec![host.to_owned()], hours),
            Kind::ClockAll(hours) => self.shift(hosts, hosts.rig.members(), hours),
            Kind::Lose => self.lose(hosts, vec![host.to_owned()]),
            Kind::LoseOthers => self.lose(hosts, hosts.others(host)),
            Kind::Cold => self.lose(hosts, dice.shuffled(hosts.rig.members())),
            Kind::HandRestart => Ok((hosts.pg_ctl(host, &["-w", "-t", "20", "-m", "fast", "restart"])?, Undo::Nothing)),
            Kind::HandStop => Ok((hosts.pg_ctl(host, &["-w", "-t", "20", "-m", "fast", "stop"])?, Undo::Nothing)),
            Kind::HandPromote => {
                let answer = hosts.as_superuser(host, "select pg_promote(true, 10)")?;
                ensure!(answer == "t", "pg_promote() gave {answer}");
                Ok(("pg_promote() gave t".to_owned(), Undo::Nothing))
            }
            Kind::HandStart => self.start_by_hand(hosts, host, false),
            Kind::HandStartPromote => self.start_by_hand(hosts, host, true),
            Kind::LosePromoted => self.lose_promoted(hosts, dice.shuffled(hosts.others(host)).swap_remove(0)),
            Kind::ThenPrimary(_) | Kind::LoseWithConfirmer | Kind::Changing(_) => {
                self.hit_confirmers(hosts, host, dice)
            }
            Kind::CrashThenLose | Kind::CrashWithConfirmer => self.hit_confirmers(hosts, host, dice),
            Kind::Switchover | Kind::Failover => {
                // A failover by command must say to whom.
                let candidate = dice.shuffled(hosts.others(host)).swap_remove(0);
                let reply = match self.kind {
                    Kind::Switchover => hosts.rig.switchover("")?,
                    _ => hosts.fail_over(&candidate)?,
                };
                ensure!(reply.accepted, "refused: {}", reply.reason);
                let ended = hosts.rig.finished(reply.id, Duration::from_secs(60))?;
                ensure!(ended.succeeded, "it failed: {}", ended.reason);
                Ok((format!("operation {} succeeded", reply.id), Undo::Nothing))
            }
        }
    }

    fn cut(&self, hosts: &Hosts, host: &str, dice: &mut Dice) -> Result<(String, Undo)> {
        let others = hosts.others(host);
        let both = |a: &str, b: &str| [one_way(a, b), one_way(b, a)];
        let rules: Vec<String> = match self.kind {
            Kind::CutBoth => others.iter().flat_map(|o| both(host, o)).collect(),
            Kind::CutAll => vec![format!("iifname \"{host}\""), format!("oifname \"{host}\"")],
            Kind::CutOut => others.iter().map(|o| one_way(host, o)).collect(),
            Kind::CutIn => others.iter().map(|o| one_way(o, host)).collect(),
            Kind::CutPair => both(host, &others[dice.below(others.len() as u64) as usize]).into(),
            Kind::CutOthers => both(&others[0], &others[1]).into(),
            Kind::Split => {
                let all = hosts.rig.members();
                all.iter().flat_map(|a| all.iter().filter(move |b| *b != a).map(|b| one_way(a, b))).collect()
            }
            Kind::Loss(percent) => vec![format!("numgen random mod 100 < {percent}")],
            _ => bail!("{self} is no fault of the network"),
        };
        hosts.drop_packets(&rules)?;
        Ok((rules.join("; "), Undo::Packets))
    }

    fn freeze(&self, hosts: &Hosts, which: &[String]) -> Result<(String, Undo)> {
        let frozen = which.iter().map(|h| hosts.freeze(h)).collect::<Result<Vec<_>>>()?;
        Ok((format!("{} frozen", which.join(", ")), Undo::Thaw(frozen)))
    }

    fn shift(&self, hosts: &Hosts, which: Vec<String>, hours: i64) -> Result<(String, Undo)> {
        for host in &which {
            hosts.shift_clock(host, hours * 3600)?;
        }
        let offsets = which.iter().map(|h| hosts.clock_offset(h)).collect::<Result<Vec<_>>>()?;
        ensure!(offsets.iter().all(|o| o.abs_diff(hours * 3600) < 5), "the clocks differ from ours by {offsets:?} s");
        Ok((format!("wall clocks of {} differ by {offsets:?} s", which.join(", ")), Undo::Clocks(which)))
    }

    /// These hosts lose power, one after the other.
    ///
    /// # Errors
    /// One can't be switched off.
    pub fn lose(&self, hosts: &Hosts, which: Vec<String>) -> Result<(String, Undo)> {
        for host in &which {
            hosts.rig.kill_host(host)?;
        }
        Ok((format!("no process of {} is left", which.join(", ")), Undo::Boot(which)))
    }

    /// Nobody but that host may know that it was promoted; the next primary begins from the same position.
    fn lose_promoted(&self, hosts: &Hosts, candidate: String) -> Result<(String, Undo)> {
        let reply = hosts.fail_over(&candidate)?;
        ensure!(reply.accepted, "refused: {}", reply.reason);
        let began = Instant::now();
        while hosts.as_superuser(&candidate, "select pg_is_in_recovery()").map_or(true, |answer| answer != "f") {
            ensure!(began.elapsed() < Duration::from_secs(60), "{candidate} is not promoted");
        }
        self.lose(hosts, vec![candidate])
    }

    /// The host is down and nobody of ours runs there; its network is up, and somebody starts PostgreSQL.
    fn start_by_hand(&self, hosts: &Hosts, host: &str, promote: bool) -> Result<(String, Undo)> {
        for role in [Role::Agent, Role::Manager, Role::Router] {
            hosts.rig.take_down(host, role)?;
        }
        let rest: Vec<Running> = hosts.rig.processes(host)?.into_iter().filter_map(Running::of).collect();
        hosts.kill(&rest)?;
        // The configuration of a running server is in its guard's runtime directory; a boot empties that.
        let mut effect = hosts.pg_ctl(host, &["-w", "-t", "20", "start"])?;
        if promote {
            effect += &format!("; pg_promote() gave {}", hosts.as_superuser(host, "select pg_promote(true, 10)")?);
        }
        Ok((effect, Undo::Boot(vec![host.to_owned()])))
    }
}

fn pids(list: &[Running]) -> String {
    format!("processes {:?}", list.iter().map(|p| p.pid).collect::<Vec<_>>())
}

impl Done {
    /// Looks whether the fault still has its effect, and undoes it. Gives when that began, and what was seen or
    /// why it was no effect.
    ///
    /// # Errors
    /// It can't be undone: the cluster is of no use any more.
    pub fn undo(&self, hosts: &Hosts, dice: &mut Dice) -> Result<(Micros, Result<String, String>)> {
        let seen = self.undo.look(hosts)?;
        let at = now();
        let more = self.undo.carry_out(hosts, dice)?;
        Ok((at, more.and_then(|more| seen.map(|seen| format!("{seen}{more}")))))
    }

    /// When packets of clients could be lost on their way, given that it was undone at `end`: from its beginning
    /// until the kernel's retransmissions are through.
    pub fn disturbed(&self, end: Micros) -> Option<Span> {
        self.undo.disturbs().then_some((self.at, end + 60_000_000))
    }
}

impl Undo {
    fn disturbs(&self) -> bool {
        match self {
            Undo::Packets | Undo::Boot(_) => true,
            Undo::Changing(inner, _) => inner.disturbs(),
            Undo::Nothing | Undo::Resume(_) | Undo::Thaw(_) | Undo::Clocks(_) => false,
        }
    }

    /// Whether the fault still has its effect.
    fn look(&self, hosts: &Hosts) -> Result<Result<String, String>> {
        Ok(match self {
            Undo::Packets => {
                let dropped = hosts.dropped()?;
                let text = format!("{dropped} packets dropped");
                if dropped > 0 { Ok(text) } else { Err(text) }
            }
            Undo::Resume(stopped) => {
                let still = stopped.iter().filter(|p| p.is_stopped()).count();
                let gone = stopped.iter().filter(|p| !p.lives()).count();
                let text = format!("at the end {still} stopped, {gone} gone");
                if still + gone == stopped.len() { Ok(text) } else { Err(text) }
            }
            Undo::Changing(inner, _) => inner.look(hosts)?,
            Undo::Nothing | Undo::Thaw(_) | Undo::Clocks(_) | Undo::Boot(_) => Ok(String::new()),
        })
    }

    /// Does it; what more there is to say of the effect.
    fn carry_out(&self, hosts: &Hosts, dice: &mut Dice) -> Result<Result<String, String>> {
        match self {
            Undo::Nothing => {}
            Undo::Packets => hosts.pass_packets()?,
            Undo::Resume(stopped) => hosts.resume(stopped),
            Undo::Thaw(frozen) => frozen.iter().try_for_each(|one| hosts.thaw(one))?,
            Undo::Clocks(which) => which.iter().try_for_each(|host| hosts.shift_clock(host, 0))?,
            Undo::Boot(which) => {
                for host in dice.shuffled(which.clone()) {
                    // What was started by hand dies with the host.
                    hosts.rig.kill_host(&host)?;
                    hosts.rig.boot_host(&host)?;
                }
            }
            Undo::Changing(inner, changer) => {
                let before = inner.carry_out(hosts, dice)?;
                let (accepted, refused) = changer.end()?;
                let text = format!("; settings changed {accepted} times, {refused} times refused");
                return Ok(before.and(if accepted > 0 { Ok(text) } else { Err(text) }));
            }
        }
        Ok(Ok(String::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        let ms = Duration::from_millis;
        Limits { hold: ms(2_500), kill: ms(500), renew: ms(300), probe: ms(5_000), kernel_lease: false }
    }

    #[test]
    fn names_are_unique_and_every_pair_is_there() {
        let all = [catalogue(), crate::confirmers::catalogue()].concat();
        let mut names: Vec<String> = all.iter().map(|f| format!("{f} {:?}", f.hold)).collect();
        names.sort();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        assert_eq!(SINGLES.len() + PAIRS.len(), 5 + 5 * 4 / 2);
        for (i, pair) in PAIRS.iter().enumerate() {
            assert!(pair[0] < pair[1] && !PAIRS[i + 1..].contains(pair), "{pair:?}");
        }
    }

    #[test]
    fn what_is_expected_depends_on_the_length() {
        let cut = Fault { kind: Kind::CutBoth, target: Target::Primary, hold: Duration::from_secs(8) };
        let change = |seconds: f64| cut.change(Duration::from_secs_f64(seconds), &limits());
        assert_eq!((change(1.5), change(3.0), change(8.0)), (Change::MustNot, Change::May, Change::Must));
        let standby = Fault { target: Target::Standby, ..cut };
        assert_eq!(standby.change(standby.hold, &limits()), Change::MustNot);
    }

    #[test]
    fn only_the_documented_holes_are_excused() {
        let holes = |limits: &Limits, of: fn(&Holes) -> Option<Span>| -> Vec<String> {
            let all = catalogue().into_iter().filter(|f| of(&f.holes(0, 1, limits)).is_some());
            all.map(|f| f.to_string()).collect()
        };
        let hit = ["primary", "primary", "primary+leader"].map(|whom| format!("freeze-host/{whom}"));
        let expected = [vec!["stop-agent+guard/primary".to_owned()], hit.to_vec()].concat();
        assert_eq!(holes(&limits(), |h| h.tcp), expected);
        assert_eq!(holes(&limits(), |h| h.local), expected);
        assert!(holes(&Limits { kernel_lease: true, ..limits() }, |h| h.tcp).is_empty());
        let by_hand = ["hand-start-promote/primary", "hand-start-promote/standby", "hand-promote/standby"];
        assert_eq!(holes(&limits(), |h| h.own), by_hand);
    }
}
