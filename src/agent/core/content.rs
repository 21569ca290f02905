//! When the first data directory of a cluster can't be made.

use std::time::Duration;

use super::{Core, Disk, Now, Task, TaskEnd};
use crate::domain::CONTENT_TRIED;

/// So begins what is said of a directory that is to be taken over and is in use.
pub const TO_BE_STOPPED: &str = "a PostgreSQL that is to be taken over runs in ";
/// The same of a standby that can't be taken in as it is.
pub const TO_BE_TAKEN_IN: &str = "the standby that is to be taken in, in ";
/// So begins why nothing replaces such a directory: [`crate::postgres::TakeInError::Refused`].
pub const LEFT_ALONE: &str = "it is left alone: ";
/// Then it is looked at again: an operator may have moved it away.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Tries in a row that failed, and why the last one did. In memory: an agent that is started again reads its configuration
/// anew, and begins to count anew.
#[derive(Debug, Default)]
pub(super) struct Content {
    failures: u64,
    error: String,
    standby: Standby,
    /// It was looked at.
    judged: bool,
    /// Why nothing replaces it.
    left_alone: Option<String>,
}

/// What becomes of a data directory that somebody else's standby has left here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Standby {
    /// There is none.
    #[default]
    None,
    /// It is looked at, and taken in as it lies.
    TakenIn,
    /// It could not be proven to be the primary's: it is copied anew, if that is still so when the copy begins.
    Copied,
}

impl Content {
    /// Where a copy is asked for, what is there is taken in first.
    pub(super) fn takes_in(&self) -> bool {
        self.standby == Standby::TakenIn
    }

    /// It was not looked at since the agent started, or is left alone.
    pub(super) fn waits_for_a_look(&self) -> bool {
        self.takes_in() && (!self.judged || self.left_alone.is_some())
    }

    pub(super) fn is_not_taken_in(&self) -> bool {
        self.standby == Standby::Copied
    }
}

impl Core {
    /// Whether a standby of somebody else's lies here, that is to be taken in.
    pub fn take_standby_in(&mut self, does: bool) {
        self.content.standby = if does { Standby::TakenIn } else { Standby::None };
    }

    pub(super) fn content_ended(&mut self, task: &Task, end: &TaskEnd, now: Now) {
        if matches!(task, Task::TakeIn(_)) {
            self.content.judged = true;
            self.content.left_alone = match end {
                TaskEnd::Failed { error, .. } if error.starts_with(LEFT_ALONE) => {
                    let kind = "the standby that was to be taken in is not one of the primary's";
                    Some(format!("{kind}: {error}"))
                }
                TaskEnd::Failed { .. } | TaskEnd::Succeeded => None,
            };
        }
        match (task, end) {
            (Task::TakeIn(_), TaskEnd::Succeeded) => {
                self.content.standby = Standby::None;
                self.durable.clone_failures = 0;
            }
            (Task::TakeIn(_), TaskEnd::Failed { harmless: true, .. }) => self.content.standby = Standby::Copied,
            // As a copy that failed: tried again, and not for ever without a pause.
            (Task::TakeIn(_), TaskEnd::Failed { .. }) => {
                self.durable.clone_failures += 1;
                self.clone_failed = Some(now.moment);
            }
            (Task::Clone(_), TaskEnd::Succeeded) => self.content.standby = Standby::None,
            // What is there may have become another: it is looked at again before anything replaces it.
            (Task::Clone(_), TaskEnd::Failed { .. }) if self.content.is_not_taken_in() => {
                self.content.standby = Standby::TakenIn;
            }
            (Task::Initdb, TaskEnd::Succeeded) => self.content = Content::default(),
            (Task::Initdb, TaskEnd::Failed { error, .. }) => {
                self.content.failures += 1;
                self.content.error.clone_from(error);
            }
            _ => {}
        }
    }

    /// Somebody may just be stopping what is to be taken over, with clients that wait.
    pub(super) fn content_waits(&self) -> Option<Duration> {
        let waits = matches!(&self.disk, Some(Disk::Unusable(why)) if [TO_BE_STOPPED, TO_BE_TAKEN_IN].iter().any(|words| why.starts_with(words)));
        waits.then_some(Duration::from_millis(500))
    }

    /// What may be data that nobody else has is an operator's.
    pub(super) fn left_alone(&self) -> Option<String> {
        self.content.left_alone.clone()
    }

