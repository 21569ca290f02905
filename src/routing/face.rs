//! Answers those who look at the router from outside, over HTTP.

use std::sync::Arc;

use super::{
    desk::Desk,
    figures::{self, Fixed, Question},
    table::Port,
};
use crate::net::http::{
    Answer, Answers, Asked, Reply,
    header::{ALLOW, HeaderValue},
};

const PLACES: &str = "/metrics, /status, /health and /ready are here; docs/router.md says what they tell\n";

/// Tells what the desk knows. It can't change anything.
pub struct Face {
    desk: Arc<Desk>,
    fixed: Fixed,
}

impl Face {
    /// Of a router.
    pub fn new(desk: Arc<Desk>, fixed: Fixed) -> Self {
        Self { desk, fixed }
    }

    fn look(&self, question: Question, query: &str) -> Reply {
        let port = match port(query) {
            Ok(port) => port,
            Err(why) => return Reply::text(400, why),
        };
        if !self.fixed.listens.iter().any(|(listens, _)| *listens == port) {
            return Reply::text(404, format!("this router has no port {}: set router.{0}\n", port.key()));
        }
        let figures = self.desk.figures();
        let of = figures.ports.iter().find(|of| of.port == port);
        match of.map_or(Ok(()), |port| figures::is_so(question, port)) {
            Ok(()) => Reply::text(200, "ok\n"),
            Err(why) => Reply::text(503, format!("{why}\n")),
        }
    }
}

impl Answers for Face {
    fn answer(self: Arc<Self>, asked: Asked) -> Answer {
        let path = asked.head.uri.path();
        let reply = match path.trim_matches('/') {
            "metrics" | "status" | "" | "health" | "ready" if !asked.reads() => {
                Reply::text(405, format!("nothing can be changed here: {PLACES}"))
                    .with(ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"))
            }
            "metrics" => Reply::metrics(figures::metrics(&self.desk.figures(), &self.fixed)),
            "status" | "" => Reply::json(200, &figures::document(&self.desk.figures(), &self.fixed)),
            "health" => self.look(Question::Leads, asked.query()),
            "ready" => self.look(Question::Knows, asked.query()),
            _ => Reply::text(404, format!("{path} is unknown here: {PLACES}")),
        };
        Answer::Now(reply)
    }
}

/// Which port is asked for: the read-write one where nothing is said. Other keys are nobody's business.
fn port(query: &str) -> Result<Port, String> {
    let asked = query.split('&').find_map(|pair| pair.strip_prefix("port="));
    let known = [Port::ReadWrite, Port::ReadOnly, Port::SyncOnly];
    let Some(name) = asked else { return Ok(Port::ReadWrite) };
    let found = known.into_iter().find(|port| port.key() == name || port.name() == name);
    found.ok_or_else(|| "port is none of read_write, read_only and sync_only\n".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_asked_for_by_either_of_its_names() {
        assert_eq!(port(""), Ok(Port::ReadWrite));
        assert_eq!(port("x=1&port=sync_only"), Ok(Port::SyncOnly));
        assert_eq!(port("port=read-only"), Ok(Port::ReadOnly));
        for wrong in ["port=", "port=rw", "port=read_only%20"] {
            assert!(port(wrong).is_err(), "{wrong}");
        }
    }
}
