//! Whole segment files of WAL that this member has removed. Other members of the same history still have them, byte for byte. What
//! comes is kept apart until it was looked at, and never takes the place of a file that is there.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{error::PostgresError, files, instance::Instance, waldump::segment_name};
use crate::domain::{
    Lsn, TimelineHistory, TimelineId,
    archive::{segment_start, timeline_of},
};

/// pg_waldump reads a segment of the usual size in a tenth of a second, and the largest in some.
const READ: Duration = Duration::from_secs(60);
/// Beside segments that are for a standby.
const READY: &str = "ready";
/// `XLogLongPageHeaderData`, at the beginning of a segment, and `XLogPageHeaderData` (xlog_internal.h).
const LONG_HEADER: usize = 40;
const HEADER: usize = 24;

/// One segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// In its name.
    pub timeline: TimelineId,
    /// Its first byte.
    pub start: Lsn,
    /// Its size.
    pub bytes: u64,
}

impl Segment {
    /// The segment with that number, counted from the beginning of WAL, on `history`. A segment in which a timeline ended is read
    /// from the file of the one that goes on (xlog.c, `XLogFileReadAnyTLI`; pg_rewind's parsexlog.c).
    pub fn on(history: &TimelineHistory, number: u64, bytes: u64) -> Self {
        let start = Lsn(number * bytes);
        let goes_on = history.switches.iter().find(|switch| switch.end.0 >= start.0 + bytes);
        Self { timeline: goes_on.map_or(history.timeline, |switch| switch.timeline), start, bytes }
    }

    /// The byte after its last.
    pub fn end(&self) -> Lsn {
        Lsn(self.start.0 + self.bytes)
    }

    /// The name of its file.
    pub fn name(&self) -> String {
        segment_name(self.bytes, self.timeline, self.start.0 / self.bytes)
    }

    fn wrong(&self, problem: impl Into<String>) -> PostgresError {
        PostgresError::Segment { name: self.name(), problem: problem.into() }
    }
}

impl Instance {
    /// It is among this member's WAL.
    pub fn has_segment(&self, segment: Segment) -> bool {
        self.pg_wal().join(segment.name()).exists()
    }

    /// Where segments are kept apart.
    fn lent(&self) -> PathBuf {
        self.beside_wal(".wal-lent", ".lent")
    }

    /// Where they are until they were looked at.
    fn lent_unseen(&self) -> PathBuf {
        self.lent().join("unseen")
    }

    /// Something is kept apart, whole or not.
    pub fn keeps_lent(&self) -> bool {
        self.lent().exists()
    }

    /// What is lent is for a standby: its `restore_command` gets it.
    pub fn lends(&self) -> bool {
        self.lent().join(READY).exists()
    }

    /// A new, empty file for what another member gives of it.
    ///
    /// # Errors
    /// It can't be made.
    pub fn lend_into(&self, segment: Segment) -> Result<File, PostgresError> {
        let dir = self.lent_unseen();
        fs::create_dir_all(&dir).map_err(PostgresError::file("creating", &dir))?;
        let path = dir.join(segment.name());
        // Not emptied: what a killed agent left here may be among this member's WAL by now, under a second name.
        files::remove(&path)?;
        File::create_new(&path).map_err(PostgresError::file("creating", &path))
    }

    /// What another member gave is such a segment of this system's history: each page says so, and each record has the
    /// right checksum, but for one that goes on in the next segment.
    ///
    /// # Errors
    /// It is not, or it can't be read.
    pub async fn check_lent(
        &self,
        segment: Segment,
        system: u64,
        history: &TimelineHistory,
    ) -> Result<(), PostgresError> {
        let (path, history) = (self.lent_unseen().join(segment.name()), history.clone());
        files::reading(move || check_pages(&path, segment, system, &history)).await?;
        self.checkpoint_in(&self.lent_unseen(), segment, segment.end()).await.map(drop)
    }

