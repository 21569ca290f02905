//! The table `[layers]`, checked against the timings it has to go with.

use std::{net::IpAddr, time::Duration};

use super::{
    LayerMode, LayersConfig, StonithConfig, VipConfig, WatchdogConfig, check::path, checked::WATCHDOG_DEVICE,
    error::Wrong, raw::RawLayers,
};
use crate::domain::Timings;

const STONITH_DEADLINE_MS: u64 = 30_000;

pub(super) fn check(raw: Option<RawLayers>, timings: &Timings) -> Result<LayersConfig, Wrong> {
    let asked = raw.as_ref().is_some_and(|raw| raw.kernel_lease.is_some());
    let raw = raw.unwrap_or_default();
    let mut kernel_lease = mode("layers.kernel_lease", raw.kernel_lease.as_deref(), LayerMode::Automatic)?;
    if kernel_lease != LayerMode::Off && !timings.allows_kernel_lease(Timings::KERNEL_TICKS) {
        if asked {
            let problem = "T_hold/(1-rho) + 20 ms <= T_grant/(1+rho) does not hold";
            return Err(Wrong::new("layers.kernel_lease", problem, "raise cluster.timings.grant_ms, or set it to off"));
        }
        kernel_lease = LayerMode::Off;
    }
    let client_reset = mode("layers.client_reset", raw.client_reset.as_deref(), LayerMode::Automatic)?;
    if client_reset == LayerMode::Required {
        let advice = "use off or automatic";
        return Err(Wrong::new("layers.client_reset", "it protects nothing, so it can't be required", advice));
    }
    let standbys = raw.vip_standby_address.as_deref();
    let address = (raw.vip_address.as_deref(), standbys.is_some());
    let vip = vip(raw.vip.as_deref(), address, raw.vip_interface.clone(), timings)?;
    let vip_standby = vip_standby(raw.vip_standby.as_deref(), (standbys, vip.as_deref()), raw.vip_interface)?;
    Ok(LayersConfig {
        kernel_lease,
        watchdog: watchdog(raw.watchdog.as_deref(), raw.watchdog_device, raw.watchdog_timeout_s, timings)?,
        client_reset,
        stonith: stonith(raw.stonith_command, raw.stonith_deadline_ms)?,
        vip,
        vip_standby,
    })
}

fn mode(key: &str, text: Option<&str>, default: LayerMode) -> Result<LayerMode, Wrong> {
    match text {
        None => Ok(default),
        Some("off") => Ok(LayerMode::Off),
        Some("automatic") => Ok(LayerMode::Automatic),
        Some("required") => Ok(LayerMode::Required),
        Some(other) => Err(Wrong::new(key, format!("`{other}` is no mode"), "use off, automatic or required")),
    }
}

fn watchdog(
    text: Option<&str>,
    device: Option<String>,
    timeout_s: Option<u32>,
    timings: &Timings,
) -> Result<WatchdogConfig, Wrong> {
    const TIMEOUT: &str = "layers.watchdog_timeout_s";
    let mode = mode("layers.watchdog", text, LayerMode::Off)?;
    let device = path("layers.watchdog_device", device, WATCHDOG_DEVICE)?;
    let longest = timings.watchdog_timeout_max_s();
    let timeout_s = match (timeout_s, longest) {
        (Some(0), _) => return Err(Wrong::new(TIMEOUT, "0 is no time-out", "use whole seconds")),
        (Some(seconds), _) if timings.watchdog_freshness(seconds).is_some() => seconds,
        (Some(seconds), Some(longest)) => {
            let problem = format!(
                "T_grant >= (1+rho) * (W/(1-rho) + delta) does not hold with W = {seconds} s and delta >= renew + T_rpc"
            );
            return Err(Wrong::new(TIMEOUT, problem, format!("use 1 to {longest}")));
        }
        (None, Some(longest)) => longest,
        (_, None) if mode == LayerMode::Off => 1,
        (_, None) => {
            let problem = "a watchdog counts in whole seconds, and these timings leave no room for one";
            return Err(Wrong::new(TIMEOUT, problem, "raise cluster.timings.grant_ms, or set layers.watchdog to off"));
        }
    };
    Ok(WatchdogConfig { mode, device, timeout_s })
}

fn stonith(command: Option<Vec<String>>, deadline_ms: Option<u64>) -> Result<Option<StonithConfig>, Wrong> {
    const COMMAND: &str = "layers.stonith_command";
    const DEADLINE: &str = "layers.stonith_deadline_ms";
    let Some(command) = command else {
        return match deadline_ms {
            None => Ok(None),
            Some(_) => {
                Err(Wrong::new(DEADLINE, "given without layers.stonith_command", "add the command, or remove it"))
            }
        };
    };
    match command.first() {
        Some(program) if program.starts_with('/') => {}
        Some(program) => {
            let problem = format!("`{program}` is no path from the root");
            return Err(Wrong::new(COMMAND, problem, "write the program's whole path, then its arguments, one by one"));
        }
        None => return Err(Wrong::new(COMMAND, "empty", "name a program, or remove the key")),
    }
    if command.iter().any(|argument| argument.contains('\0')) {
        return Err(Wrong::new(COMMAND, "an argument has a zero byte in it", "remove it"));
    }
    let deadline_ms = deadline_ms.unwrap_or(STONITH_DEADLINE_MS);
    if !(100..=600_000).contains(&deadline_ms) {
        return Err(Wrong::new(
            DEADLINE,
            format!("{deadline_ms} ms is out of range"),
            "use 100 to 600000 (ten minutes)",
        ));
    }
    Ok(Some(StonithConfig { command, deadline: Duration::from_millis(deadline_ms) }))
}

