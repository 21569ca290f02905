//! When a member's data is of no use, and when it isn't.

use super::{
    super::{
        tests::{agent, at, facts, gone, now, order, standby},
        *,
    },
    *,
};
use crate::{
    agent::{
        core::lists_test::briefing,
        order::{Action, Source},
    },
    domain::{Briefing, TimelineHistory, TimelineId},
    postgres::Vitals,
};

const REMOVED: &str = "could not receive data from WAL stream: ERROR:  requested WAL segment 000000010000000000000003 has already been removed";
const PANIC: &str = "exit code 1, PANIC:  could not locate a valid checkpoint record";

fn source() -> Source {
    Source { member: "n2".parse().unwrap(), host: "h".into(), port: 1, fork: None, named: None }
}

fn idle(life: u64, replayed: u64) -> Event {
    let sight = Sight { in_recovery: true, wal_end: at(1, 100), replay_lsn: Lsn(replayed), ..Sight::default() };
    Event::Probed { life, result: Ok(Box::new(sight)) }
}

fn streams(life: u64) -> Event {
    let sight = Sight { in_recovery: true, wal_end: at(1, 100), streaming: true, ..Sight::default() };
    Event::Probed { life, result: Ok(Box::new(sight)) }
}

/// PostgreSQL said `words` at that time of its own.
fn says(life: u64, time: u64, words: &str) -> Event {
    let complaint = Complaint { line: format!("{time} FATAL:  {words}"), said: words.to_owned() };
    Event::Redo { life, vitals: Vitals { pid: 9, ..Vitals::default() }, words: Some(complaint) }
}

fn cause(core: &Core, ms: u64) -> Option<CopyCause> {
    core.cure(now(ms)).needs_copy.map(|need| need.cause)
}

fn follows(core: &mut Core, epoch: u64, ms: u64) {
    core.step(order(epoch, Action::StartStandby(Some(source()))), now(ms));
    core.step(Event::Done(TaskEnd::Succeeded), now(ms));
}

/// A standby that runs and streams from nobody, each five seconds with the same words in another line.
fn complaining(words: &str, until: u64) -> Core {
    let mut core = standby();
    follows(&mut core, 4, 100);
    for ms in (1_000..=until).step_by(1_000) {
        core.step(idle(1, 100), now(ms));
        core.step(says(1, ms / 5_000, words), now(ms));
    }
    core
}

#[test]
fn wal_that_the_primary_has_removed_is_believed_when_postgresql_says_so_again_and_again() {
    assert_eq!(cause(&complaining(REMOVED, 14_000), 14_000), None, "said twice more");
    let core = complaining(REMOVED, 16_000);
    assert_eq!(cause(&core, 16_000), Some(CopyCause::WalGone));
    assert!(
        core.problem().unwrap().ends_with("has already been removed; it is to be copied anew"),
        "{:?}",
        core.problem()
    );
    assert_eq!(core.cure(now(16_000)).needs_operator, None);
    assert_eq!(cause(&complaining("could not connect to the primary server: refused", 60_000), 60_000), None);
}

#[test]
fn wal_that_the_primary_has_removed_is_sought_at_other_members_before_a_copy_is_due() {
    let told = |core: &mut Core| {
        let switches = Vec::new();
        let lineage = Some(TimelineHistory { timeline: TimelineId(1), switches, ..TimelineHistory::default() });
        core.step(Event::Briefed(Box::new(Briefing { lineage, ..briefing(4, 9, &[]) })), now(900));
    };
    let asked = |until: u64| {
        let mut core = standby();
        told(&mut core);
        follows(&mut core, 4, 1_000);
        let mut asked = None;
        for ms in (2_000..=until).step_by(1_000) {
            core.step(idle(1, 100), now(ms));
            core.step(says(1, ms / 5_000, REMOVED), now(ms));
            asked = asked.or_else(|| core.borrows().map(|(from, end, _)| (ms, from.to_string(), end)));
        }
        (core, asked)
    };
    let (mut core, first) = asked(30_000);
    assert_eq!(first, Some((5_000, "n2".to_owned(), Lsn(100))), "said anew once");
    assert_eq!((core.borrows(), cause(&core, 30_000)), (None, None), "they are being asked");
    core.step(Event::Borrowed(0), now(30_000));
    assert_eq!((core.borrows(), cause(&core, 30_000)), (None, Some(CopyCause::WalGone)), "nobody has it");
    let (mut core, _) = asked(30_000);
    core.step(Event::Borrowed(16 << 20), now(30_000));
    assert_eq!(cause(&core, 30_000), None, "asking took long, and PostgreSQL has yet to take what came");
    for ms in (31_000..=46_000).step_by(1_000) {
        core.step(says(1, ms / 1_000, REMOVED), now(ms));
    }
    assert_eq!(cause(&core, 46_000), Some(CopyCause::WalGone), "it was of no use");
    let (mut core, _) = asked(6_000);
    core.step(Event::Borrowed(16 << 20), now(6_000));
    core.step(idle(1, 200), now(7_000));
    for ms in (8_000..=11_000).step_by(1_000) {
        core.step(says(1, ms / 1_000, REMOVED), now(ms));
    }
    assert!(core.borrows().is_some(), "it got on with what came, and more is gone");
}

