//! The machine: user, cgroup, capabilities, memory, clocks. `root` is `/`, or a
//! made-up tree in tests.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::{
    time::{ClockId, clock_gettime},
    unistd::{AccessFlags, User, access, geteuid},
};

use super::{fail, ok, warn};
use crate::{
    cli::render::Check,
    config::{CgroupUse, Config},
    guard,
};

/// What the agent and the guard make use of (capabilities(7)), and what for.
const CAPABILITIES: [(u32, &str, &str); 5] = [
    (12, "CAP_NET_ADMIN", "virtual address and kernel lease"),
    (13, "CAP_NET_RAW", "announcing the virtual address"),
    (14, "CAP_IPC_LOCK", "locking the guard into memory"),
    (23, "CAP_SYS_NICE", "real-time priority of the guard"),
    (24, "CAP_SYS_RESOURCE", "protection from the OOM killer"),
];

pub(super) fn user(config: &Config) -> Check {
    let euid = geteuid();
    let name = User::from_uid(euid).ok().flatten().map_or_else(|| format!("uid {euid}"), |u| u.name);
    if euid.is_root() && config.member.is_some() {
        let advice = "some checks only tell something as the user the agent runs as";
        return warn("user", format!("{name}; {advice}: sudo -u postgres matriarch preflight"));
    }
    ok("user", name)
}

/// Whether this process may make cgroups of its own, so that a fence can kill a whole tree at once.
pub(super) fn cgroup(root: &Path, wanted: CgroupUse) -> Check {
    const NAME: &str = "cgroup";
    let lacking = |problem: String| match wanted {
        CgroupUse::Required => fail(NAME, format!("{problem}; agent.cgroup is `required`")),
        CgroupUse::Auto | CgroupUse::Off => {
            warn(NAME, format!("{problem}; a fence walks /proc instead, which is slower"))
        }
    };
    if wanted == CgroupUse::Off {
        return ok(NAME, "not used (agent.cgroup is `off`): a fence walks /proc");
    }
    let Some(dir) = own_cgroup(root) else {
        return lacking("this process has no cgroup v2".to_owned());
    };
    let shown = dir.display();
    let unit = root.join("etc/systemd/system/matriarch-agent.service");
    if access(&dir, AccessFlags::W_OK).is_err() {
        let delegated = fs::read_to_string(&unit).is_ok_and(|t| t.lines().any(|l| l.trim() == "Delegate=yes"));
        if delegated {
            return ok(NAME, format!("cgroup v2, delegated by {}", unit.display()));
        }
        return lacking(format!("{shown} is not delegated to this user (Delegate=yes in the unit does that)"));
    }
    // The root of the hierarchy has no such file itself, but then its groups have.
    let mut below = fs::read_dir(&dir).into_iter().flatten().flatten().map(|e| e.path());
    let kill = |dir: &Path| dir.join("cgroup.kill").exists();
    if !kill(&dir) && dir.join("cgroup.type").exists() && !below.any(|d| kill(&d)) {
        return lacking("the kernel has no cgroup.kill (Linux 5.14)".to_owned());
    }
    ok(NAME, format!("cgroup v2, {shown} is writable"))
}

/// Where this process is, below `root`.
fn own_cgroup(root: &Path) -> Option<PathBuf> {
    let dir = guard::own_cgroup(root)?;
    Some(root.join(dir.strip_prefix("/").unwrap_or(&dir)))
}

pub(super) fn capabilities(root: &Path) -> Check {
    const NAME: &str = "capabilities";
    let status = fs::read_to_string(root.join("proc/self/status")).unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(effective) = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()) else {
        return warn(NAME, "unknown: /proc/self/status has no CapEff");
    };
    let missing: Vec<String> = CAPABILITIES
        .iter()
        .filter(|(bit, _, _)| effective & (1 << bit) == 0)
        .map(|(_, name, purpose)| format!("{name} ({purpose})"))
        .collect();
    if missing.is_empty() {
        return ok(NAME, "all five that the agent makes use of");
    }
    let advice = "the systemd unit gives them to the agent; everything else works without";
    warn(NAME, format!("not in this session: {}; {advice}", missing.join(", ")))
}

/// A kernel that hands out more memory than it has kills PostgreSQL when it runs out.
pub(super) fn memory(root: &Path) -> Check {
    const NAME: &str = "memory";
    match fs::read_to_string(root.join("proc/sys/vm/overcommit_memory")).map(|t| t.trim().to_owned()) {
        Ok(mode) if mode == "2" => ok(NAME, "vm.overcommit_memory = 2"),
        Ok(mode) => {
            let advice = "with 2 a backend gets an error where otherwise the OOM killer ends the whole PostgreSQL";
            warn(NAME, format!("vm.overcommit_memory = {mode}; {advice}"))
        }
        Err(error) => warn(NAME, format!("vm.overcommit_memory is unknown ({error})")),
    }
}

