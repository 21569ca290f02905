//! `matriarch check`: one thing at a time, in the words and with the exit codes of monitoring plugins.

mod facts;
mod limits;

use std::{fmt, time::Duration};

use serde::Serialize;
use tokio::time::sleep;

use self::limits::Limits;
use super::super::{
    args::views::{CheckArgs, Subject},
    client::{Client, ClientError},
    complain,
    exit::{self, Exit},
    print, render,
};
use crate::rpc::v1::StatusReply;

/// The managers agree on a leader within this when nothing is wrong but that one was lost a moment ago.
const ELECTION: Duration = Duration::from_millis(500);

/// How bad it is, in the order of what counts more when several things are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
enum Level {
    Ok,
    Warning,
    Unknown,
    Critical,
}

impl Level {
    /// What monitoring plugins exit with.
    fn exit(self) -> Exit {
        Exit(match self {
            Level::Ok => 0,
            Level::Warning => 1,
            Level::Critical => 2,
            Level::Unknown => 3,
        })
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Level::Ok => "OK",
            Level::Warning => "WARNING",
            Level::Unknown => "UNKNOWN",
            Level::Critical => "CRITICAL",
        })
    }
}

/// What one check found.
#[derive(Debug, PartialEq, Serialize)]
struct Finding {
    check: &'static str,
    level: Level,
    text: String,
    /// Numbers for graphs.
    performance: Vec<Number>,
}

/// One number as plugins write it: `n2_lag=328B;16777216;1073741824`.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Number {
    name: String,
    value: f64,
    unit: &'static str,
    warning: Option<f64>,
    critical: Option<f64>,
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}{}", self.name, self.value, self.unit)?;
        let limit = |limit: Option<f64>| limit.map(|l| l.to_string()).unwrap_or_default();
        match (self.warning, self.critical) {
            (None, None) => Ok(()),
            (warning, critical) => write!(f, ";{};{}", limit(warning), limit(critical)),
        }
    }
}

pub(super) async fn run(args: CheckArgs) -> Exit {
    let limits = match Limits::of(args.what, args.warning.as_deref(), args.critical.as_deref()) {
        Ok(limits) => limits,
        Err(problem) => return complain(&format!("check: {problem}"), exit::USAGE),
    };
    if let Some(problem) = unfit(&args) {
        return complain(&format!("check: {problem}"), exit::USAGE);
    }
    let findings = match look(&args).await {
        Ok(status) => match no_such_member(&args, &status) {
            Some(problem) => return complain(&format!("check: {problem}"), exit::USAGE),
            None => facts::findings(&args, &limits, &status),
        },
        Err(error @ (ClientError::Usage(_) | ClientError::Config(_))) => {
            return complain(&error.to_string(), exit::USAGE);
        }
        Err(error) => vec![unknown(args.what, error.to_string())],
    };
    print(&if args.json { document(&findings) } else { text(&findings) });
    worst(&findings).exit()
}

/// What does not go together, in words.
fn unfit(args: &CheckArgs) -> Option<String> {
    let name = facts::name(args.what);
    if args.member.is_some() && !facts::takes_member(args.what) {
        return Some(format!(
            "--member: {name} is of the whole cluster; leave it out, or check role, lag, slots, archive or disk"
        ));
    }
    let takes_role = matches!(args.what, Subject::Role | Subject::All);
    (args.role.is_some() && !takes_role)
        .then(|| format!("--role: {name} asks for no role; `matriarch check role --member MEMBER --role ROLE` does"))
}

/// Why this member can't be looked at, in words.
fn no_such_member(args: &CheckArgs, status: &StatusReply) -> Option<String> {
    let wanted = args.member.as_deref()?;
    if !status.members.iter().any(|m| m.member == wanted) {
        let members: Vec<&str> = status.members.iter().map(|m| m.member.as_str()).collect();
        return Some(format!("no member {wanted}; there is {}", members.join(", ")));
    }
    (args.what == Subject::Lag && facts::leads(wanted, status)).then(|| {
        format!("--member: {wanted} is the primary, which lags behind nobody; name a standby, or none for all of them")
    })
}

/// The status as the Raft leader knows it: whoever doesn't lead knows its own host and no other.
async fn look(args: &CheckArgs) -> Result<StatusReply, ClientError> {
    let client = Client::new(&args.client)?;
    let status = client.status(false).await?;
    if status.leader == status.answered_by && !status.leader.is_empty() {
        return Ok(status);
    }
    sleep(ELECTION).await;
    client.status(false).await
}

fn unknown(what: Subject, text: String) -> Finding {
    Finding { check: facts::name(what), level: Level::Unknown, text, performance: Vec::new() }
}

fn worst(findings: &[Finding]) -> Level {
    findings.iter().map(|f| f.level).max().unwrap_or(Level::Unknown)
}

/// The first line is what an alert shows, so the worst stands there; graphs read what follows its bar.
fn text(findings: &[Finding]) -> String {
    let line = |finding: &Finding| {
        let numbers: Vec<String> = finding.performance.iter().map(ToString::to_string).collect();
        let numbers = if numbers.is_empty() { String::new() } else { format!(" | {}", numbers.join(" ")) };
        format!("{} {} - {}{numbers}\n", finding.check.to_uppercase(), finding.level, finding.text.replace('|', "/"))
    };
    let [one] = findings else {
        let worst = worst(findings);
        let bad: Vec<String> =
            findings.iter().filter(|f| f.level != Level::Ok).map(|f| format!("{}: {}", f.check, f.text)).collect();
        let said = if bad.is_empty() {
            format!("{} checks are well", findings.len())
        } else {
            bad.join("; ").replace('|', "/")
        };
        let each: String = findings.iter().map(line).collect();
        return format!("MATRIARCH {worst} - {said}\n{each}");
    };
    line(one)
}

fn document(findings: &[Finding]) -> String {
    #[derive(Serialize)]
    struct Report<'a> {
        level: Level,
        checks: &'a [Finding],
    }
    render::json(&Report { level: worst(findings), checks: findings })
}

#[cfg(test)]
#[path = "check_test.rs"]
mod tests;