#[test]
fn one_line_that_stays_the_last_says_little() {
    let mut core = standby();
    follows(&mut core, 4, 100);
    for ms in (1_000..=60_000).step_by(1_000) {
        core.step(idle(1, 100), now(ms));
        core.step(says(1, 0, REMOVED), now(ms));
    }
    assert_eq!(cause(&core, 60_000), None, "it may be of whom it followed before");
}

#[test]
fn who_streams_or_gets_on_or_follows_another_primary_needs_no_copy() {
    let mut core = complaining(REMOVED, 20_000);
    core.step(streams(1), now(21_000));
    assert_eq!(cause(&core, 21_000), None);
    let mut core = complaining(REMOVED, 20_000);
    core.step(idle(1, 101), now(21_000));
    assert_eq!(cause(&core, 21_000), None, "it got WAL from somewhere");
    let mut core = complaining(REMOVED, 20_000);
    follows(&mut core, 5, 21_000);
    assert_eq!(cause(&core, 21_000), None, "another primary may have it");
}

/// A start of number `life` after which PostgreSQL ends without an answer.
fn starts_in_vain(core: &mut Core, (life, ms): (u64, u64), exit: &str) {
    core.step(order(4, Action::StartStandby(Some(source()))), now(ms));
    core.step(Event::Spawned { life }, now(ms));
    core.step(Event::Guard { life, postmaster: Postmaster::Running { pid: 43 } }, now(ms));
    core.step(Event::Done(TaskEnd::Succeeded), now(ms));
    let exit = exit.to_owned();
    let end = Postmaster::Gone { tree_empty: true, fenced: false, exit };
    core.step(Event::Guard { life, postmaster: end }, now(ms + 10));
    core.step(Event::Surveyed { life, disk: facts(false) }, now(ms + 20));
}

fn stopped() -> Core {
    let mut core = standby();
    core.step(gone(false), now(20));
    core.step(Event::Surveyed { life: 1, disk: facts(false) }, now(30));
    core
}

#[test]
fn two_starts_that_end_by_what_is_in_the_files_are_enough() {
    let mut core = stopped();
    starts_in_vain(&mut core, (2, 100), PANIC);
    assert_eq!((cause(&core, 200), core.cure(now(200)).failed_starts), (None, 1));
    starts_in_vain(&mut core, (3, 1_000), PANIC);
    assert_eq!((cause(&core, 1_100), core.cure(now(1_100)).failed_starts), (Some(CopyCause::EndsEarly), 2));
    assert!(core.is_damaged(), "what is replaced is kept");
    assert_eq!(core.cure(now(1_100)).needs_operator, None);
}

#[test]
fn a_server_that_lets_nobody_in_for_what_is_in_its_files_is_not_waited_for() {
    let mut core = stopped();
    core.step(Event::Spawned { life: 2 }, now(100));
    core.step(Event::Guard { life: 2, postmaster: Postmaster::Running { pid: 43 } }, now(100));
    let refuses = |why: &str| Event::Probed { life: 2, result: Err(why.to_owned()) };
    let missing = "FATAL: could not open file \"global/pg_filenode.map\": No such file or directory";
    core.step(refuses(missing), now(1_000));
    core.step(refuses(missing), now(10_999));
    assert_eq!(cause(&core, 10_999), None);
    core.step(refuses(missing), now(11_000));
    assert_eq!(cause(&core, 11_000), Some(CopyCause::EndsEarly));
    core.step(refuses("FATAL: the database system is starting up"), now(12_000));
    assert_eq!(cause(&core, 12_000), None);
}

#[test]
fn what_lies_in_the_host_needs_an_operator_and_no_copy() {
    let mut core = stopped();
    let full = "exit code 1, FATAL:  could not write to file \"x\": No space left on device";
    starts_in_vain(&mut core, (2, 100), full);
    assert_eq!(core.cure(now(200)), CureView::default(), "once may be by chance");
    starts_in_vain(&mut core, (3, 1_000), full);
    starts_in_vain(&mut core, (4, 2_000), full);
    let view = core.cure(now(2_100));
    assert_eq!((view.needs_copy, view.failed_starts), (None, 0));
    let why = view.needs_operator.unwrap();
    assert!(why.starts_with("PostgreSQL did not start, 3 times in a row: ") && why.contains("No space left"), "{why}");
    // An answer ends the row.
    core.step(Event::Spawned { life: 5 }, now(3_000));
    core.step(Event::Guard { life: 5, postmaster: Postmaster::Running { pid: 43 } }, now(3_000));
    core.step(idle(5, 100), now(3_100));
    assert_eq!(core.cure(now(3_100)), CureView::default());
}

