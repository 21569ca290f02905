//! How long a fence takes: a tree of sleepers under a guard of its own is killed.

use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use super::{fail, ok, warn};
use crate::{
    cli::render::Check,
    config::{CgroupUse, Config, LocalMember},
    guard::{self, GroupUse, Measured},
};

const NAME: &str = "fence";
/// As many as the agent takes at its start.
const TREE: usize = 100;

pub(super) fn check(config: &Config, member: &LocalMember) -> Check {
    let group = match member.agent.cgroup {
        CgroupUse::Auto | CgroupUse::Required => GroupUse::Auto,
        CgroupUse::Off => GroupUse::Off,
    };
    let place = place(&member.agent.runtime_dir);
    let exe = std::env::current_exe().map_err(|error| format!("the own program is unknown ({error})"));
    let dir = place.join(format!("matriarch-preflight-{}", std::process::id()));
    let measured = exe.and_then(|exe| {
        let made = std::fs::create_dir(&dir).map_err(|error| format!("can't create {} ({error})", dir.display()));
        made.and_then(|()| guard::measure_kill(&exe, &dir, group, TREE).map_err(|error| told(&error)))
    });
    let _ = std::fs::remove_dir_all(&dir);
    match measured {
        Ok(measured) => judge(config, &measured),
        Err(problem) => fail(NAME, format!("could not be tried out: {problem}")),
    }
}

fn told(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// The agent's own directory, which may not be there yet.
fn place(runtime_dir: &Path) -> PathBuf {
    let usable = runtime_dir.is_dir() && access(runtime_dir, AccessFlags::W_OK).is_ok();
    if usable { runtime_dir.to_owned() } else { std::env::temp_dir() }
}

fn judge(config: &Config, measured: &Measured) -> Check {
    let (allowed, took) = (config.cluster.timings.kill, measured.took);
    let found = format!(
        "killing {TREE} processes took {:.1} ms ({}); profile `{}` allows {} ms",
        took.as_secs_f64() * 1_000.0,
        measured.means.method,
        config.cluster.profile,
        allowed.as_millis()
    );
    if took > allowed {
        fail(NAME, format!("{found}; choose a slower one, or delegate a cgroup"))
    } else if took > allowed / 2 {
        warn(NAME, format!("{found}, and PostgreSQL takes longer than sleepers"))
    } else {
        ok(NAME, found)
    }
}