    /// Puts it among this member's WAL, if there is no such file.
    ///
    /// # Errors
    /// It can't be written to the disk, or not be linked.
    pub fn keep_lent(&self, segment: Segment) -> Result<(), PostgresError> {
        let (path, place) = (self.lent_unseen().join(segment.name()), self.pg_wal().join(segment.name()));
        files::sync(&path)?;
        match fs::hard_link(&path, &place) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(PostgresError::file("linking", &place)(error));
            }
            Ok(()) | Err(_) => {}
        }
        files::sync(&self.pg_wal())?;
        files::remove(&path).map(drop)
    }

    /// Puts it where a standby's `restore_command` finds it, once [`Instance::lend`] was called.
    ///
    /// # Errors
    /// It can't be written to the disk, or not be renamed.
    pub fn offer_lent(&self, segment: Segment) -> Result<(), PostgresError> {
        let (path, place) = (self.lent_unseen().join(segment.name()), self.lent().join(segment.name()));
        files::sync(&path)?;
        fs::rename(&path, &place).map_err(PostgresError::file("putting in place", &place))?;
        files::sync(&self.lent())
    }

    /// From the next change of the configuration on a standby takes what was offered.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn lend(&self) -> Result<(), PostgresError> {
        files::ensure(&self.lent().join(READY), "")
    }

    /// Where a standby finds what is lent to it; `None`: nothing is.
    pub(super) fn lent_to_standby(&self) -> Option<PathBuf> {
        self.lends().then(|| self.lent())
    }

    /// Removes what is kept apart.
    ///
    /// # Errors
    /// It can't be removed.
    pub async fn forget_lent(&self) -> Result<(), PostgresError> {
        files::remove_tree(&self.lent()).await
    }

    /// Of the last checkpoint whose record lies in `segment`, before `until`: where recovery from it begins. `None`: there is none.
    ///
    /// # Errors
    /// Some record in it is not as it was written.
    pub async fn last_checkpoint(&self, segment: Segment, until: Lsn) -> Result<Option<Lsn>, PostgresError> {
        self.checkpoint_in(&self.pg_wal(), segment, until).await
    }

    async fn checkpoint_in(&self, dir: &Path, segment: Segment, until: Lsn) -> Result<Option<Lsn>, PostgresError> {
        let helper = self.helper("pg_waldump", READ).args(["-r", "XLOG"]).arg("-p").arg(dir);
        let helper = helper.arg("-s").arg(segment.start.to_string()).arg("-e").arg(until.to_string());
        let mut found = None;
        let finished = helper.arg(segment.name()).run_any(|line| found = redo_of(line).or(found)).await?;
        // One record can be larger than a segment.
        let only_a_part = finished.tail.contains("could not find a valid record after");
        match finished.status.success() || only_a_part {
            true => Ok(found),
            false => Err(segment.wrong(finished.tail)),
        }
    }

    /// After a rewind: recovery begins at the last checkpoint before the fork, and pg_rewind has removed WAL that its source has not
    /// (before version 17). What was set aside of it is put back, as far as recovery needs it and it is shared.
    ///
    /// # Errors
    /// `pg_control`, a history or a directory can't be read, or a file not be linked.
    pub(super) fn put_back_shared_wal(&self) -> Result<(), PostgresError> {
        let (control, aside, wal) = (self.control_data()?, self.wal_aside(), self.pg_wal());
        let history = self.history(control.timeline)?;
        let begins = self.backup_redo().unwrap_or(control.redo);
        for entry in fs::read_dir(&aside).map_err(PostgresError::file("reading", &aside))? {
            let name = entry.map_err(PostgresError::file("reading", &aside))?.file_name();
            let Some(name) = name.to_str().filter(|name| name.len() == 24) else { continue };
            let Some((start, timeline)) = segment_start(name, control.wal_segment_bytes).zip(timeline_of(name)) else {
                continue;
            };
            let end = Lsn(start.0 + control.wal_segment_bytes);
            let shared = history.end_of(timeline).is_some_and(|until| end <= until);
            let place = wal.join(name);
            if shared && end > begins && !place.exists() {
                fs::hard_link(aside.join(name), &place).map_err(PostgresError::file("linking", &place))?;
                // Whoever wrote it has archived it, or the archive is mended after a promotion.
                let done = wal.join("archive_status").join(format!("{name}.done"));
                File::create(&done).map_err(PostgresError::file("creating", &done))?;
            }
        }
        files::sync(&wal)
    }

    /// Where recovery begins, by `backup_label`.
    fn backup_redo(&self) -> Option<Lsn> {
        let label = fs::read_to_string(self.data_dir().join("backup_label")).ok()?;
        let value = label.lines().find_map(|line| line.strip_prefix("START WAL LOCATION:"))?;
        value.split_whitespace().next()?.parse().ok()
    }
}

/// Of a line of pg_waldump for a checkpoint: where recovery from it begins.
fn redo_of(line: &str) -> Option<Lsn> {
    let (_, desc) = line.split_once(" desc: ")?;
    let of = |kind: &str| desc.strip_prefix(kind)?.strip_prefix(" redo ");
    let rest = of("CHECKPOINT_ONLINE").or_else(|| of("CHECKPOINT_SHUTDOWN"))?;
    rest.split(';').next()?.trim().parse().ok()
}

