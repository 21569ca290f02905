//! Keys of the settings that are PostgreSQL's: its parameters, for all, for one side or for one member, and who may connect.

use std::{collections::BTreeMap, fmt};

use super::{MemberId, MemberSettings, SettingsDocument, hba::lines, parameters::AT_LEAST_THE_PRIMARYS};

/// Names that no member may have: a key of the settings begins with them. A cluster that has such a member already goes on,
/// without the keys that could be meant for it.
pub const NO_NAMES: [&str; 5] = [PARAMETERS, "primary", "standby", HBA, IDENT];

const PARAMETERS: &str = "parameters";
/// Lines of `pg_hba.conf`.
pub const HBA: &str = "hba";
/// Lines of `pg_ident.conf`.
pub const IDENT: &str = "ident";

/// Why no new member may have this name; `None`: it may.
pub fn no_name(name: &str) -> Option<String> {
    NO_NAMES.contains(&name).then(|| {
        format!("`{name}` can't be the name of a new member, for keys of the settings begin with it; give it another in every host's file")
    })
}

/// As what a member's PostgreSQL runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// It takes writes.
    Primary,
    /// It follows.
    Standby,
}

impl Side {
    const ALL: [Side; 2] = [Side::Primary, Side::Standby];

    fn word(self) -> &'static str {
        match self {
            Side::Primary => "primary",
            Side::Standby => "standby",
        }
    }
}

/// For whom a parameter is. What stands further down goes before what stands above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope<'a> {
    /// Every member.
    All,
    /// Whoever is that.
    Side(Side),
    /// One member.
    Member(&'a str),
}

/// A key that PostgreSQL's configuration is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PostgresKey<'a> {
    /// A parameter.
    Parameter(Scope<'a>, &'a str),
    /// Lines of `pg_hba.conf`.
    Hba,
    /// Lines of `pg_ident.conf`.
    Ident,
}

impl<'a> PostgresKey<'a> {
    /// What a key is; `None`: none of PostgreSQL's.
    pub fn of(key: &'a str) -> Option<Self> {
        match key {
            HBA => return Some(Self::Hba),
            IDENT => return Some(Self::Ident),
            _ => {}
        }
        let (first, rest) = key.split_once('.')?;
        if first == PARAMETERS {
            // Of a member that was called so before it was a key.
            let of_member = MemberSettings::KEYS.iter().any(|(known, _)| *known == rest);
            return (!of_member && !rest.is_empty()).then_some(Self::Parameter(Scope::All, rest));
        }
        let name = rest.strip_prefix(PARAMETERS)?.strip_prefix('.').filter(|name| !name.is_empty())?;
        let side = Side::ALL.into_iter().find(|side| side.word() == first);
        Some(Self::Parameter(side.map_or(Scope::Member(first), Scope::Side), name))
    }
}

/// The key of a parameter; in small letters, as PostgreSQL doesn't tell them apart.
pub fn parameter_key(scope: Scope<'_>, name: &str) -> String {
    let name = name.to_ascii_lowercase();
    match scope {
        Scope::All => format!("{PARAMETERS}.{name}"),
        Scope::Side(side) => format!("{}.{PARAMETERS}.{name}", side.word()),
        Scope::Member(member) => format!("{member}.{PARAMETERS}.{name}"),
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// `postgresql.parameters` of the host's file.
    File,
    /// This key of the settings.
    Key(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => f.write_str("the host's file"),
            Self::Key(key) => f.write_str(key),
        }
    }
}

/// A parameter that is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// As it is set.
    pub value: String,
    /// By what.
    pub origin: Origin,
}

impl SettingsDocument {
    /// What PostgreSQL of a member is to be configured with, by name in small letters: its host's file, then what is set for
    /// all, for its side, and for itself.
    pub fn parameters(
        &self,
        file: &BTreeMap<String, String>,
        member: &MemberId,
        side: Side,
    ) -> BTreeMap<String, Given> {
        let own = file
            .iter()
            .map(|(name, value)| (name.to_ascii_lowercase(), Given { value: value.clone(), origin: Origin::File }));
        let mut all: BTreeMap<String, Given> = own.collect();
        for scope in [Scope::All, Scope::Side(side), Scope::Member(member.as_str())] {
            let of_scope = self.values.iter().filter_map(|(key, value)| match PostgresKey::of(key) {
                Some(PostgresKey::Parameter(of, name)) if of == scope => {
                    Some((name.to_owned(), Given { value: value.clone(), origin: Origin::Key(key.clone()) }))
                }
                _ => None,
            });
            all.extend(of_scope);
        }
        all
    }

