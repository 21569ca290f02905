//! What must always hold of a lease with fixed voters, and what must happen sometimes.

use stateright::Property;

use super::{
    Lease,
    state::{Lock, Phase, State},
};
use crate::ticks::Drift;

/// The promise that everything else is for.
pub const ONE_WRITER: &str = "one epoch writes at a time, and never a lower one after a higher";
/// What the proof says, and a little more.
pub const ENDS_BEFORE_GRANT: &str = "an epoch has stopped writing before the next is granted";
/// Suspicion alone ends nothing.
pub const NO_HASTE: &str = "no epoch is ended while it is held, or unasked for, unless somebody asked";
/// A holder that is cut off one way blocks no failover.
pub const UNBOUND: &str = "a holder that hears nobody prolongs no promise";

/// All of them.
pub fn of<const N: usize>(model: &Lease<N>) -> Vec<Property<Lease<N>>> {
    let mut all = vec![
        Property::<Lease<N>>::always(ONE_WRITER, |_, s| one_writer(s)),
        Property::<Lease<N>>::always(UNBOUND, |_, s| !s.bound),
        Property::<Lease<N>>::sometimes("the last epoch is held, or granted where it is inert", |m, s| {
            s.holders[usize::from(m.epochs) - 1].phase == if m.inert { Phase::Seeking } else { Phase::Held }
        }),
        Property::<Lease<N>>::sometimes("a voter is free while another is bound", |_, s| {
            s.voters[0].until == 0 && s.voters[N - 1].until > 0
        }),
        Property::<Lease<N>>::sometimes("a fenced epoch still writes", |_, s| {
            s.lock == Lock::Fenced && s.holders[0].writes()
        }),
    ];
    if model.ends {
        all.push(Property::<Lease<N>>::sometimes("an epoch is fenced after a release", |_, s| {
            s.lock == Lock::FencedAfterRelease
        }));
        all.push(Property::<Lease<N>>::sometimes("an epoch comes and goes unheld", |_, s| {
            s.epoch == 2 && s.holders[0].phase == Phase::Dropped
        }));
    }
    if model.patient {
        all.push(Property::<Lease<N>>::always(NO_HASTE, |_, s| !s.hasty));
    }
    if model.strict {
        all.push(Property::<Lease<N>>::always(ENDS_BEFORE_GRANT, |_, s| ends_before_grant(s)));
    }
    if model.drift == Drift::Free {
        all.push(Property::<Lease<N>>::sometimes("clocks differ", |_, s| {
            s.voters[0].until + 1 < s.voters[N - 1].until && s.voters[0].acked == s.voters[N - 1].acked
        }));
    }
    if model.probes {
        all.push(Property::<Lease<N>>::sometimes("a probe is answered", |_, s| {
            s.holders[0].probe && s.voters.iter().all(|v| v.acked & 1 != 0)
        }));
    }
    if model.crashes {
        all.push(Property::<Lease<N>>::sometimes("a crashed primary still has its lease", |_, s| {
            s.holders[0].crashed && s.holders[0].phase == Phase::Held
        }));
    }
    if model.configurations {
        all.push(Property::<Lease<N>>::sometimes("two configurations are in use", |m, s| {
            s.holders[0].phase == Phase::Held
                && s.holders[0].left > m.hold(false).min(m.hold(true))
                && s.voters.iter().any(|v| v.second)
                && s.voters.iter().any(|v| !v.second)
        }));
    }
    all
}

fn one_writer<const N: usize>(s: &State<N>) -> bool {
    let mut higher_wrote = false;
    for h in s.holders.iter().rev() {
        if higher_wrote && h.writes() {
            return false;
        }
        higher_wrote |= matches!(h.phase, Phase::Held | Phase::Killing | Phase::Dead);
    }
    true
}

fn ends_before_grant<const N: usize>(s: &State<N>) -> bool {
    let mut higher_granted = false;
    for h in s.holders.iter().rev() {
        if higher_granted && h.writes() {
            return false;
        }
        higher_granted |= h.phase != Phase::Ungranted;
    }
    true
}