/// Every page says which system, timeline and position it is of. After a switch of segments there are only zeros.
fn check_pages(path: &Path, segment: Segment, system: u64, history: &TimelineHistory) -> Result<(), PostgresError> {
    let file = File::open(path).map_err(PostgresError::file("opening", path))?;
    let length = file.metadata().map_err(PostgresError::file("reading", path))?.len();
    let mut first = [0; LONG_HEADER];
    file.read_exact_at(&mut first, 0).map_err(PostgresError::file("reading", path))?;
    let (size, page) = (number(&first, 32, 4), number(&first, 36, 4));
    if length != segment.bytes || size != segment.bytes || page == 0 || !size.is_multiple_of(page) {
        return Err(segment.wrong(format!("{length} bytes, of segments of {size} in pages of {page}")));
    }
    if number(&first, 24, 8) != system {
        return Err(segment.wrong(format!("it is of system {}", number(&first, 24, 8))));
    }
    let (mut header, mut void) = ([0; HEADER], false);
    for at in (0..length).step_by(usize::try_from(page).unwrap_or(usize::MAX)) {
        file.read_exact_at(&mut header, at).map_err(PostgresError::file("reading", path))?;
        let zeros = header.iter().all(|byte| *byte == 0);
        if zeros && at > 0 {
            void = true;
            continue;
        }
        let timeline = TimelineId(u32::try_from(number(&header, 4, 4)).unwrap_or(0));
        let ours = history.contains(timeline) && timeline <= segment.timeline;
        if void || header[..2] != first[..2] || !ours || number(&header, 8, 8) != segment.start.0 + at {
            return Err(segment.wrong(format!("its page at {} is not of it", Lsn(segment.start.0 + at))));
        }
    }
    Ok(())
}

fn number(header: &[u8], from: usize, bytes: usize) -> u64 {
    header[from..from + bytes].iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::domain::TimelineSwitch;

    const BYTES: u64 = 1 << 20;
    const PAGE: u64 = 8192;
    const SYSTEM: u64 = 77;

    fn history() -> TimelineHistory {
        let switch = |(timeline, end)| TimelineSwitch { timeline: TimelineId(timeline), end: Lsn(end) };
        let switches = [(1, 3 * BYTES), (2, 5 * BYTES + 100)].map(switch).into();
        TimelineHistory { timeline: TimelineId(4), switches, ..TimelineHistory::default() }
    }

    #[test]
    fn a_segment_is_sought_on_the_timeline_that_goes_on_in_it() {
        let timeline = |number| Segment::on(&history(), number, BYTES).timeline.0;
        assert_eq!([2, 3, 4, 5, 6].map(timeline), [1, 2, 2, 4, 4]);
        let segment = Segment::on(&history(), 4, BYTES);
        assert_eq!((segment.name().as_str(), segment.end()), ("000000020000000000000004", Lsn(5 * BYTES)));
    }

    fn page(at: u64, timeline: u32) -> Vec<u8> {
        let mut page = vec![0; PAGE as usize];
        page[..2].copy_from_slice(&0xD110_u16.to_le_bytes());
        page[4..8].copy_from_slice(&timeline.to_le_bytes());
        page[8..16].copy_from_slice(&at.to_le_bytes());
        page
    }

    fn whole(segment: Segment) -> Vec<u8> {
        let mut all: Vec<u8> =
            (segment.start.0..segment.end().0).step_by(PAGE as usize).flat_map(|at| page(at, 2)).collect();
        all[24..32].copy_from_slice(&SYSTEM.to_le_bytes());
        all[32..36].copy_from_slice(&(BYTES as u32).to_le_bytes());
        all[36..40].copy_from_slice(&(PAGE as u32).to_le_bytes());
        all
    }

    #[test]
    fn what_is_of_another_system_timeline_or_place_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let segment = Segment::on(&history(), 4, BYTES);
        let check = |bytes: &[u8]| {
            let path = dir.path().join(segment.name());
            fs::write(&path, bytes).unwrap();
            check_pages(&path, segment, SYSTEM, &history()).map_err(|error| error.to_string())
        };
        let with = |at: usize, bytes: &[u8]| {
            let mut all = whole(segment);
            all[at..at + bytes.len()].copy_from_slice(bytes);
            check(&all)
        };
        let third = 3 * PAGE as usize;
        check(&whole(segment)).unwrap();
        with(third, &vec![0; BYTES as usize - third]).unwrap();
        with(third + 4, &1_u32.to_le_bytes()).unwrap();
        assert!(with(third, &[0; HEADER]).unwrap_err().contains("is not of it"), "a page in the middle is lost");
        assert!(with(24, &[1]).unwrap_err().contains("of system"));
        for timeline in [3_u32, 4] {
            assert!(with(third + 4, &timeline.to_le_bytes()).unwrap_err().contains("is not of it"));
        }
        assert!(with(third + 8, &page(0, 2)[8..16]).unwrap_err().contains("0/406000 is not of it"));
        assert!(check(&whole(segment)[..third]).unwrap_err().contains("bytes"), "cut off");
    }

    #[test]
    fn a_checkpoint_says_where_recovery_begins() {
        let line = |desc: &str| {
            redo_of(&format!(
                "rmgr: XLOG len (rec/tot): 114/ 114, tx: 0, lsn: 0/03000060, prev 0/03000028, desc: {desc}"
            ))
        };
        assert_eq!(line("CHECKPOINT_ONLINE redo 0/3000028; tli 2; prev tli 2"), Some(Lsn(0x300_0028)));
        assert_eq!(line("CHECKPOINT_SHUTDOWN redo 0/3000060; tli 2; shutdown"), Some(Lsn(0x300_0060)));
        assert_eq!(line("CHECKPOINT_REDO wal_level replica"), None);
    }
}
