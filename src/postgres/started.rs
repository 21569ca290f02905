//! With which settings of the cluster PostgreSQL is known to start here, which its start has refused, and what of them it can't
//! take. On disk: whoever starts it next, an agent that was restarted as well, must not begin with what keeps it down.
//!
//! A start that is refused because of its configuration is tried again with the last settings with which one succeeded. When
//! that is refused as well, the reason is not in the settings, and the committed ones are next: so whichever comes first, what
//! was wrong with the settings or with the host, one of the two starts.

use std::{collections::BTreeMap, fs, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{files, instance::Instance};
use crate::domain::{ConfigurationView, PostgresKey, SettingsDocument};

/// Of the file. One of another format is as none: what it says is found out again.
const FORMAT: u32 = 1;

/// What PostgreSQL's configuration is made of in one version of the settings.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Version {
    /// Its number.
    pub version: u64,
    values: BTreeMap<String, String>,
}

impl Version {
    pub(super) fn of(document: &SettingsDocument) -> Version {
        Version { version: document.version, values: owned(document) }
    }

    /// Nothing of PostgreSQL's is another.
    pub(super) fn is_as(&self, other: &Version) -> bool {
        self.values == other.values
    }

    fn document(&self) -> SettingsDocument {
        SettingsDocument { version: self.version, values: self.values.clone() }
    }
}

fn owned(document: &SettingsDocument) -> BTreeMap<String, String> {
    document.of_postgres().into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// A start that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct RefusedStart {
    version: u64,
    /// PostgreSQL's words.
    why: String,
}

/// What follows from a start that PostgreSQL refused because of its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterRefusal {
    /// The next start has the settings of that version; 0: those of the host's file alone.
    FallsBack {
        /// Which was refused.
        from: u64,
        /// With which it is tried.
        to: u64,
    },
    /// It was refused with the settings it started with once as well: the committed ones are next.
    TriedBoth,
    /// There are no other settings to try: it lies in the host, or in its file.
    NothingElse,
}

/// What is known of this host, beyond the settings themselves.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Started {
    format: u32,
    /// Of which settings the next two are said.
    of: BTreeMap<String, String>,
    /// What PostgreSQL can't take here, by name of the parameter or key of the lines, and why.
    rejected: BTreeMap<String, String>,
    refused: Option<RefusedStart>,
    /// PostgreSQL started with it, and let somebody in.
    good: Option<Version>,
}

impl Started {
    /// Other settings are committed: nobody knows yet what PostgreSQL says of them. True when something is forgotten by that.
    fn see(&mut self, document: &SettingsDocument) -> bool {
        let of = owned(document);
        if self.of == of {
            return false;
        }
        self.of = of;
        self.forget()
    }

    /// What was refused may be tried again.
    fn forget(&mut self) -> bool {
        let any = self.refused.take().is_some() || !self.rejected.is_empty();
        self.rejected.clear();
        any
    }

    /// What of the committed settings PostgreSQL is configured with.
    fn accepted(&self, document: &SettingsDocument) -> SettingsDocument {
        if self.refused.is_some() {
            return self.good.clone().unwrap_or_default().document();
        }
        let mut document = document.clone();
        document.values.retain(|key, _| match PostgresKey::of(key) {
            Some(PostgresKey::Parameter(_, name)) => !self.rejected.contains_key(name),
            Some(PostgresKey::Hba | PostgresKey::Ident) => !self.rejected.contains_key(key),
            None => true,
        });
        document
    }

    /// What of `bad` is a setting of the cluster is left out. True when anything is that was not before.
    fn reject(&mut self, bad: BTreeMap<String, String>, document: &SettingsDocument) -> bool {
        let accepted = self.accepted(document);
        let ours = |name: &String| {
            accepted.of_postgres().into_keys().any(|key| match PostgresKey::of(key) {
                Some(PostgresKey::Parameter(_, of)) => of == name.as_str(),
                Some(PostgresKey::Hba | PostgresKey::Ident) => key == name.as_str(),
                None => false,
            })
        };
        // Those it started with once are left as they are: nothing is left out of them.
        let ours: BTreeMap<_, _> = bad.into_iter().filter(|(name, _)| self.refused.is_none() && ours(name)).collect();
        let any = !ours.is_empty();
        self.rejected.extend(ours);
        any
    }

    /// PostgreSQL has started with these. True when that is news.
    fn begun(&mut self, with: Version) -> bool {
        let news = self.good.as_ref() != Some(&with);
        self.good = Some(with);
        news
    }

    /// PostgreSQL has refused to start with these.
    fn refuse(&mut self, tried: &Version, why: &str) -> AfterRefusal {
        if self.refused.take().is_some() {
            return AfterRefusal::TriedBoth;
        }
        let good = self.good.clone().unwrap_or_default();
        if good.values == tried.values {
            return AfterRefusal::NothingElse;
        }
        self.refused = Some(RefusedStart { version: tried.version, why: why.to_owned() });
        AfterRefusal::FallsBack { from: tried.version, to: good.version }
    }

