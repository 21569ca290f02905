//! What every host can apply. A manager ends when it reads a command it doesn't know, so a command that came with a
//! later version waits until every host has told that it knows it; from then on the log itself says so, and a host
//! that is away holds nothing up.

use std::{collections::BTreeSet, fmt};

use super::{Situation, Verdict};
use crate::{
    domain::{Format, MemberId},
    state::Kind,
};

/// A host that might end when it reads a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooOld {
    /// Whose manager.
    pub member: MemberId,
    /// What it told; `None` when it was not heard of lately.
    pub knows: Option<Format>,
    /// What the command takes.
    pub needed: Format,
}

impl fmt::Display for TooOld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { member, knows, needed } = self;
        match knows {
            Some(knows) => write!(
                f,
                "{member} runs a version that knows format {knows}, format {needed} is needed, and would end when it reads \
                 this; upgrade it, or remove it"
            ),
            None => write!(
                f,
                "{member} was not heard of lately and might run a version that ends when it reads this (format {needed} is \
                 needed); start it, or remove it"
            ),
        }
    }
}

/// Whoever reads the log: the members, and voters that are about to go.
fn readers(s: &Situation<'_>) -> BTreeSet<MemberId> {
    let voters = s.membership().halves.into_iter().flatten();
    voters.chain(s.state.members.keys().cloned()).collect()
}

/// Whether a command of format `needed` may be proposed.
///
/// # Errors
/// The first host that might end when it reads it.
pub fn gate(s: &Situation<'_>, needed: Format) -> Result<(), TooOld> {
    let in_use = s.state.format >= needed;
    let reason = |member: MemberId| {
        let knows = s.fresh(&member).map(|heard| heard.format);
        let fits = knows.map_or(in_use, |knows| knows >= needed);
        (!fits).then_some(TooOld { member, knows, needed })
    };
    readers(s).into_iter().find_map(reason).map_or(Ok(()), Err)
}

/// Rule 495.
pub fn note(s: &Situation<'_>) -> Option<Verdict> {
    s.state.identity.as_ref().filter(|_| s.state.format < Format::NEWEST)?;
    let formats: Option<Vec<Format>> = readers(s).iter().map(|m| s.fresh(m).map(|heard| heard.format)).collect();
    let format = formats?.into_iter().min()?.min(Format::NEWEST);
    (format > s.state.format).then_some(Verdict::Propose(Kind::NoteFormat { format }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::{Bench, id};

    const NEEDED: Format = Format::SETTINGS;

    fn bench(formats: &[(&str, u32)]) -> Bench {
        let mut bench = Bench::new("granted a open 2");
        for (member, format) in formats {
            bench = bench.says(member, "standby 2:80");
            bench.seen.get_mut(&id(member)).unwrap().format = Format(*format);
        }
        bench
    }

    fn refusal(bench: &Bench) -> String {
        gate(&bench.situation(), NEEDED).unwrap_err().to_string()
    }

    #[test]
    fn a_command_of_a_later_version_waits_until_every_host_knows_it() {
        let older = bench(&[("a", 2), ("b", 1), ("c", 2)]);
        assert_eq!(
            refusal(&older),
            "b runs a version that knows format 1, format 2 is needed, and would end when it reads this; upgrade it, or \
             remove it"
        );
        assert_eq!(note(&older.situation()), None);
        assert!(gate(&older.situation(), Format::FIRST).is_ok(), "what every version knows is never held up");

        let away = bench(&[("a", 2), ("b", 2)]);
        assert_eq!(
            refusal(&away),
            "c was not heard of lately and might run a version that ends when it reads this (format 2 is needed); start \
             it, or remove it"
        );
        assert_eq!(note(&away.situation()), None);

        let all = bench(&[("a", 2), ("b", 2), ("c", 2)]);
        assert!(gate(&all.situation(), NEEDED).is_ok());
        assert_eq!(note(&all.situation()), Some(Verdict::Propose(Kind::NoteFormat { format: NEEDED })));
    }

    #[test]
    fn once_noted_a_host_that_is_away_holds_nothing_up_and_one_that_went_back_does() {
        let mut away = bench(&[("a", 2), ("b", 2)]);
        away.state.format = NEEDED;
        assert!(gate(&away.situation(), NEEDED).is_ok());
        let mut back = bench(&[("a", 2), ("b", 2), ("c", 1)]);
        back.state.format = NEEDED;
        assert!(refusal(&back).starts_with("c runs a version"));
        assert_eq!(note(&back.situation()), None);
    }

    #[test]
    fn a_voter_that_is_about_to_go_reads_the_log_still() {
        let mut bench = bench(&[("a", 2), ("b", 2), ("c", 2)]);
        bench.state.members.remove(&id("c"));
        bench.seen.get_mut(&id("c")).unwrap().format = Format::FIRST;
        assert!(refusal(&bench).starts_with("c runs a version"));
        assert_eq!(note(&bench.situation()), None);
    }

    #[test]
    fn a_cluster_that_is_not_founded_notes_nothing() {
        let mut bench = bench(&[("a", 2), ("b", 2), ("c", 2)]);
        bench.state.identity = None;
        assert_eq!(note(&bench.situation()), None);
    }
}
