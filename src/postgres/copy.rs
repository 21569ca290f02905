//! Copies that don't come from another member: of a backup of pgBackRest, or by a command of the operator's.

use std::{fs, os::unix::fs::DirBuilderExt as _, path::Path, time::Duration};

use serde::Deserialize;

use super::{
    archive::Stanza,
    basebackup::{CloneError, VERIFY_DEADLINE},
    command::{Helper, OnProgress, Progress},
    conf::Upstream,
    error::PostgresError,
    files::{self, OperationLock},
    instance::Instance,
    waldump::segment_name,
};
use crate::domain::{
    Lsn, TimelineHistory, WalPosition,
    archive::{segment_start, timeline_of},
};

/// For what pgBackRest says of its backups, and for one file of WAL.
const SHORT: Duration = Duration::from_secs(600);
/// A restore shows its progress long before.
const RESTORE_DEADLINE: Duration = Duration::from_secs(24 * 3600);

/// A backup, as `pgbackrest info` tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Backup {
    label: String,
    repository: u64,
    /// The files of WAL without which it can't be made consistent: the first and the last.
    wal: (String, String),
    bytes: u64,
}

#[derive(Deserialize)]
struct Info {
    #[serde(default)]
    backup: Vec<InfoBackup>,
    #[serde(default)]
    db: Vec<InfoDb>,
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct InfoDb {
    id: u64,
    repo_key: u64,
    system_id: u64,
}

#[derive(Deserialize)]
struct InfoBackup {
    label: String,
    archive: InfoRange,
    #[serde(default)]
    lsn: InfoRange,
    database: InfoOf,
    #[serde(default)]
    error: Option<bool>,
    info: InfoSize,
}

#[derive(Default, Deserialize)]
struct InfoRange {
    start: Option<String>,
    stop: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct InfoOf {
    id: u64,
    repo_key: u64,
}

#[derive(Deserialize)]
struct InfoSize {
    size: u64,
}

/// The newest backup of this system that ends on the cluster's history: one that was taken of a primary past the end of its
/// timeline has pages of commits that the cluster doesn't have, and never becomes consistent.
fn choose(text: &str, stanza: &str, system: u64, lineage: Option<&TimelineHistory>) -> Result<Backup, String> {
    let infos: Vec<Info> =
        serde_json::from_str(text).map_err(|e| format!("pgbackrest info said what it never did: {e}"))?;
    let info = infos.into_iter().find(|info| info.name == stanza);
    let info = info.ok_or_else(|| format!("pgBackRest has no stanza {stanza}"))?;
    let ours =
        |of: &InfoOf| info.db.iter().any(|db| (db.id, db.repo_key, db.system_id) == (of.id, of.repo_key, system));
    let fits = |backup: &&InfoBackup| {
        let end =
            backup.archive.stop.as_deref().and_then(timeline_of).zip(backup.lsn.stop.as_ref()?.parse::<Lsn>().ok());
        let (timeline, lsn) = end?;
        let on_history = lineage.is_none_or(|history| history.includes(WalPosition { timeline, lsn }));
        (ours(&backup.database) && backup.error != Some(true) && on_history).then_some(())
    };
    let best = info.backup.iter().filter(|backup| fits(backup).is_some()).max_by(|a, b| a.label.cmp(&b.label));
    let best = best.ok_or_else(|| {
        format!("none of the {} backups of stanza {stanza} is of this cluster and on its history", info.backup.len())
    })?;
    let wal = best.archive.start.clone().zip(best.archive.stop.clone());
    let (label, repository, bytes) = (best.label.clone(), best.database.repo_key, best.info.size);
    Ok(Backup { label, repository, wal: wal.ok_or("the backup has no WAL")?, bytes })
}

/// `… restore file /data/base/1/2619 (280KB, 98.13%) checksum …`, in hundredths of a percent.
fn restored(line: &str) -> Option<u64> {
    let (before, _) = line.split_once("%)")?;
    let (_, percent) = before.rsplit_once(", ")?;
    let (whole, part) = percent.split_once('.').unwrap_or((percent, "0"));
    Some(whole.parse::<u64>().ok()? * 100 + format!("{part:0<2}").get(..2)?.parse::<u64>().ok()?)
}

/// Wherever it is in the search path. Its options may be given as `PGBACKREST_…` in the agent's environment, keys of a
/// repository above all, and its archive commands, which PostgreSQL runs, have them.
fn pgbackrest(deadline: Duration) -> Helper {
    Helper::new(Path::new(""), "pgbackrest", deadline).keeping("PGBACKREST_")
}

/// The files from the first to the last.
fn files_of(wal: &(String, String), segment: u64) -> Option<Vec<String>> {
    let timeline = timeline_of(&wal.0).filter(|timeline| timeline_of(&wal.1) == Some(*timeline))?;
    let number = |file: &str| segment_start(file, segment).map(|start| start.0 / segment);
    let (first, last) = (number(&wal.0)?, number(&wal.1)?);
    Some((first..=last).map(|number| segment_name(segment, timeline, number)).collect())
}

impl Instance {
    /// Restores the newest fitting backup into `new`, with the WAL that makes it consistent.
    pub(super) async fn restore_backup(
        &self,
        stanza: &Stanza,
        (new, lock): (&Path, &OperationLock),
        (system, lineage): (u64, Option<&TimelineHistory>),
        on_progress: OnProgress<'_>,
    ) -> Result<(), CloneError> {
        on_progress(Progress::phase("pgbackrest info"));
        let mut text = String::new();
        let info = pgbackrest(SHORT).args(stanza.options()).args(["--output=json", "info"]);
        info.run(|line| text.push_str(line)).await.map_err(PostgresError::from)?;
        let backup = choose(&text, &stanza.name, system, lineage).map_err(CloneError::NoBackup)?;
        tracing::info!(backup = backup.label, stanza = stanza.name, "a copy is restored from a backup");
        fs::DirBuilder::new().mode(0o700).create(new).map_err(PostgresError::file("creating", new))?;
        on_progress(Progress::phase("pgbackrest restore"));
        let restore = pgbackrest(RESTORE_DEADLINE).args(stanza.options_in(new)).holding(lock.share()?);
        let restore = restore
            .arg(format!("--repo={}", backup.repository))
            .arg(format!("--set={}", backup.label))
            .args(["--type=none", "--log-level-console=detail"])
            .args(self.places_for_a_restore())
            .arg("restore");
        let shown = |line: &str| {
            let done = restored(line).map(|share| u64::try_from(u128::from(backup.bytes) * u128::from(share) / 10_000));
            if let Some(Ok(done_bytes)) = done {
                on_progress(Progress { phase: "pgbackrest restore".into(), done_bytes, total_bytes: backup.bytes });
            }
        };
        restore.run(shown).await.map_err(PostgresError::from)?;
        self.wal_apart_of_a_copy(new)?;
        self.fetch_wal(stanza, &backup, new, on_progress).await
    }

