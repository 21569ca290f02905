//! PostgreSQL's configuration as it was committed for all hosts: written over that of a server that runs, looked at by
//! PostgreSQL before it counts, and left out where PostgreSQL can't take it. What is wrong is never a reason to stop.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    sync::{MutexGuard, PoisonError},
};

use super::{
    conf::{self, ConfigRole},
    error::PostgresError,
    files,
    instance::Instance,
    started::{Started, Trying, Version},
};
use crate::domain::{
    ConfigurationView, Epoch, Generation, MemberId, SettingsDocument, Side, StraySetting,
    postgres_settings::{Given, HBA, IDENT, Origin},
};

/// How the committed configuration stands here.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// The hosts of members that were moved by command: more of them may come in than the file names.
    moved_hosts: Vec<String>,
    /// What is known from disk was read.
    loaded: bool,
    pub(super) started: Started,
    /// What the files in the data directory were written by.
    pub(super) written: Option<Version>,
    pub(super) trying: Option<Trying>,
    /// PostgreSQL was asked what it has against its files when they were made of these.
    looked_at: Option<(Version, Side)>,
    /// `None`: nobody has looked at the server that runs.
    pub(super) view: Option<ConfigurationView>,
}

/// What configuration files are made of that is not in the host's file as it stands.
pub(super) struct Texts {
    pub(super) socket_dir: String,
    pub(super) passfile: String,
    pub(super) parameters: BTreeMap<String, String>,
    pub(super) hba: Vec<String>,
    pub(super) moved_hosts: Vec<String>,
}

/// Files that were written anew.
#[derive(Debug)]
pub struct Staged(Vec<StagedFile>);

#[derive(Debug)]
struct StagedFile {
    path: PathBuf,
    was: Option<String>,
    is: String,
}

/// Of which settings, and for which side, files were written.
#[derive(Debug, Clone)]
pub struct StagedOf(Version, Side);

impl Staged {
    fn put_back(self) -> Result<(), PostgresError> {
        for StagedFile { path, was, is } in self.0 {
            if fs::read_to_string(&path).ok().as_ref() != Some(&is) {
                continue;
            }
            match was {
                Some(text) => files::replace(&path, &text)?,
                None => drop(files::remove(&path)?),
            }
        }
        Ok(())
    }

    /// This, and what was written over it.
    #[must_use]
    pub fn then(mut self, later: Option<Staged>) -> Staged {
        for file in later.into_iter().flat_map(|later| later.0) {
            match self.0.iter_mut().find(|known| known.path == file.path) {
                Some(known) => known.is = file.is,
                None => self.0.push(file),
            }
        }
        self
    }
}

/// How our `pg_ident.conf` begins.
const IDENT_HEAD: &str =
    "# Written by matriarch; its lines come from the settings of the cluster (`matriarch config`).\n";
/// What a configuration has of its role and of the archive beside what every one has.
const OF_ROLE: [&str; 4] = ["recovery_min_apply_delay", "archive_mode", "archive_command", "restore_command"];
/// Where the parameters of a configuration end.
const AFTER_PARAMETERS: &str = "listen_addresses = ";

/// As what the server is configured whose `postgresql.conf` this is.
fn side_of(text: &str) -> Side {
    if text.lines().any(|line| line.starts_with("# generation ")) { Side::Standby } else { Side::Primary }
}

/// A role of that side, for what doesn't depend on more of it.
fn role_of(side: Side) -> ConfigRole {
    match side {
        Side::Primary => ConfigRole::DormantPrimary,
        Side::Standby => ConfigRole::Standby { upstream: None, epoch: Epoch(0), generation: Generation(0) },
    }
}

/// A `postgresql.conf` with the parameters of a new one; what it has of its role, and of the archive, stays.
fn with_parameters(text: &str, fresh: &str, archive: Option<&conf::Archive>) -> String {
    let of_parameters = |text: &'_ str| text.lines().take_while(|line| !line.starts_with(AFTER_PARAMETERS)).count();
    let is_archives = |line: &&str| key_of(line).is_some_and(|key| archive.is_some_and(|archive| archive.owns(key)));
    let (old, new) = (of_parameters(text), of_parameters(fresh));
    let kept = text.lines().take(old).filter(is_archives);
    let level = fresh.lines().find(|line| line.starts_with("wal_level = "));
    let rest = text.lines().skip(old).map(|line| level.filter(|_| line.starts_with("wal_level = ")).unwrap_or(line));
    let mut head = fresh.lines().take(new);
    let first = head.next().into_iter();
    first.chain(kept).chain(head).chain(rest).map(|line| format!("{line}\n")).collect()
}

/// The setting that a line of a configuration makes.
fn key_of(line: &str) -> Option<&str> {
    let key = line.trim_start().split(|c: char| c.is_whitespace() || c == '=').next()?;
    (!key.is_empty() && !key.starts_with('#')).then_some(key)
}

