//! How archiving goes, as text and as JSON.

use serde::Serialize;

use crate::rpc::v1::{Archive, MemberStatus};

/// One line for each host that archives or takes from the archive.
pub(super) fn lines(members: &[MemberStatus]) -> String {
    let line = |member: &MemberStatus| {
        let archive = member.archive.as_ref()?;
        let puts = archive.on.then(|| {
            let last = if archive.last_archived.is_empty() { "nothing yet" } else { &archive.last_archived };
            let state = if archive.failing_ms.is_some() { "fails" } else { "works" };
            format!("{state}, last {last}, {} files wait ({} MiB)", archive.waiting, archive.waiting_bytes >> 20)
        });
        let gets = (archive.restored > 0)
            .then(|| format!("{} files taken from the archive, last {}", archive.restored, archive.last_restored));
        let told: Vec<String> = puts.into_iter().chain(gets).collect();
        (!told.is_empty()).then(|| format!("  {}: {}\n", member.member, told.join("; ")))
    };
    let lines: String = members.iter().filter_map(line).collect();
    if lines.is_empty() { lines } else { format!("\nArchive\n{lines}") }
}

#[derive(Serialize)]
pub(super) struct ArchiveJson<'a> {
    on: bool,
    failing: bool,
    failing_ms: Option<u64>,
    failed: u64,
    last_failed: Option<&'a str>,
    last_archived: Option<&'a str>,
    said: Option<&'a str>,
    waiting_files: u64,
    waiting_bytes: u64,
    falls_behind: bool,
    wants_restart: bool,
    restored_files: u64,
    last_restored: Option<&'a str>,
    seeks_ms: Option<u64>,
}

pub(super) fn json(archive: &Archive) -> ArchiveJson<'_> {
    ArchiveJson {
        on: archive.on,
        failing: archive.failing_ms.is_some(),
        failing_ms: archive.failing_ms,
        failed: archive.failed,
        last_failed: super::known(&archive.last_failed),
        last_archived: super::known(&archive.last_archived),
        said: super::known(&archive.said),
        waiting_files: archive.waiting,
        waiting_bytes: archive.waiting_bytes,
        falls_behind: archive.much,
        wants_restart: archive.wants_restart,
        restored_files: archive.restored,
        last_restored: super::known(&archive.last_restored),
        seeks_ms: archive.seeks_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_archive_has_no_line() {
        let of = |archive| MemberStatus { member: "n1".into(), archive, ..MemberStatus::default() };
        assert_eq!(lines(&[of(None)]), "");
        let fails =
            Archive { on: true, failing_ms: Some(5), waiting: 3, waiting_bytes: 48 << 20, ..Archive::default() };
        assert_eq!(lines(&[of(Some(fails))]), "\nArchive\n  n1: fails, last nothing yet, 3 files wait (48 MiB)\n");
        let takes = Archive { restored: 2, last_restored: "0001".into(), ..Archive::default() };
        assert_eq!(lines(&[of(Some(takes))]), "\nArchive\n  n1: 2 files taken from the archive, last 0001\n");
    }
}
