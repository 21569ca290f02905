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
    postgres::{Adoption, Instance, PostgresError},
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