    /// Lines that are set under [`HBA`] or [`IDENT`]; `None`: nothing is, and the host's file counts.
    pub fn lines_of(&self, key: &str) -> Option<Vec<String>> {
        Some(lines(self.values.get(key)?).map(|(_, line)| line.to_owned()).collect())
    }

    /// All that PostgreSQL's configuration is made of.
    pub fn of_postgres(&self) -> BTreeMap<&str, &str> {
        let own = self.values.iter().filter(|(key, _)| PostgresKey::of(key).is_some());
        own.map(|(key, value)| (key.as_str(), value.as_str())).collect()
    }
}

/// Why a standby runs with more than it is configured for.
pub const HELD_UP: &str = "the primary's WAL needs as much: the primary first";
/// Why a standby replays nothing any more before it is restarted.
pub const LACKING: &str =
    "the primary runs with as much, and replay has stopped before its next WAL: a restart of this standby";

/// A setting that takes effect with a restart.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct PendingSetting {
    /// Its name.
    pub name: String,
    /// What it is.
    pub running: String,
    /// What it will be.
    pub configured: String,
    /// Why it isn't yet, and in which order members are to be restarted.
    pub why: String,
}

impl PendingSetting {
    /// A restart of this very member would put it in force.
    pub fn needs_restart(&self) -> bool {
        self.why != HELD_UP
    }

    /// It is one of [`AT_LEAST_THE_PRIMARYS`]: what is in force, and what will be.
    pub fn count(&self) -> Option<(u64, u64)> {
        let number = |text: &str| text.parse::<u64>().ok();
        AT_LEAST_THE_PRIMARYS.contains(&self.name.as_str()).then_some(())?;
        number(&self.running).zip(number(&self.configured))
    }

    /// It rises, and standbys need as much first.
    pub fn rises(&self) -> bool {
        self.count().is_some_and(|(is, will)| will > is)
    }

    /// It falls, and a standby can't have less before the primary has.
    pub fn falls(&self) -> bool {
        self.count().is_some_and(|(is, will)| will < is)
    }

    /// Replay has stopped for it.
    pub fn is_lacking(&self) -> bool {
        self.why == LACKING
    }
}

/// Something that somebody has set behind Matriarch's back.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct StraySetting {
    /// A setting, or a file.
    pub name: String,
    /// What it was set to, as far as that can be said.
    pub value: String,
    /// Where.
    pub place: String,
}

impl fmt::Display for StraySetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value.as_str() {
            "" => write!(f, "{}: {}", self.name, self.place),
            value => write!(f, "{} = {value} ({})", self.name, self.place),
        }
    }
}

/// How PostgreSQL's configuration stands to what was committed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct ConfigurationView {
    /// Of the settings that its files were written by; 0: not known.
    pub version: u64,
    /// What waits for a restart.
    pub pending: Vec<PendingSetting>,
    /// What was set behind our back.
    pub strays: Vec<StraySetting>,
    /// Why the committed settings are not in force here; empty: they are.
    pub problem: String,
    /// With the settings of which version PostgreSQL did not start here; 0: there is none.
    pub refused: u64,
    /// What the server runs with of [`AT_LEAST_THE_PRIMARYS`]; empty: not known.
    pub counts: BTreeMap<String, u64>,
}

impl ConfigurationView {
    /// A restart of this member would put something in force.
    pub fn needs_restart(&self) -> bool {
        self.pending.iter().any(PendingSetting::needs_restart)
    }

