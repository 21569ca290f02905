//! What the slot of a member is for on this host, by what operators have set. Pure.
//!
//! One that streams from a standby has its WAL kept there and not on the primary, to which it comes when that standby fails; one that
//! gets its WAL from an archive has no slot; and one that shows the past asks for WAL late: what it will need is kept from the
//! beginning.

use super::steps::Step;
use crate::{
    domain::{MemberId, MemberSettings},
    postgres::SlotsFound,
};

/// What it is for here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SlotUse {
    /// The member is set to stream from this one.
    from_here: bool,
    /// … from another standby.
    elsewhere: bool,
    /// It shows the past.
    late: bool,
}

impl SlotUse {
    /// Of a member with these settings, on the host of `me`; `None`: it streams from nobody.
    pub(super) fn of(settings: &MemberSettings, me: &MemberId) -> Option<Self> {
        let source = settings.source();
        let from_here = source == Some(me.as_str());
        let elsewhere = source.is_some() && !from_here;
        (!settings.nostream).then_some(Self { from_here, elsewhere, late: settings.is_delayed() })
    }

    /// What is due with an idle slot beside `step`, which would be due with that of anybody.
    fn instead(self, step: Option<Step>, name: &str, found: &SlotsFound) -> Option<Step> {
        let Some(slot) = found.slots.iter().find(|slot| slot.name == name && slot.physical) else { return step };
        if slot.active_pid.is_some() || slot.lost {
            return step;
        }
        let serves = if found.in_recovery { self.from_here } else { !self.elsewhere };
        match (serves, slot.reserves) {
            (true, false) if self.late => Some(Step::Reserve(name.to_owned())),
            (true, _) => None,
            (false, true) => Some(Step::Renew(name.to_owned())),
            (false, false) => step,
        }
    }
}

/// `steps` with what these uses make of them.
pub(super) fn adapt<'u>(
    steps: Vec<Step>,
    found: &SlotsFound,
    uses: impl Iterator<Item = (&'u String, SlotUse)>,
) -> Vec<Step> {
    let mut steps = steps;
    for (name, used) in uses.filter(|(_, used)| used.from_here || used.elsewhere || used.late) {
        let renews = Step::Renew(name.clone());
        let at = steps.iter().position(|step| *step == renews);
        let ordinary = at.map(|at| steps.remove(at));
        steps.extend(used.instead(ordinary, name, found));
    }
    steps
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::postgres::SlotFound;

    fn due(in_recovery: bool, reserves: bool, set: &[(&str, &str)], ordinary: &[Step]) -> Vec<Step> {
        let mut of = MemberSettings::default();
        set.iter().for_each(|(key, value)| of.set(key, value).unwrap());
        let used = SlotUse::of(&of, &"n2".parse().unwrap()).unwrap();
        let slot = SlotFound { name: "s".to_owned(), physical: true, reserves, ..SlotFound::default() };
        let found = SlotsFound { in_recovery, slots: vec![slot], ..SlotsFound::default() };
        adapt(ordinary.to_vec(), &found, [(&"s".to_owned(), used)].into_iter())
    }

    #[test]
    fn wal_is_kept_where_a_member_streams_from_and_nowhere_else() {
        let renew = [Step::Renew("s".into())];
        let (here, elsewhere) = ([("replicatefrom", "n2")], [("replicatefrom", "n3")]);
        assert_eq!(due(true, true, &here, &renew), [], "its source keeps it");
        assert_eq!(due(true, true, &elsewhere, &renew), renew, "no other standby does");
        assert_eq!(due(false, true, &elsewhere, &[]), renew, "nor does the primary");
        assert_eq!(due(false, false, &elsewhere, &[]), [], "once it has given that up");
        assert_eq!(due(false, true, &here, &[]), [], "the source is primary");
        assert_eq!(due(true, true, &[], &renew), renew, "as for anybody");
    }

    #[test]
    fn wal_is_kept_for_whoever_asks_late() {
        let (late, reserve) = ([("recovery_min_apply_delay", "60000")], [Step::Reserve("s".into())]);
        assert_eq!(due(false, false, &late, &[]), reserve);
        assert_eq!(due(false, true, &late, &[]), []);
        assert_eq!(due(true, true, &late, &[Step::Renew("s".into())]), [Step::Renew("s".into())], "not by a standby");
        let both = [late[0], ("replicatefrom", "n2")];
        assert_eq!(due(true, false, &both, &[]), reserve, "but by the one it streams from");
    }

    #[test]
    fn whoever_streams_from_nobody_has_no_slot() {
        let mut of = MemberSettings::default();
        of.set("nostream", "true").unwrap();
        assert_eq!(SlotUse::of(&of, &"n2".parse().unwrap()), None);
    }
}
