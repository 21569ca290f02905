//! PostgreSQL's programs and its data directory, seen from outside.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::{Command, Stdio},
};

use nix::{
    errno::Errno,
    sys::signal::kill,
    unistd::{AccessFlags, Pid, access, geteuid},
};

use super::{fail, ok, warn};
use crate::{
    cli::render::Check,
    config::PostgresqlConfig,
    domain::version::{self, PostgresVersion, Support},
};

/// The programs that the agent starts.
const PROGRAMS: [&str; 7] =
    ["postgres", "initdb", "pg_basebackup", "pg_controldata", "pg_rewind", "pg_verifybackup", "pg_waldump"];

pub(super) fn all(config: &PostgresqlConfig) -> Vec<Check> {
    let (programs, major) = programs(&config.bin_dir);
    let mut checks = vec![programs, data_dir(&config.data_dir, major)];
    checks.extend(running(&config.data_dir));
    checks
}

/// Whether all programs are there, and the major version of `postgres`.
fn programs(bin_dir: &Path) -> (Check, Option<u32>) {
    const NAME: &str = "PostgreSQL programs";
    let missing: Vec<&str> =
        PROGRAMS.into_iter().filter(|p| access(&bin_dir.join(p), AccessFlags::X_OK).is_err()).collect();
    if !missing.is_empty() {
        let detail = format!("{} missing in {}; install the server package", missing.join(", "), bin_dir.display());
        return (fail(NAME, detail), None);
    }
    let output = Command::new(bin_dir.join("postgres")).arg("--version").stdin(Stdio::null()).output();
    let text = match output {
        Ok(output) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Err(error) => return (fail(NAME, format!("`postgres --version` failed ({error})")), None),
    };
    let Some(version) = PostgresVersion::parse(&text) else {
        return (fail(NAME, format!("`postgres --version` said `{text}`")), None);
    };
    (verdict(NAME, &text, version, bin_dir), Some(version.major()))
}

/// What is promised of this version.
fn verdict(name: &'static str, text: &str, version: PostgresVersion, bin_dir: &Path) -> Check {
    let (found, supported) = (format!("{text} in {}", bin_dir.display()), version::supported());
    match version.support() {
        Support::Tested => ok(name, found),
        Support::Untested => warn(name, format!("{found} is supported, but not tested with Matriarch")),
        Support::Refused => fail(name, format!("{found} is not supported; use {supported}")),
    }
}

fn data_dir(dir: &Path, major: Option<u32>) -> Check {
    const NAME: &str = "data directory";
    let shown = dir.display();
    let found = match fs::metadata(dir) {
        Ok(found) => found,
        Err(_) => return to_be_created(dir),
    };
    if !found.is_dir() {
        return fail(NAME, format!("{shown} is no directory"));
    }
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries.count(),
        Err(error) => return fail(NAME, format!("{shown} can't be read ({error})")),
    };
    if found.uid() != geteuid().as_raw() && !geteuid().is_root() {
        return fail(NAME, format!("{shown} belongs to user {}, not to {}; chown it", found.uid(), geteuid()));
    }
    let mode = found.permissions().mode() & 0o777;
    if entries > 0 && mode & 0o027 != 0 {
        return fail(NAME, format!("{shown} has mode {mode:04o}; PostgreSQL wants 0700 or 0750"));
    }
    if entries == 0 {
        return to_be_created(dir);
    }
    let Ok(version) = fs::read_to_string(dir.join("PG_VERSION")) else {
        return fail(NAME, format!("{shown} is neither empty nor of PostgreSQL; move its content away"));
    };
    let version = version.trim();
    match major {
        Some(major) if version != major.to_string() => {
            fail(NAME, format!("{shown} is of PostgreSQL {version}, the programs are of {major}; correct bin_dir"))
        }
        _ => ok(NAME, format!("{shown} is of PostgreSQL {version}")),
    }
}

fn to_be_created(dir: &Path) -> Check {
    const NAME: &str = "data directory";
    let shown = dir.display();
    // Made beside its final place and renamed, so the parent has to be writable.
    match dir.parent() {
        Some(parent) if access(parent, AccessFlags::W_OK).is_ok() => {
            ok(NAME, format!("{shown} is still to be created"))
        }
        Some(parent) => {
            let parent = parent.display();
            fail(NAME, format!("{parent} must be writable to create {shown}: install -d -m 0700 -o postgres {parent}"))
        }
        None => fail(NAME, format!("{shown} has no parent directory")),
    }
}

/// A postmaster that is alive in the data directory. Matriarch's own has a guard as parent.
fn running(dir: &Path) -> Option<Check> {
    const NAME: &str = "running PostgreSQL";
    let text = fs::read_to_string(dir.join("postmaster.pid")).ok()?;
    let pid: i32 = text.lines().next()?.trim().parse().ok()?;
    match kill(Pid::from_raw(pid), None) {
        Ok(()) | Err(Errno::EPERM) => {}
        Err(_) => return Some(ok(NAME, format!("postmaster.pid names process {pid}, which is gone"))),
    }
    if parent_is_guard(pid) {
        return Some(ok(NAME, format!("process {pid}, under a guard")));
    }
    let advice = "stop it before the agent starts";
    Some(warn(NAME, format!("process {pid} runs in {} without a guard; {advice}", dir.display())))
}

fn parent_is_guard(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let parent = status.lines().find_map(|l| l.strip_prefix("PPid:")).and_then(|p| p.trim().parse::<u32>().ok());
    let command = parent.and_then(|p| fs::read(format!("/proc/{p}/cmdline")).ok()).unwrap_or_default();
    command.split(|b| *b == 0).nth(1) == Some(b"guard")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::render::Outcome;

    #[test]
    fn what_is_promised_of_a_version_is_said() {
        let of = |number| verdict("x", "postgres (PostgreSQL) 1.2", PostgresVersion(number), Path::new("/opt/pg/bin"));
        assert_eq!(of(150_018).outcome, Outcome::Ok);
        let untested = of(140_001);
        assert_eq!(untested.outcome, Outcome::Warn);
        assert!(untested.detail.ends_with("is supported, but not tested with Matriarch"), "{untested:?}");
        for number in [130_023, 190_000] {
            let refused = of(number);
            assert_eq!(refused.outcome, Outcome::Fail);
            assert_eq!(
                refused.detail,
                "postgres (PostgreSQL) 1.2 in /opt/pg/bin is not supported; use PostgreSQL 14 to 18"
            );
        }
    }

    #[test]
    fn a_directory_of_something_else_is_refused_and_an_empty_one_is_welcome() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("pgdata");
        assert_eq!(data_dir(&data, Some(15)).outcome, Outcome::Ok);
        fs::create_dir(&data).unwrap();
        fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(data_dir(&data, Some(15)).outcome, Outcome::Ok);
        fs::write(data.join("x"), "").unwrap();
        assert!(data_dir(&data, Some(15)).detail.contains("mode 0755"));
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
        assert!(data_dir(&data, Some(15)).detail.contains("neither empty nor of PostgreSQL"));
        fs::write(data.join("PG_VERSION"), "14\n").unwrap();
        assert!(data_dir(&data, Some(15)).detail.contains("is of PostgreSQL 14, the programs are of 15"));
        assert_eq!(data_dir(&data, Some(14)).outcome, Outcome::Ok);
    }

    #[test]
    fn a_missing_program_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (check, major) = programs(dir.path());
        assert_eq!((check.outcome, major), (Outcome::Fail, None));
        assert!(check.detail.starts_with("postgres, initdb, pg_basebackup,"), "{check:?}");
    }
}
