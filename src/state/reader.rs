//! Who has the address for standbys. The log lends it and ends that; whoever has it may keep it by confirmations of the Raft
//! leader only, each of which counts for a limited time.

use std::time::Duration;

use super::cluster::ClusterState;
use crate::domain::MemberId;

/// Who has the address for standbys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reader {
    /// Counts the lends; 0 before the first.
    pub id: u64,
    /// To whom it is lent; `None`: to nobody.
    pub holder: Option<MemberId>,
    /// So long a confirmation of the last lend counts. It stays with the lend when the timings change.
    pub life: Duration,
}

impl ClusterState {
    /// The confirmations of lend `id` count for so long, if it is the one that `member` has.
    pub fn reader_life(&self, member: &MemberId, id: u64) -> Option<Duration> {
        let Reader { id: present, holder, life } = &self.reader;
        (*present == id && holder.as_ref() == Some(member)).then_some(*life)
    }

    pub(super) fn lend(&mut self, member: &MemberId, id: u64, life: Duration) -> Result<Option<String>, String> {
        if let Some(holder) = &self.reader.holder {
            return Err(format!("{holder} has the address for standbys"));
        }
        if id != self.reader.id + 1 {
            return Err(format!("the last lend was {}", self.reader.id));
        }
        if !self.with_postgres().any(|m| m == member) || self.maintenance.contains_key(member) {
            return Err(format!("{member} is no member with PostgreSQL, or in maintenance"));
        }
        self.reader = Reader { id, holder: Some(member.clone()), life };
        Ok(Some(format!("{member} gets the address for standbys")))
    }

    pub(super) fn end_lend(&mut self, id: u64, reason: &str) -> Result<Option<String>, String> {
        let Some(holder) = self.reader.holder.take_if(|_| self.reader.id == id) else {
            return Err(format!("lend {id} is over"));
        };
        Ok(Some(format!("{holder} has the address for standbys no more: {reason}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::Format,
        policy::testing::{id, state},
        state::{Applied, Asked, Command, Kind, RuleId},
    };

    const LIFE: Duration = Duration::from_millis(2_500);

    fn run(state: &mut ClusterState, kind: Kind) -> bool {
        let (request_id, expected) = ("r".to_owned(), state.epoch);
        let command = Command { request_id, expected, because: RuleId(1), kind, evidence: None };
        state.apply(&command) == Applied::Changed
    }

    fn lend(state: &mut ClusterState, member: &str, number: u64) -> bool {
        run(state, Kind::Lend { member: id(member), id: number, life: LIFE })
    }

    #[test]
    fn it_is_lent_to_one_member_at_a_time_and_under_a_number_that_rises() {
        let mut state = state("granted a open 2");
        assert!(!lend(&mut state, "b", 0) && !lend(&mut state, "b", 2) && !lend(&mut state, "x", 1));
        assert!(lend(&mut state, "b", 1));
        assert_eq!(state.format, Format::OPERATE);
        assert_eq!((state.reader_life(&id("b"), 1), state.reader_life(&id("c"), 1)), (Some(LIFE), None));
        assert!(!lend(&mut state, "c", 2), "b has it");
        let end = |number| Kind::EndLend { id: number, reason: "it is gone".into() };
        assert!(!run(&mut state, end(0)) && !run(&mut state, end(2)));
        assert!(run(&mut state, end(1)) && !run(&mut state, end(1)), "once");
        assert_eq!((state.reader_life(&id("b"), 1), state.reader.life), (None, LIFE), "what is waited for stays known");
        assert!(!lend(&mut state, "c", 1), "a number is never used again");
        state.maintenance.insert(id("c"), Asked { reason: "disk".into(), ..Asked::default() });
        assert!(!lend(&mut state, "c", 2) && lend(&mut state, "b", 2));
        let told = state.incidents.iter().map(|incident| incident.what.as_str()).collect::<Vec<_>>();
        assert_eq!(
            told,
            [
                "b gets the address for standbys",
                "b has the address for standbys no more: it is gone",
                "b gets the address for standbys"
            ]
        );
    }
}
