//! Makes a new copy of another member beside the data directory, and swaps it in when it is verified.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    archive::Stanza,
    command::{OnProgress, Progress},
    conf::{ConfigRole, Upstream},
    error::PostgresError,
    files::{self, OperationLock},
    instance::{DataState, Instance},
    kept,
    session::SqlError,
};
use crate::domain::{
    CloneCompression, CloneMethod, Epoch, Generation, HowToCopy, KeepDiverged, TimelineHistory,
    version::PostgresVersion,
};

/// For the copy; the progress shows a clone that hangs long before.
const COPY_DEADLINE: Duration = Duration::from_secs(24 * 3600);
pub(super) const VERIFY_DEADLINE: Duration = Duration::from_secs(6 * 3600);

/// What pg_basebackup takes, in bytes a second (manual, pg_basebackup).
const LEAST_RATE: u64 = 32 << 10;
const MOST_RATE: u64 = 1 << 30;

/// The first version whose server compresses, and whose pg_basebackup unpacks it into a directory.
const COMPRESSES: u32 = 15;

/// A clone was refused or failed. The data directory is as it was.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// What is in the data directory is not ours to replace.
    #[error("cloning would replace something that is no copy of this cluster: {0}")]
    Foreign(String),
    /// What was made is no copy.
    #[error("what was made is no copy: {0}")]
    NoCopy(String),
    /// pgBackRest has none that is of use.
    #[error("no backup is of use: {0}")]
    NoBackup(String),
    /// A step failed.
    #[error(transparent)]
    Step(#[from] PostgresError),
    /// The source did not answer.
    #[error(transparent)]
    Source(#[from] SqlError),
}

/// How a copy is made.
#[derive(Debug, Clone)]
pub struct CopyPlan {
    /// One after the other; never empty.
    pub methods: Vec<CloneMethod>,
    /// What is taken from another member.
    pub how: HowToCopy,
    /// Where backups are.
    pub pgbackrest: Option<Stanza>,
    /// What the operator wants to be run …
    pub command: String,
    /// … and for how long.
    pub command_limit: Duration,
    /// The cluster's history; a backup that is not on it is of no use. `None`: not known.
    pub lineage: Option<TimelineHistory>,
    /// What is in the data directory was to be taken in, and can't be proven to be the primary's any more. It is replaced as it is
    /// at the begin of the copy, and not when it was changed since.
    pub not_taken_in: bool,
}

impl Default for CopyPlan {
    fn default() -> Self {
        Self {
            methods: vec![CloneMethod::Basebackup],
            how: HowToCopy::default(),
            pgbackrest: None,
            command: String::new(),
            command_limit: COPY_DEADLINE,
            lineage: None,
            not_taken_in: false,
        }
    }
}

impl Instance {
    /// [`Instance::copy`] by `pg_basebackup` alone.
    ///
    /// # Errors
    /// See [`CloneError`].
    pub async fn clone_from(
        &self,
        source: &Upstream,
        how: HowToCopy,
        on_progress: OnProgress<'_>,
    ) -> Result<u64, CloneError> {
        let plan = CopyPlan { how, ..CopyPlan::default() };
        self.copy(source, &plan, on_progress, &|_, _| ()).await.map(|(system, _)| system)
    }

    /// Copies `source` into `<data_dir>.new` by the first method that succeeds, verifies the copy, and swaps it in; returns its
    /// system identifier and the method. What was in the data directory before is kept as `<data_dir>.old` until
    /// [`Instance::discard_old`]. The copy is a standby that follows nobody yet; write its configuration before the start.
    /// `on_failure` hears of each method that failed while another is left.
    ///
    /// # Errors
    /// See [`CloneError`].
    pub async fn copy(
        &self,
        source: &Upstream,
        plan: &CopyPlan,
        on_progress: OnProgress<'_>,
        on_failure: &(dyn Fn(CloneMethod, &CloneError) + Send + Sync),
    ) -> Result<(u64, CloneMethod), CloneError> {
        let lock = OperationLock::take(self.data_dir())?;
        self.demand_stopped()?;
        self.finish_swap()?;
        let present = self.data_state()?;
        if let DataState::Foreign(text) = present {
            return Err(CloneError::Foreign(text));
        }
        if self.is_to_be_adopted() && !plan.not_taken_in {
            let dir = self.data_dir().display();
            return Err(CloneError::Foreign(format!("{dir} holds what bootstrap.method = adopt is to take over")));
        }
        let new = self.beside(".new");
        files::remove(&self.copied_marker())?;
        self.write_passfile(Some(source))?;
        let mut left = plan.methods.iter().copied();
        let mut method = left.next().unwrap_or(CloneMethod::Basebackup);
        let system = loop {
            self.remove_data(&new).await?;
            let made = self.make_copy(method, source, plan, (&new, &lock), on_progress).await;
            let checked = made.and_then(|()| self.check_copy(source, &present, &new));
            match (checked, left.next()) {
                (Ok(system), _) => break system,
                (Err(error), None) => return Err(error),
                (Err(error), Some(next)) => {
                    on_failure(method, &error);
                    method = next;
                }
            }
        };
        self.still_replaceable(&present, plan)?;
        // Of the source, if it is there: its own.
        files::remove(&new.join(kept::MARK))?;
        let role = ConfigRole::Standby { upstream: None, epoch: Epoch(0), generation: Generation(0) };
        self.write_config_to(&new, &role)?;
        files::ensure(&new.join("standby.signal"), "")?;
        files::ensure(&self.copied_marker(), "")?;
        self.swap().await?;
        files::remove(&self.rewind_marker())?;
        Ok((system, method))
    }

    /// A copy takes hours, and somebody else's directory may be started or changed meanwhile.
    fn still_replaceable(&self, present: &DataState, plan: &CopyPlan) -> Result<(), CloneError> {
        self.demand_stopped()?;
        if plan.not_taken_in && self.is_to_be_adopted() && self.data_state()? != *present {
            let dir = self.data_dir().display();
            return Err(CloneError::Foreign(format!("{dir} was changed while its copy was made")));
        }
        Ok(())
    }

    async fn make_copy(
        &self,
        method: CloneMethod,
        source: &Upstream,
        plan: &CopyPlan,
        (new, lock): (&Path, &OperationLock),
        on_progress: OnProgress<'_>,
    ) -> Result<(), CloneError> {
        match (method, &plan.pgbackrest) {
            (CloneMethod::Basebackup, _) => self.base_backup(source, plan.how, (new, lock), on_progress).await,
            (CloneMethod::Pgbackrest, Some(stanza)) => {
                let system = self.system_of(source).await?;
                let of = (system, plan.lineage.as_ref());
                self.restore_backup(stanza, (new, lock), of, on_progress).await?;
                Ok(self.sync_copy(new, lock).await?)
            }
            (CloneMethod::Pgbackrest, None) => Err(CloneError::NoBackup("no pgbackrest_stanza is set".to_owned())),
            (CloneMethod::Command, _) => {
                let system = self.system_of(source).await?;
                let command = (plan.command.as_str(), plan.command_limit);
                self.copy_by_command(command, source, (new, lock), system, on_progress).await?;
                Ok(self.sync_copy(new, lock).await?)
            }
        }
    }

    async fn base_backup(
        &self,
        source: &Upstream,
        how: HowToCopy,
        (new, lock): (&Path, &OperationLock),
        on_progress: OnProgress<'_>,
    ) -> Result<(), CloneError> {
        on_progress(Progress::phase("pg_basebackup"));
        let conninfo = self.source_conninfo(source, None);
        let copy = self.helper("pg_basebackup", COPY_DEADLINE).holding(lock.share()?).arg("-D").arg(new);
        let copy = copy.arg("-d").arg(conninfo).args([
            "--wal-method=stream",
            "--checkpoint=fast",
            "--progress",
            "--no-password",
            "--manifest-checksums=CRC32C",
            "--no-sync",
        ]);
        let copy = match how.max_rate {
            0 => copy,
            rate => copy.arg(format!("--max-rate={}k", rate.clamp(LEAST_RATE, MOST_RATE) >> 10)),
        };
        let copy = match how.compression {
            CloneCompression::None => copy,
            _ if PostgresVersion(self.version()?).major() < COMPRESSES => copy,
            method => copy.arg(format!("--compress=server-{method}")),
        };
        let copy = copy.args(self.places_for_a_copy(source).await?);
        copy.run(|line| Progress::parse("pg_basebackup", line).into_iter().for_each(on_progress))
            .await
            .map_err(PostgresError::from)?;
        on_progress(Progress::phase("verify"));
        Ok(self.verify_and_sync(new, lock).await?)
    }

    /// The copy is a data directory of this version, and of the system of what it replaces.
    fn check_copy(&self, source: &Upstream, present: &DataState, new: &Path) -> Result<u64, CloneError> {
        match self.data_state_of(new)? {
            DataState::Present(_) => {}
            DataState::Missing | DataState::Empty => {
                return Err(CloneError::NoCopy(format!("there is nothing in {}", new.display())));
            }
            DataState::Incomplete(why) | DataState::Foreign(why) => return Err(CloneError::NoCopy(why)),
        }
        if new.join("postmaster.pid").exists() {
            return Err(CloneError::NoCopy(
                "it has a postmaster.pid: a PostgreSQL runs in it, or it was copied as it ran".to_owned(),
            ));
        }
        fs::set_permissions(new, fs::Permissions::from_mode(0o700)).map_err(PostgresError::file("closing", new))?;
        let copied = self.control_data_of(new)?;
        if let DataState::Present(old) = present
            && old.system_identifier != copied.system_identifier
        {
            let (ours, theirs) = (old.system_identifier, copied.system_identifier);
            let text =
                format!("{} has system identifier {ours}, {} has {theirs}", self.data_dir().display(), source.member);
            return Err(CloneError::Foreign(text));
        }
        Ok(copied.system_identifier)
    }

    /// Compares a copy with its manifest, and sees it on the disk. Both at once: one takes the processor, the other the disk.
    async fn verify_and_sync(&self, new: &Path, lock: &OperationLock) -> Result<(), PostgresError> {
        let verify = self.helper("pg_verifybackup", VERIFY_DEADLINE).holding(lock.share()?);
        let verify = verify.arg("--quiet").arg("--exit-on-error").arg(new).run(|_| ());
        let (verified, synced) = tokio::join!(verify, self.sync_copy(new, lock));
        verified?;
        synced
    }

    /// Sees a copy on the disk, its tablespaces and WAL included.
    async fn sync_copy(&self, new: &Path, lock: &OperationLock) -> Result<(), PostgresError> {
        let sync = self.helper("initdb", VERIFY_DEADLINE).holding(lock.share()?);
        sync.arg("--sync-only").arg("-D").arg(new).run(|_| ()).await?;
        Ok(())
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
        if !gone || !new.exists() || !self.copied_marker().exists() {
            return Ok(false);
        }
        fs::rename(&new, self.data_dir()).map_err(PostgresError::file("putting in place", &new))?;
        files::sync_parent(self.data_dir())?;
        files::remove(&self.copied_marker())?;
        Ok(true)
    }

    /// Says that the copy beside the data directory is complete and verified. It lies outside: whatever is inside may be
    /// the source's own, which has a `standby.signal` as well.
    fn copied_marker(&self) -> PathBuf {
        self.beside(".new-complete")
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
