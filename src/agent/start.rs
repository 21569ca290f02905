//! What is looked at before an agent makes or writes anything, and how that is
//! told: the file, the key, the problem, what to do.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
};

use super::{
    hands::chain,
    store::{Durable, Store, StoreError},
};
use crate::{
    config::{AgentEndpoint, Config, ConfigError, ContentSource, LocalMember},
    domain::version::{self, PostgresVersion, Support},
    layers::{LayerError, Layers, LayersOptions},
    postgres::{Adoption, Instance, OtherManager, PostgresError},
};

const RUNTIME_DIR: &str = "agent.runtime_dir";

/// Refuses root, a PostgreSQL that can't be used, and an address that is taken.
/// Gives `server_version_num`.
pub(super) fn check(config: &Config, local: &LocalMember, instance: &Instance) -> Result<u32, ConfigError> {
    let version = instance.preflight().map_err(|error| told(config, &error))?;
    warn_of_untested(local, PostgresVersion(version));
    if let AgentEndpoint::Tcp(address) = local.agent.listen {
        let tried = std::net::TcpListener::bind(address).map(drop);
        tried.map_err(|error| config.cannot_listen("agent.listen", &format!("{address} TCP"), &error))?;
    }
    let dir = &local.agent.runtime_dir;
    match fs::metadata(dir) {
        // The guard's socket lies here, so nobody else may get in.
        Ok(meta) if meta.permissions().mode() & 0o022 != 0 => {
            let problem = format!("others than its owner may write in {}", dir.display());
            Err(config.wrong(RUNTIME_DIR, problem, &format!("chmod 0700 {}", dir.display())))
        }
        // One that isn't there is made later.
        Ok(_) | Err(_) => Ok(version),
    }
}

/// What nobody has tried is said to whoever relies on it.
fn warn_of_untested(local: &LocalMember, version: PostgresVersion) {
    if version.support() == Support::Untested {
        let bin_dir = local.postgresql.bin_dir.display();
        tracing::warn!(%version, %bin_dir, "this version of PostgreSQL is supported, but not tested with Matriarch");
    }
}

/// A PostgreSQL runs in the data directory that was never Matriarch's: neither was the directory ever configured by us,
/// nor has this host ever belonged to a cluster, unless it is still to be taken over.
pub(super) fn is_stranger(instance: &Instance, durable: &Durable) -> bool {
    let ours = !durable.cluster_id.0.is_empty() && !instance.is_to_be_adopted();
    !ours && !instance.is_configured_by_us() && instance.running_pid().is_some()
}

/// What runs in our data directory without a guard of ours is killed at the start. Somebody's database that was
/// there before Matriarch is not.
pub(super) fn refuse_stranger(config: &Config, instance: &Instance, durable: &Durable) -> Result<(), ConfigError> {
    // What is to be taken over is waited for until it has been stopped.
    if !is_stranger(instance, durable) || instance.is_to_be_adopted() {
        return Ok(());
    }
    let dir = instance.data_dir().display();
    let problem = format!("a PostgreSQL that Matriarch did not set up runs in {dir}");
    Err(config.wrong(
        "postgresql.data_dir",
        problem,
        "name an empty place, or stop it and move its data directory away",
    ))
}

/// Another program manages what was ours, as after a way back to it: its PostgreSQL is not killed for having no guard. One of which
/// it can't be told what it manages counts where Matriarch's configuration is not in force any more.
pub(super) fn refuse_other_manager(config: &Config, instance: &Instance, durable: &Durable) -> Result<(), ConfigError> {
    let owned = !durable.cluster_id.0.is_empty() && !instance.is_to_be_adopted();
    let found = if owned { instance.other_manager() } else { None };
    match found.and_then(|other| managed_by(&other, instance.is_configured_by_us(), instance.running_pid())) {
        None => Ok(()),
        Some(problem) => {
            let dir = instance.data_dir().display();
            let state_dir =
                config.member.as_ref().map_or_else(String::new, |m| m.agent.state_dir.display().to_string());
            let advice = format!(
                "nothing was touched. To stay with it, disable this agent (systemctl disable --now matriarch-agent) and empty {state_dir} \
                 before Matriarch is tried again; to go on with Matriarch, stop it for good on this host, and start the agent again"
            );
            Err(config.wrong("postgresql.data_dir", format!("{dir} belongs to this cluster, but {problem}"), &advice))
        }
    }
}

