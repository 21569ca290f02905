//! Replication slots of users: those that are to survive a failover, and those that nobody may touch.

use std::{collections::BTreeSet, fmt, str::FromStr};

use super::{sync::SLOT_PREFIX, version::PostgresVersion};

/// From this major version on PostgreSQL itself keeps logical slots on standbys (`sync_replication_slots`).
pub const FAILOVER_SLOTS: u32 = 17;
/// The longest name that PostgreSQL takes for a slot, a database or a plugin.
const NAME_MAX: usize = 63;

/// What decodes changes, and of which database.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Logical {
    /// The database.
    pub database: String,
    /// The output plugin.
    pub plugin: String,
}

/// A slot of a user's that every member has that may become primary.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PermanentSlot {
    /// Its name; never one of a member's slot.
    pub name: String,
    /// `None`: it is physical.
    pub logical: Option<Logical>,
}

/// All of them; no two of one name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct PermanentSlots(Vec<PermanentSlot>);

impl PermanentSlots {
    /// In the order in which they were given.
    pub fn iter(&self) -> impl Iterator<Item = &PermanentSlot> {
        self.0.iter()
    }

    /// The one of this name.
    pub fn get(&self, name: &str) -> Option<&PermanentSlot> {
        self.0.iter().find(|slot| slot.name == name)
    }

    /// Some are logical: PostgreSQL has to be configured for them.
    pub fn has_logical(&self) -> bool {
        self.0.iter().any(|slot| slot.logical.is_some())
    }

    /// Why a server of this version can't have them.
    pub fn unsupported(&self, version: PostgresVersion) -> Option<String> {
        let slot = self.0.iter().find(|slot| slot.logical.is_some()).filter(|_| version.major() < FAILOVER_SLOTS)?;
        Some(format!(
            "the slot {} is logical, and logical slots that survive a failover are offered from PostgreSQL {FAILOVER_SLOTS} on, which \
             keeps them on standbys itself; this is {version}",
            slot.name
        ))
    }
}

impl FromStr for PermanentSlots {
    type Err = String;

    /// `NAME` or `NAME:DATABASE:PLUGIN`, with commas between them; empty: none.
    fn from_str(text: &str) -> Result<Self, String> {
        let (mut slots, mut names) = (Vec::new(), BTreeSet::new());
        for part in parts(text) {
            let slot = permanent(part)?;
            if !names.insert(slot.name.clone()) {
                return Err(format!("each slot once, `{}` is there twice", slot.name));
            }
            slots.push(slot);
        }
        Ok(Self(slots))
    }
}

fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

fn permanent(text: &str) -> Result<PermanentSlot, String> {
    let (name, logical) = match *Vec::from_iter(text.split(':')) {
        [name] => (name, None),
        [name, database, plugin] => {
            let [database, plugin] =
                [("database", database), ("plugin", plugin)].map(|(what, name)| of_any(what, name));
            (name, Some(Logical { database: database?, plugin: plugin? }))
        }
        _ => {
            return Err(format!(
                "NAME (physical) or NAME:DATABASE:PLUGIN (logical), with commas between them, not `{text}`"
            ));
        }
    };
    Ok(PermanentSlot { name: of_slot(name)?, logical })
}

/// `slot.c`, `ReplicationSlotValidateName`.
fn of_slot(name: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(fits) {
        return Err(format!("the name of a slot has 1 to {NAME_MAX} lower case letters, digits and `_`, not `{name}`"));
    }
    if name.starts_with(SLOT_PREFIX) {
        return Err(format!("names that begin with {SLOT_PREFIX} are those of members' slots, not `{name}`"));
    }
    Ok(name.to_owned())
}

fn of_any(what: &str, name: &str) -> Result<String, String> {
    let fits = |c: char| !c.is_control() && !c.is_whitespace() && !matches!(c, ',' | ':' | '=');
    match !name.is_empty() && name.len() <= NAME_MAX && name.chars().all(fits) {
        true => Ok(name.to_owned()),
        false => {
            Err(format!("the name of a {what} of 1 to {NAME_MAX} characters without blanks and `,:=`, not `{name}`"))
        }
    }
}

/// As it is read.
impl fmt::Display for PermanentSlots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one = |slot: &PermanentSlot| match &slot.logical {
            None => slot.name.clone(),
            Some(Logical { database, plugin }) => format!("{}:{database}:{plugin}", slot.name),
        };
        f.pad(&Vec::from_iter(self.0.iter().map(one)).join(","))
    }
}

/// Which slots are meant: those with all that is given.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Matcher {
    name: Option<String>,
    physical: Option<bool>,
    database: Option<String>,
    plugin: Option<String>,
}

/// Slots that are never made, dropped or changed, and whose idleness is not told. Members' slots are never among them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct IgnoredSlots(Vec<Matcher>);

impl IgnoredSlots {
    /// The slot of this name is one of them. `logical`: `None` of a physical one.
    pub fn has(&self, name: &str, logical: Option<&Logical>) -> bool {
        let same = |wanted: &Option<String>, is: Option<&str>| wanted.as_deref().is_none_or(|w| Some(w) == is);
        !name.starts_with(SLOT_PREFIX)
            && self.0.iter().any(|m| {
                same(&m.name, Some(name))
                    && m.physical.is_none_or(|physical| physical == logical.is_none())
                    && same(&m.database, logical.map(|l| l.database.as_str()))
                    && same(&m.plugin, logical.map(|l| l.plugin.as_str()))
            })
    }
}

impl FromStr for IgnoredSlots {
    type Err = String;

