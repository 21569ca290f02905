//! Who may have its data replaced by a copy, one after the other.

use std::collections::BTreeSet;

use super::view::primary_ready;
use crate::{
    domain::MemberId,
    policy::{self, Situation},
    reconcile::{self, Action, Host},
};

/// What the leader says to a host of copies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Copying {
    /// It may replace data that is of no use by a copy now.
    pub may: bool,
    /// The standby to copy; `None`: the primary.
    pub from: Option<MemberId>,
}

/// The word to `member`.
pub fn word(s: &Situation<'_>, member: &MemberId) -> Copying {
    Copying { may: may_copy(s).contains(member), from: policy::copies::source(s, member).cloned() }
}

/// Who may replace data that is of no use by a copy now: no more at one time than `max_concurrent_clones`, with those whose
/// copies are under way or due anyway. The leader says it to each with its report, so that two may begin in the same moment when
/// the leader changes.
pub fn may_copy(s: &Situation<'_>) -> BTreeSet<MemberId> {
    let ready = primary_ready(s);
    let copies = |me: &MemberId, may_copy: bool| {
        let Some(agent) = s.agent(me) else { return false };
        let host = Host { state: s.state, me, agent, primary_ready: ready, may_copy, copy_from: None };
        let next = reconcile::next_action(&host);
        let due = next.is_some_and(|next| matches!(next.action, Action::Clone { .. } | Action::Reinit { .. }));
        due || agent.work.as_ref().is_some_and(|work| work.kind == "clone")
    };
    let (under_way, waiting): (Vec<_>, Vec<_>) =
        s.state.members.keys().filter(|me| copies(me, true)).partition(|me| copies(me, false));
    let most = usize::try_from(s.state.settings.settings().max_concurrent_clones).unwrap_or(usize::MAX);
    let free = most.saturating_sub(under_way.len());
    under_way.into_iter().chain(waiting.into_iter().take(free)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::Bench;

    /// `a` is primary; what b and c say, and the setting.
    fn allowed(b: &str, c: &str, most: &str) -> Vec<String> {
        let mut bench = Bench::new("granted a open 2");
        bench.state.settings.values.insert("max_concurrent_clones".to_owned(), most.to_owned());
        let mut bench = bench.says("a", "primary 2:500 lease=1").says("b", b).says("c", c);
        bench.seen.values_mut().filter_map(|seen| seen.agent.as_mut()).for_each(|agent| {
            agent.checkpoint_timeline = agent.wal_end.timeline;
        });
        may_copy(&bench.situation()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn one_after_the_other_is_copied_anew() {
        let gone = "standby 2:400 upstream=a useless=wal-gone";
        assert_eq!(allowed(gone, gone, "1"), ["b"]);
        assert_eq!(allowed(gone, gone, "2"), ["b", "c"]);
        assert!(allowed(gone, gone, "0").is_empty(), "none by itself");
        assert_eq!(allowed("busy cloning", gone, "1"), ["b"], "b is at it");
        assert_eq!(allowed("nodata", gone, "1"), ["b"], "b has nothing at all, and copies whoever else does");
        assert_eq!(allowed("standby 2:400 upstream=a", gone, "1"), ["c"]);
        assert_eq!(allowed(&format!("{gone} clones=5"), gone, "1"), ["c"], "who tries no more is not waited for");
    }
}