#[test]
fn who_is_killed_from_outside_counts_only_for_who_has_diverged() {
    let mut core = stopped();
    for life in 2..6 {
        starts_in_vain(&mut core, (life, life * 1_000), "signal 9");
    }
    let view = core.cure(now(10_000));
    assert_eq!((view.needs_copy, view.failed_starts), (None, 4));
    assert!(view.needs_operator.is_some());
}

#[test]
fn a_damaged_directory_is_read_twice_and_one_that_is_not_ours_is_left_alone() {
    let damaged = || Disk::Damaged("its checksum is wrong".into());
    let (mut core, _) = agent(Durable::default(), Found::Nothing, Some(damaged()));
    assert_eq!((core.state(), cause(&core, 0)), (PostgresState::Failed, None));
    assert_eq!(core.step(Event::Tick, now(4_999)), []);
    assert_eq!(core.step(Event::Tick, now(5_000)), [Effect::Survey { wal_end: true }]);
    core.step(Event::Surveyed { life: 1, disk: damaged() }, now(5_100));
    assert_eq!(cause(&core, 5_100), Some(CopyCause::Unreadable));
    let effects = core.step(order(4, Action::Clone(source())), now(5_200));
    assert!(effects.contains(&Effect::Begin(Task::Clone(source()))), "{effects:?}");

    let unusable = Disk::Unusable("/data is of PostgreSQL 14, the programs are of 15".into());
    let (core, _) = agent(Durable::default(), Found::Nothing, Some(unusable));
    let view = core.cure(now(60_000));
    assert_eq!(view.needs_copy, None);
    assert_eq!(view.needs_operator.as_deref(), Some("/data is of PostgreSQL 14, the programs are of 15"));
}

#[test]
fn a_directory_whose_wal_has_no_end_that_could_be_found_is_of_no_use() {
    let mut core = stopped();
    let unread = |error: &str| Event::WalEndUnread { life: 1, error: error.to_owned() };
    for _ in 0..9 {
        core.step(unread("running pg_waldump: Resource temporarily unavailable"), now(100));
    }
    assert_eq!(cause(&core, 100), None);
    for expected in [None, None, Some(CopyCause::Unreadable)] {
        core.step(unread("finding the end of WAL in /data: no segment"), now(200));
        assert_eq!(cause(&core, 200), expected);
    }
}

#[test]
fn a_copy_that_is_soon_of_no_use_again_is_not_replaced_at_once() {
    let mut core = stopped();
    starts_in_vain(&mut core, (2, 100), PANIC);
    starts_in_vain(&mut core, (3, 1_000), PANIC);
    core.step(order(4, Action::Clone(source())), now(2_000));
    core.step(Event::Done(TaskEnd::Succeeded), now(3_000));
    core.step(Event::Surveyed { life: 3, disk: facts(false) }, now(3_010));
    assert_eq!(core.cure(now(3_020)), CureView::default());
    starts_in_vain(&mut core, (4, 4_000), PANIC);
    starts_in_vain(&mut core, (5, 5_000), PANIC);
    let view = core.cure(now(5_100));
    assert_eq!(view.needs_copy, None);
    assert!(view.needs_operator.unwrap().starts_with("it was copied anew less than 10 min ago, and "));
    assert_eq!(cause(&core, 602_999), None);
    assert_eq!(cause(&core, 603_000), Some(CopyCause::EndsEarly), "once in ten minutes");
}

#[test]
fn a_rewind_that_could_never_succeed_is_tried_once() {
    let failures = |error: &str| {
        let mut core = stopped();
        core.step(order(4, Action::Rewind(source())), now(100));
        core.step(Event::Done(TaskEnd::Failed { error: error.to_owned(), harmless: false }), now(200));
        core.durable().rewind_failures
    };
    let changed_nothing =
        "pg_rewind failed and has changed nothing: pg_rewind ended with exit status: 1: pg_rewind: error: ";
    let missing = format!("{changed_nothing}could not find previous WAL record at 0/3000028");
    assert_eq!(failures(&missing), 2, "WAL back to the fork is gone");
    let hints = "target server needs to use either data checksums or \"wal_log_hints = on\"";
    assert_eq!(failures(&format!("{changed_nothing}{hints}")), 2);
    assert_eq!(failures("/data has a backup_label: it is an unfinished copy; clone it again"), 2);
    assert_eq!(failures(&format!("{changed_nothing}could not connect to server")), 1);
    let crashed =
        "/data is a standby that was not shut down cleanly; start it without upstream and stop it, or clone it again";
    assert_eq!(failures(crashed), 1, "it is recovered first");
}

#[test]
fn a_copy_in_vain_counts_but_while_a_method_is_left() {
    let at = |minutes: u64| Moment(Duration::from_secs(minutes * 60));
    let copied = |another| {
        let mut cure = Cure { copied: Some(at(1)), ..Cure::default() };
        cure.copied_by(CloneMethod::Pgbackrest, another);
        cure.replaced(at(1));
        cure.lately(at(2))
    };
    assert!(copied(false), "it is the last one: not again for ten minutes");
    assert!(!copied(true), "another method may do better, at once");
}
