//! What PostgreSQL calls to archive a file of WAL or to get one: a short process of its own, that runs what it is permitted to.
//!
//! It ends with 0 or 1 and nothing else: PostgreSQL takes a signal, or a command that isn't there, for a reason to end its startup
//! process, and with that the standby (xlogarchive.c, `RestoreArchivedFile`).

use std::{
    fs::{self, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::signal::unix::{SignalKind, signal};

use super::{
    archive::{CHECK, GET, GET_NOTE, PUT, PUT_NOTE, Permit, WalNote},
    command::Helper,
    files,
};
use crate::domain::archive::{Fetch, may_fetch, timeline_of};

/// Between two looks whether it is still permitted.
const LOOK: Duration = Duration::from_millis(50);

/// One call by PostgreSQL.
#[derive(Debug, Clone)]
pub struct WalCall {
    /// The agent's runtime directory.
    pub runtime_dir: PathBuf,
    /// The name of the file.
    pub file: String,
    /// Its path, or where it is to be put.
    pub path: PathBuf,
    /// The oldest file that a restart needs; empty where PostgreSQL doesn't say.
    pub oldest: String,
}

impl WalCall {
    /// Archives the file. Only under a lease: the live configuration is there from the grant to the fence, and a PostgreSQL that
    /// somebody started by hand has none.
    ///
    /// # Errors
    /// In words for PostgreSQL's log.
    pub async fn put(&self) -> Result<(), String> {
        let permit = self.permit(PUT).ok_or("no archive_command is set")?;
        let live = self.runtime_dir.join("live.conf");
        if !live.exists() {
            return Err("this PostgreSQL holds no lease: nothing of it is archived".to_owned());
        }
        let mut done = self.run(&permit, &self.path, || live.exists()).await;
        // Archived before, say by who was primary then: many commands refuse a file that is there.
        if let (Err(_), Some(check)) = (&done, &permit.check)
            && self.in_archive(check, Duration::from_millis(permit.limit_ms)).await == Some(true)
        {
            done = Ok(());
        }
        self.note(PUT_NOTE, &done);
        done
    }

    /// Gets the file, as far as it is of the cluster's history. It is put in place when it is whole.
    ///
    /// # Errors
    /// In words for PostgreSQL's log.
    pub async fn get(&self) -> Result<(), String> {
        let permit = self.permit(GET).ok_or("nothing is taken from the archive now")?;
        let lineage = permit.history();
        if let Some(lineage) = &lineage
            && !timeline_of(&self.file).is_some_and(|timeline| lineage.contains(timeline))
        {
            return Err(format!("{} is not of the cluster's history", self.file));
        }
        let part = files::beside(&self.path, ".matriarch-part");
        let permitted = || self.permit(GET).as_ref() == Some(&permit);
        let fetched = match self.fetch(&permit, &part, permitted).await {
            Ok(()) => self.keep(&part, lineage.as_ref(), permitted),
            Err(error) => Err(error),
        };
        if fetched.is_err() {
            // PostgreSQL asks for it again, or does without.
            let _ = fs::remove_file(&part);
        }
        self.note(GET_NOTE, &fetched);
        fetched
    }

    /// What other members have lent is here, and nobody has to be asked for it.
    async fn fetch(&self, permit: &Permit, part: &Path, permitted: impl Fn() -> bool) -> Result<(), String> {
        if let Some(lent) = permit.lent.as_ref().map(|lent| lent.join(&self.file)).filter(|lent| lent.exists()) {
            return fs::copy(&lent, part).map(drop).map_err(|error| format!("{}: {error}", lent.display()));
        }
        match permit.command.is_empty() {
            true => Err(format!("no member has lent {}", self.file)),
            false => self.run(permit, part, permitted).await,
        }
    }

    /// Whether the archive has this file, by the command that gets it: `Some(true)` as it is here, `Some(false)` another; `None`: it
    /// has none, or doesn't answer.
    pub(super) async fn in_archive(&self, get: &str, limit: Duration) -> Option<bool> {
        let copy = files::beside(&self.path, CHECK);
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let permit = Permit { command: get.to_owned(), limit_ms, check: None, lent: None, lineage: None };
        let got = self.run(&permit, &copy, || true).await;
        let same = got.ok().and_then(|()| is_equal(&copy, &self.path).ok());
        let _ = fs::remove_file(&copy);
        same
    }

    fn keep(
        &self,
        part: &Path,
        lineage: Option<&crate::domain::TimelineHistory>,
        permitted: impl Fn() -> bool,
    ) -> Result<(), String> {
        let failed = |error: io::Error| format!("{}: {error}", part.display());
        let length = fs::metadata(part).map_err(failed)?.len();
        match lineage.map_or(Fetch::Whole, |lineage| may_fetch(&self.file, length, lineage)) {
            Fetch::Whole => {}
            Fetch::Until(end) => clear_from(part, end.0 % length, length).map_err(failed)?,
            Fetch::Nothing => return Err(format!("{} is past the end of its timeline", self.file)),
        }
        if !permitted() {
            return Err("the standby has left its primary meanwhile".to_owned());
        }
        fs::rename(part, &self.path).map_err(failed)
    }

    fn permit(&self, name: &str) -> Option<Permit> {
        serde_json::from_str(&fs::read_to_string(self.runtime_dir.join(name)).ok()?).ok()
    }

    /// Runs the command in the environment that PostgreSQL has, until it ends, takes too long, or is permitted no more.
    async fn run(&self, permit: &Permit, path: &Path, permitted: impl Fn() -> bool) -> Result<(), String> {
        let command = self.filled(&permit.command, path);
        let limit = Duration::from_millis(permit.limit_ms);
        let helper = Helper::new(Path::new("/bin"), "sh", limit).inheriting().args(["-c", command.as_str()]);
        let run = helper.run_any(|line| eprintln!("{line}"));
        let over = async {
            while permitted() {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            finished = run => match finished.map_err(|e| e.to_string())? {
                finished if finished.status.success() => Ok(()),
                finished => Err(format!("{}: {}", finished.status, finished.tail)),
            },
            () = over => Err("it is permitted no more, the command was ended".to_owned()),
            () = told_to_end() => Err("PostgreSQL ended it".to_owned()),
        }
    }

    /// As PostgreSQL fills in its placeholders.
    fn filled(&self, command: &str, path: &Path) -> String {
        let (mut out, mut rest) = (String::new(), command);
        while let Some(at) = rest.find('%') {
            out.push_str(&rest[..at]);
            let mut after = rest[at + 1..].chars();
            match after.next() {
                Some('p') => out.push_str(&path.to_string_lossy()),
                Some('f') => out.push_str(&self.file),
                Some('r') => out.push_str(&self.oldest),
                Some('%') => out.push('%'),
                Some(other) => out.extend(['%', other]),
                None => out.push('%'),
            }
            rest = after.as_str();
        }
        out + rest
    }

    /// For the agent. What can't be noted is not shown.
    fn note(&self, name: &str, done: &Result<(), String>) {
        let path = self.runtime_dir.join(name);
        let before: WalNote =
            fs::read_to_string(&path).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        let note = match done {
            Ok(()) => WalNote { files: before.files + 1, last: self.file.clone(), said: String::new() },
            Err(said) => WalNote { said: said.chars().take(300).collect(), ..before },
        };
        let part = files::beside(&path, ".part");
        if let Ok(text) = serde_json::to_string(&note) {
            let _ = fs::write(&part, text).and_then(|()| fs::rename(&part, &path));
        }
    }
}

fn is_equal(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (fs::File::open(one)?, fs::File::open(other)?);
    let (mut a, mut b) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let read = one.read(&mut a)?;
        if read == 0 {
            return Ok(other.read(&mut b)? == 0);
        }
        match other.read_exact(&mut b[..read]) {
            Ok(()) if a[..read] == b[..read] => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

/// Zeros to the end: for PostgreSQL WAL ends there.
fn clear_from(path: &Path, offset: u64, length: u64) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let zeros = vec![0; 1 << 16];
    let mut left = length.saturating_sub(offset);
    while left > 0 {
        let now = usize::try_from(left).unwrap_or(zeros.len()).min(zeros.len());
        file.write_all(&zeros[..now])?;
        left -= now as u64;
    }
    Ok(())
}

/// One of the signals with which PostgreSQL ends what it has called.
async fn told_to_end() {
    let kinds = [SignalKind::terminate(), SignalKind::quit(), SignalKind::interrupt(), SignalKind::hangup()];
    let [Ok(mut term), Ok(mut quit), Ok(mut int), Ok(mut hup)] = kinds.map(signal) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = quit.recv() => {}
        _ = int.recv() => {}
        _ = hup.recv() => {}
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    struct Place {
        dir: tempfile::TempDir,
    }

    impl Place {
        fn new(permits: &[(&str, &Permit)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for (name, permit) in permits {
                fs::write(dir.path().join(name), serde_json::to_string(permit).unwrap()).unwrap();
            }
            Self { dir }
        }

        fn at(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn call(&self, file: &str) -> WalCall {
            let (runtime_dir, path) = (self.dir.path().to_owned(), self.at("RECOVERYXLOG"));
            WalCall { runtime_dir, file: file.into(), path, oldest: String::new() }
        }

        fn note(&self, name: &str) -> WalNote {
            serde_json::from_str(&fs::read_to_string(self.at(name)).unwrap()).unwrap()
        }
    }

    fn permit(command: String, lineage: Option<(u32, Vec<(u32, u64)>)>) -> Permit {
        Permit { command, limit_ms: 10_000, check: None, lent: None, lineage }
    }

    /// Timeline 1 ended 256 bytes into its third segment of 1 MiB.
    fn lineage() -> Option<(u32, Vec<(u32, u64)>)> {
        Some((2, vec![(1, (2 << 20) + 256)]))
    }

    #[tokio::test]
    async fn wal_of_an_old_primary_ends_for_a_standby_where_its_timeline_did() {
        let place = Place::new(&[(GET, &permit("head -c 1048576 /dev/zero | tr '\\0' x > %p".into(), lineage()))]);
        let bytes = |place: &Place| fs::read(place.at("RECOVERYXLOG")).unwrap();
        place.call("000000010000000000000001").get().await.unwrap();
        assert!(bytes(&place).iter().all(|b| *b == b'x'));
        place.call("000000010000000000000002").get().await.unwrap();
        let got = bytes(&place);
        assert_eq!(got.len(), 1 << 20);
        assert!(got[..256].iter().all(|b| *b == b'x') && got[256..].iter().all(|b| *b == 0));
        fs::remove_file(place.at("RECOVERYXLOG")).unwrap();
        let past = place.call("000000010000000000000003").get().await.unwrap_err();
        assert!(past.contains("past the end"), "{past}");
        let other = place.call("00000003.history").get().await.unwrap_err();
        assert!(other.contains("not of the cluster's history"), "{other}");
        assert!(!place.at("RECOVERYXLOG").exists() && !place.at("RECOVERYXLOG.matriarch-part").exists());
        assert_eq!((place.note(GET_NOTE).files, place.note(GET_NOTE).last.as_str()), (2, "000000010000000000000002"));
    }

    #[tokio::test]
    async fn what_members_have_lent_is_taken_first_and_by_the_same_rules() {
        let lent = tempfile::tempdir().unwrap();
        for segment in ["000000010000000000000001", "000000010000000000000003"] {
            fs::write(lent.path().join(segment), vec![b'l'; 1 << 20]).unwrap();
        }
        let lent = Some(lent.path().to_owned());
        let place = Place::new(&[(GET, &Permit { lent: lent.clone(), ..permit(String::new(), lineage()) })]);
        place.call("000000010000000000000001").get().await.unwrap();
        assert!(fs::read(place.at("RECOVERYXLOG")).unwrap().iter().all(|b| *b == b'l'));
        let past = place.call("000000010000000000000003").get().await.unwrap_err();
        assert!(past.contains("past the end"), "{past}");
        let none = place.call("000000010000000000000002").get().await.unwrap_err();
        assert!(none.contains("no member has lent"), "{none}");
        let place = Place::new(&[(GET, &Permit { lent, ..permit("echo archive > %p".into(), lineage()) })]);
        place.call("000000020000000000000004").get().await.unwrap();
        assert_eq!(fs::read_to_string(place.at("RECOVERYXLOG")).unwrap(), "archive\n");
    }

    #[tokio::test]
    async fn a_command_that_hangs_ends_when_the_standby_leaves_its_primary() {
        let place = Place::new(&[(GET, &permit("echo x > %p; sleep 60".into(), lineage()))]);
        let call = place.call("000000020000000000000003");
        let (got, ()) = tokio::join!(call.get(), async {
            while !place.at("RECOVERYXLOG.matriarch-part").exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            fs::remove_file(place.at(GET)).unwrap();
        });
        assert!(got.unwrap_err().contains("permitted no more"));
        assert!(!place.at("RECOVERYXLOG").exists());
        assert!(call.get().await.unwrap_err().contains("nothing is taken from the archive now"));
    }

    #[tokio::test]
    async fn a_command_that_hangs_gives_way_after_its_limit() {
        let hangs = Permit { limit_ms: 50, ..permit("echo x > %p; sleep 60".into(), lineage()) };
        let place = Place::new(&[(GET, &hangs)]);
        let begun = std::time::Instant::now();
        let got = place.call("000000020000000000000003").get().await.unwrap_err();
        assert!(got.contains("was killed after") && begun.elapsed() < Duration::from_secs(30), "{got}");
        assert!(!place.at("RECOVERYXLOG").exists() && !place.at("RECOVERYXLOG.matriarch-part").exists());
    }

    #[tokio::test]
    async fn nothing_is_archived_without_a_lease_and_a_failure_is_noted() {
        let archive = tempfile::tempdir().unwrap();
        let command = format!("test -e {0}/ok && cp %p {0}/%f", archive.path().display());
        let place = Place::new(&[(PUT, &permit(command, None))]);
        fs::write(place.at("RECOVERYXLOG"), "wal").unwrap();
        let call = place.call("000000020000000000000003");
        assert!(call.put().await.unwrap_err().contains("holds no lease"));
        fs::write(place.at("live.conf"), "").unwrap();
        assert!(call.put().await.unwrap_err().contains("exit status: 1"));
        assert!(place.note(PUT_NOTE).said.contains("exit status: 1"));
        fs::write(archive.path().join("ok"), "").unwrap();
        call.put().await.unwrap();
        assert_eq!(fs::read_to_string(archive.path().join("000000020000000000000003")).unwrap(), "wal");
        assert_eq!(place.note(PUT_NOTE).said, "");
    }

    #[tokio::test]
    async fn a_file_that_is_archived_already_is_no_failure_and_another_of_its_name_is() {
        let archive = tempfile::tempdir().unwrap();
        let at = archive.path().display();
        let command = format!("test ! -e {at}/%f && cp %p {at}/%f");
        let check = Some(format!("cp {at}/%f %p"));
        let place = Place::new(&[(PUT, &Permit { check, ..permit(command, None) })]);
        fs::write(place.at("live.conf"), "").unwrap();
        fs::write(place.at("RECOVERYXLOG"), "wal").unwrap();
        let call = place.call("000000020000000000000003");
        call.put().await.unwrap();
        call.put().await.unwrap();
        fs::write(place.at("RECOVERYXLOG"), "wal of another").unwrap();
        assert!(call.put().await.unwrap_err().contains("exit status: 1"));
        assert!(!place.at("RECOVERYXLOG.matriarch-check").exists());
    }

    #[test]
    fn placeholders_are_filled_in_as_postgresql_does() {
        let call = WalCall { runtime_dir: "/r".into(), file: "F".into(), path: "p".into(), oldest: "R".into() };
        assert_eq!(call.filled("a %p %f %r 100%% %x %", Path::new("/d/p")), "a /d/p F R 100% %x %");
    }
}