/// What to say of it; `None`: what runs without a guard in our directory is ended as ever.
fn managed_by(other: &OtherManager, configured_by_us: bool, running: Option<i32>) -> Option<String> {
    let OtherManager { name, pid, named } = other;
    let and = running.map_or_else(String::new, |pid| format!(", and PostgreSQL runs in it as process {pid}"));
    match (named, running) {
        (true, _) => Some(format!("{name} manages it as process {pid}{and}")),
        (false, Some(_)) if !configured_by_us => Some(format!(
            "{name} runs as process {pid}, its configuration could not be read{and} with a configuration that is not Matriarch's"
        )),
        (false, _) => None,
    }
}

/// What taking over the data directory of an older PostgreSQL would refuse and change; `None`: nothing is to be taken over.
/// Changes nothing.
///
/// # Errors
/// The data directory can't be read.
pub fn adoption(config: &Config, local: &LocalMember) -> Result<Option<Adoption>, String> {
    let cluster = &config.cluster;
    let instance = Instance::new(&local.postgresql, &local.id, &cluster.members, &local.agent, &cluster.timings);
    let wanted = local.postgresql.bootstrap.source == ContentSource::Adopt && !instance.is_configured_by_us();
    wanted.then(|| instance.adoption().map_err(|error| chain(&error))).transpose()
}

fn told(config: &Config, error: &PostgresError) -> ConfigError {
    match error {
        PostgresError::Preflight { key, what, problem } => {
            let advice = match *key {
                "postgresql.bin_dir" => format!("name the directory with the programs of {}", version::supported()),
                "postgresql.data_dir" => "correct the directory's place or owner".to_owned(),
                _ => "correct it".to_owned(),
            };
            match problem.split_once("; ") {
                Some((problem, advice)) => config.wrong(key, format!("{what} {problem}"), advice),
                None => config.wrong(key, format!("{what} {problem}"), &advice),
            }
        }
        other => config.wrong("postgresql", chain(other), "correct it; `matriarch preflight` looks at more"),
    }
}

/// Opens what an agent must not forget; refuses when another agent is at work.
pub(super) fn open_store(config: &Config, local: &LocalMember) -> Result<(Store, Durable), ConfigError> {
    Store::open(&local.agent.state_dir, &local.postgresql.data_dir).map_err(|error| {
        let (key, advice) = match &error {
            StoreError::Locked { path } if !path.starts_with(&local.agent.state_dir) => {
                ("postgresql.data_dir", "stop the other agent, or give each its own data directory")
            }
            StoreError::Locked { .. } => ("agent.state_dir", "stop the other agent, or give each its own directory"),
            StoreError::Unreadable { .. } => ("agent.state_dir", "restore the file, or have the member replaced"),
            StoreError::Io { .. } => ("agent.state_dir", "let the user of the agent write there"),
        };
        config.wrong(key, chain(&error), advice)
    })
}

/// Looks which layers this host has; refuses when a required one is missing.
pub(super) fn open_layers(config: &Config, local: &LocalMember) -> Result<Layers, ConfigError> {
    let opened = Layers::open(LayersOptions {
        cluster: config.cluster.name.clone(),
        me: local.id.clone(),
        config: config.layers.clone(),
        port: local.postgresql.port,
        listen_addresses: local.postgresql.listen_addresses.clone(),
        runtime_dir: local.agent.runtime_dir.clone(),
        timings: config.cluster.timings,
    });
    opened.map_err(|error| match &error {
        LayerError::Unavailable { key, .. } => {
            config.wrong(key, chain(&error), "grant what it needs (docs/layers.md), or set it to automatic")
        }
        LayerError::Thread(_) => config.wrong("layers", chain(&error), "let this user have more threads"),
    })
}

/// Makes it for this user alone.
pub(super) fn make_runtime_dir(config: &Config, local: &LocalMember) -> Result<(), ConfigError> {
    let dir = &local.agent.runtime_dir;
    if dir.exists() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| {
        let problem = format!("can't create {} ({error})", dir.display());
        config.wrong(RUNTIME_DIR, problem, "let the user of the agent write there")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_manager_of_this_directory_keeps_the_agent_from_starting() {
        let other = |named| OtherManager { name: "patroni".into(), pid: 8, named };
        let told = |named, ours, running| managed_by(&other(named), ours, running).unwrap_or_default();
        for ours in [true, false] {
            for running in [None, Some(9)] {
                assert!(told(true, ours, running).starts_with("patroni manages it as process 8"), "its file names it");
            }
        }
        assert!(told(true, false, Some(9)).ends_with("PostgreSQL runs in it as process 9"));
        assert!(told(false, false, Some(9)).contains("patroni runs as process 8, its configuration could not be read"));
        assert_eq!(told(false, true, Some(9)), "", "what was left without a guard must not go on");
        assert_eq!(told(false, false, None), "", "there is nothing that could be ended");
    }
}
