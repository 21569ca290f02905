//! What each check makes of the status. Pure.

use super::{
    Finding, Level, Number,
    limits::{Limit, Limits},
};
use crate::{
    cli::args::views::{CheckArgs, Role, Subject},
    rpc::v1::{Lag, MemberStatus, StatusReply, Volume},
};

/// A standby that is further behind needs a look, and one still further help.
const LAG: (u64, u64) = (16 << 20, 1 << 30);
/// Archiving that has failed for so long is critical; that it fails at all is a warning.
const ARCHIVE_MS: (u64, u64) = (0, 300_000);
/// Slots that hold back such a share of what they may.
const SLOTS_PERCENT: (u64, u64) = (80, 95);

const EACH: [Subject; 8] = [
    Subject::Quorum,
    Subject::Role,
    Subject::Lag,
    Subject::Slots,
    Subject::Archive,
    Subject::Lease,
    Subject::Disk,
    Subject::Sync,
];

pub(super) fn name(what: Subject) -> &'static str {
    match what {
        Subject::Quorum => "quorum",
        Subject::Role => "role",
        Subject::Lag => "lag",
        Subject::Slots => "slots",
        Subject::Archive => "archive",
        Subject::Lease => "lease",
        Subject::Disk => "disk",
        Subject::Sync => "sync",
        Subject::All => "matriarch",
    }
}

/// What was asked for.
pub(super) fn findings(args: &CheckArgs, limits: &Limits, status: &StatusReply) -> Vec<Finding> {
    let wanted: &[Subject] = if args.what == Subject::All { &EACH } else { &[args.what] };
    // Of one member only what is of members, and a primary lags behind nobody.
    let is_of_it = |what: &Subject| {
        let all = args.what == Subject::All;
        args.member
            .as_ref()
            .is_none_or(|only| !all || (takes_member(*what) && !(*what == Subject::Lag && leads(only, status))))
    };
    wanted.iter().filter(|what| is_of_it(what)).map(|what| finding(*what, args, limits, status)).collect()
}

/// Whether this can be looked at of one member.
pub(super) fn takes_member(what: Subject) -> bool {
    !matches!(what, Subject::Quorum | Subject::Lease | Subject::Sync)
}

/// The member is the primary, by its own word or by the lock.
pub(super) fn leads(member: &str, status: &StatusReply) -> bool {
    status.primary == member || status.members.iter().any(|m| m.member == member && m.role == "primary")
}

fn finding(what: Subject, args: &CheckArgs, limits: &Limits, status: &StatusReply) -> Finding {
    let members: Vec<&MemberStatus> =
        status.members.iter().filter(|m| args.member.as_ref().is_none_or(|only| m.member == *only)).collect();
    let mut told = Told::default();
    match what {
        Subject::Quorum => quorum(status, &mut told),
        Subject::Role => role(status, (args.member.as_deref(), args.role), &mut told),
        Subject::Lag => lag(&members, limits, &mut told),
        Subject::Slots => slots(&heard(&members, status, &mut told), limits, &mut told),
        Subject::Archive => archive(&heard(&members, status, &mut told), limits, &mut told),
        Subject::Lease | Subject::Sync if !status.hibernated.is_empty() => {
            told.say(Level::Ok, format!("the cluster is {}", status.hibernated));
        }
        Subject::Lease => lease(status, &mut told),
        Subject::Disk => disk(&heard(&members, status, &mut told), limits, &mut told),
        Subject::Sync => sync(status, &mut told),
        Subject::All => {}
    }
    told.finding(name(what))
}

/// What is said, the worst of it deciding.
#[derive(Default)]
struct Told {
    level: Option<Level>,
    worst: Vec<(Level, String)>,
    numbers: Vec<Number>,
}

impl Told {
    fn say(&mut self, level: Level, text: impl Into<String>) {
        self.level = self.level.max(Some(level));
        self.worst.push((level, text.into()));
    }

