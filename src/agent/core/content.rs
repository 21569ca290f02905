//! When the first data directory of a cluster can't be made.

use std::time::Duration;

use super::{Core, Disk, Task, TaskEnd};
use crate::domain::CONTENT_TRIED;

/// So begins what is said of a directory that is to be taken over and is in use.
pub const TO_BE_STOPPED: &str = "a PostgreSQL that is to be taken over runs in ";

/// Tries in a row that failed, and why the last one did. In memory: an agent that is started again reads its configuration
/// anew, and begins to count anew.
#[derive(Debug, Default)]
pub(super) struct Content {
    failures: u64,
    error: String,
}

impl Core {
    pub(super) fn content_ended(&mut self, task: &Task, end: &TaskEnd) {
        match (task, end) {
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
        let waits = matches!(&self.disk, Some(Disk::Unusable(why)) if why.starts_with(TO_BE_STOPPED));
        waits.then_some(Duration::from_millis(500))
    }

    /// Making it may take hours, and its reason lies in what an operator has written: it is not tried for ever.
    pub(super) fn content_given_up(&self) -> Option<String> {
        let Content { failures, error } = &self.content;
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
        order::Action,
        store::Durable,
    };

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
