//! What a router tells of itself: for Prometheus, as JSON, and to a load balancer before several routers. Pure.

use std::{net::SocketAddr, time::Duration};

use serde_json::{Value, json};

use super::{
    Unwatched,
    table::{Closed, Port, View},
};
use crate::{domain::MemberId, net::exposition::Exposition};

/// A picture of the router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figures {
    /// The newest committed state heard of.
    pub view: View,
    /// It is too old to lead anybody by.
    pub stale: bool,
    /// Time since a manager was last sure of it; `None`: none has told any.
    pub confirmed_age: Option<Duration>,
    /// Managers whose stream goes on.
    pub managers_followed: usize,
    /// By port, also those that don't listen.
    pub ports: Vec<PortFigures>,
    /// Sessions whose cancelled commits are not seen, now.
    pub unwatched_now: usize,
    /// Such sessions since the start.
    pub unwatched: Unwatched,
    /// Commits since the start that were told to be of unknown outcome, and not committed.
    pub false_acks_turned: u64,
}

/// Of one port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortFigures {
    /// Which.
    pub port: Port,
    /// Why a new connection would have to wait; `None`: it would be led somewhere.
    pub closed: Option<Closed>,
    /// Connections that wait now.
    pub held_now: usize,
    /// Since the start.
    pub counts: CountFigures,
    /// Its servers, by name.
    pub routes: Vec<RouteFigures>,
}

/// Of one port since the start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CountFigures {
    /// Connections that were accepted.
    pub accepted: u64,
    /// Sessions that began.
    pub begun: u64,
    /// Of those, the ones whose connection to the server had been opened ahead.
    pub ahead: u64,
    /// Connections that were refused.
    pub refused: u64,
    /// Connections that brought nothing a server would understand, or too slowly.
    pub malformed: u64,
    /// Sessions that the state has ended.
    pub cut: u64,
    /// Sessions that ended between two transactions, for their server or the router was about to stop.
    pub drained: u64,
    /// So long all connections waited together until a server took them, or none did.
    pub held: Duration,
    /// The longest of them.
    pub held_max: Duration,
}

/// Of one port and one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteFigures {
    /// The server's member.
    pub member: MemberId,
    /// Sessions now.
    pub open: usize,
    /// Sessions since the start.
    pub begun: u64,
    /// Bytes of clients that were handed on, since the start.
    pub bytes_up: u64,
    /// Bytes of the server that were handed on, since the start.
    pub bytes_down: u64,
}

/// What doesn't change while the router runs.
#[derive(Debug, Clone)]
pub struct Fixed {
    /// Where each port listens.
    pub listens: Vec<(Port, SocketAddr)>,
    /// Sessions at most.
    pub max_sessions: usize,
    /// Managers that it would follow.
    pub managers: usize,
}

impl Fixed {
    /// The figures of the ports that listen.
    fn ports<'a>(&'a self, figures: &'a Figures) -> impl Iterator<Item = (&'a PortFigures, SocketAddr)> {
        let of = |port| figures.ports.iter().find(move |of| of.port == port);
        self.listens.iter().filter_map(move |(port, address)| Some((of(*port)?, *address)))
    }
}

/// In the text format of Prometheus.
pub fn metrics(figures: &Figures, fixed: &Fixed) -> String {
    let mut page = Exposition::default();
    let version = env!("CARGO_PKG_VERSION");
    page.gauge("matriarch_router_build_info", "Version of this router, as a label.").value(&[("version", version)], 1);
    state(&mut page, figures, fixed);
    ports(&mut page, figures, fixed);
    servers(&mut page, figures, fixed);
    page.gauge(
        "matriarch_router_sessions_unwatched",
        "Open sessions in which a cancelled wait for standbys is not seen.",
    )
    .value(&[], figures.unwatched_now);
    let Unwatched { tls, gss, muted } = figures.unwatched;
    page.counter("matriarch_router_sessions_unwatched_total", "Such sessions, by why they are not looked into.")
        .value(&[("reason", "tls")], tls)
        .value(&[("reason", "gssapi")], gss)
        .value(&[("reason", "muted")], muted);
    page.counter(
        "matriarch_router_false_acks_turned_total",
        "Commits whose wait for standbys was cancelled, and whose clients were told that the outcome is unknown.",
    )
    .value(&[], figures.false_acks_turned);
    page.into_text()
}

