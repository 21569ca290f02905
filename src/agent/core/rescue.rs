//! The WAL that a crashed primary left, and that its successor may ask for.

use super::{Core, Tenure, Tree};
use crate::{
    agent::{
        crashes::Cause,
        order::{Address, WalHolder},
        store::Phase,
    },
    domain::Epoch,
};

/// What PostgreSQL says when pages of it were found to be broken.
const BROKEN_PAGES: [&str; 2] = ["page verification failed", "invalid page in block"];
/// … and when it begins to replay.
const REPLAYS: &str = "redo starts at";

/// WAL of a primary whose process tree is gone, as it left it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct WalLeft {
    epoch: Epoch,
    /// Why nobody should build on it.
    doubt: Option<&'static str>,
}

/// What is known of that.
#[derive(Debug, Default)]
pub(super) struct Left {
    wal: Option<WalLeft>,
    /// The tenure that ended while its tree still lived.
    ending: Option<Tenure>,
    /// What the log of the last life says against its WAL.
    doubt: Option<&'static str>,
    /// It replayed WAL in that life.
    replayed: bool,
}

/// What the log of one life of PostgreSQL says against the WAL that it left.
fn doubt(log: &str) -> Option<&'static str> {
    if log.contains("PANIC: ") {
        Some("it ended with a PANIC")
    } else if Cause::of(log) != Cause::Other {
        Some("its disk failed or was full")
    } else if BROKEN_PAGES.iter().any(|words| log.contains(words)) {
        Some("it has found broken pages")
    } else {
        None
    }
}

impl Core {
    /// What the newest life of PostgreSQL, which has ended, wrote to its log last.
    pub fn read_last_log(&mut self, log: &str) {
        (self.left_wal.doubt, self.left_wal.replayed) = (doubt(log), log.contains(REPLAYS));
    }

    /// An epoch ends here; its tree may live yet.
    pub(super) fn note_ending(&mut self, tenure: Tenure) {
        self.left_wal.ending = Some(tenure);
    }

    /// Nothing is left of a tree; `restarting`: of a restart in place.
    pub(super) fn note_wal_left(&mut self, restarting: bool) {
        let (doubt, replayed) = (self.left_wal.doubt.take(), std::mem::take(&mut self.left_wal.replayed));
        let ending = self.left_wal.ending.take();
        let tenure = self.durable.tenure.or(ending).filter(|t| t.phase != Phase::Granted);
        let Some(tenure) = tenure else { return };
        // What was said against it before a restart in place that didn't succeed is true still.
        let before = self.left_wal.wal.take().filter(|left| left.epoch == tenure.epoch).and_then(|left| left.doubt);
        let own = (restarting && replayed).then_some("its own recovery ended on it");
        self.left_wal.wal = Some(WalLeft { epoch: tenure.epoch, doubt: before.or(doubt).or(own) });
    }

    /// It became other WAL, or goes on.
    pub(super) fn forget_wal_left(&mut self) {
        self.left_wal = Left::default();
    }

    /// There is WAL here that a successor may ask for.
    pub fn has_wal_left(&self) -> bool {
        self.left_wal.wal.is_some()
    }

    /// … and nothing is said against that.
    pub fn gives_wal(&self) -> bool {
        self.left_wal.wal.as_ref().is_some_and(|left| left.doubt.is_none())
    }

    /// Whether the successor of `epoch` may read the WAL that is here.
    ///
    /// # Errors
    /// The request is for somebody else, PostgreSQL may still write, it has become other WAL, or something was wrong with it.
    pub fn may_be_read(&self, to: &Address, epoch: Epoch, system: u64) -> Result<(), String> {
        self.is_for_this(to, system)?;
        let left = self.left_wal.wal.as_ref().filter(|left| left.epoch == epoch);
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
            core::{Event, Postmaster, TaskEnd, tests},
            order::{Action, Source, StopMode},
        },
        domain::{ClusterId, EndCause, OnPrimaryCrash, TimelineId},
    };

    #[test]
    fn wal_of_which_something_was_said_is_doubted() {
        let doubted = |words: &str| doubt(words).is_some();
        assert!(!doubted("LOG:  starting PostgreSQL 15\nFATAL:  the database system is starting up"));
        assert!(!doubted("LOG:  terminating any other active server processes\nERROR:  division by zero"));
        for words in [
            "PANIC:  could not locate a valid checkpoint record",
            "PANIC:  could not write to file \"pg_wal/xlogtemp.1\": No space left on device",
            "ERROR:  could not read block 3 in file \"base/5/1\": Input/output error",
            "WARNING:  page verification failed, calculated checksum 1 but expected 2",
            "ERROR:  invalid page in block 7 of relation base/5/16384",
        ] {
            assert!(doubted(words), "{words}");
        }
    }

    #[test]
    fn a_restart_in_place_that_does_not_succeed_washes_no_doubt_off_and_takes_nothing_away() {
        let crashed = |log: &str| {
            let mut core = tests::primary();
            core.read_last_log(log);
            core.step(tests::gone(false), tests::now(60));
            core.step(tests::order(4, Action::RestartInPlace { timeline: TimelineId(2) }), tests::now(61));
            core
        };
        let failed = || Event::Done(TaskEnd::Failed { error: "no".to_owned(), harmless: false });
        let ends = |core: &mut Core| {
            core.step(failed(), tests::now(70));
            core.step(tests::order(4, Action::Stop { mode: StopMode::Immediate, keep_lease: false }), tests::now(80));
            asked(core, 4)
        };
        assert_eq!(ends(&mut crashed("LOG: fine")), Ok(()), "it was not even spawned");
        assert!(ends(&mut crashed("PANIC: no")).is_err());
        let again = |log: &str| {
            let mut core = crashed("LOG: fine");
            core.step(Event::Spawned { life: 2 }, tests::now(62));
            core.read_last_log(log);
            let gone = Postmaster::Gone { tree_empty: true, fenced: false, exit: "signal 11".to_owned() };
            core.step(Event::Guard { life: 2, postmaster: gone }, tests::now(63));
            core
        };
        assert_eq!(ends(&mut again("FATAL: no such directory")), Ok(()), "it never came to the WAL");
        assert!(ends(&mut again("LOG: redo starts at 0/3000028")).is_err(), "another would end on it as well");
    }

    /// It could not be stopped, so its epoch ended while it lived.
    #[test]
    fn what_an_epoch_leaves_that_ended_before_its_tree_did_may_be_read() {
        let mut core = tests::primary();
        let tenure = core.durable.tenure.expect("a tenure");
        core.end_tenure_of(tenure, (EndCause::Stuck, "it could not be stopped"), tests::now(60), &mut Vec::new());
        assert!(asked(&core, 4).is_err(), "it runs");
        core.step(tests::gone(true), tests::now(70));
        assert_eq!(asked(&core, 4), Ok(()));
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
        let source = Source { member: "n2".parse().unwrap(), host: "h".into(), port: 1, fork: None, named: None };
        core.step(tests::order(5, Action::Rewind(source)), tests::now(100));
        assert!(asked(&core, 4).is_err());
    }
}