fn value_of(line: &str) -> String {
    let value = line.split_once('=').map_or("", |(_, value)| value).trim();
    let bare = value.strip_prefix('\'').and_then(|value| value.strip_suffix('\''));
    bare.map_or_else(|| value.to_owned(), |value| value.replace("''", "'"))
}

/// What stands in a configuration that isn't in the one that was written.
fn strange_lines(text: &str, written: &str, place: &str) -> Vec<StraySetting> {
    let own: BTreeSet<&str> = written.lines().collect();
    let found: BTreeSet<&str> = text.lines().collect();
    let stray =
        |line: &str, value: String, place: String| Some(StraySetting { name: key_of(line)?.to_owned(), value, place });
    let added = text.lines().filter(|line| !own.contains(line));
    let added: Vec<_> = added.filter_map(|line| stray(line, value_of(line), place.to_owned())).collect();
    let gone = written.lines().filter(|line| !found.contains(line));
    let gone = gone.filter_map(|line| stray(line, String::new(), format!("taken out of {place}")));
    let gone = gone.filter(|one| !added.iter().any(|other| other.name == one.name));
    added.iter().cloned().chain(gone).collect()
}

/// The settings of `postgresql.auto.conf`. That of the adoption is ours.
fn of_alter_system(text: &str) -> impl Iterator<Item = StraySetting> {
    let made = |line: &str| {
        let name = key_of(line).filter(|key| *key != "restart_after_crash")?.to_owned();
        Some(StraySetting { name, value: value_of(line), place: "ALTER SYSTEM".to_owned() })
    };
    text.lines().filter_map(made).collect::<Vec<_>>().into_iter()
}