    fn number(&mut self, name: String, (value, unit): (f64, &'static str), limits: (Option<f64>, Option<f64>)) {
        self.numbers.push(Number { name, value, unit, warning: limits.0, critical: limits.1 });
    }

    /// What is bad is said before what is well; when something is bad, nothing else is.
    fn finding(mut self, check: &'static str) -> Finding {
        let level = self.level.unwrap_or(Level::Ok);
        self.worst.sort_by_key(|(level, _)| std::cmp::Reverse(*level));
        let bad = self.worst.iter().any(|(level, _)| *level != Level::Ok);
        let texts = self.worst.iter().filter(|(level, _)| !bad || *level != Level::Ok).map(|(_, text)| text.clone());
        let texts: Vec<String> = texts.collect();
        let text = if texts.is_empty() { "nothing to say".to_owned() } else { texts.join(", ") };
        Finding { check, level, text, performance: self.numbers }
    }
}

fn leader_answers(status: &StatusReply) -> bool {
    !status.leader.is_empty() && status.leader == status.answered_by
}

/// Says so when nobody who answers knows every member's state.
fn without_leader(status: &StatusReply, told: &mut Told) -> bool {
    match (leader_answers(status), status.leader.as_str()) {
        (true, _) => return false,
        (false, "") => told.say(Level::Unknown, "no Raft leader: what the managers know may be old"),
        (false, leader) => told.say(Level::Unknown, format!("the Raft leader {leader} does not answer")),
    }
    true
}

/// Its agent has said something lately.
fn is_heard(member: &MemberStatus) -> bool {
    member.state != "silent"
}

/// Those whose agents say something; of each other one it is told that nothing is known.
fn heard<'a>(members: &[&'a MemberStatus], status: &StatusReply, told: &mut Told) -> Vec<&'a MemberStatus> {
    if without_leader(status, told) {
        return Vec::new();
    }
    for silent in members.iter().filter(|member| !is_heard(member)) {
        told.say(Level::Unknown, format!("nothing is heard of {}", silent.member));
    }
    members.iter().copied().filter(|member| is_heard(member)).collect()
}

/// Why nobody takes writes although somebody holds the lock.
fn held_back(status: &StatusReply) -> String {
    let by = match status.operation.as_ref().filter(|o| !o.finished) {
        Some(o) => format!("the operation {} ({})", o.id, o.kind),
        None => "an operation, or is kept out".to_owned(),
    };
    format!("no primary takes writes: the lock is open, its holder is held back by {by}; `matriarch status` says more")
}

/// A majority of each half of the voters has to answer.
fn quorum(status: &StatusReply, told: &mut Told) {
    if status.leader.is_empty() {
        return told.say(Level::Critical, "no Raft leader: the managers that answer are no majority");
    }
    if !leader_answers(status) {
        return told.say(Level::Unknown, format!("the Raft leader {} does not answer", status.leader));
    }
    let answers = |member: &str| {
        let seen = status.members.iter().find(|m| m.member == member);
        seen.is_some_and(|m| matches!(m.raft_role.as_str(), "leader" | "follower"))
    };
    let halves: [fn(&crate::rpc::v1::Voter) -> bool; 2] = [|v| v.old, |v| v.new];
    let counts = halves.map(|votes| {
        let voters: Vec<&str> = status.voters.iter().filter(|v| votes(v)).map(|v| v.member.as_str()).collect();
        (voters.iter().filter(|m| answers(m)).count(), voters.len())
    });
    // The half that can lose least.
    let spare = |(alive, all): (usize, usize)| alive as i64 - (all as i64 / 2 + 1);
    let Some((alive, all)) = counts.into_iter().filter(|(_, all)| *all > 0).min_by_key(|c| spare(*c)) else {
        return told.say(Level::Unknown, "the answering manager names no voter");
    };
    let silent: Vec<&str> = status.voters.iter().map(|v| v.member.as_str()).filter(|member| !answers(member)).collect();
    let who = if silent.is_empty() { String::new() } else { format!(" (silent: {})", silent.join(", ")) };
    let answer = format!("{alive} of {all} voters answer{who}");
    match spare((alive, all)) {
        i64::MIN..0 => told.say(Level::Critical, format!("{answer}: no majority")),
        0 => told.say(Level::Warning, format!("{answer}: the loss of one more would be the loss of the majority")),
        _ => told.say(Level::Ok, answer),
    }
    told.number("voters".to_owned(), (alive as f64, ""), (Some((all / 2 + 2) as f64), Some((all / 2 + 1) as f64)));
}

