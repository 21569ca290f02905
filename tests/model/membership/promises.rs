//! What must always hold while the membership changes, and what must happen sometimes.

use stateright::Property;

use super::{
    Change,
    state::{Phase, State},
};

/// The promise that everything else is for, and a little more: a grant alone counts as writing.
pub const ONE_WRITER: &str = "epoch 1 never writes once epoch 2 is granted";
/// What Raft promises; the model would be wrong without it.
pub const LOG_IS_KEPT: &str = "no committed entry is ever taken back";

/// All of them.
pub fn of<const N: usize>(model: &Change<N>) -> Vec<Property<Change<N>>> {
    let mut all = vec![
        Property::<Change<N>>::always(ONE_WRITER, |_, s| !(s.old_writes() && s.granted)),
        Property::<Change<N>>::always(LOG_IS_KEPT, |_, s| !s.lost),
        Property::<Change<N>>::sometimes("the last membership is in use and epoch 1 is held", |m, s| {
            s.phase == Phase::Held && s.counted & (1 << m.chain.steps()) != 0
        }),
        Property::<Change<N>>::sometimes("a failover under a joint membership", |_, s| {
            s.granted && s.phase == Phase::Dead && s.memberships % 2 == 1
        }),
        Property::<Change<N>>::sometimes("a failover under the last membership", |m, s| {
            s.granted && s.phase == Phase::Dead && s.memberships == m.chain.steps() && s.committed == s.length()
        }),
        Property::<Change<N>>::sometimes("steps while nobody is granted and nothing was ever counted", |m, s| {
            s.fence == 0 && s.counted == 0 && s.memberships == m.chain.steps() && !s.granted
        }),
        Property::<Change<N>>::sometimes("two memberships in the acks of one renewal", differ),
    ];
    if model.elections {
        all.push(Property::<Change<N>>::sometimes("a manager goes by a membership that was taken back", |_, s| {
            s.voters.iter().any(|v| v.membership > s.memberships)
        }));
    }
    all
}

fn differ<const N: usize>(_: &Change<N>, s: &State<N>) -> bool {
    let acked = s.voters.iter().map(|v| v.acked).filter(|a| *a != 0);
    acked.clone().min() != acked.max()
}