/// Both clocks of the lease, read when the checks began.
pub(super) struct Clocks {
    boot: Duration,
    raw: Duration,
}

/// Two readings closer together than this tell nothing about rates.
const OBSERVED_MIN: Duration = Duration::from_millis(300);

impl Clocks {
    pub fn start() -> Clocks {
        let read = |clock| clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
        Clocks { boot: read(ClockId::CLOCK_BOOTTIME), raw: read(ClockId::CLOCK_MONOTONIC_RAW) }
    }

    /// The clock source, and whether both clocks run at one rate within the drift the lease allows.
    pub fn check(&self, root: &Path, drift_permille: u32) -> Check {
        let elapsed = Clocks::start().raw.saturating_sub(self.raw);
        thread::sleep(OBSERVED_MIN.saturating_sub(elapsed));
        let now = Clocks::start();
        let (boot, raw) = (now.boot.saturating_sub(self.boot), now.raw.saturating_sub(self.raw));
        let source = root.join("sys/devices/system/clocksource/clocksource0/current_clocksource");
        let source = fs::read_to_string(source).map_or_else(|_| "unknown".to_owned(), |s| s.trim().to_owned());
        judge_clocks(&source, boot, raw, drift_permille)
    }
}

fn judge_clocks(source: &str, boot: Duration, raw: Duration, drift_permille: u32) -> Check {
    const NAME: &str = "clocks";
    if raw.is_zero() || boot.is_zero() {
        return fail(NAME, "CLOCK_BOOTTIME or CLOCK_MONOTONIC_RAW stands still; the lease can't be kept");
    }
    let permille = (boot.as_secs_f64() / raw.as_secs_f64() - 1.0).abs() * 1_000.0;
    let found = format!("clock source {source}, BOOTTIME and MONOTONIC_RAW differ by {permille:.3} ‰");
    if permille > f64::from(drift_permille) {
        return fail(NAME, format!("{found}, more than the {drift_permille} ‰ the lease allows (drift_permille)"));
    }
    if matches!(source, "jiffies" | "acpi_pm" | "hpet") {
        return warn(NAME, format!("{found}; this source is slow or coarse, prefer tsc or the hypervisor's own"));
    }
    ok(NAME, found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::render::Outcome;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn missing_capabilities_are_named_with_what_they_are_for() {
        let all = tree(&[("proc/self/status", "Name:\tx\nCapEff:\t000001ffffffffff\n")]);
        assert_eq!(capabilities(all.path()).outcome, Outcome::Ok);
        let some = tree(&[("proc/self/status", "CapEff:\t0000000001803000\n")]);
        let check = capabilities(some.path());
        assert_eq!(check.outcome, Outcome::Warn);
        assert!(check.detail.starts_with("not in this session: CAP_IPC_LOCK (locking the guard into memory);"));
    }

    #[test]
    fn a_cgroup_is_good_when_it_can_be_written() {
        let mount = "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let none = tree(&[]);
        let check = |root: &Path| cgroup(root, CgroupUse::Auto);
        assert!(check(none.path()).detail.contains("no cgroup v2"));
        let required = cgroup(none.path(), CgroupUse::Required);
        assert_eq!(required.outcome, Outcome::Fail);
        assert_eq!(cgroup(none.path(), CgroupUse::Off).outcome, Outcome::Ok);
        let mine = tree(&[
            ("proc/self/mountinfo", mount),
            ("proc/self/cgroup", "1:name=x:/\n0::/a.service\n"),
            ("sys/fs/cgroup/a.service/cgroup.kill", ""),
        ]);
        assert_eq!(check(mine.path()).outcome, Outcome::Ok);
        let old = tree(&[
            ("proc/self/mountinfo", mount),
            ("proc/self/cgroup", "0::/a.service\n"),
            ("sys/fs/cgroup/a.service/cgroup.type", "domain"),
        ]);
        assert!(check(old.path()).detail.contains("no cgroup.kill"));
    }

    #[test]
    fn clocks_that_drift_apart_fail() {
        let ms = Duration::from_millis;
        assert_eq!(judge_clocks("tsc", ms(1_000), ms(1_000), 20).outcome, Outcome::Ok);
        assert_eq!(judge_clocks("hpet", ms(1_000), ms(1_000), 20).outcome, Outcome::Warn);
        assert_eq!(judge_clocks("tsc", ms(1_030), ms(1_000), 20).outcome, Outcome::Fail);
        assert_eq!(judge_clocks("tsc", ms(1_000), ms(0), 20).outcome, Outcome::Fail);
    }
}
