//! What a configuration asks of the host it is used on: secrets that can be
//! read, names that resolve, room on the disk. Nothing is changed.

use std::{fs::File, io, path::Path};

use nix::sys::statvfs::statvfs;

use super::{
    Config, LocalMember, Purpose, RouterConfig, check::resolve, error::Wrong, hooks, read_password, read_private_key,
    read_secret, rest,
};

/// A process of ours doesn't start with less free space than this.
pub const FREE_BYTES_MIN: u64 = 64 << 20;

/// Checks what the process named by `purpose` needs from this host.
pub(super) fn check(config: &Config, purpose: Purpose) -> Result<(), Wrong> {
    let missing = |table: &str, what: &str| {
        Wrong::new(table, format!("missing, so this host has no {what}"), "add the table, or don't start it here")
    };
    match purpose {
        Purpose::Client => return Ok(()),
        Purpose::Router => {
            certificate(config.router.as_ref().ok_or_else(|| missing("router", "router"))?)?;
        }
        Purpose::Manager => {
            let (_, manager) = config.local().ok_or_else(|| missing("member", "manager"))?;
            secret(config)?;
            config.rest.as_ref().map_or(Ok(()), rest::on_host)?;
            space("manager.state_dir", &manager.state_dir)?;
        }
        Purpose::Agent => {
            if let Some(witness) = &config.witness {
                let problem = format!("{} is a witness, so this host has no agent", witness.id);
                return Err(Wrong::new("cluster.members", problem, "don't start it here"));
            }
            let member = config.member.as_ref().ok_or_else(|| missing("member", "agent"))?;
            secret(config)?;
            passwords(member)?;
            agent_space(member)?;
        }
        Purpose::Host => {
            if let Some((_, manager)) = config.local() {
                secret(config)?;
                config.rest.as_ref().map_or(Ok(()), rest::on_host)?;
                space("manager.state_dir", &manager.state_dir)?;
            }
            if let Some(member) = &config.member {
                passwords(member)?;
                agent_space(member)?;
                hooks::on_host(&config.hooks)?;
            }
            // The router runs as another user, who alone can tell whether it may read its key.
        }
    }
    names(config)
}

fn names(config: &Config) -> Result<(), Wrong> {
    for (index, member) in config.cluster.members.iter().enumerate() {
        resolve(&format!("cluster.members[{index}].host"), &member.host, member.manager_port)?;
    }
    Ok(())
}

fn secret(config: &Config) -> Result<(), Wrong> {
    read_secret(&config.cluster.secret_file)
        .map_err(|error| Wrong::told("cluster.secret_file", &error.to_string()))
        .map(drop)
}

fn passwords(member: &LocalMember) -> Result<(), Wrong> {
    let postgresql = &member.postgresql;
    let files = [
        ("postgresql.superuser_password_file", &postgresql.superuser_password_file),
        ("postgresql.replication_password_file", &postgresql.replication_password_file),
    ];
    for (key, file) in files {
        read_password(file).map_err(|error| Wrong::told(key, &error.to_string()))?;
    }
    Ok(())
}

/// What the files hold is seen when the router starts, before it listens.
fn certificate(router: &RouterConfig) -> Result<(), Wrong> {
    let files = router.certificate.as_ref();
    let certificates = files.map(|f| ("router.tls_certificate_file", &f.certificate));
    let authorities = router.postgresql_ca_file.as_ref().map(|f| ("router.postgresql_ca_file", f));
    for (key, file) in certificates.into_iter().chain(authorities) {
        File::open(file).map_err(|error| {
            Wrong::new(key, format!("{} can't be read ({error})", file.display()), "name a file in PEM")
        })?;
    }
    let read = files.map(|f| read_private_key(&f.key)).transpose();
    read.map(drop).map_err(|error| Wrong::told("router.tls_key_file", &error.to_string()))
}

fn agent_space(member: &LocalMember) -> Result<(), Wrong> {
    // A running primary must survive the restart of its agent, and an agent that
    // refuses to start ends its lease. A full disk under PostgreSQL is then the
    // probes' affair.
    if member.postgresql.data_dir.join("postmaster.pid").exists() {
        return Ok(());
    }
    space("agent.state_dir", &member.agent.state_dir)?;
    space("postgresql.data_dir", &member.postgresql.data_dir)
}

fn space(key: &str, dir: &Path) -> Result<(), Wrong> {
    let free = free_bytes(dir).map_err(|error| {
        Wrong::new(key, format!("free space of {} is unknown ({error})", dir.display()), "check the directory")
    })?;
    if free < FREE_BYTES_MIN {
        let problem = format!("the disk of {} is full: {} MiB free", dir.display(), free >> 20);
        return Err(Wrong::new(key, problem, format!("free at least {} MiB", FREE_BYTES_MIN >> 20)));
    }
    Ok(())
}

/// Bytes an ordinary user can still write where `dir` is or will be.
///
/// # Errors
/// When neither it nor any directory above it can be asked.
pub fn free_bytes(dir: &Path) -> io::Result<u64> {
    let there = dir.ancestors().find(|d| d.exists()).unwrap_or_else(|| Path::new("/"));
    let stat = statvfs(there)?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}