    /// A backup without its WAL is none; and where its WAL ends is read from that.
    async fn fetch_wal(
        &self,
        stanza: &Stanza,
        backup: &Backup,
        new: &Path,
        on_progress: OnProgress<'_>,
    ) -> Result<(), CloneError> {
        let segment = self.control_data_of(new)?.wal_segment_bytes;
        let files = files_of(&backup.wal, segment);
        let mut files = files.ok_or_else(|| CloneError::NoBackup(format!("its WAL is {:?}", backup.wal)))?;
        // Without its history nobody knows what that WAL goes on from.
        files.extend(timeline_of(&backup.wal.0).filter(|of| of.0 > 1).map(|of| format!("{:08X}.history", of.0)));
        for (done, file) in files.iter().enumerate() {
            let (done_bytes, total_bytes) = (done as u64 * segment, files.len() as u64 * segment);
            on_progress(Progress { phase: "pgbackrest archive-get".into(), done_bytes, total_bytes });
            let get = pgbackrest(SHORT).args(stanza.options_in(new)).arg(format!("--repo={}", backup.repository));
            let get = get.arg("archive-get").arg(file).arg(new.join("pg_wal").join(file));
            // It ends with 1 where there is no such file.
            get.run(|_| ()).await.map_err(PostgresError::from)?;
        }
        Ok(())
    }

    /// Runs the operator's command, which is to make a copy in `new`.
    pub(super) async fn copy_by_command(
        &self,
        (command, limit): (&str, Duration),
        source: &Upstream,
        (new, lock): (&Path, &OperationLock),
        system: u64,
        on_progress: OnProgress<'_>,
    ) -> Result<(), CloneError> {
        // It is not told of places for them, and would write into those that the present directory uses.
        let spaces = fs::read_dir(self.data_dir().join("pg_tblspc")).is_ok_and(|mut entries| entries.next().is_some());
        if spaces {
            let dir = self.data_dir().display();
            return Err(CloneError::NoCopy(format!("{dir} has tablespaces, and clone_command is not used with any")));
        }
        on_progress(Progress::phase("clone_command"));
        let cfg = self.config();
        let run = Helper::new(Path::new("/bin"), "sh", limit).holding(lock.share()?).args(["-c", command]);
        let run = run
            .env("MATRIARCH_DIRECTORY", new)
            .env("MATRIARCH_DATA_DIRECTORY", self.data_dir())
            .env("MATRIARCH_SOURCE", source.member.as_str())
            .env("MATRIARCH_HOST", &source.host)
            .env("MATRIARCH_PORT", source.port.to_string())
            .env("MATRIARCH_USER", &cfg.replication_user)
            .env("MATRIARCH_BIN", &cfg.bin_dir)
            .env("MATRIARCH_SYSTEM_IDENTIFIER", system.to_string())
            .env("PGPASSFILE", self.passfile());
        let shown = |line: &str| Progress::parse("clone_command", line).into_iter().for_each(on_progress);
        run.run(shown).await.map_err(PostgresError::from)?;
        if new.join("backup_manifest").exists() {
            self.verify_copy(new, lock, on_progress).await?;
        }
        let copied = self.control_data_of(new)?.system_identifier;
        match copied == system {
            true => Ok(()),
            false => Err(CloneError::NoCopy(format!("it is of system {copied}, the cluster's is {system}"))),
        }
    }

