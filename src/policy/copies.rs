//! From whom a member's data directory is copied. Pure.

use super::{Situation, room};
use crate::domain::{MemberId, PostgresState, observation::AgentView};

/// A standby that is further behind is no source: what the copy lacks would have to be kept on the primary for longer.
const MOST_BEHIND: u64 = 64 << 20;

/// The standby to make a copy for `me` from, so that the primary has no work with it: at the same site as `me` first, then the least
/// behind. `None`: no standby is fit, and the primary is copied.
///
/// The member that `me` is to stream from comes before all others. Fit is one that streams from the primary on its timeline, little behind, with a disk that works and room, that is not in
/// maintenance, copies nothing itself, and that operators let be copied (`clonefrom`).
pub fn source<'a>(s: &Situation<'a>, me: &MemberId) -> Option<&'a MemberId> {
    let (_, primary) = s.state.open_primary()?;
    let head = s.agent(primary).filter(|agent| agent.state == PostgresState::Primary)?;
    let site = |member: &MemberId| s.state.settings.of_member(member).site;
    let here = site(me);
    let own = s.state.settings.of_member(me).replicatefrom;
    let fit = s.state.with_postgres().filter(|member| *member != me && *member != primary).filter_map(|member| {
        let agent = s.agent(member).filter(|agent| is_fit(s, member, agent, (primary, head)))?;
        let behind = head.wal_end.lsn.bytes_past(agent.wal_end.lsn);
        (behind <= MOST_BEHIND).then(|| ((member.as_str() != own, site(member) != here, behind), member))
    });
    fit.min_by_key(|(rank, _)| *rank).map(|(_, member)| member)
}

fn is_fit(s: &Situation<'_>, member: &MemberId, agent: &AgentView, (primary, head): (&MemberId, &AgentView)) -> bool {
    let follows = agent.state == PostgresState::Standby && agent.streaming && agent.upstream.as_ref() == Some(primary);
    let whole = !agent.never_streamed && agent.wal_end.timeline == head.wal_end.timeline;
    let works = agent.storage.is_none() && agent.work.is_none() && !room::is_short(agent.room.as_ref());
    let ours = agent.system_identifier.is_some() && agent.system_identifier == s.state.system_identifier;
    let of = s.state.settings.of_member(member);
    let wanted = of.clonefrom && !of.is_delayed() && !s.state.maintenance.contains_key(member);
    follows && whole && works && ours && wanted && !agent.redo.as_ref().is_some_and(|redo| redo.stands)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::Bench;

    /// `a` is primary and c has no data; what b and d say, and settings of members.
    fn chosen(b: &str, d: &str, settings: &[(&str, &str)]) -> Option<String> {
        let mut bench = Bench::new("granted a open 2");
        let set = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        bench.state.settings.values.extend(set);
        let spare = bench.state.members.values().next().expect("a member").clone();
        bench.state.members.insert("d".parse().expect("a name"), spare);
        let bench = bench.says("a", "primary 2:90000000 lease=1").says("b", b).says("c", "nodata").says("d", d);
        source(&bench.situation(), &"c".parse().expect("a name")).map(ToString::to_string)
    }

    #[test]
    fn a_standby_is_copied_rather_than_the_primary_and_only_one_that_is_fit() {
        let (ahead, behind) = ("standby 2:90000000 upstream=a", "standby 2:80000000 upstream=a");
        assert_eq!(chosen(ahead, behind, &[]).as_deref(), Some("b"), "the least behind");
        assert_eq!(chosen(behind, ahead, &[]).as_deref(), Some("d"));
        for unfit in [
            "standby 2:90000000 upstream=e",
            "standby 1:90000000 upstream=a",
            "standby 2:90000000",
            "standby 2:5000000 upstream=a",
            "standby 2:90000000 upstream=a storage",
            "standby 2:90000000 upstream=a system=8",
            "stopped 2:90000000",
            "busy",
        ] {
            assert_eq!(chosen(unfit, behind, &[]).as_deref(), Some("d"), "{unfit}");
            assert_eq!(chosen(unfit, "nodata", &[]), None, "the primary: {unfit}");
        }
    }

    #[test]
    fn operators_say_who_may_be_copied_and_where_everybody_is() {
        let (ahead, behind) = ("standby 2:90000000 upstream=a", "standby 2:80000000 upstream=a");
        let sites = [("c.site", "east"), ("d.site", "east"), ("b.site", "west")];
        assert_eq!(chosen(ahead, behind, &sites).as_deref(), Some("d"));
        assert_eq!(chosen(ahead, behind, &[("b.clonefrom", "false")]).as_deref(), Some("d"));
        assert_eq!(chosen(ahead, "nodata", &[("b.clonefrom", "false")]), None);
        assert_eq!(chosen(ahead, behind, &[("b.recovery_min_apply_delay", "5000")]).as_deref(), Some("d"));
        assert_eq!(chosen(ahead, behind, &[("c.replicatefrom", "d")]).as_deref(), Some("d"), "its own source");
    }
}