fn state(page: &mut Exposition, figures: &Figures, fixed: &Fixed) {
    let view = &figures.view;
    let one = u8::from;
    page.gauge("matriarch_router_managers", "Managers of the configuration.").value(&[], fixed.managers);
    page.gauge("matriarch_router_managers_followed", "Managers that tell the state of the cluster now.")
        .value(&[], figures.managers_followed);
    let known = view.version.is_some();
    page.gauge("matriarch_router_state_known", "1 once a manager has told the state, 0 before.").value(&[], one(known));
    if let (Some(version), Some(age)) = (view.version, figures.confirmed_age) {
        page.gauge("matriarch_router_state_generation", "Life of the cluster.").value(&[], version.generation.0);
        page.gauge("matriarch_router_state_epoch", "Count of its primaries.").value(&[], version.epoch.0);
        page.gauge("matriarch_router_state_revision", "Count of its committed changes.").value(&[], version.revision);
        page.gauge("matriarch_router_state_age_seconds", "Time since a manager was last sure of the state.")
            .value(&[], age.as_secs_f64());
    }
    page.gauge("matriarch_router_state_stale_after_seconds", "A state that is older leads nobody anywhere.")
        .value(&[], view.bounds.stale.as_secs_f64());
    page.gauge("matriarch_router_state_stale", "1 if the state is older than that.").value(&[], one(figures.stale));
    let mut primary = page.gauge("matriarch_router_primary_info", "The primary, as labels; none while there is none.");
    if let Some(backend) = &view.primary {
        primary.value(&[("member", backend.member.as_str()), ("address", &backend.address)], 1);
    }
    page.gauge("matriarch_router_primary_open", "1 if there is a primary that clients may be led to.")
        .value(&[], one(view.open));
    page.gauge("matriarch_router_primary_draining", "1 if it is about to be stopped by a command.")
        .value(&[], one(view.draining));
    let mut lag = page.gauge("matriarch_router_standby_lag_bytes", "WAL that a streaming standby is behind.");
    for reader in &view.standbys {
        lag.value(&[("member", reader.backend.member.as_str())], reader.lag_bytes);
    }
    page.gauge("matriarch_router_sessions_max", "Sessions at most, of all ports together.")
        .value(&[], fixed.max_sessions);
}

fn ports(page: &mut Exposition, figures: &Figures, fixed: &Fixed) {
    let mut each = |name: &str, help: &str, is_counter: bool, of: &dyn Fn(&PortFigures) -> f64| {
        let mut family = if is_counter { page.counter(name, help) } else { page.gauge(name, help) };
        for (port, _) in fixed.ports(figures) {
            family.value(&[("port", port.port.key())], of(port));
        }
    };
    let mut gauge = |name: &str, help: &str, of: &dyn Fn(&PortFigures) -> f64| each(name, help, false, of);
    gauge("matriarch_router_port_leads", "1 if a new connection is led to a server at once.", &|port| {
        f64::from(u8::from(port.closed.is_none()))
    });
    gauge("matriarch_router_sessions_open", "Sessions now.", &|port| sum(port, |route| route.open as u64));
    gauge("matriarch_router_connections_held", "Connections that wait for a server now.", &|port| port.held_now as f64);
    gauge("matriarch_router_connections_held_max_seconds", "The longest such wait since the start.", &|port| {
        port.counts.held_max.as_secs_f64()
    });
    let mut counter = |name: &str, help: &str, of: &dyn Fn(&PortFigures) -> f64| each(name, help, true, of);
    let count = |of: fn(&CountFigures) -> u64| move |port: &PortFigures| of(&port.counts) as f64;
    counter("matriarch_router_connections_total", "Connections that were accepted.", &count(|c| c.accepted));
    counter(
        "matriarch_router_connections_refused_total",
        "Connections that were refused: too many, held too long, not encrypted.",
        &count(|c| c.refused),
    );
    counter(
        "matriarch_router_connections_malformed_total",
        "Connections that brought nothing a server would understand, or too slowly.",
        &count(|c| c.malformed),
    );
    counter("matriarch_router_connections_held_seconds_total", "Time that connections waited for a server.", &|port| {
        port.counts.held.as_secs_f64()
    });
    counter("matriarch_router_sessions_total", "Sessions that began.", &count(|c| c.begun));
    counter(
        "matriarch_router_sessions_ahead_total",
        "Sessions that began on a connection to the server which had been opened ahead.",
        &count(|c| c.ahead),
    );
    counter(
        "matriarch_router_sessions_cut_total",
        "Sessions that were ended, for the primary is another or the state is stale.",
        &count(|c| c.cut),
    );
    counter(
        "matriarch_router_sessions_drained_total",
        "Sessions that were ended between two transactions, for their server or the router was about to stop.",
        &count(|c| c.drained),
    );
    counter("matriarch_router_received_bytes_total", "Bytes of clients that were handed on.", &|port| {
        sum(port, |route| route.bytes_up)
    });
    counter("matriarch_router_sent_bytes_total", "Bytes of servers that were handed on to clients.", &|port| {
        sum(port, |route| route.bytes_down)
    });
}

