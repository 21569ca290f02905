//! What the lease holder's thread says, on its way to the rules and into the log.

use tokio::sync::{mpsc, watch};

use super::{
    core::{Event, LeasePhase, LeaseSight},
    process::Wake,
};
use crate::{
    domain::observation::ClockView,
    lease::{HolderView, Phase},
    telemetry::events,
};

/// Wakes the loop at every change, and tells of what people are to hear.
pub async fn follow(mut view: watch::Receiver<HolderView>, wakes: mpsc::UnboundedSender<Wake>) {
    let mut told = (false, ClockView::default());
    loop {
        let now = view.borrow_and_update().clone();
        if wakes.send(Wake::Lease).is_err() {
            return;
        }
        let clock = ClockView { own_off: now.own_clock_off, off: now.clocks_off.clone() };
        if clock != told.1 {
            tell_clocks(&told.1, &clock);
            let _ = wakes.send(Wake::Core(Event::Clocks(clock.clone())));
        }
        if now.failsafe != told.0 {
            let what = match now.failsafe {
                true => "no majority of managers answers: the primary goes on while all other agents agree",
                false => "the primary goes on without failsafe, or not at all",
            };
            tracing::warn!(event = events::FAILSAFE, epoch = %now.epoch, active = now.failsafe, "{what}");
        }
        told = (now.failsafe, clock);
        if view.changed().await.is_err() {
            return;
        }
    }
}

impl From<&HolderView> for LeaseSight {
    fn from(view: &HolderView) -> LeaseSight {
        let phase = match view.phase {
            Phase::Idle => LeasePhase::Idle,
            Phase::Seeking => LeasePhase::Seeking,
            Phase::Held => LeasePhase::Held,
            // No majority lately; what it held still holds until the deadline.
            Phase::Probing if view.deadline.is_some() => LeasePhase::Held,
            Phase::Probing => LeasePhase::Seeking,
            Phase::Expired => LeasePhase::Expired,
            Phase::Superseded { .. } => LeasePhase::Superseded,
        };
        LeaseSight {
            epoch: view.epoch,
            phase,
            deadline: view.deadline.unwrap_or_default(),
            timings: view.timings,
            failsafe: view.failsafe,
            confirmed: view.confirmed,
        }
    }
}

/// An alarm for each clock that was found off, and a word when it is fine again.
fn tell_clocks(before: &ClockView, now: &ClockView) {
    let fine = before.off.iter().filter(|(member, _)| !now.off.contains_key(*member)).map(|(member, _)| (member, 0));
    let off = now.off.iter().filter(|(member, ppm)| before.off.get(*member) != Some(ppm)).map(|(m, ppm)| (m, *ppm));
    for (member, ppm) in off.chain(fine) {
        tracing::warn!(event = events::CLOCK_UNFIT, %member, ppm, own = now.own_off,
            "clocks were compared; above half of the bound it is an alarm, and 0 is fine");
    }
}
