//! Units of the distribution that would start PostgreSQL behind Matriarch's
//! back. Looks at files only, so that it also works where systemd doesn't run.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{fail, ok, warn};
use crate::{cli::render::Check, config::PostgresqlConfig};

const NAME: &str = "other starters";

pub(super) fn all(root: &Path, config: &PostgresqlConfig) -> Vec<Check> {
    let mut checks: Vec<Check> = debian_clusters(root).iter().filter_map(|c| judge(c, config)).collect();
    checks.extend(enabled_units(root).iter().map(|unit| unit_check(root, unit)));
    if checks.is_empty() {
        checks.push(ok(NAME, "no unit of the distribution starts PostgreSQL"));
    }
    checks
}

/// A cluster that Debian's postgresql-common knows (`/etc/postgresql/VERSION/NAME`).
#[derive(Debug)]
struct DebianCluster {
    version: String,
    name: String,
    starts: bool,
    data_dir: Option<PathBuf>,
    port: Option<u16>,
}

fn debian_clusters(root: &Path) -> Vec<DebianCluster> {
    let mut found = Vec::new();
    for version in subdirectories(&root.join("etc/postgresql")) {
        for cluster in subdirectories(&version) {
            let name = |p: &Path| p.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let start = fs::read_to_string(cluster.join("start.conf")).unwrap_or_else(|_| "auto".to_owned());
            let starts = start.lines().map(str::trim).find(|l| !l.is_empty() && !l.starts_with('#')) == Some("auto");
            let conf = fs::read_to_string(cluster.join("postgresql.conf")).unwrap_or_default();
            found.push(DebianCluster {
                version: name(&version),
                name: name(&cluster),
                starts,
                data_dir: setting(&conf, "data_directory").map(PathBuf::from),
                port: setting(&conf, "port").and_then(|p| p.parse().ok()),
            });
        }
    }
    found
}

fn judge(cluster: &DebianCluster, config: &PostgresqlConfig) -> Option<Check> {
    let DebianCluster { version, name, .. } = cluster;
    let who = format!("Debian's cluster {version}/{name}");
    let advice =
        format!("echo manual > /etc/postgresql/{version}/{name}/start.conf, or pg_dropcluster --stop {version} {name}");
    if cluster.data_dir.as_deref() == Some(config.data_dir.as_path()) {
        return Some(fail(NAME, format!("{who} has the same data directory; remove its entry in /etc/postgresql")));
    }
    if !cluster.starts {
        return None;
    }
    if cluster.port.unwrap_or(5432) == config.port {
        return Some(fail(NAME, format!("{who} starts at boot on the same port {}; {advice}", config.port)));
    }
    Some(warn(NAME, format!("{who} starts at boot, on another port; if nobody needs it: {advice}")))
}

/// The value of a setting in a postgresql.conf, last line wins.
fn setting(conf: &str, name: &str) -> Option<String> {
    conf.lines()
        .filter_map(|line| line.trim().strip_prefix(name))
        .filter_map(|rest| {
            let rest = rest.trim_start();
            let value = rest.strip_prefix('=').unwrap_or(rest).trim_start();
            let value = match value.strip_prefix('\'') {
                Some(quoted) => quoted.split('\'').next()?,
                None => value.split([' ', '\t', '#']).next()?,
            };
            Some(value.to_owned()).filter(|v| !v.is_empty())
        })
        .next_back()
}

/// Units enabled by a link below `*.wants`. Debian's `postgresql.service` only
/// starts its clusters, which are judged one by one.
fn enabled_units(root: &Path) -> Vec<String> {
    let debian = root.join("etc/postgresql-common").exists() || root.join("usr/share/postgresql-common").exists();
    let mut units: Vec<String> = ["etc/systemd/system", "lib/systemd/system", "usr/lib/systemd/system"]
        .iter()
        .flat_map(|dir| subdirectories(&root.join(dir)))
        .filter(|dir| dir.extension().is_some_and(|e| e == "wants" || e == "requires"))
        .flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|unit| is_starter(unit, debian))
        .collect();
    units.sort();
    units.dedup();
    units
}

fn is_starter(unit: &str, debian: bool) -> bool {
    let Some(name) = unit.strip_suffix(".service") else { return false };
    let postgresql = name.starts_with("postgresql") && !(debian && name == "postgresql");
    postgresql || ["patroni", "pg_autoctl", "pgautofailover", "repmgrd", "stolon-keeper"].contains(&name)
}

fn unit_check(root: &Path, unit: &str) -> Check {
    // `systemctl mask` makes the unit itself a link to /dev/null.
    let masked = fs::read_link(root.join("etc/systemd/system").join(unit)).is_ok_and(|to| to == Path::new("/dev/null"));
    if masked {
        return ok(NAME, format!("{unit} is enabled but masked"));
    }
    fail(NAME, format!("{unit} is enabled and may start PostgreSQL; systemctl disable --now {unit}"))
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, os::unix::fs::symlink};

    use super::*;
    use crate::cli::render::Outcome;

    fn config() -> PostgresqlConfig {
        PostgresqlConfig {
            bin_dir: "/bin".into(),
            data_dir: "/var/lib/matriarch/pgdata".into(),
            listen_addresses: "127.0.0.1".to_owned(),
            port: 5432,
            socket_dir: "/run/matriarch".into(),
            superuser: "postgres".to_owned(),
            superuser_password_file: "/x".into(),
            replication_user: "r".to_owned(),
            replication_password_file: "/x".into(),
            hba: Vec::new(),
            parameters: BTreeMap::new(),
            bootstrap: Box::default(),
        }
    }

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn a_cluster_of_debian_that_starts_on_our_port_fails() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert_eq!(all(root, &config())[0].outcome, Outcome::Ok);
        write(root, "etc/postgresql/15/main/start.conf", "# comment\nauto\n");
        write(root, "etc/postgresql/15/main/postgresql.conf", "#port = 1\nport = 5432  # x\n");
        let check = &all(root, &config())[0];
        assert_eq!(check.outcome, Outcome::Fail);
        assert!(check.detail.contains("15/main starts at boot on the same port 5432"), "{check:?}");
        write(root, "etc/postgresql/15/main/postgresql.conf", "port = 5433\n");
        assert_eq!(all(root, &config())[0].outcome, Outcome::Warn);
        write(root, "etc/postgresql/15/main/start.conf", "manual\n");
        assert_eq!(all(root, &config())[0].outcome, Outcome::Ok);
        write(root, "etc/postgresql/15/main/postgresql.conf", "data_directory = '/var/lib/matriarch/pgdata'\n");
        assert_eq!(all(root, &config())[0].outcome, Outcome::Fail);
    }

    #[test]
    fn an_enabled_unit_fails_unless_it_is_masked() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        write(root, "etc/systemd/system/multi-user.target.wants/postgresql-15.service", "");
        write(root, "etc/systemd/system/multi-user.target.wants/cron.service", "");
        let checks = all(root, &config());
        assert_eq!((checks.len(), checks[0].outcome), (1, Outcome::Fail));
        symlink("/dev/null", root.join("etc/systemd/system/postgresql-15.service")).unwrap();
        assert_eq!(all(root, &config())[0].outcome, Outcome::Ok);
    }

    #[test]
    fn debians_umbrella_unit_is_judged_by_its_clusters() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        write(root, "etc/systemd/system/multi-user.target.wants/postgresql.service", "");
        assert_eq!(all(root, &config())[0].outcome, Outcome::Fail);
        write(root, "usr/share/postgresql-common/x", "");
        assert_eq!(all(root, &config())[0].outcome, Outcome::Ok);
    }
}