    /// Making it may take hours, and its reason lies in what an operator has written: it is not tried for ever.
    pub(super) fn content_given_up(&self) -> Option<String> {
        let Content { failures, error, .. } = &self.content;
        (*failures >= CONTENT_TRIED).then(|| {
            format!(
                "the first data directory could not be made, {failures} times in a row: {error}; correct what it is made from \
                 ([bootstrap] in the configuration) and restart the agent"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::{
        core::{
            Effect, Event, Found,
            tests::{agent, now, order},
        },
        order::{Action, Source},
        store::Durable,
    };

    #[test]
    fn what_is_taken_in_is_copied_only_when_nothing_else_helps() {
        let source = || Source { member: "b".parse().unwrap(), host: "h".into(), port: 1, fork: None, named: None };
        let asked = |core: &mut Core, ms| {
            let out = core.step(order(1, Action::Clone(source())), now(ms));
            out.into_iter().find_map(|effect| match effect {
                Effect::Begin(task) => Some(task),
                _ => None,
            })
        };
        let ends = |core: &mut Core, ms, error: Option<bool>| {
            let failed = |harmless| TaskEnd::Failed { error: "no".into(), harmless };
            core.step(Event::Done(error.map_or(TaskEnd::Succeeded, failed)), now(ms));
            core.step(Event::Surveyed { life: 1, disk: Disk::NoData }, now(ms));
        };
        let (mut core, _) = agent(Durable::default(), Found::Nothing, Some(Disk::NoData));
        core.take_standby_in(true);
        for ms in [100, 200] {
            assert_eq!(asked(&mut core, ms), Some(Task::TakeIn(source())), "the primary did not answer: again");
            ends(&mut core, ms + 10, Some(false));
        }
        assert_eq!((core.durable().clone_failures, core.copy_plan().not_taken_in), (2, false));
        assert_eq!(asked(&mut core, 300), Some(Task::TakeIn(source())));
        ends(&mut core, 310, Some(true));
        assert_eq!(asked(&mut core, 400), Some(Task::Clone(source())), "it can't be proven to be the primary's");
        assert!(core.copy_plan().not_taken_in, "it may be replaced");
        ends(&mut core, 410, Some(false));
        assert!(!core.copy_plan().not_taken_in, "the verdict was for that copy only");
        core.clone_failed = None;
        assert_eq!(asked(&mut core, 420), Some(Task::TakeIn(source())), "it may be the primary's by now");
        ends(&mut core, 430, Some(true));
        assert_eq!(asked(&mut core, 440), Some(Task::Clone(source())));
        ends(&mut core, 450, None);
        assert_eq!((core.durable().clone_failures, core.copy_plan().not_taken_in), (0, false));

        let (mut core, _) = agent(Durable::default(), Found::Nothing, Some(Disk::NoData));
        core.take_standby_in(true);
        assert_eq!(asked(&mut core, 100), Some(Task::TakeIn(source())));
        ends(&mut core, 110, None);
        assert_eq!(asked(&mut core, 200), Some(Task::Clone(source())), "once it is ours nothing is taken in any more");
        assert!(!core.copy_plan().not_taken_in);
    }

    #[test]
    fn what_is_left_alone_is_an_operators_until_it_is_gone() {
        let source = || Source { member: "b".parse().unwrap(), host: "h".into(), port: 1, fork: None, named: None };
        let (mut core, _) = agent(Durable::default(), Found::Nothing, Some(Disk::NoData));
        core.take_standby_in(true);
        let tried = |core: &mut Core, ms, end: TaskEnd| {
            core.step(order(1, Action::Clone(source())), now(ms));
            core.step(Event::Done(end), now(ms + 1));
            core.step(Event::Surveyed { life: 1, disk: Disk::NoData }, now(ms + 1));
        };
        let failed = |error: &str, harmless| TaskEnd::Failed { error: error.into(), harmless };
        tried(&mut core, 100, failed("the primary could not be asked", false));
        assert_eq!(core.cure(now(110)).needs_operator, None, "that may be over in a moment");
        for ms in [200, 300, 400, 500] {
            tried(&mut core, ms, failed("it is left alone: it is newer", false));
        }
        assert_eq!(core.durable().clone_failures, 5, "no order comes any more");
        let told = core.cure(now(600)).needs_operator.unwrap();
        assert!(told.ends_with("not one of the primary's: it is left alone: it is newer"), "{told}");
        let half_a_minute = now(501 + 30_000);
        core.step(Event::Tick, half_a_minute);
        assert_eq!(core.durable().clone_failures, 4, "it is looked at again");
        // Of an agent that is started anew.
        let durable = Durable { clone_failures: 5, ..Durable::default() };
        let (mut again, _) = agent(durable, Found::Nothing, Some(Disk::NoData));
        again.take_standby_in(true);
        again.step(Event::Tick, now(60_000));
        assert_eq!(again.durable().clone_failures, 4, "nobody knows the reason before it was looked at");

        tried(&mut core, 31_000, failed("nothing is there that could be taken in", true));
        assert_eq!(core.cure(now(31_010)).needs_operator, None, "it was moved away");
    }

    #[test]
    fn the_first_data_directory_is_not_tried_for_ever() {
        let (mut core, _) = agent(Durable::default(), Found::Nothing, Some(Disk::NoData));
        let begun = |out: &[Effect]| out.iter().any(|effect| matches!(effect, Effect::Begin(Task::Initdb)));
        let failed = || TaskEnd::Failed { error: "no such backup".into(), harmless: false };
        for ms in [100, 200, 300] {
            assert_eq!(core.cure(now(ms)).needs_operator, None);
            assert!(begun(&core.step(order(0, Action::Initdb), now(ms))));
            core.step(Event::Done(failed()), now(ms));
            core.step(Event::Surveyed { life: 1, disk: Disk::NoData }, now(ms));
        }
        let why = core.cure(now(400)).needs_operator.unwrap();
        assert!(why.contains("3 times in a row: no such backup"), "{why}");
        assert!(!begun(&core.step(order(0, Action::Initdb), now(400))));
    }
}