    /// `name=… type=… database=… plugin=…`, any of them, with commas between the matchers; empty: none.
    fn from_str(text: &str) -> Result<Self, String> {
        parts(text).map(matcher).collect::<Result<_, _>>().map(Self)
    }
}

fn matcher(text: &str) -> Result<Matcher, String> {
    let mut matcher = Matcher::default();
    for field in text.split_whitespace() {
        let wanted = || format!("name=, type=physical or logical, database=, plugin= in each matcher, not `{field}`");
        let (key, value) = field.split_once('=').ok_or_else(wanted)?;
        let twice = match key {
            "name" => matcher.name.replace(of_slot(value)?).is_some(),
            "type" if ["physical", "logical"].contains(&value) => {
                matcher.physical.replace(value == "physical").is_some()
            }
            "database" => matcher.database.replace(of_any("database", value)?).is_some(),
            "plugin" => matcher.plugin.replace(of_any("plugin", value)?).is_some(),
            _ => return Err(wanted()),
        };
        if twice {
            return Err(format!("{key} once in a matcher, not twice in `{text}`"));
        }
    }
    if matcher.physical == Some(true) && (matcher.database.is_some() || matcher.plugin.is_some()) {
        return Err(format!("no database and no plugin of a physical slot: `{text}` is no slot"));
    }
    Ok(matcher)
}

/// As it is read.
impl fmt::Display for IgnoredSlots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one = |m: &Matcher| {
            let kind = m.physical.map(|physical| if physical { "physical" } else { "logical" });
            let fields = [
                ("name", m.name.as_deref()),
                ("type", kind),
                ("database", m.database.as_deref()),
                ("plugin", m.plugin.as_deref()),
            ];
            Vec::from_iter(fields.iter().filter_map(|(key, value)| Some(format!("{key}={}", (*value)?)))).join(" ")
        };
        f.pad(&Vec::from_iter(self.0.iter().map(one)).join(","))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn permanent(text: &str) -> PermanentSlots {
        text.parse().unwrap()
    }

    #[test]
    fn permanent_slots_are_written_as_they_are_read() {
        let slots = permanent(" backup, audit:app:pgoutput ,");
        assert_eq!(slots.to_string(), "backup,audit:app:pgoutput");
        assert_eq!(permanent(&slots.to_string()), slots);
        assert!(slots.has_logical() && slots.get("backup").unwrap().logical.is_none() && slots.get("b").is_none());
        assert_eq!(permanent(""), PermanentSlots::default());
    }

    #[test]
    fn what_can_be_no_slot_and_a_members_slot_are_refused() {
        for (text, why) in [
            ("Backup", "the name of a slot has 1 to 63 lower case letters, digits and `_`, not `Backup`"),
            ("a:b", "NAME (physical) or NAME:DATABASE:PLUGIN (logical), with commas between them, not `a:b`"),
            ("a::p", "the name of a database of 1 to 63 characters without blanks and `,:=`, not ``"),
            ("a,b,a", "each slot once, `a` is there twice"),
            ("matriarch_n2", "names that begin with matriarch_ are those of members' slots, not `matriarch_n2`"),
        ] {
            assert_eq!(text.parse::<PermanentSlots>().unwrap_err(), why);
        }
    }

    #[test]
    fn logical_slots_are_offered_from_postgresql_17_on_and_said_not_to_be_before() {
        let (physical, logical) = (permanent("backup"), permanent("backup,audit:app:pgoutput"));
        assert_eq!(physical.unsupported(PostgresVersion(140_000)), None);
        assert_eq!(logical.unsupported(PostgresVersion(170_000)), None);
        let why = logical.unsupported(PostgresVersion(160_004)).unwrap();
        assert!(why.starts_with("the slot audit is logical,") && why.ends_with("this is 16.4"), "{why}");
    }

    #[test]
    fn a_slot_is_ignored_that_has_all_of_one_matcher() {
        let ignored: IgnoredSlots = "name=a,type=logical database=app,plugin=wal2json".parse().unwrap();
        let logical = |database: &str, plugin: &str| Logical { database: database.into(), plugin: plugin.into() };
        let has = |name, of: Option<&Logical>| ignored.has(name, of);
        assert!(has("a", None) && has("a", Some(&logical("x", "y"))) && !has("b", None));
        assert!(has("b", Some(&logical("app", "y"))) && has("b", Some(&logical("x", "wal2json"))));
        assert!(!has("b", Some(&logical("x", "y"))));
        let all: IgnoredSlots = "type=physical".parse().unwrap();
        assert!(all.has("b", None) && !all.has("matriarch_n2", None), "a member's");
        assert!(!IgnoredSlots::default().has("a", None));
    }

    #[test]
    fn matchers_are_written_as_they_are_read_and_refused_when_they_match_nothing() {
        let text = "name=a type=logical,database=app plugin=p";
        assert_eq!(text.parse::<IgnoredSlots>().unwrap().to_string(), text);
        for (text, why) in [
            ("type=both", "name=, type=physical or logical, database=, plugin= in each matcher, not `type=both`"),
            ("a", "name=, type=physical or logical, database=, plugin= in each matcher, not `a`"),
            ("name=a name=b", "name once in a matcher, not twice in `name=a name=b`"),
            (
                "type=physical plugin=p",
                "no database and no plugin of a physical slot: `type=physical plugin=p` is no slot",
            ),
            ("name=matriarch_x", "names that begin with matriarch_ are those of members' slots, not `matriarch_x`"),
        ] {
            assert_eq!(text.parse::<IgnoredSlots>().unwrap_err(), why);
        }
    }
}