impl Instance {
    pub(super) fn standing(&self) -> MutexGuard<'_, Standing> {
        let mut standing = self.standing_lock().lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut standing.loaded, true) {
            standing.started = self.load_started();
        }
        standing
    }

    /// Notes how it stands.
    pub fn see_configuration(&self, view: Option<ConfigurationView>) {
        self.standing().view = view;
    }

    /// From the next writing of the configuration on, members that were moved by command come from where `moved` says, too:
    /// `host:port` of their managers. What the file says of them stays, for a move that is undone.
    pub fn set_moved(&self, moved: &BTreeMap<MemberId, String>) {
        let host = |at: &String| {
            let host = at.rsplit_once(':').map_or(at.as_str(), |(host, _)| host);
            host.trim_start_matches('[').trim_end_matches(']').to_owned()
        };
        self.standing().moved_hosts = moved.values().map(host).collect();
    }

    /// With what PostgreSQL is to be configured on this side, and where it comes from.
    pub fn given(&self, side: Side) -> BTreeMap<String, Given> {
        self.given_of(&self.accepted(), side)
    }

    fn given_of(&self, document: &SettingsDocument, side: Side) -> BTreeMap<String, Given> {
        document.parameters(&self.config().parameters, self.me(), side)
    }

    /// The same, of the settings alone: what the host's file says may have been tried for long.
    pub fn given_by_settings(&self, side: Side) -> BTreeMap<String, String> {
        let given = self.given(side).into_iter();
        given.filter(|(_, given)| given.origin != Origin::File).map(|(name, given)| (name, given.value)).collect()
    }

    pub(super) fn parameters(&self, side: Side) -> BTreeMap<String, String> {
        self.given(side).into_iter().map(|(name, given)| (name, given.value)).collect()
    }

    /// As what the server here is configured.
    pub fn side(&self) -> Side {
        side_of(&fs::read_to_string(self.data_dir().join("postgresql.conf")).unwrap_or_default())
    }

    pub(super) fn texts(&self, side: Side) -> Texts {
        self.texts_of(&self.accepted(), side)
    }

    pub(super) fn texts_of(&self, document: &SettingsDocument, side: Side) -> Texts {
        let parameters = self.given_of(document, side).into_iter().map(|(name, given)| (name, given.value));
        Texts {
            socket_dir: self.config().socket_dir.to_string_lossy().into_owned(),
            passfile: self.passfile().to_string_lossy().into_owned(),
            parameters: parameters.collect(),
            hba: document.lines_of(HBA).unwrap_or_else(|| self.config().hba.clone()),
            moved_hosts: self.standing().moved_hosts.clone(),
        }
    }

    /// The text of `pg_ident.conf`; `None`: it is nobody's but the host's.
    pub(super) fn ident(document: &SettingsDocument, there: &str) -> Option<String> {
        let lines = document.lines_of(IDENT);
        let ours = lines.is_some() || there.starts_with(IDENT_HEAD);
        ours.then(|| {
            format!("{IDENT_HEAD}{}", lines.unwrap_or_default().iter().map(|l| format!("{l}\n")).collect::<String>())
        })
    }

    /// What the files of the running server should be, but for what belongs to its role; empty: they are somebody else's.
    fn wanted_files(&self, document: &SettingsDocument) -> Vec<(PathBuf, String)> {
        let dir = self.data_dir();
        let read = |path: &PathBuf| fs::read_to_string(path).unwrap_or_default();
        let [main, hba, ident] = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"].map(|name| dir.join(name));
        let text = read(&main);
        if !text.starts_with(conf::WRITTEN_BY_US) {
            return Vec::new();
        }
        let side = side_of(&text);
        let texts = self.texts_of(document, side);
        let settings = self.settings(&texts);
        let fresh = conf::postgresql_conf(&settings, &role_of(side));
        let closed = read(&hba).contains(conf::CLOSED);
        let mut wanted = vec![
            (main, without_strange(&with_parameters(&text, &fresh, settings.archive.as_ref()), &fresh)),
            (hba, conf::pg_hba(&settings, closed)),
        ];
        let lines = Self::ident(document, &read(&ident));
        wanted.extend(lines.map(|text| (ident, text)));
        wanted
    }

    /// Nothing of the committed configuration is missing in the files of the running server and PostgreSQL has been asked about
    /// them, or they are somebody else's.
    pub fn is_configured_as_wanted(&self) -> bool {
        let _alone = self.config_alone();
        let document = self.accepted();
        let wanted = self.wanted_files(&document);
        let looked_at = wanted.is_empty() || self.is_looked_at(&document);
        looked_at && wanted.into_iter().all(|(path, new)| fs::read_to_string(path).is_ok_and(|text| text == new))
    }

    /// PostgreSQL has been asked about its files as they were written last, or they are somebody else's.
    pub fn was_looked_at(&self) -> bool {
        let _alone = self.config_alone();
        let document = self.accepted();
        self.is_looked_at(&document) || self.wanted_files(&document).is_empty()
    }

    fn is_looked_at(&self, document: &SettingsDocument) -> bool {
        let (now, side) = (Version::of(document), self.side());
        self.standing().looked_at.as_ref().is_some_and(|(then, of)| then.is_as(&now) && *of == side)
    }

    /// The files as they were staged last were looked at by PostgreSQL, and what followed from that was done.
    pub fn looked_at(&self, of: &StagedOf) {
        self.standing().looked_at = Some((of.0.clone(), of.1));
    }

    /// Writes what was committed over the configuration of the running server; it takes effect with a reload. No files: it is
    /// that already, or somebody else's.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn stage_configuration(&self) -> Result<(StagedOf, Option<Staged>), PostgresError> {
        let _alone = self.config_alone();
        let document = self.accepted();
        let mut staged = Vec::new();
        let wanted = self.wanted_files(&document);
        if !wanted.is_empty() {
            self.wrote(&document);
        }
        for (path, is) in wanted {
            let was = fs::read_to_string(&path).ok();
            if was.as_deref() != Some(&is) {
                files::replace(&path, &is)?;
                staged.push(StagedFile { path, was, is });
            }
        }
        self.refresh_runtime_conf()?;
        let of = StagedOf(Version::of(&document), self.side());
        Ok((of, (!staged.is_empty()).then_some(Staged(staged))))
    }

    /// Puts the files back, but for those that somebody has written since: a standby may have been pointed at another source.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn unstage(&self, staged: Staged) -> Result<(), PostgresError> {
        let _alone = self.config_alone();
        staged.put_back()
    }

    /// What somebody has set in files that Matriarch writes, or by ALTER SYSTEM.
    pub fn strays(&self) -> Vec<StraySetting> {
        let _alone = self.config_alone();
        let wanted = self.wanted_files(&self.accepted());
        let mut strays = Vec::new();
        for (path, new) in &wanted {
            let text = fs::read_to_string(path).unwrap_or_default();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name == "postgresql.conf" {
                strays.extend(strange_lines(&text, new, &name));
            } else if text != *new {
                let place = "edited; it is written anew with the next change".to_owned();
                strays.push(StraySetting { name: name.into_owned(), value: String::new(), place });
            }
        }
        if !wanted.is_empty() {
            let auto = fs::read_to_string(self.data_dir().join("postgresql.auto.conf")).unwrap_or_default();
            strays.extend(of_alter_system(&auto));
        }
        strays
    }
}

