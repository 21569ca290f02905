//! Makes a new copy of another member beside the data directory, and swaps it in when it is verified.

use std::{fs, time::Duration};

use super::{
    command::{OnProgress, Progress},
    conf::{ConfigRole, Upstream},
    error::PostgresError,
    files::{self, OperationLock},
    instance::{DataState, Instance},
    kept,
    session::SqlError,
};
use crate::domain::{Epoch, Generation, KeepDiverged};

/// For the copy; the progress shows a clone that hangs long before.
const COPY_DEADLINE: Duration = Duration::from_secs(24 * 3600);
const VERIFY_DEADLINE: Duration = Duration::from_secs(6 * 3600);

/// What pg_basebackup takes, in bytes a second (manual, pg_basebackup).
const LEAST_RATE: u64 = 32 << 10;
const MOST_RATE: u64 = 1 << 30;

/// A clone was refused or failed. The data directory is as it was.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// What is in the data directory is not ours to replace.
    #[error("cloning would replace something that is no copy of this cluster: {0}")]
    Foreign(String),
    /// A step failed.
    #[error(transparent)]
    Step(#[from] PostgresError),
    /// The source did not answer.
    #[error(transparent)]
    Source(#[from] SqlError),
}

impl Instance {
    /// Copies `source` into `<data_dir>.new`, verifies the copy, and swaps it in; returns its system identifier.
    /// What was in the data directory before is kept as `<data_dir>.old` until [`Instance::discard_old`]. The copy
    /// is a standby that follows nobody yet; write its configuration before the start. `max_rate` is in bytes a second, 0: no limit.
    ///
    /// # Errors
    /// See [`CloneError`].
    pub async fn clone_from(
        &self,
        source: &Upstream,
        max_rate: u64,
        on_progress: OnProgress<'_>,
    ) -> Result<u64, CloneError> {
        let lock = OperationLock::take(self.data_dir())?;
        self.demand_stopped()?;
        self.finish_swap()?;
        let present = self.data_state()?;
        if let DataState::Foreign(text) = present {
            return Err(CloneError::Foreign(text));
        }
        if self.is_to_be_adopted() {
            let dir = self.data_dir().display();
            return Err(CloneError::Foreign(format!("{dir} holds what bootstrap.method = adopt is to take over")));
        }
        let new = self.beside(".new");
        self.remove_data(&new).await?;
        self.write_passfile(Some(source))?;
        on_progress(Progress::phase("pg_basebackup"));
        let conninfo = self.source_conninfo(source, None);
        let copy = self.helper("pg_basebackup", COPY_DEADLINE).holding(lock.share()?).arg("-D").arg(&new);
        let copy = copy.arg("-d").arg(conninfo).args([
            "--wal-method=stream",
            "--checkpoint=fast",
            "--progress",
            "--no-password",
            "--manifest-checksums=CRC32C",
        ]);
        let copy = match max_rate {
            0 => copy,
            _ => copy.arg(format!("--max-rate={}k", max_rate.clamp(LEAST_RATE, MOST_RATE) >> 10)),
        };
        let copy = copy.args(self.places_for_a_copy(source).await?);
        copy.run(|line| Progress::parse("pg_basebackup", line).into_iter().for_each(on_progress))
            .await
            .map_err(PostgresError::from)?;
        on_progress(Progress::phase("verify"));
        let verify = self.helper("pg_verifybackup", VERIFY_DEADLINE).holding(lock.share()?);
        verify.arg("--quiet").arg("--exit-on-error").arg(&new).run(|_| ()).await.map_err(PostgresError::from)?;
        let copied = self.control_data_of(&new)?;
        if let DataState::Present(old) = present
            && old.system_identifier != copied.system_identifier
        {
            let (ours, theirs) = (old.system_identifier, copied.system_identifier);
            let text =
                format!("{} has system identifier {ours}, {} has {theirs}", self.data_dir().display(), source.member);
            return Err(CloneError::Foreign(text));
        }
        // Of the source, if it is there: its own.
        files::remove(&new.join(kept::MARK))?;
        let role = ConfigRole::Standby { upstream: None, epoch: Epoch(0), generation: Generation(0) };
        self.write_config_to(&new, &role)?;
        // Written last: with it the copy is complete.
        files::ensure(&new.join("standby.signal"), "")?;
        self.swap().await?;
        files::remove(&self.rewind_marker())?;
        Ok(copied.system_identifier)
    }

    /// Puts `<data_dir>.new` in place. An older `.old` is the diverged directory that nobody has discarded yet, so it
    /// stays, and what it was replaced with and never worked goes.
    async fn swap(&self) -> Result<(), PostgresError> {
        let (data, old, failed) = (self.data_dir(), self.beside(".old"), self.beside(".failed"));
        if !matches!(self.data_state()?, DataState::Missing | DataState::Empty) {
            self.remove_data(&failed).await?;
            let aside = if old.exists() { &failed } else { &old };
            fs::rename(data, aside).map_err(PostgresError::file("putting aside", data))?;
            files::sync_parent(data)?;
        }
        self.finish_swap()?;
        self.remove_data(&failed).await
    }

    /// Finishes a swap that was cut off between its two renames: the data directory is gone and a complete new copy
    /// lies beside it. The agent calls it at its start. True when there was something to do.
    ///
    /// # Errors
    /// The rename failed.
    pub fn finish_swap(&self) -> Result<bool, PostgresError> {
        let new = self.beside(".new");
        let gone = matches!(self.data_state()?, DataState::Missing | DataState::Empty);
        if !gone || !new.join("standby.signal").exists() {
            return Ok(false);
        }
        fs::rename(&new, self.data_dir()).map_err(PostgresError::file("putting in place", &new))?;
        files::sync_parent(self.data_dir())?;
        Ok(true)
    }

    /// Gives up what a clone or a rewind has kept aside, but for a directory that had parted from the cluster's history, unless
    /// none is to be kept; called when the new copy has streamed. Takes no time: the
    /// space is free after [`Instance::remove_discarded`].
    ///
    /// # Errors
    /// A directory can't be renamed.
    pub fn discard_old(&self, keep: KeepDiverged) -> Result<(), PostgresError> {
        if keep != KeepDiverged::None {
            self.keep_old()?;
        }
        self.discard_linked_wal()?;
        let discarded = self.beside(".discarded");
        for suffix in [".old", ".failed", ".wal-aside"] {
            let kept = self.beside(suffix);
            if !kept.exists() {
                continue;
            }
            fs::create_dir_all(&discarded).map_err(PostgresError::file("creating", &discarded))?;
            // A removal that was cut off may have left some there.
            let free = (0_u64..).map(|n| discarded.join(format!("{n}{suffix}"))).find(|place| !place.exists());
            let Some(place) = free else { continue };
            fs::rename(&kept, &place).map_err(PostgresError::file("putting aside", &kept))?;
        }
        files::sync_parent(&discarded)
    }

    /// Removes what was given up, which may take minutes.
    ///
    /// # Errors
    /// A directory can't be removed.
    pub async fn remove_discarded(&self) -> Result<(), PostgresError> {
        let discarded = self.beside(".discarded");
        let linked = self.wal_aside();
        let instance = self.clone();
        files::blocking(move || {
            for entry in fs::read_dir(&discarded).into_iter().flatten().flatten() {
                instance.remove_data_blocking(&entry.path())?;
            }
            Ok(())
        })
        .await?;
        files::remove_tree(&files::beside(&linked, ".discarded")).await?;
        files::remove_tree(&self.beside(".discarded")).await
    }

    /// WAL that a rewind has set aside on another volume: it is renamed where it lies.
    fn discard_linked_wal(&self) -> Result<(), PostgresError> {
        let aside = self.wal_aside();
        let discarded = files::beside(&aside, ".discarded");
        if aside == self.beside(".wal-aside") || !aside.exists() || discarded.exists() {
            return Ok(());
        }
        fs::rename(&aside, &discarded).map_err(PostgresError::file("putting aside", &aside))
    }
}
