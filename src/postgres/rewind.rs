//! Takes a diverged data directory back to where it parted from another member's, with `pg_rewind`.
//!
//! While `<data_dir>.rewinding` exists the directory may be half rewound: it is never started, and only
//! another rewind or a clone removes the marker. Nor does PostgreSQL itself start in it when somebody tries by
//! hand: while pg_rewind works, the directory has permissions that PostgreSQL refuses.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration};

use super::{
    command::{HelperError, OnProgress, Progress},
    conf::{ConfigRole, Upstream},
    controldata::{ControlData, DbState},
    error::PostgresError,
    files::{self, OperationLock},
    instance::Instance,
    kept,
};
use crate::domain::{Epoch, Generation};

/// Crash recovery replays at most the WAL since the last checkpoint.
const RECOVERY_DEADLINE: Duration = Duration::from_secs(2 * 3600);
const REWIND_DEADLINE: Duration = Duration::from_secs(12 * 3600);

/// How a rewind ended well. Either way the directory can now follow the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RewindOutcome {
    /// Pages were taken from the source.
    Rewound,
    /// Its WAL ends where the histories part: there was nothing to take back.
    NothingToDo,
}

/// A rewind was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum RewindError {
    /// A copy that has not reached its end can't be recovered in single-user mode.
    #[error("{0} has a backup_label: it is an unfinished copy; clone it again")]
    UnfinishedCopy(PathBuf),
    /// A crashed standby must not be recovered in single-user mode: that breaks it for good.
    #[error(
        "{0} is a standby that was not shut down cleanly; start it without upstream and stop it, or clone it again"
    )]
    CrashedStandby(PathBuf),
    /// pg_rewind compares timeline numbers only, and equal numbers are no proof of equal histories.
    #[error("pg_rewind takes {0} and its source to be on one timeline, which proves nothing; clone it again")]
    SameTimeline(PathBuf),
    /// See [`ControlData::outran_its_checkpoint`].
    #[error(
        "{0} has gone on to another timeline since its last checkpoint, which pg_rewind before version 16 does not \
         see: it could keep WAL that its source never had; clone it again"
    )]
    OutranItsCheckpoint(PathBuf),
    /// pg_rewind failed.
    #[error("pg_rewind failed and {}", if *touched { "has changed files: rewind or clone again before any start" } else { "has changed nothing" })]
    Failed {
        /// The directory is half rewound; the marker stays.
        touched: bool,
        /// Its words.
        #[source]
        source: HelperError,
    },
    /// Another step failed.
    #[error(transparent)]
    Step(#[from] PostgresError),
}

impl Instance {
    /// Rewinds this stopped, diverged instance to `source`, a primary that has made a checkpoint on its timeline.
    /// The result is a standby that follows nobody yet; write its configuration before the start. The WAL as it was
    /// is kept in `<data_dir>.wal-aside` until [`Instance::discard_old`].
    ///
    /// # Errors
    /// See [`RewindError`].
    pub async fn rewind(&self, source: &Upstream, on_progress: OnProgress<'_>) -> Result<RewindOutcome, RewindError> {
        let lock = OperationLock::take(self.data_dir())?;
        self.demand_stopped()?;
        let control = self.control_data()?;
        self.check_recoverable(control.state)?;
        // Read now: pg_rewind replaces the files the configuration is made of by those of the source.
        self.write_passfile(Some(source))?;
        let again = self.rewind_unfinished();
        files::replace(&self.rewind_marker(), &format!("{}\n", source.member))?;
        let mut touched = again;
        let result = self.rewind_marked(source, &control, &lock, &mut touched, on_progress).await;
        self.forbid_restores()?;
        if result.is_ok() {
            // What parted from the cluster's history is undone, and a mark of the source is its own.
            files::remove(&self.data_dir().join(kept::MARK))?;
            let role = ConfigRole::Standby { upstream: None, epoch: Epoch(0), generation: Generation(0) };
            self.write_config(&role)?;
        }
        // A failure before the first changed page leaves the directory as startable as it was.
        if result.is_ok() || !touched {
            self.set_standby_signal(true)?;
            self.bar_starts(false)?;
            files::remove(&self.rewind_marker())?;
        }
        result
    }