fn role(status: &StatusReply, (member, wanted): (Option<&str>, Option<Role>), told: &mut Told) {
    if without_leader(status, told) {
        return;
    }
    if let (Some(name), Some(wanted)) = (member, wanted) {
        let wanted = match wanted {
            Role::Primary => "primary",
            Role::Standby => "standby",
        };
        let seen = status.members.iter().find(|m| m.member == name);
        let is = seen.map_or("none", |m| m.role.as_str());
        let state = seen.map_or("not there", |m| m.state.as_str());
        let level = if is == wanted && state != "crashed" { Level::Ok } else { Level::Critical };
        return told.say(level, format!("{name} is {is}, {state}"));
    }
    let says_primary = status.members.iter().any(|m| m.role == "primary");
    let (level, text) = match status.hibernated.is_empty() || says_primary {
        true => primary(status),
        false => (Level::Ok, format!("the cluster is {}", status.hibernated)),
    };
    told.say(level, text);
    if let Some(seen) = status.members.iter().find(|m| member == Some(m.member.as_str())) {
        match is_heard(seen) {
            true => told.say(Level::Ok, format!("{} is {}", seen.member, seen.role)),
            false => told.say(Level::Unknown, format!("nothing is heard of {}", seen.member)),
        }
    }
}

/// Whether there is one primary, by the lock and by its own word.
fn primary(status: &StatusReply) -> (Level, String) {
    let (name, epoch) = (status.primary.as_str(), status.epoch);
    match status.lock.as_str() {
        "open" if name.is_empty() => return (Level::Critical, held_back(status)),
        "open" => {}
        lock => return (Level::Critical, format!("no open primary, the lock is {lock}")),
    }
    let others: Vec<&str> =
        status.members.iter().filter(|m| m.role == "primary" && m.member != name).map(|m| m.member.as_str()).collect();
    if !others.is_empty() {
        return (Level::Critical, format!("{name} is primary, and so says {}", others.join(", ")));
    }
    match status.members.iter().find(|m| m.member == name) {
        Some(own) if own.role == "primary" && own.state != "crashed" => {
            (Level::Ok, format!("{name} is primary of epoch {epoch}"))
        }
        Some(own) if is_heard(own) => {
            let is = format!("{} says {}, {}", name, own.role, own.state);
            (Level::Critical, format!("{name} has the lock of epoch {epoch} and is no running primary: {is}"))
        }
        _ => (Level::Critical, format!("{name} has the lock of epoch {epoch}, and nothing is heard of it")),
    }
}

fn lag(members: &[&MemberStatus], limits: &Limits, told: &mut Told) {
    let standbys = members.iter().filter(|m| !matches!(m.role.as_str(), "primary" | "witness"));
    for member in standbys {
        let name = &member.member;
        if !member.stopped.is_empty() {
            told.say(Level::Ok, format!("{name} is {}", member.stopped));
            continue;
        }
        // Who shows the past on purpose is measured by what it has, not by what it shows.
        let (lag, what) = match member.state.as_str() {
            "delayed" => (member.flushed, "has not flushed"),
            _ => (member.replayed.or(Some(Lag { bytes: member.lag_bytes, ms: None })), "has not replayed"),
        };
        let Some(lag) = lag.filter(|_| member.lag_known && member.role == "standby") else {
            told.say(Level::Critical, format!("{name} is no standby that can be measured ({})", member.state));
            continue;
        };
        let by_time = matches!(limits.warning.or(limits.critical), Some(Limit::Millis(_)));
        let (value, unit) = match (by_time, lag.ms) {
            (true, Some(ms)) => (ms as f64 / 1_000.0, "s"),
            (true, None) => {
                told.say(Level::Unknown, format!("{name} {what} {} B, and nobody knows of when they are", lag.bytes));
                continue;
            }
            (false, _) => (lag.bytes as f64, "B"),
        };
        let (warning, critical) = bounds(limits, (LAG.0 as f64, LAG.1 as f64));
        told.say(above(value, warning, critical), format!("{name} {what} {value} {unit}"));
        told.number(format!("{name}_lag"), (value, unit), (warning, critical));
    }
    if told.level.is_none() {
        told.say(Level::Ok, "there is no standby");
    }
}

