//! The layers beyond lease and guard: can those that are asked for be had here?
//! Looks only: opening a watchdog would start it.

use std::{fs, path::Path};

use nix::unistd::{AccessFlags, access};

use super::{fail, ok, warn};
use crate::{
    cli::render::Check,
    config::{LayerMode, LayersConfig, VipConfig},
    domain::observation::READER_LAYER,
};

pub(super) fn all(root: &Path, layers: &LayersConfig) -> Vec<Check> {
    let mut checks = vec![kernel_lease(root, layers)];
    if layers.watchdog.mode != LayerMode::Off {
        checks.push(watchdog(layers));
    }
    let addresses = [("virtual address", &layers.vip), (READER_LAYER, &layers.vip_standby)];
    for (name, vip) in addresses {
        checks.extend(vip.as_ref().filter(|vip| vip.mode != LayerMode::Off).map(|vip| interface(root, name, vip)));
    }
    checks.extend(layers.stonith.as_ref().map(|stonith| program(&stonith.command)));
    checks
}

fn missing(mode: LayerMode, name: &str, detail: String) -> Check {
    match mode {
        LayerMode::Required => fail(name, format!("{detail}, and it is required")),
        LayerMode::Automatic | LayerMode::Off => warn(name, format!("{detail}; everything else works without")),
    }
}

/// Whether the kernel has nf_tables at all; the capability has a check of its own.
fn kernel_lease(root: &Path, layers: &LayersConfig) -> Check {
    const NAME: &str = "kernel lease";
    if layers.kernel_lease == LayerMode::Off {
        return ok(NAME, "off (layers.kernel_lease)");
    }
    let release = fs::read_to_string(root.join("proc/sys/kernel/osrelease")).unwrap_or_default();
    let modules = root.join("lib/modules").join(release.trim());
    let built_in = fs::read_to_string(modules.join("modules.builtin")).unwrap_or_default();
    let loadable = fs::read_to_string(modules.join("modules.dep")).unwrap_or_default();
    let loaded = root.join("proc/sys/net/netfilter").exists();
    let named = |text: &str| text.lines().any(|line| line.contains("/nf_tables.ko"));
    if loaded || named(&built_in) || named(&loadable) {
        return ok(NAME, "the kernel has netfilter; the agent's status says whether it may be used");
    }
    missing(layers.kernel_lease, NAME, "the kernel seems to have no nf_tables".to_owned())
}

fn watchdog(layers: &LayersConfig) -> Check {
    const NAME: &str = "watchdog";
    let device = layers.watchdog.device.as_path();
    let shown = device.display();
    match access(device, AccessFlags::W_OK) {
        Ok(()) => ok(NAME, format!("{shown} can be written, time-out {} s", layers.watchdog.timeout_s)),
        Err(errno) => {
            let advice = "a driver makes it (softdog for want of hardware), a udev rule gives it to the agent's user";
            let detail = format!("{shown} can't be written ({}); {advice}", errno.desc());
            missing(layers.watchdog.mode, NAME, detail)
        }
    }
}

/// Whether there is an interface for the virtual address; the capabilities have a check of their own.
fn interface(root: &Path, name: &str, vip: &VipConfig) -> Check {
    let VipConfig { address, prefix, interface, mode } = vip;
    match root.join("sys/class/net").join(interface).exists() {
        true => {
            ok(name, format!("{address}/{prefix} on {interface}; the agent's status says whether it may be put up"))
        }
        false => missing(*mode, name, format!("there is no interface {interface}")),
    }
}

fn program(command: &[String]) -> Check {
    const NAME: &str = "stonith";
    let program = command.first().map(String::as_str).unwrap_or_default();
    match access(Path::new(program), AccessFlags::X_OK) {
        Ok(()) => ok(NAME, format!("{program} can be run; nothing was run")),
        Err(errno) => fail(NAME, format!("{program} can't be run ({}): correct layers.stonith_command", errno.desc())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::render::Outcome,
        config::{StonithConfig, WatchdogConfig},
    };

    #[test]
    fn what_is_asked_for_and_missing_is_named() {
        let root = tempfile::tempdir().unwrap();
        let watchdog = WatchdogConfig { mode: LayerMode::Required, device: root.path().join("none"), timeout_s: 2 };
        let command = vec!["/nonexistent/fence".to_owned()];
        let stonith = Some(StonithConfig { command, deadline: std::time::Duration::from_secs(1) });
        let (mode, interface) = (LayerMode::Required, "eth7".to_owned());
        let vip = Some(Box::new(VipConfig { mode, address: [10, 0, 0, 100].into(), prefix: 32, interface }));
        let layers = LayersConfig { watchdog, stonith, vip, ..LayersConfig::default() };
        let found: Vec<_> = all(root.path(), &layers).into_iter().map(|c| (c.name, c.outcome)).collect();
        let failed = ["watchdog", "virtual address", "stonith"].map(|name| (name, Outcome::Fail));
        let expected = [("kernel lease", Outcome::Warn)].into_iter().chain(failed);
        assert_eq!(found, expected.map(|(name, outcome)| (name.to_owned(), outcome)).collect::<Vec<_>>());
        fs::create_dir_all(root.path().join("sys/class/net/eth7")).unwrap();
        assert_eq!(all(root.path(), &layers)[2].outcome, Outcome::Ok);
        let off = LayersConfig { kernel_lease: LayerMode::Off, ..LayersConfig::default() };
        assert_eq!(all(root.path(), &off).len(), 1);
        fs::create_dir_all(root.path().join("proc/sys/net/netfilter")).unwrap();
        assert_eq!(all(root.path(), &LayersConfig::default())[0].outcome, Outcome::Ok);
    }
}