    async fn rewind_marked(
        &self,
        source: &Upstream,
        control: &ControlData,
        lock: &OperationLock,
        touched: &mut bool,
        on_progress: OnProgress<'_>,
    ) -> Result<RewindOutcome, RewindError> {
        self.remove_stubs()?;
        // After a rewind that was cut off the first links are the ones that count.
        self.set_wal_aside(!*touched).await?;
        self.set_standby_signal(false)?;
        files::remove(&self.data_dir().join("recovery.signal"))?;
        self.bar_starts(false)?;
        if !control.state.is_clean() {
            on_progress(Progress::phase("crash recovery"));
            self.recover_single_user().await?;
        }
        // Without its signal file a server would come up as a primary, and pg_rewind would not notice what it wrote.
        self.bar_starts(true)?;
        self.demand_stopped()?;
        self.put_back_wal().await?;
        self.check_checkpoint()?;
        on_progress(Progress::phase("pg_rewind"));
        let outcome = self.run_pg_rewind(source, lock, touched, on_progress).await?;
        if outcome == RewindOutcome::Rewound {
            self.remove_foreign_wal(self.control_data()?.timeline)?;
            self.put_back_shared_wal()?;
        }
        Ok(outcome)
    }

    /// A rewind was cut off: the directory may be half rewound and must not be started.
    pub fn rewind_unfinished(&self) -> bool {
        self.rewind_marker().exists()
    }

    pub(super) fn rewind_marker(&self) -> PathBuf {
        self.beside(".rewinding")
    }

    fn check_recoverable(&self, state: DbState) -> Result<(), RewindError> {
        if self.data_dir().join("backup_label").exists() && !state.is_clean() {
            return Err(RewindError::UnfinishedCopy(self.data_dir().to_owned()));
        }
        if state == DbState::InArchiveRecovery {
            return Err(RewindError::CrashedStandby(self.data_dir().to_owned()));
        }
        Ok(())
    }

    /// To be asked after the crash recovery, which ends with a checkpoint.
    fn check_checkpoint(&self) -> Result<(), RewindError> {
        if self.version()? < 160_000 && self.control_data()?.outran_its_checkpoint() {
            return Err(RewindError::OutranItsCheckpoint(self.data_dir().to_owned()));
        }
        Ok(())
    }

    /// PostgreSQL starts in no directory that others may write to (`checkDataDir` in its miscinit.c; pg_rewind has
    /// no such check). They still can't, without the right to search it.
    fn bar_starts(&self, barred: bool) -> Result<(), PostgresError> {
        const OTHERS_WRITE: u32 = 0o002;
        let dir = self.data_dir();
        let mode = fs::metadata(dir).map_err(PostgresError::file("reading", dir))?.permissions().mode();
        let wanted = if barred { mode | OTHERS_WRITE } else { mode & !OTHERS_WRITE };
        if wanted != mode {
            let wanted = fs::Permissions::from_mode(wanted);
            fs::set_permissions(dir, wanted).map_err(PostgresError::file("changing the permissions of", dir))?;
            files::sync(dir)?;
        }
        Ok(())
    }

    /// Hard-links every WAL file aside: the checkpoint at the end of the crash recovery can remove WAL that
    /// pg_rewind needs.
    async fn set_wal_aside(&self, afresh: bool) -> Result<(), PostgresError> {
        let (wal, aside) = (self.pg_wal(), self.wal_aside());
        if afresh {
            files::remove_tree(&aside).await?;
        }
        files::blocking(move || {
            fs::create_dir_all(&aside).map_err(PostgresError::file("creating", &aside))?;
            link_missing(&wal, &aside)
        })
        .await
    }

