//! What tests of this room begin with.

use std::{sync::Arc, time::Duration};

use super::{
    desk::{Desk, Pass, now},
    table::{Backend, Bounds, Heard, Port, Rules, Stamp, Version},
};
use crate::domain::{ClusterId, Epoch, Generation};

/// What a manager may say: the primary is open in this epoch.
pub fn heard(epoch: u64) -> Heard {
    Heard {
        cluster: ClusterId("c".into()),
        version: Version { generation: Generation(1), epoch: Epoch(epoch), revision: epoch },
        open: true,
        draining: false,
        hibernated: None,
        primary: Some(Backend { member: "a".parse().unwrap(), address: "a:5432".into() }),
        standbys: Vec::new(),
        confirmed_age: Duration::ZERO,
        bounds: None,
    }
}

/// A desk that leads to one primary, and the right to be connected there.
pub fn enter() -> (Arc<Desk>, Stamp, Pass) {
    let bounds = Bounds { stale: Duration::from_secs(600), hold: Duration::from_secs(1) };
    let desk = Arc::new(Desk::new(1, bounds, Rules::default()));
    desk.hear(0, &"a".parse().unwrap(), heard(1), Default::default());
    let stamp = desk.views().borrow().lead(Port::ReadWrite, 0, &[], now()).unwrap();
    let pass = desk.enter(&stamp, Port::ReadWrite).unwrap();
    (desk, stamp, pass)
}