/// What was given counts; the defaults where nothing was.
fn bounds(limits: &Limits, default: (f64, f64)) -> (Option<f64>, Option<f64>) {
    let number = |limit: Limit| match limit {
        Limit::Bytes(bytes) => bytes as f64,
        Limit::Millis(ms) => ms as f64 / 1_000.0,
        Limit::Percent(percent) => percent,
    };
    match (limits.warning, limits.critical) {
        (None, None) => (Some(default.0), Some(default.1)),
        (warning, critical) => (warning.map(number), critical.map(number)),
    }
}

fn above(value: f64, warning: Option<f64>, critical: Option<f64>) -> Level {
    match (critical.is_some_and(|c| value > c), warning.is_some_and(|w| value > w)) {
        (true, _) => Level::Critical,
        (false, true) => Level::Warning,
        (false, false) => Level::Ok,
    }
}

fn slots(members: &[&MemberStatus], limits: &Limits, told: &mut Told) {
    for member in members {
        let Some(kept) = &member.kept_wal else { continue };
        for problem in &kept.problems {
            told.say(Level::Warning, format!("{}: {problem}", member.member));
        }
        let limit = kept.limit_bytes.filter(|limit| *limit > 0);
        let default = |percent: u64| limit.map(|limit| (limit as f64 / 100.0 * percent as f64).round());
        let (warning, critical) = match (limits.warning, limits.critical) {
            (None, None) => (default(SLOTS_PERCENT.0), default(SLOTS_PERCENT.1)),
            _ => bounds(limits, (0.0, 0.0)),
        };
        for slot in &kept.slots {
            let state = if slot.active { "" } else { ", nobody reads it" };
            let bytes = slot.bytes as f64;
            let text = format!("slot {} of {} holds {} B back{state}", slot.name, member.member, slot.bytes);
            told.say(above(bytes, warning, critical), text);
            told.number(format!("{}_{}", member.member, slot.name), (bytes, "B"), (warning, critical));
        }
    }
    if told.level.is_none() {
        told.say(Level::Ok, "no slot holds WAL back");
    }
}

fn archive(members: &[&MemberStatus], limits: &Limits, told: &mut Told) {
    for member in members {
        let Some(archive) = member.archive.as_ref().filter(|a| a.on) else { continue };
        let name = &member.member;
        let (warning, critical) = bounds(limits, (ARCHIVE_MS.0 as f64 / 1_000.0, ARCHIVE_MS.1 as f64 / 1_000.0));
        let failing = archive.failing_ms.map(|ms| ms as f64 / 1_000.0);
        match failing {
            Some(seconds) => {
                let why = super::super::known(&archive.said).unwrap_or("the command says nothing");
                // Whoever gave only one limit is not told of less.
                let level = above(seconds, warning, critical);
                told.say(
                    level,
                    format!("archiving of {name} has failed for {seconds} s, last {}: {why}", archive.last_failed),
                );
            }
            None if archive.much => {
                told.say(Level::Warning, format!("{} files wait on {name}", archive.waiting));
            }
            None => told.say(Level::Ok, format!("archiving of {name} works, {} files wait", archive.waiting)),
        }
        told.number(format!("{name}_failing"), (failing.unwrap_or(0.0), "s"), (warning, critical));
        told.number(format!("{name}_waiting"), (archive.waiting as f64, ""), (None, None));
    }
    if told.level.is_none() {
        told.say(Level::Ok, "nothing is archived");
    }
}