    /// What `backup_manifest` says of the files of a copy is so.
    pub(super) async fn verify_copy(
        &self,
        new: &Path,
        lock: &OperationLock,
        on_progress: OnProgress<'_>,
    ) -> Result<(), CloneError> {
        on_progress(Progress::phase("verify"));
        let verify = self.helper("pg_verifybackup", VERIFY_DEADLINE).holding(lock.share()?);
        verify.arg("--quiet").arg("--exit-on-error").arg(new).run(|_| ()).await.map_err(PostgresError::from)?;
        Ok(())
    }

    /// `pg_wal` of a copy goes where that of the directory is which it replaces, beside it.
    fn wal_apart_of_a_copy(&self, new: &Path) -> Result<(), PostgresError> {
        let Some(place) = self.place_for_wal() else { return Ok(()) };
        let wal = new.join("pg_wal");
        fs::create_dir_all(place.join("archive_status")).map_err(PostgresError::file("creating", &place))?;
        fs::remove_dir_all(&wal).map_err(PostgresError::file("removing", &wal))?;
        std::os::unix::fs::symlink(&place, &wal).map_err(PostgresError::file("linking", &wal))?;
        files::sync(new)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::domain::{TimelineId, TimelineSwitch};

    fn info(backups: &[(&str, &str, &str, u64)]) -> String {
        let one = |(label, timeline, stop, db): &(&str, &str, &str, u64)| {
            format!(
                r#"{{"archive":{{"start":"{timeline}0000000000000002","stop":"{timeline}0000000000000003"}},"label":"{label}",
                "lsn":{{"start":"0/2000028","stop":"{stop}"}},"database":{{"id":{db},"repo-key":1}},"error":false,
                "info":{{"size":1000,"delta":1000,"repository":{{"size":10}}}},"type":"full","timestamp":{{"start":1,"stop":2}}}}"#
            )
        };
        let backups: Vec<String> = backups.iter().map(one).collect();
        format!(
            r#"[{{"name":"main","backup":[{}],"db":[{{"id":1,"repo-key":1,"system-id":7,"version":"15"}},
            {{"id":2,"repo-key":1,"system-id":8,"version":"15"}}],"status":{{"code":0}}}}]"#,
            backups.join(",")
        )
    }

    #[test]
    fn the_newest_backup_on_the_clusters_history_is_chosen() {
        let switches = vec![TimelineSwitch { timeline: TimelineId(1), end: Lsn(0x5000000) }];
        let lineage = TimelineHistory { timeline: TimelineId(2), switches, ..TimelineHistory::default() };
        let best = |backups: &[(&str, &str, &str, u64)]| {
            choose(&info(backups), "main", 7, Some(&lineage)).map(|backup| backup.label)
        };
        let early = ("20261101F", "00000001", "0/4000000", 1);
        let past = ("20261103F", "00000001", "0/5000001", 1);
        assert_eq!(best(&[early, past]).unwrap(), "20261101F", "the other has what the cluster has not");
        assert_eq!(best(&[early, past, ("20261104F", "00000002", "0/9000000", 1)]).unwrap(), "20261104F");
        assert_eq!(best(&[early, ("20261105F", "00000003", "0/4000000", 1)]).unwrap(), "20261101F");
        assert_eq!(best(&[early, ("20261106F", "00000002", "0/9000000", 2)]).unwrap(), "20261101F", "another system's");
        assert!(best(&[past]).unwrap_err().contains("none of the 1 backups"));
        assert!(choose(&info(&[early]), "other", 7, None).unwrap_err().contains("no stanza other"));
        assert!(choose("[]", "main", 7, None).is_err() && choose("oops", "main", 7, None).is_err());
    }

    #[test]
    fn all_wal_from_the_first_file_to_the_last_is_wanted() {
        let wal = ("0000000100000001000000FE".to_owned(), "000000010000000200000001".to_owned());
        let files = files_of(&wal, 16 << 20).unwrap();
        let names = ["0000000100000001000000FE", "0000000100000001000000FF", "000000010000000200000000", &wal.1];
        assert_eq!(files, names);
    }

    #[test]
    fn progress_of_a_restore_is_read() {
        let line = "2026-11-27 20:00:00.000 P01 DETAIL: restore file /d/base/1/2619 (280KB, 98.13%) checksum 9d0b";
        assert_eq!(restored(line), Some(9813));
        assert_eq!(restored("P01 DETAIL: restore file /d/x (8KB, 0.5%) checksum"), Some(50));
        assert_eq!(restored("P00 INFO: restore command begin 2.45"), None);
    }
}
