//! `matriarch preflight`: is this host fit to run what its configuration asks
//! for? Looks, measures, and leaves nothing behind. The configuration itself is
//! checked first, with exit code 2, as everywhere.

mod adoption;
mod disk;
mod distribution;
mod fence;
mod host;
mod layers;
mod ports;
mod postgres;

use std::path::{Path, PathBuf};

use super::{
    complain,
    exit::{self, Exit},
    print,
    render::{self, Check, Outcome},
    style,
};
use crate::config::{Config, Purpose};

pub(super) fn run(file: PathBuf, json: bool) -> Exit {
    let config = match Config::load_for(&file, Purpose::Host) {
        Ok(config) => config,
        Err(error) => return complain(&error.to_string(), exit::USAGE),
    };
    let checks = checks(&config);
    print(&if json { render::preflight_json(&checks) } else { render::preflight(&checks, style()) });
    if checks.iter().any(|c| c.outcome == Outcome::Fail) { exit::FAILED } else { exit::OK }
}

pub(super) fn checks(config: &Config) -> Vec<Check> {
    let clocks = host::Clocks::start();
    let mut checks = vec![ok("configuration", format!("{} is good", config.file.display())), host::user(config)];
    checks.extend(ports::all(config));
    if let Some(witness) = &config.witness {
        checks.extend(disk::of_manager(&witness.manager));
        checks.push(clocks.check(Path::new("/"), config.cluster.timings.drift_permille));
        return with_encryption(config, checks);
    }
    if let Some(member) = &config.member {
        checks.push(host::cgroup(Path::new("/"), member.agent.cgroup));
        checks.push(fence::check(config, member));
        checks.push(host::capabilities(Path::new("/")));
        checks.extend(disk::all(member));
        checks.extend(postgres::all(&member.postgresql));
        checks.extend(adoption::all(config, member));
        checks.extend(distribution::all(Path::new("/"), &member.postgresql));
        checks.extend(layers::all(Path::new("/"), &config.layers));
        checks.push(host::memory(Path::new("/")));
        checks.push(clocks.check(Path::new("/"), config.cluster.timings.drift_permille));
    }
    with_encryption(config, checks)
}

fn with_encryption(config: &Config, mut checks: Vec<Check>) -> Vec<Check> {
    if config.cluster.insecure {
        let detail = "cluster.insecure is on: traffic between the hosts is not encrypted; use a network you trust";
        checks.push(warn("encryption", detail));
    }
    checks
}

fn check(name: impl Into<String>, outcome: Outcome, detail: impl Into<String>) -> Check {
    Check { name: name.into(), outcome, detail: detail.into() }
}

fn ok(name: impl Into<String>, detail: impl Into<String>) -> Check {
    check(name, Outcome::Ok, detail)
}

fn warn(name: impl Into<String>, detail: impl Into<String>) -> Check {
    check(name, Outcome::Warn, detail)
}

fn fail(name: impl Into<String>, detail: impl Into<String>) -> Check {
    check(name, Outcome::Fail, detail)
}