const VIP_ADDRESS: &str = "layers.vip_address";
const VIP_INTERFACE: &str = "layers.vip_interface";
const STANDBY: &str = "layers.vip_standby";
const STANDBY_ADDRESS: &str = "layers.vip_standby_address";

fn vip(
    text: Option<&str>,
    (address, another): (Option<&str>, bool),
    interface: Option<String>,
    timings: &Timings,
) -> Result<Option<Box<VipConfig>>, Wrong> {
    let wanted = mode("layers.vip", text, LayerMode::Automatic)?;
    // The interface may be for the other one alone.
    let interface = interface.filter(|_| address.is_some() || !another);
    let (address, interface) = match (address, interface) {
        (Some(address), Some(interface)) => (address, interface),
        (None, None) if wanted == LayerMode::Off || text.is_none() => return Ok(None),
        (None, _) => return Err(Wrong::new(VIP_ADDRESS, "missing", "add the address that is to be the primary's")),
        (Some(_), None) => return Err(Wrong::new(VIP_INTERFACE, "missing", "add the interface it is put on")),
    };
    let (address, prefix) = vip_address(VIP_ADDRESS, address)?;
    let interface = vip_interface(interface)?;
    if wanted != LayerMode::Off && !timings.allows_vip() {
        let problem = "the kernel keeps an address for whole seconds, and T_hold >= 1280 ms does not hold";
        return Err(Wrong::new("layers.vip", problem, "raise cluster.timings.hold_ms, or set it to off"));
    }
    Ok(Some(Box::new(VipConfig { mode: wanted, address, prefix, interface })))
}

/// The one for standbys, on the same interface.
fn vip_standby(
    text: Option<&str>,
    (address, vip): (Option<&str>, Option<&VipConfig>),
    interface: Option<String>,
) -> Result<Option<Box<VipConfig>>, Wrong> {
    let wanted = mode(STANDBY, text, LayerMode::Automatic)?;
    if wanted == LayerMode::Required {
        let advice = "use off or automatic";
        return Err(Wrong::new(STANDBY, "it protects nothing, so it can't be required", advice));
    }
    let (address, interface) = match (address, interface) {
        (Some(address), Some(interface)) => (address, interface),
        (None, _) if wanted == LayerMode::Off || text.is_none() => return Ok(None),
        (None, _) => return Err(Wrong::new(STANDBY_ADDRESS, "missing", "add the address that is to be a standby's")),
        (Some(_), None) => return Err(Wrong::new(VIP_INTERFACE, "missing", "add the interface it is put on")),
    };
    let (address, prefix) = vip_address(STANDBY_ADDRESS, address)?;
    if vip.is_some_and(|vip| vip.address == address) {
        let problem = format!("{address} is layers.vip_address, too");
        return Err(Wrong::new(STANDBY_ADDRESS, problem, "use another: the two may be on different hosts"));
    }
    let interface = vip_interface(interface)?;
    Ok(Some(Box::new(VipConfig { mode: wanted, address, prefix, interface })))
}

fn vip_interface(interface: String) -> Result<String, Wrong> {
    if interface.is_empty() || interface.len() > 15 || interface.contains(|c: char| c == '/' || !c.is_ascii_graphic()) {
        let problem = format!("`{interface}` names no interface");
        return Err(Wrong::new(VIP_INTERFACE, problem, "use what `ip link` shows"));
    }
    Ok(interface)
}

impl LayersConfig {
    /// The virtual addresses that are configured, each with its key.
    pub(super) fn addresses(&self) -> impl Iterator<Item = (&'static str, &VipConfig)> {
        let all = [(VIP_ADDRESS, &self.vip), (STANDBY_ADDRESS, &self.vip_standby)];
        all.into_iter().filter_map(|(key, vip)| Some((key, vip.as_deref()?)))
    }
}

/// `10.0.0.100/24`; without a length it is the address alone.
fn vip_address(key: &str, text: &str) -> Result<(IpAddr, u8), Wrong> {
    let wrong = || {
        let problem = format!("`{text}` is no address that hosts could share");
        Wrong::new(key, problem, "write it as 10.0.0.100/24 or fd00::100/64, or without the length")
    };
    let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.map_or(Ok(longest), |prefix| prefix.parse().map_err(|_| wrong()))?;
    let narrow = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.to_ipv4_mapped().is_some(),
    };
    let nobodys = narrow || address.is_unspecified() || address.is_loopback() || address.is_multicast();
    if nobodys || !(1..=longest).contains(&prefix) {
        return Err(wrong());
    }
    Ok((address, prefix))
}

/// An address that a host has anyway moves nowhere, and one on which PostgreSQL doesn't listen leads nobody to it.
pub(super) fn check_vip(key: &str, vip: &VipConfig, hosts: &[&str], listen: Option<&str>) -> Result<(), Wrong> {
    if let Some(host) = hosts.iter().find(|host| host.parse() == Ok(vip.address)) {
        let advice = "use one that no host has of its own";
        return Err(Wrong::new(key, format!("{host} is the host of a member"), advice));
    }
    let everywhere = if vip.address.is_ipv4() { "0.0.0.0" } else { "::" };
    let reaches = |part: &str| match part.parse::<IpAddr>() {
        Ok(address) => address == vip.address || part == everywhere,
        // A name may stand for it.
        Err(_) => true,
    };
    match listen {
        Some(listen) if vip.mode != LayerMode::Off && !listen.split(',').map(str::trim).any(reaches) => {
            let problem = format!("PostgreSQL does not listen on {}", vip.address);
            Err(Wrong::new("postgresql.listen_addresses", problem, "set it to `*`: the address comes and goes"))
        }
        Some(_) | None => Ok(()),
    }
}
