//! The WAL that a crashed primary left, and that its successor may ask for.

use super::{Core, Tenure, Tree};
use crate::{
    agent::{
        crashes::Cause,
        order::{Address, WalHolder},
    },
    domain::Epoch,
};

/// What PostgreSQL says when pages of it were found to be broken.
const BROKEN_PAGES: [&str; 2] = ["page verification failed", "invalid page in block"];

/// WAL of a primary whose process tree is gone, as it left it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WalLeft {
    epoch: Epoch,
    /// Why nobody should build on it.
    doubt: Option<&'static str>,
}

impl WalLeft {
    fn of(epoch: Epoch, last_words: &str) -> Self {
        let doubt = if Cause::of(last_words) != Cause::Other {
            Some("its disk failed or was full")
        } else if last_words.contains("PANIC") {
            Some("it ended with a PANIC")
        } else if BROKEN_PAGES.iter().any(|words| last_words.contains(words)) {
            Some("it has found broken pages")
        } else {
            None
        };
        Self { epoch, doubt }
    }
}

impl Core {
    /// Nothing is left of the tree of a primary.
    pub(super) fn note_wal_left(&mut self, tenure: Tenure, last_words: &str) {
        self.wal_left = Some(WalLeft::of(tenure.epoch, last_words));
    }

    /// Whether the successor of `epoch` may read the WAL that is here.
    ///
    /// # Errors
    /// The request is for somebody else, PostgreSQL may still write, it has become other WAL, or something was wrong with it.
    pub fn may_be_read(&self, to: &Address, epoch: Epoch, system: u64) -> Result<(), String> {
        let known = (&self.durable.cluster_id, self.durable.generation);
        if to.target != self.me.as_str()
            || (&to.cluster_id, to.generation) != known
            || self.system_identifier() != Some(system)
        {
            return Err(format!("this is {} of cluster {}, which the request is not for", self.me, known.0));
        }
        let left = self.wal_left.as_ref().filter(|left| left.epoch == epoch);
        let left = left.ok_or_else(|| format!("no WAL that epoch {epoch} left is known to be here"))?;
        let reads_only = match self.tree {
            Tree::Empty => true,
            Tree::Running { .. } | Tree::Ending => self.follows.is_none(),
        };
        if self.durable.ended < epoch || self.durable.tenure.is_some() || !reads_only {
            return Err(format!("epoch {epoch} has not ended here for good"));
        }
        left.doubt.map_or(Ok(()), |doubt| Err(format!("PostgreSQL's WAL is not given to anybody: {doubt}")))
    }

    /// Who may have WAL that this member lacks, by the order to promote it.
    pub fn wal_holder(&self) -> Option<&WalHolder> {
        self.wal_holder.as_ref()
    }
}

#[cfg(test)]
mod checks {
    use super::*;
    use crate::{
        agent::{
            core::{Event, TaskEnd, tests},
            order::{Action, Source},
            store::Phase,
        },
        domain::{ClusterId, OnPrimaryCrash},
    };

    #[test]
    fn wal_of_which_something_was_said_is_doubted() {
        let doubted = |words: &str| WalLeft::of(Epoch(3), words).doubt.is_some();
        assert!(!doubted("signal 9"));
        assert!(!doubted("exit code 1, LOG:  terminating any other active server processes"));
        assert!(doubted("exit code 1, PANIC:  could not locate a valid checkpoint record"));
        assert!(doubted("exit code 1, PANIC:  could not write to file \"pg_wal/xlogtemp.1\": No space left on device"));
        assert!(doubted("exit code 1, FATAL:  could not read block 3: Input/output error"));
        assert!(doubted("exit code 1, WARNING:  page verification failed, calculated checksum 1 but expected 2"));
    }

    fn left_by_a_crash() -> Core {
        let mut core = tests::primary();
        core.settings.on_primary_crash = OnPrimaryCrash::Failover;
        core.followed = Some(tests::now(50).moment);
        core.step(tests::gone(false), tests::now(60));
        assert_eq!((core.durable.ended, core.tree), (Epoch(4), Tree::Empty));
        core
    }

    fn asked(core: &Core, epoch: u64) -> Result<(), String> {
        let cluster_id = core.durable.cluster_id.clone();
        let to = Address { cluster_id, generation: core.durable.generation, target: "n1".to_owned() };
        core.may_be_read(&to, Epoch(epoch), tests::SYSTEM)
    }

    #[test]
    fn a_successor_reads_what_a_crash_left_and_nobody_reads_anything_else() {
        assert!(asked(&tests::primary(), 4).is_err(), "it writes still");
        let core = left_by_a_crash();
        assert_eq!(asked(&core, 4), Ok(()));
        assert!(asked(&core, 3).is_err() && asked(&core, 5).is_err(), "of another epoch");
        let to = |target: &str| Address { target: target.to_owned(), ..address(&core) };
        assert!(core.may_be_read(&to("n2"), Epoch(4), tests::SYSTEM).is_err());
        assert!(core.may_be_read(&to("n1"), Epoch(4), tests::SYSTEM + 1).is_err());
        let other = Address { cluster_id: ClusterId("other".to_owned()), ..address(&core) };
        assert!(core.may_be_read(&other, Epoch(4), tests::SYSTEM).is_err());
    }

    fn address(core: &Core) -> Address {
        let (cluster_id, generation) = (core.durable.cluster_id.clone(), core.durable.generation);
        Address { cluster_id, generation, target: "n1".to_owned() }
    }

    #[test]
    fn it_is_not_given_while_the_crashed_primary_may_be_restarted_in_place() {
        let mut core = tests::primary();
        core.step(tests::gone(false), tests::now(60));
        assert_eq!(core.durable.tenure.map(|t| t.phase), Some(Phase::Crashed));
        assert!(asked(&core, 4).is_err());
    }

    #[test]
    fn it_may_be_read_of_a_standby_that_follows_nobody_until_it_becomes_other_wal() {
        let mut core = left_by_a_crash();
        core.step(tests::order(5, Action::StartStandby(None)), tests::now(70));
        core.step(Event::Spawned { life: 2 }, tests::now(80));
        assert_eq!(asked(&core, 4), Ok(()));
        core.step(Event::Done(TaskEnd::Succeeded), tests::now(90));
        let source = Source { member: "n2".parse().unwrap(), host: "h".into(), port: 1, fork: None };
        core.step(tests::order(5, Action::Rewind(source)), tests::now(100));
        assert!(asked(&core, 4).is_err());
    }
}
