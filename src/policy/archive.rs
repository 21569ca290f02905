//! A primary whose archive takes nothing, or too little: WAL that waits for it fills the disk in the end, and no backup can be
//! brought beyond the last file that got there. Nothing that is done by itself would help, so it is said, long before.

use super::{Hold, Situation, Verdict};

/// Rule 274.
pub fn falls_behind(s: &Situation<'_>) -> Option<Verdict> {
    let (_, member) = s.state.open_primary()?;
    let why = s.agent(member)?.archive.complaints();
    (!why.is_empty()).then(|| Verdict::Hold(Hold::Archive { member: member.clone(), why }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::Bench;

    fn told(primary: &str, standby: &str) -> Option<String> {
        let bench = Bench::new("granted a open 2").says("a", &format!("primary 2:500 lease=1 {primary}"));
        let bench = bench.says("b", &format!("standby 2:500 upstream=a {standby}"));
        falls_behind(&bench.situation()).map(|verdict| match verdict {
            Verdict::Hold(hold) => hold.to_string(),
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn of_the_primary_it_is_said_and_nothing_is_done() {
        assert_eq!(told("archive=fine", ""), None);
        assert_eq!(told("", "archive=failing"), None, "a standby archives nothing");
        assert_eq!(
            told("archive=behind", "").as_deref(),
            Some("a: archiving falls behind: 40 files of WAL wait (640 MB), more than archive_backlog_warn")
        );
        assert!(told("archive=failing", "").unwrap_or_default().starts_with("a: archiving fails for 30 s"));
    }
}