fn sum(port: &PortFigures, of: impl Fn(&RouteFigures) -> u64) -> f64 {
    port.routes.iter().map(of).sum::<u64>() as f64
}

fn servers(page: &mut Exposition, figures: &Figures, fixed: &Fixed) {
    let mut each = |name: &str, help: &str, is_counter: bool, of: fn(&RouteFigures) -> u64| {
        let mut family = if is_counter { page.counter(name, help) } else { page.gauge(name, help) };
        for (port, _) in fixed.ports(figures) {
            for route in &port.routes {
                family.value(&[("port", port.port.key()), ("member", route.member.as_str())], of(route));
            }
        }
    };
    each("matriarch_router_server_sessions_open", "Sessions now, by server.", false, |route| route.open as u64);
    each("matriarch_router_server_sessions_total", "Sessions that began, by server.", true, |route| route.begun);
    each("matriarch_router_server_sent_bytes_total", "Bytes of clients that went to this server.", true, |route| {
        route.bytes_up
    });
    each("matriarch_router_server_received_bytes_total", "Bytes that this server sent to clients.", true, |route| {
        route.bytes_down
    });
}

/// The same as JSON.
pub fn document(figures: &Figures, fixed: &Fixed) -> Value {
    let view = &figures.view;
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let route = |route: &RouteFigures| {
        let figures = json!({
            "sessions_open": route.open,
            "sessions_total": route.begun,
            "bytes_to_server": route.bytes_up,
            "bytes_to_clients": route.bytes_down,
        });
        (route.member.to_string(), figures)
    };
    let port = |(port, listen): (&PortFigures, SocketAddr)| {
        let (counts, total) = (&port.counts, |of: fn(&RouteFigures) -> u64| port.routes.iter().map(of).sum::<u64>());
        let figures = json!({
            "listen": listen.to_string(),
            "leads": port.closed.is_none(),
            "reason": port.closed.as_ref().map(Closed::to_string),
            "connections_total": counts.accepted,
            "refused_total": counts.refused,
            "malformed_total": counts.malformed,
            "held_now": port.held_now,
            "held_ms_total": ms(counts.held),
            "held_ms_max": ms(counts.held_max),
            "sessions_open": total(|route| route.open as u64),
            "sessions_total": counts.begun,
            "sessions_ahead_total": counts.ahead,
            "cut_total": counts.cut,
            "drained_total": counts.drained,
            "bytes_to_servers": total(|route| route.bytes_up),
            "bytes_to_clients": total(|route| route.bytes_down),
            "servers": port.routes.iter().map(route).collect::<serde_json::Map<_, _>>(),
        });
        (port.port.key().to_owned(), figures)
    };
    let standby = |reader: &super::table::Reader| {
        json!({
            "member": reader.backend.member.as_str(),
            "address": reader.backend.address,
            "lag_bytes": reader.lag_bytes,
            "confirms": reader.confirms,
        })
    };
    let Unwatched { tls, gss, muted } = figures.unwatched;
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "managers": fixed.managers,
        "managers_followed": figures.managers_followed,
        "state": view.version.map(|version| json!({
            "generation": version.generation.0,
            "epoch": version.epoch.0,
            "revision": version.revision,
            "age_ms": figures.confirmed_age.map(ms),
            "stale_after_ms": ms(view.bounds.stale),
            "stale": figures.stale,
        })),
        "primary": view.primary.as_ref().map(|primary| json!({
            "member": primary.member.as_str(),
            "address": primary.address,
            "open": view.open,
            "draining": view.draining,
        })),
        "standbys": view.standbys.iter().map(standby).collect::<Vec<_>>(),
        "sessions_max": fixed.max_sessions,
        "ports": fixed.ports(figures).map(port).collect::<serde_json::Map<_, _>>(),
        "unwatched": {"open": figures.unwatched_now, "tls": tls, "gssapi": gss, "muted": muted},
        "false_acks_turned_total": figures.false_acks_turned,
    })
}

/// What a load balancer asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Would a new connection be led to a server at once?
    Leads,
    /// Would it at least be held for one: does this router know the state of the cluster?
    Knows,
}

/// The answer for one port.
///
/// # Errors
/// Why not.
pub fn is_so(question: Question, port: &PortFigures) -> Result<(), String> {
    let Some(closed) = &port.closed else { return Ok(()) };
    let knows = !matches!(closed, Closed::NothingHeard | Closed::Stale(_));
    if knows && question == Question::Knows { Ok(()) } else { Err(closed.to_string()) }
}

#[cfg(test)]
#[path = "figures_test.rs"]
mod tests;