fn lease(status: &StatusReply, told: &mut Told) {
    let Some(primary) = status.members.iter().find(|m| m.member == status.primary) else {
        let why = match status.lock.as_str() {
            "open" => held_back(status),
            lock => format!("nobody holds an open lease, the lock is {lock}"),
        };
        return told.say(Level::Critical, why);
    };
    let name = &primary.member;
    match primary.lease_remaining_ms {
        0 if !leader_answers(status) => {
            told.say(
                Level::Unknown,
                format!("nothing is known of the lease of {name}: the Raft leader does not answer"),
            );
        }
        0 => told.say(Level::Critical, format!("{name} does not hold its lease")),
        ms => told.say(Level::Ok, format!("{name} holds it for another {}.{} s", ms / 1_000, ms % 1_000 / 100)),
    }
    if status.failsafe == "active" {
        told.say(Level::Warning, "failsafe: the primary goes on without the managers");
    }
    told.number("remaining".to_owned(), (primary.lease_remaining_ms as f64 / 1_000.0, "s"), (None, None));
}

fn disk(members: &[&MemberStatus], limits: &Limits, told: &mut Told) {
    for member in members {
        let Some(room) = &member.room else { continue };
        for (what, volume) in [("data", &room.data), ("WAL", &room.wal)] {
            let Some(volume) = volume else { continue };
            volume_level((&member.member, what), volume, limits, told);
        }
    }
    if told.level.is_none() {
        told.say(Level::Unknown, "no host says how much is free");
    }
}

fn volume_level((member, what): (&str, &str), volume: &Volume, limits: &Limits, told: &mut Told) {
    let percent = volume.free_bytes as f64 * 100.0 / (volume.size_bytes.max(1)) as f64;
    let percent = (percent * 10.0).round() / 10.0;
    let (warning, critical) = bounds(limits, (0.0, 0.0));
    let level = match (limits.warning, limits.critical) {
        // Without limits it counts what the cluster itself goes by.
        (None, None) if volume.short || volume.spent => Level::Critical,
        (None, None) if volume.low => Level::Warning,
        (None, None) => Level::Ok,
        _ if critical.is_some_and(|c| percent < c) => Level::Critical,
        _ if warning.is_some_and(|w| percent < w) => Level::Warning,
        _ => Level::Ok,
    };
    told.say(level, format!("{percent} % of {member} are free for {what}"));
    let limits = if limits.warning.or(limits.critical).is_some() { (warning, critical) } else { (None, None) };
    told.number(format!("{member}_{}_free", what.to_lowercase()), (percent, "%"), limits);
}

/// Standbys that confirm now, and those that could take their place.
fn sync(status: &StatusReply, told: &mut Told) {
    if without_leader(status, told) {
        return;
    }
    let Some(commits) = status.commits.as_ref().filter(|c| c.mode != "async") else {
        return told.say(Level::Ok, "async: commits wait for no standby");
    };
    let mode = &commits.mode;
    if let Some(primary) = status.members.iter().find(|m| m.member == status.primary && !is_heard(m)) {
        return told.say(Level::Unknown, format!("{mode}: nothing is heard of {}", primary.member));
    }
    let direct = |m: &&MemberStatus| m.role == "standby" && m.state == "streaming" && m.upstream == status.primary;
    let able: Vec<&str> = status.members.iter().filter(direct).map(|m| m.member.as_str()).collect();
    let confirm = commits.names.iter().filter(|name| able.contains(&name.as_str())).count();
    let needed = commits.count as usize;
    told.number("confirming".to_owned(), (confirm as f64, ""), (None, None));
    told.number("able".to_owned(), (able.len() as f64, ""), (None, None));
    let what = if commits.strict { "commits would wait" } else { "commits would be confirmed by the primary alone" };
    if needed == 0 {
        told.say(Level::Critical, format!("{mode}: no standby confirms commits, a failover could lose some"));
    } else if confirm < needed {
        told.say(Level::Critical, format!("{mode}: {confirm} of the {needed} that have to confirm do, commits wait"));
    } else if !commits.in_effect {
        told.say(Level::Warning, format!("{mode}: PostgreSQL does not go by the rule yet"));
    } else if able.len() <= needed {
        told.say(Level::Warning, format!("{mode}: {confirm} confirm; when one more standby is lost {what}"));
    } else {
        told.say(Level::Ok, format!("{mode}: {needed} of {} confirm, {} could", commits.names.len(), able.len()));
    }
}