    /// What an operator should know, one line each.
    pub fn remarks(&self) -> Vec<String> {
        let pending = self.pending.iter().map(|p| {
            let PendingSetting { name, running, configured, why } = p;
            format!("pending restart: {name} = {running}, then {configured} ({why})")
        });
        let strays = self.strays.iter().map(|stray| format!("set behind Matriarch's back: {stray}"));
        let problem = Some(&self.problem).filter(|problem| !problem.is_empty()).cloned();
        pending.chain(strays).chain(problem).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn keys_say_whose_they_are() {
        let parameter = |scope, name| Some(PostgresKey::Parameter(scope, name));
        assert_eq!(PostgresKey::of("parameters.work_mem"), parameter(Scope::All, "work_mem"));
        assert_eq!(
            PostgresKey::of("parameters.auto_explain.log_analyze"),
            parameter(Scope::All, "auto_explain.log_analyze")
        );
        assert_eq!(PostgresKey::of("standby.parameters.work_mem"), parameter(Scope::Side(Side::Standby), "work_mem"));
        assert_eq!(PostgresKey::of("n1.parameters.work_mem"), parameter(Scope::Member("n1"), "work_mem"));
        assert_eq!(PostgresKey::of("hba"), Some(PostgresKey::Hba));
        for other in ["crash_budget", "n1.priority", "n1.parameters", "n1.parameters.", "parameters.", "primary.x"] {
            assert_eq!(PostgresKey::of(other), None, "{other}");
        }
        assert_eq!(PostgresKey::of("parameters.priority"), None, "of a member that was called so before");
        for scope in [Scope::All, Scope::Side(Side::Primary), Scope::Member("n2")] {
            assert_eq!(PostgresKey::of(&parameter_key(scope, "Work_Mem")), parameter(scope, "work_mem"));
        }
    }

    #[test]
    fn keys_are_no_names_of_members() {
        assert!(
            NO_NAMES.into_iter().all(|name| no_name(name).is_some_and(|why| why.starts_with(&format!("`{name}` "))))
        );
        assert_eq!(no_name("n1"), None);
    }

    #[test]
    fn the_nearest_says_most() {
        let set = [
            ("parameters.work_mem", "1MB"),
            ("primary.parameters.work_mem", "2MB"),
            ("n1.parameters.work_mem", "3MB"),
            ("standby.parameters.max_parallel_workers", "4"),
            ("n2.priority", "5"),
        ];
        let values = set.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let document = SettingsDocument { version: 1, values };
        let file =
            BTreeMap::from([("Work_Mem".to_owned(), "0".to_owned()), ("log_connections".to_owned(), "on".to_owned())]);
        let of = |member: &str, side| {
            let all = document.parameters(&file, &member.parse().unwrap(), side);
            all.into_iter().map(|(name, given)| format!("{name}={} {}", given.value, given.origin)).collect::<Vec<_>>()
        };
        assert_eq!(
            of("n1", Side::Primary),
            ["log_connections=on the host's file", "work_mem=3MB n1.parameters.work_mem"]
        );
        assert_eq!(of("n2", Side::Primary)[1], "work_mem=2MB primary.parameters.work_mem");
        let standby = of("n2", Side::Standby);
        assert_eq!(standby[1], "max_parallel_workers=4 standby.parameters.max_parallel_workers");
        assert_eq!(standby[2], "work_mem=1MB parameters.work_mem");
        assert_eq!(document.of_postgres().len(), 4);
        assert_eq!(document.lines_of(HBA), None);
    }

    #[test]
    fn lines_are_those_that_say_something() {
        let text = "# a\nlocal all all peer\n\n  host all all all md5\n".to_owned();
        let document = SettingsDocument { version: 1, values: [(HBA.to_owned(), text)].into() };
        assert_eq!(
            document.lines_of(HBA),
            Some(vec!["local all all peer".to_owned(), "host all all all md5".to_owned()])
        );
        assert_eq!(document.read().1, [], "it is no unknown key");
    }

    #[test]
    fn what_waits_and_what_is_strange_is_told_in_words() {
        let pending = PendingSetting {
            name: "max_connections".into(),
            running: "100".into(),
            configured: "200".into(),
            why: "standbys first".into(),
        };
        assert!(pending.rises() && pending.needs_restart());
        let falling = PendingSetting { configured: "50".into(), ..pending.clone() };
        assert!(falling.falls() && !falling.rises() && !pending.falls());
        assert!(!PendingSetting { name: "work_mem".into(), ..falling }.falls(), "no standby needs that");
        let stray = StraySetting { name: "work_mem".into(), value: "1GB".into(), place: "ALTER SYSTEM".into() };
        let view = ConfigurationView { pending: vec![pending], strays: vec![stray], ..ConfigurationView::default() };
        assert_eq!(
            view.remarks(),
            [
                "pending restart: max_connections = 100, then 200 (standbys first)",
                "set behind Matriarch's back: work_mem = 1GB (ALTER SYSTEM)"
            ]
        );
    }
}