/// A configuration without lines of settings after its parameters that Matriarch doesn't make, or makes once.
fn without_strange(text: &str, fresh: &str) -> String {
    let known: BTreeSet<&str> = fresh.lines().filter_map(key_of).chain(OF_ROLE).collect();
    let head = text.lines().take_while(|line| !line.starts_with(AFTER_PARAMETERS));
    let rest = text.lines().skip_while(|line| !line.starts_with(AFTER_PARAMETERS));
    let mut seen = BTreeSet::new();
    let of_parameters: BTreeSet<&str> = head.clone().filter_map(key_of).collect();
    let mut kept: Vec<&str> = head.collect();
    for line in rest {
        let is_ours =
            key_of(line).is_none_or(|key| known.contains(key) && !of_parameters.contains(key) && seen.insert(key));
        kept.extend(is_ours.then_some(line));
    }
    kept.iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const OLD: &str = "# Written by matriarch\nrestore_command = 'get'\nwal_keep_size = '512MB'\nwork_mem = '1MB'\nlisten_addresses = '*'\n\
                       wal_level = 'replica'\nprimary_conninfo = 'host=a'\n# generation 1 epoch 2\n";

    #[test]
    fn other_parameters_leave_role_and_archive_alone() {
        let fresh = "# Written by matriarch\nwal_keep_size = '512MB'\nwork_mem = '2MB'\nx.y = 'z'\nlisten_addresses = '*'\n\
                     wal_level = 'logical'\nprimary_conninfo = ''\n";
        let archive = conf::Archive { put: None, get: Some("get".to_owned()), library: false };
        let new = with_parameters(OLD, fresh, Some(&archive));
        assert_eq!(
            new,
            "# Written by matriarch\nrestore_command = 'get'\nwal_keep_size = '512MB'\nwork_mem = '2MB'\nx.y = 'z'\nlisten_addresses = '*'\n\
             wal_level = 'logical'\nprimary_conninfo = 'host=a'\n# generation 1 epoch 2\n"
        );
        assert_eq!(with_parameters(&new, fresh, Some(&archive)), new, "twice is as once");
        assert!(!with_parameters(OLD, fresh, None).contains("restore_command"), "that of a parameter goes with it");
        assert_eq!((side_of(OLD), side_of(fresh)), (Side::Standby, Side::Primary));
    }

    #[test]
    fn what_was_added_by_hand_goes() {
        let edited = format!(
            "{OLD}work_mem = '9MB'\nport = 1\nlisten_addresses = 'x'\n# a remark\nrecovery_min_apply_delay = '0'\n"
        );
        let kept = without_strange(&edited, OLD);
        assert_eq!(kept, format!("{OLD}# a remark\nrecovery_min_apply_delay = '0'\n"));
        assert_eq!(without_strange(&kept, OLD), kept);
        assert_eq!(without_strange(OLD, OLD), OLD);
    }

    #[test]
    fn what_was_edited_is_named() {
        let edited = OLD.replace("work_mem = '1MB'", "work_mem = 1GB") + "shared_buffers='2GB'  \n# a remark\n";
        let told: Vec<String> =
            strange_lines(&edited, OLD, "postgresql.conf").iter().map(ToString::to_string).collect();
        assert_eq!(told, ["work_mem = 1GB (postgresql.conf)", "shared_buffers = 2GB (postgresql.conf)"]);
        let without = OLD.replace("work_mem = '1MB'\n", "");
        let told: Vec<String> =
            strange_lines(&without, OLD, "postgresql.conf").iter().map(ToString::to_string).collect();
        assert_eq!(told, ["work_mem: taken out of postgresql.conf"]);
        assert_eq!(strange_lines(OLD, OLD, "x"), []);
        let auto = "# Do not edit this file manually!\nrestart_after_crash = 'off'\nlog_line_prefix = 'it''s '\n";
        let told: Vec<String> = of_alter_system(auto).map(|stray| stray.to_string()).collect();
        assert_eq!(told, ["log_line_prefix = it's  (ALTER SYSTEM)"]);
    }

    #[test]
    fn what_somebody_has_written_since_is_not_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let [main, hba] = ["postgresql.conf", "pg_hba.conf"].map(|name| dir.path().join(name));
        let staged = |was: Option<&str>, is: &str, path: &PathBuf| StagedFile {
            path: path.clone(),
            was: was.map(str::to_owned),
            is: is.to_owned(),
        };
        let first = Staged(vec![staged(Some("old"), "bad", &main), staged(None, "bad", &hba)]);
        let both = first.then(Some(Staged(vec![staged(Some("bad"), "less", &main)])));
        fs::write(&hba, "bad").unwrap();
        for (there, then) in [("less", "old"), ("pointed elsewhere", "pointed elsewhere"), ("bad", "bad")] {
            fs::write(&main, there).unwrap();
            let again = Staged(both.0.iter().map(|f| staged(f.was.as_deref(), &f.is, &f.path)).collect());
            again.put_back().unwrap();
            assert_eq!(fs::read_to_string(&main).unwrap(), then);
        }
        assert!(!hba.exists(), "it was not there before");
    }
}