    /// Beside the data directory, or beside WAL that lies elsewhere: a link leads nowhere on another volume.
    pub(super) fn wal_aside(&self) -> PathBuf {
        self.beside_wal(".wal-aside", ".aside")
    }

    /// `plain`: its ending beside the data directory; `linked`: beside WAL that lies elsewhere.
    pub(super) fn beside_wal(&self, plain: &str, linked: &str) -> PathBuf {
        match fs::read_link(self.pg_wal()) {
            Ok(elsewhere) if elsewhere.is_absolute() => files::beside(&elsewhere, linked),
            Ok(_) | Err(_) => self.beside(plain),
        }
    }

    async fn put_back_wal(&self) -> Result<(), PostgresError> {
        let (wal, aside) = (self.pg_wal(), self.wal_aside());
        files::blocking(move || link_missing(&aside, &wal)).await
    }

    /// Recovers a crashed primary without letting anybody in.
    async fn recover_single_user(&self) -> Result<(), PostgresError> {
        let mut helper = self.helper("postgres", RECOVERY_DEADLINE).arg("--single").arg("-D").arg(self.data_dir());
        // No removed segment, and no reused one: its name would change under the link that was set aside.
        for setting in [
            "wal_recycle=off",
            "wal_keep_size=1TB",
            "max_slot_wal_keep_size=-1",
            "archive_mode=off",
            "wal_level=replica",
        ] {
            helper = helper.arg("-c").arg(setting);
        }
        helper.arg("template1").run(|_| ()).await?;
        Ok(())
    }

    /// WAL back to the fork that this member has removed may be in the archive: pg_rewind asks for it by the directory's own
    /// `restore_command`. What it is for is undone, so it gets all of it.
    fn offers_the_archive(&self) -> Result<bool, PostgresError> {
        if !self.has_restore_command() {
            return Ok(false);
        }
        self.let_restore()?;
        Ok(true)
    }

    async fn run_pg_rewind(
        &self,
        source: &Upstream,
        lock: &OperationLock,
        touched: &mut bool,
        on_progress: OnProgress<'_>,
    ) -> Result<RewindOutcome, RewindError> {
        let (mut same_timeline, mut nothing) = (false, false);
        let mut target = std::ffi::OsString::from("--target-pgdata=");
        target.push(self.data_dir());
        let conninfo = self.source_conninfo(source, Some("postgres"));
        let helper = self.helper("pg_rewind", REWIND_DEADLINE).holding(lock.share()?).arg(target);
        let helper = helper.arg(format!("--source-server={conninfo}")).args(["--progress", "--no-ensure-shutdown"]);
        let helper = if self.offers_the_archive()? { helper.arg("--restore-target-wal") } else { helper };
        let result = helper
            .run(|line| {
                *touched |= line.contains("need to copy ");
                same_timeline |= line.contains("on the same timeline");
                nothing |= line.contains("no rewind required");
                Progress::parse("pg_rewind", line).into_iter().for_each(on_progress);
            })
            .await;
        match result {
            Err(source) => Err(RewindError::Failed { touched: *touched, source }),
            Ok(_) if same_timeline => Err(RewindError::SameTimeline(self.data_dir().to_owned())),
            Ok(_) if nothing => Ok(RewindOutcome::NothingToDo),
            Ok(_) => Ok(RewindOutcome::Rewound),
        }
    }
}

/// Makes a hard link in `to` for each regular file of `from` that `to` lacks.
fn link_missing(from: &std::path::Path, to: &std::path::Path) -> Result<(), PostgresError> {
    for entry in fs::read_dir(from).map_err(PostgresError::file("reading", from))? {
        let entry = entry.map_err(PostgresError::file("reading", from))?;
        let link = to.join(entry.file_name());
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if is_file && !link.exists() {
            fs::hard_link(entry.path(), &link).map_err(PostgresError::file("linking", &link))?;
        }
    }
    files::sync(to)
}