    /// Why the committed settings are not in force here, and what to do; empty: they are.
    fn problem(&self) -> String {
        let Some(refused) = &self.refused else {
            let why = self.rejected.iter().map(|(name, why)| format!("{name} is not in force here: {why}"));
            return Vec::from_iter(why).join("; ");
        };
        let RefusedStart { version, why } = refused;
        let (runs, back) = match self.good.as_ref().map_or(0, |good| good.version) {
            0 => ("its host's file alone".to_owned(), "N` to a version of `matriarch config history".to_owned()),
            good => (format!("those of version {good}"), good.to_string()),
        };
        format!(
            "PostgreSQL does not start here with the settings of version {version}: {why}; it is started with {runs}, with which it \
             does; put right what it says here and run `matriarch reload`, or take the change back (`matriarch config rollback {back}`)"
        )
    }
}

/// A start that nobody knows the outcome of yet.
#[derive(Debug)]
pub(super) struct Trying {
    with: Version,
    /// Where the log ended before it.
    log_from: u64,
}

impl Instance {
    fn started_path(&self) -> PathBuf {
        self.log_file().with_file_name("postgresql-settings.json")
    }

    /// What is known from before this process.
    pub(super) fn load_started(&self) -> Started {
        let path = self.started_path();
        let Ok(text) = fs::read_to_string(&path) else { return Started::default() };
        match serde_json::from_str::<Started>(&text) {
            Ok(started) if started.format == FORMAT => started,
            Ok(_) => Started::default(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "with which settings PostgreSQL started is not known any more");
                Started::default()
            }
        }
    }

    /// Keeps on disk what is known. Not under the lock of what is known, by which an agent tells its status: the disk may stand
    /// still.
    pub fn keep_started(&self) {
        let _alone = self.config_alone();
        let started = Started { format: FORMAT, ..self.standing().started.clone() };
        let text = serde_json::to_string_pretty(&started).unwrap_or_default();
        if let Err(error) = files::replace(&self.started_path(), &(text + "\n")) {
            tracing::warn!(%error, "failed to keep with which settings PostgreSQL starts");
        }
    }

    /// Other settings may be committed. What is forgotten by that is on disk still, and of other settings than these.
    pub(super) fn see_settings(&self, document: &SettingsDocument) {
        self.standing().started.see(document);
    }

    /// What was refused here is tried again, because an operator says that it is put right.
    pub fn try_settings_again(&self) {
        let forgotten = self.standing().started.forget();
        if forgotten {
            self.keep_started();
        }
    }

    /// The settings without what PostgreSQL can't take here.
    pub(super) fn accepted(&self) -> SettingsDocument {
        let document = self.document();
        self.standing().started.accepted(&document)
    }

    /// Leaves out what PostgreSQL can't take, each name with the reason. True when that was anything of the settings: the
    /// host's file is somebody else's matter.
    pub fn reject(&self, bad: BTreeMap<String, String>) -> bool {
        let document = self.document();
        let any = self.standing().started.reject(bad, &document);
        if any {
            self.keep_started();
        }
        any
    }

    /// By which version of the settings PostgreSQL is configured here.
    pub fn version_in_force(&self) -> u64 {
        self.accepted().version
    }

    /// These settings are in the files that the next start begins with.
    pub(super) fn wrote(&self, document: &SettingsDocument) {
        self.standing().written = Some(Version::of(document));
    }

    /// PostgreSQL is about to be started.
    pub(super) fn begins(&self) {
        let log_from = fs::metadata(self.log_file()).map_or(0, |log| log.len());
        let mut standing = self.standing();
        standing.trying = standing.written.clone().map(|with| Trying { with, log_from });
    }

    /// PostgreSQL lets somebody in.
    pub fn has_begun(&self) {
        let news = {
            let mut standing = self.standing();
            let tried = standing.trying.take();
            tried.is_some_and(|tried| standing.started.begun(tried.with))
        };
        if news {
            self.keep_started();
        }
    }

    /// Where the log of the start under way begins; `None`: nothing is, or somebody was let in.
    pub fn start_under_way(&self) -> Option<u64> {
        self.standing().trying.as_ref().map(|trying| trying.log_from)
    }

    /// The start that was under way was refused because of its configuration, in these words. It is on disk after
    /// [`Instance::keep_started`].
    pub fn start_refused(&self, why: &str) -> Option<AfterRefusal> {
        let mut standing = self.standing();
        let Trying { with, .. } = standing.trying.take()?;
        Some(standing.started.refuse(&with, why))
    }

    /// How the committed configuration stands here; `None`: nobody has looked at the server that runs, and nothing is known.
    pub fn configuration(&self) -> Option<ConfigurationView> {
        let version = self.accepted().version;
        let standing = self.standing();
        let (problem, refused) =
            (standing.started.problem(), standing.started.refused.as_ref().map_or(0, |r| r.version));
        match &standing.view {
            Some(view) => Some(ConfigurationView { problem, refused, ..view.clone() }),
            None => {
                (refused > 0).then(|| ConfigurationView { version, problem, refused, ..ConfigurationView::default() })
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn document(version: u64, values: &[(&str, &str)]) -> SettingsDocument {
        let values = values.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        SettingsDocument { version, values }
    }

    fn tried(started: &Started, document: &SettingsDocument) -> Version {
        Version::of(&started.accepted(document))
    }

    const WHY: &str = "FATAL:  could not load server certificate file";

    #[test]
    fn a_refused_start_is_followed_by_one_with_what_it_started_with_last() {
        let (seven, nine) = (
            document(7, &[("parameters.work_mem", "1MB"), ("crash_budget", "5")]),
            document(9, &[("parameters.ssl", "on")]),
        );
        let mut started = Started::default();
        started.see(&seven);
        assert!(started.begun(tried(&started, &seven)) && !started.begun(tried(&started, &seven)));
        assert!(!started.see(&nine), "nothing was refused that could be forgotten");
        assert_eq!(started.refuse(&tried(&started, &nine), WHY), AfterRefusal::FallsBack { from: 9, to: 7 });
        assert_eq!(started.accepted(&nine), document(7, &[("parameters.work_mem", "1MB")]));
        let told = started.problem();
        assert!(
            told.contains("settings of version 9: FATAL:  could not load") && told.contains("config rollback 7`"),
            "{told}"
        );
        // The agent was restarted meanwhile.
        let mut started: Started = serde_json::from_str(&serde_json::to_string(&started).unwrap()).unwrap();
        started.see(&nine);
        assert_eq!(started.accepted(&nine).version, 7);
        assert!(!started.begun(tried(&started, &nine)), "it starts with what it started with");
        assert_eq!(started.accepted(&nine).version, 7, "a start that succeeds doesn't bring back what was refused");
        assert!(started.see(&document(10, &[("parameters.ssl", "off")])), "other settings are tried");
        assert_eq!((started.accepted(&document(10, &[])).version, started.problem()), (10, String::new()));
    }

    #[test]
    fn when_both_are_refused_the_committed_ones_are_next() {
        let nine = document(9, &[("parameters.huge_pages", "on")]);
        let mut started = Started::default();
        started.see(&nine);
        assert_eq!(started.refuse(&tried(&started, &nine), WHY), AfterRefusal::FallsBack { from: 9, to: 0 });
        assert_eq!(started.accepted(&nine), SettingsDocument::default(), "none ever started: the host's file alone");
        assert!(
            started.problem().contains("its host's file alone")
                && started.problem().contains("`matriarch config history`")
        );
        assert_eq!(started.refuse(&tried(&started, &nine), WHY), AfterRefusal::TriedBoth);
        assert_eq!((started.accepted(&nine).version, started.problem()), (9, String::new()));
        assert_eq!(started.refuse(&tried(&started, &nine), WHY), AfterRefusal::FallsBack { from: 9, to: 0 });
        let own = document(3, &[("crash_budget", "5")]);
        started.see(&own);
        assert_eq!(
            started.refuse(&tried(&started, &own), WHY),
            AfterRefusal::NothingElse,
            "it lies in the host's file"
        );
    }

    #[test]
    fn what_is_left_out_stays_so_until_other_settings_come() {
        let nine = document(9, &[("parameters.a", "1"), ("n1.parameters.b", "2"), ("hba", "x"), ("crash_budget", "5")]);
        let bad = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), "it is bad".to_owned())).collect();
        let mut started = Started::default();
        started.see(&nine);
        assert!(!started.reject(bad(&["c", "ident"]), &nine), "they are none of the settings");
        assert!(started.reject(bad(&["b", "hba", "c"]), &nine));
        assert!(!started.reject(bad(&["b"]), &nine), "said again");
        let kept = document(9, &[("parameters.a", "1"), ("crash_budget", "5")]);
        assert_eq!(started.accepted(&nine), kept);
        assert_eq!(started.problem(), "b is not in force here: it is bad; hba is not in force here: it is bad");
        let mut again: Started = serde_json::from_str(&serde_json::to_string(&started).unwrap()).unwrap();
        assert!(!again.see(&SettingsDocument { version: 11, ..nine.clone() }), "PostgreSQL's are the same");
        assert_eq!(again.accepted(&nine), kept);
        assert!(again.forget(), "an operator has put it right");
        assert_eq!(again.accepted(&nine), nine);
    }
}
