//! The configuration file: `raw` as written, `checked` as used. Each error is
//! one line, `FILE: KEY: problem; what to do`, and is found before anything is changed.

pub mod bootstrap;
mod certificate;
mod check;
pub mod checked;
mod error;
mod hooks;
mod host;
mod layers;
mod parameters;
mod raw;
mod rest;
mod secret;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

pub use bootstrap::{
    ContentSource, HookCommand, InitialContent, InitialDatabase, InitialRole, PasswordSource, Recovery, RecoveryTarget,
};
pub use certificate::{CertificateError, file_stamp, read_certificates, server_tls, tls_provider};
pub use check::listeners;
pub use checked::{
    AgentConfig, AgentEndpoint, CertificateFiles, CgroupUse, ClusterConfig, Config, LayerMode, LayersConfig,
    LocalMember, LocalWitness, ManagerConfig, MemberConfig, PostgresqlConfig, RouterConfig, StonithConfig, VipConfig,
    WatchdogConfig, check_address, host_port, is_host,
};
pub use error::ConfigError;
pub use hooks::{Hook, HooksConfig, runnable};
pub use host::{FREE_BYTES_MIN, free_bytes};
pub use rest::{Network, RestConfig, RestLogin};
pub use secret::{SECRET_BYTES_MIN, SecretError, read_password, read_private_key, read_secret};

use self::error::Wrong;

/// Where the configuration is looked for when nothing else is said.
pub const DEFAULT_FILE: &str = "/etc/matriarch/matriarch.toml";

/// What a configuration is loaded for: decides what is asked of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Everything this host has tables for.
    Host,
    /// A manager: the secret, room for the Raft log.
    Manager,
    /// An agent: the secret, the passwords, room for PostgreSQL.
    Agent,
    /// A router: the key of its certificate, where it has one, and names that resolve.
    Router,
    /// An admin command: nothing but the file itself.
    Client,
}

impl Config {
    /// Reads and checks a file with everything it asks of this host.
    ///
    /// # Errors
    /// The first problem, with file, key and what to do.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        Config::load_for(path, Purpose::Host)
    }

    /// Reads and checks a file for one purpose.
    ///
    /// # Errors
    /// The first problem, with file, key and what to do.
    pub fn load_for(path: &Path, purpose: Purpose) -> Result<Config, ConfigError> {
        let text = fs::read_to_string(path).map_err(|error| ConfigError {
            file: PathBuf::from(path),
            key: String::new(),
            problem: format!("can't be read ({error})"),
            advice: "create it (docs/install.md), or name another with --config".to_owned(),
        })?;
        let config = Config::parse(path, &text)?;
        host::check(&config, purpose).map_err(|wrong| wrong.in_file(path))?;
        Ok(config)
    }

    /// Checks the text of a file; `path` is for messages. Looks at nothing else
    /// on this host, except to resolve its own name.
    ///
    /// # Errors
    /// The first problem, with file, key and what to do.
    pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
        let raw = raw::parse(text).map_err(|found| Wrong::new(found.key, found.problem, found.advice).in_file(path))?;
        check::check(path, raw).map_err(|wrong| wrong.in_file(path))
    }

    /// What a process found out about `key` when it wanted to use it: shown like every other error of the file.
    pub fn wrong(&self, key: &str, problem: impl Into<String>, advice: &str) -> ConfigError {
        Wrong::new(key, problem, advice).in_file(&self.file)
    }

    /// [`Config::wrong`] for a text that ends with `; what to do`.
    pub fn told(&self, key: &str, told: &str) -> ConfigError {
        Wrong::told(key, told).in_file(&self.file)
    }

    /// An address that can't be had: taken, or of another host.
    pub fn cannot_listen(&self, key: &str, address: &str, error: &io::Error) -> ConfigError {
        let advice = match error.kind() {
            io::ErrorKind::AddrInUse => "stop what uses it (`ss -lnptu` shows it), or choose another",
            io::ErrorKind::AddrNotAvailable => "this host doesn't have that address; correct it, or member.id",
            _ => "choose another",
        };
        self.wrong(key, format!("can't listen on {address} ({error})"), advice)
    }
}

#[cfg(test)]
mod tests;
