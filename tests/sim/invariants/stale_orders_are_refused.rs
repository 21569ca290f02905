//! I18: an order of an epoch below the one an agent has accepted is refused and does nothing (reliability
//! notes §1.11; STYLE 8).

use matriarch::{agent::core::Effect, domain::Epoch};

use crate::chronicle::Chronicle;

/// An order went through the rules of an agent that had accepted `accepted`.
pub fn looked_at(told: &mut Chronicle, order: Epoch, accepted: Epoch, effects: &[Effect]) {
    if order >= accepted {
        return;
    }
    told.cover.count("stale orders");
    let refused = effects.iter().any(|e| matches!(e, Effect::Reply(Err(_))));
    let begins = effects.iter().any(|e| matches!(e, Effect::Begin(_) | Effect::Hold(_)));
    if !refused || begins {
        told.broke("stale_orders_are_refused", || format!("an order of epoch {order} is taken after epoch {accepted}"));
    }
}
